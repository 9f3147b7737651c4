//! The oracle: what a real Dovecot left behind after each scenario, and what dsync leaves.
//!
//! `tests/fixtures/oracle/NAME.json` is a scenario, `NAME.dovecot` what `doveadm sync` of 2.3.19 left. Where dsync does better on purpose, [`BETTER`] says why
//! and `NAME.dsync` says how. `DSYNC_ORACLE=write` writes these anew; read the difference before it is committed.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use dsync_tests::dovecot::installed;
use dsync_tests::installation::is_24;
use dsync_tests::peers::{Ends, Setup, Transport};
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
    ("tree-separators", "held: as there, but no mailbox is made for a name without mail"),
    ("uidvalidity-flags-lost", "uidvalidity: flags are kept whichever end's UIDVALIDITY wins"),
    ("uidvalidity-maildir", "uidvalidity: nothing is renumbered"),
    ("uidvalidity-moved-flags", "void-base: what was set on a message that was moved away goes with it"),
    ("uidvalidity-old-removal", "void-base: what the log tells of times before the base is no change"),
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
    let mut names = names(&fixtures);
    let asked = std::env::var("DSYNC_ORACLE_ONLY").ok();
    names.retain(|name| asked.as_ref().is_none_or(|asked| name.contains(asked)));
    // A 2.4 that is to make a directory makes a mailbox; and the location of the other one it has no INBOX in.
    names.retain(|name| !is_24() || !["tree-noselect-dirs", "tree-separators"].contains(&name.as_str()));
    let write = std::env::var_os("DSYNC_ORACLE").is_some_and(|what| what == "write");
    let copies = copies();
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

/// The scenarios, in order.
fn names(fixtures: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(fixtures)
        .expect("readable")
        .filter_map(|entry| Some(entry.ok()?.file_name().to_str()?.strip_suffix(".json")?.to_owned()))
        .collect();
    names.sort();
    names
}

/// The programs, copied: the build may lie where the mail user cannot reach.
fn copies() -> tempfile::TempDir {
    let copies = tempfile::tempdir().expect("made");
    let open = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o755);
    fs::set_permissions(copies.path(), open).expect("set");
    for program in ["dsync", "dsync-server"] {
        fs::copy(programs().join(program), copies.path().join(program)).expect("copied");
    }
    copies
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

/// Scenarios that every run of the tests tries with a Dovecot at one end; docs/dovecot-protocol.md tells of all of them.
const WITH_DOVECOT: &[&str] = &[
    "algo-stateful",
    "backup-basic",
    "backup-tree",
    "delete-loses-renamed",
    "identical-modseq-flags",
    "msg-content-fidelity",
    "msg-duplicate-guid",
    "msg-expunge-both",
    "msg-expunge-vs-flags",
    "msg-keywords-merge",
    "msg-many",
    "msg-move-both",
    "msg-new-both-sides",
    "msg-uidvalidity-more-messages",
    "oneway-conflict",
    "oneway-reverse",
    "opt-mailbox-exclude",
    "tree-create-both",
    "tree-delete-one-side",
    "tree-odd-names",
    "tree-rename-one-side",
    "tree-subscriptions",
    "tree-swap",
    "msg-same-mail-two-guids",
    "tree-noselect-dirs",
    "oneway-tree",
];
const FORMATS: [&str; 3] = ["maildir", "sdbox", "mdbox"];
const TRANSPORTS: [Transport; 3] = [Transport::Pipe, Transport::Tcp, Transport::Tls];
/// Formats of A and B that are not the same. As each end is ours once, each pair of formats has either end.
const MIXED: [[&str; 2]; 3] = [["sdbox", "maildir"], ["maildir", "mdbox"], ["mdbox", "sdbox"]];

/// The formats of A and B, and the way between them.
#[derive(Clone, Copy)]
struct Peers {
    formats: [&'static str; 2],
    way: Transport,
}

impl Peers {
    fn all() -> Vec<Peers> {
        let same = FORMATS.into_iter().flat_map(|format| TRANSPORTS.map(|way| ([format, format], way)));
        let mixed = MIXED.map(|formats| (formats, Transport::Pipe));
        same.chain(mixed).map(|(formats, way)| Peers { formats, way }).collect()
    }

    fn is_mixed(self) -> bool {
        self.formats[0] != self.formats[1]
    }

