//! Rule **held**: what a mailbox is called at an end that cannot hold its name.
//!
//! Both ends plan with the name that mailboxes have in common, and find out last what each of them calls it.

use std::collections::{BTreeMap, BTreeSet};

use dsync_model::{MailboxGuid, MailboxName, MailboxNode, MailboxTree, NameRules};

use super::{Fate, Mailbox, Merge};
use crate::{Both, ENDS, End};

/// How many names with a number behind them are tried.
pub(super) const NUMBERS_MAX: u32 = 10_000;

/// Names that an end cannot hold, and what stands for them there.
#[derive(Default)]
pub(super) struct Held {
    /// By the common name; `None`: nothing can, as another has taken what would.
    here: Both<BTreeMap<MailboxName, Option<MailboxName>>>,
    common: Both<BTreeMap<MailboxName, MailboxName>>,
    /// What would stand for the name, were it not the subscription or directory of another name at the other end.
    beside: Both<BTreeMap<MailboxName, MailboxName>>,
}

impl Held {
    /// What this end calls it; `None`: it can have no such name.
    pub fn at<'a>(&'a self, end: End, name: &'a MailboxName) -> Option<&'a MailboxName> {
        match self.here[end].get(name) {
            Some(held) => held.as_ref(),
            // The name of something else at this end.
            None if self.common[end].contains_key(name) => None,
            None => Some(name),
        }
    }

    /// The common name of what this end calls so.
    pub fn common<'a>(&'a self, end: End, name: &'a MailboxName) -> &'a MailboxName {
        self.common[end].get(name).unwrap_or(name)
    }

    /// Names that have nothing to stand for them at this end only because of a subscription or directory, each with what that is.
    pub fn beside(&self, end: End) -> impl Iterator<Item = (&MailboxName, &MailboxName)> {
        self.beside[end].iter()
    }

    fn insert(&mut self, end: End, name: &MailboxName, held: &MailboxName) {
        self.here[end].insert(name.clone(), Some(held.clone()));
        self.common[end].insert(held.clone(), name.clone());
    }
}

