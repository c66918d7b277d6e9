//! The local dqlite member of MicroK8s or Canonical Kubernetes: its files, and what it and the others say.
//!
//! A child process reads the directory (`crate::dqlite::directory`): term, log, snapshots, memberships, pages of the
//! database. Then the local member is asked for the members, the leader and its failure domain, and each other member
//! for the leader, over TLS with `cluster.crt` where there is one. Nothing is written, locked or opened as a database.
//!
//! Only voters know the leader; a stand-by always says that there is none. So the members are asked for first, and
//! where the local one does not vote, the others' word counts. A member that does not answer is a verdict, not an error
//! of the sampler. A handshake with the cluster's RSA key costs a member some milliseconds, so with TLS nobody is asked
//! twice within [`APART`], however short the interval is; the answers before stand. What hangs costs one `timeout`
//! each for the directory, the local member, and all others together.

mod files;
mod history;
mod metrics;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};

use crate::child::{ChildError, Slot};
use crate::dqlite::client::{Conversation, Failure, Step, converse};
use crate::dqlite::directory::{Question, Report};
use crate::dqlite::wire::{Answer, Request};
use crate::dqlite::{Member, Role, tls};
use crate::etcd::{Reason, TlsFiles};
use crate::host::{Datastore, Facts};
use crate::kept::{Kept, Shared};
use crate::requests::Requests;
use crate::sample::{Batch, SampleError, WireError};
use crate::sampler::{AsyncSampler, Build, SamplerDef, absolute, defaults, facts};

use history::History;
use metrics::{
    HAS_LEADER, IS_LEADER, LEADER_CHANGES, MEMBER_UP, REQUEST_DURATION, REQUEST_FAILURES,
    REQUEST_SUCCESS, ROLE, UP, VOTE, VOTERS_LISTED, VOTERS_REACHABLE,
};

/// No more members are asked.
const MAX_MEMBERS: usize = 50;
/// Between two TLS handshakes with the same member; 30 s less what an interval of 30 s may vary, a twentieth.
const APART: Duration = Duration::from_secs(28);

/// One child at a time, whichever directory is asked for.
static SLOT: Kept<(), Slot> = Kept::new();
/// By the member's directory.
static COUNTED: Kept<PathBuf, Shared<Counted>> = Kept::new();

/// See the module's page.
pub static SAMPLER: SamplerDef = SamplerDef {
    about: "The local dqlite member, its files, and how it sees the other members.",
    interval: Duration::from_secs(30),
    timeout: Duration::from_secs(3),
    metrics: metrics::ALL,
    defaults: defaults::<Options>,
    uses: |all| {
        facts((directory(all), all.primary().map(|node| (node.distribution, node.datastore))))
    },
    build: |options, host| {
        let own: Options = options.parse()?;
        absolute("dir", &own.dir)?;
        let Some(dir) = own.dir.or_else(|| directory(host.facts())) else {
            let datastore = match host.facts().primary() {
                None => "no Kubernetes control plane was found".to_owned(),
                Some(n) => {
                    let kind = n.datastore.as_str();
                    format!("the datastore of this {} node is {kind}", n.distribution)
                }
            };
            return Ok(Build::not_applicable(format!(
                "{datastore}; set dqlite.dir to watch a dqlite member all the same"
            )));
        };
        let file = |name| Some(dir.join(name));
        let (cert, key) = (file("cluster.crt"), file("cluster.key"));
        let tls = TlsFiles::new(host, cert.clone(), cert, key).made_by(tls::client_config);
        let question = Question { rootfs: host.rootfs().to_owned(), dir };
        Ok(Build::tasked(Dqlite::new(question, tls, options.timeout)))
    },
    cost: "10 ms of CPU a run before optimisation, 7 of them the child's; 0.3 ms in the local member without TLS, and with it \
           a handshake in each member",
};

