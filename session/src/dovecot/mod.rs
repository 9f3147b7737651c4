//! One synchronisation with a Dovecot: items in, items out. Knows no socket and no clock.
//!
//! A brain of its own, not a codec under [`crate::Brain`]: Dovecot has no store ids, bases, digests or channels, settles one mailbox
//! after the other, and commits each before it knows of the next. So the stages are others. What is decided is decided elsewhere: by
//! [`dsync_merge::dovecot`] where both ends must compute the same, by our own merge where only the receiver decides.
//!
//! Here is the brain; `start` has handshake, locks and the state; `trees` what both ends have, `deleted` what they took away, `unlisted` what of ours cannot be listed; `pairs` how mailboxes follow each other, `mailbox` one
//! mailbox between its counters and its outcome, `ahead` what is done before its turn, `exchange` its lists and bodies; `finishing` the end; `lines` the conversions.

mod ahead;
mod attributes;
mod choice;
mod deleted;
mod exchange;
mod filtering;
mod finishing;
#[cfg(feature = "net")]
pub mod greet;
mod guids;
mod lines;
#[cfg(feature = "net")]
pub mod link;
mod mailbox;
mod pairs;
mod settled;
mod start;
mod trees;
mod unfinished;
mod unlisted;

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use dsync_merge::{Direction, End, Pair, TreePlan};
use dsync_model::{AttributeList, Filter, MailboxGuid, MailboxName, MailboxStatus, MailboxTree, SyncState};
use dsync_proto::dovecot::codec::Event;
use dsync_proto::dovecot::items::{self, Item};
use dsync_proto::{Counters, Terminus};
use dsync_storage::{Body, Storage, StorageError, StoreLock, UserLock};

use crate::brain::{LOCK_WAIT, lock_wait};
use crate::{Compared, Job, Progress, Report, SessionError};
use ahead::Ahead;
pub use choice::Names;
use exchange::{Exchange, Opened};
use guids::Guids;
pub use settled::Settled;
use unfinished::Unfinished;

/// What a brain wants.
pub enum Output {
    Item(Item),
    /// The body of the item that came before.
    Body(Body),
    /// Some work was done and there is more.
    Working,
    /// Nothing to do or say until something comes in.
    Idle,
    /// The session is over, everything was said.
    Done(Box<Report>),
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Stage {
    Start,
    /// Waits for the peer's handshake.
    Greeting,
    /// Waits for the master's state.
    State,
    /// Waits for the peer's tree.
    Trees,
    /// Between two mailboxes.
    Mailboxes,
    Exchange,
    Finishing,
    Done,
}

/// One end of a session. The initiator is what Dovecot calls the master.
pub struct Brain {
    end: End,
    hostname: String,
    storage: Box<dyn Storage>,
    lock: Option<(StoreLock, Option<UserLock>)>,
    lock_wait: Duration,
    job: Option<Job>,
    direction: Direction,
    stage: Stage,
    stopping: bool,
    closed: bool,
    inbox: VecDeque<Event>,
    out: VecDeque<Output>,
    /// The peer's minor version, and what the master's handshake says.
    minor: u32,
    handshake: items::Handshake,
    names: Names,
    filter: Box<Filter>,
    tree: MailboxTree,
    /// Mailboxes of ours that cannot be listed: nobody knows what they are.
    unlisted: BTreeSet<MailboxName>,
    /// The peer's mailboxes of those names.
    passed_over: BTreeSet<MailboxGuid>,
    peer_tree: MailboxTree,
    peer_tree_done: bool,
    tree_told: bool,
    /// Ours; `None`: we keep none.
    attributes: Option<AttributeList>,
    /// Our INBOX if it never held a message.
    pristine: Option<MailboxStatus>,
    plan: TreePlan,
    /// Mailboxes that are still to be looked into; the slave is told which.
    pairs: VecDeque<Pair>,
    /// A mailbox of which the master awaits the peer's counters.
    asked: Option<(Pair, items::Mailbox, Option<Opened>)>,
    exchange: Option<Box<Exchange>>,
    ahead: Option<Ahead>,
    /// How many of the plan's pairs lie before the one that the master comes to next, if it goes by their names as we do.
    answered: usize,
    settled: Settled,
    unfinished: Unfinished,
    /// Where our storage keeps no GUIDs of what it saves (mbox): what the peer calls its messages.
    guids: Option<Guids>,
    /// What `-s` gave; at the slave, what the master told of it.
    state: SyncState,
    wants_state: bool,
    next_state: SyncState,
    full_resync: bool,
    counters: Counters,
    compared: Compared,
    progress: Progress,
    report: Report,
}

impl Brain {
    /// The end that began. `state`: what `-s` gave, if it did.
    pub fn master(storage: Box<dyn Storage>, job: Job, state: Option<SyncState>, hostname: &str) -> Brain {
        let end = |terminus| match terminus {
            Terminus::Initiator => End::Initiator,
            Terminus::Responder => End::Responder,
        };
        let direction = match job.direction {
            dsync_proto::Direction::TwoWay => Direction::TwoWay,
            dsync_proto::Direction::OneWay { into } => Direction::OneWay { into: end(into) },
            dsync_proto::Direction::Mirror { into } => Direction::Mirror { into: end(into) },
        };
        let wait = lock_wait(&job.options, LOCK_WAIT);
        let brain = Brain::new(End::Initiator, storage, wait, hostname);
        Brain {
            job: Some(job),
            direction,
            wants_state: state.is_some(),
            state: state.unwrap_or_default(),
            ..brain
        }
    }

