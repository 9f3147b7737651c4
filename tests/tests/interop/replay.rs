//! Recorded sessions of two Dovecots, held once more with our brain in the place of either: it hears what the other end said, and must say what that end
//! was told, since it would answer another word in another way. In the end its account must be as the Dovecot's was.
//!
//! `DSYNC_REPLAY=NAME` shows what is said otherwise in the sessions whose names begin so.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::Read as _;
use std::time::Duration;

use dsync_model::{Digest, MailboxGuid, MailboxStatus, ModSeq, Uid, UidValidity};
use dsync_proto::dovecot::codec::Event;
use dsync_proto::dovecot::items::{self, Item};
use dsync_session::SessionError;
use dsync_session::dovecot::{Brain, Output, Settled};
use dsync_storage::Storage as _;

use crate::account::Recorded;
use crate::recorded::{Said, Session, sessions, stream_follows};
use crate::told::{job, said};

/// The ends, as the streams of a session are ordered.
const ENDS: [&str; 2] = ["master", "slave"];

/// Where we say or do something else, and why: session, end, and what.
const DIFFERENT: &[(&str, &str, &str, &str)] = &[
    ("13", "slave", "after", RENAMED),
    ("17", "master", "after", "Dovecot gives the copy a keyword that was taken away at the source"),
    ("20", "master", "names", OUT_OF_SCOPE),
    ("20", "slave", "names", OUT_OF_SCOPE),
    ("25", "master", "changes", RAISED),
    ("25", "slave", "changes", RAISED),
    ("28", "master", "agreed, state", "a stale state is not told"),
    ("28", "slave", "agreed, end", "settled in this session, where Dovecot asks for another"),
    ("30", "master", "error 75", FAILED),
    ("30", "slave", "error 75, counters, after", FAILED),
    ("31", "master", "error 76, counters, after", TWO_GUIDS),
    ("31", "slave", "error 75, counters, end, after", TWO_GUIDS),
    ("32", "master", "error 76, counters, after", TWO_GUIDS),
    ("36", "master", "changes", "a message without headers has another GUID"),
    ("36", "slave", "error 65, agreed, counters, end, requests, after", HEADERS),
    ("37", "master", "error 75, changes, requests", FAILED),
    ("37", "slave", "error 65, changes, counters", HEADERS),
    (
        "38",
        "master",
        "error 76, agreed, mails, requests, after",
        "an mbox's mail is asked for by UID: the recorded end was asked by GUID",
    ),
    ("38", "slave", "error 65, agreed, changes, counters, end, mails, requests, after", HEADERS),
    ("44", "master", "names", OUT_OF_SCOPE),
    ("44", "slave", "error 65, agreed, counters, end, after", "-e with the value of -t"),
    ("51", "slave", "counters, requests, after", REPAIRED),
    ("52", "master", "error 75", FAILED),
    ("52", "slave", "error 75, requests, after", REPAIRED),
    ("59", "slave", "after", "names that its layout cannot hold: this account is in memory"),
    ("60", "master", "error 75", FAILED),
    ("60", "slave", "error 75, counters, after", FAILED),
    ("61", "master", "agreed", MEANWHILE),
    ("61", "slave", "agreed, after", MEANWHILE),
    ("63", "master", "agreed, mails, after", MEANWHILE),
    ("63", "slave", "agreed", "what was expunged before it could be sent calls for another run"),
    ("65", "master", "error 75, counters, after", FAILED),
    ("65", "slave", "error 75, names, after", FAILED),
    ("66", "master", "error 76, counters, after", TWO_GUIDS),
    ("66", "slave", "names, after", UNUSED),
    ("67", "master", "error 76, counters, after", TWO_GUIDS),
    ("67", "slave", "names, after", UNUSED),
];
const RENAMED: &str = "the two Dovecots end unequal; we as their master";
const OUT_OF_SCOPE: &str = "subscriptions of what is out of scope are not told";
const RAISED: &str = "a message whose modseq was raised is told, though its flags are as they were";
const FAILED: &str = "the Dovecot at the other end failed, or broke off";
const TWO_GUIDS: &str = "of two GUIDs of INBOX we keep ours until the other end asks for its own: it talks of another mailbox than the recorded one";
const HEADERS: &str = "the other end's mbox takes part in a backup only";
const REPAIRED: &str = "repaired where Dovecot makes the mailbox anew";
const MEANWHILE: &str = "somebody changed the account during the session, which the recording does not tell";
const UNUSED: &str = "an INBOX that never held a message is not told";

