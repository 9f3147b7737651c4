//! Accounts of mbox files: what the index alone knows stays, a dry run gives UIDs in memory alone, and odd files are read or refused in one
//! clear line.

use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dsync_model::{
    Flags, MailboxName, MessageChange, MessageGuid, ModSeq, NewMessage, Since, TreeChange, Uid, UidValidity,
};

use super::{Locking, Mbox};
use crate::index::{Index, Paths, Transaction};
use crate::layout::{Format, Layout};
use crate::{Body, Fsync, Goal, Mailbox, Result, Storage, disk};

/// An account with an INBOX.
struct Account {
    dir: tempfile::TempDir,
}

/// UID, flags, text.
type Seen = (u32, u8, String);

impl Account {
    fn new(inbox: impl AsRef<[u8]>) -> Account {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("mail")).unwrap();
        fs::write(dir.path().join("mail/inbox"), inbox).unwrap();
        Account { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("mail").join(name)
    }

    fn open(&self) -> Mbox {
        let layout = Layout::new(Format::Mbox, self.dir.path().join("mail"));
        let locking = Locking { wait: Some(Duration::ZERO), ..Locking::default() };
        Mbox::open(layout, Fsync::Never, locking).unwrap()
    }

    fn try_inbox(&self) -> Result<Box<dyn Mailbox>> {
        let mut storage = self.open();
        let (tree, problems) = storage.tree()?;
        if let Some(problem) = problems.into_iter().next() {
            return Err(problem.error);
        }
        storage.open(tree[&MailboxName::inbox()].mailbox.as_ref().unwrap().guid)
    }

    fn index(&self) -> Index {
        Index::open(Paths::mailbox(&self.path(".imap/INBOX"))).unwrap().unwrap()
    }

    fn look(&self) -> Vec<Seen> {
        look(&mut *self.try_inbox().unwrap())
    }
}

fn look(mailbox: &mut dyn Mailbox) -> Vec<Seen> {
    let list = mailbox.changes(Since::All).unwrap().list;
    let saves = list.into_iter().filter_map(|change| match change {
        MessageChange::Save { uid, flags, .. } => Some((uid, flags.current.system.bits())),
        _ => None,
    });
    let mut text = |uid| {
        let mut text = Vec::new();
        mailbox.body(uid, None).unwrap().unwrap().reader.read_to_end(&mut text).unwrap();
        String::from_utf8_lossy(&text).into_owned()
    };
    saves.map(|(uid, flags)| (uid.get(), flags, text(uid))).collect()
}

fn uid(n: u32) -> Uid {
    Uid::new(n).unwrap()
}

fn message(n: u32, header: &str) -> String {
    format!("From a@b  Mon Feb 05 10:00:00 2024\nSubject: {n}\n{header}\nText {n}.\n\n")
}

/// What came below UIDNEXT needs a new index.
#[test]
fn a_flag_that_is_in_the_index_alone_outlives_the_index() {
    let first = "X-IMAPbase: 77 0000000009\nX-UID: 2\nStatus: O\n";
    let account = Account::new(message(2, first) + &message(7, "X-UID: 7\nStatus: O\n"));
    drop(account.try_inbox().unwrap());
    let mut asked = Transaction::requests();
    asked.flags(&[(2, 2)], Flags::FLAGGED.bits(), 0);
    let mut lazy = Transaction::new();
    lazy.flags(&[(7, 7)], 0x80 | Flags::SEEN.bits(), 0);
    let mut index = account.index();
    let mut writer = index.lock(Duration::ZERO).unwrap();
    writer.append(asked, Fsync::Never).unwrap();
    writer.append(lazy, Fsync::Never).unwrap();
    drop(writer);
    let sequence = index.position().0;
    let flags = |seen: Vec<Seen>| seen.into_iter().map(|(uid, flags, _)| (uid, flags)).collect::<Vec<_>>();
    assert_eq!(flags(account.look()), [(2, 2), (7, 8)]);

    let mut mailbox = account.try_inbox().unwrap();
    let guid = MessageGuid::new("one").unwrap();
    let new = NewMessage {
        uid: uid(5),
        guid: guid.clone(),
        flags: Default::default(),
        modseq: ModSeq::NONE,
        received: None,
        saved: None,
        pop3_uidl: None,
        pop3_order: None,
        size: None,
    };
    let body = Body {
        guid,
        received: None,
        saved: None,
        pop3_uidl: None,
        pop3_order: None,
        size: None,
        path: None,
        map_uid: None,
        reader: Box::new(Cursor::new(b"Subject: 5\n\nText 5.\n")),
    };
    mailbox.save(new, body).unwrap();
    let goal =
        Goal { uid_next_min: Uid::MIN, modseq_min: ModSeq::NONE, uid_validity: None, unfinished: false };
    assert!(mailbox.commit(goal).unwrap().not_kept.is_empty());
    drop(mailbox);
    let index = account.index();
    assert!(index.position().0 > sequence, "a new index");
    assert!(!index.state().has_requests());
    assert_eq!(flags(account.look()), [(2, 2), (5, 0), (7, 8)]);
}

