//! The way to the other end: dialled, logged in, and kept for the users that follow.

use std::time::Duration;

use anyhow::Context as _;
use bytes::BytesMut;
use dsync_accounts::{Identity, Settings, User};
use dsync_session::dial::{self, Trust, Way};
use dsync_session::dovecot::Names;
use dsync_session::dovecot::greet::Peer;
use dsync_session::dovecot::link::Early;
use dsync_session::proto::Terminus;
use dsync_session::proto::preface::{self, Auth};
use dsync_session::{Report, SessionError, dovecot, greet, link};
use dsync_worker::{Desk, Outcome, Protocol as Spoken, Talk, Task};
use tokio::io::AsyncWriteExt;
use tokio::runtime::Runtime;

use crate::Failed;
use crate::args::{Compress, Protocol};
use crate::destination::Destination;
use crate::jobs::Session;
use crate::progress::Display;

/// How long a program may take to end once all is said.
const CHILD_WAIT: Duration = Duration::from_secs(30);

/// The runtime of one thread, and its connections that wait for their next user.
pub struct Connections {
    runtime: Runtime,
    kept: Vec<Open>,
}

/// A connection past its preface.
struct Open {
    destination: Destination,
    way: Way,
    common: preface::Common,
    /// Bytes that were read and belong to what comes next.
    early: BytesMut,
}

impl Connections {
    pub fn new() -> Result<Connections, Failed> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.context("cannot start the runtime").map_err(|error| Failed::new(75, error))?;
        Ok(Connections { runtime, kept: Vec::new() })
    }

    /// Runs a user's session with another end.
    pub fn run(
        &mut self,
        session: &Session<'_>,
        identity: Option<&Identity>,
        task: Task,
        destination: Destination,
        user: &User,
        display: &mut Display,
    ) -> Result<Report, Failed> {
        let Connections { runtime, kept } = self;
        runtime.block_on(async {
            let desk = session.pool.open(identity, task).await?;
            let reached = match come_back(kept, &destination, user).await {
                Some(open) => Ok(Reached::Native(Box::new(open))),
                None => dial_and_greet(session, destination, user).await,
            };
            let (mut open, refused) = match reached {
                Ok(Reached::Native(open)) => *open,
                Ok(Reached::Dovecot(way, early)) => {
                    return with_dovecot(session, desk, *way, early, display).await;
                }
                Err(failed) => {
                    desk.leave();
                    return Err(failed);
                }
            };
            if let Some(refused) = refused {
                desk.leave();
                keep(kept, open).await;
                return Err(refused.into());
            }
            let early = Early { input: std::mem::take(&mut open.early), ..Early::default() };
            let talk = session.talk(Spoken::Native { compress: open.common.compress }, early);
            match desk.run(&mut *open.way.stream, talk, &mut |progress| display.look(progress)).await {
                Ok((report, behind)) => {
                    open.early = behind;
                    keep(kept, open).await;
                    Ok(report)
                }
                Err(error) => Err(child_failed(&mut open.way, error).await.into()),
            }
        })
    }

    /// Runs a user's session whose other end is on this machine.
    pub fn run_local(
        &mut self,
        session: &Session<'_>,
        identity: Option<&Identity>,
        task: Task,
        display: &mut Display,
    ) -> Result<Report, Failed> {
        let watch = &mut |progress| display.look(progress);
        let whole = session.pool.whole(identity, task, session.stop.clone(), watch);
        match self.runtime.block_on(whole)? {
            Outcome::Synced(report) => Ok(*report),
            Outcome::Purged(..) => unreachable!("a session was asked for"),
        }
    }

    /// Says goodbye to all servers.
    pub fn close(mut self) {
        self.runtime.block_on(async {
            for open in &mut self.kept {
                link::close(&mut *open.way.stream).await;
            }
        });
    }
}

