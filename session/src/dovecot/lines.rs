//! Between Dovecot's lines and our nouns: names, trees, changes, counters.

use std::collections::{BTreeMap, BTreeSet};

use dsync_merge::Direction;
use dsync_model::{
    FlagDelta, FlagSet, Flags, KEYWORDS_MAX, Keyword, MailboxGuid, MailboxName, MailboxNode, MailboxStatus,
    MailboxTree, MessageChange, MessageGuid, ModSeq, NameHash, PARTS_MAX, Timestamp, TreeLog, Uid,
    UidValidity,
};
use dsync_proto::dovecot::items::{self, Elements, Hex};

use crate::SessionError;

/// Takes the place of characters that a name cannot have here.
const ALTERNATIVE: char = '_';
/// A value of `virtual_size` that says nobody asked.
pub(super) const SIZE_UNKNOWN: u64 = u64::MAX;
/// What may stand in a field of flags: the five flags, `\Recent`, and two of Dovecot's own that leak.
const FLAG_BITS: u64 = 0xff;

/// Our names and mailboxes as a Dovecot reads them.
pub(super) fn nodes(tree: &MailboxTree) -> Vec<items::Node> {
    let existing = |name: &MailboxName| tree.contains_key(name);
    let mut nodes: BTreeMap<&MailboxName, items::Node> = BTreeMap::new();
    let mut parents = BTreeMap::new();
    // A directory with mailboxes below is made with them. A Dovecot 2.4 makes a mailbox of each that it is told.
    let mut holds = BTreeSet::new();
    for name in tree.iter().filter(|(_, node)| node.mailbox.is_some()).map(|(name, _)| name) {
        let mut parent = name.parent();
        while let Some(above) = parent.take_if(|above| !holds.contains(above)) {
            parent = above.parent();
            holds.insert(above);
        }
    }
    for (name, node) in tree {
        let exists = node.mailbox.is_some() || (node.directory && !holds.contains(name));
        let mut parent = name.parent();
        while let Some(above) = parent.filter(|above| !existing(above)) {
            parent = above.parent();
            parents.insert(above, ());
        }
        let status = node.mailbox.as_ref();
        let time = |time: Option<Timestamp>| time.and_then(|time| u64::try_from(time.0).ok());
        let line = items::Node {
            name: elements(name),
            existence: if exists { b"y" } else { b"n" }.to_vec(),
            mailbox_guid: status.map(|status| status.guid),
            uid_validity: status.map(|status| status.uid_validity.get()),
            uid_next: status.map(|status| status.uid_next.get()),
            last_renamed_or_created: time(node.renamed),
            subscribed: node.subscribed,
            last_subscription_change: time(node.subscription_changed),
        };
        nodes.insert(name, line);
    }
    for name in parents.keys() {
        let line = items::Node { name: elements(name), existence: b"n".to_vec(), ..items::Node::default() };
        nodes.insert(name, line);
    }
    nodes.into_values().collect()
}

fn elements(name: &MailboxName) -> Elements {
    Elements(name.parts().iter().map(|part| part.as_bytes().to_vec()).collect())
}

/// Adds one of the peer's names to its tree. `false`: that name is there already, as two of the peer's names are one here.
pub(super) fn add_node(node: &items::Node, tree: &mut MailboxTree) -> Result<bool, SessionError> {
    let name = name_of(&node.name)?;
    let exists = node.existence == b"y";
    let time = |time: Option<u64>| time.and_then(|time| i64::try_from(time).ok()).map(Timestamp);
    let status = node.mailbox_guid.filter(|_| exists).map(|guid| MailboxStatus {
        guid,
        uid_validity: node.uid_validity.and_then(UidValidity::new).unwrap_or(UID_VALIDITY_UNKNOWN),
        uid_next: node.uid_next.and_then(Uid::new).unwrap_or(Uid::MIN),
        messages: 0,
        highest_modseq: ModSeq::NONE,
        digest: dsync_model::Digest::default(),
    });
    let line = MailboxNode {
        directory: exists && status.is_none(),
        mailbox: status,
        subscribed: node.subscribed,
        renamed: time(node.last_renamed_or_created),
        subscription_changed: time(node.last_subscription_change),
        changed: None,
    };
    let free = tree.get(&name).is_none_or(|known| known.mailbox.is_none());
    if free {
        tree.insert(name, line);
    }
    Ok(free)
}

