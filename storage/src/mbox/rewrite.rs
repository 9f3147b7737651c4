//! Changes an mbox file in the cheapest way that is safe.
//!
//! Three ways: single header lines are overwritten where they have room; new messages are appended, marked as
//! unfinished until all of them are on the disk; everything else is written anew beside the file and then into it. Whenever the process
//! dies, who next locks the file finds every message whole, and once.

use std::collections::BTreeMap;
use std::fs::{File, FileTimes, Metadata};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dsync_model::{FlagSet, Keyword, Uid, UidValidity};
use jiff::tz::TimeZone;

use super::arrival::Arrival;
use super::headers::{Base, Meta};
use super::locks::{Access, MboxLock};
use super::output::Output;
use super::render::{Room, Wanted};
use super::replace::{self, Replaced};
use super::scan::{Entry, MboxFile};
use crate::{Fsync, Result, StorageError, disk};

/// What becomes of a message that is there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// It gets this UID, these flags; `None` leaves them.
    Set {
        uid: Option<Uid>,
        flags: Option<FlagSet>,
    },
    Expunge,
}

/// All that is to be changed at once. UIDs in the end must be different from each other.
#[derive(Clone, Debug)]
pub struct Edits {
    pub uid_validity: UidValidity,
    /// Becomes at least the highest UID that is there.
    pub last_uid: u32,
    /// Keywords for the base. Those in use are added.
    pub keywords: Vec<Keyword>,
    /// By place in [`MboxFile::messages`].
    pub changes: BTreeMap<usize, Change>,
    pub arrivals: Vec<Arrival>,
    /// UIDNEXT of the index: what comes below it must be in the index before anybody reads it in the file.
    pub uid_next: Uid,
}

impl Edits {
    /// Changes nothing yet, but gives the file a UIDVALIDITY if it has none.
    pub fn none(found: &MboxFile, uid_validity: UidValidity) -> Edits {
        Edits {
            uid_validity: found.uid_validity.unwrap_or(uid_validity),
            last_uid: found.last_uid,
            keywords: found.keywords.clone(),
            changes: BTreeMap::new(),
            arrivals: Vec::new(),
            uid_next: Uid::MIN,
        }
    }

    /// Gives a UID to every message without, `uid_next` to the first of them. `false`: UIDs are exhausted.
    pub fn number(&mut self, found: &MboxFile, uid_next: Uid) -> bool {
        let mut next = Some(uid_next.get().max(self.last_uid.saturating_add(1)));
        for (place, _) in found.messages.iter().enumerate().filter(|(_, entry)| entry.uid.is_none()) {
            let Some(uid) = next.and_then(Uid::new).filter(|uid| uid.next().is_some()) else { return false };
            self.last_uid = uid.get();
            self.changes.insert(place, Change::Set { uid: Some(uid), flags: None });
            next = uid.get().checked_add(1);
        }
        true
    }
}

impl Edits {
    /// Gives every message without a UID the one in its place.
    pub fn number_as(&mut self, found: &MboxFile, uids: &[u32]) {
        for (place, (entry, uid)) in found.messages.iter().zip(uids).enumerate() {
            if let (None, Some(uid)) = (entry.uid, Uid::new(*uid)) {
                self.last_uid = self.last_uid.max(uid.get());
                self.changes.insert(place, Change::Set { uid: Some(uid), flags: None });
            }
        }
    }

    /// Gives UIDs to messages in memory alone, for a dry run.
    pub fn imagine(&self, found: &mut MboxFile) {
        found.uid_validity = Some(self.uid_validity);
        found.last_uid = found.last_uid.max(self.last_uid);
        for (place, change) in &self.changes {
            if let (Some(entry), Change::Set { uid: Some(uid), .. }) =
                (found.messages.get_mut(*place), change)
            {
                entry.uid = Some(*uid);
            }
        }
    }
}

/// How the file was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Written {
    Nothing,
    InPlace,
    Appended,
    /// All of it is new.
    Replaced,
}

/// How files are written.
#[derive(Clone, Debug)]
pub struct Writing {
    pub fsync: Fsync,
    /// The zone for From_ lines.
    pub zone: TimeZone,
}

