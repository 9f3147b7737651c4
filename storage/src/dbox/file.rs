//! One dbox file: `u.N` of sdbox with one message, `m.N` of mdbox with many.
//!
//! Reads messages and makes the bytes of new ones. A file is never changed in place: it is written once, or grows
//! at its end, and whoever does that holds the locks.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dsync_model::Timestamp;
use memchr::memmem;

use super::metadata::{self, Metadata};
use crate::{Result, StorageError};

/// Bytes of the message header that we, and every Dovecot since 2.0, write.
pub const MESSAGE_HEADER_BYTES: usize = 30;
/// Largest message header that is read: later versions may add fields.
const MESSAGE_HEADER_BYTES_MAX: u32 = 4096;
/// Longest first line of a file.
const FILE_HEADER_BYTES_MAX: usize = 1024;
const MESSAGE_MAGIC: &[u8] = b"\x01\x02";
/// How a message header begins in all files that Dovecot 2 wrote: with the magic, the type and the empty UID.
const MESSAGE_START: &[u8] = b"\x01\x02N          ";
/// Bytes looked through at once for the next message after damage.
const SCAN_BYTES: usize = 64 << 10;

/// The first line of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileHeader {
    /// Bytes of the line: the first message begins there.
    pub size: u64,
    /// Bytes of every message header in this file, 30 or more.
    pub message_header_size: u32,
    /// When the file was made.
    pub created: Timestamp,
}

impl FileHeader {
    /// Reads the line at the beginning of `bytes`; the error says what is wrong with it.
    pub fn parse(bytes: &[u8]) -> Result<FileHeader, &'static str> {
        let length = memchr::memchr(b'\n', bytes).ok_or("the file header has no end")?;
        let mut fields = bytes[..length].split(|b| *b == b' ');
        if !matches!(fields.next(), Some(b"1" | b"2")) {
            return Err("the file is no dbox file of version 1 or 2");
        }
        let (mut message_header_size, mut created) = (None, 0);
        for field in fields {
            match field.split_first() {
                Some((b'M', value)) => message_header_size = Some(metadata::hex(value).ok_or("bad field M")?),
                Some((b'C', value)) => created = metadata::hex(value).ok_or("bad field C")?,
                _ => {}
            }
        }
        let size = message_header_size.ok_or("the file header lacks the field M")?;
        let size = u32::try_from(size).unwrap_or(u32::MAX);
        if !(MESSAGE_HEADER_BYTES as u32..=MESSAGE_HEADER_BYTES_MAX).contains(&size) {
            return Err("the size of message headers is impossible");
        }
        Ok(FileHeader {
            size: length as u64 + 1,
            message_header_size: size,
            created: Timestamp(created as i64),
        })
    }
}

/// A message found in a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredMail {
    /// Where its header begins; the map of mdbox keeps this offset.
    pub offset: u64,
    /// Where the body begins. It is as stored: compressed, or without its attachments, it may be.
    pub body_offset: u64,
    pub body_size: u64,
    pub metadata: Metadata,
    /// Where it ends: the next message, or the end of the file.
    pub end: u64,
}

impl StoredMail {
    /// Bytes of the whole message once it is decompressed and its attachments are back.
    pub fn physical_size(&self) -> u64 {
        self.metadata.physical_size.unwrap_or(self.body_size)
    }
}

/// An open file. Reading moves no shared position, so that several bodies may be read side by side.
#[derive(Clone, Debug)]
pub struct DboxFile {
    path: PathBuf,
    file: Arc<File>,
    header: FileHeader,
    /// How the file begins: with sdbox, the message's header is there too, and a small message.
    first: Arc<[u8]>,
}

