//! The locks of an mbox file (storage formats reference, 7.5). Every program on the host takes them in the same
//! order, or they wait for each other: the order is a setting.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use rustix::fs::FlockOperation;

use super::journal;
use crate::lock::{DotLock, holder, patience, whole_file};
use crate::{Result, StorageError, disk};

const POLL: Duration = Duration::from_millis(20);
/// How often a holder shows that it is alive.
const TOUCH: Duration = Duration::from_secs(10);

/// One kind of lock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Method {
    /// An open-file-description lock: keeps POSIX locks out, and is not lost when another descriptor is closed.
    Fcntl,
    Dotlock,
    /// The same, left out where no lock file can be made.
    DotlockTry,
    Flock,
}

/// The kinds of lock to be taken, in their order: `fcntl dotlock`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Methods(Vec<Method>);

impl Default for Methods {
    /// What Debian's Dovecot takes for writing.
    fn default() -> Methods {
        Methods(vec![Method::Fcntl, Method::Dotlock])
    }
}

impl From<Method> for Methods {
    fn from(method: Method) -> Methods {
        Methods(vec![method])
    }
}

impl FromStr for Methods {
    type Err = StorageError;

    fn from_str(text: &str) -> Result<Methods> {
        let mut methods = Vec::new();
        for word in text.split_ascii_whitespace() {
            let method = match word {
                // On Linux the same lock.
                "fcntl" | "lockf" => Method::Fcntl,
                "dotlock" => Method::Dotlock,
                "dotlock_try" => Method::DotlockTry,
                "flock" => Method::Flock,
                _ => return Err(StorageError::Location(format!("{word}: no lock method for mbox"))),
            };
            if !methods.contains(&method) {
                methods.push(method);
            }
        }
        if methods.is_empty() {
            return Err(StorageError::Location("mbox needs a lock method".into()));
        }
        Ok(Methods(methods))
    }
}

/// How mbox files are locked.
#[derive(Clone, Debug)]
pub struct Locking {
    pub read: Methods,
    pub write: Methods,
    /// How long to wait for the locks of a file, if a setting says it; else as long as for every lock ([`patience`], `-l`).
    pub wait: Option<Duration>,
    /// How long nobody must have touched a lock file nor its mbox, until it is taken for a leftover.
    pub stale: Duration,
}

impl Default for Locking {
    /// As Debian's Dovecot locks, without its patience of five minutes.
    fn default() -> Locking {
        Locking {
            read: Methods::from(Method::Fcntl),
            write: Methods::default(),
            wait: None,
            stale: Duration::from_secs(120),
        }
    }
}

impl Locking {
    /// What settings leave open stays as it is.
    pub fn set(
        mut self,
        read: Option<&str>,
        write: Option<&str>,
        wait: Option<Duration>,
        stale: Option<Duration>,
    ) -> Result<Locking> {
        if let Some(read) = read {
            self.read = read.parse()?;
        }
        if let Some(write) = write {
            self.write = write.parse()?;
        }
        self.wait = wait.or(self.wait);
        self.stale = stale.unwrap_or(self.stale);
        Ok(self)
    }
}

/// What a lock is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    Read,
    Write,
}

/// An open mbox file with its locks, which last until this is dropped.
#[derive(Debug)]
pub struct MboxLock {
    // Before the file: the lock taken last goes first, and nobody finds a lock file without a locked file.
    dotlock: Option<DotLock>,
    touched: Instant,
    file: File,
    path: PathBuf,
    access: Access,
}

impl MboxLock {
    /// Opens and locks an existing mbox. If a process died while it wrote it anew, that is finished first.
    pub fn take(path: &Path, locking: &Locking, access: Access) -> Result<MboxLock> {
        let mut lock = Self::take_as_it_is(path, locking, access)?;
        if !journal::is_left(&lock)? || disk::pretends() {
            return Ok(lock);
        }
        if access == Access::Read {
            drop(lock);
            drop(Self::take(path, locking, Access::Write)?);
            return Self::take_as_it_is(path, locking, access);
        }
        journal::finish(&mut lock)?;
        Ok(lock)
    }

