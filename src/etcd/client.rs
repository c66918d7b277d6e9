//! The few calls the samplers need, each with a deadline of its own.
//!
//! A deadline around the whole call is the only one that holds: those of the library do not cover a
//! handshake with a hung member. One channel stays open between runs and reconnects by itself.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use etcd_client::{Channel, ConnectOptions, Error, GetOptions, GetResponse};
use etcd_client::{MemberListResponse, StatusResponse};
use tonic::transport::Endpoint;

use super::connector::{Connector, DialError};
use super::{Access, Address, Reason, TlsFiles};
use crate::sample::SampleError;

/// A key that nobody writes, for reads that only ask whether there is an answer.
pub const PROBE_KEY: &str = "/controlplane-exporter/probe";

/// Why a call failed.
#[derive(Debug, Clone)]
pub struct Failure {
    /// The word for it.
    pub reason: Reason,
    /// The same for a person.
    pub text: String,
    /// Whether an etcd answered, if only to refuse.
    pub answered: bool,
    /// Whether these are the words of whoever listens there, etcd or not.
    pub said: bool,
}

impl Failure {
    /// There was no answer within `after`.
    pub fn late(after: Duration) -> Self {
        let text = format!("no answer within {after:?}");
        Self { reason: Reason::Timeout, text, answered: false, said: false }
    }
}

/// What a call came to.
pub type Answer<T> = Result<T, Failure>;

/// An answer and how long it took.
#[derive(Debug)]
pub struct Timed<T> {
    /// The answer.
    pub answer: Answer<T>,
    /// How long it took.
    pub took: Duration,
}

impl<T> Timed<T> {
    /// Measures a call.
    pub async fn of(call: impl Future<Output = Answer<T>>) -> Self {
        let started = Instant::now();
        let answer = call.await;
        Self { answer, took: started.elapsed() }
    }

    /// Whether an etcd answered, if only to refuse.
    pub fn answered(&self) -> bool {
        self.answer.as_ref().map_or_else(|failure| failure.answered, |_| true)
    }

    /// Whether anything answered, if only with an error.
    pub fn said(&self) -> bool {
        self.answer.as_ref().map_or_else(|failure| failure.said, |_| true)
    }

    /// Why it failed, if it did.
    pub fn reason(&self) -> Option<Reason> {
        self.answer.as_ref().err().map(|failure| failure.reason)
    }
}

/// Whether a read may be answered from the member's own copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Consistency {
    /// From the member's own copy.
    Serializable,
    /// From the leader's; fails at once when the member knows none.
    Linearizable,
}

/// A client of one address.
pub struct Client {
    address: Address,
    connector: Arc<Connector>,
    timeout: Duration,
    /// Made at the first call, since it needs a runtime.
    open: tokio::sync::Mutex<Option<Arc<Open>>>,
}

/// Both over one channel. They take 26 kB, so they are made once and never moved: the agent's threads
/// have small stacks.
struct Open {
    any: Box<etcd_client::Client>,
    /// Its calls carry the demand that the member knows a leader.
    led: Box<etcd_client::Client>,
}

impl Client {
    /// A client whose every call ends within `timeout`.
    pub fn new(
        address: Address,
        server_name: Option<Arc<str>>,
        tls: Arc<TlsFiles>,
        timeout: Duration,
    ) -> Self {
        let connector = Arc::new(Connector::new(address.clone(), server_name, tls, timeout));
        Self { address, connector, timeout, open: tokio::sync::Mutex::default() }
    }

    /// One client for each address.
    pub fn all(access: &Access, timeout: Duration) -> Vec<Self> {
        let new = |address: &Address| {
            let tls = Arc::clone(&access.tls);
            Self::new(address.clone(), access.server_name.clone(), tls, timeout)
        };
        access.addresses.iter().map(new).collect()
    }

    /// Whom it talks to.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// What becomes of a run that this failure kept from asking at all, because the socket is closed to the agent's user or
    /// the agent has no descriptor left.
    pub fn closed(&self, failure: &Failure) -> Option<SampleError> {
        let error = match failure.reason {
            Reason::Permission => {
                SampleError::Permission(format!("{}: {}", self.address, failure.text))
            }
            Reason::Exhausted => SampleError::call(self.address.to_string(), &failure.text),
            _ => return None,
        };
        Some(SampleError::Blind(Box::new(error)))
    }

