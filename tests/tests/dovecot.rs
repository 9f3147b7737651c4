//! What a real Dovecot says of what we wrote, and what we make of what it wrote.

#[path = "dovecot/listed.rs"]
mod listed;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use dsync_tests::dovecot::{Dovecot, assert_equal, comparable, installed};
use dsync_tests::installation::attribute_options;
use dsync_tests::maildirs::Account;
use dsync_tests::programs::programs;
use dsync_tests::sample;

struct World {
    dir: tempfile::TempDir,
    dovecot: Dovecot,
    dsync: PathBuf,
}

impl World {
    fn new() -> World {
        let (dir, dovecot) = Dovecot::beside(&["dsync"]);
        let dsync = dir.path().join("dsync");
        World { dir, dovecot, dsync }
    }

    fn account(&self, name: &str) -> Account {
        Account::new(self.dir.path().join(name))
    }

    fn sync(&self, arguments: &[&str]) {
        let output = self
            .dovecot
            .as_user(&self.dsync)
            .args(["-c", "/dev/null"])
            .args(arguments)
            .output()
            .expect("runs");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && text.is_empty(), "{arguments:?}: {:?} {text}", output.status);
    }
}

fn location(account: &Account) -> String {
    format!("maildir:{}{}", account.root.display(), account.options)
}

#[test]
fn dovecot_sees_no_difference_after_a_backup() {
    if !installed() {
        return;
    }
    let world = World::new();
    let a = world.account("a");
    sample::write(&a);
    // A NUL byte is shown in another way by Dovecot's cache: no part of this test.
    world.dovecot.own(&a.root);
    let first = world.dovecot.view(&location(&a));
    for options in ["", ":LAYOUT=fs"] {
        let mut b = world.account(&format!("b{}", options.len()));
        b.options = options.into();
        world.sync(&["backup", "--source", &location(&a), &location(&b)]);
        let (ours, theirs) = (world.dovecot.view(&location(&a)), world.dovecot.view(&location(&b)));
        assert_equal(&ours, &first, "the source was changed");
        let same = |view: &str| {
            view.lines().filter(|line| !line.starts_with("Archive messages=0")).collect::<Vec<_>>().join("\n")
        };
        assert_eq!(same(&ours), same(&theirs), "{options}");
    }
}

#[test]
fn changes_that_dovecot_made_on_both_sides_arrive_on_both() {
    if !installed() {
        return;
    }
    let world = World::new();
    let (a, b) = (world.account("a"), world.account("b"));
    sample::write(&a);
    world.dovecot.own(&a.root);
    let (one, two) = (location(&a), location(&b));
    world.dovecot.view(&one);
    world.sync(&["backup", "--source", &one, &two]);
    world.dovecot.view(&two);
    let doveadm =
        |location: &str, words: &str| world.dovecot.doveadm(location, &words.split('|').collect::<Vec<_>>());
    doveadm(&one, "flags|add|\\Flagged $New|mailbox|INBOX|uid|1");
    doveadm(&two, "flags|add|\\Answered|mailbox|INBOX|uid|1");
    doveadm(&two, "flags|remove|\\Seen|mailbox|INBOX|uid|2");
    doveadm(&one, "expunge|mailbox|INBOX|uid|3");
    doveadm(&two, "expunge|mailbox|Sent|uid|1:2");
    doveadm(&two, "mailbox|create|-s|Made/There");
    doveadm(&one, "mailbox|rename|Entwürfe|Drafts");
    doveadm(&two, "move|Made/There|mailbox|INBOX|uid|4");
    world.dovecot.save(&one, "INBOX", "Subject: saved at one\n\nBody one.\n");
    world.dovecot.save(&two, "INBOX", "Subject: saved at two\n\nBody two.\n");
    world.sync(&["sync", "--source", &one, &two]);
    let (ours, theirs) = (world.dovecot.view(&one), world.dovecot.view(&two));
    assert_equal(&ours, &theirs, "after the sync");
    for text in ["saved at one", "saved at two", "$New", "Made/There", "Drafts"] {
        assert!(ours.contains(text), "{text}: {ours}");
    }
    assert!(!ours.contains("Entwürfe\t"), "{ours}");
    let inbox = doveadm(&one, "-f|tab|fetch|uid flags|mailbox|INBOX|uid|1:4");
    let lines: Vec<&str> = inbox.lines().collect();
    assert!(
        lines[1].contains("\\Answered") && lines[1].contains("\\Flagged") && lines[1].contains("$New"),
        "{inbox}"
    );
    assert!(lines.len() == 3 && !lines[2].contains("\\Seen"), "{inbox}");
    // Idle-still, also as Dovecot sees it.
    world.sync(&["sync", "--source", &one, &two]);
    assert_equal(&world.dovecot.view(&one), &ours, "idle");
}

