//! What the peer says: of the session, and before its time.

use dsync_merge::End;
use dsync_proto::{List, Message, Problem, status_told};

use super::greeting::NODES_MAX;
use super::{Brain, PROBLEMS_MAX, Stage};
use crate::SessionError;

impl Brain {
    pub(super) fn session_message(&mut self, message: Message) -> Result<(), SessionError> {
        let peer = self.end.other() as usize;
        match message {
            Message::Handshake(handshake) if self.peer.is_none() => self.meet(handshake),
            Message::State(records) => self.take_state(records),
            Message::Bases(bases) if self.bases[peer].is_none() => {
                self.bases[peer] = Some(bases);
                Ok(())
            }
            Message::Nodes(nodes) if !self.peer_nodes_done => self.take_nodes(nodes),
            Message::Unlisted(list) if !self.peer_nodes_done => self.take_unlisted(list),
            Message::Log(piece) if !self.peer_nodes_done => self.take_log(piece),
            Message::Names(rules) if !self.peer_nodes_done && rules.are_sane() => {
                self.rules[peer] = rules;
                Ok(())
            }
            Message::Attributes(batch) if !self.peer_nodes_done => self.take_attributes(batch),
            Message::AttributeTimes(batch) if self.stage <= Stage::Planned => {
                self.take_attribute_times(batch)
            }
            Message::End(List::AttributeTimes) if self.stage <= Stage::Planned => {
                self.end_attribute_times();
                Ok(())
            }
            Message::End(List::Nodes) if !self.peer_nodes_done => {
                self.peer_nodes_done = true;
                Ok(())
            }
            Message::Deleting if self.round == 0 && self.saves_ended[peer] == 0 => {
                self.deletes[peer] = true;
                Ok(())
            }
            Message::End(List::Deletions) => {
                self.deletes[peer] = false;
                Ok(())
            }
            Message::End(List::Saves) => {
                self.saves_ended[peer] = self.saves_ended[peer].saturating_add(1);
                Ok(())
            }
            Message::Committed(base) => {
                self.committed[peer] = Some(base);
                Ok(())
            }
            Message::BaseWritten(generation) => {
                self.written[peer] = Some(generation);
                Ok(())
            }
            Message::Listing(name, listed) if self.end == End::Initiator => self.take_listing(name, listed),
            Message::End(List::Listing) if self.end == End::Initiator => {
                self.end_listing();
                Ok(())
            }
            Message::Planned { mailboxes, notes } if self.end == End::Initiator => {
                self.report.remote_mailboxes.extend(mailboxes.into_iter().map(Into::into));
                self.report.notes.extend(notes.into_iter().map(|note| format!("the other end: {note}")));
                Ok(())
            }
            Message::Finish(counters) => {
                self.peer_finish = Some(counters);
                Ok(())
            }
            Message::Problem(Problem { status, text }) => {
                if self.report.problems.len() < PROBLEMS_MAX {
                    self.problem_there(&text, status);
                } else {
                    self.worth(status_told(status));
                }
                Ok(())
            }
            Message::Undone(undone) if self.undone.len() < NODES_MAX => {
                self.undone.push(undone);
                Ok(())
            }
            Message::Failure(failure) => Err(SessionError::Remote(failure)),
            _ => Err(SessionError::Peer("sends a message that does not belong here".into())),
        }
    }

    /// The peer may be ahead of us: with its trees merged, or already in the next round.
    pub(super) fn is_early(&self, message: &Message) -> bool {
        let ahead = matches!(message, Message::Mailbox { round, .. } if *round > self.round);
        self.stage < Stage::Mailboxes || ahead || !self.early.is_empty()
    }

    /// Takes what came before its time.
    pub(super) fn catch_up(&mut self) -> Result<(), SessionError> {
        for (channel, message) in std::mem::take(&mut self.early) {
            self.channel_message(channel, message)?;
        }
        Ok(())
    }
}
