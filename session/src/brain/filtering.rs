//! Which messages of this end the filter keeps back (`-t`, `-e`, `-I`, `-O`): told to the other end, decided by the merge.

use std::collections::BTreeMap;

use dsync_merge::Direction;
use dsync_model::{Filter, FlagSet, MessageChange, Since, Uid};
use dsync_storage::filter::filtered;
use dsync_storage::{Mailbox, Result};

use super::Brain;

/// The filter, as far as it concerns this end.
pub(super) struct OwnFilter {
    filter: Option<Box<Filter>>,
    /// A mirror also brings back what it lost: the messages of the base are looked at, too.
    known_too: bool,
}

impl Brain {
    pub(super) fn own_filter(&self) -> OwnFilter {
        let direction = self.direction();
        let sends = direction.source().is_none_or(|source| source == self.end);
        let filter = self.job.as_ref().map(|job| &job.options.filter);
        let filter = filter.filter(|filter| sends && !filter.is_empty()).cloned();
        OwnFilter { filter, known_too: matches!(direction, Direction::Mirror { .. }) }
    }
}

impl OwnFilter {
    /// The messages that are not to be saved at the other end, ascending.
    pub(super) fn kept_back(
        &self,
        mailbox: &mut dyn Mailbox,
        changes: &[MessageChange],
        since: Since<'_>,
    ) -> Result<Vec<Uid>> {
        let Some(filter) = &self.filter else { return Ok(Vec::new()) };
        let mut candidates: BTreeMap<Uid, FlagSet> = BTreeMap::new();
        if let (Since::Base(base), true) = (since, self.known_too) {
            let known = base.uids.iter().filter_map(Uid::new);
            candidates.extend(known.map(|uid| (uid, base.flags_of(uid))));
        }
        for change in changes {
            match change {
                MessageChange::Save { uid, flags, .. } => {
                    candidates.insert(*uid, flags.current.clone());
                }
                MessageChange::Flags { uid, flags, .. } => {
                    candidates.entry(*uid).and_modify(|known| known.clone_from(&flags.current));
                }
                MessageChange::Expunge { uid, .. } => {
                    candidates.remove(uid);
                }
            }
        }
        filtered(mailbox, filter, candidates.iter().map(|(uid, flags)| (*uid, flags)))
    }
}
