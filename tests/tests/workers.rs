//! Work as root for users who have a uid of their own. Needs root, as in CI; elsewhere it is skipped.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use dsync_tests::maildirs::Account;
use dsync_tests::programs::{AS_ROOT, Place, programs};

/// Users with a uid and a group of their own, as the tests have them.
const USERS: [(&str, u32); 3] = [("ann", 2001), ("ben", 2002), ("cat", 2003)];
/// A group that ann's second mail directory is for.
const SHARED: u32 = 2100;

fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    assert!(root || std::env::var_os("CI").is_none(), "CI runs as root: no test of workers may be skipped");
    if !root {
        eprintln!("skipped: only root can work under other uids");
    }
    root
}

/// A client and a server that know the users; their homes are in `home` and `there`.
fn place() -> Place {
    let place = Place::new("");
    let dir = place.dir.path().display().to_string();
    // Each user reaches no further than their own home.
    fs::set_permissions(place.dir.path(), fs::Permissions::from_mode(0o711)).expect("set");
    for (side, conf) in [("home", "client.conf"), ("there", "server.conf")] {
        let lines: String =
            USERS.iter().map(|(name, id)| format!("{name}::{id}:{id}::{dir}/{side}/{name}\n")).collect();
        fs::write(place.path(&format!("{side}.users")), lines).expect("written");
        let text = fs::read_to_string(place.path(conf)).expect("read");
        let text = text.replace(&format!("mail_location = maildir:{dir}/server/%u"), "").replace(AS_ROOT, "");
        let more = format!(
            "mail_location = maildir:~/Maildir\nmail_access_groups = {SHARED}\nuserdb {{\n driver = passwd-file\n args = {dir}/{side}.users\n}}\n"
        );
        fs::write(place.path(conf), text + &more).expect("written");
        fs::set_permissions(place.path(conf), fs::Permissions::from_mode(0o600)).expect("set");
        for (name, id) in USERS {
            let home = place.path(&format!("{side}/{name}"));
            fs::create_dir_all(&home).expect("made");
            give(&home, id, id, 0o700);
        }
    }
    for (name, id) in USERS {
        let account = Account::new(place.path(&format!("home/{name}/Maildir")));
        account.deliver("", "1700000001.M1P1.test", format!("Subject: of {name}\n\ntext\n").as_bytes());
        account.deliver(
            "Work",
            "1700000002.M1P1.test",
            format!("Subject: work of {name}\n\ntext\n").as_bytes(),
        );
        own(&account.root, id);
        let home = place.path(&format!("home/{name}"));
        for entry in walk(&home) {
            let mode = if entry.is_dir() { 0o700 } else { 0o600 };
            fs::set_permissions(entry, fs::Permissions::from_mode(mode)).expect("set");
        }
    }
    place
}

fn give(path: &Path, uid: u32, gid: u32, mode: u32) {
    chown(path, Some(uid), Some(gid)).expect("root may");
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("root may");
}

fn own(path: &Path, id: u32) {
    walk(path).iter().for_each(|entry| chown(entry, Some(id), Some(id)).expect("root may"));
}

/// All that is below a directory, and itself.
fn walk(path: &Path) -> Vec<std::path::PathBuf> {
    let mut found = vec![path.to_owned()];
    if fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir()) {
        for entry in fs::read_dir(path).expect("readable").flatten() {
            found.extend(walk(&entry.path()));
        }
    }
    found
}

/// Owner, group and mode of everything below a directory, by kind: names of messages differ.
fn rights(path: &Path) -> std::collections::BTreeSet<String> {
    let kind = |path: &Path| {
        let parent = path.parent().and_then(Path::file_name).and_then(|name| name.to_str());
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        match (parent, path.is_dir()) {
            (Some("cur" | "new"), _) => "message".to_owned(),
            (_, true) if matches!(name, "cur" | "new" | "tmp") => "part".to_owned(),
            (_, true) if name.starts_with('.') => "mailbox".to_owned(),
            (_, true) => "root".to_owned(),
            (_, false) => name.split("uidvalidity.").next().unwrap_or_default().to_owned(),
        }
    };
    walk(path)
        .iter()
        .map(|entry| {
            let meta = fs::symlink_metadata(entry).expect("there");
            format!("{} {}:{} {:o}", kind(entry), meta.uid(), meta.gid(), meta.mode() & 0o7777)
        })
        .collect()
}

