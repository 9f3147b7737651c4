//! One synchronisation with a Dovecot: items in, items out. Knows no socket and no clock.
//!
//! A brain of its own, not a codec under [`crate::Brain`]: Dovecot has no store ids, bases, digests or channels, settles one mailbox
//! after the other, and commits each before it knows of the next. So the stages are others. What is decided is decided elsewhere: by
//! [`dsync_merge::dovecot`] where both ends must compute the same, by our own merge where only the receiver decides.
//!
//! `start` has handshake, trees and the state; `exchange` one mailbox; `lines` the conversions.

mod attributes;
mod choice;
mod exchange;
mod filtering;
#[cfg(feature = "net")]
pub mod greet;
mod lines;
#[cfg(feature = "net")]
pub mod link;
mod settled;
mod start;

use std::collections::VecDeque;
use std::time::Duration;

use dsync_merge::{Direction, End, Pair, TreePlan};
use dsync_model::{
    AttributeList, Filter, LastCommon, MailboxGuid, MailboxName, MailboxStatus, MailboxTree, SyncState,
    TreeChange,
};
use dsync_proto::dovecot::codec::Event;
use dsync_proto::dovecot::items::{self, Item};
use dsync_proto::{Counters, Terminus};
use dsync_storage::{Body, HeaderHash, Storage, StorageError, StoreLock, UserLock};

