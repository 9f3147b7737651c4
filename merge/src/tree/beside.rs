//! What an account has beside its mailboxes: directories that hold no mail, and subscriptions.

use std::collections::BTreeSet;

use dsync_model::{MailboxName, MailboxNode, TreeChange};

use super::{Merge, TreePlan};
use crate::{Both, Direction, ENDS, End, later};

impl Merge<'_> {
    pub(super) fn directories(&self, end: End, plan: &mut TreePlan) {
        let is_directory = |end: End, name: &MailboxName| {
            self.trees[end].get(name).is_some_and(|node| node.directory && node.mailbox.is_none())
        };
        let exists = |end: End, name: &MailboxName| {
            self.trees[end].get(name).is_some_and(|node| node.directory || node.mailbox.is_some())
        };
        let names: BTreeSet<&MailboxName> = self.trees.0.iter().flat_map(|tree| tree.keys()).collect();
        let deleted = plan.deletes.iter().filter_map(|change| match change {
            TreeChange::Delete { name, .. } => Some(name.clone()),
            _ => None,
        });
        let mut gone: BTreeSet<MailboxName> = deleted.collect();
        // Deepest first, so that each is empty when its turn comes.
        for name in names.into_iter().rev().filter(|name| (self.in_scope)(name)) {
            let both = ENDS.into_iter().all(|end| is_directory(end, name));
            let agreed_before =
                self.base.and_then(|base| base.tree.get(name)).is_some_and(|node| node.directory);
            // The base follows the source: what the destination removed is not made again.
            let left = agreed_before
                && matches!(self.direction, Direction::OneWay { into } if is_directory(into.other(), name));
            if both || left {
                plan.agreed.entry(name.clone()).or_default().directory = true;
            }
            let (here, there) = (is_directory(end, name), is_directory(end.other(), name));
            let free = !exists(end, name) && plan.agreed.get(name).is_none_or(|node| node.mailbox.is_none());
            let written = self.direction.source() != Some(end);
            let (create, delete) = match self.direction {
                Direction::TwoWay => {
                    (there && free && !agreed_before, here && !exists(end.other(), name) && agreed_before)
                }
                Direction::Mirror { .. } => (there && free, here && !exists(end.other(), name)),
                Direction::OneWay { .. } => (there && free && !agreed_before, false),
            };
            if written && create {
                plan.changes.push(TreeChange::CreateDirectory { name: name.clone() });
            }
            let used = || {
                let at = |end: End| self.trees[end].keys().filter(move |below| exists(end, below));
                let stays = at(end).filter(|below| !gone.contains(*below)).chain(at(end.other()));
                plan.agreed.keys().chain(stays).any(|other| other.is_below(name))
            };
            if written && delete && !used() {
                gone.insert(name.clone());
                plan.deletes.push(TreeChange::DeleteDirectory { name: name.clone() });
            }
        }
    }

    /// Rule **subscription**: the end that changed it since the base; without a base the later, else subscribed.
    pub(super) fn subscriptions(&self, end: End, plan: &mut TreePlan) {
        let (mut add, mut remove) = (BTreeSet::new(), BTreeSet::new());
        let names: BTreeSet<&MailboxName> = self.trees.0.iter().flat_map(|tree| tree.keys()).collect();
        for name in names {
            let node = |end: End| self.trees[end].get(name);
            let now = Both(ENDS.map(|end| node(end).is_some_and(|node: &MailboxNode| node.subscribed)));
            let before = self.base.map(|base| base.tree.get(name).is_some_and(|node| node.subscribed));
            if !(self.in_scope)(name) {
                if before == Some(true) {
                    plan.agreed.entry(name.clone()).or_default().subscribed = true;
                }
                continue;
            }
            let wanted = match (self.direction, before) {
                (Direction::Mirror { into }, _) => now[into.other()],
                (Direction::OneWay { into }, Some(before)) if now[into.other()] == before => now[into],
                (Direction::OneWay { into }, Some(_)) => now[into.other()],
                (Direction::OneWay { .. }, None) => now.0[0] || now.0[1],
                (Direction::TwoWay, _) if now.0[0] == now.0[1] => now.0[0],
                (Direction::TwoWay, Some(before)) => !before,
                (Direction::TwoWay, None) => {
                    let times = Both(ENDS.map(|end| node(end).and_then(|node| node.subscription_changed)));
                    later(times).is_none_or(|end| now[end])
                }
            };
            if wanted != now[end] {
                (if wanted { &mut add } else { &mut remove }).insert(name.clone());
            }
            let remembered = self.direction.source().map_or(wanted, |source| now[source]);
            if remembered {
                plan.agreed.entry(name.clone()).or_default().subscribed = true;
            }
        }
        if self.direction.source() == Some(end) {
            return;
        }
        if !add.is_empty() {
            plan.changes.push(TreeChange::Subscribe { names: add });
        }
        if !remove.is_empty() {
            plan.changes.push(TreeChange::Unsubscribe { names: remove });
        }
    }
}
