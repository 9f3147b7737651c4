//! Two Maildirs, synchronised in one process.

#[path = "maildir/moved.rs"]
mod moved;
#[path = "maildir/threads.rs"]
mod threads;

use std::fs;

use dsync_model::{MailboxName, MessageAction, ModSeq, Since, Uid};
use dsync_session::proto::{Direction, Options, Terminus};
use dsync_session::storage::Goal;
use dsync_session::storage::index::{Index, Paths};
use dsync_tests::maildirs::{Account, BACKUP, sync, sync_with};

fn pair() -> (tempfile::TempDir, Account, Account) {
    let dir = tempfile::tempdir().expect("made");
    let (a, b) = (Account::new(dir.path().join("a")), Account::new(dir.path().join("b")));
    (dir, a, b)
}

fn some_mail(a: &Account) {
    a.deliver("", "1700000001.M1P1.host", b"Subject: one\n\nOne.\n");
    a.deliver("", "1700000002.M2P1.host:2,FSa", b"Subject: two\r\n\r\nTwo\0 \xff.");
    a.deliver("", "1700000003.M3P1.host,S=0:2,T", b"");
    a.deliver("Archive.2024", "1700000004.M4P1.host:2,RSX", b"Subject: four\n\nFour.\n");
    a.deliver("Entw&APw-rfe", "a bü.host:2,D", b"Subject: five\n\nFive.\n");
    fs::write(a.root.join("dovecot-keywords"), "0 $Label1\n").expect("written");
    fs::write(a.root.join("subscriptions"), "V\t2\n\nINBOX\nArchive\t2024\nGone\n").expect("written");
}

#[test]
fn a_backup_shows_a_client_no_difference() {
    let (_dir, a, b) = pair();
    some_mail(&a);
    let (report, _) = sync(&a, &b, BACKUP).expect("syncs");
    assert_eq!(report.status(), 0, "{report:?}");
    assert_eq!(a.view(), b.view());
    assert!(b.find("", "1700000002.M2P1.host").ends_with("1700000002.M2P1.host:2,FSa"));
    assert_eq!((a.leftovers(), b.leftovers()), (vec![], vec![]));
    let (again, _) = sync(&a, &b, BACKUP).expect("syncs");
    assert_eq!((again.status(), again.mailboxes.len()), (0, 0), "{again:?}");
}

#[test]
fn changes_of_both_ends_arrive_at_both() {
    let (_dir, a, b) = pair();
    some_mail(&a);
    sync(&a, &b, BACKUP).expect("syncs");
    a.deliver("", "1700000010.M1P1.host", b"new at a");
    b.deliver("", "1700000011.M1P1.host", b"new at b");
    b.deliver("Made.Here", "1700000012.M1P1.host", b"in a new folder");
    fs::remove_file(a.find("", "1700000001")).expect("expunged at a");
    let two = b.find("", "1700000002");
    fs::rename(&two, two.with_file_name("1700000002.M2P1.host:2,FRSa")).expect("answered at b");
    fs::rename(a.folder("Archive.2024"), a.folder("Archive.Old")).expect("renamed at a");
    let (report, _) = sync(&a, &b, Direction::TwoWay).expect("syncs");
    assert_eq!(report.status(), 0, "{report:?}");
    let view = a.view();
    assert_eq!(view, b.view());
    let inbox = view["INBOX"].join("\n");
    assert!(
        inbox.contains("new at a") && inbox.contains("new at b") && !inbox.contains("Subject: one"),
        "{inbox}"
    );
    assert!(inbox.contains("\\Answered"), "{inbox}");
    assert!(view.contains_key("Made/Here") && view.contains_key("Archive/Old"), "{view:?}");
    assert!(view.get("Archive/2024").is_none_or(|lines| lines[0].starts_with("subscribed")), "{view:?}");
    let (again, _) = sync(&a, &b, Direction::TwoWay).expect("syncs");
    assert_eq!((again.status(), again.mailboxes.len()), (0, 0), "{again:?}");
}

