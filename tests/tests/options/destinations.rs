//! Where options stand, and what a destination may be: several, the replica, a script, a command; not the source itself.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use dsync_tests::maildirs::Account;
use dsync_tests::programs::programs;

use super::{dsync, pair, run};

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
