//! Runs the scenarios of `tests/fixtures/oracle`: two stores made by Dovecot, changed through it, synchronised by dsync, and
//! read by Dovecot again.
//!
//! A scenario is JSON; its fields are those of [`Scenario`] and [`Op`]. What is seen after each run is compared as text, GUIDs
//! replaced by names in the order in which they appear, since only their being equal matters.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dsync_model::mutf7;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::dovecot::Dovecot;
use crate::imap::{Imap, quoted};
use crate::peers::{Ends, Meeting, Setup, Transport};

/// The first message's date, and the first delivered file's name.
const FIRST_DATE: u64 = 1_704_067_200;
const FIRST_NAME: u64 = 1_700_000_000;
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
                    "base_dir = {dir}/run\nstate_dir = {dir}/run\nlog_path = /dev/stderr\nprotocols =\nssl = no\nfirst_valid_uid = 1\n\
                     first_valid_gid = 1\nmail_location = {}\nmailbox_list_index = {list_index}\nnamespace inbox {{\n  inbox = yes\n  \
                     separator = {}\n  prefix =\n{}\n}}\n",
                    world.location(side),
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
        let mut command = self.dovecot.as_user(Path::new("/usr/bin/doveadm"));
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

    fn update(&mut self, side: usize, mailbox: &str, settings: &[String]) {
        self.sessions[side] = None;
        let output =
            self.doveadm(side, "yes").args(["mailbox", "update"]).args(settings).arg(mailbox).output();
        let output = output.expect("doveadm runs");
        assert!(output.status.success(), "{mailbox}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn identify(&mut self, side: usize, mailbox: &str, guid: &str, validity: u32) {
        let validity = validity.to_string();
        let settings = ["--mailbox-guid", guid, "--uid-validity", &validity].map(str::to_owned);
        self.update(side, mailbox, &settings);
    }

    fn change(&mut self, side: usize, ops: &[Op]) {
        ops.iter().for_each(|op| self.one(side, op));
        self.sessions[side] = None;
    }

    fn one(&mut self, side: usize, op: &Op) {
        let mailbox = &op.mailbox;
        let simple = |verb: &str| format!("{verb} {}", quoted(mailbox));
        match op.op.as_str() {
            "append" => self.append(side, op),
            "store" => {
                for uid in self.uids(side, op) {
                    let mut kinds = vec![("+FLAGS", &op.add), ("-FLAGS", &op.del)];
                    kinds.extend(op.set.as_ref().map(|set| ("FLAGS", set)));
                    let set = op.set.is_some();
                    for (kind, flags) in
                        kinds.into_iter().filter(|(k, f)| !f.is_empty() || set && *k == "FLAGS")
                    {
                        self.imap(side)
                            .command(&format!("UID STORE {uid} {kind}.SILENT ({})", flags.join(" ")));
                    }
                }
            }
            "expunge" => {
                for uid in self.uids(side, op) {
                    self.imap(side).command(&format!("UID STORE {uid} +FLAGS.SILENT (\\Deleted)"));
                    self.imap(side).command(&format!("UID EXPUNGE {uid}"));
                }
            }
            verb @ ("copy" | "move") => {
                for uid in self.uids(side, op) {
                    let command = format!("UID {} {uid} {}", verb.to_uppercase(), quoted(&op.to));
                    self.imap(side).command(&command);
                }
            }
            "create" => {
                self.imap(side).unselect();
                self.imap(side).command(&simple("CREATE"));
                if let (Some(guid), Some(validity), false) = (&op.guid, op.uidvalidity, op.dir) {
                    self.identify(side, mailbox, guid, validity);
                }
            }
            verb @ ("delete" | "subscribe" | "unsubscribe") => {
                self.imap(side).unselect();
                self.imap(side).command(&simple(&verb.to_uppercase()));
            }
            "rename" => {
                self.imap(side).unselect();
                self.imap(side).command(&format!("{} {}", simple("RENAME"), quoted(&op.to)));
            }
            "update" => {
                let mut settings = Vec::new();
                let mut set = |name: &str, value: Option<u32>| {
                    settings.extend(value.into_iter().flat_map(|v| [name.to_owned(), v.to_string()]));
                };
                set("--uid-validity", op.uid_validity);
                set("--min-next-uid", op.min_next_uid);
                self.update(side, mailbox, &settings);
            }
            "unlink" => {
                self.sessions[side] = None;
                fs::remove_file(self.file(side, op)).expect("removed");
            }
            "fileflags" => {
                self.sessions[side] = None;
                let file = self.file(side, op);
                let name = file.file_name().expect("a name").to_string_lossy().into_owned();
                let base = name.split(':').next().expect("a base");
                let to = self.path(side, mailbox).join("cur").join(format!("{base}:2,{}", op.letters));
                fs::rename(&file, to).expect("renamed");
            }
            "rmindex" => {
                self.sessions[side] = None;
                for entry in fs::read_dir(self.path(side, mailbox)).expect("readable").flatten() {
                    if entry.file_name().to_string_lossy().starts_with("dovecot.") {
                        fs::remove_file(entry.path()).expect("removed");
                    }
                }
            }
            other => panic!("unknown operation {other}"),
        }
    }

    /// Delivers a file of a name that is always the same: it is the GUID.
    fn append(&mut self, side: usize, op: &Op) {
        let number = op.seq.unwrap_or(self.messages);
        self.messages += 1;
        let (tag, date) = (&op.msg, op.date.unwrap_or(FIRST_DATE + 60 * number));
        let text = op.raw.clone().unwrap_or_else(|| {
            let body = op.body.clone().unwrap_or_else(|| format!("body of {tag}\n"));
            format!(
                "From: Oracle <oracle@example.org>\nTo: someone@example.org\nSubject: message {tag}\nDate: Mon, 01 Jan 2024 01:00:00 GMT\n\
                 Message-ID: <{tag}@oracle.example.org>\nX-Oracle-Tag: {tag}\n\n{body}"
            )
        });
        if side == 1 && self.scenario.format_b.is_some() {
            let date = format!("01-Jan-2024 00:{:02}:00 +0000", (date - FIRST_DATE) / 60);
            return self.imap(side).append(&op.mailbox, &op.flags.join(" "), &date, &text);
        }
        // Other formats take it from a Maildir: Dovecot keeps the GUID then.
        let imported = (self.setup.formats[side] != "maildir").then(|| self.dir.path().join("imported"));
        let folder = match &imported {
            Some(root) => {
                let folder = self.maildir(root, side, &op.mailbox);
                for path in ["cur", "new", "tmp"].map(|sub| folder.join(sub)) {
                    fs::create_dir_all(path).expect("made");
                }
                folder
            }
            None => self.path(side, &op.mailbox),
        };
        if !folder.join("cur").is_dir() {
            self.imap(side).command(&format!("STATUS {} (UIDNEXT)", quoted(&op.mailbox)));
        }
        let name = op.guid.clone().unwrap_or_else(|| format!("{}.M{number}P1.oracle", FIRST_NAME + number));
        let letter = |flag: &String| match flag.as_str() {
            "\\Draft" => Some('D'),
            "\\Flagged" => Some('F'),
            "\\Answered" => Some('R'),
            "\\Seen" => Some('S'),
            "\\Deleted" => Some('T'),
            _ => None,
        };
        let mut letters: Vec<char> = op.flags.iter().filter_map(letter).collect();
        letters.sort_unstable();
        let to = if letters.is_empty() {
            folder.join("new").join(&name)
        } else {
            folder.join("cur").join(format!("{name}:2,{}", letters.iter().collect::<String>()))
        };
        let tmp = folder.join("tmp").join(&name);
        fs::write(&tmp, text).expect("written");
        let file = fs::File::options().write(true).open(&tmp).expect("opened");
        file.set_modified(UNIX_EPOCH + Duration::from_secs(date)).expect("set");
        self.dovecot.own(&tmp);
        assert!(!to.exists(), "{} is there already", to.display());
        fs::rename(&tmp, &to).expect("delivered");
        if let Some(root) = imported {
            self.dovecot.own(&root);
            let source = format!("maildir:{}", root.display());
            let output =
                self.doveadm(side, "yes").args(["import", &source, "", "all"]).output().expect("runs");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            fs::remove_dir_all(root).expect("removed");
        }
        // Looking gives it its UID.
        let imap = self.imap(side);
        imap.unselect();
        imap.select(&op.mailbox);
        let keywords: Vec<&str> =
            op.flags.iter().map(String::as_str).filter(|f| !f.starts_with('\\')).collect();
        if !keywords.is_empty() {
            let uid = self.uids(side, op).pop().expect("delivered");
            self.imap(side).command(&format!("UID STORE {uid} +FLAGS.SILENT ({})", keywords.join(" ")));
        }
    }

    /// UIDs of the messages of that tag; `nth` picks one.
    fn uids(&mut self, side: usize, op: &Op) -> Vec<u32> {
        let imap = self.imap(side);
        imap.select(&op.mailbox);
        let fetched = imap.command("UID FETCH 1:* (UID BODY.PEEK[HEADER.FIELDS (X-Oracle-Tag)])");
        let ours = fetched.iter().filter(|fetched| {
            let header = fetched.literals.first().map(|bytes| String::from_utf8_lossy(bytes).into_owned());
            header.is_some_and(|h| h.trim_end().strip_prefix("X-Oracle-Tag: ") == Some(op.msg.as_str()))
        });
        let mut uids: Vec<u32> = ours.filter_map(|fetched| number(&fetched.text, "UID ")).collect();
        uids.sort_unstable();
        assert!(!uids.is_empty(), "{}: no message {} in {}", self.scenario.title, op.msg, op.mailbox);
        op.nth.map_or(uids.clone(), |nth| vec![uids[nth]])
    }

    /// Where a mailbox lies in a Maildir++.
    fn maildir(&self, root: &Path, side: usize, mailbox: &str) -> PathBuf {
        let separator = [&self.scenario.separator_a, &self.scenario.separator_b][side].as_deref();
        let name = mutf7::encode(&mailbox.replace(separator.unwrap_or("/"), "."));
        if mailbox == "INBOX" { root.to_owned() } else { root.join(format!(".{name}")) }
    }

    fn path(&self, side: usize, mailbox: &str) -> PathBuf {
        let root = self.root(side);
        if self.setup.formats[side] == "maildir"
            && self.layout().is_empty()
            && (side == 1 || self.scenario.suffix_a.is_empty())
        {
            return self.maildir(&root, side, mailbox);
        }
        let output = self.doveadm(side, "yes").args(["mailbox", "path", mailbox]).output().expect("runs");
        PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())
    }

    fn file(&self, side: usize, op: &Op) -> PathBuf {
        let folder = self.path(side, &op.mailbox);
        let line = format!("X-Oracle-Tag: {}\n", op.msg);
        let files =
            ["cur", "new"].into_iter().flat_map(|sub| fs::read_dir(folder.join(sub)).expect("readable"));
        let mut paths = files.map(|entry| entry.expect("readable").path());
        paths.find(|path| fs::read_to_string(path).is_ok_and(|text| text.contains(&line))).expect("the file")
    }

    /// What Dovecot says is there.
    fn look(&mut self, side: usize, boxes: &mut Names, mails: &mut Names) -> Vec<String> {
        self.sessions[side] = None;
        let mut command = self.doveadm(side, "no");
        command.args(["exec", "imap"]);
        let mut imap = Imap::start(command);
        let mut found: BTreeMap<String, (bool, bool)> = BTreeMap::new();
        for (command, subscribed) in [("LIST \"\" \"*\"", false), ("LIST (SUBSCRIBED) \"\" \"*\"", true)] {
            for line in imap.command(command) {
                let (flags, name) = listed(&line.text, &line.literals);
                let flags = flags.to_lowercase();
                let entry = found.entry(name).or_default();
                entry.0 |= !subscribed && !flags.contains("\\nonexistent");
                entry.1 |= subscribed && flags.contains("\\subscribed");
            }
        }
        let mut lines = Vec::new();
        let mut only = Vec::new();
        for (name, (exists, subscribed)) in found {
            let word = if subscribed { " subscribed" } else { "" };
            match exists.then(|| self.read(&mut imap, &name, boxes, mails)).flatten() {
                Some(content) => {
                    lines.push(format!("{name}: {}{word}", content[0]));
                    lines.extend(content[1..].iter().map(|line| format!("{name}: {line}")));
                }
                None if exists && self.scenario.layout == "fs" => {
                    lines.push(format!("{name}: directory{word}"))
                }
                None if subscribed => only.push(name),
                None => {}
            }
        }
        if !only.is_empty() {
            lines.push(format!("only subscribed: {}", only.join(", ")));
        }
        lines
    }

    fn read(&self, imap: &mut Imap, name: &str, boxes: &mut Names, mails: &mut Names) -> Option<Vec<String>> {
        let status = imap.try_command(&format!("STATUS {} (X-GUID)", quoted(name))).ok()?;
        let guid = status.iter().find_map(|line| line.text.split_once("X-GUID ")).expect("a GUID").1;
        let guid = boxes.of(guid.trim_end_matches(')'));
        let opened = imap.command(&format!("EXAMINE {} (CONDSTORE)", quoted(name)));
        let code = |word: &str| opened.iter().find_map(|line| number(&line.text, word)).expect("told");
        let (validity, next) = (code("[UIDVALIDITY "), code("[UIDNEXT "));
        // One that was made up just now.
        let validity = if validity > 1_000_000_000 { "?".into() } else { validity.to_string() };
        let mut lines = vec![format!("{guid} V{validity} N{next}")];
        if opened.iter().any(|line| line.text == "* 0 EXISTS") {
            return Some(lines);
        }
        let mut found = BTreeMap::new();
        for mail in imap.command("UID FETCH 1:* (UID FLAGS INTERNALDATE X-GUID BODY.PEEK[])") {
            let Some(body) = mail.literals.last() else { continue };
            let within = |start: &str, end: char| {
                let (_, rest) = mail.text.split_once(start).expect("told");
                rest.split(end).next().unwrap_or_default().to_owned()
            };
            let uid = number(&mail.text, "UID ").expect("told");
            let mut flags: Vec<String> = within("FLAGS (", ')')
                .split(' ')
                .filter(|f| !f.is_empty() && *f != "\\Recent")
                .map(Into::into)
                .collect();
            flags.sort_by_key(|flag| (!flag.starts_with('\\'), flag.clone()));
            let date = within("INTERNALDATE \"", '"');
            let date = date.trim_end_matches(" +0000").trim_start();
            let date = if date.len() == 19 { format!("0{date}") } else { date.to_owned() };
            let text = String::from_utf8_lossy(body).replace("\r\n", "\n");
            let sum = Sha256::digest(String::from_utf8_lossy(body).replace("\r\n", "\n").as_bytes());
            let sum: String = sum[..4].iter().map(|byte| format!("{byte:02x}")).collect();
            let tag = text
                .lines()
                .take_while(|line| !line.is_empty())
                .find_map(|l| l.strip_prefix("X-Oracle-Tag: "));
            let raw = within("X-GUID ", ' ');
            let tag = tag.map_or_else(|| format!("sha:{sum}"), str::to_owned);
            found.insert(uid, (raw.trim_end_matches(')').to_owned(), tag, flags.join(" "), date, sum));
        }
        for (uid, (guid, tag, flags, date, sum)) in found {
            lines.push(format!("{uid} {tag} {} ({flags}) {date} {sum}", mails.of(&guid)));
        }
        Some(lines)
    }
}

