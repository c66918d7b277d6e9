//! How many objects of a kind the API server keeps: Longhorn's orphans above all, whose count is
//! told nowhere else and can grow into the hundred thousands.
//!
//! Asks the server for counts only; no key crosses the wire, whatever their number. Works through
//! etcd, and through the socket of kine or k8s-dqlite. A count costs etcd 0.4 µs per key, during
//! which writers wait, so: one count at a time, and a pause after one that was given up; the first round at once, later ones spread over
//! half the interval; above 20,000 keys in many small requests; and a prefix is counted again only
//! after 500 times as long as its last count took.
//!
//! A prefix that fails hides no other; its count is absent, and the time of its last success stays.
//! When the server as a whole does not answer, the rest of the run is given up after one time-out; when our own TLS
//! files cannot be used the run fails with the file's name.

mod count;
mod ranges;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use etcd_client::GetOptions;
use serde::{Deserialize, Serialize};

use crate::config;
use crate::etcd::client::{Consistency, PROBE_KEY};
use crate::etcd::{Access, Client, Failure, Reason, Settings, TlsFiles};
use crate::metric::Metric;
use crate::sample::{Batch, SampleError};
use crate::sampler::{AsyncSampler, Build, OptionsError, SamplerDef, defaults, facts};

use count::Counter;
use ranges::{Ranges, SHARD_ABOVE};

/// See the module's page.
pub static SAMPLER: SamplerDef = SamplerDef {
    about: "How many objects of a kind the API server keeps in its datastore.",
    interval: Duration::from_mins(1),
    timeout: Duration::from_secs(10),
    metrics: &[KEYS.desc(), SUCCESS.desc()],
    defaults: defaults::<Options>,
    uses: |all| facts(all.registry()),
    build: |options, host| {
        let own: Options = options.parse()?;
        let prefixes = prefixes(own.prefixes)?;
        let settings = Settings {
            endpoints: own.endpoints,
            ca_file: own.ca_file,
            cert_file: own.cert_file,
            key_file: own.key_file,
            server_name: own.server_name,
        };
        let Some(access) = settings.access(host.facts().registry().as_ref(), host)? else {
            return Ok(Build::not_applicable(
                "neither an etcd nor a socket of kine was found; set etcd.endpoints, or \
                 registry_keys.endpoints to the path of the socket",
            ));
        };
        let sampler = RegistryKeys::new(&access, prefixes, options.interval, options.timeout);
        Ok(Build::tasked(sampler))
    },
    cost: "4 ms of CPU a run; in etcd 0.5 µs per key and at least 1.5 ms per prefix: 80 ms for 100,000 \
           keys, then not again for 40 s; 260 ms once, when it learns how the names spread",
};

static KEYS: Metric<1> = Metric::gauge(
    "controlplane_registry_keys",
    "Objects of this kind in the API server's datastore; at most 100 kinds. Counted by the datastore.",
    ["resource"],
);
static SUCCESS: Metric<1> = Metric::gauge(
    "controlplane_registry_keys_last_success_timestamp_seconds",
    "When the objects of this kind were last counted, in Unix time.",
    ["resource"],
);

/// What is counted unless configured: what fills up first.
const PREFIXES: &[(&str, &str)] = &[
    ("orphans.longhorn.io", "/registry/longhorn.io/orphans/"),
    ("snapshots.longhorn.io", "/registry/longhorn.io/snapshots/"),
    ("backups.longhorn.io", "/registry/longhorn.io/backups/"),
    ("volumes.longhorn.io", "/registry/longhorn.io/volumes/"),
    ("replicas.longhorn.io", "/registry/longhorn.io/replicas/"),
    ("engines.longhorn.io", "/registry/longhorn.io/engines/"),
    ("events", "/registry/events/"),
    ("leases", "/registry/leases/"),
    ("pods", "/registry/pods/"),
    ("secrets", "/registry/secrets/"),
    ("configmaps", "/registry/configmaps/"),
];
/// No more prefixes than this.
const MAX_PREFIXES: usize = 100;
/// The next count waits this many times as long as the last one took,
const REST: u32 = 500;
/// but not longer than this.
const MAX_REST: Duration = Duration::from_hours(1);
/// How long a server may take to show that it lives, after a count that got no answer.
const PING: Duration = Duration::from_secs(1);

