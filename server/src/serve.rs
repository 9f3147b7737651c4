//! One connection: what it speaks, who it is, and a brain for each user that it comes for, one after another.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use dsync_accounts::{Mail, MboxLocks, Settings, User, UserError, check_user, lookup, verify, verify_secret};
use dsync_session::dovecot::greet::Caller;
use dsync_session::link::Stream;
use dsync_session::model::Namespaces;
use dsync_session::proto::preface::{Auth, Spoken, Verdict, recognise};
use dsync_session::storage::disk::Pretend;
use dsync_session::storage::mbox::Locking;
use dsync_session::storage::namespaces::{self, Namespace};
use dsync_session::storage::{Fsync, Location, Storage, StorageError};
use dsync_session::{Brain, Report, SessionError, dovecot, greet, link};
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
}

/// Everything that a connection needs to know.
pub struct Service<'a> {
    pub settings: &'a Settings,
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
            self.user(user).and_then(|user| self.storage(&user))
        } else {
            Err((77, "this login is not for that user".to_owned()))
        };
        let storage = match opened {
            Ok(storage) => storage,
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
        let mut brain = Brain::responder(storage, LOCK_WAIT);
        let options = self.link_options(compress);
        match link::run(&mut brain, stream, std::mem::take(input), options, &mut |_| {}).await {
            Ok((report, behind)) => {
                *input = behind;
                Served::Done(Box::new(report))
            }
            Err(error) => Served::Broken(error),
        }
    }

    pub(crate) fn link_options(&self, compress: bool) -> link::Options {
        let silence = self.settings.silence_secs().map_or(600, u64::from);
        link::Options {
            silence: Duration::from_secs(silence),
            compress,
            stop: self.stop.clone(),
            rawlog: None,
        }
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

    pub(crate) fn user(&self, name: &str) -> Result<User, (u8, String)> {
        lookup(self.settings, name).map_err(refused)
    }

    pub(crate) fn storage(&self, user: &User) -> Result<Box<dyn Storage>, (u8, String)> {
        if let Some(place) = self.settings.encrypts() {
            let what = "mail that Dovecot's plugin mail_crypt encrypts can be read by Dovecot alone";
            return Err((65, format!("{place}: mail_plugins: {what}")));
        }
        let location = self.settings.mail_location(user).map_err(|error| (78, chain(&error)))?;
        let location = match (location, &user.home) {
            (Some(text), home) => Location::parse_for(&text, home.as_deref(), Some(&user.name))
                .map_err(|error| (error.status(), chain(&error)))?,
            (None, Some(home)) => Location::detect(home, Some(&user.name))
                .ok_or_else(|| (78, "mail_location is not set, and the home holds no mail".to_owned()))?,
            (None, None) => return Err((78, "mail_location is not set, and the user has no home".into())),
        };
        let fsync = match self.settings.mail_fsync().map_err(|error| (78, chain(&error)))? {
            dsync_accounts::Fsync::Always => Fsync::Always,
            dsync_accounts::Fsync::Optimized => Fsync::Optimized,
            dsync_accounts::Fsync::Never => Fsync::Never,
        };
        let attachments = self.settings.mail_attachment_dir(user).map_err(|error| (78, chain(&error)))?;
        let locks = self.settings.mbox_locks().map_err(|error| (78, chain(&error)))?;
        let MboxLocks { read, write, timeout, dotlock_change_timeout } = locks;
        let locking =
            Locking::default().set(read.as_deref(), write.as_deref(), timeout, dotlock_change_timeout);
        let rotate_bytes = self.settings.mdbox_rotate_size().map_err(|error| (78, chain(&error)))?;
        let rotate_secs = self.settings.mdbox_rotate_interval().map_err(|error| (78, chain(&error)))?;
        let attributes = self.settings.mail_attribute_dict(user).map_err(|error| (78, chain(&error)))?;
        let locking = locking.map_err(|error| (error.status(), chain(&error)))?;
        let dressed = |location: Location| {
            location
                .with_attachments(attachments.clone())
                .with_rotation(rotate_bytes, rotate_secs)
                .with_attribute_dict(attributes.clone())
                .with_mbox_locks(locking.clone())
        };
        let mut all = Vec::new();
        for conf in self.settings.namespaces(user).map_err(|error| (78, chain(&error)))? {
            let mail = match conf.mail {
                Mail::Users => Ok(location.clone()),
                Mail::Own(text) => Location::parse_for(&text, user.home.as_deref(), Some(&user.name)),
                Mail::Unsupported(what) => Err(StorageError::Location(what)),
            };
            all.push(Namespace {
                prefix: conf.prefix,
                separator: conf.separator,
                inbox: conf.inbox,
                usual: conf.usual,
                visible: conf.visible,
                subscriptions: conf.subscriptions,
                location: mail.map(dressed),
            });
        }
        // Whether anything is to be made here the client has not said yet: what is missing is made when it is used.
        let _pretend = Pretend::begin();
        // Which namespaces take part it has not said either.
        namespaces::open(all, &Namespaces::Usual, fsync).map_err(|error| (error.status(), chain(&error)))
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

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.ends_with(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = error.source();
    }
    text
}
