//! For tests of links.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};

/// A stream that keeps what is written until it is flushed, as TLS may.
pub struct Holding(DuplexStream, VecDeque<u8>);

impl Holding {
    /// Two that are joined.
    pub fn pair() -> [Holding; 2] {
        <[DuplexStream; 2]>::from(tokio::io::duplex(1 << 20)).map(|stream| Holding(stream, VecDeque::new()))
    }
}

impl AsyncRead for Holding {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context,
        buffer: &mut ReadBuf,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Holding {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        self.1.extend(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context) -> Poll<std::io::Result<()>> {
        let Holding(stream, held) = self.get_mut();
        while !held.is_empty() {
            let written = ready!(Pin::new(&mut *stream).poll_write(context, held.as_slices().0))?;
            held.drain(..written);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context) -> Poll<std::io::Result<()>> {
        ready!(self.as_mut().poll_flush(context))?;
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
