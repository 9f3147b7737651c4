//! A commit: what was asked for is settled with map and index locked, bodies are placed, the index is written.

use std::collections::{BTreeMap, BTreeSet};

use dsync_model::{MessageAction, ModSeq, Uid, UidSet};

use super::{DboxMailbox, bits};
use crate::dbox::bodies::{Moves, Pending};
use crate::dbox::map::MapWriter;
use crate::dbox::mdbox::MapUid;
use crate::index::edit::{flag_set, keywords, uid_next};
use crate::index::{Appended, Edit, Flagged, Index, State};
use crate::lock::patience;
use crate::{Committed, Goal, Result, StorageError};

impl DboxMailbox {
    pub(super) fn carry_out(&mut self, goal: Goal) -> Result<Committed> {
        self.bodies.sync(&self.pending, self.shared.account.fsync)?;
        let changes_bodies = !self.pending.is_empty()
            || self.actions.iter().any(|action| matches!(action, MessageAction::Expunge { .. }));
        let mut map = if changes_bodies { self.bodies.take_map()? } else { None };
        let locked = map.as_mut().map(|map| self.shared.lock_map(map)).transpose();
        let outcome = locked.and_then(|mut map| {
            let outcome = self.carry_out_locked(goal, map.as_mut());
            // Left as it is, Dovecot would rebuild the whole storage.
            if let (Err(_), Some(map)) = (&outcome, &mut map)
                && map.is_unfinished().unwrap_or(false)
                && let Err(error) = self.shared.count_anew(map)
            {
                tracing::warn!("references cannot be counted anew: {error}");
            }
            outcome
        });
        if changes_bodies {
            self.bodies.keep_map(map);
        }
        outcome
    }

    /// The same with the map locked, where there is one.
    fn carry_out_locked(&mut self, goal: Goal, mut map: Option<&mut MapWriter<'_>>) -> Result<Committed> {
        let mut committed = Committed::default();
        let policy = self.shared.account.fsync;
        // The index is borrowed by its lock; what the commit needs of it is taken out first.
        let path = self.index.paths().clone();
        let mut index = Index::open(path.clone())?
            .ok_or_else(|| StorageError::NoMailbox(path.log().display().to_string()))?;
        let mut writer = index.lock(patience())?;
        let state = writer.state().clone();
        if state.deleted {
            return Err(StorageError::NoMailbox(self.bodies.places().mail.display().to_string()));
        }
        if let Some(expected) = self.expected_next {
            self.burned.insert_range(expected.get()..state.header.next_uid);
        }
        if let Some(map) = &map {
            self.leave_out_lost(map.state(), &mut committed);
        }
        let (mut edit, moves) = self.edit(&state, &mut committed)?;
        self.bodies.place(map.as_deref_mut(), &state, &mut edit, &moves, policy)?;
        for (uid, pending) in &moves.saved {
            self.guids.insert(*uid, pending.message().guid.clone());
            committed.saved += 1;
            committed.bytes += pending.body_bytes();
        }
        for (from, to) in &moves.renumbered {
            if let Some(guid) = self.guids.get(from).cloned() {
                self.guids.insert(*to, guid);
            }
        }
        let extensions = self.bodies.extensions();
        self.import.write(&mut writer, &mut edit, goal, &extensions, policy)?;
        self.bodies.finish(map, &edit, policy)?;
        for (uid, _) in &edit.expunged {
            self.guids.remove(uid);
        }
        self.expected_next = Some(uid_next(writer.state()));
        drop(writer);
        self.index = index;
        self.changed = true;
        Ok(committed)
    }

    /// Leaves out what was to be shared and was expunged everywhere else meanwhile, or has all the references that it may have.
    fn leave_out_lost(&mut self, map: &State, committed: &mut Committed) {
        let mut more: BTreeMap<MapUid, u16> = BTreeMap::new();
        self.pending.retain(|pending| {
            let Pending::Shared { message, map_uid } = pending else { return true };
            let more = more.entry(map_uid.clone()).or_default();
            let stays = map_uid.can_be_shared(map, *more);
            *more = more.saturating_add(1);
            if !stays {
                committed.not_kept.insert(message.uid, None);
            }
            stays
        });
    }

