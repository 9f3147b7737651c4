//! What a session did, for people and programs.

use bincode::{Decode, Encode};
use dsync_model::SyncState;
use dsync_proto::{Counters, Planned};

/// The outcome of a session that came to its end.
#[derive(Clone, Debug, Default, Encode, Decode)]
pub struct Report {
    /// Work done at this end, and at the other.
    pub local: Counters,
    pub remote: Counters,
    /// Mailboxes that changed at either end, in name order.
    pub mailboxes: Vec<MailboxReport>,
    /// Of a dry run: what would change at the other end, in name order.
    pub remote_mailboxes: Vec<MailboxReport>,
    /// One line each: what could not be done, and why.
    pub problems: Vec<String>,
    /// One line each: what was done that an administrator may want to know (a foreign message in a mirror, say).
    pub notes: Vec<String>,
    /// Of a comparison: one line for each thing that differs.
    pub differences: Vec<String>,
    /// Worst exit status among the problems; 0 without.
    pub problem_status: u8,
    /// Mailboxes whose digests were compared and found equal.
    pub shown_equal: u64,
    /// With a Dovecot, which has no digests: what was compared in their place.
    pub compared: Option<Compared>,
    /// The state to begin from next time, if one was asked for; `None`: the given one was ahead of the mail, begin anew.
    pub state: Option<SyncState>,
}

/// What was compared with a Dovecot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Compared {
    /// Mailboxes of which only the counters were compared, and were equal.
    pub equal: u64,
    /// Mailboxes of which the lists of messages were compared and merged.
    pub merged: u64,
}

/// What happened to one mailbox, at this end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct MailboxReport {
    pub name: String,
    pub saved: u64,
    /// Of the saved ones those that were here already, in another mailbox.
    pub copied: u64,
    pub sent: u64,
    pub flags: u64,
    pub renumbered: u64,
    pub expunged: u64,
    /// "created", "renamed from X", "deleted" and the like.
    pub tree: Option<String>,
}

impl From<&MailboxReport> for Planned {
    fn from(report: &MailboxReport) -> Planned {
        let MailboxReport { name, saved, flags, renumbered, expunged, tree, .. } = report.clone();
        Planned { name, tree, saved, flags, renumbered, expunged }
    }
}

impl From<Planned> for MailboxReport {
    fn from(planned: Planned) -> MailboxReport {
        let Planned { name, tree, saved, flags, renumbered, expunged } = planned;
        MailboxReport { name, sent: 0, copied: 0, saved, flags, renumbered, expunged, tree }
    }
}

impl Report {
    /// 0: both ends are equal. 2: run again. Else what the worst problem says; 75 wins over the others.
    pub fn status(&self) -> u8 {
        let differ = self.differences.len() as u64;
        match (self.problem_status, self.local.disturbed + self.remote.disturbed + differ) {
            (0, 0) => 0,
            (0, _) => 2,
            (status, _) => status,
        }
    }
}

/// How far a session has come. All counts are of this end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Progress {
    /// Messages to be saved here that are known so far, and those that have come.
    pub wanted: u64,
    pub received: u64,
    pub bytes_received: u64,
    /// Messages that the peer asked of us so far, and those that have gone.
    pub asked: u64,
    pub sent: u64,
    pub bytes_sent: u64,
    /// Mailboxes to be looked into, and those that are settled.
    pub mailboxes: u64,
    pub settled: u64,
}
