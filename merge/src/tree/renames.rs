//! Puts renames in an order that can be carried out one by one.

use std::collections::BTreeSet;

use dsync_model::{MailboxGuid, MailboxName, TreeChange};

const TEMPORARY: &str = " dsync-temp-";

pub(super) fn temporary(name: &MailboxName, guid: MailboxGuid) -> MailboxName {
    name.with_suffix(&format!("{TEMPORARY}{guid}"))
}

/// Says whether a name is one that a crash between two renames left behind.
pub(super) fn is_temporary(name: &MailboxName) -> bool {
    name.parts().last().is_some_and(|part| part.contains(TEMPORARY))
}

/// Orders renames so that each finds its target free; a circle is opened by a temporary name.
pub(super) fn ordered(
    mut renames: Vec<(MailboxGuid, MailboxName, MailboxName)>,
    mut occupied: BTreeSet<MailboxName>,
) -> Vec<TreeChange> {
    let mut changes = Vec::new();
    while !renames.is_empty() {
        let free = renames.iter().position(|(_, _, to)| !occupied.contains(to));
        let (guid, from, to) = match free {
            Some(i) => renames.remove(i),
            None => {
                // What stays where it is cannot be waited for.
                let circle =
                    renames.iter().position(|(_, _, to)| renames.iter().any(|(_, from, _)| from == to));
                let Some(first) = circle else { break };
                let (guid, from, to) = renames.remove(first);
                let away = temporary(&from, guid);
                renames.push((guid, away.clone(), to));
                (guid, from, away)
            }
        };
        occupied.remove(&from);
        occupied.insert(to.clone());
        changes.push(TreeChange::Rename { guid, from, to });
    }
    changes
}
