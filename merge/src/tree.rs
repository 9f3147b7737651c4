//! Merges the mailboxes of two accounts: two trees and the base in, one end's plan out.

mod beside;
mod changes;
mod held;
mod renames;

use std::collections::{BTreeMap, BTreeSet};

use dsync_model::{
    Base, BaseNode, MailboxGuid, MailboxName, MailboxStatus, MailboxTree, NameRules, TreeChange, TreeLog,
};

use crate::{Both, Direction, ENDS, End, later, unused_yields};
use held::NUMBERS_MAX;
pub use held::common_trees;
use renames::is_temporary;

/// What one end does with its mailboxes, and which ones both ends then synchronise.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct TreePlan {
    /// To be done before the messages, in this order.
    pub changes: Vec<TreeChange>,
    /// Mailboxes and directories to remove when all saves of both ends are durable.
    pub deletes: Vec<TreeChange>,
    /// Mailboxes that both ends have then, ascending by GUID.
    pub pairs: Vec<Pair>,
    /// Names that both ends may remember.
    pub agreed: BTreeMap<MailboxName, BaseNode>,
    /// Mailboxes of the base that stay in it as they are: out of scope, or left alone.
    pub kept: BTreeSet<MailboxGuid>,
    /// Renames that an end cannot do, as they lead into another of its namespaces: now, and what it was to be.
    pub refused: Vec<(MailboxName, MailboxName)>,
    /// Mailboxes that one end deleted, as its log tells, and that come back with what the other end may have got since.
    pub revived: Vec<MailboxName>,
}

/// One mailbox that both ends have once the tree is merged.
#[derive(Clone, PartialEq, Debug)]
pub struct Pair {
    pub guid: MailboxGuid,
    pub name: MailboxName,
    /// As listed; `None`: this end only just made it.
    pub statuses: Both<Option<MailboxStatus>>,
}

struct Mailbox {
    guid: MailboxGuid,
    at: Both<Option<(MailboxName, MailboxStatus)>>,
    /// What it is to be called at each end.
    names: Both<Option<MailboxName>>,
    /// The name that both ends remember: the one it would have at both, could both hold it.
    common: Option<MailboxName>,
    /// An end cannot give it its name: both leave it as it is.
    refused: Option<(End, MailboxName)>,
    fate: Fate,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    /// Both ends have it in the end.
    Keep,
    /// Stays at the end that has it: a one-way sync's difference. It gives way if the source needs its name.
    Leave,
    /// Not ours to touch.
    OutOfScope,
    /// Goes from the one end that has it.
    Delete,
}

struct Merge<'a> {
    trees: Both<&'a MailboxTree>,
    logs: Both<&'a TreeLog>,
    rules: Both<&'a NameRules>,
    base: Option<&'a Base>,
    direction: Direction,
    in_scope: &'a dyn Fn(&MailboxName) -> bool,
}

/// Merges two trees and gives the half of `end`. Both ends pass the same trees in the same order.
///
/// Mailboxes are matched by GUID, INBOX by its name, and those left over by name. `in_scope` is asked for each name
/// that a mailbox has at either end or in the base; one yes is enough. The logs tell what the base does not, the rules
/// which names each end can hold.
pub fn tree(
    trees: Both<&MailboxTree>,
    logs: Both<&TreeLog>,
    rules: Both<&NameRules>,
    base: Option<&Base>,
    direction: Direction,
    in_scope: &dyn Fn(&MailboxName) -> bool,
    end: End,
) -> TreePlan {
    let merge = Merge { trees, logs, rules, base, direction, in_scope };
    let mut mailboxes = merge.match_up();
    mailboxes.iter_mut().for_each(|mailbox| merge.decide(mailbox));
    merge.settle_names(&mut mailboxes);
    let mut plan = TreePlan::default();
    merge.mailbox_changes(&mailboxes, end, &mut plan);
    let held = merge.held(&mailboxes);
    merge.directories(end, &held, &mut plan);
    merge.subscriptions(end, &held, &mut plan);
    plan
}

