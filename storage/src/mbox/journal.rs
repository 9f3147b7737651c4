//! Puts a whole new content into an mbox file that stays the same file.
//!
//! A program that waits for the lock of an mbox has it open already, and Dovecot does not look again whether the name still means that file:
//! what it writes into one that was replaced by a rename is lost. So the new content is first made durable beside the mailbox, and then copied
//! over the old one. Meanwhile the file begins with a mark instead of `From `: should the process die, no program takes it for an mbox, and
//! whoever next takes a lock of ours finishes the job. What others appended to it in between stays.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::locks::{Access, MboxLock};
use super::rewrite::keep_times;
use crate::{Fsync, Result, StorageError, disk};

/// What every mbox begins with.
const BEGIN: &[u8; MARK_BYTES] = b"From ";
/// Stands there while the content is the old one still; its length may be the new one's already.
const OLD: &[u8; MARK_BYTES] = b"dsync";
/// Stands there from when the length is the new one's until the content is.
const NEW: &[u8; MARK_BYTES] = b"DSYNC";
const MARK_BYTES: usize = 5;
/// Ends the file beside the mailbox: the size that the mailbox had, in decimal.
const TRAILER: &str = "dsync replaces an mbox of ";
const TRAILER_BYTES: u64 = TRAILER.len() as u64 + 21;
/// Compared and copied at once.
const CHUNK_BYTES: u64 = 256 << 10;

/// The new content beside the mailbox. Its name makes it no mailbox.
pub struct Journal {
    path: PathBuf,
    file: File,
}

