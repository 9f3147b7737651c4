//! The only module that changes files. Every change is one *step*, and steps are counted, so that a test can
//! stop the world after each of them. While a thread only pretends ([`Pretend`]), no step is taken.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs::{self, File, FileTimes, Metadata, OpenOptions, Permissions};
use std::io::{self, Write};
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, MemfdFlags, OFlags, RenameFlags};

use crate::{Result, StorageError};

/// When data is forced to the disk (setting `mail_fsync`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Fsync {
    /// Each file.
    Always,
    /// A batch at once, before it is acknowledged.
    #[default]
    Optimized,
    Never,
}

/// From this many files on, one `syncfs` is cheaper than an `fdatasync` for each.
const SYNCFS_FILES_MIN: usize = 8;

thread_local! {
    static STEPS_LEFT: Cell<Option<u64>> = const { Cell::new(None) };
    static STEPS: Cell<u64> = const { Cell::new(0) };
    static PRETENDING: Cell<u32> = const { Cell::new(0) };
    static PRETENDED: RefCell<BTreeMap<PathBuf, File>> = const { RefCell::new(BTreeMap::new()) };
}

/// For crash tests: from now on this thread makes `steps` changes to files, and every further one fails as if the
/// process were gone. `None` lifts the limit. Gives the number of steps made so far.
pub fn crash_after(steps: Option<u64>) -> u64 {
    STEPS_LEFT.set(steps);
    STEPS.get()
}

/// While it lives, this thread changes no file: all functions here succeed without doing anything, and files that would be made
/// are kept in memory, where they can be written and read back.
#[derive(Debug)]
pub struct Pretend(());

impl Pretend {
    pub fn begin() -> Pretend {
        PRETENDING.set(PRETENDING.get() + 1);
        Pretend(())
    }
}

impl Drop for Pretend {
    fn drop(&mut self) {
        PRETENDING.set(PRETENDING.get() - 1);
    }
}

/// Says whether this thread only pretends.
pub fn pretends() -> bool {
    PRETENDING.get() > 0
}

/// A file in memory, without a name.
pub fn memory_file(content: &[u8], path: &Path) -> Result<File> {
    let made = rustix::fs::memfd_create("dsync", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING);
    let file = File::from(made.map_err(|error| StorageError::io(path)(error.into()))?);
    (&file).write_all(content).map_err(StorageError::io(path))?;
    Ok(file)
}

/// Keeps a file in memory under the name that it would have, for whoever opens it later while this thread pretends.
pub fn keep_pretended(path: &Path, file: &File) -> Result<()> {
    let file = file.try_clone().map_err(StorageError::io(path))?;
    PRETENDED.with_borrow_mut(|files| files.insert(path.to_owned(), file));
    Ok(())
}

/// The content of such a file, while this thread pretends.
pub fn pretended(path: &Path) -> Result<Option<Vec<u8>>> {
    if !pretends() {
        return Ok(None);
    }
    let read = |file: &File| {
        let mut bytes = vec![0; file.metadata()?.len() as usize];
        file.read_exact_at(&mut bytes, 0).map(|()| bytes)
    };
    let found = PRETENDED.with_borrow(|files| files.get(path).map(read));
    found.transpose().map_err(StorageError::io(path))
}

/// Forgets all such files of this thread.
pub fn forget_pretended() {
    PRETENDED.with_borrow_mut(BTreeMap::clear);
}

/// Says whether a file may be written although the thread pretends: only one of ours in memory has no seal at all.
fn is_ours(file: impl AsFd) -> bool {
    rustix::fs::fcntl_get_seals(file).is_ok_and(|seals| seals.is_empty())
}

