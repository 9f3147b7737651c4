//! The base: what two stores agreed on after their last synchronisation; the third side of the merge.
//!
//! One file a pair of stores and end; see [`Base::to_bytes`] for its form. Reading and writing the file
//! is the work of the storage.

use std::collections::{BTreeMap, BTreeSet};

use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use bincode::{Decode, Encode};
use roaring::RoaringBitmap;
use xxhash_rust::xxh3::xxh3_128_with_seed;

use crate::{
    AttributeKey, Digest, FlagSet, Flags, Generation, Keyword, MailboxGuid, MailboxName, Uid, UidValidity,
};

/// Largest base file that is read, in bytes.
pub const BASE_BYTES_MAX: usize = 256 << 20;

const MAGIC: &[u8; 8] = b"dsyncbs1";

/// A set of UIDs, compressed.
pub type UidSet = RoaringBitmap;

/// UIDs that did not come to name what they were to name, or not as it was to be: under which UID that message is there, or was before somebody
/// expunged it; `None`: it never came.
pub type NotKept = BTreeMap<Uid, Option<Uid>>;

/// What both ends agreed on: their mailboxes, and the messages and flags of each.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Base {
    pub generation: Generation,
    pub tree: BTreeMap<MailboxName, BaseNode>,
    pub mailboxes: BTreeMap<MailboxGuid, MailboxBase>,
    /// Attributes that both ends had, by the digest of the value.
    pub attributes: BTreeMap<AttributeKey, Digest>,
}

/// One agreed name.
#[derive(Clone, PartialEq, Eq, Debug, Default, Encode, Decode)]
pub struct BaseNode {
    /// `None`: a directory, or only subscribed.
    pub mailbox: Option<MailboxGuid>,
    pub directory: bool,
    pub subscribed: bool,
}

/// The agreed content of one mailbox.
#[derive(Clone, PartialEq, Debug)]
pub struct MailboxBase {
    pub uid_validity: UidValidity,
    /// The larger UIDNEXT of both ends: whatever has this UID or a higher one is new.
    pub uid_next: Uid,
    /// Digest of the mailbox if both ends showed the same one in the end, and held nothing else.
    pub digest: Option<Digest>,
    /// Messages that both ends held, under the same UID.
    pub uids: UidSet,
    /// Which of them had which system flag; flags that none had are left out.
    pub system: BTreeMap<u8, UidSet>,
    /// Which of them had which keyword; keywords that none had are left out.
    pub keywords: BTreeMap<Keyword, UidSet>,
    /// UIDs on which the ends agreed to differ; never reported as changes.
    pub out_of_scope: UidSet,
    /// Messages that both ends held and that are not in `uids`: UID at the initiator, UID at the responder. In a file, the end with the lower
    /// store id comes first; see [`Base::swap_ends`].
    pub apart: BTreeSet<[Uid; 2]>,
}

/// Why a base file is not used. The base is then as good as missing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BaseError {
    #[error("base file is larger than {BASE_BYTES_MAX} bytes")]
    TooLarge,
    #[error("base file is damaged")]
    Damaged,
}

impl MailboxBase {
    /// An empty agreement.
    pub fn new(uid_validity: UidValidity, uid_next: Uid) -> MailboxBase {
        MailboxBase {
            uid_validity,
            uid_next,
            digest: None,
            uids: UidSet::new(),
            system: BTreeMap::new(),
            keywords: BTreeMap::new(),
            out_of_scope: UidSet::new(),
            apart: BTreeSet::new(),
        }
    }

    /// Records that the message had exactly these flags.
    pub fn insert(&mut self, uid: Uid, flags: &FlagSet) {
        self.uids.insert(uid.get());
        for (flag, _) in Flags::NAMES {
            if flags.system.contains(flag) {
                self.system.entry(flag.bits()).or_default().insert(uid.get());
            } else if let Some(set) = self.system.get_mut(&flag.bits()) {
                set.remove(uid.get());
            }
        }
        for (keyword, set) in &mut self.keywords {
            if !flags.keywords.contains(keyword) {
                set.remove(uid.get());
            }
        }
        for keyword in &flags.keywords {
            self.keywords.entry(keyword.clone()).or_default().insert(uid.get());
        }
    }

    /// Forgets the message.
    pub fn remove(&mut self, uid: Uid) {
        self.uids.remove(uid.get());
        self.system.values_mut().chain(self.keywords.values_mut()).for_each(|set| {
            set.remove(uid.get());
        });
    }

