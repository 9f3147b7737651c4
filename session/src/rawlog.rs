//! Records what travels between two ends, and reads the record for people: `-r FILE`, `dsync rawlog FILE`.
//!
//! A record: 8 bytes `dsyncrl1`; then for each frame the microseconds since the beginning (u64), 0 received or 1 sent (u8), the length
//! (u32, all little-endian) and the frame in the native codec, uncompressed. Of pieces of bodies there is only the length, at 2 or 3: mail is
//! not for logs. The preface, which may hold a password, is no frame.
//!
//! With a Dovecot the record is text as Dovecot's own `-r` writes it, `<unix time>.<microseconds> I: <line>` for what was received and `O:`
//! for what was sent, but for bodies: in place of their lines stands one that tells their length.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use bytes::{BufMut, BytesMut};
use dsync_proto::native::Native;
use dsync_proto::{Channel, Codec, FRAME_BYTES_MAX, Frame, SESSION};

const MAGIC: &[u8; 8] = b"dsyncrl1";
const SENT: u8 = 1;
const BODY: u8 = 2;
/// Longest line of a record in text that is read: an item's, and what stands before it.
const TEXT_LINE_BYTES_MAX: u64 = dsync_proto::dovecot::LINE_BYTES_MAX as u64 + 100;

/// A record that is being written.
#[derive(Debug)]
pub struct RawLog {
    file: BufWriter<File>,
    begun: Instant,
    form: Option<Form>,
    failed: bool,
}

/// What a record is made of, from its first entry on.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Form {
    Frames,
    Text,
}

impl RawLog {
    /// Begins a record, readable for nobody else. One that is there is replaced; a link is not followed.
    pub fn create(path: &Path) -> io::Result<RawLog> {
        match std::fs::symlink_metadata(path) {
            Ok(meta) if meta.is_file() => std::fs::remove_file(path)?,
            Ok(_) => {
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, "is there, and is no regular file"));
            }
            Err(_) => {}
        }
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        Ok(RawLog { file: BufWriter::new(file), begun: Instant::now(), form: None, failed: false })
    }

    /// Records lines of Dovecot's protocol, each with its end.
    pub fn lines(&mut self, sent: bool, lines: &[u8]) {
        self.form = Some(Form::Text);
        for line in lines.split_inclusive(|byte| *byte == b'\n') {
            let written = self.put_line(sent, line);
            self.check(written);
        }
    }

    /// Records that a body of so many bytes, as its sender has it, stood between the lines.
    pub fn omitted(&mut self, sent: bool, bytes: u64) {
        self.lines(sent, format!("(body, {bytes} bytes)\n").as_bytes());
    }

    fn put_line(&mut self, sent: bool, line: &[u8]) -> io::Result<()> {
        if self.failed {
            return Ok(());
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let way = if sent { 'O' } else { 'I' };
        write!(self.file, "{}.{:06} {way}: ", now.as_secs(), now.subsec_micros())?;
        self.file.write_all(line)
    }

    /// Records a frame.
    pub fn frame(&mut self, sent: bool, frame: &Frame) {
        match frame {
            Frame::Body(channel, piece) => self.body(sent, *channel, piece.len() as u64),
            frame => {
                let mut bytes = BytesMut::new();
                let encoded = Native::new(false).encode(frame, &mut bytes);
                let written =
                    encoded.map_err(io::Error::other).and_then(|()| self.put(u8::from(sent), &bytes));
                self.check(written);
            }
        }
    }

    /// Records so many bytes of a body.
    pub fn body(&mut self, sent: bool, channel: Channel, length: u64) {
        let mut bytes = BytesMut::new();
        bytes.put_u32_le(channel);
        bytes.put_u64_le(length);
        let written = self.put(BODY | u8::from(sent), &bytes);
        self.check(written);
    }

    fn put(&mut self, kind: u8, bytes: &[u8]) -> io::Result<()> {
        if self.failed {
            return Ok(());
        }
        if self.form.is_none() {
            self.form = Some(Form::Frames);
            self.file.write_all(MAGIC)?;
        }
        let elapsed = u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.file.write_all(&elapsed.to_le_bytes())?;
        self.file.write_all(&[kind])?;
        self.file.write_all(&(bytes.len() as u32).to_le_bytes())?;
        self.file.write_all(bytes)
    }

    /// A record that cannot be written is no reason to leave mail where it is.
    fn check(&mut self, written: io::Result<()>) {
        if let Err(error) = written {
            self.failed = true;
            tracing::warn!("the raw log ends here: {error}");
        }
    }
}

