//! The local etcd member, and how it sees the other members.
//!
//! Asks the local member over gRPC, all at once: status, member list, one serializable and one
//! linearizable read of an absent key, and one more read for the compaction revision. Each other
//! member is asked for its member list and one linearizable read at its client URL. Nothing is
//! written, nothing scanned.
//!
//! `etcd_up` is 1 when the local member answered any call, if only to refuse it: during a
//! defragmentation status and reads hang while the member list is answered. What hangs costs one
//! `timeout`. A member that does not answer is a verdict, not an error of the sampler; the member
//! list is remembered, also by a sampler that is built anew: when etcd stops, detection knows its quota
//! from another source, and just then the list is needed. TLS files that cannot be used say nothing
//! about the member: while nothing else failed there is no `etcd_up`, and the run fails with the file's
//! name and the reason `tls_config`.

mod alarms;
mod compaction;
mod history;
mod members;
mod metrics;
mod peers;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{GetOptions, GetResponse, MemberListResponse, ResponseHeader, StatusResponse};
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};

use crate::config;
use crate::etcd::client::{Consistency, Timed};
use crate::etcd::{Access, Address, Answer, Client, Failure, Reason, Settings, TlsFiles, covers};
use crate::host::{
    Datastore, Distribution, EtcdAccess, Facts, Installation, NO_QUOTA, Quota, QuotaSource,
};
use crate::kept::{Kept, Shared};
use crate::requests::Requests;
use crate::sample::{Batch, SampleError};
use crate::sampler::{AsyncSampler, Build, OptionsError, SamplerDef, defaults, facts};

use compaction::Hint;
use history::History;
use members::{Member, Roster, hex};
use metrics::{
    ALARM, COMPACT_REVISION, DB_IN_USE, DB_SIZE, EXPECTED, HAS_LEADER, IS_LEADER, IS_LEARNER,
    LEADER_CHANGES, MEMBER, QUOTA, QUOTA_SOURCE, RAFT_APPLIED, RAFT_INDEX, RAFT_TERM,
    REQUEST_DURATION, REQUEST_FAILURES, REQUEST_SUCCESS, REVISION, UP, VOTERS_REACHABLE,
};
use peers::Peers;

/// The key that reads ask for; nobody writes it.
const PROBE_KEY: &str = "\0controlplane-exporter/probe";
/// etcd's quota where nothing sets one.
const DEFAULT_QUOTA: u64 = 2 << 30;
/// Where every distribution's etcd listens, for a node whose etcd was never started.
const DEFAULT_ENDPOINT: &str = "https://127.0.0.1:2379";

/// See the module's page.
pub static SAMPLER: SamplerDef = SamplerDef {
    about: "The local etcd member, and how it sees the other members.",
    interval: Duration::from_secs(15),
    timeout: Duration::from_secs(5),
    metrics: metrics::ALL,
    defaults: defaults::<Options>,
    uses: |all| facts((all.etcd(), all.primary().map(|node| (node.distribution, node.datastore)))),
    build: |options, host| {
        let own: Options = options.parse()?;
        if own.expected_members == Some(0) {
            return Err(OptionsError::new("expected_members", "must be at least 1"));
        }
        let node = host.facts().primary();
        let found = found(host.facts());
        let settings = Settings {
            endpoints: own.endpoints,
            ca_file: own.ca_file,
            cert_file: own.cert_file,
            key_file: own.key_file,
            server_name: own.server_name,
        };
        let ca = settings.ca_file.clone().or_else(|| found.as_ref()?.ca_file.clone());
        let Some(access) = settings.access(found.as_ref(), host)? else {
            let datastore = node.map_or("no Kubernetes control plane was found".to_owned(), |n| {
                format!("the datastore of this {} node is {}", n.distribution, n.datastore.as_str())
            });
            return Ok(Build::not_applicable(format!(
                "{datastore}; set etcd.endpoints to watch an etcd member all the same"
            )));
        };
        // What detection says of another etcd than the configured one does not count.
        let quota = match own.quota_bytes {
            Some(bytes) => Some(Quota { bytes, source: QuotaSource::Config }),
            None => found.filter(|f| covers(f, &access.addresses)).and_then(|found| found.quota),
        };
        let known = KNOWN.of((access.addresses.clone(), ca));
        Ok(Build::tasked(Etcd::new(&access, known, own.expected_members, quota, options.timeout)))
    },
    cost: "1.3 ms of CPU a run with two peers; 2 ms in the local etcd, 1 ms in each other",
};

