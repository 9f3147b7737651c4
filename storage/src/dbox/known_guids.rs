//! GUIDs of messages in mailboxes that we wrote to, while they are shut: sdbox keeps a GUID in the message's file alone.

use std::collections::BTreeMap;

use dsync_model::{MailboxGuid, MessageGuid};

/// GUIDs kept at once, of all mailboxes together; some 10 MB. More than that are read from the files.
const GUIDS_MAX: usize = 1 << 17;

/// GUIDs by UID. What a UID names stays the same for as long as UIDVALIDITY does.
pub(super) type Guids = BTreeMap<u32, MessageGuid>;

/// By mailbox and UIDVALIDITY.
#[derive(Debug, Default)]
pub(super) struct KnownGuids(BTreeMap<(MailboxGuid, u32), Guids>);

impl KnownGuids {
    pub fn take(&mut self, mailbox: MailboxGuid, uid_validity: u32) -> Guids {
        self.0.remove(&(mailbox, uid_validity)).unwrap_or_default()
    }

    pub fn keep(&mut self, mailbox: MailboxGuid, uid_validity: u32, guids: Guids) {
        let kept: usize = self.0.values().map(BTreeMap::len).sum();
        if kept + guids.len() <= GUIDS_MAX {
            self.0.insert((mailbox, uid_validity), guids);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guids_are_of_one_uidvalidity_and_bounded() {
        let guid = MessageGuid::new("g").unwrap();
        let guids = |count: u32| (1..=count).map(|uid| (uid, guid.clone())).collect::<Guids>();
        let mut known = KnownGuids::default();
        let [a, b] = [1, 2].map(|byte| MailboxGuid([byte; 16]));
        known.keep(a, 5, guids(3));
        known.keep(b, 5, guids(GUIDS_MAX as u32));
        assert!(known.take(a, 6).is_empty());
        assert_eq!(known.take(a, 5).len(), 3);
        assert!(known.take(a, 5).is_empty());
        assert!(known.take(b, 5).is_empty());
    }
}
