//! Accounts of sdbox: their mailboxes, made, renamed, deleted.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use dsync_model::{
    MailboxGuid, MailboxName, MailboxNode, MailboxTree, StoreId, TreeChange, Uid, UidValidity,
};
use rand::RngExt;

use super::mailbox::{LOCK_WAIT, SdboxMailbox};
use super::sdbox::Files;
use crate::account::Account;
use crate::index::{Extension, Index, Paths, State, Transaction};
use crate::layout::{Kind, Layout, Places};
use crate::{
    Capabilities, Fsync, Mailbox, MailboxProblem, Result, Storage, StorageError, StoreLock, Support, disk,
};

/// The extension that keeps the mailbox's GUID.
const HEADER: &str = "dbox-hdr";
const HEADER_BYTES: usize = 24;

/// What all mailboxes of an account share.
pub(super) struct Shared {
    pub account: Account,
    /// The setting `mail_attachment_dir`.
    pub attachments: Option<PathBuf>,
}

/// An account of sdbox.
pub struct Sdbox {
    shared: Arc<Shared>,
    names: BTreeMap<MailboxGuid, MailboxName>,
}

impl Sdbox {
    /// Opens an account; its root is made if it is missing.
    pub fn open(layout: Layout, fsync: Fsync, attachments: Option<PathBuf>) -> Result<Sdbox> {
        if layout.kind == Kind::Index || layout.index == crate::layout::Index::Memory {
            let what = format!(
                "{}:{}: the index is the mailbox, and must lie on disk under the mailbox's name",
                layout.format,
                layout.root.display()
            );
            return Err(StorageError::Location(what));
        }
        let account = Account::open(layout, fsync)?;
        Ok(Sdbox { shared: Arc::new(Shared { account, attachments }), names: BTreeMap::new() })
    }

    fn list_one(&mut self, name: &MailboxName) -> Result<MailboxNode> {
        let places = self.shared.account.layout.places(name)?;
        Files::sweep(&places.mail)?;
        let (mut guid, mut index) = self.shared.index(&places)?;
        if self.names.contains_key(&guid) {
            // A copied directory: two mailboxes must not share a GUID.
            guid = MailboxGuid(rand::rng().random());
            tracing::warn!("{name}: has the GUID of another mailbox, and gets a new one");
            let validity = UidValidity::new(index.state().header.uid_validity);
            self.shared.identify(&mut index, guid, validity)?;
        }
        let mut mailbox = self.shared.mailbox(places, guid, index);
        let list = mailbox.list()?;
        let status = mailbox.status_of(&list)?;
        self.names.insert(guid, name.clone());
        Ok(MailboxNode { mailbox: Some(status), ..MailboxNode::default() })
    }
}

impl Shared {
    fn mailbox(self: &Arc<Shared>, places: Places, guid: MailboxGuid, index: Index) -> SdboxMailbox {
        let files = Files { places, attachments: self.attachments.clone(), mailbox: guid };
        SdboxMailbox::new(self.clone(), files, index)
    }

    fn paths(places: &Places) -> Paths {
        Paths::mailbox(places.index.as_deref().unwrap_or(&places.mail))
    }

    /// Opens a mailbox's index; one that is missing is made from the files that are there.
    fn index(&self, places: &Places) -> Result<(MailboxGuid, Index)> {
        let paths = Shared::paths(places);
        let mut index = match Index::open(paths.clone())? {
            Some(index) => index,
            None => self.rebuild(places, paths)?,
        };
        let known = guid_of(index.state());
        if let Some(guid) = known.filter(|_| index.state().header.uid_validity != 0) {
            return Ok((guid, index));
        }
        let guid = known.unwrap_or_else(|| MailboxGuid(rand::rng().random()));
        let validity = match UidValidity::new(index.state().header.uid_validity) {
            Some(validity) => validity,
            None => self.account.new_uid_validity()?,
        };
        self.identify(&mut index, guid, Some(validity))?;
        Ok((guid, index))
    }

    /// An index for files that have none: UIDs are their names; flags and keywords are lost.
    fn rebuild(&self, places: &Places, paths: Paths) -> Result<Index> {
        let guid = MailboxGuid(rand::rng().random());
        let files = Files { places: places.clone(), attachments: None, mailbox: guid };
        let found = files.all()?;
        if !found.is_empty() {
            let (directory, mails) = (places.mail.display(), found.len());
            tracing::warn!(
                "{directory}: the index is gone; {mails} messages are taken from their files under their UIDs, without flags and keywords"
            );
        }
        let validity = self.account.new_uid_validity()?;
        let next = found.last_key_value().map_or(1, |(uid, _)| uid + 1);
        let mut first = identity(guid);
        first.append(&found.keys().map(|uid| (*uid, 0)).collect::<Vec<_>>());
        Index::create(paths, validity.get(), next, first)
    }

