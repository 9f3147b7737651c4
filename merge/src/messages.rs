//! Merges the messages of one mailbox: two change lists and the base in, one end's plan out.

use std::collections::{BTreeMap, BTreeSet};

use dsync_model::{
    FlagDelta, FlagSet, MailboxBase, MailboxStatus, MessageAction, MessageChange, MessageGuid, ModSeq, Uid,
    UidSet, UidValidity,
};

use crate::{Both, Direction, ENDS, End, flags, unused_yields};

/// One end's side of a mailbox.
#[derive(Clone, Copy, Debug)]
pub struct MailboxView<'a> {
    pub status: &'a MailboxStatus,
    /// Ascending by UID. Since the base if one is given to the merge, else every message as `Save`, and `Expunge` where
    /// a log proves it.
    pub changes: &'a [MessageChange],
    /// Messages here that are not to be saved at the other end.
    pub filtered: &'a UidSet,
}

/// What one end does with one mailbox.
#[derive(Clone, PartialEq, Debug)]
pub struct MessagePlan {
    /// Renumbers and flags, in the order in which they are to be done, before the first save.
    pub actions: Vec<MessageAction>,
    /// Bodies to ask of the peer, ascending by the UID they get here.
    pub fetches: Vec<Fetch>,
    /// To be done when all saves of both ends are durable.
    pub expunges: Vec<MessageAction>,
    /// UIDNEXT to have here in the end, at least.
    pub uid_next_min: Uid,
    pub modseq_min: ModSeq,
    /// UIDVALIDITY to take over, if it is another.
    pub uid_validity: Option<UidValidity>,
    /// What both ends may remember once both have done their part.
    pub agreed: MailboxBase,
    /// Messages that must be equal at both ends then: those of `agreed`, less what a one-way sync left different.
    pub compared: UidSet,
    /// Flag changes of messages that the other end removed: if it moved them, they belong to the message's new place.
    pub carried: Vec<(MessageGuid, FlagDelta)>,
    /// Where messages that were new at either end are in the end, by GUID.
    pub arrived: BTreeMap<MessageGuid, Uid>,
    /// Messages that a mirror removes because its source never had them.
    pub foreign: u64,
}

/// A body to ask for, and how it is to be saved.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fetch {
    /// UID at the peer when it made its list.
    pub from: Uid,
    /// `None`: known only by its UID in the base.
    pub guid: Option<MessageGuid>,
    pub uid: Uid,
    pub flags: FlagSet,
    pub modseq: ModSeq,
}

/// The lists contradict the base: start over without it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Desync {
    #[error("UIDVALIDITY is not that of the base")]
    UidValidity,
    #[error("UID {0} is not as the base has it")]
    Uid(Uid),
    #[error("UIDs do not ascend at {0}")]
    Order(Uid),
    #[error("there is no UID left above {0}")]
    Exhausted(Uid),
}

#[derive(Clone, Copy)]
struct Save<'a> {
    uid: Uid,
    guid: &'a MessageGuid,
    modseq: ModSeq,
    flags: &'a FlagDelta,
}

#[derive(Default)]
struct Listed<'a> {
    saves: Vec<Save<'a>>,
    expunged: BTreeMap<Uid, Option<&'a MessageGuid>>,
    flagged: BTreeMap<Uid, (&'a MessageGuid, &'a FlagDelta, ModSeq)>,
}

/// One end's half, while it grows.
#[derive(Default)]
struct Half {
    renumbers: Vec<MessageAction>,
    flags: Vec<MessageAction>,
    fetches: Vec<Fetch>,
    expunges: Vec<MessageAction>,
}

struct Merge<'a> {
    direction: Direction,
    uid_next: Both<Uid>,
    base: Option<&'a MailboxBase>,
    lists: Both<Listed<'a>>,
    filtered: Both<&'a UidSet>,
    halves: Both<Half>,
    agreed: MailboxBase,
    different: UidSet,
    carried: Vec<(MessageGuid, FlagDelta)>,
    arrived: BTreeMap<MessageGuid, Uid>,
    foreign: u64,
    fresh: Uid,
    top: Uid,
}

