//! Mailboxes of ours that cannot be listed: nobody knows what they are, so the peer is to do nothing with its own of those names.
//!
//! Nothing in the protocol says that. So the peer is told what it has there itself, which it then neither deletes, makes nor renames; and of its mailbox no
//! counters are told, or, as slave, that it is lost.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use dsync_merge::{Direction, End};
use dsync_model::{MailboxGuid, MailboxName, MailboxTree, Timestamp};

use super::{Brain, Stage};

impl Brain {
    /// As slave, tells our tree; where something of ours cannot be listed the master's must be known for that, and a Dovecot does not wait for ours.
    pub(super) fn tell_slave_tree(&mut self) {
        // What only receives a mirror may tell less than there is.
        let receives = self.direction == Direction::Mirror { into: End::Responder };
        if self.unlisted.is_empty() || receives {
            self.tell_tree();
        } else {
            self.stage = Stage::Trees;
        }
    }

    /// Whether this is one of those, or below one.
    pub(super) fn is_unlisted(&self, name: &MailboxName) -> bool {
        self.unlisted.iter().any(|unlisted| name == unlisted || name.is_below(unlisted))
    }

    /// Our tree as the peer is told it.
    pub(super) fn with_unlisted(&self) -> Cow<'_, MailboxTree> {
        if self.unlisted.is_empty() || !self.peer_tree_done {
            return Cow::Borrowed(&self.tree);
        }
        let own = guids(&self.tree);
        // To a mirror one that has no copy under its own name may be what has another name there.
        let mirrored = self.direction == Direction::Mirror { into: self.end.other() };
        let all = mirrored && self.is_anywhere();
        let theirs = self.peer_tree.iter().filter(|(name, node)| {
            let unknown = node.mailbox.as_ref().is_some_and(|status| !own.contains(&status.guid));
            unknown && (all || self.is_unlisted(name))
        });
        let mut told = self.tree.clone();
        told.extend(theirs.map(|(name, node)| (name.clone(), node.clone())));
        Cow::Owned(told)
    }

    /// Takes off the list of what was deleted here whatever may be one of those: a log tells of all that is not listed.
    pub(super) fn spare_unlisted(&self, deletions: &mut BTreeMap<MailboxGuid, Timestamp>) {
        if self.unlisted.is_empty() {
            return;
        }
        if !self.peer_tree_done || self.is_anywhere() {
            deletions.clear();
        }
        for node in self.peer_tree.iter().filter(|(name, _)| self.is_unlisted(name)).map(|(_, node)| node) {
            node.mailbox.as_ref().and_then(|status| deletions.remove(&status.guid));
        }
    }

    /// Takes the peer's mailboxes of those names out of the merge.
    pub(super) fn pass_over_unlisted(&mut self) {
        let own = guids(&self.tree);
        let unlisted = std::mem::take(&mut self.unlisted);
        for (name, node) in &mut self.peer_tree {
            let is_one = unlisted.iter().any(|unlisted| name == unlisted || name.is_below(unlisted));
            let passed = node.mailbox.take_if(|status| is_one && !own.contains(&status.guid));
            self.passed_over.extend(passed.map(|status| status.guid));
        }
        self.unlisted = unlisted;
    }

    /// Whether the peer has one of them, if at all, under a name that nobody knows.
    fn is_anywhere(&self) -> bool {
        let theirs = |name| self.peer_tree.get(name).and_then(|node| node.mailbox.as_ref());
        self.unlisted.iter().any(|name| theirs(name).is_none())
    }
}

fn guids(tree: &MailboxTree) -> BTreeSet<MailboxGuid> {
    tree.values().filter_map(|node| node.mailbox.as_ref()).map(|status| status.guid).collect()
}
