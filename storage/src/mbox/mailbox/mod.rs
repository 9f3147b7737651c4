//! One open mbox: lists, bodies, saves and commits; what a commit does is settled in `planning`.

mod planning;

use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use dsync_model::{
    AttributeLog, AttributeRecords, Changes, Digest, MailboxStatus, MessageAction, MessageGuid, NewMessage,
    Since, Timestamp, Uid, UidSet, UidValidity, changes_since,
};

use self::planning::Plan;
use super::indexed::{self, Content, Shared, Stamp, next_of, place_of};
use super::locks::{Access, MboxLock};
use super::message::VirtualMessage;
use super::rewrite;
use super::scan::{Entry, MboxFile};
use crate::by_header::NO_GUID;
use crate::index::Import;
use crate::index::follow::Told;
use crate::layout::Places;
use crate::{Body, Committed, Goal, Mailbox, Result, StorageError, disk};

/// Begins the names of files that are still being written, in the control directory of a mailbox.
const TEMPORARY: &str = ".dsync-mail-P";
/// Bytes gathered before they are written, and read at once.
const BUFFER_BYTES: usize = 256 << 10;
/// A larger message is copied to a file, not to memory.
const MEMORY_BYTES_MAX: u64 = 1 << 20;

/// A message beside the mailbox, on its way into it.
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

/// One open mbox.
pub(super) struct MboxMailbox {
    shared: Arc<Shared>,
    places: Places,
    content: Content,
    /// UIDNEXT when we last looked: what lies between it and UIDNEXT as we find it was given away by others.
    expected_next: Option<Uid>,
    burned: UidSet,
    coming: Option<Coming>,
    pending: Vec<Pending>,
    actions: Vec<MessageAction>,
    import: Import,
}

/// Removes what our own processes left beside a mailbox when they died.
pub(super) fn sweep(places: &Places) -> Result<()> {
    for entry in std::fs::read_dir(&places.control).into_iter().flatten().flatten() {
        let name = entry.file_name().into_string().unwrap_or_default();
        let pid = name.strip_prefix(TEMPORARY).and_then(|rest| rest.split_once('Q'));
        if pid.is_some_and(|(pid, _)| !crate::lock::process_exists(pid)) {
            disk::remove(&entry.path())?;
        }
    }
    Ok(())
}

impl MboxMailbox {
    pub(super) fn new(shared: Arc<Shared>, places: Places, content: Content) -> MboxMailbox {
        MboxMailbox {
            shared,
            places,
            content,
            expected_next: None,
            burned: UidSet::new(),
            coming: None,
            pending: Vec::new(),
            actions: Vec::new(),
            import: Import::default(),
        }
    }

    fn refresh(&mut self) -> Result<()> {
        if self.content.is_current(&self.places) {
            self.content.index.refresh()?;
        } else {
            self.content = self.shared.read(&self.places, Some(&self.content.file))?;
        }
        Ok(())
    }

    /// A new file beside the mailbox.
    fn temporary(&self) -> Result<(PathBuf, File)> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let directory = &self.places.control;
        disk::make_directory(directory)?;
        let name = format!("{TEMPORARY}{}Q{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = directory.join(name);
        disk::remove(&path)?;
        let file = disk::create_readable(&path, 0o600)?;
        Ok((path, file))
    }

    fn find(&self, uid: Uid, wanted: Option<&MessageGuid>) -> Option<&Entry> {
        let messages = &self.content.file.messages;
        let right = |entry: &&Entry| wanted.is_none_or(|wanted| indexed::is(entry, wanted));
        let here = place_of(&self.content.file, uid.get()).and_then(|place| messages.get(place));
        // What has nothing for a GUID is known by its UID alone.
        let named = wanted.filter(|wanted| wanted.as_str() != NO_GUID);
        here.filter(right).or_else(|| named.and_then(|_| messages.iter().find(right)))
    }

