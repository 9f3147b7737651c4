//! Two ways, after sessions of one way that may have been cut off in the middle: whatever state those left, the source loses nothing by it.

use dsync_session::proto::Direction;
use dsync_tests::oracle;
use dsync_tests::world::{Faults, World};

use crate::{Failed, into_either, run_every, settles};

fn after_one_way(mut world: World, mirror: bool) -> Result<(), Failed> {
    let (one_way, source) = into_either(&mut world, mirror);
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
    let settled = settles(&mut world);
    let (a, b) = (world.snapshot(0), world.snapshot(1));
    let checked = settled
        .and_then(|()| oracle::equal(&a, &b))
        .and_then(|()| oracle::nothing_lost(&[before], &a, &world.expunged));
    checked.map_err(|what| Box::new((what, world)))
}

#[test]
fn what_a_mirror_left_half_done_costs_its_source_nothing() {
    run_every(4, "two ways after a mirror", |seed| after_one_way(World::new(seed), true));
}

#[test]
fn what_one_way_left_half_done_costs_its_source_nothing() {
    run_every(4, "two ways after one way", |seed| after_one_way(World::new(seed), false));
}
