//! `dsync purge`: what expunged messages still take up is freed.

use std::time::Duration;

use dsync_accounts::Settings;
use dsync_session::model::Namespaces;
use dsync_session::storage::{Purged, namespaces};

use crate::args::Globals;
use crate::{Failed, jobs};

/// Purges one account, beside whoever uses it, but not beside another dsync.
pub fn run(
    globals: &Globals,
    user: Option<&str>,
    location: Option<&str>,
    lock_wait: u32,
) -> Result<(), Failed> {
    let settings = Settings::load(globals.config.as_deref(), &globals.overrides)?;
    let user = crate::users::one(&settings, user)?;
    let location = jobs::location(&settings, &user, location)?;
    if !location.root().is_dir() {
        let what = format!("{}: there is no mail to purge", location.root().display());
        return Err(Failed::new(78, anyhow::Error::msg(what)));
    }
    let namespaces = jobs::namespaces(&settings, &user, &location, true)?;
    let mut storage = namespaces::open(namespaces, &Namespaces::Usual, jobs::fsync(&settings)?)?;
    let _lock = storage.lock(Duration::from_secs(lock_wait.into()))?;
    let mut sum = None;
    let mut from = Some(0);
    while let Some(next) = from {
        let Some(purged) = storage.purge(next)? else { break };
        from = purged.next;
        sum = Some(sum.unwrap_or(Purged::default()).and(purged));
    }
    if globals.verbose {
        eprintln!("{}: {}", storage.location(), told(sum));
    }
    Ok(())
}

fn told(purged: Option<Purged>) -> String {
    let Some(Purged { files, messages, bytes, left, .. }) = purged else {
        return "nothing to do: this format leaves nothing to be freed".into();
    };
    let left = if left > 0 { format!("; {left} files were left for the next time") } else { String::new() };
    format!("{messages} messages in {files} files purged, {bytes} bytes freed{left}")
}
