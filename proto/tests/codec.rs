//! The native codec: golden bytes of every message, and any bytes at all.
#![expect(clippy::unwrap_used, reason = "a test may stop at what cannot be")]

use std::collections::BTreeMap;
use std::fmt::Write as _;

use bytes::{Bytes, BytesMut};
use dsync_model::*;
use dsync_proto::Message;
use dsync_proto::native::Native;
use dsync_proto::preface::{self, Auth, Hello, Spoken, Start, Verdict, recognise};
use dsync_proto::*;

fn uid(n: u32) -> Uid {
    Uid::new(n).unwrap()
}

fn status() -> MailboxStatus {
    MailboxStatus {
        guid: MailboxGuid([7; 16]),
        uid_validity: UidValidity::new(1_795_443_142).unwrap(),
        uid_next: uid(300),
        messages: 251,
        highest_modseq: ModSeq::new(70_000).unwrap(),
        digest: Digest(1 << 100),
    }
}

fn delta() -> FlagDelta {
    let set =
        |flag, keyword: &str| FlagSet { system: flag, keywords: [Keyword::new(keyword).unwrap()].into() };
    FlagDelta {
        added: set(Flags::SEEN, "$Label1"),
        removed: FlagSet::default(),
        current: set(Flags::SEEN, "$Label1"),
    }
}