/// Of a mailbox whose UIDVALIDITY the peer does not say.
const UID_VALIDITY_UNKNOWN: UidValidity = match UidValidity::new(1) {
    Some(one) => one,
    None => unreachable!(),
};

/// The peer's name, with what cannot be in a name here replaced.
pub(super) fn name_of(parts: &Elements) -> Result<MailboxName, SessionError> {
    if parts.0.len() > PARTS_MAX {
        return Err(SessionError::Peer(format!("has a mailbox of over {PARTS_MAX} hierarchy parts")));
    }
    let parts: Vec<String> = parts.0.iter().map(|part| possible(&String::from_utf8_lossy(part))).collect();
    MailboxName::new(&parts)
        .map_err(|error| SessionError::Peer(format!("has a mailbox {:?}: {error}", parts.join("/"))))
}

fn possible(part: &str) -> String {
    match part {
        "" => ALTERNATIVE.to_string(),
        "." | ".." => ALTERNATIVE.to_string().repeat(part.len()),
        part => {
            let odd = |c: char| c == '/' || c.is_control() || c == char::REPLACEMENT_CHARACTER;
            part.chars().map(|c| if odd(c) { ALTERNATIVE } else { c }).collect()
        }
    }
}

/// What a line of deletes tells.
pub(super) fn logged(line: &items::Deletes) -> Result<TreeLog, SessionError> {
    let [separator] = line.hierarchy_sep[..] else {
        return Err(SessionError::Peer("has a hierarchy separator that is not one character".into()));
    };
    let hashes = |text: &Option<String>| -> Result<BTreeMap<NameHash, Timestamp>, SessionError> {
        Ok(timed(text.as_deref())?.into_iter().map(|(guid, at)| (NameHash(guid.0), at)).collect())
    };
    Ok(TreeLog {
        separator: char::from(separator),
        deleted: timed(line.mailboxes.as_deref())?,
        directories: hashes(&line.dirs)?,
        unsubscribed: hashes(&line.unsubscribes)?,
    })
}

/// GUIDs, or hashes, each with a time.
fn timed(text: Option<&str>) -> Result<BTreeMap<MailboxGuid, Timestamp>, SessionError> {
    let words: Vec<&str> = text.unwrap_or_default().split_ascii_whitespace().collect();
    let read = |pair: &[&str]| match pair {
        [guid, time] => {
            let at = time.parse::<u64>().ok().and_then(|at| i64::try_from(at).ok())?;
            Some((MailboxGuid::parse(guid)?, Timestamp(at)))
        }
        _ => None,
    };
    let all: Option<_> = words.chunks(2).map(read).collect();
    all.ok_or_else(|| SessionError::Peer("lists what it deleted wrongly".into()))
}

/// What we deleted, by GUID, and names of the peer's that we removed or unsubscribed. These only if `separator` is the peer's: with another one,
/// Dovecot before 2.3.21 would never end.
pub(super) fn deletes(
    separator: u8,
    escape: Option<Vec<u8>>,
    deletions: &BTreeMap<MailboxGuid, Timestamp>,
    directories: &[(MailboxName, Timestamp)],
    unsubscribed: &[(MailboxName, Timestamp)],
) -> items::Deletes {
    let between = char::from(separator);
    let deleted = deletions.iter().map(|(guid, at)| (*guid, *at));
    // How the peer escapes a separator within a part is its own affair.
    let plain = |name: &MailboxName| !name.parts().iter().any(|part| part.contains(between));
    let hashed = |names: &[(MailboxName, Timestamp)]| -> Vec<(MailboxGuid, Timestamp)> {
        let names = names.iter().filter(|(name, _)| plain(name));
        names.map(|(name, at)| (MailboxGuid(NameHash::of(name, between).0), *at)).collect()
    };
    let text = |all: &mut dyn Iterator<Item = (MailboxGuid, Timestamp)>| {
        let words: Vec<String> = all.map(|(guid, at)| format!("{guid} {}", at.0.max(0))).collect();
        (!words.is_empty()).then(|| words.join(" "))
    };
    items::Deletes {
        hierarchy_sep: vec![separator],
        escape_char: escape,
        mailboxes: text(&mut { deleted }),
        dirs: text(&mut hashed(directories).into_iter()),
        unsubscribes: text(&mut hashed(unsubscribed).into_iter()),
    }
}

