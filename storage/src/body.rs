//! The content of a message on its way from one storage to another.

use std::io::{self, Cursor, Read};
use std::path::Path;

use dsync_model::{MessageGuid, Timestamp};

use crate::dbox;

/// The content of a message, and what its storage knows of it.
pub struct Body {
    pub guid: MessageGuid,
    pub received: Option<Timestamp>,
    pub saved: Option<Timestamp>,
    pub pop3_uidl: Option<Box<str>>,
    pub pop3_order: Option<u32>,
    pub size: Option<u64>,
    /// The file that holds exactly this content, if one does: for cloning.
    pub path: Option<Box<Path>>,
    /// Where mdbox has the message: another mailbox of the same account refers to it there instead of writing it again.
    pub map_uid: Option<dbox::MapUid>,
    pub reader: Box<dyn io::Read + Send>,
}

impl Body {
    /// From now on an error of the reader names the message: whoever saves it would name the file that it writes.
    pub fn name_errors(&mut self) {
        let inner = std::mem::replace(&mut self.reader, Box::new(io::empty()));
        self.reader = Box::new(Named { guid: self.guid.clone(), inner });
    }

    /// Reads the first bytes, up to so many, into memory: on this thread, so that the other one has only to write.
    ///
    /// What cannot be read fails where the reader comes to it.
    pub fn read_ahead(&mut self, bytes_max: u64) {
        let expected = self.size.unwrap_or(0).saturating_add(1).min(bytes_max) as usize;
        let mut bytes = Vec::with_capacity(expected);
        let reader = std::mem::replace(&mut self.reader, Box::new(io::empty()));
        let mut reader = reader.take(bytes_max);
        let read = reader.read_to_end(&mut bytes);
        let ended = read.is_ok() && (bytes.len() as u64) < bytes_max;
        let bytes = Cursor::new(bytes);
        self.reader = match read {
            Ok(_) if ended => Box::new(bytes),
            Ok(_) => Box::new(bytes.chain(reader.into_inner())),
            Err(error) => Box::new(bytes.chain(Broken(Some(error)))),
        };
    }
}

struct Named {
    guid: MessageGuid,
    inner: Box<dyn io::Read + Send>,
}

impl Read for Named {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.inner.read(buffer).map_err(|error| match error.kind() {
            io::ErrorKind::Interrupted => error,
            kind => io::Error::new(kind, format!("{} cannot be read to its end: {error}", self.guid)),
        })
    }
}

/// Fails once with what went wrong.
struct Broken(Option<io::Error>);

impl Read for Broken {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(self.0.take().unwrap_or_else(|| io::ErrorKind::Other.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(reader: impl Read + Send + 'static, size: Option<u64>) -> Body {
        Body {
            guid: MessageGuid::new("g").unwrap(),
            received: None,
            saved: None,
            pop3_uidl: None,
            pop3_order: None,
            size,
            path: None,
            map_uid: None,
            reader: Box::new(reader),
        }
    }

    #[test]
    fn nothing_is_lost_or_made_up_wherever_it_is_cut() {
        for size in [None, Some(0), Some(9), Some(10), Some(u64::MAX)] {
            for bytes_max in [0, 1, 9, 10, 11, 1000] {
                let mut body = body(&b"0123456789"[..], size);
                body.read_ahead(bytes_max);
                let mut text = String::new();
                body.reader.read_to_string(&mut text).unwrap();
                assert_eq!(text, "0123456789", "size {size:?}, {bytes_max} ahead");
            }
        }
    }

    #[test]
    fn an_error_names_the_message() {
        let mut body = body(Broken(Some(io::Error::from_raw_os_error(5))), None);
        body.name_errors();
        let error = body.reader.read(&mut [0; 4]).unwrap_err();
        assert_eq!(error.to_string(), "g cannot be read to its end: Input/output error (os error 5)");
    }

    #[test]
    fn an_error_comes_after_what_could_be_read() {
        let mut body = body(b"0123".chain(Broken(Some(io::ErrorKind::InvalidData.into()))), Some(10));
        body.read_ahead(1000);
        let mut bytes = [0; 4];
        body.reader.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"0123");
        assert_eq!(body.reader.read(&mut bytes).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert!(body.reader.read(&mut bytes).is_err());
    }
}
