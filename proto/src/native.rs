//! The native codec: length, kind, channel, payload. The one place, with `preface`, where bincode is called.

use std::io::Read;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use dsync_model::{
    ATTRIBUTE_BYTES_MAX, ATTRIBUTE_KEY_BYTES_MAX, AttributeValue, KEYWORDS_MAX, MessageChange,
};

use crate::{
    BATCH_MAX, Channel, Codec, FRAME_BYTES_MAX, Frame, Listed, MESSAGE_MEMORY_MAX, MailHeader, Message,
    Problem, ProtoError, TEXT_BYTES_MAX, Undone,
};

/// Length (u32), kind (u8), channel (u32), all big-endian.
const HEAD_BYTES: usize = 9;
const KIND_MESSAGE: u8 = 0;
const KIND_BODY: u8 = 1;
const KIND_BODY_END: u8 = 2;
const KIND_KEEP_ALIVE: u8 = 3;
/// Added to the kind of a frame whose payload is compressed.
const COMPRESSED: u8 = 0x10;
/// Payloads up to this size are not worth compressing.
const COMPRESS_BYTES_MIN: usize = 200;

/// The native codec. Remembers nothing but whether both ends agreed on compression.
#[derive(Clone, Copy, Debug)]
pub struct Native {
    compress: bool,
}

impl Native {
    /// With `compress`, payloads may be compressed by zstd, and compressed ones are understood.
    pub fn new(compress: bool) -> Native {
        Native { compress }
    }
}

impl Codec for Native {
    fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Frame>, ProtoError> {
        if input.len() < HEAD_BYTES {
            return Ok(None);
        }
        let length = (&input[..4]).get_u32() as usize;
        if length > FRAME_BYTES_MAX {
            return Err(ProtoError::FrameTooLarge(length));
        }
        if input.len() < HEAD_BYTES + length {
            return Ok(None);
        }
        input.advance(4);
        let (kind, channel) = (input.get_u8(), input.get_u32());
        let payload = input.split_to(length).freeze();
        let plain = kind & !COMPRESSED;
        let payload = match kind & COMPRESSED {
            0 => payload,
            _ if self.compress && plain <= KIND_BODY => decompress(&payload)?,
            _ => return Err(ProtoError::UnknownKind(kind)),
        };
        match plain {
            KIND_MESSAGE => Ok(Some(Frame::Message(channel, decode_message(&payload)?))),
            KIND_BODY => Ok(Some(Frame::Body(channel, payload))),
            KIND_BODY_END if payload.is_empty() => Ok(Some(Frame::BodyEnd(channel))),
            KIND_KEEP_ALIVE if payload.is_empty() => Ok(Some(Frame::KeepAlive)),
            KIND_BODY_END | KIND_KEEP_ALIVE => {
                Err(ProtoError::Malformed("payload where none belongs".into()))
            }
            _ => Err(ProtoError::UnknownKind(kind)),
        }
    }

    fn encode(&mut self, frame: &Frame, output: &mut BytesMut) -> Result<(), ProtoError> {
        match frame {
            Frame::Message(channel, message) => {
                let payload = bincode::encode_to_vec(message, config()).map_err(malformed)?;
                self.put(KIND_MESSAGE, *channel, &payload, output)
            }
            Frame::Body(channel, piece) => self.put(KIND_BODY, *channel, piece, output),
            Frame::BodyEnd(channel) => self.put(KIND_BODY_END, *channel, &[], output),
            Frame::KeepAlive => self.put(KIND_KEEP_ALIVE, 0, &[], output),
        }
    }
}

impl Native {
    fn put(
        &self,
        kind: u8,
        channel: Channel,
        payload: &[u8],
        output: &mut BytesMut,
    ) -> Result<(), ProtoError> {
        if payload.len() > FRAME_BYTES_MAX {
            return Err(ProtoError::FrameTooLarge(payload.len()));
        }
        if self.compress && payload.len() >= COMPRESS_BYTES_MIN {
            let smaller = zstd::bulk::compress(payload, 1).ok().filter(|small| small.len() < payload.len());
            if let Some(small) = smaller {
                put_raw(kind | COMPRESSED, channel, &small, output);
                return Ok(());
            }
        }
        put_raw(kind, channel, payload, output);
        Ok(())
    }
}

fn put_raw(kind: u8, channel: Channel, payload: &[u8], output: &mut BytesMut) {
    output.reserve(HEAD_BYTES + payload.len());
    output.put_u32(payload.len() as u32);
    output.put_u8(kind);
    output.put_u32(channel);
    output.put_slice(payload);
}

fn decompress(payload: &[u8]) -> Result<Bytes, ProtoError> {
    let mut plain = Vec::new();
    let decoder = zstd::stream::read::Decoder::with_buffer(payload)
        .map_err(|error| ProtoError::Malformed(error.to_string()))?;
    let read = decoder.take(FRAME_BYTES_MAX as u64 + 1).read_to_end(&mut plain);
    match read {
        Ok(bytes) if bytes <= FRAME_BYTES_MAX => Ok(plain.into()),
        Ok(bytes) => Err(ProtoError::FrameTooLarge(bytes)),
        Err(error) => Err(ProtoError::Malformed(error.to_string())),
    }
}

/// The one bincode configuration of everything native.
pub(crate) fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<MESSAGE_MEMORY_MAX>()
}

pub(crate) fn malformed(error: impl std::fmt::Display) -> ProtoError {
    ProtoError::Malformed(error.to_string())
}

fn decode_message(payload: &[u8]) -> Result<Message, ProtoError> {
    let (message, used): (Message, usize) =
        bincode::decode_from_slice(payload, config()).map_err(malformed)?;
    if used != payload.len() {
        return Err(ProtoError::Malformed(format!("{} bytes too many", payload.len() - used)));
    }
    validate(&message)?;
    Ok(message)
}

