//! One open mailbox of sdbox or mdbox: lists, bodies, saves and commits.

mod committing;

use std::sync::Arc;

use dsync_model::{
    AttributeLog, AttributeRecords, Changes, Digest, MailboxStatus, Message, MessageAction, MessageGuid,
    ModSeq, NewMessage, Since, Uid, UidSet, UidValidity, changes_since,
};

use super::bodies::{Bodies, Mail, Pending};
use super::known_guids::Guids;
use super::map::Map;
use super::saving::Saving;
use super::shared::Shared;
use crate::compressed::Opened;
use crate::index::edit::{flag_set, keywords, uid_next};
use crate::index::{Import, Index, State};
use crate::lock::patience;
use crate::status_cache::Fingerprint;
use crate::{Body, Committed, Goal, Mailbox, Result, StorageError, disk};

/// Bytes read from a body at once.
const CHUNK_BYTES: usize = 256 << 10;

pub(super) struct DboxMailbox {
    shared: Arc<Shared>,
    bodies: Bodies,
    index: Index,
    /// GUIDs by UID: reading one costs opening a file.
    guids: Guids,
    /// Up to this UID they were read ahead.
    read_to: u32,
    /// UIDNEXT when we last looked: what lies between it and UIDNEXT as we find it was given away by others.
    expected_next: Option<Uid>,
    burned: UidSet,
    coming: Option<Saving>,
    pending: Vec<Pending>,
    actions: Vec<MessageAction>,
    import: Import,
    /// We wrote to it, and it is likely to be looked at again.
    changed: bool,
}

impl DboxMailbox {
    pub(super) fn new(shared: Arc<Shared>, bodies: Bodies, index: Index) -> DboxMailbox {
        let guids = shared.guids().take(bodies.mailbox(), index.state().header.uid_validity);
        DboxMailbox {
            shared,
            bodies,
            index,
            guids,
            read_to: 0,
            expected_next: None,
            burned: UidSet::new(),
            coming: None,
            pending: Vec::new(),
            actions: Vec::new(),
            import: Import::default(),
            changed: false,
        }
    }

    /// The map as this mailbox has it, for the next one of the account.
    pub(super) fn into_map(mut self) -> Result<Option<Map>> {
        self.bodies.take_map()
    }

    /// Every message as the index has it.
    fn list(&mut self) -> Result<Vec<Message>> {
        self.index.refresh()?;
        let (list, gone) = self.look()?;
        if gone.is_empty() {
            return Ok(list);
        }
        // Dovecot removes files first, and tells the index before it lets go of it.
        drop(self.index.lock(patience())?);
        let (list, gone) = self.look()?;
        let directory = self.bodies.places().mail.display();
        for uid in gone {
            tracing::warn!("{directory}: UID {uid} is in the index, and is gone; left out");
        }
        Ok(list)
    }

    /// The messages that are there, and the UIDs of those that are in the index alone.
    fn look(&mut self) -> Result<(Vec<Message>, Vec<u32>)> {
        let DboxMailbox { index, bodies, guids, .. } = self;
        let state = index.state();
        let names = keywords(state);
        let (mut list, mut gone) = (Vec::with_capacity(state.uids.len()), Vec::new());
        for (row, number) in state.uids.iter().enumerate() {
            let Some(uid) = Uid::new(*number) else { continue };
            let Some(guid) = guid(guids, bodies, state, *number)? else {
                gone.push(*number);
                continue;
            };
            list.push(Message {
                uid,
                guid,
                flags: flag_set(state, row, &names),
                modseq: ModSeq::new(state.modseq_of(row)).unwrap_or_default(),
                received: None,
                size: None,
            });
        }
        Ok((list, gone))
    }

    /// See [`Storage::check`](crate::Storage::check). Damage is another matter, and shows when a message is sent.
    pub(super) fn check(&mut self, from: Uid) -> Result<()> {
        let state = self.index.state();
        for uid in state.uids.iter().copied().filter(|uid| *uid >= from.get()) {
            match self.bodies.open(state, uid) {
                Ok(Some(mail)) => super::check_mail(&mail.file, &mail.stored, mail.attachments.as_ref())?,
                Ok(None) => {}
                Err(error) => tracing::debug!("{error}"),
            }
        }
        Ok(())
    }

