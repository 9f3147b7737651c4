//! What can be wrong with bytes from a peer.

/// An error of a codec. The connection is of no use after it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ProtoError {
    #[error("frame of {0} bytes is over the limit of {max} bytes", max = crate::FRAME_BYTES_MAX)]
    FrameTooLarge(usize),
    #[error("unknown kind of frame: {0}")]
    UnknownKind(u8),
    #[error("malformed message: {0}")]
    Malformed(String),
    #[error("the peer speaks another protocol: {0}")]
    OtherProtocol(String),
    #[error(
        "the other end speaks version {theirs} of dsync's protocol, this one {ours}: update the dsync of {older}"
    )]
    Version { theirs: String, ours: String, older: &'static str },
}