impl DboxFile {
    /// Opens a file and reads its header.
    pub fn open(path: impl Into<PathBuf>) -> Result<DboxFile> {
        let path = path.into();
        let flags = (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits() as i32;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(&path);
        DboxFile::new(file.map_err(StorageError::io(&path))?, path)
    }

    /// Takes a file that is open already, and locked perhaps.
    pub fn new(file: File, path: impl Into<PathBuf>) -> Result<DboxFile> {
        let path = path.into();
        if !file.metadata().map_err(StorageError::io(&path))?.is_file() {
            return Err(StorageError::Impossible(format!("{}: is no regular file", path.display())));
        }
        let mut first = vec![0; FILE_HEADER_BYTES_MAX];
        let length = read_some(&file, &mut first, 0, |first| first.contains(&b'\n'))
            .map_err(StorageError::io(&path))?;
        first.truncate(length);
        match FileHeader::parse(&first) {
            Ok(header) => Ok(DboxFile { path, file: Arc::new(file), header, first: first.into() }),
            Err(what) => Err(StorageError::Damaged { path, offset: 0, what: what.into() }),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn header(&self) -> FileHeader {
        self.header
    }

    /// Bytes of the file as of now.
    pub fn size(&self) -> Result<u64> {
        Ok(self.file.metadata().map_err(StorageError::io(&self.path))?.len())
    }

    /// Reads the message whose header begins at `offset`; the body only as far as checking that it is all there.
    pub fn message(&self, offset: u64) -> Result<StoredMail> {
        let header_size = u64::from(self.header.message_header_size);
        let mut header = vec![0; header_size as usize];
        let length = self.read_at(&mut header, offset)?;
        let size = message_size(&header[..length], header_size as usize)
            .map_err(|what| self.damaged(offset, what))?;
        let body_offset = offset + header_size;
        let too_short = || self.damaged(offset, "the file ends within the message");
        let metadata_offset = body_offset.checked_add(size).ok_or_else(too_short)?;
        let block = self.metadata_block(metadata_offset)?.ok_or_else(too_short)?;
        let metadata = Metadata::parse(&block).map_err(|what| self.damaged(metadata_offset, what))?;
        let end = metadata_offset + block.len() as u64;
        Ok(StoredMail { offset, body_offset, body_size: size, metadata, end })
    }

    /// All messages from the beginning to the end of the file. Damage ends the list with an error that has its offset.
    pub fn messages(&self) -> Messages<'_> {
        self.messages_from(self.header.size)
    }

    /// The same, beginning with the message at `offset`.
    pub fn messages_from(&self, offset: u64) -> Messages<'_> {
        Messages { file: self, offset: Some(offset) }
    }

    /// Looks behind damage for the next message that is whole, at `from` or later. `None`: there is none.
    ///
    /// For rebuilding what is lost only: text within a damaged message may look like a message.
    pub fn next_message(&self, from: u64) -> Result<Option<StoredMail>> {
        let finder = memmem::Finder::new(MESSAGE_START);
        let mut buffer = vec![0; SCAN_BYTES];
        let mut at = from.max(self.header.size);
        loop {
            let length = self.read_at(&mut buffer, at)?;
            for found in finder.find_iter(&buffer[..length]) {
                match self.message(at + found as u64) {
                    Err(StorageError::Damaged { .. }) => {}
                    other => return other.map(Some),
                }
            }
            if length < buffer.len() {
                return Ok(None);
            }
            at += (length - MESSAGE_START.len() + 1) as u64;
        }
    }

    /// The body as it is stored.
    pub fn body(&self, mail: &StoredMail) -> BodyReader {
        let end = mail.body_offset.saturating_add(mail.body_size);
        BodyReader { file: self.file.clone(), at: mail.body_offset, end }
    }

    /// The first bytes of the body as it is stored.
    pub fn start(&self, mail: &StoredMail, bytes: usize) -> Result<Vec<u8>> {
        let wanted = usize::try_from(mail.body_size).unwrap_or(bytes).min(bytes);
        let mut start = vec![0; wanted];
        let length = self.read_at(&mut start, mail.body_offset)?;
        start.truncate(length);
        Ok(start)
    }

    /// The metadata from their magic to the empty line. `None`: the file ends before.
    fn metadata_block(&self, offset: u64) -> Result<Option<Vec<u8>>> {
        let mut block = Vec::new();
        let mut wanted = 512;
        loop {
            block.resize(wanted, 0);
            let length = self
                .read_until(&mut block, offset, |read| !matches!(metadata::block_length(read), Ok(None)))?;
            block.truncate(length);
            match metadata::block_length(&block) {
                Ok(Some(length)) => {
                    block.truncate(length);
                    return Ok(Some(block));
                }
                Ok(None) if length == 0 => return Ok(None),
                Ok(None) if length < wanted => {
                    return Err(self.damaged(offset, "the file ends within the metadata"));
                }
                Ok(None) if wanted < metadata::BYTES_MAX => wanted = (wanted * 8).min(metadata::BYTES_MAX),
                Ok(None) => return Err(self.damaged(offset, "the metadata are larger than they can be")),
                Err(what) => return Err(self.damaged(offset, what)),
            }
        }
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize> {
        self.read_until(buffer, offset, |_| false)
    }

    /// Reads until `enough` is satisfied, the buffer is full or the file ends. What is in memory is not read again: bytes of a file
    /// never change.
    fn read_until(&self, buffer: &mut [u8], offset: u64, enough: impl Fn(&[u8]) -> bool) -> Result<usize> {
        let known = usize::try_from(offset).ok().and_then(|from| self.first.get(from..)).unwrap_or_default();
        let length = known.len().min(buffer.len());
        buffer[..length].copy_from_slice(&known[..length]);
        if length > 0 && (length == buffer.len() || enough(&buffer[..length])) {
            return Ok(length);
        }
        read_some(&self.file, buffer, offset, enough).map_err(StorageError::io(&self.path))
    }

    fn damaged(&self, offset: u64, what: &str) -> StorageError {
        StorageError::Damaged { path: self.path.clone(), offset, what: what.into() }
    }
}

/// The messages of a file, see [`DboxFile::messages`].
pub struct Messages<'a> {
    file: &'a DboxFile,
    offset: Option<u64>,
}

impl Iterator for Messages<'_> {
    type Item = Result<StoredMail>;

