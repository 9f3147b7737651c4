use std::fs;

use dsync_model::{Uid, UidValidity};

use super::*;
use crate::Storage;

fn name(text: &str) -> MailboxName {
    MailboxName::parse(text, '/').unwrap()
}

fn namespace(prefix: &str, location: String) -> Namespace {
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

fn create(account: &mut Namespaced, mailbox: &str, guid: u8) {
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
    let moved =
        TreeChange::Rename { guid: MailboxGuid([1; 16]), from: name("Work"), to: name("Archive/Work") };
    assert_eq!(account.change_tree(&moved).unwrap_err().status(), 65);
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
