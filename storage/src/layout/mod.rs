//! Where everything of an account lies, for every format and layout (storage formats reference, 2.2).
//!
//! How a name is spelled on the disk is settled in `names`, which names there are in `list`. Nothing is written here.

mod list;
mod names;
mod rules;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::{Path, PathBuf};

use dsync_model::{MailboxGuid, MailboxName};

use crate::attributes::Place;
use crate::{Result, StorageError};
pub use list::Found;

/// How messages are stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    Maildir,
    Mbox,
    Sdbox,
    Mdbox,
}

impl fmt::Display for Format {
    /// The driver's name, as in `mail_location`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Format::Maildir => "maildir",
            Format::Mbox => "mbox",
            Format::Sdbox => "sdbox",
            Format::Mdbox => "mdbox",
        })
    }
}

/// How mailboxes lie on the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// `root/.Parent.Child`
    MaildirPlusPlus,
    /// `root/Parent/Child`
    Fs,
    /// `root/<mailbox GUID>`; the names are in the list index alone.
    Index,
}

/// Where Dovecot's index files are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Index {
    /// With the mail.
    Beside,
    At(PathBuf),
    /// Nowhere: each process has its own.
    Memory,
}

/// Where everything of one account lies. Paths are absolute.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Layout {
    pub format: Format,
    pub kind: Kind,
    pub root: PathBuf,
    pub control: Option<PathBuf>,
    pub index: Index,
    /// Root of `dovecot.index.cache` alone.
    pub cache: Option<PathBuf>,
    /// The mail of INBOX, where it does not lie as other mail does.
    pub inbox: Option<PathBuf>,
    /// The user's INBOX is here. Else that name is one like any other, and need not be there.
    pub has_inbox: bool,
    /// Root of alternate storage (dbox).
    pub alt: Option<PathBuf>,
    /// Do not maintain the link `dbox-alt-root`.
    pub alt_no_check: bool,
    /// Within the directory of a mailbox, the one that holds its mail (Fs).
    pub dirname: Option<String>,
    /// Paths of index and control files have `dirname` too.
    pub full_dirname: bool,
    /// Between the root and the mailboxes (Fs and Index): `mailboxes`.
    pub mailbox_dir: Option<String>,
    /// Names on disk are UTF-8 instead of modified UTF-7.
    pub utf8: bool,
    pub subscriptions: String,
    /// File name of the list index, or its path.
    pub list_index: String,
    /// For short-lived locks of Dovecot.
    pub volatile: Option<PathBuf>,
    /// The namespace's hierarchy separator, where the configuration sets one: Dovecot's log spells names with it.
    pub separator: Option<char>,
    /// The parts of the namespace's prefix: Dovecot's log has them too.
    pub prefix: Vec<String>,
    /// Namespaces that keep no subscriptions of their own: they are among ours.
    pub subscribers: Vec<Subscriber>,
    /// Annotations of mailboxes.
    pub attributes: Place,
    /// The user's home, which is locked as well while the account is synchronised.
    pub home: Option<PathBuf>,
}

/// A namespace whose subscriptions another one keeps: its prefix, as it is configured, and the name as it is stored there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Subscriber {
    /// Without that of the namespace that keeps them.
    pub prefix: String,
    /// The same in parts.
    pub parts: Vec<String>,
    /// Between parts of names within it, as stored.
    pub separator: char,
    /// Names within it are stored as UTF-8.
    pub utf8: bool,
}

/// Where one mailbox lies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Places {
    /// The directory that holds its mail; the file for mbox.
    pub mail: PathBuf,
    /// The directory of `dovecot-uidlist` and `dovecot-keywords`.
    pub control: PathBuf,
    /// The directory of its index files; `None`: in memory.
    pub index: Option<PathBuf>,
    /// The directory of its `dovecot.index.cache`; `None`: in memory.
    pub cache: Option<PathBuf>,
    /// The directory of its mail in alternate storage (dbox).
    pub alt: Option<PathBuf>,
}

impl Places {
    /// The same mailbox while it is made, in another directory: what lies with its mail lies there.
    pub fn built_in(&self, directory: &Path) -> Places {
        let there = |path: &PathBuf| if *path == self.mail { directory.into() } else { path.clone() };
        Places {
            mail: directory.into(),
            control: there(&self.control),
            index: self.index.as_ref().map(there),
            cache: self.cache.as_ref().map(there),
            alt: self.alt.clone(),
        }
    }
}