    fn name(self) -> String {
        match self.formats {
            [a, b] if a == b => format!("{a}-{:?}", self.way),
            [a, b] => format!("{a}+{b}-{:?}", self.way),
        }
    }
}

/// A scenario, and where it is run.
type Case = (String, Peers);

/// Each scenario of [`WITH_DOVECOT`] with one of [`Peers::all`], in turn. With `DSYNC_PEERS=sdbox-Tcp,mdbox+sdbox-Pipe,…`, or all of them where `DSYNC_LONG` is
/// set, every scenario is run so, beside two Dovecots. What differs is printed, and must be a row of docs/dovecot-protocol.md.
#[test]
fn scenarios_with_one_dovecot_end_as_with_two() {
    if !installed() {
        return;
    }
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/oracle");
    let copies = copies();
    let every = Peers::all();
    let asked: Option<Vec<Peers>> = match std::env::var("DSYNC_PEERS") {
        Err(_) if std::env::var_os("DSYNC_LONG").is_some() => Some(every.clone()),
        Err(_) => None,
        Ok(words) => {
            let named = |peers: &Peers| words.split(',').any(|word| word == peers.name());
            Some(every.iter().copied().filter(named).collect())
        }
    };
    // What was recorded is of a 2.3.
    let live = asked.is_some() || is_24();
    let cases = match asked {
        Some(peers) => asked_for(peers, &names(&fixtures)),
        None => {
            let names = WITH_DOVECOT.iter().map(|name| (*name).to_owned());
            names.zip(every.into_iter().cycle()).collect()
        }
    };
    let documented = documented_with_dovecot();
    let (next, told, counts) =
        (AtomicUsize::new(0), Mutex::new(Vec::new()), Mutex::new(BTreeMap::<String, [usize; 2]>::new()));
    std::thread::scope(|scope| {
        for _ in 0..2 * AT_ONCE {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let Some(lines) = with_one_dovecot(&fixtures, copies.path(), case, live) else {
                        continue;
                    };
                    let peers = case.1.name();
                    counts.lock().expect("no panic").entry(peers.clone()).or_default()
                        [usize::from(!lines.is_empty())] += 1;
                    if !lines.is_empty() {
                        let known =
                            live && documented.get(&case.0).is_some_and(|mixed| !mixed || case.1.is_mixed());
                        let text = format!("{} {peers}\n{}", case.0, lines.join("\n"));
                        told.lock().expect("no panic").push((text, known));
                    }
                }
            });
        }
    });
    let mut told = told.into_inner().expect("no panic");
    told.sort();
    told.iter().filter(|(_, known)| *known).for_each(|(text, _)| eprintln!("{text}"));
    for (peers, [alike, unlike]) in counts.into_inner().expect("no panic") {
        eprintln!("{peers}: {} scenarios, {unlike} of them otherwise than with two Dovecots", alike + unlike);
    }
    let new: Vec<&str> = told.iter().filter(|(_, known)| !known).map(|(text, _)| text.as_str()).collect();
    assert!(new.is_empty(), "{} of {}:\n{}", new.len(), cases.len(), new.join("\n"));
}

/// The scenarios that docs/dovecot-protocol.md says end otherwise with one Dovecot, and whether that is said of mixed formats only; those of a 2.4 beside one. A
/// name that begins with `-` has the first word of the one before it.
fn documented_with_dovecot() -> BTreeMap<String, bool> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/dovecot-protocol.md"))
        .expect("read");
    let headings = if is_24() { &["| scenario |", "| scenario, 2.4 |"][..] } else { &["| scenario |"] };
    let mut documented = BTreeMap::new();
    for heading in headings {
        let rows = text.lines().skip_while(|line| !line.starts_with(heading)).skip(2);
        for row in rows.take_while(|line| line.starts_with('|')) {
            let cell = row.split('|').nth(1).expect("a first cell");
            let mixed = cell.contains("mixed");
            let mut family = String::new();
            for name in cell.split('`').skip(1).step_by(2) {
                let name = if name.starts_with('-') { format!("{family}{name}") } else { name.to_owned() };
                family = name.split('-').next().unwrap_or_default().to_owned();
                documented.insert(name, mixed);
            }
        }
    }
    documented
}

/// The table of differences with one Dovecot names scenarios that there are, and none that every run shows to end alike.
#[test]
fn each_difference_with_one_dovecot_is_a_scenario() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/oracle");
    let (documented, names) = (documented_with_dovecot(), names(&fixtures));
    let unknown: Vec<&String> = documented.keys().filter(|name| !names.contains(name)).collect();
    assert!(unknown.is_empty() && !documented.is_empty(), "{unknown:?}");
    let alike: Vec<&&str> =
        WITH_DOVECOT.iter().filter(|name| documented.get(**name) == Some(&false)).collect();
    assert!(alike.is_empty() || is_24(), "{alike:?}");
}

fn asked_for(peers: Vec<Peers>, names: &[String]) -> Vec<Case> {
    let only = std::env::var("DSYNC_ORACLE_ONLY").unwrap_or_default();
    let names = names.iter().filter(|name| only.split(',').any(|part| name.contains(part)));
    let names: Vec<&String> = names.collect();
    peers.into_iter().flat_map(|peers| names.iter().map(move |name| ((*name).clone(), peers))).collect()
}

/// What differs from two Dovecots in either role, and what was complained of; `None`: it cannot be run so. `live`: from two that are run now, not from what was
/// recorded.
fn with_one_dovecot(fixtures: &Path, programs: &Path, case: &Case, live: bool) -> Option<Vec<String>> {
    let (name, Peers { formats, way }) = case;
    let file = fixtures.join(format!("{name}.json"));
    let setup = |ends, transport| Setup { ends, transport, formats: *formats };
    if !scenario::suits(&file, setup(Ends::WeCall, *way)) {
        assert!(live, "{name} cannot be run as {formats:?} {way:?}");
        return None;
    }
    let run = |ends, way| {
        std::panic::catch_unwind(|| scenario::run_as(&file, programs, setup(ends, way))).map_err(drop)
    };
    let mut lines = Vec::new();
    let expected = if live {
        run(Ends::Dovecots, Transport::Pipe).map(|seen| {
            lines.extend(seen.complaints.iter().map(|line| format!("  two Dovecots: {line}")));
            seen.text
        })
    } else {
        fs::read_to_string(fixtures.join(format!("{name}.dovecot"))).map_err(drop)
    };
    for ends in [Ends::WeCall, Ends::DovecotCalls] {
        let (Ok(seen), Ok(expected)) = (run(ends, *way), &expected) else {
            lines.push(format!("  {ends:?}: could not be run"));
            continue;
        };
        lines.extend(seen.complaints.iter().map(|line| format!("  {ends:?}: {line}")));
        lines.extend(difference(expected, &seen.text).map(|what| format!("  {ends:?}: {what}")));
    }
    Some(lines)
}
