//! `dovecot.index`: the state of an index at one position of its log (storage formats reference, 4.4).

use super::edit::DIRTY;
use super::format::{u16_at, u32_at, u64_at};
use super::state::{Extension, Header, KEYWORDS, MODSEQ, MODSEQ_MAX, State};

const MAJOR: u8 = 7;
const MINOR: u8 = 3;
const BASE_BYTES: usize = 120;
const LITTLE_ENDIAN: u8 = 1;
const FLAG_SEEN: u8 = 8;
const FLAG_DELETED: u8 = 4;
/// In the header: some message has that flag.
const HAS_DIRTY: u32 = 2;
/// Offsets from which a record has room for extensions: after UID and flags.
const RECORD_BASE: usize = 5;

/// A snapshot and where in the log it stands.
#[derive(Debug)]
pub struct Snapshot {
    pub state: State,
    pub log_sequence: u32,
    pub log_head: u32,
    /// Counter of modseqs, and the position (sequence, offset) at which it was counted.
    pub modseq: Option<(u64, u32, u32)>,
}

/// Reads a snapshot; the error says what is wrong with it.
pub fn decode(bytes: &[u8]) -> Result<Snapshot, &'static str> {
    if bytes.len() < BASE_BYTES {
        return Err("snapshot is shorter than its header");
    }
    if bytes[0] != MAJOR {
        return Err("snapshot has an unknown major version");
    }
    if bytes[12] & LITTLE_ENDIAN == 0 {
        return Err("snapshot was written on a big-endian machine");
    }
    let base_bytes = usize::from(u16_at(bytes, 2));
    let (header_bytes, record_bytes) = (u32_at(bytes, 4) as usize, u32_at(bytes, 8) as usize);
    if base_bytes < BASE_BYTES || header_bytes < base_bytes || header_bytes > bytes.len() {
        return Err("snapshot has an impossible header size");
    }
    if record_bytes < RECORD_BASE {
        return Err("snapshot has impossible records");
    }
    let (count, log_sequence) = (u32_at(bytes, 32) as usize, u32_at(bytes, 60));
    if log_sequence >= u32::MAX - 1 {
        return Err("snapshot has an impossible sequence number");
    }
    let rows = bytes[header_bytes..].chunks_exact(record_bytes);
    if rows.len() < count {
        return Err("snapshot is cut off");
    }
    let mut days = [0; 36];
    days.copy_from_slice(&bytes[84..120]);
    let mut state = State::empty(u32_at(bytes, 16), 1);
    state.header = Header {
        index_id: u32_at(bytes, 16),
        flags: u32_at(bytes, 20),
        uid_validity: u32_at(bytes, 24),
        next_uid: u32_at(bytes, 28).max(1),
        first_recent_uid: u32_at(bytes, 48),
        tail_offset: u32_at(bytes, 64),
        log2_rotate_time: u32_at(bytes, 76),
        last_temp_file_scan: u32_at(bytes, 80),
        days,
    };
    let (mut places, mut data_bytes) = (Vec::new(), 0);
    let mut at = base_bytes.next_multiple_of(8);
    while at < header_bytes {
        let (extension, place, next) = decode_extension(&bytes[..header_bytes], at, record_bytes)?;
        if extension.name == KEYWORDS {
            state.keywords = decode_keywords(&extension.header)?;
        }
        if state.extensions.len() >= 64 || state.extension_id(&extension.name).is_some() {
            return Err("snapshot has an extension twice, or too many");
        }
        // Data that overlap would take more memory than the file has bytes.
        data_bytes += extension.record_bytes;
        if data_bytes > record_bytes - RECORD_BASE {
            return Err("snapshot's extensions overlap");
        }
        state.extensions.push(extension);
        places.push(place);
        at = next;
    }
    let rows = rows.take(count);
    state.uids.reserve_exact(count);
    state.flags.reserve_exact(count);
    let mut last = 0;
    for row in rows.clone() {
        let uid = u32_at(row, 0);
        if uid <= last || uid >= state.header.next_uid {
            return Err("snapshot's UIDs do not ascend, or exceed UIDNEXT");
        }
        last = uid;
        state.uids.push(uid);
        state.flags.push(row[4]);
    }
    for (extension, place) in state.extensions.iter_mut().zip(&places).filter(|(e, _)| e.record_bytes > 0) {
        extension.data.reserve_exact(count * extension.record_bytes);
        for row in rows.clone() {
            extension.data.extend_from_slice(&row[*place..place + extension.record_bytes]);
        }
    }
    let modseq = state.extension(MODSEQ).filter(|extension| extension.header.len() >= 16).map(|extension| {
        let header = &extension.header;
        (u64_at(header, 0) & MODSEQ_MAX, u32_at(header, 8), u32_at(header, 12))
    });
    Ok(Snapshot { state, log_sequence, log_head: u32_at(bytes, 68), modseq })
}

