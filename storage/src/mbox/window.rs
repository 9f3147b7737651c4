//! A piece of a file in memory, which moves forward as it is read.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::{Result, StorageError};

/// Read at once.
const CHUNK_BYTES: usize = 256 << 10;

/// A window on a file of known size.
pub struct Window<'f> {
    file: &'f File,
    path: &'f Path,
    size: u64,
    start: u64,
    buffer: Vec<u8>,
}

impl<'f> Window<'f> {
    pub fn new(file: &'f File, path: &'f Path, size: u64) -> Window<'f> {
        Window { file, path, size, start: 0, buffer: Vec::new() }
    }

    pub fn path(&self) -> &'f Path {
        self.path
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    /// All bytes from `offset` on that are at hand: at least `bytes_min` if the file has as many.
    pub fn at(&mut self, offset: u64, bytes_min: usize) -> Result<&[u8]> {
        let bytes_min = self.size.saturating_sub(offset).min(bytes_min.max(1) as u64) as usize;
        let begin = offset.checked_sub(self.start).and_then(|begin| usize::try_from(begin).ok());
        let begin = match begin.filter(|begin| *begin <= self.buffer.len()) {
            Some(begin) if self.buffer.len() - begin >= bytes_min => begin,
            Some(begin) => {
                self.buffer.drain(..begin);
                self.start = offset;
                self.fill(bytes_min)?;
                0
            }
            None => {
                self.buffer.clear();
                self.start = offset;
                self.fill(bytes_min)?;
                0
            }
        };
        Ok(&self.buffer[begin..])
    }

    fn fill(&mut self, bytes_min: usize) -> Result<()> {
        let left = self.size.saturating_sub(self.start);
        // A long header is read in growing pieces, so that it is not gone through again for each.
        let wanted = bytes_min.max(CHUNK_BYTES).max(self.buffer.len() * 2) as u64;
        let length = self.buffer.len();
        self.buffer.resize(wanted.min(left) as usize, 0);
        let read = self.file.read_exact_at(&mut self.buffer[length..], self.start + length as u64);
        read.map_err(StorageError::io(self.path))
    }

    /// The line that begins at `offset`, with its end; at most `bytes_max` bytes of it.
    pub fn line(&mut self, offset: u64, bytes_max: usize) -> Result<&[u8]> {
        let bytes = self.at(offset, bytes_max)?;
        let bytes = &bytes[..bytes.len().min(bytes_max)];
        Ok(memchr::memchr(b'\n', bytes).map_or(bytes, |end| &bytes[..=end]))
    }

    /// At most `bytes` bytes from `offset` on, without moving the window far.
    pub fn peek(&mut self, offset: u64, bytes: usize) -> Result<Vec<u8>> {
        let bytes = self.size.saturating_sub(offset).min(bytes as u64) as usize;
        let begin = offset.checked_sub(self.start).and_then(|begin| usize::try_from(begin).ok());
        if let Some(found) = begin.and_then(|begin| self.buffer.get(begin..begin + bytes)) {
            return Ok(found.to_vec());
        }
        let mut found = vec![0; bytes];
        self.file.read_exact_at(&mut found, offset).map_err(StorageError::io(self.path))?;
        Ok(found)
    }

    /// Counts the LF that no CR precedes.
    pub fn count_bare_lf(&mut self, range: Range<u64>) -> Result<u64> {
        let mut count = 0;
        let mut offset = range.start;
        let mut after_cr = false;
        while offset < range.end {
            let bytes = self.at(offset, 1)?;
            let length = (range.end - offset).min(bytes.len() as u64) as usize;
            let bytes = &bytes[..length];
            count += memchr::memchr_iter(b'\n', bytes).count() as u64;
            count -= memchr::memmem::find_iter(bytes, b"\r\n").count() as u64;
            count -= u64::from(after_cr && bytes[0] == b'\n');
            after_cr = bytes[length - 1] == b'\r';
            offset += length as u64;
        }
        Ok(count)
    }

    /// Counts the line ends with CR.
    pub fn count_crlf(&mut self, range: Range<u64>) -> Result<u64> {
        let mut bytes = 0;
        self.each_without_cr(range.clone(), &mut |piece| {
            bytes += piece.len() as u64;
            Ok(())
        })?;
        Ok(range.end - range.start - bytes)
    }

    /// Gives out a range piece by piece, without the CR of CR LF.
    pub fn each_without_cr(
        &mut self,
        range: Range<u64>,
        take: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let mut offset = range.start;
        while offset < range.end {
            let bytes = self.at(offset, 2)?;
            let mut length = (range.end - offset).min(bytes.len() as u64) as usize;
            if length > 1 && bytes[length - 1] == b'\r' && offset + (length as u64) < range.end {
                length -= 1;
            }
            let mut rest = &bytes[..length];
            while let Some(end) = memchr::memmem::find(rest, b"\r\n") {
                take(&rest[..end])?;
                rest = &rest[end + 1..];
            }
            take(rest)?;
            offset += length as u64;
        }
        Ok(())
    }
}
