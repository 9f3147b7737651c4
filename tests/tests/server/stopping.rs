//! Programs that are stopped or killed in the middle of a session.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use dsync_tests::maildirs::Account;
use dsync_tests::programs::Place;

use super::{account, source};

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

/// Signals bring both programs to a safe point: a clear line, a status, and the next run goes on.
#[test]
fn signals_end_a_sync_at_a_safe_point() {
    for victim in ["server", "client"] {
        let place = Place::new("");
        let mail = account(&place, 3000);
        let server = place.serve();
        let mut client = place
            .dsync(&["backup", "--source", &source(&mail), &place.tls()])
            .stderr(std::process::Stdio::piped())
            .spawn()
            .expect("starts");
        let copy = place.path("server/alice/tmp");
        // As soon as messages arrive, the middle is reached; however long that takes on a busy machine.
        let arriving = || std::fs::read_dir(&copy).is_ok_and(|mut entries| entries.next().is_some());
        while client.try_wait().expect("asked").is_none() && !arriving() {
            std::thread::sleep(Duration::from_millis(1));
        }
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
