//! What IMAP sessions asked for in an mbox and no program has carried out yet: ours leaves it to Dovecot. And what Dovecot loses of it
//! without any help.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use dsync_storage::Fsync;
use dsync_storage::index::{Index, Paths, Transaction};
use dsync_storage::mbox::{Access, Locking, MboxLock};
use dsync_tests::dovecot::{Dovecot, installed};
use dsync_tests::imap::Imap;
use dsync_tests::programs::programs;

use crate::sync;

/// A record of the log is there within this time.
const WRITTEN_MAX: Duration = Duration::from_secs(20);

/// An account with five messages in its INBOX.
struct Place {
    dir: tempfile::TempDir,
    dovecot: Dovecot,
    location: String,
    inbox: PathBuf,
    log: PathBuf,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().expect("made");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).expect("set");
        let dovecot = Dovecot::new(dir.path());
        let mail = dir.path().join("mail");
        fs::create_dir(&mail).expect("made");
        let inbox = mail.join("inbox");
        let message = |n| format!("From a@b  Mon Feb 05 10:00:0{n} 2024\nSubject: {n}\n\nText {n}.\n\n");
        fs::write(&inbox, (1..=5).map(message).collect::<String>()).expect("written");
        dovecot.own(&mail);
        dovecot.own(&dir.path().join("home"));
        let location = format!("mbox:{}:INBOX={}", mail.display(), inbox.display());
        let log = mail.join(".imap/INBOX/dovecot.index.log");
        Place { dir, dovecot, location, inbox, log }
    }

    fn session(&self) -> Imap {
        let mut session = Imap::start(self.dovecot.imap(&self.location));
        session.select("INBOX");
        session
    }

    /// Runs a command, and comes back when it has asked for something in the log: it cannot go on, as the mbox is locked.
    fn ask<'scope, 'env>(
        &'env self,
        scope: &'scope thread::Scope<'scope, 'env>,
        session: &'env mut Imap,
        command: &'env str,
    ) {
        let size = || fs::metadata(&self.log).expect("a log").len();
        let (before, begun) = (size(), Instant::now());
        scope.spawn(move || session.command(command));
        while size() == before {
            assert!(begun.elapsed() < WRITTEN_MAX, "{command}: nothing was asked for");
            thread::sleep(Duration::from_millis(2));
        }
    }

    fn flags(&self) -> String {
        self.dovecot.doveadm(&self.location, &["-f", "flow", "fetch", "uid flags", "mailbox", "INBOX", "all"])
    }
}

/// If Dovecot reads messages again, here behind one that it expunges, while a flag of one of them is asked for, that flag is gone. It is Dovecot's own doing:
/// whoever finds a flag undone in an mbox has to look there first. (`index_sync_changes_read` reads one request ahead, marks its message as dirty and
/// forgets the request; then the flags of the message are taken from the file.)
#[test]
fn dovecot_alone_undoes_a_flag_that_comes_while_it_expunges() {
    if !installed() {
        return;
    }
    let place = Place::new();
    let [mut one, mut two] = [place.session(), place.session()];
    one.command("UID STORE 3 +FLAGS.SILENT (\\Deleted)");
    one.command("NOOP");
    two.command("NOOP");
    let locked = MboxLock::take(&place.inbox, &Locking::default(), Access::Write).expect("locked");
    thread::scope(|scope| {
        place.ask(scope, &mut one, "UID EXPUNGE 3");
        place.ask(scope, &mut two, "UID STORE 4 +FLAGS.SILENT (\\Flagged)");
        drop(locked);
    });
    drop((one, two));
    let flags = place.flags();
    assert_eq!(flags.lines().count(), 4, "{flags}");
    assert!(!flags.contains("\\Flagged"), "Dovecot has learnt to keep it: {flags}");
}

/// A session that was killed had asked for a flag and an expunge, and then ours wrote a snapshot of the index.
#[test]
fn dovecot_carries_out_what_was_asked_for_before_our_snapshot() {
    if !installed() {
        return;
    }
    let place = Place::new();
    assert_eq!(place.flags().lines().count(), 5);
    let mut index = Index::open(Paths::mailbox(place.log.parent().expect("a directory")))
        .expect("read")
        .expect("an index");
    let mut asked = Transaction::requests();
    asked.flags(&[(2, 2)], 2, 0);
    asked.expunge(&[(4, [0; 16])]);
    let mut writer = index.lock(WRITTEN_MAX).expect("locked");
    writer.append(asked, Fsync::Never).expect("written");
    writer.snapshot(Fsync::Never).expect("written");
    drop(writer);
    place.dovecot.own(place.log.parent().expect("a directory"));
    let flags = place.flags();
    let lines: Vec<&str> = flags.lines().collect();
    let uids: Vec<&str> = lines.iter().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(uids, ["uid=1", "uid=2", "uid=3", "uid=5"], "{flags}");
    assert!(lines[1].contains("\\Flagged") && flags.matches("\\Flagged").count() == 1, "{flags}");
    let text = fs::read_to_string(&place.inbox).expect("read");
    assert!(!text.contains("Text 4."), "{text}");
}

/// Dovecot numbers messages in the index alone where it may not write the file.
#[test]
fn uids_that_only_dovecots_index_knows_stay() {
    if !installed() {
        return;
    }
    let place = Place::new();
    fs::set_permissions(&place.inbox, fs::Permissions::from_mode(0o444)).expect("set");
    let mut session = place.session();
    session.command("UID FETCH 1:* (UID)");
    drop(session);
    assert!(!fs::read_to_string(&place.inbox).expect("read").contains("X-UID"));
    // Dovecot would do it itself now, and keep them.
    fs::set_permissions(&place.inbox, fs::Permissions::from_mode(0o600)).expect("set");
    let copy = format!("maildir:{}/copy", place.dir.path().display());
    let dsync = place.dir.path().join("dsync");
    fs::copy(programs().join("dsync"), &dsync).expect("copied");
    assert_eq!(sync(&place.dovecot, &dsync, &place.location, &copy), 0);
    let uids = |text: &str| -> Vec<String> {
        text.lines()
            .filter_map(|line| line.split(' ').find(|word| word.starts_with("uid=")))
            .map(str::to_owned)
            .collect()
    };
    let wanted = [1, 2, 3, 4, 5].map(|n| format!("uid={n}"));
    assert_eq!(uids(&place.flags()), wanted);
    let there =
        place.dovecot.doveadm(&copy, &["-f", "flow", "fetch", "uid flags", "mailbox", "INBOX", "all"]);
    assert_eq!(uids(&there), wanted);
    let text = fs::read_to_string(&place.inbox).expect("read");
    assert!(text.contains("X-UID: 5"), "{text}");
}
