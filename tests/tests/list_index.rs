//! LAYOUT=index: names that are in Dovecot's list index alone travel both ways, and come back when it is lost.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use dsync_model::{FlagSet, MailboxName, TreeChange};
use dsync_session::proto::Direction;
use dsync_tests::dovecot::{Dovecot, assert_equal, installed};
use dsync_tests::maildirs::{Account, BACKUP, sync};
use dsync_tests::users::User;

const FORMATS: [&str; 4] =
    ["maildir:LAYOUT=index", "sdbox:LAYOUT=index", "mdbox:LAYOUT=index", "mbox:LAYOUT=index"];

fn place() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("made");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).expect("set");
    dir
}

/// The log of the list index.
fn list_of(account: &Account) -> PathBuf {
    let directory = if account.format == "mbox" { ".imap" } else { "" };
    account.root.join(directory).join("dovecot.list.index.log")
}

fn some_mail(account: &Account, names: &[&str]) {
    let mut user = User::of(account.open());
    for name in names {
        user.save(name, &format!("in {name}"), FlagSet::default());
    }
}

/// All files of an account but our notes.
fn files(account: &Account) -> BTreeMap<PathBuf, Vec<u8>> {
    fn walk(directory: &Path, found: &mut BTreeMap<PathBuf, Vec<u8>>) {
        for entry in fs::read_dir(directory).expect("readable").flatten() {
            let path = entry.path();
            if path.is_dir() {
                walk(&path, found);
            } else if !entry.file_name().to_string_lossy().starts_with(".dsync-") {
                found.insert(path.clone(), fs::read(&path).expect("readable"));
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(&account.root, &mut found);
    found
}

fn two_ways(a: &Account, b: &Account) {
    let (report, _) = sync(a, b, Direction::TwoWay).expect("syncs");
    assert_eq!(report.status(), 0, "{report:?}");
    assert_eq!(a.view(), b.view());
    let before = [files(a), files(b)];
    let (report, _) = sync(a, b, Direction::TwoWay).expect("syncs");
    assert_eq!(report.status(), 0, "{report:?}");
    assert!([files(a), files(b)] == before, "the second run changes something");
}

fn names(account: &Account) -> Vec<String> {
    account.view().into_keys().collect()
}

/// What Dovecot lists, and what is in the mailboxes.
fn dovecot_agrees(dir: &Path, a: &Account, b: &Account) {
    if !installed() {
        return;
    }
    let dovecot = Dovecot::new(dir);
    dovecot.own(dir);
    let view = |account: &Account| {
        let mut listed: Vec<String> =
            dovecot.doveadm(&account.location(), &["mailbox", "list"]).lines().map(str::to_owned).collect();
        listed.sort_unstable();
        let before = fs::read(list_of(account)).expect("a list index");
        let view = dovecot.view(&account.location());
        let after = fs::read(list_of(account)).expect("a list index");
        assert_eq!(after[..40], before[..40], "the list index was made anew");
        format!("{}\n{view}", listed.join("\n"))
    };
    assert_equal(&view(a), &view(b), "what Dovecot sees");
    // And it changes what we made.
    for account in [a, b] {
        let location = account.location();
        dovecot.doveadm(&location, &["mailbox", "create", "By Dovecot/Made"]);
        dovecot.doveadm(&location, &["mailbox", "rename", "By Dovecot/Made", "By Dovecot/Renamed"]);
        dovecot.doveadm(&location, &["mailbox", "delete", "By Dovecot/Renamed"]);
    }
    assert_eq!(names(a), names(b), "and we see that");
}

#[test]
fn mailboxes_are_made_renamed_and_deleted_both_ways() {
    for (one, two) in [
        (FORMATS[0], FORMATS[1]),
        (FORMATS[1], FORMATS[2]),
        (FORMATS[2], "maildir:LAYOUT=fs"),
        (FORMATS[3], FORMATS[3]),
    ] {
        let dir = place();
        let (a, b) = (Account::of(one, dir.path().join("a")), Account::of(two, dir.path().join("b")));
        some_mail(&a, &["INBOX", "Work", "Work/2024", "Work/2024/Q1", "Gone/One", "a.b/c", "Entwürfe"]);
        some_mail(&b, &["Theirs/Two", "Gone/Two"]);
        two_ways(&a, &b);
        let (mut user, mut other) = (User::of(a.open()), User::of(b.open()));
        // A parent, of which the children stay; a child; a whole subtree, name by name.
        user.rename("Work", "Archive/Work");
        user.delete("Gone/One");
        user.create("Work/New");
        other.rename("Theirs/Two", "Theirs/Renamed");
        other.delete("Gone/Two");
        other.rename("Work/2024/Q1", "Q1");
        other.rename("Work/2024", "Q1/2024");
        other.save("Q1", "more", FlagSet::default());
        two_ways(&a, &b);
        let mailboxes: Vec<String> = names(&a);
        let expected =
            ["Archive/Work", "Entwürfe", "INBOX", "Q1", "Q1/2024", "Theirs/Renamed", "Work/New", "a.b/c"];
        let view = a.view();
        let held = mailboxes.iter().filter(|name| !view[*name][0].starts_with("subscribed "));
        assert_eq!(held.collect::<Vec<_>>(), expected, "{one}, {two}");
        if two != "maildir:LAYOUT=fs" {
            dovecot_agrees(dir.path(), &a, &b);
        }
    }
}

#[test]
fn subscriptions_and_directories_travel() {
    for format in FORMATS {
        let dir = place();
        let (a, b) = (Account::of(format, dir.path().join("a")), Account::of("sdbox", dir.path().join("b")));
        let name = |text: &str| MailboxName::parse(text, '/').expect("valid");
        let mut storage = a.open();
        storage.tree().expect("lists");
        let made = TreeChange::CreateDirectory { name: name("Empty/Directory") };
        let subscribed = TreeChange::Subscribe { names: [name("INBOX"), name("No/Mailbox")].into() };
        for change in [made, subscribed] {
            assert!(storage.change_tree(&change).expect("is made"));
        }
        drop(storage);
        two_ways(&a, &b);
        assert!(b.root.join("mailboxes/Empty/Directory").is_dir(), "{format}");
        let mut storage = b.open();
        storage.tree().expect("lists");
        let removed = TreeChange::DeleteDirectory { name: name("Empty/Directory") };
        let unsubscribed = TreeChange::Unsubscribe { names: [name("No/Mailbox")].into() };
        for change in [removed, unsubscribed] {
            assert!(storage.change_tree(&change).expect("is made"));
        }
        drop(storage);
        two_ways(&a, &b);
        assert_eq!(names(&a), ["Empty", "INBOX"], "{format}");
    }
}

/// Where the list index is gone or broken, mailboxes come back under the names that they have themselves.
#[test]
fn names_come_back_when_the_list_index_is_lost() {
    for format in FORMATS {
        for broken in [false, true] {
            let dir = place();
            let account = Account::of(format, dir.path().join("a"));
            some_mail(&account, &["INBOX", "Work/2024", "Old", "Empty"]);
            let mut user = User::of(account.open());
            user.rename("Old", "Archive/Old");
            user.expunge("Empty", 0);
            let before = account.view();
            let log = list_of(&account);
            if broken {
                fs::write(&log, b"what is this").expect("written");
            } else {
                fs::remove_file(&log).expect("removed");
            }
            assert_eq!(account.view(), before, "{format}");
            if installed() {
                let dovecot = Dovecot::new(dir.path());
                dovecot.own(dir.path());
                let listed = dovecot.doveadm(&account.location(), &["mailbox", "status", "messages", "*"]);
                assert_eq!(listed.lines().count(), 4, "{format}: {listed}");
            }
        }
    }
}

/// A mailbox that holds mail and is in no list, as a crash leaves it, gets its name back; where that is taken, another.
#[test]
fn a_mailbox_without_a_name_gets_one() {
    for format in FORMATS {
        let dir = place();
        let account = Account::of(format, dir.path().join("a"));
        some_mail(&account, &["INBOX", "Work"]);
        let list = list_of(&account);
        let whole = fs::read(&list).expect("a list index");
        let name = whole.windows(5).position(|window| window == b"Work\0").expect("its name");
        // The word of the record that begins a transaction; the record's size is before it.
        let begin =
            whole[..name].windows(4).rposition(|window| window == [0, 0, 8, 16]).expect("a transaction");
        let without = &whole[..begin - 4];
        User::of(account.open()).rename("Work", "Elsewhere");
        fs::write(&list, without).expect("written");
        let view = account.view();
        assert_eq!(names(&account), ["Elsewhere", "INBOX"], "{format}: the name it had last");
        assert!(view["Elsewhere"][1].contains("in Work"), "{format}");
        fs::write(&list, without).expect("written");
        User::of(account.open()).create("Elsewhere");
        let lost = names(&account);
        assert!(lost.len() == 3 && lost[2].starts_with("lost-"), "{format}: {lost:?}");
        assert!(account.view()[&lost[2]][1].contains("in Work"), "{format}");
    }
}

/// A directory that is gone is no mailbox that somebody deleted: what cannot be read is not gone.
#[test]
fn a_listed_mailbox_whose_directory_is_gone_is_told() {
    let dir = place();
    let account = Account::of(FORMATS[1], dir.path().join("a"));
    some_mail(&account, &["INBOX", "Work"]);
    let guid = account.view()["Work"][0].split(' ').next().expect("a GUID").to_owned();
    fs::rename(account.root.join("mailboxes").join(guid), dir.path().join("away")).expect("moved");
    let (tree, problems) = account.open().tree().expect("lists");
    assert_eq!(tree.len(), 1);
    assert_eq!(problems.iter().map(|problem| &*problem.mailbox).collect::<Vec<_>>(), ["Work"]);
}

#[test]
fn backup_makes_the_destination_the_same() {
    let dir = place();
    let (a, b) =
        (Account::of(FORMATS[1], dir.path().join("a")), Account::of(FORMATS[0], dir.path().join("b")));
    some_mail(&a, &["INBOX", "Work", "Work/2024"]);
    some_mail(&b, &["INBOX", "Work", "Foreign/Deep"]);
    for _ in 0..2 {
        let (report, _) = sync(&a, &b, BACKUP).expect("syncs");
        assert_eq!(report.status(), 0, "{report:?}");
        assert_eq!(a.view(), b.view());
    }
    dovecot_agrees(dir.path(), &a, &b);
}
