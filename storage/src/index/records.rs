//! What each record of the log does to the state (storage formats reference, 4.5).

use std::ops::Range;

use super::format::{FLAGS_MASK, Record, kind, u16_at, u32_at, u64_at};
use super::state::{Current, Extension, KEYWORDS, MODSEQ, MODSEQ_MAX, State};

/// Bytes of header data that all extensions may have together.
const EXT_HEADER_BYTES_MAX: usize = 16 << 20;
/// Bytes that the records of all extensions may have together.
const ROW_BYTES_MAX: usize = 1024;
const EXTENSIONS_MAX: usize = 64;
/// Keywords of one mailbox that are read.
const KEYWORDS_MAX: usize = 4000;

impl State {
    /// Applies one record, as its transaction was carried out.
    pub fn apply(&mut self, minor: u8, record: &Record<'_>) -> Result<(), &'static str> {
        self.modseq = State::count(self.modseq, minor, record);
        let payload = record.payload;
        if !record.external {
            self.request(record);
        }
        match record.kind {
            kind::APPEND => self.append(payload),
            kind::EXPUNGE if record.external => {
                let ranges = ranges(payload, 8)?;
                self.expunge(ranges.map(|(range, _)| range));
                Ok(())
            }
            kind::EXPUNGE_GUID if record.external => {
                if !payload.len().is_multiple_of(20) {
                    return Err("expunge record has an odd size");
                }
                let mut uids: Vec<u32> = payload.chunks_exact(20).map(|entry| u32_at(entry, 0)).collect();
                uids.sort_unstable();
                self.expunge(uids.into_iter().map(|uid| uid..uid.saturating_add(1)));
                Ok(())
            }
            kind::EXPUNGE | kind::EXPUNGE_GUID => Ok(()),
            kind::FLAG_UPDATE => self.update_flags(payload),
            kind::HEADER_UPDATE => self.update_header(payload),
            kind::EXT_INTRO => self.introduce(payload),
            kind::EXT_RESET => self.reset(payload),
            kind::EXT_HDR_UPDATE => self.update_ext_header(payload, 4),
            kind::EXT_HDR_UPDATE32 => self.update_ext_header(payload, 8),
            kind::EXT_REC_UPDATE => self.update_ext_records(payload),
            kind::EXT_ATOMIC_INC => self.increment(payload),
            kind::KEYWORD_UPDATE => self.update_keyword(payload),
            kind::KEYWORD_RESET => {
                for (range, _) in ranges(payload, 8)? {
                    for row in self.rows(range) {
                        self.touch(row);
                        if let Some(id) = self.extension_id(KEYWORDS) {
                            let rows = self.uids.len();
                            self.extensions[id].row_mut(row, rows).fill(0);
                        }
                    }
                }
                Ok(())
            }
            kind::MODSEQ_UPDATE => {
                let Some(id) = self.extension_id(MODSEQ) else { return Ok(()) };
                for entry in payload.chunks_exact(12) {
                    if let Some(row) = self.row(u32_at(entry, 0)) {
                        let wanted = u64_at(entry, 4);
                        let rows = self.uids.len();
                        if let Some(data) = self.extensions[id].row_mut(row, rows).get_mut(..8)
                            && u64_at(data, 0) < wanted
                            && wanted <= MODSEQ_MAX
                        {
                            data.copy_from_slice(&wanted.to_le_bytes());
                        }
                    }
                }
                Ok(())
            }
            kind::INDEX_DELETED => {
                self.deleted |= record.external;
                Ok(())
            }
            kind::INDEX_UNDELETED => {
                self.deleted = false;
                Ok(())
            }
            kind::BOUNDARY | kind::ATTRIBUTE_UPDATE => Ok(()),
            _ => Err("record of an unknown type"),
        }
    }

    /// Notes that a change is still to be carried out.
    pub(super) fn request(&mut self, record: &Record<'_>) {
        self.expunge_requested |= matches!(record.kind, kind::EXPUNGE | kind::EXPUNGE_GUID);
        let (uids, entry_bytes) = match record.kind {
            kind::FLAG_UPDATE => (record.payload, 12),
            kind::KEYWORD_RESET => (record.payload, 8),
            kind::KEYWORD_UPDATE if record.payload.len() >= 4 => {
                let name_end = (4 + usize::from(u16_at(record.payload, 2))).next_multiple_of(4);
                (record.payload.get(name_end..).unwrap_or_default(), 8)
            }
            _ => return,
        };
        if let Ok(ranges) = ranges(uids, entry_bytes) {
            self.requested.extend(ranges.map(|(range, _)| range));
        }
    }

    /// The mail gets the present value of the counter.
    fn touch(&mut self, row: usize) {
        let (modseq, rows) = (self.highest_modseq(), self.uids.len());
        if let Some(extension) = self.extensions.iter_mut().find(|extension| extension.name == MODSEQ)
            && let Some(data) = extension.row_mut(row, rows).get_mut(..8)
        {
            data.copy_from_slice(&modseq.to_le_bytes());
        }
    }

    fn append(&mut self, payload: &[u8]) -> Result<(), &'static str> {
        if !payload.len().is_multiple_of(8) {
            return Err("append record has an odd size");
        }
        let first = self.uids.len();
        for entry in payload.chunks_exact(8) {
            let uid = u32_at(entry, 0);
            if uid == 0 || uid == u32::MAX || uid < self.header.next_uid {
                return Err("appended UID is below UIDNEXT");
            }
            self.header.next_uid = uid + 1;
            self.uids.push(uid);
            self.flags.push(entry[4]);
        }
        let rows = self.uids.len();
        for extension in self.extensions.iter_mut().filter(|extension| !extension.data.is_empty()) {
            extension.data.resize(rows * extension.record_bytes, 0);
        }
        (first..rows).for_each(|row| self.touch(row));
        Ok(())
    }

