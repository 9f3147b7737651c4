//! The last stages: expunges, digests, purge, and good-bye. The base between them is in `base`.

use std::collections::BTreeSet;

use dsync_merge::{Direction, End};
use dsync_model::{MailboxBase, MessageChange, NotKept, Since, UidSet};
use dsync_proto::{BATCH_MAX, Counters, Message, Planned, Purpose, Settled, batches};
use dsync_storage::{Storage as _, StorageError};

use super::leaving::put_back;
use super::mailbox::goal;
use super::{Brain, Stage, at};
use crate::{MailboxReport, SessionError};

/// Rounds that a disturbed mailbox gets in one session.
const ROUNDS_MAX: u8 = 3;

impl Brain {
    /// All saves of both ends are durable: expunges, one mailbox at a time, then mailbox deletions.
    pub(super) fn expunge(&mut self) -> Result<bool, SessionError> {
        // Once in each round: what was done in an earlier one is no part of it.
        if self.open.iter().filter(|open| open.active).all(|open| !open.expunged) {
            self.hold_back()?;
            self.carry_flags()?;
        }
        let Some(index) = self.open.iter().position(|open| open.active && !open.skipped && !open.expunged)
        else {
            if self.round == 0 {
                self.delete_mailboxes()?;
                self.log_attributes();
            }
            self.stage = Stage::Settling;
            return Ok(true);
        };
        self.open[index].expunged = true;
        match self.expunge_one(index) {
            Ok(Some((settled, not_kept))) => {
                let open = &mut self.open[index];
                let told: Vec<_> = not_kept.iter().map(|(uid, at)| (*uid, *at)).collect();
                open.apart[self.end as usize] = not_kept;
                open.settled[self.end as usize] = Some(settled);
                let channel = open.channel;
                for batch in told.chunks(BATCH_MAX) {
                    self.say_on(channel, Message::NotKept(batch.to_vec()));
                }
                self.say_on(channel, Message::Settled(settled));
            }
            Ok(None) => {}
            Err(error) => self.fail(index, self.open[index].report.name.clone(), error)?,
        }
        Ok(true)
    }

    /// Removes what is to go from one mailbox, and looks how it stands then.
    fn expunge_one(&mut self, index: usize) -> Result<Option<(Settled, NotKept)>, StorageError> {
        let two_way = self.direction() == Direction::TwoWay;
        let open = &mut self.open[index];
        let guid = open.pair.guid;
        let Some(plan) = &open.plan else { return Ok(None) };
        let mut mailbox = self.storage.open(guid)?;
        if !plan.expunges.is_empty() {
            let status = mailbox.status()?;
            mailbox.apply(&plan.expunges)?;
            let committed = mailbox.commit(goal(plan, &status))?;
            open.not_kept.extend(committed.not_kept);
            open.report.expunged += plan.expunges.len() as u64;
        }
        let digest = mailbox.digest_of(&plan.compared)?;
        let mut not_kept = std::mem::take(&mut open.not_kept);
        not_kept.extend(open.held.iter().map(|uid| (*uid, Some(*uid))));
        if two_way {
            // Mail that came below the agreed UIDNEXT while we worked: the mailbox is not as agreed, and is done again.
            let filtered = &open.filtered[self.end as usize];
            let mut agreed = std::borrow::Cow::Borrowed(&plan.agreed);
            if !agreed.out_of_scope.is_empty() {
                agreed.to_mut().out_of_scope = UidSet::new();
            }
            let changes = mailbox.changes(Since::Base(&agreed))?;
            let stray = changes.list.iter().filter(|change| matches!(change, MessageChange::Save { .. }));
            let stray = stray.map(MessageChange::uid).filter(|uid| !filtered.contains(uid.get()));
            for uid in stray.filter(|uid| *uid < plan.agreed.uid_next) {
                not_kept.entry(uid).or_insert(None);
            }
        }
        Ok(Some((Settled { guid, digest }, not_kept)))
    }

