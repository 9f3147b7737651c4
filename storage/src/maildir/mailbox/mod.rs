//! One open Maildir: lists, bodies, saves and commits.

mod committing;

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use dsync_model::{
    AttributeLog, AttributeRecords, Changes, Digest, MailboxStatus, Message, MessageAction, MessageGuid,
    NewMessage, Since, Timestamp, Uid, UidSet, changes_since,
};

use super::Shared;
use super::filename;
use super::indexed;
use super::scan::{Scan, TMP_SUFFIX, fresh_base, guid};
use super::uidlist;
use crate::compressed::{self, Opened};
use crate::index::follow::Told;
use crate::index::{Import, Index, State};
use crate::layout::Places;
use crate::lock::{DotLock, patience};
use crate::{Body, Committed, Goal, Mailbox, Result, StorageError, disk};

/// A message in `tmp`, on its way into the mailbox.
struct Pending {
    message: NewMessage,
    path: PathBuf,
    size: u64,
}

/// A message whose body is still coming.
struct Coming {
    pending: Pending,
    file: File,
    buffer: Vec<u8>,
}

/// Bytes gathered before they are written.
const BUFFER_BYTES: usize = 256 << 10;
/// Times that a file is looked for again after somebody renamed it.
const TRIES: u32 = 3;

/// One open Maildir.
pub(super) struct MaildirMailbox {
    shared: Arc<Shared>,
    places: Places,
    scan: Scan,
    /// `None`: the account keeps its indexes in memory.
    index: Option<Index>,
    /// UIDNEXT when we last looked: what lies between it and UIDNEXT as we find it was given away by others.
    expected_next: Option<Uid>,
    burned: UidSet,
    coming: Option<Coming>,
    pending: Vec<Pending>,
    actions: Vec<MessageAction>,
    import: Import,
}

impl MaildirMailbox {
    pub(super) fn new(
        shared: Arc<Shared>,
        places: Places,
        scan: Scan,
        index: Option<Index>,
    ) -> MaildirMailbox {
        MaildirMailbox {
            shared,
            places,
            scan,
            index,
            expected_next: None,
            burned: UidSet::new(),
            coming: None,
            pending: Vec::new(),
            actions: Vec::new(),
            import: Import::default(),
        }
    }

    fn refresh(&mut self) -> Result<()> {
        if disk::pretends() {
            // A second look would find what has no UID on the disk under others.
        } else if !self.scan.is_current(&self.places) {
            (self.scan, self.index) = self.shared.read(&self.places)?;
        } else if let Some(index) = &mut self.index {
            index.refresh()?;
        }
        Ok(())
    }

    fn state(&self) -> Option<&State> {
        self.index.as_ref().map(Index::state)
    }

    fn list(&self) -> Vec<Message> {
        indexed::list(&self.scan, self.state())
    }

    fn begin(&mut self, message: NewMessage) -> Result<(Pending, File)> {
        self.abandon_save();
        let directory = self.places.mail.join("tmp");
        disk::make_directory_in(&directory)?;
        let path = directory.join(format!("{}{TMP_SUFFIX}", fresh_base()));
        let file = disk::create(&path, disk::file_mode(&self.places.mail))?;
        Ok((Pending { message, path, size: 0 }, file))
    }

    fn finish(&mut self, pending: Pending, file: &File) -> Result<()> {
        if let Some(Timestamp(seconds)) = pending.message.received {
            let time = match u64::try_from(seconds) {
                Ok(after) => SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(after)),
                Err(_) => SystemTime::UNIX_EPOCH.checked_sub(Duration::from_secs(seconds.unsigned_abs())),
            };
            if let Some(time) = time {
                file.set_modified(time).map_err(StorageError::io(&pending.path))?;
            }
        }
        self.pending.push(pending);
        Ok(())
    }

    /// The message's file opened, whatever it was renamed to meanwhile.
    fn open_file(&mut self, uid: Uid, guid: Option<&MessageGuid>) -> Result<Option<(usize, File, PathBuf)>> {
        for _ in 0..TRIES {
            let right = |index: &usize| {
                guid.is_none_or(|wanted| self::guid(&self.scan.list.records[*index]).bits() == wanted.bits())
            };
            let found = self.scan.index_of(uid).filter(right).or_else(|| {
                guid?;
                (0..self.scan.files.len()).find(|index| self.scan.files[*index].is_some() && right(index))
            });
            let Some(index) = found else { return Ok(None) };
            let Some(file) = &self.scan.files[index] else { return Ok(None) };
            let path = file.path(&self.places.mail);
            let flags = (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits() as i32;
            match OpenOptions::new().read(true).custom_flags(flags).open(&path) {
                Ok(file) => return Ok(Some((index, file, path))),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    self.scan = self.shared.scan(&self.places)?;
                }
                Err(error) => return Err(StorageError::io(&path)(error)),
            }
        }
        Ok(None)
    }
}

