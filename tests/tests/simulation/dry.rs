//! Dry runs: they change nothing, and say what a run does.

use dsync_session::proto::{Direction, Options, Purpose, Terminus};
use dsync_session::storage::memory::Account;
use dsync_session::{MailboxReport, Report};
use dsync_tests::world::{Faults, World};

use super::{Failed, run_every};

/// A dry run leaves both accounts as they are, and says what the run behind it does.
fn dry_run(seed: u64) -> Result<(), Failed> {
    let mut world = World::new(seed);
    let into = if world.dice.roll(2) == 0 { Terminus::Initiator } else { Terminus::Responder };
    let direction = match world.dice.roll(3) {
        0 => Direction::TwoWay,
        1 => Direction::OneWay { into },
        _ => Direction::Mirror { into },
    };
    for _ in 0..2 {
        for _ in 0..world.dice.roll(12) {
            world.user();
        }
        let everything =
            |world: &World| [0, 1].map(|end| format!("{:?}", Account { calls: 0, ..world.snapshot(end) }));
        let before = everything(&world);
        let options = Options { purpose: Purpose::DryRun, ..Options::default() };
        let planned = world.sync_with(direction, options, Faults::default());
        let reports = world.reports.clone();
        if everything(&world) != before {
            return Err(Box::new(("the dry run changed something".into(), world)));
        }
        let done = world.sync(direction, Faults::default());
        let told = |reports: &[Report; 2]| {
            let quiet = |report: &MailboxReport| MailboxReport { sent: 0, ..report.clone() };
            let lists =
                reports.each_ref().map(|report| report.mailboxes.iter().map(quiet).collect::<Vec<_>>());
            let counts = reports.each_ref().map(|report| (report.local.saved, report.local.bytes));
            (lists, counts)
        };
        match (planned, done) {
            (Ok(planned), Ok(done)) => {
                let ((mut lists, counts), (real, real_counts)) = (told(&reports), told(&world.reports));
                // Subscriptions are told by dry runs only.
                let mut real = real;
                for mailbox in lists.iter_mut().flatten() {
                    mailbox.tree.take_if(|tree| tree.ends_with("subscribed"));
                }
                for list in lists.iter_mut().chain(&mut real) {
                    list.retain(|m| *m != MailboxReport { name: m.name.clone(), ..MailboxReport::default() });
                }
                if (planned, &lists, counts) != (done, &real, real_counts) {
                    let what = format!(
                        "planned {planned} {lists:#?} {counts:?}, did {done} {real:#?} {real_counts:?}"
                    );
                    return Err(Box::new((what, world)));
                }
                if reports[0].remote_mailboxes.len() != reports[1].mailboxes.len() {
                    return Err(Box::new(("the initiator was not told all".into(), world)));
                }
            }
            // What the guard refuses it only notes.
            (Ok(_), Err(error)) if error.status() == 77 && !reports[0].notes.is_empty() => {}
            other => return Err(Box::new((format!("{other:?}"), world))),
        }
    }
    Ok(())
}

#[test]
fn a_dry_run_changes_nothing_and_says_what_the_run_does() {
    run_every(2, "dry run", dry_run);
}