fn samples() -> BTreeMap<&'static str, Frame> {
    let guid = MessageGuid::new("1795443140.M843560P4189.mx1,S=288").unwrap();
    let base = BaseRef { generation: Generation(3), digest: Digest(9) };
    let node = MailboxNode {
        mailbox: Some(status()),
        directory: false,
        subscribed: true,
        renamed: Some(Timestamp(-5)),
        subscription_changed: None,
        changed: Some(Timestamp(1_700_000_000)),
    };
    let name = MailboxName::parse("Entwürfe/2024", '/').unwrap();
    let options = Options {
        full: true,
        mailboxes: vec!["INBOX".into()],
        exclude: vec!["Sp*".into()],
        lock_wait_secs: 30,
        allow_mass_delete: false,
        guids: vec![MailboxGuid([7; 16])],
        tree_only: false,
        filter: Box::new(Filter {
            since: Some(Timestamp(1_700_000_000)),
            size_max: Some(1 << 20),
            without: FlagSet::system(Flags::DELETED),
            ..Filter::default()
        }),
        purpose: Purpose::Verify { bodies: true },
        purge: true,
        namespaces: Namespaces::Only(vec!["Archive/".into()]),
        read_only_source: true,
    };
    let common = LastCommon { uid_validity: 7, uid: 300, modseq: 70_000, private_modseq: 0, messages: 251 };
    let listed = Listed {
        uid: uid(42),
        guid: guid.clone(),
        flags: delta().current,
        received: Some(Timestamp(1_700_000_001)),
        size: 300,
        content: Some([8; 32]),
        problem: None,
    };
    let planned = Planned {
        name: "INBOX".into(),
        tree: Some("created".into()),
        saved: 1,
        flags: 2,
        renumbered: 3,
        expunged: 4,
    };
    let log = TreeLog {
        separator: '/',
        deleted: [(MailboxGuid([7; 16]), Timestamp(1_700_000_000))].into(),
        directories: BTreeMap::new(),
        unsubscribed: [(NameHash([8; 16]), Timestamp(1_700_000_001))].into(),
    };
    let comment =
        |scope| AttributeKey { scope, key: "comment".into(), ..AttributeKey::first_of(MailboxGuid([7; 16])) };
    let attributes = vec![
        (comment(AttributeScope::Private), AttributeValue::Bytes(b"mine".to_vec())),
        (comment(AttributeScope::Shared), AttributeValue::TooLarge),
    ];
    let names = NameRules {
        namespaces: vec![NamespaceRules {
            prefix: vec!["Archive".into()],
            inbox: false,
            takes_part: true,
            separators: vec!['/', '.'],
            encoded: true,
            part_bytes_max: 0,
            name_bytes_max: 254,
            reserved: vec![Reserved { place: Where::FirstBegin, text: "~".into() }],
        }],
    };
    let time = AttributeTime { changed: Some(1_700_000_000), known_since: None };
    let times = vec![(comment(AttributeScope::Private), time)];
    let handshake = Handshake {
        role: Role::Initiator,
        store: StoreId([1; 16]),
        direction: Direction::Mirror { into: Terminus::Responder },
        options,
        location: "maildir:/m".into(),
        keeps_guids: true,
    };
    let modseq = ModSeq::new(907).unwrap();
    let changes = vec![
        MessageChange::Save { uid: uid(1), guid: guid.clone(), modseq, flags: delta(), size: Some(4096) },
        MessageChange::Expunge { uid: uid(2), guid: None },
        MessageChange::Flags { uid: uid(42), guid: guid.clone(), modseq, flags: delta() },
    ];
    let header = MailHeader {
        uid: uid(43),
        guid: Some(guid.clone()),
        received: Some(Timestamp(1_700_000_001)),
        saved: None,
        pop3_uidl: Some("uidl".into()),
        pop3_order: Some(5),
        size: Some(288),
        problem: Some(Problem { status: 75, text: "cannot be read".into() }),
    };
    let counters = Counters { mailboxes: 3, saved: 2, bytes: 70_000, freed: Some(9), ..Counters::default() };
    let not_kept = vec![(uid(9), Some(uid(10))), (uid(12), None)];
    let settled = Settled { guid: MailboxGuid([7; 16]), digest: Digest(5) };
    let failure = Failure { blame: Blame::Storage, status: 75, text: "disk full".into() };
    let of = |message| Frame::Message(SESSION, message);
    let on = |message| Frame::Message(3, message);
    BTreeMap::from([
        ("handshake", of(Message::Handshake(handshake))),
        ("bases", of(Message::Bases(vec![base]))),
        ("nodes", of(Message::Nodes(vec![(name.clone(), node)]))),
        ("end-nodes", of(Message::End(List::Nodes))),
        ("end-saves", of(Message::End(List::Saves))),
        ("committed", of(Message::Committed(base))),
        ("base-written", of(Message::BaseWritten(Generation(3)))),
        ("finish", of(Message::Finish(counters))),
        ("failure", of(Message::Failure(failure))),
        ("mailbox", on(Message::Mailbox { status: status(), since_base: true, round: 1 })),
        ("changes", on(Message::Changes(changes))),
        ("end-changes", on(Message::End(List::Changes))),
        ("requests", on(Message::Requests(vec![MailRequest { uid: uid(43), guid: Some(guid) }]))),
        ("end-requests", on(Message::End(List::Requests))),
        ("mail", on(Message::Mail(header))),
        ("settled", on(Message::Settled(settled))),
        ("not-kept", on(Message::NotKept(not_kept))),
        ("skip", on(Message::Skip { status: 65, text: "cannot be read".into() })),
        ("state", of(Message::State(vec![(MailboxGuid([7; 16]), common)]))),
        ("filtered", on(Message::Filtered(vec![uid(5), uid(300)]))),
        ("planned", of(Message::Planned { mailboxes: vec![planned], notes: vec!["careful".into()] })),
        ("unlisted", of(Message::Unlisted(vec![(name.clone(), "cannot be read".into(), 77)]))),
        ("listing", of(Message::Listing(name.clone(), vec![listed]))),
        ("log", of(Message::Log(log))),
        ("names", of(Message::Names(names))),
        ("attributes", of(Message::Attributes(attributes))),
        ("attribute-times", of(Message::AttributeTimes(times))),
        ("end-attribute-times", of(Message::End(List::AttributeTimes))),
        ("end-listing", of(Message::End(List::Listing))),
        ("problem", of(Message::Problem(Problem { status: 65, text: "cannot be made".into() }))),
        ("undone-mailbox", of(Message::Undone(Undone::Mailbox(name.clone())))),
        (
            "undone-subscriptions",
            of(Message::Undone(Undone::Subscriptions { names: vec![name.clone()], subscribed: false })),
        ),
        (
            "undone-deletion",
            of(Message::Undone(Undone::Deletion { mailbox: MailboxGuid([7; 16]), name: name.clone() })),
        ),
        ("undone-directory", of(Message::Undone(Undone::Directory(name.clone())))),
        ("deleting", of(Message::Deleting)),
        ("end-deletions", of(Message::End(List::Deletions))),
        ("body", Frame::Body(3, Bytes::from_static(b"Subject: x\n"))),
        ("body-end", Frame::BodyEnd(3)),
        ("keep-alive", Frame::KeepAlive),
    ])
}

