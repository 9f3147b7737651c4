//! One open mailbox of sdbox: lists, bodies, saves and commits.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use dsync_model::{
    Changes, Digest, FlagDelta, MailboxGuid, MailboxStatus, Message, MessageAction, MessageChange,
    MessageGuid, ModSeq, NewMessage, Since, Uid, UidSet, UidValidity, changes_since,
};

use super::saving::Saving;
use super::sdbox::{Files, Pending};
use super::storage::Shared;
use crate::compressed::Opened;
use crate::index::edit::{flag_set, keywords, uid_next};
use crate::index::{Appended, Edit, Flagged, Index, State};
use crate::{Body, Committed, Goal, Mailbox, Result, StorageError, disk};

/// How long to wait for the index.
pub(super) const LOCK_WAIT: Duration = Duration::from_secs(30);
/// Bytes read from a body at once.
const CHUNK_BYTES: usize = 256 << 10;

pub(super) struct SdboxMailbox {
    shared: Arc<Shared>,
    files: Files,
    index: Index,
    /// GUIDs by UID: reading one costs opening a file.
    guids: BTreeMap<u32, MessageGuid>,
    /// UIDNEXT when we last looked: what lies between it and UIDNEXT as we find it was given away by others.
    expected_next: Option<Uid>,
    burned: UidSet,
    coming: Option<Saving>,
    pending: Vec<Pending>,
    actions: Vec<MessageAction>,
}

impl SdboxMailbox {
    pub(super) fn new(shared: Arc<Shared>, files: Files, index: Index) -> SdboxMailbox {
        SdboxMailbox {
            shared,
            files,
            index,
            guids: BTreeMap::new(),
            expected_next: None,
            burned: UidSet::new(),
            coming: None,
            pending: Vec::new(),
            actions: Vec::new(),
        }
    }

    fn guid(&mut self, uid: u32) -> Result<Option<MessageGuid>> {
        if let Some(guid) = self.guids.get(&uid) {
            return Ok(Some(guid.clone()));
        }
        let guid = self.files.guid(uid)?;
        if let Some(guid) = &guid {
            self.guids.insert(uid, guid.clone());
        }
        Ok(guid)
    }

    /// Every message as the index has it.
    pub(super) fn list(&mut self) -> Result<Vec<Message>> {
        self.index.refresh()?;
        let names = keywords(self.index.state());
        let mut list = Vec::with_capacity(self.index.state().uids.len());
        for row in 0..self.index.state().uids.len() {
            let number = self.index.state().uids[row];
            let Some(uid) = Uid::new(number) else { continue };
            let Some(guid) = self.guid(number)? else {
                let path = self.files.places.mail.join(format!("u.{number}"));
                tracing::warn!("{}: is in the index, and is gone; left out", path.display());
                continue;
            };
            let state = self.index.state();
            list.push(Message {
                uid,
                guid,
                flags: flag_set(state, row, &names),
                modseq: ModSeq::new(state.modseq_of(row)).unwrap_or_default(),
                received: None,
                size: None,
            });
        }
        Ok(list)
    }

