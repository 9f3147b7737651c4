//! From options to a session: whose mail, where it is, how to reach the other end.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use dsync_accounts::{MboxLocks, Settings, User, check_user, invoking_user, lookup};
use dsync_session::dial::{self, Trust, Way};
use dsync_session::model::SyncState;
use dsync_session::proto::preface::Auth;
use dsync_session::proto::{Direction, Options, Terminus};
use dsync_session::storage::mbox::Locking;
use dsync_session::storage::{Fsync, Location, Storage};
use dsync_session::{Brain, Job, Report, SessionError, greet, link, local};
use tokio::io::AsyncWriteExt;
use tokio::sync::watch;

use crate::Failed;
use crate::args::{Common, Compress};
use crate::destination::Destination;
use crate::progress::Display;

/// How sessions are to be run.
pub struct Session<'a> {
    pub settings: &'a Settings,
    /// The same with what `-p` overrides.
    pub destination_settings: &'a Settings,
    pub common: &'a Common,
    pub direction: Direction,
    pub options: Options,
    /// What `-s` gave, if it did.
    pub state: Option<SyncState>,
    pub verbose: bool,
    pub stop: watch::Receiver<bool>,
}

/// A report, and how long it took.
pub struct Done {
    pub user: String,
    pub report: Report,
    pub elapsed: Duration,
}

/// One destination of a run.
pub struct Target {
    pub user: User,
    destination: Destination,
}

/// Which way the changes go, as the options say.
pub fn direction(backup: bool, one_way: bool, reverse: bool) -> Direction {
    let into = if reverse { Terminus::Initiator } else { Terminus::Responder };
    match (backup, one_way) {
        (true, _) => Direction::Mirror { into },
        (false, true) => Direction::OneWay { into },
        // As in the manual page, -R has no effect on a two-way sync.
        (false, false) => Direction::TwoWay,
    }
}

