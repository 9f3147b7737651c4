//! IMAP sessions make, rename and subscribe to mailboxes, and move messages between them, while both stores are synchronised.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use dsync_tests::dovecot::{Dovecot, assert_equal, installed};
use dsync_tests::imap::{Imap, quoted};
use dsync_tests::installation::{mail_options, program};
use dsync_tests::world::Dice;

use crate::{DISTURBED_MAX, Kept, LAST_RUNS_MAX, RUNS_UNTIL_KNOWN, SECS, sync};

/// Messages that are moved or whose mailbox is renamed, until it ends.
const CHANGES_MIN: u64 = 10;

#[derive(Default)]
struct Shared {
    over: AtomicBool,
    runs: AtomicU64,
    /// The number of the last run that met no change on its way.
    undisturbed: AtomicU64,
    changes: AtomicU64,
    /// What the server took.
    saved: Mutex<BTreeSet<String>>,
    /// Moves that the server refused: where the mailbox is renamed meanwhile, its copy may be made all the same, and the message stays.
    unmoved: Mutex<BTreeSet<String>>,
    /// Mailboxes that were made.
    made: AtomicU64,
    said: Mutex<Vec<String>>,
}

impl Shared {
    fn say(&self, what: String) {
        self.said.lock().expect("not poisoned").push(what);
    }
}

#[test]
fn folders_of_maildir_with_sdbox() {
    folders("maildir", "sdbox");
}

#[test]
fn folders_of_mdbox_with_maildir() {
    folders("mdbox", "maildir");
}

#[test]
fn folders_of_sdbox_with_mdbox() {
    folders("sdbox", "mdbox");
}

#[test]
fn folders_of_mbox_with_sdbox() {
    folders("mbox", "sdbox");
}

