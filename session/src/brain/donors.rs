//! Messages that were moved: what the other end has in a new place is still in its old place here, and is copied from there.
//!
//! Expunges come after all saves, so a moved message is here when it is wanted. Its GUID is trusted only where both ends once agreed
//! on the very message that is copied: its UID is in the base of its mailbox, and the base holds what both ends had under one UID
//! and one GUID. That GUIDs are equal elsewhere proves nothing of the content (docs/merge.md).

use std::collections::BTreeMap;

use dsync_merge::Fetch;
use dsync_model::{MailboxGuid, MessageChange, NewMessage, Since, Uid};

use super::mailbox::Open;
use super::{Brain, at};
use crate::SessionError;

/// Most messages of a mailbox that are looked through for those that were moved.
const MESSAGES_MAX: u64 = 1_000_000;

/// Where a message that is to be saved is already.
#[derive(Clone, Copy, Debug)]
pub(super) struct Donor {
    mailbox: MailboxGuid,
    uid: Uid,
}

/// Messages here, by the GUID's bits, that both ends agreed on and that the other end may have moved away.
pub(super) type Donors = BTreeMap<[u8; 16], Donor>;

impl Brain {
    /// Finds the messages to be fetched that are already somewhere here.
    pub(super) fn with_donors(
        &mut self,
        index: usize,
        fetches: &[Fetch],
    ) -> Result<Vec<(Fetch, Option<Donor>)>, SessionError> {
        // A copy that failed makes another round, which asks the peer.
        if self.round == 0 && fetches.iter().any(|fetch| fetch.guid.is_some()) {
            self.look_for_donors(index)?;
        }
        let here = self.open[index].pair.guid;
        let donor = |fetch: &Fetch| {
            let donor = self.donors.get(&fetch.guid.as_ref()?.bits()).copied();
            donor.filter(|donor| self.round == 0 && donor.mailbox != here)
        };
        Ok(fetches.iter().map(|fetch| (fetch.clone(), donor(fetch))).collect())
    }

    /// Looks through every mailbox but this one in which the other end expunged something, once in a session.
    fn look_for_donors(&mut self, index: usize) -> Result<(), SessionError> {
        let other = self.end.other();
        for at_index in (0..self.open.len()).filter(|other| *other != index) {
            let open = &mut self.open[at_index];
            if open.searched || open.skipped || !may_have_lost(open, other) {
                continue;
            }
            open.searched = true;
            let (guid, name) = (open.pair.guid, open.pair.name.to_string());
            let Some(base) = &open.base else { continue };
            let uids = base.uids.clone();
            let list = self.storage.open(guid).and_then(|mut mailbox| mailbox.changes(Since::All));
            let list = list.map_err(at(name))?.list;
            let agreed = list.into_iter().filter_map(|change| match change {
                MessageChange::Save { uid, guid, .. } if uids.contains(uid.get()) => Some((uid, guid)),
                _ => None,
            });
            self.donors.extend(agreed.map(|(uid, message)| (message.bits(), Donor { mailbox: guid, uid })));
        }
        Ok(())
    }

    /// Copies the next message of a mailbox whose turn it is, if it is one that is here already.
    pub(super) fn copy_next(&mut self) -> Result<bool, SessionError> {
        let Some(index) = self.open.iter().position(copies) else { return Ok(false) };
        self.copy_at(index)
    }

    /// The same for this mailbox.
    pub(super) fn copy_at(&mut self, index: usize) -> Result<bool, SessionError> {
        if !copies(&self.open[index]) {
            return Ok(false);
        }
        let Some((fetch, Some(donor))) = self.open[index].fetches.pop_front() else { return Ok(false) };
        let name = self.open[index].pair.name.to_string();
        let place = || format!("{name}: UID {}: cannot copy", fetch.uid);
        let from = self.open.iter().position(|open| open.pair.guid == donor.mailbox);
        let found = match from.and_then(|from| self.open[from].mailbox.as_mut()) {
            Some(mailbox) => mailbox.body(donor.uid, fetch.guid.as_ref()),
            None => self
                .storage
                .open(donor.mailbox)
                .and_then(|mut mailbox| mailbox.body(donor.uid, fetch.guid.as_ref())),
        };
        let open = &mut self.open[index];
        let (Ok(Some(body)), Some(guid), Some(mailbox)) = (found, fetch.guid.clone(), open.mailbox.as_mut())
        else {
            // Gone or unreadable meanwhile: the next round asks the peer.
            open.not_kept.push(fetch.uid);
            return Ok(true);
        };
        let message = NewMessage {
            uid: fetch.uid,
            guid,
            flags: fetch.flags,
            modseq: fetch.modseq,
            received: body.received,
            saved: None,
            pop3_uidl: body.pop3_uidl.clone(),
            pop3_order: body.pop3_order,
            size: body.size,
        };
        let size = body.size.unwrap_or(0);
        mailbox.save(message, body).map_err(at(place()))?;
        open.report.copied += 1;
        open.unsaved.1 += size;
        self.count_save(index)?;
        Ok(true)
    }
}

/// Says whether the next message of a mailbox is one to be copied.
fn copies(open: &Open) -> bool {
    open.active && open.saving.is_none() && matches!(open.fetches.front(), Some((_, Some(_))))
}

/// Says whether the other end may have expunged something of the base: it holds less than the base and what may have come since.
fn may_have_lost(open: &Open, other: dsync_merge::End) -> bool {
    let (Some(base), Some(status)) = (&open.base, &open.pair.statuses[other]) else { return false };
    let known = base.uids.len();
    let come = u64::from(status.uid_next.get().saturating_sub(base.uid_next.get()));
    open.since_base && known <= MESSAGES_MAX && u64::from(status.messages) < known + come
}
