//! The manual page's conversion without downtime: a user's mail becomes mdbox while mail is delivered and IMAP clients work with it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use dsync_tests::dovecot::{Dovecot, PASSWORD, Service, installed};
use dsync_tests::imap::{Imap, Response};
use dsync_tests::installation::program;
use dsync_tests::programs::programs;

/// Where the mail is in the end.
const NEW: &str = "mdbox:~/mdbox";
/// How long users work before, between and after the steps.
const PAUSE: Duration = Duration::from_millis(700);
/// Runs until both are equal, when nobody is at work any more.
const LAST_RUNS_MAX: usize = 3;
/// A session that was ended is begun again within this time.
const AWAY_MAX: Duration = Duration::from_secs(20);

#[test]
fn maildir_becomes_mdbox_while_mail_comes_and_clients_work() {
    convert("maildir:~/Maildir");
}

#[test]
fn mbox_becomes_mdbox_while_mail_comes_and_clients_work() {
    convert("mbox:~/mail:INBOX=~/mail/inbox");
}

/// What became of a message, as the server said.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Fate {
    There {
        flagged: bool,
    },
    Gone,
    /// The session ended before the answer came.
    Unknown,
}

/// What users and the mail server share.
#[derive(Default)]
struct Shared {
    leave: AtomicBool,
    /// Sessions that were ended from outside.
    kicked: AtomicUsize,
    messages: Mutex<BTreeMap<String, Fate>>,
    /// Held while somebody acts on a message, and during the run that meets users in the new place: it gives messages other UIDs, and who acts on the old
    /// one has acted on nothing. And where new mail has taken a UID since that run has looked, what it brings gets another one; expunged before it looks
    /// again, such a message comes back.
    acting: Mutex<()>,
}

impl Shared {
    fn learn(&self, id: &str, fate: Fate) {
        self.messages.lock().expect("not poisoned").insert(id.to_owned(), fate);
    }

    fn leave(&self) -> bool {
        self.leave.load(SeqCst)
    }
}

/// Lets the users leave, also when the test fails.
struct Leave<'a>(&'a Shared);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.0.leave.store(true, SeqCst);
    }
}

/// The programs, run by an administrator who has the user's rights.
struct Admin {
    dovecot: Dovecot,
    dsync: PathBuf,
    conf: PathBuf,
}

impl Admin {
    /// A run as the page writes it; 2 says that mail came meanwhile.
    fn dsync(&self, words: &str) -> i32 {
        let mut command = self.dovecot.as_user(&self.dsync);
        let output = command.arg("-c").arg(&self.conf).args(words.split(' ')).output().expect("runs");
        let text = String::from_utf8_lossy(&output.stderr);
        let status = output.status.code().expect("not killed");
        assert!(status == 0 && text.is_empty() || status == 2, "{words}: {status}: {text}");
        status
    }