fn assert_owned(path: &Path, id: u32) {
    for entry in walk(path) {
        let meta = fs::symlink_metadata(&entry).expect("there");
        assert_eq!((meta.uid(), meta.gid()), (id, id), "{}", entry.display());
    }
}

#[test]
fn each_users_files_are_their_own_at_both_ends() {
    if !is_root() {
        return;
    }
    let place = place();
    let server = place.serve();
    let (status, text) = place.run(&["sync", "-A", "--jobs", "2", &place.tls()]);
    assert_eq!(status, 0, "{text}");
    // One user alone, and a destination on this machine.
    let (status, text) = place.run(&["backup", "-u", "ann", "mdbox:~/copy"]);
    assert_eq!(status, 0, "{text}");
    for (name, id) in USERS {
        let (here, there) = (place.path(&format!("home/{name}")), place.path(&format!("there/{name}")));
        assert_owned(&here, id);
        assert_owned(&there, id);
        let view = |home: &Path| Account::new(home.join("Maildir")).view();
        assert_eq!(view(&here), view(&there), "{name}");
        assert!(walk(&there).len() > 10, "{name}");
    }
    // A second run goes through the same workers, and the server's end with it.
    let (status, text) = place.run(&["verify", "-u", "ben", &place.tls()]);
    assert_eq!(status, 0, "{text}");
    let workers = || children(server.child.id());
    assert!(!workers().is_empty());
    let bens = of_uid(server.child.id(), 2002);
    let (status, text) = place.run(&["sync", "-u", "ben", &place.tls()]);
    assert_eq!(status, 0, "{text}");
    assert_eq!(of_uid(server.child.id(), 2002), bens, "many sessions go through one worker");
    for pid in workers() {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it is ours");
        let line = |name: &str| status.lines().find(|line| line.starts_with(name)).expect("there").to_owned();
        let uids: Vec<u32> = numbers(&line("Uid:"));
        assert!(uids.iter().all(|uid| (2001..=2003).contains(uid)), "{uids:?}");
        assert!(numbers(&line("Gid:")).iter().all(|gid| (2001..=2003).contains(gid)));
        assert_eq!(numbers(&line("Groups:")), [SHARED]);
        assert!(
            line("CapPrm:").ends_with("0000000000000000") && line("CapEff:").ends_with("0000000000000000")
        );
        assert_eq!(numbers(&line("NoNewPrivs:")), [1]);
    }
    let before = workers();
    drop(server);
    let begun = Instant::now();
    while before.iter().any(|pid| Path::new(&format!("/proc/{pid}/fd/0")).exists()) {
        assert!(begun.elapsed() < Duration::from_secs(10), "a worker outlives its parent");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn numbers(line: &str) -> Vec<u32> {
    line.split_whitespace().skip(1).map(|word| word.parse().expect("a number")).collect()
}

/// Processes that this one started.
fn children(parent: u32) -> Vec<u32> {
    let mut found = Vec::new();
    for task in fs::read_dir(format!("/proc/{parent}/task")).expect("it runs").flatten() {
        let text = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        found.extend(text.split_whitespace().map(|pid| pid.parse::<u32>().expect("a number")));
    }
    found
}

/// The link is the user's own doing: root would follow it, the user cannot.
#[test]
fn a_link_to_another_users_mail_leads_nowhere() {
    if !is_root() {
        return;
    }
    let place = place();
    let _server = place.serve();
    let (anns, bens) = (place.path("home/ann"), place.path("home/ben/Maildir"));
    fs::remove_dir_all(anns.join("Maildir")).expect("removed");
    symlink(&bens, anns.join("Maildir")).expect("made");
    let there = place.path("there/ann");
    symlink(place.path("there/ben/Maildir"), there.join("Maildir")).expect("made");
    Account::new(place.path("there/ben/Maildir")).deliver("", "1700000009.M1P1.test", b"Subject: x\n\nx\n");
    own(&place.path("there/ben"), 2002);
    let before = (snapshot(&bens), snapshot(&place.path("there/ben")));
    for direction in [&["backup", "-u", "ann"][..], &["backup", "-R", "-u", "ann"], &["sync", "-u", "ann"]] {
        for destination in [place.tls(), "maildir:~/elsewhere".to_owned()] {
            let mut words = direction.to_vec();
            words.push(&destination);
            let (status, text) = place.run(&words);
            assert!(status != 0 && status != 2, "{words:?}: {status} {text}");
        }
    }
    // Nor does the server's end go through it, when the client's own mail is as it should be.
    fs::remove_file(anns.join("Maildir")).expect("removed");
    let account = Account::new(anns.join("Maildir"));
    account.deliver("", "1700000001.M1P1.test", b"Subject: y\n\ny\n");
    own(&account.root, 2001);
    let (status, text) = place.run(&["sync", "-u", "ann", &place.tls()]);
    assert!(status == 75 && text.contains("the other end reports"), "{status} {text}");
    assert_eq!((snapshot(&bens), snapshot(&place.path("there/ben"))), before);
    // A line for INBOX, and one for ann's only message.
    assert_eq!(account.view().values().map(Vec::len).sum::<usize>(), 2, "nothing of ben's has come");
}

fn snapshot(path: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let files = walk(path).into_iter().filter(|entry| entry.is_file());
    let mut all: Vec<_> = files.map(|entry| (entry.clone(), fs::read(entry).expect("root may"))).collect();
    all.sort();
    all
}

#[test]
fn who_may_not_own_mail_is_refused() {
    if !is_root() {
        return;
    }
    let place = place();
    let dir = place.dir.path().display().to_string();
    let users = format!(
        "root::0:0::{dir}/home/root\nlow::99:99::{dir}/home/low\nnogid::2009:::{dir}/home/x\njail::2009:2009::{dir}/./home/x\nann::2001:2001::{dir}/home/ann\n"
    );
    fs::write(place.path("home.users"), users).expect("written");
    let secret = place.path("secret").display().to_string();
    for (user, expected, says) in [
        ("root", 77, "UID 0 (from the userdb) is not permitted: see the setting first_valid_uid"),
        ("low", 77, "first_valid_uid"),
        ("nogid", 78, "mail_gid"),
        ("jail", 78, "chroot"),
    ] {
        let (status, text) = place.run(&["backup", "-u", user, &format!("maildir:{dir}/{user}")]);
        assert_eq!(status, expected, "{user}: {text}");
        assert!(text.contains(says), "{text}");
    }
    // What only root could write, a user's session does not: the record of what travels, a destination.
    let words = ["backup", "-u", "ann", "-r", &secret, "maildir:~/copy"];
    let (status, text) = place.run(&words);
    assert!(status == 75 && text.contains("Permission denied"), "{status} {text}");
    let (status, text) = place.run(&["backup", "-u", "ann", &format!("maildir:{dir}/outside")]);
    assert!(status != 0 && text.contains("ermission denied"), "{status} {text}");
    assert!(!Path::new(&secret).exists() && !place.path("outside").exists());
    // Where it is allowed, root's own mail is root's.
    let (status, text) = place.run(&[
        "-o",
        "first_valid_uid=0",
        "-o",
        "first_valid_gid=0",
        "backup",
        "-u",
        "root",
        &format!("maildir:{dir}/copy"),
    ]);
    assert!(status == 78 && text.contains("source does not exist"), "{status} {text}");
}

/// `-S` by network, which names the place to write to: it is written as the user, and nobody is root there.
#[test]
fn a_command_by_network_writes_as_the_user_and_never_as_root() {
    if !is_root() {
        return;
    }
    let place = place();
    let dir = place.dir.path().display().to_string();
    let users = format!("ann::2001:2001::{dir}/there/ann\nnobody:::::{dir}/there/nobody\n");
    fs::write(place.path("there.users"), users).expect("written");
    let mail = Account::new(place.path("there/ann/Maildir"));
    mail.deliver("", "1700000001.M1P1.test", b"Subject: x\n\nx\n");
    own(&mail.root, 2001);
    Account::new(place.path("there/nobody/Maildir")).deliver(
        "",
        "1700000001.M1P1.test",
        b"Subject: y\n\ny\n",
    );
    let server = place.serve();
    let way = place.tls();
    let run = |user: &str, to: &str| place.run(&["backup", "-S", &way, "-u", user, &format!("maildir:{to}")]);
    assert_eq!(run("ann", "~/copy"), (0, String::new()));
    assert_owned(&place.path("there/ann/copy"), 2001);
    for (user, to) in [("ann", "outside"), ("nobody", "outside"), ("nobody", "there/nobody/copy")] {
        let (status, text) = run(user, &format!("{dir}/{to}"));
        let says = if user == "ann" { "ermission denied" } else { "root works for no other user" };
        assert!(
            status != 0 && (user == "ann" || status == 77) && text.contains(says),
            "{user}: {status} {text}"
        );
        assert!(!place.path(to).exists());
    }
    drop(server);
    let conf = fs::read_to_string(place.path("server.conf")).expect("read") + "first_valid_uid = 0\n";
    fs::write(place.path("server.conf"), conf).expect("written");
    let _server = place.serve();
    assert_eq!(run("nobody", &format!("{dir}/there/nobody/copy")), (0, String::new()));
}

/// Nobody names a uid: as in Dovecot root does not do the work, whoever asks and by whichever way.
#[test]
fn root_works_for_nobody_without_a_uid() {
    if !is_root() {
        return;
    }
    let place = place();
    let dir = place.dir.path().display().to_string();
    let homes = ["home", "there"].map(|side| {
        let users = format!("ann::2001:2001::{dir}/{side}/ann\nnobody:::::{dir}/{side}/nobody\n");
        fs::write(place.path(&format!("{side}.users")), users).expect("written");
        let mail = Account::new(place.path(&format!("{side}/nobody/Maildir")));
        mail.deliver("", &format!("1700000001.M1P1.{side}"), b"Subject: y\n\ny\n");
        place.path(&format!("{side}/nobody"))
    });
    let before = homes.each_ref().map(|home| snapshot(home));
    let says = "root works for no other user: the userdb or the setting mail_uid has to name a uid";
    let refused = |words: &[&str]| {
        let (status, text) = place.run(words);
        assert_eq!(status, 77, "{words:?}: {text}");
        assert!(text.contains(says), "{words:?}: {text}");
        assert_eq!(homes.each_ref().map(|home| snapshot(home)), before, "{words:?}");
    };
    let server = place.serve();
    let tls = place.tls();
    let (command, conf) = (programs().join("dsync-server"), place.path("server.conf"));
    let (command, conf) = (command.display().to_string(), conf.display().to_string());
    // The client knows a uid, the server does not.
    let known: [&str; 5] = ["-o", "mail_uid=2001", "-o", "mail_gid=2001", "sync"];
    let source = format!("maildir:{dir}/home/ann/Maildir");
    let network = [&known[..], &["-u", "nobody", "--source", &source, &tls]].concat();
    refused(&network);
    assert!(server.wait_for("user=nobody").contains("status=77"));
    let words = ["-u", "nobody", "--source", &source, &command, "-c", &conf, "-u", "nobody"];
    refused(&[&known[..], &words].concat());
    // The client is root, too.
    refused(&["sync", "-u", "nobody", &tls]);
    refused(&["backup", "-u", "nobody", "maildir:~/copy"]);
    refused(&["verify", "-u", "nobody", "maildir:~/copy"]);
    refused(&["purge", "-u", "nobody"]);
    // Of many it is that one alone.
    let (status, text) = place.run(&["backup", "-A", "maildir:~/copy"]);
    assert!(status == 77 && text.contains(says) && text.contains("2 users: 1 ok"), "{status} {text}");
    // Whoever names nobody means themselves.
    let root = format!("maildir:{dir}/home/nobody/Maildir");
    let (status, text) = place.run(&["backup", "--source", &root, &format!("maildir:{dir}/copy")]);
    assert_eq!(status, 0, "{text}");
    drop(server);
    let conf = fs::read_to_string(place.path("server.conf")).expect("read") + AS_ROOT;
    fs::write(place.path("server.conf"), conf).expect("written");
    let _server = place.serve();
    let (status, text) = place.run(&network);
    assert_eq!(status, 0, "{text}");
}

/// One worker dies while it works: its user fails with 75, or is done by the next attempt; the others do not notice.
#[test]
fn a_worker_that_is_killed_costs_one_user_one_attempt() {
    if !is_root() {
        return;
    }
    let place = place();
    let server = place.serve();
    // The other end waits for the lock of ann's store, and with it her workers at both ends.
    let (status, text) = place.run(&["sync", "-A", &place.tls()]);
    assert_eq!(status, 0, "{text}");
    let lock = locked(&place.path("there/ann/Maildir/.dsync-lock"));
    let mut alone =
        place.dsync(&["sync", "-u", "ann", &place.tls()]).stderr(Stdio::piped()).spawn().expect("runs");
    let worker = of_uid(server.child.id(), 2001);
    // Once it waits for the lock it is in the middle of its work.
    wait_until("the worker waits", || {
        let ended = alone.try_wait().expect("known");
        assert!(ended.is_none(), "it does not wait: {ended:?}");
        holds_open(worker, "there/ann/Maildir/.dsync-lock")
    });
    kill(worker);
    assert_eq!(alone.wait().expect("ends").code(), Some(75));
    let line = server.wait_for("user=ann peer=127.0.0.1:");
    let line = if line.contains("failed") { line } else { server.wait_for("failed") };
    assert!(line.contains("the process that works for uid 2001 was ended by signal 9"), "{line}");
    drop(lock);
    let (status, text) = place.run(&["sync", "-A", &place.tls()]);
    assert!(status == 0 && text.contains("3 users: 3 ok"), "{status} {text}");

    // Of many, at the client's end: that user is tried again.
    let lock = locked(&place.path("home/ben/Maildir/.dsync-lock"));
    let mut many = place.dsync(&["-D", "sync", "-A", "--jobs", "1", "maildir:~/copy"]);
    let mut many = many.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("runs");
    wait_until("ben's turn comes", || {
        children(many.id())
            .iter()
            .any(|pid| uid(*pid) == Some(2002) && holds_open(*pid, "home/ben/Maildir/.dsync-lock"))
    });
    kill(of_uid(many.id(), 2002));
    drop(lock);
    let mut text = String::new();
    std::io::Read::read_to_string(many.stderr.as_mut().expect("piped"), &mut text).expect("read");
    assert_eq!(many.wait().expect("ends").code(), Some(0), "{text}");
    assert!(text.contains("ben: will be tried again: ben: the process that works for uid 2002"), "{text}");
    assert!(text.contains("3 users: 3 ok"), "{text}");
}

/// Holds the lock of a store as another dsync would, until it is dropped.
fn locked(path: &Path) -> fs::File {
    let file = fs::File::options().read(true).write(true).open(path).expect("there");
    let whole = nix::libc::flock {
        l_type: nix::libc::F_WRLCK as i16,
        l_whence: nix::libc::SEEK_SET as i16,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_OFD_SETLK(&whole)).expect("free");
    file
}

fn uid(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    numbers(status.lines().find(|line| line.starts_with("Uid:"))?).first().copied()
}

fn of_uid(parent: u32, wanted: u32) -> u32 {
    let found = || children(parent).into_iter().find(|pid| uid(*pid) == Some(wanted));
    wait_until("there is a worker", || found().is_some());
    found().expect("just seen")
}

/// Says whether a process has this file open.
fn holds_open(pid: u32, path: &str) -> bool {
    let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    files.filter_map(|file| fs::read_link(file.path()).ok()).any(|link| link.ends_with(path))
}

fn kill(pid: u32) {
    let killed = Command::new("kill").arg("-9").arg(pid.to_string()).status();
    assert!(killed.expect("kill runs").success());
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Owner, group and mode of every kind of file are those that Dovecot's own backup gives, in a private place and in a shared one.
#[test]
fn files_are_owned_as_dovecot_owns_them() {
    if !is_root() || !dsync_tests::dovecot::installed() {
        return;
    }
    let place = place();
    let dovecot = Dovecot::start(&place);
    let (name, id) = USERS[0];
    // In a shared place the directories within dbox are private here, which is wrong: Dovecot's have the rights of the place.
    let private = ["maildir", "mdbox", "sdbox"];
    let kinds = [("private", id, 0o700, &private[..]), ("shared", SHARED, 0o770, &private[..1])];
    for (kind, group, mode, formats) in kinds {
        for format in formats {
            let made = |who: &str| place.path(&format!("home/{name}/{who}-{kind}-{format}"));
            for who in ["dovecot", "ours"] {
                fs::create_dir(made(who)).expect("made");
                give(&made(who), id, group, mode);
            }
            let destination = |who| format!("{format}:{}", made(who).display());
            dovecot.backup(name, &destination("dovecot"));
            let (status, text) = place.run(&["backup", "-u", name, &destination("ours")]);
            assert_eq!(status, 0, "{text}");
            let (theirs, ours) = (rights(&made("dovecot")), rights(&made("ours")));
            // Files that only one of the two has are owned alike all the same.
            let names = |all: &std::collections::BTreeSet<String>| -> std::collections::BTreeSet<String> {
                all.iter().filter_map(|line| line.split(' ').next().map(str::to_owned)).collect()
            };
            let both: Vec<_> = names(&theirs).intersection(&names(&ours)).cloned().collect();
            assert!(both.len() >= 3, "{both:?}");
            let shared = |all: &std::collections::BTreeSet<String>| -> Vec<String> {
                all.iter()
                    .filter(|line| both.iter().any(|name| line.starts_with(&format!("{name} "))))
                    .cloned()
                    .collect()
            };
            assert_eq!(shared(&ours), shared(&theirs), "{name} {kind} {format}");
        }
    }
}

/// A Dovecot that runs as root, as it is meant to, for its userdb alone.
struct Dovecot {
    child: std::process::Child,
    conf: std::path::PathBuf,
}

impl Dovecot {
    fn start(place: &Place) -> Dovecot {
        let dir = place.path("dovecot");
        fs::create_dir(&dir).expect("made");
        give(&dir, 0, 0, 0o755);
        // Its auth process runs as its own user.
        give(&place.path("home.users"), 0, 0, 0o644);
        let (conf, dir) = (dir.join("dovecot.conf"), dir.display());
        let users = place.path("home.users");
        let text = format!(
            "base_dir = {dir}/run\nstate_dir = {dir}/state\nlog_path = {dir}/log\nssl = no\nprotocols =\n\
             mail_location = maildir:~/Maildir\nmail_access_groups = {SHARED}\nnamespace inbox {{\n  inbox = yes\n  separator = /\n}}\n\
             passdb {{\n  driver = passwd-file\n  args = {0}\n}}\nuserdb {{\n  driver = passwd-file\n  args = {0}\n}}\n\
             service anvil {{\n  chroot =\n}}\nservice stats {{\n  chroot =\n}}\n",
            users.display()
        );
        fs::write(&conf, text).expect("written");
        let mut command = Command::new("/usr/sbin/dovecot");
        command
            .arg("-F")
            .arg("-c")
            .arg(&conf)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = command.spawn().expect("dovecot starts");
        let log = conf.with_file_name("log");
        let dovecot = Dovecot { child, conf };
        wait_until("dovecot starts", || fs::read_to_string(&log).unwrap_or_default().contains("starting up"));
        dovecot
    }

    fn backup(&self, user: &str, destination: &str) {
        let mut command = Command::new("/usr/bin/doveadm");
        let output = command.arg("-c").arg(&self.conf).args(["backup", "-u", user, destination]).output();
        let output = output.expect("doveadm runs");
        assert!(output.status.success(), "{destination}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for Dovecot {
    fn drop(&mut self) {
        // Its children go with it, if it is told in words.
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let _ = self.child.wait();
    }
}
