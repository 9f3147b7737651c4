//! The state of an index, and what each record of the log does to it (storage formats reference, 4.5 to 4.7).
//!
//! Pure: bytes of records in, state out. Columns instead of rows: UIDs, flags and the data of each extension lie in
//! vectors of their own, in ascending UID order.

use std::ops::Range;

use super::format::{FLAGS_MASK, Record, kind, u64_at};

pub const KEYWORDS: &str = "keywords";
pub const MODSEQ: &str = "modseq";
/// Largest modseq that a client may see (RFC 7162, 7).
pub const MODSEQ_MAX: u64 = (1 << 63) - 1;

/// Fields of the base header that mean something to us, under Dovecot's names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    pub index_id: u32,
    pub flags: u32,
    pub uid_validity: u32,
    pub next_uid: u32,
    pub first_recent_uid: u32,
    /// Everything before is carried out in the mailbox.
    pub tail_offset: u32,
    pub log2_rotate_time: u32,
    pub last_temp_file_scan: u32,
    /// Statistics that nobody reads, kept as found: bytes 84 to 119.
    pub days: [u8; 36],
}

impl Header {
    pub fn new(index_id: u32) -> Header {
        Header {
            index_id,
            flags: 0,
            uid_validity: 0,
            next_uid: 1,
            first_recent_uid: 1,
            tail_offset: 0,
            log2_rotate_time: u32::MAX,
            last_temp_file_scan: 0,
            days: [0; 36],
        }
    }
}

/// A named kind of data beside the flags.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Extension {
    pub name: String,
    pub reset_id: u32,
    /// Header data; shorter than [`header_bytes`](Self::header_bytes) where the rest is zero.
    pub header: Vec<u8>,
    pub header_bytes: usize,
    /// Bytes for each mail; 0 if it has only a header.
    pub record_bytes: usize,
    pub align: u16,
    /// Data of each mail, one after the other; empty while nothing was ever set.
    pub data: Vec<u8>,
}

impl Extension {
    /// An extension without data yet.
    pub fn new(name: &str, header_bytes: usize, record_bytes: usize, align: u16) -> Extension {
        Extension {
            name: name.to_owned(),
            reset_id: 0,
            header: Vec::new(),
            header_bytes,
            record_bytes,
            align,
            data: Vec::new(),
        }
    }

    /// Data of the mail in this row; empty if nothing was ever set.
    pub fn row(&self, row: usize) -> &[u8] {
        let range = row * self.record_bytes..(row + 1) * self.record_bytes;
        self.data.get(range).unwrap_or_default()
    }

    pub(super) fn row_mut(&mut self, row: usize, rows: usize) -> &mut [u8] {
        self.data.resize(rows * self.record_bytes, 0);
        &mut self.data[row * self.record_bytes..(row + 1) * self.record_bytes]
    }

    /// Header data of at least this many bytes, zeros where nothing was written.
    pub fn header_padded(&self, bytes: usize) -> Vec<u8> {
        let mut header = self.header.clone();
        header.resize(header.len().max(bytes), 0);
        header
    }

    pub(super) fn set_header(&mut self, at: usize, data: &[u8]) -> Result<(), &'static str> {
        let end = at + data.len();
        if end > self.header_bytes {
            return Err("extension header update is outside of the header");
        }
        if self.header.len() < end {
            self.header.resize(end, 0);
        }
        self.header[at..end].copy_from_slice(data);
        Ok(())
    }

    pub(super) fn resize_records(&mut self, bytes: usize) {
        if !self.data.is_empty() && bytes != self.record_bytes && self.record_bytes > 0 {
            let kept = bytes.min(self.record_bytes);
            let mut data = vec![0; self.data.len() / self.record_bytes * bytes];
            if bytes > 0 {
                for (new, old) in data.chunks_exact_mut(bytes).zip(self.data.chunks_exact(self.record_bytes))
                {
                    new[..kept].copy_from_slice(&old[..kept]);
                }
            }
            self.data = data;
        }
        self.record_bytes = bytes;
    }
}

/// What the extension records that follow an intro are about.
#[derive(Clone, Copy, Debug)]
pub(super) struct Current {
    pub extension: usize,
    pub record_bytes: usize,
    /// The intro named another reset id: what follows is of a past that is gone.
    pub ignored: bool,
}

