//! Identifiers: of messages, mailboxes and stores. Values that exist are valid.

use std::fmt;
use std::num::NonZeroU32;

use bincode::de::{BorrowDecoder, Decoder};
use bincode::error::DecodeError;
use bincode::{BorrowDecode, Decode, Encode};
use sha1::{Digest as _, Sha1};

/// Longest message GUID, in bytes: that of a file name.
pub const GUID_BYTES_MAX: usize = 255;

/// UID of a message (RFC 9051 §2.3.1.1): 1 to 2³²−1, never reused under one UIDVALIDITY.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct Uid(NonZeroU32);

impl Uid {
    /// The lowest UID, and the UIDNEXT of a mailbox that never held a message.
    pub const MIN: Uid = Uid(NonZeroU32::MIN);

    /// `None` for 0, which is no UID.
    pub const fn new(value: u32) -> Option<Uid> {
        match NonZeroU32::new(value) {
            Some(value) => Some(Uid(value)),
            None => None,
        }
    }

    /// The number itself.
    pub const fn get(self) -> u32 {
        self.0.get()
    }

    /// The UID after this one; `None` at 2³²−1, where the mailbox is full.
    pub const fn next(self) -> Option<Uid> {
        match self.0.checked_add(1) {
            Some(value) => Some(Uid(value)),
            None => None,
        }
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// UIDVALIDITY of a mailbox (RFC 9051 §2.3.1.1): 1 to 2³²−1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct UidValidity(NonZeroU32);

impl UidValidity {
    /// `None` for 0, which is no UIDVALIDITY.
    pub const fn new(value: u32) -> Option<UidValidity> {
        match NonZeroU32::new(value) {
            Some(value) => Some(UidValidity(value)),
            None => None,
        }
    }

    /// The number itself.
    pub const fn get(self) -> u32 {
        self.0.get()
    }
}

impl fmt::Display for UidValidity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for UidValidity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// MODSEQ (RFC 7162 §3.1): below 2⁶³; 0 says that the storage keeps none.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Encode)]
pub struct ModSeq(u64);

impl ModSeq {
    /// The value of a storage that keeps no modseqs.
    pub const NONE: ModSeq = ModSeq(0);

    /// `None` from 2⁶³ on.
    pub const fn new(value: u64) -> Option<ModSeq> {
        if value < 1 << 63 { Some(ModSeq(value)) } else { None }
    }

    /// The number itself.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for ModSeq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<C> Decode<C> for ModSeq {
    fn decode<D: Decoder<Context = C>>(decoder: &mut D) -> Result<Self, DecodeError> {
        ModSeq::new(u64::decode(decoder)?).ok_or(DecodeError::Other("modseq of 2^63 or more"))
    }
}

impl<'de, C> BorrowDecode<'de, C> for ModSeq {
    fn borrow_decode<D: BorrowDecoder<'de, Context = C>>(decoder: &mut D) -> Result<Self, DecodeError> {
        Self::decode(decoder)
    }
}

/// A point in time: seconds since 1970-01-01 UTC.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Encode, Decode)]
pub struct Timestamp(pub i64);

/// A number that counts the agreements of a pair of stores; the first is 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Encode, Decode)]
pub struct Generation(pub u64);

/// 128-bit name of a mailbox; survives renames. Text form: 32 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Encode, Decode)]
pub struct MailboxGuid(pub [u8; 16]);

impl MailboxGuid {
    /// Reads 32 hex digits of either case.
    pub fn parse(text: &str) -> Option<MailboxGuid> {
        hex_128(text).map(MailboxGuid)
    }

    /// The GUID that a second mailbox with this GUID takes: both ends compute the same one.
    #[must_use]
    pub fn derived(self, salt: &[u8]) -> MailboxGuid {
        let mut hash = Sha1::new();
        hash.update(self.0);
        hash.update(salt);
        MailboxGuid(last_16(&hash.finalize()))
    }
}

impl fmt::Display for MailboxGuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

impl fmt::Debug for MailboxGuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

/// The random name of a store, kept in its control directory as `.dsync-store`. 32 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct StoreId(pub [u8; 16]);

impl StoreId {
    /// Reads 32 hex digits of either case.
    pub fn parse(text: &str) -> Option<StoreId> {
        hex_128(text).map(StoreId)
    }