/// Carries out the edits on the file that `found` was read from, under the same lock, which is one for writing.
///
/// The caller reads the file again afterwards: no offset of `found` holds any more.
pub fn write(lock: &mut MboxLock, found: &MboxFile, edits: &Edits, writing: &Writing) -> Result<Written> {
    let (written, replaced) = begin(lock, found, edits, writing)?;
    replaced.map_or(Ok(()), |replaced| replaced.end(lock, writing.fsync))?;
    Ok(written)
}

/// The same up to where a file that was written anew becomes an mbox again.
pub fn begin(
    lock: &mut MboxLock,
    found: &MboxFile,
    edits: &Edits,
    writing: &Writing,
) -> Result<(Written, Option<Replaced>)> {
    assert!(lock.access() == Access::Write, "an mbox is changed under a lock for writing");
    if disk::pretends() {
        return Ok((Written::Nothing, None));
    }
    let before = lock.file().metadata().map_err(StorageError::io(lock.path()))?;
    if before.len() != found.size {
        let (path, holder) = (lock.path().to_owned(), "a program that writes without a lock".to_owned());
        return Err(StorageError::Locked { path, holder, waited: Duration::ZERO });
    }
    let plan = Plan::new(found, edits, lock.path())?;
    if let Some(patches) = plan.patches(lock.file(), lock.path())? {
        if patches.is_empty() && edits.arrivals.is_empty() && found.unfinished.is_empty() {
            return Ok((Written::Nothing, None));
        }
        if !edits.arrivals.is_empty() {
            append(lock, &plan, &patches, writing)?;
        } else {
            plan.cut_unfinished(lock)?;
            overwrite(lock, &patches)?;
        }
        disk::sync_file(lock.file(), lock.path(), writing.fsync)?;
        keep_times(lock.file(), lock.path(), &before, !edits.arrivals.is_empty())?;
        return Ok((if edits.arrivals.is_empty() { Written::InPlace } else { Written::Appended }, None));
    }
    let replaced = replace::replace(lock, &plan, before, writing)?;
    Ok((Written::Replaced, Some(replaced)))
}

/// Bytes to be written over others.
type Patch = (u64, Vec<u8>);

/// One message of the mailbox as it is to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Source {
    /// Place in [`MboxFile::messages`].
    Old(usize),
    /// Place in [`Edits::arrivals`].
    New(usize),
}

pub(super) struct Plan<'a> {
    pub found: &'a MboxFile,
    pub edits: &'a Edits,
    base: Base,
    /// Value of the base that is to be.
    pub base_text: String,
    /// By UID, as the format demands; what has none comes last.
    pub order: Vec<(Option<Uid>, Source)>,
}

