//! What IMAP sessions that have listed mailboxes see of what became of them.

use std::fs;
use std::path::Path;

use dsync_tests::dovecot::installed;
use dsync_tests::imap::Imap;
use dsync_tests::installation::{mail_lines, mail_options, program, words};

use super::World;

/// A session looks at the disk at its first LIST; later, and for what it remembers of a mailbox, it trusts the list index.
#[test]
fn a_session_that_has_listed_sees_what_became_of_mailboxes() {
    if !installed() {
        return;
    }
    let by_index = ["maildir", "mdbox", "mbox"].map(|format| (format, ":LAYOUT=index"));
    for (format, layout) in
        ["maildir", "sdbox", "mdbox", "mbox"].map(|format| (format, "")).into_iter().chain(by_index)
    {
        let world = World::new();
        let roots = ["a", "b"].map(|name| world.dir.path().join(name));
        for root in &roots {
            fs::create_dir(root).expect("made");
            world.dovecot.own(root);
        }
        let (one, two) =
            (format!("maildir:{}", roots[0].display()), format!("{format}:{}{layout}", roots[1].display()));
        let format = format!("{format}{layout}");
        let create = |location: &str, names: &[&str]| {
            for name in names {
                world.dovecot.doveadm(location, &["mailbox", "create", name]);
                world.dovecot.save(location, name, &format!("Subject: in {name}\n\nBody.\n"));
            }
        };
        let statuses = |location: &str| {
            let words = ["-f", "tab", "mailbox", "status", "messages guid uidvalidity", "*"];
            let text = world.dovecot.doveadm(location, &words);
            let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
            lines.sort_unstable();
            lines
        };
        create(&one, &["Kept", "Gone", "Moved", "Again"]);
        // Made at both ends: the destination's gets the identity of the source's.
        create(&two, &["Kept"]);
        for location in [&one, &two] {
            world.dovecot.save(location, "INBOX", "Subject: inbox\n\nBody.\n");
        }
        // Dovecot 2.3.19 complains once of the UIDVALIDITY of the INBOX that it just made itself in a Maildir of LAYOUT=index.
        // So does a 2.4, at either end.
        for location in [&one, &two] {
            let mut first = world.dovecot.as_user(&program("doveadm"));
            first.arg("-c").arg(world.dovecot.conf()).args(mail_options(location));
            first.args(words(&["mailbox", "status", "messages", "INBOX"])).output().expect("runs");
        }
        assert_ne!(statuses(&one), statuses(&two), "{format}");
        let conf = world.dir.path().join("session.conf");
        let text = fs::read_to_string(world.dovecot.conf()).expect("read");
        let log = world.dir.path().join("home/session.log");
        let text = format!("{text}{}", mail_lines(&two));
        fs::write(&conf, text).expect("written");
        let mut session = world.dovecot.as_user(Path::new("/bin/sh"));
        let line = format!(
            "exec {} -c {} exec imap 2>{}",
            program("doveadm").display(),
            conf.display(),
            log.display()
        );
        session.arg("-c").arg(line);
        let mut session = Imap::start(session);
        let mut listed = || {
            let responses = session.command("LIST \"\" *");
            let names = responses
                .iter()
                .filter(|response| !response.text.to_ascii_lowercase().contains("\\noselect"));
            let names = names.filter_map(|response| response.text.rsplit(' ').next().map(str::to_owned));
            let mut names: Vec<String> = names.collect();
            names.sort_unstable();
            // What it tells of each is part of what it remembers.
            let told = names.iter().map(|name| {
                let status = session.command(&format!("STATUS {name} (MESSAGES UIDVALIDITY)"));
                status[0].text.clone()
            });
            let told: Vec<String> = told.collect();
            (names, told)
        };
        assert_eq!(listed().0, ["INBOX", "Kept"], "{format}");
        world.sync(&["backup", "--source", &one, &two]);
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(listed().0, names(&["Again", "Gone", "INBOX", "Kept", "Moved"]), "{format}");
        assert_eq!(statuses(&one), statuses(&two), "{format}: created and identified");
        for name in ["Gone", "Again"] {
            world.dovecot.doveadm(&one, &["mailbox", "delete", name]);
        }
        create(&one, &["Again", "New"]);
        world.dovecot.doveadm(&one, &["mailbox", "rename", "Moved", "Up/Moved"]);
        world.sync(&["backup", "--source", &one, &two]);
        let (seen, told) = listed();
        assert_eq!(seen, names(&["Again", "INBOX", "Kept", "New", "Up/Moved"]), "{format}");
        let ours = statuses(&one);
        assert_eq!(ours, statuses(&two), "{format}: deleted, renamed and made again");
        for (name, told) in seen.iter().zip(told) {
            let line = ours.iter().find(|line| line.starts_with(&format!("{name}\t"))).expect("listed");
            // Columns as Dovecot orders them: mailbox, messages, UIDVALIDITY, GUID.
            let columns: Vec<&str> = line.split('\t').collect();
            let expected = format!("* STATUS {name} (MESSAGES {} UIDVALIDITY {})", columns[1], columns[2]);
            assert_eq!(told, expected, "{format}");
        }
        drop(session);
        let log = fs::read_to_string(&log).expect("a log");
        assert!(log.contains("Logged out"), "{log}");
        assert!(!log.contains("Error:") && !log.contains("Warning:") && !log.contains("Panic:"), "{log}");
    }
}

