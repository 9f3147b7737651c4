//! Killed after each change to a file, the next run finishes the job: nothing lost, nothing twice.

#[path = "crash/making.rs"]
mod making;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use dsync_model::{FlagSet, Flags};
use dsync_session::proto::Direction;
use dsync_session::storage::disk;
use dsync_tests::dovecot::{Dovecot, installed};
use dsync_tests::maildirs::{Account, BACKUP, sync};
use dsync_tests::users::{User, flags};

/// What a client sees of an account, by mailbox.
type View = BTreeMap<String, Vec<String>>;

/// Steps of a scenario after which a real Dovecot looks; all where `DSYNC_LONG` is set.
const LOOKS: u64 = 8;

/// When a real Dovecot has nothing to complain of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    Always,
    /// The same, at every step, but that an mbox may be marked as half written: Dovecot does not touch it then.
    Marked,
    /// Once the next run has finished.
    Finished,
    Never,
}

/// A sync to be killed: what users did before it, and which way it goes.
struct Scenario {
    formats: [&'static str; 2],
    users: fn(&Account, &Account),
    direction: Direction,
    /// Changes to files that it makes at least: less is not the scenario meant.
    steps_min: u64,
}

/// Where accounts are made: in memory, as nothing here is about the disk itself.
fn place() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let dir = tempfile::tempdir_in(if memory.is_dir() { memory } else { Path::new("/tmp") }).expect("made");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).expect("set");
    dir
}

impl Scenario {
    fn pair(&self) -> (tempfile::TempDir, Account, Account) {
        let dir = place();
        let [one, two] = self.formats;
        let (a, b) = (Account::of(one, dir.path().join("a")), Account::of(two, dir.path().join("b")));
        (self.users)(&a, &b);
        (dir, a, b)
    }

    /// Kills the sync after each of its steps.
    fn run(&self, look: Look) {
        let befores = {
            let (_dir, a, b) = self.pair();
            [subjects(&a.view()), subjects(&b.view())]
        };
        let (steps, wanted) = {
            let (_dir, a, b) = self.pair();
            let before = disk::crash_after(None);
            sync(&a, &b, self.direction).expect("syncs");
            let steps = disk::crash_after(None) - before;
            assert_eq!(same(a.view(), self.formats), same(b.view(), self.formats));
            (steps, b.view())
        };
        assert!(steps >= self.steps_min, "{steps}");
        let long = std::env::var_os("DSYNC_LONG").is_some();
        let every = if long { 1 } else { (steps / LOOKS).max(1) };
        let look = if installed() { look } else { Look::Never };
        for step in 0..steps {
            let (dir, a, b) = self.pair();
            disk::crash_after(Some(step));
            let crashed = sync(&a, &b, self.direction);
            disk::crash_after(None);
            // Nobody hears of a crash that costs only what is known of the mailboxes for the next run.
            let noticed = crashed.is_err() || crashed.is_ok_and(|(report, _)| report.status() != 0);
            let is_done = || same(a.view(), self.formats) == same(b.view(), self.formats);
            assert!(noticed || is_done(), "step {step} of {steps}");
            if look == Look::Marked || (look == Look::Always && step % every == every - 1) {
                dovecot_looks(dir.path(), [&a, &b], step, look == Look::Marked);
            }
            // A dead process leaves its locks; the next one sees that the pid is gone. Ours lives.
            let left = a.leftovers().into_iter().chain(b.leftovers());
            left.filter(|path| is_lock(path)).for_each(|lock| fs::remove_file(lock).expect("removed"));
            for (account, before) in [&a, &b].into_iter().zip(&befores) {
                let now = subjects(&account.view());
                let twice = now.iter().find(|(_, all)| all.len() > 1);
                assert_eq!(twice, None, "step {step} of {steps}: {}", account.root.display());
                let lost = before.keys().filter(|subject| subjects(&wanted).contains_key(*subject));
                let lost = lost.into_iter().find(|subject| !now.contains_key(*subject));
                assert_eq!(lost, None, "step {step} of {steps}: {}", account.root.display());
            }
            let (report, _) =
                sync(&a, &b, self.direction).unwrap_or_else(|error| panic!("step {step}: {error:?}"));
            assert_eq!(report.status(), 0, "step {step} of {steps}: {report:?}");
            let view = a.view();
            assert_eq!(
                same(view.clone(), self.formats),
                same(b.view(), self.formats),
                "step {step} of {steps}"
            );
            assert_eq!(mailboxes(&view), mailboxes(&wanted), "step {step} of {steps}");
            assert_eq!(subjects(&view), subjects(&wanted), "step {step} of {steps}");
            if look != Look::Never && step % every == every - 1 {
                dovecot_looks(dir.path(), [&a, &b], step, false);
            }
        }
    }
}

