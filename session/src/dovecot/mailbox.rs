//! One mailbox of a session, both ends having told their counters: whether its lists are exchanged, and what came of it.

use std::collections::BTreeMap;

use dsync_merge::{End, Pair};
use dsync_model::{LastCommon, MailboxStatus, MessageGuid, Since, Uid, UidValidity};
use dsync_proto::dovecot::codec::Event;
use dsync_proto::dovecot::items::{self, Item};
use dsync_storage::{HeaderHash, StorageError};

use super::exchange::{self, Exchange, Opened};
use super::start::HASHED_HEADERS;
use super::{Brain, Stage, at, chain, gave_up, lines};
use crate::SessionError;
use crate::listing::{self, DISTURBED};

impl Brain {
    /// Both ends have told their counters: there is an exchange, or there is none.
    pub(super) fn begin(
        &mut self,
        pair: Pair,
        ours: items::Mailbox,
        theirs: items::Mailbox,
        opened: Option<Opened>,
    ) -> Result<(), SessionError> {
        self.progress.settled += 1;
        if !self.is_exchanged(&ours, &theirs) {
            let blank = LastCommon { uid_validity: ours.uid_validity, ..LastCommon::default() };
            self.next_state.0.insert(pair.guid, blank);
            self.compared.equal += 1;
            return Ok(());
        }
        let known = self.state.0.get(&pair.guid).copied().filter(|known| {
            self.handshake.sync_type.as_deref() == Some(b"s")
                && known.uid_validity == ours.uid_validity
                && known.uid > 0
        });
        let uid_validity = UidValidity::new(ours.uid_validity);
        let opened = match opened {
            Some(opened) => opened,
            // Counters that were to be equal are not: the other end awaits our lists, and there is nothing else that could be said. The next run
            // opens the mailbox first, and can leave it out.
            None => match Opened::new(&mut *self.storage, pair.guid) {
                Ok(opened) => opened,
                Err(error) => {
                    self.settled.forget(pair.guid);
                    self.settled.write(&mut *self.storage);
                    return Err(at(pair.name.to_string())(error));
                }
            },
        };
        let unfinished = self.unfinished.of(pair.guid);
        // What comes to our end comes in the order of its UIDs; one way nothing else goes on.
        if self.direction.source().is_none_or(|source| source == self.end) && self.filter.is_empty() {
            let begun = self.unfinished.begin(&mut *self.storage, pair.guid);
            begun.map_err(at("cannot note that a mailbox is under way"))?;
        }
        let terms = exchange::Terms {
            unfinished,
            end: self.end,
            direction: self.direction,
            peer_is_first: self.end == End::Initiator || self.is_called_by_dovecot(),
            requests: self.handshake.send_mail_requests,
            attributes: self.minor >= 1,
            known,
            filter: (*self.filter).clone(),
            header_hash: self.header_hash(),
            left: self.settled.left(pair.guid),
            guids: self
                .guids
                .as_ref()
                .zip(uid_validity)
                .map(|(guids, uid_validity)| guids.of(pair.guid, uid_validity)),
        };
        let (name, attributes) = (pair.name.to_string(), self.attributes.as_ref());
        let exchange = Exchange::begin(name, opened, ours, theirs, terms, attributes)?;
        self.exchange = Some(Box::new(exchange));
        self.stage = Stage::Exchange;
        Ok(())
    }

    /// Opens a mailbox before anything is said of it. `theirs`: UIDVALIDITY and UIDNEXT of the peer's.
    ///
    /// Whoever only sends tells of no message that it cannot send: a Dovecot makes its mailbox anew for one that it lacks in a backup, and else never asks again.
    pub(super) fn open(
        &mut self,
        status: &MailboxStatus,
        theirs: Option<(u32, u32)>,
    ) -> dsync_storage::Result<Opened> {
        let mut opened = match self.opened_ahead(status.guid)? {
            Some(opened) => opened,
            None => Opened::new(&mut *self.storage, status.guid)?,
        };
        if self.direction.source() == Some(self.end) {
            let known = theirs.filter(|(uid_validity, _)| *uid_validity == status.uid_validity.get());
            opened.skip_to(known.map_or(1, |(_, uid_next)| uid_next));
            opened.check(usize::MAX)?;
        }
        Ok(opened)
    }

    /// Whether the lists of a mailbox with these counters are exchanged.
    pub(super) fn is_exchanged(&self, ours: &items::Mailbox, theirs: &items::Mailbox) -> bool {
        self.exchanges_all() || lines::differ(ours, theirs)
    }

    /// Whether lists are exchanged whatever the counters are.
    pub(super) fn exchanges_all(&self) -> bool {
        self.handshake.sync_type.as_deref().is_some_and(|kind| kind != b"c")
    }

    /// Leaves a mailbox out in which something failed; an error of more than that mailbox ends the session.
    pub(super) fn leave_out(&mut self, pair: &Pair, error: StorageError) -> Result<(), SessionError> {
        if listing::has_gone(&mut *self.storage, pair.guid, &error) {
            self.counters.disturbed += 1;
            return Ok(());
        }
        self.fail(&pair.name.to_string(), error)
    }

    /// Says what cannot be done to one mailbox; an error of more than that mailbox ends the session.
    pub(super) fn fail(&mut self, name: &str, error: StorageError) -> Result<(), SessionError> {
        if self.storage.concerns_all(&error) {
            return Err(at(name.to_string())(error));
        }
        self.problem(format!("{name}: {}", chain(&error)), error.status());
        Ok(())
    }

