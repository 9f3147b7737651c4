//! `dovecot-uidlist`: which file has which UID (storage formats reference, 6.3).

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use dsync_model::{MailboxGuid, Uid, UidValidity};

use crate::{Fsync, Result, StorageError, disk};

/// Largest uidlist that is read: 10 million lines and more.
const BYTES_MAX: u64 = 4 << 30;

/// One line: a message that has, or had, a UID.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    pub uid: Uid,
    /// Fields such as `G` and `S`, in the order of the file.
    pub fields: Vec<(u8, Box<[u8]>)>,
    /// File name without the part from `:` on.
    pub base: Box<[u8]>,
}

impl Record {
    /// The value of a field.
    pub fn field(&self, key: u8) -> Option<&[u8]> {
        self.fields.iter().find(|(k, _)| *k == key).map(|(_, value)| &**value)
    }
}

/// The whole file.
#[derive(Clone, Debug, Default)]
pub struct UidList {
    pub uid_validity: Option<UidValidity>,
    /// As stored; see [`uid_next`](Self::uid_next).
    stored_next: Option<Uid>,
    pub guid: Option<MailboxGuid>,
    other: Vec<String>,
    /// Ascending by UID, each base name once.
    pub records: Vec<Record>,
    /// The file must be written anew before it is appended to.
    pub rewrite: bool,
    /// Bytes up to the end of the last whole line.
    whole_bytes: u64,
    /// Lines that made no sense.
    pub bad_lines: u32,
}

/// What tells that a file is another than before.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stamp {
    inode: u64,
    size: u64,
    mtime: (i64, i64),
}

impl Stamp {
    /// Of the file or directory at `path`; that of a missing one is its own.
    pub fn of(path: &Path) -> Stamp {
        fs::metadata(path).map_or(Stamp::default(), |meta| Stamp {
            inode: meta.ino(),
            size: meta.size(),
            mtime: (meta.mtime(), meta.mtime_nsec()),
        })
    }

    /// Says whether the last change is so recent that another may share its time.
    pub fn is_recent(self) -> bool {
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |t| t.as_secs() as i64);
        self.mtime.0 + 2 > now
    }
}

/// The file in a control directory.
pub fn path(control: &Path) -> PathBuf {
    control.join("dovecot-uidlist")
}

