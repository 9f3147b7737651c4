//! One user's session: in this process, or, where root works for a user with a uid, in a process of that user's own.
//!
//! A worker is this program, started once more: it gives up root before it does anything else and then speaks with its parent over
//! a socket. It opens the mail and runs the session's brain. Whatever needs root's files or a secret stays with the parent: configuration, user
//! databases, passwords, TLS; the parent passes on the plain bytes of the session and nothing else.
//!
//! [`Pool::open`] gives a [`Desk`], at which a session runs the same wherever the work is done. `inside` is the worker's own half,
//! `wire` what the two say, [`Place`] where the mail is.
#![forbid(unsafe_code)]

mod desk;
mod inside;
mod place;
mod process;
mod task;
mod wire;

pub use desk::Desk;
pub use inside::enter;
pub use place::Place;
pub use process::Pool;
pub use task::{Freed, Outcome, Protocol, Role, Talk, Task};
