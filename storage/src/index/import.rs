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
    /// Writes the edit in the one way that can tell it. Killed between the log and a snapshot that tells modseqs, those are only too high.
    pub fn write(
        &mut self,
        writer: &mut Writer<'_>,
        edit: &mut Edit,
        goal: Goal,
        extensions: &[Extension],
        policy: Fsync,
    ) -> Result<()> {
        let mut come = self.take_up(writer.state(), edit, goal);
        if !edit.fits(writer.state()) {
            let content = edit.rebuilt(writer.state(), goal, extensions);
            return writer.rebuild(content, policy);
        }
        if let Some(come) = &mut come {
            come.extend(edit.appended.iter().map(|mail| (mail.uid, mail.modseq.get())));
            if goal.unfinished {
                edit.appended.iter_mut().for_each(|mail| mail.modseq = ModSeq::NONE);
            }
        }
        writer.append(edit.transaction(writer.state(), goal, extensions), policy)?;
        match come.as_ref().and_then(|come| with_modseqs(writer.state(), come, goal)) {
            Some(state) => writer.rotate_to(state, policy)?,
            None => writer.tidy(policy)?,
        }
        if let Some(come) = come.filter(|_| goal.unfinished) {
            *self = Import::Coming(come);
        }
        Ok(())
    }

    /// What has come before this edit, if it brings first messages and nothing else; else the import is over.
    fn take_up(&mut self, state: &State, edit: &mut Edit, goal: Goal) -> Option<Vec<(u32, u64)>> {
        match std::mem::replace(self, Import::Over) {
            Import::Ahead if is_unused(state) && edit.appended.is_empty() => *self = Import::Ahead,
            Import::Ahead if is_unused(state) && edit.only_appends(state) && wants_modseqs(edit, goal) => {
                return Some(Vec::new());
            }
            Import::Coming(come) if is_alone(state, come.len()) && edit.only_appends(state) => {
                return Some(come);
            }
            // Somebody works in the mailbox: his changes are above what was to be, and what has come is raised to it.
            Import::Coming(come) if edit.fits(state) => raise(edit, &come),
            Import::Coming(_) | Import::Ahead | Import::Over => {}
        }
        None
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

/// The state with the modseqs that its messages, these in ascending UID order, are to have after a commit with this goal; `None` if it has them.
fn with_modseqs(state: &State, wanted: &[(u32, u64)], goal: Goal) -> Option<State> {
    let of = |modseq: u64| if goal.unfinished { LOWEST } else { modseq.max(LOWEST) };
    let highest =
        wanted.iter().fold(of(goal.modseq_min.get()), |highest, (_, modseq)| highest.max(of(*modseq)));
    let is_so = (0..).zip(wanted).all(|(row, (_, modseq))| state.modseq_of(row) == of(*modseq));
    if state.uids.len() != wanted.len() || (is_so && state.modseq == highest) {
        return None;
    }
    let id = state.extension_id(MODSEQ)?;
    let mut state = state.clone();
    state.extensions[id].data = wanted.iter().flat_map(|(_, modseq)| of(*modseq).to_le_bytes()).collect();
    state.modseq = highest;
    Some(state)
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
