//! The report, for people and for programs.

use dsync_session::proto::Counters;
use dsync_session::{Compared, MailboxReport};
use indicatif::HumanBytes;
use serde::Serialize;

use crate::jobs::Done;

#[derive(Serialize)]
struct Document<'a> {
    user: &'a str,
    status: u8,
    seconds: f64,
    mailboxes_shown_equal: u64,
    /// With a Dovecot, which cannot show that mailboxes are equal: how many were compared by their lists and merged, and how many by
    /// their counters alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    mailboxes_merged: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mailboxes_with_equal_counters: Option<u64>,
    local: Counts,
    remote: Counts,
    dry_run: bool,
    mailboxes: Vec<Mailbox<'a>>,
    /// Of a dry run: what would change at the other end.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    remote_mailboxes: Vec<Mailbox<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<String>,
    /// Of a comparison: what differs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    differences: Vec<&'a str>,
    problems: &'a [String],
    notes: &'a [String],
}

#[derive(Serialize)]
struct Counts {
    mailboxes: u64,
    mailboxes_changed: u64,
    saved: u64,
    bytes: u64,
    flags: u64,
    renumbered: u64,
    expunged: u64,
    disturbed: u64,
    freed: Option<u64>,
}

#[derive(Serialize)]
struct Mailbox<'a> {
    name: &'a str,
    saved: u64,
    copied: u64,
    sent: u64,
    flags: u64,
    renumbered: u64,
    expunged: u64,
    tree: Option<&'a str>,
}

impl From<Counters> for Counts {
    fn from(counters: Counters) -> Counts {
        let Counters {
            mailboxes,
            mailboxes_changed,
            saved,
            bytes,
            flags,
            renumbered,
            expunged,
            disturbed,
            freed,
        } = counters;
        Counts { mailboxes, mailboxes_changed, saved, bytes, flags, renumbered, expunged, disturbed, freed }
    }
}

/// One JSON document, for people to read too.
pub fn json(done: &Done) -> String {
    written(serde_json::to_string_pretty(&document(done)))
}

/// The same in one line: one of many users.
pub fn json_line(done: &Done) -> String {
    written(serde_json::to_string(&document(done)))
}

/// The line of a user whose session came to nothing.
pub fn json_failed(user: &str, status: u8, error: &str) -> String {
    #[derive(Serialize)]
    struct Failed<'a> {
        user: &'a str,
        status: u8,
        error: &'a str,
    }
    written(serde_json::to_string(&Failed { user, status, error }))
}

fn written(text: serde_json::Result<String>) -> String {
    text.unwrap_or_else(|error| format!("{{\"error\": \"{error}\"}}"))
}

fn document(done: &Done) -> Document<'_> {
    let report = &done.report;
    Document {
        user: &done.user,
        status: report.status(),
        seconds: done.elapsed.as_secs_f64(),
        mailboxes_shown_equal: report.shown_equal,
        mailboxes_merged: report.compared.map(|compared| compared.merged),
        mailboxes_with_equal_counters: report.compared.map(|compared| compared.equal),
        local: report.local.into(),
        remote: report.remote.into(),
        dry_run: done.dry_run,
        mailboxes: report.mailboxes.iter().map(Into::into).collect(),
        remote_mailboxes: report.remote_mailboxes.iter().map(Into::into).collect(),
        state: report.state.as_ref().map(ToString::to_string),
        differences: report.differences.iter().map(String::as_str).collect(),
        problems: &report.problems,
        notes: &report.notes,
    }
}

impl<'a> From<&'a MailboxReport> for Mailbox<'a> {
    fn from(report: &'a MailboxReport) -> Mailbox<'a> {
        let MailboxReport { name, saved, copied, sent, flags, renumbered, expunged, tree } = report;
        Mailbox {
            name,
            saved: *saved,
            copied: *copied,
            sent: *sent,
            flags: *flags,
            renumbered: *renumbered,
            expunged: *expunged,
            tree: tree.as_deref(),
        }
    }
}

/// What a dry run found, a line for each mailbox of each end that would change.
pub fn plan(done: &Done) -> Vec<String> {
    let report = &done.report;
    let ends = [("here", &report.mailboxes), ("there", &report.remote_mailboxes)];
    let mut lines = Vec::new();
    for (end, mailboxes) in ends {
        for mailbox in mailboxes {
            let counts = [
                (mailbox.saved, "saved"),
                (mailbox.flags, "flagged"),
                (mailbox.renumbered, "renumbered"),
                (mailbox.expunged, "expunged"),
            ];
            let told =
                counts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}"));
            let told: Vec<String> = mailbox.tree.iter().cloned().chain(told).collect();
            if !told.is_empty() {
                lines.push(format!("{end}: {}: {}", mailbox.name, told.join(", ")));
            }
        }
    }
    if lines.is_empty() {
        lines.push("nothing would change".to_owned());
    }
    lines
}

/// Lines for `-v`.
pub fn lines(done: &Done) -> Vec<String> {
    let report = &done.report;
    let mut lines = Vec::new();
    for mailbox in &report.mailboxes {
        let counts = [
            (mailbox.saved - mailbox.copied.min(mailbox.saved), "received"),
            (mailbox.copied, "copied"),
            (mailbox.sent, "sent"),
            (mailbox.flags, "flag changes"),
            (mailbox.renumbered, "renumbered"),
            (mailbox.expunged, "expunged"),
        ];
        let told =
            counts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}"));
        let told: Vec<String> = mailbox.tree.iter().cloned().chain(told).collect();
        lines.push(format!("{}: {}", mailbox.name, told.join(", ")));
    }
    lines.extend(report.notes.iter().cloned());
    let (ours, theirs) = (&report.local, &report.remote);
    let shown = match report.compared {
        None => format!("{} of {} mailboxes shown equal", report.shown_equal, ours.mailboxes),
        // Dovecot has no digests.
        Some(Compared { equal, merged }) => format!(
            "{merged} of {} mailboxes compared message by message and merged, {equal} by their counters alone; none shown equal, as with a Dovecot",
            ours.mailboxes
        ),
    };
    lines.push(format!(
        "{shown}; {} messages received, {} sent ({}); {:.2} s",
        ours.saved,
        theirs.saved,
        HumanBytes(ours.bytes + theirs.bytes),
        done.elapsed.as_secs_f64()
    ));
    lines
}
