//! What can go wrong in a storage, by who must act.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;

/// An error of a storage, with the place where it happened.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// A file holds what its format does not allow, and no repair is safe.
    #[error("{path}: line {line}: {what}")]
    Corrupt { path: PathBuf, line: u32, what: &'static str },
    /// The same of a file that is no text: the offset in bytes says where.
    #[error("{path}: at byte {offset}: {what}")]
    Damaged { path: PathBuf, offset: u64, what: Box<str> },
    /// Mail that is fine, and that only other software can read.
    #[error("{path}: {what}")]
    Unsupported { path: PathBuf, what: &'static str },
    /// Another process holds a lock. `holder` says who, as far as it can be told.
    #[error("{path}: locked by {holder} for over {} s", .waited.as_secs())]
    Locked { path: PathBuf, holder: String, waited: Duration },
    /// The system refused. The text of `source` follows in the chain.
    #[error("{path}")]
    Io { path: PathBuf, source: io::Error },
    /// The storage cannot hold this, now or ever.
    #[error("{0}")]
    Impossible(String),
    /// The location does not say where the mail is, or in which format.
    #[error("{0}")]
    Location(String),
    /// Somebody made a mailbox of that name.
    #[error("mailbox {0} already exists")]
    MailboxExists(String),
    /// No such mailbox, or not any more.
    #[error("mailbox {0} does not exist")]
    NoMailbox(String),
}

/// The result of a storage call.
pub type Result<T, E = StorageError> = std::result::Result<T, E>;

impl StorageError {
    /// Names the file or directory on which a system call failed.
    pub fn io(path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> StorageError {
        move |source| StorageError::Io { path: path.as_ref().to_owned(), source }
    }

    /// The file that it is about, where it is about one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            StorageError::Corrupt { path, .. }
            | StorageError::Damaged { path, .. }
            | StorageError::Unsupported { path, .. }
            | StorageError::Locked { path, .. }
            | StorageError::Io { path, .. } => Some(path),
            StorageError::Impossible(_)
            | StorageError::Location(_)
            | StorageError::MailboxExists(_)
            | StorageError::NoMailbox(_) => None,
        }
    }

    /// Says whether whatever is tried next would fail as well: disk or quota are full, or the system has no more files or memory to give.
    pub fn is_everywhere(&self) -> bool {
        use io::ErrorKind::{OutOfMemory, QuotaExceeded, StorageFull};
        let StorageError::Io { source, .. } = self else { return false };
        let no_files = [Errno::MFILE, Errno::NFILE].map(|errno| Some(errno.raw_os_error()));
        matches!(source.kind(), StorageFull | QuotaExceeded | OutOfMemory)
            || no_files.contains(&source.raw_os_error())
    }

    /// Says whether the mailbox is not there any more, as far as the error tells.
    pub fn is_gone(&self) -> bool {
        match self {
            StorageError::NoMailbox(_) => true,
            StorageError::Io { source, .. } => source.kind() == io::ErrorKind::NotFound,
            _ => false,
        }
    }

    /// The exit status of sysexits.h that says who must act (architecture 3b).
    pub fn status(&self) -> u8 {
        match self {
            StorageError::Corrupt { .. }
            | StorageError::Damaged { .. }
            | StorageError::Unsupported { .. }
            | StorageError::Impossible(_)
            | StorageError::MailboxExists(_) => 65,
            StorageError::NoMailbox(_) => 68,
            StorageError::Location(_) => 78,
            StorageError::Locked { .. } => 75,
            StorageError::Io { source, .. } => match source.kind() {
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => 77,
                io::ErrorKind::QuotaExceeded => 73,
                // Readers of damaged mail say so.
                io::ErrorKind::InvalidData => 65,
                _ => 75,
            },
        }
    }
}
