//! Configuration in Dovecot's own syntax: reading the files, and asking them for settings.

mod check;
mod error;
mod include;
mod line;
mod listeners;
mod location;
mod mailboxes;
mod mbox;
mod namespaces;
mod parse;
mod print;
mod secret;
mod settings;
mod tree;
mod units;

#[cfg(test)]
mod tests;

pub use error::{ConfError, Place};
pub use listeners::UnixSocket;
pub use mbox::MboxLocks;
pub use namespaces::{Mail, Namespace};
#[cfg(any(feature = "sql", feature = "ldap"))]
pub(crate) use parse::parse as parse_text;
pub(crate) use parse::read_limited;
pub use print::Print;
pub use secret::Secret;
pub use settings::{Fsync, Settings, Ssl, known_settings};
pub(crate) use tree::Section;
#[cfg(any(feature = "sql", feature = "ldap"))]
pub(crate) use tree::parse_bool;
