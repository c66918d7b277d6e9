//! kine, or k8s-dqlite: what stands between the API server and its SQL database, asked on the socket on which it
//! speaks etcd's protocol.
//!
//! Two calls, at once: the status, which has the size of the database and is computed by its leader; and a read of one
//! absent key, which needs a leader as well and carries the revision. Nothing is counted, listed or written, and no
//! option is used that they refuse: each refusal would be a line in the node's journal. Costs one SQL query each. A socket
//! that does not answer is a verdict, not an error of the sampler; what hangs costs one `timeout`.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::GetOptions;
use serde::{Deserialize, Serialize};

use crate::etcd::client::{Consistency, PROBE_KEY, Timed};
use crate::etcd::{Access, Address, Client, Reason, Settings, TlsFiles};
use crate::host::{EtcdAccess, Facts, Installation};
use crate::kept::{Kept, Shared};
use crate::member::Answers;
use crate::metric::Metric;
use crate::requests::Requests;
use crate::sample::{Batch, SampleError};
use crate::sampler::{AsyncSampler, Build, SamplerDef, defaults, facts};

/// See the module's page.
pub static SAMPLER: SamplerDef = SamplerDef {
    about: "kine or k8s-dqlite, through the socket on which it speaks etcd's protocol.",
    interval: Duration::from_secs(15),
    timeout: Duration::from_secs(5),
    metrics: &[
        UP.desc(),
        DATABASE.desc(),
        REVISION.desc(),
        DURATION.desc(),
        FAILURES.desc(),
        SUCCESS.desc(),
    ],
    defaults: defaults::<Options>,
    uses: |all| facts((found(all), all.primary().map(|node| (node.distribution, node.datastore)))),
    build: |options, host| {
        let own: Options = options.parse()?;
        let settings =
            Settings { endpoints: own.endpoint.into_iter().collect(), ..Settings::default() };
        let access = settings.access(found(host.facts()).as_ref(), host).map_err(|mut error| {
            error.key = error.key.replace("endpoints", "endpoint");
            error
        })?;
        let Some(access) = access else {
            let why = match host.facts().primary() {
                None => "no Kubernetes control plane was found".to_owned(),
                Some(n) => {
                    let kind = n.datastore.as_str();
                    format!("the datastore of this {} node is {kind}", n.distribution)
                }
            };
            return Ok(Build::not_applicable(format!(
                "{why}, and no socket of kine was found; set kine.endpoint to the path of one"
            )));
        };
        Ok(Build::tasked(Kine::new(&access, options.timeout)))
    },
    cost: "0.5 ms of CPU a run; two queries of one row in the database",
};

static UP: Metric<0> = Metric::gauge(
    "controlplane_kine_up",
    "Whether kine or k8s-dqlite answered a call on its socket, if only with an error, as without a leader.",
    [],
);
static DATABASE: Metric<0> = Metric::gauge(
    "controlplane_kine_database_bytes",
    "Size of the database as kine gives it; k8s-dqlite leaves out free pages, which never shrink.",
    [],
);
static REVISION: Metric<0> = Metric::gauge(
    "controlplane_kine_revision",
    "Revision of the datastore; its rate is the rate of writes.",
    [],
);
static DURATION: Metric<1> = Metric::histogram(
    "controlplane_kine_request_duration_seconds",
    "Time of the agent's own calls, status and read, answered or given up after the time-out. Both ask the leader of the database.",
    ["request"],
);
static FAILURES: Metric<2> = Metric::counter(
    "controlplane_kine_request_failures_total",
    "The agent's own calls that failed.",
    ["request", "reason"],
);
static SUCCESS: Metric<1> = Metric::gauge(
    "controlplane_kine_request_last_success_timestamp_seconds",
    "When the call last succeeded, in Unix time.",
    ["request"],
);

const REQUESTS: [&str; 2] = ["status", "read"];
/// With the limits of the alert on slow reads.
const BUCKETS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.4, 0.5, 1.0, 2.5, 5.0, 10.0];

/// The socket of the node's own installation. What an installation that is not in use left behind is none.
fn found(all: &Facts) -> Option<EtcdAccess> {
    all.in_use().find_map(Installation::kine)
}

/// The section `kine`.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Options {
    /// Path of the socket, instead of the one that detection found.
    endpoint: Option<String>,
}

struct Kine {
    clients: Vec<Client>,
    tls: Arc<TlsFiles>,
    counted: Shared<Counted>,
}

/// By the socket.
static COUNTED: Kept<Vec<Address>, Shared<Counted>> = Kept::new();

