//! Messages that were moved or copied: what the other end has in a new place is still in its old place here, and is copied from there.
//!
//! Expunges come after all saves, so a moved message is here when it is wanted. Its GUID is trusted only where both ends once agreed
//! on the very message that is copied: its UID is in the base of its mailbox, and the base holds what both ends had under one UID
//! and one GUID. That GUIDs are equal elsewhere proves nothing of the content (docs/merge.md).

use std::collections::{BTreeMap, BTreeSet};

use dsync_merge::{End, Fetch};
use dsync_model::{
    MailboxBase, MailboxGuid, MailboxStatus, MessageGuid, NewMessage, Timestamp, TreeChange, Uid,
};
use dsync_storage::{Body, Mailbox, Storage as _};

use super::Brain;
use super::mailbox::Open;
use crate::SessionError;

/// Most messages of a mailbox that are looked through for those that were moved.
const MESSAGES_MAX: u64 = 1_000_000;
/// Most messages that are looked through in a session for those that were copied.
const COPIES_MESSAGES_MAX: u64 = 1_000_000;
/// Of each mailbox where that means to open the files of its messages: the last ones.
const COPIES_FILES_MAX: usize = 2_000;

/// Where a message that is to be saved is already.
#[derive(Clone, Copy, Debug)]
pub(super) struct Donor {
    mailbox: MailboxGuid,
    uid: Uid,
}

/// What was found here, and where.
#[derive(Default)]
pub(super) struct Donors {
    /// Messages that both ends agreed on, by the GUID's bits.
    found: BTreeMap<[u8; 16], Donor>,
    /// Mailboxes that were looked through.
    searched: BTreeSet<MailboxGuid>,
    /// Messages that were looked through for copies.
    looked_at: u64,
    /// The mailbox that the last message was copied from, if nothing else has it open.
    open: Option<(MailboxGuid, Box<dyn Mailbox>)>,
}

impl Donors {
    /// Lets go of what is open.
    pub fn close(&mut self) {
        self.open = None;
    }
}

impl Brain {
    /// Finds the messages to be fetched that are already somewhere here.
    pub(super) fn with_donors(&mut self, index: usize, fetches: &[Fetch]) -> Vec<(Fetch, Option<Donor>)> {
        // A copy that failed makes another round, which asks the peer.
        // Nor is there one where messages are known by their headers alone.
        if self.round == 0 && !self.storage.is_on() && fetches.iter().any(|fetch| fetch.guid.is_some()) {
            self.look_for_moved(index);
            self.look_for_copied(index, fetches);
        }
        let here = self.open[index].pair.guid;
        let donor = |fetch: &Fetch| {
            let donor = self.donors.found.get(&fetch.guid.as_ref()?.bits()).copied();
            donor.filter(|donor| self.round == 0 && donor.mailbox != here)
        };
        fetches.iter().map(|fetch| (fetch.clone(), donor(fetch))).collect()
    }

    /// Looks through every mailbox but this one that the other end deleted, or in which it expunged something, once in a session.
    fn look_for_moved(&mut self, index: usize) {
        for (guid, name) in self.going() {
            if let Err(error) = self.look_through(guid, usize::MAX) {
                // Somebody was faster to delete it.
                tracing::debug!("{name}: {error}");
            }
        }
        let other = self.end.other();
        for at_index in (0..self.open.len()).filter(|other| *other != index) {
            let open = &self.open[at_index];
            if open.skipped || !may_have_lost(open, other) || self.donors.searched.contains(&open.pair.guid) {
                continue;
            }
            let (guid, name) = (open.pair.guid, open.pair.name.to_string());
            if let Err(error) = self.look_through(guid, usize::MAX) {
                // The other end is asked for what is there.
                tracing::debug!("{name}: {error}");
            }
        }
    }

