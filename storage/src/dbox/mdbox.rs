//! mdbox: messages of all mailboxes in files `m.N`, found through the map (storage formats reference, 10).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use dsync_model::{MailboxGuid, MessageGuid, NewMessage, Timestamp};

use super::bodies::{Mail, Moves, Pending};
use super::map::{Map, MapChange, MapState, MapWriter, Place};
use super::output::Output;
use super::saving::{Saving, now};
use super::store::Store;
use super::{AttachmentDir, DboxFile, StoredMail};
use crate::index::format::u32_at;
use crate::index::{Edit, Extension, State};
use crate::layout::Places;
use crate::{Body, Fsync, Result, StorageError, disk};

/// The extensions of a mailbox's index: map UID and save date; GUID.
const MDBOX: &str = "mdbox";
const GUID: &str = "guid";

pub(super) fn extensions() -> Vec<Extension> {
    vec![Extension::new(MDBOX, 0, 8, 4), Extension::new(GUID, 0, 16, 1)]
}

/// Data of a message in both extensions, in this order.
pub(super) type Ids = [(&'static str, Vec<u8>); 2];

pub(super) fn ids(map_uid: u32, saved: Timestamp, guid: &[u8; 16]) -> Ids {
    let record = [map_uid.to_le_bytes(), (saved.0 as u32).to_le_bytes()].concat();
    [(MDBOX, record), (GUID, guid.to_vec())]
}

/// Data of a message in these extensions.
pub(super) fn data(state: &State, row: usize) -> Vec<(&'static str, Vec<u8>)> {
    let data = [MDBOX, GUID].map(|name| (name, state.extension(name).map(|extension| extension.row(row))));
    data.into_iter().filter_map(|(name, data)| Some((name, data?.to_vec()))).collect()
}

/// The map UID and the save date of the message in this row.
pub(super) fn map_uid(state: &State, row: usize) -> Option<(u32, Timestamp)> {
    let data = state.extension(MDBOX)?.row(row).get(..8)?;
    let map_uid = u32_at(data, 0);
    (map_uid > 0).then(|| (map_uid, Timestamp(u32_at(data, 4).into())))
}

/// The GUID's 128 bits of the message in this row, as the index has them.
pub(super) fn guid_bits(state: &State, row: usize) -> Option<[u8; 16]> {
    let bits = *state.extension(GUID)?.row(row).first_chunk::<16>()?;
    (bits != [0; 16]).then_some(bits)
}

/// Where the map of an account has a message.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct MapUid {
    /// The map's directory.
    directory: Box<Path>,
    uid_validity: u32,
    uid: u32,
}

impl MapUid {
    /// Says whether another mailbox may refer to the message, with so many new references that come before. Without any reference it
    /// is as good as gone: a purge may be copying what it keeps.
    pub(super) fn can_be_shared(&self, map: &State, more: u16) -> bool {
        let references = map.references(self.uid);
        let room = references > 0 && references.saturating_add(more) < REFERENCES_MAX;
        room && map.header.uid_validity == self.uid_validity
    }
}

/// Most references to a message: Dovecot makes no more.
const REFERENCES_MAX: u16 = 1 << 15;

/// A file's number and its size before us, if it was there before.
type Known = Option<(u32, u64)>;

/// A file that messages were written to, and of which the map does not know them yet.
struct Full {
    path: PathBuf,
    known: Known,
    /// Holds the lock of a file that others know.
    lock: Option<Output>,
}

/// The bodies of one mailbox.
pub(super) struct Files {
    pub places: Places,
    pub mailbox: MailboxGuid,
    attachments: Option<PathBuf>,
    store: Store,
    /// The mailbox's name, for a rebuild.
    stored_name: String,
    map: Option<Map>,
    /// The file that was read last.
    reading: Option<(u32, DboxFile)>,
    /// The file that the next message goes into; while one is on its way, it has the output.
    output: Option<Output>,
    known: Known,
    /// Files that take no further message.
    full: Vec<Full>,
    /// What was written is in the map now, or may be: it stays, and its locks are held until the map is done.
    placed: Vec<Full>,
    /// A message could not be taken back: what follows it is worth nothing.
    broken: bool,
}

impl Files {
    pub fn new(
        places: Places,
        mailbox: MailboxGuid,
        attachments: Option<PathBuf>,
        store: Store,
        stored_name: String,
    ) -> Files {
        Files {
            places,
            mailbox,
            attachments,
            store,
            stored_name,
            map: None,
            reading: None,
            output: None,
            known: None,
            full: Vec::new(),
            placed: Vec::new(),
            broken: false,
        }
    }

    pub fn take_map(&mut self) -> Result<Map> {
        match self.map.take() {
            Some(map) => Ok(map),
            None => self.store.open_map(),
        }
    }

    pub fn keep_map(&mut self, map: Option<Map>) {
        self.map = map;
    }

    /// The GUID of a message. The index has its 128 bits, which are all of it where Dovecot made it; whether another
    /// GUID is text, only the file tells.
    pub fn guid(&mut self, state: &State, uid: u32) -> Result<Option<MessageGuid>> {
        let Some(row) = state.row(uid) else { return Ok(None) };
        let bits = guid_bits(state, row);
        let decoded = bits.and_then(|bits| MessageGuid::new(&MailboxGuid(bits).to_string()));
        if bits.is_some_and(|bits| is_made_by_dovecot(bits, self.mailbox)) {
            return Ok(decoded);
        }
        let found = match self.find(state, uid) {
            Ok(Some((_, mail))) => mail.metadata.guid,
            Ok(None) => None,
            Err(error) => {
                tracing::warn!("{error}");
                None
            }
        };
        let fits = |guid: &MessageGuid| bits.is_none_or(|bits| bits == guid.bits());
        Ok(found.filter(fits).or(decoded))
    }

    /// Opens a message that the index has.
    pub fn open(&mut self, state: &State, uid: u32) -> Result<Option<Mail>> {
        let Some(row) = state.row(uid) else { return Ok(None) };
        let ids = map_uid(state, row);
        let attachments = self.attachments.clone().map(AttachmentDir::mdbox);
        let found = self.find(state, uid)?;
        if let Some((file, stored)) = &found
            && let Some(bits) = guid_bits(state, row)
            && stored.metadata.guid.as_ref().is_none_or(|guid| guid.bits() != bits)
        {
            let what = "another message is where the map says that this one is".into();
            return Err(StorageError::Damaged { path: file.path().to_owned(), offset: stored.offset, what });
        }
        let map_uid = ids.zip(self.map.as_ref()).map(|((uid, _), map)| MapUid {
            directory: self.store.map.as_path().into(),
            uid_validity: map.uid_validity(),
            uid,
        });
        let saved = ids.map(|(_, saved)| saved);
        Ok(found.map(|(file, stored)| Mail { file, stored, attachments, saved, map_uid }))
    }

    /// Looks again where map or file are gone: a purge may have moved the message meanwhile.
    fn find(&mut self, state: &State, uid: u32) -> Result<Option<(DboxFile, StoredMail)>> {
        let Some((map_uid, _)) = state.row(uid).and_then(|row| map_uid(state, row)) else {
            return Ok(None);
        };
        let mut map = self.take_map()?;
        let mut found = self.find_in(&map, map_uid);
        if found.is_err() {
            self.reading = None;
            map.refresh()?;
            found = self.find_in(&map, map_uid);
        }
        self.map = Some(map);
        found.map(Some)
    }

    fn find_in(&mut self, map: &Map, map_uid: u32) -> Result<(DboxFile, StoredMail)> {
        let place = map.state().place(map_uid).ok_or_else(|| StorageError::Damaged {
            path: Map::paths(&self.store.map).log(),
            offset: 0,
            what: format!("message {map_uid} is not in the map").into(),
        })?;
        let known = self.reading.as_ref().filter(|(number, _)| *number == place.file);
        let file = match known {
            Some((_, file)) => file.clone(),
            None => self.store.open(place.file)?.ok_or_else(|| StorageError::Damaged {
                path: self.store.path(place.file),
                offset: place.offset.into(),
                what: "the file is gone, with a message that the map has in it".into(),
            })?,
        };
        let mail = file.message(place.offset.into())?;
        self.reading = Some((place.file, file.clone()));
        Ok((file, mail))
    }

    /// Begins a message: behind the last one, in a file that has room, or in a new one.
    pub fn begin(&mut self, message: NewMessage) -> Result<Saving> {
        let size = message.size.unwrap_or(0);
        if self.output.as_ref().is_some_and(|output| output.end() + size > self.store.rotation.bytes) {
            self.set_aside()?;
        }
        let output = match self.output.take() {
            Some(output) => output,
            None => self.next_output(size)?,
        };
        Ok(Saving::new(message, output))
    }

    fn next_output(&mut self, size: u64) -> Result<Output> {
        self.known = None;
        // One old file is enough: what does not fit there begins a new one.
        if self.full.is_empty() {
            let mut map = self.take_map()?;
            let found = self.store.file_with_room(&mut map, size);
            self.map = Some(map);
            if let Some((number, file, length)) = found? {
                self.known = Some((number, length));
                return Ok(Output::append(self.store.path(number), file, length));
            }
        }
        self.store.new_output()
    }

    /// Ends the present file.
    fn set_aside(&mut self) -> Result<()> {
        let Some(mut output) = self.output.take() else { return Ok(()) };
        let flushed = output.flush();
        let (path, known) = (output.path().to_owned(), self.known.take());
        self.full.push(Full { path, known, lock: known.is_some().then_some(output) });
        flushed.inspect_err(|_| self.broken = true)
    }

    /// A message of which the map has all that its file is to say. Whether it still does shows when the map is locked.
    pub fn share(&mut self, message: &NewMessage, body: &Body) -> Result<Option<Pending>> {
        let same = (&message.guid, message.received, &message.pop3_uidl, message.pop3_order)
            == (&body.guid, body.received, &body.pop3_uidl, body.pop3_order);
        let there = body.map_uid.clone().filter(|there| same && *there.directory == *self.store.map);
        let Some(map_uid) = there else { return Ok(None) };
        let mut map = self.take_map()?;
        if !map_uid.can_be_shared(map.state(), 0) {
            map.refresh()?;
        }
        let can_be_shared = map_uid.can_be_shared(map.state(), 0);
        self.map = Some(map);
        Ok(can_be_shared.then(|| Pending::Shared { message: message.clone(), map_uid }))
    }

    pub fn end(&mut self, saving: Saving) -> Result<Pending> {
        let path = saving.path().to_owned();
        let ended = saving.end(Some(&self.stored_name));
        let (saved, mut output) = ended.inspect_err(|_| self.lose(&path))?;
        if output.end() > u64::from(u32::MAX) {
            let cut = output.cut(saved.offset);
            self.output = Some(output);
            cut.inspect_err(|_| self.broken = true)?;
            return Err(StorageError::Impossible(
                "message is larger than 4 GiB, which mdbox cannot hold".into(),
            ));
        }
        self.output = Some(output);
        Ok(Pending::Written { saved, path })
    }

    pub fn abandon(&mut self, saving: Saving) {
        let path = saving.path().to_owned();
        match saving.abandon() {
            Ok(output) => self.output = Some(output),
            Err(error) => {
                tracing::warn!("{error}");
                self.lose(&path);
            }
        }
    }

    /// The present file cannot be used any more.
    fn lose(&mut self, path: &std::path::Path) {
        self.broken = true;
        self.full.push(Full { path: path.to_owned(), known: self.known.take(), lock: None });
    }

    /// Takes back what was written.
    pub fn discard(&mut self) {
        if let Err(error) = self.set_aside() {
            tracing::debug!("{error}");
        }
        for full in self.full.drain(..) {
            let done = match (full.known, &full.lock) {
                (None, _) => disk::remove(&full.path),
                (Some((_, length)), Some(output)) => output.shorten(length),
                // Others may have put theirs behind it. What we wrote is in no map, and is passed over.
                (Some(_), None) => Ok(()),
            };
            if let Err(error) = done {
                tracing::debug!("{error}");
            }
        }
        self.placed.clear();
        self.broken = false;
    }

    /// Makes what was saved durable.
    pub fn sync(&mut self, policy: Fsync) -> Result<()> {
        self.set_aside()?;
        if self.broken {
            let what = "a message was cut off in the middle of a file; what came with it must be saved again";
            return Err(StorageError::Impossible(what.into()));
        }
        let paths: Vec<PathBuf> = self.full.iter().map(|full| full.path.clone()).collect();
        disk::sync_files(&paths, policy)
    }

    /// Tells the map what comes and goes, and `edit` under which map UIDs.
    pub fn place(
        &mut self,
        map: &mut MapWriter<'_>,
        state: &State,
        edit: &mut Edit,
        moves: &Moves,
        policy: Fsync,
    ) -> Result<()> {
        let mut change = MapChange::default();
        let mut highest = map.state().highest_file();
        let mut numbers: BTreeMap<PathBuf, u32> = BTreeMap::new();
        // From here on nothing is taken back: the map may know of it.
        self.placed = std::mem::take(&mut self.full);
        for full in &self.placed {
            let number = match full.known {
                Some((number, _)) => number,
                None => {
                    let number = self.store.give_number(&full.path, &mut highest)?;
                    change.highest_file = Some(number);
                    number
                }
            };
            numbers.insert(full.path.clone(), number);
        }
        if change.highest_file.is_some() {
            disk::sync_directory(&self.store.directory, policy)?;
        }
        let mut map_uid = map.state().header.next_uid;
        let mut given: BTreeMap<u32, Ids> = BTreeMap::new();
        for (uid, pending) in &moves.saved {
            let message = pending.message();
            let date = message.saved.unwrap_or_else(now);
            let (saved, path) = match pending {
                Pending::Written { saved, path } => (saved, path),
                Pending::Shared { map_uid: there, .. } => {
                    *change.references.entry(there.uid).or_default() += 1;
                    given.insert(*uid, ids(there.uid, date, &message.guid.bits()));
                    continue;
                }
            };
            let file = numbers.get(path).expect("every message was written to a file that sync set aside");
            let place = Place { file: *file, offset: saved.offset as u32, size: saved.size as u32 };
            change.appended.push((map_uid, place));
            given.insert(*uid, ids(map_uid, date, &message.guid.bits()));
            map_uid = map_uid
                .checked_add(1)
                .filter(|next| *next < u32::MAX)
                .ok_or_else(|| StorageError::Impossible("map UIDs of mdbox are exhausted".into()))?;
        }
        for mail in &mut edit.appended {
            if let Some(data) = given.remove(&mail.uid) {
                mail.data = data.into();
            }
        }
        for (uid, _) in edit.expunged.iter().filter(|(uid, _)| !moves.renumbered.contains_key(uid)) {
            if let Some((map_uid, _)) = state.row(*uid).and_then(|row| self::map_uid(state, row)) {
                *change.references.entry(map_uid).or_default() -= 1;
            }
        }
        map.request(&change, policy)
    }

    /// The mailbox has its part.
    pub fn finish(&mut self, map: &mut MapWriter<'_>, policy: Fsync) -> Result<()> {
        map.finish(policy)
    }
}

/// Says whether a GUID is one that Dovecot makes (reference 3.4), on the host where it made the mailbox's.
///
/// Time, process and host take up so many of the bits that the sum of a text does not come out like this by chance.
fn is_made_by_dovecot(bits: [u8; 16], mailbox: MailboxGuid) -> bool {
    let (nanoseconds, seconds, pid) = (u32_at(&bits, 0), u32_at(&bits, 4), u32_at(&bits, 8));
    const PID_MAX: u32 = 1 << 22;
    bits[12..] == mailbox.0[12..]
        && nanoseconds < 1_000_000_000
        && (1_000_000_000..0x8000_0000).contains(&seconds)
        && (1..=PID_MAX).contains(&pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guids_of_dovecot_are_told_from_sums() {
        let bits = |text: &str| MailboxGuid::parse(text).unwrap();
        let mailbox = bits("00b40f37de49046b8a14000087ad316d");
        assert!(is_made_by_dovecot(bits("01b40f37de49046b8b14000087ad316d").0, mailbox));
        for other in ["01b40f37de49046b8b14000087ad316e", "01b40f77de49046b8a14000087ad316d"] {
            assert!(!is_made_by_dovecot(bits(other).0, mailbox), "{other}");
        }
        let text = MessageGuid::new("1700000000.M1P2.host").unwrap();
        assert!(!is_made_by_dovecot(text.bits(), mailbox));
    }
}
