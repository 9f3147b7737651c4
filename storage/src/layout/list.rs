//! Which names there are on the disk (storage formats reference, 2.4).

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use dsync_model::MailboxName;

use super::{Format, Kind, Layout};
use crate::{MailboxProblem, Result, StorageError};

/// A name found on the disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    pub name: MailboxName,
    /// It holds mail; else it is only a directory.
    pub mailbox: bool,
}

/// What a path is, links followed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    Directory,
    File,
    /// A pipe, a socket, a device.
    Other,
    /// Removed meanwhile.
    Gone,
}

/// What a listing has come to so far.
#[derive(Default)]
struct Listing {
    found: Vec<Found>,
    problems: Vec<MailboxProblem>,
    /// The parts of the directory that is being read.
    above: Vec<String>,
}

/// How deep directories are looked into.
const DEPTH_MAX: usize = 100;

impl Layout {
    /// Lists all names but that of the user's INBOX, sorted. Names of [`Kind::Index`] are not on the disk: they are in the list index.
    pub fn list(&self) -> Result<(Vec<Found>, Vec<MailboxProblem>)> {
        let mut listing = Listing::default();
        match self.kind {
            Kind::MaildirPlusPlus => self.list_flat(&mut listing)?,
            Kind::Fs => self.list_deep(&self.mailboxes(), &mut listing)?,
            Kind::Index => {
                let what = "with LAYOUT=index the names of mailboxes are in the list index alone".to_owned();
                return Err(StorageError::Impossible(what));
            }
        }
        listing.found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok((listing.found, listing.problems))
    }

    fn list_flat(&self, listing: &mut Listing) -> Result<()> {
        for entry in fs::read_dir(&self.root).map_err(StorageError::io(&self.root))? {
            let entry = entry.map_err(StorageError::io(&self.root))?;
            let (path, bytes) = (entry.path(), entry.file_name().into_vec());
            if bytes.first() != Some(&b'.') || bytes.get(1) == Some(&b'.') || bytes.len() < 2 {
                continue;
            }
            let stored = std::str::from_utf8(&bytes[1..]).ok();
            let name = stored.and_then(|stored| self.name_of_parts(&stored.split('.').collect::<Vec<_>>()));
            match self.what(&path) {
                Ok(What::Directory) if self.is_ours(&path) => continue,
                Ok(What::Directory) => {}
                Ok(_) => continue,
                Err(error) => {
                    listing.problems.push(MailboxProblem { mailbox: named(name, bytes), error });
                    continue;
                }
            }
            match name.filter(|name| self.is_listed(name, stored) && self.stored(name).is_ok()) {
                Some(name) => listing.found.push(Found { name, mailbox: true }),
                None => listing.problems.push(unreadable(&path, bytes)),
            }
        }
        Ok(())
    }

