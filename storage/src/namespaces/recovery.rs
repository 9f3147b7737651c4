//! Settles moves into another namespace that a run was killed over, so that one whole mailbox is left.
//!
//! While the mailbox is where it was the move is undone, and made again if it is still wanted; once it is gone the whole copy takes its
//! place. Where others were at work in the copy meanwhile, it takes its place if nothing came to the mailbox; else both are kept.

use dsync_model::{MailboxGuid, MailboxName, MailboxStatus, MailboxTree, TreeChange, Uid};

use super::moving::{forget_copy, is_dispensable, remove_copy, settle};
use super::note::Note;
use super::{Listed, Namespaced};
use crate::{MailboxProblem, Result, StorageError, disk};

/// Where in the list of the open namespaces, and under which name there.
type Found = (usize, MailboxName, MailboxStatus);

impl Namespaced {
    /// Settles the first move that can be. `true`: the account has changed, and is to be listed again. What cannot be settled now is
    /// taken out of the list, or named as a problem.
    pub(super) fn settle_moves(&mut self, listed: &mut [Listed]) -> Result<bool> {
        for at in 0..self.open.len() {
            if let Some(note) = Note::read(&mut *self.open[at].storage)?
                && self.settle_move(at, &note, listed)?
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn settle_move(&mut self, at: usize, note: &Note, listed: &mut [Listed]) -> Result<bool> {
        let pretends = disk::pretends();
        let inner = self.place(&note.to).ok().filter(|(there, _)| *there == at).map(|(_, name)| name);
        let from = self.place(&note.from).ok().map(|(at, _)| at);
        let together = from.is_none_or(|from| self.attributes_together(from, at));
        let copy = find(&listed[at..=at], note.copy).map(|(_, name, status)| (name, status));
        let copy = copy.or_else(|| stillborn(&listed[at].0, inner.as_ref()?, note));
        let original = find(listed, note.guid);
        if original.as_ref().is_some_and(|(there, ..)| *there == at) {
            // The copy has its place already.
            let Some(from) = from.filter(|_| !pretends) else { return Ok(false) };
            let [from, to] = self.both(from, at)?;
            let name = inner.unwrap_or_else(|| note.to.clone());
            settle(note, Some(from), to, &name, together)?;
            return Ok(true);
        }
        let Some((name, status)) = copy else {
            // What cannot be listed may be it.
            let Some(name) = inner.filter(|_| listed[at].1.is_empty() && !pretends) else { return Ok(false) };
            forget_copy(&mut *self.open[at].storage, note, &name, together)?;
            return Ok(true);
        };
        let seen = from.is_some_and(|from| listed[from].1.is_empty());
        if original.is_none() && (!seen || (pretends && note.whole.is_some())) {
            let what = format!(
                "an unfinished move of {}, which is not there or cannot be seen in this run; one in which all namespaces take part (-N) settles it",
                note.from
            );
            unlist(&mut listed[at].0, &name);
            let problem = MailboxProblem { mailbox: name.join('/'), error: StorageError::Impossible(what) };
            listed[at].1.push(problem);
            return Ok(false);
        }
        let fresh = status.guid != note.copy;
        let alone = match &original {
            Some((there, ..)) if !fresh => {
                let [from, to] = self.both(*there, at)?;
                is_dispensable(to, note, from)?
            }
            _ => fresh,
        };
        if pretends {
            if alone && original.is_some() {
                unlist(&mut listed[at].0, &name);
            }
            return Ok(false);
        }
        match original {
            Some(_) if alone && fresh => {
                let (guid, uid_validity) = (note.copy, status.uid_validity);
                let to = &mut *self.open[at].storage;
                to.change_tree(&TreeChange::Identify { name: name.clone(), guid, uid_validity })?;
                remove_copy(to, note, &name, together)?;
            }
            Some(_) if alone => remove_copy(&mut *self.open[at].storage, note, &name, together)?,
            Some((there, old, original)) => {
                let unchanged = note.whole == Some((original.digest, original.uid_next));
                let (guid, uid_next) = (note.guid, original.uid_next);
                let delete = TreeChange::Delete { name: old, guid, uid_next };
                if unchanged && self.open[there].storage.change_tree(&delete)? {
                    let [from, to] = self.both(there, at)?;
                    settle(note, Some(from), to, &name, together)?;
                } else {
                    tracing::warn!(
                        "{}: a run was killed while this mailbox moved to {}, and both were changed since: both are kept",
                        note.from,
                        note.to
                    );
                    Note::remove(&mut *self.open[at].storage)?;
                }
            }
            None if note.whole.is_some() => {
                let to = &mut *self.open[at].storage;
                settle(note, None, to, &name, together)?;
            }
            None => {
                tracing::warn!(
                    "{}: was deleted while it moved to {}; what had been copied is kept there",
                    note.from,
                    note.to
                );
                Note::remove(&mut *self.open[at].storage)?;
            }
        }
        Ok(true)
    }
}

fn find(listed: &[Listed], guid: MailboxGuid) -> Option<Found> {
    let all = listed.iter().enumerate().flat_map(|(at, (tree, _))| tree.iter().map(move |node| (at, node)));
    all.filter_map(|(at, (name, node))| Some((at, name.clone(), node.mailbox.clone()?)))
        .find(|(_, _, status)| status.guid == guid)
}

/// A copy that has no identity of its own yet: the run was killed while it was made.
fn stillborn(tree: &MailboxTree, name: &MailboxName, note: &Note) -> Option<(MailboxName, MailboxStatus)> {
    let status = tree.get(name)?.mailbox.clone()?;
    let empty = status.messages == 0 && status.uid_next == Uid::MIN && status.guid != note.guid;
    (note.is_fresh() && empty).then(|| (name.clone(), status))
}

fn unlist(tree: &mut MailboxTree, name: &MailboxName) {
    if let Some(node) = tree.get_mut(name) {
        node.mailbox = None;
        if !node.subscribed && !node.directory {
            tree.remove(name);
        }
    }
}
