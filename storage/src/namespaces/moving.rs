//! Moves a mailbox into another namespace: it is copied there, and goes here once the copy is whole and durable.
//!
//! Until then the copy has a GUID of its own, made of the mailbox's, and is not listed: after a crash the next run goes on with it. What
//! others put into the copy is never removed; what comes to the mailbox meanwhile keeps it where it is.

use std::collections::{BTreeMap, BTreeSet};

use dsync_model::{
    AttributeChanges, AttributeKey, AttributeValue, Changes, FlagSet, MailboxGuid, MailboxName,
    MessageAction, MessageChange, MessageGuid, NewMessage, Since, TreeChange, Uid,
};
use sha1::{Digest as _, Sha1};

use crate::{Body, Goal, Mailbox, Result, Storage, StorageError, Support};

/// How often what changes meanwhile is copied, too.
const ROUNDS_MAX: u32 = 3;

/// The GUID of a copy of this mailbox that is not whole yet.
pub(super) fn unfinished(guid: MailboxGuid) -> MailboxGuid {
    let mut copy = [0; 16];
    copy.copy_from_slice(&Sha1::new().chain_update(b"dsync moves ").chain_update(guid.0).finalize()[..16]);
    MailboxGuid(copy)
}

/// A mailbox on its way.
pub(super) struct Move<'a> {
    pub guid: MailboxGuid,
    pub from: (&'a mut Box<dyn Storage>, &'a MailboxName),
    pub to: (&'a mut Box<dyn Storage>, &'a MailboxName),
}

impl Move<'_> {
    /// Does it. An error leaves the mailbox as it was.
    pub fn run(self) -> Result<()> {
        let Move { guid, from: (from, old), to: (to, new) } = self;
        let kept = |storage: &dyn Storage| storage.capabilities().message_guid == Support::Kept;
        let kept = kept(&**from) && kept(&**to);
        if old.is_inbox() || !kept {
            let why = if kept { "INBOX stays" } else { "mbox keeps no GUIDs" };
            return Err(cannot(old, new, why));
        }
        let copy = unfinished(guid);
        let mut source = from.open(guid)?;
        let uid_validity = source.status()?.uid_validity;
        let mut target = match to.open(copy) {
            Err(StorageError::NoMailbox(_)) => {
                let (name, uid_next) = (new.clone(), Uid::MIN);
                to.change_tree(&TreeChange::Create { name, guid: copy, uid_validity, uid_next })?;
                to.open(copy)?
            }
            opened => opened?,
        };
        let mut ours = BTreeSet::new();
        let mut equal = false;
        for _ in 0..ROUNDS_MAX {
            if !follow(&mut *source, &mut *target, &mut ours)? {
                return Err(cannot(old, new, "there is other mail"));
            }
            let (a, b) = (source.status()?, target.status()?);
            equal = (a.digest, a.uid_next, a.uid_validity) == (b.digest, b.uid_next, b.uid_validity);
            if equal {
                break;
            }
        }
        let uid_next = target.status()?.uid_next;
        drop((source, target));
        if !equal {
            return Err(cannot(old, new, "it changes all the time"));
        }
        // Killed from here on, there may be two mailboxes, but both are whole: the one that is listed last gets a new GUID.
        to.change_tree(&TreeChange::Identify { name: new.clone(), guid, uid_validity })?;
        let attributes = attributes_of(&mut **from, guid)?;
        to.change_attributes(&attributes)?;
        if !from.change_tree(&TreeChange::Delete { name: old.clone(), guid, uid_next })? {
            return Err(cannot(old, new, "mail came to it"));
        }
        from.change_attributes(&attributes.into_keys().map(|key| (key, None)).collect())
    }
}

/// Makes the copy what the mailbox is now; `ours` are the UIDs that were saved here. `false`: it holds what no copy would.
fn follow(source: &mut dyn Mailbox, target: &mut dyn Mailbox, ours: &mut BTreeSet<Uid>) -> Result<bool> {
    let mut there: BTreeMap<Uid, (MessageGuid, FlagSet)> = listed(target.changes(Since::All)?);
    let Changes { status, list } = source.changes(Since::All)?;
    let mut actions = Vec::new();
    for change in list {
        let MessageChange::Save { uid, guid, modseq, flags, .. } = change else { continue };
        match there.remove(&uid) {
            Some((known, flagged)) if known == guid => {
                let (add, remove) = (flags.current.minus(&flagged), flagged.minus(&flags.current));
                if add != FlagSet::default() || remove != FlagSet::default() {
                    actions.push(MessageAction::Flags { uid, add, remove, modseq_min: modseq });
                }
            }
            Some(_) => return Ok(false),
            None => {
                // `None`: expunged just now.
                let body = source.body(uid, Some(&guid));
                let body = body.map_err(|error| StorageError::Impossible(format!("UID {uid}: {error}")))?;
                let Some(body) = body else { continue };
                let (pop3_uidl, pop3_order) = (body.pop3_uidl.clone(), body.pop3_order);
                let (received, saved, size) = (body.received, body.saved, body.size);
                let flags = flags.current;
                let message =
                    NewMessage { uid, guid, flags, modseq, received, saved, pop3_uidl, pop3_order, size };
                // Another mdbox has a map of its own.
                target.save(message, Body { map_uid: None, ..body })?;
                ours.insert(uid);
            }
        }
    }
    for (uid, (guid, _)) in there {
        if !ours.contains(&uid) {
            return Ok(false);
        }
        actions.push(MessageAction::Expunge { uid, guid: Some(guid) });
    }
    target.apply(&actions)?;
    let goal = Goal {
        uid_next_min: status.uid_next,
        modseq_min: status.highest_modseq,
        uid_validity: None,
        unfinished: false,
    };
    Ok(target.commit(goal)?.not_kept.is_empty())
}

fn listed(changes: Changes) -> BTreeMap<Uid, (MessageGuid, FlagSet)> {
    let saves = changes.list.into_iter().filter_map(|change| match change {
        MessageChange::Save { uid, guid, flags, .. } => Some((uid, (guid, flags.current))),
        MessageChange::Flags { .. } | MessageChange::Expunge { .. } => None,
    });
    saves.collect()
}

/// The mailbox's attributes, to be set.
fn attributes_of(storage: &mut dyn Storage, guid: MailboxGuid) -> Result<AttributeChanges> {
    let all = storage.attributes()?.unwrap_or_default();
    let own = all.range(AttributeKey::first_of(guid)..).take_while(|(key, _)| key.mailbox == guid);
    let set = own.filter_map(|(key, value)| match value {
        AttributeValue::Bytes(bytes) => Some((key.clone(), Some(bytes.clone()))),
        AttributeValue::TooLarge => None,
    });
    Ok(set.collect())
}

fn cannot(old: &MailboxName, new: &MailboxName, why: &str) -> StorageError {
    let what = format!("mailbox {old} cannot become {new} in another namespace: {why}");
    StorageError::Impossible(what)
}
