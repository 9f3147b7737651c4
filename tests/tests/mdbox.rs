//! mdbox: Dovecot's accounts are read, ours are read by Dovecot, and no crash loses or doubles a message.

#[path = "mdbox/copies.rs"]
mod copies;
#[path = "mdbox/crashes.rs"]
mod crashes;
#[path = "mdbox/rebuilding.rs"]
mod rebuilding;

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use dsync_model::{
    FlagSet, Flags, Keyword, MailboxGuid, MailboxName, MessageAction, MessageChange, MessageGuid, ModSeq,
    NewMessage, Since, Timestamp, TreeChange, Uid, UidValidity,
};
use dsync_storage::dbox::{Mdbox, Rotation};
use dsync_storage::layout::{Format, Kind, Layout};
use dsync_storage::{Committed, Fsync, Goal, Mailbox, Purged, Storage};
use dsync_tests::dovecot::{Dovecot, installed};
use dsync_tests::formats::{Fixture, compare, touched};

fn open(fixture: &Fixture, change: impl Fn(&mut Layout)) -> Box<dyn Storage> {
    let mut layout = Layout::new(Format::Mdbox, fixture.home().join("mdbox"));
    change(&mut layout);
    let attachments = Some(fixture.home().join("att"));
    Box::new(Mdbox::open(layout, Fsync::Never, attachments).expect("opens"))
}

fn is_note(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(".dsync-"))
}

/// Opens the account twice: reading leaves no trace, and the second look is like the first.
fn check(name: &str, change: impl Fn(&Fixture, &mut Layout)) {
    let _alone = alone();
    let fixture = Fixture::unpack(name);
    let before = fixture.files();
    for look in ["first", "second"] {
        let mut storage = open(&fixture, |layout| change(&fixture, layout));
        let differences = compare(&mut *storage, &fixture.expected);
        assert!(differences.is_empty(), "{name}, {look} look:\n{}", differences.join("\n"));
    }
    let touched = touched(&before, &fixture.files());
    let touched: Vec<_> = touched.into_iter().filter(|path| !is_note(path)).collect();
    assert!(touched.is_empty(), "{name}: reading changed {touched:?}");
}

#[test]
fn accounts_of_dovecot_are_read_as_dovecot_reads_them() {
    check("mdbox", |_, _| {});
    check("mdbox-att", |fixture, layout| layout.alt = Some(fixture.home().join("alt")));
    check("mdbox-layoutindex", |_, layout| layout.kind = Kind::Index);
}

fn uid(n: u32) -> Uid {
    Uid::new(n).expect("not 0")
}

fn name(text: &str) -> MailboxName {
    MailboxName::parse(text, '/').expect("valid")
}

fn flags(system: Flags, keywords: &[&str]) -> FlagSet {
    FlagSet { system, keywords: keywords.iter().map(|k| Keyword::new(k).expect("valid")).collect() }
}

/// A new account, where Dovecot can reach it.
struct Account {
    dir: tempfile::TempDir,
    rotate_bytes: u64,
    rotate_secs: u64,
    _alone: MutexGuard<'static, ()>,
}

/// One test at a time: a process that another one starts has our locks for an instant, and what is locked is passed over.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

const BOX: MailboxGuid = MailboxGuid([0xb0; 16]);

