//! `dsync purge`: what expunged messages still take up is freed.

use std::time::Duration;

use anyhow::Context as _;
use dsync_accounts::{Identity, Settings};
use dsync_worker::{Freed, Outcome, Place, Pool, Role, Task};

use crate::Failed;
use crate::args::Globals;

/// Purges one account, beside whoever uses it, but not beside another dsync: the user's mail, and their own namespaces elsewhere; or the
/// one place that is named.
pub fn run(
    globals: &Globals,
    named: Option<&str>,
    location: Option<&str>,
    lock_wait: u32,
) -> Result<(), Failed> {
    let settings = Settings::load(globals.config.as_deref(), &globals.overrides)?;
    let user = crate::users::one(&settings, named)?;
    let identity = if named.is_some() { Identity::of(&settings, &user)? } else { None };
    let place = Place::of(&settings, &user, location)?;
    let elsewhere = if location.is_none() { place.elsewhere() } else { Vec::new() };
    let lock_wait = Duration::from_secs(lock_wait.into());
    let purge = |place, may_be_missing| Task {
        place,
        pretend: false,
        rawlog: None,
        role: Role::Purge { lock_wait, may_be_missing },
    };
    let first = purge(place.existing("there is no mail to purge"), false);
    let tasks = std::iter::once(first).chain(elsewhere.into_iter().map(|place| purge(place, true)));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("cannot start the runtime").map_err(|error| Failed::new(75, error))?;
    // Killed at any instant, it leaves the mail whole: there is no safe point to wait for.
    let stop = tokio::sync::watch::channel(false).1;
    let (pool, mut failed) = (Pool::new(), None);
    for task in tasks {
        match runtime.block_on(pool.whole(identity.as_ref(), task, stop.clone(), &mut |_| {})) {
            Ok(Outcome::Purged(location, freed)) if globals.verbose => {
                eprintln!("{location}: {}", told(freed));
            }
            Ok(Outcome::Purged(..)) => {}
            Ok(_) => unreachable!("a purge was asked for"),
            // What is wrong with one place is no reason to leave the others.
            Err(error) => failed = failed.or(Some(Failed::from(error))),
        }
    }
    failed.map_or(Ok(()), Err)
}

fn told(freed: Option<Freed>) -> String {
    let Some(Freed { files, messages, bytes, left }) = freed else {
        return "nothing to be freed".into();
    };
    let left = if left > 0 { format!("; {left} files were left for the next time") } else { String::new() };
    format!("{messages} messages in {files} files purged, {bytes} bytes freed{left}")
}
