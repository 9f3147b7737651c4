//! Several namespaces at either end: which of them take part, and what cannot go from one into another.

use std::fs;
use std::process::Output;

use dsync_tests::dovecot::{Dovecot, assert_equal, installed};
use dsync_tests::installation::{dsync_server, home, is_24, own_mail_lines, program, words};
use dsync_tests::interop::World;

/// Other users' mail.
fn shared() -> String {
    let mail = own_mail_lines("maildir:%%h/Maildir");
    format!("namespace other {{\n  prefix = user/%%u/\n  type = shared\n  separator = /\n  {mail}}}\n")
}

/// A Dovecot whose user has several namespaces, one of them with a location of its own.
fn with_namespaces(world: &World, name: &str, prefix: &str) -> Dovecot {
    let dovecot = Dovecot::new(&world.path(name));
    let text = fs::read_to_string(dovecot.conf()).expect("read");
    let begin = text.split("namespace").next().expect("some text");
    // Without a namespace above it, each keeps its own subscriptions.
    let own = if prefix.is_empty() { "no" } else { "yes" };
    let text = format!(
        "{begin}namespace inbox {{\n  inbox = yes\n  prefix = {prefix}\n  separator = /\n}}\n\
         namespace archive {{\n  prefix = Archive/\n  separator = /\n  {0}  subscriptions = {own}\n}}\n\
         namespace public {{\n  prefix = Public/\n  type = public\n  list = children\n  separator = /\n  {1}  \
         subscriptions = {own}\n}}\n\
         {2}{3}",
        own_mail_lines(&format!("sdbox:{}/archive", world.path(name).display())),
        own_mail_lines(&format!("maildir:{}/public", world.path(name).display())),
        // A 2.4 looks other users up by an auth service, and ends in an assertion if there is none.
        if is_24() { String::new() } else { shared() },
        home(&world.path(name).join("home"))
    );
    fs::write(dovecot.conf(), text).expect("written");
    world.dovecot.own(&world.path(name));
    dovecot
}

#[test]
fn namespaces_take_part_as_in_dovecot() {
    namespaces_take_part("");
}

#[test]
fn namespaces_with_prefixes_take_part_as_in_dovecot() {
    namespaces_take_part("INBOX/");
}

/// Each of the four ways for two programs to meet ends as two Dovecots do that have the same configuration.
fn namespaces_take_part(prefix: &str) {
    if !installed() {
        return;
    }
    let world = World::new();
    let mut expected: Vec<String> = Vec::new();
    for (caller, server) in
        [("doveadm", "doveadm"), ("doveadm", "dsync"), ("dsync", "doveadm"), ("dsync", "dsync")]
    {
        let name = |end: &str| format!("{caller}{server}{}{end}", prefix.len());
        let [one, two] = ["a", "b"].map(|end| with_namespaces(&world, &name(end), prefix));
        let mail = |end: &str| format!("maildir:{}/unused", world.path(&name(end)).display());
        let (work, empty) = (format!("{prefix}Work/x"), format!("{prefix}Empty"));
        one.doveadm(
            &mail("a"),
            &["mailbox", "create", "-s", &work, &empty, "Archive/2020", "Archive/INBOX", "Public/Team/x"],
        );
        for mailbox in ["INBOX", &work, "Archive/2020", "Archive/INBOX", "Public/Team/x"] {
            one.save(&mail("a"), mailbox, "Subject: x\n\nx\n");
        }
        let run = |arguments: &[&str]| {
            let program = |name: &str| match name {
                "doveadm" => program(name),
                name => world.path(name),
            };
            let mut command = one.as_user(&program(caller));
            command.arg("-c").arg(one.conf());
            match caller {
                "doveadm" => command.args(words(arguments)),
                _ => command.args(arguments),
            };
            // Else a Dovecot that is called would have the configuration of the one that calls.
            let home = format!("HOME={}", world.path(&name("b")).join("home").display());
            command.args(["env", "-i", "PATH=/usr/bin", "USER=alice", &home]);
            match server {
                "dsync" => command
                    .arg(program("dsync-server"))
                    .arg("-c")
                    .arg(two.conf())
                    .args(["--stdio", "-u", "alice"]),
                _ => command.arg(program("doveadm")).arg("-c").arg(two.conf()).args(dsync_server()),
            };
            let Output { status, stderr, .. } = command.output().expect("runs");
            let said = String::from_utf8_lossy(&stderr);
            // A Dovecot whose INBOX got another GUID asks for a second run; a 2.4 makes one itself, the GUID of which may win.
            let two_dovecots = (caller, server) == ("doveadm", "doveadm");
            let own_inbox =
                is_24() && server == "doveadm" && said.contains("INBOX: the other end could not find");
            let again = status.code() == Some(2) && (two_dovecots || own_inbox);
            assert!(status.success() || again, "{caller} {server} {prefix:?} {arguments:?}: {status} {said}");
            again
        };
        let mut seen = Vec::new();
        let mut look = || {
            for (dovecot, end) in [(&one, "a"), (&two, "b")] {
                let below = format!("{prefix}*");
                let status = dovecot
                    .doveadm(&mail(end), &["mailbox", "status", "messages", "INBOX", &below, "Archive/*"]);
                let mut lines: Vec<String> = status.lines().map(str::to_owned).collect();
                lines.extend(
                    dovecot
                        .doveadm(&mail(end), &["mailbox", "list", "-s"])
                        .lines()
                        .map(|name| format!("subscribed {name}")),
                );
                // doveadm shows nothing of a public namespace.
                let team = world.path(&name(end)).join("public/.Team.x");
                let files =
                    ["new", "cur"].map(|part| fs::read_dir(team.join(part)).map_or(0, Iterator::count));
                lines.push(format!("Public/Team/x messages={}", files[0] + files[1]));
                lines.sort();
                lines.dedup();
                // Two Dovecots never settle INBOX where another namespace could have that name: one gets no mail.
                let unsettled = lines.iter_mut().find(|line| *line == "INBOX messages=0");
                if let (("doveadm", "doveadm"), "INBOX/", Some(line)) = ((caller, server), prefix, unsettled)
                {
                    *line = "INBOX messages=1".into();
                }
                seen.push(lines.join("\n"));
            }
        };
        if run(&["sync"]) && caller == "dsync" {
            assert!(!run(&["sync"]), "{caller} {server} {prefix:?}: settled by the second run");
        }
        look();
        run(&["sync", "-n", "Archive/"]);
        look();
        two.save(&mail("b"), "Archive/INBOX", "Subject: back\n\nx\n");
        two.doveadm(&mail("b"), &["mailbox", "delete", &empty]);
        run(&["sync"]);
        look();
        run(&["sync", "-N"]);
        look();
        if is_24() && (caller, server) == ("doveadm", "doveadm") {
            // One of two 2.4 makes a mailbox of the directory that a namespace is.
        } else if expected.is_empty() {
            assert!(
                !seen[1].contains("Archive/2020 messages") && seen[3].contains("Archive/2020 messages=1"),
                "{seen:?}"
            );
            assert!(
                seen[4].contains("Archive/INBOX messages=1") && seen[6].contains("Archive/INBOX messages=2"),
                "{seen:?}"
            );
            assert!(
                seen[5].contains("Public/Team/x messages=0") && seen[7].contains("Public/Team/x messages=1"),
                "{seen:?}"
            );
            expected = seen;
        } else {
            for (step, (ours, theirs)) in seen.iter().zip(&expected).enumerate() {
                assert_equal(ours, theirs, &format!("{caller} {server} {prefix:?} step {step}"));
            }
        }
    }
}

