//! Expunges at the end of the common UIDs that no log proves: that both ends once were equal is what does.
//!
//! A Dovecot that expunges from an sdbox logs no GUID, unless it has it in its cache. So what both ends had when they were last found equal, and one of them has no more, was expunged there; it is told
//! with the GUID that the other end has of it. That holds as long as no UID of those means two messages, as after a store was put back to what it was. Where both wait for the other's list, as two of
//! ours that speak Dovecot's protocol, one tells its own after a while.
//!
//! Where messages are told by their headers, as something new is in our mbox, Dovecot is sure of an expunge by GUID only, and gives a message at the end of the list a new UID instead. A message that both ends had when they were last
//! found equal, and that the log of one of them tells to be gone, was expunged. Both ends number from the same two lists, so what is known here only is told such
//! that the Dovecot comes to the same end: of what it expunged, that we have not got it either; of what we expunged, that we still have it, until a later message
//! is common to both: then Dovecot believes the expunge.

use dsync_merge::Direction;
use dsync_model::{MessageAction, MessageChange, MessageGuid, Uid, UidValidity};
use dsync_proto::dovecot::items;

use super::super::settled::Left;
use super::{Exchange, List, Part};

impl Exchange {
    /// Below this UID both ends had the same messages when they were last found equal. `None`: never, or the UIDs do not mean the same any more.
    fn equal_below(&self) -> Option<Uid> {
        let Left { uid_validity, below, .. } = self.terms.left?;
        let lines = [&self.ours, &self.theirs];
        // An end whose UIDNEXT went back was put back to what it was before that.
        let same =
            lines.iter().all(|line| line.uid_validity == uid_validity.get() && line.uid_next >= below.get());
        let merges = !matches!(self.terms.direction, Direction::Mirror { .. });
        let complete = self.terms.known.is_none() && self.terms.filter.is_empty();
        (merges && same && complete).then_some(below)
    }

    /// What both ends have the same now.
    ///
    /// What is new gets UIDs from the UIDNEXT of both on as they told it, what was unlike below has gone there, and what is delivered meanwhile comes there, too: so below the
    /// lower one both have what they agreed on, if neither found anything disturbed.
    pub(super) fn same_below(&self) -> Option<Left> {
        let plain = self.terms.known.is_none() && self.terms.filter.is_empty() && self.hashing.is_none();
        let whole = !self.disturbed && !self.gave_up && self.not_kept.is_empty() && self.problems.is_empty();
        if self.terms.direction != Direction::TwoWay
            || !plain
            || !whole
            || self.ours.uid_validity != self.theirs.uid_validity
        {
            return None;
        }
        let common = [&self.said, &self.heard].map(|state| state.as_ref().map(|state| state.last_common_uid));
        let [said, heard] = common;
        let below = self.ours.uid_next.min(self.theirs.uid_next).min(said?.min(heard?).saturating_add(1));
        let own = self.own.iter().take_while(|change| change.uid().get() < below);
        let messages = own.filter(|change| matches!(change, MessageChange::Save { .. })).count();
        Some(Left {
            uid_validity: UidValidity::new(self.ours.uid_validity)?,
            below: Uid::new(below)?,
            messages: u32::try_from(messages).ok()?,
        })
    }

    /// Whether our list waits for the peer's, as one of them may lack what both once had.
    pub fn waits_for_list(&self) -> bool {
        let waits = self.writing.front() == Some(&List::Changes) && self.told == 0 && self.plan.is_none();
        waits
            && self.part == Part::Both
            && (self.hashing.is_some()
                || ((self.may_lack() || self.terms.unfinished.is_some()) && !self.goes_first))
    }

    /// Whether the peer was told nothing of our list yet, and will be.
    pub(super) fn is_untold(&self) -> bool {
        self.told == 0 && self.writing.contains(&List::Changes)
    }

    /// Whether our list may be told before the peer's, if the peer waits, too.
    pub fn may_go_first(&self) -> bool {
        self.hashing.is_none() && self.waits_for_list()
    }

    /// The peer waits, too: our list is told first. Whoever knows a clock calls it.
    pub fn go_first(&mut self) {
        self.goes_first = true;
    }

    /// Whether an end has fewer messages than there can be, if nothing was expunged since both were equal.
    fn may_lack(&self) -> bool {
        let (Some(below), Some(before)) = (self.equal_below(), self.terms.left.map(|left| left.messages))
        else {
            return false;
        };
        let lacks = |line: &items::Mailbox| {
            let since = line.uid_next.saturating_sub(below.get());
            line.messages_count < before.saturating_add(since)
        };
        lacks(&self.ours) || lacks(&self.theirs)
    }

    /// Whether a UID that both ends had then means two messages now.
    fn contradicts(&self, below: Uid) -> bool {
        let early = self.own.iter().take_while(|change| change.uid() < below);
        let mut both = early.filter_map(|own| Some((guid_of_any(own)?, known_at(&self.peer, own.uid())?)));
        both.any(|(own, theirs)| own.bits() != theirs.bits())
    }

