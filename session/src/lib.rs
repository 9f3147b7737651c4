//! One synchronisation: the brain, and what moves its frames.
//!
//! A [`Brain`] takes frames and gives frames; [`local::run`] and [`abreast::run`] join two in one process, `link::run` (feature
//! `net`) joins one to a byte stream. The brain opens no socket and reads no clock.
#![forbid(unsafe_code)]

pub mod abreast;
mod brain;
mod commits;
#[cfg(feature = "net")]
pub mod dial;
pub mod dovecot;
mod error;
#[cfg(feature = "net")]
pub mod greet;
#[cfg(all(test, feature = "net"))]
mod holding;
#[cfg(feature = "net")]
pub mod link;
mod listing;
pub mod local;
pub mod rawlog;
mod report;
#[cfg(feature = "net")]
mod wire;

pub use brain::{Brain, Input, Job, Output};
pub use dsync_model as model;
pub use dsync_proto as proto;
pub use dsync_storage as storage;
pub use error::{SessionError, chain};
pub use report::{Compared, MailboxReport, Progress, Report};
