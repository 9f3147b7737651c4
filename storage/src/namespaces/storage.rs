//! The namespaces that take part as one [`Storage`]: what is about a name or a mailbox goes to its namespace, the rest to all or to one.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use dsync_model::{
    AttributeChanges, AttributeList, MailboxGuid, MailboxStatus, MailboxTree, NameRules, Namespaces, StoreId,
    TreeChange, TreeLog, Uid,
};

use super::Namespaced;
use super::moving::Move;
use crate::{
    Capabilities, Mailbox, MailboxProblem, Purged, Result, Storage, StorageError, StoreLock, Support,
    UserLock,
};

/// What all of them can do.
fn least(a: Support, b: Support) -> Support {
    match (a, b) {
        (Support::None, _) | (_, Support::None) => Support::None,
        (Support::Volatile, _) | (_, Support::Volatile) => Support::Volatile,
        (Support::Kept, Support::Kept) => Support::Kept,
    }
}

impl Storage for Namespaced {
    fn location(&self) -> String {
        let all: Vec<String> = self.open.iter().map(|open| open.storage.location()).collect();
        all.join(", ")
    }

    fn capabilities(&self) -> Capabilities {
        let all = self.open.iter().map(|open| open.storage.capabilities());
        let both = |a: Capabilities, b: Capabilities| Capabilities {
            modseq: least(a.modseq, b.modseq),
            log: a.log && b.log,
            keywords_max: [a.keywords_max, b.keywords_max].into_iter().flatten().min(),
            directories: a.directories && b.directories,
            message_guid: least(a.message_guid, b.message_guid),
            clones: a.clones || b.clones,
        };
        all.reduce(both).unwrap_or(Capabilities {
            modseq: Support::None,
            log: false,
            keywords_max: None,
            directories: false,
            message_guid: Support::Kept,
            clones: false,
        })
    }

    fn is_shared(&self, path: &Path) -> bool {
        self.open.iter().any(|open| open.storage.is_shared(path))
    }

    fn rules(&self) -> NameRules {
        self.rules.clone()
    }

    fn choose(&mut self, namespaces: &Namespaces) -> Result<()> {
        if self.choice != *namespaces {
            self.choice = namespaces.clone();
            self.open_chosen()?;
        }
        Ok(())
    }

    fn store_id(&mut self) -> Result<StoreId> {
        self.main_mut()?.store_id()
    }

    /// The locks of all, in the order of the configuration: no two sessions wait for each other.
    fn lock(&mut self, wait: Duration) -> Result<StoreLock> {
        let locks: Result<Vec<StoreLock>> =
            self.open.iter_mut().map(|open| open.storage.lock(wait)).collect();
        Ok(StoreLock(Box::new(locks?)))
    }

    fn lock_user(&mut self, me: StoreId, peer: StoreId, wait: Duration) -> Result<Option<UserLock>> {
        self.main_mut()?.lock_user(me, peer, wait)
    }