    fn status_of(&self, list: &[Message]) -> Result<MailboxStatus> {
        let state = self.index.state();
        Ok(MailboxStatus {
            guid: self.bodies.mailbox(),
            uid_validity: UidValidity::new(state.header.uid_validity).ok_or_else(|| {
                StorageError::Corrupt {
                    path: self.index.paths().log(),
                    line: 0,
                    what: "mailbox has no UIDVALIDITY",
                }
            })?,
            uid_next: uid_next(state),
            messages: list.len() as u32,
            highest_modseq: ModSeq::new(state.highest_modseq()).unwrap_or_default(),
            digest: Digest::of(list),
        })
    }

    fn find(&mut self, uid: Uid, wanted: Option<&MessageGuid>) -> Result<Option<u32>> {
        let DboxMailbox { index, bodies, guids, .. } = self;
        let state = index.state();
        let Some(wanted) = wanted.map(MessageGuid::bits) else {
            return Ok(state.row(uid.get()).map(|_| uid.get()));
        };
        let first = state.row(uid.get()).map(|_| uid.get());
        for uid in first.into_iter().chain(state.uids.iter().copied()) {
            if bits(guids, bodies, state, uid)? == Some(wanted) {
                return Ok(Some(uid));
            }
        }
        Ok(None)
    }

    fn discard(&mut self) {
        self.bodies.discard(std::mem::take(&mut self.pending));
        self.actions.clear();
    }
}

/// The GUID of a message, from memory if it was read before.
fn guid(known: &mut Guids, bodies: &mut Bodies, state: &State, uid: u32) -> Result<Option<MessageGuid>> {
    if let Some(guid) = known.get(&uid) {
        return Ok(Some(guid.clone()));
    }
    let guid = bodies.guid(state, uid)?;
    if let Some(guid) = &guid {
        known.insert(uid, guid.clone());
    }
    Ok(guid)
}

/// Its 128 bits.
fn bits(known: &mut Guids, bodies: &mut Bodies, state: &State, uid: u32) -> Result<Option<[u8; 16]>> {
    match bodies.guid_bits(state, uid) {
        Some(bits) => Ok(Some(bits)),
        None => Ok(guid(known, bodies, state, uid)?.map(|guid| guid.bits())),
    }
}

impl Mailbox for DboxMailbox {
    fn status(&mut self) -> Result<MailboxStatus> {
        let log = self.index.paths().log();
        let before = Fingerprint::of_log(&log);
        let list = self.list()?;
        let status = self.status_of(&list)?;
        let after = Fingerprint::of_log(&log).filter(|after| Some(*after) == before && !disk::pretends());
        self.shared.statuses().put(&self.bodies.places().mail, after, &status);
        Ok(status)
    }

    fn read_ahead(&mut self, messages_max: usize) -> Result<bool> {
        let DboxMailbox { index, bodies, guids, read_to, .. } = self;
        let state = index.state();
        let begin = state.uids.partition_point(|uid| *uid <= *read_to);
        let end = state.uids.len().min(begin.saturating_add(messages_max));
        for uid in state.uids[begin..end].iter().copied() {
            guid(guids, bodies, state, uid)?;
            *read_to = uid;
        }
        Ok(end == state.uids.len())
    }

    fn changes(&mut self, since: Since<'_>) -> Result<Changes> {
        let list = self.list()?;
        let status = self.status_of(&list)?;
        self.expected_next.get_or_insert(status.uid_next);
        let mut changes = changes_since(&list, since);
        self.index.prove(&mut changes, since)?;
        Ok(Changes { list: changes, status })
    }

    fn digest_of(&mut self, uids: &UidSet) -> Result<Digest> {
        let list = self.list()?;
        Ok(Digest::of(list.iter().filter(|message| uids.contains(message.uid.get()))))
    }

