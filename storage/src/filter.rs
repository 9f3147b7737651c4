//! Tells which messages a filter keeps back. Opens a message only where its flags do not settle the matter.

use std::io::{ErrorKind, Read};

use dsync_model::{Filter, FlagSet, Uid};

use crate::{Body, Mailbox, Result, StorageError};

/// Bytes that are read at once.
const PIECE_BYTES: usize = 64 << 10;

/// Gives the UIDs of those messages that do not pass. One that is gone, or cannot be read, passes: it is dealt with where it
/// is to be sent.
pub fn filtered<'a>(
    mailbox: &mut dyn Mailbox,
    filter: &Filter,
    messages: impl IntoIterator<Item = (Uid, &'a FlagSet)>,
) -> Result<Vec<Uid>> {
    let by_flags_alone = filter.since.is_none() && filter.until.is_none() && filter.size_max.is_none();
    let mut kept_back = Vec::new();
    for (uid, flags) in messages {
        let passes = filter.flags_pass(flags)
            && (by_flags_alone
                || match mailbox.body(uid, None) {
                    Ok(Some(body)) => filter.date_passes(body.received) && size_passes(filter, body),
                    Ok(None) | Err(StorageError::Io { .. }) => true,
                    Err(error) if error.status() == 65 => true,
                    Err(error) => return Err(error),
                });
        if !passes {
            kept_back.push(uid);
        }
    }
    Ok(kept_back)
}

fn size_passes(filter: &Filter, mut body: Body) -> bool {
    if let Some(passes) = body.size.and_then(|size| filter.size_passes(size)) {
        return passes;
    }
    let max = filter.size_max.unwrap_or(u64::MAX);
    let mut crlf = Crlf::default();
    let read = body_pieces(&mut body, &mut |piece| {
        crlf.count(piece);
        crlf.size <= max
    });
    read.is_err() || crlf.size <= max
}

/// Hands a body over in pieces, until `take` has enough.
pub fn body_pieces(body: &mut Body, take: &mut dyn FnMut(&[u8]) -> bool) -> std::io::Result<()> {
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        match body.reader.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(bytes) if take(&piece[..bytes]) => {}
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// A message as IMAP tells it: each line ended by CRLF, whatever its storage keeps.
#[derive(Clone, Copy, Debug, Default)]
pub struct Crlf {
    /// Bytes so far.
    pub size: u64,
    after_cr: bool,
}

impl Crlf {
    /// Counts a piece.
    pub fn count(&mut self, piece: &[u8]) {
        self.feed(piece, &mut |_| {});
    }

    /// Counts a piece, and hands on what it becomes.
    pub fn feed(&mut self, piece: &[u8], to: &mut dyn FnMut(&[u8])) {
        let mut begun = 0;
        for at in memchr::memchr_iter(b'\n', piece) {
            let cr = if at == 0 { self.after_cr } else { piece[at - 1] == b'\r' };
            if !cr {
                to(&piece[begun..at]);
                to(b"\r");
                self.size += 1;
                begun = at;
            }
        }
        to(&piece[begun..]);
        self.size += piece.len() as u64;
        if let Some(last) = piece.last() {
            self.after_cr = *last == b'\r';
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_end_by_crlf_wherever_the_pieces_are_cut() {
        let text = b"a\nb\r\n\r\n\nc\rd\r\n\n";
        let whole = b"a\r\nb\r\n\r\n\r\nc\rd\r\n\r\n";
        for length in 1..=text.len() {
            let (mut crlf, mut all) = (Crlf::default(), Vec::new());
            text.chunks(length).for_each(|piece| crlf.feed(piece, &mut |bytes| all.extend_from_slice(bytes)));
            assert_eq!((all.as_slice(), crlf.size), (&whole[..], whole.len() as u64), "pieces of {length}");
        }
    }
}
