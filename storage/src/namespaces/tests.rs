use std::fs;

use dsync_model::{
    AttributeKey, Digest, FlagSet, Flags, MailboxStatus, MessageGuid, ModSeq, NewMessage, Timestamp, Uid,
    UidValidity,
};

use super::*;
use crate::{Body, Goal, Mailbox, Storage};

pub(super) fn name(text: &str) -> MailboxName {
    MailboxName::parse(text, '/').unwrap()
}

pub(super) fn namespace(prefix: &str, location: String) -> Namespace {
    Namespace {
        prefix: prefix.into(),
        separator: Some('/'),
        inbox: false,
        usual: false,
        visible: true,
        subscriptions: true,
        location: Location::parse(&location, None),
    }
}

/// The user's mail with this prefix, an archive that keeps no subscriptions, and something that nobody can read.
fn account(directory: &std::path::Path, prefix: &str) -> Namespaced {
    let at = |format: &str, place: &str| format!("{format}:{}/{place}", directory.display());
    let mut main = namespace(prefix, at("maildir", "main"));
    (main.inbox, main.usual) = (true, true);
    let archive = Namespace { subscriptions: false, ..namespace("Archive/", at("sdbox", "archive")) };
    let broken = namespace("Virtual/", at("virtual", "x"));
    Namespaced::new(
        vec![main, archive, Namespace { visible: false, ..broken }],
        &Namespaces::All,
        Fsync::Never,
    )
    .unwrap()
}

pub(super) fn create(account: &mut Namespaced, mailbox: &str, guid: u8) {
    let (guid, uid_validity) = (MailboxGuid([guid; 16]), UidValidity::new(7).unwrap());
    let change = TreeChange::Create { name: name(mailbox), guid, uid_validity, uid_next: Uid::MIN };
    account.change_tree(&change).unwrap();
}

fn listed(account: &mut Namespaced) -> Vec<String> {
    let (tree, problems) = account.tree().unwrap();
    assert!(problems.is_empty(), "{problems:?}");
    let mark = |node: &MailboxNode| match (&node.mailbox, node.subscribed) {
        (Some(_), true) => "+",
        (None, true) => "-",
        _ => "",
    };
    tree.iter().map(|(name, node)| format!("{}{name}", mark(node))).collect()
}

#[test]
fn each_namespace_has_its_own_mail_and_one_the_subscriptions() {
    let directory = tempfile::tempdir().unwrap();
    let mut account = account(directory.path(), "");
    for (mailbox, guid) in [("Work", 1), ("Archive/Old/2020", 2), ("Archive/INBOX", 3)] {
        create(&mut account, mailbox, guid);
    }
    let names = ["Work", "Archive/INBOX", "Archive/Gone"].map(name).into();
    account.change_tree(&TreeChange::Subscribe { names }).unwrap();
    let all = ["-Archive/Gone", "+Archive/INBOX", "Archive/Old", "Archive/Old/2020", "INBOX", "+Work"];
    assert_eq!(listed(&mut account), all);
    let kept = fs::read_to_string(directory.path().join("main/subscriptions")).unwrap();
    assert!(kept.contains("Archive/INBOX"), "as Dovecot writes it: {kept}");
    assert!(!directory.path().join("archive/subscriptions").exists());
    assert!(directory.path().join("archive/mailboxes/Old/2020/dbox-Mails").exists());
    assert!(account.open(MailboxGuid([2; 16])).is_ok());
    account.choose(&Namespaces::Usual).unwrap();
    assert_eq!(listed(&mut account), ["INBOX", "+Work"]);
    assert!(account.rules().is_apart(&name("Archive/x")) && !account.rules().is_apart(&name("Arch")));
    account.choose(&Namespaces::Only(vec!["Archive/".into()])).unwrap();
    let archive = ["-Archive/Gone", "+Archive/INBOX", "Archive/Old", "Archive/Old/2020"];
    assert_eq!(listed(&mut account), archive, "its subscriptions are with the other's");
    assert!(account.choose(&Namespaces::Only(vec!["Virtual/".into()])).is_err());
}

