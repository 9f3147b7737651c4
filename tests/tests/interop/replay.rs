//! Recorded sessions of two Dovecots, held once more with our brain in the place of either: it hears what the other end said, and must say what that end
//! was told, since it would answer another word in another way. In the end its account must be as the Dovecot's was.
//!
//! `DSYNC_REPLAY=NAME` shows what is said otherwise in the sessions whose names begin so.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::Read as _;
use std::time::Duration;

use dsync_model::{
    Digest, Filter, FlagSet, Flags, Keyword, LastCommon, MailboxGuid, MailboxStatus, Namespaces, SyncState,
    Timestamp,
};
use dsync_proto::dovecot::codec::Event;
use dsync_proto::dovecot::items::{self, Item};
use dsync_proto::{Direction, Options, Terminus};
use dsync_session::dovecot::{Brain, Output};
use dsync_session::{Job, SessionError};
use dsync_storage::Storage as _;

use crate::recorded::{Recorded, Said, Session, sessions, stream_follows};

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
    ("52", "master", "error 75, agreed, changes, counters", FAILED),
    ("52", "slave", "error 75, requests, after", REPAIRED),
    ("59", "slave", "after", "names that its layout cannot hold: this account is in memory"),
    ("60", "master", "error 75, counters", FAILED),
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
            compared.push(("after".into(), seen.storage.content(accounts.separator()), accounts.after()));
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
    let mut hasher = DefaultHasher::new();
    host.expect("a handshake").hash(&mut hasher);
    let host = hasher.finish();
    let (tree, _) = storage.tree().expect("lists");
    let statuses = tree.values().filter_map(|node| node.mailbox.as_ref());
    let statuses: BTreeMap<MailboxGuid, &MailboxStatus> =
        statuses.map(|status| (status.guid, status)).collect();
    let lines = |stream: &[Said]| -> BTreeMap<MailboxGuid, items::Mailbox> {
        let lines = stream.iter().filter_map(|said| match &said.item {
            Item::Mailbox(line) => Some((line.mailbox_guid, (**line).clone())),
            _ => None,
        });
        lines.collect()
    };
    let (own, peer) = (lines(own), lines(peer));
    let mut note = b"dsyncds1".to_vec();
    for (guid, line) in own {
        let first = line.first_recent_uid;
        if peer.get(&guid).is_none_or(|peer| peer.first_recent_uid != first) {
            continue;
        }
        let left = match statuses.get(&guid) {
            Some(now) => (
                now.uid_validity.get(),
                now.uid_next.get(),
                now.messages,
                now.highest_modseq.get(),
                now.digest.0,
            ),
            None => (line.uid_validity, line.uid_next, 0, 0, Digest::of(&[]).0),
        };
        note.extend_from_slice(&host.to_le_bytes());
        note.extend_from_slice(&guid.0);
        note.extend_from_slice(&left.0.to_le_bytes());
        note.extend_from_slice(&left.1.to_le_bytes());
        note.extend_from_slice(&left.2.to_le_bytes());
        note.extend_from_slice(&left.3.to_le_bytes());
        note.extend_from_slice(&left.4.to_le_bytes());
        note.extend_from_slice(&first.to_le_bytes());
    }
    storage.write_note("dovecot-settled", &note).expect("in memory");
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

/// What a recorded master was told to do.
fn job(stream: &[Said]) -> (Job, Option<SyncState>) {
    let line = stream.iter().find_map(|said| match &said.item {
        Item::Handshake(line) => Some(line),
        _ => None,
    });
    let line = line.expect("a handshake");
    let into = if line.backup_send { Terminus::Initiator } else { Terminus::Responder };
    let direction = match (line.backup_send || line.backup_recv, line.no_backup_overwrite) {
        (false, _) => Direction::TwoWay,
        (true, false) => Direction::Mirror { into },
        (true, true) => Direction::OneWay { into },
    };
    let text = |bytes: &Vec<u8>| String::from_utf8(bytes.clone()).expect("text");
    let exclude = line.exclude_mailboxes.iter().flat_map(|list| &list.0).map(text);
    let namespaces = match &line.sync_ns_prefix {
        Some(prefixes) => Namespaces::Only(text(prefixes).split('\n').map(str::to_owned).collect()),
        None if line.sync_visible_namespaces => Namespaces::All,
        None => Namespaces::Usual,
    };
    let options = Options {
        namespaces,
        full: line.sync_type.as_deref() == Some(b"f"),
        mailboxes: line.sync_box.iter().map(text).collect(),
        exclude: exclude.collect(),
        guids: line.sync_box_guid.into_iter().collect(),
        tree_only: line.no_mail_sync,
        filter: Box::new(filter(line)),
        lock_wait_secs: line.lock_timeout.unwrap_or(0),
        purge: line.purge_remote,
        allow_mass_delete: true,
        ..Options::default()
    };
    let known = stream.iter().take_while(|said| !matches!(said.item, Item::Node(_))).filter_map(|said| {
        match &said.item {
            Item::State(state) => Some((
                state.mailbox_guid,
                LastCommon {
                    uid_validity: state.last_uidvalidity,
                    uid: state.last_common_uid,
                    modseq: state.last_common_modseq,
                    private_modseq: state.last_common_pvt_modseq,
                    messages: state.last_messages_count.unwrap_or(0),
                },
            )),
            _ => None,
        }
    });
    let by_state = line.sync_type.as_deref() == Some(b"s");
    let state = by_state.then(|| SyncState(known.collect()));
    (Job { direction, options }, state)
}

