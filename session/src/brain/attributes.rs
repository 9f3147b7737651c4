//! Attributes of mailboxes (IMAP METADATA): listed with the names, merged when the mailboxes of both ends are known, and told to
//! their logs when the mail is in its place.
//!
//! If something is not the same at both ends, the logs of those mailboxes are asked when that came to be, and the ends tell each other.

use std::collections::BTreeMap;

use dsync_merge::{Both, Direction};
use dsync_model::{
    AttributeKey, AttributeList, AttributeRecords, AttributeTime, AttributeTimes, AttributeValue, Base,
    Digest,
};
use dsync_proto::{BATCH_MAX, List, Message, Purpose};
use dsync_storage::Storage as _;

use super::greeting::describe;
use super::{Brain, at};
use crate::SessionError;

/// What one message carries, in bytes: the limit of one value keeps it below that of a frame.
const BATCH_BYTES: usize = 128 << 10;
/// Most bytes of keys and values that an end may list.
const LIST_BYTES_MAX: usize = 64 << 20;

/// What a session knows of the attributes of both ends.
#[derive(Default)]
pub(super) struct Attributes {
    /// `None`: the end keeps none.
    lists: [Option<AttributeList>; 2],
    /// What the peer listed, of which only so much is taken.
    bytes: usize,
    /// When those that are not the same at both ends came to be as they are.
    times: [AttributeTimes; 2],
    times_ended: [bool; 2],
    /// For the logs of our mailboxes.
    records: AttributeRecords,
    pub agreed: BTreeMap<AttributeKey, Digest>,
}

impl Brain {
    /// Tells the other end our attributes. Mail is synchronised even if they cannot be read.
    pub(super) fn list_attributes(&mut self) {
        let wanted = self
            .job
            .as_ref()
            .is_some_and(|job| job.options.purpose == Purpose::Sync && !job.options.tree_only);
        if !wanted {
            return;
        }
        let list = match self.storage.attributes() {
            Ok(Some(list)) => list,
            Ok(None) => return,
            Err(error) => {
                self.report.notes.push(describe("mailbox attributes are left alone", &error));
                return;
            }
        };
        if list.iter().map(bytes).sum::<usize>() > LIST_BYTES_MAX {
            self.report.notes.push("mailbox attributes are left alone: they are more than 64 MiB".into());
            return;
        }
        for key in list.iter().filter(|(_, value)| **value == AttributeValue::TooLarge).map(|(key, _)| key) {
            let AttributeKey { mailbox, key, .. } = key;
            let text =
                format!("attribute {key:?} of mailbox {mailbox} is left alone: it is larger than 512 KiB");
            self.report.notes.push(text);
        }
        let (mut batch, mut size) = (Vec::new(), 0);
        for entry in &list {
            if batch.len() == BATCH_MAX || (size > 0 && size + bytes(entry) > BATCH_BYTES) {
                self.say(Message::Attributes(std::mem::take(&mut batch)));
                size = 0;
            }
            size += bytes(entry);
            batch.push((entry.0.clone(), entry.1.clone()));
        }
        self.say(Message::Attributes(batch));
        self.attributes.lists[self.end as usize] = Some(list);
    }

    pub(super) fn take_attributes(
        &mut self,
        batch: Vec<(AttributeKey, AttributeValue)>,
    ) -> Result<(), SessionError> {
        self.count_attribute_bytes(batch.iter().map(|(key, value)| bytes((key, value))).sum())?;
        self.attributes.lists[self.end.other() as usize].get_or_insert_default().extend(batch);
        Ok(())
    }

    pub(super) fn take_attribute_times(
        &mut self,
        batch: Vec<(AttributeKey, AttributeTime)>,
    ) -> Result<(), SessionError> {
        self.count_attribute_bytes(batch.iter().map(|(key, _)| key_bytes(key)).sum())?;
        self.attributes.times[self.end.other() as usize].extend(batch);
        Ok(())
    }

    pub(super) fn end_attribute_times(&mut self) {
        self.attributes.times_ended[self.end.other() as usize] = true;
    }

    fn count_attribute_bytes(&mut self, more: usize) -> Result<(), SessionError> {
        self.attributes.bytes += more;
        if self.attributes.bytes > 2 * LIST_BYTES_MAX {
            return Err(SessionError::Peer("lists more than 128 MiB of mailbox attributes".into()));
        }
        Ok(())
    }

