//! The nouns of mailbox synchronisation.
//!
//! A *mailbox* is one folder of messages. It has a name (a path of hierarchy parts), a GUID that
//! survives renames, and a UIDVALIDITY; each of its messages has a UID that is never used again under
//! that UIDVALIDITY. A message has a GUID of its own, which stays with its content through copies and
//! moves, flags and keywords, and a MODSEQ that grows with every change.
//!
//! What two stores agreed on after their last synchronisation is the [`Base`]; what one of them did
//! since then is a list of [`MessageChange`]s; how they stand is a [`MailboxStatus`] with a [`Digest`].
//!
//! No I/O, no clock, no randomness here, and nothing that decides: that is the work of `dsync-merge`.
#![forbid(unsafe_code)]

mod attribute;
mod base;
mod changes;
mod digest;
mod filter;
mod flags;
mod id;
mod mask;
mod message;
pub mod mutf7;
mod name;
mod name_rules;
mod state;
mod tree;

pub use attribute::{
    ATTRIBUTE_BYTES_MAX, ATTRIBUTE_KEY_BYTES_MAX, AttributeChange, AttributeChanges, AttributeKey,
    AttributeList, AttributeLog, AttributeRecord, AttributeRecords, AttributeScope, AttributeTime,
    AttributeTimes, AttributeValue,
};
pub use base::{BASE_BYTES_MAX, Base, BaseError, BaseNode, MailboxBase, NotKept, UidSet};
pub use changes::{Changes, Since, changes_since};
pub use digest::Digest;
pub use filter::Filter;
pub use flags::{FlagDelta, FlagSet, Flags, KEYWORD_BYTES_MAX, KEYWORDS_MAX, Keyword};
pub use id::{
    GUID_BYTES_MAX, Generation, MailboxGuid, MessageGuid, ModSeq, StoreId, Timestamp, Uid, UidValidity,
};
pub use mask::Mask;
pub use message::{MailboxStatus, Message, MessageAction, MessageChange, NewMessage};
pub use name::{MailboxName, NAME_BYTES_MAX, NameError, PARTS_MAX};
pub use name_rules::{NameRules, NamespaceRules, Namespaces, Reserved, Where};
pub use state::{LastCommon, StateError, SyncState};
pub use tree::{MailboxNode, MailboxTree, NameHash, TreeChange, TreeLog};
