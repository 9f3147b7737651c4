//! An account whose messages are known by their headers: for sessions of which one end keeps no GUIDs (mbox).
//!
//! Lists name a message by a [`hash`] in place of its GUID; digests leave it out, as UIDs of one UIDVALIDITY name the messages. Only what
//! a list names is opened, so that with a base no old mail is read. The GUIDs below stay as they are: a body brings its own.

mod digests;
mod hash;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use dsync_model::{
    AttributeChanges, AttributeList, AttributeLog, AttributeRecords, Changes, Digest, MailboxGuid,
    MailboxStatus, MailboxTree, Message, MessageAction, MessageChange, MessageGuid, NameRules, Namespaces,
    NewMessage, Since, StoreId, TreeChange, TreeLog, Uid, UidSet, changes_since,
};

use self::digests::Digests;
pub use self::hash::HeaderHash;
use crate::memory::MemoryStorage;
use crate::{
    Body, Capabilities, Committed, Goal, Mailbox, MailboxProblem, Purged, Result, Storage, StorageError,
    StoreLock, UserLock,
};

/// What Dovecot gives for the GUID of a message in an mbox that has nothing to tell it by: many have it.
pub(crate) const NO_GUID: &str = "d41d8cd98f00b204e9800998ecf8427e";

/// The GUID of a message of a mailbox. If it has none, or one that many have: one of its own, the same everywhere.
pub fn own_guid(mailbox: MailboxGuid, uid: Uid, guid: Option<MessageGuid>) -> MessageGuid {
    guid.filter(|guid| guid.as_str() != NO_GUID).unwrap_or_else(|| {
        MessageGuid::of_bytes(mailbox.derived(&uid.get().to_be_bytes()).to_string().as_bytes())
    })
}

/// Any storage; as it is, or with messages known by their headers.
pub struct ByHeader {
    inner: Box<dyn Storage>,
    is_on: bool,
}

impl ByHeader {
    /// The storage as it is.
    pub fn off(inner: Box<dyn Storage>) -> ByHeader {
        ByHeader { inner, is_on: false }
    }

    /// Puts something between this and the storage below.
    pub fn wrap(&mut self, between: impl FnOnce(Box<dyn Storage>) -> Box<dyn Storage>) {
        let nothing: Box<dyn Storage> = Box::new(MemoryStorage::default());
        self.inner = between(std::mem::replace(&mut self.inner, nothing));
    }

    /// From now on messages are known by their headers.
    pub fn switch_on(&mut self) {
        self.is_on = true;
    }

    pub fn is_on(&self) -> bool {
        self.is_on
    }
}

