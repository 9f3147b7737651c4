//! What each mailbox was like when it was last settled with a Dovecot: whether equal counters may be believed.
//!
//! In a run for changes both ends pass over a mailbox whose six counters are equal, though each may have got another message. Of these the
//! first recent UID is of no use here, as nobody keeps `\Recent`: so it is told such that the counters differ, unless this end is as it was left.
//!
//! Kept in the note `dovecot-settled`, for each host. Losing it costs a comparison, and proof of expunges (`exchange/gone.rs`).

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use dsync_model::{MailboxGuid, MailboxStatus, Uid, UidValidity};
use dsync_storage::Storage;

const NOTE: &str = "dovecot-settled";
const MAGIC: &[u8; 8] = b"dsyncds1";
/// Largest note that is read: 300,000 mailboxes. More is forgotten.
const NOTE_BYTES_MAX: usize = 20 << 20;
const ENTRY_BYTES: usize = 64;
/// What no Dovecot says: its messages are numbered from 1.
const NEVER: u32 = 0;

/// Mailboxes by host and GUID; each with how it was left, and the first recent UID that the peer had.
#[derive(Default)]
pub struct Settled {
    host: u64,
    known: BTreeMap<(u64, MailboxGuid), ([u8; 36], u32)>,
    is_changed: bool,
}

/// What both ends had.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Left {
    pub uid_validity: UidValidity,
    /// All below this UID: UIDNEXT, if nothing came meanwhile.
    pub below: Uid,
    /// How many messages that were, at most.
    pub messages: u32,
}

impl Settled {
    /// Reads the note; one that cannot be read is as good as none.
    pub fn read(storage: &mut dyn Storage, host: &[u8]) -> Settled {
        let note = storage.read_note(NOTE, NOTE_BYTES_MAX).ok().flatten().unwrap_or_default();
        let mut hasher = DefaultHasher::new();
        host.hash(&mut hasher);
        Settled { host: hasher.finish(), known: parse(&note), is_changed: false }
    }

    /// The peer's host, as notes tell it.
    pub fn host(&self) -> u64 {
        self.host
    }

    /// The first recent UID to tell as master.
    pub fn ask(&self, status: &MailboxStatus) -> u32 {
        self.current(status).unwrap_or(NEVER)
    }

    /// Whether the peer may have the same, if it is told this one.
    pub fn may_be_equal(first_recent: u32) -> bool {
        first_recent != NEVER
    }

    /// The one to tell as slave, when the master has told its own.
    pub fn answer(&self, status: &MailboxStatus, told: u32) -> u32 {
        match self.current(status) {
            Some(_) => told,
            None if told == NEVER => 1,
            None => NEVER,
        }
    }

    /// What of a mailbox both ends had when it was last settled.
    pub fn left(&self, guid: MailboxGuid) -> Option<Left> {
        let (left, _) = self.known.get(&(self.host, guid))?;
        let number = |at: usize| Some(u32::from_le_bytes(left[at..at + 4].try_into().ok()?));
        Some(Left {
            uid_validity: UidValidity::new(number(0)?)?,
            below: Uid::new(number(4)?)?,
            messages: number(8)?,
        })
    }

    /// Whether there were messages in the mailbox when it was last settled, under this UIDVALIDITY.
    pub fn had_others(&self, status: &MailboxStatus) -> bool {
        let left = self.known.get(&(self.host, status.guid));
        left.is_some_and(|(left, _)| left[..4] == image(status)[..4] && left[8..12] != [0; 4])
    }

    fn current(&self, status: &MailboxStatus) -> Option<u32> {
        let (left, first_recent) = self.known.get(&(self.host, status.guid))?;
        (*left == image(status)).then_some(*first_recent)
    }

    /// Notes that a mailbox is settled, and what the peer said of it.
    pub fn put(&mut self, status: &MailboxStatus, first_recent: u32) {
        let entry = (image(status), first_recent);
        self.is_changed |= self.known.insert((self.host, status.guid), entry) != Some(entry);
    }

    /// Notes what both ends have though more came meanwhile, if less than that was known.
    pub fn put_left(&mut self, guid: MailboxGuid, now: Left) {
        let known = self.left(guid);
        if known.is_some_and(|known| known.uid_validity == now.uid_validity && known.below >= now.below) {
            return;
        }
        // No status has the modseq 0, so that this is no mailbox's present one.
        let left = image_of(now);
        self.is_changed |= self.known.insert((self.host, guid), (left, NEVER)) != Some((left, NEVER));
    }

