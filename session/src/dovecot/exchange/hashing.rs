//! Messages known by hashes of their headers, where one end keeps no GUIDs (mbox).
//!
//! Both ends compare hashes of what lies at one UID. Dovecot 2.3.19 makes two mistakes here. It asks its log for the GUID of what it expunged,
//! and as that is another one than ours, it takes all from there on for new: so it is not told the GUID of what it expunged under another one, as far as the lists agree. And new messages without a GUID it takes for
//! its own: so those have one. What the lists say is known before ours is told, as Dovecot does not wait for it.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::Path;

use dsync_merge::Direction;
use dsync_merge::dovecot::Hashes;
use dsync_model::{MessageAction, MessageChange, MessageGuid, Uid};
use dsync_proto::dovecot::items;
use dsync_storage::{HeaderHash, StorageError, own_guid};

use super::{Exchange, Part, at};
use crate::SessionError;

/// The hash of a header that has nothing to be hashed: many may have it.
pub(super) const NOTHING: &str = "68b329da9893e34099c7d8ad5cb9c940";

pub(super) struct Hashing {
    how: HeaderHash,
    pub hashes: Hashes,
    /// So much of our list is hashed.
    hashed: usize,
    /// GUIDs that the peer was told, and whose they are.
    told: BTreeMap<Vec<u8>, Uid>,
}

impl Hashing {
    /// `None` where GUIDs will do: whoever receives keeps them, and whoever sends has them (protocol reference, 7.1).
    ///
    /// An mbox of Dovecot 2.3.19 ends in assertions when it has to save beside what it has of its own, and loses mail in it: an error.
    pub fn between(
        name: &str,
        ours: &items::Mailbox,
        theirs: &items::Mailbox,
        (part, direction): (Part, Direction),
        how: &HeaderHash,
    ) -> Result<Option<Hashing>, SessionError> {
        let merges = part != Part::Receiver && !matches!(direction, Direction::Mirror { .. });
        if merges && !theirs.have_save_guids {
            let text = format!(
                "{name}: the other end keeps it without GUIDs (mbox, most likely), and Dovecot 2.3.19 crashes when it has to merge mail into that, or loses some:                  use backup, in either direction, or convert it to another format first"
            );
            return Err(SessionError::Refused { status: 65, text });
        }
        let by_guid = match part {
            Part::Both => ours.have_save_guids && theirs.have_save_guids,
            Part::Receiver => ours.have_save_guids && theirs.have_guids,
            Part::Sender => theirs.have_save_guids && ours.have_guids,
        };
        Ok((!by_guid).then(|| Hashing {
            how: how.clone(),
            hashes: Hashes::default(),
            hashed: 0,
            told: BTreeMap::new(),
        }))
    }

    /// Whether a list of this length is hashed to its end.
    pub fn is_done(&self, length: usize) -> bool {
        self.hashed >= length
    }
}

impl Hashing {
    /// GUIDs that the peer was told, and whose they are.
    pub fn told(&self) -> impl Iterator<Item = (&[u8], Uid)> {
        self.told.iter().map(|(guid, uid)| (&guid[..], *uid))
    }
}

impl Exchange {
    /// Reads the headers of our list up to there. What is gone meanwhile is listed as expunged.
    pub(super) fn hash_own(&mut self, until: usize) -> Result<(), SessionError> {
        let Some(hashing) = &mut self.hashing else { return Ok(()) };
        for index in hashing.hashed..until {
            let MessageChange::Save { uid, guid, .. } = &self.own[index] else { continue };
            let (uid, guid) = (*uid, guid.clone());
            let context = || format!("{}: UID {uid}", self.name);
            match self.mailbox.body(uid, Some(&guid)).map_err(at(context()))? {
                Some(body) => {
                    let path = body.path.as_deref().unwrap_or(Path::new("message")).to_owned();
                    let hash = hashing.how.of(body.reader);
                    let hash = hash.map_err(|source| at(context())(StorageError::Io { path, source }))?;
                    hashing.hashes.ours.insert(uid, hash);
                }
                None => self.own[index] = MessageChange::Expunge { uid, guid: Some(guid) },
            }
        }
        hashing.hashed = hashing.hashed.max(until);
        Ok(())
    }

