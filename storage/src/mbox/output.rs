//! Writes mbox text: pieces from memory, ranges of files copied by the kernel, in as few calls as possible.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::locks::MboxLock;
use crate::{Result, StorageError, disk};

/// Gathered before it is written.
const BUFFER_BYTES: usize = 256 << 10;
/// Shorter ranges are copied through the buffer.
const COPY_BYTES_MIN: u64 = 64 << 10;
/// Copied between two looks at the lock.
const COPY_BYTES_MAX: u64 = 256 << 20;

/// A file that is being written from some offset on.
pub struct Output<'a> {
    lock: &'a mut MboxLock,
    /// The new file; without one, the locked file itself.
    target: Option<(&'a File, &'a Path)>,
    /// Up to here it is written.
    position: u64,
    buffer: Vec<u8>,
    /// To be copied from the locked file after the buffer.
    pending: Range<u64>,
}

impl<'a> Output<'a> {
    pub fn new(lock: &'a mut MboxLock, target: Option<(&'a File, &'a Path)>, position: u64) -> Output<'a> {
        Output { lock, target, position, buffer: Vec::new(), pending: 0..0 }
    }

    /// The offset at which the next byte goes.
    pub fn offset(&self) -> u64 {
        self.position + self.buffer.len() as u64 + (self.pending.end - self.pending.start)
    }

    pub fn put(&mut self, text: &[u8]) -> Result<()> {
        self.flush_pending()?;
        self.buffer.extend_from_slice(text);
        if self.buffer.len() >= BUFFER_BYTES { self.flush_buffer() } else { Ok(()) }
    }

    /// Copies a range of the locked file. Ranges that follow each other become one.
    pub fn copy(&mut self, range: Range<u64>) -> Result<()> {
        if self.pending.end == range.start && !self.pending.is_empty() {
            self.pending.end = range.end;
            return Ok(());
        }
        self.flush_pending()?;
        self.pending = range;
        Ok(())
    }

    /// Copies a range of another file.
    pub fn copy_from(&mut self, file: &File, path: &Path, range: Range<u64>) -> Result<()> {
        self.flush_pending()?;
        if range.end - range.start < COPY_BYTES_MIN {
            let begin = self.buffer.len();
            self.buffer.resize(begin + (range.end - range.start) as usize, 0);
            let read = file.read_exact_at(&mut self.buffer[begin..], range.start);
            read.map_err(StorageError::io(path))?;
            return if self.buffer.len() >= BUFFER_BYTES { self.flush_buffer() } else { Ok(()) };
        }
        self.flush_buffer()?;
        let mut from = range.start;
        while from < range.end {
            let end = range.end.min(from + COPY_BYTES_MAX);
            let (target, path) = self.target.unwrap_or((self.lock.file(), self.lock.path()));
            disk::copy_range(file, from..end, target, self.position, path)?;
            self.position += end - from;
            from = end;
            self.lock.keep()?;
        }
        Ok(())
    }

    /// Writes all that is still held back; gives the offset behind it.
    pub fn finish(mut self) -> Result<u64> {
        self.flush_pending()?;
        self.flush_buffer()?;
        Ok(self.position)
    }

    fn flush_pending(&mut self) -> Result<()> {
        let range = std::mem::take(&mut self.pending);
        if range.is_empty() {
            return Ok(());
        }
        let source = self.lock.file().try_clone().map_err(StorageError::io(self.lock.path()))?;
        let path = self.lock.path().to_owned();
        self.copy_from(&source, &path, range)
    }

    fn flush_buffer(&mut self) -> Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let (target, path) = self.target.unwrap_or((self.lock.file(), self.lock.path()));
        disk::write_at(target, &self.buffer, self.position, path)?;
        self.position += self.buffer.len() as u64;
        self.buffer.clear();
        self.lock.keep()
    }
}
