//! Mailboxes of a dbox account are made, deleted and renamed.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use dsync_model::{MailboxGuid, MailboxName, Uid, UidValidity};
use rand::RngExt;

use super::map::MapChange;
use super::mdbox;
use super::shared::Shared;
use super::store::Store;
use crate::index::{Index, Transaction};
use crate::lock::patience;
use crate::{Result, StorageError, disk};

impl Shared {
    pub fn create(
        &self,
        name: &MailboxName,
        guid: MailboxGuid,
        validity: UidValidity,
        next: Uid,
    ) -> Result<()> {
        let places = self.account.new_places(name, guid)?;
        let paths = Shared::paths(&places);
        if paths.log().exists() {
            return Err(StorageError::MailboxExists(name.to_string()));
        }
        let mut first = self.identity(guid)?;
        first.extend(self.account.own_name(None, name));
        let fill = |directory: &Path| {
            let built = places.built_in(directory);
            Shared::make_index_directory(&built)?;
            Index::create(Shared::paths(&built), validity.get(), next.get(), first.clone()).map(drop)
        };
        let made = match paths.directory == places.mail {
            true => disk::make_whole(&places.mail, &self.account.new_trash(), &fill),
            // An index that is alone would be in the way of the next run.
            false => disk::make_directory(&places.mail).and_then(|()| fill(&places.mail)),
        };
        made.map_err(|error| match error {
            // A session opened it as soon as its directory was there.
            StorageError::Io { source, .. } if source.kind() == ErrorKind::AlreadyExists => {
                StorageError::MailboxExists(name.to_string())
            }
            error => error,
        })?;
        disk::sync_directory(&self.account.layout.root, self.account.fsync)?;
        self.account.list_mailbox(name, guid, validity)
    }

    /// Makes INBOX if it is missing: whole, or the next look at it would wait for whoever makes it.
    pub fn make_inbox(&self, inbox: &MailboxName) -> Result<()> {
        if self.account.lists_by_index() {
            return match self.account.listed(inbox)? {
                Some(_) => Ok(()),
                None => {
                    let guid = MailboxGuid(rand::rng().random());
                    self.create(inbox, guid, self.account.new_uid_validity()?, Uid::MIN)
                }
            };
        }
        let places = self.account.places(inbox)?;
        if !places.mail.exists() && !disk::pretends() {
            match self.create(inbox, self.new_guid(&places), self.account.new_uid_validity()?, Uid::MIN) {
                // A session was faster, or the index is left of an INBOX that had one elsewhere.
                Err(StorageError::MailboxExists(_)) => {}
                made => made?,
            }
        }
        disk::make_directory(&places.mail)
    }

    pub fn delete(&self, name: &MailboxName, guid: MailboxGuid, uid_next: Uid) -> Result<bool> {
        let places = self.account.places(name)?;
        let mut map = self.store.as_ref().map(Store::open_map).transpose()?;
        let map = map.as_mut().map(|map| self.lock_map(map)).transpose()?;
        let Some(mut index) = Index::open(Shared::paths(&places))? else { return Ok(true) };
        if self.account.layout.is_the_inbox(name) {
            return Err(StorageError::Impossible("INBOX cannot be deleted".into()));
        }
        let mut writer = index.lock(patience())?;
        if self.guid_of(writer.state()) != Some(guid) || writer.state().header.next_uid != uid_next.get() {
            return Ok(false);
        }
        // Whoever has it open learns it from the log.
        let mut deleted = Transaction::new();
        deleted.deleted();
        let policy = self.account.fsync;
        let trash = self.account.new_trash();
        // With LAYOUT=index, a mailbox is all there is of it.
        let directory = match self.account.lists_by_index() {
            true => places.mail.clone(),
            false => self.account.layout.directory(name)?,
        };
        let remove = |writer: &mut crate::index::Writer<'_>| {
            writer.append(deleted.clone(), policy)?;
            self.account.unlist_mailbox(name, guid)?;
            disk::rename(
                if is_only_in(&directory, &places.mail) { &directory } else { &places.mail },
                &trash,
            )?;
            disk::sync_directory(&self.account.layout.root, policy)
        };
        match map {
            None => remove(&mut writer)?,
            Some(mut map) => {
                let mut change = MapChange::default();
                for row in 0..writer.state().uids.len() {
                    if let Some((map_uid, _)) = mdbox::map_uid(writer.state(), row) {
                        *change.references.entry(map_uid).or_default() -= 1;
                    }
                }
                map.request(&change, policy)?;
                remove(&mut writer)?;
                map.finish(policy)?;
            }
        }
        drop(writer);
        disk::remove_tree(&trash)?;
        for beside in [places.index, Some(places.control), places.alt].into_iter().flatten() {
            if beside.is_dir() {
                disk::rename(&beside, &trash)?;
                disk::remove_tree(&trash)?;
            }
        }
        disk::remove_empty(&directory)?;
        Ok(true)
    }

    pub fn rename(&self, from: &MailboxName, to: &MailboxName) -> Result<()> {
        let layout = &self.account.layout;
        let (old, new) = (layout.places(from)?, layout.places(to)?);
        let (directory, target) = (layout.directory(from)?, layout.directory(to)?);
        if Shared::paths(&new).log().exists() {
            return Err(StorageError::MailboxExists(to.to_string()));
        }
        let pairs = [
            (old.alt, new.alt),
            (old.index, new.index),
            (Some(old.control), Some(new.control)),
            (Some(old.mail), Some(new.mail)),
        ];
        for (from, to) in pairs.into_iter().filter_map(|(from, to)| Some((from?, to?))) {
            if from.is_dir() {
                let whole = is_only_in(&directory, &from) && to.parent() == Some(&target);
                let whole = whole && !target.starts_with(&directory) && is_empty(&target);
                let (from, to) = if whole { (&directory, &target) } else { (&from, &to) };
                disk::make_directory(to.parent().unwrap_or(&layout.root))?;
                // A directory that only waits for its mailbox may stand there.
                disk::remove_empty(to)?;
                disk::rename(from, to)?;
            }
        }
        disk::remove_empty(&directory)?;
        disk::sync_directory(&layout.root, self.account.fsync)
    }
}

/// Says whether a mailbox is all that its directory holds. Both then go in one step: a crash leaves no directory behind, which
/// would be taken for one that somebody made.
fn is_only_in(directory: &Path, mail: &Path) -> bool {
    mail.parent() == Some(directory) && fs::read_dir(directory).is_ok_and(|entries| entries.count() == 1)
}

/// Says whether a directory may be replaced.
fn is_empty(directory: &Path) -> bool {
    fs::read_dir(directory).map_or(true, |mut entries| entries.next().is_none())
}