    /// The end that answers. `lock_wait` is used where the master names none.
    pub fn slave(storage: Box<dyn Storage>, lock_wait: Duration, hostname: &str) -> Brain {
        Brain::new(End::Responder, storage, lock_wait, hostname)
    }

    fn new(end: End, storage: Box<dyn Storage>, lock_wait: Duration, hostname: &str) -> Brain {
        Brain {
            end,
            hostname: hostname.to_owned(),
            storage,
            lock: None,
            lock_wait,
            job: None,
            direction: Direction::TwoWay,
            stage: Stage::Start,
            stopping: false,
            closed: false,
            inbox: VecDeque::new(),
            out: VecDeque::new(),
            minor: 0,
            handshake: items::Handshake::default(),
            names: Names::default(),
            filter: Box::default(),
            tree: MailboxTree::new(),
            unlisted: BTreeSet::new(),
            passed_over: BTreeSet::new(),
            peer_tree: MailboxTree::new(),
            peer_tree_done: false,
            tree_told: false,
            attributes: None,
            pristine: None,
            plan: TreePlan::default(),
            pairs: VecDeque::new(),
            asked: None,
            exchange: None,
            ahead: None,
            answered: 0,
            settled: Settled::default(),
            unfinished: Unfinished::default(),
            guids: None,
            state: SyncState::default(),
            wants_state: false,
            next_state: SyncState::default(),
            full_resync: false,
            counters: Counters::default(),
            compared: Compared::default(),
            progress: Progress::default(),
            report: Report::default(),
        }
    }

    /// Takes one event. It is to be called only while the brain is [hungry](Self::is_hungry). What belongs to a mailbox goes to its
    /// storage at once, so that we hear also while we cannot speak.
    pub fn handle(&mut self, event: Event) -> Result<(), SessionError> {
        self.inbox.push_back(event);
        self.hear()
    }

    /// Says whether all that came in was worked on: only then is there use for more.
    pub fn is_hungry(&self) -> bool {
        self.inbox.is_empty()
    }

    /// The connection is at its end.
    pub fn close(&mut self) {
        self.closed = true;
    }

    /// Asks the session to end at the next safe point.
    pub fn stop(&mut self) {
        self.stopping = true;
    }

    /// How far the session has come.
    pub fn progress(&self) -> Progress {
        self.progress
    }

    /// Does a bounded piece of work, or gives the next thing to send.
    pub fn poll(&mut self) -> Result<Output, SessionError> {
        if let Some(output) = self.out.pop_front() {
            return Ok(output);
        }
        if self.stopping && self.stage < Stage::Finishing {
            if let Some(mut exchange) = self.exchange.take() {
                exchange.make_safe()?;
            }
            return Err(SessionError::Stopped);
        }
        let worked = match self.stage {
            Stage::Start => self.greet(),
            Stage::Greeting => self.meet(),
            Stage::State => self.take_state(),
            Stage::Trees => self.take_tree(),
            Stage::Mailboxes => self.next_mailbox(),
            Stage::Exchange => self.work(),
            Stage::Finishing => self.finish(),
            Stage::Done => return Ok(Output::Done(Box::new(std::mem::take(&mut self.report)))),
        };
        let worked = worked?;
        match self.out.pop_front() {
            Some(output) => Ok(output),
            None if worked => Ok(Output::Working),
            None if self.closed && self.inbox.is_empty() && self.stage != Stage::Done => {
                let text =
                    "the other end closed the connection in the middle of the session; its log says why";
                Err(SessionError::Link { status: 75, text: text.into() })
            }
            None => Ok(Output::Idle),
        }
    }

    /// The next item of the peer, outside of bodies.
    fn next_item(&mut self) -> Result<Option<Item>, SessionError> {
        while let Some(event) = self.inbox.pop_front() {
            match event {
                Event::Version(minor) => self.minor = minor,
                Event::Item(Item::Close) => return Err(gave_up()),
                Event::Item(item) => return Ok(Some(item)),
                Event::Body(_) | Event::BodyEnd => {
                    return Err(SessionError::Peer("sends a body where none belongs".into()));
                }
            }
        }
        Ok(None)
    }

    fn say(&mut self, item: impl Into<Item>) {
        self.out.push_back(Output::Item(item.into()));
    }

    fn problem(&mut self, text: String, status: u8) {
        self.report.problems.push(text);
        let worst = self.report.problem_status;
        self.report.problem_status = if worst == 75 || (worst != 0 && status != 75) { worst } else { status };
    }
}

fn unexpected(item: &Item, expected: &str) -> SessionError {
    SessionError::Peer(format!("sends {:?} instead of {expected}", item.tag()))
}

fn gave_up() -> SessionError {
    let text = "the other end gave up; its log says why";
    SessionError::Link { status: 75, text: text.into() }
}

/// Names the place of a storage error.
fn at(context: impl Into<String>) -> impl FnOnce(StorageError) -> SessionError {
    move |source| SessionError::Storage { context: context.into(), source }
}

fn chain(error: &StorageError) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}
