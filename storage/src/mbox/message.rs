//! One message of an mbox file as clients see it: without the headers that belong to the mailbox.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::headers;
use super::scan::Entry;

/// Reads a message: its header with LF ends, its body as it stands in the file.
#[derive(Debug)]
pub struct VirtualMessage {
    file: Arc<File>,
    header: io::Cursor<Vec<u8>>,
    offset: u64,
    end: u64,
}

impl VirtualMessage {
    /// Opens the message. The file may be replaced meanwhile, but must not be changed in place: the descriptor's
    /// lock has to last as long as the reader.
    pub fn open(file: Arc<File>, entry: &Entry) -> io::Result<VirtualMessage> {
        let mut header = vec![0; (entry.header_end - entry.header_start) as usize];
        file.read_exact_at(&mut header, entry.header_start)?;
        let mut header = headers::visible(&header);
        if entry.has_empty_line() {
            header.push(b'\n');
        }
        let header = io::Cursor::new(header);
        Ok(VirtualMessage { file, header, offset: entry.body_start, end: entry.body_end })
    }
}

impl Read for VirtualMessage {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let from_header = self.header.read(buffer)?;
        if from_header > 0 || buffer.is_empty() || self.offset == self.end {
            return Ok(from_header);
        }
        let wanted = buffer.len().min(usize::try_from(self.end - self.offset).unwrap_or(usize::MAX));
        let read = self.file.read_at(&mut buffer[..wanted], self.offset)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.offset += read as u64;
        Ok(read)
    }
}
