//! Every storage passes the one suite.

use dsync_model::{MailboxGuid, StoreId, UidValidity};
use dsync_session::storage::dbox::{Mdbox, Sdbox};
use dsync_session::storage::layout::{Format, Layout};
use dsync_session::storage::mbox::{Locking, Mbox};
use dsync_session::storage::memory::MemoryStorage;
use dsync_session::storage::{Fsync, Storage, conformance};
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
        ":LAYOUT=fs:DIRNAME=m:MAILBOXDIR=boxes:INDEX=%/index:CONTROL=%/control",
        ":LAYOUT=fs:FULLDIRNAME=m:INDEX=%/index:INDEXCACHE=%/cache",
        ":INDEX=MEMORY:SUBSCRIPTIONS=subs",
        ":LAYOUT=index",
        ":LAYOUT=index:CONTROL=%/control:INDEX=%/index:MAILBOXDIR=boxes:LISTINDEX=li",
    ] {
        let dir = tempfile::tempdir().expect("made");
        let mut account = Account::new(dir.path().join("mail"));
        account.options = options.replace('%', &dir.path().display().to_string());
        conformance::check(&mut || account.open());
        assert_eq!(account.leftovers(), Vec::<std::path::PathBuf>::new(), "{options}");
    }
}

#[test]
fn sdbox() {
    let dir = tempfile::tempdir().expect("made");
    let mut layout = Layout::new(Format::Sdbox, dir.path().join("mail"));
    conformance::check(&mut || {
        Box::new(Sdbox::open(layout.clone(), Fsync::Never, None).expect("opens")) as Box<dyn Storage>
    });
    layout.root = dir.path().join("other");
    layout.index = dsync_session::storage::layout::Index::At(dir.path().join("index"));
    layout.control = Some(dir.path().join("control"));
    layout.alt = Some(dir.path().join("alt"));
    conformance::check(&mut || {
        Box::new(Sdbox::open(layout.clone(), Fsync::Never, None).expect("opens")) as Box<dyn Storage>
    });
}

#[test]
fn mdbox() {
    let dir = tempfile::tempdir().expect("made");
    let mut layout = Layout::new(Format::Mdbox, dir.path().join("mail"));
    conformance::check(&mut || {
        Box::new(Mdbox::open(layout.clone(), Fsync::Never, None).expect("opens")) as Box<dyn Storage>
    });
    layout.root = dir.path().join("other");
    layout.index = dsync_session::storage::layout::Index::At(dir.path().join("index"));
    layout.control = Some(dir.path().join("control"));
    layout.alt = Some(dir.path().join("alt"));
    conformance::check(&mut || {
        Box::new(Mdbox::open(layout.clone(), Fsync::Never, None).expect("opens")) as Box<dyn Storage>
    });
}

#[test]
fn names_in_the_list_index_alone() {
    for format in ["sdbox", "mdbox"] {
        for options in [":LAYOUT=index", ":LAYOUT=index:CONTROL=%/control:INDEX=%/index:ALT=%/alt"] {
            let dir = tempfile::tempdir().expect("made");
            let mut account = Account::of(format, dir.path().join("mail"));
            account.options = options.replace('%', &dir.path().display().to_string());
            conformance::check(&mut || account.open());
        }
    }
}

#[test]
fn mbox() {
    let dir = tempfile::tempdir().expect("made");
    let mut layout = Layout::new(Format::Mbox, dir.path().join("mail"));
    let check = |layout: &Layout| {
        conformance::check_keeping(conformance::Keeps::TextAlone, &mut || {
            Box::new(Mbox::open(layout.clone(), Fsync::Never, Locking::default()).expect("opens"))
                as Box<dyn Storage>
        });
    };
    check(&layout);
    layout.root = dir.path().join("other");
    layout.index = dsync_session::storage::layout::Index::At(dir.path().join("index"));
    layout.control = Some(dir.path().join("control"));
    layout.inbox = Some(dir.path().join("spool"));
    check(&layout);
    layout.root = dir.path().join("third");
    layout.dirname = Some("mail".into());
    check(&layout);
    for options in [
        ":LAYOUT=index",
        ":LAYOUT=index:CONTROL=%/control:INDEX=%/index:INDEXCACHE=%/cache:MAILBOXDIR=boxes:INBOX=%/spool",
    ] {
        let dir = tempfile::tempdir().expect("made");
        let mut account = Account::of("mbox", dir.path().join("mail"));
        account.options = options.replace('%', &dir.path().display().to_string());
        conformance::check_keeping(conformance::Keeps::TextAlone, &mut || account.open());
        assert_eq!(account.leftovers(), Vec::<std::path::PathBuf>::new(), "{options}");
    }
}