#[test]
fn a_dry_run_gives_the_same_uids_whenever_it_looks_and_writes_nothing() {
    let text = message(1, "") + &message(2, "");
    let account = Account::new(&text);
    fs::write(account.path("Work"), &text).unwrap();
    let pretend = disk::Pretend::begin();
    let mut storage = account.open();
    for _ in 0..3 {
        let (tree, problems) = storage.tree().unwrap();
        assert!(problems.is_empty(), "{problems:?}");
        for name in ["INBOX", "Work"] {
            let status = tree[&MailboxName::parse(name, '/').unwrap()].mailbox.clone().unwrap();
            assert_eq!((status.uid_next, status.messages), (uid(3), 2), "{name}");
            let mut mailbox = storage.open(status.guid).unwrap();
            assert_eq!(mailbox.status().unwrap(), status, "{name}");
            let seen = look(&mut *mailbox);
            assert_eq!(
                seen,
                [(1, 0, "Subject: 1\n\nText 1.\n".into()), (2, 0, "Subject: 2\n\nText 2.\n".into())]
            );
        }
    }
    // New mail gets the next UID.
    fs::write(account.path("Work"), text.clone() + &message(3, "")).unwrap();
    let (tree, _) = storage.tree().unwrap();
    let guid = tree[&MailboxName::parse("Work", '/').unwrap()].mailbox.as_ref().unwrap().guid;
    assert_eq!(look(&mut *storage.open(guid).unwrap()).len(), 3);
    drop((storage, pretend));
    disk::forget_pretended();
    assert_eq!(fs::read_to_string(account.path("inbox")).unwrap(), text);
    let names = fs::read_dir(account.path("")).unwrap().flatten().map(|entry| entry.file_name());
    let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["Work", "inbox"]);
}

#[test]
fn odd_files_are_read() {
    let from = "From a@b  Mon Feb 05 10:00:00 2024";
    let long = format!("Subject: {}\n", "x".repeat(3 << 20));
    let cases: [(&str, Vec<u8>, &[&str]); 6] = [
        ("empty", Vec::new(), &[]),
        ("no line end", format!("{from}\nSubject: 1\n\nText").into_bytes(), &["Subject: 1\n\nText"]),
        (
            "CR LF",
            format!("{from}\r\nSubject: 1\r\n\r\nText\r\n\r\n{from}\r\nSubject: 2\r\n\r\nText\r\n")
                .into_bytes(),
            &["Subject: 1\r\n\r\nText\r\n", "Subject: 2\r\n\r\nText"],
        ),
        ("NUL", format!("{from}\nSubject: \0\n\nT\0xt\n").into_bytes(), &["Subject: \0\n\nT\0xt"]),
        ("a line alone", format!("{from}\n").into_bytes(), &[""]),
        ("huge header", format!("{from}\n{long}\nText\n").into_bytes(), &[]),
    ];
    for (what, content, wanted) in cases {
        let account = Account::new(content);
        for look in ["first", "second"] {
            let seen: Vec<String> = account.look().into_iter().map(|(.., text)| text).collect();
            if what == "huge header" {
                assert!(seen.len() == 1 && seen[0].starts_with("Subject: xxx") && seen[0].len() > 3 << 20);
                continue;
            }
            // Whether the last line has an end, and which, is not what this is about.
            let plain = |text: &str| text.replace('\r', "").trim_end_matches('\n').to_owned();
            let wanted: Vec<String> = wanted.iter().map(|text| plain(text)).collect();
            let seen: Vec<String> = seen.iter().map(|text| plain(text)).collect();
            assert_eq!(seen, wanted, "{what}, {look} look");
        }
    }
}