/// Of one account, in which a mailbox was renamed, and another one for which its new name lies in another namespace. Dovecot 2.3.19 panics
/// there: "assertion failed: (node->ns == other_node->ns)".
#[test]
fn a_rename_into_another_namespace_takes_the_mail_there() {
    if !installed() {
        return;
    }
    let world = World::new();
    let a = world.location("maildir", "one");
    let two = with_namespaces(&world, "two", "");
    let b = format!("maildir:{}/unused", world.path("two").display());
    let one = &world.dovecot;
    one.doveadm(&a, &["mailbox", "create", "-s", "Work", "Work/x", "Plain"]);
    one.save(&a, "Work", "Subject: x\n\nx\n");
    one.save(&a, "Work/x", "Subject: y\n\ny\n");
    let sync = |other: &Dovecot, options: &[&str]| {
        let mut command = one.as_user(&world.path("dsync"));
        command.arg("-c").arg(one.conf()).arg("sync").args(options).args(["--source", &a]);
        command.arg(world.path("dsync-server")).arg("-c").arg(other.conf()).args(["--stdio", "-u", "alice"]);
        let Output { status, stderr, .. } = command.output().expect("runs");
        (status.code(), String::from_utf8_lossy(&stderr).into_owned())
    };
    let look = |dovecot: &Dovecot, location: &str| {
        let fields = "uidvalidity uidnext messages guid";
        let status = dovecot.doveadm(location, &["mailbox", "status", fields, "*", "Archive/*"]);
        let mut lines: Vec<&str> = status.lines().collect();
        lines.sort_unstable();
        lines.dedup();
        lines.join("\n")
    };
    assert_eq!(sync(&two, &["-N"]), (Some(0), String::new()));
    let before = look(one, &a);
    assert_eq!(look(&two, &b), before);
    one.doveadm(&a, &["mailbox", "rename", "Work", "Archive/Work"]);
    one.save(&a, "Archive/Work", "Subject: z\n\nz\n");
    two.save(&b, "Work", "Subject: there\n\nt\n");
    assert_eq!(sync(&two, &["-N"]), (Some(0), String::new()));
    let after = look(one, &a);
    assert!(
        after.contains("Archive/Work messages=3") && after.contains("Archive/Work/x messages=1"),
        "{after}"
    );
    assert_eq!(look(&two, &b), after);
    // Back, told by the end with the namespaces, whose own Dovecot copies it, too: the GUID is another one then.
    one.doveadm(&a, &["mailbox", "rename", "Archive/Work", "Work"]);
    assert_eq!(sync(&two, &["-N"]), (Some(0), String::new()));
    assert_eq!(look(&two, &b), look(one, &a));
    assert!(look(&two, &b).contains("Work/x messages=1"));
    // Where the archive takes no part the mailbox is left alone under both of its names, and other mail goes on.
    one.doveadm(&a, &["mailbox", "rename", "Plain", "Archive/Plain"]);
    one.save(&a, "INBOX", "Subject: on\n\no\n");
    assert_eq!(sync(&two, &[]), (Some(0), String::new()));
    assert!(look(&two, &b).contains("\nPlain ") && look(&two, &b).contains("INBOX messages=1"));
    // So it is where a name would only be held in such a namespace.
    let three = with_namespaces(&world, "three", "INBOX/");
    let c = format!("maildir:{}/unused", world.path("three").display());
    assert_eq!(sync(&three, &["-n", "Archive/"]), (Some(0), String::new()));
    assert!(look(&three, &c).contains("Archive/Plain "));
    one.doveadm(&a, &["mailbox", "rename", "Archive/Plain", "Plain"]);
    assert_eq!(sync(&three, &["-n", "Archive/"]), (Some(0), String::new()));
    assert!(look(&three, &c).contains("Archive/Plain ") && look(one, &a).contains("\nPlain "));
}
