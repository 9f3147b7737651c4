//! The options of `sync` and `backup` as a user types them: docs/options.md names the test of each.

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

#[test]
fn options_stand_before_and_behind_the_command() {
    let (place, a, b) = pair();
    let (one, two) = (a.location(), b.location());
    let (status, _, said) = dsync(
        &place,
        &["-Dv", "-o", "mail_fsync=never", "backup", "-v", "-o", "ssl=no", "--source", &one, &two],
    );
    assert!(status == 0 && said.contains("configuration:") && said.contains("2 of 2 mailboxes"), "{said}");
    assert_eq!(a.view(), b.view());
    let (status, _, said) = dsync(&place, &["sync", "-o", "mail_fsync=perhaps", "--source", &one, &two]);
    assert!(status == 78 && said.contains("mail_fsync"), "{status} {said}");
}

#[test]
fn several_destinations_are_served_one_after_another() {
    let (place, a, b) = pair();
    let c = Account::new(place.path("c"));
    let line = ["backup", "--source", &a.location(), &b.location(), "maildir:/proc/no/such", &c.location()];
    let (status, _, said) = dsync(&place, &line);
    assert!(status != 0 && said.lines().count() == 1 && said.contains("/proc/no"), "{status} {said}");
    assert_eq!(a.view(), b.view());
    assert_eq!(a.view(), c.view(), "the third is served though the second failed");
    let (status, _, said) =
        dsync(&place, &["backup", "-R", "--source", &a.location(), &b.location(), &c.location()]);
    assert!(status == 64 && said.contains("several destinations"), "{status} {said}");
}

#[test]
fn the_default_destination_is_the_replica() {
    let (place, a, b) = pair();
    let replica = format!("mail_replica={}", b.location());
    run(&place, &["-o", &replica, "backup", "-d", "--source", &a.location()]);
    assert_eq!(a.view(), b.view());
    let (status, _, said) = dsync(&place, &["backup", "-d", "--source", &a.location()]);
    assert!(status == 68 && said.contains("mail_replica"), "{status} {said}");
}

/// A wrapper script learns the user from the first line, and runs the server for that user.
#[test]
fn a_wrapper_script_reads_the_user_from_the_first_line() {
    let (place, a, b) = pair();
    let script = place.path("wrapper");
    let (server, conf) = (programs().join("dsync-server"), place.path("server.conf"));
    let text = format!(
        "#!/bin/sh\nread -r user\nexec {} -c {} -o mail_location={} -u \"$user\"\n",
        server.display(),
        conf.display(),
        b.location()
    );
    fs::write(&script, text).expect("written");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("set");
    let command = format!("dsync_remote_cmd={} %{{host}}", script.display());
    run(&place, &["-o", &command, "backup", "-u", "alice", "--source", &a.location(), "remoteprefix:mx1"]);
    assert_eq!(a.view(), b.view());
}

/// As in doveadm, the word dsync-server may be left out of a command.
#[test]
fn a_command_is_told_to_run_the_server() {
    let (place, a, b) = pair();
    let script = place.path("wrapper");
    let text = format!(
        "#!/bin/sh\necho \"$@\" > {}/words\nshift\nexec {} -c {} -o mail_location={} \"$@\"\n",
        place.dir.path().display(),
        programs().join("dsync-server").display(),
        place.path("server.conf").display(),
        b.location()
    );
    fs::write(&script, text).expect("written");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("set");
    let script = script.display().to_string();
    run(&place, &["backup", "-p", "mail_fsync=never", "--source", &a.location(), &script]);
    assert_eq!(a.view(), b.view());
    let words = fs::read_to_string(place.path("words")).expect("written");
    assert_eq!(words, "dsync-server -ualice -o mail_fsync=never\n");
    let (status, _, said) =
        dsync(&place, &["sync", "-p", "a=b", "--source", &a.location(), "tcps:localhost:1"]);
    assert!(status == 64 && said.contains("-p"), "{status} {said}");
}

