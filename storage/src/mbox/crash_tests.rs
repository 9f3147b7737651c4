//! Whatever interrupts or damages a rewrite or an append, every message is there once.

use std::collections::BTreeMap;
use std::fs;

use dsync_model::{FlagSet, Flags, Uid};

use super::write_tests::{Bench, FROM, Seen, bodies, flags, keyword, set_flags, two_messages};
use super::*;
use crate::{Fsync, disk};

/// Something of everything.
fn zoo() -> String {
    let spaces = " ".repeat(20);
    let inner = format!("text\n\n{FROM}more text\n");
    format!(
        "{FROM}Date: x\nX-IMAPbase: 9 0000000007 work\n\ttodo\nX-UID: 3\nStatus: RO\nX-Keywords: work{spaces}\n\
         Content-Length: {}\n\n{inner}\n{FROM}Subject: b\nX-UID: 5\n\nbody\n>From x\n\n{FROM}Subject: c\n{FROM}\
         {FROM}Received: by x\n y\nX-UID: 6\nX-Status: AF\n\nbody\r\nwith CR\r\n\n\
         From \"a b\"@c Mon Feb  5 10:00 2024\r\nSubject: crlf\r\nX-UID: 7\r\n\r\nbody\r\n\r\n\
         {FROM}X-UID: 9\nStatus: O\n\nlast",
        inner.len()
    )
}

#[test]
fn whatever_is_cut_or_flipped_a_rewrite_keeps_every_message() {
    let zoo = zoo().into_bytes();
    let whole = Bench::new(&zoo);
    assert_eq!(whole.scan().unwrap().messages.len(), 7);
    let mut damaged: Vec<Vec<u8>> = (0..=zoo.len()).map(|length| zoo[..length].to_vec()).collect();
    for place in 0..zoo.len() {
        for flip in [1, 0x20, 0x80] {
            let mut bytes = zoo.clone();
            bytes[place] ^= flip;
            damaged.push(bytes);
        }
    }
    let bench = Bench::new("");
    let mut rewritten = 0;
    for bytes in damaged {
        fs::write(&bench.path, &bytes).unwrap();
        if bench.scan().is_err() {
            assert!(!bytes.starts_with(FROM.as_bytes()));
            continue;
        }
        let before = bodies(&bench);
        bench.rewrite().unwrap();
        let text = String::from_utf8_lossy(&bytes);
        assert_eq!(bodies(&bench), before, "{text}");
        assert!(bench.scan().unwrap().messages.iter().all(|entry| entry.uid.is_some()), "{text}");
        rewritten += 1;
        // From now on all is as it should be, and changes are small.
        assert_eq!(bench.edit(|_, _| {}), Written::Nothing);
        let arrival = bench.arrival(bench.scan().unwrap().last_uid + 1, FlagSet::default(), "A: b\n\nnew\n");
        let written = bench.edit(|edits, _| edits.arrivals.push(arrival));
        assert_ne!(written, Written::Nothing);
        let mut expected = before;
        expected.push((b"new\n".to_vec(), b"A: b\n\nnew\n".to_vec()));
        assert_eq!(bodies(&bench), expected, "{text}");
    }
    assert!(rewritten > 2000, "{rewritten}");
}

/// Every way of writing, stopped after every step: no message is lost, none is half there, none is twice after
/// the next run.
#[test]
fn a_crash_at_any_step_leaves_every_message_once() {
    type Edit = fn(&Bench, &mut Edits);
    let append: Edit = |bench, edits| {
        let big = format!("Subject: big\n\n{}", "0123456789\n".repeat(100_000));
        edits.arrivals.push(bench.arrival(20, FlagSet::default(), big));
        edits.arrivals.push(bench.arrival(21, flags(Flags::SEEN, &["todo"]), "Subject: small\n\nx\n"));
    };
    let flag: Edit = |_, edits| {
        edits.changes.extend([set_flags(0, flags(Flags::SEEN, &[])), set_flags(1, FlagSet::default())])
    };
    let both: Edit = |bench, edits| {
        edits.arrivals.push(bench.arrival(20, FlagSet::default(), "Subject: big\n\nx\n"));
        edits.changes.extend([(0, Change::Expunge)]);
        edits.changes.extend([set_flags(1, flags(Flags::DRAFT, &[]))]);
    };
    let cases = [(append, Written::Appended), (flag, Written::InPlace), (both, Written::Replaced)];
    for (edit, way) in cases {
        let durable = || Bench { fsync: Fsync::Always, ..Bench::new(two_messages()) };
        let clean = durable();
        let before = disk::crash_after(None);
        assert_eq!(clean.edit(|edits, _| edit(&clean, edits)), way);
        let steps = disk::crash_after(None) - before;
        assert!(steps >= 4, "{steps}");
        let goal = clean.view();
        for step in 0..steps {
            let bench = durable();
            disk::crash_after(Some(step));
            let crashed = bench.try_edit(|edits, _| edit(&bench, edits));
            disk::crash_after(None);
            assert!(crashed.is_err(), "{way:?} {step}");
            drop(bench.lock());
            let start = Bench::new(two_messages()).view();
            for (_, _, message) in bench.view() {
                let whole = start.iter().chain(&goal).any(|(_, _, other)| *other == message);
                assert!(whole, "{way:?} {step}: {} bytes", message.len());
            }
            let kept = |message: &Vec<u8>| bench.view().iter().filter(|seen| seen.2 == *message).count();
            for (_, _, message) in start.iter().filter(|seen| goal.iter().any(|other| other.2 == seen.2)) {
                assert_eq!(kept(message), 1, "{way:?} {step}");
            }
            // The next run does what is left to do.
            bench.edit(|edits, found| {
                edit(&bench, edits);
                edits
                    .arrivals
                    .retain(|arrival| found.messages.iter().all(|entry| entry.uid != Some(arrival.uid)));
                if way == Written::Replaced && found.messages.iter().all(|entry| entry.uid != Uid::new(3)) {
                    edits.changes = BTreeMap::new();
                }
            });
            assert_eq!(bench.view(), goal, "{way:?} {step}");
            bench.no_leftovers();
        }
    }
}

