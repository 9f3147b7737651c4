//! Bodies: those that the peer asks for are sent, those that come are saved, and committed when they are due.

use dsync_model::{MessageAction, NewMessage, Uid};
use dsync_proto::{Channel, MailHeader, Message, Problem};
use dsync_storage::{Body, StorageError};

use super::planning::goal_of;
use super::{Open, chain, gone};
use crate::brain::leaving::MOVED;
use crate::brain::{Brain, Output, clipped};
use crate::listing::DISTURBED;
use crate::{SessionError, commits};

impl Brain {
    /// Answers the oldest request.
    pub(super) fn serve_next(&mut self) -> Result<bool, SessionError> {
        let ready =
            |open: &Open| open.active && !open.skipped && open.plan.is_some() && !open.asked.is_empty();
        let Some(index) = self.open.iter().position(ready) else { return Ok(false) };
        let open = &mut self.open[index];
        let (name, channel) = (open.name(), open.channel);
        let Some(request) = open.asked.pop_front() else { return Ok(false) };
        let mailbox = open.mailbox.as_mut().ok_or_else(|| gone(&name))?;
        let found = mailbox.body(request.uid, request.guid.as_ref());
        let mut header = MailHeader {
            uid: request.uid,
            guid: None,
            received: None,
            saved: None,
            pop3_uidl: None,
            pop3_order: None,
            size: None,
            problem: None,
        };
        match found {
            Ok(Some(mut body)) => {
                body.name_errors();
                header.guid = Some(body.guid.clone());
                (header.received, header.saved, header.size) = (body.received, body.saved, body.size);
                (header.pop3_uidl, header.pop3_order) =
                    (body.pop3_uidl.as_deref().map(str::to_owned), body.pop3_order);
                open.report.sent += 1;
                self.progress.sent += 1;
                self.progress.bytes_sent += body.size.unwrap_or(0);
                self.say_on(channel, Message::Mail(header));
                self.out.push_back(Output::Body(channel, body));
            }
            Ok(None) => self.say_on(channel, Message::Mail(header)),
            Err(error) if self.has_gone(index, &error) => self.leave_out(index, MOVED.into(), DISTURBED),
            Err(error) => {
                let text = format!("{name}: UID {}: {}", request.uid, chain(&error));
                self.problem(text.clone(), error.status());
                header.problem = Some(Problem { status: error.status(), text: clipped(text) });
                self.say_on(channel, Message::Mail(header));
            }
        }
        Ok(true)
    }

    pub(super) fn begin(&mut self, index: usize, header: MailHeader) -> Result<(), SessionError> {
        while self.copy_at(index)? {}
        if self.open[index].skipped {
            return Ok(());
        }
        let open = &mut self.open[index];
        let name = open.name();
        let fetch = open.fetches.pop_front().map(|(fetch, _)| fetch);
        let Some(fetch) = fetch.filter(|fetch| fetch.from == header.uid && open.saving.is_none()) else {
            return Err(SessionError::Peer("sends a message that was not asked for".into()));
        };
        let Some(guid) = header.guid else {
            open.not_kept.insert(fetch.uid, None);
            if let Some(Problem { status, text }) = header.problem {
                self.problem_there(&text, status);
            }
            return Ok(());
        };
        // Messages known by their headers bring a GUID that no list named.
        let named = fetch.guid.as_ref().filter(|_| !self.storage.is_on());
        if named.is_some_and(|wanted| wanted.bits() != guid.bits()) {
            return Err(SessionError::Peer(format!(
                "sends another message than UID {} of {name}",
                header.uid
            )));
        }
        let message = NewMessage {
            uid: fetch.uid,
            guid,
            flags: fetch.flags,
            modseq: fetch.modseq,
            received: header.received,
            saved: header.saved,
            pop3_uidl: header.pop3_uidl.map(Into::into),
            pop3_order: header.pop3_order,
            size: header.size,
        };
        open.saving = Some((message, false));
        Ok(())
    }

    pub(in crate::brain) fn body_piece(
        &mut self,
        channel: Channel,
        piece: &[u8],
    ) -> Result<(), SessionError> {
        let index = (channel as usize).wrapping_sub(1);
        let unexpected = || SessionError::Peer("sends a body that nobody announced".into());
        let open = self.open.get_mut(index).ok_or_else(unexpected)?;
        if open.skipped {
            return Ok(());
        }
        let name = open.name();
        let (Some((message, begun)), Some(mailbox)) = (open.saving.as_mut(), open.mailbox.as_mut()) else {
            return Err(unexpected());
        };
        let begins = !std::mem::replace(begun, true);
        let begun = if begins { mailbox.begin_save(message.clone()) } else { Ok(()) };
        if let Err(error) = begun.and_then(|()| mailbox.write(piece)) {
            let place = format!("{name}: UID {}: cannot save", message.uid);
            return self.fail(index, place, error);
        }
        open.unsaved.1 += piece.len() as u64;
        self.progress.bytes_received += piece.len() as u64;
        Ok(())
    }

