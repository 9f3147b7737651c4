//! `dovecot.mailbox.log`: what was deleted, renamed, subscribed and unsubscribed, and when (storage formats reference, 5.2).
//!
//! Dovecot's own dsync reads it to tell a deletion here from a creation there. It is never locked, and it may be lost.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use dsync_model::{MailboxGuid, NameHash};

use crate::layout::Layout;
use crate::{Result, StorageError, disk};

/// One change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    DeleteMailbox(MailboxGuid),
    DeleteDirectory(NameHash),
    /// With the new name.
    Rename(NameHash),
    Subscribe(NameHash),
    Unsubscribe(NameHash),
}

/// A change, and when it was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record {
    pub change: Change,
    /// Seconds since 1970 UTC.
    pub at: u32,
}

const RECORD_BYTES: usize = 24;
/// From this size on, the log is put aside and a new one begun.
const ROTATE_BYTES: u64 = 4096;
/// What is read of one file: more than Dovecot ever leaves in it.
const READ_BYTES_MAX: u64 = 1 << 20;

impl Record {
    fn to_bytes(self) -> [u8; RECORD_BYTES] {
        let (kind, subject) = match self.change {
            Change::DeleteMailbox(guid) => (1, guid.0),
            Change::DeleteDirectory(name) => (2, name.0),
            Change::Rename(name) => (3, name.0),
            Change::Subscribe(name) => (4, name.0),
            Change::Unsubscribe(name) => (5, name.0),
        };
        let mut bytes = [0; RECORD_BYTES];
        bytes[0] = kind;
        bytes[4..20].copy_from_slice(&subject);
        bytes[20..].copy_from_slice(&self.at.to_be_bytes());
        bytes
    }

    /// `None` for kinds that are not known.
    fn parse(bytes: &[u8; RECORD_BYTES]) -> Option<Record> {
        let (mut subject, mut at) = ([0; 16], [0; 4]);
        subject.copy_from_slice(&bytes[4..20]);
        at.copy_from_slice(&bytes[20..]);
        let change = match bytes[0] {
            1 => Change::DeleteMailbox(MailboxGuid(subject)),
            2 => Change::DeleteDirectory(NameHash(subject)),
            3 => Change::Rename(NameHash(subject)),
            4 => Change::Subscribe(NameHash(subject)),
            5 => Change::Unsubscribe(NameHash(subject)),
            _ => return None,
        };
        Some(Record { change, at: u32::from_be_bytes(at) })
    }
}

/// Lists what the log holds, the oldest first. A log that is missing, or kept in memory, is empty.
pub fn read(layout: &Layout) -> Result<Vec<Record>> {
    let mut records = Vec::new();
    if let Some(path) = layout.mailbox_log_file() {
        // The other order could miss what is put aside meanwhile; this one can read it twice.
        let newer = read_file(&path)?;
        records = read_file(&rotated(&path))?;
        records.retain(|record| !newer.contains(record));
        records.extend(newer);
    }
    Ok(records)
}

fn read_file(path: &Path) -> Result<Vec<Record>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(StorageError::io(path)(error)),
    };
    let mut bytes = Vec::new();
    file.take(READ_BYTES_MAX).read_to_end(&mut bytes).map_err(StorageError::io(path))?;
    // A torn record at the end is left out.
    Ok(bytes.as_chunks::<RECORD_BYTES>().0.iter().filter_map(Record::parse).collect())
}

/// Appends a record; whoever reads the log meanwhile sees all of it or nothing.
pub fn append(layout: &Layout, record: Record) -> Result<()> {
    let Some(path) = layout.mailbox_log_file() else { return Ok(()) };
    if std::fs::metadata(&path).is_ok_and(|meta| meta.len() >= ROTATE_BYTES) {
        disk::rename(&path, &rotated(&path))?;
    }
    disk::append_record(&path, &record.to_bytes())
}

fn rotated(path: &Path) -> PathBuf {
    path.with_extension("log.2")
}

#[cfg(test)]
mod tests {
    use dsync_model::MailboxName;

    use super::*;
    use crate::layout::{Format, Index};

    fn name(text: &str) -> NameHash {
        NameHash::of(&MailboxName::parse(text, '/').unwrap(), '/')
    }

    #[test]
    fn the_examples_of_the_reference() {
        let hex = |text: &str| -> Vec<u8> {
            text.split(' ').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect()
        };
        let guid = MailboxGuid::parse("88a0d736434d046bb75d000087ad316d").unwrap();
        for (change, bytes) in [
            (
                Change::Subscribe(name("A/B")),
                "04 00 00 00 23 9c 02 0a c0 28 1b 5f ee 5e 76 98 ee 3e 97 47 6b 04 4d 43",
            ),
            (
                Change::DeleteMailbox(guid),
                "01 00 00 00 88 a0 d7 36 43 4d 04 6b b7 5d 00 00 87 ad 31 6d 6b 04 4d 43",
            ),
        ] {
            let record = Record { change, at: 0x6b04_4d43 };
            assert_eq!(record.to_bytes().to_vec(), hex(bytes));
            assert_eq!(Record::parse(&record.to_bytes()), Some(record));
        }
    }

    #[test]
    fn records_survive_torn_ends_unknown_kinds_and_rotation() {
        let directory = tempfile::tempdir().unwrap();
        let mut layout = Layout::new(Format::Sdbox, directory.path());
        assert_eq!(read(&layout).unwrap(), []);
        let record = |at| Record { change: Change::Rename(name("A")), at };
        append(&layout, record(1)).unwrap();
        let path = directory.path().join("dovecot.mailbox.log");
        let mut bytes = std::fs::read(&path).unwrap();
        let mut created = record(9).to_bytes();
        created[0] = 6;
        bytes.extend_from_slice(&created);
        bytes.extend_from_slice(&created[..7]);
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(read(&layout).unwrap(), [record(1)]);
        append(&layout, record(2)).unwrap();
        assert_eq!(read(&layout).unwrap(), [record(1), record(2)]);
        (3..300).for_each(|at| append(&layout, record(at)).unwrap());
        assert!(path.metadata().unwrap().len() <= ROTATE_BYTES + RECORD_BYTES as u64);
        let all = read(&layout).unwrap();
        assert_eq!(all, (1..300).map(record).collect::<Vec<_>>());
        layout.index = Index::Memory;
        append(&layout, record(1)).unwrap();
        assert_eq!(read(&layout).unwrap(), []);
    }
}
