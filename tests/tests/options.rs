//! The options of `sync` and `backup` as a user types them: docs/options.md names the test of each.

#[path = "options/destinations.rs"]
mod destinations;
#[path = "options/guard.rs"]
mod guard;
#[path = "options/scope.rs"]
mod scope;
#[path = "options/untouched.rs"]
mod untouched;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use dsync_model::SyncState;
use dsync_tests::maildirs::Account;
use dsync_tests::programs::{Place, programs};

/// A place, and two accounts in it, of which the first holds some mail.
fn pair() -> (Place, Account, Account) {
    let place = Place::new("");
    let (a, b) = (Account::new(place.path("a")), Account::new(place.path("b")));
    for n in 1..4 {
        a.deliver("", &mail(n), format!("Subject: {n}\n\n").as_bytes());
    }
    a.deliver("Work", &mail(4), b"Subject: work\n\n");
    (place, a, b)
}

fn mail(n: u32) -> String {
    format!("170000{n:04}.M{n}P1.host")
}

/// Runs `dsync` with `sync --source A ... B`; its status, what it printed, what it said.
fn dsync(place: &Place, arguments: &[&str]) -> (i32, String, String) {
    let output = place.dsync(arguments).output().expect("runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

#[track_caller]
fn run(place: &Place, arguments: &[&str]) -> String {
    let (status, printed, said) = dsync(place, arguments);
    assert!(status == 0 && said.is_empty(), "{arguments:?}: {status} {said}");
    printed
}

/// Sets when a message was received.
fn receive(account: &Account, folder: &str, prefix: &str, seconds: u64) {
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
    let file = fs::File::options().write(true).open(account.find(folder, prefix)).expect("opens");
    file.set_modified(time).expect("set");
}

fn bodies(account: &Account, mailbox: &str) -> usize {
    account.view().get(mailbox).map_or(0, |lines| lines.len() - 1)
}

/// Every file and directory of an account, with its content and when it was changed.
fn disk(root: &std::path::Path) -> std::collections::BTreeMap<std::path::PathBuf, (u64, i64, Vec<u8>)> {
    use std::os::unix::fs::MetadataExt;
    let mut found = std::collections::BTreeMap::new();
    let mut left = vec![root.to_owned()];
    while let Some(path) = left.pop() {
        let Ok(meta) = fs::symlink_metadata(&path) else { continue };
        if meta.is_dir() {
            left.extend(fs::read_dir(&path).expect("read").map(|entry| entry.expect("read").path()));
        }
        let content = if meta.is_file() { fs::read(&path).expect("read") } else { Vec::new() };
        found.insert(path, (meta.ino(), meta.mtime_nsec() + meta.mtime() * 1_000_000_000, content));
    }
    found
}

#[test]
fn a_state_is_printed_and_both_ends_are_asked() {
    let (place, a, b) = pair();
    let (one, two) = (a.location(), b.location());
    let first = run(&place, &["sync", "-s", "", "--source", &one, &two]);
    let state: SyncState = first.trim_end().parse().expect("a state");
    assert!(first.ends_with('\n') && state.0.len() == 2, "{first}");
    let inbox = state.0.values().find(|common| common.messages == 3).expect("INBOX");
    assert_eq!(inbox.uid, 3);
    assert_eq!(
        run(&place, &["sync", "-s", first.trim_end(), "--source", &one, &two]),
        first,
        "nothing changed"
    );
    // Dovecot does not look at the other end: changes made there alone are not found.
    b.deliver("", &mail(8), b"Subject: there\n\n");
    let second = run(&place, &["sync", "-s", first.trim_end(), "--source", &one, &two]);
    assert_eq!(a.view(), b.view());
    assert_ne!(first, second);
    // Without what dsync keeps itself, too.
    for account in [&a, &b] {
        for note in fs::read_dir(&account.root).expect("read").flatten() {
            if note.file_name().to_string_lossy().starts_with(".dsync-base") {
                fs::remove_file(note.path()).expect("removed");
            }
        }
    }
    a.deliver("Work", &mail(9), b"Subject: here\n\n");
    run(&place, &["sync", "-s", second.trim_end(), "--source", &one, &two]);
    assert_eq!(a.view(), b.view());
}

#[test]
fn a_state_that_is_none_is_told_and_all_is_looked_into() {
    let (place, a, b) = pair();
    let (one, two) = (a.location(), b.location());
    let good = run(&place, &["sync", "-s", "", "--source", &one, &two]);
    let (status, printed, said) = dsync(&place, &["sync", "-s", "garbage!", "--source", &one, &two]);
    assert!(status == 0 && said.contains("is not base64"), "{status} {said}");
    assert_eq!(printed, good);
    // Ahead of the mail, as after a restore: an empty line, which is the state of nothing known.
    let mut state: SyncState = good.trim_end().parse().expect("a state");
    state.0.values_mut().for_each(|common| common.modseq += 1000);
    let (status, printed, said) =
        dsync(&place, &["-v", "sync", "-s", &state.to_string(), "--source", &one, &two]);
    assert!(
        status == 0 && printed == "\n" && said.contains("ahead of the mailbox"),
        "{status} {printed} {said}"
    );
    // A run that fails gives back what it was given, and nothing for what was none.
    let (status, printed, _) = dsync(&place, &["sync", "-s", good.trim_end(), "--source", &one, &one]);
    assert_eq!((status, printed), (75, good));
    let (status, printed, _) = dsync(&place, &["sync", "-s", "garbage!", "--source", &one, &one]);
    assert_eq!((status, printed.as_str()), (75, "\n"));
}

/// What is expunged from mdbox takes up room until it is purged: with -P, or by a command of its own.
#[test]
fn a_purge_frees_what_was_expunged() {
    let (place, a, _) = pair();
    let mdbox = format!("mdbox:{}", place.path("mdbox").display());
    let used = || -> u64 {
        let files = fs::read_dir(place.path("mdbox").join("storage")).expect("listed").flatten();
        let files = files.filter(|file| file.file_name().to_string_lossy().starts_with("m."));
        files.map(|file| file.metadata().expect("known").len()).sum()
    };
    a.deliver("", &mail(5), "z".repeat(50_000).as_bytes());
    a.deliver("", &mail(6), "y".repeat(50_000).as_bytes());
    run(&place, &["backup", "-P", "--source", &a.location(), &mdbox]);
    let full = used();
    fs::remove_file(a.find("", &mail(5))).expect("removed");
    // Over a pipe: the server learns from the session that it is to purge.
    let server = format!(
        "{} --stdio -c {} -o mail_location={mdbox}",
        programs().join("dsync-server").display(),
        place.path("server.conf").display()
    );
    let remote = format!("dsync_remote_cmd={server} -u%u");
    let (status, _, said) = dsync(
        &place,
        &["-v", "-o", &remote, "backup", "-P", "-u", "alice", "--source", &a.location(), "mx1"],
    );
    assert!(status == 0 && said.contains("purged the destination: 50"), "{status} {said}");
    assert!(used() + 50_000 < full, "{} of {full}", used());
    fs::remove_file(a.find("", &mail(6))).expect("removed");
    run(&place, &["backup", "--source", &a.location(), &mdbox]);
    assert!(used() > 50_000, "an expunge frees nothing by itself");
    let (status, _, said) = dsync(&place, &["-v", "purge", &mdbox]);
    assert!(status == 0 && said.contains("1 messages in 1 files purged, 50"), "{status} {said}");
    assert!(used() < 50_000);
    let (status, _, said) = dsync(&place, &["-v", "purge", &a.location()]);
    assert!(status == 0 && said.contains("nothing to be freed"), "{status} {said}");
    let (status, _, said) = dsync(&place, &["purge", "mdbox:/no/such"]);
    assert!(status == 78 && said.contains("/no/such"), "{status} {said}");

    // Where no place is named, the user's own namespaces elsewhere are meant, too; what is not there is not made.
    a.deliver("", &mail(7), "x".repeat(50_000).as_bytes());
    run(&place, &["backup", "--source", &a.location(), &mdbox]);
    fs::remove_file(a.find("", &mail(7))).expect("removed");
    run(&place, &["backup", "--source", &a.location(), &mdbox]);
    assert!(used() > 50_000);
    let conf = fs::read_to_string(place.path("client.conf")).expect("read");
    let with = |kind: &str| {
        let none = place.path("none");
        let namespaces = format!(
            "mail_location = {}\nnamespace inbox {{\n inbox = yes\n separator = /\n}}\n\
             namespace none {{\n prefix = None/\n separator = /\n location = mdbox:{}\n}}\n\
             namespace archive {{\n type = {kind}\n prefix = Archive/\n separator = /\n list = no\n hidden = yes\n location = {mdbox}\n}}\n",
            a.location(),
            none.display()
        );
        fs::write(place.path("client.conf"), format!("{conf}{namespaces}")).expect("written");
        run(&place, &["purge"]);
        assert!(!none.exists());
        used()
    };
    assert!(with("public") > 50_000, "it is not the user's own");
    assert!(with("private") < 50_000);
}

#[test]
fn verify_finds_whatever_differs_and_writes_nothing() {
    let place = Place::new("");
    let server = place.serve();
    let (a, b) = (Account::new(place.path("a")), Account::of("mdbox", place.path("b")));
    for n in 1..120 {
        a.deliver(["", "Work"][n as usize % 2], &mail(n), format!("Subject: {n}\r\n\nline\n").as_bytes());
    }
    let (one, two) = (a.location(), b.location());
    run(&place, &["backup", "--source", &one, &two]);
    run(&place, &["backup", "--source", &one, &place.tls()]);
    for line in [&["verify"][..], &["verify", "--bodies"]] {
        for destination in [&two, &place.tls()] {
            let mut line = line.to_vec();
            line.extend(["--source", &one, destination]);
            let before = disk(place.dir.path());
            assert_eq!(run(&place, &line), "", "{line:?}");
            assert_eq!(disk(place.dir.path()), before, "{line:?}");
        }
    }
    let theirs = Account::new(place.path("server/alice"));
    let rewrite = |prefix: &str, folder: &str, text: &str| {
        fs::write(theirs.find(folder, prefix), text).expect("written")
    };
    // The same size, another content; and the date of a message.
    let modified = fs::metadata(theirs.find("", &mail(4))).and_then(|meta| meta.modified()).expect("known");
    rewrite(&mail(4), "", "Subject: 5\r\n\nline\n");
    fs::File::options()
        .write(true)
        .open(theirs.find("", &mail(4)))
        .and_then(|f| f.set_modified(modified))
        .expect("set");
    let line = ["verify", "--source", &one, &place.tls()];
    assert_eq!(run(&place, &line), "", "without the contents");
    let (status, printed, _) = dsync(&place, &["verify", "--bodies", "--source", &one, &place.tls()]);
    assert_eq!((status, printed.as_str()), (2, "INBOX: UID 2: the contents differ\n"));
    receive(&theirs, "", &mail(6), 1_000_000_000);
    rewrite(&mail(8), "", "Subject: longer\r\n\nline\n");
    fs::remove_file(theirs.find("Work", &mail(3))).expect("removed");
    let flagged = theirs.find("Work", &mail(5));
    fs::rename(&flagged, theirs.folder("Work").join("cur").join(format!("{}:2,F", mail(5))))
        .expect("flagged");
    fs::remove_dir_all(theirs.folder("Work").join("tmp")).expect("removed");
    theirs.deliver("Extra", &mail(500), b"Subject: extra\n\n");
    fs::write(theirs.root.join("subscriptions"), "Extra\n").expect("written");
    let (status, printed, said) = dsync(&place, &line);
    for expected in [
        "INBOX: UID 3: received ",
        "INBOX: UID 4: 20 bytes here, 25 there",
        "Work: UID 2: is not there",
        "Work: UID 3: flags () here, (\\Flagged) there",
        "Extra: is not here",
        "Extra: not subscribed here, subscribed there",
    ] {
        assert!(printed.contains(expected), "{expected}: {printed} {said}");
    }
    assert_eq!(status, 2);
    let (status, printed, _) =
        dsync(&place, &["verify", "-m", "Work", "--json", "--source", &one, &place.tls()]);
    let json: serde_json::Value = serde_json::from_str(&printed).expect("JSON");
    assert_eq!((status, json["differences"].as_array().map(Vec::len)), (2, Some(2)), "{json}");
    drop(server);
}

#[test]
fn a_raw_log_tells_what_went_over_the_wire_and_no_secret() {
    let place = Place::new("");
    let server = place.serve();
    let (a, raw) = (Account::new(place.path("a")), place.path("raw").display().to_string());
    a.deliver("", &mail(1), b"Subject: private thing\n\n");
    for (destination, line) in
        [(place.tls(), "backup"), (format!("maildir:{}", place.path("b").display()), "sync")]
    {
        run(&place, &[line, "-r", &raw, "--source", &a.location(), &destination]);
        let bytes = fs::read(&raw).expect("written");
        for secret in ["private thing", dsync_tests::programs::PASSWORD] {
            assert!(!bytes.windows(secret.len()).any(|window| window == secret.as_bytes()), "{secret}");
        }
        assert_eq!(fs::metadata(&raw).expect("there").permissions().mode() & 0o777, 0o600);
        let text = run(&place, &["rawlog", &raw]);
        for expected in
            ["> session: Handshake", "< session: Nodes", "> 1: Changes", "body, 24 bytes", "session: Finish"]
        {
            assert!(text.contains(expected), "{expected}: {text}");
        }
    }
    let (status, _, said) = dsync(&place, &["rawlog", &a.root.join("dovecot-uidlist").display().to_string()]);
    assert!(status == 65 && said.contains("no raw log"), "{status} {said}");
    drop(server);
}

#[test]
fn manual_pages_and_completions_are_made() {
    let place = Place::new("");
    run(&place, &["man", &place.dir.path().display().to_string()]);
    for page in
        ["dsync.1", "dsync-sync.1", "dsync-backup.1", "dsync-verify.1", "dsync-server.1", "dsync.conf.5"]
    {
        let text = fs::read_to_string(place.path(page)).expect(page);
        assert!(text.contains(".SH") && text.len() > 500, "{page}");
    }
    for shell in ["bash", "zsh", "fish"] {
        assert!(run(&place, &["completions", shell]).contains("backup"), "{shell}");
    }
    let help = run(&place, &["help", "sync"]);
    assert!(help.contains("--dry-run") && help.contains("-x, --exclude"), "{help}");
}

/// A mailbox that one end cannot read is no mailbox that was deleted there.
#[test]
fn what_cannot_be_read_is_not_taken_for_deleted() {
    let (place, a, b) = pair();
    let (one, two) = (a.location(), b.location());
    run(&place, &["sync", "--source", &one, &two]);
    let list = a.folder("Work").join("dovecot-uidlist");
    fs::rename(&list, place.path("aside")).expect("moved");
    fs::create_dir(&list).expect("made");
    a.deliver("", &mail(9), b"Subject: nine\n\n");
    for line in [&["sync"][..], &["sync", "-1"], &["backup"]] {
        for ends in [[&one, &two], [&two, &one]] {
            if ends[0] == &two && line != ["sync"] {
                continue;
            }
            let mut line = line.to_vec();
            line.extend(["--source", ends[0], ends[1]]);
            let (status, _, said) = dsync(&place, &line);
            assert!(status != 0 && status != 2 && said.contains("Work"), "{line:?}: {status} {said}");
            assert_eq!(bodies(&b, "Work"), 1, "{line:?}");
            assert_eq!(bodies(&b, "INBOX"), 4, "the others are done: {line:?}");
        }
    }
    fs::remove_dir(&list).expect("removed");
    fs::rename(place.path("aside"), &list).expect("moved");
    run(&place, &["sync", "--source", &one, &two]);
    assert_eq!(a.view(), b.view());
    assert_eq!(bodies(&a, "Work"), 1);
}
