//! Reads one mailbox: uidlist and directories together, and gives UIDs to what has none.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use dsync_model::{FlagSet, MailboxGuid, MessageGuid, Uid, UidValidity};

use super::filename::{self, Keywords};
use super::uidlist::{self, Record, Stamp, UidList};
use crate::layout::Places;
use crate::lock::{DotLock, patience};
use crate::status_cache::Fingerprint;
use crate::{Fsync, Result, StorageError, disk};

/// What stands in `cur` and `new` under one base name.
#[derive(Clone, Debug)]
pub struct FileName {
    pub in_new: bool,
    /// The whole name, flags included.
    pub name: Box<[u8]>,
}

impl FileName {
    /// The path of the file.
    pub fn path(&self, mail: &Path) -> PathBuf {
        let directory = mail.join(if self.in_new { "new" } else { "cur" });
        directory.join(std::ffi::OsString::from_vec(self.name.to_vec()))
    }
}

/// A mailbox as it stood at one moment.
#[derive(Clone, Debug)]
pub struct Scan {
    /// With lines of messages that are gone.
    pub list: UidList,
    pub keywords: Keywords,
    /// For each record of the list its file, if it is there.
    pub files: Vec<Option<FileName>>,
    stamps: [Stamp; 4],
}

/// What a mailbox without a uidlist gets.
#[derive(Clone, Copy, Debug)]
pub struct Fresh {
    pub guid: MailboxGuid,
    pub uid_validity: UidValidity,
    /// UIDs below it were given away already.
    pub uid_next: Uid,
}

/// What our files in `tmp` end with.
pub const TMP_SUFFIX: &str = ".dsync";

impl Scan {
    /// Reads the mailbox, and assigns UIDs, a mailbox GUID and UIDVALIDITY where they are missing. `fresh` gives them.
    pub fn take(places: &Places, policy: Fsync, fresh: &mut dyn FnMut() -> Result<Fresh>) -> Result<Scan> {
        let (mut scan, unknown) = Scan::look(places)?;
        if unknown.is_empty() && !scan.list.rewrite {
            return Ok(scan);
        }
        let lock = DotLock::take(&uidlist::path(&places.control), patience())?;
        let (again, unknown) = Scan::look(places)?;
        scan = again;
        scan.complete(places, policy, unknown, fresh)?;
        drop(lock);
        Ok(scan)
    }

    /// Says whether nothing has changed since this was read, as far as times and sizes tell.
    pub fn is_current(&self, places: &Places) -> bool {
        let now = stamps(places);
        now == self.stamps && !now.iter().any(|stamp| stamp.is_recent())
    }

    /// Reads without changing anything. What has no UID comes in order of arrival.
    pub fn look(places: &Places) -> Result<(Scan, Vec<FileName>)> {
        let stamps = stamps(places);
        let list = UidList::read(&places.control)?;
        let keywords = match fs::read(places.control.join("dovecot-keywords")) {
            Ok(bytes) => Keywords::parse(&bytes),
            Err(_) => Keywords::default(),
        };
        let mut by_base: HashMap<&[u8], usize> = HashMap::with_capacity(list.records.len());
        by_base.extend(list.records.iter().enumerate().map(|(i, record)| (&*record.base, i)));
        let mut files: Vec<Option<FileName>> = vec![None; list.records.len()];
        let mut unknown: HashMap<Box<[u8]>, FileName> = HashMap::new();
        let mut doubles = Vec::new();
        // A file that is renamed while we read can be missed: whoever is missing gets a second look.
        for pass in 0..2 {
            for in_new in [true, false] {
                read_names(places, in_new, &mut |name| {
                    let file = FileName { in_new, name: name.into() };
                    match by_base.get(filename::base(name)) {
                        Some(index) => match &mut files[*index] {
                            Some(known) if known.name != file.name || known.in_new != in_new => {
                                if pass == 0 {
                                    doubles.push(file);
                                } else {
                                    *known = file;
                                }
                            }
                            slot => *slot = Some(file),
                        },
                        None => {
                            unknown.insert(filename::base(name).into(), file);
                        }
                    }
                })?;
            }
            if files.iter().all(Option::is_some) {
                break;
            }
        }
        // Where the uidlist lies apart, it stays for an instant when its mailbox is renamed or deleted. None of its messages is expunged.
        if files.iter().any(Option::is_none) && !disk::pretends() && !places.mail.join("cur").is_dir() {
            return Err(StorageError::NoMailbox(places.mail.display().to_string()));
        }
        let mut unknown: Vec<FileName> = unknown.into_values().chain(doubles).collect();
        unknown.sort_by(|a, b| filename::arrival(&a.name).cmp(&filename::arrival(&b.name)));
        Ok((Scan { list, keywords, files, stamps }, unknown))
    }