    fn next(&mut self) -> Option<Result<StoredMail>> {
        let offset = self.offset.take()?;
        match self.file.size() {
            Ok(size) if offset == size => return None,
            Ok(_) => {}
            Err(error) => return Some(Err(error)),
        }
        let message = self.file.message(offset);
        self.offset = message.as_ref().ok().map(|mail| mail.end);
        Some(message)
    }
}

/// Reads a body, and its file stays open as long.
#[derive(Debug)]
pub struct BodyReader {
    file: Arc<File>,
    at: u64,
    end: u64,
}

impl Read for BodyReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.end - self.at).unwrap_or(usize::MAX).min(buffer.len());
        if wanted == 0 {
            return Ok(0);
        }
        match self.file.read_at(&mut buffer[..wanted], self.at)? {
            0 => Err(io::Error::new(io::ErrorKind::InvalidData, "the file was cut off while it was read")),
            length => {
                self.at += length as u64;
                Ok(length)
            }
        }
    }
}

/// The first line of a new file.
pub fn file_header_bytes(now: Timestamp) -> Vec<u8> {
    format!("2 M{MESSAGE_HEADER_BYTES:x} C{:x}\n", now.0 as u32).into_bytes()
}

/// The header of a message whose body, as stored, has this size.
pub fn message_header_bytes(size: u64) -> [u8; MESSAGE_HEADER_BYTES] {
    let mut header = [b' '; MESSAGE_HEADER_BYTES];
    header[..3].copy_from_slice(b"\x01\x02N");
    header[13..29].copy_from_slice(format!("{size:016X}").as_bytes());
    header[29] = b'\n';
    header
}

/// The size of the body that a message header tells.
fn message_size(header: &[u8], header_size: usize) -> Result<u64, &'static str> {
    if header.len() < header_size || header_size < MESSAGE_HEADER_BYTES {
        return Err("the file ends within a message header");
    }
    if !header.starts_with(MESSAGE_MAGIC) || header[header_size - 1] != b'\n' {
        return Err("no message begins here");
    }
    metadata::hex(&header[13..29]).ok_or("the message header has no valid size")
}

