//! Flags and keywords of messages, and what was done to them.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::fmt;
use std::hash::{Hash, Hasher};

use bincode::de::{BorrowDecoder, Decoder};
use bincode::error::DecodeError;
use bincode::{BorrowDecode, Decode, Encode};

/// Longest keyword, in bytes.
pub const KEYWORD_BYTES_MAX: usize = 255;
/// Most keywords on one message that we take from a peer or a file.
pub const KEYWORDS_MAX: usize = 1000;

/// The five system flags (RFC 9051 §2.3.2). `\Recent` is not among them: it never travels.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Encode)]
pub struct Flags(u8);

impl Flags {
    pub const NONE: Flags = Flags(0);
    pub const ANSWERED: Flags = Flags(1);
    pub const FLAGGED: Flags = Flags(2);
    pub const DELETED: Flags = Flags(4);
    pub const SEEN: Flags = Flags(8);
    pub const DRAFT: Flags = Flags(16);
    /// Each flag once, with its IMAP name, in the order of its bit.
    pub const NAMES: [(Flags, &str); 5] = [
        (Flags::ANSWERED, "\\Answered"),
        (Flags::FLAGGED, "\\Flagged"),
        (Flags::DELETED, "\\Deleted"),
        (Flags::SEEN, "\\Seen"),
        (Flags::DRAFT, "\\Draft"),
    ];

    /// `None` if a bit is set that is no flag.
    pub const fn from_bits(bits: u8) -> Option<Flags> {
        if bits < 32 { Some(Flags(bits)) } else { None }
    }

    /// The flags as the bits of the constants above.
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Says whether all of `other` are set here.
    pub const fn contains(self, other: Flags) -> bool {
        self.0 & other.0 == other.0
    }

    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    #[must_use]
    pub const fn union(self, other: Flags) -> Flags {
        Flags(self.0 | other.0)
    }

    #[must_use]
    pub const fn intersection(self, other: Flags) -> Flags {
        Flags(self.0 & other.0)
    }

    #[must_use]
    pub const fn minus(self, other: Flags) -> Flags {
        Flags(self.0 & !other.0)
    }
}

impl fmt::Debug for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> =
            Flags::NAMES.iter().filter(|(flag, _)| self.contains(*flag)).map(|(_, n)| *n).collect();
        f.write_str(&names.join(" "))
    }
}

impl<C> Decode<C> for Flags {
    fn decode<D: Decoder<Context = C>>(decoder: &mut D) -> Result<Self, DecodeError> {
        Flags::from_bits(u8::decode(decoder)?).ok_or(DecodeError::Other("unknown system flag"))
    }
}

impl<'de, C> BorrowDecode<'de, C> for Flags {
    fn borrow_decode<D: BorrowDecoder<'de, Context = C>>(decoder: &mut D) -> Result<Self, DecodeError> {
        Self::decode(decoder)
    }
}

/// A keyword (RFC 9051 §2.3.2): any flag but the system flags. Compared without regard to ASCII case,
/// as every mail store does; the spelling is kept.
#[derive(Clone, Encode)]
pub struct Keyword(Box<str>);

impl Keyword {
    /// `None` for text that no keyword can be: empty, over [`KEYWORD_BYTES_MAX`] bytes, with white
    /// space or control characters, or beginning with a backslash.
    pub fn new(text: &str) -> Option<Keyword> {
        let valid = !text.is_empty()
            && text.len() <= KEYWORD_BYTES_MAX
            && !text.starts_with('\\')
            && !text.chars().any(|c| c.is_control() || c.is_whitespace());
        valid.then(|| Keyword(text.into()))
    }

    /// The keyword as it was first spelled.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn folded(&self) -> impl Iterator<Item = u8> + '_ {
        self.0.bytes().map(|b| b.to_ascii_lowercase())
    }
}

impl PartialEq for Keyword {
    fn eq(&self, other: &Self) -> bool {
        self.0.eq_ignore_ascii_case(&other.0)
    }
}

impl Eq for Keyword {}

impl PartialOrd for Keyword {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Keyword {
    fn cmp(&self, other: &Self) -> Ordering {
        self.folded().cmp(other.folded())
    }
}

impl Hash for Keyword {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.folded().for_each(|b| state.write_u8(b));
        state.write_u8(0xff);
    }
}

impl fmt::Debug for Keyword {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Keyword {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<C> Decode<C> for Keyword {
    fn decode<D: Decoder<Context = C>>(decoder: &mut D) -> Result<Self, DecodeError> {
        Keyword::new(&String::decode(decoder)?).ok_or(DecodeError::Other("keyword is not valid text"))
    }
}

impl<'de, C> BorrowDecode<'de, C> for Keyword {
    fn borrow_decode<D: BorrowDecoder<'de, Context = C>>(decoder: &mut D) -> Result<Self, DecodeError> {
        Self::decode(decoder)
    }
}

/// All flags of one message.
#[derive(Clone, PartialEq, Eq, Default, Debug, Encode, Decode)]
pub struct FlagSet {
    pub system: Flags,
    pub keywords: BTreeSet<Keyword>,
}

impl FlagSet {
    /// System flags without keywords.
    pub fn system(system: Flags) -> FlagSet {
        FlagSet { system, keywords: BTreeSet::new() }
    }

    pub fn is_empty(&self) -> bool {
        self.system.is_empty() && self.keywords.is_empty()
    }

    #[must_use]
    pub fn union(&self, other: &FlagSet) -> FlagSet {
        FlagSet {
            system: self.system.union(other.system),
            keywords: self.keywords.union(&other.keywords).cloned().collect(),
        }
    }

    #[must_use]
    pub fn intersection(&self, other: &FlagSet) -> FlagSet {
        FlagSet {
            system: self.system.intersection(other.system),
            keywords: self.keywords.intersection(&other.keywords).cloned().collect(),
        }
    }

    #[must_use]
    pub fn minus(&self, other: &FlagSet) -> FlagSet {
        FlagSet {
            system: self.system.minus(other.system),
            keywords: self.keywords.difference(&other.keywords).cloned().collect(),
        }
    }
}

/// What one end did to a message's flags since the base (or since the log reaches back), and how they
/// stand. `added` is within `current`, `removed` outside of it.
#[derive(Clone, PartialEq, Eq, Default, Debug, Encode, Decode)]
pub struct FlagDelta {
    pub added: FlagSet,
    pub removed: FlagSet,
    pub current: FlagSet,
}

impl FlagDelta {
    /// Flags whose history is not known.
    pub fn standing(current: FlagSet) -> FlagDelta {
        FlagDelta { added: FlagSet::default(), removed: FlagSet::default(), current }
    }

    /// What led from `before` to `current`.
    pub fn between(before: &FlagSet, current: FlagSet) -> FlagDelta {
        FlagDelta { added: current.minus(before), removed: before.minus(&current), current }
    }

    /// Says whether anything was added or removed.
    pub fn is_change(&self) -> bool {
        !self.added.is_empty() || !self.removed.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keywords_differ_by_more_than_case() {
        let (a, b) = (Keyword::new("Work").unwrap(), Keyword::new("wORK").unwrap());
        assert_eq!(a, b);
        assert_eq!(a.cmp(&b), Ordering::Equal);
        assert_ne!(a, Keyword::new("Works").unwrap());
        assert!(Keyword::new("\\Seen").is_none() && Keyword::new("a b").is_none());
    }
}
