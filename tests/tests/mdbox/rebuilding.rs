//! Maps and indexes that are lost come back from the files.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use dsync_model::Flags;
use dsync_storage::dbox::Mdbox;
use dsync_storage::layout::{Format, Layout};
use dsync_storage::{Fsync, Storage, disk};
use dsync_tests::dovecot::{Dovecot, installed};
use dsync_tests::formats::Fixture;

use super::{Account, BOX, commit, expunge, flags, is_note, purge, same, save, subjects};

const INDEX: [&str; 3] = ["dovecot.index", "dovecot.index.log", "dovecot.index.log.2"];
const MAP: [&str; 3] = ["dovecot.map.index", "dovecot.map.index.log", "dovecot.map.index.log.2"];

fn lose(account: &Account, directory: &str, files: [&str; 3]) {
    for file in files {
        let path = account.root().join(directory).join(file);
        if path.exists() {
            fs::remove_file(path).expect("removed");
        }
    }
}

/// Two mailboxes with five messages each; one of `Box` is expunged and purged.
fn two_mailboxes() -> Account {
    let account = Account::new();
    account.make("Box", BOX);
    for (guid, text) in [(BOX, "box"), (account.inbox(), "inbox")] {
        let mut mailbox = account.mailbox(guid);
        for n in 1..=5 {
            save(&mut *mailbox, n, &format!("{text}-{n}"), flags(Flags::SEEN, &["Work"]), 1000);
        }
        commit(&mut *mailbox);
    }
    let mut mailbox = account.mailbox(BOX);
    mailbox.apply(&[expunge(3)]).expect("takes note");
    commit(&mut *mailbox);
    purge(&account);
    account
}

const BOX_DIRECTORY: &str = "mailboxes/Box/dbox-Mails";

/// Loses something, opens the account after a crash at each step of that, and once more.
fn recovers(lose: impl Fn(&Account), check: impl Fn(&Account, &BTreeSet<String>)) {
    for step in 0.. {
        let account = two_mailboxes();
        let before = account.view();
        lose(&account);
        disk::crash_after(Some(step));
        let layout = Layout::new(Format::Mdbox, account.root());
        let outcome = Mdbox::open(layout, Fsync::Optimized, None).and_then(|mut storage| {
            let (_, mut problems) = storage.tree()?;
            problems.pop().map_or(Ok(()), |problem| Err(problem.error))
        });
        disk::crash_after(None);
        for _ in 0..2 {
            let view = account.view();
            assert_eq!(subjects(&view), subjects(&before), "after a crash at step {step}");
            check(&account, &before);
        }
        if outcome.is_ok() {
            if installed() {
                let dovecot = Dovecot::new(account.dir.path());
                same(&account.view(), &account.view_of(&dovecot));
                dovecot.save(&account.location(), "INBOX", "Subject: theirs\n\n");
                dovecot.doveadm(&account.location(), &["purge"]);
                same(&account.view(), &account.view_of(&dovecot));
            }
            return;
        }
    }
}

#[test]
fn a_lost_map_is_made_from_the_files_and_mailboxes_notice_nothing() {
    recovers(|account| lose(account, "storage", MAP), |account, before| assert_eq!(account.view(), *before));
}

#[test]
fn messages_of_a_lost_mailbox_come_back_to_it() {
    let all_in_their_mailbox = |account: &Account, _: &BTreeSet<String>| {
        let view = account.view();
        let strange = view.iter().filter(|line| line.starts_with("Box ") && line.contains("Subject: inbox"));
        assert_eq!(strange.count(), 0, "{view:#?}");
        let back = view.iter().filter(|line| line.starts_with("Box ") && line.contains("Subject: box"));
        assert_eq!(back.count(), 4, "{view:#?}");
    };
    recovers(|account| lose(account, BOX_DIRECTORY, INDEX), all_in_their_mailbox);
    recovers(
        |account| {
            lose(account, BOX_DIRECTORY, INDEX);
            lose(account, "storage", MAP);
        },
        all_in_their_mailbox,
    );
    recovers(
        |account| {
            lose(account, BOX_DIRECTORY, INDEX);
            lose(account, "mailboxes/INBOX/dbox-Mails", INDEX);
            lose(account, "storage", MAP);
        },
        all_in_their_mailbox,
    );
}

#[test]
fn a_mailbox_of_another_map_is_refused() {
    let account = two_mailboxes();
    let other = Fixture::unpack("mdbox-layoutindex");
    lose(&account, "storage", MAP);
    let log = Path::new("storage").join(MAP[1]);
    fs::copy(other.home().join("mdbox").join(&log), account.root().join(&log)).expect("copied");
    let layout = Layout::new(Format::Mdbox, account.root());
    // The tree takes what it knows of mailboxes that did not change from a note; here that must not hide it.
    fs::read_dir(account.root())
        .expect("is there")
        .flatten()
        .filter(|entry| is_note(&entry.path()))
        .for_each(|note| fs::remove_file(note.path()).expect("removed"));
    let mut storage = Mdbox::open(layout, Fsync::Never, None).expect("opens");
    let problem = match storage.tree() {
        Ok((_, mut problems)) => problems.pop().expect("a problem").error,
        Err(error) => error,
    };
    assert!(problem.to_string().contains("another map"), "{problem}");
}
