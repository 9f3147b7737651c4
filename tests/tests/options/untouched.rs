//! What is only read: `--dry-run` and `--read-only-source`.

use std::fs;

use dsync_tests::maildirs::Account;
use dsync_tests::programs::{Place, programs};

use super::{bodies, disk, dsync, mail, pair, run};

/// A run that must leave every file as it is.
#[track_caller]
fn dry(place: &Place, line: &[&str]) -> (i32, String, String) {
    let before = disk(place.dir.path());
    let outcome = dsync(place, line);
    let after = disk(place.dir.path());
    let touched = before.iter().filter(|(path, was)| after.get(*path) != Some(*was)).map(|(path, _)| path);
    let made = after.keys().filter(|path| !before.contains_key(*path));
    let changed: Vec<_> = touched.chain(made).collect();
    assert!(changed.is_empty(), "{line:?}: {changed:?}");
    outcome
}

/// `--read-only-source`: a source that was never looked at before and one that Dovecot or we know stay as they are, every file and
/// date of it; what comes and goes there arrives all the same.
#[test]
fn a_source_that_is_only_to_be_read_is_not_written_at_all() {
    for (format, known) in
        [("maildir", false), ("maildir", true), ("sdbox", true), ("mdbox", true), ("mbox", false)]
    {
        let (place, first, b) = pair();
        let a = Account::of(format, place.path("source"));
        if format == "maildir" && !known {
            fs::rename(&first.root, &a.root).expect("moved");
        } else {
            run(&place, &["backup", "--source", &first.location(), &a.location()]);
        }
        let read = |words: &[&str]| {
            let (from, to) = (a.location(), b.location());
            let line = [words, &["--read-only-source", "--source", &from, &to]].concat();
            let before = disk(&a.root);
            let outcome = dsync(&place, &line);
            assert!(disk(&a.root) == before, "{format} {known} {line:?}: {:?}", disk(&a.root).keys());
            outcome
        };
        let notes = || {
            let names = fs::read_dir(&b.root).expect("read").flatten().map(|entry| entry.file_name());
            names.filter(|name| name.to_string_lossy().contains("dsync-base")).count()
        };
        let mode = ["-v", "backup"];
        let (status, _, said) = read(&mode);
        assert!(status == 0 && said.contains("2 of 2 mailboxes shown equal"), "{format}: {status} {said}");
        assert_eq!((bodies(&b, "INBOX"), bodies(&b, "Work"), notes()), (3, 1, 1), "{format}");
        let copy = b.view();
        assert_eq!(read(&["backup"]), (0, String::new(), String::new()));
        assert_eq!((b.view(), notes()), (copy, 1), "{format}: the same again");
        if format == "maildir" {
            a.deliver("", &mail(8), b"Subject: new\n\n");
            fs::remove_file(a.find("", &mail(1))).expect("removed");
            assert_eq!(read(&["backup"]).0, 0);
            let inbox = b.view()["INBOX"].join("\n");
            assert!(inbox.contains(&mail(8)) && !inbox.contains(&mail(1)), "{inbox}");
            a.deliver("", &mail(9), b"Subject: newer\n\n");
            assert_eq!(read(&["sync", "-1"]).0, 0);
            assert_eq!(bodies(&b, "INBOX"), 4);
        }
    }
    let (place, a, b) = pair();
    let server = place.serve();
    let (source, copy, tls) = (a.location(), b.location(), place.tls());
    let words = |words: &[&'static str], to: &str| {
        let line: Vec<&str> = [words, &["--read-only-source", "--source", &source, to]].concat();
        dsync(&place, &line)
    };
    let (status, _, said) = words(&["sync"], &copy);
    assert!(status == 64 && said.contains("goes with backup"), "{status} {said}");
    let before = disk(&a.root);
    assert_eq!(words(&["backup"], &tls).0, 0);
    assert!(disk(&a.root) == before);
    let there = Account::new(place.path("server/alice"));
    assert_eq!(there.view()["INBOX"].len(), 4);
    // A source behind a server is not written either.
    there.deliver("", &mail(9), b"Subject: newer\n\n");
    there.deliver("Fresh", &mail(10), b"Subject: fresh\n\n");
    let before = disk(&there.root);
    let (command, conf) = (programs().join("dsync-server"), place.path("server.conf"));
    for to in [tls.clone(), format!("{} -c {} -u alice", command.display(), conf.display())] {
        let copy = Account::new(place.path("third"));
        let line = ["backup", "-R", "--read-only-source", "--source", &copy.location()];
        let line: Vec<&str> = line.into_iter().chain(to.split(' ')).collect();
        assert_eq!(dsync(&place, &line), (0, String::new(), String::new()));
        assert_eq!((bodies(&copy, "INBOX"), bodies(&copy, "Fresh")), (4, 1));
        assert!(disk(&there.root) == before, "{:?}", disk(&there.root).keys());
        fs::remove_dir_all(&copy.root).expect("removed");
    }
    drop(server);
    // The other way round the destination is here, and may be written.
    assert_eq!(words(&["backup", "-R", "--allow-mass-delete"], &copy).0, 78, "there is no source");
}