impl UidList {
    /// Reads the file; a missing one is an empty list. Lines that make no sense are passed over and counted: their
    /// messages get new UIDs, they are not lost.
    pub fn read(control: &Path) -> Result<UidList> {
        let path = path(control);
        let file = match fs::File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(UidList { rewrite: true, ..UidList::default() });
            }
            Err(error) => return Err(StorageError::io(&path)(error)),
        };
        let mut bytes = Vec::new();
        let read = file.take(BYTES_MAX + 1).read_to_end(&mut bytes).map_err(StorageError::io(&path))?;
        if read as u64 > BYTES_MAX {
            return Err(StorageError::Corrupt { path, line: 0, what: "uidlist is larger than 4 GiB" });
        }
        Ok(UidList::parse(&bytes))
    }

    /// Reads the content of the file.
    pub fn parse(bytes: &[u8]) -> UidList {
        let mut list = UidList::default();
        let whole = memchr::memrchr(b'\n', bytes).map_or(0, |at| at + 1);
        list.whole_bytes = whole as u64;
        let mut lines = bytes[..whole].split(|b| *b == b'\n');
        let version = list.header(lines.next().unwrap_or_default());
        list.rewrite = version != Some(3) || list.uid_validity.is_none() || list.guid.is_none();
        let mut last = None;
        let mut seen: BTreeSet<&[u8]> = BTreeSet::new();
        for line in lines.filter(|line| !line.is_empty()) {
            let record = if version == Some(1) { old_record(line) } else { record(line) };
            let usable = record.filter(|(record, base)| last < Some(record.uid) && seen.insert(base));
            match usable {
                Some((record, _)) => {
                    last = Some(record.uid);
                    list.records.push(record);
                }
                None => {
                    list.bad_lines += 1;
                    list.rewrite = true;
                }
            }
        }
        list
    }

    fn header(&mut self, line: &[u8]) -> Option<u8> {
        let line = std::str::from_utf8(line).ok()?;
        let mut words = line.split(' ').filter(|word| !word.is_empty());
        let number = |text: &str| text.parse::<u32>().ok();
        match words.next() {
            Some("1") => {
                self.uid_validity = words.next().and_then(number).and_then(UidValidity::new);
                self.stored_next = words.next().and_then(number).and_then(Uid::new);
                Some(1)
            }
            Some("3") => {
                for word in words {
                    match word.as_bytes()[0] {
                        b'V' => self.uid_validity = number(&word[1..]).and_then(UidValidity::new),
                        b'N' => self.stored_next = number(&word[1..]).and_then(Uid::new),
                        b'G' => self.guid = MailboxGuid::parse(&word[1..]),
                        _ => self.other.push(word.to_owned()),
                    }
                }
                Some(3)
            }
            _ => None,
        }
    }

    /// UIDNEXT: the stored value lags behind appended lines.
    pub fn uid_next(&self) -> Uid {
        let after = self.records.last().and_then(|record| record.uid.next()).unwrap_or(Uid::MIN);
        self.stored_next.map_or(after, |stored| stored.max(after))
    }

    /// Raises UIDNEXT; never lowers it.
    pub fn raise_next(&mut self, uid_next: Uid) {
        if uid_next > self.uid_next() {
            self.stored_next = Some(uid_next);
            self.rewrite = true;
        }
    }

    /// Fixes UIDNEXT before lines are taken out.
    pub fn keep_next(&mut self) {
        self.stored_next = Some(self.uid_next());
    }

    /// The content of the file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = String::from("3");
        if let Some(uid_validity) = self.uid_validity {
            out.push_str(&format!(" V{uid_validity}"));
        }
        out.push_str(&format!(" N{}", self.uid_next()));
        if let Some(guid) = self.guid {
            out.push_str(&format!(" G{guid}"));
        }
        for other in &self.other {
            out.push(' ');
            out.push_str(other);
        }
        out.push('\n');
        let mut out = out.into_bytes();
        self.records.iter().for_each(|record| write_record(record, &mut out));
        out
    }

    /// Brings the file to this list; `new` lines at the end are appended where that suffices. Call with the lock held.
    pub fn write(&mut self, control: &Path, new: usize, policy: Fsync) -> Result<()> {
        let path = path(control);
        if self.rewrite || !path.exists() {
            let bytes = self.to_bytes();
            disk::replace(&path, &control.join("dovecot-uidlist.tmp"), &bytes, policy)?;
            self.whole_bytes = bytes.len() as u64;
        } else if new > 0 {
            let mut lines = Vec::new();
            self.records[self.records.len() - new..]
                .iter()
                .for_each(|record| write_record(record, &mut lines));
            disk::append_at(&path, self.whole_bytes, &lines, policy)?;
            self.whole_bytes += lines.len() as u64;
        }
        self.rewrite = false;
        Ok(())
    }
}

fn write_record(record: &Record, out: &mut Vec<u8>) {
    out.extend_from_slice(record.uid.to_string().as_bytes());
    for (key, value) in &record.fields {
        out.extend_from_slice(&[b' ', *key]);
        out.extend_from_slice(value);
    }
    out.extend_from_slice(b" :");
    out.extend_from_slice(&record.base);
    out.push(b'\n');
}

fn record(line: &[u8]) -> Option<(Record, &[u8])> {
    let space = memchr::memchr(b' ', line)?;
    let uid = uid(&line[..space])?;
    let mut rest = &line[space + 1..];
    let mut fields = Vec::new();
    while *rest.first()? != b':' {
        let end = memchr::memchr(b' ', rest)?;
        if end > 0 {
            fields.push((rest[0], rest[1..end].into()));
        }
        rest = &rest[end + 1..];
    }
    base(&rest[1..]).map(|base| (Record { uid, fields, base: base.into() }, base))
}

