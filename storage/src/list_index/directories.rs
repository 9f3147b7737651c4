//! Directories of mailboxes (and the files of mbox) that are named by their GUIDs: which there are, what they say of themselves, and
//! how one gets another GUID (storage formats reference, 2.2).

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use dsync_model::MailboxGuid;

use super::nodes::Nodes;
use crate::index::{Extension, Index, Paths, State, Transaction};
use crate::layout::{Format, Layout, Places};
use crate::{Result, StorageError, disk};

/// The extension in whose header a mailbox has its own name: parts with NUL between them.
const BOX_NAME: &str = "box-name";
/// Most bytes that a header update of the log can tell.
const NAME_BYTES_MAX: usize = u16::MAX as usize;

/// A directory.
#[derive(Debug)]
pub struct Found {
    pub guid: MailboxGuid,
    /// Its name as it says, in stored parts.
    name: Option<Vec<String>>,
    validity: u32,
    /// Its deletion was begun.
    pub deleted: bool,
    pub holds_mail: bool,
}

impl Found {
    /// Gives it a name in the list: its own where that is free.
    pub fn adopt(&self, layout: &Layout, nodes: &mut Nodes) {
        let own = self.name.as_ref().filter(|name| {
            let parts: Vec<&str> = name.iter().map(String::as_str).collect();
            layout.name_of_parts(&parts).is_some()
                && nodes.get(name).is_none_or(|node| node.mailbox().is_none())
        });
        let lost = vec![format!("lost-{}", self.guid)];
        let name = own.unwrap_or(&lost);
        tracing::warn!(
            "{}: was in no list of mailboxes, and is {} again",
            layout.places_of(self.guid).mail.display(),
            name.join("/")
        );
        nodes.set_mailbox(name, self.guid, self.validity);
    }
}

/// All directories of mailboxes, sorted.
pub fn all(layout: &Layout) -> Result<Vec<Found>> {
    except(layout, |_| false)
}

/// The same without those of these mailboxes, into which nobody looks. Links are no directories: those that lead nowhere any more are
/// removed.
pub fn except(layout: &Layout, known: impl Fn(MailboxGuid) -> bool) -> Result<Vec<Found>> {
    let mut guids = BTreeSet::new();
    for top in tops(layout) {
        let entries = match fs::read_dir(&top) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            other => other.map_err(StorageError::io(&top))?,
        };
        for entry in entries {
            let entry = entry.map_err(StorageError::io(&top))?;
            let Some(guid) = guid_of(Some(&entry.file_name())).filter(|guid| !known(*guid)) else { continue };
            let is_mail = |kind: fs::FileType| kind.is_file() && layout.format == Format::Mbox;
            match entry.file_type() {
                Ok(kind) if kind.is_dir() || is_mail(kind) => drop(guids.insert(guid)),
                Ok(kind) if kind.is_symlink() && is_ours(&entry.path()) => disk::remove(&entry.path())?,
                _ => {}
            }
        }
    }
    Ok(guids.into_iter().map(|guid| look(layout, guid)).collect())
}

/// Those of one mailbox, if it has any.
pub fn one(layout: &Layout, guid: MailboxGuid) -> Option<Found> {
    present(&layout.places_of(guid)).iter().any(|path| !is_ours(path)).then(|| look(layout, guid))
}

fn tops(layout: &Layout) -> BTreeSet<PathBuf> {
    let Places { mail, index, .. } = layout.places_of(MailboxGuid([0; 16]));
    [Some(mail), index].iter().flatten().filter_map(|path| Some(path.parent()?.to_owned())).collect()
}

/// The GUID that a directory is named by.
pub fn guid_of(name: Option<&OsStr>) -> Option<MailboxGuid> {
    let name = name?.to_str()?;
    MailboxGuid::parse(name).filter(|guid| guid.to_string() == name)
}

