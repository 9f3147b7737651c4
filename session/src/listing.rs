//! Lists an account beside users who rename mailboxes at the same time.

use dsync_model::{MailboxGuid, MailboxTree, TreeChange};
use dsync_storage::{MailboxProblem, Storage, StorageError};

use crate::SessionError;

/// The status of what a user changed meanwhile: nothing is wrong with it, and the next run finds it again.
pub(crate) const DISTURBED: u8 = 2;
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

/// Says whether a change is not to be made any more, as somebody else made, renamed or deleted that mailbox since it was listed.
pub(crate) fn is_overtaken(change: &TreeChange, error: &StorageError) -> bool {
    match change {
        TreeChange::Create { .. } | TreeChange::Rename { .. } => {
            matches!(error, StorageError::MailboxExists(_)) || error.is_gone()
        }
        TreeChange::Identify { .. } | TreeChange::Delete { .. } => error.is_gone(),
        _ => false,
    }
}

/// Says whether an error came of a mailbox that a user renamed or deleted since it was listed.
pub(crate) fn has_gone(storage: &mut dyn Storage, mailbox: MailboxGuid, error: &StorageError) -> bool {
    error.is_gone() && storage.open(mailbox).is_err_and(|error| error.is_gone())
}
