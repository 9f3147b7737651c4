//! The tree of names in a list index, and what changes of it become in its log (storage formats reference, 5.1).
//!
//! Pure: the state of the index in, a transaction out. No file is touched, and which mailboxes really are there is not known.

use std::collections::{BTreeMap, BTreeSet};

use dsync_model::MailboxGuid;

use crate::index::format::u32_at;
use crate::index::{Extension, State, Transaction};

const LIST: &str = "list";
/// What the files of a mailbox looked like when its numbers were noted. Zeros: the numbers are worth nothing.
const SEEN: &str = "index sync";
/// Bytes of a record: number of the name, UID of the node above, GUID, UIDVALIDITY.
const RECORD_BYTES: usize = 28;
/// Bytes of the header in an index that is new.
const HEADER_BYTES_MIN: usize = 32;
/// The node has only nodes below it.
const NONEXISTENT: u8 = 0x04;
/// The node may not hold mail.
const NOSELECT: u8 = 0x10;
/// More levels than any name has: a loop.
const DEPTH_MAX: usize = 1001;
/// More names than one change makes.
const NAMES_ROOM: u32 = 1 << 24;
/// Longest part that is read, in bytes: no name is longer.
const PART_BYTES_MAX: usize = dsync_model::NAME_BYTES_MAX;
/// The UID of what is above the names at the top.
const TOP: u32 = 0;
/// Of what is no mailbox.
const NO_GUID: MailboxGuid = MailboxGuid([0; 16]);

/// One name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    /// Of the part in the header.
    number: u32,
    above: u32,
    part: String,
    flags: u8,
    guid: MailboxGuid,
    pub validity: u32,
}

impl Node {
    /// The GUID of the mailbox, if the name stands for one.
    pub fn mailbox(&self) -> Option<MailboxGuid> {
        Some(self.guid).filter(|guid| *guid != NO_GUID && self.flags & (NONEXISTENT | NOSELECT) == 0)
    }

    fn from_bytes(record: &[u8], flags: u8, parts: &BTreeMap<u32, &str>) -> Option<Node> {
        let record = record.first_chunk::<RECORD_BYTES>()?;
        let number = u32_at(record, 0);
        Some(Node {
            number,
            above: u32_at(record, 4),
            part: (*parts.get(&number)?).to_owned(),
            flags,
            guid: guid_in(record),
            validity: u32_at(record, 24),
        })
    }

    fn to_bytes(&self) -> [u8; RECORD_BYTES] {
        let mut bytes = [0; RECORD_BYTES];
        bytes[..4].copy_from_slice(&self.number.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.above.to_le_bytes());
        bytes[8..24].copy_from_slice(&self.guid.0);
        bytes[24..].copy_from_slice(&self.validity.to_le_bytes());
        bytes
    }
}

/// All names, as a state has them and as they were changed since.
#[derive(Debug, Default)]
pub struct Nodes {
    nodes: BTreeMap<u32, Node>,
    /// By the UID of the node above, and part.
    below: BTreeMap<u32, BTreeMap<String, u32>>,
    /// Nodes whose name cannot be told, or is that of another node.
    broken: BTreeMap<u32, MailboxGuid>,
    /// How many nodes have each GUID, broken ones among them.
    guids: BTreeMap<MailboxGuid, usize>,
    /// Number that was given last to a part.
    last_number: u32,
    /// Where the parts end in the header.
    names_end: usize,
    next_uid: u32,
    /// What a transaction has to tell.
    touched: BTreeSet<u32>,
    /// Nodes whose part is not in the header yet, in the order of their numbers.
    named: Vec<u32>,
}

impl Nodes {
    pub fn of(state: &State) -> Nodes {
        let list = state.extension(LIST);
        let mut nodes = Nodes { names_end: 1, next_uid: state.header.next_uid, ..Nodes::default() };
        let mut parts = BTreeMap::new();
        for (number, part, end) in list.into_iter().flat_map(|list| numbers(&list.header)) {
            (nodes.last_number, nodes.names_end) = (nodes.last_number.max(number), end);
            let part = std::str::from_utf8(part).ok().filter(|part| part.len() <= PART_BYTES_MAX);
            parts.extend(part.map(|part| (number, part)));
        }
        for (row, uid) in state.uids.iter().copied().enumerate() {
            let record = list.map_or(&[][..], |list| list.row(row));
            match Node::from_bytes(record, state.flags[row], &parts) {
                Some(node) if !nodes.siblings(node.above).contains_key(&node.part) => nodes.put(uid, node),
                _ => nodes.set_broken(uid, guid_in(record)),
            }
        }
        let reached: BTreeSet<u32> = nodes.all().map(|(uid, ..)| uid).collect();
        let lost: Vec<u32> = nodes.nodes.keys().filter(|uid| !reached.contains(uid)).copied().collect();
        for uid in lost {
            let guid = nodes.take(uid).map_or(NO_GUID, |node| node.guid);
            nodes.set_broken(uid, guid);
        }
        nodes
    }

