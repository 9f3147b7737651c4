//! dbox, Dovecot's own formats: how sdbox and mdbox lay mail out in files (storage formats reference, 8 and 11).
//!
//! Which file holds which message, and all that a client may change, stands in the index: not here.

pub mod attachment;
mod bodies;
pub mod file;
mod known_guids;
mod mailbox;
mod making;
mod map;
mod mdbox;
pub mod metadata;
mod output;
mod purge;
mod rebuild;
mod saving;
mod sdbox;
mod shared;
mod storage;
mod store;

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::compressed::{self, Opened};
use crate::{Result, StorageError, disk};

pub use attachment::{Attachment, AttachmentDir};
pub use file::{DboxFile, FileHeader, StoredMail};
pub use mdbox::MapUid;
pub use metadata::Metadata;
pub use storage::{Dbox, Mdbox, Rotation, Sdbox};

/// Begins the names of files that are still being written.
const TEMPORARY: &str = ".temp.dsync.";

/// Removes what our own processes left in a directory when they died.
fn sweep(directory: &Path) -> Result<()> {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name().into_string().unwrap_or_default();
        let pid = name.strip_prefix(TEMPORARY).and_then(|rest| rest.strip_prefix('P')?.split_once('Q'));
        if pid.is_some_and(|(pid, _)| !crate::lock::process_exists(pid)) {
            disk::remove(&entry.path())?;
        }
    }
    Ok(())
}

/// A name for a file that is still being written.
fn temporary_name() -> String {
    format!("{TEMPORARY}P{}Q{}", std::process::id(), serial())
}

/// A number that this process gives once, for names of temporary files.
fn serial() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Fails for a message that [`open_mail`] could not give to anybody: encrypted, or with attachments that are not there.
fn check_mail(file: &DboxFile, mail: &StoredMail, attachments: Option<&AttachmentDir>) -> Result<()> {
    compressed::check(&file.start(mail, compressed::MAGIC_BYTES)?, file.path())?;
    attachments_resolve(file, mail, attachments)
}

fn attachments_resolve(
    file: &DboxFile,
    mail: &StoredMail,
    attachments: Option<&AttachmentDir>,
) -> Result<()> {
    let references = &mail.metadata.attachments;
    match attachments {
        _ if references.is_empty() => Ok(()),
        Some(files) => attachment::attachments_resolve(references, files),
        None => Err(StorageError::Damaged {
            path: file.path().to_owned(),
            offset: mail.offset,
            what: "its attachments lie outside, and no directory of attachments is set (mail_attachment_dir)"
                .into(),
        }),
    }
}

/// Opens a message as it was when it was saved: decompressed, with its attachments back in their places.
///
/// Says at once if an attachment is missing, or if `attachments` is `None` where some are needed.
pub fn open_mail(file: &DboxFile, mail: &StoredMail, attachments: Option<&AttachmentDir>) -> Result<Opened> {
    let references = &mail.metadata.attachments;
    let outside = references.iter().fold(0, |sum: u64, attachment| sum.saturating_add(attachment.size));
    // Without `Z`, nothing tells what compressed data are to become.
    let whole_size = mail.metadata.physical_size;
    let size_max = whole_size.map_or(compressed::SIZE_MAX, |size| size.saturating_sub(outside));
    let Opened { reader, compression } = compressed::open(file.body(mail), file.path(), size_max)?;
    let damaged = |what: &str| StorageError::Damaged {
        path: file.path().to_owned(),
        offset: mail.offset,
        what: what.into(),
    };
    attachments_resolve(file, mail, attachments)?;
    let nowhere = AttachmentDir::mdbox("");
    let files = attachments.unwrap_or(&nowhere);
    match whole_size {
        _ if !references.is_empty() => {}
        Some(_) if compression.is_some() => {}
        _ => return Ok(Opened { reader, compression }),
    }
    let spliced = attachment::Spliced::new(reader, mail.physical_size(), references, files);
    Ok(Opened { reader: Box::new(spliced.map_err(damaged)?), compression })
}
