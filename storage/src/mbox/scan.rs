//! Reads an mbox file from its first byte to its last, in bounded memory: where each message lies, and what is
//! known of it.
//!
//! A message ends before a LF that a From_ line follows, or at the end of the file; that LF separates and belongs
//! to no message. `Content-Length` is believed where it leads to such a LF; the bare end of the file does not do for
//! Dovecot either.

use std::fs::File;
use std::ops::Range;
use std::path::Path;

use dsync_model::{FlagSet, Keyword, MessageGuid, Timestamp, Uid, UidValidity};
use jiff::tz::TimeZone;

use super::from_line::{self, FROM_LINE_BYTES_MAX};
use super::headers::{Header, without_end};
use super::window::Window;
use crate::{Result, StorageError};

/// From here on a header is taken for body.
pub const HEADER_BYTES_MAX: usize = 8 << 20;
/// Sender in the From_ line of a message that is still being appended, followed by dots only. Who reads skips it,
/// who writes removes it: the program that wrote it is gone, or it would hold the lock.
pub const UNFINISHED: &str = "dsync-unfinished";
const FROM_UNFINISHED: &[u8] = b"From dsync-unfinished";

/// What is known of a mailbox besides its file.
#[derive(Clone, Debug)]
pub struct Known {
    /// UIDNEXT of the index.
    pub uid_next: Option<Uid>,
    /// Keywords of the index.
    pub keywords: Vec<Keyword>,
    /// The zone whose time From_ lines tell.
    pub zone: TimeZone,
    /// Counts lines for `size_virtual`, which means to read all bodies.
    pub counts_lines: bool,
}

impl Default for Known {
    fn default() -> Known {
        Known { uid_next: None, keywords: Vec::new(), zone: TimeZone::system(), counts_lines: false }
    }
}

/// One message of an mbox file: offsets, and what its header says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Of its From_ line.
    pub offset: u64,
    pub header_start: u64,
    /// Behind the empty line; equal to `body_end` if there is no empty line.
    pub body_start: u64,
    pub body_end: u64,
    /// Behind the separating line end, if there is one.
    pub end: u64,
    /// Where the header ends, before the empty line.
    pub header_end: u64,
    pub received: Timestamp,
    /// `None`: it has none, or one that is not to be believed. Then no later message has a UID.
    pub uid: Option<Uid>,
    pub flags: FlagSet,
    /// Not `\Recent` any more.
    pub is_old: bool,
    pub guid: MessageGuid,
    /// Bytes of the message as clients see it.
    pub size_physical: u64,
    /// The same with CR LF ends; counted if that was asked for.
    pub size_virtual: Option<u64>,
    /// Its From_ line ends with CR LF.
    pub is_crlf: bool,
    pub has_body_bytes: bool,
    /// Its metadata headers hold something that is not believed.
    pub is_stale: bool,
}

impl Entry {
    /// There is an empty line between header and body.
    pub fn has_empty_line(&self) -> bool {
        self.body_start > self.header_end
    }

    /// The header was longer than [`HEADER_BYTES_MAX`].
    pub fn is_cut_header(&self) -> bool {
        !self.has_empty_line() && self.body_end > self.body_start
    }

    /// Something must be written before the next From_ line can follow.
    pub fn lacks_separator(&self) -> bool {
        self.end == self.body_end && self.end > self.header_start
    }

    pub fn line_end(&self) -> &'static str {
        if self.is_crlf { "\r\n" } else { "\n" }
    }
}

/// An mbox file as it stood when it was read.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MboxFile {
    /// `None`: no `X-IMAPbase`, and so no UIDs.
    pub uid_validity: Option<UidValidity>,
    /// Highest UID that was ever given, as far as the file tells; 0 without one.
    pub last_uid: u32,
    /// The list of the base.
    pub keywords: Vec<Keyword>,
    /// The pseudo message that holds the base.
    pub pseudo: Option<Entry>,
    /// In the order of the file.
    pub messages: Vec<Entry>,
    /// What a process that died while it appended left behind.
    pub unfinished: Vec<Range<u64>>,
    pub size: u64,
}

