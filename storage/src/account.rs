//! What is kept once for an account, whatever its format: our notes, its lock, its id, UIDVALIDITYs, subscriptions, trash.
//!
//! Each format's [`Storage`](crate::Storage) holds an [`Account`] and hands these calls on to it. Nothing here opens a mailbox.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dsync_model::{
    AttributeChanges, AttributeList, MailboxGuid, MailboxName, MailboxTree, NameHash, StoreId, Timestamp,
    TreeChange, TreeLog, UidValidity,
};
use rand::RngExt;

use crate::attributes::{Attributes, Place};
use crate::layout::{Found, Layout};
use crate::list_index::ListIndex;
use crate::lock::{FileLock, UserLock, patience, set_patience};
use crate::mailbox_log::{self, Change};
use crate::{Fsync, Result, StorageError, StoreLock, disk, subscriptions};

/// Begins the names of the files that only dsync knows.
const NOTE_PREFIX: &str = ".dsync-";
/// Deleted mailboxes are renamed to this first; Dovecot, too, passes over names that begin so.
const TRASH: &str = "..DOVECOT-TRASHED-dsync-";
/// How often Dovecot may be faster than we at taking the next UIDVALIDITY.
const RACES_MAX: u32 = 20;

/// One account.
#[derive(Clone, Debug)]
pub struct Account {
    pub layout: Layout,
    pub fsync: Fsync,
    pub(crate) list: ListIndex,
    /// What [`find`](Self::find) found last.
    pub(crate) found: Arc<Mutex<Vec<Found>>>,
}

impl Account {
    /// Opens an account; directories that are missing are made.
    pub fn open(layout: Layout, fsync: Fsync) -> Result<Account> {
        let account = Account { layout, fsync, list: ListIndex::default(), found: Arc::default() };
        account.make_directories()?;
        Ok(account)
    }

    fn make_directories(&self) -> Result<()> {
        let Layout { root, .. } = &self.layout;
        let all = [Some(root.clone()), Some(self.layout.control_root()), self.layout.index_root()];
        all.iter().flatten().try_for_each(|directory| disk::make_directory(directory))
    }

    /// Where the account is, for people.
    pub fn location(&self) -> String {
        format!("{}:{}", self.layout.format, self.layout.root.display())
    }

    /// The random id of the store, made on first use, and again after it was copied or restored.
    pub fn store_id(&self) -> Result<StoreId> {
        // It may have been opened by one who only pretended, and did not know yet whether it would be more than that.
        self.make_directories()?;
        let root = &self.layout.root;
        let meta = fs::metadata(root).map_err(StorageError::io(root))?;
        let here = format!("{} {}", meta.dev(), meta.ino());
        let known = self.read_note("store", 200)?.and_then(|bytes| String::from_utf8(bytes).ok());
        if let Some(id) = known.as_deref().and_then(|text| {
            let (id, place) = text.trim_end().split_once(' ')?;
            StoreId::parse(id).filter(|_| place == here)
        }) {
            return Ok(id);
        }
        let id = StoreId(rand::rng().random());
        self.write_note("store", format!("{id} {here}\n").as_bytes())?;
        Ok(id)
    }

    /// Takes the one lock of the store. All other locks are waited for as long.
    pub fn lock(&self, wait: Duration) -> Result<StoreLock> {
        set_patience(wait);
        let root = self.layout.control_root();
        let root = root.canonicalize().map_err(StorageError::io(&root))?;
        Ok(StoreLock(Box::new(FileLock::take(&root.join(format!("{NOTE_PREFIX}lock")), wait)?)))
    }

    /// Takes the lock that Dovecot takes of the user whose mail this is.
    pub fn lock_user(&self, me: StoreId, peer: StoreId, wait: Duration) -> Result<Option<UserLock>> {
        let Some(home) = &self.layout.home else { return Ok(None) };
        UserLock::take(home, &me.to_string(), &peer.to_string(), wait)
    }

    /// A GUID for the mailbox in this place, which has none. Who only pretends gets the same one every time, as none is kept.
    pub fn new_guid(place: &Path) -> MailboxGuid {
        match disk::pretends() {
            true => MailboxGuid([0; 16]).derived(place.as_os_str().as_encoded_bytes()),
            false => MailboxGuid(rand::rng().random()),
        }
    }

