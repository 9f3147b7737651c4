//! Steps that change names: files and directories are made with their rights, renamed and removed.

use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::pretending::{is_ours, memory_file};
use super::{Fsync, step};
use crate::{Result, StorageError};

/// Permissions for new files in `directory`: what the directory grants, without execution.
pub fn file_mode(directory: &Path) -> u32 {
    fs::metadata(directory).map_or(0o600, |meta| granted(&meta))
}

/// What a directory grants to the files in it.
fn granted(directory: &Metadata) -> u32 {
    (directory.mode() & 0o666) | 0o600
}

/// Creates a file that must not exist, with the rights and the group that its directory grants.
pub fn create_alike(path: &Path) -> Result<File> {
    let directory = path.parent().and_then(|directory| fs::metadata(directory).ok());
    let mode = directory.as_ref().map_or(0o600, granted);
    if !step(path)? {
        return memory_file(&[], path);
    }
    let made = new_file(path, mode).and_then(|made| match directory {
        Some(directory) if mode & 0o070 != 0 => give_group(made, directory.gid()),
        _ => Ok(made),
    });
    made.map_err(StorageError::io(path))
}

/// Creates a file that must not exist, and follows no link.
pub fn create(path: &Path, mode: u32) -> Result<File> {
    if !step(path)? {
        return memory_file(&[], path);
    }
    new_file(path, mode).and_then(|file| with_group(file, mode, path)).map_err(StorageError::io(path))
}

fn new_file(path: &Path, mode: u32) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW.bits() as i32;
    OpenOptions::new().write(true).create_new(true).mode(mode).custom_flags(flags).open(path)
}

/// Creates a file that must not exist, with this content and locked by `flock`: it is there with all of it, or not at all. Where the file system has no files
/// without a name, it is empty and nobody's for an instant.
pub fn create_locked(path: &Path, mode: u32, content: &[u8]) -> Result<File> {
    if !step(path)? {
        return memory_file(content, path);
    }
    let fill = |mut file: File| {
        // Nobody else has it yet. Where that kind of lock is not known, there is none.
        let _ = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive);
        file.write_all(content).map(|()| file)
    };
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    let nameless = rustix::fs::openat(CWD, directory, flags, Mode::from_raw_mode(mode)).ok();
    let made = match nameless {
        Some(file) => with_group(file.into(), mode, path).and_then(fill).and_then(|file| {
            let place = format!("/proc/self/fd/{}", file.as_raw_fd());
            match rustix::fs::linkat(CWD, place, CWD, path, AtFlags::SYMLINK_FOLLOW) {
                Ok(()) => Ok(Some(file)),
                Err(Errno::EXIST) => Err(Errno::EXIST.into()),
                Err(_) => Ok(None),
            }
        }),
        None => Ok(None),
    };
    let made = match made {
        Ok(None) => new_file(path, mode).and_then(|file| {
            let filled = with_group(file, mode, path).and_then(fill);
            // An empty one would be nobody's for long.
            filled.inspect_err(|_| drop(fs::remove_file(path)))
        }),
        Ok(Some(file)) => Ok(file),
        Err(error) => Err(error),
    };
    made.map_err(StorageError::io(path))
}

/// The same as [`create`], to be read as well.
pub fn create_readable(path: &Path, mode: u32) -> Result<File> {
    if !step(path)? {
        return memory_file(&[], path);
    }
    let flags = OFlags::NOFOLLOW.bits() as i32;
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create_new(true).mode(mode).custom_flags(flags).open(path);
    file.and_then(|file| with_group(file, mode, path)).map_err(StorageError::io(path))
}

/// Gives what was just made the group of the directory it is in, if the group may do anything with it, as Dovecot does. Where that
/// group cannot be given, no other gets its rights. A file that nobody may write is but a mark, and stays as it is.
pub(super) fn with_group(made: File, mode: u32, path: &Path) -> io::Result<File> {
    let Some(directory) = path.parent().filter(|_| mode & 0o070 != 0 && mode & 0o200 != 0) else {
        return Ok(made);
    };
    give_group(made, fs::metadata(directory)?.gid())
}

fn give_group(made: File, wanted: u32) -> io::Result<File> {
    let now = made.metadata()?;
    if now.gid() != wanted && fchown(&made, None, Some(wanted)).is_err() {
        made.set_permissions(Permissions::from_mode(now.mode() & 0o707))?;
    }
    Ok(made)
}

/// Makes a directory and those above it, all of one mode: that of what is there already, and never open to others. An existing one is fine.
pub fn make_directory(path: &Path) -> Result<()> {
    make(path, path, true)
}

/// The same of a directory in one that must be there: what is gone was renamed or deleted by somebody else.
pub fn make_directory_in(path: &Path) -> Result<()> {
    make(path, path, false)
}

