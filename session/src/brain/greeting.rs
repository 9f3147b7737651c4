//! The first stages: who is there, locks, bases, and the trees.

use std::collections::BTreeSet;

use dsync_merge::{Both, Direction, End, Pair};
use dsync_model::{
    BASE_BYTES_MAX, Base, MailboxBase, MailboxGuid, MailboxName, MailboxNode, MailboxTree, TreeChange,
    TreeLog, UidSet,
};
use dsync_proto::{BATCH_MAX, BaseRef, Handshake, List, Message, Purpose, Undone, batches};
use dsync_storage::dry_run::DryRun;
use dsync_storage::{Storage as _, StorageError, Support};

use super::leaving::MOVED;
use super::mailbox::Open;
use super::scope::Scope;
use super::{Brain, Job, Stage, at, clipped};
use crate::{SessionError, listing};

/// Most names that a peer may list.
pub(super) const NODES_MAX: usize = 1_000_000;

impl Brain {
    /// Says who we are; the responder waits until it knows what for.
    pub(super) fn greet(&mut self) -> Result<bool, SessionError> {
        let Some(job) = self.job.clone() else { return Ok(false) };
        self.storage.choose(&job.options.namespaces).map_err(at("cannot choose namespaces"))?;
        let store = self.storage.store_id().map_err(at("cannot name the store"))?;
        self.me = Some(store);
        let (role, location) = (self.role(), self.storage.location());
        let Job { direction, options } = job;
        let keeps_guids = self.keeps_guids();
        self.say(Message::Handshake(Handshake { role, store, direction, options, location, keeps_guids }));
        if self.end == End::Initiator {
            self.say_state();
        }
        self.stage = Stage::Greeted;
        Ok(true)
    }

    pub(super) fn meet(&mut self, handshake: Handshake) -> Result<(), SessionError> {
        if handshake.role == self.role() {
            return Err(SessionError::Peer("takes our part in the session".into()));
        }
        match &self.job {
            None => {
                let Handshake { direction, options, .. } = handshake.clone();
                self.lock_wait = super::lock_wait(&options, self.lock_wait);
                let job = self.job.insert(Job { direction, options }).clone();
                let is_source = self.direction().source() == Some(self.end);
                self.storage.wrap(|storage| match job.options.purpose {
                    Purpose::Sync if job.options.read_only_source && is_source => {
                        Box::new(DryRun::reading(storage))
                    }
                    purpose => super::for_purpose(storage, purpose),
                });
                let chosen = self.storage.choose(&job.options.namespaces);
                chosen.map_err(at("cannot choose namespaces"))?;
            }
            Some(job) if job.direction != handshake.direction || job.options != handshake.options => {
                return Err(SessionError::Peer("answers to another job than ours".into()));
            }
            Some(_) => {}
        }
        if !handshake.keeps_guids || !self.keeps_guids() {
            self.storage.switch_on();
        }
        self.peer = Some(handshake);
        Ok(())
    }

    fn keeps_guids(&self) -> bool {
        self.storage.capabilities().message_guid == Support::Kept
    }