impl Account {
    fn new() -> Account {
        let alone = alone();
        let dir = tempfile::tempdir().expect("made");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).expect("set");
        Account { dir, rotate_bytes: 20_000, rotate_secs: 0, _alone: alone }
    }

    fn root(&self) -> std::path::PathBuf {
        self.dir.path().join("home/mdbox")
    }

    fn rotation(&self) -> Rotation {
        Rotation { bytes: self.rotate_bytes, secs: self.rotate_secs }
    }

    fn location(&self) -> String {
        format!("mdbox:{}", self.root().display())
    }

    fn open(&self) -> Mdbox {
        let layout = Layout::new(Format::Mdbox, self.root());
        let mut storage =
            Mdbox::open_rotating(layout, Fsync::Optimized, None, self.rotation()).expect("opens");
        let (_, problems) = storage.tree().expect("lists");
        assert!(problems.is_empty(), "{problems:?}");
        storage
    }

    fn make(&self, text: &str, guid: MailboxGuid) {
        let uid_validity = UidValidity::new(77).expect("not 0");
        let create = TreeChange::Create { name: name(text), guid, uid_validity, uid_next: Uid::MIN };
        assert!(self.open().change_tree(&create).expect("creates"));
    }

    fn mailbox(&self, guid: MailboxGuid) -> Box<dyn Mailbox> {
        let mut mailbox = self.open().open(guid).expect("opens");
        mailbox.changes(Since::All).expect("lists");
        mailbox
    }

    fn inbox(&self) -> MailboxGuid {
        let (tree, _) = self.open().tree().expect("lists");
        tree[&MailboxName::inbox()].mailbox.as_ref().expect("always there").guid
    }

    /// All that we report of every message, one line each.
    fn view(&self) -> BTreeSet<String> {
        let mut view = BTreeSet::new();
        let (tree, _) = self.open().tree().expect("lists");
        for (name, node) in tree {
            let Some(status) = node.mailbox else { continue };
            let mut mailbox = self.mailbox(status.guid);
            view.insert(format!("{} {} {}", name.join('/'), status.messages, status.uid_next));
            for change in mailbox.changes(Since::All).expect("lists").list {
                let MessageChange::Save { uid, guid, flags, modseq, .. } = change else { continue };
                let mut body = mailbox.body(uid, Some(&guid)).expect("opens").expect("is there");
                let mut text = Vec::new();
                body.reader.read_to_end(&mut text).expect("reads");
                assert_eq!(body.guid, guid);
                let system = Flags::NAMES.iter().filter(|(flag, _)| flags.current.system.contains(*flag));
                let mut shown: Vec<&str> = system.map(|(_, name)| *name).collect();
                shown.extend(flags.current.keywords.iter().map(Keyword::as_str));
                shown.sort_unstable();
                let received = body.received.expect("has a date").0;
                let (shown, size) = (shown.join(" "), text.len());
                let first = String::from_utf8_lossy(&text).lines().next().unwrap_or_default().to_owned();
                view.insert(format!(
                    "{} {uid} {guid} {shown} {modseq} {received} {size} {first}",
                    name.join('/')
                ));
            }
        }
        view
    }

    /// The same as Dovecot reports it.
    fn view_of(&self, dovecot: &Dovecot) -> BTreeSet<String> {
        dovecot.own(&self.dir.path().join("home"));
        let location = self.location();
        let status = dovecot.doveadm(&location, &["-f", "tab", "mailbox", "status", "messages uidnext", "*"]);
        let mut view = BTreeSet::new();
        for line in status.lines().skip(1) {
            let fields: Vec<&str> = line.split('\t').collect();
            view.insert(fields.join(" "));
            let what = "uid guid flags modseq date.received.unixtime size.physical hdr.subject";
            let mails =
                dovecot.doveadm(&location, &["-f", "tab", "fetch", what, "mailbox", fields[0], "all"]);
            for mail in mails.lines().skip(1) {
                let mail: Vec<&str> = mail.split('\t').collect();
                let mut shown: Vec<&str> = mail[2].split(' ').filter(|flag| *flag != "\\Recent").collect();
                shown.sort_unstable();
                view.insert(format!(
                    "{} {} {} {} {} {} {} Subject: {}",
                    fields[0],
                    mail[0],
                    mail[1],
                    shown.join(" ").trim(),
                    mail[3],
                    mail[4],
                    mail[5],
                    mail[6]
                ));
            }
        }
        view
    }

    fn files(&self) -> BTreeSet<String> {
        let names = fs::read_dir(self.root().join("storage")).expect("is there").flatten();
        names.map(|entry| entry.file_name().into_string().expect("a name")).collect()
    }
}

