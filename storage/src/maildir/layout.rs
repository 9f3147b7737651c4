//! Names of mailboxes and the directories they stand for, in both Maildir layouts.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use dsync_model::MailboxName;

use crate::{MailboxProblem, Result, StorageError, mutf7};

/// How folders lie on the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// `root/.Parent.Child`
    MaildirPlusPlus,
    /// `root/Parent/Child`
    Fs,
}

/// Where everything of one account lies.
#[derive(Clone, Debug)]
pub struct Layout {
    pub kind: Kind,
    pub root: PathBuf,
    pub control: Option<PathBuf>,
    pub index: Option<PathBuf>,
    pub inbox: Option<PathBuf>,
    /// Names on disk are UTF-8 instead of modified UTF-7.
    pub utf8: bool,
    pub subscriptions: String,
}

/// A name found on the disk.
pub struct Found {
    pub name: MailboxName,
    /// It holds mail; else it is only a directory.
    pub mailbox: bool,
}

const DEPTH_MAX: usize = 100;

impl Layout {
    /// Where the mail of a mailbox lies.
    pub fn mail(&self, name: &MailboxName) -> Result<PathBuf> {
        if name.is_inbox() {
            return Ok(self.inbox.clone().unwrap_or_else(|| self.root.clone()));
        }
        Ok(self.root.join(self.stored(name)?))
    }

    /// Where `dovecot-uidlist` and `dovecot-keywords` lie.
    pub fn control(&self, name: &MailboxName) -> Result<PathBuf> {
        self.beside(&self.control, name)
    }

    /// Where Dovecot's index files lie.
    pub fn index(&self, name: &MailboxName) -> Result<PathBuf> {
        self.beside(&self.index, name)
    }

    fn beside(&self, root: &Option<PathBuf>, name: &MailboxName) -> Result<PathBuf> {
        match (root, self.kind) {
            (None, _) => self.mail(name),
            (Some(root), Kind::MaildirPlusPlus) if name.is_inbox() => Ok(root.join(".INBOX")),
            (Some(root), Kind::Fs) if name.is_inbox() => Ok(root.join("INBOX")),
            (Some(root), _) => Ok(root.join(self.stored(name)?)),
        }
    }

    /// Where the files of the whole account lie: subscriptions, UIDVALIDITY, our notes.
    pub fn control_root(&self) -> &Path {
        self.control.as_deref().unwrap_or(&self.root)
    }

    /// The path below the root, as the disk has it.
    fn stored(&self, name: &MailboxName) -> Result<PathBuf> {
        let impossible = |what: &str| StorageError::Impossible(format!("mailbox name {name:?} {what}"));
        let mut parts = Vec::with_capacity(name.parts().len());
        for part in name.parts() {
            if self.kind == Kind::MaildirPlusPlus && part.contains('.') {
                return Err(impossible(
                    "has a dot within a part, which Maildir++ cannot store; use LAYOUT=fs",
                ));
            }
            if self.kind == Kind::Fs && (matches!(&**part, "cur" | "new" | "tmp") || part.starts_with('.')) {
                return Err(impossible("cannot be stored in a Maildir with LAYOUT=fs"));
            }
            if part.starts_with('~') {
                return Err(impossible("begins with a tilde, which Dovecot refuses"));
            }
            parts.push(if self.utf8 { part.to_string() } else { mutf7::encode(part) });
        }
        if parts.iter().any(|part| part.len() > 255)
            || (self.kind == Kind::MaildirPlusPlus && parts.join(".").len() > 254)
        {
            return Err(impossible("is too long for a file name"));
        }
        Ok(match self.kind {
            Kind::MaildirPlusPlus => PathBuf::from(format!(".{}", parts.join("."))),
            Kind::Fs => parts.iter().collect(),
        })
    }

    fn part(&self, stored: &str) -> Option<String> {
        if self.utf8 { Some(stored.to_owned()) } else { mutf7::decode(stored) }
    }

    /// The name as the subscriptions file has it, parts from the root down, and back.
    pub fn stored_parts(&self, name: &MailboxName) -> Vec<String> {
        name.parts()
            .iter()
            .map(|part| if self.utf8 { part.to_string() } else { mutf7::encode(part) })
            .collect()
    }

    /// See [`stored_parts`](Self::stored_parts); `None` if it is no valid name.
    pub fn name_of_parts(&self, parts: &[&str]) -> Option<MailboxName> {
        let parts: Option<Vec<String>> = parts.iter().map(|part| self.part(part)).collect();
        MailboxName::new(&parts?).ok()
    }

