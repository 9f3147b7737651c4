//! The laws of the merge, on any two mailboxes with any common past.

use std::collections::BTreeMap;

use dsync_merge::{Both, Direction, End, MailboxView, MessagePlan, messages};
use dsync_model::{
    Digest, FlagSet, Flags, Keyword, MailboxBase, MailboxGuid, MailboxStatus, Message, MessageAction,
    MessageGuid, ModSeq, Since, Uid, UidValidity, changes_since,
};
use proptest::prelude::*;

/// UID to GUID and flags, and UIDNEXT.
#[derive(Clone, Debug, PartialEq)]
struct Mailbox {
    messages: BTreeMap<u32, (String, FlagSet)>,
    uid_next: u32,
}

impl Mailbox {
    fn list(&self) -> Vec<Message> {
        let message = |(uid, (guid, flags)): (&u32, &(String, FlagSet))| Message {
            uid: Uid::new(*uid).expect("not 0"),
            guid: MessageGuid::new(guid).expect("valid"),
            flags: flags.clone(),
            modseq: ModSeq::NONE,
            received: None,
            size: None,
        };
        self.messages.iter().map(message).collect()
    }

    fn status(&self) -> MailboxStatus {
        MailboxStatus {
            guid: MailboxGuid([1; 16]),
            uid_validity: UidValidity::new(1).expect("not 0"),
            uid_next: Uid::new(self.uid_next).expect("not 0"),
            messages: self.messages.len() as u32,
            highest_modseq: ModSeq::NONE,
            digest: Digest::of(&self.list()),
        }
    }

    /// Does what a storage does with a plan; bodies come from how the other end was.
    fn apply(&mut self, plan: &MessagePlan, other: &Mailbox) {
        for action in plan.actions.iter().chain(&plan.expunges) {
            match action {
                MessageAction::Renumber { from, to } => {
                    let message = self.messages.remove(&from.get()).expect("renumbers what is there");
                    assert!(self.messages.insert(to.get(), message).is_none(), "UID {to} is taken");
                }
                MessageAction::Flags { uid, add, remove, .. } => {
                    let (_, flags) = self.messages.get_mut(&uid.get()).expect("flags what is there");
                    *flags = flags.minus(remove).union(add);
                }
                MessageAction::Expunge { .. } => {}
            }
        }
        for fetch in &plan.fetches {
            let (guid, _) = other.messages.get(&fetch.from.get()).expect("asks for what is there");
            assert!(fetch.guid.as_ref().is_none_or(|wanted| wanted.as_str() == guid));
            let message = (guid.clone(), fetch.flags.clone());
            assert!(self.messages.insert(fetch.uid.get(), message).is_none(), "UID {} is taken", fetch.uid);
        }
        for action in &plan.expunges {
            let MessageAction::Expunge { uid, .. } = action else { panic!("{action:?} among the expunges") };
            assert!(self.messages.remove(&uid.get()).is_some(), "expunges what is there");
        }
        let highest = self.messages.keys().next_back().map_or(1, |uid| uid + 1);
        self.uid_next = self.uid_next.max(plan.uid_next_min.get()).max(highest);
    }
}

fn flag_set() -> impl Strategy<Value = FlagSet> {
    (0u8..32, 0u8..4).prop_map(|(bits, keywords)| FlagSet {
        system: Flags::from_bits(bits).expect("below 32"),
        keywords: ["Work", "$Label1"]
            .iter()
            .enumerate()
            .filter(|(i, _)| keywords >> i & 1 == 1)
            .map(|(_, k)| Keyword::new(k).expect("valid"))
            .collect(),
    })
}

/// What a user does to the common mailbox: per known UID keep, expunge or flag; then deliveries.
type Deeds = (Vec<(u8, FlagSet)>, Vec<(u8, FlagSet)>);

fn deeds() -> impl Strategy<Value = Deeds> {
    (prop::collection::vec((0u8..4, flag_set()), 8), prop::collection::vec((0u8..30, flag_set()), 0..6))
}

fn after(common: &Mailbox, (known, new): &Deeds, end: char) -> Mailbox {
    let mut mailbox = common.clone();
    for (uid, (what, flags)) in (1u32..).zip(known) {
        match what {
            0 => drop(mailbox.messages.remove(&uid)),
            1 => {
                if let Some((_, now)) = mailbox.messages.get_mut(&uid) {
                    *now = flags.clone();
                }
            }
            _ => {}
        }
    }
    for (n, (guid, flags)) in new.iter().enumerate() {
        // Some GUIDs appear at both ends: the same message saved twice, at most once an end.
        let guid = if *guid < 10 { format!("shared{}", guid % 4) } else { format!("{end}{guid}.{n}") };
        if mailbox.messages.values().all(|(known, _)| *known != guid) {
            mailbox.messages.insert(mailbox.uid_next, (guid, flags.clone()));
            mailbox.uid_next += 1;
        }
    }
    mailbox
}

