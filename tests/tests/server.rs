//! `dsync` and `dsync-server` over TLS, TCP and stdio; wrong passwords, strange peers, limits, signals, kills.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use dsync_tests::maildirs::Account;
use dsync_tests::programs::{Place, certificates, free_port, programs};

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
fn strange_peers_are_turned_away_and_the_server_lives() {
    let place = Place::new("");
    let server = place.serve();
    let mail = account(&place, 3);
    let long = vec![b'x'; 1 << 20];
    let mut huge = b"dsync\x00\x01\n".to_vec();
    huge.extend_from_slice(b"\xff\xff\xff\xff\xff\xff");
    let strange: &[&[u8]] = &[
        b"GET / HTTP/1.1\r\n\r\n",
        b"VERSION\tdoveadm-server\t1\t2\n",
        b"\x16\x03\x01\xff\xff garbage that is no TLS at all",
        b"dsync\x00\x01\n\x00",
        b"",
        b"\x00\x01\x02",
        &huge,
        &long,
    ];
    for bytes in strange {
        let mut stream = TcpStream::connect(("127.0.0.1", place.port)).expect("connects");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("set");
        // The server may hang up while we still talk.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        if bytes.starts_with(b"GET") {
            assert!(answer.starts_with(b"HTTP/1.0 400"), "{answer:?}");
        }
    }
    let (status, text) = place.run(&["backup", "--source", &source(&mail), &place.tls()]);
    assert_eq!((status, text.as_str()), (0, ""));
    server.wait_for("status=0");
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
fn a_client_certificate_opens_its_users_mail_only() {
    let certs = certificates();
    let place = Place::new(&format!("ssl_ca = <{}/ca.pem", certs.display()));
    let _server = place.serve();
    let mail = account(&place, 3);
    let (cert, key) = (
        format!("ssl_client_cert=<{}/client.pem", certs.display()),
        format!("ssl_client_key=<{}/client.key", certs.display()),
    );
    let run = |user: &str| {
        place.run(&[
            "-o",
            "doveadm_password=",
            "-o",
            &cert,
            "-o",
            &key,
            "backup",
            "-u",
            user,
            "--source",
            &source(&mail),
            &place.tls(),
        ])
    };
    assert_eq!(run("alice"), (0, String::new()));
    let (status, text) = run("bob");
    assert!(status == 77 && text.contains("certificate is not for this user"), "{status} {text}");
}

