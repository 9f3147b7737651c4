//! The suite that every storage passes. Panics say which rule a storage breaks.
#![allow(clippy::missing_panics_doc, reason = "the whole module is a test")]

use std::io::Read;

use dsync_model::{
    AttributeKey, AttributeValue, Digest, FlagSet, Flags, Keyword, MailboxGuid, MailboxName, MessageAction,
    MessageChange, MessageGuid, ModSeq, NewMessage, NotKept, Since, Timestamp, TreeChange, Uid, UidSet,
    UidValidity,
};

use crate::{Committed, Goal, Mailbox, Storage};

/// What a storage keeps of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Keeps {
    Everything,
    /// The GUID is made from the header, and the header ends with an empty line: mbox.
    TextAlone,
}

/// What makes the GUID where there is no header.
const MD5_OF_NOTHING: &str = "d41d8cd98f00b204e9800998ecf8427e";

impl Keeps {
    fn guid(self, given: &str) -> String {
        if self == Keeps::Everything { given.into() } else { MD5_OF_NOTHING.into() }
    }
}

/// Runs the suite; `open` opens the same account again each time.
pub fn check(open: &mut dyn FnMut() -> Box<dyn Storage>) {
    check_keeping(Keeps::Everything, open);
}

/// The same for a storage that cannot keep all of a message.
pub fn check_keeping(keeps: Keeps, open: &mut dyn FnMut() -> Box<dyn Storage>) {
    identity_survives(open);
    notes_are_kept(open);
    attributes_are_kept(open);
    mailboxes_come_and_go(open);
    messages_are_kept(keeps, open);
    nothing_happens_without_commit(open);
    nothing_comes_under_a_name_that_another_gave_up(open);
    uids_are_never_given_twice(keeps, open);
    modseqs_come_out_as_they_are_elsewhere(open);
}

fn attributes_are_kept(open: &mut dyn FnMut() -> Box<dyn Storage>) {
    let key =
        |text: &str| AttributeKey { key: text.into(), ..AttributeKey::first_of(MailboxGuid([0x5a; 16])) };
    let value = b"line\nend\0".to_vec();
    open()
        .change_attributes(&[(key("a"), Some(value.clone())), (key("b"), Some(Vec::new()))].into())
        .expect("set");
    open().change_attributes(&[(key("b"), None), (key("c"), None)].into()).expect("removed");
    let kept = open().attributes().expect("read").expect("kept");
    assert_eq!(kept, [(key("a"), AttributeValue::Bytes(value))].into());
    open().change_attributes(&[(key("a"), None)].into()).expect("removed");
}

fn uid(n: u32) -> Uid {
    Uid::new(n).expect("not 0")
}

fn name(text: &str) -> MailboxName {
    MailboxName::parse(text, '/').expect("valid")
}

fn validity(n: u32) -> UidValidity {
    UidValidity::new(n).expect("not 0")
}

fn flags(system: Flags, keywords: &[&str]) -> FlagSet {
    FlagSet { system, keywords: keywords.iter().map(|k| Keyword::new(k).expect("valid")).collect() }
}

fn message(n: u32, guid: &str, flags: FlagSet) -> NewMessage {
    NewMessage {
        uid: uid(n),
        guid: MessageGuid::new(guid).expect("valid"),
        flags,
        modseq: ModSeq::NONE,
        received: Some(Timestamp(1_700_000_000 + i64::from(n))),
        saved: None,
        pop3_uidl: None,
        pop3_order: None,
        size: None,
    }
}

fn save(mailbox: &mut dyn Mailbox, message: NewMessage, body: &[u8]) {
    mailbox.begin_save(message).expect("begins");
    body.chunks(3).for_each(|piece| mailbox.write(piece).expect("takes a piece"));
    mailbox.end_save().expect("ends");
}

fn commit(mailbox: &mut dyn Mailbox, uid_next_min: u32) -> Committed {
    let goal = Goal {
        uid_next_min: uid(uid_next_min),
        modseq_min: ModSeq::NONE,
        uid_validity: None,
        unfinished: false,
    };
    mailbox.commit(goal).expect("commits")
}

type Listed = (u32, String, FlagSet);

fn list(mailbox: &mut dyn Mailbox) -> Vec<Listed> {
    let changes = mailbox.changes(Since::All).expect("lists").list;
    let line = |change: MessageChange| match change {
        MessageChange::Save { uid, guid, flags, .. } => Some((uid.get(), guid.to_string(), flags.current)),
        // What a log of the storage's own proves.
        MessageChange::Expunge { guid: Some(_), .. } => None,
        other => panic!("without a base only saves and proven expunges are listed: {other:?}"),
    };
    changes.into_iter().filter_map(line).collect()
}

