//! Merges the messages of one mailbox as Dovecot does, for a two-way sync in which the peer is a Dovecot.
//!
//! Dovecot tells nobody what it decides: both ends compute the same UIDs from the same two lists (protocol reference, 7.4 to
//! 7.6). So these rules are followed to the letter, also where [`messages`](crate::messages()) would be kinder, and each end plans
//! only its own half. One-way sessions need none of this: there only the receiver decides, by our own rules.

pub mod attributes;

use std::collections::{BTreeMap, BTreeSet};

use dsync_model::{FlagDelta, FlagSet, MessageAction, MessageChange, MessageGuid, ModSeq, Uid, UidSet};

use crate::{Desync, End};

/// What both ends know of a mailbox before its lists are looked at.
#[derive(Clone, Copy, Debug)]
pub struct Terms<'a> {
    /// Which end we are.
    pub end: End,
    /// UIDNEXT as each end said it.
    pub uid_next: Uid,
    pub peer_uid_next: Uid,
    /// HIGHESTMODSEQ of the peer.
    pub peer_modseq: ModSeq,
    /// The last common UID of a saved state; `None`: the lists are complete.
    pub last_common: Option<u32>,
    /// UIDs of messages of the peer's that a filter keeps from being saved here.
    pub kept_back: Option<&'a UidSet>,
}

/// What this end does.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Plan {
    /// Renumbers and flags, before the first save.
    pub actions: Vec<MessageAction>,
    /// Saves, ascending by UID. Bodies come from the peer or, where this mailbox has the same message, from there.
    pub saves: Vec<Save>,
    /// To be done when all saves are durable.
    pub expunges: Vec<MessageAction>,
    /// Up to here both ends agree once both have done their part.
    pub last_common: u32,
}

/// A message that is to be here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Save {
    pub uid: Uid,
    pub guid: MessageGuid,
    pub flags: FlagSet,
    pub modseq: ModSeq,
    pub from: From,
}

/// Where a body comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum From {
    /// The peer's message with this UID; several saves share one.
    Peer(Uid),
    /// The message that has this UID here once the actions are done.
    Here(Uid),
}

#[derive(Clone, Copy)]
struct Mail<'a> {
    uid: Uid,
    guid: &'a MessageGuid,
    modseq: ModSeq,
    flags: &'a FlagDelta,
}

struct Lists<'a> {
    mails: Vec<Mail<'a>>,
    /// What a log shows to be expunged.
    expunged: BTreeMap<Uid, Option<[u8; 16]>>,
}

/// A new message of either end, or of both.
struct Entry<'a> {
    local: Option<Mail<'a>>,
    remote: Option<Mail<'a>>,
    uid: u32,
    usable: bool,
    partner: Option<usize>,
    skipped: bool,
}

/// Plans this end's half. `own` names every message as `Save`, and what the log shows to be expunged; `peer` is what its list says.
pub fn messages(own: &[MessageChange], peer: &[MessageChange], terms: &Terms<'_>) -> Result<Plan, Desync> {
    for pair in peer.windows(2) {
        if pair[0].uid() >= pair[1].uid() {
            return Err(Desync::Order(pair[1].uid()));
        }
    }
    if let Some(beyond) = peer.iter().find(|c| is_save(c) && c.uid() >= terms.peer_uid_next) {
        return Err(Desync::Uid(beyond.uid()));
    }
    let own = lists(own);
    let mut plan = Plan::default();
    let common = match terms.last_common {
        Some(common) => {
            since(common, &own, peer, terms, &mut plan);
            common
        }
        None => common(&own, peer, terms, &mut plan)?,
    };
    let ours: Vec<Mail> = own.mails.iter().filter(|mail| mail.uid.get() > common).copied().collect();
    let passes = |mail: &Mail| terms.kept_back.is_none_or(|kept_back| !kept_back.contains(mail.uid.get()));
    let theirs = peer.iter().filter_map(mail).filter(|mail| mail.uid.get() > common && passes(mail));
    let theirs: Vec<Mail> = theirs.collect();
    let mut entries = interleave(&ours, &theirs, terms);
    plan.last_common = number(&mut entries, terms)?;
    realise(&entries, terms, &mut plan)?;
    Ok(plan)
}

fn is_save(change: &MessageChange) -> bool {
    matches!(change, MessageChange::Save { .. })
}

fn mail(change: &MessageChange) -> Option<Mail<'_>> {
    match change {
        MessageChange::Save { uid, guid, modseq, flags, .. } => {
            Some(Mail { uid: *uid, guid, modseq: *modseq, flags })
        }
        MessageChange::Flags { .. } | MessageChange::Expunge { .. } => None,
    }
}

