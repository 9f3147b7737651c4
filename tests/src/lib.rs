//! The harness of the suites: a simulated world of two stores, and the oracles that must hold in it.
#![forbid(unsafe_code)]

pub mod databases;
pub mod dovecot;
pub mod formats;
pub mod imap;
pub mod imap_session;
pub mod installation;
pub mod interop;
pub mod maildirs;
pub mod mutate;
pub mod oracle;
pub mod peers;
pub mod programs;
pub mod sample;
pub mod scenario;
pub mod sshd;
pub mod users;
pub mod world;
