//! Worlds of one seed each: users at work, sessions cut and crashed, storages that fail; then peace, and the oracles.
//!
//! `DSYNC_SEEDS=FROM..TO cargo test -p dsync-tests --test simulation` runs other seeds; see docs/simulation.md.

#[path = "simulation/after_one_way.rs"]
mod after_one_way;
#[path = "simulation/dry.rs"]
mod dry;
#[path = "simulation/failing.rs"]
mod failing;
#[path = "simulation/moving.rs"]
mod moving;

use std::collections::BTreeSet;

use dsync_model::{AttributeKey, AttributeValue, MailboxName, MessageGuid};
use dsync_session::proto::{Direction, Options, Terminus};
use dsync_session::storage::memory::Account;
use dsync_tests::oracle;
use dsync_tests::world::{Faults, World};

/// What was wrong, and the world as it was then.
type Failed = Box<(String, World)>;

/// Seeds that once failed, and what they found (two-way unless said otherwise). Those within the default range run twice: cheap.
const ONCE_FAILED: &[u64] = &[
    4,     // both ends found the base contradicted, and one took the other's new list for a second one
    17,    // a mailbox came back with UIDs that its deleted self had given away
    25,    // mirror: UIDNEXT was not carried over when no message was
    31,    // one-way: channels were numbered before settled mailboxes were left out
    93,    // a UID given to a delivery that was gone again was used for a save
    365,   // a skip and an end of saves of the next round came before this round was settled
    1867, // mail that came below the agreed UIDNEXT during a sync went with its mailbox when the other end deleted it
    84,   // filtered: what was kept back at one end hid a message of the same UID at the other
    304, // flags: what was set in a mailbox whose mail the other end moved, and which it deleted then, was lost
    476, // stays gone: what was expunged during a round that had begun with nothing to do came back
    1265, // stays gone: a message came back that was expunged before it got its new UID
    2721, // stays gone: a save got another UID than planned, was expunged, and came back
    3678, // stays gone: a message moved during a round that had begun with nothing to do was in both places
    664, // one fails: a mailbox with mail that was moved to the failing one never got a base, and what was expunged in it came back
    1492, // one fails: what was moved to a mailbox that could not be made left its old place
    15420, // one fails: the same, moved to one that could not get the other end's GUID
    6430, // a mailbox made again took UIDs that the base knew, and mail under them went with it
];

fn seeds(usual: &str) -> std::ops::Range<u64> {
    let range = std::env::var("DSYNC_SEEDS").unwrap_or_else(|_| usual.into());
    let (from, to) = range.split_once("..").expect("DSYNC_SEEDS is FROM..TO");
    from.parse().expect("a number")..to.parse().expect("a number")
}

/// With `filters`, the first syncs bring over only some of the mail: the rest is never taken for expunged.
fn two_way(mut world: World, filters: bool) -> Result<(), Failed> {
    let fail = |what: String, world: World| Err(Box::new((what, world)));
    for _ in 0..3 {
        for _ in 0..world.dice.roll(12) {
            world.user();
        }
        let faults = match world.dice.roll(4) {
            0 => Faults::default(),
            1 => Faults { cut: 60, ..Faults::default() },
            2 => Faults { users: 30, ..Faults::default() },
            _ => Faults { cut: 200, users: 60, storage: 2, ..Faults::default() },
        };
        let options = if filters { world.some_filter() } else { Options::default() };
        let outcome = world.sync_with(Direction::TwoWay, options, faults);
        if let Err(error) = &outcome
            && error.status() == 76
        {
            let what = format!("{error:?}");
            return fail(what, world);
        }
        if let Some(what) = world.remember() {
            return fail(what, world);
        }
    }
    in_peace(world)
}

/// Nothing fails any more, and nobody works: three sessions are enough.
fn settles(world: &mut World) -> Result<(), String> {
    let mut status = 2;
    for _ in 0..3 {
        status = world.sync(Direction::TwoWay, Faults::default()).map_err(|error| format!("{error:?}"))?;
        if status == 0 {
            return Ok(());
        }
    }
    Err(format!("status {status} in peace"))
}

