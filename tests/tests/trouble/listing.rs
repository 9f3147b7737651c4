//! What a listing cannot tell is not taken for deleted.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use dsync_model::{MailboxGuid, MailboxName, TreeChange, Uid, UidValidity};
use dsync_session::proto::Direction;
use dsync_storage::{Fsync, Location};
use dsync_tests::maildirs::{Account, sync};
use dsync_tests::programs::Place;

use super::{mail, run_as_nobody, source};

/// What comes in the place of a mailbox, or of one with others below it.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Instead {
    Link,
    LinkAbove,
    Pipe,
}

/// A link to a disk that is not there, or a pipe in the place of an mbox: that is named, and the copy of what may be behind it stays.
#[test]
fn links_to_nothing_and_pipes_are_no_deletions() {
    use Instead::{Link, LinkAbove, Pipe};
    for (format, things) in [
        ("maildir", &[Link][..]),
        ("maildir:LAYOUT=fs", &[Link, LinkAbove]),
        ("sdbox", &[Link, LinkAbove]),
        ("mbox", &[Link, LinkAbove, Pipe]),
    ] {
        for instead in things {
            let what = format!("{format} {instead:?}");
            let place = Place::new("");
            let (account, copy) = (mail(&place, 1), Account::of(format, place.path("copy")));
            account.deliver("Top.Work", "1700000001.M1P1.work", b"Subject: work\n\n");
            sync(&account, &copy, Direction::TwoWay).expect("syncs");
            let before = account.view();
            let (top, name) = if *instead == LinkAbove { ("Top", "Top") } else { ("Top/Work", "Top/Work") };
            let path = copy.root.join(match format {
                "maildir" => ".Top.Work".to_owned(),
                "sdbox" => format!("mailboxes/{top}"),
                _ => top.to_owned(),
            });
            let away = place.path("away");
            fs::rename(&path, &away).expect("moved");
            match instead {
                Pipe => nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("made"),
                Link | LinkAbove => symlink("/nowhere", &path).expect("linked"),
            }
            let (report, _) = sync(&account, &copy, Direction::TwoWay).expect("syncs");
            assert!(report.problems.join(" ").contains(&format!(" {name}: ")), "{what}: {report:?}");
            assert_eq!(account.view(), before, "{what}: {report:?}");
            fs::remove_file(&path).expect("removed");
            fs::rename(&away, &path).expect("back");
            let (report, _) = sync(&account, &copy, Direction::TwoWay).expect("syncs");
            assert_eq!((report.status(), account.view()), (0, before), "{what}: {report:?}");
        }
    }
}

/// A directory that may not be read: what may be in it stays at the other end, and the rest is synchronised.
#[test]
fn a_directory_that_may_not_be_read_is_no_deletion() {
    let place = Place::new("");
    let account = mail(&place, 1);
    for folder in ["Top", "Top.Work"] {
        account.deliver(folder, "1700000001.M1P1.work", b"Subject: work\n\n");
    }
    let copy = Account::of("maildir:LAYOUT=fs", place.path("copy"));
    let (here, there) = (source(&account), copy.location());
    let arguments = ["sync", "--source", &here, &there];
    assert_eq!(run_as_nobody(&place, &arguments), (0, String::new()));
    let before = account.view();
    account.deliver("", "1720000001.M1P1.test", b"Subject: later\n\n");
    let top = copy.root.join("Top");
    fs::set_permissions(&top, fs::Permissions::from_mode(0o000)).expect("set");
    let (status, text) = run_as_nobody(&place, &arguments);
    fs::set_permissions(&top, fs::Permissions::from_mode(0o700)).expect("set");
    assert!(status == 77 && text.lines().count() == 1 && text.contains("Top: "), "{status} {text}");
    let now = account.view();
    assert_eq!((&now["Top"], &now["Top/Work"]), (&before["Top"], &before["Top/Work"]), "{text}");
    assert_eq!(copy.view()["INBOX"].len(), 3, "{text}");
    assert_eq!(run_as_nobody(&place, &arguments), (0, String::new()));
    assert_eq!(account.view(), copy.view());
}

/// What a user renames behind a listing makes it void, in every format.
#[test]
fn names_that_change_behind_a_listing_are_noticed() {
    for (format, old) in
        [("maildir", ".Work"), ("sdbox", "mailboxes/Work"), ("mdbox", "mailboxes/Work"), ("mbox", "Work")]
    {
        let place = Place::new("");
        let location = format!("{format}:{}", place.path("mail").display());
        let mut storage = Location::parse(&location, None).expect("valid").open(Fsync::Never).expect("opens");
        let (name, guid) = (MailboxName::parse("Work", '/').expect("a name"), MailboxGuid([7; 16]));
        let uid_validity = UidValidity::new(7).expect("not 0");
        storage.tree().expect("listed");
        let create = TreeChange::Create { name, guid, uid_validity, uid_next: Uid::MIN };
        assert!(storage.change_tree(&create).expect("made"));
        assert!(!storage.is_steady().expect("looked"), "{format}: it is new");
        storage.tree().expect("listed");
        assert!(storage.is_steady().expect("looked"), "{format}");
        let path = place.path("mail").join(old);
        let file_name = path.file_name().expect("a name").to_string_lossy().into_owned();
        fs::rename(&path, path.with_file_name(format!("{file_name}2"))).expect("renamed");
        assert!(!storage.is_steady().expect("looked"), "{format}: it was renamed");
    }
}

/// An INBOX that may not be read waits, as any mailbox does: nothing of it is deleted by a backup, and the rest is synchronised.
#[test]
fn an_inbox_that_may_not_be_read_leaves_the_others_alone() {
    let place = Place::new("");
    let account = mail(&place, 1);
    account.deliver("Work", "1700000001.M1P1.work", b"Subject: work\n\n");
    let copy = Account::new(place.path("copy"));
    let (here, there) = (source(&account), copy.location());
    for command in ["sync", "backup"] {
        let arguments = [command, "--source", &here, &there];
        assert_eq!(run_as_nobody(&place, &arguments), (0, String::new()));
        let before = copy.view();
        for folder in ["", "Work"] {
            account.deliver(folder, &format!("1720000001.M1P1.{command}"), b"Subject: later\n\n");
        }
        let cur = account.root.join("cur");
        fs::set_permissions(&cur, fs::Permissions::from_mode(0o000)).expect("set");
        let (status, text) = run_as_nobody(&place, &arguments);
        fs::set_permissions(&cur, fs::Permissions::from_mode(0o700)).expect("set");
        assert!(status == 77 && text.lines().count() == 1 && text.contains("INBOX: "), "{status} {text}");
        let now = copy.view();
        assert_eq!(now["INBOX"], before["INBOX"], "{command}");
        assert_eq!(now["Work"].len(), before["Work"].len() + 1, "{command}");
        assert_eq!(run_as_nobody(&place, &arguments), (0, String::new()));
        assert_eq!(account.view(), copy.view());
    }
}
