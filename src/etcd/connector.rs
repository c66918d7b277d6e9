//! Dials: resolve, TCP or socket, TLS files, handshake, first byte, all under one deadline.
//!
//! With TLS 1.3 a server refuses a client certificate after the handshake, and the refusal races
//! with the first request. etcd writes its HTTP/2 settings at once, so reading the first bytes here
//! meets either them or the refusal, and the error is the same each time. A plain port waits for
//! the client to speak first and is handed over as it is.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, lookup_host};

use super::{Address, Reason, TlsFiles};
use crate::unix_socket;

/// A connection takes no longer than this from the first packet to the first byte.
const DEADLINE: Duration = Duration::from_secs(2);
/// A server that waits for us to speak first is not waited for longer than this.
const FIRST_BYTE: Duration = Duration::from_millis(500);
/// How long a failure stands for the calls that waited for the same connection: they start together,
/// and each would otherwise wait for a handshake of its own, one after the other.
const SHARED: Duration = Duration::from_millis(90);
/// Of a Unix socket whose rights keep the agent out.
const CLOSED: &str = "the socket is closed to this user: run the agent in the socket's group \
                      (SupplementaryGroups=microk8s for MicroK8s), or with CAP_DAC_OVERRIDE in \
                      CapabilityBoundingSet= and AmbientCapabilities=";

/// Why no connection came about.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{text}")]
pub struct DialError {
    /// The word for it.
    pub reason: Reason,
    /// The same for a person.
    pub text: String,
}

/// What it takes to dial one address.
#[derive(Debug)]
pub struct Connector {
    address: Address,
    server_name: Option<Arc<str>>,
    tls: Arc<TlsFiles>,
    deadline: Duration,
    /// Whether the server speaks first, as with HTTP/2.
    speaks_first: bool,
    /// The last failure and when it was.
    failed: Mutex<Option<(Instant, DialError)>>,
}

/// A byte stream, encrypted or not.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Where a connection stands; decides what a time-out is called.
#[derive(Debug, Clone, Copy)]
enum Stage {
    Resolve,
    Connect,
    Files,
    Handshake,
}

impl Connector {
    /// A connector that gives up after two seconds, or after three quarters of the call's `timeout`
    /// if that is less: the call that waits for it shall learn why.
    pub fn new(
        address: Address,
        server_name: Option<Arc<str>>,
        tls: Arc<TlsFiles>,
        timeout: Duration,
    ) -> Self {
        let deadline = (timeout * 3 / 4).min(DEADLINE);
        Self { address, server_name, tls, deadline, speaks_first: true, failed: Mutex::default() }
    }

    /// For a server that waits for a request, as with HTTP/1.1: its first byte is not waited for.
    #[must_use]
    pub fn silent(mut self) -> Self {
        self.speaks_first = false;
        self
    }

    /// Dials.
    ///
    /// # Errors
    ///
    /// See [`DialError`].
    pub async fn dial(&self) -> Result<TokioIo<Box<dyn Stream>>, DialError> {
        if let Some((when, error)) = &*self.failed.lock().unwrap_or_else(PoisonError::into_inner)
            && when.elapsed() < SHARED
        {
            return Err(error.clone());
        }
        let mut stage = Stage::Connect;
        let dialled = tokio::time::timeout(self.deadline, self.stages(&mut stage)).await;
        let dialled = dialled.unwrap_or_else(|_| Err(self.too_late(stage)));
        let failed = dialled.as_ref().err().map(|error| (Instant::now(), error.clone()));
        *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = failed;
        dialled.map(TokioIo::new)
    }

    fn too_late(&self, stage: Stage) -> DialError {
        let (reason, what) = match stage {
            Stage::Files => (Reason::TlsConfig, "the TLS files could not be read"),
            Stage::Resolve => (Reason::Dns, "its name did not resolve"),
            Stage::Connect => (Reason::Timeout, "no connection"),
            Stage::Handshake => (Reason::TlsTimeout, "connected, but no TLS handshake"),
        };
        DialError { reason, text: format!("{what} within {:?}", self.deadline) }
    }