impl Storage for ByHeader {
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
        self.inner.choose(namespaces)
    }

    fn store_id(&mut self) -> Result<StoreId> {
        self.inner.store_id()
    }

    fn lock(&mut self, wait: Duration) -> Result<StoreLock> {
        self.inner.lock(wait)
    }

    fn lock_user(&mut self, me: StoreId, peer: StoreId, wait: Duration) -> Result<Option<UserLock>> {
        self.inner.lock_user(me, peer, wait)
    }

    fn is_steady(&mut self) -> Result<bool> {
        self.inner.is_steady()
    }

    fn tree(&mut self) -> Result<(MailboxTree, Vec<MailboxProblem>)> {
        let (mut tree, mut problems) = self.inner.tree()?;
        if !self.is_on {
            return Ok((tree, problems));
        }
        let mut digests = Digests::read(&mut *self.inner);
        tree.retain(|name, node| {
            let Some(status) = &mut node.mailbox else { return true };
            if let Some(digest) = digests.get(status) {
                status.digest = digest;
                return true;
            }
            match self.inner.open(status.guid).and_then(|mut mailbox| list(&mut *mailbox)) {
                Ok((found, messages)) => {
                    let digest = digest_of(&messages);
                    digests.put(&found, digest);
                    *status = MailboxStatus { digest, ..found };
                    true
                }
                Err(error) => {
                    problems.push(MailboxProblem { mailbox: name.to_string(), error });
                    false
                }
            }
        });
        digests.write(&mut *self.inner);
        Ok((tree, problems))
    }

    fn tree_log(&self) -> TreeLog {
        self.inner.tree_log()
    }

    fn attributes(&mut self) -> Result<Option<AttributeList>> {
        self.inner.attributes()
    }

    fn change_attributes(&mut self, changes: &AttributeChanges) -> Result<()> {
        self.inner.change_attributes(changes)
    }

    fn check(&mut self, mailbox: MailboxGuid, from: Uid) -> Result<bool> {
        self.inner.check(mailbox, from)
    }

    fn purge(&mut self, from: u32) -> Result<Option<Purged>> {
        self.inner.purge(from)
    }

    fn change_tree(&mut self, change: &TreeChange) -> Result<bool> {
        self.inner.change_tree(change)
    }

    fn open(&mut self, mailbox: MailboxGuid) -> Result<Box<dyn Mailbox>> {
        let inner = self.inner.open(mailbox)?;
        if !self.is_on {
            return Ok(inner);
        }
        Ok(Box::new(MailboxByHeader {
            inner,
            guid: mailbox,
            listed: BTreeMap::new(),
            moved: BTreeMap::new(),
            origins: BTreeMap::new(),
        }))
    }

    fn notes(&mut self) -> Result<Vec<String>> {
        self.inner.notes()
    }

    fn read_note(&mut self, name: &str, bytes_max: usize) -> Result<Option<Vec<u8>>> {
        self.inner.read_note(name, bytes_max)
    }

    fn write_note(&mut self, name: &str, content: &[u8]) -> Result<()> {
        self.inner.write_note(name, content)
    }

    fn remove_note(&mut self, name: &str) -> Result<()> {
        self.inner.remove_note(name)
    }
}

/// One open mailbox.
struct MailboxByHeader {
    inner: Box<dyn Mailbox>,
    guid: MailboxGuid,
    /// What the last list named: hash, and GUID below.
    listed: BTreeMap<Uid, (MessageGuid, MessageGuid)>,
    /// Messages renumbered since then: UID in the list to UID now, and the other way.
    moved: BTreeMap<Uid, Uid>,
    origins: BTreeMap<Uid, Uid>,
}

impl MailboxByHeader {
    /// The hash of a message, and its GUID below. `None`: expunged meanwhile.
    fn identity(
        &mut self,
        uid: Uid,
        guid: Option<&MessageGuid>,
    ) -> Result<Option<(MessageGuid, MessageGuid)>> {
        let Some(body) = self.inner.body(uid, guid)? else { return Ok(None) };
        let place = body.path.as_deref().map_or_else(|| "message".into(), |path| path.display().to_string());
        Ok(Some((hash::of(body.reader).map_err(StorageError::io(place))?, body.guid)))
    }

    /// A message that has nothing for a GUID gets one that no other has, and gets the same one everywhere.
    fn named(&self, message: NewMessage) -> NewMessage {
        NewMessage { guid: own_guid(self.guid, message.uid, Some(message.guid)), ..message }
    }
}

/// All messages, and the status of the same instant.
fn list(mailbox: &mut dyn Mailbox) -> Result<(MailboxStatus, Vec<Message>)> {
    let Changes { status, list } = mailbox.changes(Since::All)?;
    let message = |change| match change {
        MessageChange::Save { uid, guid, modseq, flags, size } => {
            Some(Message { uid, guid, flags: flags.current, modseq, received: None, size })
        }
        // What a log proves is known by a GUID, which is nothing here.
        MessageChange::Expunge { .. } | MessageChange::Flags { .. } => None,
    };
    Ok((status, list.into_iter().filter_map(message).collect()))
}

