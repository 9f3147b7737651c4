//! Sessions with a real Dovecot, which calls or is called: the same end state as when both ends are Dovecots, and nothing to complain of in its log.

#[path = "interop/account.rs"]
mod account;
#[path = "interop/directories.rs"]
mod directories;
#[path = "interop/kills.rs"]
mod kills;
#[path = "interop/mbox.rs"]
mod mbox;
#[path = "interop/migrating.rs"]
mod migrating;
#[path = "interop/recorded.rs"]
mod recorded;
#[path = "interop/replay.rs"]
mod replay;
#[path = "interop/states.rs"]
mod states;
#[path = "interop/told.rs"]
mod told;
#[path = "interop/ways.rs"]
mod ways;

use std::fs;
use std::path::PathBuf;
use std::process::Output;

use dsync_tests::dovecot::{Dovecot, assert_equal, installed};
use dsync_tests::interop::{ALL, World, pairs};
use dsync_tests::peers::Ends;

const FORMATS: [&str; 3] = ["maildir", "sdbox", "mdbox"];

#[test]
fn a_first_backup_is_the_same_whoever_calls() {
    if !installed() {
        return;
    }
    for format in FORMATS {
        let world = World::new();
        let a = world.location(format, "a");
        world.fill(&a);
        let source = world.view(&a);
        for ends in ALL {
            let b = world.location(format, &format!("b-{ends:?}"));
            world.session(ends, &["backup"], &a, &b, &[0]);
            assert_equal(&world.view(&b), &source, &format!("{format} {ends:?}"));
            let reversed = world.location("maildir", &format!("r-{ends:?}"));
            world.session(ends, &["backup", "-R"], &reversed, &b, &[0]);
            assert_eq!(world.content(&reversed), world.content(&a), "{format} {ends:?} -R");
        }
        assert_equal(&world.view(&a), &source, "the source was changed");
    }
}

#[test]
fn two_ways_end_as_between_two_dovecots_and_stay_so() {
    if !installed() {
        return;
    }
    for format in FORMATS {
        let world = World::new();
        let mut expected: Option<String> = None;
        for (ends, a, b) in pairs(&world, format) {
            world.session(ends, &["sync"], &a, &b, &[0]);
            let (left, right) = (world.view(&a), world.view(&b));
            assert_equal(&left, &right, &format!("{format} {ends:?}: both ends"));
            for text in ["new at a", "new at b", "more at b", "Newer", "Made/at a", "$Later"] {
                assert!(left.contains(text), "{format} {ends:?}: {text}: {left}");
            }
            assert_equal(
                &left,
                expected.get_or_insert(left.clone()),
                &format!("{format} {ends:?}: as Dovecot"),
            );
            for mode in [&["sync"][..], &["sync", "-f"]] {
                world.session(ends, mode, &a, &b, &[0]);
                assert_equal(&world.view(&a), &left, &format!("{format} {ends:?} {mode:?} again: a"));
                assert_equal(&world.view(&b), &left, &format!("{format} {ends:?} {mode:?} again: b"));
            }
        }
    }
}

#[test]
fn one_way_modes_write_only_where_they_should() {
    if !installed() {
        return;
    }
    for (format, mode) in [
        ("maildir", &["sync", "-1"][..]),
        ("sdbox", &["sync", "-1", "-R"]),
        ("mdbox", &["backup"]),
        ("maildir", &["backup", "-R"]),
    ] {
        let world = World::new();
        let mut expected: Option<String> = None;
        for (ends, a, b) in pairs(&world, format) {
            let (source, destination) = if mode.contains(&"-R") { (&b, &a) } else { (&a, &b) };
            let before = world.view(source);
            // Dovecot gives a mailbox up that it would have to repair, and makes it anew in the next run; but not INBOX of a Maildir (65).
            // We repair at once.
            let repairs = mode[0] == "backup";
            let we_receive = ends == if mode.contains(&"-R") { Ends::WeCall } else { Ends::DovecotCalls };
            let allowed: &[i32] = if repairs && !we_receive { &[0, 2, 65, 75] } else { &[0] };
            let mut code = world.session(ends, mode, &a, &b, allowed);
            for _ in 0..2 {
                if code != 0 {
                    code = world.session(ends, mode, &a, &b, allowed);
                }
            }
            if code != 0 {
                assert_eq!((code, format), (65, "maildir"), "{ends:?} {mode:?}");
                continue;
            }
            let what = format!("{format} {mode:?} {ends:?}");
            assert_equal(&world.view(source), &before, &format!("{what}: the source"));
            if repairs {
                // UIDNEXT may be higher: what was in the way had a UID of its own first.
                assert_eq!(world.messages(destination), world.messages(source), "{what}: the copy");
                assert_eq!(world.content(destination), world.content(source), "{what}: the copy");
            } else {
                let content = world.content(destination);
                assert_eq!(&content, expected.get_or_insert(content.clone()), "{what}: as Dovecot");
                for _ in 0..2 {
                    world.session(ends, mode, &a, &b, &[0]);
                    assert_eq!(world.content(destination), content, "{what}: again");
                    assert_equal(&world.view(source), &before, &format!("{what}: the source, again"));
                }
            }
        }
    }
}

#[test]
fn single_mailboxes_and_exclusions_leave_the_rest_alone() {
    if !installed() {
        return;
    }
    let world = World::new();
    for (ends, a, b) in pairs(&world, "maildir") {
        world.session(ends, &["sync", "-m", "Work/Sub"], &a, &b, &[0]);
        assert!(world.content(&a).contains("more at b"), "{ends:?}");
        assert!(
            !world.content(&a).contains("new at b") && !world.content(&b).contains("new at a"),
            "{ends:?}"
        );
        world.session(ends, &["sync", "-x", "INBOX"], &a, &b, &[0]);
        assert!(world.content(&a).contains("Newer") && !world.content(&b).contains("Gone"), "{ends:?}");
        assert!(
            !world.content(&a).contains("new at b") && !world.content(&b).contains("new at a"),
            "{ends:?}"
        );
    }
}