#[test]
fn a_mailbox_renamed_at_one_end_is_still_that_mailbox() {
    let (place, a, b) = pair();
    let (one, two) = (a.location(), b.location());
    run(&place, &["sync", "--source", &one, &two]);
    fs::rename(b.folder("Work"), b.folder("Job")).expect("renamed");
    a.deliver("Work", &mail(9), b"Subject: nine\n\n");
    // Dovecot makes a second mailbox of it: oracle mailbox-option-after-rename.
    run(&place, &["sync", "-m", "Work", "--source", &one, &two]);
    assert_eq!(a.view(), b.view());
    assert!(a.view().contains_key("Job") && !a.view().contains_key("Work"), "{:?}", a.view().keys());
    assert_eq!(a.view()["Job"].len(), 3, "two messages, each once");
    // And left alone under both names.
    fs::rename(b.folder("Job"), b.folder("Task")).expect("renamed");
    let before = (a.view(), b.view());
    run(&place, &["sync", "-x", "Job", "--source", &one, &two]);
    run(&place, &["sync", "-x", "Ta*", "--source", &one, &two]);
    assert_eq!((a.view(), b.view()), before);
}

#[test]
fn what_is_excluded_keeps_its_subscription() {
    let (place, a, b) = pair();
    fs::write(a.root.join("subscriptions"), "Spam\nWork\n").expect("written");
    a.deliver("Spam", &mail(7), b"Subject: spam\n\n");
    // Dovecot brings the subscription all the same: oracle exclude-subscription.
    run(&place, &["sync", "-x", "Spam", "--source", &a.location(), &b.location()]);
    let subscribed = fs::read_to_string(b.root.join("subscriptions")).expect("written");
    assert!(subscribed.lines().any(|line| line == "Work") && !subscribed.contains("Spam"), "{subscribed}");
    assert!(!b.view().contains_key("Spam"));
}

#[test]
fn special_uses_stand_for_their_mailboxes() {
    let (place, a, b) = pair();
    a.deliver("Papierkorb", &mail(7), b"Subject: gone\n\n");
    let conf = place.path("client.conf");
    let mut text = fs::read_to_string(&conf).expect("read");
    text.push_str(
        "namespace inbox {\n  inbox = yes\n  separator = /\n  mailbox Papierkorb {\n    special_use = \\Trash\n  }\n}\n",
    );
    fs::write(&conf, &text).expect("written");
    // Dovecot ignores it: oracle special-use-ignored.
    run(&place, &["sync", "-x", "\\Trash", "--source", &a.location(), &b.location()]);
    assert!(!b.view().contains_key("Papierkorb") && b.view().contains_key("Work"));
    run(&place, &["sync", "-m", "\\trash", "--source", &a.location(), &b.location()]);
    assert!(b.view().contains_key("Papierkorb"));
    let (status, _, said) =
        dsync(&place, &["sync", "-x", "\\Junk", "--source", &a.location(), &b.location()]);
    assert!(status == 68 && said.contains("\\Junk"), "{status} {said}");
    // The userdb knows another prefix of that namespace.
    a.deliver("Papierkorb", &mail(8), b"Subject: gone, too\n\n");
    text.push_str(
        "userdb {\n  driver = static\n  args = allow_all_users=yes namespace/inbox/prefix=INBOX/\n}\n",
    );
    fs::write(&conf, text).expect("written");
    let words = ["sync", "-u", "alice", "-x", "\\Trash", "--source", &a.location(), &b.location()];
    run(&place, &words);
    assert_ne!(
        b.view().get("Papierkorb"),
        a.view().get("Papierkorb"),
        "it is INBOX/Papierkorb, and left out"
    );
    let words = ["sync", "-u", "alice", "-m", "\\Trash", "--source", &a.location(), &b.location()];
    run(&place, &words);
    assert_eq!(b.view()["Papierkorb"], a.view()["Papierkorb"]);
}

