//! What all mailboxes of a dbox account share: finding them; their identity; the map. `making` makes, deletes and renames them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dsync_model::{MailboxGuid, MailboxName, NewMessage, UidValidity};
use rand::RngExt;

use super::bodies::Bodies;
use super::known_guids::KnownGuids;
use super::mailbox::DboxMailbox;
use super::map::{Map, MapWriter};
use super::store::Store;
use super::{mdbox, sdbox};
use crate::account::Account;
use crate::index::edit::{HeaderData, pop3_uidl};
use crate::index::format::u32_at;
use crate::index::{Extension, Index, Paths, State, Transaction};
use crate::layout::Places;
use crate::lock::patience;
use crate::status_cache::StatusCache;
use crate::{MailboxProblem, Result, StorageError, disk, halfway};

const HEADER_BYTES: usize = 24;
/// Behind the map's UIDVALIDITY (or the count of rebuilds) and the mailbox GUID.
const POP3_FLAGS: usize = 20;
const HAVE_POP3_UIDLS: u8 = 1;
const HAVE_POP3_ORDERS: u8 = 2;

/// See the module.
pub(super) struct Shared {
    pub account: Account,
    /// The setting `mail_attachment_dir`.
    pub attachments: Option<PathBuf>,
    /// The files of mdbox.
    pub store: Option<Store>,
    /// What mailboxes were like when they were last looked at. That of [`Dbox::tree`](super::storage::Dbox) is kept for the next run.
    pub statuses: Mutex<StatusCache>,
    pub guids: Mutex<KnownGuids>,
}

/// How often names may change while they are read.
const LISTINGS_MAX: usize = 10;

/// What the mailboxes of an mdbox refer to.
#[derive(Default)]
pub(super) struct Counted {
    /// How many records of mailboxes use each map UID.
    pub references: BTreeMap<u32, u32>,
    pub present: BTreeSet<MailboxName>,
    /// Mailboxes that have no index: to what they refer nobody knows.
    pub without_index: usize,
}

impl Shared {
    pub fn statuses(&self) -> MutexGuard<'_, StatusCache> {
        self.statuses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn guids(&self) -> MutexGuard<'_, KnownGuids> {
        self.guids.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An open mailbox. `map` is what another mailbox of the account read of it.
    pub fn mailbox(
        self: &Arc<Shared>,
        name: &MailboxName,
        places: Places,
        guid: MailboxGuid,
        index: Index,
        map: Option<Map>,
    ) -> DboxMailbox {
        let attachments = self.attachments.clone();
        let bodies = match &self.store {
            None => Bodies::Own(sdbox::Files { places, attachments, mailbox: guid }),
            Some(store) => {
                let stored_name = self.account.layout.stored_name(name);
                let mut files = mdbox::Files::new(places, guid, attachments, store.clone(), stored_name);
                files.keep_map(map);
                Bodies::Shared(Box::new(files))
            }
        };
        DboxMailbox::new(self.clone(), bodies, index)
    }

