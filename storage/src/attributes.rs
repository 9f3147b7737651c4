//! `dovecot-attributes`: annotations of mailboxes, in Dovecot's file dict (storage formats reference, 5.3).
//!
//! Only the file: of changes, which Dovecot logs in the index of the mailbox, see [`Mailbox::attribute_log`](crate::Mailbox::attribute_log).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use dsync_model::{
    ATTRIBUTE_BYTES_MAX, ATTRIBUTE_KEY_BYTES_MAX, AttributeChanges, AttributeKey, AttributeList,
    AttributeScope, AttributeValue, MailboxGuid,
};

use crate::lock::{DotLock, patience};
use crate::{Fsync, Result, StorageError, disk};

/// Where an account has its annotations.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Place {
    /// With what else is kept once for the account: nobody says.
    #[default]
    Usual,
    File(PathBuf),
    /// In a dict (as the setting has it) that we do not speak.
    Elsewhere(String),
}

/// A file of annotations.
pub struct Attributes {
    path: PathBuf,
    fsync: Fsync,
}

/// Keys and values as the file has them, without escapes.
type Entries = BTreeMap<Vec<u8>, Vec<u8>>;

/// Largest file that is read.
const BYTES_MAX: u64 = 256 << 20;
/// What stands behind 0x01 for a byte that a line cannot hold.
const ESCAPES: [(u8, u8); 5] = [(1, b'1'), (b'\t', b't'), (b'\n', b'n'), (b'\r', b'r'), (0, b'0')];

impl Attributes {
    /// Of the file at `path`, which need not exist.
    pub fn new(path: impl Into<PathBuf>, fsync: Fsync) -> Attributes {
        Attributes { path: path.into(), fsync }
    }

    /// All annotations. What is no key of a mailbox, or too long a key, is left out.
    pub fn list(&self) -> Result<AttributeList> {
        let entries = read(&self.path)?.into_iter();
        let value = |bytes: Vec<u8>| match bytes.len() {
            0..=ATTRIBUTE_BYTES_MAX => AttributeValue::Bytes(bytes),
            _ => AttributeValue::TooLarge,
        };
        Ok(entries.filter_map(|(key, bytes)| Some((parse_key(&key)?, value(bytes)))).collect())
    }

    /// Makes changes, all of them or none. The file is made only if there is something to keep.
    pub fn change(&self, changes: &AttributeChanges) -> Result<()> {
        let lock = DotLock::take(&self.path, patience())?;
        let mut entries = read(&self.path)?;
        let mut changed = false;
        for (key, value) in changes {
            let key = full_key(key);
            let before = match value {
                Some(value) => entries.insert(key, value.clone()),
                None => entries.remove(&key),
            };
            changed |= before != *value;
        }
        if changed {
            let name = self.path.file_name().unwrap_or_default().to_string_lossy();
            let temporary = self.path.with_file_name(format!(".dsync-{name}.tmp"));
            disk::replace(&self.path, &temporary, &to_bytes(&entries), self.fsync)?;
        }
        drop(lock);
        Ok(())
    }
}

fn full_key(key: &AttributeKey) -> Vec<u8> {
    let scope = match key.scope {
        AttributeScope::Private => "priv",
        AttributeScope::Shared => "shared",
    };
    format!("{scope}/{}/{}", key.mailbox, key.key).into_bytes()
}

fn parse_key(bytes: &[u8]) -> Option<AttributeKey> {
    let mut parts = std::str::from_utf8(bytes).ok()?.splitn(3, '/');
    let scope = match parts.next()? {
        "priv" => AttributeScope::Private,
        "shared" => AttributeScope::Shared,
        _ => return None,
    };
    let key = AttributeKey {
        scope,
        mailbox: MailboxGuid::parse(parts.next()?)?,
        key: parts.next().filter(|key| !key.is_empty() && key.len() <= ATTRIBUTE_KEY_BYTES_MAX)?.to_owned(),
    };
    // A GUID in capitals would come back as another key.
    (full_key(&key) == bytes).then_some(key)
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
    use crate::lock::set_patience;

    #[test]
    fn a_lock_that_stays_held_is_waited_for_as_long_as_the_session_says() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("dovecot-attributes");
        let _held = DotLock::take(&path, std::time::Duration::ZERO).unwrap();
        let wait = std::time::Duration::from_millis(30);
        let before = patience();
        set_patience(wait);
        let outcome = Attributes::new(&path, Fsync::Never).change(&AttributeChanges::new());
        set_patience(before);
        assert!(matches!(outcome, Err(StorageError::Locked { waited, .. }) if waited == wait));
    }

    #[test]
    fn the_example_of_the_reference() {
        let guid = MailboxGuid::parse("ea2a9328a54d046be271000087ad316d").unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("dovecot-attributes");
        let text = format!(
            "other\nx\npriv/{guid}/comment\nmy \"quoted\" note\nshared/{guid}/comment\ntab\u{1}there\n"
        );
        std::fs::write(&path, &text).unwrap();
        let attributes = Attributes::new(&path, Fsync::Never);
        let key = |scope, key: &str| AttributeKey { mailbox: guid, scope, key: key.into() };
        let value = |bytes: &[u8]| AttributeValue::Bytes(bytes.to_vec());
        let first = [
            (key(AttributeScope::Private, "comment"), value(b"my \"quoted\" note")),
            (key(AttributeScope::Shared, "comment"), value(b"tab\there")),
        ];
        assert_eq!(attributes.list().unwrap(), first.clone().into());
        let (odd, big) = (key(AttributeScope::Private, "a/b"), key(AttributeScope::Shared, "big"));
        let large = vec![b'x'; ATTRIBUTE_BYTES_MAX + 1];
        attributes
            .change(&[(odd.clone(), Some(b"\0\x01\r\n".to_vec())), (big.clone(), Some(large))].into())
            .unwrap();
        let listed = attributes.list().unwrap();
        assert_eq!(listed[&odd], value(b"\0\x01\r\n"));
        assert_eq!(listed[&big], AttributeValue::TooLarge);
        attributes.change(&[(odd, None), (big, None)].into()).unwrap();
        assert_eq!(attributes.list().unwrap(), first.into());
        let entry = |line: &str| std::fs::read_to_string(&path).unwrap().contains(line);
        assert!(entry("other\nx\n") && entry("tab\u{1}there\n"), "what is not ours stays");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "no lock is left");
    }

    #[test]
    fn removing_from_nothing_makes_no_file() {
        let directory = tempfile::tempdir().unwrap();
        let attributes = Attributes::new(directory.path().join("dovecot-attributes"), Fsync::Never);
        attributes.change(&[(AttributeKey::first_of(MailboxGuid([7; 16])), None)].into()).unwrap();
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
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
