//! What a base still tells when one end's UIDVALIDITY is no longer its own. Rule **void-base**.

use std::collections::BTreeMap;

use dsync_model::{FlagDelta, MailboxBase, MessageChange};

/// Tells what changed of flags since the base, in the list of the end whose UIDVALIDITY it still has. The log that a list without a base
/// comes from goes further back: what was removed long ago is no change.
pub fn flags_since(base: &MailboxBase, list: &mut [MessageChange]) {
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
pub fn flags_set_since(base: &MailboxBase, first: &mut [MessageChange], other: &mut [MessageChange]) {
    let mut before: BTreeMap<[u8; 16], Option<&mut FlagDelta>> = BTreeMap::new();
    for change in first {
        if let MessageChange::Save { uid, guid, flags, .. } = change {
            let known = base.uids.contains(uid.get()).then_some(flags);
            // Of two with one GUID, who knows which it is.
            before.entry(guid.bits()).and_modify(|flags| *flags = None).or_insert(known);
        }
    }
    for change in other {
        if let MessageChange::Save { guid, flags, .. } = change
            && let Some(Some(first)) = before.get_mut(&guid.bits())
        {
            let common = first.current.minus(&first.added).union(&first.removed);
            flags.added = flags.current.minus(&common);
            let lost = common.minus(&flags.current).minus(&flags.removed);
            first.added = first.added.union(&first.current.intersection(&lost));
        }
    }
}

#[cfg(test)]
mod tests {
    use dsync_model::{FlagSet, Flags, MessageGuid, ModSeq, Uid, UidValidity};

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
}
