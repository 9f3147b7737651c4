//! An account of mbox files: listing, making, renaming and deleting mailboxes, and their identity.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dsync_model::{
    AttributeChanges, AttributeList, MailboxGuid, MailboxName, MailboxNode, MailboxTree, NameRules, StoreId,
    TreeChange, TreeLog, Uid, UidValidity,
};
use rand::RngExt;

use super::indexed::{self, Shared};
use super::locks::{Access, Locking};
use super::mailbox::{self, MboxMailbox};
use crate::account::Account;
use crate::layout::{Index as IndexPlace, Layout, Places};
use crate::status_cache::{self, Fingerprint, StatusCache};
use crate::{
    Capabilities, Fsync, Mailbox, MailboxProblem, Result, Storage, StorageError, StoreLock, Support,
    UserLock, disk,
};

/// An account of mbox files.
pub struct Mbox {
    shared: Arc<Shared>,
    names: BTreeMap<MailboxGuid, MailboxName>,
    log: TreeLog,
}

impl Mbox {
    /// Opens an account; its root is made if it is missing.
    pub fn open(layout: Layout, fsync: Fsync, locking: Locking) -> Result<Mbox> {
        if layout.index == IndexPlace::Memory {
            let what = format!(
                "mbox:{}: the index has the GUID of each mailbox, and must lie on disk",
                layout.root.display()
            );
            return Err(StorageError::Location(what));
        }
        let shared = Shared { account: Account::open(layout, fsync)?, locking, imagined: Mutex::default() };
        Ok(Mbox { shared: Arc::new(shared), names: BTreeMap::new(), log: TreeLog::default() })
    }

    /// Says whether a mailbox of this GUID was listed before, under another name. If it has that name no more, it was renamed meanwhile, and the list is void.
    fn is_taken(&self, guid: MailboxGuid) -> Result<bool> {
        let Some(name) = self.names.get(&guid) else { return Ok(false) };
        let content = self.shared.read(&self.shared.account.places(name)?, None)?;
        let there = content.status(&content.list())?.guid == guid;
        if there { Ok(true) } else { Err(StorageError::NoMailbox(name.to_string())) }
    }

    fn list_one(&mut self, name: &MailboxName, cache: &mut StatusCache) -> Result<MailboxNode> {
        let places = self.shared.account.places(name)?;
        mailbox::sweep(&places)?;
        let log = indexed::paths(&places).log();
        let fingerprint = || Fingerprint::of([places.mail.as_path(), log.as_path()]);
        let changed = status_cache::last_change([places.mail.as_path()]);
        let before = fingerprint();
        let known = cache.get(&places.mail, before).filter(|status| !self.names.contains_key(&status.guid));
        if let Some(status) = known {
            self.names.insert(status.guid, name.clone());
            return Ok(MailboxNode { mailbox: Some(status), changed, ..MailboxNode::default() });
        }
        let mut content = self.shared.read(&places, None)?;
        let mut status = content.status(&content.list())?;
        // A copied index: two mailboxes must not share a GUID.
        let taken = self.is_taken(status.guid)?;
        if let Some((guid, uid_validity)) = self.shared.account.other_identity(name, &status, taken)? {
            self.shared.identify(&places, guid, uid_validity)?;
            self.shared.account.names_changed(&[name], &[]);
            content = self.shared.read(&places, None)?;
            status = content.status(&content.list())?;
        }
        cache.put(&places.mail, before.filter(|_| fingerprint() == before), &status);
        self.names.insert(status.guid, name.clone());
        Ok(MailboxNode { mailbox: Some(status), changed, ..MailboxNode::default() })
    }
}

impl Shared {
    fn make_inbox(&self) -> Result<()> {
        let inbox = MailboxName::inbox();
        if self.account.lists_by_index() && self.account.listed(&inbox)?.is_none() {
            let validity = self.account.new_uid_validity()?;
            return self.create(&inbox, MailboxGuid(rand::rng().random()), validity, Uid::MIN);
        }
        let places = self.account.places(&inbox)?;
        if places.mail.exists() { Ok(()) } else { self.make_file(&places) }
    }