impl Drop for RawLog {
    fn drop(&mut self) {
        let unused = self.form.is_none() && !self.failed;
        let begun = if unused { self.file.write_all(MAGIC) } else { Ok(()) };
        let flushed = begun.and_then(|()| self.file.flush());
        self.check(flushed);
    }
}

/// Reads a record and gives a line for each frame.
pub fn read(mut from: impl BufRead, tell: &mut dyn FnMut(String) -> io::Result<()>) -> io::Result<()> {
    let damaged = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    if from.fill_buf()?.first().is_some_and(u8::is_ascii_digit) {
        return read_text(from, tell);
    }
    let mut magic = [0; 8];
    from.read_exact(&mut magic).map_err(|_| damaged("is no raw log of dsync"))?;
    if &magic != MAGIC {
        return Err(damaged("is no raw log of dsync"));
    }
    loop {
        if from.fill_buf()?.is_empty() {
            return Ok(());
        }
        let mut head = [0; 13];
        from.read_exact(&mut head).map_err(|_| damaged("ends in the middle of a record"))?;
        let [t0, t1, t2, t3, t4, t5, t6, t7, kind, length @ ..] = head;
        let micros = u64::from_le_bytes([t0, t1, t2, t3, t4, t5, t6, t7]);
        let length = u32::from_le_bytes(length) as usize;
        if length > FRAME_BYTES_MAX + 64 || kind > (BODY | SENT) {
            return Err(damaged("has a record that makes no sense"));
        }
        let mut bytes = vec![0; length];
        from.read_exact(&mut bytes).map_err(|_| damaged("ends in the middle of a record"))?;
        let way = if kind & SENT == 0 { "<" } else { ">" };
        let text = if kind & BODY == 0 { describe(&bytes) } else { describe_body(&bytes) };
        let text = text.ok_or_else(|| damaged("has a record that makes no sense"))?;
        tell(format!("{:>12.6} {way} {text}", micros as f64 / 1e6))?;
    }
}

/// Reads a record of a session with a Dovecot, ours or one that Dovecot wrote.
fn read_text(mut from: impl BufRead, tell: &mut dyn FnMut(String) -> io::Result<()>) -> io::Result<()> {
    let (mut begun, mut line) = (None, Vec::new());
    loop {
        let what = if begun.is_none() { "is no raw log of dsync" } else { "has a line that makes no sense" };
        let damaged = || io::Error::new(io::ErrorKind::InvalidData, what);
        line.clear();
        if io::Read::take(&mut from, TEXT_LINE_BYTES_MAX).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        let text = String::from_utf8_lossy(line.strip_suffix(b"\n").unwrap_or(&line));
        let (time, rest) = text.split_once(' ').ok_or_else(damaged)?;
        let (secs, micros) = time.split_once('.').ok_or_else(damaged)?;
        let number = |text: &str| text.parse::<u64>().map_err(|_| damaged());
        let micros = number(secs)?.saturating_mul(1_000_000).saturating_add(number(micros)?);
        let elapsed = micros.saturating_sub(*begun.get_or_insert(micros));
        // Dovecot puts `>` in place of the colon where a line has no end yet.
        let (way, said) = rest.split_at_checked(2).ok_or_else(damaged)?;
        let way = match way {
            "I:" | "I>" => "<",
            "O:" | "O>" => ">",
            _ => return Err(damaged()),
        };
        let said = said.strip_prefix(' ').unwrap_or(said).escape_debug();
        tell(format!("{:>12.6} {way} {said}", elapsed as f64 / 1e6))?;
    }
}