    /// Mailboxes of the base that are about to be deleted here, and were not looked through yet.
    fn going(&self) -> Vec<(MailboxGuid, String)> {
        let deleted = self.plan.deletes.iter().filter_map(|change| match change {
            TreeChange::Delete { name, guid, .. } => Some((*guid, name)),
            _ => None,
        });
        let mut going: BTreeMap<MailboxGuid, String> = deleted
            .filter(|(guid, _)| !self.donors.searched.contains(guid))
            .map(|(guid, name)| (guid, name.to_string()))
            .collect();
        if !going.is_empty() {
            let nodes = self.trees[self.end as usize].values();
            let statuses = nodes.filter_map(|node| node.mailbox.as_ref());
            let usable = statuses.filter(|status| {
                let base = self.base_of(status.guid, std::iter::once(*status));
                base.is_some_and(|base| base.uids.len() <= MESSAGES_MAX)
            });
            let usable: BTreeSet<MailboxGuid> = usable.map(|status| status.guid).collect();
            going.retain(|guid, _| usable.contains(guid));
        }
        going.into_iter().collect()
    }

    /// Looks through other mailboxes, once in a session each, for messages that are older than the last change of the mailbox: those
    /// may have been copied. What was just delivered is younger than whatever did not change since the last run, so that it costs nothing.
    fn look_for_copied(&mut self, index: usize, fetches: &[Fetch]) {
        let here = self.open[index].pair.guid;
        let mut wanted: BTreeMap<[u8; 16], Option<Timestamp>> = BTreeMap::new();
        for guid in fetches.iter().filter_map(|fetch| fetch.guid.as_ref()) {
            wanted.insert(guid.bits(), made(guid));
        }
        let changed: BTreeMap<MailboxGuid, Option<Timestamp>> = self.trees[self.end as usize]
            .values()
            .filter_map(|node| Some((node.mailbox.as_ref()?.guid, node.changed)))
            .collect();
        for at_index in 0..self.plan.pairs.len() {
            wanted.retain(|bits, _| !self.donors.found.contains_key(bits));
            let pair = &self.plan.pairs[at_index];
            let (guid, name) = (pair.guid, &pair.name);
            let Some(changed) = changed.get(&guid).filter(|_| guid != here) else { continue };
            let oldest = wanted.values().min();
            let may_hold = oldest.is_some_and(|made| changed.is_none() || made <= changed);
            let open = self.open.iter().find(|open| open.pair.guid == guid);
            let usable = open.is_none_or(|open| open.since_base && !open.skipped);
            let both = pair.statuses.0.iter().flatten();
            let Some(base) = self.base_of(guid, both) else { continue };
            let messages = base.uids.len();
            if !may_hold
                || !usable
                || self.donors.searched.contains(&guid)
                || self.donors.looked_at + messages > COPIES_MESSAGES_MAX
            {
                continue;
            }
            self.donors.looked_at += messages;
            let name = name.to_string();
            if let Err(error) = self.look_through(guid, COPIES_FILES_MAX) {
                // The other end is asked for what is there.
                tracing::debug!("{name}: {error}");
            }
        }
    }

    /// Takes note of all messages of a mailbox that its base has.
    fn look_through(&mut self, guid: MailboxGuid, files_max: usize) -> dsync_storage::Result<()> {
        self.donors.searched.insert(guid);
        let list = self.storage.open(guid)?.guids(files_max)?;
        let Some(base) = self.base.as_ref().and_then(|base| base.mailboxes.get(&guid)) else { return Ok(()) };
        let agreed = list.into_iter().filter(|(uid, _)| base.uids.contains(uid.get()));
        self.donors.found.extend(agreed.map(|(uid, bits)| (bits, Donor { mailbox: guid, uid })));
        Ok(())
    }

