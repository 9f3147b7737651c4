//! An error of our mailbox while it is under way: what can be left out of the session, and what ends it.
//!
//! A Dovecot settles a mailbox or gives the whole session up: nothing that is said in between ends one mailbox alone. So it is told all that it is owed, as if
//! nothing had failed, and in the end that nothing is agreed. Here nothing is done any more: for this end it is as if the session had been cut there.

use std::collections::VecDeque;

use dsync_model::{MessageAction, MessageChange, Uid};
use dsync_storage::StorageError;

use super::super::{Output, chain};
use super::hashing::guid_of;
use super::{Exchange, Incoming, List, Part, Plan, at};
use crate::SessionError;
use crate::listing::DISTURBED;

impl Exchange {
    /// Goes on after an error that concerns this mailbox only, or ends the session with it. `has_gone`: a user has renamed or deleted the mailbox.
    pub fn spare(
        &mut self,
        context: String,
        error: StorageError,
        has_gone: bool,
        out: &mut VecDeque<Output>,
    ) -> Result<(), SessionError> {
        let status = if has_gone { DISTURBED } else { error.status() };
        let problem = (format!("{context}: {}", chain(&error)), status);
        if let Some((uid, mail)) = self.unread.take() {
            if self.part != Part::Both {
                // The source is not written. What comes before it the peer keeps; the next run leaves the mailbox out.
                return Err(at(context)(error));
            }
            for uid in self.asked_as(uid) {
                self.set_apart(uid)?;
            }
            self.problems.push(problem);
            // Without a body it counts as expunged meanwhile.
            out.push_back(Output::Item(mail.into()));
            return Ok(());
        }
        if self.gave_up || self.is_list_at_risk() {
            return Err(at(context)(error));
        }
        self.problems.push(problem);
        self.give_up();
        Ok(())
    }

    /// Whether our list may not come to its end: what it does not name, the peer would take for expunged.
    fn is_list_at_risk(&self) -> bool {
        let reads = self.hashing.as_ref().is_some_and(|hashing| !hashing.is_done(self.own.len()))
            || !self.terms.filter.is_empty();
        self.writing.contains(&List::Changes) && reads
    }

    pub(super) fn give_up(&mut self) {
        self.gave_up = true;
        self.mailbox.abandon_save();
        if self.incoming.is_some() {
            self.incoming = Some(Incoming::Other);
        }
        self.plan.get_or_insert_with(Plan::default);
        self.requests.clear();
        self.waiting.clear();
        self.copies.clear();
        self.to_come.clear();
        self.unlike_from = None;
    }

    /// The new messages of which the peer asked for this one: it asks once for all that have one GUID.
    fn asked_as(&self, uid: Uid) -> Vec<Uid> {
        let (guid, common) = (guid_of(&self.own, uid), self.plan.as_ref().map_or(0, |plan| plan.common));
        let same = |change: &MessageChange| match change {
            MessageChange::Save { uid: other, guid: of, .. } => {
                let is_new = other.get() > common && guid.as_ref() == Some(of);
                (*other == uid || is_new).then_some(*other)
            }
            MessageChange::Flags { .. } | MessageChange::Expunge { .. } => None,
        };
        self.own.iter().filter_map(same).collect()
    }

    /// Gives a message that cannot be sent a UID above all others, before the peer is told that it does not come. What a Dovecot has not got, below what both
    /// ends have, counts as expunged there in the next run; so that finds it as new.
    fn set_apart(&mut self, uid: Uid) -> Result<(), SessionError> {
        let taken = || StorageError::Impossible("a message that cannot be read gets no other UID".into());
        let context = format!("{}: UID {uid}", self.name);
        // What came is made durable with it, though the peer may lack something below: if the session breaks off now, the next one knows (`apart`).
        if self.gave_up || !self.comes_ascending() {
            return Err(at(context)(taken()));
        }
        let is_its_own =
            |action: &MessageAction| matches!(action, MessageAction::Renumber { from, .. } if *from == uid);
        let waits = self.waiting.iter().any(is_its_own);
        self.waiting.retain(|action| !is_its_own(action));
        let from = if waits { uid } else { self.moved.get(&uid).copied().unwrap_or(uid) };
        let to = self.renumber_above(vec![from], &context)?.ok_or_else(|| at(context)(taken()))?;
        self.moved.insert(uid, to);
        self.disturbed = true;
        Ok(())
    }
}
