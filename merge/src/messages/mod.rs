//! Merges the messages of one mailbox: two change lists and the base in, one end's plan out.
//!
//! What the base knows is in `known`, what it does not know in `new`.

mod known;
mod new;
mod void_base;

use std::collections::{BTreeMap, BTreeSet};

use dsync_model::{
    FlagDelta, FlagSet, MailboxBase, MailboxStatus, MessageAction, MessageChange, MessageGuid, ModSeq, Uid,
    UidSet, UidValidity,
};

use crate::{Both, Direction, ENDS, End, unused_yields};
pub use void_base::void_base;

/// One end's side of a mailbox.
#[derive(Clone, Copy, Debug)]
pub struct MailboxView<'a> {
    pub status: &'a MailboxStatus,
    /// Ascending by UID. Since the base if one is given to the merge, else every message as `Save`, and `Expunge` where
    /// a log proves it.
    pub changes: &'a [MessageChange],
    /// Messages here that are not to be saved at the other end.
    pub filtered: &'a UidSet,
}

/// What one end does with one mailbox.
#[derive(Clone, PartialEq, Debug)]
pub struct MessagePlan {
    /// Renumbers and flags, in the order in which they are to be done, before the first save.
    pub actions: Vec<MessageAction>,
    /// Bodies to ask of the peer, ascending by the UID they get here.
    pub fetches: Vec<Fetch>,
    /// To be done when all saves of both ends are durable.
    pub expunges: Vec<MessageAction>,
    /// UIDNEXT to have here in the end, at least.
    pub uid_next_min: Uid,
    pub modseq_min: ModSeq,
    /// UIDVALIDITY to take over, if it is another.
    pub uid_validity: Option<UidValidity>,
    /// What both ends may remember once both have done their part.
    pub agreed: MailboxBase,
    /// Messages that must be equal at both ends then: those of `agreed`, less what a one-way sync left different.
    pub compared: UidSet,
    /// Flag changes of messages that the other end removed: if it moved them, they belong to the message's new place.
    pub carried: Vec<(MessageGuid, FlagDelta)>,
    /// Where messages that were new at either end are in the end, by GUID.
    pub arrived: BTreeMap<MessageGuid, Uid>,
    /// Messages that a mirror removes because its source never had them.
    pub foreign: u64,
}

/// A body to ask for, and how it is to be saved.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fetch {
    /// UID at the peer when it made its list.
    pub from: Uid,
    /// `None`: known only by its UID in the base.
    pub guid: Option<MessageGuid>,
    pub uid: Uid,
    pub flags: FlagSet,
    pub modseq: ModSeq,
}

/// The lists contradict the base: start over without it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Desync {
    #[error("UIDVALIDITY is not that of the base")]
    UidValidity,
    #[error("UID {0} is not as the base has it")]
    Uid(Uid),
    #[error("UIDs do not ascend at {0}")]
    Order(Uid),
    #[error("there is no UID left above {0}")]
    Exhausted(Uid),
}

#[derive(Clone, Copy)]
struct Save<'a> {
    uid: Uid,
    guid: &'a MessageGuid,
    modseq: ModSeq,
    flags: &'a FlagDelta,
}

#[derive(Default)]
struct Listed<'a> {
    saves: Vec<Save<'a>>,
    expunged: BTreeMap<Uid, Option<&'a MessageGuid>>,
    flagged: BTreeMap<Uid, (&'a MessageGuid, &'a FlagDelta, ModSeq)>,
}

/// One end's half, while it grows.
#[derive(Default)]
struct Half {
    renumbers: Vec<MessageAction>,
    flags: Vec<MessageAction>,
    fetches: Vec<Fetch>,
    expunges: Vec<MessageAction>,
}

struct Merge<'a> {
    direction: Direction,
    uid_next: Both<Uid>,
    base: Option<&'a MailboxBase>,
    lists: Both<Listed<'a>>,
    filtered: Both<&'a UidSet>,
    halves: Both<Half>,
    agreed: MailboxBase,
    different: UidSet,
    carried: Vec<(MessageGuid, FlagDelta)>,
    arrived: BTreeMap<MessageGuid, Uid>,
    foreign: u64,
    fresh: Uid,
    top: Uid,
}