    /// Locks the store, the end with the lower id first, and lists what it holds.
    pub(super) fn list_trees(&mut self) -> Result<bool, SessionError> {
        let (Some(me), Some(peer)) = (self.me, self.peer.as_ref().map(|peer| peer.store)) else {
            return Ok(false);
        };
        if me == peer {
            let text = format!("both ends are the same store ({})", self.storage.location());
            return Err(SessionError::Refused { status: 75, text });
        }
        if me > peer && self.bases[self.end.other() as usize].is_none() {
            return Ok(false);
        }
        let store = self.storage.lock(self.lock_wait).map_err(at("cannot lock the store"))?;
        let user = match self.job.as_ref().is_some_and(|job| job.options.lock_wait_secs > 0) {
            true => self.storage.lock_user(me, peer, self.lock_wait).map_err(at("cannot lock the user"))?,
            false => None,
        };
        self.lock = Some((store, user));
        let refs = self.read_bases(&me.pair(peer))?;
        self.bases[self.end as usize] = Some(refs.clone());
        self.say(Message::Bases(refs));
        let bases = &self.bases_here;
        let (tree, problems) = listing::list(&mut self.storage, |tree| {
            let here: BTreeSet<MailboxGuid> =
                tree.values().filter_map(|node| Some(node.mailbox.as_ref()?.guid)).collect();
            bases.is_empty()
                || bases.iter().any(|(_, base)| base.mailboxes.keys().any(|guid| !here.contains(guid)))
        })?;
        let mut unlisted = Vec::new();
        for problem in problems {
            let (text, status) = (describe(&problem.mailbox, &problem.error), problem.error.status());
            match MailboxName::parse(&problem.mailbox, '/') {
                Ok(name) => {
                    self.problem(text.clone(), status);
                    unlisted.push((name, clipped(text), status));
                }
                // A name that none can be is neither in a base nor at the other end.
                Err(_) => self.problem_of_both(text, status),
            }
        }
        self.check_messages(&tree)?;
        self.unlisted.extend(unlisted.iter().map(|(name, ..)| name.clone()));
        batches(&unlisted).for_each(|batch| self.say(Message::Unlisted(batch.to_vec())));
        let nodes: Vec<_> = tree.iter().map(|(name, node)| (name.clone(), node.clone())).collect();
        batches(&nodes).for_each(|batch| self.say(Message::Nodes(batch.to_vec())));
        let log = self.storage.tree_log();
        log.pieces(BATCH_MAX).into_iter().for_each(|piece| self.say(Message::Log(piece)));
        let rules = self.storage.rules();
        self.say(Message::Names(rules.clone()));
        self.rules[self.end as usize] = rules;
        self.logs[self.end as usize] = log;
        self.list_attributes();
        self.say(Message::End(List::Nodes));
        self.trees[self.end as usize] = tree;
        self.stage = Stage::Trees;
        Ok(true)
    }

    fn read_bases(&mut self, pair: &str) -> Result<Vec<BaseRef>, SessionError> {
        let prefix = format!("base-{pair}-");
        let mut refs = Vec::new();
        for name in self.storage.notes().map_err(at("cannot list the notes"))? {
            if !name.starts_with(&prefix) {
                continue;
            }
            self.old_notes.insert(name.clone());
            // A damaged base is as good as none: the merge then works from the lists alone.
            let bytes = self.storage.read_note(&name, BASE_BYTES_MAX).map_err(at(name.clone()))?;
            let Some(bytes) = bytes else { continue };
            if let Ok(base) = Base::from_bytes(&bytes) {
                let found = BaseRef { generation: base.generation, digest: Base::digest_of(&bytes) };
                refs.push(found);
                self.bases_here.push((found, base));
            }
        }
        Ok(refs)
    }

    /// Mailboxes that the other end has and cannot read.
    pub(super) fn take_unlisted(&mut self, list: Vec<(MailboxName, String, u8)>) -> Result<(), SessionError> {
        if self.unlisted.len() + list.len() > NODES_MAX {
            return Err(SessionError::Peer(format!("lists more than {NODES_MAX} names")));
        }
        for (name, why, status) in list {
            self.problem_there(&why, status);
            self.unlisted.insert(name);
        }
        Ok(())
    }

    /// What the other end's log tells, a piece of it.
    pub(super) fn take_log(&mut self, piece: TreeLog) -> Result<(), SessionError> {
        let log = &mut self.logs[self.end.other() as usize];
        if log.len() + piece.len() > NODES_MAX {
            return Err(SessionError::Peer(format!("tells of more than {NODES_MAX} names that are gone")));
        }
        log.extend(piece);
        Ok(())
    }

    pub(super) fn take_nodes(&mut self, nodes: Vec<(MailboxName, MailboxNode)>) -> Result<(), SessionError> {
        let tree = &mut self.trees[self.end.other() as usize];
        if tree.len() + nodes.len() > NODES_MAX {
            return Err(SessionError::Peer(format!("lists more than {NODES_MAX} names")));
        }
        tree.extend(nodes);
        Ok(())
    }

