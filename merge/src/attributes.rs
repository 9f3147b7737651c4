//! Merges the attributes of mailboxes: both lists and the base in, one end's changes out.

use std::collections::{BTreeMap, BTreeSet};

use dsync_model::{
    AttributeChanges, AttributeKey, AttributeList, AttributeScope, AttributeValue, Digest, MailboxGuid,
};

use crate::{Both, Direction, ENDS, End, Pair};

/// What one end does with its attributes.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct AttributePlan {
    pub changes: AttributeChanges,
    /// What both ends may remember.
    pub agreed: BTreeMap<AttributeKey, Digest>,
}

type Known<'a> = BTreeMap<(AttributeScope, &'a str), &'a AttributeValue>;

/// Merges the attributes of the mailboxes that both ends have once the tree is merged, and gives the half of `end`.
///
/// They hang on GUIDs: an end whose mailbox gets another one keeps them under the new one.
pub fn attributes(
    lists: Both<&AttributeList>,
    base: Option<&BTreeMap<AttributeKey, Digest>>,
    direction: Direction,
    pairs: &[Pair],
    end: End,
) -> AttributePlan {
    let mut plan = AttributePlan::default();
    for pair in pairs {
        let guids = Both(ENDS.map(|end| pair.statuses[end].as_ref().map(|status| status.guid)));
        let known =
            Both(ENDS.map(|end| guids[end].map_or_else(Known::new, |guid| of_mailbox(lists[end], guid))));
        // Left from a mailbox of that GUID which was here once, or of one that gives it away now.
        let stored = of_mailbox(lists[end], pair.guid);
        let is_new = guids[end] != Some(pair.guid);
        let both = guids.0.iter().all(Option::is_some);
        let keys: BTreeSet<_> =
            known.0.iter().chain([&stored]).flat_map(|known| known.keys().copied()).collect();
        for (scope, key) in keys {
            let name = |mailbox| AttributeKey { mailbox, scope, key: key.to_owned() };
            // Where the mailbox is made, its attributes were not removed.
            let before = base.filter(|_| both).map(|base| base.get(&name(pair.guid)).copied());
            let mut now = Both::default();
            let mut too_large = false;
            for end in ENDS {
                match known[end].get(&(scope, key)) {
                    Some(AttributeValue::Bytes(bytes)) => now[end] = Some(bytes.as_slice()),
                    Some(AttributeValue::TooLarge) => too_large = true,
                    None => {}
                }
            }
            if too_large {
                plan.agreed.extend(before.flatten().map(|digest| (name(pair.guid), digest)));
                continue;
            }
            let wanted = wanted(now, before, direction);
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
                None if stored.contains_key(&(scope, key)) => {
                    plan.changes.entry(name(pair.guid)).or_insert(None);
                }
                _ => {}
            }
        }
    }
    plan
}

fn of_mailbox(list: &AttributeList, mailbox: MailboxGuid) -> Known<'_> {
    let from = list.range(AttributeKey::first_of(mailbox)..);
    let here = from.take_while(|(key, _)| key.mailbox == mailbox);
    here.map(|(key, value)| ((key.scope, key.key.as_str()), value)).collect()
}

/// Rule **attribute**: the end that changed it since the base. If both did, or nobody knows: a value rather than none, then
/// the one that sorts last. `before`: without a base `None`.
fn wanted(
    now: Both<Option<&[u8]>>,
    before: Option<Option<Digest>>,
    direction: Direction,
) -> Both<Option<&[u8]>> {
    let changed = |end: End| before.is_none_or(|before| now[end].map(Digest::of_attribute) != before);
    match direction {
        Direction::TwoWay => {
            let value = match ENDS.map(changed) {
                [true, false] => now.0[0],
                [false, true] => now.0[1],
                _ => now.0[0].max(now.0[1]),
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

#[cfg(test)]
mod tests {
    use super::*;

    const INTO: End = End::Responder;

    fn value(text: &str) -> Option<&[u8]> {
        (text != "-").then_some(text.as_bytes())
    }

    /// `-`: there is none. Base, both ends, and what they are in the end: two-way, one way into the second, mirrored into it.
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
        ] {
            let [base, a, b, two_way, one_way, mirror]: [&str; 6] =
                line.split_whitespace().collect::<Vec<_>>().try_into().unwrap();
            let before = (base != "?").then(|| value(base).map(Digest::of_attribute));
            let now = Both([value(a), value(b)]);
            let swapped = Both([value(b), value(a)]);
            let both = Both([value(two_way); 2]);
            assert_eq!(wanted(now, before, Direction::TwoWay), both, "{line}");
            assert_eq!(wanted(swapped, before, Direction::TwoWay), both, "{line}");
            let one = wanted(now, before, Direction::OneWay { into: INTO });
            assert_eq!(one, Both([value(a), value(one_way)]), "{line}");
            assert_eq!(wanted(now, before, Direction::Mirror { into: INTO })[INTO], value(mirror), "{line}");
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
        let merged = |end| attributes(Both([&a, &b]), None, Direction::TwoWay, &pairs, end);
        let moved = merged(End::Initiator);
        let wanted = [
            (key(1, "both"), None),
            (key(1, "mine"), None),
            (key(2, "both"), Some(b"x".to_vec())),
            (key(2, "mine"), Some(b"m".to_vec())),
        ];
        assert_eq!(moved.changes, wanted.into());
        let other = merged(End::Responder);
        assert_eq!(other.changes, [(key(2, "mine"), Some(b"m".to_vec()))].into());
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
            let merged = |end| attributes(Both([&a, &b]), Some(&base), Direction::TwoWay, &pairs, end);
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
            let plan = |end| attributes(Both([&a, &b]), Some(&base), direction, &pairs, end);
            assert_eq!(plan(into.other()).changes, AttributeChanges::new());
            let changed = plan(into).changes.into_keys().collect::<Vec<_>>();
            assert_eq!(changed, [key(1, "x"), key(1, "y")]);
            assert_eq!(plan(into).agreed, plan(into.other()).agreed);
            assert_eq!(plan(into).agreed[&key(1, "big")], Digest::of_attribute(b"small"));
        }
    }
}
