//! Every storage passes the one suite.

use dsync_model::{MailboxGuid, StoreId, UidValidity};
use dsync_session::storage::memory::MemoryStorage;
use dsync_session::storage::{Storage, conformance};
use dsync_tests::maildirs::Account;

#[test]
fn memory() {
    let validity = UidValidity::new(1).expect("not 0");
    let storage = MemoryStorage::new(StoreId([1; 16]), MailboxGuid([2; 16]), validity);
    conformance::check(&mut || Box::new(storage.clone()) as Box<dyn Storage>);
}

#[test]
fn maildir_in_every_layout() {
    for options in [
        "",
        ":LAYOUT=fs",
        ":UTF-8",
        ":CONTROL=%/control:INDEX=%/index",
        ":LAYOUT=fs:UTF-8:CONTROL=%/control:INBOX=%/inbox",
    ] {
        let dir = tempfile::tempdir().expect("made");
        let mut account = Account::new(dir.path().join("mail"));
        account.options = options.replace('%', &dir.path().display().to_string());
        conformance::check(&mut || account.open());
        assert_eq!(account.leftovers(), Vec::<std::path::PathBuf>::new(), "{options}");
    }
}
