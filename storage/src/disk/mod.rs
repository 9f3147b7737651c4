//! The only module that changes files. Every change is one *step*, and steps are counted, so that a test can
//! stop the world after each of them. While a thread only pretends ([`Pretend`]), no step is taken.

mod content;
mod names;
mod pretending;

use std::cell::Cell;
use std::io;
use std::path::Path;

use crate::{Result, StorageError};

pub use content::{
    append_at, append_record, clone_file, copy, copy_range, replace, reserve, set_times, sync_file,
    sync_files, touch, truncate, write, write_at,
};
pub use names::{
    create, create_alike, create_locked, create_readable, exchange, file_mode, hard_link, make_directory,
    make_directory_in, make_whole, remove, remove_empty, remove_tree, rename, rename_new, set_owner_like,
    symlink, sync_directory,
};
pub use pretending::{Pretend, forget_pretended, keep_pretended, memory_file, pretended, pretends};

/// When data is forced to the disk (setting `mail_fsync`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Fsync {
    /// Each file.
    Always,
    /// A batch at once, before it is acknowledged.
    #[default]
    Optimized,
    Never,
}

thread_local! {
    static STEPS_LEFT: Cell<Option<u64>> = const { Cell::new(None) };
    static STEPS: Cell<u64> = const { Cell::new(0) };
}

/// For crash tests: from now on this thread makes `steps` changes to files, and every further one fails as if the
/// process were gone. `None` lifts the limit. Gives the number of steps made so far.
pub fn crash_after(steps: Option<u64>) -> u64 {
    STEPS_LEFT.set(steps);
    STEPS.get()
}

/// `false`: the step is not to be taken.
fn step(path: &Path) -> Result<bool> {
    if pretends() {
        return Ok(false);
    }
    STEPS.set(STEPS.get() + 1);
    match STEPS_LEFT.get() {
        Some(0) => {
            Err(StorageError::Io { path: path.to_owned(), source: io::Error::other("the test stops here") })
        }
        Some(left) => {
            STEPS_LEFT.set(Some(left - 1));
            Ok(true)
        }
        None => Ok(true),
    }
}
