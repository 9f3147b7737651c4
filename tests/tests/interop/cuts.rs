//! Sessions with a Dovecot that are cut off, or of which one end is killed, after any number of bytes in either direction: the next runs bring everything
//! to both ends, nothing that nobody expunged is gone, nothing is there twice (but for what a Dovecot that was killed has twice).
//!
//! A seed settles the accounts (`accounts`) and the cuts (`breaking`). What is cut off is not what it would have been: how far the other direction got by
//! then depends on the machine. The verdict never does.
//!
//! `DSYNC_CUTS=1000..2000` tries these seeds.

#[path = "cuts/accounts.rs"]
mod accounts;
#[path = "cuts/breaking.rs"]
mod breaking;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;

use dsync_tests::dovecot::installed;
use dsync_tests::interop::World;
use dsync_tests::peers::Ends;
use dsync_tests::world::Dice;

use self::accounts::{Listed, Message};
use self::breaking::{Blow, Cut};

const FORMATS: [&str; 3] = ["maildir", "sdbox", "mdbox"];
/// Cuts of the accounts of one seed.
const CUTS: usize = 8;
/// Runs after a cut until both ends agree.
const RUNS_MAX: usize = 4;

/// What found something once: mail that a Dovecot had not got, below copies with one GUID that it had, was gone at both ends (121, 145, 1151); of two copies one, as
/// the Dovecot had expunged another message under its UID once, and told that without a GUID (4066); a mirror here that was cut off had what it had to renumber, and
/// lacked what was to come below, so that a two-way run removed that from its source (6368).
const SEEDS: [u64; 5] = [121, 145, 1151, 4066, 6368];

#[test]
fn cut_anywhere_nothing_is_lost_and_nothing_is_doubled() {
    if !installed() {
        return;
    }
    let seeds: Vec<u64> = match std::env::var("DSYNC_CUTS") {
        Err(_) => SEEDS.to_vec(),
        Ok(range) => {
            let (from, to) = range.split_once("..").expect("FROM..TO");
            (from.parse().expect("a seed")..to.parse().expect("a seed")).collect()
        }
    };
    let world = World::new();
    let mut failures = String::new();
    for seed in seeds {
        let failed = Case::new(&world, seed).try_cuts();
        eprint!("{seed} tried\n{failed}");
        failures += &failed;
    }
    assert!(failures.is_empty(), "{failures}");
}

/// Messages of both ends under the same UIDs get new ones, in the order of their GUIDs. All of ours are on their way and all of the Dovecot's are here when
/// it hears no more: it has renumbered its own up to the highest UID then, and lacks some of ours below that.
#[test]
fn nothing_is_durable_here_above_what_a_dovecot_has_not_got_yet() {
    if !installed() {
        return;
    }
    let world = World::new();
    for ends in [Ends::WeCall, Ends::DovecotCalls] {
        let mut case = Case {
            world: &world,
            dice: Dice::new(7),
            seed: 7,
            ends,
            mode: &["sync"],
            next: &["sync"],
            formats: ["sdbox", "sdbox"],
            gone: BTreeSet::new(),
        };
        case.clear();
        let ours = usize::from(ends == Ends::DovecotCalls);
        for end in 0..2 {
            let messages = (1..=12).map(|uid| Message {
                uid,
                guid: format!("{:016x}{uid:016x}", case.dice.roll(u64::MAX)),
                subject: format!("{end}.{uid}"),
                size: if end == ours { 1_000 } else { 10 },
            });
            let inbox = Listed { messages: messages.collect(), uid_next: 13 };
            let raw =
                case.raw(["raw-a", "raw-b"][end], &[inbox, Listed { messages: Vec::new(), uid_next: 1 }]);
            world.doveadm(&raw, &format!("backup|{}", case.location(end)));
        }
        case.keep();
        let had = [0, 1].map(|end| case.held(end));
        let whole = case.whole();
        for tenth in 5..=9 {
            case.restore();
            let to_called = ends == Ends::WeCall;
            let cut = Cut { to_called, bytes: whole[usize::from(!to_called)] * tenth / 10, blow: Blow::End };
            case.cut(cut);
            let [settled, _] = case.settle(&["sync"]).expect("settled");
            let all: Held = had.iter().flatten().map(|(key, count)| (key.clone(), *count)).collect();
            assert_eq!(difference(&all, &settled), "", "{ends:?} {cut:?} of {whole:?}");
        }
    }
}

/// A mailbox and a subject.
type Key = (String, String);

/// How often each subject is in each mailbox.
type Held = BTreeMap<Key, usize>;