    fn complete(
        &mut self,
        places: &Places,
        policy: Fsync,
        unknown: Vec<FileName>,
        fresh: &mut dyn FnMut() -> Result<Fresh>,
    ) -> Result<()> {
        if self.list.bad_lines > 0 {
            let (path, lines) = (uidlist::path(&places.control), self.list.bad_lines);
            tracing::warn!("{}: {lines} lines make no sense; their messages get new UIDs", path.display());
        }
        if self.list.guid.is_none() || self.list.uid_validity.is_none() {
            let fresh = fresh()?;
            self.list.guid.get_or_insert(fresh.guid);
            if self.list.uid_validity.is_none() {
                self.list.uid_validity = Some(fresh.uid_validity);
                self.list.raise_next(fresh.uid_next);
            }
            self.list.rewrite = true;
        }
        let mut new = 0;
        let mut known: HashSet<Box<[u8]>> =
            self.list.records.iter().map(|record| record.base.clone()).collect();
        for mut file in unknown {
            let mut base: Box<[u8]> = filename::base(&file.name).into();
            if !known.insert(base.clone()) {
                // The same base name twice: one of them gets a name of its own.
                let path = file.path(&places.mail);
                if same_file(&path, self, &base, places) {
                    disk::remove(&path)?;
                    continue;
                }
                base = fresh_base().into_bytes().into();
                file.name = filename::with_flags(
                    &file.name,
                    &base,
                    &filename::flags(&file.name, &self.keywords),
                    &self.keywords,
                )
                .into();
                file.in_new = false;
                match disk::rename_new(&path, &file.path(&places.mail)) {
                    Err(StorageError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                        continue;
                    }
                    renamed => renamed?,
                }
            }
            let uid = self.list.uid_next();
            if uid.next().is_none() {
                return Err(StorageError::Impossible(format!(
                    "{}: UIDs are exhausted",
                    places.mail.display()
                )));
            }
            self.list.records.push(Record { uid, fields: Vec::new(), base });
            self.files.push(Some(file));
            new += 1;
        }
        self.list.write(&places.control, new, policy)?;
        self.stamps = stamps(places);
        Ok(())
    }

    /// The messages that are there, ascending by UID.
    pub fn messages(&self) -> impl Iterator<Item = (&Record, &FileName)> {
        self.list.records.iter().zip(&self.files).filter_map(|(record, file)| Some((record, file.as_ref()?)))
    }

    /// Place of the message with this UID in `list.records`.
    pub fn index_of(&self, uid: Uid) -> Option<usize> {
        let index = self.list.records.binary_search_by_key(&uid, |record| record.uid).ok()?;
        self.files[index].as_ref().map(|_| index)
    }

    /// The flags of a message.
    pub fn flags(&self, file: &FileName) -> FlagSet {
        filename::flags(&file.name, &self.keywords)
    }

    /// Takes what is on the disk now for known: after our own changes, with the lock still held.
    pub fn refresh_stamps(&mut self, places: &Places) {
        self.stamps = stamps(places);
    }

    /// Says whether the uidlist was changed by somebody else.
    pub fn list_is_current(&self, places: &Places) -> bool {
        Stamp::of(&uidlist::path(&places.control)) == self.stamps[2]
    }
}

/// The GUID of a message: the field `G`, else the base name.
pub fn guid(record: &Record) -> MessageGuid {
    MessageGuid::of_bytes(record.field(b'G').filter(|guid| !guid.is_empty()).unwrap_or(&record.base))
}

/// The size of a message, where uidlist or file name tell it.
pub fn size(record: &Record) -> Option<u64> {
    let field = record.field(b'S').and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
    field.or_else(|| filename::size(&record.base))
}

/// What the mailbox looks like from outside; `None` if it changed only just now.
pub fn fingerprint(places: &Places) -> Option<Fingerprint> {
    let log = places.index.as_ref().map(|index| index.join("dovecot.index.log"));
    let files = [
        places.mail.join("cur"),
        places.mail.join("new"),
        uidlist::path(&places.control),
        places.control.join("dovecot-keywords"),
    ];
    Fingerprint::of(files.iter().map(|file| file.as_path()).chain(log.as_deref()))
}

fn stamps(places: &Places) -> [Stamp; 4] {
    [
        Stamp::of(&places.mail.join("cur")),
        Stamp::of(&places.mail.join("new")),
        Stamp::of(&uidlist::path(&places.control)),
        Stamp::of(&places.control.join("dovecot-keywords")),
    ]
}

fn read_names(places: &Places, in_new: bool, take: &mut dyn FnMut(&[u8])) -> Result<()> {
    let path = places.mail.join(if in_new { "new" } else { "cur" });
    let entries = match fs::read_dir(&path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(StorageError::io(&path)(error)),
    };
    for entry in entries {
        let entry = entry.map_err(StorageError::io(&path))?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let name = entry.file_name().into_vec();
        if matches!(name[0], b'.' | b':') || name.contains(&b'\n') || name.contains(&b'\r') {
            continue;
        }
        take(&name);
    }
    Ok(())
}

fn same_file(path: &Path, scan: &Scan, base: &[u8], places: &Places) -> bool {
    use std::os::unix::fs::MetadataExt;
    let index = scan.list.records.iter().position(|record| &*record.base == base);
    let other = index.and_then(|index| scan.files[index].as_ref()).map(|file| file.path(&places.mail));
    let inode = |path: &Path| fs::symlink_metadata(path).ok().map(|meta| (meta.dev(), meta.ino()));
    other.is_some_and(|other| other != path && inode(path).is_some() && inode(path) == inode(&other))
}

/// A base name that nobody else makes: time, microseconds, pid, a counter, host (reference 6.2).
pub fn fresh_base() -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let (pid, count) = (std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
    format!("{}.M{}P{pid}Q{count}.{}", now.as_secs(), now.subsec_micros(), crate::lock::host_name())
}
