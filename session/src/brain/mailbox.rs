//! The middle stage: many mailboxes at once, each with its lists, its plan and its bodies.

use std::collections::VecDeque;

use dsync_merge::{Both, Fetch, MailboxView, MessagePlan, Pair};
use dsync_model::{
    Digest, FlagDelta, MailboxBase, MailboxStatus, MessageAction, MessageChange, ModSeq, NewMessage, NotKept,
    Since, Uid, UidSet,
};
use dsync_proto::{BATCH_MAX, Channel, List, MailHeader, MailRequest, Message, Problem, Settled};
use dsync_storage::{Body, Goal, Mailbox, Storage as _, StorageError};

use super::donors::Donor;
use super::{Brain, Output, Stage, at, clipped};
use crate::{MailboxReport, SessionError, commits};

/// Entries of own and peer's lists that are held at once; the first mailbox in line is always let in.
const CREDIT: u64 = 200_000;
/// Mailboxes worked on at once.
const MAILBOXES_IN_FLIGHT: usize = 256;
/// Most entries that a peer may list in one mailbox.
const CHANGES_MAX: u64 = 20_000_000;

/// One mailbox of the session.
pub(super) struct Open {
    pub channel: Channel,
    pub pair: Pair,
    /// What both ends agreed on; used if `since_base`.
    pub base: Option<MailboxBase>,
    pub since_base: bool,
    /// Takes part in this round.
    pub active: bool,
    /// Left out for good, at this end or the other.
    pub skipped: bool,
    /// Nothing had changed at either end since the base: the digests of both ends then.
    pub quiet: Option<[Digest; 2]>,
    pub mailbox: Option<Box<dyn Mailbox>>,
    mine: Option<(MailboxStatus, Vec<MessageChange>)>,
    theirs: Option<(MailboxStatus, Vec<MessageChange>)>,
    theirs_done: bool,
    /// Messages of each end that do not pass the filter.
    pub filtered: [UidSet; 2],
    pub plan: Option<MessagePlan>,
    /// What is to be saved here, in its order; what is here already is copied.
    pub fetches: VecDeque<(Fetch, Option<Donor>)>,
    /// Actions that wait for the saves whose UIDs come before theirs.
    waiting: Vec<MessageAction>,
    pub saving: Option<(NewMessage, bool)>,
    pub unsaved: (u64, u64),
    asked: VecDeque<MailRequest>,
    asked_done: bool,
    saved: bool,
    pub not_kept: NotKept,
    pub settled: [Option<Settled>; 2],
    pub expunged: bool,
    pub confirmed: bool,
    pub report: MailboxReport,
}

impl Open {
    pub(super) fn new(channel: Channel, pair: Pair, base: Option<MailboxBase>) -> Open {
        let report = MailboxReport { name: pair.name.to_string(), ..MailboxReport::default() };
        // Before the lists, UIDVALIDITY is that of the trees; a mailbox made just now has the other's.
        let listed = pair.statuses.0.iter().flatten();
        let valid =
            base.as_ref().is_some_and(|base| listed.map(|s| s.uid_validity).all(|v| v == base.uid_validity));
        Open {
            channel,
            pair,
            since_base: valid,
            base,
            active: true,
            skipped: false,
            quiet: None,
            mailbox: None,
            mine: None,
            theirs: None,
            theirs_done: false,
            filtered: Default::default(),
            plan: None,
            fetches: VecDeque::new(),
            waiting: Vec::new(),
            saving: None,
            unsaved: (0, 0),
            asked: VecDeque::new(),
            asked_done: false,
            saved: false,
            not_kept: NotKept::new(),
            settled: [None, None],
            expunged: false,
            confirmed: false,
            report,
        }
    }

    /// Begins another round: from what both ends now agree on, or without a base.
    pub(super) fn again(&mut self, base: Option<MailboxBase>) {
        let fresh = Open::new(self.channel, self.pair.clone(), None);
        let old = std::mem::replace(self, fresh);
        self.since_base = base.is_some();
        // What the filter kept back at one end may be the UID of another message at the other: each looks anew.
        self.base = base.map(|base| MailboxBase { out_of_scope: UidSet::new(), ..base });
        self.skipped = old.skipped;
        self.report = old.report;
    }

    fn size(&self) -> u64 {
        self.pair.statuses.0.iter().flatten().map(|status| u64::from(status.messages)).sum()
    }

