//! A connection whose client takes what we send in packets, those of the protocol on one channel and the log on another.
//!
//! What the client sends is never wrapped.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use dsync_session::link::Stream;
use dsync_session::proto::dovecot::doveadm::Server;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};

/// Most bytes of one packet.
const PACKET_BYTES_MAX: usize = 64 << 10;

/// Wraps all that is written.
pub struct Packed<'a> {
    stream: &'a mut dyn Stream,
    /// A packet on its way: taken from who writes, not yet by the stream.
    waiting: BytesMut,
}

impl Packed<'_> {
    pub fn new(stream: &mut dyn Stream) -> Packed<'_> {
        Packed { stream, waiting: BytesMut::new() }
    }

    /// Sends packets of the log, wrapped already, behind all that was written.
    pub async fn log(&mut self, packets: &[u8]) -> io::Result<()> {
        self.flush().await?;
        self.stream.write_all(packets).await?;
        self.stream.flush().await
    }

    fn poll_waiting(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.waiting.is_empty() {
            let written = ready!(Pin::new(&mut *self.stream).poll_write(context, &self.waiting))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.waiting.advance(written);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Packed<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Packed<'_> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_waiting(context))?;
        let taken = &data[..data.len().min(PACKET_BYTES_MAX)];
        if !taken.is_empty() {
            Server::packet(0, taken, &mut self.waiting);
        }
        match self.poll_waiting(context) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(taken.len())),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_waiting(context))?;
        Pin::new(&mut *self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_waiting(context))?;
        Pin::new(&mut *self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use dsync_session::proto::dovecot::doveadm::Demux;
    use tokio::io::AsyncReadExt;

    use super::*;

    #[tokio::test]
    async fn what_is_written_arrives_however_narrow_the_way() {
        let data: Vec<u8> = (0..200_000_u32).map(|i| i as u8).collect();
        let (mut ours, mut theirs) = tokio::io::duplex(1000);
        let sent = async {
            let mut packed = Packed::new(&mut ours);
            packed.write_all(&data).await.unwrap();
            packed.log(&[b'L', 0, 0, 0, 3, 3, b'x', b'\n']).await.unwrap();
            drop(ours);
        };
        let mut heard = Vec::new();
        let (_, read) = tokio::join!(sent, theirs.read_to_end(&mut heard));
        read.unwrap();
        let (mut input, mut plain) = (BytesMut::from(&heard[..]), BytesMut::new());
        let log = Demux::default().take(&mut input, &mut plain).unwrap();
        assert!(plain == data[..] && input.is_empty());
        assert_eq!(log.iter().map(|line| line.text.as_str()).collect::<Vec<_>>(), ["x"]);
    }
}