/// One extension header: the extension, the offset of its data in a record, the offset of the next header.
fn decode_extension(
    bytes: &[u8],
    at: usize,
    record_bytes: usize,
) -> Result<(Extension, usize, usize), &'static str> {
    let header = bytes.get(at..at + 16).ok_or("snapshot's extension header is cut off")?;
    let data_bytes = u32_at(header, 0) as usize;
    let (place, size) = (usize::from(u16_at(header, 8)), usize::from(u16_at(header, 10)));
    let name_bytes = usize::from(u16_at(header, 14));
    let name = bytes.get(at + 16..at + 16 + name_bytes).ok_or("snapshot's extension name is cut off")?;
    let name = std::str::from_utf8(name).map_err(|_| "snapshot's extension name is no text")?;
    let data_at = (at + 16 + name_bytes).next_multiple_of(8);
    let data = bytes.get(data_at..data_at + data_bytes).ok_or("snapshot's extension data is cut off")?;
    if size > 0 && (place < RECORD_BASE || place + size > record_bytes) {
        return Err("snapshot's extension lies outside of the records");
    }
    let extension = Extension {
        name: name.to_owned(),
        reset_id: u32_at(header, 4),
        header: data.to_vec(),
        header_bytes: data_bytes,
        record_bytes: size,
        align: u16_at(header, 12).clamp(1, 8),
        data: Vec::new(),
    };
    Ok((extension, place, (data_at + data_bytes).next_multiple_of(8)))
}

fn decode_keywords(header: &[u8]) -> Result<Vec<String>, &'static str> {
    if header.len() < 4 {
        return Ok(Vec::new());
    }
    let count = u32_at(header, 0) as usize;
    let names_at = count.checked_mul(8).and_then(|bytes| bytes.checked_add(4));
    let names = names_at.and_then(|at| header.get(at..)).ok_or("snapshot's keyword table is cut off")?;
    let name = |entry: &[u8]| {
        let rest = names.get(u32_at(entry, 4) as usize..)?;
        let end = rest.iter().position(|byte| *byte == 0)?;
        std::str::from_utf8(&rest[..end]).ok().map(str::to_owned)
    };
    let table = header[4..4 + count * 8].chunks_exact(8);
    table.map(|entry| name(entry).ok_or("snapshot's keyword name is cut off")).collect()
}

fn encode_keywords(keywords: &[String]) -> Vec<u8> {
    let mut header = (keywords.len() as u32).to_le_bytes().to_vec();
    let mut at = 0u32;
    for keyword in keywords {
        header.extend_from_slice(&[0; 4]);
        header.extend_from_slice(&at.to_le_bytes());
        at += keyword.len() as u32 + 1;
    }
    for keyword in keywords {
        header.extend_from_slice(keyword.as_bytes());
        header.push(0);
    }
    header
}

