//! The reference storage: an account in memory, shared by all handles on it.
//!
//! Used by the simulator and the conformance suite. What users do to the account while a session runs goes
//! through the same [`Account`].

mod mailbox;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dsync_model::{
    AttributeChanges, AttributeKey, AttributeList, AttributeValue, Digest, FlagSet, MailboxGuid, MailboxName,
    MailboxNode, MailboxStatus, MailboxTree, Message, MessageGuid, ModSeq, StoreId, Timestamp, TreeChange,
    Uid, UidValidity,
};

use crate::{Capabilities, Mailbox, MailboxProblem, Result, Storage, StorageError, StoreLock, Support};

use crate::by_header::NO_GUID;
use mailbox::MemoryMailbox;

/// The whole content of an account.
#[derive(Clone, Debug, Default)]
pub struct Account {
    pub id: Option<StoreId>,
    pub mailboxes: BTreeMap<MailboxName, StoredMailbox>,
    pub subscriptions: BTreeSet<MailboxName>,
    pub notes: BTreeMap<String, Vec<u8>>,
    pub attributes: AttributeList,
    /// Of attributes that were set or removed (`true`), when it was.
    pub attribute_log: BTreeMap<AttributeKey, (bool, u32)>,
    /// Seconds since 1970, for what is logged without a time.
    pub now: u32,
    /// Messages get a GUID made of their content in place of the one they come with, as in an mbox.
    pub drops_guids: bool,
    /// Storage calls that still succeed; `None`: all. For tests of failing storages.
    pub calls_left: Option<u64>,
    /// Mailboxes that fail when they are written, and how many writes to them still succeed. For tests of mailboxes that may be read only.
    pub failing: BTreeMap<MailboxGuid, u64>,
    /// Storage calls made so far.
    pub calls: u64,
}

/// One mailbox of an account.
#[derive(Clone, Debug)]
pub struct StoredMailbox {
    pub guid: MailboxGuid,
    pub uid_validity: UidValidity,
    pub uid_next: Uid,
    pub messages: BTreeMap<Uid, StoredMessage>,
}

/// One message of a mailbox.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredMessage {
    pub guid: MessageGuid,
    pub flags: FlagSet,
    pub received: Option<Timestamp>,
    pub body: Arc<[u8]>,
}

impl StoredMailbox {
    /// A mailbox without messages.
    pub fn new(guid: MailboxGuid, uid_validity: UidValidity) -> StoredMailbox {
        StoredMailbox { guid, uid_validity, uid_next: Uid::MIN, messages: BTreeMap::new() }
    }

    /// Saves a message under the next UID, as a delivery does. `None` when UIDs are exhausted.
    pub fn deliver(&mut self, message: StoredMessage) -> Option<Uid> {
        let uid = self.uid_next;
        self.uid_next = uid.next()?;
        self.messages.insert(uid, message);
        Some(uid)
    }

    /// The messages as a storage lists them.
    pub fn list(&self) -> Vec<Message> {
        let message = |(uid, stored): (&Uid, &StoredMessage)| Message {
            uid: *uid,
            guid: stored.guid.clone(),
            flags: stored.flags.clone(),
            modseq: ModSeq::NONE,
            received: stored.received,
            size: Some(stored.body.len() as u64),
        };
        self.messages.iter().map(message).collect()
    }

    /// Counters and digest.
    pub fn status(&self) -> MailboxStatus {
        MailboxStatus {
            guid: self.guid,
            uid_validity: self.uid_validity,
            uid_next: self.uid_next,
            messages: self.messages.len() as u32,
            highest_modseq: ModSeq::NONE,
            digest: Digest::of(&self.list()),
        }
    }
}

/// A handle on an account; clones share it.
#[derive(Clone, Debug, Default)]
pub struct MemoryStorage {
    account: Arc<Mutex<Account>>,
}

impl MemoryStorage {
    /// An account that holds an empty INBOX with this identity.
    pub fn new(id: StoreId, inbox: MailboxGuid, uid_validity: UidValidity) -> MemoryStorage {
        let inbox = (MailboxName::inbox(), StoredMailbox::new(inbox, uid_validity));
        let account = Account { id: Some(id), mailboxes: [inbox].into(), ..Account::default() };
        MemoryStorage { account: Arc::new(Mutex::new(account)) }
    }

    /// The account itself, for users at work and for oracles.
    pub fn account(&self) -> MutexGuard<'_, Account> {
        self.account.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn call(&self) -> Result<MutexGuard<'_, Account>> {
        let mut account = self.account();
        account.calls += 1;
        if let Some(left) = &mut account.calls_left {
            if *left == 0 {
                let source = io::Error::from(io::ErrorKind::StorageFull);
                return Err(StorageError::Io { path: PathBuf::from("memory:"), source });
            }
            *left -= 1;
        }
        Ok(account)
    }
}

impl Account {
    /// Takes out what is told of the attributes of a mailbox.
    fn drop_log(&mut self, mailbox: MailboxGuid) -> Vec<(AttributeKey, (bool, u32))> {
        self.attribute_log.extract_if(.., |key, _| key.mailbox == mailbox).collect()
    }