    /// The name of the pair that this store and `other` are; the same from both ends.
    pub fn pair(self, other: StoreId) -> String {
        let (low, high) = if self <= other { (self, other) } else { (other, self) };
        let mut hash = Sha1::new();
        hash.update(low.0);
        hash.update(high.0);
        MailboxGuid(last_16(&hash.finalize())).to_string()
    }
}

impl fmt::Display for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

impl fmt::Debug for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

/// GUID of a message: names its content, whatever mailbox and UID it has. Text of 1 to
/// [`GUID_BYTES_MAX`] bytes without control characters; kept and travels verbatim.
///
/// Equality and order are those of the text. Ends of which one keeps only 128 bits compare
/// [`bits`](Self::bits).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Encode)]
pub struct MessageGuid(Box<str>);

impl MessageGuid {
    /// `None` for text that is empty, too long or holds control characters.
    pub fn new(text: &str) -> Option<MessageGuid> {
        let valid =
            !text.is_empty() && text.len() <= GUID_BYTES_MAX && !text.bytes().any(|b| b < 0x20 || b == 0x7f);
        valid.then(|| MessageGuid(text.into()))
    }

    /// A GUID for content that has only bytes as a name (a Maildir file name that is no UTF-8).
    pub fn of_bytes(bytes: &[u8]) -> MessageGuid {
        match std::str::from_utf8(bytes).ok().and_then(MessageGuid::new) {
            Some(guid) => guid,
            None => MessageGuid(MailboxGuid(last_16(&Sha1::digest(bytes))).to_string().into()),
        }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The form of 128 bits in which Dovecot compares: 32 hex digits are decoded, any other text
    /// becomes the last 16 bytes of its SHA-1 (storage formats reference, 3.4).
    pub fn bits(&self) -> [u8; 16] {
        hex_128(&self.0).unwrap_or_else(|| last_16(&Sha1::digest(self.0.as_bytes())))
    }
}

impl fmt::Display for MessageGuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for MessageGuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl<C> Decode<C> for MessageGuid {
    fn decode<D: Decoder<Context = C>>(decoder: &mut D) -> Result<Self, DecodeError> {
        MessageGuid::new(&String::decode(decoder)?)
            .ok_or(DecodeError::Other("message GUID is not valid text"))
    }
}

impl<'de, C> BorrowDecode<'de, C> for MessageGuid {
    fn borrow_decode<D: BorrowDecoder<'de, Context = C>>(decoder: &mut D) -> Result<Self, DecodeError> {
        Self::decode(decoder)
    }
}

fn last_16(sha1: &[u8]) -> [u8; 16] {
    let mut bits = [0; 16];
    bits.copy_from_slice(&sha1[sha1.len() - 16..]);
    bits
}

fn hex_128(text: &str) -> Option<[u8; 16]> {
    let text = text.as_bytes();
    if text.len() != 32 {
        return None;
    }
    let mut bits = [0; 16];
    for (byte, pair) in bits.iter_mut().zip(text.chunks_exact(2)) {
        let digit = |c: u8| char::from(c).to_digit(16);
        *byte = (digit(pair[0])? << 4 | digit(pair[1])?) as u8;
    }
    Some(bits)
}

fn write_hex(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guid_bits_decode_hex_and_hash_other_text() {
        let guid = MessageGuid::new("51b50630c449046b5d10000087ad316d").unwrap();
        assert_eq!(MailboxGuid(guid.bits()).to_string(), "51b50630c449046b5d10000087ad316d");
        // printf abc | sha1sum: a9993e36 4706816aba3e25717850c26c9cd0d89d
        assert_eq!(
            MailboxGuid(MessageGuid::new("abc").unwrap().bits()).to_string(),
            "4706816aba3e25717850c26c9cd0d89d"
        );
    }

    #[test]
    fn a_pair_of_stores_has_one_name_from_both_ends() {
        let (a, b) = (StoreId([1; 16]), StoreId([2; 16]));
        assert_eq!(a.pair(b), b.pair(a));
        assert_ne!(a.pair(b), a.pair(a));
    }

    #[test]
    fn control_characters_make_no_guid() {
        for bad in ["", "a\0", "a\nb", "\x7f"] {
            assert_eq!(MessageGuid::new(bad), None, "{bad:?}");
        }
        assert_eq!(MessageGuid::of_bytes(b"a\nb").as_str().len(), 32);
    }
}