/// Merges one mailbox and gives the half of `end`. Both ends pass the same views in the same order.
///
/// With a base, lists name what changed since then, and UIDs of the base are the same message at both ends; without one,
/// messages are matched by UID and GUID, and a hole is not an expunge unless a list says so.
pub fn messages(
    views: Both<MailboxView<'_>>,
    base: Option<&MailboxBase>,
    direction: Direction,
    end: End,
) -> Result<MessagePlan, Desync> {
    let uid_validity = uid_validity(&views, direction);
    if let Some(base) = base
        && ENDS.iter().any(|end| views[*end].status.uid_validity != base.uid_validity)
    {
        return Err(Desync::UidValidity);
    }
    let uid_next = Both(views.0.map(|view| view.status.uid_next));
    let next_max = uid_next.0[0].max(uid_next.0[1]);
    let agreed = match base {
        Some(base) => MailboxBase { digest: None, apart: BTreeSet::new(), ..base.clone() },
        None => MailboxBase::new(uid_validity, next_max),
    };
    let mut merge = Merge {
        direction,
        uid_next,
        base,
        lists: Both([listed(views.0[0].changes)?, listed(views.0[1].changes)?]),
        filtered: Both(views.0.map(|view| view.filtered)),
        halves: Both::default(),
        agreed,
        different: UidSet::new(),
        carried: Vec::new(),
        arrived: BTreeMap::new(),
        foreign: 0,
        fresh: next_max,
        top: next_max,
    };
    merge.known()?;
    merge.unknown()?;
    Ok(merge.plan(&views, uid_validity, end))
}

/// Rule **uidvalidity**: the source's; two-way that of the end that ever held mail, that has more messages, else the larger.
fn uid_validity(views: &Both<MailboxView<'_>>, direction: Direction) -> UidValidity {
    let key = |end: End| (views[end].status.messages, views[end].status.uid_validity);
    let keeper = match (direction.source(), unused_yields(Both(views.0.map(|view| view.status)))) {
        (Some(keeper), _) | (None, Some(keeper)) => keeper,
        _ if key(End::Initiator) >= key(End::Responder) => End::Initiator,
        _ => End::Responder,
    };
    views[keeper].status.uid_validity
}

fn listed(changes: &[MessageChange]) -> Result<Listed<'_>, Desync> {
    let mut list = Listed::default();
    let mut last = None;
    for change in changes {
        let uid = change.uid();
        if last >= Some(uid) {
            return Err(Desync::Order(uid));
        }
        last = Some(uid);
        match change {
            MessageChange::Save { guid, modseq, flags, .. } => {
                list.saves.push(Save { uid, guid, modseq: *modseq, flags });
            }
            MessageChange::Expunge { guid, .. } => {
                list.expunged.insert(uid, guid.as_ref());
            }
            MessageChange::Flags { guid, modseq, flags, .. } => {
                list.flagged.insert(uid, (guid, flags, *modseq));
            }
        }
    }
    Ok(list)
}

