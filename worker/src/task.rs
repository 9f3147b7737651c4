//! What is to be done with a user's mail, and doing it: the same in a worker and in the program itself.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use bincode::{Decode, Encode};
use bytes::BytesMut;
use dsync_session::dovecot::Names;
use dsync_session::dovecot::link::Early;
use dsync_session::link::{self, Stream};
use dsync_session::model::{Namespaces, SyncState};
use dsync_session::rawlog::RawLog;
use dsync_session::storage::disk::Pretend;
use dsync_session::storage::{Purged, Storage};
use dsync_session::{Brain, Job, Progress, Report, SessionError, abreast, dovecot, local};
use tokio::sync::watch;

use crate::Place;

/// One user's work.
#[derive(Clone, Debug, Encode, Decode)]
pub struct Task {
    pub place: Place,
    /// Nothing is made when the mail is opened: a dry run, or the other end has not said yet what it wants.
    pub pretend: bool,
    /// Where what travels is recorded.
    pub rawlog: Option<PathBuf>,
    pub role: Role,
}

/// Which part the mail has in a session.
#[derive(Clone, Debug, Encode, Decode)]
pub enum Role {
    Initiator {
        job: Job,
        state: Option<SyncState>,
    },
    /// `lock_wait` counts where the initiator names none.
    Responder {
        lock_wait: Duration,
    },
    /// Both ends: the other one is on this machine too.
    Local {
        job: Job,
        state: Option<SyncState>,
        destination: Box<Place>,
    },
    /// No session: what expunged messages take up is freed.
    Purge {
        lock_wait: Duration,
        /// Else it has to be there.
        may_be_missing: bool,
    },
}

/// How a session is to be talked.
pub struct Talk {
    pub protocol: Protocol,
    /// What came before it on the same stream.
    pub early: Early,
    /// What a Dovecot is told of names.
    pub names: Names,
    /// Give up when nothing was heard for so long.
    pub silence: Duration,
    /// Turns true when the session is to end at its next safe point.
    pub stop: watch::Receiver<bool>,
}

/// What the other end speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Protocol {
    Native { compress: bool },
    Dovecot,
}

/// What came of work without another end.
#[derive(Clone, Debug, Encode, Decode)]
pub enum Outcome {
    Synced(Box<Report>),
    /// Where the mail is, for people, and what was freed; `None`: this format leaves nothing to be freed.
    Purged(String, Option<Freed>),
}

/// [`Purged`], as it travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Encode, Decode)]
pub struct Freed {
    pub files: u64,
    pub messages: u64,
    pub bytes: u64,
    pub left: u64,
}

/// Mail that is open, and its part.
pub struct Opened {
    storage: Box<dyn Storage>,
    role: Role,
    rawlog: Option<RawLog>,
}

impl Role {
    /// Which namespaces take part. What an initiator wants a responder has still to hear.
    fn namespaces(&self) -> Namespaces {
        match self {
            Role::Initiator { job, .. } | Role::Local { job, .. } => job.options.namespaces.clone(),
            Role::Responder { .. } | Role::Purge { .. } => Namespaces::Usual,
        }
    }
}

impl Task {
    /// Opens the mail.
    pub(crate) fn open(&self) -> Result<Opened, SessionError> {
        let storage = {
            let _pretend = self.pretend.then(Pretend::begin);
            self.place.open(&self.role.namespaces())?
        };
        Ok(Opened { storage, role: self.role.clone(), rawlog: self.rawlog()? })
    }

    fn rawlog(&self) -> Result<Option<RawLog>, SessionError> {
        let Some(path) = &self.rawlog else { return Ok(None) };
        let failed =
            |error| SessionError::Refused { status: 75, text: format!("-r {}: {error}", path.display()) };
        RawLog::create(path).map(Some).map_err(failed)
    }