fn old_record(line: &[u8]) -> Option<(Record, &[u8])> {
    let space = memchr::memchr(b' ', line)?;
    let uid = uid(&line[..space])?;
    base(&line[space + 1..]).map(|base| (Record { uid, fields: Vec::new(), base: base.into() }, base))
}

/// No message has the last UID that there is: UIDNEXT would have no value.
fn uid(digits: &[u8]) -> Option<Uid> {
    let uid = std::str::from_utf8(digits).ok()?.parse().ok().and_then(Uid::new);
    uid.filter(|uid| uid.next().is_some())
}

/// Older versions stored flags too: what begins with `:` does not count.
fn base(name: &[u8]) -> Option<&[u8]> {
    let base = &name[..memchr::memchr(b':', name).unwrap_or(name.len())];
    (!base.is_empty() && !base.contains(&b'/') && !base.contains(&0)).then_some(base)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_reference() {
        let text = b"3 V1795443142 N22 G51b50630c449046b5d10000087ad316d X7\n2 :1795443140.M843560P4189.mx1.example.test,S=288,W=297\n19 W212 S212 :1700000001.12345_1.foreign.example\n20 W28 S25 :1700000002.M7P8.foreign.example\n";
        let list = UidList::parse(text);
        assert_eq!(list.to_bytes(), text);
        assert_eq!((list.uid_next(), list.records.len(), list.rewrite), (Uid::new(22).unwrap(), 3, false));
        assert_eq!(list.records[1].field(b'S'), Some(&b"212"[..]));
    }

    #[test]
    fn garbage_costs_only_its_own_lines() {
        for (text, uids, next) in [
            (
                "3 V1 N9 G51b50630c449046b5d10000087ad316d\n1 :a\ngarbage\n2 :b\n2 :c\n3 :a\n5 :d/e\n7 :f:2,S\n8 :torn",
                vec![1, 2, 7],
                9,
            ),
            ("1 77 5\n3 x\n4 y:2,S\n", vec![3, 4], 5),
            ("", vec![], 1),
            ("nonsense\n1 :a\n", vec![1], 2),
            ("3 V0 N0\n4294967294 :a\n4294967295 :b\n", vec![u32::MAX - 1], u32::MAX),
        ] {
            let list = UidList::parse(text.as_bytes());
            assert_eq!(list.records.iter().map(|r| r.uid.get()).collect::<Vec<_>>(), uids, "{text}");
            assert_eq!(list.uid_next().get(), next, "{text}");
            assert!(list.rewrite || text.starts_with("3 V1"), "{text}");
        }
    }

    #[test]
    fn any_bytes_give_a_list_that_holds_its_rules() {
        let good = b"3 V1795443142 N22 G51b50630c449046b5d10000087ad316d X7\n2 G1 :a,S=288\n19 W212 S212 Pu O3 :b\n20 :c:2,S\n";
        let mut seed = 7u64;
        let mut next = move || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed
        };
        for _ in 0..50_000 {
            let mut bytes = good.to_vec();
            for _ in 0..1 + next() % 5 {
                let at = (next() % bytes.len() as u64) as usize;
                match next() % 4 {
                    0 => bytes[at] = next() as u8,
                    1 => bytes.truncate(at + 1),
                    2 => bytes.insert(at, b"\n :0:/9\xff\0"[(next() % 9) as usize]),
                    _ => bytes.extend_from_within(at..),
                }
            }
            let mut list = UidList::parse(&bytes);
            assert!(list.records.windows(2).all(|pair| pair[0].uid < pair[1].uid));
            let bases: BTreeSet<&[u8]> = list.records.iter().map(|record| &*record.base).collect();
            assert_eq!(bases.len(), list.records.len());
            // What we write, we read.
            list.keep_next();
            let again = UidList::parse(&list.to_bytes());
            assert_eq!(
                (&again.records, again.uid_next(), again.guid),
                (&list.records, list.uid_next(), list.guid)
            );
        }
    }
}
