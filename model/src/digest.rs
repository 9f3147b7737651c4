//! The digest of a set of messages: equal digests show that two mailboxes are equal.

use std::fmt;

use bincode::{Decode, Encode};
use xxhash_rust::xxh3::Xxh3;

use crate::{FlagSet, MessageGuid, Uid};

/// Sum, modulo 2¹²⁸, of one keyed hash per message over UID, 128-bit form of the GUID, flags and
/// keywords (without their case). Independent of order, so it can be kept up to date change by change.
///
/// The hash is XXH3-128 with the seed [`Digest::SEED`] over: UID as u32 little-endian, 16 bytes of GUID, one
/// byte of flags, then each keyword in ascending order in lower case followed by a zero byte.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash, Encode, Decode)]
pub struct Digest(pub u128);

impl Digest {
    /// Seed of the hash: "dsyncdg1" in ASCII, big-endian.
    pub const SEED: u64 = 0x6473_796e_6364_6731;

    /// Adds one message.
    pub fn add(&mut self, uid: Uid, guid: &MessageGuid, flags: &FlagSet) {
        self.0 = self.0.wrapping_add(hash(uid, guid, flags));
    }

    /// Takes one message away again.
    pub fn subtract(&mut self, uid: Uid, guid: &MessageGuid, flags: &FlagSet) {
        self.0 = self.0.wrapping_sub(hash(uid, guid, flags));
    }

    /// The digest of a list of messages.
    pub fn of<'a>(messages: impl IntoIterator<Item = &'a crate::Message>) -> Digest {
        let mut digest = Digest::default();
        for message in messages {
            digest.add(message.uid, &message.guid, &message.flags);
        }
        digest
    }
}

fn hash(uid: Uid, guid: &MessageGuid, flags: &FlagSet) -> u128 {
    let mut hash = Xxh3::with_seed(Digest::SEED);
    let mut fixed = [0; 21];
    fixed[..4].copy_from_slice(&uid.get().to_le_bytes());
    fixed[4..20].copy_from_slice(&guid.bits());
    fixed[20] = flags.system.bits();
    hash.update(&fixed);
    for keyword in &flags.keywords {
        hash.update(keyword.as_str().to_ascii_lowercase().as_bytes());
        hash.update(&[0]);
    }
    hash.digest128()
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Flags, Keyword};

    #[test]
    fn order_and_case_do_not_matter_all_else_does() {
        let uid = |n| Uid::new(n).unwrap();
        let guid = |t: &str| MessageGuid::new(t).unwrap();
        let flags = |k: &str| FlagSet { system: Flags::SEEN, keywords: [Keyword::new(k).unwrap()].into() };
        let digest = |list: &[(u32, &str, &str)]| {
            let mut sum = Digest::default();
            list.iter().for_each(|(u, g, k)| sum.add(uid(*u), &guid(g), &flags(k)));
            sum
        };
        let first = digest(&[(1, "a", "X"), (2, "b", "y")]);
        assert_eq!(first, digest(&[(2, "b", "Y"), (1, "a", "x")]));
        for other in [&[(1, "a", "X"), (3, "b", "y")][..], &[(1, "b", "X"), (2, "a", "y")], &[(1, "a", "X")]]
        {
            assert_ne!(first, digest(other));
        }
        let mut back = first;
        back.subtract(uid(2), &guid("b"), &flags("y"));
        assert_eq!(back, digest(&[(1, "a", "X")]));
    }
}
