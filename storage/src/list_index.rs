//! `dovecot.list.index`: what Dovecot knows of all mailboxes (storage formats reference, 5.1).
//!
//! With LAYOUT=index it has the names, and nothing else has: they are only read, such mailboxes are made and renamed by
//! Dovecot. With other layouts it is a cache, which is never made here; after a change of the tree, what it tells is made invalid.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use dsync_model::{MailboxGuid, MailboxName};

use crate::index::format::u32_at;
use crate::index::{Extension, Index, Paths, State, Transaction};
use crate::layout::{Found, Kind, Layout};
use crate::lock::patience;
use crate::{Fsync, MailboxProblem, Result, StorageError};

const PREFIX: &str = "dovecot.list.index";
const LIST: &str = "list";
/// What the files of a mailbox looked like when its numbers were noted. Zeros: the numbers are worth nothing.
const SEEN: &str = "index sync";
/// Bytes of a record: number of the name, UID of the node above, GUID, UIDVALIDITY.
const RECORD_BYTES: usize = 28;
/// Those that tell which node it is.
const NODE_BYTES: usize = 8;
/// The node has only nodes below it, or may not hold mail.
const NO_MAILBOX: u8 = 0x04 | 0x10;
/// More levels than any name has: a loop.
const DEPTH_MAX: usize = 100;

/// What the list index says.
#[derive(Default, Debug)]
pub struct Names {
    pub mailboxes: BTreeMap<MailboxName, MailboxGuid>,
    /// Names without mail.
    pub directories: BTreeSet<MailboxName>,
    /// Nodes whose name cannot be told.
    pub unreadable: Vec<String>,
}

/// Reads all names.
pub fn names(layout: &Layout) -> Result<Names> {
    let file = layout.list_index_file().unwrap_or_default();
    if file.file_name() != Some(PREFIX.as_ref()) {
        let what = format!("{}: with LAYOUT=index, the list index must be called {PREFIX}", file.display());
        return Err(StorageError::Location(what));
    }
    let paths = paths(&file);
    let Some(index) = Index::open(paths)? else { return Ok(Names::default()) };
    let state = index.state();
    let parts = parts_by_number(state);
    let mut names = Names::default();
    for row in 0..state.uids.len() {
        let name = name_of(state, row, &parts);
        let readable = name
            .as_ref()
            .and_then(|name| layout.name_of_parts(&name.iter().map(String::as_str).collect::<Vec<_>>()));
        let Some(readable) = readable else {
            names
                .unreadable
                .push(name.map_or_else(|| format!("node {}", state.uids[row]), |name| name.join("/")));
            continue;
        };
        let guid = record(state, row).map(|(.., guid)| guid).filter(|guid| guid.0 != [0; 16]);
        match guid.filter(|_| state.flags[row] & NO_MAILBOX == 0) {
            Some(guid) => drop(names.mailboxes.insert(readable, guid)),
            None => drop(names.directories.insert(readable)),
        }
    }
    Ok(names)
}

/// The same in the form in which other layouts list: INBOX left out.
pub fn list(layout: &Layout) -> Result<(Vec<Found>, Vec<MailboxProblem>)> {
    let names = names(layout)?;
    let mailboxes = names.mailboxes.into_keys().filter(|name| !layout.is_the_inbox(name));
    let mailboxes = mailboxes.map(|name| Found { name, mailbox: true });
    let directories = names.directories.into_iter().map(|name| Found { name, mailbox: false });
    let problem = |mailbox: String| {
        let error = StorageError::Impossible(format!("mailbox name {mailbox:?} cannot be read"));
        MailboxProblem { mailbox, error }
    };
    Ok((mailboxes.chain(directories).collect(), names.unreadable.into_iter().map(problem).collect()))
}

/// Makes what Dovecot has noted of these names invalid, and bids every session look at the disk at its next LIST.
pub fn forget(layout: &Layout, names: &[&MailboxName], policy: Fsync) -> Result<()> {
    let Some(file) = layout.list_index_file().filter(|_| layout.kind != Kind::Index) else { return Ok(()) };
    let paths = paths(&file);
    if Index::stamp(&paths).is_none() {
        return Ok(());
    }
    let Some(mut index) = Index::open(paths)? else { return Ok(()) };
    let mut writer = index.lock(patience())?;
    let change = forgetting(writer.state(), layout, names);
    writer.append(change, policy)
}

