//! What is to be done in one mailbox, once both lists are here.

use std::collections::{BTreeMap, BTreeSet};

use dsync_merge::dovecot::{self, From, Save};
use dsync_merge::{Both, Desync, Direction, End, MailboxView};
use dsync_model::{
    MailboxStatus, MessageAction, MessageChange, MessageGuid, ModSeq, Uid, UidSet, UidValidity,
};
use dsync_proto::dovecot::items;
use dsync_storage::StorageError;

use super::hashing::{Hashing, guid_of};
use super::receiving::key;
use super::{Exchange, Part, Plan, at};
use crate::{Progress, SessionError};

impl Exchange {
    /// Both lists are here: what is to be done?
    pub(super) fn decide(&mut self, progress: &mut Progress) -> Result<(), SessionError> {
        let gone = self.follow_gone();
        let mut apart = Vec::new();
        // All at once, as what is done first may give them other UIDs.
        self.hash_own(self.own.len())?;
        let modseq = ModSeq::new(self.theirs.highest_modseq)
            .ok_or_else(|| SessionError::Peer(format!("has a modseq of 2^63 or more in {}", self.name)))?;
        let mirror = matches!(self.terms.direction, Direction::Mirror { .. });
        let (plan, actions) = match self.part {
            // One way without overwriting, the receiver's own changes count as they do in both directions.
            Part::Both | Part::Receiver if !mirror => {
                let mut plan = self.decide_alike(modseq)?;
                let common = plan.common.min(self.common_there(modseq)?.unwrap_or(plan.common));
                if self.keep_gone(common) {
                    plan = self.decide_alike(modseq)?;
                }
                apart = self.take_apart(&plan);
                if !apart.is_empty() {
                    plan = self.decide_alike(modseq)?;
                }
                plan.expunges.extend(gone);
                let decided = Plan {
                    saves: plan.saves,
                    expunges: plan.expunges,
                    common: plan.common,
                    last_common: plan.last_common,
                    uid_next_min: plan.last_common.saturating_add(1).max(self.theirs.uid_next),
                    modseq_min: self.theirs.highest_modseq,
                };
                (decided, plan.actions)
            }
            Part::Receiver => self.decide_alone(modseq)?,
            Part::Both | Part::Sender => {
                return Err(SessionError::Peer("lists messages where it only receives".into()));
            }
        };
        self.act(plan, actions, progress)?;
        self.move_apart(apart)
    }

    /// As the peer decides, which is a Dovecot.
    fn decide_alike(&self, modseq: ModSeq) -> Result<dovecot::Plan, SessionError> {
        let terms = self.alike(modseq);
        let told = self.hashing.as_ref().map(|_| self.own_as_told());
        let own = told.as_ref().unwrap_or(&self.own);
        let mut plan = dovecot::messages(own, &self.peer, &terms).map_err(|error| self.wrong(error))?;
        if told.is_some() {
            plan.expunges = plan.expunges.into_iter().map(|action| self.named(action)).collect();
        }
        Ok(plan)
    }

    /// Up to which UID the peer finds the lists to agree, where hashes are compared.
    fn common_there(&self, modseq: ModSeq) -> Result<Option<u32>, SessionError> {
        let Some(hashing) = &self.hashing else { return Ok(None) };
        let (terms, told) = (self.alike(modseq), self.own_as_told());
        let common = dovecot::common_there(&told, &self.peer, &terms, &hashing.hashes);
        common.map(Some).map_err(|error| self.wrong(error))
    }

