//! What a commit does to a mailbox, as one transaction of its index.

use std::collections::{BTreeMap, BTreeSet};

use dsync_model::{FlagSet, Flags, Keyword, ModSeq, Uid};

use super::format::u32_at;
use super::state::{KEYWORDS, MODSEQ};
use super::{Extension, State, Transaction, ranges};
use crate::Goal;

/// Bits of a mail's flags that are IMAP's.
const SYSTEM: u8 = 0x1f;
/// The index is newer than the mail store.
pub(super) const DIRTY: u8 = 0x80;
/// Extensions whose data are worth nothing in an index that is built anew.
const CACHES: [&str; 3] = ["cache", "hdr-vsize", "vsize"];

/// Messages that arrive.
#[derive(Clone, Debug)]
pub struct Appended {
    pub uid: u32,
    pub flags: FlagSet,
    pub modseq: ModSeq,
    /// Data for the extensions of the format, by name.
    pub data: Vec<(&'static str, Vec<u8>)>,
}

/// Flags that change.
#[derive(Clone, Debug)]
pub struct Flagged {
    pub uid: u32,
    pub add: FlagSet,
    pub remove: FlagSet,
    pub modseq: ModSeq,
}

/// One message of an index that is built anew: flags, modseq, data by extension.
type Row<'a> = (FlagSet, u64, BTreeMap<&'a str, &'a [u8]>);

/// Everything that one commit changes. Appended and flagged messages ascend by UID.
#[derive(Clone, Default, Debug)]
pub struct Edit {
    pub appended: Vec<Appended>,
    pub flagged: Vec<Flagged>,
    /// UID, and the 128 bits of the GUID.
    pub expunged: Vec<(u32, [u8; 16])>,
    /// What becomes of headers of extensions that the index has.
    pub headers: Vec<HeaderData>,
    /// Data of messages that are there, in ascending UID order.
    pub records: Vec<RecordData>,
}

/// What an extension of the format keeps for a message.
#[derive(Clone, Debug)]
pub struct RecordData {
    pub extension: &'static str,
    pub uid: u32,
    pub data: Vec<u8>,
}

/// A piece of the header of an extension.
#[derive(Clone, Debug)]
pub struct HeaderData {
    pub extension: &'static str,
    pub at: u16,
    pub data: Vec<u8>,
}

impl Edit {
    /// Says whether a log can tell it: every new UID is above those there are.
    pub fn fits(&self, state: &State) -> bool {
        self.appended.iter().all(|mail| mail.uid >= state.header.next_uid)
    }

    /// Says whether a log can tell it, and new messages are all there is to tell.
    pub fn only_appends(&self, state: &State) -> bool {
        self.flagged.is_empty() && self.expunged.is_empty() && self.fits(state)
    }

    /// The transaction that leads from `state` to what is wanted. Modseqs come out as asked for, as far as a log that only
    /// counts up allows; what is expunged gets the modseq that the mailbox ends with.
    pub fn transaction(&self, state: &State, goal: Goal, extensions: &[Extension]) -> Transaction {
        let mut log = Transaction::new();
        if let Some(validity) = goal.uid_validity.filter(|v| v.get() != state.header.uid_validity) {
            log.header(24, &validity.get().to_le_bytes());
        }
        let changes = !self.appended.is_empty() || !self.flagged.is_empty();
        if state.extension(MODSEQ).is_none() && (changes || goal.modseq_min > ModSeq::NONE) {
            log.introduce(None, &modseq_extension());
            log.ext_header(0, &MODSEQ_HEADER);
        }
        log.append(
            &self.appended.iter().map(|mail| (mail.uid, mail.flags.system.bits())).collect::<Vec<_>>(),
        );
        self.format_data(state, extensions, &mut log);
        for HeaderData { extension, at, data } in &self.headers {
            let Some(known) = state.extension(extension) else { continue };
            let header_bytes = known.header_bytes.max(usize::from(*at) + data.len());
            log.introduce(state.extension_id(extension), &Extension { header_bytes, ..known.clone() });
            log.ext_header(*at, data);
        }
        let mut keywords: BTreeMap<&Keyword, Vec<u32>> = BTreeMap::new();
        for mail in &self.appended {
            mail.flags
                .keywords
                .iter()
                .for_each(|keyword| keywords.entry(keyword).or_default().push(mail.uid));
        }
        for (keyword, uids) in keywords {
            log.keyword(keyword.as_str(), true, &ranges(uids));
        }
        self.flag_changes(&mut log);
        let wanted = self.appended.iter().map(|mail| (mail.uid, mail.modseq.get()));
        let wanted = wanted.chain(self.flagged.iter().map(|change| (change.uid, change.modseq.get())));
        log.modseqs(&wanted.filter(|(_, modseq)| *modseq > 0).collect::<Vec<_>>());
        if !self.expunged.is_empty() && goal.modseq_min.get() > 1 {
            log.modseqs(&[(NOBODY, goal.modseq_min.get() - 1)]);
        }
        log.expunge(&self.expunged);
        let next = self.appended.last().map_or(state.header.next_uid, |mail| mail.uid + 1);
        if goal.uid_next_min.get() > next.max(state.header.next_uid) {
            log.header(28, &goal.uid_next_min.get().to_le_bytes());
        }
        if goal.modseq_min.get() > state.highest_modseq() {
            log.modseqs(&[(NOBODY, goal.modseq_min.get())]);
        }
        log
    }

