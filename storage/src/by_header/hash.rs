//! What a message is known by where GUIDs are missing: a hash of its header.
//!
//! As in Dovecot it is the MD5 of its `Date` and `Message-ID` (protocol reference, 10.3, version 3). A message without `Message-ID` is
//! known by all that it says, so that two messages of one second stay two.

use std::io::{self, BufRead, BufReader, Read};

use dsync_model::MessageGuid;
use md5::{Digest, Md5};

/// Headers that belong to an mbox, and are lost when a message is saved to one.
const LOST: [&[u8]; 7] =
    [b"X-IMAPbase", b"X-IMAP", b"X-UID", b"Status", b"X-Status", b"X-Keywords", b"Content-Length"];
/// A longer line is looked at in pieces of this length.
const PIECE_BYTES_MAX: u64 = 64 << 10;
/// From here on a header is taken for body.
const HEADER_BYTES_MAX: u64 = 8 << 20;

/// Reads as much of a message as it takes to know it again: its header, and without a `Message-ID` all of it.
pub fn of(message: impl Read) -> io::Result<MessageGuid> {
    let mut message = BufReader::with_capacity(8 << 10, message);
    let (mut named, mut whole) = (Filtered::default(), Text::default());
    let mut has_id = false;
    let mut field = Field::Other;
    read_header(&mut message, |begins, piece| {
        if begins {
            field = Field::of(piece);
        }
        match field {
            Field::Named { id } => {
                let value = if id { value(piece) } else { &[] };
                has_id |= value.iter().any(|byte| !byte.is_ascii_whitespace());
                named.add(piece);
                whole.add(piece);
            }
            Field::Lost => {}
            Field::Other => whole.add(piece),
        }
    })?;
    if has_id {
        return Ok(named.finish());
    }
    loop {
        let text = message.fill_buf()?;
        if text.is_empty() {
            return Ok(whole.finish());
        }
        whole.add(text);
        let length = text.len();
        message.consume(length);
    }
}

/// How a Dovecot compares messages that have no GUIDs in common: by the MD5 of some fields of the header (protocol reference, 10.3).
/// Two messages that have none of them are one to it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HeaderHash {
    /// Names of the fields, in any case.
    pub names: Vec<Vec<u8>>,
    /// Spaces and odd bytes do not count (version 3); else every byte does (version 1).
    pub is_filtered: bool,
}

impl HeaderHash {
    /// The hash of a message, of which no more than the header is read.
    pub fn of(&self, message: impl Read) -> io::Result<MessageGuid> {
        let mut message = BufReader::with_capacity(8 << 10, message);
        let mut hash = Filtered { is_off: !self.is_filtered, ..Filtered::default() };
        let mut is_named = false;
        read_header(&mut message, |begins, piece| {
            if begins {
                let name = name(piece);
                is_named = self.names.iter().any(|named| named.eq_ignore_ascii_case(name));
            }
            if is_named {
                hash.add(piece);
            }
        })?;
        Ok(hash.finish())
    }
}

/// Passes on the lines of a header, long ones in pieces, and whether a field begins there; stops behind it.
fn read_header(message: &mut impl BufRead, mut each: impl FnMut(bool, &[u8])) -> io::Result<()> {
    let (mut is_line_start, mut bytes) = (true, 0);
    let mut piece = Vec::new();
    while bytes < HEADER_BYTES_MAX {
        piece.clear();
        let read = message.by_ref().take(PIECE_BYTES_MAX).read_until(b'\n', &mut piece)?;
        bytes += read as u64;
        if piece.is_empty() || is_line_start && matches!(piece.as_slice(), b"\n" | b"\r\n") {
            break;
        }
        each(is_line_start && !matches!(piece[0], b' ' | b'\t'), &piece);
        is_line_start = piece.ends_with(b"\n");
    }
    Ok(())
}

/// The name of the field that begins with this line.
fn name(line: &[u8]) -> &[u8] {
    memchr::memchr(b':', line).map_or(&b""[..], |colon| line[..colon].trim_ascii_end())
}

#[derive(Clone, Copy)]
enum Field {
    Named {
        id: bool,
    },
    /// Does not arrive everywhere as it was.
    Lost,
    Other,
}

impl Field {
    fn of(line: &[u8]) -> Field {
        // An mbox would take it for the next message, and has a `>` in front of it.
        if line.starts_with(b"From ") || line.starts_with(b">From ") {
            return Field::Lost;
        }
        let name = name(line);
        let is = |wanted: &[u8]| name.eq_ignore_ascii_case(wanted);
        match () {
            () if is(b"Message-ID") => Field::Named { id: true },
            () if is(b"Date") => Field::Named { id: false },
            () if LOST.into_iter().any(is) => Field::Lost,
            () => Field::Other,
        }
    }
}

/// What is behind the colon; all of a line that continues another.
fn value(line: &[u8]) -> &[u8] {
    match memchr::memchr(b':', line) {
        Some(colon) if !matches!(line[0], b' ' | b'\t') => &line[colon + 1..],
        _ => line,
    }
}

/// MD5 over header lines as Dovecot's version 3 has it: odd bytes are one `?`, spaces are left out, lines end with LF.
#[derive(Default)]
struct Filtered {
    hash: Md5,
    is_odd: bool,
    /// Every byte counts.
    is_off: bool,
}

