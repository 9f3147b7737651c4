//! The mailboxes of an account by name, wherever its layout has the names.
//!
//! With LAYOUT=index, mailboxes lie in directories (mbox: files) that are named by their GUIDs, and are found through the list index. A
//! mailbox is made before it is listed, and off the list before it is removed: killed in between, mail lies in a directory of no name,
//! and gets its name back when the account is opened next ([`Account::find_lost`]).

use std::collections::BTreeSet;
use std::sync::{MutexGuard, PoisonError};

use dsync_model::{MailboxGuid, MailboxName, MailboxStatus, TreeChange, UidValidity};
use rand::RngExt;

use super::directories;
use crate::account::Account;
use crate::index::{Index, State, Transaction};
use crate::layout::{Found, Kind, Places};
use crate::lock::patience;
use crate::{MailboxProblem, Result, StorageError, disk};

impl Account {
    /// Says whether the names are in the list index alone.
    pub fn lists_by_index(&self) -> bool {
        self.layout.kind == Kind::Index
    }

    /// Mailboxes and names without mail, the user's INBOX left out.
    pub fn found(&self) -> Result<(Vec<Found>, Vec<MailboxProblem>)> {
        if !self.lists_by_index() {
            return self.layout.list();
        }
        let (mut found, mut problems) = (Vec::new(), Vec::new());
        let mut seen = BTreeSet::new();
        let mut problem = |mailbox: String, what: &str| {
            let error = StorageError::Impossible(format!("mailbox {mailbox:?} {what}"));
            problems.push(MailboxProblem { mailbox, error });
        };
        self.list.look(&self.layout, |nodes| {
            for (_, parts, node) in nodes.all() {
                let Some(name) = self.layout.name_of_parts(&parts) else {
                    problem(parts.join("/"), "has a name that cannot be read");
                    continue;
                };
                match node.mailbox() {
                    Some(guid) if !seen.insert(guid) => {
                        problem(name.to_string(), "has the directory of another mailbox");
                    }
                    Some(guid) if directories::present(&self.layout.places_of(guid)).is_empty() => {
                        problem(name.to_string(), "is in the list, and its directory is not there");
                    }
                    mailbox => found.push(Found { name, mailbox: mailbox.is_some() }),
                }
            }
            for uid in nodes.broken() {
                problem(format!("node {uid}"), "of the list index has a name that cannot be read");
            }
        })?;
        found.retain(|found| !self.layout.is_the_inbox(&found.name));
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok((found, problems))
    }

    /// The same, kept for [`is_steady`](Self::is_steady).
    pub fn find(&self) -> Result<(Vec<Found>, Vec<MailboxProblem>)> {
        let (found, problems) = self.found()?;
        self.last_found().clone_from(&found);
        Ok((found, problems))
    }

    /// Says whether there is what [`find`](Self::find) found last.
    pub fn is_steady(&self) -> Result<bool> {
        let (found, _) = self.found()?;
        Ok(*self.last_found() == found)
    }

    fn last_found(&self) -> MutexGuard<'_, Vec<Found>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// GUID and UIDVALIDITY of a mailbox as the list index has them; `None`: it has none of this name. The UIDVALIDITY may be unknown yet.
    pub fn listed(&self, name: &MailboxName) -> Result<Option<(MailboxGuid, Option<UidValidity>)>> {
        let parts = self.layout.stored_parts(name);
        let listed = self.list.look(&self.layout, |nodes| {
            let node = nodes.get(&parts)?;
            Some((node.mailbox()?, UidValidity::new(node.validity)))
        });
        Ok(listed?.flatten())
    }

    /// The same if the mailbox has another GUID than this, which it says of itself: the list is believed, as it leads to the directory.
    pub fn listed_otherwise(
        &self,
        name: &MailboxName,
        guid: MailboxGuid,
    ) -> Result<Option<(MailboxGuid, Option<UidValidity>)>> {
        if !self.lists_by_index() {
            return Ok(None);
        }
        Ok(self.listed(name)?.filter(|(listed, _)| *listed != guid))
    }

