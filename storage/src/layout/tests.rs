//! The path rules of the storage formats reference, 2.2: each as Dovecot 2.3.19.1 was seen to follow it.

use std::fs;
use std::path::{Path, PathBuf};

use dsync_model::{MailboxGuid, MailboxName};
use proptest::prelude::*;

use super::{Format, Kind, Layout, Places};
use crate::Location;

fn layout(location: &str) -> Layout {
    Location::parse(location, Some(Path::new("/h"))).unwrap().layout().clone()
}

fn name(text: &str) -> MailboxName {
    MailboxName::parse(text, '/').unwrap()
}

/// Mail, control, index, cache and alternate directory, below the home.
fn shown(places: Places) -> String {
    let below = |path: PathBuf| path.strip_prefix("/h").unwrap().display().to_string();
    let maybe = |path: Option<PathBuf>| path.map_or("-".into(), below);
    let Places { mail, control, index, cache, alt } = places;
    [below(mail), below(control), maybe(index), maybe(cache), maybe(alt)].join(" ")
}

#[test]
fn places_of_mailboxes() {
    for (location, mailbox, expected) in [
        ("maildir:~/M", "INBOX", "M M M M -"),
        ("maildir:~/M", "A/Ü", "M/.A.&ANw- M/.A.&ANw- M/.A.&ANw- M/.A.&ANw- -"),
        ("maildir:~/M:UTF-8:INDEX=MEMORY", "A/Ü", "M/.A.Ü M/.A.Ü - - -"),
        ("maildir:~/M:INBOX=~/in", "INBOX", "in in in in -"),
        ("maildir:~/M:INBOX=~/in:INDEX=~/i:CONTROL=~/c", "INBOX", "in c/.INBOX i/.INBOX i/.INBOX -"),
        ("maildir:~/M:INDEX=~/i:CONTROL=~/c", "A/B", "M/.A.B c/.A.B i/.A.B i/.A.B -"),
        ("maildir:~/M:INDEX=~/i:INDEXCACHE=~/k", "A", "M/.A M/.A i/.A k/.A -"),
        ("maildir:~/M:INDEX=~/M:CONTROL=~/M", "INBOX", "M M M M -"),
        ("maildir:~/M:MAILBOXDIR=boxes", "A", "M/.A M/.A M/.A M/.A -"),
        ("maildir:~/M:LAYOUT=fs", "INBOX", "M M M M -"),
        ("maildir:~/M:LAYOUT=fs", "A/B", "M/A/B M/A/B M/A/B M/A/B -"),
        ("maildir:~/M:LAYOUT=fs", "INBOX/k", "M/INBOX/k M/INBOX/k M/INBOX/k M/INBOX/k -"),
        ("maildir:~/M:LAYOUT=fs:INDEX=~/i:CONTROL=~/c", "INBOX", "M c/INBOX i/INBOX i/INBOX -"),
        ("maildir:~/M:LAYOUT=fs:MAILBOXDIR=boxes", "INBOX", "M M M M -"),
        ("maildir:~/M:LAYOUT=fs:MAILBOXDIR=boxes", "A", "M/boxes/A M/boxes/A M/boxes/A M/boxes/A -"),
        (
            "maildir:~/M:LAYOUT=fs:INDEX=~/i:CONTROL=~/c:MAILBOXDIR=boxes:DIRNAME=m",
            "INBOX",
            "M/boxes/INBOX/m c/boxes/INBOX i/boxes/INBOX i/boxes/INBOX -",
        ),
        (
            "maildir:~/M:LAYOUT=fs:INDEX=~/i:CONTROL=~/c:MAILBOXDIR=boxes:DIRNAME=m",
            "A/B",
            "M/boxes/A/B/m c/boxes/A/B i/boxes/A/B i/boxes/A/B -",
        ),
        ("maildir:~/M:LAYOUT=fs:INDEX=~/i:FULLDIRNAME=m", "A/B", "M/A/B/m M/A/B/m i/A/B/m i/A/B/m -"),
        ("mbox:~/m", "INBOX", "m/inbox m/.imap/INBOX m/.imap/INBOX m/.imap/INBOX -"),
        ("mbox:~/m:INBOX=~/in", "INBOX", "in m/.imap/INBOX m/.imap/INBOX m/.imap/INBOX -"),
        ("mbox:~/m", "L/Q1", "m/L/Q1 m/L/.imap/Q1 m/L/.imap/Q1 m/L/.imap/Q1 -"),
        ("mbox:~/m:INDEX=~/i", "L/Q1", "m/L/Q1 m/L/.imap/Q1 i/L/.imap/Q1 i/L/.imap/Q1 -"),
        ("mbox:~/m:INDEX=~/i:INDEXCACHE=~/k", "A", "m/A m/.imap/A i/.imap/A k/.imap/A -"),
        ("mbox:~/m:INDEX=MEMORY", "A", "m/A m/.imap/A - - -"),
        ("mbox:~/m:INDEX=~/i:DIRNAME=mbox", "A", "m/A/mbox m/A/mbox i/A i/A -"),
        ("mbox:~/m:INDEX=~/i:DIRNAME=mbox", "INBOX", "m/inbox m/inbox i/INBOX i/INBOX -"),
        (
            "sdbox:~/d",
            "INBOX",
            "d/mailboxes/INBOX/dbox-Mails d/mailboxes/INBOX/dbox-Mails d/mailboxes/INBOX/dbox-Mails d/mailboxes/INBOX/dbox-Mails -",
        ),
        (
            "sdbox:~/d:INDEX=~/i:CONTROL=~/c:ALT=~/alt",
            "A/B",
            "d/mailboxes/A/B/dbox-Mails c/mailboxes/A/B i/mailboxes/A/B i/mailboxes/A/B alt/mailboxes/A/B/dbox-Mails",
        ),
        (
            "sdbox:~/d:INDEX=~/i:CONTROL=~/c:FULLDIRNAME=x",
            "INBOX",
            "d/mailboxes/INBOX/x c/mailboxes/INBOX/x i/mailboxes/INBOX/x i/mailboxes/INBOX/x -",
        ),
        ("mdbox:~/d:INDEX=~/i:MAILBOXDIR=b:DIRNAME=x", "A", "d/b/A/x d/b/A/x i/b/A i/b/A -"),
    ] {
        let places = layout(location).places(&name(mailbox)).unwrap();
        assert_eq!(shown(places), expected, "{location} {mailbox}");
    }
}

