//! Flags that go with mail to where a user moved it.

use std::collections::{BTreeMap, BTreeSet};

use dsync_merge::Direction;
use dsync_model::{
    FlagDelta, MailboxBase, MessageAction, MessageChange, MessageGuid, ModSeq, Since, TreeChange, Uid,
};
use dsync_storage::{Mailbox, Storage as _};

use super::greeting::describe;
use super::leaving::expunged;
use super::mailbox::goal;
use super::{Brain, Open, at};
use crate::SessionError;

impl Brain {
    /// Rule **moved-flags**: flags set on a message that the other end moved go to its new place.
    ///
    /// What was set in a mailbox that goes, or since the lists, is known here alone. It is set here and is not agreed: a change since what both
    /// planned, which the next round takes to the other end.
    pub(super) fn carry_flags(&mut self) -> Result<(), SessionError> {
        if self.direction() != Direction::TwoWay {
            return Ok(());
        }
        // What a mailbox carried in an earlier round is carried: a user may have changed it again.
        let plans = self.open.iter().filter(|open| is_at_work(open)).filter_map(|open| open.plan.as_ref());
        let known: Vec<_> = plans.clone().flat_map(|plan| plan.carried.iter().cloned()).collect();
        if self.round > 0 {
            // Moved since the lists of the first round, perhaps to a mailbox that is done: the next run finds it there.
            let arrived: BTreeSet<_> =
                plans.flat_map(|plan| plan.arrived.keys().map(|guid| guid.bits())).collect();
            let lost = known.iter().map(|(guid, _)| guid.bits()).filter(|guid| !arrived.contains(guid));
            for (name, count) in self.hold(&lost.collect())? {
                self.counters.disturbed += 1;
                let text = "gone at the other end, and changed here, while they were synchronised; run again";
                self.report.notes.push(format!("{name}: {count} {text}"));
            }
        }
        let mut own = self.flags_that_go()?;
        own.extend(self.flags_of_moved()?);
        if known.is_empty() && own.is_empty() {
            return Ok(());
        }
        let mut failed = Vec::new();
        for (index, open) in self.open.iter_mut().enumerate().filter(|(_, open)| is_at_work(open)) {
            let Some(plan) = open.plan.as_mut() else { continue };
            let mut changes: BTreeMap<Uid, FlagDelta> = BTreeMap::new();
            for (nth, (guid, delta)) in known.iter().chain(&own).enumerate() {
                let Some(uid) = plan.arrived.get(guid).copied() else { continue };
                if nth < known.len() {
                    let flags = plan.agreed.flags_of(uid).minus(&delta.removed).union(&delta.added);
                    plan.agreed.insert(uid, &flags);
                }
                // It may come from two places.
                let change = changes.entry(uid).or_default();
                change.added = change.added.minus(&delta.removed).union(&delta.added);
                change.removed = change.removed.minus(&delta.added).union(&delta.removed);
            }
            if changes.is_empty() {
                continue;
            }
            let actions = changes.into_iter().map(|(uid, FlagDelta { added: add, removed: remove, .. })| {
                MessageAction::Flags { uid, add, remove, modseq_min: ModSeq::NONE }
            });
            let actions = actions.filter_map(|action| action.redirected(&open.not_kept));
            let actions: Vec<MessageAction> = actions.collect();
            let done = self.storage.open(open.pair.guid).and_then(|mut mailbox| {
                let status = mailbox.status()?;
                mailbox.apply(&actions)?;
                mailbox.commit(goal(plan, &status))
            });
            match done {
                Ok(committed) => {
                    open.not_kept.extend(committed.not_kept);
                    open.report.flags += actions.len() as u64;
                }
                Err(error) => {
                    // The message stays where its flags are.
                    self.not_arrived.extend(plan.arrived.keys().map(|guid| guid.bits()));
                    failed.push((index, error));
                }
            }
        }
        if failed.is_empty() {
            return Ok(());
        }
        for (index, error) in failed {
            self.fail(index, self.open[index].report.name.clone(), error)?;
        }
        self.hold_back()
    }

