//! What changed in a mailbox since its base.

use crate::{FlagDelta, MailboxBase, MailboxStatus, Message, MessageChange, Uid};

/// From where on changes are asked for.
#[derive(Clone, Copy, Debug)]
pub enum Since<'a> {
    /// Every message, as [`MessageChange::Save`].
    All,
    /// What differs from what both ends agreed on.
    Base(&'a MailboxBase),
}

/// A mailbox's counters, and what changed in it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Changes {
    pub status: MailboxStatus,
    /// Ascending by UID, each UID at most once.
    pub list: Vec<MessageChange>,
}

/// Tells what leads from `since` to the current `messages`, which ascend by UID.
///
/// Pure, so that each storage that can list its messages can tell its changes. With
/// [`Since::Base`], the base must be one of this UIDVALIDITY; the caller checks.
pub fn changes_since(messages: &[Message], since: Since<'_>) -> Vec<MessageChange> {
    let base = match since {
        Since::All => return messages.iter().map(save).collect(),
        Since::Base(base) => base,
    };
    let mut list = Vec::new();
    let mut known = base.uids.iter().peekable();
    let expunge = |uid: u32, list: &mut Vec<MessageChange>| {
        if let Some(uid) = Uid::new(uid) {
            list.push(MessageChange::Expunge { uid, guid: None });
        }
    };
    for message in messages {
        let uid = message.uid.get();
        while let Some(gone) = known.next_if(|known| *known < uid) {
            expunge(gone, &mut list);
        }
        if known.next_if_eq(&uid).is_none() {
            if !base.out_of_scope.contains(uid) {
                list.push(save(message));
            }
        } else if !base.has_flags(message.uid, &message.flags) {
            let flags = FlagDelta::between(&base.flags_of(message.uid), message.flags.clone());
            list.push(MessageChange::Flags {
                uid: message.uid,
                guid: message.guid.clone(),
                modseq: message.modseq,
                flags,
            });
        }
    }
    known.for_each(|gone| expunge(gone, &mut list));
    list
}

fn save(message: &Message) -> MessageChange {
    MessageChange::Save {
        uid: message.uid,
        guid: message.guid.clone(),
        modseq: message.modseq,
        flags: FlagDelta::standing(message.flags.clone()),
        size: message.size,
    }
}
