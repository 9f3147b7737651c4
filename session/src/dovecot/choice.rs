//! Which mailboxes take part: what a handshake can say (one name or GUID, exclusions, namespaces), and what only we know, which is
//! settled when both trees are known.

use std::collections::BTreeSet;

use dsync_merge::{Both, Direction, End};
use dsync_model::{MailboxGuid, MailboxName, MailboxTree, Mask, NameRules, Namespaces};
use dsync_proto::dovecot::items;

use super::Brain;
use crate::SessionError;
use crate::brain::Scope;

/// Most namespaces that a peer may name.
const NAMESPACES_MAX: usize = 100;

/// What the configuration calls special uses.
#[derive(Clone, Debug, Default, bincode::Encode, bincode::Decode)]
pub struct Names {
    /// `\Trash` and the like, each with a mailbox that has it.
    pub special_uses: Vec<(String, String)>,
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
}

/// Which namespaces a master wants.
pub(super) fn namespaces(line: &items::Handshake) -> Namespaces {
    match &line.sync_ns_prefix {
        Some(prefixes) => {
            Namespaces::Only(text(prefixes).split('\n').take(NAMESPACES_MAX).map(str::to_owned).collect())
        }
        None if line.sync_visible_namespaces => Namespaces::All,
        None => Namespaces::Usual,
    }
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
        match &options.namespaces {
            Namespaces::Usual => {}
            Namespaces::All => line.sync_visible_namespaces = true,
            Namespaces::Only(prefixes) => line.sync_ns_prefix = Some(prefixes.join("\n").into_bytes()),
        }
        let named = options.mailboxes.first().filter(|_| !options.tree_only);
        match () {
            () if !self.is_narrowed() => {
                line.sync_box = named.map(|name| name.clone().into_bytes());
                line.sync_box_guid = options.guids.first().copied();
                Ok(())
            }
            () if self.direction == (Direction::Mirror { into: End::Responder }) => {
                let text = "a Dovecot takes one -m or -g without wildcards, and would delete all other mailboxes of its own in this backup: \
                            run it for each mailbox, or leave out others with -x";
                Err(SessionError::Refused { status: 64, text: text.into() })
            }
            () => Ok(()),
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
        move |name, known| {
            let spelled = ['/', '.'].map(|separator| name.join(separator));
            only.as_ref().is_none_or(|only| only.iter().any(|only| spelled.contains(only)))
                && guid.is_none_or(|guid| known == Some(guid))
                && !excluded.iter().any(|mask| mask.matches(name))
        }
    }

    /// Whether a mailbox of which nothing but the name is known may take part.
    pub(super) fn may_have(&self, name: &MailboxName) -> bool {
        self.scope()(name, self.handshake.sync_box_guid)
    }

    /// Leaves out of our tree what the user did not choose, as far as it can be told while the peer's is not known.
    pub(super) fn narrow_own(&mut self) {
        let Some(options) = self.job.as_ref().map(|job| &job.options) else { return };
        let (unlisted, nothing) = (BTreeSet::new(), MailboxTree::new());
        let (ours, theirs) = (self.storage.rules(), NameRules::default());
        let rules = Both([&ours, &theirs]);
        let scope = Scope::new(Both([&self.tree, &nothing]), None, options, &unlisted, rules);
        let names: Vec<MailboxName> = self.tree.keys().filter(|name| !scope.has(name)).cloned().collect();
        for name in names {
            self.tree.remove(&name);
        }
    }

    /// Leaves out of both trees what the user did not choose: as master, which knows the peer's tree before it tells its own.
    pub(super) fn narrow(&mut self) -> Result<(), SessionError> {
        let Some(options) = self.job.as_ref().map(|job| &job.options) else { return Ok(()) };
        let (unlisted, trees) = (BTreeSet::new(), Both([&self.tree, &self.peer_tree]));
        let (ours, theirs) = (self.storage.rules(), NameRules::default());
        let scope = Scope::new(trees, None, options, &unlisted, Both([&ours, &theirs]));
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
        let names =
            Names { special_uses: vec![("\\Sent".into(), "Out".into()), ("\\Trash".into(), "Bin".into())] };
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
        let only = |text: &str| items::Handshake { sync_box: Some(text.into()), ..line() };
        for (line, expected) in [
            (line(), "INBOX Out Bin Shared Shared/x"),
            (excluded(&["\\Trash", "Sh*"]), "INBOX Out"),
            (only("Shared.x"), "Shared/x"),
            (only("\\sent"), "Out"),
            (only("\\Junk"), ""),
        ] {
            assert_eq!(chosen(line), expected);
        }
    }

    #[test]
    fn a_master_names_namespaces_by_their_prefixes() {
        let ns = |text: &str| items::Handshake {
            sync_ns_prefix: Some(text.into()),
            ..items::Handshake::default()
        };
        let only = |all: &[&str]| Namespaces::Only(all.iter().map(|text| text.to_string()).collect());
        for (line, expected) in [
            (items::Handshake::default(), Namespaces::Usual),
            (
                items::Handshake { sync_visible_namespaces: true, ..items::Handshake::default() },
                Namespaces::All,
            ),
            (ns(""), only(&[""])),
            (ns("\nShared/"), only(&["", "Shared/"])),
        ] {
            assert_eq!(namespaces(&line), expected);
        }
    }
}
