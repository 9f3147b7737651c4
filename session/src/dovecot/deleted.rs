//! Mailboxes, directories and subscriptions that either end took away.

use dsync_merge::Direction;
use dsync_model::{MailboxGuid, MailboxName, MailboxTree, Timestamp, TreeChange, TreeLog};

use super::Brain;
use super::trees::{exists, is_told, removed};
use crate::SessionError;

impl Brain {
    /// Directories of the peer's that were removed here.
    pub(super) fn removed_directories(&self) -> Vec<(MailboxName, Timestamp)> {
        if matches!(self.direction, Direction::Mirror { .. }) {
            return Vec::new();
        }
        let (log, scope) = (self.storage.tree_log(), self.scope());
        let empty = self.peer_tree.iter().filter(|(_, node)| node.directory && node.mailbox.is_none());
        let gone = empty.filter(|(name, _)| {
            scope(name, None) && !self.is_unlisted(name) && !self.tree.get(*name).is_some_and(exists)
        });
        gone.filter_map(|(name, _)| removed(&log, name).map(|at| (name.clone(), at))).collect()
    }

    /// Names of the peer's that are not here any more, with the time when they were unsubscribed: in our tree now, and in the list.
    pub(super) fn recall_unsubscribed(&mut self) -> Vec<(MailboxName, Timestamp)> {
        if matches!(self.direction, Direction::Mirror { .. }) {
            return Vec::new();
        }
        let (log, scope) = (self.storage.tree_log(), self.scope());
        let known = |name: &MailboxName| self.tree.get(name).is_some_and(is_told);
        let subscribed = self.peer_tree.iter().filter(|(_, node)| node.subscribed).map(|(name, _)| name);
        let gone = subscribed.filter(|name| scope(name, None) && !known(name));
        let gone: Vec<_> =
            gone.filter_map(|name| log.unsubscribed(name).map(|at| (name.clone(), at))).collect();
        for (name, at) in &gone {
            self.tree.entry(name.clone()).or_default().subscription_changed = Some(*at);
        }
        gone
    }

    /// Names of ours that the peer has not any more, and that it unsubscribed later than we subscribed them.
    pub(super) fn hear_unsubscribed(&mut self, log: &TreeLog) {
        for (name, own) in self.tree.iter().filter(|(_, own)| own.subscribed) {
            let known = self.peer_tree.get(name).is_some_and(is_told);
            let at = log.unsubscribed(name).filter(|at| own.subscription_changed < Some(*at));
            if let (Some(at), false) = (at, known) {
                self.peer_tree.entry(name.clone()).or_default().subscription_changed = Some(at);
            }
        }
    }

    /// Deletes here what the peer says it deleted, whatever came into it since: so does the other end.
    pub(super) fn follow_deletes<'a>(
        &mut self,
        guids: impl Iterator<Item = &'a MailboxGuid>,
    ) -> Result<(), SessionError> {
        for guid in guids {
            let found = self.tree.iter().find_map(|(name, node)| {
                let status = node.mailbox.as_ref().filter(|status| status.guid == *guid)?;
                Some((name.clone(), status.uid_next))
            });
            let Some((name, uid_next)) = found else { continue };
            let there = |tree: &MailboxTree| tree.get(&name).is_some_and(|node| node.mailbox.is_some());
            if name.is_inbox() || there(&self.peer_tree) {
                continue;
            }
            let delete = TreeChange::Delete { name: name.clone(), guid: *guid, uid_next };
            if self.change_tree(&delete)? {
                let has_children = self.tree.keys().any(|other| other.is_below(&name));
                match self.tree.get_mut(&name) {
                    Some(node) if node.subscribed || has_children => node.mailbox = None,
                    _ => drop(self.tree.remove(&name)),
                }
            } else {
                self.counters.disturbed += 1;
            }
        }
        Ok(())
    }

    /// What we deleted the peer deletes: it is not to be made here again.
    pub(super) fn forget_deleted(&mut self) -> Result<(), SessionError> {
        let deletions = self.storage.tree_log().deleted;
        let here = |name: &MailboxName| self.tree.get(name).is_some_and(|node| node.mailbox.is_some());
        for (name, node) in &mut self.peer_tree {
            let gone = node.mailbox.as_ref().is_some_and(|status| deletions.contains_key(&status.guid));
            let known = node.mailbox.as_ref().is_some_and(|status| {
                self.tree.values().filter_map(|node| node.mailbox.as_ref()).any(|own| own.guid == status.guid)
            });
            if gone && !known && !here(name) && !name.is_inbox() {
                node.mailbox = None;
            }
        }
        Ok(())
    }
}
