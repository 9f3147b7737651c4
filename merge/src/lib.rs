//! Decides: what two ends do so that they agree. Pure: lists in, plans out; no I/O, clock or chance.
//!
//! Both ends give the same lists, those of the initiator first, and get the same decisions; each then takes
//! its own half. So they are mirror images by construction, and no tie can be settled twice.
//!
//! The laws, each a property test in `tests`: *mirror-image*, *converges* (both plans applied make equal
//! mailboxes), *idle-still* (a second merge plans nothing), *no-loss*, *source-untouched*. Rules by name:
//! docs/merge.md.
#![forbid(unsafe_code)]

mod attributes;
pub mod dovecot;
mod flags;
mod messages;
mod tree;

use dsync_model::{MailboxStatus, Timestamp, Uid};

pub use attributes::{AttributePlan, attributes, unequal_attributes};
pub use flags::merge as merge_flags;
pub use messages::{Desync, Fetch, MailboxView, MessagePlan, messages, void_base};
pub use tree::{Pair, TreePlan, common_trees, tree};

/// One end of a session. The initiator began it; ties go by this order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum End {
    Initiator,
    Responder,
}

impl End {
    /// The other end.
    #[must_use]
    pub fn other(self) -> End {
        match self {
            End::Initiator => End::Responder,
            End::Responder => End::Initiator,
        }
    }
}

/// Where changes go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// `sync`: to both ends.
    TwoWay,
    /// `sync -1`: into one end, which keeps its own changes; the other is never written.
    OneWay { into: End },
    /// `backup`: into one end, which becomes the same as the other; the other is never written.
    Mirror { into: End },
}

impl Direction {
    /// The end that is not written, if there is one.
    pub fn source(self) -> Option<End> {
        match self {
            Direction::TwoWay => None,
            Direction::OneWay { into } | Direction::Mirror { into } => Some(into.other()),
        }
    }
}

/// One value for each end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Both<T>(pub [T; 2]);

impl<T> std::ops::Index<End> for Both<T> {
    type Output = T;
    fn index(&self, end: End) -> &T {
        &self.0[end as usize]
    }
}

impl<T> std::ops::IndexMut<End> for Both<T> {
    fn index_mut(&mut self, end: End) -> &mut T {
        &mut self.0[end as usize]
    }
}

const ENDS: [End; 2] = [End::Initiator, End::Responder];

/// The end whose change is later; `None` if neither is known to be.
fn later(times: Both<Option<Timestamp>>) -> Option<End> {
    match times.0 {
        [a, b] if a > b => Some(End::Initiator),
        [a, b] if a < b => Some(End::Responder),
        _ => None,
    }
}

/// Rule **unused-yields**: which of two mailboxes keeps its identity because the other one never held mail; of two such, the
/// older. `None`: both were used, or they are equally old.
fn unused_yields(statuses: Both<&MailboxStatus>) -> Option<End> {
    let [a, b] = statuses.0;
    match statuses.0.map(|status| status.uid_next > Uid::MIN || status.messages > 0) {
        [true, false] => Some(End::Initiator),
        [false, true] => Some(End::Responder),
        [true, true] => None,
        // A store that was made just now has the newer UIDVALIDITY.
        [false, false] if a.uid_validity == b.uid_validity => None,
        [false, false] if a.uid_validity < b.uid_validity => Some(End::Initiator),
        [false, false] => Some(End::Responder),
    }
}
