//! One connection: what it speaks, who it is, and a brain for each user that it comes for, one after another.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use dsync_accounts::{Identity, Settings, User, UserError, check_user, lookup, verify, verify_secret};
use dsync_session::dovecot::Names;
use dsync_session::dovecot::greet::Caller;
use dsync_session::dovecot::link::Early;
use dsync_session::link::Stream;
use dsync_session::proto::preface::{Auth, Spoken, Verdict, recognise};
use dsync_session::{Report, SessionError, chain, dovecot, greet, link};
use dsync_worker::{Desk, Place, Pool, Protocol, Role, Talk, Task};
use tokio::sync::watch;

use crate::doveadm::Doveadm;
use crate::limits::Permit;

/// How long to wait for the lock of a store where the client says nothing about it.
pub const LOCK_WAIT: Duration = Duration::from_secs(30);

/// Where a connection comes from, and what that proves.
pub struct Peer {
    /// For logs: address and port, or `stdio`.
    pub name: String,
    /// Names of its verified certificate.
    pub certificate: Vec<String>,
    /// It was started for this user on this machine: no password is asked.
    pub trusted_user: Option<String>,
    /// What it sends others may read along.
    pub exposed: bool,
    /// It is on this machine.
    pub local: bool,
    /// It came by a unix socket, and runs as root or as we do: it needs no password for doveadm's commands.
    pub trusted: bool,
}

/// Everything that a connection needs to know.
pub struct Service<'a> {
    pub settings: &'a Settings,
    /// Processes that work for users who have a uid of their own.
    pub pool: &'a Pool,
    /// The words of our command line that say what the configuration is, for programs that we start.
    pub conf: &'a [String],
    pub stop: watch::Receiver<bool>,
}

/// Verifying a password takes memory and time: one at a time.
static VERIFYING: Mutex<()> = Mutex::new(());

impl Service<'_> {
    /// Serves one connection to its end, and writes one line about each user. Gives the last one's status.
    pub async fn serve(
        &self,
        stream: &mut dyn Stream,
        early: BytesMut,
        peer: &Peer,
        mut permit: Option<Permit>,
    ) -> u8 {
        let begun = Instant::now();
        let mut named = String::from("-");
        let early = match self.spoken(stream, early, peer, permit.as_mut(), &mut named).await {
            Ok(Doveadm::Native(early)) => early,
            Ok(Doveadm::Done(report)) => return told(&named, peer, begun, Ok(report)),
            Ok(Doveadm::Ran(status)) => {
                let (seconds, peer) = (begun.elapsed().as_secs_f64(), &peer.name);
                tracing::info!("command user={named} peer={peer} seconds={seconds:.3} status={status}");
                return status;
            }
            Err(error) => return told(&named, peer, begun, Err(error)),
        };
        let asked = match greet::server(stream, early, !peer.local).await {
            Ok(asked) => asked,
            Err(error) => return told("-", peer, begun, Err(error)),
        };
        tracing::debug!("peer={} program={:?}", peer.name, asked.program);
        let standing = match self.admit(peer, &asked.auth, &asked.user) {
            Ok(standing) => standing,
            Err((status, text)) => {
                // Nobody whom we let in: nothing follows.
                let answered = greet::answer(stream, Verdict::Refused { status, text: text.clone() }).await;
                let error = answered.err().unwrap_or(SessionError::Refused { status, text });
                return told(shown(&asked.user), peer, begun, Err(error));
            }
        };
        if let Some(permit) = permit.as_mut() {
            permit.authenticated();
        }
        let (mut user, mut input, mut begun) = (asked.user, asked.early, begun);
        let mut stop = self.stop.clone();
        loop {
            let served = self.one_user(stream, &standing, &user, &mut input, asked.common.compress).await;
            let over = matches!(&served, Served::Broken(_)) || !asked.common.many || *stop.borrow();
            let status = told(shown(&user), peer, begun, served.outcome());
            let next = tokio::select! {
                next = greet::next_user(stream, &mut input), if !over => next,
                _ = stop.wait_for(|stop| *stop), if !over => Ok(None),
                else => Ok(None),
            };
            match next {
                Ok(Some(name)) => (user, begun) = (name, Instant::now()),
                Ok(None) => {
                    link::close(stream).await;
                    return status;
                }
                Err(error) => {
                    tracing::debug!("peer={} {error}", peer.name);
                    return status;
                }
            }
        }
    }

    /// Hears what the client speaks, and serves it if it is a Dovecot.
    async fn spoken(
        &self,
        stream: &mut dyn Stream,
        early: BytesMut,
        peer: &Peer,
        permit: Option<&mut Permit>,
        named: &mut String,
    ) -> Result<Doveadm, SessionError> {
        if peer.trusted_user.is_some() {
            return match dovecot::greet::listen(stream).await? {
                Caller::Native(early) => Ok(Doveadm::Native(early)),
                Caller::Dovecot(early) => {
                    let report = self.started_by_dovecot(stream, early, peer, named).await?;
                    Ok(Doveadm::Done(Box::new(report)))
                }
            };
        }
        if recognise(&early) == Some(Spoken::Dovecot) {
            return self.called_by_doveadm(stream, early, peer, permit, named).await;
        }
        Ok(Doveadm::Native(early))
    }

    async fn one_user(
        &self,
        stream: &mut dyn Stream,
        standing: &Standing,
        user: &str,
        input: &mut BytesMut,
        compress: bool,
    ) -> Served {
        let opened = if standing.admits(user) {
            self.desk(user).await
        } else {
            Err((77, "this login is not for that user".to_owned()))
        };
        let desk = match opened {
            Ok((desk, _)) => desk,
            Err((status, text)) => {
                let answered = greet::answer(stream, Verdict::Refused { status, text: text.clone() }).await;
                return match answered {
                    Ok(()) => Served::Refused(SessionError::Refused { status, text }),
                    Err(error) => Served::Broken(error),
                };
            }
        };
        if let Err(error) = greet::answer(stream, Verdict::Welcome).await {
            return Served::Broken(error);
        }
        let early = Early { input: std::mem::take(input), ..Early::default() };
        let talk = self.talk(Protocol::Native { compress }, early);
        match desk.run(stream, talk, &mut |_| {}).await {
            Ok((report, behind)) => {
                *input = behind;
                Served::Done(Box::new(report))
            }
            Err(error) => Served::Broken(error),
        }
    }

    pub(crate) fn talk(&self, protocol: Protocol, early: Early) -> Talk {
        let silence = Duration::from_secs(self.settings.silence_secs().map_or(600, u64::from));
        Talk { protocol, early, names: Names::default(), silence, stop: self.stop.clone() }
    }

    /// Settles who the client is, and whose mail that opens.
    fn admit(&self, peer: &Peer, auth: &Auth, name: &str) -> Result<Standing, (u8, String)> {
        check_user(name).map_err(refused)?;
        let denied = |text: &str| (77, text.to_owned());
        if let Some(trusted) = &peer.trusted_user {
            if trusted != name {
                return Err(denied("the server was started for another user"));
            }
            return Ok(Standing::Of(vec![trusted.clone()]));
        }
        let admins = self.settings.dsync_admin_certs();
        if peer.certificate.iter().any(|known| admins.contains(known)) {
            return Ok(Standing::Anyone);
        }
        if peer.certificate.iter().any(|known| known == name) {
            return Ok(Standing::Of(peer.certificate.clone()));
        }
        match auth {
            Auth::None if peer.certificate.is_empty() => {
                Err(denied("a password is needed: set doveadm_password"))
            }
            Auth::None => Err(denied("the certificate is not for this user")),
            Auth::Plain { user, password } => {
                if self.knows_secret(peer, password)? {
                    return Ok(Standing::Anyone);
                }
                let _one_at_a_time = VERIFYING.lock().unwrap_or_else(PoisonError::into_inner);
                // The user's own password opens that user's mail only.
                if user == name && verify(self.settings, name, password).unwrap_or(false) {
                    return Ok(Standing::Of(vec![name.to_owned()]));
                }
                Err(denied("wrong user name or password"))
            }
        }
    }

    /// Whether this is the password that opens every user's mail.
    pub(crate) fn knows_secret(&self, peer: &Peer, password: &str) -> Result<bool, (u8, String)> {
        if peer.exposed {
            return Err((77, "passwords are taken over TLS only".to_owned()));
        }
        let _one_at_a_time = VERIFYING.lock().unwrap_or_else(PoisonError::into_inner);
        match self.settings.doveadm_password().map_err(|error| (78, error.to_string()))? {
            Some(secret) => verify_secret(&secret, password).map_err(refused),
            None => Ok(false),
        }
    }

    /// Opens a user's mail, as the system user that they are. Gives also what is known of them.
    pub(crate) async fn desk(&self, name: &str) -> Result<(Desk<'_>, User), (u8, String)> {
        let user = lookup(self.settings, name).map_err(refused)?;
        let identity = Identity::of(self.settings, &user).map_err(refused)?;
        let told = |error: SessionError| (error.status(), error.failure().text);
        let place = Place::of(self.settings, &user, None).map_err(told)?;
        // Whether anything is to be made here the client has not said yet: what is missing is made when it is used.
        let role = Role::Responder { lock_wait: LOCK_WAIT };
        let task = Task { place, pretend: true, rawlog: None, role };
        Ok((self.pool.open(identity.as_ref(), task).await.map_err(told)?, user))
    }
}

