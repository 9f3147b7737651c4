//! Keeps the index of a Maildir in step with its files: what changed behind it becomes records of its log.
//!
//! Files and uidlist say which messages there are; the index adds modseqs, keywords without a letter, history, and flag changes
//! that Dovecot has not carried out yet.

use dsync_model::{Digest, FlagSet, MailboxStatus, Message, MessageAction, ModSeq, Uid, UidValidity};

use super::scan::{Scan, guid, size};
use super::uidlist;
use crate::index::edit::{flag_set, keywords, pop3_uidl};
use crate::index::follow::{self, NO_GOAL, Told};
use crate::index::{Appended, Edit, Import, Index, Paths, State, Transaction};
use crate::layout::Places;
use crate::lock::{DotLock, patience};
use crate::{Fsync, Goal, Result, StorageError, disk};

/// Opens the index of a mailbox that was just read, and brings both into step. `None`: the account keeps its indexes in memory.
pub fn open(places: &Places, scan: &mut Scan, policy: Fsync) -> Result<Option<Index>> {
    let Some(directory) = &places.index else { return Ok(None) };
    let mut index = open_or_create(places, Paths::mailbox(directory), scan)?;
    let goal = Goal { uid_next_min: scan.list.uid_next(), uid_validity: scan.list.uid_validity, ..NO_GOAL };
    if is_behind(&index, scan, goal) {
        // The order of locks: uidlist, then index.
        let lock = DotLock::take(&uidlist::path(&places.control), patience())?;
        if !disk::pretends() {
            (*scan, _) = Scan::look(places)?;
        }
        let goal =
            Goal { uid_next_min: scan.list.uid_next(), uid_validity: scan.list.uid_validity, ..NO_GOAL };
        write(&mut index, places, scan, goal, &Told::default(), policy, &mut Import::Over)?;
        drop(lock);
    }
    Ok(Some(index))
}

fn open_or_create(places: &Places, paths: Paths, scan: &Scan) -> Result<Index> {
    let broken = match Index::open(paths.clone()) {
        Ok(Some(index)) => {
            let validity = UidValidity::new(index.state().header.uid_validity);
            if validity.is_none() || validity == scan.list.uid_validity {
                return Ok(index);
            }
            Some("its UIDVALIDITY is not that of the mailbox".to_owned())
        }
        Ok(None) => None,
        Err(error @ StorageError::Corrupt { .. }) => Some(error.to_string()),
        Err(error) => return Err(error),
    };
    if let Some(what) = broken {
        tracing::warn!("{}: index is made anew: {what}", paths.log().display());
        let cache = paths.directory.join("dovecot.index.cache");
        for path in [paths.log(), paths.log2(), paths.snapshot(), cache] {
            disk::remove(&path)?;
        }
    }
    let validity = scan.list.uid_validity.map_or(0, UidValidity::get);
    if paths.directory != places.mail {
        disk::make_directory(&paths.directory)?;
    }
    Index::create_or_open(paths, validity, 1, Transaction::new())
}

fn is_behind(index: &Index, scan: &Scan, goal: Goal) -> bool {
    let state = index.state();
    let edit = difference(scan, state);
    let next = goal.uid_next_min.get() > state.header.next_uid;
    !edit.appended.is_empty() || !edit.flagged.is_empty() || !edit.expunged.is_empty() || next
}

/// Writes what the files have and the index has not. The uidlist's lock is held.
pub fn write(
    index: &mut Index,
    places: &Places,
    scan: &mut Scan,
    goal: Goal,
    told: &Told<'_>,
    policy: Fsync,
    import: &mut Import,
) -> Result<()> {
    let mut writer = index.lock(patience())?;
    let state = writer.state();
    let mut edit = difference(scan, state);
    if is_doubtful(&edit, state, told) && !disk::pretends() {
        (*scan, _) = Scan::look(places)?;
        edit = difference(scan, state);
    }
    follow::tell(&mut edit, state, told);
    if !edit.appended.is_empty() {
        let named = scan.list.records.iter().rev().find(|record| record.field(b'P').is_some());
        edit.headers.extend(named.and_then(|record| pop3_uidl(state, record.uid.get())));
    }
    import.write(&mut writer, &mut edit, goal, &[], policy)
}

