//! The mailboxes of an account, and changes to them.

use std::collections::{BTreeMap, BTreeSet};

use bincode::{Decode, Encode};
use sha1::{Digest, Sha1};

use crate::{MailboxGuid, MailboxName, MailboxStatus, Timestamp, Uid, UidValidity};

/// One name of an account.
#[derive(Clone, PartialEq, Eq, Default, Debug, Encode, Decode)]
pub struct MailboxNode {
    /// The mailbox of that name; `None`: a directory that holds no mail itself, or a name that is only
    /// subscribed.
    pub mailbox: Option<MailboxStatus>,
    /// With `mailbox` empty: the directory exists.
    pub directory: bool,
    pub subscribed: bool,
    /// When it got this name, if a log tells.
    pub renamed: Option<Timestamp>,
    /// When it was last subscribed or unsubscribed, if a log tells.
    pub subscription_changed: Option<Timestamp>,
    /// Nothing in the mailbox changed after this, as far as its files tell.
    pub changed: Option<Timestamp>,
}

/// What a log of an account tells of mailboxes and names that are not there any more, and when they went.
#[derive(Clone, PartialEq, Eq, Default, Debug, Encode, Decode)]
pub struct TreeLog {
    /// The hierarchy separator of the names that were hashed.
    pub separator: char,
    pub deleted: BTreeMap<MailboxGuid, Timestamp>,
    /// Names without mail that were removed.
    pub directories: BTreeMap<NameHash, Timestamp>,
    pub unsubscribed: BTreeMap<NameHash, Timestamp>,
}

impl TreeLog {
    /// How many things it tells.
    pub fn len(&self) -> usize {
        self.deleted.len() + self.directories.len() + self.unsubscribed.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The same in pieces of at most `entries_max` entries, at least one piece.
    pub fn pieces(&self, entries_max: usize) -> Vec<TreeLog> {
        let empty = || TreeLog { separator: self.separator, ..TreeLog::default() };
        let mut pieces = vec![empty()];
        let mut add = |add: &dyn Fn(&mut TreeLog)| {
            if pieces.last().is_none_or(|piece| piece.len() >= entries_max) {
                pieces.push(empty());
            }
            pieces.last_mut().into_iter().for_each(add);
        };
        self.deleted.iter().for_each(|(guid, at)| add(&|piece| _ = piece.deleted.insert(*guid, *at)));
        self.directories.iter().for_each(|(name, at)| add(&|piece| _ = piece.directories.insert(*name, *at)));
        self.unsubscribed
            .iter()
            .for_each(|(name, at)| add(&|piece| _ = piece.unsubscribed.insert(*name, *at)));
        pieces
    }

    /// Takes another piece.
    pub fn extend(&mut self, piece: TreeLog) {
        self.separator = piece.separator;
        self.deleted.extend(piece.deleted);
        self.directories.extend(piece.directories);
        self.unsubscribed.extend(piece.unsubscribed);
    }

    /// When a directory of this name was removed, if the log tells.
    pub fn directory_deleted(&self, name: &MailboxName) -> Option<Timestamp> {
        self.directories.get(&NameHash::of(name, self.separator)).copied()
    }

    /// When this name was unsubscribed, if the log tells.
    pub fn unsubscribed(&self, name: &MailboxName) -> Option<Timestamp> {
        self.unsubscribed.get(&NameHash::of(name, self.separator)).copied()
    }
}

/// The first 16 bytes of SHA-1 of a name: how Dovecot's mailbox log names it (storage formats reference, 5.2).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Encode, Decode)]
pub struct NameHash(pub [u8; 16]);

impl NameHash {
    /// Of a name, spelled with this hierarchy separator.
    pub fn of(name: &MailboxName, separator: char) -> NameHash {
        let hash = Sha1::digest(name.join(separator).as_bytes());
        let mut first = [0; 16];
        first.copy_from_slice(&hash[..16]);
        NameHash(first)
    }
}

/// All names of an account, in the order of [`MailboxName`]. Each GUID appears once.
pub type MailboxTree = BTreeMap<MailboxName, MailboxNode>;

/// One change to the mailboxes of an account. None of them touches other names: renaming a mailbox
/// leaves those below it where they are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TreeChange {
    /// Makes an empty mailbox; `uid_next` is where its UIDs begin.
    Create {
        name: MailboxName,
        guid: MailboxGuid,
        uid_validity: UidValidity,
        uid_next: Uid,
    },
    /// Makes a directory that holds no mail. Where the layout has none: nothing.
    CreateDirectory {
        name: MailboxName,
    },
    Rename {
        guid: MailboxGuid,
        from: MailboxName,
        to: MailboxName,
    },
    /// Gives the mailbox another GUID, and UIDVALIDITY where it differs; messages and UIDs stay.
    Identify {
        name: MailboxName,
        guid: MailboxGuid,
        uid_validity: UidValidity,
    },
    /// Removes a mailbox and its messages, but only if its UIDNEXT still is `uid_next`: mail that
    /// arrived since the decision is never lost. `false` comes back otherwise.
    Delete {
        name: MailboxName,
        guid: MailboxGuid,
        uid_next: Uid,
    },
    /// Removes a directory that holds neither mail nor mailboxes.
    DeleteDirectory {
        name: MailboxName,
    },
    Subscribe {
        names: BTreeSet<MailboxName>,
    },
    Unsubscribe {
        names: BTreeSet<MailboxName>,
    },
}
