//! Moves a mailbox into another namespace: it is copied there, and goes here once the copy is whole and durable.
//!
//! Until it is gone here the copy has a GUID of its own, and a [`Note`] beside it tells what it is: whoever lists the account next
//! settles what a run was killed over ([`recovery`](super::recovery)). What others put into the copy is never removed; what comes to the
//! mailbox meanwhile keeps it where it is.

use std::collections::{BTreeMap, BTreeSet};

use dsync_model::{
    AttributeChanges, AttributeKey, AttributeValue, Changes, FlagSet, MailboxGuid, MailboxName,
    MessageAction, MessageChange, MessageGuid, NewMessage, Since, TreeChange, Uid,
};
use rand::RngExt;

use super::note::Note;
use crate::{Body, Goal, Mailbox, Result, Storage, StorageError, Support};

/// How often what changes meanwhile is copied, too.
const ROUNDS_MAX: u32 = 3;

/// A mailbox on its way.
pub(super) struct Move<'a> {
    pub guid: MailboxGuid,
    pub from: (&'a mut dyn Storage, &'a MailboxName),
    pub to: (&'a mut dyn Storage, &'a MailboxName),
    /// Both names outside.
    pub outer: [&'a MailboxName; 2],
    /// Both have their attributes in one file.
    pub attributes_together: bool,
}

impl Move<'_> {
    /// Does it. An error before the mailbox is gone here leaves it as it was; one that comes later is mended by the next listing.
    pub fn run(mut self) -> Result<()> {
        let Move { guid, from: (from, old), to: (to, new), .. } = &mut self;
        let (guid, old, new) = (*guid, *old, *new);
        let kept = |storage: &dyn Storage| storage.capabilities().message_guid == Support::Kept;
        let kept = kept(&**from) && kept(&**to);
        if old.is_inbox() || !kept {
            return Err(self.cannot(if kept { "INBOX stays" } else { "mbox keeps no GUIDs" }));
        }
        if Note::read(&mut **to)?.is_some() {
            let why = "an earlier move is unfinished there; a run in which all namespaces take part (-N) settles it";
            return Err(self.cannot(why));
        }
        let (listed, _) = to.tree()?;
        if listed.get(new).is_some_and(|node| node.mailbox.is_some()) {
            return Err(self.cannot("there is a mailbox of that name"));
        }
        let uid_validity = from.open(guid)?.status()?.uid_validity;
        let made = new.ancestors().take_while(|above| !listed.contains_key(above)).count();
        let copy = MailboxGuid(rand::rng().random());
        let [before, after] = self.outer.map(Clone::clone);
        let mut note = Note::new(guid, copy, before, after, made);
        note.write(&mut *self.to.0)?;
        let create = TreeChange::Create { name: new.clone(), guid: copy, uid_validity, uid_next: Uid::MIN };
        if let Err(error) = self.to.0.change_tree(&create) {
            return Err(self.undone(&note, error));
        }
        let mut ours = BTreeSet::new();
        for _ in 0..ROUNDS_MAX {
            match self.copied(&mut note, &mut ours) {
                Ok(true) => {}
                Ok(false) => continue,
                Err(error) => return Err(self.undone(&note, error)),
            }
            let uid_next = note.whole.map_or(Uid::MIN, |(_, uid_next)| uid_next);
            // Whether an error left it here is not known: the next listing looks.
            if self.from.0.change_tree(&TreeChange::Delete { name: old.clone(), guid, uid_next })? {
                return settle(
                    &note,
                    Some(&mut *self.from.0),
                    &mut *self.to.0,
                    new,
                    self.attributes_together,
                );
            }
        }
        let error = self.cannot("it changes all the time");
        Err(self.undone(&note, error))
    }

    /// Makes the copy what the mailbox is now. `true`: it is whole, and the mailbox may go.
    fn copied(&mut self, note: &mut Note, ours: &mut BTreeSet<Uid>) -> Result<bool> {
        let (from, to) = (&mut *self.from.0, &mut *self.to.0);
        let (mut source, mut target) = (from.open(note.guid)?, to.open(note.copy)?);
        let mut noted = |note: &Note| note.write(to);
        if !follow(&mut *source, &mut *target, ours, note, &mut noted)? {
            return Err(self.cannot("there is other mail"));
        }
        let (a, b) = (source.status()?, target.status()?);
        drop((source, target));
        if (a.digest, a.uid_next, a.uid_validity) != (b.digest, b.uid_next, b.uid_validity) {
            return Ok(false);
        }
        note.whole = Some((a.digest, a.uid_next));
        note.write(&mut *self.to.0)?;
        if !self.attributes_together {
            let attributes = attributes_of(&mut *self.from.0, note.guid)?;
            if !attributes.is_empty() {
                self.to.0.change_attributes(&attributes)?;
            }
        }
        Ok(true)
    }

    /// Removes the copy after this error, which it gives back.
    fn undone(&mut self, note: &Note, error: StorageError) -> StorageError {
        let (from, to, new) = (&mut *self.from.0, &mut *self.to.0, self.to.1);
        let removed = match is_dispensable(to, note, from) {
            Ok(true) => remove_copy(to, note, new, self.attributes_together),
            // Others use it already, or it was never made: the next listing looks.
            Ok(false) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = removed {
            tracing::warn!("{}: the copy of {} stays until the next run: {error}", note.to, note.from);
        }
        error
    }

    fn cannot(&self, why: &str) -> StorageError {
        let [old, new] = self.outer;
        let what = format!("mailbox {old} cannot become {new} in another namespace: {why}");
        StorageError::Impossible(what)
    }
}

