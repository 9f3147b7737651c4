//! What one end does so that its mailboxes are as they were settled.

use std::collections::BTreeSet;

use dsync_model::{BaseNode, MailboxName, TreeChange, Uid};

use super::renames::{ordered, temporary};
use super::{Fate, Mailbox, Merge, Pair, TreePlan};
use crate::{Both, ENDS, End};

impl Merge<'_> {
    pub(super) fn mailbox_changes(&self, mailboxes: &[Mailbox], end: End, plan: &mut TreePlan) {
        let source = self.direction.source();
        let mut renames = Vec::new();
        let mut creates = Vec::new();
        let mut identify = Vec::new();
        let wanted: BTreeSet<&MailboxName> =
            mailboxes.iter().filter(|m| m.fate == Fate::Keep).filter_map(|m| m.names[end].as_ref()).collect();
        for mailbox in mailboxes {
            let here = mailbox.at[end].as_ref();
            match mailbox.fate {
                Fate::Leave | Fate::OutOfScope => {
                    if let (Fate::Leave, Some((now, status)), Some(name)) =
                        (mailbox.fate, here, &mailbox.names[end])
                        && now != name
                    {
                        renames.push((status.guid, now.clone(), name.clone()));
                    }
                    if let Some(known) = self.base_name(mailbox.guid) {
                        // The base follows the source: the old name may be another mailbox's by now.
                        let at_source = source.filter(|_| mailbox.fate == Fate::Leave);
                        let at_source = at_source.and_then(|source| mailbox.at[source].as_ref());
                        let name = at_source.map_or(known, |(name, _)| name);
                        plan.kept.insert(mailbox.guid);
                        let node = BaseNode { mailbox: Some(mailbox.guid), ..BaseNode::default() };
                        plan.agreed.insert(name.clone(), node);
                    }
                }
                Fate::Delete => {
                    if let Some((name, status)) = here {
                        let mut name = name.clone();
                        if wanted.contains(&name) {
                            let away = temporary(&name, status.guid);
                            renames.push((status.guid, name, away.clone()));
                            name = away;
                        }
                        plan.deletes.push(TreeChange::Delete {
                            name,
                            guid: status.guid,
                            uid_next: status.uid_next,
                        });
                    }
                }
                Fate::Keep => {
                    let Some(name) = mailbox.names[end].clone() else { continue };
                    match here {
                        Some((now, status)) => {
                            if *now != name {
                                renames.push((status.guid, now.clone(), name.clone()));
                            }
                            if status.guid != mailbox.guid {
                                let (guid, uid_validity) = (mailbox.guid, status.uid_validity);
                                identify.push(TreeChange::Identify {
                                    name: name.clone(),
                                    guid,
                                    uid_validity,
                                });
                            }
                        }
                        None => {
                            if let Some((_, status)) = &mailbox.at[end.other()] {
                                if self.logs[end].deleted.contains_key(&status.guid) {
                                    plan.revived.push(name.clone());
                                }
                                let (guid, uid_validity) = (mailbox.guid, status.uid_validity);
                                // One that was here before goes on above the UIDs that it gave away.
                                let known = self.base.and_then(|base| base.mailboxes.get(&guid));
                                let uid_next = known.map_or(Uid::MIN, |known| known.uid_next);
                                creates.push(TreeChange::Create {
                                    name: name.clone(),
                                    guid,
                                    uid_validity,
                                    uid_next,
                                });
                            }
                        }
                    }
                    let statuses =
                        Both(ENDS.map(|end| mailbox.at[end].as_ref().map(|(_, status)| status.clone())));
                    let common = mailbox.common.clone().unwrap_or(name);
                    if let Some((_, wanted)) = &mailbox.refused {
                        plan.refused.push((common.clone(), wanted.clone()));
                    }
                    let node = BaseNode { mailbox: Some(mailbox.guid), ..BaseNode::default() };
                    plan.agreed.insert(common.clone(), node);
                    plan.pairs.push(Pair { guid: mailbox.guid, name: common, statuses });
                }
            }
        }
        if source == Some(end) {
            plan.deletes.clear();
            return;
        }
        creates.sort_by(|a, b| created(a).cmp(&created(b)));
        let occupied = self.trees[end].iter().filter(|(_, node)| node.mailbox.is_some());
        plan.changes = ordered(renames, occupied.map(|(name, _)| name.clone()).collect());
        plan.changes.extend(identify);
        plan.changes.extend(creates);
    }
}

fn created(change: &TreeChange) -> Option<&MailboxName> {
    match change {
        TreeChange::Create { name, .. } => Some(name),
        _ => None,
    }
}
