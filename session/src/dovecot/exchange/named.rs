//! An mbox as a mailbox that keeps GUIDs: those of the peer, as far as they are known.

use std::collections::{BTreeMap, BTreeSet};

use dsync_merge::dovecot::From;
use dsync_model::{
    AttributeLog, AttributeRecords, Changes, Digest, MailboxGuid, MailboxStatus, MessageAction,
    MessageChange, MessageGuid, NewMessage, Since, Uid, UidSet,
};
use dsync_storage::{Body, Committed, Goal, Mailbox, Result, own_guid};

use super::super::guids::Known;
use super::Exchange;
use super::hashing::NOTHING;

/// Tells the peer's GUID of what is known, of the rest its own, each once. The storage below hears its own.
pub struct Named {
    inner: Box<dyn Mailbox>,
    guid: MailboxGuid,
    known: Known,
    /// What the last list named: the GUID that was told, and the one below.
    listed: BTreeMap<Uid, (MessageGuid, MessageGuid)>,
    /// What came since, by the GUIDs that it came with.
    saved: BTreeMap<Uid, MessageGuid>,
}

impl Named {
    pub fn new(inner: Box<dyn Mailbox>, guid: MailboxGuid, known: Known) -> Named {
        Named { inner, guid, known, listed: BTreeMap::new(), saved: BTreeMap::new() }
    }

    /// The peer's GUID of a message whose own this is.
    fn name(&self, uid: Uid, own: &MessageGuid) -> Option<MessageGuid> {
        let (bits, name) = self.known.get(&uid)?;
        (*bits == own.bits()).then(|| name.clone())
    }
}

impl Mailbox for Named {
    fn status(&mut self) -> Result<MailboxStatus> {
        self.inner.status()
    }

    fn changes(&mut self, since: Since<'_>) -> Result<Changes> {
        let mut changes = self.inner.changes(since)?;
        self.listed.clear();
        self.saved.clear();
        let mut told = BTreeSet::new();
        for change in &mut changes.list {
            let uid = change.uid();
            match change {
                MessageChange::Save { guid, .. } | MessageChange::Flags { guid, .. } => {
                    let below = guid.clone();
                    *guid = self.name(uid, &below).unwrap_or_else(|| {
                        let own = own_guid(self.guid, uid, Some(below.clone()));
                        if told.contains(&own) { own_guid(self.guid, uid, None) } else { own }
                    });
                    told.insert(guid.clone());
                    self.listed.insert(uid, (guid.clone(), below));
                }
                // A log that does not say whose UID it was proves nothing.
                MessageChange::Expunge { guid, .. } => {
                    *guid = guid.take().and_then(|below| self.name(uid, &below));
                }
            }
        }
        Ok(changes)
    }

    fn digest_of(&mut self, uids: &UidSet) -> Result<Digest> {
        self.inner.digest_of(uids)
    }

    fn body(&mut self, uid: Uid, guid: Option<&MessageGuid>) -> Result<Option<Body>> {
        let Some(guid) = guid else { return self.inner.body(uid, None) };
        if self.saved.get(&uid) == Some(guid) {
            return self.inner.body(uid, None);
        }
        match self.listed.get(&uid).filter(|(told, _)| told == guid) {
            Some((_, below)) => self.inner.body(uid, Some(below)),
            None => Ok(None),
        }
    }

    fn save(&mut self, message: NewMessage, body: Body) -> Result<()> {
        self.saved.insert(message.uid, message.guid.clone());
        self.inner.save(message, body)
    }

    fn begin_save(&mut self, message: NewMessage) -> Result<()> {
        self.saved.insert(message.uid, message.guid.clone());
        self.inner.begin_save(message)
    }

    fn write(&mut self, piece: &[u8]) -> Result<()> {
        self.inner.write(piece)
    }

    fn end_save(&mut self) -> Result<()> {
        self.inner.end_save()
    }

    fn abandon_save(&mut self) {
        self.inner.abandon_save();
    }

    fn apply(&mut self, actions: &[MessageAction]) -> Result<()> {
        let mut below = Vec::with_capacity(actions.len());
        for action in actions {
            match action {
                MessageAction::Expunge { uid, guid: Some(guid) } => {
                    let listed = self.listed.get(uid).filter(|(told, _)| told == guid);
                    below.extend(
                        listed
                            .map(|(_, guid)| MessageAction::Expunge { uid: *uid, guid: Some(guid.clone()) }),
                    );
                }
                MessageAction::Renumber { from, to } => {
                    if let Some(listed) = self.listed.get(from).cloned() {
                        self.listed.insert(*to, listed);
                    }
                    below.push(action.clone());
                }
                MessageAction::Flags { .. } | MessageAction::Expunge { guid: None, .. } => {
                    below.push(action.clone());
                }
            }
        }
        self.inner.apply(&below)
    }

    fn commit(&mut self, goal: Goal) -> Result<Committed> {
        let committed = self.inner.commit(goal)?;
        self.saved.retain(|uid, _| !committed.not_kept.contains_key(uid));
        Ok(committed)
    }

    fn attribute_log(&mut self) -> Result<AttributeLog> {
        self.inner.attribute_log()
    }

    fn log_attributes(&mut self, records: &AttributeRecords) -> Result<()> {
        self.inner.log_attributes(records)
    }
}