    async fn stages(&self, stage: &mut Stage) -> Result<Box<dyn Stream>, DialError> {
        let (stream, host): (Box<dyn Stream>, _) = match &self.address {
            Address::Unix { path, .. } => {
                *stage = Stage::Connect;
                let stream = unix_socket::connect(path).await.map_err(|error| {
                    if error.kind() == io::ErrorKind::PermissionDenied {
                        return DialError { reason: Reason::Permission, text: CLOSED.into() };
                    }
                    plain("connecting", &error)
                })?;
                (Box::new(stream), "localhost")
            }
            Address::Tcp { host, port, .. } => {
                *stage = Stage::Resolve;
                let addresses = lookup_host((host.as_str(), *port)).await;
                let addresses: Vec<_> = addresses
                    .map_err(|error| DialError {
                        reason: Reason::of_resolving(&error),
                        text: format!("resolving {host}: {error}"),
                    })?
                    .collect();
                *stage = Stage::Connect;
                let stream =
                    TcpStream::connect(&*addresses).await.map_err(|e| plain("connecting", &e))?;
                stream.set_nodelay(true).map_err(|e| plain("connecting", &e))?;
                (Box::new(stream), host.as_str())
            }
        };
        if !self.address.is_tls() {
            return Ok(stream);
        }
        // Only now, so that an etcd that is down does not start a child process on every try.
        *stage = Stage::Files;
        let config = self.tls.config().await.map_err(|problem| DialError {
            reason: Reason::TlsConfig,
            text: problem.to_string(),
        })?;
        *stage = Stage::Handshake;
        let name = self.server_name.as_deref().unwrap_or(host).to_owned();
        let name = ServerName::try_from(name).map_err(|error| DialError {
            reason: Reason::TlsConfig,
            text: format!("server name: {error}"),
        })?;
        let stream = tokio_rustls::TlsConnector::from(config).connect(name, stream).await;
        let mut stream = stream.map_err(|error| {
            let reason = match Reason::of_io(&error) {
                Some(Reason::Reset) | None => Reason::Tls,
                Some(reason) => reason,
            };
            DialError { reason, text: format!("TLS handshake: {error}") }
        })?;
        if !self.speaks_first {
            return Ok(Box::new(stream));
        }
        let mut head = vec![0; 1024];
        match tokio::time::timeout(FIRST_BYTE, stream.read(&mut head)).await {
            Ok(Ok(0)) => {
                Err(DialError { reason: Reason::Reset, text: "closed after the handshake".into() })
            }
            Ok(Ok(n)) => {
                head.truncate(n);
                Ok(Box::new(Prefixed { head, served: 0, inner: stream }))
            }
            Ok(Err(error)) => Err(plain("after the TLS handshake", &error)),
            Err(_) => Ok(Box::new(stream)),
        }
    }
}

fn plain(what: &str, error: &io::Error) -> DialError {
    let reason = Reason::of_io(error).unwrap_or(Reason::Other);
    DialError { reason, text: format!("{what}: {error}") }
}

/// A stream whose first bytes have been read already.
struct Prefixed<S> {
    head: Vec<u8>,
    served: usize,
    inner: S,
}

impl<S: AsyncRead + Unpin> AsyncRead for Prefixed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let rest = &this.head[this.served..];
        if rest.is_empty() {
            return Pin::new(&mut this.inner).poll_read(cx, buffer);
        }
        let n = rest.len().min(buffer.remaining());
        buffer.put_slice(&rest[..n]);
        this.served += n;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Prefixed<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Host;
    use tokio::net::TcpListener;

    fn connector(address: &str, dir: &std::path::Path) -> Connector {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["localhost".into()]).unwrap();
        std::fs::write(dir.join("ca.crt"), params.self_signed(&key).unwrap().pem()).unwrap();
        let tls = TlsFiles::new(&Host::at(dir), Some("/ca.crt".into()), None, None).read_here();
        let address = Address::parse(address).unwrap();
        Connector::new(address, None, Arc::new(tls), Duration::from_millis(300))
    }

    async fn reason(connector: &Connector) -> &'static str {
        connector.dial().await.err().unwrap().reason.as_str()
    }

    #[tokio::test]
    async fn a_port_that_accepts_and_says_nothing_is_a_tls_timeout() {
        let dir = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let connector = connector(&format!("https://127.0.0.1:{port}"), dir.path());
        assert_eq!(reason(&connector).await, "tls_timeout");
        // The calls that waited for the same connection fail with it, not one after the other.
        let started = Instant::now();
        assert_eq!(reason(&connector).await, "tls_timeout");
        assert!(started.elapsed() < Duration::from_millis(200));
    }

    #[tokio::test]
    async fn a_closed_port_a_missing_socket_a_plain_port_and_a_missing_file_differ() {
        let dir = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let url = format!("https://127.0.0.1:{port}");
        assert_eq!(reason(&connector(&url, dir.path())).await, "refused");
        assert_eq!(reason(&connector("/nonexistent/kine.sock:1", dir.path())).await, "refused");
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let plain = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::io::AsyncWriteExt::write_all(&mut stream, b"HTTP/1.1 400 no\r\n\r\n").await
        };
        let connector = connector(&format!("https://127.0.0.1:{port}"), dir.path());
        let (reason, wrote) = tokio::join!(reason(&connector), plain);
        wrote.unwrap();
        assert_eq!(reason, "tls");
        let none = Arc::new(TlsFiles::new(&Host::at("/"), None, None, None).read_here());
        let address = Address::parse(&format!("https://127.0.0.1:{port}")).unwrap();
        let connector = Connector::new(address, None, none, Duration::from_secs(1));
        let error = connector.dial().await.err().unwrap();
        assert_eq!((error.reason.as_str(), error.text.contains("ca_file")), ("tls_config", true));
    }
}