    /// The extension that keeps a mailbox's GUID.
    fn header(&self) -> &'static str {
        if self.store.is_some() { "mdbox-hdr" } else { "dbox-hdr" }
    }

    /// What tells Dovecot that messages with POP3 UIDLs or POP3 orders come: without that it looks for none.
    pub fn pop3_headers<'m>(
        &self,
        state: &State,
        saved: impl Iterator<Item = (&'m u32, &'m NewMessage)>,
    ) -> Vec<HeaderData> {
        let known = state.extension(self.header());
        let known = known.map_or(0, |known| known.header_padded(HEADER_BYTES)[POP3_FLAGS]);
        let (mut flags, mut last) = (known, 0);
        for (uid, message) in saved {
            if message.pop3_uidl.is_some() {
                flags |= HAVE_POP3_UIDLS;
                last = last.max(*uid);
            }
            if message.pop3_order.is_some() {
                flags |= HAVE_POP3_ORDERS;
            }
        }
        let ours = HeaderData { extension: self.header(), at: POP3_FLAGS as u16, data: vec![flags] };
        let ours = (flags != known).then_some(ours);
        ours.into_iter().chain(pop3_uidl(state, last)).collect()
    }

    /// Takes the map's lock. If somebody died between the map and a mailbox, references are counted anew first.
    pub fn lock_map<'a>(&self, map: &'a mut Map) -> Result<MapWriter<'a>> {
        let mut writer = map.lock()?;
        if writer.is_unfinished()? {
            tracing::warn!(
                "{}: a change of the map was not brought to its end; references are counted anew",
                self.account.location()
            );
            self.count_anew(&mut writer)?;
        }
        Ok(writer)
    }

    /// Opens the map of mdbox; one that is missing is made.
    pub fn open_map(&self) -> Result<Option<Map>> {
        let Some(store) = &self.store else { return Ok(None) };
        match Map::open(&store.map)? {
            Some(map) => Ok(Some(map)),
            None => super::rebuild::make_map(self, store).map(Some),
        }
    }

    /// Counts references anew, after a change of the map that was not brought to its end: somebody died, or the mailbox was renamed or deleted.
    pub fn count_anew(&self, map: &mut MapWriter<'_>) -> Result<()> {
        let (counted, problems) = self.references()?;
        let complete = problems.is_empty() && counted.without_index == 0;
        tracing::debug!("{}: references are counted anew; complete: {complete}", self.account.location());
        map.set_references(&counted.references, complete, self.account.fsync)
    }

    /// What the mailboxes refer to, and those that cannot be read. The map is locked.
    pub fn references(&self) -> Result<(Counted, Vec<MailboxProblem>)> {
        self.each_index(|counted: &mut Counted, name, state| {
            let Some(state) = state else {
                counted.without_index += 1;
                return;
            };
            counted.present.insert(name.clone());
            for row in 0..state.uids.len() {
                if let Some((map_uid, _)) = mdbox::map_uid(state, row) {
                    *counted.references.entry(map_uid).or_default() += 1;
                }
            }
        })
    }

    /// The names of all mailboxes, and those that are none of ours.
    pub fn names(&self) -> Result<(Vec<MailboxName>, Vec<MailboxProblem>)> {
        let account = &self.account;
        let listed = || Ok(!account.lists_by_index() || account.listed(&MailboxName::inbox())?.is_some());
        let inbox = (account.layout.has_inbox && listed()?).then(MailboxName::inbox);
        if !account.lists_by_index() && !account.layout.mailboxes().is_dir() {
            return Ok((inbox.into_iter().collect(), Vec::new()));
        }
        let (found, problems) = account.found()?;
        let names = found.into_iter().filter(|found| found.mailbox).map(|found| found.name);
        Ok((names.chain(inbox).collect(), problems))
    }

    /// Shows the index of every mailbox, if it has one; tells which could not be read. It begins anew if somebody renames mailboxes meanwhile: one that was missed would
    /// count as one that refers to no message.
    pub fn each_index<T: Default>(
        &self,
        show: impl Fn(&mut T, &MailboxName, Option<&State>),
    ) -> Result<(T, Vec<MailboxProblem>)> {
        // What is in no list uses its messages all the same.
        self.account.find_lost()?;
        let (mut names, mut problems) = self.names()?;
        for _ in 0..LISTINGS_MAX {
            let mut shown = T::default();
            for name in &names {
                let index = self.account.places(name).and_then(|places| Index::open(Shared::paths(&places)));
                match index {
                    Ok(Some(index)) if index.state().deleted => {}
                    Ok(index) => show(&mut shown, name, index.as_ref().map(Index::state)),
                    Err(error) => problems.push(MailboxProblem { mailbox: name.to_string(), error }),
                }
            }
            let now = self.names()?;
            if now.0 == names {
                return Ok((shown, problems));
            }
            (names, problems) = now;
        }
        let what = "mailboxes are renamed faster than they can be listed; run again later";
        Err(StorageError::io(&self.account.layout.root)(std::io::Error::other(what)))
    }

    pub fn paths(places: &Places) -> Paths {
        Paths::mailbox(places.index.as_deref().unwrap_or(&places.mail))
    }

    /// Makes the directory of the index, where it is another than that of the mail. That must be there: else somebody has renamed or deleted the mailbox.
    pub fn make_index_directory(places: &Places) -> Result<()> {
        if !disk::pretends() {
            fs::metadata(&places.mail).map_err(StorageError::io(&places.mail))?;
        }
        places.index.iter().try_for_each(|index| disk::make_directory(index))
    }

    /// Opens a mailbox's index; one that is missing is made from the files that are there. Where the mailbox was made or renamed just now, whoever did so may be about to give it one.
    pub fn index(&self, places: &Places) -> Result<(MailboxGuid, Index)> {
        let paths = Shared::paths(places);
        let mut found = Index::open(paths.clone())?;
        if found.is_none() && !disk::pretends() {
            // An index that lies with the mail is renamed with it. Else Dovecot renames first the directory around the mail.
            let (at_most, around) = match paths.directory == places.mail {
                true => (halfway::MAKING, None),
                false => (halfway::RENAMING, places.mail.parent()),
            };
            Index::wait_for(&paths, at_most, || halfway::is_young_with(&places.mail, around));
            found = Index::open(paths.clone())?;
        }
        let mut index = match found {
            Some(index) => index,
            None => self.rebuild(places, paths)?,
        };
        let known = self.guid_of(index.state());
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

    /// The GUID of a mailbox that has lost its own.
    pub fn new_guid(&self, places: &Places) -> MailboxGuid {
        match self.account.guid_of_directory(places) {
            Some(guid) => guid,
            None => MailboxGuid(rand::rng().random()),
        }
    }

    /// An index for a mailbox that has none. With sdbox UIDs are the names of files; flags and keywords are lost.
    fn rebuild(&self, places: &Places, paths: Paths) -> Result<Index> {
        Shared::make_index_directory(places)?;
        let guid = self.new_guid(places);
        if let Some(store) = &self.store {
            return super::rebuild::make_mailbox(self, store, places, paths, guid);
        }
        let files = sdbox::Files { places: places.clone(), attachments: None, mailbox: guid };
        let found = files.all()?;
        let whole: Vec<u32> =
            found.iter().filter(|(_, damage)| damage.is_none()).map(|(uid, _)| *uid).collect();
        if !found.is_empty() {
            tracing::warn!(
                "{}: the index is gone; {} messages are taken from their files under their UIDs; lost are flags, keywords, \
                 modseqs, the mailbox's UIDVALIDITY and its GUID",
                places.mail.display(),
                whole.len()
            );
        }
        for error in found.values().flatten() {
            tracing::warn!("{error}: not recovered; the file stays as it is");
        }
        let validity = self.account.new_uid_validity()?;
        let next = found.last_key_value().map_or(1, |(uid, _)| uid + 1);
        let mut first = self.identity(guid)?;
        first.append(&whole.iter().map(|uid| (*uid, 0)).collect::<Vec<_>>());
        Index::create_or_open(paths, validity.get(), next, first)
    }

    pub fn identify(
        &self,
        index: &mut Index,
        guid: MailboxGuid,
        validity: Option<UidValidity>,
    ) -> Result<()> {
        let mut writer = index.lock(patience())?;
        let mut change = Transaction::new();
        if let Some(validity) = validity {
            change.header(24, &validity.get().to_le_bytes());
        }
        let known = writer.state().extension(self.header()).cloned();
        if let Some(store) = self.store.as_ref().filter(|_| known.is_none()) {
            let extension = Extension::new(self.header(), HEADER_BYTES, 0, 0);
            change.introduce(None, &extension);
            change.ext_header(0, &store.open_map()?.uid_validity().to_le_bytes());
        }
        let extension = known.unwrap_or_else(|| Extension::new(self.header(), HEADER_BYTES, 0, 0));
        change.introduce(writer.state().extension_id(self.header()), &extension);
        change.ext_header(4, &guid.0);
        writer.append(change, self.account.fsync)
    }

    /// The mailbox's GUID as its index has it.
    pub fn guid_of(&self, state: &State) -> Option<MailboxGuid> {
        let header = state.extension(self.header())?.header_padded(HEADER_BYTES);
        let mut guid = [0; 16];
        guid.copy_from_slice(&header[4..20]);
        (guid != [0; 16]).then_some(MailboxGuid(guid))
    }

    /// The UIDVALIDITY of the map that a mailbox of mdbox refers to; 0 if it says none.
    pub fn map_validity_of(&self, state: &State) -> u32 {
        let header = state.extension(self.header());
        header.map_or(0, |header| u32_at(&header.header_padded(HEADER_BYTES), 0))
    }

    pub fn identity(&self, guid: MailboxGuid) -> Result<Transaction> {
        // For sdbox it is how often the mailbox was rebuilt.
        let validity = self.store.as_ref().map(|store| Ok(store.open_map()?.uid_validity()));
        Ok(self.identity_with(guid, validity.unwrap_or(Ok(0))?))
    }

    /// The same for a map that is still to be made.
    pub fn identity_with(&self, guid: MailboxGuid, map_validity: u32) -> Transaction {
        let mut first = Transaction::new();
        first.introduce(None, &Extension::new(self.header(), HEADER_BYTES, 0, 0));
        let mut header = map_validity.to_le_bytes().to_vec();
        header.extend_from_slice(&guid.0);
        header.resize(HEADER_BYTES, 0);
        first.ext_header(0, &header);
        first
    }
}
