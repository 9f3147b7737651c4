//! Frees what expunged messages of mdbox take up: files are written anew without them (storage formats reference, 10.8).
//!
//! A message keeps its map UID, so that no mailbox notices. Wherever a purge dies, every message that somebody refers to is in a
//! file that the map names.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::map::{Map, MapState, Place};
use super::output::Output;
use super::shared::Shared;
use super::store::Store;
use super::{AttachmentDir, DboxFile, attachment};
use crate::{Purged, Result, StorageError, disk};

/// Bytes copied at once.
const CHUNK_BYTES: u64 = 256 << 10;
/// Bytes after whose copying a piece of work ends: the other end of a session must not take us for dead.
const PIECE_BYTES: u64 = 64 << 20;

/// A file with what the map has in it, by offset.
struct Old {
    path: PathBuf,
    /// Holds the lock.
    file: File,
    read: DboxFile,
    dead: Vec<(u32, Place)>,
    live: Vec<(u32, Place)>,
}

/// Purges files that hold messages to which nobody refers, from this number on, until enough was copied for one piece of work.
pub(super) fn purge(shared: &Shared, store: &Store, from: u32) -> Result<Purged> {
    let mut map = store.open_map()?;
    let mut purged = Purged::default();
    // References that a crash left wrong are put right first.
    drop(shared.lock_map(&mut map)?);
    let dead = map.state().all().filter(|(_, _, references)| *references == 0);
    let files: BTreeSet<u32> = dead.map(|(_, place, _)| place.file).filter(|file| *file >= from).collect();
    let mut copied = 0;
    for number in files {
        if copied >= PIECE_BYTES {
            purged.next = Some(number);
            break;
        }
        match Old::open(store, &mut map, number)? {
            Some(old) if !old.dead.is_empty() => {
                copied += old.live.iter().map(|(_, place)| u64::from(place.size)).sum::<u64>();
                purge_one(shared, store, &mut map, old, &mut purged)?;
            }
            Some(_) => {}
            None => purged.left += 1,
        }
    }
    Ok(purged)
}

impl Old {
    /// Locks a file. `None`: it must be left alone.
    fn open(store: &Store, map: &mut Map, number: u32) -> Result<Option<Old>> {
        let Some((path, file)) = store.open_locked_anywhere(number)? else { return Ok(None) };
        map.refresh()?;
        let read = DboxFile::new(file.try_clone().map_err(StorageError::io(&path))?, &path)?;
        let mut all: Vec<(u32, Place, u16)> =
            map.state().all().filter(|(_, place, _)| place.file == number).collect();
        all.sort_by_key(|(_, place, _)| *place);
        let mut end = read.header().size;
        for (_, place, _) in &all {
            if u64::from(place.offset) != end {
                break;
            }
            end = place.end();
        }
        if end != read.size()? || all.last().is_none_or(|(_, place, _)| place.end() != end) {
            tracing::warn!("{}: the map does not know all that is in it; it is not purged", path.display());
            return Ok(None);
        }
        let (dead, live): (Vec<_>, Vec<_>) = all.into_iter().partition(|(.., references)| *references == 0);
        let places =
            |list: Vec<(u32, Place, u16)>| list.into_iter().map(|(uid, place, _)| (uid, place)).collect();
        Ok(Some(Old { path, file, read, dead: places(dead), live: places(live) }))
    }

    /// Copies what is still referred to, byte for byte, to a new file beside this one, and tells where it is there.
    fn copy_live(&self, store: &Store) -> Result<(Output, Vec<(u32, Place)>)> {
        let header = self.bytes(0, self.read.header().size)?;
        let directory = self.path.parent().unwrap_or(&store.directory);
        let mut output = Output::create_with(directory.join(super::temporary_name()), &header)?;
        let mut moved = Vec::with_capacity(self.live.len());
        for (uid, place) in &self.live {
            moved.push((*uid, Place { offset: output.end() as u32, ..*place }));
            let mut at = u64::from(place.offset);
            while at < place.end() {
                let piece = self.bytes(at, (place.end() - at).min(CHUNK_BYTES))?;
                output.put(&piece);
                output.relieve()?;
                at += piece.len() as u64;
            }
        }
        output.flush()?;
        Ok((output, moved))
    }

    fn bytes(&self, from: u64, length: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; length as usize];
        self.file.read_exact_at(&mut bytes, from).map_err(StorageError::io(&self.path))?;
        Ok(bytes)
    }
}

fn purge_one(shared: &Shared, store: &Store, map: &mut Map, old: Old, purged: &mut Purged) -> Result<()> {
    let policy = shared.account.fsync;
    let attachments = attachments_of(&old)?;
    let mut copied = None;
    if !old.live.is_empty() {
        let (output, moved) = old.copy_live(store)?;
        disk::sync_files(&[output.path().to_owned()], policy)?;
        copied = Some((output, moved));
    }
    let mut writer = shared.lock_map(map)?;
    if old.dead.iter().any(|(uid, _)| writer.state().references(*uid) > 0) {
        // Copied meanwhile.
        purged.left += 1;
        return copied.map_or(Ok(()), |(output, _)| disk::remove(output.path()));
    }
    let gone: BTreeSet<u32> = old.dead.iter().map(|(uid, _)| *uid).collect();
    let mut highest = writer.state().highest_file();
    let (moved, highest) = match copied {
        None => (Vec::new(), None),
        Some((output, mut moved)) => {
            let number = store.give_number(output.path(), &mut highest)?;
            disk::sync_directory(old.path.parent().unwrap_or(&store.directory), policy)?;
            moved.iter_mut().for_each(|(_, place)| place.file = number);
            (moved, Some(number))
        }
    };
    writer.moved(&moved, &gone, highest, policy)?;
    drop(writer);
    disk::remove(&old.path)?;
    purged.files += 1;
    purged.messages += old.dead.len() as u64;
    purged.bytes += old.dead.iter().map(|(_, place)| u64::from(place.size)).sum::<u64>();
    // Left behind by a crash, they cost space alone.
    let Some(root) = &shared.attachments else { return Ok(()) };
    attachments.iter().try_for_each(|path| attachment::remove(root, path))
}

/// Files of attachments that belong to the dead alone.
fn attachments_of(old: &Old) -> Result<Vec<PathBuf>> {
    let nowhere = AttachmentDir::mdbox("");
    let mut paths = Vec::new();
    for (_, place) in &old.dead {
        let mail = old.read.message(place.offset.into())?;
        paths.extend(mail.metadata.attachments.iter().map(|attachment| nowhere.file(attachment)));
    }
    Ok(paths)
}

impl Store {
    /// The same as [`open_locked`](Store::open_locked), for both storages.
    fn open_locked_anywhere(&self, number: u32) -> Result<Option<(PathBuf, File)>> {
        for directory in [Some(&self.directory), self.alt.as_ref()].into_iter().flatten() {
            let path: &Path = &directory.join(format!("m.{number}"));
            if path.exists() {
                return Ok(self.open_locked(path)?.map(|file| (path.to_owned(), file)));
            }
        }
        Ok(None)
    }
}
