//! The recorded sessions: what each end said, the account that it had before, and the one that it had after.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::BytesMut;
use dsync_proto::dovecot::codec::{Decoder, Event};
use dsync_proto::dovecot::items::Item;

/// One line that an end said, with the body behind it.
#[derive(Clone, PartialEq, Debug)]
pub struct Said {
    pub item: Item,
    pub body: Option<Vec<u8>>,
}

/// A session: what master and slave said, and their accounts.
pub struct Session {
    pub name: String,
    pub streams: [Vec<Said>; 2],
    pub accounts: [Accounts; 2],
}

/// An account before and after, as lines of `accounts.zst`.
#[derive(Default)]
pub struct Accounts {
    pub separator: char,
    pub before: Vec<String>,
    after: Vec<String>,
}

fn fixture(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/dovecot-rawlog").join(name);
    zstd::decode_all(&std::fs::read(path).expect("read")[..]).expect("packed well")
}

/// The sessions in which both ends said something.
pub fn sessions() -> Vec<Session> {
    let (packed, mut streams) = (fixture("recordings.zst"), BTreeMap::new());
    let mut rest = &packed[..];
    while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
        let head = std::str::from_utf8(&rest[..end]).expect("text");
        let (name, length) = head.split_once(' ').expect("two words");
        let (wire, after) = rest[end + 1..].split_at(length.parse().expect("a length"));
        streams.insert(name.to_owned(), wire);
        rest = after;
    }
    let mut accounts = accounts();
    let both = accounts.iter_mut().filter_map(|(name, accounts)| {
        let stream = |names: [&str; 2]| {
            let wire = names.iter().find_map(|direction| streams.get(&format!("{name}/{direction}")))?;
            // Behind the words of doveadm, if it is TCP.
            let start = wire.windows(14).position(|window| window == b"VERSION\tdsync\t")?;
            Some(read(&wire[start..]))
        };
        let streams = [stream(["m2s", "c2s"])?, stream(["s2m", "s2c.channel-0"])?];
        Some(Session { name: name.clone(), streams, accounts: std::mem::take(accounts) })
    });
    both.collect()
}

fn accounts() -> BTreeMap<String, [Accounts; 2]> {
    let text = String::from_utf8(fixture("accounts.zst")).expect("text");
    let mut all: BTreeMap<String, [Accounts; 2]> = BTreeMap::new();
    let (mut session, mut end, mut after) = (String::new(), 0, false);
    for line in text.lines() {
        let words: Vec<&str> = line.split('\t').collect();
        match words[..] {
            ["session", name] => name.clone_into(&mut session),
            ["account", who, when, separator] => {
                (end, after) = (usize::from(who == "slave"), when == "after");
                let separator = separator.chars().next().expect("a separator");
                all.entry(session.clone()).or_default()[end].separator = separator;
            }
            _ => {
                let accounts = &mut all.get_mut(&session).expect("named")[end];
                if after { &mut accounts.after } else { &mut accounts.before }.push(line.to_owned());
            }
        }
    }
    all
}

/// What a stream says.
fn read(wire: &[u8]) -> Vec<Said> {
    let (mut decoder, mut input, mut said) = (Decoder::new(), BytesMut::from(wire), Vec::<Said>::new());
    while let Some(event) = decoder.decode(&mut input).expect("is read") {
        match event {
            Event::Item(item) => {
                let body = stream_follows(&item).then(Vec::new);
                said.push(Said { item, body });
            }
            Event::Body(piece) => {
                let body = said.last_mut().and_then(|said| said.body.as_mut()).expect("has a body");
                body.extend_from_slice(&piece);
            }
            Event::Version(_) | Event::BodyEnd => {}
        }
    }
    said
}

pub fn stream_follows(item: &Item) -> bool {
    match item {
        Item::Mail(mail) => mail.stream,
        Item::Attribute(attribute) => attribute.stream,
        _ => false,
    }
}

impl Said {
    /// As a brain hears it.
    pub fn events(&self) -> Vec<Event> {
        let mut events = vec![Event::Item(self.item.clone())];
        if let Some(body) = &self.body {
            events.push(Event::Body(BytesMut::from(&body[..])));
            events.push(Event::BodyEnd);
        }
        events
    }
}

impl Accounts {
    /// The account after the session, without modseqs: those of changes that are made in it are each storage's own.
    pub fn after(&self) -> Vec<String> {
        let plain = |line: &String| {
            let mut words: Vec<&str> = line.split('\t').collect();
            match words[0] {
                "mailbox" => drop(words.pop()),
                "mail" => drop(words.remove(4)),
                _ => {}
            }
            words.join("\t")
        };
        let mut lines: Vec<String> = self.after.iter().map(plain).collect();
        lines.sort();
        lines
    }
}
