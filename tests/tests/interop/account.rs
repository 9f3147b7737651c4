//! The account of an end of a recorded session, as a storage: in memory, with what its logs told (modseqs, flag changes, expunges, times of names), which is
//! taken from the end's own lines.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use dsync_model::{
    AttributeChange, AttributeChanges, AttributeKey, AttributeList, AttributeLog, AttributeRecords,
    AttributeScope, AttributeValue, Changes, Digest, FlagDelta, FlagSet, Flags, Keyword, MailboxGuid,
    MailboxName, MailboxStatus, MailboxTree, MessageAction, MessageChange, MessageGuid, ModSeq, NameHash,
    NewMessage, Since, StoreId, Timestamp, TreeChange, TreeLog, Uid, UidSet, UidValidity,
};
use dsync_proto::dovecot::items::{self, Item};
use dsync_storage::memory::{Account, MemoryStorage, StoredMailbox, StoredMessage};
use dsync_storage::{
    Body, Capabilities, Committed, Goal, Mailbox, MailboxProblem, Result, Storage, StoreLock, Support,
};

use crate::recorded::{Accounts, Said};

/// The lines of each mailbox that stand behind its counters.
fn by_mailbox(stream: &[Said]) -> impl Iterator<Item = (MailboxGuid, &Said)> {
    let mut current = None;
    stream.iter().filter_map(move |said| {
        if let Item::Mailbox(line) = &said.item {
            current = Some(line.mailbox_guid);
        }
        Some((current?, said))
    })
}

/// What is told of a mailbox beside its messages.
#[derive(Default)]
struct Logs {
    highest_modseq: u64,
    modseqs: BTreeMap<Uid, ModSeq>,
    flags: BTreeMap<Uid, FlagDelta>,
    expunged: BTreeMap<Uid, Option<MessageGuid>>,
    attributes: Vec<AttributeChange>,
}

struct Known {
    mailboxes: BTreeMap<MailboxGuid, Logs>,
    /// When names were renamed or created, and when subscribed.
    times: BTreeMap<MailboxName, [Option<Timestamp>; 2]>,
    tree_log: TreeLog,
}

/// An account as an end of a recorded session had it.
#[derive(Clone)]
pub struct Recorded {
    location: &'static str,
    memory: MemoryStorage,
    known: Arc<Mutex<Known>>,
}

impl Recorded {
    /// The account before, of the end that said this.
    pub fn new(accounts: &Accounts, stream: &[Said]) -> Recorded {
        let inbox = MailboxGuid([7; 16]);
        let memory =
            MemoryStorage::new(StoreId([1; 16]), inbox, UidValidity::new(1_700_000_000).expect("is one"));
        let tree_log = TreeLog { separator: '/', ..TreeLog::default() };
        let mut known = Known { mailboxes: BTreeMap::new(), times: BTreeMap::new(), tree_log };
        {
            let account = &mut *memory.account();
            for said in stream {
                found(account, &mut known, &said.item);
            }
            fill(account, &mut known, accounts);
            for (guid, said) in by_mailbox(stream) {
                known.tell(account, guid, said);
            }
        }
        for said in stream {
            known.tell_name(&said.item);
        }
        let keeps_guids = |said: &Said| match &said.item {
            Item::Mailbox(line) => line.have_save_guids || line.mailbox_lost || line.mailbox_ignore,
            _ => true,
        };
        let location = if stream.iter().all(keeps_guids) { "memory:" } else { "mbox:" };
        Recorded { location, memory, known: Arc::new(Mutex::new(known)) }
    }

    /// What is there, in lines that can be compared with [`Accounts::after`].
    pub fn content(&self, separator: char) -> Vec<String> {
        let account = self.memory.account();
        let mut lines: Vec<String> = account
            .subscriptions
            .iter()
            .map(|name| format!("subscribed\t{}", name.join(separator)))
            .collect();
        for (name, mailbox) in &account.mailboxes {
            let name = name.join(separator);
            lines.push(format!(
                "mailbox\t{name}\t{}\t{}\t{}",
                mailbox.guid, mailbox.uid_validity, mailbox.uid_next
            ));
            let mail = |(uid, mail): (&Uid, &StoredMessage)| {
                format!("mail\t{name}\t{uid}\t{}\t{}", mail.guid.as_str(), words(&mail.flags))
            };
            lines.extend(mailbox.messages.iter().map(mail));
        }
        lines.sort();
        lines
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().expect("no panic")
    }
}

fn number<T: std::str::FromStr>(word: &str) -> T {
    word.parse().ok().expect("a number")
}

