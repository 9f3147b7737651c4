//! Joins a brain that speaks Dovecot's protocol to a byte stream.

use std::io::Read;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use dsync_proto::BODY_PIECE_BYTES;
use dsync_proto::dovecot::body::Writer;
use dsync_proto::dovecot::codec::{Decoder, Encoder, Event};
use dsync_proto::dovecot::doveadm::{Demux, Level, Logged};
use dsync_proto::dovecot::items::Item;
use dsync_storage::Body;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};

use super::{Brain, Output};
use crate::link::{Options, Stream};
use crate::rawlog::RawLog;
use crate::wire::{Event as Happened, Wire, Work};
use crate::{Report, SessionError};

/// Bytes that may wait to be sent before the brain is asked for more.
const SEND_BYTES_HIGH: usize = 1 << 20;
/// Bytes that may wait to be read: more than the longest line.
const RECEIVE_BYTES_HIGH: usize = 8 << 20;
/// Bytes that are made up between two looks at the stream, which has use for them at once.
const TURN_BYTES: usize = 64 << 10;
/// Pieces of work between two looks at the stream.
const WORK_STEPS: u32 = 256;
/// How long a master waits for a slave that tells nothing of its tree; a Dovecot tells it unasked.
const TREE_WAIT: Duration = Duration::from_secs(5);
const LAST_WORDS: Duration = Duration::from_secs(5);

/// What came before the session on the same stream.
#[derive(Default)]
pub struct Early {
    /// Bytes as they came.
    pub input: BytesMut,
    /// Where the peer sends packets: how far they are taken apart, and what of the session has come.
    pub demux: Option<(Demux, BytesMut)>,
    /// The line that names our version was said already.
    pub named: bool,
}

struct Link {
    decoder: Decoder,
    encoder: Encoder,
    raw: BytesMut,
    demux: Option<Demux>,
    input: BytesMut,
    output: BytesMut,
    sending: Option<(Body, Writer)>,
    piece: Vec<u8>,
    rawlog: Option<RawLog>,
    /// Bytes of the bodies under way, out and in.
    lengths: [u64; 2],
}