/// What has been counted and seen so far.
struct Counted {
    requests: Requests,
    answers: Answers,
}

impl Default for Counted {
    fn default() -> Self {
        Self { requests: Requests::new(&REQUESTS, BUCKETS), answers: Answers::default() }
    }
}

impl Kine {
    fn new(access: &Access, timeout: Duration) -> Self {
        Self {
            clients: Client::all(access, timeout),
            tls: Arc::clone(&access.tls),
            counted: COUNTED.of(access.addresses.clone()),
        }
    }

    fn export(&self, out: &mut Batch) {
        self.counted.lock().requests.export(&DURATION, &FAILURES, &SUCCESS, out);
    }
}

#[async_trait]
impl AsyncSampler for Kine {
    /// # Errors
    ///
    /// When the socket is closed to the agent's user, or our own TLS files cannot be used. A socket that does not answer is
    /// a verdict.
    async fn sample(&mut self, out: &mut Batch) -> Result<(), SampleError> {
        // There is one socket.
        let Some(client) = self.clients.first() else { return Ok(()) };
        let (status, read) = tokio::join!(
            Timed::of(client.status()),
            Timed::of(client.get(PROBE_KEY, GetOptions::new(), Consistency::Linearizable)),
        );
        {
            let requests = &mut self.counted.lock().requests;
            requests.record("status", status.took, status.reason());
            requests.record("read", read.took, read.reason());
        }
        if let Some(error) = read.answer.as_ref().err().and_then(|failure| client.closed(failure)) {
            self.export(out);
            return Err(error);
        }
        let up = status.said() || read.said();
        if !up {
            client.reset().await;
        }
        let blind = read.reason() == Some(Reason::TlsConfig);
        if !blind {
            let why =
                read.answer.as_ref().err().map(|f| format!("{} ({})", f.text, f.reason.as_str()));
            let why = why.unwrap_or_default();
            out.push(&UP, [], up);
            self.counted.lock().answers.see("kine", "kine", up, &why, out);
            if !up {
                out.remark(why);
            }
        }
        if let Ok(status) = &status.answer {
            out.push(&DATABASE, [], status.db_size());
        }
        if let Some(header) = read.answer.as_ref().ok().and_then(|read| read.header()) {
            out.push(&REVISION, [], header.revision());
        }
        self.export(out);
        self.tls.tell(blind, out).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::etcd::Failure;
    use crate::etcd::fake::{self, Message};
    use crate::host::{Datastore, Distribution, Host};
    use crate::sampler::{self, Driver, OptionsError};

    fn build(own: &serde_json::Value, facts: Facts) -> Result<Build, OptionsError> {
        let own = own.as_object().cloned().unwrap_or_default();
        let (interval, timeout) = (Duration::from_secs(15), Duration::from_millis(500));
        let options = sampler::Options { interval, timeout, own };
        (SAMPLER.build)(&options, &Host::at("/").with_facts(facts))
    }

    async fn sampled(built: Build, runs: usize) -> Batch {
        let Build::Run(Driver::Async(mut sampler)) = built else { panic!("it was not built") };
        let mut out = Batch::default();
        for _ in 0..runs {
            out = Batch::default();
            sampler.sample(&mut out).await.unwrap();
        }
        out
    }

    #[test]
    fn it_runs_where_a_socket_was_found_or_is_given() {
        let unset = serde_json::json!({});
        let why = |facts| match build(&unset, facts) {
            Ok(Build::NotApplicable(why)) => why,
            _ => panic!("it was built"),
        };
        assert!(why(Facts::default()).contains("set kine.endpoint"));
        let node = |datastore, socket: Option<&str>| {
            let kine_socket = socket.map(Into::into);
            let k3s = Installation::new(Distribution::K3s);
            Facts {
                installations: vec![Installation { datastore, kine_socket, ..k3s }],
                ..Facts::default()
            }
        };
        let socket = Some("/run/kine.sock:2379");
        assert!(why(node(Datastore::Etcd, None)).contains("this k3s node is etcd"));
        assert!(why(node(Datastore::Etcd, socket)).contains("this k3s node is etcd"));
        assert!(matches!(build(&unset, node(Datastore::Sqlite, socket)), Ok(Build::Run(_))));
        let own = serde_json::json!({"endpoint": "/run/kine.sock"});
        assert!(matches!(build(&own, node(Datastore::Etcd, None)), Ok(Build::Run(_))));
        let bad = serde_json::json!({"endpoint": "ftp://x"});
        let etcd = node(Datastore::Etcd, None);
        assert_eq!(build(&bad, etcd).err().map(|error| error.key), Some("endpoint".into()));
    }

    #[tokio::test]
    async fn a_socket_with_a_colon_in_its_name_tells_size_and_revision() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kine.sock:12379");
        // As k8s-dqlite answers: no member, no leader, and a version.
        fake::serve_socket(&path, |call, _| match call {
            "Status" => Ok(Message::default().bytes(2, b"3.5.13").number(3, 21_800_000).done()),
            "Range" => {
                let header = Message::default().number(3, 409_000);
                Ok(Message::default().message(1, header).done())
            }
            _ => Err((12, "unknown service")),
        });
        let own = serde_json::json!({"endpoint": path});
        let out = sampled(build(&own, Facts::default()).unwrap(), 2).await;
        assert_eq!(out.value(&UP, []), Some(1.0));
        assert_eq!(out.value(&DATABASE, []), Some(21_800_000.0));
        assert_eq!(out.value(&REVISION, []), Some(409_000.0));
        assert_eq!(out.value(&DURATION, ["read"]), Some(2.0));
        assert!(out.value(&SUCCESS, ["status"]).is_some());
        assert_eq!(out.reasons(), [""; 0]);
    }