impl Mailbox for MaildirMailbox {
    fn status(&mut self) -> Result<MailboxStatus> {
        self.refresh()?;
        indexed::status(&self.scan, self.state(), &self.list())
    }

    fn changes(&mut self, since: Since<'_>) -> Result<Changes> {
        self.refresh()?;
        let list = self.list();
        let status = indexed::status(&self.scan, self.state(), &list)?;
        self.expected_next.get_or_insert(status.uid_next);
        let mut changes = changes_since(&list, since);
        if let Some(index) = &self.index {
            index.prove(&mut changes, since)?;
        }
        Ok(Changes { list: changes, status })
    }

    fn digest_of(&mut self, uids: &UidSet) -> Result<Digest> {
        self.refresh()?;
        Ok(Digest::of(self.list().iter().filter(|message| uids.contains(message.uid.get()))))
    }

    fn body(&mut self, uid: Uid, wanted: Option<&MessageGuid>) -> Result<Option<Body>> {
        let Some((index, file, path)) = self.open_file(uid, wanted)? else { return Ok(None) };
        let meta = file.metadata().map_err(StorageError::io(&path))?;
        if !meta.is_file() {
            let what = format!("{}: is no regular file", path.display());
            return Err(StorageError::Impossible(what));
        }
        let record = &self.scan.list.records[index];
        let text = |key| record.field(key).and_then(|value| std::str::from_utf8(value).ok());
        // An empty UIDL stands for the base name.
        let pop3_uidl = text(b'P').map(|uidl| {
            if uidl.is_empty() { String::from_utf8_lossy(&record.base).into() } else { uidl.into() }
        });
        let Opened { reader, compression } = compressed::open(file, &path, compressed::SIZE_MAX)?;
        // The file name tells the size of a mail before it was compressed.
        let size = if compression.is_some() { filename::size(&record.base) } else { Some(meta.len()) };
        Ok(Some(Body {
            guid: guid(record),
            received: Some(Timestamp(meta.mtime())),
            saved: Some(Timestamp(meta.ctime())),
            pop3_uidl,
            pop3_order: text(b'O').and_then(|order| order.parse().ok()),
            size,
            path: compression.is_none().then(|| path.into()),
            map_uid: None,
            reader,
        }))
    }

    fn save(&mut self, message: NewMessage, mut body: Body) -> Result<()> {
        let (mut pending, mut file) = self.begin(message)?;
        let source = body.path.as_deref().and_then(|path: &Path| File::open(path).ok());
        let copied = match source {
            Some(source) => disk::clone_file(&source, &mut file, &pending.path),
            None => std::io::copy(&mut body.reader, &mut file).map_err(StorageError::io(&pending.path)),
        };
        match copied {
            Ok(size) => pending.size = size,
            Err(error) => {
                disk::remove(&pending.path)?;
                return Err(error);
            }
        }
        self.finish(pending, &file)
    }

    fn begin_save(&mut self, message: NewMessage) -> Result<()> {
        let (pending, file) = self.begin(message)?;
        self.coming = Some(Coming { pending, file, buffer: Vec::new() });
        Ok(())
    }

    fn write(&mut self, piece: &[u8]) -> Result<()> {
        let Some(Coming { pending, file, buffer }) = &mut self.coming else { return Ok(()) };
        pending.size += piece.len() as u64;
        buffer.extend_from_slice(piece);
        if buffer.len() >= BUFFER_BYTES {
            disk::write(file, buffer, &pending.path)?;
            buffer.clear();
        }
        Ok(())
    }

    fn end_save(&mut self) -> Result<()> {
        let Some(Coming { pending, mut file, buffer }) = self.coming.take() else { return Ok(()) };
        if !buffer.is_empty()
            && let Err(error) = disk::write(&mut file, &buffer, &pending.path)
        {
            disk::remove(&pending.path)?;
            return Err(error);
        }
        self.finish(pending, &file)
    }

