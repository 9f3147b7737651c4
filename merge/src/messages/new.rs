//! Messages that the base does not know: which are the same, which UIDs they get, and who fetches them.

use std::collections::{BTreeMap, BTreeSet};

use dsync_model::{MessageAction, MessageGuid, ModSeq, Uid};

use super::{Desync, Merge, Save};
use crate::{Both, Direction, ENDS, End, flags};

impl<'a> Merge<'a> {
    /// Messages that the base does not know.
    pub(super) fn unknown(&mut self) -> Result<(), Desync> {
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
