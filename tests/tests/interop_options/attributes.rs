//! Attributes of mailboxes.

use std::fs;
use std::path::Path;

use dsync_tests::dovecot::installed;
use dsync_tests::interop::{ALL, World};
use dsync_tests::peers::Ends;
use dsync_tests::scenario::tick;

/// The attributes of an account, as the file has them.
fn attributes(location: &str) -> String {
    let (_, path) = location.split_once(':').expect("a location");
    let text = fs::read_to_string(Path::new(path).join("dovecot-attributes")).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let mut pairs: Vec<String> = lines.chunks(2).map(|pair| pair.join(" ")).collect();
    pairs.sort();
    pairs.join("\n")
}

#[test]
fn attributes_are_merged_as_by_dovecot() {
    if !installed() {
        return;
    }
    for format in ["maildir", "sdbox"] {
        let world = World::new();
        let (a, b) = (world.location(format, "a"), world.location(format, "b"));
        world.fill(&a);
        world.metadata(&a, "set|INBOX|/private/comment|of A");
        world.metadata(&a, "set|INBOX|/shared/comment|two\nlines\tand a tab");
        world.metadata(&a, "set|Work/Sub|/private/vendor/test/key|v1");
        world.session(Ends::Dovecots, &["backup"], &a, &b, &[0]);
        let first = attributes(&a);
        assert!(first.contains("vendor/test/key v1") && first.contains("of A"), "{first}");
        assert_eq!(attributes(&b), first);
        world.metadata(&b, "set|INBOX|/private/comment|changed at B");
        world.metadata(&a, "unset|INBOX|/shared/comment");
        world.metadata(&a, "set|INBOX|/private/new|at A");
        world.metadata(&b, "set|Work/Sub|/private/vendor/test/key|v2");
        let mut expected = None;
        for ends in ALL {
            let (left, right) = (format!("a-{ends:?}"), format!("b-{ends:?}"));
            world.copy("a", &left);
            world.copy("b", &right);
            let (left, right) = (world.location(format, &left), world.location(format, &right));
            let fresh = world.location(format, &format!("c-{ends:?}"));
            world.session(ends, &["backup"], &left, &fresh, &[0]);
            assert_eq!(attributes(&fresh), attributes(&left), "{format} {ends:?} backup");
            world.session(ends, &["sync", "-f"], &left, &right, &[0]);
            let end = attributes(&left);
            assert_eq!(attributes(&right), end, "{format} {ends:?}: both ends");
            assert_eq!(&end, expected.get_or_insert(end.clone()), "{format} {ends:?}: as Dovecot");
            assert!(end.contains("changed at B") && end.contains("v2"), "{end}");
            assert!(end.contains("at A") && !end.contains("two"), "{end}");
            for mode in [&["sync"][..], &["sync", "-f"]] {
                world.session(ends, mode, &left, &right, &[0]);
                assert_eq!(attributes(&left), end, "{format} {ends:?} {mode:?} again");
                assert_eq!(attributes(&right), end, "{format} {ends:?} {mode:?} again");
            }
            // What was taken over is in the log of this end: taken away here, it goes there, too.
            world.metadata(&left, "unset|INBOX|/private/comment");
            world.metadata(&right, "unset|INBOX|/private/new");
            world.session(ends, &["sync", "-f"], &left, &right, &[0]);
            for location in [&left, &right] {
                let now = attributes(location);
                assert!(!now.contains("changed at B") && !now.contains("at A"), "{format} {ends:?}: {now}");
            }
        }
    }
}

/// Both ends ours: of what Dovecots changed at both the later change counts, and what we wrote a Dovecot takes for new.
#[test]
fn attributes_that_dovecots_changed_at_both_ends_are_as_the_later_says() {
    if !installed() {
        return;
    }
    for (format, other) in [("maildir", "sdbox"), ("mdbox", "maildir")] {
        let world = World::new();
        let (a, b, c) =
            (world.location(format, "a"), world.location(other, "b"), world.location("sdbox", "c"));
        let ours = |words: &[&str]| {
            let mut command = world.dovecot.as_user(&world.path("dsync"));
            let output = command.args(["-c", "/dev/null"]).args(words).output().expect("runs");
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success() && text.is_empty(), "{words:?}: {text}");
        };
        let read = |location: &str, key: &str| {
            world.metadata(location, &format!("get|INBOX|{key}")).trim_end().to_owned()
        };
        world.fill(&a);
        world.metadata(&a, "set|INBOX|/shared/comment|z old");
        ours(&["backup", "--source", &a, &b]);
        world.session(Ends::Dovecots, &["backup"], &b, &c, &[0]);
        assert_eq!(read(&c, "/shared/comment"), "z old");
        world.metadata(&a, "set|INBOX|/private/both|z earlier");
        world.metadata(&b, "set|INBOX|/private/gone|z earlier");
        world.metadata(&b, "unset|INBOX|/shared/comment");
        tick();
        world.metadata(&b, "set|INBOX|/private/both|later");
        world.metadata(&a, "set|INBOX|/private/gone|x");
        world.metadata(&a, "unset|INBOX|/private/gone");
        world.metadata(&a, "set|INBOX|/shared/comment|a new");
        // With a base, and as it is for two stores that never met.
        for with_base in [true, false] {
            let end = |name: &str| format!("{name}-{with_base}");
            world.copy("a", &end("a"));
            world.copy("b", &end("b"));
            world.copy("c", &end("c"));
            let (a, b) = (world.location(format, &end("a")), world.location(other, &end("b")));
            let c = world.location("sdbox", &end("c"));
            if !with_base {
                for entry in fs::read_dir(world.path(&end("a"))).expect("read").flatten() {
                    if entry.file_name().to_string_lossy().starts_with(".dsync-base-") {
                        fs::remove_file(entry.path()).expect("removed");
                    }
                }
            }
            ours(&["sync", "--source", &a, &b]);
            for location in [&a, &b] {
                let found =
                    ["/private/both", "/private/gone", "/shared/comment"].map(|key| read(location, key));
                assert_eq!(found, ["later", "", "a new"], "{location}");
            }
            world.session(Ends::Dovecots, &["sync", "-f"], &b, &c, &[0]);
            for location in [&b, &c] {
                let found =
                    ["/private/both", "/private/gone", "/shared/comment"].map(|key| read(location, key));
                assert_eq!(found, ["later", "", "a new"], "{location}");
            }
        }
    }
}