/// A mailbox index at one position of its log.
#[derive(Clone, Debug)]
pub struct State {
    pub header: Header,
    /// Ascending.
    pub uids: Vec<u32>,
    pub flags: Vec<u8>,
    /// Position is the ext_id of log records.
    pub extensions: Vec<Extension>,
    pub keywords: Vec<String>,
    /// The counter behind HIGHESTMODSEQ.
    pub modseq: u64,
    /// The mailbox was deleted.
    pub deleted: bool,
    /// UIDs of messages whose flags were asked to change in records that the mailbox has not carried out yet.
    pub(super) requested: Vec<Range<u32>>,
    /// Such a record asks for an expunge.
    pub(super) expunge_requested: bool,
    pub(super) current: Option<Current>,
}

impl State {
    /// An index without anything.
    pub fn empty(index_id: u32, modseq: u64) -> State {
        State {
            header: Header::new(index_id),
            uids: Vec::new(),
            flags: Vec::new(),
            extensions: Vec::new(),
            keywords: Vec::new(),
            modseq,
            deleted: false,
            requested: Vec::new(),
            expunge_requested: false,
            current: None,
        }
    }

    pub fn extension(&self, name: &str) -> Option<&Extension> {
        self.extensions.iter().find(|extension| extension.name == name)
    }

    /// The ext_id of an extension.
    pub fn extension_id(&self, name: &str) -> Option<usize> {
        self.extensions.iter().position(|extension| extension.name == name)
    }

    /// HIGHESTMODSEQ.
    pub fn highest_modseq(&self) -> u64 {
        self.modseq.max(1)
    }

    /// MODSEQ of the mail in this row.
    pub fn modseq_of(&self, row: usize) -> u64 {
        let stored = self.extension(MODSEQ).map(|extension| extension.row(row));
        match stored.filter(|data| data.len() >= 8).map(|data| u64_at(data, 0)) {
            Some(modseq @ 1..=MODSEQ_MAX) => modseq,
            _ => self.highest_modseq(),
        }
    }

    /// Row of a UID.
    pub fn row(&self, uid: u32) -> Option<usize> {
        self.uids.binary_search(&uid).ok()
    }

    /// Says whether the log asks for a change of this message that its mailbox has not carried out yet.
    pub fn is_requested(&self, uid: u32) -> bool {
        self.requested.iter().any(|uids| uids.contains(&uid))
    }

    /// Says whether the log asks for changes of flags, or expunges, that the mailbox has not carried out yet.
    pub fn has_requests(&self) -> bool {
        self.expunge_requested || !self.requested.is_empty()
    }

    /// Indexes of the keywords of the mail in this row.
    pub fn keywords_of(&self, row: usize) -> impl Iterator<Item = usize> + '_ {
        let bits = self.extension(KEYWORDS).map(|extension| extension.row(row)).unwrap_or_default();
        let set = |i: &usize| bits.get(i / 8).is_some_and(|byte| byte & 1 << (i % 8) != 0);
        (0..self.keywords.len().min(bits.len() * 8)).filter(set)
    }

    /// The counter's value after a record, before it is applied.
    pub fn count(modseq: u64, minor: u8, record: &Record<'_>) -> u64 {
        let step = match record.kind {
            kind::EXPUNGE | kind::EXPUNGE_GUID => record.external,
            kind::APPEND | kind::KEYWORD_UPDATE | kind::KEYWORD_RESET | kind::ATTRIBUTE_UPDATE => true,
            kind::FLAG_UPDATE => {
                minor < 3
                    || record
                        .payload
                        .chunks_exact(12)
                        .any(|entry| (entry[8] | entry[9]) & FLAGS_MASK != 0 || entry[10] != 0)
            }
            kind::MODSEQ_UPDATE => {
                let given = record.payload.chunks_exact(12).map(|entry| u64_at(entry, 4)).max().unwrap_or(0);
                // What no client may see (RFC 7162: below 2^63) was not written by a mail server.
                return if given <= MODSEQ_MAX { modseq.max(given) } else { modseq };
            }
            _ => false,
        };
        (modseq + u64::from(step)).min(MODSEQ_MAX)
    }

    /// Rows of the mails whose UIDs lie in a range.
    pub fn rows(&self, uids: Range<u32>) -> Range<usize> {
        let from = self.uids.partition_point(|uid| *uid < uids.start);
        let to = self.uids.partition_point(|uid| *uid < uids.end);
        from..to
    }
}