    fn identify(&self, index: &mut Index, guid: MailboxGuid, validity: Option<UidValidity>) -> Result<()> {
        let mut writer = index.lock(LOCK_WAIT)?;
        let mut change = Transaction::new();
        if let Some(validity) = validity {
            change.header(24, &validity.get().to_le_bytes());
        }
        let known = writer.state().extension(HEADER).cloned();
        let extension = known.unwrap_or_else(|| Extension::new(HEADER, HEADER_BYTES, 0, 0));
        change.introduce(writer.state().extension_id(HEADER), &extension);
        change.ext_header(4, &guid.0);
        writer.append(change, self.account.fsync)
    }

    fn create(&self, name: &MailboxName, guid: MailboxGuid, validity: UidValidity, next: Uid) -> Result<()> {
        let places = self.account.layout.places(name)?;
        let paths = Shared::paths(&places);
        if paths.log().exists() {
            return Err(StorageError::Impossible(format!("mailbox {name} already exists")));
        }
        disk::make_directory(&places.mail)?;
        Index::create(paths, validity.get(), next.get(), identity(guid))?;
        disk::sync_directory(&self.account.layout.root, self.account.fsync)
    }

    fn delete(&self, name: &MailboxName, guid: MailboxGuid, uid_next: Uid) -> Result<bool> {
        let places = self.account.layout.places(name)?;
        let Some(mut index) = Index::open(Shared::paths(&places))? else { return Ok(true) };
        if name.is_inbox() {
            return Err(StorageError::Impossible("INBOX cannot be deleted".into()));
        }
        let mut writer = index.lock(LOCK_WAIT)?;
        if guid_of(writer.state()) != Some(guid) || writer.state().header.next_uid != uid_next.get() {
            return Ok(false);
        }
        // Whoever has it open learns it from the log.
        let mut deleted = Transaction::new();
        deleted.deleted();
        writer.append(deleted, self.account.fsync)?;
        let trash = self.account.new_trash();
        let directory = self.account.layout.directory(name)?;
        disk::rename(if is_only_in(&directory, &places.mail) { &directory } else { &places.mail }, &trash)?;
        disk::sync_directory(&self.account.layout.root, self.account.fsync)?;
        drop(writer);
        disk::remove_tree(&trash)?;
        for beside in [places.index, Some(places.control), places.alt].into_iter().flatten() {
            if beside.is_dir() {
                disk::rename(&beside, &trash)?;
                disk::remove_tree(&trash)?;
            }
        }
        disk::remove_empty(&directory)?;
        Ok(true)
    }

    fn rename(&self, from: &MailboxName, to: &MailboxName) -> Result<()> {
        let layout = &self.account.layout;
        let (old, new) = (layout.places(from)?, layout.places(to)?);
        let (directory, target) = (layout.directory(from)?, layout.directory(to)?);
        if Shared::paths(&new).log().exists() {
            return Err(StorageError::Impossible(format!("mailbox {to} already exists")));
        }
        let pairs = [
            (old.alt, new.alt),
            (old.index, new.index),
            (Some(old.control), Some(new.control)),
            (Some(old.mail), Some(new.mail)),
        ];
        for (from, to) in pairs.into_iter().filter_map(|(from, to)| Some((from?, to?))) {
            if from.is_dir() {
                let whole = is_only_in(&directory, &from) && to.parent() == Some(&target);
                let whole = whole && !target.starts_with(&directory) && is_empty(&target);
                let (from, to) = if whole { (&directory, &target) } else { (&from, &to) };
                disk::make_directory(to.parent().unwrap_or(&layout.root))?;
                // A directory that only waits for its mailbox may stand there.
                disk::remove_empty(to)?;
                disk::rename(from, to)?;
            }
        }
        disk::remove_empty(&directory)?;
        disk::sync_directory(&layout.root, self.account.fsync)
    }
}

/// Says whether a mailbox is all that its directory holds. Both then go in one step: a crash leaves no directory behind, which
/// would be taken for one that somebody made.
fn is_only_in(directory: &Path, mail: &Path) -> bool {
    mail.parent() == Some(directory) && fs::read_dir(directory).is_ok_and(|entries| entries.count() == 1)
}

/// Says whether a directory may be replaced.
fn is_empty(directory: &Path) -> bool {
    fs::read_dir(directory).map_or(true, |mut entries| entries.next().is_none())
}