/// Counters as Dovecot tells them. Where a storage keeps no `\Recent`, every message might have it. `first_recent` is at most UIDNEXT:
/// Dovecot 2.3.19 ends in an assertion when it is told one beyond.
pub(super) fn counters(status: &MailboxStatus, first_recent: u32, saves_guids: bool) -> items::Mailbox {
    items::Mailbox {
        mailbox_guid: status.guid,
        uid_validity: status.uid_validity.get(),
        uid_next: status.uid_next.get(),
        messages_count: status.messages,
        first_recent_uid: first_recent.min(status.uid_next.get()),
        highest_modseq: status.highest_modseq.get().max(1),
        highest_pvt_modseq: 0,
        cache_fields: Some(Vec::new()),
        have_guids: true,
        have_save_guids: saves_guids,
        ..items::Mailbox::default()
    }
}

/// Whether two ends may differ: if not, this mailbox is passed over in a run that looks for changes only.
pub(super) fn differ(a: &items::Mailbox, b: &items::Mailbox) -> bool {
    let six = |line: &items::Mailbox| {
        (
            line.uid_validity,
            line.uid_next,
            line.messages_count,
            line.first_recent_uid,
            line.highest_modseq,
            line.highest_pvt_modseq,
        )
    };
    six(a) != six(b)
}

/// One of our changes. With `known`, what both ends had up to that UID and modseq is told as a change of it, or not at all.
pub(super) fn change(change: &MessageChange, known: Option<(u32, u64)>) -> Option<items::Change> {
    match change {
        MessageChange::Save { uid, guid, modseq, flags, .. }
        | MessageChange::Flags { uid, guid, modseq, flags } => {
            let new = known.is_none_or(|(last, _)| uid.get() > last);
            if !new && known.is_some_and(|(_, last)| modseq.get() <= last) {
                return None;
            }
            Some(items::Change {
                kind: if new { b"s" } else { b"f" }.to_vec(),
                uid: uid.get(),
                guid: Some(guid.as_str().into()),
                modseq: Some(modseq.get().max(1)),
                add_flags: bits(flags.added.system),
                remove_flags: bits(flags.removed.system.minus(flags.current.system)),
                final_flags: bits(flags.current.system),
                keyword_changes: keywords(flags),
                virtual_size: new.then_some(Hex(SIZE_UNKNOWN)),
                ..items::Change::default()
            })
        }
        MessageChange::Expunge { uid, guid } => {
            if known.is_some_and(|(last, _)| uid.get() > last) {
                return None;
            }
            let guid = guid.as_ref().map(|guid| MailboxGuid(guid.bits()).to_string().into_bytes());
            Some(items::Change { kind: b"e".to_vec(), uid: uid.get(), guid, ..items::Change::default() })
        }
    }
}

fn bits(flags: Flags) -> Option<Hex> {
    (!flags.is_empty()).then(|| Hex(flags.bits().into()))
}

fn keywords(flags: &FlagDelta) -> Option<Elements> {
    let told = |prefix: u8, keyword: &Keyword| [&[prefix], keyword.as_str().as_bytes()].concat();
    let current = flags.current.keywords.iter().map(|keyword| {
        let added = flags.added.keywords.contains(keyword);
        told(if added { b'&' } else { b'=' }, keyword)
    });
    let removed = flags.removed.keywords.difference(&flags.current.keywords);
    let all: Vec<Vec<u8>> = current.chain(removed.map(|keyword| told(b'-', keyword))).collect();
    (!all.is_empty()).then_some(Elements(all))
}

