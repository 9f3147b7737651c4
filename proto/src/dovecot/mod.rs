//! Dovecot's dsync protocol, version 3.5: items, bodies, and the doveadm protocol in front of them. No I/O.
//!
//! [`codec`] makes events of bytes and bytes of items; [`items`] are the lines; [`text`] is the escaping; [`body`] the
//! dot-stuffing; [`doveadm`] what goes before on TCP. Which item may come when is the brain's business, not told here.

pub mod body;
pub mod codec;
pub mod doveadm;
pub mod items;
pub mod text;

/// Dsync's own protocol: the minor version that this build announces.
pub const MINOR: u32 = 5;
/// Longest line of an item: attribute values, lists of deleted mailboxes and keywords have room.
pub const LINE_BYTES_MAX: usize = 4 << 20;
/// Most columns of a table that a peer sends.
pub const COLUMNS_MAX: usize = 100;
/// Most elements of a list within a value.
pub const ELEMENTS_MAX: usize = 100_000;
