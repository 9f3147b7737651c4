//! The trees: what each end has and deleted, told, heard and merged, and what is changed here.

use std::collections::{BTreeMap, BTreeSet};

use dsync_merge::{Both, Direction, End};
use dsync_model::{
    MailboxGuid, MailboxName, MailboxNode, MailboxStatus, MailboxTree, NameHash, NameRules, NamespaceRules,
    Timestamp, TreeChange, TreeLog,
};
use dsync_proto::dovecot::items::{self, Item};

use super::start::NODES_MAX;
use super::{Brain, Stage, at, lines, unexpected};
use crate::{SessionError, listing};

/// The separator that we say we have where nobody else says so first.
const SEPARATOR: u8 = b'/';
const ESCAPE: &[u8] = b"%";

impl Brain {
    pub(super) fn tell_tree(&mut self) {
        for node in lines::nodes(&self.with_unlisted()) {
            self.say(node);
        }
        self.say(Item::End);
        self.tree_told = true;
        self.stage = Stage::Trees;
    }

    /// Tells the tree and what was deleted, as master. `deletes`: the peer's, if they are known; only then directories that were removed here
    /// can be told, as they are hashed with the peer's separator.
    fn tell_master_tree(&mut self, deletes: Option<&items::Deletes>) {
        self.tell_tree();
        let known = deletes.and_then(|deletes| match deletes.hierarchy_sep[..] {
            [separator] => Some((separator, deletes.escape_char.clone())),
            _ => None,
        });
        let directories = if known.is_some() { self.removed_directories() } else { Vec::new() };
        let (separator, escape) = known.unwrap_or((SEPARATOR, Some(ESCAPE.to_vec())));
        self.tell_deletes(separator, escape, &directories, &[]);
    }

    /// Whether we as master wait for the peer to tell first what it has, and what it deleted, as a Dovecot does.
    fn waits_for_tree(&self) -> bool {
        self.end == End::Initiator && self.stage == Stage::Trees && !self.tree_told
    }

    /// Whether we wait for the peer to tell first what it has, which may wait for us.
    pub fn waits_for_peer(&self) -> bool {
        self.waits_for_tree() || self.exchange.as_ref().is_some_and(|exchange| exchange.may_go_first())
    }

    /// The peer waits, too: tells our tree or our list first. Whoever knows a clock calls it.
    pub fn go_first(&mut self) {
        if let Some(exchange) = &mut self.exchange {
            exchange.go_first();
        }
        // To a mirror nobody tells a tree that lacks mailboxes.
        let may = self.unlisted.is_empty() || self.direction != Direction::Mirror { into: self.end.other() };
        if self.waits_for_tree() && may {
            if !self.peer_tree_done {
                self.narrow_own();
            }
            self.tell_master_tree(None);
        }
    }

    fn tell_deletes(
        &mut self,
        separator: u8,
        escape: Option<Vec<u8>>,
        directories: &[(MailboxName, Timestamp)],
        names: &[(MailboxName, Timestamp)],
    ) {
        let mut deletions = self.storage.tree_log().deleted;
        if self.end == End::Initiator && !self.peer_tree_done {
            deletions.retain(|_, _| !self.is_narrowed());
        } else if self.end == End::Initiator {
            // The others it has not, or they are not to be touched.
            let theirs = self.peer_tree.values().filter_map(|node| node.mailbox.as_ref());
            let theirs: BTreeSet<MailboxGuid> = theirs.map(|status| status.guid).collect();
            deletions.retain(|guid, _| theirs.contains(guid));
        }
        self.spare_unlisted(&mut deletions);
        self.say(lines::deletes(separator, escape, &deletions, directories, names));
    }

