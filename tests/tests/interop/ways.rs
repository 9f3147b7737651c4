//! The ways between two ends: TCP, TLS, ssh and a Unix socket, in both roles; who may come that way, and what is refused.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Output};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use dsync_tests::dovecot::{Service, assert_equal, installed};
use dsync_tests::installation::{is_24, mail_options, program, words};
use dsync_tests::interop::World;
use dsync_tests::programs::{PASSWORD, Place, certificates};
use dsync_tests::sshd::Sshd;

#[test]
fn by_tcp_and_tls_in_both_roles() {
    if !installed() {
        return;
    }
    let world = World::new();
    let (a, b) = (world.location("maildir", "a"), world.location("sdbox", "b"));
    world.fill(&a);
    let service = Service::start(&world.dovecot, world.dir.path(), &b, PASSWORD);
    let client = world.path("client.conf");
    fs::write(
        &client,
        format!("doveadm_password = {PASSWORD}\nssl_client_ca_file = {}\n", service.ca().display()),
    )
    .expect("written");
    let call = |conf: &Path, user: &str, destination: &str| {
        let mut command = world.dovecot.as_user(&world.path("dsync"));
        command.arg("-c").arg(conf).args(["sync", "-u", user, "--source", &a, destination]);
        let Output { status, stderr, .. } = command.output().expect("runs");
        (status.code().unwrap_or(-1), String::from_utf8_lossy(&stderr).into_owned())
    };
    assert_eq!(call(&client, "alice", &service.tcp()), (0, String::new()));
    assert_eq!(world.content(&b), world.content(&a));
    world.dovecot.save(&b, "INBOX", "Subject: by TLS\n\nx\n");
    assert_eq!(call(&client, "alice", &service.tls()), (0, String::new()));
    assert_equal(&world.view(&b), &world.view(&a), "by TLS");
    // It runs a command for us, and what it says of it is heard here.
    let c = world.location("maildir", "c");
    let run_there = |user: &str| {
        let mut command = world.dovecot.as_user(&world.path("dsync"));
        command.arg("-c").arg(&client).args(["sync", "-S", &service.tcp(), "-u", user, &c]);
        let Output { status, stderr, .. } = command.output().expect("runs");
        (status.code().unwrap_or(-1), String::from_utf8_lossy(&stderr).into_owned())
    };
    let (status, text) = run_there("alice");
    // Two Dovecots: a 2.4 makes its own INBOX in the empty Maildir, and if that has the higher GUID asks for another run.
    if (status, is_24()) != (2, true) {
        assert_eq!((status, text), (0, String::new()));
    }
    assert_eq!(run_there("alice"), (0, String::new()));
    assert_eq!(world.content(&c), world.content(&b));
    let (status, text) = run_there("nobody-here");
    assert!(status == 67 && text.contains("User doesn't exist"), "{status} {text}");
    // What goes wrong is told, and Dovecot's log with it.
    let (status, text) = call(&client, "nobody-here", &service.tcp());
    assert!(status == 67 && text.contains("User doesn't exist"), "{status} {text}");
    fs::write(&client, "doveadm_password = wrong\n").expect("written");
    let (status, text) = call(&client, "alice", &service.tcp());
    assert!(status == 77 && text.contains("password"), "{status} {text}");
    fs::write(&client, "").expect("written");
    let (status, text) = call(&client, "alice", &service.tcp());
    assert!(status == 77 && text.contains("set doveadm_password"), "{status} {text}");
    let log = service.log();
    let ours = |line: &&str| line.contains("nobody-here") || line.contains("wrong password");
    let bad = ["Error:", "Warning:", "Panic:", "Fatal:"];
    let complaint =
        log.lines().filter(|line| !ours(line)).find(|line| bad.iter().any(|bad| line.contains(bad)));
    assert_eq!(complaint, None, "{log}");
}

#[test]
fn dovecot_calls_our_server_by_tcp_and_tls() {
    if !installed() {
        return;
    }
    let world = World::new();
    let a = world.location("maildir", "a");
    world.fill(&a);
    let place = Place::new("");
    let _server = place.serve();
    let ca = world.path("ca.pem");
    fs::copy(certificates().join("ca.pem"), &ca).expect("copied");
    let call_for = |user: &str, destination: &str, password: &str| {
        let mut command = world.dovecot.as_user(&program("doveadm"));
        let option = |name: &str, value: &str| ["-o".to_owned(), format!("{name}={value}")];
        command.arg("-c").arg(world.path("dovecot.conf")).args(mail_options(&a));
        command.args(option("doveadm_password", password)).args(option("ssl", "yes"));
        command.args(option("ssl_client_ca_file", &ca.display().to_string()));
        command.args(words(&["sync", destination])).env("USER", user);
        let Output { status, stderr, .. } = command.output().expect("runs");
        (status.code().unwrap_or(-1), String::from_utf8_lossy(&stderr).into_owned())
    };
    let call = |destination: &str, password: &str| call_for("alice", destination, password);
    let there = format!("maildir:{}", place.path("server/alice").display());
    let (plain, tls) = (format!("tcp:localhost:{}", place.port), format!("tcps:localhost:{}", place.port));
    assert_eq!(call(&plain, PASSWORD), (0, String::new()));
    let ours = || {
        // The server's files are its own: looked at in a copy.
        let copy = world.path("looked-at");
        let _ = fs::remove_dir_all(&copy);
        let copied = Command::new("cp").arg("-a").arg(place.path("server/alice")).arg(&copy).status();
        assert!(copied.expect("cp runs").success());
        world.dovecot.own(&copy);
        world.content(&format!("maildir:{}", copy.display()))
    };
    assert_eq!(ours(), world.content(&a), "{there}");
    world.dovecot.save(&a, "INBOX", "Subject: by TLS\n\nx\n");
    assert_eq!(call(&tls, PASSWORD), (0, String::new()));
    assert!(ours().contains("by TLS"));
    let (status, text) = call(&plain, "wrong");
    assert!(status == 75 && text.contains("authenticat"), "{status} {text}");
    // Why a user is refused comes by the channel of the log.
    let (status, text) = call_for("no/user", &plain, PASSWORD);
    assert!(status == 67 && text.contains("Error: remote(localhost:"), "{status} {text}");
    // Other commands are refused with their status code, the last line of the reply.
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", place.port)).expect("connects");
    let secret = BASE64.encode(format!("\0doveadm\0{PASSWORD}"));
    let words = format!("VERSION\tdoveadm-server\t1\t0\nPLAIN\t{secret}\n\talice\tmailbox list\n");
    stream.write_all(words.as_bytes()).expect("sent");
    let mut reply = String::new();
    stream.read_to_string(&mut reply).expect("read");
    assert_eq!(reply, "-\n+\n\n-NOPERM\n");
}