    fn list_deep(&self, directory: &Path, listing: &mut Listing) -> Result<()> {
        let depth = listing.above.len();
        if depth >= DEPTH_MAX {
            return Ok(());
        }
        let entries = match fs::read_dir(directory) {
            Ok(entries) => entries,
            // Removed meanwhile, or not made yet; the root itself must be there.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && directory != self.root => {
                return Ok(());
            }
            Err(error) => {
                let error = StorageError::io(directory)(error);
                let name = MailboxName::new(&listing.above).ok().filter(|_| depth > 0);
                let Some(name) = name else { return Err(error) };
                listing.problems.push(MailboxProblem { mailbox: name.to_string(), error });
                return Ok(());
            }
        };
        for entry in entries {
            let entry = entry.map_err(StorageError::io(directory))?;
            let (path, bytes) = (entry.path(), entry.file_name().into_vec());
            let stored = std::str::from_utf8(&bytes).ok();
            if stored.is_some_and(|stored| self.is_hidden(stored, depth)) || self.is_ours(&path) {
                continue;
            }
            let what = match self.what(&path) {
                Ok(What::Gone) => continue,
                // Where mailboxes are directories, what is none is nothing to Dovecot either, but an mbox it would be.
                Ok(What::File | What::Other) if !self.has_imap() => continue,
                Ok(What::Other) if bytes.first() == Some(&b'.') => continue,
                Ok(What::Other) => Err(StorageError::Impossible(format!(
                    "{}: is no regular file; left alone",
                    path.display()
                ))),
                what => what,
            };
            let what = match what {
                Ok(what) => what,
                Err(error) => {
                    let part = stored.and_then(|stored| self.part(stored));
                    let parts = listing.above.iter().cloned().chain(part.clone());
                    let name = part.and_then(|_| MailboxName::new(&parts.collect::<Vec<_>>()).ok());
                    listing.problems.push(MailboxProblem { mailbox: named(name, bytes), error });
                    continue;
                }
            };
            let mailbox = self.is_mailbox(&path, what);
            let hidden = bytes.first() == Some(&b'.') && !mailbox;
            let Some(part) = stored.and_then(|stored| self.part(stored)) else {
                listing.problems.extend((!hidden).then(|| unreadable(&path, bytes)));
                continue;
            };
            listing.above.push(part);
            let before = listing.found.len();
            if what == What::Directory {
                self.list_deep(&path, listing)?;
            }
            // A directory without mail is a name too, `\Noselect`; but not each one that other programs hide.
            let named = !hidden || listing.found[before..].iter().any(|found| found.mailbox);
            if !named {
                listing.found.truncate(before);
            }
            match MailboxName::new(&listing.above) {
                Ok(name) if self.is_the_inbox(&name) => {}
                Ok(name) if self.is_listed(&name, stored) && self.stored(&name).is_ok() => {
                    listing.found.extend(named.then_some(Found { name, mailbox }));
                }
                _ => listing.problems.push(unreadable(&path, bytes)),
            }
            listing.above.pop();
        }
        Ok(())
    }

    /// Says whether a name is found by listing: INBOX is, where it is one like any other and is spelled so.
    fn is_listed(&self, name: &MailboxName, stored: Option<&str>) -> bool {
        !name.is_inbox() || (!self.has_inbox && stored.is_some_and(|stored| stored.ends_with("INBOX")))
    }

    /// Says whether what a name stands for holds mail.
    fn is_mailbox(&self, path: &Path, what: What) -> bool {
        match (&self.dirname, self.format) {
            (Some(dirname), Format::Mbox) => path.join(dirname).is_file(),
            (Some(dirname), _) => path.join(dirname).is_dir(),
            (None, Format::Mbox) => what == What::File,
            (None, Format::Maildir) => path.join("cur").is_dir(),
            (None, Format::Sdbox | Format::Mdbox) => what == What::Directory,
        }
    }

    /// A directory or file, or a link to one of the same owner; other links are an error, never taken for a deleted
    /// mailbox.
    fn what(&self, path: &Path) -> Result<What> {
        let of = |meta: &fs::Metadata| match meta {
            meta if meta.is_dir() => What::Directory,
            meta if meta.is_file() => What::File,
            _ => What::Other,
        };
        let meta = match fs::symlink_metadata(path) {
            Ok(meta) => meta,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(What::Gone),
            Err(error) => return Err(StorageError::io(path)(error)),
        };
        if !meta.is_symlink() {
            return Ok(of(&meta));
        }
        let owner = fs::metadata(&self.root).map_err(StorageError::io(&self.root))?.uid();
        let target = fs::metadata(path).map_err(StorageError::io(path))?;
        let what = of(&target);
        let matters = what == What::Directory || (what == What::File && self.has_imap());
        if matters && target.uid() != owner {
            let kind = if what == What::Directory { "directory" } else { "file" };
            let what = format!("{}: links to a {kind} of another user; left alone", path.display());
            return Err(StorageError::Impossible(what));
        }
        Ok(what)
    }
}

/// The name of a mailbox that cannot be listed: what cannot be told by its own is told as it is stored.
fn named(name: Option<MailboxName>, bytes: Vec<u8>) -> String {
    name.map_or_else(|| lossy(bytes), |name| name.to_string())
}

fn lossy(bytes: Vec<u8>) -> String {
    OsString::from_vec(bytes).to_string_lossy().into_owned()
}

fn unreadable(path: &Path, bytes: Vec<u8>) -> MailboxProblem {
    let what = format!("{}: this is no valid name of a mailbox; left alone", path.display());
    MailboxProblem { mailbox: lossy(bytes), error: StorageError::Impossible(what) }
}
