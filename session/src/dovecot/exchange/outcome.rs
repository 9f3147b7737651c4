//! What came of an exchange.

use std::collections::BTreeMap;

use dsync_merge::Direction;
use dsync_model::{LastCommon, MailboxGuid, MailboxStatus, MessageGuid, Uid, UidValidity};
use dsync_proto::dovecot::items;

use super::super::settled::Left;
use super::Exchange;
use crate::MailboxReport;

/// What both ends were told, and what came of it.
pub struct Outcome {
    pub guid: MailboxGuid,
    pub common: LastCommon,
    pub disturbed: bool,
    /// If they are not shown to be equal, as something came meanwhile: what both have.
    pub same_below: Option<Left>,
    /// The peer has all that it was to get, in a session that broke off as well.
    pub is_whole: bool,
    /// How it was left, if both ends are equal now, and the first recent UID of the peer.
    pub settled: Option<(MailboxStatus, u32)>,
    /// Where our end keeps no GUIDs: what the peer calls the messages that are here now.
    pub guids: BTreeMap<Uid, MessageGuid>,
    pub problems: Vec<(String, u8)>,
    pub notes: Vec<String>,
    pub report: MailboxReport,
    pub bytes: u64,
}

impl Exchange {
    /// What came of it, both ends having told how they stand.
    pub fn into_outcome(self) -> Outcome {
        let low = |value: fn(&items::State) -> u64| {
            let values = [&self.said, &self.heard].into_iter().flatten().map(value);
            values.min().unwrap_or(0)
        };
        let is_known =
            |state: &Option<items::State>| state.as_ref().is_some_and(|state| state.last_uidvalidity != 0);
        let heard_known = is_known(&self.heard);
        let known_to_both = is_known(&self.said) && heard_known;
        let common = LastCommon {
            uid_validity: self.uid_validity.map_or(self.ours.uid_validity, UidValidity::get),
            uid: if known_to_both { low(|state| state.last_common_uid.into()) as u32 } else { 0 },
            modseq: if known_to_both { low(|state| state.last_common_modseq) } else { 0 },
            private_modseq: 0,
            messages: self.said.as_ref().and_then(|state| state.last_messages_count).unwrap_or(0),
        };
        let agreed =
            [&self.said, &self.heard].map(|state| state.as_ref().and_then(|state| state.last_messages_count));
        let is_one_way = matches!(self.terms.direction, Direction::OneWay { .. });
        // One way without overwriting, a Dovecot leaves out what it lacks below a common UID.
        let brings_all = !is_one_way && self.terms.filter.is_empty();
        let equal = !self.disturbed
            && known_to_both
            && agreed[0] == agreed[1]
            && self.problems.is_empty()
            && self.kept_back.is_empty()
            && self.terms.filter.is_empty()
            && !is_one_way;
        let guids = match self.terms.guids {
            Some(_) if equal => self.named_by_peer(),
            _ => BTreeMap::new(),
        };
        Outcome {
            same_below: self.same_below().filter(|_| known_to_both && !equal),
            guids,
            settled: self.left.filter(|_| equal).map(|status| (status, self.theirs.first_recent_uid)),
            guid: self.ours.mailbox_guid,
            common,
            disturbed: self.disturbed,
            is_whole: heard_known && (brings_all || self.terms.unfinished.is_none()),
            problems: self.problems,
            notes: [self.notes, self.attributes.notes].concat(),
            report: self.report,
            bytes: self.bytes,
        }
    }
}
