//! A mailbox in which something fails is left out of the session, at both ends; all others go on.
//!
//! For that mailbox the session is as if it had been cut there: what is durable stays, the base keeps what was agreed before, without
//! its digest, and the next run finds the same changes again. What was moved into it stays where it was, too.

use std::collections::BTreeSet;

use dsync_merge::Direction;
use dsync_model::{
    MailboxBase, MailboxGuid, MailboxName, MessageAction, MessageChange, NotKept, TreeChange, Uid, UidSet,
};
use dsync_proto::{Message, Undone};
use dsync_storage::{Mailbox, Storage as _, StorageError};

use super::{Brain, Stage, at, chain, clipped};
use crate::SessionError;
use crate::listing::{self, DISTURBED};

impl Brain {
    /// Leaves out the mailbox in which something failed; an error of more than that mailbox ends the session.
    pub(super) fn fail(
        &mut self,
        index: usize,
        context: String,
        error: StorageError,
    ) -> Result<(), SessionError> {
        let error = self.spared(&context, error)?;
        if self.has_gone(index, &error) {
            self.leave_out(index, MOVED.into(), DISTURBED);
            return Ok(());
        }
        self.leave_out(index, format!("{context}: {}", chain(&error)), error.status());
        Ok(())
    }

    /// Says whether an error came of a mailbox that a user renamed or deleted since it was listed.
    pub(super) fn has_gone(&mut self, index: usize, error: &StorageError) -> bool {
        let guid = self.open[index].pair.guid;
        listing::has_gone(&mut self.storage, guid, error)
    }

    /// Gives an error back after which other mailboxes can be worked on; any other ends the session.
    pub(super) fn spared(&self, context: &str, error: StorageError) -> Result<StorageError, SessionError> {
        if self.concerns_all(&error) { Err(at(context)(error)) } else { Ok(error) }
    }

    /// Says whether no other mailbox can be worked on either.
    pub(super) fn concerns_all(&self, error: &StorageError) -> bool {
        self.storage.concerns_all(error)
    }

    /// Leaves out a mailbox for good, and says why at both ends.
    pub(super) fn leave_out(&mut self, index: usize, text: String, status: u8) {
        if self.open[index].skipped_here {
            return;
        }
        self.open[index].skip_here();
        self.let_go(index);
        let channel = self.open[index].channel;
        if status == DISTURBED {
            self.counters.disturbed += 1;
        } else {
            self.problem(text.clone(), status);
        }
        self.say_on(channel, Message::Skip { status, text: clipped(text) });
    }

    /// Forgets what is still to be done in a mailbox. Messages that were to come into it may not be there.
    pub(super) fn let_go(&mut self, index: usize) {
        let saving = self.stage <= Stage::Mailboxes;
        let open = &mut self.open[index];
        if saving {
            let planned = open.plan.iter().flat_map(|plan| plan.arrived.keys());
            let listed = open.new_there();
            self.not_arrived.extend(planned.chain(listed).map(|guid| guid.bits()));
        }
        open.let_go();
    }

    /// Takes messages that were moved to a mailbox that was left out off the list of those to be expunged. The base keeps them: a later run
    /// finds that they are to go. What it never had goes, as that run would take it for new; but for a mirror, which would remove it again.
    pub(super) fn hold_back(&mut self) -> Result<(), SessionError> {
        let not_arrived = std::mem::take(&mut self.not_arrived);
        let held = self.hold(&not_arrived);
        // What fails meanwhile adds to them.
        self.not_arrived.extend(not_arrived);
        for (name, count) in held? {
            self.held_back(format!("{name}: {count} {STAY}"));
        }
        Ok(())
    }

    /// Takes these messages off the list of those to be expunged; gives the mailboxes that hold some, and how many.
    pub(super) fn hold(&mut self, guids: &BTreeSet<[u8; 16]>) -> Result<Vec<(String, usize)>, SessionError> {
        let mut held = Vec::new();
        if guids.is_empty() {
            return Ok(held);
        }
        let mirrors = matches!(self.direction(), Direction::Mirror { .. });
        for index in 0..self.open.len() {
            let open = &self.open[index];
            let Some(plan) = open.plan.as_ref().filter(|_| open.active && !open.skipped) else { continue };
            let base = open.base.as_ref().filter(|_| open.since_base);
            let known = |uid: &Uid| base.is_some_and(|base| base.uids.contains(uid.get()));
            let going: BTreeSet<Uid> =
                plan.expunges.iter().filter_map(expunged).filter(|uid| mirrors || known(uid)).collect();
            if going.is_empty() {
                continue;
            }
            let name = open.report.name.clone();
            let messages =
                self.storage.open(open.pair.guid).and_then(|mut mailbox| mailbox.guids(usize::MAX));
            let stay: BTreeSet<Uid> = match messages {
                Ok(messages) => {
                    let moved = |(uid, bits): &(_, _)| going.contains(uid) && guids.contains(bits);
                    messages.into_iter().filter(moved).map(|(uid, _)| uid).collect()
                }
                Err(error) => {
                    self.fail(index, name, error)?;
                    continue;
                }
            };
            if stay.is_empty() {
                continue;
            }
            let told: Vec<Uid> = stay.iter().filter(|uid| known(uid)).copied().collect();
            let open = &mut self.open[index];
            if let Some(plan) = &mut open.plan {
                plan.expunges.retain(|action| expunged(action).is_none_or(|uid| !stay.contains(&uid)));
            }
            open.held.extend(told);
            held.push((name, stay.len()));
        }
        Ok(held)
    }

