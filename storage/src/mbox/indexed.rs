//! The file of a mailbox and Dovecot's index of it, read together and brought into step.
//!
//! The file says which messages there are, with UIDs and flags. The index adds the mailbox's GUID, modseqs, history, and
//! flag changes that Dovecot has not written into the file yet.

use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use dsync_model::{Digest, MailboxGuid, MailboxStatus, Message, MessageGuid, ModSeq, Uid, UidValidity};
use jiff::tz::TimeZone;

use super::locks::{Access, Locking, MboxLock};
use super::rewrite::{self, Edits, Writing};
use super::scan::{Entry, Known, MboxFile};
use crate::account::Account;
use crate::by_header::NO_GUID;
use crate::index::edit::{flag_set, keywords, uid_next};
use crate::index::follow::{self, NO_GOAL, Told};
use crate::index::{Edit, Extension, Import, Index, Paths, RecordData, State, Transaction};
use crate::layout::Places;
use crate::lock::patience;
use crate::{Goal, Result, StorageError, disk, halfway};

/// The index extension with the mailbox's GUID behind what Dovecot knows of the file.
const EXTENSION: &str = "mbox";
const HEADER_BYTES: usize = 32;
const DIRTY_AT: usize = 12;
const GUID_AT: u16 = 16;
/// Where a message lies, as Dovecot notes it: Dovecot asserts that there is room for it.
const RECORD_BYTES: u16 = 8;

/// What all mailboxes of an account share.
pub struct Shared {
    pub account: Account,
    pub locking: Locking,
    /// Files whose messages a dry run has given UIDs: the same ones whenever it looks, as long as the file stays what it was.
    pub imagined: Mutex<BTreeMap<PathBuf, (Stamp, MboxFile)>>,
}

/// Tells one content of a file from another without reading it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stamp([i64; 7]);

impl Stamp {
    pub fn of(meta: &Metadata) -> Stamp {
        let file = [meta.dev() as i64, meta.ino() as i64, meta.size() as i64];
        let times = [meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()];
        Stamp([file[0], file[1], file[2], times[0], times[1], times[2], times[3]])
    }

    fn is_of(&self, size: u64, time: u32) -> bool {
        self.0[2] as u64 == size && self.0[3] as u32 == time
    }

    fn of_file(file: &File, places: &Places) -> Result<Stamp> {
        Ok(Stamp::of(&file.metadata().map_err(StorageError::io(&places.mail))?))
    }
}

/// A mailbox as it was when it was read. Every message has a UID.
pub struct Content {
    pub file: MboxFile,
    pub stamp: Stamp,
    pub index: Index,
}

impl Content {
    pub fn is_current(&self, places: &Places) -> bool {
        std::fs::metadata(&places.mail).is_ok_and(|meta| Stamp::of(&meta) == self.stamp)
    }

    pub fn uid_next(&self) -> Uid {
        uid_next(self.index.state()).max(next_of(&self.file))
    }

    /// The messages as file and index have them together.
    pub fn list(&self) -> Vec<Message> {
        let state = self.index.state();
        let names = keywords(state);
        let message = |entry: &Entry| {
            let uid = entry.uid?;
            let row = state.row(uid.get());
            Some(Message {
                uid,
                guid: entry.guid.clone(),
                flags: row.map_or_else(|| entry.flags.clone(), |row| flag_set(state, row, &names)),
                modseq: row.and_then(|row| ModSeq::new(state.modseq_of(row))).unwrap_or_default(),
                received: None,
                size: Some(entry.size_physical),
            })
        };
        self.file.messages.iter().filter_map(message).collect()
    }

    /// Counters and digest of what [`list`](Self::list) gave.
    pub fn status(&self, list: &[Message]) -> Result<MailboxStatus> {
        let state = self.index.state();
        let validity = self.file.uid_validity.or(UidValidity::new(state.header.uid_validity));
        let (Some(guid), Some(uid_validity)) = (guid_of(state), validity) else {
            return Err(StorageError::NoMailbox("without a GUID".into()));
        };
        Ok(MailboxStatus {
            guid,
            uid_validity,
            uid_next: self.uid_next(),
            messages: list.len() as u32,
            highest_modseq: ModSeq::new(state.highest_modseq()).unwrap_or_default(),
            digest: Digest::of(list),
        })
    }
}

/// UIDNEXT as far as the file tells.
pub fn next_of(file: &MboxFile) -> Uid {
    Uid::new(file.last_uid.saturating_add(1)).unwrap_or(Uid::MIN)
}

