//! What is told while many users are done: a bar on a terminal, lines as users end, and the sum of it all.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};

use super::{Outcome, lines};
use crate::{report, worse};

/// Between two lines of progress where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);
/// Failed users that the sum names; the lines above it name them all.
const NAMED_MAX: usize = 20;

/// Counts, and says what happens. One thread at a time.
pub struct Board {
    state: Mutex<State>,
    verbose: bool,
    json: bool,
}

struct State {
    bar: Option<ProgressBar>,
    begun: Instant,
    line: Instant,
    users: usize,
    /// Users that an earlier run has done.
    skipped: usize,
    running: usize,
    ok: usize,
    changed: usize,
    failed: Vec<(String, u8, String)>,
    bytes: u64,
    messages: u64,
    worst: u8,
}

impl Board {
    pub fn new(users: usize, skipped: usize, verbose: bool, json: bool) -> Board {
        let now = Instant::now();
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(users as u64);
            let style = ProgressStyle::with_template("{bar:30} {pos}/{len} users, {msg}, {eta} to go");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.enable_steady_tick(Duration::from_millis(500));
            bar
        });
        let state = State {
            bar,
            begun: now,
            line: now,
            users,
            skipped,
            running: 0,
            ok: 0,
            changed: 0,
            failed: Vec::new(),
            bytes: 0,
            messages: 0,
            worst: 0,
        };
        Board { state: Mutex::new(state), verbose, json }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A user's session begins.
    pub fn begins(&self) {
        let mut state = self.lock();
        state.running += 1;
        state.show(self.verbose);
    }

    /// A user failed and waits for another try.
    pub fn waits(&self) {
        let mut state = self.lock();
        state.running -= 1;
        state.show(self.verbose);
    }

    /// A user is settled, one way or the other.
    pub(super) fn ends(&self, user: &str, outcome: &Outcome) {
        let mut state = self.lock();
        let status = outcome.status();
        state.running -= 1;
        state.worst = worse(state.worst, status);
        let mut told = Vec::new();
        let mut documents = Vec::new();
        let mut reason = String::new();
        for done in &outcome.done {
            let (ours, theirs) = (&done.report.local, &done.report.remote);
            state.bytes += ours.bytes + theirs.bytes;
            state.messages += ours.saved + theirs.saved;
            told.extend(lines(done, self.verbose));
            if self.json {
                documents.push(report::json_line(done));
            } else if done.dry_run {
                documents.extend(report::plan(done).iter().map(|line| format!("{user}: {line}")));
            }
            if let Some(problem) = done.report.problems.first() {
                reason.clone_from(problem);
            }
        }
        if let Some(failed) = &outcome.failed {
            reason = failed.text();
            told.push(format!("dsync: {reason}"));
            if self.json {
                documents.push(report::json_failed(user, failed.status, &reason));
            }
        }
        match status {
            0 => state.ok += 1,
            2 => state.changed += 1,
            _ => state.failed.push((user.to_owned(), status, reason)),
        }
        state.say(&told, &documents);
        state.show(self.verbose);
    }

    /// Tells the sum; gives the exit status. `left` users were not tried, since it was time to stop.
    pub fn sum_up(self, left: usize) -> u8 {
        let state = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(bar) = &state.bar {
            bar.finish_and_clear();
        }
        let seconds = state.begun.elapsed().as_secs_f64().max(0.001);
        let done = state.ok + state.changed + state.failed.len();
        let mut lines = vec![format!(
            "{} users: {} ok, {} changed meanwhile, {} failed{}{}; {} messages, {} in {seconds:.1} s ({}/s, {:.1} users/s)",
            state.users + state.skipped,
            state.ok,
            state.changed,
            state.failed.len(),
            if left > 0 { format!(", {left} not begun") } else { String::new() },
            if state.skipped > 0 { format!(", {} done before", state.skipped) } else { String::new() },
            state.messages,
            HumanBytes(state.bytes),
            HumanBytes((state.bytes as f64 / seconds) as u64),
            done as f64 / seconds,
        )];
        let mut kinds: BTreeMap<u8, usize> = BTreeMap::new();
        state.failed.iter().for_each(|(_, status, _)| *kinds.entry(*status).or_default() += 1);
        lines.extend(
            kinds.iter().map(|(status, count)| {
                format!("  {count} failed with status {status}, {}", meaning(*status))
            }),
        );
        // Who is alone with a failure was named just above.
        if done > 1 {
            let named = state.failed.iter().take(NAMED_MAX);
            lines.extend(named.map(|(user, _, reason)| format!("  failed: {}", with_user(user, reason))));
            if state.failed.len() > NAMED_MAX {
                lines.push(format!("  and {} more, named above", state.failed.len() - NAMED_MAX));
            }
        }
        state.say(&lines, &[]);
        if left > 0 { 75 } else { state.worst }
    }
}

impl State {
    fn show(&mut self, verbose: bool) {
        let done = self.ok + self.changed + self.failed.len();
        if let Some(bar) = &self.bar {
            bar.set_message(format!("{} running, {} failed", self.running, self.failed.len()));
            bar.set_position(done as u64);
        } else if verbose && self.line.elapsed() >= LINE_EVERY && done > 0 {
            self.line = Instant::now();
            let left = self.begun.elapsed().as_secs_f64() / done as f64 * (self.users - done) as f64;
            eprintln!(
                "{done}/{} users, {} running, {} failed, {left:.0} s to go",
                self.users,
                self.running,
                self.failed.len()
            );
        }
    }

    /// Lines for people to stderr, documents to stdout.
    fn say(&self, lines: &[String], documents: &[String]) {
        let print = || {
            lines.iter().for_each(|line| eprintln!("{line}"));
            let mut stdout = std::io::stdout().lock();
            for document in documents {
                if let Err(error) = writeln!(stdout, "{document}") {
                    tracing::warn!("cannot write to stdout: {error}");
                }
            }
        };
        match &self.bar {
            Some(bar) if !lines.is_empty() || !documents.is_empty() => bar.suspend(print),
            _ => print(),
        }
    }
}

/// The reason, with the user's name before it unless it begins with that.
fn with_user(user: &str, reason: &str) -> String {
    if reason.starts_with(&format!("{user}: ")) { reason.to_owned() } else { format!("{user}: {reason}") }
}

fn meaning(status: u8) -> &'static str {
    match status {
        64 => "usage",
        65 => "not possible with this data",
        67 => "no such user",
        68 => "no such mailbox",
        73 => "over quota",
        75 => "try later",
        76 => "other protocol or version",
        77 => "not permitted",
        78 => "configuration",
        _ => "see above",
    }
}
