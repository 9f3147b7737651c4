//! A real Dovecot, standing alone with a private configuration: `doveadm` as an unprivileged user.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The user that Dovecot and dsync run as when the tests run as root: Dovecot refuses to handle mail as root.
const USER: &str = "mail";

/// A private Dovecot.
pub struct Dovecot {
    conf: PathBuf,
    home: PathBuf,
}

/// Says whether a Dovecot is installed. `tests/run` installs one; elsewhere the test says why it is skipped.
pub fn installed() -> bool {
    let found = Path::new("/usr/bin/doveadm").exists();
    assert!(
        found || std::env::var_os("CI").is_none(),
        "no interop test may be skipped in CI: install dovecot-core"
    );
    if !found {
        eprintln!("skipped: no doveadm on this machine");
    }
    found
}

impl Dovecot {
    /// Makes its files below `dir`, which must be reachable for everybody.
    pub fn new(dir: &Path) -> Dovecot {
        let (conf, home) = (dir.join("dovecot.conf"), dir.join("home"));
        fs::create_dir_all(&home).expect("made");
        let text = format!(
            "base_dir = {0}/run\nstate_dir = {0}/state\nlog_path = /dev/stderr\nssl = no\nfirst_valid_uid = 1\nfirst_valid_gid = 1\n\
             mail_location = maildir:{0}/unused\nnamespace inbox {{\n  inbox = yes\n  separator = /\n}}\n",
            dir.display()
        );
        fs::write(&conf, text).expect("written");
        Dovecot { conf, home }
    }

    /// Gives the files to the user that everything runs as.
    pub fn own(&self, path: &Path) {
        own(path);
    }

    /// A program as the unprivileged user.
    pub fn as_user(&self, program: &Path) -> Command {
        let mut command = unprivileged(program);
        command.env("HOME", &self.home).env("USER", "alice").current_dir("/");
        command
    }

    /// Runs `doveadm` on an account; it must have nothing to complain of.
    pub fn doveadm(&self, location: &str, arguments: &[&str]) -> String {
        let mut command = self.as_user(Path::new("/usr/bin/doveadm"));
        command.arg("-c").arg(&self.conf).arg("-o").arg(format!("mail_location={location}")).args(arguments);
        let output = command.output().expect("doveadm runs");
        let complaints = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "doveadm {arguments:?}: {complaints}");
        let bad = complaints
            .lines()
            .find(|line| line.contains("Error:") || line.contains("Warning:") || line.contains("Panic:"));
        assert!(bad.is_none(), "doveadm {arguments:?}: {complaints}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Saves a message.
    pub fn save(&self, location: &str, mailbox: &str, text: &str) {
        use std::io::Write;
        let mut command = self.as_user(Path::new("/usr/bin/doveadm"));
        command
            .arg("-c")
            .arg(&self.conf)
            .arg("-o")
            .arg(format!("mail_location={location}"))
            .args(["save", "-m", mailbox]);
        let mut child = command.stdin(std::process::Stdio::piped()).spawn().expect("doveadm runs");
        child.stdin.take().expect("piped").write_all(text.as_bytes()).expect("written");
        assert!(child.wait().expect("ends").success());
    }

    /// All that Dovecot reports of an account that must be equal on two sides.
    pub fn view(&self, location: &str) -> String {
        let fields = "uid guid flags date.received size.physical size.virtual text";
        self.view_of(location, "uidvalidity uidnext messages unseen vsize guid", fields)
    }

    /// HIGHESTMODSEQ of each mailbox and MODSEQ of each message, with what identifies them.
    pub fn modseqs(&self, location: &str) -> String {
        self.view_of(location, "uidvalidity uidnext highestmodseq guid", "uid flags modseq")
    }

    fn view_of(&self, location: &str, of_mailbox: &str, of_message: &str) -> String {
        let status = self.doveadm(location, &["-f", "tab", "mailbox", "status", of_mailbox, "*"]);
        let mut lines: Vec<&str> = status.lines().collect();
        lines.sort_unstable();
        let mut view = lines.join("\n");
        // The heading names the columns, the first of which is the mailbox.
        for name in lines.iter().filter_map(|line| line.split('\t').next()).filter(|name| *name != "mailbox")
        {
            view.push('\n');
            view.push_str(
                &self.doveadm(location, &["-f", "json", "fetch", of_message, "mailbox", name, "all"]),
            );
        }
        let subscribed = self.doveadm(location, &["mailbox", "list", "-s"]);
        let mut subscribed: Vec<&str> = subscribed.lines().collect();
        subscribed.sort_unstable();
        view.push_str(&format!("\nsubscribed {}", subscribed.join(", ")));
        comparable(&view)
    }
}

/// One line a message, its flags sorted and without `\Recent`: it says who looked first, and never travels.
pub fn comparable(view: &str) -> String {
    let sorted = |line: &str| {
        let Some((before, rest)) = line.split_once("\"flags\":\"") else { return line.to_owned() };
        let Some((flags, after)) = rest.split_once('"') else { return line.to_owned() };
        let mut flags: Vec<&str> =
            flags.split_whitespace().filter(|flag| !flag.ends_with("Recent")).collect();
        flags.sort_unstable();
        format!("{before}\"flags\":\"{}\"{after}", flags.join(" "))
    };
    view.replace("},{", "},\n{").lines().map(sorted).collect::<Vec<_>>().join("\n")
}

/// Fails with the first line that differs.
pub fn assert_equal(ours: &str, theirs: &str, what: &str) {
    let differing = ours.lines().zip(theirs.lines()).find(|(a, b)| a != b);
    let short = |line: &str| line.chars().take(400).collect::<String>();
    if let Some((a, b)) = differing {
        panic!("{what}:\n{}\n{}", short(a), short(b));
    }
    assert_eq!(ours.lines().count(), theirs.lines().count(), "{what}: lines");
}

/// Gives files to the user that servers run as.
pub fn own(path: &Path) {
    if is_root() {
        let done = Command::new("chown").arg("-R").arg(format!("{USER}:{USER}")).arg(path).status();
        assert!(done.expect("chown runs").success());
    }
}

/// A program that does not run as root.
pub fn unprivileged(program: &Path) -> Command {
    if is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", USER, "--regid", USER, "--clear-groups", "--"]).arg(program);
        command
    } else {
        Command::new(program)
    }
}

fn is_root() -> bool {
    let output = Command::new("id").arg("-u").output().expect("id runs");
    output.stdout.trim_ascii() == b"0"
}