fn filter(line: &items::Handshake) -> Filter {
    let time = |secs: Option<u64>| secs.map(|secs| Timestamp(i64::try_from(secs).expect("in range")));
    let mut filter = Filter {
        since: time(line.sync_since_timestamp),
        until: time(line.sync_until_timestamp),
        size_max: line.sync_max_size,
        ..Filter::default()
    };
    if let Some(flag) = &line.sync_flags {
        let word = std::str::from_utf8(flag).expect("text");
        let set = match word.trim_start_matches('-') {
            "\\Flagged" => FlagSet::system(Flags::FLAGGED),
            keyword => {
                FlagSet { keywords: [Keyword::new(keyword).expect("a keyword")].into(), ..FlagSet::default() }
            }
        };
        if word.starts_with('-') { filter.without = set } else { filter.with = set }
    }
    filter
}

/// What the other end makes its decisions of, by part; lists in their order, mailboxes in that of their GUIDs.
fn said(stream: &[Said], end: usize, session: &Session) -> BTreeMap<String, Vec<String>> {
    let mut all: BTreeMap<(&str, Option<MailboxGuid>), Vec<String>> = BTreeMap::new();
    let mut current = None;
    let theirs: BTreeSet<MailboxGuid> = session.streams[1 - end].iter().filter_map(mailbox_of_node).collect();
    for Said { item, body } in stream {
        let (part, line) = match item {
            // Who we are, and how we would hash headers, is our own affair.
            Item::Handshake(line) if end == 0 => ("handshake", format!("{:?}", plain(line))),
            Item::Node(line) if line.mailbox_guid.is_some() || line.subscribed => {
                let name: Vec<_> = line.name.0.iter().map(|part| part.escape_ascii().to_string()).collect();
                let what = (line.mailbox_guid, line.uid_validity, line.uid_next, line.subscribed);
                ("names", format!("{} {what:?}", name.join("|")))
            }
            Item::Deletes(line) => {
                let guids = line.mailboxes.iter().flat_map(|text| text.split(' ').step_by(2));
                let known =
                    guids.filter(|guid| MailboxGuid::parse(guid).is_some_and(|guid| theirs.contains(&guid)));
                ("deleted", known.collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(" "))
            }
            Item::Mailbox(line) => {
                current = Some(line.mailbox_guid);
                let counters = (line.uid_validity, line.uid_next, line.messages_count, line.highest_modseq);
                (
                    "counters",
                    format!("{counters:?} lost {} ignored {}", line.mailbox_lost, line.mailbox_ignore),
                )
            }
            Item::Attribute(line) => {
                let value =
                    line.value.as_ref().or(body.as_ref()).map(|value| value.escape_ascii().to_string());
                let (kind, key) = (line.kind.escape_ascii(), line.key.escape_ascii());
                ("attributes", format!("{kind}/{key} {value:?} {}", line.deleted))
            }
            Item::Change(line) => ("changes", change(line)),
            Item::Request(line) => (
                "requests",
                format!("{:?} {:?}", line.guid.as_ref().map(|g| g.escape_ascii().to_string()), line.uid),
            ),
            Item::Mail(line) => {
                let guid = line.guid.as_ref().map(|guid| guid.escape_ascii().to_string());
                let date = body.as_ref().and(line.received_date);
                (
                    "mails",
                    format!(
                        "{guid:?} {date:?} {:?}",
                        body.as_ref().map(|body| body.escape_ascii().to_string())
                    ),
                )
            }
            Item::State(line) if current.is_none() => ("state", format!("{line:?}")),
            Item::State(line) => ("agreed", format!("{line:?}")),
            Item::Finish(line) => {
                ("end", format!("{} {:?} {:?}", line.require_full_resync, line.error, line.mail_error))
            }
            Item::Handshake(_) | Item::Node(_) | Item::End | Item::Close => continue,
        };
        all.entry((part, current)).or_default().push(line);
    }
    let mut parts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for ((part, mailbox), mut lines) in all {
        // Dovecot keeps these in hash tables: they come in no order.
        if ["names", "attributes", "requests", "mails", "state"].contains(&part) {
            lines.sort();
        }
        let mailbox = mailbox.filter(|_| part != "end").map(|guid| format!("{guid} ")).unwrap_or_default();
        let lines = lines.into_iter().filter(|line| !line.is_empty()).map(|line| format!("{mailbox}{line}"));
        parts.entry(part.to_owned()).or_default().extend(lines);
    }
    parts
}

fn mailbox_of_node(said: &Said) -> Option<MailboxGuid> {
    match &said.item {
        Item::Node(line) => line.mailbox_guid,
        _ => None,
    }
}

/// What a handshake asks for.
fn plain(line: &items::Handshake) -> items::Handshake {
    items::Handshake {
        hostname: Vec::new(),
        debug: false,
        no_notify: false,
        virtual_all_box: None,
        empty_hdr_workaround: false,
        import_commit_msgs_interval: None,
        hashed_headers: None,
        alt_char: None,
        lock_timeout: line.lock_timeout.filter(|secs| *secs > 0),
        ..line.clone()
    }
}

fn change(line: &items::Change) -> String {
    // \Recent is nobody's, and what was added and is gone again tells nothing.
    let flags = |hex: Option<items::Hex>| hex.map_or(0, |hex| hex.0 & 0x1f);
    let mut keywords: Vec<String> = line
        .keyword_changes
        .iter()
        .flat_map(|list| &list.0)
        .map(|word| word.escape_ascii().to_string())
        .collect();
    keywords.retain(|word| !word.starts_with('+'));
    keywords.sort();
    let guid = line.guid.as_ref().map(|guid| guid.escape_ascii().to_string());
    let (added, removed, last) = (flags(line.add_flags), flags(line.remove_flags), flags(line.final_flags));
    format!(
        "{} {} {guid:?} modseq {:?} +{added:x} -{removed:x} ={last:x} {keywords:?}",
        line.kind.escape_ascii(),
        line.uid,
        line.modseq
    )
}