fn common() -> impl Strategy<Value = Mailbox> {
    prop::collection::vec(flag_set(), 0..8).prop_map(|flags| {
        let messages: BTreeMap<u32, (String, FlagSet)> =
            (1u32..).zip(flags).map(|(uid, flags)| (uid, (format!("c{uid}"), flags))).collect();
        Mailbox { uid_next: messages.len() as u32 + 1, messages }
    })
}

fn base_of(mailbox: &Mailbox) -> MailboxBase {
    let mut base =
        MailboxBase::new(UidValidity::new(1).expect("not 0"), Uid::new(mailbox.uid_next).expect("not 0"));
    mailbox.list().iter().for_each(|message| base.insert(message.uid, &message.flags));
    base
}

fn plans(a: &Mailbox, b: &Mailbox, base: Option<&MailboxBase>, direction: Direction) -> [MessagePlan; 2] {
    let since = base.map_or(Since::All, Since::Base);
    let statuses = [a.status(), b.status()];
    let lists = [changes_since(&a.list(), since), changes_since(&b.list(), since)];
    let filtered = dsync_model::UidSet::new();
    let views = || {
        Both([0, 1].map(|i| MailboxView { status: &statuses[i], changes: &lists[i], filtered: &filtered }))
    };
    [End::Initiator, End::Responder].map(|end| messages(views(), base, direction, end).expect("merges"))
}

fn guids(mailbox: &Mailbox) -> Vec<&String> {
    mailbox.messages.values().map(|(guid, _)| guid).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// mirror-image, converges, idle-still, no-loss, and: what one end changed alone survives.
    #[test]
    fn two_way((common, one, two, known) in (common(), deeds(), deeds(), any::<bool>())) {
        let (a, b) = (after(&common, &one, 'a'), after(&common, &two, 'b'));
        let base = known.then(|| base_of(&common));
        let [for_a, for_b] = plans(&a, &b, base.as_ref(), Direction::TwoWay);
        prop_assert_eq!(&for_a.agreed, &for_b.agreed);
        prop_assert_eq!(&for_a.compared, &for_b.compared);
        let (mut a2, mut b2) = (a.clone(), b.clone());
        a2.apply(&for_a, &b);
        b2.apply(&for_b, &a);
        prop_assert_eq!(&a2, &b2);
        let held: Vec<u32> = a2.messages.keys().copied().collect();
        prop_assert_eq!(for_a.agreed.uids.iter().collect::<Vec<_>>(), held);
        for again in plans(&a2, &b2, Some(&for_a.agreed), Direction::TwoWay).iter().chain(&plans(&a2, &b2, None, Direction::TwoWay)) {
            prop_assert!(again.actions.is_empty() && again.fetches.is_empty() && again.expunges.is_empty());
        }
        for guid in guids(&a).into_iter().chain(guids(&b)) {
            let expunged = known && guids(&common).contains(&guid) && !(guids(&a).contains(&guid) && guids(&b).contains(&guid));
            prop_assert_eq!(guids(&a2).contains(&guid), !expunged, "{}", guid);
        }
        if known {
            for (uid, (guid, before)) in &common.messages {
                let (Some((_, in_a)), Some((_, in_b)), Some((now, flags))) = (a.messages.get(uid), b.messages.get(uid), a2.messages.get(uid)) else { continue };
                prop_assert_eq!(now, guid);
                let expected = before.union(in_a).union(in_b).minus(&before.minus(in_a)).minus(&before.minus(in_b));
                prop_assert_eq!(flags, &expected);
            }
        }
    }

    /// source-untouched, and the mirror becomes the same.
    #[test]
    fn mirror((common, one, two, known, into_first) in (common(), deeds(), deeds(), any::<bool>(), any::<bool>())) {
        let (a, b) = (after(&common, &one, 'a'), after(&common, &two, 'b'));
        let base = known.then(|| base_of(&common));
        let into = if into_first { End::Initiator } else { End::Responder };
        let [for_a, for_b] = plans(&a, &b, base.as_ref(), Direction::Mirror { into });
        let (source, mut copy, source_plan, plan) = if into_first { (&b, a.clone(), for_b, for_a) } else { (&a, b.clone(), for_a, for_b) };
        prop_assert!(source_plan.actions.is_empty() && source_plan.fetches.is_empty() && source_plan.expunges.is_empty());
        copy.apply(&plan, source);
        prop_assert_eq!(&copy.messages, &source.messages);
        prop_assert!(copy.uid_next >= source.uid_next);
    }

    /// source-untouched; the destination has all of the source and keeps its own; a second run does nothing; no UID names one message
    /// here and another there, also after more mail came to both.
    #[test]
    fn one_way((common, one, two, more, known) in (common(), deeds(), deeds(), deeds(), any::<bool>())) {
        let (a, b) = (after(&common, &one, 'a'), after(&common, &two, 'b'));
        let base = known.then(|| base_of(&common));
        let direction = Direction::OneWay { into: End::Responder };
        let [for_a, for_b] = plans(&a, &b, base.as_ref(), direction);
        prop_assert!(for_a.actions.is_empty() && for_a.fetches.is_empty() && for_a.expunges.is_empty());
        let mut copy = b.clone();
        copy.apply(&for_b, &a);
        prop_assert_eq!(named_twice(&a, &copy), None);
        for guid in guids(&a) {
            let expunged_there = known && guids(&common).contains(&guid) && !guids(&b).contains(&guid);
            prop_assert_eq!(guids(&copy).contains(&guid), !expunged_there, "{}", guid);
        }
        for guid in guids(&b) {
            let expunged_here = known && guids(&common).contains(&guid) && !guids(&a).contains(&guid);
            prop_assert_eq!(guids(&copy).contains(&guid), !expunged_here, "{}", guid);
        }
        let [_, again] = plans(&a, &copy, Some(&for_b.agreed), direction);
        prop_assert!(again.actions.is_empty() && again.fetches.is_empty() && again.expunges.is_empty(), "{:?}", again);
        let (later, mut later_copy) = (after(&a, &more, 'c'), after(&copy, &more, 'd'));
        let [_, for_copy] = plans(&later, &later_copy, Some(&for_b.agreed), direction);
        later_copy.apply(&for_copy, &later);
        prop_assert_eq!(named_twice(&later, &later_copy), None);
    }
}