/// Nothing fails any more, and nobody works: both ends become equal, and nothing is lost or twice.
fn in_peace(mut world: World) -> Result<(), Failed> {
    let fail = |what: String, world: World| Err(Box::new((what, world)));
    let before = [world.snapshot(0), world.snapshot(1)];
    let settled = settles(&mut world);
    let (a, b) = (world.snapshot(0), world.snapshot(1));
    let checks = [
        settled,
        oracle::equal(&a, &b),
        oracle::nothing_lost(&before, &a, &world.expunged),
        oracle::nothing_ever_lost(&world, &a),
        oracle::nothing_twice(&a, &several(&world)),
        oracle::copies_kept(&before, &a, &world.copies, &touched(&world)),
        world.remember().map_or(Ok(()), Err),
    ];
    for check in checks {
        if let Err(what) = check {
            return fail(what, world);
        }
    }
    // idle-still
    match world.sync(Direction::TwoWay, Faults::default()) {
        Ok(0) => {}
        other => return fail(format!("idle sync: {other:?}"), world),
    }
    let (a2, b2) = (world.snapshot(0), world.snapshot(1));
    let still = oracle::equal(&a, &a2).and(oracle::equal(&b, &b2));
    if still.is_err() || bases(&a) != bases(&a2) || bases(&b) != bases(&b2) {
        return fail(format!("an idle sync changed something: {still:?}"), world);
    }
    Ok(())
}

/// Of what users changed at both ends the later change counts, a removal too, whichever end began, with a base and without; what
/// arrives is logged with the time it has at the other end.
#[test]
fn the_later_change_of_an_attribute_arrives() {
    for early in [0, 1] {
        let late = 1 - early;
        let mut world = World::new(1);
        let change = |world: &World, end: usize, key: &str, value: &str, at: u32| {
            let mut account = world.ends[end].account();
            let inbox = account.mailboxes[&MailboxName::inbox()].guid;
            let key = AttributeKey { key: key.into(), ..AttributeKey::first_of(inbox) };
            account.attribute_log.insert(key.clone(), (value.is_empty(), at));
            match value {
                "" => account.attributes.remove(&key),
                value => account.attributes.insert(key, AttributeValue::Bytes(value.into())),
            };
        };
        let told = |world: &World, end: usize| {
            let account = world.ends[end].account();
            let log = account.attribute_log.iter().map(|(key, (removed, at))| {
                let value = account.attributes.get(key);
                assert_eq!(value.is_none(), *removed, "{key:?}");
                let value = value.map(|value| match value {
                    AttributeValue::Bytes(bytes) => String::from_utf8_lossy(bytes).into_owned(),
                    AttributeValue::TooLarge => unreachable!("none was made"),
                });
                (key.key.clone(), value.unwrap_or_default(), *at)
            });
            log.collect::<Vec<_>>()
        };
        let all = |entries: &[(&str, &str, u32)]| {
            entries.iter().map(|(key, value, at)| ((*key).into(), (*value).into(), *at)).collect::<Vec<_>>()
        };
        change(&world, early, "both", "z", 105);
        change(&world, late, "both", "b", 109);
        change(&world, early, "gone", "x", 105);
        change(&world, late, "gone", "", 108);
        change(&world, early, "kept", "", 105);
        change(&world, late, "kept", "x", 106);
        change(&world, early, "one", "x", 107);
        assert_eq!(world.sync(Direction::TwoWay, Faults::default()).expect("ends"), 0);
        let agreed = all(&[("both", "b", 109), ("gone", "", 108), ("kept", "x", 106), ("one", "x", 107)]);
        assert_eq!((told(&world, 0), told(&world, 1)), (agreed.clone(), agreed), "{early}");
        change(&world, late, "both", "y", 112);
        change(&world, early, "both", "", 111);
        change(&world, early, "kept", "w", 120);
        change(&world, late, "kept", "", 121);
        // Only one end changed it since: its clock may be slow.
        change(&world, early, "one", "v", 1);
        assert_eq!(world.sync(Direction::TwoWay, Faults::default()).expect("ends"), 0);
        let agreed = all(&[("both", "y", 112), ("gone", "", 108), ("kept", "", 121), ("one", "v", 1)]);
        assert_eq!((told(&world, 0), told(&world, 1)), (agreed.clone(), agreed), "{early}");
    }
}

/// Messages that may well be twice in a mailbox.
fn several(world: &World) -> BTreeSet<MessageGuid> {
    let delivered = world.copies.iter().filter(|(_, copies)| **copies > 1).map(|(name, _)| name);
    world.moved.iter().chain(delivered).cloned().collect()
}

