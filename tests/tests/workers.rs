//! Work as root for users who have a uid of their own. Needs root, as in CI; elsewhere it is skipped.

#[path = "workers/dovecot.rs"]
mod dovecot;
#[path = "workers/killed.rs"]
mod killed;
#[path = "workers/processes.rs"]
mod processes;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use dsync_tests::maildirs::Account;
use dsync_tests::programs::{AS_ROOT, Place, programs};

use self::processes::{children, numbers, of_uid};

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
