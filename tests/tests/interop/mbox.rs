//! An mbox at one end: messages are compared by hashes of their headers, as far as Dovecot 2.3.19 bears it.

use std::fs;
use std::process::Output;

use dsync_tests::dovecot::{Service, installed};
use dsync_tests::interop::World;
use dsync_tests::peers::Ends;
use dsync_tests::programs::PASSWORD;

/// An account that is an mbox, with an empty INBOX.
fn mbox(world: &World, name: &str) -> String {
    let path = world.path(name);
    fs::create_dir_all(&path).expect("made");
    fs::write(path.join("inbox"), "").expect("written");
    world.dovecot.own(&path);
    format!("mbox:{0}:INBOX={0}/inbox", path.display())
}

fn deliver(world: &World, location: &str, number: u32) {
    let text = format!(
        "From: a@example.org\nDate: Mon, 06 Jan 2025 10:00:00 +0000\nMessage-ID: <{number}@example.org>\nSubject: m{number}\n\nBody {number}\n"
    );
    world.dovecot.save(location, "INBOX", &text);
}

/// UIDs, subjects, flags and texts.
fn mails(world: &World, location: &str) -> String {
    let text = world.doveadm(location, "-f|tab|fetch|uid hdr.subject flags body|mailbox|INBOX|all");
    let words = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().filter(|word| *word != "\\Recent").collect();
        words.join(" ")
    };
    text.lines().map(words).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("\n")
}

#[test]
fn an_mbox_of_ours_and_a_dovecot_stay_in_step() {
    if !installed() {
        return;
    }
    for (ends, format) in [
        (Ends::WeCall, "maildir"),
        (Ends::DovecotCalls, "maildir"),
        (Ends::WeCall, "mdbox"),
        (Ends::DovecotCalls, "sdbox"),
    ] {
        let world = World::new();
        let (theirs, ours) = (world.location(format, "theirs"), mbox(&world, "ours"));
        let (a, b) = if ends == Ends::WeCall { (&ours, &theirs) } else { (&theirs, &ours) };
        let sync = |what: &str| {
            world.session(ends, &["sync"], a, b, &[0]);
            let seen = mails(&world, &theirs);
            assert_eq!(mails(&world, &ours), seen, "{ends:?} {format}: {what}");
            seen
        };
        (1..=3).for_each(|number| deliver(&world, &theirs, number));
        deliver(&world, &ours, 4);
        let first = sync("different mail at both ends");
        assert_eq!(first.matches("Body").count(), 4, "{first}");
        assert_eq!(sync("again"), first);
        // New ones at both ends want one UID; one is gone in the middle of each list; Dovecot's log knows its own by another GUID.
        deliver(&world, &theirs, 5);
        deliver(&world, &ours, 6);
        world.doveadm(&theirs, "expunge|mailbox|INBOX|header|subject|m2");
        world.doveadm(&ours, "expunge|mailbox|INBOX|header|subject|m3");
        world.doveadm(&theirs, "flags|add|\\Seen $Label|mailbox|INBOX|header|subject|m4");
        let second = sync("changes at both ends");
        for subject in ["m1", "m4", "m5", "m6"] {
            assert_eq!(second.matches(&format!(" {subject} ")).count(), 1, "{subject}: {second}");
        }
        assert_eq!(second.matches("Body").count(), 4, "what was expunged came back: {second}");
        assert!(second.contains("\\Seen") && second.contains("$Label"), "{second}");
        assert_eq!(sync("again"), second);
        // The last one, which Dovecot has from us.
        world.doveadm(&theirs, "expunge|mailbox|INBOX|header|subject|m6");
        deliver(&world, &ours, 7);
        let third = sync("the last one is gone");
        assert!(!third.contains(" m6 ") && third.contains(" m7 "), "{third}");
        // One way out of the mbox: each message is told by the GUID that the Dovecot has of it, the new one by its own.
        let out: [&[&str]; 2] = match ends {
            Ends::WeCall => [&["sync", "-1"], &["backup"]],
            _ => [&["sync", "-1", "-R"], &["backup", "-R"]],
        };
        for (number, mode) in (8..).zip(out) {
            deliver(&world, &ours, number);
            world.session(ends, mode, a, b, &[0]);
            let seen = mails(&world, &theirs);
            assert_eq!(mails(&world, &ours), seen, "{ends:?} {format} {mode:?}");
            assert!(seen.contains(&format!(" m{number} ")), "{seen}");
        }
    }
}