    pub(super) fn status_of(&self, list: &[Message]) -> Result<MailboxStatus> {
        let state = self.index.state();
        Ok(MailboxStatus {
            guid: self.files.mailbox,
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
        let right = |guid: Option<MessageGuid>| {
            wanted.is_none_or(|wanted| guid.is_some_and(|guid| guid.bits() == wanted.bits()))
        };
        if self.index.state().row(uid.get()).is_some() && right(self.guid(uid.get())?) {
            return Ok(Some(uid.get()));
        }
        if wanted.is_some() {
            for other in self.index.state().uids.clone() {
                if right(self.guid(other)?) {
                    return Ok(Some(other));
                }
            }
        }
        Ok(None)
    }

    /// Settles, with the index locked, what becomes of what was asked for.
    fn edit(&mut self, state: &State, committed: &mut Committed) -> Result<(Edit, Vec<(u32, u32)>)> {
        let mut edit = Edit::default();
        let mut links = Vec::new();
        let mut taken: BTreeSet<u32> = BTreeSet::new();
        let mut next = state.header.next_uid;
        let free = |uid: u32, burned: &UidSet, taken: &BTreeSet<u32>| {
            uid < u32::MAX && state.row(uid).is_none() && !burned.contains(uid) && !taken.contains(&uid)
        };
        self.pending.sort_by_key(|pending| pending.saved.message.uid);
        let wished = self.pending.iter().map(|pending| pending.saved.message.uid.get());
        let mut last = wished.clone().chain([next - 1]).max().unwrap_or(0);
        for pending in &self.pending {
            let message = &pending.saved.message;
            let mut uid = message.uid.get();
            if !free(uid, &self.burned, &taken) {
                committed.not_kept.push(message.uid);
                last = last.saturating_add(1);
                uid = last;
            }
            if uid == u32::MAX {
                let what = format!("{}: UIDs are exhausted", self.files.places.mail.display());
                return Err(StorageError::Impossible(what));
            }
            taken.insert(uid);
            next = next.max(uid + 1);
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
            match action {
                MessageAction::Renumber { from, to } => {
                    let row = state.row(from.get()).filter(|_| !gone.contains(&from.get()));
                    let Some(row) = row.filter(|_| free(to.get(), &self.burned, &taken)) else {
                        committed.not_kept.push(to);
                        continue;
                    };
                    let guid = self.guid(from.get())?.map_or([0; 16], |guid| guid.bits());
                    let modseq = ModSeq::new(state.modseq_of(row)).unwrap_or_default();
                    let flags = flag_set(state, row, &names);
                    edit.appended.push(Appended { uid: to.get(), flags, modseq, data: Vec::new() });
                    edit.expunged.push((from.get(), guid));
                    links.push((from.get(), to.get()));
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
                        (None, None) => committed.not_kept.push(uid),
                    }
                }
                MessageAction::Expunge { uid, guid } => {
                    if state.row(uid.get()).is_none() || gone.contains(&uid.get()) {
                        continue;
                    }
                    let here = self.guid(uid.get())?;
                    let same = here.as_ref().zip(guid.as_ref()).is_none_or(|(a, b)| a.bits() == b.bits());
                    if same {
                        gone.insert(uid.get());
                        edit.expunged.push((uid.get(), here.map_or([0; 16], |guid| guid.bits())));
                    }
                }
            }
        }
        edit.appended.sort_by_key(|mail| mail.uid);
        edit.expunged.sort_unstable();
        Ok((edit, links))
    }

    fn discard(&mut self) {
        self.pending.drain(..).for_each(|pending| self.files.forget(&pending));
        self.actions.clear();
    }

    fn carry_out(&mut self, goal: Goal) -> Result<Committed> {
        let mut committed = Committed::default();
        let policy = self.shared.account.fsync;
        self.files.sync(&self.pending, policy)?;
        // The index is borrowed by its lock; what the commit needs of it is taken out first.
        let path = self.index.paths().clone();
        let mut index = Index::open(path.clone())?
            .ok_or_else(|| StorageError::NoMailbox(path.log().display().to_string()))?;
        let mut writer = index.lock(LOCK_WAIT)?;
        let state = writer.state().clone();
        if state.deleted {
            return Err(StorageError::NoMailbox(self.files.places.mail.display().to_string()));
        }
        if let Some(expected) = self.expected_next {
            self.burned.insert_range(expected.get()..state.header.next_uid);
        }
        let (edit, links) = self.edit(&state, &mut committed)?;
        let mut pending = std::mem::take(&mut self.pending);
        for (pending, mail) in
            pending.iter_mut().zip(edit.appended.iter().filter(|m| !links.iter().any(|l| l.1 == m.uid)))
        {
            self.files.place(pending, mail.uid)?;
            self.guids.insert(mail.uid, pending.saved.message.guid.clone());
            committed.saved += 1;
            committed.bytes += pending.saved.body_bytes;
        }
        for (from, to) in &links {
            self.files.link(*from, *to)?;
            if let Some(guid) = self.guids.get(from).cloned() {
                self.guids.insert(*to, guid);
            }
        }
        if !pending.is_empty() || !links.is_empty() {
            disk::sync_directory(&self.files.places.mail, policy)?;
        }
        if let Some(state) = edit.imported(&state, goal, &[]) {
            writer.import(state, policy)?;
        } else if edit.fits(&state) {
            writer.append(edit.transaction(&state, goal, &[]), policy)?;
            writer.tidy(policy)?;
        } else {
            writer.rebuild(edit.rebuilt(&state, goal, &[]), policy)?;
        }
        for (uid, _) in &edit.expunged {
            self.files.remove(*uid)?;
            self.guids.remove(uid);
        }
        self.expected_next = Some(uid_next(writer.state()));
        drop(writer);
        self.index = index;
        Ok(committed)
    }
}

impl Mailbox for SdboxMailbox {
    fn status(&mut self) -> Result<MailboxStatus> {
        let list = self.list()?;
        self.status_of(&list)
    }

