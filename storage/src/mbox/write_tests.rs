//! What is written is read back; and whatever interrupts the writing, every message is there once.

use std::fs::{self, File};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use dsync_model::{FlagSet, Flags, Keyword, Timestamp, Uid, UidValidity};
use jiff::tz::TimeZone;

use super::fixture_tests::{file_of, known, read_message, unpack};
use super::*;
use crate::{Fsync, Result};

pub(super) const FROM: &str = "From a@b  Mon Feb 05 10:00:00 2024\n";

/// A mailbox in a directory of its own.
pub(super) struct Bench {
    pub dir: tempfile::TempDir,
    pub path: PathBuf,
    pub fsync: Fsync,
}

/// A message as it is told from others.
pub(super) type Seen = (Option<u32>, FlagSet, Vec<u8>);

impl Bench {
    pub fn new(content: impl AsRef<[u8]>) -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("box");
        fs::write(&path, content).unwrap();
        Bench { dir, path, fsync: Fsync::Never }
    }

    pub fn scan(&self) -> Result<MboxFile> {
        MboxFile::scan(&File::open(&self.path).unwrap(), &self.path, &known())
    }

    pub fn view(&self) -> Vec<Seen> {
        let found = self.scan().unwrap();
        let file = Arc::new(File::open(&self.path).unwrap());
        let seen = |entry: &Entry| {
            let message = read_message(&file, entry);
            assert_eq!(message.len() as u64, entry.size_physical);
            (entry.uid.map(Uid::get), entry.flags.clone(), message)
        };
        found.messages.iter().map(seen).collect()
    }

    pub fn lock(&self) -> Result<MboxLock> {
        let locking = Locking { write: "fcntl".parse()?, wait: Some(Duration::ZERO), ..Locking::default() };
        MboxLock::take(&self.path, &locking, Access::Write)
    }

    pub fn try_edit(&self, edit: impl FnOnce(&mut Edits, &MboxFile)) -> Result<Written> {
        let mut lock = self.lock()?;
        let found = MboxFile::scan(lock.file(), lock.path(), &known())?;
        let mut edits = Edits::none(&found, UidValidity::new(77).unwrap());
        edit(&mut edits, &found);
        let writing = Writing { fsync: self.fsync, zone: TimeZone::UTC };
        rewrite::write(&mut lock, &found, &edits, &writing)
    }

    pub fn edit(&self, edit: impl FnOnce(&mut Edits, &MboxFile)) -> Written {
        self.try_edit(edit).unwrap()
    }

    /// All of it is written anew: every message gets a UID, the mailbox another UIDVALIDITY.
    pub fn rewrite(&self) -> Result<Written> {
        self.try_edit(|edits, found| {
            edits.number(found, Uid::MIN);
            edits.uid_validity = UidValidity::new(4_000_000_000).unwrap();
            edits.keywords.push(keyword(&"a".repeat(200)));
        })
    }

    pub fn arrival(&self, uid: u32, flags: FlagSet, content: impl AsRef<[u8]>) -> Arrival {
        let path = self.dir.path().join(format!("arrival-{uid}"));
        fs::write(&path, content).unwrap();
        let received = Timestamp(1_700_000_000 + i64::from(uid));
        Arrival { uid: Uid::new(uid).unwrap(), flags, received, sender: "me@example.org".into(), path }
    }

    pub fn content(&self) -> String {
        String::from_utf8(fs::read(&self.path).unwrap()).unwrap()
    }

    pub fn no_leftovers(&self) {
        let names = fs::read_dir(self.dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let strange: Vec<_> =
            names.filter(|name| name != "box" && !name.to_string_lossy().starts_with("arrival")).collect();
        assert!(strange.is_empty(), "{strange:?}");
    }
}

pub(super) fn keyword(name: &str) -> Keyword {
    Keyword::new(name).unwrap()
}

pub(super) fn flags(system: Flags, keywords: &[&str]) -> FlagSet {
    FlagSet { system, keywords: keywords.iter().map(|name| keyword(name)).collect() }
}