/// The section `dqlite`.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Options {
    /// The member's directory, instead of the one that detection found.
    dir: Option<PathBuf>,
}

/// The directory of the node's own member. What an installation that is not in use left behind is none.
pub fn directory(all: &Facts) -> Option<PathBuf> {
    let node = all.in_use().find(|node| node.datastore == Datastore::Dqlite)?;
    node.datastore_dir.clone()
}

/// What the members said, and when.
#[derive(Debug)]
struct Seen {
    when: Instant,
    /// The local member, if it has an address.
    own: Option<Conversation>,
    /// The members that were asked, and whether they answered; the local one too.
    members: Vec<(Member, bool)>,
    /// Members that were listed and not asked.
    left_out: usize,
    /// The members as the local one lists them.
    live: Option<Vec<Member>>,
    leader: Leader,
}

impl Seen {
    /// Why the local member was not asked, where that is our own trouble.
    fn ours(&self) -> Option<&Failure> {
        self.own.as_ref().and_then(Conversation::failure).filter(|failure| failure.reason.is_ours())
    }

    /// Why the local member does not answer.
    fn why(&self) -> String {
        match &self.own {
            None => "info.yaml does not name its address".to_owned(),
            Some(talked) => talked.failure().map_or_else(String::new, |failure| {
                format!("{} ({})", failure.text, failure.reason.as_str())
            }),
        }
    }
}

/// Who leads, by the word of those who vote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leader {
    /// No voter could be asked.
    Unknown,
    /// They know of nobody.
    Nobody,
    /// The member with this id.
    Member(u64),
}

struct Dqlite {
    question: Question,
    slot: Slot,
    tls: Arc<TlsFiles>,
    timeout: Duration,
    /// The node's own entry, as last read.
    own: Option<Member>,
    /// Whether `cluster.crt` was there.
    with_tls: bool,
    /// The members as last heard of.
    roster: Vec<Member>,
    seen: Option<Seen>,
    counted: Shared<Counted>,
}

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

impl Dqlite {
    fn new(question: Question, tls: TlsFiles, timeout: Duration) -> Self {
        Self {
            counted: COUNTED.of(question.rootfs.join(&question.dir)),
            question,
            slot: SLOT.of(()),
            tls: Arc::new(tls),
            timeout,
            own: None,
            with_tls: false,
            roster: Vec::new(),
            seen: None,
        }
    }

    /// What the child finds in the directory.
    async fn look(&self) -> Result<Report, SampleError> {
        let dir = self.question.dir.display();
        let asked: Result<Result<Report, WireError>, _> =
            self.slot.ask(&["dqlite"], &self.question, self.timeout).await;
        match asked {
            Ok(Ok(report)) => Ok(report),
            Ok(Err(error)) => Err(SampleError::Wire(error)),
            // An earlier child that is still held is a directory that still does not answer.
            Err(ChildError::Timeout(_) | ChildError::Busy) => {
                Err(SampleError::Timeout { what: dir.to_string(), after: self.timeout })
            }
            Err(error) => Err(SampleError::Child(format!("{dir}: {error}"))),
        }
    }

    /// Takes over what the files say about who is who.
    fn learn(&mut self, report: &Report) {
        if let Some(own) = &report.own {
            self.own = Some(own.clone());
        }
        self.with_tls = report.tls;
        let listed = report.members.as_ref().or(report.listed.as_ref());
        if let Some(listed) = listed
            && self.seen.as_ref().is_none_or(|seen| seen.live.is_none())
        {
            self.roster.clone_from(listed);
        }
    }

    /// The address of a member, or its id where that is not known.
    fn name(&self, id: u64) -> String {
        let member = self.roster.iter().find(|member| member.id == id);
        member.map_or_else(|| id.to_string(), |member| member.address.clone())
    }

