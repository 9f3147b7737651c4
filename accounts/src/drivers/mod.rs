//! User databases that are asked over a connection: SQL, LDAP, and Dovecot's own auth service.
//!
//! Files are read in [`passwd_file`](crate::passwd_file). Each driver gives plain `(field, value)` pairs; which field means what is
//! settled in [`user`](crate::user) and [`passdb`](crate::passdb).

#[cfg(any(feature = "sql", feature = "ldap"))]
mod args_file;
pub(crate) mod auth_socket;
#[cfg(any(feature = "sql", feature = "ldap"))]
mod background;
#[cfg(feature = "ldap")]
pub(crate) mod ldap;
#[cfg(feature = "sql")]
pub(crate) mod sql;

#[cfg(any(feature = "sql", feature = "ldap"))]
use args_file::Source;

/// Fields and their values, as a database gave them.
pub(crate) type Fields = Vec<(String, String)>;
