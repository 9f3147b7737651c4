//! What must hold: the house invariants, as functions that return what is wrong.

use std::collections::BTreeSet;

use dsync_model::MessageGuid;
use dsync_session::storage::memory::Account;

/// **converged**: both accounts look the same to an IMAP client.
pub fn equal(a: &Account, b: &Account) -> Result<(), String> {
    let names = |account: &Account| account.mailboxes.keys().cloned().collect::<Vec<_>>();
    if names(a) != names(b) {
        return Err(format!("mailboxes differ: {:?} and {:?}", names(a), names(b)));
    }
    if a.subscriptions != b.subscriptions {
        return Err(format!("subscriptions differ: {:?} and {:?}", a.subscriptions, b.subscriptions));
    }
    for ((name, one), two) in a.mailboxes.iter().zip(b.mailboxes.values()) {
        if (one.guid, one.uid_validity, one.uid_next) != (two.guid, two.uid_validity, two.uid_next) {
            return Err(format!("{name}: {} and {}", one.status(), two.status()));
        }
        if one.messages != two.messages {
            return Err(format!("{name}: messages differ: {:?} and {:?}", one.messages, two.messages));
        }
    }
    Ok(())
}

/// **no-loss**: every message that was somewhere before, and that no user removed, is in this account.
pub fn nothing_lost(
    before: &[Account],
    after: &Account,
    expunged: &BTreeSet<MessageGuid>,
) -> Result<(), String> {
    let held: BTreeSet<&MessageGuid> = guids(after).collect();
    match before.iter().flat_map(guids).find(|guid| !held.contains(guid) && !expunged.contains(*guid)) {
        Some(guid) => Err(format!("{guid} is lost")),
        None => Ok(()),
    }
}

/// **no-loss**, over all time: every message that ever was at either end, and that no user removed, is in this account.
pub fn nothing_ever_lost(world: &crate::world::World, after: &Account) -> Result<(), String> {
    let held: BTreeSet<&MessageGuid> = guids(after).collect();
    let known = world.names.iter().flat_map(|names| names.values());
    match known.into_iter().find(|guid| !held.contains(guid) && !world.expunged.contains(*guid)) {
        Some(guid) => Err(format!("{guid} was lost at some time")),
        None => Ok(()),
    }
}

/// **no-duplicates**: no message is twice in one mailbox, unless users moved it about.
pub fn nothing_twice(account: &Account, moved: &BTreeSet<MessageGuid>) -> Result<(), String> {
    for (name, mailbox) in &account.mailboxes {
        let mut seen = BTreeSet::new();
        if let Some(twice) = mailbox
            .messages
            .values()
            .find(|message| !seen.insert(&message.guid) && !moved.contains(&message.guid))
        {
            return Err(format!("{name}: {} is there twice", twice.guid));
        }
    }
    Ok(())
}

/// **source-untouched**: names, messages and subscriptions of a source are as before.
pub fn untouched(before: &Account, after: &Account) -> Result<(), String> {
    equal(before, after).map_err(|what| format!("the source was written: {what}"))
}

fn guids(account: &Account) -> impl Iterator<Item = &MessageGuid> {
    account.mailboxes.values().flat_map(|mailbox| mailbox.messages.values()).map(|message| &message.guid)
}
