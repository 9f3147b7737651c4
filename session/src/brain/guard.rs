//! Stops a session before its first deletion if it looks like an accident: a source that is suddenly empty, most of the mail
//! to go at once.
//!
//! Each end counts what it would remove itself, and does so before it says that its saves are done; nobody removes anything
//! before both have said that.

use std::collections::BTreeSet;

use dsync_merge::Direction;
use dsync_model::{MailboxGuid, MailboxTree, MessageAction, MessageChange, Since, TreeChange, Uid};
use dsync_proto::Options;
use dsync_storage::Storage as _;

use super::Brain;
use crate::SessionError;

/// So many messages may always go.
const FEW_MESSAGES: u64 = 100;
/// A mirror may lose one message of so many.
const MIRROR_SHARE: u64 = 5;

/// What would go from one mailbox.
enum Going {
    Messages(BTreeSet<Uid>),
    All,
}

impl Brain {
    /// A mirror of nothing would remove everything.
    pub(super) fn guard_source(
        &mut self,
        direction: Direction,
        options: &Options,
    ) -> Result<(), SessionError> {
        let Direction::Mirror { into } = direction else { return Ok(()) };
        let source = messages(&self.trees[into.other() as usize]);
        let own = messages(&self.trees[into as usize]);
        if source > 0 || own == 0 || options.allow_mass_delete {
            return Ok(());
        }
        self.refuse(format!(
            "the source holds no message, and the destination holds {own}: refusing to remove them all"
        ))
    }

    /// All that this end is about to remove is known: too much of it is refused.
    pub(super) fn guard_deletions(&mut self) -> Result<(), SessionError> {
        if self.job.as_ref().is_some_and(|job| job.options.allow_mass_delete) {
            return Ok(());
        }
        let tree = &self.trees[self.end as usize];
        let total = messages(tree);
        let held = |guid: &MailboxGuid| {
            let mut statuses = tree.values().filter_map(|node| node.mailbox.as_ref());
            statuses.find(|status| status.guid == *guid).map_or(0, |status| u64::from(status.messages))
        };
        let mut going = Vec::new();
        let mut count = 0;
        for open in self.open.iter().filter(|open| open.active && !open.skipped) {
            let expunges = open.plan.iter().flat_map(|plan| &plan.expunges);
            let uids: BTreeSet<Uid> = expunges
                .filter_map(|action| match action {
                    MessageAction::Expunge { uid, .. } => Some(*uid),
                    _ => None,
                })
                .collect();
            count += uids.len() as u64;
            if !uids.is_empty() {
                going.push((open.pair.guid, uids.len() as u64, Going::Messages(uids)));
            }
        }
        for change in self.plan.deletes.iter().filter(|_| self.round == 0) {
            if let TreeChange::Delete { guid, .. } = change {
                count += held(guid);
                going.push((*guid, held(guid), Going::All));
            }
        }
        if !self.is_mass(count, total) {
            return Ok(());
        }
        let count = self.count_lost(&going)?;
        if !self.is_mass(count, total) {
            return Ok(());
        }
        let place = self.storage.location();
        self.refuse(format!("this would remove {count} of the {total} messages of {place}: refusing"))
    }

    fn is_mass(&self, count: u64, total: u64) -> bool {
        let share = match self.direction() {
            Direction::Mirror { .. } => count * MIRROR_SHARE > total,
            // What users removed at the other end goes here, too; but hardly ever everything.
            Direction::TwoWay | Direction::OneWay { .. } => count >= total,
        };
        count > FEW_MESSAGES && share
    }

    /// Counts the messages that would be gone: those that moved to another mailbox are not.
    fn count_lost(&mut self, going: &[(MailboxGuid, u64, Going)]) -> Result<u64, SessionError> {
        let plans = self.open.iter().filter_map(|open| open.plan.as_ref());
        let arrived: BTreeSet<[u8; 16]> =
            plans.flat_map(|plan| plan.arrived.keys()).map(|guid| guid.bits()).collect();
        let mut lost = 0;
        for (mailbox, planned, what) in going {
            let changes =
                match self.storage.open(*mailbox).and_then(|mut mailbox| mailbox.changes(Since::All)) {
                    Ok(changes) => changes,
                    Err(error) => {
                        let error = self.spared("cannot count what would go", error)?;
                        tracing::debug!("{mailbox}: {error}");
                        lost += planned;
                        continue;
                    }
                };
            let counts = |change: &&MessageChange| match change {
                MessageChange::Save { uid, guid, .. } => {
                    let goes = match what {
                        Going::All => true,
                        Going::Messages(uids) => uids.contains(uid),
                    };
                    goes && !arrived.contains(&guid.bits())
                }
                _ => false,
            };
            lost += changes.list.iter().filter(counts).count() as u64;
        }
        Ok(lost)
    }

    fn refuse(&mut self, text: String) -> Result<(), SessionError> {
        let text = format!("{text}; --allow-mass-delete does it");
        if self.dry_run() {
            self.report.notes.push(text);
            return Ok(());
        }
        Err(SessionError::Refused { status: 77, text })
    }
}

fn messages(tree: &MailboxTree) -> u64 {
    let statuses = tree.values().filter_map(|node| node.mailbox.as_ref());
    statuses.map(|status| u64::from(status.messages)).sum()
}
