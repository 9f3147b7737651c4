//! Real accounts of every storage format, made by Dovecot, and what Dovecot itself says is in them.
//!
//! `tests/fixtures/formats` has an archive and a listing of each; its README tells how they came about.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use dsync_model::{FlagSet, Flags, MailboxStatus, MessageChange, MessageGuid, ModSeq, Since, Uid};
use dsync_storage::{Fsync, Location, Mailbox, Storage, Support};
use serde::Deserialize;
use sha2::{Digest, Sha256};

/// What Dovecot reports of an account.
#[derive(Clone, Debug, Deserialize)]
pub struct Expected {
    /// Relative to the home directory; a remark in parentheses may follow.
    mail_location: String,
    pub mailboxes: Vec<ExpectedMailbox>,
    pub subscriptions: BTreeSet<String>,
}

/// What Dovecot reports of a mailbox.
#[derive(Clone, Debug, Deserialize)]
pub struct ExpectedMailbox {
    /// In UTF-8, with `/` between its parts.
    pub name: String,
    /// As it is in the file system.
    pub mutf7: String,
    pub guid: String,
    pub uidvalidity: u32,
    pub uidnext: u32,
    pub highestmodseq: u64,
    pub messages: u32,
    pub mails: Vec<ExpectedMail>,
}

/// What Dovecot reports of a message. The sums are those of the form with CRLF.
#[derive(Clone, Debug, Deserialize)]
pub struct ExpectedMail {
    pub uid: u32,
    pub guid: String,
    pub flags: BTreeSet<String>,
    pub keywords: BTreeSet<String>,
    pub modseq: u64,
    pub received: i64,
    pub size_physical: u64,
    pub sha256_message_crlf: String,
    pub sha256_header_crlf: String,
    pub sha256_body_crlf: String,
}

impl Expected {
    /// An allowance: these keywords are not expected in this mailbox. Each must be there, so that none is allowed in vain.
    pub fn forget_keywords(&mut self, mailbox: &str, keywords: &[&str]) {
        let found = self.mailboxes.iter_mut().find(|found| found.name == mailbox);
        let mails = &mut found.expect("the fixture has the mailbox").mails;
        for keyword in keywords {
            let removed = mails.iter_mut().filter_map(|mail| mail.keywords.take(*keyword)).count();
            assert!(removed > 0, "{mailbox}: no message has the keyword {keyword}");
        }
    }
}

/// An account unpacked, for this test alone.
pub struct Fixture {
    dir: tempfile::TempDir,
    pub expected: Expected,
}

impl Fixture {
    /// Unpacks the archive of that name; modification times are kept, as they are dates of mails.
    pub fn unpack(name: &str) -> Fixture {
        let place = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/formats");
        let read = |suffix: &str| {
            let path = place.join(format!("{name}.{suffix}"));
            fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        };
        let expected = serde_json::from_slice(&read("expected.json")).expect("a listing");
        let archive = zstd::decode_all(&*read("tar.zst")).expect("an archive");
        let dir = tempfile::tempdir().expect("made");
        let mut tar = Command::new("tar");
        tar.args(["--no-same-owner", "-xpf", "-", "-C"]).arg(dir.path()).stdin(Stdio::piped());
        let mut tar = tar.spawn().expect("tar runs");
        tar.stdin.take().expect("piped").write_all(&archive).expect("unpacks");
        assert!(tar.wait().expect("tar ends").success());
        Fixture { dir, expected }
    }

    pub fn home(&self) -> &Path {
        self.dir.path()
    }

    /// Opens it as dsync does.
    pub fn open(&self) -> Box<dyn Storage> {
        let location = self.expected.mail_location.split(" (").next().unwrap_or_default();
        let location = Location::parse(location, Some(self.home())).expect("a valid location");
        location.with_attachments(Some(self.home().join("att"))).open(Fsync::Never).expect("opens")
    }

