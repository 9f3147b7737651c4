//! What an account has beside its mailboxes: directories that hold no mail, and subscriptions.

use std::collections::BTreeSet;

use dsync_model::{BaseNode, MailboxName, MailboxNode, Timestamp, TreeChange};

use super::held::Held;
use super::{Merge, TreePlan};
use crate::{Both, Direction, ENDS, End, later};

impl Merge<'_> {
    pub(super) fn directories(&self, end: End, held: &Held, plan: &mut TreePlan) {
        let is_directory = |end: End, name: &MailboxName| {
            let node = held.at(end, name).and_then(|name| self.trees[end].get(name));
            node.is_some_and(|node| node.directory && node.mailbox.is_none())
        };
        let exists = |end: End, name: &MailboxName| {
            let node = held.at(end, name).and_then(|name| self.trees[end].get(name));
            node.is_some_and(|node| node.directory || node.mailbox.is_some())
        };
        let names = self.common_names(held);
        let deleted = plan.deletes.iter().filter_map(|change| match change {
            TreeChange::Delete { name, .. } => Some(held.common(end, name).clone()),
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
            // A directory has no mail: what the log of one end tells is enough.
            let removed = |end: End| {
                let there = held.at(end.other(), name).and_then(|name| self.trees[end.other()].get(name));
                let deleted = held.at(end, name).and_then(|name| self.logs[end].directory_deleted(name));
                deleted.is_some_and(|at| there.and_then(|node| node.renamed) < Some(at))
            };
            let free = !exists(end, name) && plan.agreed.get(name).is_none_or(|node| node.mailbox.is_none());
            let written = self.direction.source() != Some(end);
            let Some(here_name) = held.at(end, name) else { continue };
            let (create, delete) = match self.direction {
                Direction::TwoWay => {
                    let there = there && !agreed_before && !removed(end);
                    let was = agreed_before || removed(end.other());
                    (there && free, here && !exists(end.other(), name) && was)
                }
                Direction::Mirror { .. } => (there && free, here && !exists(end.other(), name)),
                Direction::OneWay { .. } => (there && free && !agreed_before, false),
            };
            if written && create {
                plan.changes.push(TreeChange::CreateDirectory { name: here_name.clone() });
            }
            let used = || {
                let at = |end: End| {
                    let all = self.trees[end].keys().map(move |below| held.common(end, below));
                    all.filter(move |below| exists(end, below))
                };
                let stays = at(end).filter(|below| !gone.contains(*below)).chain(at(end.other()));
                plan.agreed.keys().chain(stays).any(|other| other.is_below(name))
            };
            if written && delete && !used() {
                gone.insert(name.clone());
                plan.deletes.push(TreeChange::DeleteDirectory { name: here_name.clone() });
            }
        }
    }

    /// Says whether a name is to be subscribed at both ends; `times` is when each end last changed that.
    fn subscribes(&self, now: Both<bool>, before: Option<bool>, times: Both<Option<Timestamp>>) -> bool {
        match (self.direction, before) {
            (Direction::Mirror { into }, _) => now[into.other()],
            (Direction::OneWay { into }, Some(before)) if now[into.other()] == before => now[into],
            (Direction::OneWay { into }, Some(_)) => now[into.other()],
            (Direction::OneWay { .. }, None) => now.0[0] || now.0[1],
            (Direction::TwoWay, _) if now.0[0] == now.0[1] => now.0[0],
            (Direction::TwoWay, Some(before)) => !before,
            (Direction::TwoWay, None) => later(times).is_none_or(|end| now[end]),
        }
    }

    /// All names of both ends.
    fn common_names<'a>(&'a self, held: &'a Held) -> BTreeSet<&'a MailboxName> {
        let names = |end: End| self.trees[end].keys().map(move |name| held.common(end, name));
        ENDS.into_iter().flat_map(names).collect()
    }

    /// Rule **subscription**: the end that changed it since the base; without a base the later, else subscribed.
    pub(super) fn subscriptions(&self, end: End, held: &Held, plan: &mut TreePlan) {
        let (mut add, mut remove) = (BTreeSet::new(), BTreeSet::new());
        let names = self.common_names(held);
        let mut staying = BTreeSet::new();
        for name in names {
            let node = |end: End| held.at(end, name).and_then(|name| self.trees[end].get(name));
            let now = Both(ENDS.map(|end| node(end).is_some_and(|node: &MailboxNode| node.subscribed)));
            let before = self.base.map(|base| base.tree.get(name).is_some_and(|node| node.subscribed));
            // What one end cannot have is none of the other's business.
            if !(self.in_scope)(name) || ENDS.iter().any(|end| held.at(*end, name).is_none()) {
                if before == Some(true) {
                    plan.agreed.entry(name.clone()).or_default().subscribed = true;
                }
                continue;
            }
            let times = Both(ENDS.map(|end| match node(end) {
                Some(node) => node.subscription_changed,
                None => held.at(end, name).and_then(|name| self.logs[end].unsubscribed(name)),
            }));
            let wanted = self.subscribes(now, before, times);
            if wanted || ENDS.into_iter().any(|end| node(end).is_some_and(|node| node.directory)) {
                staying.insert(name.clone());
            }
            if let Some(here) = held.at(end, name).filter(|_| wanted != now[end]) {
                (if wanted { &mut add } else { &mut remove }).insert(here.clone());
            }
            let remembered = self.direction.source().map_or(wanted, |source| now[source]);
            if remembered {
                plan.agreed.entry(name.clone()).or_default().subscribed = true;
            }
        }
        // What stood in the way of a name may be gone with this merge.
        for unable in ENDS {
            for (name, instead) in held.beside(unable).filter(|(name, _)| (self.in_scope)(name)) {
                if !staying.insert(instead.clone()) {
                    continue;
                }
                let mut now = Both([false; 2]);
                now[unable.other()] =
                    self.trees[unable.other()].get(name).is_some_and(|node| node.subscribed);
                let before = self.base.map(|base| base.tree.get(name).is_some_and(|node| node.subscribed));
                let wanted = self.subscribes(now, before, Both::default());
                match (wanted == now[end], end == unable) {
                    (true, _) => {}
                    (false, true) if remove.remove(instead) => {}
                    (false, true) => drop(add.insert(instead.clone())),
                    (false, false) => drop(remove.insert(name.clone())),
                }
                let remembered = self.direction.source().map_or(wanted, |source| now[source]);
                let mut node = plan.agreed.remove(name).unwrap_or_default();
                node.subscribed = remembered;
                if node != BaseNode::default() {
                    plan.agreed.insert(name.clone(), node);
                }
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
