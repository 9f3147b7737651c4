//! A world of two accounts, the users at work on them, and sessions that may be cut at any step. One seed settles all.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use dsync_model::{
    AttributeKey, AttributeValue, Filter, FlagSet, Flags, Keyword, MailboxGuid, MailboxName, MessageGuid,
    StoreId, Timestamp, Uid, UidValidity,
};
use dsync_session::proto::{Channel, Direction, Message, Options};
use dsync_session::storage::memory::{Account, MemoryStorage, StoredMailbox, StoredMessage, content_guid};
use dsync_session::storage::{Body, StorageError};
use dsync_session::{Brain, Input, Job, Output, Report, SessionError};

/// SplitMix64: small, and the same on every machine.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    /// A number below `sides`, which is not 0.
    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }
}

/// Two accounts and what their users did.
pub struct World {
    pub dice: Dice,
    pub ends: [MemoryStorage; 2],
    /// GUIDs of messages that some user expunged, or that lay in a mailbox that a user deleted.
    pub expunged: BTreeSet<MessageGuid>,
    /// GUIDs of messages that some user moved: moved at both ends, they are in both places.
    pub moved: BTreeSet<MessageGuid>,
    /// The ends at which they were moved.
    pub moves: BTreeMap<MessageGuid, BTreeSet<usize>>,
    /// GUIDs of mailboxes that some user deleted.
    pub deleted: BTreeSet<MailboxGuid>,
    /// Which message each (mailbox GUID, UIDVALIDITY, UID) named first, per end.
    pub names: [BTreeMap<(MailboxGuid, u32, Uid), MessageGuid>; 2],
    /// How often each message was delivered to a mailbox: at least once.
    pub copies: BTreeMap<MessageGuid, usize>,
    pub trace: Vec<String>,
    /// What both ends reported of the last session that came to its end.
    pub reports: [Report; 2],
    made: u64,
    drops_guids: bool,
    /// Users work on mail only, and leave mailboxes and subscriptions as they are.
    mail_only: bool,
}

/// What a session may meet.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// One chance in so many, at each step, that the link is cut or an end dies; 0: never.
    pub cut: u64,
    /// One chance in so many that a user does something at a step; 0: never.
    pub users: u64,
    /// One chance in so many that a session begins with a storage that will fail; 0: never.
    pub storage: u64,
    /// One chance in so many that a session begins with a mailbox that will fail when it is written; 0: never.
    pub mailbox: u64,
}

enum Wire {
    Message(Channel, Message),
    Body(Channel, Body),
}

impl World {
    /// Two accounts that hold an empty INBOX each, half the time of different identity.
    pub fn new(seed: u64) -> World {
        let mut dice = Dice::new(seed);
        let (one, two) = (MailboxGuid([0x11; 16]), MailboxGuid([0x22; 16]));
        let other = if dice.roll(2) == 0 { one } else { two };
        let validity = |n: u64| UidValidity::new(n as u32 + 1).expect("above 0");
        let ends = [
            MemoryStorage::new(StoreId([1; 16]), one, validity(100)),
            MemoryStorage::new(StoreId([2; 16]), other, validity(100 + dice.roll(2))),
        ];
        World {
            dice,
            ends,
            expunged: BTreeSet::new(),
            moved: BTreeSet::new(),
            moves: BTreeMap::new(),
            deleted: BTreeSet::new(),
            names: Default::default(),
            copies: BTreeMap::new(),
            trace: Vec::new(),
            reports: Default::default(),
            made: 0,
            drops_guids: false,
            mail_only: false,
        }
    }

    /// The same with two mailboxes that stay, so that nothing but users makes a message go or come back.
    pub fn of_mail_only(seed: u64) -> World {
        let world = World::new(seed);
        let archive = StoredMailbox::new(MailboxGuid([0x33; 16]), UidValidity::new(1).expect("above 0"));
        for end in &world.ends {
            let name = MailboxName::parse("Archive", '/').expect("valid");
            end.account().mailboxes.insert(name, archive.clone());
        }
        World { mail_only: true, ..world }
    }

    /// The same, with one or both ends that keep no GUIDs of messages.
    pub fn without_guids(seed: u64) -> World {
        let world = World::new(seed);
        for (end, storage) in world.ends.iter().enumerate() {
            storage.account().drops_guids = seed % 3 != 1 - end as u64;
        }
        World { drops_guids: true, ..world }
    }

