//! Which mailboxes take part: what a handshake can say (one name or GUID, exclusions, namespaces), and what only we know, which is
//! settled when both trees are known.

use std::collections::BTreeSet;

use dsync_merge::{Both, Direction, End};
use dsync_model::{MailboxGuid, MailboxName, MailboxTree, Mask};
use dsync_proto::dovecot::items;

use super::Brain;
use crate::SessionError;
use crate::brain::Scope;

/// What the configuration calls namespaces and special uses.
#[derive(Clone, Debug, Default, bincode::Encode, bincode::Decode)]
pub struct Names {
    /// Prefixes of all namespaces, with the separator.
    pub prefixes: Vec<String>,
    /// `\Trash` and the like, each with a mailbox that has it.
    pub special_uses: Vec<(String, String)>,
    /// Of a master: the prefixes that `-n` names; none: the peer's default.
    pub chosen: Vec<String>,
    /// Of a master: `-N`.
    pub all: bool,
}

impl Names {
    /// The masks with the mailboxes in place of `\Trash` and the like.
    fn resolved(&self, masks: impl Iterator<Item = String>) -> Vec<String> {
        let resolve = |mask: String| -> Vec<String> {
            if !mask.starts_with('\\') {
                return vec![mask];
            }
            let uses = self.special_uses.iter().filter(|(flag, _)| flag.eq_ignore_ascii_case(&mask));
            uses.map(|(_, name)| name.clone()).collect()
        };
        masks.flat_map(resolve).collect()
    }

    /// Says whether a mask is one of those that stand for what `-n` names.
    fn is_chosen(&self, mask: &str) -> bool {
        self.chosen.iter().any(|prefix| mask == root(prefix) || mask == format!("{prefix}*"))
    }
}

