//! What a base still tells when one end's UIDVALIDITY is no longer its own. Rule **void-base**.

use std::collections::BTreeMap;

use dsync_model::{FlagDelta, FlagSet, MailboxBase, MailboxStatus, MessageChange, MessageGuid};

/// Tells in the lists of all messages, those of both ends in any order, what the base tells of their flags.
///
/// Gives what was changed at one end of messages of which the log of the other tells that they were expunged: see [`carried`](crate::MessagePlan::carried).
pub fn void_base(
    base: &MailboxBase,
    mut lists: [(&MailboxStatus, &mut [MessageChange]); 2],
) -> Vec<(MessageGuid, FlagDelta)> {
    let fits = lists.each_ref().map(|(status, _)| status.uid_validity == base.uid_validity);
    for ((_, list), fits) in lists.iter_mut().zip(fits) {
        if fits {
            flags_since(base, list);
        }
    }
    let [(_, one), (_, two)] = lists;
    match fits {
        [true, false] => flags_set_since(base, one, two),
        [false, true] => flags_set_since(base, two, one),
        _ => Vec::new(),
    }
}

/// Tells what changed of flags since the base, in the list of the end whose UIDVALIDITY it still has. The log that a list without a base
/// comes from goes further back: what was removed long ago is no change.
fn flags_since(base: &MailboxBase, list: &mut [MessageChange]) {
    for change in list {
        if let MessageChange::Save { uid, flags, .. } = change
            && base.uids.contains(uid.get())
        {
            *flags = FlagDelta::between(&base.flags_of(*uid), std::mem::take(&mut flags.current));
        }
    }
}

/// Tells which flags were set since the base in the list of the other end, whose messages are known by the GUIDs that they have in the `first`
/// list. What it lacks may have been lost with its UIDVALIDITY: if its log does not tell of a removal, the first end stands by it.
fn flags_set_since(
    base: &MailboxBase,
    first: &mut [MessageChange],
    other: &mut [MessageChange],
) -> Vec<(MessageGuid, FlagDelta)> {
    let mut known: BTreeMap<[u8; 16], Option<Known<'_>>> = BTreeMap::new();
    for change in first {
        let (guid, found) = match change {
            MessageChange::Save { uid, guid, flags, .. } => {
                (guid.bits(), base.uids.contains(uid.get()).then_some(Known::Here(&*guid, flags)))
            }
            MessageChange::Expunge { uid, guid: Some(guid) } => {
                (guid.bits(), base.uids.contains(uid.get()).then(|| Known::Gone(base.flags_of(*uid))))
            }
            MessageChange::Expunge { guid: None, .. } | MessageChange::Flags { .. } => continue,
        };
        // Of two with one GUID, who knows which it is.
        known.entry(guid).and_modify(|known| *known = None).or_insert(found);
    }
    let mut carried = Vec::new();
    for change in other {
        let (guid, flags) = match change {
            MessageChange::Save { guid, flags, .. } => (guid, flags),
            MessageChange::Expunge { guid: Some(guid), .. } => {
                if let Some(Some(Known::Here(guid, flags))) = known.get(&guid.bits())
                    && flags.is_change()
                {
                    carried.push(((*guid).clone(), (**flags).clone()));
                }
                continue;
            }
            MessageChange::Expunge { guid: None, .. } | MessageChange::Flags { .. } => continue,
        };
        match known.get_mut(&guid.bits()) {
            Some(Some(Known::Here(_, first))) => {
                let common = first.current.minus(&first.added).union(&first.removed);
                flags.added = flags.current.minus(&common);
                let lost = common.minus(&flags.current).minus(&flags.removed);
                first.added = first.added.union(&first.current.intersection(&lost));
            }
            Some(Some(Known::Gone(common))) => {
                flags.added = flags.current.minus(common);
                let set =
                    FlagDelta { added: flags.added.clone(), ..FlagDelta::standing(flags.current.clone()) };
                if set.is_change() {
                    carried.push((guid.clone(), set));
                }
            }
            _ => {}
        }
    }
    carried
}

/// A message of the base at the end whose UIDVALIDITY it has.
enum Known<'a> {
    /// With what it did to its flags.
    Here(&'a MessageGuid, &'a mut FlagDelta),
    /// With what the base has.
    Gone(FlagSet),
}

#[cfg(test)]
mod tests {
    use dsync_model::{Flags, ModSeq, Uid, UidValidity};

    use super::*;

    fn uid(uid: u32) -> Uid {
        Uid::new(uid).unwrap()
    }