    /// Adds the hash to a line of our list that tells of a message.
    pub(super) fn tell_hash(&mut self, line: &mut items::Change) {
        let Some(hashing) = self.hashing.as_mut().filter(|_| line.kind != b"e") else { return };
        let Some(uid) = Uid::new(line.uid) else { return };
        line.hdr_hash = hashing.hashes.ours.get(&uid).map(|hash| hash.as_str().into());
        let guid = line.guid.take().map(|guid| MessageGuid::of_bytes(&guid));
        let guid = own_guid(self.ours.mailbox_guid, uid, guid);
        let theirs = self.peer.binary_search_by_key(&uid, MessageChange::uid).ok().map(|at| &self.peer[at]);
        let logged = matches!(theirs, Some(MessageChange::Expunge { guid: Some(gone), .. }) if gone.bits() != guid.bits());
        if logged && self.plan.as_ref().is_some_and(|plan| uid.get() <= plan.common) {
            line.guid = Some(Vec::new());
            return;
        }
        let guid = guid.as_str().as_bytes().to_vec();
        if let Entry::Vacant(first) = hashing.told.entry(guid.clone()) {
            first.insert(uid);
            line.guid = Some(guid);
        } else {
            // Another one has this GUID: Dovecot would not look which of them it gets.
            let own = own_guid(self.ours.mailbox_guid, uid, None).as_str().as_bytes().to_vec();
            hashing.told.insert(own.clone(), uid);
            line.guid = Some(own);
        }
    }

    /// Whose GUID the peer was told here.
    pub(super) fn told(&self, guid: &[u8]) -> Option<Uid> {
        self.hashing.as_ref()?.told.get(guid).copied()
    }

    /// Takes the hash of a line of the peer's, and gives its message a GUID of its own if it has none.
    pub(super) fn take_hash(&mut self, line: &mut items::Change) -> Result<(), SessionError> {
        let Some(uid) = Uid::new(line.uid).filter(|_| line.kind != b"e") else { return Ok(()) };
        if let Some(hashing) = &mut self.hashing {
            let Some(hash) = &line.hdr_hash else {
                return Err(SessionError::Peer(format!("lists UID {uid} without a hash of its header")));
            };
            // Empty: we had no messages it could be compared with.
            let hash = if hash.is_empty() { NOTHING.as_bytes() } else { hash };
            hashing.hashes.theirs.insert(uid, MessageGuid::of_bytes(hash));
        }
        if !self.theirs.have_save_guids {
            let guid = line.guid.as_deref().filter(|guid| !guid.is_empty()).map(MessageGuid::of_bytes);
            line.guid = Some(own_guid(self.ours.mailbox_guid, uid, guid).as_str().into());
        }
        Ok(())
    }

    /// Our list with the GUIDs that the peer is told.
    pub(super) fn own_as_told(&self) -> Vec<MessageChange> {
        let mut list = self.own.clone();
        for change in &mut list {
            if let MessageChange::Save { uid, guid, .. } = change {
                *guid = own_guid(self.ours.mailbox_guid, *uid, Some(guid.clone()));
            }
        }
        list
    }

    /// A list as our own merge reads it: hashes in place of GUIDs, and nothing of what is gone. `hashes`: those that count first.
    pub(super) fn by_hash(
        &self,
        list: &[MessageChange],
        hashes: [&BTreeMap<Uid, MessageGuid>; 2],
    ) -> Vec<MessageChange> {
        let mailbox = self.ours.mailbox_guid;
        let identity = |uid: Uid| {
            let hash = hashes.into_iter().find_map(|hashes| hashes.get(&uid));
            // Messages with nothing to be told by are compared at one UID only.
            own_guid(mailbox, uid, hash.filter(|hash| hash.as_str() != NOTHING).cloned())
        };
        let named = list.iter().filter_map(|change| match change {
            MessageChange::Save { uid, modseq, flags, size, .. } => Some(MessageChange::Save {
                uid: *uid,
                guid: identity(*uid),
                modseq: *modseq,
                flags: flags.clone(),
                size: *size,
            }),
            MessageChange::Expunge { .. } | MessageChange::Flags { .. } => None,
        });
        named.collect()
    }

    /// An action of a plan that was made with other GUIDs, with the one that the message has.
    pub(super) fn named(&self, action: MessageAction) -> MessageAction {
        let MessageAction::Expunge { uid, guid: Some(_) } = action else { return action };
        MessageAction::Expunge { uid, guid: guid_of(&self.own, uid) }
    }
}

/// The GUID of a message of an ascending list.
pub(super) fn guid_of(list: &[MessageChange], uid: Uid) -> Option<MessageGuid> {
    match &list[list.binary_search_by_key(&uid, MessageChange::uid).ok()?] {
        MessageChange::Save { guid, .. } => Some(guid.clone()),
        MessageChange::Flags { .. } | MessageChange::Expunge { .. } => None,
    }
}