/// Makes a directory with the mode and the group that it would have at `place`.
fn make(path: &Path, place: &Path, recursive: bool) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if !step(path)? {
        return Ok(());
    }
    // Of a place that all may look into, only what lies in it directly is like it, without the others.
    let direct = place.parent().is_some_and(Path::is_dir);
    let above = place.ancestors().skip(1).find_map(|above| fs::metadata(above).ok());
    let above = above.filter(|meta| direct || meta.mode() & 0o007 == 0);
    let mode = above.map_or(0o700, |meta| meta.mode() & 0o770 | 0o700);
    let make = || {
        match fs::DirBuilder::new().recursive(recursive).mode(mode).create(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => made?,
        }
        let flags = (OFlags::NOFOLLOW | OFlags::DIRECTORY).bits() as i32;
        let made = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
        with_group(made, mode, place).map(drop)
    };
    make().map_err(StorageError::io(path))
}

/// Makes a directory with all that `fill` puts into it, in one step for whoever looks. It is built as `built`, which nobody looks at.
///
/// Where something is there already, and where it cannot be brought there as a whole, it is filled at its place.
pub fn make_whole(place: &Path, built: &Path, fill: &dyn Fn(&Path) -> Result<()>) -> Result<()> {
    let fill_there = || make_directory(place).and_then(|()| fill(place));
    if super::pretends() || place.exists() {
        return fill_there();
    }
    place.parent().map_or(Ok(()), make_directory)?;
    make(built, place, false)?;
    match fill(built).and_then(|()| rename(built, place)) {
        Err(StorageError::Io { source, .. }) if is_not_brought(&source) => {
            remove_tree(built)?;
            fill_there()
        }
        Err(error) => {
            remove_tree(built)?;
            Err(error)
        }
        Ok(()) => Ok(()),
    }
}

/// Whether a directory cannot be renamed there: something is there, or it is another file system.
fn is_not_brought(error: &io::Error) -> bool {
    use io::ErrorKind::{AlreadyExists, CrossesDevices, DirectoryNotEmpty, NotADirectory};
    matches!(error.kind(), AlreadyExists | CrossesDevices | DirectoryNotEmpty | NotADirectory)
}

/// Renames, and fails if `to` exists.
pub fn rename_new(from: &Path, to: &Path) -> Result<()> {
    if !step(to)? {
        return Ok(());
    }
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
            fs::hard_link(from, to).and_then(|()| fs::remove_file(from)).map_err(StorageError::io(to))
        }
        other => other.map_err(|error| StorageError::io(to)(error.into())),
    }
}

/// Renames over whatever is there.
pub fn rename(from: &Path, to: &Path) -> Result<()> {
    if !step(to)? {
        return Ok(());
    }
    fs::rename(from, to).map_err(StorageError::io(to))
}

/// Makes a link to `target`, which must not be there yet.
pub fn symlink(target: &Path, path: &Path) -> Result<()> {
    if !step(path)? {
        return Ok(());
    }
    std::os::unix::fs::symlink(target, path).map_err(StorageError::io(path))
}

/// Gives a file a second name.
pub fn hard_link(from: &Path, to: &Path) -> Result<()> {
    if !step(to)? {
        return Ok(());
    }
    fs::hard_link(from, to).map_err(StorageError::io(to))
}

/// Gives a directory and a link to it each other's name, in one step where the file system can. Else the link goes first.
pub fn exchange(directory: &Path, link: &Path) -> Result<()> {
    if !step(link)? {
        return Ok(());
    }
    match rustix::fs::renameat_with(CWD, directory, CWD, link, RenameFlags::EXCHANGE) {
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
            fs::remove_file(link).and_then(|()| fs::rename(directory, link)).map_err(StorageError::io(link))
        }
        other => other.map_err(|error| StorageError::io(link)(error.into())),
    }
}

/// Removes a file; one that is gone already is fine.
pub fn remove(path: &Path) -> Result<()> {
    if !step(path)? {
        return Ok(());
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StorageError::io(path)(error)),
        _ => Ok(()),
    }
}

/// Removes a directory tree without following links.
pub fn remove_tree(path: &Path) -> Result<()> {
    if !step(path)? {
        return Ok(());
    }
    fs::remove_dir_all(path).map_err(StorageError::io(path))
}

/// Removes a directory if it is empty.
pub fn remove_empty(path: &Path) -> Result<()> {
    if !step(path)? {
        return Ok(());
    }
    match fs::remove_dir(path) {
        Err(error) if !matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotFound) => {
            Err(StorageError::io(path)(error))
        }
        _ => Ok(()),
    }
}

/// Makes names in a directory durable.
pub fn sync_directory(path: &Path, policy: Fsync) -> Result<()> {
    if policy == Fsync::Never {
        return Ok(());
    }
    if !step(path)? {
        return Ok(());
    }
    File::open(path).and_then(|directory| directory.sync_all()).map_err(StorageError::io(path))
}

/// Gives a file the owner and the permissions of another. Where the group cannot be given, it gets no rights.
pub fn set_owner_like(file: &File, like: &Metadata, path: &Path) -> Result<()> {
    if !step(path)? && !is_ours(file) {
        return Ok(());
    }
    let mut mode = like.mode() & 0o777;
    let now = file.metadata().map_err(StorageError::io(path))?;
    if now.gid() != like.gid() && fchown(file, None, Some(like.gid())).is_err() {
        mode &= 0o707;
    }
    if now.uid() != like.uid() {
        fchown(file, Some(like.uid()), None).map_err(StorageError::io(path))?;
    }
    file.set_permissions(Permissions::from_mode(mode)).map_err(StorageError::io(path))
}
