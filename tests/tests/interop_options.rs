//! Sessions with a real Dovecot: attributes, choices of mailboxes and messages, records.

#[path = "interop_options/attributes.rs"]
mod attributes;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use dsync_model::{MailboxGuid, StoreId, UidValidity};
use dsync_session::dovecot::{Brain, Output};
use dsync_session::proto::dovecot::codec::Event;
use dsync_session::proto::dovecot::items::{Handshake, Item};
use dsync_session::proto::{Direction, Options};
use dsync_session::{Job, SessionError};
use dsync_storage::memory::MemoryStorage;
use dsync_tests::dovecot::{assert_equal, installed};
use dsync_tests::installation::{dsync_server, head, is_24, mail_options, program, words};
use dsync_tests::interop::{ALL, World};
use dsync_tests::maildirs::Account;
use dsync_tests::peers::Ends;
use dsync_tests::programs::{AS_ROOT, PASSWORD, Place};

/// Subjects of all messages, sorted.
fn subjects(world: &World, location: &str) -> String {
    let told = world.doveadm(location, "-f|tab|fetch|hdr.subject|all");
    let mut lines: Vec<&str> = told.lines().skip(1).collect();
    lines.sort_unstable();
    lines.join(" ")
}

/// Five messages in two mailboxes, one of them large, one old, one read.
fn filled(world: &World, location: &str) {
    let save = |mailbox: &str, subject: &str, bytes: usize| {
        let text = format!("Subject: {subject}\n\n{}\n", "x".repeat(bytes));
        world.dovecot.save(location, mailbox, &text);
    };
    for mailbox in ["M1", "M2", "Other"] {
        world.doveadm(location, &format!("mailbox|create|{mailbox}"));
        save(mailbox, mailbox, 1);
    }
    save("INBOX", "read", 1);
    save("INBOX", "large", 5000);
    save("INBOX", "plain", 1);
    world.doveadm(location, "flags|add|\\Seen $Kw|mailbox|INBOX|uid|1");
    let (_, path) = location.split_once(':').expect("a location");
    let cur = fs::read_dir(Path::new(path).join("cur")).expect("read").flatten();
    let new = fs::read_dir(Path::new(path).join("new")).expect("read").flatten();
    let plain = cur
        .chain(new)
        .map(|entry| entry.path())
        .find(|path| fs::read_to_string(path).is_ok_and(|text| text.contains("Subject: plain")));
    let day = std::time::UNIX_EPOCH + Duration::from_secs(1_577_836_800);
    let file = fs::File::options().append(true).open(plain.expect("the message")).expect("opened");
    file.set_modified(day).expect("set");
    // A 2.4 remembers when a message came from when it was saved.
    let cache = Path::new(path).join("dovecot.index.cache");
    if cache.exists() {
        fs::remove_file(cache).expect("removed");
    }
}

