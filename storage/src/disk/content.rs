//! Steps that change what is in files: written, appended, copied, cut off, made durable.

use std::fs::{File, FileTimes, OpenOptions};
use std::io::{self, Write};
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::names::{create, file_mode, remove, rename, sync_directory, with_group};
use super::pretending::is_ours;
use super::{Fsync, step};
use crate::{Result, StorageError};

/// From this many files on, one `syncfs` is cheaper than an `fdatasync` for each.
const SYNCFS_FILES_MIN: usize = 8;

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

/// Copies a file, content and dates, to a path that must not exist.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    let source = File::open(from).map_err(StorageError::io(from))?;
    let mut target = create(to, file_mode(to.parent().unwrap_or(Path::new("."))))?;
    clone_file(&source, &mut target, to)?;
    let modified = source.metadata().and_then(|meta| meta.modified()).map_err(StorageError::io(from))?;
    target.set_modified(modified).and_then(|()| target.sync_data()).map_err(StorageError::io(to))
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