/// The new content of an mbox ends in `.lock` too, so that nobody takes it for a mailbox.
fn is_lock(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.ends_with(".lock") && !name.starts_with(".dsync-mbox-")
}

/// The flags of the messages of each subject.
fn subjects(view: &View) -> BTreeMap<String, Vec<String>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in view.values().flatten() {
        let Some((before, rest)) = line.split_once("Subject: ") else { continue };
        let flags = before.split("FlagSet").nth(1).and_then(|rest| rest.split(" Some(").next());
        let subject = rest.split("\\n").next().unwrap_or_default().to_owned();
        found.entry(subject).or_default().push(flags.unwrap_or_default().to_owned());
    }
    found
}

/// Without UIDNEXT, which never goes back, and so is higher where more was there once, without directories, which Maildir++ has not, and
/// without GUIDs of messages where an mbox keeps none.
fn same(mut view: View, formats: [&str; 2]) -> View {
    view.retain(|_, lines| lines.iter().any(|line| !line.starts_with("subscribed ")));
    for lines in view.values_mut() {
        let mut lines = lines.iter_mut();
        let remove = |line: Option<&mut String>, place: usize| {
            if let Some(line) = line {
                let mut words: Vec<&str> = line.split(' ').collect();
                words.remove(place);
                *line = words.join(" ");
            }
        };
        remove(lines.next(), 2);
        if formats.iter().any(|format| format.starts_with("mbox")) {
            lines.for_each(|line| remove(Some(line), 1));
        }
    }
    view
}

fn mailboxes(view: &View) -> Vec<(&str, usize)> {
    let mailboxes = view.iter().filter(|(_, lines)| !lines[0].starts_with("subscribed "));
    mailboxes.map(|(name, lines)| (&**name, lines.len())).collect()
}

/// A real Dovecot lists copies of the accounts, and has nothing to complain of; `marked`: but of an mbox that is half written.
fn dovecot_looks(dir: &Path, accounts: [&Account; 2], step: u64, marked: bool) {
    let dovecot = Dovecot::new(dir);
    for account in accounts.into_iter().filter(|account| !marked || account.format == "mbox") {
        let copy = Account { root: dir.join(format!("look{step}")), ..account.clone() };
        let _ = fs::remove_dir_all(&copy.root);
        let copied = Command::new("cp").arg("-a").arg(&account.root).arg(&copy.root).status();
        assert!(copied.expect("cp runs").success());
        // Locks of the dead: see above.
        copy.leftovers().iter().for_each(|path| drop(fs::remove_file(path)));
        dovecot.own(&copy.root);
        let fields = ["fetch", "mailbox uid flags guid text", "mailbox", "*", "all"];
        if !marked {
            dovecot.doveadm(&copy.location(), &fields);
            continue;
        }
        let mut doveadm = dovecot.as_user(Path::new("/usr/bin/doveadm"));
        let location = format!("mail_location={}", copy.location());
        let output = doveadm.arg("-c").arg(dovecot.conf()).args(["-o", &location]).args(fields).output();
        let told = String::from_utf8_lossy(&output.expect("doveadm runs").stderr).into_owned();
        let known = |line: &str| line.contains("isn't a valid mbox file");
        assert!(told.lines().all(|line| known(line) || !line.contains("Error")), "step {step}: {told}");
    }
}

fn seen(keyword: &str) -> FlagSet {
    flags(Flags::SEEN, keyword)
}

/// Four mailboxes with some mail.
fn some_mail(account: &Account) {
    let mut user = User::of(account.open());
    for (mailbox, count) in [("INBOX", 4), ("Archive/2024", 2), ("Gone", 1), ("Old", 2)] {
        for n in 0..count {
            let set = if n % 2 == 0 { FlagSet::default() } else { seen("$Label1") };
            user.save(mailbox, &format!("{mailbox} {n}"), set);
        }
    }
}

