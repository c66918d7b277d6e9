//! One conversation with a member: connect, ask, close.
//!
//! A member shows what it is only within a deadline that covers everything, and answers one question after the other.
//! A connection is never kept: the server has no limit of its own for idle ones.

use std::io;
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, lookup_host};

use super::wire::{self, Answer, Request};
use crate::etcd::connector::Stream;
use crate::etcd::{Reason, TlsFiles};

/// A farewell takes no longer; it keeps errors out of the server's log.
const FAREWELL: Duration = Duration::from_millis(200);
/// The code of a server that is not the leader, or no longer.
const NO_LEADER: [u64; 2] = [10_250, 10_506];

/// Why something failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The word for it.
    pub reason: Reason,
    /// The same for a person.
    pub text: String,
    /// Whether it is the member's own word.
    pub answered: bool,
}

impl Failure {
    fn new(reason: Reason, text: impl Into<String>) -> Self {
        Self { reason, text: text.into(), answered: false }
    }
}

/// One step and what came of it.
#[derive(Debug, Clone)]
pub struct Step<T> {
    /// How long it took.
    pub took: Duration,
    /// What came of it.
    pub result: Result<T, Failure>,
}

/// What became of a conversation.
#[derive(Debug, Clone)]
pub struct Conversation {
    /// Connecting, with TLS.
    pub connected: Step<()>,
    /// The questions that were asked, in order; after one that failed no other was.
    pub asked: Vec<(Request, Step<Answer>)>,
}

impl Conversation {
    /// Whether the member answered any question, if only to refuse it.
    pub fn up(&self) -> bool {
        let answered =
            |result: &Result<_, Failure>| result.as_ref().map_or_else(|f| f.answered, |_| true);
        self.asked.iter().any(|(_, step)| answered(&step.result))
    }

    /// The answers.
    pub fn answers(&self) -> impl Iterator<Item = &Answer> {
        self.asked.iter().filter_map(|(_, step)| step.result.as_ref().ok())
    }

    /// What failed, if anything did.
    pub fn failure(&self) -> Option<&Failure> {
        let asked = self.asked.iter().find_map(|(_, step)| step.result.as_ref().err());
        self.connected.result.as_ref().err().or(asked)
    }
}

/// Asks the member at `address` (`host:port`) these questions, all within `deadline`.
pub async fn converse(
    address: &str,
    tls: Option<&TlsFiles>,
    requests: &[Request],
    deadline: Duration,
) -> Conversation {
    let started = Instant::now();
    let late = |what, reason| Failure::new(reason, format!("no {what} within {deadline:?}"));
    let mut stage = "connection";
    let dialled = tokio::time::timeout(deadline, dial(address, tls, &mut stage)).await;
    let dialled = dialled.unwrap_or_else(|_| {
        let reason = if stage == "TLS handshake" { Reason::TlsTimeout } else { Reason::Timeout };
        Err(late(stage, reason))
    });
    let took = started.elapsed();
    let mut stream = match dialled {
        Ok(stream) => stream,
        Err(failure) => {
            return Conversation {
                connected: Step { took, result: Err(failure) },
                asked: Vec::new(),
            };
        }
    };
    let mut asked = Vec::new();
    for (n, request) in requests.iter().enumerate() {
        let asked_at = Instant::now();
        let left = deadline.saturating_sub(started.elapsed());
        let answer = tokio::time::timeout(left, ask(&mut stream, n == 0, *request)).await;
        let result = answer.unwrap_or_else(|_| Err(late("answer", Reason::Timeout)));
        // What is left of a late answer would be taken for the next one's.
        let ended = result.is_err();
        asked.push((*request, Step { took: asked_at.elapsed(), result }));
        if ended {
            break;
        }
    }
    drop(tokio::time::timeout(FAREWELL, stream.shutdown()).await);
    Conversation { connected: Step { took, result: Ok(()) }, asked }
}

async fn dial(
    address: &str,
    tls: Option<&TlsFiles>,
    stage: &mut &'static str,
) -> Result<Box<dyn Stream>, Failure> {
    let addresses = lookup_host(address).await.map_err(|error| {
        Failure::new(Reason::of_resolving(&error), format!("resolving {address}: {error}"))
    })?;
    let addresses: Vec<_> = addresses.collect();
    let stream = TcpStream::connect(&*addresses).await.map_err(|e| failed("connecting", &e))?;
    stream.set_nodelay(true).map_err(|e| failed("connecting", &e))?;
    let Some(tls) = tls else { return Ok(Box::new(stream)) };
    let config = tls
        .config()
        .await
        .map_err(|problem| Failure::new(Reason::TlsConfig, problem.to_string()))?;
    *stage = "TLS handshake";
    let peer = stream.peer_addr().map_err(|e| failed("connecting", &e))?;
    // The certificate is compared as a whole, so any name will do.
    let name = ServerName::IpAddress(peer.ip().into());
    let stream = tokio_rustls::TlsConnector::from(config).connect(name, stream).await;
    let stream = stream.map_err(|error| {
        let reason = match Reason::of_io(&error) {
            Some(Reason::Reset) | None => Reason::Tls,
            Some(reason) => reason,
        };
        Failure::new(reason, format!("TLS handshake: {error}"))
    })?;
    Ok(Box::new(stream))
}

