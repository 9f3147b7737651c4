//! Bodies that come in, what is copied of them, and how a mailbox is closed: saves first, expunges last.

use dsync_merge::dovecot::Save;
use dsync_model::{MessageAction, ModSeq, NewMessage, NotKept, Timestamp, Uid};
use dsync_proto::dovecot::items;
use dsync_storage::Goal;

use super::{Exchange, Incoming, List, Part, at};
use crate::{Progress, SessionError, commits};

impl Exchange {
    pub(super) fn goal(&self) -> Goal {
        let unfinished = self.pending_from().is_some();
        // The counters move past what is still to come only when it has come.
        let plan = self.plan.as_ref().filter(|_| !unfinished);
        let (uid_next, modseq) = plan.map_or((0, 0), |plan| (plan.uid_next_min, plan.modseq_min));
        Goal {
            uid_next_min: Uid::new(uid_next).unwrap_or(Uid::MIN).max(self.status.uid_next),
            modseq_min: ModSeq::new(modseq).unwrap_or_default().max(self.status.highest_modseq),
            uid_validity: self.uid_validity,
            unfinished,
        }
    }

    pub(super) fn commit(&mut self) -> Result<(), SessionError> {
        let next = self.pending_from();
        let (now, later) = std::mem::take(&mut self.waiting).into_iter().partition(|action| match action {
            MessageAction::Renumber { to, .. } => next.is_none_or(|next| *to < next),
            MessageAction::Flags { .. } | MessageAction::Expunge { .. } => next.is_none(),
        });
        self.waiting = later;
        self.mailbox.apply(&Vec::from_iter(now)).map_err(at(self.name.clone()))?;
        let goal = self.goal();
        let not_kept = self.commit_to(goal)?;
        self.not_kept.extend(not_kept.into_keys());
        Ok(())
    }

    /// The lowest UID from which on something is still to come, here or there.
    fn pending_from(&self) -> Option<Uid> {
        [self.to_come.first().copied(), self.unlike_from].into_iter().flatten().min()
    }

    /// Whether nothing is to come below what came, here or there. What an end lacks, below what both have, would count as expunged there in the next run, if
    /// that is the next thing after a commit.
    fn is_ascending(&self) -> bool {
        self.pending_from().is_none_or(|next| self.unsaved_max < Some(next))
    }

    /// Whether nothing is to come here below what came.
    pub(super) fn comes_ascending(&self) -> bool {
        self.to_come.first().copied().is_none_or(|next| self.unsaved_max < Some(next))
    }

    pub(super) fn commit_to(&mut self, goal: Goal) -> Result<NotKept, SessionError> {
        let committed = self.mailbox.commit(goal).map_err(at(self.name.clone()))?;
        self.report.saved += committed.saved;
        self.bytes += committed.bytes;
        self.unsaved = (0, 0);
        self.unsaved_max = None;
        Ok(committed.not_kept)
    }

    pub(super) fn begin_body(&mut self, mail: items::Mail) -> Result<(), SessionError> {
        if self.incoming.is_some() {
            return Err(SessionError::Peer("begins a message in the middle of another".into()));
        }
        let asked = self.wanted.remove(&key(mail.guid.as_deref(), mail.uid));
        let Some(group) = asked.filter(|group| !group.is_empty() && !self.gave_up) else {
            self.incoming = mail.stream.then_some(Incoming::Other);
            return Ok(());
        };
        if !mail.stream {
            // Expunged meanwhile: the next run tells us so.
            for save in &group {
                self.to_come.remove(&save.uid);
            }
            self.disturbed = true;
            return Ok(());
        }
        let time = |secs: Option<u64>| secs.and_then(|secs| i64::try_from(secs).ok()).map(Timestamp);
        let text =
            |bytes: &[u8]| std::str::from_utf8(bytes).ok().filter(|text| !text.is_empty()).map(Into::into);
        let message = |save: &Save| NewMessage {
            received: time(mail.received_date),
            saved: time(mail.saved_date),
            pop3_uidl: mail.pop3_uidl.as_deref().and_then(text),
            pop3_order: mail.pop3_order.filter(|order| *order > 0),
            ..new_message(save)
        };
        let first = group.first().map(|save| (save.uid, message(save)));
        self.incoming = Some(Incoming::Wanted(group));
        if let Some((uid, message)) = first {
            self.mailbox.begin_save(message).map_err(at(format!("{}: UID {uid}", self.name)))?;
        }
        Ok(())
    }

    pub(super) fn piece(&mut self, piece: &[u8], progress: &mut Progress) -> Result<(), SessionError> {
        match &self.incoming {
            Some(Incoming::Wanted(_)) => {
                progress.bytes_received += piece.len() as u64;
                self.unsaved.1 += piece.len() as u64;
                self.mailbox.write(piece).map_err(at(self.name.clone()))
            }
            Some(Incoming::Other) => Ok(()),
            None => {
                self.attributes.piece(piece);
                Ok(())
            }
        }
    }

    pub(super) fn end_body(&mut self, progress: &mut Progress) -> Result<(), SessionError> {
        if self.attributes.end_body()? {
            return Ok(());
        }
        let Some(Incoming::Wanted(group)) = self.incoming.take() else { return Ok(()) };
        self.mailbox.end_save().map_err(at(self.name.clone()))?;
        progress.received += 1;
        self.unsaved.0 += 1;
        let mut group = group.into_iter();
        if let Some(first) = group.next() {
            self.to_come.remove(&first.uid);
            self.unsaved_max = self.unsaved_max.max(Some(first.uid));
            // The peer sends one body, however many messages have it.
            self.copies.extend(group.map(|save| (save.guid.clone(), save, first.uid)));
        }
        if commits::is_due(self.unsaved, self.own.len() as u64 + self.report.saved) && self.is_ascending() {
            self.commit()?;
        }
        Ok(())
    }

