//! The index against accounts that a real Dovecot wrote, and against itself.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use dsync_storage::Fsync;
use dsync_storage::index::{Index, Paths, State, Transaction};
use serde_json::Value;

const FLAGS: [(u8, &str); 5] =
    [(1, "\\Answered"), (2, "\\Flagged"), (4, "\\Deleted"), (8, "\\Seen"), (16, "\\Draft")];
const ACCOUNTS: [&str; 9] = [
    "sdbox",
    "mdbox",
    "sdbox-att",
    "mdbox-att",
    "mdbox-layoutindex",
    "maildirpp",
    "maildir-fs",
    "maildir-dirs",
    "mbox",
];

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/formats")
}

fn unpack(name: &str) -> (tempfile::TempDir, Value) {
    let dir = tempfile::tempdir().expect("works");
    let archive = fixtures().join(format!("{name}.tar.zst"));
    let status =
        Command::new("tar").arg("--zstd").arg("-xpf").arg(archive).arg("-C").arg(dir.path()).status();
    assert!(status.expect("works").success());
    let text = std::fs::read(fixtures().join(format!("{name}.expected.json"))).expect("works");
    (dir, serde_json::from_slice(&text).expect("works"))
}

fn indexes(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).expect("works").flatten() {
        if entry.file_type().expect("works").is_dir() {
            indexes(&entry.path(), found);
        } else if entry.file_name() == "dovecot.index.log" {
            found.push(directory.to_owned());
        }
    }
}

/// UID, flags, keywords and modseq of each mail; UIDVALIDITY, UIDNEXT, HIGHESTMODSEQ.
type View = (Vec<(u64, Vec<String>, Vec<String>, u64)>, (u64, u64, u64));

fn view(state: &State) -> View {
    let mail = |row: usize| {
        let set = FLAGS.iter().filter(|(bit, _)| state.flags[row] & bit != 0);
        let mut flags: Vec<String> = set.map(|(_, name)| name.to_string()).collect();
        flags.sort();
        let mut keywords: Vec<String> =
            state.keywords_of(row).map(|keyword| state.keywords[keyword].clone()).collect();
        keywords.sort();
        (u64::from(state.uids[row]), flags, keywords, state.modseq_of(row))
    };
    let header = &state.header;
    let counters = (header.uid_validity.into(), header.next_uid.into(), state.highest_modseq());
    ((0..state.uids.len()).map(mail).collect(), counters)
}

fn expected(mailbox: &Value) -> View {
    let strings = |value: &Value| -> Vec<String> {
        let mut list: Vec<String> =
            value.as_array().expect("works").iter().map(|v| v.as_str().expect("works").to_owned()).collect();
        list.sort();
        list
    };
    let number = |value: &Value| value.as_u64().expect("works");
    let mails = mailbox["mails"].as_array().expect("works").iter().map(|mail| {
        (number(&mail["uid"]), strings(&mail["flags"]), strings(&mail["keywords"]), number(&mail["modseq"]))
    });
    let counters =
        (number(&mailbox["uidvalidity"]), number(&mailbox["uidnext"]), number(&mailbox["highestmodseq"]));
    (mails.collect(), counters)
}

#[test]
fn every_index_of_the_fixtures_reads_as_dovecot_reports_it() {
    let mut seen = 0;
    for name in ACCOUNTS {
        let (dir, told) = unpack(name);
        let mut found = Vec::new();
        indexes(dir.path(), &mut found);
        let mut views: BTreeMap<(u64, u64), View> = BTreeMap::new();
        for directory in found {
            let index = Index::open(Paths::mailbox(&directory)).expect("works").expect("works");
            let view = view(index.state());
            views.insert((view.1.0, view.1.1), view);
        }
        for mailbox in told["mailboxes"].as_array().expect("works") {
            let wanted = expected(mailbox);
            let view = views.get(&(wanted.1.0, wanted.1.1));
            let view = view.unwrap_or_else(|| panic!("{name}: {} has no index", mailbox["name"]));
            for (a, b) in view.0.iter().zip(&wanted.0) {
                assert_eq!(a, b, "{name}: {}", mailbox["name"]);
            }
            assert_eq!(*view, wanted, "{name}: {}", mailbox["name"]);
            seen += 1;
        }
    }
    assert!(seen > 60, "{seen}");
}