use crate::brain::{LOCK_WAIT, lock_wait};
use crate::{Compared, Job, Progress, Report, SessionError};
pub use choice::Names;
use exchange::Exchange;
pub use settled::Settled;

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
    asked: Option<(Pair, items::Mailbox)>,
    exchange: Option<Box<Exchange>>,
    settled: Settled,
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
        if let Some((pair, ours)) = self.asked.take() {
            let Some(item) = self.next_item()? else {
                self.asked = Some((pair, ours));
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
            self.begin(pair, ours, *theirs)?;
            return Ok(true);
        }
        let Some(pair) = self.pairs.pop_front() else {
            self.say(Item::End);
            self.stage = Stage::Finishing;
            return Ok(true);
        };
        let opened = self.storage.open(pair.guid).and_then(|mut mailbox| mailbox.status());
        let status = match opened {
            Ok(status) => status,
            Err(error) => {
                self.problem(format!("{}: {}", pair.name, chain(&error)), error.status());
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
        self.say(line.clone());
        self.asked = Some((pair, line));
        Ok(true)
    }

    fn counters(&self, status: &MailboxStatus, first_recent: u32) -> items::Mailbox {
        let mut line = lines::counters(status, first_recent, self.saves_guids());
        // To whom has no messages a Dovecot tells no hashes; but of what we expunged since both were equal we must know them.
        let receives = self.direction.source() != Some(self.end);
        if status.messages == 0 && receives && !self.saves_guids() && self.settled.had_others(status) {
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
        let status = match &pair {
            Some(pair) => {
                let opened = self.storage.open(guid).and_then(|mut mailbox| mailbox.status());
                let failed =
                    |error: StorageError| (format!("{}: {}", pair.name, chain(&error)), error.status());
                opened.map_err(failed)
            }
            None => Err((String::new(), 0)),
        };
        let known = self.state.0.get(&guid).copied();
        let usable = |status| known.is_none_or(|known| known.uid == 0 || !known.is_ahead_of(status));
        match (pair, status) {
            (Some(pair), Ok(status)) if usable(&status) => {
                let renewed = theirs.uid_validity != status.uid_validity.get();
                let told = self.settled.answer(&status, theirs.first_recent_uid);
                let first_recent = if renewed { status.uid_next.get() } else { told };
                let ours = self.counters(&status, first_recent);
                self.say(ours.clone());
                self.begin(pair, ours, *theirs)?;
            }
            (_, status) => {
                if let Err((text, code)) = status
                    && !text.is_empty()
                {
                    self.problem(text, code);
                }
                self.full_resync |= known.is_some_and(|known| known.uid > 0);
                let ignore = matches!(self.direction, Direction::OneWay { into: End::Initiator });
                self.say(items::Mailbox {
                    mailbox_guid: guid,
                    mailbox_ignore: ignore,
                    mailbox_lost: !ignore,
                    cache_fields: (!ignore).then(Vec::new),
                    ..items::Mailbox::default()
                });
            }
        }
        Ok(true)
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

    /// Both ends have told their counters: there is an exchange, or there is none.
    fn begin(
        &mut self,
        pair: Pair,
        ours: items::Mailbox,
        theirs: items::Mailbox,
    ) -> Result<(), SessionError> {
        let always = self.handshake.sync_type.as_deref().is_some_and(|kind| kind != b"c");
        self.progress.settled += 1;
        if !always && !lines::differ(&ours, &theirs) {
            let blank = LastCommon { uid_validity: ours.uid_validity, ..LastCommon::default() };
            self.next_state.0.insert(pair.guid, blank);
            self.compared.equal += 1;
            return Ok(());
        }
        let known = self.state.0.get(&pair.guid).copied().filter(|known| {
            self.handshake.sync_type.as_deref() == Some(b"s")
                && known.uid_validity == ours.uid_validity
                && known.uid > 0
        });
        let mailbox = self.storage.open(pair.guid).map_err(at(pair.name.to_string()))?;
        let terms = exchange::Terms {
            end: self.end,
            direction: self.direction,
            requests: self.handshake.send_mail_requests,
            attributes: self.minor >= 1,
            known,
            filter: (*self.filter).clone(),
            header_hash: self.header_hash(),
            left: self.settled.left(pair.guid),
        };
        let (name, attributes) = (pair.name.to_string(), self.attributes.as_ref());
        let exchange = Exchange::begin(name, mailbox, ours, theirs, terms, attributes)?;
        self.exchange = Some(Box::new(exchange));
        self.stage = Stage::Exchange;
        Ok(())
    }

    /// By what messages without GUIDs are compared: as the master says.
    fn header_hash(&self) -> HeaderHash {
        let named = self.handshake.hashed_headers.iter().flat_map(|list| &list.0);
        // Dovecot ends its list with a separator, which is no name.
        let mut names: Vec<Vec<u8>> = named.filter(|name| !name.is_empty()).cloned().collect();
        if names.is_empty() {
            names = start::HASHED_HEADERS.map(|name| name.as_bytes().to_vec()).to_vec();
        }
        HeaderHash { names, is_filtered: self.minor >= 4 }
    }

    fn hear(&mut self) -> Result<(), SessionError> {
        let Some(exchange) = &mut self.exchange else { return Ok(()) };
        while !exchange.has_read_all()
            && let Some(event) = self.inbox.pop_front()
        {
            match event {
                Event::Item(Item::Close) if exchange.told_attributes() => {
                    let text = "the other end gave up when it was told attributes, or later; its log says why (with \"attributes not enabled\": set \
                                mail_attribute_dict there, or here, to what only Dovecot knows, so that they stay where they are)";
                    return Err(SessionError::Link { status: 75, text: text.into() });
                }
                Event::Item(Item::Close) => return Err(gave_up()),
                event => exchange.take(event, &mut self.progress)?,
            }
        }
        self.change_attributes();
        Ok(())
    }

    fn work(&mut self) -> Result<bool, SessionError> {
        self.hear()?;
        let Some(exchange) = &mut self.exchange else { return Ok(false) };
        let worked = exchange.write(&mut self.out, &mut self.progress)?;
        if exchange.is_done() {
            if let Some(exchange) = self.exchange.take() {
                self.settle(*exchange);
            }
            self.stage = Stage::Mailboxes;
            return Ok(true);
        }
        Ok(worked)
    }

    fn settle(&mut self, exchange: Exchange) {
        let outcome = exchange.into_outcome();
        self.compared.merged += 1;
        self.report.notes.extend(outcome.notes);
        self.next_state.0.insert(outcome.guid, outcome.common);
        if let Some((status, first_recent)) = outcome.settled {
            self.settled.put(&status, first_recent);
        }
        if outcome.disturbed {
            self.counters.disturbed += 1;
        }
        for (text, status) in outcome.problems {
            self.problem(text, status);
        }
        let report = outcome.report;
        self.counters.saved += report.saved;
        self.counters.bytes += outcome.bytes;
        self.counters.flags += report.flags;
        self.counters.renumbered += report.renumbered;
        self.counters.expunged += report.expunged;
        self.report.remote.saved += report.sent;
        let counts = [report.saved, report.sent, report.flags, report.renumbered, report.expunged];
        if counts.iter().any(|count| *count > 0) {
            self.report.mailboxes.push(report);
        }
    }

    fn finish(&mut self) -> Result<bool, SessionError> {
        if self.end == End::Initiator && self.minor >= 3 {
            let Some(item) = self.next_item()? else { return Ok(false) };
            let Item::Finish(finish) = item else { return Err(unexpected(&item, "the end of the session")) };
            self.full_resync |= finish.require_full_resync;
            if let Some(error) = &finish.error {
                let text = String::from_utf8_lossy(error).escape_debug().to_string();
                self.problem(format!("the other end reports: {text}"), status_of(finish.mail_error));
            } else if finish.mail_error.is_some() {
                self.counters.disturbed += 1;
            }
        }
        self.delete()?;
        if self.end == End::Responder {
            let mut from = self.handshake.purge_remote.then_some(0);
            while let Some(piece) = from {
                let purged =
                    self.storage.purge(piece).map_err(at("all is synchronised, but cannot purge"))?;
                from = purged.and_then(|purged| purged.next);
            }
            let resync = self.full_resync;
            self.say(items::Finish { require_full_resync: resync, ..items::Finish::default() });
            self.say(Item::Close);
        }
        self.counters.mailboxes_changed = self.report.mailboxes.len() as u64;
        self.report.local = self.counters;
        self.report.compared = Some(self.compared);
        self.report.remote.bytes = self.progress.bytes_sent;
        self.report.mailboxes.sort_by(|a, b| a.name.cmp(&b.name));
        if self.wants_state && !self.full_resync {
            // What was not looked into stays as it was, what is gone goes.
            let exists = |guid: &_| self.plan.pairs.iter().any(|pair| pair.guid == *guid);
            let mut next = std::mem::take(&mut self.state);
            next.0.retain(|guid, _| exists(guid));
            next.0.append(&mut self.next_state.0);
            self.report.state = Some(next);
        }
        self.settled.write(&mut *self.storage);
        self.lock = None;
        self.stage = Stage::Done;
        Ok(true)
    }

    /// Mailboxes that only we have in a mirror go last.
    fn delete(&mut self) -> Result<(), SessionError> {
        for change in std::mem::take(&mut self.plan.deletes) {
            if !self.change_tree(&change)? {
                self.counters.disturbed += 1;
            }
        }
        Ok(())
    }

    fn change_tree(&mut self, change: &TreeChange) -> Result<bool, SessionError> {
        let (name, what) = match change {
            TreeChange::Create { name, .. } => (Some(name), "created".to_owned()),
            TreeChange::Rename { from, to, .. } => (Some(to), format!("renamed from {from}")),
            TreeChange::Delete { name, .. } => (Some(name), "deleted".to_owned()),
            TreeChange::Identify { name, .. } => (Some(name), "got the other end's GUID".to_owned()),
            _ => (None, String::new()),
        };
        let place = name.map_or_else(|| "the list of mailboxes".to_owned(), ToString::to_string);
        match self.storage.change_tree(change) {
            Ok(done) => {
                if let (true, TreeChange::Identify { name, guid, .. }) = (done, change) {
                    self.identified(name, *guid);
                }
                if let (true, Some(name)) = (done, name) {
                    self.report.notes.push(format!("{name}: {what}"));
                }
                Ok(done)
            }
            Err(error @ (StorageError::Impossible(_) | StorageError::NoMailbox(_))) => {
                self.problem(format!("{place}: {}", chain(&error)), error.status());
                self.counters.disturbed += 1;
                Ok(false)
            }
            Err(error) => Err(at(place)(error)),
        }
    }

    fn identified(&mut self, name: &MailboxName, guid: MailboxGuid) {
        let Some(status) = self.tree.get_mut(name).and_then(|node| node.mailbox.as_mut()) else { return };
        let before = std::mem::replace(&mut status.guid, guid);
        self.move_attributes(before, guid);
    }

    /// Whether our storage keeps the GUIDs of what it saves. An mbox cannot.
    fn saves_guids(&self) -> bool {
        !self.storage.location().starts_with("mbox:")
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

/// The exit status of what Dovecot calls a mail error.
fn status_of(mail_error: Option<u32>) -> u8 {
    match mail_error {
        Some(3 | 8 | 11 | 12) => 65,
        Some(4) => 64,
        Some(5) => 77,
        Some(6) => 73,
        Some(7) => 68,
        _ => 75,
    }
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