/// Two accounts, and how they are synchronised.
struct Case<'a> {
    world: &'a World,
    dice: Dice,
    seed: u64,
    ends: Ends,
    mode: &'static [&'static str],
    /// What the runs after a cut do.
    next: &'static [&'static str],
    formats: [&'static str; 2],
    /// What a user at an end expunged, or moved away, of what both had.
    gone: BTreeSet<Key>,
}

impl<'a> Case<'a> {
    fn new(world: &'a World, seed: u64) -> Case<'a> {
        let mut dice = Dice::new(seed);
        let ends = [Ends::WeCall, Ends::DovecotCalls][dice.roll(2) as usize];
        let mode: &[&str] = match (dice.roll(16), ends) {
            // The other way, a Dovecot that has something of its own makes its mailbox anew, and ends with an error.
            (0, Ends::WeCall) => &["backup", "-R"],
            (0, _) => &["backup"],
            (1, _) => &["sync", "-1"],
            (2, _) => &["sync", "-1", "-R"],
            _ => &["sync"],
        };
        let formats = [(); 2].map(|()| FORMATS[dice.roll(3) as usize]);
        let next: &[&str] = if Dice::new(!seed).roll(2) == 0 { &["sync"] } else { mode };
        let mut case = Case { world, dice, seed, ends, mode, next, formats, gone: BTreeSet::new() };
        case.clear();
        case.prepare();
        case
    }

    fn location(&self, end: usize) -> String {
        self.world.location(self.formats[end], ["a", "b"][end])
    }

    /// Removes what is left of other accounts.
    fn clear(&self) {
        for name in ["a", "b", "a-before", "b-before", "raw-a", "raw-b"] {
            let _ = fs::remove_dir_all(self.world.path(name));
        }
    }

    fn keep(&self) {
        for name in ["a", "b"] {
            self.world.copy(name, &format!("{name}-before"));
        }
    }

    fn restore(&self) {
        for name in ["a", "b"] {
            let _ = fs::remove_dir_all(self.world.path(name));
            self.world.copy(&format!("{name}-before"), name);
        }
    }

    fn held(&self, end: usize) -> Held {
        let text = self.world.doveadm(&self.location(end), "-f|tab|fetch|mailbox hdr.subject|all");
        let mut held = Held::new();
        for line in text.lines().skip(1) {
            let (mailbox, subject) = line.split_once('\t').expect("two fields");
            *held.entry((mailbox.to_owned(), subject.to_owned())).or_default() += 1;
        }
        held
    }

    /// Runs until that succeeds.
    fn settle(&self, mode: &[&str]) -> Result<[Held; 2], String> {
        let (a, b) = (self.location(0), self.location(1));
        let mut last = String::new();
        for _ in 0..RUNS_MAX {
            let (code, text) = self.world.talk(self.ends, mode, &a, &b);
            last = format!("{code} {text}");
            if text.contains("Panic") || text.contains("panicked") {
                return Err(last);
            }
            if code == 0 {
                return Ok([0, 1].map(|end| self.held(end)));
            }
        }
        Err(format!("no run succeeds: {last}"))
    }

    /// The next cut, which ends one direction or kills an end.
    fn next_cut(&mut self, whole: [u64; 2]) -> Cut {
        let to_called = self.dice.roll(2) == 0;
        let all = whole[usize::from(!to_called)];
        // Most of them among bodies and what follows.
        let from = if self.dice.roll(4) == 0 { 0 } else { all / 3 };
        let bytes = from + self.dice.roll(all - from + 1);
        let mut blow = [Blow::End, Blow::End, Blow::KillsCaller, Blow::KillsCalled, Blow::KillsBoth]
            [self.dice.roll(5) as usize];
        let (theirs, kills) = match self.ends {
            Ends::WeCall => (1, [Blow::KillsCalled, Blow::KillsBoth]),
            _ => (0, [Blow::KillsCaller, Blow::KillsBoth]),
        };
        if self.formats[theirs] == "mdbox" && kills.contains(&blow) {
            // Killed in the middle of a commit, its mdbox is rebuilt, with what was saved there twice.
            blow = Blow::End;
        }
        Cut { to_called, bytes, blow }
    }

    /// What fails.
    fn try_cuts(mut self) -> String {
        let Case { seed, ends, mode, next, formats, .. } = self;
        let name = format!("seed {seed} {ends:?} {mode:?} {next:?} {formats:?}");
        let had = [0, 1].map(|end| self.held(end));
        let whole = self.whole();
        let expected = match self.settle(mode).and_then(|_| self.settle(next)) {
            Ok(expected) => expected,
            Err(error) => return format!("{name}: not cut: {error}\n"),
        };
        let mut failures = String::new();
        let kept = self.kept(&had);
        for error in self.wrong(&expected, &expected, &kept, &had, false) {
            writeln!(failures, "{name}: not cut: {error}").expect("a string");
        }
        for _ in 0..CUTS {
            self.restore();
            let cut = self.next_cut(whole);
            let (code, said) = self.cut(cut);
            let then = [0, 1].map(|end| self.held(end));
            let what = format!("{name}: {cut:?} of {whole:?} ({code})");
            if said.contains("panicked") {
                writeln!(failures, "{what}: {said}").expect("a string");
            }
            let source = self.source();
            let lost = then.iter().zip(&had).enumerate().any(|(end, (then, had))| {
                let is_kept = |key: &Key| kept.contains_key(key) && (source.is_none() || source == Some(end));
                had.keys().any(|key| is_kept(key) && !then.contains_key(key))
            });
            if lost {
                writeln!(failures, "{what}: lost at once").expect("a string");
            }
            match self.settle(next) {
                Err(error) => writeln!(failures, "{what}: {error}").expect("a string"),
                Ok(settled) => {
                    for error in self.wrong(&expected, &settled, &kept, &had, cut.kills_dovecot(ends)) {
                        writeln!(failures, "{what}: {error}").expect("a string");
                    }
                }
            }
        }
        failures
    }

    /// The end that a one-way session copies.
    fn source(&self) -> Option<usize> {
        (self.mode != ["sync"]).then(|| usize::from(self.mode.contains(&"-R")))
    }

    /// How often each message is to be there in the end, at least: what nobody expunged. Of a mirror, what its source had.
    fn kept(&self, had: &[Held; 2]) -> Held {
        let mut kept = Held::new();
        for (end, held) in had.iter().enumerate() {
            if self.mode[0] == "backup" && self.source() != Some(end) {
                continue;
            }
            for (key, count) in held.iter().filter(|(key, _)| !self.gone.contains(key)) {
                let most = kept.entry(key.clone()).or_default();
                *most = (*most).max(*count);
            }
        }
        kept
    }

    /// What is wrong with what the ends have in the end.
    fn wrong(
        &self,
        expected: &[Held; 2],
        settled: &[Held; 2],
        kept: &Held,
        had: &[Held; 2],
        dovecot_killed: bool,
    ) -> Vec<String> {
        let mut wrong = Vec::new();
        let receiver = self.source().map_or(0, |source| 1 - source);
        if self.next[0] != "sync" || self.next == ["sync"] {
            // In a mirror, and both ways.
            if settled[0] != settled[1] {
                wrong.push(format!("the ends differ: {}", difference(&settled[0], &settled[1])));
            }
        }
        if let Some(source) = self.source().filter(|_| self.next != ["sync"])
            && settled[source] != had[source]
        {
            wrong.push(format!("the source: {}", difference(&had[source], &settled[source])));
        }
        let (expected, settled) = (&expected[receiver], &settled[receiver]);
        let mut least = settled.clone();
        for (key, count) in kept {
            let found = least.entry(key.clone()).or_default();
            *found = (*found).max(*count);
        }
        if *settled != least {
            wrong.push(format!("lost: {}", difference(&least, settled)));
        }
        // What was expunged at the end of a list may come back (docs/dovecot-protocol.md), cut or not; once.
        let [mut expected, mut settled] = [expected.clone(), settled.clone()];
        for key in &self.gone {
            expected.remove(key);
            if settled.get(key).is_none_or(|count| *count < 2) {
                settled.remove(key);
            }
        }
        if self.mode[0] == "backup" && self.next == ["sync"] {
            // How much of the mirror's own has gone by then is chance, and copies of one GUID with it.
            let most = |key: &Key| had.iter().map(|held| count(held, key)).max().unwrap_or(0);
            settled.retain(|key, count| kept.contains_key(key) || *count > most(key));
            expected.retain(|key, _| kept.contains_key(key));
            for (key, found) in &mut settled {
                if *found <= most(key) {
                    *found = (*found).min(count(&expected, key));
                }
            }
        }
        if dovecot_killed {
            // It renumbers by copies, and removes what it copied later: killed in between, it has both.
            for (key, found) in &mut settled {
                let usual = count(&expected, key);
                if (usual..=2 * usual).contains(found) {
                    *found = usual;
                }
            }
        }
        if settled != expected {
            wrong.push(difference(&expected, &settled));
        }
        wrong
    }
}

fn count(held: &Held, key: &Key) -> usize {
    held.get(key).copied().unwrap_or(0)
}

/// What the second one lacks, and what it has more.
fn difference(expected: &Held, found: &Held) -> String {
    let keys = expected.keys().chain(found.keys().filter(|key| !expected.contains_key(*key)));
    let lines = keys
        .filter(|key| count(expected, key) != count(found, key))
        .map(|key| format!("{}/{} {} for {}", key.0, key.1, count(found, key), count(expected, key)));
    lines.collect::<Vec<_>>().join(", ")
}
