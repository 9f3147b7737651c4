//! The header of one message in an mbox: what the metadata headers say, what clients see, what is written.
//!
//! `X-IMAPbase`, `X-IMAP`, `X-UID`, `Status`, `X-Status`, `X-Keywords` and `Content-Length` belong to the
//! mailbox; clients never see them, and they never come in with a message (storage formats reference, 7.3).

use dsync_model::{Flags, Keyword, MessageGuid, UidValidity};
use md5::{Digest, Md5};

/// A header that belongs to the mailbox.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Meta {
    Base,
    Imap,
    Uid,
    Status,
    XStatus,
    Keywords,
    Length,
}

/// In the order in which new messages have them; `X-IMAPbase` must stand before `X-UID`.
pub(super) const METAS: [(Meta, &[u8]); 7] = [
    (Meta::Base, b"X-IMAPbase"),
    (Meta::Imap, b"X-IMAP"),
    (Meta::Uid, b"X-UID"),
    (Meta::Status, b"Status"),
    (Meta::XStatus, b"X-Status"),
    (Meta::Keywords, b"X-Keywords"),
    (Meta::Length, b"Content-Length"),
];
pub(super) const STATUS: [(Flags, u8); 1] = [(Flags::SEEN, b'R')];
pub(super) const X_STATUS: [(Flags, u8); 4] =
    [(Flags::ANSWERED, b'A'), (Flags::FLAGGED, b'F'), (Flags::DRAFT, b'T'), (Flags::DELETED, b'D')];

/// One header with its continuation lines.
#[derive(Clone, Copy, Debug)]
pub struct Field<'a> {
    /// All its lines, with their ends.
    pub bytes: &'a [u8],
    pub meta: Option<Meta>,
}

/// Splits a header, without its empty line, into fields. Lines that are no header are fields, too.
pub fn fields(mut header: &[u8]) -> impl Iterator<Item = Field<'_>> {
    // Half of an empty line, at the end of the file.
    if let [.., b'\n', b'\r'] | [b'\r'] = header {
        header = &header[..header.len() - 1];
    }
    std::iter::from_fn(move || {
        if header.is_empty() {
            return None;
        }
        let mut end = line_length(header);
        while matches!(header.get(end), Some(b' ' | b'\t')) {
            end += line_length(&header[end..]);
        }
        let (bytes, rest) = header.split_at(end);
        header = rest;
        let name = name(bytes);
        let meta = METAS.iter().find(|(_, known)| name.eq_ignore_ascii_case(known)).map(|(meta, _)| *meta);
        Some(Field { bytes, meta })
    })
}

fn line_length(bytes: &[u8]) -> usize {
    memchr::memchr(b'\n', bytes).map_or(bytes.len(), |end| end + 1)
}

/// The name of a field; empty if it has none.
fn name(field: &[u8]) -> &[u8] {
    let line = &field[..line_length(field)];
    memchr::memchr(b':', line).map_or(b"", |colon| line[..colon].trim_ascii_end())
}

impl<'a> Field<'a> {
    /// Its lines, without their ends.
    fn lines(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        self.bytes.split_inclusive(|b| *b == b'\n').map(without_end)
    }

    /// The words of its value.
    fn words(&self) -> impl Iterator<Item = &'a [u8]> {
        let colon = memchr::memchr(b':', self.bytes).map_or(self.bytes.len(), |colon| colon + 1);
        self.bytes[colon..].split(u8::is_ascii_whitespace).filter(|word| !word.is_empty())
    }

    /// Its value, if that is one decimal number.
    fn number<N: std::str::FromStr>(&self) -> Option<N> {
        let mut words = self.words();
        let (word, None) = (words.next()?, words.next()) else { return None };
        number(word)
    }
}

fn number<N: std::str::FromStr>(word: &[u8]) -> Option<N> {
    let digits = word.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(word).ok().filter(|_| digits)?.parse().ok()
}

/// A line without LF or CR LF. A last line without LF may still have its CR.
pub fn without_end(line: &[u8]) -> &[u8] {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    line.strip_suffix(b"\r").unwrap_or(line)
}

