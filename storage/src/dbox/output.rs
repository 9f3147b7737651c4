//! A dbox file that is being written: messages one behind the other, gathered in a buffer.
//!
//! Bytes that were in the file when it was opened are never changed. Whoever writes holds the file's lock, or is the only one
//! who knows the file.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::file::file_header_bytes;
use super::saving::now;
use crate::{Result, disk};

/// Bytes gathered before they are written.
const BUFFER_BYTES: usize = 256 << 10;

/// See the module.
pub(super) struct Output {
    path: PathBuf,
    file: File,
    /// Bytes that are in the file; the buffer follows.
    written: u64,
    buffer: Vec<u8>,
}

impl Output {
    /// A new file, with its header.
    pub fn create(path: PathBuf) -> Result<Output> {
        Output::create_with(path, &file_header_bytes(now()))
    }

    /// A new file that begins so.
    pub fn create_with(path: PathBuf, first: &[u8]) -> Result<Output> {
        let file = disk::create_alike(&path)?;
        Ok(Output { path, file, written: 0, buffer: first.to_vec() })
    }

    /// The file that is open here, from its end on.
    pub fn append(path: PathBuf, file: File, size: u64) -> Output {
        Output { path, file, written: size, buffer: Vec::new() }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the next byte will stand.
    pub fn end(&self) -> u64 {
        self.written + self.buffer.len() as u64
    }

    pub fn put(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Writes the buffer out if it is full.
    pub fn relieve(&mut self) -> Result<()> {
        if self.buffer.len() < BUFFER_BYTES { Ok(()) } else { self.flush() }
    }

    /// Writes the buffer out.
    pub fn flush(&mut self) -> Result<()> {
        if !self.buffer.is_empty() {
            disk::write_at(&self.file, &self.buffer, self.written, &self.path)?;
            self.written += self.buffer.len() as u64;
            self.buffer.clear();
        }
        Ok(())
    }

    /// Replaces bytes that were put here and begin at `offset`.
    pub fn replace(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        match offset.checked_sub(self.written) {
            Some(at) => {
                let at = at as usize;
                self.buffer[at..at + bytes.len()].copy_from_slice(bytes);
                Ok(())
            }
            None => disk::write_at(&self.file, bytes, offset, &self.path),
        }
    }

    /// Takes back what was put from `offset` on.
    pub fn cut(&mut self, offset: u64) -> Result<()> {
        match offset.checked_sub(self.written) {
            Some(at) => self.buffer.truncate(at as usize),
            None => {
                self.buffer.clear();
                disk::truncate(&self.file, offset, &self.path)?;
                self.written = offset;
            }
        }
        Ok(())
    }

    /// Cuts the file off at the size that it had before; this ends the output.
    pub fn shorten(&self, length: u64) -> Result<()> {
        if self.written > length { disk::truncate(&self.file, length, &self.path) } else { Ok(()) }
    }
}