fn body(mailbox: &mut dyn Mailbox, n: u32, guid: Option<&str>) -> Option<Vec<u8>> {
    let guid = guid.map(|text| MessageGuid::new(text).expect("valid"));
    let mut found = mailbox.body(uid(n), guid.as_ref()).expect("looks")?;
    let mut bytes = Vec::new();
    found.reader.read_to_end(&mut bytes).expect("reads");
    Some(bytes)
}

const BOX: MailboxGuid = MailboxGuid([0xb0; 16]);

fn with_box(open: &mut dyn FnMut() -> Box<dyn Storage>, at: &str) -> (Box<dyn Storage>, MailboxName) {
    let mut storage = open();
    storage.tree().expect("lists");
    let name = name(at);
    let create =
        TreeChange::Create { name: name.clone(), guid: BOX, uid_validity: validity(77), uid_next: Uid::MIN };
    assert!(storage.change_tree(&create).expect("creates"));
    storage.tree().expect("lists");
    (storage, name)
}

fn without_box(mut storage: Box<dyn Storage>, name: MailboxName) {
    let (tree, _) = storage.tree().expect("lists");
    let uid_next = tree[&name].mailbox.as_ref().expect("a mailbox").uid_next;
    assert!(storage.change_tree(&TreeChange::Delete { name, guid: BOX, uid_next }).expect("deletes"));
}

fn identity_survives(open: &mut dyn FnMut() -> Box<dyn Storage>) {
    let (one, two) = (open().store_id().expect("has an id"), open().store_id().expect("has an id"));
    assert_eq!(one, two, "a store keeps its id");
    let inbox = |storage: &mut Box<dyn Storage>| {
        let (tree, problems) = storage.tree().expect("lists");
        assert!(problems.is_empty(), "{problems:?}");
        tree[&MailboxName::inbox()].mailbox.clone().expect("INBOX is always there")
    };
    assert_eq!(inbox(&mut open()), inbox(&mut open()), "INBOX keeps GUID and UIDVALIDITY");
}

fn notes_are_kept(open: &mut dyn FnMut() -> Box<dyn Storage>) {
    open().write_note("conformance-1", b"one").expect("writes");
    open().write_note("conformance-1", b"two").expect("writes over it");
    assert!(open().notes().expect("lists").contains(&"conformance-1".to_owned()));
    assert_eq!(open().read_note("conformance-1", 10).expect("reads").as_deref(), Some(&b"two"[..]));
    assert!(open().read_note("conformance-1", 2).is_err(), "a note over the limit is an error");
    open().remove_note("conformance-1").expect("removes");
    open().remove_note("conformance-1").expect("removing nothing is fine");
    assert_eq!(open().read_note("conformance-1", 10).expect("reads"), None);
}

fn mailboxes_come_and_go(open: &mut dyn FnMut() -> Box<dyn Storage>) {
    let (mut storage, old) = with_box(open, "Box/Ünder & ~so");
    let again = TreeChange::Create {
        name: old.clone(),
        guid: MailboxGuid([1; 16]),
        uid_validity: validity(1),
        uid_next: Uid::MIN,
    };
    assert!(storage.change_tree(&again).is_err(), "a mailbox that exists is not created");
    let new = name("Box 2");
    let rename = TreeChange::Rename { guid: BOX, from: old.clone(), to: new.clone() };
    assert!(storage.change_tree(&rename).expect("renames"));
    let subscribe = TreeChange::Subscribe { names: [new.clone(), name("Gone")].into() };
    assert!(storage.change_tree(&subscribe).expect("subscribes"));
    let (tree, _) = open().tree().expect("lists");
    assert!(tree.get(&old).is_none_or(|node| node.mailbox.is_none()), "the old name is free");
    let node = &tree[&new];
    let status = node.mailbox.as_ref().expect("a mailbox");
    assert_eq!(
        (status.guid, status.uid_validity, status.messages, node.subscribed),
        (BOX, validity(77), 0, true)
    );
    assert!(tree[&name("Gone")].subscribed && tree[&name("Gone")].mailbox.is_none());
    let unsubscribe = TreeChange::Unsubscribe { names: [new.clone(), name("Gone")].into() };
    assert!(storage.change_tree(&unsubscribe).expect("unsubscribes"));
    let other = MailboxGuid([0xb1; 16]);
    let identify = TreeChange::Identify { name: new.clone(), guid: other, uid_validity: validity(78) };
    assert!(storage.change_tree(&identify).expect("identifies"));
    let (tree, _) = storage.tree().expect("lists");
    let status = tree[&new].mailbox.as_ref().expect("a mailbox");
    assert_eq!((status.guid, status.uid_validity), (other, validity(78)));
    let moved_on = TreeChange::Delete { name: new.clone(), guid: other, uid_next: uid(9) };
    assert!(
        !storage.change_tree(&moved_on).expect("answers"),
        "a mailbox whose UIDNEXT moved is not deleted"
    );
    let delete = TreeChange::Delete { name: new.clone(), guid: other, uid_next: Uid::MIN };
    assert!(storage.change_tree(&delete).expect("deletes"));
    let (tree, _) = open().tree().expect("lists");
    assert!(tree.get(&new).is_none_or(|node| node.mailbox.is_none()), "deleted is gone");
}

