//! What the log tells of a mailbox's attributes: which were set or removed, not to what (storage formats reference, 4.3).

use dsync_model::{
    AttributeChange, AttributeKey, AttributeLog, AttributeRecord, AttributeRecords, AttributeScope, ModSeq,
};

use super::format::u32_at;
use super::writer::now;
use super::{Index, Transaction};
use crate::lock::patience;
use crate::{Fsync, Result};

/// What a record says of one attribute.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Told<'a> {
    /// `p` or `s`.
    pub scope: u8,
    pub key: &'a [u8],
    pub removed: bool,
    /// Seconds since 1970; 0 if the record is cut short.
    pub at: u32,
}

impl Index {
    /// The last change of each attribute, as far back as the logs reach. Keys that are no text are left out.
    pub fn attribute_log(&self) -> Result<AttributeLog> {
        let history = self.history(0, u32::MAX)?;
        let change = |((scope, key), (removed, at, modseq)): ((u8, Vec<u8>), (bool, u32, u64))| {
            let scope = match scope {
                b'p' => AttributeScope::Private,
                b's' => AttributeScope::Shared,
                _ => return None,
            };
            let (key, modseq) = (String::from_utf8(key).ok()?, ModSeq::new(modseq)?);
            Some(AttributeChange { scope, key, removed, at, modseq })
        };
        let changes = history.attributes.into_iter().filter_map(change).collect();
        let first = history.attributes_first.into_iter().filter_map(change).collect();
        Ok(AttributeLog { since: history.begun, changes, first })
    }

    /// Tells of changes that were made.
    pub fn log_attributes(&mut self, records: &AttributeRecords, policy: Fsync) -> Result<()> {
        let mut transaction = Transaction::new();
        transaction.attributes(records, now());
        self.lock(patience())?.append(transaction, policy)
    }
}

/// The entries of a record: names, an empty one at their end, then for each a time, and a length if it was set.
pub(super) fn entries(payload: &[u8]) -> impl Iterator<Item = Told<'_>> {
    let names = payload.split(|byte| *byte == 0).take_while(|name| !name.is_empty());
    let end: usize = names.clone().map(|name| name.len() + 1).sum();
    let mut at = (end + 1).next_multiple_of(4);
    let mut number = move |bytes: usize| {
        let number = payload.get(at..at + 4).map_or(0, |bytes| u32_at(bytes, 0));
        at += bytes;
        number
    };
    names.map_while(move |name| match name {
        [b'+', scope, key @ ..] => Some(Told { scope: *scope, key, removed: false, at: number(8) }),
        [b'-', scope, key @ ..] => Some(Told { scope: *scope, key, removed: true, at: number(4) }),
        _ => None,
    })
}

/// The record that tells of one change: when it was made, if nobody knows, was `now`. Of a record of several changes Dovecot 2.3
/// takes notice of the first only when it synchronises.
pub(super) fn record(key: &AttributeKey, change: &AttributeRecord, now: u32) -> Vec<u8> {
    let scope = match key.scope {
        AttributeScope::Private => b'p',
        AttributeScope::Shared => b's',
    };
    let mut payload = vec![if change.bytes.is_some() { b'+' } else { b'-' }, scope];
    payload.extend_from_slice(key.key.as_bytes());
    payload.extend_from_slice(&[0, 0]);
    payload.resize(payload.len().next_multiple_of(4), 0);
    payload.extend_from_slice(&change.at.unwrap_or(now).to_le_bytes());
    payload.extend(change.bytes.into_iter().flat_map(u32::to_le_bytes));
    payload
}

#[cfg(test)]
mod tests {
    use dsync_model::MailboxGuid;

    use super::*;

    #[test]
    fn the_example_of_the_reference() {
        let key = AttributeKey {
            scope: AttributeScope::Shared,
            key: "comment".into(),
            ..AttributeKey::first_of(MailboxGuid([1; 16]))
        };
        let set = AttributeRecord { bytes: Some(8), at: Some(0x6b04_4dc1) };
        let bytes = record(&key, &set, 1);
        assert_eq!(bytes, b"+scomment\0\0\0\xc1\x4d\x04\x6b\x08\0\0\0");
        let told = Told { scope: b's', key: b"comment", removed: false, at: 0x6b04_4dc1 };
        assert!(entries(&bytes).eq([told]));
        let removed = AttributeRecord { bytes: None, at: None };
        let bytes = record(&key, &removed, 7);
        assert!(entries(&bytes).eq([Told { removed: true, at: 7, ..told }]));
    }

    #[test]
    fn a_record_of_several_as_dovecot_writes_it() {
        let bytes = b"-pa/b\0+sx\0-sy\0\0\0\x01\0\0\0\x02\0\0\0\0\0\0\0\x03\0\0\0";
        let told = |scope, key, removed, at| Told { scope, key, removed, at };
        let all = [told(b'p', &b"a/b"[..], true, 1), told(b's', b"x", false, 2), told(b's', b"y", true, 3)];
        assert!(entries(bytes).eq(all));
        for end in 0..bytes.len() {
            assert!(entries(&bytes[..end]).count() <= all.len(), "cut at {end}");
        }
    }
}