#[derive(Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Options {
    /// Prefixes of keys by the name in the label; added to the built-in ones. An empty prefix takes
    /// a name out.
    prefixes: BTreeMap<String, String>,
    /// Addresses of the local member, or the path of a socket. This key and the four below are those of
    /// section `etcd` when none of them is set here.
    #[serde(deserialize_with = "config::list")]
    endpoints: Vec<String>,
    ca_file: Option<PathBuf>,
    cert_file: Option<PathBuf>,
    key_file: Option<PathBuf>,
    server_name: Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        let prefixes = PREFIXES.iter().map(|(name, prefix)| ((*name).into(), (*prefix).into()));
        Self {
            prefixes: prefixes.collect(),
            endpoints: Vec::new(),
            ca_file: None,
            cert_file: None,
            key_file: None,
            server_name: None,
        }
    }
}

/// Names and prefixes, the built-in ones first.
fn prefixes(own: BTreeMap<String, String>) -> Result<Vec<(String, String)>, OptionsError> {
    let mut all: Vec<(String, String)> =
        PREFIXES.iter().map(|(name, prefix)| ((*name).into(), (*prefix).into())).collect();
    for (name, prefix) in own {
        if name.is_empty() {
            return Err(OptionsError::new("prefixes", "a prefix needs a name"));
        }
        match all.iter_mut().find(|(known, _)| *known == name) {
            Some(known) => known.1 = prefix,
            None => all.push((name, prefix)),
        }
    }
    all.retain(|(_, prefix)| !prefix.is_empty());
    if all.len() > MAX_PREFIXES {
        return Err(OptionsError::new("prefixes", format!("at most {MAX_PREFIXES} prefixes")));
    }
    Ok(all)
}

/// What is counted under one name.
struct Resource {
    name: String,
    prefix: String,
    ranges: Ranges,
    /// The last count, unless a later one failed.
    keys: Option<u64>,
    last_success: Option<SystemTime>,
    /// It is not counted again before.
    rests_until: Option<Instant>,
    /// Counts without an answer, one after the other.
    unanswered: u32,
}

impl Resource {
    fn new(name: String, prefix: String) -> Self {
        let ranges = Ranges::whole(&prefix);
        let (keys, last_success, rests_until, unanswered) = (None, None, None, 0);
        Self { name, prefix, ranges, keys, last_success, rests_until, unanswered }
    }

    fn counted(&mut self, keys: u64, started: Instant) {
        self.keys = Some(keys);
        self.last_success = Some(SystemTime::now());
        self.unanswered = 0;
        self.rests_until = Some(started + (started.elapsed() * REST).min(MAX_REST));
    }

    /// The server lives but did not end this count in time: it is left alone for longer each time.
    fn too_slow(&mut self, interval: Duration) {
        self.unanswered = (self.unanswered + 1).min(16);
        let rest = (interval * 2_u32.pow(self.unanswered)).min(MAX_REST.max(interval));
        self.rests_until = Some(Instant::now() + rest);
    }
}

struct RegistryKeys {
    clients: Vec<Client>,
    /// The address in use.
    current: usize,
    consistency: Consistency,
    tls: Arc<TlsFiles>,
    interval: Duration,
    timeout: Duration,
    resources: Vec<Resource>,
    /// The server may still be at a count that was given up.
    busy_until: Option<Instant>,
    /// A round has ended, so that nobody waits for first figures.
    warm: bool,
}