fn messages_are_kept(keeps: Keeps, open: &mut dyn FnMut() -> Box<dyn Storage>) {
    let (mut storage, name) = with_box(open, "Messages");
    let mut mailbox = storage.open(BOX).expect("opens");
    mailbox.changes(Since::All).expect("lists");
    let seen = flags(Flags::SEEN, &["$Label1", "Work"]);
    save(&mut *mailbox, message(5, "five.guid", seen.clone()), b"Subject: five\n\nnul \0 and \xff.\n");
    save(&mut *mailbox, message(2, "0123456789abcdef0123456789abcdef", FlagSet::default()), b"");
    assert_eq!(commit(&mut *mailbox, 9), Committed { not_kept: NotKept::new(), saved: 2, bytes: 28 });
    save(&mut *mailbox, message(11, "five.guid", FlagSet::default()), b"the same GUID again");
    commit(&mut *mailbox, 9);
    let mut mailbox = open_box(open);
    let status = mailbox.status().expect("tells");
    assert_eq!((status.uid_next, status.messages), (uid(12), 3));
    let expected = vec![
        (2, keeps.guid("0123456789abcdef0123456789abcdef"), FlagSet::default()),
        (5, keeps.guid("five.guid"), seen),
        (11, keeps.guid("five.guid"), FlagSet::default()),
    ];
    let listed = list(&mut *mailbox);
    assert_eq!(listed, expected);
    let mut ahead = open_box(open);
    assert!((0..=4).any(|_| ahead.read_ahead(1).expect("reads")), "of three messages, one at a time");
    assert_eq!(list(&mut *ahead), expected);
    let mut digest = Digest::default();
    for (n, guid, flags) in &listed {
        digest.add(uid(*n), &MessageGuid::new(guid).expect("valid"), flags);
    }
    assert_eq!(status.digest, digest, "the digest is that of the list");
    let part: UidSet = [2u32, 11, 99].into_iter().collect();
    let mut of_part = Digest::default();
    for (n, guid, flags) in listed.iter().filter(|(n, ..)| *n != 5) {
        of_part.add(uid(*n), &MessageGuid::new(guid).expect("valid"), flags);
    }
    assert_eq!(mailbox.digest_of(&part).expect("tells"), of_part);
    assert_eq!(
        body(&mut *mailbox, 5, Some(&*keeps.guid("five.guid"))).as_deref(),
        Some(&b"Subject: five\n\nnul \0 and \xff.\n"[..])
    );
    let empty = if keeps == Keeps::Everything { &b""[..] } else { b"\n" };
    assert_eq!(body(&mut *mailbox, 2, None).as_deref(), Some(empty));
    assert_eq!(body(&mut *mailbox, 3, None), None);
    assert_eq!(body(&mut *mailbox, 3, Some("nobody")), None);
    assert_eq!(
        body(&mut *mailbox, 99, Some(&*keeps.guid("five.guid"))).is_some(),
        keeps == Keeps::Everything,
        "any message of that GUID will do, but not one of those that have nothing for a GUID"
    );
    let found = mailbox.body(uid(5), None).expect("looks").expect("is there");
    assert_eq!(found.received, Some(Timestamp(1_700_000_005)));
    let actions = [
        MessageAction::Renumber { from: uid(5), to: uid(20) },
        MessageAction::Flags {
            uid: uid(20),
            add: flags(Flags::FLAGGED, &["New"]),
            remove: flags(Flags::SEEN, &["work"]),
            modseq_min: ModSeq::NONE,
        },
        MessageAction::Expunge { uid: uid(2), guid: Some(MessageGuid::new("another").expect("valid")) },
        MessageAction::Expunge { uid: uid(11), guid: None },
        MessageAction::Flags {
            uid: uid(77),
            add: FlagSet::default(),
            remove: FlagSet::default(),
            modseq_min: ModSeq::NONE,
        },
    ];
    mailbox.apply(&actions).expect("takes note");
    assert_eq!(
        commit(&mut *mailbox, 1).not_kept,
        NotKept::new(),
        "what is gone is no other message than agreed"
    );
    let listed = list(&mut *open_box(open));
    let after = flags(Flags::FLAGGED, &["$Label1", "New"]);
    assert_eq!(listed, [expected[0].clone(), (20, keeps.guid("five.guid"), after)]);
    assert_eq!(body(&mut *open_box(open), 20, None).map(|b| b.len()), Some(28), "renumbering keeps the body");
    // Flags in any order of their messages.
    let answered = |n| MessageAction::Flags {
        uid: uid(n),
        add: flags(Flags::ANSWERED, &["Done"]),
        remove: FlagSet::default(),
        modseq_min: ModSeq::NONE,
    };
    let mut again = open_box(open);
    again.apply(&[answered(20), answered(listed[0].0)]).expect("takes note");
    commit(&mut *again, 1);
    let both = list(&mut *open_box(open));
    let all = |(_, _, flags): &(u32, String, FlagSet)| flags.system.contains(Flags::ANSWERED);
    assert!(both.len() == 2 && both.iter().all(all), "{both:?}");
    drop(again);
    let (uid_next_min, uid_validity) = (uid(50), Some(validity(99)));
    let goal = Goal { uid_next_min, modseq_min: ModSeq::NONE, uid_validity, unfinished: false };
    open_box(open).commit(goal).expect("commits");
    let status = open_box(open).status().expect("tells");
    assert_eq!((status.uid_next, status.uid_validity, status.messages), (uid(50), validity(99), 2));
    drop(mailbox);
    without_box(open(), name);
}

