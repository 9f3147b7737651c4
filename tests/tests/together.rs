//! IMAP sessions of a real Dovecot work on both stores while they are synchronised again and again.
//!
//! `DSYNC_TOGETHER_SECS` says how long; `tests/run --long` takes two minutes for each format.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use dsync_tests::dovecot::{Dovecot, assert_equal, comparable, installed};
use dsync_tests::imap_session::Client;
use dsync_tests::world::Dice;

#[path = "together/conversion.rs"]
mod conversion;
#[path = "together/folders.rs"]
mod folders;
#[path = "together/manual.rs"]
mod manual;
#[path = "together/mbox.rs"]
mod mbox;

const SECS: u64 = 5;
/// After a message was seen, the run that was at work then may not know it; the next one does.
const RUNS_UNTIL_KNOWN: u64 = 2;
/// After so many disturbed runs the users stop for one that is not.
const DISTURBED_MAX: u64 = 3;
/// It goes on until so many messages are expunged or moved, however slow the machine is.
const LEFT_MIN: usize = 5;
/// Runs without anybody at work until both are equal.
const LAST_RUNS_MAX: usize = 4;
/// How often a user tries to expunge a message.
const EXPUNGES_MAX: usize = 10;
const FLAGS: [&str; 6] = ["\\Seen", "\\Flagged", "\\Answered", "\\Draft", "$One", "$Two"];

/// Users are at work; they only watch; they leave.
const WORK: u8 = 0;
const WATCH: u8 = 1;
const LEAVE: u8 = 2;

/// What all know.
struct Shared {
    phase: AtomicU8,
    /// Syncs that ended.
    runs: AtomicU64,
    /// The number of the last one that met no change on its way: what it knew keeps its UID from then on. Any other may renumber what came last, as often as both stores get mail meanwhile.
    undisturbed: AtomicU64,
    /// Where each message is to be in the end; `None`: nowhere.
    messages: Mutex<BTreeMap<String, Option<&'static str>>>,
}

#[test]
fn maildir_with_sdbox() {
    together("maildir", "sdbox");
}

#[test]
fn sdbox_with_mdbox() {
    together("sdbox", "mdbox");
}

#[test]
fn mdbox_with_maildir() {
    together("mdbox", "maildir");
}

#[test]
fn mbox_with_maildir() {
    together("mbox", "maildir");
}

/// Lets the users leave, also when the test fails.
struct Leave<'a>(&'a Shared);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.0.phase.store(LEAVE, SeqCst);
    }
}

/// A directory that stays if the test fails: the logs of both indexes tell what came before what.
struct Kept(tempfile::TempDir);

impl Drop for Kept {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.disable_cleanup(true);
            eprintln!("kept: {}", self.0.path().display());
        }
    }
}

/// Two sessions on the first store, one on the second.
fn together(one: &str, two: &str) {
    if !installed() {
        return;
    }
    let time = std::env::var("DSYNC_TOGETHER_SECS").map_or(SECS, |secs| secs.parse().expect("seconds"));
    let (dir, dovecot) = Dovecot::beside(&["dsync"]);
    let dir = Kept(dir);
    let dir = dir.0.path();
    let dsync = dir.join("dsync");
    let [a, b] = [(one, "a"), (two, "b")].map(|(format, name)| format!("{format}:{}/{name}", dir.display()));
    dovecot.doveadm(&a, &["mailbox", "create", "-s", "Archive"]);
    // Each mailbox is in use before sessions open it.
    for mailbox in ["INBOX", "Archive"] {
        dovecot.save(&a, mailbox, &format!("X-Id: first-{mailbox}\n\n"));
    }
    let log_path = dir.join("log");
    let log = File::create(&log_path).expect("made");
    let first = ["INBOX", "Archive"].map(|mailbox| (format!("first-{mailbox}"), Some(mailbox)));
    let shared = Shared {
        phase: WORK.into(),
        runs: 0.into(),
        undisturbed: 0.into(),
        messages: Mutex::new(first.into()),
    };
    assert_eq!(sync(&dovecot, &dsync, &a, &b), 0);
    thread::scope(|scope| {
        let users =
            [("a1", &a, false), ("a2", &a, true), ("b1", &b, true)].map(|(name, location, qresync)| {
                let client = Client::new(name, &dovecot, location, qresync, log.try_clone().expect("cloned"));
                let shared = &shared;
                thread::Builder::new()
                    .name(name.into())
                    .spawn_scoped(scope, move || work(name, client, shared))
                    .expect("starts")
            });
        let leave = Leave(&shared);
        let begun = Instant::now();
        let left = || {
            let messages = shared.messages.lock().expect("not poisoned");
            messages.iter().filter(|(id, place)| !id.starts_with("first") && **place != Some("INBOX")).count()
        };
        let enough = || begun.elapsed() >= Duration::from_secs(time) && left() >= LEFT_MIN;
        while !enough() && !users.iter().any(|user| user.is_finished()) {
            let status = sync(&dovecot, &dsync, &a, &b);
            let run = shared.runs.fetch_add(1, SeqCst) + 1;
            if status == 0 {
                shared.undisturbed.store(run, SeqCst);
            }
        }
        shared.phase.store(WATCH, SeqCst);
        let settled = (0..LAST_RUNS_MAX).any(|_| sync(&dovecot, &dsync, &a, &b) == 0);
        drop(leave);
        for user in users {
            if let Err(panic) = user.join() {
                eprintln!("{}", fs::read_to_string(&log_path).expect("read"));
                std::panic::resume_unwind(panic);
            }
        }
        assert!(settled, "not equal after {LAST_RUNS_MAX} runs with nobody at work");
    });
    // What the users did last arrives too, as they were told that it was done.
    assert!((0..LAST_RUNS_MAX).any(|_| sync(&dovecot, &dsync, &a, &b) == 0));
    let wanted = shared.messages.into_inner().expect("not poisoned");
    let mut views = Vec::new();
    for location in [&a, &b] {
        let log = || fs::read_to_string(&log_path).expect("read");
        let mut found: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        let mut view = String::new();
        for mailbox in ["INBOX", "Archive"] {
            let ids =
                dovecot.doveadm(location, &["-f", "tab", "fetch", "hdr.x-id", "mailbox", mailbox, "all"]);
            ids.lines().skip(1).for_each(|id| found.entry(id.to_owned()).or_default().push(mailbox));
            let fields = ["-f", "json", "fetch", "uid flags date.received text", "mailbox", mailbox, "all"];
            view.push_str(&comparable(&dovecot.doveadm(location, &fields)));
        }
        for (id, place) in &wanted {
            let found = found.remove(id).unwrap_or_default();
            assert_eq!(found, Vec::from_iter(*place), "{location}: {id}: {}", log());
        }
        assert!(found.is_empty(), "{location}: {found:?}");
        views.push(view);
    }
    assert_equal(&views[0], &views[1], "the stores differ");
    let complaints = fs::read_to_string(&log_path).expect("read");
    let bad = complaints
        .lines()
        .find(|line| ["Error", "Warning", "Panic", "Fatal"].iter().any(|word| line.contains(word)));
    assert_eq!(bad, None, "{complaints}");
    let (runs, kept) = (shared.runs.into_inner(), wanted.values().flatten().count());
    eprintln!("{one} with {two}: {runs} runs, {} messages, {kept} of them kept", wanted.len());
}

