//! A real Dovecot, standing alone with a private configuration: `doveadm` as an unprivileged user.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::installation::{self, is_24, mail_lines, mail_options, program, words};
use crate::programs::programs;

/// The user that Dovecot and dsync run as when the tests run as root: Dovecot refuses to handle mail as root.
const USER: &str = "mail";

/// A private Dovecot.
pub struct Dovecot {
    conf: PathBuf,
    home: PathBuf,
}

/// Says whether a Dovecot is installed. `tests/run` installs one; elsewhere the test says why it is skipped.
pub fn installed() -> bool {
    let found = program("doveadm").exists();
    assert!(
        found || (std::env::var_os("CI").is_none() && !is_24()),
        "no interop test may be skipped in CI, or where a 2.4 is named: {} is not there",
        program("doveadm").display()
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
            "{1}base_dir = {0}/run\nstate_dir = {0}/state\nlog_path = /dev/stderr\nssl = no\nfirst_valid_uid = 1\nfirst_valid_gid = 1\n\
             {2}{3}namespace inbox {{\n  inbox = yes\n  separator = /\n}}\n",
            dir.display(),
            installation::head(),
            installation::mail_home(&home),
            mail_lines(&format!("maildir:{}/unused", dir.display()))
        );
        fs::write(&conf, text).expect("written");
        Dovecot { conf, home }
    }

    /// A Dovecot in a directory of its own with these of our programs, as the build may lie where its user cannot reach.
    pub fn beside(names: &[&str]) -> (tempfile::TempDir, Dovecot) {
        let dir = tempfile::tempdir().expect("made");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).expect("set");
        for name in names {
            fs::copy(programs().join(name), dir.path().join(name)).expect("copied");
        }
        let dovecot = Dovecot::new(dir.path());
        dovecot.own(&dir.path().join("home"));
        (dir, dovecot)
    }

    /// The configuration, for programs of Dovecot that are started alone.
    pub fn conf(&self) -> &Path {
        &self.conf
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
        let mut command = self.as_user(&program("doveadm"));
        command.arg("-c").arg(&self.conf).args(mail_options(location)).args(words(arguments));
        let output = command.output().expect("doveadm runs");
        let complaints = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{location}: doveadm {arguments:?}: {complaints}");
        let bad = complaints
            .lines()
            .find(|line| line.contains("Error:") || line.contains("Warning:") || line.contains("Panic:"));
        assert!(bad.is_none(), "{location}: doveadm {arguments:?}: {complaints}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// An IMAP session on an account, on stdin and stdout.
    pub fn imap(&self, location: &str) -> Command {
        let mut command = self.as_user(&program("imap"));
        command.arg("-c").arg(&self.conf).args(mail_options(location));
        command
    }

    /// Lets Dovecot look at all files anew, of which it warns.
    pub fn force_resync(&self, location: &str) {
        let mut command = self.as_user(&program("doveadm"));
        command.arg("-c").arg(&self.conf).args(mail_options(location)).args(words(&["force-resync", "*"]));
        let output = command.output().expect("doveadm runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !said.contains("Error:"), "{location}: {said}");
    }

    /// Saves a message.
    pub fn save(&self, location: &str, mailbox: &str, text: &str) {
        let mut command = self.as_user(&program("doveadm"));
        command.arg("-c").arg(&self.conf).args(mail_options(location)).args(words(&["save", "-m", mailbox]));
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

    /// Statuses of all mailboxes, and these fields of all messages.
    pub fn view_of(&self, location: &str, of_mailbox: &str, of_message: &str) -> String {
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

/// A running Dovecot with a doveadm service on TCP and TLS, an IMAP server, and one user, alice; ended when dropped.
pub struct Service {
    child: Child,
    dir: PathBuf,
    ports: [u16; 3],
    /// The user's line in the passwd-file, up to the extra fields.
    line: String,
}

/// The user's password.
pub const PASSWORD: &str = "x";

impl Service {
    /// Starts it on `location`, with its files below `dir`.
    pub fn start(dovecot: &Dovecot, dir: &Path, location: &str, password: &str) -> Service {
        let started = (0..5).find_map(|_| Service::try_start(dovecot, dir, location, password));
        started.expect("a port that nobody takes")
    }

    /// `None`: between its choice and its use, somebody took a port.
    fn try_start(dovecot: &Dovecot, dir: &Path, location: &str, password: &str) -> Option<Service> {
        let dir = dir.join("service");
        fs::create_dir_all(&dir).expect("made");
        let ports = [(); 3].map(|()| crate::programs::free_port());
        for file in ["ca.pem", "server.pem", "server.key"] {
            fs::copy(crate::programs::certificates().join(file), dir.join(file)).expect("copied");
        }
        let id = |what: &str| {
            let output = dovecot.as_user(Path::new("id")).arg(what).output().expect("id runs");
            String::from_utf8(output.stdout).expect("text").trim().to_owned()
        };
        let (user, group) = (id("-un"), id("-gn"));
        let line =
            format!("alice:{{PLAIN}}{PASSWORD}:{}:{}::{}::", id("-u"), id("-g"), dovecot.home.display());
        fs::write(dir.join("passwd"), format!("{line}\n")).expect("written");
        let text = format!(
            "{4}base_dir = {0}/run\nstate_dir = {0}/state\nlog_path = {0}/log\nssl = yes\n\
             first_valid_uid = 1\nfirst_valid_gid = 1\ndefault_internal_user = {user}\n\
             default_internal_group = {group}\ndefault_login_user = {user}\n{5}\
             doveadm_password = {password}\nprotocols = imap\nauth_cache_size = 1M\nauth_failure_delay = 0\nnamespace inbox {{\n  inbox = yes\n  separator = /\n}}\n\
             {6}\
             service anvil {{\n  chroot =\n}}\nservice stats {{\n  chroot =\n}}\n\
             service imap-login {{\n  chroot =\n  inet_listener imap {{\n    {7} = 127.0.0.1\n    port = {3}\n  }}\n  \
             inet_listener imaps {{\n    port = 0\n  }}\n}}\n\
             service doveadm {{\n  inet_listener plain {{\n    {7} = 127.0.0.1\n    port = {1}\n  }}\n  \
             inet_listener tls {{\n    {7} = 127.0.0.1\n    port = {2}\n    ssl = yes\n  }}\n}}\n",
            dir.display(),
            ports[0],
            ports[1],
            ports[2],
            installation::head(),
            mail_lines(location),
            installation::databases(&dir),
            if is_24() { "listen" } else { "address" }
        );
        let conf = dir.join("dovecot.conf");
        fs::write(&conf, text).expect("written");
        dovecot.own(&dir);
        let mut command = dovecot.as_user(&program("dovecot"));
        command.arg("-F").arg("-c").arg(&conf);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().expect("dovecot starts");
        let service = Service { child, dir, ports, line };
        // It listens before it says so.
        let log = || fs::read_to_string(service.dir.join("log")).unwrap_or_default();
        let begun = Instant::now();
        while !log().contains("starting up") {
            if log().contains("Failed to start listeners") && log().contains("Address already in use") {
                fs::remove_file(service.dir.join("log")).expect("removed");
                return None;
            }
            assert!(begun.elapsed() < Duration::from_secs(20), "dovecot does not start: {}", log());
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(service)
    }

    /// The destination in plain TCP.
    pub fn tcp(&self) -> String {
        format!("tcp:localhost:{}", self.ports[0])
    }

    /// The destination by TLS.
    pub fn tls(&self) -> String {
        format!("tcps:localhost:{}", self.ports[1])
    }

    /// The process that all others of it are children of.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The port of the IMAP server.
    pub fn imap(&self) -> u16 {
        self.ports[2]
    }

    /// Its configuration.
    pub fn conf(&self) -> PathBuf {
        self.dir.join("dovecot.conf")
    }

    /// Gives the user other extra fields in the userdb, as an administrator does: in one step.
    pub fn set_extra_fields(&self, fields: &str) {
        let new = self.dir.join("passwd.new");
        fs::write(&new, format!("{}{fields}\n", self.line)).expect("written");
        fs::rename(new, self.dir.join("passwd")).expect("replaced");
    }

    /// Adds a user, whose home is beside alice's.
    pub fn add_user(&self, name: &str, password: &str) -> PathBuf {
        let fields: Vec<&str> = self.line.split(':').collect();
        let home = Path::new(fields[5]).with_file_name(name);
        let (uid, gid) = (fields[2], fields[3]);
        fs::create_dir_all(&home).expect("made");
        own(&home);
        let mut file =
            fs::File::options().append(true).open(self.dir.join("passwd")).expect("the passwd-file");
        writeln!(file, "{name}:{{PLAIN}}{password}:{uid}:{gid}::{}::", home.display()).expect("written");
        home
    }

    /// Where its sockets are.
    pub fn base_dir(&self) -> PathBuf {
        self.dir.join("run")
    }

    /// The destination on this machine: the socket of its doveadm service, which asks for no password.
    pub fn socket(&self) -> String {
        format!("tcp:{}/run/doveadm-server", self.dir.display())
    }

    /// The CA of its certificate, for everybody to read.
    pub fn ca(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).expect("a log")
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // Its children go with it, if it is told in words. If it has ended already, there is nothing to end.
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let _ = self.child.wait();
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

/// Whether this is root, so that what is started takes another user.
pub fn is_root() -> bool {
    let output = Command::new("id").arg("-u").output().expect("id runs");
    output.stdout.trim_ascii() == b"0"
}