    /// Asks everybody.
    async fn ask(&mut self) -> Seen {
        let when = Instant::now();
        let tls = self.with_tls.then_some(&*self.tls);
        let own = match &self.own {
            Some(own) => {
                let all = [Request::Cluster, Request::Leader, Request::Describe];
                Some(converse(&own.address, tls, &all, self.timeout).await)
            }
            None => None,
        };
        let live = own.iter().flat_map(Conversation::answers).find_map(|answer| match answer {
            // A member that has just joined, and has not heard from the leader yet, lists nobody.
            Answer::Cluster(members) => Some(members.clone()).filter(|list| !list.is_empty()),
            _ => None,
        });
        if let Some(live) = &live {
            self.roster.clone_from(live);
        }
        let own_id = self.own.as_ref().map(|own| own.id);
        let asked = &self.roster[..self.roster.len().min(MAX_MEMBERS)];
        let others = asked.iter().map(async |member| {
            if Some(member.id) == own_id {
                return None;
            }
            Some(converse(&member.address, tls, &[Request::Leader], self.timeout).await)
        });
        let others = join_all(others).await;
        let mut seen = Seen {
            when,
            own: None,
            members: Vec::new(),
            left_out: self.roster.len() - asked.len(),
            live,
            leader: Leader::Unknown,
        };
        let mut words = Vec::new();
        for (member, other) in asked.iter().zip(&others) {
            let Some(talked) = other.as_ref().or(own.as_ref()) else { continue };
            seen.members.push((member.clone(), talked.up()));
            let word = talked.answers().find_map(|answer| match answer {
                Answer::Leader(leader) => Some(*leader),
                _ => None,
            });
            if let (Role::Voter, Some(word)) = (member.role, word) {
                words.push((other.is_none(), word));
            }
        }
        seen.leader = leader(&words);
        seen.own = own;
        seen
    }

    /// The figures of what the members said.
    fn export(&self, seen: &Seen, out: &mut Batch) {
        let own_id = self.own.as_ref().map(|own| own.id);
        let Counted { requests, history } = &*self.counted.lock();
        requests.export(&REQUEST_DURATION, &REQUEST_FAILURES, &REQUEST_SUCCESS, out);
        if seen.ours().is_some() {
            return;
        }
        let up = seen.own.as_ref().is_some_and(Conversation::up);
        out.push(&UP, [], up);
        if !up {
            out.remark(seen.why());
        }
        if seen.leader != Leader::Unknown {
            out.push(&HAS_LEADER, [], seen.leader != Leader::Nobody);
            if up {
                out.push(&IS_LEADER, [], own_id.map(Leader::Member) == Some(seen.leader));
            }
        }
        out.push(&LEADER_CHANGES, [], history.leader_changes());
        if let Some(own) = self.roster.iter().find(|member| Some(member.id) == own_id) {
            for role in Role::ALL {
                out.push(&ROLE, [role.as_str()], own.role == role);
            }
        }
        for (member, up) in &seen.members {
            out.push(&MEMBER_UP, [&member.address], *up);
        }
        if !self.roster.is_empty() {
            let voters = self.roster.iter().filter(|member| member.role == Role::Voter);
            out.push(&VOTERS_LISTED, [], voters.count());
            if seen.left_out == 0 {
                let reached = |(member, up): &&(Member, bool)| *up && member.role == Role::Voter;
                out.push(&VOTERS_REACHABLE, [], seen.members.iter().filter(reached).count());
            }
        }
    }
}

/// Who leads by the word of voters, of which each says whether it is the local one: that one's word counts, else
/// that of any other who names a leader.
fn leader(words: &[(bool, Option<u64>)]) -> Leader {
    let own = words.iter().find(|(is_own, _)| *is_own);
    let word = match own {
        Some((_, word)) => *word,
        None if words.is_empty() => return Leader::Unknown,
        None => words.iter().find_map(|(_, word)| *word),
    };
    word.map_or(Leader::Nobody, Leader::Member)
}