impl RegistryKeys {
    fn new(
        access: &Access,
        prefixes: Vec<(String, String)>,
        interval: Duration,
        timeout: Duration,
    ) -> Self {
        Self {
            clients: Client::all(access, timeout),
            current: 0,
            consistency: access.consistency(),
            tls: Arc::clone(&access.tls),
            interval,
            timeout,
            resources: prefixes.into_iter().map(|(n, p)| Resource::new(n, p)).collect(),
            busy_until: None,
            warm: false,
        }
    }

    /// Those that may be counted now, the one that waited longest first.
    fn due(&self) -> Vec<usize> {
        let now = Instant::now();
        let rested = |i: &usize| self.resources[*i].rests_until.is_none_or(|until| until <= now);
        let mut due: Vec<usize> = (0..self.resources.len()).filter(rested).collect();
        due.sort_by_key(|i| self.resources[*i].last_success);
        due
    }

    /// Counts one resource within `timeout`, and learns better ranges for the next time.
    async fn count(&mut self, i: usize) -> Result<(), Failure> {
        let started = Instant::now();
        let resource = &mut self.resources[i];
        let client = &self.clients[self.current];
        let mut counter = Counter { client, consistency: &mut self.consistency };
        let answer = tokio::time::timeout(self.timeout, counter.count(&mut resource.ranges)).await;
        let (keys, is_etcd) = answer.unwrap_or_else(|_| Err(Failure::late(self.timeout)))?;
        resource.counted(keys, started);
        if is_etcd && keys > SHARD_ABOVE || resource.ranges.0.len() > 1 {
            let refined =
                tokio::time::timeout(self.timeout, counter.refine(&mut resource.ranges)).await;
            if let Ok(Err(failure)) = refined {
                tracing::debug!(resource = resource.name, error = failure.text, "not split");
            }
        }
        Ok(())
    }

    /// Whether the server answers anything at all.
    async fn lives(&self) -> bool {
        let client = &self.clients[self.current];
        let probe = client.get(PROBE_KEY, GetOptions::new(), self.consistency);
        let answer = tokio::time::timeout(PING.min(self.timeout), probe).await;
        answer.is_ok_and(|answer| answer.map_or_else(|failure| failure.said, |_| true))
    }

    fn error(&self, what: &str, failure: &Failure) -> SampleError {
        let peer = self.clients[self.current].address();
        match failure.reason {
            Reason::Timeout => {
                SampleError::Timeout { what: format!("{what} at {peer}"), after: self.timeout }
            }
            _ => SampleError::call(peer.to_string(), format!("{what}: {}", failure.text)),
        }
    }
}

