//! GUIDs that a Dovecot has of messages that lie in an mbox here, which keeps none.
//!
//! When both ends are found equal it is noted what the Dovecot calls each message. As long as nothing new is in the mbox, the next session says that
//! it keeps GUIDs and tells those: then an expunge is proved as between any two storages, wherever in the list. With a new message, which anybody may have brought
//! from anywhere, messages are compared by their headers once more.
//!
//! A UID is not enough to be known by: a noted message must have the same header, by the GUID that the mbox makes of it.
//!
//! Kept in the note `dovecot-guids`. Losing it costs a comparison by headers, nothing else.

use std::collections::{BTreeMap, BTreeSet};

use dsync_model::{MailboxGuid, MailboxStatus, MailboxTree, MessageChange, MessageGuid, Uid, UidValidity};
use dsync_storage::Storage;

const NOTE: &str = "dovecot-guids";
const MAGIC: &[u8; 8] = b"dsyncdg1";
/// Largest note that is read or written: about a million messages. More is forgotten.
const NOTE_BYTES_MAX: usize = 64 << 20;

/// Messages by UID, each with the 128 bits of what the mbox makes of its header, and with the peer's GUID.
pub type Known = BTreeMap<Uid, ([u8; 16], MessageGuid)>;

/// Mailboxes by host and GUID.
#[derive(Default)]
pub struct Guids {
    host: u64,
    known: BTreeMap<(u64, MailboxGuid), Entry>,
    is_changed: bool,
}

/// One mailbox when both ends were last found equal.
#[derive(Clone, PartialEq, Eq)]
struct Entry {
    uid_validity: u32,
    uid_next: u32,
    /// As in the note: read when the mailbox is opened.
    messages: Vec<u8>,
}

impl Guids {
    /// Reads the note; one that cannot be read is as good as none. `tree`: all mailboxes that there are, if that is known.
    pub fn read(storage: &mut dyn Storage, host: u64, tree: Option<&MailboxTree>) -> Guids {
        let note = storage.read_note(NOTE, NOTE_BYTES_MAX).ok().flatten().unwrap_or_default();
        let mut known = parse(&note).unwrap_or_default();
        if let Some(tree) = tree {
            let exist: BTreeSet<_> =
                tree.values().filter_map(|node| Some(node.mailbox.as_ref()?.guid)).collect();
            known.retain(|(_, guid), _| exist.contains(guid));
        }
        Guids { host, known, is_changed: false }
    }

    /// Whether the GUIDs of all messages are known: whatever came since has raised UIDNEXT.
    pub fn covers(&self, status: &MailboxStatus) -> bool {
        self.known.get(&(self.host, status.guid)).is_some_and(|entry| {
            (entry.uid_validity, entry.uid_next) == (status.uid_validity.get(), status.uid_next.get())
        })
    }

    /// What is known of the messages of a mailbox under this UIDVALIDITY.
    pub fn of(&self, mailbox: MailboxGuid, uid_validity: UidValidity) -> Known {
        let entry = self.known.get(&(self.host, mailbox));
        let entry = entry.filter(|entry| entry.uid_validity == uid_validity.get());
        entry.and_then(|entry| parse_messages(&entry.messages)).unwrap_or_default()
    }

    /// Notes a mailbox that is equal at both ends: what lies in it, and what the peer calls that. Nothing, unless that is known of every message.
    pub fn put(
        &mut self,
        status: &MailboxStatus,
        list: &[MessageChange],
        theirs: &BTreeMap<Uid, MessageGuid>,
    ) {
        let mut messages = Vec::new();
        let mut is_complete = true;
        for change in list {
            let MessageChange::Save { uid, guid, .. } = change else { continue };
            match theirs.get(uid) {
                Some(name) => add(&mut messages, *uid, guid.bits(), name),
                // It came in since.
                None if *uid >= status.uid_next => {}
                None => is_complete = false,
            }
        }
        let entry =
            Entry { uid_validity: status.uid_validity.get(), uid_next: status.uid_next.get(), messages };
        let key = (self.host, status.guid);
        let before = match is_complete {
            true => self.known.insert(key, entry.clone()),
            false => self.known.remove(&key),
        };
        self.is_changed |= before != is_complete.then_some(entry);
    }

    /// Writes the note, if it would say something new.
    pub fn write(&self, storage: &mut dyn Storage) {
        if !self.is_changed {
            return;
        }
        let mut note = MAGIC.to_vec();
        for ((host, guid), entry) in &self.known {
            note.extend_from_slice(&host.to_le_bytes());
            note.extend_from_slice(&guid.0);
            for number in [entry.uid_validity, entry.uid_next, entry.messages.len() as u32] {
                note.extend_from_slice(&number.to_le_bytes());
            }
            note.extend_from_slice(&entry.messages);
            if note.len() > NOTE_BYTES_MAX {
                note.truncate(MAGIC.len());
                break;
            }
        }
        if let Err(error) = storage.write_note(NOTE, &note) {
            tracing::debug!("{error}: GUIDs of the other end are not kept");
        }
    }
}

fn add(messages: &mut Vec<u8>, uid: Uid, own: [u8; 16], name: &MessageGuid) {
    let text = name.as_str().as_bytes();
    messages.extend_from_slice(&uid.get().to_le_bytes());
    messages.extend_from_slice(&own);
    messages.extend_from_slice(&(text.len() as u32).to_le_bytes());
    messages.extend_from_slice(text);
}

