//! Maildir, as Dovecot keeps it: an account of Maildir++ or `LAYOUT=fs` folders.
//!
//! Modseqs, history and keywords beyond 26 are in the index, which `indexed` keeps in step with the files.

mod filename;
mod indexed;
mod mailbox;
mod scan;
mod shared;
mod uidlist;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use dsync_model::{
    AttributeChanges, AttributeList, MailboxGuid, MailboxName, MailboxNode, MailboxTree, NameRules, StoreId,
    TreeChange, TreeLog, Uid,
};
use rand::RngExt;

use crate::account::Account;
use crate::index::Index;
use crate::layout::{Index as IndexPlace, Kind, Layout};
use crate::status_cache::{self, StatusCache};
use crate::{
    Capabilities, Fsync, Mailbox, MailboxProblem, Result, Storage, StorageError, StoreLock, Support,
    UserLock, compressed, disk,
};
use mailbox::MaildirMailbox;
use scan::Scan;
use shared::Shared;

/// Messages whose listings are kept between `tree` and `open`.
const CACHED_MAX: usize = 300_000;

/// An account of Maildirs.
pub struct Maildir {
    shared: Arc<Shared>,
    names: BTreeMap<MailboxGuid, MailboxName>,
    log: TreeLog,
    scans: BTreeMap<MailboxGuid, Scan>,
}

impl Maildir {
    /// Opens an account; its root is made if it is missing.
    pub fn open(layout: Layout, fsync: Fsync) -> Result<Maildir> {
        let shared = Arc::new(Shared { account: Account::open(layout, fsync)? });
        Ok(Maildir { shared, names: BTreeMap::new(), log: TreeLog::default(), scans: BTreeMap::new() })
    }

    fn name_of(&self, guid: MailboxGuid) -> Result<&MailboxName> {
        self.names.get(&guid).ok_or_else(|| StorageError::NoMailbox(guid.to_string()))
    }

    /// Says whether a mailbox of this GUID was listed before, under another name. If it has that name no more, it was renamed meanwhile, and the list is void.
    fn is_taken(&self, guid: MailboxGuid) -> Result<bool> {
        let Some(name) = self.names.get(&guid) else { return Ok(false) };
        let places = self.shared.account.places(name)?;
        let there = uidlist::UidList::read(&places.control)?.guid == Some(guid);
        if there { Ok(true) } else { Err(StorageError::NoMailbox(name.to_string())) }
    }

    fn list_one(&mut self, name: &MailboxName, cache: &mut StatusCache) -> Result<MailboxNode> {
        let places = self.shared.account.places(name)?;
        self.shared.sweep(&places)?;
        let changed = status_cache::last_change([&*places.mail.join("cur"), &*places.mail.join("new")]);
        let before = scan::fingerprint(&places);
        let known = cache.get(&places.mail, before).filter(|status| !self.names.contains_key(&status.guid));
        if let Some(status) = known {
            self.names.insert(status.guid, name.clone());
            return Ok(MailboxNode { mailbox: Some(status), changed, ..MailboxNode::default() });
        }
        let (mut scan, mut index) = self.shared.read(&places)?;
        let mut list = indexed::list(&scan, index.as_ref().map(Index::state));
        let mut status = indexed::status(&scan, index.as_ref().map(Index::state), &list)?;
        // A copied directory: two mailboxes must not share a GUID.
        let taken = self.is_taken(status.guid)?;
        if let Some((guid, uid_validity)) = self.shared.account.other_identity(name, &status, taken)? {
            self.shared.identify(&places, guid, uid_validity)?;
            self.shared.account.names_changed(&[name], &[]);
            (scan, index) = self.shared.read(&places)?;
            list = indexed::list(&scan, index.as_ref().map(Index::state));
            status = indexed::status(&scan, index.as_ref().map(Index::state), &list)?;
        }
        cache.put(&places.mail, before.filter(|_| scan::fingerprint(&places) == before), &status);
        self.names.insert(status.guid, name.clone());
        let cached: usize = self.scans.values().map(|scan| scan.files.len()).sum();
        // Who only pretends must not look twice: what has no UID on the disk would get another.
        if cached + scan.files.len() <= CACHED_MAX || disk::pretends() {
            self.scans.insert(status.guid, scan);
        }
        Ok(MailboxNode { mailbox: Some(status), changed, ..MailboxNode::default() })
    }
}

impl Storage for Maildir {
    fn location(&self) -> String {
        self.shared.account.location()
    }

