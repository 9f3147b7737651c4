//! Configuration in Dovecot's own syntax: reading the files, and asking them for settings.

mod error;
mod include;
mod line;
mod location;
mod mailboxes;
mod parse;
mod secret;
mod settings;
mod tree;
mod units;

#[cfg(test)]
mod tests;

pub use error::{ConfError, Place};
pub(crate) use parse::read_limited;
pub use secret::Secret;
pub use settings::{Fsync, Settings, Ssl, known_settings};
pub(crate) use tree::Section;
