//! What another program has done half when we come by.
//!
//! Dovecot makes and renames first what holds the mail of a mailbox, then the directories beside it, of its uidlist and its index. For an
//! instant these look as if they were lost, with all that only they know.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How long another program may take to make the other half. Of what is made just now little is lost.
pub const MAKING: Duration = Duration::from_millis(200);
/// How long it may take to rename the other half; it is waited for no longer than it takes.
pub const RENAMING: Duration = Duration::from_millis(500);
const POLL: Duration = Duration::from_millis(10);
/// For how long something counts as made or renamed just now, in seconds.
const YOUNG_SECS: i64 = 2;

/// Waits at most so long until it `is_there`, while it `is_likely` that somebody is at it.
pub fn wait(at_most: Duration, is_there: impl Fn() -> bool, is_likely: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_there() && begun.elapsed() < at_most && is_likely() {
        #[cfg(test)]
        tests::others_go_on();
        thread::sleep(POLL);
    }
}

/// Says whether a file or directory was made, changed or renamed within the last seconds.
fn is_young(path: &Path) -> bool {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs() as i64);
    fs::metadata(path).is_ok_and(|meta| (0..=YOUNG_SECS).contains(&(now - meta.ctime())))
}

/// Says so of what holds the mail of a mailbox, or of the directory around it, which may have been renamed with it.
pub fn is_young_with(mail: &Path, around: Option<&Path>) -> bool {
    is_young(mail) || around.is_some_and(is_young)
}

/// Says whether a file was renamed within the last seconds, and not written since.
pub fn is_renamed(file: &Path) -> bool {
    let changed_last =
        |meta: fs::Metadata| (meta.ctime(), meta.ctime_nsec()) > (meta.mtime(), meta.mtime_nsec());
    is_young(file) && fs::metadata(file).is_ok_and(changed_last)
}

#[cfg(test)]
pub mod tests {
    use std::cell::RefCell;
    use std::path::PathBuf;

    use dsync_model::{MailboxGuid, MailboxName, TreeChange, Uid, UidValidity};

    use super::*;
    use crate::dbox::Dbox;
    use crate::index::{Index, Paths};
    use crate::layout::{Format, Index as IndexPlace, Layout};
    use crate::maildir::Maildir;
    use crate::mbox::{Locking, Mbox};
    use crate::{Fsync, Storage, StorageError};

    type Work = Box<dyn FnOnce()>;

    thread_local! {
        static OTHERS: RefCell<Option<Work>> = const { RefCell::new(None) };
    }

    /// What another program does as soon as this thread waits for it.
    pub fn meanwhile(others: impl FnOnce() + 'static) {
        OTHERS.set(Some(Box::new(others)));
    }

    /// Says whether nobody waited.
    pub fn nobody_waited() -> bool {
        OTHERS.take().is_some()
    }

    pub fn others_go_on() {
        if let Some(others) = OTHERS.take() {
            others();
        }
    }

    /// An account with a mailbox, whose index lies apart from the mail, and with `control` its uidlist, too.
    struct Account {
        _dir: tempfile::TempDir,
        layout: Layout,
    }

    const GUID: MailboxGuid = MailboxGuid([7; 16]);

    fn name(text: &str) -> MailboxName {
        MailboxName::parse(text, '/').unwrap()
    }

    impl Account {
        fn new(format: Format, control: bool) -> Account {
            let dir = tempfile::tempdir().unwrap();
            let mut layout = Layout::new(format, dir.path().join("mail"));
            layout.index = IndexPlace::At(dir.path().join("index"));
            layout.control = control.then(|| dir.path().join("control"));
            let account = Account { _dir: dir, layout };
            let mut storage = account.open();
            storage.tree().unwrap();
            let (name, uid_validity) = (name("Old"), UidValidity::new(77).unwrap());
            let create = TreeChange::Create { name, guid: GUID, uid_validity, uid_next: Uid::MIN };
            assert!(storage.change_tree(&create).unwrap());
            account
        }

        fn open(&self) -> Box<dyn Storage> {
            let layout = self.layout.clone();
            match layout.format {
                Format::Maildir => Box::new(Maildir::open(layout, Fsync::Never).unwrap()),
                Format::Mbox => Box::new(Mbox::open(layout, Fsync::Never, Locking::default()).unwrap()),
                Format::Sdbox | Format::Mdbox => Box::new(Dbox::open(layout, Fsync::Never, None).unwrap()),
            }
        }