    fn is_steady(&mut self) -> Result<bool> {
        for open in &mut self.open {
            if !open.storage.is_steady()? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn tree(&mut self) -> Result<(MailboxTree, Vec<MailboxProblem>)> {
        self.mailboxes.clear();
        let mut listed = self.list()?;
        // Each namespace has at most one move into it that is not done.
        for _ in 0..self.open.len() {
            if !self.settle_moves(&mut listed)? {
                break;
            }
            listed = self.list()?;
        }
        let (mut tree, mut problems) = (MailboxTree::new(), Vec::new());
        for (at, listed) in listed.into_iter().enumerate() {
            self.add(at, listed, &mut tree, &mut problems)?;
        }
        self.log = TreeLog { separator: self.main()?.tree_log().separator, ..TreeLog::default() };
        for open in self.open.iter().filter(|open| self.rules.namespaces[open.index].takes_part) {
            let log = open.storage.tree_log();
            self.log.deleted.extend(log.deleted);
            // Hashes of names that are spelled with another separator would mean other names.
            if log.separator == self.log.separator {
                self.log.directories.extend(log.directories);
                self.log.unsubscribed.extend(log.unsubscribed);
            }
        }
        // What was deleted in one namespace may be in another.
        self.log.deleted.retain(|guid, _| !self.mailboxes.contains_key(guid));
        Ok((tree, problems))
    }

    fn tree_log(&self) -> TreeLog {
        self.log.clone()
    }

    fn change_tree(&mut self, change: &TreeChange) -> Result<bool> {
        let mut change = change.clone();
        let mut made = None;
        let at = match &mut change {
            TreeChange::Rename { guid, from, to } => {
                let (at, old) = self.place(from)?;
                let (there, new) = self.place(to)?;
                if at != there {
                    let (outer, attributes_together) = ([&*from, &*to], self.attributes_together(at, there));
                    let [here, other] = self.both(at, there)?;
                    let (from, to) = ((here, &old), (other, &new));
                    Move { guid: *guid, from, to, outer, attributes_together }.run()?;
                    self.mailboxes.insert(*guid, there);
                    return Ok(true);
                }
                (*from, *to) = (old, new);
                at
            }
            TreeChange::Subscribe { names } | TreeChange::Unsubscribe { names } => {
                let all = self.by_keeper(names)?;
                let subscribe = matches!(change, TreeChange::Subscribe { .. });
                for (at, names) in all {
                    let change = match subscribe {
                        true => TreeChange::Subscribe { names },
                        false => TreeChange::Unsubscribe { names },
                    };
                    self.open[at].storage.change_tree(&change)?;
                }
                return Ok(true);
            }
            TreeChange::Create { name, guid, .. } | TreeChange::Identify { name, guid, .. } => {
                let (at, inner) = self.place(name)?;
                (*name, made) = (inner, Some(*guid));
                at
            }
            TreeChange::CreateDirectory { name }
            | TreeChange::Delete { name, .. }
            | TreeChange::DeleteDirectory { name } => {
                let (at, inner) = self.place(name)?;
                *name = inner;
                at
            }
        };
        let done = self.open[at].storage.change_tree(&change)?;
        self.mailboxes.extend(made.map(|guid| (guid, at)));
        Ok(done)
    }

    fn open(&mut self, mailbox: MailboxGuid) -> Result<Box<dyn Mailbox>> {
        let at = self.mailboxes.get(&mailbox).copied();
        let at = at.ok_or_else(|| StorageError::NoMailbox(mailbox.to_string()))?;
        self.open[at].storage.open(mailbox)
    }

    fn status(&mut self, mailbox: MailboxGuid) -> Result<MailboxStatus> {
        let at = self.mailboxes.get(&mailbox).copied();
        let at = at.ok_or_else(|| StorageError::NoMailbox(mailbox.to_string()))?;
        self.open[at].storage.status(mailbox)
    }

    fn attributes(&mut self) -> Result<Option<AttributeList>> {
        let mut all = AttributeList::new();
        for open in &mut self.open {
            let Some(some) = open.storage.attributes()? else { return Ok(None) };
            all.extend(some);
        }
        Ok(Some(all))
    }

    fn change_attributes(&mut self, changes: &AttributeChanges) -> Result<()> {
        let mut all: BTreeMap<usize, AttributeChanges> = BTreeMap::new();
        for (key, value) in changes {
            let at = self.mailboxes.get(&key.mailbox).copied().unwrap_or(self.main);
            all.entry(at).or_default().insert(key.clone(), value.clone());
        }
        all.into_iter().try_for_each(|(at, changes)| self.open[at].storage.change_attributes(&changes))
    }

    fn notes(&mut self) -> Result<Vec<String>> {
        self.main_mut()?.notes()
    }

    fn read_note(&mut self, name: &str, bytes_max: usize) -> Result<Option<Vec<u8>>> {
        self.main_mut()?.read_note(name, bytes_max)
    }

    fn write_note(&mut self, name: &str, content: &[u8]) -> Result<()> {
        self.main_mut()?.write_note(name, content)
    }

    fn remove_note(&mut self, name: &str) -> Result<()> {
        self.main_mut()?.remove_note(name)
    }

    fn check(&mut self, mailbox: MailboxGuid, from: Uid) -> Result<bool> {
        match self.mailboxes.get(&mailbox) {
            Some(at) => self.open[*at].storage.check(mailbox, from),
            None => Ok(false),
        }
    }

    /// One namespace after the other; what is handed out to go on with means nothing but that there is more.
    fn purge(&mut self, from: u32) -> Result<Option<Purged>> {
        if from == 0 {
            self.purging = (0, 0);
        }
        while let Some(open) = self.open.get_mut(self.purging.0) {
            let (at, from) = self.purging;
            let Some(purged) = open.storage.purge(from)? else {
                self.purging = (at + 1, 0);
                continue;
            };
            self.purging = purged.next.map_or((at + 1, 0), |next| (at, next));
            let more = self.purging.0 < self.open.len();
            return Ok(Some(Purged { next: more.then_some(1), ..purged }));
        }
        Ok(if from == 0 { None } else { Some(Purged::default()) })
    }
}