#[test]
fn a_mirror_is_repaired_in_place() {
    let (_dir, a, b) = pair();
    some_mail(&a);
    sync(&a, &b, BACKUP).expect("syncs");
    fs::remove_file(b.find("", "1700000002")).expect("expunged at b");
    b.deliver("", "1700000020.M1P1.host", b"foreign");
    b.deliver("Foreign", "1700000021.M1P1.host", b"foreign");
    a.deliver("", "1700000022.M1P1.host", b"Subject: new\n\n");
    let (report, other) = sync(&a, &b, BACKUP).expect("syncs");
    assert_eq!(report.status(), 0, "{report:?} {other:?}");
    let (mut a, mut b) = (a.view(), b.view());
    // UIDNEXT never goes back, so the first line of INBOX may differ in it.
    let (first_a, first_b) =
        (a.get_mut("INBOX").expect("there").remove(0), b.get_mut("INBOX").expect("there").remove(0));
    assert_eq!(
        first_a.split(' ').take(2).collect::<Vec<_>>(),
        first_b.split(' ').take(2).collect::<Vec<_>>()
    );
    assert_eq!(a, b);
}

#[test]
fn layouts_are_converted() {
    let (_dir, a, mut b) = pair();
    some_mail(&a);
    b.options = ":LAYOUT=fs:UTF-8".into();
    let (report, _) = sync(&a, &b, BACKUP).expect("syncs");
    assert_eq!(report.status(), 0, "{report:?}");
    assert!(b.root.join("Archive/2024/cur").is_dir() && b.root.join("Entwürfe/cur").is_dir());
    let (mut ours, theirs) = (b.view(), a.view());
    ours.remove("Archive");
    assert_eq!(ours, theirs);
    let (report, _) = sync(&a, &b, Direction::TwoWay).expect("syncs");
    assert_eq!((report.status(), report.mailboxes.len()), (0, 0), "{report:?}");
}

#[test]
fn a_damaged_uidlist_loses_no_message() {
    let (_dir, a, b) = pair();
    some_mail(&a);
    sync(&a, &b, BACKUP).expect("syncs");
    let path = b.root.join("dovecot-uidlist");
    let text = fs::read_to_string(&path).expect("read");
    let first = text.lines().next().expect("a header");
    fs::write(
        &path,
        format!("{first}\ngarbage\n9 :1700000001.M1P1.host\n3 :1700000003.M3P1.host,S=0\n10 :torn"),
    )
    .expect("written");
    let (report, _) = sync(&a, &b, Direction::TwoWay).expect("syncs");
    assert_eq!(report.status(), 0, "{report:?}");
    assert_eq!(a.view(), b.view());
    let inbox = a.view()["INBOX"].join("\n");
    for body in ["Subject: one", "Subject: two"] {
        assert_eq!(inbox.matches(body).count(), 1, "{inbox}");
    }
}

/// An index that is made anew ends the sessions of all who have it open.
#[test]
fn a_two_way_sync_goes_on_with_the_same_index() {
    for direction in [Direction::TwoWay, Direction::OneWay { into: Terminus::Responder }] {
        let (_dir, a, b) = pair();
        a.deliver("", "1700000001.M1P1.host", b"both");
        sync(&a, &b, Direction::TwoWay).expect("syncs");
        let log = || {
            let paths = Paths::mailbox(&b.root);
            Index::open(paths).expect("read").expect("there").position().0
        };
        let before = log();
        // UID 2 is taken at both, so that of b gets one behind 3, which a's second message keeps.
        a.deliver("", "1700000002.M1P1.host", b"first at a");
        a.deliver("", "1700000003.M1P1.host", b"second at a");
        b.deliver("", "1700000004.M1P1.host", b"at b");
        let (report, _) = sync(&a, &b, direction).expect("syncs");
        assert_eq!(report.status(), 0, "{report:?}");
        assert_eq!(b.view()["INBOX"].len(), 5);
        assert_eq!(log(), before, "{direction:?}");
    }
}

