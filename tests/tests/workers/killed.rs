//! What a worker that dies costs.

use std::process::Stdio;

use super::processes::{children, holds_open, kill, locked, of_uid, uid, wait_until};
use super::{is_root, place};

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
