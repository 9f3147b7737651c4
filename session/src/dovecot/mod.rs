//! One synchronisation with a Dovecot: items in, items out. Knows no socket and no clock.
//!
//! A brain of its own, not a codec under [`crate::Brain`]: Dovecot has no store ids, bases, digests or channels, settles one mailbox
//! after the other, and commits each before it knows of the next. So the stages are others. What is decided is decided elsewhere: by
//! [`dsync_merge::dovecot`] where both ends must compute the same, by our own merge where only the receiver decides.
//!
//! Here are the brain and how its mailboxes follow each other; `start` has handshake, locks and the state; `trees` what both ends have and deleted, `unlisted` what of ours cannot be listed; `mailbox` one
//! mailbox between its counters and its outcome, `exchange` its lists and bodies; `finishing` the end; `lines` the conversions.

mod attributes;
mod choice;
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
mod settled;
mod start;
mod trees;
mod unfinished;
mod unlisted;

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use dsync_merge::{Direction, End, Pair, TreePlan};
use dsync_model::{
    AttributeList, Filter, LastCommon, MailboxGuid, MailboxName, MailboxStatus, MailboxTree, SyncState,
    TreeChange,
};
use dsync_proto::dovecot::codec::Event;
use dsync_proto::dovecot::items::{self, Item};
use dsync_proto::{Counters, Terminus};
use dsync_storage::{Body, Storage, StorageError, StoreLock, UserLock};