/// What detection knows of the local member; where it knows only that there is one, etcd's usual
/// address, so that a verdict is there although etcd was never started.
fn found(facts: &Facts) -> Option<EtcdAccess> {
    // Where an etcd of its own runs and nothing tells how, the usual address would be a guess.
    let is_told = |node: &Installation| {
        node.datastore != Datastore::Etcd
            || (node.distribution == Distribution::Etcd && node.running)
    };
    if facts.primary().is_none_or(is_told) {
        return facts.etcd().cloned();
    }
    let mut found = facts.etcd().cloned().unwrap_or_default();
    if found.endpoints.is_empty() {
        found.endpoints = vec![DEFAULT_ENDPOINT.to_owned()];
    }
    Some(found)
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Options {
    /// Addresses of the local member; the first that answers is used.
    #[serde(deserialize_with = "config::list")]
    endpoints: Vec<String>,
    /// The CA that signed the member's certificate, in PEM.
    ca_file: Option<PathBuf>,
    /// The client certificate, in PEM.
    cert_file: Option<PathBuf>,
    /// Its key, in PEM and without a passphrase.
    key_file: Option<PathBuf>,
    /// The name in the local member's certificate, if not the host of the endpoint.
    server_name: Option<String>,
    /// How many members the cluster should have.
    expected_members: Option<u32>,
    /// The backend quota in bytes, where detection cannot know it.
    quota_bytes: Option<u64>,
}

/// What one address of the local member answered.
struct Local {
    status: Timed<StatusResponse>,
    members: Timed<MemberListResponse>,
    serializable: Timed<GetResponse>,
    linearizable: Timed<GetResponse>,
    compaction: Option<Answer<Hint>>,
}

impl Local {
    async fn ask(client: &Client, hint: Option<Hint>) -> Self {
        let read = |consistency| Timed::of(client.get(PROBE_KEY, GetOptions::new(), consistency));
        let status = async {
            let status = Timed::of(client.status()).await;
            let compaction = match status.answer.as_ref().map(StatusResponse::header) {
                Ok(Some(header)) => {
                    let (cluster, member) = (header.cluster_id(), header.member_id());
                    let find = compaction::find(client, hint, cluster, member, header.revision());
                    // Many reads of a slow member take no longer than one call, status included.
                    let left = client.timeout().saturating_sub(status.took);
                    let found = tokio::time::timeout(left, find).await;
                    Some(found.unwrap_or_else(|_| Err(Failure::late(client.timeout()))))
                }
                _ => None,
            };
            (status, compaction)
        };
        let ((status, compaction), members, serializable, linearizable) = tokio::join!(
            status,
            Timed::of(client.member_list()),
            read(Consistency::Serializable),
            read(Consistency::Linearizable),
        );
        Self { status, members, serializable, linearizable, compaction }
    }

    /// Whether an etcd answered, if only to refuse.
    fn up(&self) -> bool {
        self.status.answered()
            || self.members.answered()
            || self.serializable.answered()
            || self.linearizable.answered()
    }

    /// Counts its calls.
    fn count(&self, requests: &mut Requests) {
        fn one<T>(requests: &mut Requests, word: &str, call: &Timed<T>) {
            requests.record(word, call.took, call.reason());
        }
        let [status, serializable, linearizable, list] = metrics::REQUESTS;
        one(requests, status, &self.status);
        one(requests, serializable, &self.serializable);
        one(requests, linearizable, &self.linearizable);
        one(requests, list, &self.members);
    }

    /// Whether nothing was learnt because of our own trouble.
    fn blind(&self) -> bool {
        [
            self.status.reason(),
            self.members.reason(),
            self.serializable.reason(),
            self.linearizable.reason(),
        ]
        .iter()
        .all(|reason| reason.is_some_and(Reason::is_ours))
    }

    /// Who answered.
    fn header(&self) -> Option<&ResponseHeader> {
        let status = self.status.answer.as_ref().ok().and_then(StatusResponse::header);
        let members = self.members.answer.as_ref().ok().and_then(MemberListResponse::header);
        let read = self.serializable.answer.as_ref().ok().and_then(GetResponse::header);
        status.or(members).or(read)
    }

    /// The id of the member that answered.
    fn member_id(&self) -> Option<u64> {
        self.header().map(ResponseHeader::member_id)
    }

    /// Why it does not answer.
    fn why(&self) -> String {
        match &self.members.answer {
            Ok(_) => String::new(),
            Err(failure) => {
                let text = failure.text.split(" (os error").next().unwrap_or_default();
                format!("{text} ({})", failure.reason.as_str())
            }
        }
    }

    fn roster(&self) -> Option<Roster> {
        let list = self.members.answer.as_ref().ok()?;
        let all = list
            .members()
            .iter()
            .map(|m| Member::new(m.id(), m.name(), m.is_learner(), m.client_urls()));
        Some(Roster::new(all, self.member_id().unwrap_or(0)))
    }
}

struct Etcd {
    clients: Vec<Client>,
    tls: Arc<TlsFiles>,
    expected: Option<u32>,
    quota: Option<Quota>,
    peers: Peers,
    hint: Option<Hint>,
    known: Shared<Known>,
    counted: Shared<Counted>,
}

/// By the member's addresses and its CA: the etcd of another distribution listens at the same addresses.
static KNOWN: Kept<(Vec<Address>, Option<PathBuf>), Shared<Known>> = Kept::new();

/// What the local member said last of itself and of its cluster.
#[derive(Debug, Clone, Default)]
struct Known {
    /// The address that answered last.
    current: Option<usize>,
    cluster: Option<u64>,
    own: Option<u64>,
    roster: Option<Roster>,
}

impl Known {
    /// Which of the answers counts: that of the address used before, else the first that is of the
    /// same member. An address that turns out to be another member's does not stand in for ours.
    fn choose(&self, answers: &[Local]) -> usize {
        let before = self.current.unwrap_or(0);
        if answers[before].up() {
            return before;
        }
        let same = |local: &Local| {
            local.up()
                && (self.own.is_none() || local.member_id().is_none_or(|id| Some(id) == self.own))
        };
        answers.iter().position(same).unwrap_or(before)
    }

    /// Takes over who answered. What another cluster said before at the same addresses is forgotten.
    fn answered(&mut self, header: &ResponseHeader) {
        if self.cluster.is_some_and(|cluster| cluster != header.cluster_id()) {
            *self = Self { current: self.current, ..Self::default() };
        }
        self.cluster = Some(header.cluster_id());
        self.own = Some(header.member_id());
    }
}

/// By the member's addresses.
static COUNTED: Kept<Vec<Address>, Shared<Counted>> = Kept::new();

/// What has been counted and seen so far.
struct Counted {
    requests: Requests,
    history: History,
}

impl Default for Counted {
    fn default() -> Self {
        let requests = Requests::new(&metrics::REQUESTS, metrics::REQUEST_BUCKETS);
        Self { requests, history: History::default() }
    }
}

impl Etcd {
    fn new(
        access: &Access,
        known: Shared<Known>,
        expected: Option<u32>,
        quota: Option<Quota>,
        timeout: Duration,
    ) -> Self {
        Self {
            clients: Client::all(access, timeout),
            tls: Arc::clone(&access.tls),
            expected,
            quota,
            peers: Peers::new(Arc::clone(&access.tls), timeout),
            hint: None,
            known,
            counted: COUNTED.of(access.addresses.clone()),
        }
    }

    /// Figures of the status call; absent while it does not answer.
    fn export_status(&mut self, local: &Local, roster: Option<&Roster>, out: &mut Batch) {
        let Ok(status) = &local.status.answer else { return };
        let Some(header) = status.header() else { return };
        out.push(&DB_SIZE, [], status.db_size());
        out.push(&REVISION, [], header.revision());
        if header.cluster_id() == 0 {
            // kine or k8s-dqlite, which has neither members nor leaders nor a quota.
            return;
        }
        let (id, leader) = (header.member_id(), status.leader());
        let name = roster.and_then(|r| r.find(id)).map_or("", |member| &member.name);
        out.info(&MEMBER, [name, &hex(id), &hex(header.cluster_id()), status.version()]);
        out.push(&HAS_LEADER, [], leader != 0);
        out.push(&IS_LEADER, [], leader == id);
        out.push(&IS_LEARNER, [], status.is_learner());
        self.counted.lock().history.leader(leader, status.raft_term(), roster, out);
        out.push(&RAFT_TERM, [], status.raft_term());
        out.push(&RAFT_INDEX, [], status.raft_index());
        // Fields that an old etcd does not know come as zero.
        if status.raft_applied_index() > 0 {
            out.push(&RAFT_APPLIED, [], status.raft_applied_index());
        }
        if status.raft_used_db_size() > 0 {
            out.push(&DB_IN_USE, [], status.raft_used_db_size());
        }
        if let Some((quota, source)) = quota(status.db_size_quota(), self.quota.as_ref()) {
            out.push(&QUOTA, [], quota);
            out.info(&QUOTA_SOURCE, [source.as_str()]);
        }
        self.export_alarms(status.errors(), id, roster, out);
        match &local.compaction {
            Some(Ok(hint)) => {
                self.hint = Some(*hint);
                out.push(&COMPACT_REVISION, [], hint.compacted);
            }
            Some(Err(failure)) => {
                let what = format!("the compaction revision: {}", failure.text);
                out.fail(SampleError::call("etcd", what));
            }
            None => {}
        }
    }

    fn export_alarms(&self, errors: &[String], own: u64, roster: Option<&Roster>, out: &mut Batch) {
        let (raised, left_out) = alarms::parse(errors);
        out.dropped(left_out);
        let listed = roster.into_iter().flat_map(|roster| &roster.members).map(|member| member.id);
        for id in listed.chain([own]).collect::<std::collections::BTreeSet<_>>() {
            for kind in alarms::KINDS {
                out.push(&ALARM, [&hex(id), kind], raised.contains(&(id, kind)));
            }
        }
        let unlisted = |id| id != own && roster.is_none_or(|r| r.find(id).is_none());
        for (id, kind) in &raised {
            if unlisted(*id) || !alarms::KINDS.contains(kind) {
                out.push(&ALARM, [&hex(*id), kind], true);
            }
        }
        self.counted.lock().history.alarms(raised, out);
    }
}

/// The quota in bytes and where it is known from; nothing where there is none. etcd takes 0 for its default, and a negative
/// one for none.
fn quota(status: i64, found: Option<&Quota>) -> Option<(u64, QuotaSource)> {
    match (u64::try_from(status), found) {
        (Err(_), _) => None,
        (Ok(bytes), _) if bytes > 0 => Some((bytes, QuotaSource::Status)),
        (_, Some(quota)) if quota.bytes == NO_QUOTA => None,
        (_, Some(quota)) if quota.bytes > 0 => Some((quota.bytes, quota.source)),
        _ => Some((DEFAULT_QUOTA, QuotaSource::Default)),
    }
}

#[async_trait]
impl AsyncSampler for Etcd {
    async fn sample(&mut self, out: &mut Batch) -> Result<(), SampleError> {
        let hint = self.hint;
        let mut known = self.known.lock().clone();
        let addresses: Vec<&Address> = self.clients.iter().map(Client::address).collect();
        let local = join_all(self.clients.iter().map(|client| Local::ask(client, hint)));
        // The others are asked beside the local member from the second run on, so that a hung target costs one
        // time-out; only the first run has to wait for the list.
        let (answers, mut seen) = match &known.roster {
            Some(roster) => {
                let (local, seen) =
                    tokio::join!(local, self.peers.ask(roster, known.own, &addresses));
                (local, Some(seen))
            }
            None => (local.await, None),
        };
        let chosen = known.choose(&answers);
        let local = &answers[chosen];
        let up = local.up();
        let blind = answers.iter().all(Local::blind);
        if up {
            known.current = Some(chosen);
            if let Some(header) = local.header() {
                known.answered(header);
            }
        } else {
            join_all(self.clients.iter().map(Client::reset)).await;
        }
        if let Some(roster) = local.roster() {
            if seen.is_none() {
                seen = Some(self.peers.ask(&roster, known.own, &addresses).await);
            }
            known.roster = Some(roster);
        }
        self.known.lock().clone_from(&known);

        local.count(&mut self.counted.lock().requests);
        if !blind {
            out.push(&UP, [], up);
            self.counted.lock().history.up(up, &local.why(), out);
        }
        if !blind && !up {
            out.remark(local.why());
        }
        self.export_status(local, known.roster.as_ref(), out);
        {
            let Counted { requests, history } = &*self.counted.lock();
            out.push(&LEADER_CHANGES, [], history.leader_changes());
            requests.export(&REQUEST_DURATION, &REQUEST_FAILURES, &REQUEST_SUCCESS, out);
        }
        if let Some(expected) = self.expected {
            out.push(&EXPECTED, [], expected);
        }
        if let Some(roster) = &known.roster {
            roster.export(known.own, out);
            let listed = |(id, _): &(u64, _)| roster.find(*id).is_some();
            let seen: Vec<_> = seen.into_iter().flatten().filter(listed).collect();
            peers::export(&seen, out);
            let voters = peers::voters_reachable(roster, known.own, up, &seen);
            if let Some(voters) = voters.filter(|_| !blind) {
                out.push(&VOTERS_REACHABLE, [], voters);
            }
        }
        let failure = local.members.answer.as_ref().err().filter(|_| blind);
        match failure.and_then(|failure| self.clients[chosen].closed(failure)) {
            Some(error) => Err(error),
            None => self.tls.tell(blind, out).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::members::MAX_MEMBERS;
    use super::*;
    use crate::etcd::fake::{self, Message, from_member};
    use crate::host::Host;
    use crate::sampler;
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

    fn build(own: &serde_json::Value, facts: Facts) -> Result<Build, OptionsError> {
        let own = own.as_object().cloned().unwrap_or_default();
        let (interval, timeout) = (Duration::from_secs(15), Duration::from_millis(300));
        let options = sampler::Options { interval, timeout, own };
        (SAMPLER.build)(&options, &Host::at("/").with_facts(facts))
    }

    fn node(datastore: Datastore) -> Facts {
        let node = Installation { datastore, ..Installation::new(Distribution::K3s) };
        Facts { installations: vec![node], ..Facts::default() }
    }

    #[test]
    fn a_node_without_etcd_is_told_which_key_would_change_that() {
        let why = |facts| match build(&serde_json::json!({}), facts) {
            Ok(Build::NotApplicable(why)) => why,
            _ => panic!("it was built"),
        };
        assert!(why(Facts::default()).contains("set etcd.endpoints"));
        let sqlite = why(node(Datastore::Sqlite));
        assert!(sqlite.contains("k3s node is sqlite"), "{sqlite}");
    }

    #[test]
    fn a_wrong_key_is_named() {
        for (own, key) in [
            (serde_json::json!({"endpoint": "x"}), "endpoint"),
            (serde_json::json!({"endpoints": "localhost"}), "endpoints"),
            (serde_json::json!({"expected_members": 0}), "expected_members"),
            (serde_json::json!({"expected_members": "three"}), "expected_members"),
            (serde_json::json!({"cert_file": "/a"}), "key_file"),
        ] {
            let error = build(&own, Facts::default()).map(drop).unwrap_err();
            assert_eq!(error.key, key, "{own}: {error}");
        }
    }

    #[tokio::test]
    async fn an_etcd_that_was_never_started_has_a_verdict_and_no_figures() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let own = serde_json::json!({
            "endpoints": format!("http://127.0.0.1:{port}"), "expected_members": 3,
        });
        let Ok(Build::Run(sampler::Driver::Async(mut sampler))) =
            build(&own, node(Datastore::Etcd))
        else {
            panic!("it was not built")
        };
        let mut out = Batch::default();
        sampler.sample(&mut out).await.unwrap();
        assert_eq!(out.value(&UP, []), Some(0.0));
        assert_eq!(out.value(&EXPECTED, []), Some(3.0));
        assert_eq!(out.value(&metrics::REQUEST_FAILURES, ["status", "refused"]), Some(1.0));
        assert_eq!((out.series(&HAS_LEADER), out.series(&metrics::LISTED)), (0, 0));
        assert_eq!(out.take_events()[0].kind, "etcd_down");
    }

    /// One run against `url`.
    async fn run(url: &str) -> Batch {
        run_with(&serde_json::json!({"endpoints": url})).await
    }

    /// One run of a sampler that is built for it.
    async fn run_with(own: &serde_json::Value) -> Batch {
        let Ok(Build::Run(sampler::Driver::Async(mut sampler))) = build(own, Facts::default())
        else {
            panic!("it was not built")
        };
        let mut out = Batch::default();
        sampler.sample(&mut out).await.unwrap();
        out
    }

    fn member(id: u64, name: &str, url: &str) -> Message {
        let member = Message::default().number(1, id).bytes(2, name.as_bytes());
        member.bytes(4, url.as_bytes())
    }

    fn status() -> Message {
        from_member(1).bytes(2, b"3.6.4").number(3, 100).number(4, 1).number(6, 2)
    }

    #[tokio::test]
    async fn an_etcd_3_6_says_its_quota_itself() {
        let url = fake::serve(|call, _| match call {
            "Status" => Ok(status().number(12, 8 << 30).done()),
            "MemberList" => Ok(from_member(1).message(2, member(1, "a", "")).done()),
            _ => Ok(from_member(1).done()),
        });
        let out = run(&url.await).await;
        assert_eq!(out.value(&metrics::QUOTA, []), Some(8_589_934_592.0));
        assert_eq!(out.value(&QUOTA_SOURCE, ["status"]), Some(1.0));
        assert_eq!(out.value(&MEMBER, ["a", "1", "4d", "3.6.4"]), Some(1.0));
        assert_eq!(out.value(&VOTERS_REACHABLE, []), Some(1.0));
        assert_eq!((out.series(&DB_IN_USE), out.series(&RAFT_APPLIED)), (0, 0), "unknown to it");
        assert_eq!(out.reasons(), [""; 0]);
    }

    #[tokio::test]
    async fn a_member_list_beyond_all_measure_hides_nothing_else() {
        let name = "x".repeat(5_000_000);
        let url = fake::serve(move |call, _| match call {
            "Status" => Ok(status().done()),
            "MemberList" => Ok(from_member(1).message(2, member(1, &name, "")).done()),
            _ => Ok(from_member(1).done()),
        });
        let out = run(&url.await).await;
        assert_eq!((out.value(&UP, []), out.value(&HAS_LEADER, [])), (Some(1.0), Some(1.0)));
        assert_eq!(out.value(&metrics::REQUEST_FAILURES, ["member_list", "other"]), Some(1.0));
        assert_eq!(out.series(&metrics::LISTED), 0);
    }

    #[tokio::test]
    async fn five_thousand_members_and_a_long_name_are_counted_and_cut() {
        let url = fake::serve(|call, _| match call {
            "Status" => Ok(status().done()),
            "MemberList" => {
                let own = from_member(1).message(2, member(1, &"x".repeat(1_000_000), ""));
                let all = (2..=5_000).map(|id| member(id, "m", "http://127.0.0.1:1"));
                Ok(all.fold(own, |list, member| list.message(2, member)).done())
            }
            _ => Ok(from_member(1).done()),
        });
        let out = run(&url.await).await;
        assert_eq!(out.value(&metrics::LISTED, []), Some(5_000.0));
        let name = "x".repeat(crate::sample::LABEL_BYTES);
        assert_eq!(out.value(&MEMBER, [&name, "1", "4d", "3.6.4"]), Some(1.0));
        assert_eq!(out.series(&metrics::PEER), MAX_MEMBERS - 1);
        assert_eq!(out.series(&ALARM), 2 * MAX_MEMBERS);
        assert_eq!(out.series(&VOTERS_REACHABLE), 0, "not all were asked");
        assert!(out.dropped_count() > 0);
    }

    #[tokio::test]
    async fn garbage_among_the_errors_of_a_status_raises_no_alarm_and_a_flood_of_them_is_cut() {
        let errors = |errors: Vec<Vec<u8>>| {
            fake::serve(move |call, _| match call {
                "Status" => Ok(errors.iter().fold(status(), |s, text| s.bytes(8, text)).done()),
                _ => Ok(from_member(1).done()),
            })
        };
        let digits = "9".repeat(1 << 20);
        let garbage = ["\x01 memberID: alarm:", "", "alarm:NOSPACE memberID:1", &digits];
        let garbage = garbage.map(|text| text.as_bytes().to_vec()).to_vec();
        let out = run(&errors(garbage).await).await;
        assert_eq!(out.value(&ALARM, ["1", "NOSPACE"]), Some(0.0));
        assert_eq!((out.series(&ALARM), out.reasons()), (2, vec![]));

        let flood = (1..50_000).map(|id| format!("memberID:{id} alarm:NOSPACE ").into_bytes());
        let mut out = run(&errors(flood.collect()).await).await;
        assert_eq!(out.value(&ALARM, ["1", "NOSPACE"]), Some(1.0));
        assert!((100..=200).contains(&out.series(&ALARM)), "{}", out.series(&ALARM));
        assert!(out.take_events().len() < 1_000);

        // Text that is no UTF-8 makes the whole status unreadable, and that is a failure.
        let out = run(&errors(vec![vec![0xff, 0xfe]]).await).await;
        assert_eq!(out.series(&HAS_LEADER), 0);
        assert_eq!(out.value(&metrics::REQUEST_FAILURES, ["status", "other"]), Some(1.0));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_search_that_a_slow_member_draws_out_ends_with_the_other_calls() {
        let url = fake::serve(|call, _| {
            tokio::task::block_in_place(|| std::thread::sleep(Duration::from_millis(20)));
            let header = Message::default().number(1, 77).number(2, 1).number(3, 1 << 50);
            let answer = Message::default().message(1, header);
            Ok(if call == "Status" { answer.number(4, 1).done() } else { answer.done() })
        });
        let url = url.await;
        let started = std::time::Instant::now();
        let out = run(&url).await;
        // Fifty reads would take a second, and a call may take 0.3 s.
        assert!(started.elapsed() < Duration::from_millis(900), "{:?}", started.elapsed());
        assert_eq!((out.value(&UP, []), out.value(&HAS_LEADER, [])), (Some(1.0), Some(1.0)));
        assert_eq!((out.series(&COMPACT_REVISION), out.reasons()), (0, vec!["call"]));
    }

    #[tokio::test]
    async fn an_answer_of_another_member_does_not_make_a_peer_reachable() {
        let impostor = fake::serve(|_, _| Ok(from_member(9).done())).await;
        let real = fake::serve(|_, _| Ok(from_member(3).done())).await;
        let url = fake::serve(move |call, _| match call {
            "Status" => Ok(status().done()),
            "MemberList" => Ok(from_member(1)
                .message(2, member(1, "a", ""))
                .message(2, member(2, "b", &impostor))
                .message(2, member(3, "c", &real))
                .done()),
            _ => Ok(from_member(1).done()),
        });
        let out = run(&url.await).await;
        assert_eq!(out.value(&metrics::PEER_UP, ["3"]), Some(1.0));
        assert_eq!(out.value(&metrics::PEER_UP, ["2"]), None);
        assert_eq!(out.series(&VOTERS_REACHABLE), 0);
    }

    #[tokio::test]
    async fn an_etcd_that_refuses_everything_is_up_and_kine_has_no_leader_to_lose() {
        let refusing = fake::serve(|_, _| Err((16, "etcdserver: invalid auth token"))).await;
        let out = run(&refusing).await;
        assert_eq!((out.value(&UP, []), out.series(&HAS_LEADER)), (Some(1.0), 0));
        let failed = ["status", "unauthenticated"];
        assert_eq!(out.value(&metrics::REQUEST_FAILURES, failed), Some(1.0));
        let kine = fake::serve(|call, _| match call {
            "Status" => Ok(Message::default()
                .message(1, Message::default().number(3, 9))
                .number(3, 4096)
                .done()),
            _ => Err((2, "serializable is unsupported")),
        });
        let out = run(&kine.await).await;
        assert_eq!((out.value(&UP, []), out.value(&DB_SIZE, [])), (Some(1.0), Some(4096.0)));
        assert_eq!((out.series(&HAS_LEADER), out.series(&ALARM)), (0, 0));
        let other = fake::serve(|_, _| Err((12, "unknown service etcdserverpb.KV"))).await;
        assert_eq!(run(&other).await.value(&UP, []), Some(0.0), "some other server");
        let garbage = fake::serve(|_, _| Ok(vec![0xff; 64])).await;
        assert_eq!(run(&garbage).await.value(&UP, []), Some(0.0), "no protobuf");
    }

    #[tokio::test]
    async fn a_sampler_that_is_built_anew_for_the_same_member_counts_on() {
        let calls = |out: Batch| out.value(&REQUEST_DURATION, ["status"]);
        // An empty message is an answer.
        let url = fake::serve(|_, _| Ok(Vec::new())).await;
        assert_eq!(calls(run(&url).await), Some(1.0));
        assert_eq!(calls(run(&url).await), Some(2.0));
        let other = fake::serve(|_, _| Ok(Vec::new())).await;
        assert_eq!(calls(run(&other).await), Some(1.0), "another member's are its own");
    }

    #[tokio::test]
    async fn a_sampler_that_is_built_anew_while_etcd_is_down_knows_the_members() {
        let peer = fake::serve(|_, _| Ok(from_member(2).done())).await;
        let stopped = Arc::new(AtomicBool::new(false));
        let down = Arc::clone(&stopped);
        let url = fake::serve(move |call, _| match call {
            _ if down.load(SeqCst) => Err((12, "unknown service etcdserverpb.KV")),
            "Status" => Ok(status().done()),
            "MemberList" => Ok(from_member(1)
                .message(2, member(1, "a", ""))
                .message(2, member(2, "b", &peer))
                .done()),
            _ => Ok(from_member(1).done()),
        });
        let url = url.await;
        assert_eq!(run(&url).await.value(&metrics::LISTED, []), Some(2.0));
        stopped.store(true, SeqCst);
        let out = run(&url).await;
        assert_eq!((out.value(&UP, []), out.value(&metrics::LISTED, [])), (Some(0.0), Some(2.0)));
        assert_eq!(out.value(&metrics::PEER, ["2", "b"]), Some(1.0));
        assert_eq!(out.value(&metrics::PEER_UP, ["2"]), Some(1.0));
        assert_eq!(out.value(&VOTERS_REACHABLE, []), Some(1.0));
        // The etcd of another distribution at the same address does not inherit them.
        let other = serde_json::json!({"endpoints": url, "ca_file": "/other/ca.crt"});
        let out = run_with(&other).await;
        assert_eq!((out.value(&UP, []), out.series(&metrics::LISTED)), (Some(0.0), 0));
    }

    #[tokio::test]
    async fn another_cluster_at_the_same_address_does_not_inherit_the_members() {
        let replaced = Arc::new(AtomicBool::new(false));
        let other = Arc::clone(&replaced);
        let url = fake::serve(move |call, _| {
            let new = other.load(SeqCst);
            let header = Message::default().number(1, if new { 78 } else { 77 }).number(2, 1);
            let answer = Message::default().message(1, header.number(3, 9).number(4, 2));
            match call {
                "MemberList" if new => Err((16, "etcdserver: invalid auth token")),
                "MemberList" => Ok(answer.message(2, member(1, "a", "")).done()),
                _ => Ok(answer.done()),
            }
        });
        let url = url.await;
        assert_eq!(run(&url).await.value(&metrics::LISTED, []), Some(1.0));
        replaced.store(true, SeqCst);
        let out = run(&url).await;
        assert_eq!((out.value(&UP, []), out.series(&metrics::LISTED)), (Some(1.0), 0));
    }

    #[tokio::test]
    async fn tls_files_that_cannot_be_used_are_no_verdict_about_the_member() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let settings = Settings { endpoints: vec![url], ..Settings::default() };
        let access = settings.access(None, &Host::at("/")).unwrap().unwrap();
        let mut etcd = Etcd::new(&access, Shared::default(), None, None, Duration::from_secs(2));
        let mut out = Batch::default();
        let error = etcd.sample(&mut out).await.unwrap_err();
        assert!(matches!(error, SampleError::Blind(_)), "{error}");
        assert_eq!(error.reason(), "not_found", "{error}");
        assert_eq!((out.series(&UP), out.take_events().len()), (0, 0));
        let failed = ["member_list", "tls_config"];
        assert_eq!(out.value(&metrics::REQUEST_FAILURES, failed), Some(1.0));
        // Nobody listens: that is one, whatever the files hold.
        drop(listener);
        let mut etcd = Etcd::new(&access, Shared::default(), None, None, Duration::from_secs(2));
        etcd.sample(&mut out).await.unwrap();
        assert_eq!(out.value(&UP, []), Some(0.0));
        assert_eq!(out.remarks(), ["connecting: Connection refused (refused)"]);
    }

    #[test]
    fn the_quota_of_the_status_wins_and_the_default_comes_last() {
        let found = Quota { bytes: 7, source: QuotaSource::Manifest };
        assert_eq!(quota(9, Some(&found)), Some((9, QuotaSource::Status)));
        assert_eq!(quota(0, Some(&found)), Some((7, QuotaSource::Manifest)));
        assert_eq!(quota(0, None), Some((2_147_483_648, QuotaSource::Default)));
        let unset = Quota { bytes: 0, source: QuotaSource::Process };
        assert_eq!(quota(0, Some(&unset)).unwrap().1, QuotaSource::Default);
        let none = Quota { bytes: NO_QUOTA, source: QuotaSource::Process };
        assert_eq!((quota(0, Some(&none)), quota(-1, Some(&found))), (None, None));
    }

    #[test]
    fn etcd_that_detection_knows_of_without_an_address_is_looked_for_where_it_usually_is() {
        let facts = node(Datastore::Etcd);
        assert_eq!(found(&facts).unwrap().endpoints, [DEFAULT_ENDPOINT]);
        assert!(matches!(build(&serde_json::json!({}), facts), Ok(Build::Run(_))));
        // One that runs by itself, and whose settings nothing tells, is not guessed at.
        let mut alone = node(Datastore::Etcd);
        alone.installations[0].distribution = Distribution::Etcd;
        alone.installations[0].running = true;
        assert_eq!(found(&alone), None);
    }
}
