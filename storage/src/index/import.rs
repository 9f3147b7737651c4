//! Writes a commit into an index; and the first messages of a mailbox that was never used with exactly the modseqs that they have elsewhere.
//!
//! A log only counts up, by one for each record: what comes from elsewhere may have counted less. A snapshot can tell that. If the messages come in
//! several commits, all have the lowest modseq until the last one: whoever looks meanwhile knows of nothing that would hide from him what is to come.

use dsync_model::{FlagSet, ModSeq};

use super::edit::{Edit, Flagged};
use super::state::MODSEQ;
use super::{Extension, State, Writer};
use crate::{Fsync, Goal, Result};

/// The modseq that there is without any change.
const LOWEST: u64 = 1;

/// How far the first messages of a mailbox have come, as one who writes them sees it.
#[derive(Default)]
pub enum Import {
    #[default]
    Ahead,
    /// UIDs that have come, ascending, and the modseqs that they are to have.
    Coming(Vec<(u32, u64)>),
    Over,
}

impl Import {
    /// Writes the edit in the one way that can tell it.
    pub fn write(
        &mut self,
        writer: &mut Writer<'_>,
        edit: &mut Edit,
        goal: Goal,
        extensions: &[Extension],
        policy: Fsync,
    ) -> Result<()> {
        let state = writer.state();
        match std::mem::replace(self, Import::Over) {
            Import::Ahead if is_unused(state) && edit.appended.is_empty() => *self = Import::Ahead,
            Import::Ahead if is_unused(state) && edit.only_appends(state) && wants_modseqs(edit, goal) => {
                return self.go_on(Vec::new(), writer, edit, goal, extensions, policy);
            }
            Import::Coming(come) if is_alone(state, come.len()) && edit.only_appends(state) => {
                return self.go_on(come, writer, edit, goal, extensions, policy);
            }
            // Somebody works in the mailbox: his changes are above what was to be, and what has come is raised to it.
            Import::Coming(come) if edit.fits(state) => raise(edit, &come),
            Import::Coming(_) | Import::Ahead | Import::Over => {}
        }
        let state = writer.state();
        if edit.fits(state) {
            let transaction = edit.transaction(state, goal, extensions);
            writer.append(transaction, policy)?;
            return writer.tidy(policy);
        }
        let content = edit.rebuilt(state, goal, extensions);
        writer.rebuild(content, policy)
    }

    /// Appends to the log, and has a snapshot and a new log tell the modseqs where the log cannot. Killed between them, they are only too high.
    fn go_on(
        &mut self,
        mut come: Vec<(u32, u64)>,
        writer: &mut Writer<'_>,
        edit: &mut Edit,
        goal: Goal,
        extensions: &[Extension],
        policy: Fsync,
    ) -> Result<()> {
        come.extend(edit.appended.iter().map(|mail| (mail.uid, mail.modseq.get())));
        if goal.unfinished {
            edit.appended.iter_mut().for_each(|mail| mail.modseq = ModSeq::NONE);
        }
        writer.append(edit.transaction(writer.state(), goal, extensions), policy)?;
        let mut state = writer.state().clone();
        if state.uids.len() == come.len() && set_modseqs(&mut state, &come, goal) {
            writer.rotate_to(state, policy)?;
        } else {
            writer.tidy(policy)?;
        }
        if goal.unfinished {
            *self = Import::Coming(come);
        }
        Ok(())
    }
}

fn is_unused(state: &State) -> bool {
    state.uids.is_empty() && state.header.next_uid == 1
}

/// Says whether nobody else has changed anything since so many messages came.
fn is_alone(state: &State, come: usize) -> bool {
    state.highest_modseq() == LOWEST && state.uids.len() == come && !state.has_requests()
}

/// Says whether anybody cares for the modseqs: a storage without them gives none.
fn wants_modseqs(edit: &Edit, goal: Goal) -> bool {
    let given = edit.appended.iter().any(|mail| mail.modseq != ModSeq::NONE);
    given || goal.unfinished || goal.modseq_min != ModSeq::NONE
}

/// Gives all messages the modseqs that they are to have after a commit with this goal, in ascending UID order. Says whether that changes anything.
fn set_modseqs(state: &mut State, wanted: &[(u32, u64)], goal: Goal) -> bool {
    let of = |modseq: u64| if goal.unfinished { LOWEST } else { modseq.max(LOWEST) };
    let highest = wanted.iter().map(|(_, modseq)| of(*modseq)).chain([of(goal.modseq_min.get())]).max();
    let highest = highest.unwrap_or(LOWEST);
    let is_so = (0..).zip(wanted).all(|(row, (_, modseq))| state.modseq_of(row) == of(*modseq));
    let Some(id) = state.extension_id(MODSEQ).filter(|_| !is_so || state.modseq != highest) else {
        return false;
    };
    state.extensions[id].data = wanted.iter().flat_map(|(_, modseq)| of(*modseq).to_le_bytes()).collect();
    state.modseq = highest;
    true
}

/// Raises messages that are there to these modseqs.
fn raise(edit: &mut Edit, wanted: &[(u32, u64)]) {
    for (uid, modseq) in wanted {
        let modseq = ModSeq::new(*modseq).unwrap_or_default();
        match edit.flagged.binary_search_by_key(uid, |change| change.uid) {
            Ok(at) => edit.flagged[at].modseq = edit.flagged[at].modseq.max(modseq),
            Err(at) => edit.flagged.insert(
                at,
                Flagged { uid: *uid, add: FlagSet::default(), remove: FlagSet::default(), modseq },
            ),
        }
    }
}
