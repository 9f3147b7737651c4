//! Dot-locks: a file beside the one that is locked, which says who made it. As Dovecot takes them (storage formats reference, 3.1).
//!
//! While we hold one, it is locked by `flock` too, which ends with the process. So it is known of our own whether they are held, even where a pid is used
//! again, as that of the only process of a container is; and of those who find a lock left behind, one alone takes it away.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;

use super::{POLL, host_name, is_at, process, process_exists};
use crate::{Result, StorageError, disk};

/// Age from which a dot-lock that nobody touches is stale.
const STALE: Duration = Duration::from_secs(120);
/// What is read of a lock: longer than any pid and host name.
const HOLDER_BYTES_MAX: u64 = 512;

/// A dot-lock; released when dropped.
#[derive(Debug)]
pub struct DotLock {
    path: PathBuf,
    /// `None`: only pretended, there is nothing to remove.
    file: Option<File>,
}

/// What became of an attempt to take away a lock that is in the way.
enum Found {
    /// It is gone.
    Gone,
    /// It is somebody's; what it says.
    Held(String),
}

impl DotLock {
    /// Takes `<file>.lock`, waiting at most `wait`. A lock is broken if its process is gone from this host; or if it names none
    /// of this host, and for two minutes nobody has touched it or the file.
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
        let me = format!("{}:{}", std::process::id(), host_name());
        loop {
            match disk::create_locked(&path, mode, me.as_bytes()) {
                Ok(made) => return Ok(DotLock { path, file: (!disk::pretends()).then_some(made) }),
                Err(StorageError::Io { source, .. }) if source.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
            let holder = match clear(file, &path, stale)? {
                Found::Gone => continue,
                Found::Held(holder) => holder,
            };
            if begun.elapsed() >= wait {
                let holder = match holder.trim().split_once(':') {
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
        let Some(file) = &self.file else { return };
        if !is_at(file, &self.path) {
            tracing::warn!("{}: somebody took this lock away from us", self.path.display());
            return;
        }
        // Left behind, it is broken by the next one who finds us gone.
        if let Err(error) = disk::remove(&self.path) {
            tracing::warn!("{error}: lock cannot be removed");
        }
    }
}

/// Takes away the lock that is there, if nobody holds it.
fn clear(file: &Path, path: &Path, stale: Duration) -> Result<Found> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
    let open = |write| OpenOptions::new().read(true).write(write).custom_flags(flags).open(path);
    let mut lock = match open(true).or_else(|_| open(false)) {
        Ok(lock) => lock,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Found::Gone),
        // Nobody tells whose it is.
        Err(_) if is_old(file, path, stale) => return disk::remove(path).map(|()| Found::Gone),
        Err(_) => return Ok(Found::Held(String::new())),
    };
    let mut holder = String::new();
    // What is no text names nobody.
    let _ = (&mut lock).take(HOLDER_BYTES_MAX).read_to_string(&mut holder);
    let here = holder.trim().split_once(':').filter(|(_, host)| *host == host_name());
    let pid = here.and_then(|(pid, _)| pid.parse::<u32>().ok()).filter(|pid| *pid > 0);
    // One of our number before us, or we ourselves.
    let may_be_ours = pid == Some(std::process::id());
    let is_left = match pid {
        Some(pid) => may_be_ours || !process_exists(&pid.to_string()),
        None => is_old(file, path, stale),
    };
    if !is_left {
        return Ok(Found::Held(holder));
    }
    // Whoever of us holds it has it locked, and whoever else takes it away. A file system that has no such locks tells nothing of our own.
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Ok(Found::Held(holder)),
        Err(_) if may_be_ours => return Ok(Found::Held(holder)),
        Err(_) => {}
    }
    if is_at(&lock, path) {
        disk::remove(path)?;
        // A Dovecot may be about to take away the same one, and must not find ours in its place: it waits, too.
        std::thread::sleep(POLL);
    }
    Ok(Found::Gone)
}

