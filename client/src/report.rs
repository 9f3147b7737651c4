//! The report, for people and for programs.

use dsync_session::proto::Counters;
use dsync_session::{MailboxReport, Report};
use indicatif::HumanBytes;
use serde::Serialize;

use crate::jobs::Done;

#[derive(Serialize)]
struct Document<'a> {
    user: &'a str,
    status: u8,
    seconds: f64,
    mailboxes_shown_equal: u64,
    local: Counts,
    remote: Counts,
    mailboxes: Vec<Mailbox<'a>>,
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
}

#[derive(Serialize)]
struct Mailbox<'a> {
    name: &'a str,
    saved: u64,
    sent: u64,
    flags: u64,
    renumbered: u64,
    expunged: u64,
    tree: Option<&'a str>,
}

impl From<Counters> for Counts {
    fn from(counters: Counters) -> Counts {
        let Counters { mailboxes, mailboxes_changed, saved, bytes, flags, renumbered, expunged, disturbed } =
            counters;
        Counts { mailboxes, mailboxes_changed, saved, bytes, flags, renumbered, expunged, disturbed }
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
    let Report { local, remote, mailboxes, problems, notes, shown_equal, .. } = &done.report;
    let mailbox = |m: &'_ MailboxReport| -> (u64, u64, u64, u64, u64) {
        (m.saved, m.sent, m.flags, m.renumbered, m.expunged)
    };
    let mailboxes = mailboxes.iter().map(|m| {
        let (saved, sent, flags, renumbered, expunged) = mailbox(m);
        Mailbox { name: &m.name, saved, sent, flags, renumbered, expunged, tree: m.tree.as_deref() }
    });
    Document {
        user: &done.user,
        status: done.report.status(),
        seconds: done.elapsed.as_secs_f64(),
        mailboxes_shown_equal: *shown_equal,
        local: (*local).into(),
        remote: (*remote).into(),
        mailboxes: mailboxes.collect(),
        problems,
        notes,
    }
}

/// Lines for `-v`.
pub fn lines(done: &Done) -> Vec<String> {
    let report = &done.report;
    let mut lines = Vec::new();
    for mailbox in &report.mailboxes {
        let counts = [
            (mailbox.saved, "received"),
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
    lines.push(format!(
        "{} of {} mailboxes shown equal; {} messages received, {} sent ({}); {:.2} s",
        report.shown_equal,
        ours.mailboxes,
        ours.saved,
        theirs.saved,
        HumanBytes(ours.bytes + theirs.bytes),
        done.elapsed.as_secs_f64()
    ));
    lines
}
