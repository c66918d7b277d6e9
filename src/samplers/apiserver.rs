//! The API server of this node, and the ways to it: whether it answers, whether it calls itself alive and ready, which of
//! its own checks fail, and how long it takes.
//!
//! | file | what |
//! |---|---|
//! | `apiserver/places.rs` | with which files each distribution's API server is reached |
//! | `apiserver/request.rs` | one request over HTTP/1.1, bounded |
//! | `apiserver/checks.rs` | the API server's own checks as a closed set of words |
//!
//! Asks `/livez`, `/readyz` and `/healthz` of the local API server with the node's own client certificate, at once, and
//! each configured URL. A refusal (401, 403) is an answer: it proves that the server works and says nothing about etcd. The
//! client certificate is shown to the local API server only. A server that does not answer is a verdict, not an error of
//! the sampler, unless the agent itself had no descriptor left to ask it; what hangs costs one `timeout`. Costs the API server three small requests; `/readyz` makes it ask etcd.

mod checks;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod places;
mod request;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};

use crate::etcd::{Reason, TlsFiles, pair, tls};
use crate::host::{Host, Installation};
use crate::kept::{Kept, Shared};
use crate::member::Answers;
use crate::metric::Metric;
use crate::requests::Record;
use crate::sample::{Batch, SampleError};
use crate::sampler::{AsyncSampler, Build, OptionsError, SamplerDef, absolute, defaults, facts};

use places::Files;
use request::{Answer, Url};

/// See the module's page.
pub static SAMPLER: SamplerDef = SamplerDef {
    about: "The local API server's own health checks, and any URL by configuration, such as a load balancer's.",
    interval: Duration::from_secs(15),
    timeout: Duration::from_secs(5),
    metrics: &[
        UP.desc(),
        STATE.desc(),
        FAILING.desc(),
        DURATION.desc(),
        FAILURES.desc(),
        SUCCESS.desc(),
    ],
    defaults: defaults::<Options>,
    uses: |all| facts(all.primary().map(|n| (n.distribution, &n.data_dir, &n.api_url))),
    build: |options, host| {
        let own: Options = options.parse()?;
        let targets = own.targets(host, options.timeout)?;
        if targets.is_empty() {
            let why = match host.facts().primary() {
                None => "no Kubernetes control plane was found".to_owned(),
                Some(node) => format!("this {} node has no API server", node.distribution),
            };
            return Ok(Build::not_applicable(format!(
                "{why}; set apiserver.url to that of one, or apiserver.urls"
            )));
        }
        Ok(Build::tasked(ApiServer { targets }))
    },
    cost: "1.9 ms of CPU a run, most of it three handshakes of TLS",
};

static UP: Metric<1> = Metric::gauge(
    "controlplane_apiserver_up",
    "Whether the API server (target local) or the URL of this name answered at all, if only with a refusal or an error.",
    ["target"],
);
static STATE: Metric<3> = Metric::gauge(
    "controlplane_apiserver_state",
    "What was answered: ok, failing (a status from 500 on), unauthorised (401 or 403: it works, and says nothing of its health), unexpected (another status), unreachable (no answer). 1 for the one that is the case. The type is livez, readyz or healthz, or url for a configured one.",
    ["target", "type", "state"],
);
static FAILING: Metric<3> = Metric::info(
    "controlplane_apiserver_failing_check_info",
    "A check of the API server's own that fails, by its name; those that run after a start are poststarthook together, and unknown ones other.",
    ["target", "type", "check"],
);
static DURATION: Metric<2> = Metric::histogram(
    "controlplane_apiserver_request_duration_seconds",
    "Time from dialling to the end of the answer, or to the time-out.",
    ["target", "type"],
);
static FAILURES: Metric<3> = Metric::counter(
    "controlplane_apiserver_request_failures_total",
    "Requests without an answer.",
    ["target", "type", "reason"],
);
static SUCCESS: Metric<1> = Metric::gauge(
    "controlplane_apiserver_last_success_timestamp_seconds",
    "When the target last answered that it is well, in Unix time; for the API server, that it is ready.",
    ["target"],
);

