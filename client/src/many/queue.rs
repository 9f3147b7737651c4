//! The users that are still to be done: new ones in order, failed ones again when their time has come.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

/// The wait before a second try; each further one is four times as long.
const WAIT: Duration = Duration::from_millis(500);
/// How soon a thread that waits notices that it is to stop.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// A user, and how often they were tried before.
pub struct Task {
    pub name: String,
    pub attempt: u32,
}

/// What several threads take their users from.
pub struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    stop: watch::Receiver<bool>,
}

struct State {
    fresh: VecDeque<String>,
    /// By the time they are due, and a number that makes it unique.
    later: BTreeMap<(Instant, u64), Task>,
    number: u64,
    running: usize,
}

impl Queue {
    pub fn new(names: Vec<String>, stop: watch::Receiver<bool>) -> Queue {
        let state = State { fresh: names.into(), later: BTreeMap::new(), number: 0, running: 0 };
        Queue { state: Mutex::new(state), changed: Condvar::new(), stop }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next user; waits for one that may fail and come back. `None`: all are settled, or it is time to stop.
    pub fn take(&self) -> Option<Task> {
        let mut state = self.lock();
        loop {
            if *self.stop.borrow() {
                return None;
            }
            let now = Instant::now();
            let due = state.later.first_entry().filter(|entry| entry.key().0 <= now);
            let task = match due {
                Some(due) => Some(due.remove()),
                None => state.fresh.pop_front().map(|name| Task { name, attempt: 0 }),
            };
            if let Some(task) = task {
                state.running += 1;
                return Some(task);
            }
            if state.later.is_empty() && state.running == 0 {
                return None;
            }
            let next = state.later.keys().next().map_or(LOOK_EVERY, |(due, _)| due.duration_since(now));
            let waited = self.changed.wait_timeout(state, next.min(LOOK_EVERY));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// A user is to be tried once more, a little later.
    pub fn again(&self, task: Task) {
        let mut state = self.lock();
        let due = Instant::now() + WAIT * 4u32.pow(task.attempt);
        state.number += 1;
        let key = (due, state.number);
        state.later.insert(key, Task { attempt: task.attempt + 1, ..task });
        state.running -= 1;
        self.changed.notify_all();
    }

    /// A user needs no further try.
    pub fn settled(&self) {
        let mut state = self.lock();
        state.running -= 1;
        // Only the last one makes a difference to those who wait.
        if state.running == 0 {
            self.changed.notify_all();
        }
    }

    /// Users who were not done, since it was time to stop.
    pub fn left(&self) -> usize {
        let state = self.lock();
        state.fresh.len() + state.later.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_failed_comes_again_behind_the_others() {
        let (_sender, stop) = watch::channel(false);
        let queue = Queue::new(vec!["a".into(), "b".into()], stop);
        let first = queue.take().unwrap();
        queue.again(first);
        let second = queue.take().unwrap();
        assert_eq!((second.name.as_str(), second.attempt), ("b", 0));
        queue.settled();
        let again = queue.take().unwrap();
        assert_eq!((again.name.as_str(), again.attempt), ("a", 1));
        queue.settled();
        assert!(queue.take().is_none());
        assert_eq!(queue.left(), 0);
    }

    #[test]
    fn a_stop_leaves_the_rest() {
        let (sender, stop) = watch::channel(false);
        let queue = Queue::new(vec!["a".into(), "b".into(), "c".into()], stop);
        let first = queue.take().unwrap();
        queue.again(first);
        sender.send_replace(true);
        assert!(queue.take().is_none());
        assert_eq!(queue.left(), 3);
    }
}
