//! How long a client may take to send a request.
//!
//! hyper has one time-out from the end of an answer to the end of the next request's headers. A
//! Prometheus is idle for a whole scrape interval in it, while a client that has begun a request
//! must not take minutes to end it. So the stream itself ends when a request has begun and its
//! headers are not complete in time, and hyper's time-out is left to idle connections.
//!
//! On a connection of HTTP/2 the two sides also talk between requests, so there it is counted how many requests have
//! begun and ended.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tokio::time::{Instant, Sleep, sleep, timeout};

/// Whether a request has begun and is not with the router yet.
#[derive(Debug, Clone)]
pub(super) struct Begun(Arc<AtomicU8>);

/// Nothing has come since the last complete request.
const IDLE: u8 = 0;
/// A request has begun.
const BEGUN: u8 = 1;
/// The same, and what has come ends with the end of headers.
const WHOLE: u8 = 2;
/// The one before is complete, and with it came the beginning of another.
const ANOTHER: u8 = 3;

impl Begun {
    /// A request is complete.
    pub(super) fn done(&self) {
        // Only the last of several that came together ends where the bytes do. A body behind the headers counts as
        // another request: no page takes one, and it only shortens the time that the connection may be idle.
        let all = matches!(self.0.load(Ordering::Relaxed), WHOLE | IDLE);
        self.0.store(if all { IDLE } else { ANOTHER }, Ordering::Relaxed);
    }
}

/// A stream on which a request ends within `limit` of its first byte, or the stream does.
#[derive(Debug)]
pub(super) struct Patience<S> {
    stream: S,
    begun: Begun,
    limit: Duration,
    deadline: Pin<Box<Sleep>>,
    /// The last bytes that came.
    last: [u8; 4],
}

impl<S> Patience<S> {
    /// The first request has begun with the connection.
    pub(super) fn new(stream: S, limit: Duration) -> (Self, Begun) {
        let begun = Begun(Arc::new(AtomicU8::new(BEGUN)));
        let deadline = Box::pin(sleep(limit));
        (Self { stream, begun: begun.clone(), limit, deadline, last: [0; 4] }, begun)
    }

    /// Bytes have come.
    fn came(&mut self, bytes: &[u8]) {
        for byte in &bytes[bytes.len().saturating_sub(4)..] {
            self.last.rotate_left(1);
            self.last[3] = *byte;
        }
        let whole = self.last == *b"\r\n\r\n" || self.last.ends_with(b"\n\n");
        let was = self.begun.0.swap(if whole { WHOLE } else { BEGUN }, Ordering::Relaxed);
        if was == IDLE || was == ANOTHER {
            self.deadline.as_mut().reset(Instant::now() + self.limit);
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patience<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(cx, buffer);
        if read.is_ready() {
            this.came(&buffer.filled()[before..]);
            return read;
        }
        let begun = &this.begun.0;
        let other =
            begun.compare_exchange(ANOTHER, BEGUN, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if other {
            this.deadline.as_mut().reset(Instant::now() + this.limit);
        }
        if begun.load(Ordering::Relaxed) != IDLE && this.deadline.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patience<S> {
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

/// Requests of one connection that begin.
#[derive(Debug)]
pub(super) struct Busy(watch::Sender<Count>);

/// The other end: sees when there is nothing to wait for any more.
#[derive(Debug)]
pub(super) struct Seen(watch::Receiver<Count>);

#[derive(Debug, Clone, Copy, Default)]
struct Count {
    begun: u64,
    ended: u64,
}

/// A request under way; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct UnderWay(watch::Sender<Count>);

/// Counts the requests of one connection.
pub(super) fn busy() -> (Busy, Seen) {
    let (sender, receiver) = watch::channel(Count::default());
    (Busy(sender), Seen(receiver))
}

impl Busy {
    pub(super) fn begin(&self) -> UnderWay {
        self.0.send_modify(|count| count.begun += 1);
        UnderWay(self.0.clone())
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.send_modify(|count| count.ended += 1);
    }
}

impl Seen {
    /// Waits until the first request has not begun after `first`, none has for `idle`, or those under way have not
    /// all ended after `longest`.
    pub(super) async fn enough(mut self, first: Duration, idle: Duration, longest: Duration) {
        let (mut known, mut wait) = (0, first);
        loop {
            match timeout(wait, self.0.wait_for(|count| count.begun > known)).await {
                Ok(Ok(_)) => {}
                // Without a sender there is no connection.
                _ => return,
            }
            match timeout(longest, self.0.wait_for(|count| count.begun == count.ended)).await {
                Ok(Ok(count)) => known = count.begun,
                _ => return,
            }
            wait = idle;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Duration = Duration::from_secs(10);
    const IDLE_LONG: Duration = Duration::from_mins(5);
    const LONGEST: Duration = Duration::from_secs(40);

    /// Seconds until the stream gives up, after these bytes came and `complete` of the requests in them were seen.
    async fn gives_up_after(bytes: &[u8], complete: usize) -> Option<u64> {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let (mut client, server) = tokio::io::duplex(1000);
        let (mut stream, begun) = Patience::new(server, FIRST);
        client.write_all(bytes).await.unwrap();
        sleep(Duration::from_secs(7)).await;
        let mut buffer = [0; 1000];
        assert_eq!(stream.read(&mut buffer).await.unwrap(), bytes.len());
        (0..complete).for_each(|_| begun.done());
        let started = Instant::now();
        let more = timeout(IDLE_LONG, stream.read(&mut buffer)).await.ok()?;
        assert_eq!(more.unwrap_err().kind(), io::ErrorKind::TimedOut);
        Some(started.elapsed().as_secs())
    }

    #[tokio::test(start_paused = true)]
    async fn half_a_request_that_came_with_a_whole_one_has_begun() {
        let whole = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".as_slice();
        let half = &whole[..20];
        assert_eq!(gives_up_after(whole, 1).await, None, "it is idle");
        assert_eq!(gives_up_after(&[whole, whole].concat(), 2).await, None);
        assert_eq!(gives_up_after(&[whole, half].concat(), 1).await, Some(10));
        assert_eq!(gives_up_after(half, 0).await, Some(3));
        assert_eq!(gives_up_after(b"GET / HTTP/1.1\nHost: x\n\n", 1).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_ends_when_no_request_begins_or_one_does_not_end() {
        let started = Instant::now();
        let (busy, seen) = busy();
        let watched = tokio::spawn(seen.enough(FIRST, IDLE_LONG, LONGEST));
        sleep(Duration::from_secs(9)).await;
        drop(busy.begin());
        sleep(Duration::from_secs(299)).await;
        let _stuck = busy.begin();
        assert!(!watched.is_finished());
        watched.await.unwrap();
        let took = started.elapsed();
        assert!((348..=349).contains(&took.as_secs()), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_without_a_request_ends_soon() {
        let started = Instant::now();
        let (_busy, seen) = busy();
        seen.enough(FIRST, IDLE_LONG, LONGEST).await;
        assert_eq!(started.elapsed().as_secs(), FIRST.as_secs());
    }
}