fn open_box(open: &mut dyn FnMut() -> Box<dyn Storage>) -> Box<dyn Mailbox> {
    let mut storage = open();
    storage.tree().expect("lists");
    storage.open(BOX).expect("opens")
}

fn nothing_happens_without_commit(open: &mut dyn FnMut() -> Box<dyn Storage>) {
    let (mut storage, name) = with_box(open, "Uncommitted");
    let mut mailbox = storage.open(BOX).expect("opens");
    let before = mailbox.status().expect("tells");
    save(&mut *mailbox, message(1, "one", FlagSet::default()), b"one");
    mailbox.begin_save(message(2, "two", FlagSet::default())).expect("begins");
    mailbox.write(b"half").expect("takes a piece");
    mailbox.apply(&[MessageAction::Expunge { uid: uid(1), guid: None }]).expect("takes note");
    drop(mailbox);
    assert_eq!(open_box(open).status().expect("tells"), before);
    without_box(open(), name);
}

fn nothing_comes_under_a_name_that_another_gave_up(open: &mut dyn FnMut() -> Box<dyn Storage>) {
    let (mut storage, old) = with_box(open, "Renamed");
    assert!(storage.is_steady().expect("looks"));
    let mut mailbox = storage.open(BOX).expect("opens");
    save(&mut *mailbox, message(1, "one", FlagSet::default()), b"one");
    let mut other = open();
    other.tree().expect("lists");
    let new = name("Renamed meanwhile");
    let rename = TreeChange::Rename { guid: BOX, from: old.clone(), to: new.clone() };
    assert!(other.change_tree(&rename).expect("renames"));
    let goal = Goal { uid_next_min: uid(2), modseq_min: ModSeq::NONE, uid_validity: None, unfinished: false };
    let begun = mailbox.begin_save(message(2, "two", FlagSet::default())).and_then(|()| mailbox.end_save());
    let done = begun.and_then(|()| mailbox.commit(goal));
    drop((mailbox, storage, other));
    let (tree, problems) = open().tree().expect("lists");
    assert!(problems.is_empty(), "{problems:?}");
    assert!(tree.get(&old).is_none_or(|node| node.mailbox.is_none()), "the old name is free");
    let status = tree[&new].mailbox.as_ref().expect("a mailbox");
    assert_eq!(status.guid, BOX);
    match done {
        Ok(_) => assert_eq!(status.messages, 2),
        Err(error) => assert!(error.is_gone() && status.messages == 0, "{error}"),
    }
    without_box(open(), new);
}