    /// One write to a mailbox, which fails if its time has come.
    fn write_to(&mut self, mailbox: MailboxGuid) -> Result<()> {
        match self.failing.get_mut(&mailbox) {
            Some(0) => {
                let source = io::Error::from(io::ErrorKind::PermissionDenied);
                Err(StorageError::Io { path: PathBuf::from(format!("memory:{mailbox}")), source })
            }
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn by_guid(&mut self, guid: MailboxGuid) -> Result<&mut StoredMailbox> {
        let found = self.mailboxes.values_mut().find(|mailbox| mailbox.guid == guid);
        found.ok_or_else(|| StorageError::NoMailbox(guid.to_string()))
    }
}

/// The GUID of a message where none is kept: as in an mbox, one for all that have no `Message-ID`.
pub fn content_guid(body: &[u8]) -> MessageGuid {
    if !body.starts_with(b"Message-ID:") {
        return MessageGuid::of_bytes(NO_GUID.as_bytes());
    }
    MessageGuid::of_bytes(MailboxGuid([0; 16]).derived(body).to_string().as_bytes())
}

fn exists(name: &MailboxName) -> StorageError {
    StorageError::MailboxExists(name.to_string())
}

impl Storage for MemoryStorage {
    fn location(&self) -> String {
        "memory:".into()
    }

    fn capabilities(&self) -> Capabilities {
        let message_guid = if self.account().drops_guids { Support::Volatile } else { Support::Kept };
        Capabilities {
            modseq: Support::None,
            log: false,
            keywords_max: None,
            directories: false,
            message_guid,
            clones: false,
        }
    }

    fn store_id(&mut self) -> Result<StoreId> {
        self.call()?.id.ok_or_else(|| StorageError::Impossible("store without an id".into()))
    }

    fn lock(&mut self, _wait: Duration) -> Result<StoreLock> {
        Ok(StoreLock(Box::new(())))
    }

    fn tree(&mut self) -> Result<(MailboxTree, Vec<MailboxProblem>)> {
        let account = self.call()?;
        let mut tree = MailboxTree::new();
        for (name, mailbox) in &account.mailboxes {
            tree.insert(
                name.clone(),
                MailboxNode { mailbox: Some(mailbox.status()), ..MailboxNode::default() },
            );
        }
        for name in &account.subscriptions {
            tree.entry(name.clone()).or_default().subscribed = true;
        }
        Ok((tree, Vec::new()))
    }

    fn change_tree(&mut self, change: &TreeChange) -> Result<bool> {
        let mut account = self.call()?;
        if let TreeChange::Create { guid, .. }
        | TreeChange::Rename { guid, .. }
        | TreeChange::Identify { guid, .. }
        | TreeChange::Delete { guid, .. } = change
        {
            account.write_to(*guid)?;
        }
        match change {
            TreeChange::Create { name, guid, uid_validity, uid_next } => {
                if account.mailboxes.contains_key(name) {
                    return Err(exists(name));
                }
                let mailbox =
                    StoredMailbox { uid_next: *uid_next, ..StoredMailbox::new(*guid, *uid_validity) };
                account.mailboxes.insert(name.clone(), mailbox);
            }
            TreeChange::Rename { guid, from, to } => {
                if account.mailboxes.contains_key(to) {
                    return Err(exists(to));
                }
                match account.mailboxes.remove(from) {
                    Some(mailbox) if mailbox.guid == *guid => account.mailboxes.insert(to.clone(), mailbox),
                    Some(other) => account.mailboxes.insert(from.clone(), other),
                    None => return Err(StorageError::NoMailbox(from.to_string())),
                };
            }
            TreeChange::Identify { name, guid, uid_validity } => {
                let mailbox =
                    account.mailboxes.get_mut(name).ok_or(StorageError::NoMailbox(name.to_string()))?;
                let before = std::mem::replace(&mut mailbox.guid, *guid);
                mailbox.uid_validity = *uid_validity;
                // The log stays with the mailbox.
                let log = account.drop_log(before);
                account.drop_log(*guid);
                let moved = log.into_iter().map(|(key, told)| (AttributeKey { mailbox: *guid, ..key }, told));
                account.attribute_log.extend(moved);
            }
            TreeChange::Delete { name, guid, uid_next } => match account.mailboxes.get(name) {
                Some(mailbox) if mailbox.guid == *guid && mailbox.uid_next == *uid_next => {
                    account.mailboxes.remove(name);
                    account.drop_log(*guid);
                }
                Some(_) => return Ok(false),
                None => {}
            },
            TreeChange::CreateDirectory { .. } | TreeChange::DeleteDirectory { .. } => {}
            TreeChange::Subscribe { names } => account.subscriptions.extend(names.iter().cloned()),
            TreeChange::Unsubscribe { names } => account.subscriptions.retain(|name| !names.contains(name)),
        }
        Ok(true)
    }

    fn open(&mut self, mailbox: MailboxGuid) -> Result<Box<dyn Mailbox>> {
        self.call()?.by_guid(mailbox)?;
        Ok(Box::new(MemoryMailbox::new(self.clone(), mailbox)))
    }

    fn attributes(&mut self) -> Result<Option<AttributeList>> {
        Ok(Some(self.call()?.attributes.clone()))
    }

    fn change_attributes(&mut self, changes: &AttributeChanges) -> Result<()> {
        let mut account = self.call()?;
        for (key, value) in changes {
            match value {
                Some(value) => {
                    account.attributes.insert(key.clone(), AttributeValue::Bytes(value.clone()));
                }
                None => {
                    account.attributes.remove(key);
                }
            }
        }
        Ok(())
    }

    fn notes(&mut self) -> Result<Vec<String>> {
        Ok(self.call()?.notes.keys().cloned().collect())
    }

    fn read_note(&mut self, name: &str, bytes_max: usize) -> Result<Option<Vec<u8>>> {
        let note = self.call()?.notes.get(name).cloned();
        match note {
            Some(note) if note.len() > bytes_max => {
                Err(StorageError::Impossible(format!("note {name} is too large")))
            }
            note => Ok(note),
        }
    }

    fn write_note(&mut self, name: &str, content: &[u8]) -> Result<()> {
        self.call()?.notes.insert(name.to_owned(), content.to_vec());
        Ok(())
    }

    fn remove_note(&mut self, name: &str) -> Result<()> {
        self.call()?.notes.remove(name);
        Ok(())
    }
}