use crate::brain::{LOCK_WAIT, lock_wait};
use crate::{Compared, Job, Progress, Report, SessionError};
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

    /// Between two mailboxes: the master tells the next one, the slave hears it.
    fn next_mailbox(&mut self) -> Result<bool, SessionError> {
        match self.end {
            End::Initiator => self.ask(),
            End::Responder => self.answer(),
        }
    }

    fn ask(&mut self) -> Result<bool, SessionError> {
        if let Some((pair, ours, opened)) = self.asked.take() {
            let Some(item) = self.next_item()? else {
                self.asked = Some((pair, ours, opened));
                return Ok(false);
            };
            let Item::Mailbox(theirs) = item else { return Err(unexpected(&item, "counters of a mailbox")) };
            if theirs.mailbox_guid != pair.guid {
                return Err(SessionError::Peer("answers with the counters of another mailbox".into()));
            }
            if theirs.mailbox_ignore {
                return Ok(true);
            }
            if theirs.mailbox_lost
                && let Some(guid) = self.disputed(&pair)
            {
                // It kept its own: so we take that one.
                self.identify(&pair, guid)?;
                self.pairs.push_front(Pair { guid, ..pair });
                return Ok(true);
            }
            if theirs.mailbox_lost {
                self.counters.disturbed += 1;
                self.full_resync = true;
                self.report
                    .notes
                    .push(format!("{}: the other end could not find or continue it: run again", pair.name));
                return Ok(true);
            }
            self.begin(pair, ours, *theirs, opened)?;
            return Ok(true);
        }
        let Some(pair) = self.pairs.pop_front() else {
            self.say(Item::End);
            self.stage = Stage::Finishing;
            return Ok(true);
        };
        let status = match self.storage.status(pair.guid) {
            Ok(status) => status,
            Err(error) => {
                self.leave_out(&pair, error)?;
                return Ok(true);
            }
        };
        if self.wants_state && self.state.0.get(&pair.guid).is_some_and(|known| known.is_current(&status)) {
            self.next_state.0.insert(pair.guid, LastCommon::of(&status));
            return Ok(true);
        }
        let theirs = pair.statuses[self.end.other()].as_ref();
        let renewed = theirs.is_some_and(|theirs| theirs.uid_validity != status.uid_validity);
        // A Dovecot that takes our UIDVALIDITY begins its index anew, and complains if its first recent UID is not raised again.
        let first_recent = if renewed { status.uid_next.get() } else { self.settled.ask(&status) };
        let line = self.counters(&status, first_recent);
        // Once it has heard our counters the peer awaits our lists, unless they are equal to its own.
        let told = theirs.is_some_and(|theirs| theirs.uid_next == status.uid_next) && !renewed;
        let opened = if told && Settled::may_be_equal(first_recent) && !self.exchanges_all() {
            None
        } else {
            let theirs = theirs.map(|theirs| (theirs.uid_validity.get(), theirs.uid_next.get()));
            match self.open(&status, theirs) {
                Ok(opened) => Some(opened),
                Err(error) => {
                    self.leave_out(&pair, error)?;
                    return Ok(true);
                }
            }
        };
        self.say(line.clone());
        self.asked = Some((pair, line, opened));
        Ok(true)
    }

    fn counters(&self, status: &MailboxStatus, first_recent: u32) -> items::Mailbox {
        let mut line = lines::counters(status, first_recent, self.knows_guids(status));
        // To whom has no messages a Dovecot tells no hashes; but of what we expunged since both were equal we must know them.
        let receives = self.direction.source() != Some(self.end);
        if status.messages == 0 && receives && !self.knows_guids(status) && self.settled.had_others(status) {
            line.messages_count = 1;
        }
        line
    }

    fn answer(&mut self) -> Result<bool, SessionError> {
        let Some(item) = self.next_item()? else { return Ok(false) };
        let theirs = match item {
            Item::End => {
                self.stage = Stage::Finishing;
                return Ok(true);
            }
            Item::Mailbox(theirs) => theirs,
            other => return Err(unexpected(&other, "counters of a mailbox")),
        };
        let guid = theirs.mailbox_guid;
        let disputed =
            self.plan.pairs.iter().position(|pair| pair.guid != guid && self.disputed(pair) == Some(guid));
        if let Some(index) = disputed {
            self.identify(&self.plan.pairs[index].clone(), guid)?;
            self.plan.pairs[index].guid = guid;
        }
        let pair = self.plan.pairs.iter().find(|pair| pair.guid == guid).cloned();
        let known = self.state.0.get(&guid).copied();
        let offered = match &pair {
            Some(pair) => match self.offer(pair, known, &theirs) {
                Ok(offered) => offered,
                Err(error) => {
                    self.leave_out(pair, error)?;
                    None
                }
            },
            None => None,
        };
        let is_here = pair.is_some() || self.passed_over.contains(&guid);
        if let (Some(pair), Some((ours, opened))) = (pair, offered) {
            self.say(ours.clone());
            self.begin(pair, ours, *theirs, opened)?;
            return Ok(true);
        }
        self.full_resync |= known.is_some_and(|known| known.uid > 0);
        // What the receiver alone has it keeps; of what is here, and cannot be told, it is to know.
        let ignore = !is_here && matches!(self.direction, Direction::OneWay { into: End::Initiator });
        self.say(items::Mailbox {
            mailbox_guid: guid,
            mailbox_ignore: ignore,
            mailbox_lost: !ignore,
            cache_fields: (!ignore).then(Vec::new),
            ..items::Mailbox::default()
        });
        Ok(true)
    }

    /// As slave, the counters to be told, and the lists where they will be exchanged. `None`: the mailbox cannot go on from what the state says.
    fn offer(
        &mut self,
        pair: &Pair,
        known: Option<LastCommon>,
        theirs: &items::Mailbox,
    ) -> Result<Option<(items::Mailbox, Option<Opened>)>, StorageError> {
        let status = self.storage.status(pair.guid)?;
        if known.is_some_and(|known| known.uid != 0 && known.is_ahead_of(&status)) {
            return Ok(None);
        }
        let renewed = theirs.uid_validity != status.uid_validity.get();
        let told = self.settled.answer(&status, theirs.first_recent_uid);
        let first_recent = if renewed { status.uid_next.get() } else { told };
        let ours = self.counters(&status, first_recent);
        let opened = match self.is_exchanged(&ours, theirs) {
            true => Some(self.open(&status, Some((theirs.uid_validity, theirs.uid_next)))?),
            false => None,
        };
        Ok(Some((ours, opened)))
    }

    /// The peer's GUID of a mailbox that had two of them. Which one it has now cannot be known: Dovecot's Maildir takes ours, others the higher.
    fn disputed(&self, pair: &Pair) -> Option<MailboxGuid> {
        let theirs = pair.statuses[self.end.other()].as_ref()?.guid;
        let open = pair.statuses[self.end].is_some() && self.direction.source() != Some(self.end);
        (open && theirs != pair.guid).then_some(theirs)
    }

    fn identify(&mut self, pair: &Pair, guid: MailboxGuid) -> Result<(), SessionError> {
        let Some(ours) = &pair.statuses[self.end] else { return Ok(()) };
        let change = TreeChange::Identify { name: pair.name.clone(), guid, uid_validity: ours.uid_validity };
        self.change_tree(&change).map(drop)
    }

    /// Whether messages of ours have GUIDs that the peer knows, too. In an mbox only while there is nothing new.
    fn knows_guids(&self, status: &MailboxStatus) -> bool {
        self.guids.as_ref().is_none_or(|guids| guids.covers(status))
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
