//! Merges the flags of one message.
//!
//! Pure: two deltas in, the wanted set out. Which message meets which is settled in `messages`.

use dsync_model::{FlagDelta, FlagSet, Flags, ModSeq};

/// Merges what both ends did to one message's flags. Symmetric.
///
/// A flag that only one end has is kept or cleared as the end that changed it wants. If both changed it, each its way, the
/// higher modseq wins. If that is equal too, or neither is known to have changed it, the flag stays set,
/// except `\Seen` and `\Deleted`: unread mail that looks read is overlooked, and a deleted mark that nobody is known to have set
/// may cost the mail. (Rule **flags-undecidable**.)
pub fn merge(a: (&FlagDelta, ModSeq), b: (&FlagDelta, ModSeq)) -> FlagSet {
    let ((one, one_modseq), (two, two_modseq)) = (a, b);
    let mut merged = one.current.intersection(&two.current);
    for (has, has_modseq, lacks, lacks_modseq) in
        [(one, one_modseq, two, two_modseq), (two, two_modseq, one, one_modseq)]
    {
        let differing = has.current.minus(&lacks.current);
        let kept = |added: bool, removed: bool, undecided: bool| match (added, removed) {
            (true, false) => true,
            (false, true) => false,
            (true, true) if has_modseq != lacks_modseq => has_modseq > lacks_modseq,
            _ => undecided,
        };
        for (flag, _) in Flags::NAMES {
            let undecided = flag != Flags::SEEN && flag != Flags::DELETED;
            if differing.system.contains(flag)
                && kept(has.added.system.contains(flag), lacks.removed.system.contains(flag), undecided)
            {
                merged.system = merged.system.union(flag);
            }
        }
        for keyword in differing.keywords {
            if kept(has.added.keywords.contains(&keyword), lacks.removed.keywords.contains(&keyword), true) {
                merged.keywords.insert(keyword);
            }
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delta(before: Flags, now: Flags) -> FlagDelta {
        FlagDelta::between(&FlagSet::system(before), FlagSet::system(now))
    }

    #[test]
    fn the_table_of_flags() {
        let (none, seen, flagged) = (Flags::NONE, Flags::SEEN, Flags::FLAGGED);
        let modseq = |n| ModSeq::new(n).unwrap();
        for (what, a, b, expected) in [
            ("set here", delta(none, seen), delta(none, none), seen),
            ("cleared here", delta(seen, none), delta(seen, seen), none),
            ("different flags set", delta(none, seen), delta(none, flagged), seen.union(flagged)),
            ("nobody knows: seen", delta(seen, seen), delta(none, none), none),
            ("nobody knows: flagged", delta(flagged, flagged), delta(none, none), flagged),
        ] {
            for (a, b) in [(&a, &b), (&b, &a)] {
                assert_eq!(merge((a, ModSeq::NONE), (b, ModSeq::NONE)).system, expected, "{what}");
            }
        }
        let (set, cleared) = (delta(none, seen), delta(seen, none));
        assert_eq!(merge((&set, modseq(9)), (&cleared, modseq(7))).system, seen);
        assert_eq!(merge((&set, modseq(7)), (&cleared, modseq(9))).system, none);
    }
}
