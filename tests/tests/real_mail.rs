//! 6,046 real messages over TLS and back, and through every pair of formats: same bytes, flags, dates, GUIDs, UIDs. `tests/run` fetches them.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use dsync_tests::dovecot::{Dovecot, assert_equal, comparable, installed};
use dsync_tests::maildirs::Account;
use dsync_tests::programs::{Place, programs};

fn texts(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).expect("readable").flatten() {
        let path = entry.path();
        if path.is_dir() {
            texts(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "txt") {
            found.push(path);
        }
    }
}

/// The messages, if `tests/run` has fetched them.
fn corpus() -> Option<Vec<PathBuf>> {
    let Some(corpus) = std::env::var_os("DSYNC_CORPUS") else {
        assert!(std::env::var_os("CI").is_none(), "tests/run sets DSYNC_CORPUS");
        eprintln!("skipped: tests/run fetches the messages");
        return None;
    };
    let mut files = Vec::new();
    texts(Path::new(&corpus).join("data").as_path(), &mut files);
    files.sort();
    assert_eq!(files.len(), 6046);
    Some(files)
}

fn deliver(mail: &Account, files: &[PathBuf]) {
    for (n, file) in files.iter().enumerate() {
        let folder = ["", "Ham.Easy", "Ham.Hard", "Spam"][n % 4];
        let flags = [":2,S", ":2,", ":2,FRS", ""][n % 7 % 4];
        let name = format!("17{n:08}.M{n}P1.corpus{flags}");
        mail.deliver(folder, &name, &std::fs::read(file).expect("readable"));
    }
}

/// All that Dovecot tells of the messages, but for sizes: formats differ in line ends.
fn told(dovecot: &Dovecot, location: &str) -> String {
    let fields = "uid flags date.received text";
    let of = |mailbox| {
        let told = dovecot.doveadm(location, &["-f", "json", "fetch", fields, "mailbox", mailbox, "all"]);
        // Each save into dbox, Dovecot's own too, takes one CR from CR CR LF: what is left of them is no matter of ours.
        comparable(&told).replace("\\r", "")
    };
    ["INBOX", "Ham/Easy", "Ham/Hard", "Spam"].map(of).join("\n")
}

/// Every ordered pair of formats, in six steps: from one into the next, until all pairs were taken.
#[test]
fn real_mail_goes_through_every_pair_of_formats() {
    let Some(files) = corpus().filter(|_| installed()) else { return };
    let place = tempfile::tempdir().expect("made");
    std::fs::set_permissions(place.path(), std::fs::Permissions::from_mode(0o777)).expect("set");
    let dovecot = Dovecot::new(place.path());
    dovecot.own(&place.path().join("home"));
    let dsync = place.path().join("dsync");
    std::fs::copy(programs().join("dsync"), &dsync).expect("copied");
    let mail = Account::new(place.path().join("mail"));
    deliver(&mail, &files);
    dovecot.own(&mail.root);
    let mut from = mail.location();
    // dbox changes line ends: what Dovecot makes of that is the measure, and the first step is into dbox.
    let theirs = format!("sdbox:{}/theirs", place.path().display());
    dovecot.doveadm(&from, &["backup", &theirs]);
    let first = told(&dovecot, &theirs);
    assert!(first.lines().count() >= 6046);
    for (step, format) in ["sdbox", "maildir", "mdbox", "sdbox", "mdbox", "maildir"].into_iter().enumerate() {
        let to = format!("{format}:{}/step{step}", place.path().display());
        let output = dovecot
            .as_user(&dsync)
            .args(["-c", "/dev/null", "backup", "--source", &from, &to])
            .output()
            .expect("runs");
        assert!(output.status.success(), "{from} to {to}: {}", String::from_utf8_lossy(&output.stderr));
        assert_equal(&told(&dovecot, &to), &first, &format!("{from} to {to}"));
        from = to;
    }
}

#[test]
fn real_mail_goes_over_tls_and_comes_back() {
    let Some(files) = corpus() else { return };
    let place = Place::new("");
    let _server = place.serve();
    let mail = Account::new(place.path("mail"));
    deliver(&mail, &files);
    let source = format!("maildir:{}", mail.root.display());
    assert_eq!(place.run(&["backup", "--source", &source, &place.tls()]), (0, String::new()));
    let third = Account::new(place.path("third"));
    let back = format!("maildir:{}", third.root.display());
    assert_eq!(
        place.run(&["backup", "-R", "--compress", "yes", "--source", &back, &place.tls()]),
        (0, String::new())
    );
    let (ours, theirs) = (mail.view(), third.view());
    assert!(ours == theirs, "the mail that came back is not the mail that went");
    assert_eq!(ours.values().map(|lines| lines.len() - 1).sum::<usize>(), 6046);
}
