//! dbox files between a real Dovecot and us.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;

use dsync_model::{MessageGuid, Timestamp};
use dsync_storage::compressed::Compression;
use dsync_storage::dbox::{DboxFile, Metadata, file, open_mail};
use dsync_tests::dovecot::{Dovecot, installed};
use dsync_tests::installation::is_24;

fn dovecot(settings: &str) -> (tempfile::TempDir, Dovecot, String) {
    let dir = tempfile::tempdir().expect("made");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).expect("set");
    let dovecot = Dovecot::new(dir.path());
    let conf = dir.path().join("dovecot.conf");
    fs::write(&conf, fs::read_to_string(&conf).expect("readable") + settings).expect("written");
    dovecot.own(&dir.path().join("home"));
    let location = format!("sdbox:{}", dir.path().join("home/sdbox").display());
    (dir, dovecot, location)
}

#[test]
fn mail_that_dovecot_compressed_is_read() {
    if !installed() {
        return;
    }
    // Longer than a chunk of LZ4, in every shape: well compressed, and not at all.
    let mut text = String::from("Subject: compressed\n\n");
    (0..20_000u32).for_each(|n| text.push_str(&format!("line {}\n", n.wrapping_mul(2_654_435_761))));
    for (name, compression) in [
        ("gz", Compression::Gzip),
        ("bz2", Compression::Bzip2),
        ("zstd", Compression::Zstd),
        ("lz4", Compression::Lz4),
    ] {
        if is_24() && !matches!(compression, Compression::Gzip) {
            eprintln!("skipped: {name}, which a 2.4 built as docs/dovecot-protocol.md says may lack");
            continue;
        }
        let settings = if is_24() {
            format!("mail_plugins {{\n  mail_compress = yes\n}}\nmail_compress_write_method = {name}\n")
        } else {
            format!("mail_plugins = zlib\nplugin {{\n  zlib_save = {name}\n}}\n")
        };
        let (dir, dovecot, location) = dovecot(&settings);
        dovecot.save(&location, "INBOX", &text);
        let path = dir.path().join("home/sdbox/mailboxes/INBOX/dbox-Mails/u.1");
        let file = DboxFile::open(path).expect("opens");
        let mail = file.messages().next().expect("one").expect("whole");
        let mut opened = open_mail(&file, &mail, None).expect("opens");
        let mut read = String::new();
        opened.reader.read_to_string(&mut read).expect("reads");
        assert!(read == text, "{name}: {} of {} bytes", read.len(), text.len());
        assert_eq!(opened.compression, Some(compression));
        assert_eq!(mail.physical_size(), text.len() as u64);
        assert!(mail.body_size < mail.physical_size(), "{name}");
    }
}

#[test]
fn dovecot_reads_a_file_of_ours() {
    if !installed() {
        return;
    }
    let (dir, dovecot, location) = dovecot("");
    dovecot.save(&location, "INBOX", "Subject: first\n\n");
    let body = b"Subject: ours\n\nText.\n";
    let metadata = Metadata {
        received: Some(Timestamp(1_700_000_000)),
        virtual_size: Some(body.len() as u64 + 3),
        // Dovecot only looks for it where the index says that some mail has one (reference 9.2): it must do no harm.
        pop3_uidl: Some("old-uidl".into()),
        guid: MessageGuid::new("01b40f37de49046b8a14000087ad316d"),
        ..Metadata::default()
    };
    let header = file::file_header_bytes(Timestamp(1_700_000_000));
    let message = [&file::message_header_bytes(body.len() as u64), &body[..], &metadata.to_bytes()].concat();
    let path = dir.path().join("home/sdbox/mailboxes/INBOX/dbox-Mails/u.7");
    fs::write(&path, [header, message].concat()).expect("written");
    dovecot.own(&path);
    dovecot.force_resync(&location);
    let fields = "guid date.received.unixtime size.physical size.virtual text";
    let shown = dovecot.doveadm(&location, &["-f", "tab", "fetch", fields, "mailbox", "INBOX", "uid", "7"]);
    let wanted = "01b40f37de49046b8a14000087ad316d\t1700000000\t21\t24\tSubject: ours";
    assert!(shown.contains(wanted), "{shown}");
}
