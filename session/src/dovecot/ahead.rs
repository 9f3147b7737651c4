//! What a source does while the other end is busy: it opens the mailbox that comes next, and looks whether its messages can be read.
//!
//! A source tells of no message that it could not send (`Brain::open`). Looking takes a while, which the other end would wait for.

use dsync_merge::{End, Pair};
use dsync_model::MailboxGuid;

use super::exchange::Opened;
use super::{Brain, Stage};

/// Messages that are looked at between two looks at the connection.
const BATCH: usize = 8;

/// A mailbox that was opened before its turn.
pub(super) struct Ahead {
    guid: MailboxGuid,
    /// `None`: something failed, and will be seen again when it is its turn.
    opened: Option<Opened>,
    is_done: bool,
}

impl Brain {
    /// Whether there is something to do while nothing can be said or heard.
    pub fn can_look_ahead(&self) -> bool {
        let sends = self.direction.source() == Some(self.end);
        let begun = matches!(self.stage, Stage::Mailboxes | Stage::Exchange);
        let more = match &self.ahead {
            Some(ahead) => !ahead.is_done,
            None => self.next_with_news().is_some(),
        };
        sends && begun && !self.stopping && more
    }

    /// Does a little of what will have to be done. Nothing comes of it but time that is saved.
    pub fn look_ahead(&mut self) {
        let Some(ahead) = &mut self.ahead else {
            let Some(pair) = self.next_with_news() else { return };
            let guid = pair.guid;
            let opened = Opened::new(&mut *self.storage, guid).ok();
            self.ahead = Some(Ahead { guid, is_done: opened.is_none(), opened });
            return;
        };
        let looked = ahead.opened.as_mut().map(|opened| opened.check(BATCH));
        ahead.is_done = !matches!(looked, Some(Ok(false)));
    }

    /// The mailbox that was opened ahead, as it is now, if it is this one. What it knew to be readable it knows still.
    pub(super) fn opened_ahead(&mut self, guid: MailboxGuid) -> dsync_storage::Result<Option<Opened>> {
        let Some(ahead) = self.ahead.take_if(|ahead| ahead.guid == guid) else { return Ok(None) };
        ahead.opened.map(Opened::again).transpose()
    }

    /// The next mailbox in which the peer may lack something.
    fn next_with_news(&self) -> Option<&Pair> {
        let has_news = |pair: &&Pair| {
            let counters =
                |end: End| pair.statuses[end].as_ref().map(|status| (status.uid_validity, status.uid_next));
            let ours = counters(self.end);
            ours.is_some() && ours != counters(self.end.other())
        };
        match self.end {
            End::Initiator => self.pairs.iter().find(has_news),
            End::Responder => self.plan.pairs.iter().skip(self.answered).find(has_news),
        }
    }
}