    fn capabilities(&self) -> Capabilities {
        let directories = self.shared.account.layout.kind != Kind::MaildirPlusPlus;
        let message_guid = Support::Kept;
        if self.shared.account.layout.index == IndexPlace::Memory {
            return Capabilities {
                modseq: Support::None,
                log: false,
                keywords_max: Some(26),
                directories,
                message_guid,
                clones: true,
            };
        }
        Capabilities {
            modseq: Support::Kept,
            log: true,
            keywords_max: None,
            directories,
            message_guid,
            clones: true,
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
        self.scans.clear();
        let account = &self.shared.account;
        account.find_lost()?;
        let inbox = Some(MailboxName::inbox()).filter(|_| account.layout.has_inbox);
        if let Some(inbox) = &inbox {
            if account.lists_by_index() && account.listed(inbox)?.is_none() {
                let validity = account.new_uid_validity()?;
                self.shared.create(inbox, MailboxGuid(rand::rng().random()), validity, Uid::MIN)?;
            } else {
                self.shared.make_mailbox(inbox, &account.places(inbox)?)?;
            }
        }
        account.empty_trash()?;
        let (found, mut problems) = account.find()?;
        let mut cache = StatusCache::read(&self.shared.account);
        let mut tree = MailboxTree::new();
        if let Some(inbox) = inbox {
            match self.list_one(&inbox, &mut cache) {
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
            match self.list_one(&found.name, &mut cache) {
                Ok(node) => {
                    tree.insert(found.name, node);
                }
                Err(error) => problems.push(MailboxProblem { mailbox: found.name.to_string(), error }),
            }
        }
        cache.write(&self.shared.account);
        for name in self.shared.account.subscribed()? {
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
        match change {
            TreeChange::Create { name, guid, uid_validity, uid_next } => {
                shared.create(name, *guid, *uid_validity, *uid_next)?;
                self.names.insert(*guid, name.clone());
            }
            TreeChange::CreateDirectory { .. } if shared.account.lists_by_index() => {
                shared.account.change_list(change)?;
            }
            TreeChange::CreateDirectory { name } => {
                if shared.account.layout.kind == Kind::Fs {
                    disk::make_directory(&shared.account.layout.directory(name)?)?;
                }
            }
            TreeChange::Rename { guid, from, to } => {
                if self.names.get(guid) != Some(from) {
                    return Err(StorageError::NoMailbox(from.to_string()));
                }
                if shared.account.lists_by_index() {
                    shared.account.change_list(change)?;
                } else {
                    shared.rename(from, to)?;
                }
                shared.account.log_renamed(to);
                self.scans.remove(guid);
                self.names.insert(*guid, to.clone());
            }
            TreeChange::Identify { name, guid, uid_validity } => {
                let places = shared.account.lead_places(name, *guid, *uid_validity)?;
                shared.identify(&places, *guid, *uid_validity)?;
                shared.account.settle_places(&places)?;
                self.names.retain(|_, known| known != name);
                self.names.insert(*guid, name.clone());
            }
            TreeChange::Delete { name, guid, uid_next } => {
                let places = shared.account.places(name)?;
                // In Maildir++ whatever has such a name is listed, without mail in it too.
                let listed = match shared.account.layout.kind {
                    Kind::Fs => places.mail.join("cur"),
                    _ => places.mail.clone(),
                };
                if !listed.exists() {
                    return Ok(true);
                }
                if !shared.delete(name, &places, *guid, *uid_next)? {
                    return Ok(false);
                }
                shared.account.log_deleted(name, *guid);
            }
            TreeChange::DeleteDirectory { name } if shared.account.lists_by_index() => {
                shared.account.change_list(change)?;
                if !shared.account.is_listed(name)? {
                    shared.account.log_directory_deleted(name);
                }
            }
            TreeChange::DeleteDirectory { name } => {
                if shared.account.layout.kind == Kind::Fs {
                    let directory = shared.account.layout.directory(name)?;
                    disk::remove_empty(&directory)?;
                    if !directory.exists() {
                        shared.account.log_directory_deleted(name);
                    }
                }
            }
            TreeChange::Subscribe { names } => {
                shared.account.subscribe(names)?;
            }
            TreeChange::Unsubscribe { names } => {
                shared.account.unsubscribe(names)?;
            }
        }
        shared.account.tree_changed(change);
        Ok(true)
    }

    fn open(&mut self, mailbox: MailboxGuid) -> Result<Box<dyn Mailbox>> {
        let places = self.shared.account.places(self.name_of(mailbox)?)?;
        let known = self.scans.remove(&mailbox);
        let known = known.filter(|scan| disk::pretends() || scan.is_current(&places));
        let (scan, index) = match known {
            Some(mut scan) => {
                let index = indexed::open(&places, &mut scan, self.shared.account.fsync)?;
                (scan, index)
            }
            None => self.shared.read(&places)?,
        };
        if scan.list.guid != Some(mailbox) {
            return Err(StorageError::NoMailbox(mailbox.to_string()));
        }
        Ok(Box::new(MaildirMailbox::new(self.shared.clone(), places, scan, index)))
    }

    fn check(&mut self, mailbox: MailboxGuid, from: Uid) -> Result<bool> {
        let places = self.shared.account.places(self.name_of(mailbox)?)?;
        let known = self.scans.get(&mailbox).filter(|scan| scan.is_current(&places));
        let taken = if known.is_none() { Some(self.shared.scan(&places)?) } else { None };
        let Some(scan) = known.or(taken.as_ref()) else { return Ok(true) };
        for (_, file) in scan.messages().filter(|(record, _)| record.uid >= from) {
            compressed::check_file(&file.path(&places.mail))?;
        }
        Ok(true)
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
}
