//! What must hold: the house invariants, as functions that return what is wrong.

use std::collections::{BTreeMap, BTreeSet};

use dsync_model::{AttributeList, FlagSet, MailboxGuid, MessageGuid, Uid};
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
    if attributes(a) != attributes(b) {
        return Err(format!("attributes differ: {:?} and {:?}", attributes(a), attributes(b)));
    }
    Ok(())
}

/// Of the mailboxes that are there: a storage may keep those of others for a while.
fn attributes(account: &Account) -> AttributeList {
    let there: BTreeSet<_> = account.mailboxes.values().map(|mailbox| mailbox.guid).collect();
    account.attributes.clone().into_iter().filter(|(key, _)| there.contains(&key.mailbox)).collect()
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

/// **no-loss** and **no-duplicates** where one message may be delivered several times: there are no fewer copies than at the end that
/// had more of them, and no more than were delivered. Not told of those that users moved about or removed.
pub fn copies_kept(
    before: &[Account],
    after: &Account,
    copies: &BTreeMap<MessageGuid, usize>,
    touched: &BTreeSet<MessageGuid>,
) -> Result<(), String> {
    let count = |account: &Account, name: &MessageGuid| guids(account).filter(|guid| *guid == name).count();
    for (name, delivered) in copies.iter().filter(|(name, _)| !touched.contains(name)) {
        let held = before.iter().map(|account| count(account, name)).max().unwrap_or(0);
        let now = count(after, name);
        if now < held || now > *delivered {
            return Err(format!("{name}: {now} copies; {held} at one end, {delivered} delivered"));
        }
    }
    Ok(())
}

/// **flags-kept**: what one end alone changed in the flags of a message since `base` is changed in the end, wherever either end moved the
/// message. Told of messages that each account has once, and that one end at most moved.
pub fn flags_kept(base: &Account, before: [&Account; 2], after: &Account) -> Result<(), String> {
    let [base, a, b, after] = [base, before[0], before[1], after].map(places);
    for (guid, was) in base {
        let found = [&a, &b, &after].map(|places| places.get(guid).copied().flatten());
        let (Some((home, was)), [Some((at_a, a)), Some((at_b, b)), Some((_, now))]) = (was, found) else {
            continue;
        };
        if at_a != home && at_b != home {
            continue;
        }
        let added = a.minus(was).union(&b.minus(was));
        let removed = was.minus(a).union(&was.minus(b));
        let expected = was.minus(&removed).union(&added);
        if *now != expected {
            return Err(format!("{guid}: {was:?}, then {a:?} and {b:?}, should be {expected:?}, is {now:?}"));
        }
    }
    Ok(())
}

type Places<'a> = BTreeMap<&'a MessageGuid, Option<((MailboxGuid, Uid), &'a FlagSet)>>;

/// Where each message is, with its flags; `None`: in more than one place.
fn places(account: &Account) -> Places<'_> {
    let mut places = Places::new();
    for mailbox in account.mailboxes.values() {
        for (uid, message) in &mailbox.messages {
            let place = places.entry(&message.guid).or_insert(Some(((mailbox.guid, *uid), &message.flags)));
            place.take_if(|(_, flags)| !std::ptr::eq(*flags, &message.flags));
        }
    }
    places
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

/// **stays-gone**: what a user expunged is in no mailbox, and what one end alone moved is in one place. Told of messages that were delivered
/// once, in mailboxes whose past both ends know.
pub fn stays_gone(world: &crate::world::World, after: &Account) -> Result<(), String> {
    for (guid, place) in places(after) {
        let ends = world.moves.get(guid).map_or(0, BTreeSet::len);
        let expunged = world.expunged.contains(guid);
        if ends == 0 && expunged {
            return Err(format!("{guid} was expunged, and is back"));
        }
        if ends == 1 && !expunged && place.is_none() {
            return Err(format!("{guid} was moved, and is back in its old place too"));
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
