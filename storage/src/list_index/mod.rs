//! `dovecot.list.index`: what Dovecot knows of all mailboxes (storage formats reference, 5.1).
//!
//! With LAYOUT=index it has the names, and nothing else has: `mailboxes` keeps it in step with the directories, and makes it
//! anew from what `directories` finds where it is lost. With other layouts it is a cache, which is never made here; after a
//! change of the tree, what it tells is made invalid.

mod directories;
mod mailboxes;
mod nodes;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use dsync_model::MailboxName;

use crate::index::{Index, Paths, State};
use crate::layout::{Kind, Layout};
use crate::lock::patience;
use crate::{Fsync, Result, StorageError, disk};
use nodes::Nodes;

/// The list index of an account, kept open: what others write is read once, what we write not at all.
#[derive(Debug, Default)]
pub struct ListIndex(Mutex<Option<Open>>);

/// A clone looks for itself.
impl Clone for ListIndex {
    fn clone(&self) -> ListIndex {
        ListIndex::default()
    }
}

#[derive(Debug)]
struct Open {
    index: Index,
    nodes: Nodes,
    /// The position in the log at which the nodes are what the index says.
    at: (u32, u64),
    /// It may be in memory alone.
    pretended: bool,
}

impl ListIndex {
    fn guard(&self) -> MutexGuard<'_, Option<Open>> {
        // Whoever panicked left at worst nodes of another position, and those are taken anew.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows the names as they are now; `None`: there is no list index. With LAYOUT=index, one is made.
    fn look<T>(&self, layout: &Layout, see: impl FnOnce(&Nodes) -> T) -> Result<Option<T>> {
        let mut open = self.guard();
        let Some(Open { index, nodes, at, .. }) = refreshed(&mut open, layout)? else { return Ok(None) };
        if index.position() != *at {
            (*nodes, *at) = (Nodes::of(index.state()), index.position());
        }
        Ok(Some(see(nodes)))
    }

    /// Changes names, with the lock held. What `make` did is written as one transaction, unless it fails.
    fn change(
        &self,
        layout: &Layout,
        policy: Fsync,
        bid: bool,
        make: impl FnOnce(&mut Nodes) -> Result<()>,
    ) -> Result<()> {
        let mut open = self.guard();
        let Some(Open { index, nodes, at, .. }) = refreshed(&mut open, layout)? else { return Ok(()) };
        let mut writer = index.lock(patience())?;
        if writer.index().position() != *at {
            *nodes = Nodes::of(writer.state());
        }
        if nodes.is_full() {
            let what =
                "has numbers at their limits; if it is moved away, names come from the mailboxes themselves";
            return Err(StorageError::Corrupt { path: writer.index().paths().log(), line: 0, what });
        }
        let done = make(nodes).and_then(|()| {
            let transaction = nodes.transaction(writer.state(), bid);
            writer.append(transaction, policy)?;
            writer.tidy(policy)
        });
        *at = writer.index().position();
        drop(writer);
        if done.is_err() {
            *open = None;
        }
        done
    }

    /// Makes what Dovecot has noted of these names invalid, and bids every session look at the disk at its next LIST. Those in `gone` stand for
    /// no mailbox any more.
    pub fn forget(
        &self,
        layout: &Layout,
        names: &[&MailboxName],
        gone: &[&MailboxName],
        policy: Fsync,
    ) -> Result<()> {
        if layout.kind == Kind::Index {
            return Ok(());
        }
        self.change(layout, policy, true, |nodes| {
            names.iter().for_each(|name| nodes.forget(&layout.stored_parts(name)));
            gone.iter().for_each(|name| nodes.forget_gone(&layout.stored_parts(name)));
            Ok(())
        })
    }
}

/// The index as the disk has it now.
fn refreshed<'a>(open: &'a mut Option<Open>, layout: &Layout) -> Result<Option<&'a mut Open>> {
    let Some(file) = layout.list_index_file() else { return Ok(None) };
    let paths = paths(&file);
    // What was only pretended is forgotten when it gets serious.
    let known = open.take().filter(|open| open.pretended == disk::pretends());
    let known = known.and_then(|mut open| open.index.refresh().is_ok().then_some(open));
    let index = match known {
        Some(known) => return Ok(Some(open.insert(known))),
        None if layout.kind == Kind::Index => open_or_make(layout, paths)?,
        None if Index::stamp(&paths).is_none() => return Ok(None),
        None => match Index::open(paths)? {
            Some(index) => index,
            None => return Ok(None),
        },
    };
    let (nodes, at) = (Nodes::of(index.state()), index.position());
    Ok(Some(open.insert(Open { index, nodes, at, pretended: disk::pretends() })))
}

/// Opens the index that alone has the names. Where it is lost, it is made anew from the directories of the mailboxes.
fn open_or_make(layout: &Layout, paths: Paths) -> Result<Index> {
    match Index::open(paths.clone()) {
        Ok(Some(index)) => return Ok(index),
        Ok(None) => {}
        Err(error @ StorageError::Corrupt { .. }) if !disk::pretends() => {
            tracing::warn!("{error}: put aside; names come from the mailboxes themselves");
            put_aside(&paths)?;
        }
        Err(error) => return Err(error),
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |now| now.as_secs() as u32);
    let state = State::empty(now, 1);
    let mut nodes = Nodes::of(&state);
    for found in directories::all(layout)? {
        if !found.deleted {
            found.adopt(layout, &mut nodes);
        }
    }
    let first = nodes.transaction(&state, false);
    disk::make_directory(&paths.directory)?;
    Index::create_or_open(paths, now, nodes.next_uid(), first)
}

/// Keeps what cannot be read for whoever can. Killed in between, what is left is as unreadable as the whole, or not there.
fn put_aside(paths: &Paths) -> Result<()> {
    disk::remove(&paths.log2())?;
    for path in [paths.snapshot(), paths.log()] {
        if path.exists() {
            let mut aside = path.clone().into_os_string();
            aside.push(".broken");
            disk::rename(&path, Path::new(&aside))?;
        }
    }
    Ok(())
}

fn paths(file: &Path) -> Paths {
    let prefix = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Paths { directory: file.parent().unwrap_or(Path::new(".")).to_owned(), prefix: prefix.into() }
}
