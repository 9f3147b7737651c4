//! Worker processes, as their parent has them: started for an identity, kept for the users that follow, ended when idle for long.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dsync_accounts::Identity;
use dsync_session::SessionError;

use crate::inside::{MARK, words};
use crate::wire::{Reader, Writer, halves};

/// Workers that may be idle at a time; of more, the one that is so longest ends.
const IDLE_MAX: usize = 64;
/// How long a worker may be idle.
const IDLE_WAIT: Duration = Duration::from_secs(60);
/// What of the environment a worker keeps.
const ENVIRONMENT: [&str; 2] = ["TZ", "RUST_BACKTRACE"];

/// The workers that wait for work.
#[derive(Default)]
pub struct Pool {
    /// The one that became idle last stands last.
    idle: Mutex<Vec<Worker>>,
}

/// One process; dropping it ends it.
pub(crate) struct Worker {
    identity: Identity,
    child: Child,
    socket: UnixStream,
    since: Instant,
    /// It has worked before; it may be gone by now.
    pub used: bool,
}

impl Pool {
    pub fn new() -> Pool {
        Pool::default()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Worker>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A worker for this identity: one that waits, else a new one.
    pub(crate) fn take(&self, identity: &Identity) -> Result<Worker, SessionError> {
        let mut idle = self.lock();
        let found = idle.iter().rposition(|worker| worker.identity == *identity);
        match found.map(|at| idle.remove(at)) {
            Some(worker) => Ok(worker),
            None => {
                drop(idle);
                Worker::start(identity)
            }
        }
    }

    /// Takes a worker back that has nothing left to say.
    pub(crate) fn give(&self, mut worker: Worker) {
        (worker.since, worker.used) = (Instant::now(), true);
        self.lock().push(worker);
        self.sweep();
    }

    /// Ends workers that were idle for long. To be called now and then.
    pub fn sweep(&self) {
        let gone: Vec<Worker> = {
            let mut idle = self.lock();
            let late = idle.iter().filter(|worker| worker.since.elapsed() > IDLE_WAIT).count();
            let many = idle.len().saturating_sub(IDLE_MAX);
            idle.drain(..late.max(many)).collect()
        };
        // Outside of the lock: each is waited for.
        drop(gone);
    }
}

impl Worker {
    fn start(identity: &Identity) -> Result<Worker, SessionError> {
        let start = || -> io::Result<Worker> {
            let (ours, theirs) = UnixStream::pair()?;
            ours.set_nonblocking(true)?;
            // The file that this process was started from, whatever lies under its name by now.
            let mut command = Command::new("/proc/self/exe");
            command.arg(MARK).args(words(identity)).env_clear();
            command.envs(ENVIRONMENT.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
            // A signal of the terminal is for the parent.
            command.stdin(OwnedFd::from(theirs)).stdout(Stdio::null()).process_group(0);
            let child = command.spawn()?;
            tracing::debug!(pid = child.id(), uid = identity.uid, gid = identity.gid, "a worker begins");
            Ok(Worker { identity: identity.clone(), child, socket: ours, since: Instant::now(), used: false })
        };
        let failed = |error| SessionError::Refused {
            status: 75,
            text: format!("cannot start a process for uid {}: {error}", identity.uid),
        };
        start().map_err(failed)
    }

    /// Both ways of the socket, in this thread's runtime.
    pub fn talk(&self) -> io::Result<(Reader, Writer)> {
        Ok(halves(tokio::net::UnixStream::from_std(self.socket.try_clone()?)?))
    }

    /// Why it went, in the middle of its work.
    pub fn lost(mut self, error: &io::Error) -> SessionError {
        // Whatever is wrong with it, it is of no more use.
        let _ = self.child.kill();
        let how = match self.child.wait() {
            // 9 is ours, or somebody else's.
            Ok(status) => match (status.code(), status.signal()) {
                (Some(code), _) => format!("ended with status {code}"),
                (None, Some(signal)) => format!("was ended by signal {signal}"),
                (None, None) => status.to_string(),
            },
            Err(error) => error.to_string(),
        };
        let uid = self.identity.uid;
        SessionError::Link {
            status: 75,
            text: format!("the process that works for uid {uid} {how} ({error})"),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may have ended by itself. What is on the disk is whole at any instant.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