    /// Compares what both ends have; what differs is done again.
    pub(super) fn settle(&mut self) -> Result<bool, SessionError> {
        let waits =
            |open: &super::Open| open.active && !open.skipped && open.settled.iter().any(Option::is_none);
        if self.open.iter().any(waits) || self.deletes[self.end.other() as usize] {
            return Ok(false);
        }
        let mut again = false;
        let next = self.round + 1;
        for open in self.open.iter_mut().filter(|open| open.active) {
            open.active = false;
            let ([Some(a), Some(b)], Some(plan)) = (&open.settled, &mut open.plan) else { continue };
            let base = open.base.as_ref().filter(|_| open.since_base);
            let not_kept = open.apart.each_ref().map(|apart| put_back(&mut plan.agreed, base, apart));
            open.confirmed = a.digest == b.digest && not_kept.iter().all(NotKept::is_empty);
            set_apart(&mut plan.agreed, not_kept.each_ref());
            // What a filter kept back is there as well: the digest would say that there is nothing else.
            let all = plan.agreed.out_of_scope.is_empty() && plan.agreed.apart.is_empty();
            plan.agreed.digest = (open.confirmed && all).then_some(a.digest);
            open.base = Some(plan.agreed.clone());
            if open.confirmed {
                self.progress.settled += 1;
                self.report.shown_equal += 1;
            } else if next < ROUNDS_MAX {
                // From what both planned: whatever a user did meanwhile is a change since then. If nobody did anything, what was planned is
                // not what is there: then from the lists alone.
                let still = open.quiet.is_some_and(|digests| !all || digests == [a.digest, b.digest]);
                let base = (next == 1 || !still).then(|| plan.agreed.clone());
                open.again(base);
                again = true;
            } else {
                self.counters.disturbed += 1;
                let text = "changed while it was synchronised, or could not be made equal; run again";
                self.report.notes.push(format!("{}: {text}", open.report.name));
            }
        }
        if again {
            self.round = next;
            self.stage = Stage::Mailboxes;
            self.catch_up()?;
        } else {
            self.stage = Stage::Bases;
        }
        Ok(true)
    }

    /// `-P`: as in Dovecot, it is the responder's storage that is purged. One piece; `false` if there is none left.
    fn purge_some(&mut self) -> Result<bool, SessionError> {
        let wanted = self.asks_to_purge() && self.end == End::Responder;
        let Some(from) = self.purge_from.take().filter(|_| wanted) else { return Ok(false) };
        let Some(purged) = self.storage.purge(from).map_err(at("all is synchronised, but cannot purge"))?
        else {
            return Ok(false);
        };
        self.counters.freed = Some(self.counters.freed.unwrap_or(0) + purged.bytes);
        self.purge_from = purged.next;
        Ok(true)
    }

    /// Says at the initiator what came of `-P`.
    fn note_purge(&mut self, remote: &Counters) {
        if self.asks_to_purge() && self.end == End::Initiator {
            let told = match remote.freed {
                Some(bytes) => format!("purged the destination: {bytes} bytes freed"),
                None => "purge: the destination's format leaves nothing to free".into(),
            };
            self.report.notes.push(told);
        }
    }

    fn asks_to_purge(&self) -> bool {
        self.job.as_ref().is_some_and(|job| job.options.purge && job.options.purpose == Purpose::Sync)
    }

    pub(super) fn finish(&mut self) -> Result<bool, SessionError> {
        if !self.finish_said {
            if self.purge_some()? {
                return Ok(true);
            }
            self.finish_said = true;
            for open in &mut self.open {
                open.report.tree = self.renamed.remove(&open.pair.name);
                self.counters.flags += open.report.flags;
                self.counters.renumbered += open.report.renumbered;
                self.counters.expunged += open.report.expunged;
                let quiet = MailboxReport { name: open.report.name.clone(), ..MailboxReport::default() };
                if open.report != quiet {
                    self.report.mailboxes.push(std::mem::take(&mut open.report));
                }
            }
            for (name, tree) in std::mem::take(&mut self.renamed) {
                let report =
                    MailboxReport { name: name.to_string(), tree: Some(tree), ..MailboxReport::default() };
                self.report.mailboxes.push(report);
            }
            self.report.mailboxes.sort_by(|a, b| a.name.cmp(&b.name));
            self.report.state = self.next_state()?;
            if self.dry_run() && self.end == End::Responder {
                let planned: Vec<Planned> = self.report.mailboxes.iter().map(Into::into).collect();
                for batch in batches(&planned) {
                    self.say(Message::Planned { mailboxes: batch.to_vec(), notes: Vec::new() });
                }
                let notes = std::mem::take(&mut self.report.notes);
                for batch in batches(&notes) {
                    self.say(Message::Planned { mailboxes: Vec::new(), notes: batch.to_vec() });
                }
                self.report.notes = notes;
            }
            self.counters.mailboxes_changed = self.report.mailboxes.len() as u64;
            self.say(Message::Finish(self.counters));
            return Ok(true);
        }
        let Some(remote) = self.peer_finish else { return Ok(false) };
        self.report.local = self.counters;
        self.report.remote = remote;
        self.note_purge(&remote);
        self.lock = None;
        self.stage = Stage::Done;
        Ok(true)
    }
}

/// Takes messages that are not as planned out of what is agreed under one UID, and notes where each end has them.
fn set_apart(agreed: &mut MailboxBase, not_kept: [&NotKept; 2]) {
    let mut apart = BTreeSet::new();
    for uid in not_kept.iter().flat_map(|uids| uids.keys()) {
        // What nobody planned came meanwhile: who has it, has it alone.
        if agreed.uids.contains(uid.get())
            && let [Some(a), Some(b)] = not_kept.map(|uids| uids.get(uid).copied().unwrap_or(Some(*uid)))
        {
            apart.insert([a, b]);
        }
    }
    not_kept.iter().flat_map(|uids| uids.keys()).for_each(|uid| agreed.remove(*uid));
    agreed.apart.append(&mut apart);
}
