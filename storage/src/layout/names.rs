//! How names of mailboxes are spelled on the disk, and which ones cannot be (storage formats reference, 2.4).

use std::path::{Path, PathBuf};

use dsync_model::{MailboxName, mutf7};

use super::{Format, IMAP, Index, Kind, Layout};
use crate::{Result, StorageError};

/// Longest file name, in bytes.
pub(super) const FILE_NAME_BYTES_MAX: usize = 255;
/// What the longest name of a mailbox file leaves room for: `.lock`.
pub(super) const LOCK_BYTES: usize = 5;
/// With this begin the names to which deleted mailboxes are renamed first, Dovecot's and ours.
pub(super) const TRASH: &str = "..DOVECOT-Tr";
/// Files that lie in the directories of mailboxes, or begin so.
pub(super) const BESIDE_MAIL: [&str; 6] = [
    "dovecot.index",
    "dovecot-uid",
    "dovecot-keywords",
    "dovecot.list.index",
    "dovecot.mailbox.log",
    "maildirfolder",
];

impl Layout {
    /// The path of a mailbox below the directory that holds them all. It never leads out of it, nor to what is no mailbox.
    pub(super) fn stored(&self, name: &MailboxName) -> Result<PathBuf> {
        let impossible = |what: &str| {
            Err(StorageError::Impossible(format!(
                "mailbox name {name:?} {what} ({}, {})",
                self.format,
                self.kind_name()
            )))
        };
        let parts = self.stored_parts(name);
        if parts[0].starts_with('~') {
            return impossible("begins with a tilde, which Dovecot refuses");
        }
        if self.kind == Kind::MaildirPlusPlus {
            if parts.iter().any(|part| part.contains('.')) {
                return impossible("has a dot within a part, which Maildir++ cannot store; use LAYOUT=fs");
            }
            // Maildir++ has one more dot in front.
            let stored = if name.is_inbox() { ".INBOX".to_owned() } else { format!(".{}", parts.join(".")) };
            if stored.len() > FILE_NAME_BYTES_MAX {
                return impossible("is too long for a file name");
            }
            if self.is_ours(&self.root.join(&stored)) {
                return impossible("is the name of something else here");
            }
            return Ok(stored.into());
        }
        let file = usize::from(self.has_imap()) * LOCK_BYTES;
        let mut path = PathBuf::new();
        for (depth, part) in parts.iter().enumerate() {
            if part.len() + file > FILE_NAME_BYTES_MAX {
                return impossible("is too long for a file name");
            }
            path.push(part);
            let taken = self.is_hidden(part, depth) || self.is_ours(&self.mailboxes().join(&path));
            if !self.is_the_inbox(name) && (taken || self.is_beside_mail(part)) {
                return impossible("is the name of something else here");
            }
        }
        Ok(path)
    }

    /// The parts of a name as the disk has them, from the root down.
    pub fn stored_parts(&self, name: &MailboxName) -> Vec<String> {
        name.parts()
            .iter()
            .map(|part| if self.utf8 { part.to_string() } else { mutf7::encode(part) })
            .collect()
    }

    /// The name as Dovecot writes it into its files, as one text.
    pub fn stored_name(&self, name: &MailboxName) -> String {
        self.stored_parts(name).join(&self.stored_separator().to_string())
    }

    /// See [`stored_parts`](Self::stored_parts); `None` if it is no valid name.
    pub fn name_of_parts(&self, parts: &[&str]) -> Option<MailboxName> {
        let parts: Option<Vec<String>> = parts.iter().map(|part| self.part(part)).collect();
        MailboxName::new(&parts?).ok()
    }

    /// One part of a name; `None` if it is not valid.
    pub(super) fn part(&self, stored: &str) -> Option<String> {
        if self.utf8 { Some(stored.to_owned()) } else { mutf7::decode(stored) }
    }

    /// The separator of names on disk.
    pub fn stored_separator(&self) -> char {
        if self.kind == Kind::MaildirPlusPlus { '.' } else { '/' }
    }

    /// Says whether a file or directory of this name, so deep below the mailboxes, can be no mailbox.
    pub(super) fn is_hidden(&self, part: &str, depth: usize) -> bool {
        // Dovecot writes one TRASHED, the other TrasH.
        if depth == 0 && part.get(..TRASH.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(TRASH)) {
            return true;
        }
        match &self.dirname {
            Some(dirname) => part == dirname,
            None if self.format == Format::Maildir => matches!(part, "cur" | "new" | "tmp"),
            None if self.format == Format::Mbox => {
                part == IMAP || part.ends_with(".lock") || (depth == 0 && part == self.subscriptions)
            }
            None => false,
        }
    }

    /// Says whether the path is that of something else than a mailbox of the account.
    pub(super) fn is_ours(&self, path: &Path) -> bool {
        let index = match &self.index {
            Index::At(root) => Some(root),
            Index::Beside | Index::Memory => None,
        };
        let roots = [&self.control, &self.alt, &self.volatile, &self.cache];
        let mut roots = roots.into_iter().flatten().chain(index);
        roots.any(|root| root == path)
            || self.subscriptions_file() == path
            || self.inbox.as_deref() == Some(path)
            || (self.format == Format::Mdbox && (self.storage() == path || self.map() == path))
    }

    /// Says whether a mailbox of this name would lie where its parent has, or may have, a file.
    fn is_beside_mail(&self, part: &str) -> bool {
        !self.has_imap() && BESIDE_MAIL.iter().any(|begin| part.starts_with(begin))
    }

    fn kind_name(&self) -> &'static str {
        match self.kind {
            Kind::MaildirPlusPlus => "LAYOUT=maildir++",
            Kind::Fs => "LAYOUT=fs",
            Kind::Index => "LAYOUT=index",
        }
    }
}