#[async_trait]
impl AsyncSampler for Dqlite {
    /// # Errors
    ///
    /// When nobody could be asked through a fault on this side: a directory that could never be read, so that the
    /// member's address is not known, or TLS files that cannot be used. A directory that can no longer be read is a part
    /// that failed, and the members may still answer.
    async fn sample(&mut self, out: &mut Batch) -> Result<(), SampleError> {
        let mut report = match self.look().await {
            Ok(report) => Some(report),
            Err(error) if self.own.is_none() => return Err(SampleError::Blind(Box::new(error))),
            Err(error) => {
                out.fail(error);
                None
            }
        };
        let failures = report.as_mut().map(|report| std::mem::take(&mut report.failures));
        for failure in failures.into_iter().flatten() {
            out.fail(SampleError::Wire(failure));
        }
        if let Some(report) = &report {
            self.learn(report);
            files::export(report, out);
            let vote = report.metadata.map(|metadata| metadata.vote);
            if let Some(id) = vote.filter(|id| *id != 0) {
                out.info(&VOTE, [&self.name(id)]);
            }
        }
        let before = self.seen.take().filter(|seen| self.with_tls && seen.when.elapsed() < APART);
        let seen = match before {
            Some(seen) => seen,
            None => {
                let seen = self.ask().await;
                let term = report.as_ref().and_then(|report| report.metadata).map(|m| m.term);
                self.note(&seen, term, out);
                seen
            }
        };
        self.export(&seen, out);
        if let Some(report) = &report {
            files::export_memberships(report, seen.live.as_deref(), out);
        }
        let ours = seen.ours().map(|failure| SampleError::call("dqlite", &failure.text));
        self.seen = Some(seen);
        if self.with_tls {
            self.tls.tell(ours.is_some(), out).await?;
        }
        ours.map_or(Ok(()), |error| Err(SampleError::Blind(Box::new(error))))
    }
}

impl Dqlite {
    /// Counts what one conversation took and came to.
    fn count(&self, talked: &Conversation) {
        fn reason<T>(step: &Step<T>) -> Option<Reason> {
            step.result.as_ref().err().map(|failure| failure.reason)
        }
        let connected = &talked.connected;
        let requests = &mut self.counted.lock().requests;
        requests.record("connect", connected.took, reason(connected));
        for (request, step) in &talked.asked {
            requests.record(request.as_str(), step.took, reason(step));
        }
    }