    /// The separator of names on disk.
    pub fn separator(&self) -> char {
        match self.kind {
            Kind::MaildirPlusPlus => '.',
            Kind::Fs => '/',
        }
    }

    /// Lists all names but INBOX.
    pub fn list(&self) -> Result<(Vec<Found>, Vec<MailboxProblem>)> {
        let (mut found, mut problems) = (Vec::new(), Vec::new());
        match self.kind {
            Kind::MaildirPlusPlus => self.list_flat(&mut found, &mut problems)?,
            Kind::Fs => {
                self.list_deep(&self.root, &mut Vec::new(), &mut found, &mut problems)?;
            }
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok((found, problems))
    }

    fn list_flat(&self, found: &mut Vec<Found>, problems: &mut Vec<MailboxProblem>) -> Result<()> {
        for entry in fs::read_dir(&self.root).map_err(StorageError::io(&self.root))? {
            let entry = entry.map_err(StorageError::io(&self.root))?;
            let bytes = entry.file_name().into_vec();
            if bytes.first() != Some(&b'.') || bytes.get(1) == Some(&b'.') || bytes.len() < 2 {
                continue;
            }
            match self.is_directory(&entry.path()) {
                Ok(true) => {}
                Ok(false) => continue,
                Err(error) => {
                    problems.push(MailboxProblem { mailbox: lossy(bytes), error });
                    continue;
                }
            }
            let stored = std::str::from_utf8(&bytes[1..]).ok();
            let name = stored.and_then(|stored| self.name_of_parts(&stored.split('.').collect::<Vec<_>>()));
            match name.filter(|name| !name.is_inbox()) {
                Some(name) => found.push(Found { name, mailbox: true }),
                None => problems.push(unreadable(&entry.path(), bytes)),
            }
        }
        Ok(())
    }

    fn list_deep(
        &self,
        directory: &Path,
        above: &mut Vec<String>,
        found: &mut Vec<Found>,
        problems: &mut Vec<MailboxProblem>,
    ) -> Result<()> {
        if above.len() >= DEPTH_MAX {
            return Ok(());
        }
        for entry in fs::read_dir(directory).map_err(StorageError::io(directory))? {
            let entry = entry.map_err(StorageError::io(directory))?;
            let bytes = entry.file_name().into_vec();
            if matches!(&bytes[..], b"cur" | b"new" | b"tmp") || bytes.first() == Some(&b'.') {
                continue;
            }
            let path = entry.path();
            if self.control.as_ref() == Some(&path) || self.index.as_ref() == Some(&path) {
                continue;
            }
            match self.is_directory(&path) {
                Ok(true) => {}
                Ok(false) => continue,
                Err(error) => {
                    problems.push(MailboxProblem { mailbox: lossy(bytes), error });
                    continue;
                }
            }
            let Some(part) = std::str::from_utf8(&bytes).ok().and_then(|stored| self.part(stored)) else {
                problems.push(unreadable(&path, bytes));
                continue;
            };
            above.push(part);
            let mailbox = path.join("cur").is_dir();
            self.list_deep(&path, above, found, problems)?;
            match MailboxName::new(above) {
                // A directory without mail is a name too: `\Noselect`.
                Ok(name) if !name.is_inbox() => found.push(Found { name, mailbox }),
                Ok(_) => {}
                Err(_) => problems.push(unreadable(&path, bytes)),
            }
            above.pop();
        }
        Ok(())
    }

    /// A directory, or a link to one of the same owner; other links are an error, never taken for a deleted mailbox.
    fn is_directory(&self, path: &Path) -> Result<bool> {
        let meta = fs::symlink_metadata(path).map_err(StorageError::io(path))?;
        if !meta.is_symlink() {
            return Ok(meta.is_dir());
        }
        let owner = fs::metadata(&self.root).map_err(StorageError::io(&self.root))?.uid();
        match fs::metadata(path) {
            Ok(target) if target.is_dir() && target.uid() == owner => Ok(true),
            Ok(target) if !target.is_dir() => Ok(false),
            Ok(_) => {
                let what = format!("{}: links to a directory of another user; left alone", path.display());
                Err(StorageError::Impossible(what))
            }
            Err(error) => Err(StorageError::io(path)(error)),
        }
    }
}

fn lossy(bytes: Vec<u8>) -> String {
    OsString::from_vec(bytes).to_string_lossy().into_owned()
}

fn unreadable(path: &Path, bytes: Vec<u8>) -> MailboxProblem {
    let what = format!("{}: the directory's name is no valid mailbox name; left alone", path.display());
    MailboxProblem { mailbox: lossy(bytes), error: StorageError::Impossible(what) }
}
