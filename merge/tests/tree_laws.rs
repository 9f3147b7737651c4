//! The laws of the tree merge, on any two trees with any common past: converges, idle-still, no-loss, and names stay what they were.

#[path = "tree_laws/deeds.rs"]
mod deeds;

use std::collections::{BTreeMap, BTreeSet};

use dsync_merge::{Both, Direction, End, TreePlan, common_trees, tree};
use dsync_model::{
    Base, Digest, MailboxBase, MailboxGuid, MailboxName, MailboxNode, MailboxStatus, MailboxTree, ModSeq,
    NameRules, NamespaceRules, TreeChange, Uid, UidValidity,
};
use proptest::prelude::*;

use self::deeds::{Deed, after, after_among, deed};

const NAMES: [&str; 8] = ["A", "B", "C", "A/a", "A/b", "B/a", "A (2)", "C/c/c"];
/// Of an account that can hold all of them, and of one with dots between parts, which can hold only its own.
const DOTTED: [&str; 8] = ["A.x", "A_x", "C", "A.x/a", "A_x/a", "B/a.b", "A_x (2)", "C.."];
const DOTLESS: [&str; 8] = ["A_x", "A_x (2)", "C", "A_x/a", "C__", "B/a", "B/a_b", "E"];
const DIRECTORIES: [&str; 2] = ["D", "D/E"];

fn name(text: &str) -> MailboxName {
    MailboxName::parse(text, '/').expect("valid")
}

fn status(guid: u8, validity: u32, next: u32) -> MailboxStatus {
    MailboxStatus {
        guid: MailboxGuid([guid; 16]),
        uid_validity: UidValidity::new(validity).expect("not 0"),
        uid_next: Uid::new(next).expect("not 0"),
        messages: next - 1,
        highest_modseq: ModSeq::NONE,
        digest: Digest(u128::from(guid) << 64 | u128::from(next)),
    }
}

/// Names of which nothing is left are not listed.
fn tidy(tree: &mut MailboxTree) {
    tree.retain(|_, node| node.mailbox.is_some() || node.directory || node.subscribed);
}

/// Does what a storage does, and bears no step that one could not do.
fn apply(tree: &mut MailboxTree, plan: &TreePlan) {
    for change in plan.changes.iter().chain(&plan.deletes) {
        match change {
            TreeChange::Create { name, guid, uid_validity, uid_next } => {
                let node = tree.entry(name.clone()).or_default();
                let made = status(guid.0[0], uid_validity.get(), uid_next.get());
                assert!(
                    node.mailbox.replace(MailboxStatus { guid: *guid, ..made }).is_none(),
                    "{name} is taken"
                );
            }
            TreeChange::Rename { guid, from, to } => {
                let mailbox =
                    tree.get_mut(from).and_then(|node| node.mailbox.take()).expect("renames what is there");
                assert_eq!(mailbox.guid, *guid);
                let node = tree.entry(to.clone()).or_default();
                assert!(node.mailbox.replace(mailbox).is_none(), "{to} is taken");
            }
            TreeChange::Identify { name, guid, uid_validity } => {
                let mailbox = tree.get_mut(name).and_then(|node| node.mailbox.as_mut()).expect("is there");
                (mailbox.guid, mailbox.uid_validity) = (*guid, *uid_validity);
            }
            TreeChange::Delete { name, guid, uid_next } => {
                let mailbox =
                    tree.get_mut(name).and_then(|node| node.mailbox.take()).expect("deletes what is there");
                assert_eq!((mailbox.guid, mailbox.uid_next), (*guid, *uid_next));
            }
            TreeChange::CreateDirectory { name: made } => {
                for above in DIRECTORIES.iter().map(|above| name(above)).filter(|above| made.is_below(above))
                {
                    tree.entry(above).or_default().directory = true;
                }
                tree.entry(made.clone()).or_default().directory = true;
            }
            TreeChange::DeleteDirectory { name } => {
                let below = tree
                    .iter()
                    .any(|(n, node)| n.is_below(name) && (node.directory || node.mailbox.is_some()));
                assert!(!below, "{name} is not empty");
                tree.get_mut(name).expect("is there").directory = false;
            }
            TreeChange::Subscribe { names } => {
                names.iter().for_each(|name| tree.entry(name.clone()).or_default().subscribed = true);
            }
            TreeChange::Unsubscribe { names } => {
                names.iter().for_each(|name| tree.entry(name.clone()).or_default().subscribed = false);
            }
        }
    }
    tidy(tree);
}