    /// Goes on after an error of the mailbox under way, if that can be.
    fn spare<T: Default>(&mut self, done: Result<T, SessionError>) -> Result<T, SessionError> {
        match (done, &mut self.exchange) {
            (Err(SessionError::Storage { context, source }), Some(exchange))
                if !self.storage.concerns_all(&source) =>
            {
                let has_gone = listing::has_gone(&mut *self.storage, exchange.mailbox_guid(), &source);
                exchange.spare(context, source, has_gone, &mut self.out).map(|()| T::default())
            }
            (done, _) => done,
        }
    }

    /// By what messages without GUIDs are compared: as the master says.
    fn header_hash(&self) -> HeaderHash {
        let named = self.handshake.hashed_headers.iter().flat_map(|list| &list.0);
        // Dovecot ends its list with a separator, which is no name.
        let mut names: Vec<Vec<u8>> = named.filter(|name| !name.is_empty()).cloned().collect();
        if names.is_empty() {
            names = HASHED_HEADERS.map(|name| name.as_bytes().to_vec()).to_vec();
        }
        HeaderHash { names, is_filtered: self.minor >= 4 }
    }

    /// Whether the master is no dsync, which waits for how a slave stands: of the two only a Dovecot ends its list of headers with a separator.
    fn is_called_by_dovecot(&self) -> bool {
        let headers = self.handshake.hashed_headers.as_ref().and_then(|headers| headers.0.last());
        self.end == End::Responder && headers.is_some_and(Vec::is_empty)
    }

    pub(super) fn hear(&mut self) -> Result<(), SessionError> {
        while let Some(exchange) = self.exchange.as_mut().filter(|exchange| !exchange.has_read_all())
            && let Some(event) = self.inbox.pop_front()
        {
            match event {
                Event::Item(Item::Close) if exchange.told_attributes() => {
                    let text = "the other end gave up when it was told attributes, or later; its log says why (with \"attributes not enabled\": set \
                                mail_attribute_dict there, or here, to what only Dovecot knows, so that they stay where they are)";
                    return Err(SessionError::Link { status: 75, text: text.into() });
                }
                Event::Item(Item::Close) => return Err(gave_up()),
                event => {
                    let taken = exchange.take(event, &mut self.progress);
                    self.spare(taken)?;
                }
            }
        }
        if let Some(exchange) = &self.exchange
            && let Some(agreed) = exchange.agreed()
        {
            let noted = self.unfinished.agree(&mut *self.storage, exchange.mailbox_guid(), agreed);
            noted.map_err(at("cannot note what both ends have"))?;
        }
        self.change_attributes();
        Ok(())
    }

    pub(super) fn work(&mut self) -> Result<bool, SessionError> {
        self.hear()?;
        let Some(exchange) = &mut self.exchange else { return Ok(false) };
        let (written, failed) = match exchange.write(&mut self.out, &mut self.progress) {
            Err(error) => (Err(error), true),
            written => (written, false),
        };
        let worked = self.spare(written)? || failed;
        if self.exchange.as_ref().is_some_and(|exchange| exchange.is_done()) {
            if let Some(exchange) = self.exchange.take() {
                self.settle(*exchange);
            }
            self.stage = Stage::Mailboxes;
            return Ok(true);
        }
        Ok(worked)
    }

    /// Where our end keeps no GUIDs, notes those of the peer.
    fn keep_guids(&mut self, status: &MailboxStatus, theirs: &BTreeMap<Uid, MessageGuid>) {
        let Some(guids) = &mut self.guids else { return };
        let list = self.storage.open(status.guid).and_then(|mut mailbox| mailbox.changes(Since::All));
        match list {
            Ok(changes) if changes.status.uid_validity == status.uid_validity => {
                guids.put(status, &changes.list, theirs);
            }
            Ok(_) => {}
            Err(error) => tracing::debug!("{error}: GUIDs of the other end are not kept"),
        }
    }

    fn settle(&mut self, exchange: Exchange) {
        let outcome = exchange.into_outcome();
        self.compared.merged += 1;
        self.report.notes.extend(outcome.notes);
        self.next_state.0.insert(outcome.guid, outcome.common);
        if let Some((status, first_recent)) = outcome.settled {
            self.settled.put(&status, first_recent);
            self.keep_guids(&status, &outcome.guids);
        } else if let Some(left) = outcome.same_below {
            self.settled.put_left(outcome.guid, left);
        }
        if outcome.is_whole {
            self.unfinished.end(outcome.guid);
        }
        if outcome.disturbed {
            self.counters.disturbed += 1;
        }
        for (text, status) in outcome.problems {
            if status == DISTURBED {
                self.counters.disturbed += 1;
                continue;
            }
            self.problem(text, status);
        }
        let report = outcome.report;
        self.counters.saved += report.saved;
        self.counters.bytes += outcome.bytes;
        self.counters.flags += report.flags;
        self.counters.renumbered += report.renumbered;
        self.counters.expunged += report.expunged;
        self.report.remote.saved += report.sent;
        let counts = [report.saved, report.sent, report.flags, report.renumbered, report.expunged];
        if counts.iter().any(|count| *count > 0) {
            self.report.mailboxes.push(report);
        }
    }
}