#[test]
fn places_by_guid() {
    let guid = MailboxGuid::parse("b8f101318b52046bb23f000087ad316d").unwrap();
    for (location, expected) in [
        ("mdbox:~/d", "d/mailboxes/G d/mailboxes/G d/mailboxes/G d/mailboxes/G -"),
        (
            "sdbox:~/d:INDEX=~/i:ALT=~/a",
            "d/mailboxes/G d/mailboxes/G i/mailboxes/G i/mailboxes/G a/mailboxes/G",
        ),
        ("maildir:~/M:INDEX=~/i:CONTROL=~/c", "M/G c/G i/G i/G -"),
        ("mbox:~/m", "m/G m/.imap/G m/.imap/G m/.imap/G -"),
    ] {
        let layout = layout(&format!("{location}:LAYOUT=index"));
        assert_eq!(shown(layout.places_of(guid)).replace(&guid.to_string(), "G"), expected, "{location}");
        assert!(layout.places(&MailboxName::inbox()).is_err() && layout.list().is_err());
    }
}

/// Subscriptions, UIDVALIDITY and notes, mailbox log, list index.
#[test]
fn files_of_the_whole_account() {
    for (location, expected) in [
        ("maildir:~/M", "M/subscriptions M M/dovecot.mailbox.log M/dovecot.list.index"),
        ("maildir:~/M:CONTROL=~/c", "c/subscriptions c M/dovecot.mailbox.log M/dovecot.list.index"),
        ("maildir:~/M:INDEX=~/i", "M/subscriptions M i/dovecot.mailbox.log i/dovecot.list.index"),
        ("maildir:~/M:INDEX=MEMORY", "M/subscriptions M - -"),
        ("maildir:~/M:LISTINDEX=~/li/foo", "M/subscriptions M M/dovecot.mailbox.log li/foo"),
        ("maildir:~/M:SUBSCRIPTIONS=s", "M/s M M/dovecot.mailbox.log M/dovecot.list.index"),
        ("sdbox:~/d", "d/subscriptions d d/dovecot.mailbox.log d/dovecot.list.index"),
        ("mbox:~/m", "m/.subscriptions m/.imap m/.imap/dovecot.mailbox.log m/.imap/dovecot.list.index"),
        ("mbox:~/m:CONTROL=~/c", "c/.subscriptions c m/.imap/dovecot.mailbox.log m/.imap/dovecot.list.index"),
        ("mbox:~/m:INDEX=~/i:LISTINDEX=l", "m/.subscriptions m/.imap i/.imap/dovecot.mailbox.log i/.imap/l"),
        ("mbox:~/m:INDEX=MEMORY", "m/.subscriptions m/.imap - -"),
        ("mbox:~/m:INDEX=~/i:DIRNAME=x", "m/.subscriptions m i/dovecot.mailbox.log i/dovecot.list.index"),
    ] {
        let layout = layout(location);
        let below = |path: PathBuf| path.strip_prefix("/h").unwrap().display().to_string();
        let maybe = |path: Option<PathBuf>| path.map_or("-".into(), below);
        let all = [
            below(layout.subscriptions_file()),
            below(layout.control_root()),
            maybe(layout.mailbox_log_file()),
            maybe(layout.list_index_file()),
        ];
        assert_eq!(all.join(" "), expected, "{location}");
    }
    let plain = layout("mdbox:~/d");
    assert_eq!((plain.storage(), plain.map()), ("/h/d/storage".into(), "/h/d/storage".into()));
    assert_eq!((plain.alt_storage(), plain.mailboxes()), (None, "/h/d/mailboxes".into()));
    let split = layout("mdbox:~/d:INDEX=~/i:ALT=~/a");
    assert_eq!((split.storage(), split.map()), ("/h/d/storage".into(), "/h/i/storage".into()));
    assert_eq!(split.alt_storage(), Some("/h/a/storage".into()));
    assert_eq!(split.alt_link(), Path::new("/h/d/dbox-alt-root"));
}

