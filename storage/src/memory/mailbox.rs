//! An open mailbox in memory.

use std::collections::btree_map::Entry;
use std::io;

use dsync_model::{
    AttributeChange, AttributeKey, AttributeLog, AttributeRecords, Changes, Digest, MailboxGuid,
    MailboxStatus, MessageAction, MessageGuid, ModSeq, NewMessage, Since, Uid, UidSet, changes_since,
};

use super::{MemoryStorage, StoredMailbox, StoredMessage, content_guid};
use crate::by_header::NO_GUID;
use crate::{Body, Committed, Goal, Mailbox, Result, StorageError};

pub(super) struct MemoryMailbox {
    storage: MemoryStorage,
    guid: MailboxGuid,
    /// UIDNEXT when we last looked: what lies between it and UIDNEXT as we find it was given away by others.
    expected_next: Option<Uid>,
    burned: UidSet,
    open: Option<(NewMessage, Vec<u8>)>,
    saves: Vec<(NewMessage, Vec<u8>)>,
    actions: Vec<MessageAction>,
}

impl MemoryMailbox {
    pub(super) fn new(storage: MemoryStorage, guid: MailboxGuid) -> MemoryMailbox {
        MemoryMailbox {
            storage,
            guid,
            expected_next: None,
            burned: UidSet::new(),
            open: None,
            saves: Vec::new(),
            actions: Vec::new(),
        }
    }

    fn with<T>(&self, read: impl FnOnce(&mut StoredMailbox) -> T) -> Result<T> {
        Ok(read(self.storage.call()?.by_guid(self.guid)?))
    }
}

impl Mailbox for MemoryMailbox {
    fn attribute_log(&mut self) -> Result<AttributeLog> {
        let account = self.storage.call()?;
        let here = account.attribute_log.range(AttributeKey::first_of(self.guid)..);
        let here = here.take_while(|(key, _)| key.mailbox == self.guid);
        let change = |(key, (removed, at)): (&AttributeKey, &(bool, u32))| AttributeChange {
            scope: key.scope,
            key: key.key.clone(),
            removed: *removed,
            at: *at,
            modseq: ModSeq::NONE,
        };
        let changes: Vec<AttributeChange> = here.map(change).collect();
        Ok(AttributeLog { since: Some(0), first: changes.clone(), changes })
    }

    fn log_attributes(&mut self, records: &AttributeRecords) -> Result<()> {
        let mut account = self.storage.call()?;
        let now = account.now;
        let told = records
            .iter()
            .map(|(key, record)| (key.clone(), (record.bytes.is_none(), record.at.unwrap_or(now))));
        account.attribute_log.extend(told);
        Ok(())
    }

    fn status(&mut self) -> Result<MailboxStatus> {
        self.with(|mailbox| mailbox.status())
    }

    fn changes(&mut self, since: Since<'_>) -> Result<Changes> {
        let changes = self.with(|mailbox| Changes {
            status: mailbox.status(),
            list: changes_since(&mailbox.list(), since),
        })?;
        self.expected_next = Some(changes.status.uid_next);
        Ok(changes)
    }

    fn digest_of(&mut self, uids: &UidSet) -> Result<Digest> {
        self.with(|mailbox| {
            Digest::of(mailbox.list().iter().filter(|message| uids.contains(message.uid.get())))
        })
    }

    fn body(&mut self, uid: Uid, guid: Option<&MessageGuid>) -> Result<Option<Body>> {
        self.with(|mailbox| {
            let right = |message: &&StoredMessage| guid.is_none_or(|guid| message.guid == *guid);
            let at_uid = mailbox.messages.get(&uid).filter(right);
            let named = guid.is_some_and(|guid| guid.as_str() != NO_GUID);
            let found = at_uid.or_else(|| mailbox.messages.values().find(|m| named && right(m)))?;
            Some(Body {
                guid: found.guid.clone(),
                received: found.received,
                saved: None,
                pop3_uidl: None,
                pop3_order: None,
                size: Some(found.body.len() as u64),
                path: None,
                map_uid: None,
                reader: Box::new(io::Cursor::new(found.body.to_vec())),
            })
        })
    }

    fn save(&mut self, message: NewMessage, mut body: Body) -> Result<()> {
        self.begin_save(message)?;
        let mut bytes = Vec::new();
        body.reader.read_to_end(&mut bytes).map_err(StorageError::io("memory:"))?;
        self.write(&bytes)?;
        self.end_save()
    }