#[async_trait]
impl AsyncSampler for RegistryKeys {
    async fn sample(&mut self, out: &mut Batch) -> Result<(), SampleError> {
        let started = Instant::now();
        let due = self.due();
        let rounds = u32::try_from(due.len()).unwrap_or(1).max(1);
        let pace = if self.warm { self.interval / 2 / rounds } else { Duration::ZERO };
        let (mut down, mut blind, mut closed) = (false, false, None);
        for (turn, i) in (0..).zip(due) {
            let start = self.busy_until.unwrap_or(started).max(started + pace * turn);
            // Slow counts must not make the run pass its deadline; who was not asked comes first next.
            let waits = turn > 0 || start > started;
            if waits && start.max(Instant::now()) > started + self.interval * 3 / 4 {
                break;
            }
            tokio::time::sleep_until(start.into()).await;
            let Err(failure) = self.count(i).await else { continue };
            self.resources[i].keys = None;
            closed = self.clients[self.current].closed(&failure);
            if failure.reason == Reason::TlsConfig || closed.is_some() {
                // Our own files: that says nothing about the server.
                (down, blind) = (true, true);
                break;
            }
            let what = format!("counting {}", self.resources[i].prefix);
            out.fail(self.error(&what, &failure));
            let slow = failure.reason == Reason::Timeout && self.lives().await;
            if slow {
                self.resources[i].too_slow(self.interval);
                // The server goes on counting although nobody waits; it gets as long again.
                self.busy_until = Some(Instant::now() + self.timeout);
            }
            // kine refuses in words of its own.
            down = !(failure.said || slow);
            if down {
                break;
            }
        }
        if down {
            self.clients[self.current].reset().await;
            self.current = (self.current + 1) % self.clients.len();
        }
        self.warm = self.warm || !down;
        for resource in &self.resources {
            // What a server that is down said last is not told on, not even of those that rest.
            if let Some(keys) = resource.keys.filter(|_| !down) {
                out.push(&KEYS, [&resource.name], keys);
            }
            if let Some(when) = resource.last_success {
                out.push(&SUCCESS, [&resource.name], when);
            }
        }
        match closed {
            Some(error) => Err(error),
            None => self.tls.tell(blind, out).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::etcd::fake::{self, Message, from_member};
    use crate::host::{Distribution, EtcdAccess, Facts, Host, Installation, Quota, QuotaSource};
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    fn own(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(n, p)| ((*n).to_owned(), (*p).to_owned())).collect()
    }

    #[test]
    fn own_prefixes_are_added_replace_and_take_out() {
        let all = prefixes(own(&[
            ("widgets.example.com", "/registry/example.com/widgets/"),
            ("pods", "/other/pods/"),
            ("events", ""),
        ]))
        .unwrap();
        assert_eq!(all.len(), PREFIXES.len());
        assert_eq!(all[0].0, "orphans.longhorn.io");
        let find = |name| all.iter().find(|(n, _)| n == name).map(|(_, p)| p.as_str());
        assert_eq!(find("pods"), Some("/other/pods/"));
        assert_eq!(find("events"), None);
        assert_eq!(find("widgets.example.com"), Some("/registry/example.com/widgets/"));
        assert!(prefixes(own(&[("", "/x/")])).is_err());
        let many = (0..100).map(|i| (format!("r{i}"), "/x/".to_owned())).collect();
        assert_eq!(prefixes(many).unwrap_err().key, "prefixes");
    }

    #[tokio::test]
    async fn tls_files_that_cannot_be_used_are_the_agents_fault_and_not_the_servers() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let settings = Settings { endpoints: vec![url], ..Settings::default() };
        let access = settings.access(None, &Host::at("/")).unwrap().unwrap();
        let second = Duration::from_secs(1);
        let prefixes = prefixes(BTreeMap::new()).unwrap();
        let mut sampler = RegistryKeys::new(&access, prefixes, 60 * second, second);
        let mut out = Batch::default();
        let error = sampler.sample(&mut out).await.unwrap_err();
        assert!(matches!(error, SampleError::Blind(_)), "{error}");
        assert_eq!((error.reason(), out.reasons()), ("not_found", vec![]), "{error}");
    }

    #[test]
    fn keys_are_where_the_api_server_of_this_node_keeps_them() {
        let node = |change: fn(&mut Installation)| {
            let mut node = Installation::new(Distribution::Rke2);
            change(&mut node);
            node
        };
        let etcd = |url: &str| EtcdAccess { endpoints: vec![url.into()], ..EtcdAccess::default() };
        let endpoint = |installations| {
            let found = Facts { installations, ..Facts::default() }.registry();
            found.map(|found| found.endpoints[0].clone())
        };
        assert_eq!(endpoint(vec![]), None);
        let kine = node(|n| {
            n.kine_socket = Some("/data/server/kine.sock".into());
            n.data_dir = Some("/data".into());
            n.kine_tls = true;
        });
        let files = Facts { installations: vec![kine.clone()], ..Facts::default() }.registry();
        assert_eq!(
            files.unwrap().key_file.unwrap().to_str(),
            Some("/data/server/tls/etcd/client.key")
        );
        let mut other = node(|_| ());
        other.etcd = Some(etcd("https://127.0.0.1:2379"));
        let expected = Some("unixs:///data/server/kine.sock".to_owned());
        assert_eq!(endpoint(vec![kine.clone(), other.clone()]), expected, "the first decides");
        assert_eq!(endpoint(vec![other, kine.clone()]), Some("https://127.0.0.1:2379".into()));
        let mut external = kine;
        external.external_etcd = Some(etcd("https://10.0.0.9:2379"));
        assert_eq!(endpoint(vec![external]), Some("https://10.0.0.9:2379".into()));
    }