fn read_some(
    file: &File,
    buffer: &mut [u8],
    offset: u64,
    enough: impl Fn(&[u8]) -> bool,
) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() && (length == 0 || !enough(&buffer[..length])) {
        // Beyond what a file can have, the system calls the offset invalid: there is nothing.
        let Some(at) = offset.checked_add(length as u64).filter(|at| i64::try_from(*at).is_ok()) else {
            break;
        };
        match file.read_at(&mut buffer[length..], at) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

#[cfg(test)]
mod tests {
    use dsync_model::MessageGuid;

    use super::*;

    fn mail(body: &[u8], guid: &str) -> Vec<u8> {
        let metadata = Metadata { guid: MessageGuid::new(guid), ..Metadata::default() };
        [&message_header_bytes(body.len() as u64), body, &metadata.to_bytes()].concat()
    }

    fn file(bytes: &[u8]) -> (tempfile::TempDir, Result<DboxFile>) {
        let dir = tempfile::tempdir().expect("made");
        let path = dir.path().join("m.1");
        std::fs::write(&path, bytes).expect("written");
        let file = DboxFile::open(path);
        (dir, file)
    }

    #[test]
    fn the_bytes_are_those_of_dovecot() {
        assert_eq!(file_header_bytes(Timestamp(0x6b04_49de)), b"2 M1e C6b0449de\n");
        assert_eq!(&message_header_bytes(203), b"\x01\x02N          00000000000000CB\n");
        assert_eq!(
            FileHeader::parse(b"2 M1e C6b0449de\nrest"),
            Ok(FileHeader { size: 16, message_header_size: 30, created: Timestamp(0x6b04_49de) })
        );
    }

    #[test]
    fn a_file_is_read_as_it_was_written() {
        let (one, two) = (mail(b"first\n", "a"), mail(b"", "b"));
        let bytes = [&*file_header_bytes(Timestamp(1)), &one, &two].concat();
        let (_dir, file) = file(&bytes);
        let file = file.expect("opens");
        let mails: Vec<StoredMail> = file.messages().map(|mail| mail.expect("whole")).collect();
        assert_eq!(mails.iter().map(|mail| mail.body_size).collect::<Vec<_>>(), [6, 0]);
        assert_eq!(mails[1].offset, mails[0].end);
        assert_eq!(mails[1].end, bytes.len() as u64);
        let mut body = String::new();
        file.body(&mails[0]).read_to_string(&mut body).expect("reads");
        assert_eq!(body, "first\n");
    }

    #[test]
    fn a_longer_message_header_is_read() {
        let mut header = message_header_bytes(2).to_vec();
        header.splice(29..29, *b"more");
        let metadata = Metadata::default().to_bytes();
        let (_dir, file) = file(&[b"2 M22 C0\n", &*header, b"x\n", &metadata].concat());
        let mail = file.expect("opens").messages().next().expect("one").expect("whole");
        assert_eq!((mail.body_offset, mail.body_size), (9 + 34, 2));
    }

    #[test]
    fn damage_is_reported_where_it_is_and_the_next_message_is_found() {
        let header = file_header_bytes(Timestamp(1));
        let (one, two, three) = (mail(b"first\n", "a"), mail(&[b'x'; 100_000], "b"), mail(b"third\n", "c"));
        let mut bytes = [&*header, &one, &two, &three].concat();
        let at = header.len() + one.len();
        bytes[at] = b'?';
        let (_dir, file) = file(&bytes);
        let file = file.expect("opens");
        let mut messages = file.messages();
        assert!(matches!(messages.next(), Some(Ok(_))));
        match messages.next() {
            Some(Err(StorageError::Damaged { offset, .. })) => assert_eq!(offset, at as u64),
            other => panic!("{other:?}"),
        }
        assert!(messages.next().is_none());
        let next = file.next_message(at as u64).expect("reads").expect("there is one");
        assert_eq!(next.offset, (at + two.len()) as u64);
        assert!(file.next_message(next.end).expect("reads").is_none());
    }

    #[test]
    fn what_cannot_be_is_an_error() {
        for header in ["", "2", "3 M1e C0\n", "2 C0\n", "2 M1d C0\n", "2 Mffffffffff C0\n", "2 M1e Cx\n"] {
            let (_dir, file) = file(header.as_bytes());
            assert!(matches!(file, Err(StorageError::Damaged { offset: 0, .. })), "{header:?}");
        }
        for size in ["FFFFFFFFFFFFFFFF", "7FFFFFFFFFFFFFFF", "000000000000000A", "+000000000000001"] {
            let (_dir, file) = file(format!("2 M1e C0\n\x01\x02N          {size}\nshort").as_bytes());
            let file = file.expect("opens");
            let error = file.message(9).expect_err(size);
            assert_eq!(error.status(), 65, "{error}");
            assert!(file.message(u64::MAX).is_err() && file.message(1000).is_err());
        }
    }
}