fn look(layout: &Layout, guid: MailboxGuid) -> Found {
    let places = layout.places_of(guid);
    let index = places.index.as_ref().map(|directory| Index::open(Paths::mailbox(directory)));
    let index = index.transpose().unwrap_or_else(|error| {
        tracing::warn!("{error}");
        None
    });
    let index = index.flatten();
    let state = index.as_ref().map(Index::state);
    let files = |directory: &Path, begin: &str| {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        entries.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with(begin))
    };
    let holds_mail = match layout.format {
        Format::Maildir => files(&places.mail.join("cur"), "") || files(&places.mail.join("new"), ""),
        Format::Sdbox => files(&places.mail, "u.") || places.alt.is_some_and(|alt| files(&alt, "u.")),
        Format::Mbox => fs::metadata(&places.mail).is_ok_and(|meta| meta.is_file() && meta.len() > 0),
        Format::Mdbox => state.is_some_and(|state| !state.uids.is_empty()),
    };
    Found {
        guid,
        name: state.and_then(name_in),
        validity: state.map_or(0, |state| state.header.uid_validity),
        deleted: state.is_some_and(|state| state.deleted),
        holds_mail,
    }
}

fn name_in(state: &State) -> Option<Vec<String>> {
    let text = std::str::from_utf8(&state.extension(BOX_NAME)?.header).ok()?.trim_end_matches('\0');
    (!text.is_empty()).then(|| text.split('\0').map(str::to_owned).collect())
}

/// What tells a mailbox its own name, if it does not know it yet.
pub fn name_mailbox(state: Option<&State>, parts: &[String]) -> Transaction {
    let mut change = Transaction::new();
    let mut name = parts.join("\0").into_bytes();
    let known = state.and_then(|state| state.extension(BOX_NAME));
    if name.len() > NAME_BYTES_MAX || state.and_then(name_in).is_some_and(|known| known == parts) {
        return change;
    }
    name.resize(name.len().max(known.map_or(0, |known| known.header_bytes)), 0);
    let extension = Extension { header_bytes: name.len(), ..Extension::new(BOX_NAME, 0, 0, 0) };
    let extension = known.map_or(extension, |known| Extension { header_bytes: name.len(), ..known.clone() });
    change.introduce(state.and_then(|state| state.extension_id(BOX_NAME)), &extension);
    change.ext_header(0, &name);
    change
}

/// The directories of a mailbox that are there, or links to them.
pub fn present(places: &Places) -> BTreeSet<&PathBuf> {
    let Places { mail, control, index, cache, alt } = places;
    let all = [Some(mail), Some(control), index.as_ref(), cache.as_ref(), alt.as_ref()];
    all.into_iter().flatten().filter(|path| fs::symlink_metadata(path).is_ok()).collect()
}

/// Makes the directories of a mailbox reachable by another GUID, too.
pub fn lead(old: &Places, new: &Places) -> Result<()> {
    for path in present(old) {
        let to = beside(path, new)?;
        match fs::read_link(&to) {
            Ok(target) if Some(target.as_os_str()) == path.file_name() => {}
            _ => disk::symlink(Path::new(path.file_name().unwrap_or_default()), &to)?,
        }
    }
    Ok(())
}

/// Gives the directories of a mailbox the name by which links lead to them.
pub fn settle(places: &Places) -> Result<()> {
    for path in present(places).into_iter().filter(|path| is_ours(path)) {
        let target = fs::read_link(path).map_err(StorageError::io(path))?;
        let old = path.with_file_name(target);
        disk::exchange(&old, path)?;
        if is_ours(&old) {
            disk::remove(&old)?;
        }
    }
    Ok(())
}

/// Says whether it is a link that [`lead`] made: from one GUID to another in the same directory.
fn is_ours(path: &Path) -> bool {
    fs::read_link(path).is_ok_and(|target| guid_of(Some(target.as_os_str())).is_some())
}

/// The path in the same directory as `path` that the mailbox has whose places these are.
fn beside(path: &Path, new: &Places) -> Result<PathBuf> {
    let name =
        new.mail.file_name().ok_or_else(|| StorageError::Impossible("mailbox has no directory".into()))?;
    Ok(path.with_file_name(name))
}