    fn abandon_save(&mut self) {
        if let Some(Coming { pending, .. }) = self.coming.take() {
            discard(&pending.path);
        }
    }

    fn apply(&mut self, actions: &[MessageAction]) -> Result<()> {
        self.actions.extend_from_slice(actions);
        Ok(())
    }

    fn commit(&mut self, goal: Goal) -> Result<Committed> {
        let mut committed = Committed::default();
        if self.is_idle(goal) {
            return Ok(committed);
        }
        let policy = self.shared.account.fsync;
        let files: Vec<PathBuf> = self.pending.iter().map(|pending| pending.path.clone()).collect();
        disk::sync_files(&files, policy)?;
        let lock = DotLock::take(&uidlist::path(&self.places.control), patience())?;
        if !self.scan.list_is_current(&self.places) || !self.actions.is_empty() {
            // With the lock held, what is unknown stays for the next scan: its UIDs come after ours.
            (self.scan, _) = Scan::look(&self.places)?;
        }
        let next = self.scan.list.uid_next().get();
        self.burned.insert_range(self.expected_next.map_or(next, Uid::get)..next);
        let mut keywords = self.scan.keywords.clone();
        let unkept = self.learn_keywords(&mut keywords);
        if self.index.is_none() {
            committed.not_kept = unkept.into_iter().map(|uid| (uid, Some(uid))).collect();
        }
        if keywords != self.scan.keywords {
            self.shared.write_keywords(&self.places, &keywords)?;
            self.scan.keywords = keywords;
        }
        self.drop_dead_lines();
        let actions = std::mem::take(&mut self.actions);
        let mut saved = BTreeMap::new();
        let appended = self.place_saves(&mut saved, &mut committed)?;
        if appended > 0 || !files.is_empty() {
            disk::sync_directory(&self.places.mail.join("cur"), policy)?;
        }
        // What was done, or is to be done: not always what was asked for.
        let mut settled = Vec::with_capacity(actions.len());
        for action in actions {
            let Some(action) = action.redirected(&committed.not_kept) else { continue };
            if let MessageAction::Renumber { from, to } = action
                && !self.renumber(from, to, &mut committed)
            {
                continue;
            }
            settled.push(action);
        }
        let told = Told { saved, actions: &settled };
        self.scan.list.raise_next(goal.uid_next_min);
        if goal.uid_validity.is_some_and(|validity| self.scan.list.uid_validity != Some(validity)) {
            self.scan.list.uid_validity = goal.uid_validity;
            self.scan.list.rewrite = true;
        }
        self.scan.list.write(&self.places.control, appended, policy)?;
        let mut renamed = false;
        for action in &settled {
            match action {
                MessageAction::Renumber { .. } => {}
                MessageAction::Flags { uid, add, remove, .. } => {
                    renamed = true;
                    self.set_flags(*uid, add, remove)?;
                }
                MessageAction::Expunge { uid, guid } => {
                    renamed = true;
                    self.expunge(*uid, guid.as_ref())?;
                }
            }
        }
        if renamed {
            disk::sync_directory(&self.places.mail.join("cur"), policy)?;
        }
        if let Some(index) = &mut self.index {
            let (uid_next_min, uid_validity) = (self.scan.list.uid_next(), self.scan.list.uid_validity);
            let goal = Goal { uid_next_min, uid_validity, ..goal };
            let (scan, import) = (&mut self.scan, &mut self.import);
            indexed::write(index, &self.places, scan, goal, &told, policy, import)?;
        }
        self.expected_next = Some(self.scan.list.uid_next());
        self.scan.refresh_stamps(&self.places);
        drop(lock);
        Ok(committed)
    }

    fn attribute_log(&mut self) -> Result<AttributeLog> {
        self.index.as_ref().map_or(Ok(AttributeLog::default()), Index::attribute_log)
    }

    fn log_attributes(&mut self, records: &AttributeRecords) -> Result<()> {
        let policy = self.shared.account.fsync;
        self.index.as_mut().map_or(Ok(()), |index| index.log_attributes(records, policy))
    }
}

impl Drop for MaildirMailbox {
    fn drop(&mut self) {
        self.abandon_save();
        self.pending.iter().for_each(|pending| discard(&pending.path));
    }
}

fn discard(path: &Path) {
    if let Err(error) = disk::remove(path) {
        tracing::warn!("{error}: leftover cannot be removed");
    }
}
