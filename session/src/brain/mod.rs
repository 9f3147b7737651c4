//! The state machine of one end: frames in, frames out.

use std::time::Duration;

use dsync_proto::{Channel, Direction, Message, Options, Role};
use dsync_storage::{Body, Storage};

use crate::{Progress, Report, SessionError};

/// What a session is to do.
#[derive(Clone, Debug)]
pub struct Job {
    pub direction: Direction,
    pub options: Options,
}

/// What can happen to a brain.
pub enum Input<'a> {
    Message(Channel, Message),
    /// The next piece of the body announced last on this channel.
    Body(Channel, &'a [u8]),
    BodyEnd(Channel),
    /// The body announced last on this channel, as a whole: both ends are in this process.
    WholeBody(Channel, Body),
    /// The peer is gone; nothing more will come.
    Closed,
}

/// What a brain wants.
pub enum Output {
    Message(Channel, Message),
    /// To be sent in pieces (or handed over) right behind the `Mail` that came before. A reader that fails midway ends the session.
    Body(Channel, Body),
    /// Some work was done and there is more: call `poll` again when there is time.
    Working,
    /// Nothing to do or say until something comes in.
    Idle,
    /// The session is over, everything was said.
    Done(Box<Report>),
}

/// One end of a session.
pub struct Brain {
    role: Role,
}

impl Brain {
    /// The end that began the session; `job` counts for both.
    pub fn initiator(storage: Box<dyn Storage>, job: Job) -> Brain {
        let _ = (storage, job);
        todo!()
    }

    /// The end that answers; it learns from the handshake what to do. `lock_wait` is used where the job names none.
    pub fn responder(storage: Box<dyn Storage>, lock_wait: Duration) -> Brain {
        let _ = (storage, lock_wait);
        todo!()
    }

    /// Takes one input. Cheap: the work is done by [`poll`](Self::poll).
    pub fn handle(&mut self, input: Input<'_>) -> Result<(), SessionError> {
        let _ = (input, self.role);
        todo!()
    }

    /// Does a bounded piece of work, or gives the next thing to send. Call it until `Idle` while the send buffer has room.
    pub fn poll(&mut self) -> Result<Output, SessionError> {
        todo!()
    }

    /// How far the session has come.
    pub fn progress(&self) -> Progress {
        todo!()
    }

    /// Asks the session to end at the next safe point: what is saved is made durable, the rest waits for the next run.
    pub fn stop(&mut self) {
        todo!()
    }
}
