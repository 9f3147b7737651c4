//! What a source does while the other end is busy: it opens the mailbox that comes next, lists it, and looks whether its messages can be read.
//!
//! A source tells of no message that it could not send (`Brain::open`). Looking takes a while, which the other end would wait for.

use dsync_merge::{End, Pair};
use dsync_model::MailboxGuid;
use dsync_storage::Mailbox;

use super::exchange::Opened;
use super::{Brain, Stage};

/// Messages that are looked at between two looks at the connection.
const BATCH: usize = 8;

/// A mailbox that is worked on before its turn.
pub(super) struct Ahead {
    guid: MailboxGuid,
    work: Work,
}

/// How far it is.
enum Work {
    /// What its list needs is being read.
    Reading(Box<dyn Mailbox>),
    /// It is listed; whether its messages can be read is being looked at.
    Checking(Opened),
    Done(Opened),
    /// Something failed, and will be seen again when it is its turn.
    Failed,
}

impl Work {
    fn next(self) -> dsync_storage::Result<Work> {
        Ok(match self {
            Work::Reading(mut mailbox) => match mailbox.read_ahead(BATCH)? {
                true => Work::Checking(Opened::of(mailbox, 1)?),
                false => Work::Reading(mailbox),
            },
            Work::Checking(mut opened) => match opened.check(BATCH)? {
                true => Work::Done(opened),
                false => Work::Checking(opened),
            },
            over => over,
        })
    }
}

impl Brain {
    /// Whether there is something to do while nothing can be said or heard.
    pub fn can_look_ahead(&self) -> bool {
        let sends = self.direction.source() == Some(self.end);
        let begun = matches!(self.stage, Stage::Mailboxes | Stage::Exchange);
        let more = match &self.ahead {
            Some(ahead) => matches!(ahead.work, Work::Reading(_) | Work::Checking(_)),
            None => self.next_with_news().is_some(),
        };
        sends && begun && !self.stopping && more
    }

    /// Does a little of what will have to be done. Nothing comes of it but time that is saved.
    pub fn look_ahead(&mut self) {
        let (guid, work) = match self.ahead.take() {
            Some(Ahead { guid, work }) => (guid, work.next()),
            None => {
                let Some(guid) = self.next_with_news().map(|pair| pair.guid) else { return };
                (guid, self.storage.open(guid).map(Work::Reading))
            }
        };
        self.ahead = Some(Ahead { guid, work: work.unwrap_or(Work::Failed) });
    }

    /// The mailbox that was opened ahead, as it is now, if it is this one. What it knew to be readable it knows still.
    pub(super) fn opened_ahead(&mut self, guid: MailboxGuid) -> dsync_storage::Result<Option<Opened>> {
        let Some(ahead) = self.ahead.take_if(|ahead| ahead.guid == guid) else { return Ok(None) };
        match ahead.work {
            Work::Reading(mailbox) => Opened::of(mailbox, 1).map(Some),
            Work::Checking(opened) | Work::Done(opened) => opened.again().map(Some),
            Work::Failed => Ok(None),
        }
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
