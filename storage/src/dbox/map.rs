//! The map of mdbox: where each message lies in the files `m.N`, and how many mailboxes refer to it
//! (storage formats reference, 10.4, 10.5).
//!
//! It is an index like that of a mailbox. Changes are written in it first as requests; once the mailbox has its part, the tail
//! offset says that they are carried out. Which file a message goes into is not settled here.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::index::format::u32_at;
use crate::index::{Extension, Index, Paths, State, Transaction, Writer};
use crate::lock::patience;
use crate::{Fsync, Result, disk};

const MAP: &str = "map";
const REF: &str = "ref";
const PREFIX: &str = "dovecot.map.index";
/// Bytes of the record that sets the tail offset.
const TAIL_RECORD_BYTES: u64 = 16;

/// Where a message lies.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Place {
    /// The number of the file `m.N`.
    pub file: u32,
    /// Where its header begins.
    pub offset: u32,
    /// Bytes from its header to the end of its metadata.
    pub size: u32,
}

impl Place {
    pub fn end(&self) -> u64 {
        u64::from(self.offset) + u64::from(self.size)
    }

    fn to_bytes(self) -> [u8; 12] {
        let mut bytes = [0; 12];
        for (field, value) in bytes.chunks_exact_mut(4).zip([self.file, self.offset, self.size]) {
            field.copy_from_slice(&value.to_le_bytes());
        }
        bytes
    }
}

/// What the map says of one of its UIDs; a UID of the map is a *map UID*.
pub(super) trait MapState {
    fn place(&self, map_uid: u32) -> Option<Place>;
    /// Mailbox records that use it. None: it waits to be purged.
    fn references(&self, map_uid: u32) -> u16;
    /// The highest number that a file ever had.
    fn highest_file(&self) -> u32;
    /// Where the last message of a file ends, as far as the map knows.
    fn file_end(&self, file: u32) -> Option<u64>;
    /// All messages, by map UID.
    fn all(&self) -> impl Iterator<Item = (u32, Place, u16)>;
    /// The same, newest first.
    fn all_backwards(&self) -> impl Iterator<Item = (u32, Place, u16)>;
}

impl MapState for State {
    fn place(&self, map_uid: u32) -> Option<Place> {
        place_at(self, self.row(map_uid)?)
    }

    fn references(&self, map_uid: u32) -> u16 {
        self.row(map_uid).map_or(0, |row| references_at(self, row))
    }

    fn highest_file(&self) -> u32 {
        let told = self.extension(MAP).map_or(0, |map| u32_at(&map.header_padded(4), 0));
        self.all().map(|(_, place, _)| place.file).max().unwrap_or(0).max(told)
    }

    fn file_end(&self, file: u32) -> Option<u64> {
        self.all().filter(|(_, place, _)| place.file == file).map(|(_, place, _)| place.end()).max()
    }

    fn all(&self) -> impl Iterator<Item = (u32, Place, u16)> {
        let row = |(row, uid): (usize, &u32)| Some((*uid, place_at(self, row)?, references_at(self, row)));
        self.uids.iter().enumerate().filter_map(row)
    }

    fn all_backwards(&self) -> impl Iterator<Item = (u32, Place, u16)> {
        let row = |(row, uid): (usize, &u32)| Some((*uid, place_at(self, row)?, references_at(self, row)));
        self.uids.iter().enumerate().rev().filter_map(row)
    }
}

fn place_at(state: &State, row: usize) -> Option<Place> {
    let data = state.extension(MAP)?.row(row);
    let data = data.get(..12)?;
    let place = Place { file: u32_at(data, 0), offset: u32_at(data, 4), size: u32_at(data, 8) };
    (place.file > 0).then_some(place)
}

fn references_at(state: &State, row: usize) -> u16 {
    let data = state.extension(REF).and_then(|extension| extension.row(row).first_chunk::<2>());
    data.map_or(0, |data| u16::from_le_bytes(*data))
}

