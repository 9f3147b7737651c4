//! Pairs of accounts of which one or both are a Dovecot's: sessions between them with the same words whoever calls.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use crate::dovecot::Dovecot;
use crate::installation::{attribute_options, dsync_server, mail_options, program, words};
use crate::peers::Ends;

/// A directory with accounts, a Dovecot, and our programs where the unprivileged user finds them.
pub struct World {
    pub dir: tempfile::TempDir,
    pub dovecot: Dovecot,
    separator: char,
}

/// Which end of a session is cut off.
#[derive(Clone, Copy, Debug)]
pub enum Deaf {
    Calling,
    Called,
}

/// Every way to hold a session with a Dovecot.
pub const ALL: [Ends; 3] = [Ends::Dovecots, Ends::WeCall, Ends::DovecotCalls];

impl World {
    /// Makes it.
    #[expect(clippy::new_without_default, reason = "it makes files")]
    pub fn new() -> World {
        World::with_separator('/')
    }

    /// The same with another hierarchy separator at both ends.
    pub fn with_separator(separator: char) -> World {
        let (dir, dovecot) = Dovecot::beside(&["dsync", "dsync-server"]);
        let text = fs::read_to_string(dovecot.conf()).expect("read");
        let text = text.replace("separator = /", &format!("separator = {separator}"));
        fs::write(dovecot.conf(), text).expect("written");
        World { dir, dovecot, separator }
    }

    /// A file of it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Where the account of this name is.
    pub fn location(&self, format: &str, name: &str) -> String {
        format!("{format}:{}", self.path(name).display())
    }

    /// Runs `doveadm mailbox metadata`; its words are divided by bars.
    pub fn metadata(&self, location: &str, words: &str) -> String {
        let options = attributes(location);
        let options = options.iter().map(String::as_str);
        let words: Vec<&str> = options.chain(["mailbox", "metadata"]).chain(words.split('|')).collect();
        self.dovecot.doveadm(location, &words)
    }

    /// Runs `doveadm`; its words are divided by bars.
    pub fn doveadm(&self, location: &str, words: &str) -> String {
        self.dovecot.doveadm(location, &words.split('|').collect::<Vec<_>>())
    }

    /// A session that is to have one of these exit statuses, and to complain of nothing if it is 0.
    pub fn session(&self, ends: Ends, mode: &[&str], a: &str, b: &str, allowed: &[i32]) -> i32 {
        let (code, text) = self.talk(ends, mode, a, b);
        assert!(allowed.contains(&code), "{ends:?} {mode:?} {a} {b}: {code} {text}");
        assert!(code != 0 || text.is_empty(), "{ends:?} {mode:?}: {text}");
        code
    }

    /// A session: its exit status, and what was logged at either end.
    pub fn talk(&self, ends: Ends, mode: &[&str], a: &str, b: &str) -> (i32, String) {
        let (mut command, other) = self.ends_of(ends, mode, a, b);
        command.args(other);
        run(command)
    }

    /// The same, in which one end hears no more than so many bytes.
    pub fn cut_off(
        &self,
        ends: Ends,
        mode: &[&str],
        (a, b): (&str, &str),
        deaf: Deaf,
        bytes: u64,
    ) -> (i32, String) {
        // `dd` passes each byte on at once.
        let cut = format!("dd bs=1 count={bytes} status=none");
        self.through(ends, mode, (a, b), |other| match deaf {
            Deaf::Called => format!("{cut} | {other}"),
            // The shell goes, too, so that it sees the end.
            Deaf::Calling => format!("{other} | {{ {cut}; kill $$; }}"),
        })
    }

    /// The same, in which a shell runs what is made of the words that call the other end.
    pub fn through(
        &self,
        ends: Ends,
        mode: &[&str],
        (a, b): (&str, &str),
        script_of: impl FnOnce(&str) -> String,
    ) -> (i32, String) {
        let (mut command, other) = self.ends_of(ends, mode, a, b);
        let script = self.path("through");
        let other: Vec<String> =
            other.iter().map(|word| format!("'{}'", word.to_str().expect("UTF-8"))).collect();
        fs::write(&script, format!("{}\n", script_of(&other.join(" ")))).expect("written");
        command.arg("/bin/sh").arg(script);
        run(command)
    }

    /// The program that has A and begins, without the words that call the other one, and these.
    fn ends_of(&self, ends: Ends, mode: &[&str], a: &str, b: &str) -> (Command, Vec<OsString>) {
        let doveadm = &program("doveadm");
        let conf = self.path("dovecot.conf");
        // The log of the account spells names with this separator.
        let namespace = format!("namespace inbox {{\n  inbox = yes\n  separator = {}\n}}\n", self.separator);
        let command = match ends {
            Ends::Ours | Ends::WeCall => {
                let mut command = self.dovecot.as_user(&self.path("dsync"));
                let client = self.path("client.conf");
                fs::write(&client, &namespace).expect("written");
                command.arg("-c").arg(client).args([mode[0], "--source", a]).args(&mode[1..]);
                command
            }
            Ends::Dovecots | Ends::DovecotCalls => {
                let mut command = self.dovecot.as_user(doveadm);
                command.arg("-c").arg(&conf).args(mail_options(a));
                command.args(attributes(a)).args(words(mode));
                command
            }
        };
        let mut other: Vec<OsString> = Vec::new();
        match ends {
            Ends::Ours | Ends::DovecotCalls => {
                let server = self.path("server.conf");
                fs::write(
                    &server,
                    format!(
                        "mail_location = {b}\n{namespace}userdb {{\n  driver = static\n  args = home={}\n}}\n",
                        self.path("home").display()
                    ),
                )
                .expect("written");
                other.extend([self.path("dsync-server").into(), "-c".into(), server.into()]);
                other.extend(["--stdio", "-u", "alice"].map(OsString::from));
            }
            Ends::Dovecots | Ends::WeCall => {
                other.extend([doveadm.into(), "-c".into(), conf.into()]);
                let options = [mail_options(b), attributes(b), dsync_server()];
                other.extend(options.into_iter().flatten().map(OsString::from));
            }
        }
        (command, other)
    }

