//! Dovecot's index of a mailbox: `dovecot.index`, `dovecot.index.log` and `dovecot.index.log.2`
//! (storage formats reference, section 4).
//!
//! Reading takes no lock; see [`writer`] for changes and [`history`] for what became of messages. What the extensions of a
//! format mean is not known here.

mod attributes;
pub mod edit;
pub mod follow;
pub mod format;
pub mod history;
mod import;
mod records;
mod snapshot;
pub mod state;
pub mod transaction;
mod writer;

use std::borrow::Cow;
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use state::{Extension, State};
pub use transaction::{Transaction, ranges};
pub use writer::Writer;

pub use edit::{Appended, Edit, Flagged, RecordData};
pub use import::Import;

use crate::{Result, StorageError, disk, halfway};
use format::{LogHeader, Records};

/// Largest file of an index that is read, in bytes: that of a mailbox of some 50 million messages.
const FILE_BYTES_MAX: u64 = 2 << 30;
/// Times that the files are read again because somebody replaced one in between.
const TRIES: u32 = 5;

/// Where the files of one index lie.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Paths {
    pub directory: PathBuf,
    /// `dovecot.index`, or that of the map of mdbox or of the list of mailboxes.
    pub prefix: Cow<'static, str>,
}

impl Paths {
    /// The index of a mailbox.
    pub fn mailbox(directory: &Path) -> Paths {
        Paths { directory: directory.to_owned(), prefix: Cow::Borrowed("dovecot.index") }
    }

    pub fn snapshot(&self) -> PathBuf {
        self.directory.join(&*self.prefix)
    }

    pub fn log(&self) -> PathBuf {
        self.beside(".log")
    }

    pub fn log2(&self) -> PathBuf {
        self.beside(".log.2")
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        self.directory.join(format!("{}{suffix}", self.prefix))
    }
}

/// Tells one content of a log from another without reading it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stamp {
    pub device: u64,
    pub inode: u64,
    pub size: u64,
}

/// One index, as it stood when it was last looked at.
#[derive(Debug)]
pub struct Index {
    paths: Paths,
    state: State,
    file: File,
    header: LogHeader,
    /// End of the last record that was applied.
    offset: u64,
    /// The position in this log up to which the snapshot goes.
    snapshot_offset: u64,
}

impl Index {
    /// Reads the index; `None` if there is none.
    ///
    /// A log that is gone while the snapshot is there is made anew, as Dovecot does.
    pub fn open(paths: Paths) -> Result<Option<Index>> {
        let mut last =
            StorageError::Corrupt { path: paths.log(), line: 0, what: "log does not fit the snapshot" };
        for _ in 0..TRIES {
            let Some((file, bytes)) = read_log(&paths.log())? else {
                match read_file(&paths.snapshot())? {
                    None => return Ok(None),
                    Some(bytes) => {
                        writer::make_log(&paths, &decode_snapshot(&paths, &bytes)?)?;
                        continue;
                    }
                }
            };
            match load(&paths, &bytes) {
                Ok(Loaded { state, header, offset, snapshot_offset }) => {
                    return Ok(Some(Index { paths, state, file, header, offset, snapshot_offset }));
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// An index that only this process has: what `open` would give if these bytes were its log.
    fn pretended(paths: Paths, bytes: &[u8]) -> Result<Index> {
        let file = disk::memory_file(bytes, &paths.log())?;
        let Loaded { state, header, offset, snapshot_offset } = load(&paths, bytes)?;
        Ok(Index { paths, state, file, header, offset, snapshot_offset })
    }

    pub fn paths(&self) -> &Paths {
        &self.paths
    }

    pub fn state(&self) -> &State {
        &self.state
    }

    /// Position in the log: its sequence number, and the end of what was applied.
    pub fn position(&self) -> (u32, u64) {
        (self.header.sequence, self.offset)
    }

    /// Waits at most so long for an index that is missing, while whoever makes or renames the mailbox is likely to be at it.
    pub fn wait_for(paths: &Paths, at_most: Duration, is_likely: impl Fn() -> bool) {
        halfway::wait(at_most, || Index::stamp(paths).is_some(), is_likely);
    }

    /// Identity and size of the log as the disk has it.
    pub fn stamp(paths: &Paths) -> Option<Stamp> {
        let meta = std::fs::metadata(paths.log()).ok()?;
        Some(Stamp { device: meta.dev(), inode: meta.ino(), size: meta.len() })
    }

    /// Says whether the log holds requests that, by the last tail offset, nobody has carried out.
    pub fn has_requests(&self) -> Result<bool> {
        let start = usize::from(self.header.header_bytes);
        let mut tail =
            if self.snapshot_offset > start as u64 { self.state.header.tail_offset } else { start as u32 };
        if u64::from(self.state.header.tail_offset) == self.offset {
            return Ok(false);
        }
        let log = self.paths.log();
        let mut bytes = vec![0; self.offset.min(FILE_BYTES_MAX) as usize];
        let length = read_at(&self.file, &mut bytes, 0).map_err(StorageError::io(&log))?;
        let mut last_request = 0;
        for record in Records::new(&bytes[..length], start) {
            if !record.external && record.kind != format::kind::BOUNDARY {
                last_request = record.end;
            }
            if record.kind == format::kind::HEADER_UPDATE
                && let Some([64, 0, 4, 0, value @ ..]) = record.payload.first_chunk::<8>()
            {
                tail = u32::from_le_bytes(*value);
            }
        }
        Ok(last_request > tail as usize)
    }

    /// Takes in what others wrote since. `true` if there was something.
    pub fn refresh(&mut self) -> Result<bool> {
        let log = self.paths.log();
        let open = self.file.metadata().map_err(StorageError::io(&log))?;
        let now = Index::stamp(&self.paths);
        // What is only pretended has no name that could have come to mean another file.
        if !disk::pretends() && now.is_none_or(|now| (now.device, now.inode) != (open.dev(), open.ino())) {
            let again = Index::open(self.paths.clone())?;
            *self = again.ok_or_else(|| StorageError::io(&log)(rustix::io::Errno::NOENT.into()))?;
            return Ok(true);
        }
        if open.len() < self.offset {
            // Whoever cut it off found a transaction unfinished that we took for whole, or the log is damaged.
            let again = Index::open(self.paths.clone())?;
            *self = again.ok_or_else(|| StorageError::io(&log)(rustix::io::Errno::NOENT.into()))?;
            return Ok(true);
        }
        if open.len() == self.offset {
            return Ok(false);
        }
        let mut tail = vec![0; (open.len() - self.offset).min(FILE_BYTES_MAX) as usize];
        let read = read_at(&self.file, &mut tail, self.offset).map_err(StorageError::io(&log))?;
        let end = apply(&mut self.state, self.header.minor, &tail[..read], 0)
            .map_err(|what| StorageError::Corrupt { path: log, line: 0, what })?;
        self.offset += end as u64;
        Ok(end > 0)
    }
}

fn read_at(file: &File, buffer: &mut [u8], from: u64) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], from + filled as u64)? {
            0 => break,
            bytes => filled += bytes,
        }
    }
    Ok(filled)
}