fn folders(one: &str, two: &str) {
    if !installed() {
        return;
    }
    let time = std::env::var("DSYNC_TOGETHER_SECS").map_or(SECS, |secs| secs.parse().expect("seconds"));
    let (dir, dovecot) = Dovecot::beside(&["dsync"]);
    let dir = Kept(dir);
    let dir = dir.0.path();
    let dsync = dir.join("dsync");
    let [a, b] = [(one, "a"), (two, "b")].map(|(format, name)| format!("{format}:{}/{name}", dir.display()));
    // An mbox is a file: nothing can be below it.
    let nests = one != "mbox";
    for mailbox in ["Work", if nests { "Work/Old" } else { "Old" }, "Home"] {
        dovecot.doveadm(&a, &["mailbox", "create", mailbox]);
    }
    let log_path = dir.join("log");
    let log = fs::File::create(&log_path).expect("made");
    let shared = Shared::default();
    assert_eq!(sync(&dovecot, &dsync, &a, &b), 0);
    thread::scope(|scope| {
        let _over = Over(&shared.over);
        let users = [("a1", &a), ("a2", &a), ("b1", &b)].map(|(name, location)| {
            let (shared, dovecot, log) = (&shared, &dovecot, &log);
            let session = move || {
                let mut imap = dovecot.as_user(&program("imap"));
                imap.arg("-c").arg(dovecot.conf()).args(mail_options(location));
                Imap::start_logging(imap, log.try_clone().expect("cloned"))
            };
            scope.spawn(move || User::new(name, Box::new(session), shared, nests).work())
        });
        let begun = Instant::now();
        let enough =
            || begun.elapsed() >= Duration::from_secs(time) && shared.changes.load(SeqCst) >= CHANGES_MIN;
        while !enough() && !users.iter().any(|user| user.is_finished()) {
            let status = sync(&dovecot, &dsync, &a, &b);
            shared.say(format!("run {status}"));
            let run = shared.runs.fetch_add(1, SeqCst) + 1;
            if status == 0 {
                shared.undisturbed.store(run, SeqCst);
            }
        }
        shared.over.store(true, SeqCst);
        users.into_iter().for_each(|user| user.join().expect("a user goes well"));
    });
    let said = || shared.said.lock().expect("not poisoned").join("\n");
    assert!((0..LAST_RUNS_MAX).any(|_| sync(&dovecot, &dsync, &a, &b) == 0), "not equal: {}", said());
    let saved = shared.saved.lock().expect("not poisoned");
    let made = 4 + shared.made.load(SeqCst);
    let views = [&a, &b].map(|location| {
        let rows = dovecot.doveadm(location, &["-f", "tab", "fetch", "hdr.x-id mailbox", "all"]);
        let mut found: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (id, mailbox) in rows.lines().skip(1).filter_map(|row| row.split_once('\t')) {
            found.entry(id).or_default().push(mailbox);
        }
        let lost: Vec<&String> = saved.iter().filter(|id| !found.contains_key(id.as_str())).collect();
        let unmoved = shared.unmoved.lock().expect("not poisoned");
        let double = |(id, mailboxes): &(&&str, &Vec<&str>)| mailboxes.len() > 1 && !unmoved.contains(**id);
        let double: Vec<_> = found.iter().filter(double).collect();
        assert!(lost.is_empty(), "{location}: lost: {lost:?}\n{}", said());
        assert!(double.is_empty(), "{location}: there twice: {double:?}\n{}", said());
        let status = dovecot.doveadm(location, &["-f", "tab", "mailbox", "status", "guid", "*"]);
        let guids: BTreeSet<&str> =
            status.lines().skip(1).filter_map(|row| Some(row.split_once('\t')?.1)).collect();
        assert_eq!(guids.len() as u64, made, "{location}: {status}\n{}", said());
        // An mbox keeps no GUIDs.
        let messages =
            if nests { "uid guid flags date.received text" } else { "uid flags date.received text" };
        dovecot.view_of(location, "guid uidvalidity uidnext messages", messages)
    });
    assert_equal(&views[0], &views[1], "the stores differ");
    let log = fs::read_to_string(&log_path).expect("read");
    let words = ["Error", "Warning", "Panic", "Fatal"];
    // Dovecot says so of a mailbox that was renamed while it saved into it.
    let renamed = ["No such file or directory", "Our dotlock file"];
    let all = said();
    let away: Vec<&str> =
        all.split("RENAME \"").skip(1).filter_map(|rest| Some(rest.split_once('"')?.0)).collect();
    // And so of one that was renamed while it read it.
    let lost = |line: &str| {
        let of = |name: &&str| [":", "/"].iter().any(|end| line.contains(&format!(" Mailbox {name}{end}")));
        line.contains("dbox: Unexpectedly lost uid") && away.iter().any(of)
    };
    let mut lines =
        log.lines().filter(|line| !renamed.iter().any(|words| line.contains(words)) && !lost(line));
    let bad = lines.find(|line| words.iter().any(|word| line.contains(word)));
    assert_eq!(bad, None, "{log}\n{}", said());
    eprintln!(
        "{one} with {two}: {:?} runs, {:?} changes, {} messages",
        shared.runs,
        shared.changes,
        saved.len()
    );
}

/// Lets the users leave, also when the test fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

struct User<'a> {
    name: &'static str,
    session: Box<dyn Fn() -> Imap + Send + 'a>,
    imap: Imap,
    shared: &'a Shared,
    dice: Dice,
    /// Mailboxes may be made below others.
    nests: bool,
    /// What it saved, and after which run it was last put anywhere.
    saved: BTreeMap<String, u64>,
    count: u64,
}