    /// Settles, with the index locked, what becomes of what was asked for.
    fn edit(&mut self, state: &State, committed: &mut Committed) -> Result<(Edit, Moves)> {
        let DboxMailbox { guids, bodies, .. } = self;
        let mut edit = Edit::default();
        let mut renumbered = BTreeMap::new();
        let mut uids = Vec::with_capacity(self.pending.len());
        let mut taken: BTreeSet<u32> = BTreeSet::new();
        let free = |uid: u32, burned: &UidSet, taken: &BTreeSet<u32>| {
            uid < u32::MAX && state.row(uid).is_none() && !burned.contains(uid) && !taken.contains(&uid)
        };
        self.pending.sort_by_key(|pending| pending.message().uid);
        let wished = self.pending.iter().map(|pending| pending.message().uid.get());
        let mut last = wished.clone().chain([state.header.next_uid - 1]).max().unwrap_or(0);
        for pending in &self.pending {
            let message = pending.message();
            let mut uid = message.uid.get();
            if !free(uid, &self.burned, &taken) {
                last = last.saturating_add(1);
                uid = last;
                committed.not_kept.insert(message.uid, Uid::new(uid));
            }
            if uid == u32::MAX {
                let what = format!("{}: UIDs are exhausted", bodies.places().mail.display());
                return Err(StorageError::Impossible(what));
            }
            taken.insert(uid);
            uids.push(uid);
            edit.appended.push(Appended {
                uid,
                flags: message.flags.clone(),
                modseq: message.modseq,
                data: Vec::new(),
            });
        }
        let names = keywords(state);
        let mut gone: BTreeSet<u32> = BTreeSet::new();
        for action in std::mem::take(&mut self.actions) {
            let Some(action) = action.redirected(&committed.not_kept) else { continue };
            match action {
                MessageAction::Renumber { from, to } => {
                    let row = state.row(from.get()).filter(|_| !gone.contains(&from.get()));
                    let Some(row) = row.filter(|_| free(to.get(), &self.burned, &taken)) else {
                        committed.not_kept.insert(to, Some(from));
                        continue;
                    };
                    let guid = bits(guids, bodies, state, from.get())?.unwrap_or_default();
                    let modseq = ModSeq::new(state.modseq_of(row)).unwrap_or_default();
                    let flags = flag_set(state, row, &names);
                    let data = bodies.data(state, row);
                    edit.appended.push(Appended { uid: to.get(), flags, modseq, data });
                    edit.expunged.push((from.get(), guid));
                    renumbered.insert(from.get(), to.get());
                    taken.insert(to.get());
                    gone.insert(from.get());
                }
                MessageAction::Flags { uid, add, remove, modseq_min } => {
                    let new = edit.appended.iter_mut().find(|new| new.uid == uid.get());
                    match (new, state.row(uid.get()).filter(|_| !gone.contains(&uid.get()))) {
                        (Some(new), _) => new.flags = new.flags.minus(&remove).union(&add),
                        (None, Some(row)) => {
                            let now = flag_set(state, row, &names);
                            let (add, remove) = (add.minus(&now), remove.intersection(&now));
                            if !add.is_empty() || !remove.is_empty() {
                                edit.flagged.push(Flagged {
                                    uid: uid.get(),
                                    add,
                                    remove,
                                    modseq: modseq_min,
                                });
                            }
                        }
                        (None, None) => {}
                    }
                }
                MessageAction::Expunge { uid, guid } => {
                    if state.row(uid.get()).is_none() || gone.contains(&uid.get()) {
                        continue;
                    }
                    let here = bits(guids, bodies, state, uid.get())?;
                    if here.zip(guid.as_ref()).is_none_or(|(here, guid)| here == guid.bits()) {
                        gone.insert(uid.get());
                        edit.expunged.push((uid.get(), here.unwrap_or_default()));
                    }
                }
            }
        }
        let saved = uids.iter().zip(self.pending.iter().map(Pending::message));
        edit.headers = self.shared.pop3_headers(state, saved);
        edit.appended.sort_by_key(|mail| mail.uid);
        edit.flagged.sort_by_key(|change| change.uid);
        edit.expunged.sort_unstable();
        let saved = uids.into_iter().zip(std::mem::take(&mut self.pending)).collect();
        Ok((edit, Moves { saved, renumbered }))
    }
}
