//! What this end says of one mailbox, list by list.

use std::collections::VecDeque;

use dsync_model::{MessageChange, MessageGuid, Timestamp, Uid};
use dsync_proto::dovecot::items::{self, Item};

use super::super::{Output, filtering, lines};
use super::hashing::guid_of;
use super::{Exchange, List, at};
use crate::{Progress, SessionError};

/// Lines of a list that are sent at once.
const BATCH: usize = 500;

impl Exchange {
    /// Says what there is to say. `false` if that must wait.
    pub fn write(
        &mut self,
        out: &mut VecDeque<Output>,
        progress: &mut Progress,
    ) -> Result<bool, SessionError> {
        let Some(list) = self.writing.front().copied() else { return Ok(false) };
        let mut say = |item: Item| out.push_back(Output::Item(item));
        match list {
            List::Attributes => {
                let batch = self.attributes.tell(BATCH);
                if !batch.is_empty() {
                    batch.into_iter().for_each(|line| say(line.into()));
                    return Ok(true);
                }
            }
            List::Changes => {
                let known = self.terms.known.map(|known| (known.uid, known.modseq));
                if self.waits_for_list() {
                    return Ok(false);
                }
                let until = self.own.len().min(self.told + BATCH);
                self.hash_own(until)?;
                for index in self.told..until {
                    let change = &self.own[index];
                    let Some(mut line) = lines::change(change, known) else { continue };
                    self.tell_hash(&mut line);
                    let change = &self.own[index];
                    filtering::complete(&self.terms.filter, &mut *self.mailbox, change, &mut line)
                        .map_err(at(self.name.clone()))?;
                    say(line.into());
                }
                self.told = until;
                if self.told < self.own.len() {
                    return Ok(true);
                }
                if !self.terms.requests {
                    self.ask_for_all();
                }
            }
            List::Requests => {
                if self.plan.is_none() {
                    return Ok(false);
                }
                let batch = self.requests.len().min(BATCH);
                self.requests.drain(..batch).for_each(|request| say(request.into()));
                if !self.requests.is_empty() {
                    return Ok(true);
                }
            }
            List::Mails => {
                if self.reading.contains(&List::Requests) {
                    return Ok(false);
                }
                if let Some(request) = self.asked.pop_front() {
                    self.send(request, out, progress)?;
                    return Ok(true);
                }
            }
            List::State => {
                if self.reading.iter().any(|list| *list != List::State) || self.waits_for_state() {
                    return Ok(false);
                }
                let state = self.close()?;
                say(state.clone().into());
                self.said = Some(state);
                self.writing.pop_front();
                return Ok(true);
            }
        }
        say(Item::End);
        self.writing.pop_front();
        Ok(true)
    }

    /// The master asks for nothing: it gets everything that is listed.
    fn ask_for_all(&mut self) {
        let known = self.terms.known.map_or(0, |known| known.uid);
        let all = self.own.iter().filter_map(|change| match change {
            MessageChange::Save { uid, guid, .. } if uid.get() > known => {
                Some(items::Request { guid: Some(guid.as_str().into()), uid: Some(uid.get()) })
            }
            _ => None,
        });
        self.asked = all.collect();
    }

    fn send(
        &mut self,
        request: items::Request,
        out: &mut VecDeque<Output>,
        progress: &mut Progress,
    ) -> Result<(), SessionError> {
        let told = request.guid.as_deref().and_then(|guid| self.told(guid));
        let guid = request.guid.as_deref().filter(|_| told.is_none()).map(MessageGuid::of_bytes);
        if guid.as_ref().is_some_and(|guid| !self.listed.contains(guid)) {
            return Err(SessionError::Peer(format!(
                "asks for a message of {} that we never listed",
                self.name
            )));
        }
        let uid = told.or(request.uid.and_then(Uid::new)).or_else(|| {
            let found = self.own.iter().find(|change| {
                matches!(change, MessageChange::Save { guid: known, .. } if Some(known) == guid.as_ref())
            });
            found.map(MessageChange::uid)
        });
        let uid = uid.ok_or_else(|| SessionError::Peer(format!("asks for no message of {}", self.name)))?;
        let by_uid = request.guid.as_ref().is_none_or(Vec::is_empty);
        let mut mail = items::Mail {
            // By which of the two it was asked for.
            guid: Some(request.guid.unwrap_or_default()),
            uid: if by_uid { Some(uid.get()) } else { None },
            ..items::Mail::default()
        };
        // It may have got another UID since it was listed.
        let guid = guid.or_else(|| guid_of(&self.own, uid));
        let now = self.moved.get(&uid).copied().unwrap_or(uid);
        let found = match self.mailbox.body(now, guid.as_ref()) {
            Ok(None) if now != uid => self.mailbox.body(uid, guid.as_ref()),
            found => found,
        };
        match found {
            Ok(Some(body)) => {
                let time = |time: Option<Timestamp>| time.and_then(|time| u64::try_from(time.0).ok());
                mail.pop3_uidl = Some(body.pop3_uidl.as_deref().unwrap_or_default().into());
                mail.pop3_order = body.pop3_order.filter(|order| *order > 0);
                mail.received_date = time(body.received).or(Some(0));
                mail.saved_date = time(body.saved).or(mail.received_date);
                mail.stream = true;
                self.report.sent += 1;
                progress.sent += 1;
                progress.bytes_sent += body.size.unwrap_or(0);
                out.push_back(Output::Item(mail.into()));
                out.push_back(Output::Body(body));
            }
            // Without a body it counts as expunged meanwhile.
            Ok(None) => out.push_back(Output::Item(mail.into())),
            Err(error) => {
                self.unread = Some((uid, mail));
                return Err(at(format!("{}: UID {uid}", self.name))(error));
            }
        }
        Ok(())
    }
}
