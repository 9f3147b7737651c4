//! The state machine of one end: frames in, frames out. Knows no socket and no clock.
//!
//! [`Brain::handle`] files what comes in (`hearing`); [`Brain::poll`] works. The stages are in `greeting` (who, locks, trees),
//! `mailbox` (lists, plans, bodies) and `closing` (expunges, digests, base).

mod attributes;
mod base;
mod carrying;
mod closing;
mod donors;
mod filtering;
mod greeting;
mod guard;
mod hearing;
mod leaving;
mod mailbox;
mod scope;
mod stateful;
mod unreadable;
mod verifying;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bincode::{Decode, Encode};
use dsync_merge::{Both, End, TreePlan};
use dsync_model::{
    Base, Generation, MailboxGuid, MailboxName, MailboxTree, NameRules, StoreId, SyncState, TreeLog,
};
use dsync_proto::{
    BaseRef, Channel, Counters, Direction, Handshake, Message, Options, Problem, Purpose, Role, SESSION,
    TEXT_BYTES_MAX, Terminus, Undone, status_told,
};
use dsync_storage::dry_run::DryRun;
use dsync_storage::{Body, ByHeader, Storage, StorageError, StoreLock, UserLock};

pub(crate) use scope::Scope;

use crate::{Progress, Report, SessionError};
use attributes::Attributes;
use donors::Donors;
use mailbox::{Open, chain};

/// What a session is to do.
#[derive(Clone, Debug, Encode, Decode)]
pub struct Job {
    pub direction: Direction,
    pub options: Options,
}

/// What can happen to a brain.
pub enum Input<'a> {
    Message(Channel, Message),
    /// The next piece of the body announced last on this channel.
    Body(Channel, &'a [u8]),
    BodyEnd(Channel),
    /// The body announced last on this channel, as a whole: both ends are in this process.
    WholeBody(Channel, Body),
    /// The peer is gone; nothing more will come.
    Closed,
}

/// What a brain wants.
pub enum Output {
    Message(Channel, Message),
    /// To be sent in pieces (or handed over) right behind the `Mail` that came before. If its reader fails midway, say so by
    /// [`body_failed`](Brain::body_failed).
    Body(Channel, Body),
    /// Some work was done and there is more: call `poll` again when there is time.
    Working,
    /// Nothing to do or say until something comes in.
    Idle,
    /// The session is over, everything was said.
    Done(Box<Report>),
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Stage {
    Start,
    Greeted,
    Trees,
    Planned,
    Mailboxes,
    Expunges,
    Settling,
    Bases,
    Writing,
    Verifying,
    Finishing,
    Done,
}

/// Messages on channels that may wait until we are where the peer is.
const EARLY_MAX: usize = 100_000;
/// Most problems of the other end that are shown, beside those that it has with single mailboxes and messages.
const PROBLEMS_MAX: usize = 10_000;

/// How long to wait for a lock where nobody says.
pub(crate) const LOCK_WAIT: Duration = Duration::from_secs(30);

/// How long the job says to wait for locks, else `default`.
pub(crate) fn lock_wait(options: &Options, default: Duration) -> Duration {
    match options.lock_wait_secs {
        0 => default,
        secs => Duration::from_secs(secs.into()),
    }
}

/// One end of a session.
pub struct Brain {
    end: End,
    storage: ByHeader,
    job: Option<Job>,
    lock: Option<(StoreLock, Option<UserLock>)>,
    lock_wait: Duration,
    stopping: bool,
    stage: Stage,
    out: VecDeque<Output>,
    early: VecDeque<(Channel, Message)>,
    me: Option<StoreId>,
    peer: Option<Handshake>,
    trees: [MailboxTree; 2],
    logs: [TreeLog; 2],
    rules: [NameRules; 2],
    peer_nodes_done: bool,
    attributes: Attributes,
    bases: [Option<Vec<BaseRef>>; 2],
    /// Those that are noted at this end, until one is chosen.
    bases_here: Vec<(BaseRef, Base)>,
    /// What both ends agreed on the last time, and how it is called.
    base: Option<Base>,
    base_ref: Option<BaseRef>,
    plan: TreePlan,
    round: u8,
    open: Vec<Open>,
    donors: Donors,
    /// Rounds in which the end has all its saves on the disk; the peer may be ahead by one.
    saves_ended: [u8; 2],
    committed: [Option<BaseRef>; 2],
    next_base: Option<Vec<u8>>,
    written: [Option<Generation>; 2],
    counters: Counters,
    finish_said: bool,
    /// Where a purge that was asked for goes on.
    purge_from: Option<u32>,
    peer_finish: Option<Counters>,
    progress: Progress,
    report: Report,
    renamed: BTreeMap<MailboxName, String>,
    old_notes: BTreeSet<String>,
    /// The initiator's sync state, at both ends; `None`: it has none and wants none.
    state: Option<SyncState>,
    state_is_stale: bool,
    verifying: verifying::Verifying,
    /// Mailboxes that an end has and cannot read.
    unlisted: BTreeSet<MailboxName>,
    /// Of both ends: what of the merged tree is not so there.
    undone: Vec<Undone>,
    /// Mailboxes that could not be made here as the merged tree has them, why, and the exit status that is worth.
    unmade: BTreeMap<MailboxGuid, (String, u8)>,
    /// Whether each end deletes mailboxes, and has not said yet that it is done.
    deletes: [bool; 2],
    /// GUIDs of messages that may not have come where they were to be saved, as that mailbox was left out.
    not_arrived: BTreeSet<[u8; 16]>,
}

impl Brain {
    /// The end that began the session; `job` counts for both.
    pub fn initiator(storage: Box<dyn Storage>, job: Job) -> Brain {
        let wait = lock_wait(&job.options, LOCK_WAIT);
        let storage = for_purpose(storage, job.options.purpose);
        Brain { job: Some(job), ..Brain::new(End::Initiator, storage, wait) }
    }