fn lists(changes: &[MessageChange]) -> Lists<'_> {
    let expunged = changes.iter().filter_map(|change| match change {
        MessageChange::Expunge { uid, guid } => Some((*uid, guid.as_ref().map(MessageGuid::bits))),
        MessageChange::Save { .. } | MessageChange::Flags { .. } => None,
    });
    Lists { mails: changes.iter().filter_map(mail).collect(), expunged: expunged.collect() }
}

/// Without a state: walks both lists until they contradict each other, and gives the last UID before that.
fn common(
    own: &Lists<'_>,
    peer: &[MessageChange],
    terms: &Terms<'_>,
    plan: &mut Plan,
) -> Result<u32, Desync> {
    let mut last = 0;
    let mut maybe_expunged: Vec<Mail> = Vec::new();
    let mut rest = own.mails.iter().copied().peekable();
    for change in peer {
        let uid = change.uid();
        while let Some(passed) = rest.next_if(|mail| mail.uid < uid) {
            maybe_expunged.push(passed);
        }
        let here = rest.peek().copied().filter(|mail| mail.uid == uid);
        // `None`: the log knows nothing of this UID, or not whose it was.
        let logged = |bits: [u8; 16]| own.expunged.get(&uid).copied().flatten().map(|known| known == bits);
        match (change, here) {
            (MessageChange::Save { guid, modseq, flags, .. }, Some(mail)) => {
                if mail.guid != guid {
                    break;
                }
                last = uid.get();
                rest.next();
                let theirs = Mail { uid, guid, modseq: *modseq, flags };
                plan.actions.extend(flag_action(uid, &mail, &theirs, terms));
            }
            (MessageChange::Save { guid, .. }, None) => match logged(guid.bits()) {
                Some(true) if rest.peek().is_some() || uid < terms.uid_next => last = uid.get(),
                Some(false) => break,
                // Perhaps expunged here long ago: a later common message will tell.
                None if rest.peek().is_some() => {}
                Some(true) | None => break,
            },
            (MessageChange::Expunge { guid: Some(guid), .. }, Some(mail)) => {
                if mail.guid.bits() != guid.bits() {
                    break;
                }
                last = uid.get();
                rest.next();
                plan.expunges.push(expunge(&mail));
            }
            (MessageChange::Expunge { guid: None, .. }, Some(mail)) => {
                maybe_expunged.push(mail);
                rest.next();
            }
            (MessageChange::Expunge { guid, .. }, None) => {
                if guid.as_ref().and_then(|guid| logged(guid.bits())) == Some(true) {
                    last = uid.get();
                }
            }
            (MessageChange::Flags { .. }, _) => return Err(Desync::Uid(uid)),
        }
    }
    let gone = maybe_expunged.iter().filter(|mail| mail.uid.get() <= last);
    plan.expunges.extend(gone.map(expunge));
    Ok(last)
}

/// With a state: does what the peer's list says of messages that both ends knew.
fn since(common: u32, own: &Lists<'_>, peer: &[MessageChange], terms: &Terms<'_>, plan: &mut Plan) {
    let here = |uid: &Uid| {
        let found = own.mails.binary_search_by_key(uid, |mail| mail.uid).ok();
        found.map(|at| own.mails[at])
    };
    for change in peer.iter().filter(|change| change.uid().get() <= common) {
        let Some(mail) = here(&change.uid()) else { continue };
        match change {
            MessageChange::Flags { uid, guid, modseq, flags } if guid == mail.guid => {
                let theirs = Mail { uid: *uid, guid, modseq: *modseq, flags };
                plan.actions.extend(flag_action(*uid, &mail, &theirs, terms));
            }
            MessageChange::Expunge { guid, .. }
                if guid.as_ref().is_none_or(|g| g.bits() == mail.guid.bits()) =>
            {
                plan.expunges.push(expunge(&mail));
            }
            MessageChange::Flags { .. } | MessageChange::Expunge { .. } | MessageChange::Save { .. } => {}
        }
    }
}

fn expunge(mail: &Mail<'_>) -> MessageAction {
    MessageAction::Expunge { uid: mail.uid, guid: Some(mail.guid.clone()) }
}

