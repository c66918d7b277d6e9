//! HTTP: figures, status, health, reload. Every answer comes from memory.

pub mod exposition;
mod patience;
mod status;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::{
    ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, VARY,
};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use crate::host::Facts;
use crate::store::Store;
use exposition::{Format, Negotiated};
use patience::Patience;

/// A client that connects or begins a request, and has not sent all its headers by then, is cut off.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection without a request is closed after this; scrape intervals of minutes reuse theirs.
const IDLE_TIMEOUT: Duration = Duration::from_mins(5);
/// No request takes longer, and no client longer to take a part of its answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);
/// No more clients at a time.
const CONNECTIONS: usize = 512;

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
    ready: Arc<AtomicBool>,
}

impl App {
    /// The pages of this store.
    pub fn new(
        store: Arc<Store>,
        facts: watch::Receiver<Arc<Facts>>,
        reload: mpsc::Sender<Reload>,
        telemetry_path: String,
    ) -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Arc::clone(&store)));
        let ready = Arc::default();
        Self { store, registry: Arc::new(registry), facts, reload, telemetry_path, ready }
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
pub const PAGES: [&str; 5] = ["/", "/api/v1/status", "/-/healthy", "/-/ready", "/-/reload"];

/// All pages.
pub fn router(app: App) -> Router {
    let path = app.telemetry_path.clone();
    let [page, json, healthy, is_ready, reloads] = PAGES;
    Router::new()
        .route(&path, get(metrics))
        .route(page, get(status::page))
        .route(json, get(status::json))
        .route(healthy, get(async || "healthy\n"))
        .route(is_ready, get(ready))
        .route(reloads, post(reload))
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
async fn bounded(request: axum::extract::Request, next: axum::middleware::Next) -> Response {
    match tokio::time::timeout(REQUEST_TIMEOUT, next.run(request)).await {
        Ok(response) => response,
        Err(_) => StatusCode::GATEWAY_TIMEOUT.into_response(),
    }
}

/// Serves the pages on `listener` until `stop` turns true, then lets open requests end for a second.
pub async fn serve(listener: TcpListener, router: Router, mut stop: watch::Receiver<bool>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let router = router.layer(axum::middleware::from_fn(bounded));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.wait_for(|stop| *stop) => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, usually: the clients that are there must go first.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(room) = Arc::clone(&room).try_acquire_owned() else {
            // Closing at once is the plainest way to say that there are too many.
            drop(stream);
            continue;
        };
        let mut stop = stop.clone();
        let unread = u32::try_from(REQUEST_TIMEOUT.as_millis()).unwrap_or(u32::MAX);
        if let Err(error) = rustix::net::sockopt::set_tcp_user_timeout(&stream, unread) {
            tracing::debug!(%error, "a client that does not read may stay");
        }
        let (stream, begun) = Patience::new(stream, HEADER_TIMEOUT);
        let pages = TowerToHyperService::new(router.clone());
        let service = service_fn(move |request| {
            begun.done();
            pages.call(request)
        });
        tokio::spawn(async move {
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(IDLE_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service);
            tokio::pin!(connection);
            // A client that goes away, or sends no HTTP, is nobody's news.
            let stopping = async {
                // The sender is gone only when the agent is.
                drop(stop.wait_for(|stop| *stop).await);
            };
            let ended = tokio::select! {
                ended = connection.as_mut() => ended,
                () = stopping => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection ended early");
            }
            drop(room);
        });
    }
    // Idle connections close at once; answers on their way get a moment.
    let all = room.acquire_many(u32::try_from(CONNECTIONS).unwrap_or(u32::MAX));
    drop(tokio::time::timeout(DRAIN, all).await);
}

#[cfg(test)]
mod tests {
    use tower::ServiceExt;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_request_that_takes_too_long_is_answered_all_the_same() {
        let slow = Router::new()
            .route("/", get(std::future::pending::<()>))
            .layer(axum::middleware::from_fn(bounded));
        let request = axum::extract::Request::new(axum::body::Body::empty());
        let answer = tokio::time::timeout(REQUEST_TIMEOUT * 2, slow.oneshot(request)).await;
        assert_eq!(answer.unwrap().unwrap().status(), StatusCode::GATEWAY_TIMEOUT);
    }
}