fn uids_are_never_given_twice(keeps: Keeps, open: &mut dyn FnMut() -> Box<dyn Storage>) {
    let (mut storage, name) = with_box(open, "Races");
    let mut ours = storage.open(BOX).expect("opens");
    ours.changes(Since::All).expect("lists");
    // Somebody else saves under the UID that we were about to take, and removes the message again.
    let mut other = open_box(open);
    other.changes(Since::All).expect("lists");
    save(&mut *other, message(1, "theirs", FlagSet::default()), b"theirs");
    commit(&mut *other, 1);
    other.apply(&[MessageAction::Expunge { uid: uid(1), guid: None }]).expect("takes note");
    commit(&mut *other, 1);
    save(&mut *ours, message(1, "ours", FlagSet::default()), b"ours");
    let committed = commit(&mut *ours, 1);
    assert_eq!(committed.not_kept, [(uid(1), Some(uid(2)))].into(), "the UID was given away");
    assert_eq!(
        list(&mut *open_box(open)),
        [(2, keeps.guid("ours"), FlagSet::default())],
        "the message is saved all the same"
    );
    // What is meant for a message whose new UID was taken does not happen to whoever took it.
    other.changes(Since::All).expect("lists");
    save(&mut *other, message(3, "stranger", FlagSet::default()), b"stranger");
    commit(&mut *other, 1);
    let flagged = flags(Flags::FLAGGED, &[]);
    let (add, remove) = (flagged.clone(), FlagSet::default());
    let flag = MessageAction::Flags { uid: uid(3), add, remove, modseq_min: ModSeq::NONE };
    ours.apply(&[MessageAction::Renumber { from: uid(2), to: uid(3) }, flag]).expect("takes note");
    let committed = commit(&mut *ours, 1);
    assert_eq!(committed.not_kept, [(uid(3), Some(uid(2)))].into(), "it has its old one");
    assert_eq!(
        list(&mut *open_box(open)),
        [(2, keeps.guid("ours"), flagged), (3, keeps.guid("stranger"), FlagSet::default())]
    );
    drop((ours, other));
    without_box(open(), name);
}

/// However many commits the first messages of a mailbox come in.
fn modseqs_come_out_as_they_are_elsewhere(open: &mut dyn FnMut() -> Box<dyn Storage>) {
    let modseqs = [900, 3, 7, 1, 950, 2, 4];
    let goal = |unfinished| Goal {
        uid_next_min: uid(if unfinished { 1 } else { 20 }),
        modseq_min: if unfinished { ModSeq::NONE } else { ModSeq::new(1000).expect("in range") },
        uid_validity: None,
        unfinished,
    };
    for (parts, intruder) in [(1, false), (2, false), (7, false), (3, true)] {
        let (mut storage, name) = with_box(open, "Imported");
        let mut mailbox = storage.open(BOX).expect("opens");
        mailbox.changes(Since::All).expect("lists");
        let mut messages = (1..).zip(modseqs).map(|(n, modseq)| NewMessage {
            modseq: ModSeq::new(modseq).expect("in range"),
            ..message(
                n,
                &format!("{n}.guid"),
                flags(Flags::SEEN, if n % 2 == 0 { &["Even"] } else { &["Odd"] }),
            )
        });
        for part in 0..parts {
            let some = messages.by_ref().take(modseqs.len().div_ceil(parts));
            some.for_each(|message| save(&mut *mailbox, message, b"Subject: imported\n\ntext\n"));
            mailbox.commit(goal(part + 1 < parts)).expect("commits");
            if intruder && part == 0 {
                let mut other = open_box(open);
                let add = flags(Flags::FLAGGED, &[]);
                let remove = FlagSet::default();
                other
                    .apply(&[MessageAction::Flags { uid: uid(2), add, remove, modseq_min: ModSeq::NONE }])
                    .expect("takes note");
                commit(&mut *other, 1);
            }
        }
        drop(mailbox);
        let changes = open_box(open).changes(Since::All).expect("lists");
        let modseq = |change: &MessageChange| match change {
            MessageChange::Save { modseq, .. } => modseq.get(),
            other => panic!("only saves: {other:?}"),
        };
        let got: Vec<u64> = changes.list.iter().map(modseq).collect();
        let status = changes.status;
        assert_eq!((status.messages, status.uid_next), (7, uid(20)), "{parts} parts");
        // Who keeps no modseqs gives all messages the same.
        if got.iter().any(|modseq| *modseq != got[0]) {
            if intruder {
                assert!(got.iter().zip(modseqs).all(|(got, wanted)| *got >= wanted), "{got:?}");
                assert!(status.highest_modseq.get() >= 1000, "{status:?}");
            } else {
                assert_eq!((&got[..], status.highest_modseq.get()), (&modseqs[..], 1000), "{parts} parts");
            }
        }
        without_box(open(), name);
    }
}