    fn save(number: u32, guid: &str, flags: Flags) -> MessageChange {
        MessageChange::Save {
            uid: uid(number),
            guid: MessageGuid::new(guid).unwrap(),
            modseq: ModSeq::NONE,
            flags: FlagDelta::standing(FlagSet::system(flags)),
            size: None,
        }
    }

    fn delta(change: &MessageChange) -> (Flags, Flags) {
        let MessageChange::Save { flags, .. } = change else { panic!("no save") };
        (flags.added.system, flags.removed.system)
    }

    #[test]
    fn the_base_tells_one_end_everything_and_the_other_what_was_set() {
        let (none, seen, flagged) = (Flags::NONE, Flags::SEEN, Flags::FLAGGED);
        let mut base = MailboxBase::new(UidValidity::new(1).unwrap(), uid(5));
        for (number, flags) in [(1, flagged), (2, none), (3, none), (4, seen)] {
            base.insert(uid(number), &FlagSet::system(flags));
        }
        let mut first = [
            save(1, "a", none),
            save(2, "b", none),
            save(3, "b", none),
            save(4, "d", seen),
            save(5, "new", seen),
        ];
        let mut other = [
            save(1, "new", none),
            save(7, "a", seen),
            save(8, "b", seen),
            save(9, "c", seen),
            save(10, "d", none),
        ];
        flags_since(&base, &mut first);
        assert_eq!(delta(&first[0]), (none, flagged), "cleared here");
        flags_set_since(&base, &mut first, &mut other);
        let expected = [(none, flagged), (none, none), (none, none), (seen, none), (none, none)];
        assert_eq!(first.each_ref().map(delta), expected, "d is told of as read: that was lost there");
        let expected = [(none, none), (seen, none), (none, none), (none, none), (none, none)];
        assert_eq!(other.each_ref().map(delta), expected);
    }

    #[test]
    fn a_removal_that_the_log_tells_of_was_no_loss() {
        let seen = Flags::SEEN;
        let mut base = MailboxBase::new(UidValidity::new(1).unwrap(), uid(2));
        base.insert(uid(1), &FlagSet::system(seen));
        let mut first = [save(1, "a", seen)];
        let mut other = [save(1, "a", Flags::NONE)];
        let MessageChange::Save { flags, .. } = &mut other[0] else { panic!("no save") };
        flags.removed = FlagSet::system(seen);
        flags_since(&base, &mut first);
        flags_set_since(&base, &mut first, &mut other);
        assert_eq!([delta(&first[0]), delta(&other[0])], [(Flags::NONE, Flags::NONE), (Flags::NONE, seen)]);
    }

    #[test]
    fn flags_set_on_what_the_first_end_moved_away_are_carried() {
        let flagged = Flags::FLAGGED;
        let mut base = MailboxBase::new(UidValidity::new(1).unwrap(), uid(3));
        base.insert(uid(1), &FlagSet::system(Flags::SEEN));
        base.insert(uid(2), &FlagSet::system(Flags::SEEN));
        let gone = |number| MessageChange::Expunge {
            uid: uid(number),
            guid: MessageGuid::new(&"a".repeat(number as usize)),
        };
        let mut first = [gone(1), gone(2)];
        let mut other = [save(1, "a", Flags::SEEN.union(flagged)), save(2, "aa", Flags::NONE)];
        let carried = flags_set_since(&base, &mut first, &mut other);
        let [(guid, set)] = &carried[..] else { panic!("{carried:?}") };
        assert_eq!((guid.as_str(), set.added.system, set.removed.is_empty()), ("a", flagged, true));
    }

    #[test]
    fn flags_changed_on_what_the_other_end_moved_away_are_carried() {
        let mut base = MailboxBase::new(UidValidity::new(1).unwrap(), uid(3));
        base.insert(uid(1), &FlagSet::system(Flags::SEEN));
        base.insert(uid(2), &FlagSet::system(Flags::SEEN));
        let mut first = [save(1, "a", Flags::FLAGGED), save(2, "aa", Flags::SEEN)];
        let gone = |number, guid| MessageChange::Expunge { uid: uid(number), guid: MessageGuid::new(guid) };
        let mut other = [gone(1, "a"), gone(2, "aa")];
        flags_since(&base, &mut first);
        let carried = flags_set_since(&base, &mut first, &mut other);
        let [(guid, delta)] = &carried[..] else { panic!("{carried:?}") };
        let delta = (delta.added.system, delta.removed.system);
        assert_eq!((guid.as_str(), delta), ("a", (Flags::FLAGGED, Flags::SEEN)));
    }
}
