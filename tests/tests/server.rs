//! `dsync` and `dsync-server` over TLS, TCP and stdio; wrong passwords, strange peers, limits, signals, kills.

#[path = "server/admission.rs"]
mod admission;
#[path = "server/stopping.rs"]
mod stopping;

use std::io::{Read, Write};
use std::path::Path;
use std::process::Command;

use dsync_tests::maildirs::Account;
use dsync_tests::programs::{Place, free_port, programs};

fn account(place: &Place, messages: u32) -> Account {
    let account = Account::new(place.path("mail"));
    for n in 0..messages {
        let folder = ["", "Lists.Rust", "Entw&APw-rfe"][n as usize % 3];
        let body =
            format!("Subject: message {n}\nMessage-ID: <{n}@test>\n\n{}\n", "text ".repeat(n as usize % 500));
        let flags = ["", ":2,S", ":2,FS"][n as usize % 3];
        account.deliver(folder, &format!("17000{n:05}.M{n}P1.test{flags}"), body.as_bytes());
    }
    account
}

fn source(account: &Account) -> String {
    format!("maildir:{}", account.root.display())
}

#[test]
fn a_backup_over_tls_and_back_shows_no_difference() {
    let place = Place::new("");
    let server = place.serve();
    let mail = account(&place, 60);
    let (status, text) = place.run(&["backup", "--source", &source(&mail), &place.tls()]);
    assert_eq!((status, text.as_str()), (0, ""));
    let line = server.wait_for("sync user=alice");
    assert!(
        line.contains("mailboxes=3") && line.contains("received=60") && line.contains("status=0"),
        "{line}"
    );
    assert_eq!(mail.view(), Account::new(place.path("server/alice")).view());
    let third = Account::new(place.path("third"));
    let (status, text) =
        place.run(&["backup", "-R", "--compress", "yes", "--source", &source(&third), &place.tls()]);
    assert_eq!((status, text.as_str()), (0, ""));
    assert_eq!(mail.view(), third.view());
    // Plain TCP on loopback, two ways, with changes on both ends.
    mail.deliver("", "1800000001.M1P1.test", b"new here");
    Account::new(place.path("server/alice")).deliver("", "1800000002.M1P1.test", b"new there");
    let tcp = format!("tcp:127.0.0.1:{}", place.port);
    let (status, text) = place.run(&["sync", "--source", &source(&mail), &tcp]);
    assert_eq!((status, text.as_str()), (0, ""));
    let view = mail.view();
    assert_eq!(view, Account::new(place.path("server/alice")).view());
    assert!(view["INBOX"].join("").contains("new there"));
}

#[test]
fn stdio_serves_the_one_user_it_was_started_for() {
    let place = Place::new("");
    let mail = account(&place, 20);
    let server = programs().join("dsync-server").display().to_string();
    let conf = place.path("server.conf").display().to_string();
    let words = |user: &'static str| {
        ["backup", "--source"]
            .map(str::to_owned)
            .into_iter()
            .chain([
                source(&mail),
                server.clone(),
                "-c".into(),
                conf.clone(),
                "--stdio".into(),
                format!("-u{user}"),
            ])
            .collect::<Vec<_>>()
    };
    let run = |words: Vec<String>| place.run(&words.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(run(words("alice")), (0, String::new()));
    assert_eq!(mail.view(), Account::new(place.path("server/alice")).view());
    let (status, text) = run(words("bob"));
    assert!(status == 77 && text.contains("started for another user"), "{status} {text}");
}