/// Gives names to GUIDs in the order in which they come.
struct Names {
    kind: &'static str,
    known: BTreeMap<String, usize>,
}

impl Names {
    fn new(kind: &'static str) -> Names {
        Names { kind, known: BTreeMap::new() }
    }

    fn of(&mut self, guid: &str) -> String {
        let next = self.known.len() + 1;
        format!("{}{}", self.kind, self.known.entry(guid.to_owned()).or_insert(next))
    }
}

/// Flags and name of a `LIST` response.
fn listed(text: &str, literals: &[Vec<u8>]) -> (String, String) {
    let (flags, rest) = text.trim_start_matches("* LIST (").split_once(") ").expect("flags");
    // The separator is NIL or one character, which may be quoted.
    let (_, name) = rest
        .strip_prefix("\"\\\\\"")
        .or_else(|| rest.strip_prefix("NIL"))
        .map_or_else(|| rest.split_at(3), |name| ("", name));
    let name = name.trim_start();
    // Extended data may follow.
    let name = match (literals.first(), name.strip_prefix('"')) {
        (Some(literal), _) => String::from_utf8_lossy(literal).into_owned(),
        (None, Some(quoted)) => {
            let mut plain = String::new();
            let mut characters = quoted.chars();
            while let Some(c) = characters.next().filter(|c| *c != '"') {
                plain.push(if c == '\\' { characters.next().unwrap_or(c) } else { c });
            }
            plain
        }
        (None, None) => name.split(' ').next().unwrap_or_default().to_owned(),
    };
    (flags.to_owned(), mutf7::decode(&name).unwrap_or(name))
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