    /// The identity that a mailbox must get because its own is that of another one (`taken`: a copy), or not that of its directory.
    pub fn other_identity(
        &self,
        name: &MailboxName,
        status: &MailboxStatus,
        taken: bool,
    ) -> Result<Option<(MailboxGuid, UidValidity)>> {
        let listed = self.listed_otherwise(name, status.guid)?;
        let (guid, validity, what) = match listed {
            Some((guid, validity)) => (guid, validity.unwrap_or(status.uid_validity), "its directory"),
            None if taken => (MailboxGuid(rand::rng().random()), status.uid_validity, "other mailboxes"),
            None => return Ok(None),
        };
        tracing::warn!("{name}: its GUID does not go with {what}, and it gets another one");
        Ok(Some((guid, validity)))
    }

    /// Says whether the list index has a name, of a mailbox or not.
    pub fn is_listed(&self, name: &MailboxName) -> Result<bool> {
        let parts = self.layout.stored_parts(name);
        Ok(self.list.look(&self.layout, |nodes| nodes.get(&parts).is_some())? == Some(true))
    }

    /// Where a mailbox lies.
    pub fn places(&self, name: &MailboxName) -> Result<Places> {
        if !self.lists_by_index() {
            return self.layout.places(name);
        }
        let (guid, _) = self.listed(name)?.ok_or_else(|| StorageError::NoMailbox(name.to_string()))?;
        Ok(self.layout.places_of(guid))
    }

    /// Where a mailbox is about to be made. With LAYOUT=index, what a dead process began there is removed.
    pub fn new_places(&self, name: &MailboxName, guid: MailboxGuid) -> Result<Places> {
        if !self.lists_by_index() {
            return self.layout.places(name);
        }
        if self.listed(name)?.is_some() {
            return Err(StorageError::MailboxExists(name.to_string()));
        }
        self.clear(guid)?;
        Ok(self.layout.places_of(guid))
    }

    /// Removes directories of a mailbox that is not in the list, and holds no mail.
    fn clear(&self, guid: MailboxGuid) -> Result<()> {
        let listed = self.list.look(&self.layout, |nodes| nodes.has(guid))?;
        let found = directories::one(&self.layout, guid);
        if listed == Some(true) || found.as_ref().is_some_and(|found| found.holds_mail && !found.deleted) {
            let path = self.layout.places_of(guid).mail;
            return Err(StorageError::Impossible(format!("{}: is there already", path.display())));
        }
        if found.is_none() { Ok(()) } else { self.remove_directories(guid) }
    }

    fn remove_directories(&self, guid: MailboxGuid) -> Result<()> {
        for path in directories::present(&self.layout.places_of(guid)) {
            let trash = self.new_trash();
            disk::rename(path, &trash)?;
            if trash.is_dir() { disk::remove_tree(&trash)? } else { disk::remove(&trash)? }
        }
        Ok(())
    }

    /// Lists a mailbox that was made.
    pub fn list_mailbox(&self, name: &MailboxName, guid: MailboxGuid, validity: UidValidity) -> Result<()> {
        if !self.lists_by_index() {
            return Ok(());
        }
        let parts = self.layout.stored_parts(name);
        self.list.change(&self.layout, self.fsync, false, |nodes| {
            if nodes.get(&parts).is_some_and(|node| node.mailbox().is_some_and(|other| other != guid)) {
                return Err(StorageError::MailboxExists(name.to_string()));
            }
            nodes.set_mailbox(&parts, guid, validity.get());
            Ok(())
        })
    }

    /// Takes a mailbox off the list that is about to be removed.
    pub fn unlist_mailbox(&self, name: &MailboxName, guid: MailboxGuid) -> Result<()> {
        if !self.lists_by_index() {
            return Ok(());
        }
        let parts = self.layout.stored_parts(name);
        self.list.change(&self.layout, self.fsync, false, |nodes| {
            if nodes.get(&parts).and_then(|node| node.mailbox()) == Some(guid) {
                nodes.remove_mailbox(&parts);
            }
            Ok(())
        })
    }

