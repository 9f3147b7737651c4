//! What a parent and its worker say to each other: a u32 length (big-endian) and that many bytes of bincode.

use std::io;

use bincode::{Decode, Encode};
use bytes::{Buf, BytesMut};
use dsync_session::dovecot::Names;
use dsync_session::dovecot::link::Early;
use dsync_session::proto::Failure;
use dsync_session::proto::dovecot::doveadm::Demux;
use dsync_session::{Progress, Report};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::UnixStream;

use crate::task::{Outcome, Protocol, Task};

/// Largest frame: a state or a report of a million mailboxes.
const FRAME_BYTES_MAX: usize = 64 << 20;
/// Bytes of the session in one frame.
pub const DATA_BYTES: usize = 64 << 10;

/// The parent speaks.
#[derive(Debug, Encode, Decode)]
pub enum Order {
    /// Open this, and say [`Answer::Ready`]. What was opened before is forgotten.
    Open(Box<Task>),
    /// Run the session of what is open. [`Answer::Over`] ends it; only [`Order::Halt`] may then follow.
    Run(Box<Run>),
    /// Do this alone, until [`Answer::Done`].
    Whole(Box<Task>),
    /// Bytes from the other end.
    Data(Vec<u8>),
    /// Nothing more comes from it.
    Eof,
    /// End at the next safe point.
    Stop,
    /// The session is over: no more data. To be answered by [`Answer::Behind`].
    Halt,
}

/// [`Demux::into_parts`].
type Parts = (u8, u64, Vec<u8>);

/// How a session begins: [`Talk`](crate::Talk) as it travels.
#[derive(Debug, Encode, Decode)]
pub struct Run {
    pub protocol: Protocol,
    pub input: Vec<u8>,
    pub demux: Option<(Parts, Vec<u8>)>,
    pub named: bool,
    pub names: Names,
    pub silence_secs: u64,
}

/// The worker speaks.
#[derive(Debug, Encode, Decode)]
pub enum Answer {
    Ready,
    /// It could not be opened.
    Refused {
        status: u8,
        text: String,
    },
    /// Bytes for the other end.
    Data(Vec<u8>),
    /// Nothing more will be said to it.
    Shut,
    Progress(Progress),
    Over(Result<Box<Report>, Failure>),
    /// What came behind the session.
    Behind(Vec<u8>),
    Done(Result<Outcome, Failure>),
}

impl Run {
    pub fn new(protocol: Protocol, early: Early, names: Names, silence_secs: u64) -> Run {
        let Early { input, demux, named } = early;
        let demux = demux.map(|(demux, plain)| (demux.into_parts(), plain.to_vec()));
        Run { protocol, input: input.to_vec(), demux, named, names, silence_secs }
    }

    pub fn early(&mut self) -> Early {
        let bytes = |bytes: Vec<u8>| BytesMut::from(&bytes[..]);
        let demux = self.demux.take().map(|(parts, plain)| (Demux::from_parts(parts), bytes(plain)));
        Early { input: bytes(std::mem::take(&mut self.input)), demux, named: self.named }
    }
}

/// Both ways of a socket. Dropping them leaves the socket open for the next session.
pub fn halves(socket: UnixStream) -> (Reader, Writer) {
    // The halves that tokio has for sockets would shut it down.
    let (read, write) = tokio::io::split(socket);
    (Reader { half: read, input: BytesMut::new() }, Writer { half: write })
}

/// Hears frames. May be dropped and asked again between two frames: nothing is lost.
pub struct Reader {
    half: ReadHalf<UnixStream>,
    input: BytesMut,
}

impl Reader {
    /// The next frame; `None`: the other process is gone.
    pub async fn next<T: Decode<()>>(&mut self) -> io::Result<Option<T>> {
        loop {
            if let Some(frame) = decode(&mut self.input)? {
                return Ok(Some(frame));
            }
            if self.half.read_buf(&mut self.input).await? == 0 {
                return Ok(None);
            }
        }
    }
}

/// Says frames, each in one go.
pub struct Writer {
    half: WriteHalf<UnixStream>,
}

impl Writer {
    pub async fn say(&mut self, frame: &impl Encode) -> io::Result<()> {
        self.half.write_all(&encode(frame)?).await
    }
}

fn encode(frame: &impl Encode) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; 4];
    bincode::encode_into_std_write(frame, &mut bytes, bincode::config::standard())
        .map_err(io::Error::other)?;
    let length = bytes.len() - 4;
    if length > FRAME_BYTES_MAX {
        return Err(io::Error::other("what is to be told to the other process is too large"));
    }
    bytes[..4].copy_from_slice(&(length as u32).to_be_bytes());
    Ok(bytes)
}

/// Takes a frame off the front; `None` if it is not all there yet.
fn decode<T: Decode<()>>(input: &mut BytesMut) -> io::Result<Option<T>> {
    let Some(head) = input.first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_be_bytes(*head) as usize;
    if length > FRAME_BYTES_MAX {
        return Err(io::Error::other("the other process says too much"));
    }
    if input.len() < 4 + length {
        return Ok(None);
    }
    input.advance(4);
    let bytes = input.split_to(length);
    let config = bincode::config::standard().with_limit::<FRAME_BYTES_MAX>();
    let (frame, used) = bincode::decode_from_slice(&bytes, config).map_err(io::Error::other)?;
    if used != length {
        return Err(io::Error::other("the other process says what makes no sense"));
    }
    Ok(Some(frame))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_whole_and_damage_is_an_error() {
        let frames = [Answer::Data(vec![7; 100_000]), Answer::Shut, Answer::Behind(Vec::new())];
        let mut bytes = BytesMut::new();
        frames.iter().for_each(|frame| bytes.extend_from_slice(&encode(frame).unwrap()));
        for cut in [0, 3, 4, 100_000] {
            assert!(decode::<Answer>(&mut BytesMut::from(&bytes[..cut])).unwrap().is_none(), "{cut}");
        }
        for frame in &frames {
            let back = decode::<Answer>(&mut bytes).unwrap().unwrap();
            assert_eq!(format!("{back:?}"), format!("{frame:?}"));
        }
        assert!(bytes.is_empty());
        for damaged in [
            &b"\xff\xff\xff\xff"[..],
            b"\0\0\0\x01\xf0",
            b"\0\0\0\x02\x03\x03",
            b"\0\0\0\x05\x02\xfc\xff\xff\xff",
        ] {
            assert!(decode::<Answer>(&mut BytesMut::from(damaged)).is_err(), "{damaged:?}");
        }
    }
}
