//! From options to a session: whose mail, where it is, how to reach the other end.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use dsync_accounts::{Mail, MboxLocks, Settings, User, location_for};
use dsync_session::model::SyncState;
use dsync_session::proto::{Direction, Options, Purpose, Terminus};
use dsync_session::rawlog::RawLog;
use dsync_session::storage::disk::Pretend;
use dsync_session::storage::mbox::Locking;
use dsync_session::storage::namespaces::{self, Namespace};
use dsync_session::storage::{Fsync, Location, Storage, StorageError};
use dsync_session::{Brain, Job, Report, local};
use tokio::sync::watch;

use crate::Failed;
use crate::args::Common;
use crate::connection::Connections;
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
    /// One of many users: the display is theirs.
    pub many: bool,
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
    /// Where the run leads a user: one destination or several.
    pub fn targets(&self, user: &User) -> Result<Vec<Target>, Failed> {
        if let Some(socket) = &self.common.socket {
            let what = format!(
                "-S {socket}: dsync-server does not run commands for others; run dsync on that host, or name it as the destination"
            );
            return Err(Failed::usage(what));
        }
        let words = if self.common.default_destination {
            let replica = self.settings.mail_replica(user)?.ok_or_else(|| {
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
    pub fn run(&self, target: Target, connections: &mut Connections) -> Result<Done, Failed> {
        let begun = Instant::now();
        let Target { user, destination } = target;
        let outcome = self.run_for(&user, destination, connections);
        let report = outcome.map_err(|failed| failed.within(user.name.clone()))?;
        let dry_run = self.options.purpose == Purpose::DryRun;
        Ok(Done { user: user.name, report, elapsed: begun.elapsed(), dry_run })
    }

    fn run_for(
        &self,
        user: &User,
        destination: Destination,
        connections: &mut Connections,
    ) -> Result<Report, Failed> {
        let storage = self.source(user)?;
        let mut display = Display::new(self.verbose && !self.many);
        let outcome = match destination {
            Destination::Local(text) => self.run_local(&mut self.brain(storage), &text, user, &mut display),
            other => connections.run(self, storage, other, user, &mut display),
        };
        display.end();
        outcome
    }

    pub fn job(&self) -> Job {
        Job { direction: self.direction, options: self.options.clone() }
    }

    pub fn brain(&self, storage: Box<dyn Storage>) -> Brain {
        Brain::initiator(storage, self.job()).with_state(self.state.clone())
    }

    /// The user's own place. One that is the same for every user would pour the mail of all of them together.
    fn own<'a>(&self, text: &'a str, what: &str) -> Result<&'a str, Failed> {
        if self.many && !text.contains(['%', '~']) {
            let what = format!("{what} is the same place for every user; put %u (or %n, %d, %h, ~) into it");
            return Err(Failed::usage(what));
        }
        Ok(text)
    }

    /// The mail here.
    fn source(&self, user: &User) -> Result<Box<dyn Storage>, Failed> {
        let said = self.common.source.as_deref().map(|text| self.own(text, "--source")).transpose()?;
        let location = location(self.settings, user, said)?;
        self.check_source(&location, Terminus::Initiator)?;
        let namespaces = namespaces(self.settings, user, &location, true)?;
        self.open(namespaces, self.settings)
    }

    /// Opens a storage; what is missing is made when it is used, by sessions that may.
    fn open(&self, namespaces: Vec<Namespace>, settings: &Settings) -> Result<Box<dyn Storage>, Failed> {
        let fsync = fsync(settings)?;
        let _pretend = (self.options.purpose != Purpose::Sync).then(Pretend::begin);
        Ok(namespaces::open(namespaces, &self.options.namespaces, fsync)?)
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

    pub fn rawlog(&self) -> Result<Option<RawLog>, Failed> {
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
        // Attributes go with the mail: the dict of the configuration is the source's.
        let text = self.own(text, "the destination")?;
        let location = location(settings, user, Some(text))?.with_attribute_dict(None);
        self.check_source(&location, Terminus::Responder)?;
        let namespaces = namespaces(settings, user, &location, false)?;
        let mut other = Brain::responder(self.open(namespaces, settings)?, Duration::from_secs(30));
        let mut watch = |brain: &Brain| {
            display.look(brain.progress());
            !*self.stop.borrow()
        };
        Ok(local::run_recorded(brain, &mut other, &mut watch, self.rawlog()?)?.0)
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
        Some(text) => Some(location_for(text, user)?),
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
    dressed(location, settings, user)
}

/// The namespaces of a user, whose mail is at `location`. A place that somebody named has only those that share that mail.
pub fn namespaces(
    settings: &Settings,
    user: &User,
    location: &Location,
    with_own: bool,
) -> Result<Vec<Namespace>, Failed> {
    let mut all = Vec::new();
    for conf in settings.namespaces(user)? {
        let unsupported = |what| Err(StorageError::Location(what));
        let location = match conf.mail {
            _ if !with_own && conf.usual => Ok(location.clone()),
            Mail::Users => Ok(location.clone()),
            _ if !with_own => continue,
            Mail::Own(text) => match Location::parse_for(&text, user.home.as_deref(), Some(&user.name)) {
                Ok(location) => Ok(dressed(location, settings, user)?),
                Err(error) => Err(error),
            },
            Mail::Unsupported(what) => unsupported(what),
        };
        all.push(Namespace {
            prefix: conf.prefix,
            separator: conf.separator,
            inbox: conf.inbox,
            usual: conf.usual,
            visible: conf.visible,
            subscriptions: conf.subscriptions,
            location,
        });
    }
    Ok(all)
}

/// A location with all that the configuration says of mail.
fn dressed(location: Location, settings: &Settings, user: &User) -> Result<Location, Failed> {
    let location = location.with_attachments(settings.mail_attachment_dir(user)?);
    let location = location.with_attribute_dict(settings.mail_attribute_dict(user)?);
    let location = location.with_mbox_locks(mbox_locks(settings)?);
    Ok(location.with_rotation(settings.mdbox_rotate_size()?, settings.mdbox_rotate_interval()?))
}

/// When what is written goes to disk.
pub fn fsync(settings: &Settings) -> Result<Fsync, Failed> {
    Ok(match settings.mail_fsync()? {
        dsync_accounts::Fsync::Always => Fsync::Always,
        dsync_accounts::Fsync::Optimized => Fsync::Optimized,
        dsync_accounts::Fsync::Never => Fsync::Never,
    })
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
