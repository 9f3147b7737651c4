//! No damage to a file makes a reader panic, or take memory without bound.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use dsync_accounts::{Settings, iterate, lookup, verify};
use dsync_model::{
    AttributeKey, AttributeScope, AttributeValue, Base, BaseNode, Digest, FlagSet, Flags, Keyword,
    MailboxBase, MailboxGuid, MailboxName, ModSeq, Since, Uid, UidValidity,
};
use dsync_storage::attributes::Attributes;
use dsync_storage::dbox::{AttachmentDir, DboxFile, FileHeader, Metadata, open_mail};
use dsync_storage::index::{Appended, Edit, Flagged, Index, Paths, State};
use dsync_storage::layout::{Format, Layout};
use dsync_storage::{Fsync, Goal, Location, Result, Storage, compressed};
use dsync_tests::formats::Fixture;
use dsync_tests::maildirs::Account;
use dsync_tests::mutate::{at_limits, feed};

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

/// Indexes that Dovecot wrote: the fixture, the directory, the prefix of the files.
const INDEXES: [(&str, &str, &str); 8] = [
    ("sdbox", "sdbox/mailboxes/Archive/dbox-Mails", "dovecot.index"),
    ("sdbox", "sdbox/mailboxes/INBOX/dbox-Mails", "dovecot.index"),
    ("mdbox", "mdbox/mailboxes/Archive/dbox-Mails", "dovecot.index"),
    ("mdbox", "mdbox/storage", "dovecot.map.index"),
    ("maildirpp", "Maildir/.Archive", "dovecot.index"),
    ("maildirpp", "Maildir/.Sent", "dovecot.index"),
    ("mbox", "mail/.imap/INBOX", "dovecot.index"),
    ("mbox", "mail/.imap/Archive", "dovecot.index"),
];
/// Mutations of each file of each of them.
const INDEX_MUTATIONS: u64 = 100;
/// Of the numbers in each file, one of so many is tried at a limit; all where `DSYNC_LONG` is set.
const LIMITS_STEP: usize = 13;

/// UIDVALIDITY, UIDNEXT, UIDs, flags, keywords, modseqs.
type Told<'a> = (u32, u32, &'a [u32], &'a [u8], Vec<Vec<usize>>, Vec<u64>);

/// What must come back however the state was written.
fn told(state: &State) -> Told<'_> {
    assert!(state.uids.is_sorted_by(|a, b| a < b) && state.uids.len() == state.flags.len());
    assert!(state.uids.last().is_none_or(|last| *last < state.header.next_uid));
    let rows = 0..state.uids.len();
    let keywords = rows.clone().map(|row| state.keywords_of(row).collect()).collect();
    let modseqs = rows.map(|row| state.modseq_of(row)).collect();
    (state.header.uid_validity, state.header.next_uid, &state.uids, &state.flags, keywords, modseqs)
}

/// Reads all that an index tells, adds a message, and flags and expunges one; then writes everything anew.
fn work_on(paths: &Paths) -> Result<()> {
    let Some(mut index) = Index::open(paths.clone())? else { return Ok(()) };
    let history = index.history(0, 0)?;
    assert!(history.expunged.keys().all(|uid| index.state().row(*uid).is_none()));
    let mut writer = index.lock(Duration::ZERO)?;
    let state = writer.state().clone();
    let flags = FlagSet { system: Flags::SEEN, keywords: Keyword::new("mutated").into_iter().collect() };
    let remove = FlagSet::system(Flags::SEEN.union(Flags::DELETED));
    let modseq = ModSeq::new(state.highest_modseq()).unwrap_or_default();
    let appended = Appended { uid: state.header.next_uid, flags: flags.clone(), modseq, data: Vec::new() };
    let flagged = state.uids.last().map(|uid| Flagged { uid: *uid, add: flags, remove, modseq });
    let edit = Edit {
        appended: Some(appended).into_iter().filter(|mail| mail.uid < u32::MAX).collect(),
        flagged: flagged.into_iter().collect(),
        expunged: state.uids.first().map(|uid| (*uid, [1; 16])).into_iter().collect(),
        ..Edit::default()
    };
    let goal = Goal {
        uid_next_min: Uid::MIN,
        modseq_min: modseq,
        uid_validity: UidValidity::new(7),
        unfinished: false,
    };
    assert!(edit.fits(&state));
    edit.rebuilt(&state, goal, &[]);
    writer.append(edit.transaction(&state, goal, &[]), Fsync::Never)?;
    let state = writer.state().clone();
    assert_eq!(state.row(edit.expunged.first().map_or(0, |gone| gone.0)), None);
    assert!(edit.appended.iter().all(|mail| state.row(mail.uid).is_some()));
    writer.snapshot(Fsync::Never)?;
    writer.rotate(Fsync::Never)?;
    assert_eq!(told(writer.state()), told(&state), "rotated");
    drop(writer);
    let again = Index::open(paths.clone())?.expect("just written");
    assert_eq!(told(again.state()), told(&state), "read again");
    Ok(())
}