/// What dsync never synchronised before has no base: Dovecot's mailbox log tells what was deleted, renamed and unsubscribed.
#[test]
fn what_dovecot_logged_is_done_without_a_base() {
    if !installed() {
        return;
    }
    let world = World::new();
    let (a, b) = (world.account("a"), world.account("b"));
    let (one, two) = (location(&a), location(&b));
    let doveadm =
        |location: &str, words: &str| world.dovecot.doveadm(location, &words.split('|').collect::<Vec<_>>());
    for name in ["Gone", "Kept", "Moved", "Listed"] {
        doveadm(&one, &format!("mailbox|create|-s|{name}"));
        world.dovecot.save(&one, name, &format!("Subject: in {name}\n\nBody.\n"));
    }
    doveadm(&one, &format!("backup|{two}"));
    let mut age = std::process::Command::new("find");
    age.arg(&b.root).args(["-type", "d", "-exec", "touch", "-d", "-1 hour", "{}", "+"]);
    assert!(age.status().expect("find runs").success());
    // The log tells whole seconds: a deletion in the second of the subscription is not known to be the later one.
    dsync_tests::scenario::tick();
    doveadm(&one, "mailbox|delete|-s|Gone");
    doveadm(&one, "mailbox|delete|-s|Kept");
    doveadm(&two, "mailbox|rename|Moved|Moved there");
    doveadm(&one, "mailbox|unsubscribe|Listed");
    world.dovecot.save(&two, "Kept", "Subject: never seen by one\n\nBody.\n");
    world.sync(&["sync", "--source", &one, &two]);
    let (ours, theirs) = (world.dovecot.view(&one), world.dovecot.view(&two));
    assert_equal(&ours, &theirs, "after the sync");
    assert!(!ours.contains("in Gone") && !ours.contains("Gone\t"), "{ours}");
    assert!(ours.contains("never seen by one"), "{ours}");
    assert!(ours.contains("Moved there\t") && !ours.contains("Moved\t"), "{ours}");
    let subscribed = ours.lines().find(|line| line.starts_with("subscribed ")).expect("listed");
    assert!(!subscribed.contains("Listed") && !subscribed.contains("Gone"), "{subscribed}");
}

