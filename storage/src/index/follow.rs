//! Keeps an index in step with files that say which messages there are: for Maildir and mbox.
//!
//! Files are the truth; the index adds modseqs, history, and flag changes that Dovecot has not carried out yet.

use std::collections::BTreeMap;

use dsync_model::{FlagSet, Keyword, MessageAction, ModSeq, NewMessage, Uid};

use super::edit::{DIRTY, flag_set, keywords};
use super::{Appended, Edit, Flagged, State};
use crate::Goal;

/// Nothing is asked for but what the files say.
pub const NO_GOAL: Goal =
    Goal { uid_next_min: Uid::MIN, modseq_min: ModSeq::NONE, uid_validity: None, unfinished: false };

/// What a commit did, beyond what the files can tell.
#[derive(Default)]
pub struct Told<'a> {
    pub saved: BTreeMap<u32, NewMessage>,
    pub actions: &'a [MessageAction],
}

/// Says whether the index overrides what the files say of the flags of the mail in this row.
pub fn overrides(state: &State, row: usize) -> bool {
    state.flags[row] & DIRTY != 0 || state.is_requested(state.uids[row])
}

/// What leads from the index to the files, whose messages come in ascending UID order. `guid_of` tells the 128 bits of the GUID of
/// a message that is gone, `stored` whether the files can hold a keyword: others are kept by the index alone.
pub fn difference(
    files: impl Iterator<Item = (u32, FlagSet)>,
    state: &State,
    guid_of: impl Fn(u32) -> [u8; 16],
    stored: impl Fn(&Keyword) -> bool,
) -> Edit {
    let mut edit = Edit::default();
    let names = keywords(state);
    let mut row = 0;
    for (uid, flags) in files {
        while let Some(known) = state.uids.get(row).filter(|known| **known < uid) {
            edit.expunged.push((*known, guid_of(*known)));
            row += 1;
        }
        if state.uids.get(row) != Some(&uid) {
            edit.appended.push(Appended { uid, flags, modseq: ModSeq::NONE, data: Vec::new() });
            continue;
        }
        if !overrides(state, row) {
            let known = flag_set(state, row, &names);
            let add = flags.minus(&known);
            let mut remove = known.minus(&flags);
            remove.keywords.retain(|keyword| stored(keyword));
            if !add.is_empty() || !remove.is_empty() {
                edit.flagged.push(Flagged { uid, add, remove, modseq: ModSeq::NONE });
            }
        }
        row += 1;
    }
    edit.expunged.extend(state.uids[row..].iter().map(|uid| (*uid, guid_of(*uid))));
    edit
}

/// Adds what only the commit knows: modseqs, and keywords without a letter.
pub fn tell(edit: &mut Edit, state: &State, told: &Told<'_>) {
    for mail in &mut edit.appended {
        if let Some(message) = told.saved.get(&mail.uid) {
            (mail.flags, mail.modseq) = (message.flags.clone(), message.modseq);
        }
    }
    let names = keywords(state);
    for action in told.actions {
        match action {
            MessageAction::Flags { uid, add, remove, modseq_min } => {
                let uid = uid.get();
                if let Some(mail) = edit.appended.iter_mut().find(|mail| mail.uid == uid) {
                    mail.flags = mail.flags.minus(remove).union(add);
                    mail.modseq = mail.modseq.max(*modseq_min);
                    continue;
                }
                let Some(row) = state.row(uid) else { continue };
                let known = flag_set(state, row, &names);
                let (add, remove) = (add.minus(&known), remove.intersection(&known));
                if edit.expunged.iter().any(|(gone, _)| *gone == uid) || (add.is_empty() && remove.is_empty())
                {
                    continue;
                }
                match edit.flagged.binary_search_by_key(&uid, |change| change.uid) {
                    Ok(at) => {
                        let change = &mut edit.flagged[at];
                        change.add = change.add.union(&add);
                        change.remove = change.remove.union(&remove);
                        change.modseq = *modseq_min;
                    }
                    Err(at) => edit.flagged.insert(at, Flagged { uid, add, remove, modseq: *modseq_min }),
                }
            }
            MessageAction::Renumber { from, to } => {
                let Some(row) = state.row(from.get()) else { continue };
                if let Some(mail) = edit.appended.iter_mut().find(|mail| mail.uid == to.get()) {
                    mail.flags = mail.flags.union(&flag_set(state, row, &names));
                    mail.modseq = ModSeq::new(state.modseq_of(row)).unwrap_or_default();
                }
            }
            MessageAction::Expunge { .. } => {}
        }
    }
}