    /// Flags that were changed here, since the base, in mailboxes that are about to be deleted.
    fn flags_that_go(&mut self) -> Result<Vec<(MessageGuid, FlagDelta)>, SessionError> {
        let mut found = Vec::new();
        let Some(base) = &self.base else { return Ok(found) };
        let mut stay = Vec::new();
        for change in &self.plan.deletes {
            let TreeChange::Delete { name, guid, .. } = change else { continue };
            let Some(base) = base.mailboxes.get(guid) else { continue };
            match self.storage.open(*guid).and_then(|mailbox| changed_flags(mailbox, base)) {
                // Somebody was faster to delete it.
                Err(error) if error.is_gone() => {}
                Err(error) if self.concerns_all(&error) => return Err(at(name.to_string())(error)),
                Err(error) => {
                    stay.push((
                        change.clone(),
                        describe(&format!("{name}: is not deleted"), &error),
                        error.status(),
                    ));
                }
                Ok(changed) => found.extend(changed.into_iter().map(|(_, guid, flags)| (guid, flags))),
            }
        }
        for (change, text, status) in stay {
            self.plan.deletes.retain(|planned| *planned != change);
            self.problem_of_both(text, status);
            self.undone(&change);
        }
        Ok(found)
    }

    /// Flags that were changed here, since the base, on messages that are to go because the other end moved them. The lists do not tell all of them:
    /// some were changed since, and what an earlier round agreed on did not reach the other end if the message was moved meanwhile.
    fn flags_of_moved(&mut self) -> Result<Vec<(MessageGuid, FlagDelta)>, SessionError> {
        let (mut found, mut failed) = (Vec::new(), Vec::new());
        let Some(bases) = &self.base else { return Ok(found) };
        let plans = self.open.iter().filter(|open| is_at_work(open)).filter_map(|open| open.plan.as_ref());
        let arrived: BTreeSet<&MessageGuid> = plans.flat_map(|plan| plan.arrived.keys()).collect();
        if arrived.is_empty() {
            return Ok(found);
        }
        for (index, open) in self.open.iter().enumerate().filter(|(_, open)| is_at_work(open)) {
            let (Some(plan), Some(base)) = (&open.plan, bases.mailboxes.get(&open.pair.guid)) else {
                continue;
            };
            let going: BTreeSet<Uid> = plan.expunges.iter().filter_map(expunged).collect();
            if going.is_empty() {
                continue;
            }
            match self.storage.open(open.pair.guid).and_then(|mailbox| changed_flags(mailbox, base)) {
                Ok(changed) => found.extend(changed.into_iter().filter_map(|(uid, guid, flags)| {
                    (going.contains(&uid) && arrived.contains(&guid)).then_some((guid, flags))
                })),
                Err(error) => failed.push((index, error)),
            }
        }
        for (index, error) in failed {
            self.fail(index, self.open[index].report.name.clone(), error)?;
        }
        Ok(found)
    }
}

/// Messages of which the flags were changed since the base; none, if that is of another UIDVALIDITY.
fn changed_flags(
    mut mailbox: Box<dyn Mailbox>,
    base: &MailboxBase,
) -> dsync_storage::Result<Vec<(Uid, MessageGuid, FlagDelta)>> {
    let status = mailbox.status()?;
    if status.uid_validity != base.uid_validity || base.digest == Some(status.digest) {
        return Ok(Vec::new());
    }
    let changes = mailbox.changes(Since::Base(base))?.list.into_iter();
    let flags = changes.filter_map(|change| match change {
        MessageChange::Flags { uid, guid, flags, .. } => Some((uid, guid, flags)),
        MessageChange::Save { .. } | MessageChange::Expunge { .. } => None,
    });
    Ok(flags.collect())
}

fn is_at_work(open: &Open) -> bool {
    open.active && !open.skipped
}
