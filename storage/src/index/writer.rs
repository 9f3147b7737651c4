//! Changes an index: takes the log's lock, appends transactions, rotates the log, writes snapshots
//! (storage formats reference, 4.8 to 4.11).

use std::fs::File;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::format::{LOG_HEADER_BYTES, LogHeader};
use super::snapshot::{self, Snapshot};
use super::{Index, Paths, State, Transaction};
use crate::lock::OfdLock;
use crate::{Fsync, Result, StorageError, disk};

/// A log that is longer is rotated.
const ROTATE_BYTES: u64 = 1 << 20;
/// A log that is longer and older than [`ROTATE_AGE`] is rotated.
const ROTATE_BYTES_OLD: u64 = 32 << 10;
const ROTATE_AGE: Duration = Duration::from_secs(300);
/// A log that grew by this since the last snapshot gets a new snapshot.
const SNAPSHOT_BYTES: u64 = 96 << 10;

/// An index whose lock we hold; dropping it lets go.
#[derive(Debug)]
pub struct Writer<'a> {
    index: &'a mut Index,
    lock: OfdLock,
}

impl Index {
    /// Makes an index that does not exist yet: a log with `first` in it. Its directory must be there: one that is not may be a mailbox
    /// that was renamed just now.
    pub fn create(paths: Paths, uid_validity: u32, next_uid: u32, first: Transaction) -> Result<Index> {
        let index_id = now();
        let mut state = Transaction::new();
        state.header(24, &uid_validity.to_le_bytes());
        state.header(28, &next_uid.to_le_bytes());
        let mut bytes = LogHeader::first(index_id).to_bytes().to_vec();
        bytes.extend_from_slice(&first.into_bytes());
        bytes.extend_from_slice(&state.into_bytes());
        if disk::pretends() {
            let index = Index::pretended(paths, &bytes)?;
            disk::keep_pretended(&index.paths.log(), &index.file)?;
            return Ok(index);
        }
        put_log(&paths, &bytes)?;
        Index::open_made(paths)
    }

    /// The same; if somebody was faster, theirs is opened.
    pub fn create_or_open(
        paths: Paths,
        uid_validity: u32,
        next_uid: u32,
        first: Transaction,
    ) -> Result<Index> {
        match Index::create(paths.clone(), uid_validity, next_uid, first) {
            Err(StorageError::Io { source, .. }) if source.kind() == ErrorKind::AlreadyExists => {
                Index::open_made(paths)
            }
            other => other,
        }
    }

    fn open_made(paths: Paths) -> Result<Index> {
        let what = "index vanished while it was made";
        Index::open(paths.clone())?.ok_or(StorageError::Corrupt { path: paths.log(), line: 0, what })
    }

    /// Takes the lock, waiting at most `wait`, and brings the state up to date. What nobody finished writing at the
    /// end of the log is cut off: left alone, it costs the mailbox.
    pub fn lock(&mut self, wait: Duration) -> Result<Writer<'_>> {
        loop {
            let log = self.paths.log();
            let lock = OfdLock::take(&self.file, &log, wait)?;
            let open = rustix::fs::fstat(&self.file).map_err(|error| StorageError::io(&log)(error.into()))?;
            let current = Index::stamp(&self.paths)
                .is_some_and(|now| (now.device, now.inode) == (open.st_dev, open.st_ino));
            self.refresh()?;
            if !current && !disk::pretends() {
                drop(lock);
                continue;
            }
            if open.st_size as u64 > self.offset {
                disk::truncate(&self.file, self.offset, &log)?;
            }
            return Ok(Writer { index: self, lock });
        }
    }
}