#[test]
fn what_is_wrong_is_said_in_one_line_with_its_status() {
    let place = Place::new("userdb {\n  driver = passwd-file\n  args = %PLACE%/users\n}\n");
    let users = place.path("users");
    std::fs::write(&users, "alice:{PLAIN}x:::::\n").expect("written");
    let conf = std::fs::read_to_string(place.path("server.conf")).expect("read");
    std::fs::write(
        place.path("server.conf"),
        conf.replace("%PLACE%", &place.dir.path().display().to_string()),
    )
    .expect("written");
    let _server = place.serve();
    let mail = source(&account(&place, 3));
    let other_ca = rcgen::generate_simple_self_signed(["other".to_owned()]).expect("made").cert.pem();
    std::fs::write(place.path("other.pem"), other_ca).expect("written");
    let (tls, closed) = (place.tls(), format!("tcps:localhost:{}", free_port()));
    let wrong_ca = format!("ssl_client_ca_file={}", place.path("other.pem").display());
    let numbers = format!("tcps:127.0.0.2:{}", place.port);
    let cases: &[(&[&str], i32, &str)] = &[
        (
            &["-o", "doveadm_password=wrong", "sync", "--source", &mail, &tls],
            77,
            "wrong user name or password",
        ),
        (&["-o", "doveadm_password=", "sync", "--source", &mail, &tls], 77, "a password is needed"),
        (&["sync", "-u", "nobody-here", "--source", &mail, &tls], 67, "nobody-here"),
        (&["sync", "-u", "../alice", "--source", &mail, &tls], 67, "../alice"),
        (&["-o", &wrong_ca, "sync", "--source", &mail, &tls], 77, "UnknownIssuer"),
        (&["sync", "--source", &mail, &closed], 75, "Connection refused"),
        (&["sync", "--source", &mail, &numbers], 75, "Connection refused"),
        (&["sync", "--source", &mail, "tcps:no-such-host.invalid"], 75, "cannot find the host"),
        (&["sync", "--source", &mail, "tcp:-oProxyCommand=x"], 64, "no host"),
        (&["backup", "--source", "maildir:/no/such/mail", &tls], 78, "the source does not exist"),
        (&["sync", "--source", &mail, "imapc:/x"], 78, "not supported"),
        (&["sync", "--source", &mail, "/no/such/program", "x"], 75, "cannot run"),
        (&["sync", "--source", &mail, "false", "x"], 75, "remote command ended"),
        (&["sync", "--source", &mail, &mail], 75, "same store"),
        (
            &["-o", "doveadm_password={ARGON2ID}$argon2id$x", "sync", "--source", &mail, &tls],
            78,
            "needs the password itself",
        ),
        (&["sync"], 64, "DESTINATION"),
        (&["sink", "x"], 64, "sink"),
    ];
    for (arguments, expected, says) in cases {
        let (status, text) = place.run(arguments);
        assert!(status == *expected && text.contains(says), "{arguments:?}: {status} {text}");
        assert!(!text.contains("a secret for tests"), "{text}");
        assert!(*expected == 64 || text.trim_end().lines().count() == 1, "{arguments:?}: {text}");
    }
}

#[test]
fn a_peer_that_is_not_dsync_is_named() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("listens");
    let port = listener.local_addr().expect("known").port();
    let place = Place::new("");
    let mail = source(&account(&place, 1));
    for (answer, says) in [
        (&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], "HTTP"),
        (b"VERSION\tx\t1\n", "Dovecot"),
        (b"220 smtp\r\n", "not dsync"),
    ] {
        let listener = listener.try_clone().expect("cloned");
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("accepts");
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(answer);
        });
        let (status, text) = place.run(&["sync", "--source", &mail, &format!("tcp:127.0.0.1:{port}")]);
        assert!(status == 76 && text.contains(says), "{status} {text}");
        thread.join().expect("ends");
    }
}

#[test]
fn a_taken_port_names_its_holder() {
    let place = Place::new("");
    let _server = place.serve();
    let output = Command::new(programs().join("dsync-server"))
        .arg("-c")
        .arg(place.path("server.conf"))
        .output()
        .expect("runs");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.code() == Some(75) && text.contains("held by dsync-server, pid"),
        "{:?} {text}",
        output.status
    );
}