    /// All names from the top down: UID, parts, node.
    pub fn all(&self) -> impl Iterator<Item = (u32, Vec<&str>, &Node)> {
        let mut ahead: Vec<(u32, Vec<&str>)> = vec![(TOP, Vec::new())];
        std::iter::from_fn(move || {
            let (uid, parts) = ahead.pop()?;
            if parts.len() < DEPTH_MAX {
                ahead.extend(self.siblings(uid).iter().rev().map(|(part, below)| {
                    let parts = parts.iter().copied().chain([part.as_str()]);
                    (*below, parts.collect())
                }));
            }
            Some((uid, parts))
        })
        .filter_map(|(uid, parts)| Some((uid, parts, self.nodes.get(&uid)?)))
    }

    pub fn get(&self, parts: &[String]) -> Option<&Node> {
        self.nodes.get(&self.find(parts)?)
    }

    /// UIDs of nodes whose name cannot be told, or is that of another node.
    pub fn broken(&self) -> impl Iterator<Item = u32> {
        self.broken.keys().copied()
    }

    /// GUIDs of all mailboxes, also of those whose names cannot be told.
    pub fn guids(&self) -> impl Iterator<Item = MailboxGuid> {
        self.guids.keys().copied()
    }

    /// Says whether a mailbox has this GUID.
    pub fn has(&self, guid: MailboxGuid) -> bool {
        self.guids.contains_key(&guid)
    }

    fn set_broken(&mut self, uid: u32, guid: MailboxGuid) {
        self.count(guid, true);
        self.broken.insert(uid, guid);
    }

    fn count(&mut self, guid: MailboxGuid, more: bool) {
        if guid == NO_GUID {
            return;
        }
        let nodes = self.guids.entry(guid).or_default();
        *nodes = if more { *nodes + 1 } else { nodes.saturating_sub(1) };
        if *nodes == 0 {
            self.guids.remove(&guid);
        }
    }

    /// The UID that the next node gets.
    pub fn next_uid(&self) -> u32 {
        self.next_uid
    }

    /// Says whether numbers are about to run out, which only a damaged index shows.
    pub fn is_full(&self) -> bool {
        self.next_uid.max(self.last_number) > u32::MAX - NAMES_ROOM
    }

    fn find(&self, parts: &[String]) -> Option<u32> {
        parts.iter().try_fold(TOP, |above, part| self.siblings(above).get(part).copied())
    }

    fn siblings(&self, above: u32) -> &BTreeMap<String, u32> {
        static NONE: BTreeMap<String, u32> = BTreeMap::new();
        self.below.get(&above).unwrap_or(&NONE)
    }

    fn put(&mut self, uid: u32, node: Node) {
        self.count(node.guid, true);
        self.below.entry(node.above).or_default().insert(node.part.clone(), uid);
        self.nodes.insert(uid, node);
    }

    fn take(&mut self, uid: u32) -> Option<Node> {
        let node = self.nodes.remove(&uid)?;
        self.count(node.guid, false);
        if let Some(siblings) = self.below.get_mut(&node.above) {
            siblings.remove(&node.part);
            if siblings.is_empty() {
                self.below.remove(&node.above);
            }
        }
        Some(node)
    }

    /// The node of a name, which is made, with those above it, where it is missing.
    fn make(&mut self, parts: &[String]) -> u32 {
        let mut above = TOP;
        for part in parts {
            above = match self.siblings(above).get(part) {
                Some(uid) => *uid,
                None => {
                    let uid = self.next_uid;
                    self.next_uid += 1;
                    let number = self.new_number(uid);
                    let (part, guid) = (part.clone(), NO_GUID);
                    self.put(uid, Node { number, above, part, flags: NONEXISTENT, guid, validity: 0 });
                    self.touched.insert(uid);
                    uid
                }
            };
        }
        above
    }

    /// The same part may have several numbers, as it has in Dovecot.
    fn new_number(&mut self, uid: u32) -> u32 {
        self.last_number += 1;
        self.named.retain(|named| *named != uid);
        self.named.push(uid);
        self.last_number
    }