    /// Drops flags and keywords that no message has any more.
    pub fn tidy(&mut self) {
        self.system.retain(|_, set| !set.is_empty());
        self.keywords.retain(|_, set| !set.is_empty());
    }

    /// The flags that the message had.
    pub fn flags_of(&self, uid: Uid) -> FlagSet {
        let system = self.system.iter().filter(|(_, set)| set.contains(uid.get())).map(|(bit, _)| *bit);
        let system = system.filter_map(Flags::from_bits).fold(Flags::NONE, Flags::union);
        let keywords =
            self.keywords.iter().filter(|(_, set)| set.contains(uid.get())).map(|(k, _)| k.clone());
        FlagSet { system, keywords: keywords.collect() }
    }

    /// Says whether the message had exactly these flags, without collecting them.
    pub fn has_flags(&self, uid: Uid, flags: &FlagSet) -> bool {
        let mut bits = 0;
        for (bit, set) in &self.system {
            if set.contains(uid.get()) {
                bits |= bit;
            }
        }
        let known = self.keywords.iter().filter(|(_, set)| set.contains(uid.get()));
        bits == flags.system.bits() && known.map(|(k, _)| k).eq(flags.keywords.iter())
    }
}

#[derive(Encode, Decode)]
struct Wire {
    generation: Generation,
    tree: BTreeMap<MailboxName, BaseNode>,
    mailboxes: BTreeMap<MailboxGuid, MailboxWire>,
    attributes: BTreeMap<AttributeKey, Digest>,
}

#[derive(Encode, Decode)]
struct MailboxWire {
    uid_validity: UidValidity,
    uid_next: Uid,
    digest: Option<Digest>,
    uids: Vec<u8>,
    system: BTreeMap<u8, Vec<u8>>,
    keywords: BTreeMap<Keyword, Vec<u8>>,
    out_of_scope: Vec<u8>,
}

impl Base {
    /// The file: 8 bytes `dsyncbs1`, 16 bytes XXH3-128 (little-endian, seed [`Digest::SEED`]) of the rest, then
    /// bincode 2 (standard configuration) of the base, UID sets in the portable form of Roaring, and of the messages that are apart, by mailbox, if there are any.
    /// Equal bases have equal bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let wire = Wire {
            generation: self.generation,
            tree: self.tree.clone(),
            mailboxes: self.mailboxes.iter().map(|(guid, mailbox)| (*guid, to_wire(mailbox))).collect(),
            attributes: self.attributes.clone(),
        };
        let encoded = "encoding to memory cannot fail";
        let mut body = bincode::encode_to_vec(&wire, bincode::config::standard()).expect(encoded);
        let apart = self.mailboxes.iter().filter(|(_, mailbox)| !mailbox.apart.is_empty());
        let apart: Apart = apart.map(|(guid, mailbox)| (*guid, mailbox.apart.clone())).collect();
        if !apart.is_empty() {
            body.extend(bincode::encode_to_vec(&apart, bincode::config::standard()).expect(encoded));
        }
        let mut bytes = Vec::with_capacity(body.len() + 24);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&checksum(&body).to_le_bytes());
        bytes.extend_from_slice(&body);
        bytes
    }

    /// Reads what [`to_bytes`](Self::to_bytes) wrote; anything else is an error.
    pub fn from_bytes(bytes: &[u8]) -> Result<Base, BaseError> {
        if bytes.len() > BASE_BYTES_MAX {
            return Err(BaseError::TooLarge);
        }
        let (head, body) = bytes.split_at_checked(24).ok_or(BaseError::Damaged)?;
        if head[..8] != MAGIC[..] || head[8..] != checksum(body).to_le_bytes() {
            return Err(BaseError::Damaged);
        }
        // A small file that claims to hold much must not take the memory that a large one may.
        const SMALL: usize = 1 << 20;
        let (wire, mut apart) = match body.len() {
            0..=SMALL => decode::<{ 8 * SMALL }>(body)?,
            _ => decode::<{ 8 * BASE_BYTES_MAX }>(body)?,
        };
        let mailboxes = wire.mailboxes.into_iter().map(|(guid, mailbox)| {
            Ok((guid, MailboxBase { apart: apart.remove(&guid).unwrap_or_default(), ..from_wire(mailbox)? }))
        });
        Ok(Base {
            generation: wire.generation,
            tree: wire.tree,
            mailboxes: mailboxes.collect::<Result<_, _>>()?,
            attributes: wire.attributes,
        })
    }

    /// Names the other end first in what is apart: the file knows no initiator.
    pub fn swap_ends(&mut self) {
        for mailbox in self.mailboxes.values_mut() {
            mailbox.apart = std::mem::take(&mut mailbox.apart).into_iter().map(|[a, b]| [b, a]).collect();
        }
    }

    /// What the ends compare to see that they hold the same base: the checksum of its bytes, as these say it themselves.
    /// Good for bytes of which [`from_bytes`](Self::from_bytes) made a base.
    pub fn digest_of(bytes: &[u8]) -> Digest {
        let checksum = bytes.get(8..24).and_then(|checksum| checksum.try_into().ok());
        Digest(checksum.map_or(0, u128::from_le_bytes))
    }

    /// The names under which a mailbox is known: at most one, unless the base is damaged.
    pub fn name_of(&self, guid: MailboxGuid) -> Option<&MailboxName> {
        self.tree.iter().find(|(_, node)| node.mailbox == Some(guid)).map(|(name, _)| name)
    }

    /// Names that are subscribed.
    pub fn subscribed(&self) -> BTreeSet<&MailboxName> {
        self.tree.iter().filter(|(_, node)| node.subscribed).map(|(name, _)| name).collect()
    }
}