    fn guids(&mut self, files_max: usize) -> Result<Vec<(Uid, [u8; 16])>> {
        self.index.refresh()?;
        let DboxMailbox { index, bodies, guids, .. } = self;
        let (state, mut opened) = (index.state(), 0);
        let mut found = Vec::new();
        for uid in state.uids.iter().rev().copied() {
            let mut bits = bodies.guid_bits(state, uid);
            if bits.is_none() && opened < files_max {
                opened += 1;
                bits = self::bits(guids, bodies, state, uid)?;
            }
            found.extend(Uid::new(uid).zip(bits));
        }
        Ok(found)
    }

    fn body(&mut self, uid: Uid, wanted: Option<&MessageGuid>) -> Result<Option<Body>> {
        self.index.refresh()?;
        let Some(uid) = self.find(uid, wanted)? else { return Ok(None) };
        let Some(mail) = self.bodies.open(self.index.state(), uid)? else { return Ok(None) };
        let Mail { file, stored, attachments, saved, map_uid } = mail;
        let Opened { reader, .. } = super::open_mail(&file, &stored, attachments.as_ref())?;
        let Some(guid) = stored.metadata.guid.clone() else { return Ok(None) };
        Ok(Some(Body {
            guid,
            received: stored.metadata.received,
            saved,
            pop3_uidl: stored.metadata.pop3_uidl.clone(),
            pop3_order: stored.metadata.pop3_order,
            size: Some(stored.physical_size()),
            path: None,
            map_uid,
            reader,
        }))
    }

    fn save(&mut self, message: NewMessage, mut body: Body) -> Result<()> {
        if let Some(pending) = self.bodies.share(&message, &body)? {
            self.pending.push(pending);
            return Ok(());
        }
        self.begin_save(message)?;
        let mut chunk = vec![0; CHUNK_BYTES.min(body.size.unwrap_or(u64::MAX).max(4096) as usize)];
        loop {
            match body.reader.read(&mut chunk) {
                Ok(0) => return self.end_save(),
                Ok(bytes) => self.write(&chunk[..bytes])?,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.abandon_save();
                    return Err(StorageError::Io { path: "the message's source".into(), source: error });
                }
            }
        }
    }

    fn begin_save(&mut self, message: NewMessage) -> Result<()> {
        self.abandon_save();
        self.coming = Some(self.bodies.begin(message)?);
        Ok(())
    }

    fn write(&mut self, piece: &[u8]) -> Result<()> {
        match &mut self.coming {
            Some(coming) => coming.write(piece),
            None => Ok(()),
        }
    }

    fn end_save(&mut self) -> Result<()> {
        if let Some(coming) = self.coming.take() {
            self.pending.push(self.bodies.end(coming)?);
        }
        Ok(())
    }

    fn abandon_save(&mut self) {
        if let Some(coming) = self.coming.take() {
            self.bodies.abandon(coming);
        }
    }

    fn apply(&mut self, actions: &[MessageAction]) -> Result<()> {
        self.actions.extend_from_slice(actions);
        Ok(())
    }

    fn commit(&mut self, goal: Goal) -> Result<Committed> {
        let state = self.index.state();
        let validity = goal.uid_validity.is_none_or(|validity| validity.get() == state.header.uid_validity);
        let counters =
            goal.uid_next_min <= uid_next(state) && goal.modseq_min.get() <= state.highest_modseq();
        if self.pending.is_empty() && self.actions.is_empty() && validity && counters {
            return Ok(Committed::default());
        }
        let outcome = self.carry_out(goal);
        self.discard();
        outcome
    }

    fn attribute_log(&mut self) -> Result<AttributeLog> {
        self.index.attribute_log()
    }

    fn log_attributes(&mut self, records: &AttributeRecords) -> Result<()> {
        self.index.log_attributes(records, self.shared.account.fsync)
    }
}

impl Drop for DboxMailbox {
    fn drop(&mut self) {
        self.abandon_save();
        self.discard();
        if self.changed {
            let (guids, validity) = (std::mem::take(&mut self.guids), self.index.state().header.uid_validity);
            self.shared.guids().keep(self.bodies.mailbox(), validity, guids);
        }
    }
}
