//! A client's stream, watched on both sides.
//!
//! Who takes a part of an answer, however slowly, is not idle. Who sends more than a request's headers before a request
//! begins is cut off: on HTTP/2 the frames of headers without an end would be kept, 96 KiB of them for each connection.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::guests::Guest;
use super::{HEADER_BYTES, Wire};

/// No more bytes before a request begins: its headers, and what else may come before their end.
const UNASKED: usize = HEADER_BYTES * 3 / 2;

/// What a guest is talked to on.
pub(super) struct Watched {
    wire: Box<dyn Wire>,
    guest: Arc<Guest>,
}

impl Watched {
    pub(super) fn new(wire: Box<dyn Wire>, guest: &Arc<Guest>) -> Self {
        Self { wire, guest: Arc::clone(guest) }
    }

    fn wrote(&self, wrote: &Poll<io::Result<usize>>) {
        if matches!(wrote, Poll::Ready(Ok(1..))) {
            self.guest.took();
        }
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.wire).poll_read(cx, buffer);
        if self.guest.came(buffer.filled().len() - before) > UNASKED {
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        }
        read
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.wire).poll_write(cx, bytes);
        self.wrote(&wrote);
        wrote
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.wire).poll_write_vectored(cx, parts);
        self.wrote(&wrote);
        wrote
    }

    fn is_write_vectored(&self) -> bool {
        self.wire.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_shutdown(cx)
    }
}