#[test]
fn the_tree_alone_and_single_mailboxes_by_guid() {
    let (place, a, b) = pair();
    let (one, two) = (a.location(), b.location());
    run(&place, &["sync", "-m", "", "--source", &one, &two]);
    let view = b.view();
    assert!(view["Work"].len() == 1 && view["INBOX"].len() == 1, "{view:?}");
    let guid = a.view()["Work"][0].split(' ').next().expect("a GUID").to_owned();
    run(&place, &["sync", "-g", &guid, "--source", &one, &two]);
    assert!(b.view()["Work"].len() == 2 && b.view()["INBOX"].len() == 1);
    run(&place, &["sync", "--source", &one, &two]);
    assert_eq!(a.view(), b.view());
    for (option, value) in [("-g", "0123456789abcdef0123456789abcdef"), ("-m", "Nowhere")] {
        let (status, _, said) = dsync(&place, &["sync", option, value, "--source", &one, &two]);
        assert!(status == 68 && said.contains(value), "{status} {said}");
    }
    run(&place, &["sync", "-m", "Nowhere*", "--source", &one, &two]);
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

/// Sets when a message was received.
fn receive(account: &Account, folder: &str, prefix: &str, seconds: u64) {
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
    let file = fs::File::options().write(true).open(account.find(folder, prefix)).expect("opens");
    file.set_modified(time).expect("set");
}

fn bodies(account: &Account, mailbox: &str) -> usize {
    account.view().get(mailbox).map_or(0, |lines| lines.len() - 1)
}

/// The scenarios opt-filters and filter-then-sync-deletes of the oracle, and what Dovecot makes of the latter is not so here.
#[test]
fn what_a_filter_keeps_back_stays_and_comes_later() {
    let place = Place::new("");
    for (n, filter, passes) in [
        (1, &["-t", "2023-06-01"][..], 1),
        (2, &["-e", "1700000000"], 2),
        (3, &["-t", "2021-06-01", "-e", "01-Jun-2023"], 1),
        (4, &["-I", "200"], 2),
        (5, &["-O", "\\Flagged"], 1),
        (6, &["-O", "-\\Flagged"], 2),
        (7, &["-O", "-\\Flagged", "-O", "\\Seen"], 1),
        (8, &["-t", "99w", "-I", "1M"], 0),
    ] {
        let (a, b) = (Account::new(place.path(&format!("a{n}"))), Account::new(place.path(&format!("b{n}"))));
        a.deliver("", "1577836800.M1P1.host:2,F", b"Subject: old\n\n");
        a.deliver("", "1704067200.M2P1.host:2,S", b"Subject: new\n\n");
        a.deliver("", "1680000000.M3P1.host:2,", &[&b"Subject: big\n\n"[..], &[b'x'; 300]].concat());
        receive(&a, "", "1577836800", 1_577_836_800);
        receive(&a, "", "1704067200", 1_704_067_200);
        receive(&a, "", "1680000000", 1_680_000_000);
        let mut line = vec!["sync"];
        line.extend(filter);
        let (one, two) = (a.location(), b.location());
        line.extend(["--source", &one, &two]);
        run(&place, &line);
        assert_eq!((bodies(&a, "INBOX"), bodies(&b, "INBOX")), (3, passes), "{filter:?}");
        // Again, and the other way round: nothing is expunged for being kept back.
        run(&place, &line);
        b.deliver("", "1704067300.M4P1.host:2,FS", b"Subject: there\n\n");
        run(&place, &["sync", "--source", &one, &two]);
        assert_eq!(bodies(&a, "INBOX"), 4, "{filter:?}");
        assert_eq!(a.view(), b.view(), "{filter:?}");
    }
}

#[test]
fn a_filtered_backup_brings_only_what_passes_and_removes_what_is_foreign() {
    let (place, a, b) = pair();
    a.deliver("", "1700000099.M9P1.host:2,F", b"Subject: flagged\n\n");
    b.deliver("", "1700000098.M8P1.host", b"Subject: foreign\n\n");
    let line = ["backup", "-O", "\\Flagged", "--source", &a.location(), &b.location()];
    let (status, _, said) = dsync(&place, &line);
    assert_eq!((status, said.as_str()), (0, ""));
    assert_eq!((bodies(&a, "INBOX"), bodies(&b, "INBOX")), (4, 1));
    // A message of the base that was lost at the copy is brought again, if it passes.
    run(&place, &["backup", "--source", &a.location(), &b.location()]);
    assert_eq!(a.view(), b.view());
    fs::remove_file(b.find("", "1700000099")).expect("removed");
    fs::remove_file(b.find("", "1700000001")).expect("removed");
    run(&place, &line);
    assert_eq!(bodies(&b, "INBOX"), 3);
    run(&place, &["backup", "--source", &a.location(), &b.location()]);
    assert_eq!(a.view(), b.view());
}

/// 600 messages at both ends.
fn much_mail() -> (Place, Account, Account) {
    let place = Place::new("");
    let (a, b) = (Account::new(place.path("a")), Account::new(place.path("b")));
    for n in 0..600 {
        a.deliver(["", "Work"][n as usize % 2], &mail(n), format!("Subject: {n}\n\n").as_bytes());
    }
    run(&place, &["-o", "mail_fsync=never", "sync", "--source", &a.location(), &b.location()]);
    (place, a, b)
}

fn remove(account: &Account, folder: &str, count: usize) {
    let files = ["cur", "new"].map(|d| fs::read_dir(account.folder(folder).join(d)).expect("read"));
    let paths = files.into_iter().flatten().map(|entry| entry.expect("read").path());
    paths.take(count).for_each(|path| fs::remove_file(path).expect("removed"));
}

#[test]
fn a_mirror_does_not_lose_a_fifth_of_its_mail_unasked() {
    let (place, a, b) = much_mail();
    let line = ["backup", "--source", &a.location(), &b.location()];
    // A hundred may go, and so may a hundred and twenty of six hundred.
    remove(&a, "", 100);
    run(&place, &line);
    let before = b.view();
    remove(&a, "", 101);
    a.deliver("", &mail(9000), b"Subject: late\n\n");
    let (status, _, said) = dsync(&place, &line);
    assert!(
        status == 77 && said.contains("101 of the 500 messages") && said.contains("--allow-mass-delete"),
        "{said}"
    );
    assert_eq!(bodies(&b, "INBOX"), before["INBOX"].len() - 1 + 1, "saved, and nothing is gone");
    let (status, _, said) = dsync(&place, &["backup", "-R", "--source", &b.location(), &a.location()]);
    assert!(status == 77 && said.contains("101 of the 50"), "{status} {said}");
    run(&place, &["backup", "--allow-mass-delete", "--source", &a.location(), &b.location()]);
    assert_eq!(a.view(), b.view());
}

#[test]
fn a_mailbox_that_goes_counts_with_its_mail_and_moved_mail_does_not() {
    let (place, a, b) = much_mail();
    let line = ["backup", "--source", &a.location(), &b.location()];
    fs::rename(a.folder("Work"), place.path("aside")).expect("moved");
    let (status, _, said) = dsync(&place, &line);
    assert!(status == 77 && said.contains("300 of the 600"), "{status} {said}");
    assert_eq!(bodies(&b, "Work"), 300);
    // All its mail in another mailbox, under the same names: nothing is lost.
    for part in ["new", "cur", "tmp"] {
        let to = a.folder("Elsewhere").join(part);
        fs::create_dir_all(&to).expect("made");
        for entry in fs::read_dir(place.path("aside").join(part)).expect("read").flatten() {
            fs::rename(entry.path(), to.join(entry.file_name())).expect("moved");
        }
    }
    run(&place, &line);
    assert_eq!(a.view(), b.view());
}

#[test]
fn an_end_that_lost_everything_does_not_empty_the_other() {
    let (place, a, b) = much_mail();
    remove(&a, "", 300);
    remove(&a, "Work", 300);
    let before = b.view();
    for line in [&["sync"][..], &["sync", "-1"]] {
        let (one, two) = (a.location(), b.location());
        let mut line = line.to_vec();
        line.extend(["--source", &one, &two]);
        let (status, _, said) = dsync(&place, &line);
        assert!(
            status == 77 && said.contains("600 of the 600") && said.contains("--allow-mass-delete"),
            "{status} {said}"
        );
        assert_eq!(b.view(), before);
    }
    run(&place, &["sync", "--allow-mass-delete", "--source", &a.location(), &b.location()]);
    assert_eq!((bodies(&b, "INBOX"), bodies(&b, "Work")), (0, 0));
}

#[test]
fn a_store_is_not_synchronised_with_itself_under_any_name() {
    let (place, a, _) = pair();
    std::os::unix::fs::symlink(&a.root, place.path("link")).expect("linked");
    let link = format!("maildir:{}", place.path("link").display());
    let indirect = format!("maildir:{}/../a", a.root.display());
    let server = place.serve();
    for other in [&a.location(), &link, &indirect] {
        let (status, _, said) = dsync(&place, &["backup", "-l", "30", "--source", &a.location(), other]);
        // Told before any lock is waited for: its holder would be named.
        assert!(status == 75 && said.contains("same store"), "{other}: {status} {said}");
    }
    let theirs = format!("maildir:{}", place.path("server/alice").display());
    run(&place, &["backup", "--source", &a.location(), &place.tls()]);
    let (status, _, said) = dsync(&place, &["sync", "--source", &theirs, &place.tls()]);
    assert!(status == 75 && said.contains("same store"), "{status} {said}");
    drop(server);
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

#[test]
fn a_dry_run_says_what_the_guard_would_refuse() {
    let (place, a, b) = much_mail();
    remove(&a, "", 200);
    let (status, printed, said) =
        dsync(&place, &["backup", "--dry-run", "--source", &a.location(), &b.location()]);
    assert!(
        status == 0 && printed.contains("200 expunged") && said.contains("--allow-mass-delete"),
        "{status} {said}"
    );
    assert_eq!(bodies(&b, "INBOX"), 300);
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
