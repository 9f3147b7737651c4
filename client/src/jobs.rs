//! From options to a session: whose mail, where it is, how to reach the other end.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use dsync_accounts::{Identity, Settings, User};
use dsync_session::model::SyncState;
use dsync_session::proto::{Direction, Options, Purpose, Terminus};
use dsync_session::{Job, Report};
use dsync_worker::{Place, Pool, Role, Task};
use tokio::sync::watch;

use crate::Failed;
use crate::args::Common;
use crate::connection::Connections;
use crate::destination::Destination;
use crate::progress::Display;
use crate::remote::Served;
use crate::select;

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
    /// Processes that work for users who have a uid of their own.
    pub pool: &'a Pool,
    pub served: Served,
    /// Nothing at all is written to the source.
    pub read_only_source: bool,
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
        for destination in &destinations {
            self.served.check_destination(destination, self.common.default_destination)?;
        }
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
        let identity = self.identity(user)?;
        let mut options = select::for_user(&self.options, self.settings, user)?;
        let away = !matches!(destination, Destination::Local(_));
        options.read_only_source = away && self.reads_only(Terminus::Responder);
        let job = Job { direction: self.direction, options };
        let state = self.state.clone();
        let mut display = Display::new(self.verbose && !self.many);
        let outcome = match destination {
            Destination::Local(text) => {
                let destination = Box::new(self.destination(&text, user)?);
                let task = self.task(user, Role::Local { job, state, destination })?;
                connections.run_local(self, identity.as_ref(), task, &mut display)
            }
            other => {
                let task = self.task(user, Role::Initiator { job, state })?;
                connections.run(self, identity.as_ref(), task, other, user, &mut display)
            }
        };
        display.end();
        outcome
    }

    /// As whom to work. Who names nobody works for themselves, as themselves.
    fn identity(&self, user: &User) -> Result<Option<Identity>, Failed> {
        let named = self.many || self.common.user.is_some();
        let identity = if named { Identity::of(self.settings, user)? } else { None };
        if identity.is_none() {
            self.served.check_root(self.settings)?;
        }
        Ok(identity)
    }

    fn task(&self, user: &User, role: Role) -> Result<Task, Failed> {
        // A worker writes it as the user, in the directory that is meant here.
        let rawlog = self.common.rawlog.as_ref().map(std::path::absolute).transpose();
        let rawlog = rawlog.map_err(|error| Failed::new(75, anyhow::Error::from(error).context("-r")))?;
        let pretend = self.options.purpose != Purpose::Sync;
        Ok(Task { place: self.source(user)?, pretend, rawlog, role })
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
    fn source(&self, user: &User) -> Result<Place, Failed> {
        let said = self.common.source.as_deref().map(|text| self.own(text, "--source")).transpose()?;
        let place = Place::of(self.settings, user, said)?;
        Ok(self.with_check(place, Terminus::Initiator))
    }

    /// The mail at the other end, on this machine.
    fn destination(&self, text: &str, user: &User) -> Result<Place, Failed> {
        let text = self.own(text, "the destination")?;
        let place = Place::of(self.destination_settings, user, Some(text))?;
        // Attributes go with the mail: the dict of the configuration is the source's.
        Ok(self.with_check(place.alone().second(), Terminus::Responder))
    }

    /// Where the changes come from, if they go one way.
    fn source_end(&self) -> Option<Terminus> {
        match self.direction {
            Direction::TwoWay => None,
            Direction::OneWay { into } | Direction::Mirror { into } => Some(match into {
                Terminus::Initiator => Terminus::Responder,
                Terminus::Responder => Terminus::Initiator,
            }),
        }
    }

    /// A source that is not there is a mistyped one: it is not made, and its emptiness not copied.
    fn with_check(&self, place: Place, end: Terminus) -> Place {
        if self.source_end() != Some(end) {
            return place;
        }
        let place = place.existing("the source does not exist");
        if self.reads_only(end) { place.read_only() } else { place }
    }

    /// Says whether nothing is to be written at this end.
    pub fn reads_only(&self, end: Terminus) -> bool {
        self.read_only_source && self.source_end() == Some(end)
    }
}

/// The default place of the configuration, for messages.
pub fn config_name(settings: &Settings) -> PathBuf {
    settings.file().map_or_else(|| PathBuf::from("(defaults)"), PathBuf::from)
}
