//! What all mailboxes of an account share: they are read, made, identified, renamed and deleted here.

use std::fs;
use std::path::Path;
use std::time::Duration;

use dsync_model::{MailboxGuid, MailboxName, Uid, UidValidity};

use super::filename::Keywords;
use super::indexed;
use super::scan::{self, Fresh, Scan};
use super::uidlist::{self, UidList};
use crate::account::Account;
use crate::index::{Index, Paths};
use crate::layout::{Kind, Places};
use crate::lock::{DotLock, patience};
use crate::{Result, StorageError, disk, halfway};

/// What all mailboxes of an account share.
pub(super) struct Shared {
    pub account: Account,
}

impl Shared {
    pub fn scan(&self, places: &Places) -> Result<Scan> {
        self.make_control(places)?;
        Scan::take(places, self.account.fsync, &mut || {
            // Dovecot sets the UIDVALIDITY of an empty mailbox in the index alone.
            let (uid_validity, uid_next) = match indexed::numbers(places) {
                Some(known) => known,
                None => (self.account.new_uid_validity()?, Uid::MIN),
            };
            let guid = self.account.guid_of_directory(places);
            let guid = guid.unwrap_or_else(|| Account::new_guid(&places.mail));
            Ok(Fresh { guid, uid_validity, uid_next })
        })
    }

    /// Makes the directory of the uidlist where it lies apart from the mail, as Dovecot does when it first needs it; but it renames the
    /// directory of the mail first, and that of the uidlist is then about to come.
    fn make_control(&self, places: &Places) -> Result<()> {
        if places.control == places.mail || disk::pretends() {
            return Ok(());
        }
        halfway::wait(halfway::RENAMING, || places.control.exists(), || self.is_young(places));
        if !places.mail.is_dir() {
            return Err(StorageError::NoMailbox(places.mail.display().to_string()));
        }
        disk::make_directory(&places.control)
    }

    /// Says whether a mailbox was made or renamed within the last seconds, be it with the directory around it.
    fn is_young(&self, places: &Places) -> bool {
        let in_it = self.account.layout.kind == Kind::Fs && self.is_whole(&places.mail);
        let around = places.mail.parent().filter(|_| in_it);
        halfway::is_young_with(&places.mail, around)
    }

    /// The mailbox and its index, in step.
    pub fn read(&self, places: &Places) -> Result<(Scan, Option<Index>)> {
        let mut scan = self.scan(places)?;
        if let Some(directory) = places.index.as_ref().filter(|index| **index != places.mail)
            && !scan.list.records.is_empty()
            && !disk::pretends()
        {
            Index::wait_for(&Paths::mailbox(directory), halfway::RENAMING, || self.is_young(places));
        }
        let index = indexed::open(places, &mut scan, self.account.fsync)?;
        Ok((scan, index))
    }

    pub fn make_mailbox(&self, name: &MailboxName, places: &Places) -> Result<()> {
        for directory in ["cur", "new", "tmp"] {
            disk::make_directory(&places.mail.join(directory))?;
        }
        disk::make_directory(&places.control)?;
        let marker = places.mail.join("maildirfolder");
        if self.account.layout.kind == Kind::MaildirPlusPlus
            && !self.account.layout.is_the_inbox(name)
            && !marker.exists()
        {
            drop(disk::create(&marker, disk::file_mode(&places.mail))?);
        }
        Ok(())
    }

    /// Makes an empty mailbox.
    pub fn create(
        &self,
        name: &MailboxName,
        guid: MailboxGuid,
        uid_validity: UidValidity,
        uid_next: Uid,
    ) -> Result<()> {
        let places = self.account.new_places(name, guid)?;
        if places.mail.join("cur").exists() {
            return Err(StorageError::MailboxExists(name.to_string()));
        }
        // The uidlist first: with `cur` it becomes a mailbox.
        let identify = |places: &Places| {
            disk::make_directory(&places.control)?;
            self.identify(places, guid, uid_validity)?;
            let mut list = UidList::read(&places.control)?;
            list.raise_next(uid_next);
            list.write(&places.control, 0, self.account.fsync)
        };
        let is_inside = places.control == places.mail;
        if !is_inside {
            identify(&places)?;
        }
        // A session that finds it half made would give it another identity.
        disk::make_whole(&places.mail, &self.account.new_trash(), &|directory| {
            let built = places.built_in(directory);
            if is_inside {
                identify(&built)?;
            }
            self.make_mailbox(name, &built)
        })?;
        disk::sync_directory(&self.account.layout.root, self.account.fsync)?;
        if self.account.lists_by_index() {
            // Its index has its name.
            self.read(&places)?;
            self.account.name_itself(&places, name)?;
            self.account.list_mailbox(name, guid, uid_validity)?;
        }
        Ok(())
    }

    pub fn identify(&self, places: &Places, guid: MailboxGuid, uid_validity: UidValidity) -> Result<()> {
        let lock = DotLock::take(&uidlist::path(&places.control), patience())?;
        let mut list = UidList::read(&places.control)?;
        list.guid = Some(guid);
        list.uid_validity = Some(uid_validity);
        list.rewrite = true;
        list.write(&places.control, 0, self.account.fsync)?;
        indexed::set_validity(places, uid_validity, self.account.fsync)?;
        drop(lock);
        Ok(())
    }