/// A flag set as doveadm writes it.
fn flag_set(words: &str) -> FlagSet {
    let mut set = FlagSet::default();
    for word in words.split_whitespace() {
        match NAMES.iter().find(|(name, _)| *name == word) {
            Some((_, flag)) => set.system = set.system.union(*flag),
            None => drop(set.keywords.insert(Keyword::new(word).expect("a keyword"))),
        }
    }
    set
}

const NAMES: [(&str, Flags); 5] = [
    ("\\Answered", Flags::ANSWERED),
    ("\\Flagged", Flags::FLAGGED),
    ("\\Deleted", Flags::DELETED),
    ("\\Seen", Flags::SEEN),
    ("\\Draft", Flags::DRAFT),
];

fn words(flags: &FlagSet) -> String {
    let system = NAMES.iter().filter(|(_, flag)| flags.system.contains(*flag)).map(|(name, _)| *name);
    let mut all: Vec<&str> = system.chain(flags.keywords.iter().map(Keyword::as_str)).collect();
    all.sort_unstable();
    all.join(" ")
}

/// Makes a mailbox that the end told of: doveadm listed none where the namespace has a prefix.
fn found(account: &mut Account, known: &mut Known, item: &Item) {
    let Item::Node(line) = item else { return };
    let parts: Vec<_> = line.name.0.iter().map(|part| String::from_utf8_lossy(part)).collect();
    let (Ok(name), Some(guid)) = (MailboxName::new(&parts), line.mailbox_guid) else { return };
    let uid_validity = line.uid_validity.and_then(UidValidity::new).expect("is one");
    let uid_next = line.uid_next.and_then(Uid::new).expect("a UID");
    let stored = StoredMailbox { uid_next, ..StoredMailbox::new(guid, uid_validity) };
    account.mailboxes.insert(name, stored);
    known.mailboxes.insert(guid, Logs::default());
}

fn fill(account: &mut Account, known: &mut Known, accounts: &Accounts) {
    let name = |text: &str| MailboxName::parse(text, accounts.separator).expect("a name");
    for line in &accounts.before {
        match line.split('\t').collect::<Vec<_>>()[..] {
            ["mailbox", mailbox, guid, uid_validity, uid_next, modseq] => {
                let guid = MailboxGuid::parse(guid).expect("a GUID");
                let stored = StoredMailbox {
                    uid_next: Uid::new(number(uid_next)).expect("a UID"),
                    ..StoredMailbox::new(guid, UidValidity::new(number(uid_validity)).expect("is one"))
                };
                account.mailboxes.insert(name(mailbox), stored);
                known.mailboxes.insert(guid, Logs { highest_modseq: number(modseq), ..Logs::default() });
            }
            ["subscribed", mailbox] => drop(account.subscriptions.insert(name(mailbox))),
            ["mail", mailbox, uid, guid, modseq, flags] => {
                let uid = Uid::new(number(uid)).expect("a UID");
                let stored = account.mailboxes.get_mut(&name(mailbox)).expect("is there");
                let message = StoredMessage {
                    guid: MessageGuid::of_bytes(guid.as_bytes()),
                    flags: flag_set(flags),
                    received: None,
                    // Nobody asked for it, if the end itself did not send it.
                    body: Arc::from(&b"never sent"[..]),
                };
                stored.messages.insert(uid, message);
                let logs = known.mailboxes.get_mut(&stored.guid).expect("is there");
                logs.modseqs.insert(uid, ModSeq::new(number(modseq)).expect("in range"));
            }
            _ => panic!("{line}"),
        }
    }
}

impl Known {
    /// Takes what the end's own line tells of a mailbox.
    fn tell(&mut self, account: &mut Account, guid: MailboxGuid, said: &Said) {
        let Some(logs) = self.mailboxes.get_mut(&guid) else { return };
        match &said.item {
            Item::Change(line) if line.kind == b"e" => {
                let gone = line.guid.as_deref().map(MessageGuid::of_bytes);
                logs.expunged.insert(Uid::new(line.uid).expect("a UID"), gone);
            }
            Item::Change(line) => {
                logs.flags.insert(Uid::new(line.uid).expect("a UID"), delta(line));
            }
            Item::Mail(line) => {
                let Some(body) = &said.body else { return };
                let mut messages =
                    account.mailboxes.values_mut().flat_map(|mailbox| mailbox.messages.values_mut());
                let of_line = |message: &&mut StoredMessage| {
                    line.guid.as_deref().is_some_and(|guid| message.guid == MessageGuid::of_bytes(guid))
                };
                while let Some(message) = messages.find(of_line) {
                    message.body = body[..].into();
                    message.received = line.received_date.map(|at| Timestamp(number(&at.to_string())));
                }
            }
            Item::Attribute(line) => {
                let scope = if line.kind == b"p" { AttributeScope::Private } else { AttributeScope::Shared };
                let key = String::from_utf8(line.key.clone()).expect("text");
                if let Some(value) = &line.value {
                    let key = AttributeKey { mailbox: guid, scope, key: key.clone() };
                    account.attributes.insert(key, AttributeValue::Bytes(value.clone()));
                }
                let modseq = ModSeq::new(line.modseq.unwrap_or(0)).expect("in range");
                let at = line.last_change.and_then(|at| u32::try_from(at).ok()).unwrap_or(0);
                logs.attributes.push(AttributeChange { scope, key, removed: line.deleted, at, modseq });
            }
            _ => {}
        }
    }

