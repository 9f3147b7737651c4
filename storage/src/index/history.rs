//! What became of messages, as far back as the logs reach.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use dsync_model::{FlagDelta, Flags, Keyword, MailboxGuid, MessageChange, MessageGuid, Since, Uid};

use super::format::{LogHeader, Record, Records, kind, u16_at, u32_at};
use super::{Index, State, attributes, read_log};
use crate::{Result, StorageError};

/// What the logs tell of changes after a modseq.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct History {
    /// Everything after this modseq is told; what was at or before it may be missing.
    pub since: u64,
    /// Expunged messages by UID: modseq, and the 128 bits of the GUID where the log has them.
    pub expunged: BTreeMap<u32, (u64, Option<[u8; 16]>)>,
    /// GUIDs of messages that were asked to be expunged and are not known to be.
    asked: BTreeMap<u32, [u8; 16]>,
    flags_from: u32,
    /// Flags and keywords that were last added to or removed from messages that are still there.
    pub flags: BTreeMap<u32, FlagHistory>,
    /// Attributes that were last set or removed: by scope (`p`, `s`) and key, whether removed, when (seconds since 1970), and the modseq.
    pub attributes: BTreeMap<(u8, Vec<u8>), (bool, u32, u64)>,
    /// The same by the first of each record alone.
    pub attributes_first: BTreeMap<(u8, Vec<u8>), (bool, u32, u64)>,
    /// When the oldest log was begun, in seconds since 1970.
    pub begun: Option<u32>,
}

/// Each flag and keyword is in one of each two sets at most: that of its last change.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct FlagHistory {
    pub added: u8,
    pub removed: u8,
    /// Keywords: whether they were added.
    pub keywords: BTreeMap<String, bool>,
}

impl Index {
    /// Reads the logs for what happened after `since`, up to the position of the index; to flags, of messages from this UID on.
    pub fn history(&self, since: u64, flags_from: u32) -> Result<History> {
        let mut history =
            History { since: self.header.initial_modseq.max(since), flags_from, ..History::default() };
        if self.header.previous_sequence != 0
            && since < self.header.initial_modseq
            && let Some((_, bytes)) = read_log(&self.paths.log2())?
            && let Ok(header) = LogHeader::parse(&bytes)
            && (header.index_id, header.sequence) == (self.header.index_id, self.header.previous_sequence)
        {
            history.since = header.initial_modseq.max(since);
            history.begun = Some(header.created);
            history.walk(&self.state, &header, &bytes, since);
        }
        let log = self.paths.log();
        if let Some((_, bytes)) = read_log(&log)? {
            let header = LogHeader::parse(&bytes).map_err(|what| StorageError::Corrupt {
                path: log,
                line: 0,
                what,
            })?;
            if header.sequence == self.header.sequence {
                history.begun.get_or_insert(header.created);
                let end = bytes.len().min(self.offset as usize);
                history.walk(&self.state, &header, &bytes[..end], since);
            }
        }
        history.expunged.retain(|uid, _| self.state.row(*uid).is_none());
        Ok(history)
    }
}

