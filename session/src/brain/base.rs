//! The base: what both ends may remember of this session, so that the next one knows what changed.

use std::collections::BTreeMap;

use dsync_merge::End;
use dsync_model::{Base, BaseNode, Generation, MailboxBase, MailboxGuid, MailboxName};
use dsync_proto::{BaseRef, Message, Undone};
use dsync_storage::Storage as _;

use super::greeting::note_name;
use super::{Brain, Stage, at};
use crate::SessionError;

impl Brain {
    /// Tells the other end which base we would keep; writes it if that end would keep the same.
    pub(super) fn agree_on_base(&mut self) -> Result<bool, SessionError> {
        let mine = self.end as usize;
        if self.committed[mine].is_none() {
            let agreed = self.make_base();
            self.committed[mine] = Some(agreed);
            self.say(Message::Committed(agreed));
            return Ok(true);
        }
        let [Some(a), Some(b)] = self.committed else { return Ok(false) };
        let pair = self.pair_name();
        match self.next_base.take() {
            Some(bytes) if a == b => {
                self.storage.write_note(&note_name(&pair, a), &bytes).map_err(at("cannot write the base"))?;
                self.written[mine] = Some(a.generation);
                self.say(Message::BaseWritten(a.generation));
                self.stage = Stage::Writing;
            }
            None if a == b => self.stage = Stage::Finishing,
            _ => {
                // Somebody else's change came between: no base is better than one that the other end does not share.
                self.drop_bases(None)?;
                self.stage = Stage::Finishing;
            }
        }
        Ok(true)
    }

    /// Makes the base that we would keep: the old one, if nothing in it changed.
    fn make_base(&mut self) -> BaseRef {
        let known = self.bases.iter().flatten().flatten().map(|base| base.generation.0).max();
        let mut base = Base { generation: Generation(known.unwrap_or(0) + 1), ..Base::default() };
        base.tree = std::mem::take(&mut self.plan.agreed);
        base.attributes = std::mem::take(&mut self.attributes.agreed);
        let mut old = self.base.take();
        let stayed = self.take_back_undone(&mut base, old.as_ref());
        base.tree.retain(|_, node| *node != BaseNode::default());
        let mut same =
            old.as_ref().is_some_and(|old| old.tree == base.tree && old.attributes == base.attributes);
        let pairs = self.plan.pairs.iter().map(|pair| &pair.guid);
        for guid in pairs.chain(&self.plan.kept).chain(stayed.keys()) {
            let kept = old.as_mut().and_then(|old| old.mailboxes.remove(guid));
            let done = self.open.iter_mut().find(|open| open.pair.guid == *guid);
            let mailbox = match done {
                Some(open) if !open.skipped => {
                    let mailbox = open.base.take();
                    same &= mailbox == kept;
                    mailbox
                }
                // Not looked into: what was agreed still holds, but not that there is nothing else.
                Some(_) => {
                    same &= kept.as_ref().is_none_or(|kept| kept.digest.is_none());
                    kept.map(|mailbox| MailboxBase { digest: None, ..mailbox })
                }
                None => kept,
            };
            base.mailboxes.extend(mailbox.map(|mailbox| (*guid, mailbox)));
        }
        same &= old.is_some_and(|old| old.mailboxes.is_empty());
        if let Some(old) = self.base_ref.filter(|_| same) {
            return old;
        }
        if self.begins_with_the_higher() {
            base.swap_ends();
        }
        let bytes = base.to_bytes();
        let agreed = BaseRef { generation: base.generation, digest: Base::digest_of(&bytes) };
        self.next_base = Some(bytes);
        agreed
    }

