//! Attachments that lie outside their message: `mail_attachment_dir` of Dovecot, single instance storage.
//!
//! The dbox file holds a stub and, per attachment, where it goes and how its file becomes the text of the message
//! again. Reads only: our own saves keep messages whole.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use dsync_model::{MailboxGuid, Uid};

use super::metadata::decimal;
use crate::{Result, StorageError, disk};

/// Bytes of a file that are encoded at once; whole groups of three.
const CHUNK_BYTES: usize = 12 << 10;

/// One attachment, and its place in the whole message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attachment {
    /// Where it begins in the whole message.
    pub offset: u64,
    /// Bytes that it has there.
    pub size: u64,
    /// Its file holds decoded data: characters of a base64 line, a multiple of 4. `None`: the file is taken as it is.
    pub base64_line: Option<u32>,
    /// Lines of base64 end in CRLF.
    pub crlf: bool,
    /// Below the attachment directory; relative, and never upwards.
    path: Box<str>,
}

impl Attachment {
    /// Path of its file below the attachment directory, without the suffix of sdbox.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Says whether a file of this size makes the attachment. Only the line end behind the last line may be missing.
    fn fits(&self, file_size: u64) -> bool {
        let Some(line) = self.base64_line else { return file_size == self.size };
        let characters = file_size.div_ceil(3).saturating_mul(4);
        let line_end = 1 + u64::from(self.crlf);
        let lines = characters.div_ceil(u64::from(line));
        let most = characters.saturating_add(lines.saturating_mul(line_end));
        (most.saturating_sub(line_end)..=most).contains(&self.size)
    }
}

/// Where the files of attachments are.
#[derive(Clone, Debug)]
pub struct AttachmentDir {
    root: PathBuf,
    suffix: String,
}

impl AttachmentDir {
    /// For a message of sdbox: each has links of its own.
    pub fn sdbox(root: impl Into<PathBuf>, mailbox: MailboxGuid, uid: Uid) -> AttachmentDir {
        AttachmentDir { root: root.into(), suffix: format!("-{mailbox}-{uid}") }
    }

    /// For mdbox.
    pub fn mdbox(root: impl Into<PathBuf>) -> AttachmentDir {
        AttachmentDir { root: root.into(), suffix: String::new() }
    }

    /// The file of an attachment.
    pub fn file(&self, attachment: &Attachment) -> PathBuf {
        self.root.join(format!("{}{}", attachment.path, self.suffix))
    }
}

/// Checks that every attachment has its file, and that the file can make the bytes that are missing.
pub fn attachments_resolve(attachments: &[Attachment], files: &AttachmentDir) -> Result<()> {
    for attachment in attachments {
        open(attachment, &files.file(attachment))?;
    }
    Ok(())
}

/// Reads groups of offset, size, options and path. Offsets ascend.
pub(super) fn parse(value: &[u8]) -> Result<Vec<Attachment>, &'static str> {
    const BAD: &str = "the references to attachments cannot be read";
    let fields: Vec<&[u8]> = value.split(|b| *b == b' ').collect();
    let (groups, rest) = fields.as_chunks::<4>();
    if !rest.is_empty() {
        return Err(BAD);
    }
    let mut attachments = Vec::with_capacity(groups.len());
    let mut offset_min = 0;
    for [offset, size, options, path] in groups {
        let offset = decimal(offset).filter(|offset| *offset >= offset_min).ok_or(BAD)?;
        let size = decimal(size).ok_or(BAD)?;
        offset_min = offset.checked_add(size).ok_or(BAD)?;
        let (base64_line, crlf) = parse_options(options).ok_or(BAD)?;
        let path = std::str::from_utf8(path).ok().filter(|path| stays_below(path)).ok_or(BAD)?;
        attachments.push(Attachment { offset, size, base64_line, crlf, path: path.into() });
    }
    Ok(attachments)
}