    /// Takes the next UIDVALIDITY of the account (reference 3.3): no mailbox of it gets the same again. Who only pretends gets the same
    /// one every time, and one that is smaller than any that is made when it counts.
    pub fn new_uid_validity(&self) -> Result<UidValidity> {
        if disk::pretends() {
            let [a, b, c, ..] = Account::new_guid(&self.layout.root).0;
            let value = u32::from_be_bytes([0, a, b, c]) + 1;
            return Ok(UidValidity::new(value).expect("above 0"));
        }
        let root = &self.layout.control_root();
        let lock = FileLock::take(&root.join(format!("{NOTE_PREFIX}uidvalidity")), patience())?;
        let value = self.advance_uid_validity(root)?;
        let temporary = root.join(format!("{NOTE_PREFIX}uidvalidity.tmp"));
        let file = root.join("dovecot-uidvalidity");
        disk::replace(&file, &temporary, format!("{value:08x}").as_bytes(), self.fsync)?;
        drop(lock);
        UidValidity::new(value).ok_or_else(|| StorageError::Impossible("UIDVALIDITY is exhausted".into()))
    }

    /// Renames the file whose name tells the last UIDVALIDITY; Dovecot, which does not know our lock, may do so first.
    fn advance_uid_validity(&self, root: &Path) -> Result<u32> {
        let mut races = 0;
        loop {
            let named = entries(root)?.filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                let value = u32::from_str_radix(name.strip_prefix("dovecot-uidvalidity.")?, 16).ok()?;
                Some((value, name))
            });
            let old = named.max();
            let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |now| now.as_secs() as u32);
            let value = old.as_ref().map_or(now, |(old, _)| now.max(old.saturating_add(1)));
            let marker = root.join(format!("dovecot-uidvalidity.{value:08x}"));
            let done = match &old {
                Some((old, name)) if *old != value => disk::rename(&root.join(name), &marker),
                Some(_) => Ok(()),
                None => disk::create(&marker, 0o444).map(drop),
            };
            match done {
                Err(StorageError::Io { source, .. })
                    if matches!(source.kind(), ErrorKind::NotFound | ErrorKind::AlreadyExists)
                        && races < RACES_MAX =>
                {
                    races += 1;
                }
                done => return done.map(|()| value),
            }
        }
    }

    /// Names that are subscribed.
    pub fn subscribed(&self) -> Result<BTreeSet<MailboxName>> {
        subscriptions::read(&self.layout)
    }

    /// Subscribes names, and logs it.
    pub fn subscribe(&self, names: &BTreeSet<MailboxName>) -> Result<()> {
        subscriptions::change(&self.layout, names, &BTreeSet::new(), self.fsync)?;
        names.iter().for_each(|name| self.log(Change::Subscribe(self.name_hash(name))));
        Ok(())
    }

    /// Unsubscribes names, and logs it.
    pub fn unsubscribe(&self, names: &BTreeSet<MailboxName>) -> Result<()> {
        subscriptions::change(&self.layout, &BTreeSet::new(), names, self.fsync)?;
        names.iter().for_each(|name| self.log(Change::Unsubscribe(self.name_hash(name))));
        Ok(())
    }

    /// Logs for Dovecot's dsync that a mailbox was deleted, and with it its name.
    pub fn log_deleted(&self, name: &MailboxName, guid: MailboxGuid) {
        self.log(Change::DeleteMailbox(guid));
        self.log_directory_deleted(name);
    }

    /// Logs that a name without mail was deleted. Making one is not logged: Dovecot's reader drops such records.
    pub fn log_directory_deleted(&self, name: &MailboxName) {
        self.log(Change::DeleteDirectory(self.name_hash(name)));
    }

    /// Logs that a mailbox has another name now.
    pub fn log_renamed(&self, to: &MailboxName) {
        self.log(Change::Rename(self.name_hash(to)));
    }

    /// Tells running Dovecots what became of the tree.
    pub fn tree_changed(&self, change: &TreeChange) {
        match change {
            TreeChange::Create { name, .. }
            | TreeChange::CreateDirectory { name }
            | TreeChange::Identify { name, .. } => self.names_changed(&[name], &[]),
            TreeChange::Delete { name, .. } | TreeChange::DeleteDirectory { name } => {
                self.names_changed(&[], &[name]);
            }
            TreeChange::Rename { from, to, .. } => self.names_changed(&[to], &[from]),
            TreeChange::Subscribe { .. } | TreeChange::Unsubscribe { .. } => {}
        }
    }

    /// Tells running Dovecots that what they know of these names is not true any more, and that those in `gone` stand for no mailbox. The
    /// change itself is made already, and stays.
    pub fn names_changed(&self, names: &[&MailboxName], gone: &[&MailboxName]) {
        // In Maildir++ what is above a mailbox may not be there. Dovecot takes such a name off its list when it next looks at the disk, unless by then
        // this mailbox is below it.
        let is_gone = |name: &MailboxName| self.layout.directory(name).is_ok_and(|path| !path.exists());
        let above: Vec<MailboxName> =
            names.iter().flat_map(|name| name.ancestors()).filter(is_gone).collect();
        let gone: Vec<&MailboxName> = gone.iter().copied().chain(&above).collect();
        if let Err(error) = self.list.forget(&self.layout, names, &gone, self.fsync) {
            tracing::warn!("{error}: Dovecot may list mailboxes as they were");
        }
    }

    /// See [`Storage::attributes`](crate::Storage::attributes).
    pub fn attributes(&self) -> Result<AttributeList> {
        self.attributes_file()?.list()
    }

    /// See [`Storage::change_attributes`](crate::Storage::change_attributes).
    pub fn change_attributes(&self, changes: &AttributeChanges) -> Result<()> {
        self.attributes_file()?.change(changes)
    }

    fn attributes_file(&self) -> Result<Attributes> {
        let path = match &self.layout.attributes {
            Place::Usual => self.layout.control_root().join("dovecot-attributes"),
            Place::File(path) => path.clone(),
            Place::Elsewhere(dict) => {
                let what = format!("mail_attribute_dict {dict:?}: only file:<path> is supported");
                return Err(StorageError::Impossible(what));
            }
        };
        Ok(Attributes::new(path, self.fsync))
    }

    /// Of a name as clients see it, with the prefix of its namespace.
    fn name_hash(&self, name: &MailboxName) -> NameHash {
        let prefix = self.layout.prefix.iter().map(String::as_str);
        let parts: Vec<&str> = prefix.chain(name.parts().iter().map(|part| &**part)).collect();
        match MailboxName::new(&parts) {
            Ok(full) if !self.layout.prefix.is_empty() && !self.layout.is_the_inbox(name) => {
                NameHash::of(&full, self.separator())
            }
            _ => NameHash::of(name, self.separator()),
        }
    }

    /// The hierarchy separator that clients see.
    fn separator(&self) -> char {
        self.layout.separator.unwrap_or(self.layout.stored_separator())
    }

    /// Tells what the mailbox log knows of this tree, the times of its names among them. A log that cannot be read tells nothing.
    pub fn tell_history(&self, tree: &mut MailboxTree) -> TreeLog {
        let records = mailbox_log::read(&self.layout).unwrap_or_else(|error| {
            tracing::warn!("{error}: cannot be read; deletions are not known from it");
            Vec::new()
        });
        let mut log = TreeLog { separator: self.separator(), ..TreeLog::default() };
        let (mut renamed, mut subscribed) = (BTreeMap::new(), BTreeMap::new());
        for record in records {
            let at = Timestamp(record.at.into());
            match record.change {
                Change::DeleteMailbox(guid) => drop(log.deleted.insert(guid, at)),
                Change::DeleteDirectory(name) => drop(log.directories.insert(name, at)),
                Change::Rename(name) => drop(renamed.insert(name, at)),
                Change::Subscribe(name) => drop(subscribed.insert(name, at)),
                Change::Unsubscribe(name) => drop(log.unsubscribed.insert(name, at)),
            }
        }
        for (name, node) in tree {
            let hash = self.name_hash(name);
            // Who renames a mailbox renames what is below it.
            let parents = name.ancestors().map(|parent| self.name_hash(&parent));
            node.renamed = parents.chain([hash]).filter_map(|name| renamed.get(&name).copied()).max();
            let times = [subscribed.get(&hash).copied(), log.unsubscribed.remove(&hash)];
            node.subscription_changed = times.into_iter().flatten().max();
            log.deleted.retain(|guid, _| node.mailbox.as_ref().is_none_or(|status| status.guid != *guid));
            if node.mailbox.is_some() || node.directory {
                log.directories.remove(&hash);
            }
        }
        log
    }

    /// The change is made already, and stays right without its record: that only Dovecot's dsync may undo it is no error.
    fn log(&self, change: Change) {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs() as u32);
        if let Err(error) = mailbox_log::append(&self.layout, mailbox_log::Record { change, at }) {
            tracing::warn!("{error}: {change:?} cannot be logged");
        }
    }

    /// A path of its own, in the root, for what is about to be removed: no mailbox, for nobody.
    pub fn new_trash(&self) -> PathBuf {
        self.layout.root.join(format!("{TRASH}{}", MailboxGuid(rand::rng().random())))
    }

    /// Removes mailboxes that were deleted, where the process died before it had removed all of their files.
    pub fn empty_trash(&self) -> Result<()> {
        let root = &self.layout.root;
        for entry in fs::read_dir(root).map_err(StorageError::io(root))?.flatten() {
            if !entry.file_name().to_string_lossy().starts_with(TRASH) {
                continue;
            }
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => disk::remove_tree(&entry.path())?,
                _ => disk::remove(&entry.path())?,
            }
        }
        Ok(())
    }

    /// See [`Storage::notes`](crate::Storage::notes).
    pub fn notes(&self) -> Result<Vec<String>> {
        let root = &self.layout.control_root();
        let mut names = Vec::new();
        for entry in entries(root)? {
            let name = entry.file_name().into_string().unwrap_or_default();
            if let Some(name) = name.strip_prefix(NOTE_PREFIX)
                && !name.ends_with(".tmp")
            {
                names.push(name.to_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    /// See [`Storage::read_note`](crate::Storage::read_note).
    pub fn read_note(&self, name: &str, bytes_max: usize) -> Result<Option<Vec<u8>>> {
        let path = self.note_path(name)?;
        let flags = rustix::fs::OFlags::NOFOLLOW.bits() as i32;
        let file = match OpenOptions::new().read(true).custom_flags(flags).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StorageError::io(&path)(error)),
        };
        let mut bytes = Vec::new();
        let read =
            file.take(bytes_max as u64 + 1).read_to_end(&mut bytes).map_err(StorageError::io(&path))?;
        if read > bytes_max {
            return Err(StorageError::Corrupt { path, line: 0, what: "file is larger than it can be" });
        }
        Ok(Some(bytes))
    }

    /// See [`Storage::write_note`](crate::Storage::write_note).
    pub fn write_note(&self, name: &str, content: &[u8]) -> Result<()> {
        let path = self.note_path(name)?;
        disk::replace(&path, &path.with_extension("tmp"), content, self.fsync)
    }

    /// See [`Storage::remove_note`](crate::Storage::remove_note).
    pub fn remove_note(&self, name: &str) -> Result<()> {
        disk::remove(&self.note_path(name)?)
    }

    fn note_path(&self, name: &str) -> Result<PathBuf> {
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            return Err(StorageError::Impossible(format!("{name:?} is no name for a note")));
        }
        Ok(self.layout.control_root().join(format!("{NOTE_PREFIX}{name}")))
    }
}