/// Limits that types do not carry.
fn validate(message: &Message) -> Result<(), ProtoError> {
    let long = |what: &str| Err(ProtoError::Malformed(format!("{what} too long")));
    match message {
        Message::Bases(bases) if bases.len() > 1000 => long("list of bases"),
        Message::Nodes(nodes) if nodes.len() > BATCH_MAX => long("list of names"),
        Message::Requests(requests) if requests.len() > BATCH_MAX => long("list of requests"),
        Message::Changes(changes) if changes.len() > BATCH_MAX => long("list of changes"),
        Message::Changes(changes) => {
            let ascending = changes.windows(2).all(|pair| pair[0].uid() < pair[1].uid());
            let keywords = changes.iter().all(|change| match change {
                MessageChange::Save { flags, .. } | MessageChange::Flags { flags, .. } => {
                    [&flags.added, &flags.removed, &flags.current]
                        .iter()
                        .all(|set| set.keywords.len() <= KEYWORDS_MAX)
                }
                MessageChange::Expunge { .. } => true,
            });
            match (ascending, keywords) {
                (true, true) => Ok(()),
                (false, _) => Err(ProtoError::Malformed("UIDs do not ascend".into())),
                (_, false) => long("list of keywords"),
            }
        }
        Message::Skip { text, .. } if text.len() > TEXT_BYTES_MAX => long("text"),
        Message::State(records) if records.len() > BATCH_MAX => long("list of states"),
        Message::Filtered(uids) if uids.len() > BATCH_MAX => long("list of UIDs"),
        Message::Log(log) if log.len() > BATCH_MAX => long("log"),
        Message::NotKept(uids) => match (uids.len() <= BATCH_MAX, uids.is_sorted_by(|a, b| a.0 < b.0)) {
            (true, true) => Ok(()),
            (true, false) => Err(ProtoError::Malformed("UIDs do not ascend".into())),
            (false, _) => long("list of UIDs"),
        },
        Message::Attributes(attributes) => {
            let ascending = attributes.windows(2).all(|pair| pair[0].0 < pair[1].0);
            let fits = attributes.iter().all(|(key, value)| {
                let value = match value {
                    AttributeValue::Bytes(bytes) => bytes.len() <= ATTRIBUTE_BYTES_MAX,
                    AttributeValue::TooLarge => true,
                };
                value && key.key.len() <= ATTRIBUTE_KEY_BYTES_MAX
            });
            match (ascending, fits && attributes.len() <= BATCH_MAX) {
                (true, true) => Ok(()),
                (false, _) => Err(ProtoError::Malformed("attributes do not ascend".into())),
                (_, false) => long("attribute"),
            }
        }
        Message::AttributeTimes(times) => {
            let ascending = times.windows(2).all(|pair| pair[0].0 < pair[1].0);
            let fits = times.iter().all(|(key, _)| key.key.len() <= ATTRIBUTE_KEY_BYTES_MAX);
            match (ascending, fits && times.len() <= BATCH_MAX) {
                (true, true) => Ok(()),
                (false, _) => Err(ProtoError::Malformed("times of attributes do not ascend".into())),
                (_, false) => long("list of attributes"),
            }
        }
        Message::Planned { mailboxes, notes } => {
            let names = mailboxes.iter().flat_map(|mailbox| mailbox.tree.iter().chain([&mailbox.name]));
            let short = names.chain(notes).map(String::len).all(|bytes| bytes <= 5 * TEXT_BYTES_MAX);
            if short && mailboxes.len().max(notes.len()) <= BATCH_MAX { Ok(()) } else { long("text") }
        }
        Message::Unlisted(list) => {
            let short = list.iter().all(|(_, why, _)| why.len() <= TEXT_BYTES_MAX);
            if short && list.len() <= BATCH_MAX { Ok(()) } else { long("list of names") }
        }
        Message::Listing(_, listed) => {
            let ascending = listed.windows(2).all(|pair| pair[0].uid < pair[1].uid);
            let fits = |listed: &Listed| {
                let text = listed.problem.as_ref().is_none_or(|text| text.len() <= TEXT_BYTES_MAX);
                text && listed.flags.keywords.len() <= KEYWORDS_MAX
            };
            match (ascending, listed.len() <= BATCH_MAX && listed.iter().all(fits)) {
                (true, true) => Ok(()),
                (false, _) => Err(ProtoError::Malformed("UIDs do not ascend".into())),
                (_, false) => long("list of messages"),
            }
        }
        Message::Mail(MailHeader { problem: Some(Problem { text, .. }), .. })
        | Message::Problem(Problem { text, .. })
            if text.len() > TEXT_BYTES_MAX =>
        {
            long("text")
        }
        Message::Undone(Undone::Subscriptions { names, .. }) if names.len() > BATCH_MAX => {
            long("list of names")
        }
        Message::Failure(failure) if failure.text.len() > TEXT_BYTES_MAX => long("text"),
        Message::Handshake(handshake) => {
            let options = &handshake.options;
            let texts = options.mailboxes.iter().chain(&options.exclude);
            let fits = handshake.location.len() <= TEXT_BYTES_MAX
                && options.mailboxes.len() + options.exclude.len() + options.guids.len() <= 10_000
                && options.filter.with.keywords.len() + options.filter.without.keywords.len() <= KEYWORDS_MAX
                && texts.map(String::len).all(|bytes| bytes <= TEXT_BYTES_MAX);
            if fits { Ok(()) } else { long("text") }
        }
        _ => Ok(()),
    }
}
