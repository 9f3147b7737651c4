//! A mailbox that may be read and not written, in every format, at either end, here and over a link: it alone waits for the next run.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use dsync_tests::maildirs::Account;
use dsync_tests::programs::{Place, programs};

use super::{mail, run_as_nobody, source};

/// A format and what of it belongs to the mailbox `Work` alone.
const FORMATS: [(&str, &[&str]); 5] = [
    ("maildir", &[".Work"]),
    ("maildir:LAYOUT=fs", &["Work"]),
    ("sdbox", &["mailboxes/Work"]),
    ("mdbox", &["mailboxes/Work"]),
    ("mbox", &["Work", ".imap/Work"]),
];

/// Sets who may write files and directories, and all below them.
fn set_writable(path: &Path, writable: bool) {
    let metadata = fs::metadata(path).expect("is there");
    let mode = match (metadata.is_dir(), writable) {
        (true, true) => 0o700,
        (true, false) => 0o500,
        (false, true) => 0o600,
        (false, false) => 0o400,
    };
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("set");
    if metadata.is_dir() {
        let entries = fs::read_dir(path).expect("readable");
        entries.for_each(|entry| set_writable(&entry.expect("readable").path(), writable));
    }
}

/// UID, flags, date and body of each message of a mailbox; GUIDs are not kept in an mbox.
fn messages(account: &Account, mailbox: &str) -> Vec<String> {
    let view = account.view();
    let lines = view.get(mailbox).into_iter().flat_map(|lines| &lines[1..]);
    let without_guid = |line: &String| {
        let (uid, rest) = line.split_once(' ').expect("a UID first");
        let (_, rest) = rest.split_once(' ').expect("then the GUID");
        // An mbox ends every message with a line end.
        format!("{uid} {}", rest.trim_end_matches('"').trim_end_matches("\\n"))
    };
    lines.map(without_guid).collect()
}

fn subjects(account: &Account, mailbox: &str) -> Vec<String> {
    let subject = |line: &String| line.split_once("Subject: ")?.1.split("\\n").next().map(str::to_owned);
    messages(account, mailbox).iter().filter_map(subject).collect()
}

/// How the end with the read-only mailbox is reached.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Way {
    Destination,
    Initiator,
    Link,
}

fn check(format: &'static str, alone: &[&str], command: &str, way: Way) {
    let what = format!("{format} {command} {way:?}");
    let place = Place::new("");
    let account = mail(&place, 3);
    account.deliver("Work", "1710000001.M1P1.test", b"Subject: work\n\n");
    let copy = Account::of(format, place.path("copy"));
    let there = copy.location();
    let server = place.path("dsync-server");
    fs::copy(programs().join("dsync-server"), &server).expect("copied");
    let mail_location = format!("mail_location={there}");
    let pipe =
        [server.to_str().expect("UTF-8"), "-c", "/dev/null", "-o", &mail_location, "--stdio", "-u", "alice"];
    let here = source(&account);
    let mut arguments = vec![command, "--source"];
    match way {
        Way::Destination => arguments.extend([here.as_str(), &there]),
        Way::Initiator => arguments.extend([there.as_str(), &here]),
        Way::Link => {
            arguments.push(&here);
            arguments.extend(pipe);
        }
    }
    assert_eq!(run_as_nobody(&place, &arguments), (0, String::new()), "{what}");

    // At the end that may be written something is new, flagged, and moved; at the other end, too, two ways.
    for folder in ["", "Work", "Zoo"] {
        account.deliver(folder, "1720000001.M1P1.test", b"Subject: later\n\n");
    }
    let moved = account.find("", "1700000001");
    let name = moved.file_name().expect("a file").to_owned();
    fs::rename(&moved, account.folder("Work").join("cur").join(&name)).expect("moved");
    let old = account.find("Work", "1710000001");
    fs::rename(&old, account.folder("Work").join("cur/1710000001.M1P1.test:2,F")).expect("flagged");
    let alone: Vec<PathBuf> = alone.iter().map(|path| copy.root.join(path)).collect();
    let before = messages(&copy, "Work");
    alone.iter().for_each(|path| set_writable(path, false));
    let (status, text) = run_as_nobody(&place, &arguments);
    // The server's own log comes along.
    let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("dsync: ")).collect();
    assert!(status == 77, "{what}: {status} {text}");
    let named =
        lines.iter().filter(|line| line.contains("Work: ") && line.contains("Permission denied")).count();
    assert!(named == 1 && text.contains(copy.root.to_str().expect("UTF-8")), "{what}: {text}");
    let stays =
        lines.iter().filter(|line| line.contains("INBOX: 1 moved to a mailbox that is left out")).count();
    assert_eq!((stays, lines.len()), (1, 2), "{what}: {text}");
    alone.iter().for_each(|path| set_writable(path, true));
    assert_eq!(messages(&copy, "Work"), before, "{what}: {text}");
    assert_eq!(
        subjects(&copy, "INBOX"),
        ["0", "1", "2", "later"],
        "{what}: what was moved is still where it was: {text}"
    );
    assert_eq!(subjects(&copy, "Zoo"), ["later"], "{what}: {text}");

    // The next run that may brings the rest, and moves what was moved.
    let (status, text) = run_as_nobody(&place, &arguments);
    assert_eq!((status, text), (0, String::new()), "{what}");
    assert_eq!(subjects(&copy, "INBOX"), ["0", "2", "later"], "{what}");
    assert_eq!(subjects(&copy, "Work").len(), 3, "{what}");
    for mailbox in ["INBOX", "Work", "Zoo"] {
        assert_eq!(messages(&copy, mailbox), messages(&account, mailbox), "{what}: {mailbox}");
    }
    assert_eq!(run_as_nobody(&place, &arguments), (0, String::new()), "{what}");
}