/// The name of the node's own API server.
const LOCAL: &str = "local";
/// The name under which every API server's certificate is valid, whatever address it is reached by.
const SERVER_NAME: &str = "kubernetes";
/// Its endpoints, and how they are asked for.
const ENDPOINTS: [(&str, &str); 3] =
    [("livez", "/livez?verbose"), ("readyz", "/readyz?verbose"), ("healthz", "/healthz")];
/// URLs of the configuration.
const MAX_URLS: usize = 8;
/// With the limit of the alert on slow answers.
const BUCKETS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// The section `apiserver`.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Options {
    /// Where the local API server answers, instead of what detection found: `https://127.0.0.1:6443`.
    url: Option<String>,
    /// The CA of the cluster, instead of the one that detection found.
    ca_file: Option<PathBuf>,
    /// The client certificate for the local API server, instead of the one that detection found.
    cert_file: Option<PathBuf>,
    /// Its key.
    key_file: Option<PathBuf>,
    /// More URLs to watch, by names of one's own; no client certificate is shown to them.
    urls: BTreeMap<String, String>,
    /// The CA that these are verified by, instead of the cluster's.
    urls_ca_file: Option<PathBuf>,
}

impl Options {
    fn targets(self, host: &Host, timeout: Duration) -> Result<Vec<Target>, OptionsError> {
        absolute("ca_file", &self.ca_file)?;
        absolute("urls_ca_file", &self.urls_ca_file)?;
        let told = pair(self.cert_file, self.key_file)?;
        if self.urls.len() > MAX_URLS {
            return Err(OptionsError::new("urls", format!("at most {MAX_URLS}")));
        }
        let node = host.facts().primary();
        let found = node.map(Files::of).unwrap_or_default();
        let found_url = node.and_then(|node: &Installation| node.api_url.as_deref());
        let ca = self.ca_file.clone().or_else(|| found.ca.clone());
        let mut targets = Vec::new();
        if let Some(url) = self.url.as_deref().or(found_url) {
            let url = Url::parse(url).map_err(|what| OptionsError::new("url", what))?;
            // A server elsewhere is not shown what belongs to this node.
            let ours = self.url.is_none() || url.address.is_loopback();
            let pair = told.or_else(|| found.pair.filter(|_| ours));
            let bare = TlsFiles::new(host, ca.clone(), None, None).made_by(tls::http1_config);
            let shown = pair.map(|(cert, key)| {
                TlsFiles::new(host, ca.clone(), Some(cert), Some(key)).made_by(tls::http1_config)
            });
            targets.push(Target::new(
                LOCAL,
                &ENDPOINTS,
                &url,
                Some(SERVER_NAME),
                shown,
                bare,
                timeout,
            ));
        }
        for (name, text) in self.urls {
            let key = format!("urls.{name}");
            let plain =
                |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
            if name == LOCAL || name.is_empty() || name.len() > 32 || !name.chars().all(plain) {
                let what = "a name has at most 32 of a-z, 0-9, - and _, and is not local";
                return Err(OptionsError::new(key, what));
            }
            let url = Url::parse(&text).map_err(|what| OptionsError::new(key, what))?;
            let tls = match &self.urls_ca_file {
                Some(ca) => {
                    TlsFiles::new(host, Some(ca.clone()), None, None).ca_set_by("urls_ca_file")
                }
                None => TlsFiles::new(host, ca.clone(), None, None),
            };
            let tls = tls.made_by(tls::http1_config);
            let path = url.path.clone();
            targets.push(Target::new(&name, &[("url", &path)], &url, None, None, tls, timeout));
        }
        Ok(targets)
    }
}

/// One way to an API server.
struct Target {
    name: String,
    /// With the client's certificate, where there is one.
    shown: Option<Arc<TlsFiles>>,
    /// Without.
    bare: Arc<TlsFiles>,
    endpoints: Vec<Endpoint>,
    counted: Shared<Counted>,
    timeout: Duration,
}