    fn doveadm(&self, words: &[&str]) -> String {
        let mut command = self.dovecot.as_user(Path::new("/usr/bin/doveadm"));
        let output = command.arg("-c").arg(&self.conf).args(words).output().expect("runs");
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The messages of an mbox whose flags Dovecot has set back to what the file says, by its own log: with mbox it does so, without any help of ours,
    /// when it finds the file changed while a session asks for a flag ([`mbox`](super::mbox)).
    fn undone(&self, mail: &Path) -> BTreeSet<String> {
        let (mut undone, logs) = (BTreeSet::new(), mail.join(".imap/INBOX"));
        let Ok(inbox) = fs::read(mail.join("inbox")) else { return undone };
        let mut uids = BTreeSet::new();
        for log in ["dovecot.index.log.2", "dovecot.index.log"].map(|name| logs.join(name)) {
            let dump =
                if log.exists() { self.doveadm(&["dump", &log.to_string_lossy()]) } else { String::new() };
            // ` - uids=7-8 (flags +80-1f, …`: all flags are replaced. Ours adds and removes single ones.
            for line in dump.lines().filter(|line| line.contains("-1f, ")) {
                let range = line.split_once("uids=").and_then(|(_, rest)| rest.split_once(' '));
                let range = range.and_then(|(range, _)| range.split_once('-'));
                let (from, to) = range.expect("a range");
                uids.extend(from.parse::<u32>().expect("a UID")..=to.parse().expect("a UID"));
            }
        }
        let mut id = String::new();
        for line in String::from_utf8_lossy(&inbox).lines() {
            if let Some(text) = line.strip_prefix("X-Id: ") {
                text.clone_into(&mut id);
            } else if let Some(uid) = line.strip_prefix("X-UID: ")
                && uid.trim().parse().is_ok_and(|uid: u32| uids.contains(&uid))
            {
                undone.insert(id.clone());
            }
        }
        undone
    }

    /// Delivers a message as a mail server does; it tries again if it is told to.
    fn deliver(&self, id: &str) {
        let mut command = self.dovecot.as_user(&program("dovecot-lda"));
        command.arg("-c").arg(&self.conf).args(["-d", "alice"]).stdin(Stdio::piped());
        let mut child = command.spawn().expect("starts");
        child.stdin.take().expect("piped").write_all(text(id).as_bytes()).expect("written");
        assert!(child.wait().expect("ends").success(), "{id} was not delivered");
    }
}

fn convert(old: &str) {
    if !installed() {
        return;
    }
    let dir = tempfile::tempdir().expect("made");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).expect("set");
    let dovecot = Dovecot::new(dir.path());
    dovecot.own(&dir.path().join("home"));
    let service = Service::start(&dovecot, dir.path(), old, "unused");
    let dsync = dir.path().join("dsync");
    fs::copy(programs().join("dsync"), &dsync).expect("copied");
    let admin = Admin { dovecot, dsync, conf: service.conf() };
    let last = format!("sync -u alice {old}");
    let shared = Shared::default();
    for n in 0..40 {
        let id = format!("old-{n}");
        admin.deliver(&id);
        shared.learn(&id, Fate::There { flagged: false });
    }
    let undone = thread::scope(|scope| {
        let leave = Leave(&shared);
        let users = ["one", "two"].map(|name| {
            let (shared, port) = (&shared, service.imap());
            scope.spawn(move || work(name, port, shared))
        });
        let (admin, shared) = (&admin, &shared);
        let server = scope.spawn(move || {
            for n in (0..).take_while(|_| !shared.leave()) {
                let id = format!("delivered-{n}");
                admin.deliver(&id);
                shared.learn(&id, Fate::There { flagged: false });
                thread::sleep(Duration::from_millis(30));
            }
        });
        thread::sleep(PAUSE);
        // 1. once to do the initial conversion; 2. again, for what happened meanwhile.
        admin.dsync(&format!("sync -u alice {NEW}"));
        thread::sleep(PAUSE);
        admin.dsync(&format!("sync -u alice {NEW}"));
        // 3. The userdb, and its cache.
        service.set_extra_fields(&format!("userdb_mail={NEW}"));
        admin.doveadm(&["auth", "cache", "flush"]);
        // 4. Sessions that still use the old location are ended.
        thread::sleep(PAUSE);
        let listed = admin.doveadm(&["who", "-1", "alice"]);
        assert_eq!(listed.lines().filter(|line| line.starts_with("alice")).count(), 2, "{listed}");
        admin.doveadm(&["kick", "alice"]);
        let undone = admin.undone(&dir.path().join("home/mail"));
        // 5. Once more, for what came last. Users are at work in the new place by now.
        {
            let _still = shared.acting.lock().expect("not poisoned");
            admin.dsync(&last);
        }
        thread::sleep(PAUSE);
        drop(leave);
        users.into_iter().for_each(|user| user.join().expect("a user"));
        server.join().expect("the mail server");
        undone
    });
    assert!((0..LAST_RUNS_MAX).any(|_| admin.dsync(&last) == 0), "not equal after {LAST_RUNS_MAX} runs");
    assert!(shared.kicked.into_inner() >= 2, "no session was ended");
    let mut found: BTreeMap<String, Vec<bool>> = BTreeMap::new();
    let mut imap = Imap::log_in(service.imap(), "alice", PASSWORD).expect("logs in");
    for (id, flagged) in look(&mut imap).expect("looks") {
        found.entry(id).or_default().push(flagged);
    }
    let messages = shared.messages.into_inner().expect("not poisoned");
    for (id, fate) in &messages {
        let found = found.remove(id).unwrap_or_default();
        // As before: not flagged, and so not expunged either.
        let by_dovecot = undone.contains(id) && found == [false];
        let right = match fate {
            _ if by_dovecot => true,
            Fate::There { flagged } => found == [*flagged],
            Fate::Gone => found.is_empty(),
            Fate::Unknown => found.len() <= 1,
        };
        assert!(right, "{id}: {fate:?}, found {found:?}");
    }
    assert!(found.is_empty(), "nobody knows {found:?}");
    let count = |fate: fn(&Fate) -> bool| messages.values().filter(|known| fate(known)).count();
    let kept = count(|fate| matches!(fate, Fate::There { .. }));
    let (gone, unknown) = (count(|fate| *fate == Fate::Gone), count(|fate| *fate == Fate::Unknown));
    eprintln!("{old}: {kept} kept, {gone} expunged, {unknown} not known, {} undone by Dovecot", undone.len());
    assert!(kept > 60 && gone > 3 && unknown < 5, "{kept} kept, {gone} expunged, {unknown} not known");
    let files = fs::read_dir(dir.path().join("home/mdbox/storage")).expect("an mdbox");
    assert!(files.flatten().any(|file| file.file_name().to_string_lossy().starts_with("m.")));
}

