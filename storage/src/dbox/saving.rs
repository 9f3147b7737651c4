//! Writes one message as it comes: header, body with LF line ends, metadata.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use dsync_model::{NewMessage, Timestamp};

use super::Metadata;
use super::file::{MESSAGE_HEADER_BYTES, message_header_bytes};
use super::output::Output;
use crate::Result;

/// A message on its way into a file of its own, or to the end of one that holds others.
pub(super) struct Saving {
    message: NewMessage,
    output: Output,
    /// Where the message's header stands in the file.
    offset: u64,
    body_bytes: u64,
    line_ends: u64,
    /// The last piece ended with CR: whether a line feed follows is not known yet.
    held_cr: bool,
}

/// A message that was written.
#[derive(Debug)]
pub(super) struct Saved {
    pub message: NewMessage,
    pub offset: u64,
    /// Bytes from its header to the end of its metadata.
    pub size: u64,
    pub body_bytes: u64,
}

impl Saving {
    /// Begins where the output ends.
    pub fn new(message: NewMessage, mut output: Output) -> Saving {
        let offset = output.end();
        output.put(&message_header_bytes(0));
        Saving { message, output, offset, body_bytes: 0, line_ends: 0, held_cr: false }
    }

    pub fn path(&self) -> &Path {
        self.output.path()
    }

    /// Takes a piece of the body. CRLF becomes LF, as Dovecot stores it; a CR alone stays.
    pub fn write(&mut self, mut piece: &[u8]) -> Result<()> {
        if self.held_cr && !piece.is_empty() {
            self.held_cr = false;
            if piece[0] != b'\n' {
                self.put(b"\r");
            }
        }
        if let Some(rest) = piece.strip_suffix(b"\r") {
            self.held_cr = true;
            piece = rest;
        }
        let mut from = 0;
        for at in memchr::memchr_iter(b'\n', piece) {
            self.line_ends += 1;
            if at > from && piece[at - 1] == b'\r' {
                self.put(&piece[from..at - 1]);
                from = at;
            }
        }
        self.put(&piece[from..]);
        self.output.relieve()
    }

    fn put(&mut self, bytes: &[u8]) {
        self.body_bytes += bytes.len() as u64;
        self.output.put(bytes);
    }

    /// Ends the message; its last bytes may be in the output's buffer still. `mailbox` is the name that mdbox notes for a rebuild.
    pub fn end(mut self, mailbox: Option<&str>) -> Result<(Saved, Output)> {
        if self.held_cr {
            self.put(b"\r");
        }
        let metadata = Metadata {
            received: Some(self.message.received.unwrap_or_else(now)),
            virtual_size: Some(self.body_bytes + self.line_ends),
            pop3_uidl: self.message.pop3_uidl.clone(),
            pop3_order: self.message.pop3_order,
            guid: Some(self.message.guid.clone()),
            mailbox: mailbox.map(|name| name.as_bytes().into()),
            ..Metadata::default()
        };
        let metadata = metadata.to_bytes();
        self.output.put(&metadata);
        self.output.replace(self.offset, &message_header_bytes(self.body_bytes))?;
        let size = MESSAGE_HEADER_BYTES as u64 + self.body_bytes + metadata.len() as u64;
        let saved = Saved { message: self.message, offset: self.offset, size, body_bytes: self.body_bytes };
        Ok((saved, self.output))
    }

    /// Takes back what was written of the message.
    pub fn abandon(mut self) -> Result<Output> {
        self.output.cut(self.offset)?;
        Ok(self.output)
    }
}

/// The present, as dates of messages have it.
pub fn now() -> Timestamp {
    Timestamp(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs() as i64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dbox::DboxFile;
    use dsync_model::{FlagSet, MessageGuid, ModSeq, Uid};

    #[test]
    fn line_ends_are_stored_as_lf_wherever_the_pieces_end() {
        let dir = tempfile::tempdir().unwrap();
        let text = b"A: b\r\n\r\nx\ry\r\r\nz\n\r\r";
        for cut in 0..text.len() {
            let path = dir.path().join(format!("u.{cut}"));
            let output = Output::create(path.clone()).unwrap();
            let message = NewMessage {
                uid: Uid::MIN,
                guid: MessageGuid::new("g").unwrap(),
                flags: FlagSet::default(),
                modseq: ModSeq::NONE,
                received: None,
                saved: None,
                pop3_uidl: None,
                pop3_order: None,
                size: None,
            };
            let mut saving = Saving::new(message, output);
            saving.write(&text[..cut]).unwrap();
            saving.write(&text[cut..]).unwrap();
            saving.end(None).unwrap().1.flush().unwrap();
            let file = DboxFile::open(&path).unwrap();
            let mail = file.message(file.header().size).unwrap();
            let mut body = Vec::new();
            std::io::Read::read_to_end(&mut file.body(&mail), &mut body).unwrap();
            assert_eq!(body, b"A: b\n\nx\ry\r\nz\n\r\r", "cut at {cut}");
            assert_eq!(mail.metadata.virtual_size, Some(body.len() as u64 + 4));
        }
    }
}