/// Writes the state as a snapshot that contains all of the log `sequence` up to `head`. What the log asks for and nobody carried out stays
/// to be carried out.
pub fn encode(state: &State, sequence: u32, head: u32, log2_rotate_time: u32) -> Vec<u8> {
    let mut place = RECORD_BASE;
    let mut align_max = 4;
    let mut places = Vec::new();
    // Small data first: the first free byte suits it.
    let mut order: Vec<usize> = (0..state.extensions.len()).collect();
    order.sort_by_key(|i| state.extensions[*i].align);
    places.resize(state.extensions.len(), 0);
    for i in order {
        let extension = &state.extensions[i];
        if extension.record_bytes > 0 {
            let align = usize::from(extension.align.max(1));
            place = place.next_multiple_of(align);
            places[i] = place;
            place += extension.record_bytes;
            align_max = align_max.max(align);
        }
    }
    let record_bytes = place.next_multiple_of(align_max);
    let mut bytes = vec![0; BASE_BYTES];
    for (extension, place) in state.extensions.iter().zip(&places) {
        let header = match extension.name.as_str() {
            KEYWORDS => encode_keywords(&state.keywords),
            MODSEQ => {
                let mut header = state.highest_modseq().to_le_bytes().to_vec();
                header.extend_from_slice(&sequence.to_le_bytes());
                header.extend_from_slice(&head.to_le_bytes());
                header
            }
            _ => extension.header_padded(extension.header_bytes),
        };
        bytes.extend_from_slice(&(header.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&extension.reset_id.to_le_bytes());
        let size = extension.record_bytes as u16;
        for field in [*place as u16, size, extension.align, extension.name.len() as u16] {
            bytes.extend_from_slice(&field.to_le_bytes());
        }
        bytes.extend_from_slice(extension.name.as_bytes());
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes.extend_from_slice(&header);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
    }
    let header_bytes = bytes.len();
    bytes.resize(header_bytes + state.uids.len() * record_bytes, 0);
    let rows = bytes[header_bytes..].chunks_exact_mut(record_bytes);
    for ((row, uid), flags) in rows.zip(&state.uids).zip(&state.flags) {
        row[..4].copy_from_slice(&uid.to_le_bytes());
        row[4] = *flags;
    }
    for (extension, place) in state.extensions.iter().zip(&places) {
        if extension.record_bytes == 0 || extension.data.is_empty() {
            continue;
        }
        let rows = bytes[header_bytes..].chunks_exact_mut(record_bytes);
        for (row, data) in rows.zip(extension.data.chunks_exact(extension.record_bytes)) {
            row[*place..place + extension.record_bytes].copy_from_slice(data);
        }
    }
    encode_base(
        state,
        &mut bytes[..BASE_BYTES],
        [header_bytes as u32, record_bytes as u32, sequence, head, log2_rotate_time],
    );
    bytes
}

fn encode_base(state: &State, base: &mut [u8], sizes: [u32; 5]) {
    let [header_bytes, record_bytes, sequence, head, log2_rotate_time] = sizes;
    let header = &state.header;
    let with = |flag: u8| state.flags.iter().filter(|flags| **flags & flag != 0).count() as u32;
    let lowest = |wanted: &dyn Fn(u8) -> bool| {
        state.flags.iter().position(|flags| wanted(*flags)).map_or(header.next_uid, |row| state.uids[row])
    };
    base[0] = MAJOR;
    base[1] = MINOR;
    base[2..4].copy_from_slice(&(BASE_BYTES as u16).to_le_bytes());
    base[12] = LITTLE_ENDIAN;
    let fields = [
        (4, header_bytes),
        (8, record_bytes),
        (16, header.index_id),
        (20, header.flags & !HAS_DIRTY | if with(DIRTY) > 0 { HAS_DIRTY } else { 0 }),
        (24, header.uid_validity),
        (28, header.next_uid),
        (32, state.uids.len() as u32),
        (40, with(FLAG_SEEN)),
        (44, with(FLAG_DELETED)),
        (48, header.first_recent_uid),
        (52, lowest(&|flags| flags & FLAG_SEEN == 0)),
        (56, lowest(&|flags| flags & FLAG_DELETED != 0)),
        (60, sequence),
        (64, if state.has_requests() { header.tail_offset } else { head }),
        (68, head),
        (76, log2_rotate_time),
        (80, header.last_temp_file_scan),
    ];
    for (at, value) in fields {
        base[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    base[84..120].copy_from_slice(&header.days);
}
