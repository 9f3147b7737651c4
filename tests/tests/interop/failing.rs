//! What fails in one mailbox of our end, and what is cut off: nothing is lost at either end, and the next run brings the rest.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use dsync_tests::dovecot::installed;
use dsync_tests::interop::{Deaf, World};
use dsync_tests::maildirs::Account;
use dsync_tests::peers::Ends;

/// A Dovecot that is cut off keeps what has come. What it has not got, below that, would count as expunged in the next run.
#[test]
fn a_dovecot_that_is_cut_off_gets_the_rest_in_the_next_run() {
    if !installed() {
        return;
    }
    for ends in [Ends::WeCall, Ends::DovecotCalls] {
        let world = World::new();
        let (a, b) = (world.location("sdbox", "a"), world.location("sdbox", "b"));
        let ours = if ends == Ends::WeCall { &a } else { &b };
        for number in 0..30 {
            world.dovecot.save(ours, "INBOX", &format!("Subject: {number}\n\n{number:0900}\n"));
        }
        let all = world.messages(ours);
        // About a third of all bodies arrives.
        let deaf = if ends == Ends::WeCall { Deaf::Called } else { Deaf::Calling };
        let (code, text) = world.cut_off(ends, &["sync"], (&a, &b), deaf, 16_000);
        assert_ne!(code, 0, "{ends:?}: {text}");
        let theirs = if ends == Ends::WeCall { &b } else { &a };
        let arrived = world.messages(theirs).lines().count();
        assert!((2..30).contains(&arrived), "{ends:?}: {arrived} have arrived: this shows nothing: {text}");
        world.session(ends, &["sync"], &a, &b, &[0]);
        assert_eq!(world.messages(&a), all, "{ends:?}");
        assert_eq!(world.messages(&b), all, "{ends:?}");
    }
}

/// Of two messages that want one UID ours to come may get the highest of all, and comes first: nothing is kept of what came before the others are there.
#[test]
fn what_comes_before_lower_uids_is_not_kept_when_we_are_cut_off() {
    if !installed() {
        return;
    }
    let world = World::new();
    let (a, b) = (world.location("maildir", "a"), world.location("maildir", "b"));
    world.dovecot.save(&a, "INBOX", "Subject: first\n\nx\n");
    world.session(Ends::WeCall, &["sync"], &a, &b, &[0]);
    world.dovecot.save(&a, "INBOX", "Subject: soon gone\n\nx\n");
    world.doveadm(&a, "expunge|mailbox|INBOX|subject|gone");
    let there = Account::new(world.path("b"));
    for number in 0..2_300 {
        // So many that some are made durable before all are there; the last ones large, so that the cut is among them.
        let body = if number < 2_100 { String::new() } else { "x".repeat(10_000) };
        let text = format!("Subject: {number}\n\n{body}\n");
        there.deliver("", &format!("17{number:08}.M1P1.test"), text.as_bytes());
    }
    world.dovecot.own(&there.root);
    let all = world.doveadm(&b, "-f|tab|fetch|uid|all").lines().count();
    let (code, text) = world.cut_off(Ends::WeCall, &["sync"], (&a, &b), Deaf::Calling, 1_400_000);
    let kept = world.doveadm(&a, "-f|tab|fetch|uid|all").lines().count();
    assert!(code != 0 && kept < all, "{code} {kept} of {all}: {text}");
    world.session(Ends::WeCall, &["sync"], &a, &b, &[0]);
    for location in [&a, &b] {
        assert_eq!(
            world.doveadm(location, "-f|tab|fetch|uid|all").lines().count(),
            all,
            "{location}: {kept}"
        );
    }
}

/// How one mailbox of our end is broken for a while.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Break {
    /// The file of its newest message may not be read.
    Message,
    /// Its directory may not be entered.
    Closed,
    /// Nothing may be written there.
    ReadOnly,
}

/// A pair of accounts, one of which is ours.
struct Pairing {
    world: World,
    ends: Ends,
    a: String,
    b: String,
    format: &'static str,
}

const MAILBOXES: [&str; 3] = ["INBOX", "Work", "Zoo"];

impl Pairing {
    /// Both ends have the same three mailboxes.
    fn new(format: &'static str, ends: Ends) -> Pairing {
        let world = World::new();
        let (a, b) = (world.location(format, "a"), world.location(format, "b"));
        let pairing = Pairing { world, ends, a, b, format };
        for mailbox in &MAILBOXES[1..] {
            pairing.world.doveadm(pairing.ours(), &format!("mailbox|create|{mailbox}"));
        }
        for mailbox in MAILBOXES {
            pairing.save(pairing.ours(), mailbox, &["one", "two"]);
        }
        pairing.world.session(ends, &["sync"], &pairing.a, &pairing.b, &[0]);
        pairing
    }