    fn change(&mut self, uid: u32, change: impl FnOnce(&mut Node)) {
        if let Some(node) = self.nodes.get_mut(&uid) {
            let before = node.guid;
            change(node);
            let after = node.guid;
            self.count(before, false);
            self.count(after, true);
            self.touched.insert(uid);
        }
    }

    /// Gives a name to a mailbox, in place of what it may have stood for before.
    pub fn set_mailbox(&mut self, parts: &[String], guid: MailboxGuid, validity: u32) {
        let uid = self.make(parts);
        self.change(uid, |node| (node.flags, node.guid, node.validity) = (0, guid, validity));
    }

    /// Makes a name that holds no mail; one that is there stays as it is.
    pub fn set_directory(&mut self, parts: &[String]) {
        let uid = self.make(parts);
        self.change(uid, |node| {
            if node.flags & NONEXISTENT != 0 {
                node.flags = NOSELECT;
            }
        });
    }

    /// Removes a mailbox; its name stays if there are names below it.
    pub fn remove_mailbox(&mut self, parts: &[String]) {
        let Some(uid) = self.find(parts) else { return };
        self.change(uid, |node| (node.flags, node.guid, node.validity) = (NOSELECT, NO_GUID, 0));
        self.remove_directory(parts);
    }

    /// Removes a name that holds no mail and has none below it. Those above it stay, as directories do in other layouts.
    pub fn remove_directory(&mut self, parts: &[String]) {
        let Some(uid) = self.find(parts).filter(|uid| !self.below.contains_key(uid)) else { return };
        if self.nodes.get(&uid).is_some_and(|node| node.mailbox().is_none()) {
            self.take(uid);
            self.touched.insert(uid);
            self.named.retain(|named| *named != uid);
        }
    }

    /// Gives a mailbox another name, at which none may be; names below stay where they are.
    pub fn rename(&mut self, from: &[String], to: &[String]) {
        let Some(uid) = self.find(from) else { return };
        let Some(old) = self.nodes.get(&uid).cloned() else { return };
        // As Dovecot does: the node of the mailbox stays what it is, with what it knows of it.
        if self.find(to).is_none() && !to.starts_with(from) && !self.below.contains_key(&uid) {
            let Some((part, above)) = to.split_last() else { return };
            let above = self.make(above);
            self.take(uid);
            let number = if *part == old.part { old.number } else { self.new_number(uid) };
            self.put(uid, Node { number, above, part: part.clone(), ..old.clone() });
            self.touched.insert(uid);
        } else {
            self.set_mailbox(to, old.guid, old.validity);
            self.remove_mailbox(from);
        }
    }

    /// Takes back what the index says of the mailbox that a name stood for. The name itself stays: Dovecot sees for itself.
    pub fn forget(&mut self, parts: &[String]) {
        let Some(uid) = self.find(parts) else { return };
        self.change(uid, |node| (node.guid, node.validity) = (NO_GUID, 0));
    }

    /// The same of a mailbox that is gone. Where names below it are left and it has no directory (Maildir++), Dovecot finds nothing that it would
    /// compare with the node, which would stay that of a mailbox for ever.
    pub fn forget_gone(&mut self, parts: &[String]) {
        let Some(uid) = self.find(parts) else { return };
        self.change(uid, |node| (node.flags, node.guid, node.validity) = (NONEXISTENT, NO_GUID, 0));
    }