/// One run; changed meanwhile (2) is no failure.
fn sync(dovecot: &Dovecot, dsync: &Path, a: &str, b: &str) -> i32 {
    let mut command = dovecot.as_user(dsync);
    let output = command.args(["-c", "/dev/null", "sync", "--source", a, b]).output().expect("runs");
    let text = String::from_utf8_lossy(&output.stderr);
    let status = output.status.code().expect("not killed");
    assert!(status == 0 && text.is_empty() || status == 2, "{status}: {text}");
    status
}

/// A user: saves messages, flags any, and expunges or moves its own once they are settled.
fn work(name: &str, mut client: Client, shared: &Shared) {
    let mut dice = Dice::new(name.bytes().fold(7, |sum, byte| sum * 31 + u64::from(byte)));
    let mut met: BTreeMap<u32, u64> = BTreeMap::new();
    let mut settled: BTreeMap<String, u32> = BTreeMap::new();
    let mut made = 0;
    let mut undisturbed = 0;
    while shared.phase.load(SeqCst) == WORK {
        let run = shared.runs.load(SeqCst);
        for (uid, id) in client.messages() {
            if *met.entry(uid).or_insert(run) + RUNS_UNTIL_KNOWN <= undisturbed {
                let kept = *settled.entry(id.to_owned()).or_insert(uid);
                assert_eq!(kept, uid, "{name}: {id} is renumbered, after an undisturbed run had met it");
            }
        }
        let all: Vec<u32> = client.messages().map(|(uid, _)| uid).collect();
        let own: Vec<(u32, String)> = client
            .messages()
            .filter(|(uid, id)| id.starts_with(name) && settled.get(*id) == Some(uid))
            .map(|(uid, id)| (uid, id.to_owned()))
            .collect();
        let mut one_of = |count: usize| dice.roll(count.max(1) as u64) as usize;
        let (flag, any, mine) =
            (FLAGS[one_of(FLAGS.len())], all.get(one_of(all.len())), own.get(one_of(own.len())));
        let told =
            |id: &str, place| _ = shared.messages.lock().expect("not poisoned").insert(id.to_owned(), place);
        match (one_of(10), any, mine) {
            _ if run > undisturbed + DISTURBED_MAX => client.act("NOOP"),
            (0..3, ..) => {
                made += 1;
                let id = format!("{name}-{made}");
                told(&id, Some("INBOX"));
                client.append(&id, flag);
            }
            (3..5, Some(uid), _) => client.act(&format!("UID STORE {uid} +FLAGS ({flag})")),
            (5, Some(uid), _) => client.act(&format!("UID STORE {uid} -FLAGS ({flag})")),
            (6..8, _, Some((uid, id))) => {
                told(id, None);
                // Dovecot may undo the flag of an mbox while another session expunges (`mbox::dovecot_alone_undoes_a_flag_that_comes_while_it_expunges`).
                let gone = (0..EXPUNGES_MAX).any(|_| {
                    client.act(&format!("UID STORE {uid} +FLAGS (\\Deleted)"));
                    client.act(&format!("UID EXPUNGE {uid}"));
                    client.messages().all(|(known, _)| known != *uid)
                });
                assert!(gone, "{name}: {id} cannot be expunged");
            }
            (8, _, Some((uid, id))) => {
                told(id, Some("Archive"));
                client.act(&format!("UID MOVE {uid} Archive"));
            }
            _ => client.act("NOOP"),
        }
        // What that run did is told to the client until the next turn.
        undisturbed = shared.undisturbed.load(SeqCst);
        client.idle(Duration::from_millis(5 + one_of(40) as u64));
    }
    while shared.phase.load(SeqCst) != LEAVE {
        client.idle(Duration::from_millis(50));
    }
    client.check_and_leave();
}
