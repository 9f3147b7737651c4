//! What was found out about each mailbox, for as long as its files stay as they are: an idle run reads no mailbox.
//!
//! Kept in the note `status`. Losing it costs time, nothing else.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dsync_model::{Digest, MailboxGuid, MailboxStatus, ModSeq, Timestamp, Uid, UidValidity};
use xxhash_rust::xxh3::xxh3_128;

use crate::account::Account;
use crate::disk;

const NOTE: &str = "status";
const MAGIC: &[u8; 8] = b"dsyncst1";
/// Largest note that is read: a million mailboxes.
const NOTE_BYTES_MAX: usize = 256 << 20;
/// A file that changed within this time may change again unseen: its clock ticks that slowly.
const SETTLED: Duration = Duration::from_secs(2);
/// Bytes of an entry before its path.
const ENTRY_BYTES: usize = 16 + 16 + 4 + 4 + 4 + 8 + 16 + 2;

/// Identity, size and times of the files that make up a mailbox, as one number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fingerprint(u128);

impl Fingerprint {
    /// `None`: some of the files changed only just now.
    pub fn of<'a>(files: impl IntoIterator<Item = &'a Path>) -> Option<Fingerprint> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
        let settled = i64::try_from(now.saturating_sub(SETTLED).as_secs()).ok()?;
        let mut bytes = Vec::with_capacity(40 * 5);
        for file in files {
            let Ok(meta) = std::fs::metadata(file) else {
                bytes.push(0);
                continue;
            };
            if meta.mtime() >= settled || meta.ctime() >= settled {
                return None;
            }
            for number in [meta.dev(), meta.ino(), meta.size(), meta.mtime() as u64, meta.mtime_nsec() as u64]
            {
                bytes.extend_from_slice(&number.to_le_bytes());
            }
        }
        Some(Fingerprint(xxh3_128(&bytes)))
    }

    /// The same for a log, which is only added to or replaced: its size tells of a change, however short ago that was.
    pub fn of_log(log: &Path) -> Option<Fingerprint> {
        let meta = std::fs::metadata(log).ok()?;
        let numbers = [meta.dev(), meta.ino(), meta.size(), meta.mtime() as u64, meta.mtime_nsec() as u64];
        Some(Fingerprint(xxh3_128(&numbers.map(u64::to_le_bytes).concat())))
    }
}

/// When the last of these files or directories changed, in whole seconds; `None` if none is there.
pub fn last_change<'a>(files: impl IntoIterator<Item = &'a Path>) -> Option<Timestamp> {
    let changed = files.into_iter().filter_map(|file| std::fs::metadata(file).ok());
    changed.map(|meta| Timestamp(meta.mtime())).max()
}

/// Known statuses by the path of the mailbox.
#[derive(Debug, Default)]
pub struct StatusCache {
    known: BTreeMap<PathBuf, (Fingerprint, MailboxStatus)>,
    seen: BTreeMap<PathBuf, (Fingerprint, MailboxStatus)>,
}

impl StatusCache {
    /// Reads the note; one that cannot be read is as good as none.
    pub fn read(account: &Account) -> StatusCache {
        let note = account.read_note(NOTE, NOTE_BYTES_MAX).ok().flatten().unwrap_or_default();
        StatusCache { known: parse(&note).unwrap_or_default(), seen: BTreeMap::new() }
    }

    /// What is known of a mailbox that looks so.
    pub fn get(&mut self, mailbox: &Path, now: Option<Fingerprint>) -> Option<MailboxStatus> {
        let found = self.seen.get(mailbox).or_else(|| self.known.get(mailbox));
        let (fingerprint, status) = found.filter(|(known, _)| Some(*known) == now)?.clone();
        self.seen.insert(mailbox.to_owned(), (fingerprint, status.clone()));
        Some(status)
    }

    /// Notes what was found out about a mailbox that looked so before and after.
    pub fn put(&mut self, mailbox: &Path, fingerprint: Option<Fingerprint>, status: &MailboxStatus) {
        if let Some(fingerprint) = fingerprint {
            self.seen.insert(mailbox.to_owned(), (fingerprint, status.clone()));
        }
    }