#[test]
fn by_ssh_in_both_roles() {
    if !installed() {
        return;
    }
    let world = World::new();
    let (a, b) = (world.location("maildir", "a"), world.location("sdbox", "b"));
    let Some(sshd) = Sshd::start(&world.dovecot, world.dir.path()) else { return };
    let namespace = "namespace inbox {\n  inbox = yes\n  separator = /\n}\n";
    let conf = |name: &str, text: String| {
        let path = world.path(name);
        fs::write(&path, text + namespace).expect("written");
        path.display().to_string()
    };
    // What a login shell finds there: the programs, with their configuration.
    let home = world.path("home");
    let userdb =
        format!("mail_location = {b}\nuserdb {{\n  driver = static\n  args = home={}\n}}\n", home.display());
    let server = conf("server.conf", userdb);
    // doveadm -u asks an auth service who that is.
    let service = Service::start(&world.dovecot, world.dir.path(), &b, PASSWORD);
    sshd.program("dsync-server", &world.path("dsync-server"), &["-c", &server]);
    sshd.program("doveadm", &program("doveadm"), &["-c", &service.conf().display().to_string()]);
    let ssh = format!("ssh -F {} there", sshd.client_conf().display());
    let client = conf(
        "client.conf",
        format!(
            "dsync_remote_cmd = ssh -F {} %{{host}} dsync-server --stdio -u%u\n",
            sshd.client_conf().display()
        ),
    );
    let run = |program: &Path, conf: &str, words: &str| {
        let mut command = world.dovecot.as_user(program);
        command.arg("-c").arg(conf).args(words.split(' '));
        let Output { status, stderr, .. } = command.output().expect("runs");
        let text = String::from_utf8_lossy(&stderr);
        assert!(status.success() && text.is_empty(), "{words}: {status} {text}");
    };
    let dsync = |mode: &str, words: &str| {
        run(&world.path("dsync"), &client, &format!("{mode} -u alice --source {a} {words}"))
    };
    let caller = world.dovecot.conf().display().to_string();
    let doveadm = |text: &str| {
        run(
            &program("doveadm"),
            &caller,
            &format!("{} {} {text}", mail_options(&a).join(" "), words(&["sync"]).join(" ")),
        )
    };
    world.fill(&a);
    let same = |what: &str| assert_equal(&world.content(&b), &world.content(&a), what);
    dsync("backup", &format!("{ssh} dsync-server --stdio -u alice"));
    same("we call ours");
    for (what, sync) in [
        ("remote:", &(|| dsync("sync", "remote:there")) as &dyn Fn()),
        ("we call Dovecot", &|| dsync("sync", &format!("{ssh} doveadm dsync-server -u alice"))),
        ("Dovecot calls us with --stdio", &|| doveadm(&format!("{ssh} dsync-server --stdio -u alice"))),
        ("Dovecot calls us as it calls its own", &|| doveadm(&format!("{ssh} dsync-server -u alice"))),
    ] {
        world.dovecot.save(&a, "INBOX", &format!("Subject: a {what}\n\nx\n"));
        world.dovecot.save(&b, "Old", &format!("Subject: b {what}\n\nx\n"));
        sync();
        assert!(world.content(&a).contains(&format!("b {what}")), "{what}");
        same(what);
    }
    let fresh = world.location("mdbox", "fresh");
    run(
        &world.path("dsync"),
        &client,
        &format!("backup -R -u alice --source {fresh} {ssh} doveadm dsync-server -u alice"),
    );
    assert_equal(&world.view(&fresh), &world.view(&b), "backup -R");
}

#[test]
fn by_a_unix_socket_without_a_password() {
    if !installed() {
        return;
    }
    let world = World::new();
    let (a, b) = (world.location("maildir", "a"), world.location("mdbox", "b"));
    world.fill(&a);
    let service = Service::start(&world.dovecot, world.dir.path(), &b, PASSWORD);
    let client = world.path("client.conf");
    fs::write(&client, "namespace inbox {\n  inbox = yes\n  separator = /\n}\n").expect("written");
    let mut command = world.dovecot.as_user(&world.path("dsync"));
    command.arg("-c").arg(&client).args(["sync", "-u", "alice", "--source", &a, &service.socket()]);
    let Output { status, stderr, .. } = command.output().expect("runs");
    let text = String::from_utf8_lossy(&stderr);
    assert!(status.success() && text.is_empty(), "{status} {text}");
    assert_eq!(world.content(&b), world.content(&a));
    let bad = ["Error:", "Warning:", "Panic:", "Fatal:"];
    let log = service.log();
    assert!(!bad.iter().any(|bad| log.contains(bad)), "{log}");
}