    fn ours(&self) -> &str {
        if self.ends == Ends::WeCall { &self.a } else { &self.b }
    }

    fn theirs(&self) -> &str {
        if self.ends == Ends::WeCall { &self.b } else { &self.a }
    }

    fn save(&self, location: &str, mailbox: &str, subjects: &[&str]) {
        for subject in subjects {
            self.world.dovecot.save(location, mailbox, &format!("Subject: {subject}\n\n{subject}\n"));
        }
    }

    /// Subjects in the order of the UIDs.
    fn subjects(&self, location: &str, mailbox: &str) -> String {
        let fetched =
            self.world.doveadm(location, &format!("-f|tab|fetch|hdr.subject|mailbox|{mailbox}|all"));
        fetched.lines().skip(1).collect::<Vec<_>>().join(" ")
    }

    /// What must be broken.
    fn paths(&self, mailbox: &str, how: Break) -> Vec<PathBuf> {
        let root = PathBuf::from(self.ours().split_once(':').expect("a location").1);
        let mail = match (self.format, mailbox) {
            ("maildir", "INBOX") => root,
            ("maildir", _) => root.join(format!(".{mailbox}")),
            _ => root.join("mailboxes").join(mailbox).join("dbox-Mails"),
        };
        let inside: &[&str] = if self.format == "maildir" { &["cur", "new", "tmp"] } else { &[] };
        match how {
            Break::Closed if self.format == "maildir" => vec![mail.join("cur")],
            Break::Closed => vec![mail],
            Break::ReadOnly => inside.iter().map(|name| mail.join(name)).chain([mail.clone()]).collect(),
            Break::Message => {
                let places: &[&str] = if self.format == "maildir" { &["cur", "new"] } else { &["."] };
                let entries = places.iter().flat_map(|place| fs::read_dir(mail.join(place)).expect("listed"));
                let files = entries.map(|entry| entry.expect("an entry").path()).filter(|path| {
                    let name = path.file_name().and_then(|name| name.to_str()).expect("UTF-8");
                    self.format == "maildir" || name.starts_with("u.")
                });
                let newest =
                    |path: &PathBuf| path.metadata().and_then(|data| data.modified()).expect("a file");
                vec![files.max_by_key(newest).expect("a message")]
            }
        }
    }

    fn breaks(&self, paths: &[PathBuf], how: Break) {
        let mode = if how == Break::ReadOnly { 0o500 } else { 0 };
        paths.iter().for_each(|path| fs::set_permissions(path, Permissions::from_mode(mode)).expect("set"));
    }

    fn mend(&self, paths: &[PathBuf]) {
        for path in paths {
            // A message may have moved from `new` to `cur` meanwhile.
            let found =
                [path.clone(), PathBuf::from(path.display().to_string().replace("/new/", "/cur/") + ":2,")];
            let found = found.iter().find(|path| path.exists()).expect("still there");
            let mode = if found.is_dir() { 0o700 } else { 0o600 };
            fs::set_permissions(found, Permissions::from_mode(mode)).expect("set");
        }
    }

    /// A run in which our `mailbox` fails: our end says so in one line, and the Dovecot has nothing to complain of but that.
    fn fails(&self, mode: &[&str], mailbox: &str, status: i32) {
        let what = format!("{} {:?} {mode:?} {mailbox}", self.format, self.ends);
        let (code, text) = self.world.talk(self.ends, mode, &self.a, &self.b);
        let said = |line: &&str| line.contains(&format!("{mailbox}: ")) && line.contains("Permission denied");
        assert_eq!(text.lines().filter(said).count(), 1, "{what}: {text}");
        let mut others = text.lines().filter(|line| line.contains("doveadm("));
        if self.ends == Ends::WeCall {
            assert_eq!(code, status, "{what}: {text}");
        } else {
            assert!([2, 75].contains(&code), "{what}: {code} {text}");
        }
        let harmless = |line: &str| {
            line.contains("Remote command returned error") || line.contains("Mailbox changes caused a desync")
        };
        assert!(others.all(harmless), "{what}: {text}");
    }
}