    /// Writes the note, if it would say something new.
    pub fn write(&mut self, account: &Account) {
        if self.seen == self.known {
            return;
        }
        let mut bytes = MAGIC.to_vec();
        for (path, (fingerprint, status)) in &self.seen {
            put(&mut bytes, path, *fingerprint, status);
        }
        // A cache is not worth waiting for the disk, nor failing for.
        let account = Account { fsync: disk::Fsync::Never, ..account.clone() };
        if let Err(error) = account.write_note(NOTE, &bytes) {
            tracing::debug!("{error}: statuses are not kept");
        }
        self.known = self.seen.clone();
    }
}

fn put(bytes: &mut Vec<u8>, path: &Path, fingerprint: Fingerprint, status: &MailboxStatus) {
    let path = path.as_os_str().as_encoded_bytes();
    let Ok(length) = u16::try_from(path.len()) else { return };
    bytes.extend_from_slice(&fingerprint.0.to_le_bytes());
    bytes.extend_from_slice(&status.guid.0);
    for number in [status.uid_validity.get(), status.uid_next.get(), status.messages] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    bytes.extend_from_slice(&status.highest_modseq.get().to_le_bytes());
    bytes.extend_from_slice(&status.digest.0.to_le_bytes());
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(path);
}

fn parse(note: &[u8]) -> Option<BTreeMap<PathBuf, (Fingerprint, MailboxStatus)>> {
    use std::os::unix::ffi::OsStringExt;
    let mut rest = note.strip_prefix(MAGIC)?;
    let mut known = BTreeMap::new();
    while let Some((entry, after)) = rest.split_at_checked(ENTRY_BYTES) {
        let u32_at = |at: usize| Some(u32::from_le_bytes(entry.get(at..at + 4)?.try_into().ok()?));
        let u128_at = |at: usize| Some(u128::from_le_bytes(entry.get(at..at + 16)?.try_into().ok()?));
        let length = usize::from(u16::from_le_bytes(entry[ENTRY_BYTES - 2..].try_into().ok()?));
        let path = after.get(..length)?;
        let status = MailboxStatus {
            guid: MailboxGuid(entry[16..32].try_into().ok()?),
            uid_validity: UidValidity::new(u32_at(32)?)?,
            uid_next: Uid::new(u32_at(36)?)?,
            messages: u32_at(40)?,
            highest_modseq: ModSeq::new(u64::from_le_bytes(entry[44..52].try_into().ok()?))?,
            digest: Digest(u128_at(52)?),
        };
        let path = PathBuf::from(std::ffi::OsString::from_vec(path.to_vec()));
        known.insert(path, (Fingerprint(u128_at(0)?), status));
        rest = &after[length..];
    }
    rest.is_empty().then_some(known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_come_back_and_damage_is_no_status() {
        let status = MailboxStatus {
            guid: MailboxGuid([7; 16]),
            uid_validity: UidValidity::new(3).unwrap(),
            uid_next: Uid::new(9).unwrap(),
            messages: 5,
            highest_modseq: ModSeq::new(77).unwrap(),
            digest: Digest(u128::MAX - 1),
        };
        let mut bytes = MAGIC.to_vec();
        put(&mut bytes, Path::new("/a/b"), Fingerprint(12), &status);
        put(&mut bytes, Path::new("/a"), Fingerprint(13), &status);
        let known = parse(&bytes).unwrap();
        assert_eq!(known.len(), 2);
        assert_eq!(known[Path::new("/a/b")], (Fingerprint(12), status));
        for cut in 9..bytes.len() {
            assert!(parse(&bytes[..cut]).is_none_or(|known| known.len() == 1), "cut at {cut}");
        }
    }

    #[test]
    fn what_just_changed_has_no_fingerprint() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x");
        std::fs::write(&file, "").unwrap();
        assert_eq!(Fingerprint::of([file.as_path()]), None);
        assert!(Fingerprint::of([dir.path().join("missing").as_path()]).is_some());
    }
}