fn encoded(frame: &Frame, compress: bool) -> BytesMut {
    let mut bytes = BytesMut::new();
    Native::new(compress).encode(frame, &mut bytes).unwrap();
    bytes
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A changed byte is a decision: `DSYNC_BLESS=1` writes the file anew.
#[test]
fn golden_bytes() {
    let mut text = String::new();
    for (name, frame) in samples() {
        let _ = writeln!(text, "{name} {}", hex(&encoded(&frame, false)));
    }
    let mut line = |name: &str, bytes: BytesMut| {
        let _ = writeln!(text, "{name} {}", hex(&bytes));
    };
    let hello = Hello { versions: (1, 1), features: vec![preface::FEATURE_ZSTD], program: "golden".into() };
    line("preface-hello", put(&hello));
    line("preface-auth-none", put(&Auth::None));
    line("preface-auth-plain", put(&Auth::Plain { user: "u".into(), password: "p".into() }));
    line("preface-start", put(&Start { user: "alice".into() }));
    line("preface-welcome", put(&Verdict::Welcome));
    line("preface-refused", put(&Verdict::Refused { status: 77, text: "no".into() }));
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden.txt");
    if std::env::var_os("DSYNC_BLESS").is_some() {
        std::fs::write(path, &text).unwrap();
    }
    assert_eq!(text, std::fs::read_to_string(path).unwrap());
}

fn put<T: bincode::Encode>(message: &T) -> BytesMut {
    let mut bytes = BytesMut::new();
    preface::encode(message, &mut bytes).unwrap();
    bytes
}

#[test]
fn every_frame_comes_back_however_it_is_cut() {
    for compress in [false, true] {
        let frames: Vec<Frame> =
            samples().into_values().chain([Frame::Body(9, vec![b'x'; 5000].into())]).collect();
        let stream: Vec<u8> = frames.iter().flat_map(|frame| encoded(frame, compress)).collect();
        for piece in [1, 2, 7, 1000, stream.len()] {
            let (mut codec, mut input, mut found) = (Native::new(compress), BytesMut::new(), Vec::new());
            for bytes in stream.chunks(piece) {
                input.extend_from_slice(bytes);
                while let Some(frame) = codec.decode(&mut input).unwrap() {
                    found.push(frame);
                }
            }
            assert_eq!(found, frames, "pieces of {piece}");
            assert!(input.is_empty());
        }
    }
}

#[test]
fn lengths_are_checked_before_memory_is_taken() {
    let mut input = BytesMut::from(&b"\xff\xff\xff\xff\x00\x00\x00\x00\x00"[..]);
    assert_eq!(Native::new(false).decode(&mut input), Err(ProtoError::FrameTooLarge(u32::MAX as usize)));
    // Bases with 2^60 entries.
    let mut input =
        BytesMut::from(&b"\x00\x00\x00\x0a\x00\x00\x00\x00\x00\x01\xfd\x00\x00\x00\x00\x00\x00\x00\x10"[..]);
    assert!(matches!(Native::new(false).decode(&mut input), Err(ProtoError::Malformed(_))));
    // A bomb: a megabyte and more out of a few bytes.
    let bomb = zstd::bulk::compress(&vec![0; FRAME_BYTES_MAX + 10], 1).unwrap();
    let mut input = BytesMut::new();
    input.extend_from_slice(&(bomb.len() as u32).to_be_bytes());
    input.extend_from_slice(b"\x11\x00\x00\x00\x01");
    input.extend_from_slice(&bomb);
    assert!(matches!(Native::new(true).decode(&mut input.clone()), Err(ProtoError::FrameTooLarge(_))));
    assert_eq!(Native::new(false).decode(&mut input), Err(ProtoError::UnknownKind(0x11)));
}

#[test]
fn the_largest_batch_fits() {
    let guid = |n: usize| MessageGuid::new(&format!("{n:0>250}")).unwrap();
    let save = |n: usize| MessageChange::Save {
        uid: uid(n as u32 + 1),
        guid: guid(n),
        modseq: ModSeq::NONE,
        flags: delta(),
        size: Some(u64::MAX),
    };
    let frame = Frame::Message(1, Message::Changes((0..BATCH_MAX).map(save).collect()));
    let mut bytes = encoded(&frame, false);
    assert_eq!(Native::new(false).decode(&mut bytes), Ok(Some(frame)));
}

#[test]
fn no_bytes_make_it_panic() {
    let stream: Vec<u8> = samples().values().flat_map(|frame| encoded(frame, false)).collect();
    let mut seed = 1u64;
    let mut next = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for _ in 0..20_000 {
        let mut bytes = stream.clone();
        for _ in 0..1 + next() % 4 {
            let at = (next() % bytes.len() as u64) as usize;
            match next() % 3 {
                0 => bytes[at] = next() as u8,
                1 => bytes[at] ^= 1 << (next() % 8),
                _ => bytes.truncate(at + 1),
            }
        }
        let (mut codec, mut input) = (Native::new(next() % 2 == 0), BytesMut::from(&bytes[..]));
        while let Ok(Some(_)) = codec.decode(&mut input) {}
        let mut input = BytesMut::from(&bytes[..]);
        let _ = preface::decode::<Hello>(&mut input.clone());
        let _ = preface::decode::<Auth>(&mut input.clone());
        let _ = preface::decode::<Verdict>(&mut input);
    }
}

#[test]
fn first_bytes_tell_who_speaks() {
    for (bytes, spoken) in [
        (&b"\x16\x03"[..], Some(Spoken::Tls)),
        (preface::MAGIC, Some(Spoken::Native)),
        (b"VERSION\tdoveadm-server\t1\t2\n", Some(Spoken::Dovecot)),
        (b"GET / HTTP/1.1", Some(Spoken::Http)),
        (b"dsy", None),
        (b"", None),
        (b"hello", Some(Spoken::Other)),
    ] {
        assert_eq!(recognise(bytes), spoken, "{bytes:?}");
    }
}

#[test]
fn versions_and_features_are_settled_by_both() {
    let ours = Hello { versions: (2, 4), features: vec![1, 2, 7], program: String::new() };
    let theirs = |low, high, features: &[u16]| Hello {
        versions: (low, high),
        features: features.to_vec(),
        program: String::new(),
    };
    let common = |version, compress, many| Ok(preface::Common { version, compress, many });
    assert_eq!(ours.negotiate(&theirs(1, 3, &[1])), common(3, true, false));
    assert_eq!(ours.negotiate(&theirs(4, 9, &[7, 2])), common(4, false, true));
    for (low, high, expected) in [
        (
            5,
            6,
            "the other end speaks version 5 to 6 of dsync's protocol, this one 2 to 4: update the dsync of this end",
        ),
        (
            1,
            1,
            "the other end speaks version 1 of dsync's protocol, this one 2 to 4: update the dsync of the other end",
        ),
    ] {
        let error = ours.negotiate(&theirs(low, high, &[])).unwrap_err();
        assert_eq!(error.to_string(), expected);
    }
    assert!(!format!("{:?}", Auth::Plain { user: "u".into(), password: "secret".into() }).contains("secret"));
}
