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
        "namespace inbox {\n  inbox = yes\n  mailbox Papierkorb {\n    special_use = \\Trash\n  }\n}\n",
    );
    fs::write(&conf, text).expect("written");
    // Dovecot ignores it: oracle special-use-ignored.
    run(&place, &["sync", "-x", "\\Trash", "--source", &a.location(), &b.location()]);
    assert!(!b.view().contains_key("Papierkorb") && b.view().contains_key("Work"));
    run(&place, &["sync", "-m", "\\trash", "--source", &a.location(), &b.location()]);
    assert!(b.view().contains_key("Papierkorb"));
    let (status, _, said) =
        dsync(&place, &["sync", "-x", "\\Junk", "--source", &a.location(), &b.location()]);
    assert!(status == 68 && said.contains("\\Junk"), "{status} {said}");
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
