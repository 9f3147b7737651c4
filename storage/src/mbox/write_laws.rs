//! Any mailbox, and whatever is done to it: what is written is read back.

use std::collections::BTreeMap;

use dsync_model::{FlagSet, Flags, Uid};
use jiff::tz::TimeZone;
use proptest::prelude::*;

use super::write_tests::{Bench, FROM, Seen, bodies, flags, set_flags};
use super::*;

fn some_text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("\n".to_owned()),
        Just("\r\n".to_owned()),
        Just(FROM.to_owned()),
        Just("From ".to_owned()),
        Just("Content-Length: 3\n".to_owned()),
        Just("X-UID: 4\n".to_owned()),
        Just("Subject: s\n".to_owned()),
        Just(" folded\n".to_owned()),
        Just("a".to_owned()),
        Just("\r".to_owned()),
    ];
    proptest::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

/// What an mbox makes of a message that comes in.
fn stored(text: &str) -> Vec<u8> {
    let mut length = 0;
    let header: &str = text
        .split_inclusive('\n')
        .find(|line| {
            let is_empty = matches!(*line, "\n" | "\r\n");
            length += line.len();
            is_empty
        })
        .map_or(text, |empty| &text[..length - empty.len()]);
    let body = text[length..].replace("\r\n", "\n");
    let mut message = Vec::new();
    for line in headers::visible_lines(header.as_bytes()) {
        let is_from = from_line::parse(line, &TimeZone::UTC).is_some();
        message.extend_from_slice(if is_from { b">" } else { b"" });
        message.extend_from_slice(line);
        message.push(b'\n');
    }
    message.extend_from_slice(b"\n");
    message.extend_from_slice(body.as_bytes());
    if !body.is_empty() && !body.ends_with('\n') {
        message.push(b'\n');
    }
    message
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_mailbox_is_what_was_done_to_it(steps in proptest::collection::vec(
        (0..5u8, any::<prop::sample::Index>(), some_text(), 0..32u8, 0..4usize), 1..20
    )) {
        let bench = Bench::new("");
        let mut model: BTreeMap<u32, (FlagSet, Vec<u8>)> = BTreeMap::new();
        let mut next = 1;
        for (kind, at, text, bits, word) in steps {
            let words: &[&str] = [&[][..], &["work"], &["todo", "work"], &["$Label1"]][word];
            let wanted = flags(Flags::from_bits(bits).unwrap(), words);
            let uids: Vec<u32> = model.keys().copied().collect();
            let place = if uids.is_empty() { 0 } else { at.index(uids.len()) };
            match kind {
                0 | 1 => {
                    next += u32::from(kind);
                    let arrival = bench.arrival(next, wanted.clone(), &text);
                    bench.edit(|edits, _| edits.arrivals.push(arrival));
                    model.insert(next, (wanted, stored(&text)));
                    next += 1;
                }
                _ if uids.is_empty() => {}
                2 => {
                    bench.edit(|edits, _| edits.changes.extend([set_flags(place, wanted.clone())]));
                    model.get_mut(&uids[place]).unwrap().0 = wanted;
                }
                3 => {
                    bench.edit(|edits, _| edits.changes.extend([(place, Change::Expunge)]));
                    model.remove(&uids[place]);
                }
                _ => {
                    let set = Change::Set { uid: Uid::new(next), flags: None };
                    bench.edit(|edits, _| edits.changes.extend([(place, set)]));
                    let message = model.remove(&uids[place]).unwrap();
                    model.insert(next, message);
                    next += 1;
                }
            }
            let expected: Vec<Seen> =
                model.iter().map(|(uid, (flags, text))| (Some(*uid), flags.clone(), text.clone())).collect();
            let view = bench.view();
            prop_assert_eq!(&view, &expected, "{}", bench.content());
            prop_assert!(bench.scan().unwrap().last_uid < next.max(2));
        }
    }

    #[test]
    fn any_text_is_read_and_rewritten(texts in proptest::collection::vec(some_text(), 0..6)) {
        let bench = Bench::new(texts.iter().map(|text| format!("{FROM}{text}")).collect::<String>());
        let before = bodies(&bench);
        bench.rewrite().unwrap();
        prop_assert_eq!(bodies(&bench), before, "{}", bench.content());
    }
}