    /// Where it stands, in one line.
    pub(super) fn standing(&self) -> String {
        format!(
            "{} on {}: skipped {}, lists {}/{} done {}, plan {}, {} to come, {} to send, asked all {}, saved {}, settled {:?}",
            self.pair.name,
            self.channel,
            self.skipped,
            self.mine.is_some(),
            self.theirs.is_some(),
            self.theirs_done,
            self.plan.is_some(),
            self.fetches.len(),
            self.asked.len(),
            self.asked_done,
            self.saved,
            self.settled.each_ref().map(Option::is_some),
        )
    }

    fn lists_held(&self) -> bool {
        self.active && (self.mine.is_some() || self.theirs.is_some()) && self.plan.is_none()
    }

    fn name(&self) -> String {
        self.pair.name.to_string()
    }
}

impl Brain {
    /// One piece of work on the mailboxes; `false` if there is none until something comes in.
    pub(super) fn work_on_mailboxes(&mut self) -> Result<bool, SessionError> {
        if self.open_next()?
            || self.plan_next()?
            || self.serve_next()?
            || self.copy_next()?
            || self.close_next()?
        {
            return Ok(true);
        }
        let idle = |open: &Open| !open.active || open.skipped || open.saved;
        if self.saves_ended[self.end as usize] == self.round && self.open.iter().all(idle) {
            self.guard_deletions()?;
            self.saves_ended[self.end as usize] += 1;
            self.say(Message::End(List::Saves));
            return Ok(true);
        }
        if self.saves_ended.iter().all(|ended| *ended > self.round) {
            self.donors.close();
            self.stage = Stage::Expunges;
            return Ok(true);
        }
        Ok(false)
    }

