//! From options to a session: whose mail, where it is, how to reach the other end.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use dsync_accounts::{Settings, User, check_user, invoking_user, lookup};
use dsync_session::dial::{self, Trust, Way};
use dsync_session::dovecot::greet::Peer;
use dsync_session::dovecot::link::Early;
use dsync_session::model::SyncState;
use dsync_session::proto::preface::Auth;
use dsync_session::proto::{Direction, Options, Purpose, Terminus};
use dsync_session::rawlog::RawLog;
use dsync_session::storage::disk::Pretend;
use dsync_session::storage::{Fsync, Location, Storage};
use dsync_session::{Brain, Job, Report, SessionError, dovecot, greet, link, local};
use tokio::io::AsyncWriteExt;
use tokio::sync::watch;

use crate::Failed;
use crate::args::{Common, Compress, Protocol};
use crate::destination::Destination;
use crate::progress::Display;

/// How long a program may take to end once all is said.
const CHILD_WAIT: Duration = Duration::from_secs(30);

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
    pub dry_run: bool,
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
        let user = user(self.settings, self.common.user.as_deref())?;
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
        let dry_run = self.options.purpose == Purpose::DryRun;
        Ok(Done { user: user.name, report, elapsed: begun.elapsed(), dry_run })
    }

    fn run_for(&self, user: &User, destination: Destination) -> Result<Report, Failed> {
        let storage = self.source(user)?;
        let mut display = Display::new(self.verbose);
        let outcome = match destination {
            Destination::Local(text) => self.run_local(&mut self.brain(storage), &text, user, &mut display),
            other => self.run_remote(storage, other, user, &mut display),
        };
        display.end();
        outcome
    }

    fn job(&self) -> Job {
        Job { direction: self.direction, options: self.options.clone() }
    }

    fn brain(&self, storage: Box<dyn Storage>) -> Brain {
        Brain::initiator(storage, self.job()).with_state(self.state.clone())
    }

    /// The mail here.
    fn source(&self, user: &User) -> Result<Box<dyn Storage>, Failed> {
        let location = location(self.settings, user, self.common.source.as_deref())?;
        self.check_source(&location, Terminus::Initiator)?;
        self.open(&location, self.settings)
    }

    /// Opens a storage; what is missing is made when it is used, by sessions that may.
    fn open(&self, location: &Location, settings: &Settings) -> Result<Box<dyn Storage>, Failed> {
        let fsync = fsync(settings)?;
        let _pretend = (self.options.purpose != Purpose::Sync).then(Pretend::begin);
        Ok(location.open(fsync)?)
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

    fn rawlog(&self) -> Result<Option<RawLog>, Failed> {
        let Some(path) = &self.common.rawlog else { return Ok(None) };
        let made = RawLog::create(path).with_context(|| format!("-r {}", path.display()));
        made.map(Some).map_err(|error| Failed::new(75, error))
    }

    fn run_local(
        &self,
        brain: &mut Brain,
        text: &str,
        user: &User,
        display: &mut Display,
    ) -> Result<Report, Failed> {
        let settings = self.destination_settings;
        let location = location(settings, user, Some(text))?;
        self.check_source(&location, Terminus::Responder)?;
        let mut other = Brain::responder(self.open(&location, settings)?, Duration::from_secs(30));
        let mut watch = |brain: &Brain| {
            display.look(brain.progress());
            !*self.stop.borrow()
        };
        Ok(local::run_recorded(brain, &mut other, &mut watch, self.rawlog()?)?.0)
    }

    fn run_remote(
        &self,
        storage: Box<dyn Storage>,
        destination: Destination,
        user: &User,
        display: &mut Display,
    ) -> Result<Report, Failed> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.context("cannot start the runtime").map_err(|error| Failed::new(75, error))?;
        runtime.block_on(async {
            let mut way = self.dial(destination, user).await?;
            let auth = self.auth(&way)?;
            let rawlog = self.rawlog()?;
            let talked = self.talk(storage, &mut way, auth, user, rawlog, display).await;
            match talked {
                Ok(report) => {
                    dovecot_ended(&mut way).await;
                    Ok(report)
                }
                Err(error) => Err(child_failed(&mut way, error).await.into()),
            }
        })
    }

    async fn talk(
        &self,
        storage: Box<dyn Storage>,
        way: &mut Way,
        auth: Auth,
        user: &User,
        rawlog: Option<RawLog>,
        display: &mut Display,
    ) -> Result<Report, SessionError> {
        let compress = match self.common.compress {
            Compress::Auto => !way.local,
            Compress::Yes => true,
            Compress::No => false,
        };
        let mut options = link::Options {
            silence: Duration::from_secs(self.common.timeout.into()),
            compress,
            stop: self.stop.clone(),
            rawlog,
        };
        if let Peer::Dovecot(early) = self.peer(way, &auth, user).await? {
            let mut brain = dovecot::Brain::master(storage, self.job(), self.state.clone(), &hostname());
            let watch = &mut |brain: &dovecot::Brain| display.look(brain.progress());
            return dovecot::link::run(&mut brain, &mut *way.stream, early, &options, watch).await;
        }
        let (compress, early) = greet::client(&mut *way.stream, auth, &user.name, compress).await?;
        options.compress = compress;
        let mut brain = self.brain(storage);
        let watch = &mut |brain: &Brain| display.look(brain.progress());
        link::run(&mut brain, &mut *way.stream, early, options, watch).await
    }

    /// Who is at the other end.
    async fn peer(&self, way: &mut Way, auth: &Auth, user: &User) -> Result<Peer, SessionError> {
        let dovecot = match (self.common.protocol, way.native) {
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

/// Whose mail a run is about: a user who is named, or who runs it.
pub fn user(settings: &Settings, name: Option<&str>) -> Result<User, Failed> {
    match name {
        Some(name) => {
            check_user(name)?;
            Ok(lookup(settings, name)?)
        }
        None => Ok(invoking_user()),
    }
}

/// Where a user's mail is: as said on the command line, else as configured, else where it usually is.
pub fn location(settings: &Settings, user: &User, said: Option<&str>) -> Result<Location, Failed> {
    if let Some(place) = settings.encrypts() {
        let what = format!(
            "{place}: mail_plugins: mail that Dovecot's plugin mail_crypt encrypts can be read by Dovecot alone (if this mail is not encrypted: -o mail_plugins=)"
        );
        return Err(Failed::new(65, anyhow::Error::msg(what)));
    }
    let text = match said {
        Some(text) => Some(text.to_owned()),
        None => settings.mail_location(user)?,
    };
    let location = match (text, &user.home) {
        (Some(text), home) => Location::parse_for(&text, home.as_deref(), Some(&user.name))?,
        (None, Some(home)) => Location::detect(home, Some(&user.name)).ok_or_else(|| {
            let what =
                format!("no mail found in {}: say where it is with --source maildir:/path", home.display());
            Failed::new(78, anyhow::Error::msg(what))
        })?,
        (None, None) => {
            let what = "the setting mail_location is empty, and the user has no home: say where the mail is with --source";
            return Err(Failed::new(78, anyhow::Error::msg(what)));
        }
    };
    Ok(location
        .with_separator(settings.separator())
        .with_attachments(settings.mail_attachment_dir(user)?)
        .with_rotation(settings.mdbox_rotate_size()?, settings.mdbox_rotate_interval()?))
}

/// When what is written goes to disk.
pub fn fsync(settings: &Settings) -> Result<Fsync, Failed> {
    Ok(match settings.mail_fsync()? {
        dsync_accounts::Fsync::Always => Fsync::Always,
        dsync_accounts::Fsync::Optimized => Fsync::Optimized,
        dsync_accounts::Fsync::Never => Fsync::Never,
    })
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