/// In Maildir++ a name is left for what is below it, and nothing is on the disk that would tell Dovecot that it is no mailbox any more.
#[test]
fn a_name_that_is_left_only_for_those_below_it_is_no_mailbox() {
    if !installed() {
        return;
    }
    for format in ["maildir", "sdbox"] {
        let world = World::new();
        // Dovecot itself leaves a Maildir++ behind that it complains of.
        let [one, two] = [("sdbox", "a"), (format, "b")].map(|(format, name)| {
            let root = world.dir.path().join(name);
            fs::create_dir(&root).expect("made");
            world.dovecot.own(&root);
            format!("{format}:{}", root.display())
        });
        // It complains of a name that it lists as a mailbox and that is none.
        let statuses = |location: &str| {
            let text = world.dovecot.doveadm(location, &["-f", "tab", "mailbox", "status", "messages", "*"]);
            let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
            lines.sort_unstable();
            lines
        };
        let step = |commands: &[&[&str]]| {
            commands.iter().for_each(|command| drop(world.dovecot.doveadm(&one, command)));
            world.sync(&["backup", "--source", &one, &two]);
            assert_eq!(statuses(&one), statuses(&two), "{format}: {commands:?}");
        };
        step(&[&["mailbox", "create", "Gone", "Gone/Below", "Other", "Other/Below"]]);
        step(&[&["mailbox", "delete", "Gone"]]);
        // Dovecot renames what is below along.
        step(&[
            &["mailbox", "rename", "Other/Below", "Aside"],
            &["mailbox", "rename", "Other", "Moved"],
            &["mailbox", "rename", "Aside", "Other/Below"],
        ]);
        step(&[&["mailbox", "create", "Gone", "Other"]]);
        assert_eq!(statuses(&two).len(), 7, "{format}");
        // What Dovecot itself renamed is still a mailbox in its list when another one comes below that name.
        world.dovecot.doveadm(&two, &["mailbox", "rename", "Gone/Below", "Kept"]);
        world.dovecot.doveadm(&two, &["mailbox", "rename", "Gone", "Away"]);
        world.dovecot.doveadm(&one, &["mailbox", "create", "Gone/New"]);
        world.sync(&["sync", "--source", &one, &two]);
        assert_eq!(statuses(&one), statuses(&two), "{format}: renamed by Dovecot");
    }
}
