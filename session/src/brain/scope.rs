//! Which mailboxes a session is about: `-m`, `-g` and `-x`, told by GUID before any name is compared.
//!
//! A mailbox that has one name here and another there is one mailbox: wanted if one of its names is, and left alone if one
//! of them is to be. So is everything that shares a name with it.

use std::collections::{BTreeMap, BTreeSet};

use dsync_merge::Both;
use dsync_model::{Base, MailboxGuid, MailboxName, MailboxTree, Mask, NameRules};
use dsync_proto::Options;

/// The names that a session may touch.
pub(crate) struct Scope<'a> {
    wanted: Vec<Mask>,
    guids: BTreeSet<MailboxGuid>,
    excluded: Vec<Mask>,
    /// Mailboxes that an end has and cannot read: nobody knows what they are.
    unlisted: &'a BTreeSet<MailboxName>,
    /// Each end's namespaces: those that take no part are left alone at both.
    rules: Both<&'a NameRules>,
    /// Settled for names that mailboxes have.
    known: BTreeMap<MailboxName, bool>,
    missing: Option<String>,
}

impl<'a> Scope<'a> {
    pub(crate) fn new(
        trees: Both<&MailboxTree>,
        base: Option<&Base>,
        options: &Options,
        unlisted: &'a BTreeSet<MailboxName>,
        rules: Both<&'a NameRules>,
    ) -> Scope<'a> {
        let mut scope = Scope {
            wanted: options.mailboxes.iter().map(|mask| Mask::list_pattern(mask)).collect(),
            guids: options.guids.iter().copied().collect(),
            excluded: options.exclude.iter().map(|mask| Mask::wildcards(mask)).collect(),
            unlisted,
            rules,
            known: BTreeMap::new(),
            missing: None,
        };
        if scope.is_all() {
            return scope;
        }
        let listed = trees.0.into_iter().flat_map(|tree| {
            tree.iter().filter_map(|(name, node)| Some((name, node.mailbox.as_ref()?.guid)))
        });
        let remembered = base.into_iter().flat_map(|base| base.tree.iter());
        let remembered = remembered.filter_map(|(name, node)| Some((name, node.mailbox?)));
        let pairs: BTreeSet<(&MailboxName, MailboxGuid)> = listed.chain(remembered).collect();
        let [here, there] = trees.0.map(|tree| {
            let statuses = tree.values().filter_map(|node| node.mailbox.as_ref());
            statuses.map(|status| status.guid).collect::<BTreeSet<_>>()
        });
        for (names, guids) in components(&pairs) {
            let wanted = (scope.wanted.is_empty() && scope.guids.is_empty())
                || names.iter().any(|name| scope.wanted.iter().any(|mask| mask.matches(name)))
                || guids.iter().any(|guid| scope.guids.contains(guid));
            // What one end does not list may be behind what it cannot read.
            let seen = guids.iter().all(|guid| here.contains(guid) && there.contains(guid));
            let hidden = !seen && names.iter().any(|name| scope.is_behind(name));
            let excluded = hidden || names.iter().any(|name| scope.leaves(name));
            scope.known.extend(names.into_iter().map(|name| (name.clone(), wanted && !excluded)));
        }
        let plain = |text: &&String| !text.contains(['*', '%']);
        let names =
            || pairs.iter().map(|(name, _)| *name).chain(trees.0.into_iter().flat_map(BTreeMap::keys));
        let unknown = |text: &&String| !names().any(|name| Mask::list_pattern(text).matches(name));
        scope.missing = options.mailboxes.iter().filter(plain).find(unknown).cloned().or_else(|| {
            let unknown = |guid: &&MailboxGuid| !pairs.iter().any(|(_, known)| known == *guid);
            options.guids.iter().find(unknown).map(ToString::to_string)
        });
        scope
    }

    fn is_all(&self) -> bool {
        self.wanted.is_empty()
            && self.guids.is_empty()
            && self.excluded.is_empty()
            && self.unlisted.is_empty()
            && self.rules.0.iter().all(|rules| rules.namespaces.iter().all(|one| one.takes_part))
    }

    /// Says whether the name itself is one that is left alone.
    fn leaves(&self, name: &MailboxName) -> bool {
        self.excluded.iter().any(|mask| mask.matches(name))
            || self.unlisted.contains(name)
            || self.rules.0.iter().any(|rules| rules.is_apart(name))
    }

    /// Says whether the name is below one that an end cannot read.
    fn is_behind(&self, name: &MailboxName) -> bool {
        self.unlisted.iter().any(|unlisted| name.is_below(unlisted))
    }

    /// Says whether the session is about what has this name.
    pub(crate) fn has(&self, name: &MailboxName) -> bool {
        if let Some(known) = self.known.get(name) {
            return *known;
        }
        // A directory, a subscription, or all there is.
        let unasked = self.wanted.is_empty() && self.guids.is_empty();
        let wanted = unasked || self.wanted.iter().any(|mask| mask.matches(name));
        wanted && !self.leaves(name) && !self.is_behind(name)
    }

    /// A mailbox that was named, without wildcards, and that neither end has or had.
    pub(crate) fn missing(&self) -> Option<&str> {
        self.missing.as_deref()
    }
}

