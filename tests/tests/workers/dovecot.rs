//! Whose files are, beside a Dovecot that runs as root.

use std::fs;
use std::process::{Command, Stdio};

use dsync_tests::programs::Place;

use super::processes::wait_until;
use super::{SHARED, USERS, give, is_root, place, rights};

/// Owner, group and mode of every kind of file are those that Dovecot's own backup gives, in a private place and in a shared one.
#[test]
fn files_are_owned_as_dovecot_owns_them() {
    if !is_root() || !dsync_tests::dovecot::installed() {
        return;
    }
    let place = place();
    let dovecot = Dovecot::start(&place);
    let (name, id) = USERS[0];
    // In a shared place the directories within dbox are private here, which is wrong: Dovecot's have the rights of the place.
    let private = ["maildir", "mdbox", "sdbox"];
    let kinds = [("private", id, 0o700, &private[..]), ("shared", SHARED, 0o770, &private[..1])];
    for (kind, group, mode, formats) in kinds {
        for format in formats {
            let made = |who: &str| place.path(&format!("home/{name}/{who}-{kind}-{format}"));
            for who in ["dovecot", "ours"] {
                fs::create_dir(made(who)).expect("made");
                give(&made(who), id, group, mode);
            }
            let destination = |who| format!("{format}:{}", made(who).display());
            dovecot.backup(name, &destination("dovecot"));
            let (status, text) = place.run(&["backup", "-u", name, &destination("ours")]);
            assert_eq!(status, 0, "{text}");
            let (theirs, ours) = (rights(&made("dovecot")), rights(&made("ours")));
            // Files that only one of the two has are owned alike all the same.
            let names = |all: &std::collections::BTreeSet<String>| -> std::collections::BTreeSet<String> {
                all.iter().filter_map(|line| line.split(' ').next().map(str::to_owned)).collect()
            };
            let both: Vec<_> = names(&theirs).intersection(&names(&ours)).cloned().collect();
            assert!(both.len() >= 3, "{both:?}");
            let shared = |all: &std::collections::BTreeSet<String>| -> Vec<String> {
                all.iter()
                    .filter(|line| both.iter().any(|name| line.starts_with(&format!("{name} "))))
                    .cloned()
                    .collect()
            };
            assert_eq!(shared(&ours), shared(&theirs), "{name} {kind} {format}");
        }
    }
}

/// A Dovecot that runs as root, as it is meant to, for its userdb alone.
struct Dovecot {
    child: std::process::Child,
    conf: std::path::PathBuf,
}

impl Dovecot {
    fn start(place: &Place) -> Dovecot {
        let dir = place.path("dovecot");
        fs::create_dir(&dir).expect("made");
        give(&dir, 0, 0, 0o755);
        // Its auth process runs as its own user.
        give(&place.path("home.users"), 0, 0, 0o644);
        let (conf, dir) = (dir.join("dovecot.conf"), dir.display());
        let users = place.path("home.users");
        let text = format!(
            "base_dir = {dir}/run\nstate_dir = {dir}/state\nlog_path = {dir}/log\nssl = no\nprotocols =\n\
             mail_location = maildir:~/Maildir\nmail_access_groups = {SHARED}\nnamespace inbox {{\n  inbox = yes\n  separator = /\n}}\n\
             passdb {{\n  driver = passwd-file\n  args = {0}\n}}\nuserdb {{\n  driver = passwd-file\n  args = {0}\n}}\n\
             service anvil {{\n  chroot =\n}}\nservice stats {{\n  chroot =\n}}\n",
            users.display()
        );
        fs::write(&conf, text).expect("written");
        let mut command = Command::new("/usr/sbin/dovecot");
        command
            .arg("-F")
            .arg("-c")
            .arg(&conf)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = command.spawn().expect("dovecot starts");
        let log = conf.with_file_name("log");
        let dovecot = Dovecot { child, conf };
        wait_until("dovecot starts", || fs::read_to_string(&log).unwrap_or_default().contains("starting up"));
        dovecot
    }

    fn backup(&self, user: &str, destination: &str) {
        let mut command = Command::new("/usr/bin/doveadm");
        let output = command.arg("-c").arg(&self.conf).args(["backup", "-u", user, destination]).output();
        let output = output.expect("doveadm runs");
        assert!(output.status.success(), "{destination}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for Dovecot {
    fn drop(&mut self) {
        // Its children go with it, if it is told in words.
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let _ = self.child.wait();
    }
}