    /// Some user does something at some end.
    pub fn user(&mut self) {
        let end = self.dice.roll(2) as usize;
        let what = self.dice.roll(if self.mail_only { 16 } else { 20 });
        let storage = self.ends[end].clone();
        let mut account = storage.account();
        let names: Vec<MailboxName> = account.mailboxes.keys().cloned().collect();
        let name = names[self.dice.roll(names.len() as u64) as usize].clone();
        let spare =
            MailboxName::parse(["Work", "Work/Old", "Lists", "Ärger"][self.dice.roll(4) as usize], '/')
                .expect("valid");
        let pick = |dice: &mut Dice, mailbox: &StoredMailbox| -> Option<Uid> {
            let count = mailbox.messages.len() as u64;
            if count == 0 { None } else { mailbox.messages.keys().nth(dice.roll(count) as usize).copied() }
        };
        self.made += 1;
        let drops_guids = account.drops_guids;
        let Some(mailbox) = account.mailboxes.get_mut(&name) else { return };
        let line = match what {
            6 if self.drops_guids && !mailbox.messages.is_empty() => {
                let known = self.made as usize % mailbox.messages.len();
                let Some(message) = mailbox.messages.values().nth(known).cloned() else { return };
                let name = name_of(&message);
                *self.copies.entry(name.clone()).or_default() += 1;
                let uid = mailbox.deliver(message);
                format!("{end}: deliver {name} once more as {uid:?}")
            }
            0..=6 => {
                let guid = MessageGuid::new(&format!("m{}.{end}", self.dice.roll(1000) * 1000 + self.made))
                    .expect("valid");
                let flags = FlagSet::system(if self.dice.roll(3) == 0 { Flags::SEEN } else { Flags::NONE });
                let header = if self.made.is_multiple_of(3) { "Subject" } else { "Message-ID" };
                let body: Vec<u8> = format!("{header}: {guid}\n\n").into_bytes();
                *self.copies.entry(guid.clone()).or_default() += 1;
                let uid = mailbox.deliver(StoredMessage {
                    guid: if drops_guids { content_guid(&body) } else { guid.clone() },
                    flags,
                    // Costs no dice, so that seeds stay what they are.
                    received: Some(Timestamp(self.made as i64)),
                    body: body.into(),
                });
                format!("{end}: deliver {guid} to {name} as {uid:?}")
            }
            7..=10 => {
                let Some(uid) = pick(&mut self.dice, mailbox) else { return };
                let (flag, flag_name) = Flags::NAMES[self.dice.roll(5) as usize];
                let Some(message) = mailbox.messages.get_mut(&uid) else { return };
                let had = message.flags.system.contains(flag);
                message.flags.system =
                    if had { message.flags.system.minus(flag) } else { message.flags.system.union(flag) };
                if self.dice.roll(3) == 0 {
                    message.flags.keywords.insert(Keyword::new("$Label1").expect("valid"));
                }
                format!("{end}: {name} {uid} {} {flag_name}", if had { "-" } else { "+" })
            }
            11..=13 => {
                let Some(uid) = pick(&mut self.dice, mailbox) else { return };
                let Some(message) = mailbox.messages.remove(&uid) else { return };
                self.expunged.insert(name_of(&message));
                format!("{end}: expunge {name} {uid} {}", name_of(&message))
            }
            14 | 15 => {
                let Some(uid) = pick(&mut self.dice, mailbox) else { return };
                let Some(message) = mailbox.messages.remove(&uid) else { return };
                let guid = name_of(&message);
                self.moved.insert(guid.clone());
                self.moves.entry(guid.clone()).or_default().insert(end);
                let to = names[self.dice.roll(names.len() as u64) as usize].clone();
                let landed = account.mailboxes.get_mut(&to).and_then(|mailbox| mailbox.deliver(message));
                format!("{end}: move {guid} from {name} {uid} to {to} {landed:?}")
            }
            16 => {
                if account.mailboxes.contains_key(&spare) {
                    return;
                }
                let guid = MailboxGuid([
                    self.dice.roll(256) as u8,
                    self.made as u8,
                    (self.made >> 8) as u8,
                    end as u8,
                    0,
                    0,
                    0,
                    0,
                    0,
                    0,
                    0,
                    0,
                    0,
                    0,
                    0,
                    1,
                ]);
                let validity = UidValidity::new(1000 + self.made as u32).expect("above 0");
                account.mailboxes.insert(spare.clone(), StoredMailbox::new(guid, validity));
                format!("{end}: create {spare} {guid}")
            }
            17 => {
                if name.is_inbox() || account.mailboxes.contains_key(&spare) {
                    return;
                }
                let Some(mailbox) = account.mailboxes.remove(&name) else { return };
                account.mailboxes.insert(spare.clone(), mailbox);
                format!("{end}: rename {name} to {spare}")
            }
            18 => {
                if name.is_inbox() {
                    return;
                }
                let Some(mailbox) = account.mailboxes.remove(&name) else { return };
                self.deleted.insert(mailbox.guid);
                // If the other end had mail that this one never saw, the mailbox comes back with its old UIDVALIDITY, and
                // UIDs of messages that went with it may be used again here.
                self.names[end].retain(|(guid, ..), _| *guid != mailbox.guid);
                self.expunged.extend(mailbox.messages.values().map(name_of));
                format!("{end}: delete {name}")
            }
            _ => {
                let comment = AttributeKey { key: "comment".into(), ..AttributeKey::first_of(mailbox.guid) };
                let value = AttributeValue::Bytes(self.made.to_string().into_bytes());
                let added = account.subscriptions.insert(name.clone());
                // Annotated and subscribed in one: costs no dice.
                let removed = !added && self.made.is_multiple_of(3);
                account.attribute_log.insert(comment.clone(), (removed, self.made as u32));
                match !removed {
                    true => account.attributes.insert(comment, value),
                    false => account.attributes.remove(&comment),
                };
                if !added {
                    account.subscriptions.remove(&name);
                }
                format!("{end}: {} {name}", if added { "subscribe" } else { "unsubscribe" })
            }
        };
        drop(account);
        self.trace.push(line);
        self.remember();
    }

