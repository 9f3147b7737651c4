//! Where the bodies of a mailbox's messages are: the one difference between sdbox and mdbox.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use dsync_model::{MailboxGuid, MessageGuid, NewMessage, Timestamp};

use super::map::{Map, MapWriter};
use super::mdbox::MapUid;
use super::saving::{Saved, Saving};
use super::{AttachmentDir, DboxFile, StoredMail, mdbox, sdbox};
use crate::index::{Edit, Extension, State};
use crate::layout::Places;
use crate::{Body, Fsync, Result};

/// A message that no index knows yet.
pub(super) enum Pending {
    /// It is written, to the file of this path.
    Written { saved: Saved, path: PathBuf },
    /// The map has it already, as another mailbox refers to it.
    Shared { message: NewMessage, map_uid: MapUid },
}

impl Pending {
    pub fn message(&self) -> &NewMessage {
        match self {
            Pending::Written { saved, .. } => &saved.message,
            Pending::Shared { message, .. } => message,
        }
    }

    /// Bytes of the body that were written.
    pub fn body_bytes(&self) -> u64 {
        match self {
            Pending::Written { saved, .. } => saved.body_bytes,
            Pending::Shared { .. } => 0,
        }
    }

    pub fn path(&self) -> Option<&Path> {
        match self {
            Pending::Written { path, .. } => Some(path),
            Pending::Shared { .. } => None,
        }
    }
}

/// A message that was found.
pub(super) struct Mail {
    pub file: DboxFile,
    pub stored: StoredMail,
    pub attachments: Option<AttachmentDir>,
    pub saved: Option<Timestamp>,
    pub map_uid: Option<MapUid>,
}

/// The bodies of one mailbox.
pub(super) enum Bodies {
    /// A file for each message.
    Own(sdbox::Files),
    /// Files that all mailboxes share.
    Shared(Box<mdbox::Files>),
}

/// What an edit does with bodies: messages that arrive, with their UIDs, and those that get another UID.
pub(super) struct Moves {
    pub saved: Vec<(u32, Pending)>,
    pub renumbered: BTreeMap<u32, u32>,
}

impl Bodies {
    pub fn places(&self) -> &Places {
        match self {
            Bodies::Own(files) => &files.places,
            Bodies::Shared(files) => &files.places,
        }
    }

    pub fn mailbox(&self) -> MailboxGuid {
        match self {
            Bodies::Own(files) => files.mailbox,
            Bodies::Shared(files) => files.mailbox,
        }
    }

    /// Extensions that the index has for each message.
    pub fn extensions(&self) -> Vec<Extension> {
        match self {
            Bodies::Own(_) => Vec::new(),
            Bodies::Shared(_) => mdbox::extensions(),
        }
    }

    /// Data of a message in these extensions.
    pub fn data(&self, state: &State, row: usize) -> Vec<(&'static str, Vec<u8>)> {
        match self {
            Bodies::Own(_) => Vec::new(),
            Bodies::Shared(_) => mdbox::data(state, row),
        }
    }

    /// The GUID of a message that the index has. `None`: its file is gone, or has none.
    pub fn guid(&mut self, state: &State, uid: u32) -> Result<Option<MessageGuid>> {
        match self {
            Bodies::Own(files) => files.guid(uid),
            Bodies::Shared(files) => files.guid(state, uid),
        }
    }

    /// The GUID's 128 bits, if they can be told without opening a file.
    pub fn guid_bits(&self, state: &State, uid: u32) -> Option<[u8; 16]> {
        match self {
            Bodies::Own(_) => None,
            Bodies::Shared(_) => mdbox::guid_bits(state, state.row(uid)?),
        }
    }

    /// Opens a message that the index has. `None`: it is gone.
    pub fn open(&mut self, state: &State, uid: u32) -> Result<Option<Mail>> {
        match self {
            Bodies::Own(files) => {
                let found = files.open(uid)?;
                let attachments = files.attachments(uid);
                Ok(found.map(|(file, stored)| Mail { file, stored, attachments, saved: None, map_uid: None }))
            }
            Bodies::Shared(files) => files.open(state, uid),
        }
    }

    pub fn begin(&mut self, message: NewMessage) -> Result<Saving> {
        match self {
            Bodies::Own(files) => files.begin(message),
            Bodies::Shared(files) => files.begin(message),
        }
    }

    /// A message that needs not be written, as the map has it; `None`: it is to be.
    pub fn share(&mut self, message: &NewMessage, body: &Body) -> Result<Option<Pending>> {
        match self {
            Bodies::Own(_) => Ok(None),
            Bodies::Shared(files) => files.share(message, body),
        }
    }

    pub fn end(&mut self, saving: Saving) -> Result<Pending> {
        match self {
            Bodies::Own(files) => files.end(saving),
            Bodies::Shared(files) => files.end(saving),
        }
    }

    pub fn abandon(&mut self, saving: Saving) {
        match self {
            Bodies::Own(files) => files.forget(saving.path()),
            Bodies::Shared(files) => files.abandon(saving),
        }
    }

    /// Takes back all that was saved and not placed.
    pub fn discard(&mut self, pending: Vec<Pending>) {
        match self {
            Bodies::Own(files) => {
                pending.iter().filter_map(Pending::path).for_each(|path| files.forget(path))
            }
            Bodies::Shared(files) => files.discard(),
        }
    }

    /// Makes what was saved durable, as a group.
    pub fn sync(&mut self, pending: &[Pending], policy: Fsync) -> Result<()> {
        match self {
            Bodies::Own(files) => files.sync(pending, policy),
            Bodies::Shared(files) => files.sync(policy),
        }
    }

    /// The map, if there is one; whoever changes bodies locks it before the index.
    pub fn take_map(&mut self) -> Result<Option<Map>> {
        match self {
            Bodies::Own(_) => Ok(None),
            Bodies::Shared(files) => files.take_map().map(Some),
        }
    }

    pub fn keep_map(&mut self, map: Option<Map>) {
        if let Bodies::Shared(files) = self {
            files.keep_map(map);
        }
    }

    /// Brings bodies where the index, which is locked, is about to say they are.
    pub fn place(
        &mut self,
        map: Option<&mut MapWriter<'_>>,
        state: &State,
        edit: &mut Edit,
        moves: &Moves,
        policy: Fsync,
    ) -> Result<()> {
        match (self, map) {
            (Bodies::Own(files), _) => files.place_all(moves, policy),
            (Bodies::Shared(files), Some(map)) => files.place(map, state, edit, moves, policy),
            (Bodies::Shared(_), None) => Ok(()),
        }
    }

    /// Ends what [`place`](Self::place) began, once the index says so.
    pub fn finish(&mut self, map: Option<&mut MapWriter<'_>>, edit: &Edit, policy: Fsync) -> Result<()> {
        match (self, map) {
            (Bodies::Own(files), _) => edit.expunged.iter().try_for_each(|(uid, _)| files.remove(*uid)),
            (Bodies::Shared(files), Some(map)) => files.finish(map, policy),
            (Bodies::Shared(_), None) => Ok(()),
        }
    }
}
