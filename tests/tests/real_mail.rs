//! 6,046 real messages over TLS and back: same bytes, flags, dates, GUIDs, UIDs. `tests/run` fetches them.

use std::path::{Path, PathBuf};

use dsync_tests::maildirs::Account;
use dsync_tests::programs::Place;

fn texts(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).expect("readable").flatten() {
        let path = entry.path();
        if path.is_dir() {
            texts(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "txt") {
            found.push(path);
        }
    }
}

#[test]
fn real_mail_goes_over_tls_and_comes_back() {
    let Some(corpus) = std::env::var_os("DSYNC_CORPUS") else {
        assert!(std::env::var_os("CI").is_none(), "tests/run sets DSYNC_CORPUS");
        eprintln!("skipped: tests/run fetches the messages");
        return;
    };
    let mut files = Vec::new();
    texts(Path::new(&corpus).join("data").as_path(), &mut files);
    files.sort();
    assert_eq!(files.len(), 6046);
    let place = Place::new("");
    let _server = place.serve();
    let mail = Account::new(place.path("mail"));
    for (n, file) in files.iter().enumerate() {
        let folder = ["", "Ham.Easy", "Ham.Hard", "Spam"][n % 4];
        let flags = [":2,S", ":2,", ":2,FRS", ""][n % 7 % 4];
        mail.deliver(
            folder,
            &format!("17{n:08}.M{n}P1.corpus{flags}"),
            &std::fs::read(file).expect("readable"),
        );
    }
    let source = format!("maildir:{}", mail.root.display());
    assert_eq!(place.run(&["backup", "--source", &source, &place.tls()]), (0, String::new()));
    let third = Account::new(place.path("third"));
    let back = format!("maildir:{}", third.root.display());
    assert_eq!(
        place.run(&["backup", "-R", "--compress", "yes", "--source", &back, &place.tls()]),
        (0, String::new())
    );
    let (ours, theirs) = (mail.view(), third.view());
    assert!(ours == theirs, "the mail that came back is not the mail that went");
    assert_eq!(ours.values().map(|lines| lines.len() - 1).sum::<usize>(), 6046);
}