    /// How long a call may take.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Drops the connection, so that the next call makes a new one. After a time-out the old one may
    /// be dead without a word, and without keepalive it would stay so for minutes.
    pub async fn reset(&self) {
        *self.open.lock().await = None;
    }

    async fn open(&self) -> Result<Arc<Open>, Error> {
        let mut open = self.open.lock().await;
        if let Some(open) = &*open {
            return Ok(Arc::clone(open));
        }
        let connector = Arc::clone(&self.connector);
        let dial = move |_| {
            let connector = Arc::clone(&connector);
            async move { connector.dial().await }
        };
        let channel = Endpoint::from_shared(self.address.origin())?
            .user_agent(concat!("controlplane-exporter/", env!("CARGO_PKG_VERSION")))?
            .connect_with_connector_lazy(tower::service_fn(dial));
        let channel = Channel::Tonic(channel);
        let led = ConnectOptions::new().with_require_leader(true);
        let new = Arc::new(Open {
            any: client_over(channel.clone(), None).await?,
            led: client_over(channel, Some(led)).await?,
        });
        *open = Some(Arc::clone(&new));
        Ok(new)
    }

    /// The call is boxed: the library's futures take tens of kilobytes, too much for small stacks.
    async fn bounded<T>(
        &self,
        call: Pin<Box<impl Future<Output = Result<T, Error>>>>,
    ) -> Answer<T> {
        match tokio::time::timeout(self.timeout, call).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(failure(&error)),
            Err(_) => Err(Failure::late(self.timeout)),
        }
    }

    /// The member's status; it hangs while the member's backend is blocked.
    ///
    /// # Errors
    ///
    /// See [`Failure`].
    pub async fn status(&self) -> Answer<StatusResponse> {
        self.bounded(Box::pin(async { self.open().await?.any.maintenance_client().status().await }))
            .await
    }

    /// The member list as this member knows it; it needs neither backend nor quorum.
    ///
    /// # Errors
    ///
    /// See [`Failure`].
    pub async fn member_list(&self) -> Answer<MemberListResponse> {
        self.bounded(Box::pin(async {
            self.open().await?.any.cluster_client().member_list().await
        }))
        .await
    }

    /// Reads `key`, or the range that `options` opens.
    ///
    /// # Errors
    ///
    /// See [`Failure`].
    pub async fn get(
        &self,
        key: impl Into<Vec<u8>>,
        options: GetOptions,
        consistency: Consistency,
    ) -> Answer<GetResponse> {
        self.bounded(Box::pin(async {
            let open = self.open().await?;
            let (mut kv, options) = match consistency {
                Consistency::Serializable => (open.any.kv_client(), options.with_serializable()),
                Consistency::Linearizable => (open.led.kv_client(), options),
            };
            kv.get(key, Some(options)).await
        }))
        .await
    }

    /// How many keys there are from `from` up to `to`, without moving any of them; and whether it
    /// is an etcd that answered: kine and k8s-dqlite name no cluster.
    ///
    /// # Errors
    ///
    /// See [`Failure`].
    pub async fn count(
        &self,
        from: &[u8],
        to: &[u8],
        consistency: Consistency,
    ) -> Answer<(u64, bool)> {
        let options = GetOptions::new().with_range(to).with_count_only();
        let answer = self.get(from, options, consistency).await?;
        let is_etcd = answer.header().is_some_and(|header| header.cluster_id() != 0);
        Ok((u64::try_from(answer.count()).unwrap_or(0), is_etcd))
    }
}

async fn client_over(
    channel: Channel,
    options: Option<ConnectOptions>,
) -> Result<Box<etcd_client::Client>, Error> {
    let client = Box::pin(etcd_client::Client::from_channel(channel, options)).await?;
    Ok(Box::new(client))
}

fn failure(error: &Error) -> Failure {
    let Error::GRpcStatus(status) = error else {
        let text = error.to_string();
        return Failure { reason: Reason::Other, text, answered: false, said: false };
    };
    let reason = Reason::of(status);
    // What the transport failed at has a source; what a server said has none. A call that the transport gave up has neither.
    let said =
        std::error::Error::source(status).is_none() && status.code() != tonic::Code::Cancelled;
    let answered = said
        && (status.message().contains("etcdserver:")
            || !matches!(reason, Reason::Other | Reason::Timeout));
    Failure { reason, text: describe(status), answered, said }
}