    /// A message of the content, which is what the locked file holds.
    fn body_under(&self, lock: &MboxLock, uid: Uid, wanted: Option<&MessageGuid>) -> Result<Option<Body>> {
        let Some(entry) = self.find(uid, wanted) else { return Ok(None) };
        Ok(Some(Body {
            guid: entry.guid.clone(),
            received: Some(entry.received),
            saved: None,
            pop3_uidl: None,
            pop3_order: None,
            size: Some(entry.size_physical),
            path: None,
            map_uid: None,
            reader: self.copy_out(lock, entry)?,
        }))
    }

    /// Copies a message out of the file, so that no lock outlasts the call.
    fn copy_out(&self, lock: &MboxLock, entry: &Entry) -> Result<Box<dyn Read + Send>> {
        let file = lock.file().try_clone().map_err(StorageError::io(lock.path()))?;
        let mut message =
            VirtualMessage::open(Arc::new(file), entry).map_err(StorageError::io(lock.path()))?;
        if entry.size_physical <= MEMORY_BYTES_MAX {
            let mut bytes = Vec::with_capacity(entry.size_physical as usize);
            message.read_to_end(&mut bytes).map_err(StorageError::io(lock.path()))?;
            return Ok(Box::new(io::Cursor::new(bytes)));
        }
        let (path, mut file) = self.temporary()?;
        let copied = copy(&mut message, lock.path(), &file, &path);
        // The descriptor is all that is needed.
        disk::remove(&path)?;
        copied?;
        file.rewind().map_err(StorageError::io(&path))?;
        Ok(Box::new(file))
    }

    fn carry_out(&mut self, goal: Goal) -> Result<Committed> {
        let mut committed = Committed::default();
        let files: Vec<PathBuf> = self.pending.iter().map(|pending| pending.path.clone()).collect();
        disk::sync_files(&files, self.shared.account.fsync)?;
        let mut lock = self.shared.lock(&self.places, Access::Write)?;
        self.content = self.shared.settle_to_write(&mut lock, &self.places, Some(&self.content.file))?;
        let next = self.content.uid_next();
        self.burned.insert_range(self.expected_next.unwrap_or(next).get()..next.get());
        let state = self.content.index.state();
        let now = self.content.file.uid_validity.or(UidValidity::new(state.header.uid_validity));
        let Some(validity) = goal.uid_validity.or(now) else {
            return Err(StorageError::NoMailbox(self.places.mail.display().to_string()));
        };
        let actions = std::mem::take(&mut self.actions);
        let Plan { mut edits, saved, settled } = self.plan(actions, validity, &mut committed)?;
        let told = Told { saved, actions: &settled };
        edits.uid_validity = validity;
        edits.last_uid = edits.last_uid.max(goal.uid_next_min.get() - 1);
        let before = std::mem::take(&mut self.content.file);
        let is_empty = before.size == 0 && edits.arrivals.is_empty();
        // Counters of an empty file are in the index alone.
        let replaced = if is_empty {
            None
        } else {
            rewrite::begin(&mut lock, &before, &edits, &self.shared.writing())?.1
        };
        let known = indexed::known(Some(&self.content.index));
        let written = match &replaced {
            Some(replaced) => replaced.scan(&known),
            None if is_empty => Ok(before.clone()),
            None => MboxFile::scan(lock.file(), lock.path(), &known),
        };
        let followed = written.and_then(|file| {
            let uid_next_min = goal.uid_next_min.max(next_of(&file));
            let goal = Goal { uid_next_min, uid_validity: Some(validity), ..goal };
            self.content.file = file;
            let Content { file, index, .. } = &mut self.content;
            self.shared.follow(index, file, Some(&before), goal, &told, &mut self.import)
        });
        // Whatever became of the index: the mail is to be read.
        replaced.map_or(Ok(()), |replaced| replaced.end(&lock, self.shared.account.fsync))?;
        followed?;
        self.content.stamp = Stamp::of(&lock.file().metadata().map_err(StorageError::io(lock.path()))?);
        self.expected_next = Some(self.content.uid_next());
        Ok(committed)
    }