/// Runs a session over `stream` to its end. `watch` is called now and then.
pub async fn run(
    brain: &mut Brain,
    stream: &mut dyn Stream,
    early: Early,
    options: &Options,
    rawlog: Option<RawLog>,
    watch: &mut (dyn FnMut(&Brain) + Send),
) -> Result<Report, SessionError> {
    let (raw, demux, input) = match early.demux {
        Some((demux, plain)) => (early.input, Some(demux), plain),
        None => (BytesMut::new(), None, early.input),
    };
    let mut link = Link {
        decoder: Decoder::new(),
        encoder: Encoder::default(),
        raw,
        demux,
        input,
        output: BytesMut::new(),
        sending: None,
        piece: vec![0; BODY_PIECE_BYTES],
        rawlog,
        lengths: [0; 2],
    };
    link.encoder.start(&mut link.output);
    if let Some(log) = &mut link.rawlog {
        link.decoder.record();
        log.lines(true, &link.output);
    }
    if early.named {
        let line = memchr::memchr(b'\n', &link.output).map_or(0, |end| end + 1);
        link.output.advance(line);
    }
    match link.work(brain, stream, options, watch).await {
        Ok(report) => {
            let closed = timeout(LAST_WORDS, async {
                stream.write_all(&link.output).await?;
                stream.flush().await?;
                stream.shutdown().await
            });
            if let Ok(Err(error)) = closed.await {
                tracing::debug!("closing the connection: {error}");
            }
            Ok(*report)
        }
        Err(error) => {
            link.part(stream).await;
            Err(error)
        }
    }
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
        let (mut done, mut ended) = (None, false);
        loop {
            let busy = self.turn(brain, &mut done, ended)?;
            watch(brain);
            if self.output.is_empty()
                && let Some(report) = done
            {
                return Ok(report);
            }
            let work = match brain.can_look_ahead() {
                _ if busy || (ended && self.output.is_empty()) => Work::AtOnce,
                true => Work::Spare,
                false => Work::None,
            };
            let room = !ended && self.input.len() + self.raw.len() < RECEIVE_BYTES_HIGH;
            let incoming = if self.demux.is_some() { &mut self.raw } else { &mut self.input };
            let moved = wire.heard.max(wire.spoke);
            let patience = if brain.waits_for_peer() { TREE_WAIT } else { options.silence };
            let until = moved + patience.min(options.silence);
            match wire.next(room.then_some(incoming), &mut self.output, work, until).await? {
                Happened::Moved | Happened::Work => {}
                Happened::Closed => ended = true,
                // All that was to come may have come before.
                Happened::Unheard(error) => {
                    tracing::debug!("the connection broke: {error}");
                    ended = true;
                }
                Happened::Stop => brain.stop(),
                Happened::Late if moved.elapsed() >= options.silence => {
                    let text = format!("the other end said nothing for {} s", options.silence.as_secs());
                    return Err(SessionError::Link { status: 75, text });
                }
                Happened::Late => {
                    brain.go_first();
                    wire.heard = Instant::now();
                }
                Happened::Spare => brain.look_ahead(),
            }
        }
    }

    /// Hears and works until there is nothing more to do at once, or enough to send. Says which. `ended`: no more bytes will come.
    fn turn(
        &mut self,
        brain: &mut Brain,
        done: &mut Option<Box<Report>>,
        ended: bool,
    ) -> Result<bool, SessionError> {
        if let Some(demux) = &mut self.demux {
            demux.take(&mut self.raw, &mut self.input)?.into_iter().for_each(tell);
        }
        let enough = self.output.len() + TURN_BYTES;
        for _ in 0..WORK_STEPS {
            if done.is_some() {
                return Ok(false);
            }
            if self.output.len() >= enough {
                return Ok(true);
            }
            let mut heard = false;
            if brain.is_hungry() {
                if let Some(event) = self.decoder.decode(&mut self.input)? {
                    self.record_received(&event);
                    brain.handle(event)?;
                    heard = true;
                } else if ended {
                    brain.close();
                }
            }
            if self.output.len() >= SEND_BYTES_HIGH {
                if heard {
                    continue;
                }
                return Ok(false);
            }
            // Nothing else may be said in the middle of a body.
            if self.send_piece()? {
                continue;
            }
            match brain.poll()? {
                Output::Item(item) => self.say(&item),
                Output::Body(body) => self.sending = Some((body, Writer::new())),
                Output::Working => {}
                Output::Idle if heard => {}
                Output::Idle => return Ok(false),
                Output::Done(report) => *done = Some(report),
            }
        }
        Ok(true)
    }

    fn say(&mut self, item: &Item) {
        let before = self.output.len();
        self.encoder.item(item, &mut self.output);
        if let Some(log) = &mut self.rawlog {
            log.lines(true, &self.output[before..]);
        }
    }

    fn record_received(&mut self, event: &Event) {
        let Some(log) = &mut self.rawlog else { return };
        log.lines(false, &self.decoder.recorded());
        match event {
            Event::Body(piece) => self.lengths[1] += piece.len() as u64,
            Event::BodyEnd => log.omitted(false, std::mem::take(&mut self.lengths[1])),
            Event::Version(_) | Event::Item(_) => {}
        }
    }

    /// Sends the next piece of a body, if one is under way.
    fn send_piece(&mut self) -> Result<bool, SessionError> {
        let Some((body, writer)) = &mut self.sending else { return Ok(false) };
        let read = body.reader.read(&mut self.piece).map_err(|error| SessionError::Storage {
            context: "a message could not be read to its end".into(),
            source: dsync_storage::StorageError::Io {
                path: body.path.as_deref().unwrap_or(std::path::Path::new("message")).to_owned(),
                source: error,
            },
        })?;
        if read > 0 {
            writer.write(&self.piece[..read], &mut self.output);
            self.lengths[0] += read as u64;
        } else if let Some((_, writer)) = self.sending.take() {
            writer.end(&mut self.output);
            let length = std::mem::take(&mut self.lengths[0]);
            if let Some(log) = &mut self.rawlog {
                log.omitted(true, length);
            }
        }
        Ok(true)
    }

    /// After an error: says that we go, unless that would become part of a message; and hears what the peer's log still says.
    async fn part(&mut self, stream: &mut dyn Stream) {
        if self.sending.is_none() {
            self.say(&Item::Close);
        }
        let parting = timeout(LAST_WORDS, async {
            stream.write_all(&self.output).await?;
            stream.flush().await?;
            stream.shutdown().await?;
            while let Some(demux) = &mut self.demux {
                let taken = demux.take(&mut self.raw, &mut self.input);
                self.input.clear();
                let Ok(lines) = taken else { break };
                lines.into_iter().for_each(tell);
                if stream.read_buf(&mut self.raw).await? == 0 {
                    break;
                }
            }
            std::io::Result::Ok(())
        });
        if let Ok(Err(error)) = parting.await {
            tracing::debug!("telling the other end: {error}");
        }
    }
}