    /// Tells when attributes that are not the same at both ends came to be so here.
    pub(super) fn tell_attribute_times(&mut self) {
        let [Some(a), Some(b)] = &self.attributes.lists else { return };
        let list = [a, b][self.end as usize];
        let unequal = dsync_merge::unequal_attributes(Both([a, b]), &self.plan.pairs);
        if unequal.is_empty() {
            return;
        }
        let mut times = AttributeTimes::new();
        for pair in &self.plan.pairs {
            let from = unequal.range(AttributeKey::first_of(pair.guid)..);
            let mut keys = from.take_while(|key| key.mailbox == pair.guid).peekable();
            let Some(status) = pair.statuses[self.end].as_ref().filter(|_| keys.peek().is_some()) else {
                continue;
            };
            let log = match self.storage.open(status.guid).and_then(|mut mailbox| mailbox.attribute_log()) {
                Ok(log) => log,
                Err(error) => {
                    // Whatever else that means for the mailbox is said where its mail is merged.
                    let place = format!("{}: when its attributes changed is not known", pair.name);
                    self.report.notes.push(describe(&place, &error));
                    continue;
                }
            };
            for key in keys {
                let own = AttributeKey { mailbox: status.guid, ..key.clone() };
                let time = log.time_of(key.scope, &key.key, list.contains_key(&own));
                times.insert(key.clone(), time);
            }
        }
        let (mut batch, mut size) = (Vec::new(), 0);
        for (key, time) in &times {
            if batch.len() == BATCH_MAX || size > BATCH_BYTES {
                self.say(Message::AttributeTimes(std::mem::take(&mut batch)));
                size = 0;
            }
            size += key_bytes(key);
            batch.push((key.clone(), *time));
        }
        self.say(Message::AttributeTimes(batch));
        self.say(Message::End(List::AttributeTimes));
        self.attributes.times[self.end as usize] = times;
        self.attributes.times_ended[self.end as usize] = true;
    }

    /// Says whether all is known that [`merge_attributes`](Self::merge_attributes) needs.
    pub(super) fn attribute_times_known(&self) -> bool {
        let [mine, theirs] =
            [self.end, self.end.other()].map(|end| self.attributes.times_ended[end as usize]);
        theirs || !mine
    }

    /// Makes ours as they are to be. Before the mailboxes are: one that gets another GUID finds them there.
    pub(super) fn merge_attributes(&mut self, direction: Direction) -> Result<(), SessionError> {
        let [Some(a), Some(b)] = std::mem::take(&mut self.attributes.lists) else {
            // One end keeps none: what was agreed is kept for the time when both do again.
            self.attributes.agreed =
                self.base.as_ref().map(|base| base.attributes.clone()).unwrap_or_default();
            return Ok(());
        };
        let times = std::mem::take(&mut self.attributes.times);
        let base = self.base.as_ref().map(|base: &Base| &base.attributes);
        let (lists, times) = (Both([&a, &b]), Both([&times[0], &times[1]]));
        let mut plan = dsync_merge::attributes(lists, times, base, direction, &self.plan.pairs, self.end);
        if !plan.changes.is_empty() {
            self.storage
                .change_attributes(&plan.changes)
                .map_err(at("cannot write the mailbox attributes"))?;
        }
        // Mailboxes that stay in the base as they are.
        for (key, digest) in base.into_iter().flatten() {
            if self.plan.kept.contains(&key.mailbox) {
                plan.agreed.insert(key.clone(), *digest);
            }
        }
        (self.attributes.agreed, self.attributes.records) = (plan.agreed, plan.records);
        Ok(())
    }

    /// Tells the logs of our mailboxes what was changed. When their mail is in place: the first messages of a mailbox come with the
    /// modseqs of the other end, which nothing may have raised before.
    pub(super) fn log_attributes(&mut self) {
        let mut records = std::mem::take(&mut self.attributes.records);
        while let Some(mailbox) = records.first_key_value().map(|(key, _)| key.mailbox) {
            let here: AttributeRecords = records.extract_if(.., |key, _| key.mailbox == mailbox).collect();
            let logged = self.storage.open(mailbox).and_then(|mut mailbox| mailbox.log_attributes(&here));
            if let Err(error) = logged {
                // The attributes are as they are to be; what is missing is when they were changed.
                let name = self
                    .plan
                    .pairs
                    .iter()
                    .find(|pair| pair.guid == mailbox)
                    .map(|pair| pair.name.to_string());
                let place = format!("{}: no note is made of its new attributes", name.unwrap_or_default());
                self.report.notes.push(describe(&place, &error));
            }
        }
    }
}

fn bytes((key, value): (&AttributeKey, &AttributeValue)) -> usize {
    let value = match value {
        AttributeValue::Bytes(bytes) => bytes.len(),
        AttributeValue::TooLarge => 0,
    };
    key_bytes(key) + value
}

/// With what each takes up beside its text.
fn key_bytes(key: &AttributeKey) -> usize {
    key.key.len() + 64
}
