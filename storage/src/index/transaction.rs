//! Records to be appended to a log as one transaction (storage formats reference, 4.2, 4.3).

use dsync_model::AttributeRecords;

use super::format::{EXTERNAL, RECORD_HEADER_BYTES, encode_size, kind};
use super::state::Extension;

/// Bytes that the boundary record takes in front of a transaction of several records.
const BOUNDARY_BYTES: usize = 12;

/// Records in the order in which they are to be carried out. Empty lists make no record.
#[derive(Clone, Default, Debug)]
pub struct Transaction {
    bytes: Vec<u8>,
    records: usize,
    /// What is written are requests, which the mailbox still has to carry out.
    request: bool,
}

impl Transaction {
    /// What has already happened in the mailbox.
    pub fn new() -> Transaction {
        Transaction::default()
    }

    /// What is still to be carried out: the map of mdbox writes so.
    pub fn requests() -> Transaction {
        Transaction { request: true, ..Transaction::default() }
    }

    pub fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// Puts the records of another transaction behind these.
    pub fn extend(&mut self, other: Transaction) {
        self.bytes.extend_from_slice(&other.bytes);
        self.records += other.records;
    }

    /// Messages with these UIDs and flags, ascending.
    pub fn append(&mut self, mails: &[(u32, u8)]) {
        let entries = mails.iter().map(|(uid, flags)| {
            let mut entry = [0; 8];
            entry[..4].copy_from_slice(&uid.to_le_bytes());
            entry[4] = *flags;
            entry
        });
        self.record(kind::APPEND, &entries.flatten().collect::<Vec<u8>>());
    }

    /// Flags added to and removed from ranges of UIDs (both ends included), ascending.
    pub fn flags(&mut self, ranges: &[(u32, u32)], add: u8, remove: u8) {
        let entries = ranges.iter().flat_map(|range| {
            let mut entry = pair(range.0, range.1).to_vec();
            entry.extend_from_slice(&[add, remove, 0, 0]);
            entry
        });
        self.record(kind::FLAG_UPDATE, &entries.collect::<Vec<u8>>());
    }

    /// A keyword added to or removed from ranges of UIDs (both ends included), ascending.
    pub fn keyword(&mut self, name: &str, add: bool, ranges: &[(u32, u32)]) {
        if ranges.is_empty() {
            return;
        }
        let mut payload = vec![u8::from(!add), 0];
        payload.extend_from_slice(&(name.len() as u16).to_le_bytes());
        payload.extend_from_slice(name.as_bytes());
        payload.resize(payload.len().next_multiple_of(4), 0);
        payload.extend(ranges.iter().flat_map(|range| pair(range.0, range.1)));
        self.record(kind::KEYWORD_UPDATE, &payload);
    }

    /// Messages that are gone: UID and the 128 bits of the GUID, ascending.
    pub fn expunge(&mut self, mails: &[(u32, [u8; 16])]) {
        let entries = mails.iter().flat_map(|(uid, guid)| {
            let mut entry = uid.to_le_bytes().to_vec();
            entry.extend_from_slice(guid);
            entry
        });
        self.record(kind::EXPUNGE_GUID, &entries.collect::<Vec<u8>>());
    }

    /// Raises the modseqs of messages, and HIGHESTMODSEQ with them.
    pub fn modseqs(&mut self, mails: &[(u32, u64)]) {
        let entries = mails.iter().flat_map(|(uid, modseq)| {
            let mut entry = uid.to_le_bytes().to_vec();
            entry.extend_from_slice(&modseq.to_le_bytes());
            entry
        });
        self.record(kind::MODSEQ_UPDATE, &entries.collect::<Vec<u8>>());
    }

    /// Bytes of the base header, written over at this offset.
    pub fn header(&mut self, at: u16, data: &[u8]) {
        self.record(kind::HEADER_UPDATE, &update(at, data));
    }

    /// Names the extension that the next records are about, in the sizes that it has.
    pub fn introduce(&mut self, id: Option<usize>, extension: &Extension) {
        let name = if id.is_some() { "" } else { &extension.name };
        let mut payload = id.map_or(u32::MAX, |id| id as u32).to_le_bytes().to_vec();
        payload.extend_from_slice(&extension.reset_id.to_le_bytes());
        payload.extend_from_slice(&(extension.header_bytes as u32).to_le_bytes());
        for field in [extension.record_bytes as u16, extension.align, 1, name.len() as u16] {
            payload.extend_from_slice(&field.to_le_bytes());
        }
        payload.extend_from_slice(name.as_bytes());
        payload.resize(payload.len().next_multiple_of(4), 0);
        self.record(kind::EXT_INTRO, &payload);
    }

    /// Header data of the introduced extension, written over at this offset.
    pub fn ext_header(&mut self, at: u16, data: &[u8]) {
        self.record(kind::EXT_HDR_UPDATE, &update(at, data));
    }

