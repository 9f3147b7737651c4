//! Puts together again what mdbox has lost (storage formats reference, 10.8): the map from the files, a mailbox from what nobody
//! refers to.
//!
//! A mailbox's records keep their map UIDs: the map is made to fit them, by GUID. A message that is in the files and in no mailbox
//! is an orphan, and goes to the mailbox that it was saved to first, else to INBOX. Done twice, nothing comes twice: what a mailbox
//! has is no orphan any more. A mailbox that cannot be read stops it all, as its messages would look like orphans.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use dsync_model::{FlagSet, MailboxGuid, MailboxName, ModSeq};
use rand::RngExt;

use super::DboxFile;
use super::map::{Map, MapState, Place};
use super::mdbox::{self, Ids};
use super::shared::{Counted, Shared};
use super::store::Store;
use crate::index::{Appended, Edit, Index, Paths, Transaction};
use crate::layout::Places;
use crate::lock::{FileLock, patience};
use crate::{Goal, Result, StorageError, disk};

/// A message in a file.
struct Found {
    place: Place,
    guid: [u8; 16],
    /// The mailbox that it was saved to first, as the disk has its name.
    mailbox: Option<Box<[u8]>>,
}

/// What the mailboxes tell of a map that is gone.
#[derive(Default)]
struct Recorded {
    /// Map UIDs and GUIDs of messages.
    records: Vec<(u32, [u8; 16])>,
    /// The UIDVALIDITYs of the map, and how many mailboxes have each.
    validities: BTreeMap<u32, usize>,
    present: BTreeSet<MailboxName>,
}

/// Makes the map of an account that has none.
pub(super) fn make_map(shared: &Shared, store: &Store) -> Result<Map> {
    disk::make_directory(&store.directory)?;
    disk::make_directory(&store.map)?;
    let lock = FileLock::take(&store.directory.join(".dsync-rebuild"), patience())?;
    let made = match Map::open(&store.map)? {
        Some(made) => made,
        None => rebuild_map(shared, store)?,
    };
    drop(lock);
    Ok(made)
}

fn rebuild_map(shared: &Shared, store: &Store) -> Result<Map> {
    let found = scan(store)?;
    let (Recorded { records, mut validities, present }, problems) =
        shared.each_index(|told: &mut Recorded, name, state| {
            let Some(state) = state else { return };
            told.present.insert(name.clone());
            *told.validities.entry(shared.map_validity_of(state)).or_default() += 1;
            let rows = 0..state.uids.len();
            told.records.extend(
                rows.filter_map(|row| Some((mdbox::map_uid(state, row)?.0, mdbox::guid_bits(state, row)?))),
            );
        })?;
    all_readable(problems)?;
    validities.remove(&0);
    let validity = validities.iter().max_by_key(|(_, count)| **count).map(|(validity, _)| *validity);
    let now = super::saving::now().0 as u32;
    if found.is_empty() && records.is_empty() {
        return Map::create(&store.map, validity.unwrap_or(now), 1, &[], 0);
    }
    let validity = validity.unwrap_or(now);
    if validities.len() > 1 {
        let what =
            "mailboxes belong to different maps, and the map is gone: only doveadm force-resync can help";
        return Err(StorageError::Corrupt { path: Map::paths(&store.map).log(), line: 0, what });
    }
    let mut by_guid: BTreeMap<[u8; 16], Vec<Place>> = BTreeMap::new();
    found.iter().for_each(|found| by_guid.entry(found.guid).or_default().push(found.place));
    let mut wanted: BTreeMap<[u8; 16], BTreeSet<u32>> = BTreeMap::new();
    for (map_uid, guid) in &records {
        wanted.entry(*guid).or_default().insert(*map_uid);
    }
    let mut messages: BTreeMap<u32, (Place, u16)> = BTreeMap::new();
    for (guid, map_uids) in &wanted {
        // Messages with one GUID were saved in the order of their map UIDs.
        let places = by_guid.get(guid).map(Vec::as_slice).unwrap_or_default();
        for (i, map_uid) in map_uids.iter().enumerate() {
            if let Some(place) = places.get(i).or(places.last()) {
                messages.insert(*map_uid, (*place, 0));
            }
        }
    }
    let mut missing = 0;
    for (map_uid, _) in &records {
        match messages.get_mut(map_uid) {
            Some((_, references)) => *references = references.saturating_add(1),
            None => missing += 1,
        }
    }
    let mut next = records.iter().map(|(map_uid, _)| *map_uid).max().unwrap_or(0) + 1;
    let mut homes = Homes::of(shared, present, validity)?;
    let mut seen = BTreeSet::new();
    let mut orphans: BTreeMap<MailboxName, Vec<(u32, [u8; 16])>> = BTreeMap::new();
    for found in &found {
        // Of two alike, one was left behind by a purge that died.
        if wanted.contains_key(&found.guid) || !seen.insert((found.guid, found.place.size)) {
            continue;
        }
        messages.insert(next, (found.place, 1));
        let home = homes.home(found.mailbox.as_deref()).unwrap_or_else(MailboxName::inbox);
        orphans.entry(home).or_default().push((next, found.guid));
        next += 1;
    }
    homes.names.extend(orphans.keys().cloned());
    homes.make_missing()?;
    tracing::warn!(
        "{}: the map is gone, and was made from the files: {} messages found in them, {missing} messages of mailboxes are \
         not there, {} are in no mailbox and come back without flags, expunged ones among them perhaps",
        shared.account.location(),
        found.len(),
        orphans.values().map(Vec::len).sum::<usize>(),
    );
    // The mailboxes first: if we die before the map is made, they are no orphans the next time.
    for (name, orphans) in &orphans {
        append(shared, name, orphans)?;
    }
    let highest = found.iter().map(|found| found.place.file).max().unwrap_or(0);
    let messages: Vec<(u32, Place, u16)> =
        messages.into_iter().map(|(uid, (place, references))| (uid, place, references)).collect();
    Map::create(&store.map, validity, next, &messages, highest)
}