    /// Ranges ascend.
    fn expunge(&mut self, ranges: impl Iterator<Item = Range<u32>>) {
        let gone: Vec<Range<usize>> =
            ranges.map(|range| self.rows(range)).filter(|rows| !rows.is_empty()).collect();
        if gone.is_empty() {
            return;
        }
        let mut extensions: Vec<(&mut Vec<u8>, usize)> = self
            .extensions
            .iter_mut()
            .filter(|extension| !extension.data.is_empty())
            .map(|extension| (&mut extension.data, extension.record_bytes))
            .collect();
        let mut to = gone[0].start;
        for (i, rows) in gone.iter().enumerate() {
            let next = gone.get(i + 1).map_or(self.uids.len(), |rows| rows.start);
            let kept = rows.end..next.max(rows.end);
            self.uids.copy_within(kept.clone(), to);
            self.flags.copy_within(kept.clone(), to);
            for (data, bytes) in &mut extensions {
                data.copy_within(kept.start * *bytes..kept.end * *bytes, to * *bytes);
            }
            to += kept.len();
        }
        self.uids.truncate(to);
        self.flags.truncate(to);
        for (data, bytes) in extensions {
            data.truncate(to * bytes);
        }
    }

    fn update_flags(&mut self, payload: &[u8]) -> Result<(), &'static str> {
        for (range, entry) in ranges(payload, 12)? {
            let (add, remove) = (entry[8], entry[9]);
            let counts = (add | remove) & FLAGS_MASK != 0 || entry[10] != 0;
            for row in self.rows(range) {
                self.flags[row] = self.flags[row] & !remove | add;
                if counts {
                    self.touch(row);
                }
            }
        }
        Ok(())
    }

    fn update_header(&mut self, payload: &[u8]) -> Result<(), &'static str> {
        for_each_update(payload, 4, |at, data| {
            for (i, byte) in data.iter().enumerate() {
                let header = &mut self.header;
                let set = |field: &mut u32, i: usize| {
                    let mut bytes = field.to_le_bytes();
                    bytes[i] = *byte;
                    *field = u32::from_le_bytes(bytes);
                };
                match at + i {
                    at @ 20..24 => set(&mut header.flags, at - 20),
                    at @ 24..28 => set(&mut header.uid_validity, at - 24),
                    at @ 48..52 => set(&mut header.first_recent_uid, at - 48),
                    at @ 64..68 => set(&mut header.tail_offset, at - 64),
                    at @ 80..84 => set(&mut header.last_temp_file_scan, at - 80),
                    at @ 84..120 => header.days[at - 84] = *byte,
                    _ => {}
                }
            }
            if (64 - at.min(64)) < data.len() && at <= 64 {
                // Everything up to the new tail is carried out; whoever carries out goes to the end.
                self.requested.clear();
                self.expunge_requested = false;
            }
            // UIDNEXT never shrinks.
            if at <= 28 && at + data.len() >= 32 {
                let next_uid = u32_at(data, 28 - at);
                self.header.next_uid = self.header.next_uid.max(next_uid);
            }
            Ok(())
        })
    }

    fn introduce(&mut self, payload: &[u8]) -> Result<(), &'static str> {
        let mut rest = payload;
        while !rest.is_empty() {
            if rest.len() < 20 {
                return Err("extension intro is cut off");
            }
            let (id, reset_id, header_bytes) = (u32_at(rest, 0), u32_at(rest, 4), u32_at(rest, 8) as usize);
            let (record_bytes, align) = (usize::from(u16_at(rest, 12)), u16_at(rest, 14));
            let (flags, name_bytes) = (u16_at(rest, 16), usize::from(u16_at(rest, 18)));
            let name = rest.get(20..20 + name_bytes).ok_or("extension name is cut off")?;
            rest = &rest[(20 + name_bytes).next_multiple_of(4).min(rest.len())..];
            let known = if id == u32::MAX {
                let name = std::str::from_utf8(name).map_err(|_| "extension name is no text")?;
                match self.extension_id(name) {
                    Some(id) => id,
                    None => self.new_extension(name, reset_id)?,
                }
            } else {
                let id = id as usize;
                if id >= self.extensions.len() {
                    return Err("extension id was never introduced");
                }
                id
            };
            let (rows, modseq) = (self.uids.len(), self.highest_modseq());
            let others: usize = self.extensions.iter().map(|other| other.record_bytes).sum();
            let headers: usize = self.extensions.iter().map(|other| other.header_bytes).sum();
            let extension = &mut self.extensions[known];
            if others - extension.record_bytes + record_bytes > ROW_BYTES_MAX
                || headers - extension.header_bytes + header_bytes > EXT_HEADER_BYTES_MAX
            {
                return Err("extension is larger than any that exists");
            }
            let ignored = extension.reset_id != reset_id;
            if !ignored {
                let shrinks = flags & 1 == 0;
                if header_bytes > extension.header_bytes || shrinks {
                    extension.header_bytes = header_bytes;
                    extension.header.truncate(header_bytes);
                }
                if record_bytes > extension.record_bytes || shrinks {
                    extension.resize_records(record_bytes);
                }
                extension.align = align.clamp(1, 8);
                if extension.name == MODSEQ && extension.data.is_empty() && record_bytes >= 8 {
                    for row in 0..rows {
                        extension.row_mut(row, rows)[..8].copy_from_slice(&modseq.to_le_bytes());
                    }
                }
            }
            self.current = Some(Current { extension: known, record_bytes, ignored });
        }
        Ok(())
    }

    fn new_extension(&mut self, name: &str, reset_id: u32) -> Result<usize, &'static str> {
        if self.extensions.len() >= EXTENSIONS_MAX {
            return Err("there are more extensions than any index has");
        }
        self.extensions.push(Extension { reset_id, ..Extension::new(name, 0, 0, 1) });
        Ok(self.extensions.len() - 1)
    }

    fn reset(&mut self, payload: &[u8]) -> Result<(), &'static str> {
        let Some(current) = &mut self.current else { return Err("extension reset without an intro") };
        if payload.len() < 8 {
            return Err("extension reset is cut off");
        }
        current.ignored = false;
        let extension = &mut self.extensions[current.extension];
        extension.reset_id = u32_at(payload, 0);
        if payload[4] == 0 {
            extension.header.clear();
            extension.data.clear();
        }
        Ok(())
    }

    fn update_ext_header(&mut self, payload: &[u8], prefix: usize) -> Result<(), &'static str> {
        let Some(current) = self.current else { return Err("extension header update without an intro") };
        if current.ignored {
            return Ok(());
        }
        let extension = &mut self.extensions[current.extension];
        for_each_update(payload, prefix, |at, data| extension.set_header(at, data))
    }

    fn update_ext_records(&mut self, payload: &[u8]) -> Result<(), &'static str> {
        let Some(current) = self.current else { return Err("extension record update without an intro") };
        let stride = (4 + current.record_bytes).next_multiple_of(4);
        if current.record_bytes == 0 || !payload.len().is_multiple_of(stride) {
            return Err("extension record update has an odd size");
        }
        if current.ignored {
            return Ok(());
        }
        let rows = self.uids.len();
        for entry in payload.chunks_exact(stride) {
            let Some(row) = self.row(u32_at(entry, 0)) else { continue };
            let extension = &mut self.extensions[current.extension];
            let kept = extension.record_bytes.min(current.record_bytes);
            let data = extension.row_mut(row, rows);
            data.fill(0);
            data[..kept].copy_from_slice(&entry[4..4 + kept]);
        }
        Ok(())
    }

    fn increment(&mut self, payload: &[u8]) -> Result<(), &'static str> {
        let Some(current) = self.current else { return Err("extension increment without an intro") };
        if !payload.len().is_multiple_of(8) {
            return Err("extension increment has an odd size");
        }
        if current.ignored {
            return Ok(());
        }
        let rows = self.uids.len();
        for entry in payload.chunks_exact(8) {
            let Some(row) = self.row(u32_at(entry, 0)) else { continue };
            let by = i128::from(u32_at(entry, 4) as i32);
            let data = self.extensions[current.extension].row_mut(row, rows);
            if !matches!(data.len(), 1 | 2 | 4 | 8) {
                return Err("extension increment of something that is no number");
            }
            let mut bytes = [0; 8];
            bytes[..data.len()].copy_from_slice(data);
            let sum = i128::from(u64::from_le_bytes(bytes)) + by;
            if sum < 0 || sum >> (8 * data.len()) != 0 {
                return Err("extension increment leaves the range of the number");
            }
            let width = data.len();
            data.copy_from_slice(&(sum as u64).to_le_bytes()[..width]);
        }
        Ok(())
    }

    fn update_keyword(&mut self, payload: &[u8]) -> Result<(), &'static str> {
        if payload.len() < 4 {
            return Err("keyword update is cut off");
        }
        let add = match payload[0] {
            0 => true,
            1 => false,
            _ => return Err("keyword update of an unknown kind"),
        };
        let name_bytes = usize::from(u16_at(payload, 2));
        let name = payload.get(4..4 + name_bytes).ok_or("keyword is cut off")?;
        let name = std::str::from_utf8(name).map_err(|_| "keyword is no text")?;
        if name.is_empty() || name.contains('\0') {
            return Err("keyword is empty");
        }
        let uids = &payload[(4 + name_bytes).next_multiple_of(4).min(payload.len())..];
        let ranges = ranges(uids, 8)?;
        let index = self.keyword_index(name)?;
        let id = self.extension_id(KEYWORDS).ok_or("keyword extension is missing")?;
        for (range, _) in ranges {
            for row in self.rows(range) {
                let rows = self.uids.len();
                let byte = &mut self.extensions[id].row_mut(row, rows)[index / 8];
                *byte = if add { *byte | 1 << (index % 8) } else { *byte & !(1 << (index % 8)) };
                self.touch(row);
            }
        }
        Ok(())
    }

    /// The keyword's index; a new keyword gets the next, and the first ever makes the extension.
    fn keyword_index(&mut self, name: &str) -> Result<usize, &'static str> {
        let id = match self.extension_id(KEYWORDS) {
            Some(id) => id,
            None => self.new_extension(KEYWORDS, 0)?,
        };
        let index = match self.keywords.iter().position(|known| known.eq_ignore_ascii_case(name)) {
            Some(index) => index,
            None if self.keywords.len() >= KEYWORDS_MAX => return Err("there are too many keywords"),
            None => {
                self.keywords.push(name.to_owned());
                self.keywords.len() - 1
            }
        };
        let bytes = (index / 8 + 1).max(self.extensions[id].record_bytes);
        self.extensions[id].resize_records(bytes);
        Ok(index)
    }
}

