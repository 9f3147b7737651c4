//! Times dsync side by side with a real Dovecot on the same mail, and prints the ratios.
//!
//! `cargo run --release -p dsync-tests --bin bench [messages [runs]]`: 20,000 messages and 5 runs otherwise. Works in /dev/shm, so that
//! the disk's moods stay out of it. Each figure is a median; runs alternate. An idle sync is timed for ten times as many messages too.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use dsync_tests::dovecot::Dovecot;
use dsync_tests::maildirs::Account;
use dsync_tests::programs::programs;
use dsync_tests::world::Dice;

const FORMATS: [&str; 3] = ["maildir", "sdbox", "mdbox"];
const FOLDERS: u64 = 20;
const IDLE_RUNS: usize = 15;
/// What changed within two seconds is looked at again.
const SETTLED: Duration = Duration::from_millis(2100);

struct Bench {
    dovecot: Dovecot,
    dsync: std::path::PathBuf,
}

fn main() {
    let numbers: Vec<u64> =
        std::env::args().skip(1).map(|number| number.parse().expect("bench [messages [runs]]")).collect();
    let (messages, runs) = (numbers.first().copied().unwrap_or(20_000), numbers.get(1).copied().unwrap_or(5));
    let place = Path::new("/dev/shm");
    let dir = tempfile::tempdir_in(if place.is_dir() { place } else { Path::new("/tmp") }).expect("made");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).expect("set");
    let dsync = dir.path().join("dsync");
    fs::copy(programs().join("dsync"), &dsync).expect("copied");
    let bench = Bench { dovecot: Dovecot::new(dir.path()), dsync };
    bench.dovecot.own(&dir.path().join("home"));
    let source = bench.source(&dir.path().join("source"), messages, 16);
    for format in FORMATS {
        let [ours, theirs] = ["ours", "theirs"].map(|name| dir.path().join(format!("{format}-{name}")));
        let [to_ours, to_theirs] = [&ours, &theirs].map(|path| format!("{format}:{}", path.display()));
        let mut times = [Vec::new(), Vec::new()];
        for _ in 0..runs {
            for path in [&ours, &theirs] {
                let _ = fs::remove_dir_all(path);
            }
            times[0].push(bench.doveadm(&source, "backup", &to_theirs));
            times[1].push(bench.dsync(&source, "backup", &to_ours));
        }
        report(&format!("Maildir to {format}, {messages} messages"), times);
        // Dovecot needs a few runs until it has nothing to do any more.
        for _ in 0..3 {
            bench.doveadm(&source, "sync", &to_theirs);
            bench.dsync(&source, "sync", &to_ours);
            std::thread::sleep(SETTLED);
        }
        let idle = [(); IDLE_RUNS]
            .map(|()| [bench.doveadm(&source, "sync", &to_theirs), bench.dsync(&source, "sync", &to_ours)]);
        report(
            &format!("idle sync with {format}, {messages} messages"),
            [0, 1].map(|who| idle.iter().map(|pair| pair[who]).collect()),
        );
        let _ = fs::remove_dir_all(theirs);
    }
    let many = bench.source(&dir.path().join("many"), messages * 10, 9);
    for format in FORMATS {
        let target = format!("{format}:{}", dir.path().join(format!("{format}-many")).display());
        let first = bench.dsync(&many, "backup", &target);
        for _ in 0..2 {
            std::thread::sleep(SETTLED);
            bench.dsync(&many, "sync", &target);
        }
        let mut idle = [(); IDLE_RUNS].map(|()| bench.dsync(&many, "sync", &target));
        idle.sort_unstable();
        println!(
            "idle sync with {format}, {} messages: dsync {:.1} ms (first backup {:.1} s)",
            messages * 10,
            idle[IDLE_RUNS / 2].as_secs_f64() * 1e3,
            first.as_secs_f64()
        );
    }
}

impl Bench {
    /// A Maildir of so many messages, the larger ones of some 2 to the power of `scale` bytes; half of them in INBOX.
    fn source(&self, root: &Path, messages: u64, scale: u64) -> String {
        let account = Account::new(root);
        let mut dice = Dice::new(messages);
        let words = ["account", "report", "meeting", "invoice", "please", "regards", "project", "deadline"];
        for n in 0..messages {
            let folder = if n % 2 == 0 { String::new() } else { format!("Archive.{}", n / 2 % FOLDERS) };
            let size = 1 << (8 + dice.roll(scale - 7));
            let mut text = format!(
                "From: Sender <sender{}@example.org>\nTo: User <user@example.com>\nDate: Mon, 1 Jun 2026 12:00:00 +0000\n\
                 Subject: message {n}\nMessage-ID: <{n}@example.org>\nMIME-Version: 1.0\n\n",
                n % 977
            );
            while text.len() < size {
                text.push_str(words[dice.roll(words.len() as u64) as usize]);
                text.push(if dice.roll(10) == 0 { '\n' } else { ' ' });
            }
            let flags = ["S", "S", "S", "RS", "FS", ""][dice.roll(6) as usize];
            account.deliver(
                &folder,
                &format!("{}.M{n}P1.bench,S={}:2,{flags}", 1_780_000_000 + n, text.len()),
                text.as_bytes(),
            );
        }
        self.dovecot.own(root);
        account.location()
    }

    fn doveadm(&self, source: &str, command: &str, target: &str) -> Duration {
        let mut doveadm = self.dovecot.as_user(Path::new("/usr/bin/doveadm"));
        doveadm.arg("-c").arg(self.dovecot.conf()).arg("-o").arg(format!("mail_location={source}"));
        time(doveadm.args([command, target]))
    }

    fn dsync(&self, source: &str, command: &str, target: &str) -> Duration {
        time(self.dovecot.as_user(&self.dsync).args(["-c", "/dev/null", command, "--source", source, target]))
    }
}

fn time(command: &mut Command) -> Duration {
    let begun = Instant::now();
    let output = command.output().expect("runs");
    let time = begun.elapsed();
    // 2: Dovecot's way of saying that there is more to do.
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(matches!(output.status.code(), Some(0 | 2)), "{command:?}: {text}");
    time
}

fn report(what: &str, [mut theirs, mut ours]: [Vec<Duration>; 2]) {
    for times in [&mut theirs, &mut ours] {
        times.sort_unstable();
    }
    let [theirs, ours] = [theirs, ours].map(|times| times[times.len() / 2].as_secs_f64() * 1e3);
    println!("{what}: Dovecot {theirs:.1} ms, dsync {ours:.1} ms, ratio {:.2}", theirs / ours);
}