    /// Removes what our own processes left in `tmp` when they died.
    pub fn sweep(&self, places: &Places) -> Result<()> {
        let tmp = places.mail.join("tmp");
        let ours = format!(".{}{}", crate::lock::host_name(), scan::TMP_SUFFIX);
        for entry in fs::read_dir(&tmp).into_iter().flatten().flatten() {
            let name = entry.file_name().into_string().unwrap_or_default();
            let pid =
                name.strip_suffix(&ours).and_then(|name| Some(name.rsplit_once('P')?.1.split_once('Q')?.0));
            if pid.is_some_and(|pid| !crate::lock::process_exists(pid)) {
                disk::remove(&entry.path())?;
            }
        }
        Ok(())
    }

    pub fn write_keywords(&self, places: &Places, keywords: &Keywords) -> Result<()> {
        // Dovecot compares the mtime in seconds: it must move.
        let path = places.control.join("dovecot-keywords");
        let before = fs::metadata(&path).ok().and_then(|meta| meta.modified().ok());
        disk::replace(
            &path,
            &places.control.join("dovecot-keywords.tmp"),
            &keywords.to_bytes(),
            self.account.fsync,
        )?;
        if let Some(before) = before.filter(|_| !disk::pretends()) {
            let later = std::time::SystemTime::now().max(before + Duration::from_secs(1));
            let file = fs::OpenOptions::new().write(true).open(&path).map_err(StorageError::io(&path))?;
            file.set_modified(later).map_err(StorageError::io(&path))?;
        }
        Ok(())
    }

    pub fn delete(
        &self,
        name: &MailboxName,
        places: &Places,
        guid: MailboxGuid,
        uid_next: Uid,
    ) -> Result<bool> {
        let scan = self.scan(places)?;
        if scan.list.guid != Some(guid) || scan.list.uid_next() != uid_next {
            return Ok(false);
        }
        if self.account.layout.is_the_inbox(name) {
            return Err(StorageError::Impossible("INBOX cannot be deleted".into()));
        }
        let root = &self.account.layout.root;
        let trash = self.account.new_trash();
        self.account.unlist_mailbox(name, guid)?;
        if self.is_whole(&places.mail) {
            disk::rename(&places.mail, &trash)?;
        } else {
            disk::make_directory(&trash)?;
            self.move_mail(&places.mail, &trash)?;
        }
        disk::sync_directory(root, self.account.fsync)?;
        disk::remove_tree(&trash)?;
        if self.account.layout.kind == Kind::Fs {
            disk::remove_empty(&self.account.layout.directory(name)?)?;
        }
        for beside in
            [Some(&places.control), places.index.as_ref(), places.cache.as_ref()].into_iter().flatten()
        {
            if *beside != places.mail && beside.exists() {
                for entry in fs::read_dir(beside).map_err(StorageError::io(beside))?.flatten() {
                    if belongs_beside_mail(&entry) {
                        disk::remove(&entry.path())?;
                    }
                }
                disk::remove_empty(beside)?;
            }
        }
        Ok(true)
    }

    /// Says whether a directory holds nothing but one mailbox; else those of its children may be in it.
    fn is_whole(&self, directory: &Path) -> bool {
        let dirname = self.account.layout.dirname.as_deref().filter(|_| self.account.layout.kind == Kind::Fs);
        self.account.layout.kind != Kind::Fs
            || dirname.is_some_and(|name| directory.file_name() == Some(name.as_ref()))
    }

    /// Moves what belongs to the mailbox itself, and leaves the mailboxes below it.
    fn move_mail(&self, from: &Path, to: &Path) -> Result<()> {
        for entry in fs::read_dir(from).map_err(StorageError::io(from))?.flatten() {
            let name = entry.file_name();
            let ours = matches!(name.to_str(), Some("cur" | "new" | "tmp" | "maildirfolder"))
                || belongs_beside_mail(&entry);
            if ours && !name.to_string_lossy().ends_with(".lock") {
                disk::rename(&entry.path(), &to.join(&name))?;
            }
        }
        Ok(())
    }

    pub fn rename(&self, from: &MailboxName, to: &MailboxName) -> Result<()> {
        let (old, new) = (self.account.places(from)?, self.account.places(to)?);
        if new.mail.join("cur").exists() {
            return Err(StorageError::MailboxExists(to.to_string()));
        }
        let mut moves = vec![(&old.mail, &new.mail), (&old.control, &new.control)];
        moves.extend(old.index.as_ref().zip(new.index.as_ref()));
        moves.extend(old.cache.as_ref().zip(new.cache.as_ref()));
        for (i, (from, to)) in moves.iter().enumerate() {
            let done = moves[..i].iter().any(|(earlier, _)| earlier == from);
            if done || !from.exists() {
                continue;
            }
            if self.is_whole(from) {
                disk::make_directory(to.parent().unwrap_or(&self.account.layout.root))?;
                disk::rename(from, to)?;
            } else {
                disk::make_directory(to)?;
                // `cur` makes it a mailbox: last, so that a crash leaves no second one.
                self.move_mail(from, to)?;
                disk::remove_empty(from)?;
            }
        }
        if self.account.layout.kind == Kind::Fs {
            disk::remove_empty(&self.account.layout.directory(from)?)?;
        }
        disk::sync_directory(&self.account.layout.root, self.account.fsync)
    }
}

/// Says whether it is a file of Dovecot's that belongs to the mailbox in whose directory it lies.
fn belongs_beside_mail(entry: &fs::DirEntry) -> bool {
    // A directory of such a name is a mailbox of LAYOUT=fs.
    entry.file_name().to_string_lossy().starts_with("dovecot")
        && !entry.file_type().is_ok_and(|kind| kind.is_dir())
}