/// `-S`: the server runs the command with its own settings, and what it prints, says and ends with comes back.
#[test]
fn a_server_runs_the_command_for_us() {
    let place = Place::new(
        "base_dir = %PLACE%\nfirst_valid_uid = 0\nservice doveadm {\n unix_listener doveadm-server {\n mode = 0600\n }\n}\n",
    );
    let dir = place.dir.path().display().to_string();
    let conf = std::fs::read_to_string(place.path("server.conf")).expect("read");
    std::fs::write(place.path("server.conf"), conf.replace("%PLACE%", &dir)).expect("written");
    let server = place.serve();
    let mail = Account::new(place.path("server/alice"));
    mail.deliver("", "1700000001.M1P1.test", b"Subject: x\n\nx\n");
    let run = |words: &[&str]| {
        let output = place.dsync(words).output().expect("runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let (socket, port) = (format!("{dir}/doveadm-server"), format!("127.0.0.1:{}", place.port));
    let tls = format!("tcps:localhost:{}", place.port);
    // By each way, with the state on stdout and the lines of -v on stderr.
    for (at, way) in [&socket, &port, &tls].into_iter().enumerate() {
        let copy = place.path(&format!("copy{at}"));
        let to = format!("maildir:{}", copy.display());
        let (status, printed, said) = run(&["-v", "backup", "-S", way, "-s", "", &to]);
        assert_eq!(status, Some(0), "{way}: {said}");
        assert!(printed.trim().len() > 60 && printed.trim().lines().count() == 1, "{printed:?}");
        assert!(said.contains("1 of 1 mailboxes shown equal"), "{said}");
        assert_eq!(Account::new(&copy).view(), mail.view());
        let line = server.wait_for("command user=alice");
        assert!(line.contains("status=0"), "{line}");
        // A state is as long as a word may be: here one that says nothing true.
        let long = "A".repeat(120_000);
        let (status, _, said) = run(&["backup", "-S", way, "-s", &long, &to]);
        assert!(status == Some(0) && said.contains("-s: the state"), "{way}: {status:?} {said}");
        // What it says of a failure, and its status.
        let (status, _, said) = run(&["backup", "-S", way, "-u", "bob", &to]);
        assert!(
            status == Some(78) && said.contains("bob: ") && said.contains("source does not exist"),
            "{status:?} {said}"
        );
    }
    // A program as destination is for those who could run it themselves.
    let program = programs().join("dsync-server").display().to_string();
    let elsewhere = format!("mail_location=maildir:{dir}/elsewhere");
    let destination = [
        program.as_str(),
        "-o",
        "first_valid_uid=0",
        "-o",
        &elsewhere,
        "-c",
        "/dev/null",
        "--stdio",
        "-ualice",
    ];
    let (status, _, said) = run(&[&["backup", "-S", &socket], &destination[..]].concat());
    assert_eq!(status, Some(0), "{said}");
    assert_eq!(Account::new(place.path("elsewhere")).view(), mail.view());
    let touch = place.path("touched").display().to_string();
    let own = place.path("client.conf").display().to_string();
    for words in [
        &["/usr/bin/touch", &touch][..],
        &["/usr/bin/touch"],
        &["touch x"],
        &["remote:mx1"],
        &["-r", &touch, "maildir:/x"],
        &["-F", "/etc/passwd", "maildir:/%u"],
        &["--resume", &touch, "-A", "maildir:/%u"],
        &["-o", "mail_location=maildir:/x", "maildir:/y"],
        &["-c", &own, "maildir:/y"],
        &["-p", "a=b", "maildir:/y"],
    ] {
        let (status, printed, said) = run(&[&["backup", "-S", &port], words].concat());
        assert_eq!((status, printed.as_str()), (Some(77), ""), "{words:?}: {said}");
        assert!(said.contains("for clients by network"), "{said}");
    }
    assert!(!place.path("touched").exists());
    let (status, _, said) = run(&["-o", "doveadm_password=wrong", "backup", "-S", &port, "maildir:/x"]);
    assert!(status == Some(77) && said.contains("doveadm_password is wrong"), "{status:?} {said}");
    let (status, _, said) = run(&["backup", "-S", "/no/such/socket", "maildir:/x"]);
    assert!(status == Some(75) && said.contains("/no/such/socket"), "{status:?} {said}");
    let (status, _, said) = run(&["-o", "x=y", "verify", "-S", &socket, "maildir:/x"]);
    assert!(status == Some(64), "{status:?} {said}");
    // A socket of a server that is gone is no obstacle, one in use is left alone.
    let other = place.path("server.conf");
    let text = std::fs::read_to_string(&other).expect("read");
    let second = free_port();
    std::fs::write(
        &other,
        text.replace(&format!("doveadm_port = {}", place.port), &format!("doveadm_port = {second}")),
    )
    .expect("written");
    let beside = place.serve();
    let (status, _, said) = run(&["backup", "-S", &socket, &format!("maildir:{dir}/copy3")]);
    assert_eq!(status, Some(0), "{said}");
    server.wait_for("command user=alice");
    drop((server, beside));
    let _again = place.serve();
    let (status, _, said) = run(&["backup", "-S", &socket, &format!("maildir:{dir}/copy3")]);
    assert_eq!(status, Some(0), "{said}");
}

/// What the other end refuses, or cannot do, has the status here that it has there: by network and by a command alike.
#[test]
fn what_the_other_end_cannot_do_has_its_status_here() {
    let users = "userdb {\n driver = passwd-file\n args = /dev/null\n}\n";
    let all_prefixed = "namespace inbox {\n inbox = yes\n prefix = Mail/\n separator = /\n}\n";
    let none_keeps =
        "namespace inbox {\n inbox = yes\n prefix = Mail/\n separator = /\n subscriptions = no\n}\n";
    let nothing: fn(&Path) = |_| {};
    let odd_name: fn(&Path) = |mail| std::fs::create_dir_all(mail.join(".A..B/cur")).expect("made");
    let cases = [
        (65, "mail_crypt", "mail_plugins = mail_crypt\n", &["sync"][..], nothing),
        (65, "no namespace keeps its subscription", none_keeps, &["sync"], nothing),
        (65, "no valid name of a mailbox", "", &["sync"], odd_name),
        (67, "unknown user", users, &["sync"], nothing),
        (68, "Other", all_prefixed, &["sync", "-n", "Other/"], nothing),
        (77, "--allow-mass-delete", "", &["backup", "-R"], nothing),
        (78, "unknown format", "mail_location = strange:/x\n", &["sync"], nothing),
        (78, "home", "mail_location = maildir:~/Maildir\n", &["sync"], nothing),
    ];
    let server = programs().join("dsync-server").display().to_string();
    for (status, says, settings, words, prepare) in cases {
        let place = Place::new(settings);
        let mail = account(&place, 3);
        let subscriptions = "V\t2\n\nINBOX\nLists\tRust\n";
        std::fs::write(mail.root.join("subscriptions"), subscriptions).expect("written");
        let there = place.path("server/alice");
        std::fs::create_dir_all(there.join("cur")).expect("made");
        prepare(&there);
        let running = place.serve();
        let conf = place.path("server.conf").display().to_string();
        let (source, tls) = (source(&mail), place.tls());
        let ways = [vec![tls.as_str()], vec![server.as_str(), "-c", &conf, "-u", "alice"]];
        for way in ways {
            let words = [words, &["--source", &source][..], &way].concat();
            let (found, text) = place.run(&words);
            assert_eq!(found, status, "{says}: {words:?}: {text}");
            assert!(text.contains(says), "{words:?}: {text}");
        }
        let subscribed = std::fs::read_to_string(mail.root.join("subscriptions")).expect("read");
        assert_eq!(subscribed, subscriptions, "{says}");
        assert!(running.wait_for("user=alice").contains(&format!("status={status}")), "{says}");
    }
    // What a command cannot even begin with.
    let place = Place::new("");
    let source = source(&account(&place, 1));
    let conf = place.path("no.conf").display().to_string();
    for (status, words) in
        [(64, &["--no-such-option"][..]), (78, &["-c", &conf, "-u", "alice"]), (67, &["-u", "a/b"])]
    {
        let words = [&["sync", "--source", &source, &server][..], words].concat();
        let (found, text) = place.run(&words);
        assert_eq!(found, status, "{words:?}: {text}");
    }
}

/// A rename that the other end cannot do is not taken for one that its user took back.
#[test]
fn a_rename_that_cannot_be_done_is_tried_again() {
    let place = Place::new("");
    let dir = place.dir.path().display().to_string();
    let namespaces = |archive: &str| {
        format!(
            "namespace inbox {{\n inbox = yes\n separator = /\n}}\nnamespace archive {{\n prefix = Archive/\n separator = /\n \
             location = {archive}:{dir}/archive-{archive}\n}}\n"
        )
    };
    let conf = std::fs::read_to_string(place.path("server.conf")).expect("read");
    let mail = account(&place, 6);
    std::fs::rename(mail.root.join(".Lists.Rust"), mail.root.join(".Work")).expect("moved");
    let there = Account::new(place.path("server/alice"));
    let server = programs().join("dsync-server").display().to_string();
    let path = place.path("server.conf").display().to_string();
    let sync = |archive: &str| {
        std::fs::write(place.path("server.conf"), format!("{conf}{}", namespaces(archive))).expect("written");
        let source = source(&mail);
        place.run(&["sync", "-N", "--source", &source, &server, "-c", &path, "-u", "alice"])
    };
    assert_eq!(sync("mbox"), (0, String::new()));
    std::fs::rename(mail.root.join(".Work"), mail.root.join(".Archive.Work")).expect("moved");
    for _ in 0..3 {
        let (status, text) = sync("mbox");
        assert!(status == 65 && text.contains("mbox keeps no GUIDs"), "{status} {text}");
        assert!(mail.view().contains_key("Archive/Work") && !mail.view().contains_key("Work"));
        assert_eq!(there.view()["Work"].len(), 3);
    }
    assert_eq!(sync("maildir"), (0, String::new()));
    assert!(!there.view().contains_key("Work"));
    let archive = Account::new(place.path("archive-maildir"));
    assert_eq!(archive.view()["Work"], mail.view()["Archive/Work"]);
}