impl Merge<'_> {
    fn match_up(&self) -> Vec<Mailbox> {
        let mut left: Both<BTreeMap<MailboxGuid, (MailboxName, MailboxStatus)>> =
            Both(self.trees.0.map(|tree| {
                let mailboxes = tree.iter().filter_map(|(name, node)| Some((name, node.mailbox.as_ref()?)));
                mailboxes.map(|(name, status)| (status.guid, (name.clone(), status.clone()))).collect()
            }));
        let mut mailboxes = Vec::new();
        let mut add = |at: Both<Option<(MailboxName, MailboxStatus)>>| {
            let guid = self.guid(&at);
            let (names, common) = (Both::default(), None);
            mailboxes.push(Mailbox { guid, at, names, common, refused: None, fate: Fate::OutOfScope });
        };
        let inbox = Both(ENDS.map(|end| self.guid_at(end, &MailboxName::inbox())));
        if let [Some(a), Some(b)] = inbox.0 {
            add(Both([left.0[0].remove(&a), left.0[1].remove(&b)]));
        }
        let shared: Vec<MailboxGuid> =
            left.0[0].keys().filter(|guid| left.0[1].contains_key(guid)).copied().collect();
        for guid in shared {
            add(Both([left.0[0].remove(&guid), left.0[1].remove(&guid)]));
        }
        // Gone at the other end since the base, or as its log tells: never matched by name with what took its place.
        let mut one_sided = Vec::new();
        for end in ENDS {
            // What a one-way sync reads is not deleted for what the log of the end that it writes says.
            let goes = |guid: MailboxGuid| self.direction.source() != Some(end) && self.is_logged(guid, end);
            let gone: Vec<MailboxGuid> = left[end]
                .keys()
                .filter(|guid| self.base_name(**guid).is_some() || goes(**guid))
                .copied()
                .collect();
            for guid in gone {
                let mut at = Both::default();
                at[end] = left[end].remove(&guid);
                one_sided.push(at);
            }
        }
        let by_name: Vec<(MailboxGuid, MailboxGuid)> = left.0[0]
            .iter()
            .filter_map(|(guid, (name, _))| Some((*guid, self.guid_at(End::Responder, name)?)))
            .filter(|(_, other)| left.0[1].contains_key(other))
            .collect();
        for (a, b) in by_name {
            add(Both([left.0[0].remove(&a), left.0[1].remove(&b)]));
        }
        for end in ENDS {
            for found in std::mem::take(&mut left[end]).into_values() {
                let mut at = Both::default();
                at[end] = Some(found);
                one_sided.push(at);
            }
        }
        one_sided.into_iter().for_each(&mut add);
        mailboxes.sort_by_key(|mailbox| (mailbox.guid, mailbox.key()));
        // An INBOX may have the GUID of what is another mailbox at the other end: that one takes a derived GUID.
        let mut used = BTreeSet::new();
        for mailbox in mailboxes.iter_mut().filter(|mailbox| mailbox.is_inbox()) {
            used.insert(mailbox.guid);
        }
        for mailbox in mailboxes.iter_mut().filter(|mailbox| !mailbox.is_inbox()) {
            while !used.insert(mailbox.guid) {
                mailbox.guid = mailbox.guid.derived(b"second");
            }
        }
        mailboxes.sort_by_key(|mailbox| mailbox.guid);
        mailboxes
    }

    fn guid_at(&self, end: End, name: &MailboxName) -> Option<MailboxGuid> {
        self.trees[end].get(name)?.mailbox.as_ref().map(|status| status.guid)
    }

    fn base_name(&self, guid: MailboxGuid) -> Option<&MailboxName> {
        self.base?.name_of(guid)
    }

    /// Rule **same-name**: the source's GUID; two-way that of the end that ever held mail, else the larger one.
    fn guid(&self, at: &Both<Option<(MailboxName, MailboxStatus)>>) -> MailboxGuid {
        let statuses = Both([0, 1].map(|i| at.0[i].as_ref().map(|(_, status)| status)));
        let chosen = match (self.direction.source(), statuses.0) {
            (Some(source), _) => statuses[source].or(statuses[source.other()]),
            (None, [Some(a), Some(b)]) => Some(match unused_yields(Both([a, b])) {
                Some(End::Initiator) => a,
                Some(End::Responder) => b,
                None => std::cmp::max_by_key(a, b, |status| status.guid),
            }),
            (None, [a, b]) => a.or(b),
        };
        chosen.map_or(MailboxGuid([0; 16]), |status| status.guid)
    }

    fn decide(&self, mailbox: &mut Mailbox) {
        let current = Both(ENDS.map(|end| mailbox.at[end].as_ref().map(|(name, _)| name.clone())));
        let base_name = self.base_name(mailbox.guid).cloned();
        mailbox.names = current.clone();
        let mut names = current.0.iter().flatten().chain(&base_name);
        if !names.any(|name| (self.in_scope)(name)) {
            return;
        }
        match &current.0 {
            [Some(a), Some(b)] => {
                mailbox.fate = Fate::Keep;
                mailbox.names = self.name_of_both(Both([a, b]), base_name.as_ref());
            }
            _ => {
                let holder = if current.0[0].is_some() { End::Initiator } else { End::Responder };
                mailbox.fate = self.fate_of_one(mailbox, holder, base_name.is_some());
                if mailbox.fate == Fate::Keep
                    && let Some(name) = &current[holder]
                {
                    let name = self.known_as(holder, name, base_name.as_ref());
                    mailbox.names = Both([Some(name.clone()), Some(name.clone())]);
                }
            }
        }
    }

    /// Rule **log-delete**: the log of the other end tells that this mailbox was deleted there, and nothing has changed in it at
    /// `holder` since: the copy that is left is what was deleted.
    fn is_logged(&self, guid: MailboxGuid, holder: End) -> bool {
        let Some(at) = self.logs[holder.other()].deleted.get(&guid) else { return false };
        let mut nodes = self.trees[holder].values();
        let node = nodes.find(|node| node.mailbox.as_ref().is_some_and(|status| status.guid == guid));
        node.and_then(|node| node.changed).is_some_and(|changed| changed < *at)
    }

    /// Rule **one-sided**: new here, or deleted there.
    fn fate_of_one(&self, mailbox: &Mailbox, holder: End, in_base: bool) -> Fate {
        let unseen_mail = || {
            let known = self.base.and_then(|base| base.mailboxes.get(&mailbox.guid));
            let status = mailbox.at[holder].as_ref().map(|(_, status)| status);
            match (known, status) {
                // A base with a digest says that nothing else was below its UIDNEXT (two-way), or nothing else at all.
                (Some(known), Some(status)) => {
                    let more = match self.direction {
                        Direction::TwoWay => known.digest.is_none() || status.uid_next > known.uid_next,
                        _ => known.digest != Some(status.digest),
                    };
                    more || status.uid_validity != known.uid_validity
                }
                _ => true,
            }
        };
        match self.direction {
            // Delete never takes mail that the deleting end had not seen.
            Direction::TwoWay if in_base && !unseen_mail() => Fate::Delete,
            Direction::TwoWay if !in_base && self.is_logged(mailbox.guid, holder) => Fate::Delete,
            Direction::TwoWay => Fate::Keep,
            Direction::Mirror { into } if holder == into => Fate::Delete,
            Direction::Mirror { .. } => Fate::Keep,
            Direction::OneWay { into } if holder != into && !in_base => Fate::Keep,
            Direction::OneWay { into } if holder == into && in_base && !unseen_mail() => Fate::Delete,
            Direction::OneWay { into }
                if holder == into && !in_base && self.is_logged(mailbox.guid, holder) =>
            {
                Fate::Delete
            }
            Direction::OneWay { .. } => Fate::Leave,
        }
    }

    /// Rule **rename**: the end that renamed since the base; if both did, the later, else the name that sorts first.
    fn name_of_both(&self, now: Both<&MailboxName>, base: Option<&MailboxName>) -> Both<Option<MailboxName>> {
        let current = self.in_common(now, base);
        let both = |name: &MailboxName| Both([Some(name.clone()), Some(name.clone())]);
        let times = Both(ENDS.map(|end| self.trees[end].get(now[end]).and_then(|node| node.renamed)));
        let renamed = Both(ENDS.map(|end| base.is_some_and(|base| base != current[end])));
        match self.direction {
            _ if current.0[0] == current.0[1] => both(current.0[0]),
            Direction::Mirror { into } => both(current[into.other()]),
            Direction::OneWay { into } => {
                let source = into.other();
                let stays =
                    base.is_some() && renamed[into] && (!renamed[source] || later(times) == Some(into));
                let mut names = both(current[source]);
                if stays {
                    names[into] = Some(current[into].clone());
                }
                names
            }
            Direction::TwoWay => match renamed.0 {
                [true, false] => both(current.0[0]),
                [false, true] => both(current.0[1]),
                _ => both(match later(times) {
                    Some(end) => current[end],
                    None => {
                        std::cmp::min_by_key(current.0[0], current.0[1], |name| (is_temporary(name), *name))
                    }
                }),
            },
        }
    }

    /// Gives every mailbox that stays a name of its own at both ends; each step fixes one name for good.
    fn settle_names(&self, mailboxes: &mut [Mailbox]) {
        mailboxes.iter_mut().for_each(|mailbox| self.refuse(mailbox));
        let source = self.direction.source();
        let rank = |mailbox: &Mailbox| match mailbox.fate {
            _ if mailbox.is_inbox() => 0,
            Fate::OutOfScope => 0,
            Fate::Keep if source.is_some_and(|source| mailbox.at[source].is_some()) => 1,
            Fate::Leave => 2,
            Fate::Keep if self.is_unmoved(mailbox) => 3,
            Fate::Keep if mailbox.at.0.iter().all(Option::is_some) => 4,
            Fate::Keep => 5,
            Fate::Delete => 6,
        };
        let mut order: Vec<usize> = (0..mailboxes.len()).collect();
        order.sort_by_key(|i| (rank(&mailboxes[*i]), mailboxes[*i].guid));
        let mut taken: Both<BTreeSet<MailboxName>> = Both::default();
        for i in &order {
            let mailbox = &mut mailboxes[*i];
            if mailbox.fate == Fate::Delete {
                continue;
            }
            let wanted = mailbox.names.clone();
            let mut number = 1;
            // A name that an end cannot hold is in nobody's way there.
            let clashes = |mailbox: &Mailbox, taken: &Both<BTreeSet<MailboxName>>| {
                let clash = |end: &End| {
                    let name = mailbox.names[*end].as_ref().filter(|name| taken[*end].contains(*name));
                    name.is_some_and(|name| self.holds(*end, mailbox, name))
                };
                ENDS.iter().any(clash)
            };
            while clashes(mailbox, &taken) {
                number += 1;
                let suffix = format!(" ({number})");
                for end in ENDS.into_iter().filter(|end| source != Some(*end)) {
                    mailbox.names[end] = wanted[end].as_ref().map(|name| name.with_suffix(&suffix));
                }
                if number > NUMBERS_MAX {
                    mailbox.names = wanted.clone();
                    mailbox.fate = Fate::OutOfScope;
                    break;
                }
            }
            for end in ENDS {
                let held = mailbox.names[end].clone().filter(|name| self.holds(end, mailbox, name));
                taken[end].extend(held);
            }
            let named_by = mailbox.refused.as_ref().map(|(end, _)| *end).or(source);
            mailbox.common = mailbox.names[named_by.unwrap_or(End::Initiator)].clone();
        }
        self.hold_names(mailboxes, &order, &mut taken);
    }

    fn is_unmoved(&self, mailbox: &Mailbox) -> bool {
        match &mailbox.at.0 {
            [Some((a, _)), Some((b, _))] => {
                let [a, b] = self.in_common(Both([a, b]), self.base_name(mailbox.guid)).0;
                a == b
            }
            _ => false,
        }
    }
}

impl Mailbox {
    fn key(&self) -> (Option<MailboxName>, Option<MailboxName>) {
        let name = |end: End| self.at[end].as_ref().map(|(name, _)| name.clone());
        (name(End::Initiator), name(End::Responder))
    }

    fn is_inbox(&self) -> bool {
        self.at.0.iter().flatten().any(|(name, _)| name.is_inbox())
    }
}