impl Shared {
    pub fn writing(&self) -> Writing {
        Writing { fsync: self.account.fsync, zone: TimeZone::system() }
    }

    pub fn lock(&self, places: &Places, access: Access) -> Result<MboxLock> {
        MboxLock::take(&places.mail, &self.locking, access).map_err(|error| match error {
            StorageError::Io { source, path } if source.kind() == std::io::ErrorKind::NotFound => {
                StorageError::NoMailbox(path.display().to_string())
            }
            other => other,
        })
    }

    /// Reads a mailbox, with file and index in step. `before` knows messages that may be gone by now.
    pub fn read(&self, places: &Places, before: Option<&MboxFile>) -> Result<Content> {
        // Dovecot renames first the file, then the directory of the index. Without it the mailbox would be taken for a new one.
        Index::wait_for(&paths(places), halfway::RENAMING, || halfway::is_renamed(&places.mail));
        let mut lock = self.lock(places, Access::Read)?;
        if let Some(content) = self.settle(&mut lock, places, before)? {
            return Ok(content);
        }
        drop(lock);
        let mut lock = self.lock(places, Access::Write)?;
        self.settle_to_write(&mut lock, places, before)
    }

    /// Locks a mailbox, and reads it again if it is not what `content` has: that holds as long as the lock does.
    pub fn locked_content(&self, places: &Places, content: &mut Content) -> Result<MboxLock> {
        let mut lock = self.lock(places, Access::Read)?;
        if Stamp::of_file(lock.file(), places)? == content.stamp {
            return Ok(lock);
        }
        if let Some(read) = self.settle(&mut lock, places, Some(&content.file))? {
            *content = read;
            return Ok(lock);
        }
        drop(lock);
        let mut lock = self.lock(places, Access::Write)?;
        *content = self.settle_to_write(&mut lock, places, Some(&content.file))?;
        Ok(lock)
    }

    /// The same under a lock for writing, which is held already.
    pub fn settle_to_write(
        &self,
        lock: &mut MboxLock,
        places: &Places,
        before: Option<&MboxFile>,
    ) -> Result<Content> {
        let what = "messages have no UIDs after they got some";
        let unsettled = || StorageError::Corrupt { path: places.mail.clone(), line: 0, what };
        self.settle(lock, places, before)?.ok_or_else(unsettled)
    }

    /// `None`: the file must be written, and the lock is only for reading.
    fn settle(
        &self,
        lock: &mut MboxLock,
        places: &Places,
        before: Option<&MboxFile>,
    ) -> Result<Option<Content>> {
        let mut index = open_index(paths(places))?;
        let mut guid = index.as_ref().and_then(|index| guid_of(index.state()));
        let stamp = Stamp::of_file(lock.file(), places)?;
        let mut file = match self.imagined(places, stamp) {
            Some(file) => file,
            None => MboxFile::scan(lock.file(), lock.path(), &known(index.as_ref()))?,
        };
        let known_validity =
            index.as_ref().and_then(|index| UidValidity::new(index.state().header.uid_validity));
        if file.uid_validity.is_some() && known_validity.is_some() && known_validity != file.uid_validity {
            remove_index(&paths(places), "its UIDVALIDITY is not that of the mailbox")?;
            index = None;
            file = MboxFile::scan(lock.file(), lock.path(), &known(None))?;
        }
        let unnumbered = file.messages.iter().any(|entry| entry.uid.is_none());
        if unnumbered && lock.access() == Access::Read && !disk::pretends() {
            return Ok(None);
        }
        let validity = match file.uid_validity.or(known_validity.filter(|_| index.is_some())) {
            Some(validity) => validity,
            None => self.account.new_uid_validity()?,
        };
        if unnumbered {
            let mut edits = Edits::none(&file, validity);
            match index.as_ref().filter(|index| numbers(index.state(), &file, stamp)) {
                Some(index) => edits.number_as(&file, &index.state().uids),
                None => {
                    let next = index.as_ref().map_or(Uid::MIN, |index| uid_next(index.state()));
                    if !edits.number(&file, next) {
                        return Err(exhausted(places));
                    }
                }
            }
            if disk::pretends() {
                edits.imagine(&mut file);
                self.held().insert(places.mail.clone(), (stamp, file.clone()));
            } else {
                rewrite::write(lock, &file, &edits, &self.writing())?;
                file = MboxFile::scan(lock.file(), lock.path(), &known(index.as_ref()))?;
                if file.messages.iter().any(|entry| entry.uid.is_none()) {
                    return Ok(None);
                }
            }
        }
        let mut index = match index {
            Some(index) => index,
            None => {
                let guid = *guid.get_or_insert_with(|| self.new_guid(places));
                create_index(paths(places), validity, Uid::MIN, guid, Transaction::new())?
            }
        };
        if guid_of(index.state()).is_none() || index.state().header.uid_validity == 0 {
            let guid = guid_of(index.state()).unwrap_or_else(|| self.new_guid(places));
            self.identify_index(&mut index, guid, validity)?;
        }
        let goal = Goal { uid_next_min: next_of(&file), ..NO_GOAL };
        let edit = difference(&file, index.state(), before);
        let next = goal.uid_next_min > uid_next(index.state());
        if next || !edit.appended.is_empty() || !edit.flagged.is_empty() || !edit.expunged.is_empty() {
            self.follow(&mut index, &file, before, goal, &Told::default(), &mut Import::Over)?;
        }
        let stamp = Stamp::of_file(lock.file(), places)?;
        Ok(Some(Content { file, stamp, index }))
    }

