//! Mailboxes whose last session with a Dovecot did not come to its end: there it may lack what it was to get.
//!
//! A Dovecot that is cut off keeps what it has got, and what it renumbered or copied itself is then above what is still to come. What it lacks below a common
//! UID counts as expunged there in the next session; of these mailboxes that is not believed (`exchange/apart.rs`).
//!
//! Kept in the note `dovecot-unfinished`, for each host: written before a mailbox's list is told, and with the UID up to which both lists agreed when
//! they are here. Nothing was under way below that: what an end lacks there is expunged.

use std::collections::BTreeMap;

use dsync_model::MailboxGuid;
use dsync_storage::Storage;

const NOTE: &str = "dovecot-unfinished";
const MAGIC: &[u8; 8] = b"dsyncdu2";
/// Largest note that is read: 300,000 mailboxes.
const NOTE_BYTES_MAX: usize = 8 << 20;
const ENTRY_BYTES: usize = 28;

#[derive(Default)]
pub struct Unfinished {
    host: u64,
    /// By host and GUID; each with the UID up to which both ends agreed before, 0 if that is not known.
    begun: BTreeMap<(u64, MailboxGuid), u32>,
    is_changed: bool,
}

impl Unfinished {
    /// Reads the note. Of one that cannot be read nothing is known.
    pub fn read(storage: &mut dyn Storage, host: u64) -> Unfinished {
        let note = storage.read_note(NOTE, NOTE_BYTES_MAX).ok().flatten().unwrap_or_default();
        let entries = note.strip_prefix(MAGIC).unwrap_or_default().chunks_exact(ENTRY_BYTES);
        let entry = |entry: &[u8]| {
            let (host, entry) = entry.split_first_chunk::<8>()?;
            let (guid, agreed) = entry.split_first_chunk::<16>()?;
            let agreed = u32::from_le_bytes(agreed.try_into().ok()?);
            Some(((u64::from_le_bytes(*host), MailboxGuid(*guid)), agreed))
        };
        Unfinished { host, begun: entries.filter_map(entry).collect(), is_changed: false }
    }

    /// Up to which UID both ends agreed when a session with this mailbox began that did not come to its end, 0 if that is not known. `None`: there is none.
    pub fn of(&self, guid: MailboxGuid) -> Option<u32> {
        self.begun.get(&(self.host, guid)).copied()
    }

    /// Notes that a mailbox is under way, if that is not known yet.
    pub fn begin(&mut self, storage: &mut dyn Storage, guid: MailboxGuid) -> dsync_storage::Result<()> {
        if self.of(guid).is_none() {
            self.begun.insert((self.host, guid), 0);
            self.is_changed = true;
        }
        self.write(storage)
    }

    /// Notes up to which UID both ends agree, where this session is the first one since they were through with the mailbox.
    pub fn agree(
        &mut self,
        storage: &mut dyn Storage,
        guid: MailboxGuid,
        uid: u32,
    ) -> dsync_storage::Result<()> {
        if let Some(agreed) = self.begun.get_mut(&(self.host, guid)) {
            self.is_changed |= *agreed != uid;
            *agreed = uid;
        }
        self.write(storage)
    }

    /// Both ends are through with a mailbox. The note says so when it is written next.
    pub fn end(&mut self, guid: MailboxGuid) {
        self.is_changed |= self.begun.remove(&(self.host, guid)).is_some();
    }

    /// Writes the note, if it would say something new.
    pub fn write(&mut self, storage: &mut dyn Storage) -> dsync_storage::Result<()> {
        if !std::mem::take(&mut self.is_changed) {
            return Ok(());
        }
        if self.begun.is_empty() {
            return storage.remove_note(NOTE);
        }
        let mut note = MAGIC.to_vec();
        for ((host, guid), agreed) in &self.begun {
            note.extend_from_slice(&host.to_le_bytes());
            note.extend_from_slice(&guid.0);
            note.extend_from_slice(&agreed.to_le_bytes());
        }
        storage.write_note(NOTE, &note)
    }
}

#[cfg(test)]
mod tests {
    use dsync_storage::memory::MemoryStorage;

    use super::*;

    #[test]
    fn what_did_not_end_is_known_to_the_next_session_with_that_host() {
        let mut storage = MemoryStorage::default();
        let [one, two] = [1, 2].map(|byte| MailboxGuid([byte; 16]));
        let mut session = Unfinished::read(&mut storage, 7);
        session.begin(&mut storage, one).unwrap();
        session.end(one);
        session.begin(&mut storage, two).unwrap();
        session.agree(&mut storage, two, 5).unwrap();
        for (host, known) in [(7, [None, Some(5)]), (8, [None, None])] {
            let mut next = Unfinished::read(&mut storage, host);
            assert_eq!([one, two].map(|guid| next.of(guid)), known, "{host}");
            next.begin(&mut storage, one).unwrap();
            assert_eq!(next.of(one), Some(0), "{host}");
            [one, two].into_iter().for_each(|guid| next.end(guid));
            next.write(&mut storage).unwrap();
            assert_eq!(Unfinished::read(&mut storage, host).of(two), None, "{host}");
        }
        assert!(storage.read_note(NOTE, NOTE_BYTES_MAX).unwrap().is_none());
    }
}