/// A program that was started for one user serves no other.
async fn keep(kept: &mut Vec<Open>, mut open: Open) {
    if open.common.many && open.way.child.is_none() {
        kept.push(open);
    } else {
        link::close(&mut *open.way.stream).await;
    }
}

/// Uses a connection that is there already. Whatever is wrong with it, a new one is tried instead.
async fn come_back(
    kept: &mut Vec<Open>,
    destination: &Destination,
    user: &User,
) -> Option<(Open, Option<SessionError>)> {
    let at = kept.iter().position(|open| open.destination == *destination)?;
    let mut open = kept.swap_remove(at);
    match greet::next(&mut *open.way.stream, &mut open.early, &user.name).await {
        Ok(refused) => Some((open, refused)),
        Err(error) => {
            tracing::debug!("the connection did not last: {error}");
            None
        }
    }
}

/// Who was reached.
enum Reached {
    /// And the refusal of this user, if it came to that.
    Native(Box<(Open, Option<SessionError>)>),
    Dovecot(Box<Way>, Early),
}

async fn dial_and_greet(
    session: &Session<'_>,
    destination: Destination,
    user: &User,
) -> Result<Reached, Failed> {
    let mut way = dial(session, destination.clone(), user).await?;
    let compress = match session.common.compress {
        Compress::Auto => !way.local,
        Compress::Yes => true,
        Compress::No => false,
    };
    let auth = auth(session.settings, session.common.insecure, &way)?;
    match peer(session, &mut way, &auth, user).await {
        Ok(Peer::Native) => {}
        Ok(Peer::Dovecot(early)) => return Ok(Reached::Dovecot(Box::new(way), early)),
        Err(error) => return Err(child_failed(&mut way, error).await.into()),
    }
    match greet::client(&mut *way.stream, auth, &user.name, compress).await {
        Ok(greet::Greeted { common, refused, early }) => {
            Ok(Reached::Native(Box::new((Open { destination, way, common, early }, refused))))
        }
        Err(error) => Err(child_failed(&mut way, error).await.into()),
    }
}

/// Who is at the other end.
async fn peer(session: &Session<'_>, way: &mut Way, auth: &Auth, user: &User) -> Result<Peer, SessionError> {
    let dovecot = match (session.common.protocol, way.native) {
        (Protocol::Native, _) | (Protocol::Auto, Some(true)) => return Ok(Peer::Native),
        (Protocol::Dovecot, _) | (Protocol::Auto, Some(false)) => true,
        (Protocol::Auto, None) => false,
    };
    if way.child.is_some() {
        return match dovecot {
            true => Ok(Peer::Dovecot(Early::default())),
            false => dovecot::greet::probe(&mut *way.stream).await,
        };
    }
    let password = match auth {
        Auth::Plain { user, password } => Some((user.clone(), password.clone())),
        Auth::None => None,
    };
    dovecot::greet::call(&mut *way.stream, password, &user.name, dovecot).await
}

/// Runs one user's session with a Dovecot, which serves one on a connection.
async fn with_dovecot(
    session: &Session<'_>,
    desk: Desk<'_>,
    mut way: Way,
    early: Early,
    display: &mut Display,
) -> Result<Report, Failed> {
    if session.reads_only(Terminus::Responder) {
        desk.leave();
        let what = "--read-only-source: the source is a Dovecot's, which cannot be told to write nothing";
        return Err(Failed::usage(what));
    }
    let talk = session.talk(Spoken::Dovecot, early);
    match desk.run(&mut *way.stream, talk, &mut |progress| display.look(progress)).await {
        Ok((report, _)) => {
            dovecot_ended(&mut way).await;
            Ok(report)
        }
        Err(error) => Err(child_failed(&mut way, error).await.into()),
    }
}

impl Session<'_> {
    fn talk(&self, protocol: Spoken, early: Early) -> Talk {
        let silence = Duration::from_secs(self.common.timeout.into());
        Talk { protocol, early, names: Names::default(), silence, stop: self.stop.clone() }
    }
}

