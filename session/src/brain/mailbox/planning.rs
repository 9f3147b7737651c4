//! Own lists go out, and with the peer's they become a plan.

use dsync_merge::{Both, MailboxView, MessagePlan, void_base};
use dsync_model::{MailboxStatus, MessageAction, ModSeq, Since, Uid};
use dsync_proto::{BATCH_MAX, List, MailRequest, Message, batches};
use dsync_storage::{Goal, Storage as _};

use super::{CREDIT, Open, gone};
use crate::SessionError;
use crate::brain::Brain;

/// Mailboxes worked on at once.
const MAILBOXES_IN_FLIGHT: usize = 256;

impl Brain {
    pub(super) fn open_next(&mut self) -> Result<bool, SessionError> {
        let Some(next) = self.open.iter().position(|open| open.active && !open.listed) else {
            return Ok(false);
        };
        let held: u64 =
            self.open.iter().filter(|open| open.mine.is_some() && open.plan.is_none()).map(Open::size).sum();
        let in_flight = self.open.iter().filter(|open| open.active && open.mailbox.is_some()).count();
        let first = !self.open.iter().any(Open::lists_held) && in_flight == 0;
        if !first && (held + self.open[next].size() > CREDIT || in_flight >= MAILBOXES_IN_FLIGHT) {
            return Ok(false);
        }
        let filter = self.own_filter();
        let open = &mut self.open[next];
        // What did not get the other end's GUID is still listed: the other end wants to know what it will not get.
        let mut guid = open.pair.guid;
        let unmade = self.unmade.remove(&guid);
        if let Some((text, status)) = &unmade {
            match &open.pair.statuses[self.end] {
                Some(here) => guid = here.guid,
                None => {
                    self.leave_out(next, text.clone(), *status);
                    return Ok(true);
                }
            }
        }
        let since = match &open.base {
            Some(base) if open.since_base && unmade.is_none() => Since::Base(base),
            _ => Since::All,
        };
        let opened = self.storage.open(guid).and_then(|mut mailbox| {
            let changes = mailbox.changes(since)?;
            let kept_back = filter.kept_back(&mut *mailbox, &changes.list, since)?;
            Ok((mailbox, changes, kept_back))
        });
        let (mailbox, changes, kept_back) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                self.fail(next, self.open[next].name(), error)?;
                return Ok(true);
            }
        };
        let open = &mut self.open[next];
        open.mailbox = Some(mailbox);
        let (channel, since_base) = (open.channel, open.since_base);
        let status = MailboxStatus { guid: open.pair.guid, ..changes.status.clone() };
        let round = self.round;
        self.say_on(channel, Message::Mailbox { status, since_base, round });
        for batch in batches(&changes.list) {
            self.say_on(channel, Message::Changes(batch.to_vec()));
        }
        for batch in kept_back.chunks(BATCH_MAX) {
            self.say_on(channel, Message::Filtered(batch.to_vec()));
        }
        self.say_on(channel, Message::End(List::Changes));
        self.open[next].listed = true;
        if let Some((text, status)) = unmade {
            self.leave_out(next, text, status);
            return Ok(true);
        }
        if self.open[next].skipped {
            // The other end has left it out, and wants to know what it will not get.
            self.let_go(next);
            return Ok(true);
        }
        self.open[next].filtered[self.end as usize] = kept_back.into_iter().map(Uid::get).collect();
        self.open[next].mine = Some((changes.status, changes.list));
        Ok(true)
    }

    pub(super) fn plan_next(&mut self) -> Result<bool, SessionError> {
        let ready = |open: &Open| {
            open.active && !open.skipped && open.mine.is_some() && open.theirs_done && open.plan.is_none()
        };
        let Some(index) = self.open.iter().position(ready) else { return Ok(false) };
        self.plan_one(index)?;
        Ok(true)
    }

    /// Merges a mailbox of which both lists are here.
    pub(super) fn plan_one(&mut self, index: usize) -> Result<(), SessionError> {
        let (end, direction) = (self.end, self.direction());
        let open = &mut self.open[index];
        let name = open.name();
        let (Some(mut mine), Some(mut theirs)) = (open.mine.take(), open.theirs.take()) else {
            return Ok(());
        };
        let void = open.base.as_ref().filter(|_| !open.since_base);
        let carried = void.map_or_else(Vec::new, |base| {
            void_base(base, [&mut mine, &mut theirs].map(|(status, list)| (&*status, &mut list[..])))
        });
        let lists = if end == dsync_merge::End::Initiator { [&mine, &theirs] } else { [&theirs, &mine] };
        let filtered = &open.filtered;
        let views = Both([0, 1].map(|i| {
            let (status, changes) = lists[i];
            MailboxView { status, changes, filtered: &filtered[i] }
        }));
        let base = open.base.as_ref().filter(|_| open.since_base);
        let quiet = base.is_some() && mine.1.is_empty() && theirs.1.is_empty();
        open.quiet = quiet.then(|| lists.map(|(status, _)| status.digest));
        let mut plan = match dsync_merge::messages(views, base, direction, end) {
            Ok(plan) => plan,
            Err(_) if open.since_base => {
                // Both ends see the same contradiction, and both start this mailbox over without its base.
                open.again(None);
                return Ok(());
            }
            Err(error) => return Err(SessionError::Peer(format!("lists {name} wrongly: {error}"))),
        };
        plan.carried.extend(carried);
        let channel = open.channel;
        let goal = goal(&plan, &mine.0);
        let mailbox = open.mailbox.as_mut().ok_or_else(|| gone(&name))?;
        let touched = plan.uid_validity.is_some() || goal.uid_next_min > mine.0.uid_next;
        // UIDs are given in ascending order: an index tells a UID below UIDNEXT only by being made anew, which ends the sessions
        // that have it open. A mirror has to make room first.
        let mirrors = matches!(direction, dsync_merge::Direction::Mirror { .. });
        if !mirrors && is_behind_saves(&plan) {
            open.waiting = plan.actions.clone();
        } else if !plan.actions.is_empty() || (touched && plan.fetches.is_empty()) {
            match mailbox.apply(&plan.actions).and_then(|()| mailbox.commit(goal)) {
                Ok(committed) => open.not_kept.extend(committed.not_kept),
                Err(error) => {
                    open.plan = Some(plan);
                    return self.fail(index, name, error);
                }
            }
        }
        for action in &plan.actions {
            match action {
                MessageAction::Flags { .. } => open.report.flags += 1,
                MessageAction::Renumber { .. } => open.report.renumbered += 1,
                MessageAction::Expunge { .. } => {}
            }
        }
        if plan.foreign > 0 && direction.source() != Some(end) {
            self.report
                .notes
                .push(format!("{name}: {} foreign messages are removed from the mirror", plan.foreign));
        }
        let fetches = self.with_donors(index, &plan.fetches);
        let requests: Vec<MailRequest> = fetches
            .iter()
            .filter(|(_, donor)| donor.is_none())
            .map(|(fetch, _)| MailRequest { uid: fetch.from, guid: fetch.guid.clone() })
            .collect();
        self.progress.wanted += fetches.len() as u64;
        let open = &mut self.open[index];
        open.fetches = fetches.into();
        open.plan = Some(plan);
        for batch in requests.chunks(BATCH_MAX) {
            self.say_on(channel, Message::Requests(batch.to_vec()));
        }
        self.say_on(channel, Message::End(List::Requests));
        Ok(())
    }
}

pub(in crate::brain) fn goal(plan: &MessagePlan, status: &MailboxStatus) -> Goal {
    goal_of(plan, status.uid_next, !plan.fetches.is_empty())
}

/// With saves to come, the counters move past them only when they have come.
pub(super) fn goal_of(plan: &MessagePlan, uid_next: Uid, unfinished: bool) -> Goal {
    let (uid_next_min, modseq_min) =
        if unfinished { (uid_next, ModSeq::NONE) } else { (plan.uid_next_min, plan.modseq_min) };
    Goal { uid_next_min, modseq_min, uid_validity: plan.uid_validity, unfinished }
}

/// Says whether a message is to get a UID above one that is still to come.
fn is_behind_saves(plan: &MessagePlan) -> bool {
    let Some(first) = plan.fetches.first().map(|fetch| fetch.uid) else { return false };
    plan.actions.iter().any(|action| matches!(action, MessageAction::Renumber { to, .. } if *to > first))
}