/// Adds a line and its end, so that no CR of the line is taken for a part of the end.
pub fn push_line(text: &mut Vec<u8>, line: &[u8], end: &str) {
    text.extend_from_slice(line);
    if line.ends_with(b"\r") && end == "\n" {
        text.push(b'\r');
    }
    text.extend_from_slice(end.as_bytes());
}

/// The value of `X-IMAPbase` and `X-IMAP`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Base {
    pub uid_validity: UidValidity,
    pub last_uid: u32,
    pub keywords: Vec<Keyword>,
}

impl Base {
    fn parse(field: &Field<'_>) -> Option<Base> {
        let mut words = field.words();
        let uid_validity = UidValidity::new(number(words.next()?)?)?;
        let last_uid = number(words.next()?).filter(|last: &u32| *last < u32::MAX)?;
        let mut keywords: Vec<Keyword> = Vec::new();
        for keyword in words.filter_map(|word| Keyword::new(std::str::from_utf8(word).ok()?)) {
            if !keywords.contains(&keyword) {
                keywords.push(keyword);
            }
        }
        Some(Base { uid_validity, last_uid, keywords })
    }

    /// The value, the last UID in its ten digits.
    pub fn text(&self) -> String {
        let mut text = format!("{} {:010}", self.uid_validity, self.last_uid);
        self.keywords.iter().for_each(|keyword| {
            text.push(' ');
            text.push_str(keyword.as_str());
        });
        text
    }
}

/// What the header of a message says.
#[derive(Debug)]
pub struct Header {
    pub base: Option<Base>,
    /// The base is an `X-IMAP`: this is the pseudo message, if it is the first.
    pub is_pseudo: bool,
    pub uid: Option<u32>,
    pub uid_behind_base: bool,
    pub flags: Flags,
    pub is_old: bool,
    /// Words of each `X-Keywords`.
    pub keywords: Vec<Vec<Box<[u8]>>>,
    pub body_bytes: Option<u64>,
    /// A metadata header is there twice, or cannot be understood.
    pub is_muddled: bool,
    pub guid: MessageGuid,
    /// Bytes of what clients see of it, with LF ends, and the number of its lines.
    pub visible_bytes: u64,
    pub visible_lines: u64,
}

impl Header {
    /// Reads a header, without its empty line.
    pub fn parse(header: &[u8]) -> Header {
        let mut guid = Guid::default();
        let mut seen: Vec<Meta> = Vec::new();
        let mut read = Header {
            base: None,
            is_pseudo: false,
            uid: None,
            uid_behind_base: false,
            flags: Flags::NONE,
            is_old: false,
            keywords: Vec::new(),
            body_bytes: None,
            is_muddled: false,
            guid: MessageGuid::of_bytes(b"-"),
            visible_bytes: 0,
            visible_lines: 0,
        };
        for field in fields(header) {
            match field.meta {
                Some(meta) => {
                    let understood = read.take(meta, &field);
                    read.is_muddled |= !understood || seen.contains(&meta);
                    seen.push(meta);
                }
                None => {
                    guid.add(&field);
                    read.visible_bytes += field.lines().map(|line| line.len() as u64 + 1).sum::<u64>();
                    read.visible_lines += field.lines().count() as u64;
                }
            }
        }
        read.guid = guid.finish();
        read
    }

