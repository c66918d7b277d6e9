//! One request over HTTP/1.1: dialled anew each time, so that what is timed is the whole way, and what hangs is known.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use hyper::body::{Body, Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{HOST, USER_AGENT};
use hyper::{Request, Uri};

use crate::etcd::address::without_user;
use crate::etcd::connector::Connector;
use crate::etcd::{Address, Reason, TlsFiles};

/// Bytes of an answer that are read; a list of checks has some three thousand.
const MAX_BODY: usize = 64 << 10;
/// A body without content, which hyper writes as none.
type Nothing = axum::body::Body;

/// Where a request goes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Url {
    pub(super) address: Address,
    /// Path and query.
    pub(super) path: String,
    /// Host and port as they were written.
    authority: String,
}

impl Url {
    /// Reads `https://host:port/path`.
    ///
    /// # Errors
    ///
    /// A sentence that says what was expected, and repeats no password.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let wrong = || {
            let shown = without_user(text);
            format!(
                "{shown:?} is no URL such as https://127.0.0.1:6443/readyz, without user and password"
            )
        };
        let uri: Uri = text.parse().map_err(|_| wrong())?;
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err(wrong());
        };
        let port = authority.port_u16().unwrap_or(if scheme == "http" { 80 } else { 443 });
        let address = Address::parse(&format!("{scheme}://{}:{port}", authority.host()));
        if authority.as_str().contains('@') || !matches!(scheme, "http" | "https") {
            return Err(wrong());
        }
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        let address = address.map_err(|_| wrong())?;
        Ok(Self { address, path, authority: authority.as_str().to_owned() })
    }
}

/// What came back.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// Its beginning.
    pub(super) body: String,
}

/// Why nothing did.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) reason: Reason,
    /// The same for a person.
    pub(super) text: String,
}

impl Failure {
    /// No whole answer in time.
    pub(super) fn late(after: Duration) -> Self {
        Self { reason: Reason::Timeout, text: format!("no answer within {after:?}") }
    }

    fn of(what: &str, error: &hyper::Error) -> Self {
        let reason = Reason::of_chain(Some(error)).unwrap_or(Reason::Other);
        Self { reason, text: format!("{what}: {error}") }
    }
}

/// Asks for one page.
pub(super) struct Client {
    connector: Connector,
    path: String,
    authority: String,
}

impl Client {
    pub(super) fn new(
        url: &Url,
        path: &str,
        server_name: Option<&str>,
        tls: Arc<TlsFiles>,
        timeout: Duration,
    ) -> Self {
        let name = server_name.map(Into::into);
        let connector = Connector::new(url.address.clone(), name, tls, timeout).silent();
        Self { connector, path: path.to_owned(), authority: url.authority.clone() }
    }

    /// One request; redirects are not followed.
    pub(super) async fn get(&self) -> Result<Answer, Failure> {
        let stream = self.connector.dial().await;
        let stream = stream.map_err(|error| Failure { reason: error.reason, text: error.text })?;
        let (mut sender, connection) =
            http1::handshake(stream).await.map_err(|error| Failure::of("HTTP", &error))?;
        let mut connection = pin!(connection);
        let mut exchange = pin!(async move {
            let request = Request::get(&self.path)
                .header(HOST, &self.authority)
                .header(USER_AGENT, concat!("controlplane-exporter/", env!("CARGO_PKG_VERSION")))
                .body(Nothing::empty())
                .map_err(|error| Failure { reason: Reason::Other, text: error.to_string() })?;
            let answer = sender.send_request(request).await;
            let answer = answer.map_err(|error| Failure::of("asking", &error))?;
            let status = answer.status().as_u16();
            let body = read(answer.into_body()).await?;
            Ok(Answer { status, body })
        });
        // The connection is driven beside the exchange, and may end before its answer was taken.
        let mut ended = false;
        loop {
            tokio::select! {
                biased;
                done = &mut exchange => return done,
                _ = &mut connection, if !ended => ended = true,
            }
        }
    }
}

/// The beginning of a body.
async fn read(mut body: Incoming) -> Result<String, Failure> {
    let mut bytes = Vec::new();
    while bytes.len() < MAX_BODY {
        let frame = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await;
        let Some(frame) = frame else { break };
        let frame = frame.map_err(|error| Failure::of("reading the answer", &error))?;
        let data: Bytes = frame.into_data().unwrap_or_default();
        bytes.extend_from_slice(&data[..data.len().min(MAX_BODY - bytes.len())]);
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_taken_apart() {
        let url = Url::parse("https://lb.example:6443/healthz?a=b").unwrap();
        assert_eq!(url.address.to_string(), "https://lb.example:6443");
        assert_eq!(url.path, "/healthz?a=b");
        let url = Url::parse("http://[::1]").unwrap();
        assert_eq!((url.address.to_string().as_str(), url.path.as_str()), ("http://[::1]:80", "/"));
        assert_eq!(Url::parse("https://a").unwrap().address.port(), Some(443));
    }

    #[test]
    fn what_is_no_url_is_refused_without_its_password() {
        for text in ["", "lb:6443", "ftp://a/b", "/run/sock", "https://u:hunter2@lb/", "https://"] {
            let error = Url::parse(text).unwrap_err();
            assert!(error.contains("https://127.0.0.1:6443/readyz"), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
