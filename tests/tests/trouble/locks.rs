//! Locks that others hold, and what killed processes leave of theirs.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use dsync_storage::index::{Index, Paths};
use dsync_tests::maildirs::Account;
use dsync_tests::programs::Place;

use super::mail;

/// A process of its own, for the test below: takes the lock that it is told to, says so, and holds it until its stdin ends.
#[test]
fn a_holder_of_locks() {
    let Ok(told) = std::env::var("DSYNC_TEST_HOLD") else { return };
    let (kind, path) = told.split_once(' ').expect("kind and path");
    if kind == "store" {
        std::mem::forget(Account::new(path).open().lock(Duration::ZERO).expect("locks"));
    } else {
        let prefix = if kind == "map" { "dovecot.map.index" } else { "dovecot.index" };
        let index = Index::open(Paths { directory: path.into(), prefix: prefix.into() }).expect("opens");
        std::mem::forget(Box::leak(Box::new(index.expect("is there"))).lock(Duration::ZERO).expect("locks"));
    }
    eprintln!("held");
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).expect("reads");
}

/// Starts that process, and waits until it has the lock.
fn hold(kind: &str, path: &Path) -> Child {
    let mut holder = Command::new(std::env::current_exe().expect("known"))
        .args(["--exact", "locks::a_holder_of_locks", "--nocapture"])
        .env("DSYNC_TEST_HOLD", format!("{kind} {}", path.display()))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    let mut said = String::new();
    let mut lines = BufReader::new(holder.stderr.take().expect("piped"));
    while !said.contains("held") {
        assert_ne!(lines.read_line(&mut said).expect("reads"), 0, "{kind}: {said}");
    }
    holder
}

/// A lock that another process holds ends the wait after -l seconds, with a line that names the holder.
#[test]
fn whoever_holds_a_lock_is_named() {
    let place = Place::new("");
    let a = mail(&place, 3);
    let copies = ["maildir", "sdbox", "mdbox"].map(|format| Account::of(format, place.path(format)));
    let run = |to: &Account, wait: &str| {
        let line = ["backup", "-l", wait, "--source", &a.location(), &to.location()];
        let output = place.dsync(&line).output().expect("runs");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for copy in &copies {
        assert_eq!(run(copy, "30"), (Some(0), String::new()));
    }
    a.deliver("", "1800000000.M1P1.test:2,", b"Subject: more\n\n");
    let [maildir, sdbox, mdbox] = &copies;
    let inbox = "mailboxes/INBOX/dbox-Mails";
    for (kind, path, copy, file) in [
        ("store", maildir.root.clone(), maildir, ".dsync-lock"),
        ("log", maildir.root.clone(), maildir, "dovecot.index.log"),
        ("log", sdbox.root.join(inbox), sdbox, "dovecot.index.log"),
        ("log", mdbox.root.join(inbox), mdbox, "dovecot.index.log"),
        ("map", mdbox.root.join("storage"), mdbox, "dovecot.map.index.log"),
    ] {
        let mut holder = hold(kind, &path);
        let (status, said) = run(copy, "1");
        drop(holder.stdin.take());
        holder.wait().expect("ends");
        assert!(status == Some(75) && said.lines().count() == 1, "{kind}: {status:?} {said}");
        let host = fs::read_to_string("/proc/sys/kernel/hostname").expect("named");
        for word in [file, &format!("pid {} (", holder.id()), &format!(") on {}", host.trim()), "over 1 s"] {
            assert!(said.contains(word), "{kind} {}: {word}: {said}", path.display());
        }
    }
    // A dot-lock says itself whose it is.
    let mut holder = Command::new("sleep").arg("600").spawn().expect("starts");
    let host = fs::read_to_string("/proc/sys/kernel/hostname").expect("named");
    let lock = maildir.root.join("dovecot-uidlist.lock");
    fs::write(&lock, format!("{}:{}", holder.id(), host.trim())).expect("written");
    let (status, said) = run(maildir, "1");
    assert_eq!(status, Some(75), "{said}");
    assert!(
        said.contains(&format!("uidlist.lock: locked by pid {} (sleep) on {}", holder.id(), host.trim())),
        "{said}"
    );
    holder.kill().expect("ends");
    holder.wait().expect("ends");
    // Its process is gone: the lock counts no more.
    for copy in &copies {
        assert_eq!(run(copy, "1"), (Some(0), String::new()));
    }
}

/// A run that was killed while it had the list of UIDs locked keeps nobody waiting, whether or not somebody asked how it ended.
#[test]
fn a_run_that_was_killed_leaves_no_lock_that_counts() {
    let place = Place::new("");
    let a = mail(&place, 3);
    let copy = Account::new(place.path("copy"));
    let line = |wait| ["backup", "-l", wait, "--source", &a.location(), &copy.location()].map(str::to_owned);
    let command = |wait| place.dsync(&line(wait).each_ref().map(String::as_str));
    let run = |wait| {
        let output = command(wait).output().expect("runs");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert_eq!(run("30"), (Some(0), String::new()));
    let lock = copy.root.join("dovecot-uidlist.lock");
    for number in 1..=2 {
        a.deliver("", &format!("180000000{number}.M1P1.test:2,"), b"Subject: more\n\n");
        // Behind that lock it waits for this one.
        let mut holder = hold("log", &copy.root);
        let mut killed = command("600").stderr(Stdio::null()).spawn().expect("starts");
        while !lock.exists() {
            assert!(killed.try_wait().expect("asked").is_none(), "it takes that lock");
            std::thread::sleep(Duration::from_millis(1));
        }
        killed.kill().expect("killed");
        if number == 2 {
            killed.wait().expect("ends");
        }
        drop(holder.stdin.take());
        holder.wait().expect("ends");
        let left = fs::read_to_string(&lock).expect("left behind");
        assert!(left.starts_with(&format!("{}:", killed.id())), "{left}");
        // At most a second for each lock, and this one counts for nothing.
        assert_eq!(run("1"), (Some(0), String::new()));
        assert!(!lock.exists());
        assert_eq!(copy.view(), a.view());
        killed.wait().expect("ends");
    }
}