/// What the merge of the messages leads to: both ends hold the same.
fn fill(a: &mut MailboxTree, b: &mut MailboxTree) {
    let mut there: BTreeMap<MailboxGuid, &mut MailboxStatus> = b
        .values_mut()
        .filter_map(|node| node.mailbox.as_mut().map(|mailbox| (mailbox.guid, mailbox)))
        .collect();
    for one in a.values_mut().filter_map(|node| node.mailbox.as_mut()) {
        if let Some(two) = there.get_mut(&one.guid) {
            one.uid_next = one.uid_next.max(two.uid_next);
            one.uid_validity = one.uid_validity.max(two.uid_validity);
            one.digest = Digest(one.digest.0 ^ two.digest.0);
            **two = one.clone();
        }
    }
}

/// What both ends remember once both hold the same.
fn base_of(tree: &MailboxTree, plan: &TreePlan, old: Option<&Base>) -> Base {
    let mut base = Base { tree: plan.agreed.clone(), ..Base::default() };
    let kept = old.into_iter().flat_map(|old| &old.mailboxes).filter(|(guid, _)| plan.kept.contains(guid));
    base.mailboxes.extend(kept.map(|(guid, mailbox)| (*guid, mailbox.clone())));
    let pairs: BTreeSet<MailboxGuid> = plan.pairs.iter().map(|pair| pair.guid).collect();
    let statuses = tree.values().filter_map(|node| node.mailbox.as_ref());
    for status in statuses.filter(|status| pairs.contains(&status.guid)) {
        let mut mailbox = MailboxBase::new(status.uid_validity, status.uid_next);
        mailbox.digest = Some(status.digest);
        base.mailboxes.insert(status.guid, mailbox);
    }
    base
}

fn plans(a: &MailboxTree, b: &MailboxTree, base: Option<&Base>, direction: Direction) -> [TreePlan; 2] {
    let any = NameRules::default();
    plans_with(a, b, Both([&any, &any]), base, direction)
}

fn plans_with(
    a: &MailboxTree,
    b: &MailboxTree,
    rules: Both<&NameRules>,
    base: Option<&Base>,
    direction: Direction,
) -> [TreePlan; 2] {
    let quiet = dsync_model::TreeLog::default();
    [End::Initiator, End::Responder]
        .map(|end| tree(Both([a, b]), Both([&quiet, &quiet]), rules, base, direction, &|_| true, end))
}

/// One synchronisation, and the base after it.
fn sync(a: &mut MailboxTree, b: &mut MailboxTree, base: Option<&Base>, direction: Direction) -> Base {
    let any = NameRules::default();
    sync_with(a, b, Both([&any, &any]), base, direction)
}

fn sync_with(
    a: &mut MailboxTree,
    b: &mut MailboxTree,
    rules: Both<&NameRules>,
    base: Option<&Base>,
    direction: Direction,
) -> Base {
    let [for_a, for_b] = plans_with(a, b, rules, base, direction);
    assert_eq!((&for_a.agreed, &for_a.pairs), (&for_b.agreed, &for_b.pairs));
    apply(a, &for_a);
    apply(b, &for_b);
    fill(a, b);
    base_of(b, &for_b, base)
}

/// Any name; and those that have no dot within a part.
fn any_and_dotless() -> [NameRules; 2] {
    let dotless = NamespaceRules {
        inbox: true,
        takes_part: true,
        separators: vec!['.'],
        name_bytes_max: 254,
        ..NamespaceRules::default()
    };
    [NameRules::default(), NameRules { namespaces: vec![dotless] }]
}