#[test]
fn filters_keep_back_what_dovecot_would() {
    if !installed() {
        return;
    }
    let world = World::new();
    let a = world.location("maildir", "a");
    filled(&world, &a);
    for (option, expected) in [
        (&["-I", "1000"][..], "M1 M2 Other plain read"),
        (&["-O", "\\Seen"], "read"),
        (&["-O", "-$Kw"], "M1 M2 Other large plain"),
        (&["-t", "2021-01-01"], "M1 M2 Other large read"),
        (&["-e", "2021-01-01"], "plain"),
    ] {
        for ends in ALL {
            // 2.3 sends the value of -t for that of -e, and cannot understand itself.
            let lost = option[0] == "-e" && ends != Ends::WeCall && !is_24();
            for (mode, reverse) in [("backup", false), ("sync", true)] {
                let b = world.location("maildir", &format!("b{}-{ends:?}-{mode}-{reverse}", option.concat()));
                let mut words = vec![mode];
                words.extend((mode == "sync").then_some("-1"));
                words.extend(reverse.then_some("-R"));
                words.extend(option);
                let (left, right) = if reverse { (&b, &a) } else { (&a, &b) };
                if lost {
                    let (status, text) = world.talk(ends, &words, left, right);
                    assert_eq!(status, 75, "{ends:?} {words:?} {text}");
                    continue;
                }
                world.session(ends, &words, left, right, &[0]);
                assert_eq!(subjects(&world, &b), expected, "{ends:?} {words:?}");
            }
        }
    }
    let b = world.location("maildir", "two-ways");
    let (status, text) = world.talk(Ends::WeCall, &["sync", "-I", "1000"], &a, &b);
    assert!(status == 64 && text.contains("take what was kept back for expunged"), "{status} {text}");
    let (status, text) = world.talk(Ends::DovecotCalls, &["sync", "-I", "1000"], &a, &b);
    assert!(status == 75 && text.contains("take what was kept back for expunged"), "{status} {text}");
    let (status, text) = world.talk(Ends::WeCall, &["backup", "-O", "\\Seen", "-O", "$Kw"], &a, &b);
    assert!(status == 64 && text.contains("one -O"), "{status} {text}");
}

#[test]
fn choices_that_dovecot_cannot_be_told_are_made_here() {
    if !installed() {
        return;
    }
    let world = World::new();
    let a = world.location("maildir", "a");
    filled(&world, &a);
    let run = |name: &str, words: &[&str], reverse: bool| {
        let b = world.location("maildir", name);
        let (left, right) = if reverse { (&b, &a) } else { (&a, &b) };
        world.session(Ends::WeCall, words, left, right, &[0]);
        subjects(&world, &b)
    };
    assert_eq!(run("b1", &["sync", "-m", "M1", "-m", "Oth%"], false), "M1 Other");
    assert_eq!(run("b2", &["sync", "-1", "-m", "M*"], false), "M1 M2");
    assert_eq!(run("b3", &["backup", "-R", "-m", "M*"], true), "M1 M2");
    assert_eq!(run("b4", &["backup", "-x", "M?", "-x", "Oth*"], false), "large plain read");
    let b5 = world.location("maildir", "b5");
    let (status, text) = world.talk(Ends::WeCall, &["backup", "-R", "--read-only-source"], &b5, &a);
    assert!(status == 64 && text.contains("cannot be told to write nothing"), "{status} {text}");
    for ends in ALL {
        let b = world.location("maildir", &format!("n-{ends:?}"));
        world.session(ends, &["sync", "-n", ""], &a, &b, &[0]);
        assert_eq!(subjects(&world, &b), subjects(&world, &a), "{ends:?}");
        world.session(ends, &["sync", "-N"], &a, &b, &[0]);
        assert_equal(&world.view(&b), &world.view(&a), &format!("{ends:?} -N"));
    }
    // The others stay as they are also where they were deleted here.
    let b = world.location("maildir", "b5");
    world.session(Ends::WeCall, &["sync"], &a, &b, &[0]);
    world.doveadm(&a, "mailbox|delete|M1");
    world.session(Ends::WeCall, &["sync", "-m", "M2", "-m", "Other"], &a, &b, &[0]);
    assert_eq!(subjects(&world, &b), "M1 M2 Other large plain read");
    let (status, text) = world.talk(Ends::WeCall, &["backup", "-m", "M*"], &a, &b);
    assert!(status == 64 && text.contains("would delete all other mailboxes"), "{status} {text}");
    let (status, text) = world.talk(Ends::WeCall, &["sync", "-m", "Nobody"], &a, &b);
    assert!(status == 68 && text.contains("Nobody"), "{status} {text}");
}