/// Messages that are apart, of mailboxes that have some.
type Apart = BTreeMap<MailboxGuid, BTreeSet<[Uid; 2]>>;

/// Decodes all of these bytes; takes at most `MEMORY_MAX` bytes of memory for each part.
fn decode<const MEMORY_MAX: usize>(body: &[u8]) -> Result<(Wire, Apart), BaseError> {
    let limited: Configuration<LittleEndian, Varint, Limit<MEMORY_MAX>> =
        bincode::config::standard().with_limit();
    let (wire, used): (Wire, usize) =
        bincode::decode_from_slice(body, limited).map_err(|_| BaseError::Damaged)?;
    if used == body.len() {
        return Ok((wire, Apart::new()));
    }
    let (apart, rest): (Apart, usize) =
        bincode::decode_from_slice(&body[used..], limited).map_err(|_| BaseError::Damaged)?;
    let told = !apart.is_empty()
        && apart.iter().all(|(guid, apart)| !apart.is_empty() && wire.mailboxes.contains_key(guid));
    if told && used + rest == body.len() { Ok((wire, apart)) } else { Err(BaseError::Damaged) }
}

fn checksum(bytes: &[u8]) -> u128 {
    xxh3_128_with_seed(bytes, Digest::SEED)
}

fn to_wire(mailbox: &MailboxBase) -> MailboxWire {
    let mut mailbox = mailbox.clone();
    mailbox.tidy();
    MailboxWire {
        uid_validity: mailbox.uid_validity,
        uid_next: mailbox.uid_next,
        digest: mailbox.digest,
        uids: set_bytes(mailbox.uids),
        system: mailbox.system.into_iter().map(|(bit, set)| (bit, set_bytes(set))).collect(),
        keywords: mailbox.keywords.into_iter().map(|(keyword, set)| (keyword, set_bytes(set))).collect(),
        out_of_scope: set_bytes(mailbox.out_of_scope),
    }
}

fn from_wire(wire: MailboxWire) -> Result<MailboxBase, BaseError> {
    let system = wire.system.iter().map(|(bit, bytes)| {
        let known = Flags::NAMES.iter().any(|(flag, _)| flag.bits() == *bit);
        if known { Ok((*bit, set_of_some(bytes)?)) } else { Err(BaseError::Damaged) }
    });
    Ok(MailboxBase {
        uid_validity: wire.uid_validity,
        uid_next: wire.uid_next,
        digest: wire.digest,
        uids: set(&wire.uids)?,
        system: system.collect::<Result<_, _>>()?,
        keywords: wire
            .keywords
            .into_iter()
            .map(|(k, bytes)| Ok((k, set_of_some(&bytes)?)))
            .collect::<Result<_, _>>()?,
        out_of_scope: set(&wire.out_of_scope)?,
        apart: BTreeSet::new(),
    })
}

fn set_bytes(mut set: UidSet) -> Vec<u8> {
    // Equal sets must have equal bytes, however they came about.
    set.remove_run_compression();
    set.optimize();
    let mut bytes = Vec::with_capacity(set.serialized_size());
    set.serialize_into(&mut bytes).expect("writing to memory cannot fail");
    bytes
}

