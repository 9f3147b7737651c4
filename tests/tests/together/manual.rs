//! The examples of doveadm-sync(1) as they are written there, with `dsync` for `doveadm`, typed into a shell. `ssh` is a script that runs the
//! command on this machine, in an environment of its own.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use dsync_tests::dovecot::{Dovecot, assert_equal, installed};
use dsync_tests::programs::programs;

const USER: &str = "username@domain.org";

struct World {
    dir: tempfile::TempDir,
    dovecot: Dovecot,
}

impl World {
    /// Two machines, one of which holds mail: `local/bin` and `remote/bin` are what is installed there.
    fn new() -> World {
        let dir = tempfile::tempdir().expect("made");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).expect("set");
        let dovecot = Dovecot::new(dir.path());
        let world = World { dir, dovecot };
        let root = world.dir.path();
        for program in ["dsync", "dsync-server"] {
            fs::copy(programs().join(program), root.join(program)).expect("copied");
        }
        for (machine, location) in [("local", "mdbox:~/mdbox"), ("remote", "sdbox:~/sdbox")] {
            let (bin, home) = (root.join(machine).join("bin"), root.join(machine).join("home"));
            fs::create_dir_all(&bin).expect("made");
            fs::create_dir_all(&home).expect("made");
            let conf = root.join(machine).join("dovecot.conf");
            let text = fs::read_to_string(world.dovecot.conf()).expect("read");
            let unused = format!("maildir:{}/unused", root.display());
            let text = text.replace(&unused, location);
            let home = home.display();
            let userdb = format!("userdb {{\n  driver = static\n  args = home={home}\n}}\n");
            fs::write(&conf, text + &userdb).expect("written");
            for (name, program) in [
                ("dsync", root.join("dsync")),
                ("dsync-server", root.join("dsync-server")),
                ("doveadm", PathBuf::from("/usr/bin/doveadm")),
            ] {
                let line = format!("exec {} -c {} \"$@\"", program.display(), conf.display());
                world.script(&format!("{machine}/bin/{name}"), &line);
            }
        }
        let (words, remote) = (root.join("words").display().to_string(), root.join("remote"));
        let remote = remote.display();
        world.script(
            "local/bin/ssh",
            &format!(
                "echo \"$@\" >>{words}\nwhile [ \"${{1#-}}\" != \"$1\" ]; do shift 2; done\nshift\nexport HOME={remote}/home PATH={remote}/bin:$PATH\n\
                 exec sh -c \"$*\""
            ),
        );
        world.dovecot.own(root);
        world
    }

    fn script(&self, name: &str, text: &str) {
        let path = self.dir.path().join(name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("set");
    }

    /// Types a line into the shell of the local machine.
    fn type_line(&self, line: &str) {
        let local = self.dir.path().join("local");
        let path = format!("{}/bin:{}", local.display(), std::env::var("PATH").expect("set"));
        let mut shell = self.dovecot.as_user(Path::new("/bin/sh"));
        shell.args(["-c", line]).env("HOME", local.join("home")).env("PATH", path).env("USER", USER);
        let output = shell.output().expect("runs");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && text.is_empty(), "{line}: {:?} {text}", output.status);
    }

    fn location(&self, what: &str, format: &str) -> String {
        format!("{format}:{}/{what}", self.dir.path().display())
    }

    /// Both have the same mail, and some.
    fn assert_same(&self, one: &str, two: &str) {
        let (one, two) = (self.dovecot.view(one), self.dovecot.view(two));
        assert_equal(&one, &two, "they differ");
        assert!(one.contains("Subject: "), "{one}");
    }
}

#[test]
fn mailboxes_are_synchronised_with_a_remote_server() {
    if !installed() {
        return;
    }
    let world = World::new();
    let local = world.location("local/home/mdbox", "mdbox");
    let remote = world.location("remote/home/sdbox", "sdbox");
    world.dovecot.doveadm(&local, &["mailbox", "create", "-s", "Archive"]);
    for (n, line) in [
        format!("dsync sync -u {USER} remote:server-replica.example.com"),
        // The other end runs dsync-server, or is a Dovecot.
        format!("dsync sync -u {USER} ssh -i id_dsa.dovecot mailuser@replica.example.com dsync-server -u {USER}"),
        format!(
            "dsync sync -u {USER} ssh -i id_dsa.dovecot \\\n     mailuser@replica.example.com doveadm dsync-server"
        ),
    ]
    .iter()
    .enumerate()
    {
        world.dovecot.save(&local, "Archive", &format!("Subject: {n} here\n\nText.\n"));
        if n > 0 {
            world.dovecot.save(&remote, "INBOX", &format!("Subject: {n} there\n\nText.\n"));
        }
        world.type_line(line);
        world.assert_same(&local, &remote);
    }
    let words = fs::read_to_string(world.dir.path().join("words")).expect("ssh was run");
    let lines: Vec<&str> = words.lines().collect();
    assert_eq!(lines.len(), 3, "{words}");
    assert!(lines[0].starts_with("server-replica.example.com ") && lines[0].contains(USER), "{words}");
    assert!(lines[1].starts_with("-i id_dsa.dovecot mailuser@replica.example.com dsync-server"), "{words}");
}

#[test]
fn a_logged_in_user_converts_the_own_maildir() {
    if !installed() {
        return;
    }
    let world = World::new();
    let old = world.location("local/home/Maildir", "maildir");
    world.dovecot.doveadm(&old, &["mailbox", "create", "-s", "Archive"]);
    for mailbox in ["INBOX", "Archive", "INBOX"] {
        world.dovecot.save(&old, mailbox, &format!("Subject: in {mailbox}\n\nText.\n"));
    }
    let before = world.dovecot.view(&old);
    world.type_line("dsync sync maildir:~/Maildir");
    world.assert_same(&old, &world.location("local/home/mdbox", "mdbox"));
    assert_equal(&world.dovecot.view(&old), &before, "the Maildir was changed");
    // Directories have one mode, or Dovecot refuses to move a mailbox below another.
    world.dovecot.doveadm(
        &world.location("local/home/mdbox", "mdbox"),
        &["mailbox", "rename", "Archive", "Old/Archive"],
    );
}