#[test]
fn names_that_cannot_be_stored() {
    let long = format!("A/{}", "x".repeat(256));
    let almost = "x".repeat(251);
    for (location, bad, good) in [
        ("maildir:~/M", vec!["a.b", "~a", &long], vec!["a/~b", "cur", "dbox-Mails", "x,y", "subscriptions"]),
        (
            "maildir:~/M:LAYOUT=fs",
            vec![
                "cur",
                "A/new",
                "tmp/x",
                "~a",
                "..DOVECOT-TRASHED",
                "..DOVECOT-TrasH/x",
                "subscriptions",
                "A/dovecot-uidlist",
                &long,
            ],
            vec![
                "a.b",
                "A/~b",
                ".a",
                "A/..DOVECOT-TRASHED",
                "A/subscriptions",
                "x.lock",
                ".imap",
                "INBOX/cur2",
            ],
        ),
        ("maildir:~/M:LAYOUT=fs:DIRNAME=m", vec!["m", "A/m/B"], vec!["cur", "A/tmp", "M"]),
        (
            "mbox:~/m",
            vec![".imap", "A/.imap", "x.lock", ".subscriptions", "~a", &almost],
            vec!["cur", ".a", "A/.subscriptions", "subscriptions", "A/x.locks", "dovecot.index"],
        ),
        (
            "mbox:~/m:INDEX=~/i:DIRNAME=x",
            vec!["A/x", "~a", ".subscriptions"],
            vec!["x.lock", "A/.imap", &almost],
        ),
        (
            "sdbox:~/d",
            vec!["dbox-Mails", "A/dbox-Mails/B", "~a"],
            vec!["cur", "mailboxes", "storage", ".imap", "x.lock"],
        ),
        ("mdbox:~/d", vec!["A/dbox-Mails"], vec!["storage"]),
        (
            "maildir:~/M:LAYOUT=fs:CONTROL=~/M/c:INDEX=~/M/A/i",
            vec!["c", "c/x", "A/i"],
            vec!["A/c", "i", "subscriptions"],
        ),
    ] {
        let layout = layout(location);
        for bad in bad {
            assert!(layout.places(&name(bad)).is_err(), "{location} {bad}");
        }
        for good in good {
            layout.places(&name(good)).unwrap();
        }
    }
}

