//! Locks: the one lock of a store, the lock of a user that `doveadm sync -l` takes, those of open files; and who holds them.
//!
//! Dot-locks, as Dovecot takes them, are in `dot`.

mod dot;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

pub use self::dot::DotLock;
use crate::{Result, StorageError, disk};

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

/// Says whether a process of this number runs on this host. One that was killed and whose parent has not asked how it ended does not.
pub fn process_exists(pid: &str) -> bool {
    let Some(pid) = pid.parse().ok().and_then(rustix::process::Pid::from_raw) else { return false };
    // What we may not signal is there.
    if rustix::process::test_kill_process(pid) == Err(rustix::io::Errno::SRCH) {
        return false;
    }
    let has_ended = |stat: &str| {
        let state = stat.rsplit_once(')').and_then(|(_, behind)| behind.trim_start().chars().next());
        matches!(state, Some('Z' | 'X'))
    };
    // The first thread may end before the others.
    let threads =
        fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero())).into_iter().flatten().flatten();
    let mut threads =
        threads.filter_map(|thread| fs::read_to_string(thread.path().join("stat")).ok()).peekable();
    threads.peek().is_none() || !threads.all(|stat| has_ended(&stat))
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

/// The file that `doveadm sync -l` locks in a user's home (semantics reference 10.1).
const SYNC_LOCK: &str = ".dovecot-sync.lock";

/// The lock of a user: Dovecot's own, which is there only while somebody holds it.
#[derive(Debug)]
pub struct UserLock {
    path: PathBuf,
    _file: File,
}

impl UserLock {
    /// Takes the lock in this home, waiting at most `wait`. While it is held, the file says `me`.
    ///
    /// `None`: whoever holds it is `peer`, the other end of the same session, whose home this is as well; or no file can be made
    /// there, and then Dovecot could make none either.
    pub fn take(home: &Path, me: &str, peer: &str, wait: Duration) -> Result<Option<UserLock>> {
        if disk::pretends() {
            return Ok(None);
        }
        let path = home.join(SYNC_LOCK);
        let begun = Instant::now();
        let flags = rustix::fs::OFlags::NOFOLLOW.bits() as i32;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(flags);
        loop {
            let file = match options.open(&path) {
                Ok(file) => file,
                Err(error) if is_no_place(&error) => {
                    tracing::debug!("{}: {error}: not locked against doveadm sync -l", path.display());
                    return Ok(None);
                }
                Err(error) => return Err(StorageError::io(&path)(error)),
            };
            match fcntl(&file, FcntlArg::F_OFD_SETLK(&whole_file(nix::libc::F_WRLCK))) {
                Ok(_) if is_at(&file, &path) => {
                    let told = file.set_len(0).and_then(|()| (&file).write_all(me.as_bytes()));
                    let lock = UserLock { path: path.clone(), _file: file };
                    return told.map(|()| Some(lock)).map_err(StorageError::io(&path));
                }
                // Its holder took it away, and another is there, or none.
                Ok(_) => continue,
                Err(Errno::EAGAIN | Errno::EACCES) => {}
                Err(errno) => return Err(StorageError::io(&path)(errno.into())),
            }
            let mut text = [0; 100];
            let length = file.read_at(&mut text, 0).unwrap_or(0);
            if text[..length] == *peer.as_bytes() {
                return Ok(None);
            }
            if begun.elapsed() >= wait {
                return Err(StorageError::Locked { path, holder: holder(&file), waited: wait });
            }
            std::thread::sleep(POLL);
        }
    }
}

impl Drop for UserLock {
    fn drop(&mut self) {
        // While it is still locked: who waits for it looks whether it is still there.
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!("{}: lock cannot be removed: {error}", self.path.display());
        }
    }
}

/// Says whether a home is one where nobody can make files.
fn is_no_place(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{NotADirectory, NotFound, PermissionDenied, ReadOnlyFilesystem};
    matches!(error.kind(), NotADirectory | NotFound | PermissionDenied | ReadOnlyFilesystem)
}

/// Says whether an open file is the one that has this name now.
fn is_at(file: &File, path: &Path) -> bool {
    let place = |meta: fs::Metadata| (meta.dev(), meta.ino());
    file.metadata().ok().map(place) == fs::symlink_metadata(path).ok().map(place)
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
                // It is open for reading alone, as it may not be written.
                Err(Errno::EBADF) => return Err(StorageError::io(path)(Errno::EACCES.into())),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_locked_by_one_session_and_by_both_its_ends() {
        let home = tempfile::tempdir().unwrap();
        let take = |me: &str, peer: &str| UserLock::take(home.path(), me, peer, Duration::from_millis(50));
        let lock = take("a", "b").unwrap().expect("it is free");
        assert!(take("b", "a").unwrap().is_none(), "the other end of this session has it");
        assert!(matches!(take("b", "c"), Err(StorageError::Locked { .. })));
        assert!(matches!(take("b", ""), Err(StorageError::Locked { .. })));
        drop(lock);
        assert!(!home.path().join(SYNC_LOCK).exists());
        // What somebody left behind, who is gone, is no lock.
        fs::write(home.path().join(SYNC_LOCK), "b").unwrap();
        drop(take("a", "c").unwrap().expect("it is free"));
        // Whoever waits for a file that goes takes the one that comes.
        let lock = take("a", "b").unwrap();
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| UserLock::take(home.path(), "c", "d", Duration::from_secs(20)));
            std::thread::sleep(Duration::from_millis(60));
            drop(lock);
            assert!(waits.join().unwrap().unwrap().is_some());
        });
    }

    #[test]
    fn a_home_that_is_not_there_or_leads_elsewhere_is_not_written() {
        let home = tempfile::tempdir().unwrap();
        let none = UserLock::take(&home.path().join("no"), "a", "b", Duration::ZERO);
        assert!(none.unwrap().is_none());
        std::os::unix::fs::symlink("/dev/null", home.path().join(SYNC_LOCK)).unwrap();
        assert!(UserLock::take(home.path(), "a", "b", Duration::ZERO).is_err());
        let _pretend = disk::Pretend::begin();
        assert!(UserLock::take(home.path(), "a", "b", Duration::ZERO).unwrap().is_none());
    }
}