#[test]
fn indexes() {
    let memory = Path::new("/dev/shm");
    let dir = tempfile::tempdir_in(if memory.is_dir() { memory } else { Path::new("/tmp") }).expect("made");
    let (mut worked, mut failed) = (0, 0);
    let step = if std::env::var_os("DSYNC_LONG").is_some() { 1 } else { LIMITS_STEP };
    for (fixture, place, prefix) in INDEXES {
        let fixture = Fixture::unpack(fixture);
        let suffixes = ["", ".log", ".log.2"];
        let files: Vec<Option<Vec<u8>>> = suffixes
            .iter()
            .map(|suffix| fs::read(fixture.home().join(place).join(format!("{prefix}{suffix}"))).ok())
            .collect();
        let paths = Paths { directory: dir.path().join("index"), prefix: prefix.into() };
        for (i, sample) in files.iter().enumerate() {
            let Some(sample) = sample else { continue };
            // A log alone is as good as both where it starts the index; then it is read from its beginning.
            for alone in [false, true] {
                let mut damaged = |bytes: &[u8]| {
                    let _ = fs::remove_dir_all(&paths.directory);
                    fs::create_dir(&paths.directory).expect("made");
                    for (j, file) in files.iter().enumerate().filter(|(j, _)| *j == i || !alone) {
                        let content = if i == j { Some(bytes) } else { file.as_deref() };
                        if let Some(content) = content {
                            let path = paths.directory.join(format!("{prefix}{}", suffixes[j]));
                            fs::write(path, content).expect("written");
                        }
                    }
                    match work_on(&paths) {
                        Ok(()) => worked += 1,
                        Err(_) => failed += 1,
                    }
                };
                let what = format!("{place}{}", suffixes[i]);
                feed(&what, std::slice::from_ref(sample), INDEX_MUTATIONS, &mut damaged);
                feed(&what, &at_limits(sample, step), 0, &mut damaged);
            }
        }
    }
    assert!(worked > 1000 && failed > 100, "damage is found, or does no harm: {worked} {failed}");
}

#[test]
fn annotations() {
    let guid = "ea2a9328a54d046be271000087ad316d";
    let text = format!("priv/{guid}/comment\nmy \"note\"\nshared/{guid}/vendor/x\n\u{1}t\u{1}n\n");
    let dir = tempfile::tempdir().expect("made");
    let path = dir.path().join("dovecot-attributes");
    let added = AttributeKey {
        mailbox: MailboxGuid::parse(guid).expect("a GUID"),
        scope: AttributeScope::Shared,
        key: "added".into(),
    };
    feed("dovecot-attributes", &[text.into_bytes()], 1000, |bytes| {
        fs::write(&path, bytes).expect("written");
        let attributes = Attributes::new(&path, Fsync::Never);
        let before = attributes.list().expect("any bytes are read");
        attributes.change(&[(added.clone(), Some(b"\0\n".to_vec()))].into()).expect("set");
        let mut after = attributes.list().expect("read");
        assert_eq!(after.remove(&added), Some(AttributeValue::Bytes(b"\0\n".to_vec())));
        assert_eq!(after, before);
    });
}

/// Files of an account: the fixture, how its account is named, the file.
const FILES: [(&str, &str, &str); 6] = [
    ("mbox", "mail", "mail/Archive"),
    ("mbox", "mail", "mail/Lists/2024/Q1"),
    // What is broken here is put aside, and made anew from the mailboxes.
    ("mdbox-layoutindex", "mdbox", "mdbox/dovecot.list.index.log"),
    ("sdbox", "sdbox", "sdbox/mailboxes/INBOX/dbox-Mails/u.10"),
    ("sdbox", "sdbox", "sdbox/subscriptions"),
    ("mdbox", "mdbox", "mdbox/storage/m.1"),
];

#[test]
fn accounts_with_a_damaged_file() {
    for (name, root, path) in FILES {
        let fixture = Fixture::unpack(name);
        let format =
            ["mbox", "sdbox", "mdbox"].into_iter().find(|format| name.starts_with(format)).expect("known");
        let mut account = Account::of(format, fixture.home().join(root));
        if name.ends_with("layoutindex") {
            account.options = ":LAYOUT=index".into();
        }
        let path = fixture.home().join(path);
        let Ok(bytes) = fs::read(&path) else { panic!("{}", path.display()) };
        feed(&path.display().to_string(), &[bytes], 60, |bytes| {
            fs::write(&path, bytes).expect("written");
            let location = Location::parse(&account.location(), None).expect("a valid location");
            if let Ok(mut storage) = location.open(Fsync::Never) {
                read_all(&mut *storage);
            }
        });
    }
}