/// METADATA that Dovecot wrote arrives, changes of both ends meet, and what we wrote Dovecot reads.
#[test]
fn attributes_of_mailboxes_travel_both_ways() {
    if !installed() {
        return;
    }
    let world = World::new();
    let roots = ["a", "b"].map(|name| world.dir.path().join(name));
    let locations = ["maildir", "sdbox"].map(str::to_owned);
    let locations: Vec<String> =
        locations.iter().zip(&roots).map(|(format, root)| format!("{format}:{}", root.display())).collect();
    for root in &roots {
        fs::create_dir(root).expect("made");
        world.dovecot.own(root);
    }
    let metadata = |end: usize, words: &[&str]| {
        let dict = attribute_options(&format!("{}/dovecot-attributes", roots[end].display()));
        let dict: Vec<&str> = dict.iter().map(String::as_str).collect();
        let words = [&dict[..], &["mailbox", "metadata"], words].concat();
        world.dovecot.doveadm(&locations[end], &words)
    };
    let sync = || world.sync(&["sync", "--source", &locations[0], &locations[1]]);
    world.dovecot.doveadm(&locations[0], &["mailbox", "create", "Work"]);
    let odd = "tab\there, a \"quote\"";
    metadata(0, &["set", "Work", "/shared/comment", odd]);
    metadata(0, &["set", "Work", "/private/comment", "mine"]);
    metadata(0, &["set", "-s", "", "/shared/vendor/example.org/server", "of the server"]);
    metadata(1, &["set", "INBOX", "/private/comment", "of the inbox"]);
    sync();
    let everything = |end: usize| {
        let of = |words: &[&str]| metadata(end, &[&["get"], words].concat());
        [
            of(&["Work", "/shared/comment"]),
            of(&["Work", "/private/comment"]),
            of(&["-s", "", "/shared/vendor/example.org/server"]),
            of(&["INBOX", "/private/comment"]),
        ]
        .map(|text| text.trim_end().to_owned())
    };
    let wanted = [odd, "mine", "of the server", "of the inbox"];
    assert_eq!(everything(0), wanted);
    assert_eq!(everything(1), wanted);
    metadata(1, &["set", "Work", "/shared/comment", "changed there"]);
    metadata(0, &["unset", "Work", "/private/comment"]);
    sync();
    let wanted = ["changed there", "", "of the server", "of the inbox"];
    assert_eq!(everything(0), wanted);
    assert_eq!(everything(1), wanted);
    let file = |end: usize| fs::read(roots[end].join("dovecot-attributes")).expect("there");
    let before = file(0);
    metadata(1, &["set", "Work", "/private/comment", "only there"]);
    world.sync(&["backup", "--source", &locations[0], &locations[1]]);
    assert_eq!(file(0), before, "a source is not written");
    assert_eq!(everything(1), wanted);
}

/// What a run would have to read for a mailbox that it looks into, and must not for one whose files stayed as they are: it cannot.
fn hide(world: &World, root: &Path) -> Vec<(PathBuf, u32)> {
    let hidden = world.dovecot.as_user(Path::new("find")).arg(root).output().expect("find runs");
    let paths = String::from_utf8(hidden.stdout).expect("text");
    let mut changed = Vec::new();
    for path in paths.lines().map(PathBuf::from) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mode = match &*name {
            "cur" | "new" | "dovecot-uidlist" | "dovecot.index" | "dovecot.index.log" => 0,
            "dovecot.map.index" | "dovecot.map.index.log" => 0,
            // The log in it may be asked for its times.
            "dbox-Mails" | "storage" => 0o100,
            // Directories of LAYOUT=index.
            _ if name.len() == 32 && path.is_dir() => 0o100,
            _ => continue,
        };
        changed.push((path.clone(), fs::metadata(&path).expect("is there").permissions().mode()));
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("set");
    }
    changed
}

