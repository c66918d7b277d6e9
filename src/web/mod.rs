//! HTTP: figures, status, health, reload. Every answer comes from memory.

mod body;
mod config;
pub mod exposition;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod guests;
pub mod lock;
mod password;
mod patience;
mod port;
pub mod socket;
mod status;
mod timeline;
mod tls;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::header::{
    ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, VARY,
};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use prometheus_client::registry::Registry;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use crate::host::Facts;
use crate::store::Store;
use body::Held;
use exposition::{Format, Negotiated};
use guests::{Guest, Guests};
use lock::Lock;
use patience::Patience;
pub use port::Port;
use socket::Socket;

/// A client that connects or begins a request, and has not sent all its headers by then, is cut off.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection without a request is closed after this, or when its place is wanted; scrape intervals of minutes reuse
/// theirs.
const IDLE_TIMEOUT: Duration = Duration::from_mins(5);
/// No request takes longer, and no client longer to take a part of its answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);
/// No more clients at a time; for one more the one goes that has been idle longest.
const CONNECTIONS: usize = 512;
/// No request has longer headers: with the most clients these are 32 MiB.
const HEADER_BYTES: usize = 64 << 10;
/// No more requests at a time on one connection of HTTP/2.
const STREAMS: u32 = 16;

/// How long open requests may go on when the agent stops.
const DRAIN: Duration = Duration::from_secs(1);

/// Asks for the configuration to be read again; the answer is the error's text.
pub type Reload = oneshot::Sender<Result<(), String>>;

/// What the pages are made from.
#[derive(Debug, Clone)]
pub struct App {
    /// The figures.
    pub store: Arc<Store>,
    /// The registry that holds the store as its only collector.
    pub registry: Arc<Registry>,
    /// What detection found.
    pub facts: watch::Receiver<Arc<Facts>>,
    /// Where to ask for a reload.
    pub reload: mpsc::Sender<Reload>,
    /// The path of the figures.
    pub telemetry_path: String,
    /// Room for requests to the pages that cost something; none for any number.
    room: Option<Arc<Semaphore>>,
    ready: Arc<AtomicBool>,
}

impl App {
    /// The pages of this store.
    pub fn new(
        store: Arc<Store>,
        facts: watch::Receiver<Arc<Facts>>,
        reload: mpsc::Sender<Reload>,
        web: &crate::config::Web,
    ) -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Arc::clone(&store)));
        let (registry, ready) = (Arc::new(registry), Arc::default());
        let telemetry_path = web.telemetry_path.clone();
        let room = (web.max_requests > 0).then(|| Arc::new(Semaphore::new(web.max_requests)));
        Self { store, registry, facts, reload, telemetry_path, room, ready }
    }

    /// Whether the first round of samples is done; once it is, it stays so.
    fn is_ready(&self) -> bool {
        if self.ready.load(Ordering::Relaxed) {
            return true;
        }
        let ready = self.store.statuses().first_round_done();
        if ready {
            self.ready.store(true, Ordering::Relaxed);
        }
        ready
    }
}

/// The paths of all pages but the figures.
pub const PAGES: [&str; 6] =
    ["/", "/api/v1/status", "/api/v1/timeline", "/-/healthy", "/-/ready", "/-/reload"];

/// All pages.
pub fn router(app: App) -> Router {
    let path = app.telemetry_path.clone();
    let [page, json, events, healthy, is_ready, reloads] = PAGES;
    let room = app.room.clone();
    Router::new()
        .route(&path, get(metrics))
        .route(page, get(status::page))
        .route(json, get(status::json))
        .route(events, get(timeline::json))
        .route_layer(axum::middleware::from_fn(move |request, next| {
            few(room.clone(), request, next)
        }))
        .route(healthy, get(async || "healthy\n"))
        .route(is_ready, get(ready))
        .route(reloads, post(reload))
        .with_state(app)
}

/// The same pages behind a lock, which also answers for paths that are no page.
pub fn locked(router: Router, lock: &Arc<Lock>) -> Router {
    let lock = Arc::clone(lock);
    router.layer(axum::middleware::from_fn(move |request, next| {
        Arc::clone(&lock).guard(request, next)
    }))
}