impl MboxFile {
    /// Reads the file. It must not change meanwhile: hold a lock.
    pub fn scan(file: &File, path: &Path, known: &Known) -> Result<MboxFile> {
        let size = file.metadata().map_err(StorageError::io(path))?.len();
        MboxFile::scan_to(file, path, size, known)
    }

    /// Reads the first `size` bytes as if there were no more.
    pub fn scan_to(file: &File, path: &Path, size: u64, known: &Known) -> Result<MboxFile> {
        let window = Window::new(file, path, size);
        let mut scanner = Scanner { window, known, found: MboxFile::default(), limit: 0, numbered: false };
        let mut offset = 0;
        while let Some(next) = scanner.message(offset)? {
            offset = next;
        }
        let mut found = scanner.found;
        found.size = size;
        Ok(found)
    }

    /// The message that lies last in the file.
    pub fn last_entry(&self) -> Option<&Entry> {
        self.messages.last().or(self.pseudo.as_ref())
    }
}

struct Scanner<'a> {
    window: Window<'a>,
    known: &'a Known,
    found: MboxFile,
    /// Highest UID that can be believed.
    limit: u32,
    /// All messages so far have a UID.
    numbered: bool,
}

/// Where a header ends.
enum HeaderEnd {
    /// At its empty line, which ends at the second offset.
    EmptyLine(u64, u64),
    /// At a From_ line.
    Message(u64),
    File,
    /// Nowhere near.
    Far(u64),
}