    fn changes(&mut self, since: Since<'_>) -> Result<Changes> {
        let list = self.list()?;
        let status = self.status_of(&list)?;
        self.expected_next.get_or_insert(status.uid_next);
        let mut changes = changes_since(&list, since);
        if matches!(since, Since::All) {
            add_history(&mut changes, &self.index)?;
        }
        Ok(Changes { list: changes, status })
    }

    fn digest_of(&mut self, uids: &UidSet) -> Result<Digest> {
        let list = self.list()?;
        Ok(Digest::of(list.iter().filter(|message| uids.contains(message.uid.get()))))
    }

    fn body(&mut self, uid: Uid, wanted: Option<&MessageGuid>) -> Result<Option<Body>> {
        self.index.refresh()?;
        let Some(uid) = self.find(uid, wanted)? else { return Ok(None) };
        let Some((file, mail)) = self.files.open(uid)? else { return Ok(None) };
        let Opened { reader, .. } = super::open_mail(&file, &mail, self.files.attachments(uid).as_ref())?;
        let Some(guid) = mail.metadata.guid.clone() else { return Ok(None) };
        Ok(Some(Body {
            guid,
            received: mail.metadata.received,
            saved: None,
            pop3_uidl: mail.metadata.pop3_uidl.clone(),
            pop3_order: mail.metadata.pop3_order,
            size: Some(mail.physical_size()),
            path: None,
            reader,
        }))
    }

    fn save(&mut self, message: NewMessage, mut body: Body) -> Result<()> {
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
        self.coming = Some(self.files.begin(message)?);
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
            self.pending.push(self.files.end(coming)?);
        }
        Ok(())
    }

    fn abandon_save(&mut self) {
        if let Some(coming) = self.coming.take()
            && let Err(error) = disk::remove(&coming.path)
        {
            tracing::debug!("{error}");
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
}

impl Drop for SdboxMailbox {
    fn drop(&mut self) {
        self.abandon_save();
        self.discard();
    }
}

/// Adds to a list of all messages what the log proves: who was expunged, and how flags came to stand as they do.
fn add_history(changes: &mut Vec<MessageChange>, index: &Index) -> Result<()> {
    let history = index.history(0)?;
    for change in changes.iter_mut() {
        let MessageChange::Save { uid, flags, .. } = change else { continue };
        let Some(told) = history.flags.get(&uid.get()) else { continue };
        let mut delta = FlagDelta::standing(std::mem::take(&mut flags.current));
        delta.added.system = dsync_model::Flags::from_bits(told.added & 0x1f).unwrap_or_default();
        delta.removed.system = dsync_model::Flags::from_bits(told.removed & 0x1f).unwrap_or_default();
        for (name, added) in &told.keywords {
            if let Some(keyword) = dsync_model::Keyword::new(name) {
                if *added { &mut delta.added } else { &mut delta.removed }.keywords.insert(keyword);
            }
        }
        delta.added = delta.added.intersection(&delta.current);
        delta.removed = delta.removed.minus(&delta.current);
        *flags = delta;
    }
    // A message that only got another UID was not expunged.
    let here = changes.iter().filter_map(|change| match change {
        MessageChange::Save { guid, .. } => Some(guid.bits()),
        _ => None,
    });
    let here: BTreeSet<[u8; 16]> = here.collect();
    let gone = history.expunged.iter().filter(|(_, (_, guid))| guid.is_none_or(|guid| !here.contains(&guid)));
    let gone: Vec<MessageChange> = gone
        .filter_map(|(uid, (_, guid))| {
            let guid = MessageGuid::new(&MailboxGuid((*guid)?).to_string())?;
            Some(MessageChange::Expunge { uid: Uid::new(*uid)?, guid: Some(guid) })
        })
        .collect();
    changes.extend(gone);
    changes.sort_by_key(MessageChange::uid);
    Ok(())
}
