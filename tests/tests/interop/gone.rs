//! Expunges that no log proves: a Dovecot logs no GUID for what it expunges from an sdbox, unless its cache has it.

use std::fs;
use std::process::Command;

use dsync_storage::index::{Index, Paths};
use dsync_tests::dovecot::installed;
use dsync_tests::installation::{mail_options, program};
use dsync_tests::interop::World;
use dsync_tests::peers::Ends;

const BOX: &str = "Work";

fn save(world: &World, location: &str, text: &str) {
    world.dovecot.save(location, BOX, &format!("Subject: {text}\n\n{text}\n"));
}

/// Subjects in a mailbox. GUIDs must not be asked for: that would put them into the cache.
fn subjects(world: &World, location: &str, mailbox: &str) -> Vec<String> {
    let text = world.doveadm(location, &format!("-f|tab|fetch|hdr.subject|mailbox|{mailbox}|all"));
    let mut found: Vec<String> = text.lines().skip(1).map(str::to_owned).collect();
    found.sort();
    found
}

/// Who calls, and who is called.
fn in_order<'a>(ends: Ends, ours: &'a str, theirs: &'a str) -> (&'a str, &'a str) {
    if ends == Ends::WeCall { (ours, theirs) } else { (theirs, ours) }
}

/// Ours is `ours`, whoever calls.
fn sync(world: &World, ends: Ends, ours: &str, theirs: &str) {
    let (a, b) = in_order(ends, ours, theirs);
    world.session(ends, &["sync"], a, b, &[0]);
}

fn index_of(world: &World) -> Index {
    let directory = world.path("ours").join(format!("mailboxes/{BOX}/dbox-Mails"));
    Index::open(Paths::mailbox(&directory)).expect("read").expect("an index")
}

/// A message that is moved away from the end of the list does not come back there, though new mail came to the other end.
#[test]
fn what_was_moved_from_the_end_of_an_sdbox_stays_moved() {
    if !installed() {
        return;
    }
    for (ends, format, arrives) in [
        (Ends::WeCall, "mdbox", false),
        (Ends::WeCall, "sdbox", true),
        (Ends::DovecotCalls, "maildir", true),
        (Ends::DovecotCalls, "sdbox", false),
    ] {
        let world = World::new();
        let (ours, theirs) = (world.location("sdbox", "ours"), world.location(format, "theirs"));
        world.doveadm(&ours, &format!("mailbox|create|{BOX}"));
        (1..=5).for_each(|n| save(&world, &ours, &format!("m{n}")));
        sync(&world, ends, &ours, &theirs);
        world.doveadm(&ours, &format!("move|INBOX|mailbox|{BOX}|uid|4:5"));
        let expunged = index_of(&world).history(0, u32::MAX).expect("read").expunged;
        assert!(expunged.values().any(|(_, guid)| guid.is_none()), "the log proves all: this shows nothing");
        if arrives {
            save(&world, &theirs, "n6");
        }
        for location in [&ours, &theirs] {
            sync(&world, ends, &ours, &theirs);
            let mut expected = vec!["m1", "m2", "m3"];
            expected.extend(arrives.then_some("n6"));
            assert_eq!(subjects(&world, location, BOX), expected, "{ends:?} {format} {location}");
            assert_eq!(subjects(&world, location, "INBOX"), ["m4", "m5"], "{ends:?} {format} {location}");
        }
    }
}