#[test]
fn a_mailbox_that_may_not_be_written_waits_for_the_next_run() {
    for (format, alone) in FORMATS {
        check(format, alone, "backup", Way::Destination);
        check(format, alone, "sync", Way::Initiator);
    }
    check("sdbox", &["mailboxes/Work"], "sync", Way::Destination);
    check("sdbox", &["mailboxes/Work"], "sync", Way::Link);
    check("maildir", &[".Work"], "backup", Way::Link);
}

/// What all mailboxes need is no matter of one of them: it ends the run, with one line.
#[test]
fn a_map_of_mdbox_that_may_not_be_written_ends_the_run() {
    let place = Place::new("");
    let account = mail(&place, 2);
    account.deliver("Work", "1710000001.M1P1.test", b"Subject: work\n\n");
    let copy = Account::of("mdbox", place.path("copy"));
    let (here, there) = (source(&account), copy.location());
    let arguments = ["backup", "--source", &here, &there];
    assert_eq!(run_as_nobody(&place, &arguments), (0, String::new()));
    for folder in ["", "Work"] {
        account.deliver(folder, "1720000001.M1P1.test", b"Subject: later\n\n");
    }
    set_writable(&copy.root.join("storage"), false);
    let (status, text) = run_as_nobody(&place, &arguments);
    assert!(status == 77 && text.lines().count() == 1 && text.contains("/storage/"), "{status} {text}");
    set_writable(&copy.root.join("storage"), true);
    assert_eq!(run_as_nobody(&place, &arguments), (0, String::new()));
    assert_eq!(subjects(&copy, "Work"), ["work", "later"]);
}

/// A mailbox that was to be deleted and could not be, or that holds what was moved to one that is left out, stays, and does not come back to the
/// end that deleted it; a later run deletes it.
#[test]
fn a_mailbox_that_cannot_be_deleted_goes_later() {
    for moved in [false, true] {
        let place = Place::new("");
        let account = mail(&place, 1);
        for (folder, time) in [("Work", "1710000001"), ("Top", "1710000002"), ("Top.Old", "1710000003")] {
            account.deliver(
                folder,
                &format!("{time}.M1P1.test"),
                format!("Subject: {folder}\n\n").as_bytes(),
            );
        }
        let copy = Account::of("maildir:LAYOUT=fs", place.path("copy"));
        let (here, there) = (source(&account), copy.location());
        let arguments = ["sync", "--source", &here, &there];
        assert_eq!(run_as_nobody(&place, &arguments), (0, String::new()));
        let blocked = copy.root.join(if moved { "Work" } else { "Top" });
        if moved {
            let old = account.find("Top.Old", "1710000003");
            fs::rename(&old, account.folder("Work").join("cur/1710000003.M1P1.test:2,")).expect("moved");
        }
        fs::remove_dir_all(account.folder("Top.Old")).expect("removed");
        account.deliver("", "1720000001.M1P1.test", b"Subject: later\n\n");
        set_writable(&blocked, false);
        for _ in 0..2 {
            let (status, text) = run_as_nobody(&place, &arguments);
            assert!(status == 77 && text.contains("Top/Old: "), "{moved}: {status} {text}");
            assert_eq!(subjects(&copy, "Top/Old"), ["Top.Old"], "{moved}: {text}");
            assert!(!account.view().contains_key("Top/Old"), "{moved}: {text}");
            assert_eq!(subjects(&copy, "INBOX"), ["0", "later"], "{moved}: {text}");
        }
        set_writable(&blocked, true);
        assert_eq!(run_as_nobody(&place, &arguments), (0, String::new()), "{moved}");
        assert!([&account, &copy].iter().all(|account| !account.view().contains_key("Top/Old")), "{moved}");
        assert_eq!(subjects(&copy, "Work").len(), if moved { 2 } else { 1 }, "{moved}");
        assert_eq!(run_as_nobody(&place, &arguments), (0, String::new()), "{moved}");
    }
}

/// The same for a directory without mail.
#[test]
fn a_directory_that_cannot_be_removed_goes_later() {
    let place = Place::new("");
    let [account, copy] = ["mail", "copy"].map(|name| Account::of("maildir:LAYOUT=fs", place.path(name)));
    mail(&place, 1);
    fs::create_dir_all(account.root.join("Top/Empty")).expect("made");
    let (here, there) = (account.location(), copy.location());
    let arguments = ["sync", "--source", &here, &there];
    // Made by the first run, agreed on by the second.
    (0..2).for_each(|_| assert_eq!(run_as_nobody(&place, &arguments), (0, String::new())));
    assert!(copy.root.join("Top/Empty").is_dir());
    fs::remove_dir(account.root.join("Top/Empty")).expect("removed");
    set_writable(&copy.root.join("Top"), false);
    for _ in 0..2 {
        let (status, text) = run_as_nobody(&place, &arguments);
        assert!(status == 77 && text.contains("Top/Empty") && !text.contains(": : "), "{status} {text}");
        assert!(!account.root.join("Top/Empty").exists() && copy.root.join("Top/Empty").is_dir(), "{text}");
    }
    set_writable(&copy.root.join("Top"), true);
    assert_eq!(run_as_nobody(&place, &arguments), (0, String::new()));
    assert!([&account, &copy].iter().all(|account| !account.root.join("Top/Empty").exists()));
    assert_eq!(run_as_nobody(&place, &arguments), (0, String::new()));
}
