//! Bodies: dot-stuffed, without a length, ended by a line with a single dot.

use bytes::{Buf, BytesMut};

use crate::BODY_PIECE_BYTES;

const END: &[u8] = b"\r\n.\r\n";

/// Stuffs one body. Also a dot that is its very first byte: both kinds of readers take that one away again.
pub struct Writer {
    line_start: bool,
}

impl Writer {
    pub fn new() -> Writer {
        Writer { line_start: true }
    }

    /// Appends the next piece of the body.
    pub fn write(&mut self, piece: &[u8], output: &mut BytesMut) {
        let mut rest = piece;
        while !rest.is_empty() {
            if self.line_start && rest[0] == b'.' {
                output.extend_from_slice(b".");
            }
            let line = memchr::memchr(b'\n', rest).map_or(rest.len(), |end| end + 1);
            output.extend_from_slice(&rest[..line]);
            self.line_start = rest[line - 1] == b'\n';
            rest = &rest[line..];
        }
    }

    /// Ends the body.
    pub fn end(self, output: &mut BytesMut) {
        output.extend_from_slice(END);
    }
}

impl Default for Writer {
    fn default() -> Self {
        Writer::new()
    }
}

/// What came of a body.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Piece {
    Bytes(BytesMut),
    End,
}

/// Takes the stuffing out of one body. Line ends come through as they are; the one before the last dot belongs to the end.
///
/// A dot at the very beginning never ends a body: the real end has a line end in front. So a sender that does not stuff it cannot be made
/// to let mail speak for it; its body loses that dot.
pub struct Reader {
    first: bool,
    line_start: bool,
    /// A line end that is the body's, unless the body ends here.
    held: &'static [u8],
}

impl Reader {
    pub fn new() -> Reader {
        Reader { first: true, line_start: true, held: b"" }
    }

    /// Takes the next piece off the front of `input`; `None` if more must come first. At most a few bytes stay behind.
    pub fn read(&mut self, input: &mut BytesMut) -> Option<Piece> {
        let mut out = BytesMut::new();
        while out.len() < BODY_PIECE_BYTES {
            if self.line_start {
                match input.as_ref() {
                    [] => break,
                    [b'.', rest @ ..] if !self.first => match rest {
                        [] | [b'\r'] => break,
                        [b'\n', ..] | [b'\r', b'\n', ..] => {
                            if !out.is_empty() {
                                // The end is told next time.
                                return Some(Piece::Bytes(out));
                            }
                            input.advance(if rest[0] == b'\n' { 2 } else { 3 });
                            return Some(Piece::End);
                        }
                        _ => input.advance(1),
                    },
                    [b'.', ..] => input.advance(1),
                    _ => {}
                }
                out.extend_from_slice(self.held);
                (self.first, self.line_start, self.held) = (false, false, b"");
            }
            match memchr::memchr(b'\n', &input[..input.len().min(BODY_PIECE_BYTES)]) {
                Some(end) => {
                    let crlf = end > 0 && input[end - 1] == b'\r';
                    out.extend_from_slice(&input[..if crlf { end - 1 } else { end }]);
                    input.advance(end + 1);
                    self.held = if crlf { b"\r\n" } else { b"\n" };
                    self.line_start = true;
                }
                None => {
                    let long = input.len().min(BODY_PIECE_BYTES);
                    // A CR at the end may be half of a line end.
                    let whole = if input[..long].ends_with(b"\r") { long - 1 } else { long };
                    if whole == 0 {
                        break;
                    }
                    out.extend_from_slice(&input[..whole]);
                    input.advance(whole);
                }
            }
        }
        if out.is_empty() { None } else { Some(Piece::Bytes(out)) }
    }
}

impl Default for Reader {
    fn default() -> Self {
        Reader::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(wire: &[u8], at_once: usize) -> (Vec<u8>, bool, usize) {
        let (mut reader, mut input, mut body) = (Reader::new(), BytesMut::new(), Vec::new());
        let mut ended = false;
        for chunk in wire.chunks(at_once) {
            input.extend_from_slice(chunk);
            while !ended && let Some(piece) = reader.read(&mut input) {
                match piece {
                    Piece::Bytes(bytes) => body.extend_from_slice(&bytes),
                    Piece::End => ended = true,
                }
            }
        }
        (body, ended, input.len())
    }

    #[test]
    fn every_body_comes_back_however_it_is_cut() {
        let bodies: &[&[u8]] = &[
            b"",
            b".",
            b"..",
            b".\n",
            b"\n.\n",
            b"\r\n.\r\n",
            b"a\n.\nb\n",
            b"a\r.\r\nb",
            b"text\r",
            b"text\r\n",
            b"no end",
            b"\n\n",
            b"\0\xff\r\r\n..x\n",
        ];
        for body in bodies {
            let mut wire = BytesMut::new();
            for size in [1, 2, 1000] {
                wire.clear();
                let mut writer = Writer::new();
                body.chunks(size).for_each(|piece| writer.write(piece, &mut wire));
                writer.end(&mut wire);
                for at_once in [1, 2, 3, 1000] {
                    assert_eq!(read(&wire, at_once), (body.to_vec(), true, 0), "{body:?} by {at_once}");
                }
            }
        }
    }

    #[test]
    fn ends_of_all_kinds() {
        for (wire, body) in [
            (&b"text\r\n.\r\n"[..], &b"text"[..]),
            (b"text\n\r\n.\r\n", b"text\n"),
            (b"text\n.\n", b"text"),
            (b"\r\n.\r\n", b""),
            // From a sender that does not stuff the first dot: no end, and the dot is lost.
            (b".\r\nX\n\r\n.\r\n", b"\r\nX\n"),
        ] {
            assert_eq!(read(wire, 1), (body.to_vec(), true, 0), "{wire:?}");
        }
    }
}
