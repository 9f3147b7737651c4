//! Many users: side by side, on one connection, past failures, and on from where a run was interrupted.

use std::fs;
use std::io::Write;
use std::process::Stdio;

use dsync_tests::installation::{is_24, program};
use dsync_tests::maildirs::Account;
use dsync_tests::programs::Place;

/// A client whose users are those of a passwd-file, each with mail of their own.
fn place(names: &[&str], server: &str) -> Place {
    let place = Place::new(server);
    let dir = place.dir.path().display().to_string();
    let lines: String = names.iter().map(|name| format!("{name}:::::{dir}/home/{name}\n")).collect();
    fs::write(place.path("users"), lines).expect("written");
    let client = fs::read_to_string(place.path("client.conf")).expect("read");
    let client = format!(
        "{client}mail_location = maildir:~/Maildir\nuserdb {{\n driver = passwd-file\n args = {dir}/users\n}}\n"
    );
    fs::write(place.path("client.conf"), client).expect("written");
    for name in names {
        home(&place, name).deliver(
            "",
            "1700000001.M1P1.test",
            format!("Subject: of {name}\n\ntext\n").as_bytes(),
        );
    }
    place
}

fn home(place: &Place, name: &str) -> Account {
    Account::new(place.path(&format!("home/{name}/Maildir")))
}

fn assert_same(place: &Place, names: &[&str]) {
    for name in names {
        let theirs = Account::new(place.path(&format!("server/{name}")));
        assert_eq!(home(place, name).view(), theirs.view(), "{name}");
    }
}

#[test]
fn all_users_go_over_few_connections_and_are_summed_up() {
    let names: Vec<String> = (0..40).map(|n| format!("user{n:02}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let place = place(&names, "dsync_max_connections_per_ip = 4\n");
    let server = place.serve();
    let output =
        place.dsync(&["backup", "-A", "--jobs", "3", "--json", &place.tls()]).output().expect("runs");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.starts_with("40 users: 40 ok, 0 changed meanwhile, 0 failed; 40 messages"), "{text}");
    let documents = String::from_utf8(output.stdout).expect("text");
    let mut users: Vec<String> = documents
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("one document a line"))
        .map(|document| document["user"].as_str().expect("text").to_owned())
        .collect();
    users.sort();
    assert_eq!(users, names);
    assert_same(&place, &names);
    // The address and port of a connection: three threads, three of them.
    let peers: std::collections::BTreeSet<String> = (0..40)
        .map(|_| server.wait_for("sync user="))
        .map(|line| line.split("peer=").nth(1).expect("named").split(' ').next().expect("named").to_owned())
        .collect();
    assert_eq!(peers.len(), 3, "{peers:?}");
}

#[test]
fn a_failure_stops_nobody_and_the_sum_names_it() {
    let place = place(&["ann", "ben", "cat"], "userdb {\n driver = passwd-file\n args = %PLACE%/there\n}\n");
    let conf = fs::read_to_string(place.path("server.conf")).expect("read");
    let dir = place.dir.path().display().to_string();
    fs::write(place.path("server.conf"), conf.replace("%PLACE%", &dir)).expect("written");
    fs::write(place.path("there"), "ann::::::\ncat::::::\n").expect("written");
    let server = place.serve();
    let (status, text) = place.run(&["backup", "-A", "--jobs", "1", &place.tls()]);
    assert_eq!(status, 67, "{text}");
    assert!(text.contains("3 users: 2 ok, 0 changed meanwhile, 1 failed;"), "{text}");
    assert!(text.contains("1 failed with status 67, no such user"), "{text}");
    assert!(text.contains("failed: ben: the server refuses: unknown user"), "{text}");
    assert_same(&place, &["ann", "cat"]);
    // The refusal of one user has not cost the connection.
    let peers: Vec<String> = (0..3).map(|_| server.wait_for("sync user=")).collect();
    let peer =
        |line: &str| line.split("peer=").nth(1).and_then(|rest| rest.split(' ').next()).map(str::to_owned);
    assert!(peers.iter().all(|line| peer(line) == peer(&peers[0])), "{peers:#?}");
}

