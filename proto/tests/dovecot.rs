//! The codec against what real Dovecots said to each other, and against what nobody should say.

use bytes::BytesMut;
use dsync_proto::dovecot::body::Writer;
use dsync_proto::dovecot::codec::{Decoder, Encoder, Event};
use dsync_proto::dovecot::doveadm::{Client, Command, Demux};
use dsync_proto::dovecot::items::Item;

/// Sessions that broke off: their last line or body may be missing, all that is there is read.
const BROKEN: &[&str] = &["30", "37", "52", "60", "65"];

struct Recording {
    name: String,
    bytes: Vec<u8>,
}

fn recordings() -> Vec<Recording> {
    let packed = [
        &include_bytes!("../../tests/fixtures/dovecot-rawlog/recordings.zst")[..],
        include_bytes!("../../tests/fixtures/dovecot-rawlog/recordings-2.4.zst"),
    ];
    let all = packed.map(|packed| zstd::decode_all(packed).expect("packed well")).concat();
    let mut rest = &all[..];
    let mut found = Vec::new();
    while !rest.is_empty() {
        let end = rest.iter().position(|b| *b == b'\n').expect("a head");
        let head = std::str::from_utf8(&rest[..end]).expect("text");
        let (name, length) = head.split_once(' ').expect("two words");
        let (bytes, after) = rest[end + 1..].split_at(length.parse().expect("a length"));
        found.push(Recording { name: name.into(), bytes: bytes.into() });
        rest = after;
    }
    assert_eq!(found.len(), STREAMS);
    found
}

/// Streams in the files, of 2.3 and of 2.4.
const STREAMS: usize = 147 + 9;

/// Where dsync begins in a stream of TCP.
fn dsync_of(recording: &Recording) -> Option<&[u8]> {
    if recording.name.ends_with("/s2c") {
        return None;
    }
    let start = recording.bytes.windows(14).position(|window| window == b"VERSION\tdsync\t")?;
    Some(&recording.bytes[start..])
}

/// Reads a stream in chunks, and writes what was read.
fn again(wire: &[u8], at_once: usize) -> (BytesMut, Vec<Item>, Decoder) {
    let (mut decoder, mut encoder) = (Decoder::new(), Encoder::default());
    let (mut input, mut output) = (BytesMut::new(), BytesMut::new());
    let (mut items, mut body) = (Vec::new(), None);
    encoder.start(&mut output);
    for chunk in wire.chunks(at_once) {
        input.extend_from_slice(chunk);
        while let Some(event) = decoder.decode(&mut input).expect("is read") {
            match event {
                Event::Item(item) => {
                    encoder.item(&item, &mut output);
                    items.push(item);
                }
                Event::Version(minor) => assert_eq!(minor, 5),
                Event::Body(piece) => body.get_or_insert_with(Writer::new).write(&piece, &mut output),
                Event::BodyEnd => body.take().unwrap_or_default().end(&mut output),
            }
        }
    }
    output.extend_from_slice(&input);
    (output, items, decoder)
}

#[test]
fn every_recorded_session_is_read_and_written_again_to_the_byte() {
    let (mut sessions, mut seen) = (0, std::collections::BTreeSet::new());
    for recording in &recordings() {
        let Some(wire) = dsync_of(recording) else { continue };
        let broken = BROKEN.iter().any(|number| recording.name.starts_with(number));
        for at_once in [1 << 20, 7] {
            let (output, items, decoder) = again(wire, at_once);
            assert!(broken || !decoder.in_body(), "{}", recording.name);
            let (ours, theirs) = if recording.name.contains("-2.4-") {
                // A 2.4 has a column less in its handshake.
                assert_eq!(again(&output, at_once).1, items, "{}", recording.name);
                (behind_handshake(&output), behind_handshake(wire))
            } else {
                (&output[..], wire)
            };
            assert!(ours == theirs, "{}: {}", recording.name, first_difference(ours, theirs));
            seen.extend(items.iter().map(Item::tag));
        }
        sessions += 1;
    }
    assert!(sessions > 130, "{sessions} streams");
    assert_eq!(seen.iter().collect::<String>(), ".ABCDFHMNRSX");
}