/// UIDVALIDITY and UIDNEXT as the index has them, if there is one that can be read.
pub fn numbers(places: &Places) -> Option<(UidValidity, Uid)> {
    let index = Index::open(Paths::mailbox(places.index.as_ref()?)).ok()??;
    let header = &index.state().header;
    Some((UidValidity::new(header.uid_validity)?, Uid::new(header.next_uid).unwrap_or(Uid::MIN)))
}

/// Says whether index and files may differ only because Dovecot expunged or renamed files after we had read their names. It does neither
/// while we hold the index.
fn is_doubtful(edit: &Edit, state: &State, told: &Told<'_>) -> bool {
    let ours = |uid: u32| {
        told.actions.iter().any(|action| match action {
            MessageAction::Expunge { uid: gone, .. } => gone.get() == uid,
            MessageAction::Renumber { from, to } => from.get() == uid || to.get() == uid,
            MessageAction::Flags { .. } => false,
        })
    };
    let came_back = |mail: &Appended| mail.uid < state.header.next_uid && !told.saved.contains_key(&mail.uid);
    edit.appended.iter().any(|mail| came_back(mail) && !ours(mail.uid))
        || edit.expunged.iter().any(|(uid, _)| !ours(*uid))
}

/// Another UIDVALIDITY for a mailbox that stays as it is.
pub fn set_validity(places: &Places, validity: UidValidity, policy: Fsync) -> Result<()> {
    let Some(directory) = &places.index else { return Ok(()) };
    let Some(mut index) = Index::open(Paths::mailbox(directory))? else { return Ok(()) };
    let mut writer = index.lock(patience())?;
    let mut change = Transaction::new();
    change.header(24, &validity.get().to_le_bytes());
    writer.append(change, policy)
}

/// What leads from the index to the files.
fn difference(scan: &Scan, state: &State) -> Edit {
    let files = scan.messages().map(|(record, file)| (record.uid.get(), scan.flags(file)));
    let guid_of = |uid: u32| {
        let line = scan.list.records.binary_search_by_key(&uid, |record| record.uid.get());
        line.map_or([0; 16], |line| guid(&scan.list.records[line]).bits())
    };
    // What has no letter is kept by the index alone.
    follow::difference(files, state, guid_of, |keyword| scan.keywords.has(keyword))
}

/// The messages as files and index have them together.
pub fn list(scan: &Scan, state: Option<&State>) -> Vec<Message> {
    let names = state.map(keywords).unwrap_or_default();
    let message = |(record, file): (&uidlist::Record, &super::scan::FileName)| {
        let known = state.and_then(|state| Some((state, state.row(record.uid.get())?)));
        Message {
            uid: record.uid,
            guid: guid(record),
            flags: known.map_or_else(|| scan.flags(file), |(state, row)| flag_set(state, row, &names)),
            modseq: known
                .map_or(ModSeq::NONE, |(state, row)| ModSeq::new(state.modseq_of(row)).unwrap_or_default()),
            received: None,
            size: size(record),
        }
    };
    scan.messages().map(message).collect()
}

/// Counters and digest of what [`list`] gave.
pub fn status(scan: &Scan, state: Option<&State>, list: &[Message]) -> Result<MailboxStatus> {
    let (Some(guid), Some(uid_validity)) = (scan.list.guid, scan.list.uid_validity) else {
        return Err(StorageError::NoMailbox("without a GUID".into()));
    };
    Ok(MailboxStatus {
        guid,
        uid_validity,
        uid_next: scan.list.uid_next(),
        messages: list.len() as u32,
        highest_modseq: state
            .map_or(ModSeq::NONE, |state| ModSeq::new(state.highest_modseq()).unwrap_or_default()),
        digest: Digest::of(list),
    })
}

/// Flags of a message of which only the file name may be known.
pub fn flags_of(scan: &Scan, state: Option<&State>, uid: Uid) -> Option<FlagSet> {
    if let Some((state, row)) = state.and_then(|state| Some((state, state.row(uid.get())?))) {
        return Some(flag_set(state, row, &keywords(state)));
    }
    let index = scan.index_of(uid)?;
    scan.files[index].as_ref().map(|file| scan.flags(file))
}
