//! Expunges at the end of the common UIDs, where messages are told by their headers, as something new is in our mbox: that both ends once were equal is what proves them.
//!
//! Dovecot is sure of an expunge by GUID only, and gives a message at the end of the list a new UID instead. A message that both ends had when they were last
//! found equal, and that the log of one of them tells to be gone, was expunged. Both ends number from the same two lists, so what is known here only is told such
//! that the Dovecot comes to the same end: of what it expunged, that we have not got it either; of what we expunged, that we still have it, until a later message
//! is common to both: then Dovecot believes the expunge.

use dsync_merge::Direction;
use dsync_model::{MessageAction, MessageChange, Uid};

use super::Exchange;

impl Exchange {
    /// Below this UID both ends had the same messages when they were last found equal. `None`: never, or the UIDs do not mean the same any more.
    fn equal_below(&self) -> Option<Uid> {
        let (uid_validity, uid_next) = self.terms.left?;
        let lines = [&self.ours, &self.theirs];
        // An end whose UIDNEXT went back was put back to what it was before that.
        let same = lines
            .iter()
            .all(|line| line.uid_validity == uid_validity.get() && line.uid_next >= uid_next.get());
        let merges = !matches!(self.terms.direction, Direction::Mirror { .. });
        let complete = self.terms.known.is_none() && self.terms.filter.is_empty();
        (merges && same && complete && self.hashing.is_some()).then_some(uid_next)
    }

    /// UIDs at which one end has a message and the other one's log says that it is gone. `ours`: we have it.
    fn half_gone(&self, ours: bool) -> Vec<(usize, MessageChange)> {
        let Some(below) = self.equal_below() else { return Vec::new() };
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