/// The mailbox's GUID as its index has it.
fn guid_of(state: &State) -> Option<MailboxGuid> {
    let header = state.extension(HEADER)?.header_padded(HEADER_BYTES);
    let mut guid = [0; 16];
    guid.copy_from_slice(&header[4..20]);
    (guid != [0; 16]).then_some(MailboxGuid(guid))
}

fn identity(guid: MailboxGuid) -> Transaction {
    let mut first = Transaction::new();
    first.introduce(None, &Extension::new(HEADER, HEADER_BYTES, 0, 0));
    let mut header = vec![0; HEADER_BYTES];
    header[4..20].copy_from_slice(&guid.0);
    first.ext_header(0, &header);
    first
}

impl Storage for Sdbox {
    fn location(&self) -> String {
        self.shared.account.location()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { modseq: Support::Kept, log: true, keywords_max: None, directories: true }
    }

    fn store_id(&mut self) -> Result<StoreId> {
        self.shared.account.store_id()
    }

    fn lock(&mut self, wait: Duration) -> Result<StoreLock> {
        self.shared.account.lock(wait)
    }

    fn tree(&mut self) -> Result<(MailboxTree, Vec<MailboxProblem>)> {
        self.names.clear();
        let account = &self.shared.account;
        account.empty_trash()?;
        let inbox = MailboxName::inbox();
        disk::make_directory(&account.layout.places(&inbox)?.mail)?;
        let (found, mut problems) = account.layout.list()?;
        let subscribed = account.subscribed()?;
        let mut tree = MailboxTree::new();
        tree.insert(inbox.clone(), self.list_one(&inbox)?);
        for found in found {
            if !found.mailbox {
                tree.entry(found.name).or_default().directory = true;
                continue;
            }
            match self.list_one(&found.name) {
                Ok(node) => {
                    tree.insert(found.name, node);
                }
                Err(error) => problems.push(MailboxProblem { mailbox: found.name.to_string(), error }),
            }
        }
        for name in subscribed {
            tree.entry(name).or_default().subscribed = true;
        }
        Ok((tree, problems))
    }

    fn change_tree(&mut self, change: &TreeChange) -> Result<bool> {
        let shared = self.shared.clone();
        let account = &shared.account;
        match change {
            TreeChange::Create { name, guid, uid_validity, uid_next } => {
                shared.create(name, *guid, *uid_validity, *uid_next)?;
                self.names.insert(*guid, name.clone());
            }
            TreeChange::CreateDirectory { name } => disk::make_directory(&account.layout.directory(name)?)?,
            TreeChange::Rename { guid, from, to } => {
                if self.names.get(guid) != Some(from) {
                    return Err(StorageError::NoMailbox(from.to_string()));
                }
                shared.rename(from, to)?;
                self.names.insert(*guid, to.clone());
            }
            TreeChange::Identify { name, guid, uid_validity } => {
                let (_, mut index) = shared.index(&account.layout.places(name)?)?;
                shared.identify(&mut index, *guid, Some(*uid_validity))?;
                self.names.retain(|_, known| known != name);
                self.names.insert(*guid, name.clone());
            }
            TreeChange::Delete { name, guid, uid_next } => return shared.delete(name, *guid, *uid_next),
            TreeChange::DeleteDirectory { name } => disk::remove_empty(&account.layout.directory(name)?)?,
            TreeChange::Subscribe { names } => account.subscribe(names)?,
            TreeChange::Unsubscribe { names } => account.unsubscribe(names)?,
        }
        Ok(true)
    }

    fn open(&mut self, mailbox: MailboxGuid) -> Result<Box<dyn Mailbox>> {
        let name = self.names.get(&mailbox).ok_or_else(|| StorageError::NoMailbox(mailbox.to_string()))?;
        let places = self.shared.account.layout.places(name)?;
        let index = Index::open(Shared::paths(&places))?;
        let index = index.filter(|index| guid_of(index.state()) == Some(mailbox));
        let index = index.ok_or_else(|| StorageError::NoMailbox(mailbox.to_string()))?;
        Ok(Box::new(self.shared.mailbox(places, mailbox, index)))
    }

    fn notes(&mut self) -> Result<Vec<String>> {
        self.shared.account.notes()
    }

    fn read_note(&mut self, name: &str, bytes_max: usize) -> Result<Option<Vec<u8>>> {
        self.shared.account.read_note(name, bytes_max)
    }

    fn write_note(&mut self, name: &str, content: &[u8]) -> Result<()> {
        self.shared.account.write_note(name, content)
    }

    fn remove_note(&mut self, name: &str) -> Result<()> {
        self.shared.account.remove_note(name)
    }
}
