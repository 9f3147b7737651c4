//! Accounts of sdbox and mdbox: one [`Storage`] for both, as all but the place of bodies is alike.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dsync_model::{
    AttributeChanges, AttributeList, MailboxGuid, MailboxName, MailboxNode, MailboxStatus, MailboxTree,
    NameRules, StoreId, TreeChange, TreeLog, Uid, UidValidity,
};
use rand::RngExt;

use super::map::Map;
use super::shared::Shared;
use super::store::Store;
use crate::account::Account;
use crate::index::Index;
use crate::layout::{Format, Layout};
use crate::status_cache::{self, Fingerprint, StatusCache};
use crate::{
    Capabilities, Fsync, Mailbox, MailboxProblem, Purged, Result, Storage, StorageError, StoreLock, Support,
    UserLock, disk,
};

/// When a file `m.N` takes no further message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rotation {
    /// It would grow beyond this (setting `mdbox_rotate_size`).
    pub bytes: u64,
    /// It was begun before this time (setting `mdbox_rotate_interval`), counted in whole days, hours or minutes, where the
    /// present one is the first; 0: at any age.
    pub secs: u64,
}

impl Default for Rotation {
    fn default() -> Rotation {
        Rotation { bytes: 10 << 20, secs: 0 }
    }
}

impl Rotation {
    /// The time before which a file must not have been begun. Days begin at midnight UTC.
    pub(super) fn oldest(self, now: i64) -> Option<i64> {
        let secs = i64::try_from(self.secs).ok().filter(|secs| *secs > 0)?;
        let unit = [86_400, 3600, 60].into_iter().find(|unit| secs >= *unit).unwrap_or(1);
        Some((now - now.rem_euclid(unit)).saturating_sub(secs - unit))
    }
}

/// An account of sdbox or mdbox, as its layout says.
pub struct Dbox {
    shared: Arc<Shared>,
    names: BTreeMap<MailboxGuid, MailboxName>,
    log: TreeLog,
    /// The map, as it was last looked at: not before a mailbox has to be read, as it is as large as the account.
    map: Option<Map>,
}

/// An account of sdbox.
pub type Sdbox = Dbox;

/// An account of mdbox.
pub type Mdbox = Dbox;

impl Dbox {
    /// Opens an account; its root is made if it is missing.
    pub fn open(layout: Layout, fsync: Fsync, attachments: Option<PathBuf>) -> Result<Dbox> {
        Dbox::open_rotating(layout, fsync, attachments, Rotation::default())
    }

    /// The same with other rules for the files of mdbox.
    pub fn open_rotating(
        layout: Layout,
        fsync: Fsync,
        attachments: Option<PathBuf>,
        rotation: Rotation,
    ) -> Result<Dbox> {
        let multi = layout.format == Format::Mdbox;
        let in_memory = layout.index == crate::layout::Index::Memory;
        if in_memory {
            let what = format!(
                "{}:{}: the index is the mailbox, and must lie on disk",
                layout.format,
                layout.root.display()
            );
            return Err(StorageError::Location(what));
        }
        let account = Account::open(layout, fsync)?;
        let store = multi.then(|| Store::new(&account.layout, rotation));
        let shared = Arc::new(Shared {
            account,
            attachments,
            store,
            statuses: Mutex::default(),
            guids: Mutex::default(),
        });
        let mut dbox = Dbox { shared, names: BTreeMap::new(), log: TreeLog::default(), map: None };
        dbox.make_missing_map()?;
        Ok(dbox)
    }

    fn make_missing_map(&mut self) -> Result<()> {
        let store = self.shared.store.as_ref();
        if store.is_some_and(|store| Index::stamp(&Map::paths(&store.map)).is_none()) {
            self.map = self.shared.open_map()?;
        }
        Ok(())
    }

    fn name_of(&self, mailbox: MailboxGuid) -> Result<&MailboxName> {
        self.names.get(&mailbox).ok_or_else(|| StorageError::NoMailbox(mailbox.to_string()))
    }

    /// Says whether a mailbox of this GUID was listed before, under another name. If it has that name no more, it was renamed meanwhile, and the list is void.
    fn is_taken(&self, guid: MailboxGuid) -> Result<bool> {
        let Some(name) = self.names.get(&guid) else { return Ok(false) };
        let index = Index::open(Shared::paths(&self.shared.account.places(name)?))?;
        let there = index.is_some_and(|index| self.shared.guid_of(index.state()) == Some(guid));
        if there { Ok(true) } else { Err(StorageError::NoMailbox(name.to_string())) }
    }