/// Messages that users removed or moved.
fn touched(world: &World) -> BTreeSet<MessageGuid> {
    &world.moved | &world.expunged
}

/// The notes that count: others are caches.
fn bases(account: &Account) -> Vec<(&String, &Vec<u8>)> {
    account.notes.iter().filter(|(name, _)| name.starts_with("base-")).collect()
}

/// What users expunge or move stays so, whatever they do while sessions run.
fn stays_gone(seed: u64) -> Result<(), Failed> {
    let mut world = World::of_mail_only(seed);
    for _ in 0..3 {
        for _ in 0..world.dice.roll(8) {
            world.user();
        }
        let faults = Faults { users: 30, ..Faults::default() };
        if let Err(error) = world.sync(Direction::TwoWay, faults) {
            return Err(Box::new((format!("{error:?}"), world)));
        }
    }
    gone_in_peace(world)
}

/// In peace, what is gone is still gone.
fn gone_in_peace(mut world: World) -> Result<(), Failed> {
    let done = (0..3).any(|_| matches!(world.sync(Direction::TwoWay, Faults::default()), Ok(0)));
    let after = world.snapshot(0);
    let kept = oracle::stays_gone(&world, &after).and(oracle::nothing_ever_lost(&world, &after));
    match (done, kept) {
        (true, Ok(())) => Ok(()),
        (done, kept) => Err(Box::new((format!("{done} {kept:?}"), world))),
    }
}

/// In peace, flags that one end changed are changed at both ends in the end.
fn flags(seed: u64) -> Result<(), Failed> {
    let mut world = World::new(seed);
    let peace =
        |world: &mut World| (0..3).any(|_| matches!(world.sync(Direction::TwoWay, Faults::default()), Ok(0)));
    for _ in 0..3 {
        for _ in 0..world.dice.roll(16) {
            world.user();
        }
        if !peace(&mut world) {
            return Err(Box::new(("no status 0 in peace".into(), world)));
        }
        let base = world.snapshot(0);
        for _ in 0..world.dice.roll(16) {
            world.user();
        }
        let before = [world.snapshot(0), world.snapshot(1)];
        let done = peace(&mut world);
        let kept = oracle::flags_kept(&base, [&before[0], &before[1]], &world.snapshot(0));
        if let (false, _) | (_, Err(_)) = (done, &kept) {
            return Err(Box::new((format!("{done} {kept:?}"), world)));
        }
    }
    Ok(())
}

/// Into one end or the other, and which of them is the source.
fn into_either(world: &mut World, mirror: bool) -> (Direction, usize) {
    let into = if world.dice.roll(2) == 0 { Terminus::Initiator } else { Terminus::Responder };
    let source = if into == Terminus::Initiator { 1 } else { 0 };
    (if mirror { Direction::Mirror { into } } else { Direction::OneWay { into } }, source)
}

fn into_one(world: World, mirror: bool, filters: bool) -> Result<(), Failed> {
    into_one_with(world, mirror, filters, false)
}

