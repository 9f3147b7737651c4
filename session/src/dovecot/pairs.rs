//! How the mailboxes of a session follow each other: the master names one after the other, the slave answers.

use dsync_merge::{Direction, End, Pair};
use dsync_model::{LastCommon, MailboxGuid, MailboxStatus, TreeChange};
use dsync_proto::dovecot::items::{self, Item};
use dsync_storage::StorageError;

use super::exchange::Opened;
use super::settled::Settled;
use super::{Brain, Stage, lines, unexpected};
use crate::SessionError;

impl Brain {
    /// Between two mailboxes: the master tells the next one, the slave hears it.
    pub(super) fn next_mailbox(&mut self) -> Result<bool, SessionError> {
        match self.end {
            End::Initiator => self.ask(),
            End::Responder => self.answer(),
        }
    }

    fn ask(&mut self) -> Result<bool, SessionError> {
        if let Some((pair, ours, opened)) = self.asked.take() {
            let Some(item) = self.next_item()? else {
                self.asked = Some((pair, ours, opened));
                return Ok(false);
            };
            let Item::Mailbox(theirs) = item else { return Err(unexpected(&item, "counters of a mailbox")) };
            if theirs.mailbox_guid != pair.guid {
                return Err(SessionError::Peer("answers with the counters of another mailbox".into()));
            }
            if theirs.mailbox_ignore {
                return Ok(true);
            }
            if theirs.mailbox_lost
                && let Some(guid) = self.disputed(&pair)
            {
                // It kept its own: so we take that one.
                self.identify(&pair, guid)?;
                self.pairs.push_front(Pair { guid, ..pair });
                return Ok(true);
            }
            if theirs.mailbox_lost {
                self.counters.disturbed += 1;
                self.full_resync = true;
                self.report
                    .notes
                    .push(format!("{}: the other end could not find or continue it: run again", pair.name));
                return Ok(true);
            }
            self.begin(pair, ours, *theirs, opened)?;
            return Ok(true);
        }
        let Some(pair) = self.pairs.pop_front() else {
            self.say(Item::End);
            self.stage = Stage::Finishing;
            return Ok(true);
        };
        let status = match self.storage.status(pair.guid) {
            Ok(status) => status,
            Err(error) => {
                self.leave_out(&pair, error)?;
                return Ok(true);
            }
        };
        if self.wants_state && self.state.0.get(&pair.guid).is_some_and(|known| known.is_current(&status)) {
            self.next_state.0.insert(pair.guid, LastCommon::of(&status));
            return Ok(true);
        }
        let theirs = pair.statuses[self.end.other()].as_ref();
        let renewed = theirs.is_some_and(|theirs| theirs.uid_validity != status.uid_validity);
        // A Dovecot that takes our UIDVALIDITY begins its index anew, and complains if its first recent UID is not raised again.
        let first_recent = if renewed { status.uid_next.get() } else { self.settled.ask(&status) };
        let line = self.counters(&status, first_recent);
        // Once it has heard our counters the peer awaits our lists, unless they are equal to its own.
        let told = theirs.is_some_and(|theirs| theirs.uid_next == status.uid_next) && !renewed;
        let opened = if told && Settled::may_be_equal(first_recent) && !self.exchanges_all() {
            None
        } else {
            let theirs = theirs.map(|theirs| (theirs.uid_validity.get(), theirs.uid_next.get()));
            match self.open(&status, theirs) {
                Ok(opened) => Some(opened),
                Err(error) => {
                    self.leave_out(&pair, error)?;
                    return Ok(true);
                }
            }
        };
        self.say(line.clone());
        self.asked = Some((pair, line, opened));
        Ok(true)
    }

    fn counters(&self, status: &MailboxStatus, first_recent: u32) -> items::Mailbox {
        let mut line = lines::counters(status, first_recent, self.knows_guids(status));
        // To whom has no messages a Dovecot tells no hashes; but of what we expunged since both were equal we must know them.
        let receives = self.direction.source() != Some(self.end);
        if status.messages == 0 && receives && !self.knows_guids(status) && self.settled.had_others(status) {
            line.messages_count = 1;
        }
        line
    }