/// Of each format, each role and each way to break it: the mailbox waits, all others are synchronised, and nothing of it is gone at either end.
fn waits(format: &'static str, how: Break, mailbox: &str) {
    if !installed() {
        return;
    }
    for ends in [Ends::WeCall, Ends::DovecotCalls] {
        let pairing = Pairing::new(format, ends);
        let what = format!("{format} {ends:?} {how:?} {mailbox}");
        let (ours, theirs) = (pairing.ours(), pairing.theirs());
        for name in MAILBOXES {
            if how != Break::ReadOnly || name != mailbox {
                pairing.save(ours, name, &["three"]);
            }
        }
        let paths = pairing.paths(mailbox, how);
        if how == Break::Message {
            pairing.save(ours, mailbox, &["four"]);
        }
        if how == Break::ReadOnly {
            pairing.save(theirs, mailbox, &["three"]);
        }
        for name in MAILBOXES {
            pairing.save(theirs, name, &["there"]);
        }
        let before = pairing.subjects(theirs, mailbox);
        pairing.breaks(&paths, how);
        pairing.fails(&["sync"], mailbox, 77);
        for name in MAILBOXES.iter().filter(|name| **name != mailbox) {
            assert_eq!(pairing.subjects(theirs, name).split(' ').count(), 4, "{what}: {name}");
        }
        let after = pairing.subjects(theirs, mailbox);
        assert!(before.split(' ').all(|subject| after.contains(subject)), "{what}: {before}, {after}");
        pairing.fails(&["sync", "-f"], mailbox, 77);
        pairing.mend(&paths);
        pairing.world.session(ends, &["sync"], &pairing.a, &pairing.b, &[0]);
        for name in MAILBOXES {
            let all = pairing.subjects(ours, name);
            assert_eq!(all, pairing.subjects(theirs, name), "{what}: {name}");
            let mut all: Vec<&str> = all.split(' ').collect();
            all.sort_unstable();
            let mut expected = vec!["one", "there", "three", "two"];
            if how == Break::Message && name == mailbox {
                expected.insert(0, "four");
            }
            assert_eq!(all, expected, "{what}: {name}");
        }
        pairing.world.session(ends, &["sync", "-f"], &pairing.a, &pairing.b, &[0]);
        assert_eq!(pairing.world.view(&pairing.a), pairing.world.view(&pairing.b), "{what}");
    }
}

#[test]
fn a_message_of_a_maildir_that_cannot_be_read_is_not_taken_for_expunged() {
    waits("maildir", Break::Message, "INBOX");
}

#[test]
fn a_mailbox_that_cannot_be_listed_waits() {
    waits("sdbox", Break::Message, "Work");
    waits("sdbox", Break::Message, "INBOX");
    waits("maildir", Break::Closed, "Work");
}

#[test]
fn a_mailbox_that_cannot_be_written_waits() {
    waits("maildir", Break::ReadOnly, "Work");
    waits("sdbox", Break::ReadOnly, "Work");
}

/// One way out of ours nothing can be said of a message that cannot be sent: its mailbox waits, and the Dovecot's copy stays as it is.
#[test]
fn a_source_with_a_message_that_cannot_be_read_waits() {
    if !installed() {
        return;
    }
    for (ends, mode) in [
        (Ends::WeCall, &["backup"][..]),
        (Ends::WeCall, &["sync", "-1"]),
        (Ends::DovecotCalls, &["backup", "-R"]),
        (Ends::DovecotCalls, &["sync", "-1", "-R"]),
    ] {
        let pairing = Pairing::new("maildir", ends);
        let (ours, theirs) = (pairing.ours(), pairing.theirs());
        for name in MAILBOXES {
            pairing.save(ours, name, &["three"]);
        }
        let paths = pairing.paths("INBOX", Break::Message);
        pairing.save(ours, "INBOX", &["four"]);
        pairing.breaks(&paths, Break::Message);
        for _ in 0..2 {
            let (code, text) = pairing.world.talk(ends, mode, &pairing.a, &pairing.b);
            assert!(code != 0 && text.contains("INBOX: "), "{ends:?} {mode:?}: {code} {text}");
            let there = MAILBOXES.map(|name| pairing.subjects(theirs, name));
            assert_eq!(there, ["one two", "one two three", "one two three"], "{ends:?} {mode:?}: {text}");
        }
        pairing.mend(&paths);
        pairing.world.session(ends, mode, &pairing.a, &pairing.b, &[0]);
        assert_eq!(pairing.subjects(theirs, "INBOX"), "one two three four", "{ends:?} {mode:?}");
    }
}