#[test]
fn masks_files_and_names_choose_users() {
    let place = place(&["ann", "anton", "ben"], "");
    let _server = place.serve();
    let run = |words: &[&str]| {
        let mut all = vec!["backup"];
        all.extend(words);
        let tls = place.tls();
        all.push(&tls);
        place.run(&all)
    };
    let (status, text) = run(&["-u", "an*"]);
    assert!(status == 0 && text.contains("2 users: 2 ok"), "{status} {text}");
    assert_same(&place, &["ann", "anton"]);
    assert!(!place.path("server/ben").exists());
    let (status, text) = run(&["-u", "x?"]);
    assert!(status == 67 && text.contains("no user matches \"x?\""), "{status} {text}");
    fs::write(place.path("list"), "ben\n\nnobody\nben\n").expect("written");
    let list = place.path("list").display().to_string();
    let (status, text) = run(&["-F", &list]);
    assert!(status == 67 && text.contains("2 users: 1 ok, 0 changed meanwhile, 1 failed"), "{status} {text}");
    assert_same(&place, &["ben"]);
    let mut child = place
        .dsync(&["backup", "-F", "-", "--no-userdb-lookup", "--source"])
        .arg(format!("maildir:{}/home/%u/Maildir", place.dir.path().display()))
        .arg(place.tls())
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    child.stdin.take().expect("piped").write_all(b"ann\nben\n").expect("written");
    let output = child.wait_with_output().expect("ends");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("2 users: 2 ok"), "{text}");
    // One place for all of them would pour all mail together.
    let fixed = format!("maildir:{}/all", place.dir.path().display());
    let (status, text) = place.run(&["backup", "-A", &fixed]);
    assert!(status == 64 && text.contains("the same place for every user"), "{status} {text}");
    assert!(!place.path("all").exists());
    let own = format!("maildir:{}/copy/%u", place.dir.path().display());
    assert_eq!(place.run(&["backup", "-A", &own]).0, 0);
    assert_eq!(home(&place, "ann").view(), Account::new(place.path("copy/ann")).view());
}

#[test]
fn a_run_goes_on_where_it_was_interrupted() {
    let place = place(&["ann", "ben", "cat"], "");
    let _server = place.serve();
    let done = place.path("done").display().to_string();
    // What an interrupted run has left, its last line torn.
    let (status, _) = place.run(&["backup", "-F", "/dev/null", "--resume", &done, &place.tls()]);
    assert_eq!(status, 0);
    assert!(!place.path("done").exists(), "all are done");
    let purpose = format!("Mirror {{ into: Responder }} {}", place.tls());
    fs::write(&done, format!("dsync finished users of: {purpose}\nann\nbe")).expect("written");
    let (status, text) = place.run(&["backup", "-A", "--resume", &done, &place.tls()]);
    assert!(
        status == 0 && text.contains("3 users: 2 ok, 0 changed meanwhile, 0 failed, 1 done before"),
        "{text}"
    );
    assert!(!place.path("server/ann").exists() && !place.path("done").exists());
    assert_same(&place, &["ben", "cat"]);
    // One fails: the others stay noted, and only that one is done by the next run.
    fs::rename(place.path("home/ben"), place.path("home/away")).expect("moved");
    let (status, _) = place.run(&["backup", "-A", "--resume", &done, &place.tls()]);
    assert_eq!(status, 78);
    let (status, text) = place.run(&["sync", "-A", "--resume", &done, &place.tls()]);
    assert!(status == 64 && text.contains("belongs to another run"), "{status} {text}");
    fs::rename(place.path("home/away"), place.path("home/ben")).expect("moved");
    let (status, text) = place.run(&["backup", "-A", "--resume", &done, &place.tls()]);
    assert!(
        status == 0 && text.contains("1 ok, 0 changed meanwhile, 0 failed, 2 done before"),
        "{status} {text}"
    );
}

#[test]
fn what_may_pass_is_tried_again() {
    let place = place(&["ann", "ben"], "");
    let (status, text) = place.run(&["-D", "backup", "-A", &place.tls()]);
    assert_eq!(status, 75, "{text}");
    assert!(text.contains("2 users: 0 ok, 0 changed meanwhile, 2 failed"), "{text}");
    assert_eq!(text.matches("ann: will be tried again").count(), 2, "{text}");
    assert!(text.contains("2 failed with status 75, try later"), "{text}");
}

