//! What the log tells of a mailbox's attributes: which were set or removed, not to what (storage formats reference, 4.3).

use std::time::{SystemTime, UNIX_EPOCH};

use dsync_model::{AttributeChange, AttributeChanges, AttributeScope, ModSeq};

use super::{Index, Transaction};
use crate::lock::patience;
use crate::{Fsync, Result};

impl Index {
    /// The last change of each attribute, as far back as the logs reach. Keys that are no text are left out.
    pub fn attribute_log(&self) -> Result<Vec<AttributeChange>> {
        let told = self.history(0)?.attributes.into_iter();
        let change = |((scope, key), (removed, modseq)): ((u8, Vec<u8>), (bool, u64))| {
            let scope = match scope {
                b'p' => AttributeScope::Private,
                b's' => AttributeScope::Shared,
                _ => return None,
            };
            let (key, modseq) = (String::from_utf8(key).ok()?, ModSeq::new(modseq)?);
            Some(AttributeChange { scope, key, removed, modseq })
        };
        Ok(told.filter_map(change).collect())
    }

    /// Tells of changes that were just made.
    pub fn log_attributes(&mut self, changes: &AttributeChanges, policy: Fsync) -> Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as u32);
        let mut transaction = Transaction::new();
        transaction.attributes(changes, now);
        self.lock(patience())?.append(transaction, policy)
    }
}

/// Scope, key, and whether it was removed, of the first entry of a record. Of the others Dovecot 2.3 takes no notice when it
/// synchronises, and both ends have to judge by the same.
pub(super) fn name(payload: &[u8]) -> Option<(u8, &[u8], bool)> {
    match payload.split(|byte| *byte == 0).next()? {
        [b'+', scope, key @ ..] => Some((*scope, key, false)),
        [b'-', scope, key @ ..] => Some((*scope, key, true)),
        _ => None,
    }
}

/// The record that tells of changes at `at`, seconds since 1970.
pub(super) fn record(changes: &AttributeChanges, at: u32) -> Vec<u8> {
    let (mut names, mut values) = (Vec::new(), Vec::new());
    for (key, value) in changes {
        names.push(if value.is_some() { b'+' } else { b'-' });
        names.push(match key.scope {
            AttributeScope::Private => b'p',
            AttributeScope::Shared => b's',
        });
        names.extend_from_slice(key.key.as_bytes());
        names.push(0);
        values.extend_from_slice(&at.to_le_bytes());
        if let Some(value) = value {
            values.extend_from_slice(&(value.len() as u32).to_le_bytes());
        }
    }
    if names.is_empty() {
        return names;
    }
    names.push(0);
    names.resize(names.len().next_multiple_of(4), 0);
    names.extend(values);
    names
}

#[cfg(test)]
mod tests {
    use dsync_model::{AttributeKey, MailboxGuid};

    use super::*;

    #[test]
    fn the_example_of_the_reference() {
        let key = |scope, key: &str| AttributeKey { mailbox: MailboxGuid([1; 16]), scope, key: key.into() };
        let set = [(key(AttributeScope::Shared, "comment"), Some(b"8 bytes.".to_vec()))].into();
        let bytes = record(&set, 0x6b04_4dc1);
        let expected = b"+scomment\0\0\0\xc1\x4d\x04\x6b\x08\0\0\0";
        assert_eq!(bytes, expected);
        assert_eq!(name(&bytes), Some((b's', &b"comment"[..], false)));
        let both = [
            (key(AttributeScope::Private, "a/b"), None),
            (key(AttributeScope::Shared, "x"), Some(Vec::new())),
        ];
        let bytes = record(&both.into(), 1);
        assert_eq!(bytes, b"-pa/b\0+sx\0\0\0\x01\0\0\0\x01\0\0\0\0\0\0\0");
        assert_eq!(name(&bytes), Some((b'p', &b"a/b"[..], true)));
        assert!(record(&AttributeChanges::new(), 1).is_empty());
    }
}
