//! A mailbox before its lists are told.

use dsync_model::{AttributeChange, Changes, MailboxGuid, MessageChange, Since};
use dsync_storage::{Mailbox, Storage};

/// A mailbox of ours with all that it is to tell: what fails here fails before anything was said of it.
pub struct Opened {
    pub(super) mailbox: Box<dyn Mailbox>,
    pub(super) changes: Changes,
    pub(super) attribute_log: Vec<AttributeChange>,
    /// Below this UID all messages can be opened.
    checked: u32,
}

impl Opened {
    pub fn new(storage: &mut dyn Storage, guid: MailboxGuid) -> dsync_storage::Result<Opened> {
        Opened::of(storage.open(guid)?, 1)
    }

    /// As the mailbox is now.
    pub fn again(self) -> dsync_storage::Result<Opened> {
        Opened::of(self.mailbox, self.checked)
    }

    /// As it is now, of a mailbox that is open; all messages below the UID `checked` can be opened.
    pub fn of(mut mailbox: Box<dyn Mailbox>, checked: u32) -> dsync_storage::Result<Opened> {
        let changes = mailbox.changes(Since::All)?;
        let attribute_log = mailbox.attribute_log()?.first;
        let checked = if mailbox.may_miss_bodies() { checked } else { u32::MAX };
        Ok(Opened { mailbox, changes, attribute_log, checked })
    }

    /// What lies below this UID needs not be looked at.
    pub fn skip_to(&mut self, uid: u32) {
        self.checked = self.checked.max(uid);
    }

    /// Opens some messages that were not looked at yet, at most so many. `true`: all were. Fails with the first one that cannot be opened.
    pub fn check(&mut self, messages_max: usize) -> dsync_storage::Result<bool> {
        let (list, from) = (&self.changes.list, self.checked);
        let begin = list.partition_point(|change| change.uid().get() < from);
        let end = list.len().min(begin.saturating_add(messages_max));
        for change in &list[begin..end] {
            if let MessageChange::Save { uid, guid, .. } = change {
                self.mailbox.body(*uid, Some(guid))?;
            }
            self.checked = change.uid().get().saturating_add(1);
        }
        Ok(end == list.len())
    }
}
