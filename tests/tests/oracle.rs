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
    ("algo-fast-blind-spot", "digests: they tell different mailboxes with equal counters apart"),
    ("algo-state-log-lost", "state: a state is only a hint: the base and the lists decide"),
    ("algo-state-uidvalidity", "state: a new UIDVALIDITY needs no second run"),
    ("algo-stateful-one-side", "state: both ends look what changed, whoever runs it"),
    ("backup-dest-expunge", "mirror: repaired in place, nothing is made anew"),
    ("backup-dest-new-mail", "mirror: repaired in place; UIDNEXT never goes back"),
    ("backup-fast-blind-spot", "digests; mirror"),
    ("backup-inbox-stuck", "mirror: INBOX is repaired in place like any other"),
    ("delete-loses-renamed", "delete-unseen: mail that the deleting end never saw stays, under the new name"),
    ("delete-recreate-resurrects", "recreated: the old one goes, the new one comes"),
    ("exclude-subscription", "scope: -x covers the subscription"),
    ("filter-then-sync-deletes", "filter: what did not pass is never taken for expunged"),
    ("header-hash-crash", "header-hash: messages are told by their headers, and a removal by the base"),
    ("identical-modseq-flags", "flags-undecidable"),
    ("mailbox-option-after-rename", "scope: -m finds a mailbox by its GUID"),
    ("move-into-deleted", "delete-unseen: mail moved into a mailbox keeps it"),
    ("move-loses-flags", "moved-flags"),
    ("msg-first-mismatch", "flags-undecidable; one run suffices"),
    ("msg-flags-conflict", "done-and-undone"),
    ("msg-header-hash", "header-hash: the base proves the expunge; nothing is renumbered twice"),
    ("msg-index-log-lost", "the base proves the expunge without the log"),
    ("msg-move-vs-flags", "moved-flags"),
    ("oneway-changes-source", "uidvalidity: the source's; the source is not written"),
    (
        "oneway-renumbers",
        "new-one-way: only what stands under a UID that the source uses for another message",
    ),
    ("same-name-livelock", "same-name: one GUID and UIDVALIDITY, written at both ends in one step"),
    ("special-use-ignored", "scope: special uses are found at the end that knows them"),
    ("stale-removal", "flags: three-way; an old removal is no new one"),
    ("temp-names", "names: readable, and equal at both ends after one run"),
    ("tree-delete-one-side", "delete-unseen"),
    ("tree-delete-recreate", "recreated; delete-unseen"),
    ("tree-rename-onto-new", "names: readable, and equal at both ends after one run"),
    ("uidvalidity-flags-lost", "uidvalidity: flags are kept whichever end's UIDVALIDITY wins"),
    ("uidvalidity-maildir", "uidvalidity: nothing is renumbered"),
    ("uidvalidity-old-removal", "void-base: what the log tells of times before the base is no change"),
];

/// Scenarios that need what is not built yet.
const NOT_YET: &[(&str, &str)] = &[
    ("tree-rename-conflict", "times of renames, from dovecot.mailbox.log"),
    ("tree-separators", "names that the other end cannot hold"),
];

/// Scenarios that leave the same, where Dovecot ends with another status: every run here ends with 0.
const SAME_WITH_0: [&str; 2] = ["keyword-case", "percent-name"];

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
                            fs::write(&path, seen.text).expect("written");
                            None
                        }
                        Ok(seen) => difference(&fs::read_to_string(&path).unwrap_or_default(), &seen.text)
                            .or_else(|| unexpected_status(&seen.statuses))
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

/// The table of docs/merge.md has a row for each difference and for nothing else, and each rule that it names is defined there.
#[test]
fn each_difference_has_its_reason_in_the_documentation() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("../docs/merge.md")).expect("read");
    let (before, after) = text.split_once("## Against Dovecot").expect("the chapter");
    let rows = after.lines().skip_while(|line| !line.starts_with("|---")).skip(1);
    let rows: Vec<Vec<&str>> = rows
        .take_while(|line| line.starts_with('|'))
        .map(|line| line.split('|').map(str::trim).collect())
        .collect();
    let documented: Vec<&str> = rows.iter().map(|row| row[1]).collect();
    let mut differences: Vec<&str> = BETTER.iter().map(|(name, _)| *name).chain(SAME_WITH_0).collect();
    differences.sort_unstable();
    assert_eq!(documented, differences);
    for row in rows {
        let known = fs::exists(root.join(format!("fixtures/oracle/{}.json", row[1]))).expect("looked");
        assert!(known, "{}: no such scenario", row[1]);
        for rule in row[3].split("**").skip(1).step_by(2) {
            assert!(before.contains(&format!("**{rule}**")), "{}: rule {rule} is not defined", row[1]);
        }
    }
    let mut recorded: Vec<String> = fs::read_dir(root.join("fixtures/oracle"))
        .expect("readable")
        .filter_map(|entry| Some(entry.ok()?.file_name().to_str()?.strip_suffix(".dsync")?.to_owned()))
        .collect();
    recorded.sort_unstable();
    let mut better: Vec<&str> = BETTER.iter().map(|(name, _)| *name).collect();
    better.sort_unstable();
    assert_eq!(recorded, better);
}

/// What the runs ended with, if it is not 0.
fn unexpected_status(statuses: &[i32]) -> Option<String> {
    statuses.iter().any(|status| *status != 0).then(|| format!("statuses {statuses:?}"))
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
