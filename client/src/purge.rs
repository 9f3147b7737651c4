//! `dsync purge`: what expunged messages still take up is freed.

use std::time::Duration;

use anyhow::Context as _;
use dsync_accounts::{Identity, Settings};
use dsync_worker::{Freed, Outcome, Place, Pool, Role, Task};

use crate::Failed;
use crate::args::Globals;

/// Purges one account, beside whoever uses it, but not beside another dsync.
pub fn run(
    globals: &Globals,
    named: Option<&str>,
    location: Option<&str>,
    lock_wait: u32,
) -> Result<(), Failed> {
    let settings = Settings::load(globals.config.as_deref(), &globals.overrides)?;
    let user = crate::users::one(&settings, named)?;
    let identity = if named.is_some() { Identity::of(&settings, &user)? } else { None };
    let place = Place::of(&settings, &user, location)?.existing("there is no mail to purge");
    let role = Role::Purge { lock_wait: Duration::from_secs(lock_wait.into()) };
    let task = Task { place, pretend: false, rawlog: None, role };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("cannot start the runtime").map_err(|error| Failed::new(75, error))?;
    // Killed at any instant, it leaves the mail whole: there is no safe point to wait for.
    let stop = tokio::sync::watch::channel(false).1;
    let outcome = runtime.block_on(Pool::new().whole(identity.as_ref(), task, stop, &mut |_| {}))?;
    let Outcome::Purged(location, freed) = outcome else { unreachable!("a purge was asked for") };
    if globals.verbose {
        eprintln!("{location}: {}", told(freed));
    }
    Ok(())
}

fn told(freed: Option<Freed>) -> String {
    let Some(Freed { files, messages, bytes, left }) = freed else {
        return "nothing to do: this format leaves nothing to be freed".into();
    };
    let left = if left > 0 { format!("; {left} files were left for the next time") } else { String::new() };
    format!("{messages} messages in {files} files purged, {bytes} bytes freed{left}")
}
