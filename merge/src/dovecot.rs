//! Merges the messages of one mailbox as Dovecot does, for a two-way sync in which the peer is a Dovecot.
//!
//! Dovecot tells nobody what it decides: both ends compute the same UIDs from the same two lists (protocol reference, 7.4 to
//! 7.6). So these rules are followed to the letter, also where [`messages`](crate::messages()) would be kinder, and each end plans
//! only its own half. Where one end keeps no GUIDs, messages are compared by hashes of their headers; only what both have at one UID is
//! one message then, as for Dovecot. Mirrors need none of this: there only the receiver decides, by our own rules.

pub mod attributes;
mod numbering;

use std::collections::BTreeMap;

use dsync_model::{FlagDelta, FlagSet, MessageAction, MessageChange, MessageGuid, ModSeq, Uid, UidSet};

use self::numbering::{interleave, number, realise};
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
    /// Where one end keeps no GUIDs: what messages are compared by.
    pub hashes: Option<&'a Hashes>,
}

/// Hashes of the headers of all messages that either list names, by UID.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Hashes {
    pub ours: BTreeMap<Uid, MessageGuid>,
    pub theirs: BTreeMap<Uid, MessageGuid>,
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
    /// Up to here the lists agree.
    pub common: u32,
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
    /// By what it is compared: its GUID, or a hash of its header.
    identity: &'a MessageGuid,
    modseq: ModSeq,
    flags: &'a FlagDelta,
}

struct Lists<'a> {
    mails: Vec<Mail<'a>>,
    /// What a log shows to be expunged.
    expunged: BTreeMap<Uid, Option<[u8; 16]>>,
}

/// Plans this end's half. `own` names every message as `Save`, and what the log shows to be expunged; `peer` is what its list says.
pub fn messages<'a>(
    own: &'a [MessageChange],
    peer: &'a [MessageChange],
    terms: &Terms<'a>,
) -> Result<Plan, Desync> {
    for pair in peer.windows(2) {
        if pair[0].uid() >= pair[1].uid() {
            return Err(Desync::Order(pair[1].uid()));
        }
    }
    if let Some(beyond) = peer.iter().find(|c| is_save(c) && c.uid() >= terms.peer_uid_next) {
        return Err(Desync::Uid(beyond.uid()));
    }
    let own = lists(own, terms.hashes.map(|hashes| &hashes.ours));
    let their_mail = |change| mail(change, terms.hashes.map(|hashes| &hashes.theirs));
    let mut plan = Plan::default();
    let common = match terms.last_common {
        Some(common) => {
            since(common, &own, peer, terms, &mut plan);
            common
        }
        None => common(&own, peer, terms, &mut plan)?,
    };
    plan.common = common;
    let ours: Vec<Mail> = own.mails.iter().filter(|mail| mail.uid.get() > common).copied().collect();
    let passes = |mail: &Mail| terms.kept_back.is_none_or(|kept_back| !kept_back.contains(mail.uid.get()));
    let theirs = peer.iter().filter_map(their_mail).filter(|mail| mail.uid.get() > common && passes(mail));
    let theirs: Vec<Mail> = theirs.collect();
    let mut entries = interleave(&ours, &theirs, terms);
    plan.last_common = number(&mut entries, terms)?;
    realise(&entries, terms, &mut plan)?;
    Ok(plan)
}

/// Up to which UID the lists agree as the peer sees it, where it compares hashes. A Dovecot that has no message left does not look into its log for those
/// that are gone at both ends: so it may be lower than what this end comes to.
pub fn common_there<'a>(
    own: &'a [MessageChange],
    peer: &'a [MessageChange],
    terms: &Terms<'_>,
    hashes: &'a Hashes,
) -> Result<u32, Desync> {
    let mirrored = Hashes { ours: hashes.theirs.clone(), theirs: hashes.ours.clone() };
    let terms = Terms {
        end: terms.end.other(),
        uid_next: terms.peer_uid_next,
        peer_uid_next: terms.uid_next,
        last_common: None,
        kept_back: None,
        hashes: Some(&mirrored),
        ..*terms
    };
    common(&lists(peer, Some(&hashes.theirs)), own, &terms, &mut Plan::default())
}

fn is_save(change: &MessageChange) -> bool {
    matches!(change, MessageChange::Save { .. })
}

type HashesByUid = BTreeMap<Uid, MessageGuid>;

fn mail<'a>(change: &'a MessageChange, hashes: Option<&'a HashesByUid>) -> Option<Mail<'a>> {
    match change {
        MessageChange::Save { uid, guid, modseq, flags, .. } => {
            let identity = hashes.and_then(|hashes| hashes.get(uid)).unwrap_or(guid);
            Some(Mail { uid: *uid, guid, identity, modseq: *modseq, flags })
        }
        MessageChange::Flags { .. } | MessageChange::Expunge { .. } => None,
    }
}

fn lists<'a>(changes: &'a [MessageChange], hashes: Option<&'a HashesByUid>) -> Lists<'a> {
    let expunged = changes.iter().filter_map(|change| match change {
        MessageChange::Expunge { uid, guid } => Some((*uid, guid.as_ref().map(MessageGuid::bits))),
        MessageChange::Save { .. } | MessageChange::Flags { .. } => None,
    });
    Lists {
        mails: changes.iter().filter_map(|change| mail(change, hashes)).collect(),
        expunged: expunged.collect(),
    }
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
            (MessageChange::Save { .. }, Some(own)) => {
                let their_hashes = terms.hashes.map(|hashes| &hashes.theirs);
                let Some(theirs) = mail(change, their_hashes).filter(|mail| mail.identity == own.identity)
                else {
                    break;
                };
                last = uid.get();
                rest.next();
                plan.actions.extend(flag_action(uid, &own, &theirs, terms));
            }
            // Dovecot cannot tell a log's GUIDs from those of the other end then: what is at the end of the list is restored.
            (MessageChange::Save { .. }, None) if terms.hashes.is_some() => {
                if rest.peek().is_none() {
                    break;
                }
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
                    if terms.hashes.is_none() {
                        break;
                    }
                    // What is gone has no header that could be compared.
                    maybe_expunged.push(mail);
                    rest.next();
                    continue;
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
                // With no message left, Dovecot does not look into its log for what is gone at both ends.
                let is_same = guid.as_ref().and_then(|guid| logged(guid.bits())) == Some(true);
                if is_same && rest.peek().is_some() {
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
    // Without GUIDs, a UID that the state covers says enough.
    let by_uid = terms.hashes.is_some();
    for change in peer.iter().filter(|change| change.uid().get() <= common) {
        let Some(mail) = here(&change.uid()) else { continue };
        match change {
            MessageChange::Flags { uid, guid, modseq, flags } if by_uid || guid == mail.guid => {
                let theirs = Mail { uid: *uid, guid, identity: guid, modseq: *modseq, flags };
                plan.actions.extend(flag_action(*uid, &mail, &theirs, terms));
            }
            MessageChange::Expunge { guid, .. }
                if by_uid || guid.as_ref().is_none_or(|g| g.bits() == mail.guid.bits()) =>
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
mod tests;
