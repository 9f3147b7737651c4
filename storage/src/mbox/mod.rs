//! mbox: all messages of a mailbox in one file.
//!
//! One file is read, changed and locked in modules of their own; `indexed` adds Dovecot's index, and the account of such
//! mailboxes is [`Mbox`].

pub mod arrival;
pub mod from_line;
pub mod headers;
mod indexed;
mod journal;
pub mod locks;
mod mailbox;
pub mod message;
mod output;
pub mod render;
mod replace;
pub mod rewrite;
pub mod scan;
mod storage;
mod window;

pub use arrival::Arrival;
pub use locks::{Access, Locking, MboxLock, Method, Methods};
pub use message::VirtualMessage;
pub use rewrite::{Change, Edits, Writing, Written};
pub use scan::{Entry, Known, MboxFile};
pub use storage::Mbox;

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod fixture_tests;
#[cfg(test)]
mod storage_tests;
#[cfg(test)]
mod write_laws;
#[cfg(test)]
mod write_tests;
