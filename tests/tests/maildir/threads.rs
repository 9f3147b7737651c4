//! Two ends of one session, each on a thread of its own.

use std::fs;
use std::time::Duration;

use dsync_session::proto::{Direction, Options};
use dsync_session::{Report, SessionError, abreast};
use dsync_tests::maildirs::{Account, BACKUP, ends};

use super::{pair, some_mail};

/// A session with each end on a thread of its own, which is stopped after so many looks at it.
fn abreast(a: &Account, b: &Account, direction: Direction, looks: u32) -> Result<Report, SessionError> {
    let [mut one, mut two] = ends(a, b, direction, Options::default());
    let mut left = looks;
    let mut watch = |_: &_| {
        left = left.saturating_sub(1);
        left > 0
    };
    abreast::run(&mut one, &mut two, &mut watch).map(|(report, _)| report)
}

fn much_mail(a: &Account) {
    some_mail(a);
    for n in 0..300 {
        let folder = ["", "Archive.2024", "Other"][n % 3];
        a.deliver(
            folder,
            &format!("17000001{n:03}.M1P1.host:2,S"),
            format!("Subject: {n}\n\n{n}\n").as_bytes(),
        );
    }
}

#[test]
fn two_threads_do_what_one_does() {
    let (_dir, a, b) = pair();
    much_mail(&a);
    let report = abreast(&a, &b, BACKUP, u32::MAX).expect("syncs");
    assert_eq!(report.status(), 0, "{report:?}");
    assert_eq!(a.view(), b.view());
    b.deliver("Other", "1700000011.M1P1.host", b"new at b");
    fs::remove_file(a.find("", "1700000001")).expect("expunged at a");
    let report = abreast(&a, &b, Direction::TwoWay, u32::MAX).expect("syncs");
    assert_eq!(report.status(), 0, "{report:?}");
    assert_eq!(a.view(), b.view());
}

#[test]
fn an_end_that_fails_or_is_stopped_ends_both_threads() {
    let (_dir, a, b) = pair();
    much_mail(&a);
    for held in [&a, &b] {
        let mut storage = held.open();
        let _lock = storage.lock(Duration::ZERO).expect("free");
        let error = abreast(&a, &b, BACKUP, u32::MAX).expect_err("the store is locked");
        assert!(matches!(error, SessionError::Storage { .. }) && error.status() == 75, "{error:?}");
    }
    let stopped = (2..).take_while(|looks| match abreast(&a, &b, BACKUP, *looks) {
        Ok(_) => false,
        Err(error) => {
            assert!(matches!(error, SessionError::Stopped), "{error}");
            true
        }
    });
    assert!(stopped.count() > 0);
    assert_eq!(a.view(), b.view());
}