    /// Merges the trees.
    pub(super) fn merge_trees(&mut self) -> Result<bool, SessionError> {
        let [Some(a), Some(b)] = &self.bases else { return Ok(false) };
        if !self.peer_nodes_done {
            return Ok(false);
        }
        if let Some(Purpose::Verify { .. }) = self.job.as_ref().map(|job| job.options.purpose) {
            return self.begin_verifying();
        }
        let common = a.iter().filter(|base| b.contains(base)).max().copied();
        let here = std::mem::take(&mut self.bases_here);
        (self.base_ref, self.base) = here.into_iter().find(|(found, _)| Some(*found) == common).unzip();
        if self.begins_with_the_higher() {
            self.base.iter_mut().for_each(Base::swap_ends);
        }
        let options = self.job.as_ref().map(|job| job.options.clone()).unwrap_or_default();
        let direction = self.direction();
        self.guard_source(direction, &options)?;
        let trees = Both([&self.trees[0], &self.trees[1]]);
        check_unique(trees[self.end.other()])?;
        let scope = Scope::new(trees, self.base.as_ref(), &options, &self.unlisted, self.rules());
        if let Some(missing) = scope.missing() {
            return Err(SessionError::Refused {
                status: 68,
                text: format!("no mailbox of either end is {missing}"),
            });
        }
        let in_scope = |name: &MailboxName| scope.has(name);
        let logs = Both([&self.logs[0], &self.logs[1]]);
        self.plan =
            dsync_merge::tree(trees, logs, self.rules(), self.base.as_ref(), direction, &in_scope, self.end);
        for (now, wanted) in std::mem::take(&mut self.plan.refused) {
            self.problem(format!("{now}: cannot be renamed to {wanted}: into another namespace"), 65);
        }
        self.tell_attribute_times();
        self.stage = Stage::Planned;
        Ok(true)
    }

    /// Makes the mailboxes as they are to be.
    pub(super) fn change_trees(&mut self) -> Result<bool, SessionError> {
        if !self.attribute_times_known() {
            return Ok(false);
        }
        let options = self.job.as_ref().map(|job| job.options.clone()).unwrap_or_default();
        let direction = self.direction();
        self.merge_attributes(direction)?;
        for change in std::mem::take(&mut self.plan.changes) {
            self.change_tree(&change)?;
        }
        for name in std::mem::take(&mut self.plan.revived) {
            self.report
                .notes
                .push(format!("{name}: was deleted here, and comes back: the other end changed it since"));
        }
        let pairs = std::mem::take(&mut self.plan.pairs);
        self.counters.mailboxes = pairs.len() as u64;
        self.check_state(&pairs);
        for pair in pairs.iter().filter(|_| !options.tree_only) {
            if !self.is_settled(pair, direction, options.full) {
                let base = self.base.as_ref().and_then(|base| base.mailboxes.get(&pair.guid));
                // What a filter kept back then is looked at anew.
                let base = base.map(|base| MailboxBase { out_of_scope: UidSet::new(), ..base.clone() });
                let channel = self.open.len() as u32 + 1;
                self.open.push(Open::new(channel, pair.clone(), base));
            } else {
                self.report.shown_equal += 1;
            }
        }
        self.progress.mailboxes = self.open.len() as u64;
        self.plan.pairs = pairs;
        self.stage = Stage::Mailboxes;
        self.catch_up()?;
        Ok(true)
    }

    pub(super) fn change_tree(&mut self, change: &TreeChange) -> Result<bool, SessionError> {
        let (name, what) = match change {
            TreeChange::Create { name, .. } => (Some(name), "created".to_owned()),
            TreeChange::Rename { from, to, .. } => (Some(to), format!("renamed from {from}")),
            TreeChange::Delete { name, .. } => (Some(name), "deleted".to_owned()),
            TreeChange::Identify { name, .. } => (Some(name), "got the other end's GUID".to_owned()),
            _ => (None, String::new()),
        };
        if self.dry_run()
            && let TreeChange::Subscribe { names } | TreeChange::Unsubscribe { names } = change
        {
            let what =
                if matches!(change, TreeChange::Subscribe { .. }) { "subscribed" } else { "unsubscribed" };
            for name in names {
                self.renamed.entry(name.clone()).or_insert_with(|| what.to_owned());
            }
        }
        match self.storage.change_tree(change) {
            Ok(done) => {
                if !done {
                    self.undone(change);
                }
                if let (true, Some(name)) = (done, name) {
                    self.renamed.insert(name.clone(), what);
                }
                Ok(done)
            }
            // A user was faster; the next run sees what he did.
            Err(error) if listing::is_overtaken(change, &error) => {
                self.undone(change);
                self.counters.disturbed += 1;
                if let TreeChange::Create { guid, .. } | TreeChange::Identify { guid, .. } = change {
                    self.unmade.insert(*guid, (MOVED.into(), listing::DISTURBED));
                }
                Ok(false)
            }
            Err(error) if self.concerns_one(change, &error) => {
                let place = name.map(ToString::to_string).unwrap_or_default();
                let (text, status) = (describe(&place, &error), error.status());
                let tree_only = self.job.as_ref().is_some_and(|job| job.options.tree_only);
                match change {
                    // Said when its turn comes.
                    TreeChange::Create { guid, .. } | TreeChange::Identify { guid, .. } if !tree_only => {
                        _ = self.unmade.insert(*guid, (text, status));
                    }
                    _ => self.problem_of_both(text, status),
                }
                self.undone(change);
                self.counters.disturbed += 1;
                Ok(false)
            }
            Err(error) => Err(at(
                name.map_or_else(|| "subscriptions".into(), |name| format!("{name}: cannot be {what}"))
            )(error)),
        }
    }