    fn is_idle(&self, goal: Goal) -> bool {
        let state = self.content.index.state();
        let validity = goal.uid_validity.is_none_or(|validity| validity.get() == state.header.uid_validity);
        let counters =
            goal.uid_next_min <= self.content.uid_next() && goal.modseq_min.get() <= state.highest_modseq();
        self.pending.is_empty() && self.actions.is_empty() && validity && counters
    }

    fn discard(&mut self) {
        self.actions.clear();
        self.pending.drain(..).for_each(|pending| discard(&pending.path));
    }
}

/// The present, as dates of messages have it.
fn now() -> Timestamp {
    Timestamp(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs() as i64))
}

fn copy(from: &mut impl Read, source: &Path, to: &File, path: &Path) -> Result<u64> {
    let mut chunk = vec![0; BUFFER_BYTES];
    let mut size = 0;
    loop {
        match from.read(&mut chunk) {
            Ok(0) => return Ok(size),
            Ok(bytes) => {
                size += bytes as u64;
                disk::write(to, &chunk[..bytes], path)?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(StorageError::io(source)(error)),
        }
    }
}

fn discard(path: &Path) {
    if let Err(error) = disk::remove(path) {
        tracing::warn!("{error}: leftover cannot be removed");
    }
}

impl Mailbox for MboxMailbox {
    fn status(&mut self) -> Result<MailboxStatus> {
        self.refresh()?;
        self.content.status(&self.content.list())
    }

    fn changes(&mut self, since: Since<'_>) -> Result<Changes> {
        self.refresh()?;
        let list = self.content.list();
        let status = self.content.status(&list)?;
        self.expected_next.get_or_insert(status.uid_next);
        let mut changes = changes_since(&list, since);
        self.content.index.prove(&mut changes, since)?;
        Ok(Changes { list: changes, status })
    }

    fn digest_of(&mut self, uids: &UidSet) -> Result<Digest> {
        self.refresh()?;
        Ok(Digest::of(self.content.list().iter().filter(|message| uids.contains(message.uid.get()))))
    }

    fn body(&mut self, uid: Uid, wanted: Option<&MessageGuid>) -> Result<Option<Body>> {
        let lock = self.shared.locked_content(&self.places, &mut self.content)?;
        self.body_under(&lock, uid, wanted)
    }

    /// The list is read from the one file that holds them all.
    fn may_miss_bodies(&self) -> bool {
        false
    }

    fn save(&mut self, message: NewMessage, mut body: Body) -> Result<()> {
        self.abandon_save();
        let (path, file) = self.temporary()?;
        match copy(&mut body.reader, Path::new("the message's source"), &file, &path) {
            Ok(size) => self.pending.push(Pending { message, path, size }),
            Err(error) => {
                discard(&path);
                return Err(error);
            }
        }
        Ok(())
    }

    fn begin_save(&mut self, message: NewMessage) -> Result<()> {
        self.abandon_save();
        let (path, file) = self.temporary()?;
        self.coming = Some(Coming { pending: Pending { message, path, size: 0 }, file, buffer: Vec::new() });
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
        let Some(Coming { pending, file, buffer }) = self.coming.take() else { return Ok(()) };
        if !buffer.is_empty()
            && let Err(error) = disk::write(&file, &buffer, &pending.path)
        {
            discard(&pending.path);
            return Err(error);
        }
        self.pending.push(pending);
        Ok(())
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
        if self.is_idle(goal) {
            return Ok(Committed::default());
        }
        let outcome = self.carry_out(goal);
        if outcome.is_err() {
            // Whatever the file holds now is read again.
            self.content.stamp = Stamp::default();
        }
        self.discard();
        outcome
    }

    fn attribute_log(&mut self) -> Result<AttributeLog> {
        self.content.index.attribute_log()
    }

    fn log_attributes(&mut self, records: &AttributeRecords) -> Result<()> {
        self.content.index.log_attributes(records, self.shared.account.fsync)
    }
}

impl Drop for MboxMailbox {
    fn drop(&mut self) {
        self.abandon_save();
        self.discard();
    }
}