    /// Does work that has no other end. `watch` is called now and then; when it returns `false`, it ends at a safe point.
    pub(crate) fn whole(&self, watch: &mut dyn FnMut(Progress) -> bool) -> Result<Outcome, SessionError> {
        if let Role::Purge { may_be_missing: true, .. } = self.role
            && let Some(place) = self.place.missing()?
        {
            return Ok(Outcome::Purged(place, None));
        }
        let Opened { mut storage, role, rawlog } = self.open()?;
        match role {
            Role::Local { job, state, destination } => {
                let other = {
                    let _pretend = self.pretend.then(Pretend::begin);
                    destination.open(&job.options.namespaces)?
                };
                let mut brain = Brain::initiator(storage, job).with_state(state);
                let mut other = Brain::responder(other, Duration::from_secs(30));
                let watch = &mut |brain: &Brain| watch(brain.progress());
                let by_thread = self.pretend || self.place.is_read_only() || destination.is_read_only();
                let (report, _) = if by_thread || rawlog.is_some() {
                    local::run_recorded(&mut brain, &mut other, watch, rawlog)?
                } else {
                    abreast::run(&mut brain, &mut other, watch)?
                };
                Ok(Outcome::Synced(Box::new(report)))
            }
            Role::Purge { lock_wait, .. } => purge(&mut *storage, lock_wait),
            Role::Initiator { .. } | Role::Responder { .. } => {
                unreachable!("a session with another end is run at a desk")
            }
        }
    }
}

impl Opened {
    /// Runs a session to its end. Gives the bytes that came behind it, too.
    pub(crate) async fn run(
        self,
        stream: &mut dyn Stream,
        talk: Talk,
        watch: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<(Report, BytesMut), SessionError> {
        let Talk { protocol, early, names, silence, stop } = talk;
        let Opened { storage, role, rawlog } = self;
        match protocol {
            Protocol::Native { compress } => {
                let options = link::Options { silence, compress, stop, rawlog };
                let mut brain = match role {
                    Role::Initiator { job, state } => Brain::initiator(storage, job).with_state(state),
                    Role::Responder { lock_wait } => Brain::responder(storage, lock_wait),
                    Role::Local { .. } | Role::Purge { .. } => unreachable!("no session with another end"),
                };
                let watch = &mut |brain: &Brain| watch(brain.progress());
                link::run(&mut brain, stream, early.input, options, watch).await
            }
            Protocol::Dovecot => {
                let options = link::Options { silence, compress: false, stop, rawlog: None };
                let name = hostname();
                let brain = match role {
                    Role::Initiator { job, state } => dovecot::Brain::master(storage, job, state, &name),
                    Role::Responder { lock_wait } => dovecot::Brain::slave(storage, lock_wait, &name),
                    Role::Local { .. } | Role::Purge { .. } => unreachable!("no session with another end"),
                };
                let mut brain = brain.with_names(names);
                let watch = &mut |brain: &dovecot::Brain| watch(brain.progress());
                let report = dovecot::link::run(&mut brain, stream, early, &options, rawlog, watch).await?;
                Ok((report, BytesMut::new()))
            }
        }
    }
}

/// Purges an account, beside whoever uses it, but not beside another dsync.
fn purge(storage: &mut dyn Storage, lock_wait: Duration) -> Result<Outcome, SessionError> {
    let failed = |source| SessionError::Storage { context: "purging".to_owned(), source };
    let _lock = storage.lock(lock_wait).map_err(failed)?;
    let mut sum: Option<Purged> = None;
    let mut from = Some(0);
    while let Some(next) = from {
        let Some(purged) = storage.purge(next).map_err(failed)? else { break };
        from = purged.next;
        sum = Some(sum.unwrap_or_default().and(purged));
    }
    let freed = sum.map(|Purged { files, messages, bytes, left, .. }| Freed { files, messages, bytes, left });
    Ok(Outcome::Purged(storage.location(), freed))
}

/// Our name, as a Dovecot is told it.
fn hostname() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "localhost".to_owned() } else { name.to_owned() }
}

/// Lets something happen at most ten times a second.
pub(crate) struct Now(Instant);

impl Now {
    const EVERY: Duration = Duration::from_millis(100);

    pub fn new() -> Now {
        Now(Instant::now())
    }

    /// Says whether it is time again.
    pub fn is_due(&mut self) -> bool {
        let due = self.0.elapsed() >= Now::EVERY;
        if due {
            self.0 = Instant::now();
        }
        due
    }
}
