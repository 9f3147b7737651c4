//! A byte stream while a session runs over it: what can happen there next. It waits for *readable or writable*, never for one of the
//! two alone, so two ends that send megabytes to each other cannot deadlock.

use std::future::pending;
use std::io;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::SessionError;
use crate::link::Stream;

/// Room for what is read at once; without room, a read takes as little as 64 bytes.
const READ_BYTES: usize = 64 << 10;

/// What a link does while nothing moves on the stream.
#[derive(Clone, Copy)]
pub enum Work {
    /// It goes on as soon as the stream was looked at.
    AtOnce,
    /// It has something that can wait until there is nothing else.
    Spare,
    /// It depends on the stream.
    None,
}

/// What happened.
pub enum Event {
    /// Something was read or written.
    Moved,
    /// The other end sends no more.
    Closed,
    /// Nothing can be read any more.
    Unheard(io::Error),
    /// It is time for [`Work::AtOnce`].
    Work,
    /// It is time for [`Work::Spare`].
    Spare,
    /// The session is to end at its next safe point. Comes once.
    Stop,
    /// The time is up.
    Late,
}

/// Both directions of a stream.
pub struct Wire<'a> {
    reader: ReadHalf<&'a mut dyn Stream>,
    writer: WriteHalf<&'a mut dyn Stream>,
    /// Something was written since the last flush.
    held: bool,
    stop: watch::Receiver<bool>,
    stopped: bool,
    /// When something was last read.
    pub heard: Instant,
    /// When something was last written.
    pub spoke: Instant,
}

impl<'a> Wire<'a> {
    /// `stop` turns true when the session is to end.
    pub fn new(stream: &'a mut dyn Stream, stop: watch::Receiver<bool>) -> Wire<'a> {
        let (reader, writer) = tokio::io::split(stream);
        let now = Instant::now();
        Wire { reader, writer, held: false, stop, stopped: false, heard: now, spoke: now }
    }

    /// Waits until something happens, no longer than `until`. Reads into `input`, if there is room, and takes what it writes off `output`. An
    /// error: nothing can be written any more.
    pub async fn next(
        &mut self,
        input: Option<&mut BytesMut>,
        output: &mut BytesMut,
        work: Work,
        until: Instant,
    ) -> Result<Event, SessionError> {
        let writes = self.held || !output.is_empty();
        let event = tokio::select! {
            biased;
            read = read(&mut self.reader, input) => match read {
                Ok(0) => Event::Closed,
                Ok(_) => {
                    self.heard = Instant::now();
                    Event::Moved
                }
                Err(error) => Event::Unheard(error),
            },
            written = write(&mut self.writer, output), if writes => {
                self.held = written.map_err(|error| broken(&error))?;
                self.spoke = Instant::now();
                Event::Moved
            }
            () = std::future::ready(()), if matches!(work, Work::AtOnce) => Event::Work,
            () = told(&mut self.stop), if !self.stopped => {
                self.stopped = true;
                Event::Stop
            }
            () = sleep_until(until) => Event::Late,
            () = tokio::task::yield_now(), if matches!(work, Work::Spare) => Event::Spare,
        };
        Ok(event)
    }
}

/// Reads, if there is room.
async fn read(reader: &mut ReadHalf<&mut dyn Stream>, input: Option<&mut BytesMut>) -> io::Result<usize> {
    let Some(input) = input else { return pending().await };
    input.reserve(READ_BYTES);
    reader.read_buf(input).await
}

/// Writes some of what waits, or flushes if nothing does: TLS may hold back what it has taken until then. Says whether it may. Nothing is lost
/// where it is dropped before it ends.
async fn write(writer: &mut WriteHalf<&mut dyn Stream>, output: &mut BytesMut) -> io::Result<bool> {
    if output.is_empty() {
        writer.flush().await.map(|()| false)
    } else {
        writer.write_buf(output).await.map(|_| true)
    }
}

/// Waits until it is true; for ever, if nobody is left who could say so.
async fn told(stop: &mut watch::Receiver<bool>) {
    if stop.wait_for(|stop| *stop).await.is_err() {
        pending().await
    }
}

/// What a stream that broke means for the session.
pub fn broken(error: &io::Error) -> SessionError {
    SessionError::Link { status: 75, text: format!("the connection broke: {error}") }
}