/// Reads what [`set_bytes`] wrote. Whether other bytes could mean the same set is not looked into: the checksum is over the bytes, and making
/// them again takes longer than all else that an idle run does.
fn set(bytes: &[u8]) -> Result<UidSet, BaseError> {
    let mut rest = bytes;
    let set = UidSet::deserialize_from(&mut rest).ok().filter(|_| rest.is_empty());
    set.ok_or(BaseError::Damaged)
}

/// The set of a flag: one that no message has is left out.
fn set_of_some(bytes: &[u8]) -> Result<UidSet, BaseError> {
    set(bytes).and_then(|set| if set.is_empty() { Err(BaseError::Damaged) } else { Ok(set) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Base {
        let uid = |n| Uid::new(n).unwrap();
        let mut mailbox = MailboxBase::new(UidValidity::new(7).unwrap(), uid(12));
        let both = FlagSet { system: Flags::SEEN, keywords: [Keyword::new("$Label1").unwrap()].into() };
        let none = FlagSet::default();
        (1..10).for_each(|n| mailbox.insert(uid(n), if n % 2 == 0 { &both } else { &none }));
        mailbox.remove(uid(4));
        mailbox.apart.insert([uid(11), uid(10)]);
        let node = BaseNode { mailbox: Some(MailboxGuid([9; 16])), directory: false, subscribed: true };
        Base {
            generation: Generation(3),
            tree: [(MailboxName::inbox(), node)].into(),
            mailboxes: [(MailboxGuid([9; 16]), mailbox)].into(),
            attributes: [(AttributeKey::first_of(MailboxGuid([9; 16])), Digest::of_attribute(b"x"))].into(),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let base = sample();
        let bytes = base.to_bytes();
        let back = Base::from_bytes(&bytes).unwrap();
        assert_eq!(back, base);
        assert_eq!(back.to_bytes(), bytes);
        assert_eq!(Base::digest_of(&bytes), Digest(checksum(&bytes[24..])));
        let mailbox = &back.mailboxes[&MailboxGuid([9; 16])];
        assert!(mailbox.has_flags(Uid::new(2).unwrap(), &mailbox.flags_of(Uid::new(2).unwrap())));
        assert!(!mailbox.uids.contains(4) && mailbox.flags_of(Uid::new(4).unwrap()).is_empty());
    }

    #[test]
    fn a_file_without_what_is_apart_is_as_it_always_was() {
        let mut base = sample();
        let with = base.to_bytes().len();
        let mailbox = base.mailboxes.get_mut(&MailboxGuid([9; 16])).unwrap();
        mailbox.apart.clear();
        assert_eq!(base.to_bytes().len(), with - 20, "count, GUID, count, two UIDs");
        assert_eq!(Base::from_bytes(&base.to_bytes()).unwrap(), base);
    }

    fn with_checksum(body: &[u8]) -> Vec<u8> {
        [MAGIC, &checksum(body).to_le_bytes()[..], body].concat()
    }

    #[test]
    fn what_no_base_would_hold_is_damage() {
        let body = &sample().to_bytes()[24..];
        let at = body.windows(7).position(|window| window == b"$Label1").unwrap();
        let (before, set) = body.split_at(at + 7);
        let (length, set) = set.split_first().unwrap();
        let rest = &set[usize::from(*length)..];
        let empty = [&[8, 0x3a, 0x30, 0, 0, 0, 0, 0, 0], rest].concat();
        let bytes = with_checksum(&[before, &empty].concat());
        assert_eq!(Base::from_bytes(&bytes), Err(BaseError::Damaged), "a keyword that no message has");
        // Found by an hour of mutations: a set that is said to take 2 GB took them.
        let short = &body[..body.len() - 3];
        assert_eq!(Base::from_bytes(&with_checksum(short)), Err(BaseError::Damaged), "what is apart is cut");
        let of_none = &[short, &[0]].concat();
        assert_eq!(Base::from_bytes(&with_checksum(of_none)), Err(BaseError::Damaged), "none is apart");
        let long = [before, &[0xfc], &2_000_000_000_u32.to_le_bytes(), set].concat();
        assert_eq!(Base::from_bytes(&with_checksum(&long)), Err(BaseError::Damaged));
        assert_eq!(decode::<{ 8 << 20 }>(&long).err(), Some(BaseError::Damaged));
    }

    #[test]
    fn any_damage_is_noticed() {
        let bytes = sample().to_bytes();
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 0x41;
            assert_eq!(Base::from_bytes(&bad), Err(BaseError::Damaged), "byte {at}");
            assert!(Base::from_bytes(&bytes[..at]).is_err());
        }
    }
}