    fn open_next(&mut self) -> Result<bool, SessionError> {
        let Some(next) =
            self.open.iter().position(|o| o.active && !o.skipped && o.mine.is_none() && o.plan.is_none())
        else {
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
        let since = match &open.base {
            Some(base) if open.since_base => Since::Base(base),
            _ => Since::All,
        };
        let opened = self.storage.open(open.pair.guid).and_then(|mut mailbox| {
            let mut changes = mailbox.changes(since)?;
            if let (Some(base), Since::All) = (&open.base, since)
                && base.uid_validity == changes.status.uid_validity
            {
                measure(&mut changes.list, base);
            }
            let kept_back = filter.kept_back(&mut *mailbox, &changes.list, since)?;
            Ok((mailbox, changes, kept_back))
        });
        let (mailbox, changes, kept_back) = match opened {
            Ok(opened) => opened,
            Err(error) => return self.skip(next, &error),
        };
        let open = &mut self.open[next];
        open.mailbox = Some(mailbox);
        let (channel, status, since_base) = (open.channel, changes.status.clone(), open.since_base);
        let round = self.round;
        self.say_on(channel, Message::Mailbox { status, since_base, round });
        for batch in changes.list.chunks(BATCH_MAX) {
            self.say_on(channel, Message::Changes(batch.to_vec()));
        }
        for batch in kept_back.chunks(BATCH_MAX) {
            self.say_on(channel, Message::Filtered(batch.to_vec()));
        }
        self.say_on(channel, Message::End(List::Changes));
        self.open[next].filtered[self.end as usize] = kept_back.into_iter().map(Uid::get).collect();
        self.open[next].mine = Some((changes.status, changes.list));
        Ok(true)
    }

    fn skip(&mut self, index: usize, error: &StorageError) -> Result<bool, SessionError> {
        let (name, channel) = (self.open[index].name(), self.open[index].channel);
        let text = format!("{name}: {}", chain(error));
        self.problem(text.clone(), error.status());
        self.open[index].skipped = true;
        self.say_on(channel, Message::Skip { status: error.status(), text: clipped(text) });
        Ok(true)
    }

    fn plan_next(&mut self) -> Result<bool, SessionError> {
        let ready = |open: &Open| {
            open.active && !open.skipped && open.mine.is_some() && open.theirs_done && open.plan.is_none()
        };
        let Some(index) = self.open.iter().position(ready) else { return Ok(false) };
        self.plan_one(index)?;
        Ok(true)
    }

    /// Merges a mailbox of which both lists are here.
    fn plan_one(&mut self, index: usize) -> Result<(), SessionError> {
        let (end, direction) = (self.end, self.direction());
        let open = &mut self.open[index];
        let name = open.name();
        let (Some(mine), Some(theirs)) = (open.mine.take(), open.theirs.take()) else { return Ok(()) };
        let lists = if end == dsync_merge::End::Initiator { [&mine, &theirs] } else { [&theirs, &mine] };
        let filtered = &open.filtered;
        let views = Both([0, 1].map(|i| {
            let (status, changes) = lists[i];
            MailboxView { status, changes, filtered: &filtered[i] }
        }));
        let base = open.base.as_ref().filter(|_| open.since_base);
        let quiet = base.is_some() && mine.1.is_empty() && theirs.1.is_empty();
        open.quiet = quiet.then(|| lists.map(|(status, _)| status.digest));
        let plan = match dsync_merge::messages(views, base, direction, end) {
            Ok(plan) => plan,
            Err(_) if open.since_base => {
                // Both ends see the same contradiction, and both start this mailbox over without its base.
                open.again(None);
                return Ok(());
            }
            Err(error) => return Err(SessionError::Peer(format!("lists {name} wrongly: {error}"))),
        };
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
            mailbox.apply(&plan.actions).map_err(at(name.clone()))?;
            let committed = mailbox.commit(goal).map_err(at(name.clone()))?;
            open.not_kept.extend(committed.not_kept);
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
        let fetches = self.with_donors(index, &plan.fetches)?;
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

    /// Answers the oldest request.
    fn serve_next(&mut self) -> Result<bool, SessionError> {
        let ready = |open: &Open| open.active && open.plan.is_some() && !open.asked.is_empty();
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
            Ok(Some(body)) => {
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
            Err(error) => {
                let text = format!("{name}: UID {}: {}", request.uid, chain(&error));
                self.problem(text.clone(), error.status());
                header.problem = Some(Problem { status: error.status(), text: clipped(text) });
                self.say_on(channel, Message::Mail(header));
            }
        }
        Ok(true)
    }

    /// Commits a mailbox whose bodies have all come, and lets go of it when the peer wants no more either.
    fn close_next(&mut self) -> Result<bool, SessionError> {
        let complete = |open: &Open| {
            open.active
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
        mailbox.apply(&Vec::from_iter(now)).map_err(at(name.clone()))?;
        let committed = mailbox.commit(goal).map_err(at(name))?;
        open.not_kept.extend(committed.not_kept);
        open.report.saved += open.unsaved.0;
        self.counters.saved += open.unsaved.0;
        self.counters.bytes += open.unsaved.1;
        open.unsaved = (0, 0);
        Ok(())
    }

    /// Makes durable what has come, before the session is left.
    pub(super) fn make_safe(&mut self) -> Result<(), SessionError> {
        for index in 0..self.open.len() {
            if let Some(mailbox) = &mut self.open[index].mailbox {
                mailbox.abandon_save();
            }
            self.commit_saves(index)?;
        }
        Ok(())
    }

    pub(super) fn channel_message(&mut self, channel: Channel, message: Message) -> Result<(), SessionError> {
        let index = (channel as usize).wrapping_sub(1);
        let known = self.open.get(index).is_some_and(|open| open.active);
        if !known {
            return Err(SessionError::Peer(format!("names channel {channel}, which is not open")));
        }
        let round = self.round;
        let peer = self.end.other() as usize;
        let open = &self.open[index];
        if matches!(message, Message::Mailbox { .. })
            && open.theirs_done
            && open.mine.is_some()
            && open.plan.is_none()
        {
            // The peer found both lists to contradict the base and starts over: so shall we, from the same lists.
            self.plan_one(index)?;
        }
        let open = &mut self.open[index];
        let wrong = || SessionError::Peer(format!("sends a message out of turn on channel {channel}"));
        match message {
            Message::Mailbox { status, since_base, round: theirs } => {
                if open.theirs.is_some()
                    || theirs != round
                    || status.guid != open.pair.guid
                    || since_base != open.since_base
                {
                    return Err(wrong());
                }
                open.theirs = Some((status, Vec::new()));
            }
            Message::Changes(changes) => {
                let (status, list) = open.theirs.as_mut().filter(|_| !open.theirs_done).ok_or_else(wrong)?;
                // What is there, what the base knows and is gone, and what a log may still tell of.
                let base = open.base.as_ref().map_or(0, |base| base.uids.len());
                let plausible = u64::from(status.messages) + base + CREDIT;
                if (list.len() + changes.len()) as u64 > plausible.min(CHANGES_MAX) {
                    return Err(SessionError::Peer(format!(
                        "lists more than the {} messages it has",
                        status.messages
                    )));
                }
                list.extend(changes);
            }
            Message::Filtered(uids) if open.theirs.is_some() && !open.theirs_done => {
                open.filtered[peer].extend(uids.into_iter().map(Uid::get));
            }
            Message::End(List::Changes) if open.theirs.is_some() => open.theirs_done = true,
            Message::Requests(requests) if !open.asked_done => {
                if (open.asked.len() + requests.len()) as u64 > CHANGES_MAX {
                    return Err(SessionError::Peer("asks for more messages than any mailbox holds".into()));
                }
                self.progress.asked += requests.len() as u64;
                open.asked.extend(requests);
            }
            Message::End(List::Requests) => open.asked_done = true,
            Message::Mail(header) => self.begin(index, header)?,
            Message::Settled(settled) => open.settled[peer] = Some(settled),
            Message::Skip { status, text } => {
                open.skipped = true;
                open.mailbox = None;
                self.problem_there(&text, status);
            }
            _ => return Err(wrong()),
        }
        Ok(())
    }

    fn begin(&mut self, index: usize, header: MailHeader) -> Result<(), SessionError> {
        while self.copy_at(index)? {}
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

    pub(super) fn body_piece(&mut self, channel: Channel, piece: &[u8]) -> Result<(), SessionError> {
        let index = (channel as usize).wrapping_sub(1);
        let unexpected = || SessionError::Peer("sends a body that nobody announced".into());
        let open = self.open.get_mut(index).ok_or_else(unexpected)?;
        let name = open.name();
        let (Some((message, begun)), Some(mailbox)) = (open.saving.as_mut(), open.mailbox.as_mut()) else {
            return Err(unexpected());
        };
        let place = || format!("{name}: UID {}: cannot save", message.uid);
        if !*begun {
            mailbox.begin_save(message.clone()).map_err(at(place()))?;
            *begun = true;
        }
        mailbox.write(piece).map_err(at(place()))?;
        open.unsaved.1 += piece.len() as u64;
        self.progress.bytes_received += piece.len() as u64;
        Ok(())
    }

    pub(super) fn body_end(&mut self, channel: Channel) -> Result<(), SessionError> {
        self.body_piece(channel, &[])?;
        let dry_run = self.dry_run();
        let open = &mut self.open[channel as usize - 1];
        let name = open.name();
        if let (Some((message, _)), Some(mailbox)) = (open.saving.take(), open.mailbox.as_mut()) {
            if dry_run {
                open.unsaved.1 += message.size.unwrap_or(0);
            }
            mailbox.end_save().map_err(at(format!("{name}: UID {}: cannot save", message.uid)))?;
        }
        self.count_save(channel as usize - 1)
    }

    pub(super) fn whole_body(&mut self, channel: Channel, body: Body) -> Result<(), SessionError> {
        let index = (channel as usize).wrapping_sub(1);
        let open = self.open.get_mut(index);
        let Some((open, (message, _))) =
            open.and_then(|open| open.saving.take().map(|saving| (open, saving)))
        else {
            return Err(SessionError::Peer("sends a body that nobody announced".into()));
        };
        let (name, uid, size) = (open.name(), message.uid, body.size.unwrap_or(0));
        let mailbox = open.mailbox.as_mut().ok_or_else(|| gone(&name))?;
        mailbox.save(message, body).map_err(at(format!("{name}: UID {uid}: cannot save")))?;
        open.unsaved.1 += size;
        self.progress.bytes_received += size;
        self.count_save(index)
    }

    pub(super) fn count_save(&mut self, index: usize) -> Result<(), SessionError> {
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
}

pub(super) fn goal(plan: &MessagePlan, status: &MailboxStatus) -> Goal {
    goal_of(plan, status.uid_next, !plan.fetches.is_empty())
}

/// With saves to come, the counters move past them only when they have come.
fn goal_of(plan: &MessagePlan, uid_next: Uid, unfinished: bool) -> Goal {
    let (uid_next_min, modseq_min) =
        if unfinished { (uid_next, ModSeq::NONE) } else { (plan.uid_next_min, plan.modseq_min) };
    Goal { uid_next_min, modseq_min, uid_validity: plan.uid_validity, unfinished }
}

/// Tells the flags that changed by the base, which is void because of the other end's UIDVALIDITY, but true here. The log that a list without
/// a base comes from goes further back: what was removed long ago is no change.
fn measure(list: &mut [MessageChange], base: &MailboxBase) {
    for change in list {
        if let MessageChange::Save { uid, flags, .. } = change
            && base.uids.contains(uid.get())
        {
            *flags = FlagDelta::between(&base.flags_of(*uid), std::mem::take(&mut flags.current));
        }
    }
}

/// Says whether a message is to get a UID above one that is still to come.
fn is_behind_saves(plan: &MessagePlan) -> bool {
    let Some(first) = plan.fetches.first().map(|fetch| fetch.uid) else { return false };
    plan.actions.iter().any(|action| matches!(action, MessageAction::Renumber { to, .. } if *to > first))
}

fn gone(name: &str) -> SessionError {
    SessionError::Peer(format!("asks for {name} after it was done"))
}

/// The error and what it came from, in one line.
pub(super) fn chain(error: &StorageError) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}
