//! What no run expunges unasked: `--allow-mass-delete`.

use std::fs;

use dsync_tests::maildirs::Account;
use dsync_tests::programs::Place;

use super::{bodies, dsync, mail, run};

/// 600 messages at both ends.
fn much_mail() -> (Place, Account, Account) {
    let place = Place::new("");
    let (a, b) = (Account::new(place.path("a")), Account::new(place.path("b")));
    for n in 0..600 {
        a.deliver(["", "Work"][n as usize % 2], &mail(n), format!("Subject: {n}\n\n").as_bytes());
    }
    run(&place, &["-o", "mail_fsync=never", "sync", "--source", &a.location(), &b.location()]);
    (place, a, b)
}

fn remove(account: &Account, folder: &str, count: usize) {
    let files = ["cur", "new"].map(|d| fs::read_dir(account.folder(folder).join(d)).expect("read"));
    let paths = files.into_iter().flatten().map(|entry| entry.expect("read").path());
    paths.take(count).for_each(|path| fs::remove_file(path).expect("removed"));
}

#[test]
fn a_mirror_does_not_lose_a_fifth_of_its_mail_unasked() {
    let (place, a, b) = much_mail();
    let line = ["backup", "--source", &a.location(), &b.location()];
    // A hundred may go, and so may a hundred and twenty of six hundred.
    remove(&a, "", 100);
    run(&place, &line);
    let before = b.view();
    remove(&a, "", 101);
    a.deliver("", &mail(9000), b"Subject: late\n\n");
    let (status, _, said) = dsync(&place, &line);
    assert!(
        status == 77 && said.contains("101 of the 500 messages") && said.contains("--allow-mass-delete"),
        "{said}"
    );
    assert_eq!(bodies(&b, "INBOX"), before["INBOX"].len() - 1 + 1, "saved, and nothing is gone");
    let (status, _, said) = dsync(&place, &["backup", "-R", "--source", &b.location(), &a.location()]);
    assert!(status == 77 && said.contains("101 of the 50"), "{status} {said}");
    run(&place, &["backup", "--allow-mass-delete", "--source", &a.location(), &b.location()]);
    assert_eq!(a.view(), b.view());
}

#[test]
fn a_mailbox_that_goes_counts_with_its_mail_and_moved_mail_does_not() {
    let (place, a, b) = much_mail();
    let line = ["backup", "--source", &a.location(), &b.location()];
    fs::rename(a.folder("Work"), place.path("aside")).expect("moved");
    let (status, _, said) = dsync(&place, &line);
    assert!(status == 77 && said.contains("300 of the 600"), "{status} {said}");
    assert_eq!(bodies(&b, "Work"), 300);
    // All its mail in another mailbox, under the same names: nothing is lost.
    for part in ["new", "cur", "tmp"] {
        let to = a.folder("Elsewhere").join(part);
        fs::create_dir_all(&to).expect("made");
        for entry in fs::read_dir(place.path("aside").join(part)).expect("read").flatten() {
            fs::rename(entry.path(), to.join(entry.file_name())).expect("moved");
        }
    }
    run(&place, &line);
    assert_eq!(a.view(), b.view());
}

#[test]
fn an_end_that_lost_everything_does_not_empty_the_other() {
    let (place, a, b) = much_mail();
    remove(&a, "", 300);
    remove(&a, "Work", 300);
    let before = b.view();
    for line in [&["sync"][..], &["sync", "-1"]] {
        let (one, two) = (a.location(), b.location());
        let mut line = line.to_vec();
        line.extend(["--source", &one, &two]);
        let (status, _, said) = dsync(&place, &line);
        assert!(
            status == 77 && said.contains("600 of the 600") && said.contains("--allow-mass-delete"),
            "{status} {said}"
        );
        assert_eq!(b.view(), before);
    }
    run(&place, &["sync", "--allow-mass-delete", "--source", &a.location(), &b.location()]);
    assert_eq!((bodies(&b, "INBOX"), bodies(&b, "Work")), (0, 0));
}

#[test]
fn a_dry_run_says_what_the_guard_would_refuse() {
    let (place, a, b) = much_mail();
    remove(&a, "", 200);
    let (status, printed, said) =
        dsync(&place, &["backup", "--dry-run", "--source", &a.location(), &b.location()]);
    assert!(
        status == 0 && printed.contains("200 expunged") && said.contains("--allow-mass-delete"),
        "{status} {said}"
    );
    assert_eq!(bodies(&b, "INBOX"), 300);
}
