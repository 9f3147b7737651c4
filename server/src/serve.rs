//! One connection: what it speaks, who it is, and the brain.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use dsync_accounts::{Settings, User, UserError, check_user, lookup, verify, verify_secret};
use dsync_session::dovecot::greet::Caller;
use dsync_session::link::Stream;
use dsync_session::proto::preface::{Auth, Spoken, Verdict, recognise};
use dsync_session::storage::disk::Pretend;
use dsync_session::storage::{Fsync, Location, Storage};
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
    /// Serves one connection to its end, and writes one line about it.
    pub async fn serve(
        &self,
        stream: &mut dyn Stream,
        early: BytesMut,
        peer: &Peer,
        mut permit: Option<Permit>,
    ) -> u8 {
        let begun = Instant::now();
        let mut user = String::from("-");
        let outcome = self.talk(stream, early, peer, permit.as_mut(), &mut user).await;
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

    async fn talk(
        &self,
        stream: &mut dyn Stream,
        early: BytesMut,
        peer: &Peer,
        permit: Option<&mut Permit>,
        named: &mut String,
    ) -> Result<Report, SessionError> {
        let early = if peer.trusted_user.is_some() {
            match dovecot::greet::listen(stream).await? {
                Caller::Native(early) => early,
                Caller::Dovecot(early) => return self.started_by_dovecot(stream, early, peer, named).await,
            }
        } else if recognise(&early) == Some(Spoken::Dovecot) {
            match self.called_by_doveadm(stream, early, peer, permit, named).await? {
                Doveadm::Done(report) => return Ok(*report),
                // A dsync that could not know whom it calls.
                Doveadm::Native(early, permit) => {
                    return self.native(stream, early, peer, permit, named).await;
                }
            }
        } else {
            early
        };
        self.native(stream, early, peer, permit, named).await
    }

    async fn native(
        &self,
        stream: &mut dyn Stream,
        early: BytesMut,
        peer: &Peer,
        permit: Option<&mut Permit>,
        named: &mut String,
    ) -> Result<Report, SessionError> {
        let asked = greet::server(stream, early, !peer.local).await?;
        if check_user(&asked.user).is_ok() {
            named.clone_from(&asked.user);
        }
        tracing::debug!("peer={} program={:?}", peer.name, asked.program);
        let opened = self.admit(peer, &asked.auth, &asked.user).and_then(|user| self.storage(&user));
        let storage = match opened {
            Ok(storage) => storage,
            Err((status, text)) => {
                greet::answer(stream, Verdict::Refused { status, text: text.clone() }).await?;
                return Err(SessionError::Refused { status, text });
            }
        };
        if let Some(permit) = permit {
            permit.authenticated();
        }
        greet::answer(stream, Verdict::Welcome).await?;
        let mut brain = Brain::responder(storage, LOCK_WAIT);
        let options = self.link_options(asked.compress);
        link::run(&mut brain, stream, asked.early, options, &mut |_| {}).await
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

    /// Settles who the client is, and whether it may have this user's mail.
    pub(crate) fn admit(&self, peer: &Peer, auth: &Auth, name: &str) -> Result<User, (u8, String)> {
        check_user(name).map_err(refused)?;
        let denied = |text: &str| (77, text.to_owned());
        if let Some(trusted) = &peer.trusted_user {
            if trusted != name {
                return Err(denied("the server was started for another user"));
            }
            return self.user(name);
        }
        let admins = self.settings.dsync_admin_certs();
        if peer.certificate.iter().any(|known| known == name || admins.contains(known)) {
            return self.user(name);
        }
        match auth {
            Auth::None if peer.certificate.is_empty() => {
                Err(denied("a password is needed: set doveadm_password"))
            }
            Auth::None => Err(denied("the certificate is not for this user")),
            Auth::Plain { user, password } => {
                let by_secret = self.knows_secret(peer, password)?;
                let _one_at_a_time = VERIFYING.lock().unwrap_or_else(PoisonError::into_inner);
                // The user's own password opens that user's mail only.
                let by_user = || user == name && verify(self.settings, name, password).unwrap_or(false);
                if by_secret || by_user() {
                    self.user(name)
                } else {
                    Err(denied("wrong user name or password"))
                }
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
        let rotate_bytes = self.settings.mdbox_rotate_size().map_err(|error| (78, chain(&error)))?;
        let rotate_secs = self.settings.mdbox_rotate_interval().map_err(|error| (78, chain(&error)))?;
        let location = location
            .with_separator(self.settings.separator())
            .with_attachments(attachments)
            .with_rotation(rotate_bytes, rotate_secs);
        // Whether anything is to be made here the client has not said yet: what is missing is made when it is used.
        let _pretend = Pretend::begin();
        location.open(fsync).map_err(|error| (error.status(), chain(&error)))
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