async fn ask(
    stream: &mut Box<dyn Stream>,
    is_first: bool,
    request: Request,
) -> Result<Answer, Failure> {
    let mut message = Vec::new();
    if is_first {
        message.extend(wire::HELLO);
    }
    message.extend(request.message());
    let io = |error: io::Error| failed(request.as_str(), &error);
    stream.write_all(&message).await.map_err(io)?;
    stream.flush().await.map_err(io)?;
    let mut header = [0; wire::HEADER];
    stream.read_exact(&mut header).await.map_err(io)?;
    let garbage = |error: super::Malformed| Failure::new(Reason::Other, error.to_string());
    let (length, kind) = wire::header(header).map_err(garbage)?;
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.map_err(io)?;
    match wire::answer(request, kind, &body).map_err(garbage)? {
        Answer::Failure(code, text) => Err(Failure {
            reason: if NO_LEADER.contains(&code) { Reason::NoLeader } else { Reason::Other },
            text: format!("{text} (code {code})"),
            answered: true,
        }),
        answer => Ok(answer),
    }
}

fn failed(what: &str, error: &io::Error) -> Failure {
    let reason = Reason::of_io(error).unwrap_or(Reason::Other);
    Failure::new(reason, format!("{what}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dqlite::Role;
    use tokio::net::TcpListener;

    /// A server that takes one connection, reads `n` bytes and says `answer`, for each pair; what it read, all in all.
    async fn server(script: Vec<(usize, Vec<u8>)>) -> (String, tokio::task::JoinHandle<Vec<u8>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let task = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut read = Vec::new();
            for (n, answer) in script {
                let mut bytes = vec![0; n];
                stream.read_exact(&mut bytes).await.unwrap();
                read.extend(bytes);
                stream.write_all(&answer).await.unwrap();
            }
            stream.read_to_end(&mut read).await.unwrap();
            read
        });
        (address, task)
    }

    fn leader(id: u64) -> Vec<u8> {
        [&[2, 0, 0, 0, 1, 0, 0, 0], &id.to_le_bytes()[..], &[0; 8]].concat()
    }

    fn cluster() -> Vec<u8> {
        let head = [4, 0, 0, 0, 3, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0];
        [&head[..], b"h:19001\0", &[1, 0, 0, 0, 0, 0, 0, 0]].concat()
    }

    const SHORT: Duration = Duration::from_millis(300);

    #[tokio::test]
    async fn questions_are_asked_one_after_the_other_and_nothing_else_is_sent() {
        let (address, server) = server(vec![(24, cluster()), (16, leader(7))]).await;
        let requests = [Request::Cluster, Request::Leader];
        let talked = converse(&address, None, &requests, SHORT).await;
        assert!(talked.up() && talked.failure().is_none());
        let answers: Vec<_> = talked.answers().cloned().collect();
        let Answer::Cluster(members) = &answers[0] else { panic!("{answers:?}") };
        assert_eq!((members[0].id, members[0].role), (7, Role::StandBy));
        assert_eq!(answers[1], Answer::Leader(Some(7)));
        let (cluster, leader) = (Request::Cluster.message(), Request::Leader.message());
        assert_eq!(server.await.unwrap(), [&wire::HELLO[..], &cluster, &leader].concat());
    }

    #[tokio::test]
    async fn after_a_question_that_fails_no_other_is_asked() {
        let refusal = [&[2, 0, 0, 0, 0, 0, 0, 0], &10_250_u64.to_le_bytes()[..], b"no\0\0\0\0\0\0"];
        let garbage = vec![0xff; 8];
        let cases = [
            (refusal.concat(), Reason::NoLeader),
            (garbage, Reason::Other),
            (leader(1), Reason::Other),
            (Vec::new(), Reason::Timeout),
        ];
        for (answer, reason) in cases {
            let (address, server) = server(vec![(24, answer)]).await;
            let requests = [Request::Cluster, Request::Leader];
            let talked = converse(&address, None, &requests, SHORT).await;
            assert_eq!(talked.failure().unwrap().reason, reason);
            let refused = reason == Reason::NoLeader;
            assert_eq!((talked.asked.len(), talked.up()), (1, refused));
            assert_eq!(server.await.unwrap().len(), 24);
        }
    }

    #[tokio::test]
    async fn a_port_that_is_closed_and_a_name_that_is_none_are_told_apart() {
        let reason = async |address: &str| {
            let talked = converse(address, None, &[Request::Leader], SHORT).await;
            talked.connected.result.unwrap_err().reason
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        assert_eq!(reason(&address).await, Reason::Refused);
        assert_eq!(reason("no address").await, Reason::Dns);
    }

    #[tokio::test]
    async fn a_server_that_takes_the_connection_and_hangs_costs_one_deadline() {
        let (address, server) = server(vec![(24, Vec::new())]).await;
        let started = Instant::now();
        let talked = converse(&address, None, &[Request::Leader; 3], SHORT).await;
        assert!(started.elapsed() < 3 * SHORT);
        assert_eq!(talked.failure().unwrap().text, "no answer within 300ms");
        drop(server);
    }
}