/// Whose mail a client may have.
enum Standing {
    Anyone,
    Of(Vec<String>),
}

impl Standing {
    fn admits(&self, user: &str) -> bool {
        match self {
            Standing::Anyone => true,
            Standing::Of(names) => names.iter().any(|name| name == user),
        }
    }
}

/// What came of one user.
enum Served {
    Done(Box<Report>),
    /// This user is not served; the connection is as good as before.
    Refused(SessionError),
    /// The connection is of no more use.
    Broken(SessionError),
}

impl Served {
    fn outcome(self) -> Result<Box<Report>, SessionError> {
        match self {
            Served::Done(report) => Ok(report),
            Served::Refused(error) | Served::Broken(error) => Err(error),
        }
    }
}

/// A user's name for the log, which takes no other.
fn shown(user: &str) -> &str {
    if check_user(user).is_ok() { user } else { "-" }
}

/// Writes the log's line about one user, and gives the status.
fn told(user: &str, peer: &Peer, begun: Instant, outcome: Result<Box<Report>, SessionError>) -> u8 {
    let seconds = begun.elapsed().as_secs_f64();
    match outcome {
        Ok(report) => {
            let status = report.status();
            let (local, remote) = (&report.local, &report.remote);
            tracing::info!(
                "sync user={user} peer={} mailboxes={} changed={} received={} sent={} bytes={} seconds={seconds:.3} status={status}",
                peer.name,
                local.mailboxes,
                local.mailboxes_changed,
                local.saved,
                remote.saved,
                local.bytes + remote.bytes,
            );
            report.problems.iter().for_each(|problem| tracing::warn!("user={user} {problem}"));
            status
        }
        Err(error) => {
            let failure = error.failure();
            let text = failure.text.escape_debug();
            tracing::warn!(
                "sync user={user} peer={} seconds={seconds:.3} status={} failed: {text}",
                peer.name,
                failure.status
            );
            failure.status
        }
    }
}

fn refused(error: UserError) -> (u8, String) {
    (error.status(), chain(&error))
}
