//! What users do to a tree.

use dsync_model::{MailboxName, MailboxTree};
use proptest::prelude::*;

use super::{DIRECTORIES, NAMES, name, status, tidy};

/// What a user does to his mailboxes.
#[derive(Clone, Debug)]
pub enum Deed {
    Create(usize),
    Delete(usize),
    /// Those below go with it.
    Rename(usize, usize),
    Swap(usize, usize),
    Subscribe(usize),
    Deliver(usize),
    Directory(usize),
}

pub fn deed() -> impl Strategy<Value = Deed> {
    let n = 0..NAMES.len();
    prop_oneof![
        n.clone().prop_map(Deed::Create),
        n.clone().prop_map(Deed::Delete),
        (n.clone(), n.clone()).prop_map(|(a, b)| Deed::Rename(a, b)),
        (n.clone(), n.clone()).prop_map(|(a, b)| Deed::Swap(a, b)),
        n.clone().prop_map(Deed::Subscribe),
        n.prop_map(Deed::Deliver),
        (0..DIRECTORIES.len()).prop_map(Deed::Directory),
    ]
}

/// The tree after these deeds. `next` gives GUIDs that nobody else has.
pub fn after(tree: MailboxTree, deeds: &[Deed], next: &mut u8) -> MailboxTree {
    after_among(&NAMES, tree, deeds, next)
}

pub fn after_among(names: &[&str; 8], mut tree: MailboxTree, deeds: &[Deed], next: &mut u8) -> MailboxTree {
    let holds = |tree: &MailboxTree, name: &MailboxName| tree.get(name).is_some_and(|n| n.mailbox.is_some());
    for deed in deeds {
        match deed {
            Deed::Create(i) => {
                let made = name(names[*i]);
                if !holds(&tree, &made) {
                    *next += 1;
                    tree.entry(made).or_default().mailbox = Some(status(*next, u32::from(*next) + 100, 2));
                }
            }
            Deed::Delete(i) => {
                if let Some(node) = tree.get_mut(&name(names[*i])) {
                    node.mailbox = None;
                }
            }
            Deed::Rename(i, j) => {
                let (from, to) = (names[*i], names[*j]);
                let moved: Vec<(MailboxName, MailboxName)> = names
                    .iter()
                    .filter_map(|old| {
                        let rest = old.strip_prefix(from).filter(|r| r.is_empty() || r.starts_with('/'))?;
                        Some((name(old), name(&format!("{to}{rest}"))))
                    })
                    .filter(|(old, _)| holds(&tree, old))
                    .collect();
                let below_itself = to.starts_with(&format!("{from}/"));
                if below_itself || moved.iter().any(|(_, new)| holds(&tree, new)) {
                    continue;
                }
                for (old, new) in moved {
                    let mailbox = tree.get_mut(&old).and_then(|node| node.mailbox.take());
                    tree.entry(new).or_default().mailbox = mailbox;
                }
            }
            Deed::Swap(i, j) => {
                let (a, b) = (name(names[*i]), name(names[*j]));
                if a != b && holds(&tree, &a) && holds(&tree, &b) {
                    let one = tree.get_mut(&a).and_then(|node| node.mailbox.take());
                    let two = tree.get_mut(&b).and_then(|node| std::mem::replace(&mut node.mailbox, one));
                    tree.entry(a).or_default().mailbox = two;
                }
            }
            Deed::Subscribe(i) => {
                let node = tree.entry(name(names[*i])).or_default();
                node.subscribed = !node.subscribed;
            }
            Deed::Deliver(i) => {
                if let Some(mailbox) = tree.get_mut(&name(names[*i])).and_then(|node| node.mailbox.as_mut()) {
                    let next = mailbox.uid_next.get() + 1;
                    *mailbox = status(mailbox.guid.0[0], mailbox.uid_validity.get(), next);
                    // What came at one end only is not what came at the other.
                    mailbox.digest.0 ^= 1 << 100;
                }
            }
            Deed::Directory(i) => {
                let made = name(DIRECTORIES[*i]);
                let empty = !tree
                    .iter()
                    .any(|(n, node)| n.is_below(&made) && (node.directory || node.mailbox.is_some()));
                let node = tree.entry(made).or_default();
                node.directory = !node.directory || !empty;
                if node.directory {
                    (0..*i)
                        .for_each(|above| tree.entry(name(DIRECTORIES[above])).or_default().directory = true);
                }
            }
        }
    }
    tidy(&mut tree);
    tree
}
