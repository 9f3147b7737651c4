//! Locks: dot-locks as Dovecot takes them, and the one lock of a store.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use crate::{Result, StorageError, disk};

/// Age from which a dot-lock that nobody touches is stale (storage formats reference, 3.1).
const STALE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(20);
/// How long a session waits for a lock if it does not say so itself.
const PATIENCE: Duration = Duration::from_secs(30);

thread_local! {
    static WAIT: Cell<Duration> = const { Cell::new(PATIENCE) };
}

/// How long to wait for a lock: what the session of this thread said when it locked its store (`-l`).
pub fn patience() -> Duration {
    WAIT.get()
}

/// Sets it. An end of a session runs on one thread, or both on the same, with the same options.
pub fn set_patience(wait: Duration) {
    WAIT.set(wait);
}

/// A dot-lock; released when dropped.
#[derive(Debug)]
pub struct DotLock {
    path: PathBuf,
    /// Not only pretended: there is a file to remove.
    real: bool,
}

impl DotLock {
    /// Takes `<file>.lock`, waiting at most `wait`. A lock whose process is gone from this host is broken, and so is one if
    /// for two minutes nobody has touched it or the file.
    pub fn take(file: &Path, wait: Duration) -> Result<DotLock> {
        DotLock::take_stale(file, wait, STALE)
    }

    /// The same with another age from which a lock that nobody touches is stale.
    pub fn take_stale(file: &Path, wait: Duration, stale: Duration) -> Result<DotLock> {
        let mut name = file.as_os_str().to_owned();
        name.push(".lock");
        let path = PathBuf::from(name);
        let begun = Instant::now();
        let mode = disk::file_mode(file.parent().unwrap_or(Path::new(".")));
        loop {
            match disk::create(&path, mode) {
                Ok(mut lock) => {
                    disk::write(
                        &mut lock,
                        format!("{}:{}", std::process::id(), host_name()).as_bytes(),
                        &path,
                    )?;
                    return Ok(DotLock { path, real: !disk::pretends() });
                }
                Err(StorageError::Io { source, .. })
                    if source.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
            let holder = fs::read_to_string(&path).unwrap_or_default();
            if is_stale(file, &path, &holder, stale) {
                disk::remove(&path)?;
                continue;
            }
            if begun.elapsed() >= wait {
                let holder = match holder.split_once(':') {
                    Some((pid, host)) => process(pid.parse().unwrap_or(0), host),
                    None => "another program".to_owned(),
                };
                return Err(StorageError::Locked { path, holder, waited: wait });
            }
            std::thread::sleep(POLL);
        }
    }

    /// Shows that the holder still works. To be called every ten seconds or so.
    pub fn touch(&self) -> Result<()> {
        disk::touch(&self.path)
    }
}

impl Drop for DotLock {
    fn drop(&mut self) {
        // Left behind, it is broken by the next one who finds our pid gone.
        if self.real
            && let Err(error) = disk::remove(&self.path)
        {
            tracing::warn!("{error}: lock cannot be removed");
        }
    }
}

fn is_stale(file: &Path, lock: &Path, holder: &str, stale: Duration) -> bool {
    let gone = holder.split_once(':').is_some_and(|(pid, host)| host == host_name() && !process_exists(pid));
    let age = |meta: std::io::Result<fs::Metadata>| {
        let changed = meta.and_then(|meta| meta.modified()).ok()?;
        Some(SystemTime::now().duration_since(changed).unwrap_or_default())
    };
    let old = age(fs::symlink_metadata(lock)).is_some_and(|age| age > stale)
        && age(fs::metadata(file)).is_none_or(|age| age > stale);
    gone || old
}

/// Says whether a process of this number runs on this host.
pub fn process_exists(pid: &str) -> bool {
    pid.parse::<u32>().is_ok_and(|pid| Path::new(&format!("/proc/{pid}")).exists())
}

/// The name of this host, as it stands in locks and file names: without `/` and `:`.
pub fn host_name() -> String {
    let name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
    let name: String =
        name.chars().map(|c| if matches!(c, '/' | ':') || c.is_control() { '_' } else { c }).collect();
    if name.is_empty() { "localhost".into() } else { name }
}

static HELD: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// The lock of a store: an open-file-description lock on a file, and an entry among those that this process holds.
#[derive(Debug)]
pub struct FileLock {
    path: PathBuf,
    _file: File,
}

impl FileLock {
    /// Takes the lock on the regular file `path`, waiting at most `wait`.
    pub fn take(path: &Path, wait: Duration) -> Result<FileLock> {
        if disk::pretends() {
            // Nobody's path: dropping it lets go of nothing.
            return Ok(FileLock { path: PathBuf::new(), _file: disk::memory_file(&[], path)? });
        }
        let begun = Instant::now();
        let flags = rustix::fs::OFlags::NOFOLLOW.bits() as i32;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(flags);
        let file = options.open(path).map_err(StorageError::io(path))?;
        let held = |paths: &mut BTreeSet<PathBuf>| paths.insert(path.to_owned());
        loop {
            if held(&mut HELD.lock().unwrap_or_else(PoisonError::into_inner)) {
                match fcntl(&file, FcntlArg::F_OFD_SETLK(&whole_file(nix::libc::F_WRLCK))) {
                    Ok(_) => break,
                    Err(errno) => {
                        HELD.lock().unwrap_or_else(PoisonError::into_inner).remove(path);
                        if !matches!(errno, Errno::EAGAIN | Errno::EACCES) {
                            return Err(StorageError::io(path)(errno.into()));
                        }
                    }
                }
            }
            if begun.elapsed() >= wait {
                let mut text = [0; 300];
                let length = file.read_at(&mut text, 0).unwrap_or(0);
                let told = String::from_utf8_lossy(&text[..length]).trim().to_owned();
                // The file tells of other hosts too, the system of this one.
                let told = told.strip_prefix("pid ").and_then(|told| told.split_once(" on "));
                let told = told.and_then(|(pid, host)| Some(process(pid.parse().ok()?, host)));
                let holder = told.unwrap_or_else(|| holder(&file));
                return Err(StorageError::Locked { path: path.to_owned(), holder, waited: wait });
            }
            std::thread::sleep(POLL);
        }
        let who = format!("pid {} on {}", std::process::id(), host_name());
        let told = file.set_len(0).and_then(|()| (&file).write_all(who.as_bytes()));
        let lock = FileLock { path: path.to_owned(), _file: file };
        told.map_err(StorageError::io(path))?;
        Ok(lock)
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        HELD.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.path);
    }
}