    /// Says that something waits for a mailbox that is left out: with the status of that, if anything is wrong with it.
    fn held_back(&mut self, text: String) {
        match self.report.problem_status {
            0 => self.counters.disturbed += 1,
            // Another round finds them again.
            _ if self.report.problems.contains(&text) => {}
            status => self.problem_of_both(text, status),
        }
    }

    /// Deletes the mailboxes that are to go. One that stays, the base keeps as it was: a later run finds that it is to go.
    pub(super) fn delete_mailboxes(&mut self) -> Result<(), SessionError> {
        for change in std::mem::take(&mut self.plan.deletes) {
            if let TreeChange::Delete { name, guid, .. } = &change
                && self.holds_what_moved(*guid, name)?
            {
                self.undone(&change);
                continue;
            }
            if !self.change_tree(&change)? {
                self.counters.disturbed += 1;
            }
        }
        if self.deletes[self.end as usize] {
            self.say(Message::End(dsync_proto::List::Deletions));
        }
        Ok(())
    }

    /// Says whether a mailbox that is to go holds messages that were moved to a mailbox that was left out, or that may be.
    fn holds_what_moved(&mut self, guid: MailboxGuid, name: &MailboxName) -> Result<bool, SessionError> {
        if self.not_arrived.is_empty() {
            return Ok(false);
        }
        match self.storage.open(guid).and_then(|mut mailbox: Box<dyn Mailbox>| mailbox.guids(usize::MAX)) {
            Ok(messages) => {
                let holds = messages.iter().any(|(_, bits)| self.not_arrived.contains(bits));
                if holds {
                    self.held_back(format!("{name}: is not deleted: messages {STAY}"));
                }
                Ok(holds)
            }
            // Somebody was faster to delete it.
            Err(error) if error.is_gone() => Ok(false),
            Err(error) => {
                let error = self.spared(&name.to_string(), error)?;
                self.problem_of_both(format!("{name}: is not deleted: {}", chain(&error)), error.status());
                Ok(true)
            }
        }
    }

    /// Notes at both ends that a mailbox was not deleted.
    pub(super) fn not_deleted(&mut self, mailbox: MailboxGuid, name: &MailboxName) {
        let undone = Undone::Deletion { mailbox, name: self.common_name(name) };
        self.say(Message::Undone(undone.clone()));
        self.undone.push(undone);
    }
}

/// Why a mailbox is left out with [`DISTURBED`].
pub(super) const MOVED: &str = "was renamed, made or deleted meanwhile";

const STAY: &str = "moved to a mailbox that is left out; they stay here until that one can be synchronised";

/// The UID of a message that is to be expunged.
pub(super) fn expunged(action: &MessageAction) -> Option<Uid> {
    match action {
        MessageAction::Expunge { uid, .. } => Some(*uid),
        MessageAction::Flags { .. } | MessageAction::Renumber { .. } => None,
    }
}

/// Puts messages that an end has held back into what is agreed, as they were in the base; gives what else was not kept.
pub(super) fn put_back(agreed: &mut MailboxBase, base: Option<&MailboxBase>, not_kept: &NotKept) -> NotKept {
    let mut rest = not_kept.clone();
    let Some(base) = base.filter(|_| !rest.is_empty()) else { return rest };
    let gone: UidSet = &base.uids - &agreed.uids;
    for (uid, _) in rest.extract_if(.., |uid, at| *at == Some(*uid) && gone.contains(uid.get())) {
        agreed.insert(uid, &base.flags_of(uid));
    }
    rest
}

/// The GUID of a message that a list names as new.
pub(super) fn new_guid(change: &MessageChange) -> Option<&dsync_model::MessageGuid> {
    match change {
        MessageChange::Save { guid, .. } => Some(guid),
        MessageChange::Expunge { .. } | MessageChange::Flags { .. } => None,
    }
}
