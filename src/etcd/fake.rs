//! A server that says what no healthy etcd says, for tests: HTTP/2 with answers written by hand.

use std::convert::Infallible;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Bytes;
use hyper::body::{Body, Frame, Incoming};
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};

/// What a call comes to: a message, or code and text of an error.
pub(crate) type Said = Result<Vec<u8>, (u8, &'static str)>;

/// Serves `answer`, which gets the name of the call (`Status`, `Range`, …) and the request, on
/// loopback. Returns the URL.
pub(crate) async fn serve(answer: impl Fn(&str, &[u8]) -> Said + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let answer = Arc::new(answer);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            talk(stream, Arc::clone(&answer));
        }
    });
    url
}

/// The same on a Unix socket.
pub(crate) fn serve_socket(
    path: &Path,
    answer: impl Fn(&str, &[u8]) -> Said + Send + Sync + 'static,
) {
    let listener = UnixListener::bind(path).unwrap();
    let answer = Arc::new(answer);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            talk(stream, Arc::clone(&answer));
        }
    });
}

fn talk(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    answer: Arc<impl Fn(&str, &[u8]) -> Said + Send + Sync + 'static>,
) {
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let answer = Arc::clone(&answer);
        async move {
            let call = request.uri().path().rsplit('/').next().unwrap().to_owned();
            let body = axum::body::Body::new(request.into_body());
            let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
            Ok::<_, Infallible>(response(answer(&call, &body[5..])))
        }
    });
    let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
}

fn response(said: Said) -> Response<Frames> {
    let mut trailers = HeaderMap::new();
    let mut frame = Vec::new();
    match said {
        Ok(message) => {
            frame.push(0);
            frame.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
            frame.extend(message);
            trailers.insert("grpc-status", 0.into());
        }
        Err((code, text)) => {
            trailers.insert("grpc-status", u16::from(code).into());
            trailers.insert("grpc-message", text.parse().unwrap());
        }
    }
    let body = Frames([Some(Frame::data(frame.into())), Some(Frame::trailers(trailers))]);
    Response::builder().header("content-type", "application/grpc").body(body).unwrap()
}

/// A message and the trailers behind it.
struct Frames([Option<Frame<Bytes>>; 2]);

impl Body for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.iter_mut().find_map(Option::take).map(Ok))
    }
}

/// A message made field by field.
#[derive(Default, Clone)]
pub(crate) struct Message(Vec<u8>);

impl Message {
    pub(crate) fn number(mut self, tag: u8, value: u64) -> Self {
        self.0.push(tag << 3);
        self.varint(value);
        self
    }

    pub(crate) fn bytes(mut self, tag: u8, value: &[u8]) -> Self {
        self.0.push(tag << 3 | 2);
        self.varint(value.len() as u64);
        self.0.extend(value);
        self
    }

    pub(crate) fn message(self, tag: u8, value: Self) -> Self {
        self.bytes(tag, &value.0)
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(u8::try_from(value & 0x7f).unwrap() | 0x80);
            value >>= 7;
        }
        self.0.push(u8::try_from(value).unwrap());
    }

    pub(crate) fn done(self) -> Vec<u8> {
        self.0
    }
}

/// A response with the header of member `member`.
pub(crate) fn from_member(member: u64) -> Message {
    Message::default()
        .message(1, Message::default().number(1, 77).number(2, member).number(3, 9).number(4, 2))
}