    /// Hears the peer's tree, and when it is complete merges both.
    pub(super) fn take_tree(&mut self) -> Result<bool, SessionError> {
        while let Some(item) = self.next_item()? {
            match item {
                Item::Node(node) if !self.peer_tree_done => {
                    if self.peer_tree.len() >= NODES_MAX {
                        return Err(SessionError::Peer(format!("lists more than {NODES_MAX} names")));
                    }
                    if !lines::add_node(&node, &mut self.peer_tree)? {
                        let name = lines::name_of(&node.name)?;
                        self.problem(
                            format!(
                                "{name}: the other end has two mailboxes that can only be called so here"
                            ),
                            65,
                        );
                    }
                }
                Item::End if !self.peer_tree_done => {
                    self.peer_tree_done = true;
                    if !self.tree_told && self.end == End::Responder {
                        self.tell_tree();
                    }
                    if self.end == End::Initiator {
                        if !self.tree_told {
                            self.show_inbox();
                        }
                        self.narrow()?;
                        if !self.tree_told {
                            // Names are told and not their hashes, for which the peer's separator must be known.
                            self.recall_unsubscribed();
                            if self.removed_directories().is_empty() {
                                self.tell_master_tree(None);
                            }
                        }
                    }
                }
                Item::Deletes(deletes) if self.peer_tree_done => {
                    if self.waits_for_tree() {
                        self.tell_master_tree(Some(&deletes));
                    }
                    self.merge_trees(&deletes)?;
                    return Ok(true);
                }
                other => return Err(unexpected(&other, "a name or what was deleted")),
            }
        }
        Ok(false)
    }

    fn merge_trees(&mut self, deletes: &items::Deletes) -> Result<(), SessionError> {
        let log = lines::logged(deletes)?;
        if let (End::Responder, [separator]) = (self.end, &deletes.hierarchy_sep[..]) {
            let names = self.recall_unsubscribed();
            // With another separator than its own, Dovecot before 2.3.21 may not find its way out.
            let directories = self.removed_directories();
            self.tell_deletes(*separator, deletes.escape_char.clone(), &directories, &names);
        }
        let (me, direction) = (self.end, self.direction);
        let names = self.storage.rules();
        self.peer_tree.retain(|name, _| !names.is_apart(name));
        self.pass_over_unlisted();
        check_unique(&self.peer_tree)?;
        self.guard()?;
        if direction.source() != Some(me) && !matches!(direction, Direction::Mirror { .. }) {
            self.hear_unsubscribed(&log);
            self.follow_deletes(log.deleted.keys())?;
        }
        if !matches!(direction, Direction::Mirror { .. }) {
            self.forget_deleted()?;
        }
        self.adopt_inbox()?;
        inherit_times(&mut self.tree);
        inherit_times(&mut self.peer_tree);
        // What the peer cannot have in a name it replaces as we do.
        let theirs = NameRules {
            namespaces: vec![NamespaceRules {
                inbox: true,
                takes_part: true,
                separators: vec![log.separator],
                ..NamespaceRules::default()
            }],
        };
        let (mut trees, mut names) = ([&self.tree, &self.peer_tree], [&names, &theirs]);
        if me == End::Responder {
            trees.swap(0, 1);
            names.swap(0, 1);
        }
        // One way without overwriting, the receiver follows renames and deletions as it does in both directions.
        let rules = if let Direction::OneWay { .. } = direction { Direction::TwoWay } else { direction };
        // What mailboxes either end deleted is settled already.
        let own = self.storage.tree_log();
        let mut own =
            TreeLog { separator: own.separator, directories: own.directories, ..TreeLog::default() };
        let known = self
            .peer_tree
            .keys()
            .filter_map(|name| Some((NameHash::of(name, own.separator), removed(&own, name)?)));
        let known: Vec<_> = known.collect();
        own.directories.extend(known);
        let theirs =
            TreeLog { separator: log.separator, directories: log.directories.clone(), ..TreeLog::default() };
        let mut logs = [&own, &theirs];
        if me == End::Responder {
            logs.swap(0, 1);
        }
        self.plan = dsync_merge::tree(Both(trees), Both(logs), Both(names), None, rules, &|_| true, me);
        for (now, wanted) in std::mem::take(&mut self.plan.refused) {
            self.problem(format!("{now}: cannot be renamed to {wanted}: into another namespace"), 65);
        }
        let changes = std::mem::take(&mut self.plan.changes);
        if direction.source() == Some(me) {
            self.plan.deletes.clear();
            // The receiver keeps its own changes: what it deleted stays deleted.
            let deleted = |guid: &MailboxGuid| rules == Direction::TwoWay && log.deleted.contains_key(guid);
            self.plan.pairs.retain(|pair| {
                pair.statuses[me].is_some() && (pair.statuses[me.other()].is_some() || !deleted(&pair.guid))
            });
        } else {
            for change in changes {
                match change {
                    // Settled when it turns out which of the two GUIDs the other end takes.
                    TreeChange::Identify { .. } if rules == Direction::TwoWay => {}
                    change => {
                        if let (false, TreeChange::Create { guid, .. }) =
                            (self.change_tree(&change)?, &change)
                        {
                            self.plan.pairs.retain(|pair| pair.guid != *guid);
                        }
                    }
                }
            }
        }
        for pair in &mut self.plan.pairs {
            if let ([Some(_), Some(_)], Some(own)) = (&pair.statuses.0, &pair.statuses[me])
                && rules == Direction::TwoWay
            {
                pair.guid = own.guid;
            }
        }
        // As a Dovecot goes through them.
        self.plan.pairs.sort_by(|one, other| one.name.cmp(&other.name));
        self.counters.mailboxes = self.plan.pairs.len() as u64;
        self.progress.mailboxes = self.counters.mailboxes;
        if me == End::Initiator && !self.handshake.no_mail_sync {
            self.pairs = self.plan.pairs.iter().cloned().collect();
        }
        self.stage = Stage::Mailboxes;
        Ok(())
    }