impl Index {
    /// Adds to a list what the log proves: how flags of messages that are new came to stand as they do and, if the list is of all messages, who
    /// was expunged.
    pub fn prove(&self, changes: &mut Vec<MessageChange>, since: Since<'_>) -> Result<()> {
        let mut saves = changes.iter().filter(|change| matches!(change, MessageChange::Save { .. }));
        let first = saves.next().map(|save| save.uid().get());
        if first.is_none() && matches!(since, Since::Base(_)) {
            return Ok(());
        }
        let history = self.history(0, first.unwrap_or(u32::MAX))?;
        for change in changes.iter_mut() {
            let MessageChange::Save { uid, flags, .. } = change else { continue };
            let Some(told) = history.flags.get(&uid.get()) else { continue };
            let mut delta = FlagDelta::standing(std::mem::take(&mut flags.current));
            delta.added.system = Flags::from_bits(told.added & 0x1f).unwrap_or_default();
            delta.removed.system = Flags::from_bits(told.removed & 0x1f).unwrap_or_default();
            for (name, added) in &told.keywords {
                if let Some(keyword) = Keyword::new(name) {
                    if *added { &mut delta.added } else { &mut delta.removed }.keywords.insert(keyword);
                }
            }
            delta.added = delta.added.intersection(&delta.current);
            delta.removed = delta.removed.minus(&delta.current);
            *flags = delta;
        }
        if matches!(since, Since::Base(_)) {
            return Ok(());
        }
        // A message that only got another UID was not expunged.
        let here = changes.iter().filter_map(|change| match change {
            MessageChange::Save { guid, .. } => Some(guid.bits()),
            _ => None,
        });
        let here: BTreeSet<[u8; 16]> = here.collect();
        let gone =
            history.expunged.iter().filter(|(_, (_, guid))| guid.is_none_or(|guid| !here.contains(&guid)));
        let gone: Vec<MessageChange> = gone
            .filter_map(|(uid, (_, guid))| {
                let guid = MessageGuid::new(&MailboxGuid((*guid)?).to_string())?;
                Some(MessageChange::Expunge { uid: Uid::new(*uid)?, guid: Some(guid) })
            })
            .collect();
        changes.extend(gone);
        changes.sort_by_key(MessageChange::uid);
        Ok(())
    }
}

impl History {
    fn walk(&mut self, state: &State, header: &LogHeader, bytes: &[u8], since: u64) {
        let mut modseq = header.initial_modseq.max(1);
        for record in Records::new(bytes, usize::from(header.header_bytes)) {
            modseq = State::count(modseq, header.minor, &record);
            if modseq > since {
                self.take(state, &record, modseq);
            }
        }
    }

    /// Rows of the messages in a range of UIDs (first, last) whose flags are asked for.
    fn rows(&self, state: &State, range: &[u8]) -> Range<usize> {
        state.rows(u32_at(range, 0).max(self.flags_from)..u32_at(range, 4).saturating_add(1))
    }

    fn take(&mut self, state: &State, record: &Record<'_>, modseq: u64) {
        let payload = record.payload;
        match record.kind {
            kind::EXPUNGE_GUID if record.external => {
                for entry in payload.chunks_exact(20) {
                    let mut guid = [0; 16];
                    guid.copy_from_slice(&entry[4..]);
                    let uid = u32_at(entry, 0);
                    let asked = self.asked.remove(&uid);
                    let guid = (guid != [0; 16]).then_some(guid).or(asked);
                    self.expunged.insert(uid, (modseq, guid));
                }
            }
            // Dovecot asks for an expunge with the GUID; having carried it out, for Maildir it logs none.
            kind::EXPUNGE_GUID => {
                for entry in payload.chunks_exact(20) {
                    let mut guid = [0; 16];
                    guid.copy_from_slice(&entry[4..]);
                    if guid != [0; 16] {
                        self.asked.insert(u32_at(entry, 0), guid);
                    }
                }
            }
            kind::FLAG_UPDATE => {
                for entry in payload.chunks_exact(12) {
                    for row in self.rows(state, entry) {
                        let uid = state.uids[row];
                        let flags = self.flags.entry(uid).or_default();
                        flags.added = flags.added & !entry[9] | entry[8];
                        flags.removed = flags.removed & !entry[8] | entry[9];
                    }
                }
            }
            kind::KEYWORD_UPDATE if payload.len() >= 4 => {
                let name_bytes = usize::from(u16_at(payload, 2));
                let Some(name) = payload.get(4..4 + name_bytes) else { return };
                let Ok(name) = std::str::from_utf8(name) else { return };
                let uids = &payload[(4 + name_bytes).next_multiple_of(4).min(payload.len())..];
                for entry in uids.chunks_exact(8) {
                    for row in self.rows(state, entry) {
                        let uid = state.uids[row];
                        self.flags.entry(uid).or_default().keywords.insert(name.to_owned(), payload[0] == 0);
                    }
                }
            }
            kind::ATTRIBUTE_UPDATE => {
                for (n, told) in attributes::entries(payload).enumerate() {
                    let (key, change) = ((told.scope, told.key.to_vec()), (told.removed, told.at, modseq));
                    if n == 0 {
                        self.attributes_first.insert(key.clone(), change);
                    }
                    self.attributes.insert(key, change);
                }
            }
            _ => {}
        }
    }
}
