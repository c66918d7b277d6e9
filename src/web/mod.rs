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
mod room;
pub mod socket;
mod status;
mod timeline;
mod tls;
mod watched;

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
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot, watch};

use crate::host::Facts;
use crate::store::Store;
use body::Held;
use exposition::{Format, Negotiated};
use guests::{Guest, Guests};
use lock::Lock;
use patience::Patience;
pub use port::Port;
use room::Room;
use socket::Socket;
use watched::Watched;

/// A client that connects or begins a request, and has not sent all its headers by then, is cut off.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection without a request is closed after this, or when its place is wanted; scrape intervals of minutes reuse
/// theirs.
const IDLE_TIMEOUT: Duration = Duration::from_mins(5);
/// No request takes longer, and no client longer to take a part of its answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);
/// No more clients at a time; for one more the one goes that has been idle longest.
const CONNECTIONS: usize = 512;
/// No request has longer headers: with the most clients of a door that all send them without an end these are 8 MiB.
const HEADER_BYTES: usize = 16 << 10;
/// The same on HTTP/2, where each header counts 32 bytes more and is kept by itself before the end has come: a list of short
/// ones takes five times this, so 20 MiB with the most clients.
const HEADER_LIST: u32 = 8 << 10;
/// No more requests at a time on one connection of HTTP/2.
const STREAMS: u32 = 16;

/// How long open requests may go on when the agent stops.
const DRAIN: Duration = Duration::from_secs(1);

/// Asks for the configuration to be read again; the answer is the error's text.
pub type Reload = oneshot::Sender<Result<Pending, String>>;
/// Sections of the configuration with a change that waits for a restart.
pub type Pending = Vec<&'static str>;

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
    room: Option<Arc<Room>>,
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
        let room = (web.max_requests > 0).then(|| Room::new(web.max_requests));
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