    fn format_data(&self, state: &State, extensions: &[Extension], log: &mut Transaction) {
        for extension in extensions {
            let data = self.appended.iter().filter_map(|mail| {
                let found = mail.data.iter().find(|(name, _)| *name == extension.name)?;
                Some((mail.uid, &*found.1))
            });
            let known = self.records.iter().filter(|record| record.extension == extension.name);
            let known = known.map(|record| (record.uid, &*record.data));
            let data: Vec<(u32, &[u8])> = known.chain(data).collect();
            if !data.is_empty() {
                let known = state.extension(&extension.name);
                log.introduce(state.extension_id(&extension.name), known.unwrap_or(extension));
                log.ext_records(data);
            }
        }
    }

    /// Changes of one modseq that are alike share a record.
    fn flag_changes(&self, log: &mut Transaction) {
        let mut system: BTreeMap<(ModSeq, u8, u8), BTreeSet<u32>> = BTreeMap::new();
        let mut keywords: BTreeMap<(ModSeq, bool, &Keyword), BTreeSet<u32>> = BTreeMap::new();
        for change in &self.flagged {
            let (add, remove) = (change.add.system.bits(), change.remove.system.bits());
            if add | remove != 0 {
                system.entry((change.modseq, add, remove)).or_default().insert(change.uid);
            }
            for (set, adds) in [(&change.remove, false), (&change.add, true)] {
                for keyword in &set.keywords {
                    keywords.entry((change.modseq, adds, keyword)).or_default().insert(change.uid);
                }
            }
        }
        for ((_, add, remove), uids) in system {
            log.flags(&ranges(uids), add, remove);
        }
        for ((_, add, keyword), uids) in keywords {
            log.keyword(keyword.as_str(), add, &ranges(uids));
        }
    }

