//! Runs the scenarios of `tests/fixtures/oracle`: two stores made by Dovecot, changed through it, synchronised by dsync, and
//! read by Dovecot again.
//!
//! A scenario is JSON; its fields are those of [`Scenario`] and [`Op`]. What is seen after each run is compared as text, GUIDs
//! replaced by names in the order in which they appear, since only their being equal matters.

mod changes;
mod looking;

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Deserialize;

use crate::dovecot::Dovecot;
use crate::imap::Imap;
use crate::installation::{self, program};
use crate::peers::{Ends, Meeting, Setup, Transport};
use looking::Names;

/// GUID and UIDVALIDITY of each side's INBOX.
const INBOX: [(&str, u32); 2] =
    [("f000000000000000000000000000000a", 2000), ("e000000000000000000000000000000b", 1000)];

/// One scenario.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    title: String,
    /// Done at A; then comes a first run, if there is any.
    #[serde(default)]
    initial: Vec<Op>,
    #[serde(default, rename = "initial_A")]
    initial_a: Vec<Op>,
    /// If there is any, B exists before the first run.
    #[serde(default, rename = "initial_B")]
    initial_b: Vec<Op>,
    initial_sync: Option<Step>,
    /// `same`: both sides have one INBOX.
    inbox: Option<String>,
    #[serde(default)]
    layout: String,
    #[serde(rename = "format_B")]
    format_b: Option<String>,
    #[serde(rename = "separator_A")]
    separator_a: Option<String>,
    #[serde(rename = "separator_B")]
    separator_b: Option<String>,
    #[serde(default, rename = "location_suffix_A")]
    suffix_a: String,
    #[serde(default)]
    namespace_conf: Vec<String>,
    steps: Vec<Step>,
}

/// Changes at both sides, or a run.
#[derive(Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Step {
    note: Option<String>,
    #[serde(rename = "A")]
    a: Vec<Op>,
    #[serde(rename = "B")]
    b: Vec<Op>,
    order: Option<String>,
    same_second: bool,
    sync: Option<String>,
    args: Vec<String>,
    state: Option<String>,
    transport: Option<String>,
}

/// One change.
#[derive(Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Op {
    op: String,
    #[serde(rename = "box")]
    mailbox: String,
    to: String,
    msg: String,
    nth: Option<usize>,
    seq: Option<u64>,
    date: Option<u64>,
    guid: Option<String>,
    uidvalidity: Option<u32>,
    body: Option<String>,
    raw: Option<String>,
    flags: Vec<String>,
    add: Vec<String>,
    del: Vec<String>,
    set: Option<Vec<String>>,
    letters: String,
    dir: bool,
    #[serde(rename = "uid-validity")]
    uid_validity: Option<u32>,
    #[serde(rename = "min-next-uid")]
    min_next_uid: Option<u32>,
}

/// Where a scenario runs.
struct World {
    dir: tempfile::TempDir,
    dovecot: Dovecot,
    scenario: Scenario,
    programs: PathBuf,
    setup: Setup,
    meeting: Option<Meeting>,
    sessions: [Option<Imap>; 2],
    messages: u64,
    /// What runs complained of, and statuses that say that something failed.
    complaints: Vec<String>,
    /// What the last run with `-s` printed.
    state: String,
    statuses: Vec<i32>,
}

/// What became of a scenario.
pub struct Seen {
    /// What is there after each run.
    pub text: String,
    /// With what each run ended.
    pub statuses: Vec<i32>,
    /// What was complained of.
    pub complaints: Vec<String>,
}

/// Runs a scenario with both ends ours and tells what is there after each run.
pub fn run(file: &Path, programs: &Path) -> Seen {
    run_as(file, programs, Setup::OURS)
}

/// Whether a scenario can be run so: some are of one format's files, or of settings that need a pipe.
pub fn suits(file: &Path, setup: Setup) -> bool {
    let scenario = read(file);
    let is_maildir = setup.formats.map(|format| format == "maildir");
    let of_files =
        |ops: &[Op]| ops.iter().any(|op| matches!(op.op.as_str(), "unlink" | "fileflags" | "rmindex"));
    let has_files = scenario
        .steps
        .iter()
        .all(|step| (is_maildir[0] || !of_files(&step.a)) && (is_maildir[1] || !of_files(&step.b)));
    let settings =
        scenario.separator_b.is_some() || !scenario.namespace_conf.is_empty() || !scenario.layout.is_empty();
    let made_of_maildir = scenario.format_b.is_some() || !scenario.suffix_a.is_empty();
    has_files
        && (is_maildir == [true, true] || !made_of_maildir)
        && (setup.transport == Transport::Pipe || !settings)
}

/// Runs a scenario and tells what is there after each run.
pub fn run_as(file: &Path, programs: &Path, setup: Setup) -> Seen {
    let mut world = World::new(read(file), programs, setup);
    let text = world.run();
    Seen { text, statuses: world.statuses, complaints: world.complaints }
}