pub(super) fn set_flags(place: usize, flags: FlagSet) -> (usize, Change) {
    (place, Change::Set { uid: None, flags: Some(flags) })
}

pub(super) fn two_messages() -> String {
    let spaces = " ".repeat(60);
    format!(
        "{FROM}Subject: one\nX-IMAPbase: 9 0000000005 work\nX-UID: 3\nStatus: O\nX-Keywords:{spaces}\n\
         Content-Length: 4\n\none\n\n{FROM}Subject: two\nX-UID: 5\nStatus: \nX-Keywords: work{spaces}\n\
         Content-Length: 4\n\ntwo\n\n"
    )
}

#[test]
fn nothing_to_do_writes_nothing() {
    let bench = Bench::new(two_messages());
    assert_eq!(bench.edit(|_, _| {}), Written::Nothing);
    assert_eq!(bench.content(), two_messages());
}

#[test]
fn a_new_mailbox_is_written_as_dovecot_writes_it() {
    let bench = Bench::new("");
    let arrival = bench.arrival(1, FlagSet::default(), "Subject: one\nStatus: RO\nx-uid: 5\n 6\n\nbody one");
    assert_eq!(bench.edit(|edits, _| edits.arrivals.push(arrival)), Written::Replaced);
    let spaces = " ".repeat(72);
    let expected = format!(
        "From me@example.org    Tue Nov 14 22:13:21 2023\nSubject: one\nX-IMAPbase: 77 0000000001\nX-UID: 1\n\
         Status: \nX-Keywords:{spaces}\nContent-Length: 9\n\nbody one\n\n"
    );
    assert_eq!(bench.content(), expected);
    let arrival = bench.arrival(4, flags(Flags::SEEN, &[]), "Subject: two\r\n\r\nbody\r\ntwo\r\n");
    assert_eq!(bench.edit(|edits, _| edits.arrivals.push(arrival)), Written::Appended);
    let expected = format!(
        "{}From me@example.org    Tue Nov 14 22:13:24 2023\nSubject: two\nX-UID: 4\nStatus: R\n\
         X-Keywords:{spaces}\nContent-Length: 9\n\nbody\ntwo\n\n",
        expected.replace("0000000001", "0000000004")
    );
    assert_eq!(bench.content(), expected);
    bench.no_leftovers();
}

#[test]
fn a_flag_changes_a_few_bytes() {
    let bench = Bench::new(two_messages());
    let wanted = flags(Flags::SEEN.union(Flags::FLAGGED), &["work"]);
    let changed = bench.edit(|edits, _| edits.changes.extend([set_flags(1, wanted.clone())]));
    assert_eq!(changed, Written::InPlace);
    let spaces = " ".repeat(60);
    let expected = two_messages()
        .replace(
            &format!("Status: \nX-Keywords: work{spaces}\n"),
            &format!("Status: R\nX-Keywords: work{}\n", " ".repeat(60 - 1 - "X-Status: F\n".len())),
        )
        .replace("Content-Length: 4\n\ntwo", "Content-Length: 4\nX-Status: F\n\ntwo");
    assert_eq!(bench.content(), expected);
    assert_eq!(bench.view()[1].1, wanted);
    assert_eq!(bench.edit(|_, _| {}), Written::Nothing);
    // A keyword that the base does not know yet does not fit into the line of the base, but into the reserve of
    // its message.
    let wanted = flags(Flags::NONE, &["new-word"]);
    let changed = bench.edit(|edits, _| edits.changes.extend([set_flags(1, wanted.clone())]));
    assert_eq!(changed, Written::InPlace);
    assert_eq!(bench.view()[1].1, wanted);
    let wanted = flags(Flags::NONE, &[&"x".repeat(100)]);
    let changed = bench.edit(|edits, _| edits.changes.extend([set_flags(1, wanted.clone())]));
    assert_eq!(changed, Written::Replaced);
    assert_eq!(bench.view()[1].1, wanted);
}

