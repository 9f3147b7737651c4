//! A message that comes into an mbox: from a file that holds it as clients see it, to the text that stands in the mbox.

use std::fs::File;
use std::ops::Range;
use std::path::PathBuf;

use dsync_model::{FlagSet, Timestamp, Uid};
use jiff::tz::TimeZone;

use super::from_line;
use super::headers::{self, Meta, without_end};
use super::output::Output;
use super::render::{Room, Wanted};
use super::scan::{HEADER_BYTES_MAX, UNFINISHED};
use super::window::Window;
use crate::{Result, StorageError};

/// A message to be added.
#[derive(Clone, Debug)]
pub struct Arrival {
    pub uid: Uid,
    pub flags: FlagSet,
    pub received: Timestamp,
    /// For the From_ line; empty if not known.
    pub sender: String,
    /// The file that holds the message, with or without CR.
    pub path: PathBuf,
}

/// Where the sender of a message that is marked as unfinished is to be written.
pub struct Mark {
    pub offset: u64,
    pub sender: Vec<u8>,
}

impl Arrival {
    /// Writes the message, with the line end that separates it. `marked`: as unfinished.
    ///
    /// Lines end with LF; metadata headers that came with it are dropped; a From_ line in its header, which would
    /// end it, gets a `>`. A body without final LF gets one, as in Dovecot; an empty one stays empty, unlike there.
    pub fn write(
        &self,
        output: &mut Output<'_>,
        base: Option<&str>,
        zone: &TimeZone,
        marked: bool,
    ) -> Result<Option<Mark>> {
        let file = File::open(&self.path).map_err(StorageError::io(&self.path))?;
        let size = file.metadata().map_err(StorageError::io(&self.path))?.len();
        let mut window = Window::new(&file, &self.path, size);
        let Split { header_bytes, body, is_cut } = split(&mut window)?;
        let header = &window.at(0, header_bytes)?[..header_bytes];
        let header = quoted(header, zone);
        let cr = window.count_crlf(body.clone())?;
        let lacks_lf = !body.is_empty() && window.peek(body.end - 1, 1)? != b"\n";
        let body_bytes = body.end - body.start - cr + u64::from(lacks_lf);
        let wanted = Wanted {
            base: base.map(|text| (Meta::Base, text)),
            uid: Some(self.uid),
            flags: &self.flags,
            is_old: false,
            body_bytes: (!is_cut).then_some(body_bytes),
        };

        let mut line = from_line::format(&self.sender, UNFINISHED.len(), self.received, zone).into_bytes();
        line.push(b'\n');
        let mark = marked.then(|| {
            // Up to the two spaces in front of the date, which is behind the last run of spaces that long.
            let length = memchr::memmem::rfind(&line, b"  ").map_or(0, |end| end.saturating_sub(SENDER));
            let field = &mut line[SENDER..SENDER + length];
            let sender = field.to_vec();
            field.fill(b'.');
            field[..UNFINISHED.len()].copy_from_slice(UNFINISHED.as_bytes());
            Mark { offset: output.offset() + SENDER as u64, sender }
        });
        output.put(&line)?;
        let (front, rest) = if is_cut { (&b""[..], &header[..]) } else { (&header[..], &b""[..]) };
        let text = wanted.render(front, Room::Free, "\n").unwrap_or_default();
        output.put(&text)?;
        output.put(rest)?;
        if !is_cut {
            output.put(b"\n")?;
        }
        if cr == 0 {
            output.copy_from(&file, &self.path, body)?;
        } else {
            window.each_without_cr(body, &mut |piece| output.put(piece))?;
        }
        output.put(if lacks_lf { b"\n\n" } else { b"\n" })?;
        Ok(mark)
    }
}

/// Where the sender stands in a From_ line.
const SENDER: usize = "From ".len();

struct Split {
    /// Without the empty line.
    header_bytes: usize,
    body: Range<u64>,
    /// The header is too long, and goes on in what is taken for the body.
    is_cut: bool,
}

fn split(window: &mut Window<'_>) -> Result<Split> {
    let size = window.size();
    let (mut line, mut bytes_min) = (0, 1);
    loop {
        let bytes = window.at(0, bytes_min)?;
        while let Some(length) = memchr::memchr(b'\n', &bytes[line..]) {
            if without_end(&bytes[line..=line + length]).is_empty() {
                let body = (line + length + 1) as u64..size;
                return Ok(Split { header_bytes: line, body, is_cut: false });
            }
            line += length + 1;
            if line > HEADER_BYTES_MAX {
                break;
            }
        }
        bytes_min = bytes.len() + 1;
        if line > HEADER_BYTES_MAX || bytes_min > HEADER_BYTES_MAX {
            return Ok(Split { header_bytes: line, body: line as u64..size, is_cut: true });
        }
        if bytes.len() as u64 >= size {
            return Ok(Split { header_bytes: bytes.len(), body: size..size, is_cut: false });
        }
    }
}

/// What clients see of a header, with LF ends and a `>` in front of every From_ line.
fn quoted(header: &[u8], zone: &TimeZone) -> Vec<u8> {
    let mut text = Vec::with_capacity(header.len());
    for line in headers::visible_lines(header) {
        if from_line::parse(line, zone).is_some() {
            text.push(b'>');
        }
        headers::push_line(&mut text, line, "\n");
    }
    text
}
