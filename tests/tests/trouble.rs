//! Full disks, files that cannot be read or that vanish, two at once, links and strange names: one clear line, nothing lost.

#[path = "trouble/listing.rs"]
mod listing;
#[path = "trouble/locks.rs"]
mod locks;
#[path = "trouble/midway.rs"]
mod midway;
#[path = "trouble/read_only.rs"]
mod read_only;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use dsync_session::proto::{Direction, Options};
use dsync_session::{Brain, Input, Job, Output};
use dsync_tests::maildirs::{Account, BACKUP, sync};
use dsync_tests::programs::{Place, programs};

fn mail(place: &Place, messages: u32) -> Account {
    let account = Account::new(place.path("mail"));
    for n in 0..messages {
        account.deliver(
            "",
            &format!("17000{n:05}.M{n}P1.test"),
            format!("Subject: {n}\n\n{}", "x".repeat(5000)).as_bytes(),
        );
    }
    account
}

fn source(account: &Account) -> String {
    format!("maildir:{}", account.root.display())
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}

/// A small file system of its own, where that can be had.
struct Small(std::path::PathBuf);

impl Small {
    fn mount(path: &Path, bytes: u32) -> Option<Small> {
        fs::create_dir_all(path).expect("made");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "dsync-test"])
            .arg(path)
            .status();
        mounted.is_ok_and(|status| status.success()).then(|| Small(path.to_owned()))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // A test that fails may still hold files there; the system takes them with the mount.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_is_named_and_the_next_run_goes_on() {
    let place = Place::new("");
    let account = mail(&place, 300);
    let full = place.path("small");
    let Some(small) = Small::mount(&full, 400_000) else {
        eprintln!("skipped: no file system can be mounted here");
        return;
    };
    let copy = Account::new(full.join("copy"));
    let (status, text) = place.run(&["backup", "--source", &source(&account), &source(&copy)]);
    assert!(
        status == 75 && text.contains("No space left on device") && text.contains("small/copy"),
        "{status} {text}"
    );
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(
        copy.leftovers().iter().all(|path| !path.to_string_lossy().contains("/tmp/")),
        "{:?}",
        copy.leftovers()
    );
    let grown = Command::new("mount").args(["-o", "remount,size=40000000"]).arg(&full).status();
    assert!(grown.is_ok_and(|status| status.success()));
    assert_eq!(place.run(&["backup", "--source", &source(&account), &source(&copy)]), (0, String::new()));
    assert_eq!(account.view(), copy.view());
    drop(small);
}

