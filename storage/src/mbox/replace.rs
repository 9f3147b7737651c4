//! Writes a whole mbox anew; [`journal`](super::journal) puts it in the place of the old content.

use std::fs::{File, Metadata};
use std::os::unix::fs::FileExt;
use std::path::Path;

use jiff::tz::TimeZone;

use super::from_line;
use super::headers;
use super::journal::Journal;
use super::locks::MboxLock;
use super::output::Output;
use super::render::Room;
use super::rewrite::{Plan, Source, Writing, keep_times, read_header};
use super::scan::{Entry, Known, MboxFile};
use crate::{Fsync, Result, StorageError, disk};

/// A new content that is in the file, which is not taken for an mbox yet: what is in the index comes first, as a program that finds a message
/// among older ones which the index lacks gives new UIDs to them.
#[must_use]
pub struct Replaced {
    journal: Journal,
    length: u64,
    before: Metadata,
    has_arrivals: bool,
}

impl Replaced {
    /// Reads the mailbox as it will be.
    pub fn scan(&self, known: &Known) -> Result<MboxFile> {
        MboxFile::scan_to(self.journal.file(), self.journal.path(), self.length, known)
    }

    /// Makes an mbox of the file.
    pub fn end(self, lock: &MboxLock, policy: Fsync) -> Result<()> {
        self.journal.end(lock, policy)?;
        keep_times(lock.file(), lock.path(), &self.before, self.has_arrivals)
    }
}

/// Writes the mailbox beside its file, and then into it.
pub fn replace(
    lock: &mut MboxLock,
    plan: &Plan<'_>,
    before: Metadata,
    writing: &Writing,
) -> Result<Replaced> {
    let journal = Journal::create(lock)?;
    if let Err(error) = write_all(lock, plan, journal.file(), journal.path(), writing) {
        if let Err(error) = disk::remove(journal.path()) {
            tracing::warn!("{error}: leftover cannot be removed");
        }
        return Err(error);
    }
    let length = journal.apply(lock, writing.fsync)?;
    Ok(Replaced { journal, length, before, has_arrivals: !plan.edits.arrivals.is_empty() })
}

fn write_all(
    lock: &mut MboxLock,
    plan: &Plan<'_>,
    file: &File,
    path: &Path,
    writing: &Writing,
) -> Result<()> {
    let source = lock.file().try_clone().map_err(StorageError::io(lock.path()))?;
    let mut output = Output::new(lock, Some((file, path)), 0);
    for (index, (_, item)) in plan.order.iter().enumerate() {
        let (is_first, is_last) = (index == 0, index + 1 == plan.order.len());
        match item {
            Source::Old(place) => write_old(&mut output, plan, &source, path, *place, is_first, is_last)?,
            Source::New(place) => {
                let base = is_first.then_some(plan.base_text.as_str());
                plan.edits.arrivals[*place].write(&mut output, base, &writing.zone, false)?;
            }
        }
    }
    if plan.order.is_empty() {
        output.put(pseudo(&plan.base_text, &writing.zone).as_bytes())?;
    }
    let length = output.finish()?;
    let size = file.metadata().map_err(StorageError::io(path))?.len();
    assert!(size == length, "a new mbox is as long as what was written");
    Ok(())
}

fn write_old(
    output: &mut Output<'_>,
    plan: &Plan<'_>,
    source: &File,
    path: &Path,
    place: usize,
    is_first: bool,
    is_last: bool,
) -> Result<()> {
    let entry = &plan.found.messages[place];
    let base_stays = plan.holds_base(place) == is_first && !(is_first && plan.base_changes());
    if base_stays && !entry.is_stale && !plan.is_changed(place) {
        output.copy(entry.offset..entry.end)?;
        if entry.end == plan.found.size && !is_last && !ends_line(source, path, entry)? {
            output.put(entry.line_end().as_bytes())?;
        }
        return Ok(());
    }
    let end = entry.line_end();
    output.copy(entry.offset..entry.header_start)?;
    if entry.header_start == plan.found.size && !ends_with_lf(source, path, entry.header_start)? {
        output.put(end.as_bytes())?;
    }
    let header = read_header(source, path, entry)?;
    let wanted = plan.wanted(place, is_first);
    if entry.is_cut_header() {
        output.put(&wanted.render(b"", Room::Free, end).unwrap_or_default())?;
        for field in headers::fields(&header).filter(|field| field.meta.is_none()) {
            output.put(field.bytes)?;
        }
    } else {
        output.put(&wanted.render(&header, Room::Free, end).unwrap_or_default())?;
        if entry.has_empty_line() {
            output.put(end.as_bytes())?;
        }
    }
    output.copy(entry.body_start..entry.body_end)?;
    output.put(end.as_bytes())
}

/// Says whether another message can follow this one, the last of the file.
fn ends_line(file: &File, path: &Path, entry: &Entry) -> Result<bool> {
    Ok(!entry.lacks_separator() && ends_with_lf(file, path, entry.end)?)
}

fn ends_with_lf(file: &File, path: &Path, end: u64) -> Result<bool> {
    let mut last = [0];
    let Some(offset) = end.checked_sub(1) else { return Ok(true) };
    file.read_exact_at(&mut last, offset).map_err(StorageError::io(path))?;
    Ok(last == *b"\n")
}

/// The message that keeps the base while there is no other.
fn pseudo(base: &str, zone: &TimeZone) -> String {
    let now = jiff::Timestamp::now();
    let host = crate::lock::host_name();
    let from = from_line::format("MAILER_DAEMON", 0, dsync_model::Timestamp(now.as_second()), zone);
    let date = zone.to_datetime(now).strftime("%a, %d %b %Y %H:%M:%S");
    let minutes = zone.to_offset(now).seconds() / 60;
    let (sign, hours, minutes) =
        (if minutes < 0 { '-' } else { '+' }, minutes.abs() / 60, minutes.abs() % 60);
    format!(
        "{from}\n\
         Date: {date} {sign}{hours:02}{minutes:02}\n\
         From: Mail System Internal Data <MAILER-DAEMON@{host}>\n\
         Subject: DON'T DELETE THIS MESSAGE -- FOLDER INTERNAL DATA\n\
         Message-ID: <{}@{host}>\n\
         X-IMAP: {base}\n\
         Status: RO\n\
         \n\
         This text is part of the internal format of your mail folder, and is not\n\
         a real message.  It is created automatically by the mail system software.\n\
         If deleted, important folder data will be lost, and it will be re-created\n\
         with the data reset to initial values.\n\
         \n",
        now.as_second()
    )
}