/// Two ends of which the second cannot hold all names of the first, after a common past and what each user did then.
fn unlike((common, one, two, known): &Past) -> (MailboxTree, MailboxTree, Option<Base>) {
    let rules = any_and_dotless();
    let (mut guid, mut copy) = (1, start());
    let mut common = after_among(&DOTTED, start(), common, &mut guid);
    let base = sync_with(&mut common, &mut copy, Both(rules.each_ref()), None, Direction::TwoWay);
    let a = after_among(&DOTTED, common, one, &mut guid);
    let b = after_among(&DOTLESS, copy, two, &mut guid);
    (a, b, known.then_some(base))
}

/// Which mailbox has which name.
fn names_of(tree: &MailboxTree) -> BTreeMap<MailboxGuid, MailboxName> {
    guids(tree).into_iter().map(|(guid, (name, _))| (guid, name)).collect()
}

fn guids(tree: &MailboxTree) -> BTreeMap<MailboxGuid, (MailboxName, MailboxStatus)> {
    let mailboxes = tree.iter().filter_map(|(name, node)| Some((name.clone(), node.mailbox.clone()?)));
    mailboxes.map(|(name, status)| (status.guid, (name, status))).collect()
}

fn start() -> MailboxTree {
    let inbox = MailboxNode { mailbox: Some(status(1, 1, 5)), ..MailboxNode::default() };
    [(MailboxName::inbox(), inbox)].into()
}

/// A common past, what each user did then, and whether the past is known.
type Past = (Vec<Deed>, Vec<Deed>, Vec<Deed>, bool);

fn past() -> impl Strategy<Value = Past> {
    let deeds = |max| prop::collection::vec(deed(), 0..max);
    (deeds(8), deeds(8), deeds(8), any::<bool>())
}

/// The two trees, and the base that both ends have of their past.
fn trees((common, one, two, known): &Past) -> (MailboxTree, MailboxTree, Option<Base>) {
    let mut guid = 1;
    let mut common = after(start(), common, &mut guid);
    let mut copy = common.clone();
    let base = sync(&mut common, &mut copy, None, Direction::TwoWay);
    let a = after(common, one, &mut guid);
    let b = after(copy, two, &mut guid);
    (a, b, known.then_some(base))
}

/// `A.x` is subscribed at the end that can hold it, where `A_x`, which would stand for it at the other, was unsubscribed.
#[test]
fn what_is_unsubscribed_makes_room_for_what_cannot_be_held() {
    let past = (vec![Deed::Subscribe(1)], vec![Deed::Subscribe(0)], vec![Deed::Subscribe(0)], true);
    let (mut a, mut b, base) = unlike(&past);
    let rules = any_and_dotless();
    let rules = Both(rules.each_ref());
    let next = sync_with(&mut a, &mut b, rules, base.as_ref(), Direction::TwoWay);
    let subscribed = |tree: &MailboxTree| -> Vec<String> {
        tree.iter().filter(|(_, node)| node.subscribed).map(|(name, _)| name.to_string()).collect()
    };
    assert_eq!((subscribed(&a), subscribed(&b)), (vec!["A.x".to_owned()], vec!["A_x".to_owned()]));
    for base in [Some(&next), None] {
        for again in plans_with(&a, &b, rules, base, Direction::TwoWay) {
            assert!(again.changes.is_empty(), "{:?}", again.changes);
        }
    }
}

