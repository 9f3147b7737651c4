//! Which UIDs new messages of both ends get, and what this end does for it (protocol reference, 7.6).

use std::collections::{BTreeMap, BTreeSet};

use dsync_model::{FlagSet, MessageAction, MessageGuid, ModSeq, Uid};

use super::{From, Mail, Plan, Save, Terms, expunge, flags_to, merge_flags};
use crate::Desync;

/// A new message of either end, or of both.
pub(super) struct Entry<'a> {
    local: Option<Mail<'a>>,
    remote: Option<Mail<'a>>,
    uid: u32,
    usable: bool,
    partner: Option<usize>,
    skipped: bool,
}

/// One sequence of the new messages of both ends, the same at both.
pub(super) fn interleave<'a>(ours: &[Mail<'a>], theirs: &[Mail<'a>], terms: &Terms<'_>) -> Vec<Entry<'a>> {
    let (mut ours, mut theirs) = (ours.iter().copied().peekable(), theirs.iter().copied().peekable());
    let mut entries: Vec<Entry<'a>> = Vec::new();
    let mut known: BTreeMap<&MessageGuid, Vec<usize>> = BTreeMap::new();
    loop {
        let key = |mail: &Mail<'a>| (mail.identity, mail.uid);
        // The heads of both lists are compared, not their order: the lists ascend by UID.
        let (local, remote) = match (ours.peek(), theirs.peek()) {
            (None, None) => return entries,
            (Some(_), None) => (ours.next(), None),
            (None, Some(_)) => (None, theirs.next()),
            (Some(a), Some(b)) => match key(a).cmp(&key(b)) {
                std::cmp::Ordering::Less => (ours.next(), None),
                std::cmp::Ordering::Greater => (None, theirs.next()),
                std::cmp::Ordering::Equal => (ours.next(), theirs.next()),
            },
        };
        let (Some(mail), both) = (local.or(remote), local.is_some() && remote.is_some()) else {
            return entries;
        };
        let other_next = if local.is_some() { terms.peer_uid_next } else { terms.uid_next };
        let mut entry = Entry {
            local,
            remote,
            uid: mail.uid.get(),
            usable: both || mail.uid >= other_next,
            partner: None,
            skipped: false,
        };
        let new = entries.len();
        if terms.hashes.is_some() {
            // Dovecot links by GUID, and knows none of its own messages here.
            entries.push(entry);
            continue;
        }
        let earlier = known.entry(mail.guid).or_default();
        for index in earlier.iter().copied() {
            let other = &mut entries[index];
            if other.uid == entry.uid {
                other.usable = true;
            }
            let opposite = other.local.is_some() != entry.local.is_some()
                && other.remote.is_some() != entry.remote.is_some();
            if opposite && entry.partner.is_none() && other.partner.is_none() {
                entry.partner = Some(index);
                other.partner = Some(new);
            }
        }
        earlier.push(new);
        entries.push(entry);
    }
}

/// Settles the UIDs, and gives the last one.
pub(super) fn number(entries: &mut [Entry<'_>], terms: &Terms<'_>) -> Result<u32, Desync> {
    let mut next = terms.uid_next.max(terms.peer_uid_next).get();
    for index in 0..entries.len() {
        if entries[index].skipped {
            continue;
        }
        let partner = entries[index].partner;
        if !entries[index].usable {
            entries[index].uid = match partner.map(|partner| &entries[partner]) {
                Some(partner) if partner.usable => partner.uid,
                _ => {
                    let uid = next;
                    next = next.checked_add(1).ok_or(Desync::Exhausted(terms.uid_next))?;
                    uid
                }
            };
        }
        if let Some(partner) = partner {
            entries[partner].skipped = true;
        }
    }
    Ok(next - 1)
}

/// Makes actions and saves of the numbered entries, GUID by GUID.
pub(super) fn realise(entries: &[Entry<'_>], terms: &Terms<'_>, plan: &mut Plan) -> Result<(), Desync> {
    let mut groups: BTreeMap<(&MessageGuid, Option<usize>), Vec<&Entry>> = BTreeMap::new();
    for (index, entry) in entries.iter().enumerate() {
        let guid = entry.local.or(entry.remote).map(|mail| mail.guid);
        let guid = guid.ok_or(Desync::Exhausted(terms.uid_next))?;
        // Without GUIDs that can be relied on, each message is one of its own.
        let alone = terms.hashes.map(|_| index);
        groups.entry((guid, alone)).or_default().push(entry);
    }
    let mut flags_last = Vec::new();
    for ((guid, _), group) in groups {
        let mut instances: BTreeMap<u32, Mail> =
            group.iter().filter_map(|entry| entry.local).map(|mail| (mail.uid.get(), mail)).collect();
        let mut wanted = BTreeMap::new();
        for entry in group.iter().filter(|entry| !entry.skipped) {
            let partner = entry.partner.map(|partner| &entries[partner]);
            let local = entry.local.or(partner.and_then(|partner| partner.local));
            let remote = entry.remote.or(partner.and_then(|partner| partner.remote));
            wanted.insert(entry.uid, (local, remote));
        }
        let first_remote = group.iter().filter_map(|entry| entry.remote).map(|mail| mail.uid).min();
        let mut here = None;
        // The instance that comes to lie at a UID may be another one of the same GUID than the one that is meant there.
        let meant = |(local, remote): &(Option<Mail>, Option<Mail>)| match (local, remote) {
            (Some(local), Some(remote)) => merge_flags(local, remote, terms.end),
            (Some(mail), None) | (None, Some(mail)) => mail.flags.current.clone(),
            (None, None) => FlagSet::default(),
        };
        let mut set_flags = |to: Uid, instance: Mail, ends: (Option<Mail>, Option<Mail>)| {
            let theirs = ends.1.map_or(ModSeq::NONE, |remote| remote.modseq);
            flags_last.extend(flags_to(to, &instance, meant(&ends), theirs));
        };
        let kept: BTreeSet<u32> = wanted.keys().filter(|uid| instances.contains_key(uid)).copied().collect();
        for uid in kept {
            let (Some(mail), Some(ends)) = (instances.remove(&uid), wanted.remove(&uid)) else { continue };
            here = here.or(Some(mail.uid));
            set_flags(mail.uid, mail, ends);
        }
        for (uid, ends) in wanted {
            let to = Uid::new(uid).ok_or(Desync::Exhausted(terms.uid_next))?;
            if let Some((_, mail)) = instances.pop_first() {
                plan.actions.push(MessageAction::Renumber { from: mail.uid, to });
                here = here.or(Some(to));
                set_flags(to, mail, ends);
                continue;
            }
            let modseq = ends.1.or(ends.0).map_or(ModSeq::NONE, |mail| mail.modseq);
            let from = match (here, first_remote) {
                (Some(uid), _) => From::Here(uid),
                (None, Some(uid)) => From::Peer(uid),
                (None, None) => continue,
            };
            plan.saves.push(Save { uid: to, guid: guid.clone(), flags: meant(&ends), modseq, from });
        }
        plan.expunges.extend(instances.values().map(expunge));
    }
    plan.actions.extend(flags_last);
    plan.saves.sort_by_key(|save| save.uid);
    Ok(())
}