#[test]
fn what_is_no_mbox_is_refused_in_one_line_and_stays_as_it_is() {
    for content in [
        "Subject: no From_ line\n\nText\n",
        "\nFrom a@b  Mon Feb 05 10:00:00 2024\n\n",
        "\0\0\0\0",
        "From a\n",
    ] {
        let account = Account::new(message(1, ""));
        fs::write(account.path("Work"), content).unwrap();
        let (tree, problems) = account.open().tree().unwrap();
        assert_eq!(tree.values().filter(|node| node.mailbox.is_some()).count(), 1, "{content:?}");
        let [problem] = &problems[..] else { panic!("{content:?}: {problems:?}") };
        let text = problem.error.to_string();
        assert!(text.contains("no mbox file") && text.contains("Work") && !text.contains('\n'), "{text}");
        assert_eq!((problem.mailbox.as_str(), problem.error.status()), ("Work", 65));
        assert_eq!(fs::read_to_string(account.path("Work")).unwrap(), content);
    }
    let account = Account::new("Subject: no From_ line\n");
    assert_eq!(account.try_inbox().err().unwrap().status(), 65);
}

#[test]
fn what_lies_where_a_mailbox_is_to_be_made_is_named() {
    type Lay = fn(&Path);
    let things: [(&str, Lay); 3] = [
        ("pipe", |path| nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap()),
        ("socket", |path| drop(std::os::unix::net::UnixListener::bind(path).unwrap())),
        ("directory with a mailbox", |path| {
            fs::create_dir(path).unwrap();
            fs::write(path.join("Child"), "").unwrap();
        }),
    ];
    for (what, lay) in things {
        let account = Account::new("");
        lay(&account.path("Work"));
        let mut storage = account.open();
        storage.tree().unwrap();
        let name = MailboxName::parse("Work", '/').unwrap();
        let create = TreeChange::Create {
            name,
            guid: dsync_model::MailboxGuid([7; 16]),
            uid_validity: UidValidity::new(77).unwrap(),
            uid_next: uid(1),
        };
        let error = storage.change_tree(&create).unwrap_err();
        let text = error.to_string();
        assert!(error.status() == 65 && text.contains("mail/Work: is no regular file"), "{what}: {text}");
        assert!(!account.path(".imap/Work").exists(), "{what}");
    }
    let account = Account::new("");
    fs::remove_file(account.path("inbox")).unwrap();
    nix::unistd::mkfifo(&account.path("inbox"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let error = account.try_inbox().err().unwrap();
    assert!(error.status() == 65 && error.to_string().contains("is no regular file"), "{error}");
}

#[test]
fn a_directory_that_holds_no_mailbox_becomes_one() {
    let account = Account::new("");
    let mut storage = account.open();
    let guid = dsync_model::MailboxGuid([7; 16]);
    let [first, second] = ["First", "Second"].map(|name| {
        fs::create_dir_all(account.path(name).join(".imap")).unwrap();
        MailboxName::parse(name, '/').unwrap()
    });
    let (tree, _) = storage.tree().unwrap();
    assert!(tree[&first].mailbox.is_none() && tree[&second].mailbox.is_none());
    let create = TreeChange::Create {
        name: first.clone(),
        guid,
        uid_validity: UidValidity::new(77).unwrap(),
        uid_next: uid(1),
    };
    let rename = TreeChange::Rename { guid, from: first, to: second.clone() };
    for change in [create, rename] {
        assert!(storage.change_tree(&change).unwrap());
    }
    assert_eq!(account.open().tree().unwrap().0[&second].mailbox.as_ref().unwrap().guid, guid);
}

#[test]
fn the_holder_of_a_lock_file_is_named_with_pid_and_host() {
    let account = Account::new(message(1, ""));
    let host = nix::unistd::gethostname().unwrap().into_string().unwrap();
    fs::write(account.path("inbox.lock"), format!("1:{host}")).unwrap();
    let error = account.try_inbox().err().unwrap();
    let text = error.to_string();
    assert!(error.status() == 75 && text.contains("pid 1") && text.contains(&host), "{text}");
    fs::remove_file(account.path("inbox.lock")).unwrap();
    assert_eq!(account.look().len(), 1);
}

#[test]
fn an_inbox_in_a_spool_that_all_may_write_to_is_its_users_alone() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let spool = dir.path().join("spool");
    fs::create_dir(&spool).unwrap();
    fs::set_permissions(&spool, fs::Permissions::from_mode(0o1777)).unwrap();
    let text = format!("mbox:{}:INBOX={}", dir.path().join("mail").display(), spool.join("alice").display());
    let mut storage = crate::Location::parse(&text, None).unwrap().open(Fsync::Never).unwrap();
    storage.tree().unwrap();
    assert_eq!(fs::metadata(spool.join("alice")).unwrap().permissions().mode() & 0o607, 0o600);
}
