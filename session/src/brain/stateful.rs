//! Sessions that begin from a sync state (`-s`), and give a new one.
//!
//! The state only spares work: a mailbox is not looked into while both ends are as it says. What is deleted is settled by
//! bases and logs alone, so that a state of other mail, or an old one, costs time and no mail.

use dsync_merge::Pair;
use dsync_model::{LastCommon, MailboxGuid, MailboxStatus, SyncState};
use dsync_proto::{BATCH_MAX, Message};
use dsync_storage::Storage as _;

use super::{Brain, Stage};
use crate::SessionError;

/// Most mailboxes that a peer's state may name.
const RECORDS_MAX: usize = 1_000_000;

impl Brain {
    /// Tells the responder where the initiator begins.
    pub(super) fn say_state(&mut self) {
        let Some(state) = &self.state else { return };
        let records: Vec<_> = state.0.iter().map(|(guid, common)| (*guid, *common)).collect();
        for batch in records.chunks(BATCH_MAX) {
            self.say(Message::State(batch.to_vec()));
        }
    }

    pub(super) fn take_state(&mut self, records: Vec<(MailboxGuid, LastCommon)>) -> Result<(), SessionError> {
        let state = self.state.get_or_insert_default();
        if self.end == dsync_merge::End::Initiator
            || self.peer_nodes_done
            || self.stage > Stage::Trees
            || state.0.len() + records.len() > RECORDS_MAX
        {
            return Err(SessionError::Peer("sends a sync state where none belongs".into()));
        }
        state.0.extend(records);
        Ok(())
    }

    /// Both ends have the same mail, and it is what the state says.
    pub(super) fn state_says_settled(&self, guid: MailboxGuid, initiator: &MailboxStatus) -> bool {
        let record = self.state.as_ref().and_then(|state| state.0.get(&guid));
        record.is_some_and(|common| common.is_current(initiator))
    }

    /// A state that is ahead of a mailbox, at either end, says nothing; whoever keeps it has to begin anew.
    pub(super) fn check_state(&mut self, pairs: &[Pair]) {
        let Some(state) = &mut self.state else { return };
        let mut stale = Vec::new();
        for pair in pairs {
            let Some(common) = state.0.get(&pair.guid) else { continue };
            if pair.statuses.0.iter().flatten().any(|status| common.is_ahead_of(status)) {
                stale.push((pair.guid, pair.name.clone()));
            }
        }
        for (guid, name) in stale {
            state.0.remove(&guid);
            self.state_is_stale = true;
            self.report.notes.push(format!(
                "{name}: the state is ahead of the mailbox, which is looked into in full; no new state is given"
            ));
        }
    }

    /// The state to begin from next time, in full: both ends agree on what it says.
    pub(super) fn next_state(&mut self) -> Result<Option<SyncState>, SessionError> {
        let Some(old) = &self.state else { return Ok(None) };
        if self.state_is_stale {
            return Ok(None);
        }
        let mut next = SyncState::default();
        for pair in &self.plan.pairs {
            let open = self.open.iter().find(|open| open.pair.guid == pair.guid);
            let settled =
                open.and_then(|open| open.settled[self.end as usize].as_ref().filter(|_| open.confirmed));
            let record = match (open, settled) {
                // Not looked into: it was settled, or nobody asked.
                (None, _) if self.tree_only() => None,
                (None, _) => pair.statuses[self.end].as_ref().map(LastCommon::of),
                (Some(_), Some(settled)) => {
                    let name = pair.name.to_string();
                    match self.storage.open(pair.guid).and_then(|mut mailbox| mailbox.status()) {
                        // A message more or less than was agreed on: it is no common state.
                        Ok(status) => (status.digest == settled.digest).then(|| LastCommon::of(&status)),
                        Err(error) => {
                            let error = self.spared(&name, error)?;
                            tracing::debug!("{name}: {error}");
                            None
                        }
                    }
                }
                (Some(_), None) => None,
            };
            next.0
                .extend(record.or_else(|| old.0.get(&pair.guid).copied()).map(|record| (pair.guid, record)));
        }
        // What was not asked for stays as it was; what is gone, goes.
        let listed =
            self.trees.iter().flat_map(|tree| tree.values()).filter_map(|node| node.mailbox.as_ref());
        for guid in listed.map(|status| status.guid).filter(|guid| self.plan.kept.contains(guid)) {
            if let Some(record) = old.0.get(&guid) {
                next.0.entry(guid).or_insert(*record);
            }
        }
        Ok(Some(next))
    }

    fn tree_only(&self) -> bool {
        self.job.as_ref().is_some_and(|job| job.options.tree_only)
    }
}
