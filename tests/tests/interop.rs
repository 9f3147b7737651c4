//! Sessions with a real Dovecot, which calls or is called: the same end state as when both ends are Dovecots, and nothing to complain of in its log.

#[path = "interop/account.rs"]
mod account;
#[path = "interop/ahead.rs"]
mod ahead;
#[path = "interop/cuts.rs"]
mod cuts;
#[path = "interop/directories.rs"]
mod directories;
#[path = "interop/failing.rs"]
mod failing;
#[path = "interop/gone.rs"]
mod gone;
#[path = "interop/kills.rs"]
mod kills;
#[path = "interop/mbox.rs"]
mod mbox;
#[path = "interop/migrating.rs"]
mod migrating;
#[path = "interop/namespaces.rs"]
mod namespaces;
#[path = "interop/order.rs"]
mod order;
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

use dsync_tests::dovecot::{assert_equal, installed};
use dsync_tests::installation::is_24;
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
            if ends == Ends::Dovecots && is_24() {
                // A 2.4 makes a mailbox of what its own sender tells of a directory, and takes it away in the next run.
                world.session(ends, &["backup"], &a, &b, &[0]);
            }
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
        // Of two 2.4 one makes mailboxes of directories: they are not equal before the second run.
        let held = |ends: &Ends| !is_24() || *ends != Ends::Dovecots;
        for (ends, a, b) in pairs(&world, format).into_iter().filter(|(ends, ..)| held(ends)) {
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
        // A Maildir of a 2.4 makes itself an INBOX when other mailboxes are made, and has a GUID for it then that its peer does not know.
        let settles: &[i32] = if is_24() { &[0, 2] } else { &[0] };
        for allowed in [settles, &[0]] {
            world.session(ends, &["sync"], &a, &b, allowed);
        }
        let ours = if ends == Ends::WeCall { &a } else { &b };
        world.doveadm(ours, "mailbox|update|--uid-validity|4000000000|INBOX");
        for _ in 0..2 {
            let (code, text) = world.talk(ends, &["sync"], &a, &b);
            // A 2.4 says so even where UIDNEXT was told.
            let known = |line: &str| is_24() && line.contains("first_recent_uid unexpectedly shrank");
            let error = text.lines().find(|line| line.contains("Error") && !known(line));
            assert!([0, 2].contains(&code) && error.is_none(), "{ends:?}: {code} {text}");
        }
        assert_eq!(world.content(&a), world.content(&b), "{ends:?}");
        assert!(world.view(&a).contains("4000000000") && world.view(&b).contains("4000000000"), "{ends:?}");
    }
}

/// A Maildir of a 2.4 makes itself an INBOX when other mailboxes are made first. It keeps that one's GUID if that is higher than the one that it is told, and in that
/// session nobody finds the other INBOX; which of the two is higher is chance. 2.3 makes none.
#[test]
fn an_inbox_that_a_dovecot_made_itself_is_settled_by_the_next_run() {
    if !installed() {
        return;
    }
    let cases = [("0", true), ("f", false)].into_iter().flat_map(|(digit, lower)| {
        let ends =
            [(Ends::WeCall, 'b'), (Ends::DovecotCalls, 'a'), (Ends::Dovecots, 'a'), (Ends::Dovecots, 'b')];
        ends.map(|(ends, empty)| (digit.repeat(31) + "1", lower, ends, empty))
    });
    for (guid, lower, ends, empty) in
        cases.filter(|(_, lower, ends, _)| is_24() || (*lower && *ends != Ends::Dovecots))
    {
        let world = World::new();
        let [a, b] = ["a", "b"].map(|name| world.location("maildir", name));
        let (full, empty) = if empty == 'a' { (&b, &a) } else { (&a, &b) };
        world.fill(full);
        world.doveadm(full, &format!("mailbox|update|--mailbox-guid|{guid}|INBOX"));
        let before = world.content(full);
        let keeps_its_own = is_24() && lower;
        world.session(ends, &["sync"], &a, &b, if keeps_its_own { &[2] } else { &[0] });
        world.session(ends, &["sync"], &a, &b, &[0]);
        let what = format!("{ends:?} {guid} into {empty}");
        assert_equal(&world.content(empty), &before, &what);
        assert_equal(&world.view(&a), &world.view(&b), &what);
        assert_eq!(world.view(full).contains(&guid), !keeps_its_own, "{what}");
    }
}