    /// Every file below the home directory, with what would show that it was touched.
    pub fn files(&self) -> BTreeMap<PathBuf, String> {
        let mut files = BTreeMap::new();
        collect(self.home(), &mut files);
        files
            .into_iter()
            .map(|(path, state)| (path.strip_prefix(self.home()).expect("below").into(), state))
            .collect()
    }
}

fn collect(directory: &Path, files: &mut BTreeMap<PathBuf, String>) {
    for entry in fs::read_dir(directory).expect("readable") {
        let path = entry.expect("readable").path();
        let meta = fs::symlink_metadata(&path).expect("is there");
        let content = if meta.is_symlink() {
            format!("{:?}", fs::read_link(&path).expect("a link"))
        } else if meta.is_dir() {
            collect(&path, files);
            files.insert(path, format!("directory {:o}", meta.mode()));
            continue;
        } else {
            sum(&fs::read(&path).expect("readable"))
        };
        let state =
            format!("{:o} {} {}.{} {content}", meta.mode(), meta.ino(), meta.mtime(), meta.mtime_nsec());
        files.insert(path, state);
    }
}

/// The differences between two states of the [`files`](Fixture::files).
pub fn touched(before: &BTreeMap<PathBuf, String>, after: &BTreeMap<PathBuf, String>) -> BTreeSet<PathBuf> {
    let paths = before.keys().chain(after.keys());
    paths.filter(|path| before.get(*path) != after.get(*path)).cloned().collect()
}

/// Lists every difference between what a storage reads and what Dovecot reports.
///
/// Modseqs count only where the storage keeps them.
pub fn compare(storage: &mut dyn Storage, expected: &Expected) -> Vec<String> {
    let mut differences = Differences::default();
    let keeps_modseq = storage.capabilities().modseq == Support::Kept;
    let (tree, problems) = match storage.tree() {
        Ok(found) => found,
        Err(error) => return vec![format!("the account cannot be listed: {error}")],
    };
    differences.list.extend(problems.iter().map(|problem| format!("{}: {}", problem.mailbox, problem.error)));
    let mut found: BTreeMap<String, MailboxStatus> = BTreeMap::new();
    let mut subscriptions = BTreeSet::new();
    for (name, node) in tree {
        let name = name.join('/');
        if node.subscribed {
            subscriptions.insert(name.clone());
        }
        if let Some(status) = node.mailbox {
            found.insert(name, status);
        }
    }
    differences.check("subscriptions", &subscriptions, &expected.subscriptions);
    let names: BTreeSet<&str> = expected.mailboxes.iter().map(|mailbox| &*mailbox.name).collect();
    differences.check("mailboxes", &found.keys().map(|name| &**name).collect(), &names);
    for wanted in &expected.mailboxes {
        let Some(status) = found.get(&wanted.name) else { continue };
        let name = &wanted.name;
        differences.check(&format!("{name}: GUID"), &status.guid.to_string(), &wanted.guid);
        differences.check(&format!("{name}: UIDVALIDITY"), &status.uid_validity.get(), &wanted.uidvalidity);
        differences.check(&format!("{name}: UIDNEXT"), &status.uid_next.get(), &wanted.uidnext);
        differences.check(&format!("{name}: messages"), &status.messages, &wanted.messages);
        if keeps_modseq {
            let highest = status.highest_modseq.get();
            differences.check(&format!("{name}: HIGHESTMODSEQ"), &highest, &wanted.highestmodseq);
        }
        let mailbox = storage.open(status.guid);
        let listed = mailbox.and_then(|mut mailbox| Ok((mailbox.changes(Since::All)?.list, mailbox)));
        match listed {
            Ok((list, mut mailbox)) => {
                differences.check_mails(&mut *mailbox, &list, wanted, keeps_modseq);
            }
            Err(error) => differences.list.push(format!("{name}: cannot be read: {error}")),
        }
    }
    differences.list
}

#[derive(Default)]
struct Differences {
    list: Vec<String>,
}