    pub(in crate::brain) fn body_end(&mut self, channel: Channel) -> Result<(), SessionError> {
        self.body_piece(channel, &[])?;
        let dry_run = self.dry_run();
        let index = channel as usize - 1;
        let open = &mut self.open[index];
        if open.skipped {
            return Ok(());
        }
        let name = open.name();
        if let (Some((message, _)), Some(mailbox)) = (open.saving.take(), open.mailbox.as_mut()) {
            if dry_run {
                open.unsaved.1 += message.size.unwrap_or(0);
            }
            if let Err(error) = mailbox.end_save() {
                return self.fail(index, format!("{name}: UID {}: cannot save", message.uid), error);
            }
        }
        self.count_save(index)
    }

    /// The body given out last on this channel could not be read to its end: its mailbox is left out, and the other end forgets what it has
    /// of that message.
    pub fn body_failed(&mut self, channel: Channel, error: StorageError) -> Result<(), SessionError> {
        let index = (channel as usize).wrapping_sub(1);
        let place = self.open.get(index).map(Open::name).unwrap_or_default();
        self.fail(index, place, error)
    }

    pub(in crate::brain) fn whole_body(&mut self, channel: Channel, body: Body) -> Result<(), SessionError> {
        let index = (channel as usize).wrapping_sub(1);
        let open = self.open.get_mut(index);
        if open.as_ref().is_some_and(|open| open.skipped) {
            return Ok(());
        }
        let Some((open, (message, _))) =
            open.and_then(|open| open.saving.take().map(|saving| (open, saving)))
        else {
            return Err(SessionError::Peer("sends a body that nobody announced".into()));
        };
        let (name, uid, size) = (open.name(), message.uid, body.size.unwrap_or(0));
        let mailbox = open.mailbox.as_mut().ok_or_else(|| gone(&name))?;
        if let Err(error) = mailbox.save(message, body) {
            return self.fail(index, format!("{name}: UID {uid}: cannot save"), error);
        }
        open.unsaved.1 += size;
        self.progress.bytes_received += size;
        self.count_save(index)
    }

    pub(in crate::brain) fn count_save(&mut self, index: usize) -> Result<(), SessionError> {
        let open = &mut self.open[index];
        open.unsaved.0 += 1;
        self.progress.received += 1;
        let status = open.pair.statuses[self.end].as_ref();
        let held = status.map_or(0, |status| u64::from(status.messages)) + open.report.saved;
        if commits::is_due(open.unsaved, held) {
            self.commit_saves(index)?;
        }
        Ok(())
    }

    /// Commits a mailbox whose bodies have all come, and lets go of it when the peer wants no more either.
    pub(super) fn close_next(&mut self) -> Result<bool, SessionError> {
        let complete = |open: &Open| {
            open.active
                && !open.skipped
                && open.plan.is_some()
                && !open.saved
                && open.fetches.is_empty()
                && open.saving.is_none()
        };
        if let Some(index) = self.open.iter().position(complete) {
            self.commit_saves(index)?;
            self.open[index].saved = true;
            return Ok(true);
        }
        let done =
            |open: &Open| open.saved && open.asked_done && open.asked.is_empty() && open.mailbox.is_some();
        if let Some(index) = self.open.iter().position(done) {
            self.open[index].mailbox = None;
            return Ok(true);
        }
        Ok(false)
    }

    fn commit_saves(&mut self, index: usize) -> Result<(), SessionError> {
        let open = &mut self.open[index];
        let name = open.name();
        // The last commit raises UIDNEXT even if nothing came.
        let last = open.fetches.is_empty() && open.plan.as_ref().is_some_and(|plan| !plan.fetches.is_empty());
        if open.unsaved.0 == 0 && !last {
            return Ok(());
        }
        let (Some(mailbox), Some(plan)) = (open.mailbox.as_mut(), &open.plan) else { return Ok(()) };
        let status = open.pair.statuses[self.end].as_ref();
        let uid_next = status.map_or(Uid::MIN, |status| status.uid_next);
        let goal = goal_of(plan, uid_next, !open.fetches.is_empty());
        let next = open.fetches.front().map(|(fetch, _)| fetch.uid);
        let waiting = std::mem::take(&mut open.waiting);
        let (now, later): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|action| match action {
            MessageAction::Renumber { to, .. } => next.is_none_or(|next| *to < next),
            MessageAction::Flags { .. } | MessageAction::Expunge { .. } => next.is_none(),
        });
        open.waiting = later;
        let now = now.into_iter().filter_map(|action| action.redirected(&open.not_kept));
        let committed = match mailbox.apply(&Vec::from_iter(now)).and_then(|()| mailbox.commit(goal)) {
            Ok(committed) => committed,
            Err(error) => return self.fail(index, name, error),
        };
        open.not_kept.extend(committed.not_kept);
        open.report.saved += open.unsaved.0;
        self.counters.saved += open.unsaved.0;
        self.counters.bytes += open.unsaved.1;
        open.unsaved = (0, 0);
        Ok(())
    }

    /// Makes durable what has come, before the session is left.
    pub(in crate::brain) fn make_safe(&mut self) -> Result<(), SessionError> {
        for index in 0..self.open.len() {
            if let Some(mailbox) = &mut self.open[index].mailbox {
                mailbox.abandon_save();
            }
            self.commit_saves(index)?;
        }
        Ok(())
    }
}
