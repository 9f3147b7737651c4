//! dbox, Dovecot's own formats: how sdbox and mdbox lay mail out in files (storage formats reference, 8 and 11).
//!
//! Which file holds which message, and all that a client may change, stands in the index: not here.

pub mod attachment;
pub mod file;
pub mod metadata;

pub use attachment::Attachment;
pub use file::{DboxFile, FileHeader, StoredMail};
pub use metadata::Metadata;
