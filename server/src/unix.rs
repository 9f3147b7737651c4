//! The unix sockets to listen on, and whom to trust there.

use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use dsync_accounts::UnixSocket;

/// Makes the sockets. One at which somebody listens, a Dovecot with the same configuration say, is left to them.
pub fn bind(sockets: &[UnixSocket]) -> anyhow::Result<Vec<(UnixListener, PathBuf)>> {
    let mut listeners = Vec::new();
    for socket in sockets {
        let path = &socket.path;
        if UnixStream::connect(path).is_ok() {
            tracing::warn!("{}: another program listens there, and goes on to do so", path.display());
            continue;
        }
        let listener = bind_one(socket).with_context(|| format!("cannot listen on {}", path.display()))?;
        listeners.push((listener, path.clone()));
    }
    Ok(listeners)
}

fn bind_one(socket: &UnixSocket) -> std::io::Result<UnixListener> {
    let path = &socket.path;
    match std::fs::symlink_metadata(path) {
        // Of a program that is gone.
        Ok(meta) if meta.file_type().is_socket() => std::fs::remove_file(path)?,
        Ok(_) => return Err(std::io::Error::new(ErrorKind::AlreadyExists, "is there, and is no socket")),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    // It gets its name with its rights: nobody comes in before.
    let directory = path.parent().unwrap_or(Path::new("/"));
    let new = directory.join(format!(".dsync-server.{}", std::process::id()));
    let listener = UnixListener::bind(&new)?;
    let set = || {
        if socket.user.is_some() || socket.group.is_some() {
            std::os::unix::fs::chown(&new, socket.user, socket.group)?;
        }
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(socket.mode))?;
        listener.set_nonblocking(true)?;
        std::fs::rename(&new, path)
    };
    set().inspect_err(|_| {
        // It is of no use, and may not be ours to remove.
        let _ = std::fs::remove_file(&new);
    })?;
    Ok(listener)
}

/// Root, and who runs us, could do all of it themselves.
pub fn is_trusted(uid: u32) -> bool {
    uid == 0 || std::fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == uid)
}