/// One of the peer's changes. `with_state`: only then may there be flag changes.
pub(super) fn read_change(line: &items::Change) -> Result<MessageChange, SessionError> {
    let wrong = |what: &str| SessionError::Peer(format!("lists UID {} {what}", line.uid));
    let uid = Uid::new(line.uid).ok_or_else(|| wrong(", which is none"))?;
    let modseq =
        ModSeq::new(line.modseq.unwrap_or(0)).ok_or_else(|| wrong("with a modseq of 2^63 or more"))?;
    let guid = line.guid.as_deref().filter(|guid| !guid.is_empty()).map(MessageGuid::of_bytes);
    let named =
        || guid.clone().ok_or_else(|| wrong("without a GUID; its storage can only be compared by headers"));
    match &line.kind[..] {
        b"s" => {
            let flags = read_flags(line).ok_or_else(|| wrong("with flags that are none"))?;
            Ok(MessageChange::Save { uid, guid: named()?, modseq, flags, size: None })
        }
        b"f" => {
            let flags = read_flags(line).ok_or_else(|| wrong("with flags that are none"))?;
            Ok(MessageChange::Flags { uid, guid: named()?, modseq, flags })
        }
        b"e" => Ok(MessageChange::Expunge { uid, guid }),
        _ => Err(wrong("with a change of an unknown type")),
    }
}

fn read_flags(line: &items::Change) -> Option<FlagDelta> {
    let flags = |hex: Option<Hex>| {
        let bits = hex.map_or(0, |hex| hex.0);
        (bits <= FLAG_BITS).then(|| Flags::from_bits((bits & 0x1f) as u8)).flatten()
    };
    let mut delta = FlagDelta::default();
    delta.current.system = flags(line.final_flags)?;
    delta.added.system = flags(line.add_flags)?.intersection(delta.current.system);
    delta.removed.system = flags(line.remove_flags)?.minus(delta.current.system);
    let changes = line.keyword_changes.as_ref().map(|list| &list.0[..]).unwrap_or_default();
    if changes.len() > KEYWORDS_MAX {
        return None;
    }
    for change in changes {
        let (prefix, text) = change.split_first()?;
        // A keyword that cannot be one here is left where it is.
        let Some(keyword) = std::str::from_utf8(text).ok().and_then(Keyword::new) else { continue };
        match prefix {
            b'=' => drop(delta.current.keywords.insert(keyword)),
            b'&' => {
                delta.current.keywords.insert(keyword.clone());
                delta.added.keywords.insert(keyword);
            }
            b'-' => drop(delta.removed.keywords.insert(keyword)),
            b'+' => {}
            _ => return None,
        }
    }
    let FlagSet { keywords: current, .. } = &delta.current;
    delta.removed.keywords = delta.removed.keywords.difference(current).cloned().collect();
    Some(delta)
}