/// What is to become of the map.
#[derive(Clone, Default, Debug)]
pub(super) struct MapChange {
    /// Set if files were made: the number of the last.
    pub highest_file: Option<u32>,
    /// New messages with one reference each, map UIDs ascending.
    pub appended: Vec<(u32, Place)>,
    /// References that come or go.
    pub references: BTreeMap<u32, i32>,
}

/// The map of an account.
pub(super) struct Map {
    index: Index,
}

impl Map {
    pub fn paths(directory: &Path) -> Paths {
        Paths { directory: directory.to_owned(), prefix: PREFIX.into() }
    }

    /// Opens the map in this directory. `None`: there is none.
    pub fn open(directory: &Path) -> Result<Option<Map>> {
        Ok(Index::open(Map::paths(directory))?.map(|index| Map { index }))
    }

    /// Makes a map with these messages and their references.
    pub fn create(
        directory: &Path,
        uid_validity: u32,
        next_uid: u32,
        messages: &[(u32, Place, u16)],
        highest_file: u32,
    ) -> Result<Map> {
        let mut first = Transaction::new();
        first.introduce(None, &map_extension());
        let mut header = highest_file.to_le_bytes().to_vec();
        // A map that was made from files counts as rebuilt.
        header.extend_from_slice(&u32::from(!messages.is_empty()).to_le_bytes());
        first.ext_header(0, &header);
        first.append(&messages.iter().map(|(uid, ..)| (*uid, 0)).collect::<Vec<_>>());
        let places: Vec<(u32, [u8; 12])> =
            messages.iter().map(|(uid, place, _)| (*uid, place.to_bytes())).collect();
        first.introduce(None, &map_extension());
        first.ext_records(places.iter().map(|(uid, place)| (*uid, &place[..])));
        let references: Vec<(u32, [u8; 2])> =
            messages.iter().map(|(uid, _, references)| (*uid, references.to_le_bytes())).collect();
        first.introduce(None, &ref_extension());
        first.ext_records(references.iter().map(|(uid, references)| (*uid, &references[..])));
        disk::make_directory(directory)?;
        let paths = Map::paths(directory);
        let index = match messages {
            [] => Index::create_or_open(paths, uid_validity, next_uid, first)?,
            _ => Index::create(paths, uid_validity, next_uid, first)?,
        };
        let mut map = Map { index };
        // To Dovecot a map whose tail is not its end is one to be rebuilt.
        map.lock()?.finish(Fsync::Always)?;
        Ok(map)
    }

    pub fn state(&self) -> &State {
        self.index.state()
    }

    pub fn uid_validity(&self) -> u32 {
        self.state().header.uid_validity
    }

    pub fn refresh(&mut self) -> Result<bool> {
        self.index.refresh()
    }

    /// Takes the map's lock. No mailbox may be locked already.
    pub fn lock(&mut self) -> Result<MapWriter<'_>> {
        Ok(MapWriter { writer: self.index.lock(patience())? })
    }
}

/// The map, with its lock.
pub(super) struct MapWriter<'a> {
    writer: Writer<'a>,
}