/// Applies all whole records from `from` on; gives where the last of them ends.
fn apply(
    state: &mut State,
    minor: u8,
    bytes: &[u8],
    from: usize,
) -> std::result::Result<usize, &'static str> {
    let mut records = Records::new(bytes, from);
    for record in records.by_ref() {
        state.apply(minor, &record)?;
    }
    Ok(records.position())
}

/// The value of the modseq counter at `to`, counted from a position where it is known.
fn count(header: &LogHeader, bytes: &[u8], (modseq, from): (u64, usize), to: usize) -> u64 {
    let records = Records::new(bytes, from);
    let before = records.take_while(|record| record.end <= to);
    before.fold(modseq, |modseq, record| State::count(modseq, header.minor, &record))
}

struct Loaded {
    state: State,
    header: LogHeader,
    offset: u64,
    snapshot_offset: u64,
}

/// Puts snapshot and logs together (storage formats reference, 4.5).
fn load(paths: &Paths, log: &[u8]) -> Result<Loaded> {
    let corrupt = |path: PathBuf| move |what| StorageError::Corrupt { path, line: 0, what };
    let header = LogHeader::parse(log).map_err(corrupt(paths.log()))?;
    if header.index_id == 0 {
        return Err(corrupt(paths.log())("index was declared broken"));
    }
    let snapshot = match read_file(&paths.snapshot())? {
        None => None,
        Some(bytes) => match decode_snapshot(paths, &bytes) {
            // A log that starts the index needs no snapshot.
            Err(_) if header.previous_sequence == 0 => None,
            other => Some(other?),
        },
    };
    let snapshot = snapshot.filter(|snapshot| snapshot.state.header.index_id == header.index_id);
    let start = usize::from(header.header_bytes);
    let initial = (header.initial_modseq.max(1), start);
    let (mut state, from) = match snapshot {
        Some(snapshot) if snapshot.log_sequence == header.sequence => {
            let head = (snapshot.log_head as usize).max(start);
            if head > log.len() {
                return Err(corrupt(paths.snapshot())("snapshot is ahead of the log"));
            }
            let known = snapshot.modseq.filter(|(_, sequence, offset)| {
                *sequence == header.sequence && (start..=head).contains(&(*offset as usize))
            });
            let known = known.map_or(initial, |(modseq, _, offset)| (modseq, offset as usize));
            let mut state = snapshot.state;
            state.modseq = count(&header, log, known, head);
            // What lies between is in the flags of the snapshot, and still to be carried out.
            let tail = state.header.tail_offset as usize;
            if tail < head {
                let asked = Records::new(log, start).take_while(|record| record.end <= head);
                let asked = asked.filter(|record| record.end > tail && !record.external);
                asked.for_each(|record| state.request(&record));
            }
            (state, head)
        }
        Some(snapshot)
            if (snapshot.log_sequence, snapshot.log_head)
                == (header.previous_sequence, header.previous_offset) =>
        {
            let mut state = snapshot.state;
            state.modseq = initial.0;
            state.header.tail_offset = start as u32;
            (state, start)
        }
        _ if header.previous_sequence == 0 => (State::empty(header.index_id, initial.0), start),
        snapshot => {
            let Some((_, older)) = read_log(&paths.log2())? else {
                return Err(corrupt(paths.log())(
                    "the log before it is gone, and the snapshot does not reach",
                ));
            };
            let mut state = load_older(paths, &header, &older, snapshot)?;
            state.modseq = state.modseq.max(initial.0);
            state.header.tail_offset = start as u32;
            (state, start)
        }
    };
    let offset = apply(&mut state, header.minor, log, from).map_err(corrupt(paths.log()))?;
    state.header.index_id = header.index_id;
    Ok(Loaded { state, header, offset: offset as u64, snapshot_offset: from as u64 })
}

