//! The middle stage: many mailboxes at once, each with its lists, its plan and its bodies.
//!
//! What a mailbox is in a session, what is done next, and what its channel says. Lists and the plan are in `planning`, bodies and
//! commits in `bodies`.

mod bodies;
mod planning;

use std::collections::{BTreeSet, VecDeque};

use dsync_merge::{Fetch, MessagePlan, Pair};
use dsync_model::{
    Digest, MailboxBase, MailboxStatus, MessageAction, MessageChange, MessageGuid, NewMessage, NotKept, Uid,
    UidSet,
};
use dsync_proto::{Channel, List, MailRequest, Message, Settled};
use dsync_storage::{Mailbox, StorageError};

use super::donors::Donor;
use super::leaving::new_guid;
use super::{Brain, Stage};
use crate::listing::DISTURBED;
use crate::{MailboxReport, SessionError};

pub(super) use planning::goal;

/// Entries of own and peer's lists that are held at once; the first mailbox in line is always let in.
const CREDIT: u64 = 200_000;
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
    /// Who has said so, and why: this end, the other one.
    pub skipped_here: bool,
    skipped_there: bool,
    /// This end has told what it has, or that it cannot.
    pub listed: bool,
    /// Left out before the other end told what it has: it still does, so that it is known what will not come.
    pub awaits_list: bool,
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
    /// What each end told that it could not keep.
    pub apart: [NotKept; 2],
    /// Messages that were to be expunged here and stay, as they did not come where they were moved to.
    pub held: BTreeSet<Uid>,
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
            skipped_here: false,
            skipped_there: false,
            listed: false,
            awaits_list: false,
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
            apart: Default::default(),
            held: BTreeSet::new(),
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
        (self.skipped, self.skipped_here, self.skipped_there) =
            (old.skipped, old.skipped_here, old.skipped_there);
        self.report = old.report;
    }

    /// Leaves it out: nothing more is done here, and what is not committed is given up.
    pub(super) fn let_go(&mut self) {
        self.skipped = true;
        (self.mailbox, self.mine, self.saving) = (None, None, None);
        self.theirs.take_if(|_| !self.awaits_list);
        self.fetches.clear();
        self.waiting.clear();
        self.asked.clear();
        self.unsaved = (0, 0);
    }

    /// Leaves it out because of this end. The other end's list is waited for, unless it is here or there is none.
    pub(super) fn skip_here(&mut self) {
        (self.skipped_here, self.listed) = (true, true);
        self.awaits_list = self.plan.is_none() && !self.theirs_done && !self.skipped_there;
    }

    /// GUIDs of messages that the other end has listed as new.
    pub(super) fn new_there(&self) -> impl Iterator<Item = &MessageGuid> {
        self.theirs.iter().flat_map(|(_, list)| list).filter_map(new_guid)
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
        let idle = |open: &Open| match open.skipped {
            true => open.listed && !open.awaits_list,
            false => open.saved,
        };
        let idle = |open: &Open| !open.active || idle(open);
        if self.saves_ended[self.end as usize] == self.round && self.open.iter().all(idle) {
            self.guard_deletions()?;
            self.saves_ended[self.end as usize] += 1;
            if self.round == 0 && !self.plan.deletes.is_empty() {
                self.deletes[self.end as usize] = true;
                self.say(Message::Deleting);
            }
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

    pub(super) fn channel_message(&mut self, channel: Channel, message: Message) -> Result<(), SessionError> {
        let index = (channel as usize).wrapping_sub(1);
        let known = self.open.get_mut(index).filter(|open| open.active || open.skipped);
        let Some(open) = known else {
            return Err(SessionError::Peer(format!("names channel {channel}, which is not open")));
        };
        if let Message::Skip { status, text } = message {
            if !std::mem::replace(&mut open.skipped_there, true) {
                open.awaits_list = false;
                self.let_go(index);
                if status == DISTURBED {
                    self.counters.disturbed += 1;
                } else {
                    self.problem_there(&text, status);
                }
            }
            return Ok(());
        }
        if open.skipped && !open.awaits_list {
            // It was on its way.
            return Ok(());
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
            Message::NotKept(uids) if open.settled[peer].is_none() => {
                let apart = &mut open.apart[peer];
                if (apart.len() + uids.len()) as u64 > CHANGES_MAX {
                    return Err(SessionError::Peer("names more messages than any mailbox holds".into()));
                }
                apart.extend(uids);
            }
            Message::Settled(settled) => open.settled[peer] = Some(settled),
            _ => return Err(wrong()),
        }
        let open = &mut self.open[index];
        if open.awaits_list && open.theirs_done {
            open.awaits_list = false;
            self.let_go(index);
        }
        Ok(())
    }
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