/// Lets a program end by itself: what it still logs belongs to the session.
async fn dovecot_ended(way: &mut Way) {
    let Some(child) = &mut way.child else { return };
    match tokio::time::timeout(CHILD_WAIT, child.wait()).await {
        Ok(Ok(status)) if status.success() => {}
        Ok(Ok(status)) => tracing::warn!("the remote command ended with {status}"),
        Ok(Err(error)) => tracing::debug!("the remote command: {error}"),
        Err(_) => tracing::warn!("the remote command does not end, and is ended"),
    }
}

async fn dial(session: &Session<'_>, destination: Destination, user: &User) -> Result<Way, Failed> {
    if !session.common.destination_option.is_empty() && !matches!(destination, Destination::Command { .. }) {
        return Err(Failed::usage(
            "-p: the settings of a server are its own; -p goes with locations and commands",
        ));
    }
    match destination {
        Destination::Tcp { host, port, tls: false } => Ok(dial::tcp(&host, port).await?),
        Destination::Tcp { host, port, tls: true } => dial_tls(session.settings, &host, port).await,
        Destination::Socket(path) => Ok(dial::unix(&path).await?),
        Destination::Command { mut words, user_line } => {
            words.extend(
                session.common.destination_option.iter().flat_map(|setting| ["-o".into(), setting.clone()]),
            );
            // As in Dovecot, it runs as whoever runs us, whose keys it may need.
            let mut way = dial::command(&words)?;
            if user_line {
                let line = format!("{}\n", user.name);
                let told = way.stream.write_all(line.as_bytes()).await;
                told.context("cannot speak with the remote command")
                    .map_err(|error| Failed::new(75, error))?;
            }
            Ok(way)
        }
        Destination::Local(_) => Err(Failed::usage("a local destination needs no connection")),
    }
}

/// Connects by TLS, as the settings say.
pub async fn dial_tls(settings: &Settings, host: &str, port: u16) -> Result<Way, Failed> {
    let certificate = settings.ssl_client_cert()?.zip(settings.ssl_client_key()?);
    let trust = Trust { ca: settings.ssl_client_ca()?, certificate };
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    Ok(dial::tls(host, port, &trust, provider).await?)
}

/// How to show who we are; with `insecure` also where others can read along.
pub fn auth(settings: &Settings, insecure: bool, way: &Way) -> Result<Auth, Failed> {
    let Some(password) = settings.doveadm_password()?.filter(|_| way.child.is_none()) else {
        return Ok(Auth::None);
    };
    let text = password.expose();
    if text.starts_with('{') && text.contains('}') && !text.starts_with("{PLAIN}") {
        let what = "doveadm_password is a hash; the client needs the password itself";
        return Err(Failed::new(78, anyhow::Error::msg(what)));
    }
    if !way.private && !insecure {
        let what =
            "refusing to send the password over a connection that others can read: use tcps:, or --insecure";
        return Err(Failed::new(77, anyhow::Error::msg(what)));
    }
    let password = text.strip_prefix("{PLAIN}").unwrap_or(text).to_owned();
    let user = settings.text("doveadm_username").unwrap_or_else(|| "doveadm".into());
    Ok(Auth::Plain { user, password })
}

/// A program that ended says more than the pipe that it left behind.
async fn child_failed(way: &mut Way, error: SessionError) -> SessionError {
    let SessionError::Link { text, .. } = &error else { return error };
    let Some(child) = &mut way.child else { return error };
    let ended = tokio::time::timeout(Duration::from_secs(2), child.wait()).await;
    match ended {
        Ok(Ok(status)) if !status.success() => {
            let code = status.code().and_then(|code| u8::try_from(code).ok());
            // ssh itself ends with 255.
            let passed_on = code.filter(|code| (64..=78).contains(code)).unwrap_or(75);
            SessionError::Link {
                status: passed_on,
                text: format!("{text} (the remote command ended with {status})"),
            }
        }
        _ => error,
    }
}