    fn alike(&self, modseq: ModSeq) -> dovecot::Terms<'_> {
        let next = |line: &items::Mailbox| Uid::new(line.uid_next).unwrap_or(Uid::MIN);
        dovecot::Terms {
            end: self.terms.end,
            uid_next: next(&self.ours),
            peer_uid_next: next(&self.theirs),
            peer_modseq: modseq,
            last_common: self.terms.known.map(|known| known.uid),
            kept_back: Some(&self.kept_back),
            hashes: self.hashing.as_ref().map(|hashing| &hashing.hashes),
        }
    }

    fn wrong(&self, error: Desync) -> SessionError {
        SessionError::Peer(format!("lists {} wrongly: {error}", self.name))
    }

    /// A mirror, which we are: our own rules, as both ends of our own would have them. Dovecot makes a mailbox anew where we repair it.
    fn decide_alone(&mut self, modseq: ModSeq) -> Result<(Plan, Vec<MessageAction>), SessionError> {
        if let Some(known) = self.terms.known {
            complete(&mut self.peer, &self.own, known.uid);
        }
        let mut mine = self.status.clone();
        mine.uid_next = Uid::new(self.ours.uid_next).unwrap_or(Uid::MIN);
        let theirs = MailboxStatus {
            guid: self.theirs.mailbox_guid,
            uid_validity: UidValidity::new(self.theirs.uid_validity).unwrap_or(mine.uid_validity),
            uid_next: Uid::new(self.theirs.uid_next).unwrap_or(Uid::MIN),
            messages: self.theirs.messages_count,
            highest_modseq: modseq,
            digest: dsync_model::Digest::default(),
        };
        let by_hash = self.hashing.as_ref().map(|Hashing { hashes, .. }| {
            let own = self.by_hash(&self.own, [&hashes.ours, &hashes.ours]);
            (own, self.by_hash(&self.peer, [&hashes.theirs, &hashes.ours]))
        });
        let (own, peer) = by_hash.as_ref().map_or((&self.own, &self.peer), |(own, peer)| (own, peer));
        let views = [
            MailboxView { status: &mine, changes: own, filtered: &UidSet::new() },
            MailboxView { status: &theirs, changes: peer, filtered: &self.kept_back },
        ];
        let views = if self.terms.end == End::Initiator { views } else { [views[1], views[0]] };
        let plan = dsync_merge::messages(Both(views), None, self.terms.direction, self.terms.end)
            .map_err(|error| self.wrong(error))?;
        let saves = plan.fetches.iter().filter_map(|fetch| {
            let (uid, mut guid) = (fetch.uid, fetch.guid.clone()?);
            if by_hash.is_some() {
                guid = guid_of(&self.peer, fetch.from)?;
            }
            let from = From::Peer(fetch.from);
            Some(Save { uid, guid, flags: fetch.flags.clone(), modseq: fetch.modseq, from })
        });
        let (mut expunges, mut actions) = (plan.expunges, plan.actions);
        if by_hash.is_some() {
            expunges = expunges.into_iter().map(|action| self.named(action)).collect();
            actions = actions.into_iter().map(|action| self.named(action)).collect();
        }
        let decided = Plan {
            saves: saves.collect(),
            expunges,
            common: 0,
            last_common: self.theirs.uid_next.saturating_sub(1),
            uid_next_min: plan.uid_next_min.get(),
            modseq_min: plan.modseq_min.get().max(self.theirs.highest_modseq),
        };
        Ok((decided, actions))
    }

    /// Does at once what needs no body, and asks for the bodies.
    fn act(
        &mut self,
        plan: Plan,
        actions: Vec<MessageAction>,
        progress: &mut Progress,
    ) -> Result<(), SessionError> {
        for action in &actions {
            match action {
                MessageAction::Flags { .. } => self.report.flags += 1,
                MessageAction::Renumber { from, to } => {
                    self.report.renumbered += 1;
                    self.moved.insert(*from, *to);
                }
                MessageAction::Expunge { .. } => {}
            }
        }
        for save in &plan.saves {
            match save.from {
                From::Here(uid) => self.copies.push((save.guid.clone(), save.clone(), uid)),
                From::Peer(uid) => {
                    let guid = self.spelled.get(&uid).cloned();
                    let guid = guid.unwrap_or_else(|| save.guid.as_str().as_bytes().to_vec());
                    // In an mbox, messages without the usual headers share one GUID, whatever they hold: each is asked for by its UID.
                    let by_guid = self.theirs.have_save_guids && self.hashing.is_none();
                    let guid = by_guid.then_some(guid);
                    let request = items::Request { guid, uid: Some(uid.get()) };
                    let group = self.wanted.entry(key(request.guid.as_deref(), request.uid)).or_default();
                    if group.is_empty() {
                        progress.wanted += 1;
                        self.requests.push_back(request);
                    }
                    group.push(save.clone());
                }
            }
        }
        self.to_come = plan.saves.iter().map(|save| save.uid).collect();
        let mirrors = matches!(self.terms.direction, Direction::Mirror { .. });
        self.unlike_from = if mirrors { None } else { self.unlike_from(&plan) };
        self.plan = Some(plan);
        let renumbers = |action: &MessageAction| matches!(action, MessageAction::Renumber { .. });
        if actions.iter().any(renumbers) {
            if mirrors { self.make_room(actions)? } else { self.waiting = actions }
        } else if !actions.is_empty() || self.uid_validity.is_some() {
            self.mailbox.apply(&actions).map_err(at(self.name.clone()))?;
            self.commit()?;
        }
        Ok(())
    }
}