impl Merge<'_> {
    /// The name in common of what an end calls `name`, if the base had it.
    pub(super) fn known_as<'a>(
        &self,
        end: End,
        name: &'a MailboxName,
        base: Option<&'a MailboxName>,
    ) -> &'a MailboxName {
        base.filter(|base| self.rules[end].is_instead(name, base)).unwrap_or(name)
    }

    /// The names of a mailbox that both ends have, with what an end only calls so for want of a better name told as the other's.
    pub(super) fn in_common<'a>(
        &self,
        now: Both<&'a MailboxName>,
        base: Option<&'a MailboxName>,
    ) -> Both<&'a MailboxName> {
        let [a, b] = ENDS.map(|end| self.known_as(end, now[end], base));
        match () {
            () if self.rules[End::Responder].is_instead(b, a) => Both([a, a]),
            () if self.rules[End::Initiator].is_instead(a, b) => Both([b, b]),
            () => Both([a, b]),
        }
    }

    /// Says whether this end can have this mailbox under this name: what it has it can.
    pub(super) fn holds(&self, end: End, mailbox: &Mailbox, name: &MailboxName) -> bool {
        mailbox.at[end].as_ref().is_some_and(|(now, _)| now == name) || self.rules[end].holds(name)
    }

    /// Leaves a mailbox the names that it has, if an end would have to rename it into a namespace that takes no part there. The base keeps
    /// that end's name, so that the next run finds the rename again.
    pub(super) fn refuse(&self, mailbox: &mut Mailbox) {
        if mailbox.fate != Fate::Keep {
            return;
        }
        let refused = ENDS.into_iter().find_map(|end| {
            let (now, wanted) = (&mailbox.at[end].as_ref()?.0, mailbox.names[end].as_ref()?);
            let rules = self.rules[end];
            let namespace = |name: &MailboxName| Some(rules.place(name)?.0);
            let (old, new) = (namespace(now), namespace(&rules.hold(wanted)));
            let takes_part = |index: usize| rules.namespaces[index].takes_part;
            (old != new && !new.is_some_and(takes_part)).then(|| (end, wanted.clone()))
        });
        if refused.is_some() {
            mailbox.names = Both(ENDS.map(|end| mailbox.at[end].as_ref().map(|(now, _)| now.clone())));
            mailbox.refused = refused;
        }
    }

    /// Gives what an end cannot hold a name that it can: the one it has already, or the next that is free. All others come first.
    pub(super) fn hold_names(
        &self,
        mailboxes: &mut [Mailbox],
        order: &[usize],
        taken: &mut Both<BTreeSet<MailboxName>>,
    ) {
        for i in order {
            let mailbox = &mut mailboxes[*i];
            for end in ENDS {
                let Some(name) = mailbox.names[end].clone() else { continue };
                if mailbox.fate != Fate::Keep || self.holds(end, mailbox, &name) {
                    continue;
                }
                let rules = self.rules[end];
                let now = mailbox.at[end].as_ref().map(|(now, _)| now.clone());
                let now = now.filter(|now| rules.is_instead(now, &name));
                let mut names =
                    now.into_iter().chain((1..NUMBERS_MAX).map(|n| rules.hold_numbered(&name, n)));
                let held = names.find(|held| !taken[end].contains(held)).unwrap_or(name);
                taken[end].insert(held.clone());
                mailbox.names[end] = Some(held);
            }
        }
    }

    /// What stands for names at each end once mailboxes have theirs; names without a mailbox among them.
    pub(super) fn held(&self, mailboxes: &[Mailbox]) -> Held {
        let mut held = Held::default();
        for mailbox in mailboxes.iter().filter(|mailbox| mailbox.fate == Fate::Keep) {
            let Some(common) = &mailbox.common else { continue };
            for end in ENDS {
                if let Some(name) = mailbox.names[end].as_ref().filter(|name| *name != common)
                    && self.rules[end].is_instead(name, common)
                {
                    held.insert(end, common, name);
                }
            }
        }
        let known = self.base.into_iter().flat_map(|base| base.tree.keys());
        let names: BTreeSet<&MailboxName> =
            self.trees.0.iter().flat_map(|tree| tree.keys()).chain(known).collect();
        let mut staying: Both<BTreeSet<&MailboxName>> = Both::default();
        for mailbox in mailboxes.iter().filter(|mailbox| mailbox.fate != Fate::Delete) {
            ENDS.iter().for_each(|end| staying[*end].extend(&mailbox.names[*end]));
        }
        // A name without mail of the other end's is that, whatever becomes of mailboxes.
        let beside = |node: &MailboxNode| node.directory || node.subscribed;
        for end in ENDS {
            // What an end has itself stands for nothing else.
            let own = |name: &&&MailboxName| !self.trees[end].contains_key(**name);
            for name in names.iter().filter(own).filter(|name| !self.rules[end].holds(name)) {
                if held.here[end].contains_key(*name) {
                    continue;
                }
                let instead = self.rules[end].hold(name);
                let taken = held.common[end].contains_key(&instead)
                    || ENDS.iter().any(|end| staying[*end].contains(&instead));
                if taken {
                    held.here[end].insert((*name).clone(), None);
                } else if self.trees[end.other()].get(&instead).is_some_and(beside) {
                    held.here[end].insert((*name).clone(), None);
                    held.beside[end].insert((*name).clone(), instead);
                } else {
                    held.insert(end, name, &instead);
                }
            }
        }
        held
    }
}

/// The trees with every mailbox under the name in common: to compare what both ends have.
pub fn common_trees(trees: Both<&MailboxTree>, rules: Both<&NameRules>) -> Both<MailboxTree> {
    let places = trees.0.map(|tree| {
        let mailboxes = tree.iter().filter_map(|(name, node)| Some((node.mailbox.as_ref()?.guid, name)));
        mailboxes.collect::<BTreeMap<MailboxGuid, &MailboxName>>()
    });
    let mut renamed = Both(trees.0.map(Clone::clone));
    for end in ENDS {
        for (guid, name) in &places[end as usize] {
            if let Some(common) = places[end.other() as usize].get(guid)
                && rules[end].is_instead(name, common)
                && let Some(node) = renamed[end].remove(*name)
            {
                renamed[end].insert((*common).clone(), node);
            }
        }
    }
    renamed
}
