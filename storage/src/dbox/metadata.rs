//! What a dbox file keeps of a message behind its body: date, sizes, GUID, POP3 names, attachments.

use dsync_model::{MessageGuid, Timestamp};

use super::attachment::{self, Attachment};

/// Largest block of metadata that is read: ten thousand attachments fit.
pub const BYTES_MAX: usize = 1 << 20;
const MAGIC: &[u8] = b"\n\x01\x03\n";

/// The metadata of a message. What is missing, or cannot be read, is `None`; such a line is kept in `other`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Metadata {
    /// `Z`: size of the whole message, where the stored body has another.
    pub physical_size: Option<u64>,
    /// `R`: IMAP INTERNALDATE.
    pub received: Option<Timestamp>,
    /// `V`: size with all line ends as CRLF.
    pub virtual_size: Option<u64>,
    /// `P`
    pub pop3_uidl: Option<Box<str>>,
    /// `O`
    pub pop3_order: Option<u32>,
    /// `G`: 32 hex digits, or any text where the message came from another format.
    pub guid: Option<MessageGuid>,
    /// `B`: name on disk of the mailbox into which mdbox saved it first.
    pub mailbox: Option<Box<[u8]>>,
    /// `X`
    pub attachments: Vec<Attachment>,
    /// Lines that mean nothing to us, with their key.
    pub other: Vec<Box<[u8]>>,
}

impl Metadata {
    /// Reads a block from its magic to its empty line. Of two lines with one key, the first counts, as with Dovecot.
    pub fn parse(block: &[u8]) -> Result<Metadata, &'static str> {
        let lines = block.strip_prefix(MAGIC).ok_or("no metadata follow the body")?;
        let mut metadata = Metadata::default();
        let mut has_attachments = false;
        for line in lines.split(|b| *b == b'\n').take_while(|line| !is_last(line)) {
            let (key, value) = (line[0], &line[1..]);
            let taken = match key {
                b'Z' => set(&mut metadata.physical_size, hex(value)),
                b'R' => set(&mut metadata.received, hex(value).map(|seconds| Timestamp(seconds as i64))),
                b'V' => set(&mut metadata.virtual_size, hex(value)),
                b'P' => {
                    set(&mut metadata.pop3_uidl, text(value).filter(|_| fits_a_line(value)).map(Box::from))
                }
                b'O' => set(&mut metadata.pop3_order, decimal(value).and_then(|order| order.try_into().ok())),
                b'G' => set(&mut metadata.guid, text(value).and_then(MessageGuid::new)),
                b'B' => set(&mut metadata.mailbox, fits_a_line(value).then(|| value.into())),
                // Without them the body would be another: what cannot be read is an error.
                b'X' if !has_attachments => {
                    metadata.attachments = attachment::parse(value)?;
                    has_attachments = true;
                    true
                }
                _ => false,
            };
            if !taken {
                metadata.other.push(line.into());
            }
        }
        Ok(metadata)
    }

    /// The block as Dovecot writes it: from the magic to the empty line, keys in its order.
    ///
    /// A UIDL or mailbox name that would break the line is left out.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut block = MAGIC.to_vec();
        let mut line = |key: char, value: &[u8]| {
            if fits_a_line(value) {
                block.extend_from_slice(key.encode_utf8(&mut [0; 4]).as_bytes());
                block.extend_from_slice(value);
                block.push(b'\n');
            }
        };
        if let Some(size) = self.physical_size {
            line('Z', format!("{size:x}").as_bytes());
        }
        if let Some(Timestamp(seconds)) = self.received {
            line('R', format!("{seconds:x}").as_bytes());
        }
        if let Some(size) = self.virtual_size {
            line('V', format!("{size:x}").as_bytes());
        }
        if let Some(uidl) = &self.pop3_uidl {
            line('P', uidl.as_bytes());
        }
        if let Some(order) = self.pop3_order {
            line('O', order.to_string().as_bytes());
        }
        if let Some(guid) = &self.guid {
            line('G', guid.as_str().as_bytes());
        }
        if let Some(mailbox) = &self.mailbox {
            line('B', mailbox);
        }
        if !self.attachments.is_empty() {
            line('X', attachment::to_text(&self.attachments).as_bytes());
        }
        for other in &self.other {
            block.extend_from_slice(other);
            block.push(b'\n');
        }
        block.push(b'\n');
        block
    }
}

