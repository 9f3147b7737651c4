//! The last stage: the peer's last words and ours, what is removed last, and the report.

use dsync_merge::End;
use dsync_proto::dovecot::items::{self, Item};

use super::{Brain, Stage, at, unexpected};
use crate::SessionError;

impl Brain {
    pub(super) fn finish(&mut self) -> Result<bool, SessionError> {
        if self.end == End::Initiator && self.minor >= 3 {
            let Some(item) = self.next_item()? else { return Ok(false) };
            let Item::Finish(finish) = item else { return Err(unexpected(&item, "the end of the session")) };
            self.full_resync |= finish.require_full_resync;
            if let Some(error) = &finish.error {
                let text = String::from_utf8_lossy(error).escape_debug().to_string();
                self.problem(format!("the other end reports: {text}"), status_of(finish.mail_error));
            } else if finish.mail_error.is_some() {
                self.counters.disturbed += 1;
            }
        }
        self.delete()?;
        if self.end == End::Responder {
            let mut from = self.handshake.purge_remote.then_some(0);
            while let Some(piece) = from {
                let purged =
                    self.storage.purge(piece).map_err(at("all is synchronised, but cannot purge"))?;
                from = purged.and_then(|purged| purged.next);
            }
            let resync = self.full_resync;
            self.say(items::Finish { require_full_resync: resync, ..items::Finish::default() });
            self.say(Item::Close);
        }
        self.counters.mailboxes_changed = self.report.mailboxes.len() as u64;
        self.report.local = self.counters;
        self.report.compared = Some(self.compared);
        self.report.remote.bytes = self.progress.bytes_sent;
        self.report.mailboxes.sort_by(|a, b| a.name.cmp(&b.name));
        if self.wants_state && !self.full_resync {
            // What was not looked into stays as it was, what is gone goes.
            let exists = |guid: &_| self.plan.pairs.iter().any(|pair| pair.guid == *guid);
            let mut next = std::mem::take(&mut self.state);
            next.0.retain(|guid, _| exists(guid));
            next.0.append(&mut self.next_state.0);
            self.report.state = Some(next);
        }
        self.settled.write(&mut *self.storage);
        self.unfinished.write(&mut *self.storage).map_err(at("all is synchronised, but cannot be noted"))?;
        if let Some(guids) = &self.guids {
            guids.write(&mut *self.storage);
        }
        self.lock = None;
        self.stage = Stage::Done;
        Ok(true)
    }

    /// Mailboxes that only we have in a mirror go last.
    fn delete(&mut self) -> Result<(), SessionError> {
        for change in std::mem::take(&mut self.plan.deletes) {
            if !self.change_tree(&change)? {
                self.counters.disturbed += 1;
            }
        }
        Ok(())
    }
}

/// The exit status of what Dovecot calls a mail error.
fn status_of(mail_error: Option<u32>) -> u8 {
    match mail_error {
        Some(3 | 8 | 11 | 12) => 65,
        Some(4) => 64,
        Some(5) => 77,
        Some(6) => 73,
        Some(7) => 68,
        _ => 75,
    }
}
