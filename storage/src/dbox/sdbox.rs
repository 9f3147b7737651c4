//! sdbox: a file for each message, `u.<UID>`, beside the index that says which of them exist.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use dsync_model::{MailboxGuid, MessageGuid, NewMessage, Uid};

use super::bodies::{Moves, Pending};
use super::output::Output;
use super::saving::Saving;
use super::{AttachmentDir, DboxFile, StoredMail};
use crate::layout::Places;
use crate::{Fsync, Result, StorageError, disk};

/// The files of one mailbox.
pub(super) struct Files {
    pub places: Places,
    pub attachments: Option<PathBuf>,
    pub mailbox: MailboxGuid,
}

impl Files {
    fn path(&self, uid: u32) -> PathBuf {
        self.places.mail.join(format!("u.{uid}"))
    }

    /// Opens the message's file, in either storage. `None`: it is gone.
    pub fn open(&self, uid: u32) -> Result<Option<(DboxFile, StoredMail)>> {
        let alt = self.places.alt.as_ref().map(|alt| alt.join(format!("u.{uid}")));
        for path in [Some(self.path(uid)), alt].into_iter().flatten() {
            match DboxFile::open(path) {
                Ok(file) => {
                    let mail = file.message(file.header().size)?;
                    return Ok(Some((file, mail)));
                }
                Err(StorageError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    pub fn attachments(&self, uid: u32) -> Option<AttachmentDir> {
        Some(AttachmentDir::sdbox(self.attachments.clone()?, self.mailbox, Uid::new(uid)?))
    }

    /// The GUID in the message's file. `None`: the file is gone, or has none.
    pub fn guid(&self, uid: u32) -> Result<Option<MessageGuid>> {
        Ok(self.open(uid)?.and_then(|(_, mail)| mail.metadata.guid))
    }

    pub fn begin(&self, message: NewMessage) -> Result<Saving> {
        Ok(Saving::new(message, Output::create(self.places.mail.join(super::temporary_name()))?))
    }

    pub fn end(&self, saving: Saving) -> Result<Pending> {
        let (saved, mut output) = saving.end(None)?;
        output.flush()?;
        Ok(Pending::Written { saved, path: output.path().to_owned() })
    }

    /// Makes what was saved durable, as a group.
    pub fn sync(&self, pending: &[Pending], policy: Fsync) -> Result<()> {
        let paths: Vec<PathBuf> = pending.iter().filter_map(Pending::path).map(Path::to_owned).collect();
        disk::sync_files(&paths, policy)
    }

    /// Gives all messages their names. The index lock is held.
    pub fn place_all(&self, moves: &Moves, policy: Fsync) -> Result<()> {
        moves.saved.iter().try_for_each(|(uid, pending)| self.place(pending, *uid))?;
        moves.renumbered.iter().try_for_each(|(from, to)| self.link(*from, *to))?;
        if moves.saved.is_empty() && moves.renumbered.is_empty() {
            return Ok(());
        }
        disk::sync_directory(&self.places.mail, policy)
    }

    /// Gives a message its name. The index lock is held, and the index has no such UID.
    fn place(&self, pending: &Pending, uid: u32) -> Result<()> {
        let Pending::Written { saved, path: written } = pending else {
            unreachable!("only mdbox has a map in which messages are shared")
        };
        let path = self.path(uid);
        match disk::rename_new(written, &path) {
            Err(StorageError::Io { source, .. }) if source.kind() == ErrorKind::AlreadyExists => {}
            other => return other,
        }
        // A file that the index does not know: ours, of a run that died before it could tell the index, or a stranger's.
        let same = self.guid(uid).is_ok_and(|guid| guid.as_ref() == Some(&saved.message.guid));
        if !same {
            let aside = self.places.mail.join(format!(".orphan.u.{uid}.{}", super::serial()));
            tracing::warn!("{}: is in no index; kept as {}", path.display(), aside.display());
            disk::rename(&path, &aside)?;
        }
        disk::rename(written, &path)
    }

    /// Gives the message of one UID a second name, which replaces a leftover of an earlier run.
    fn link(&self, from: u32, to: u32) -> Result<()> {
        let target = self.path(to);
        if target.exists() {
            disk::remove(&target)?;
        }
        let source =
            [Some(self.path(from)), self.places.alt.as_ref().map(|alt| alt.join(format!("u.{from}")))];
        let source = source.into_iter().flatten().find(|path| path.exists());
        match source {
            Some(source) if source.parent() == target.parent() => disk::hard_link(&source, &target),
            // Alternate storage may be another disk.
            Some(source) => disk::copy(&source, &target),
            None => Err(StorageError::NoMailbox(self.path(from).display().to_string())),
        }
    }

    pub fn remove(&self, uid: u32) -> Result<()> {
        disk::remove(&self.path(uid))?;
        match &self.places.alt {
            Some(alt) => disk::remove(&alt.join(format!("u.{uid}"))),
            None => Ok(()),
        }
    }

    pub fn forget(&self, path: &Path) {
        if let Err(error) = disk::remove(path) {
            tracing::debug!("{error}");
        }
    }

    /// Every message file there is, for a rebuild: by UID, with why it cannot be read if it is damaged.
    pub fn all(&self) -> Result<BTreeMap<u32, Option<StorageError>>> {
        let mut found = BTreeMap::new();
        for directory in [Some(&self.places.mail), self.places.alt.as_ref()].into_iter().flatten() {
            for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
                let name = entry.file_name();
                let uid = name.to_str().and_then(|name| name.strip_prefix("u.")?.parse::<u32>().ok());
                if let Some(uid) = uid.filter(|uid| *uid > 0 && *uid < u32::MAX) {
                    let damage = match self.open(uid) {
                        Ok(Some((_, mail))) if mail.metadata.guid.is_some() => None,
                        Ok(Some((file, mail))) => Some(StorageError::Damaged {
                            path: file.path().to_owned(),
                            offset: mail.offset,
                            what: "the message has no GUID".into(),
                        }),
                        Ok(None) => continue,
                        Err(error @ StorageError::Damaged { .. }) => Some(error),
                        Err(error) => return Err(error),
                    };
                    found.insert(uid, damage);
                }
            }
        }
        Ok(found)
    }
}