        fn index(&self, name: &MailboxName) -> Paths {
            Paths::mailbox(&self.layout.places(name).unwrap().index.unwrap())
        }

        /// What Dovecot renames first.
        fn rename_mail(&self) {
            let [old, new] = ["Old", "New"].map(|text| self.layout.directory(&name(text)).unwrap());
            // Nothing was written for a while.
            let before = SystemTime::now() - Duration::from_secs(10);
            let mail = self.layout.places(&name("Old")).unwrap().mail;
            fs::File::open(mail).unwrap().set_modified(before).unwrap();
            fs::rename(old, new).unwrap();
        }

        /// What it renames then.
        fn beside(&self) -> Vec<(PathBuf, PathBuf)> {
            let [old, new] = ["Old", "New"].map(|text| self.layout.places(&name(text)).unwrap());
            let all = [(old.control, new.control), (old.index.unwrap(), new.index.unwrap())];
            all.into_iter().filter(|(old, _)| old.exists()).collect()
        }
    }

    #[test]
    fn a_mailbox_that_dovecot_is_renaming_stays_what_it_is() {
        let cases = [
            (Format::Sdbox, false),
            (Format::Mdbox, false),
            (Format::Mbox, false),
            (Format::Maildir, false),
            (Format::Maildir, true),
        ];
        for (format, control) in cases {
            let account = Account::new(format, control);
            if format == Format::Maildir {
                fs::write(account.layout.root.join(".Old/cur/1.2.3:2,S"), "A: b\n\nc\n").unwrap();
                account.open().tree().unwrap();
            }
            let stamp = Index::stamp(&account.index(&name("Old"))).unwrap();
            account.rename_mail();
            let beside = account.beside();
            assert_eq!(beside.len(), 1 + usize::from(control), "{format}");
            let rename = move || beside.iter().for_each(|(old, new)| fs::rename(old, new).unwrap());
            meanwhile(rename);
            let (tree, problems) = account.open().tree().unwrap();
            assert!(!nobody_waited() && problems.is_empty(), "{format}: {problems:?}");
            assert_eq!(tree[&name("New")].mailbox.as_ref().unwrap().guid, GUID, "{format}");
            assert!(Index::stamp(&account.index(&name("New"))).unwrap().inode == stamp.inode, "{format}");
        }
    }

    /// While its uidlist is still there.
    #[test]
    fn a_maildir_that_dovecot_is_renaming_has_lost_no_message() {
        let account = Account::new(Format::Maildir, true);
        fs::write(account.layout.root.join(".Old/cur/1.2.3:2,S"), "A: b\n\nc\n").unwrap();
        let mut storage = account.open();
        storage.tree().unwrap();
        account.rename_mail();
        assert!(matches!(storage.open(GUID), Err(StorageError::NoMailbox(_))));
        let index = Index::open(account.index(&name("Old"))).unwrap().unwrap();
        assert_eq!(index.state().uids, [1]);
    }

    /// As after `CONTROL=` was set, or with a mailbox that nobody has opened yet.
    #[test]
    fn a_directory_of_uidlists_that_is_missing_is_made() {
        let account = Account::new(Format::Maildir, true);
        fs::remove_dir_all(account.layout.control.as_ref().unwrap().join(".Old")).unwrap();
        let (tree, problems) = account.open().tree().unwrap();
        assert!(problems.is_empty(), "{problems:?}");
        assert!(tree[&name("Old")].mailbox.is_some());
    }

    #[test]
    fn a_file_that_was_renamed_is_told_from_one_that_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let [old, new] = ["old", "new"].map(|name| dir.path().join(name));
        fs::write(&old, "mail").unwrap();
        assert!(is_young(&old) && !is_renamed(&old));
        // The clock of files may stand still for some milliseconds.
        let before = SystemTime::now() - Duration::from_secs(1);
        fs::File::options().write(true).open(&old).unwrap().set_modified(before).unwrap();
        fs::rename(&old, &new).unwrap();
        assert!(is_young(&new) && is_renamed(&new));
        assert!(!is_young(&old) && !is_renamed(&old));
    }
}