    /// Takes what the end's own line tells of names.
    fn tell_name(&mut self, item: &Item) {
        let time = |secs: Option<u64>| secs.map(|secs| Timestamp(number(&secs.to_string())));
        match item {
            Item::Node(line) => {
                let parts: Vec<_> = line.name.0.iter().map(|part| String::from_utf8_lossy(part)).collect();
                let Ok(name) = MailboxName::new(&parts) else { return };
                let subscription = time(line.last_subscription_change);
                if let (false, Some(at)) = (line.subscribed, subscription) {
                    self.tree_log.unsubscribed.insert(NameHash::of(&name, self.tree_log.separator), at);
                }
                self.times.insert(name, [time(line.last_renamed_or_created), subscription]);
            }
            Item::Deletes(line) => {
                self.tree_log.separator = char::from(line.hierarchy_sep[0]);
                let pairs = |text: &Option<String>| -> Vec<(MailboxGuid, Timestamp)> {
                    let words: Vec<&str> = text.as_deref().unwrap_or_default().split(' ').collect();
                    let pair =
                        |pair: &[&str]| Some((MailboxGuid::parse(pair[0])?, Timestamp(number(pair[1]))));
                    words.chunks_exact(2).filter_map(pair).collect()
                };
                self.tree_log.deleted.extend(pairs(&line.mailboxes));
                let unsubscribed = pairs(&line.unsubscribes).into_iter();
                self.tree_log.unsubscribed.extend(unsubscribed.map(|(hash, at)| (NameHash(hash.0), at)));
            }
            _ => {}
        }
    }
}

/// What a line tells of flags.
fn delta(line: &items::Change) -> FlagDelta {
    let system = |hex: Option<items::Hex>| {
        Flags::from_bits((hex.map_or(0, |hex| hex.0) & 0x1f) as u8).expect("the five flags")
    };
    let mut delta = FlagDelta::default();
    delta.current.system = system(line.final_flags);
    delta.added.system = system(line.add_flags).intersection(delta.current.system);
    delta.removed.system = system(line.remove_flags).minus(delta.current.system);
    for change in line.keyword_changes.iter().flat_map(|list| &list.0) {
        let keyword = Keyword::new(std::str::from_utf8(&change[1..]).expect("text")).expect("a keyword");
        match change[0] {
            b'=' => drop(delta.current.keywords.insert(keyword)),
            b'&' => {
                delta.current.keywords.insert(keyword.clone());
                delta.added.keywords.insert(keyword);
            }
            b'-' => drop(delta.removed.keywords.insert(keyword)),
            _ => {}
        }
    }
    delta
}

impl Storage for Recorded {
    fn location(&self) -> String {
        self.location.into()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { modseq: Support::Kept, log: true, directories: true, ..self.memory.capabilities() }
    }

    fn store_id(&mut self) -> Result<StoreId> {
        self.memory.store_id()
    }

    fn lock(&mut self, wait: Duration) -> Result<StoreLock> {
        self.memory.lock(wait)
    }

    fn tree(&mut self) -> Result<(MailboxTree, Vec<MailboxProblem>)> {
        let (mut tree, problems) = self.memory.tree()?;
        let known = self.known();
        for (name, node) in &mut tree {
            if let Some([renamed, subscribed]) = known.times.get(name) {
                (node.renamed, node.subscription_changed) = (*renamed, *subscribed);
            }
            if let Some(status) = &mut node.mailbox {
                known.complete(status);
            }
        }
        Ok((tree, problems))
    }

    fn tree_log(&self) -> TreeLog {
        self.known().tree_log.clone()
    }