/// Ends a move: the mailbox is gone, the whole copy takes its GUID.
pub(super) fn settle(
    note: &Note,
    from: Option<&mut dyn Storage>,
    to: &mut dyn Storage,
    name: &MailboxName,
    attributes_together: bool,
) -> Result<()> {
    if let Ok(mut copy) = to.open(note.copy) {
        let uid_validity = copy.status()?.uid_validity;
        drop(copy);
        to.change_tree(&TreeChange::Identify { name: name.clone(), guid: note.guid, uid_validity })?;
    }
    if let Some(from) = from.filter(|_| !attributes_together) {
        remove_attributes(from, note.guid)?;
    }
    Note::remove(to)
}

/// Undoes a move: the copy goes, and with it what was made for it alone. Mail that came to it just now keeps it, under its own GUID.
pub(super) fn remove_copy(
    to: &mut dyn Storage,
    note: &Note,
    name: &MailboxName,
    attributes_together: bool,
) -> Result<()> {
    let uid_next = to.open(note.copy)?.status()?.uid_next;
    if to.change_tree(&TreeChange::Delete { name: name.clone(), guid: note.copy, uid_next })? {
        forget_copy(to, note, name, attributes_together)
    } else {
        Note::remove(to)
    }
}

/// Undoes what a move did beside the copy, which is gone.
pub(super) fn forget_copy(
    to: &mut dyn Storage,
    note: &Note,
    name: &MailboxName,
    attributes_together: bool,
) -> Result<()> {
    // Of one that was not there yet the directory may be. What is not empty stays, for whoever put something there.
    let begun = to.tree()?.0.contains_key(name).then(|| name.clone());
    for name in begun.into_iter().chain(name.ancestors().take(note.made)) {
        to.change_tree(&TreeChange::DeleteDirectory { name })?;
    }
    if !attributes_together && note.whole.is_some() {
        remove_attributes(to, note.guid)?;
    }
    Note::remove(to)
}

/// Says whether nothing is lost with the copy: each message of it is as we left it, or is in the mailbox as it is here. (What is in the files
/// of a Maildir and not yet in its list has another UID when it is listed next.)
pub(super) fn is_dispensable(to: &mut dyn Storage, note: &Note, from: &mut dyn Storage) -> Result<bool> {
    let mut copy = match to.open(note.copy) {
        Err(StorageError::NoMailbox(_)) => return Ok(false),
        copy => copy?,
    };
    let mut messages = listed(copy.changes(Since::All)?);
    drop(copy);
    messages.retain(|uid, (guid, flags)| !note.knows(*uid, guid, flags));
    if !messages.is_empty() {
        let originals = listed(from.open(note.guid)?.changes(Since::All)?);
        let originals: BTreeMap<MessageGuid, FlagSet> = originals.into_values().collect();
        messages.retain(|_, (guid, flags)| originals.get(guid) != Some(flags));
    }
    Ok(messages.is_empty() && attributes_of(to, note.copy)?.is_empty())
}

/// Makes the copy what the mailbox is now; `ours` are the UIDs that were saved here. `false`: it holds what no copy would.
fn follow(
    source: &mut dyn Mailbox,
    target: &mut dyn Mailbox,
    ours: &mut BTreeSet<Uid>,
    note: &mut Note,
    noted: &mut dyn FnMut(&Note) -> Result<()>,
) -> Result<bool> {
    let mut there: BTreeMap<Uid, (MessageGuid, FlagSet)> = listed(target.changes(Since::All)?);
    let Changes { status, list } = source.changes(Since::All)?;
    let mut actions = Vec::new();
    for change in list {
        let MessageChange::Save { uid, guid, modseq, flags, .. } = change else { continue };
        let flags = flags.current;
        note.expect(uid, &guid, &flags);
        match there.remove(&uid) {
            Some((known, flagged)) if known == guid => {
                let (add, remove) = (flags.minus(&flagged), flagged.minus(&flags));
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
    noted(note)?;
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

/// The mailbox's attributes, to be set. Where they are in a dict that we do not speak they stay as they are.
fn attributes_of(storage: &mut dyn Storage, guid: MailboxGuid) -> Result<AttributeChanges> {
    let all = match storage.attributes() {
        Err(StorageError::Impossible(_)) => None,
        all => all?,
    };
    let all = all.unwrap_or_default();
    let own = all.range(AttributeKey::first_of(guid)..).take_while(|(key, _)| key.mailbox == guid);
    let set = own.filter_map(|(key, value)| match value {
        AttributeValue::Bytes(bytes) => Some((key.clone(), Some(bytes.clone()))),
        AttributeValue::TooLarge => None,
    });
    Ok(set.collect())
}

fn remove_attributes(storage: &mut dyn Storage, guid: MailboxGuid) -> Result<()> {
    let attributes = attributes_of(storage, guid)?;
    if attributes.is_empty() {
        return Ok(());
    }
    storage.change_attributes(&attributes.into_keys().map(|key| (key, None)).collect())
}