/// Entries of `entry_bytes` that begin with the first and last UID of a range, ascending and apart.
fn ranges(
    payload: &[u8],
    entry_bytes: usize,
) -> Result<impl Iterator<Item = (Range<u32>, &[u8])>, &'static str> {
    if !payload.len().is_multiple_of(entry_bytes) {
        return Err("record of UID ranges has an odd size");
    }
    let mut next = 1;
    for entry in payload.chunks_exact(entry_bytes) {
        let (first, last) = (u32_at(entry, 0), u32_at(entry, 4));
        if first < next || last < first {
            return Err("UID ranges are not sorted");
        }
        next = last.saturating_add(1);
    }
    let range = |entry| (u32_at(entry, 0)..u32_at(entry, 4).saturating_add(1), entry);
    Ok(payload.chunks_exact(entry_bytes).map(range))
}

/// Header updates: offset and size (of two bytes each, or four), data, padding.
fn for_each_update(
    payload: &[u8],
    prefix: usize,
    mut update: impl FnMut(usize, &[u8]) -> Result<(), &'static str>,
) -> Result<(), &'static str> {
    let mut rest = payload;
    while !rest.is_empty() {
        if rest.len() < prefix {
            return Err("header update is cut off");
        }
        let (at, bytes) = match prefix {
            4 => (usize::from(u16_at(rest, 0)), usize::from(u16_at(rest, 2))),
            _ => (u32_at(rest, 0) as usize, u32_at(rest, 4) as usize),
        };
        let data = rest.get(prefix..prefix.saturating_add(bytes)).ok_or("header update is cut off")?;
        update(at, data)?;
        rest = &rest[(prefix + bytes).next_multiple_of(4).min(rest.len())..];
    }
    Ok(())
}