fn describe(status: &tonic::Status) -> String {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if let Some(dial) = error.downcast_ref::<DialError>() {
            return dial.to_string();
        }
        source = error.source();
    }
    status.message().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Host;
    use tonic::Status;

    fn of(status: Status) -> Failure {
        failure(&Error::GRpcStatus(status))
    }

    #[test]
    fn a_refusal_of_an_etcd_is_an_answer_and_a_broken_connection_is_none() {
        assert!(of(Status::unavailable("etcdserver: rpc not supported for learner")).answered);
        assert!(of(Status::unknown("etcdserver: request timed out")).answered);
        assert!(of(Status::unauthenticated("etcdserver: invalid auth token")).answered);
        assert!(
            !of(Status::from_error(Box::new(std::io::Error::from(
                std::io::ErrorKind::ConnectionRefused
            ))))
            .answered
        );
        assert!(!of(Status::unimplemented("unknown service etcdserverpb.KV")).answered);
        assert!(!of(Status::cancelled("operation was canceled")).answered);
    }

    #[test]
    fn an_agent_without_a_descriptor_left_says_nothing_of_the_member() {
        let tls = Arc::new(TlsFiles::new(&Host::at("/"), None, None, None));
        let address = Address::parse("http://127.0.0.1:1").unwrap();
        let client = Client::new(address, None, tls, Duration::from_secs(1));
        let dial = DialError {
            reason: Reason::Exhausted,
            text: "connecting: Too many open files (os error 24)".into(),
        };
        let failure = of(Status::from_error(Box::new(dial)));
        assert!(!failure.answered && !failure.said);
        let error = client.closed(&failure).unwrap();
        assert!(matches!(error, SampleError::Blind(_)), "{error}");
        assert!(error.to_string().contains("127.0.0.1:1: connecting: Too many"), "{error}");
        let refused = Failure { reason: Reason::Refused, ..failure };
        assert!(client.closed(&refused).is_none());
    }

    #[tokio::test]
    async fn calls_to_a_closed_port_fail_at_once_with_the_reason() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        let tls = Arc::new(TlsFiles::new(&Host::at("/"), None, None, None));
        let address = Address::parse(&address).unwrap();
        let client = Client::new(address, None, tls, Duration::from_secs(5));
        let Timed { answer, took } = Timed::of(client.status()).await;
        let failure = answer.unwrap_err();
        assert_eq!(failure.reason, Reason::Refused);
        assert!(failure.text.contains("Connection refused"), "{}", failure.text);
        assert!(!failure.answered && took < Duration::from_secs(1));
    }

    #[test]
    fn calls_fit_into_the_small_stacks_of_the_agents_threads() {
        // Half of what `main` gives them.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_stack_size(128 << 10)
            .enable_all()
            .build()
            .unwrap();
        let tls = Arc::new(TlsFiles::new(&Host::at("/"), None, None, None));
        let address = Address::parse("http://127.0.0.1:1").unwrap();
        let client = Client::new(address, None, tls, Duration::from_secs(1));
        let call = async move {
            let read = client.get("a", GetOptions::new(), Consistency::Linearizable);
            tokio::join!(client.status(), client.member_list(), read).0.unwrap_err().reason
        };
        assert_eq!(runtime.block_on(runtime.spawn(call)).unwrap(), Reason::Refused);
    }

    #[tokio::test]
    async fn calls_to_a_silent_port_end_together_after_one_timeout() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let tls = Arc::new(TlsFiles::new(&Host::at("/"), None, None, None));
        let address = Address::parse(&address).unwrap();
        let client = Client::new(address, None, tls, Duration::from_millis(200));
        let started = Instant::now();
        let (status, list) = tokio::join!(client.status(), client.member_list());
        assert_eq!(status.unwrap_err().reason, Reason::Timeout);
        assert_eq!(list.unwrap_err().reason, Reason::Timeout);
        assert!(started.elapsed() < Duration::from_millis(800));
    }
}