impl<'a> Merge<'a> {
    /// Messages of the base that either end changed.
    fn known(&mut self) -> Result<(), Desync> {
        let Some(base) = self.base else { return self.proven() };
        let mut uids = BTreeSet::new();
        for end in ENDS {
            uids.extend(self.lists[end].expunged.keys().chain(self.lists[end].flagged.keys()).copied());
            if let Some(save) = self.lists[end].saves.iter().find(|save| base.uids.contains(save.uid.get())) {
                return Err(Desync::Uid(save.uid));
            }
        }
        for uid in uids {
            if !base.uids.contains(uid.get()) {
                return Err(Desync::Uid(uid));
            }
            let standing = FlagDelta::standing(base.flags_of(uid));
            let gone = Both(ENDS.map(|end| self.lists[end].expunged.contains_key(&uid)));
            let found = Both(ENDS.map(|end| self.lists[end].flagged.get(&uid).copied()));
            if let [Some((a, ..)), Some((b, ..))] = found.0
                && a.bits() != b.bits()
            {
                return Err(Desync::Uid(uid));
            }
            let deltas =
                Both(found.0.map(|f| f.map_or_else(|| standing.clone(), |(_, delta, _)| delta.clone())));
            let modseqs = Both(found.0.map(|f| f.map_or(ModSeq::NONE, |(.., modseq)| modseq)));
            match self.direction {
                Direction::TwoWay if gone.0[0] || gone.0[1] => {
                    for end in ENDS.into_iter().filter(|end| !gone[*end]) {
                        self.halves[end].expunges.push(MessageAction::Expunge { uid, guid: None });
                        if let Some((guid, delta, _)) = found[end] {
                            self.carried.push((guid.clone(), delta.clone()));
                        }
                    }
                    self.agreed.remove(uid);
                }
                Direction::TwoWay => {
                    let merged = flags::merge((&deltas.0[0], modseqs.0[0]), (&deltas.0[1], modseqs.0[1]));
                    ENDS.into_iter().for_each(|end| {
                        self.set_flags(end, uid, &deltas[end].current, &merged, modseqs[end.other()])
                    });
                    self.agreed.insert(uid, &merged);
                }
                Direction::OneWay { into } | Direction::Mirror { into } if gone[into.other()] => {
                    if !gone[into] {
                        self.halves[into].expunges.push(MessageAction::Expunge { uid, guid: None });
                    }
                    self.agreed.remove(uid);
                }
                Direction::OneWay { into } => {
                    // What the destination did stays a difference from the base, so that a later two-way sync finds it.
                    let source = &deltas[into.other()];
                    if gone[into] {
                        self.different.insert(uid.get());
                    } else {
                        let merged = deltas[into].current.union(&source.added).minus(&source.removed);
                        self.set_flags(into, uid, &deltas[into].current, &merged, modseqs[into.other()]);
                        if merged != source.current {
                            self.different.insert(uid.get());
                        }
                    }
                    self.agreed.insert(uid, &source.current);
                }
                Direction::Mirror { into } => {
                    let source = &deltas[into.other()].current;
                    if gone[into] && self.filtered[into.other()].contains(uid.get()) {
                        self.agreed.remove(uid);
                        self.agreed.out_of_scope.insert(uid.get());
                        continue;
                    }
                    if gone[into] {
                        let guid = found[into.other()].map(|(guid, ..)| guid.clone());
                        let modseq = modseqs[into.other()];
                        self.halves[into].fetches.push(Fetch {
                            from: uid,
                            guid,
                            uid,
                            flags: source.clone(),
                            modseq,
                        });
                    } else {
                        self.set_flags(into, uid, &deltas[into].current, source, modseqs[into.other()]);
                    }
                    self.agreed.insert(uid, source);
                }
            }
        }
        Ok(())
    }

    /// Without a base: expunges that a log proves, by UID and GUID.
    fn proven(&mut self) -> Result<(), Desync> {
        for end in ENDS {
            if let Some(uid) = self.lists[end].flagged.keys().next() {
                return Err(Desync::Uid(*uid));
            }
            if self.direction.source().is_some_and(|source| source != end) {
                continue;
            }
            let expunged = std::mem::take(&mut self.lists[end].expunged);
            let other = end.other();
            let half = &mut self.halves[other];
            self.lists[other].saves.retain(|save| {
                let proven = expunged
                    .get(&save.uid)
                    .is_some_and(|guid| guid.is_some_and(|guid| guid.bits() == save.guid.bits()));
                if proven {
                    half.expunges
                        .push(MessageAction::Expunge { uid: save.uid, guid: Some(save.guid.clone()) });
                }
                !proven
            });
        }
        Ok(())
    }

    /// Messages that the base does not know.
    fn unknown(&mut self) -> Result<(), Desync> {
        let [mut ours, mut theirs] = [Vec::new(), Vec::new()];
        let lists = [std::mem::take(&mut self.lists.0[0].saves), std::mem::take(&mut self.lists.0[1].saves)];
        let lists = self.apart(lists);
        let lists = self.leave_filtered(lists);
        let mut right = lists[1].iter().copied().peekable();
        for left in &lists[0] {
            while let Some(passed) = right.next_if(|save| save.uid < left.uid) {
                theirs.push(passed);
            }
            match right.next_if(|save| save.uid == left.uid && save.guid.bits() == left.guid.bits()) {
                Some(same) => self.same(left.uid, left, &same),
                None => ours.push(*left),
            }
        }
        theirs.extend(right);
        match self.direction {
            Direction::TwoWay => self.two_way(&ours, &theirs),
            Direction::OneWay { into } => {
                let (source, own) = if into == End::Responder { (ours, theirs) } else { (theirs, ours) };
                self.one_way(into, &source, &own)
            }
            Direction::Mirror { into } => {
                let (source, own) = if into == End::Responder { (ours, theirs) } else { (theirs, ours) };
                self.mirror(into, &source, &own)
            }
        }
    }