/// An open-file-description lock on a whole file that is open already, as writers of Dovecot's logs take it: it excludes
/// Dovecot's own locks, and outlives the closing of other descriptors of the file.
#[derive(Debug)]
pub struct OfdLock {
    file: File,
    path: PathBuf,
}

impl OfdLock {
    /// Locks the file, waiting at most `wait`. `path` is for people.
    pub fn take(file: &File, path: &Path, wait: Duration) -> Result<OfdLock> {
        let begun = Instant::now();
        // The same description: the lock goes with an explicit unlock, not with this handle.
        let file = file.try_clone().map_err(StorageError::io(path))?;
        let mut pause = Duration::from_micros(200);
        loop {
            match fcntl(&file, FcntlArg::F_OFD_SETLK(&whole_file(nix::libc::F_WRLCK))) {
                Ok(_) => return Ok(OfdLock { file, path: path.to_owned() }),
                Err(Errno::EAGAIN | Errno::EACCES) => {}
                Err(errno) => return Err(StorageError::io(path)(errno.into())),
            }
            if begun.elapsed() >= wait {
                return Err(StorageError::Locked {
                    path: path.to_owned(),
                    holder: holder(&file),
                    waited: wait,
                });
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(POLL);
        }
    }
}

impl Drop for OfdLock {
    fn drop(&mut self) {
        if let Err(errno) = fcntl(&self.file, FcntlArg::F_OFD_SETLK(&whole_file(nix::libc::F_UNLCK))) {
            tracing::warn!("{}: lock cannot be released: {errno}", self.path.display());
        }
    }
}

/// Who holds the lock of a file, as far as the system tells: pid, program and host.
pub fn holder(file: &File) -> String {
    let mut lock = whole_file(nix::libc::F_WRLCK);
    let told = fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock));
    // Of locks that belong to an open file, not to a process, it tells no pid.
    let pid = if told.is_ok() && lock.l_pid > 0 { u32::try_from(lock.l_pid).ok() } else { None };
    match pid.or_else(|| find_holder(file)) {
        Some(pid) => process(pid, &host_name()),
        None => "another program".to_owned(),
    }
}

/// A process for people. Its program is known if it runs on this host.
fn process(pid: u32, host: &str) -> String {
    let here = host == host_name();
    let program = if here { fs::read_to_string(format!("/proc/{pid}/comm")).ok() } else { None };
    let printable = |text: &str| text.trim().chars().filter(|c| !c.is_control()).collect::<String>();
    match program {
        Some(program) => format!("pid {pid} ({}) on {}", printable(&program), printable(host)),
        None => format!("pid {pid} on {}", printable(host)),
    }
}

/// Looks through the open files of all processes that we may look into for one that has this file locked.
fn find_holder(file: &File) -> Option<u32> {
    let wanted = file.metadata().map(|meta| (meta.dev(), meta.ino())).ok()?;
    let numbers = |directory: &Path| -> Vec<u32> {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
    };
    numbers(Path::new("/proc")).into_iter().find(|pid| {
        let process = PathBuf::from(format!("/proc/{pid}"));
        numbers(&process.join("fd")).into_iter().any(|fd| {
            let same = fs::metadata(process.join(format!("fd/{fd}")))
                .is_ok_and(|meta| (meta.dev(), meta.ino()) == wanted);
            same && fs::read_to_string(process.join(format!("fdinfo/{fd}")))
                .is_ok_and(|info| info.contains("\nlock:"))
        })
    })
}

/// An fcntl lock of this kind on a whole file.
pub fn whole_file(kind: i32) -> nix::libc::flock {
    nix::libc::flock {
        l_type: kind as i16,
        l_whence: nix::libc::SEEK_SET as i16,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}