fn first_sync(a: &Account, b: &Account) {
    some_mail(a);
    User::of(b.open());
}

fn changes_at_both(a: &Account, b: &Account) {
    some_mail(a);
    sync(a, b, BACKUP).expect("syncs");
    let (mut one, mut two) = (User::of(a.open()), User::of(b.open()));
    // The same UID for two messages: both get new ones.
    one.save("INBOX", "new at a", seen(""));
    two.save("INBOX", "new at b", flags(Flags::DRAFT, "new"));
    two.save("INBOX", "another at b", FlagSet::default());
    one.flag("INBOX", 0, flags(Flags::ANSWERED, "Work"), FlagSet::default());
    two.flag("INBOX", 1, FlagSet::system(Flags::FLAGGED), seen("$Label1"));
    two.expunge("INBOX", 2);
    one.expunge("Archive/2024", 0);
}

fn a_mirror_to_repair(a: &Account, b: &Account) {
    some_mail(a);
    sync(a, b, BACKUP).expect("syncs");
    let (mut one, mut two) = (User::of(a.open()), User::of(b.open()));
    two.expunge("INBOX", 1);
    two.flag("INBOX", 0, flags(Flags::ANSWERED, "Work"), FlagSet::default());
    two.save("INBOX", "foreign", FlagSet::default());
    two.expunge("Archive/2024", 1);
    one.save("INBOX", "new at a", seen(""));
}

fn mailboxes_at_both(a: &Account, b: &Account) {
    some_mail(a);
    sync(a, b, BACKUP).expect("syncs");
    let (mut one, mut two) = (User::of(a.open()), User::of(b.open()));
    one.rename("Old", "Archive/Old");
    one.delete("Gone");
    two.create("Empty");
    two.save("Made/Here", "in a new mailbox", seen(""));
    two.rename("Archive/2024", "Years/2024");
}

#[test]
fn maildir_changes_at_both() {
    let scenario = Scenario {
        formats: ["maildir"; 2],
        users: |a, b| {
            a.deliver("", "1700000001.M1P1.host", b"Subject: one\n\nOne.\n");
            a.deliver("", "1700000002.M2P1.host:2,FSa", b"Subject: two\r\n\r\nTwo\0 \xff.");
            a.deliver("", "1700000003.M3P1.host,S=0:2,T", b"");
            a.deliver("Archive.2024", "1700000004.M4P1.host:2,RSX", b"Subject: four\n\nFour.\n");
            a.deliver("Entw&APw-rfe", "a bü.host:2,D", b"Subject: five\n\nFive.\n");
            fs::write(a.root.join("dovecot-keywords"), "0 $Label1\n").expect("written");
            fs::write(a.root.join("subscriptions"), "V\t2\n\nINBOX\nArchive\t2024\nGone\n").expect("written");
            sync(a, b, BACKUP).expect("syncs");
            a.deliver("", "1700000010.M1P1.host", b"Subject: new at a\n\n");
            b.deliver("", "1700000011.M1P1.host", b"Subject: new at b\n\n");
            fs::remove_file(a.find("", "1700000001")).expect("expunged at a");
            fs::rename(a.folder("Archive.2024"), a.folder("Archive.Old")).expect("renamed at a");
            let two = b.find("", "1700000002");
            fs::rename(&two, two.with_file_name("1700000002.M2P1.host:2,FRSab")).expect("answered at b");
            fs::write(b.root.join("dovecot-keywords"), "0 $Label1\n1 Work\n").expect("written");
        },
        direction: Direction::TwoWay,
        steps_min: 20,
    };
    scenario.run(Look::Never);
}

#[test]
fn sdbox_first_sync() {
    Scenario { formats: ["sdbox"; 2], users: first_sync, direction: Direction::TwoWay, steps_min: 40 }
        .run(Look::Always);
}

#[test]
fn sdbox_changes_at_both() {
    Scenario { formats: ["sdbox"; 2], users: changes_at_both, direction: Direction::TwoWay, steps_min: 20 }
        .run(Look::Always);
}