/// A UID that names one message here and another there.
fn named_twice(a: &Mailbox, b: &Mailbox) -> Option<u32> {
    let differs = |(uid, (guid, _)): &(&u32, &(String, FlagSet))| {
        b.messages.get(uid).is_some_and(|(other, _)| other != guid)
    };
    a.messages.iter().find(differs).map(|(uid, _)| *uid)
}

/// A message that both ends have under different UIDs is one message, until an end has it no more.
#[test]
fn what_is_apart_is_one_message() {
    let of = |list: &[(u32, &str)]| Mailbox {
        messages: list.iter().map(|(uid, guid)| (*uid, ((*guid).to_owned(), FlagSet::default()))).collect(),
        uid_next: 9,
    };
    let uid = |n| Uid::new(n).expect("not 0");
    let mut base = base_of(&of(&[(1, "old")]));
    base.apart.insert([uid(5), uid(3)]);
    let after = |a: &[(u32, &str)], b: &[(u32, &str)], direction| {
        let (a, b) = (of(a), of(b));
        let [for_a, for_b] = plans(&a, &b, Some(&base), direction);
        assert_eq!(for_a.agreed, for_b.agreed);
        let (mut a2, mut b2) = (a.clone(), b.clone());
        a2.apply(&for_a, &b);
        b2.apply(&for_b, &a);
        let guids =
            [&a2, &b2].map(|mailbox| guids(mailbox).into_iter().cloned().collect::<Vec<_>>().join(" "));
        (guids, for_a.agreed.apart)
    };
    let both = |guids: &str| [guids.to_owned(), guids.to_owned()];
    let (with, without) = ([(1, "old"), (5, "m")], [(1, "old")]);
    let with_other = [(1, "old"), (3, "m")];
    let none = || std::collections::BTreeSet::new();
    let two_way = Direction::TwoWay;
    assert_eq!(after(&with, &with_other, two_way), (both("old m"), none()));
    assert_eq!(after(&without, &with_other, two_way), (both("old"), none()));
    assert_eq!(after(&with, &without, two_way), (both("old"), none()));
    assert_eq!(after(&without, &without, two_way), (both("old"), none()));
    // It got another UID since, or another message was delivered.
    assert_eq!(after(&[(1, "old"), (7, "m")], &with_other, two_way), (both("old m"), none()));
    assert_eq!(after(&[(1, "old"), (7, "n")], &with_other, two_way), (both("old n"), none()));
    let one_way = Direction::OneWay { into: End::Responder };
    assert_eq!(after(&with, &with_other, one_way), (both("old m"), base.apart.clone()));
    assert_eq!(after(&without, &with_other, one_way), (both("old"), none()));
    assert_eq!(after(&with, &without, one_way), (["old m".into(), "old".into()], base.apart.clone()));
    let mirror = Direction::Mirror { into: End::Responder };
    assert_eq!(after(&with, &with_other, mirror), (both("old m"), none()));
    assert_eq!(after(&without, &with_other, mirror), (both("old"), none()));
    assert_eq!(after(&with, &without, mirror), (both("old m"), none()));
}