#[test]
fn a_prefix_in_front_of_all_but_inbox() {
    let directory = tempfile::tempdir().unwrap();
    let mut account = account(directory.path(), "INBOX/");
    create(&mut account, "INBOX/Work", 1);
    let names = ["INBOX", "INBOX/Work"].map(name).into();
    account.change_tree(&TreeChange::Subscribe { names }).unwrap();
    assert!(directory.path().join("main/.Work/cur").exists());
    assert_eq!(listed(&mut account), ["+INBOX", "+INBOX/Work"]);
    let rules = account.rules();
    let held =
        ["Sent", "INBOX/INBOX", "INBOX/a.b", "Archive", "Archive/a.b"].map(|text| rules.hold(&name(text)));
    let expected = ["INBOX/Sent", "INBOX/_INBOX", "INBOX/a_b", "Archive/_Archive", "Archive/a.b"];
    assert_eq!(held.each_ref().map(ToString::to_string), expected);
    let names = [name("Archive/x")].into();
    let error = account.change_tree(&TreeChange::Subscribe { names }).unwrap_err();
    assert_eq!(error.status(), 65, "nobody keeps it");
}

#[test]
fn mail_in_two_namespaces_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let mail = format!("maildir:{}", directory.path().display());
    let both = vec![namespace("", mail.clone()), namespace("old/", mail)];
    let error = open(both, &Namespaces::All, Fsync::Never).err().unwrap();
    assert_eq!((error.status(), error.to_string().contains("alias_for")), (78, true));
}

/// What Dovecot 2.3.19 writes, where both namespaces are Maildir++ and the outer one has the prefix `INBOX/`.
#[test]
fn subscriptions_of_another_namespace_are_kept_as_dovecot_does() {
    let directory = tempfile::tempdir().unwrap();
    let at = |place: &str| format!("maildir:{}/{place}", directory.path().display());
    let main = Namespace { inbox: true, usual: true, ..namespace("INBOX/", at("main")) };
    let archive = Namespace { subscriptions: false, ..namespace("INBOX/Archive/", at("archive")) };
    let mut account = Namespaced::new(vec![main, archive], &Namespaces::All, Fsync::Never).unwrap();
    let text = "V\t2\n\nWork\tx\nArchive/2020\tx\nArchive/&AMQ-\n";
    let file = directory.path().join("main/subscriptions");
    fs::write(&file, text).unwrap();
    let names = ["INBOX/Work/x", "INBOX/Archive/2020/x", "INBOX/Archive/Ä"].map(name);
    assert_eq!(listed(&mut account), ["INBOX", "-INBOX/Archive/2020/x", "-INBOX/Archive/Ä", "-INBOX/Work/x"]);
    account.change_tree(&TreeChange::Unsubscribe { names: names.clone().into() }).unwrap();
    assert_eq!(fs::read_to_string(&file).unwrap(), "V\t2\n\n");
    for name in names {
        account.change_tree(&TreeChange::Subscribe { names: [name].into() }).unwrap();
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), text);
}

/// Puts messages into a mailbox.
pub(super) fn fill(account: &mut Namespaced, mailbox: u8, uids: std::ops::Range<u32>) {
    let mut mailbox = account.open(MailboxGuid([mailbox; 16])).unwrap();
    for uid in uids {
        save(&mut *mailbox, uid, &format!("{uid:032x}")).unwrap();
    }
}

