//! mbox: all messages of a mailbox in one file.
//!
//! Here is what concerns one file: reading it, its messages as clients see them, changing it, its locks. The
//! index, and the mailbox as a [`Storage`](crate::Storage) has it, are built on top.

pub mod arrival;
pub mod from_line;
pub mod headers;
pub mod locks;
pub mod message;
mod output;
mod replace;
pub mod rewrite;
pub mod scan;
mod window;

pub use arrival::Arrival;
pub use locks::{Access, MboxLock, Method, Methods};
pub use message::VirtualMessage;
pub use rewrite::{Change, Edits, Writing, Written};
pub use scan::{Entry, Known, MboxFile};

#[cfg(test)]
mod fixture_tests;
#[cfg(test)]
mod write_tests;
