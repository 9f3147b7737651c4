//! The first stages: who is there and what for, the locks, and the state. The trees follow in `trees`.

use dsync_merge::{Direction, End};
use dsync_model::{LastCommon, MailboxName, MailboxStatus, Uid};
use dsync_proto::dovecot::items::{self, Elements, Item};

use super::choice::namespaces;
use super::guids::Guids;
use super::settled::Settled;
use super::unfinished::Unfinished;
use super::{Brain, Stage, at, chain, filtering, lines, unexpected};
use crate::{SessionError, listing};

/// Most names that a peer may list, and most records of its state.
pub(super) const NODES_MAX: usize = 1_000_000;
/// Headers by which mails without GUIDs are compared. Without them, Dovecot would crash.
pub(super) const HASHED_HEADERS: [&str; 2] = ["Date", "Message-ID"];

impl Brain {
    pub(super) fn greet(&mut self) -> Result<bool, SessionError> {
        if let Some(job) = &self.job {
            self.storage.choose(&job.options.namespaces).map_err(at("cannot choose namespaces"))?;
        }
        let hostname = self.hostname.clone().into_bytes();
        let line = match &self.job {
            Some(_) => self.master_line()?,
            None => items::Handshake {
                hostname,
                hashed_headers: Some(Elements::default()),
                ..items::Handshake::default()
            },
        };
        if let (End::Initiator, Some(job)) = (self.end, &self.job) {
            self.handshake = line.clone();
            self.filter = job.options.filter.clone();
        }
        self.say(line);
        self.stage = Stage::Greeting;
        Ok(true)
    }

    /// What a Dovecot is asked to do. It cannot do all that we can.
    fn master_line(&self) -> Result<items::Handshake, SessionError> {
        let Some(job) = &self.job else { return Ok(items::Handshake::default()) };
        let options = &job.options;
        if options.purpose != dsync_proto::Purpose::Sync {
            return Err(SessionError::Refused {
                status: 64,
                text: "a dry run, or verifying, is not possible when the other end is a Dovecot".into(),
            });
        }
        let kind: &[u8] = match (options.full, self.state.0.is_empty()) {
            (true, _) => b"f",
            (false, true) => b"c",
            (false, false) => b"s",
        };
        let mut line = items::Handshake {
            hostname: self.hostname.clone().into_bytes(),
            sync_type: Some(kind.to_vec()),
            send_mail_requests: true,
            backup_send: matches!(
                self.direction,
                Direction::OneWay { into: End::Initiator } | Direction::Mirror { into: End::Initiator }
            ),
            backup_recv: matches!(
                self.direction,
                Direction::OneWay { into: End::Responder } | Direction::Mirror { into: End::Responder }
            ),
            no_backup_overwrite: matches!(self.direction, Direction::OneWay { .. }),
            lock_timeout: Some(options.lock_wait_secs).filter(|secs| *secs > 0),
            purge_remote: options.purge,
            hashed_headers: Some(Elements(HASHED_HEADERS.map(|name| name.as_bytes().to_vec()).to_vec())),
            alt_char: Some(b"_".to_vec()),
            ..items::Handshake::default()
        };
        self.choose(&mut line)?;
        filtering::tell(&options.filter, self.direction, &mut line)?;
        Ok(line)
    }

