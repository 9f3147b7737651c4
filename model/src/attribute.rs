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

/// The last change of an attribute that the log of its mailbox tells of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AttributeChange {
    pub scope: AttributeScope,
    pub key: String,
    pub removed: bool,
    pub modseq: ModSeq,
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