/// One sequence of the new messages of both ends, the same at both.
fn interleave<'a>(ours: &[Mail<'a>], theirs: &[Mail<'a>], terms: &Terms<'_>) -> Vec<Entry<'a>> {
    let (mut ours, mut theirs) = (ours.iter().copied().peekable(), theirs.iter().copied().peekable());
    let mut entries: Vec<Entry<'a>> = Vec::new();
    let mut known: BTreeMap<&MessageGuid, Vec<usize>> = BTreeMap::new();
    loop {
        let key = |mail: &Mail<'a>| (mail.guid, mail.uid);
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
fn number(entries: &mut [Entry<'_>], terms: &Terms<'_>) -> Result<u32, Desync> {
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
fn realise(entries: &[Entry<'_>], terms: &Terms<'_>, plan: &mut Plan) -> Result<(), Desync> {
    let mut groups: BTreeMap<&MessageGuid, Vec<&Entry>> = BTreeMap::new();
    for entry in entries {
        let guid = entry.local.or(entry.remote).map(|mail| mail.guid);
        groups.entry(guid.ok_or(Desync::Exhausted(terms.uid_next))?).or_default().push(entry);
    }
    let mut flags_last = Vec::new();
    for (guid, group) in groups {
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

fn flag_action(uid: Uid, local: &Mail<'_>, remote: &Mail<'_>, terms: &Terms<'_>) -> Option<MessageAction> {
    let want = merge_flags(local, remote, terms.end);
    let raised = ModSeq::new(terms.peer_modseq.get() + 1).unwrap_or(terms.peer_modseq);
    let modseq = if want == remote.flags.current { remote.modseq } else { raised.max(remote.modseq) };
    flags_to(uid, local, want, modseq)
}

fn flags_to(uid: Uid, now: &Mail<'_>, want: FlagSet, modseq_min: ModSeq) -> Option<MessageAction> {
    let (add, remove) = (want.minus(&now.flags.current), now.flags.current.minus(&want));
    let differs = !add.is_empty() || !remove.is_empty();
    differs.then_some(MessageAction::Flags { uid, add, remove, modseq_min })
}

/// The flags that both ends set (7.5). Of two that contradict each other the higher modseq counts; of equal ones the master's.
fn merge_flags(local: &Mail<'_>, remote: &Mail<'_>, end: End) -> FlagSet {
    let prefer_remote = match local.modseq.cmp(&remote.modseq) {
        std::cmp::Ordering::Less => true,
        std::cmp::Ordering::Greater => false,
        std::cmp::Ordering::Equal => end == End::Responder,
    };
    let (ours, theirs) = (local.flags, remote.flags);
    let (mut added, mut removed) = (ours.added.clone(), ours.removed.clone());
    let (mut their_added, mut their_removed) = (theirs.added.clone(), theirs.removed.clone());
    let (on, off) = (added.intersection(&their_removed), removed.intersection(&their_added));
    if prefer_remote {
        (added, removed) = (added.minus(&on), removed.minus(&off));
    } else {
        (their_removed, their_added) = (their_removed.minus(&on), their_added.minus(&off));
    }
    let differing = ours.current.minus(&theirs.current).union(&theirs.current.minus(&ours.current));
    let adds = added.union(&their_added).intersection(&differing);
    let removes = removed.union(&their_removed).intersection(&differing);
    let preferred = if prefer_remote { &theirs.current } else { &ours.current };
    preferred.union(&adds).minus(&removes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use dsync_model::Flags;

    fn uid(n: u32) -> Uid {
        Uid::new(n).unwrap()
    }

    /// `4:m1` a message, `4:m1+8` with flags, `-4:m1` an expunge with a GUID, `-4` one without, `4~m1+8` changed flags.
    fn list(text: &str) -> Vec<MessageChange> {
        let change = |word: &str| {
            if let Some(word) = word.strip_prefix('-') {
                let (number, guid) = word.split_once(':').unwrap_or((word, ""));
                return MessageChange::Expunge {
                    uid: uid(number.parse().unwrap()),
                    guid: MessageGuid::new(guid),
                };
            }
            let (word, flags) = word.split_once('+').unwrap_or((word, "0"));
            let flags =
                FlagDelta::standing(FlagSet::system(Flags::from_bits(flags.parse().unwrap()).unwrap()));
            let (number, guid) = word.split_once([':', '~']).unwrap();
            let (uid, guid) = (uid(number.parse().unwrap()), MessageGuid::new(guid).unwrap());
            let modseq = ModSeq::new(1).unwrap();
            match word.contains('~') {
                true => MessageChange::Flags { uid, guid, modseq, flags },
                false => MessageChange::Save { uid, guid, modseq, flags, size: None },
            }
        };
        text.split_whitespace().map(change).collect()
    }

    fn terms(end: End, next: u32, peer_next: u32) -> Terms<'static> {
        Terms {
            end,
            uid_next: uid(next),
            peer_uid_next: uid(peer_next),
            peer_modseq: ModSeq::new(10).unwrap(),
            last_common: None,
            kept_back: None,
        }
    }

    fn told(plan: &Plan) -> String {
        let mut words: Vec<String> = Vec::new();
        for action in plan.actions.iter().chain(&plan.expunges) {
            words.push(match action {
                MessageAction::Renumber { from, to } => format!("{from}>{to}"),
                MessageAction::Flags { uid, add, remove, .. } => {
                    format!("{uid}+{}-{}", add.system.bits(), remove.system.bits())
                }
                MessageAction::Expunge { uid, .. } => format!("-{uid}"),
            });
        }
        for save in &plan.saves {
            words.push(match save.from {
                From::Peer(from) => format!("{}:{}<{from}", save.uid, save.guid),
                From::Here(from) => format!("{}:{}={from}", save.uid, save.guid),
            });
        }
        format!("{} | {}", words.join(" "), plan.last_common)
    }

    #[test]
    fn both_ends_number_alike() {
        // (master's list and UIDNEXT, slave's, what each does, last common UID)
        for (what, a, a_next, b, b_next, master, slave) in [
            (
                "capture 07",
                "2:g 4:m418",
                5,
                "-1:x 2:g -3:y 4:m431",
                5,
                "4>5 6:m431<4 | 6",
                "4>6 5:m418<4 | 6",
            ),
            ("a new mail here", "1:a 2:b", 3, "1:a", 2, " | 2", "2:b<2 | 2"),
            ("a gap before a common mail", "1:a 2:b 3:c", 4, "1:a 3:c", 4, "-2 | 3", " | 3"),
            ("the last is restored", "1:a 2:b", 3, "1:a", 3, "2>3 | 3", "3:b<2 | 3"),
            ("unless the log knows", "1:a 2:b", 3, "1:a -2:b", 3, "-2 | 2", " | 2"),
            ("the log has another mail", "1:a 2:b 3:c", 4, "1:a -2:x 3:c", 4, "2>4 | 4", "4:b<2 | 4"),
            ("same mail, other UIDs", "1:a 2:b", 3, "1:b 2:a", 3, "2>4 1>3 | 4", "2>3 1>4 | 4"),
            ("twice here", "1:a 2:a", 3, "1:a", 2, " | 2", "2:a<2 | 2"),
            ("empty", "", 1, "", 1, " | 0", " | 0"),
        ] {
            let (a, b) = (list(a), list(b));
            let ours = messages(&a, &b, &terms(End::Initiator, a_next, b_next)).unwrap();
            let theirs = messages(&b, &a, &terms(End::Responder, b_next, a_next)).unwrap();
            if !what.contains("other UIDs") && !what.contains("another mail") {
                assert_eq!((told(&ours), told(&theirs)), (master.into(), slave.into()), "{what}");
            }
            assert_eq!(outcome(&a, &ours), outcome(&b, &theirs), "{what}");
            assert_eq!(ours.last_common, theirs.last_common, "{what}");
        }
    }

    fn outcome(list: &[MessageChange], plan: &Plan) -> BTreeMap<u32, (String, u8)> {
        let mut mails: BTreeMap<u32, (String, u8)> = lists(list)
            .mails
            .iter()
            .map(|m| (m.uid.get(), (m.guid.to_string(), m.flags.current.system.bits())))
            .collect();
        for action in plan.actions.iter().chain(&plan.expunges) {
            match action {
                MessageAction::Renumber { from, to } => {
                    let mail = mails.remove(&from.get()).expect("is there");
                    assert!(mails.insert(to.get(), mail).is_none(), "{to} is taken");
                }
                MessageAction::Flags { uid, add, remove, .. } => {
                    let mail = mails.get_mut(&uid.get()).expect("is there");
                    mail.1 = (mail.1 | add.system.bits()) & !remove.system.bits();
                }
                MessageAction::Expunge { uid, .. } => drop(mails.remove(&uid.get()).expect("is there")),
            }
        }
        for save in &plan.saves {
            let mail = (save.guid.to_string(), save.flags.system.bits());
            assert!(mails.insert(save.uid.get(), mail).is_none(), "{} is taken", save.uid);
        }
        mails
    }

    #[test]
    fn any_two_mailboxes_become_equal() {
        let mut seed = 0x6473_796e_6300_0001_u64;
        let mut chance = |below: u64| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed % below
        };
        for round in 0..20_000 {
            // Odd rounds: a past in common, and whole logs of what became of it. Even ones: anything, and no log.
            let past: Vec<u64> =
                if round % 2 == 1 { (0..chance(6)).map(|_| chance(6)).collect() } else { Vec::new() };
            let mut mailbox = || {
                let letter = |guid: u64| char::from(b'a' + guid as u8);
                let (mut text, mut uid) = (String::new(), 1);
                for guid in &past {
                    let kept = chance(3) > 0;
                    let flags = if kept { format!("+{}", chance(3)) } else { String::new() };
                    text.push_str(&format!("{}{uid}:{}{flags} ", if kept { "" } else { "-" }, letter(*guid)));
                    uid += 1;
                }
                for _ in 0..chance(5) {
                    uid += if past.is_empty() { chance(3) } else { 0 };
                    text.push_str(&format!("{uid}:{}+{} ", letter(chance(6)), chance(3)));
                    uid += 1;
                }
                (text, uid as u32)
            };
            let ((a, a_next), (b, b_next)) = (mailbox(), mailbox());
            let (x, y) = (list(&a), list(&b));
            let ours = messages(&x, &y, &terms(End::Initiator, a_next, b_next)).unwrap();
            let theirs = messages(&y, &x, &terms(End::Responder, b_next, a_next)).unwrap();
            let (left, right) = (outcome(&x, &ours), outcome(&y, &theirs));
            let shape = |m: &BTreeMap<u32, (String, u8)>| -> Vec<(u32, String)> {
                m.iter().map(|(uid, mail)| (*uid, mail.0.clone())).collect()
            };
            assert_eq!(shape(&left), shape(&right), "round {round}: [{a}] {a_next} [{b}] {b_next}");
            assert_eq!(left, right, "round {round}: flags: [{a}] {a_next} [{b}] {b_next}");
        }
    }

    #[test]
    fn flags_go_by_log_then_by_modseq_then_to_the_master() {
        let (none, seen) = (FlagSet::default(), FlagSet::system(Flags::SEEN));
        let guid = MessageGuid::new("g").unwrap();
        let check = |ours: &FlagDelta, our: u64, theirs: &FlagDelta, their: u64, expected: &FlagSet| {
            let mail = |flags, modseq| Mail {
                uid: uid(1),
                guid: &guid,
                modseq: ModSeq::new(modseq).unwrap(),
                flags,
            };
            let (a, b) = (mail(ours, our), mail(theirs, their));
            assert_eq!(merge_flags(&a, &b, End::Initiator), *expected, "{ours:?} {our} {theirs:?} {their}");
            assert_eq!(merge_flags(&b, &a, End::Responder), *expected, "{ours:?} {our} {theirs:?} {their}");
        };
        let standing = |flags: &FlagSet| FlagDelta::standing(flags.clone());
        let (set, cleared) =
            (FlagDelta::between(&none, seen.clone()), FlagDelta::between(&seen, none.clone()));
        check(&set, 1, &standing(&none), 9, &seen);
        check(&cleared, 1, &standing(&seen), 9, &none);
        check(&set, 1, &cleared, 9, &none);
        check(&set, 9, &cleared, 1, &seen);
        check(&standing(&seen), 2, &standing(&none), 1, &seen);
        check(&standing(&seen), 1, &standing(&none), 1, &seen);
        check(&standing(&none), 1, &standing(&seen), 1, &none);
    }

    #[test]
    fn with_a_state_only_what_the_lists_name_changes() {
        let known = Terms { last_common: Some(3), ..terms(End::Responder, 5, 6) };
        let own = list("1:a 2:b 4:d");
        let plan = messages(&own, &list("1~a+8 -2:b 5:e"), &known).unwrap();
        assert_eq!(told(&plan), "1+8-0 4>6 -2 5:e<5 | 6");
        let other = messages(&own, &list("1~x+8 -2:x"), &known).unwrap();
        assert_eq!(told(&other), "4>6 | 6", "other messages than ours");
    }

    #[test]
    fn lists_that_cannot_be_are_refused() {
        let check = |peer: &str| messages(&[], &list(peer), &terms(End::Initiator, 1, 5)).unwrap_err();
        assert_eq!(check("2:a 2:b"), Desync::Order(uid(2)));
        assert_eq!(check("5:a"), Desync::Uid(uid(5)));
        assert_eq!(check("1~a+8"), Desync::Uid(uid(1)));
        let full = terms(End::Initiator, u32::MAX, 2);
        let own = list(&format!("1:x {}:y", u32::MAX - 1));
        assert!(matches!(messages(&own, &list("1:a"), &full), Err(Desync::Exhausted(_))));
    }
}
