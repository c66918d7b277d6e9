//! Asks a running agent how its node is.

use std::io;
use std::path::Path;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::unix_socket;

/// No answer is longer than this many bytes.
const ANSWER_BYTES: usize = 8 << 20;

/// Where the agent is.
#[derive(Debug, Clone, Copy)]
pub enum Agent<'a> {
    /// Its Unix socket.
    Socket(&'a Path),
    /// A host and a port.
    Port(&'a str, u16),
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum NoAnswer {
    /// Nobody listens there.
    #[error("{0}")]
    NoAgent(io::Error),
    /// It listens, but does not answer in time.
    #[error("does not answer within {0:?}")]
    Silent(Duration),
    /// It answers something else.
    #[error("answers {0}")]
    Other(String),
}

impl Agent<'_> {
    /// The body of this page.
    ///
    /// # Errors
    ///
    /// See [`NoAnswer`].
    pub async fn get(&self, page: &str, within: Duration) -> Result<Vec<u8>, NoAnswer> {
        let asked = async {
            match self {
                Self::Socket(path) => {
                    let stream = unix_socket::connect(path).await.map_err(NoAnswer::NoAgent)?;
                    get(stream, "localhost", page).await
                }
                Self::Port(host, port) => {
                    let stream =
                        TcpStream::connect((*host, *port)).await.map_err(NoAnswer::NoAgent)?;
                    get(stream, host, page).await
                }
            }
        };
        tokio::time::timeout(within, asked).await.unwrap_or(Err(NoAnswer::Silent(within)))
    }

    /// The body of this page, as JSON.
    ///
    /// # Errors
    ///
    /// See [`NoAnswer`].
    pub async fn json<T: DeserializeOwned>(
        &self,
        page: &str,
        within: Duration,
    ) -> Result<T, NoAnswer> {
        let body = self.get(page, within).await?;
        serde_json::from_slice(&body)
            .map_err(|error| NoAnswer::Other(format!("what this version does not read: {error}")))
    }
}

async fn get<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    host: &str,
    page: &str,
) -> Result<Vec<u8>, NoAnswer> {
    let other = |error: &dyn std::fmt::Display| NoAnswer::Other(format!("no HTTP: {error}"));
    let request = Request::get(page).header("host", host).body(Body::empty());
    let request = request.map_err(|error| other(&error))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| other(&error))?;
    let connection = tokio::spawn(connection);
    let answer = sender.send_request(request).await.map_err(|error| other(&error))?;
    let status = answer.status();
    if status != StatusCode::OK {
        return Err(NoAnswer::Other(status.to_string()));
    }
    let body = axum::body::to_bytes(Body::new(answer.into_body()), ANSWER_BYTES).await;
    connection.abort();
    Ok(body.map_err(|error| other(&error))?.to_vec())
}
