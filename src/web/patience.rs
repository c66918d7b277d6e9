//! How long a client may take to send a request.
//!
//! hyper has one time-out from the end of an answer to the end of the next request's headers. A
//! Prometheus is idle for a whole scrape interval in it, while a client that has begun a request
//! must not take minutes to end it. So the stream itself ends when a request has begun and its
//! headers are not complete in time, and hyper's time-out is left to idle connections.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};

/// Whether a request has begun and is not with the router yet.
#[derive(Debug, Clone, Default)]
pub(super) struct Begun(Arc<AtomicBool>);

impl Begun {
    /// The request is complete.
    pub(super) fn done(&self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// A stream on which a request ends within `limit` of its first byte, or the stream does.
#[derive(Debug)]
pub(super) struct Patience {
    stream: TcpStream,
    begun: Begun,
    limit: Duration,
    deadline: Pin<Box<Sleep>>,
}

impl Patience {
    /// The first request has begun with the connection.
    pub(super) fn new(stream: TcpStream, limit: Duration) -> (Self, Begun) {
        let begun = Begun(Arc::new(AtomicBool::new(true)));
        let deadline = Box::pin(sleep(limit));
        (Self { stream, begun: begun.clone(), limit, deadline }, begun)
    }
}

impl AsyncRead for Patience {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let read = Pin::new(&mut this.stream).poll_read(cx, buffer);
        let begun = &this.begun.0;
        if read.is_ready() {
            if !begun.swap(true, Ordering::Relaxed) {
                this.deadline.as_mut().reset(Instant::now() + this.limit);
            }
        } else if begun.load(Ordering::Relaxed) && this.deadline.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        read
    }
}

impl AsyncWrite for Patience {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