    /// Hears the peer's handshake, and locks.
    pub(super) fn meet(&mut self) -> Result<bool, SessionError> {
        let Some(item) = self.next_item()? else { return Ok(false) };
        let Item::Handshake(theirs) = item else { return Err(unexpected(&item, "a handshake")) };
        tracing::debug!("the other end is {}", String::from_utf8_lossy(&theirs.hostname).escape_debug());
        let mut locks = locks_user(self.end, self.hostname.as_bytes(), &theirs.hostname);
        let host = theirs.hostname.clone();
        if self.end == End::Responder {
            locks &= theirs.lock_timeout.is_some();
            self.take_job(*theirs)?;
        } else {
            locks &= self.job.as_ref().is_some_and(|job| job.options.lock_wait_secs > 0);
        }
        // A store is made by asking for its id, which a Dovecot is not told.
        let store = self.storage.store_id().map_err(at("cannot name the store"))?;
        let lock = self.storage.lock(self.lock_wait).map_err(at("cannot lock the store"))?;
        let user = match locks {
            true => {
                self.storage.lock_user(store, store, self.lock_wait).map_err(at("cannot lock the user"))?
            }
            false => None,
        };
        self.lock = Some((lock, user));
        self.settled = Settled::read(&mut *self.storage, &host);
        self.unfinished = Unfinished::read(&mut *self.storage, self.settled.host());
        let (tree, problems) = listing::list(&mut *self.storage, |_| true)?;
        if self.storage.location().starts_with("mbox:") {
            let whole = problems.is_empty().then_some(&tree);
            self.guids = Some(Guids::read(&mut *self.storage, self.settled.host(), whole));
        }
        if !self.handshake.no_mail_sync {
            self.read_attributes();
        }
        for problem in problems {
            let name = MailboxName::parse(&problem.mailbox, '/');
            if name.as_ref().is_ok_and(|name| !self.may_have(name)) {
                continue;
            }
            self.problem(format!("{}: {}", problem.mailbox, chain(&problem.error)), problem.error.status());
            // A name that none can be the peer has not got either.
            self.unlisted.extend(name);
        }
        let mut tree = tree;
        self.pristine =
            tree.get(&MailboxName::inbox()).and_then(|node| node.mailbox.clone()).filter(is_pristine);
        if self.pristine.is_some()
            && self.direction.source() != Some(self.end)
            && let Some(inbox) = tree.get_mut(&MailboxName::inbox())
        {
            // An INBOX that was only just made, or never used, becomes that of the other end; two GUIDs would have to be settled first.
            inbox.mailbox = None;
        }
        let scope = self.scope();
        self.tree = tree
            .into_iter()
            .filter(|(name, node)| scope(name, node.mailbox.as_ref().map(|s| s.guid)))
            .collect();
        if self.end == End::Initiator {
            if self.handshake.sync_type.as_deref() == Some(b"s") {
                self.tell_state();
            }
            // Our tree is told when the peer's is known: a slave does not wait for it.
            self.stage = Stage::Trees;
        } else if self.handshake.sync_type.as_deref() == Some(b"s") {
            self.stage = Stage::State;
        } else {
            self.tell_slave_tree();
        }
        Ok(true)
    }

    fn take_job(&mut self, line: items::Handshake) -> Result<(), SessionError> {
        if line.sync_type.as_deref().is_none_or(|kind| !matches!(kind, b"f" | b"c" | b"s")) {
            return Err(SessionError::Peer("asks for an unknown type of sync".into()));
        }
        self.storage.choose(&namespaces(&line)).map_err(at("cannot choose namespaces"))?;
        self.direction = lines::direction(&line)?;
        self.filter = filtering::told(&line, self.direction)?;
        if let Some(secs) = line.lock_timeout {
            self.lock_wait = std::time::Duration::from_secs(secs.into());
        }
        self.handshake = line;
        Ok(())
    }

    /// Tells what the state says of mailboxes where it can be trusted.
    fn tell_state(&mut self) {
        let log = self.storage.capabilities().log;
        let statuses = self.tree.values().filter_map(|node| node.mailbox.as_ref());
        let stale: Vec<_> = statuses
            .filter(|status| {
                self.state.0.get(&status.guid).is_some_and(|known| {
                    known.is_ahead_of(status)
                        || known.uid_validity != status.uid_validity.get()
                        // Something is gone, and no log tells what.
                        || (!log && status.messages < known.messages)
                })
            })
            .map(|status| status.guid)
            .collect();
        for guid in stale {
            self.state.0.remove(&guid);
        }
        let records: Vec<items::State> = self
            .state
            .0
            .iter()
            .map(|(guid, known)| items::State {
                mailbox_guid: *guid,
                last_uidvalidity: known.uid_validity,
                last_common_uid: known.uid,
                last_common_modseq: known.modseq,
                last_common_pvt_modseq: known.private_modseq,
                last_messages_count: Some(known.messages),
                changes_during_sync: false,
            })
            .collect();
        for record in records {
            self.say(record);
        }
        self.say(Item::End);
    }

    pub(super) fn take_state(&mut self) -> Result<bool, SessionError> {
        while let Some(item) = self.next_item()? {
            match item {
                Item::End => {
                    self.tell_slave_tree();
                    return Ok(true);
                }
                Item::State(state) if self.state.0.len() < NODES_MAX => {
                    let known = LastCommon {
                        uid_validity: state.last_uidvalidity,
                        uid: state.last_common_uid,
                        modseq: state.last_common_modseq,
                        private_modseq: state.last_common_pvt_modseq,
                        messages: state.last_messages_count.unwrap_or(0),
                    };
                    self.state.0.insert(state.mailbox_guid, known);
                }
                other => return Err(unexpected(&other, "the state of a mailbox")),
            }
        }
        Ok(false)
    }
}

fn is_pristine(status: &MailboxStatus) -> bool {
    status.messages == 0 && status.uid_next == Uid::MIN
}

/// Says which end takes the lock of its user: the one whose host name sorts first; on one host the master (semantics reference 10.1).
fn locks_user(end: End, ours: &[u8], theirs: &[u8]) -> bool {
    match ours.cmp(theirs) {
        std::cmp::Ordering::Equal => end == End::Initiator,
        order => order.is_lt(),
    }
}