impl Writer<'_> {
    pub fn index(&self) -> &Index {
        self.index
    }

    pub fn state(&self) -> &State {
        &self.index.state
    }

    /// The position at which the next transaction will begin.
    pub fn offset(&self) -> u64 {
        self.index.offset
    }

    /// Appends a transaction, forced to the disk where the policy says so.
    pub fn append(&mut self, transaction: Transaction, policy: Fsync) -> Result<()> {
        if transaction.is_empty() {
            return Ok(());
        }
        let (log, bytes) = (self.index.paths.log(), transaction.into_bytes());
        let before = self.index.offset;
        if before + bytes.len() as u64 > u64::from(u32::MAX) {
            return Err(StorageError::Impossible(format!("{}: log is full", log.display())));
        }
        let written = disk::write(&self.index.file, &bytes, &log);
        let written = written.and_then(|()| disk::sync_file(&self.index.file, &log, policy));
        if let Err(error) = written {
            // A torn record would destroy the log for whoever locks it next.
            if let Err(again) = disk::truncate(&self.index.file, before, &log) {
                tracing::error!("{again}: cannot be cut off after a failed write");
            }
            return Err(error);
        }
        self.index.refresh()?;
        if self.index.offset != before + bytes.len() as u64 {
            let what = "what was just written cannot be read back";
            return Err(StorageError::Corrupt { path: log, line: 0, what });
        }
        Ok(())
    }

    /// Keeps the log short and the snapshot young, where it is time for that.
    pub fn tidy(&mut self, policy: Fsync) -> Result<()> {
        let index = &*self.index;
        let created = UNIX_EPOCH + Duration::from_secs(index.header.created.into());
        let old = SystemTime::now().duration_since(created).is_ok_and(|age| age > ROTATE_AGE);
        let long = index.offset > ROTATE_BYTES || (old && index.offset > ROTATE_BYTES_OLD);
        // What a log asks for is looked for in it, not in the one before.
        if long && !index.state.has_requests() {
            self.rotate(policy)
        } else if index.offset > index.snapshot_offset + SNAPSHOT_BYTES {
            self.snapshot(policy)
        } else {
            Ok(())
        }
    }

    /// Replaces the snapshot by one that holds everything.
    pub fn snapshot(&mut self, policy: Fsync) -> Result<()> {
        let index = &mut *self.index;
        let rotated = index.state.header.log2_rotate_time;
        write_snapshot(
            &index.paths,
            &index.state,
            index.header.sequence,
            index.offset as u32,
            rotated,
            policy,
        )?;
        index.snapshot_offset = index.offset;
        Ok(())
    }

    /// Begins a new log; the present one becomes `.log.2`.
    pub fn rotate(&mut self, policy: Fsync) -> Result<()> {
        let state = self.index.state.clone();
        self.rotate_to(state, policy)
    }

    /// Begins a new index in place of this one: for what no log can tell. `content` is all that it is to hold. Sessions that have the old one open are told
    /// that it is gone.
    pub fn rebuild(&mut self, content: Transaction, policy: Fsync) -> Result<()> {
        let index = &mut *self.index;
        let paths = index.paths.clone();
        let header = LogHeader {
            sequence: following(index)?,
            // The same identity: a log of it that has no predecessor starts the index anew, and an older snapshot beside it counts
            // for nothing. With another identity, Dovecot would call that snapshot corrupted after a crash.
            created: now(),
            ..LogHeader::first(index.header.index_id)
        };
        let mut bytes = header.to_bytes().to_vec();
        bytes.extend_from_slice(&content.into_bytes());
        let fresh = new_log(&paths);
        disk::remove(&fresh)?;
        let mut file = disk::create_alike(&fresh)?;
        disk::write(&mut file, &bytes, &fresh)?;
        disk::sync_file(&file, &fresh, policy)?;
        let lock = OfdLock::take(&file, &fresh, Duration::ZERO)?;
        disk::rename(&fresh, &paths.log())?;
        disk::remove(&paths.snapshot())?;
        disk::remove(&paths.log2())?;
        disk::remove(&paths.beside(".cache"))?;
        disk::sync_directory(&paths.directory, policy)?;
        let what = "index vanished while it was built anew";
        let again = Index::open(paths.clone())?;
        *index = again.ok_or(StorageError::Corrupt { path: paths.log(), line: 0, what })?;
        self.lock = lock;
        Ok(())
    }

    /// Begins a new log, and a snapshot that holds this state: the present one, with modseqs that no log can tell.
    pub fn rotate_to(&mut self, state: State, policy: Fsync) -> Result<()> {
        let index = &mut *self.index;
        let paths = index.paths.clone();
        let header = LogHeader {
            sequence: following(index)?,
            previous_sequence: index.header.sequence,
            previous_offset: index.offset as u32,
            created: now(),
            initial_modseq: state.highest_modseq(),
            ..LogHeader::first(index.header.index_id)
        };
        let fresh = new_log(&paths);
        disk::remove(&fresh)?;
        let mut file = disk::create_alike(&fresh)?;
        disk::write(&mut file, &header.to_bytes(), &fresh)?;
        disk::sync_file(&file, &fresh, policy)?;
        let lock = OfdLock::take(&file, &fresh, Duration::ZERO)?;
        disk::remove(&paths.log2())?;
        disk::hard_link(&paths.log(), &paths.log2())?;
        disk::rename(&fresh, &paths.log())?;
        write_snapshot(&paths, &state, header.sequence, LOG_HEADER_BYTES as u32, now(), policy)?;
        disk::sync_directory(&paths.directory, policy)?;
        let what = "index vanished while its log was rotated";
        let again = Index::open(paths.clone())?;
        *index = again.ok_or(StorageError::Corrupt { path: paths.log(), line: 0, what })?;
        self.lock = lock;
        Ok(())
    }
}