#[test]
fn a_commit_does_not_bring_back_what_another_expunged_meanwhile() {
    let (_dir, a, _) = pair();
    a.deliver("", "1700000001.M1P1.host", b"one");
    a.deliver("", "1700000002.M1P1.host", b"two");
    let index = || Index::open(Paths::mailbox(&a.root)).expect("read").expect("there");
    let open = || {
        let mut storage = a.open();
        let (tree, _) = storage.tree().expect("lists");
        let inbox = tree[&MailboxName::inbox()].mailbox.clone().expect("a mailbox");
        let mut mailbox = storage.open(inbox.guid).expect("opens");
        mailbox.changes(Since::All).expect("lists");
        mailbox
    };
    let (mut ours, mut other) = (open(), open());
    let goal = |next| Goal {
        uid_next_min: Uid::new(next).expect("a UID"),
        modseq_min: ModSeq::NONE,
        uid_validity: None,
        unfinished: false,
    };
    let before = index().position().0;
    other.apply(&[MessageAction::Expunge { uid: Uid::MIN, guid: None }]).expect("takes note");
    other.commit(goal(1)).expect("expunges");
    ours.commit(goal(9)).expect("commits");
    let index = index();
    assert_eq!((index.state().uids.as_slice(), index.position().0), (&[2][..], before));
}

#[test]
fn a_lost_uidlist_changes_no_uidvalidity() {
    let (_dir, a, b) = pair();
    some_mail(&a);
    sync(&a, &b, BACKUP).expect("syncs");
    let identity =
        |account: &Account| account.view()["INBOX"][0].split_once(' ').expect("words").1.to_owned();
    let before = identity(&b);
    fs::remove_file(b.root.join("dovecot-uidlist")).expect("removed");
    // The messages get UIDs that none had before.
    let lines = &b.view()["INBOX"];
    let numbers: Vec<&str> = lines[0].split(' ').skip(1).collect();
    let old: Vec<&str> = before.split(' ').collect();
    assert_eq!(numbers[0], old[0], "UIDVALIDITY");
    let first: u32 = lines[1].split(' ').next().and_then(|uid| uid.parse().ok()).expect("a UID");
    assert_eq!(first.to_string(), old[1], "UIDNEXT as it was");
}

#[test]
fn excluded_mailboxes_are_left_alone() {
    let (_dir, a, b) = pair();
    some_mail(&a);
    b.deliver("Archive.Mine", "1700000021.M1P1.host", b"stays");
    let options = Options { exclude: vec!["Archive*".into()], ..Options::default() };
    let (report, _) = sync_with(&a, &b, BACKUP, options).expect("syncs");
    assert_eq!(report.status(), 0, "{report:?}");
    let view = b.view();
    assert!(view.contains_key("Entwürfe") && view.contains_key("Archive/Mine"), "{view:?}");
    assert!(!view.contains_key("Archive/2024"), "{view:?}");
    let (report, _) = sync(&a, &b, Direction::TwoWay).expect("syncs");
    assert_eq!(report.status(), 0, "{report:?}");
    assert_eq!(a.view(), b.view());
    assert!(a.view().contains_key("Archive/Mine") && a.view().contains_key("Archive/2024"));
}

#[test]
fn one_store_is_not_synchronised_with_itself() {
    let (_dir, a, _) = pair();
    some_mail(&a);
    let error = sync(&a, &a, Direction::TwoWay).expect_err("refused");
    assert_eq!(error.status(), 75, "{error}");
}

#[test]
fn an_empty_source_does_not_empty_its_mirror() {
    let (_dir, a, b) = pair();
    some_mail(&b);
    let error = sync(&a, &b, BACKUP).expect_err("refused");
    assert_eq!(error.status(), 77, "{error}");
    let options = Options { allow_mass_delete: true, ..Options::default() };
    let (report, _) = sync_with(&a, &b, BACKUP, options).expect("syncs");
    assert_eq!(report.status(), 0, "{report:?}");
    assert_eq!(b.view()["INBOX"].len(), 1);
}