    /// Counts and tells what has changed.
    fn note(&self, seen: &Seen, term: Option<u64>, out: &mut Batch) {
        if let Some(talked) = &seen.own {
            self.count(talked);
        }
        if seen.ours().is_some() {
            return;
        }
        let history = &mut self.counted.lock().history;
        history.up(seen.own.as_ref().is_some_and(Conversation::up), &seen.why(), out);
        let leader = match seen.leader {
            Leader::Unknown => return,
            Leader::Nobody => None,
            Leader::Member(id) => {
                let member = self.roster.iter().find(|member| member.id == id);
                Some((id, member.map_or("", |member| member.address.as_str())))
            }
        };
        history.leader(leader, term, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{Distribution, Host, Installation};
    use crate::sampler::{self, OptionsError};

    fn build(own: &serde_json::Value, facts: Facts) -> Result<Build, OptionsError> {
        let own = own.as_object().cloned().unwrap_or_default();
        let (interval, timeout) = (Duration::from_secs(30), Duration::from_millis(300));
        let options = sampler::Options { interval, timeout, own };
        (SAMPLER.build)(&options, &Host::at("/").with_facts(facts))
    }

    fn node(datastore: Datastore) -> Installation {
        Installation {
            datastore,
            datastore_dir: Some("/var/snap/backend".into()),
            ..Installation::new(Distribution::Microk8s)
        }
    }

    fn facts_of(installations: Vec<Installation>) -> Facts {
        Facts { installations, ..Facts::default() }
    }

    #[test]
    fn it_runs_where_dqlite_is_the_datastore_or_a_directory_is_given() {
        let none = serde_json::json!({});
        let why = |facts| match build(&none, facts) {
            Ok(Build::NotApplicable(why)) => why,
            _ => panic!("it was built"),
        };
        assert!(why(Facts::default()).contains("set dqlite.dir"));
        let sqlite = facts_of(vec![node(Datastore::Sqlite)]);
        assert!(why(sqlite.clone()).contains("datastore of this microk8s node is sqlite"));
        // What an old installation left behind beside the one that runs.
        let left = facts_of(vec![node(Datastore::Etcd), node(Datastore::Dqlite)]);
        assert!(why(left).contains("is etcd"));
        let dqlite = facts_of(vec![node(Datastore::Dqlite)]);
        assert!(matches!(build(&none, dqlite), Ok(Build::Run(_))));
        let dir = serde_json::json!({"dir": "/backend"});
        assert!(matches!(build(&dir, sqlite), Ok(Build::Run(_))));
        for (own, key) in [("dir", "dir"), ("directory", "directory")] {
            let own = serde_json::json!({own: "backend"});
            assert_eq!(build(&own, Facts::default()).map(drop).unwrap_err().key, key);
        }
    }

    #[test]
    fn the_local_voters_word_counts_and_without_it_that_of_one_who_knows() {
        assert_eq!(leader(&[]), Leader::Unknown);
        assert_eq!(leader(&[(true, None), (false, Some(2))]), Leader::Nobody);
        assert_eq!(leader(&[(false, Some(2)), (true, Some(3))]), Leader::Member(3));
        assert_eq!(leader(&[(false, None), (false, Some(2))]), Leader::Member(2));
        assert_eq!(leader(&[(false, None)]), Leader::Nobody);
    }

    fn sampler() -> Dqlite {
        let dir = format!("/nonexistent/{}", fastrand::u64(..)).into();
        sampler_of(Question { rootfs: "/".into(), dir })
    }

    fn sampler_of(question: Question) -> Dqlite {
        let tls = TlsFiles::new(&Host::at("/"), None, None, None);
        Dqlite::new(question, tls, Duration::from_millis(300))
    }

    fn member(id: u64, address: &str, role: Role) -> Member {
        Member { id, address: address.into(), role }
    }

    /// A member that answers whatever it is asked.
    async fn serve(leader: u64, members: Vec<Member>) -> String {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let word = |n: u64| n.to_le_bytes().to_vec();
        let text = |text: &str| {
            let mut bytes = text.as_bytes().to_vec();
            bytes.resize((text.len() + 1).next_multiple_of(8), 0);
            bytes
        };
        let message = move |kind: u8, body: Vec<u8>| {
            let words = u32::try_from(body.len() / 8).unwrap().to_le_bytes();
            [&words[..], &[kind, 0, 0, 0], &body].concat()
        };
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut asked = [0; 16];
                stream.read_exact(&mut asked[..8]).await.unwrap();
                while stream.read_exact(&mut asked).await.is_ok() {
                    let answer = match asked[4] {
                        0 => message(1, [word(leader), text("")].concat()),
                        16 => {
                            let role = |role| Role::ALL.iter().position(|r| *r == role).unwrap();
                            let all = members.iter().flat_map(|m| {
                                [word(m.id), text(&m.address), word(role(m.role) as u64)].concat()
                            });
                            let count = word(members.len() as u64);
                            message(3, count.into_iter().chain(all).collect())
                        }
                        _ => message(10, [word(0), word(0)].concat()),
                    };
                    stream.write_all(&answer).await.unwrap();
                }
            }
        });
        address
    }

    async fn ask(sampler: &mut Dqlite) -> Batch {
        let mut out = Batch::default();
        let seen = sampler.ask().await;
        sampler.note(&seen, Some(1), &mut out);
        sampler.export(&seen, &mut out);
        sampler.seen = Some(seen);
        out
    }

    #[tokio::test]
    async fn a_stand_by_that_names_no_leader_takes_the_voters_word() {
        let voter = serve(7, Vec::new()).await;
        let listed = |own: &str| {
            vec![
                member(7, &voter, Role::Voter),
                member(8, own, Role::StandBy),
                member(9, "127.0.0.1:1", Role::Voter),
            ]
        };
        let own = serve(0, listed("own:1")).await;
        let mut sampler = sampler();
        sampler.own = Some(member(8, &own, Role::Voter));
        let out = ask(&mut sampler).await;
        assert_eq!((out.value(&UP, []), out.value(&HAS_LEADER, [])), (Some(1.0), Some(1.0)));
        assert_eq!(out.value(&IS_LEADER, []), Some(0.0));
        assert_eq!(out.value(&ROLE, ["stand-by"]), Some(1.0));
        assert_eq!(out.value(&ROLE, ["voter"]), Some(0.0));
        assert_eq!(out.value(&VOTERS_LISTED, []), Some(2.0));
        assert_eq!(out.value(&VOTERS_REACHABLE, []), Some(1.0));
        assert_eq!(out.value(&MEMBER_UP, ["127.0.0.1:1"]), Some(0.0));
        assert_eq!(out.value(&metrics::REQUEST_DURATION, ["cluster"]), Some(1.0));
    }

    #[tokio::test]
    async fn a_member_that_is_down_has_a_verdict_and_the_others_still_tell_of_the_leader() {
        let voter = serve(7, Vec::new()).await;
        let mut sampler = sampler();
        sampler.own = Some(member(8, "127.0.0.1:1", Role::Voter));
        sampler.roster =
            vec![member(7, &voter, Role::Voter), member(8, "127.0.0.1:1", Role::Voter)];
        let out = ask(&mut sampler).await;
        assert_eq!((out.value(&UP, []), out.value(&HAS_LEADER, [])), (Some(0.0), Some(1.0)));
        assert_eq!((out.series(&IS_LEADER), out.value(&ROLE, ["voter"])), (0, Some(1.0)));
        assert_eq!(out.value(&VOTERS_REACHABLE, []), Some(1.0));
        assert_eq!(out.value(&metrics::REQUEST_FAILURES, ["connect", "refused"]), Some(1.0));
    }

    #[tokio::test]
    async fn a_sampler_that_is_built_anew_for_the_same_member_counts_on() {
        let own = serve(8, Vec::new()).await;
        let question = sampler().question;
        for calls in [1.0, 2.0] {
            let mut sampler = sampler_of(question.clone());
            sampler.own = Some(member(8, &own, Role::Voter));
            let out = ask(&mut sampler).await;
            assert_eq!(out.value(&metrics::REQUEST_DURATION, ["cluster"]), Some(calls));
        }
    }

    #[tokio::test]
    async fn a_member_that_has_just_joined_and_lists_nobody_does_not_empty_the_list() {
        let own = serve(0, Vec::new()).await;
        let voter = serve(7, Vec::new()).await;
        let mut sampler = sampler();
        sampler.own = Some(member(8, &own, Role::Voter));
        sampler.roster = vec![member(7, &voter, Role::Voter), member(8, &own, Role::Spare)];
        let out = ask(&mut sampler).await;
        assert_eq!((out.value(&UP, []), out.value(&HAS_LEADER, [])), (Some(1.0), Some(1.0)));
        assert_eq!(out.value(&VOTERS_LISTED, []), Some(1.0));
        assert_eq!(out.value(&ROLE, ["spare"]), Some(1.0));
    }

    #[tokio::test]
    async fn a_node_that_was_never_started_is_down_and_nothing_else() {
        let out = ask(&mut sampler()).await;
        assert_eq!(out.value(&UP, []), Some(0.0));
        assert_eq!((out.series(&HAS_LEADER), out.series(&VOTERS_LISTED)), (0, 0));
    }
}