    fn begin_save(&mut self, message: NewMessage) -> Result<()> {
        self.storage.call()?.write_to(self.guid)?;
        self.open = Some((message, Vec::new()));
        Ok(())
    }

    fn write(&mut self, piece: &[u8]) -> Result<()> {
        if let Some((_, bytes)) = &mut self.open {
            bytes.extend_from_slice(piece);
        }
        Ok(())
    }

    fn end_save(&mut self) -> Result<()> {
        self.saves.extend(self.open.take());
        Ok(())
    }

    fn abandon_save(&mut self) {
        self.open = None;
    }

    fn apply(&mut self, actions: &[MessageAction]) -> Result<()> {
        self.actions.extend_from_slice(actions);
        Ok(())
    }

    fn commit(&mut self, goal: Goal) -> Result<Committed> {
        let (saves, actions) = (std::mem::take(&mut self.saves), std::mem::take(&mut self.actions));
        let mut burned = std::mem::take(&mut self.burned);
        let expected_next = self.expected_next;
        let mut account = self.storage.account();
        let drops_guids = account.drops_guids;
        // What fails, fails in the middle: a prefix is done.
        let mut failed = None;
        let (mut new, mut asked) = (Vec::new(), Vec::new());
        for save in saves {
            failed = failed.or_else(|| account.write_to(self.guid).err());
            new.extend(failed.is_none().then_some(save));
        }
        for action in actions {
            failed = failed.or_else(|| account.write_to(self.guid).err());
            asked.extend(failed.is_none().then_some(action));
        }
        drop(account);
        let (committed, burned, uid_next) = self.with(|mailbox| {
            burned.insert_range(expected_next.unwrap_or(mailbox.uid_next).get()..mailbox.uid_next.get());
            let mut committed = Committed::default();
            for (new, body) in new {
                committed.saved += 1;
                committed.bytes += body.len() as u64;
                let stored = StoredMessage {
                    guid: if drops_guids { content_guid(&body) } else { new.guid },
                    flags: new.flags,
                    received: new.received,
                    body: body.into(),
                };
                let next = new.uid.next().unwrap_or(new.uid);
                match mailbox.messages.entry(new.uid) {
                    Entry::Vacant(entry) if !burned.contains(new.uid.get()) => {
                        entry.insert(stored);
                        mailbox.uid_next = mailbox.uid_next.max(next);
                    }
                    _ => {
                        let place = mailbox.deliver(stored);
                        committed.not_kept.insert(new.uid, place);
                    }
                }
            }
            for action in asked {
                let Some(action) = action.redirected(&committed.not_kept) else { continue };
                match action {
                    MessageAction::Renumber { from, to } => match mailbox.messages.remove(&from) {
                        Some(message)
                            if !mailbox.messages.contains_key(&to) && !burned.contains(to.get()) =>
                        {
                            mailbox.messages.insert(to, message);
                            mailbox.uid_next = mailbox.uid_next.max(to.next().unwrap_or(to));
                        }
                        Some(message) => {
                            mailbox.messages.insert(from, message);
                            committed.not_kept.insert(to, Some(from));
                        }
                        None => _ = committed.not_kept.insert(to, Some(from)),
                    },
                    MessageAction::Flags { uid, add, remove, .. } => {
                        if let Some(message) = mailbox.messages.get_mut(&uid) {
                            message.flags = message.flags.minus(&remove).union(&add);
                        }
                    }
                    MessageAction::Expunge { uid, guid } => {
                        let same = |m: &StoredMessage| guid.as_ref().is_none_or(|guid| m.guid == *guid);
                        if mailbox.messages.get(&uid).is_some_and(same) {
                            mailbox.messages.remove(&uid);
                        }
                    }
                }
            }
            if failed.is_some() {
                return (committed, burned, mailbox.uid_next);
            }
            mailbox.uid_next = mailbox.uid_next.max(goal.uid_next_min);
            if let Some(uid_validity) = goal.uid_validity {
                mailbox.uid_validity = uid_validity;
            }
            (committed, burned, mailbox.uid_next)
        })?;
        (self.burned, self.expected_next) = (burned, Some(uid_next));
        failed.map_or(Ok(committed), Err)
    }
}
