//! Mailboxes whose last session with a Dovecot did not come to its end: there it may lack what it was to get.
//!
//! A Dovecot that is cut off keeps what it has got, and what it renumbered or copied itself is then above what is still to come. What it lacks below a common
//! UID counts as expunged there in the next session; of these mailboxes that is not believed (`exchange/apart.rs`).
//!
//! Kept in the note `dovecot-unfinished`, for each host: written before a mailbox's list is told.

use std::collections::BTreeSet;

use dsync_model::MailboxGuid;
use dsync_storage::Storage;

const NOTE: &str = "dovecot-unfinished";
const MAGIC: &[u8; 8] = b"dsyncdu1";
/// Largest note that is read: 300,000 mailboxes.
const NOTE_BYTES_MAX: usize = 8 << 20;
const ENTRY_BYTES: usize = 24;

#[derive(Default)]
pub struct Unfinished {
    host: u64,
    begun: BTreeSet<(u64, MailboxGuid)>,
    is_changed: bool,
}

impl Unfinished {
    /// Reads the note. Of one that cannot be read nothing is known.
    pub fn read(storage: &mut dyn Storage, host: u64) -> Unfinished {
        let note = storage.read_note(NOTE, NOTE_BYTES_MAX).ok().flatten().unwrap_or_default();
        let entries = note.strip_prefix(MAGIC).unwrap_or_default().chunks_exact(ENTRY_BYTES);
        let entry = |entry: &[u8]| {
            let (host, guid) = entry.split_first_chunk::<8>()?;
            Some((u64::from_le_bytes(*host), MailboxGuid(guid.try_into().ok()?)))
        };
        Unfinished { host, begun: entries.filter_map(entry).collect(), is_changed: false }
    }

    /// Notes that a mailbox is under way; says whether it was already.
    pub fn begin(&mut self, storage: &mut dyn Storage, guid: MailboxGuid) -> dsync_storage::Result<bool> {
        if !self.begun.insert((self.host, guid)) {
            return Ok(true);
        }
        self.is_changed = true;
        self.write(storage)?;
        Ok(false)
    }

    /// Both ends are through with a mailbox. The note says so when it is written next.
    pub fn end(&mut self, guid: MailboxGuid) {
        self.is_changed |= self.begun.remove(&(self.host, guid));
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
        for (host, guid) in &self.begun {
            note.extend_from_slice(&host.to_le_bytes());
            note.extend_from_slice(&guid.0);
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
        assert!(!session.begin(&mut storage, one).unwrap());
        session.end(one);
        assert!(!session.begin(&mut storage, two).unwrap());
        for (host, known) in [(7, [false, true]), (8, [false, false])] {
            let mut next = Unfinished::read(&mut storage, host);
            let begun = [one, two].map(|guid| next.begun.contains(&(host, guid)));
            assert_eq!(begun, known, "{host}");
            next.end(two);
            next.write(&mut storage).unwrap();
        }
        assert!(storage.read_note(NOTE, NOTE_BYTES_MAX).unwrap().is_none());
    }
}
