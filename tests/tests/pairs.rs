//! Every format converted into every other: a real Dovecot must see in our copy what it sees in its own.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use dsync_tests::dovecot::{Dovecot, assert_equal, installed};
use dsync_tests::formats::Fixture;
use dsync_tests::installation::{dsync_server, is_24, mail_options, program};
use dsync_tests::programs::programs;

/// A fixture for each source format, and how its account is named below its home.
const SOURCES: [(&str, &str); 4] = [
    ("sdbox", "sdbox:%/sdbox"),
    ("maildirpp", "maildir:%/Maildir"),
    ("maildir-fs", "maildir:%/Maildir:LAYOUT=fs"),
    ("mdbox", "mdbox:%/mdbox"),
];
/// Names in the list index alone.
const BY_INDEX: [&str; 3] = ["sdbox:%:LAYOUT=index", "mdbox:%:LAYOUT=index", "maildir:%:LAYOUT=index"];
const MAILDIRPP: &str = "maildir:%";
const TARGETS: [&str; 4] = ["sdbox:%", "mdbox:%", "maildir:%:LAYOUT=fs", MAILDIRPP];
const MBOX: (&str, &str) = ("mbox", "mbox:%/mail:INBOX=%/mbox-inbox");
const INTO_MBOX: &str = "mbox:%";
const MBOX_BY_INDEX: &str = "mbox:%:LAYOUT=index";

fn at(location: &str, path: &Path) -> String {
    location.replace('%', &path.display().to_string())
}

#[test]
fn dovecot_sees_in_our_copy_what_it_sees_in_its_own() {
    check(&SOURCES, &TARGETS);
}

#[test]
fn names_go_into_list_indexes_as_dovecot_writes_them() {
    check(&SOURCES[..1], &BY_INDEX);
}

/// The mail of each mailbox is a file that is named by its GUID.
#[test]
fn names_of_mbox_files_go_into_list_indexes_as_dovecot_writes_them() {
    check(&SOURCES[..1], &[MBOX_BY_INDEX]);
}

#[test]
fn names_come_out_of_list_indexes() {
    let source = ("mdbox-layoutindex", "mdbox:%/mdbox:LAYOUT=index");
    check(&[source], &[TARGETS[0], TARGETS[2], BY_INDEX[0]]);
}

#[test]
fn an_mbox_is_converted_as_dovecot_does_it() {
    check(&[MBOX], &["sdbox:%", "mdbox:%", "maildir:%:LAYOUT=fs", INTO_MBOX, MAILDIRPP]);
}

#[test]
fn dovecot_sees_in_our_mbox_what_it_sees_in_its_own() {
    check(&SOURCES, &[INTO_MBOX]);
}

/// A From_ line in a header would begin another message in an mbox: Dovecot leaves it out, here it is quoted. In bodies none is touched by either.
#[test]
fn a_from_line_in_a_header_is_quoted_where_dovecot_drops_it() {
    if !installed() {
        return;
    }
    const FROM: &str = "From alice@example.org Mon Feb  5 10:00:00 2024";
    let dir = tempfile::tempdir().expect("made");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).expect("set");
    let (dsync, root) = (dir.path().join("dsync"), dir.path().join("source"));
    fs::copy(programs().join("dsync"), &dsync).expect("copied");
    ["cur", "new", "tmp"].iter().for_each(|sub| fs::create_dir_all(root.join(sub)).expect("made"));
    let headers = [format!("{FROM}\nSubject: first\n"), format!("Subject: second\n{FROM}\n"), String::new()];
    let bodies =
        [format!("{FROM}\ntext\n"), format!("text\n\n{FROM}\n\ntext\n"), format!("From here\n{FROM}\n")];
    for (n, (header, body)) in headers.iter().zip(&bodies).enumerate() {
        let name = format!("17000000{n:02}.M{n}P1.test:2,S");
        fs::write(root.join("cur").join(name), format!("{header}\n{body}")).expect("written");
    }
    let dovecot = Dovecot::new(dir.path());
    dovecot.own(&root);
    dovecot.own(&dir.path().join("home"));
    let [source, ours, theirs] = [("maildir", "source"), ("mbox", "ours"), ("mbox", "theirs")]
        .map(|(format, name)| format!("{format}:{}/{name}", dir.path().display()));
    let run =
        dovecot.as_user(&dsync).args(["-c", "/dev/null", "backup", "--source", &source, &ours]).status();
    assert!(run.expect("runs").success());
    dovecot.doveadm(&source, &["backup", &theirs]);
    let texts = |location: &str| {
        dovecot.doveadm(location, &["-f", "tab", "fetch", "text", "mailbox", "INBOX", "all"])
    };
    let (ours, theirs) = (texts(&ours), texts(&theirs));
    let wanted = |quoted: &str| {
        let texts = headers.iter().zip(&bodies).map(|(header, body)| {
            let header = header.replace(&format!("{FROM}\n"), quoted);
            format!("{header}\n{body}")
        });
        texts.collect::<Vec<_>>().join("\n")
    };
    let same = |told: &str, quoted: &str| {
        let (_, told) = told.split_once('\n').expect("a heading");
        assert_eq!(told.trim_end(), wanted(quoted).trim_end());
    };
    same(&theirs, "");
    same(&ours, &format!(">{FROM}\n"));
}