fn save(mailbox: &mut dyn Mailbox, n: u32, guid: &str, flags: FlagSet, bytes: usize) {
    let message = NewMessage {
        uid: uid(n),
        guid: MessageGuid::new(guid).expect("valid"),
        flags,
        modseq: ModSeq::new(10 + u64::from(n)).expect("valid"),
        received: Some(Timestamp(1_700_000_000 + i64::from(n))),
        saved: Some(Timestamp(1_700_001_000)),
        pop3_uidl: None,
        pop3_order: None,
        size: None,
    };
    mailbox.begin_save(message).expect("begins");
    mailbox.write(format!("Subject: {guid}\n\n").as_bytes()).expect("takes a piece");
    mailbox.write(&vec![b'x'; bytes]).expect("takes a piece");
    mailbox.end_save().expect("ends");
}

fn goal() -> Goal {
    Goal { uid_next_min: Uid::MIN, modseq_min: ModSeq::NONE, uid_validity: None, unfinished: false }
}

fn commit(mailbox: &mut dyn Mailbox) -> Committed {
    mailbox.commit(goal()).expect("commits")
}

fn expunge(n: u32) -> MessageAction {
    MessageAction::Expunge { uid: uid(n), guid: None }
}

fn same(ours: &BTreeSet<String>, theirs: &BTreeSet<String>) {
    let only =
        |a: &BTreeSet<String>, b: &BTreeSet<String>| a.difference(b).cloned().collect::<Vec<_>>().join("\n");
    assert!(
        ours == theirs,
        "only with us:\n{}\nonly with Dovecot:\n{}",
        only(ours, theirs),
        only(theirs, ours)
    );
}

#[test]
fn dovecot_and_we_take_turns() {
    if !installed() {
        return;
    }
    let account = Account::new();
    let dovecot = Dovecot::new(account.dir.path());
    let inbox = account.inbox();
    account.make("Box/Ünder", BOX);
    let mut mailbox = account.mailbox(BOX);
    for n in 1..=12 {
        let keywords: &[&str] = if n % 3 == 0 { &["$Label1", "Work"] } else { &[] };
        let guid = if n % 2 == 0 { format!("17000.M{n}P1.host") } else { format!("{n:032x}") };
        save(&mut *mailbox, n * 2, &guid, flags(Flags::SEEN, keywords), 3000);
    }
    assert!(commit(&mut *mailbox).not_kept.is_empty());
    save(&mut *account.mailbox(inbox), 1, "never-committed", FlagSet::default(), 10);
    assert_eq!(account.files().iter().filter(|name| name.starts_with("m.")).count(), 2, "20,000 bytes each");
    same(&account.view(), &account.view_of(&dovecot));
    let actions = [
        expunge(2),
        expunge(24),
        MessageAction::Renumber { from: uid(4), to: uid(30) },
        MessageAction::Flags {
            uid: uid(6),
            add: flags(Flags::FLAGGED, &["New"]),
            remove: flags(Flags::SEEN, &["Work"]),
            modseq_min: ModSeq::NONE,
        },
    ];
    mailbox.apply(&actions).expect("takes note");
    save(&mut *mailbox, 31, "beside", FlagSet::default(), 100);
    assert!(commit(&mut *mailbox).not_kept.is_empty());
    same(&account.view(), &account.view_of(&dovecot));
    let location = account.location();
    dovecot.save(&location, "Box/Ünder", "Subject: theirs\n\nText.\n");
    dovecot.doveadm(&location, &["copy", "INBOX", "mailbox", "Box/Ünder", "uid", "6,8"]);
    dovecot.doveadm(&location, &["purge"]);
    same(&account.view(), &account.view_of(&dovecot));
    // Below UIDNEXT: no log can tell that, and the index is built anew.
    let mut mailbox = account.mailbox(BOX);
    save(&mut *mailbox, 5, "below", FlagSet::default(), 100);
    mailbox.apply(&[expunge(8)]).expect("takes note");
    assert!(commit(&mut *mailbox).not_kept.is_empty());
    same(&account.view(), &account.view_of(&dovecot));
    dovecot.save(&location, "INBOX", "Subject: theirs again\n\nText.\n");
    dovecot.doveadm(&location, &["expunge", "mailbox", "Box/Ünder", "uid", "6"]);
    dovecot.doveadm(&location, &["purge"]);
    let view = account.view();
    same(&view, &account.view_of(&dovecot));
    assert_eq!(view.iter().filter(|line| line.contains("Subject:")).count(), 14, "{view:#?}");
    let (tree, _) = account.open().tree().expect("lists");
    let uid_next = tree[&name("Box/Ünder")].mailbox.as_ref().expect("a mailbox").uid_next;
    let delete = TreeChange::Delete { name: name("Box/Ünder"), guid: BOX, uid_next };
    assert!(account.open().change_tree(&delete).expect("deletes"));
    dovecot.doveadm(&location, &["purge"]);
    let view = account.view();
    same(&view, &account.view_of(&dovecot));
    assert_eq!(view.iter().filter(|line| line.starts_with("INBOX")).count(), 4, "{view:#?}");
}