/// Makes the index of a mailbox that has lost its own, with the orphans that are its own.
pub(super) fn make_mailbox(
    shared: &Shared,
    store: &Store,
    places: &Places,
    paths: Paths,
    guid: MailboxGuid,
) -> Result<Index> {
    let mut map = store.open_map()?;
    let mut map = shared.lock_map(&mut map)?;
    let (Counted { references: mut counted, present, .. }, problems) = shared.references()?;
    let lost: Vec<(u32, Place, u16)> = map
        .state()
        .all()
        .filter(|(uid, _, references)| *references > 0 && !counted.contains_key(uid))
        .collect();
    let validity = shared.account.new_uid_validity()?;
    if lost.is_empty() {
        return Index::create_or_open(paths, validity.get(), 1, shared.identity(guid)?);
    }
    all_readable(problems)?;
    let homes = Homes::of(shared, present.clone(), map.state().header.uid_validity)?;
    let mut ours: Vec<(u32, [u8; 16])> = Vec::new();
    let mut theirs: BTreeMap<MailboxName, Vec<(u32, [u8; 16])>> = BTreeMap::new();
    let mut unread = 0;
    let mut reading: Option<(u32, DboxFile)> = None;
    for (uid, place, references) in lost {
        let found = match read(store, &mut reading, place) {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!("{error}");
                unread += 1;
                counted.insert(uid, references.into());
                continue;
            }
        };
        match homes.home(found.mailbox.as_deref()) {
            Some(home) if shared.account.places(&home)?.mail != places.mail => {
                if !present.contains(&home) {
                    // That mailbox has lost its index too, and fetches it itself.
                    counted.insert(uid, references.into());
                    continue;
                }
                theirs.entry(home).or_default().push((uid, found.guid));
            }
            _ => ours.push((uid, found.guid)),
        }
        counted.insert(uid, 1);
    }
    tracing::warn!(
        "{}: the index is gone; {} messages that were saved there first come back, {} more to where they were saved first, \
         all without flags and keywords, under new UIDs; {unread} cannot be read",
        paths.log().display(),
        ours.len(),
        theirs.values().map(Vec::len).sum::<usize>(),
    );
    for (name, orphans) in &theirs {
        append(shared, name, orphans)?;
    }
    let mut first = shared.identity(guid)?;
    let ids: Vec<(u32, Ids)> = ours.iter().zip(1..).map(|(orphan, uid)| (uid, ids(orphan))).collect();
    first.append(&ids.iter().map(|(uid, _)| (*uid, 0)).collect::<Vec<_>>());
    put_ids(&mut first, &ids);
    let index = Index::create(paths, validity.get(), ids.len() as u32 + 1, first)?;
    map.set_references(&counted, true, shared.account.fsync)?;
    Ok(index)
}

/// Where orphans may go.
struct Homes<'a> {
    shared: &'a Shared,
    /// Mailboxes, whether they have an index or not.
    names: BTreeSet<MailboxName>,
    /// Those that have one.
    present: BTreeSet<MailboxName>,
    map_validity: u32,
}

impl Homes<'_> {
    fn of(shared: &Shared, present: BTreeSet<MailboxName>, map_validity: u32) -> Result<Homes<'_>> {
        let names = shared.names()?.0.into_iter().collect();
        Ok(Homes { shared, names, present, map_validity })
    }

    /// The mailbox that a message goes back to: its own, else INBOX. In a namespace that is not the user's there may be neither.
    fn home(&self, stored: Option<&[u8]>) -> Option<MailboxName> {
        let layout = &self.shared.account.layout;
        let stored = stored.and_then(|stored| std::str::from_utf8(stored).ok());
        let name = stored.and_then(|stored| layout.name_of_parts(&stored.split('/').collect::<Vec<_>>()));
        name.into_iter().chain([MailboxName::inbox()]).find(|name| self.names.contains(name))
    }

    /// Gives every mailbox an index.
    fn make_missing(&self) -> Result<()> {
        let account = &self.shared.account;
        for name in self.names.difference(&self.present) {
            let places = match account.places(name) {
                Err(StorageError::NoMailbox(_)) => {
                    account.new_places(name, MailboxGuid(rand::rng().random()))?
                }
                places => places?,
            };
            let guid = self.shared.new_guid(&places);
            let validity = account.new_uid_validity()?;
            let mut first = self.shared.identity_with(guid, self.map_validity);
            first.extend(account.own_name(None, name));
            disk::make_directory(&places.mail)?;
            tracing::warn!("{}: the index is gone, with flags and keywords", places.mail.display());
            Shared::make_index_directory(&places)?;
            Index::create_or_open(Shared::paths(&places), validity.get(), 1, first)?;
            account.list_mailbox(name, guid, validity)?;
        }
        Ok(())
    }
}