fn forgetting(state: &State, layout: &Layout, names: &[&MailboxName]) -> Transaction {
    let mut change = Transaction::new();
    // Without it, Dovecot has not listed anything yet.
    let Some(list) = state.extension(LIST) else { return change };
    let mut rows: Vec<usize> =
        names.iter().filter_map(|name| row_of(state, list, &layout.stored_parts(name))).collect();
    rows.sort_unstable();
    rows.dedup();
    let emptied = |extension: &Extension, kept: usize| -> Vec<(u32, Vec<u8>)> {
        let rows = rows.iter().map(|row| (state.uids[*row], extension.row(*row)));
        let rows = rows.filter(|(_, data)| data.iter().skip(kept).any(|byte| *byte != 0));
        rows.map(|(uid, data)| {
            let data = data.iter().enumerate().map(|(i, byte)| if i < kept { *byte } else { 0 });
            (uid, data.collect())
        })
        .collect()
    };
    let nodes = emptied(list, NODE_BYTES);
    let bidden = list.header.first().is_some_and(|flag| *flag != 0);
    if !bidden || !nodes.is_empty() {
        change.introduce(state.extension_id(LIST), list);
        if !bidden {
            // One byte: the names begin right behind it.
            change.ext_header(0, &[1]);
        }
        change.ext_records(nodes.iter().map(|(uid, data)| (*uid, &**data)));
    }
    if let Some(seen) = state.extension(SEEN) {
        let seen_rows = emptied(seen, 0);
        if !seen_rows.is_empty() {
            change.introduce(state.extension_id(SEEN), seen);
            change.ext_records(seen_rows.iter().map(|(uid, data)| (*uid, &**data)));
        }
    }
    change
}

fn paths(file: &Path) -> Paths {
    let prefix = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Paths { directory: file.parent().unwrap_or(Path::new(".")).to_owned(), prefix: prefix.into() }
}

/// The row of the node with this name.
fn row_of(state: &State, list: &Extension, parts: &[String]) -> Option<usize> {
    let known: BTreeMap<&str, u32> = numbers(list)
        .filter(|(_, part)| parts.iter().any(|wanted| wanted == part))
        .map(|(n, p)| (p, n))
        .collect();
    let (mut above, mut found) = (0, None);
    for part in parts {
        let number = *known.get(part.as_str())?;
        let row = (0..state.uids.len()).find(|row| {
            record(state, *row).is_some_and(|(name, parent, _)| (name, parent) == (number, above))
        })?;
        above = state.uids[row];
        found = Some(row);
    }
    found
}

/// Number of the name, UID of the node above, GUID.
fn record(state: &State, row: usize) -> Option<(u32, u32, MailboxGuid)> {
    let data = state.extension(LIST)?.row(row).first_chunk::<RECORD_BYTES>()?;
    let mut guid = [0; 16];
    guid.copy_from_slice(&data[8..24]);
    Some((u32_at(data, 0), u32_at(data, 4), MailboxGuid(guid)))
}

fn name_of(state: &State, row: usize, parts: &BTreeMap<u32, String>) -> Option<Vec<String>> {
    let mut name = Vec::new();
    let mut row = Some(row);
    while let Some(here) = row {
        let (number, above, _) = record(state, here)?;
        name.push(parts.get(&number)?.clone());
        if name.len() > DEPTH_MAX {
            return None;
        }
        row = match above {
            0 => None,
            above => Some(state.row(above)?),
        };
    }
    name.reverse();
    Some(name)
}

fn parts_by_number(state: &State) -> BTreeMap<u32, String> {
    let parts = state.extension(LIST).into_iter().flat_map(numbers);
    parts.map(|(number, part)| (number, part.to_owned())).collect()
}

/// The names in the header: behind one byte, a number and a text that ends with NUL, each.
fn numbers(list: &Extension) -> impl Iterator<Item = (u32, &str)> {
    let mut rest = list.header.get(1..).unwrap_or_default();
    std::iter::from_fn(move || {
        let (number, text) = rest.split_first_chunk::<4>()?;
        let number = u32::from_le_bytes(*number);
        let end = memchr::memchr(0, text).filter(|_| number > 0)?;
        rest = &text[end + 1..];
        Some((number, &text[..end]))
    })
    .filter_map(|(number, part)| Some((number, std::str::from_utf8(part).ok()?)))
}
