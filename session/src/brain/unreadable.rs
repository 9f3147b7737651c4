//! Mail that only other software can read is found before anything is written, at either end.
//!
//! An end that may have to send looks into its messages before it lists its mailboxes: without that list the other end decides
//! nothing. A note says up to which UID each mailbox was looked into, so that each message is looked into once.

use std::collections::{BTreeMap, BTreeSet};

use dsync_model::{MailboxGuid, MailboxStatus, MailboxTree, NameRules, Uid, UidValidity};
use dsync_proto::{Options, Purpose};
use dsync_storage::Storage as _;

use super::scope::Scope;
use super::{Brain, at};
use crate::SessionError;

const NOTE: &str = "checked";
/// More than an account with as many mailboxes as we list has.
const NOTE_BYTES_MAX: usize = 64 << 20;

/// Up to which UID mailboxes were looked into.
type Checked = BTreeMap<MailboxGuid, (UidValidity, Uid)>;

impl Brain {
    /// Fails with the first message that cannot be sent as it is, of those that the session may be about.
    pub(super) fn check_messages(&mut self, tree: &MailboxTree) -> Result<(), SessionError> {
        let options = self.job.as_ref().map(|job| job.options.clone()).unwrap_or_default();
        let sends = self.direction().source().is_none_or(|source| source == self.end);
        if !sends || options.tree_only || matches!(options.purpose, Purpose::Verify { .. }) {
            return Ok(());
        }
        let note = self.storage.read_note(NOTE, NOTE_BYTES_MAX).map_err(at("cannot read a note"))?;
        let old = note.as_deref().map(parse).unwrap_or_default();
        let mut new = Checked::new();
        for (name, status, in_scope) in mailboxes(tree, &options) {
            let known = old.get(&status.guid).filter(|(validity, _)| *validity == status.uid_validity);
            let from = known.map_or(Uid::MIN, |(_, next)| *next);
            if in_scope && from < status.uid_next {
                match self.storage.check(status.guid, from) {
                    Ok(true) => {}
                    Ok(false) => return Ok(()),
                    // Renamed or deleted meanwhile: nothing of it is sent.
                    Err(error) if error.is_gone() => continue,
                    Err(error) => {
                        let context = format!("{name}: nothing was synchronised (-x leaves a mailbox out)");
                        return Err(at(context)(error));
                    }
                }
                new.insert(status.guid, (status.uid_validity, status.uid_next));
            } else {
                new.extend(known.map(|known| (status.guid, *known)));
            }
        }
        if new != old && options.purpose == Purpose::Sync {
            self.storage.write_note(NOTE, &format(&new)).map_err(at("cannot write a note"))?;
        }
        Ok(())
    }
}

/// Every mailbox, and whether the session may be about it as far as its own name tells.
fn mailboxes<'a>(
    tree: &'a MailboxTree,
    options: &Options,
) -> impl Iterator<Item = (String, &'a MailboxStatus, bool)> {
    let (nothing, unlisted) = (MailboxTree::new(), BTreeSet::new());
    let rules = NameRules::default();
    let both = dsync_merge::Both([&rules, &rules]);
    let scope = Scope::new(dsync_merge::Both([tree, &nothing]), None, options, &unlisted, both);
    let mailboxes = tree
        .iter()
        .filter_map(|(name, node)| Some((name.to_string(), node.mailbox.as_ref()?, scope.has(name))));
    mailboxes.collect::<Vec<_>>().into_iter()
}

fn format(checked: &Checked) -> Vec<u8> {
    let lines = checked.iter().map(|(guid, (validity, next))| format!("{guid} {validity} {next}\n"));
    lines.collect::<String>().into_bytes()
}

/// A line that cannot be read costs a second look.
fn parse(note: &[u8]) -> Checked {
    let text = String::from_utf8_lossy(note);
    let line = |line: &str| {
        let mut words = line.split(' ');
        let guid = MailboxGuid::parse(words.next()?)?;
        let validity = UidValidity::new(words.next()?.parse().ok()?)?;
        Some((guid, (validity, Uid::new(words.next()?.parse().ok()?)?)))
    };
    text.lines().filter_map(line).collect()
}