/// A delivery agent looks at nothing, and appends to what a dead process left.
#[test]
fn mail_that_comes_before_an_interrupted_rewrite_is_finished_survives() {
    let delivered = format!("{FROM}Subject: delivered\n\nmeanwhile\n\n");
    type Edit = fn(&Bench, &mut Edits);
    let shrink: Edit = |_, edits| edits.changes.extend([(0, Change::Expunge)]);
    let grow: Edit = |bench, edits| {
        let text = format!("Subject: big\n\n{}", "0123456789\n".repeat(60_000));
        edits.arrivals.push(bench.arrival(2, FlagSet::default(), text));
    };
    for (edit, subjects) in [(shrink, 1), (grow, 3)] {
        let clean = Bench::new(two_messages());
        let before = disk::crash_after(None);
        assert_eq!(clean.edit(|edits, _| edit(&clean, edits)), Written::Replaced);
        let steps = disk::crash_after(None) - before;
        let mut interrupted = 0;
        for step in 0..steps {
            let bench = Bench::new(two_messages());
            disk::crash_after(Some(step));
            let crashed = bench.try_edit(|edits, _| edit(&bench, edits));
            disk::crash_after(None);
            assert!(crashed.is_err(), "{step}");
            interrupted += usize::from(!bench.content().starts_with("From "));
            let mut file = fs::OpenOptions::new().append(true).open(&bench.path).unwrap();
            std::io::Write::write_all(&mut file, delivered.as_bytes()).unwrap();
            drop(bench.lock().unwrap());
            let bodies: Vec<Vec<u8>> = bench.view().into_iter().map(|seen| seen.2).collect();
            let last = bodies.last().unwrap();
            assert!(last.starts_with(b"Subject: delivered"), "{step}: {}", String::from_utf8_lossy(last));
            let (old, new) = (Bench::new(two_messages()).view(), clean.view());
            let is =
                |wanted: &[Seen]| wanted.iter().map(|seen| &seen.2).eq(bodies[..bodies.len() - 1].iter());
            assert!(is(&old) || is(&new), "{step}: {} messages", bodies.len());
            assert_eq!(new.len(), subjects);
            bench.edit(|edits, found| {
                edits.number(found, Uid::MIN);
                edits.keywords.push(keyword("k"));
            });
            bench.no_leftovers();
        }
        assert!(interrupted >= 4, "{interrupted} of {steps}");
    }
}

#[test]
fn an_append_that_breaks_off_at_any_byte_is_not_seen_and_is_removed() {
    let no_end = two_messages().replace("Content-Length: 4\n\ntwo\n\n", "\ntwo");
    for begin in [two_messages(), no_end] {
        let bench = Bench::new(&begin);
        let before = bench.view();
        let old_size = begin.len();
        let marked = {
            let at = Bench::new(&begin);
            let arrivals = || {
                let text = "Subject: new\n\nthis is new\n";
                vec![at.arrival(6, FlagSet::default(), text), at.arrival(7, FlagSet::default(), text)]
            };
            disk::crash_after(Some(1));
            let _ = at.try_edit(|edits, _| edits.arrivals = arrivals());
            disk::crash_after(None);
            fs::read(&at.path).unwrap()
        };
        assert!(marked.len() > old_size + 200);
        for length in old_size..=marked.len() {
            if !begin.ends_with('\n') && (2..7).contains(&(length - old_size)) {
                // Without Content-Length, a few letters at the end could be anything: they stay with the message.
                continue;
            }
            fs::write(&bench.path, &marked[..length]).unwrap();
            // Before the new messages begin, only the separator may have been written.
            let view = bench.view();
            let same = view.iter().zip(&before).all(|(a, b)| a == b);
            assert!(same && view.len() == before.len(), "{length}: {view:?}");
            let arrival = bench.arrival(6, FlagSet::default(), "Subject: again\n\nx\n");
            bench.edit(|edits, _| edits.arrivals.push(arrival));
            let view = bench.view();
            assert_eq!(view[..before.len()], before, "{length}");
            assert_eq!(view[before.len()..].len(), 1, "{length}");
            assert_eq!(view[before.len()].2, b"Subject: again\n\nx\n", "{length}");
            assert!(bench.scan().unwrap().unfinished.is_empty());
        }
    }
}

#[test]
fn a_foreign_message_behind_an_unfinished_one_survives() {
    let begin = two_messages();
    let torn = "From dsync-unfinished  Mon Feb 05 10:00:00 2024\nSubject: torn\nContent-Length: 9\n\nto\n";
    let bench = Bench::new(format!("{begin}{torn}{FROM}Subject: foreign\n\nf\n\n"));
    assert_eq!(bench.view().len(), 3);
    bench.edit(|edits, found| assert!(edits.number(found, Uid::MIN)));
    let view = bench.view();
    assert_eq!((view.len(), view[2].0, &view[2].2[..]), (3, Some(6), &b"Subject: foreign\n\nf\n"[..]));
    assert!(!bench.content().contains("unfinished"));
    // Somebody whose name only begins alike.
    let bench = Bench::new(format!("{begin}{}Subject: x\n\n", torn.replace("unfinished", "unfinished@x")));
    assert_eq!(bench.view().len(), 3);
}
