//! The bytes of `dovecot.index.log`: its header, record headers, type words (storage formats reference, 4.1 to 4.3).
//!
//! Little-endian. What records mean is in [`state`](super::state), what they are made from in
//! [`transaction`](super::transaction).

use super::state::MODSEQ_MAX;

/// Bytes of a log header as we write it.
pub const LOG_HEADER_BYTES: usize = 40;
/// Shortest log header that is read.
const LOG_HEADER_BYTES_MIN: usize = 24;
/// Bytes of a record header: size and type word.
pub const RECORD_HEADER_BYTES: usize = 8;

const MAJOR: u8 = 1;
/// Minor version of the logs that we write.
pub const MINOR: u8 = 3;
const LITTLE_ENDIAN: u8 = 1;

/// The record describes what has already happened in the mailbox; without it, it is a request.
pub const EXTERNAL: u32 = 0x1000_0000;
const TYPE_MASK: u32 = 0x0fff_ffff;
/// Both bits flags of a mail that a flag record changes and that count for MODSEQ.
pub const FLAGS_MASK: u8 = 0x1f;

/// Types of records, as the masked type word has them.
pub mod kind {
    pub const EXPUNGE: u32 = 0xcd91;
    pub const APPEND: u32 = 0x2;
    pub const FLAG_UPDATE: u32 = 0x4;
    pub const HEADER_UPDATE: u32 = 0x20;
    pub const EXT_INTRO: u32 = 0x40;
    pub const EXT_RESET: u32 = 0x80;
    pub const EXT_HDR_UPDATE: u32 = 0x100;
    pub const EXT_REC_UPDATE: u32 = 0x200;
    pub const KEYWORD_UPDATE: u32 = 0x400;
    pub const KEYWORD_RESET: u32 = 0x800;
    pub const EXT_ATOMIC_INC: u32 = 0x1000;
    pub const EXPUNGE_GUID: u32 = 0xed90;
    pub const MODSEQ_UPDATE: u32 = 0x8000;
    pub const EXT_HDR_UPDATE32: u32 = 0x1_0000;
    pub const INDEX_DELETED: u32 = 0x2_0000;
    pub const INDEX_UNDELETED: u32 = 0x4_0000;
    pub const BOUNDARY: u32 = 0x8_0000;
    pub const ATTRIBUTE_UPDATE: u32 = 0x10_0000;
}

/// Header of one log file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogHeader {
    pub minor: u8,
    pub header_bytes: u16,
    /// 0: the log was declared broken.
    pub index_id: u32,
    pub sequence: u32,
    /// 0: this log starts the index.
    pub previous_sequence: u32,
    pub previous_offset: u32,
    pub created: u32,
    pub initial_modseq: u64,
}

impl LogHeader {
    /// The header of a log that starts an index.
    pub fn first(index_id: u32) -> LogHeader {
        LogHeader {
            minor: MINOR,
            header_bytes: LOG_HEADER_BYTES as u16,
            index_id,
            sequence: 2,
            previous_sequence: 0,
            previous_offset: 0,
            created: index_id,
            initial_modseq: 1,
        }
    }

    /// Reads the header at the beginning of a log; the error says what is wrong with it.
    pub fn parse(bytes: &[u8]) -> Result<LogHeader, &'static str> {
        if bytes.len() < LOG_HEADER_BYTES_MIN {
            return Err("log is shorter than its header");
        }
        if bytes[0] != MAJOR {
            return Err("log has an unknown major version");
        }
        let header_bytes = u16_at(bytes, 2);
        let size = usize::from(header_bytes);
        if size < LOG_HEADER_BYTES_MIN || size > bytes.len() || !size.is_multiple_of(4) {
            return Err("log has an impossible header size");
        }
        let header = &bytes[..size];
        let minor = header[1];
        if minor >= 2 && header.get(32).is_some_and(|flags| flags & LITTLE_ENDIAN == 0) {
            return Err("log was written on a big-endian machine");
        }
        let sequence = u32_at(header, 8);
        let initial_modseq = if size >= 32 { u64_at(header, 24) } else { 0 };
        if sequence == u32::MAX || initial_modseq > MODSEQ_MAX {
            return Err("log has an impossible sequence number or modseq");
        }
        Ok(LogHeader {
            minor,
            header_bytes,
            index_id: u32_at(header, 4),
            sequence,
            previous_sequence: u32_at(header, 12),
            previous_offset: u32_at(header, 16),
            created: u32_at(header, 20),
            initial_modseq,
        })
    }

    pub fn to_bytes(self) -> [u8; LOG_HEADER_BYTES] {
        let mut bytes = [0; LOG_HEADER_BYTES];
        bytes[0] = MAJOR;
        bytes[1] = MINOR;
        bytes[2..4].copy_from_slice(&(LOG_HEADER_BYTES as u16).to_le_bytes());
        let fields =
            [self.index_id, self.sequence, self.previous_sequence, self.previous_offset, self.created];
        for (i, field) in fields.into_iter().enumerate() {
            bytes[4 + 4 * i..8 + 4 * i].copy_from_slice(&field.to_le_bytes());
        }
        bytes[24..32].copy_from_slice(&self.initial_modseq.to_le_bytes());
        bytes[32] = LITTLE_ENDIAN;
        bytes
    }
}

