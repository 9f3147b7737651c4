//! What takes part: mailboxes by `-m`, `-x`, `-g`, messages by `-t`, `-e`, `-I`, `-O`.

use std::fs;

use dsync_tests::maildirs::Account;
use dsync_tests::programs::Place;

use super::{bodies, dsync, mail, pair, receive, run};

#[test]
fn a_mailbox_renamed_at_one_end_is_still_that_mailbox() {
    let (place, a, b) = pair();
    let (one, two) = (a.location(), b.location());
    run(&place, &["sync", "--source", &one, &two]);
    fs::rename(b.folder("Work"), b.folder("Job")).expect("renamed");
    a.deliver("Work", &mail(9), b"Subject: nine\n\n");
    // Dovecot makes a second mailbox of it: oracle mailbox-option-after-rename.
    run(&place, &["sync", "-m", "Work", "--source", &one, &two]);
    assert_eq!(a.view(), b.view());
    assert!(a.view().contains_key("Job") && !a.view().contains_key("Work"), "{:?}", a.view().keys());
    assert_eq!(a.view()["Job"].len(), 3, "two messages, each once");
    // And left alone under both names.
    fs::rename(b.folder("Job"), b.folder("Task")).expect("renamed");
    let before = (a.view(), b.view());
    run(&place, &["sync", "-x", "Job", "--source", &one, &two]);
    run(&place, &["sync", "-x", "Ta*", "--source", &one, &two]);
    assert_eq!((a.view(), b.view()), before);
}

#[test]
fn what_is_excluded_keeps_its_subscription() {
    let (place, a, b) = pair();
    fs::write(a.root.join("subscriptions"), "Spam\nWork\n").expect("written");
    a.deliver("Spam", &mail(7), b"Subject: spam\n\n");
    // Dovecot brings the subscription all the same: oracle exclude-subscription.
    run(&place, &["sync", "-x", "Spam", "--source", &a.location(), &b.location()]);
    let subscribed = fs::read_to_string(b.root.join("subscriptions")).expect("written");
    assert!(subscribed.lines().any(|line| line == "Work") && !subscribed.contains("Spam"), "{subscribed}");
    assert!(!b.view().contains_key("Spam"));
}

#[test]
fn special_uses_stand_for_their_mailboxes() {
    let (place, a, b) = pair();
    a.deliver("Papierkorb", &mail(7), b"Subject: gone\n\n");
    let conf = place.path("client.conf");
    let mut text = fs::read_to_string(&conf).expect("read");
    text.push_str(
        "namespace inbox {\n  inbox = yes\n  separator = /\n  mailbox Papierkorb {\n    special_use = \\Trash\n  }\n}\n",
    );
    fs::write(&conf, &text).expect("written");
    // Dovecot ignores it: oracle special-use-ignored.
    run(&place, &["sync", "-x", "\\Trash", "--source", &a.location(), &b.location()]);
    assert!(!b.view().contains_key("Papierkorb") && b.view().contains_key("Work"));
    run(&place, &["sync", "-m", "\\trash", "--source", &a.location(), &b.location()]);
    assert!(b.view().contains_key("Papierkorb"));
    let (status, _, said) =
        dsync(&place, &["sync", "-x", "\\Junk", "--source", &a.location(), &b.location()]);
    assert!(status == 68 && said.contains("\\Junk"), "{status} {said}");
    // The userdb knows another prefix of that namespace.
    a.deliver("Papierkorb", &mail(8), b"Subject: gone, too\n\n");
    text.push_str(
        "userdb {\n  driver = static\n  args = allow_all_users=yes namespace/inbox/prefix=INBOX/\n}\n",
    );
    fs::write(&conf, text).expect("written");
    let words = ["sync", "-u", "alice", "-x", "\\Trash", "--source", &a.location(), &b.location()];
    run(&place, &words);
    assert_ne!(
        b.view().get("Papierkorb"),
        a.view().get("Papierkorb"),
        "it is INBOX/Papierkorb, and left out"
    );
    let words = ["sync", "-u", "alice", "-m", "\\Trash", "--source", &a.location(), &b.location()];
    run(&place, &words);
    assert_eq!(b.view()["Papierkorb"], a.view()["Papierkorb"]);
}