/// An end whose `A` is a namespace that takes no part cannot follow a rename into it; no end renames anything, again and again.
#[test]
fn a_rename_into_a_namespace_that_takes_no_part_changes_nothing() {
    let namespace = |prefix: &[&str]| NamespaceRules {
        prefix: prefix.iter().map(|part| part.to_string()).collect(),
        inbox: prefix.is_empty(),
        takes_part: prefix.is_empty(),
        ..NamespaceRules::default()
    };
    let rules = [NameRules::default(), NameRules { namespaces: vec![namespace(&[]), namespace(&["A"])] }];
    let past = [Deed::Create(1), Deed::Create(2)];
    for direction in [Direction::TwoWay, Direction::Mirror { into: End::Responder }] {
        let mut guid = 1;
        let mut a = after(start(), &past, &mut guid);
        let mut b = start();
        let rules = Both(rules.each_ref());
        let mut base = sync_with(&mut a, &mut b, rules, None, direction);
        a = after(a, &[Deed::Rename(1, 4), Deed::Create(1), Deed::Subscribe(2)], &mut guid);
        for round in 0..3 {
            let [for_a, for_b] = plans_with(&a, &b, rules, Some(&base), direction);
            assert_eq!(for_a.refused, [(name("B"), name("A/b"))], "{round}");
            assert_eq!(for_b.refused, for_a.refused);
            let idle = for_b.changes.is_empty() && for_a.changes.is_empty();
            assert_eq!(idle, round > 0, "{:?} {:?}", for_a.changes, for_b.changes);
            base = sync_with(&mut a, &mut b, rules, Some(&base), direction);
            let guids = |tree: &MailboxTree, text| tree[&name(text)].mailbox.as_ref().map(|m| m.guid);
            assert_eq!(guids(&a, "A/b"), guids(&b, "B"));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2_000) })]

    #[test]
    fn two_way(past in past()) {
        let (a, b, base) = trees(&past);
        let (mut a2, mut b2) = (a.clone(), b.clone());
        let next = sync(&mut a2, &mut b2, base.as_ref(), Direction::TwoWay);
        // converges
        prop_assert_eq!(&a2, &b2);
        // idle-still, with the new base and without any
        for base in [Some(&next), None] {
            for again in plans(&a2, &b2, base, Direction::TwoWay) {
                prop_assert!(again.changes.is_empty() && again.deletes.is_empty(), "{:?} {:?}", again.changes, again.deletes);
            }
        }
        let (was_a, was_b, now) = (guids(&a), guids(&b), guids(&a2));
        let names: BTreeSet<&MailboxName> = now.values().map(|(name, _)| name).collect();
        for (guid, (was, status)) in was_a.iter().chain(&was_b) {
            // no-loss: what is gone was agreed on, was deleted at one end, and held nothing that the other had not seen; or it is
            // one with another mailbox of its name.
            let agreed = base.as_ref().and_then(|base| base.mailboxes.get(guid));
            let seen = agreed.is_some_and(|agreed| agreed.uid_next == status.uid_next);
            let deleted = seen && !(was_a.contains_key(guid) && was_b.contains_key(guid));
            let merged = [&a, &b].iter().all(|tree| tree.get(was).is_some_and(|node| node.mailbox.is_some()));
            prop_assert!(deleted || merged || now.contains_key(guid), "{} {} is lost", was, guid);
            prop_assert!(!(deleted && now.contains_key(guid)), "{} {} came back", was, guid);
        }
        for (guid, (name, _)) in &now {
            let text = name.to_string();
            prop_assert!(!text.contains("dsync-temp"), "{}", text);
            // A number is given only where two mailboxes claim one name.
            let had = [&was_a, &was_b].iter().any(|was| was.get(guid).is_some_and(|(was, _)| was == name));
            if let (false, Some((stem, _))) = (had, text.rsplit_once(" (")) {
                prop_assert!(names.contains(&self::name(stem)), "{} for nothing", text);
            }
        }
    }

    #[test]
    fn names_that_one_end_cannot_hold(past in past()) {
        let (a, b, base) = unlike(&past);
        let rules = any_and_dotless();
        let rules = Both(rules.each_ref());
        let (mut a2, mut b2) = (a.clone(), b.clone());
        let next = sync_with(&mut a2, &mut b2, rules, base.as_ref(), Direction::TwoWay);
        // converges: the same mailboxes, under the same names but for what cannot be
        let same = common_trees(Both([&a2, &b2]), rules);
        prop_assert_eq!(names_of(&same[End::Initiator]), names_of(&same[End::Responder]));
        for name in names_of(&b2).values() {
            prop_assert!(rules[End::Responder].holds(name), "{}", name);
            prop_assert!(!name.to_string().contains("dsync-temp"), "{}", name);
        }
        // idle-still, with the new base and without any
        for base in [Some(&next), None] {
            for again in plans_with(&a2, &b2, rules, base, Direction::TwoWay) {
                prop_assert!(again.changes.is_empty() && again.deletes.is_empty(), "{:?} {:?}", again.changes, again.deletes);
            }
        }
        // What the second end cannot hold is no reason to rename anything at the first.
        let quiet = |deed: &Deed| matches!(deed, Deed::Deliver(_) | Deed::Subscribe(_) | Deed::Directory(_));
        if base.is_some() && past.2.iter().all(quiet) {
            let (was, now) = (names_of(&a), names_of(&a2));
            prop_assert!(was.iter().all(|(guid, name)| now.get(guid) == Some(name)), "{:?} {:?}", was, now);
        }
        // no-loss
        let now = guids(&a2);
        for (guid, (was, status)) in guids(&a).iter().chain(&guids(&b)) {
            let seen = base.as_ref().and_then(|base| base.mailboxes.get(guid)).is_some_and(|agreed| agreed.uid_next == status.uid_next);
            let merged = [&a, &b].iter().all(|tree| tree.get(was).is_some_and(|node| node.mailbox.is_some()));
            prop_assert!(seen || merged || now.contains_key(guid), "{} {} is lost", was, guid);
        }
    }

    #[test]
    fn a_mirror_of_names_that_cannot_be_held(past in past()) {
        let (a, b, base) = unlike(&past);
        let rules = any_and_dotless();
        let rules = Both(rules.each_ref());
        let direction = Direction::Mirror { into: End::Responder };
        let (mut a2, mut b2) = (a.clone(), b.clone());
        let next = sync_with(&mut a2, &mut b2, rules, base.as_ref(), direction);
        prop_assert_eq!(names_of(&a), names_of(&a2));
        let same = common_trees(Both([&a2, &b2]), rules);
        prop_assert_eq!(names_of(&same[End::Initiator]), names_of(&same[End::Responder]));
        let [_, again] = plans_with(&a2, &b2, rules, Some(&next), direction);
        prop_assert!(again.changes.is_empty() && again.deletes.is_empty(), "{:?} {:?}", again.changes, again.deletes);
    }

    #[test]
    fn mirror(past in past()) {
        let (a, b, base) = trees(&past);
        let (mut a2, mut b2) = (a.clone(), b.clone());
        let direction = Direction::Mirror { into: End::Responder };
        let [for_a, for_b] = plans(&a, &b, base.as_ref(), direction);
        prop_assert!(for_a.changes.is_empty() && for_a.deletes.is_empty(), "the source is written: {:?}", for_a);
        apply(&mut b2, &for_b);
        fill(&mut a2, &mut b2);
        let shape = |tree: &MailboxTree| -> Vec<(MailboxName, Option<MailboxGuid>, bool, bool)> {
            tree.iter().map(|(name, node)| (name.clone(), node.mailbox.as_ref().map(|m| m.guid), node.directory, node.subscribed)).collect()
        };
        prop_assert_eq!(shape(&a), shape(&b2));
        let [_, again] = plans(&a, &b2, Some(&base_of(&b2, &for_b, base.as_ref())), direction);
        prop_assert!(again.changes.is_empty() && again.deletes.is_empty(), "{:?} {:?}", again.changes, again.deletes);
    }

    #[test]
    fn one_way(past in past()) {
        let (a, b, base) = trees(&past);
        let (mut a2, mut b2) = (a.clone(), b.clone());
        let direction = Direction::OneWay { into: End::Responder };
        let [for_a, for_b] = plans(&a, &b, base.as_ref(), direction);
        prop_assert!(for_a.changes.is_empty() && for_a.deletes.is_empty(), "the source is written: {:?}", for_a);
        apply(&mut b2, &for_b);
        fill(&mut a2, &mut b2);
        let now = guids(&b2);
        for (guid, (was, _)) in &guids(&a) {
            let deleted_here = base.as_ref().is_some_and(|base| base.mailboxes.contains_key(guid)) && !guids(&b).contains_key(guid);
            prop_assert!(deleted_here || now.contains_key(guid), "{} {} did not arrive", was, guid);
        }
        let next = Base { generation: dsync_model::Generation(2), ..base_of(&b2, &for_b, base.as_ref()) };
        let [_, again] = plans(&a, &b2, Some(&next), direction);
        prop_assert!(again.changes.is_empty() && again.deletes.is_empty(), "{:?} {:?}", again.changes, again.deletes);
    }
}