/// A mailbox that was put back to an older state, and in which other messages got the same UIDs, proves nothing by what it lacks.
#[test]
fn a_mailbox_that_was_put_back_proves_no_expunge() {
    if !installed() {
        return;
    }
    for ends in [Ends::WeCall, Ends::DovecotCalls] {
        let world = World::new();
        let (ours, theirs) = (world.location("sdbox", "ours"), world.location("mdbox", "theirs"));
        world.doveadm(&ours, &format!("mailbox|create|{BOX}"));
        (1..=3).for_each(|n| save(&world, &ours, &format!("m{n}")));
        let (place, old) = (world.path("ours").join("mailboxes").join(BOX), world.path("old"));
        let copy = |from: &std::path::Path, to: &std::path::Path| {
            assert!(Command::new("cp").arg("-a").args([from, to]).status().expect("runs").success());
        };
        copy(&place, &old);
        (4..=6).for_each(|n| save(&world, &ours, &format!("m{n}")));
        sync(&world, ends, &ours, &theirs);
        fs::remove_dir_all(&place).expect("removed");
        copy(&old, &place);
        (4..=7).for_each(|n| save(&world, &ours, &format!("n{n}")));
        world.doveadm(&ours, &format!("expunge|mailbox|{BOX}|uid|5:6"));
        for _ in 0..2 {
            let (a, b) = in_order(ends, &ours, &theirs);
            world.session(ends, &["sync"], a, b, &[0, 2]);
        }
        let found = [&ours, &theirs].map(|location| subjects(&world, location, BOX));
        assert_eq!(found[0], found[1], "{ends:?}");
        for kept in ["m1", "m2", "m3", "m4", "m5", "m6", "n4", "n7"] {
            assert!(found[0].iter().any(|subject| subject == kept), "{ends:?}: {kept}: {found:?}");
        }
    }
}

/// While mail comes to our end in every session, both are never found equal; below what both told as their UIDNEXT they are alike all the same.
#[test]
fn what_was_moved_stays_so_though_mail_came_in_every_session() {
    if !installed() {
        return;
    }
    for ends in [Ends::WeCall, Ends::DovecotCalls] {
        let world = World::new();
        let (ours, theirs) = (world.location("sdbox", "ours"), world.location("mdbox", "theirs"));
        let (a, b) = in_order(ends, &ours, &theirs);
        world.doveadm(&ours, &format!("mailbox|create|{BOX}"));
        save(&world, &ours, "m1");
        for round in 1..=3 {
            save(&world, &ours, &format!("n{round}"));
            fs::write(world.path("mail"), format!("Subject: d{round}\n\nx\n")).expect("written");
            let options = mail_options(&ours).join("' '");
            let deliver = format!(
                "env -i USER=alice HOME=\"$HOME\" '{}' -c '{}' '{options}' save -m {BOX} < '{}' > /dev/null",
                program("doveadm").display(),
                world.dovecot.conf().display(),
                world.path("mail").display()
            );
            // A doveadm that inherits another's environment reads no configuration.
            // Before we hear how the Dovecot stands with a mailbox; there is one more line of that kind, the table's head.
            let pass = format!(
                "while IFS= read -r line; do case $line in S*) {deliver};; esac; printf '%s\\n' \"$line\"; done"
            );
            let (code, text) = world.through(ends, &["sync"], (a, b), |other| match ends {
                Ends::WeCall => format!("{other} | {pass}"),
                _ => format!("{pass} | {other}"),
            });
            assert!([0, 2].contains(&code), "{ends:?}: {code} {text}");
            let [here, there] = [&ours, &theirs].map(|location| subjects(&world, location, BOX));
            assert!(there.contains(&format!("n{round}")), "{ends:?}: {there:?}");
            assert!(
                here.len() > there.len(),
                "nothing came meanwhile, this shows nothing: {here:?} {there:?} {text}"
            );
        }
        world.doveadm(&ours, &format!("move|INBOX|mailbox|{BOX}|uid|2:*"));
        let expunged = index_of(&world).history(0, u32::MAX).expect("read").expunged;
        assert!(expunged.values().any(|(_, guid)| guid.is_none()), "the log proves all: this shows nothing");
        for _ in 0..2 {
            world.session(ends, &["sync"], a, b, &[0, 2]);
        }
        for location in [&ours, &theirs] {
            let mut found = subjects(&world, location, BOX);
            // What was new in the last of these sessions may come back.
            found.retain(|subject| !subject.ends_with('3') && subject != "d2");
            assert_eq!(found, ["m1"], "{ends:?} {location}");
        }
    }
}
