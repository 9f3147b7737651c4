//! Attributes of mailboxes: what IMAP METADATA keeps. Those of the server hang on INBOX.

use std::collections::BTreeMap;

use bincode::{Decode, Encode};
use xxhash_rust::xxh3::xxh3_128_with_seed;

use crate::{Digest, MailboxGuid, ModSeq};

/// Longest value that is synchronised, in bytes.
pub const ATTRIBUTE_BYTES_MAX: usize = 512 << 10;
/// Longest key that is synchronised, in bytes.
pub const ATTRIBUTE_KEY_BYTES_MAX: usize = 2000;

/// Who sees an attribute.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Encode, Decode)]
pub enum AttributeScope {
    Private,
    Shared,
}

/// Names an attribute of a mailbox. The key is without `/private/` and `/shared/`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Encode, Decode)]
pub struct AttributeKey {
    pub mailbox: MailboxGuid,
    pub scope: AttributeScope,
    pub key: String,
}

/// What an attribute holds.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub enum AttributeValue {
    Bytes(Vec<u8>),
    /// More than [`ATTRIBUTE_BYTES_MAX`]: left alone at both ends.
    TooLarge,
}

/// All attributes of an account.
pub type AttributeList = BTreeMap<AttributeKey, AttributeValue>;

/// Attributes to set, or with `None` to remove.
pub type AttributeChanges = BTreeMap<AttributeKey, Option<Vec<u8>>>;

/// What the log of a mailbox tells of its attributes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct AttributeLog {
    /// Seconds since 1970: whatever changed later is told of. `None`: no log is kept.
    pub since: Option<u32>,
    /// The last change of each attribute that is told of, ascending by scope and key.
    pub changes: Vec<AttributeChange>,
    /// What Dovecot 2.3 takes notice of when it synchronises: of a record of several changes it is the first.
    pub first: Vec<AttributeChange>,
}

/// The last change of an attribute that the log of its mailbox tells of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AttributeChange {
    pub scope: AttributeScope,
    pub key: String,
    pub removed: bool,
    /// Seconds since 1970.
    pub at: u32,
    pub modseq: ModSeq,
}

/// When an attribute came to be as it is at one end, as far as anybody knows; in seconds since 1970.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Encode, Decode)]
pub struct AttributeTime {
    pub changed: Option<u32>,
    /// A change after this would be known.
    pub known_since: Option<u32>,
}

/// Of attributes of both ends, named by the GUIDs that their mailboxes are to have.
pub type AttributeTimes = BTreeMap<AttributeKey, AttributeTime>;

/// What the log of a mailbox is to tell of an attribute that was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AttributeRecord {
    /// Length of the new value in bytes; `None`: it was removed.
    pub bytes: Option<u32>,
    /// Seconds since 1970; `None`: now.
    pub at: Option<u32>,
}

/// Changes that are made and not yet in the logs.
pub type AttributeRecords = BTreeMap<AttributeKey, AttributeRecord>;

impl AttributeLog {
    /// When an attribute came to be as it is: there, or not. A last change that did not leave it so is not the last: somebody
    /// changed it without a word, and nobody knows when.
    pub fn time_of(&self, scope: AttributeScope, key: &str, is_there: bool) -> AttributeTime {
        let found =
            self.changes.binary_search_by(|change| (change.scope, change.key.as_str()).cmp(&(scope, key)));
        match found.ok().map(|index| &self.changes[index]) {
            None => AttributeTime { changed: None, known_since: self.since },
            Some(change) if change.removed == is_there => AttributeTime::default(),
            Some(change) => AttributeTime { changed: Some(change.at), known_since: self.since },
        }
    }
}

impl AttributeRecord {
    /// Of a change that nobody knows the time of.
    pub fn now(value: Option<&Vec<u8>>) -> AttributeRecord {
        AttributeRecord { bytes: value.map(|value| value.len() as u32), at: None }
    }
}

impl AttributeKey {
    /// The key that sorts before all of a mailbox.
    pub fn first_of(mailbox: MailboxGuid) -> AttributeKey {
        AttributeKey { mailbox, scope: AttributeScope::Private, key: String::new() }
    }
}

impl Digest {
    /// Of the value of an attribute: XXH3-128 with [`Digest::SEED`].
    pub fn of_attribute(value: &[u8]) -> Digest {
        Digest(xxh3_128_with_seed(value, Digest::SEED))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_does_not_end_with_what_is_there_proves_nothing() {
        let change = |key: &str, removed, at| AttributeChange {
            scope: AttributeScope::Shared,
            key: key.into(),
            removed,
            at,
            modseq: ModSeq::NONE,
        };
        let changes = vec![change("gone", true, 7), change("set", false, 6)];
        let log = AttributeLog { since: Some(5), changes, ..AttributeLog::default() };
        let time = |key, is_there| {
            let AttributeTime { changed, known_since } = log.time_of(AttributeScope::Shared, key, is_there);
            (changed, known_since)
        };
        assert_eq!(time("set", true), (Some(6), Some(5)));
        assert_eq!(time("gone", false), (Some(7), Some(5)));
        assert_eq!((time("set", false), time("gone", true)), ((None, None), (None, None)));
        assert_eq!((time("old", true), time("never", false)), ((None, Some(5)), (None, Some(5))));
        let private = log.time_of(AttributeScope::Private, "set", true);
        assert_eq!(private, AttributeTime { changed: None, known_since: Some(5) });
    }
}