#[test]
fn an_idle_run_reads_no_mailbox_again() {
    if !installed() {
        return;
    }
    let world = World::new();
    let pairs = [("maildir", "", "sdbox", ""), ("mdbox", "", "maildir", ":LAYOUT=fs")];
    let by_index = [("sdbox", ":LAYOUT=index", "maildir", ":LAYOUT=index")];
    let pairs: Vec<(String, String, [PathBuf; 2])> = pairs
        .into_iter()
        .chain(by_index)
        .enumerate()
        .map(|(i, (one, options, two, others))| {
            let roots = ["a", "b"].map(|end| world.dir.path().join(format!("{end}{i}")));
            for root in &roots {
                fs::create_dir(root).expect("made");
                world.dovecot.own(root);
            }
            let at =
                |format: &str, root: &Path, options: &str| format!("{format}:{}{options}", root.display());
            (at(one, &roots[0], options), at(two, &roots[1], others), roots)
        })
        .collect();
    for (one, two, _) in &pairs {
        world.dovecot.doveadm(one, &["mailbox", "create", "Work/2024"]);
        for mailbox in ["INBOX", "Work/2024"] {
            world.dovecot.save(one, mailbox, "Subject: one\n\nBody.\n");
        }
        world.sync(&["sync", "--source", one, two]);
    }
    // What changed within two seconds may change again in the same tick of its clock.
    let settle = || std::thread::sleep(std::time::Duration::from_secs(3));
    settle();
    pairs.iter().for_each(|(one, two, _)| world.sync(&["sync", "--source", one, two]));
    let hidden: Vec<(PathBuf, u32)> =
        pairs.iter().flat_map(|(.., roots)| roots).flat_map(|root| hide(&world, root)).collect();
    assert!(hidden.len() > 25, "{hidden:?}");
    settle();
    pairs.iter().for_each(|(one, two, _)| world.sync(&["sync", "--source", one, two]));
    // Were one of them another, it would be read, and cannot be.
    let (one, two, roots) = &pairs[0];
    let touched = world.dovecot.as_user(Path::new("touch")).arg(roots[0].join("cur")).status();
    assert!(touched.expect("touch runs").success());
    let again = ["-c", "/dev/null", "sync", "--source", one, two];
    let again = world.dovecot.as_user(&world.dsync).args(again).output().expect("runs");
    assert!(!again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
    for (path, mode) in hidden {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("set");
    }
}

/// The state of `-s` is Dovecot's own: doveadm goes on from ours, and dsync from doveadm's.
#[test]
fn states_are_interchangeable() {
    if !installed() {
        return;
    }
    let world = World::new();
    let (a, b) = (world.account("a"), world.account("b"));
    sample::write(&a);
    world.dovecot.own(&a.root);
    let (one, two) = (location(&a), location(&b));
    world.dovecot.view(&one);
    let ours = |state: &str| {
        let mut command = world.dovecot.as_user(&world.dsync);
        command.args(["-c", "/dev/null", "sync", "-s", state, "--source", &one, &two]);
        let output = command.output().expect("runs");
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        let printed = String::from_utf8(output.stdout).expect("text");
        printed.trim_end().parse::<dsync_model::SyncState>().expect("a state")
    };
    let theirs = |state: &str| {
        let printed = world.dovecot.doveadm(&one, &["sync", "-s", state, &two]);
        printed.trim_end().parse::<dsync_model::SyncState>().expect("a state")
    };
    let first = ours("");
    assert!(first.0.values().any(|common| common.uid > 0 && common.modseq > 1), "{first:?}");
    let records =
        |state: &dsync_model::SyncState| -> Vec<_> { state.0.iter().map(|(g, c)| (*g, *c)).collect() };
    let dovecots = theirs(&first.to_string());
    assert_eq!(records(&dovecots), records(&first), "doveadm finds nothing to do");
    world.dovecot.save(&one, "INBOX", "Subject: later\n\n");
    let dovecots = theirs(&dovecots.to_string());
    let again = ours(&dovecots.to_string());
    let inbox = |state: &dsync_model::SyncState| state.0.values().map(|c| (c.uid, c.messages)).max();
    assert_eq!(inbox(&again), inbox(&dovecots));
    assert_equal(&world.dovecot.view(&one), &world.dovecot.view(&two), "after both");
}

#[test]
fn a_mirror_repaired_below_uidnext_is_read_by_dovecot() {
    if !installed() {
        return;
    }
    let world = World::new();
    let (a, b) = (world.account("a"), world.account("b"));
    sample::write(&a);
    world.dovecot.own(&a.root);
    let (one, two) = (location(&a), location(&b));
    world.dovecot.view(&one);
    world.sync(&["backup", "--source", &one, &two]);
    world.dovecot.view(&two);
    world.dovecot.doveadm(&two, &["expunge", "mailbox", "INBOX", "uid", "2"]);
    world.dovecot.save(&two, "INBOX", "Subject: foreign\n\n");
    world.sync(&["backup", "--source", &one, &two]);
    let fields = ["-f", "json", "fetch", "uid guid flags date.received text", "mailbox", "INBOX", "all"];
    let [ours, theirs] = [&one, &two].map(|location| comparable(&world.dovecot.doveadm(location, &fields)));
    assert_equal(&ours, &theirs, "the mirror");
}

/// `dsync conf -n` beside `doveconf -n`: the same lines, but for the heading and what Dovecot leaves out as its own default.
#[test]
fn the_configuration_is_printed_as_doveconf_does() {
    if !installed() {
        return;
    }
    let dir = tempfile::tempdir().expect("made");
    let conf = dir.path().join("dovecot.conf");
    let text = "protocols = imap\nmail_location = maildir:~/Maildir\nmail_fsync = never\nssl = required\nssl_cert = </etc/dovecot/dovecot.conf\n\
        ssl_key = </etc/dovecot/dovecot.conf\ndoveadm_password = geheim\ndoveadm_port = 12346\nlisten = 127.0.0.1\nmail_plugins = acl\nmail_plugins = $mail_plugins zlib\n\
        first_valid_uid = 1\nlast_valid_uid = 0\nnamespace inbox {\n  inbox = yes\n  separator = /\n  mailbox Trash {\n    special_use = \\Trash\n    auto = subscribe\n  }\n  \
        mailbox \"Sent Messages\" {\n    special_use = \\Sent\n  }\n}\npassdb {\n  driver = passwd-file\n  args = /etc/x users\n}\n\
        userdb {\n  driver = static\n  args = uid=vmail gid=vmail home=/srv/%u\n}\nuserdb {\n  driver = passwd\n}\nplugin {\n  quota = maildir:User quota\n  mail_replica = tcp:x\n}\n\
        protocol imap {\n  mail_plugins = $mail_plugins imap_zlib\n}\nprotocol doveadm {\n  mail_fsync = always\n}\n\
        service doveadm {\n  inet_listener {\n    port = 12345\n  }\n}\n";
    std::fs::write(&conf, text).expect("written");
    let lines = |program: &Path, words: &[&str]| {
        let output =
            std::process::Command::new(program).args(words).arg("-c").arg(&conf).output().expect("runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).expect("text");
        text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect::<Vec<_>>()
    };
    let dsync = programs().join("dsync");
    assert_eq!(lines(&dsync, &["conf", "-n"]), lines(Path::new("/usr/bin/doveconf"), &["-n"]));
    assert_eq!(lines(&dsync, &["conf", "-h", "-P", "doveadm_password"]), ["geheim"]);
    assert_eq!(
        lines(&dsync, &["conf", "doveadm_password"]),
        ["doveadm_password = # hidden, use -P to show it"]
    );
}

/// UIDLs and the order that a POP3 server once gave travel through every format, and Dovecot's POP3 finds them: the headers of dbox
/// indexes say that they are there.
#[test]
fn pop3_names_and_order_are_kept() {
    if !installed() {
        return;
    }
    let world = World::new();
    let a = world.account("a");
    for n in 1..=3 {
        a.deliver("", &format!("17000000{n}.M{n}P1.host:2,"), format!("Subject: {n}\n\n").as_bytes());
    }
    let line = |n: u32| format!("{n} Pold-{n} O{} :17000000{n}.M{n}P1.host\n", 10 - n);
    let list =
        format!("3 V1700000000 N4 G{}\n{}{}3 :170000003.M3P1.host\n", "0a".repeat(16), line(1), line(2));
    fs::write(a.root.join("dovecot-uidlist"), list).expect("written");
    world.dovecot.own(&a.root);
    let shown = |location: &str| {
        let fields = "uid pop3.uidl pop3.order";
        world.dovecot.doveadm(location, &["-f", "tab", "fetch", fields, "mailbox", "INBOX"])
    };
    let first = shown(&location(&a));
    assert!(first.contains("1\told-1\t9\n2\told-2\t8\n3\t\t"), "{first}");
    let mut before = location(&a);
    for (format, name) in [("sdbox", "b"), ("mdbox", "c"), ("maildir", "d")] {
        let next = format!("{format}:{}", world.dir.path().join("home").join(name).display());
        world.sync(&["backup", "--source", &before, &next]);
        assert_eq!(shown(&next), first, "{format}");
        before = next;
    }
}
