//! What a server sends in packets: the protocol, its log and what a command prints.

use bytes::{Buf, BytesMut};

use super::LINE_BYTES_MAX;
use crate::ProtoError;

/// The channels of packets: the log, and what a command prints. 0 is the protocol itself.
pub const LOG: u8 = b'L';
pub const PRINTED: u8 = b'O';

/// How bad a line of the peer's log is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Level {
    Debug,
    Info,
    Warning,
    Error,
}

impl Level {
    /// As it stands in front of a line.
    pub(super) fn byte(self) -> u8 {
        match self {
            Level::Debug => 1,
            Level::Info => 2,
            Level::Warning => 3,
            Level::Error => 4,
        }
    }

    /// The word for it in front of a line for people; none for what is said of work that was done.
    pub fn word(self) -> &'static str {
        match self {
            Level::Debug => "DEBUG ",
            Level::Info => "",
            Level::Warning => "WARN ",
            Level::Error => "",
        }
    }
}

/// One line of the peer's log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Logged {
    pub level: Level,
    pub text: String,
}

/// Takes the server's packets apart.
#[derive(Default)]
pub struct Demux {
    channel: u8,
    left: usize,
    log: BytesMut,
    /// What the command writes to its standard output: a dsync-server's own channel.
    pub(super) printed: BytesMut,
}

impl Demux {
    /// How far it is, for another process to go on there: channel and bytes left of the packet, and the begun line of the log.
    pub fn into_parts(self) -> (u8, u64, Vec<u8>) {
        (self.channel, self.left as u64, self.log.to_vec())
    }

    /// Goes on where another one was.
    pub fn from_parts((channel, left, log): (u8, u64, Vec<u8>)) -> Demux {
        Demux { channel, left: left as usize, log: BytesMut::from(&log[..]), ..Demux::default() }
    }

    /// Moves what belongs to the protocol from `input` to `plain`, and gives the lines of the log.
    pub fn take(&mut self, input: &mut BytesMut, plain: &mut BytesMut) -> Result<Vec<Logged>, ProtoError> {
        loop {
            if self.left == 0 {
                let Some(head) = input.first_chunk::<5>() else { break };
                let [channel, length @ ..] = *head;
                if !matches!(channel, 0 | LOG | PRINTED) {
                    return Err(ProtoError::Malformed(format!("there is no channel {channel}")));
                }
                self.channel = channel;
                self.left = u32::from_be_bytes(length) as usize;
                input.advance(5);
                continue;
            }
            let here = self.left.min(input.len());
            if here == 0 {
                break;
            }
            let data = input.split_to(here);
            self.left -= here;
            match self.channel {
                0 => plain.extend_from_slice(&data),
                PRINTED => self.printed.extend_from_slice(&data),
                _ => self.log.extend_from_slice(&data),
            }
        }
        let mut lines = Vec::new();
        while let Some(end) = memchr::memchr(b'\n', &self.log) {
            let line = self.log.split_to(end);
            self.log.advance(1);
            lines.extend(logged(&line));
        }
        if self.log.len() > LINE_BYTES_MAX {
            return Err(ProtoError::Malformed("a line of the log is too long".into()));
        }
        Ok(lines)
    }
}

fn logged(line: &[u8]) -> Option<Logged> {
    let (level, text) = line.split_first()?;
    let level = match level {
        1 => Level::Debug,
        2 => Level::Info,
        3 => Level::Warning,
        _ => Level::Error,
    };
    // A terminal is not to obey what a server says.
    let text: String = String::from_utf8_lossy(text).chars().filter(|c| !c.is_control()).collect();
    Some(Logged { level, text })
}
