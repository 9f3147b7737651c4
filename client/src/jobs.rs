//! From options to a session: whose mail, where it is, how to reach the other end.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use dsync_accounts::{Settings, User, location_for};
use dsync_session::model::SyncState;
use dsync_session::proto::{Direction, Options, Terminus};
use dsync_session::storage::{Fsync, Location, Storage};
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
        Ok(Done { user: user.name, report, elapsed: begun.elapsed() })
    }

    fn run_for(
        &self,
        user: &User,
        destination: Destination,
        connections: &mut Connections,
    ) -> Result<Report, Failed> {
        let storage = self.source(user)?;
        let job = Job { direction: self.direction, options: self.options.clone() };
        let mut brain = Brain::initiator(storage, job).with_state(self.state.clone());
        let mut display = Display::new(self.verbose && !self.many);
        let outcome = match destination {
            Destination::Local(text) => self.run_local(&mut brain, &text, user, &mut display),
            other => connections.run(self, &mut brain, other, user, &mut display),
        };
        display.end();
        outcome
    }

    /// The user's own place. One that is the same for every user would pour the mail of all of them together.
    fn own(&self, text: &str, what: &str, user: &User) -> Result<String, Failed> {
        if self.many && !text.contains(['%', '~']) {
            let what = format!("{what} is the same place for every user; put %u (or %n, %d, %h, ~) into it");
            return Err(Failed::usage(what));
        }
        Ok(location_for(text, user)?)
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
            Some(text) => Some(self.own(text, "--source", user)?),
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
            .with_attachments(self.settings.mail_attachment_dir(user)?);
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
        let text = self.own(text, "the destination", user)?;
        let location = Location::parse_for(&text, user.home.as_deref(), Some(&user.name))?
            .with_separator(settings.separator())
            .with_attachments(settings.mail_attachment_dir(user)?);
        self.check_source(&location, Terminus::Responder)?;
        let mut other = Brain::responder(location.open(self.fsync(settings)?)?, Duration::from_secs(30));
        let outcome = local::run(brain, &mut other, &mut |brain| {
            display.look(brain);
            !*self.stop.borrow()
        });
        Ok(outcome?.0)
    }
}

/// The default place of the configuration, for messages.
pub fn config_name(settings: &Settings) -> PathBuf {
    settings.file().map_or_else(|| PathBuf::from("(defaults)"), PathBuf::from)
}