/// Answers 503 when too many requests are under way. One is until its answer is on its way as a whole.
async fn few(room: Option<Arc<Semaphore>>, request: Request, next: Next) -> Response {
    let Some(room) = room else { return next.run(request).await };
    match room.try_acquire_owned() {
        Ok(place) => next.run(request).await.map(|body| Body::new(Held::new(body, place))),
        Err(_) => {
            let text = "too many requests at a time (web.max_requests); try again later\n";
            (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
        }
    }
}

/// What the Unix socket serves: the pages that change nothing and that a check, or a person, asks for.
pub fn local_router(app: App) -> Router {
    let [_, json, events, healthy, ..] = PAGES;
    Router::new()
        .route(json, get(status::json))
        .route(events, get(timeline::json))
        .route(healthy, get(async || "healthy\n"))
        .with_state(app)
}

async fn metrics(State(app): State<App>, headers: HeaderMap) -> Response {
    let header = |name: HeaderName| {
        headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    };
    let negotiated = Negotiated::from_accept(header(ACCEPT));
    let gzip = exposition::accepts_gzip(header(ACCEPT_ENCODING));
    let key = match (negotiated.format, gzip) {
        (Format::Text, false) => "text",
        (Format::Text, true) => "text gzip",
        (Format::OpenMetrics, false) => "openmetrics",
        (Format::OpenMetrics, true) => "openmetrics gzip",
        (Format::Protobuf, false) => "protobuf",
        (Format::Protobuf, true) => "protobuf gzip",
    };
    let render = || exposition::render(&app.registry, negotiated.format, gzip);
    match app.store.body(key, render) {
        Ok(body) => {
            let mut response = body.into_response();
            let out = response.headers_mut();
            if let Ok(value) = negotiated.content_type().parse() {
                out.insert(CONTENT_TYPE, value);
            }
            out.insert(
                VARY,
                const { axum::http::HeaderValue::from_static("Accept, Accept-Encoding") },
            );
            if gzip {
                out.insert(
                    CONTENT_ENCODING,
                    const { axum::http::HeaderValue::from_static("gzip") },
                );
            }
            response
        }
        Err(error) => {
            tracing::error!(%error, "the figures cannot be rendered");
            (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response()
        }
    }
}

async fn ready(State(app): State<App>) -> (StatusCode, &'static str) {
    if app.is_ready() {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "the first round of samples is not done yet\n")
    }
}

async fn reload(State(app): State<App>) -> (StatusCode, String) {
    let (answer, answered) = oneshot::channel();
    if app.reload.send(answer).await.is_err() {
        return (StatusCode::SERVICE_UNAVAILABLE, "the agent is stopping\n".into());
    }
    match answered.await {
        Ok(Ok(())) => (StatusCode::OK, "reloaded\n".into()),
        Ok(Err(error)) => {
            (StatusCode::INTERNAL_SERVER_ERROR, format!("kept the old configuration: {error}\n"))
        }
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "the agent is stopping\n".into()),
    }
}

/// Ends a request that takes too long.
async fn bounded(request: Request, next: Next) -> Response {
    match tokio::time::timeout(REQUEST_TIMEOUT, next.run(request)).await {
        Ok(response) => response,
        Err(_) => StatusCode::GATEWAY_TIMEOUT.into_response(),
    }
}

/// What a client is talked to on.
pub trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Wire for T {}

/// A client that can be served.
pub struct Client {
    wire: Box<dyn Wire>,
    http2: bool,
}

/// Where clients come in.
pub trait Door: Send + Sync + 'static {
    /// What a client comes in on.
    type Raw: Send + 'static;

    /// The next client.
    fn next(&self) -> impl Future<Output = std::io::Result<Self::Raw>> + Send;

    /// What comes before HTTP. It may wait for the client, but does not for ever.
    fn welcome(
        &self,
        raw: Self::Raw,
    ) -> impl Future<Output = std::io::Result<Client>> + Send + 'static;

    /// How long a client may stay, where the kernel does not see that it has stopped reading.
    const STAY: Duration;
}

impl Door for Socket {
    type Raw = tokio::net::UnixStream;
    const STAY: Duration = REQUEST_TIMEOUT;

    async fn next(&self) -> std::io::Result<tokio::net::UnixStream> {
        Ok(self.listener.accept().await?.0)
    }

    fn welcome(
        &self,
        raw: Self::Raw,
    ) -> impl Future<Output = std::io::Result<Client>> + Send + 'static {
        std::future::ready(Ok(Client { wire: Box::new(raw), http2: false }))
    }
}

