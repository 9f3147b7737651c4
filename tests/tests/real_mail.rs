//! 6,046 real messages over TLS and back, through every pair of formats, and from a Dovecot through us to others: same bytes, flags, dates, GUIDs,
//! UIDs. `tests/run` fetches them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use dsync_tests::dovecot::{Dovecot, assert_equal, comparable, installed};
use dsync_tests::installation::{dsync_server, is_24, mail_options, program, words};
use dsync_tests::maildirs::Account;
use dsync_tests::programs::Place;

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

/// What is left of that in an mbox: not its own headers, and blank lines at the end are none. A first line `From ` is quoted, for good.
fn told_of_mbox(told: &str) -> String {
    const OWN: [&str; 7] =
        ["Status:", "X-Status:", "X-Keywords:", "X-UID:", "X-IMAP:", "X-IMAPbase:", "Content-Length:"];
    let line = |line: &str| {
        let is_own = |part: &&str| OWN.iter().any(|name| part.starts_with(name));
        let line = line.replacen("\"text\":\"", "\"text\":\"\\n", 1);
        let parts: Vec<&str> = line.split("\\n").filter(|part| !is_own(part)).collect();
        let mut line = parts.join("\\n").replace("\"text\":\"\\n>From ", "\"text\":\"\\nFrom ");
        while line.contains("\\n\"}") {
            line = line.replace("\\n\"}", "\"}");
        }
        line
    };
    told.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// From one into the next, from Maildir++ on, until every ordered pair of these formats was taken.
const STEPS: [&str; 6] = ["sdbox:%", "maildir:%", "mdbox:%", "sdbox:%", "mdbox:%", "maildir:%"];
/// Behind those, with `DSYNC_LONG`: the pairs with `LAYOUT=fs` and mbox.
const LONG_STEPS: [&str; 14] = [
    FS,
    "sdbox:%",
    FS,
    "mdbox:%",
    FS,
    "mbox:%",
    "sdbox:%",
    "mbox:%",
    "mdbox:%",
    "mbox:%",
    FS,
    "maildir:%",
    "mbox:%",
    "maildir:%",
];
const FS: &str = "maildir:%:LAYOUT=fs";

#[test]
fn real_mail_goes_through_every_pair_of_formats() {
    if is_24() {
        eprintln!("skipped: to tell some of this mail as JSON, doveadm 2.4.4 ends in an assertion");
        return;
    }
    let Some(files) = corpus().filter(|_| installed()) else { return };
    let (place, dovecot) = Dovecot::beside(&["dsync"]);
    let dsync = place.path().join("dsync");
    let mail = Account::new(place.path().join("mail"));
    deliver(&mail, &files);
    dovecot.own(&mail.root);
    let mut from = mail.location();
    // dbox changes line ends: what Dovecot makes of that is the measure, and the first step is into dbox.
    let theirs = format!("sdbox:{}/theirs", place.path().display());
    dovecot.doveadm(&from, &["backup", &theirs]);
    let first = told(&dovecot, &theirs);
    assert!(first.lines().count() >= 6046);
    let long = std::env::var_os("DSYNC_LONG").map_or(&[][..], |_| &LONG_STEPS);
    let mut was_mbox = false;
    for (step, format) in STEPS.iter().chain(long).enumerate() {
        let root = place.path().join(format!("step{step}"));
        let to = format.replace('%', &root.display().to_string());
        let output = dovecot
            .as_user(&dsync)
            .args(["-c", "/dev/null", "backup", "--source", &from, &to])
            .output()
            .expect("runs");
        assert!(output.status.success(), "{from} to {to}: {}", String::from_utf8_lossy(&output.stderr));
        let (ours, what) = (told(&dovecot, &to), format!("{from} to {to}"));
        was_mbox |= format.starts_with("mbox:");
        match was_mbox {
            true => assert_equal(&told_of_mbox(&ours), &told_of_mbox(&first), &what),
            false => assert_equal(&ours, &first, &what),
        }
        if let Some(done) = step.checked_sub(1) {
            std::fs::remove_dir_all(place.path().join(format!("step{done}"))).expect("removed");
        }
        from = to;
    }
}

/// From a Dovecot's mdbox into our sdbox, and on into another Dovecot's mdbox by both ways: we push, and it pulls.
#[test]
fn real_mail_goes_from_dovecot_through_us_to_another_dovecot() {
    let Some(files) = corpus().filter(|_| installed()) else { return };
    let (place, dovecot) = Dovecot::beside(&["dsync", "dsync-server"]);
    let location = |text: &str| text.replace(':', &format!(":{}/", place.path().display()));
    let mail = Account::new(place.path().join("mail"));
    deliver(&mail, &files);
    dovecot.own(&mail.root);
    let (first, ours) = (location("mdbox:first"), location("sdbox:ours"));
    let (pushed, pulled) = (location("mdbox:pushed"), location("mdbox:pulled"));
    dovecot.doveadm(&mail.location(), &["backup", &first]);
    // Not date.saved: Dovecot takes that of an sdbox from the file's ctime.
    let fields = "uid guid size.physical size.virtual flags date.received text";
    let told = |location: &str| dovecot.view_of(location, "uidvalidity uidnext messages unseen guid", fields);
    let source = told(&first);
    // Each save into dbox takes one CR from CR CR LF. Of mails that have such lines, all but the CRs and the sizes is compared.
    let guid = |line: &str| {
        line.split("\"guid\":\"").nth(1).and_then(|rest| rest.split('"').next()).map(str::to_owned)
    };
    let odd: BTreeSet<String> = source.lines().filter(|line| line.contains("\\r")).filter_map(guid).collect();
    assert!((1..200).contains(&odd.len()), "{} mails have CRs", odd.len());
    let plain = |view: &str| {
        let line = |line: &str| match (
            guid(line).filter(|guid| odd.contains(guid)),
            line.find("\"size.p"),
            line.find("\"flags"),
        ) {
            (Some(_), Some(sizes), Some(flags)) => {
                format!("{}{}", &line[..sizes], &line[flags..]).replace("\\r", "")
            }
            _ => line.to_owned(),
        };
        view.lines().map(line).collect::<Vec<_>>().join("\n")
    };
    let view = |location: &str| plain(&told(location));
    let (expected, stored) = (plain(&source), files_of(&place.path().join("first/storage")));
    assert!(expected.lines().count() >= 6046);
    let run = |command: &mut std::process::Command| {
        let std::process::Output { status, stderr, .. } = command.output().expect("runs");
        let text = String::from_utf8_lossy(&stderr);
        assert!(status.success() && text.is_empty(), "{command:?}: {status} {text}");
    };
    let conf = place.path().join("dovecot.conf");
    let we_call = |mode: &[&str], peer: &str| {
        let mut command = dovecot.as_user(&place.path().join("dsync"));
        command.args(["-c", "/dev/null", "backup"]).args(mode).args(["--source", &ours]);
        command.arg(program("doveadm")).arg("-c").arg(&conf).args(mail_options(peer));
        run(command.args(dsync_server()));
    };
    we_call(&["-R"], &first);
    assert_equal(&view(&ours), &expected, "from Dovecot");
    we_call(&[], &pushed);
    assert_equal(&view(&pushed), &expected, "pushed to another Dovecot");
    let server = place.path().join("server.conf");
    let home = place.path().join("home");
    let text = format!(
        "mail_location = {ours}\nuserdb {{\n  driver = static\n  args = home={}\n}}\n",
        home.display()
    );
    std::fs::write(&server, text).expect("written");
    let mut command = dovecot.as_user(&program("doveadm"));
    command.arg("-c").arg(&conf).args(mail_options(&pulled)).args(words(&["backup", "-R"]));
    command.arg(place.path().join("dsync-server")).arg("-c").arg(&server);
    run(command.args(["--stdio", "-u", "alice"]));
    assert_equal(&view(&pulled), &expected, "pulled by another Dovecot");
    // doveadm's JSON of 8-bit text depends on how it was read: the second time, the files themselves must do.
    assert_eq!(files_of(&place.path().join("first/storage")), stored, "the source was changed");
}

/// The files of messages of an mdbox, by name, with their sizes and times.
fn files_of(storage: &Path) -> BTreeMap<PathBuf, (u64, std::time::SystemTime)> {
    let entries = std::fs::read_dir(storage).expect("readable").map(|entry| entry.expect("readable"));
    let mails = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("m."));
    let of = |entry: std::fs::DirEntry| {
        let about = entry.metadata().expect("there");
        (entry.path(), (about.len(), about.modified().expect("known")))
    };
    mails.map(of).collect()
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
