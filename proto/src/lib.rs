//! What travels between two ends: messages, frames, and the codecs that make bytes of them. No I/O.
#![forbid(unsafe_code)]

mod batches;
pub mod dovecot;
mod error;
mod frame;
mod message;
pub mod native;
pub mod preface;

pub use batches::batches;
pub use error::ProtoError;
pub use frame::{Channel, Codec, Frame, SESSION};
pub use message::{
    BaseRef, Blame, Counters, Direction, Failure, Handshake, List, Listed, MailHeader, MailRequest, Message,
    Options, Planned, Problem, Purpose, Role, Settled, Terminus, Undone, status_told,
};

/// Versions of the native protocol that this build speaks, lowest and highest.
pub const VERSIONS: (u16, u16) = (2, 2);
/// Largest frame payload: bincode message, or piece of a body.
pub const FRAME_BYTES_MAX: usize = 1 << 20;
/// Memory that decoding one message may take; bincode counts elements by their size in memory.
pub const MESSAGE_MEMORY_MAX: usize = 16 << 20;
/// Piece of a body that is sent at once.
pub const BODY_PIECE_BYTES: usize = 64 << 10;
/// Entries that one `Nodes`, `Changes` or `Requests` message carries at most. What may be large in itself goes by [`batches`].
pub const BATCH_MAX: usize = 500;
/// Longest text in a `Skip` or `Failure`, in bytes.
pub const TEXT_BYTES_MAX: usize = 2000;
