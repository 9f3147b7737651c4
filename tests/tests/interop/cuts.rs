//! Sessions with a Dovecot that are cut off, or of which one end is killed, after any number of bytes in either direction: the next runs bring everything
//! to both ends, nothing that nobody expunged is gone, nothing is there twice.
//!
//! A seed settles the accounts and the cuts: messages of both ends under the same UIDs, copies with one GUID, expunges, moves. What is cut off is not what
//! it would have been: how far the other direction got by then depends on the machine. The verdict never does.
//!
//! `DSYNC_CUTS=1000..2000` tries these seeds.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::time::{Duration, Instant};

use dsync_tests::dovecot::installed;
use dsync_tests::interop::World;
use dsync_tests::maildirs::Account;
use dsync_tests::peers::Ends;
use dsync_tests::world::Dice;

const MAILBOXES: [&str; 2] = ["INBOX", "Work"];
const FORMATS: [&str; 3] = ["maildir", "sdbox", "mdbox"];
/// Cuts of the accounts of one seed.
const CUTS: usize = 8;
/// Runs after a cut until both ends agree.
const RUNS_MAX: usize = 4;

/// What found something once: mail that a Dovecot had not got, below copies with one GUID that it had, was gone at both ends (121, 145, 1151).
const SEEDS: [u64; 3] = [121, 145, 1151];

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
            formats: ["sdbox", "sdbox"],
            gone: Vec::new(),
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
            let settled = case.settle(&["sync"]).expect("settled");
            let all: Held = had.iter().flatten().map(|(key, count)| (key.clone(), *count)).collect();
            assert_eq!(difference(&all, &settled), "", "{ends:?} {cut:?} of {whole:?}");
        }
    }
}

/// What happens to a session after so many bytes.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Blow {
    /// Whoever hears these bytes sees the end of the stream.
    End,
    KillsCaller,
    KillsCalled,
    KillsBoth,
}

#[derive(Clone, Copy, Debug)]
struct Cut {
    /// Whose bytes are counted: what the called end hears, or what the calling one does.
    to_called: bool,
    bytes: u64,
    blow: Blow,
}

impl Cut {
    fn script(self, world: &World, other: &str) -> String {
        let Cut { to_called, bytes, blow } = self;
        let [called, passing] =
            ["called-pid", "passing-pid"].map(|name| world.path(name).display().to_string());
        // `dd` passes each byte on at once.
        let started = |pid: &str, words: &str| format!("sh -c 'echo $$ > \"$0\"; exec \"$@\"' {pid} {words}");
        let other = started(&called, other);
        let wait = |pid: &str| format!("while ! [ -s {pid} ]; do :; done");
        let counted = format!("dd bs=1 count={bytes} status=none");
        let after = match blow {
            Blow::End if to_called => ":".to_owned(),
            // Both directions end.
            Blow::End => format!("{}; kill `cat {passing}`", wait(&passing)),
            Blow::KillsCaller => "kill -9 $PPID".to_owned(),
            Blow::KillsCalled => format!("{}; kill -9 `cat {called}`", wait(&called)),
            Blow::KillsBoth => format!("{}; kill -9 $PPID `cat {called}`", wait(&called)),
        };
        let (first, rest) = if to_called {
            (format!("{{ {counted}; {after}; }}"), other)
        } else {
            let kept = started(&passing, "dd bs=64k status=none");
            (kept, format!("{{ {other}; kill `cat {passing}`; }} | {{ {counted}; {after}; }}"))
        };
        format!("rm -f {called} {passing}\n{}", piped(world, &first, &format!("{{ {rest}; }} 2> /dev/null")))
    }
}

/// A pipeline of which nobody else holds an end, so that who closes one is seen at once. It is over when all but its first part are.
fn piped(world: &World, first: &str, rest: &str) -> String {
    let pipe = world.path("fifo");
    let pipe = pipe.display();
    format!(
        "rm -f {pipe}\nmkfifo {pipe}\nexec 3<&0\n{first} <&3 3<&- > {pipe} &\n\
         {{ {rest}; }} < {pipe} 3<&- &\nexec <&- >&- 3<&-\nwait $!"
    )
}

