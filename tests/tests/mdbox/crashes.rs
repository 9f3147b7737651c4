//! A crash at any step of a commit and a purge.

use std::collections::BTreeSet;

use dsync_model::{
    FlagSet, Flags, MessageAction, MessageChange, MessageGuid, ModSeq, NewMessage, Since, Timestamp,
};
use dsync_storage::dbox::Mdbox;
use dsync_storage::layout::{Format, Layout};
use dsync_storage::{Fsync, Storage, disk};
use dsync_tests::dovecot::{Dovecot, installed};

use super::{Account, BOX, commit, expunge, flags, goal, same, save, subjects, uid};

/// What is to be done to the account, as far as it is not done yet.
fn work(account: &Account) -> dsync_storage::Result<()> {
    let layout = Layout::new(Format::Mdbox, account.root());
    let mut storage = Mdbox::open_rotating(layout, Fsync::Optimized, None, account.rotation())?;
    let (_, mut problems) = storage.tree()?;
    if let Some(problem) = problems.pop() {
        return Err(problem.error);
    }
    let mut mailbox = storage.open(BOX)?;
    let here: BTreeSet<u32> = mailbox
        .changes(Since::All)?
        .list
        .iter()
        .filter_map(|change| match change {
            MessageChange::Save { uid, .. } => Some(uid.get()),
            _ => None,
        })
        .collect();
    let mut actions = vec![MessageAction::Flags {
        uid: uid(1),
        add: flags(Flags::FLAGGED, &["New"]),
        remove: FlagSet::default(),
        modseq_min: ModSeq::NONE,
    }];
    actions.extend([2, 5].into_iter().filter(|n| here.contains(n)).map(expunge));
    if here.contains(&6) {
        actions.push(MessageAction::Renumber { from: uid(6), to: uid(20) });
    }
    mailbox.apply(&actions)?;
    for n in [10, 12].into_iter().filter(|n| !here.contains(n)) {
        let message = NewMessage {
            uid: uid(n),
            guid: MessageGuid::new(&format!("new-{n}")).expect("valid"),
            flags: flags(Flags::SEEN, &["New"]),
            modseq: ModSeq::NONE,
            received: Some(Timestamp(1)),
            saved: None,
            pop3_uidl: None,
            pop3_order: None,
            size: None,
        };
        mailbox.begin_save(message)?;
        mailbox.write(format!("Subject: new-{n}\n\n{}", "y".repeat(900)).as_bytes())?;
        mailbox.end_save()?;
    }
    mailbox.commit(goal())?;
    drop(mailbox);
    storage.purge(0).map(drop)
}

fn crashes(rotate_bytes: u64) {
    let begin = || {
        let mut account = Account::new();
        account.rotate_bytes = rotate_bytes;
        account.make("Box", BOX);
        let mut mailbox = account.mailbox(BOX);
        for n in 1..=6 {
            save(&mut *mailbox, n, &format!("old-{n}"), FlagSet::default(), 1000);
        }
        commit(&mut *mailbox);
        account
    };
    let done = ["new-10", "new-12", "old-1", "old-3", "old-4", "old-6"];
    let steps = {
        let account = begin();
        let before = disk::crash_after(None);
        work(&account).expect("works");
        assert_eq!(subjects(&account.view()), done);
        disk::crash_after(None) - before
    };
    assert!(steps > 12, "{steps}");
    for step in 0..steps {
        let account = begin();
        disk::crash_after(Some(step));
        let outcome = work(&account);
        disk::crash_after(None);
        let found = subjects(&account.view());
        // Nobody hears of a crash that costs only what is known of the mailboxes for the next run.
        assert!(outcome.is_err() || found == done, "step {step} of {steps} is reached");
        let before = ["old-1", "old-2", "old-3", "old-4", "old-5", "old-6"];
        assert!(found == before || found == done, "crash at step {step} of {steps}: {found:?}");
        work(&account).unwrap_or_else(|error| panic!("after a crash at step {step} of {steps}: {error}"));
        let view = account.view();
        assert_eq!(subjects(&view), done, "after a crash at step {step} of {steps}");
        if installed() {
            let dovecot = Dovecot::new(account.dir.path());
            same(&view, &account.view_of(&dovecot));
            dovecot.save(&account.location(), "Box", "Subject: theirs\n\n");
            dovecot.doveadm(&account.location(), &["expunge", "mailbox", "Box", "uid", "1"]);
            same(&account.view(), &account.view_of(&dovecot));
        }
    }
}

#[test]
fn a_crash_at_any_step_loses_and_doubles_nothing() {
    // All in one file that is appended to; a file for each message.
    crashes(100_000);
    crashes(500);
}
