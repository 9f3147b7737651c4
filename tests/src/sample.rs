//! A sample account: varied mail, written for this and for nothing else.

use std::fs;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;

use crate::maildirs::Account;

const FOLDERS: [&str; 6] = ["", "Archive.2024.Q1", "Lists.Rust &- C", "Entw&APw-rfe", "&ZeVnLIqe-", "Sent"];
const FLAGS: [&str; 8] = ["", ":2,S", ":2,FS", ":2,RS", ":2,D", ":2,ST", ":2,Sa", ":2,FSab"];

/// Writes the account: 48 messages in 6 mailboxes, with keywords and subscriptions.
pub fn write(account: &Account) {
    for n in 0..48usize {
        let folder = FOLDERS[n % FOLDERS.len()];
        let flags = FLAGS[(n / 6) % FLAGS.len()];
        let seconds = 1_700_000_000 + n as u64 * 86_400;
        let name = format!("{seconds}.M{n}P{}.sample{flags}", 100 + n);
        account.deliver(folder, &name, &message(n));
        let path = account.find(folder, &name);
        let file = fs::OpenOptions::new().write(true).open(path).expect("just written");
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)).expect("times can be set");
    }
    for folder in FOLDERS {
        fs::write(account.folder(folder).join("dovecot-keywords"), "0 $Forwarded\n1 Project-X\n")
            .expect("written");
    }
    fs::write(account.root.join("subscriptions"), "V\t2\n\nINBOX\nSent\nEntw&APw-rfe\nArchive\t2024\tQ1\n")
        .expect("written");
}

fn message(n: usize) -> Vec<u8> {
    let head = format!(
        "Return-Path: <sender{n}@example.org>\nDate: Tue, 14 Nov 2023 22:13:{:02} +0000\nFrom: Sender {n} <sender{n}@example.org>\n\
         To: Alice <alice@example.com>\nMessage-ID: <sample-{n}@example.org>\n",
        n % 60
    );
    let (more, body): (String, Vec<u8>) = match n % 12 {
        0 => ("Subject: plain text\n".into(), b"Hello Alice,\n\nplain text with a line.\n".to_vec()),
        1 => ("Subject: nothing in it\n".into(), Vec::new()),
        2 => (
            "Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe_aus_K=C3=B6ln?=\nMIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n".into(),
            "Schöne Grüße, 日本語, emoji 🦀\n".into(),
        ),
        3 => ("Subject: Latin-1 without saying so\n".into(), b"caf\xe9 cr\xe8me\n".to_vec()),
        4 => (
            "Subject: an attachment\nMIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=\"b\"\n".into(),
            attachment(40_000 + n),
        ),
        5 => (
            "Subject: text and HTML\nMIME-Version: 1.0\nContent-Type: multipart/alternative; boundary=b\n".into(),
            b"--b\nContent-Type: text/plain\n\nHi\n--b\nContent-Type: text/html\n\n<p>Hi</p>\n--b--\n".to_vec(),
        ),
        6 => (format!("Subject: {}\n", "a very long subject ".repeat(200)), b"long header\n".to_vec()),
        7 => (format!("Received: {}\nSubject: folded\n", "from a by b\n\t".repeat(300).trim_end()), b"many header lines\n".to_vec()),
        8 => ("Subject: CRLF\r\n".into(), b"line one\r\nline two\r\n".to_vec()),
        9 => ("Subject: no newline at the end\n".into(), b"the end".to_vec()),
        10 => ("Subject: looks like mbox\n".into(), b"From someone Tue Nov 14 2023\n>From quoted\n.\n..\n".to_vec()),
        _ => ("Subject: odd bytes\n".into(), b"nul \0 bell \x07 bare cr \r end\n".to_vec()),
    };
    [head.as_bytes(), more.as_bytes(), b"\n", &body].concat()
}

fn attachment(bytes: usize) -> Vec<u8> {
    let mut text = String::from(
        "--b\nContent-Type: text/plain\n\nSee the attachment.\n--b\nContent-Type: application/octet-stream\nContent-Transfer-Encoding: base64\nContent-Disposition: attachment; filename=\"data.bin\"\n\n",
    );
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for i in 0..bytes {
        text.push(char::from(alphabet[(i * 7 + i / 76) % 64]));
        if i % 76 == 75 {
            text.push('\n');
        }
    }
    text.push_str("\n--b--\n");
    text.into_bytes()
}

/// Users at work on both ends: deliveries, a read mail, an expunge, a new mailbox. Says what was done.
pub fn change_both(here: &Account, there: &Account) -> anyhow::Result<(String, String)> {
    here.deliver("", "1800000001.M1P1.here", b"Subject: delivered here\n\nNew here.\n");
    here.deliver("Made.Here", "1800000002.M1P1.here", b"Subject: first of a new mailbox\n\n");
    there.deliver("", "1800000003.M1P1.there", b"Subject: delivered there\n\nNew there.\n");
    let mut messages: Vec<_> =
        fs::read_dir(there.root.join("cur")).context("INBOX there")?.flatten().map(|e| e.path()).collect();
    messages.sort();
    let mut done = vec!["1 message delivered"];
    if let [first, .., last] = messages.as_slice() {
        let name = first.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let (base, flags) = name.split_once(":2,").unwrap_or((&name, ""));
        let mut letters: Vec<char> = flags.chars().chain(['F']).collect();
        letters.sort_unstable();
        letters.dedup();
        fs::rename(first, first.with_file_name(format!("{base}:2,{}", letters.iter().collect::<String>())))?;
        fs::remove_file(last)?;
        done.extend(["1 flagged", "1 expunged"]);
    }
    Ok(("1 message delivered, 1 mailbox with 1 message made".into(), done.join(", ")))
}
