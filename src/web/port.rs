//! The TCP port, with TLS or without.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::lock::Lock;
use super::{Client, Door, HEADER_TIMEOUT, REQUEST_TIMEOUT};

/// What a client hears that speaks plain HTTP where TLS is spoken.
const PLAIN: &[u8] =
    b"HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n\
    Client sent an HTTP request to an HTTPS server.\n";

/// A listening port.
pub struct Port {
    listener: TcpListener,
    lock: Option<Arc<Lock>>,
}

impl Port {
    /// A port in front of which there is a lock, or none.
    pub fn new(listener: TcpListener, lock: Option<Arc<Lock>>) -> Self {
        Self { listener, lock }
    }
}

impl Door for Port {
    type Raw = TcpStream;
    const STAY: Duration = Duration::MAX;

    async fn next(&self) -> io::Result<TcpStream> {
        let (stream, _) = self.listener.accept().await?;
        let unread = u32::try_from(REQUEST_TIMEOUT.as_millis()).unwrap_or(u32::MAX);
        if let Err(error) = rustix::net::sockopt::set_tcp_user_timeout(&stream, unread) {
            tracing::debug!(%error, "a client that does not read may stay");
        }
        Ok(stream)
    }

    fn welcome(&self, raw: TcpStream) -> impl Future<Output = io::Result<Client>> + Send + 'static {
        let tls = self.lock.as_ref().and_then(|lock| lock.tls());
        async move {
            let Some(tls) = tls else { return Ok(Client { wire: Box::new(raw), http2: false }) };
            timeout(HEADER_TIMEOUT, handshake(raw, tls)).await?
        }
    }
}

async fn handshake(mut raw: TcpStream, tls: Arc<rustls::ServerConfig>) -> io::Result<Client> {
    let mut first = [0];
    raw.peek(&mut first).await?;
    if first[0].is_ascii_uppercase() {
        // What is left unread would make the kernel reset the connection before the answer is read.
        let _read = raw.read(&mut [0; 4096]).await?;
        raw.write_all(PLAIN).await?;
        raw.shutdown().await?;
        return Err(io::Error::new(io::ErrorKind::InvalidData, "plain HTTP on a TLS port"));
    }
    let stream = TlsAcceptor::from(tls).accept(raw).await?;
    let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2".as_slice());
    Ok(Client { wire: Box::new(stream), http2 })
}
