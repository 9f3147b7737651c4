//! Digests without GUIDs, by the digests with them: an idle run lists no mailbox to find out the former.
//!
//! Kept in the note `digests`. Losing it costs time, nothing else.

use std::collections::BTreeMap;

use dsync_model::{Digest, MailboxGuid, MailboxStatus};

use crate::Storage;

const NOTE: &str = "digests";
const MAGIC: &[u8; 8] = b"dsyncdh1";
/// Largest note that is read: a million mailboxes.
const NOTE_BYTES_MAX: usize = 64 << 20;
const ENTRY_BYTES: usize = 48;

/// What is known of each mailbox: the digest that its storage tells, and the one without GUIDs. Equal digests of the first kind
/// are of equal mailboxes, so that the second kind is equal too.
type Known = BTreeMap<MailboxGuid, (Digest, Digest)>;

#[derive(Default)]
pub struct Digests {
    known: Known,
    seen: Known,
}

impl Digests {
    /// Reads the note; one that cannot be read is as good as none.
    pub fn read(storage: &mut dyn Storage) -> Digests {
        let note = storage.read_note(NOTE, NOTE_BYTES_MAX).ok().flatten().unwrap_or_default();
        Digests { known: parse(&note), seen: Known::new() }
    }

    pub fn get(&mut self, status: &MailboxStatus) -> Option<Digest> {
        let entry = self.known.get(&status.guid).filter(|(below, _)| *below == status.digest)?;
        self.seen.insert(status.guid, *entry);
        Some(entry.1)
    }

    /// Notes the digest without GUIDs of a mailbox whose storage tells this status.
    pub fn put(&mut self, status: &MailboxStatus, digest: Digest) {
        self.seen.insert(status.guid, (status.digest, digest));
    }

    /// Writes the note, if it would say something new.
    pub fn write(self, storage: &mut dyn Storage) {
        if self.seen == self.known {
            return;
        }
        let mut note = MAGIC.to_vec();
        for (guid, (below, digest)) in &self.seen {
            note.extend_from_slice(&guid.0);
            note.extend_from_slice(&below.0.to_le_bytes());
            note.extend_from_slice(&digest.0.to_le_bytes());
        }
        if let Err(error) = storage.write_note(NOTE, &note) {
            tracing::debug!("{error}: digests are not kept");
        }
    }
}

fn parse(note: &[u8]) -> Known {
    let entries = note.strip_prefix(MAGIC).unwrap_or_default().chunks_exact(ENTRY_BYTES);
    let entry = |entry: &[u8]| {
        let (guid, digests) = entry.split_first_chunk::<16>()?;
        let (below, digest) = digests.split_first_chunk::<16>()?;
        let digest = Digest(u128::from_le_bytes(digest.try_into().ok()?));
        Some((MailboxGuid(*guid), (Digest(u128::from_le_bytes(*below)), digest)))
    };
    entries.filter_map(entry).collect()
}
