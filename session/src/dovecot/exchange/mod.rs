//! One mailbox: each end's lists in their fixed order, the plan, the bodies, and what both agree on in the end.
//!
//! Both directions run at once: what comes in is always taken, what goes out waits for what the rules say it must wait for. Here are
//! the beginning and what comes in; `opened` is a mailbox before that, `deciding` has the plan, `hashing` what is compared without GUIDs,
//! `gone` what was expunged there, `named` an mbox with the peer's GUIDs, `sending` what goes out, `receiving` the bodies and the end,
//! `outcome` what came of it, `sparing` what is done about an error of our mailbox, `apart` what the peer may lack since a session broke off.

mod apart;
mod deciding;
mod gone;
mod hashing;
mod named;
mod opened;
mod outcome;
mod receiving;
mod sending;
mod sparing;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use dsync_merge::dovecot::Save;
use dsync_merge::{Direction, End};
use dsync_model::{
    AttributeChanges, AttributeKey, AttributeList, AttributeRecord, Changes, Filter, LastCommon, MailboxGuid,
    MailboxStatus, MessageAction, MessageChange, MessageGuid, Since, Uid, UidSet, UidValidity,
};
use dsync_proto::dovecot::codec::Event;
use dsync_proto::dovecot::items::{self, Item};
use dsync_storage::{HeaderHash, Mailbox};

use self::hashing::Hashing;
use self::named::Named;
pub(super) use self::opened::Opened;
use super::attributes::Attributes;
use super::guids::Known;
use super::settled::Left;
use super::{at, filtering, lines, unexpected};
use crate::{MailboxReport, Progress, SessionError};

/// Most entries that a peer may list, in each list.
const ENTRIES_MAX: usize = 20_000_000;

/// What is known before the exchange begins.
#[derive(Clone)]
pub(super) struct Terms {
    pub end: End,
    pub direction: Direction,
    /// The peer says how it stands without waiting for us.
    pub peer_is_first: bool,
    /// Bodies are asked for; else all that is listed is sent.
    pub requests: bool,
    /// Attributes are listed.
    pub attributes: bool,
    /// What the state says; `None`: the lists are complete.
    pub known: Option<LastCommon>,
    /// What a message must be to be saved where it is missing.
    pub filter: Filter,
    /// By what messages are compared if one end keeps no GUIDs.
    pub header_hash: HeaderHash,
    /// What both ends had when they were last found equal.
    pub left: Option<Left>,
    /// The last session with this mailbox did not come to its end; up to this UID both ends agreed before, as far as that is known.
    pub unfinished: Option<u32>,
    /// Where our end keeps no GUIDs: what the peer calls its messages.
    pub guids: Option<Known>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum List {
    Attributes,
    Changes,
    Requests,
    Mails,
    State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Both,
    Sender,
    Receiver,
}

impl Part {
    fn of(end: End, direction: Direction) -> Part {
        match direction.source() {
            None => Part::Both,
            Some(source) if source == end => Part::Sender,
            Some(_) => Part::Receiver,
        }
    }

