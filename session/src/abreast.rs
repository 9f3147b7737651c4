//! Joins two brains in one process, each on a thread of its own: while one reads mail, the other writes it.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use dsync_proto::{Channel, Message};
use dsync_storage::Body;

use crate::{Brain, Input, Output, Report, SessionError};

/// What may wait for an end before the other one stops to talk. Bodies are open files, so this is also a bound for those.
const WAITING_MAX: usize = 64;
/// Bytes of a body that the end that reads it reads before it hands it over: nearly all mail is smaller. So much memory for each that waits.
const AHEAD_BYTES: u64 = 128 << 10;
/// What an end says before it hands it over and listens.
const TURN: usize = 16;
/// `watch` is called at least this often.
const LOOK: Duration = Duration::from_millis(100);

/// What goes from hand to hand.
enum Parcel {
    Message(Channel, Message),
    Body(Channel, Body),
}

/// What both threads see.
#[derive(Default)]
struct Shared {
    inboxes: [VecDeque<Parcel>; 2],
    /// The end has nothing to do until something comes in.
    waits: [bool; 2],
    over: [bool; 2],
    failed: bool,
    stop: bool,
}

/// Where the two ends meet.
#[derive(Default)]
struct Between {
    /// Whether the end reads no body of which it has the file.
    clones: [bool; 2],
    shared: Mutex<Shared>,
    changed: Condvar,
}

/// What an end finds there.
struct Found {
    inbox: VecDeque<Parcel>,
    /// There is room for more to say.
    room: bool,
    failed: bool,
    stop: bool,
}

/// Runs a session to its end as [`local::run`](crate::local::run) does: `a`, the initiator, on the calling thread. Needs two storages
/// that keep nothing of the session in their thread, as those do that only pretend to write.
pub fn run(
    a: &mut Brain,
    b: &mut Brain,
    watch: &mut dyn FnMut(&Brain) -> bool,
) -> Result<(Report, Report), SessionError> {
    let between = Between { clones: [a.clones(), b.clones()], ..Between::default() };
    let ended = thread::scope(|scope| {
        let other = thread::Builder::new().spawn_scoped(scope, || between.end(1, b, &mut |_| true))?;
        let first = between.end(0, a, watch);
        Ok::<_, std::io::Error>((first, other.join()))
    });
    let (first, second) = match ended {
        Ok((first, Ok(second))) => (first, second),
        Ok((_, Err(panic))) => std::panic::resume_unwind(panic),
        Err(error) => {
            tracing::debug!("no second thread: {error}");
            return crate::local::run(a, b, watch);
        }
    };
    match (first?, second?) {
        (Some(first), Some(second)) => Ok((first, second)),
        _ => Err(SessionError::Stopped),
    }
}

impl Between {
    /// Runs one end. `None`: the other one failed.
    fn end(
        &self,
        me: usize,
        brain: &mut Brain,
        watch: &mut dyn FnMut(&Brain) -> bool,
    ) -> Result<Option<Report>, SessionError> {
        let _leaving = Leaving(self, me);
        let mut outgoing = Vec::new();
        let (mut idle, mut stopping) = (false, false);
        loop {
            let found = self.meet(me, &mut outgoing, idle)?;
            if found.stop && !stopping {
                stopping = true;
                brain.stop();
            } else if found.failed && (idle || !stopping) {
                return Ok(None);
            }
            for parcel in found.inbox {
                brain.handle(match parcel {
                    Parcel::Message(channel, message) => Input::Message(channel, message),
                    Parcel::Body(channel, body) => Input::WholeBody(channel, body),
                })?;
            }
            idle = false;
            while found.room && !idle && outgoing.len() < TURN {
                match brain.poll()? {
                    Output::Message(channel, message) => outgoing.push(Parcel::Message(channel, message)),
                    Output::Body(channel, mut body) => {
                        if body.path.is_none() || !self.clones[1 - me] {
                            body.read_ahead(AHEAD_BYTES);
                        }
                        outgoing.push(Parcel::Body(channel, body));
                    }
                    Output::Working => break,
                    Output::Idle => idle = true,
                    Output::Done(report) => {
                        self.lock().inboxes[1 - me].extend(outgoing);
                        self.lock().over[me] = true;
                        return Ok(Some(*report));
                    }
                }
            }
            if !watch(brain) {
                let mut shared = self.lock();
                shared.stop = true;
                shared.waits = [false; 2];
                self.changed.notify_all();
            }
        }
    }

    /// Hands over, and takes what is there. Waits if there is nothing to do: if the end is idle, or the other has not listened yet.
    fn meet(&self, me: usize, outgoing: &mut Vec<Parcel>, idle: bool) -> Result<Found, SessionError> {
        let other = 1 - me;
        let mut shared = self.lock();
        if !outgoing.is_empty() {
            shared.inboxes[other].extend(outgoing.drain(..));
            self.changed.notify_all();
        }
        let is_full = |shared: &Shared| shared.inboxes[other].len() >= WAITING_MAX;
        if shared.inboxes[me].is_empty() && !shared.failed && (idle || is_full(&shared)) {
            let nobody_else = shared.waits[other] || shared.over[other];
            if idle && nobody_else && shared.inboxes[other].is_empty() {
                return Err(SessionError::Peer("waits for us while we wait for it".into()));
            }
            shared.waits[me] = idle;
            shared = self.changed.wait_timeout(shared, LOOK).unwrap_or_else(PoisonError::into_inner).0;
            shared.waits[me] = false;
        }
        let inbox = std::mem::take(&mut shared.inboxes[me]);
        if inbox.len() >= WAITING_MAX {
            self.changed.notify_all();
        }
        Ok(Found { inbox, room: !is_full(&shared), failed: shared.failed, stop: shared.stop })
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells the other end that this one is no longer there, however it left.
struct Leaving<'a>(&'a Between, usize);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        let Leaving(between, me) = self;
        let mut shared = between.lock();
        shared.failed |= !shared.over[*me];
        between.changed.notify_all();
    }
}