    #[test]
    fn a_quota_that_comes_from_elsewhere_builds_no_sampler_anew() {
        let uses = |url: &str, quota: Option<Quota>| {
            let etcd = EtcdAccess { endpoints: vec![url.into()], quota, ..EtcdAccess::default() };
            let node =
                Installation { etcd: Some(etcd), ..Installation::new(Distribution::Kubeadm) };
            (SAMPLER.uses)(&Facts { installations: vec![node], ..Facts::default() })
        };
        let quota = |bytes, source| Some(Quota { bytes, source });
        let running = uses("https://127.0.0.1:2379", quota(8 << 30, QuotaSource::Process));
        assert_eq!(running, uses("https://127.0.0.1:2379", quota(1, QuotaSource::Manifest)));
        assert_eq!(running, uses("https://127.0.0.1:2379", None));
        assert_ne!(running, uses("https://10.0.0.9:2379", None));
    }

    fn sampler(address: &str) -> RegistryKeys {
        let settings = Settings { endpoints: vec![address.into()], ..Settings::default() };
        let access = settings.access(None, &Host::at("/")).unwrap().unwrap();
        let prefixes = prefixes(BTreeMap::new()).unwrap();
        RegistryKeys::new(&access, prefixes, Duration::from_mins(1), Duration::from_millis(200))
    }