#[test]
fn a_record_is_as_dovecots_own_but_for_mail() {
    if !installed() {
        return;
    }
    let world = World::new();
    let (a, b) = (world.location("maildir", "a"), world.location("maildir", "b"));
    world.fill(&a);
    let home = world.path("home");
    let (ours, theirs) = (home.join("ours"), home.join("theirs"));
    let mut command = world.dovecot.as_user(&world.path("dsync"));
    command.args(["-c", "/dev/null", "-v", "sync", "--protocol", "dovecot", "--source", &a, "-r"]).arg(&ours);
    command.arg(program("doveadm")).arg("-c").arg(world.path("dovecot.conf"));
    command.args(mail_options(&b)).args(dsync_server()).arg("-r").arg(&theirs);
    let output = command.output().expect("runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    // A 2.4 may make an INBOX of its own in an empty Maildir, and has no other in the first run.
    let lost =
        is_24() && output.status.code() == Some(2) && said.contains("INBOX: the other end could not find");
    assert!(output.status.success() || lost, "{said}");
    // Nothing is claimed that was not shown.
    assert!(
        said.contains("compared message by message and merged") && said.contains("none shown equal"),
        "{said}"
    );
    let lines = |path: &Path, way: &str| -> Vec<String> {
        let text = String::from_utf8_lossy(&fs::read(path).expect("read")).into_owned();
        let said = text
            .split('\n')
            .filter_map(|line| line.split_once(' '))
            .filter_map(|(_, said)| said.strip_prefix(way).map(str::to_owned));
        // Mail is in Dovecot's record only; a parting word is heard by whoever is still there.
        let mut in_mail = false;
        let mut kept = Vec::new();
        for line in said {
            in_mail |= line.starts_with('M') && line.ends_with('\t') && !line.starts_with("Mguid\t");
            if !in_mail || line.starts_with('M') {
                kept.push(line.clone());
            }
            in_mail &= line != ".\r" && !line.starts_with("(body");
        }
        kept.retain(|line| !line.starts_with("(body") && line != "X");
        kept
    };
    assert_eq!(lines(&ours, "O: "), lines(&theirs, "I: "));
    let heard = lines(&theirs, "O: ");
    assert_eq!(lines(&ours, "I: "), heard);
    assert!(heard.iter().any(|line| line.starts_with('R')), "{heard:?}");
    let record = fs::read_to_string(&ours).expect("text");
    assert!(record.contains("(body, ") && !record.contains("Subject:"), "{record}");
    for path in [&ours, &theirs] {
        let shown =
            world.dovecot.as_user(&world.path("dsync")).arg("rawlog").arg(path).output().expect("runs");
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        assert!(shown.contains("> H") || shown.contains("< H"), "{shown}");
    }
}

#[test]
fn both_ends_of_ours_can_speak_dovecots_protocol() {
    if !installed() {
        return;
    }
    let world = World::new();
    let a = world.location("maildir", "a");
    world.fill(&a);
    let place = Place::new("");
    let _server = place.serve();
    let words = format!("{AS_ROOT}mail_location = maildir:{}\n", place.path("piped").display());
    fs::write(place.path("piped.conf"), words).expect("written");
    let source = place.path("source");
    assert!(Command::new("cp").arg("-a").arg(world.path("a")).arg(&source).status().expect("runs").success());
    let source = format!("maildir:{}", source.display());
    let server = dsync_tests::programs::programs().join("dsync-server").display().to_string();
    let (conf, tcp) =
        (place.path("piped.conf").display().to_string(), format!("tcp:localhost:{}", place.port));
    let tls = place.tls();
    let pipe = [server.as_str(), "-c", &conf, "--stdio", "-u", "alice"];
    for destination in [&pipe[..], &[tcp.as_str()], &[tls.as_str()]] {
        for mode in [&["sync"][..], &["sync", "-f"], &["backup"]] {
            let mut words = vec![mode[0], "--protocol", "dovecot", "--source", &source];
            words.extend(&mode[1..]);
            words.extend(destination);
            assert_eq!(place.run(&words), (0, String::new()), "{words:?}");
        }
    }
    for copy in ["piped", "server/alice"] {
        let seen = world.path(&copy.replace('/', "-"));
        let copied = Command::new("cp").arg("-a").arg(place.path(copy)).arg(&seen).status();
        assert!(copied.expect("runs").success());
        world.dovecot.own(&seen);
        assert_equal(&world.view(&format!("maildir:{}", seen.display())), &world.view(&a), copy);
    }
}

#[test]
fn a_slave_that_waits_for_our_tree_gets_it() {
    let validity = UidValidity::new(1).expect("is none");
    let storage = MemoryStorage::new(StoreId([1; 16]), MailboxGuid([2; 16]), validity);
    let job = Job { direction: Direction::TwoWay, options: Options::default() };
    let mut brain = Brain::master(Box::new(storage), job, None, "here");
    let said = |brain: &mut Brain| -> Result<String, SessionError> {
        let mut tags = String::new();
        loop {
            match brain.poll()? {
                Output::Item(Item::End) => tags.push('.'),
                Output::Item(item) => tags.push(item.tag()),
                Output::Working => {}
                Output::Idle => return Ok(tags),
                Output::Body(_) | Output::Done(_) => panic!("too far: {tags}"),
            }
        }
    };
    assert_eq!(said(&mut brain).unwrap(), "H");
    brain.handle(Event::Version(5)).unwrap();
    brain.handle(Event::Item(Item::from(Handshake::default()))).unwrap();
    assert_eq!(said(&mut brain).unwrap(), "", "a Dovecot tells its tree first");
    assert!(brain.waits_for_peer());
    brain.go_first();
    let tree = said(&mut brain).unwrap();
    assert!(tree.ends_with(".D"), "{tree}");
    assert!(!brain.waits_for_peer());
    brain.handle(Event::Item(Item::End)).unwrap();
    assert_eq!(said(&mut brain).unwrap(), "", "the tree is told once");
}

/// `doveadm sync -l` and `dsync -l` lock the user in the same place: each waits for the other.
#[test]
fn a_doveadm_that_locks_its_user_and_we_keep_each_other_out() {
    if !installed() {
        return;
    }
    let world = World::new();
    let (a, b, c) =
        (world.location("maildir", "a"), world.location("maildir", "b"), world.location("maildir", "c"));
    let lock = world.path("home/.dovecot-sync.lock");
    let ours = || {
        let mut command = world.dovecot.as_user(&world.path("dsync"));
        command.args(["-c", "/dev/null", "sync", "--source", &a, "-l"]);
        command
    };
    let theirs = || {
        let mut command = world.dovecot.as_user(&program("doveadm"));
        command.arg("-c").arg(world.path("dovecot.conf")).args(mail_options(&a));
        command.args(words(&["sync", "-l"]));
        command
    };
    let said = |command: &mut Command| {
        let output = command.output().expect("runs");
        (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    // A session that stops for some seconds behind the other end's handshake: it holds its locks meanwhile.
    let slow = world.path("slow");
    fs::write(
        &slow,
        format!(
            "#!/bin/sh\n{} -c /dev/null -o mail_location={b} --stdio -u alice | while IFS= read -r line; do\n  printf '%s\\n' \"$line\"\n  case $line in H*) sleep 3;; esac\ndone\n",
            world.path("dsync-server").display()
        ),
    )
    .expect("written");
    fs::set_permissions(&slow, fs::Permissions::from_mode(0o755)).expect("set");
    let slow = slow.display().to_string();
    let held = |command: &mut Command| {
        let child = command.stderr(std::process::Stdio::null()).spawn().expect("starts");
        let begun = std::time::Instant::now();
        while !lock.exists() {
            assert!(begun.elapsed() < Duration::from_secs(20), "nobody takes the lock");
            std::thread::sleep(Duration::from_millis(5));
        }
        child
    };
    // Dovecot has it.
    let mut doveadm = held(theirs().args(["9", &slow]));
    let (status, text) = said(ours().args(["1", &c]));
    assert!(
        status == 75 && text.contains(".dovecot-sync.lock") && text.contains("(doveadm)"),
        "{status} {text}"
    );
    let (status, text) = said(ours().args(["20", &c]));
    assert_eq!((status, text.as_str()), (0, ""));
    assert!(doveadm.wait().expect("ends").success() && !lock.exists());
    // We have it.
    let mut dsync = held(ours().args(["9", "--protocol", "dovecot", &slow, "dsync-server"]));
    let (status, text) = said(theirs().args(["1", &c]));
    assert!(status == 75 && text.contains(".dovecot-sync.lock"), "{status} {text}");
    let (status, text) = said(theirs().args(["20", &c]));
    assert_eq!((status, text.as_str()), (0, ""));
    assert!(dsync.wait().expect("ends").success() && !lock.exists());
}

/// `doveadm -S`, with our server: it runs the command, prints its state and ends with its status.
#[test]
fn a_doveadm_has_our_server_run_its_command() {
    if !installed() {
        return;
    }
    let place = Place::new("first_valid_uid = 0");
    let _server = place.serve();
    let mail = Account::new(place.path("server/alice"));
    mail.deliver("", "1700000001.M1P1.test", b"Subject: x\n\nx\n");
    let conf = place.path("dovecot.conf");
    fs::write(&conf, format!("{}doveadm_password = {PASSWORD}\nssl = no\nlog_path = /dev/stderr\n", head()))
        .expect("written");
    let run = |mode: &str, words: &[&str]| {
        let mut command = Command::new(program("doveadm"));
        // What stands ahead of the command is doveadm's own.
        let (ahead, words) =
            words.split_at(words.iter().take_while(|word| matches!(**word, "-v" | "-D")).count());
        command.arg("-c").arg(&conf).args(ahead);
        command.args([mode, "-S", &format!("127.0.0.1:{}", place.port)]).args(words);
        let output = command.output().expect("runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
    };
    let copy = Account::new(place.path("copy"));
    let to = copy.location();
    let none = (0, String::new(), String::new());
    assert_eq!(run("sync", &["-u", "alice", "-1", "-l", "5", "-x", "Trash", "-t", "2000-01-01", &to]), none);
    assert_eq!(copy.view(), mail.view());
    let (status, state, said) = run("sync", &["-u", "alice", "-s", "", &to]);
    assert!(status == 0 && said.is_empty() && state.trim().len() > 60, "{status} {state:?} {said}");
    let (status, again, _) = run("sync", &["-u", "alice", "-s", state.trim(), &to]);
    assert_eq!((status, again), (0, state));
    // What is said there is heard here, at its level.
    for (words, expected, why) in [
        (&["-u", "bob", to.as_str()][..], 78, ": dsync: bob: "),
        (&["-u", "alice", "-m", "None", &to], 68, ": dsync: alice: "),
        (&["-u", "alice", "-r", "/tmp/x", &to], 77, "-r is not for clients by network"),
        (&["-u", "alice", "ssh", "mx1", "doveadm", "dsync-server"], 77, "not run for clients by network"),
    ] {
        let (status, _, said) = run("backup", words);
        // A 2.4 knows the word for a status or nothing, and there is none for 78.
        let expected = if is_24() && expected == 78 { 255 } else { expected };
        assert_eq!(status, expected, "{words:?}: {said}");
        assert!(said.contains("Error: remote(") && said.contains(why), "{words:?}: {said}");
    }
    let (status, _, said) = run("backup", &["-v", "-u", "alice", &to]);
    assert!(status == 0 && said.contains("Info: remote(") && !said.contains("configuration: "), "{said}");
    let (status, _, said) = run("backup", &["-D", "-u", "alice", &to]);
    assert!(status == 0 && said.contains("Debug: remote(") && said.contains("configuration: "), "{said}");
}