/// Subjects of all messages, INBOX left out: each must be there so many times.
fn subjects(view: &BTreeSet<String>) -> Vec<String> {
    let subject = |line: &String| Some(line.split_once("Subject: ")?.1.to_owned());
    let mut subjects: Vec<String> = view.iter().filter_map(subject).collect();
    subjects.sort();
    subjects
}

fn purge(account: &Account) -> Purged {
    account.open().purge(0).expect("purges").expect("is mdbox")
}

/// A file that was begun before the day that mdbox_rotate_interval names takes no further message.
#[test]
fn old_files_take_no_further_message() {
    let mut account = Account::new();
    account.rotate_bytes = 1 << 20;
    account.make("Box", BOX);
    let put = |account: &Account, uid: u32| {
        let mut mailbox = account.mailbox(BOX);
        save(&mut *mailbox, uid, &format!("n-{uid}"), FlagSet::default(), 100);
        commit(&mut *mailbox);
        account.files().iter().filter(|name| name.starts_with("m.")).count()
    };
    assert_eq!((put(&account, 1), put(&account, 2)), (1, 1));
    let path = account.root().join("storage/m.1");
    let mut bytes = fs::read(&path).expect("read");
    let at = bytes.windows(2).position(|two| two == b" C").expect("the time of creation") + 2;
    bytes[at..at + 8].copy_from_slice(b"00000001");
    fs::write(&path, bytes).expect("written");
    assert_eq!(put(&account, 3), 1, "of any age without an interval");
    account.rotate_secs = 86_400;
    assert_eq!((put(&account, 4), put(&account, 5)), (2, 2));
    assert_eq!(account.view().iter().filter(|line| line.contains("Subject: n-")).count(), 5);
}

#[test]
fn purging_frees_what_nobody_refers_to() {
    let account = Account::new();
    account.make("Box", BOX);
    let mut mailbox = account.mailbox(BOX);
    for n in 1..=12 {
        save(&mut *mailbox, n, &format!("old-{n}"), FlagSet::default(), 3000);
    }
    commit(&mut *mailbox);
    assert_eq!(purge(&account), Purged::default());
    mailbox.apply(&[expunge(2), expunge(3)]).expect("takes note");
    commit(&mut *mailbox);
    let before = account.view();
    let purged = purge(&account);
    assert_eq!((purged.files, purged.messages, purged.left), (1, 2, 0));
    assert!(purged.bytes > 6000, "{purged:?}");
    assert_eq!(account.view(), before);
    assert!(!account.files().contains("m.1"), "{:?}", account.files());
    // The mailbox that was open all the time finds its messages where they are now.
    let mut text = Vec::new();
    let body = mailbox.body(uid(4), None).expect("opens").expect("is there");
    { body }.reader.read_to_end(&mut text).expect("reads");
    assert!(text.starts_with(b"Subject: old-4"));
    mailbox.apply(&(1..=12).map(expunge).collect::<Vec<_>>()).expect("takes note");
    commit(&mut *mailbox);
    assert_eq!(purge(&account).messages, 10);
    assert_eq!(account.files().iter().filter(|name| name.starts_with("m.")).count(), 0);
    if installed() {
        let dovecot = Dovecot::new(account.dir.path());
        save(&mut *mailbox, 13, "last", FlagSet::default(), 100);
        commit(&mut *mailbox);
        same(&account.view(), &account.view_of(&dovecot));
    }
}