    /// Notes which message each UID names, and complains of one that names another than before.
    pub fn remember(&mut self) -> Option<String> {
        let mut complaint = None;
        for (end, names) in self.names.iter_mut().enumerate() {
            for (name, mailbox) in &self.ends[end].account().mailboxes {
                for (uid, message) in &mailbox.messages {
                    let key = (mailbox.guid, mailbox.uid_validity.get(), *uid);
                    let first = names.entry(key).or_insert_with(|| name_of(message));
                    if *first != name_of(message) {
                        let now = name_of(message);
                        complaint = Some(format!("end {end}: {name} {uid} was {first}, is {now}"));
                    }
                }
            }
        }
        complaint
    }

    /// Runs one session with faults; what went wrong comes back.
    pub fn sync(&mut self, direction: Direction, faults: Faults) -> Result<u8, SessionError> {
        self.sync_with(direction, Options::default(), faults)
    }

    /// Options with some filter.
    pub fn some_filter(&mut self) -> Options {
        let made = self.made.max(1);
        let mut filter = Filter::default();
        match self.dice.roll(5) {
            0 => filter.since = Some(Timestamp(self.dice.roll(made) as i64)),
            1 => filter.until = Some(Timestamp(self.dice.roll(made) as i64)),
            2 => filter.with = FlagSet::system(Flags::SEEN),
            3 => filter.without = FlagSet::system(Flags::FLAGGED.union(Flags::SEEN)),
            _ => filter.size_max = Some(17 + self.dice.roll(4)),
        }
        Options { filter: Box::new(filter), ..Options::default() }
    }