    /// Everything that the index is to hold after the edit, for a log that starts anew: for UIDs that lie below UIDNEXT.
    pub fn rebuilt(&self, state: &State, goal: Goal, extensions: &[Extension]) -> Transaction {
        let gone: BTreeSet<u32> = self.expunged.iter().map(|(uid, _)| *uid).collect();
        let names = keywords(state);
        let kept: Vec<&Extension> = state
            .extensions
            .iter()
            .filter(|extension| {
                ![KEYWORDS, MODSEQ].contains(&&*extension.name) && !CACHES.contains(&&*extension.name)
            })
            .collect();
        let mut rows: BTreeMap<u32, Row<'_>> = BTreeMap::new();
        for (row, uid) in state.uids.iter().enumerate().filter(|(_, uid)| !gone.contains(uid)) {
            let data = kept.iter().map(|extension| (&*extension.name, extension.row(row)));
            let data = data.filter(|(_, data)| !data.is_empty()).collect();
            rows.insert(*uid, (flag_set(state, row, &names), state.modseq_of(row), data));
        }
        for RecordData { extension, uid, data } in &self.records {
            if let Some((.., row)) = rows.get_mut(uid) {
                row.insert(extension, data);
            }
        }
        // What is new below UIDNEXT is new to every client.
        let fresh = (state.highest_modseq() + 1).max(goal.modseq_min.get());
        for mail in &self.appended {
            let data = mail.data.iter().map(|(name, data)| (*name, &**data)).collect();
            rows.insert(mail.uid, (mail.flags.clone(), fresh, data));
        }
        for change in &self.flagged {
            if let Some((flags, modseq, _)) = rows.get_mut(&change.uid) {
                *flags = flags.minus(&change.remove).union(&change.add);
                *modseq = fresh;
            }
        }
        let mut log = Transaction::new();
        let validity = goal.uid_validity.map_or(state.header.uid_validity, |validity| validity.get());
        log.header(24, &validity.to_le_bytes());
        log.header(48, &state.header.first_recent_uid.to_le_bytes());
        log.introduce(None, &modseq_extension());
        log.ext_header(0, &MODSEQ_HEADER);
        log.append(&rows.iter().map(|(uid, (flags, ..))| (*uid, flags.system.bits())).collect::<Vec<_>>());
        let mut private: BTreeMap<u8, Vec<u32>> = BTreeMap::new();
        for (row, uid) in state.uids.iter().enumerate().filter(|(_, uid)| rows.contains_key(uid)) {
            // What was only asked for is not asked for any more, but the index is still newer than the file.
            let dirty = if state.is_requested(*uid) { DIRTY } else { 0 };
            let bits = state.flags[row] & !SYSTEM | dirty;
            if bits != 0 {
                private.entry(bits).or_default().push(*uid);
            }
        }
        private.into_iter().for_each(|(bits, uids)| log.flags(&ranges(uids), bits, 0));
        for extension in
            kept.into_iter().chain(extensions.iter().filter(|e| state.extension(&e.name).is_none()))
        {
            let changes = || self.headers.iter().filter(|header| header.extension == &*extension.name);
            let end = changes().map(|header| usize::from(header.at) + header.data.len()).max();
            let header_bytes = extension.header_bytes.max(end.unwrap_or(0));
            log.introduce(None, &Extension { header_bytes, ..extension.clone() });
            let mut header = extension.header_padded(header_bytes);
            for HeaderData { at, data, .. } in changes() {
                header[usize::from(*at)..][..data.len()].copy_from_slice(data);
            }
            if !header.is_empty() && header.len() <= usize::from(u16::MAX) {
                log.ext_header(0, &header);
            }
            let sized = |data: &&&[u8]| data.len() == extension.record_bytes;
            let data = rows
                .iter()
                .filter_map(|(uid, (.., data))| Some((*uid, *data.get(&*extension.name).filter(sized)?)));
            log.ext_records(data.collect::<Vec<_>>());
        }
        let mut keywords: BTreeMap<&Keyword, Vec<u32>> = BTreeMap::new();
        for (uid, (flags, ..)) in &rows {
            flags.keywords.iter().for_each(|keyword| keywords.entry(keyword).or_default().push(*uid));
        }
        for (keyword, uids) in keywords {
            log.keyword(keyword.as_str(), true, &ranges(uids));
        }
        log.modseqs(&rows.iter().map(|(uid, (_, modseq, _))| (*uid, *modseq)).collect::<Vec<_>>());
        log.modseqs(&[(NOBODY, fresh)]);
        let next = state.header.next_uid.max(goal.uid_next_min.get());
        let last = rows.last_key_value().map_or(1, |(uid, _)| uid + 1);
        if next > last {
            log.header(28, &next.to_le_bytes());
        }
        log
    }
}

/// Up to which UID messages have a POP3 UIDL; Dovecot does not look for one above.
const POP3_UIDL: &str = "hdr-pop3-uidl";

/// What tells Dovecot that a message with this UID has a POP3 UIDL; where the header is missing, it looks at every message.
pub fn pop3_uidl(state: &State, uid: u32) -> Option<HeaderData> {
    let known = u32_at(&state.extension(POP3_UIDL)?.header_padded(4), 0);
    (known < uid).then(|| HeaderData { extension: POP3_UIDL, at: 0, data: uid.to_le_bytes().to_vec() })
}

/// No UID: a modseq given to it raises HIGHESTMODSEQ alone. Dovecot writes it so too.
const NOBODY: u32 = 0;

/// Highest modseq 1, counted nowhere yet. Without it Dovecot 2.3.19 crashes on the next keyword record.
const MODSEQ_HEADER: [u8; 16] = [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn modseq_extension() -> Extension {
    Extension::new(MODSEQ, 16, 8, 8)
}

/// Keywords by their index; `None` for what is no keyword.
pub fn keywords(state: &State) -> Vec<Option<Keyword>> {
    state.keywords.iter().map(|name| Keyword::new(name)).collect()
}

/// Flags of the mail in this row.
pub fn flag_set(state: &State, row: usize, keywords: &[Option<Keyword>]) -> FlagSet {
    let system = Flags::from_bits(state.flags[row] & SYSTEM).unwrap_or_default();
    let keywords = state.keywords_of(row).filter_map(|index| keywords.get(index)?.clone());
    FlagSet { system, keywords: keywords.collect() }
}

/// UIDNEXT.
pub fn uid_next(state: &State) -> Uid {
    Uid::new(state.header.next_uid).unwrap_or(Uid::MIN)
}