/// Which way the changes go, as a master's handshake says it, from the slave's point of view.
pub(super) fn direction(line: &items::Handshake) -> Result<Direction, SessionError> {
    use dsync_merge::End::{Initiator, Responder};
    let into = match (line.backup_send, line.backup_recv) {
        (false, false) => return Ok(Direction::TwoWay),
        (true, false) => Initiator,
        (false, true) => Responder,
        (true, true) => return Err(SessionError::Peer("wants us to send and to receive only".into())),
    };
    Ok(if line.no_backup_overwrite { Direction::OneWay { into } } else { Direction::Mirror { into } })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_nowhere_else() {
        let name = |parts: &[&[u8]]| {
            name_of(&Elements(parts.iter().map(|part| part.to_vec()).collect())).map(|name| name.join('|'))
        };
        for (parts, expected) in [
            (&[&b"Work"[..], b"a/b"][..], "Work|a_b"),
            (&[b"..", b"", b"x\0\n"], "__|_|x__"),
            (&[b"\xff\xc3\xa4"], "_ä"),
            (&[b"inbox"], "INBOX"),
        ] {
            assert_eq!(name(parts).unwrap(), expected);
        }
        assert!(name(&[]).is_err() && name(&[&b"x"[..]; 2000]).is_err());
    }

    /// A Dovecot 2.4 makes a mailbox of each directory that it is told of.
    #[test]
    fn a_directory_is_told_only_if_nothing_below_tells_of_it() {
        let name = |text: &str| MailboxName::parse(text, '/').unwrap();
        let directory = || MailboxNode { directory: true, ..MailboxNode::default() };
        let status = MailboxStatus {
            guid: MailboxGuid([1; 16]),
            uid_validity: UID_VALIDITY_UNKNOWN,
            uid_next: Uid::MIN,
            messages: 0,
            highest_modseq: ModSeq::NONE,
            digest: dsync_model::Digest::default(),
        };
        let mailbox = MailboxNode { mailbox: Some(status), ..MailboxNode::default() };
        let mut tree: MailboxTree =
            ["A", "A/B", "Empty", "Empty/Too"].map(|text| (name(text), directory())).into();
        tree.insert(name("A/B/C/D"), mailbox);
        let told = nodes(&tree);
        let told: Vec<_> = told.iter().map(|node| String::from_utf8_lossy(&node.existence)).collect();
        // A, A/B, A/B/C, A/B/C/D, Empty, Empty/Too.
        assert_eq!(told, ["n", "n", "n", "y", "y", "y"]);
    }

    #[test]
    fn what_was_unsubscribed_is_found_by_its_name() {
        let name = |text: &str| MailboxName::parse(text, '/').unwrap();
        let names = [(name("Work/Sub"), Timestamp(7)), (name("a.b"), Timestamp(8))];
        let removed = [(name("Dir/Sub"), Timestamp(9))];
        let line = deletes(b'.', None, &BTreeMap::new(), &removed, &names);
        assert_eq!(line.mailboxes, None);
        let log = logged(&line).unwrap();
        assert_eq!(log.unsubscribed(&name("Work/Sub")), Some(Timestamp(7)));
        assert_eq!((log.unsubscribed.len(), log.separator), (1, '.'));
        assert_eq!(log.directory_deleted(&name("Dir/Sub")), Some(Timestamp(9)));
        for text in ["00", "x 1", "00000000000000000000000000000000 -1"] {
            assert!(logged(&items::Deletes { unsubscribes: Some(text.into()), ..line.clone() }).is_err());
        }
    }

    /// Dovecot raises the peer's first recent UID and UIDNEXT in one step, and asserts that the one is not beyond the other.
    #[test]
    fn no_message_is_recent_beyond_uid_next() {
        let status = MailboxStatus {
            guid: MailboxGuid([1; 16]),
            uid_validity: UID_VALIDITY_UNKNOWN,
            uid_next: Uid::new(3).unwrap(),
            messages: 2,
            highest_modseq: ModSeq::NONE,
            digest: dsync_model::Digest::default(),
        };
        let told = [1, 3, 9].map(|first| counters(&status, first, true).first_recent_uid);
        assert_eq!(told, [1, 3, 3]);
    }

    #[test]
    fn changes_come_back_as_they_were() {
        let mut flags = FlagDelta::between(
            &FlagSet {
                system: Flags::SEEN,
                keywords: ["old", "same"].map(|k| Keyword::new(k).unwrap()).into(),
            },
            FlagSet {
                system: Flags::FLAGGED,
                keywords: ["same", "new"].map(|k| Keyword::new(k).unwrap()).into(),
            },
        );
        let (uid, guid) = (Uid::new(7).unwrap(), MessageGuid::new("a.b,S=1").unwrap());
        let modseq = ModSeq::new(5).unwrap();
        let save = MessageChange::Save { uid, guid: guid.clone(), modseq, flags: flags.clone(), size: None };
        let line = change(&save, None).unwrap();
        assert_eq!(line.keyword_changes.as_ref().unwrap().0, [&b"&new"[..], b"=same", b"-old"]);
        assert_eq!(read_change(&line).unwrap(), save);
        // With a state: new, changed, unchanged.
        assert_eq!(change(&save, Some((6, 9))).unwrap().kind, b"s");
        let changed = change(&save, Some((7, 4))).unwrap();
        assert_eq!((&changed.kind[..], changed.virtual_size), (&b"f"[..], None));
        assert_eq!(change(&save, Some((7, 5))), None);
        let expunge = MessageChange::Expunge { uid, guid: Some(guid) };
        let line = change(&expunge, Some((7, 5))).unwrap();
        assert_eq!(line.guid.as_ref().unwrap().len(), 32);
        assert_eq!(change(&expunge, Some((6, 5))), None);
        flags.removed = FlagSet::default();
        let odd = items::Change { final_flags: Some(Hex(0x100)), ..change(&save, None).unwrap() };
        assert!(read_change(&odd).is_err());
        let recent = items::Change { final_flags: Some(Hex(0xe2)), ..change(&save, None).unwrap() };
        assert!(read_change(&recent).is_ok());
    }
}