/// Makes what is listed: directories end in a slash, all else are files.
fn make(root: &Path, paths: &str) {
    for path in paths.split_whitespace() {
        let full = root.join(path);
        fs::create_dir_all(if path.ends_with('/') { &full } else { full.parent().unwrap() }).unwrap();
        if !path.ends_with('/') {
            fs::write(full, "").unwrap();
        }
    }
}

#[test]
fn files_that_all_mailboxes_need() {
    for (location, file, expected) in [
        ("mdbox:~/d", "d/storage/m.7", true),
        ("mdbox:~/d", "d/storage/dovecot.map.index.log", true),
        ("mdbox:~/d:INDEX=~/i", "i/storage/dovecot.map.index", true),
        ("mdbox:~/d:ALT=~/a", "a/storage/m.1", true),
        ("mdbox:~/d", "d/mailboxes/storage/dbox-Mails/dovecot.index.log", false),
        ("sdbox:~/d", "d/storage/u.1", false),
        ("maildir:~/M:LAYOUT=index", "M/dovecot.list.index.log", true),
        ("maildir:~/M:LAYOUT=index", "M/mailboxes/dovecot.list.index.log", false),
        ("maildir:~/M", "M/dovecot.list.index.log", false),
        ("maildir:~/M", "M/dovecot-uidlist", false),
        ("mbox:~/m", "m/inbox", false),
    ] {
        assert_eq!(layout(location).is_shared(&Path::new("/h").join(file)), expected, "{location} {file}");
    }
}

/// Names with mail, and in brackets those without.
fn listed(layout: &Layout) -> String {
    let (found, problems) = layout.list().unwrap();
    let show = |found: super::Found| {
        if found.mailbox { found.name.to_string() } else { format!("[{}]", found.name) }
    };
    let mut all: Vec<String> = found.into_iter().map(show).collect();
    all.extend(problems.iter().map(|problem| format!("!{}", problem.mailbox)));
    all.join(" ")
}

