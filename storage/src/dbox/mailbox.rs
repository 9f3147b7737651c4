//! One open mailbox of sdbox or mdbox: lists, bodies, saves and commits.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dsync_model::{
    AttributeLog, AttributeRecords, Changes, Digest, MailboxStatus, Message, MessageAction, MessageGuid,
    ModSeq, NewMessage, Since, Uid, UidSet, UidValidity, changes_since,
};

use super::bodies::{Bodies, Mail, Moves, Pending};
use super::map::{Map, MapWriter};
use super::mdbox::MapUid;
use super::saving::Saving;
use super::shared::Shared;
use crate::compressed::Opened;
use crate::index::edit::{flag_set, keywords, uid_next};
use crate::index::{Appended, Edit, Flagged, Import, Index, State};
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
    guids: BTreeMap<u32, MessageGuid>,
    /// UIDNEXT when we last looked: what lies between it and UIDNEXT as we find it was given away by others.
    expected_next: Option<Uid>,
    burned: UidSet,
    coming: Option<Saving>,
    pending: Vec<Pending>,
    actions: Vec<MessageAction>,
    import: Import,
}

impl DboxMailbox {
    pub(super) fn new(shared: Arc<Shared>, bodies: Bodies, index: Index) -> DboxMailbox {
        DboxMailbox {
            shared,
            bodies,
            index,
            guids: BTreeMap::new(),
            expected_next: None,
            burned: UidSet::new(),
            coming: None,
            pending: Vec::new(),
            actions: Vec::new(),
            import: Import::default(),
        }
    }

    /// The map as this mailbox has it, for the next one of the account.
    pub(super) fn into_map(mut self) -> Result<Option<Map>> {
        self.bodies.take_map()
    }