#[test]
fn hashed_passwords_are_checked() {
    let mut child = Command::new(programs().join("dsync"))
        .arg("hash-password")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("starts");
    child.stdin.take().expect("piped").write_all(b"a secret for tests\n").expect("written");
    let output = child.wait_with_output().expect("ends");
    let hash = String::from_utf8(output.stdout).expect("text");
    assert!(hash.starts_with("{ARGON2ID}$argon2id$"), "{hash}");
    let place = Place::new(&format!("doveadm_password = {hash}"));
    let _server = place.serve();
    let mail = account(&place, 3);
    assert_eq!(place.run(&["backup", "--source", &source(&mail), &place.tls()]), (0, String::new()));
    let (status, _) =
        place.run(&["-o", "doveadm_password=no", "backup", "--source", &source(&mail), &place.tls()]);
    assert_eq!(status, 77);
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

#[test]
fn term_ends_an_idle_server_at_once() {
    let place = Place::new("");
    let mut server = place.serve();
    server.signal("TERM");
    server.wait_for("stopping");
    assert!(server.child.wait().expect("ends").success());
}

/// The ends killed in turn in the middle of a first sync over TLS, each time when a few more files are there, several times before a run may finish: then every message is there once.
#[test]
fn kills_lose_nothing_and_double_nothing() {
    const ROUNDS: usize = 8;
    const KILLS: usize = 4;
    const MESSAGES: u32 = 400;
    // Who is killed leaves all that was written: nothing need reach the disk itself.
    let place = Place::new("mail_fsync = never");
    let mail = account(&place, MESSAGES);
    let view = mail.view();
    let mut interrupted = 0;
    for round in 0..ROUNDS {
        let mut server = place.serve();
        for kill in 0..KILLS {
            let mut client = place
                .dsync(&["backup", "--source", &source(&mail), &place.tls()])
                .stderr(std::process::Stdio::null())
                .spawn()
                .expect("starts");
            let enough = MESSAGES as usize * (kill * ROUNDS + round) / (KILLS * ROUNDS);
            let runs = loop {
                let runs = client.try_wait().expect("asked").is_none();
                if !runs || files_under(&place.path("server")) >= enough {
                    break runs;
                }
            };
            interrupted += usize::from(runs);
            if (round + kill) % 2 == 0 {
                client.kill().expect("killed");
                client.wait().expect("ends");
            } else {
                server.child.kill().expect("killed");
                server.child.wait().expect("ends");
                let _ = client.wait();
                server = place.serve();
            }
        }
        let (status, text) = place.run(&["backup", "--source", &source(&mail), &place.tls()]);
        assert_eq!((status, text.as_str()), (0, ""), "round {round}");
        drop(server);
        let copy = Account::new(place.path("server/alice"));
        assert_eq!(view, copy.view(), "round {round}");
        let (again, _) = place.run(&["sync", "--source", &source(&mail), &source(&copy)]);
        assert_eq!(again, 0);
        std::fs::remove_dir_all(place.path("server")).expect("removed");
    }
    assert!(interrupted >= ROUNDS, "only {interrupted} sessions were interrupted");
}

/// How many files there are in `directory` and below; what goes away meanwhile does not count.
fn files_under(directory: &Path) -> usize {
    std::fs::read_dir(directory).map_or(0, |entries| {
        entries
            .flatten()
            .map(|entry| match entry.file_type() {
                Ok(kind) if kind.is_dir() => files_under(&entry.path()),
                _ => 1,
            })
            .sum()
    })
}

#[test]
fn a_flood_is_held_off_and_the_server_lives() {
    let place = Place::new("dsync_max_connections_per_ip = 5");
    let server = place.serve();
    let mail = account(&place, 3);
    let flood: Vec<TcpStream> =
        (0..40).map(|_| TcpStream::connect(("127.0.0.1", place.port)).expect("connects")).collect();
    server.wait_for("dsync_max_connections_per_ip is reached");
    let (status, _) = place.run(&["backup", "--source", &source(&mail), &place.tls()]);
    assert!(status == 75 || status == 76, "{status}");
    drop(flood);
    let mut last = (1, String::new());
    for _ in 0..50 {
        // The server notices in its own time that they are gone.
        last = place.run(&["backup", "--source", &source(&mail), &place.tls()]);
        if last.0 == 0 {
            break;
        }
    }
    assert_eq!(last, (0, String::new()));
}

#[test]
fn an_expired_certificate_is_refused() {
    let place = Place::new("");
    let ca_key = rcgen::KeyPair::generate().expect("made");
    let mut ca = rcgen::CertificateParams::new(Vec::<String>::new()).expect("made");
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_cert = ca.self_signed(&ca_key).expect("made");
    let key = rcgen::KeyPair::generate().expect("made");
    let mut leaf = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).expect("made");
    leaf.not_before = rcgen::date_time_ymd(2020, 1, 1);
    leaf.not_after = rcgen::date_time_ymd(2021, 1, 1);
    let leaf = leaf.signed_by(&key, &rcgen::Issuer::new(ca, ca_key)).expect("made");
    for (name, text) in
        [("ca.pem", ca_cert.pem()), ("server.pem", leaf.pem()), ("server.key", key.serialize_pem())]
    {
        std::fs::write(place.path(name), text).expect("written");
    }
    let dir = place.dir.path().display();
    let conf = std::fs::read_to_string(place.path("server.conf")).expect("read");
    let conf = format!("{conf}ssl_cert = <{dir}/server.pem\nssl_key = <{dir}/server.key\n");
    std::fs::write(place.path("server.conf"), conf).expect("written");
    let _server = place.serve();
    let mail = account(&place, 1);
    let ca = format!("ssl_client_ca_file={dir}/ca.pem");
    let (status, text) = place.run(&["-o", &ca, "backup", "--source", &source(&mail), &place.tls()]);
    assert!(status == 77 && text.to_lowercase().contains("expired"), "{status} {text}");
}

/// Signals bring both programs to a safe point: a clear line, a status, and the next run goes on.
#[test]
fn signals_end_a_sync_at_a_safe_point() {
    for victim in ["server", "client"] {
        let place = Place::new("");
        let mail = account(&place, 3000);
        let server = place.serve();
        let client = place
            .dsync(&["backup", "--source", &source(&mail), &place.tls()])
            .stderr(std::process::Stdio::piped())
            .spawn()
            .expect("starts");
        let copy = place.path("server/alice/tmp");
        // As soon as messages arrive, the middle is reached.
        let mut arriving = false;
        for _ in 0..5000 {
            arriving = std::fs::read_dir(&copy).is_ok_and(|mut entries| entries.next().is_some());
            if arriving {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(arriving, "nothing ever arrives");
        if victim == "server" {
            server.signal("TERM");
        } else {
            assert!(
                Command::new("kill")
                    .args(["-INT", &client.id().to_string()])
                    .status()
                    .expect("runs")
                    .success()
            );
        }
        let output = client.wait_with_output().expect("ends");
        let text = String::from_utf8_lossy(&output.stderr);
        let stopped = output.status.code() == Some(75) && text.contains("stopped");
        assert!(output.status.success() || stopped, "{victim}: {:?} {text}", output.status);
        drop(server);
        let _server = place.serve();
        assert_eq!(
            place.run(&["backup", "--source", &source(&mail), &place.tls()]),
            (0, String::new()),
            "{victim}"
        );
        assert_eq!(mail.view(), Account::new(place.path("server/alice")).view());
    }
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
