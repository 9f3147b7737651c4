//! Messages that are copied within an account share what is stored.

use std::collections::BTreeSet;
use std::fs;

use dsync_model::{FlagSet, Flags, MailboxGuid, ModSeq, NewMessage, NotKept, Since, Timestamp};
use dsync_storage::dbox::Mdbox;
use dsync_storage::layout::{Format, Layout};
use dsync_storage::{Fsync, Mailbox, Storage, disk};
use dsync_tests::dovecot::{Dovecot, installed};

use super::{Account, BOX, commit, expunge, flags, goal, purge, same, save, subjects, uid};

/// Takes a copy of a message of `from`, as the brain does with one that was moved.
fn copy(mailbox: &mut dyn Mailbox, to: u32, from: &mut dyn Mailbox, n: u32) -> dsync_storage::Result<()> {
    let body = from.body(uid(n), None)?.expect("is there");
    let message = NewMessage {
        uid: uid(to),
        guid: body.guid.clone(),
        flags: flags(Flags::FLAGGED, &["Copied"]),
        modseq: ModSeq::NONE,
        received: body.received,
        saved: None,
        pop3_uidl: body.pop3_uidl.clone(),
        pop3_order: body.pop3_order,
        size: body.size,
    };
    mailbox.save(message, body)
}

const ARCHIVE: MailboxGuid = MailboxGuid([0xa0; 16]);

/// Three messages of 3,000 bytes in `Box`, none in `Archive`.
fn with_archive() -> Account {
    let account = Account::new();
    account.make("Box", BOX);
    account.make("Archive", ARCHIVE);
    let mut mailbox = account.mailbox(BOX);
    for n in 1..=3 {
        let guid = if n == 1 { "text.M1P1.host".to_owned() } else { format!("{n:032x}") };
        save(&mut *mailbox, n, &guid, FlagSet::default(), 3000);
    }
    commit(&mut *mailbox);
    account
}

/// Bytes in the files of messages.
fn stored_bytes(account: &Account) -> u64 {
    let files = account.files().into_iter().filter(|name| name.starts_with("m."));
    files.map(|name| fs::metadata(account.root().join("storage").join(name)).expect("is there").len()).sum()
}

#[test]
fn a_copy_takes_no_space_and_outlives_what_it_was_copied_from() {
    let account = with_archive();
    let before = stored_bytes(&account);
    let (mut source, mut archive) = (account.mailbox(BOX), account.mailbox(ARCHIVE));
    for n in 1..=3 {
        copy(&mut *archive, n + 10, &mut *source, n).expect("copies");
    }
    copy(&mut *archive, 14, &mut *source, 1).expect("copies");
    assert_eq!((commit(&mut *archive).not_kept, stored_bytes(&account)), (NotKept::new(), before));
    let subjects_of = |view: &BTreeSet<String>, mailbox: &str| {
        subjects(&view.iter().filter(|line| line.starts_with(mailbox)).cloned().collect()).len()
    };
    let view = account.view();
    assert_eq!((subjects_of(&view, "Box"), subjects_of(&view, "Archive")), (3, 4), "{view:#?}");
    let dovecot = installed().then(|| Dovecot::new(account.dir.path()));
    let location = account.location();
    if let Some(dovecot) = &dovecot {
        same(&view, &account.view_of(dovecot));
        dovecot.doveadm(&location, &["purge"]);
        same(&view, &account.view_of(dovecot));
        dovecot.doveadm(&location, &["expunge", "mailbox", "Box", "uid", "2"]);
        dovecot.doveadm(&location, &["purge"]);
    }
    source.apply(&[expunge(1), expunge(3)]).expect("takes note");
    commit(&mut *source);
    assert_eq!(purge(&account).messages, 0, "each is referred to");
    let view = account.view();
    assert_eq!(subjects_of(&view, "Archive"), 4, "{view:#?}");
    if let Some(dovecot) = &dovecot {
        // What is purged is written anew with the number of references as it is.
        dovecot.doveadm(&location, &["purge"]);
        same(&view, &account.view_of(dovecot));
        // It counts all references anew.
        dovecot.force_resync(&location);
        // All but modseqs is as it was.
        let again = account.view();
        same(&again, &account.view_of(dovecot));
        assert_eq!(subjects(&again), subjects(&view));
    }
    let mut archive = account.mailbox(ARCHIVE);
    archive.apply(&[expunge(11), expunge(12)]).expect("takes note");
    commit(&mut *archive);
    purge(&account);
    assert_eq!(subjects(&account.view()).len(), 2, "one is there twice, and was expunged once");
    archive.apply(&[expunge(13), expunge(14)]).expect("takes note");
    commit(&mut *archive);
    purge(&account);
    assert!(stored_bytes(&account) < 3000 * 2, "the references are not too many: {}", stored_bytes(&account));
}