    /// Makes, renames or removes what with LAYOUT=index is a name in the list and nothing else.
    pub fn change_list(&self, change: &TreeChange) -> Result<()> {
        let parts = |name| self.layout.stored_parts(name);
        self.list.change(&self.layout, self.fsync, false, |nodes| {
            match change {
                TreeChange::CreateDirectory { name } => nodes.set_directory(&parts(name)),
                TreeChange::DeleteDirectory { name } => nodes.remove_directory(&parts(name)),
                TreeChange::Rename { guid, from, to } => {
                    let at = |name| nodes.get(&parts(name)).and_then(|node| node.mailbox());
                    if at(from) != Some(*guid) {
                        return Err(StorageError::NoMailbox(from.to_string()));
                    }
                    if at(to).is_some() {
                        return Err(StorageError::MailboxExists(to.to_string()));
                    }
                    nodes.rename(&parts(from), &parts(to));
                }
                TreeChange::Create { .. }
                | TreeChange::Identify { .. }
                | TreeChange::Delete { .. }
                | TreeChange::Subscribe { .. }
                | TreeChange::Unsubscribe { .. } => {}
            }
            Ok(())
        })?;
        match change {
            TreeChange::Rename { guid, to, .. } => self.name_itself(&self.layout.places_of(*guid), to),
            _ => Ok(()),
        }
    }

    /// Tells a mailbox its own name, which Dovecot, too, has in each index.
    pub fn name_itself(&self, places: &Places, name: &MailboxName) -> Result<()> {
        let Some(directory) = places.index.as_ref().filter(|_| self.lists_by_index()) else { return Ok(()) };
        let Some(mut index) = Index::open(crate::index::Paths::mailbox(directory))? else { return Ok(()) };
        let mut writer = index.lock(patience())?;
        let change = self.own_name(Some(writer.state()), name);
        writer.append(change, self.fsync)
    }

    /// The same for an index that is still to be made.
    pub fn own_name(&self, state: Option<&State>, name: &MailboxName) -> Transaction {
        if !self.lists_by_index() {
            return Transaction::new();
        }
        directories::name_mailbox(state, &self.layout.stored_parts(name))
    }

    /// Begins to give a mailbox another GUID: its directories are reachable by both, and the list has the new one. Gives the places to
    /// write the new identity to; [`settle_places`](Self::settle_places) ends it.
    pub fn lead_places(
        &self,
        name: &MailboxName,
        guid: MailboxGuid,
        validity: UidValidity,
    ) -> Result<Places> {
        let Some((old, _)) = self.listed(name)?.filter(|_| self.lists_by_index()) else {
            return self.places(name);
        };
        let places = self.layout.places_of(guid);
        if old != guid {
            self.clear(guid)?;
            directories::lead(&self.layout.places_of(old), &places)?;
        }
        let parts = self.layout.stored_parts(name);
        self.list.change(&self.layout, self.fsync, false, |nodes| {
            nodes.set_mailbox(&parts, guid, validity.get());
            Ok(())
        })?;
        Ok(places)
    }

    /// Gives directories the names by which links lead to them.
    pub fn settle_places(&self, places: &Places) -> Result<()> {
        if self.lists_by_index() { directories::settle(places) } else { Ok(()) }
    }

    /// The GUID that a directory of LAYOUT=index is named by.
    pub fn guid_of_directory(&self, places: &Places) -> Option<MailboxGuid> {
        directories::guid_of(places.mail.file_name()).filter(|_| self.lists_by_index())
    }

    /// Brings to an end what a dead process began: a mailbox that holds mail and is in no list gets its name back, one that was being
    /// deleted goes, and one that got another GUID moves there. Empty directories stay: somebody may be making a mailbox.
    pub fn find_lost(&self) -> Result<()> {
        if !self.lists_by_index() {
            return Ok(());
        }
        let listed: Option<BTreeSet<MailboxGuid>> =
            self.list.look(&self.layout, |nodes| nodes.guids().collect())?;
        let listed = listed.unwrap_or_default();
        for guid in &listed {
            directories::settle(&self.layout.places_of(*guid))?;
        }
        let lost = directories::except(&self.layout, |guid| listed.contains(&guid))?;
        for found in lost.iter().filter(|found| found.deleted) {
            self.remove_directories(found.guid)?;
        }
        let lost: Vec<_> = lost.iter().filter(|found| found.holds_mail && !found.deleted).collect();
        if lost.is_empty() {
            return Ok(());
        }
        self.list.change(&self.layout, self.fsync, false, |nodes| {
            lost.iter().for_each(|found| found.adopt(&self.layout, nodes));
            Ok(())
        })
    }
}
