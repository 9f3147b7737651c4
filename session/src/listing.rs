//! Lists an account beside users who rename mailboxes at the same time.

use dsync_model::MailboxTree;
use dsync_storage::{MailboxProblem, Storage};

use crate::SessionError;

/// How often names may change while they are read.
const LISTINGS_MAX: usize = 10;

/// What the account holds, as it was at one time, with the problems of single mailboxes.
///
/// A mailbox that is renamed while names are read may be found under neither name, and what a list lacks counts as deleted, or under
/// both. So what lacks a mailbox (`lacks`), or met one that was gone when its turn came, counts only if the names are still the same after it; else they are listed
/// again.
pub(crate) fn list(
    storage: &mut dyn Storage,
    lacks: impl Fn(&MailboxTree) -> bool,
) -> Result<(MailboxTree, Vec<MailboxProblem>), SessionError> {
    let failed = |source| SessionError::Storage { context: "cannot list the mailboxes".into(), source };
    for _ in 0..LISTINGS_MAX {
        let (tree, problems) = storage.tree().map_err(failed)?;
        let vanished = problems.iter().any(|problem| problem.error.is_gone());
        if !vanished && !lacks(&tree) || storage.is_steady().map_err(failed)? {
            return Ok((tree, problems));
        }
        tracing::debug!("mailboxes were renamed, made or deleted while they were listed: listed again");
    }
    let text = format!(
        "{}: mailboxes are renamed faster than they can be listed; run again later",
        storage.location()
    );
    Err(SessionError::Refused { status: 75, text })
}