    /// Every message as the index has it.
    pub(super) fn list(&mut self) -> Result<Vec<Message>> {
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

    pub(super) fn status_of(&self, list: &[Message]) -> Result<MailboxStatus> {
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

    /// Settles, with the index locked, what becomes of what was asked for.
    fn edit(&mut self, state: &State, committed: &mut Committed) -> Result<(Edit, Moves)> {
        let DboxMailbox { guids, bodies, .. } = self;
        let mut edit = Edit::default();
        let mut renumbered = BTreeMap::new();
        let mut uids = Vec::with_capacity(self.pending.len());
        let mut taken: BTreeSet<u32> = BTreeSet::new();
        let free = |uid: u32, burned: &UidSet, taken: &BTreeSet<u32>| {
            uid < u32::MAX && state.row(uid).is_none() && !burned.contains(uid) && !taken.contains(&uid)
        };
        self.pending.sort_by_key(|pending| pending.message().uid);
        let wished = self.pending.iter().map(|pending| pending.message().uid.get());
        let mut last = wished.clone().chain([state.header.next_uid - 1]).max().unwrap_or(0);
        for pending in &self.pending {
            let message = pending.message();
            let mut uid = message.uid.get();
            if !free(uid, &self.burned, &taken) {
                last = last.saturating_add(1);
                uid = last;
                committed.not_kept.insert(message.uid, Uid::new(uid));
            }
            if uid == u32::MAX {
                let what = format!("{}: UIDs are exhausted", bodies.places().mail.display());
                return Err(StorageError::Impossible(what));
            }
            taken.insert(uid);
            uids.push(uid);
            edit.appended.push(Appended {
                uid,
                flags: message.flags.clone(),
                modseq: message.modseq,
                data: Vec::new(),
            });
        }
        let names = keywords(state);
        let mut gone: BTreeSet<u32> = BTreeSet::new();
        for action in std::mem::take(&mut self.actions) {
            let Some(action) = action.redirected(&committed.not_kept) else { continue };
            match action {
                MessageAction::Renumber { from, to } => {
                    let row = state.row(from.get()).filter(|_| !gone.contains(&from.get()));
                    let Some(row) = row.filter(|_| free(to.get(), &self.burned, &taken)) else {
                        committed.not_kept.insert(to, Some(from));
                        continue;
                    };
                    let guid = bits(guids, bodies, state, from.get())?.unwrap_or_default();
                    let modseq = ModSeq::new(state.modseq_of(row)).unwrap_or_default();
                    let flags = flag_set(state, row, &names);
                    let data = bodies.data(state, row);
                    edit.appended.push(Appended { uid: to.get(), flags, modseq, data });
                    edit.expunged.push((from.get(), guid));
                    renumbered.insert(from.get(), to.get());
                    taken.insert(to.get());
                    gone.insert(from.get());
                }
                MessageAction::Flags { uid, add, remove, modseq_min } => {
                    let new = edit.appended.iter_mut().find(|new| new.uid == uid.get());
                    match (new, state.row(uid.get()).filter(|_| !gone.contains(&uid.get()))) {
                        (Some(new), _) => new.flags = new.flags.minus(&remove).union(&add),
                        (None, Some(row)) => {
                            let now = flag_set(state, row, &names);
                            let (add, remove) = (add.minus(&now), remove.intersection(&now));
                            if !add.is_empty() || !remove.is_empty() {
                                edit.flagged.push(Flagged {
                                    uid: uid.get(),
                                    add,
                                    remove,
                                    modseq: modseq_min,
                                });
                            }
                        }
                        (None, None) => {}
                    }
                }
                MessageAction::Expunge { uid, guid } => {
                    if state.row(uid.get()).is_none() || gone.contains(&uid.get()) {
                        continue;
                    }
                    let here = bits(guids, bodies, state, uid.get())?;
                    if here.zip(guid.as_ref()).is_none_or(|(here, guid)| here == guid.bits()) {
                        gone.insert(uid.get());
                        edit.expunged.push((uid.get(), here.unwrap_or_default()));
                    }
                }
            }
        }
        let saved = uids.iter().zip(self.pending.iter().map(Pending::message));
        edit.headers = self.shared.pop3_headers(state, saved);
        edit.appended.sort_by_key(|mail| mail.uid);
        edit.flagged.sort_by_key(|change| change.uid);
        edit.expunged.sort_unstable();
        let saved = uids.into_iter().zip(std::mem::take(&mut self.pending)).collect();
        Ok((edit, Moves { saved, renumbered }))
    }

    /// Leaves out what was to be shared and was expunged everywhere else meanwhile, or has all the references that it may have.
    fn leave_out_lost(&mut self, map: &State, committed: &mut Committed) {
        let mut more: BTreeMap<MapUid, u16> = BTreeMap::new();
        self.pending.retain(|pending| {
            let Pending::Shared { message, map_uid } = pending else { return true };
            let more = more.entry(map_uid.clone()).or_default();
            let stays = map_uid.can_be_shared(map, *more);
            *more = more.saturating_add(1);
            if !stays {
                committed.not_kept.insert(message.uid, None);
            }
            stays
        });
    }

    fn discard(&mut self) {
        self.bodies.discard(std::mem::take(&mut self.pending));
        self.actions.clear();
    }

    fn carry_out(&mut self, goal: Goal) -> Result<Committed> {
        self.bodies.sync(&self.pending, self.shared.account.fsync)?;
        let changes_bodies = !self.pending.is_empty()
            || self.actions.iter().any(|action| matches!(action, MessageAction::Expunge { .. }));
        let mut map = if changes_bodies { self.bodies.take_map()? } else { None };
        let locked = map.as_mut().map(|map| self.shared.lock_map(map)).transpose();
        let outcome = locked.and_then(|map| self.carry_out_locked(goal, map));
        if changes_bodies {
            self.bodies.keep_map(map);
        }
        outcome
    }

    /// The same with the map locked, where there is one.
    fn carry_out_locked(&mut self, goal: Goal, mut map: Option<MapWriter<'_>>) -> Result<Committed> {
        let mut committed = Committed::default();
        let policy = self.shared.account.fsync;
        // The index is borrowed by its lock; what the commit needs of it is taken out first.
        let path = self.index.paths().clone();
        let mut index = Index::open(path.clone())?
            .ok_or_else(|| StorageError::NoMailbox(path.log().display().to_string()))?;
        let mut writer = index.lock(patience())?;
        let state = writer.state().clone();
        if state.deleted {
            return Err(StorageError::NoMailbox(self.bodies.places().mail.display().to_string()));
        }
        if let Some(expected) = self.expected_next {
            self.burned.insert_range(expected.get()..state.header.next_uid);
        }
        if let Some(map) = &map {
            self.leave_out_lost(map.state(), &mut committed);
        }
        let (mut edit, moves) = self.edit(&state, &mut committed)?;
        self.bodies.place(map.as_mut(), &state, &mut edit, &moves, policy)?;
        for (uid, pending) in &moves.saved {
            self.guids.insert(*uid, pending.message().guid.clone());
            committed.saved += 1;
            committed.bytes += pending.body_bytes();
        }
        for (from, to) in &moves.renumbered {
            if let Some(guid) = self.guids.get(from).cloned() {
                self.guids.insert(*to, guid);
            }
        }
        let extensions = self.bodies.extensions();
        self.import.write(&mut writer, &mut edit, goal, &extensions, policy)?;
        self.bodies.finish(map.as_mut(), &edit, policy)?;
        for (uid, _) in &edit.expunged {
            self.guids.remove(uid);
        }
        self.expected_next = Some(uid_next(writer.state()));
        drop(writer);
        self.index = index;
        Ok(committed)
    }
}

/// The GUID of a message, from memory if it was read before.
fn guid(
    known: &mut BTreeMap<u32, MessageGuid>,
    bodies: &mut Bodies,
    state: &State,
    uid: u32,
) -> Result<Option<MessageGuid>> {
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
fn bits(
    known: &mut BTreeMap<u32, MessageGuid>,
    bodies: &mut Bodies,
    state: &State,
    uid: u32,
) -> Result<Option<[u8; 16]>> {
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

    fn changes(&mut self, since: Since<'_>) -> Result<Changes> {
        let list = self.list()?;
        let status = self.status_of(&list)?;
        self.expected_next.get_or_insert(status.uid_next);
        let mut changes = changes_since(&list, since);
        if matches!(since, Since::All) {
            self.index.prove(&mut changes)?;
        }
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
    }
}