    fn make_file(&self, places: &Places) -> Result<()> {
        let parent = places.mail.parent().unwrap_or(&self.account.layout.root);
        disk::make_directory(parent)?;
        // A spool that all may write to grants more than a mailbox may.
        let most = if parent.starts_with(&self.account.layout.root) { 0o666 } else { 0o660 };
        match disk::create(&places.mail, disk::file_mode(parent) & most) {
            // A delivery was faster.
            Err(StorageError::Io { source, .. }) if source.kind() == ErrorKind::AlreadyExists => Ok(()),
            made => disk::sync_file(&made?, &places.mail, self.account.fsync),
        }
    }

    fn create(
        &self,
        name: &MailboxName,
        guid: MailboxGuid,
        validity: UidValidity,
        uid_next: Uid,
    ) -> Result<()> {
        let places = self.account.new_places(name, guid)?;
        clear_place(&places.mail, name)?;
        self.remove_beside(&places)?;
        disk::make_directory(places.mail.parent().unwrap_or(&self.account.layout.root))?;
        // The index first: with the file it becomes a mailbox, and nobody gives it another identity.
        let own_name = self.account.own_name(None, name);
        indexed::create_index(indexed::paths(&places), validity, uid_next, guid, own_name)?;
        self.make_file(&places)?;
        disk::sync_directory(&self.account.layout.root, self.account.fsync)?;
        self.account.list_mailbox(name, guid, validity)
    }

    fn delete(&self, name: &MailboxName, guid: MailboxGuid, uid_next: Uid) -> Result<bool> {
        let places = self.account.places(name)?;
        if !places.mail.exists() {
            return Ok(true);
        }
        if self.account.layout.is_the_inbox(name) {
            return Err(StorageError::Impossible("INBOX cannot be deleted".into()));
        }
        let mut lock = self.lock(&places, Access::Write)?;
        let content = self.settle_to_write(&mut lock, &places, None)?;
        if indexed::guid_of(content.index.state()) != Some(guid) || content.uid_next() != uid_next {
            return Ok(false);
        }
        let trash = self.account.new_trash();
        self.account.unlist_mailbox(name, guid)?;
        disk::rename(&places.mail, &trash)?;
        disk::sync_directory(&self.account.layout.root, self.account.fsync)?;
        drop(lock);
        disk::remove(&trash)?;
        self.remove_beside(&places)?;
        if self.account.layout.dirname.is_some() {
            disk::remove_empty(&self.account.layout.directory(name)?)?;
        }
        self.account.log_deleted(name, guid);
        Ok(true)
    }

    /// Removes the files that lie beside the mail.
    fn remove_beside(&self, places: &Places) -> Result<()> {
        let directories = [Some(&places.control), places.index.as_ref(), places.cache.as_ref()];
        for directory in directories.into_iter().flatten() {
            for path in files_of(directory)? {
                disk::remove(&path)?;
            }
            self.remove_empty(directory)?;
        }
        Ok(())
    }

    /// Removes a directory beside the mail if it is empty, and the `.imap` it is in.
    fn remove_empty(&self, directory: &Path) -> Result<()> {
        if directory.is_dir() {
            disk::remove_empty(directory)?;
        }
        match directory.parent() {
            Some(above) if above.ends_with(".imap") && above != self.account.layout.control_root() => {
                disk::remove_empty(above)
            }
            _ => Ok(()),
        }
    }

    fn rename(&self, from: &MailboxName, to: &MailboxName) -> Result<()> {
        let layout = &self.account.layout;
        let (old, new) = (layout.places(from)?, layout.places(to)?);
        clear_place(&new.mail, to)?;
        let lock = self.lock(&old, Access::Write)?;
        disk::make_directory(new.mail.parent().unwrap_or(&layout.root))?;
        self.remove_beside(&new)?;
        let mut moves = vec![(&old.control, &new.control)];
        moves.extend(old.index.as_ref().zip(new.index.as_ref()));
        moves.extend(old.cache.as_ref().zip(new.cache.as_ref()));
        moves.dedup();
        // The index is at both places while the file moves: a mailbox that is without it gets another identity.
        let mut old_files = Vec::new();
        for (from, to) in &moves {
            let files = files_of(from)?;
            if !files.is_empty() {
                disk::make_directory(to)?;
            }
            for path in files {
                if let Some(name) = path.file_name() {
                    disk::hard_link(&path, &to.join(name))?;
                }
                old_files.push(path);
            }
        }
        disk::rename_new(&old.mail, &new.mail)?;
        old_files.iter().try_for_each(|path| disk::remove(path))?;
        moves.iter().try_for_each(|(from, _)| self.remove_empty(from))?;
        drop(lock);
        if layout.dirname.is_some() {
            disk::remove_empty(&layout.directory(from)?)?;
        }
        disk::sync_directory(&layout.root, self.account.fsync)
    }