#[test]
fn what_is_a_mailbox_and_what_is_hidden() {
    for (options, paths, expected) in [
        (
            "maildir:@",
            "cur/ .A.B/cur/ .A/ B/cur/ ..DOVECOT-TRASHED/cur/ .file .&AGE-/cur/ .inbox/cur/ .&-x/ .a..b/",
            "A A/B &x !.&AGE- !.a..b !.inbox",
        ),
        (
            "maildir:@:LAYOUT=fs",
            "cur/ new/ A/cur/ A/B/cur/ N/new/ N/cur2/cur/ .A/cur/ .git/objects/ .deep/x/cur/ ..DOVECOT-TRASHED/cur/ subscriptions inbox/ \
             INBOX/k/cur/ tmp/x/cur/",
            "[.deep] .deep/x .A A A/B INBOX/k [N] N/cur2",
        ),
        (
            "maildir:@:LAYOUT=fs:DIRNAME=m:MAILBOXDIR=b",
            "b/A/m/ b/A/cur/ b/N/x b/INBOX/m/ b/INBOX/k/m/ x/m/ m/",
            "A [A/cur] INBOX/k [N]",
        ),
        ("maildir:@:LAYOUT=fs:CONTROL=@/c:INDEX=@/i", "A/cur/ c/A/ i/A/", "A"),
        (
            "mbox:@",
            "inbox A L/Q1 L/.imap/Q1/dovecot.index.log .imap/A/ .subscriptions A.lock .dot E/ .hid/ .hid2/x &AGE- INBOX/k ..DOVECOT-TRASHED-x",
            ".dot [.hid2] .hid2/x A [E] INBOX/k [L] L/Q1 !&AGE-",
        ),
        ("mbox:@:INBOX=@/in:INDEX=@/i", "in A i/A/ INBOX", "A"),
        ("mbox:@:INDEX=@/i:DIRNAME=x", "inbox A/x N/y L/Q/x .imap/x B.lock/x", ".imap A B.lock [L] L/Q [N]"),
        (
            "sdbox:@",
            "mailboxes/A/dbox-Mails/u.1 mailboxes/A/B/dbox-Mails/ mailboxes/N/ mailboxes/L/Q/dbox-Mails/ mailboxes/INBOX/dbox-Mails/ \
             x/dbox-Mails/ ..DOVECOT-TrasH/dbox-Mails/ mailboxes/F/dbox-Mails mailboxes/cur/dbox-Mails/",
            "A A/B [F] [L] L/Q [N] cur",
        ),
        ("mdbox:@", "storage/m.1", ""),
        ("mdbox:@", "mailboxes/A/dbox-Mails/ storage/", "A"),
    ] {
        let directory = tempfile::tempdir().unwrap();
        make(directory.path(), paths);
        let layout = layout(&options.replace('@', &directory.path().display().to_string()));
        let mut expected: Vec<&str> = expected.split_whitespace().collect();
        let listed = listed(&layout);
        let mut listed: Vec<&str> = listed.split_whitespace().collect();
        expected.sort_unstable();
        listed.sort_unstable();
        assert_eq!(listed, expected, "{options}");
    }
}

/// As Dovecot has it, an mbox that is none is one that fails; among directories such things are nothing.
#[test]
fn pipes_sockets_and_devices_are_named_where_a_mailbox_is_a_file() {
    for (format, expected) in
        [(Format::Maildir, "[A]"), (Format::Sdbox, "[A]"), (Format::Mbox, "!A/Glück !Pipe !Socket [A]")]
    {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout { kind: Kind::Fs, ..Layout::new(format, directory.path()) };
        let top = layout.mailboxes();
        fs::create_dir_all(top.join("A")).unwrap();
        for pipe in ["Pipe", ".hidden", "Pipe.lock", "A/Gl&APw-ck"] {
            nix::unistd::mkfifo(&top.join(pipe), nix::sys::stat::Mode::S_IRWXU).unwrap();
        }
        drop(std::os::unix::net::UnixListener::bind(top.join("Socket")).unwrap());
        let found = listed(&layout);
        let mut found: Vec<&str> = found.split_whitespace().collect();
        found.sort_unstable();
        assert_eq!(found.join(" "), expected, "{format}");
    }
}

/// What a listing cannot tell it tells by its name: what it leaves out is not deleted.
#[test]
fn links_to_nothing_are_told_by_their_mailboxes_names() {
    for (options, link, expected) in [
        ("maildir:@", ".A.&APw-", "!A/ü"),
        ("maildir:@:LAYOUT=fs", "A/&APw-", "[A] !A/ü"),
        ("mbox:@", "A/&APw-", "[A] !A/ü"),
        ("sdbox:@", "mailboxes/A/&APw-", "[A] !A/ü"),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(link);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink("/nowhere", path).unwrap();
        let layout = layout(&options.replace('@', &directory.path().display().to_string()));
        assert_eq!(listed(&layout), expected, "{options}");
    }
}