/// What follows the first line that begins with `H` behind the tables.
fn behind_handshake(wire: &[u8]) -> &[u8] {
    let begin = wire.windows(4).position(|window| window == b"\n.\nH").expect("a handshake") + 3;
    let length = wire[begin..].iter().position(|byte| *byte == b'\n').expect("a whole line");
    &wire[begin + length..]
}

fn first_difference(ours: &[u8], theirs: &[u8]) -> String {
    let at = ours.iter().zip(theirs).position(|(a, b)| a != b).unwrap_or(ours.len().min(theirs.len()));
    let shown =
        |bytes: &[u8]| bytes[at.saturating_sub(60)..bytes.len().min(at + 60)].escape_ascii().to_string();
    format!("at {at}: {} instead of {}", shown(ours), shown(theirs))
}

#[test]
fn packets_of_the_server_give_the_same_stream_as_their_recorded_content() {
    let recordings = recordings();
    let mut compared = 0;
    for whole in recordings.iter().filter(|r| r.name.ends_with("/s2c")) {
        let Some(plain) = recordings.iter().find(|r| r.name == format!("{}.channel-0", whole.name)) else {
            continue;
        };
        // Behind the reply to the password.
        let mut lines = whole.bytes.split_inclusive(|b| *b == b'\n');
        let skipped: usize = lines.by_ref().take(3).map(<[u8]>::len).sum();
        for at_once in [1, 1 << 20] {
            let (mut demux, mut input, mut output) = (Demux::default(), BytesMut::new(), BytesMut::new());
            for chunk in whole.bytes[skipped..].chunks(at_once) {
                input.extend_from_slice(chunk);
                demux.take(&mut input, &mut output).unwrap();
            }
            assert!(output == plain.bytes[..] && input.is_empty(), "{}", whole.name);
        }
        compared += 1;
    }
    assert!(compared >= 4, "{compared}");
}

#[test]
fn our_client_says_to_a_dovecot_what_dovecots_client_said() {
    let recordings = recordings();
    let find = |name: &str| &recordings.iter().find(|r| r.name == name).unwrap().bytes;
    let (theirs, said) = (find("70-tcp-sync-password/s2c"), find("70-tcp-sync-password/c2s"));
    let mut output = BytesMut::new();
    let password = Some(("doveadm".to_owned(), "s3cretpass".to_owned()));
    let mut client = Client::new(password, &Command::dsync_server("alice", false), &mut output);
    let mut input = BytesMut::from(&theirs[..]);
    assert_eq!(client.advance(&mut input, &mut output), Ok(true));
    // Our minor version is written otherwise, by which a dsync-server knows us.
    let output = String::from_utf8_lossy(&output).replacen("\t02\n", "\t2\n", 1);
    assert!(said.starts_with(output.as_bytes()), "{output:?}");
    let (demux, plain) = client.into_stream();
    assert!(demux.is_some() && plain.starts_with(b"VERSION\tdsync\t3\t5\n"));
}

/// A generator of test data; the same numbers for the same seed.
struct Chance(u64);

impl Chance {
    fn next(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % below.max(1) as u64) as usize
    }
}