    /// Rule **apart**: of messages that both ends held under different UIDs, those that one end has no more. What both still have is matched by
    /// its GUID, as what is new is.
    fn apart(&mut self, mut lists: [Vec<Save<'a>>; 2]) -> [Vec<Save<'a>>; 2] {
        let Some(base) = self.base.filter(|base| !base.apart.is_empty()) else { return lists };
        let guids = lists.each_ref().map(|list| list.iter().map(|save| save.guid.bits()).collect());
        let guids: Both<BTreeSet<[u8; 16]>> = Both(guids);
        let mut settled: Both<BTreeSet<Uid>> = Both::default();
        for uids in &base.apart {
            let at =
                |end: End| lists[end as usize].binary_search_by_key(&uids[end as usize], |save| save.uid);
            let holder = match (at(End::Initiator), at(End::Responder)) {
                (Ok(_), Err(_)) => End::Initiator,
                (Err(_), Ok(_)) => End::Responder,
                (Ok(_), Ok(_)) => {
                    if matches!(self.direction, Direction::OneWay { .. }) {
                        self.agreed.apart.insert(*uids);
                    }
                    continue;
                }
                (Err(_), Err(_)) => continue,
            };
            let Ok(row) = at(holder) else { continue };
            let save = lists[holder as usize][row];
            let other = holder.other();
            let elsewhere = uids[other as usize].get();
            let hidden = base.uids.contains(elsewhere) || base.out_of_scope.contains(elsewhere);
            // It may have got another UID there since.
            if hidden || guids[other].contains(&save.guid.bits()) {
                continue;
            }
            match self.direction {
                Direction::OneWay { into } if into != holder => _ = self.agreed.apart.insert(*uids),
                Direction::Mirror { into } if into != holder => continue,
                _ => {
                    let guid = Some(save.guid.clone());
                    self.halves[holder].expunges.push(MessageAction::Expunge { uid: save.uid, guid });
                }
            }
            settled[holder].insert(save.uid);
        }
        for end in ENDS {
            lists[end as usize].retain(|save| !settled[end].contains(&save.uid));
        }
        lists
    }

    /// Rule **filter**: a message that does not pass stays where it is, as if it were not there, unless the other end has it too.
    fn leave_filtered(&mut self, mut lists: [Vec<Save<'a>>; 2]) -> [Vec<Save<'a>>; 2] {
        if self.filtered.0.iter().all(|uids| uids.is_empty()) {
            return lists;
        }
        for end in ENDS.into_iter().filter(|end| self.direction.source().is_none_or(|source| source == *end))
        {
            let (own, other) = (end as usize, end.other() as usize);
            let mut twins: BTreeMap<[u8; 16], usize> = BTreeMap::new();
            lists[other].iter().for_each(|save| *twins.entry(save.guid.bits()).or_default() += 1);
            let filtered = self.filtered[end];
            let out = &mut self.agreed.out_of_scope;
            lists[own].retain(|save| {
                let twin = twins.get_mut(&save.guid.bits()).filter(|count| **count > 0);
                let has_twin = twin.map(|count| *count -= 1).is_some();
                let stays = has_twin || !filtered.contains(save.uid.get());
                if !stays {
                    out.insert(save.uid.get());
                }
                stays
            });
        }
        lists
    }

    /// One message that both ends hold, new to the base, and have (or will have) under `uid`.
    fn same(&mut self, uid: Uid, left: &Save<'_>, right: &Save<'_>) {
        let saves = Both([left, right]);
        match self.direction {
            Direction::TwoWay => {
                let merged = flags::merge((left.flags, left.modseq), (right.flags, right.modseq));
                ENDS.into_iter().for_each(|end| {
                    self.set_flags(end, uid, &saves[end].flags.current, &merged, saves[end.other()].modseq)
                });
                self.agreed.insert(uid, &merged);
            }
            Direction::OneWay { into } => {
                let (source, own) = (&saves[into.other()].flags.current, &saves[into].flags.current);
                let merged = own.union(source);
                self.set_flags(into, uid, own, &merged, saves[into.other()].modseq);
                self.agreed.insert(uid, source);
                if merged != *source {
                    self.different.insert(uid.get());
                }
            }
            Direction::Mirror { into } => {
                let source = &saves[into.other()].flags.current;
                self.set_flags(into, uid, &saves[into].flags.current, source, saves[into.other()].modseq);
                self.agreed.insert(uid, source);
            }
        }
    }

    /// Rule **new-two-way** (semantics reference 5.4): one sequence of both lists, the smaller (GUID, UID) of the two heads first;
    /// a UID is kept if the other end has not reached it; the others get new ones in that sequence.
    fn two_way(&mut self, ours: &[Save<'_>], theirs: &[Save<'_>]) -> Result<(), Desync> {
        let sequence = sequence(ours, theirs);
        let mut partners: BTreeMap<&MessageGuid, Both<Vec<usize>>> = BTreeMap::new();
        for (i, (end, save)) in sequence.iter().enumerate() {
            partners.entry(save.guid).or_default()[*end].push(i);
        }
        let mut partner: Vec<Option<usize>> = vec![None; sequence.len()];
        for both in partners.values() {
            for (a, b) in both.0[0].iter().zip(&both.0[1]) {
                (partner[*a], partner[*b]) = (Some(*b), Some(*a));
            }
        }
        let free = |i: usize, uid_next: &Both<Uid>| {
            let (end, save): &(End, Save<'_>) = &sequence[i];
            (save.uid >= uid_next[end.other()]).then_some(save.uid)
        };
        for (i, (end, save)) in sequence.iter().enumerate() {
            let linked = partner[i];
            if linked.is_some_and(|linked| linked < i) {
                continue;
            }
            let kept =
                free(i, &self.uid_next).or_else(|| linked.and_then(|linked| free(linked, &self.uid_next)));
            let uid = match kept {
                Some(uid) => uid,
                None => self.take_fresh()?,
            };
            self.renumber(*end, save.uid, uid);
            self.arrived.insert(save.guid.clone(), uid);
            match linked.map(|linked| &sequence[linked]) {
                Some((other, twin)) => {
                    self.renumber(*other, twin.uid, uid);
                    let (left, right) = if *end == End::Initiator { (save, twin) } else { (twin, save) };
                    self.same(uid, left, right);
                }
                None => {
                    self.fetch(end.other(), save, uid);
                    self.agreed.insert(uid, &save.flags.current);
                }
            }
        }
        Ok(())
    }

    /// Rule **new-one-way**: a message that the destination has under another UID is that message. A UID that names another message at the source
    /// is given up there, as the manual page has it: clients of the source, when they come to the destination, must not take one for the other.
    fn one_way(&mut self, into: End, source: &[Save<'_>], own: &[Save<'_>]) -> Result<(), Desync> {
        let mut by_guid: BTreeMap<&MessageGuid, Vec<Save<'_>>> = BTreeMap::new();
        own.iter().rev().for_each(|save| by_guid.entry(save.guid).or_default().push(*save));
        let mut linked = Vec::new();
        let mut wanted = Vec::new();
        for save in source {
            match by_guid.get_mut(save.guid).and_then(Vec::pop) {
                Some(twin) => linked.push((twin, save)),
                None => wanted.push(*save),
            }
        }
        let taken: BTreeSet<Uid> = own.iter().map(|save| save.uid).collect();
        let claimed: BTreeSet<Uid> = source.iter().map(|save| save.uid).collect();
        let displaced: Vec<Save<'_>> =
            own.iter().filter(|save| claimed.contains(&save.uid)).copied().collect();
        let sequence = match into {
            End::Responder => sequence(&wanted, &displaced),
            End::Initiator => sequence(&displaced, &wanted),
        };
        let mut moved: BTreeMap<Uid, Uid> = BTreeMap::new();
        for (end, save) in sequence {
            if end == into {
                let uid = self.take_fresh()?;
                self.renumber(into, save.uid, uid);
                moved.insert(save.uid, uid);
            } else if !taken.contains(&save.uid) && save.uid >= self.uid_next[into] {
                self.arrived.insert(save.guid.clone(), save.uid);
                self.fetch(into, &save, save.uid);
                self.agreed.insert(save.uid, &save.flags.current);
            } else {
                let uid = self.take_fresh()?;
                self.fetch(into, &save, uid);
            }
        }
        for (twin, save) in linked {
            let uid = moved.get(&twin.uid).copied().unwrap_or(twin.uid);
            let merged = twin.flags.current.union(&save.flags.current);
            self.set_flags(into, uid, &twin.flags.current, &merged, ModSeq::NONE);
        }
        Ok(())
    }

    /// Rule **mirror**: the source's messages under the source's UIDs, and nothing else.
    fn mirror(&mut self, into: End, source: &[Save<'_>], own: &[Save<'_>]) -> Result<(), Desync> {
        let wanted: BTreeSet<Uid> = source.iter().map(|save| save.uid).collect();
        let mut by_guid: BTreeMap<&MessageGuid, Vec<Save<'_>>> = BTreeMap::new();
        own.iter().rev().for_each(|save| by_guid.entry(save.guid).or_default().push(*save));
        let mut place: BTreeMap<Uid, Uid> = BTreeMap::new();
        for save in own.iter().filter(|save| wanted.contains(&save.uid)) {
            // Out of the way first; it may yet be used, or goes when the right one is on the disk.
            let uid = self.take_fresh()?;
            self.renumber(into, save.uid, uid);
            place.insert(save.uid, uid);
        }
        let mut used = BTreeSet::new();
        for save in source {
            self.arrived.insert(save.guid.clone(), save.uid);
            match by_guid.get_mut(save.guid).and_then(Vec::pop) {
                Some(twin) => {
                    used.insert(twin.uid);
                    self.renumber(into, place.get(&twin.uid).copied().unwrap_or(twin.uid), save.uid);
                    self.set_flags(into, save.uid, &twin.flags.current, &save.flags.current, save.modseq);
                }
                None => self.fetch(into, save, save.uid),
            }
            self.agreed.insert(save.uid, &save.flags.current);
        }
        for save in own.iter().filter(|save| !used.contains(&save.uid)) {
            let uid = place.get(&save.uid).copied().unwrap_or(save.uid);
            self.halves[into].expunges.push(MessageAction::Expunge { uid, guid: Some(save.guid.clone()) });
            self.foreign += 1;
        }
        Ok(())
    }

    fn take_fresh(&mut self) -> Result<Uid, Desync> {
        let uid = self.fresh;
        self.fresh = uid.next().ok_or(Desync::Exhausted(uid))?;
        self.top = self.top.max(self.fresh);
        Ok(uid)
    }

    fn renumber(&mut self, end: End, from: Uid, to: Uid) {
        if from != to {
            self.halves[end].renumbers.push(MessageAction::Renumber { from, to });
        }
    }

    fn fetch(&mut self, end: End, save: &Save<'_>, uid: Uid) {
        let (guid, flags) = (Some(save.guid.clone()), save.flags.current.clone());
        self.halves[end].fetches.push(Fetch { from: save.uid, guid, uid, flags, modseq: save.modseq });
    }

    /// `modseq` is what the other end gave to these flags: the message gets it too, so that both ends tell a client the same.
    fn set_flags(&mut self, end: End, uid: Uid, now: &FlagSet, wanted: &FlagSet, modseq: ModSeq) {
        if now != wanted && self.direction.source() != Some(end) {
            let (add, remove) = (wanted.minus(now), now.minus(wanted));
            self.halves[end].flags.push(MessageAction::Flags { uid, add, remove, modseq_min: modseq });
        }
    }

    fn plan(self, views: &Both<MailboxView<'_>>, uid_validity: UidValidity, end: End) -> MessagePlan {
        let Merge { direction, mut halves, mut agreed, different, carried, arrived, foreign, top, .. } = self;
        let status = views[end].status;
        agreed.uid_validity = uid_validity;
        agreed.uid_next = top.max(agreed.uid_next);
        agreed.tidy();
        let written = direction.source() != Some(end);
        let half = std::mem::take(&mut halves[end]);
        let mut actions = half.renumbers;
        actions.extend(half.flags);
        let mut fetches = half.fetches;
        fetches.sort_by_key(|fetch| fetch.uid);
        MessagePlan {
            actions,
            fetches,
            expunges: half.expunges,
            uid_next_min: if written { top } else { status.uid_next },
            modseq_min: if written { views[end.other()].status.highest_modseq } else { ModSeq::NONE },
            uid_validity: (written && status.uid_validity != uid_validity).then_some(uid_validity),
            compared: &agreed.uids - &different,
            agreed,
            carried,
            arrived,
            foreign,
        }
    }
}

/// Both lists in one: the smaller (GUID, UID) of the two heads first.
fn sequence<'a>(ours: &[Save<'a>], theirs: &[Save<'a>]) -> Vec<(End, Save<'a>)> {
    let mut sequence = Vec::with_capacity(ours.len() + theirs.len());
    let (mut ours, mut theirs) = (ours.iter().peekable(), theirs.iter().peekable());
    loop {
        let next = match (ours.peek(), theirs.peek()) {
            (Some(a), Some(b)) if (a.guid, a.uid) <= (b.guid, b.uid) => {
                ours.next().map(|s| (End::Initiator, *s))
            }
            (_, Some(_)) => theirs.next().map(|s| (End::Responder, *s)),
            (_, None) => ours.next().map(|s| (End::Initiator, *s)),
        };
        match next {
            Some(entry) => sequence.push(entry),
            None => return sequence,
        }
    }
}