    /// The same for a header of any size.
    pub fn ext_header32(&mut self, at: u32, data: &[u8]) {
        let (Ok(small), Ok(_)) = (u16::try_from(at), u16::try_from(data.len())) else {
            let mut payload = at.to_le_bytes().to_vec();
            payload.extend_from_slice(&(data.len() as u32).to_le_bytes());
            payload.extend_from_slice(data);
            payload.resize(payload.len().next_multiple_of(4), 0);
            return self.record(kind::EXT_HDR_UPDATE32, &payload);
        };
        self.ext_header(small, data);
    }

    /// Data of messages, each as many bytes as the intro told.
    pub fn ext_records<'a>(&mut self, mails: impl IntoIterator<Item = (u32, &'a [u8])>) {
        let mut payload = Vec::new();
        for (uid, data) in mails {
            payload.extend_from_slice(&uid.to_le_bytes());
            payload.extend_from_slice(data);
            payload.resize(payload.len().next_multiple_of(4), 0);
        }
        self.record(kind::EXT_REC_UPDATE, &payload);
    }

    /// Adds to the numbers that the introduced extension keeps for messages.
    pub fn increments(&mut self, mails: &[(u32, i32)]) {
        let entries = mails.iter().flat_map(|(uid, by)| pair(*uid, *by as u32));
        self.record(kind::EXT_ATOMIC_INC, &entries.collect::<Vec<u8>>());
    }

    /// Attributes of the mailbox that were set or removed, a record each; `now` in seconds since 1970.
    pub fn attributes(&mut self, records: &AttributeRecords, now: u32) {
        for (key, change) in records {
            // As Dovecot writes it: there is nothing to be carried out in either case.
            push(&mut self.bytes, kind::ATTRIBUTE_UPDATE, &super::attributes::record(key, change, now));
            self.records += 1;
        }
    }

    /// The mailbox is deleted.
    pub fn deleted(&mut self) {
        self.record(kind::INDEX_DELETED, &[0; 4]);
    }

    fn record(&mut self, kind: u32, payload: &[u8]) {
        if payload.is_empty() {
            return;
        }
        let external = if self.request { 0 } else { EXTERNAL };
        push(&mut self.bytes, kind | external, payload);
        self.records += 1;
    }

    /// The bytes to append in one write: a boundary in front where there are several records.
    pub fn into_bytes(self) -> Vec<u8> {
        if self.records < 2 {
            return self.bytes;
        }
        let mut bytes = Vec::with_capacity(BOUNDARY_BYTES + self.bytes.len());
        let whole = (BOUNDARY_BYTES + self.bytes.len()) as u32;
        push(&mut bytes, kind::BOUNDARY | EXTERNAL, &whole.to_le_bytes());
        bytes.extend_from_slice(&self.bytes);
        bytes
    }
}

fn push(bytes: &mut Vec<u8>, word: u32, payload: &[u8]) {
    let size = RECORD_HEADER_BYTES + payload.len();
    debug_assert!(size.is_multiple_of(4));
    bytes.extend_from_slice(&encode_size(size));
    bytes.extend_from_slice(&word.to_le_bytes());
    bytes.extend_from_slice(payload);
}

fn pair(first: u32, second: u32) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&first.to_le_bytes());
    bytes[4..].copy_from_slice(&second.to_le_bytes());
    bytes
}

fn update(at: u16, data: &[u8]) -> Vec<u8> {
    let mut payload = at.to_le_bytes().to_vec();
    payload.extend_from_slice(&(data.len() as u16).to_le_bytes());
    payload.extend_from_slice(data);
    payload.resize(payload.len().next_multiple_of(4), 0);
    payload
}

/// Ranges, both ends included, of ascending UIDs. In any other order they would spoil the log: that is a bug of ours.
pub fn ranges(uids: impl IntoIterator<Item = u32>) -> Vec<(u32, u32)> {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for uid in uids {
        assert!(ranges.last().is_none_or(|(_, last)| *last < uid), "UIDs of a record must ascend");
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == uid => *last = uid,
            _ => ranges.push((uid, uid)),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_as_the_reference_shows_them() {
        let mut one = Transaction::new();
        one.append(&[(1, 8)]);
        assert_eq!(one.into_bytes(), [0x80, 0x80, 0x80, 0x84, 2, 0, 0, 0x10, 1, 0, 0, 0, 8, 0, 0, 0]);
        let mut two = Transaction::requests();
        two.increments(&[(1, -1)]);
        assert_eq!(two.into_bytes(), [0x80, 0x80, 0x80, 0x84, 0, 0x10, 0, 0, 1, 0, 0, 0, 255, 255, 255, 255]);
        assert_eq!(ranges([1, 2, 3, 7, 9, 10]), [(1, 3), (7, 7), (9, 10)]);
    }
}
