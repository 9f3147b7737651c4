//! A QRESYNC client that knew the source reconnects to the destination, and is told exactly what changed.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use dsync_tests::dovecot::{Dovecot, installed};
use dsync_tests::formats::Fixture;
use dsync_tests::imap::Imap;
use dsync_tests::maildirs::Account;

const TARGETS: [&str; 5] =
    ["sdbox:%", "mdbox:%", "maildir:%:LAYOUT=fs", "mdbox:%:INDEX=%-index", "mbox:%:INBOX=%/inbox"];

struct World {
    dir: tempfile::TempDir,
    dovecot: Dovecot,
    dsync: PathBuf,
}

impl World {
    fn new() -> World {
        let (dir, dovecot) = Dovecot::beside(&["dsync"]);
        let dsync = dir.path().join("dsync");
        World { dir, dovecot, dsync }
    }

    /// A session of a Dovecot whose mail is there.
    fn session(&self, location: &str) -> Imap {
        Imap::start(self.dovecot.imap(location))
    }

    fn backup(&self, source: &str, target: &str) {
        let mut dsync = self.dovecot.as_user(&self.dsync);
        let output =
            dsync.args(["-c", "/dev/null", "backup", "-m", "INBOX", "--source", source, target]).output();
        let output = output.expect("runs");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && text.is_empty(), "{target}: {:?} {text}", output.status);
    }

    /// What an IMAP session answers to these commands.
    fn imap(&self, location: &str, commands: &str) -> String {
        let mut imap = self.dovecot.imap(location);
        imap.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut imap = imap.spawn().expect("imap runs");
        imap.stdin.take().expect("piped").write_all(commands.as_bytes()).expect("written");
        let output = imap.wait_with_output().expect("ends");
        let complaints = String::from_utf8_lossy(&output.stderr);
        assert!(!complaints.contains("Error") && !complaints.contains("Warning"), "{complaints}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn status(&self, location: &str) -> (String, String) {
        let fields = "uidvalidity highestmodseq";
        let text = self.dovecot.doveadm(location, &["-f", "flow", "mailbox", "status", fields, "INBOX"]);
        let value = |name: &str| {
            let field = text.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
            field.unwrap_or_else(|| panic!("no {name} in {text}")).to_owned()
        };
        (value("uidvalidity"), value("highestmodseq"))
    }
}

#[test]
fn the_destination_tells_exactly_what_changed() {
    if !installed() {
        return;
    }
    let world = World::new();
    let home = world.dir.path().join("account");
    let copied = Command::new("cp").arg("-a").arg(Fixture::unpack("sdbox").home()).arg(&home).status();
    assert!(copied.expect("cp runs").success());
    world.dovecot.own(&home);
    let source = format!("sdbox:{}/sdbox", home.display());
    let targets: Vec<String> = (0..TARGETS.len())
        .map(|i| TARGETS[i].replace('%', &home.join(format!("target{i}")).display().to_string()))
        .collect();
    targets.iter().for_each(|target| world.backup(&source, target));
    let (validity, modseq) = world.status(&source);
    let all = world.dovecot.doveadm(&source, &["search", "mailbox", "INBOX", "all"]);
    let uids: Vec<&str> = all.lines().filter_map(|line| line.split_whitespace().nth(1)).collect();
    let (flagged, gone) = (uids[3], [uids[5], uids[7]]);
    let doveadm = |arguments: &[&str]| drop(world.dovecot.doveadm(&source, arguments));
    doveadm(&["flags", "add", "\\Flagged $Late", "mailbox", "INBOX", "uid", flagged]);
    doveadm(&["expunge", "mailbox", "INBOX", "uid", &gone.join(",")]);
    world.dovecot.save(&source, "INBOX", "Subject: late\n\nlate\n");
    let all = world.dovecot.doveadm(&source, &["search", "mailbox", "INBOX", "all"]);
    let new =
        all.lines().filter_map(|line| line.split_whitespace().nth(1)).next_back().expect("there are some");
    for target in &targets {
        world.backup(&source, target);
        let commands =
            format!("a ENABLE QRESYNC\r\nb SELECT INBOX (QRESYNC ({validity} {modseq}))\r\nc LOGOUT\r\n");
        let answer = world.imap(target, &commands);
        let vanished: Vec<&str> =
            answer.lines().filter_map(|line| line.trim().strip_prefix("* VANISHED (EARLIER) ")).collect();
        assert_eq!(vanished, [gone.join(",")], "{target}: {answer}");
        let fetched: Vec<&str> = answer
            .lines()
            .filter_map(|line| line.split_once(" FETCH (UID ")?.1.split_whitespace().next())
            .collect();
        assert_eq!(fetched, [flagged, new], "{target}: {answer}");
        assert!(answer.contains("b OK"), "{target}: {answer}");
        // What the destination did in more steps may have counted further, never less.
        let highest = |location: &str| world.status(location).1.parse::<u64>().expect("a number");
        assert!(highest(target) >= highest(&source), "{target}");
    }
}

/// More messages than one commit takes come into a mailbox that a session has open: UIDs and modseqs are the source's in the end.
#[test]
fn modseqs_are_the_sources_though_a_session_looks_on() {
    if !installed() {
        return;
    }
    let world = World::new();
    let account = Account::new(world.dir.path().join("source"));
    for n in 0..2_500 {
        account.deliver("", &format!("{}.M{n}P1.x:2,S", 1_700_000_000 + n), b"Subject: x\n\nx\n");
    }
    world.dovecot.own(&account.root);
    let source = account.location();
    let seen = |location: &str| -> Vec<String> {
        let words = ["-f", "tab", "fetch", "uid modseq", "mailbox", "INBOX", "all"];
        let text = world.dovecot.doveadm(location, &words);
        text.lines().map(str::to_owned).chain([world.status(location).1]).collect()
    };
    // Modseqs are kept from now on.
    seen(&source);
    // Some of those that come first have the highest modseqs.
    for uids in ["7:9", "2400", "3"] {
        world.dovecot.doveadm(&source, &["flags", "add", "\\Flagged Late", "mailbox", "INBOX", "uid", uids]);
    }
    let wanted = seen(&source);
    for format in ["maildir", "sdbox", "mdbox"] {
        let target = format!("{format}:{}", world.dir.path().join(format).display());
        let mut imap = world.session(&target);
        imap.select("INBOX");
        std::thread::scope(|scope| {
            let backup = scope.spawn(|| world.backup(&source, &target));
            while !backup.is_finished() {
                // A mailbox that gets another identity ends the session.
                if imap.try_command("NOOP").is_err() {
                    imap = world.session(&target);
                    imap.select("INBOX");
                }
            }
        });
        let found = seen(&target);
        let other = found.iter().zip(&wanted).find(|(found, wanted)| found != wanted);
        assert_eq!((other, found.len()), (None, wanted.len()), "{format}");
    }
}