/// Passes on what the server logs.
pub fn tell(line: Logged) {
    match line.level {
        Level::Debug => tracing::debug!("the other end: {}", line.text),
        Level::Info => tracing::info!("the other end: {}", line.text),
        Level::Warning => tracing::warn!("the other end: {}", line.text),
        Level::Error => tracing::error!("the other end: {}", line.text),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use dsync_model::{MailboxGuid, MailboxName, StoreId, UidValidity};
    use dsync_proto::Direction;
    use dsync_storage::memory::MemoryStorage;
    use tokio::io::{AsyncRead, ReadBuf};

    use super::*;
    use crate::Job;
    use crate::holding::Holding;

    /// A connection that the other end left without a farewell, as one whose process is gone does.
    struct Broken;

    impl AsyncRead for Broken {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context, _: &mut ReadBuf) -> Poll<std::io::Result<()>> {
            Poll::Ready(Err(std::io::ErrorKind::ConnectionReset.into()))
        }
    }

    fn storage(subscribed: usize) -> MemoryStorage {
        let inbox = MailboxGuid([7; 16]);
        let storage = MemoryStorage::new(StoreId([1; 16]), inbox, UidValidity::new(1).unwrap());
        let names = (0..subscribed).map(|n| MailboxName::parse(&format!("name {n}"), '/').unwrap());
        storage.account().subscriptions.extend(names);
        storage
    }

    fn master(storage: &MemoryStorage) -> Brain {
        let options = dsync_proto::Options { tree_only: true, ..dsync_proto::Options::default() };
        let job = Job { direction: Direction::TwoWay, options };
        Brain::master(Box::new(storage.clone()), job, None, "here")
    }

    /// All that a slave with this account says in a session.
    fn said(account: &MemoryStorage) -> BytesMut {
        let mut slave = Brain::slave(Box::new(account.clone()), Duration::ZERO, "there");
        let mut master = master(&storage(0));
        let (mut encoder, mut wire) = (Encoder::default(), BytesMut::new());
        encoder.start(&mut wire);
        let [mut to_master, mut to_slave] = [5, 5].map(|minor| VecDeque::from([Event::Version(minor)]));
        let mut is_over = false;
        while !is_over {
            is_over = step(&mut slave, &mut to_slave, |item| {
                encoder.item(&item, &mut wire);
                to_master.push_back(Event::Item(item));
            });
            is_over &= step(&mut master, &mut to_master, |item| to_slave.push_back(Event::Item(item)));
        }
        wire
    }

    /// Lets a brain hear the next event and work once. Says whether its session is over.
    fn step(brain: &mut Brain, heard: &mut VecDeque<Event>, mut say: impl FnMut(Item)) -> bool {
        if brain.is_hungry()
            && let Some(event) = heard.pop_front()
        {
            brain.handle(event).unwrap();
        }
        match brain.poll().unwrap() {
            Output::Item(item) => say(item),
            Output::Done(_) => return true,
            Output::Body(_) | Output::Working | Output::Idle => {}
        }
        false
    }

    /// A session with a slave of which only these bytes come before the connection ends so.
    async fn hear(wire: &[u8], end: impl AsyncRead + Unpin + Send) -> Result<usize, SessionError> {
        let here = storage(0);
        let mut stream = tokio::io::join(AsyncReadExt::chain(wire, end), tokio::io::sink());
        let (_stop, stop) = tokio::sync::watch::channel(false);
        let options = Options { silence: Duration::from_secs(60), compress: false, stop, rawlog: None };
        run(&mut master(&here), &mut stream, Early::default(), &options, None, &mut |_| {}).await?;
        let subscribed = here.account().subscriptions.len();
        Ok(subscribed)
    }

    /// Whatever is left to do when the last byte is written: one of these numbers of names ends together with a turn of work.
    #[tokio::test]
    async fn nothing_is_left_unflushed() {
        for names in 1..=WORK_STEPS as usize {
            let [mut here, mut there] = Holding::pair();
            let (_stop, stop) = tokio::sync::watch::channel(false);
            let options = Options { silence: Duration::from_secs(5), compress: false, stop, rawlog: None };
            let (ours, theirs) = (storage(0), storage(names));
            let mut brains = (master(&ours), Brain::slave(Box::new(theirs.clone()), Duration::ZERO, "there"));
            let (mut quiet, mut silent) = (|_: &Brain| (), |_: &Brain| ());
            let (told, heard) = tokio::join!(
                run(&mut brains.0, &mut here, Early::default(), &options, None, &mut quiet),
                run(&mut brains.1, &mut there, Early::default(), &options, None, &mut silent)
            );
            assert!(told.is_ok() && heard.is_ok(), "{names}: {told:?} {heard:?}");
            assert_eq!(ours.account().subscriptions.len(), names);
        }
    }

    /// More than is worked on between two looks at the stream, so that its end is seen before.
    #[tokio::test]
    async fn what_came_before_the_end_of_the_connection_counts() {
        let names = 4 * WORK_STEPS as usize;
        let wire = said(&storage(names));
        assert_eq!(hear(&wire, tokio::io::empty()).await.unwrap(), names);
        assert_eq!(hear(&wire, Broken).await.unwrap(), names);
        for cut in [wire.len() / 2, wire.len() * 3 / 4] {
            assert_eq!(hear(&wire[..cut], tokio::io::empty()).await.unwrap_err().status(), 75);
            assert_eq!(hear(&wire[..cut], Broken).await.unwrap_err().status(), 75);
        }
    }
}