/// Bytes of the block at the beginning of `bytes`; `None`: it goes on beyond them.
pub(super) fn block_length(bytes: &[u8]) -> Result<Option<usize>, &'static str> {
    let begun = bytes.len().min(MAGIC.len());
    if bytes[..begun] != MAGIC[..begun] {
        return Err("no metadata follow the body");
    }
    let mut start = MAGIC.len();
    while let Some(length) = bytes.get(start..).and_then(|rest| memchr::memchr(b'\n', rest)) {
        let last = is_last(&bytes[start..start + length]);
        start += length + 1;
        if last {
            return Ok(Some(start));
        }
    }
    Ok(None)
}

/// A number in hex digits of either case.
pub(super) fn hex(digits: &[u8]) -> Option<u64> {
    let digits = text(digits).filter(|text| text.bytes().all(|b| b.is_ascii_hexdigit()))?;
    u64::from_str_radix(digits, 16).ok()
}

/// A number in decimal digits.
pub(super) fn decimal(digits: &[u8]) -> Option<u64> {
    text(digits).filter(|text| text.bytes().all(|b| b.is_ascii_digit()))?.parse().ok()
}

/// The empty line; version 1 of the format filled the block up with spaces.
fn is_last(line: &[u8]) -> bool {
    matches!(line.first(), None | Some(b' '))
}

/// Says whether Dovecot would read a value as we write it.
fn fits_a_line(value: &[u8]) -> bool {
    !value.iter().any(|b| matches!(b, b'\n' | b'\r' | 0))
}

/// Sets what is not set. `false`: nothing was done.
fn set<T>(field: &mut Option<T>, value: Option<T>) -> bool {
    let done = field.is_none() && value.is_some();
    if done {
        *field = value;
    }
    done
}

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn real_metadata_are_written_as_they_were_read() {
        for block in [
            "\n\x01\x03\nR65bb81a8\nVd4\nG01b40f37de49046b8a14000087ad316d\nBINBOX\n\n",
            "\n\x01\x03\nR65d099b8\nV57\nG68581f16d849046ba313000087ad316d\n\n",
            "\n\x01\x03\nZ2087\nR1\nV2133\nPold-uidl 7\nO17\nG0\nBWork/Sub\nX208 8111 B72 8c/28/8c28-27 8400 5 CB76 a/b 8500 1 - c\nqunknown\n\n",
            "\n\x01\x03\n\n",
        ] {
            assert_eq!(block_length(format!("{block}\x01\x02N").as_bytes()), Ok(Some(block.len())));
            let metadata = Metadata::parse(block.as_bytes()).expect("valid");
            assert_eq!(metadata.to_bytes(), block.as_bytes(), "{metadata:?}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_kept_as_it_is() {
        let block = b"\n\x01\x03\nVzz\nR11111111111111111\nO-1\nG\nP\xff\nV5\nV6\n\n";
        let metadata = Metadata::parse(block).expect("valid");
        assert_eq!((metadata.virtual_size, metadata.received, metadata.pop3_order), (Some(5), None, None));
        assert_eq!(metadata.other.len(), 6);
        let before = Timestamp(-5);
        let early = Metadata { received: Some(before), ..Metadata::default() };
        assert_eq!(Metadata::parse(&early.to_bytes()).expect("valid").received, Some(before));
    }

    #[test]
    fn a_value_never_becomes_two_lines() {
        let metadata = Metadata { pop3_uidl: Some("x\n\nGforged".into()), ..Metadata::default() };
        assert_eq!(metadata.to_bytes(), b"\n\x01\x03\n\n");
    }

    #[test]
    fn cut_blocks_are_incomplete_and_other_bytes_are_none() {
        let block = b"\n\x01\x03\nR1\nGa\n\n";
        for length in 0..block.len() {
            assert_eq!(block_length(&block[..length]), Ok(None), "{length}");
        }
        assert!(block_length(b"\n\x01\x02\n").is_err());
        assert!(Metadata::parse(b"\n\x01\x03\nX1 2 B72\n\n").is_err());
    }
}
