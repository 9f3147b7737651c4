//! Merges the attributes of mailboxes: both lists, the times of what differs, and the base in, one end's changes out.

use std::collections::{BTreeMap, BTreeSet};

use dsync_model::{
    AttributeChanges, AttributeKey, AttributeList, AttributeRecord, AttributeRecords, AttributeScope,
    AttributeTime, AttributeTimes, AttributeValue, Digest, MailboxGuid,
};

use crate::{Both, Direction, ENDS, End, Pair};

/// What one end does with its attributes.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct AttributePlan {
    pub changes: AttributeChanges,
    /// What the logs of the mailboxes are to tell, which have their GUIDs then.
    pub records: AttributeRecords,
    /// What both ends may remember.
    pub agreed: BTreeMap<AttributeKey, Digest>,
}

type Known<'a> = BTreeMap<(AttributeScope, &'a str), &'a AttributeValue>;

/// One attribute at both ends; `None`: too large at one of them.
type Now<'a> = Option<Both<Option<&'a [u8]>>>;

/// Names the attributes that are not the same at both ends: their times count.
pub fn unequal_attributes(lists: Both<&AttributeList>, pairs: &[Pair]) -> BTreeSet<AttributeKey> {
    let mut unequal = BTreeSet::new();
    for pair in pairs {
        let known = of_pair(lists, pair);
        let keys: BTreeSet<_> = known.0.iter().flat_map(|known| known.keys().copied()).collect();
        let differs =
            |key: &(AttributeScope, &str)| now(&known, *key).is_some_and(|now| now.0[0] != now.0[1]);
        unequal.extend(keys.into_iter().filter(differs).map(|key| named(pair.guid, key)));
    }
    unequal
}

/// Merges the attributes of the mailboxes that both ends have once the tree is merged, and gives the half of `end`.
///
/// They hang on GUIDs: an end whose mailbox gets another one keeps them under the new one. `times` are of what
/// [`unequal_attributes`] named.
pub fn attributes(
    lists: Both<&AttributeList>,
    times: Both<&AttributeTimes>,
    base: Option<&BTreeMap<AttributeKey, Digest>>,
    direction: Direction,
    pairs: &[Pair],
    end: End,
) -> AttributePlan {
    let mut plan = AttributePlan::default();
    for pair in pairs {
        let guids = guids(pair);
        let known = of_pair(lists, pair);
        // Left from a mailbox of that GUID which was here once, or of one that gives it away now.
        let stored = of_mailbox(lists[end], pair.guid);
        let is_new = guids[end] != Some(pair.guid);
        let both = guids.0.iter().all(Option::is_some);
        let keys: BTreeSet<_> =
            known.0.iter().chain([&stored]).flat_map(|known| known.keys().copied()).collect();
        for key in keys {
            let name = |mailbox| named(mailbox, key);
            // Where the mailbox is made, its attributes were not removed.
            let before = base.filter(|_| both).map(|base| base.get(&name(pair.guid)).copied());
            let Some(now) = now(&known, key) else {
                plan.agreed.extend(before.flatten().map(|digest| (name(pair.guid), digest)));
                continue;
            };
            let times = Both(ENDS.map(|end| times[end].get(&name(pair.guid)).copied().unwrap_or_default()));
            let wanted = wanted(now, times, before, direction);
            let remembered = wanted[direction.source().unwrap_or(end)];
            plan.agreed.extend(remembered.map(|value| (name(pair.guid), Digest::of_attribute(value))));
            if direction.source() == Some(end) {
                continue;
            }
            // A mailbox that gets this GUID has the last word.
            if let Some(guid) = guids[end].filter(|_| is_new && now[end].is_some()) {
                plan.changes.entry(name(guid)).or_insert(None);
            }
            match wanted[end] {
                Some(value) if is_new || now[end] != Some(value) => {
                    plan.changes.insert(name(pair.guid), Some(value.to_vec()));
                }
                None if stored.contains_key(&key) => {
                    plan.changes.entry(name(pair.guid)).or_insert(None);
                }
                _ => {}
            }
            if now[end] != wanted[end] {
                let bytes = wanted[end].map(|value| value.len() as u32);
                plan.records
                    .insert(name(pair.guid), AttributeRecord { bytes, at: times[end.other()].changed });
            }
        }
    }
    plan
}