/// Merges one mailbox and gives the half of `end`. Both ends pass the same views in the same order.
///
/// With a base, lists name what changed since then, and UIDs of the base are the same message at both ends; without one,
/// messages are matched by UID and GUID, and a hole is not an expunge unless a list says so.
pub fn messages(
    views: Both<MailboxView<'_>>,
    base: Option<&MailboxBase>,
    direction: Direction,
    end: End,
) -> Result<MessagePlan, Desync> {
    let uid_validity = uid_validity(&views, direction);
    if let Some(base) = base
        && ENDS.iter().any(|end| views[*end].status.uid_validity != base.uid_validity)
    {
        return Err(Desync::UidValidity);
    }
    let uid_next = Both(views.0.map(|view| view.status.uid_next));
    let next_max = uid_next.0[0].max(uid_next.0[1]);
    let agreed = match base {
        Some(base) => MailboxBase { digest: None, apart: BTreeSet::new(), ..base.clone() },
        None => MailboxBase::new(uid_validity, next_max),
    };
    let mut merge = Merge {
        direction,
        uid_next,
        base,
        lists: Both([listed(views.0[0].changes)?, listed(views.0[1].changes)?]),
        filtered: Both(views.0.map(|view| view.filtered)),
        halves: Both::default(),
        agreed,
        different: UidSet::new(),
        carried: Vec::new(),
        arrived: BTreeMap::new(),
        foreign: 0,
        fresh: next_max,
        top: next_max,
    };
    merge.known()?;
    merge.unknown()?;
    Ok(merge.plan(&views, uid_validity, end))
}

/// Rule **uidvalidity**: the source's; two-way that of the end that ever held mail, that has more messages, else the larger.
fn uid_validity(views: &Both<MailboxView<'_>>, direction: Direction) -> UidValidity {
    let key = |end: End| (views[end].status.messages, views[end].status.uid_validity);
    let keeper = match (direction.source(), unused_yields(Both(views.0.map(|view| view.status)))) {
        (Some(keeper), _) | (None, Some(keeper)) => keeper,
        _ if key(End::Initiator) >= key(End::Responder) => End::Initiator,
        _ => End::Responder,
    };
    views[keeper].status.uid_validity
}

fn listed(changes: &[MessageChange]) -> Result<Listed<'_>, Desync> {
    let mut list = Listed::default();
    let mut last = None;
    for change in changes {
        let uid = change.uid();
        if last >= Some(uid) {
            return Err(Desync::Order(uid));
        }
        last = Some(uid);
        match change {
            MessageChange::Save { guid, modseq, flags, .. } => {
                list.saves.push(Save { uid, guid, modseq: *modseq, flags });
            }
            MessageChange::Expunge { guid, .. } => {
                list.expunged.insert(uid, guid.as_ref());
            }
            MessageChange::Flags { guid, modseq, flags, .. } => {
                list.flagged.insert(uid, (guid, flags, *modseq));
            }
        }
    }
    Ok(list)
}

impl Merge<'_> {
    fn take_fresh(&mut self) -> Result<Uid, Desync> {
        let uid = self.fresh;
        self.fresh = uid.next().ok_or(Desync::Exhausted(uid))?;
        self.top = self.top.max(self.fresh);
        Ok(uid)
    }

    fn renumber(&mut self, end: End, from: Uid, to: Uid) {
        if from != to {
            self.halves[end].renumbers.push(MessageAction::Renumber { from, to });
        }
    }

    fn fetch(&mut self, end: End, save: &Save<'_>, uid: Uid) {
        let (guid, flags) = (Some(save.guid.clone()), save.flags.current.clone());
        self.halves[end].fetches.push(Fetch { from: save.uid, guid, uid, flags, modseq: save.modseq });
    }

    /// `modseq` is what the other end gave to these flags: the message gets it too, so that both ends tell a client the same.
    fn set_flags(&mut self, end: End, uid: Uid, now: &FlagSet, wanted: &FlagSet, modseq: ModSeq) {
        if now != wanted && self.direction.source() != Some(end) {
            let (add, remove) = (wanted.minus(now), now.minus(wanted));
            self.halves[end].flags.push(MessageAction::Flags { uid, add, remove, modseq_min: modseq });
        }
    }

    fn plan(self, views: &Both<MailboxView<'_>>, uid_validity: UidValidity, end: End) -> MessagePlan {
        let Merge { direction, mut halves, mut agreed, different, carried, arrived, foreign, top, .. } = self;
        let status = views[end].status;
        agreed.uid_validity = uid_validity;
        agreed.uid_next = top.max(agreed.uid_next);
        agreed.tidy();
        let written = direction.source() != Some(end);
        let half = std::mem::take(&mut halves[end]);
        let mut actions = half.renumbers;
        actions.extend(half.flags);
        let mut fetches = half.fetches;
        fetches.sort_by_key(|fetch| fetch.uid);
        MessagePlan {
            actions,
            fetches,
            expunges: half.expunges,
            uid_next_min: if written { top } else { status.uid_next },
            modseq_min: if written { views[end.other()].status.highest_modseq } else { ModSeq::NONE },
            uid_validity: (written && status.uid_validity != uid_validity).then_some(uid_validity),
            compared: &agreed.uids - &different,
            agreed,
            carried,
            arrived,
            foreign,
        }
    }
}
