//! The commands of docs/migrating-from-dovecot.md, as they stand there; only hosts, ports and directories are put in place of those named there.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Output;

use dsync_tests::dovecot::{Service, assert_equal, installed};
use dsync_tests::installation::program;
use dsync_tests::interop::World;
use dsync_tests::programs::{Server, certificates, free_port};
use dsync_tests::sshd::Sshd;

const GUIDE: &str = include_str!("../../../docs/migrating-from-dovecot.md");
const PASSWORD: &str = "something long";

/// What stands below a heading.
fn chapter(heading: &str) -> &'static str {
    let (_, after) = GUIDE.split_once(&format!("## {heading}\n")).expect("the heading");
    after.split("\n## ").next().unwrap_or_default()
}

/// The commands of a chapter, without their comments.
fn commands(heading: &str) -> Vec<&'static str> {
    let lines = chapter(heading).lines().filter_map(|line| line.strip_prefix("$ "));
    lines.map(|line| line.split("    #").next().unwrap_or_default().trim_end()).collect()
}

#[test]
fn the_guide_works_as_it_is_written() {
    if !installed() {
        return;
    }
    let world = World::new();
    let Some(sshd) = Sshd::start(&world.dovecot, world.dir.path()) else { return };
    let old = world.location("sdbox", "old");
    world.fill(&old);
    let service = Service::start(&world.dovecot, world.dir.path(), &old, PASSWORD);
    let write = |name: &str, text: &str| {
        fs::write(world.path(name), text).expect("written");
        world.path(name).display().to_string()
    };
    // The new server, where Dovecot calls.
    let called = world.location("mdbox", "called");
    for file in ["server.pem", "server.key"] {
        fs::copy(certificates().join(file), world.path(file)).expect("copied");
        world.dovecot.own(&world.path(file));
    }
    let (here, port) = (world.dir.path().display(), free_port());
    let served = format!(
        "mail_location = {called}\nlisten = 127.0.0.1\ndoveadm_port = {port}\ndoveadm_password = {PASSWORD}\nssl = yes\n\
         ssl_cert = <{here}/server.pem\nssl_key = <{here}/server.key\nnamespace inbox {{\n  inbox = yes\n  separator = /\n}}\n\
         userdb {{\n  driver = static\n  args = home={here}/home\n}}\n"
    );
    let served = write("served.conf", &served);
    let mut command = world.dovecot.as_user(&world.path("dsync-server"));
    command.arg("-c").arg(&served);
    let _server = Server::start(command);
    // What login shells and administrators find under these names.
    let conf = service.conf().display().to_string();
    sshd.program("doveadm", &program("doveadm"), &["-c", &conf]);
    sshd.program("dsync-server", &world.path("dsync-server"), &["-c", &served]);
    let ca = service.ca().display().to_string();
    let text = fs::read_to_string(&conf).expect("read");
    let caller = write("caller.conf", &format!("{text}ssl_client_ca_file = {ca}\n"));
    let new = write("new.conf", "namespace inbox {\n  inbox = yes\n  separator = /\n}\n");
    let bin = world.path("bin");
    fs::create_dir(&bin).expect("made");
    for (name, line) in [
        // The configuration that is found where none is named.
        (
            "dsync",
            format!(
                "sh -c 'case \" $* \" in *\" -c \"*) ;; *) set -- -c {new} \"$@\" ;; esac; exec {here}/dsync \"$@\"' dsync \"$@\""
            ),
        ),
        ("doveadm", format!("{} -c {caller} \"$@\"", program("doveadm").display())),
        (
            "ssh",
            format!(
                "sh -c 'shift; exec /usr/bin/ssh -F {} there \"$@\"' ssh \"$@\"",
                sshd.client_conf().display()
            ),
        ),
    ] {
        let path = bin.join(name);
        fs::write(&path, format!("#!/bin/sh\nexec {line}\n")).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("set");
    }
    let place = |text: &str| {
        let tls = service.tls();
        // doveadm looks for programs in a PATH of its own.
        let ssh = format!("{}/ssh new.example.org", bin.display());
        text.replace("/srv/mail", &here.to_string())
            .replace("ssh new.example.org", &ssh)
            .replace("/etc/ssl/ca.pem", &ca)
            .replace("tcps:old.example.org:12345", &tls)
            .replace("tcps:new.example.org:12345", &format!("tcps:localhost:{port}"))
    };
    let run = |line: &str| {
        let mut command = world.dovecot.as_user(Path::new("/bin/sh"));
        command.current_dir(world.dir.path()).env("PATH", format!("{}:/usr/bin:/bin", bin.display()));
        let Output { status, stdout, stderr } = command.arg("-c").arg(place(line)).output().expect("runs");
        let said = [stdout, stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
        assert!(status.success() && said.is_empty(), "{line}: {status} {said}");
    };
    let copy = |format: &str| world.location(format, "alice");
    let same = |copy: &str, what: &str| assert_equal(&world.view(copy), &world.view(&old), what);

    for line in commands("Over ssh: nothing to configure") {
        run(line);
        same(&copy("maildir"), line);
    }
    fs::remove_dir_all(world.path("alice")).expect("removed");

    // Dovecot takes its part of the configuration, and ours is what `cat` shows.
    let over_tcp = chapter("Over TCP: a doveadm service on the old server");
    let blocks: Vec<&str> = over_tcp.split("```").skip(1).step_by(2).collect();
    let theirs = write("theirs.conf", &format!("{}{}", fs::read_to_string(&conf).expect("read"), blocks[0]));
    let known = world
        .dovecot
        .as_user(&program("doveconf"))
        .args(["-c", &theirs, "-P", "-h", "doveadm_password"])
        .output();
    assert_eq!(String::from_utf8_lossy(&known.expect("runs").stdout).trim(), PASSWORD);
    let (cat, ours) = blocks[1].split_once("$ cat dsync.conf\n").expect("shows the configuration");
    assert_eq!(cat.trim(), "console");
    let ours: Vec<&str> = ours.lines().take_while(|line| !line.starts_with("$ ")).collect();
    write("dsync.conf", &(place(&ours.join("\n")) + "\n"));
    let lines = commands("Over TCP: a doveadm service on the old server");
    run(lines[1]);
    same(&copy("mdbox"), lines[1]);

    world.dovecot.save(&old, "INBOX", "Subject: new there\n\nx\n");
    world.dovecot.save(&copy("mdbox"), "Old", "Subject: new here\n\nx\n");
    for line in commands("Both in use for a while") {
        run(line);
        assert_eq!(world.content(&copy("mdbox")), world.content(&old), "{line}");
    }
    assert!(world.content(&old).contains("new here"));

    for line in commands("Dovecot calls") {
        world.dovecot.save(&old, "INBOX", &format!("Subject: {}\n\nx\n", line.len()));
        run(line);
        assert_eq!(world.content(&called), world.content(&old), "{line}");
    }
}
