//! `dovecot-attributes`: annotations of mailboxes, in Dovecot's file dict (storage formats reference, 5.3).
//!
//! Only the file; which annotations are whose, and their log in the index, is settled elsewhere.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use dsync_model::MailboxGuid;

use crate::lock::DotLock;
use crate::{Fsync, Result, StorageError, disk};

/// Who sees an annotation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Scope {
    Private,
    Shared,
}

/// A file of annotations.
pub struct Attributes {
    path: PathBuf,
    fsync: Fsync,
}

/// Keys and values as the file has them, without escapes.
type Entries = BTreeMap<Vec<u8>, Vec<u8>>;

const LOCK_WAIT: Duration = Duration::from_secs(30);
/// Largest file that is read.
const BYTES_MAX: u64 = 256 << 20;
/// What stands behind 0x01 for a byte that a line cannot hold.
const ESCAPES: [(u8, u8); 5] = [(1, b'1'), (b'\t', b't'), (b'\n', b'n'), (b'\r', b'r'), (0, b'0')];

impl Attributes {
    /// Of the file at `path`, which need not exist.
    pub fn new(path: impl Into<PathBuf>, fsync: Fsync) -> Attributes {
        Attributes { path: path.into(), fsync }
    }

    /// The value of one annotation.
    pub fn value(&self, scope: Scope, mailbox: MailboxGuid, key: &str) -> Result<Option<Vec<u8>>> {
        Ok(read(&self.path)?.remove(&full_key(scope, mailbox, key)))
    }

    /// All annotations of a mailbox, sorted.
    pub fn list(&self, mailbox: MailboxGuid) -> Result<BTreeMap<(Scope, String), Vec<u8>>> {
        let mut found = BTreeMap::new();
        for (key, value) in read(&self.path)? {
            for scope in [Scope::Private, Scope::Shared] {
                let rest = key.strip_prefix(&*full_key(scope, mailbox, ""));
                if let Some(rest) = rest.and_then(|rest| std::str::from_utf8(rest).ok()) {
                    found.insert((scope, rest.to_owned()), value.clone());
                }
            }
        }
        Ok(found)
    }

    /// Sets an annotation, or with `None` removes it.
    pub fn set(&self, scope: Scope, mailbox: MailboxGuid, key: &str, value: Option<&[u8]>) -> Result<()> {
        let lock = DotLock::take(&self.path, LOCK_WAIT)?;
        let mut entries = read(&self.path)?;
        let key = full_key(scope, mailbox, key);
        let before = match value {
            Some(value) => entries.insert(key, value.to_owned()),
            None => entries.remove(&key),
        };
        if before.as_deref() != value {
            let name = self.path.file_name().unwrap_or_default().to_string_lossy();
            let temporary = self.path.with_file_name(format!(".dsync-{name}.tmp"));
            disk::replace(&self.path, &temporary, &to_bytes(&entries), self.fsync)?;
        }
        drop(lock);
        Ok(())
    }
}

fn full_key(scope: Scope, mailbox: MailboxGuid, key: &str) -> Vec<u8> {
    let scope = match scope {
        Scope::Private => "priv",
        Scope::Shared => "shared",
    };
    format!("{scope}/{mailbox}/{key}").into_bytes()
}

fn read(path: &Path) -> Result<Entries> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Entries::new()),
        Err(error) => return Err(StorageError::io(path)(error)),
    };
    let mut bytes = Vec::new();
    let read = file.take(BYTES_MAX + 1).read_to_end(&mut bytes).map_err(StorageError::io(path))?;
    if read as u64 > BYTES_MAX {
        return Err(StorageError::Corrupt {
            path: path.to_owned(),
            line: 0,
            what: "file is larger than 256 MiB",
        });
    }
    Ok(parse(&bytes))
}

/// Reads pairs of lines; a key without a whole line after it has no value, and is left out.
fn parse(bytes: &[u8]) -> Entries {
    let whole = memchr::memrchr(b'\n', bytes).unwrap_or(0);
    let mut lines = bytes[..whole].split(|b| *b == b'\n');
    let mut entries = Entries::new();
    while let (Some(key), Some(value)) = (lines.next(), lines.next()) {
        entries.insert(unescape(key), unescape(value));
    }
    entries
}

fn to_bytes(entries: &Entries) -> Vec<u8> {
    let mut out = Vec::new();
    for line in entries.iter().flat_map(|(key, value)| [key, value]) {
        for byte in line {
            match ESCAPES.iter().find(|(plain, _)| plain == byte) {
                Some((_, code)) => out.extend_from_slice(&[1, *code]),
                None => out.push(*byte),
            }
        }
        out.push(b'\n');
    }
    out
}

fn unescape(line: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(line.len());
    let mut bytes = line.iter();
    while let Some(byte) = bytes.next() {
        if *byte != 1 {
            out.push(*byte);
        } else if let Some(code) = bytes.next() {
            out.push(ESCAPES.iter().find(|(_, known)| known == code).map_or(*code, |(plain, _)| *plain));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_reference() {
        let guid = MailboxGuid::parse("ea2a9328a54d046be271000087ad316d").unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("dovecot-attributes");
        let text = format!("priv/{guid}/comment\nmy \"quoted\" note\nshared/{guid}/comment\ntab\u{1}there\n");
        std::fs::write(&path, &text).unwrap();
        let attributes = Attributes::new(&path, Fsync::Never);
        let value = |scope| attributes.value(scope, guid, "comment").unwrap();
        assert_eq!(value(Scope::Shared).as_deref(), Some(&b"tab\there"[..]));
        assert_eq!(value(Scope::Private).as_deref(), Some(&b"my \"quoted\" note"[..]));
        attributes.set(Scope::Private, guid, "a/b", Some(b"\0\x01\r\n")).unwrap();
        attributes.set(Scope::Private, MailboxGuid([7; 16]), "x", Some(b"")).unwrap();
        let keys: Vec<_> = attributes.list(guid).unwrap().into_keys().collect();
        let key = |scope, text: &str| (scope, text.to_owned());
        let all = [(Scope::Private, "a/b"), (Scope::Private, "comment"), (Scope::Shared, "comment")];
        assert_eq!(keys, all.map(|(scope, text)| key(scope, text)));
        attributes.set(Scope::Private, guid, "a/b", None).unwrap();
        attributes.set(Scope::Private, MailboxGuid([7; 16]), "x", None).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "no lock is left");
    }

    proptest::proptest! {
        #[test]
        fn what_is_written_is_read(entries: Entries) {
            proptest::prop_assert_eq!(parse(&to_bytes(&entries)), entries);
        }

        #[test]
        fn any_bytes_are_read(bytes: Vec<u8>) {
            let entries = parse(&bytes);
            proptest::prop_assert_eq!(parse(&to_bytes(&entries)), entries);
        }
    }
}