    /// The same with options.
    pub fn sync_with(
        &mut self,
        direction: Direction,
        options: Options,
        faults: Faults,
    ) -> Result<u8, SessionError> {
        self.trace.push(format!("sync {direction:?} {:?}", options.filter));
        let job = Job { direction, options };
        if faults.storage > 0 && self.dice.roll(faults.storage) == 0 {
            let end = self.dice.roll(2) as usize;
            let calls = self.dice.roll(60);
            self.ends[end].account().calls_left = Some(calls);
            self.trace.push(format!("{end}: fails after {calls} calls"));
        }
        if faults.mailbox > 0 && self.dice.roll(faults.mailbox) == 0 {
            let end = self.dice.roll(2) as usize;
            let mut guids = BTreeSet::new();
            for storage in &self.ends {
                guids.extend(storage.account().mailboxes.values().map(|mailbox| mailbox.guid));
            }
            let nth = self.dice.roll(guids.len() as u64) as usize;
            let (guid, writes) = (guids.into_iter().nth(nth).expect("INBOX is there"), self.dice.roll(6));
            self.ends[end].account().failing.insert(guid, writes);
            self.trace.push(format!("{end}: mailbox {guid} fails after {writes} writes"));
        }
        let brains = [
            Brain::initiator(Box::new(self.ends[0].clone()), job),
            Brain::responder(Box::new(self.ends[1].clone()), Duration::ZERO),
        ];
        let outcome = self.run(brains, faults);
        self.ends.iter().for_each(|end| {
            let mut account = end.account();
            account.calls_left = None;
            account.failing.clear();
        });
        self.trace.push(match &outcome {
            Ok(status) => format!("  status {status}"),
            Err(error) => format!("  {error}"),
        });
        outcome
    }

    fn run(&mut self, mut brains: [Brain; 2], faults: Faults) -> Result<u8, SessionError> {
        let mut wires: [std::collections::VecDeque<Wire>; 2] = Default::default();
        let mut reports = [None, None];
        let mut idle = [false; 2];
        for _ in 0..200_000 {
            if reports.iter().all(Option::is_some) {
                self.reports = reports.map(Option::unwrap_or_default);
                return Ok(self.reports.iter().map(Report::status).max().unwrap_or(0));
            }
            if faults.cut > 0 && self.dice.roll(faults.cut) == 0 {
                return Err(SessionError::Link { status: 75, text: "cut".into() });
            }
            if faults.users > 0 && self.dice.roll(faults.users) == 0 {
                self.user();
            }
            let end = self.dice.roll(2) as usize;
            if self.dice.roll(2) == 0 && reports[end].is_none() {
                idle[end] = false;
                match brains[end].poll()? {
                    Output::Message(channel, message) => {
                        wires[1 - end].push_back(Wire::Message(channel, message))
                    }
                    Output::Body(channel, body) => wires[1 - end].push_back(Wire::Body(channel, body)),
                    Output::Working => {}
                    Output::Idle => idle[end] = true,
                    Output::Done(report) => reports[end] = Some(*report),
                }
            } else if let Some(wire) = wires[end].pop_front() {
                idle[end] = false;
                self.deliver(&mut brains[end], wire)?;
            }
            let stuck = (0..2).all(|end| (idle[end] || reports[end].is_some()) && wires[end].is_empty());
            if stuck && reports.iter().any(Option::is_none) {
                return Err(SessionError::Peer(format!("and we wait for each other: {brains:?}")));
            }
        }
        Err(SessionError::Peer("never comes to an end".into()))
    }

    fn deliver(&mut self, brain: &mut Brain, wire: Wire) -> Result<(), SessionError> {
        match wire {
            Wire::Message(channel, message) => brain.handle(Input::Message(channel, message)),
            Wire::Body(channel, body) if self.dice.roll(2) == 0 => {
                brain.handle(Input::WholeBody(channel, body))
            }
            Wire::Body(channel, mut body) => {
                let mut bytes = Vec::new();
                let read = std::io::Read::read_to_end(&mut body.reader, &mut bytes);
                read.map_err(StorageError::io("memory:"))
                    .map_err(|source| SessionError::Storage { context: "body".into(), source })?;
                for piece in bytes.chunks(7) {
                    brain.handle(Input::Body(channel, piece))?;
                }
                brain.handle(Input::BodyEnd(channel))
            }
        }
    }

    /// A copy of one end's account, with names that messages keep wherever they are in place of their GUIDs.
    pub fn snapshot(&self, end: usize) -> Account {
        let mut account = self.ends[end].account().clone();
        let mailboxes = account.mailboxes.values_mut();
        mailboxes.flat_map(|mailbox| mailbox.messages.values_mut()).for_each(|m| m.guid = name_of(m));
        account
    }
}

/// The name that a message was delivered with: it stands in its only header.
fn name_of(message: &StoredMessage) -> MessageGuid {
    let text = String::from_utf8_lossy(&message.body);
    let name = text.split_once(": ").and_then(|(_, name)| MessageGuid::new(name.trim_end()));
    name.expect("every message of a world has a header")
}
