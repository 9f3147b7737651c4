//! A storage that only says what it would have done: for `--dry-run`, and for whatever is not to be written (`--read-only-source`).
//!
//! It reads from the real storage, without housekeeping either ([`Pretend`]), and answers as if all changes had been made. What is saved
//! is not kept, and bodies are empty: a dry run sends no mail.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dsync_model::{
    AttributeChanges, AttributeList, Changes, Digest, FlagSet, MailboxGuid, MailboxName, MailboxNode,
    MailboxStatus, MailboxTree, Message, MessageAction, MessageChange, MessageGuid, ModSeq, NameRules,
    Namespaces, NewMessage, NotKept, Since, StoreId, TreeChange, TreeLog, Uid, UidSet, UidValidity,
    changes_since,
};
use rand::RngExt;

use crate::disk::{self, Pretend};
use crate::{
    Body, Capabilities, Committed, Goal, Mailbox, MailboxProblem, Result, Storage, StorageError, StoreLock,
};

/// A storage that is not written.
pub struct DryRun {
    inner: Box<dyn Storage>,
    /// Bodies come as they are: somebody wants to read them.
    bodies: bool,
    /// The root is missing: the account would be made.
    absent: bool,
    /// Without an id on the disk it has the same one every time.
    steady: bool,
    names: BTreeMap<MailboxName, MailboxGuid>,
    listed: BTreeMap<MailboxGuid, MailboxStatus>,
    /// Mailboxes that were opened, made or given another identity.
    mailboxes: BTreeMap<MailboxGuid, Arc<Mutex<Imagined>>>,
}

impl Drop for DryRun {
    fn drop(&mut self) {
        disk::forget_pretended();
    }
}

/// A mailbox as it would be.
struct Imagined {
    /// The mailbox that is there, if it is.
    inner: Option<Box<dyn Mailbox>>,
    status: MailboxStatus,
    messages: BTreeMap<Uid, Message>,
    /// What is there and what would be differ.
    changed: bool,
}

struct DryMailbox {
    imagined: Arc<Mutex<Imagined>>,
    bodies: bool,
    saving: Option<NewMessage>,
    saves: Vec<NewMessage>,
    actions: Vec<MessageAction>,
}

impl DryRun {
    /// With `bodies`, those that are there can be read.
    pub fn new(inner: Box<dyn Storage>, bodies: bool) -> DryRun {
        let (names, listed, mailboxes) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        DryRun { inner, bodies, absent: false, steady: false, names, listed, mailboxes }
    }

    /// A source that is read, and not written: bodies and all, and a store that both ends know again.
    pub fn reading(inner: Box<dyn Storage>) -> DryRun {
        let mut reading = DryRun::new(inner, true);
        reading.steady = true;
        reading
    }

    /// Says whether the store has this id on its disk: else it was made up just now.
    fn has_id(&mut self, id: StoreId) -> Result<bool> {
        let note = self.inner.read_note("store", 200)?;
        Ok(note.is_some_and(|note| note.starts_with(id.to_string().as_bytes())))
    }

    /// A mailbox that is not there yet.
    fn imagine(
        &mut self,
        name: &MailboxName,
        guid: MailboxGuid,
        uid_validity: UidValidity,
        uid_next: Uid,
    ) -> MailboxStatus {
        let digest = Digest::default();
        let status =
            MailboxStatus { guid, uid_validity, uid_next, messages: 0, highest_modseq: ModSeq::NONE, digest };
        let imagined =
            Imagined { inner: None, status: status.clone(), messages: BTreeMap::new(), changed: true };
        self.mailboxes.insert(guid, Arc::new(Mutex::new(imagined)));
        self.names.insert(name.clone(), guid);
        status
    }

    fn mailbox(&mut self, guid: MailboxGuid) -> Result<Arc<Mutex<Imagined>>> {
        if let Some(known) = self.mailboxes.get(&guid) {
            return Ok(known.clone());
        }
        let _pretend = Pretend::begin();
        let mut inner = match (self.inner.open(guid), self.listed.get(&guid)) {
            (Ok(inner), _) => inner,
            // Without an identity on the disk an empty mailbox gets another one whenever it is looked at.
            (Err(_), Some(status)) if status.messages == 0 => {
                let (status, messages) = (status.clone(), BTreeMap::new());
                let imagined =
                    Arc::new(Mutex::new(Imagined { inner: None, status, messages, changed: true }));
                self.mailboxes.insert(guid, imagined.clone());
                return Ok(imagined);
            }
            (Err(error), _) => return Err(error),
        };
        let Changes { status, list } = inner.changes(Since::All)?;
        let message = |change| match change {
            MessageChange::Save { uid, guid, modseq, flags, size } => {
                let flags = flags.current;
                Some((uid, Message { uid, guid, flags, modseq, received: None, size }))
            }
            _ => None,
        };
        let messages = list.into_iter().filter_map(message).collect();
        let imagined = Imagined { inner: Some(inner), status, messages, changed: false };
        let imagined = Arc::new(Mutex::new(imagined));
        self.mailboxes.insert(guid, imagined.clone());
        Ok(imagined)
    }
}