#[test]
fn a_dovecots_mbox_is_backed_up_and_written_by_backup_alone() {
    if !installed() {
        return;
    }
    for ends in [Ends::WeCall, Ends::DovecotCalls] {
        let world = World::new();
        let (ours, theirs) = (world.location("maildir", "ours"), mbox(&world, "theirs"));
        let (a, b) = if ends == Ends::WeCall { (&ours, &theirs) } else { (&theirs, &ours) };
        let [into, from]: [&[&str]; 2] = if ends == Ends::WeCall {
            [&["backup"], &["backup", "-R"]]
        } else {
            [&["backup", "-R"], &["backup"]]
        };
        for round in 1..=3 {
            deliver(&world, &ours, round);
            if round == 3 {
                world.doveadm(&ours, "expunge|mailbox|INBOX|uid|1");
            }
            world.session(ends, into, a, b, &[0]);
            assert_eq!(mails(&world, &theirs), mails(&world, &ours), "{ends:?} round {round}");
        }
        let before = mails(&world, &theirs);
        deliver(&world, &ours, 9);
        for mode in
            [&["sync"][..], if ends == Ends::WeCall { &["sync", "-1"] } else { &["sync", "-1", "-R"] }]
        {
            let (status, text) = world.talk(ends, mode, a, b);
            // Dovecot ends with 75 when the other end refuses.
            let refused = if ends == Ends::WeCall { 65 } else { 75 };
            assert!(
                status == refused && text.contains("crashes") && !text.contains("Panic"),
                "{ends:?} {mode:?}: {status} {text}"
            );
            assert_eq!(mails(&world, &theirs), before, "{ends:?} {mode:?}");
        }
        // Messages that have nothing to be told by are known by their UIDs.
        for body in ["one", "two"] {
            world.dovecot.save(&theirs, "INBOX", &format!("\n{body}\n"));
        }
        let copy = mbox(&world, "copy");
        for copy in [copy, world.location("sdbox", "second"), ours.clone()] {
            let (a, b) = if ends == Ends::WeCall { (&copy, &theirs) } else { (&theirs, &copy) };
            for _ in 0..2 {
                world.session(ends, from, a, b, &[0]);
                assert_eq!(mails(&world, &copy), mails(&world, &theirs), "{ends:?} {copy}");
            }
        }
    }
}

#[test]
fn an_mbox_of_ours_by_tcp() {
    if !installed() {
        return;
    }
    let world = World::new();
    let (ours, theirs) = (mbox(&world, "ours"), world.location("maildir", "theirs"));
    let service = Service::start(&world.dovecot, world.dir.path(), &theirs, PASSWORD);
    let client = world.path("client.conf");
    fs::write(&client, format!("doveadm_password = {PASSWORD}\n")).expect("written");
    deliver(&world, &ours, 1);
    deliver(&world, &theirs, 2);
    for _ in 0..2 {
        let mut command = world.dovecot.as_user(&world.path("dsync"));
        command.arg("-c").arg(&client).args(["sync", "-u", "alice", "--source", &ours, &service.tcp()]);
        let Output { status, stderr, .. } = command.output().expect("runs");
        assert_eq!((status.code(), String::from_utf8_lossy(&stderr).as_ref()), (Some(0), ""));
        let seen = mails(&world, &theirs);
        assert_eq!(mails(&world, &ours), seen);
        assert_eq!(seen.matches("Body").count(), 2, "{seen}");
    }
    assert!(!service.log().contains("Panic"), "{}", service.log());
}

