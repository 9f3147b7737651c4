//! One thread for the connections of all databases, so that callers need not be asynchronous.

use std::{
    future::Future,
    io,
    sync::{Mutex, PoisonError, mpsc},
    time::Duration,
};

use tokio::runtime::{Builder, Handle};

use crate::user::UserError;

/// Longest wait for a database's answer.
const ANSWER_WAIT: Duration = Duration::from_secs(60);

fn handle() -> io::Result<Handle> {
    static RUNNING: Mutex<Option<Handle>> = Mutex::new(None);
    let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(handle) = &*running {
        return Ok(handle.clone());
    }
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    let forever = move || runtime.block_on(std::future::pending::<()>());
    std::thread::Builder::new().name("databases".to_owned()).spawn(forever)?;
    *running = Some(handle.clone());
    Ok(handle)
}

/// Runs `work` on the databases' thread and waits for its result. `what` names the database in errors.
pub(super) fn wait<T, F>(what: &str, work: F) -> Result<T, UserError>
where
    T: Send + 'static,
    F: Future<Output = Result<T, UserError>> + Send + 'static,
{
    let failed = |source| UserError::Temporary { what: what.to_owned(), source };
    let (send, receive) = mpsc::channel();
    handle().map_err(failed)?.spawn(async move {
        let answer = tokio::time::timeout(ANSWER_WAIT, work).await;
        // Nobody waits any more: then nobody misses it.
        let _ = send.send(answer);
    });
    match receive.recv() {
        Ok(Ok(answer)) => answer,
        Ok(Err(_)) => Err(failed(io::Error::new(io::ErrorKind::TimedOut, "no answer"))),
        Err(_) => Err(failed(io::Error::other("the question was dropped"))),
    }
}