impl Session<'_> {
    /// Where the run leads: one destination or several.
    pub fn targets(&self) -> Result<Vec<Target>, Failed> {
        let user = match &self.common.user {
            Some(name) => {
                check_user(name)?;
                lookup(self.settings, name)?
            }
            None => invoking_user(),
        };
        let words = if self.common.default_destination {
            let replica = self.settings.mail_replica(&user)?.ok_or_else(|| {
                let what =
                    format!("{}: -d: neither the userdb nor the configuration has mail_replica", user.name);
                Failed::new(68, anyhow::Error::msg(what))
            })?;
            replica.split_whitespace().map(str::to_owned).collect()
        } else {
            self.common.destination.clone()
        };
        let destinations = Destination::parse_all(&words, self.settings, &user.name)?;
        let into_here = matches!(
            self.direction,
            Direction::Mirror { into: Terminus::Initiator } | Direction::OneWay { into: Terminus::Initiator }
        );
        if destinations.len() > 1 && (into_here || self.state.is_some()) {
            return Err(Failed::usage("several destinations go neither with -R nor with -s"));
        }
        Ok(destinations.into_iter().map(|destination| Target { user: user.clone(), destination }).collect())
    }

    /// Runs one session.
    pub fn run(&self, target: Target) -> Result<Done, Failed> {
        let begun = Instant::now();
        let Target { user, destination } = target;
        let outcome = self.run_for(&user, destination);
        let report = outcome.map_err(|failed| failed.within(user.name.clone()))?;
        Ok(Done { user: user.name, report, elapsed: begun.elapsed() })
    }

    fn run_for(&self, user: &User, destination: Destination) -> Result<Report, Failed> {
        let storage = self.source(user)?;
        let job = Job { direction: self.direction, options: self.options.clone() };
        let mut brain = Brain::initiator(storage, job).with_state(self.state.clone());
        let mut display = Display::new(self.verbose);
        let outcome = match destination {
            Destination::Local(text) => self.run_local(&mut brain, &text, user, &mut display),
            other => self.run_remote(&mut brain, other, user, &mut display),
        };
        display.end();
        outcome
    }

    fn fsync(&self, settings: &Settings) -> Result<Fsync, Failed> {
        Ok(match settings.mail_fsync()? {
            dsync_accounts::Fsync::Always => Fsync::Always,
            dsync_accounts::Fsync::Optimized => Fsync::Optimized,
            dsync_accounts::Fsync::Never => Fsync::Never,
        })
    }

    /// The mail here.
    fn source(&self, user: &User) -> Result<Box<dyn Storage>, Failed> {
        let text = match &self.common.source {
            Some(text) => Some(text.clone()),
            None => self.settings.mail_location(user)?,
        };
        let location = match (text, &user.home) {
            (Some(text), home) => Location::parse_for(&text, home.as_deref(), Some(&user.name))?,
            (None, Some(home)) => Location::detect(home, Some(&user.name)).ok_or_else(|| {
                let what = format!(
                    "no mail found in {}: say where it is with --source maildir:/path",
                    home.display()
                );
                Failed::new(78, anyhow::Error::msg(what))
            })?,
            (None, None) => {
                let what = "the setting mail_location is empty, and the user has no home: say where the mail is with --source";
                return Err(Failed::new(78, anyhow::Error::msg(what)));
            }
        };
        self.check_source(&location, Terminus::Initiator)?;
        let location = location
            .with_separator(self.settings.separator())
            .with_attachments(self.settings.mail_attachment_dir(user)?)
            .with_mbox_locks(mbox_locks(self.settings)?);
        Ok(location.open(self.fsync(self.settings)?)?)
    }

    /// A source that is not there is a mistyped one: it is not made, and its emptiness not copied.
    fn check_source(&self, location: &Location, end: Terminus) -> Result<(), Failed> {
        let into = match self.direction {
            Direction::TwoWay => return Ok(()),
            Direction::OneWay { into } | Direction::Mirror { into } => into,
        };
        if into == end || location.root().is_dir() {
            return Ok(());
        }
        let what = format!("{}: the source does not exist", location.root().display());
        Err(Failed::new(78, anyhow::Error::msg(what)))
    }

    fn run_local(
        &self,
        brain: &mut Brain,
        text: &str,
        user: &User,
        display: &mut Display,
    ) -> Result<Report, Failed> {
        let settings = self.destination_settings;
        let location = Location::parse_for(text, user.home.as_deref(), Some(&user.name))?
            .with_separator(settings.separator())
            .with_attachments(settings.mail_attachment_dir(user)?)
            .with_mbox_locks(mbox_locks(settings)?);
        self.check_source(&location, Terminus::Responder)?;
        let mut other = Brain::responder(location.open(self.fsync(settings)?)?, Duration::from_secs(30));
        let outcome = local::run(brain, &mut other, &mut |brain| {
            display.look(brain);
            !*self.stop.borrow()
        });
        Ok(outcome?.0)
    }

    fn run_remote(
        &self,
        brain: &mut Brain,
        destination: Destination,
        user: &User,
        display: &mut Display,
    ) -> Result<Report, Failed> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.context("cannot start the runtime").map_err(|error| Failed::new(75, error))?;
        runtime.block_on(async {
            let mut way = self.dial(destination, user).await?;
            let compress = match self.common.compress {
                Compress::Auto => !way.local,
                Compress::Yes => true,
                Compress::No => false,
            };
            let auth = self.auth(&way)?;
            let greeted = greet::client(&mut *way.stream, auth, &user.name, compress).await;
            let (compress, early) = match greeted {
                Ok(greeted) => greeted,
                Err(error) => return Err(child_failed(&mut way, error).await.into()),
            };
            let options = link::Options {
                silence: Duration::from_secs(self.common.timeout.into()),
                compress,
                stop: self.stop.clone(),
            };
            let report =
                link::run(brain, &mut *way.stream, early, options, &mut |brain| display.look(brain)).await;
            match report {
                Ok(report) => Ok(report),
                Err(error) => Err(child_failed(&mut way, error).await.into()),
            }
        })
    }

    async fn dial(&self, destination: Destination, user: &User) -> Result<Way, Failed> {
        if !self.common.destination_option.is_empty() && !matches!(destination, Destination::Command { .. }) {
            return Err(Failed::usage(
                "-p: the settings of a server are its own; -p goes with locations and commands",
            ));
        }
        match destination {
            Destination::Tcp { host, port, tls: false } => Ok(dial::tcp(&host, port).await?),
            Destination::Tcp { host, port, tls: true } => {
                let certificate = self.settings.ssl_client_cert()?.zip(self.settings.ssl_client_key()?);
                let trust = Trust { ca: self.settings.ssl_client_ca()?, certificate };
                let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
                Ok(dial::tls(&host, port, &trust, provider).await?)
            }
            Destination::Command { mut words, user_line } => {
                words.extend(
                    self.common.destination_option.iter().flat_map(|setting| ["-o".into(), setting.clone()]),
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

    fn auth(&self, way: &Way) -> Result<Auth, Failed> {
        let Some(password) = self.settings.doveadm_password()?.filter(|_| way.child.is_none()) else {
            return Ok(Auth::None);
        };
        let text = password.expose();
        if text.starts_with('{') && text.contains('}') && !text.starts_with("{PLAIN}") {
            let what = "doveadm_password is a hash; the client needs the password itself";
            return Err(Failed::new(78, anyhow::Error::msg(what)));
        }
        if !way.private && !self.common.insecure {
            let what = "refusing to send the password over a connection that others can read: use tcps:, or --insecure";
            return Err(Failed::new(77, anyhow::Error::msg(what)));
        }
        let password = text.strip_prefix("{PLAIN}").unwrap_or(text).to_owned();
        let user = self.settings.text("doveadm_username").unwrap_or_else(|| "doveadm".into());
        Ok(Auth::Plain { user, password })
    }
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

/// The default place of the configuration, for messages.
pub fn config_name(settings: &Settings) -> PathBuf {
    settings.file().map_or_else(|| PathBuf::from("(defaults)"), PathBuf::from)
}

/// How mbox files are locked.
fn mbox_locks(settings: &Settings) -> Result<Locking, Failed> {
    let MboxLocks { read, write, timeout, dotlock_change_timeout } = settings.mbox_locks()?;
    Ok(Locking::default().set(read.as_deref(), write.as_deref(), timeout, dotlock_change_timeout)?)
}
