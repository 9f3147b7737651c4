//! No damage to a file makes a reader panic, or take memory without bound.

use std::fs;
use std::io::{self, Read, Write};
use std::path::Path;

use dsync_model::Since;
use dsync_storage::dbox::{AttachmentDir, DboxFile, FileHeader, Metadata, open_mail};
use dsync_storage::{Storage, compressed};
use dsync_tests::formats::Fixture;
use dsync_tests::maildirs::Account;
use dsync_tests::mutate::feed;

/// Largest mail that compressed samples may become here.
const MAIL_BYTES_MAX: u64 = 1 << 20;

fn sample(fixture: &Fixture, path: &str) -> Vec<u8> {
    let path = fixture.home().join(path);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn dbox_files() {
    let (single, multi) = (Fixture::unpack("sdbox-att"), Fixture::unpack("mdbox-att"));
    let samples = [
        sample(&single, "sdbox/mailboxes/INBOX/dbox-Mails/u.5"),
        sample(&multi, "mdbox/storage/m.2"),
        sample(&multi, "mdbox/storage/m.4"),
    ];
    let files = AttachmentDir::mdbox(multi.home().join("att"));
    let path = multi.home().join("mutated");
    let mut opened = 0;
    feed("dbox", &samples, 3000, |bytes| {
        fs::write(&path, bytes).expect("written");
        let Ok(file) = DboxFile::open(&path) else { return };
        let size = bytes.len() as u64;
        for mail in file.messages().flatten() {
            assert!(mail.offset < mail.body_offset && mail.body_offset + mail.body_size < mail.end);
            assert!(mail.end <= size);
            if let Ok(mut mail) = open_mail(&file, &mail, Some(&files)) {
                opened += 1;
                match io::copy(&mut mail.reader.by_ref().take(MAIL_BYTES_MAX), &mut io::sink()) {
                    Ok(_) => {}
                    Err(error) => assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}"),
                }
            }
        }
        let mut from = 0;
        while let Some(mail) = file.next_message(from).expect("reads") {
            assert!(mail.end > from);
            from = mail.end;
        }
    });
    assert!(opened > 1000, "most damage leaves some messages whole: {opened}");
}

#[test]
fn dbox_metadata() {
    let samples = [
        b"2 M1e C6b0449de\n".to_vec(),
        b"\n\x01\x03\nZ2087\nR65bb81a8\nV2133\nPuidl\nO17\nG01b40f37de49046b8a14000087ad316d\nBINBOX\nX208 8111 B72 8c/28/8c28-27 9000 5 CB76 a/b\n\n"
            .to_vec(),
    ];
    feed("dbox metadata", &samples, 20_000, |bytes| {
        let _ = FileHeader::parse(bytes);
        let Ok(metadata) = Metadata::parse(bytes) else { return };
        assert_eq!(Metadata::parse(&metadata.to_bytes()), Ok(metadata));
    });
}

#[test]
fn compressed_mail() {
    let mail =
        b"Subject: compressed\n\nThe same line again.\nThe same line again.\nAnother line.\n".repeat(20);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::default());
    gzip.write_all(&mail).expect("written");
    bzip2.write_all(&mail).expect("written");
    let mut lz4 = b"Dovecot-LZ4\x0d\x2a\x9b\xc5\x00\x01\x00\x00".to_vec();
    for chunk in mail.chunks(500) {
        let block = lz4_flex::block::compress(chunk);
        lz4.extend_from_slice(&(block.len() as u32).to_be_bytes());
        lz4.extend_from_slice(&block);
    }
    let samples = [
        gzip.finish().expect("written"),
        bzip2.finish().expect("written"),
        zstd::encode_all(&*mail, 3).expect("written"),
        lz4,
    ];
    feed("compressed mail", &samples, 3000, |bytes| {
        let opened = compressed::open(io::Cursor::new(bytes.to_vec()), Path::new("mutated"), MAIL_BYTES_MAX);
        let Ok(mut opened) = opened else { return };
        match io::copy(&mut opened.reader, &mut io::sink()) {
            Ok(size) => assert!(size <= MAIL_BYTES_MAX || opened.compression.is_none()),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}"),
        }
    });
}

/// Opens the account and reads all there is.
fn read_all(storage: &mut dyn Storage) {
    let Ok((tree, _)) = storage.tree() else { return };
    for status in tree.into_values().filter_map(|node| node.mailbox) {
        let Ok(mut mailbox) = storage.open(status.guid) else { continue };
        let Ok(changes) = mailbox.changes(Since::All) else { continue };
        for change in changes.list {
            if let Ok(Some(mut body)) = mailbox.body(change.uid(), None) {
                let _ = io::copy(&mut body.reader, &mut io::sink());
            }
        }
    }
}

#[test]
fn small_files_of_maildir() {
    let uidlist =
        "3 V1795443140 N21 G51b50630c449046b5d10000087ad316d\n1 G5 P7 O3 :a,S=3,W=4\n2 S3 :b\n20 :c\n";
    let texts = [
        ("dovecot-uidlist", uidlist),
        ("dovecot-keywords", "0 $Forwarded\n1 work\n25 todo\n"),
        ("subscriptions", "V\t2\n\nINBOX\nArchive\t2024\n"),
    ];
    let dir = tempfile::tempdir().expect("made");
    let account = Account::new(dir.path().join("mail"));
    for name in ["a,S=3,W=4:2,FSa", "b:2,", "c:2,Tz"] {
        account.deliver("", name, b"x\ny");
    }
    for (name, text) in texts {
        feed(name, &[text.as_bytes().to_vec()], 300, |bytes| {
            fs::write(account.root.join(name), bytes).expect("written");
            read_all(&mut *account.open());
        });
        fs::remove_file(account.root.join(name)).expect("was there");
    }
}
