//! Mail that a user moved or copied.

use std::fs;

use dsync_model::{FlagSet, Flags, Keyword, MailboxName, MessageAction, ModSeq, Uid};
use dsync_session::proto::{Direction, List, Message, Options};
use dsync_session::storage::Goal;
use dsync_session::{Input, Output};
use dsync_tests::maildirs::{Account, ends, sync};

use super::pair;

/// What a user moved is copied from its old place at the other end: no body travels, whatever the format there is.
#[test]
fn moved_messages_are_not_transferred_again() {
    for format in ["maildir", "sdbox", "mdbox"] {
        let (dir, a, _) = pair();
        let b = Account::of(format, dir.path().join("other"));
        let base = |n: u32| format!("17000{n:05}.M{n}P1.host");
        for n in 0..100 {
            a.deliver("", &format!("{}:2,S", base(n)), format!("Subject: {n}\n\n").as_bytes());
        }
        a.deliver("", "1800000000.M1P1.host:2,", b"Subject: stays\n\n");
        a.deliver("Work", "1800000001.M1P1.host:2,", b"Subject: there before\n\n");
        let (report, _) = sync(&a, &b, Direction::TwoWay).expect("syncs");
        assert_eq!(report.status(), 0, "{report:?}");
        // One comes anew among those that are moved.
        for n in 0..100 {
            let name = format!("{}:2,S", base(n));
            fs::rename(a.root.join("cur").join(&name), a.folder("Work").join("cur").join(&name))
                .expect("moved");
        }
        a.deliver("Work", "1700000050.M0P1.host:2,", b"Subject: new\n\n");
        let (here, there) = sync(&a, &b, Direction::TwoWay).expect("syncs");
        assert_eq!((here.status(), there.status()), (0, 0), "{format}: {here:?} {there:?}");
        let sent: u64 = here.mailboxes.iter().map(|mailbox| mailbox.sent).sum();
        let copied: u64 = there.mailboxes.iter().map(|mailbox| mailbox.copied).sum();
        assert_eq!((sent, copied), (1, 100), "{format}");
        assert_eq!(a.view(), b.view(), "{format}");
        assert_eq!((b.view()["INBOX"].len(), b.view()["Work"].len()), (2, 103), "{format}");
    }
}

/// Seed 60086 of the oracle's fuzzer: one end moves the mail out of a mailbox and deletes it, the other has set flags there meanwhile.
#[test]
fn flags_follow_mail_out_of_a_mailbox_that_is_deleted() {
    for (format, calls) in [("maildir", true), ("sdbox", false), ("mdbox", true)] {
        let (dir, a, _) = pair();
        let b = Account::of(format, dir.path().join("other"));
        let base = |n: u32| format!("17000{n:05}.M{n}P1.host");
        (1..=9).for_each(|n| a.deliver("Old", &format!("{}:2,S", base(n)), b"Subject: moved\n\n"));
        a.deliver("", &base(99), b"Subject: stays\n\n");
        let meet = || {
            let (one, two) = if calls { (&a, &b) } else { (&b, &a) };
            let (one, two) = sync(one, two, Direction::TwoWay).expect("syncs");
            assert_eq!((one.status(), two.status()), (0, 0), "{format}: {one:?} {two:?}");
            if calls { (one, two) } else { (two, one) }
        };
        meet();
        let mut storage = b.open();
        let (tree, _) = storage.tree().expect("lists");
        let old = MailboxName::parse("Old", '/').expect("valid");
        let status = tree[&old].mailbox.clone().expect("is a mailbox");
        let mut mailbox = storage.open(status.guid).expect("opens");
        let flags = |uid, added: &[Flags], removed| {
            let keyword = Keyword::new("work").expect("valid");
            let added = added.iter().fold(Flags::NONE, |all, flag| all.union(*flag));
            let add = FlagSet { system: added, keywords: [keyword].into() };
            let uid = Uid::new(uid).expect("above 0");
            MessageAction::Flags { uid, add, remove: FlagSet::system(removed), modseq_min: ModSeq::NONE }
        };
        let actions = [flags(2, &[Flags::FLAGGED, Flags::DELETED], Flags::SEEN), flags(3, &[], Flags::NONE)];
        mailbox.apply(&actions).expect("applies");
        let (uid_next_min, modseq_min) = (status.uid_next, ModSeq::NONE);
        mailbox
            .commit(Goal { uid_next_min, modseq_min, uid_validity: None, unfinished: false })
            .expect("commits");
        drop((mailbox, storage));
        for n in 1..=9 {
            let name = format!("{}:2,S", base(n));
            fs::rename(a.folder("Old").join("cur").join(&name), a.root.join("cur").join(&name))
                .expect("moved");
        }
        let answered = |flags| a.root.join("cur").join(format!("{}:2,{flags}", base(2)));
        fs::rename(answered("S"), answered("RS")).expect("answered");
        fs::remove_dir_all(a.folder("Old")).expect("deleted");
        let (here, there) = meet();
        let sent: u64 = here.mailboxes.iter().map(|mailbox| mailbox.sent).sum();
        let copied: u64 = there.mailboxes.iter().map(|mailbox| mailbox.copied).sum();
        assert_eq!((sent, copied), (0, 9), "{format}");
        assert_eq!(a.view(), b.view(), "{format}");
        assert_eq!(a.view().keys().collect::<Vec<_>>(), ["INBOX"], "{format}");
        // Removed there, untouched here: gone. Both ends' additions are there.
        assert!(answered("FRTa").exists() && a.find("", &base(3)).ends_with(base(3) + ":2,Sa"), "{format}");
        let (here, there) = meet();
        assert!(here.mailboxes.is_empty() && there.mailboxes.is_empty(), "{here:?} {there:?}");
    }
}

