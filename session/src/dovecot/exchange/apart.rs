//! What a Dovecot may not have got when a session broke off is new to it once more, rather than expunged by it.
//!
//! It gets several messages of one GUID with one body, and renumbers and copies what it has itself at once: cut off, it has those, and lacks what was to come
//! below. So of a mailbox whose last session did not end, what it lacks above what both had before, and below a common UID, gets a UID above all that both ends
//! will know, before it is told of anything; it is new in the next run. What users of the Dovecot expunged there comes back with it, where its log does not
//! tell: kept rather than lost.

use std::collections::{BTreeMap, BTreeSet};

use dsync_merge::dovecot::Plan;
use dsync_model::{MessageAction, MessageChange, MessageGuid, Uid};
use dsync_storage::{Goal, StorageError};

use super::{Exchange, Part, at};
use crate::SessionError;

/// How often UIDs are looked for that nobody else takes.
const TRIES: usize = 5;

impl Exchange {
    /// Takes out of our list, before it is told, what this plan has for expunged there, though the peer may never have got it.
    pub(super) fn take_apart(&mut self, plan: &Plan) -> Vec<Uid> {
        let complete = self.terms.known.is_none() && self.hashing.is_none();
        let Some(agreed) = self.terms.unfinished.filter(|_| complete) else { return Vec::new() };
        if !self.is_untold() || self.part != Part::Both {
            return Vec::new();
        }
        let from = self.equal_from().get().max(agreed.saturating_add(1));
        // Told without a GUID, it may have been another message of its own that had the UID.
        let is_told =
            |change: &&MessageChange| matches!(change, MessageChange::Expunge { guid: Some(_), .. });
        let told: BTreeSet<Uid> = self.peer.iter().filter(is_told).map(MessageChange::uid).collect();
        // What it has under a higher UID is that message.
        let mut comes: BTreeMap<&MessageGuid, usize> = BTreeMap::new();
        plan.saves.iter().for_each(|save| *comes.entry(&save.guid).or_default() += 1);
        let mut apart = Vec::new();
        for action in &plan.expunges {
            let MessageAction::Expunge { uid, guid: Some(guid) } = action else { continue };
            if uid.get() < from || uid.get() > plan.common || told.contains(uid) {
                continue;
            }
            match comes.get_mut(guid).filter(|count| **count > 0) {
                Some(count) => *count -= 1,
                None => apart.push(*uid),
            }
        }
        apart.sort_unstable();
        self.own.retain(|change| apart.binary_search(&change.uid()).is_err());
        apart
    }

    /// Up to which UID both lists agree, where that says more than what is known of this mailbox, and no session broke off in it.
    pub fn agreed(&self) -> Option<u32> {
        let plan = self.plan.as_ref().filter(|_| self.terms.unfinished.is_none())?;
        (plan.common >= self.equal_from().get()).then_some(plan.common)
    }

    /// Below this UID both ends had the same when they were last found equal.
    fn equal_from(&self) -> Uid {
        let left = self.terms.left.filter(|left| left.uid_validity.get() == self.ours.uid_validity);
        left.map_or(Uid::MIN, |left| left.below)
    }

    /// Gives these UIDs above all others, and makes that durable.
    pub(super) fn move_apart(&mut self, apart: Vec<Uid>) -> Result<(), SessionError> {
        if apart.is_empty() {
            return Ok(());
        }
        self.notes.push(format!(
            "{}: {} that the other end may not have got when a session broke off go there with the next run",
            self.name,
            apart.len()
        ));
        self.disturbed = true;
        if self.renumber_above(apart, &self.name.clone())?.is_none() {
            let text = "what the other end may not have got gets no other UIDs".into();
            return Err(at(self.name.clone())(StorageError::Impossible(text)));
        }
        Ok(())
    }

    /// Gives these UIDs above all that both ends have or plan, and makes that durable with all that came. Tells the highest; `None`: others take them all the time,
    /// or there are no more.
    pub(super) fn renumber_above(
        &mut self,
        mut uids: Vec<Uid>,
        context: &str,
    ) -> Result<Option<Uid>, SessionError> {
        let planned = self.plan.as_ref().map_or(0, |plan| plan.uid_next_min);
        let floor = planned.max(self.ours.uid_next).max(self.theirs.uid_next);
        for _ in 0..TRIES {
            let status = self.mailbox.status().map_err(at(context))?;
            let first = status.uid_next.get().max(floor);
            let pairs: Vec<(Uid, Uid)> =
                uids.iter().zip(first..).filter_map(|(from, to)| Some((*from, Uid::new(to)?))).collect();
            let (true, Some((_, last))) = (pairs.len() == uids.len(), pairs.last().copied()) else { break };
            let renumber = |(from, to): &(Uid, Uid)| MessageAction::Renumber { from: *from, to: *to };
            let actions: Vec<MessageAction> = pairs.iter().map(renumber).collect();
            self.mailbox.apply(&actions).map_err(at(context))?;
            let goal = Goal { uid_next_min: status.uid_next, unfinished: true, ..self.goal() };
            let not_kept = self.commit_to(goal)?;
            uids = pairs.iter().filter(|(_, to)| not_kept.contains_key(to)).map(|(from, _)| *from).collect();
            if uids.is_empty() {
                return Ok(Some(last));
            }
        }
        Ok(None)
    }
}
