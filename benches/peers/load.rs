//! Load over HTTP/1.1: connections that stay open, each with one request under way at a time.

use super::stats;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::{Duration, Instant};

/// How long any answer may take.
const LIMIT: Duration = Duration::from_secs(20);
/// What Prometheus asks for.
const ACCEPT: &str =
    "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1";

/// What connections measured.
#[derive(Debug, Clone)]
pub(crate) struct Figures {
    /// How long each answer took.
    pub(crate) latencies: Vec<Duration>,
    pub(crate) elapsed: Duration,
    /// Bytes of one body, as it was sent.
    pub(crate) bytes: usize,
}

impl Figures {
    pub(crate) fn per_second(&self) -> f64 {
        self.latencies.len() as f64 / self.elapsed.as_secs_f64()
    }

    /// In seconds.
    pub(crate) fn quantile(&self, q: f64) -> f64 {
        stats::quantile(&self.latencies.iter().map(Duration::as_secs_f64).collect::<Vec<_>>(), q)
    }

    pub(crate) fn to_json(&self) -> Value {
        json!({
            "scrapes": self.latencies.len(),
            "seconds": self.elapsed.as_secs_f64(),
            "p50_us": self.quantile(0.5) * 1e6,
            "p99_us": self.quantile(0.99) * 1e6,
            "per_second": self.per_second(),
        })
    }
}

/// A connection that stays open.
pub(crate) struct Connection {
    address: SocketAddr,
    path: String,
    sender: SendRequest<String>,
}

impl Connection {
    pub(crate) async fn open(address: SocketAddr, path: &str) -> Result<Self, String> {
        let all = async {
            let tcp = tokio::net::TcpStream::connect(address).await?;
            tcp.set_nodelay(true)?;
            handshake(TokioIo::new(tcp)).await.map_err(std::io::Error::other)
        };
        let (sender, connection) = tokio::time::timeout(LIMIT, all)
            .await
            .map_err(|_| format!("{address} does not answer within {LIMIT:?}"))?
            .map_err(|error| format!("connecting to {address}: {error}"))?;
        // It ends with the sender; what goes wrong is the sender's error too.
        tokio::spawn(connection);
        Ok(Self { address, path: path.to_owned(), sender })
    }

    /// One GET; returns the bytes of its body. Anything but 200 is an error.
    pub(crate) async fn get(&mut self) -> Result<usize, String> {
        let address = self.address;
        let all = async {
            self.sender.ready().await?;
            let request = hyper::Request::get(&self.path)
                .header("Host", address.to_string())
                .header("Accept", ACCEPT)
                .header("Accept-Encoding", "gzip")
                .body(String::new())
                .expect("a request");
            let answer = self.sender.send_request(request).await?;
            let status = answer.status();
            let mut body = answer.into_body();
            let mut bytes = 0;
            while let Some(frame) = std::future::poll_fn(|context| {
                hyper::body::Body::poll_frame(Pin::new(&mut body), context)
            })
            .await
            {
                bytes += frame?.data_ref().map_or(0, axum::body::Bytes::len);
            }
            Ok::<_, hyper::Error>((status, bytes))
        };
        match tokio::time::timeout(LIMIT, all).await {
            Err(_) => Err(format!("no answer of {address} within {LIMIT:?}")),
            Ok(Err(error)) => Err(format!("asking {address}: {error}")),
            Ok(Ok((status, bytes))) if status == 200 => Ok(bytes),
            Ok(Ok((status, _))) => Err(format!("{address} answers {status}")),
        }
    }
}

/// As many scrapes as `connections` connections can do in `length`. What is under way then is waited for and counted.
pub(crate) fn scrape(
    address: SocketAddr,
    path: &str,
    connections: usize,
    length: Duration,
) -> Result<Figures, String> {
    runtime().block_on(async {
        let mut open = Vec::new();
        for _ in 0..connections {
            let mut connection = Connection::open(address, path).await?;
            connection.get().await?;
            open.push(connection);
        }
        let started = Instant::now();
        let tasks: Vec<_> = open
            .into_iter()
            .map(|mut connection| {
                tokio::spawn(async move {
                    let (mut latencies, mut bytes) = (Vec::new(), 0);
                    while started.elapsed() < length {
                        let asked = Instant::now();
                        bytes = connection.get().await?;
                        latencies.push(asked.elapsed());
                    }
                    Ok::<_, String>((latencies, bytes))
                })
            })
            .collect();
        let mut all = Figures { latencies: Vec::new(), elapsed: Duration::ZERO, bytes: 0 };
        for task in tasks {
            let (latencies, bytes) = task.await.map_err(|error| error.to_string())??;
            all.latencies.extend(latencies);
            all.bytes = bytes;
        }
        all.elapsed = started.elapsed();
        Ok(all)
    })
}

/// One scrape of each in turn, `rounds` times, with a pause after each, so that a body which is kept for a while
/// is never handed out again. In the order of `addresses`.
pub(crate) fn paced(
    addresses: &[SocketAddr],
    path: &str,
    rounds: usize,
    pause: Duration,
) -> Result<Vec<Vec<Duration>>, String> {
    runtime().block_on(async {
        let mut open = Vec::new();
        for address in addresses {
            let mut connection = Connection::open(*address, path).await?;
            connection.get().await?;
            open.push(connection);
        }
        let mut latencies = vec![Vec::new(); addresses.len()];
        for _ in 0..rounds {
            for (connection, latencies) in open.iter_mut().zip(&mut latencies) {
                tokio::time::sleep(pause).await;
                let asked = Instant::now();
                connection.get().await?;
                latencies.push(asked.elapsed());
            }
        }
        Ok(latencies)
    })
}

/// One thread: the load must leave the other core to the server.
fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}