    #[tokio::test]
    async fn a_silent_server_costs_one_timeout_and_hides_no_earlier_success() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut sampler = sampler(&format!("http://{}", listener.local_addr().unwrap()));
        sampler.resources[1].counted(7, Instant::now());
        sampler.resources[1].rests_until = None;
        let started = Instant::now();
        let mut out = Batch::default();
        sampler.sample(&mut out).await.unwrap();
        assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
        assert_eq!(out.reasons(), ["timeout"]);
        assert_eq!((out.series(&KEYS), out.series(&SUCCESS)), (0, 1));
    }

    #[tokio::test]
    async fn a_server_that_refuses_serializable_reads_is_asked_for_them_once() {
        let refusals = Arc::new(std::sync::atomic::AtomicU32::new(0));
        let seen = Arc::clone(&refusals);
        let url = fake::serve(move |_, request| {
            // Field 7 of a range request: serializable.
            if request.windows(2).any(|pair| pair == [0x38, 1]) {
                seen.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                return Err((2, "serializable is unsupported"));
            }
            // No cluster id, and more keys than an etcd would be asked for in one range.
            let header = Message::default().number(3, 9);
            Ok(Message::default().message(1, header).number(4, 50_000).done())
        });
        let mut sampler = sampler(&url.await);
        for _ in 0..2 {
            let mut out = Batch::default();
            sampler.sample(&mut out).await.unwrap();
            assert_eq!((out.series(&KEYS), out.reasons()), (PREFIXES.len(), vec![]));
            assert_eq!(out.value(&KEYS, ["pods"]), Some(50_000.0));
            sampler.resources.iter_mut().for_each(|r| r.rests_until = None);
            sampler.interval = Duration::ZERO;
        }
        assert_eq!(refusals.load(std::sync::atomic::Ordering::Relaxed), 1);
        assert!(sampler.resources.iter().all(|r| r.ranges.0.len() == 1), "kine is never sharded");
    }

    /// When each count began, and the most that were under way at once.
    #[derive(Default)]
    struct Seen {
        began: std::sync::Mutex<Vec<Instant>>,
        now: AtomicUsize,
        most: AtomicUsize,
    }

    /// A server that takes `slow` for pods and a moment for other counts, 7 each.
    async fn counting(slow: Duration) -> (String, Arc<Seen>) {
        let seen = Arc::new(Seen::default());
        let shared = Arc::clone(&seen);
        let url = fake::serve(move |_, request| {
            let answer = Ok(from_member(1).number(4, 7).done());
            // Field 9 of a range request: count only.
            if !request.windows(2).any(|pair| pair == [0x48, 1]) {
                return answer;
            }
            shared.began.lock().unwrap().push(Instant::now());
            shared.most.fetch_max(shared.now.fetch_add(1, SeqCst) + 1, SeqCst);
            let pods = request.windows(5).any(|word| word == b"/pods");
            let takes = if pods { slow } else { Duration::from_millis(2) };
            tokio::task::block_in_place(|| std::thread::sleep(takes));
            shared.now.fetch_sub(1, SeqCst);
            answer
        });
        (url.await, seen)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 3)]
    async fn the_first_round_is_at_once_and_later_ones_are_spread_over_half_the_interval() {
        let (url, seen) = counting(Duration::from_millis(2)).await;
        let mut sampler = sampler(&url);
        sampler.interval = Duration::from_millis(2_200);
        for (round, from, to) in [(0, 0, 800), (1, 1_000, 1_650)] {
            sampler.resources.iter_mut().for_each(|r| r.rests_until = None);
            let started = Instant::now();
            let mut out = Batch::default();
            sampler.sample(&mut out).await.unwrap();
            let took = started.elapsed().as_millis();
            assert!((from..to).contains(&took), "round {round} took {took} ms");
            assert_eq!(out.series(&KEYS), PREFIXES.len());
        }
        let began = seen.began.lock().unwrap();
        assert_eq!(began.len(), 2 * PREFIXES.len());
        let second = &began[PREFIXES.len()..];
        assert!(second.windows(2).all(|pair| pair[1] - pair[0] > Duration::from_millis(10)));
        assert_eq!(seen.most.load(SeqCst), 1);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 3)]
    async fn after_a_count_that_was_given_up_the_others_wait_until_the_server_is_done_with_it() {
        let (url, seen) = counting(Duration::from_millis(600)).await;
        let mut sampler = sampler(&url);
        sampler.interval = Duration::from_secs(6);
        sampler.timeout = Duration::from_millis(500);
        let mut out = Batch::default();
        sampler.sample(&mut out).await.unwrap();
        assert_eq!((out.value(&KEYS, ["pods"]), out.reasons()), (None, vec!["timeout"]));
        assert_eq!(out.series(&KEYS), PREFIXES.len() - 1, "the others are there");
        assert_eq!(seen.most.load(SeqCst), 1, "two counts at once");

        // With a short interval the pause reaches into the next run, which counts nothing then.
        sampler.interval = Duration::from_millis(100);
        sampler.busy_until = Some(Instant::now() + Duration::from_mins(1));
        let mut out = Batch::default();
        sampler.sample(&mut out).await.unwrap();
        assert_eq!(out.series(&KEYS), PREFIXES.len() - 1);
        assert_eq!(seen.began.lock().unwrap().len(), PREFIXES.len());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 3)]
    async fn while_the_server_is_down_not_even_a_resting_count_is_told_and_then_it_is_again() {
        let (url, _) = counting(Duration::ZERO).await;
        let mut sampler = sampler(&url);
        let mut out = Batch::default();
        sampler.sample(&mut out).await.unwrap();
        for resource in &mut sampler.resources[1..] {
            resource.rests_until = Some(Instant::now() + Duration::from_mins(1));
        }
        let alive = std::mem::take(&mut sampler.clients);
        let dead = Settings { endpoints: vec!["http://127.0.0.1:1".into()], ..Settings::default() };
        let dead = dead.access(None, &Host::at("/")).unwrap().unwrap();
        sampler.clients = Client::all(&dead, Duration::from_millis(200));
        sampler.resources[0].rests_until = None;
        let mut out = Batch::default();
        sampler.sample(&mut out).await.unwrap();
        assert_eq!((out.series(&KEYS), out.series(&SUCCESS)), (0, PREFIXES.len()));
        assert_eq!(out.reasons(), ["call"]);
        sampler.clients = alive;
        let mut out = Batch::default();
        sampler.sample(&mut out).await.unwrap();
        assert_eq!(out.series(&KEYS), PREFIXES.len());
    }

    #[tokio::test]
    async fn kine_on_its_socket_is_never_asked_for_a_serializable_read() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("kine.sock:2379");
        fake::serve_socket(&socket, |_, request| {
            assert!(!request.windows(2).any(|pair| pair == [0x38, 1]), "a serializable read");
            let header = Message::default().number(3, 9);
            Ok(Message::default().message(1, header).number(4, 3).done())
        });
        let mut sampler = sampler(socket.to_str().unwrap());
        let mut out = Batch::default();
        sampler.sample(&mut out).await.unwrap();
        assert_eq!((out.series(&KEYS), out.reasons()), (PREFIXES.len(), vec![]));
        assert_eq!(out.value(&KEYS, ["leases"]), Some(3.0));
    }

    #[tokio::test]
    async fn a_prefix_that_fails_hides_no_other() {
        // As etcd refuses, and as kine does.
        for refusal in [(8, "etcdserver: mvcc: something broke"), (2, "database is locked")] {
            let url = fake::serve(move |_, request| {
                if request.windows(5).any(|word| word == b"/pods") {
                    return Err(refusal);
                }
                Ok(from_member(1).number(4, 5).done())
            });
            let mut sampler = sampler(&url.await);
            let mut out = Batch::default();
            sampler.sample(&mut out).await.unwrap();
            let of = |name: &str| out.value(&KEYS, [name]);
            assert_eq!((of("pods"), of("leases")), (None, Some(5.0)), "{refusal:?}");
            assert_eq!((out.series(&KEYS), out.reasons()), (PREFIXES.len() - 1, vec!["call"]));
            assert!(out.failures()[0].to_string().contains("/registry/pods/"));
        }
    }

    #[test]
    fn a_count_rests_five_hundred_times_as_long_as_it_took() {
        let mut resource = Resource::new("a".into(), "/a/".into());
        let started = Instant::now().checked_sub(Duration::from_secs(1)).unwrap();
        resource.counted(5, started);
        let rest = resource.rests_until.unwrap() - started;
        assert!((500..510).contains(&rest.as_secs()), "{rest:?}");
        let interval = Duration::from_mins(1);
        for expected in [120, 240, 480] {
            resource.too_slow(interval);
            let rest = resource.rests_until.unwrap() - Instant::now();
            assert!((expected - 1..=expected).contains(&rest.as_secs()), "{rest:?}");
        }
        for _ in 0..50 {
            resource.too_slow(interval);
        }
        assert!(resource.rests_until.unwrap() - Instant::now() <= MAX_REST);
    }

    #[test]
    fn a_resting_prefix_is_not_due_and_the_oldest_comes_first() {
        let mut sampler = sampler("http://127.0.0.1:1");
        for resource in &mut sampler.resources {
            resource.last_success = Some(SystemTime::now());
        }
        sampler.resources[4].last_success = None;
        sampler.resources[0].rests_until = Some(Instant::now() + Duration::from_mins(1));
        let due = sampler.due();
        assert_eq!((due[0], due.len()), (4, PREFIXES.len() - 1));
        assert!(!due.contains(&0));
    }
}