/// Adds orphans to a mailbox that has an index.
fn append(shared: &Shared, name: &MailboxName, orphans: &[(u32, [u8; 16])]) -> Result<()> {
    let paths = Shared::paths(&shared.account.places(name)?);
    let index = Index::open(paths)?;
    let mut index = index.ok_or_else(|| StorageError::NoMailbox(name.to_string()))?;
    let mut writer = index.lock(patience())?;
    let next = writer.state().header.next_uid;
    let appended = orphans.iter().zip(next..).map(|(orphan, uid)| Appended {
        uid,
        flags: FlagSet::default(),
        modseq: ModSeq::NONE,
        data: ids(orphan).into(),
    });
    let edit = Edit { appended: appended.collect(), ..Edit::default() };
    let goal = Goal {
        uid_next_min: dsync_model::Uid::MIN,
        modseq_min: ModSeq::NONE,
        uid_validity: None,
        unfinished: false,
    };
    let transaction = edit.transaction(writer.state(), goal, &mdbox::extensions());
    writer.append(transaction, shared.account.fsync)
}

fn ids((map_uid, guid): &(u32, [u8; 16])) -> Ids {
    mdbox::ids(*map_uid, super::saving::now(), guid)
}

fn put_ids(log: &mut Transaction, ids: &[(u32, Ids)]) {
    for (i, extension) in mdbox::extensions().iter().enumerate().filter(|_| !ids.is_empty()) {
        log.introduce(None, extension);
        log.ext_records(ids.iter().map(|(uid, ids)| (*uid, &ids[i].1[..])));
    }
}

fn all_readable(problems: Vec<crate::MailboxProblem>) -> Result<()> {
    match problems.into_iter().next() {
        None => Ok(()),
        Some(problem) => {
            tracing::error!("mailbox {}: cannot be read, so that nothing can be rebuilt", problem.mailbox);
            Err(problem.error)
        }
    }
}

fn read(store: &Store, reading: &mut Option<(u32, DboxFile)>, place: Place) -> Result<Found> {
    let known = reading.take().filter(|(number, _)| *number == place.file);
    let file = match known {
        Some((_, file)) => file,
        None => store.open(place.file)?.ok_or_else(|| StorageError::Damaged {
            path: store.path(place.file),
            offset: place.offset.into(),
            what: "the file is gone".into(),
        })?,
    };
    let mail = file.message(place.offset.into())?;
    *reading = Some((place.file, file));
    let guid = mail.metadata.guid.map(|guid| guid.bits()).unwrap_or_default();
    Ok(Found { place, guid, mailbox: mail.metadata.mailbox })
}

/// All messages in all files, by file and offset.
fn scan(store: &Store) -> Result<Vec<Found>> {
    let mut found = Vec::new();
    for (number, path) in files(store) {
        let file = match DboxFile::open(&path) {
            Ok(file) => file,
            Err(error @ StorageError::Damaged { .. }) => {
                tracing::warn!("{error}");
                continue;
            }
            Err(error) => return Err(error),
        };
        let mut at = file.header().size;
        let size = file.size()?;
        while at < size {
            let mail = match file.message(at) {
                Ok(mail) => mail,
                Err(error @ StorageError::Damaged { .. }) => {
                    tracing::warn!("{error}");
                    match file.next_message(at + 1)? {
                        Some(mail) => mail,
                        None => break,
                    }
                }
                Err(error) => return Err(error),
            };
            at = mail.end;
            let fits = u32::try_from(mail.offset).ok().zip(u32::try_from(mail.end - mail.offset).ok());
            let (Some((offset, size)), Some(guid)) = (fits, mail.metadata.guid) else {
                tracing::warn!("{}: the message at {} has no GUID", path.display(), mail.offset);
                continue;
            };
            let place = Place { file: number, offset, size };
            found.push(Found { place, guid: guid.bits(), mailbox: mail.metadata.mailbox });
        }
    }
    Ok(found)
}

/// All files by number; of two with one number, that which is not in alternate storage.
fn files(store: &Store) -> BTreeMap<u32, PathBuf> {
    let mut files = BTreeMap::new();
    for directory in [store.alt.as_ref(), Some(&store.directory)].into_iter().flatten() {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix("m.")?.parse::<u32>().ok());
            if let Some(number) = number.filter(|number| *number > 0) {
                files.insert(number, entry.path());
            }
        }
    }
    files
}
