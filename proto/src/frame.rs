//! Frames: what one codec turns into bytes and back.

use bytes::{Bytes, BytesMut};

use crate::{Message, ProtoError};

/// Which open mailbox a frame is about; [`SESSION`] for none.
pub type Channel = u32;

/// The channel of messages that concern the session as a whole.
pub const SESSION: Channel = 0;

/// One unit on the wire.
#[derive(Clone, PartialEq, Debug)]
pub enum Frame {
    Message(Channel, Message),
    /// The next piece of the body that the last `Mail` on this channel announced.
    Body(Channel, Bytes),
    /// The body is complete.
    BodyEnd(Channel),
    /// The peer is alive and still at work.
    KeepAlive,
}

/// Turns frames into bytes and back. Remembers no mail.
pub trait Codec: Send {
    /// Takes one frame off the front of `input`; `None` if it is not all there yet.
    fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Frame>, ProtoError>;

    /// Appends one frame to `output`.
    fn encode(&mut self, frame: &Frame, output: &mut BytesMut) -> Result<(), ProtoError>;
}