#[test]
fn an_interrupt_leaves_the_rest_for_the_next_run() {
    let names: Vec<String> = (0..300).map(|n| format!("user{n:03}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let place = place(&names, "");
    let server = place.serve();
    let done = place.path("done").display().to_string();
    let mut command = place.dsync(&["backup", "-A", "--jobs", "2", "--resume", &done, &place.tls()]);
    let child = command.stderr(Stdio::piped()).spawn().expect("starts");
    server.wait_for("sync user=user001");
    let sent = std::process::Command::new("kill").arg("-INT").arg(child.id().to_string()).status();
    assert!(sent.expect("kill runs").success());
    let output = child.wait_with_output().expect("ends");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(75), "{text}");
    assert!(text.contains("not begun"), "{text}");
    let noted = fs::read_to_string(&done).expect("read").lines().count() - 1;
    assert!((1..300).contains(&noted), "{noted}");
    let (status, text) = place.run(&["backup", "-A", "--resume", &done, &place.tls()]);
    assert!(
        status == 0
            && text
                .contains(&format!("{} ok, 0 changed meanwhile, 0 failed, {noted} done before", 300 - noted)),
        "{text}"
    );
    assert_same(&place, &names);
}

/// Files that the command line names and that cannot be used: what, where, and whether to try again.
#[test]
fn a_file_that_cannot_be_used_is_named_with_what_is_wrong() {
    let place = place(&["alice"], "");
    fs::write(place.path("empty"), "\n\n").expect("written");
    fs::write(place.path("binary"), [0xff, 0xfe, b'\n']).expect("written");
    let path = |name: &str| place.path(name).display().to_string();
    let (missing, empty, binary, directory) = (path("no/such"), path("empty"), path("binary"), path(""));
    let copies = format!("maildir:{}/%u", path("copies"));
    for (words, status, expected) in [
        (&["backup", "-F", &missing, &copies][..], 64, "-F: ".to_owned() + &missing + ": cannot be read"),
        (&["backup", "-F", &directory, &copies], 64, "Is a directory".to_owned()),
        (&["backup", "-F", &binary, &copies], 64, format!("-F: {binary}: line 1: is no text in UTF-8")),
        (
            &["backup", "-A", "--resume", &missing, &copies],
            64,
            format!("--resume: {missing}: cannot be written"),
        ),
        (&["backup", "-A", "--resume", &directory, &copies], 64, "Is a directory".to_owned()),
        (&["rawlog", &missing], 64, format!("{missing}: No such file")),
        (&["rawlog", &empty], 65, empty.clone()),
        (&["man", &missing], 64, "No such file".to_owned()),
    ] {
        let output = place.dsync(words).output().expect("runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{words:?}: {said}");
        assert!(said.starts_with("dsync: ") && said.contains(&expected), "{words:?}: {said}");
    }
    assert!(!place.path("copies").exists());
}

/// `dsync conf` prints a configuration as it is, then all that is wrong with it, and a run says the same.
#[test]
fn what_is_wrong_with_a_configuration_is_told_when_it_is_printed() {
    let place = place(&["alice"], "");
    let conf = place.path("wrong.conf");
    fs::write(&conf, "mail_location = maildir:~/Maildir\nmail_fsync = sometimes\ndoveadm_port = 99999\n")
        .expect("written");
    let run = |words: &[&str]| {
        let mut command = std::process::Command::new(dsync_tests::programs::programs().join("dsync"));
        let output = command.arg("-c").arg(&conf).args(words).output().expect("runs");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let (status, printed, said) = run(&["conf", "-n"]);
    assert_eq!(status, Some(78), "{said}");
    assert!(printed.contains("mail_fsync = sometimes\n"), "{printed}");
    let wrong = "wrong.conf: line 2: mail_fsync: \"sometimes\" is not always, optimized or never\n";
    assert!(said.contains(wrong) && said.contains("wrong.conf: line 3: doveadm_port: "), "{said}");
    assert!(said.lines().count() == 2 && said.lines().all(|line| line.starts_with("dsync: ")), "{said}");
    fs::write(&conf, "mail_location = maildir:~/Maildir\n").expect("written");
    assert_eq!((run(&["conf", "-n"]).0, run(&["conf", "-n"]).2), (Some(0), String::new()));
}

/// What Dovecot 2.4.4 installs as its sample, without the comments: it is printed as it is, line for line as 2.4's own `doveconf -n` where one is there.
#[test]
fn the_sample_configuration_of_2_4_is_read_and_printed_as_it_is() {
    let sample = "dovecot_config_version = 2.4.4\ndovecot_storage_version = 2.4.4\n!include_try conf.d/*.conf\nprotocols {\n  imap = yes\n  lmtp = yes\n}\n\
        mail_home = /srv/mail/%{user}\nmail_driver = sdbox\nmail_path = ~/mail\nmail_uid = vmail\nmail_gid = vmail\nnamespace inbox {\n  inbox = yes\n  separator = /\n}\n\
        passdb pam {\n}\nssl_server {\n  cert_file = /etc/dovecot/ssl-cert.pem\n  key_file = /etc/dovecot/ssl-key.pem\n}\n";
    let dir = tempfile::tempdir().expect("made");
    let conf = dir.path().join("dovecot.conf");
    fs::write(&conf, sample).expect("written");
    let lines = |text: &[u8]| {
        let mut lines: Vec<String> = String::from_utf8_lossy(text)
            .lines()
            .filter(|line| !line.starts_with('#'))
            .map(str::to_owned)
            .collect();
        // Sections come in another order.
        lines.sort();
        lines
    };
    let run = |program: &std::path::Path, words: &[&str]| {
        let mut command = std::process::Command::new(program);
        let output = command.arg("-c").arg(&conf).args(words).output().expect("runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && said.is_empty(), "{words:?}: {said}");
        output.stdout
    };
    let dsync = dsync_tests::programs::programs().join("dsync");
    let expected: Vec<String> =
        lines(sample.as_bytes()).into_iter().filter(|line| !line.starts_with('!')).collect();
    assert_eq!(lines(&run(&dsync, &["conf", "-n"])), expected);
    if is_24() {
        assert_eq!(lines(&run(&program("doveconf"), &["-n"])), expected);
    }
    for (name, value) in [("mail_path", "~/mail"), ("mail_driver", "sdbox"), ("mail_uid", "vmail")] {
        assert_eq!(lines(&run(&dsync, &["conf", "-h", name])), [value]);
    }
}