#[test]
fn damaged_sessions_are_errors_or_items_and_take_no_more_memory_than_they_bring() {
    let recordings = recordings();
    let streams: Vec<&[u8]> = recordings.iter().filter_map(dsync_of).filter(|s| s.len() < 100_000).collect();
    let mut chance = Chance(0x0064_7379_6e63);
    let mut refused = 0;
    for _ in 0..20_000 {
        let whole = streams[chance.next(streams.len())];
        let from = if chance.next(3) == 0 { 0 } else { chance.next(whole.len()) };
        let mut wire = [&whole[..whole.len().min(1300)], &whole[from..whole.len().min(from + 3000)]].concat();
        for _ in 0..=chance.next(4) {
            let at = chance.next(wire.len());
            match chance.next(5) {
                0 => wire[at] ^= 1 << chance.next(8),
                1 => wire.truncate(at),
                2 => wire.insert(at, b"\t\n\r.\x01\x02X9"[chance.next(8)]),
                3 => drop(wire.drain(at..(at + 40).min(whole.len()).min(wire.len()).max(at))),
                _ => {
                    let copy = wire[at..wire.len().min(at + 60)].to_vec();
                    wire.splice(at..at, copy);
                }
            }
            if wire.is_empty() {
                wire.push(b'V');
            }
        }
        let (mut decoder, mut input) = (Decoder::new(), BytesMut::from(&wire[..]));
        let mut brought = 0;
        loop {
            match decoder.decode(&mut input) {
                Ok(Some(Event::Body(piece))) => brought += piece.len(),
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(error) => {
                    refused += 1;
                    assert!(error.to_string().len() < 300, "{error}");
                    break;
                }
            }
        }
        assert!(brought <= wire.len());
    }
    assert!(refused > 1000, "{refused}");
}

#[test]
fn what_breaks_the_rules_is_refused_with_its_name() {
    let mut start = BytesMut::new();
    Encoder::default().start(&mut start);
    let tables = String::from_utf8(start.to_vec()).unwrap();
    let error = |wire: &str| {
        let (mut decoder, mut input) = (Decoder::new(), BytesMut::from(wire));
        loop {
            match decoder.decode(&mut input) {
                Ok(Some(_)) => {}
                Ok(None) => return "waits".to_owned(),
                Err(error) => return error.to_string(),
            }
        }
    };
    let guid = "49c7491152180b04b36d000026acbed8";
    for (wire, expected) in [
        ("VERSION\tdsync\t4\t0\n".to_owned(), "another protocol"),
        ("SSH-2.0-OpenSSH\n".to_owned(), "another protocol"),
        (tables.replace("\nMguid", "\nmguid"), "'M' is missing"),
        (tables.replace("Rguid\tuid", "Rguid"), "waits"),
        (tables.replace("\texistence", ""), "column existence"),
        (format!("{tables}Cs\t-1\n"), "C: uid is not a number"),
        (format!("{tables}Cs\t99999999999\n"), "C: uid is not a number"),
        (format!("{tables}Cs\n"), "C: uid is missing"),
        (format!("{tables}B{guid}\n"), "B: uid_validity is missing"),
        (format!("{tables}Bxyz\t1\n"), "B: mailbox_guid is not a GUID"),
        (format!("{tables}Q1\n"), "there is no item 'Q'"),
        (format!("{tables}\n"), "empty line"),
        (format!("{tables}N{}", "x".repeat((4 << 20) - 1)), "waits"),
        (format!("{tables}N{}", "x".repeat((4 << 20) + 1)), "longer than"),
        (format!("{tables}N{}\ty\n", "x\x01t".repeat(100_001)), "N: name is not a list"),
        (format!("VERSION\tdsync\t3\t5\n{}", "Zx\n".repeat(101)), "too many tables"),
        (format!("VERSION\tdsync\t3\t5\nC{}\n", "x\t".repeat(101)), "too many columns"),
    ] {
        let error = error(&wire);
        assert!(error.contains(expected), "{expected}: {error}");
    }
    // What an older peer need not have, and what a newer one has more.
    let old = tables.replace("\t5\n", "\t0\n");
    let old = old.lines().filter(|l| !"AF".contains(&l[..1])).collect::<Vec<_>>();
    assert_eq!(error(&format!("{}\n", old.join("\n"))), "waits");
    let mut decoder = Decoder::new();
    let more = tables.replace("Rguid\tuid", "Rnew\tuid\tguid\nYunknown\tx");
    let mut input = BytesMut::from(&*format!("{more}Rx\t7\tabc\tsurplus\n"));
    assert_eq!(decoder.decode(&mut input), Ok(Some(Event::Version(5))));
    let Ok(Some(Event::Item(Item::Request(request)))) = decoder.decode(&mut input) else { panic!() };
    assert_eq!((request.uid, request.guid.as_deref()), (Some(7), Some(&b"abc"[..])));
}
