//! A mailbox that fails while it is written, and one that changes while it is to be deleted.

use std::collections::BTreeSet;
use std::time::Duration;

use dsync_model::{FlagSet, MailboxGuid, MailboxName, MessageGuid, UidValidity};
use dsync_session::proto::{Direction, Options};
use dsync_session::storage::memory::{Account, StoredMailbox, StoredMessage};
use dsync_session::{Brain, Job, local};
use dsync_tests::oracle;
use dsync_tests::world::{Faults, World};

use super::{Failed, gone_in_peace, in_peace, into_one_with, run_every};

#[test]
fn a_mailbox_that_fails_is_left_out_and_no_other() {
    run_every(8, "one mailbox fails", one_fails);
    run_every(8, "one mailbox fails, stays gone", stays_gone_where_one_fails);
    run_every(8, "one mailbox fails, mirror", |seed| into_one_with(World::new(seed), true, false, true));
    run_every(8, "one mailbox fails, one-way", |seed| into_one_with(World::new(seed), false, false, true));
}

/// A mailbox that cannot be written, at either end, is left out, and no other: what leaves one for it stays there, and all is done when it can be
/// written again.
fn one_fails(seed: u64) -> Result<(), Failed> {
    let mut world = if seed.is_multiple_of(2) { World::new(seed) } else { World::of_mail_only(seed) };
    let fail = |what: String, world: World| Err(Box::new((what, world)));
    let quiet = Faults { mailbox: 1, ..Faults::default() };
    for _ in 0..3 {
        for _ in 0..world.dice.roll(12) {
            world.user();
        }
        let faults = match world.dice.roll(4) {
            0 => Faults { users: 30, ..quiet },
            1 => Faults { cut: 200, users: 60, ..quiet },
            _ => quiet,
        };
        let before = [world.snapshot(0), world.snapshot(1)];
        let outcome = world.sync(Direction::TwoWay, faults);
        if faults.cut == 0 && outcome.is_err() {
            return fail(format!("one mailbox ended the session: {outcome:?}"), world);
        }
        let after = [world.snapshot(0), world.snapshot(1)];
        for end in (0..2).filter(|_| faults.users == 0) {
            // What leaves an end leaves it because a user removed it, not because it has no place to go. (What users move while the session
            // runs is at their end, and comes later.)
            if let Err(what) = oracle::nothing_lost(&before[end..=end], &after[end], &world.expunged) {
                return fail(format!("end {end}: {what}"), world);
            }
        }
        if faults.users == 0 && outcome.is_ok() {
            let problems = world.reports.iter().flat_map(|report| &report.problems);
            let problems = problems.cloned().collect::<Vec<_>>().join("\n");
            // A name that the one that failed was to give up is not free for another.
            let is_told = |name: &MailboxName, guid: MailboxGuid| {
                [name.to_string(), guid.to_string()].iter().any(|text| problems.contains(text))
            };
            let told: BTreeSet<MailboxGuid> = after
                .iter()
                .flat_map(|account| &account.mailboxes)
                .filter(|(name, mailbox)| is_told(name, mailbox.guid))
                .map(|(_, mailbox)| mailbox.guid)
                .collect();
            let others = after.clone().map(|account| {
                let Account { mut mailboxes, .. } = account;
                mailboxes.retain(|_, mailbox| !told.contains(&mailbox.guid));
                Account { mailboxes, ..Account::default() }
            });
            if let Err(what) = oracle::equal(&others[0], &others[1]) {
                return fail(format!("but for {problems:?}: {what}"), world);
            }
        }
        if let Some(what) = world.remember() {
            return fail(what, world);
        }
    }
    in_peace(world)
}

/// What users expunge or move stays so, whichever mailbox fails when that is to be taken over.
fn stays_gone_where_one_fails(seed: u64) -> Result<(), Failed> {
    let mut world = World::of_mail_only(seed);
    for _ in 0..2 {
        // What a mailbox got while it failed is in no base yet.
        for faults in [Faults::default(), Faults { mailbox: 1, ..Faults::default() }] {
            for _ in 0..world.dice.roll(8) {
                world.user();
            }
            for _ in 0..=world.dice.roll(2) {
                if let Err(error) = world.sync(Direction::TwoWay, faults) {
                    return Err(Box::new((format!("{error:?}"), world)));
                }
            }
            if !(0..3).any(|_| matches!(world.sync(Direction::TwoWay, Faults::default()), Ok(0))) {
                return Err(Box::new(("no status 0 in peace".into(), world)));
            }
        }
    }
    gone_in_peace(world)
}

/// Mail that is delivered to a mailbox that the other end deleted, at any step of the session that deletes it: it is kept, and only it.
#[test]
fn mail_that_comes_while_its_mailbox_is_deleted_brings_nothing_back() {
    let work = MailboxName::parse("Work", '/').expect("valid");
    let guids = |world: &World, end: usize| {
        let account = world.ends[end].account();
        let messages = account.mailboxes.get(&work).map(|mailbox| mailbox.messages.clone());
        messages.map(|messages| {
            messages.into_values().map(|message| message.guid.to_string()).collect::<Vec<_>>()
        })
    };
    let deliver = |world: &World, guid: &str| {
        let message = StoredMessage {
            guid: MessageGuid::new(guid).expect("valid"),
            flags: FlagSet::default(),
            received: None,
            body: format!("Message-ID: {guid}\n\n").into_bytes().into(),
        };
        world.ends[0]
            .account()
            .mailboxes
            .get_mut(&work)
            .is_some_and(|mailbox| mailbox.deliver(message).is_some())
    };
    let (mut kept, mut refused) = (0, 0);
    for step in 0.. {
        let mut world = World::new(1);
        let mailbox = StoredMailbox::new(MailboxGuid([0x44; 16]), UidValidity::new(7).expect("above 0"));
        world.ends[0].account().mailboxes.insert(work.clone(), mailbox);
        assert!(deliver(&world, "old"));
        assert_eq!(world.sync(Direction::TwoWay, Faults::default()).expect("ends"), 0);
        assert_eq!(guids(&world, 1), Some(vec!["old".to_owned()]));
        world.ends[1].account().mailboxes.remove(&work);
        let job = Job { direction: Direction::TwoWay, options: Options::default() };
        let mut a = Brain::initiator(Box::new(world.ends[0].clone()), job);
        let mut b = Brain::responder(Box::new(world.ends[1].clone()), Duration::ZERO);
        let (mut steps, mut arrived) = (0, None);
        let reports = local::run(&mut a, &mut b, &mut |_| {
            if steps == step {
                arrived = Some(deliver(&world, "new"));
            }
            steps += 1;
            true
        });
        let (report, _) = reports.expect("ends");
        refused += usize::from(report.status() == 2);
        let Some(arrived) = arrived else { break };
        for _ in 0..2 {
            if world.sync(Direction::TwoWay, Faults::default()).expect("ends") == 0 {
                break;
            }
        }
        let expected = arrived.then(|| vec!["new".to_owned()]);
        assert_eq!([guids(&world, 0), guids(&world, 1)], [expected.clone(), expected], "step {step}");
        kept += usize::from(arrived);
    }
    assert!(kept > 0 && refused > 0, "{kept} {refused}");
}