#[test]
fn expunges_move_the_base() {
    let bench = Bench::new(two_messages());
    bench.edit(|edits, _| edits.changes.extend([(0, Change::Expunge)]));
    let found = bench.scan().unwrap();
    assert_eq!((found.uid_validity.map(UidValidity::get), found.last_uid), (Some(9), 5));
    let view = bench.view();
    assert_eq!(view, [(Some(5), flags(Flags::NONE, &["work"]), b"Subject: two\n\ntwo\n".to_vec())]);
    bench.edit(|edits, _| edits.changes.extend([(0, Change::Expunge)]));
    let found = bench.scan().unwrap();
    assert!(found.pseudo.is_some() && found.messages.is_empty());
    assert_eq!((found.uid_validity.map(UidValidity::get), found.last_uid), (Some(9), 5));
    assert!(bench.content().contains("\nX-IMAP: 9 0000000005 work\nStatus: RO\n"));
    let arrival = bench.arrival(8, FlagSet::default(), "Subject: three\n\nthree\n");
    assert_eq!(bench.edit(|edits, _| edits.arrivals.push(arrival)), Written::Appended);
    let found = bench.scan().unwrap();
    assert_eq!((found.pseudo.is_some(), found.last_uid), (true, 8));
    assert_eq!(found.messages[0].uid, Uid::new(8));
    let arrival = bench.arrival(7, FlagSet::default(), "Subject: between\n\nx\n");
    assert_eq!(bench.edit(|edits, _| edits.arrivals.push(arrival)), Written::Replaced);
    let uids: Vec<_> = bench.view().into_iter().map(|(uid, ..)| uid).collect();
    assert_eq!((uids, bench.scan().unwrap().pseudo), (vec![Some(7), Some(8)], None));
}

#[test]
fn a_renumbered_message_moves_to_its_place() {
    let bench = Bench::new(two_messages());
    let set = Change::Set { uid: Uid::new(12), flags: None };
    assert_eq!(bench.edit(|edits, _| edits.changes.extend([(0, set)])), Written::Replaced);
    let view = bench.view();
    assert_eq!(view[0], (Some(5), flags(Flags::NONE, &["work"]), b"Subject: two\n\ntwo\n".to_vec()));
    assert_eq!(view[1], (Some(12), FlagSet::default(), b"Subject: one\n\none\n".to_vec()));
    assert_eq!(bench.scan().unwrap().last_uid, 12);
    let twice = bench.try_edit(|edits, _| {
        edits.changes.extend([(0, Change::Set { uid: Uid::new(12), flags: None })]);
    });
    assert!(matches!(twice, Err(crate::StorageError::Impossible(_))));
}

#[test]
fn uids_are_believed_only_in_order_and_behind_a_base() {
    let uids = |text: String| -> Vec<_> { Bench::new(text).view().into_iter().map(|seen| seen.0).collect() };
    let mail = |header: &str| format!("{FROM}{header}\nx\n\n");
    let base = "X-IMAPbase: 9 0000000005\n";
    assert_eq!(uids(mail("X-UID: 3\n") + &mail("X-UID: 4\n")), [None, None]);
    assert_eq!(uids(mail(&format!("X-UID: 3\n{base}"))), [None]);
    assert_eq!(uids(mail(&format!("{base}X-UID: 3\n")) + &mail("X-UID: 5\n")), [Some(3), Some(5)]);
    assert_eq!(uids(mail(&format!("{base}X-UID: 3\n")) + &mail("X-UID: 6\n")), [Some(3), None]);
    // A new UID is above all others, and so what follows it needs a new one as well.
    let text = mail(&format!("{base}X-UID: 3\n")) + &mail("") + &mail("X-UID: 5\n");
    assert_eq!(uids(text.clone()), [Some(3), None, None]);
    let bench = Bench::new(text);
    bench.edit(|edits, found| assert!(edits.number(found, Uid::MIN)));
    let uids: Vec<_> = bench.view().into_iter().map(|seen| seen.0).collect();
    assert_eq!(uids, [Some(3), Some(6), Some(7)]);
}