impl Differences {
    fn check<T: PartialEq + Debug>(&mut self, what: &str, found: &T, wanted: &T) {
        if found != wanted {
            self.list.push(format!("{what}: is {found:?}, should be {wanted:?}"));
        }
    }

    fn check_mails(
        &mut self,
        mailbox: &mut dyn Mailbox,
        list: &[MessageChange],
        wanted: &ExpectedMailbox,
        keeps_modseq: bool,
    ) {
        let name = &wanted.name;
        let found: BTreeMap<u32, (&MessageGuid, ModSeq, &FlagSet)> = list
            .iter()
            .filter_map(|change| match change {
                MessageChange::Save { uid, guid, modseq, flags, .. } => {
                    Some((uid.get(), (guid, *modseq, &flags.current)))
                }
                _ => None,
            })
            .collect();
        let uids: BTreeSet<u32> = wanted.mails.iter().map(|mail| mail.uid).collect();
        self.check(&format!("{name}: UIDs"), &found.keys().copied().collect(), &uids);
        for mail in &wanted.mails {
            let Some((guid, modseq, flags)) = found.get(&mail.uid) else { continue };
            let what = |what: &str| format!("{name}: UID {}: {what}", mail.uid);
            self.check(&what("GUID"), &guid.as_str(), &&*mail.guid);
            let system = Flags::NAMES.iter().filter(|(flag, _)| flags.system.contains(*flag));
            let system: BTreeSet<String> = system.map(|(_, name)| (*name).to_owned()).collect();
            self.check(&what("flags"), &system, &mail.flags);
            let keywords = flags.keywords.iter().map(|keyword| keyword.as_str().to_owned()).collect();
            self.check(&what("keywords"), &keywords, &mail.keywords);
            if keeps_modseq {
                self.check(&what("modseq"), &modseq.get(), &mail.modseq);
            }
            let uid = Uid::new(mail.uid).expect("a fixture has no UID 0");
            let mut body = match mailbox.body(uid, Some(guid)) {
                Ok(Some(body)) => body,
                Ok(None) => {
                    self.list.push(what("is not there"));
                    continue;
                }
                Err(error) => {
                    self.list.push(what(&format!("cannot be opened: {error}")));
                    continue;
                }
            };
            self.check(&what("received"), &body.received.map(|received| received.0), &Some(mail.received));
            let mut bytes = Vec::new();
            match body.reader.read_to_end(&mut bytes) {
                Ok(_) => {
                    self.check(&what("size"), &body.size.unwrap_or(bytes.len() as u64), &mail.size_physical);
                    self.list.extend(compare_text(&bytes, mail).into_iter().map(|text| what(&text)));
                }
                Err(error) => self.list.push(what(&format!("cannot be read: {error}"))),
            }
        }
    }
}

/// Lists the differences between the text of a message as stored and what Dovecot sends of it.
pub fn compare_text(stored: &[u8], wanted: &ExpectedMail) -> Vec<String> {
    let mut differences = Differences::default();
    let message = with_crlf(stored);
    let body = memchr::memmem::find(&message, b"\r\n\r\n").map_or(message.len(), |end| end + 4);
    let body = if message.starts_with(b"\r\n") { 2 } else { body };
    let (header, body) = message.split_at(body);
    differences.check("size as read", &(stored.len() as u64), &wanted.size_physical);
    differences.check("sum of the message", &sum(&message), &wanted.sha256_message_crlf);
    differences.check("sum of the header", &sum(header), &wanted.sha256_header_crlf);
    differences.check("sum of the body", &sum(body), &wanted.sha256_body_crlf);
    differences.list
}

/// The form that IMAP sends: every line end as CRLF, and 0x80 for NUL, which Dovecot puts there as IMAP has no NUL.
fn with_crlf(stored: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(stored.len() + stored.len() / 30);
    for byte in stored {
        if *byte == b'\n' && message.last() != Some(&b'\r') {
            message.push(b'\r');
        }
        message.push(if *byte == 0 { 0x80 } else { *byte });
    }
    message
}

fn sum(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
