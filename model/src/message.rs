//! Messages: how they stand, what became of them, and what is to be done with them.

use std::fmt;

use bincode::{Decode, Encode};

use crate::{
    Digest, FlagDelta, FlagSet, MailboxGuid, MessageGuid, ModSeq, NotKept, Timestamp, Uid, UidValidity,
};

/// One message of a mailbox as its storage lists it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message {
    pub uid: Uid,
    pub guid: MessageGuid,
    pub flags: FlagSet,
    pub modseq: ModSeq,
    /// When it was delivered (IMAP INTERNALDATE), where the listing knows it without opening the message.
    pub received: Option<Timestamp>,
    /// Size in bytes as stored, where the listing knows it without opening the message.
    pub size: Option<u64>,
}

/// What became of one message of a mailbox since the base. Lists of these ascend by UID and name each
/// UID at most once.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub enum MessageChange {
    /// It is here, and the base does not know it (without a base: it is here).
    Save { uid: Uid, guid: MessageGuid, modseq: ModSeq, flags: FlagDelta, size: Option<u64> },
    /// The base knows it (or a log proves it), and it is gone. With the GUID where that is known.
    Expunge { uid: Uid, guid: Option<MessageGuid> },
    /// The base knows it, and its flags have changed.
    Flags { uid: Uid, guid: MessageGuid, modseq: ModSeq, flags: FlagDelta },
}

impl MessageChange {
    pub fn uid(&self) -> Uid {
        match self {
            MessageChange::Save { uid, .. }
            | MessageChange::Expunge { uid, .. }
            | MessageChange::Flags { uid, .. } => *uid,
        }
    }
}

/// A message that is about to be saved: all that is to be the same as at its source.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewMessage {
    pub uid: Uid,
    pub guid: MessageGuid,
    pub flags: FlagSet,
    pub modseq: ModSeq,
    pub received: Option<Timestamp>,
    pub saved: Option<Timestamp>,
    /// The UIDL that POP3 clients have seen, if it is not derived from UID and UIDVALIDITY.
    pub pop3_uidl: Option<Box<str>>,
    /// Place in the order of a POP3 listing, if that is not the order of UIDs.
    pub pop3_order: Option<u32>,
    /// Size in bytes as the source stored it.
    pub size: Option<u64>,
}

/// A change to a message that is already here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MessageAction {
    /// The message gets the UID `to`, which nothing else has; the old UID is never used again.
    Renumber {
        from: Uid,
        to: Uid,
    },
    Flags {
        uid: Uid,
        add: FlagSet,
        remove: FlagSet,
        modseq_min: ModSeq,
    },
    /// Removes the message if it still is the one with this GUID.
    Expunge {
        uid: Uid,
        guid: Option<MessageGuid>,
    },
}

impl MessageAction {
    /// The same for where its message is now, not for whoever has that message's UID instead; `None`: it is gone.
    pub fn redirected(mut self, not_kept: &NotKept) -> Option<MessageAction> {
        let (MessageAction::Renumber { from: uid, .. }
        | MessageAction::Flags { uid, .. }
        | MessageAction::Expunge { uid, .. }) = &mut self;
        if let Some(place) = not_kept.get(uid) {
            *uid = (*place)?;
        }
        Some(self)
    }
}

/// Counters and digest of a mailbox: enough to tell whether two are equal.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct MailboxStatus {
    pub guid: MailboxGuid,
    pub uid_validity: UidValidity,
    /// The UID that the next message gets, at least (RFC 9051 §2.3.1.1).
    pub uid_next: Uid,
    pub messages: u32,
    pub highest_modseq: ModSeq,
    pub digest: Digest,
}

impl fmt::Display for MailboxStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "guid {} uidvalidity {} uidnext {} messages {} digest {}",
            self.guid, self.uid_validity, self.uid_next, self.messages, self.digest
        )
    }
}