/// Runs `dsync` as a user who may not read everything; the place is that user's.
fn run_as_nobody(place: &Place, args: &[&str]) -> (i32, String) {
    let dsync = place.path("dsync");
    fs::copy(programs().join("dsync"), &dsync).expect("copied");
    let mut command = if is_root() {
        fs::set_permissions(place.dir.path(), fs::Permissions::from_mode(0o777)).expect("set");
        let chown = Command::new("chown").args(["-R", "nobody"]).arg(place.dir.path()).status();
        assert!(chown.is_ok_and(|status| status.success()));
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "nobody", "--regid", "nogroup", "--clear-groups", "--"]).arg(&dsync);
        command
    } else {
        Command::new(&dsync)
    };
    let run = command.args(["-c", "/dev/null"]).args(args).env("HOME", place.dir.path()).env("USER", "alice");
    let output = run.current_dir("/").output().expect("runs");
    (output.status.code().expect("not killed"), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// At either end, an mbox that may not be read or written is named, is left alone, and the others arrive.
#[test]
fn an_mbox_that_is_not_permitted_is_named_and_nothing_is_lost() {
    for (at_source, mode) in [(true, 0o000), (false, 0o000), (false, 0o444)] {
        let place = Place::new("");
        let account = mail(&place, 2);
        account.deliver("Work", "1710000001.M1P1.test", b"Subject: work\n\n");
        let mbox = format!("mbox:{}", place.path("mbox").display());
        assert_eq!(place.run(&["sync", "--source", &source(&account), &mbox]), (0, String::new()));
        let work = place.path("mbox/Work");
        let before = fs::read(&work).expect("read");
        fs::set_permissions(&work, fs::Permissions::from_mode(mode)).expect("set");
        let target = Account::new(place.path("target"));
        let (from, to) =
            if at_source { (mbox.clone(), source(&target)) } else { (source(&account), mbox.clone()) };
        for folder in ["", "Work"] {
            account.deliver(folder, "1720000001.M1P1.test", b"Subject: later\n\n");
        }
        let (status, text) = run_as_nobody(&place, &["sync", "--source", &from, &to]);
        assert!(
            status == 77 && text.contains("Work") && text.contains("Permission denied"),
            "{at_source} {mode:o}: {status} {text}"
        );
        fs::set_permissions(&work, fs::Permissions::from_mode(0o600)).expect("set");
        assert_eq!(fs::read(&work).expect("read"), before, "{at_source} {mode:o}");
        if at_source {
            assert_eq!(target.view()["INBOX"].len(), 3, "a line for the mailbox, and two messages");
        }
        // The others arrive; the next run that is permitted brings the rest.
        if !at_source {
            let later = |name: &str| {
                let text = fs::read_to_string(place.path("mbox").join(name)).expect("read");
                text.matches("\nSubject: later").count()
            };
            assert_eq!((later("inbox"), text.lines().count()), (1, 1), "{text}");
            let (status, text) = run_as_nobody(&place, &["sync", "--source", &from, &to]);
            assert_eq!((status, later("inbox"), later("Work")), (0, 1, 1), "{mode:o}: {text}");
        }
    }
}

#[test]
fn a_file_that_cannot_be_read_is_named_and_the_others_arrive() {
    let place = Place::new("");
    let account = mail(&place, 10);
    let bad = account.find("", "1700000003");
    fs::set_permissions(&bad, fs::Permissions::from_mode(0o0)).expect("set");
    let copy = Account::new(place.path("copy"));
    let (status, text) = run_as_nobody(&place, &["backup", "--source", &source(&account), &source(&copy)]);
    assert!(
        status == 77 && text.contains("1700000003") && text.contains("Permission denied"),
        "{status} {text}"
    );
    assert_eq!(copy.view()["INBOX"].len(), 10, "a line for the mailbox, and nine messages");
}

#[test]
fn a_file_that_vanishes_while_it_is_read_is_settled_in_the_same_run() {
    let place = Place::new("");
    let (account, copy) = (mail(&place, 20), Account::new(place.path("copy")));
    let job = Job { direction: BACKUP, options: Options::default() };
    let mut brains = [Brain::initiator(account.open(), job), Brain::responder(copy.open(), Duration::ZERO)];
    let mut bodies = 0;
    let mut reports = [None, None];
    while reports.iter().any(Option::is_none) {
        for from in 0..2 {
            if reports[from].is_some() {
                continue;
            }
            let input = match brains[from].poll().expect("works") {
                Output::Message(channel, message) => Input::Message(channel, message),
                Output::Body(channel, body) => {
                    bodies += 1;
                    if bodies == 3 {
                        fs::remove_file(account.find("", "1700000010")).expect("vanishes");
                        let seen = account.find("", "1700000011");
                        fs::rename(&seen, account.folder("").join("cur/1700000011.M11P1.test:2,S"))
                            .expect("is read meanwhile");
                    }
                    Input::WholeBody(channel, body)
                }
                Output::Working | Output::Idle => continue,
                Output::Done(report) => {
                    reports[from] = Some(report);
                    continue;
                }
            };
            brains[1 - from].handle(input).expect("takes it");
        }
    }
    let [Some(one), Some(two)] = &reports else { panic!("both end") };
    assert_eq!((one.status(), two.status()), (0, 0), "{one:?} {two:?}");
    drop(brains);
    assert_eq!(account.view(), copy.view());
    assert_eq!(account.view()["INBOX"].len(), 20);
}

#[test]
fn two_at_once_wait_for_one_another() {
    let place = Place::new("");
    let (account, copy) = (mail(&place, 50), Account::new(place.path("copy")));
    let mut storage = account.open();
    let held = storage.lock(Duration::ZERO).expect("locks");
    let (status, text) = place.run(&["backup", "-l", "1", "--source", &source(&account), &source(&copy)]);
    assert!(status == 75 && text.contains("locked by pid") && text.contains("over 1 s"), "{status} {text}");
    drop((held, storage));
    let together: Vec<_> = (0..4)
        .map(|_| {
            place.dsync(&["sync", "--source", &source(&account), &source(&copy)]).spawn().expect("starts")
        })
        .collect();
    for mut child in together {
        assert!(child.wait().expect("ends").success());
    }
    assert_eq!(account.view(), copy.view());
    assert_eq!(copy.view()["INBOX"].len(), 51);
}

#[test]
fn links_and_strange_directories_are_left_alone_and_named() {
    let place = Place::new("");
    let (account, copy) = (mail(&place, 3), Account::new(place.path("copy")));
    let (elsewhere, secret) = (place.path("elsewhere"), place.path("secret"));
    Account::new(&elsewhere).deliver("", "1700000001.M1P1.linked", b"linked");
    fs::write(&secret, "not for mail").expect("written");
    symlink(&elsewhere, account.folder("Linked")).expect("linked");
    symlink("/nowhere", account.folder("Broken")).expect("linked");
    symlink(&secret, account.root.join("new/1700000009.M9P1.link")).expect("linked");
    fs::create_dir_all(account.root.join(".Bad&name/cur")).expect("made");
    let (report, _) = sync(&account, &copy, Direction::TwoWay).expect("syncs");
    let problems = report.problems.join("\n");
    for says in ["Broken", "Bad&name", "1700000009"] {
        assert!(problems.contains(says), "{says}: {problems}");
    }
    assert_ne!(report.status(), 0);
    let view = copy.view();
    assert_eq!(view["Linked"].len(), 2, "a link to a directory of the same owner is a mailbox");
    assert!(!format!("{view:?}").contains("not for mail"), "no file outside is sent");
}

/// A mailbox that cannot be read is not gone: its copy stays, whatever name that has, and the rest is synchronised.
#[test]
fn what_cannot_be_read_is_not_taken_for_deleted() {
    for direction in [BACKUP, Direction::TwoWay] {
        let place = Place::new("");
        let (account, copy) = (mail(&place, 3), Account::new(place.path("copy")));
        account.deliver("Work", "1700000001.M1P1.work", b"Subject: work\n\n");
        sync(&account, &copy, direction).expect("syncs");
        let before = copy.view();
        account.deliver("", "1700000009.M1P1.test", b"Subject: more\n\n");
        // There, and not to be read.
        let list = account.folder("Work").join("dovecot-uidlist");
        let sound = fs::read(&list).expect("read");
        fs::remove_file(&list).expect("removed");
        fs::create_dir(&list).expect("made");
        let (report, _) = sync(&account, &copy, direction).expect("syncs");
        assert!(report.status() != 0 && report.problems.join(" ").contains("Work"), "{report:?}");
        let after = copy.view();
        assert_eq!(after["Work"], before["Work"], "{direction:?}");
        assert_eq!(after["INBOX"].len(), 5);
        fs::remove_dir(&list).expect("removed");
        fs::write(&list, sound).expect("written");
        let (report, _) = sync(&account, &copy, direction).expect("syncs");
        assert_eq!(report.status(), 0, "{report:?}");
        assert_eq!(account.view(), copy.view());
    }
}

/// Everything in an account but our own notes: path and content.
fn content(root: &Path) -> std::collections::BTreeMap<std::path::PathBuf, Vec<u8>> {
    let mut content = std::collections::BTreeMap::new();
    let mut left = vec![root.to_owned()];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(directory).expect("listed").flatten() {
            let path = entry.path();
            if path.is_dir() {
                content.insert(path.clone(), Vec::new());
                left.push(path);
            } else if !entry.file_name().to_string_lossy().starts_with(".dsync-") {
                content.insert(path.clone(), fs::read(&path).expect("read"));
            }
        }
    }
    content
}