    /// For a mailbox that has none: with LAYOUT=index, that which its file is named by.
    fn new_guid(&self, places: &Places) -> MailboxGuid {
        self.account.guid_of_directory(places).unwrap_or_else(|| Account::new_guid(&places.mail))
    }

    fn imagined(&self, places: &Places, stamp: Stamp) -> Option<MboxFile> {
        let imagined = self.held();
        let (_, file) =
            imagined.get(&places.mail).filter(|(known, _)| disk::pretends() && *known == stamp)?;
        Some(file.clone())
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<PathBuf, (Stamp, MboxFile)>> {
        self.imagined.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what the file has and the index has not. The file is locked.
    pub fn follow(
        &self,
        index: &mut Index,
        file: &MboxFile,
        before: Option<&MboxFile>,
        goal: Goal,
        told: &Told<'_>,
        import: &mut Import,
    ) -> Result<()> {
        let mut writer = index.lock(patience())?;
        let mut edit = difference(file, writer.state(), before);
        follow::tell(&mut edit, writer.state(), told);
        note_offsets(&mut edit, file, writer.state());
        import.write(&mut writer, &mut edit, goal, &[extension()], self.account.fsync)
    }

    /// Writes GUID and UIDVALIDITY of a mailbox into its index.
    fn identify_index(&self, index: &mut Index, guid: MailboxGuid, validity: UidValidity) -> Result<()> {
        let mut writer = index.lock(patience())?;
        let state = writer.state();
        let mut change = Transaction::new();
        change.header(24, &validity.get().to_le_bytes());
        let mut extension = state.extension(EXTENSION).cloned().unwrap_or_else(extension);
        extension.header_bytes = extension.header_bytes.max(HEADER_BYTES);
        change.introduce(state.extension_id(EXTENSION), &extension);
        change.ext_header(GUID_AT, &guid.0);
        writer.append(change, self.account.fsync)
    }

    /// Gives a mailbox another identity.
    pub fn identify(&self, places: &Places, guid: MailboxGuid, validity: UidValidity) -> Result<()> {
        let mut lock = self.lock(places, Access::Write)?;
        let Content { file, mut index, .. } = self.settle_to_write(&mut lock, places, None)?;
        if file.uid_validity.is_some_and(|known| known != validity) {
            let edits = Edits { uid_validity: validity, ..Edits::none(&file, validity) };
            rewrite::write(&mut lock, &file, &edits, &self.writing())?;
        }
        self.identify_index(&mut index, guid, validity)
    }
}

/// What the index knows that the file may not.
pub fn known(index: Option<&Index>) -> Known {
    let Some(index) = index else { return Known::default() };
    let names = keywords(index.state()).into_iter().flatten().collect();
    Known { uid_next: Some(uid_next(index.state())), keywords: names, ..Known::default() }
}

pub fn exhausted(places: &Places) -> StorageError {
    StorageError::Impossible(format!("{}: UIDs are exhausted", places.mail.display()))
}

/// The index of a mailbox. Accounts with indexes in memory are refused.
pub fn paths(places: &Places) -> Paths {
    Paths::mailbox(places.index.as_deref().unwrap_or(&places.control))
}

/// An index that is broken is made anew from the file.
fn open_index(paths: Paths) -> Result<Option<Index>> {
    match Index::open(paths.clone()) {
        Ok(index) => Ok(index.filter(|index| !index.state().deleted)),
        Err(error @ StorageError::Corrupt { .. }) => {
            remove_index(&paths, &error.to_string())?;
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn remove_index(paths: &Paths, why: &str) -> Result<()> {
    tracing::warn!("{}: index is made anew: {why}", paths.log().display());
    let cache = paths.directory.join("dovecot.index.cache");
    [paths.log(), paths.log2(), paths.snapshot(), cache].iter().try_for_each(|path| disk::remove(path))
}

/// Makes the index of a mailbox that has none. `first` is what it says besides, in a transaction with its GUID.
pub fn create_index(
    paths: Paths,
    validity: UidValidity,
    uid_next: Uid,
    guid: MailboxGuid,
    mut first: Transaction,
) -> Result<Index> {
    first.introduce(None, &extension());
    first.ext_header(GUID_AT, &guid.0);
    disk::make_directory(&paths.directory)?;
    Index::create_or_open(paths, validity.get(), uid_next.get(), first)
}

fn extension() -> Extension {
    Extension::new(EXTENSION, HEADER_BYTES, usize::from(RECORD_BYTES), RECORD_BYTES)
}

/// Says whether the index has a UID for each message of the file: Dovecot numbers what it may not write there, and goes by that while size and
/// time of the file stay as it noted them.
fn numbers(state: &State, file: &MboxFile, stamp: Stamp) -> bool {
    let Some(extension) = state.extension(EXTENSION) else { return false };
    let header = extension.header_padded(HEADER_BYTES);
    let (Some(size), Some(time)) = (header.first_chunk::<8>(), header[8..].first_chunk::<4>()) else {
        return false;
    };
    let uids = file.messages.iter().map(|entry| entry.uid.map(Uid::get));
    header[DIRTY_AT] == 0
        && stamp.is_of(u64::from_le_bytes(*size), u32::from_le_bytes(*time))
        && file.messages.len() == state.uids.len()
        && uids.zip(&state.uids).all(|(uid, known)| uid.is_none_or(|uid| uid == *known))
}

/// The mailbox's GUID as its index has it.
pub fn guid_of(state: &State) -> Option<MailboxGuid> {
    let header = state.extension(EXTENSION)?.header_padded(HEADER_BYTES);
    let guid: [u8; 16] = header.get(usize::from(GUID_AT)..HEADER_BYTES)?.try_into().ok()?;
    (guid != [0; 16]).then_some(MailboxGuid(guid))
}

fn difference(file: &MboxFile, state: &State, before: Option<&MboxFile>) -> Edit {
    let messages = file.messages.iter().filter_map(|entry| Some((entry.uid?.get(), entry.flags.clone())));
    let guid_of = |uid: u32| {
        let entry = before.and_then(|before| before.messages.get(place_of(before, uid)?));
        // Many messages may share the sum of no header at all: that proves nothing.
        entry.filter(|entry| entry.guid.as_str() != NO_GUID).map_or([0; 16], |entry| entry.guid.bits())
    };
    follow::difference(messages, state, guid_of, |_| true)
}

/// Adds where each message lies. Dovecot goes by that in a file which is larger or smaller than it was, and stops with an error if it finds the end of
/// the file there.
fn note_offsets(edit: &mut Edit, file: &MboxFile, state: &State) {
    let known = state.extension(EXTENSION);
    if known.is_some_and(|known| known.record_bytes != usize::from(RECORD_BYTES)) {
        return;
    }
    let mut before = file.pseudo.as_ref();
    let mut records = Vec::new();
    for entry in &file.messages {
        // A message begins with the line end that separates it from the one before.
        let adjacent = before.filter(|before| before.end == entry.offset);
        let offset = adjacent.map_or(entry.offset.saturating_sub(1), |before| before.body_end);
        before = Some(entry);
        let (Some(uid), data) = (entry.uid.map(Uid::get), offset.to_le_bytes().to_vec()) else { continue };
        if let Ok(place) = edit.appended.binary_search_by_key(&uid, |mail| mail.uid) {
            edit.appended[place].data.push((EXTENSION, data));
        } else if state.row(uid).is_some_and(|row| known.is_none_or(|known| known.row(row) != data)) {
            records.push(RecordData { extension: EXTENSION, uid, data });
        }
    }
    edit.records = records;
}

/// Place of the message with this UID, where all have one.
pub fn place_of(file: &MboxFile, uid: u32) -> Option<usize> {
    file.messages.binary_search_by_key(&uid, |entry| entry.uid.map_or(0, Uid::get)).ok()
}

/// Says whether this is the GUID of the message, as Dovecot compares them.
pub fn is(entry: &Entry, guid: &MessageGuid) -> bool {
    entry.guid.bits() == guid.bits()
}