/// The name of the mailbox that is above all of a namespace.
fn root(prefix: &str) -> &str {
    prefix.trim_end_matches(['/', '.'])
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl Brain {
    /// What the configuration knows of names.
    #[must_use]
    pub fn with_names(mut self, names: Names) -> Brain {
        self.names = names;
        self
    }

    /// Puts into a master's handshake which mailboxes are meant, as far as it can be said there.
    pub(super) fn choose(&self, line: &mut items::Handshake) -> Result<(), SessionError> {
        let Some(job) = &self.job else { return Ok(()) };
        let options = &job.options;
        line.no_mail_sync = options.tree_only;
        if !options.exclude.is_empty() {
            let names = options.exclude.iter().map(|name| name.clone().into_bytes());
            line.exclude_mailboxes = Some(items::Elements(names.collect()));
        }
        if self.names.all {
            line.sync_visible_namespaces = true;
        } else if !self.names.chosen.is_empty() {
            line.sync_ns_prefix = Some(self.names.chosen.join("\n").into_bytes());
        }
        let named = options.mailboxes.first().filter(|_| !options.tree_only);
        match (&options.mailboxes[..], &options.guids[..]) {
            _ if !self.is_narrowed() => {
                line.sync_box = named.map(|name| name.clone().into_bytes());
                line.sync_box_guid = options.guids.first().copied();
                Ok(())
            }
            (masks, []) if masks.iter().all(|mask| self.names.is_chosen(mask)) => Ok(()),
            _ if self.direction == (Direction::Mirror { into: End::Responder }) => {
                let text = "a Dovecot takes one -m or -g without wildcards, and would delete all other mailboxes of its own in this backup: \
                            run it for each mailbox, or leave out others with -x";
                Err(SessionError::Refused { status: 64, text: text.into() })
            }
            _ => Ok(()),
        }
    }

    /// Whether more is chosen than a handshake can say: the peer then tells of all its mailboxes.
    pub(super) fn is_narrowed(&self) -> bool {
        let Some(options) = self.job.as_ref().map(|job| &job.options) else { return false };
        options.mailboxes.len() + options.guids.len() > 1
            || options.mailboxes.iter().any(|mask| mask.contains(['*', '%']))
    }

    /// Which mailboxes take part, as far as the handshake says.
    pub(super) fn scope(&self) -> impl Fn(&MailboxName, Option<MailboxGuid>) -> bool + use<> {
        let line = &self.handshake;
        let only = line.sync_box.as_deref().map(|name| self.names.resolved(std::iter::once(text(name))));
        let guid = line.sync_box_guid;
        let excluded = line.exclude_mailboxes.iter().flat_map(|list| &list.0).map(|mask| text(mask));
        let excluded: Vec<Mask> =
            self.names.resolved(excluded).iter().map(|mask| Mask::wildcards(mask)).collect();
        let chosen = line.sync_ns_prefix.as_deref().filter(|_| self.end == End::Responder);
        let chosen: Option<Vec<String>> =
            chosen.map(|prefixes| text(prefixes).split('\n').map(str::to_owned).collect());
        let others = self.names.prefixes.clone();
        move |name, known| {
            let spelled = ['/', '.'].map(|separator| name.join(separator));
            let below =
                |prefix: &str| spelled.iter().any(|name| name == root(prefix) || name.starts_with(prefix));
            let in_namespace = |prefix: &String| match prefix.is_empty() {
                true => !others.iter().any(|other| !other.is_empty() && below(other)),
                false => below(prefix),
            };
            only.as_ref().is_none_or(|only| only.iter().any(|only| spelled.contains(only)))
                && guid.is_none_or(|guid| known == Some(guid))
                && chosen.as_ref().is_none_or(|chosen| chosen.iter().any(in_namespace))
                && !excluded.iter().any(|mask| mask.matches(name))
        }
    }

    /// Leaves out of our tree what the user did not choose, as far as it can be told while the peer's is not known.
    pub(super) fn narrow_own(&mut self) {
        let Some(options) = self.job.as_ref().map(|job| &job.options) else { return };
        let (unlisted, nothing) = (BTreeSet::new(), MailboxTree::new());
        let scope = Scope::new(Both([&self.tree, &nothing]), None, options, &unlisted);
        let names: Vec<MailboxName> = self.tree.keys().filter(|name| !scope.has(name)).cloned().collect();
        for name in names {
            self.tree.remove(&name);
        }
    }

    /// Leaves out of both trees what the user did not choose: as master, which knows the peer's tree before it tells its own.
    pub(super) fn narrow(&mut self) -> Result<(), SessionError> {
        let Some(options) = self.job.as_ref().map(|job| &job.options) else { return Ok(()) };
        let (unlisted, trees) = (BTreeSet::new(), Both([&self.tree, &self.peer_tree]));
        let scope = Scope::new(trees, None, options, &unlisted);
        if let Some(missing) = scope.missing().filter(|_| !options.tree_only) {
            let text = format!("no mailbox of either end is {missing}");
            return Err(SessionError::Refused { status: 68, text });
        }
        let names: Vec<MailboxName> = self.tree.keys().chain(self.peer_tree.keys()).cloned().collect();
        for name in names.iter().filter(|name| !scope.has(name)) {
            self.tree.remove(name);
            self.peer_tree.remove(name);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use dsync_storage::memory::MemoryStorage;

    use super::*;

    fn name(text: &str) -> MailboxName {
        MailboxName::parse(text, '/').unwrap()
    }

    /// Those of some names that a slave's handshake lets take part.
    fn chosen(line: items::Handshake) -> String {
        let names = Names {
            prefixes: vec![String::new(), "Shared/".into()],
            special_uses: vec![("\\Sent".into(), "Out".into()), ("\\Trash".into(), "Bin".into())],
            ..Names::default()
        };
        let storage = Box::new(MemoryStorage::default());
        let brain = Brain::slave(storage, std::time::Duration::ZERO, "here").with_names(names);
        let brain = Brain { handshake: line, ..brain };
        let scope = brain.scope();
        let all = ["INBOX", "Out", "Bin", "Shared", "Shared/x"];
        all.into_iter().filter(|text| scope(&name(text), None)).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_slave_does_what_the_handshake_says() {
        let line = items::Handshake::default;
        let excluded = |masks: &[&str]| {
            let masks = masks.iter().map(|mask| mask.as_bytes().to_vec());
            items::Handshake { exclude_mailboxes: Some(items::Elements(masks.collect())), ..line() }
        };
        let ns = |text: &str| items::Handshake { sync_ns_prefix: Some(text.into()), ..line() };
        let only = |text: &str| items::Handshake { sync_box: Some(text.into()), ..line() };
        for (line, expected) in [
            (line(), "INBOX Out Bin Shared Shared/x"),
            (excluded(&["\\Trash", "Sh*"]), "INBOX Out"),
            (ns(""), "INBOX Out Bin"),
            (ns("Shared/"), "Shared Shared/x"),
            (ns("\nShared/"), "INBOX Out Bin Shared Shared/x"),
            (only("Shared.x"), "Shared/x"),
            (only("\\sent"), "Out"),
            (only("\\Junk"), ""),
        ] {
            assert_eq!(chosen(line), expected);
        }
    }
}