#[test]
fn recorded_sessions_go_on_with_our_brain_at_either_end() {
    let shown = std::env::var("DSYNC_REPLAY").ok();
    let (mut same, mut different) = ([0, 0], Vec::new());
    for session in sessions() {
        for (end, who) in ENDS.iter().enumerate() {
            let seen = replay(&session, end);
            let theirs = said(&session.streams[end], end, &session);
            let mut parts: Vec<String> = Vec::new();
            if let Err(error) = &seen.outcome {
                parts.push(format!("error {}", error.status()));
            }
            let ours = said(&seen.said, end, &session);
            let names: BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
            let empty = Vec::new();
            let of = |all: &BTreeMap<String, Vec<String>>, part| all.get(part).unwrap_or(&empty).clone();
            let mut compared: Vec<(String, Vec<String>, Vec<String>)> =
                names.into_iter().map(|part| (part.clone(), of(&ours, part), of(&theirs, part))).collect();
            let accounts = &session.accounts[end];
            compared.push(("after".into(), seen.storage.content(accounts.separator), accounts.after()));
            for (part, ours, theirs) in compared {
                if ours == theirs {
                    continue;
                }
                if shown.as_ref().is_some_and(|shown| session.name.starts_with(shown)) {
                    let only = |all: &[String], other: &[String], mark| {
                        all.iter()
                            .filter(|line| !other.contains(line))
                            .for_each(|line| eprintln!("  {mark} {line}"));
                    };
                    eprintln!("{} {who}: {part}", session.name);
                    only(&theirs, &ours, '-');
                    only(&ours, &theirs, '+');
                }
                parts.push(part);
            }
            if let (Some(shown), Err(error)) = (&shown, &seen.outcome)
                && session.name.starts_with(shown)
            {
                eprintln!("{} {who}: {}", session.name, dsync_session::chain(error));
            }
            if parts.is_empty() {
                same[end] += 1;
            } else {
                let number = session.name.split('-').next().unwrap_or_default();
                different.push(format!("{number} {who}: {}", parts.join(", ")));
            }
        }
    }
    let known: Vec<String> =
        DIFFERENT.iter().map(|(number, who, what, _)| format!("{number} {who}: {what}")).collect();
    assert_eq!(different, known);
    assert_eq!(same, [50, 49], "sessions that go on as recorded, as master and as slave");
}

/// The minor version of Dovecot 2.3.19.
const MINOR: u32 = 5;

/// What came of a session.
struct Seen {
    outcome: Result<(), SessionError>,
    said: Vec<Said>,
    storage: Recorded,
}

/// Holds a session once more, with our brain as this end.
fn replay(session: &Session, end: usize) -> Seen {
    let (own, peer) = (&session.streams[end], &session.streams[1 - end]);
    let mut storage = Recorded::new(&session.accounts[end], own);
    settle(&mut storage, own, peer);
    let boxed = Box::new(storage.clone());
    let mut brain = if end == 0 {
        let (job, state) = job(own);
        Brain::master(boxed, job, state, "replay")
    } else {
        Brain::slave(boxed, Duration::ZERO, "replay")
    };
    let mut script = Script::new(peer, end == 0);
    let mut told = Vec::new();
    let outcome = talk(&mut brain, &mut script, &mut told);
    Seen { outcome, said: told, storage }
}

