//! Times dsync side by side with a real Dovecot on the same mail, and prints the ratios.
//!
//! `cargo run --release -p dsync-tests --bin bench [with-dovecot] [messages [runs]]`: 20,000 messages and 5 runs otherwise. Works in /dev/shm,
//! so that the disk's moods stay out of it. Each figure is a median; runs alternate. An idle sync is timed for ten times as many messages too.
//! `with-dovecot`: not alone on this machine, but with a Dovecot at the other end.

mod with_dovecot;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
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
    /// Copies that the unprivileged user finds.
    programs: PathBuf,
}

fn main() {
    let mut words: Vec<String> = std::env::args().skip(1).collect();
    let with_dovecot = words.first().is_some_and(|word| word == "with-dovecot");
    words.drain(..usize::from(with_dovecot));
    let number = |word: &String| word.parse().expect("bench [with-dovecot] [messages [runs]]");
    let numbers: Vec<u64> = words.iter().map(number).collect();
    let (messages, runs) = (numbers.first().copied().unwrap_or(20_000), numbers.get(1).copied().unwrap_or(5));
    let place = Path::new("/dev/shm");
    let dir = tempfile::tempdir_in(if place.is_dir() { place } else { Path::new("/tmp") }).expect("made");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).expect("set");
    for program in ["dsync", "dsync-server"] {
        fs::copy(programs().join(program), dir.path().join(program)).expect("copied");
    }
    let bench = Bench { dovecot: Dovecot::new(dir.path()), programs: dir.path().to_owned() };
    bench.dovecot.own(&dir.path().join("home"));
    if with_dovecot {
        with_dovecot::run(&bench, dir.path(), messages, runs);
    } else {
        bench.side_by_side(dir.path(), messages, runs);
    }
}

impl Bench {
    /// Both convert the same accounts on this machine.
    fn side_by_side(&self, dir: &Path, messages: u64, runs: u64) {
        let source = self.source(&dir.join("source"), messages, 16);
        for format in FORMATS {
            let [ours, theirs] = ["ours", "theirs"].map(|name| dir.join(format!("{format}-{name}")));
            let [to_ours, to_theirs] = [&ours, &theirs].map(|path| format!("{format}:{}", path.display()));
            let mut times = [Vec::new(), Vec::new()];
            for _ in 0..runs {
                for path in [&ours, &theirs] {
                    let _ = fs::remove_dir_all(path);
                }
                times[0].push(self.doveadm(&source, "backup", &to_theirs));
                times[1].push(self.dsync(&source, "backup", &to_ours));
            }
            report(&format!("Maildir to {format}, {messages} messages"), times);
            // Dovecot needs a few runs until it has nothing to do any more.
            for _ in 0..3 {
                self.doveadm(&source, "sync", &to_theirs);
                self.dsync(&source, "sync", &to_ours);
                std::thread::sleep(SETTLED);
            }
            let idle = [(); IDLE_RUNS]
                .map(|()| [self.doveadm(&source, "sync", &to_theirs), self.dsync(&source, "sync", &to_ours)]);
            report(
                &format!("idle sync with {format}, {messages} messages"),
                [0, 1].map(|who| idle.iter().map(|pair| pair[who]).collect()),
            );
            let _ = fs::remove_dir_all(theirs);
        }
        let many = self.source(&dir.join("many"), messages * 10, 9);
        for format in FORMATS {
            let target = format!("{format}:{}", dir.join(format!("{format}-many")).display());
            let first = self.dsync(&many, "backup", &target);
            for _ in 0..2 {
                std::thread::sleep(SETTLED);
                self.dsync(&many, "sync", &target);
            }
            let mut idle = [(); IDLE_RUNS].map(|()| self.dsync(&many, "sync", &target));
            idle.sort_unstable();
            println!(
                "idle sync with {format}, {} messages: dsync {:.1} ms (first backup {:.1} s)",
                messages * 10,
                idle[IDLE_RUNS / 2].as_secs_f64() * 1e3,
                first.as_secs_f64()
            );
        }
    }

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
        time(self.dovecot.as_user(&self.programs.join("dsync")).args([
            "-c",
            "/dev/null",
            command,
            "--source",
            source,
            target,
        ]))
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