#[test]
fn what_differs_or_belongs_to_others_is_written() {
    let (account, before) = (with_archive(), 3 * 3000);
    let mut source = account.mailbox(BOX);
    let mut archive = account.mailbox(ARCHIVE);
    let mut body = source.body(uid(1), None).expect("opens").expect("is there");
    body.received = Some(Timestamp(5));
    let message = NewMessage {
        uid: uid(1),
        guid: body.guid.clone(),
        flags: FlagSet::default(),
        modseq: ModSeq::NONE,
        received: Some(Timestamp(6)),
        saved: None,
        pop3_uidl: None,
        pop3_order: None,
        size: body.size,
    };
    archive.save(message, body).expect("saves");
    commit(&mut *archive);
    assert!(stored_bytes(&account) > before + 3000);
    drop(archive);
    drop(source);
    // The map of another account has the same UIDs.
    let body = account.mailbox(BOX).body(uid(2), None).expect("opens").expect("is there");
    let copied = body.guid.clone();
    drop(account);
    let other = with_archive();
    let before = stored_bytes(&other);
    let message = NewMessage {
        uid: uid(9),
        guid: copied,
        flags: FlagSet::default(),
        modseq: ModSeq::NONE,
        received: body.received,
        saved: None,
        pop3_uidl: None,
        pop3_order: None,
        size: body.size,
    };
    let mut archive = other.mailbox(ARCHIVE);
    archive.save(message, body).expect("saves");
    assert_eq!(commit(&mut *archive).bytes, 3000 + 43, "a subject of a GUID");
    assert!(stored_bytes(&other) > before + 3000);
}

#[test]
fn a_copy_of_what_was_expunged_meanwhile_is_not_kept() {
    let account = with_archive();
    let (mut source, mut archive) = (account.mailbox(BOX), account.mailbox(ARCHIVE));
    copy(&mut *archive, 1, &mut *source, 1).expect("copies");
    copy(&mut *archive, 2, &mut *source, 2).expect("copies");
    copy(&mut *archive, 3, &mut *source, 2).expect("copies");
    copy(&mut *archive, 4, &mut *source, 3).expect("copies");
    source.apply(&[expunge(1), expunge(2)]).expect("takes note");
    commit(&mut *source);
    purge(&account);
    assert_eq!(commit(&mut *archive).not_kept, [1, 2, 3].map(|n| (uid(n), None)).into());
    let view = account.view();
    assert_eq!(subjects(&view).len(), 2, "{view:#?}");
}

#[test]
fn a_crash_while_copying_leaves_no_message_with_too_few_references() {
    let work = |account: &Account| {
        let layout = Layout::new(Format::Mdbox, account.root());
        let mut storage = Mdbox::open_rotating(layout, Fsync::Optimized, None, account.rotation())?;
        storage.tree()?;
        let (mut source, mut archive) = (storage.open(BOX)?, storage.open(ARCHIVE)?);
        archive.changes(Since::All)?;
        for n in 1..=3 {
            copy(&mut *archive, n, &mut *source, n)?;
        }
        archive.commit(goal())
    };
    let steps = {
        let account = with_archive();
        let before = disk::crash_after(None);
        work(&account).expect("works");
        disk::crash_after(None) - before
    };
    assert!(steps > 3, "{steps}");
    for step in 0..steps {
        let account = with_archive();
        disk::crash_after(Some(step));
        let outcome = work(&account);
        disk::crash_after(None);
        assert!(outcome.is_err() || step + 1 == steps, "step {step} of {steps} is reached");
        let (view, place) = (account.view(), format!("after a crash at step {step} of {steps}"));
        let found = subjects(&view).len();
        assert!(found == 3 || found == 6, "{place}: {found}");
        // Whoever comes next expunges what was copied, and purges.
        let mut source = account.mailbox(BOX);
        source.apply(&[expunge(1), expunge(2), expunge(3)]).expect("takes note");
        commit(&mut *source);
        purge(&account);
        assert_eq!(subjects(&account.view()).len(), found - 3, "{place}");
        if installed() {
            same(&account.view(), &account.view_of(&Dovecot::new(account.dir.path())));
        }
    }
}