/// Mailboxes of which both ends told the same first recent UID were settled between the two, as far as Dovecots know. Ours looks into a mailbox once
/// before it believes that: it is given the note that it would have kept of it (`settled.rs`), of those, too, that this session makes.
fn settle(storage: &mut Recorded, own: &[Said], peer: &[Said]) {
    let host = peer.iter().find_map(|said| match &said.item {
        Item::Handshake(line) => Some(&line.hostname[..]),
        _ => None,
    });
    let mut settled = Settled::read(storage, host.expect("a handshake"));
    let (tree, _) = storage.tree().expect("lists");
    let statuses = tree.into_values().filter_map(|node| node.mailbox);
    let mut statuses: BTreeMap<MailboxGuid, MailboxStatus> =
        statuses.map(|status| (status.guid, status)).collect();
    let lines = |stream: &[Said]| -> BTreeMap<MailboxGuid, items::Mailbox> {
        let lines = stream.iter().filter_map(|said| match &said.item {
            Item::Mailbox(line) => Some((line.mailbox_guid, (**line).clone())),
            _ => None,
        });
        lines.collect()
    };
    let (own, peer) = (lines(own), lines(peer));
    for (guid, line) in own {
        let first = line.first_recent_uid;
        if peer.get(&guid).is_none_or(|peer| peer.first_recent_uid != first) {
            continue;
        }
        // One that the end does not have yet is made in this session, and empty.
        let made = || MailboxStatus {
            guid,
            uid_validity: UidValidity::new(line.uid_validity).expect("is one"),
            uid_next: Uid::new(line.uid_next).expect("a UID"),
            messages: 0,
            highest_modseq: ModSeq::NONE,
            digest: Digest::of(&[]),
        };
        settled.put(&statuses.remove(&guid).unwrap_or_else(made), first);
    }
    settled.write(storage);
}

fn talk(brain: &mut Brain, script: &mut Script, told: &mut Vec<Said>) -> Result<(), SessionError> {
    let mut events = VecDeque::from([Event::Version(MINOR)]);
    loop {
        if brain.is_hungry() {
            if events.is_empty() {
                events.extend(script.next().into_iter().flat_map(|said| said.events()));
            }
            if let Some(event) = events.pop_front() {
                brain.handle(event)?;
            }
        }
        match brain.poll()? {
            Output::Item(item) => {
                if let Item::Mailbox(line) = &item {
                    script.asked(line.mailbox_guid);
                }
                let body = stream_follows(&item).then(Vec::new);
                told.push(Said { item, body });
            }
            Output::Body(mut body) => {
                let bytes = told.last_mut().and_then(|said| said.body.as_mut()).expect("was announced");
                body.reader.read_to_end(bytes).expect("in memory");
            }
            Output::Working => {}
            Output::Idle if events.is_empty() && script.is_over() => brain.close(),
            Output::Idle if events.is_empty() && script.waits() => script.go_on(),
            // Also in the middle, where it changes nothing.
            Output::Idle if brain.can_look_ahead() => brain.look_ahead(),
            Output::Idle => {}
            Output::Done(_) => return Ok(()),
        }
    }
}

/// What the other end says, in its turn. A slave answers for the mailbox that it is asked of, and a master of ours may ask in another order.
struct Script {
    now: VecDeque<Said>,
    answers: BTreeMap<MailboxGuid, Vec<Said>>,
    last: Vec<Said>,
}

impl Script {
    fn new(stream: &[Said], of_slave: bool) -> Script {
        let mut script = Script { now: VecDeque::new(), answers: BTreeMap::new(), last: Vec::new() };
        let mut current = None;
        for said in stream {
            match &said.item {
                Item::Mailbox(line) if of_slave => current = Some(line.mailbox_guid),
                Item::Finish(_) | Item::Close if of_slave => current = Some(MailboxGuid([0; 16])),
                _ => {}
            }
            match current {
                None => script.now.push_back(said.clone()),
                Some(MailboxGuid([0, ..])) if matches!(said.item, Item::Finish(_) | Item::Close) => {
                    script.last.push(said.clone());
                }
                Some(guid) => script.answers.entry(guid).or_default().push(said.clone()),
            }
        }
        script
    }

    fn next(&mut self) -> Option<Said> {
        self.now.pop_front()
    }

    fn asked(&mut self, guid: MailboxGuid) {
        self.now.extend(self.answers.remove(&guid).unwrap_or_default());
    }

    /// It waits for its peer, which waits, too: says its last words.
    fn go_on(&mut self) {
        self.now.extend(std::mem::take(&mut self.last));
    }

    fn waits(&self) -> bool {
        self.now.is_empty()
    }

    fn is_over(&self) -> bool {
        self.now.is_empty() && self.last.is_empty()
    }
}