type Component<'a> = (BTreeSet<&'a MailboxName>, BTreeSet<MailboxGuid>);

/// What hangs together: names of one GUID, GUIDs of one name, and so on.
fn components<'a>(pairs: &BTreeSet<(&'a MailboxName, MailboxGuid)>) -> Vec<Component<'a>> {
    let mut by_name: BTreeMap<&MailboxName, BTreeSet<MailboxGuid>> = BTreeMap::new();
    let mut by_guid: BTreeMap<MailboxGuid, BTreeSet<&MailboxName>> = BTreeMap::new();
    for (name, guid) in pairs {
        by_name.entry(name).or_default().insert(*guid);
        by_guid.entry(*guid).or_default().insert(name);
    }
    let mut components = Vec::new();
    while let Some((name, _)) = by_name.first_key_value() {
        let (mut names, mut guids) = (BTreeSet::new(), BTreeSet::new());
        let mut left = vec![*name];
        while let Some(name) = left.pop() {
            names.insert(name);
            for guid in by_name.remove(name).unwrap_or_default() {
                guids.insert(guid);
                left.extend(by_guid.remove(&guid).unwrap_or_default());
            }
        }
        components.push((names, guids));
    }
    components
}

#[cfg(test)]
mod tests {
    use dsync_model::{BaseNode, Digest, MailboxStatus, ModSeq, Uid, UidValidity};

    use dsync_model::{MailboxNode, NamespaceRules};

    use super::*;

