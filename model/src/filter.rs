//! Which messages a synchronisation is to bring over: what `-t`, `-e`, `-I` and `-O` say.
//!
//! A filter decides only whether a message that is missing at the receiving end is saved there. How dates and sizes are
//! written is not its business.

use bincode::{Decode, Encode};

use crate::{FlagSet, Timestamp};

/// Conditions that a message must meet, all of them, to be saved at an end that lacks it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Encode, Decode)]
pub struct Filter {
    /// `-t`: received at this time or later.
    pub since: Option<Timestamp>,
    /// `-e`: received at this time or earlier.
    pub until: Option<Timestamp>,
    /// `-I`: at most so many bytes, lines ended by CRLF.
    pub size_max: Option<u64>,
    /// `-O flag`: with all of these flags and keywords.
    pub with: FlagSet,
    /// `-O -flag`: with none of these.
    pub without: FlagSet,
}

impl Filter {
    /// Says whether every message passes.
    pub fn is_empty(&self) -> bool {
        *self == Filter::default()
    }

    /// Says whether a message with these flags may pass.
    pub fn flags_pass(&self, flags: &FlagSet) -> bool {
        self.with.minus(flags).is_empty() && self.without.intersection(flags).is_empty()
    }

    /// Says whether a message received then may pass; one whose date nobody knows passes.
    pub fn date_passes(&self, received: Option<Timestamp>) -> bool {
        let Some(received) = received else { return true };
        self.since.is_none_or(|since| received >= since) && self.until.is_none_or(|until| received <= until)
    }

    /// Says whether the size as stored settles the matter: lines ended by LF grow by a byte each.
    pub fn size_passes(&self, stored: u64) -> Option<bool> {
        match self.size_max {
            None => Some(true),
            Some(max) if stored > max => Some(false),
            Some(max) if stored.saturating_mul(2) <= max => Some(true),
            Some(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Flags, Keyword};

    #[test]
    fn each_condition_counts() {
        let keyword = |k: &str| FlagSet { system: Flags::NONE, keywords: [Keyword::new(k).unwrap()].into() };
        let filter = Filter {
            since: Some(Timestamp(10)),
            until: Some(Timestamp(20)),
            size_max: Some(100),
            with: FlagSet::system(Flags::SEEN),
            without: keyword("$Junk"),
        };
        for (received, passes) in [(9, false), (10, true), (20, true), (21, false)] {
            assert_eq!(filter.date_passes(Some(Timestamp(received))), passes, "{received}");
        }
        assert!(filter.date_passes(None));
        assert_eq!([50, 51, 100, 101].map(|s| filter.size_passes(s)), [Some(true), None, None, Some(false)]);
        assert!(filter.flags_pass(&FlagSet::system(Flags::SEEN)));
        assert!(!filter.flags_pass(&FlagSet::system(Flags::FLAGGED)));
        assert!(!filter.flags_pass(&FlagSet::system(Flags::SEEN).union(&keyword("$junk"))));
        assert!(Filter::default().is_empty() && !filter.is_empty());
    }
}