struct Message {
    uid: u32,
    guid: String,
    subject: String,
    size: usize,
}

/// One mailbox of one end.
#[derive(Default)]
struct Listed {
    messages: Vec<Message>,
    uid_next: u32,
}

/// How often each subject is in each mailbox.
type Held = BTreeMap<(String, String), usize>;

/// Two accounts, and how they are synchronised.
struct Case<'a> {
    world: &'a World,
    dice: Dice,
    seed: u64,
    ends: Ends,
    mode: &'static [&'static str],
    formats: [&'static str; 2],
    /// What the users at the ends expunged, or moved away.
    gone: Vec<(String, String)>,
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
        let mut case = Case { world, dice, seed, ends, mode, formats, gone: Vec::new() };
        case.clear();
        case.prepare();
        case
    }

    fn location(&self, end: usize) -> String {
        self.world.location(self.formats[end], ["a", "b"][end])
    }

    fn prepare(&mut self) {
        let large = self.dice.roll(40) == 0;
        let mut guid = {
            let mut dice = self.dice.clone();
            move || format!("{:016x}{:016x}", dice.roll(u64::MAX), dice.roll(u64::MAX))
        };
        self.dice.roll(2);
        let dice = &mut self.dice;
        let sizes = [(); 2].map(|()| [0, 300, 3_000, 12_000][dice.roll(4) as usize]);
        let mut lists: [[Listed; 2]; 2] = Default::default();
        for (mailbox, ends) in lists.iter_mut().enumerate() {
            let common = dice.roll(25) as u32;
            let mut others: Vec<(u32, String, String)> = Vec::new();
            for (end, list) in ends.iter_mut().enumerate() {
                let mut dice_of_common = Dice::new(self.seed * 2 + mailbox as u64);
                for uid in 1..=common {
                    let guid = format!("{:016x}{uid:016x}", dice_of_common.roll(u64::MAX));
                    let subject = format!("c{mailbox}.{uid}");
                    list.messages.push(Message { uid, guid, subject, size: 10 });
                }
                let mut uid = common + 1;
                if dice.roll(3) == 0 {
                    uid += dice.roll(8) as u32;
                }
                let count = if large && mailbox == end { 2_300 } else { dice.roll(30) as usize };
                for number in 0..count {
                    let size = if large && number < 2_100 { 0 } else { dice.roll(sizes[end] + 1) as usize };
                    let mut new =
                        Message { uid, guid: guid(), subject: format!("n{mailbox}.{end}.{number}"), size };
                    // At one UID of both ends it would say that they were synchronised.
                    let is_here =
                        |guid: &str| others.iter().any(|(at, other, _)| *at == uid && other == guid);
                    let earlier: Vec<_> = others.iter().filter(|(_, guid, _)| !is_here(guid)).collect();
                    if !large && dice.roll(10) == 0 && !earlier.is_empty() {
                        // Another message of either end with the same GUID.
                        let (_, guid, subject) = earlier[dice.roll(earlier.len() as u64) as usize];
                        (new.guid, new.subject) = (guid.clone(), subject.clone());
                    }
                    others.push((uid, new.guid.clone(), new.subject.clone()));
                    list.messages.push(new);
                    uid += 1 + if dice.roll(6) == 0 { dice.roll(4) as u32 } else { 0 };
                }
                list.uid_next = uid + if dice.roll(3) == 0 { dice.roll(12) as u32 } else { 0 };
            }
        }
        let [[a_inbox, b_inbox], [a_work, b_work]] = lists;
        let ends = [[a_inbox, a_work], [b_inbox, b_work]];
        for (end, lists) in ends.iter().enumerate() {
            let raw = self.raw(["raw-a", "raw-b"][end], lists);
            self.world.doveadm(&raw, &format!("backup|{}", self.location(end)));
        }
        self.work(&ends);
        self.keep();
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

    /// A session that is cut off: its exit status, and what was logged.
    fn cut(&self, cut: Cut) -> (i32, String) {
        let (a, b) = (self.location(0), self.location(1));
        self.world.through(self.ends, self.mode, (&a, &b), |other| cut.script(self.world, other))
    }

    /// A Maildir with these UIDs and GUIDs.
    fn raw(&self, name: &str, lists: &[Listed; 2]) -> String {
        let account = Account::new(self.world.path(name));
        for (index, (folder, list)) in ["", "Work"].iter().zip(lists).enumerate() {
            let mut uid_list = format!("3 V1700000001 N{} G{:032x}\n", list.uid_next, 7 + index);
            for message in &list.messages {
                let (uid, guid) = (message.uid, &message.guid);
                let base = format!("17000{uid:05}.M{uid}P1.{name}");
                let subject = &message.subject;
                let text =
                    format!("Subject: {subject}\nMessage-ID: <{guid}@x>\n\n{}\n", "x".repeat(message.size));
                account.deliver(folder, &format!("{base}:2,"), text.as_bytes());
                writeln!(uid_list, "{uid} G{guid} :{base}").expect("a string");
            }
            if list.messages.is_empty() {
                account.deliver(folder, "1.M1P1.none:2,", b"Subject: none\n\n");
                fs::remove_file(account.find(folder, "1.M1P1.none")).expect("removed");
            }
            fs::write(account.folder(folder).join("dovecot-uidlist"), uid_list).expect("written");
        }
        self.world.dovecot.own(&account.root);
        account.location()
    }

    /// What users do at both ends.
    fn work(&mut self, ends: &[[Listed; 2]; 2]) {
        for (end, lists) in ends.iter().enumerate() {
            for (mailbox, list) in MAILBOXES.iter().zip(lists) {
                let mut away: [Vec<u32>; 2] = Default::default();
                for message in &list.messages {
                    let end_of_list = message.uid + 3 > list.uid_next;
                    if self.dice.roll(if end_of_list { 4 } else { 12 }) == 0 {
                        away[usize::from(self.dice.roll(4) == 0)].push(message.uid);
                        self.gone.push(((*mailbox).to_owned(), message.subject.clone()));
                    }
                }
                let [expunged, moved] =
                    away.map(|uids| uids.iter().take(40).map(u32::to_string).collect::<Vec<_>>().join(","));
                let location = self.location(end);
                if !expunged.is_empty() {
                    self.world.doveadm(&location, &format!("expunge|mailbox|{mailbox}|uid|{expunged}"));
                }
                if !moved.is_empty() {
                    let to = if *mailbox == "INBOX" { "Work" } else { "INBOX" };
                    self.world.doveadm(&location, &format!("move|{to}|mailbox|{mailbox}|uid|{moved}"));
                }
            }
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

    /// Runs until both ends are equal, and says what both have.
    fn settle(&self, mode: &[&str]) -> Result<Held, String> {
        let (a, b) = (self.location(0), self.location(1));
        let mut last = String::new();
        for _ in 0..RUNS_MAX {
            let (code, text) = self.world.talk(self.ends, mode, &a, &b);
            last = format!("{code} {text}");
            if text.contains("Panic") || text.contains("panicked") {
                return Err(last);
            }
            if code == 0 {
                return Ok(self.held(usize::from(mode.contains(&"-R"))));
            }
        }
        Err(format!("no run succeeds: {last}"))
    }

    /// How many bytes each end hears in a whole session: the called one, the calling one.
    fn whole(&self) -> [u64; 2] {
        let counts = ["heard-called", "heard-calling"].map(|name| self.world.path(name));
        let [called, calling] = counts.each_ref().map(|path| path.display().to_string());
        let (a, b) = (self.location(0), self.location(1));
        let script = |other: &str| {
            piped(self.world, &format!("dd bs=64k 2> {called}"), &format!("{other} | dd bs=64k 2> {calling}"))
        };
        let (_, text) = self.world.through(self.ends, self.mode, (&a, &b), script);
        let begun = Instant::now();
        counts.map(|path| {
            loop {
                // A doveadm does not wait for all that it started.
                let said = fs::read_to_string(&path).expect("written");
                let count = said.lines().find(|line| line.contains(" bytes"));
                if let Some(count) = count.and_then(|line| line.split(' ').next()?.parse().ok()) {
                    return count;
                }
                assert!(begun.elapsed() < Duration::from_secs(20), "{text}");
                std::thread::sleep(Duration::from_millis(5));
            }
        })
    }

    /// What fails.
    fn try_cuts(mut self) -> String {
        let name = format!("seed {} {:?} {:?} {:?}", self.seed, self.ends, self.mode, self.formats);
        let had = [0, 1].map(|end| self.held(end));
        let whole = self.whole();
        let expected = match self.settle(self.mode) {
            Ok(expected) => expected,
            Err(error) => return format!("{name}: not cut: {error}\n"),
        };
        let mut failures = String::new();
        let one_way = self.mode != ["sync"];
        if !one_way {
            for held in had.iter().flat_map(|held| held.keys()).filter(|held| !self.gone.contains(held)) {
                if !expected.contains_key(held) {
                    writeln!(failures, "{name}: not cut: {held:?} is lost").expect("a string");
                }
            }
        }
        for _ in 0..CUTS {
            self.restore();
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
            let cut = Cut { to_called, bytes, blow };
            let (code, said) = self.cut(cut);
            let then = [0, 1].map(|end| self.held(end));
            let what = format!("{name}: {cut:?} of {whole:?} ({code})");
            let settled = match self.settle(self.mode) {
                Ok(settled) => settled,
                Err(error) => {
                    writeln!(failures, "{what}: {error}").expect("a string");
                    continue;
                }
            };
            if said.contains("panicked") {
                writeln!(failures, "{what}: {said}").expect("a string");
            }
            let ends = [0, 1].map(|end| self.held(end));
            let source = usize::from(self.mode.contains(&"-R"));
            if !one_way && ends[0] != ends[1] {
                writeln!(failures, "{what}: both ends differ: {}", difference(&ends[0], &ends[1]))
                    .expect("a string");
            }
            if one_way && ends[source] != had[source] {
                writeln!(failures, "{what}: the source: {}", difference(&had[source], &ends[source]))
                    .expect("a string");
            }
            if !one_way
                && then.iter().zip(&had).any(|(then, had)| {
                    had.keys().any(|held| expected.contains_key(held) && !then.contains_key(held))
                })
            {
                writeln!(failures, "{what}: lost at once").expect("a string");
            }
            // What was expunged at the end of a list may come back (docs/dovecot-protocol.md), cut or not.
            let [expected, settled] = [&expected, &settled].map(|held| {
                let mut held = held.clone();
                held.retain(|key, _| !self.gone.contains(key));
                held
            });
            if settled != expected {
                writeln!(failures, "{what}: {}", difference(&expected, &settled)).expect("a string");
            }
        }
        failures
    }
}

/// What the second one lacks, and what it has more.
fn difference(expected: &Held, found: &Held) -> String {
    let count = |held: &Held, key: &(String, String)| held.get(key).copied().unwrap_or(0);
    let keys = expected.keys().chain(found.keys().filter(|key| !expected.contains_key(*key)));
    let lines = keys
        .filter(|key| count(expected, key) != count(found, key))
        .map(|key| format!("{}/{} {} for {}", key.0, key.1, count(found, key), count(expected, key)));
    lines.collect::<Vec<_>>().join(", ")
}