    /// An INBOX of ours that never held a message is told after all if the peer has none: it makes one with the GUID of ours.
    fn show_inbox(&mut self) {
        let name = MailboxName::inbox();
        if self.peer_tree.get(&name).is_some_and(|node| node.mailbox.is_some()) {
            return;
        }
        if let (Some(status), Some(node)) = (self.pristine.take(), self.tree.get_mut(&name)) {
            node.mailbox = Some(status);
        }
    }

    /// Gives our INBOX, if it never held a message, the GUID of the peer's.
    fn adopt_inbox(&mut self) -> Result<(), SessionError> {
        let name = MailboxName::inbox();
        let theirs = self.peer_tree.get(&name).and_then(|node| node.mailbox.clone());
        let (Some(ours), Some(theirs)) = (self.pristine.take(), theirs) else { return Ok(()) };
        let Some(node) = self.tree.get_mut(&name).filter(|node| node.mailbox.is_none()) else {
            return Ok(());
        };
        let (guid, uid_validity) = (theirs.guid, theirs.uid_validity);
        node.mailbox = Some(MailboxStatus { guid, uid_validity, ..ours.clone() });
        if ours.guid != guid || ours.uid_validity != uid_validity {
            self.storage
                .change_tree(&TreeChange::Identify { name, guid, uid_validity })
                .map_err(at("INBOX"))?;
            self.move_attributes(ours.guid, guid);
        }
        Ok(())
    }

    pub(super) fn change_tree(&mut self, change: &TreeChange) -> Result<bool, SessionError> {
        let (name, what) = match change {
            TreeChange::Create { name, .. } => (Some(name), "created".to_owned()),
            TreeChange::Rename { from, to, .. } => (Some(to), format!("renamed from {from}")),
            TreeChange::Delete { name, .. } => (Some(name), "deleted".to_owned()),
            TreeChange::Identify { name, .. } => (Some(name), "got the other end's GUID".to_owned()),
            _ => (None, String::new()),
        };
        let place = name.map_or_else(|| "the list of mailboxes".to_owned(), ToString::to_string);
        match self.storage.change_tree(change) {
            Ok(done) => {
                if let (true, TreeChange::Identify { name, guid, .. }) = (done, change) {
                    self.identified(name, *guid);
                }
                if let (true, Some(name)) = (done, name) {
                    self.report.notes.push(format!("{name}: {what}"));
                }
                Ok(done)
            }
            Err(error) => {
                if !listing::is_overtaken(change, &error) {
                    self.fail(&place, error)?;
                }
                self.counters.disturbed += 1;
                Ok(false)
            }
        }
    }