    fn take_as_it_is(path: &Path, locking: &Locking, access: Access) -> Result<MboxLock> {
        let methods = if access == Access::Read { &locking.read } else { &locking.write };
        let wait = locking.wait.unwrap_or_else(patience);
        let until = Instant::now() + wait;
        loop {
            // A named pipe would wait for its other end.
            let mut options = OpenOptions::new();
            options.read(true).write(access == Access::Write).custom_flags(libc::O_NONBLOCK);
            let file = options.open(path).map_err(StorageError::io(path))?;
            if !file.metadata().map_err(StorageError::io(path))?.is_file() {
                return Err(StorageError::Impossible(format!("{}: is no regular file", path.display())));
            }
            let mut lock =
                MboxLock { dotlock: None, touched: Instant::now(), file, path: path.to_owned(), access };
            for method in &methods.0 {
                let left = until.saturating_duration_since(Instant::now());
                match method {
                    Method::Dotlock | Method::DotlockTry => {
                        match DotLock::take_stale(path, left, locking.stale) {
                            Err(StorageError::Io { .. }) if *method == Method::DotlockTry => {}
                            taken => lock.dotlock = Some(taken.map_err(|error| waited(error, wait))?),
                        }
                        lock.touched = Instant::now();
                    }
                    method => lock_file(&lock.file, path, *method, access, until, wait)?,
                }
            }
            if lock.is_current()? {
                return Ok(lock);
            }
            if Instant::now() >= until {
                let (path, holder) = (path.to_owned(), "programs that replace it".to_owned());
                return Err(StorageError::Locked { path, holder, waited: wait });
            }
        }
    }

    /// The open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn access(&self) -> Access {
        self.access
    }

    /// Says whether the path still names the open file.
    fn is_current(&self) -> Result<bool> {
        let ours = self.file.metadata().map_err(StorageError::io(&self.path))?;
        let there = std::fs::metadata(&self.path);
        Ok(there.is_ok_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino())))
    }

    /// Keeps the lock file young while much is written.
    pub(super) fn keep(&mut self) -> Result<()> {
        if let Some(dotlock) = self.dotlock.as_ref().filter(|_| self.touched.elapsed() >= TOUCH) {
            dotlock.touch()?;
            self.touched = Instant::now();
        }
        Ok(())
    }
}

/// A dotlock that had only what was left of the time says how long all of it was.
fn waited(error: StorageError, wait: Duration) -> StorageError {
    match error {
        StorageError::Locked { path, holder, .. } => StorageError::Locked { path, holder, waited: wait },
        other => other,
    }
}

fn lock_file(
    file: &File,
    path: &Path,
    method: Method,
    access: Access,
    until: Instant,
    wait: Duration,
) -> Result<()> {
    let wanted = whole_file(if access == Access::Read { libc::F_RDLCK } else { libc::F_WRLCK });
    loop {
        let locked = match (method, access) {
            (Method::Flock, Access::Read) => flock(file, FlockOperation::NonBlockingLockShared),
            (Method::Flock, Access::Write) => flock(file, FlockOperation::NonBlockingLockExclusive),
            _ => fcntl(file, FcntlArg::F_OFD_SETLK(&wanted)).map(drop),
        };
        match locked {
            Ok(()) => return Ok(()),
            Err(Errno::EAGAIN | Errno::EACCES) => {}
            Err(errno) => return Err(StorageError::io(path)(errno.into())),
        }
        if Instant::now() >= until {
            return Err(StorageError::Locked { path: path.to_owned(), holder: holder(file), waited: wait });
        }
        std::thread::sleep(POLL);
    }
}