impl Filtered {
    fn add(&mut self, piece: &[u8]) {
        let ended = piece.strip_suffix(b"\n");
        let line = ended.map_or(piece, |line| line.strip_suffix(b"\r").unwrap_or(line));
        let mut text = Vec::with_capacity(piece.len());
        for byte in line {
            let is_odd = !matches!(byte, b'\t' | 0x20..=0x7e) || *byte == b'?';
            match byte {
                _ if self.is_off => text.push(*byte),
                b' ' => {}
                _ if is_odd && self.is_odd => {}
                _ => text.push(if is_odd { b'?' } else { *byte }),
            }
            self.is_odd = is_odd;
        }
        if ended.is_some() {
            text.push(b'\n');
            self.is_odd = false;
        }
        self.hash.update(text);
    }

    fn finish(mut self) -> MessageGuid {
        self.hash.update(b"\n");
        hex(&self.hash.finalize())
    }
}

/// MD5 over a message, but for what formats change: CR, line ends at the end.
#[derive(Default)]
struct Text {
    hash: Md5,
    line_ends: usize,
}

impl Text {
    fn add(&mut self, piece: &[u8]) {
        for part in piece.split_inclusive(|byte| matches!(byte, b'\r' | b'\n')) {
            let text = part.strip_suffix(b"\n").or(part.strip_suffix(b"\r")).unwrap_or(part);
            if !text.is_empty() {
                (0..std::mem::take(&mut self.line_ends)).for_each(|_| self.hash.update(b"\n"));
                self.hash.update(text);
            }
            self.line_ends += usize::from(part.ends_with(b"\n"));
        }
    }

    fn finish(self) -> MessageGuid {
        hex(&self.hash.finalize())
    }
}

fn hex(hash: &[u8]) -> MessageGuid {
    let text: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    MessageGuid::of_bytes(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(message: &str) -> String {
        of(message.as_bytes()).unwrap().to_string()
    }

    #[test]
    fn a_hash_is_that_of_dovecot() {
        // Sent by Dovecot 2.3.19 for this message.
        let header =
            "From: a@example.test\nDate: Mon, 06 Jan 2025 10:00:00 +0000\nMessage-ID: <m1@example.test>\n";
        assert_eq!(hash(&format!("{header}\nHello\n")), "7bbf66ad6efc4229f749818885b0d0e8");
        let crlf = format!("{header}X: y\nStatus: RO\n\nanother body").replace('\n', "\r\n");
        assert_eq!(hash(&crlf), "7bbf66ad6efc4229f749818885b0d0e8");
    }

    #[test]
    fn any_headers_can_be_what_is_compared() {
        let hash = |names: &[&str], is_filtered, message: &str| {
            let names = names.iter().map(|name| name.as_bytes().to_vec()).collect();
            HeaderHash { names, is_filtered }.of(message.as_bytes()).unwrap().to_string()
        };
        let usual = ["date", "Message-Id"];
        let header =
            "Date: Mon, 06 Jan 2025 10:00:00 +0000\r\nTo: x\r\nMessage-ID: <m1@example.test>\r\n\r\n";
        assert_eq!(hash(&usual, true, header), "7bbf66ad6efc4229f749818885b0d0e8");
        // MD5 of one line end: none of them is there.
        for message in ["", "To: x\n\nDate: y\n", "\nDate: y\n"] {
            assert_eq!(hash(&usual, true, message), "68b329da9893e34099c7d8ad5cb9c940");
        }
        assert_ne!(hash(&usual, false, header), hash(&usual, true, header));
        assert_eq!(hash(&usual, false, "Date:  a\n"), hash(&["Date"], false, "To: x\nDate:  a\r\n\r\n"));
        assert_eq!(hash(&["To"], true, "To: a\n b\nCc: c\n"), hash(&["To"], true, "Cc: d\nTo:a\n  b\n"));
    }

    #[test]
    fn odd_bytes_and_spaces_of_a_header_do_not_matter() {
        let with = |subject: &str| hash(&format!("message-id: <{subject}>\n\n"));
        assert_eq!(with("a b"), with("ab"));
        assert_eq!(with("ä"), with("?"));
        assert_ne!(with("ä b"), with("äb?"));
        assert_ne!(with("ab"), with("a\n\tb"));
    }

    #[test]
    fn a_message_without_message_id_is_known_by_all_it_says() {
        let same =
            ["Date: x\nA: b\n\nbody\n", "Date: x\r\nStatus: RO\r\nA: b\r\nX-UID: 7\r\n\r\nbody\r\n\r\n"];
        assert_eq!(hash(same[0]), hash(same[1]));
        assert_eq!(
            hash("A: b\nFrom x@y  Mon Feb 05 10:00:00 2024\n"),
            hash("A: b\n>From x@y  Mon Feb 05 10:00:00 2024")
        );
        for other in ["Date: x\nA: b\n\nbodies\n", "Date: x\n\nbody\n", "", "\nbody\n", "\n\n\nbody\n"] {
            assert_ne!(hash(same[0]), hash(other), "{other:?}");
        }
        assert_ne!(hash("Message-ID:\nDate: x\n\na"), hash("Message-ID:\nDate: x\n\nb"));
    }

    #[test]
    fn pieces_do_not_matter() {
        let long = "x".repeat(3 * PIECE_BYTES_MAX as usize);
        assert_ne!(hash(&format!("Message-ID: {long}1\n\n")), hash(&format!("Message-ID: {long}2\n\n")));
        let text = format!("A: {long}\nMessage-ID: <a>\n\n");
        assert_eq!(hash(&text), hash("Message-ID: <a>\n\n"));
        let body = "\r\n".repeat(9000) + "x\n";
        assert_eq!(
            hash(&format!("A: b\n\n{body}")),
            hash(&format!("A: b\r\n\r\n{}", body.replace('\r', "")))
        );
    }
}