/// What a dbox has lost is found in its files, as a run would find it; and stays lost.
#[test]
fn a_dry_run_of_a_lost_index_mends_nothing() {
    let index = ["mailboxes/INBOX/dbox-Mails", "mailboxes/Work/dbox-Mails"];
    for (format, lost) in [("sdbox", &index[..]), ("mdbox", &index), ("mdbox", &["storage"])] {
        let place = Place::new("");
        let a = Account::new(place.path("a"));
        let b = Account::of(format, place.path("b"));
        for n in 1..6 {
            a.deliver(["", "Work"][n as usize % 2], &mail(n), format!("Subject: {n}\n\n").as_bytes());
        }
        run(&place, &["backup", "--source", &a.location(), &b.location()]);
        for directory in lost {
            let files = fs::read_dir(b.root.join(directory)).expect("is there").flatten();
            let files = files.filter(|file| file.file_name().to_string_lossy().starts_with("dovecot."));
            files.for_each(|file| fs::remove_file(file.path()).expect("removed"));
        }
        for target in ["maildir", "mdbox"] {
            let c = Account::of(target, place.path("c"));
            let line = ["backup", "--dry-run", "--source", &b.location(), &c.location()];
            let (status, printed, said) = dry(&place, &line);
            assert_eq!(status, 0, "{format} {lost:?} to {target}: {printed} {said}");
            for found in ["there: INBOX:", "2 saved", "there: Work: created, 3 saved"] {
                assert!(printed.contains(found), "{format} {lost:?} to {target}: {printed} {said}");
            }
        }
        // A run mends it, and saves what the dry run said.
        let c = Account::new(place.path("c"));
        let (status, _, said) = dsync(&place, &["backup", "--source", &b.location(), &c.location()]);
        assert_eq!(status, 0, "{format} {lost:?}: {said}");
        assert!(said.contains("is gone"), "{format} {lost:?}: {said}");
        assert_eq!((c.view()["INBOX"].len(), c.view()["Work"].len()), (3, 4), "{format} {lost:?}");
    }
}

/// In each format, in each mode, at both ends, with mail that nobody has given a UID yet: nothing is written, not even
/// housekeeping.
#[test]
fn a_dry_run_leaves_the_disk_as_it_is() {
    for format in ["maildir", "sdbox", "mdbox"] {
        let place = Place::new("");
        let server = (format == "maildir").then(|| place.serve());
        let a = Account::new(place.path("a"));
        let b = Account::of(format, place.path("b"));
        let (one, two) = (a.location(), b.location());
        for n in 1..6 {
            a.deliver(["", "Work"][n as usize % 2], &mail(n), format!("Subject: {n}\n\n").as_bytes());
        }
        let dry = |line: &[&str]| {
            let (status, printed, said) = dry(&place, line);
            assert!(status == 0 && said.is_empty(), "{format} {line:?}: {status} {said}");
            printed
        };
        // Into what is not there yet.
        let printed = dry(&["backup", "--dry-run", "--source", &one, &two]);
        assert!(printed.contains("there: INBOX:") && printed.contains("2 saved"), "{format} {printed}");
        assert!(printed.contains("there: Work: created, 3 saved"), "{format} {printed}");
        if server.is_some() {
            let printed = dry(&["backup", "--dry-run", "--source", &one, &place.tls()]);
            assert!(printed.contains("there: Work: created, 3 saved"), "{printed}");
        }
        run(&place, &["backup", "--source", &one, &two]);
        assert_eq!(dry(&["sync", "--dry-run", "--source", &one, &two]), "nothing would change\n", "{format}");
        // New mail, a flag, an expunge, a rename.
        a.deliver("", &mail(70), b"Subject: new\n\n");
        let seen = a.find("", &mail(2));
        fs::rename(&seen, a.folder("").join("cur").join(format!("{}:2,S", mail(2)))).expect("is read");
        fs::remove_file(a.find("", &mail(4))).expect("removed");
        fs::rename(a.folder("Work"), a.folder("Job")).expect("renamed");
        for line in [&["backup"][..], &["sync"], &["sync", "-1"]] {
            let mut line = line.to_vec();
            line.extend(["--dry-run", "--source", &one, &two]);
            let printed = dry(&line);
            assert!(
                printed.contains("there: INBOX: 1 saved, 1 flagged, 1 expunged"),
                "{format} {line:?} {printed}"
            );
            assert!(printed.contains("there: Job: renamed from Work"), "{format} {line:?} {printed}");
            assert!(!printed.lines().any(|line| line.starts_with("here:")), "{format} {line:?} {printed}");
        }
        let printed = dry(&["backup", "-R", "--dry-run", "--json", "--source", &one, &two]);
        let json: serde_json::Value = serde_json::from_str(&printed).expect("JSON");
        assert_eq!(
            (&json["dry_run"], &json["mailboxes"][0]["saved"]),
            (&true.into(), &1.into()),
            "{format} {json}"
        );
        run(&place, &["sync", "--source", &one, &two]);
        assert_eq!(dry(&["sync", "--dry-run", "--source", &one, &two]), "nothing would change\n", "{format}");
        drop(server);
    }
}

/// The mail of an mbox account is files, which a dry run does not make: its INBOX, too, may be missing.
#[test]
fn a_dry_run_into_an_mbox_account_without_an_inbox() {
    for format in ["mbox", "mbox:LAYOUT=index"] {
        let place = Place::new("");
        let (a, b) = (Account::new(place.path("a")), Account::of(format, place.path("b")));
        a.deliver("", &mail(1), b"Subject: 1\n\n");
        fs::create_dir(&b.root).expect("made");
        for mode in ["backup", "sync"] {
            let (status, printed, said) =
                dry(&place, &[mode, "--dry-run", "--source", &a.location(), &b.location()]);
            assert_eq!((status, said.as_str()), (0, ""), "{format}");
            assert_eq!(printed, "there: INBOX: created, 1 saved\n", "{format}");
        }
        run(&place, &["backup", "--source", &a.location(), &b.location()]);
        let (_, printed, _) = dry(&place, &["sync", "--dry-run", "--source", &a.location(), &b.location()]);
        assert_eq!(printed, "nothing would change\n", "{format}");
    }
}