/// The state at the end of `.log.2`.
fn load_older(
    paths: &Paths,
    newer: &LogHeader,
    log: &[u8],
    snapshot: Option<snapshot::Snapshot>,
) -> Result<State> {
    let corrupt = |path: PathBuf| move |what| StorageError::Corrupt { path, line: 0, what };
    let header = LogHeader::parse(log).map_err(corrupt(paths.log2()))?;
    if header.sequence != newer.previous_sequence || header.index_id != newer.index_id {
        return Err(corrupt(paths.log())("logs do not follow one another"));
    }
    let start = usize::from(header.header_bytes);
    let initial = (header.initial_modseq.max(1), start);
    let (mut state, from) = match snapshot {
        Some(snapshot) if snapshot.log_sequence == header.sequence => {
            let head = (snapshot.log_head as usize).max(start);
            let known = snapshot.modseq.filter(|(_, sequence, offset)| {
                *sequence == header.sequence && (start..=head).contains(&(*offset as usize))
            });
            let known = known.map_or(initial, |(modseq, _, offset)| (modseq, offset as usize));
            let mut state = snapshot.state;
            state.modseq = count(&header, log, known, head);
            (state, head)
        }
        _ if header.previous_sequence == 0 => (State::empty(header.index_id, initial.0), start),
        _ => return Err(corrupt(paths.log2())("logs between snapshot and log are gone")),
    };
    apply(&mut state, header.minor, log, from).map_err(corrupt(paths.log2()))?;
    Ok(state)
}

fn decode_snapshot(paths: &Paths, bytes: &[u8]) -> Result<snapshot::Snapshot> {
    snapshot::decode(bytes).map_err(|what| StorageError::Corrupt { path: paths.snapshot(), line: 0, what })
}

fn read_log(path: &Path) -> Result<Option<(File, Vec<u8>)>> {
    let open = |write| {
        let flags = rustix::fs::OFlags::NOFOLLOW.bits() as i32;
        OpenOptions::new().read(true).append(write).custom_flags(flags).open(path)
    };
    // For writing, so that the lock can be taken on it; a log that may only be read can still be read.
    let opened = match open(true) {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => open(false),
        Err(error) if rustix::io::Errno::from_io_error(&error) == Some(rustix::io::Errno::ROFS) => {
            open(false)
        }
        other => other,
    };
    match opened {
        Ok(file) => {
            let bytes = read_whole(&file, path)?;
            let file = if disk::pretends() { disk::memory_file(&bytes, path)? } else { file };
            Ok(Some((file, bytes)))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => match disk::pretended(path)? {
            Some(bytes) => Ok(Some((disk::memory_file(&bytes, path)?, bytes))),
            None => Ok(None),
        },
        Err(error) => Err(StorageError::io(path)(error)),
    }
}

fn read_file(path: &Path) -> Result<Option<Vec<u8>>> {
    match File::open(path) {
        Ok(file) => read_whole(&file, path).map(Some),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StorageError::io(path)(error)),
    }
}

fn read_whole(file: &File, path: &Path) -> Result<Vec<u8>> {
    let meta = file.metadata().map_err(StorageError::io(path))?;
    if !meta.is_file() || meta.len() > FILE_BYTES_MAX {
        let what = "file is larger than any index, or no regular file";
        return Err(StorageError::Corrupt { path: path.to_owned(), line: 0, what });
    }
    let mut bytes = Vec::with_capacity(meta.len() as usize + 1);
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(StorageError::io(path))?;
    Ok(bytes)
}