impl MapWriter<'_> {
    pub fn state(&self) -> &State {
        self.writer.state()
    }

    /// Says whether somebody died between the map and the mailbox: references cannot be trusted.
    pub fn is_unfinished(&self) -> Result<bool> {
        self.writer.index().has_requests()
    }

    /// Writes down what a mailbox is about to do. [`finish`](Self::finish) must follow once it is done.
    pub fn request(&mut self, change: &MapChange, policy: Fsync) -> Result<()> {
        let state = self.writer.state();
        let mut log = Transaction::requests();
        let map = |log: &mut Transaction| {
            let known = state.extension(MAP).cloned().unwrap_or_else(map_extension);
            log.introduce(state.extension_id(MAP), &known);
        };
        let reference = |log: &mut Transaction| {
            let known = state.extension(REF).cloned().unwrap_or_else(ref_extension);
            log.introduce(state.extension_id(REF), &known);
        };
        if let Some(highest) = change.highest_file {
            map(&mut log);
            log.ext_header(0, &highest.to_le_bytes());
        }
        if !change.appended.is_empty() {
            log.append(&change.appended.iter().map(|(uid, _)| (*uid, 0)).collect::<Vec<_>>());
            let places: Vec<(u32, [u8; 12])> =
                change.appended.iter().map(|(uid, place)| (*uid, place.to_bytes())).collect();
            map(&mut log);
            log.ext_records(places.iter().map(|(uid, place)| (*uid, &place[..])));
            reference(&mut log);
            log.ext_records(change.appended.iter().map(|(uid, _)| (*uid, &[1u8, 0][..])));
        }
        // What would leave the range of the number would make the log unreadable.
        let allowed = change.references.iter().filter_map(|(uid, by)| {
            let row = state.row(*uid)?;
            let now = i32::from(references_at(state, row));
            let by = (now + by).clamp(0, i32::from(u16::MAX)) - now;
            (by != 0).then_some((*uid, by))
        });
        let allowed: Vec<(u32, i32)> = allowed.collect();
        if !allowed.is_empty() {
            reference(&mut log);
            log.increments(&allowed);
        }
        self.writer.append(log, policy)
    }

    /// Says that everything requested is carried out.
    pub fn finish(&mut self, policy: Fsync) -> Result<()> {
        let end = self.writer.offset() + TAIL_RECORD_BYTES;
        let mut tail = Transaction::new();
        tail.header(64, &(end as u32).to_le_bytes());
        // Lost in a crash, it costs a look at all mailboxes, and no mail.
        self.writer.append(tail, Fsync::Never)?;
        self.writer.tidy(policy)
    }

    /// Sets references as the mailboxes have them, after a crash. With `complete` not set some mailboxes could not be
    /// read: then no number is lowered.
    pub fn set_references(
        &mut self,
        counted: &BTreeMap<u32, u32>,
        complete: bool,
        policy: Fsync,
    ) -> Result<()> {
        let state = self.writer.state();
        let wrong = state.uids.iter().enumerate().filter_map(|(row, uid)| {
            let wanted = counted.get(uid).map_or(0, |count| u16::try_from(*count).unwrap_or(u16::MAX));
            let now = references_at(state, row);
            (wanted > now || (complete && wanted < now)).then_some((*uid, wanted.to_le_bytes()))
        });
        let wrong: Vec<(u32, [u8; 2])> = wrong.collect();
        if !wrong.is_empty() {
            let mut log = Transaction::new();
            let known = state.extension(REF).cloned().unwrap_or_else(ref_extension);
            log.introduce(state.extension_id(REF), &known);
            log.ext_records(wrong.iter().map(|(uid, references)| (*uid, &references[..])));
            self.writer.append(log, policy)?;
        }
        self.finish(policy)
    }

    /// Moves messages to other places and forgets others, as a purge did.
    pub fn moved(
        &mut self,
        moved: &[(u32, Place)],
        gone: &BTreeSet<u32>,
        highest_file: Option<u32>,
        policy: Fsync,
    ) -> Result<()> {
        let state = self.writer.state();
        let mut log = Transaction::new();
        let known = state.extension(MAP).cloned().unwrap_or_else(map_extension);
        log.introduce(state.extension_id(MAP), &known);
        if let Some(highest) = highest_file {
            log.ext_header(0, &highest.to_le_bytes());
        }
        let places: Vec<(u32, [u8; 12])> =
            moved.iter().map(|(uid, place)| (*uid, place.to_bytes())).collect();
        log.ext_records(places.iter().map(|(uid, place)| (*uid, &place[..])));
        log.expunge(&gone.iter().map(|uid| (*uid, [0; 16])).collect::<Vec<_>>());
        self.writer.append(log, policy)?;
        self.finish(policy)
    }
}

fn map_extension() -> Extension {
    Extension::new(MAP, 8, 12, 4)
}

fn ref_extension() -> Extension {
    Extension::new(REF, 0, 2, 2)
}