    /// The same, beginning from a sync state (`-s`); the report has the new one.
    #[must_use]
    pub fn with_state(mut self, state: Option<SyncState>) -> Brain {
        self.state = state;
        self
    }

    /// The end that answers; it learns from the handshake what to do. `lock_wait` is used where the job names none.
    pub fn responder(storage: Box<dyn Storage>, lock_wait: Duration) -> Brain {
        Brain::new(End::Responder, storage, lock_wait)
    }

    fn new(end: End, storage: Box<dyn Storage>, lock_wait: Duration) -> Brain {
        Brain {
            end,
            storage: ByHeader::off(storage),
            job: None,
            lock: None,
            lock_wait,
            stopping: false,
            stage: Stage::Start,
            out: VecDeque::new(),
            early: VecDeque::new(),
            me: None,
            peer: None,
            trees: Default::default(),
            logs: Default::default(),
            rules: Default::default(),
            peer_nodes_done: false,
            attributes: Attributes::default(),
            bases: Default::default(),
            bases_here: Vec::new(),
            base_ref: None,
            base: None,
            plan: TreePlan::default(),
            round: 0,
            open: Vec::new(),
            donors: Donors::default(),
            saves_ended: [0; 2],
            committed: [None; 2],
            next_base: None,
            written: [None; 2],
            counters: Counters::default(),
            finish_said: false,
            purge_from: Some(0),
            peer_finish: None,
            progress: Progress::default(),
            report: Report::default(),
            renamed: BTreeMap::new(),
            old_notes: BTreeSet::new(),
            state: None,
            state_is_stale: false,
            verifying: Default::default(),
            unlisted: BTreeSet::new(),
            undone: Vec::new(),
            unmade: BTreeMap::new(),
            deletes: [false; 2],
            not_arrived: BTreeSet::new(),
        }
    }

    /// Takes one input. Cheap, but for bodies, which go to the storage at once.
    pub fn handle(&mut self, input: Input<'_>) -> Result<(), SessionError> {
        match input {
            Input::Message(SESSION, message) => self.session_message(message),
            Input::Message(channel, message) if self.is_early(&message) => {
                if self.early.len() >= EARLY_MAX {
                    return Err(SessionError::Peer("runs too far ahead of us".into()));
                }
                self.early.push_back((channel, message));
                Ok(())
            }
            Input::Message(channel, message) => self.channel_message(channel, message),
            Input::Body(channel, piece) => self.body_piece(channel, piece),
            Input::BodyEnd(channel) => self.body_end(channel),
            Input::WholeBody(channel, body) => self.whole_body(channel, body),
            Input::Closed if self.stage == Stage::Done => Ok(()),
            Input::Closed => {
                Err(SessionError::Link { status: 75, text: "the other end closed the connection".into() })
            }
        }
    }