#[test]
fn compressed_mail_arrives_as_it_was() {
    use std::io::Write;
    let (_dir, a, b) = pair();
    let text = "Subject: compressed\n\n".to_owned() + &"The same line again.\n".repeat(50);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(text.as_bytes()).expect("written");
    let gzip = gzip.finish().expect("written");
    a.deliver("", &format!("1700000001.M1P1.host,S={}:2,S", text.len()), &gzip);
    // Without the size of the mail in its name.
    a.deliver("", "1700000002.M1P1.host:2,", &gzip);
    a.deliver("", "1700000003.M1P1.host:2,", b"\x1f\x8b is no gzip\n");
    let (report, _) = sync(&a, &b, BACKUP).expect("syncs");
    assert_eq!(report.status(), 0, "{report:?}");
    assert_eq!(a.view(), b.view());
    for prefix in ["1700000001", "1700000002"] {
        assert_eq!(fs::read_to_string(b.find("", prefix)).expect("plain text"), text);
    }
    let (again, _) = sync(&a, &b, Direction::TwoWay).expect("syncs");
    assert_eq!((again.status(), again.mailboxes.len()), (0, 0), "{again:?}");
}

#[test]
fn encrypted_mail_is_refused() {
    let (_dir, a, b) = pair();
    a.deliver("", "1700000001.M1P1.host:2,", b"CRYPTED\x03\x07\x02\x00and so on");
    a.deliver("", "1700000002.M1P1.host:2,", b"Subject: plain\n\n");
    let status = match sync(&a, &b, BACKUP) {
        Ok((report, _)) => report.status(),
        Err(error) => error.status(),
    };
    assert_eq!(status, 65);
    assert_eq!(b.view()["INBOX"].iter().filter(|line| line.contains("CRYPTED")).count(), 0);
}

/// How many messages each mailbox of an account holds.
fn counts(account: &Account) -> Vec<(String, usize)> {
    let view = account.view().into_iter();
    let mailboxes = view.filter(|(_, lines)| !lines[0].starts_with("subscribed "));
    mailboxes.map(|(name, lines)| (name, lines.len() - 1)).collect()
}

#[test]
fn an_mbox_and_a_maildir_double_nothing() {
    let dir = tempfile::tempdir().expect("made");
    let (a, b) = (Account::new(dir.path().join("a")), Account::of("mbox", dir.path().join("b")));
    some_mail(&a);
    let letter = b"Date: Mon, 06 Jan 2025 10:00:00 +0000\nMessage-ID: <m1@example.test>\n\nTwice.";
    a.deliver("", "1700000006.M6P1.host", letter);
    a.deliver("", "1700000007.M7P1.host", letter);
    // What an mbox takes for its own, or for the next message, does not arrive as it was.
    let odd = b"Status: RO\r\nX-UID: 9\r\nSubject: odd\r\nFrom x@y  Mon Feb 05 10:00:00 2024\r\n\r\nFrom x@y  Mon Feb 05 10:00:00 2024\r\n";
    a.deliver("", "1700000008.M8P1.host", odd);
    for round in 0..4 {
        let (report, _) = sync(&a, &b, Direction::TwoWay).expect("syncs");
        assert_eq!(report.status(), 0, "{report:?}");
        assert_eq!(report.mailboxes.is_empty(), round > 0, "round {round}: {report:?}");
        assert_eq!(counts(&a), counts(&b));
        assert_eq!(counts(&a).iter().map(|(_, messages)| messages).sum::<usize>(), 8);
        // Without a base all is matched by hashes.
        for root in [&a.root, &b.root] {
            let notes = fs::read_dir(root).expect("readable").flatten().map(|entry| entry.path());
            let base = |path: &std::path::PathBuf| path.to_string_lossy().contains(".dsync-base-");
            notes.filter(base).for_each(|path| fs::remove_file(path).expect("removed"));
        }
    }
    let mut text = fs::read(b.root.join("inbox")).expect("readable");
    text.extend_from_slice(b"From x@y  Mon Feb 05 10:00:00 2024\n");
    text.extend_from_slice(letter);
    text.extend_from_slice(b"\n\n");
    fs::write(b.root.join("inbox"), text).expect("delivered once more");
    let (report, _) = sync(&a, &b, Direction::TwoWay).expect("syncs");
    assert_eq!(report.status(), 0, "{report:?}");
    assert_eq!(counts(&a), counts(&b));
    assert_eq!(counts(&a).iter().map(|(_, messages)| messages).sum::<usize>(), 9);
}