impl Exchange {
    /// What the peer calls the messages that are here in the end.
    ///
    /// Two without any of the headers that are compared may be different ones, so they must be known by more.
    pub(super) fn named_by_peer(&self) -> BTreeMap<Uid, MessageGuid> {
        let listed = self.peer.iter().filter_map(|change| match change {
            MessageChange::Save { uid, guid, .. } => Some((*uid, guid)),
            MessageChange::Expunge { .. } | MessageChange::Flags { .. } => None,
        });
        let listed: BTreeMap<Uid, &MessageGuid> = listed.collect();
        let hashing = self.hashing.as_ref();
        let told: BTreeMap<Uid, MessageGuid> = hashing
            .map(|hashing| hashing.told().map(|(guid, uid)| (uid, MessageGuid::of_bytes(guid))).collect())
            .unwrap_or_default();
        let mut names = BTreeMap::new();
        for change in &self.own {
            let MessageChange::Save { uid, guid, .. } = change else { continue };
            let now = self.moved.get(uid).copied().unwrap_or(*uid);
            let told = if hashing.is_some() { told.get(uid) } else { Some(guid) };
            let theirs = listed.get(&now).copied();
            let noted = self.terms.guids.as_ref().and_then(|known| known.get(uid));
            let noted = noted.filter(|(own, _)| hashing.is_some() && *own == guid.bits());
            let is_same = theirs.is_some_and(|theirs| {
                let alike = hashing.is_some_and(|hashing| {
                    let hashes = &hashing.hashes;
                    let hash = hashes.ours.get(uid).filter(|hash| hash.as_str() != NOTHING);
                    hash.is_some() && hash == hashes.theirs.get(&now)
                });
                alike || told == Some(theirs) || noted.is_some_and(|(_, name)| name == theirs)
            });
            // What it has not got it was told, and asked for.
            let name = if is_same { theirs } else { told.filter(|_| theirs.is_none()) };
            names.extend(name.map(|name| (now, name.clone())));
        }
        let saves = self.plan.iter().flat_map(|plan| &plan.saves);
        for save in saves {
            names.insert(save.uid, save.guid.clone());
            // Where it comes from it may have a GUID that is no text.
            if let From::Peer(uid) = save.from
                && self.spelled.contains_key(&uid)
            {
                names.remove(&save.uid);
            }
        }
        names.retain(|uid, _| !self.spelled.contains_key(uid));
        names
    }
}

#[cfg(test)]
mod tests {
    use dsync_model::{StoreId, UidValidity};
    use dsync_storage::Storage;
    use dsync_storage::memory::{MemoryStorage, StoredMessage};

    use super::*;

    #[test]
    fn a_message_is_known_by_uid_and_header() {
        let inbox = MailboxGuid([1; 16]);
        let mut storage = MemoryStorage::new(StoreId([2; 16]), inbox, UidValidity::new(7).unwrap());
        let guid = |text: &str| MessageGuid::new(text).unwrap();
        for own in ["one", "another", "new", "new"] {
            let body = own.as_bytes().into();
            let message = StoredMessage { guid: guid(own), flags: Default::default(), received: None, body };
            storage.account().mailboxes.values_mut().for_each(|mailbox| {
                mailbox.deliver(message.clone());
            });
        }
        let uid = |number| Uid::new(number).unwrap();
        // Where the second was, another message is now.
        let known = [(1, "one", "peer-1"), (2, "two", "peer-2"), (9, "nine", "peer-9")]
            .map(|(number, own, name)| (uid(number), (guid(own).bits(), guid(name))));
        let mut named = Named::new(storage.open(inbox).unwrap(), inbox, known.into());
        let list = named.changes(Since::All).unwrap().list;
        let told: Vec<(u32, String)> = list
            .iter()
            .map(|change| match change {
                MessageChange::Save { uid, guid, .. } => (uid.get(), guid.to_string()),
                other => panic!("{other:?}"),
            })
            .collect();
        let second = own_guid(inbox, uid(4), None).to_string();
        let expected = [(1, "peer-1"), (2, "another"), (3, "new"), (4, &second)];
        assert_eq!(told, expected.map(|(uid, guid)| (uid, guid.to_owned())));
        let below = |uid, own: &str| named.name(uid, &guid(own));
        // What is gone, by a log.
        assert_eq!(below(uid(9), "nine"), Some(guid("peer-9")));
        assert_eq!(below(uid(9), "ten"), None);
        // Each is found by what was told of it, and by nothing else.
        assert!(named.body(uid(1), Some(&guid("peer-1"))).unwrap().is_some());
        assert!(named.body(uid(1), Some(&guid("one"))).unwrap().is_none());
        for (number, guid) in [(1, guid("one")), (2, guid("peer-2")), (4, own_guid(inbox, uid(4), None))] {
            named.apply(&[MessageAction::Expunge { uid: uid(number), guid: Some(guid) }]).unwrap();
        }
        let goal = Goal {
            uid_next_min: Uid::MIN,
            modseq_min: Default::default(),
            uid_validity: None,
            unfinished: false,
        };
        named.commit(goal).unwrap();
        let left: Vec<u32> = named.changes(Since::All).unwrap().list.iter().map(|c| c.uid().get()).collect();
        assert_eq!(left, [1, 2, 3]);
    }
}