#[test]
fn the_tree_alone_and_single_mailboxes_by_guid() {
    let (place, a, b) = pair();
    let (one, two) = (a.location(), b.location());
    run(&place, &["sync", "-m", "", "--source", &one, &two]);
    let view = b.view();
    assert!(view["Work"].len() == 1 && view["INBOX"].len() == 1, "{view:?}");
    let guid = a.view()["Work"][0].split(' ').next().expect("a GUID").to_owned();
    run(&place, &["sync", "-g", &guid, "--source", &one, &two]);
    assert!(b.view()["Work"].len() == 2 && b.view()["INBOX"].len() == 1);
    run(&place, &["sync", "--source", &one, &two]);
    assert_eq!(a.view(), b.view());
    for (option, value) in [("-g", "0123456789abcdef0123456789abcdef"), ("-m", "Nowhere")] {
        let (status, _, said) = dsync(&place, &["sync", option, value, "--source", &one, &two]);
        assert!(status == 68 && said.contains(value), "{status} {said}");
    }
    run(&place, &["sync", "-m", "Nowhere*", "--source", &one, &two]);
}

/// The scenarios opt-filters and filter-then-sync-deletes of the oracle, and what Dovecot makes of the latter is not so here.
#[test]
fn what_a_filter_keeps_back_stays_and_comes_later() {
    let place = Place::new("");
    for (n, filter, passes) in [
        (1, &["-t", "2023-06-01"][..], 1),
        (2, &["-e", "1700000000"], 2),
        (3, &["-t", "2021-06-01", "-e", "01-Jun-2023"], 1),
        (4, &["-I", "200"], 2),
        (5, &["-O", "\\Flagged"], 1),
        (6, &["-O", "-\\Flagged"], 2),
        (7, &["-O", "-\\Flagged", "-O", "\\Seen"], 1),
        (8, &["-t", "99w", "-I", "1M"], 0),
    ] {
        let (a, b) = (Account::new(place.path(&format!("a{n}"))), Account::new(place.path(&format!("b{n}"))));
        a.deliver("", "1577836800.M1P1.host:2,F", b"Subject: old\n\n");
        a.deliver("", "1704067200.M2P1.host:2,S", b"Subject: new\n\n");
        a.deliver("", "1680000000.M3P1.host:2,", &[&b"Subject: big\n\n"[..], &[b'x'; 300]].concat());
        receive(&a, "", "1577836800", 1_577_836_800);
        receive(&a, "", "1704067200", 1_704_067_200);
        receive(&a, "", "1680000000", 1_680_000_000);
        let mut line = vec!["sync"];
        line.extend(filter);
        let (one, two) = (a.location(), b.location());
        line.extend(["--source", &one, &two]);
        run(&place, &line);
        assert_eq!((bodies(&a, "INBOX"), bodies(&b, "INBOX")), (3, passes), "{filter:?}");
        // Again, and the other way round: nothing is expunged for being kept back.
        run(&place, &line);
        b.deliver("", "1704067300.M4P1.host:2,FS", b"Subject: there\n\n");
        run(&place, &["sync", "--source", &one, &two]);
        assert_eq!(bodies(&a, "INBOX"), 4, "{filter:?}");
        assert_eq!(a.view(), b.view(), "{filter:?}");
    }
}

#[test]
fn a_filtered_backup_brings_only_what_passes_and_removes_what_is_foreign() {
    let (place, a, b) = pair();
    a.deliver("", "1700000099.M9P1.host:2,F", b"Subject: flagged\n\n");
    b.deliver("", "1700000098.M8P1.host", b"Subject: foreign\n\n");
    let line = ["backup", "-O", "\\Flagged", "--source", &a.location(), &b.location()];
    let (status, _, said) = dsync(&place, &line);
    assert_eq!((status, said.as_str()), (0, ""));
    assert_eq!((bodies(&a, "INBOX"), bodies(&b, "INBOX")), (4, 1));
    // A message of the base that was lost at the copy is brought again, if it passes.
    run(&place, &["backup", "--source", &a.location(), &b.location()]);
    assert_eq!(a.view(), b.view());
    fs::remove_file(b.find("", "1700000099")).expect("removed");
    fs::remove_file(b.find("", "1700000001")).expect("removed");
    run(&place, &line);
    assert_eq!(bodies(&b, "INBOX"), 3);
    run(&place, &["backup", "--source", &a.location(), &b.location()]);
    assert_eq!(a.view(), b.view());
}
