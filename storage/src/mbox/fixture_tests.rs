//! An account that a real Dovecot made, against what Dovecot reports of it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use jiff::tz::TimeZone;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{Known, MboxFile, VirtualMessage};

/// Unpacks `tests/fixtures/formats/mbox.tar.zst`, and gives what Dovecot says of it.
pub fn unpack(into: &Path) -> Value {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/formats");
    let archive = fixtures.join("mbox.tar.zst");
    let done = Command::new("tar").arg("--zstd").arg("-xpf").arg(archive).arg("-C").arg(into).status();
    assert!(done.expect("tar runs").success());
    let expected = std::fs::read(fixtures.join("mbox.expected.json")).expect("read");
    serde_json::from_slice(&expected).expect("is JSON")
}

/// The file of a mailbox of the account.
pub fn file_of(account: &Path, mailbox: &Value) -> PathBuf {
    match mailbox["mutf7"].as_str().expect("has a name") {
        "INBOX" => account.join("mbox-inbox"),
        name => account.join("mail").join(name),
    }
}

/// The fixtures were made with TZ=UTC.
pub fn known() -> Known {
    Known { zone: TimeZone::UTC, counts_lines: true, ..Known::default() }
}

/// A message as it stands in an mbox.
pub fn read_message(file: &Arc<File>, entry: &super::Entry) -> Vec<u8> {
    let mut message = Vec::new();
    VirtualMessage::open(file.clone(), entry).unwrap().read_to_end(&mut message).unwrap();
    message
}

fn with_crlf(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for (at, byte) in text.iter().enumerate() {
        if *byte == b'\n' && (at == 0 || text[at - 1] != b'\r') {
            out.push(b'\r');
        }
        out.push(*byte);
    }
    out
}

#[test]
fn an_account_of_dovecot_is_read_as_dovecot_reads_it() {
    let dir = tempfile::tempdir().unwrap();
    let expected = unpack(dir.path());
    let (mut messages, mut lazy) = (0, BTreeMap::new());
    for mailbox in expected["mailboxes"].as_array().unwrap() {
        let name = mailbox["name"].as_str().unwrap();
        let path = file_of(dir.path(), mailbox);
        let file = Arc::new(File::open(&path).unwrap());
        let read = MboxFile::scan(&file, &path, &known()).unwrap();
        let mails = mailbox["mails"].as_array().unwrap();
        assert_eq!(read.messages.len(), mails.len(), "{name}");
        assert_eq!(read.pseudo.is_some(), name == "Emptied");
        if read.size > 0 {
            let validity = read.uid_validity.map(|validity| u64::from(validity.get()));
            assert_eq!(validity, mailbox["uidvalidity"].as_u64(), "{name}");
            assert_eq!(Some(u64::from(read.last_uid) + 1), mailbox["uidnext"].as_u64(), "{name}");
        }
        for (entry, mail) in read.messages.iter().zip(mails) {
            let what = format!("{name} {}", mail["uid"]);
            assert_eq!(entry.uid.map(|uid| u64::from(uid.get())), mail["uid"].as_u64(), "{what}");
            assert_eq!(entry.guid.as_str(), mail["guid"], "{what}");
            assert_eq!(Some(entry.received.0), mail["received"].as_i64(), "{what}");
            assert_eq!(Some(entry.size_physical), mail["size_physical"].as_u64(), "{what}");
            assert_eq!(entry.size_virtual, mail["size_virtual"].as_u64(), "{what}");
            let message = read_message(&file, entry);
            assert_eq!(message.len() as u64, entry.size_physical, "{what}");
            let hash: String =
                Sha256::digest(with_crlf(&message)).iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(hash, mail["sha256_message_crlf"], "{what}");
            let mut names: Vec<&str> = dsync_model::Flags::NAMES
                .iter()
                .filter(|(flag, _)| entry.flags.system.contains(*flag))
                .map(|(_, name)| *name)
                .collect();
            names.sort_unstable();
            let mut words: Vec<&str> =
                mail["keywords"].as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect();
            words.sort_unstable_by_key(|word| word.to_ascii_lowercase());
            let keywords: Vec<&str> = entry.flags.keywords.iter().map(|keyword| keyword.as_str()).collect();
            let flags: Vec<&str> =
                mail["flags"].as_array().unwrap().iter().map(|flag| flag.as_str().unwrap()).collect();
            if (names, keywords) != (flags, words) {
                *lazy.entry(name.to_owned()).or_insert(0) += 1;
            }
            messages += 1;
        }
    }
    // Flags that Dovecot has not written into the file yet: they are in its index only.
    assert_eq!((messages, lazy), (50, BTreeMap::new()));
}
