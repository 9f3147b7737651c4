//! An IMAP session of a real Dovecot, and what a client remembers of the mailbox that it has selected.
//!
//! Panics as soon as the server says what contradicts that: another message under a known UID, a MODSEQ that went back, `BYE`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::dovecot::Dovecot;
use crate::installation::{mail_options, program};

/// How long the server may take for one answer.
const ANSWER: Duration = Duration::from_secs(60);
/// Header that names a message.
const ID: &str = "X-Id";

/// A client with a mailbox selected.
pub struct Client {
    name: String,
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
    tags: u32,
    uid_validity: Option<String>,
    /// The UIDs by sequence number; `None`: a message that was announced and not asked for yet.
    uids: Vec<Option<u32>>,
    /// Which message each UID ever named.
    ids: BTreeMap<u32, String>,
    modseqs: BTreeMap<u32, u64>,
}

impl Client {
    /// Begins a session and selects INBOX. What Dovecot complains of goes to `log`.
    pub fn new(name: &str, dovecot: &Dovecot, location: &str, qresync: bool, log: File) -> Client {
        let mut imap = dovecot.as_user(&program("imap"));
        imap.arg("-c").arg(dovecot.conf()).args(mail_options(location));
        let mut child =
            imap.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log).spawn().expect("imap runs");
        let input = child.stdin.take().expect("piped");
        let mut output = BufReader::new(child.stdout.take().expect("piped"));
        let (sender, lines) = channel();
        thread::spawn(move || {
            while let Some(line) = response(&mut output).filter(|line| sender.send(line.clone()).is_ok()) {
                drop(line);
            }
        });
        let mut client = Client {
            name: name.to_owned(),
            child,
            input,
            lines,
            tags: 0,
            uid_validity: None,
            uids: Vec::new(),
            ids: BTreeMap::new(),
            modseqs: BTreeMap::new(),
        };
        if qresync {
            client.command("ENABLE QRESYNC");
        }
        client.command("SELECT INBOX");
        client.learn();
        client
    }

    /// The messages as the client has them, with what names them.
    pub fn messages(&self) -> impl Iterator<Item = (u32, &str)> {
        self.uids.iter().flatten().map(|uid| (*uid, &*self.ids[uid]))
    }

    /// Saves a message into INBOX.
    pub fn append(&mut self, id: &str, flags: &str) {
        let text = format!("{ID}: {id}\r\nSubject: {id}\r\n\r\nThe body of {id}.\r\n");
        self.tags += 1;
        let tag = self.tags;
        self.send(&format!("{tag} APPEND INBOX ({flags}) {{{}+}}\r\n{text}\r\n", text.len()));
        self.answer(tag, "APPEND");
        self.learn();
    }

    /// Runs a command, and takes in all that the server tells with it.
    pub fn command(&mut self, command: &str) {
        self.tags += 1;
        let tag = self.tags;
        self.send(&format!("{tag} {command}\r\n"));
        self.answer(tag, command);
    }

    /// The same, and asks for what was announced.
    pub fn act(&mut self, command: &str) {
        self.command(command);
        self.learn();
    }

    /// Waits for news.
    pub fn idle(&mut self, time: Duration) {
        self.tags += 1;
        let (tag, end) = (self.tags, Instant::now() + time);
        self.send(&format!("{tag} IDLE\r\n"));
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            match self.lines.recv_timeout(left) {
                Ok(line) if line.starts_with('+') => {}
                Ok(line) => self.take(&line),
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => panic!("{}: the session ended in IDLE", self.name),
            }
        }
        self.send("DONE\r\n");
        self.answer(tag, "IDLE");
        self.learn();
    }

    /// What the client believes must be what the server has; then the session ends.
    pub fn check_and_leave(mut self) {
        self.act("NOOP");
        let believed: Vec<u32> = self.messages().map(|(uid, _)| uid).collect();
        assert!(believed.is_sorted_by(|a, b| a < b), "{}: {believed:?}", self.name);
        self.uids.fill(None);
        self.learn();
        let told: Vec<u32> = self.messages().map(|(uid, _)| uid).collect();
        assert_eq!(believed, told, "{}: what the client had is not what is there", self.name);
        self.tags += 1;
        self.send(&format!("{} LOGOUT\r\n", self.tags));
        assert!(self.child.wait().expect("ends").success(), "{}: the session did not end well", self.name);
    }

    fn send(&mut self, text: &str) {
        let sent = self.input.write_all(text.as_bytes()).and_then(|()| self.input.flush());
        sent.unwrap_or_else(|error| panic!("{}: the session is gone: {error}", self.name));
    }

    fn answer(&mut self, tag: u32, command: &str) {
        loop {
            let line = self.lines.recv_timeout(ANSWER);
            let line = line.unwrap_or_else(|error| panic!("{}: no answer to {command}: {error}", self.name));
            match line.strip_prefix(&format!("{tag} ")) {
                // Somebody else was faster; the client is told so.
                Some(end) if end.starts_with("OK") || end.contains("[EXPUNGEISSUED]") => return,
                Some(end) => panic!("{}: {command}: {end}", self.name),
                None if line.starts_with('+') => {}
                None => self.take(&line),
            }
        }
    }

    /// Asks for the messages that were announced.
    fn learn(&mut self) {
        for _ in 0..20 {
            let Some(first) = self.uids.iter().position(Option::is_none) else { return };
            self.command(&format!(
                "FETCH {}:{} (UID FLAGS BODY.PEEK[HEADER.FIELDS ({ID})])",
                first + 1,
                self.uids.len()
            ));
            if self.uids.contains(&None) {
                self.command("NOOP");
            }
        }
        panic!("{}: messages are announced that cannot be fetched: {:?}", self.name, self.uids);
    }

    /// Takes in an untagged response.
    fn take(&mut self, line: &str) {
        let name = self.name.clone();
        let text = line.strip_prefix("* ").unwrap_or_else(|| panic!("{name}: {line}"));
        assert!(!text.starts_with("BYE") && !text.starts_with("BAD"), "{name}: {line}");
        if let Some((_, rest)) = text.split_once("[UIDVALIDITY ") {
            let now = rest.split(']').next().unwrap_or_default().to_owned();
            assert_eq!(*self.uid_validity.get_or_insert_with(|| now.clone()), now, "{name}: UIDVALIDITY");
        }
        if let Some(gone) = text.strip_prefix("VANISHED ") {
            for uid in set(gone).into_iter().flatten() {
                // Of one that was not asked for yet, all that is known is between which others it is.
                let lower = self.uids.iter().rposition(|known| known.is_some_and(|known| known < uid));
                let from = lower.map_or(0, |row| row + 1);
                let gone = self.uids[from..].iter().position(|known| known.is_none_or(|known| known >= uid));
                let row = gone.map(|row| from + row);
                if let Some(row) = row.filter(|row| self.uids[*row].is_none_or(|known| known == uid)) {
                    self.uids.remove(row);
                }
            }
            return;
        }
        let mut words = text.splitn(3, ' ');
        let (Some(number), Some(kind)) =
            (words.next().and_then(|word| word.parse::<usize>().ok()), words.next())
        else {
            return;
        };
        match kind {
            "EXISTS" => {
                assert!(number >= self.uids.len(), "{name}: {line}, and {} are known", self.uids.len());
                self.uids.resize(number, None);
            }
            "EXPUNGE" => drop(self.uids.remove(number - 1)),
            "FETCH" => self.fetched(number - 1, words.next().unwrap_or_default(), line),
            _ => {}
        }
    }

    fn fetched(&mut self, row: usize, text: &str, line: &str) {
        let after = |key: &str| text.split_once(key).map(|(_, rest)| rest);
        let digits =
            |rest: &str| rest.split(|c: char| !c.is_ascii_digit()).next().and_then(|n| n.parse::<u64>().ok());
        let uid = after("UID ").and_then(digits).map(|uid| uid as u32);
        let slot = self.uids.get_mut(row).unwrap_or_else(|| panic!("{}: no such message: {line}", self.name));
        if let (Some(known), Some(uid)) = (*slot, uid) {
            assert_eq!(known, uid, "{}: another UID than before: {line}", self.name);
        }
        if let (Some(uid), Some(id)) = (uid, after(&format!("{ID}: "))) {
            let id = id.split_whitespace().next().unwrap_or_default();
            let known = self.ids.entry(uid).or_insert_with(|| id.to_owned());
            assert_eq!(known, id, "{}: UID {uid} is another message than before", self.name);
            *slot = Some(uid);
        }
        if let (Some(uid), Some(modseq)) = (uid.or(*slot), after("MODSEQ (").and_then(digits)) {
            let known = self.modseqs.insert(uid, modseq);
            assert!(known.is_none_or(|known| known <= modseq), "{}: {known:?}: {line}", self.name);
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The next response with its literals, as one text.
fn response(output: &mut impl BufRead) -> Option<String> {
    let mut bytes = Vec::new();
    loop {
        if output.read_until(b'\n', &mut bytes).ok()? == 0 {
            return None;
        }
        let line = bytes.trim_ascii_end();
        let literal = line.strip_suffix(b"}").and_then(|line| {
            let start = line.iter().rposition(|byte| *byte == b'{')?;
            std::str::from_utf8(&line[start + 1..]).ok()?.parse::<u64>().ok()
        });
        match literal {
            Some(length) => drop(output.take(length).read_to_end(&mut bytes).ok()?),
            None => return Some(String::from_utf8_lossy(line).into_owned()),
        }
    }
}

/// The ranges of a set of UIDs.
fn set(text: &str) -> Vec<std::ops::RangeInclusive<u32>> {
    let range = |part: &str| {
        let (first, last) = part.split_once(':').unwrap_or((part, part));
        Some(first.parse().ok()?..=last.parse().ok()?)
    };
    text.trim().split(',').map(|part| range(part).unwrap_or_else(|| panic!("{text} is no set"))).collect()
}
