//! Messages that the base knows and either end changed; without a base, expunges that a log proves.

use std::collections::BTreeSet;

use dsync_model::{FlagDelta, MessageAction, ModSeq};

use super::{Desync, Fetch, Merge};
use crate::{Both, Direction, ENDS, flags};

impl Merge<'_> {
    /// Messages of the base that either end changed.
    pub(super) fn known(&mut self) -> Result<(), Desync> {
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
}
