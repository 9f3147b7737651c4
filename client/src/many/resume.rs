//! The file of finished users, by which an interrupted run goes on.
//!
//! Its first line says which run it belongs to; then each line is a user. Lines are made durable in groups; a torn last line does
//! not count, and its user is done again.

use std::collections::HashSet;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;

use crate::Failed;

/// How a file of finished users begins.
const MARK: &str = "dsync finished users of: ";
/// Largest file that is read.
const BYTES_MAX: u64 = 256 << 20;

/// The file, open and locked.
pub struct Finished {
    path: PathBuf,
    before: HashSet<String>,
    names: Sender<String>,
    writer: JoinHandle<io::Result<()>>,
}

impl Finished {
    /// Opens or makes the file, which must be one of a run with this purpose.
    pub fn open(path: &Path, purpose: &str) -> Result<Finished, Failed> {
        let failed = |error: io::Error| {
            Failed::file(format!("--resume: {}: cannot be written", path.display()), error)
        };
        let refused = |what: String| Failed::usage(format!("--resume: {}: {what}", path.display()));
        let head = format!("{MARK}{}\n", purpose.escape_debug());
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let what = format!("--resume: {}: another run is using it", path.display());
                return Err(Failed::new(75, anyhow::Error::msg(what)));
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        let mut text = String::new();
        match (&mut file).take(BYTES_MAX).read_to_string(&mut text) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(refused("is no file of finished users".into()));
            }
            Err(error) => return Err(failed(error)),
        }
        let whole = text.rfind('\n').map_or(0, |at| at + 1);
        let (known, torn) = text.split_at(whole);
        let before = match known.strip_prefix(&head) {
            Some(names) => names.lines().map(str::to_owned).collect(),
            // Nothing, or a head that was being written.
            None if known.is_empty() && head.starts_with(torn) => HashSet::new(),
            None if known.starts_with(MARK) => {
                return Err(refused("belongs to another run; name another file, or remove it".into()));
            }
            None => return Err(refused("is no file of finished users".into())),
        };
        let write = || -> io::Result<()> {
            file.set_len(whole as u64)?;
            file.seek(SeekFrom::Start(whole as u64))?;
            if whole == 0 {
                file.write_all(head.as_bytes())?;
            }
            file.sync_all()?;
            match path.parent() {
                Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
                _ => File::open(".")?.sync_all(),
            }
        };
        let mut write = write;
        write().map_err(failed)?;
        let (names, receiver) = mpsc::channel();
        let writer = std::thread::spawn(move || append(file, &receiver));
        Ok(Finished { path: path.to_owned(), before, names, writer })
    }

    /// Says whether an earlier run has done this user.
    pub fn has(&self, name: &str) -> bool {
        self.before.contains(name)
    }

    /// Notes a user.
    pub fn add(&self, name: String) {
        // It fails if the writer has failed, and `end` tells.
        let _ = self.names.send(name);
    }

    /// Makes all durable. When `all` users are done the file has served, and goes.
    pub fn end(self, all: bool) -> Result<(), Failed> {
        let Finished { path, names, writer, .. } = self;
        drop(names);
        let written = match writer.join() {
            Ok(written) => written,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        let removed = if all { std::fs::remove_file(&path) } else { Ok(()) };
        written.and(removed).map_err(|error| {
            let place = format!("--resume: {}", path.display());
            Failed::new(75, anyhow::Error::from(error).context(place))
        })
    }
}

/// Writes what has come, and makes it durable before it takes more.
fn append(mut file: File, names: &Receiver<String>) -> io::Result<()> {
    while let Ok(first) = names.recv() {
        let lines: String = std::iter::once(first).chain(names.try_iter()).map(|name| name + "\n").collect();
        file.write_all(lines.as_bytes())?;
        file.sync_data()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_goes_on_behind_its_last_whole_line() {
        let dir = std::env::temp_dir().join(format!("dsync-resume-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("done");
        let finished = Finished::open(&path, "backup x").unwrap();
        assert!(!finished.has("alice"));
        finished.add("alice".into());
        finished.add("bob".into());
        assert!(Finished::open(&path, "backup x").is_err_and(|failed| failed.status == 75));
        finished.end(false).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("{text}caro")).unwrap();
        assert!(Finished::open(&path, "backup y").is_err_and(|failed| failed.status == 64));
        let finished = Finished::open(&path, "backup x").unwrap();
        assert_eq!(["alice", "bob", "caro"].map(|name| finished.has(name)), [true, true, false]);
        finished.add("dora".into());
        finished.end(false).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{text}dora\n"));
        // Each place where a crash may have cut it.
        for cut in 0..text.len() {
            std::fs::write(&path, &text[..cut]).unwrap();
            Finished::open(&path, "backup x").unwrap().end(false).unwrap();
        }
        std::fs::write(&path, "alice\nbob\n").unwrap();
        assert!(Finished::open(&path, "backup x").is_err());
        std::fs::remove_file(&path).unwrap();
        Finished::open(&path, "backup x").unwrap().end(true).unwrap();
        assert!(!path.exists());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