#[test]
fn links_are_followed_within_one_owner() {
    for (format, mail) in [(Format::Maildir, "cur/"), (Format::Mbox, "x"), (Format::Sdbox, "dbox-Mails/")] {
        let directory = tempfile::tempdir().unwrap();
        let (root, elsewhere) = (directory.path().join("root"), directory.path().join("elsewhere"));
        let layout = Layout { kind: Kind::Fs, ..Layout::new(format, &root) };
        fs::create_dir_all(layout.mailboxes()).unwrap();
        make(&elsewhere, mail);
        let link = |to: &Path, at: &str| std::os::unix::fs::symlink(to, layout.mailboxes().join(at)).unwrap();
        link(&elsewhere, "A");
        link(&directory.path().join("gone"), "B");
        link(&layout.mailboxes(), "loop");
        // Other people's: a listing neither enters it nor takes it for deleted.
        if nix::unistd::getuid().is_root() {
            nix::unistd::chown(&elsewhere, Some(12345.into()), None).unwrap();
            assert!(listed(&layout).contains("!A"), "{format}");
            nix::unistd::chown(&elsewhere, Some(0.into()), None).unwrap();
        }
        let listed = listed(&layout);
        assert!(listed.contains(if format == Format::Mbox { "[A] A/x" } else { "A" }), "{format}: {listed}");
        assert!(listed.contains("!B"), "a link to nothing is a problem: {listed}");
    }
}

/// Makes a mailbox as its format does, as far as listings see it.
fn create(layout: &Layout, mailbox: &MailboxName) -> bool {
    let Ok(places) = layout.places(mailbox) else { return false };
    assert!(places.mail.starts_with(&layout.root) && places.mail != layout.root);
    match layout.format {
        Format::Maildir => fs::create_dir_all(places.mail.join("cur")).unwrap(),
        Format::Sdbox | Format::Mdbox => fs::create_dir_all(&places.mail).unwrap(),
        Format::Mbox => {
            fs::create_dir_all(places.mail.parent().unwrap()).unwrap();
            fs::write(&places.mail, "").unwrap();
            fs::create_dir_all(places.index.unwrap()).unwrap();
        }
    }
    true
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn a_name_that_was_made_is_listed(
        parts in prop::collection::vec("[a-zA-Z.~&ü日\"%* -]{1,6}|cur|new|dbox-Mails|\\.imap|x\\.lock|inbox|storage|subscriptions|dovecot\\.x", 1..4),
    ) {
        let Ok(name) = MailboxName::new(&parts) else { return Ok(()) };
        if name.is_inbox() {
            return Ok(());
        }
        for options in [
            "maildir:@", "maildir:@:UTF-8", "maildir:@:LAYOUT=fs", "maildir:@:LAYOUT=fs:DIRNAME=m:MAILBOXDIR=b", "mbox:@",
            "mbox:@:INDEX=@/x-i:DIRNAME=mbox", "sdbox:@", "mdbox:@:FULLDIRNAME=f:INDEX=@/mailboxes/i", "sdbox:@:UTF-8:CONTROL=@/c",
        ] {
            let directory = tempfile::tempdir().unwrap();
            let layout = layout(&options.replace('@', &directory.path().display().to_string()));
            fs::create_dir_all(layout.mailboxes()).unwrap();
            if create(&layout, &name) {
                let (found, problems) = layout.list().unwrap();
                prop_assert!(problems.is_empty(), "{options}: {problems:?}");
                let mailboxes: Vec<_> = found.into_iter().filter(|found| found.mailbox).map(|found| found.name).collect();
                prop_assert_eq!(mailboxes, [name.clone()], "{}", options);
            }
        }
    }
}