    /// Gives a mailbox another identity, and with LAYOUT=index the place that goes with it. It moves before it is written: a content that a
    /// dead process left to be put into it lies beside it, under its name.
    fn identify_by_name(&self, name: &MailboxName, guid: MailboxGuid, validity: UidValidity) -> Result<()> {
        let lock = self.lock(&self.account.places(name)?, Access::Write)?;
        let places = self.account.lead_places(name, guid, validity)?;
        self.account.settle_places(&places)?;
        drop(lock);
        self.identify(&places, guid, validity)
    }

    fn delete_directory(&self, name: &MailboxName) -> Result<()> {
        let directory = self.account.layout.directory(name)?;
        remove_childless(&directory)?;
        if !directory.exists() {
            self.account.log_directory_deleted(name);
        }
        Ok(())
    }
}

/// Removes a directory without mailboxes below it.
fn remove_childless(directory: &Path) -> Result<()> {
    if !fs::symlink_metadata(directory).is_ok_and(|meta| meta.is_dir()) {
        return Ok(());
    }
    let imap = directory.join(".imap");
    if imap.is_dir() {
        disk::remove_empty(&imap)?;
    }
    disk::remove_empty(directory)
}

/// Makes way for a mailbox: a directory without mailboxes below it is one that cannot be selected, and becomes one that can. Fails if
/// something else lies there.
fn clear_place(path: &Path, name: &MailboxName) -> Result<()> {
    remove_childless(path)?;
    Err(match fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => StorageError::io(path)(error),
        Ok(meta) if meta.is_file() => StorageError::MailboxExists(name.to_string()),
        Ok(_) => StorageError::Impossible(format!("{}: is no regular file", path.display())),
    })
}

/// The files in a directory, which may be missing.
fn files_of(directory: &Path) -> Result<Vec<std::path::PathBuf>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(StorageError::io(directory)(error)),
    };
    let files = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()));
    Ok(files.map(|entry| entry.path()).collect())
}

impl Storage for Mbox {
    fn location(&self) -> String {
        self.shared.account.location()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            modseq: Support::Kept,
            log: true,
            keywords_max: None,
            directories: true,
            message_guid: Support::Volatile,
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
        account.find_lost()?;
        let mut inbox = Some(MailboxName::inbox()).filter(|_| account.layout.has_inbox);
        if inbox.is_some() && disk::pretends() {
            inbox.take_if(|inbox| !account.places(inbox).is_ok_and(|places| places.mail.exists()));
        } else if inbox.is_some() {
            shared.make_inbox()?;
        }
        let (found, mut problems) = account.find()?;
        let mut cache = StatusCache::read(account);
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
        cache.write(account);
        for name in account.subscribed()? {
            tree.entry(name).or_default().subscribed = true;
        }
        self.log = account.tell_history(&mut tree);
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
                shared.identify_by_name(name, *guid, *uid_validity)?;
                self.names.retain(|_, known| known != name);
                self.names.insert(*guid, name.clone());
            }
            TreeChange::Delete { name, guid, uid_next } => {
                if !shared.delete(name, *guid, *uid_next)? {
                    return Ok(false);
                }
            }
            TreeChange::DeleteDirectory { name } if account.lists_by_index() => {
                account.change_list(change)?;
                if !account.is_listed(name)? {
                    account.log_directory_deleted(name);
                }
            }
            TreeChange::DeleteDirectory { name } => shared.delete_directory(name)?,
            TreeChange::Subscribe { names } => account.subscribe(names)?,
            TreeChange::Unsubscribe { names } => account.unsubscribe(names)?,
        }
        account.tree_changed(change);
        Ok(true)
    }

    fn open(&mut self, mailbox: MailboxGuid) -> Result<Box<dyn Mailbox>> {
        let gone = || StorageError::NoMailbox(mailbox.to_string());
        let places = self.shared.account.places(self.names.get(&mailbox).ok_or_else(gone)?)?;
        let content = self.shared.read(&places, None)?;
        if indexed::guid_of(content.index.state()) != Some(mailbox) {
            return Err(gone());
        }
        Ok(Box::new(MboxMailbox::new(self.shared.clone(), places, content)))
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