    /// Says whether an error leaves nothing undone but this change.
    fn concerns_one(&self, change: &TreeChange, error: &StorageError) -> bool {
        let of_names = matches!(change, TreeChange::Subscribe { .. } | TreeChange::Unsubscribe { .. });
        match error {
            StorageError::Impossible(_) | StorageError::MailboxExists(_) | StorageError::NoMailbox(_) => true,
            error => !of_names && !self.concerns_all(error),
        }
    }

    /// Notes at both ends that a change was not made. A base that said it was would have the next run take what is there for a change back.
    pub(super) fn undone(&mut self, change: &TreeChange) {
        let undone = match change {
            TreeChange::Delete { name, guid, .. } => return self.not_deleted(*guid, name),
            TreeChange::Subscribe { names } | TreeChange::Unsubscribe { names } => {
                let subscribed = matches!(change, TreeChange::Unsubscribe { .. });
                let names: Vec<_> = names.iter().map(|name| self.common_name(name)).collect();
                let batches = batches(&names);
                batches.map(|names| Undone::Subscriptions { names: names.to_vec(), subscribed }).collect()
            }
            TreeChange::DeleteDirectory { name } => vec![Undone::Directory(self.common_name(name))],
            TreeChange::Create { name, .. }
            | TreeChange::CreateDirectory { name }
            | TreeChange::Rename { to: name, .. }
            | TreeChange::Identify { name, .. } => vec![Undone::Mailbox(self.common_name(name))],
        };
        undone.iter().for_each(|undone| self.say(Message::Undone(undone.clone())));
        self.undone.extend(undone);
    }

    /// The name by which the base is to have what this end calls `name`.
    pub(super) fn common_name(&self, name: &MailboxName) -> MailboxName {
        let agreed = &self.plan.agreed;
        let rules = &self.rules[self.end as usize];
        let known = || agreed.keys().find(|common| rules.is_instead(name, common));
        if agreed.contains_key(name) { name.clone() } else { known().unwrap_or(name).clone() }
    }

    /// Equal status, and equal to what both ends remember: nothing to do.
    fn is_settled(&self, pair: &Pair, direction: Direction, full: bool) -> bool {
        let [Some(a), Some(b)] = &pair.statuses.0 else { return false };
        let base = self.base.as_ref().and_then(|base| base.mailboxes.get(&pair.guid));
        let known =
            base.is_some_and(|base| base.digest == Some(a.digest) && base.uid_validity == a.uid_validity);
        let next_agrees = match direction.source() {
            None => a.uid_next == b.uid_next,
            Some(End::Initiator) => a.uid_next <= b.uid_next,
            Some(End::Responder) => a.uid_next >= b.uid_next,
        };
        let same = a.guid == b.guid && a.uid_validity == b.uid_validity && a.messages == b.messages;
        !full
            && same
            && next_agrees
            && a.digest == b.digest
            && (known || self.state_says_settled(pair.guid, a))
    }
}

/// The name of the note that holds a base.
pub(super) fn note_name(pair: &str, base: BaseRef) -> String {
    format!("base-{pair}-{:016x}", base.generation.0)
}

fn check_unique(tree: &MailboxTree) -> Result<(), SessionError> {
    let mut seen = BTreeSet::new();
    let statuses = tree.values().filter_map(|node| node.mailbox.as_ref());
    match statuses.map(|status| status.guid).find(|guid| !seen.insert(*guid)) {
        Some(guid) => Err(SessionError::Peer(format!("lists two mailboxes with the GUID {guid}"))),
        None => Ok(()),
    }
}

/// One line for people.
pub(super) fn describe(place: &str, error: &StorageError) -> String {
    // A change of directories or subscriptions has none: the error says where.
    let mut text = if place.is_empty() { error.to_string() } else { format!("{place}: {error}") };
    if let Some(cause) = std::error::Error::source(error) {
        text.push_str(&format!(": {cause}"));
    }
    text
}