#[test]
fn sdbox_a_mirror_to_repair() {
    Scenario { formats: ["sdbox"; 2], users: a_mirror_to_repair, direction: BACKUP, steps_min: 15 }
        .run(Look::Always);
}

#[test]
fn sdbox_mailboxes_come_and_go() {
    Scenario { formats: ["sdbox"; 2], users: mailboxes_at_both, direction: Direction::TwoWay, steps_min: 15 }
        .run(Look::Always);
}

const BY_INDEX: [&str; 3] = ["maildir:LAYOUT=index", "sdbox:LAYOUT=index", "mdbox:LAYOUT=index"];
const MBOX_BY_INDEX: &str = "mbox:LAYOUT=index";

/// Where INBOX is not in the list, Dovecot looks for lost mailboxes, finds that which was being made, and says so.
#[test]
fn list_index_first_sync() {
    let formats = [BY_INDEX[1], BY_INDEX[0]];
    Scenario { formats, users: first_sync, direction: Direction::TwoWay, steps_min: 40 }.run(Look::Finished);
}

#[test]
fn list_index_of_maildir_mailboxes_come_and_go() {
    mailboxes_come_and_go_in_list_indexes(["sdbox", BY_INDEX[0]]);
}

#[test]
fn list_index_of_sdbox_mailboxes_come_and_go() {
    mailboxes_come_and_go_in_list_indexes([BY_INDEX[1], BY_INDEX[0]]);
}

#[test]
fn list_index_of_mdbox_mailboxes_come_and_go() {
    mailboxes_come_and_go_in_list_indexes([BY_INDEX[2], "sdbox"]);
}

#[test]
fn list_index_of_mbox_first_sync() {
    let formats = ["maildir", MBOX_BY_INDEX];
    Scenario { formats, users: first_sync, direction: Direction::TwoWay, steps_min: 40 }.run(Look::Finished);
}

#[test]
fn list_index_of_mbox_mailboxes_come_and_go() {
    let formats = [MBOX_BY_INDEX, "sdbox"];
    Scenario { formats, users: mailboxes_at_both, direction: Direction::TwoWay, steps_min: 15 }
        .run(Look::Marked);
}

/// Mailboxes that hold mail get the GUIDs of the source, and with them other directories.
#[test]
fn list_index_mailboxes_get_other_guids() {
    let users = |a: &Account, b: &Account| {
        some_mail(a);
        let mut two = User::of(b.open());
        two.save("INBOX", "foreign", seen(""));
        two.save("INBOX", "INBOX 1", FlagSet::default());
    };
    for format in [BY_INDEX[0], BY_INDEX[2], MBOX_BY_INDEX] {
        let formats = ["sdbox", format];
        Scenario { formats, users, direction: BACKUP, steps_min: 15 }.run(Look::Never);
    }
}

fn mailboxes_come_and_go_in_list_indexes(formats: [&'static str; 2]) {
    Scenario { formats, users: mailboxes_at_both, direction: Direction::TwoWay, steps_min: 15 }
        .run(Look::Always);
}

#[test]
fn mbox_first_sync() {
    Scenario { formats: ["maildir", "mbox"], users: first_sync, direction: Direction::TwoWay, steps_min: 40 }
        .run(Look::Finished);
}

#[test]
fn mbox_changes_at_both() {
    Scenario {
        formats: ["mbox", "mbox"],
        users: changes_at_both,
        direction: Direction::TwoWay,
        steps_min: 20,
    }
    .run(Look::Finished);
}

#[test]
fn mbox_and_maildir_change() {
    Scenario {
        formats: ["mbox", "maildir"],
        users: changes_at_both,
        direction: Direction::TwoWay,
        steps_min: 20,
    }
    .run(Look::Finished);
}

#[test]
fn mbox_a_mirror_to_repair() {
    Scenario { formats: ["sdbox", "mbox"], users: a_mirror_to_repair, direction: BACKUP, steps_min: 15 }
        .run(Look::Marked);
}

#[test]
fn mbox_mailboxes_come_and_go() {
    Scenario {
        formats: ["mbox", "sdbox"],
        users: mailboxes_at_both,
        direction: Direction::TwoWay,
        steps_min: 15,
    }
    .run(Look::Finished);
}
