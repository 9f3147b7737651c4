//! Many users side by side: never stops at the first failure, tries again what may pass, and sums up.
//!
//! Threads take users from one [`Queue`]; each keeps its connection for the users that follow. What is told goes through the
//! [`Board`]. One user's session is in [`jobs`](crate::jobs).

mod board;
mod queue;
mod resume;

use crate::Failed;
use crate::args::{Common, Globals, Users};
use crate::connection::Connections;
use crate::jobs::{Done, Session};
use crate::{report, users, worse};
use board::Board;
use queue::{Queue, Task};
use resume::Finished;

/// How often a user is tried in all, when what fails may pass.
const ATTEMPTS_MAX: u32 = 3;

/// What came of one attempt at one user.
struct Outcome {
    /// What each destination's session did.
    done: Vec<Done>,
    failed: Option<Failed>,
}

impl Outcome {
    fn status(&self) -> u8 {
        let failed = self.failed.as_ref().map(|failed| failed.status);
        self.done.iter().map(|done| done.report.status()).chain(failed).fold(0, worse)
    }
}

/// Runs sessions for all `names`; gives the exit status of them all.
pub fn run(
    session: &Session<'_>,
    names: Vec<String>,
    users: &Users,
    common: &Common,
    globals: &Globals,
) -> Result<u8, Failed> {
    let finished = match &users.resume {
        Some(path) => Some(Finished::open(path, &purpose(session, common))?),
        None => None,
    };
    let before = names.len();
    let names: Vec<String> =
        names.into_iter().filter(|name| !finished.as_ref().is_some_and(|known| known.has(name))).collect();
    let board = Board::new(names.len(), before - names.len(), globals.verbose, common.json);
    let workers = usize::from(users.jobs).min(names.len());
    let queue = Queue::new(names, session.stop.clone());
    let work = || -> Result<(), Failed> {
        let mut connections = Connections::new()?;
        while let Some(task) = queue.take() {
            board.begins();
            let outcome = attempt(session, &task.name, users, &mut connections);
            settle(&queue, &board, finished.as_ref(), task, outcome, session);
        }
        connections.close();
        Ok(())
    };
    let started = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        let mut started = Ok(());
        for thread in threads {
            match thread.join() {
                Ok(one) => started = started.and(one),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        started
    });
    let mut status = board.sum_up(queue.left());
    if let Some(finished) = finished
        && let Err(failed) = finished.end(status == 0)
    {
        status = worse(status, failed.tell());
    }
    if let Err(failed) = started {
        status = worse(status, failed.tell());
    }
    Ok(status)
}

/// What a run is for: a file of finished users belongs to one purpose.
fn purpose(session: &Session<'_>, common: &Common) -> String {
    let destination = if common.default_destination { "-d".into() } else { common.destination.join(" ") };
    format!("{:?} {destination}", session.direction)
}

fn attempt(session: &Session<'_>, name: &str, users: &Users, connections: &mut Connections) -> Outcome {
    let mut outcome = Outcome { done: Vec::new(), failed: None };
    let targets = users::find(session.settings, name, users.no_userdb_lookup)
        .and_then(|user| session.targets(&user))
        .map_err(|failed| failed.within(name.to_owned()));
    for target in targets.unwrap_or_else(|failed| {
        outcome.failed = Some(failed);
        Vec::new()
    }) {
        match session.run(target, connections) {
            Ok(done) => outcome.done.push(done),
            Err(failed) => {
                // Of several the one that is worth another try.
                let earlier = outcome.failed.take();
                outcome.failed = Some(match earlier {
                    Some(earlier) if earlier.status == 75 || failed.status != 75 => earlier,
                    _ => failed,
                });
            }
        }
    }
    outcome
}

/// Tells what came of a user, or lets them wait for another try.
fn settle(
    queue: &Queue,
    board: &Board,
    finished: Option<&Finished>,
    task: Task,
    outcome: Outcome,
    session: &Session<'_>,
) {
    let status = outcome.status();
    if status == 75 && task.attempt + 1 < ATTEMPTS_MAX && !*session.stop.borrow() {
        let why = outcome.failed.as_ref().map(Failed::text).unwrap_or_default();
        tracing::debug!("{}: will be tried again: {why}", task.name);
        board.waits();
        queue.again(task);
        return;
    }
    board.ends(&task.name, &outcome);
    if status == 0
        && let Some(finished) = finished
    {
        finished.add(task.name.clone());
    }
    queue.settled();
}

/// What is told of one session: problems always, the rest as it was asked for.
pub fn lines(done: &Done, verbose: bool) -> Vec<String> {
    let user = &done.user;
    let mut lines: Vec<String> =
        done.report.problems.iter().map(|problem| format!("dsync: {user}: {problem}")).collect();
    if verbose {
        lines.extend(report::lines(done).iter().map(|line| format!("{user}: {line}")));
    } else if done.report.status() == 2 || done.dry_run {
        lines.extend(done.report.notes.iter().map(|note| format!("dsync: {user}: {note}")));
    }
    lines
}
