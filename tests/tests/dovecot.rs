//! What a real Dovecot says of what we wrote, and what we make of what it wrote.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use dsync_tests::dovecot::{Dovecot, assert_equal, comparable, installed};
use dsync_tests::maildirs::Account;
use dsync_tests::programs::programs;
use dsync_tests::sample;

struct World {
    dir: tempfile::TempDir,
    dovecot: Dovecot,
    dsync: PathBuf,
}

impl World {
    fn new() -> World {
        let dir = tempfile::tempdir().expect("made");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).expect("set");
        // The build may lie where the mail user cannot reach.
        let dsync = dir.path().join("dsync");
        fs::copy(programs().join("dsync"), &dsync).expect("copied");
        let dovecot = Dovecot::new(dir.path());
        dovecot.own(&dir.path().join("home"));
        World { dir, dovecot, dsync }
    }

    fn account(&self, name: &str) -> Account {
        Account::new(self.dir.path().join(name))
    }

    fn sync(&self, arguments: &[&str]) {
        let output = self
            .dovecot
            .as_user(&self.dsync)
            .args(["-c", "/dev/null"])
            .args(arguments)
            .output()
            .expect("runs");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && text.is_empty(), "{arguments:?}: {:?} {text}", output.status);
    }
}

fn location(account: &Account) -> String {
    format!("maildir:{}{}", account.root.display(), account.options)
}

#[test]
fn dovecot_sees_no_difference_after_a_backup() {
    if !installed() {
        return;
    }
    let world = World::new();
    let a = world.account("a");
    sample::write(&a);
    // A NUL byte is shown in another way by Dovecot's cache: no part of this test.
    world.dovecot.own(&a.root);
    let first = world.dovecot.view(&location(&a));
    for options in ["", ":LAYOUT=fs"] {
        let mut b = world.account(&format!("b{}", options.len()));
        b.options = options.into();
        world.sync(&["backup", "--source", &location(&a), &location(&b)]);
        let (ours, theirs) = (world.dovecot.view(&location(&a)), world.dovecot.view(&location(&b)));
        assert_equal(&ours, &first, "the source was changed");
        let same = |view: &str| {
            view.lines().filter(|line| !line.starts_with("Archive messages=0")).collect::<Vec<_>>().join("\n")
        };
        assert_eq!(same(&ours), same(&theirs), "{options}");
    }
}

#[test]
fn changes_that_dovecot_made_on_both_sides_arrive_on_both() {
    if !installed() {
        return;
    }
    let world = World::new();
    let (a, b) = (world.account("a"), world.account("b"));
    sample::write(&a);
    world.dovecot.own(&a.root);
    let (one, two) = (location(&a), location(&b));
    world.dovecot.view(&one);
    world.sync(&["backup", "--source", &one, &two]);
    world.dovecot.view(&two);
    let doveadm =
        |location: &str, words: &str| world.dovecot.doveadm(location, &words.split('|').collect::<Vec<_>>());
    doveadm(&one, "flags|add|\\Flagged $New|mailbox|INBOX|uid|1");
    doveadm(&two, "flags|add|\\Answered|mailbox|INBOX|uid|1");
    doveadm(&two, "flags|remove|\\Seen|mailbox|INBOX|uid|2");
    doveadm(&one, "expunge|mailbox|INBOX|uid|3");
    doveadm(&two, "expunge|mailbox|Sent|uid|1:2");
    doveadm(&two, "mailbox|create|-s|Made/There");
    doveadm(&one, "mailbox|rename|Entwürfe|Drafts");
    doveadm(&two, "move|Made/There|mailbox|INBOX|uid|4");
    world.dovecot.save(&one, "INBOX", "Subject: saved at one\n\nBody one.\n");
    world.dovecot.save(&two, "INBOX", "Subject: saved at two\n\nBody two.\n");
    world.sync(&["sync", "--source", &one, &two]);
    let (ours, theirs) = (world.dovecot.view(&one), world.dovecot.view(&two));
    assert_equal(&ours, &theirs, "after the sync");
    for text in ["saved at one", "saved at two", "$New", "Made/There", "Drafts"] {
        assert!(ours.contains(text), "{text}: {ours}");
    }
    assert!(!ours.contains("Entwürfe\t"), "{ours}");
    let inbox = doveadm(&one, "-f|tab|fetch|uid flags|mailbox|INBOX|uid|1:4");
    let lines: Vec<&str> = inbox.lines().collect();
    assert!(
        lines[1].contains("\\Answered") && lines[1].contains("\\Flagged") && lines[1].contains("$New"),
        "{inbox}"
    );
    assert!(lines.len() == 3 && !lines[2].contains("\\Seen"), "{inbox}");
    // Idle-still, also as Dovecot sees it.
    world.sync(&["sync", "--source", &one, &two]);
    assert_equal(&world.dovecot.view(&one), &ours, "idle");
}