    #[tokio::test]
    async fn without_a_leader_it_is_up_and_its_reads_fail() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("k8s-dqlite.sock");
        fake::serve_socket(&path, |_, _| Err((2, "context deadline exceeded")));
        let own = serde_json::json!({"endpoint": path});
        let mut out = sampled(build(&own, Facts::default()).unwrap(), 1).await;
        assert_eq!(out.value(&UP, []), Some(1.0));
        assert_eq!(out.series(&DATABASE) + out.series(&REVISION), 0);
        assert_eq!(out.series(&SUCCESS), 0);
        assert_eq!(out.series(&FAILURES), 2);
        assert_eq!(out.take_events(), []);
    }

    #[tokio::test]
    async fn tls_files_that_cannot_be_used_are_no_verdict_about_the_socket() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kine.sock");
        fake::serve_socket(&path, |_, _| Err((2, "never asked")));
        let own = serde_json::json!({"endpoint": format!("unixs://{}", path.display())});
        let Ok(Build::Run(Driver::Async(mut sampler))) = build(&own, Facts::default()) else {
            panic!("it was not built")
        };
        let mut out = Batch::default();
        let error = sampler.sample(&mut out).await.unwrap_err();
        assert!(matches!(error, SampleError::Blind(_)), "{error}");
        assert_eq!((out.series(&UP), out.take_events().len()), (0, 0));
    }

    #[tokio::test]
    async fn a_socket_that_is_closed_to_this_user_is_no_verdict() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kine.sock");
        let settings =
            Settings { endpoints: vec![path.display().to_string()], ..Settings::default() };
        let access = settings.access(None, &Host::at("/")).unwrap().unwrap();
        let client = &Client::all(&access, Duration::from_secs(1))[0];
        let failed =
            |reason| Failure { reason, text: "closed".into(), answered: false, said: false };
        let error = client.closed(&failed(Reason::Permission)).unwrap();
        assert_eq!(error.reason(), "permission");
        assert!(error.to_string().contains("kine.sock"), "{error}");
        assert!(client.closed(&failed(Reason::Refused)).is_none());
    }

    #[tokio::test]
    async fn a_sampler_that_is_built_anew_for_the_same_socket_counts_on() {
        let own = serde_json::json!({"endpoint": "/nonexistent/of-two/kine.sock"});
        for (failures, told) in [(1.0, 1), (2.0, 0)] {
            let mut out = sampled(build(&own, Facts::default()).unwrap(), 1).await;
            assert_eq!(out.value(&FAILURES, ["read", "refused"]), Some(failures));
            assert_eq!(out.take_events().len(), told, "it has been down before");
        }
    }

    #[tokio::test]
    async fn a_socket_that_nobody_listens_on_is_a_verdict() {
        let own = serde_json::json!({"endpoint": "/nonexistent/kine.sock"});
        let mut out = sampled(build(&own, Facts::default()).unwrap(), 1).await;
        assert_eq!(out.value(&UP, []), Some(0.0));
        assert_eq!(out.value(&FAILURES, ["read", "refused"]), Some(1.0));
        assert_eq!(out.take_events()[0].kind, "kine_down");
        assert_eq!(out.reasons(), [""; 0]);
    }
}