    /// Forgets how a mailbox was left: its counters will not be equal, so it is opened before they are told.
    pub fn forget(&mut self, guid: MailboxGuid) {
        self.is_changed |= self.known.remove(&(self.host, guid)).is_some();
    }

    /// Writes the note, if it would say something new.
    pub fn write(&self, storage: &mut dyn Storage) {
        if !self.is_changed {
            return;
        }
        let mut note = MAGIC.to_vec();
        for ((host, guid), (left, first_recent)) in &self.known {
            note.extend_from_slice(&host.to_le_bytes());
            note.extend_from_slice(&guid.0);
            note.extend_from_slice(left);
            note.extend_from_slice(&first_recent.to_le_bytes());
        }
        if note.len() > NOTE_BYTES_MAX {
            note.truncate(MAGIC.len());
        }
        if let Err(error) = storage.write_note(NOTE, &note) {
            tracing::debug!("{error}: what is settled is not kept");
        }
    }
}

/// The image of a status of which this alone is known.
fn image_of(left: Left) -> [u8; 36] {
    let mut image = [0; 36];
    image[0..4].copy_from_slice(&left.uid_validity.get().to_le_bytes());
    image[4..8].copy_from_slice(&left.below.get().to_le_bytes());
    image[8..12].copy_from_slice(&left.messages.to_le_bytes());
    image
}

/// All that a status says beside the GUID.
fn image(status: &MailboxStatus) -> [u8; 36] {
    let MailboxStatus { uid_validity, uid_next: below, messages, .. } = *status;
    let mut image = image_of(Left { uid_validity, below, messages });
    image[12..20].copy_from_slice(&status.highest_modseq.get().to_le_bytes());
    image[20..36].copy_from_slice(&status.digest.0.to_le_bytes());
    image
}

fn parse(note: &[u8]) -> BTreeMap<(u64, MailboxGuid), ([u8; 36], u32)> {
    let entries = note.strip_prefix(MAGIC).unwrap_or_default().chunks_exact(ENTRY_BYTES);
    let entry = |entry: &[u8]| {
        let (host, entry) = entry.split_first_chunk::<8>()?;
        let (guid, entry) = entry.split_first_chunk::<16>()?;
        let (left, entry) = entry.split_first_chunk::<36>()?;
        let first_recent = u32::from_le_bytes(entry.try_into().ok()?);
        Some(((u64::from_le_bytes(*host), MailboxGuid(*guid)), (*left, first_recent)))
    };
    entries.filter_map(entry).collect()
}

#[cfg(test)]
mod tests {
    use dsync_model::{Digest, ModSeq};
    use dsync_storage::memory::MemoryStorage;

    use super::*;

    #[test]
    fn counters_are_equal_only_if_nothing_changed_since() {
        let mut storage = MemoryStorage::default();
        let status = MailboxStatus {
            guid: MailboxGuid([1; 16]),
            uid_validity: UidValidity::new(7).unwrap(),
            uid_next: Uid::new(3).unwrap(),
            messages: 2,
            highest_modseq: ModSeq::new(9).unwrap(),
            digest: Digest::default(),
        };
        let changed = MailboxStatus { highest_modseq: ModSeq::new(10).unwrap(), ..status.clone() };
        let mut settled = Settled::read(&mut storage, b"there");
        assert_eq!((settled.ask(&status), settled.answer(&status, 5)), (NEVER, NEVER));
        settled.put(&status, 5);
        settled.write(&mut storage);
        for (host, expected) in [(&b"there"[..], (5, 2)), (b"elsewhere", (NEVER, NEVER))] {
            let settled = Settled::read(&mut storage, host);
            assert_eq!((settled.ask(&status), settled.answer(&status, 2)), expected);
            assert_eq!((settled.ask(&changed), settled.answer(&changed, 2)), (NEVER, NEVER));
            assert_eq!(settled.answer(&changed, NEVER), 1);
            let MailboxStatus { uid_validity, uid_next: below, messages, .. } = status;
            let left = (host == b"there").then_some(Left { uid_validity, below, messages });
            assert_eq!(settled.left(status.guid), left);
        }
        storage.write_note(NOTE, b"dsyncds1 and no more").unwrap();
        assert!(Settled::read(&mut storage, b"there").known.is_empty());
    }
}