/// The state of `-s` is Dovecot's own: doveadm goes on from ours, and dsync from doveadm's.
#[test]
fn states_are_interchangeable() {
    if !installed() {
        return;
    }
    let world = World::new();
    let (a, b) = (world.account("a"), world.account("b"));
    sample::write(&a);
    world.dovecot.own(&a.root);
    let (one, two) = (location(&a), location(&b));
    world.dovecot.view(&one);
    let ours = |state: &str| {
        let mut command = world.dovecot.as_user(&world.dsync);
        command.args(["-c", "/dev/null", "sync", "-s", state, "--source", &one, &two]);
        let output = command.output().expect("runs");
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        let printed = String::from_utf8(output.stdout).expect("text");
        printed.trim_end().parse::<dsync_model::SyncState>().expect("a state")
    };
    let theirs = |state: &str| {
        let printed = world.dovecot.doveadm(&one, &["sync", "-s", state, &two]);
        printed.trim_end().parse::<dsync_model::SyncState>().expect("a state")
    };
    let first = ours("");
    assert!(first.0.values().any(|common| common.uid > 0 && common.modseq > 1), "{first:?}");
    let records =
        |state: &dsync_model::SyncState| -> Vec<_> { state.0.iter().map(|(g, c)| (*g, *c)).collect() };
    let dovecots = theirs(&first.to_string());
    assert_eq!(records(&dovecots), records(&first), "doveadm finds nothing to do");
    world.dovecot.save(&one, "INBOX", "Subject: later\n\n");
    let dovecots = theirs(&dovecots.to_string());
    let again = ours(&dovecots.to_string());
    let inbox = |state: &dsync_model::SyncState| state.0.values().map(|c| (c.uid, c.messages)).max();
    assert_eq!(inbox(&again), inbox(&dovecots));
    assert_equal(&world.dovecot.view(&one), &world.dovecot.view(&two), "after both");
}

#[test]
fn a_mirror_repaired_below_uidnext_is_read_by_dovecot() {
    if !installed() {
        return;
    }
    let world = World::new();
    let (a, b) = (world.account("a"), world.account("b"));
    sample::write(&a);
    world.dovecot.own(&a.root);
    let (one, two) = (location(&a), location(&b));
    world.dovecot.view(&one);
    world.sync(&["backup", "--source", &one, &two]);
    world.dovecot.view(&two);
    world.dovecot.doveadm(&two, &["expunge", "mailbox", "INBOX", "uid", "2"]);
    world.dovecot.save(&two, "INBOX", "Subject: foreign\n\n");
    world.sync(&["backup", "--source", &one, &two]);
    let fields = ["-f", "json", "fetch", "uid guid flags date.received text", "mailbox", "INBOX", "all"];
    let [ours, theirs] = [&one, &two].map(|location| comparable(&world.dovecot.doveadm(location, &fields)));
    assert_equal(&ours, &theirs, "the mirror");
}

/// UIDLs and the order that a POP3 server once gave travel through every format, and Dovecot's POP3 finds them: the headers of dbox
/// indexes say that they are there.
#[test]
fn pop3_names_and_order_are_kept() {
    if !installed() {
        return;
    }
    let world = World::new();
    let a = world.account("a");
    for n in 1..=3 {
        a.deliver("", &format!("17000000{n}.M{n}P1.host:2,"), format!("Subject: {n}\n\n").as_bytes());
    }
    let line = |n: u32| format!("{n} Pold-{n} O{} :17000000{n}.M{n}P1.host\n", 10 - n);
    let list =
        format!("3 V1700000000 N4 G{}\n{}{}3 :170000003.M3P1.host\n", "0a".repeat(16), line(1), line(2));
    fs::write(a.root.join("dovecot-uidlist"), list).expect("written");
    world.dovecot.own(&a.root);
    let shown = |location: &str| {
        let fields = "uid pop3.uidl pop3.order";
        world.dovecot.doveadm(location, &["-f", "tab", "fetch", fields, "mailbox", "INBOX"])
    };
    let first = shown(&location(&a));
    assert!(first.contains("1\told-1\t9\n2\told-2\t8\n3\t\t"), "{first}");
    let mut before = location(&a);
    for (format, name) in [("sdbox", "b"), ("mdbox", "c"), ("maildir", "d")] {
        let next = format!("{format}:{}", world.dir.path().join("home").join(name).display());
        world.sync(&["backup", "--source", &before, &next]);
        assert_eq!(shown(&next), first, "{format}");
        before = next;
    }
}