/// `false`: the step is not to be taken.
fn step(path: &Path) -> Result<bool> {
    if pretends() {
        return Ok(false);
    }
    STEPS.set(STEPS.get() + 1);
    match STEPS_LEFT.get() {
        Some(0) => {
            Err(StorageError::Io { path: path.to_owned(), source: io::Error::other("the test stops here") })
        }
        Some(left) => {
            STEPS_LEFT.set(Some(left - 1));
            Ok(true)
        }
        None => Ok(true),
    }
}

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
fn with_group(made: File, mode: u32, path: &Path) -> io::Result<File> {
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
    if path.is_dir() {
        return Ok(());
    }
    if !step(path)? {
        return Ok(());
    }
    // Of a place that all may look into, only what lies in it directly is like it, without the others.
    let direct = path.parent().is_some_and(Path::is_dir);
    let above = path.ancestors().skip(1).find_map(|above| fs::metadata(above).ok());
    let above = above.filter(|meta| direct || meta.mode() & 0o007 == 0);
    let mode = above.map_or(0o700, |meta| meta.mode() & 0o770 | 0o700);
    let make = || {
        fs::DirBuilder::new().recursive(true).mode(mode).create(path)?;
        let flags = (OFlags::NOFOLLOW | OFlags::DIRECTORY).bits() as i32;
        let made = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
        with_group(made, mode, path).map(drop)
    };
    make().map_err(StorageError::io(path))
}

/// Copies `from` into the open, empty `to`: by reference where the file system can, else within the kernel.
pub fn clone_file(from: &File, to: &mut File, path: &Path) -> Result<u64> {
    if !step(path)? {
        return Ok(0);
    }
    let size = from.metadata().map_err(StorageError::io(path))?.len();
    if rustix::fs::ioctl_ficlone(&*to, from).is_ok() {
        return Ok(size);
    }
    let mut copied = 0;
    while copied < size {
        match rustix::fs::copy_file_range(from, None, &*to, None, (size - copied) as usize) {
            Ok(0) => break,
            Ok(bytes) => copied += bytes as u64,
            Err(_) if copied == 0 => return io::copy(&mut &*from, to).map_err(StorageError::io(path)),
            Err(error) => return Err(StorageError::io(path)(error.into())),
        }
    }
    Ok(copied)
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

/// Makes the content of files durable, as a group.
pub fn sync_files(files: &[PathBuf], policy: Fsync) -> Result<()> {
    let Some(first) = files.first() else { return Ok(()) };
    if policy == Fsync::Never {
        return Ok(());
    }
    if !step(first)? {
        return Ok(());
    }
    if policy == Fsync::Optimized && files.len() > SYNCFS_FILES_MIN {
        let file = File::open(first).map_err(StorageError::io(first))?;
        return rustix::fs::syncfs(&file).map_err(|error| StorageError::io(first)(error.into()));
    }
    for path in files {
        let file = File::open(path).map_err(StorageError::io(path))?;
        file.sync_data().map_err(StorageError::io(path))?;
    }
    Ok(())
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

/// Puts a new content in place of a file: written beside it as `temporary`, made durable, renamed over it.
pub fn replace(path: &Path, temporary: &Path, content: &[u8], policy: Fsync) -> Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    remove(temporary)?;
    let mut file = create(temporary, file_mode(directory))?;
    write(&mut file, content, temporary)?;
    if policy != Fsync::Never {
        file.sync_data().map_err(StorageError::io(temporary))?;
    }
    rename(temporary, path)?;
    sync_directory(directory, policy)
}

/// Copies a file, content and dates, to a path that must not exist.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    let source = File::open(from).map_err(StorageError::io(from))?;
    let mut target = create(to, file_mode(to.parent().unwrap_or(Path::new("."))))?;
    clone_file(&source, &mut target, to)?;
    let modified = source.metadata().and_then(|meta| meta.modified()).map_err(StorageError::io(from))?;
    target.set_modified(modified).and_then(|()| target.sync_data()).map_err(StorageError::io(to))
}

/// Gives a file a second name.
pub fn hard_link(from: &Path, to: &Path) -> Result<()> {
    if !step(to)? {
        return Ok(());
    }
    fs::hard_link(from, to).map_err(StorageError::io(to))
}

/// Cuts off what follows the first `length` bytes.
pub fn truncate(file: &File, length: u64, path: &Path) -> Result<()> {
    if !step(path)? && !is_ours(file) {
        return Ok(());
    }
    file.set_len(length).map_err(StorageError::io(path))
}

/// Sees to it that there is room for `length` bytes, where the file system can tell. The file keeps its length.
pub fn reserve(file: &File, length: u64, path: &Path) -> Result<()> {
    if !step(path)? {
        return Ok(());
    }
    match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::KEEP_SIZE, 0, length) {
        Err(errno @ (rustix::io::Errno::NOSPC | rustix::io::Errno::DQUOT)) => {
            Err(StorageError::io(path)(errno.into()))
        }
        _ => Ok(()),
    }
}