impl Scanner<'_> {
    /// Reads the message at `offset`; gives the offset of the next one.
    fn message(&mut self, offset: u64) -> Result<Option<u64>> {
        let size = self.window.size();
        if offset >= size {
            return Ok(None);
        }
        let line = self.window.line(offset, FROM_LINE_BYTES_MAX)?;
        let Some(from) = from_line::parse(without_end(line), &self.known.zone) else {
            if offset > 0 && is_torn(line, 0) {
                self.found.unfinished.push(offset..size);
                return Ok(None);
            }
            let what = "does not begin with a From_ line: no mbox file";
            return Err(StorageError::Corrupt { path: self.window.path().to_owned(), line: 1, what });
        };
        let received = from.received;
        let is_unfinished = is_unfinished(from.sender);
        let is_crlf = line.ends_with(b"\r\n");
        let header_start = offset + line.len() as u64;

        let header_end = self.header_end(header_start)?;
        let (header_stop, mut body_start) = match header_end {
            HeaderEnd::EmptyLine(stop, body) => (stop, body),
            HeaderEnd::Message(next) => (self.before(header_start, next, is_crlf)?, next),
            HeaderEnd::File => (self.before(header_start, size, is_crlf)?, size),
            HeaderEnd::Far(stop) => (stop, stop),
        };
        let header = self.window.at(header_start, (header_stop - header_start) as usize)?;
        let header = Header::parse(&header[..(header_stop - header_start) as usize]);
        let mut is_stale = header.is_muddled;
        let (body_end, end) = match header_end {
            HeaderEnd::EmptyLine(stop, body) => {
                let told = header.body_bytes.and_then(|bytes| body.checked_add(bytes));
                let told = told.filter(|end| *end <= size);
                let told = told.map(|end| self.separator(end)).transpose()?.flatten();
                is_stale |= header.body_bytes.is_some() && told.is_none();
                match told {
                    Some(ends) => ends,
                    None if self.is_boundary(body)? => {
                        // The empty line separates: this message has none.
                        body_start = stop;
                        (stop, body)
                    }
                    None => self.body_end(body, is_crlf)?,
                }
            }
            HeaderEnd::Message(_) | HeaderEnd::File => {
                let end = std::mem::replace(&mut body_start, header_stop);
                (header_stop, end)
            }
            HeaderEnd::Far(stop) => self.body_end(stop, is_crlf)?,
        };

        let body_bytes = body_end - body_start;
        let empty_line = u64::from(body_start > header_stop);
        let size_physical = header.visible_bytes + empty_line + body_bytes;
        let mut size_virtual = None;
        if self.known.counts_lines {
            let lines =
                header.visible_lines + empty_line + self.window.count_bare_lf(body_start..body_end)?;
            size_virtual = Some(size_physical + lines);
        }
        let mut entry = Entry {
            offset,
            header_start,
            header_end: header_stop,
            body_start,
            body_end,
            end,
            received,
            uid: None,
            flags: FlagSet::system(header.flags),
            is_old: header.is_old,
            guid: header.guid.clone(),
            size_physical,
            size_virtual,
            is_crlf,
            has_body_bytes: header.body_bytes.is_some(),
            is_stale,
        };
        if is_unfinished {
            self.found.unfinished.push(offset..end);
        } else {
            let is_pseudo = self.take(&mut entry, header);
            if is_pseudo {
                self.found.pseudo = Some(entry);
            } else {
                self.found.messages.push(entry);
            }
        }
        Ok(Some(end))
    }

    /// Decides what of a header is to be believed. Says whether this is the pseudo message.
    fn take(&mut self, entry: &mut Entry, header: Header) -> bool {
        let is_first = entry.offset == 0;
        let mut behind_base = true;
        if is_first {
            behind_base = header.is_pseudo || header.uid_behind_base;
            self.limit = self.known.uid_next.map_or(0, |next| next.get() - 1);
            if let Some(base) = header.base {
                self.limit = self.limit.max(base.last_uid);
                self.numbered = true;
                self.found.uid_validity = Some(base.uid_validity);
                self.found.last_uid = base.last_uid;
                self.found.keywords = base.keywords;
            }
            if header.is_pseudo {
                return true;
            }
        } else {
            entry.is_stale |= header.base.is_some();
        }
        let last = self.found.messages.last().and_then(|last| last.uid).map_or(0, Uid::get);
        let believed = |uid: &u32| self.numbered && behind_base && *uid > last && *uid <= self.limit;
        entry.uid = header.uid.filter(believed).and_then(Uid::new);
        entry.is_stale |= header.uid.is_some() && entry.uid.is_none();
        self.numbered = entry.uid.is_some();
        self.found.last_uid = self.found.last_uid.max(entry.uid.map_or(0, Uid::get));
        for words in &header.keywords {
            let keyword = |word| self.keyword(Keyword::new(std::str::from_utf8(word).ok()?)?);
            // A word that nobody knows shows that the message brought the header along.
            match words.iter().map(|word| keyword(word)).collect::<Option<Vec<Keyword>>>() {
                Some(keywords) => entry.flags.keywords.extend(keywords),
                None => entry.is_stale = true,
            }
        }
        false
    }

    /// A keyword as the base or the index spells it, if one of them has it.
    fn keyword(&self, name: Keyword) -> Option<Keyword> {
        self.found.keywords.iter().chain(&self.known.keywords).find(|known| **known == name).cloned()
    }

    fn header_end(&mut self, start: u64) -> Result<HeaderEnd> {
        let mut line = 0;
        let mut wanted = 0;
        loop {
            let bytes = self.window.at(start, wanted)?;
            while let Some(length) = memchr::memchr(b'\n', &bytes[line..]) {
                let text = without_end(&bytes[line..=line + length]);
                if text.is_empty() {
                    return Ok(HeaderEnd::EmptyLine(start + line as u64, start + (line + length + 1) as u64));
                }
                if text.len() <= FROM_LINE_BYTES_MAX && from_line::parse(text, &self.known.zone).is_some() {
                    return Ok(HeaderEnd::Message(start + line as u64));
                }
                line += length + 1;
                if line > HEADER_BYTES_MAX {
                    return Ok(HeaderEnd::Far(start + line as u64));
                }
            }
            let length = bytes.len();
            if length > HEADER_BYTES_MAX {
                return Ok(HeaderEnd::Far(start + line as u64));
            }
            wanted = length + 1;
            if length < self.window.at(start, wanted)?.len() {
                continue;
            }
            let rest = &self.window.at(start, 0)?[line..length];
            let next_is_message =
                is_torn(rest, TORN_BYTES_MIN) || from_line::parse(rest, &self.known.zone).is_some();
            return Ok(if next_is_message {
                HeaderEnd::Message(start + line as u64)
            } else {
                HeaderEnd::File
            });
        }
    }

    /// Where the text that begins at `start` ends, if the next message, or the end of the file, is at `next`.
    fn before(&mut self, start: u64, next: u64, is_crlf: bool) -> Result<u64> {
        let tail_start = next.saturating_sub(2).max(start);
        let tail = self.window.peek(tail_start, (next - tail_start) as usize)?;
        let separator = match tail.as_slice() {
            b"\r\n" if is_crlf => 2,
            [.., b'\n'] => 1,
            _ => 0,
        };
        Ok(next - separator)
    }

    /// Finds the end of a body without the help of `Content-Length`: of the body, and of what separates.
    fn body_end(&mut self, start: u64, is_crlf: bool) -> Result<(u64, u64)> {
        let finder = memchr::memmem::Finder::new(b"\nFrom ");
        let mut offset = start;
        loop {
            let bytes = self.window.at(offset, FROM_LINE_BYTES_MAX)?;
            let length = bytes.len() as u64;
            if let Some(found) = finder.find(bytes) {
                let next = offset + found as u64 + 1;
                if self.is_from_line(next)? {
                    return Ok((self.before(start, next, is_crlf)?, next));
                }
                offset = next;
                continue;
            }
            let searched = offset + length;
            if searched >= self.window.size() {
                let torn = self.torn_tail(start)?;
                let next = torn.unwrap_or(self.window.size());
                return Ok((self.before(start, next, is_crlf)?, next));
            }
            // The last bytes may be the first of what is looked for.
            offset = searched - 5;
        }
    }

    /// Where the From_ line of an unfinished message begins, if the file ends in the middle of it.
    fn torn_tail(&mut self, start: u64) -> Result<Option<u64>> {
        let size = self.window.size();
        let tail_start = size.saturating_sub(FROM_LINE_BYTES_MAX as u64).max(start);
        let tail = self.window.peek(tail_start, (size - tail_start) as usize)?;
        let line = memchr::memrchr(b'\n', &tail).map(|end| end + 1);
        Ok(line.filter(|line| is_torn(&tail[*line..], TORN_BYTES_MIN)).map(|line| tail_start + line as u64))
    }

    /// Says whether a message can end at `end`, and where the separator behind it ends.
    fn separator(&mut self, end: u64) -> Result<Option<(u64, u64)>> {
        let bytes = self.window.peek(end, 2)?;
        let length = match bytes.as_slice() {
            [b'\n', ..] => 1,
            b"\r\n" => 2,
            _ => return Ok(None),
        };
        let next = end + length;
        let rest = self.window.peek(next, FROM_UNFINISHED.len())?;
        let ends = next + rest.len() as u64 == self.window.size() && is_torn(&rest, 0);
        Ok((ends || self.is_boundary(next)?).then_some((end, next)))
    }

    /// Says whether at `offset`, behind a LF, a message or nothing at all begins.
    fn is_boundary(&mut self, offset: u64) -> Result<bool> {
        Ok(offset == self.window.size() || self.is_from_line(offset)?)
    }

    fn is_from_line(&mut self, offset: u64) -> Result<bool> {
        let mut bytes = self.window.peek(offset, 128)?;
        if !bytes.starts_with(b"From ") {
            return Ok(false);
        }
        if memchr::memchr(b'\n', &bytes).is_none() {
            bytes = self.window.peek(offset, FROM_LINE_BYTES_MAX)?;
        }
        match memchr::memchr(b'\n', &bytes) {
            Some(end) => bytes.truncate(end + 1),
            None if offset + (bytes.len() as u64) < self.window.size() => return Ok(false),
            None if is_torn(&bytes, TORN_BYTES_MIN) => return Ok(true),
            None => {}
        }
        Ok(from_line::parse(without_end(&bytes), &self.known.zone).is_some())
    }
}

/// Fewer bytes than this at the end of the file do not tell an unfinished From_ line from text.
const TORN_BYTES_MIN: usize = 6;

/// Says whether the last line of the file, without LF, is the begin of the From_ line of an unfinished message.
fn is_torn(line: &[u8], bytes_min: usize) -> bool {
    let begun = line.starts_with(FROM_UNFINISHED) || FROM_UNFINISHED.starts_with(line);
    begun && line.len() >= bytes_min && !line.ends_with(b"\n") && !line.contains(&b'@')
}

/// Says whether this is the sender of a message that is still being appended.
fn is_unfinished(sender: &[u8]) -> bool {
    sender.strip_prefix(UNFINISHED.as_bytes()).is_some_and(|rest| rest.iter().all(|b| *b == b'.'))
}