/// With `failing`, a mailbox at either end fails when it is written, in all runs but the last.
fn into_one_with(mut world: World, mirror: bool, filters: bool, failing: bool) -> Result<(), Failed> {
    let (direction, source) = into_either(&mut world, mirror);
    for round in 0..3 {
        for _ in 0..world.dice.roll(12) {
            world.user();
        }
        let filtered = filters && round < 2;
        let options = if filtered { world.some_filter() } else { Options::default() };
        let before = world.snapshot(source);
        let mut copied = world.snapshot(1 - source);
        let faults = match failing {
            true if round < 2 => Faults { mailbox: 1, ..Faults::default() },
            true => Faults::default(),
            false if world.dice.roll(2) == 0 => Faults { cut: 100, ..Faults::default() },
            false => Faults::default(),
        };
        let outcome = world.sync_with(direction, options, faults);
        if let Err(what) = oracle::untouched(&before, &world.snapshot(source)) {
            return Err(Box::new((what, world)));
        }
        // What both have the destination goes on to have, though there is no place for it now. (A mirror's users are not asked.)
        let there: BTreeSet<&MessageGuid> = before
            .mailboxes
            .values()
            .filter(|mailbox| !world.deleted.contains(&mailbox.guid))
            .flat_map(|mailbox| mailbox.messages.values())
            .map(|m| &m.guid)
            .collect();
        for mailbox in copied.mailboxes.values_mut() {
            mailbox.messages.retain(|_, message| there.contains(&message.guid));
        }
        if failing
            && !mirror
            && let Err(what) = oracle::nothing_lost(&[copied], &world.snapshot(1 - source), &world.expunged)
        {
            return Err(Box::new((format!("at the destination: {what}"), world)));
        }
        match outcome {
            Ok(0) if filtered => {}
            Ok(77) if faults.mailbox > 0 => {}
            Ok(0) if mirror => {
                let check = same_mail(&world, source);
                if let Err(what) = check {
                    return Err(Box::new((what, world)));
                }
            }
            Ok(0) => {
                // A mailbox that the destination's user deleted stays deleted there.
                let mut before = before;
                before.mailboxes.retain(|_, mailbox| !world.deleted.contains(&mailbox.guid));
                let held = oracle::nothing_lost(&[before], &world.snapshot(1 - source), &world.expunged);
                if let Err(what) = held {
                    return Err(Box::new((what, world)));
                }
            }
            Err(error) if matches!(error.status(), 75 | 77) => {}
            other => return Err(Box::new((format!("{other:?}"), world))),
        }
    }
    Ok(())
}

/// A mirror is equal but for UIDNEXT, which never goes back.
fn same_mail(world: &World, source: usize) -> Result<(), String> {
    let (from, mut into) = (world.snapshot(source), world.snapshot(1 - source));
    for (name, mailbox) in &mut into.mailboxes {
        if let Some(twin) = from.mailboxes.get(name).filter(|twin| twin.uid_next <= mailbox.uid_next) {
            mailbox.uid_next = twin.uid_next;
        }
    }
    oracle::equal(&from, &into)
}

fn run(what: &str, world: impl Fn(u64) -> Result<(), Failed>) {
    run_every(1, what, world);
}

/// The same with every n-th seed.
fn run_every(nth: usize, what: &str, world: impl Fn(u64) -> Result<(), Failed>) {
    for seed in ONCE_FAILED.iter().copied().chain(seeds("0..20000").step_by(nth)) {
        check(what, seed, &world);
    }
}

/// The same with ends that keep no GUIDs.
fn run_without_guids(what: &str, world: impl Fn(World) -> Result<(), Failed>) {
    for seed in seeds("0..5000") {
        check(what, seed, |seed| world(World::without_guids(seed)));
    }
}

fn check(what: &str, seed: u64, world: impl Fn(u64) -> Result<(), Failed>) {
    if let Err(failed) = world(seed) {
        let (wrong, world) = *failed;
        panic!("{what}: seed {seed}: {wrong}\n{}", world.trace.join("\n"));
    }
}

#[test]
fn two_way_syncs_converge_and_lose_nothing() {
    run("two-way", |seed| two_way(World::new(seed), false));
}

#[test]
fn what_users_expunge_or_move_stays_so() {
    run_every(8, "stays gone", stays_gone);
}

#[test]
fn flags_that_one_end_changed_arrive() {
    run_every(16, "flags", flags);
}

#[test]
fn what_a_filter_kept_back_is_not_taken_for_expunged() {
    run_every(4, "filtered", |seed| two_way(World::new(seed), true));
    run_every(4, "filtered mirror", |seed| into_one(World::new(seed), true, true));
    run_every(4, "filtered one-way", |seed| into_one(World::new(seed), false, true));
}

#[test]
fn mirrors_become_equal_and_leave_the_source_alone() {
    run("mirror", |seed| into_one(World::new(seed), true, false));
}

#[test]
fn one_way_syncs_bring_all_and_leave_the_source_alone() {
    run("one-way", |seed| into_one(World::new(seed), false, false));
}

#[test]
fn ends_without_guids_lose_and_double_nothing() {
    run_without_guids("two-way without GUIDs", |world| two_way(world, false));
}

#[test]
fn mirrors_without_guids_become_equal() {
    run_without_guids("mirror without GUIDs", |world| into_one(world, true, false));
}

#[test]
fn one_way_syncs_without_guids_bring_all() {
    run_without_guids("one-way without GUIDs", |world| into_one(world, false, false));
}
