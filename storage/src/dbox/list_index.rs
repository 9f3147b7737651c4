//! Names of mailboxes with LAYOUT=index: they are in `dovecot.list.index` alone (storage formats reference, 5.1).
//!
//! Reads only: such mailboxes are made and renamed by Dovecot.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use dsync_model::{MailboxGuid, MailboxName};

use crate::index::format::u32_at;
use crate::index::{Index, Paths, State};
use crate::layout::{Found, Layout};
use crate::{MailboxProblem, Result, StorageError};

const PREFIX: &str = "dovecot.list.index";
const LIST: &str = "list";
/// Bytes of a record: number of the name, UID of the node above, GUID, UIDVALIDITY.
const RECORD_BYTES: usize = 28;
/// The node has only nodes below it, or may not hold mail.
const NO_MAILBOX: u8 = 0x04 | 0x10;
/// More levels than any name has: a loop.
const DEPTH_MAX: usize = 100;

/// What the list index says.
#[derive(Default, Debug)]
pub(super) struct Names {
    pub mailboxes: BTreeMap<MailboxName, MailboxGuid>,
    /// Names without mail.
    pub directories: BTreeSet<MailboxName>,
    /// Nodes whose name cannot be told.
    pub unreadable: Vec<String>,
}

/// Reads all names.
pub(super) fn names(layout: &Layout) -> Result<Names> {
    let file = layout.list_index_file().unwrap_or_default();
    if file.file_name() != Some(PREFIX.as_ref()) {
        let what = format!("{}: with LAYOUT=index, the list index must be called {PREFIX}", file.display());
        return Err(StorageError::Location(what));
    }
    let paths = Paths { directory: file.parent().unwrap_or(Path::new(".")).to_owned(), prefix: PREFIX };
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
pub(super) fn list(layout: &Layout) -> Result<(Vec<Found>, Vec<MailboxProblem>)> {
    let names = names(layout)?;
    let mailboxes = names.mailboxes.into_keys().filter(|name| !name.is_inbox());
    let mailboxes = mailboxes.map(|name| Found { name, mailbox: true });
    let directories = names.directories.into_iter().map(|name| Found { name, mailbox: false });
    let problem = |mailbox: String| {
        let error = StorageError::Impossible(format!("mailbox name {mailbox:?} cannot be read"));
        MailboxProblem { mailbox, error }
    };
    Ok((mailboxes.chain(directories).collect(), names.unreadable.into_iter().map(problem).collect()))
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

/// The names in the header: behind one byte, a number and a text that ends with NUL, each.
fn parts_by_number(state: &State) -> BTreeMap<u32, String> {
    let mut parts = BTreeMap::new();
    let header = state.extension(LIST).map(|extension| &*extension.header).unwrap_or_default();
    let mut rest = header.get(1..).unwrap_or_default();
    while let Some((number, text)) = rest.split_first_chunk::<4>() {
        let number = u32::from_le_bytes(*number);
        let Some(end) = memchr::memchr(0, text).filter(|_| number > 0) else { break };
        if let Ok(part) = std::str::from_utf8(&text[..end]) {
            parts.insert(number, part.to_owned());
        }
        rest = &text[end + 1..];
    }
    parts
}