/// The text that [`parse`] reads.
pub(super) fn to_text(attachments: &[Attachment]) -> String {
    let group = |attachment: &Attachment| {
        let Attachment { offset, size, base64_line, crlf, path } = attachment;
        let options = match (crlf, base64_line) {
            (false, None) => "-".into(),
            (true, None) => "C".into(),
            (false, Some(line)) => format!("B{line}"),
            (true, Some(line)) => format!("CB{line}"),
        };
        format!("{offset} {size} {options} {path}")
    };
    attachments.iter().map(group).collect::<Vec<_>>().join(" ")
}

fn parse_options(mut options: &[u8]) -> Option<(Option<u32>, bool)> {
    let (mut line, mut crlf) = (None, false);
    if options == b"-" {
        return Some((line, crlf));
    }
    while let Some((option, rest)) = options.split_first() {
        options = rest;
        match option {
            b'C' => crlf = true,
            b'B' => {
                let length = rest.iter().position(|b| !b.is_ascii_digit()).unwrap_or(rest.len());
                let characters = u32::try_from(decimal(&rest[..length])?).ok()?;
                line = Some(characters).filter(|characters| *characters > 0 && characters.is_multiple_of(4));
                line?;
                options = &rest[length..];
            }
            _ => return None,
        }
    }
    Some((line, crlf))
}

/// Says whether a path cannot lead out of the directory that it is joined to, nor out of its line.
fn stays_below(path: &str) -> bool {
    !path.contains(char::is_control) && path.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

/// Removes the file of an attachment, and with the last of its links the one that is named after its content.
pub(super) fn remove(root: &Path, below: &Path) -> Result<()> {
    let path = root.join(below);
    disk::remove(&path)?;
    let name = below.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let Some((sum, _)) = name.split_once('-') else { return Ok(()) };
    let shared = path.with_file_name("hashes").join(sum);
    match fs::symlink_metadata(&shared) {
        Ok(meta) if meta.nlink() == 1 => disk::remove(&shared),
        _ => Ok(()),
    }
}

fn open(attachment: &Attachment, path: &Path) -> Result<File> {
    let flags = (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits() as i32;
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(StorageError::Damaged {
                path: path.to_owned(),
                offset: 0,
                what: "the attachment is missing".into(),
            });
        }
        Err(error) => return Err(StorageError::io(path)(error)),
    };
    let meta = file.metadata().map_err(StorageError::io(path))?;
    if !meta.is_file() || !attachment.fits(meta.len()) {
        let what = format!("the attachment has not the size that makes {} bytes", attachment.size).into();
        return Err(StorageError::Damaged { path: path.to_owned(), offset: 0, what });
    }
    Ok(file)
}

/// A stub with its attachments put back.
pub struct Spliced<R> {
    stub: R,
    /// Where we are in the whole message, and where it ends.
    at: u64,
    end: u64,
    coming: VecDeque<(Attachment, PathBuf)>,
    current: Option<Encoder>,
}

impl<R: Read> Spliced<R> {
    /// `size` is that of the whole message. The error says what is wrong with the references.
    pub fn new(
        stub: R,
        size: u64,
        attachments: &[Attachment],
        files: &AttachmentDir,
    ) -> Result<Spliced<R>, &'static str> {
        let last =
            attachments.iter().map(|attachment| attachment.offset.saturating_add(attachment.size)).max();
        if last.is_some_and(|last| last > size) {
            return Err("an attachment lies beyond the end of the message");
        }
        let coming = attachments.iter().filter(|attachment| attachment.size > 0);
        let coming = coming.map(|attachment| (attachment.clone(), files.file(attachment))).collect();
        Ok(Spliced { stub, at: 0, end: size, coming, current: None })
    }

    fn damaged(text: &'static str) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, text)
    }
}

impl<R: Read> Read for Spliced<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        if let Some((attachment, path)) = self.coming.pop_front_if(|(next, _)| next.offset == self.at) {
            let file = open(&attachment, &path)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            self.current = Some(Encoder::new(file, attachment));
        }
        if let Some(encoder) = &mut self.current {
            let length = encoder.read(buffer)?;
            self.at += length as u64;
            if encoder.left == 0 {
                self.current = None;
            }
            return Ok(length);
        }
        let until = self.coming.front().map_or(self.end, |(next, _)| next.offset);
        if self.at == self.end {
            return match self.stub.read(&mut [0])? {
                0 => Ok(0),
                _ => Err(Self::damaged("the stub of the message is longer than it should be")),
            };
        }
        let wanted = usize::try_from(until - self.at).unwrap_or(usize::MAX).min(buffer.len());
        match self.stub.read(&mut buffer[..wanted])? {
            0 => Err(Self::damaged("the stub of the message is shorter than it should be")),
            length => {
                self.at += length as u64;
                Ok(length)
            }
        }
    }
}