fn held(imagined: &Mutex<Imagined>) -> MutexGuard<'_, Imagined> {
    imagined.lock().unwrap_or_else(PoisonError::into_inner)
}

fn is_missing(error: &StorageError) -> bool {
    matches!(error, StorageError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
}

impl Storage for DryRun {
    fn location(&self) -> String {
        self.inner.location()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn is_shared(&self, path: &Path) -> bool {
        self.inner.is_shared(path)
    }

    fn rules(&self) -> NameRules {
        self.inner.rules()
    }

    fn choose(&mut self, namespaces: &Namespaces) -> Result<()> {
        let _pretend = Pretend::begin();
        self.inner.choose(namespaces)
    }

    fn store_id(&mut self) -> Result<StoreId> {
        let _pretend = Pretend::begin();
        match self.inner.store_id() {
            Err(error) if is_missing(&error) => {
                self.absent = true;
                Ok(StoreId(rand::rng().random()))
            }
            Ok(id) if self.steady && !self.has_id(id)? => {
                let place = MailboxGuid([0; 16]).derived(self.inner.location().as_bytes());
                Ok(StoreId(place.0))
            }
            told => told,
        }
    }

    /// Nothing is written, so nobody is kept out.
    fn lock(&mut self, _wait: Duration) -> Result<StoreLock> {
        Ok(StoreLock(Box::new(())))
    }

    fn tree(&mut self) -> Result<(MailboxTree, Vec<MailboxProblem>)> {
        self.names.clear();
        self.listed.clear();
        self.mailboxes.clear();
        let _pretend = Pretend::begin();
        if self.absent {
            let guid = MailboxGuid(rand::rng().random());
            let uid_validity = UidValidity::new(1).ok_or_else(|| StorageError::NoMailbox("INBOX".into()))?;
            let status = self.imagine(&MailboxName::inbox(), guid, uid_validity, Uid::MIN);
            let node = MailboxNode { mailbox: Some(status), ..MailboxNode::default() };
            return Ok((MailboxTree::from([(MailboxName::inbox(), node)]), Vec::new()));
        }
        let (tree, problems) = self.inner.tree()?;
        for (name, status) in tree.iter().filter_map(|(name, node)| Some((name, node.mailbox.as_ref()?))) {
            self.names.insert(name.clone(), status.guid);
            self.listed.insert(status.guid, status.clone());
        }
        Ok((tree, problems))
    }

    fn is_steady(&mut self) -> Result<bool> {
        let _pretend = Pretend::begin();
        if self.absent { Ok(true) } else { self.inner.is_steady() }
    }

    fn tree_log(&self) -> TreeLog {
        self.inner.tree_log()
    }

    fn attributes(&mut self) -> Result<Option<AttributeList>> {
        self.inner.attributes()
    }

    fn change_attributes(&mut self, _changes: &AttributeChanges) -> Result<()> {
        Ok(())
    }

    fn change_tree(&mut self, change: &TreeChange) -> Result<bool> {
        match change {
            TreeChange::Create { name, guid, uid_validity, uid_next } => {
                self.imagine(name, *guid, *uid_validity, *uid_next);
            }
            TreeChange::Rename { guid, from, to } => {
                self.names.remove(from);
                self.names.insert(to.clone(), *guid);
            }
            TreeChange::Identify { name, guid, uid_validity } => {
                let old = self.names.get(name).copied();
                let old = old.ok_or_else(|| StorageError::NoMailbox(name.to_string()))?;
                let mailbox = self.mailbox(old)?;
                {
                    let mut imagined = held(&mailbox);
                    (imagined.status.guid, imagined.status.uid_validity) = (*guid, *uid_validity);
                    imagined.changed = true;
                }
                self.mailboxes.remove(&old);
                self.mailboxes.insert(*guid, mailbox);
                self.names.insert(name.clone(), *guid);
            }
            TreeChange::Delete { .. }
            | TreeChange::CreateDirectory { .. }
            | TreeChange::DeleteDirectory { .. }
            | TreeChange::Subscribe { .. }
            | TreeChange::Unsubscribe { .. } => {}
        }
        Ok(true)
    }

    fn check(&mut self, mailbox: MailboxGuid, from: Uid) -> Result<bool> {
        if self.absent {
            return Ok(false);
        }
        let _pretend = Pretend::begin();
        self.inner.check(mailbox, from)
    }

    fn open(&mut self, mailbox: MailboxGuid) -> Result<Box<dyn Mailbox>> {
        let (imagined, bodies) = (self.mailbox(mailbox)?, self.bodies);
        Ok(Box::new(DryMailbox { imagined, bodies, saving: None, saves: Vec::new(), actions: Vec::new() }))
    }

    fn notes(&mut self) -> Result<Vec<String>> {
        let _pretend = Pretend::begin();
        if self.absent { Ok(Vec::new()) } else { self.inner.notes() }
    }

    fn read_note(&mut self, name: &str, bytes_max: usize) -> Result<Option<Vec<u8>>> {
        let _pretend = Pretend::begin();
        self.inner.read_note(name, bytes_max)
    }

    fn write_note(&mut self, _name: &str, _content: &[u8]) -> Result<()> {
        Ok(())
    }

    fn remove_note(&mut self, _name: &str) -> Result<()> {
        Ok(())
    }
}

impl Imagined {
    fn now(&self) -> MailboxStatus {
        if !self.changed {
            return self.status.clone();
        }
        let digest = Digest::of(self.messages.values());
        MailboxStatus { messages: self.messages.len() as u32, digest, ..self.status.clone() }
    }

    fn apply(&mut self, action: MessageAction, not_kept: &mut NotKept) {
        match action {
            MessageAction::Renumber { from, to } => match self.messages.remove(&from) {
                Some(message) => {
                    self.messages.insert(to, Message { uid: to, ..message });
                    self.status.uid_next = self.status.uid_next.max(to.next().unwrap_or(to));
                }
                None => _ = not_kept.insert(to, Some(from)),
            },
            MessageAction::Flags { uid, add, remove, .. } => match self.messages.get_mut(&uid) {
                Some(message) => {
                    message.flags = FlagSet::union(&message.flags.minus(&remove), &add);
                }
                None => _ = not_kept.insert(uid, Some(uid)),
            },
            MessageAction::Expunge { uid, guid } => {
                let same = |message: &Message| guid.is_none_or(|guid| guid.bits() == message.guid.bits());
                if self.messages.get(&uid).cloned().is_some_and(|message| same(&message)) {
                    self.messages.remove(&uid);
                }
            }
        }
    }
}

impl Mailbox for DryMailbox {
    fn status(&mut self) -> Result<MailboxStatus> {
        Ok(held(&self.imagined).now())
    }

    fn changes(&mut self, since: Since<'_>) -> Result<Changes> {
        let _pretend = Pretend::begin();
        let mut imagined = held(&self.imagined);
        let changed = imagined.changed;
        match &mut imagined.inner {
            // It may know more than it lists: what a log proves.
            Some(inner) if !changed => inner.changes(since),
            _ => {
                let messages: Vec<Message> = imagined.messages.values().cloned().collect();
                Ok(Changes { status: imagined.now(), list: changes_since(&messages, since) })
            }
        }
    }

    fn digest_of(&mut self, uids: &UidSet) -> Result<Digest> {
        let imagined = held(&self.imagined);
        Ok(Digest::of(imagined.messages.values().filter(|message| uids.contains(message.uid.get()))))
    }

    fn body(&mut self, uid: Uid, guid: Option<&MessageGuid>) -> Result<Option<Body>> {
        let _pretend = Pretend::begin();
        let mut imagined = held(&self.imagined);
        let Some(inner) = &mut imagined.inner else { return Ok(None) };
        let body = inner.body(uid, guid)?;
        if self.bodies {
            return Ok(body);
        }
        Ok(body.map(|body| Body { path: None, map_uid: None, reader: Box::new(io::empty()), ..body }))
    }

    fn save(&mut self, message: NewMessage, _body: Body) -> Result<()> {
        self.saves.push(message);
        Ok(())
    }

    fn begin_save(&mut self, message: NewMessage) -> Result<()> {
        self.saving = Some(message);
        Ok(())
    }

    fn write(&mut self, _piece: &[u8]) -> Result<()> {
        Ok(())
    }

    fn end_save(&mut self) -> Result<()> {
        self.saves.extend(self.saving.take());
        Ok(())
    }

    fn abandon_save(&mut self) {
        self.saving = None;
    }

    fn apply(&mut self, actions: &[MessageAction]) -> Result<()> {
        self.actions.extend_from_slice(actions);
        Ok(())
    }

    fn commit(&mut self, goal: Goal) -> Result<Committed> {
        let mut imagined = held(&self.imagined);
        let mut committed = Committed::default();
        imagined.changed = true;
        for new in std::mem::take(&mut self.saves) {
            let NewMessage { uid, guid, flags, modseq, received, size, .. } = new;
            committed.saved += 1;
            committed.bytes += size.unwrap_or(0);
            imagined.status.uid_next = imagined.status.uid_next.max(uid.next().unwrap_or(uid));
            imagined.messages.insert(uid, Message { uid, guid, flags, modseq, received, size });
        }
        for action in std::mem::take(&mut self.actions) {
            imagined.apply(action, &mut committed.not_kept);
        }
        imagined.status.uid_next = imagined.status.uid_next.max(goal.uid_next_min);
        imagined.status.highest_modseq = imagined.status.highest_modseq.max(goal.modseq_min);
        if let Some(uid_validity) = goal.uid_validity {
            imagined.status.uid_validity = uid_validity;
        }
        Ok(committed)
    }
}