/// In the middle of a session one end moves a message, and the other sets a flag on it: the next round carries that, though another mailbox is done.
#[test]
fn flags_follow_mail_that_is_moved_while_it_is_synchronised() {
    let (_dir, a, b) = pair();
    let name = "1700000001.M1P1.host";
    a.deliver("", &format!("{name}:2,S"), b"Subject: moved\n\n");
    for folder in ["Calm", "Work"] {
        a.deliver(folder, "1700000002.M2P1.host", b"Subject: stays\n\n");
    }
    sync(&a, &b, Direction::TwoWay).expect("syncs");
    for folder in ["", "Calm", "Work"] {
        a.deliver(folder, "1700000003.M3P1.host", b"Subject: new\n\n");
    }
    let mut brains = ends(&a, &b, Direction::TwoWay, Options::default());
    let mut reports = [None, None];
    let mut is_moved = false;
    while reports.iter().any(Option::is_none) {
        for from in 0..2 {
            if reports[from].is_some() {
                continue;
            }
            let input = match brains[from].poll().expect("works") {
                Output::Message(channel, message) => {
                    if matches!(message, Message::End(List::Saves)) && !is_moved {
                        is_moved = true;
                        let (from, to) = (b.find("", name), b.folder("Work").join("cur"));
                        fs::rename(&from, to.join(from.file_name().expect("has one"))).expect("moved");
                        let flagged = a.root.join("cur").join(format!("{name}:2,FS"));
                        fs::rename(a.find("", name), flagged).expect("flagged");
                    }
                    Input::Message(channel, message)
                }
                Output::Body(channel, body) => Input::WholeBody(channel, body),
                Output::Working | Output::Idle => continue,
                Output::Done(report) => {
                    reports[from] = Some(report);
                    continue;
                }
            };
            brains[1 - from].handle(input).expect("takes it");
        }
    }
    drop(brains);
    assert!(is_moved);
    // What came too late for this session is done by the next one; the flag is not lost.
    sync(&a, &b, Direction::TwoWay).expect("syncs");
    assert_eq!(a.view(), b.view());
    let view = a.view();
    assert_eq!((view["INBOX"].len(), view["Work"].len(), view["Calm"].len()), (2, 4, 3), "{view:?}");
    assert!(b.find("Work", name).to_string_lossy().ends_with(":2,FS"), "{view:?}");
}

/// A copy of what both ends have in a mailbox that did not change is made at the other end; where the GUID says that the message is
/// younger than that, nobody looks there.
#[test]
fn copies_of_what_did_not_change_are_not_transferred() {
    for format in ["maildir", "sdbox", "mdbox"] {
        let (dir, a, _) = pair();
        let b = Account::of(format, dir.path().join("other"));
        let name = |n: u32| format!("17000{n:05}.M{n}P1.host:2,S");
        for n in 0..20 {
            a.deliver("", &name(n), format!("Subject: {n}\n\n{}", "x".repeat(200)).as_bytes());
        }
        let young = "2000000000.M1P1.host:2,";
        a.deliver("", young, b"Subject: of another time\n\n");
        a.deliver("Work", "1700000000.M1P1.host:2,", b"Subject: there before\n\n");
        let (report, _) = sync(&a, &b, Direction::TwoWay).expect("syncs");
        assert_eq!(report.status(), 0, "{report:?}");
        let stored = || -> u64 {
            let files = fs::read_dir(b.root.join("storage")).into_iter().flatten().flatten();
            let files = files.filter(|file| file.file_name().to_string_lossy().starts_with("m."));
            files.map(|file| file.metadata().expect("is there").len()).sum()
        };
        let before = stored();
        for (names, wanted) in [((0..10).map(name).collect(), (0, 10)), (vec![young.to_owned()], (1, 0))] {
            for name in names {
                let (from, to) = (a.root.join("cur").join(&name), a.folder("Work").join("cur").join(&name));
                fs::hard_link(from, to).expect("copied");
            }
            let (here, there) = sync(&a, &b, Direction::TwoWay).expect("syncs");
            assert_eq!((here.status(), there.status()), (0, 0), "{format}: {here:?} {there:?}");
            let sent: u64 = here.mailboxes.iter().map(|mailbox| mailbox.sent).sum();
            let copied: u64 = there.mailboxes.iter().map(|mailbox| mailbox.copied).sum();
            assert_eq!((sent, copied), wanted, "{format}");
            assert_eq!(a.view(), b.view(), "{format}");
            // mdbox refers to what it has.
            assert!(sent == 1 || stored() == before, "{format}: {} bytes", stored() - before);
        }
        // The old ones may go: their copies stay.
        (0..10).for_each(|n| fs::remove_file(a.root.join("cur").join(name(n))).expect("removed"));
        let (report, _) = sync(&a, &b, Direction::TwoWay).expect("syncs");
        assert_eq!(report.status(), 0, "{report:?}");
        assert_eq!((a.view(), b.view()["INBOX"].len()), (b.view(), 12), "{format}");
    }
}