fn describe(bytes: &[u8]) -> Option<String> {
    let mut bytes = BytesMut::from(bytes);
    let frame = Native::new(false).decode(&mut bytes).ok().flatten()?;
    Some(match frame {
        Frame::Message(SESSION, message) => format!("session: {message:?}"),
        Frame::Message(channel, message) => format!("{channel}: {message:?}"),
        Frame::Body(channel, piece) => format!("{channel}: body, {} bytes", piece.len()),
        Frame::BodyEnd(channel) => format!("{channel}: end of body"),
        Frame::KeepAlive => "keep alive".to_owned(),
    })
}

fn describe_body(bytes: &[u8]) -> Option<String> {
    let (channel, length) = bytes.split_at_checked(4)?;
    let channel = u32::from_le_bytes(channel.try_into().ok()?);
    Some(format!("{channel}: body, {} bytes", u64::from_le_bytes(length.try_into().ok()?)))
}

#[cfg(test)]
mod tests {
    use dsync_proto::{List, Message};

    use super::*;

    #[test]
    fn what_is_recorded_is_told_and_mail_is_not_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("raw");
        let mut log = RawLog::create(&path).unwrap();
        log.frame(true, &Frame::Message(SESSION, Message::End(List::Nodes)));
        log.frame(false, &Frame::Body(3, bytes::Bytes::from_static(b"Subject: private")));
        log.body(true, 4, 9);
        log.frame(false, &Frame::BodyEnd(3));
        log.frame(true, &Frame::KeepAlive);
        drop(log);
        let bytes = std::fs::read(&path).unwrap();
        assert!(!bytes.windows(7).any(|window| window == b"private"));
        let lines = |bytes: &[u8]| {
            let mut lines = Vec::new();
            read(bytes, &mut |line| {
                lines.push(
                    line.trim_start().split_once(' ').map_or(String::new(), |(_, rest)| rest.to_owned()),
                );
                Ok(())
            })
            .map(|()| lines)
        };
        let expected = [
            "> session: End(Nodes)",
            "< 3: body, 16 bytes",
            "> 4: body, 9 bytes",
            "< 3: end of body",
            "> keep alive",
        ];
        assert_eq!(lines(&bytes).unwrap(), expected);
        for cut in 1..bytes.len() {
            // Cut between two records there is nothing to see.
            if let Ok(fewer) = lines(&bytes[..cut]) {
                assert!(fewer.len() < expected.len());
            }
        }
        assert!(lines(b"something else").is_err());
    }

    #[test]
    fn a_record_with_a_dovecot_is_text() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("raw");
        let mut log = RawLog::create(&path).unwrap();
        log.lines(true, b"Hhost\t\x02\n.\n");
        log.omitted(false, 216);
        drop(log);
        let text = std::fs::read_to_string(&path).unwrap();
        let said: Vec<&str> = text.lines().map(|line| line.split_once(' ').unwrap().1).collect();
        assert_eq!(said, ["O: Hhost\t\x02", "O: .", "I: (body, 216 bytes)"]);
        let mut told = Vec::new();
        read(text.as_bytes(), &mut |line| {
            told.push(line[13..].to_owned());
            Ok(())
        })
        .unwrap();
        assert_eq!(told, ["> Hhost\\t\\u{2}", "> .", "< (body, 216 bytes)"]);
        assert!(read(&b"1795443921.557479 Q: x\n"[..], &mut |_| Ok(())).is_err());
    }

    #[test]
    fn a_link_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(dir.path().join("target"), dir.path().join("raw")).unwrap();
        assert!(RawLog::create(&dir.path().join("raw")).is_err());
        assert!(!dir.path().join("target").exists());
    }
}