/// Says whether for so long nobody has touched the lock or what it locks.
fn is_old(file: &Path, lock: &Path, stale: Duration) -> bool {
    let age = |meta: std::io::Result<fs::Metadata>| {
        let changed = meta.and_then(|meta| meta.modified()).ok()?;
        Some(SystemTime::now().duration_since(changed).unwrap_or_default())
    };
    age(fs::symlink_metadata(lock)).is_some_and(|age| age > stale)
        && age(fs::metadata(file)).is_none_or(|age| age > stale)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn lock(dir: &tempfile::TempDir, text: &str) -> PathBuf {
        let path = dir.path().join("box.lock");
        fs::write(&path, text).unwrap();
        path
    }

    fn take(dir: &tempfile::TempDir) -> std::result::Result<DotLock, String> {
        DotLock::take(&dir.path().join("box"), Duration::ZERO).map_err(|error| error.to_string())
    }

    #[test]
    fn a_lock_says_whose_it_is_from_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let held = take(&dir).unwrap();
        let path = dir.path().join("box.lock");
        let me = format!("{}:{}", std::process::id(), host_name());
        assert_eq!(fs::read_to_string(&path).unwrap(), me);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(take(&dir).unwrap_err().contains(&format!("pid {}", std::process::id())));
        drop(held);
        assert!(!path.exists());
        // One process of this number held it before, and was killed.
        lock(&dir, &me);
        drop(take(&dir).unwrap());
        assert!(!path.exists());
    }

    #[test]
    fn the_lock_of_a_process_that_was_killed_is_broken_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut holder = Command::new("sleep").arg("600").spawn().unwrap();
        let path = lock(&dir, &format!("{}:{}", holder.id(), host_name()));
        // However old it is.
        File::open(&path).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
        assert!(take(&dir).unwrap_err().contains(&format!("pid {} (sleep)", holder.id())));
        holder.kill().unwrap();
        // Nobody asks how it ended yet: its number stays taken.
        drop(DotLock::take(&dir.path().join("box"), Duration::from_secs(20)).unwrap());
        assert!(Path::new(&format!("/proc/{}", holder.id())).exists());
        holder.wait().unwrap();
        lock(&dir, &format!("{}:{}\n", holder.id(), host_name()));
        drop(take(&dir).unwrap());
    }

    #[test]
    fn a_lock_that_names_no_process_of_this_host_is_somebodys_until_it_is_old() {
        let dir = tempfile::tempdir().unwrap();
        for text in ["", "1", "0:here", "999999999:elsewhere.example", ":", "\u{1}:\u{2}"] {
            let text = text.replace("here", &host_name());
            let path = lock(&dir, &text);
            assert!(take(&dir).is_err(), "{text:?}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
            File::open(&path).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
            drop(take(&dir).unwrap());
        }
        fs::write(dir.path().join("box.lock"), b"\xff\xfe:x").unwrap();
        assert!(take(&dir).is_err());
    }

    /// Of many that find a lock left behind one has it at a time.
    #[test]
    fn one_alone_takes_what_was_left_behind() {
        let dir = tempfile::tempdir().unwrap();
        let mut gone = Command::new("true").spawn().unwrap();
        gone.wait().unwrap();
        let left = format!("{}:{}", gone.id(), host_name());
        let held = std::sync::atomic::AtomicU32::new(0);
        for _ in 0..5 {
            lock(&dir, &left);
            std::thread::scope(|scope| {
                for _ in 0..8 {
                    scope.spawn(|| {
                        let lock = DotLock::take(&dir.path().join("box"), Duration::from_secs(60)).unwrap();
                        assert_eq!(held.fetch_add(1, std::sync::atomic::Ordering::SeqCst), 0);
                        std::thread::yield_now();
                        held.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                        drop(lock);
                    });
                }
            });
        }
    }

    #[test]
    fn a_lock_that_was_taken_away_is_left_to_who_has_it_now() {
        let dir = tempfile::tempdir().unwrap();
        let held = take(&dir).unwrap();
        fs::remove_file(dir.path().join("box.lock")).unwrap();
        let path = lock(&dir, "1:elsewhere.example");
        drop(held);
        assert!(path.exists());
    }
}