/// The digest of UIDs and flags: all messages have the GUID 0.
fn digest_of<'a>(messages: impl IntoIterator<Item = &'a Message>) -> Digest {
    let nobody = MessageGuid::of_bytes(&[b'0'; 32]);
    let mut digest = Digest::default();
    messages.into_iter().for_each(|message| digest.add(message.uid, &nobody, &message.flags));
    digest
}

impl Mailbox for MailboxByHeader {
    fn status(&mut self) -> Result<MailboxStatus> {
        let (status, messages) = list(&mut *self.inner)?;
        Ok(MailboxStatus { digest: digest_of(&messages), ..status })
    }

    fn changes(&mut self, since: Since<'_>) -> Result<Changes> {
        let (status, messages) = list(&mut *self.inner)?;
        let mut changes = Changes {
            status: MailboxStatus { digest: digest_of(&messages), ..status },
            list: changes_since(&messages, since),
        };
        self.listed.clear();
        self.moved.clear();
        self.origins.clear();
        let mut listed = Vec::with_capacity(changes.list.len());
        for mut change in changes.list {
            let uid = change.uid();
            match &mut change {
                MessageChange::Expunge { .. } => listed.push(change),
                MessageChange::Save { guid, .. } | MessageChange::Flags { guid, .. } => {
                    // What is gone since the list is left out; the next round finds that.
                    if let Some((hash, below)) = self.identity(uid, Some(guid))? {
                        *guid = hash.clone();
                        self.listed.insert(uid, (hash, below));
                        listed.push(change);
                    }
                }
            }
        }
        changes.list = listed;
        Ok(changes)
    }

    fn digest_of(&mut self, uids: &UidSet) -> Result<Digest> {
        let (_, messages) = list(&mut *self.inner)?;
        Ok(digest_of(messages.iter().filter(|message| uids.contains(message.uid.get()))))
    }

    fn body(&mut self, uid: Uid, hash: Option<&MessageGuid>) -> Result<Option<Body>> {
        let Some(hash) = hash else { return self.inner.body(uid, None) };
        let here = self.listed.get(&uid).filter(|(listed, _)| listed == hash);
        let same = || self.listed.iter().find(|(_, (listed, _))| listed == hash);
        let found =
            here.map(|(_, below)| (uid, below)).or_else(|| same().map(|(uid, (_, below))| (*uid, below)));
        let Some((uid, below)) = found else { return Ok(None) };
        let now = self.moved.get(&uid).copied().unwrap_or(uid);
        match self.inner.body(now, Some(below))? {
            None if now != uid => self.inner.body(uid, Some(below)),
            body => Ok(body),
        }
    }

    fn save(&mut self, message: NewMessage, body: Body) -> Result<()> {
        self.inner.save(self.named(message), body)
    }

    fn begin_save(&mut self, message: NewMessage) -> Result<()> {
        self.inner.begin_save(self.named(message))
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
        let mut below = Vec::with_capacity(actions.len());
        for action in actions {
            match action {
                MessageAction::Expunge { uid, guid: Some(hash) } => {
                    let found = self.identity(*uid, None)?.filter(|(found, _)| found == hash);
                    below.extend(
                        found.map(|(_, guid)| MessageAction::Expunge { uid: *uid, guid: Some(guid) }),
                    );
                }
                MessageAction::Renumber { from, to } => {
                    let origin = self.origins.remove(from).unwrap_or(*from);
                    self.origins.insert(*to, origin);
                    self.moved.insert(origin, *to);
                    below.push(action.clone());
                }
                MessageAction::Flags { .. } | MessageAction::Expunge { guid: None, .. } => {
                    below.push(action.clone())
                }
            }
        }
        self.inner.apply(&below)
    }

    fn commit(&mut self, goal: Goal) -> Result<Committed> {
        self.inner.commit(goal)
    }

    fn attribute_log(&mut self) -> Result<AttributeLog> {
        self.inner.attribute_log()
    }

    fn log_attributes(&mut self, records: &AttributeRecords) -> Result<()> {
        self.inner.log_attributes(records)
    }
}
