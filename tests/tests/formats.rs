//! Every storage reads what Dovecot wrote as Dovecot reads it, and reading leaves no trace in the mail.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use dsync_model::{MailboxGuid, Uid};
use dsync_storage::dbox::{self, AttachmentDir, DboxFile, FileHeader, StoredMail, file};
use dsync_tests::formats::{Expected, ExpectedMail, Fixture, compare, compare_text, touched};

/// Opens the account twice, as a second look must not differ from the first. `allow` takes back what is not expected
/// to be read yet; `writes` says which files reading may write.
fn check(name: &str, allow: impl FnOnce(&mut Expected), writes: impl Fn(&Path) -> bool) {
    let mut fixture = Fixture::unpack(name);
    allow(&mut fixture.expected);
    let before = fixture.files();
    for look in ["first", "second"] {
        let differences = compare(&mut *fixture.open(), &fixture.expected);
        assert!(differences.is_empty(), "{name}, {look} look:\n{}", differences.join("\n"));
    }
    let touched: Vec<_> =
        touched(&before, &fixture.files()).into_iter().filter(|path| !writes(path)).collect();
    assert!(touched.is_empty(), "{name}: reading changed {touched:?}");
}

/// Our own notes, and what whoever reads a Maildir brings up to date: the uidlist, and the log of the index.
fn maildir_writes(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with(".dsync-") || name == "dovecot-uidlist" || name.starts_with("dovecot.index")
}

#[test]
fn maildir_plus_plus() {
    check("maildirpp", |_| {}, maildir_writes);
}

#[test]
fn maildir_fs() {
    check("maildir-fs", |_| {}, maildir_writes);
}

#[test]
fn maildir_with_its_parts_in_several_directories() {
    check("maildir-dirs", |_| {}, maildir_writes);
}

/// Our own notes and the log of the index.
fn mbox_writes(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with(".dsync-") || name.starts_with("dovecot.index")
}

#[test]
fn mbox() {
    check("mbox", |_| {}, mbox_writes);
}

/// Our own notes; reading writes nothing else.
fn notes_only(path: &Path) -> bool {
    path.file_name().unwrap_or_default().to_string_lossy().starts_with(".dsync-")
}

#[test]
fn sdbox() {
    check("sdbox", |_| {}, notes_only);
    check("sdbox-att", |_| {}, notes_only);
}

#[test]
fn mdbox() {
    for name in ["mdbox", "mdbox-att", "mdbox-layoutindex"] {
        check(name, |_| {}, notes_only);
    }
}

/// Written by Dovecot 2.4.4 as it is without settings.
#[test]
fn what_a_2_4_wrote() {
    check("sdbox-2.4", |_| {}, notes_only);
    check("mdbox-2.4", |_| {}, notes_only);
    check("maildir-2.4", |_| {}, maildir_writes);
}

/// Compares a message in a dbox file, which is all but what the index holds, and writes its frame again.
fn check_mail(file: &DboxFile, mail: &StoredMail, attachments: &AttachmentDir, wanted: &ExpectedMail) {
    let mut text = Vec::new();
    let mut opened = dbox::open_mail(file, mail, Some(attachments)).expect("opens");
    std::io::Read::read_to_end(&mut opened.reader, &mut text).expect("reads");
    let what = format!("{} at {}", file.path().display(), mail.offset);
    assert_eq!(compare_text(&text, wanted), Vec::<String>::new(), "{what}");
    assert_eq!(mail.metadata.guid.as_ref().map(|guid| guid.as_str()), Some(&*wanted.guid), "{what}");
    assert_eq!(mail.metadata.received.map(|received| received.0), Some(wanted.received), "{what}");
    assert_eq!(mail.physical_size(), wanted.size_physical, "{what}");
    let bytes = fs::read(file.path()).expect("readable");
    let frame = |from: u64, to: u64| &bytes[from as usize..to as usize];
    assert_eq!(frame(mail.offset, mail.body_offset), file::message_header_bytes(mail.body_size), "{what}");
    assert_eq!(frame(mail.body_offset + mail.body_size, mail.end), mail.metadata.to_bytes(), "{what}");
    let FileHeader { size, created, .. } = file.header();
    assert_eq!(frame(0, size), file::file_header_bytes(created), "{what}");
}

/// The dbox files of an account: those in `root`, and those in alternate storage.
fn dbox_file(fixture: &Fixture, root: &str, below: &str) -> Option<PathBuf> {
    [root, "alt"].into_iter().map(|root| fixture.home().join(root).join(below)).find(|path| path.exists())
}

#[test]
fn files_of_sdbox() {
    for name in ["sdbox", "sdbox-att"] {
        let fixture = Fixture::unpack(name);
        let mut mails = 0;
        for mailbox in &fixture.expected.mailboxes {
            let guid = MailboxGuid::parse(&mailbox.guid).expect("valid");
            for wanted in &mailbox.mails {
                let below = format!("mailboxes/{}/dbox-Mails/u.{}", mailbox.mutf7, wanted.uid);
                let path = dbox_file(&fixture, "sdbox", &below).unwrap_or_else(|| panic!("no {below}"));
                let file = DboxFile::open(path).expect("opens");
                let all: Vec<StoredMail> = file.messages().map(|mail| mail.expect("whole")).collect();
                let uid = Uid::new(wanted.uid).expect("not 0");
                let attachments = AttachmentDir::sdbox(fixture.home().join("att"), guid, uid);
                assert_eq!(all.len(), 1);
                check_mail(&file, &all[0], &attachments, wanted);
                mails += 1;
            }
        }
        assert!(mails > 5, "{name}: {mails}");
    }
}

#[test]
fn files_of_mdbox() {
    for name in ["mdbox", "mdbox-att", "mdbox-layoutindex"] {
        let fixture = Fixture::unpack(name);
        let attachments = AttachmentDir::mdbox(fixture.home().join("att"));
        let mut found = BTreeMap::new();
        for number in 1..10 {
            let Some(path) = dbox_file(&fixture, "mdbox", &format!("storage/m.{number}")) else { continue };
            let file = DboxFile::open(path).expect("opens");
            for mail in file.messages() {
                let mail = mail.expect("whole");
                let next = file.next_message(mail.offset).expect("reads").expect("there is one");
                assert_eq!(next, mail, "a scan finds what the list has");
                found.insert(
                    mail.metadata.guid.clone().expect("has one").as_str().to_owned(),
                    (file.clone(), mail),
                );
            }
        }
        for wanted in fixture.expected.mailboxes.iter().flat_map(|mailbox| &mailbox.mails) {
            let (file, mail) = &found[&wanted.guid];
            check_mail(file, mail, &attachments, wanted);
        }
    }
}