impl Journal {
    /// A new one for this mailbox, empty. One that is left of a process that died is not needed any more: see [`finish`].
    pub fn create(lock: &MboxLock) -> Result<Journal> {
        let path = path_of(lock)?;
        disk::remove(&path)?;
        let file = disk::create_readable(&path, 0o600)?;
        Ok(Journal { path, file })
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Copies what is in it into the mailbox, which nobody takes for an mbox until [`end`](Self::end). Tells how long it is; an error behind the
    /// first mark leaves the rest to [`finish`].
    pub fn apply(&self, lock: &mut MboxLock, policy: Fsync) -> Result<u64> {
        let length = size(&self.file, &self.path)?;
        assert!(length >= MARK_BYTES as u64, "a new mbox has at least a message of its own");
        if let Err(error) = self.prepare(lock, length, policy) {
            if let Err(error) = disk::remove(&self.path) {
                tracing::warn!("{error}: leftover cannot be removed");
            }
            return Err(error);
        }
        disk::write_at(lock.file(), OLD, 0, lock.path())?;
        disk::sync_file(lock.file(), lock.path(), policy)?;
        disk::truncate(lock.file(), length, lock.path())?;
        self.copy(lock, length, policy)?;
        Ok(length)
    }

    /// Makes all of it durable, and room for it in the mailbox.
    fn prepare(&self, lock: &MboxLock, length: u64, policy: Fsync) -> Result<()> {
        let before = size(lock.file(), lock.path())?;
        disk::write_at(&self.file, format!("{TRAILER}{before:020}\n").as_bytes(), length, &self.path)?;
        disk::reserve(lock.file(), length, lock.path())?;
        disk::sync_file(&self.file, &self.path, policy)?;
        disk::sync_directory(self.path.parent().unwrap_or(Path::new(".")), policy)
    }

    /// Copies the first `length` bytes into the mailbox, which has that length at least.
    fn copy(&self, lock: &mut MboxLock, length: u64, policy: Fsync) -> Result<()> {
        disk::write_at(lock.file(), NEW, 0, lock.path())?;
        disk::sync_file(lock.file(), lock.path(), policy)?;
        let mut offset = MARK_BYTES as u64;
        while offset < length {
            let bytes = (length - offset).min(CHUNK_BYTES) as usize;
            let (mut new, mut old) = (vec![0; bytes], vec![0; bytes]);
            self.file.read_exact_at(&mut new, offset).map_err(StorageError::io(&self.path))?;
            lock.file().read_exact_at(&mut old, offset).map_err(StorageError::io(lock.path()))?;
            if new != old {
                disk::write_at(lock.file(), &new, offset, lock.path())?;
                lock.keep()?;
            }
            offset += bytes as u64;
        }
        disk::sync_file(lock.file(), lock.path(), policy)
    }

    /// The mailbox is an mbox again.
    pub fn end(self, lock: &MboxLock, policy: Fsync) -> Result<()> {
        disk::write_at(lock.file(), BEGIN, 0, lock.path())?;
        disk::sync_file(lock.file(), lock.path(), policy)?;
        disk::remove(&self.path)
    }
}

/// Says whether something is left of a process that died while it wrote this file anew.
pub fn is_left(lock: &MboxLock) -> Result<bool> {
    Ok(is_interrupted(lock)? || (lock.access() == Access::Write && path_of(lock)?.exists()))
}

fn is_interrupted(lock: &MboxLock) -> Result<bool> {
    Ok(mark(lock)?.is_some_and(|mark| mark == *OLD || mark == *NEW))
}

/// Finishes, under a lock for writing, what a process left that died.
///
/// With the mark [`OLD`] nothing of the new content is there: the old one stands if it has its length, also with new mail behind it.
pub fn finish(lock: &mut MboxLock) -> Result<()> {
    assert!(lock.access() == Access::Write, "an mbox is changed under a lock for writing");
    let policy = Fsync::Optimized;
    let before = lock.file().metadata().map_err(StorageError::io(lock.path()))?;
    let path = path_of(lock)?;
    if !is_interrupted(lock)? {
        // It was done, or never begun.
        keep_times(lock.file(), lock.path(), &before, true)?;
        return disk::remove(&path);
    }
    let file = File::open(&path).map_err(|source| StorageError::Io { path: path.clone(), source })?;
    let broken = |what| StorageError::Corrupt { path: path.clone(), line: 0, what };
    let length = size(&file, &path)?.checked_sub(TRAILER_BYTES).filter(|length| *length > MARK_BYTES as u64);
    let length = length.ok_or_else(|| broken("is no whole content of an mbox"))?;
    let mut trailer = vec![0; TRAILER_BYTES as usize];
    file.read_exact_at(&mut trailer, length).map_err(StorageError::io(&path))?;
    let trailer = String::from_utf8_lossy(&trailer);
    let old = trailer.strip_prefix(TRAILER).and_then(|rest| rest.trim_end().parse::<u64>().ok());
    let old = old.ok_or_else(|| broken("is no whole content of an mbox"))?;
    let journal = Journal { path: path.clone(), file };
    let mark_end = old.max(MARK_BYTES as u64);
    let is_old = mark(lock)? == Some(*OLD)
        && (before.len() == mark_end || (before.len() > mark_end && starts_message(lock, mark_end)?));
    tracing::warn!("{}: a process died while it wrote this file: finished", lock.path().display());
    if !is_old {
        if before.len() < length {
            disk::truncate(lock.file(), length, lock.path())?;
        }
        journal.copy(lock, length, policy)?;
        journal.end(lock, policy)?;
    } else if old > 0 {
        journal.end(lock, policy)?;
    } else if before.len() == mark_end {
        disk::truncate(lock.file(), 0, lock.path())?;
        disk::remove(&path)?;
    } else {
        return Err(broken("belongs to an empty mbox that others wrote to meanwhile"));
    }
    keep_times(lock.file(), lock.path(), &before, true)
}

fn mark(lock: &MboxLock) -> Result<Option<[u8; MARK_BYTES]>> {
    let mut begin = [0; MARK_BYTES];
    match lock.file().read_exact_at(&mut begin, 0) {
        Ok(()) => Ok(Some(begin)),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(StorageError::io(lock.path())(error)),
    }
}

fn starts_message(lock: &MboxLock, offset: u64) -> Result<bool> {
    let mut begin = [0; MARK_BYTES];
    let read = lock.file().read_at(&mut begin, offset).map_err(StorageError::io(lock.path()))?;
    Ok(begin[..read] == *BEGIN || begin[..read].starts_with(b"\n"))
}

fn size(file: &File, path: &Path) -> Result<u64> {
    Ok(file.metadata().map_err(StorageError::io(path))?.len())
}

/// The name may be a link; the new content lies beside the file itself.
fn path_of(lock: &MboxLock) -> Result<PathBuf> {
    let path = std::fs::canonicalize(lock.path()).map_err(StorageError::io(lock.path()))?;
    let mut name = std::ffi::OsString::from(".dsync-mbox-");
    name.push(path.file_name().unwrap_or_default());
    name.push(".lock");
    Ok(path.with_file_name(name))
}