    fn identified(&mut self, name: &MailboxName, guid: MailboxGuid) {
        let Some(status) = self.tree.get_mut(name).and_then(|node| node.mailbox.as_mut()) else { return };
        let before = std::mem::replace(&mut status.guid, guid);
        self.move_attributes(before, guid);
    }

    /// A mirror of nothing would remove everything: never without being told so. A Dovecot that calls knows what it does.
    fn guard(&self) -> Result<(), SessionError> {
        let (Direction::Mirror { into }, Some(job)) = (self.direction, &self.job) else { return Ok(()) };
        // How many messages it has a Dovecot does not say here; but whether it ever had one.
        let used = |tree: &MailboxTree| {
            tree.values().filter_map(|node| node.mailbox.as_ref()).any(|status| status.uid_next.get() > 1)
        };
        let (source, destination) = if into == End::Initiator {
            (&self.peer_tree, &self.tree)
        } else {
            (&self.tree, &self.peer_tree)
        };
        if !used(source) && used(destination) && !job.options.allow_mass_delete {
            let text = "the source never held a message, and the destination did: refusing to remove all (--allow-mass-delete does it)";
            return Err(SessionError::Refused { status: 77, text: text.into() });
        }
        Ok(())
    }
}

/// Whether a tree says itself how a name is subscribed: a log tells only of names that are not there.
pub(super) fn is_told(node: &MailboxNode) -> bool {
    node.mailbox.is_some() || node.directory || node.subscribed
}

/// When our log says that a directory was removed; the last time. Dovecot logs it as it is called on the disk (`/`, in Maildir++ `.`), and whoever
/// looks for it with the separator of the namespace, as Dovecot does, does not find it. What a peer logged so is left alone: it would make it again.
pub(super) fn removed(log: &TreeLog, name: &MailboxName) -> Option<Timestamp> {
    let spelled = [log.separator, '/', '.'].map(|separator| NameHash::of(name, separator));
    spelled.iter().filter_map(|hash| log.directories.get(hash)).max().copied()
}

pub(super) fn exists(node: &MailboxNode) -> bool {
    node.mailbox.is_some() || node.directory
}

/// What is below a renamed mailbox was renamed with it, though a log names only the one: a time is at least that of the names above.
fn inherit_times(tree: &mut MailboxTree) {
    let mut renamed: BTreeMap<MailboxName, Option<Timestamp>> = BTreeMap::new();
    // In the order of a tree, what is above comes first.
    for (name, node) in tree {
        let mut above = name.parent();
        while let Some(unknown) = above.take_if(|above| !renamed.contains_key(above)) {
            above = unknown.parent();
        }
        node.renamed = node.renamed.max(above.and_then(|above| renamed.get(&above).copied().flatten()));
        renamed.insert(name.clone(), node.renamed);
    }
}

fn check_unique(tree: &MailboxTree) -> Result<(), SessionError> {
    let mut seen = BTreeSet::new();
    let statuses = tree.values().filter_map(|node| node.mailbox.as_ref());
    match statuses.map(|status| status.guid).find(|guid| !seen.insert(*guid)) {
        Some(guid) => Err(SessionError::Peer(format!("lists two mailboxes with the GUID {guid}"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_below_a_renamed_mailbox_was_renamed_with_it() {
        let name = |text: &str| MailboxName::parse(text, '/').unwrap();
        let node =
            |renamed: Option<i64>| MailboxNode { renamed: renamed.map(Timestamp), ..MailboxNode::default() };
        let times = [("A", None), ("A/B", Some(7)), ("A/B/C/D", None), ("A/B/E", Some(9)), ("Q", None)];
        let mut tree: MailboxTree = times.map(|(text, time)| (name(text), node(time))).into();
        inherit_times(&mut tree);
        let found: Vec<_> = tree.values().map(|node| node.renamed.map(|time| time.0)).collect();
        assert_eq!(found, [None, Some(7), Some(7), Some(9), None]);
    }
}