/// Serves the pages at `door` until `stop` turns true, then lets open requests end for a second.
pub async fn serve<D: Door>(door: D, router: Router, mut stop: watch::Receiver<bool>) {
    let guests = Guests::new(CONNECTIONS);
    let router = router.layer(axum::middleware::from_fn(bounded));
    loop {
        let accepted = tokio::select! {
            accepted = door.next() => accepted,
            _ = stop.wait_for(|stop| *stop) => break,
        };
        let stream = match accepted {
            Ok(stream) => stream,
            Err(error) => {
                // Out of descriptors, usually: the clients that are there must go first.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Some(guest) = guests.admit().await else {
            // Closing at once is the plainest way to say that there are too many.
            drop(stream);
            continue;
        };
        let welcomed = door.welcome(stream);
        let (router, stop) = (router.clone(), stop.clone());
        tokio::spawn(async move {
            let served = async {
                let client = tokio::select! {
                    client = welcomed => client,
                    () = guest.wanted() => return,
                };
                // A client that goes away, or speaks something else, is nobody's news.
                match client {
                    Ok(client) if client.http2 => {
                        serve_http2(client.wire, router, &guest, stop).await;
                    }
                    Ok(client) => serve_http1(client.wire, router, &guest, stop).await,
                    Err(error) => tracing::debug!(%error, "a client was not let in"),
                }
            };
            if tokio::time::timeout(D::STAY, served).await.is_err() {
                tracing::debug!("a client has stayed too long");
            }
        });
    }
    // Idle connections close at once; answers on their way get a moment.
    drop(tokio::time::timeout(DRAIN, guests.gone()).await);
}

async fn serve_http1(
    wire: Box<dyn Wire>,
    router: Router,
    guest: &Arc<Guest>,
    stop: watch::Receiver<bool>,
) {
    let (stream, begun) = Patience::new(wire, HEADER_TIMEOUT);
    let pages = TowerToHyperService::new(router);
    let asking = Arc::clone(guest);
    let service = service_fn(move |request| {
        begun.done();
        let under_way = asking.begin();
        let answer = pages.call(request);
        async move { answer.await.map(|answer| answer.map(|body| Held::new(body, under_way))) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_TIMEOUT)
        .max_buf_size(HEADER_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stopped(stop) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
        () = guest.wanted() => {
            if !guest.is_busy() {
                return;
            }
            // A request has come in just now.
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
}

/// Here a connection carries several requests and talks between them, so it is the requests that are watched.
async fn serve_http2(
    wire: Box<dyn Wire>,
    router: Router,
    guest: &Arc<Guest>,
    stop: watch::Receiver<bool>,
) {
    let pages = TowerToHyperService::new(router);
    let (busy, seen) = patience::busy();
    let asking = Arc::clone(guest);
    let service = service_fn(move |request| {
        let begun = (busy.begin(), asking.begin());
        let answer = pages.call(request);
        async move { answer.await.map(|answer| answer.map(|body| Held::new(body, begun))) }
    });
    let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(u32::try_from(HEADER_BYTES).unwrap_or(u32::MAX))
        .serve_connection(TokioIo::new(wire), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = seen.enough(HEADER_TIMEOUT, IDLE_TIMEOUT, REQUEST_TIMEOUT * 2) => {
            connection.as_mut().graceful_shutdown();
            // Whoever does not take the news is cut off.
            tokio::time::timeout(DRAIN, connection).await.unwrap_or(Ok(()))
        }
        () = guest.wanted() => {
            if !guest.is_busy() {
                return;
            }
            connection.as_mut().graceful_shutdown();
            connection.await
        }
        () = stopped(stop) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
}

async fn stopped(mut stop: watch::Receiver<bool>) {
    // The sender is gone only when the agent is.
    drop(stop.wait_for(|stop| *stop).await);
}

#[cfg(test)]
mod tests {
    use tower::ServiceExt;

    use super::*;

    #[tokio::test]
    async fn one_request_too_many_is_told_so_and_a_place_is_free_when_an_answer_has_been_read() {
        let room = Arc::new(Semaphore::new(2));
        let room = Some(room);
        let pages = Router::new().route("/", get(async || "figures")).route_layer(
            axum::middleware::from_fn(move |request, next| few(room.clone(), request, next)),
        );
        let ask = || pages.clone().oneshot(Request::new(Body::empty()));
        let (first, second) = (ask().await.unwrap(), ask().await.unwrap());
        assert_eq!((first.status(), second.status()), (StatusCode::OK, StatusCode::OK));
        assert_eq!(ask().await.unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
        let text = axum::body::to_bytes(second.into_body(), 100).await.unwrap();
        assert_eq!(text, "figures");
        assert_eq!(ask().await.unwrap().status(), StatusCode::OK);
        drop(first);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_takes_too_long_is_answered_all_the_same() {
        let slow = Router::new()
            .route("/", get(std::future::pending::<()>))
            .layer(axum::middleware::from_fn(bounded));
        let request = Request::new(Body::empty());
        let answer = tokio::time::timeout(REQUEST_TIMEOUT * 2, slow.oneshot(request)).await;
        assert_eq!(answer.unwrap().unwrap().status(), StatusCode::GATEWAY_TIMEOUT);
    }
}