impl<'a> Plan<'a> {
    fn new(found: &'a MboxFile, edits: &'a Edits, path: &Path) -> Result<Plan<'a>> {
        let mut order = Vec::with_capacity(found.messages.len() + edits.arrivals.len());
        let mut keywords = edits.keywords.clone();
        for (place, entry) in found.messages.iter().enumerate() {
            let (uid, flags) = match edits.changes.get(&place) {
                Some(Change::Expunge) => continue,
                Some(Change::Set { uid, flags }) => (uid.or(entry.uid), flags.as_ref()),
                None => (entry.uid, None),
            };
            learn(&mut keywords, flags.unwrap_or(&entry.flags));
            order.push((uid, Source::Old(place)));
        }
        for (place, arrival) in edits.arrivals.iter().enumerate() {
            learn(&mut keywords, &arrival.flags);
            order.push((Some(arrival.uid), Source::New(place)));
        }
        order.sort_by_key(|(uid, _)| (uid.is_none(), *uid));
        if order.windows(2).any(|pair| pair[0].0.is_some() && pair[0].0 == pair[1].0) {
            return Err(StorageError::Impossible(format!("{}: two messages with one UID", path.display())));
        }
        let highest = order.iter().filter_map(|(uid, _)| *uid).max().map_or(0, Uid::get);
        let kept = if found.uid_validity == Some(edits.uid_validity) { found.last_uid } else { 0 };
        let last_uid = edits.last_uid.max(highest).max(kept);
        let base = Base { uid_validity: edits.uid_validity, last_uid, keywords };
        Ok(Plan { found, edits, base_text: base.text(), base, order })
    }

    pub fn base_changes(&self) -> bool {
        let found = self.found;
        found.uid_validity != Some(self.base.uid_validity)
            || found.last_uid != self.base.last_uid
            || found.keywords != self.base.keywords
    }

    /// Says whether this message holds the base now.
    pub fn holds_base(&self, place: usize) -> bool {
        self.found.uid_validity.is_some() && self.found.pseudo.is_none() && place == 0
    }

    pub fn wanted(&self, place: usize, holds_base: bool) -> Wanted<'_> {
        let entry = &self.found.messages[place];
        let (uid, flags) = match self.edits.changes.get(&place) {
            Some(Change::Set { uid, flags }) => (uid.or(entry.uid), flags.as_ref().unwrap_or(&entry.flags)),
            _ => (entry.uid, &entry.flags),
        };
        let body_bytes = entry.has_empty_line() && entry.has_body_bytes;
        Wanted {
            base: holds_base.then_some((Meta::Base, self.base_text.as_str())),
            uid,
            flags,
            is_old: entry.is_old,
            body_bytes: body_bytes.then_some(entry.body_end - entry.body_start),
        }
    }

    pub fn is_changed(&self, place: usize) -> bool {
        let (entry, wanted) = (&self.found.messages[place], self.wanted(place, false));
        wanted.uid != entry.uid || *wanted.flags != entry.flags
    }

    /// What is to be overwritten, if that and appending is enough.
    fn patches(&self, file: &File, path: &Path) -> Result<Option<Vec<Patch>>> {
        let found = self.found;
        // The arrivals come last, and all that is there stays where it is and keeps its UID.
        let places: Option<Vec<usize>> = self.order[..found.messages.len().min(self.order.len())]
            .iter()
            .map(|(uid, source)| match source {
                Source::Old(place) if found.messages[*place].uid == *uid => Some(*place),
                _ => None,
            })
            .collect();
        let stays = places.is_some_and(|places| places.iter().copied().eq(0..found.messages.len()));
        // A wrong Content-Length may become right by what follows, and swallow it.
        let sound = found.messages.iter().all(|entry| entry.uid.is_some() && !entry.is_stale);
        let new = self.edits.arrivals.iter().all(|arrival| arrival.uid >= self.edits.uid_next);
        let appends = self.edits.arrivals.is_empty() || (sound && new);
        let has_base = found.uid_validity.is_some();
        if !stays || !appends || !has_base || self.unfinished_tail().is_none() {
            return Ok(None);
        }
        let mut patches = Vec::new();
        if let Some(pseudo) = found.pseudo.as_ref().filter(|_| self.base_changes()) {
            let wanted = Wanted {
                base: Some((Meta::Imap, &self.base_text)),
                uid: None,
                flags: &pseudo.flags,
                is_old: pseudo.is_old,
                body_bytes: pseudo.has_body_bytes.then_some(pseudo.body_end - pseudo.body_start),
            };
            let Some(patch) = patch(file, path, pseudo, wanted)? else { return Ok(None) };
            patches.extend(patch);
        }
        for place in 0..found.messages.len() {
            let holds_base = self.holds_base(place);
            let concerned = self.is_changed(place) || (holds_base && self.base_changes());
            if !concerned {
                continue;
            }
            let wanted = self.wanted(place, holds_base);
            let Some(patch) = patch(file, path, &found.messages[place], wanted)? else { return Ok(None) };
            patches.extend(patch);
        }
        Ok(Some(patches))
    }

    /// Where the file ends without the unfinished messages, if these lie at its end.
    fn unfinished_tail(&self) -> Option<u64> {
        let mut end = self.found.size;
        for range in self.found.unfinished.iter().rev() {
            if range.end != end {
                return None;
            }
            end = range.start;
        }
        Some(end)
    }

    fn cut_unfinished(&self, lock: &MboxLock) -> Result<u64> {
        let end = self.unfinished_tail().unwrap_or(self.found.size);
        if end < self.found.size {
            disk::truncate(lock.file(), end, lock.path())?;
        }
        Ok(end)
    }
}