/// Answers 503 when too many requests are under way. One is until its answer is on its way, or nobody takes it.
async fn few(room: Option<Arc<Room>>, request: Request, next: Next) -> Response {
    let Some(room) = room else { return next.run(request).await };
    match room.enter() {
        Some(place) => next.run(request).await.map(|body| Body::new(Held::new(body, place))),
        None => {
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
    const STOPPING: &str = "the agent is stopping\n";
    let (answer, answered) = oneshot::channel();
    // Nobody waits for room to wait: enough clients that do would leave none for others.
    if let Err(error) = app.reload.try_send(answer) {
        let why = match error {
            TrySendError::Full(_) => "a reload is under way; ask again when it is done\n",
            TrySendError::Closed(_) => STOPPING,
        };
        return (StatusCode::SERVICE_UNAVAILABLE, why.into());
    }
    match answered.await {
        Ok(Ok(pending)) if pending.is_empty() => (StatusCode::OK, "reloaded\n".into()),
        Ok(Ok(pending)) => {
            let sections = pending.join(", ");
            (StatusCode::OK, format!("reloaded, but changes of {sections} need a restart\n"))
        }
        Ok(Err(error)) => {
            (StatusCode::INTERNAL_SERVER_ERROR, format!("kept the old configuration: {error}\n"))
        }
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, STOPPING.into()),
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
                    Ok(Client { wire, http2: true }) => {
                        serve_http2(Watched::new(wire, &guest), router, &guest, stop).await;
                    }
                    Ok(Client { wire, http2: false }) => {
                        serve_http1(Watched::new(wire, &guest), router, &guest, stop).await;
                    }
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
    wire: Watched,
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
        async move {
            let answer = answer.await;
            // From here on it is the client that takes its time.
            drop(under_way);
            answer
        }
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
            // A request has come in just now. Its answer has its time, and who does not take it is cut off.
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(REQUEST_TIMEOUT + DRAIN, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
}

/// Here a connection carries several requests and talks between them, so it is the requests that are watched.
async fn serve_http2(
    wire: Watched,
    router: Router,
    guest: &Arc<Guest>,
    stop: watch::Receiver<bool>,
) {
    let pages = TowerToHyperService::new(router);
    let (busy, seen) = patience::busy();
    let asking = Arc::clone(guest);
    let service = service_fn(move |request| {
        let (begun, under_way) = (busy.begin(), asking.begin());
        let answer = pages.call(request);
        async move {
            let answer = answer.await;
            drop(under_way);
            answer.map(|answer| answer.map(|body| Held::new(body, begun)))
        }
    });
    let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(HEADER_LIST)
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
            // As on HTTP/1.
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(REQUEST_TIMEOUT + DRAIN, connection).await.unwrap_or(Ok(()))
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
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tower::ServiceExt;

    use super::*;

    /// A door through which clients of HTTP/2 come in.
    struct Hall(tokio::sync::Mutex<mpsc::Receiver<DuplexStream>>);

    impl Door for Hall {
        type Raw = DuplexStream;
        const STAY: Duration = Duration::MAX;

        async fn next(&self) -> std::io::Result<DuplexStream> {
            let next = self.0.lock().await.recv().await;
            next.ok_or_else(|| std::io::ErrorKind::NotConnected.into())
        }

        fn welcome(
            &self,
            raw: DuplexStream,
        ) -> impl Future<Output = std::io::Result<Client>> + Send + 'static {
            std::future::ready(Ok(Client { wire: Box::new(raw), http2: true }))
        }
    }

    /// An agent whose one page says that it is healthy.
    struct Served {
        door: mpsc::Sender<DuplexStream>,
        _stop: watch::Sender<bool>,
    }

    impl Served {
        fn start() -> Self {
            let (door, clients) = mpsc::channel(1);
            let (stop, stopped) = watch::channel(false);
            let pages = Router::new().route("/", get(async || "healthy\n"));
            tokio::spawn(serve(Hall(tokio::sync::Mutex::new(clients)), pages, stopped));
            Self { door, _stop: stop }
        }

        /// A client that has said who it is: its window for each answer is so many bytes.
        async fn connect(&self, window: u32) -> DuplexStream {
            let (mut client, server) = duplex(32 << 10);
            self.door.send(server).await.unwrap();
            let settings: [u8; 11] = [0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 4];
            let hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
            let all = [&hello[..], &settings[..], &window.to_be_bytes()[..]].concat();
            client.write_all(&all).await.unwrap();
            client
        }

        /// A client that has asked for the page.
        async fn ask(&self, window: u32) -> DuplexStream {
            let mut client = self.connect(window).await;
            let request = [0, 0, 6, HEADERS, 5, 0, 0, 0, 1, 0x82, 0x87, 0x84, 1, 1, b'x'];
            client.write_all(&request).await.unwrap();
            client
        }

        /// Clients that have asked, and whose windows are shut: they take no byte of the answer.
        async fn deaf(&self, number: usize) -> Vec<DuplexStream> {
            let mut all = Vec::new();
            for _ in 0..number {
                let mut client = self.ask(0).await;
                frame(&mut client, HEADERS).await.unwrap();
                all.push(client);
            }
            all
        }
    }

    /// Kinds of frames.
    const DATA: u8 = 0;
    const HEADERS: u8 = 1;
    const CONTINUATION: u8 = 9;

    /// The content of the next frame of this kind; none when the connection ends before.
    async fn frame(client: &mut DuplexStream, kind: u8) -> Option<Vec<u8>> {
        loop {
            let mut head = [0; 9];
            client.read_exact(&mut head).await.ok()?;
            let length = usize::from(u16::from_be_bytes([head[1], head[2]]));
            let mut content = vec![0; length];
            client.read_exact(&mut content).await.ok()?;
            if head[3] == kind {
                return Some(content);
            }
        }
    }

    /// Opens the window of the first request by so many bytes.
    async fn take(client: &mut DuplexStream, bytes: u8) {
        client.write_all(&[0, 0, 4, 8, 0, 0, 0, 0, 1, 0, 0, 0, bytes]).await.unwrap();
    }

    #[tokio::test]
    async fn clients_that_do_not_take_their_answers_lock_nobody_out() {
        let agent = Served::start();
        let mut deaf = agent.deaf(CONNECTIONS).await;
        let mut scrapers = Vec::new();
        for longest in &mut deaf[..20] {
            let mut scraper = agent.ask(1_000).await;
            assert_eq!(frame(&mut scraper, DATA).await.as_deref(), Some(&b"healthy\n"[..]));
            assert_eq!(frame(longest, DATA).await, None, "it has gone");
            scrapers.push(scraper);
        }
    }

    #[tokio::test]
    async fn an_answer_that_is_taken_slowly_is_not_cut_off_for_somebody_new() {
        let agent = Served::start();
        let mut slow = agent.deaf(1).await.remove(0);
        let mut deaf = agent.deaf(CONNECTIONS - 1).await;
        take(&mut slow, 1).await;
        assert_eq!(frame(&mut slow, DATA).await.as_deref(), Some(&b"h"[..]));
        let mut scraper = agent.ask(1_000).await;
        assert_eq!(frame(&mut scraper, DATA).await.as_deref(), Some(&b"healthy\n"[..]));
        assert_eq!(frame(&mut deaf[0], DATA).await, None);
        take(&mut slow, 100).await;
        assert_eq!(frame(&mut slow, DATA).await.as_deref(), Some(&b"ealthy\n"[..]));
    }

    #[tokio::test(start_paused = true)]
    async fn headers_without_an_end_are_cut_off_before_they_are_many() {
        let agent = Served::start();
        let started = tokio::time::Instant::now();
        let mut client = agent.connect(1_000).await;
        // One header whose value is a mebibyte long, in frames of 16,000 bytes of which none is the last.
        let begin = [0, 1, b'x', 0x7f, 0x81, 0xff, 0x3f];
        let mut sent = 0;
        for kind in [HEADERS].into_iter().chain([CONTINUATION; 4]) {
            let mut content = vec![b'a'; 16_000];
            if kind == HEADERS {
                content[..begin.len()].copy_from_slice(&begin);
            }
            let head = [0, 0x3e, 0x80, kind, 0, 0, 0, 0, 1];
            let frame = [&head[..], &content[..]].concat();
            if client.write_all(&frame).await.is_err() {
                break;
            }
            sent += 1;
        }
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).await.unwrap();
        assert!(sent < 5, "all was taken in");
        assert!(started.elapsed() < HEADER_TIMEOUT / 2, "{:?}", started.elapsed());
    }

    #[tokio::test]
    async fn one_request_too_many_is_told_so_and_a_place_is_free_when_an_answer_has_been_read() {
        let room = Some(Room::new(2));
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