    pub(super) fn all_came(&mut self) -> Result<(), SessionError> {
        let missing = self.wanted.values().flatten().next();
        match missing.filter(|_| self.terms.requests && !self.gave_up) {
            Some(save) => Err(SessionError::Peer(format!(
                "never sent UID {} of {}, which we asked for",
                save.uid, self.name
            ))),
            None => Ok(()),
        }
    }

    /// Whether the peer has yet to say that it is through: until then it may lack what it is to have below what came here.
    pub(super) fn waits_for_state(&self) -> bool {
        self.writing.front() == Some(&List::State)
            && self.reading.front() == Some(&List::State)
            && self.unlike_from.is_some()
            && self.part == Part::Both
            && self.terms.peer_is_first
            && !self.gave_up
    }

    /// Makes durable what came, then removes what is to go; and tells how this end stands.
    pub(super) fn close(&mut self) -> Result<items::State, SessionError> {
        let is_stuck = self.heard.as_ref().is_some_and(|state| state.last_uidvalidity == 0);
        if is_stuck && self.part == Part::Both && self.unlike_from.is_some() && !self.gave_up {
            // It could not go on, and has not all that it is to have: what came here waits for the next run, too.
            self.give_up();
            self.disturbed = true;
        }
        self.unlike_from = None;
        let mut state = items::State {
            mailbox_guid: self.ours.mailbox_guid,
            last_uidvalidity: self.ours.uid_validity,
            last_common_uid: self.ours.uid_next.saturating_sub(1),
            last_common_modseq: self.ours.highest_modseq,
            last_messages_count: Some(self.ours.messages_count),
            ..items::State::default()
        };
        if self.gave_up {
            // As a Dovecot says it that cannot go on from what it knows: nothing is agreed.
            return Ok(items::State {
                last_uidvalidity: 0,
                last_common_uid: 0,
                last_common_modseq: 0,
                changes_during_sync: true,
                ..state
            });
        }
        let Some(plan) = &mut self.plan else {
            self.left = Some(self.status.clone());
            return Ok(state);
        };
        let uid_next_max = plan.uid_next_min.max(self.ours.uid_next);
        let (expunges, last_common) = (std::mem::take(&mut plan.expunges), plan.last_common);
        self.to_come = self.copies.iter().map(|(_, save, _)| save.uid).collect();
        let goal = self.goal();
        let behind = goal.uid_next_min > self.status.uid_next || goal.modseq_min > self.status.highest_modseq;
        if self.unsaved.0 > 0 || !self.to_come.is_empty() || !self.waiting.is_empty() || behind {
            self.commit()?;
        }
        self.copy()?;
        if !expunges.is_empty() {
            self.report.expunged += expunges.len() as u64;
            self.mailbox.apply(&expunges).map_err(at(self.name.clone()))?;
            self.commit()?;
        }
        let status = self.mailbox.status().map_err(at(self.name.clone()))?;
        let untroubled = self.not_kept.is_empty() && !self.disturbed;
        state.last_messages_count = Some(status.messages);
        // Beyond that, something came in meanwhile.
        self.left = Some(status).filter(|status| status.uid_next.get() <= uid_next_max);
        if untroubled {
            state.last_common_uid = last_common;
            state.last_common_modseq = self.theirs.highest_modseq;
        } else {
            state.last_common_uid = last_common.min(state.last_common_uid);
            state.changes_during_sync = true;
            self.disturbed = true;
        }
        Ok(state)
    }

    /// Saves what has its body in this mailbox.
    fn copy(&mut self) -> Result<(), SessionError> {
        let mut copies = std::mem::take(&mut self.copies);
        if copies.is_empty() {
            return Ok(());
        }
        copies.sort_by_key(|(_, save, _)| save.uid);
        for (guid, save, from) in copies {
            let below = |action: &MessageAction| matches!(action, MessageAction::Renumber { to, .. } if *to < save.uid);
            if self.waiting.iter().any(below) {
                self.commit()?;
            }
            self.to_come.remove(&save.uid);
            let context = || format!("{}: UID {}", self.name, save.uid);
            match self.mailbox.body(from, Some(&guid)).map_err(at(context()))? {
                Some(body) => {
                    let message = NewMessage {
                        received: body.received,
                        saved: body.saved,
                        size: body.size,
                        ..new_message(&save)
                    };
                    self.mailbox.save(message, body).map_err(at(context()))?;
                }
                None => self.disturbed = true,
            }
        }
        self.commit()
    }

    /// Keeps what has come whole.
    pub fn make_safe(&mut self) -> Result<(), SessionError> {
        self.mailbox.abandon_save();
        if self.unsaved.0 > 0 && !self.gave_up && self.is_ascending() { self.commit() } else { Ok(()) }
    }
}

/// By what a body is told from others: its GUID, or its UID if it was asked for by that. No GUID has a zero byte.
pub(super) fn key(guid: Option<&[u8]>, uid: Option<u32>) -> Vec<u8> {
    match guid {
        Some(guid) if !guid.is_empty() => guid.to_vec(),
        _ => format!("\0{}", uid.unwrap_or(0)).into_bytes(),
    }
}

fn new_message(save: &Save) -> NewMessage {
    NewMessage {
        uid: save.uid,
        guid: save.guid.clone(),
        flags: save.flags.clone(),
        modseq: save.modseq,
        received: None,
        saved: None,
        pop3_uidl: None,
        pop3_order: None,
        size: None,
    }
}