/// In a backup whatever the source does not tell of is deleted: not so what it cannot tell of, whatever it is called there.
#[test]
fn a_backup_deletes_no_copy_of_what_cannot_be_listed() {
    if !installed() {
        return;
    }
    for ends in [Ends::WeCall, Ends::DovecotCalls] {
        for renamed in [false, true] {
            let pairing = Pairing::new("sdbox", ends);
            let what = format!("{ends:?} {renamed}");
            let (ours, theirs) = (pairing.ours(), pairing.theirs());
            let mode: &[&str] = if ends == Ends::WeCall { &["backup"] } else { &["backup", "-R"] };
            let copy = if renamed { "Elsewhere" } else { "Work" };
            if renamed {
                pairing.world.doveadm(theirs, "mailbox|rename|Work|Elsewhere");
            }
            pairing.world.doveadm(ours, "mailbox|create|Fresh");
            for name in ["INBOX", "Work", "Fresh"] {
                pairing.save(ours, name, &["three"]);
            }
            pairing.world.doveadm(ours, "mailbox|delete|Zoo");
            let paths = pairing.paths("Work", Break::Message);
            pairing.breaks(&paths, Break::Message);
            pairing.fails(mode, "Work", 77);
            let there = ["INBOX", copy, "Fresh"].map(|name| pairing.subjects(theirs, name));
            assert_eq!(there, ["one two three", "one two", "three"], "{what}");
            let listed = pairing.world.doveadm(theirs, "mailbox|list");
            // What nobody knows may be what has another name there: then nothing is deleted.
            assert_eq!(listed.contains("Zoo"), renamed, "{what}: {listed}");
            pairing.mend(&paths);
            pairing.world.session(ends, mode, &pairing.a, &pairing.b, &[0]);
            assert_eq!(pairing.world.view(&pairing.a), pairing.world.view(&pairing.b), "{what}");
        }
    }
}

/// The other way round: what cannot be listed at the destination is left as it is.
#[test]
fn a_backup_leaves_alone_what_cannot_be_listed_at_the_destination() {
    if !installed() {
        return;
    }
    for ends in [Ends::WeCall, Ends::DovecotCalls] {
        let pairing = Pairing::new("sdbox", ends);
        let (ours, theirs) = (pairing.ours(), pairing.theirs());
        let mode: &[&str] = if ends == Ends::WeCall { &["backup", "-R"] } else { &["backup"] };
        for name in MAILBOXES {
            pairing.save(theirs, name, &["three"]);
        }
        pairing.save(ours, "Work", &["here"]);
        let paths = pairing.paths("Work", Break::Message);
        pairing.breaks(&paths, Break::Message);
        pairing.fails(mode, "Work", 77);
        pairing.mend(&paths);
        let here = MAILBOXES.map(|name| pairing.subjects(ours, name));
        assert_eq!(here, ["one two three", "one two here", "one two three"], "{ends:?}");
        pairing.world.session(ends, mode, &pairing.a, &pairing.b, &[0]);
        assert_eq!(pairing.world.content(&pairing.a), pairing.world.content(&pairing.b), "{ends:?}");
    }
}

/// Nothing changed here since both ends were equal, so the counters are told before the mailbox is opened. If that fails then the session ends, and the next
/// run leaves the mailbox out.
#[test]
fn a_mailbox_that_fails_when_lists_are_awaited_is_left_out_by_the_next_run() {
    if !installed() {
        return;
    }
    let pairing = Pairing::new("sdbox", Ends::WeCall);
    pairing.world.session(Ends::WeCall, &["sync"], &pairing.a, &pairing.b, &[0]);
    for mailbox in ["Work", "Zoo"] {
        pairing.world.doveadm(&pairing.b, &format!("flags|add|\\Flagged|mailbox|{mailbox}|uid|1"));
    }
    let log = pairing.world.path("a/mailboxes/Work/dbox-Mails/dovecot.index.log");
    pairing.breaks(std::slice::from_ref(&log), Break::Message);
    let (code, text) = pairing.world.talk(Ends::WeCall, &["sync"], &pairing.a, &pairing.b);
    assert!(code == 77 && text.contains("Work: "), "{code} {text}");
    pairing.fails(&["sync"], "Work", 77);
    let flagged = |location: &str| {
        let found = pairing.world.doveadm(location, "-f|tab|fetch|mailbox|flagged");
        let mut found: Vec<&str> = found.lines().skip(1).collect();
        found.sort_unstable();
        found.join(" ")
    };
    pairing.mend(&[log]);
    assert_eq!(flagged(&pairing.a), "Zoo");
    pairing.world.session(Ends::WeCall, &["sync"], &pairing.a, &pairing.b, &[0]);
    assert_eq!(flagged(&pairing.a), "Work Zoo");
    assert_eq!(pairing.world.view(&pairing.a), pairing.world.view(&pairing.b));
}