fn guids(pair: &Pair) -> Both<Option<MailboxGuid>> {
    Both(ENDS.map(|end| pair.statuses[end].as_ref().map(|status| status.guid)))
}

fn of_pair<'a>(lists: Both<&'a AttributeList>, pair: &Pair) -> Both<Known<'a>> {
    let guids = guids(pair);
    Both(ENDS.map(|end| guids[end].map_or_else(Known::new, |guid| of_mailbox(lists[end], guid))))
}

fn named(mailbox: MailboxGuid, (scope, key): (AttributeScope, &str)) -> AttributeKey {
    AttributeKey { mailbox, scope, key: key.to_owned() }
}

fn now<'a>(known: &Both<Known<'a>>, key: (AttributeScope, &str)) -> Now<'a> {
    let mut now = Both::default();
    for end in ENDS {
        match known[end].get(&key) {
            Some(AttributeValue::Bytes(bytes)) => now[end] = Some(bytes.as_slice()),
            Some(AttributeValue::TooLarge) => return None,
            None => {}
        }
    }
    Some(now)
}

fn of_mailbox(list: &AttributeList, mailbox: MailboxGuid) -> Known<'_> {
    let from = list.range(AttributeKey::first_of(mailbox)..);
    let here = from.take_while(|(key, _)| key.mailbox == mailbox);
    here.map(|(key, value)| ((key.scope, key.key.as_str()), value)).collect()
}

/// Rule **attribute**: the end that changed it since the base. If both did, or nobody knows: the change that was [last](changed_last). `before`:
/// without a base `None`.
fn wanted(
    now: Both<Option<&[u8]>>,
    times: Both<AttributeTime>,
    before: Option<Option<Digest>>,
    direction: Direction,
) -> Both<Option<&[u8]>> {
    let changed = |end: End| before.is_none_or(|before| now[end].map(Digest::of_attribute) != before);
    match direction {
        Direction::TwoWay => {
            let value = match ENDS.map(changed) {
                [true, false] => now.0[0],
                [false, true] => now.0[1],
                _ => changed_last(now, times),
            };
            Both([value; 2])
        }
        Direction::Mirror { into } => Both([now[into.other()]; 2]),
        Direction::OneWay { into } => {
            let source = now[into.other()];
            let mut wanted = now;
            wanted[into] = match (changed(into.other()), changed(into)) {
                (false, _) => now[into],
                (true, false) => source,
                (true, true) => source.or(now[into]),
            };
            wanted
        }
    }
}