/// What must be equal. A message without a body has one line of it in an mbox of Dovecot's, and none in ours.
fn view(dovecot: &Dovecot, location: &str) -> String {
    if !location.starts_with("mbox:") && is_24() {
        // Copied by its protocol, which tells lines with LF; a 2.3 copies to a location by links to the files.
        let fields = "uid guid flags date.received size.virtual text";
        let view = dovecot.view_of(location, "uidvalidity uidnext messages unseen vsize guid", fields);
        return view.replace("\\r\\n", "\\n");
    }
    if !location.starts_with("mbox:") {
        return dovecot.view(location);
    }
    // doveadm 2.4.4 ends in an assertion when it is to show some texts of an mbox as JSON.
    let text = if is_24() { "hdr.subject hdr.message-id body.snippet" } else { "text" };
    let fields = &format!("uid guid flags date.received {text}");
    let mut view = dovecot.view_of(location, "uidvalidity uidnext messages unseen guid", fields);
    for end in ["\\n\"}", "\\r\"}"].into_iter().cycle() {
        if !view.contains("\\n\"}") && !view.contains("\\r\"}") {
            return view;
        }
        view = view.replace(end, "\"}");
    }
    view
}

/// Rule **directory**: what is no mailbox at the source is none in our copy. In Maildir++, which has no directories without mail, Dovecot's
/// own copy has an empty mailbox for each; those are no part of what is compared.
fn remove_directories(dovecot: &Dovecot, source: &str, copy: &str) {
    let root = Path::new(copy.trim_start_matches("maildir:"));
    if is_24() {
        // Its second backup has removed them already, but for their names in the list index.
        forget_names(root);
    }
    let mailboxes = |location: &str| {
        let told = dovecot.doveadm(location, &["-f", "tab", "mailbox", "status", "messages", "*"]);
        let lines = told.lines().skip(1).filter_map(|line| line.split_once('\t'));
        lines.map(|(name, messages)| (name.to_owned(), messages.to_owned())).collect::<BTreeMap<_, _>>()
    };
    let (there, copied) = (mailboxes(source), mailboxes(copy));
    for (name, messages) in copied.iter().filter(|(name, _)| !there.contains_key(*name)) {
        let below = format!("{name}/");
        assert!(messages == "0" && there.keys().any(|name| name.starts_with(&below)), "{name} in {copy}");
        fs::remove_dir_all(root.join(format!(".{}", name.replace('/', ".")))).expect("removed");
    }
    forget_names(root);
}

fn forget_names(root: &Path) {
    for entry in fs::read_dir(root).expect("read").flatten() {
        if entry.file_name().to_string_lossy().starts_with("dovecot.list.index") {
            fs::remove_file(entry.path()).expect("removed");
        }
    }
}

/// A backup from Dovecot to Dovecot.
fn copy_by_dovecot(dovecot: &Dovecot, source: &str, target: &str) {
    if !is_24() {
        dovecot.doveadm(source, &["backup", target]);
        return;
    }
    // A 2.4 takes nothing but a path in a destination; and of directories its receiver makes mailboxes, until the next run.
    let (doveadm, conf) = (program("doveadm").display().to_string(), dovecot.conf().display().to_string());
    let called = [vec![doveadm, "-c".into(), conf], mail_options(target), dsync_server()].concat();
    let words: Vec<&str> = ["backup"].into_iter().chain(called.iter().map(String::as_str)).collect();
    for _ in 0..2 {
        dovecot.doveadm(source, &words);
    }
}

fn check(sources: &[(&str, &str)], targets: &[&str]) {
    if !installed() {
        return;
    }
    let (dir, dovecot) = Dovecot::beside(&["dsync"]);
    let dsync = dir.path().join("dsync");
    for &(fixture, source) in sources {
        let unpacked = Fixture::unpack(fixture);
        let home = dir.path().join(fixture);
        let copied = Command::new("cp").arg("-a").arg(unpacked.home()).arg(&home).status();
        assert!(copied.expect("cp runs").success());
        dovecot.own(&home);
        let source = at(source, &home);
        for (i, target) in targets.iter().copied().enumerate() {
            // Maildir++ cannot store a dot within a name.
            if target == MAILDIRPP && fixture != "maildirpp" {
                dovecot.doveadm(&source, &["mailbox", "delete", "dotted.name"]);
            }
            // Twice in the mailbox: Dovecot copies the first for both, with its date; ours are both as they were.
            if fixture == "mbox" {
                dovecot.doveadm(&source, &["expunge", "mailbox", "INBOX", "uid", "17:18"]);
            }
            // An mbox is a file, and has no mailboxes below it.
            if target == INTO_MBOX && fixture != "mbox" {
                dovecot.doveadm(&source, &["mailbox", "delete", "Archive/Old"]);
            }
            let (ours, theirs) = (home.join(format!("ours{i}")), home.join(format!("theirs{i}")));
            let output = dovecot
                .as_user(&dsync)
                .args(["-c", "/dev/null", "backup", "--source", &source, &at(target, &ours)])
                .output()
                .expect("runs");
            let text = String::from_utf8_lossy(&output.stderr);
            assert!(
                output.status.success() && text.is_empty(),
                "{source} to {target}: {:?} {text}",
                output.status
            );
            let what = format!("{source} to {target}");
            let ours = at(target, &ours);
            let theirs = at(target, &theirs);
            copy_by_dovecot(&dovecot, &source, &theirs);
            if target == MAILDIRPP {
                remove_directories(&dovecot, &source, &theirs);
            }
            assert_equal(&view(&dovecot, &ours), &view(&dovecot, &theirs), &what);
            // Dovecot's own copies count on; ours have the modseqs of the source.
            assert_equal(&dovecot.modseqs(&ours), &dovecot.modseqs(&source), &what);
        }
    }
}