fn flock(file: &File, operation: FlockOperation) -> std::result::Result<(), Errno> {
    rustix::fs::flock(file, operation).map_err(|errno| Errno::from_raw(errno.raw_os_error()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::lock::set_patience;

    fn methods(text: &str) -> Methods {
        text.parse().unwrap()
    }

    fn locking(text: &str, wait: Duration) -> Locking {
        Locking { read: methods(text), write: methods(text), wait: Some(wait), ..Locking::default() }
    }

    #[test]
    fn settings_are_read_in_their_order() {
        assert_eq!(methods("dotlock fcntl").0, [Method::Dotlock, Method::Fcntl]);
        assert_eq!(methods(" flock  fcntl fcntl ").0, [Method::Flock, Method::Fcntl]);
        assert_eq!(Methods::default(), methods("fcntl dotlock"));
        assert_eq!(methods("lockf dotlock_try").0, [Method::Fcntl, Method::DotlockTry]);
        for bad in ["", "posix", "fcntl,dotlock"] {
            assert!(bad.parse::<Methods>().is_err(), "{bad}");
        }
    }

    #[test]
    fn writers_keep_everybody_out_and_readers_only_writers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("box");
        fs::write(&path, "").unwrap();
        let take = |text: &str, access| MboxLock::take(&path, &locking(text, Duration::ZERO), access);
        for text in ["fcntl", "flock", "dotlock", "fcntl dotlock", "dotlock fcntl flock"] {
            let writer = take(text, Access::Write).unwrap();
            for access in [Access::Read, Access::Write] {
                let error = take(text, access).unwrap_err();
                assert!(matches!(error, StorageError::Locked { .. }), "{text}: {error}");
            }
            drop(writer);
            assert!(!dir.path().join("box.lock").exists(), "{text}");
        }
        let readers = (take("fcntl", Access::Read).unwrap(), take("fcntl", Access::Read).unwrap());
        assert!(take("fcntl", Access::Write).is_err());
        drop(readers);
        take("fcntl", Access::Write).unwrap();
        let error = take("dotlock", Access::Write).and_then(|_held| take("dotlock", Access::Write));
        let text = error.unwrap_err().to_string();
        assert!(text.contains(&format!("pid {}", std::process::id())), "{text}");
    }

    #[test]
    fn what_is_no_regular_file_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR).unwrap();
        for path in [pipe.as_path(), Path::new("/dev/null"), dir.path()] {
            let error = MboxLock::take(path, &Locking::default(), Access::Read).unwrap_err();
            assert!(error.to_string().contains("is no regular file"), "{error}");
        }
    }

    #[test]
    fn without_a_setting_the_wait_is_that_of_every_lock() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mbox");
        std::fs::write(&path, "").unwrap();
        let held = MboxLock::take(&path, &Locking::default(), Access::Write).unwrap();
        set_patience(Duration::ZERO);
        let begun = Instant::now();
        let error = MboxLock::take(&path, &Locking::default(), Access::Read).err().unwrap();
        assert!(matches!(error, StorageError::Locked { waited: Duration::ZERO, .. }), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(20));
        drop(held);
        assert!(MboxLock::take(&path, &Locking::default(), Access::Read).is_ok());
    }

    #[test]
    fn a_file_that_is_replaced_while_we_wait_is_opened_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("box");
        fs::write(&path, "old").unwrap();
        let held = MboxLock::take(&path, &locking("fcntl", Duration::ZERO), Access::Write).unwrap();
        let (told, tell) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| {
                told.send(()).unwrap();
                MboxLock::take(&path, &locking("fcntl", Duration::from_secs(60)), Access::Read).unwrap()
            });
            tell.recv().unwrap();
            fs::write(dir.path().join("new"), "new").unwrap();
            fs::rename(dir.path().join("new"), &path).unwrap();
            drop(held);
            let lock = waiter.join().unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), "new");
            assert!(lock.is_current().unwrap());
        });
    }
}