fn write_snapshot(
    paths: &Paths,
    state: &State,
    sequence: u32,
    head: u32,
    log2_rotate_time: u32,
    policy: Fsync,
) -> Result<()> {
    let bytes = snapshot::encode(state, sequence, head, log2_rotate_time);
    disk::replace(&paths.snapshot(), &paths.beside(".tmp"), &bytes, policy)
}

/// The sequence number of the next log.
fn following(index: &Index) -> Result<u32> {
    let next = index.header.sequence.checked_add(1).filter(|next| *next < u32::MAX);
    let what = "log has the last sequence number that there is";
    next.ok_or(StorageError::Corrupt { path: index.paths.log(), line: 0, what })
}

/// A log for a snapshot that has lost its own.
pub(super) fn make_log(paths: &Paths, snapshot: &Snapshot) -> Result<()> {
    tracing::warn!("{} is gone; changes that only it held are lost", paths.log().display());
    let header = LogHeader {
        sequence: snapshot.log_sequence.saturating_add(1),
        previous_sequence: snapshot.log_sequence,
        previous_offset: snapshot.log_head,
        created: now(),
        initial_modseq: snapshot.modseq.map_or(1, |(modseq, ..)| modseq.max(1)),
        ..LogHeader::first(snapshot.state.header.index_id)
    };
    put_log(paths, &header.to_bytes())
}

/// Makes a log that must not be there yet.
fn put_log(paths: &Paths, bytes: &[u8]) -> Result<()> {
    let fresh = new_log(paths);
    disk::remove(&fresh)?;
    let mut file: File = disk::create_alike(&fresh)?;
    disk::write(&mut file, bytes, &fresh)?;
    disk::sync_file(&file, &fresh, Fsync::Always)?;
    if disk::pretends() {
        return disk::keep_pretended(&paths.log(), &file);
    }
    disk::rename_new(&fresh, &paths.log())
}

/// The name under which a new log is written. Not Dovecot's `.log.newlock`: that is a lock too, and left behind by a crash it would keep
/// Dovecot waiting for three minutes.
fn new_log(paths: &Paths) -> PathBuf {
    paths.beside(".log.dsync")
}

pub(super) fn now() -> u32 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |now| now.as_secs() as u32)
}
