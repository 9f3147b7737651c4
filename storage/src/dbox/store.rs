//! The files `m.N` that all mailboxes of mdbox share: found, locked, made.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags, flock};

use super::file::MESSAGE_HEADER_BYTES;
use super::map::{Map, MapState};
use super::output::Output;
use super::saving::now;
use super::{DboxFile, Rotation};
use crate::layout::Layout;
use crate::{Result, StorageError, disk};

/// Files that are looked at for room, newest first.
const CANDIDATES_MAX: usize = 5;

/// The files `m.N` of an account.
#[derive(Clone)]
pub(super) struct Store {
    /// The directory of the files.
    pub directory: PathBuf,
    pub alt: Option<PathBuf>,
    pub map: PathBuf,
    /// When a file takes no further message; never beyond what an offset in the map can tell.
    pub rotation: Rotation,
}

impl Store {
    pub fn new(layout: &Layout, rotation: Rotation) -> Store {
        let rotation = Rotation { bytes: rotation.bytes.min(u32::MAX.into()), ..rotation };
        Store { directory: layout.storage(), alt: layout.alt_storage(), map: layout.map(), rotation }
    }

    pub fn path(&self, file: u32) -> PathBuf {
        self.directory.join(format!("m.{file}"))
    }

    /// The map, which was made when the account was opened.
    pub fn open_map(&self) -> Result<Map> {
        Map::open(&self.map)?.ok_or_else(|| {
            let what = "map of mdbox is gone while the account is open";
            StorageError::Corrupt { path: Map::paths(&self.map).log(), line: 0, what }
        })
    }

    /// Opens a file, in either storage. `None`: it is gone.
    pub fn open(&self, file: u32) -> Result<Option<DboxFile>> {
        let alt = self.alt.as_ref().map(|alt| alt.join(format!("m.{file}")));
        for path in [Some(self.path(file)), alt].into_iter().flatten() {
            match DboxFile::open(path) {
                Ok(file) => return Ok(Some(file)),
                Err(StorageError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Opens a file for writing, and locks it. `None`: it is gone, busy, or not what its name says any more.
    pub fn open_locked(&self, path: &Path) -> Result<Option<File>> {
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
        let open = match OpenOptions::new().read(true).write(true).custom_flags(flags).open(path) {
            Ok(open) => open,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StorageError::io(path)(error)),
        };
        match flock(&open, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            Err(error) => return Err(StorageError::io(path)(error.into())),
        }
        let ours = open.metadata().map_err(StorageError::io(path))?;
        let named = std::fs::symlink_metadata(path).ok();
        let same = named.is_some_and(|named| (named.dev(), named.ino()) == (ours.dev(), ours.ino()));
        Ok(same.then_some(open))
    }

    /// Gives a finished file the next free number, in the directory where it is. The map is locked.
    pub fn give_number(&self, path: &Path, highest: &mut u32) -> Result<u32> {
        loop {
            *highest = highest.checked_add(1).ok_or_else(|| {
                StorageError::Impossible(format!("{}: file numbers are exhausted", self.directory.display()))
            })?;
            if self.alt.as_ref().is_some_and(|alt| alt.join(format!("m.{highest}")).exists()) {
                continue;
            }
            match disk::rename_new(path, &path.with_file_name(format!("m.{highest}"))) {
                Ok(()) => return Ok(*highest),
                // Of a run that died before it could tell the map; a rebuild would find its messages.
                Err(StorageError::Io { source, .. }) if source.kind() == ErrorKind::AlreadyExists => {
                    tracing::warn!("{}: is not in the map", self.path(*highest).display());
                }
                Err(error) => return Err(error),
            }
        }
    }

    pub fn new_output(&self) -> Result<Output> {
        Output::create(self.directory.join(super::temporary_name()))
    }

    /// Finds a file to which a message of this size may be appended, and locks it: its number, the file, its size.
    ///
    /// A file that is longer than the map knows holds what somebody wrote and died over: nothing may be put behind that.
    pub fn file_with_room(&self, map: &mut Map, size: u64) -> Result<Option<(u32, File, u64)>> {
        map.refresh()?;
        let room = |end: u64| end + size + MESSAGE_HEADER_BYTES as u64 <= self.rotation.bytes;
        let mut newest: Vec<u32> = Vec::new();
        for (_, place, _) in map.state().all_backwards() {
            if newest.len() == CANDIDATES_MAX {
                break;
            }
            if !newest.contains(&place.file) {
                newest.push(place.file);
            }
        }
        let oldest = self.rotation.oldest(now().0);
        for number in newest {
            if !map.state().file_end(number).is_some_and(room) {
                continue;
            }
            let Some(file) = self.open_locked(&self.path(number))? else { continue };
            map.refresh()?;
            let end = map.state().file_end(number);
            let path = self.path(number);
            let read = DboxFile::new(file.try_clone().map_err(StorageError::io(&path))?, &path);
            let Ok(read) = read else { continue };
            let length = read.size()?;
            let suits = read.header().message_header_size as usize == MESSAGE_HEADER_BYTES;
            let young = oldest.is_none_or(|oldest| read.header().created.0 >= oldest);
            if suits && young && end == Some(length) && room(length) {
                return Ok(Some((number, file, length)));
            }
        }
        Ok(None)
    }
}