/// Two Dovecots crash here, or double what is left.
#[test]
fn what_is_expunged_at_the_end_of_the_list_does_not_come_back() {
    if !installed() {
        return;
    }
    for (ends, format) in [(Ends::WeCall, "maildir"), (Ends::DovecotCalls, "sdbox")] {
        let world = World::new();
        let (theirs, ours) = (world.location(format, "theirs"), mbox(&world, "ours"));
        let (a, b) = if ends == Ends::WeCall { (&ours, &theirs) } else { (&theirs, &ours) };
        let sync = || {
            world.session(ends, &["sync"], a, b, &[0]);
            [&ours, &theirs].map(|end| {
                let mails = mails(&world, end);
                let numbers = mails.lines().skip(1).filter_map(|line| line.split_once(" m"));
                let numbers = numbers.map(|(uid, rest)| (uid.parse().unwrap(), rest[..1].parse().unwrap()));
                numbers.collect::<Vec<(u32, u32)>>()
            })
        };
        let expunge = |end: &str, number: u32| {
            world.doveadm(end, &format!("expunge|mailbox|INBOX|header|subject|m{number}"));
        };
        for number in 1..=4 {
            deliver(&world, if number % 2 == 0 { &ours } else { &theirs }, number);
            sync();
        }
        let all = [(1, 1), (2, 2), (3, 3), (4, 4)];
        assert_eq!(sync(), [all.to_vec(), all.to_vec()], "{ends:?}");
        (3..=4).for_each(|number| expunge(&theirs, number));
        for what in ["there", "there, again"] {
            assert_eq!(sync(), [all[..2].to_vec(), all[..2].to_vec()], "{ends:?}: {what}");
        }
        // Nothing is new here: what the Dovecot calls them proves it.
        expunge(&ours, 2);
        for what in ["here", "here, again"] {
            assert_eq!(sync(), [all[..1].to_vec(), all[..1].to_vec()], "{ends:?}: {what}");
        }
        // With a new one here they are compared by headers: the Dovecot has it until a later message shows it that it is gone.
        expunge(&ours, 1);
        deliver(&world, &ours, 5);
        assert_eq!(sync(), [vec![(5, 5)], vec![(1, 1), (5, 5)]], "{ends:?}: a new one");
        for what in ["both know it", "again"] {
            assert_eq!(sync(), [vec![(5, 5)], vec![(5, 5)]], "{ends:?}: {what}");
        }
        // A message that was here first, and copies of one: the Dovecot has two of one GUID.
        world.doveadm(&theirs, "copy|INBOX|mailbox|INBOX|all");
        assert_eq!(sync(), [vec![(5, 5), (6, 5)], vec![(5, 5), (6, 5)]], "{ends:?}: copied there");
        expunge(&ours, 5);
        for what in ["all here", "all here, again"] {
            assert_eq!(sync(), [vec![], vec![]], "{ends:?}: {what}");
        }
        deliver(&world, &theirs, 5);
        assert_eq!(sync(), [vec![(7, 5)], vec![(7, 5)]], "{ends:?}: the same once more");
        // Expunged at both ends, another one each.
        (6..=8).for_each(|number| deliver(&world, &theirs, number));
        assert_eq!(sync()[0].len(), 4, "{ends:?}");
        expunge(&ours, 8);
        expunge(&theirs, 7);
        assert_eq!(sync(), [vec![(7, 5), (8, 6)], vec![(7, 5), (8, 6)]], "{ends:?}: at both");
        // Without the note nothing is proved, and what may be wanted comes back.
        for note in ["settled", "guids"] {
            fs::remove_file(world.path(&format!("ours/.imap/.dsync-dovecot-{note}"))).expect("the note");
        }
        expunge(&ours, 6);
        assert_eq!(sync(), [vec![(7, 5), (11, 6)], vec![(7, 5), (11, 6)]], "{ends:?}: without the notes");
    }
}