impl Exchange {
    /// Moves what lies where a mirror is to have other messages above all UIDs, at once. What is to get a UID of the source's waits for what comes below: should the
    /// session break off, a two-way one would take for expunged what is not here, and the source would lose it.
    fn make_room(&mut self, actions: Vec<MessageAction>) -> Result<(), SessionError> {
        let context = || self.name.clone();
        let status = self.mailbox.status().map_err(at(context()))?;
        let targets = actions.iter().filter_map(|action| match action {
            MessageAction::Renumber { to, .. } => Some(*to),
            MessageAction::Flags { .. } | MessageAction::Expunge { .. } => None,
        });
        let taken: BTreeSet<Uid> = self.to_come.iter().copied().chain(targets).collect();
        let planned = self.plan.as_ref().map_or(0, |plan| plan.uid_next_min);
        let mut free = Some(status.uid_next.max(Uid::new(planned).unwrap_or(Uid::MIN)));
        let (mut room, mut waiting) = (Vec::new(), Vec::new());
        for action in actions {
            match action {
                MessageAction::Renumber { to, .. } if to.get() >= self.theirs.uid_next => room.push(action),
                MessageAction::Renumber { from, to } if taken.contains(&from) => {
                    let exhausted = || StorageError::Impossible("no UIDs are left to make room".into());
                    let aside = free.ok_or_else(exhausted).map_err(at(context()))?;
                    room.push(MessageAction::Renumber { from, to: aside });
                    waiting.push(MessageAction::Renumber { from: aside, to });
                    free = aside.next();
                }
                action => waiting.push(action),
            }
        }
        self.mailbox.apply(&room).map_err(at(context()))?;
        let goal = self.goal();
        let not_kept = self.commit_to(goal)?;
        self.waiting = waiting.into_iter().filter_map(|action| action.redirected(&not_kept)).collect();
        self.not_kept.extend(not_kept.into_keys());
        Ok(())
    }

    /// The lowest UID, of those that a message has and those that it gets, at which the ends are unlike until both have done their part, or this one has got all.
    fn unlike_from(&self, plan: &Plan) -> Option<Uid> {
        fn new(list: &[MessageChange], common: u32) -> BTreeSet<(Uid, &MessageGuid)> {
            let saves = list.iter().filter_map(|change| match change {
                MessageChange::Save { uid, guid, .. } => Some((*uid, guid)),
                MessageChange::Flags { .. } | MessageChange::Expunge { .. } => None,
            });
            saves.filter(|(uid, _)| uid.get() > common).collect()
        }
        let (own, peer) = (new(&self.own, plan.common), new(&self.peer, plan.common));
        let comes_as_it_is = |uid: Uid| {
            let at = plan.saves.binary_search_by_key(&uid, |save| save.uid).ok();
            at.is_some_and(|at| plan.saves[at].from == From::Peer(uid))
        };
        // What is to have another UID gets a higher one.
        let ours = own.difference(&peer).next();
        let theirs = peer
            .difference(&own)
            .find(|(uid, _)| !comes_as_it_is(*uid) && !self.kept_back.contains(uid.get()));
        [ours, theirs].into_iter().flatten().map(|(uid, _)| *uid).min()
    }
}

/// Makes a complete list of one that tells only what changed: up to the last common UID the peer had what we have.
fn complete(peer: &mut Vec<MessageChange>, own: &[MessageChange], last: u32) {
    let mut all: BTreeMap<Uid, MessageChange> = own
        .iter()
        .filter(|change| change.uid().get() <= last && matches!(change, MessageChange::Save { .. }))
        .map(|change| (change.uid(), change.clone()))
        .collect();
    for change in std::mem::take(peer) {
        match change {
            MessageChange::Flags { uid, guid, modseq, flags } => {
                if all.contains_key(&uid) {
                    all.insert(uid, MessageChange::Save { uid, guid, modseq, flags, size: None });
                }
            }
            MessageChange::Expunge { uid, .. } => drop(all.insert(uid, change)),
            MessageChange::Save { uid, .. } => drop(all.insert(uid, change)),
        }
    }
    peer.extend(all.into_values());
}