fn number(bytes: &mut &[u8]) -> Option<u32> {
    let (number, rest) = bytes.split_first_chunk::<4>()?;
    *bytes = rest;
    Some(u32::from_le_bytes(*number))
}

/// As many bytes as the number in front of them says.
fn counted<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = number(bytes)?;
    let (content, rest) = bytes.split_at_checked(usize::try_from(length).ok()?)?;
    *bytes = rest;
    Some(content)
}

fn parse(note: &[u8]) -> Option<BTreeMap<(u64, MailboxGuid), Entry>> {
    let mut rest = note.strip_prefix(MAGIC)?;
    let mut known = BTreeMap::new();
    while !rest.is_empty() {
        let (host, behind) = rest.split_first_chunk::<8>()?;
        let (guid, behind) = behind.split_first_chunk::<16>()?;
        rest = behind;
        let (uid_validity, uid_next) = (number(&mut rest)?, number(&mut rest)?);
        let messages = counted(&mut rest)?.to_vec();
        known.insert(
            (u64::from_le_bytes(*host), MailboxGuid(*guid)),
            Entry { uid_validity, uid_next, messages },
        );
    }
    Some(known)
}

fn parse_messages(mut bytes: &[u8]) -> Option<Known> {
    let mut known = Known::new();
    while !bytes.is_empty() {
        let uid = Uid::new(number(&mut bytes)?)?;
        let (own, rest) = bytes.split_first_chunk::<16>()?;
        bytes = rest;
        let name = MessageGuid::new(std::str::from_utf8(counted(&mut bytes)?).ok()?)?;
        known.insert(uid, (*own, name));
    }
    Some(known)
}

#[cfg(test)]
mod tests {
    use dsync_model::{Digest, FlagDelta, ModSeq};
    use dsync_storage::memory::MemoryStorage;

    use super::*;

    fn uid(number: u32) -> Uid {
        Uid::new(number).unwrap()
    }

    fn status(uid_next: u32) -> MailboxStatus {
        MailboxStatus {
            guid: MailboxGuid([1; 16]),
            uid_validity: UidValidity::new(7).unwrap(),
            uid_next: uid(uid_next),
            messages: 2,
            highest_modseq: ModSeq::NONE,
            digest: Digest::default(),
        }
    }

    fn list(messages: &[(u32, &str)]) -> Vec<MessageChange> {
        let save = |(number, guid): &(u32, &str)| MessageChange::Save {
            uid: uid(*number),
            guid: MessageGuid::new(guid).unwrap(),
            modseq: ModSeq::NONE,
            flags: FlagDelta::default(),
            size: None,
        };
        messages.iter().map(save).collect()
    }

    #[test]
    fn guids_are_known_until_something_new_is_there() {
        let mut storage = MemoryStorage::default();
        let name = |text| MessageGuid::new(text).unwrap();
        let theirs: BTreeMap<Uid, MessageGuid> = [(uid(1), name("there,S=1")), (uid(4), name("four"))].into();
        let mut guids = Guids::read(&mut storage, 3, None);
        assert!(!guids.covers(&status(5)));
        // The third came in since.
        guids.put(&status(5), &list(&[(1, "a"), (4, "b"), (5, "c")]), &theirs);
        guids.write(&mut storage);
        for host in [3, 4] {
            let guids = Guids::read(&mut storage, host, None);
            assert_eq!([guids.covers(&status(5)), guids.covers(&status(6))], [host == 3, false]);
            let known = guids.of(status(5).guid, status(5).uid_validity);
            let expected: Known =
                [(uid(1), (name("a").bits(), name("there,S=1"))), (uid(4), (name("b").bits(), name("four")))]
                    .into();
            assert_eq!(known, if host == 3 { expected } else { Known::new() });
            assert!(guids.of(status(5).guid, UidValidity::new(8).unwrap()).is_empty());
        }
        // A mailbox that is gone is forgotten.
        assert!(Guids::read(&mut storage, 3, Some(&MailboxTree::new())).known.is_empty());
        // One that is not wholly known is as good as one that is not known.
        let mut guids = Guids::read(&mut storage, 3, None);
        guids.put(&status(6), &list(&[(1, "a"), (5, "c")]), &theirs);
        assert!(guids.is_changed && guids.known.is_empty());
    }

    #[test]
    fn a_damaged_note_is_none() {
        let mut storage = MemoryStorage::default();
        let mut guids = Guids::read(&mut storage, 3, None);
        let theirs = [(uid(1), MessageGuid::new("there").unwrap())].into();
        guids.put(&status(2), &list(&[(1, "a")]), &theirs);
        guids.write(&mut storage);
        let note = storage.read_note(NOTE, NOTE_BYTES_MAX).unwrap().unwrap();
        for length in 0..note.len() {
            storage.write_note(NOTE, &note[..length]).unwrap();
            assert!(Guids::read(&mut storage, 3, None).known.is_empty(), "{length}");
        }
        for place in 0..note.len() {
            let mut damaged = note.clone();
            damaged[place] ^= 0xff;
            storage.write_note(NOTE, &damaged).unwrap();
            let guids = Guids::read(&mut storage, 3, None);
            assert!(guids.of(status(2).guid, status(2).uid_validity).len() <= 1, "{place}");
        }
    }
}
