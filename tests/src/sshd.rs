//! A real sshd on loopback with keys of its own. Who logs in finds only the programs that were put there.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::dovecot::{Dovecot, is_root};
use crate::programs::free_port;

const SSHD: &str = "/usr/sbin/sshd";

/// A running sshd; ended when dropped.
pub struct Sshd {
    child: Child,
    dir: PathBuf,
}

impl Sshd {
    /// Starts one with its files below `dir`. `None` where none is installed: then it says so.
    pub fn start(dovecot: &Dovecot, dir: &Path) -> Option<Sshd> {
        let found = Path::new(SSHD).exists() && Path::new("/usr/bin/ssh-keygen").exists();
        assert!(
            found || std::env::var_os("CI").is_none(),
            "no test by ssh may be skipped in CI: install openssh-server"
        );
        if !found {
            eprintln!("skipped: no sshd on this machine");
            return None;
        }
        let dir = dir.join("ssh");
        fs::create_dir_all(dir.join("bin")).expect("made");
        for key in ["host", "user"] {
            let made = Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(dir.join(key))
                .status();
            assert!(made.expect("ssh-keygen runs").success());
        }
        if is_root() {
            // sshd asks for this directory, if root runs it.
            fs::create_dir_all("/run/sshd").expect("made");
        }
        let port = free_port();
        let user =
            String::from_utf8(Command::new("id").arg("-un").output().expect("id runs").stdout).expect("text");
        let text = format!(
            "ListenAddress 127.0.0.1\nPort {port}\nHostKey {0}/host\nAuthorizedKeysFile {0}/user.pub\nPidFile none\nStrictModes no\nUsePAM no\n\
             PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\n\
             SetEnv PATH={0}/bin:/usr/bin:/bin\n",
            dir.display()
        );
        fs::write(dir.join("sshd.conf"), text).expect("written");
        let text = format!(
            "Host there\n  HostName 127.0.0.1\n  Port {port}\n  User {}\n  IdentityFile {1}/user\n  IdentitiesOnly yes\n  BatchMode yes\n  \
             StrictHostKeyChecking no\n  UserKnownHostsFile {1}/known\n  LogLevel ERROR\n",
            user.trim(),
            dir.display()
        );
        fs::write(dir.join("client.conf"), text).expect("written");
        for file in ["user", "client.conf"] {
            dovecot.own(&dir.join(file));
        }
        let open = |mode| fs::Permissions::from_mode(mode);
        fs::set_permissions(&dir, open(0o777)).expect("set");
        let log = fs::File::create(dir.join("log")).expect("made");
        let mut command = Command::new(SSHD);
        command.arg("-D").arg("-e").arg("-f").arg(dir.join("sshd.conf"));
        let child =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().expect("sshd starts");
        let sshd = Sshd { child, dir };
        let said = || fs::read_to_string(sshd.dir.join("log")).unwrap_or_default();
        let begun = Instant::now();
        while !said().contains("listening on") {
            assert!(begun.elapsed() < Duration::from_secs(20), "sshd does not start: {}", said());
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(sshd)
    }

    /// Puts a program there, with words that always come first. As root logs in, if root runs the tests, it gives that up.
    pub fn program(&self, name: &str, program: &Path, first: &[&str]) {
        let home = self.dir.parent().expect("has a parent").join("home");
        let user = if is_root() { "setpriv --reuid mail --regid mail --clear-groups -- " } else { "" };
        let text = format!(
            "#!/bin/sh\nHOME={} USER=alice exec {user}{} {} \"$@\"\n",
            home.display(),
            program.display(),
            first.join(" ")
        );
        let path = self.dir.join("bin").join(name);
        fs::write(&path, text).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("set");
    }

    /// A configuration for ssh in which this is the host `there`.
    pub fn client_conf(&self) -> PathBuf {
        self.dir.join("client.conf")
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing to end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
