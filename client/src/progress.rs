//! What `-v` shows: a bar on a terminal, plain lines otherwise.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use dsync_session::Progress;
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};

/// Between two lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Shows how far a session has come.
pub struct Display {
    bar: Option<ProgressBar>,
    begun: Instant,
    looked: Instant,
    line: Instant,
    shown: Progress,
    verbose: bool,
}

impl Display {
    pub fn new(verbose: bool) -> Display {
        let now = Instant::now();
        let bar = (verbose && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::new(0);
            let style = ProgressStyle::with_template("{bar:30} {pos}/{len} messages, {msg}, {eta} to go");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        Display { bar, begun: now, looked: now, line: now, shown: Progress::default(), verbose }
    }

    /// Takes a look, if it is time.
    pub fn look(&mut self, progress: Progress) {
        if !self.verbose || self.looked.elapsed() < LOOK_EVERY {
            return;
        }
        self.looked = Instant::now();
        let (done, all) = (progress.received + progress.sent, progress.wanted + progress.asked);
        let bytes = progress.bytes_received + progress.bytes_sent;
        let rate = bytes as f64 / self.begun.elapsed().as_secs_f64().max(0.001);
        let told = format!("{}, {}/s", HumanBytes(bytes), HumanBytes(rate as u64));
        if let Some(bar) = &self.bar {
            bar.set_length(all);
            bar.set_position(done);
            bar.set_message(told);
        } else if self.line.elapsed() >= LINE_EVERY && progress != self.shown {
            self.line = Instant::now();
            let left = if done == 0 {
                0.0
            } else {
                self.begun.elapsed().as_secs_f64() / done as f64 * (all - done) as f64
            };
            eprintln!("{done}/{all} messages, {told}, {left:.0} s to go");
        }
        self.shown = progress;
    }

    /// Clears the bar.
    pub fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