#[test]
fn a_rewrite_puts_the_base_in_front_of_keywords() {
    // Without an index Dovecot drops keywords that come before the list of them. We read them, and mend that.
    let header = "X-Keywords: work\nX-Keywords: unknown\nX-UID: 1\nX-IMAPbase: 9 0000000005 work\nX-UID: 2\n";
    let bench = Bench::new(format!("{FROM}{header}\nx\n\n"));
    let seen = (Some(2), flags(Flags::NONE, &["work"]), b"\nx\n".to_vec());
    let expected = [seen];
    assert_eq!(bench.view(), expected);
    bench.rewrite().unwrap();
    assert_eq!(bench.view(), expected);
    let content = bench.content();
    assert!(content.find("X-IMAPbase") < content.find("X-Keywords"), "{content}");
    assert!(!content.contains("unknown"));
}

#[test]
fn separators_are_what_dovecot_takes_for_them() {
    let view = |text: &str| -> Vec<String> {
        Bench::new(text).view().into_iter().map(|seen| String::from_utf8(seen.2).unwrap()).collect()
    };
    let head = "Subject: a\n\n";
    let mail = |text: &str| format!("{FROM}{text}");
    assert_eq!(view(&mail(&format!("{head}foo\n"))), ["Subject: a\n\nfoo"]);
    assert_eq!(view(&mail(&format!("{head}foo"))), ["Subject: a\n\nfoo"]);
    assert_eq!(view(&mail(&format!("{head}foo\n\n"))), ["Subject: a\n\nfoo\n"]);
    let second = mail(&format!("{head}bar\n\n"));
    assert_eq!(
        view(&(mail(&format!("{head}foo\n")) + &second)),
        ["Subject: a\n\nfoo", "Subject: a\n\nbar\n"]
    );
    for text in ["Subject: a\n", "Subject: a\n\n", "Subject: a"] {
        assert_eq!(view(&mail(text)), ["Subject: a\n"], "{text:?}");
    }
    assert_eq!(view(&(mail("Subject: a\n") + &second)), ["Subject: a\n", "Subject: a\n\nbar\n"]);
    assert_eq!(view(&(mail("Subject: a\n\n") + &second)), ["Subject: a\n", "Subject: a\n\nbar\n"]);
    assert_eq!(view(&mail("")), [""]);
    assert_eq!(view(&mail("\nbody\n\n")), ["\nbody\n"]);
    // CR goes from headers and stays in bodies.
    let crlf = (mail(&format!("{head}foo\nbar\n\n")) + &second).replace('\n', "\r\n");
    assert_eq!(view(&crlf), ["Subject: a\n\nfoo\r\nbar\r\n", "Subject: a\n\nbar\r\n"]);
    // A From_ line is text where Content-Length leads past it.
    let body = format!("x\n\n{FROM}y\n");
    let told = |length: usize| mail(&format!("Content-Length: {length}\n{head}{body}\n"));
    assert_eq!(view(&(told(body.len()) + &second)).len(), 2);
    assert_eq!(view(&told(body.len())).len(), 1);
    assert_eq!(view(&(told(body.len() - 1) + &second)).len(), 3);
    assert_eq!(view(&(told(100_000) + &second)).len(), 3);
    for text in ["garbage\n", "\nFrom a@b  Mon Feb 05 10:00:00 2024\n", "From here on\n"] {
        assert!(Bench::new(text).scan().is_err(), "{text:?}");
    }
    assert!(view("").is_empty());
}

