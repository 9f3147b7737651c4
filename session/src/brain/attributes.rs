//! Attributes of mailboxes (IMAP METADATA): listed with the names, merged when the mailboxes of both ends are known.

use dsync_merge::{Both, Direction};
use dsync_model::{AttributeKey, AttributeList, AttributeValue, Base};
use dsync_proto::{BATCH_MAX, Message, Purpose};
use dsync_storage::Storage as _;

use super::greeting::describe;
use super::{Brain, at};
use crate::SessionError;

/// What one message carries, in bytes: the limit of one value keeps it below that of a frame.
const BATCH_BYTES: usize = 128 << 10;
/// Most bytes of keys and values that an end may list.
const LIST_BYTES_MAX: usize = 64 << 20;

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
        self.attributes[self.end as usize] = Some(list);
    }

    pub(super) fn take_attributes(
        &mut self,
        batch: Vec<(AttributeKey, AttributeValue)>,
    ) -> Result<(), SessionError> {
        self.attribute_bytes += batch.iter().map(|(key, value)| bytes((key, value))).sum::<usize>();
        if self.attribute_bytes > LIST_BYTES_MAX {
            return Err(SessionError::Peer("lists more than 64 MiB of mailbox attributes".into()));
        }
        self.attributes[self.end.other() as usize].get_or_insert_default().extend(batch);
        Ok(())
    }

    /// Makes ours as they are to be. Before the mailboxes are: one that gets another GUID finds them there.
    pub(super) fn merge_attributes(&mut self, direction: Direction) -> Result<(), SessionError> {
        let [Some(a), Some(b)] = std::mem::take(&mut self.attributes) else {
            // One end keeps none: what was agreed is kept for the time when both do again.
            self.agreed_attributes =
                self.base.as_ref().map(|base| base.attributes.clone()).unwrap_or_default();
            return Ok(());
        };
        let base = self.base.as_ref().map(|base: &Base| &base.attributes);
        let lists: Both<&AttributeList> = Both([&a, &b]);
        let mut plan = dsync_merge::attributes(lists, base, direction, &self.plan.pairs, self.end);
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
        self.agreed_attributes = plan.agreed;
        Ok(())
    }
}

fn bytes((key, value): (&AttributeKey, &AttributeValue)) -> usize {
    let value = match value {
        AttributeValue::Bytes(bytes) => bytes.len(),
        AttributeValue::TooLarge => 0,
    };
    // With what each takes up beside its text.
    key.key.len() + value + 64
}