    /// What the changes come to in the log of an index in this state, of which these nodes were taken. `bid`: every session is to
    /// compare the names with the disk.
    pub fn transaction(&mut self, state: &State, bid: bool) -> Transaction {
        let fresh = Extension::new(LIST, HEADER_BYTES_MIN, RECORD_BYTES, 4);
        let list = state.extension(LIST);
        let mut log = Transaction::new();
        let touched = std::mem::take(&mut self.touched);
        let named = std::mem::take(&mut self.named);
        let bid = bid && list.is_some_and(|list| list.header.first().is_none_or(|flag| *flag == 0));
        let mut introduced = sizes(list.unwrap_or(&fresh));
        introduced.record_bytes = introduced.record_bytes.max(RECORD_BYTES);
        let id = state.extension_id(LIST);
        if bid || !named.is_empty() {
            let flag = list.and_then(|list| list.header.first().copied()).unwrap_or(0) | u8::from(bid);
            let (at, names) = self.header(&named, &mut introduced, flag);
            log.introduce(id, &introduced);
            if bid && at > 0 {
                // One byte: the names begin right behind it.
                log.ext_header(0, &[1]);
            }
            log.ext_header32(at as u32, &names);
        }
        let record_of = |uid: &u32| Some((*uid, self.nodes.get(uid)?));
        let there: Vec<(u32, &Node)> = touched.iter().filter_map(record_of).collect();
        let records: Vec<(u32, Vec<u8>)> = there
            .iter()
            .filter_map(|(uid, node)| {
                let old = state.row(*uid).and_then(|row| Some(list?.row(row))).unwrap_or_default();
                let mut record = old.to_vec();
                record.resize(introduced.record_bytes, 0);
                record[..RECORD_BYTES].copy_from_slice(&node.to_bytes());
                (record != old).then_some((*uid, record))
            })
            .collect();
        let new = there.iter().filter(|(uid, _)| state.row(*uid).is_none());
        log.append(&new.map(|(uid, node)| (*uid, node.flags)).collect::<Vec<_>>());
        for (uid, node) in &there {
            if let Some(flags) = state.row(*uid).map(|row| state.flags[row]).filter(|old| *old != node.flags)
            {
                log.flags(&[(*uid, *uid)], node.flags & !flags, flags & !node.flags);
            }
        }
        if !records.is_empty() {
            log.introduce(id, &introduced);
            log.ext_records(records.iter().map(|(uid, record)| (*uid, &**record)));
        }
        if let Some(seen) = state.extension(SEEN) {
            let known = |uid: u32| seen.row(state.row(uid)?).iter().any(|byte| *byte != 0).then_some(uid);
            let zeros = vec![0; seen.record_bytes];
            let known: Vec<u32> = there.iter().filter_map(|(uid, _)| known(*uid)).collect();
            if !known.is_empty() {
                log.introduce(state.extension_id(SEEN), seen);
                log.ext_records(known.iter().map(|uid| (*uid, &*zeros)));
            }
        }
        let gone = touched.iter().filter(|uid| !self.nodes.contains_key(uid) && state.row(**uid).is_some());
        log.expunge(&gone.map(|uid| (*uid, [0; 16])).collect::<Vec<_>>());
        log
    }

    /// What is to be written into the header, and where: parts behind those that are there, or, where there is no room for them, all
    /// that are still in use, into a larger header.
    fn header(&mut self, named: &[u32], list: &mut Extension, flag: u8) -> (usize, Vec<u8>) {
        let mut bytes = Vec::new();
        let push = |bytes: &mut Vec<u8>, node: &Node| {
            bytes.extend_from_slice(&node.number.to_le_bytes());
            bytes.extend_from_slice(node.part.as_bytes());
            bytes.push(0);
        };
        named.iter().filter_map(|uid| self.nodes.get(uid)).for_each(|node| push(&mut bytes, node));
        if bytes.is_empty() {
            return (0, vec![flag]);
        }
        let end = [0; 4];
        if self.names_end + bytes.len() + end.len() <= list.header_bytes {
            let at = self.names_end;
            self.names_end += bytes.len();
            bytes.extend_from_slice(&end);
            return (at, bytes);
        }
        let used: BTreeMap<u32, &Node> = self.nodes.values().map(|node| (node.number, node)).collect();
        bytes = vec![flag];
        used.values().for_each(|node| push(&mut bytes, node));
        self.names_end = bytes.len();
        bytes.extend_from_slice(&end);
        // A quarter is left free, so that the whole is not written again for each name.
        let room = (bytes.len() + bytes.len() / 4).next_power_of_two().max(list.header_bytes);
        bytes.resize(room, 0);
        list.header_bytes = room;
        (0, bytes)
    }
}

fn guid_in(record: &[u8]) -> MailboxGuid {
    record.get(8..24).and_then(|guid| guid.try_into().ok()).map_or(NO_GUID, MailboxGuid)
}

/// The extension without its data, which grow with the number of names.
fn sizes(extension: &Extension) -> Extension {
    let Extension { header_bytes, record_bytes, align, reset_id, .. } = *extension;
    Extension { reset_id, ..Extension::new(&extension.name, header_bytes, record_bytes, align) }
}

/// The parts in a header: behind one byte, a number, which ascend, and a text that ends with NUL, each. With where they end.
fn numbers(header: &[u8]) -> impl Iterator<Item = (u32, &[u8], usize)> {
    let (mut at, mut last) = (1, 0);
    std::iter::from_fn(move || {
        let (number, text) = header.get(at..)?.split_first_chunk::<4>()?;
        let number = u32::from_le_bytes(*number);
        let end = memchr::memchr(0, text).filter(|_| number > last)?;
        (at, last) = (at + 4 + end + 1, number);
        Some((number, &text[..end], at))
    })
}