#[test]
fn mailbox_logs() {
    let dir = tempfile::tempdir().expect("made");
    let layout = Layout::new(Format::Maildir, dir.path().to_owned());
    let records: Vec<u8> = (0..4u8)
        .flat_map(|kind| [&[kind + 1, 1, 2, 3][..], &[7; 16], &[0x69, 0, 0, kind]].concat())
        .collect();
    feed("dovecot.mailbox.log", &[records], 1000, |bytes| {
        fs::write(dir.path().join("dovecot.mailbox.log"), bytes).expect("written");
        if let Ok(records) = dsync_storage::mailbox_log::read(&layout) {
            assert!(records.len() <= bytes.len() / 24 + 1);
        }
    });
}

#[test]
fn notes() {
    let guid = MailboxGuid([3; 16]);
    let (validity, next) = (UidValidity::new(7).expect("valid"), Uid::new(90).expect("valid"));
    let mut mailbox = MailboxBase::new(validity, next);
    for uid in (1..80).filter(|uid| uid % 7 != 0) {
        let keywords = Keyword::new(if uid % 2 == 0 { "$One" } else { "$Two" }).into_iter().collect();
        mailbox.insert(Uid::new(uid).expect("valid"), &FlagSet { system: Flags::SEEN, keywords });
    }
    let mut base = Base::default();
    base.mailboxes.insert(guid, mailbox);
    base.tree.insert(MailboxName::inbox(), BaseNode { mailbox: Some(guid), ..BaseNode::default() });
    let bytes = base.to_bytes();
    feed("base", &[bytes.clone(), bytes[24..].to_vec()], 3000, |damaged| {
        // With its sum, damage is found; with the right sum, what cannot be is found.
        let sum = xxhash_rust::xxh3::xxh3_128_with_seed(damaged, Digest::SEED).to_le_bytes();
        let _ = Base::from_bytes(damaged);
        if let Ok(base) = Base::from_bytes(&[&bytes[..8], &sum, damaged].concat()) {
            assert_eq!(Base::from_bytes(&base.to_bytes()).as_ref(), Ok(&base));
        }
    });
    // Statuses that are kept for the next run.
    let dir = tempfile::tempdir().expect("made");
    let account = Account::new(dir.path().join("mail"));
    account.deliver("", "a:2,S", b"x\n");
    let mut entry = b"dsyncst1".to_vec();
    entry.extend_from_slice(&[5; 66]);
    entry.extend_from_slice(&[4, 0]);
    entry.extend_from_slice(b"/a/b");
    feed("status", &[entry], 300, |bytes| {
        fs::write(account.root.join(".dsync-status"), bytes).expect("written");
        read_all(&mut *account.open());
    });
}

#[test]
fn configurations() {
    let dir = tempfile::tempdir().expect("made");
    let (conf, passwd) = (dir.path().join("dsync.conf"), dir.path().join("passwd"));
    let users =
        "alice:{PLAIN}secret:1000:1000::/home/alice::userdb_mail=maildir:~/Maildir\nbob:x:::::\n# no\n:::\n";
    let text = format!(
        "# a comment\nmail_location = maildir:/srv/%d/%n\nprotocol imap {{\n  ssl = required\n}}\npassdb {{\n  driver = passwd-file\n  args = scheme=PLAIN {0}\n}}\n\
         userdb {{\n  driver = passwd-file\n  args = username_format=%u {0}\n}}\nssl_cert = <{0}\n!include_try {0}.d/*.conf\nplugin {{\n  quota = \"a \\\"b\\\" c\"\n}}\n",
        passwd.display()
    );
    let ask = || {
        let Ok(settings) = Settings::load(Some(&conf), &[]) else { return };
        let _ = (iterate(&settings), verify(&settings, "alice", "secret"), settings.ssl_cert());
        if let Ok(user) = lookup(&settings, "alice") {
            let _ = settings.mail_location(&user);
        }
    };
    fs::write(&passwd, users).expect("written");
    feed("dsync.conf", &[text.clone().into_bytes()], 300, |bytes| {
        fs::write(&conf, bytes).expect("written");
        ask();
    });
    fs::write(&conf, text).expect("written");
    feed("passwd-file", &[users.as_bytes().to_vec()], 300, |bytes| {
        fs::write(&passwd, bytes).expect("written");
        ask();
    });
}

#[test]
fn names_of_maildir() {
    let samples = [&b"1700000001.M1P1.host,S=12,W=13:2,FRSTabz"[..], b"&APw-x.name,S=:2,", b":2,S"];
    let samples: Vec<Vec<u8>> = samples.iter().map(|name| name.to_vec()).collect();
    feed("file names", &samples, 60, |bytes| {
        let name: Vec<u8> =
            bytes.iter().copied().filter(|byte| !matches!(byte, 0 | b'/')).take(250).collect();
        let dir = tempfile::tempdir().expect("made");
        let account = Account::new(dir.path().join("mail"));
        account.deliver("", "1:2,", b"1");
        let path = account.root.join("cur").join(OsStr::from_bytes(&name));
        if name.is_empty() || fs::write(path, b"2").is_err() {
            return;
        }
        read_all(&mut *account.open());
        read_all(&mut *account.open());
        assert_eq!(fs::read_dir(account.root.join("cur")).expect("readable").count(), 2, "no file is lost");
    });
}
