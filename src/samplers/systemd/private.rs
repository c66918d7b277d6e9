//! systemd's private socket, made fit for zbus.
//!
//! On that socket systemd gives every message the sender `org.freedesktop.systemd1`. The D-Bus
//! specification wants a unique name there, which begins with a colon, and zbus ends a connection
//! on anything else. So each message is read whole, and the first byte of such a sender is
//! replaced by a colon before zbus sees it. Nothing here believes in a sender: at the other end
//! of this socket is systemd and nobody else.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use async_trait::async_trait;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use zbus::connection::socket::{ReadHalf, Socket, Split, WriteHalf};

use crate::unix_socket;

/// No message of systemd is nearly as long, in bytes.
const LONGEST: usize = 16 << 20;
/// What comes before the header fields: byte order, type, flags, version, length of the body,
/// serial number, length of the fields.
const FIXED: usize = 16;
/// The header field that names the sender.
const SENDER: u8 = 7;

/// The connected socket.
#[derive(Debug)]
pub(super) struct Private(UnixStream);

impl Private {
    pub(super) async fn connect(path: &Path) -> io::Result<Self> {
        Ok(Self(unix_socket::connect(path).await?))
    }
}

impl Socket for Private {
    type ReadHalf = Reader;
    type WriteHalf = Writer;

    fn split(self) -> Split<Reader, Writer> {
        let (read, write) = self.0.into_split();
        let read = Reader { stream: BufReader::new(read), ready: Vec::new(), taken: 0 };
        Split::new(read, Writer(write))
    }
}

/// Hands out what systemd sends, message by message.
#[derive(Debug)]
pub(super) struct Reader {
    stream: BufReader<OwnedReadHalf>,
    /// A line of the handshake, or a message, of which `taken` bytes are handed out.
    ready: Vec<u8>,
    taken: usize,
}

impl Reader {
    async fn fill(&mut self) -> io::Result<()> {
        self.ready.clear();
        self.taken = 0;
        let Some(first) = self.stream.fill_buf().await?.first().copied() else { return Ok(()) };
        // No line of the handshake begins with either of the two marks of the byte order.
        if first != b'l' && first != b'B' {
            let line = &mut (&mut self.stream).take(LONGEST as u64);
            line.read_until(b'\n', &mut self.ready).await?;
            return Ok(());
        }
        self.ready.resize(FIXED, 0);
        self.stream.read_exact(&mut self.ready).await?;
        let too_long = || io::Error::new(io::ErrorKind::InvalidData, "a message is too long");
        let length = length(&self.ready).filter(|n| *n <= LONGEST).ok_or_else(too_long)?;
        self.ready.resize(length, 0);
        self.stream.read_exact(&mut self.ready[FIXED..]).await?;
        if let Some(at) = sender(&self.ready) {
            self.ready[at] = b':';
        }
        Ok(())
    }
}

#[async_trait]
impl ReadHalf for Reader {
    async fn recvmsg(&mut self, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
        if self.taken == self.ready.len() {
            self.fill().await?;
        }
        let rest = &self.ready[self.taken..];
        let n = rest.len().min(buffer.len());
        buffer[..n].copy_from_slice(&rest[..n]);
        self.taken += n;
        Ok((n, Vec::new()))
    }
}

/// Sends as it is told.
#[derive(Debug)]
pub(super) struct Writer(OwnedWriteHalf);

#[async_trait]
impl WriteHalf for Writer {
    async fn sendmsg(&mut self, buffer: &[u8], _: &[BorrowedFd<'_>]) -> io::Result<usize> {
        self.0.write(buffer).await
    }

    async fn close(&mut self) -> io::Result<()> {
        self.0.shutdown().await
    }
}

/// The number at this offset, in the byte order of the message.
fn number(message: &[u8], at: usize) -> Option<usize> {
    let bytes = message.get(at..at.checked_add(4)?)?.try_into().ok()?;
    let number = match message.first()? {
        b'l' => u32::from_le_bytes(bytes),
        _ => u32::from_be_bytes(bytes),
    };
    usize::try_from(number).ok()
}

/// How long the whole message is that begins with these [`FIXED`] bytes.
fn length(fixed: &[u8]) -> Option<usize> {
    let fields = number(fixed, 12)?.checked_next_multiple_of(8)?;
    FIXED.checked_add(fields)?.checked_add(number(fixed, 4)?)
}

/// Where the sender's name begins, if it is no unique name.
fn sender(message: &[u8]) -> Option<usize> {
    let end = FIXED.checked_add(number(message, 12)?)?;
    let mut at = FIXED;
    while at < end {
        // Each field is a number and a variant: a type's length, the type, a zero, the value.
        let [field, 1, kind, 0] = *message.get(at..at.checked_add(4)?)? else { return None };
        let value = at + 4;
        let (start, length) = match kind {
            b's' | b'o' => (value + 4, number(message, value)?.checked_add(1)?),
            b'g' => (value + 1, usize::from(*message.get(value)?) + 1),
            b'u' => (value, 4),
            _ => return None,
        };
        if field == SENDER && kind == b's' {
            return message.get(start).filter(|first| **first != b':').map(|_| start);
        }
        at = start.checked_add(length)?.checked_next_multiple_of(8)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What systemd 252 answers to `Subscribe` on its private socket.
    const ANSWER: &[u8] = b"l\x02\x01\x01\0\0\0\0\x01\0\0\0)\0\0\0\
        \x05\x01u\0\x01\0\0\0\x07\x01s\0\x18\0\0\0org.freedesktop.systemd1\0\0\0\0\0\0\0\0";

    #[test]
    fn the_sender_of_systemds_answers_is_found_and_the_message_ends_where_it_should() {
        assert_eq!(length(&ANSWER[..FIXED]), Some(ANSWER.len()));
        let at = sender(ANSWER).unwrap();
        assert!(ANSWER[at..].starts_with(b"org.freedesktop.systemd1\0"));
        let mut unique = ANSWER.to_vec();
        unique[at] = b':';
        assert_eq!(sender(&unique), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_search_fail(mut bytes: Vec<u8>, big: bool) {
            if let Some(first) = bytes.first_mut() {
                *first = if big { b'B' } else { b'l' };
            }
            let _ = (length(&bytes), sender(&bytes));
        }

        #[test]
        fn a_broken_answer_does_not_make_the_search_fail(at in 0..ANSWER.len(), byte: u8) {
            let mut bytes = ANSWER.to_vec();
            bytes[at] = byte;
            if let Some(found) = sender(&bytes) {
                prop_assert!(found < bytes.len());
            }
        }
    }
}