/// Makes the content of one open file durable.
pub fn sync_file(file: &File, path: &Path, policy: Fsync) -> Result<()> {
    if policy == Fsync::Never {
        return Ok(());
    }
    if !step(path)? && !is_ours(file) {
        return Ok(());
    }
    file.sync_data().map_err(StorageError::io(path))
}

/// Writes all of `content` in one call where the system allows it.
pub fn write(mut file: impl Write + AsFd, content: &[u8], path: &Path) -> Result<()> {
    if !step(path)? && !is_ours(&file) {
        return Ok(());
    }
    file.write_all(content).map_err(StorageError::io(path))
}

/// Writes all of `content` at this offset of a file that is not open for appending.
pub fn write_at(file: &File, content: &[u8], offset: u64, path: &Path) -> Result<()> {
    if !step(path)? && !is_ours(file) {
        return Ok(());
    }
    file.write_all_at(content, offset).map_err(StorageError::io(path))
}

/// Appends to a file in one write, after cutting off what follows the first `length` bytes.
pub fn append_at(path: &Path, length: u64, content: &[u8], policy: Fsync) -> Result<()> {
    if !step(path)? {
        return Ok(());
    }
    let mut file = OpenOptions::new().append(true).open(path).map_err(StorageError::io(path))?;
    let now = file.metadata().map_err(StorageError::io(path))?.len();
    if now > length {
        file.set_len(length).map_err(StorageError::io(path))?;
    }
    write(&mut file, content, path)?;
    if policy != Fsync::Never {
        file.sync_data().map_err(StorageError::io(path))?;
    }
    Ok(())
}

/// Appends a record to a file of records of that size in one write; a missing file is made. What stands behind the last whole
/// record, from a write that was cut short, is cut off.
pub fn append_record(path: &Path, record: &[u8]) -> Result<()> {
    if !step(path)? {
        return Ok(());
    }
    let mode = file_mode(path.parent().unwrap_or(Path::new(".")));
    let flags = OFlags::NOFOLLOW.bits() as i32;
    let mut options = OpenOptions::new();
    options.append(true).mode(mode).custom_flags(flags);
    let file = match options.clone().create_new(true).open(path) {
        Ok(made) => with_group(made, mode, path),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => options.create(true).open(path),
        Err(error) => Err(error),
    };
    let mut file = file.map_err(StorageError::io(path))?;
    let length = file.metadata().map_err(StorageError::io(path))?.len();
    let torn = length % record.len() as u64;
    if torn > 0 {
        file.set_len(length - torn).map_err(StorageError::io(path))?;
    }
    write(&mut file, record, path)
}

/// Copies a range of one file into another, within the kernel where it can.
pub fn copy_range(from: &File, range: Range<u64>, to: &File, offset: u64, path: &Path) -> Result<()> {
    if !step(path)? {
        return Ok(());
    }
    let (mut read, mut written) = (range.start, offset);
    while read < range.end {
        let left = usize::try_from(range.end - read).unwrap_or(usize::MAX);
        match rustix::fs::copy_file_range(from, Some(&mut read), to, Some(&mut written), left) {
            Ok(0) => return Err(StorageError::io(path)(io::ErrorKind::UnexpectedEof.into())),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return copy_bytes(from, read..range.end, to, written).map_err(StorageError::io(path)),
        }
    }
    Ok(())
}

fn copy_bytes(from: &File, range: Range<u64>, to: &File, offset: u64) -> io::Result<()> {
    let mut buffer = vec![0; 256 << 10];
    let mut read = range.start;
    while read < range.end {
        let length = (range.end - read).min(buffer.len() as u64) as usize;
        from.read_exact_at(&mut buffer[..length], read)?;
        to.write_all_at(&buffer[..length], offset + (read - range.start))?;
        read += length as u64;
    }
    Ok(())
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

/// Sets the times of a file.
pub fn set_times(file: &File, times: FileTimes, path: &Path) -> Result<()> {
    if !step(path)? && !is_ours(file) {
        return Ok(());
    }
    file.set_times(times).map_err(StorageError::io(path))
}

/// Sets the time of change of a file to now.
pub fn touch(path: &Path) -> Result<()> {
    if !step(path)? {
        return Ok(());
    }
    let now = std::time::SystemTime::now();
    File::open(path).and_then(|file| file.set_modified(now)).map_err(StorageError::io(path))
}
