//! A message that can be read only in part: its mailbox waits, and no other.

use std::fs;
use std::io::Write;

use dsync_tests::maildirs::Account;
use dsync_tests::programs::{Place, programs};

use super::{mail, source};

#[test]
fn a_message_that_ends_in_the_middle_leaves_its_mailbox_out() {
    let place = Place::new("");
    let account = mail(&place, 2);
    // Text that does not become small, so that much of it can be read.
    let mut state = 1_u64;
    let noise = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        format!("{state:016x}\n")
    });
    let text = format!("Subject: long\n\n{}", noise.take(50_000).collect::<String>());
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(text.as_bytes()).expect("written");
    let whole = gzip.finish().expect("written");
    let name = format!("1710000001.M1P1.test,S={}:2,", text.len());
    account.deliver("Work", &name, &whole[..whole.len() / 2]);
    account.deliver("Zoo", "1710000002.M1P1.test", b"Subject: zoo\n\n");
    let server = programs().join("dsync-server");
    for link in [false, true] {
        let copy = Account::new(place.path(&format!("copy-{link}")));
        let (here, there) = (source(&account), copy.location());
        let conf = place.path("server.conf").display().to_string();
        let mail_location = format!("mail_location={there}");
        let mut arguments = vec!["backup", "--source", &here];
        if link {
            let server = server.to_str().expect("UTF-8");
            arguments.extend([server, "-c", &conf, "-o", &mail_location, "--stdio", "-u", "alice"]);
        } else {
            arguments.push(&there);
        }
        fs::write(account.find("Work", "1710000001"), &whole[..whole.len() / 2]).expect("written");
        let (status, text) = place.run(&arguments);
        let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("dsync: ")).collect();
        assert!(status == 65 && lines.len() == 1, "{link}: {status} {text}");
        assert!(lines[0].contains("Work: ") && lines[0].contains("1710000001.M1P1"), "{link}: {text}");
        assert_eq!(["INBOX", "Zoo", "Work"].map(|name| copy.view()[name].len()), [3, 2, 1], "{link}: {text}");
        // Mended, it arrives.
        fs::write(account.find("Work", "1710000001"), &whole).expect("written");
        let (status, text) = place.run(&arguments);
        assert_eq!(status, 0, "{link}: {text}");
        assert_eq!(copy.view()["Work"].len(), 2, "{link}: {text}");
    }
}