/// One attachment as the message has it.
struct Encoder {
    file: File,
    attachment: Attachment,
    /// Bytes that are still to be given out.
    left: u64,
    column: u32,
    ready: Vec<u8>,
    given: usize,
}

impl Encoder {
    fn new(file: File, attachment: Attachment) -> Encoder {
        let left = attachment.size;
        Encoder { file, attachment, left, column: 0, ready: Vec::new(), given: 0 }
    }

    /// Makes the next bytes; none: the file is at its end.
    fn fill(&mut self) -> io::Result<()> {
        let mut chunk = Vec::with_capacity(CHUNK_BYTES);
        Read::by_ref(&mut self.file).take(CHUNK_BYTES as u64).read_to_end(&mut chunk)?;
        self.given = 0;
        let Some(line) = self.attachment.base64_line else {
            self.ready = chunk;
            return Ok(());
        };
        self.ready.clear();
        let is_last = chunk.len() < CHUNK_BYTES;
        let line_end: &[u8] = if self.attachment.crlf { b"\r\n" } else { b"\n" };
        let text = STANDARD.encode(chunk);
        let mut rest = text.as_bytes();
        while !rest.is_empty() {
            let room = (line - self.column) as usize;
            let (piece, after) = rest.split_at(room.min(rest.len()));
            self.ready.extend_from_slice(piece);
            self.column += piece.len() as u32;
            if self.column == line {
                self.ready.extend_from_slice(line_end);
                self.column = 0;
            }
            rest = after;
        }
        if is_last && self.column > 0 {
            self.ready.extend_from_slice(line_end);
            self.column = 0;
        }
        Ok(())
    }
}

