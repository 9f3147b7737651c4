//! Why a session ended early: four blames kept apart.

use dsync_proto::{Blame, Failure, ProtoError, TEXT_BYTES_MAX, status_told};
use dsync_storage::StorageError;

/// An error that ends a session. Nothing is lost by it: the next run goes on from what is on the disks.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The peer broke the protocol, or told us why it stops.
    #[error("the other end {0}")]
    Peer(String),
    #[error("cannot understand the other end")]
    Proto(#[from] ProtoError),
    /// The peer stopped; its text is for people.
    #[error("{}: {}", if .0.blame == Blame::Stopped { "the other end was stopped" } else { "the other end reports" }, .0.text)]
    Remote(Failure),
    /// Our storage failed. `context` names mailbox and message.
    #[error("{context}")]
    Storage { context: String, source: StorageError },
    /// The settings do not allow it (guard, same store).
    #[error("{text}")]
    Refused { status: u8, text: String },
    /// The connection failed; `status` says how (75, or 76 and 77 before the brains talk).
    #[error("{text}")]
    Link { status: u8, text: String },
    /// We were told to stop.
    #[error("stopped at a safe point; run again to go on")]
    Stopped,
}

impl SessionError {
    /// The exit status (architecture 3b).
    pub fn status(&self) -> u8 {
        match self {
            SessionError::Peer(_) | SessionError::Proto(_) => 76,
            SessionError::Remote(failure) => status_told(failure.status),
            SessionError::Storage { source, .. } => source.status(),
            SessionError::Refused { status, .. } | SessionError::Link { status, .. } => *status,
            SessionError::Stopped => 75,
        }
    }

    /// What to tell the peer before we go.
    pub fn failure(&self) -> Failure {
        let blame = match self {
            SessionError::Peer(_) | SessionError::Proto(_) => Blame::Peer,
            SessionError::Remote(failure) => failure.blame,
            SessionError::Storage { .. } => Blame::Storage,
            SessionError::Refused { .. } => Blame::Settings,
            SessionError::Link { .. } => Blame::Link,
            SessionError::Stopped => Blame::Stopped,
        };
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
        Failure { blame, status: self.status(), text }
    }
}

/// The error and its causes in one line. Some errors tell their cause themselves: it is said once.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.ends_with(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever another end says, it neither makes a failure a success nor a status of its own.
    #[test]
    fn a_status_from_the_other_end_is_one_of_sysexits() {
        for status in 0..=u8::MAX {
            let failure = Failure { blame: Blame::Storage, status, text: String::new() };
            let expected = if (64..=78).contains(&status) { status } else { 75 };
            assert_eq!(SessionError::Remote(failure).status(), expected);
        }
    }
}
