//! What a commit is to do with the file of an mbox, settled when that is locked.

use std::collections::{BTreeMap, BTreeSet};

use dsync_model::{FlagSet, MessageAction, NewMessage, Uid, UidValidity};

use super::super::arrival::Arrival;
use super::super::indexed;
use super::super::rewrite::{Change, Edits};
use super::{MboxMailbox, Pending, now};
use crate::index::edit::{flag_set, keywords, uid_next};
use crate::{Committed, Result};

/// What is to be done with the file, and what the index is to know of it.
pub(super) struct Plan {
    pub edits: Edits,
    pub saved: BTreeMap<u32, NewMessage>,
    /// What is done of what was asked for.
    pub settled: Vec<MessageAction>,
}

/// Where a message is while a commit is being planned.
#[derive(Clone, Copy)]
enum Slot {
    /// Place in the file.
    Old(usize),
    /// Place among the arrivals.
    New(usize),
}

impl MboxMailbox {
    /// Settles, with the file locked, what becomes of what was asked for.
    pub(super) fn plan(
        &mut self,
        actions: Vec<MessageAction>,
        validity: UidValidity,
        committed: &mut Committed,
    ) -> Result<Plan> {
        let MboxMailbox { content, burned, pending, places, .. } = self;
        let (file, state) = (&content.file, content.index.state());
        let names = keywords(state);
        let mut edits = Edits { uid_next: uid_next(state), ..Edits::none(file, validity) };
        let mut saved = BTreeMap::new();
        let mut settled = Vec::with_capacity(actions.len());
        let mut changed: BTreeMap<usize, (Option<Uid>, Option<FlagSet>)> = BTreeMap::new();
        let uids = file.messages.iter().filter_map(|entry| entry.uid).map(Uid::get);
        let mut slots: BTreeMap<u32, Slot> =
            uids.zip(0..).map(|(uid, place)| (uid, Slot::Old(place))).collect();
        let mut used: BTreeSet<u32> = slots.keys().copied().collect();
        pending.sort_by_key(|pending| pending.message.uid);
        let wished = pending.iter().map(|pending| pending.message.uid.get());
        let mut last = wished.chain([content.uid_next().get() - 1]).max().unwrap_or(0);
        for Pending { message, path, size } in pending.iter() {
            let mut uid = message.uid;
            if used.contains(&uid.get()) || burned.contains(uid.get()) {
                last = last.saturating_add(1);
                uid = Uid::new(last).ok_or_else(|| indexed::exhausted(places))?;
                committed.not_kept.insert(message.uid, Some(uid));
            }
            if uid.next().is_none() {
                return Err(indexed::exhausted(places));
            }
            used.insert(uid.get());
            slots.insert(uid.get(), Slot::New(edits.arrivals.len()));
            edits.arrivals.push(Arrival {
                uid,
                flags: message.flags.clone(),
                received: message.received.unwrap_or_else(now),
                sender: String::new(),
                path: path.clone(),
            });
            saved.insert(uid.get(), message.clone());
            committed.saved += 1;
            committed.bytes += size;
        }
        for action in actions {
            let Some(action) = action.redirected(&committed.not_kept) else { continue };
            match &action {
                MessageAction::Renumber { from, to } => {
                    let free = to.next().is_some() && !used.contains(&to.get()) && !burned.contains(to.get());
                    let Some(slot) = slots.get(&from.get()).copied().filter(|_| free) else {
                        committed.not_kept.insert(*to, Some(*from));
                        continue;
                    };
                    slots.remove(&from.get());
                    slots.insert(to.get(), slot);
                    used.insert(to.get());
                    match slot {
                        Slot::Old(place) => changed.entry(place).or_default().0 = Some(*to),
                        Slot::New(place) => {
                            edits.arrivals[place].uid = *to;
                            let message = saved.remove(&from.get());
                            saved.extend(message.map(|message| (to.get(), message)));
                        }
                    }
                }
                MessageAction::Flags { uid, add, remove, .. } => match slots.get(&uid.get()) {
                    Some(Slot::Old(place)) => {
                        let entry = &file.messages[*place];
                        let row = entry.uid.and_then(|uid| state.row(uid.get()));
                        let (_, flags) = changed.entry(*place).or_default();
                        let known = flags.take().unwrap_or_else(|| {
                            row.map_or_else(|| entry.flags.clone(), |row| flag_set(state, row, &names))
                        });
                        *flags = Some(known.minus(remove).union(add));
                    }
                    Some(Slot::New(place)) => {
                        let flags = &mut edits.arrivals[*place].flags;
                        *flags = flags.minus(remove).union(add);
                    }
                    None => {}
                },
                MessageAction::Expunge { uid, guid } => {
                    let Some(Slot::Old(place)) = slots.get(&uid.get()).copied() else { continue };
                    if guid.as_ref().is_none_or(|guid| indexed::is(&file.messages[place], guid)) {
                        slots.remove(&uid.get());
                        edits.changes.insert(place, Change::Expunge);
                    }
                }
            }
            settled.push(action);
        }
        for (place, (uid, flags)) in changed {
            edits.changes.entry(place).or_insert(Change::Set { uid, flags });
        }
        let highest = used.last().copied().unwrap_or(0);
        edits.last_uid = edits.last_uid.max(highest).max(content.uid_next().get() - 1);
        Ok(Plan { edits, saved, settled })
    }
}
