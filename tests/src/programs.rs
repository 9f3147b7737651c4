//! The programs as a user runs them: built once, started with private files on free ports, ended when dropped.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// The directory of the programs that belong to this build, which are built if need be.
pub fn programs() -> PathBuf {
    static BUILT: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();
    BUILT
        .get_or_init(|| {
            let here = std::env::current_exe().expect("known");
            let directory = here.parent().expect("a directory");
            let in_deps = directory.ends_with("deps");
            let directory =
                if in_deps { directory.parent().expect("target/<profile>") } else { directory }.to_owned();
            let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
            let release = directory.ends_with("release");
            let mut build = Command::new(env!("CARGO"));
            build.args(["build", "--quiet", "-p", "dsync", "-p", "dsync-server"]).current_dir(root);
            build.arg("--target-dir").arg(directory.parent().expect("target"));
            if release {
                build.arg("--release");
            }
            // What cargo says of this crate makes it build others anew: their build scripts watch these.
            for (name, _) in std::env::vars_os() {
                let words = name.to_string_lossy();
                if words.starts_with("CARGO_PKG_") || words.starts_with("CARGO_MANIFEST_") {
                    build.env_remove(&name);
                }
            }
            assert!(build.status().expect("cargo runs").success(), "the programs do not build");
            directory
        })
        .clone()
}

/// The throw-away certificates.
pub fn certificates() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").join("certs-dev")
}

/// Lets root, where tests run as root, work for users who have no uid.
pub const AS_ROOT: &str = "first_valid_uid = 0\n";

/// A directory with a server's and a client's configuration.
pub struct Place {
    pub dir: tempfile::TempDir,
    pub port: u16,
}

/// A running server; ended when dropped.
pub struct Server {
    pub child: Child,
    lines: mpsc::Receiver<String>,
}

pub const PASSWORD: &str = "a secret for tests";

impl Place {
    /// Makes the configurations; `server` holds more settings for the server.
    pub fn new(server: &str) -> Place {
        let dir = tempfile::tempdir().expect("made");
        let port = free_port();
        let (root, certs) = (dir.path(), certificates());
        let (root_text, certs) = (root.display(), certs.display());
        let text = format!(
            "{AS_ROOT}mail_location = maildir:{root_text}/server/%u\nlisten = 127.0.0.1\ndoveadm_port = {port}\n\
             doveadm_password = \"{PASSWORD}\"\nssl = yes\nssl_cert = <{certs}/server.pem\nssl_key = <{certs}/server.key\n{server}\n"
        );
        fs::write(root.join("server.conf"), text).expect("written");
        let client =
            format!("{AS_ROOT}ssl_client_ca_file = {certs}/ca.pem\ndoveadm_password = \"{PASSWORD}\"\n");
        fs::write(root.join("client.conf"), client).expect("written");
        Place { dir, port }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts the server and waits until it listens.
    pub fn serve(&self) -> Server {
        let mut command = Command::new(programs().join("dsync-server"));
        command.arg("-c").arg(self.path("server.conf"));
        Server::start(command)
    }

    /// `dsync` with the client's configuration, not run yet.
    pub fn dsync(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(programs().join("dsync"));
        command
            .arg("-c")
            .arg(self.path("client.conf"))
            .args(arguments)
            .env("HOME", self.dir.path())
            .env("USER", "alice");
        command
    }

    /// Runs `dsync`; its exit status and stderr.
    pub fn run(&self, arguments: &[&str]) -> (i32, String) {
        let Output { status, stderr, .. } = self.dsync(arguments).output().expect("runs");
        (status.code().unwrap_or(-1), String::from_utf8_lossy(&stderr).into_owned())
    }

    /// The destination by TLS.
    pub fn tls(&self) -> String {
        format!("tcps:localhost:{}", self.port)
    }
}

impl Server {
    /// Starts one and waits until it listens.
    pub fn start(mut command: Command) -> Server {
        command.stderr(Stdio::piped()).stdin(Stdio::null());
        let mut child = command.spawn().expect("starts");
        let (send, lines) = mpsc::channel();
        let log = BufReader::new(child.stderr.take().expect("piped"));
        std::thread::spawn(move || log.lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
        let server = Server { child, lines };
        server.wait_for("listening on");
        server
    }

    /// Waits for a line of the log that holds `text`.
    pub fn wait_for(&self, text: &str) -> String {
        let mut seen = Vec::new();
        loop {
            match self.lines.recv_timeout(Duration::from_secs(20)) {
                Ok(line) if line.contains(text) => return line,
                Ok(line) => seen.push(line),
                Err(_) => panic!("the log never says {text:?}: {seen:#?}"),
            }
        }
    }

    /// Sends a signal, by name.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").arg(format!("-{name}")).arg(self.child.id().to_string()).status();
        assert!(sent.expect("kill runs").success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing to end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that nobody listens on now.
pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("known").port()
}