    fn change_tree(&mut self, change: &TreeChange) -> Result<bool> {
        let before = match change {
            TreeChange::Identify { name, .. } => self.memory.account().mailboxes.get(name).map(|m| m.guid),
            _ => None,
        };
        let done = self.memory.change_tree(change)?;
        if let (true, TreeChange::Identify { guid, .. }, Some(before)) = (done, change, before) {
            let mut known = self.known();
            let logs = known.mailboxes.remove(&before).unwrap_or_default();
            known.mailboxes.insert(*guid, logs);
        }
        Ok(done)
    }

    fn open(&mut self, guid: MailboxGuid) -> Result<Box<dyn Mailbox>> {
        let (inner, storage) = (self.memory.open(guid)?, self.clone());
        Ok(Box::new(RecordedMailbox { inner, storage, guid }))
    }

    fn attributes(&mut self) -> Result<Option<AttributeList>> {
        self.memory.attributes()
    }

    fn change_attributes(&mut self, changes: &AttributeChanges) -> Result<()> {
        self.memory.change_attributes(changes)
    }

    fn notes(&mut self) -> Result<Vec<String>> {
        self.memory.notes()
    }

    fn read_note(&mut self, name: &str, bytes_max: usize) -> Result<Option<Vec<u8>>> {
        self.memory.read_note(name, bytes_max)
    }

    fn write_note(&mut self, name: &str, content: &[u8]) -> Result<()> {
        self.memory.write_note(name, content)
    }

    fn remove_note(&mut self, name: &str) -> Result<()> {
        self.memory.remove_note(name)
    }
}

impl Known {
    fn complete(&self, status: &mut MailboxStatus) {
        let modseq = self.mailboxes.get(&status.guid).map_or(0, |logs| logs.highest_modseq);
        status.highest_modseq = ModSeq::new(modseq).expect("in range");
    }
}

struct RecordedMailbox {
    inner: Box<dyn Mailbox>,
    storage: Recorded,
    guid: MailboxGuid,
}

impl Mailbox for RecordedMailbox {
    fn status(&mut self) -> Result<MailboxStatus> {
        let mut status = self.inner.status()?;
        self.storage.known().complete(&mut status);
        Ok(status)
    }

    fn changes(&mut self, since: Since<'_>) -> Result<Changes> {
        let mut changes = self.inner.changes(since)?;
        let known = self.storage.known();
        known.complete(&mut changes.status);
        let Some(logs) = known.mailboxes.get(&self.guid) else { return Ok(changes) };
        for change in &mut changes.list {
            if let MessageChange::Save { uid, modseq, flags, .. } = change {
                *modseq = logs.modseqs.get(uid).copied().unwrap_or(*modseq);
                if let Some(told) = logs.flags.get(uid) {
                    (flags.added, flags.removed) = (told.added.clone(), told.removed.clone());
                }
            }
        }
        let gone =
            logs.expunged.iter().map(|(uid, guid)| MessageChange::Expunge { uid: *uid, guid: guid.clone() });
        changes.list.extend(gone);
        changes.list.sort_by_key(MessageChange::uid);
        Ok(changes)
    }

    fn digest_of(&mut self, uids: &UidSet) -> Result<Digest> {
        self.inner.digest_of(uids)
    }

    fn body(&mut self, uid: Uid, guid: Option<&MessageGuid>) -> Result<Option<Body>> {
        self.inner.body(uid, guid)
    }

    fn save(&mut self, message: NewMessage, body: Body) -> Result<()> {
        self.inner.save(message, body)
    }

    fn begin_save(&mut self, message: NewMessage) -> Result<()> {
        self.inner.begin_save(message)
    }

    fn write(&mut self, piece: &[u8]) -> Result<()> {
        self.inner.write(piece)
    }

    fn end_save(&mut self) -> Result<()> {
        self.inner.end_save()
    }

    fn abandon_save(&mut self) {
        self.inner.abandon_save();
    }

    fn apply(&mut self, actions: &[MessageAction]) -> Result<()> {
        self.inner.apply(actions)
    }

    fn commit(&mut self, goal: Goal) -> Result<Committed> {
        let committed = self.inner.commit(goal)?;
        let mut known = self.storage.known();
        let logs = known.mailboxes.entry(self.guid).or_default();
        logs.highest_modseq = logs.highest_modseq.max(goal.modseq_min.get());
        Ok(committed)
    }

    fn attribute_log(&mut self) -> Result<AttributeLog> {
        let known = self.storage.known();
        let first = known.mailboxes.get(&self.guid).map(|logs| logs.attributes.clone()).unwrap_or_default();
        Ok(AttributeLog { first, ..AttributeLog::default() })
    }

    fn log_attributes(&mut self, records: &AttributeRecords) -> Result<()> {
        self.inner.log_attributes(records)
    }
}