    fn list_one(&mut self, name: &MailboxName) -> Result<MailboxNode> {
        let places = self.shared.account.places(name)?;
        let log = Shared::paths(&places).log();
        let changed = status_cache::last_change([log.as_path()]);
        let known = self.shared.statuses().get(&places.mail, Fingerprint::of_log(&log));
        if let Some(status) = known.filter(|status| !self.names.contains_key(&status.guid)) {
            self.names.insert(status.guid, name.clone());
            return Ok(MailboxNode { mailbox: Some(status), changed, ..MailboxNode::default() });
        }
        super::sweep(&places.mail)?;
        let (mut guid, mut index) = self.shared.index(&places)?;
        if self.map.is_none() {
            self.map = self.shared.open_map()?;
        }
        if let Some(map) = &self.map
            && self.shared.map_validity_of(index.state()) != map.uid_validity()
        {
            let what = "mailbox refers to another map than the one that is there; doveadm force-resync helps";
            return Err(StorageError::Corrupt { path: index.paths().log(), line: 0, what });
        }
        if let Some((listed, validity)) = self.shared.account.listed_otherwise(name, guid)? {
            tracing::warn!("{name}: has another GUID than its directory, and gets that");
            guid = listed;
            self.shared.identify(&mut index, guid, validity)?;
        }
        if self.is_taken(guid)? {
            // A copied directory: two mailboxes must not share a GUID.
            guid = MailboxGuid(rand::rng().random());
            tracing::warn!("{name}: has the GUID of another mailbox, and gets a new one");
            let validity = UidValidity::new(index.state().header.uid_validity);
            self.shared.identify(&mut index, guid, validity)?;
            self.shared.account.names_changed(&[name], &[]);
        }
        let mut mailbox = self.shared.mailbox(name, places, guid, index, self.map.take());
        let status = mailbox.status();
        self.map = mailbox.into_map()?;
        let status = status?;
        self.names.insert(guid, name.clone());
        Ok(MailboxNode { mailbox: Some(status), changed, ..MailboxNode::default() })
    }
}

impl Drop for Dbox {
    fn drop(&mut self) {
        self.shared.statuses().write(&self.shared.account);
    }
}

