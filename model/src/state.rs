//! The sync state: what `-s` takes and prints, in Dovecot's own form.
//!
//! Base64, in one line, of 4 bytes `01 00 00 00`, 44 bytes a mailbox, and the CRC-32 of all that; integers are
//! little-endian. What a synchronisation makes of it is not told here.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bincode::{Decode, Encode};

use crate::{MailboxGuid, MailboxStatus};

/// Longest text that is read: a million mailboxes.
const TEXT_BYTES_MAX: usize = 60_000_000;
const HEAD: [u8; 4] = [1, 0, 0, 0];
const RECORD_BYTES: usize = 44;
/// A record of the form before: without the number of messages.
const OLD_RECORD_BYTES: usize = 40;
const CRC_BYTES: usize = 4;

/// Up to where both ends are known to agree, by mailbox.
#[derive(Clone, PartialEq, Eq, Debug, Default, Encode, Decode)]
pub struct SyncState(pub BTreeMap<MailboxGuid, LastCommon>);

/// Up to here both ends agreed on a mailbox. All zero but the UIDVALIDITY: nothing is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Encode, Decode)]
pub struct LastCommon {
    pub uid_validity: u32,
    pub uid: u32,
    pub modseq: u64,
    /// Of flags that users of a shared mailbox do not share.
    pub private_modseq: u64,
    pub messages: u32,
}

/// Text that is no state. The run is then a full one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StateError {
    #[error("is not base64")]
    Base64,
    #[error("has the wrong length")]
    Length,
    #[error("has the wrong checksum")]
    Checksum,
}

impl LastCommon {
    /// The record of a mailbox that is now the same at both ends.
    pub fn of(status: &MailboxStatus) -> LastCommon {
        LastCommon {
            uid_validity: status.uid_validity.get(),
            uid: status.uid_next.get() - 1,
            modseq: status.highest_modseq.get(),
            private_modseq: 0,
            messages: status.messages,
        }
    }

    /// Says whether nothing happened to a mailbox since.
    pub fn is_current(&self, status: &MailboxStatus) -> bool {
        *self == LastCommon::of(status)
    }

    /// Says whether a mailbox is behind: it was restored or made anew, and the record says nothing of it.
    pub fn is_ahead_of(&self, status: &MailboxStatus) -> bool {
        self.uid_validity == status.uid_validity.get()
            && (self.uid >= status.uid_next.get() || self.modseq > status.highest_modseq.get())
    }
}

impl FromStr for SyncState {
    type Err = StateError;

    /// Reads a state; the empty text is the empty state. Records of the form before Dovecot 2.2 count as none.
    fn from_str(text: &str) -> Result<SyncState, StateError> {
        let text = text.trim();
        if text.len() > TEXT_BYTES_MAX {
            return Err(StateError::Length);
        }
        let bytes = BASE64.decode(text).map_err(|_| StateError::Base64)?;
        if bytes.is_empty() || bytes == [0; CRC_BYTES] {
            return Ok(SyncState::default());
        }
        let Some((body, crc)) = bytes.split_last_chunk::<CRC_BYTES>() else { return Err(StateError::Length) };
        let right = u32::from_le_bytes(*crc) == crc32(body);
        match body.strip_prefix(&HEAD) {
            Some(records) if records.len() % RECORD_BYTES == 0 => {
                if !right {
                    return Err(StateError::Checksum);
                }
                Ok(SyncState(records.chunks_exact(RECORD_BYTES).map(record).collect()))
            }
            _ if body.len() % OLD_RECORD_BYTES == 0 && right => Ok(SyncState::default()),
            _ => Err(StateError::Length),
        }
    }
}

fn record(bytes: &[u8]) -> (MailboxGuid, LastCommon) {
    let number = |at: usize, length: usize| {
        bytes[at..at + length].iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
    };
    let mut guid = [0; 16];
    guid.copy_from_slice(&bytes[..16]);
    let common = LastCommon {
        uid_validity: number(16, 4) as u32,
        uid: number(20, 4) as u32,
        modseq: number(24, 8),
        private_modseq: number(32, 8),
        messages: number(40, 4) as u32,
    };
    (MailboxGuid(guid), common)
}

impl fmt::Display for SyncState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = HEAD.to_vec();
        for (guid, common) in &self.0 {
            bytes.extend_from_slice(&guid.0);
            bytes.extend_from_slice(&common.uid_validity.to_le_bytes());
            bytes.extend_from_slice(&common.uid.to_le_bytes());
            bytes.extend_from_slice(&common.modseq.to_le_bytes());
            bytes.extend_from_slice(&common.private_modseq.to_le_bytes());
            bytes.extend_from_slice(&common.messages.to_le_bytes());
        }
        bytes.extend_from_slice(&crc32(&bytes).to_le_bytes());
        f.write_str(&BASE64.encode(bytes))
    }
}

fn crc32(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Dovecot 2.3.19 printed: captures 22 to 25 and 70.
    const PRINTED: &str = include_str!("../tests/states.txt");

    fn printed(name: &str) -> &'static str {
        let line = PRINTED.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim()
    }

    #[test]
    fn what_dovecot_printed_is_printed_again_in_the_order_of_guids() {
        // Dovecot's own order is that of a hash table.
        let sorted = |text: &str| {
            let bytes = BASE64.decode(text).unwrap();
            let mut records: Vec<Vec<u8>> =
                bytes[HEAD.len()..bytes.len() - CRC_BYTES].chunks(RECORD_BYTES).map(<[u8]>::to_vec).collect();
            records.sort();
            records
        };
        for line in PRINTED.lines() {
            let (name, text) = line.split_once(' ').unwrap();
            let state: SyncState = text.parse().unwrap();
            let printed = state.to_string();
            assert_eq!(sorted(&printed), sorted(text), "{name}");
            assert_eq!(printed.parse::<SyncState>().unwrap(), state, "{name}");
            assert!(!state.0.is_empty() && printed.len() == text.len());
        }
    }

    #[test]
    fn records_are_read_as_dovecot_means_them() {
        let state: SyncState = printed("23").parse().unwrap();
        let inbox = MailboxGuid::parse("5d3a5f298348046b626d000026acbed8").unwrap();
        let common =
            LastCommon { uid_validity: 1_795_442_819, uid: 10, modseq: 32, private_modseq: 0, messages: 6 };
        assert_eq!((state.0.len(), state.0[&inbox]), (5, common));
        let first: SyncState = printed("22").parse().unwrap();
        assert_eq!(first.0[&inbox], LastCommon { uid_validity: 1_795_442_819, ..LastCommon::default() });
    }

    #[test]
    fn what_is_no_state_is_refused() {
        let text = printed("70");
        assert_eq!("".parse::<SyncState>(), Ok(SyncState::default()));
        assert_eq!("AAAAAA==".parse::<SyncState>(), Ok(SyncState::default()));
        assert_eq!("no state!".parse::<SyncState>(), Err(StateError::Base64));
        assert_eq!("AQ==".parse::<SyncState>(), Err(StateError::Length));
        let mut bytes = BASE64.decode(text).unwrap();
        bytes[20] ^= 1;
        assert_eq!(BASE64.encode(&bytes).parse::<SyncState>(), Err(StateError::Checksum));
        assert_eq!(BASE64.encode(&bytes[..50]).parse::<SyncState>(), Err(StateError::Length));
        // The form before the last: 40 bytes a mailbox, no header.
        let mut old = vec![7; 80];
        old.extend_from_slice(&crc32(&[7; 80]).to_le_bytes());
        assert_eq!(BASE64.encode(&old).parse::<SyncState>(), Ok(SyncState::default()));
    }
}