fn learn(keywords: &mut Vec<Keyword>, flags: &FlagSet) {
    for keyword in &flags.keywords {
        if !keywords.contains(keyword) {
            keywords.push(keyword.clone());
        }
    }
}

pub(super) fn read_header(file: &File, path: &Path, entry: &Entry) -> Result<Vec<u8>> {
    let mut header = vec![0; (entry.header_end - entry.header_start) as usize];
    file.read_exact_at(&mut header, entry.header_start).map_err(StorageError::io(path))?;
    Ok(header)
}

/// The bytes of a header that change, if it can keep its length. The inner `None`: none do.
fn patch(file: &File, path: &Path, entry: &Entry, wanted: Wanted<'_>) -> Result<Option<Option<Patch>>> {
    if entry.is_stale || entry.is_cut_header() {
        return Ok(None);
    }
    let old = read_header(file, path, entry)?;
    if !old.ends_with(b"\n") {
        return Ok(None);
    }
    let Some(new) = wanted.render(&old, Room::Same, entry.line_end()) else { return Ok(None) };
    assert!(new.len() == old.len(), "a patch has the length of what it covers");
    let same = |(a, b): &(&u8, &u8)| a == b;
    let front = old.iter().zip(&new).take_while(same).count();
    let back = old[front..].iter().rev().zip(new[front..].iter().rev()).take_while(same).count();
    let changed = front..old.len() - back;
    Ok(Some((!changed.is_empty()).then(|| (entry.header_start + front as u64, new[changed].to_vec()))))
}

fn overwrite(lock: &MboxLock, patches: &[Patch]) -> Result<()> {
    // The base comes first in the file, and so a new keyword is in its list before a message has it.
    patches.iter().try_for_each(|(offset, text)| disk::write_at(lock.file(), text, *offset, lock.path()))
}

/// Adds messages at the end. Up to the last step they are marked as unfinished.
fn append(lock: &mut MboxLock, plan: &Plan<'_>, patches: &[Patch], writing: &Writing) -> Result<()> {
    let begin = plan.cut_unfinished(lock)?;
    let marks = match append_marked(lock, plan, begin, writing) {
        Ok(marks) => marks,
        Err(error) => {
            // Nobody has seen them. Should this fail as well, the marks say what they are.
            if let Err(error) = disk::truncate(lock.file(), begin, lock.path()) {
                tracing::warn!("{error}: unfinished messages cannot be cut off");
            }
            return Err(error);
        }
    };
    disk::sync_file(lock.file(), lock.path(), writing.fsync)?;
    overwrite(lock, patches)?;
    overwrite(lock, &marks)
}

fn append_marked(lock: &mut MboxLock, plan: &Plan<'_>, begin: u64, writing: &Writing) -> Result<Vec<Patch>> {
    let mut last = [b'\n'];
    if begin > 0 {
        lock.file().read_exact_at(&mut last, begin - 1).map_err(StorageError::io(lock.path()))?;
    }
    let lacks = last != *b"\n" || plan.found.last_entry().is_some_and(Entry::lacks_separator);
    let mut output = Output::new(lock, None, begin);
    if lacks {
        output.put(b"\n")?;
    }
    let mut marks = Vec::new();
    for (_, source) in &plan.order {
        if let Source::New(place) = source {
            let mark = plan.edits.arrivals[*place].write(&mut output, None, &writing.zone, true)?;
            marks.extend(mark.map(|mark| (mark.offset, mark.sender)));
        }
    }
    output.finish()?;
    Ok(marks)
}

/// The time of change must move on by a second, or Dovecot takes a file of the same size for the old one. A file
/// that was changed after it was last read has new mail, for shells and others: so it stays, or becomes if it has.
pub(super) fn keep_times(file: &File, path: &Path, before: &Metadata, has_new: bool) -> Result<()> {
    let at = |seconds: i64| UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    let changed = SystemTime::now().max(at(before.mtime() + 1));
    let had_new = (before.atime(), before.atime_nsec()) < (before.mtime(), before.mtime_nsec());
    let read = if had_new || has_new { at(before.atime()).min(at(before.mtime())) } else { changed };
    disk::set_times(file, FileTimes::new().set_modified(changed).set_accessed(read), path)
}