    /// Takes over what a metadata header says; `false` if it makes no sense.
    fn take(&mut self, meta: Meta, field: &Field<'_>) -> bool {
        let letters = |of: &[(Flags, u8)]| {
            let here = |letter: u8| field.words().any(|word| word.contains(&letter));
            of.iter().filter(|(_, letter)| here(*letter)).fold(Flags::NONE, |all, (flag, _)| all.union(*flag))
        };
        match meta {
            Meta::Base | Meta::Imap => {
                let base = Base::parse(field);
                let understood = base.is_some();
                self.is_pseudo |= understood && meta == Meta::Imap;
                self.base = self.base.take().or(base);
                return understood;
            }
            Meta::Uid => {
                let uid = field.number().filter(|uid| *uid > 0);
                // What stands in front of the base does not count in the message that has one.
                let in_front = !self.uid_behind_base && self.base.is_some();
                if uid.is_some() && (self.uid.is_none() || in_front) {
                    self.uid = uid;
                    self.uid_behind_base = self.base.is_some();
                }
                return uid.is_some();
            }
            Meta::Status => {
                self.flags = self.flags.union(letters(&STATUS));
                self.is_old |= field.words().any(|word| word.contains(&b'O'));
            }
            Meta::XStatus => self.flags = self.flags.union(letters(&X_STATUS)),
            Meta::Keywords => self.keywords.push(field.words().map(Into::into).collect()),
            Meta::Length => {
                let bytes = field.number();
                self.body_bytes = self.body_bytes.or(bytes);
                return bytes.is_some();
            }
        }
        true
    }
}

/// The GUID of a message: MD5 of what names its delivery (reference, 7.4).
#[derive(Default)]
struct Guid {
    hash: Md5,
    received: bool,
}

impl Guid {
    fn add(&mut self, field: &Field<'_>) {
        let name = name(field.bytes);
        let is = |wanted: &str| name.eq_ignore_ascii_case(wanted.as_bytes());
        let always = is("Delivered-To") || is("X-Delivery-ID");
        // The first Received says all that Date and Message-ID could say after it.
        let first = !self.received && (is("Received") || is("Date") || is("Message-ID"));
        self.received |= is("Received");
        if !always && !first {
            return;
        }
        let mut lines = field.lines();
        if let Some(line) = lines.next() {
            let value = memchr::memchr(b':', line).map_or(&line[..0], |colon| &line[colon + 1..]);
            let blanks = value.iter().take_while(|b| matches!(b, b' ' | b'\t')).count();
            self.hash.update(if blanks == value.len() { &value[blanks.min(1)..] } else { &value[blanks..] });
        }
        lines.for_each(|line| self.hash.update(line));
    }

    fn finish(self) -> MessageGuid {
        let hex: String = self.hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        MessageGuid::of_bytes(hex.as_bytes())
    }
}

/// What clients see of a header, with LF ends, without the empty line.
pub fn visible(header: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(header.len());
    for line in visible_lines(header) {
        text.extend_from_slice(line);
        text.push(b'\n');
    }
    text
}

/// The lines that clients see of a header, without their ends.
pub fn visible_lines(header: &[u8]) -> impl Iterator<Item = &[u8]> {
    fields(header).filter(|field| field.meta.is_none()).flat_map(|field| field.lines())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_is_read_in_any_case_and_folded() {
        let header =
            b"x-imapBASE: 12 0000000034 work\n Work Todo\nX-UID :  5   \nSTATUS: RO\nx-status: F\n\tA\n\
            X-Keywords: work\n  todo   \nSubject: a\n b\nContent-Length: 77\n";
        let read = Header::parse(header);
        let base = read.base.unwrap();
        assert_eq!((base.uid_validity.get(), base.last_uid, base.keywords.len()), (12, 34, 2));
        assert_eq!(base.text(), "12 0000000034 work Todo");
        assert_eq!((read.uid, read.uid_behind_base, read.is_old), (Some(5), true, true));
        assert_eq!(read.flags, Flags::SEEN.union(Flags::FLAGGED).union(Flags::ANSWERED));
        assert_eq!(read.keywords, [[Box::from(*b"work"), Box::from(*b"todo")]]);
        assert_eq!((read.body_bytes, read.is_muddled), (Some(77), false));
        assert_eq!(visible(header), b"Subject: a\n b\n");
        assert_eq!((read.visible_bytes, read.visible_lines), (14, 2));
    }

    #[test]
    fn nonsense_is_muddled() {
        for header in ["X-UID: 0\n", "X-UID: 5 6\n", "X-UID: 5\nX-UID: 6\n", "X-IMAPbase: 0 1\n", "X-UID:\n"]
        {
            assert!(Header::parse(header.as_bytes()).is_muddled, "{header}");
        }
        assert_eq!(Header::parse(b"X-UID: 5\nX-UID: 6\n").uid, Some(5));
    }
}