/// A made-up index, changed in every way, read by a second reader beside the writer.
#[test]
fn what_is_written_is_read_again() {
    let dir = tempfile::tempdir().expect("works");
    let paths = Paths::mailbox(dir.path());
    let mut index = Index::create(paths.clone(), 77, 1, Transaction::new()).expect("works");
    let mut other = Index::open(paths.clone()).expect("works").expect("works");
    let mut writer = index.lock(Duration::ZERO).expect("works");
    for step in 0..2000u32 {
        let mut transaction = Transaction::new();
        transaction.append(&[(step * 2 + 1, (step % 32) as u8), (step * 2 + 2, 0)]);
        transaction.keyword(&format!("k{}", step % 40), true, &[(step + 1, step + 2)]);
        if step % 3 == 0 {
            transaction.expunge(&[(step, [7; 16])]);
        }
        writer.append(transaction, Fsync::Never).expect("works");
        if step % 500 == 499 {
            writer.rotate(Fsync::Never).expect("works");
        } else if step % 70 == 69 {
            writer.snapshot(Fsync::Never).expect("works");
        }
        if step % 97 == 0 {
            other.refresh().expect("works");
            assert_eq!(view(other.state()), view(writer.state()), "step {step}");
            let fresh = Index::open(paths.clone()).expect("works").expect("works");
            assert_eq!(view(fresh.state()), view(writer.state()), "step {step}");
        }
    }
    drop(writer);
    let history = index.history(0, 0).expect("works");
    assert!(!history.expunged.is_empty() && !history.flags.is_empty());
    assert!(history.expunged.values().all(|(_, guid)| *guid == Some([7; 16])));
}

#[test]
fn a_torn_tail_is_ignored_and_cut_off() {
    let dir = tempfile::tempdir().expect("works");
    let paths = Paths::mailbox(dir.path());
    let mut index = Index::create(paths.clone(), 77, 1, Transaction::new()).expect("works");
    let mut two = Transaction::new();
    two.append(&[(1, 0)]);
    two.keyword("x", true, &[(1, 1)]);
    index.lock(Duration::ZERO).expect("works").append(two, Fsync::Never).expect("works");
    let whole = std::fs::read(paths.log()).expect("works");
    let before = view(index.state());
    let mut more = Transaction::new();
    more.append(&[(2, 8)]);
    more.keyword("y", true, &[(2, 2)]);
    let tail = more.into_bytes();
    for cut in 1..tail.len() {
        std::fs::write(paths.log(), [&whole[..], &tail[..cut]].concat()).expect("works");
        let mut index = Index::open(paths.clone()).expect("works").expect("works");
        assert_eq!(view(index.state()), before, "cut at {cut}");
        drop(index.lock(Duration::ZERO).expect("works"));
        assert_eq!(std::fs::read(paths.log()).expect("works"), whole);
    }
}

#[test]
fn a_held_lock_names_its_holder_and_two_writers_take_turns() {
    let dir = tempfile::tempdir().expect("works");
    let paths = Paths::mailbox(dir.path());
    let mut one = Index::create(paths.clone(), 77, 1, Transaction::new()).expect("works");
    let mut two = Index::open(paths).expect("works").expect("works");
    let writer = one.lock(Duration::ZERO).expect("works");
    assert_eq!(two.lock(Duration::from_millis(30)).expect_err("fails").status(), 75);
    drop(writer);
    drop(two.lock(Duration::ZERO).expect("works"));
}

/// Dovecot asks in the log for what it then carries out in the mail itself: until that is done, neither a snapshot nor a new log may say that it is.
#[test]
fn what_a_log_asks_for_outlives_snapshots_and_no_new_log_begins() {
    let dir = tempfile::tempdir().expect("works");
    let paths = Paths::mailbox(dir.path());
    let mut index = Index::create(paths.clone(), 77, 1, Transaction::new()).expect("works");
    let mut writer = index.lock(Duration::ZERO).expect("works");
    let mut mails = Transaction::new();
    mails.append(&[(1, 0), (2, 0), (3, 0)]);
    writer.append(mails, Fsync::Never).expect("works");
    let asked_at = writer.offset();
    let mut asked = Transaction::requests();
    asked.flags(&[(2, 2)], 2, 0);
    asked.expunge(&[(3, [0; 16])]);
    writer.append(asked, Fsync::Never).expect("works");
    let sequence = writer.index().position().0;
    let many: Vec<(u32, u64)> = (0..4000).map(|n| (1, n)).collect();
    while writer.offset() < 2 << 20 {
        let mut much = Transaction::new();
        much.modseqs(&many);
        writer.append(much, Fsync::Never).expect("works");
        writer.tidy(Fsync::Never).expect("works");
    }
    let snapshot = std::fs::read(paths.snapshot()).expect("a snapshot");
    let field = |at: usize| u32::from_le_bytes(snapshot[at..at + 4].try_into().expect("4 bytes"));
    assert!(u64::from(field(64)) <= asked_at && u64::from(field(68)) > asked_at, "tail {}", field(64));
    let again = Index::open(paths.clone()).expect("works").expect("works");
    let state = again.state();
    assert!(state.is_requested(2) && !state.is_requested(1) && state.has_requests());
    assert_eq!(
        (again.position().0, &state.uids[..], &state.flags[..]),
        (sequence, &[1, 2, 3][..], &[0, 2, 0][..])
    );
    // Carried out.
    let mut done = Transaction::new();
    done.expunge(&[(3, [0; 16])]);
    done.header(64, &((writer.offset() + 100) as u32).to_le_bytes());
    writer.append(done, Fsync::Never).expect("works");
    writer.tidy(Fsync::Never).expect("works");
    assert!(writer.index().position().0 > sequence && !writer.state().has_requests());
}