impl<'a> User<'a> {
    fn new(
        name: &'static str,
        session: Box<dyn Fn() -> Imap + Send + 'a>,
        shared: &'a Shared,
        nests: bool,
    ) -> User<'a> {
        let imap = session();
        let dice = Dice::new(name.bytes().fold(7, |sum, byte| sum * 31 + u64::from(byte)));
        User { name, session, imap, shared, dice, nests, saved: BTreeMap::new(), count: 0 }
    }

    fn said(&self, what: String) {
        self.shared.say(format!("{}: {what}", self.name));
    }

    fn work(&mut self) {
        while !self.shared.over.load(SeqCst) {
            let (run, undisturbed) = (self.shared.runs.load(SeqCst), self.shared.undisturbed.load(SeqCst));
            if run <= undisturbed + DISTURBED_MAX {
                self.act(run, undisturbed);
            }
            thread::sleep(Duration::from_millis(20 + self.dice.roll(150)));
        }
    }

    fn act(&mut self, run: u64, undisturbed: u64) {
        let folders = self.folders();
        let folder = folders[self.dice.roll(folders.len() as u64) as usize].clone();
        self.count += 1;
        // No id is the beginning of another.
        let fresh = format!("{}-{:04}", self.name, self.count);
        match self.dice.roll(10) {
            0..4 => {
                let text = format!("X-Id: {fresh}\r\n\r\nThe body of {fresh}.\r\n");
                let command = format!("APPEND {} () {{{}+}}\r\n{text}", quoted(&folder), text.len());
                match self.imap.try_command(&command) {
                    Ok(_) => {
                        self.said(format!("saved {fresh} in {folder}"));
                        self.shared.saved.lock().expect("not poisoned").insert(fresh.clone());
                        self.saved.insert(fresh, run);
                    }
                    Err(no) => self.said(format!("APPEND {fresh} {folder}: {no}")),
                }
            }
            4 => drop(self.tell(&format!("CREATE {}", quoted(&fresh)))),
            5 => {
                let below = format!("{folder}/{fresh}");
                let name =
                    if self.dice.roll(2) == 0 || folder == "INBOX" || !self.nests { &fresh } else { &below };
                if folder != "INBOX" && !name.starts_with(&format!("{folder}/")) {
                    self.shared.changes.fetch_add(1, SeqCst);
                    self.tell(&format!("RENAME {} {}", quoted(&folder), quoted(name)));
                } else {
                    self.tell(&format!("CREATE {}", quoted(name)));
                }
            }
            6 => drop(self.tell(&format!("SUBSCRIBE {}", quoted(&folder)))),
            7 => drop(self.tell(&format!("UNSUBSCRIBE {}", quoted(&folder)))),
            _ => {
                let known = self.saved.iter().filter(|(_, seen)| **seen + RUNS_UNTIL_KNOWN <= undisturbed);
                let known: Vec<String> = known.map(|(id, _)| id.clone()).collect();
                let Some(id) = known.get(self.dice.roll(known.len().max(1) as u64) as usize) else { return };
                self.carry(id, &folders, &folder);
                self.saved.insert(id.clone(), self.shared.runs.load(SeqCst));
            }
        }
    }

    /// Moves a message from wherever it is.
    fn carry(&mut self, id: &str, folders: &[String], to: &str) {
        for from in folders.iter().filter(|from| *from != to) {
            if self.imap.try_command(&format!("SELECT {}", quoted(from))).is_err() {
                continue;
            }
            let found = self.imap.try_command(&format!("UID SEARCH HEADER X-Id {id}"));
            let uid = found
                .iter()
                .flatten()
                .find_map(|line| line.text.strip_prefix("* SEARCH ").map(str::to_owned));
            let moved = uid.is_some();
            if let Some(uid) = uid {
                self.shared.changes.fetch_add(1, SeqCst);
                self.said(format!("{id} from {from}"));
                let uid = uid.split(' ').next().expect("one");
                if !self.tell(&format!("UID MOVE {uid} {}", quoted(to))) {
                    self.shared.unmoved.lock().expect("not poisoned").insert(id.to_owned());
                }
            }
            let _ = self.imap.try_command("UNSELECT");
            if moved {
                return;
            }
        }
    }

    /// Says whether it was done.
    fn tell(&mut self, command: &str) -> bool {
        let answer = self.imap.try_command(command).map(drop);
        if command.starts_with("CREATE") && answer.is_ok() {
            self.shared.made.fetch_add(1, SeqCst);
        }
        self.said(format!("{command}: {answer:?}"));
        answer.is_ok()
    }

    fn folders(&mut self) -> Vec<String> {
        // Dovecot ends a session whose mailbox somebody renames.
        let lines = self.imap.try_command("LIST \"\" *").unwrap_or_else(|_| {
            self.imap = (self.session)();
            self.imap.command("LIST \"\" *")
        });
        let lines = lines.iter().filter(|line| !line.text.contains("\\Noselect"));
        let mut names: Vec<String> = lines
            .filter_map(|line| line.text.rsplit_once(' ').map(|(_, name)| name.trim_matches('"').to_owned()))
            .collect();
        names.retain(|name| !name.is_empty());
        assert!(names.iter().any(|name| name == "INBOX"), "{names:?}");
        names
    }
}
