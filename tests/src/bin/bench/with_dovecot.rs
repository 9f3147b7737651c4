//! Times sessions of which one end is a Dovecot's, beside Dovecot with Dovecot doing the same work over the same way.
//!
//! `backup` of an mdbox into a new one: whoever is said to pull has the new one, whoever pushes the full one. Then the same again, with nothing new.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dsync_tests::peers::{Ends, Meeting, Setup, Transport};

use crate::{Bench, report, time};

const FORMAT: &str = "mdbox";

/// A way to have the same work done: who has which end, and the mode.
const CASES: [(&str, Ends, &[&str]); 4] = [
    ("we call and pull", Ends::WeCall, &["backup", "-R"]),
    ("we call and push", Ends::WeCall, &["backup"]),
    ("Dovecot calls, we pull", Ends::DovecotCalls, &["backup"]),
    ("Dovecot calls, we push", Ends::DovecotCalls, &["backup", "-R"]),
];

pub fn run(bench: &Bench, dir: &Path, messages: u64, runs: u64) {
    let maildir = bench.source(&dir.join("source"), messages, 16);
    let full = dir.join("full");
    bench.doveadm(&maildir, "backup", &location(&full));
    for transport in [Transport::Pipe, Transport::Tcp] {
        for (number, (what, ends, mode)) in CASES.into_iter().enumerate() {
            let place = dir.join(format!("{transport:?}{number}"));
            let rivals =
                [Ends::Dovecots, ends].map(|ends| Rival::new(bench, &place, ends, transport, mode, &full));
            let (mut first, mut again) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
            for _ in 0..runs {
                for (who, rival) in rivals.iter().enumerate() {
                    let _ = fs::remove_dir_all(&rival.new);
                    first[who].push(rival.session(bench, mode));
                    again[who].push(rival.session(bench, mode));
                }
            }
            report(&format!("{what}, {transport:?}, {messages} messages"), first);
            report(&format!("{what}, {transport:?}, nothing new"), again);
            drop(rivals);
            let _ = fs::remove_dir_all(place);
        }
    }
}

/// Those who do it, and the account that they fill.
struct Rival {
    meeting: Meeting,
    new: PathBuf,
}

impl Rival {
    fn new(
        bench: &Bench,
        place: &Path,
        ends: Ends,
        transport: Transport,
        mode: &[&str],
        full: &Path,
    ) -> Rival {
        let dir = place.join(format!("{ends:?}"));
        fs::create_dir_all(&dir).expect("made");
        bench.dovecot.own(place);
        let new = dir.join("new");
        let mut paths = [full.to_owned(), new.clone()];
        if mode.contains(&"-R") {
            paths.swap(0, 1);
        }
        let locations = paths.map(|path| location(&path));
        let text = fs::read_to_string(bench.dovecot.conf()).expect("read");
        let confs = [0, 1].map(|side| {
            let conf = dir.join(format!("{side}.conf"));
            fs::write(&conf, format!("{text}mail_location = {}\n", locations[side])).expect("written");
            conf
        });
        let setup = Setup { ends, transport, formats: [FORMAT, FORMAT] };
        let meeting = Meeting::new(setup, &bench.dovecot, &dir, &bench.programs, confs, locations);
        Rival { meeting, new }
    }

    fn session(&self, bench: &Bench, mode: &[&str]) -> Duration {
        let arguments: Vec<String> = mode[1..].iter().map(|word| (*word).to_owned()).collect();
        time(&mut self.meeting.command(&bench.dovecot, mode[0], &arguments, None))
    }
}

fn location(path: &Path) -> String {
    format!("{FORMAT}:{}", path.display())
}