    /// Ends with one namespace.
    fn free() -> Both<&'static NameRules> {
        static RULES: NameRules = NameRules { namespaces: Vec::new() };
        Both([&RULES, &RULES])
    }

    fn name(text: &str) -> MailboxName {
        MailboxName::parse(text, '/').unwrap()
    }

    fn guid(text: &str) -> MailboxGuid {
        MailboxGuid([text.as_bytes()[0]; 16])
    }

    /// `Work=w Old/Work=w Shared`: names with the letter of their GUID, or none.
    fn tree(text: &str) -> MailboxTree {
        let status = |guid| MailboxStatus {
            guid,
            uid_validity: UidValidity::new(1).unwrap(),
            uid_next: Uid::MIN,
            messages: 0,
            highest_modseq: ModSeq::NONE,
            digest: Digest::default(),
        };
        let node = |word: &str| match word.split_once('=') {
            Some((text, letter)) => {
                (name(text), MailboxNode { mailbox: Some(status(guid(letter))), ..MailboxNode::default() })
            }
            None => (name(word), MailboxNode { subscribed: true, ..MailboxNode::default() }),
        };
        text.split_whitespace().map(node).collect()
    }

    fn base(text: &str) -> Base {
        let node = |word: &str| {
            let (text, letter) = word.split_once('=').unwrap();
            (name(text), BaseNode { mailbox: Some(guid(letter)), ..BaseNode::default() })
        };
        Base { tree: text.split_whitespace().map(node).collect(), ..Base::default() }
    }

    fn check(here: &str, there: &str, before: &str, options: &Options, expected: &str) {
        let (here, there, base, unlisted) = (tree(here), tree(there), base(before), BTreeSet::new());
        let scope = Scope::new(Both([&here, &there]), Some(&base), options, &unlisted, free());
        let names: BTreeSet<&MailboxName> = here.keys().chain(there.keys()).collect();
        let found: Vec<String> =
            names.into_iter().filter(|name| scope.has(name)).map(ToString::to_string).collect();
        assert_eq!(found.join(" "), expected, "missing {:?}", scope.missing());
    }

    fn only(mailbox: &str) -> Options {
        Options { mailboxes: vec![mailbox.into()], ..Options::default() }
    }

    fn without(mask: &str) -> Options {
        Options { exclude: vec![mask.into()], ..Options::default() }
    }

    #[test]
    fn a_renamed_mailbox_is_chosen_by_either_name() {
        check("Work=w A=a", "Job=w A=a", "Work=w A=a", &only("Work"), "Job Work");
        check("Work=w A=a", "Job=w A=a", "Work=w A=a", &only("Job"), "Job Work");
        check("Later=w A=a", "Job=w A=a", "Work=w A=a", &only("Work"), "Job Later");
        let by_guid = Options { guids: vec![guid("w")], ..Options::default() };
        check("Work=w A=a", "Job=w A=a", "", &by_guid, "Job Work");
    }

    #[test]
    fn a_renamed_mailbox_is_left_alone_under_either_name() {
        check("Work=w A=a", "Job=w A=a", "Work=w A=a", &without("Work"), "A");
        check("Work=w A=a", "Job=w A=a", "Work=w A=a", &without("Job"), "A");
        check("Later=w A=a", "Job=w A=a", "Work=w A=a", &without("W*"), "A");
    }

    #[test]
    fn subscriptions_go_with_their_names() {
        check("Spam A=a", "Spam B=b", "", &without("Spam"), "A B");
        check("Spam=s A=a", "Spam B=b", "", &without("Sp*"), "A B");
        check("Spam A=a", "B", "", &only("Spam"), "Spam");
    }

    #[test]
    fn two_mailboxes_of_one_name_go_together() {
        check("X=a", "X=b Y=a", "", &without("Y"), "");
        check("X=a", "X=b Y=a", "", &only("Y"), "X Y");
    }

    #[test]
    fn what_cannot_be_read_is_left_alone_under_every_name() {
        let (here, there, base) = (tree("A=a"), tree("A=a Job=w"), base("A=a Work=w"));
        let unlisted = BTreeSet::from([name("Work")]);
        let scope = Scope::new(Both([&here, &there]), Some(&base), &Options::default(), &unlisted, free());
        assert!(scope.has(&name("A")) && !scope.has(&name("Work")) && !scope.has(&name("Job")));
    }

    #[test]
    fn what_one_end_does_not_list_may_be_behind_what_it_cannot_read() {
        let here = tree("A=a Top/Both=b Other/New=o");
        let there = tree("A=a Top/Both=b Top/Work=w Top/New=n Top/Sub Other/Gone=g");
        let base = base("A=a Top=t Top/Both=b Top/Work=w Other/Gone=g");
        let unlisted = BTreeSet::from([name("Top")]);
        let scope = Scope::new(Both([&here, &there]), Some(&base), &Options::default(), &unlisted, free());
        for text in ["A", "Top/Both", "Other/New", "Other/Gone"] {
            assert!(scope.has(&name(text)), "{text}");
        }
        for text in ["Top", "Top/Work", "Top/New", "Top/Sub", "Top/Work/Deep"] {
            assert!(!scope.has(&name(text)), "{text}");
        }
    }

    #[test]
    fn what_nobody_has_is_missing() {
        let trees = [tree("A=a Sub"), tree("B=b")];
        let missing = |options: &Options| {
            let unlisted = BTreeSet::new();
            let scope = Scope::new(Both([&trees[0], &trees[1]]), None, options, &unlisted, free());
            scope.missing().map(str::to_owned)
        };
        assert_eq!(missing(&only("C")).as_deref(), Some("C"));
        for there in ["B", "Sub", "C*", "inbox%"] {
            assert_eq!(missing(&only(there)), None, "{there}");
        }
        let by_guid = Options { guids: vec![guid("c")], ..Options::default() };
        assert_eq!(missing(&by_guid), Some("63".repeat(16)));
    }

    #[test]
    fn a_namespace_that_takes_no_part_at_one_end_is_left_alone_at_both() {
        let namespace = |prefix: &[&str], takes_part| NamespaceRules {
            prefix: prefix.iter().map(|part| part.to_string()).collect(),
            takes_part,
            ..NamespaceRules::default()
        };
        let rules = NameRules { namespaces: vec![namespace(&[], true), namespace(&["Archive"], false)] };
        let (here, there) = (tree("A=a Archives=b"), tree("A=a Archive Archive/x=w Archives=b Job=j"));
        let (base, unlisted) = (base("A=a Archive/x=w Archive/y=j"), BTreeSet::new());
        for rules in [Both([&rules, free().0[0]]), Both([free().0[0], &rules])] {
            let scope = Scope::new(Both([&here, &there]), Some(&base), &Options::default(), &unlisted, rules);
            let names = ["A", "Archives", "Archive", "Archive/x", "Archive/z", "Job"].map(name);
            let found = names.each_ref().map(|name| scope.has(name));
            assert_eq!(found, [true, true, false, false, false, false], "Job was in Archive once");
        }
    }
}
