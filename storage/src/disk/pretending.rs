//! A thread that only pretends changes no file, and keeps in memory those that it would make.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::MemfdFlags;

use crate::{Result, StorageError};

thread_local! {
    static PRETENDING: Cell<u32> = const { Cell::new(0) };
    static PRETENDED: RefCell<BTreeMap<PathBuf, File>> = const { RefCell::new(BTreeMap::new()) };
}

/// While it lives, this thread changes no file: all functions here succeed without doing anything, and files that would be made
/// are kept in memory, where they can be written and read back.
#[derive(Debug)]
pub struct Pretend(());

impl Pretend {
    pub fn begin() -> Pretend {
        PRETENDING.set(PRETENDING.get() + 1);
        Pretend(())
    }
}

impl Drop for Pretend {
    fn drop(&mut self) {
        PRETENDING.set(PRETENDING.get() - 1);
    }
}

/// Says whether this thread only pretends.
pub fn pretends() -> bool {
    PRETENDING.get() > 0
}

/// A file in memory, without a name.
pub fn memory_file(content: &[u8], path: &Path) -> Result<File> {
    let made = rustix::fs::memfd_create("dsync", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING);
    let file = File::from(made.map_err(|error| StorageError::io(path)(error.into()))?);
    (&file).write_all(content).map_err(StorageError::io(path))?;
    Ok(file)
}

/// Keeps a file in memory under the name that it would have, for whoever opens it later while this thread pretends.
pub fn keep_pretended(path: &Path, file: &File) -> Result<()> {
    let file = file.try_clone().map_err(StorageError::io(path))?;
    PRETENDED.with_borrow_mut(|files| files.insert(path.to_owned(), file));
    Ok(())
}

/// The content of such a file, while this thread pretends.
pub fn pretended(path: &Path) -> Result<Option<Vec<u8>>> {
    if !pretends() {
        return Ok(None);
    }
    let read = |file: &File| {
        let mut bytes = vec![0; file.metadata()?.len() as usize];
        file.read_exact_at(&mut bytes, 0).map(|()| bytes)
    };
    let found = PRETENDED.with_borrow(|files| files.get(path).map(read));
    found.transpose().map_err(StorageError::io(path))
}

/// Forgets all such files of this thread.
pub fn forget_pretended() {
    PRETENDED.with_borrow_mut(BTreeMap::clear);
}

/// Says whether a file may be written although the thread pretends: only one of ours in memory has no seal at all.
pub(super) fn is_ours(file: impl AsFd) -> bool {
    rustix::fs::fcntl_get_seals(file).is_ok_and(|seals| seals.is_empty())
}