/// Holds the index files of mbox accounts, in each directory of the tree.
const IMAP: &str = ".imap";

impl Layout {
    /// The usual layout of a format below `root`.
    pub fn new(format: Format, root: impl Into<PathBuf>) -> Layout {
        let dbox = matches!(format, Format::Sdbox | Format::Mdbox);
        let kind = if format == Format::Maildir { Kind::MaildirPlusPlus } else { Kind::Fs };
        let subscriptions = if format == Format::Mbox { ".subscriptions" } else { "subscriptions" };
        Layout {
            format,
            kind,
            root: root.into(),
            control: None,
            index: Index::Beside,
            cache: None,
            inbox: None,
            has_inbox: true,
            alt: None,
            alt_no_check: false,
            dirname: dbox.then(|| "dbox-Mails".into()),
            full_dirname: false,
            mailbox_dir: dbox.then(|| "mailboxes".into()),
            utf8: false,
            subscriptions: subscriptions.into(),
            list_index: "dovecot.list.index".into(),
            volatile: None,
            separator: None,
            prefix: Vec::new(),
            subscribers: Vec::new(),
            attributes: Place::Usual,
            home: None,
        }
    }

    /// All places of a mailbox. With [`Kind::Index`] its GUID must be known: see [`places_of`](Self::places_of).
    pub fn places(&self, name: &MailboxName) -> Result<Places> {
        if self.kind == Kind::Index {
            let what = format!("mailbox {name}: with LAYOUT=index only its GUID leads to it");
            return Err(StorageError::Impossible(what));
        }
        // In mbox accounts even the index of an INBOX that lies elsewhere is below the root.
        let stored = self.stored(name)?;
        let beside = |root: &Path| {
            let dirname = self.full_dirname && self.kind == Kind::Fs;
            self.with_imap(self.below(root, &stored, dirname))
        };
        let mail = match &self.inbox {
            _ if !self.is_the_inbox(name) => self.below(&self.root, &stored, true),
            Some(inbox) => inbox.clone(),
            None if self.kind == Kind::MaildirPlusPlus => self.root.clone(),
            None if self.format == Format::Maildir && self.dirname.is_none() => self.root.clone(),
            None if self.format == Format::Mbox => self.root.join("inbox"),
            None => self.below(&self.root, &stored, true),
        };
        let index = match &self.index {
            Index::Memory => None,
            Index::At(root) => Some(beside(root)),
            Index::Beside if self.has_imap() => Some(beside(&self.root)),
            Index::Beside => Some(mail.clone()),
        };
        let control = match &self.control {
            Some(root) => beside(root),
            None if self.has_imap() => beside(&self.root),
            None => mail.clone(),
        };
        let cache = match (&self.cache, &index) {
            (Some(root), Some(_)) => Some(beside(root)),
            _ => index.clone(),
        };
        let alt = self.alt.as_ref().map(|root| self.below(root, &stored, true));
        Ok(Places { mail, control, index, cache, alt })
    }

    /// All places of the mailbox with this GUID in [`Kind::Index`].
    pub fn places_of(&self, guid: MailboxGuid) -> Places {
        let stored = PathBuf::from(guid.to_string());
        let beside = |root: &Path| self.with_imap(self.below(root, &stored, false));
        let mail = self.below(&self.root, &stored, false);
        let index = match &self.index {
            Index::Memory => None,
            Index::At(root) => Some(beside(root)),
            Index::Beside => Some(self.with_imap(mail.clone())),
        };
        let cache = match (&self.cache, &index) {
            (Some(root), Some(_)) => Some(beside(root)),
            _ => index.clone(),
        };
        Places {
            control: beside(self.control.as_deref().unwrap_or(&self.root)),
            index,
            cache,
            alt: self.alt.as_ref().map(|root| self.below(root, &stored, false)),
            mail,
        }
    }

    /// Says whether a name is that of the user's INBOX, which is always there and lies elsewhere than others.
    pub fn is_the_inbox(&self, name: &MailboxName) -> bool {
        self.has_inbox && name.is_inbox()
    }