    fn answer(&mut self) -> Result<bool, SessionError> {
        let Some(item) = self.next_item()? else { return Ok(false) };
        let theirs = match item {
            Item::End => {
                self.stage = Stage::Finishing;
                return Ok(true);
            }
            Item::Mailbox(theirs) => theirs,
            other => return Err(unexpected(&other, "counters of a mailbox")),
        };
        let guid = theirs.mailbox_guid;
        let disputed =
            self.plan.pairs.iter().position(|pair| pair.guid != guid && self.disputed(pair) == Some(guid));
        if let Some(index) = disputed {
            self.identify(&self.plan.pairs[index].clone(), guid)?;
            self.plan.pairs[index].guid = guid;
        }
        let place = self.plan.pairs.iter().position(|pair| pair.guid == guid);
        let pair = place.map(|place| self.plan.pairs[place].clone());
        self.answered = place.map_or(self.answered, |place| place + 1);
        let known = self.state.0.get(&guid).copied();
        let offered = match &pair {
            Some(pair) => match self.offer(pair, known, &theirs) {
                Ok(offered) => offered,
                Err(error) => {
                    self.leave_out(pair, error)?;
                    None
                }
            },
            None => None,
        };
        let is_here = pair.is_some() || self.passed_over.contains(&guid);
        if let (Some(pair), Some((ours, opened))) = (pair, offered) {
            self.say(ours.clone());
            self.begin(pair, ours, *theirs, opened)?;
            return Ok(true);
        }
        self.full_resync |= known.is_some_and(|known| known.uid > 0);
        // What the receiver alone has it keeps; of what is here, and cannot be told, it is to know.
        let ignore = !is_here && matches!(self.direction, Direction::OneWay { into: End::Initiator });
        self.say(items::Mailbox {
            mailbox_guid: guid,
            mailbox_ignore: ignore,
            mailbox_lost: !ignore,
            cache_fields: (!ignore).then(Vec::new),
            ..items::Mailbox::default()
        });
        Ok(true)
    }

    /// As slave, the counters to be told, and the lists where they will be exchanged. `None`: the mailbox cannot go on from what the state says.
    fn offer(
        &mut self,
        pair: &Pair,
        known: Option<LastCommon>,
        theirs: &items::Mailbox,
    ) -> Result<Option<(items::Mailbox, Option<Opened>)>, StorageError> {
        let status = self.storage.status(pair.guid)?;
        if known.is_some_and(|known| known.uid != 0 && known.is_ahead_of(&status)) {
            return Ok(None);
        }
        let renewed = theirs.uid_validity != status.uid_validity.get();
        let told = self.settled.answer(&status, theirs.first_recent_uid);
        let first_recent = if renewed { status.uid_next.get() } else { told };
        let ours = self.counters(&status, first_recent);
        let opened = match self.is_exchanged(&ours, theirs) {
            true => Some(self.open(&status, Some((theirs.uid_validity, theirs.uid_next)))?),
            false => None,
        };
        Ok(Some((ours, opened)))
    }

    /// The peer's GUID of a mailbox that had two of them. Which one it has now cannot be known: Dovecot's Maildir takes ours, others the higher.
    fn disputed(&self, pair: &Pair) -> Option<MailboxGuid> {
        let theirs = pair.statuses[self.end.other()].as_ref()?.guid;
        let open = pair.statuses[self.end].is_some() && self.direction.source() != Some(self.end);
        (open && theirs != pair.guid).then_some(theirs)
    }

    fn identify(&mut self, pair: &Pair, guid: MailboxGuid) -> Result<(), SessionError> {
        let Some(ours) = &pair.statuses[self.end] else { return Ok(()) };
        let change = TreeChange::Identify { name: pair.name.clone(), guid, uid_validity: ours.uid_validity };
        self.change_tree(&change).map(drop)
    }

    /// Whether messages of ours have GUIDs that the peer knows, too. In an mbox only while there is nothing new.
    fn knows_guids(&self, status: &MailboxStatus) -> bool {
        self.guids.as_ref().is_none_or(|guids| guids.covers(status))
    }
}