impl Read for Encoder {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.given == self.ready.len() {
            self.fill()?;
        }
        let ready = &self.ready[self.given..];
        let length = ready.len().min(buffer.len()).min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if length == 0 && self.left > 0 && !buffer.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the attachment became shorter"));
        }
        buffer[..length].copy_from_slice(&ready[..length]);
        self.given += length;
        self.left -= length as u64;
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn splice(stub: &str, size: u64, x: &str, files: &AttachmentDir) -> io::Result<String> {
        let attachments = parse(x.as_bytes()).expect("valid");
        let mut text = String::new();
        let spliced = Spliced::new(stub.as_bytes(), size, &attachments, files);
        spliced.map_err(io::Error::other)?.read_to_string(&mut text)?;
        Ok(text)
    }

    #[test]
    fn attachments_come_back_where_they_were() {
        let dir = tempfile::tempdir().expect("made");
        let guid = MailboxGuid([0xab; 16]);
        let files = AttachmentDir::sdbox(dir.path(), guid, Uid::new(7).expect("not 0"));
        std::fs::create_dir(dir.path().join("d")).expect("made");
        let write = |name: &str, bytes: &[u8]| {
            std::fs::write(dir.path().join(format!("d/{name}-{guid}-7")), bytes).expect("written");
        };
        write("a", b"0123456");
        write("b", b"as it is");
        // MDEy MzQ1 Ng==
        let whole = "x\nMDEyMzQ1\nNg==\ny as it is";
        let all = "2 14 B8 d/a 18 8 - d/b";
        assert_eq!(splice("x\ny ", 26, "2 14 B8 d/a 18 8 - d/b", &files).expect("reads"), whole);
        assert_eq!(splice("x\n\ny ", 26, "2 13 B8 d/a 18 8 - d/b", &files).expect("reads"), whole);
        assert_eq!(splice("", 16, "0 16 CB8 d/a", &files).expect("reads"), "MDEyMzQ1\r\nNg==\r\n");
        assert_eq!(splice("", 14, "0 14 CB8 d/a", &files).expect("reads"), "MDEyMzQ1\r\nNg==");
        for (stub, size) in [("x\ny", 26), ("x\ny +", 26), ("x\ny ", 25)] {
            assert!(splice(stub, size, all, &files).is_err(), "{stub:?} {size}");
        }
        attachments_resolve(&parse(all.as_bytes()).expect("valid"), &files).expect("all there");
        for (missing, text) in
            [("0 5 - d/c", "d/c-ababab"), ("0 5 B8 d/a", "5 bytes"), ("0 8 - d/a", "8 bytes")]
        {
            let error = attachments_resolve(&parse(missing.as_bytes()).expect("valid"), &files).unwrap_err();
            assert!(error.to_string().contains(text), "{error}");
            assert_eq!(error.status(), 65);
        }
    }

    #[test]
    fn a_compressed_message_with_attachments_is_opened_whole() {
        use std::io::Write;

        use crate::dbox::{DboxFile, Metadata, file, open_mail};

        let dir = tempfile::tempdir().expect("made");
        std::fs::write(dir.path().join("f"), b"outside").expect("written");
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(b"head\n\ntail\n").expect("written");
        let stub = encoder.finish().expect("written");
        let whole = b"head\n\noutsidetail\n";
        let write = |physical_size| {
            let metadata = Metadata {
                physical_size,
                attachments: parse(b"6 7 - f").expect("valid"),
                ..Metadata::default()
            };
            let header = file::file_header_bytes(dsync_model::Timestamp(1));
            let message = [&file::message_header_bytes(stub.len() as u64), &*stub, &metadata.to_bytes()];
            std::fs::write(dir.path().join("m.1"), [&header, &*message.concat()].concat()).expect("written");
            DboxFile::open(dir.path().join("m.1")).expect("opens")
        };
        let files = AttachmentDir::mdbox(dir.path());
        let mut read = Vec::new();
        let file = write(Some(whole.len() as u64));
        let mail = file.messages().next().expect("one").expect("whole");
        open_mail(&file, &mail, Some(&files)).expect("opens").reader.read_to_end(&mut read).expect("reads");
        assert_eq!(read, whole);
        assert!(open_mail(&file, &mail, None).is_err_and(|error| error.status() == 65));
        for wrong in [-1, 1] {
            let file = write(Some((whole.len() as u64).saturating_add_signed(wrong)));
            let mail = file.messages().next().expect("one").expect("whole");
            let mut reader = open_mail(&file, &mail, Some(&files)).expect("opens").reader;
            assert_eq!(reader.read_to_end(&mut read).expect_err("wrong").kind(), io::ErrorKind::InvalidData);
        }
    }

    #[test]
    fn long_files_are_encoded_without_a_seam() {
        let dir = tempfile::tempdir().expect("made");
        let files = AttachmentDir::mdbox(dir.path());
        let bytes: Vec<u8> = (0..100_001u32).map(|n| (n * 7) as u8).collect();
        std::fs::write(dir.path().join("f"), &bytes).expect("written");
        let text = STANDARD.encode(&bytes);
        let wanted: String = text
            .as_bytes()
            .chunks(76)
            .map(|line| std::str::from_utf8(line).unwrap().to_owned() + "\n")
            .collect();
        let size = wanted.len() as u64;
        assert_eq!(splice("", size, &format!("0 {size} B76 f"), &files).expect("reads"), wanted);
    }

    #[test]
    fn references_that_lead_astray_are_refused() {
        for bad in [
            "",
            "1",
            "0 1 -",
            "0 1 - a 5",
            "x 1 - a",
            "0 -1 - a",
            "0 1 B a",
            "0 1 B6 a",
            "0 1 B0 a",
            "0 1 Z a",
            "0 1 B99999999999 a",
            "5 1 - a 5 1 - b",
            "0 18446744073709551615 - a 1 1 - b",
            "1 18446744073709551615 - a",
            "0 1 - ../a",
            "0 1 - /etc/passwd",
            "0 1 - a//b",
            "0 1 - a/./b",
            "0 1 - ",
            "0 1 - a\rb",
        ] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }
}