/// What is in a directory. A dry run does not make one that is missing.
fn entries(directory: &Path) -> Result<impl Iterator<Item = fs::DirEntry>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        entries => Some(entries.map_err(StorageError::io(directory))?),
    };
    Ok(entries.into_iter().flatten().flatten())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Format;

    fn with_account(format: Format, check: impl FnOnce(&Account)) {
        let directory = tempfile::tempdir().unwrap();
        check(&Account::open(Layout::new(format, directory.path().join("mail")), Fsync::Never).unwrap());
    }

    #[test]
    fn a_uid_validity_is_given_once() {
        with_account(Format::Mbox, |account| {
            let root = account.layout.root.join(".imap");
            fs::write(root.join("dovecot-uidvalidity.f0000000"), "").unwrap();
            let values = [(); 3].map(|()| account.new_uid_validity().unwrap().get());
            assert_eq!(values, [0xf000_0001, 0xf000_0002, 0xf000_0003]);
            assert_eq!(fs::read_to_string(root.join("dovecot-uidvalidity")).unwrap(), "f0000003");
            assert!(root.join("dovecot-uidvalidity.f0000003").exists());
            assert!(!root.join("dovecot-uidvalidity.f0000000").exists());
        });
    }

    #[test]
    fn notes_lie_where_the_format_has_its_own_files() {
        for (format, directory) in [(Format::Mbox, ".imap"), (Format::Sdbox, ""), (Format::Maildir, "")] {
            with_account(format, |account| {
                account.write_note("base-1", b"x").unwrap();
                assert!(account.layout.root.join(directory).join(".dsync-base-1").exists());
                assert_eq!(account.notes().unwrap(), ["base-1"]);
                assert!(account.write_note("../x", b"x").is_err());
            });
        }
    }

    #[test]
    fn a_copied_store_has_another_id() {
        with_account(Format::Maildir, |account| {
            let id = account.store_id().unwrap();
            assert_eq!(account.store_id().unwrap(), id);
            let copy = account.layout.root.with_file_name("copy");
            let copy = Account::open(Layout::new(Format::Maildir, copy), Fsync::Never).unwrap();
            fs::copy(account.layout.root.join(".dsync-store"), copy.layout.root.join(".dsync-store"))
                .unwrap();
            assert_ne!(copy.store_id().unwrap(), id);
        });
    }

    #[test]
    fn trash_is_emptied_and_never_listed() {
        with_account(Format::Mbox, |account| {
            fs::create_dir(account.new_trash()).unwrap();
            fs::write(account.new_trash(), "mail").unwrap();
            assert_eq!(account.layout.list().unwrap().0, []);
            account.empty_trash().unwrap();
            assert_eq!(fs::read_dir(&account.layout.root).unwrap().count(), 1, "only .imap is left");
        });
    }
}
