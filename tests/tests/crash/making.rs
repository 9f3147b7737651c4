//! Mailboxes that are made are seen whole, or not at all.

use dsync_model::{MailboxGuid, MailboxName, TreeChange, Uid, UidValidity};
use dsync_session::storage::disk;
use dsync_tests::maildirs::Account;

use crate::place;

/// A session that finds a mailbox half made gives it another identity, and it is there twice once somebody renames it.
#[test]
fn a_mailbox_that_is_made_is_seen_as_it_is_to_be_or_not_at_all() {
    for format in ["maildir", "maildir:LAYOUT=fs", "sdbox", "mdbox", "mbox"] {
        for name in ["New", "Below/Others/New"] {
            let name = MailboxName::new(&name.split('/').collect::<Vec<_>>()).expect("a name");
            let (guid, uid_validity) = (MailboxGuid([7; 16]), UidValidity::new(77).expect("is none"));
            let uid_next = Uid::new(9).expect("a UID");
            let create = TreeChange::Create { name: name.clone(), guid, uid_validity, uid_next };
            let seen = |account: &Account| {
                let (tree, problems) = account.open().tree().expect("lists");
                assert!(problems.is_empty(), "{problems:?}");
                tree.get(&name).and_then(|node| node.mailbox.clone())
            };
            let (mut step, mut seen_before) = (0, 0);
            loop {
                let dir = place();
                let account = Account::of(format, dir.path().join("a"));
                let mut storage = account.open();
                storage.tree().expect("lists");
                disk::crash_after(Some(step));
                let made = storage.change_tree(&create);
                disk::crash_after(None);
                drop(storage);
                if let Some(status) = seen(&account) {
                    let is = (status.guid, status.uid_validity, status.uid_next);
                    assert_eq!(is, (guid, uid_validity, uid_next), "{format} {name} step {step}");
                    seen_before += 1;
                }
                if made.is_ok() {
                    break;
                }
                step += 1;
            }
            assert!(step >= 3 && seen_before > 0, "{format} {name}: {step} {seen_before}");
        }
    }
}

/// Whoever opens an INBOX without an index waits for the one who makes it.
#[test]
fn an_inbox_of_a_new_account_is_there_with_its_index_or_not_at_all() {
    for format in ["sdbox", "mdbox"] {
        let mut step = 0;
        loop {
            let dir = place();
            let account = Account::of(format, dir.path().join("a"));
            let mut storage = account.open();
            disk::crash_after(Some(step));
            let listed = storage.tree().map(drop);
            disk::crash_after(None);
            let inbox = dir.path().join("a/mailboxes/INBOX/dbox-Mails");
            if inbox.exists() {
                assert!(inbox.join("dovecot.index.log").exists(), "{format} step {step}");
            }
            if listed.is_ok() {
                break;
            }
            step += 1;
        }
        assert!(step >= 3, "{format}: {step}");
    }
}