    /// Does a bounded piece of work, or gives the next thing to send. Call it until `Idle` while the send buffer has room.
    pub fn poll(&mut self) -> Result<Output, SessionError> {
        if let Some(output) = self.out.pop_front() {
            return Ok(output);
        }
        if self.stopping && self.stage < Stage::Finishing {
            self.make_safe()?;
            return Err(SessionError::Stopped);
        }
        let worked = match self.stage {
            Stage::Start => self.greet()?,
            Stage::Greeted => self.list_trees()?,
            Stage::Trees => self.merge_trees()?,
            Stage::Planned => self.change_trees()?,
            Stage::Mailboxes => self.work_on_mailboxes()?,
            Stage::Expunges => self.expunge()?,
            Stage::Settling => self.settle()?,
            Stage::Bases => self.agree_on_base()?,
            Stage::Writing => self.base_written()?,
            Stage::Verifying => self.verify()?,
            Stage::Finishing => self.finish()?,
            Stage::Done => return Ok(Output::Done(Box::new(std::mem::take(&mut self.report)))),
        };
        match self.out.pop_front() {
            Some(output) => Ok(output),
            None if worked => Ok(Output::Working),
            None => Ok(Output::Idle),
        }
    }

    /// How far the session has come.
    pub fn progress(&self) -> Progress {
        self.progress
    }

    /// Asks the session to end at the next safe point: what is saved is made durable, the rest waits for the next run.
    pub fn stop(&mut self) {
        self.stopping = true;
    }

    /// See [`Capabilities::clones`](dsync_storage::Capabilities::clones).
    pub(crate) fn clones(&self) -> bool {
        self.storage.capabilities().clones
    }

    /// Where the peer's mail is, once it has said so.
    pub fn peer_location(&self) -> Option<&str> {
        self.peer.as_ref().map(|peer| peer.location.as_str())
    }

    fn say(&mut self, message: Message) {
        self.out.push_back(Output::Message(SESSION, message));
    }

    fn say_on(&mut self, channel: Channel, message: Message) {
        self.out.push_back(Output::Message(channel, message));
    }

    fn direction(&self) -> dsync_merge::Direction {
        let end = |terminus| match terminus {
            Terminus::Initiator => End::Initiator,
            Terminus::Responder => End::Responder,
        };
        match self.job.as_ref().map(|job| job.direction) {
            Some(Direction::OneWay { into }) => dsync_merge::Direction::OneWay { into: end(into) },
            Some(Direction::Mirror { into }) => dsync_merge::Direction::Mirror { into: end(into) },
            Some(Direction::TwoWay) | None => dsync_merge::Direction::TwoWay,
        }
    }

    fn rules(&self) -> Both<&NameRules> {
        Both([&self.rules[0], &self.rules[1]])
    }

    fn dry_run(&self) -> bool {
        self.job.as_ref().is_some_and(|job| job.options.purpose == Purpose::DryRun)
    }

    fn role(&self) -> Role {
        match self.end {
            End::Initiator => Role::Initiator,
            End::Responder => Role::Responder,
        }
    }

    /// Something that could not be done here; the other end has been told, or knows it as well.
    fn problem(&mut self, text: String, status: u8) {
        self.report.problems.push(text);
        self.worth(status);
    }

    /// Something that could not be done here, of which the other end would not know.
    fn problem_of_both(&mut self, text: String, status: u8) {
        self.say(Message::Problem(Problem { status, text: clipped(text.clone()) }));
        self.problem(text, status);
    }

    /// Something that could not be done at the other end.
    fn problem_there(&mut self, text: &str, status: u8) {
        self.problem(format!("the other end: {}", text.escape_debug()), status_told(status));
    }

    /// Of all statuses the first stays, unless one is 75.
    fn worth(&mut self, status: u8) {
        let worst = self.report.problem_status;
        self.report.problem_status = if worst == 75 || (worst != 0 && status != 75) { worst } else { status };
    }
}

/// The storage as the purpose of the session allows it: written only if it is to be.
fn for_purpose(storage: Box<dyn Storage>, purpose: Purpose) -> Box<dyn Storage> {
    match purpose {
        Purpose::Sync => storage,
        Purpose::DryRun => Box::new(DryRun::new(storage, false)),
        Purpose::Verify { .. } => Box::new(DryRun::new(storage, true)),
    }
}

/// A text as short as the other end takes it.
fn clipped(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
    text
}

/// Names the place of a storage error.
fn at(context: impl Into<String>) -> impl FnOnce(StorageError) -> SessionError {
    move |source| SessionError::Storage { context: context.into(), source }
}

impl std::fmt::Debug for Brain {
    /// Where the session stands: for logs and for tests that got stuck.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:?} at {:?}, round {}, saves ended {:?}",
            self.end, self.stage, self.round, self.saves_ended
        )?;
        self.open.iter().filter(|open| open.active).try_for_each(|open| write!(f, "; {}", open.standing()))
    }
}
