//! mbox: all messages of a mailbox in one file.
//!
//! Here is what concerns one file: reading it, its messages as clients see them, changing it, its locks. The
//! index, and the mailbox as a [`Storage`](crate::Storage) has it, are built on top.

pub mod from_line;
pub mod headers;
pub mod message;
pub mod scan;
mod window;

pub use message::VirtualMessage;
pub use scan::{Entry, Known, MboxFile};

#[cfg(test)]
mod fixture_tests;