/// Mail that only Dovecot can read is found first: nothing is made, flagged, saved or expunged at the other end.
#[test]
fn encrypted_mail_is_refused_before_anything_is_written() {
    let place = Place::new("");
    let (a, b) = (mail(&place, 3), Account::new(place.path("copy")));
    let run = |more: &[&str]| {
        let mut line = vec!["backup", "--source"];
        let (from, to) = (a.location(), b.location());
        line.extend([&*from, &*to]);
        line.splice(1..1, more.iter().copied());
        let output = place.dsync(&line).output().expect("runs");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert_eq!(run(&[]), (Some(0), String::new()));
    let before = content(&b.root);
    fs::remove_file(a.find("", "1700000001")).expect("removed");
    a.deliver("", "1800000000.M1P1.test:2,S", b"Subject: plain\n\n");
    a.deliver("Secret", "1800000001.M1P1.test:2,S", b"CRYPTED\x03\x07\x02 and so on");
    let (status, said) = run(&[]);
    assert!(status == Some(65) && said.lines().count() == 1, "{status:?} {said}");
    for word in ["Secret", "1800000001.M1P1.test", "mail_crypt", "nothing was synchronised"] {
        assert!(said.contains(word), "{word}: {said}");
    }
    assert_eq!(content(&b.root), before);
    assert_eq!(run(&[]).0, Some(65), "it is found again");
    assert_eq!(run(&["-x", "Secret"]), (Some(0), String::new()));
    assert_ne!(content(&b.root), before);
    // What came since, in a mailbox that was looked into before.
    a.deliver("", "1800000002.M1P1.test:2,S", b"CRYPTED\x03\x07\x02 and so on");
    let before = content(&b.root);
    let (status, said) = run(&["-x", "Secret"]);
    assert!(status == Some(65) && said.contains("1800000002.M1P1.test"), "{status:?} {said}");
    assert_eq!(content(&b.root), before);
    // The same by the settings alone.
    let (status, said) = run(&["-o", "mail_plugins=zlib mail_crypt"]);
    assert!(status == Some(65) && said.contains("mail_plugins"), "{status:?} {said}");
}

#[test]
fn attachments_that_are_not_there_are_named_before_anything_is_written() {
    for format in ["sdbox", "mdbox"] {
        let place = Place::new("");
        let fixture = dsync_tests::formats::Fixture::unpack(&format!("{format}-att"));
        let (from, to) = (fixture.home().join(format), place.path("copy"));
        let b = Account::new(&to);
        b.deliver("", "1700000000.M1P1.test:2,", b"Subject: of the copy's own\n\n");
        drop(b.open().tree().expect("lists"));
        let before = content(&to);
        let line = [
            "sync",
            "--source",
            &format!("{format}:{}", from.display()),
            &format!("maildir:{}", to.display()),
        ];
        let output = place.dsync(&line).output().expect("runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(65), "{said}");
        assert!(said.contains("mail_attachment_dir") && said.contains(&from.display().to_string()), "{said}");
        assert_eq!(content(&to), before);
    }
}

/// What is left when the index (sdbox) or the map (mdbox) is lost comes back, and what does not is named.
#[test]
fn a_rebuild_says_what_it_could_not_recover() {
    for format in ["sdbox", "mdbox"] {
        let place = Place::new("");
        let (a, dbox, c) =
            (mail(&place, 4), Account::of(format, place.path(format)), Account::new(place.path("c")));
        let run = |from: &Account, to: &Account| {
            let line = ["backup", "--source", &from.location(), &to.location()];
            let output = place.dsync(&line).output().expect("runs");
            (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
        };
        assert_eq!(run(&a, &dbox), (Some(0), String::new()));
        let inbox = dbox.root.join("mailboxes/INBOX/dbox-Mails");
        let (lost, damaged, cut) = match format {
            "sdbox" => (inbox.clone(), inbox.join("u.2"), 1000),
            _ => (dbox.root.join("storage"), dbox.root.join("storage/m.1"), 3000),
        };
        for entry in fs::read_dir(&lost).expect("listed").flatten() {
            if entry.file_name().to_string_lossy().contains("index") {
                fs::remove_file(entry.path()).expect("removed");
            }
        }
        let size = fs::metadata(&damaged).expect("known").len();
        fs::File::options().write(true).open(&damaged).expect("opens").set_len(size - cut).expect("cut");
        let (_, said) = run(&dbox, &c);
        let name = damaged.display().to_string();
        let expected: &[&str] = match format {
            "sdbox" => &["the index is gone; 3 messages", "UIDVALIDITY", "not recovered", &name],
            _ => &["the map is gone", "3 messages found", "1 messages of mailboxes are not there", &name],
        };
        for words in expected {
            assert!(said.contains(words), "{format}: {words}: {said}");
        }
        let view = c.view();
        let subjects =
            |n: u32| view["INBOX"].iter().filter(|line| line.contains(&format!("Subject: {n}\\n"))).count();
        let gone = if format == "sdbox" { 1 } else { 3 };
        for n in 0..4 {
            assert_eq!(subjects(n), usize::from(n != gone), "{format}: {n}: {said}");
        }
    }
}

/// A file that has the name of a mailbox of the source: it is named, and no run mends it.
#[test]
fn what_is_no_mbox_at_the_destination_is_named_and_stays() {
    let place = Place::new("");
    let account = mail(&place, 2);
    for n in 0..2 {
        account.deliver("Work", &format!("17100{n:05}.M{n}P1.test"), b"Subject: work\n\n");
    }
    let copy = place.path("copy");
    fs::create_dir(&copy).expect("made");
    fs::write(copy.join("Work"), "no mbox at all\n").expect("written");
    let to = format!("mbox:{}", copy.display());
    let (status, text) = place.run(&["sync", "--source", &source(&account), &to]);
    assert_eq!(status, 65, "{text}");
    assert!(text.lines().count() == 1 && text.contains("the other end: Work: "), "{text}");
    assert!(text.contains("no mbox file"), "{text}");
    assert_eq!(fs::read_to_string(copy.join("Work")).expect("read"), "no mbox at all\n");
    assert_eq!(fs::read_to_string(copy.join("inbox")).expect("read").matches("\nSubject: ").count(), 2);
}