    /// What this part says, in its order.
    fn lists(self, terms: &Terms) -> VecDeque<List> {
        let all: &[List] = match self {
            Part::Both => &[List::Attributes, List::Changes, List::Requests, List::Mails, List::State],
            Part::Sender => &[List::Attributes, List::Changes, List::Mails, List::State],
            Part::Receiver => &[List::Requests, List::State],
        };
        let said = |list: &&List| match list {
            List::Attributes => terms.attributes,
            List::Requests => terms.requests,
            _ => true,
        };
        all.iter().filter(said).copied().collect()
    }
}

/// What this end does, whoever planned it.
#[derive(Default)]
struct Plan {
    saves: Vec<Save>,
    expunges: Vec<MessageAction>,
    /// Up to here the lists agree.
    common: u32,
    last_common: u32,
    uid_next_min: u32,
    modseq_min: u64,
}

/// A body that is coming in.
enum Incoming {
    /// For these saves; the first one takes it.
    Wanted(Vec<Save>),
    /// Of nothing that we asked for.
    Other,
}

/// One mailbox under way.
pub(super) struct Exchange {
    name: String,
    mailbox: Box<dyn Mailbox>,
    ours: items::Mailbox,
    theirs: items::Mailbox,
    terms: Terms,
    part: Part,
    status: MailboxStatus,
    attributes: Attributes,
    /// Where one end keeps no GUIDs.
    hashing: Option<Hashing>,
    /// What we say, without what came since we told our counters.
    own: Vec<MessageChange>,
    told: usize,
    reading: VecDeque<List>,
    writing: VecDeque<List>,
    peer: Vec<MessageChange>,
    /// Of the peer's messages those that the filter keeps back.
    kept_back: UidSet,
    /// GUIDs that are no text as we have it, as the peer spells them.
    spelled: BTreeMap<Uid, Vec<u8>>,
    uid_validity: Option<UidValidity>,
    plan: Option<Plan>,
    requests: VecDeque<items::Request>,
    /// By [`receiving::key`].
    wanted: BTreeMap<Vec<u8>, Vec<Save>>,
    incoming: Option<Incoming>,
    /// Saves of a message that is here, or will be.
    copies: Vec<(MessageGuid, Save, Uid)>,
    unsaved: (u64, u64),
    /// The highest UID of what came and is not durable yet.
    unsaved_max: Option<Uid>,
    /// UIDs that are still to come, bodies and copies.
    to_come: BTreeSet<Uid>,
    /// The lowest UID at which the ends are not yet alike, where that depends on what the peer does.
    unlike_from: Option<Uid>,
    /// Actions that wait for saves below the UIDs that they give.
    waiting: Vec<MessageAction>,
    /// UIDs that messages of our list get.
    moved: BTreeMap<Uid, Uid>,
    asked: VecDeque<items::Request>,
    /// A message of ours that could just now not be read, and the line that was to come before its body.
    unread: Option<(Uid, items::Mail)>,
    /// The peer waits for our list, as we do for its own.
    goes_first: bool,
    /// Something failed in our mailbox: what the peer is still owed is said, and nothing is done here.
    gave_up: bool,
    listed: BTreeSet<MessageGuid>,
    not_kept: Vec<Uid>,
    disturbed: bool,
    /// What our mailbox was like when all was done.
    left: Option<MailboxStatus>,
    said: Option<items::State>,
    heard: Option<items::State>,
    problems: Vec<(String, u8)>,
    notes: Vec<String>,
    report: MailboxReport,
    bytes: u64,
}

impl Exchange {
    /// Begins, both ends having told their counters.
    pub fn begin(
        name: String,
        opened: Opened,
        ours: items::Mailbox,
        theirs: items::Mailbox,
        terms: Terms,
        attributes: Option<&AttributeList>,
    ) -> Result<Exchange, SessionError> {
        let part = Part::of(terms.end, terms.direction);
        let hashing = Hashing::between(&name, &ours, &theirs, (part, terms.direction), &terms.header_hash)?;
        let Opened { mut mailbox, changes: Changes { status, mut list }, attribute_log, .. } = opened;
        if let Some(known) = terms.guids.as_ref().filter(|_| hashing.is_none()) {
            mailbox = Box::new(Named::new(mailbox, ours.mailbox_guid, known.clone()));
            list = mailbox.changes(Since::All).map_err(at(name.clone()))?.list;
        }
        // What came since we told our counters is not mentioned: the peer reckons with the counters.
        list.retain(|change| change.uid().get() < ours.uid_next);
        let listed = list.iter().filter_map(|change| match change {
            MessageChange::Save { guid, .. } => Some(guid.clone()),
            MessageChange::Flags { .. } | MessageChange::Expunge { .. } => None,
        });
        let peer_part = Part::of(terms.end.other(), terms.direction);
        let uid_validity = uid_validity(&ours, &theirs, part);
        let attributes = match attributes {
            None => Attributes::default(),
            Some(all) => {
                let log = attribute_log;
                let last_common = terms.known.map(|known| known.modseq);
                Attributes::new(ours.mailbox_guid, all, log, last_common)
            }
        };
        Ok(Exchange {
            hashing,
            attributes,
            listed: listed.collect(),
            report: MailboxReport { name: name.clone(), ..MailboxReport::default() },
            name,
            mailbox,
            reading: peer_part.lists(&terms),
            writing: part.lists(&terms),
            ours,
            theirs,
            terms,
            part,
            status,
            own: list,
            told: 0,
            peer: Vec::new(),
            kept_back: UidSet::new(),
            spelled: BTreeMap::new(),
            uid_validity,
            plan: None,
            requests: VecDeque::new(),
            wanted: BTreeMap::new(),
            incoming: None,
            copies: Vec::new(),
            unsaved: (0, 0),
            unsaved_max: None,
            to_come: BTreeSet::new(),
            unlike_from: None,
            waiting: Vec::new(),
            moved: BTreeMap::new(),
            asked: VecDeque::new(),
            unread: None,
            goes_first: false,
            gave_up: false,
            not_kept: Vec::new(),
            disturbed: false,
            left: None,
            said: None,
            heard: None,
            problems: Vec::new(),
            notes: Vec::new(),
            bytes: 0,
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// What is to be changed here, once the peer has told all its attributes; told once.
    pub fn attribute_changes(&mut self) -> AttributeChanges {
        let told = !self.reading.contains(&List::Attributes);
        if told && !self.gave_up { self.attributes.changes() } else { AttributeChanges::new() }
    }

    /// Notes in the mailbox's log that its attributes were changed.
    pub fn log_attributes(&mut self, changes: &AttributeChanges) -> dsync_storage::Result<()> {
        let record = |(key, value): (&AttributeKey, &Option<Vec<u8>>)| {
            (key.clone(), AttributeRecord::now(value.as_ref()))
        };
        self.mailbox.log_attributes(&changes.iter().map(record).collect())
    }

    /// Whether the peer was told attributes, which it may not be able to keep.
    pub fn told_attributes(&self) -> bool {
        self.attributes.were_told()
    }

    pub fn mailbox_guid(&self) -> MailboxGuid {
        self.ours.mailbox_guid
    }

    pub fn has_read_all(&self) -> bool {
        self.reading.is_empty()
    }

    pub fn is_done(&self) -> bool {
        self.reading.is_empty() && self.writing.is_empty()
    }

    /// Takes one event of the peer.
    pub fn take(&mut self, event: Event, progress: &mut Progress) -> Result<(), SessionError> {
        let item = match event {
            Event::Item(item) => item,
            Event::Body(piece) => return self.piece(&piece, progress),
            Event::BodyEnd => return self.end_body(progress),
            Event::Version(_) => return Err(SessionError::Peer("names its version twice".into())),
        };
        match (self.reading.front(), item) {
            (Some(List::Attributes), Item::Attribute(line)) => {
                self.attributes.take(self.ours.mailbox_guid, *line)?;
            }
            (Some(List::Changes), Item::Change(mut line)) => {
                self.take_hash(&mut line)?;
                let change = lines::read_change(&line)?;
                if self.peer.len() >= ENTRIES_MAX {
                    return Err(SessionError::Peer(format!(
                        "lists more than {ENTRIES_MAX} messages in {}",
                        self.name
                    )));
                }
                if let (MessageChange::Save { guid, uid, .. }, Some(spelled)) = (&change, &line.guid)
                    && guid.as_str().as_bytes() != &spelled[..]
                {
                    self.spelled.insert(*uid, spelled.clone());
                }
                if let MessageChange::Save { uid, flags, .. } = &change
                    && !filtering::passes(&self.terms.filter, &line, &flags.current)?
                {
                    self.kept_back.insert(uid.get());
                }
                self.peer.push(change);
            }
            (Some(List::Requests), Item::Request(request)) => {
                if self.asked.len() >= ENTRIES_MAX {
                    return Err(SessionError::Peer(format!(
                        "asks for more than {ENTRIES_MAX} messages of {}",
                        self.name
                    )));
                }
                progress.asked += 1;
                self.asked.push_back(*request);
            }
            (Some(List::Mails), Item::Mail(mail)) => self.begin_body(*mail)?,
            (Some(List::State), Item::State(state)) => {
                if state.mailbox_guid != self.ours.mailbox_guid {
                    return Err(SessionError::Peer("ends another mailbox than the one it began".into()));
                }
                self.disturbed |= state.changes_during_sync;
                self.heard = Some(*state);
                self.reading.pop_front();
            }
            (Some(List::State) | None, item) => return Err(unexpected(&item, "the state of a mailbox")),
            (Some(list), Item::End) => {
                let list = *list;
                self.reading.pop_front();
                match list {
                    List::Changes if self.gave_up => {}
                    List::Changes => self.decide(progress)?,
                    List::Mails => self.all_came()?,
                    // A Dovecot asks in no order, and keeps what it has when it is cut off. What it lacks below that counts as expunged there in the
                    // next run, at both ends: so whatever it is to have comes by the UIDs that it gets.
                    List::Requests => {
                        let moved = &self.moved;
                        let goal = |uid: Uid| moved.get(&uid).copied().unwrap_or(uid);
                        let asked = self.asked.make_contiguous();
                        asked.sort_by_key(|request| request.uid.and_then(Uid::new).map(goal));
                    }
                    List::Attributes | List::State => {}
                }
            }
            (Some(list), item) => {
                return Err(SessionError::Peer(format!("sends {:?} in the list of {list:?}", item.tag())));
            }
        }
        Ok(())
    }
}

/// The UIDVALIDITY to take over: that of the end with more messages, of equal ones the higher; one way that of the source.
fn uid_validity(ours: &items::Mailbox, theirs: &items::Mailbox, part: Part) -> Option<UidValidity> {
    let rank = |line: &items::Mailbox| (line.messages_count, line.uid_validity);
    let taken = match part {
        Part::Both => rank(theirs) > rank(ours),
        Part::Receiver => true,
        Part::Sender => false,
    };
    let other = theirs.uid_validity != ours.uid_validity;
    UidValidity::new(theirs.uid_validity).filter(|_| taken && other)
}