fn text(id: &str) -> String {
    format!(
        "From: a@example.org\nMessage-ID: <{id}@example.org>\nX-Id: {id}\nSubject: {id}\n\nText of {id}.\n"
    )
}

/// A client that saves, flags and expunges messages of its own, reads all, and comes back when its session is ended.
fn work(name: &str, port: u16, shared: &Shared) {
    let mut made = 0;
    let mut own: Vec<String> = Vec::new();
    let mut away = Instant::now();
    while !shared.leave() {
        let ended = Imap::log_in(port, "alice", PASSWORD).and_then(|mut imap| {
            away = Instant::now();
            while !shared.leave() {
                turn(name, &mut imap, shared, &mut made, &mut own)?;
                away = Instant::now();
                thread::sleep(Duration::from_millis(20));
            }
            Ok(())
        });
        if let Err(reason) = ended {
            assert!(away.elapsed() < AWAY_MAX, "{name} cannot come back: {reason}");
            shared.kicked.fetch_add(1, SeqCst);
            thread::sleep(Duration::from_millis(100));
        }
    }
}

/// Saves one message, flags every second and expunges every third; the session's end is an error.
fn turn(
    name: &str,
    imap: &mut Imap,
    shared: &Shared,
    made: &mut usize,
    own: &mut Vec<String>,
) -> Result<(), String> {
    *made += 1;
    let id = format!("{name}-{made}");
    let message = text(&id).replace('\n', "\r\n");
    shared.learn(&id, Fate::Unknown);
    imap.try_command(&format!("APPEND INBOX {{{}+}}\r\n{message}", message.len()))?;
    shared.learn(&id, Fate::There { flagged: false });
    own.push(id);
    let mut seen: Vec<String> = look(imap)?.into_iter().map(|(id, _)| id).collect();
    seen.sort_unstable();
    let twice = seen.windows(2).find(|pair| pair[0] == pair[1]);
    assert_eq!(twice, None, "a message is there twice");
    let (flags, expunges) = (made.is_multiple_of(2), made.is_multiple_of(3));
    let Some(id) = (flags || expunges).then(|| own.remove(own.len() / 2)) else { return Ok(()) };
    let _acting = shared.acting.lock().expect("not poisoned");
    // Not there: it is still in the old place, and comes with the last run.
    let Some(uid) = uid_of(imap, &id)? else { return Ok(()) };
    shared.learn(&id, Fate::Unknown);
    if expunges {
        imap.try_command(&format!("UID STORE {uid} +FLAGS.SILENT (\\Deleted)"))?;
        imap.try_command(&format!("UID EXPUNGE {uid}"))?;
        shared.learn(&id, Fate::Gone);
    } else {
        imap.try_command(&format!("UID STORE {uid} +FLAGS.SILENT (\\Flagged)"))?;
        shared.learn(&id, Fate::There { flagged: true });
    }
    Ok(())
}

/// All messages, and whether they are flagged.
fn look(imap: &mut Imap) -> Result<Vec<(String, bool)>, String> {
    imap.try_command("SELECT INBOX")?;
    let fetched = imap.try_command("FETCH 1:* (FLAGS BODY.PEEK[HEADER.FIELDS (X-Id)])");
    let named = |response: Response| {
        let header = String::from_utf8_lossy(response.literals.first()?).into_owned();
        let id = header.trim().strip_prefix("X-Id: ")?.to_owned();
        Some((id, response.text.contains("\\Flagged")))
    };
    Ok(fetched?.into_iter().filter_map(named).collect())
}

fn uid_of(imap: &mut Imap, id: &str) -> Result<Option<u32>, String> {
    let found = imap.try_command(&format!("UID SEARCH HEADER X-Id {id}"))?;
    let line = found.iter().find_map(|response| response.text.strip_prefix("* SEARCH"));
    let uids: Vec<u32> =
        line.unwrap_or_default().split_whitespace().filter_map(|uid| uid.parse().ok()).collect();
    // The search is for a part of the header: `one-1` is in `one-10` too.
    for uid in uids {
        let fetched = imap.try_command(&format!("UID FETCH {uid} (BODY.PEEK[HEADER.FIELDS (X-Id)])"))?;
        let exact = format!("X-Id: {id}");
        if fetched.iter().flat_map(|r| &r.literals).any(|l| String::from_utf8_lossy(l).trim() == exact) {
            return Ok(Some(uid));
        }
    }
    Ok(None)
}
