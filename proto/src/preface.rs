//! What is said before the brains talk: hello, authentication, whose mail. Native only.
//!
//! The client sends [`MAGIC`], then [`Hello`], [`Auth`] and [`Start`] at once; the server answers [`Hello`] and [`Verdict`]. So
//! one round trip is enough. Each is a u16 length (big-endian) and that many bytes of bincode. Where both know [`FEATURE_MANY`],
//! another [`Start`] and its [`Verdict`] may follow when a session is over, or was refused.

use std::fmt;

use bincode::{Decode, Encode};
use bytes::{Buf, BufMut, BytesMut};

use crate::native::{config, malformed};
use crate::{ProtoError, VERSIONS};

/// The first bytes of a native client.
pub const MAGIC: &[u8; 8] = b"dsync\x00\x01\n";
/// Largest message of the preface.
const PREFACE_BYTES_MAX: usize = 8192;
/// Feature: payloads may be compressed by zstd.
pub const FEATURE_ZSTD: u16 = 1;
/// Feature: many users one after another on one connection.
pub const FEATURE_MANY: u16 = 2;

/// Who speaks, and what it can do.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Hello {
    /// Lowest and highest version.
    pub versions: (u16, u16),
    pub features: Vec<u16>,
    /// Name and version of the program, for logs.
    pub program: String,
}

/// How the client shows who it is.
#[derive(Clone, PartialEq, Eq, Encode, Decode)]
pub enum Auth {
    /// By its certificate, or by being on this machine's stdio or unix socket.
    None,
    Plain {
        user: String,
        password: String,
    },
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Auth::None => f.write_str("None"),
            Auth::Plain { user, .. } => write!(f, "Plain({user:?})"),
        }
    }
}

/// Whose mail it is about.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Start {
    pub user: String,
}

/// The server's answer.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub enum Verdict {
    Welcome,
    /// The exit status for the client, and a line for people.
    Refused {
        status: u8,
        text: String,
    },
}

/// What both ends can do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Common {
    pub version: u16,
    /// Frames may be compressed.
    pub compress: bool,
    /// Another user may follow on this connection.
    pub many: bool,
}

impl Hello {
    /// Ours.
    pub fn ours(compress: bool) -> Hello {
        let mut features = vec![FEATURE_MANY];
        if compress {
            features.insert(0, FEATURE_ZSTD);
        }
        Hello { versions: VERSIONS, features, program: concat!("dsync ", env!("CARGO_PKG_VERSION")).into() }
    }

    /// What both ends can do; an error if they have no version in common.
    pub fn negotiate(&self, theirs: &Hello) -> Result<Common, ProtoError> {
        let highest = self.versions.1.min(theirs.versions.1);
        if highest < self.versions.0.max(theirs.versions.0) {
            let text = |(low, high): (u16, u16)| {
                if low == high { low.to_string() } else { format!("{low} to {high}") }
            };
            let older = if theirs.versions.1 < self.versions.0 { "the other end" } else { "this end" };
            let (theirs, ours) = (text(theirs.versions), text(self.versions));
            return Err(ProtoError::Version { theirs, ours, older });
        }
        let both = |feature| self.features.contains(&feature) && theirs.features.contains(&feature);
        Ok(Common { version: highest, compress: both(FEATURE_ZSTD), many: both(FEATURE_MANY) })
    }
}

/// Appends one message of the preface.
pub fn encode<T: Encode>(message: &T, output: &mut BytesMut) -> Result<(), ProtoError> {
    let bytes = bincode::encode_to_vec(message, config()).map_err(malformed)?;
    if bytes.len() > PREFACE_BYTES_MAX {
        return Err(ProtoError::FrameTooLarge(bytes.len()));
    }
    output.put_u16(bytes.len() as u16);
    output.put_slice(&bytes);
    Ok(())
}

/// Takes one message of the preface off the front; `None` if it is not all there yet.
pub fn decode<T: Decode<()>>(input: &mut BytesMut) -> Result<Option<T>, ProtoError> {
    if input.len() < 2 {
        return Ok(None);
    }
    let length = (&input[..2]).get_u16() as usize;
    if length > PREFACE_BYTES_MAX {
        return Err(ProtoError::FrameTooLarge(length));
    }
    if input.len() < 2 + length {
        return Ok(None);
    }
    input.advance(2);
    let bytes = input.split_to(length);
    let (message, used): (T, usize) = bincode::decode_from_slice(&bytes, config()).map_err(malformed)?;
    if used != length {
        return Err(ProtoError::Malformed("bytes too many".into()));
    }
    Ok(Some(message))
}

/// What a client speaks, told by its first bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Spoken {
    Tls,
    Native,
    /// Dovecot's doveadm protocol.
    Dovecot,
    Http,
    Other,
}

/// Tells what is spoken; `None` if more bytes are needed to tell.
pub fn recognise(first: &[u8]) -> Option<Spoken> {
    const KNOWN: &[(&[u8], Spoken)] = &[
        (b"\x16", Spoken::Tls),
        (MAGIC, Spoken::Native),
        (b"VERSION\t", Spoken::Dovecot),
        (b"GET ", Spoken::Http),
        (b"HEAD ", Spoken::Http),
        (b"POST ", Spoken::Http),
        (b"PUT ", Spoken::Http),
        (b"OPTIONS ", Spoken::Http),
        (b"HTTP/", Spoken::Http),
    ];
    if let Some((_, spoken)) = KNOWN.iter().find(|(start, _)| first.starts_with(start)) {
        return Some(*spoken);
    }
    let open = KNOWN.iter().any(|(start, _)| start.starts_with(first));
    if open { None } else { Some(Spoken::Other) }
}