    /// Takes out of the new base what an end could not do to the tree: the next run finds the same change again. Gives the mailboxes that
    /// were to be deleted and are still there, with their names.
    fn take_back_undone(
        &mut self,
        base: &mut Base,
        old: Option<&Base>,
    ) -> BTreeMap<MailboxGuid, MailboxName> {
        let mut stayed = BTreeMap::new();
        for undone in std::mem::take(&mut self.undone) {
            match undone {
                Undone::Mailbox(name) => {
                    // What is subscribed by that name still is.
                    let guid = base.tree.get_mut(&name).and_then(|node| {
                        node.directory = false;
                        node.mailbox.take()
                    });
                    // Where it was before it still is.
                    let before = guid.and_then(|guid| old?.name_of(guid));
                    if let Some(before) = before {
                        let node = base.tree.entry(before.clone()).or_default();
                        node.mailbox = node.mailbox.or(guid);
                    }
                }
                Undone::Deletion { mailbox, name } => _ = stayed.insert(mailbox, name),
                Undone::Directory(name) => {
                    let was = old.and_then(|old| old.tree.get(&name)).is_some_and(|node| node.directory);
                    base.tree.entry(name).or_default().directory |= was;
                }
                Undone::Subscriptions { names, subscribed } => {
                    for name in names {
                        base.tree.entry(name).or_default().subscribed = subscribed;
                    }
                }
            }
        }
        // Where they were before, or as they are called now, if another mailbox has that name.
        for (guid, now) in &stayed {
            let Some(before) = old.and_then(|old| old.name_of(*guid)) else { continue };
            let free = |name: &&MailboxName| base.tree.get(*name).is_none_or(|node| node.mailbox.is_none());
            if let Some(name) = [before, now].into_iter().find(free) {
                base.tree.entry(name.clone()).or_default().mailbox = Some(*guid);
            }
        }
        stayed
    }

    /// The new base is on both disks: older ones go.
    pub(super) fn base_written(&mut self) -> Result<bool, SessionError> {
        let [Some(a), Some(b)] = self.written else { return Ok(false) };
        if a != b {
            return Err(SessionError::Peer("wrote another base than ours".into()));
        }
        let keep = self.committed[0].map(|base| note_name(&self.pair_name(), base));
        self.drop_bases(keep.as_deref())?;
        self.stage = Stage::Finishing;
        Ok(true)
    }

    fn drop_bases(&mut self, keep: Option<&str>) -> Result<(), SessionError> {
        for name in std::mem::take(&mut self.old_notes) {
            if keep != Some(name.as_str()) {
                self.storage.remove_note(&name).map_err(at(name.clone()))?;
            }
        }
        Ok(())
    }

    /// Says whether the initiator is not the end that comes first in a base file.
    pub(super) fn begins_with_the_higher(&self) -> bool {
        let higher = matches!((self.me, &self.peer), (Some(me), Some(peer)) if me > peer.store);
        higher == (self.end == End::Initiator)
    }

    fn pair_name(&self) -> String {
        match (self.me, &self.peer) {
            (Some(me), Some(peer)) => me.pair(peer.store),
            _ => String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use dsync_storage::memory::MemoryStorage;

    use super::*;

    #[test]
    fn what_could_not_be_done_is_as_the_last_base_had_it() {
        let name = |text: &str| MailboxName::parse(text, '/').unwrap();
        let guid = |byte| Some(MailboxGuid([byte; 16]));
        let node = |mailbox, directory, subscribed| BaseNode { mailbox, directory, subscribed };
        let mut old = Base::default();
        old.tree.insert(name("Was"), node(guid(1), false, false));
        old.tree.insert(name("Left"), node(None, true, false));
        let mut base = Base::default();
        base.tree.insert(name("New"), node(guid(2), false, true));
        base.tree.insert(name("Is"), node(guid(1), false, true));
        let mut brain = Brain::responder(Box::new(MemoryStorage::default()), Duration::ZERO);
        brain.undone = vec![
            Undone::Mailbox(name("New")),
            Undone::Mailbox(name("Is")),
            Undone::Mailbox(name("Nothing")),
            Undone::Directory(name("Left")),
            Undone::Directory(name("Never")),
        ];
        assert!(brain.take_back_undone(&mut base, Some(&old)).is_empty());
        base.tree.retain(|_, node| *node != BaseNode::default());
        let expected = [
            (name("Is"), node(None, false, true)),
            (name("Left"), node(None, true, false)),
            (name("New"), node(None, false, true)),
            (name("Was"), node(guid(1), false, false)),
        ];
        assert_eq!(base.tree, expected.into());
    }
}
