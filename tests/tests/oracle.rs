//! The oracle: what a real Dovecot left behind after each scenario, and what dsync leaves.
//!
//! `tests/fixtures/oracle/NAME.json` is a scenario, `NAME.dovecot` what `doveadm sync` of 2.3.19 left. Where dsync does better on purpose, [`BETTER`] says why
//! and `NAME.dsync` says how. `DSYNC_ORACLE=write` writes these anew; read the difference before it is committed.

use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use dsync_tests::dovecot::installed;
use dsync_tests::programs::programs;
use dsync_tests::scenario;

/// Where we differ on purpose, and the rule of docs/merge.md by which we do.
const BETTER: &[(&str, &str)] = &[
    ("algo-fast-blind-spot", "digests tell different mailboxes with equal counters apart"),
    ("algo-state-log-lost", "a state is only a hint: the base and the lists decide"),
    ("algo-state-uidvalidity", "a new UIDVALIDITY needs no second run"),
    ("algo-stateful-one-side", "both ends look what changed, whoever runs it"),
    ("backup-dest-expunge", "mirror: repaired in place, nothing is made anew"),
    ("backup-dest-new-mail", "mirror: repaired in place; UIDNEXT never goes back"),
    ("backup-fast-blind-spot", "digests; mirror"),
    ("backup-inbox-stuck", "mirror: INBOX is repaired in place like any other"),
    ("delete-loses-renamed", "delete-unseen: mail that the deleting end never saw stays, under the new name"),
    ("delete-recreate-resurrects", "recreated: the old one goes, the new one comes"),
    ("exclude-subscription", "scope: -x covers the subscription"),
    ("filter-then-sync-deletes", "filter: what did not pass is never taken for expunged"),
    ("identical-modseq-flags", "flags-undecidable"),
    ("keyword-case", "keyword-case: each end keeps its spelling"),
    ("mailbox-option-after-rename", "scope: -m finds a mailbox by its GUID"),
    ("move-into-deleted", "delete-unseen: mail moved into a mailbox keeps it"),
    ("move-loses-flags", "moved-flags"),
    ("msg-first-mismatch", "flags-undecidable; one run suffices"),
    ("msg-flags-conflict", "flags: three-way; what was done and undone is no change"),
    ("msg-index-log-lost", "the base proves the expunge without the log"),
    ("msg-move-vs-flags", "moved-flags"),
    ("oneway-changes-source", "uidvalidity: the source's; the source is not written"),
    ("oneway-conflict", "new-one-way: a message that is there keeps its UID"),
    ("oneway-renumbers", "new-one-way: a message that is there keeps its UID"),
    ("same-name-livelock", "same-name: one GUID and UIDVALIDITY, written at both ends in one step"),
    ("special-use-ignored", "scope: special uses are found at the end that knows them"),
    ("stale-removal", "flags: three-way; an old removal is no new one"),
    ("temp-names", "names: readable, and equal at both ends after one run"),
    ("tree-delete-one-side", "delete-unseen"),
    ("tree-delete-recreate", "recreated; delete-unseen"),
    ("tree-rename-onto-new", "names: readable, and equal at both ends after one run"),
    ("uidvalidity-flags-lost", "uidvalidity: flags are kept whichever end's UIDVALIDITY wins"),
    ("uidvalidity-maildir", "uidvalidity: nothing is renumbered"),
];

/// Scenarios that need what is not built yet.
const NOT_YET: &[(&str, &str)] = &[
    ("header-hash-crash", "saving into mbox"),
    ("msg-header-hash", "saving into mbox"),
    ("tree-separators", "names are held; the outcome is still to be recorded"),
];

/// Scenarios at once: most of their time is spent waiting for the next second.
const AT_ONCE: usize = 8;

#[test]
fn scenarios_end_as_dovecot_ends_them_or_better() {
    if !installed() {
        return;
    }
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/oracle");
    let mut names: Vec<String> = fs::read_dir(&fixtures)
        .expect("readable")
        .filter_map(|entry| Some(entry.ok()?.file_name().to_str()?.strip_suffix(".json")?.to_owned()))
        .collect();
    names.retain(|name| NOT_YET.iter().all(|(unready, _)| unready != name));
    names.sort();
    let asked = std::env::var("DSYNC_ORACLE_ONLY").ok();
    names.retain(|name| asked.as_ref().is_none_or(|asked| name.contains(asked)));
    let write = std::env::var_os("DSYNC_ORACLE").is_some_and(|what| what == "write");
    // The build may lie where the mail user cannot reach.
    let copies = tempfile::tempdir().expect("made");
    let open = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o755);
    fs::set_permissions(copies.path(), open).expect("set");
    for program in ["dsync", "dsync-server"] {
        fs::copy(programs().join(program), copies.path().join(program)).expect("copied");
    }
    let (next, failures) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let file = fixtures.join(format!("{name}.json"));
                    let better = BETTER.iter().any(|(known, _)| known == name);
                    let path = fixtures.join(format!("{name}.{}", if better { "dsync" } else { "dovecot" }));
                    let seen = std::panic::catch_unwind(|| scenario::run(&file, copies.path()));
                    let failure = match seen {
                        Err(_) => Some(format!("{name}: could not be run")),
                        Ok(seen) if write && better => {
                            fs::write(&path, seen).expect("written");
                            None
                        }
                        Ok(seen) => difference(&fs::read_to_string(&path).unwrap_or_default(), &seen)
                            .map(|what| format!("{name}: {what}")),
                    };
                    failures.lock().expect("no panic").extend(failure);
                }
            });
        }
    });
    let mut failures = failures.into_inner().expect("no panic");
    failures.sort();
    assert!(failures.is_empty(), "{} of {}:\n{}", failures.len(), names.len(), failures.join("\n"));
}

/// The rounds in which they differ, as expected and as seen.
fn difference(expected: &str, seen: &str) -> Option<String> {
    if expected == seen {
        return None;
    }
    let lines = |text: &str, other: &str, mark: char| -> String {
        let known: Vec<&str> = other.lines().collect();
        text.lines().filter(|line| !known.contains(line)).map(|line| format!("\n  {mark} {line}")).collect()
    };
    Some(format!("{}{}", lines(expected, seen, '-'), lines(seen, expected, '+')))
}
