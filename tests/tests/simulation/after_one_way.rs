//! Two ways, after sessions of one way that may have been cut off in the middle: whatever state those left, the source loses nothing by it.

use dsync_session::proto::{Direction, Terminus};
use dsync_tests::oracle;
use dsync_tests::world::{Faults, World};

use crate::{Failed, run_every};

fn after_one_way(mut world: World, mirror: bool) -> Result<(), Failed> {
    let fail = |what: String, world: World| Err(Box::new((what, world)));
    let into = if world.dice.roll(2) == 0 { Terminus::Initiator } else { Terminus::Responder };
    let source = if into == Terminus::Initiator { 1 } else { 0 };
    let one_way = if mirror { Direction::Mirror { into } } else { Direction::OneWay { into } };
    if world.dice.roll(2) == 0 {
        let faults = Faults { cut: 150, ..Faults::default() };
        let _ = world.sync(Direction::TwoWay, faults);
    }
    for _ in 0..=world.dice.roll(2) {
        for _ in 0..world.dice.roll(12) {
            world.user();
        }
        let _ = world.sync(one_way, Faults { cut: 60, ..Faults::default() });
    }
    let before = world.snapshot(source);
    let mut status = 2;
    for _ in 0..3 {
        status = match world.sync(Direction::TwoWay, Faults::default()) {
            Ok(status) => status,
            Err(error) => return fail(format!("{error:?}"), world),
        };
        if status == 0 {
            break;
        }
    }
    let (a, b) = (world.snapshot(0), world.snapshot(1));
    let checks = [
        if status == 0 { Ok(()) } else { Err(format!("status {status} in peace")) },
        oracle::equal(&a, &b),
        oracle::nothing_lost(&[before], &a, &world.expunged),
    ];
    match checks.into_iter().find_map(Result::err) {
        Some(what) => fail(what, world),
        None => Ok(()),
    }
}

#[test]
fn what_a_mirror_left_half_done_costs_its_source_nothing() {
    run_every(4, "two ways after a mirror", |seed| after_one_way(World::new(seed), true));
}

#[test]
fn what_one_way_left_half_done_costs_its_source_nothing() {
    run_every(4, "two ways after one way", |seed| after_one_way(World::new(seed), false));
}