pub(super) fn bodies(bench: &Bench) -> Vec<(Vec<u8>, Vec<u8>)> {
    let bytes = fs::read(&bench.path).unwrap();
    let body = |entry: &Entry| bytes[entry.body_start as usize..entry.body_end as usize].to_vec();
    let found = bench.scan().unwrap();
    let file = Arc::new(File::open(&bench.path).unwrap());
    found.messages.iter().map(|entry| (body(entry), read_message(&file, entry))).collect()
}

#[test]
fn the_fixture_account_is_changed_without_losing_a_byte() {
    let dir = tempfile::tempdir().unwrap();
    let expected = unpack(dir.path());
    for mailbox in expected["mailboxes"].as_array().unwrap() {
        let bench = Bench::new(fs::read(file_of(dir.path(), mailbox)).unwrap());
        let before = bench.view();
        let last = bench.scan().unwrap().last_uid;
        if let Some(place) = before.len().checked_sub(1) {
            let wanted = before[place].1.union(&flags(Flags::DELETED, &[]));
            let written = bench.edit(|edits, _| edits.changes.extend([set_flags(place, wanted.clone())]));
            assert_eq!(written, Written::InPlace);
            assert_eq!(bench.view()[place].1, wanted);
            bench.edit(|edits, _| edits.changes.extend([set_flags(place, before[place].1.clone())]));
            assert_eq!(bench.view(), before);
        }
        let arrival = bench.arrival(last + 1, FlagSet::default(), "Subject: new\n\nx\n");
        bench.edit(|edits, _| edits.arrivals.push(arrival));
        assert_eq!(bench.view()[..before.len()], before);
        bench.rewrite().unwrap();
        assert_eq!(bench.view()[..before.len()], before);
        bench.edit(|edits, found| {
            edits.changes.extend((0..found.messages.len()).step_by(2).map(|place| (place, Change::Expunge)));
        });
        let left = bench.view();
        let odd: Vec<&Seen> = before.iter().skip(1).step_by(2).collect();
        assert!(odd.iter().all(|seen| left.contains(seen)));
    }
}

#[test]
fn a_huge_header_is_no_trouble() {
    let long = format!("A: {}\n", "b".repeat(70)).repeat(120_000);
    assert!(long.len() > scan::HEADER_BYTES_MAX);
    let one_line = format!("A: {}\n\nbody\n", "b".repeat(scan::HEADER_BYTES_MAX + 5));
    for text in [format!("{long}\nbody\n"), one_line] {
        let bench = Bench::new(format!("{FROM}{text}\n{FROM}Subject: a\n\nx\n\n"));
        let before = bench.view();
        assert_eq!((before.len(), &before[0].2), (2, &text.clone().into_bytes()));
        bench.rewrite().unwrap();
        let arrival = bench.arrival(9, FlagSet::default(), &text);
        bench.edit(|edits, _| edits.arrivals.push(arrival));
        let after = bench.view();
        let uids: Vec<_> = after.iter().map(|seen| seen.0).collect();
        assert_eq!(uids, [Some(1), Some(2), Some(9)]);
        assert!(after[0].2 == text.as_bytes() && after[2].2 == text.as_bytes() && after[1].2 == before[1].2);
    }
}

#[test]
fn links_modes_and_times_are_kept() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let bench = Bench::new(two_messages());
    let link = bench.dir.path().join("arrival-link");
    std::os::unix::fs::symlink(&bench.path, &link).unwrap();
    fs::set_permissions(&bench.path, fs::Permissions::from_mode(0o640)).unwrap();
    let linked = Bench { path: link.clone(), dir: tempfile::tempdir().unwrap(), fsync: Fsync::Always };
    let before = fs::metadata(&bench.path).unwrap();
    assert_eq!(linked.rewrite().unwrap(), Written::Replaced);
    let after = fs::metadata(&bench.path).unwrap();
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(before.ino(), after.ino(), "who waits for its lock has it open");
    assert_eq!((after.mode() & 0o777, after.uid(), after.gid()), (0o640, before.uid(), before.gid()));
    assert!(after.mtime() > before.mtime(), "Dovecot must see the change");
    bench.no_leftovers();
}