/// A Dovecot that takes another UIDVALIDITY begins its index anew; told a first recent UID of 1 then, it logs that it shrank.
#[test]
fn another_uidvalidity_is_taken_without_complaint() {
    if !installed() {
        return;
    }
    for ends in [Ends::WeCall, Ends::DovecotCalls] {
        let world = World::new();
        let (a, b) = (world.location("maildir", "a"), world.location("maildir", "b"));
        world.fill(&a);
        for _ in 0..2 {
            world.session(ends, &["sync"], &a, &b, &[0]);
        }
        let ours = if ends == Ends::WeCall { &a } else { &b };
        world.doveadm(ours, "mailbox|update|--uid-validity|4000000000|INBOX");
        for _ in 0..2 {
            let (code, text) = world.talk(ends, &["sync"], &a, &b);
            assert!([0, 2].contains(&code) && !text.contains("Error"), "{ends:?}: {code} {text}");
        }
        assert_eq!(world.content(&a), world.content(&b), "{ends:?}");
        assert!(world.view(&a).contains("4000000000") && world.view(&b).contains("4000000000"), "{ends:?}");
    }
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
         namespace archive {{\n  prefix = Archive/\n  separator = /\n  location = sdbox:{}/archive\n  subscriptions = {own}\n}}\n\
         namespace public {{\n  prefix = Public/\n  type = public\n  list = children\n  separator = /\n  location = maildir:{0}/public\n  \
         subscriptions = {own}\n}}\n\
         namespace other {{\n  prefix = user/%%u/\n  type = shared\n  separator = /\n  location = maildir:%%h/Maildir\n}}\n\
         userdb {{\n  driver = static\n  args = home={0}/home\n}}\n",
        world.path(name).display()
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
                "doveadm" => PathBuf::from("/usr/bin/doveadm"),
                name => world.path(name),
            };
            let mut command = one.as_user(&program(caller));
            command.arg("-c").arg(one.conf()).args(arguments);
            // Else a Dovecot that is called would have the configuration of the one that calls.
            let home = format!("HOME={}", world.path(&name("b")).join("home").display());
            command.args(["env", "-i", "PATH=/usr/bin", "USER=alice", &home]);
            match server {
                "dsync" => command
                    .arg(program("dsync-server"))
                    .arg("-c")
                    .arg(two.conf())
                    .args(["--stdio", "-u", "alice"]),
                _ => command.arg(program("doveadm")).arg("-c").arg(two.conf()).arg("dsync-server"),
            };
            let Output { status, stderr, .. } = command.output().expect("runs");
            let said = String::from_utf8_lossy(&stderr);
            // A Dovecot whose INBOX got another GUID asks for a second run.
            let again = (caller, server) == ("doveadm", "doveadm") && status.code() == Some(2);
            assert!(status.success() || again, "{caller} {server} {prefix:?} {arguments:?}: {status} {said}");
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
        run(&["sync"]);
        look();
        run(&["sync", "-n", "Archive/"]);
        look();
        two.save(&mail("b"), "Archive/INBOX", "Subject: back\n\nx\n");
        two.doveadm(&mail("b"), &["mailbox", "delete", &empty]);
        run(&["sync"]);
        look();
        run(&["sync", "-N"]);
        look();
        if expected.is_empty() {
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

/// Of one account, in which a mailbox was renamed, and another one for which its new name lies in another namespace.
#[test]
fn a_rename_into_another_namespace_is_refused_and_loses_nothing() {
    if !installed() {
        return;
    }
    let world = World::new();
    let a = world.location("maildir", "one");
    let two = with_namespaces(&world, "two", "");
    let b = format!("maildir:{}/unused", world.path("two").display());
    let one = &world.dovecot;
    one.doveadm(&a, &["mailbox", "create", "Work", "Work/x"]);
    one.save(&a, "Work", "Subject: x\n\nx\n");
    let sync = || {
        let mut command = one.as_user(&world.path("dsync"));
        command.arg("-c").arg(one.conf()).args(["sync", "-N", "--source", &a]);
        command.arg(world.path("dsync-server")).arg("-c").arg(two.conf()).args(["--stdio", "-u", "alice"]);
        let Output { status, stderr, .. } = command.output().expect("runs");
        (status.code(), String::from_utf8_lossy(&stderr).into_owned())
    };
    assert_eq!(sync(), (Some(0), String::new()));
    one.doveadm(&a, &["mailbox", "rename", "Work", "Archive/Work"]);
    for messages in 1..3 {
        one.save(&a, "INBOX", "Subject: y\n\ny\n");
        one.save(&a, "Archive/Work", "Subject: z\n\nz\n");
        let (status, said) = sync();
        assert_eq!(status, Some(65), "{said}");
        assert!(said.contains("Work: cannot be renamed to Archive/Work: into another namespace"), "{said}");
        let counts = |location: &str, dovecot: &Dovecot, name: &str| {
            dovecot.doveadm(location, &["mailbox", "status", "messages", name])
        };
        let mails = messages + 1;
        assert_eq!(counts(&a, one, "Archive/Work"), format!("Archive/Work messages={mails}\n"));
        assert_eq!(counts(&b, &two, "Work"), format!("Work messages={mails}\n"), "it is one mailbox");
        assert_eq!(counts(&b, &two, "INBOX"), format!("INBOX messages={messages}\n"), "the rest goes on");
    }
}
