//! Joins a brain to a byte stream. One loop, one task.

use std::io::Read;
use std::path::Path;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use dsync_proto::native::Native;
use dsync_proto::{BODY_PIECE_BYTES, Codec, Frame, Message, SESSION};
use dsync_storage::{Body, StorageError};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use crate::rawlog::RawLog;
use crate::wire::{Event, Wire, Work, broken};
use crate::{Brain, Input, Output, Report, SessionError};

/// A byte stream to the other end.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Bytes that may wait to be sent before the brain is asked for more.
const SEND_BYTES_HIGH: usize = 1 << 20;
/// Pieces of work between two looks at the stream.
const WORK_STEPS: u32 = 32;
/// A frame goes out at least this often while there is nothing to say.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How long to wait for a failing peer's last words, or to tell ours.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// How a link behaves.
pub struct Options {
    /// Give up when nothing was heard for so long.
    pub silence: Duration,
    /// Payloads may be compressed, as settled in the preface.
    pub compress: bool,
    /// Turns true when the session is to end at its next safe point.
    pub stop: watch::Receiver<bool>,
    /// Where what travels is recorded.
    pub rawlog: Option<RawLog>,
}

/// Runs a session over `stream` to its end. `early` holds bytes that came behind the preface; `watch` is called now and then.
///
/// The stream is still open then, and another user may follow on it; after an error it is of no more use. Gives the bytes that
/// came behind the session, too.
pub async fn run(
    brain: &mut Brain,
    stream: &mut dyn Stream,
    early: BytesMut,
    mut options: Options,
    watch: &mut (dyn FnMut(&Brain) + Send),
) -> Result<(Report, BytesMut), SessionError> {
    let mut link = Link {
        codec: Native::new(options.compress),
        input: early,
        output: BytesMut::new(),
        sending: None,
        piece: vec![0; BODY_PIECE_BYTES],
        rawlog: options.rawlog.take(),
    };
    let outcome = link.work(brain, stream, &options, watch).await;
    match outcome {
        Ok(report) => {
            let told = timeout(LAST_WORDS, async {
                stream.write_all(&link.output).await?;
                stream.flush().await
            });
            if let Ok(Err(error)) = told.await {
                tracing::debug!("the last words of a session: {error}");
            }
            Ok((*report, link.input))
        }
        Err(error) => Err(link.part(stream, error).await),
    }
}

/// Ends a connection whose sessions are over.
pub async fn close(stream: &mut dyn Stream) {
    if let Ok(Err(error)) = timeout(LAST_WORDS, stream.shutdown()).await {
        tracing::debug!("closing the connection: {error}");
    }
}

struct Link {
    codec: Native,
    input: BytesMut,
    output: BytesMut,
    /// The body that is being sent, its channel, and the bytes still promised.
    sending: Option<(u32, Body)>,
    piece: Vec<u8>,
    rawlog: Option<RawLog>,
}

impl Link {
    async fn work(
        &mut self,
        brain: &mut Brain,
        stream: &mut dyn Stream,
        options: &Options,
        watch: &mut (dyn FnMut(&Brain) + Send),
    ) -> Result<Box<Report>, SessionError> {
        let mut wire = Wire::new(stream, options.stop.clone());
        let mut done = None;
        loop {
            while let Some(frame) = self.codec.decode(&mut self.input)? {
                if let Some(log) = &mut self.rawlog {
                    log.frame(false, &frame);
                }
                take(brain, frame)?;
            }
            let busy = done.is_none() && self.fill(brain, &mut done)?;
            watch(brain);
            if self.output.is_empty()
                && let Some(report) = done
            {
                return Ok(report);
            }
            let work = if busy { Work::AtOnce } else { Work::None };
            let until = (wire.heard + options.silence).min(wire.spoke + KEEP_ALIVE);
            match wire.next(Some(&mut self.input), &mut self.output, work, until).await? {
                Event::Moved | Event::Work | Event::Spare => {}
                Event::Closed | Event::Unheard(_) if done.is_some() => {
                    return done.ok_or(SessionError::Stopped);
                }
                Event::Closed => brain.handle(Input::Closed)?,
                Event::Unheard(error) => return Err(broken(&error)),
                Event::Stop if done.is_some() => {}
                Event::Stop => brain.stop(),
                Event::Late if wire.heard.elapsed() >= options.silence => {
                    let text = format!("the other end was silent for {} s", options.silence.as_secs());
                    return Err(SessionError::Link { status: 75, text });
                }
                Event::Late => {
                    // Nothing comes behind a session's last frame.
                    if done.is_none() {
                        self.say(&Frame::KeepAlive)?;
                    }
                    wire.spoke = Instant::now();
                }
            }
        }
    }

    fn say(&mut self, frame: &Frame) -> Result<(), SessionError> {
        if let Some(log) = &mut self.rawlog {
            log.frame(true, frame);
        }
        Ok(self.codec.encode(frame, &mut self.output)?)
    }

