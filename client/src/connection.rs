//! The way to the other end: dialled, logged in, and kept for the users that follow.

use std::time::Duration;

use anyhow::Context as _;
use bytes::BytesMut;
use dsync_accounts::User;
use dsync_session::dial::{self, Trust, Way};
use dsync_session::dovecot::greet::Peer;
use dsync_session::dovecot::link::Early;
use dsync_session::proto::preface::{self, Auth};
use dsync_session::storage::Storage;
use dsync_session::{Brain, Report, SessionError, dovecot, greet, link};
use tokio::io::AsyncWriteExt;
use tokio::runtime::Runtime;

use crate::Failed;
use crate::args::{Compress, Protocol};
use crate::destination::Destination;
use crate::jobs::Session;
use crate::progress::Display;
use crate::select;

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

    /// Runs a user's session.
    pub fn run(
        &mut self,
        session: &Session<'_>,
        storage: Box<dyn Storage>,
        destination: Destination,
        user: &User,
        display: &mut Display,
    ) -> Result<Report, Failed> {
        let Connections { runtime, kept } = self;
        runtime.block_on(async {
            let mut open = match come_back(kept, &destination, user).await {
                Some(open) => open,
                None => match dial_and_greet(session, destination, user).await? {
                    Reached::Native(open) => *open,
                    Reached::Dovecot(way, early) => {
                        return with_dovecot(session, storage, *way, early, display).await;
                    }
                },
            };
            if let Some(refused) = open.1.take() {
                keep(kept, open.0).await;
                return Err(refused.into());
            }
            let mut open = open.0;
            let options = link::Options {
                silence: Duration::from_secs(session.common.timeout.into()),
                compress: open.common.compress,
                stop: session.stop.clone(),
                rawlog: session.rawlog()?,
            };
            let early = std::mem::take(&mut open.early);
            let mut brain = session.brain(storage);
            let watch = &mut |brain: &Brain| display.look(brain.progress());
            let outcome = link::run(&mut brain, &mut *open.way.stream, early, options, watch).await;
            match outcome {
                Ok((report, behind)) => {
                    open.early = behind;
                    keep(kept, open).await;
                    Ok(report)
                }
                Err(error) => Err(child_failed(&mut open.way, error).await.into()),
            }
        })
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
    let auth = auth(session, &way)?;
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
    storage: Box<dyn Storage>,
    mut way: Way,
    early: Early,
    display: &mut Display,
) -> Result<Report, Failed> {
    let options = link::Options {
        silence: Duration::from_secs(session.common.timeout.into()),
        compress: false,
        stop: session.stop.clone(),
        rawlog: None,
    };
    let names = select::names(session.common, session.settings)?;
    let brain = dovecot::Brain::master(storage, session.job(), session.state.clone(), &hostname());
    let (mut brain, rawlog) = (brain.with_names(names), session.rawlog()?);
    let watch = &mut |brain: &dovecot::Brain| display.look(brain.progress());
    match dovecot::link::run(&mut brain, &mut *way.stream, early, &options, rawlog, watch).await {
        Ok(report) => {
            dovecot_ended(&mut way).await;
            Ok(report)
        }
        Err(error) => Err(child_failed(&mut way, error).await.into()),
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

/// Our name, as a Dovecot is told it.
fn hostname() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "localhost".to_owned() } else { name.to_owned() }
}

async fn dial(session: &Session<'_>, destination: Destination, user: &User) -> Result<Way, Failed> {
    if !session.common.destination_option.is_empty() && !matches!(destination, Destination::Command { .. }) {
        return Err(Failed::usage(
            "-p: the settings of a server are its own; -p goes with locations and commands",
        ));
    }
    match destination {
        Destination::Tcp { host, port, tls: false } => Ok(dial::tcp(&host, port).await?),
        Destination::Tcp { host, port, tls: true } => {
            let certificate = session.settings.ssl_client_cert()?.zip(session.settings.ssl_client_key()?);
            let trust = Trust { ca: session.settings.ssl_client_ca()?, certificate };
            let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
            Ok(dial::tls(&host, port, &trust, provider).await?)
        }
        Destination::Socket(path) => Ok(dial::unix(&path).await?),
        Destination::Command { mut words, user_line } => {
            words.extend(
                session.common.destination_option.iter().flat_map(|setting| ["-o".into(), setting.clone()]),
            );
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

fn auth(session: &Session<'_>, way: &Way) -> Result<Auth, Failed> {
    let Some(password) = session.settings.doveadm_password()?.filter(|_| way.child.is_none()) else {
        return Ok(Auth::None);
    };
    let text = password.expose();
    if text.starts_with('{') && text.contains('}') && !text.starts_with("{PLAIN}") {
        let what = "doveadm_password is a hash; the client needs the password itself";
        return Err(Failed::new(78, anyhow::Error::msg(what)));
    }
    if !way.private && !session.common.insecure {
        let what =
            "refusing to send the password over a connection that others can read: use tcps:, or --insecure";
        return Err(Failed::new(77, anyhow::Error::msg(what)));
    }
    let password = text.strip_prefix("{PLAIN}").unwrap_or(text).to_owned();
    let user = session.settings.text("doveadm_username").unwrap_or_else(|| "doveadm".into());
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