/// By the target's name and where it is.
static COUNTED: Kept<(String, Url), Shared<Counted>> = Kept::new();

/// What has been counted and seen of a target so far.
#[derive(Default)]
struct Counted {
    /// By the page's name.
    records: BTreeMap<&'static str, Record>,
    answers: Answers,
    /// What failed last time.
    failing: BTreeSet<String>,
    last_success: Option<SystemTime>,
}

/// What a page answered, and the time that it took.
type Timed = (Result<Answer, request::Failure>, Duration);

/// What a round of a target brought.
struct Asked {
    /// For each page.
    answers: Vec<Timed>,
    /// Whether our own TLS files, or a lack of descriptors, kept it from being asked.
    blind: bool,
    /// What is wrong on our side.
    problem: Option<SampleError>,
}

/// One of its pages.
struct Endpoint {
    name: &'static str,
    shown: Option<request::Client>,
    bare: request::Client,
}

impl Target {
    fn new(
        name: &str,
        pages: &[(&'static str, &str)],
        url: &Url,
        server_name: Option<&str>,
        shown: Option<TlsFiles>,
        bare: TlsFiles,
        timeout: Duration,
    ) -> Self {
        let (shown, bare) = (shown.map(Arc::new), Arc::new(bare));
        let client = |tls: &Arc<TlsFiles>, path: &str| {
            request::Client::new(url, path, server_name, Arc::clone(tls), timeout)
        };
        let endpoints = pages.iter().map(|(name, path)| Endpoint {
            name,
            shown: shown.as_ref().map(|tls| client(tls, path)),
            bare: client(&bare, path),
        });
        Self {
            name: name.to_owned(),
            endpoints: endpoints.collect(),
            shown,
            bare,
            counted: COUNTED.of((name.to_owned(), url.clone())),
            timeout,
        }
    }

    /// Asks for every page at once.
    async fn ask(&self) -> Asked {
        // A key that cannot be read takes the certificate away, and not the question.
        let with_pair = match &self.shown {
            Some(tls) => tls.config().await.is_ok(),
            None => false,
        };
        let timeout = self.timeout;
        let pages = self.endpoints.iter().map(|endpoint| async {
            let client = endpoint.shown.as_ref().filter(|_| with_pair).unwrap_or(&endpoint.bare);
            let started = Instant::now();
            let answer = tokio::time::timeout(timeout, client.get()).await;
            (answer.unwrap_or_else(|_| Err(request::Failure::late(timeout))), started.elapsed())
        });
        let answers = join_all(pages).await;
        let exhausted = self.exhausted(&answers);
        let blind = exhausted.is_some()
            || answers.iter().all(|(answer, _)| {
                answer.as_ref().is_err_and(|failure| failure.reason == Reason::TlsConfig)
            });
        let problem = match &self.shown {
            Some(tls) => tls.check().await,
            None => None,
        };
        let problem = match problem {
            None => self.bare.check().await,
            found => found,
        };
        let problem = exhausted.or_else(|| problem.map(|problem| problem.to_error()));
        Asked { answers, blind, problem }
    }

    /// What kept a page from being asked for when the agent had no descriptor left. Then the others say nothing either: a
    /// round is taken whole.
    fn exhausted(&self, answers: &[Timed]) -> Option<SampleError> {
        let mut failures = answers.iter().filter_map(|(answer, _)| answer.as_ref().err());
        let ours = failures.find(|failure| failure.reason == Reason::Exhausted)?;
        Some(SampleError::call(self.name.clone(), &ours.text))
    }

    fn judge(&self, answers: Vec<Timed>, out: &mut Batch) {
        let name = self.name.as_str();
        let counted = &mut *self.counted.lock();
        let mut failing = BTreeSet::new();
        let mut why = String::new();
        let up = answers.iter().any(|(answer, _)| answer.is_ok());
        out.push(&UP, [name], up);
        for (endpoint, (answer, took)) in self.endpoints.iter().zip(answers) {
            let records = &mut counted.records;
            let record = records.entry(endpoint.name).or_insert_with(|| Record::new(BUCKETS));
            record.add(took, answer.as_ref().err().map(|failure| failure.reason));
            let state = match &answer {
                Ok(answer) => State::of(answer.status),
                Err(failure) => {
                    failure.text.clone_into(&mut why);
                    State::Unreachable
                }
            };
            for one in State::ALL {
                out.push(&STATE, [name, endpoint.name, one.as_str()], one == state);
            }
            if state == State::Ok && matches!(endpoint.name, "readyz" | "url") {
                counted.last_success = Some(SystemTime::now());
            }
            if let (State::Failing, Ok(answer)) = (state, &answer) {
                let found = checks::failing(&answer.body);
                for check in &found {
                    out.info(&FAILING, [name, endpoint.name, check]);
                }
                let listed = found.into_iter().collect::<Vec<_>>().join(", ");
                let listed = if listed.is_empty() { answer.status.to_string() } else { listed };
                failing.insert(format!("{}: {listed}", endpoint.name));
            }
            out.histogram(&DURATION, [name, endpoint.name], &record.durations);
            for (reason, count) in &record.failures {
                out.push(&FAILURES, [name, endpoint.name, reason.as_str()], *count);
            }
        }
        if let Some(when) = counted.last_success {
            out.push(&SUCCESS, [name], when);
        }
        self.tell(counted, up, &why, failing, out);
    }

    /// What has changed, for log and timeline.
    fn tell(
        &self,
        counted: &mut Counted,
        up: bool,
        why: &str,
        failing: BTreeSet<String>,
        out: &mut Batch,
    ) {
        let now = SystemTime::now();
        let who = match self.name.as_str() {
            LOCAL => "the API server".to_owned(),
            name => format!("the URL {name}"),
        };
        counted.answers.see("apiserver", &who, up, why, out);
        if failing != counted.failing && up {
            let listed = failing.iter().cloned().collect::<Vec<_>>().join("; ");
            if failing.is_empty() {
                tracing::info!("{who} is well again");
                out.event(now, "apiserver_well", format!("{who} is well again"));
            } else {
                tracing::warn!(checks = listed, "{who} fails its own checks");
                out.event(
                    now,
                    "apiserver_failing",
                    format!("{who} fails its own checks: {listed}"),
                );
            }
            counted.failing = failing;
        }
    }
}

/// What an answer means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Ok,
    Failing,
    Unauthorised,
    Unexpected,
    Unreachable,
}

impl State {
    const ALL: [Self; 5] =
        [Self::Ok, Self::Failing, Self::Unauthorised, Self::Unexpected, Self::Unreachable];

    fn of(status: u16) -> Self {
        match status {
            200..=299 => Self::Ok,
            401 | 403 => Self::Unauthorised,
            500..=599 => Self::Failing,
            _ => Self::Unexpected,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Failing => "failing",
            Self::Unauthorised => "unauthorised",
            Self::Unexpected => "unexpected",
            Self::Unreachable => "unreachable",
        }
    }
}

struct ApiServer {
    targets: Vec<Target>,
}

#[async_trait]
impl AsyncSampler for ApiServer {
    /// # Errors
    ///
    /// When our own TLS files, or a lack of descriptors, keep every target from being asked. A target that does not answer is
    /// a verdict.
    async fn sample(&mut self, out: &mut Batch) -> Result<(), SampleError> {
        let asked = join_all(self.targets.iter().map(Target::ask)).await;
        let mut seen = false;
        let mut problems = Vec::new();
        for (target, asked) in self.targets.iter().zip(asked) {
            problems.extend(asked.problem);
            if !asked.blind {
                seen = true;
                target.judge(asked.answers, out);
            }
        }
        if !seen && let Some(problem) = problems.pop() {
            return Err(SampleError::Blind(Box::new(problem)));
        }
        for problem in problems {
            out.fail(problem);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