    /// The base of a mailbox, if it is of this UIDVALIDITY at both ends.
    fn base_of<'s>(
        &self,
        guid: MailboxGuid,
        mut statuses: impl Iterator<Item = &'s MailboxStatus>,
    ) -> Option<&MailboxBase> {
        let base = self.base.as_ref()?.mailboxes.get(&guid)?;
        statuses.all(|status| status.uid_validity == base.uid_validity).then_some(base)
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
        let from = self.open.iter().position(|open| open.pair.guid == donor.mailbox);
        let found = match from.and_then(|from| self.open[from].mailbox.as_mut()) {
            Some(mailbox) => mailbox.body(donor.uid, fetch.guid.as_ref()),
            None => self.body_of(donor, fetch.guid.as_ref()),
        };
        let open = &mut self.open[index];
        let (Ok(Some(body)), Some(guid), Some(mailbox)) = (found, fetch.guid.clone(), open.mailbox.as_mut())
        else {
            // Gone or unreadable meanwhile: the next round asks the peer.
            open.not_kept.insert(fetch.uid, None);
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
        if let Err(error) = mailbox.save(message, body) {
            self.fail(index, format!("{name}: UID {}: cannot copy", fetch.uid), error)?;
            return Ok(true);
        }
        open.report.copied += 1;
        open.unsaved.1 += size;
        self.count_save(index)?;
        Ok(true)
    }

    /// The message, from a mailbox that nothing else has open.
    fn body_of(&mut self, donor: Donor, guid: Option<&MessageGuid>) -> dsync_storage::Result<Option<Body>> {
        if self.donors.open.as_ref().is_none_or(|(open, _)| *open != donor.mailbox) {
            self.donors.open = Some((donor.mailbox, self.storage.open(donor.mailbox)?));
        }
        let open = self.donors.open.as_mut();
        open.map_or(Ok(None), |(_, mailbox)| mailbox.body(donor.uid, guid))
    }
}

/// When a message got its GUID, if that tells: Dovecot's own begins with the time, as file names in a Maildir do (storage formats
/// reference, 3.4).
fn made(guid: &MessageGuid) -> Option<Timestamp> {
    let text = guid.as_str();
    let seconds = match text.split_once('.') {
        Some((seconds, _)) if seconds.bytes().all(|byte| byte.is_ascii_digit()) => seconds.parse().ok()?,
        Some(_) => return None,
        None if text.len() == 32 => {
            let bits = guid.bits();
            let number = |at: usize| u32::from_le_bytes([bits[at], bits[at + 1], bits[at + 2], bits[at + 3]]);
            let is_a_time = number(0) < 1_000_000_000;
            is_a_time.then(|| i64::from(number(4)))?
        }
        None => return None,
    };
    // From 2001 on.
    (1_000_000_000..1 << 31).contains(&seconds).then_some(Timestamp(seconds))
}

/// Says whether the next message of a mailbox is one to be copied.
fn copies(open: &Open) -> bool {
    open.active
        && !open.skipped
        && open.saving.is_none()
        && matches!(open.fetches.front(), Some((_, Some(_))))
}

/// Says whether the other end may have expunged something of the base: it holds less than the base and what may have come since.
fn may_have_lost(open: &Open, other: End) -> bool {
    let (Some(base), Some(status)) = (&open.base, &open.pair.statuses[other]) else { return false };
    let known = base.uids.len();
    let come = u64::from(status.uid_next.get().saturating_sub(base.uid_next.get()));
    open.since_base && known <= MESSAGES_MAX && u64::from(status.messages) < known + come
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guids_tell_when_they_were_made() {
        let made = |text: &str| made(&MessageGuid::new(text).unwrap()).map(|time| time.0);
        assert_eq!(made("1700000000.M1P2.host"), Some(1_700_000_000));
        assert_eq!(made("00b40f37de49046b8a14000087ad316d"), Some(0x6b04_49de));
        for text in
            ["ffffffffde49046b8a14000087ad316d", "12.a", "9999999999999999999999.x", "letter", "1700000000"]
        {
            assert_eq!(made(text), None, "{text}");
        }
    }
}