fn read(file: &Path) -> Scenario {
    let text = fs::read_to_string(file).expect("read");
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", file.display()))
}

impl World {
    fn new(scenario: Scenario, programs: &Path, setup: Setup) -> World {
        let dir = tempfile::Builder::new().prefix("dsync-oracle-").tempdir().expect("made");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).expect("set");
        let dovecot = Dovecot::new(dir.path());
        dovecot.own(&dir.path().join("home"));
        let programs = programs.to_owned();
        let mut world = World {
            dir,
            dovecot,
            scenario,
            programs,
            setup,
            meeting: None,
            sessions: [None, None],
            messages: 0,
            complaints: Vec::new(),
            state: String::new(),
            statuses: Vec::new(),
        };
        for side in 0..2 {
            for list_index in ["yes", "no"] {
                let separators = [&world.scenario.separator_a, &world.scenario.separator_b];
                let text = format!(
                    "{}base_dir = {dir}/run\nstate_dir = {dir}/run\nlog_path = /dev/stderr\nprotocols =\nssl = no\nfirst_valid_uid = 1\n\
                     first_valid_gid = 1\n{}{}mailbox_list_index = {list_index}\nnamespace inbox {{\n  inbox = yes\n  \
                     separator = {}\n  prefix =\n{}\n}}\n",
                    installation::head(),
                    installation::mail_home(&world.dir.path().join("home")),
                    installation::mail_lines(&world.location(side)),
                    separators[side].as_deref().unwrap_or("/"),
                    world.scenario.namespace_conf.join("\n"),
                    dir = world.dir.path().display(),
                );
                fs::write(world.conf(side, list_index), text).expect("written");
            }
        }
        if world.setup.ends != Ends::Ours {
            let (confs, locations) =
                ([0, 1].map(|side| world.conf(side, "yes")), [0, 1].map(|side| world.location(side)));
            let meeting =
                Meeting::new(setup, &world.dovecot, world.dir.path(), &world.programs, confs, locations);
            world.meeting = Some(meeting);
        }
        world
    }

    fn conf(&self, side: usize, list_index: &str) -> PathBuf {
        self.dir.path().join(format!("{}-{list_index}.conf", ["a", "b"][side]))
    }

    fn root(&self, side: usize) -> PathBuf {
        self.dir.path().join(["A", "B"][side])
    }

    fn location(&self, side: usize) -> String {
        let root = self.root(side);
        let root = root.display();
        match (&self.scenario.format_b, side) {
            (Some(format), 1) => format!("{format}:{root}:INBOX={root}/inbox"),
            (_, 0) => {
                format!("{}:{root}{}{}", self.setup.formats[0], self.scenario.suffix_a, self.layout())
            }
            _ => format!("{}:{root}{}", self.setup.formats[side], self.layout()),
        }
    }

    fn layout(&self) -> &'static str {
        if self.scenario.layout == "fs" { ":LAYOUT=fs" } else { "" }
    }

    fn run(&mut self) -> String {
        let (a, b) = (self.scenario.initial_a.clone(), self.scenario.initial_b.clone());
        let both = self.scenario.inbox.as_deref() == Some("same");
        self.identify(0, "INBOX", INBOX[0].0, INBOX[0].1);
        if both {
            self.identify(1, "INBOX", INBOX[0].0, INBOX[0].1);
        } else if !b.is_empty() {
            self.identify(1, "INBOX", INBOX[1].0, INBOX[1].1);
        }
        let initial = self.scenario.initial.clone();
        self.change(0, &initial);
        self.change(0, &a);
        self.change(1, &b);
        let mut seen = Vec::new();
        let first = Step { sync: Some("sync".into()), ..Step::default() };
        let first = self.scenario.initial_sync.clone().unwrap_or(first);
        if !initial.is_empty() {
            seen.push(self.round(&first));
        }
        for step in self.scenario.steps.clone() {
            if step.sync.is_some() {
                seen.push(self.round(&step));
                continue;
            }
            let order = if step.order.as_deref() == Some("BA") { [1, 0] } else { [0, 1] };
            let start = tick();
            self.change(order[0], [&step.a, &step.b][order[0]]);
            // Dovecot's logs know seconds: what is to be later must be later by one.
            if !step.same_second && !step.a.is_empty() && !step.b.is_empty() {
                tick();
            }
            self.change(order[1], [&step.a, &step.b][order[1]]);
            if step.same_second {
                (0..2).for_each(|side| self.log_as_of(side, start));
            }
        }
        let mut text = String::new();
        for (i, round) in seen.iter().enumerate() {
            let same = i > 0 && seen[i - 1] == *round;
            text.push_str(&if same {
                format!("round {i}: as before\n")
            } else {
                format!("round {i}:\n{round}")
            });
        }
        text
    }

    /// Has the log of a side's mailboxes say that all since this second was done in it, however long it took.
    fn log_as_of(&mut self, side: usize, second: u64) {
        self.sessions[side] = None;
        let second = u32::try_from(second).expect("before 2106");
        let path = self.root(side).join("dovecot.mailbox.log");
        let mut records = fs::read(&path).expect("read");
        let times = records.chunks_exact_mut(24).map(|record| &mut record[20..]);
        let later = |time: &&mut [u8]| **time > second.to_be_bytes()[..];
        times.filter(later).for_each(|time| time.copy_from_slice(&second.to_be_bytes()));
        let mut file = fs::File::options().write(true).open(&path).expect("opened");
        file.write_all(&records).expect("written");
    }

    /// The command of a run with both ends ours.
    fn ours(&self, mode: &str, arguments: &[String], state: Option<&str>, spawned: bool) -> Command {
        let mut command = self.dovecot.as_user(&self.programs.join("dsync"));
        command.arg("-c").arg(self.conf(0, "yes")).arg(mode).args(arguments);
        command.args(state.into_iter().flat_map(|state| ["-s", state]));
        command.arg("--source").arg(self.location(0));
        if spawned {
            command.arg(self.programs.join("dsync-server")).arg("-c").arg(self.conf(1, "yes"));
            command.args(["--stdio", "-u", "alice"]);
        } else {
            command.arg(self.location(1));
        }
        command
    }

    /// Runs a sync, and tells what is there then.
    fn round(&mut self, step: &Step) -> String {
        let mode = step.sync.as_deref().expect("a run");
        let state = step.state.as_deref().map(|state| match state {
            "new" => "",
            "prev" => &self.state,
            other => other,
        });
        let mut command = match &self.meeting {
            Some(meeting) => meeting.command(&self.dovecot, mode, &step.args, state),
            None => self.ours(mode, &step.args, state, step.transport.as_deref() == Some("command")),
        };
        let output = command.output().expect("dsync runs");
        let Output { status, stdout, stderr } = &output;
        let text = String::from_utf8_lossy(stderr);
        // We may refuse, but never break; a Dovecot may.
        let code = status.code().filter(|code| *code < 100 || self.setup.ends != Ends::Ours);
        assert!(
            code.is_some() || self.setup.ends != Ends::Ours,
            "{}: {status:?} {text}",
            self.scenario.title
        );
        let code = code.unwrap_or(-1);
        self.statuses.push(code);
        if code != 0 {
            self.complaints.push(status.to_string());
        }
        self.complaints
            .extend(text.lines().filter(|line| !line.contains("Raw backtrace")).map(str::to_owned));
        if step.state.is_some() {
            self.state = String::from_utf8_lossy(stdout).trim().to_owned();
        }
        let (mut boxes, mut mails) = (Names::new("box"), Names::new("msg"));
        let [a, b] = [0, 1].map(|side| self.look(side, &mut boxes, &mut mails));
        let label = |label: char, lines: &[String]| {
            lines.iter().map(|l| format!("{label} {l}\n")).collect::<String>()
        };
        // Keywords keep the spelling of each end; an mbox has GUIDs of its own, which are those of the header.
        let kept = |word: &&str| self.scenario.format_b.is_none() || !word.starts_with("msg");
        // Each end writes a name with its own separator, and what it cannot have in a name with `_`.
        let unlike = self.scenario.separator_b.is_some();
        let folded = |lines: &[String]| {
            let words = lines.iter().map(|line| line.split(' ').filter(kept).collect::<Vec<_>>().join(" "));
            let text = words.collect::<Vec<_>>().join("\n").to_lowercase();
            if unlike { text.replace(['/', '.'], "_") } else { text }
        };
        let whole = mode == "sync" && step.state.is_none() && step.args.iter().all(|arg| arg == "-f");
        assert!(
            code != 0 || !whole || self.setup.ends != Ends::Ours || folded(&a) == folded(&b),
            "{}: status 0, but they differ:\n{a:#?}\n{b:#?}",
            self.scenario.title
        );
        if a == b { label('=', &a) } else { label('A', &a) + &label('B', &b) }
    }

    fn doveadm(&self, side: usize, list_index: &str) -> Command {
        let mut command = self.dovecot.as_user(&program("doveadm"));
        command.env("TZ", "UTC").arg("-c").arg(self.conf(side, list_index));
        command
    }

    fn imap(&mut self, side: usize) -> &mut Imap {
        if self.sessions[side].is_none() {
            let mut command = self.doveadm(side, "yes");
            command.args(["exec", "imap"]);
            self.sessions[side] = Some(Imap::start(command));
        }
        self.sessions[side].as_mut().expect("just started")
    }
}

/// The number behind a word.
fn number(text: &str, word: &str) -> Option<u32> {
    let (_, rest) = text.split_once(word)?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

fn seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}

/// Waits for the next second, and tells which one it is.
pub fn tick() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    std::thread::sleep(Duration::from_millis(1_010) - Duration::from_nanos(now.subsec_nanos().into()));
    seconds()
}