impl Storage for Dbox {
    fn location(&self) -> String {
        self.shared.account.location()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            modseq: Support::Kept,
            log: true,
            keywords_max: None,
            directories: true,
            message_guid: Support::Kept,
            clones: false,
        }
    }

    fn is_shared(&self, path: &Path) -> bool {
        self.shared.account.layout.is_shared(path)
    }

    fn rules(&self) -> NameRules {
        NameRules { namespaces: vec![self.shared.account.layout.rules()] }
    }

    fn store_id(&mut self) -> Result<StoreId> {
        self.shared.account.store_id()
    }

    fn lock(&mut self, wait: Duration) -> Result<StoreLock> {
        self.shared.account.lock(wait)
    }

    fn lock_user(&mut self, me: StoreId, peer: StoreId, wait: Duration) -> Result<Option<UserLock>> {
        self.shared.account.lock_user(me, peer, wait)
    }

    fn tree(&mut self) -> Result<(MailboxTree, Vec<MailboxProblem>)> {
        self.names.clear();
        let shared = self.shared.clone();
        let account = &shared.account;
        account.empty_trash()?;
        let inbox = Some(MailboxName::inbox()).filter(|_| account.layout.has_inbox);
        if let Some(store) = &self.shared.store {
            super::sweep(&store.directory)?;
            self.map = self.map.take().and_then(|mut map| map.refresh().ok().map(|_| map));
            self.make_missing_map()?;
        }
        account.find_lost()?;
        if let Some(inbox) = &inbox {
            shared.make_inbox(inbox)?;
        }
        let subscribed = account.subscribed()?;
        let (found, mut problems) = account.find()?;
        *shared.statuses() = StatusCache::read(account);
        let mut tree = MailboxTree::new();
        if let Some(inbox) = inbox {
            match self.list_one(&inbox) {
                Ok(node) => drop(tree.insert(inbox, node)),
                Err(error) if self.concerns_all(&error) => return Err(error),
                Err(error) => problems.push(MailboxProblem { mailbox: inbox.to_string(), error }),
            }
        }
        for found in found {
            if !found.mailbox {
                tree.entry(found.name).or_default().directory = true;
                continue;
            }
            match self.list_one(&found.name) {
                Ok(node) => {
                    tree.insert(found.name, node);
                }
                Err(error) => problems.push(MailboxProblem { mailbox: found.name.to_string(), error }),
            }
        }
        shared.statuses().write(account);
        for name in subscribed {
            tree.entry(name).or_default().subscribed = true;
        }
        self.log = self.shared.account.tell_history(&mut tree);
        Ok((tree, problems))
    }

    fn is_steady(&mut self) -> Result<bool> {
        self.shared.account.is_steady()
    }

    fn tree_log(&self) -> TreeLog {
        self.log.clone()
    }

    fn change_tree(&mut self, change: &TreeChange) -> Result<bool> {
        let shared = self.shared.clone();
        let account = &shared.account;
        match change {
            TreeChange::Create { name, guid, uid_validity, uid_next } => {
                shared.create(name, *guid, *uid_validity, *uid_next)?;
                self.names.insert(*guid, name.clone());
            }
            TreeChange::CreateDirectory { .. } if account.lists_by_index() => account.change_list(change)?,
            TreeChange::CreateDirectory { name } => disk::make_directory(&account.layout.directory(name)?)?,
            TreeChange::Rename { guid, from, to } => {
                if self.names.get(guid) != Some(from) {
                    return Err(StorageError::NoMailbox(from.to_string()));
                }
                if account.lists_by_index() {
                    account.change_list(change)?;
                } else {
                    shared.rename(from, to)?;
                }
                account.log_renamed(to);
                self.names.insert(*guid, to.clone());
            }
            TreeChange::Identify { name, guid, uid_validity } => {
                let places = account.lead_places(name, *guid, *uid_validity)?;
                let (_, mut index) = shared.index(&places)?;
                shared.identify(&mut index, *guid, Some(*uid_validity))?;
                account.settle_places(&places)?;
                self.names.retain(|_, known| known != name);
                self.names.insert(*guid, name.clone());
            }
            TreeChange::Delete { name, guid, uid_next } => {
                if !shared.delete(name, *guid, *uid_next)? {
                    return Ok(false);
                }
                account.log_deleted(name, *guid);
            }
            TreeChange::DeleteDirectory { name } => {
                let gone = if account.lists_by_index() {
                    account.change_list(change)?;
                    !account.is_listed(name)?
                } else {
                    let directory = account.layout.directory(name)?;
                    disk::remove_empty(&directory)?;
                    !directory.exists()
                };
                if gone {
                    account.log_directory_deleted(name);
                }
            }
            TreeChange::Subscribe { names } => account.subscribe(names)?,
            TreeChange::Unsubscribe { names } => account.unsubscribe(names)?,
        }
        account.tree_changed(change);
        Ok(true)
    }

    fn open(&mut self, mailbox: MailboxGuid) -> Result<Box<dyn Mailbox>> {
        let name = self.name_of(mailbox)?.clone();
        let places = self.shared.account.places(&name)?;
        let index = Index::open(Shared::paths(&places))?;
        let index = index.filter(|index| self.shared.guid_of(index.state()) == Some(mailbox));
        let index = index.ok_or_else(|| StorageError::NoMailbox(mailbox.to_string()))?;
        Ok(Box::new(self.shared.mailbox(&name, places, mailbox, index, self.map.take())))
    }

    fn status(&mut self, mailbox: MailboxGuid) -> Result<MailboxStatus> {
        let name = self.name_of(mailbox)?;
        let places = self.shared.account.places(name)?;
        let now = Fingerprint::of_log(&Shared::paths(&places).log());
        let known = self.shared.statuses().get(&places.mail, now).filter(|status| status.guid == mailbox);
        known.map_or_else(|| self.open(mailbox)?.status(), Ok)
    }

    fn attributes(&mut self) -> Result<Option<AttributeList>> {
        self.shared.account.attributes().map(Some)
    }

    fn change_attributes(&mut self, changes: &AttributeChanges) -> Result<()> {
        self.shared.account.change_attributes(changes)
    }

    fn notes(&mut self) -> Result<Vec<String>> {
        self.shared.account.notes()
    }

    fn read_note(&mut self, name: &str, bytes_max: usize) -> Result<Option<Vec<u8>>> {
        self.shared.account.read_note(name, bytes_max)
    }

    fn write_note(&mut self, name: &str, content: &[u8]) -> Result<()> {
        self.shared.account.write_note(name, content)
    }

    fn remove_note(&mut self, name: &str) -> Result<()> {
        self.shared.account.remove_note(name)
    }

    fn check(&mut self, mailbox: MailboxGuid, from: Uid) -> Result<bool> {
        let name = self.name_of(mailbox)?.clone();
        let places = self.shared.account.places(&name)?;
        let index = Index::open(Shared::paths(&places))?;
        let index = index.ok_or_else(|| StorageError::NoMailbox(mailbox.to_string()))?;
        let mut open = self.shared.mailbox(&name, places, mailbox, index, self.map.take());
        let checked = open.check(from);
        self.map = open.into_map()?;
        checked.map(|()| true)
    }

    fn purge(&mut self, from: u32) -> Result<Option<Purged>> {
        self.shared.store.as_ref().map(|store| super::purge::purge(&self.shared, store, from)).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_present_day_is_the_first() {
        let oldest = |secs, now| Rotation { bytes: 0, secs }.oldest(now);
        let day = 86_400;
        assert_eq!(oldest(0, 10 * day), None);
        assert_eq!(oldest(86_400, 10 * day + 5), Some(10 * day), "1d: since midnight");
        assert_eq!(oldest(2 * 86_400, 10 * day + 5), Some(9 * day));
        assert_eq!(oldest(3600, 10 * day + 3700), Some(10 * day + 3600));
        assert_eq!(oldest(30, 1000), Some(971));
    }

    #[test]
    fn a_map_is_read_when_a_mailbox_is() {
        let directory = tempfile::tempdir().unwrap();
        let open = || {
            let layout = Layout::new(Format::Mdbox, directory.path().join("mail"));
            Dbox::open(layout, Fsync::Never, None).unwrap()
        };
        assert!(open().map.is_some(), "just made");
        let mut again = open();
        assert!(again.map.is_none());
        again.tree().unwrap();
        assert!(again.map.is_some());
    }
}