/// One record of a log.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// Type, without the bits around it.
    pub kind: u32,
    pub external: bool,
    pub payload: &'a [u8],
    /// Where the record ends in the bytes that were walked.
    pub end: usize,
}

/// Walks the records of a log that are written completely, and stops silently before the first that is not
/// (size not yet there, cut off, or part of a transaction that is cut off).
pub struct Records<'a> {
    bytes: &'a [u8],
    at: usize,
    /// End of the transaction that a boundary record announced and that is known to be whole.
    whole_to: usize,
}

impl<'a> Records<'a> {
    /// `bytes` is the log from its first byte; records begin at `from`.
    pub fn new(bytes: &'a [u8], from: usize) -> Records<'a> {
        Records { bytes, at: from, whole_to: 0 }
    }

    /// Where the walk stands: after the last whole record.
    pub fn position(&self) -> usize {
        self.at
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Record<'a>;

    fn next(&mut self) -> Option<Record<'a>> {
        let rest = self.bytes.get(self.at..)?;
        let size = decode_size(rest.get(..4)?)?;
        if size < RECORD_HEADER_BYTES || size > rest.len() {
            return None;
        }
        let word = u32_at(rest, 4);
        let kind = word & TYPE_MASK;
        let payload = &rest[RECORD_HEADER_BYTES..size];
        if kind == kind::BOUNDARY && self.at >= self.whole_to {
            let whole = payload.get(..4).map(|_| u32_at(payload, 0) as usize)?;
            if whole < size || whole > rest.len() {
                return None;
            }
            // Each record of the transaction must be there too.
            let mut inner =
                Records { bytes: &self.bytes[..self.at + whole], at: self.at + size, whole_to: usize::MAX };
            inner.by_ref().for_each(drop);
            if inner.at != self.at + whole {
                return None;
            }
            self.whole_to = self.at + whole;
        }
        self.at += size;
        Some(Record { kind, external: word & EXTERNAL != 0, payload, end: self.at })
    }
}

/// Encodes the size of a record: seven bits a byte of a quarter of it, each byte marked.
pub fn encode_size(bytes: usize) -> [u8; 4] {
    let v = (bytes / 4) as u32;
    [v >> 21, v >> 14, v >> 7, v].map(|part| 0x80 | (part & 0x7f) as u8)
}

/// `None`: not written yet.
fn decode_size(bytes: &[u8]) -> Option<usize> {
    let marked = bytes.iter().all(|byte| byte & 0x80 != 0);
    marked.then(|| 4 * bytes.iter().fold(0, |size, byte| size << 7 | usize::from(byte & 0x7f)))
}

/// Reads a number whose bytes the caller knows to be there.
pub fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// Reads a number whose bytes the caller knows to be there.
pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Reads a number whose bytes the caller knows to be there.
pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_as_the_reference_shows_them() {
        assert_eq!(encode_size(36), [0x80, 0x80, 0x80, 0x89]);
        assert_eq!(encode_size(512), [0x80, 0x80, 0x81, 0x80]);
        assert_eq!(decode_size(&encode_size(1 << 29)), Some(1 << 29));
        assert_eq!(decode_size(&[0, 0, 0, 9]), None);
    }

    #[test]
    fn headers_come_back() {
        let header =
            LogHeader { sequence: 4, previous_sequence: 3, previous_offset: 164, ..LogHeader::first(77) };
        assert_eq!(LogHeader::parse(&header.to_bytes()), Ok(header));
        assert!(LogHeader::parse(&[1, 3, 40, 0]).is_err());
    }
}