/// Puts a message into a mailbox.
pub(super) fn save(mailbox: &mut dyn Mailbox, uid: u32, guid: &str) -> Result<()> {
    let guid = MessageGuid::new(guid).unwrap();
    let flags = FlagSet::system(if uid.is_multiple_of(2) { Flags::SEEN } else { Flags::FLAGGED });
    let (received, pop3_uidl, size) = (Some(Timestamp(1_700_000_000)), None, None);
    let (modseq, saved, pop3_order, path, map_uid) = (ModSeq::NONE, None, None, None, None);
    let reader = Box::new(std::io::Cursor::new(format!("Subject: {uid}\n\ntext\n").into_bytes()));
    let body = Body {
        guid: guid.clone(),
        received,
        saved,
        pop3_uidl: pop3_uidl.clone(),
        pop3_order,
        size,
        path,
        map_uid,
        reader,
    };
    let uid = Uid::new(uid).unwrap();
    let message = NewMessage { uid, guid, flags, modseq, received, saved, pop3_uidl, pop3_order, size };
    mailbox.save(message, body)?;
    let uid_next_min = uid.next().unwrap();
    let goal = Goal { uid_next_min, modseq_min: ModSeq::NONE, uid_validity: None, unfinished: false };
    assert!(mailbox.commit(goal)?.not_kept.is_empty());
    Ok(())
}

/// What both ends would compare, by name.
pub(super) fn statuses(
    account: &mut Namespaced,
) -> BTreeMap<String, (MailboxGuid, UidValidity, Uid, Digest)> {
    let (tree, problems) = account.tree().unwrap();
    assert!(problems.is_empty(), "{problems:?}");
    let status = |node: MailboxNode| {
        let MailboxStatus { guid, uid_validity, uid_next, digest, .. } = node.mailbox?;
        Some((guid, uid_validity, uid_next, digest))
    };
    tree.into_iter().filter_map(|(name, node)| Some((name.to_string(), status(node)?))).collect()
}

pub(super) fn rename(account: &mut Namespaced, guid: u8, from: &str, to: &str) -> Result<bool> {
    account.change_tree(&TreeChange::Rename { guid: MailboxGuid([guid; 16]), from: name(from), to: name(to) })
}

#[test]
fn a_mailbox_moves_into_another_namespace_with_all_that_it_has() {
    let directory = tempfile::tempdir().unwrap();
    let mut account = account(directory.path(), "");
    for (mailbox, guid) in [("Work", 1), ("Work/x", 2), ("Archive/Taken", 3)] {
        create(&mut account, mailbox, guid);
    }
    fill(&mut account, 1, 5..9);
    let key = AttributeKey { key: "comment".into(), ..AttributeKey::first_of(MailboxGuid([1; 16])) };
    account.change_attributes(&[(key.clone(), Some(b"mine".to_vec()))].into()).unwrap();
    let work = statuses(&mut account)["Work"];
    assert_eq!(rename(&mut account, 1, "Work", "Archive/Taken").unwrap_err().status(), 65);
    assert_eq!(statuses(&mut account)["Work"], work);
    assert!(rename(&mut account, 1, "Work", "Archive/Old/Work").unwrap());
    let moved = statuses(&mut account);
    assert!(moved["Archive/Old/Work"] == work && !moved.contains_key("Work"), "{moved:?}");
    assert!(moved.contains_key("Work/x"));
    assert_eq!(account.attributes().unwrap().unwrap().into_keys().collect::<Vec<_>>(), [key]);
    let mut mailbox = account.open(MailboxGuid([1; 16])).unwrap();
    let body = mailbox.body(Uid::new(6).unwrap(), None).unwrap().unwrap();
    assert_eq!(std::io::read_to_string(body.reader).unwrap(), "Subject: 6\n\ntext\n");
    drop(mailbox);
    // And back, where the names of both are in use.
    assert!(rename(&mut account, 1, "Archive/Old/Work", "Work").unwrap());
    assert_eq!(statuses(&mut account)["Work"], work);
    let inbox = statuses(&mut account)["INBOX"];
    let to = name("Archive/In");
    let moved = TreeChange::Rename { guid: inbox.0, from: name("INBOX"), to };
    assert_eq!(account.change_tree(&moved).unwrap_err().status(), 65);
    assert_eq!(statuses(&mut account)["INBOX"], inbox);
}
