//! States (`-s`) that are handed on between all who can hold a session.

use std::fs;

use dsync_tests::dovecot::{assert_equal, installed};
use dsync_tests::installation::{dsync_server, is_24, mail_options, program, words};
use dsync_tests::interop::World;
use dsync_tests::peers::Ends;

#[test]
fn states_go_on_from_where_they_were() {
    handed_on(["maildir", "maildir"]);
}

/// Dovecot logs no GUID for what it expunges from an sdbox, unless its cache has it.
#[test]
fn states_of_logs_without_guids_go_on_as_well() {
    handed_on(["sdbox", "sdbox"]);
}

fn handed_on(formats: [&str; 2]) {
    if !installed() {
        return;
    }
    let world = World::new();
    let (a, b) = (world.location(formats[0], "a"), world.location(formats[1], "b"));
    world.fill(&a);
    let state = |ends: Ends, state: &str| {
        let mut command = match ends {
            Ends::WeCall => {
                let mut command = world.dovecot.as_user(&world.path("dsync"));
                command.args(["-c", "/dev/null", "sync", "--source", &a, "-s", state]);
                command
            }
            _ => {
                let mut command = world.dovecot.as_user(&program("doveadm"));
                command.arg("-c").arg(world.path("dovecot.conf")).args(mail_options(&a));
                command.args(words(&["sync", "-s", state]));
                command
            }
        };
        if ends == Ends::DovecotCalls {
            fs::write(
                world.path("server.conf"),
                format!("mail_location = {b}\nuserdb {{\n  driver = static\n  args = home=/tmp\n}}\n"),
            )
            .expect("written");
            command
                .arg(world.path("dsync-server"))
                .arg("-c")
                .arg(world.path("server.conf"))
                .args(["--stdio", "-u", "alice"]);
        } else {
            command.arg(program("doveadm")).arg("-c").arg(world.path("dovecot.conf"));
            command.args(mail_options(&b)).args(dsync_server());
        }
        let output = command.output().expect("runs");
        let text = String::from_utf8_lossy(&output.stderr);
        // Two GUIDs of one INBOX, where a 2.4 made its own.
        let settles = is_24() && state.is_empty() && output.status.code() == Some(2);
        assert!(
            output.status.success() && text.is_empty() || settles,
            "{ends:?} {state}: {} {text}",
            output.status
        );
        String::from_utf8(output.stdout).expect("text").trim().to_owned()
    };
    let mut last = state(Ends::Dovecots, "");
    for (round, ends) in [Ends::Dovecots, Ends::WeCall, Ends::DovecotCalls, Ends::WeCall, Ends::Dovecots]
        .into_iter()
        .enumerate()
    {
        for (location, end) in [(&a, "a"), (&b, "b")] {
            world.dovecot.save(location, "INBOX", &format!("Subject: {end} in round {round}\n\nx\n"));
        }
        last = state(ends, &last);
        last = state(ends, &last);
        assert!(!last.is_empty(), "{round} {ends:?}");
        world.doveadm(&a, &format!("flags|add|$r{round}|mailbox|INBOX|uid|2"));
        world.doveadm(&b, &format!("flags|add|$s{round}|mailbox|INBOX|uid|2"));
        if round < 4 {
            let (location, end) = if round % 2 == 0 { (&a, "a") } else { (&b, "b") };
            world.doveadm(location, &format!("expunge|mailbox|INBOX|subject|{end} in round {round}"));
        }
        last = state(ends, &last);
        let subjects = world.doveadm(&b, "-f|tab|fetch|hdr.subject|mailbox|INBOX|all");
        let kept = if round % 2 == 0 { ["b"].as_slice() } else { &["a"] };
        let kept = if round < 4 { kept } else { &["a", "b"] };
        let found =
            ["a", "b"].into_iter().filter(|end| subjects.contains(&format!("{end} in round {round}")));
        assert_eq!(found.collect::<Vec<_>>(), kept, "round {round} {ends:?}");
        assert_equal(&world.view(&a), &world.view(&b), &format!("round {round} {ends:?}"));
        assert!(world.content(&b).contains(&format!("$r{round}")), "round {round} {ends:?}");
    }
}