    /// The directory that stands for a name, whether it holds mail or not (not for [`Kind::Index`]).
    pub fn directory(&self, name: &MailboxName) -> Result<PathBuf> {
        Ok(self.below(&self.root, &self.stored(name)?, false))
    }

    /// Where the files of the whole account lie: the UIDVALIDITY generator's, and our notes.
    pub fn control_root(&self) -> PathBuf {
        match &self.control {
            Some(control) => control.clone(),
            None if self.has_imap() => self.root.join(IMAP),
            None => self.root.clone(),
        }
    }

    /// The subscriptions file.
    pub fn subscriptions_file(&self) -> PathBuf {
        self.control.as_ref().unwrap_or(&self.root).join(&self.subscriptions)
    }

    /// Where the list index and the mailbox log lie; `None`: nowhere.
    pub fn index_root(&self) -> Option<PathBuf> {
        let root = match &self.index {
            Index::Memory => return None,
            Index::At(root) => root,
            Index::Beside => &self.root,
        };
        Some(if self.has_imap() { root.join(IMAP) } else { root.clone() })
    }

    /// The list index, without the endings of its log and cache.
    pub fn list_index_file(&self) -> Option<PathBuf> {
        // A name that is an absolute path takes the place of the directory.
        Some(self.index_root()?.join(&self.list_index))
    }

    /// `dovecot.mailbox.log`.
    pub fn mailbox_log_file(&self) -> Option<PathBuf> {
        Some(self.index_root()?.join("dovecot.mailbox.log"))
    }

    /// The directory of the files `m.<number>` (mdbox).
    pub fn storage(&self) -> PathBuf {
        self.root.join("storage")
    }

    /// The directory of the files `m.<number>` in alternate storage (mdbox).
    pub fn alt_storage(&self) -> Option<PathBuf> {
        Some(self.alt.as_ref()?.join("storage"))
    }

    /// Says whether a file is one that all mailboxes need: of the list index, or of the storage and the map of mdbox.
    pub fn is_shared(&self, path: &Path) -> bool {
        let lists = self.list_index_file().filter(|_| self.kind == Kind::Index);
        let named = lists.is_some_and(|list| {
            let (name, list_name) = (path.file_name(), list.file_name());
            let begins = name
                .zip(list_name)
                .is_some_and(|(name, list)| name.as_encoded_bytes().starts_with(list.as_encoded_bytes()));
            path.parent() == list.parent() && begins
        });
        let stored = [Some(self.storage()), self.alt_storage(), Some(self.map())];
        let stored = || stored.iter().flatten().any(|directory| path.starts_with(directory));
        named || (self.format == Format::Mdbox && stored())
    }

    /// The directory of `dovecot.map.index` (mdbox). It cannot be in memory: [`Location`](crate::Location) refuses that.
    pub fn map(&self) -> PathBuf {
        match &self.index {
            Index::At(root) => root.join("storage"),
            Index::Beside | Index::Memory => self.storage(),
        }
    }

    /// The link that tells the root of alternate storage (dbox).
    pub fn alt_link(&self) -> PathBuf {
        self.root.join("dbox-alt-root")
    }

    /// The directory that holds the mailboxes.
    pub fn mailboxes(&self) -> PathBuf {
        self.top(&self.root)
    }

    fn top(&self, root: &Path) -> PathBuf {
        match &self.mailbox_dir {
            Some(directory) if self.kind != Kind::MaildirPlusPlus => root.join(directory),
            _ => root.to_owned(),
        }
    }

    fn below(&self, root: &Path, stored: &Path, dirname: bool) -> PathBuf {
        let path = self.top(root).join(stored);
        match &self.dirname {
            Some(name) if dirname && self.kind == Kind::Fs => path.join(name),
            _ => path,
        }
    }

    /// Says whether index files lie in directories `.imap` among the mailboxes, which are files.
    fn has_imap(&self) -> bool {
        self.format == Format::Mbox && (self.dirname.is_none() || self.kind == Kind::Index)
    }

    fn with_imap(&self, path: PathBuf) -> PathBuf {
        match (self.has_imap(), path.parent(), path.file_name()) {
            (true, Some(parent), Some(leaf)) => parent.join(IMAP).join(leaf),
            _ => path,
        }
    }
}
