//! Stands in front of a real etcd and adds members to the list that it gives. Everything else passes unchanged.

use axum::body::{Body, Bytes};
use hyper::body::{Body as _, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use tokio::net::{TcpListener, TcpStream};

type Error = Box<dyn std::error::Error + Send + Sync>;

/// A port without TLS. Closed when dropped.
pub(super) struct Front {
    port: u16,
    noise: Arc<AtomicUsize>,
    _runtime: tokio::runtime::Runtime,
}

impl Front {
    /// Before an etcd on this port.
    pub(super) fn before(member: u16) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let listener = runtime.block_on(TcpListener::bind(("127.0.0.1", 0))).expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let noise = Arc::new(AtomicUsize::new(0));
        let shared = Arc::clone(&noise);
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let noise = Arc::clone(&shared);
                let answer = service_fn(move |request| {
                    let noise = noise.load(Ordering::SeqCst);
                    async move { forward(member, request, noise).await }
                });
                let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                tokio::spawn(server.serve_connection(TokioIo::new(stream), answer));
            }
        });
        Self { port, noise, _runtime: runtime }
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// So many members are added from now on.
    pub(super) fn set_noise(&self, members: usize) {
        self.noise.store(members, Ordering::SeqCst);
    }
}

async fn forward(
    member: u16,
    request: Request<Incoming>,
    noise: usize,
) -> Result<Response<Body>, Error> {
    let lists = request.uri().path().ends_with("/MemberList");
    let stream = TcpStream::connect(("127.0.0.1", member)).await?;
    let client = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut client, connection) = client.await?;
    tokio::spawn(connection);
    let (head, body) = client.send_request(request).await?.into_parts();
    let body = if lists && noise > 0 { grown(body, noise).await? } else { Body::new(body) };
    Ok(Response::from_parts(head, body))
}

/// The same list with so many more members.
async fn grown(mut body: Incoming, noise: usize) -> Result<Body, Error> {
    let (mut message, mut trailers) = (Vec::new(), None);
    while let Some(frame) =
        std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await
    {
        match frame?.into_data() {
            Ok(data) => message.extend_from_slice(&data),
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    // An error is told without a message.
    if message.len() >= 5 {
        for number in 0..noise {
            let member = member(number);
            // Field 2, `members`.
            message.push(0x12);
            message.extend(varint(member.len() as u64));
            message.extend(member);
        }
        let length = u32::try_from(message.len() - 5)?;
        message[1..5].copy_from_slice(&length.to_be_bytes());
    }
    let mut frames = VecDeque::from([Frame::data(Bytes::from(message))]);
    frames.extend(trailers.map(Frame::trailers));
    Ok(Body::new(Frames(frames)))
}

/// A learner of which every second has been started, at an address where nobody is.
fn member(number: usize) -> Vec<u8> {
    let host = format!("127.77.{}.{}", number / 250, number % 250 + 1);
    let mut fields = vec![0x08];
    fields.extend(varint(0x7000_0000_0000_0000 + number as u64));
    let mut text = |field: u8, text: &str| {
        fields.push(field);
        fields.extend(varint(text.len() as u64));
        fields.extend(text.as_bytes());
    };
    if number.is_multiple_of(2) {
        text(0x12, &format!("noise-{number}"));
    }
    text(0x1a, &format!("http://{host}:2380"));
    if number.is_multiple_of(2) {
        text(0x22, &format!("http://{host}:2379"));
    }
    fields.extend([0x28, 1]);
    fields
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    bytes.push(value.to_le_bytes()[0]);
    bytes
}

struct Frames(VecDeque<Frame<Bytes>>);

impl hyper::body::Body for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.pop_front().map(Ok))
    }
}