/// Of two values the one that was set later, as far as the logs tell; one of which they tell nothing is older than one of which they do.
/// If that does not decide, the one that sorts last. A removal counts only if it is known to be later than the value.
fn changed_last(now: Both<Option<&[u8]>>, times: Both<AttributeTime>) -> Option<&[u8]> {
    let (Both([a, b]), Both([a_time, b_time])) = (now, times);
    let (value, set, removed) = match (a, b) {
        (Some(a), Some(b)) => return Some((a_time.changed, a).max((b_time.changed, b)).1),
        (Some(value), None) => (value, a_time, b_time.changed),
        (None, Some(value)) => (value, b_time, a_time.changed),
        (None, None) => return None,
    };
    let was_older = |removed| set.changed.or(set.known_since).is_some_and(|at| at < removed);
    (!removed.is_some_and(was_older)).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTO: End = End::Responder;

    fn value(text: &str) -> Option<&[u8]> {
        (text != "-").then_some(text.as_bytes())
    }

    fn timed(text: &str) -> (&str, AttributeTime) {
        let number = |text: &str| Some(text.parse().unwrap());
        match (text.split_once('@'), text.split_once('>')) {
            (Some((value, at)), _) => (value, AttributeTime { changed: number(at), known_since: Some(0) }),
            (_, Some((value, at))) => (value, AttributeTime { changed: None, known_since: number(at) }),
            _ => (text, AttributeTime::default()),
        }
    }

    /// `-`: there is none. Base, both ends, and what they are in the end: two-way, one way into the second, mirrored into it.
    /// `x@5`: changed at 5; `x>5`: not since 5; else nobody knows.
    #[test]
    fn the_table_of_attributes() {
        for line in [
            "x x y  y  y  x",
            "x y x  y  y  y",
            "x x -  -  -  x",
            "x - x  -  -  -",
            "x y z  z  y  y",
            "x y -  y  y  y",
            "x - y  y  y  -",
            "- - y  y  y  -",
            "- y -  y  y  y",
            "? - y  y  y  -",
            "? y -  y  y  y",
            "? y z  z  y  y",
            "? z y  z  z  z",
            // The later of two values; known times before none.
            "x z@5 y@6  y  z  z",
            "x z@6 y@5  z  z  z",
            "? z@5 y@6  y  z  z",
            "? z@6 y@6  z  z  z",
            "? z y@1  y  z  z",
            "? z>9 y@1  y  z  z",
            // A removal that is known to be later.
            "x y@5 -@6  -  y  y",
            "x -@6 y@5  -  y  -",
            "? y@5 -@6  -  y  y",
            "? y>5 -@6  -  y  y",
            "- y>5 -@6  y  y  y",
            // It is not: earlier, of the same second, or nobody knows what was when.
            "x y@7 -@6  y  y  y",
            "? y@6 -@6  y  y  y",
            "? y>6 -@6  y  y  y",
            "? y -@6  y  y  y",
            "? y@5 ->6  y  y  y",
            // One end alone changed it: times say nothing.
            "x x@9 y@5  y  y  x",
            "x x@9 -@5  -  -  x",
        ] {
            let [base, a, b, two_way, one_way, mirror]: [&str; 6] =
                line.split_whitespace().collect::<Vec<_>>().try_into().unwrap();
            let before = (base != "?").then(|| value(base).map(Digest::of_attribute));
            let (ends, times) = ([a, b].map(|text| timed(text).0), [a, b].map(|text| timed(text).1));
            let (now, swapped) = (Both(ends.map(value)), Both([ends[1], ends[0]].map(value)));
            let (times, times_swapped) = (Both(times), Both([times[1], times[0]]));
            let both = Both([value(two_way); 2]);
            assert_eq!(wanted(now, times, before, Direction::TwoWay), both, "{line}");
            assert_eq!(wanted(swapped, times_swapped, before, Direction::TwoWay), both, "{line}");
            let one = wanted(now, times, before, Direction::OneWay { into: INTO });
            assert_eq!(one, Both([now.0[0], value(one_way)]), "{line}");
            let mirrored = wanted(now, times, before, Direction::Mirror { into: INTO });
            assert_eq!(mirrored[INTO], value(mirror), "{line}");
        }
    }

    fn key(mailbox: u8, key: &str) -> AttributeKey {
        AttributeKey { key: key.into(), ..AttributeKey::first_of(MailboxGuid([mailbox; 16])) }
    }

    fn list(entries: &[(u8, &str, &str)]) -> AttributeList {
        let value = |text: &str| match text {
            "large" => AttributeValue::TooLarge,
            text => AttributeValue::Bytes(text.into()),
        };
        entries.iter().map(|(mailbox, name, text)| (key(*mailbox, name), value(text))).collect()
    }

    fn no_times() -> Both<&'static AttributeTimes> {
        static NONE: AttributeTimes = AttributeTimes::new();
        Both([&NONE; 2])
    }

    fn pair(guid: u8, at: [u8; 2]) -> Pair {
        let status = |guid: u8| dsync_model::MailboxStatus {
            guid: MailboxGuid([guid; 16]),
            uid_validity: dsync_model::UidValidity::new(1).unwrap(),
            uid_next: dsync_model::Uid::MIN,
            messages: 0,
            highest_modseq: dsync_model::ModSeq::NONE,
            digest: Digest::default(),
        };
        Pair {
            guid: MailboxGuid([guid; 16]),
            name: dsync_model::MailboxName::inbox(),
            statuses: Both(at.map(|guid| Some(status(guid)))),
        }
    }

    #[test]
    fn attributes_follow_their_mailbox_to_its_new_guid() {
        let (a, b) =
            (list(&[(1, "mine", "m"), (1, "both", "x"), (3, "else", "e")]), list(&[(2, "both", "x")]));
        let pairs = [pair(2, [1, 2])];
        let merged = |end| attributes(Both([&a, &b]), no_times(), None, Direction::TwoWay, &pairs, end);
        let moved = merged(End::Initiator);
        let wanted = [
            (key(1, "both"), None),
            (key(1, "mine"), None),
            (key(2, "both"), Some(b"x".to_vec())),
            (key(2, "mine"), Some(b"m".to_vec())),
        ];
        assert_eq!(moved.changes, wanted.into());
        // What only gets another name is no change of the mailbox.
        assert_eq!(moved.records, AttributeRecords::new());
        let other = merged(End::Responder);
        assert_eq!(other.changes, [(key(2, "mine"), Some(b"m".to_vec()))].into());
        assert_eq!(other.records, [(key(2, "mine"), AttributeRecord { bytes: Some(1), at: None })].into());
        assert_eq!(unequal_attributes(Both([&a, &b]), &pairs), [key(2, "mine")].into());
        assert_eq!(moved.agreed, other.agreed);
        assert_eq!(moved.agreed.keys().cloned().collect::<Vec<_>>(), [key(2, "both"), key(2, "mine")]);
    }

    #[test]
    fn a_mailbox_that_is_made_gets_its_attributes_and_no_others() {
        let left = [(1, "comment", "of the INBOX"), (1, "old", "x")];
        let (a, b) = (list(&left), list(&[(1, "comment", "of Work"), (2, "comment", "z")]));
        // The GUID of one end's INBOX is that of another mailbox at the other end.
        let mut made = pair(1, [1, 1]);
        made.statuses.0[0] = None;
        let base = [(key(1, "comment"), Digest::of_attribute(b"of Work"))].into();
        for pairs in [[made.clone(), pair(2, [1, 2])], [pair(2, [1, 2]), made]] {
            let merged =
                |end| attributes(Both([&a, &b]), no_times(), Some(&base), Direction::TwoWay, &pairs, end);
            let wanted = [
                (key(1, "comment"), Some(b"of Work".to_vec())),
                (key(1, "old"), None),
                (key(2, "comment"), Some(b"z".to_vec())),
                (key(2, "old"), Some(b"x".to_vec())),
            ];
            assert_eq!(merged(End::Initiator).changes, wanted.into());
            assert_eq!(merged(End::Responder).changes, [(key(2, "old"), Some(b"x".to_vec()))].into());
        }
    }

    #[test]
    fn what_is_too_large_and_the_source_are_left_alone() {
        let (a, b) =
            (list(&[(1, "big", "large"), (1, "x", "a")]), list(&[(1, "big", "small"), (1, "y", "b")]));
        let base = [(key(1, "big"), Digest::of_attribute(b"small"))].into();
        let pairs = [pair(1, [1, 1])];
        for into in ENDS {
            let direction = Direction::Mirror { into };
            let plan = |end| attributes(Both([&a, &b]), no_times(), Some(&base), direction, &pairs, end);
            assert_eq!(plan(into.other()).changes, AttributeChanges::new());
            let changed = plan(into).changes.into_keys().collect::<Vec<_>>();
            assert_eq!(changed, [key(1, "x"), key(1, "y")]);
            assert_eq!(plan(into).agreed, plan(into.other()).agreed);
            assert_eq!(plan(into).agreed[&key(1, "big")], Digest::of_attribute(b"small"));
        }
    }

    /// Up to four keys at two ends, with what the logs may say, and a base.
    type Two = ([BTreeMap<u8, (u8, AttributeTime)>; 2], Option<BTreeMap<u8, u8>>);

    fn two() -> impl proptest::strategy::Strategy<Value = Two> {
        use proptest::prelude::*;
        let time = (proptest::option::of(0..4u32), proptest::option::of(0..4u32))
            .prop_map(|(changed, known_since)| AttributeTime { changed, known_since });
        let end = proptest::collection::btree_map(0..4u8, (0..4u8, time), 0..4);
        let base = proptest::option::of(proptest::collection::btree_map(0..4u8, 1..4u8, 0..4));
        ([end.clone(), end], base)
    }

    proptest::proptest! {
        /// Both ends come to have the same, whichever of them began, and have nothing left to do then. What is logged keeps its time.
        #[test]
        fn the_ends_converge((ends, base) in two()) {
            let name = |n: u8| key(1, &n.to_string());
            // 0: there is none.
            let mut lists = ends.each_ref().map(|end| {
                let there = end.iter().filter(|(_, (value, _))| *value > 0);
                there.map(|(n, (value, _))| (name(*n), AttributeValue::Bytes(vec![*value]))).collect::<AttributeList>()
            });
            let times = ends.each_ref().map(|end| {
                end.iter().map(|(n, (_, time))| (name(*n), *time)).collect::<AttributeTimes>()
            });
            let base: Option<BTreeMap<AttributeKey, Digest>> = base.map(|base| {
                base.iter().map(|(n, value)| (name(*n), Digest::of_attribute(&[*value]))).collect()
            });
            let pairs = [pair(1, [1, 1])];
            let plan = |lists: &[AttributeList; 2], base: Option<&BTreeMap<_, _>>, swap: bool, end: End| {
                let order = if swap { [1, 0] } else { [0, 1] };
                let (lists, times) = (Both(order.map(|i| &lists[i])), Both(order.map(|i| &times[i])));
                attributes(lists, times, base, Direction::TwoWay, &pairs, end)
            };
            let plans = ENDS.map(|end| plan(&lists, base.as_ref(), false, end));
            for end in ENDS {
                proptest::prop_assert_eq!(&plans[end as usize], &plan(&lists, base.as_ref(), true, end.other()));
            }
            proptest::prop_assert_eq!(&plans[0].agreed, &plans[1].agreed);
            let unequal = unequal_attributes(Both([&lists[0], &lists[1]]), &pairs);
            for end in ENDS {
                let AttributePlan { changes, records, .. } = &plans[end as usize];
                proptest::prop_assert!(records.keys().eq(changes.keys()));
                for (name, value) in changes {
                    proptest::prop_assert!(unequal.contains(name));
                    let there = times[end.other() as usize].get(name).and_then(|time| time.changed);
                    proptest::prop_assert_eq!(records[name].at, there);
                    match value {
                        Some(value) => lists[end as usize].insert(name.clone(), AttributeValue::Bytes(value.clone())),
                        None => lists[end as usize].remove(name),
                    };
                }
            }
            proptest::prop_assert_eq!(&lists[0], &lists[1]);
            let again = plan(&lists, Some(&plans[0].agreed), false, End::Initiator);
            proptest::prop_assert_eq!(again.changes, AttributeChanges::new());
            proptest::prop_assert_eq!(&again.agreed, &plans[0].agreed);
        }
    }
}