    /// The account as Dovecot sees it.
    pub fn view(&self, location: &str) -> String {
        self.dovecot.view(location)
    }

    /// Messages with their UIDs.
    pub fn messages(&self, location: &str) -> String {
        let mails = self.doveadm(location, "-f|tab|fetch|mailbox uid guid hdr.subject|all");
        let mut lines: Vec<&str> = mails.lines().collect();
        lines.sort_unstable();
        lines.join("\n")
    }

    /// Mailboxes, messages and flags without UIDs.
    pub fn content(&self, location: &str) -> String {
        let list = self.doveadm(location, "mailbox|list");
        let mails = self.doveadm(location, "-f|tab|fetch|mailbox guid flags hdr.subject|all");
        let mut lines: Vec<String> = mails
            .lines()
            .map(|line| line.replace(" \\Recent", "").replace("\\Recent ", "").replace("\\Recent", ""))
            .collect();
        lines.extend(list.lines().map(str::to_owned));
        lines.sort();
        lines.join("\n")
    }

    /// Puts mail into four mailboxes.
    pub fn fill(&self, location: &str) {
        for number in 1..=4 {
            let text = format!("From: a@example.org\nSubject: mail {number}\n\nBody {number}\n.dot\n..\n.\n");
            self.dovecot.save(location, "INBOX", &text);
        }
        for mailbox in ["Work/Sub", "Gone", "Old"] {
            let subscribed = if mailbox == "Old" { "" } else { "-s|" };
            self.doveadm(location, &format!("mailbox|create|{subscribed}{mailbox}"));
            self.dovecot.save(location, mailbox, &format!("Subject: in {mailbox}\n\nx\n"));
        }
        self.doveadm(location, "flags|add|\\Seen $Label|mailbox|INBOX|uid|2");
    }

    /// What users do at both ends meanwhile.
    pub fn change_both(&self, a: &str, b: &str) {
        self.dovecot.save(a, "INBOX", "Subject: new at a\n\na\n");
        self.dovecot.save(b, "INBOX", "Subject: new at b\n\nb\n");
        self.doveadm(a, "flags|add|\\Flagged|mailbox|INBOX|uid|3");
        self.doveadm(b, "flags|add|\\Answered $Later|mailbox|INBOX|uid|3");
        self.doveadm(b, "flags|remove|\\Seen $Label|mailbox|INBOX|uid|2");
        self.doveadm(a, "expunge|mailbox|INBOX|uid|1");
        self.doveadm(b, "expunge|mailbox|INBOX|uid|4");
        self.doveadm(a, "mailbox|create|-s|Made/at a");
        self.doveadm(b, "mailbox|rename|Old|Newer");
        self.doveadm(a, "mailbox|delete|-s|Gone");
        self.doveadm(a, "mailbox|unsubscribe|Work/Sub");
        self.dovecot.save(b, "Work/Sub", "Subject: more at b\n\nb\n");
    }

    /// Copies an account with all that it has.
    pub fn copy(&self, from: &str, to: &str) {
        let copied = Command::new("cp").arg("-a").arg(self.path(from)).arg(self.path(to)).status();
        assert!(copied.expect("cp runs").success());
    }
}

/// The state of a pair after initial backup and changes at both ends, once for each way to go on.
pub fn pairs(world: &World, format: &str) -> Vec<(Ends, String, String)> {
    let place = |name: &str| world.location(format, name);
    world.fill(&place("a"));
    world.session(Ends::Dovecots, &["backup"], &place("a"), &place("b"), &[0]);
    // The first sync after a backup may still raise modseqs.
    world.session(Ends::Dovecots, &["sync"], &place("a"), &place("b"), &[0]);
    world.change_both(&place("a"), &place("b"));
    let named = ALL.iter().map(|ends| {
        let (a, b) = (format!("a-{ends:?}"), format!("b-{ends:?}"));
        world.copy("a", &a);
        world.copy("b", &b);
        (*ends, place(&a), place(&b))
    });
    named.collect()
}

fn run(mut command: Command) -> (i32, String) {
    let Output { status, stderr, .. } = command.output().expect("runs");
    (status.code().unwrap_or(-1), String::from_utf8_lossy(&stderr).into_owned())
}

/// The option that tells a Dovecot where the attributes of an account are: where we look for them, too.
fn attributes(location: &str) -> Vec<String> {
    let path = location.split(':').nth(1).unwrap_or(location);
    attribute_options(&format!("{path}/dovecot-attributes"))
}