    /// Adds to our list what was expunged here, as the peer has it, and takes out what was expunged there, which is to be expunged.
    fn prove_gone(&mut self) -> Vec<MessageAction> {
        let Some(below) = self.equal_below().filter(|below| self.may_lack() && !self.contradicts(*below))
        else {
            return Vec::new();
        };
        let peer = self.peer.iter().take_while(|change| change.uid() < below);
        let lost = peer.filter_map(|change| match change {
            MessageChange::Save { uid, guid, .. } => Some((*uid, guid.clone())),
            MessageChange::Flags { .. } | MessageChange::Expunge { .. } => None,
        });
        let lost: Vec<_> = lost.filter(|(uid, _)| known_at(&self.own, *uid).is_none()).collect();
        let mut actions = Vec::new();
        for change in self.own.iter_mut().take_while(|change| change.uid() < below) {
            let MessageChange::Save { uid, guid, .. } = &*change else { continue };
            if known_at(&self.peer, *uid).is_none() && !self.kept_back.contains(uid.get()) {
                let uid = *uid;
                actions.push(MessageAction::Expunge { uid, guid: Some(guid.clone()) });
                *change = MessageChange::Expunge { uid, guid: None };
            }
        }
        self.own.retain(|own| lost.binary_search_by_key(&own.uid(), |(uid, _)| *uid).is_err());
        self.own.extend(lost.into_iter().map(|(uid, guid)| MessageChange::Expunge { uid, guid: Some(guid) }));
        self.own.sort_by_key(MessageChange::uid);
        actions
    }

    /// UIDs at which one end has a message and the other one's log says that it is gone. `ours`: we have it.
    fn half_gone(&self, ours: bool) -> Vec<(usize, MessageChange)> {
        let Some(below) = self.equal_below().filter(|_| self.hashing.is_some()) else { return Vec::new() };
        let own = self.own.iter().enumerate().take_while(|(_, change)| change.uid() < below);
        let halves = own.filter_map(|(index, own)| {
            let theirs = self.peer.binary_search_by_key(&own.uid(), MessageChange::uid).ok()?;
            let theirs = &self.peer[theirs];
            let (there, gone) = if ours { (own, theirs) } else { (theirs, own) };
            let is_half =
                matches!((there, gone), (MessageChange::Save { .. }, MessageChange::Expunge { .. }));
            is_half.then(|| (index, there.clone()))
        });
        halves.collect()
    }

    /// Takes out of our list what the peer expunged, and gives what is to be expunged here.
    pub(super) fn follow_gone(&mut self) -> Vec<MessageAction> {
        if self.hashing.is_none() {
            // What was told cannot be taken back.
            return if self.is_untold() && self.part == Part::Both { self.prove_gone() } else { Vec::new() };
        }
        let gone = self.half_gone(true);
        let expunge = |(index, change): (usize, MessageChange)| {
            let uid = change.uid();
            // Without a GUID: the peer's log has another one.
            self.own[index] = MessageChange::Expunge { uid, guid: None };
            let MessageChange::Save { guid, .. } = change else { return None };
            Some(MessageAction::Expunge { uid, guid: Some(guid) })
        };
        gone.into_iter().filter_map(expunge).collect()
    }

    /// Puts into our list, as the peer has it, what was expunged here and would come back, as it lies beyond the UIDs `common` to both. `false`: nothing.
    pub(super) fn keep_gone(&mut self, common: u32) -> bool {
        let mut kept = 0;
        if self.ours.messages_count == 0 {
            // The peer told no hashes.
            return false;
        }
        for (index, change) in self.half_gone(false) {
            let uid = change.uid();
            let Some(hashing) = self.hashing.as_mut().filter(|_| uid.get() > common) else { continue };
            let Some(hash) = hashing.hashes.theirs.get(&uid).cloned() else { continue };
            hashing.hashes.ours.insert(uid, hash);
            self.own[index] = change;
            kept += 1;
        }
        if kept > 0 {
            self.notes.push(format!(
                "{}: {kept} expunged here, and there when both have a later message",
                self.name
            ));
        }
        kept > 0
    }
}

/// The GUID of a message that is there, or of which it is known that it is not.
fn guid_of_any(change: &MessageChange) -> Option<&MessageGuid> {
    match change {
        MessageChange::Save { guid, .. } | MessageChange::Flags { guid, .. } => Some(guid),
        MessageChange::Expunge { guid, .. } => guid.as_ref(),
    }
}

/// The GUID that a list has at this UID, whether that message is there or not.
fn known_at(list: &[MessageChange], uid: Uid) -> Option<&MessageGuid> {
    let at = list.binary_search_by_key(&uid, MessageChange::uid).ok()?;
    guid_of_any(&list[at])
}