    /// Fills the send buffer. Says whether there is more to do at once.
    fn fill(&mut self, brain: &mut Brain, done: &mut Option<Box<Report>>) -> Result<bool, SessionError> {
        let mut steps = 0;
        while self.output.len() < SEND_BYTES_HIGH {
            if let Some((channel, body)) = &mut self.sending {
                let channel = *channel;
                let read = match body.reader.read(&mut self.piece) {
                    Ok(read) => read,
                    Err(error) => {
                        let path = body.path.as_deref().unwrap_or(Path::new("message")).to_owned();
                        self.sending = None;
                        brain.body_failed(channel, StorageError::io(path)(error))?;
                        continue;
                    }
                };
                let frame = match read {
                    0 => Frame::BodyEnd(channel),
                    read => Frame::Body(channel, Bytes::copy_from_slice(&self.piece[..read])),
                };
                self.say(&frame)?;
                if read == 0 {
                    self.sending = None;
                }
                continue;
            }
            match brain.poll()? {
                Output::Message(channel, message) => {
                    self.say(&Frame::Message(channel, message))?;
                }
                Output::Body(channel, body) => self.sending = Some((channel, body)),
                Output::Working => {}
                Output::Idle => return Ok(false),
                Output::Done(report) => {
                    *done = Some(report);
                    return Ok(false);
                }
            }
            steps += 1;
            if steps >= WORK_STEPS && !self.output.is_empty() {
                return Ok(true);
            }
        }
        // Full: what comes next depends on the stream.
        Ok(false)
    }

    /// After an error: tell the peer, and hear its own last words, which may say more than a broken pipe.
    async fn part(&mut self, stream: &mut dyn Stream, error: SessionError) -> SessionError {
        match &error {
            SessionError::Remote(_) => return error,
            SessionError::Link { .. } => {}
            other => {
                let mut last = BytesMut::new();
                let failure = Frame::Message(SESSION, Message::Failure(other.failure()));
                // Only at a frame's border will the peer understand it.
                if self.codec.encode(&failure, &mut last).is_ok() {
                    let told = timeout(LAST_WORDS, async {
                        stream.write_all(&self.output).await?;
                        stream.write_all(&last).await?;
                        stream.flush().await?;
                        stream.shutdown().await
                    });
                    if let Ok(Err(error)) = told.await {
                        tracing::debug!("telling the other end: {error}");
                    }
                }
                return error;
            }
        }
        let heard = timeout(LAST_WORDS, async {
            loop {
                match self.codec.decode(&mut self.input) {
                    Ok(Some(Frame::Message(_, Message::Failure(failure)))) => return Some(failure),
                    Ok(Some(_)) => continue,
                    Err(_) => return None,
                    Ok(None) => {}
                }
                match stream.read_buf(&mut self.input).await {
                    Ok(0) | Err(_) => return None,
                    Ok(_) => {}
                }
            }
        });
        match heard.await {
            Ok(Some(failure)) => SessionError::Remote(failure),
            _ => error,
        }
    }
}

fn take(brain: &mut Brain, frame: Frame) -> Result<(), SessionError> {
    match frame {
        Frame::Message(channel, message) => brain.handle(Input::Message(channel, message)),
        Frame::Body(channel, piece) => brain.handle(Input::Body(channel, &piece)),
        Frame::BodyEnd(channel) => brain.handle(Input::BodyEnd(channel)),
        Frame::KeepAlive => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use dsync_model::{MailboxGuid, MailboxName, StoreId, UidValidity};
    use dsync_proto::Direction;
    use dsync_storage::memory::{MemoryStorage, StoredMailbox};

    use super::*;
    use crate::Job;
    use crate::holding::Holding;

    /// Whatever is left to do when the last byte is written. A frame that only keeps the connection alive would come too late.
    #[tokio::test]
    async fn nothing_is_left_unflushed() {
        for mailboxes in 0..=WORK_STEPS as u8 {
            let validity = UidValidity::new(1).unwrap();
            let [ours, theirs] =
                [1, 2].map(|id| MemoryStorage::new(StoreId([id; 16]), MailboxGuid([7; 16]), validity));
            for number in 0..mailboxes {
                let name = MailboxName::parse(&format!("name {number}"), '/').unwrap();
                let mailbox = StoredMailbox::new(MailboxGuid([number + 100; 16]), validity);
                theirs.account().mailboxes.insert(name, mailbox);
            }
            let job = Job { direction: Direction::TwoWay, options: dsync_proto::Options::default() };
            let mut here = Brain::initiator(Box::new(ours.clone()), job);
            let mut there = Brain::responder(Box::new(theirs.clone()), Duration::ZERO);
            let (_stop, stop) = watch::channel(false);
            let options =
                || Options { silence: KEEP_ALIVE / 3, compress: false, stop: stop.clone(), rawlog: None };
            let [mut near, mut far] = Holding::pair();
            let (mut quiet, mut silent) = (|_: &Brain| (), |_: &Brain| ());
            let (told, heard) = tokio::join!(
                run(&mut here, &mut near, BytesMut::new(), options(), &mut quiet),
                run(&mut there, &mut far, BytesMut::new(), options(), &mut silent)
            );
            assert!(told.is_ok() && heard.is_ok(), "{mailboxes}: {:?} {:?}", told.err(), heard.err());
            assert_eq!(ours.account().mailboxes.len(), usize::from(mailboxes) + 1);
        }
    }
}
