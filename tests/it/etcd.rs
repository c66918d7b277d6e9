//! Sampler `etcd` against real clusters: what it says while they are well, and while they are not.

use std::path::Path;
use std::time::{Duration, Instant};

use etcd_client::Client;

use crate::lab::agent::{self, Agent, Scrape};
use crate::lab::disk::{Kind, SlowDisk};
use crate::lab::etcd::{Cluster, Etcd, Listen, Options};
use crate::lab::pki::{Leaf, Pki};
use crate::lab::process::{Daemon, bound_command};
use crate::lab::{self, cached, free_port, wait_for};

const SECOND: Duration = Duration::from_secs(1);
/// What [`section`] sets,
const INTERVAL: Duration = Duration::from_millis(300);
const TIMEOUT: Duration = Duration::from_secs(2);
/// and what a busy machine may add.
const SLACK: Duration = Duration::from_millis(1_200);
/// A fault shows within one interval and the deadline of its calls.
const BOUND: Duration = INTERVAL.saturating_add(TIMEOUT).saturating_add(SLACK);
const UP: &str = "controlplane_etcd_up";
const FAILURES: &str = "controlplane_etcd_request_failures_total";
const PEER_UP: &str = "controlplane_etcd_peer_up";
const VOTERS: &str = "controlplane_etcd_voters_reachable";
const SUCCESSES: &str = "controlplane_etcd_request_duration_seconds_count";
const LAST_SUCCESS: &str = "controlplane_etcd_request_last_success_timestamp_seconds";
const PREFIX: &str = "controlplane_etcd_";

/// Section `etcd` for member `i` of a TLS cluster, seen with these files.
fn section(cluster: &Cluster, i: usize, ca: &Path, leaf: &Leaf) -> String {
    format!(
        "etcd: {{endpoints: ['{}'], ca_file: {}, cert_file: {}, key_file: {}, interval: {INTERVAL:?}, timeout: {TIMEOUT:?}}}\n",
        cluster.client_url(i),
        ca.display(),
        leaf.cert.display(),
        leaf.key.display()
    )
}

/// An agent on the node of member `i`.
fn agent_of(cluster: &Cluster, i: usize) -> Agent {
    Agent::start(&section(cluster, i, &cluster.pki.ca, &cluster.pki.client))
}

fn value(scrape: &Scrape, name: &str) -> Option<f64> {
    scrape.value(&format!("{PREFIX}{name}"), &[])
}

/// Waits until the figures without labels have these values; `None` is absent.
fn wait_figures(agent: &Agent, limit: Duration, figures: &[(&str, Option<f64>)]) -> Scrape {
    agent.wait_until(&format!("{figures:?}"), PREFIX, limit, |scrape| {
        figures.iter().all(|(name, expected)| value(scrape, name) == *expected)
    })
}

/// The ids of all members in hexadecimal, by name, as etcdctl prints them.
fn ids(cluster: &Cluster) -> Vec<(String, String)> {
    let list = cluster.etcdctl(&["member", "list"]);
    let fields = list.lines().map(|line| line.split(", ").collect::<Vec<_>>());
    fields.map(|f| (f[2].to_owned(), f[0].to_owned())).collect()
}

fn id(cluster: &Cluster, i: usize) -> String {
    let name = format!("m{i}");
    ids(cluster).into_iter().find(|(n, _)| *n == name).unwrap().1
}

fn healthy(version: Etcd) {
    let cluster = Cluster::start(version, 3);
    let agent = agent_of(&cluster, 0);
    let scrape = wait_figures(
        &agent,
        10 * SECOND,
        &[
            ("up", Some(1.0)),
            ("has_leader", Some(1.0)),
            ("is_learner", Some(0.0)),
            ("leader_changes_total", Some(0.0)),
            ("members_listed", Some(3.0)),
            ("members_started", Some(3.0)),
            ("members_learner", Some(0.0)),
            ("members_expected", None),
            ("voters_listed", Some(3.0)),
            ("voters_reachable", Some(3.0)),
            ("quota_bytes", Some(2_147_483_648.0)),
        ],
    );
    let own = id(&cluster, 0);
    let name = [("member", "m0"), ("member_id", own.as_str())];
    assert_eq!(scrape.value("controlplane_etcd_member_info", &name), Some(1.0));
    let leads = f64::from(u8::from(cluster.leader() == 0));
    assert_eq!(value(&scrape, "is_leader"), Some(leads));
    for i in [1, 2] {
        let peer = id(&cluster, i);
        let labels = [("member_id", peer.as_str())];
        assert_eq!(scrape.value(PEER_UP, &labels), Some(1.0));
        let took = scrape.value("controlplane_etcd_peer_request_duration_seconds", &labels);
        assert!(took.is_some_and(|took| took > 0.0 && took < 2.0), "{took:?}");
        let name = format!("m{i}");
        let labels = [("member_id", peer.as_str()), ("member", name.as_str())];
        assert_eq!(scrape.value("controlplane_etcd_peer_info", &labels), Some(1.0));
    }
    let alarms = scrape.all("controlplane_etcd_alarm", &[]);
    assert_eq!(alarms.len(), 6, "two kinds for each member: {alarms:?}");
    assert!(alarms.iter().all(|alarm| alarm.value == 0.0), "{alarms:?}");
    let source = [("source", "default")];
    assert_eq!(scrape.value("controlplane_etcd_quota_source_info", &source), Some(1.0));
    for name in ["raft_term", "raft_index", "raft_applied_index", "revision", "compact_revision"] {
        assert!(value(&scrape, name).is_some_and(|n| n >= 1.0), "{name}");
    }
    let (size, used) = (value(&scrape, "db_size_bytes"), value(&scrape, "db_size_in_use_bytes"));
    assert!(size.unwrap() >= used.unwrap() && used.unwrap() > 4096.0, "{size:?} {used:?}");
    for request in ["status", "serializable_read", "linearizable_read", "member_list"] {
        let labels = [("request", request)];
        let count = scrape.value(SUCCESSES, &labels);
        assert!(count.is_some_and(|n| n >= 1.0), "{request}");
        assert!(scrape.value(LAST_SUCCESS, &labels).is_some_and(|t| t > 1.7e9), "{request}");
    }
    assert!(scrape.all(FAILURES, &[]).is_empty(), "{}", scrape.with_prefix(FAILURES));
    assert!(scrape.samples.len() < 1_000);
}

#[test]
fn a_healthy_cluster_of_three_has_the_right_figures_on_3_4() {
    let _turn = lab::together();
    healthy(Etcd::V34);
}

#[test]
fn a_healthy_cluster_of_three_has_the_right_figures_on_3_5() {
    let _turn = lab::together();
    healthy(Etcd::V35);
}

fn leader_killed_then_quorum_lost(version: Etcd) {
    let mut cluster = Cluster::start(version, 3);
    let leader = cluster.leader();
    let local = (leader + 1) % 3;
    let agent = agent_of(&cluster, local);
    wait_figures(&agent, 10 * SECOND, &[("voters_reachable", Some(3.0))]);
    let peer = id(&cluster, leader);
    cluster.kill(leader);
    let scrape = wait_figures(
        &agent,
        10 * SECOND,
        &[
            ("leader_changes_total", Some(1.0)),
            ("has_leader", Some(1.0)),
            ("voters_reachable", Some(2.0)),
        ],
    );
    assert_eq!(scrape.value(PEER_UP, &[("member_id", &peer)]), Some(0.0));
    assert_eq!(value(&scrape, "members_listed"), Some(3.0));

    // The third goes too: what is left still answers, and says that it has no leader.
    cluster.kill((leader + 2) % 3);
    wait_for("the loss of the leader", 10 * SECOND, || match cluster.status(local) {
        Ok((_, 0)) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let scrape = wait_figures(
        &agent,
        BOUND,
        &[("up", Some(1.0)), ("has_leader", Some(0.0)), ("voters_reachable", Some(1.0))],
    );
    let peers: Vec<f64> = scrape.all(PEER_UP, &[]).iter().map(|peer| peer.value).collect();
    assert_eq!(peers, [0.0, 0.0]);
    assert_eq!(value(&scrape, "members_listed"), Some(3.0));
    assert!(value(&scrape, "db_size_bytes").is_some(), "status answers without a quorum");
    let read = [("request", "linearizable_read"), ("reason", "no_leader")];
    agent
        .wait_until("no_leader", FAILURES, 5 * SECOND, |scrape| scrape.sum(FAILURES, &read) >= 1.0);

    // Started alone, a member of three accepts connections and answers no handshake.
    cluster.kill(local);
    wait_figures(&agent, BOUND, &[("up", Some(0.0)), ("has_leader", None), ("revision", None)]);
    cluster.launch(local);
    let status = [("request", "status"), ("reason", "tls_timeout")];
    let scrape = agent.wait_until("tls_timeout", FAILURES, 15 * SECOND, |scrape| {
        scrape.sum(FAILURES, &status) >= 1.0
    });
    assert_eq!(scrape.value(UP, &[]), Some(0.0));
    assert_eq!(value(&scrape, "members_listed"), Some(3.0), "remembered");
    assert_eq!(value(&scrape, "has_leader"), None);

    cluster.launch(leader);
    wait_figures(&agent, 20 * SECOND, &[("up", Some(1.0)), ("has_leader", Some(1.0))]);
}

#[test]
fn a_lost_leader_a_lost_quorum_and_a_start_without_one_are_told_apart_on_3_4() {
    let _turn = lab::together();
    leader_killed_then_quorum_lost(Etcd::V34);
}

#[test]
fn a_lost_leader_a_lost_quorum_and_a_start_without_one_are_told_apart_on_3_5() {
    let _turn = lab::together();
    leader_killed_then_quorum_lost(Etcd::V35);
}

fn hung(version: Etcd) {
    let cluster = Cluster::start(version, 3);
    let agent = agent_of(&cluster, 0);
    wait_figures(&agent, 10 * SECOND, &[("voters_reachable", Some(3.0))]);
    cluster.stop(0);
    let scrape = wait_figures(
        &agent,
        BOUND,
        &[
            ("up", Some(0.0)),
            ("has_leader", None),
            ("is_leader", None),
            ("db_size_bytes", None),
            ("quota_bytes", None),
            ("revision", None),
            ("compact_revision", None),
            ("raft_term", None),
            ("members_listed", Some(3.0)),
            ("voters_listed", Some(3.0)),
            ("voters_reachable", Some(2.0)),
        ],
    );
    assert_eq!(scrape.all("controlplane_etcd_alarm", &[]).len(), 0);
    assert_eq!(scrape.all("controlplane_etcd_peer_info", &[]).len(), 2);
    let timeouts = [("request", "member_list"), ("reason", "timeout")];
    assert!(scrape.sum(FAILURES, &timeouts) >= 1.0, "{}", scrape.with_prefix(FAILURES));
    assert_eq!(scrape.value("controlplane_sampler_up", &[("sampler", "etcd")]), Some(1.0));
    // A run takes one timeout, whatever hangs.
    let took = scrape.value("controlplane_sampler_run_duration_seconds", &[("sampler", "etcd")]);
    assert!(took.is_some_and(|took| took < 3.5), "{took:?}");
    // A new connection to a hung member is not answered in the handshake.
    let handshake = [("request", "member_list"), ("reason", "tls_timeout")];
    agent.wait_until("tls_timeout", FAILURES, 8 * SECOND, |s| s.sum(FAILURES, &handshake) >= 1.0);
    cluster.cont(0);
    wait_figures(&agent, 8 * SECOND, &[("up", Some(1.0)), ("voters_reachable", Some(3.0))]);

    // A hung peer: the local figures stay.
    let peer = id(&cluster, 1);
    cluster.stop(1);
    let scrape = agent.wait_value(PEER_UP, &[("member_id", &peer)], 0.0, BOUND);
    assert_eq!((value(&scrape, "up"), scrape.value(VOTERS, &[])), (Some(1.0), Some(2.0)));
    cluster.cont(1);
    agent.wait_value(VOTERS, &[], 3.0, 8 * SECOND);
}

#[test]
fn a_hung_member_is_down_within_a_timeout_and_leaves_no_figures_behind_on_3_4() {
    let _turn = lab::together();
    hung(Etcd::V34);
}

#[test]
fn a_hung_member_is_down_within_a_timeout_and_leaves_no_figures_behind_on_3_5() {
    let _turn = lab::together();
    hung(Etcd::V35);
}

/// Every call fails, and always for this reason.
fn refused(cluster: &Cluster, ca: &Path, leaf: &Leaf, reason: &str) {
    let agent = Agent::start(&section(cluster, 0, ca, leaf));
    let labels = [("reason", reason)];
    agent.wait_until(reason, PREFIX, BOUND, |s| s.sum(FAILURES, &labels) >= 4.0);
    let scrape =
        agent.wait_until(reason, PREFIX, 10 * SECOND, |s| s.sum(FAILURES, &labels) >= 12.0);
    assert_eq!(scrape.value(UP, &[]), Some(0.0));
    let others: Vec<_> =
        scrape.all(FAILURES, &[]).into_iter().filter(|s| s.labels["reason"] != reason).collect();
    assert!(others.is_empty(), "{reason}: {others:?}");
    assert!(agent.log().contains(reason), "{}", agent.log());
}

fn tls(version: Etcd) {
    let cluster = Cluster::start(version, 1);
    let pki = &cluster.pki;
    refused(&cluster, &pki.other_ca, &pki.client, "tls_untrusted");
    refused(&cluster, &pki.ca, &pki.client_expired, "tls_rejected");
    refused(&cluster, &pki.ca, &pki.other_client, "tls_rejected");
    // Below a root of its own, where detection finds no certificate to fill the gap.
    let none = format!(
        "etcd: {{endpoints: ['{}'], ca_file: /ca.crt, interval: 300ms}}",
        cluster.client_url(0)
    );
    let rootfs = Some(pki.folder().to_owned());
    let agent = Agent::start_with(agent::Options { config: none, rootfs, ..Default::default() });
    let labels = [("reason", "tls_rejected")];
    agent.wait_until("no certificate", PREFIX, 10 * SECOND, |s| s.sum(FAILURES, &labels) >= 4.0);
}

#[test]
fn each_fault_of_trust_has_its_own_reason_every_time_on_3_4() {
    let _turn = lab::together();
    tls(Etcd::V34);
}

#[test]
fn each_fault_of_trust_has_its_own_reason_every_time_on_3_5() {
    let _turn = lab::together();
    tls(Etcd::V35);
}

#[test]
fn an_expired_server_certificate_and_one_for_another_host_are_told_apart() {
    let _turn = lab::together();
    for version in [Etcd::V34, Etcd::V35] {
        let mut cluster = Cluster::prepare(version, 1, Options::default());
        let copy = |leaf: &Leaf, to: &Leaf| {
            std::fs::copy(&leaf.cert, &to.cert).unwrap();
            std::fs::copy(&leaf.key, &to.key).unwrap();
        };
        // The server's own files are replaced before it starts: the cluster knows no other way.
        let server = Leaf {
            cert: cluster.pki.folder().join("s.crt"),
            key: cluster.pki.folder().join("s.key"),
        };
        let good = cluster.pki.server.clone();
        copy(&good, &server);
        for (leaf, reason) in [
            (cluster.pki.server_expired.clone(), "tls_expired"),
            (cluster.pki.server_wrong_host.clone(), "tls_untrusted"),
        ] {
            copy(&leaf, &good);
            cluster.launch(0);
            wait_for("etcd's port", 10 * SECOND, || {
                let address = cluster.client_url(0).replace("https://", "");
                std::net::TcpStream::connect(address).map(drop).map_err(|e| e.to_string())
            });
            let agent = agent_of(&cluster, 0);
            let labels = [("reason", reason)];
            let scrape =
                agent.wait_until(reason, PREFIX, BOUND, |s| s.sum(FAILURES, &labels) >= 4.0);
            assert_eq!(scrape.value(UP, &[]), Some(0.0));
            cluster.kill(0);
        }
        copy(&server, &good);
    }
}

#[test]
fn a_bad_file_is_named_and_a_rotated_one_takes_effect() {
    let _turn = lab::together();
    let cluster = Cluster::start(Etcd::V35, 1);
    let pki = &cluster.pki;
    let mine = Leaf { cert: pki.folder().join("mine.crt"), key: pki.folder().join("mine.key") };
    std::fs::copy(&pki.other_client.cert, &mine.cert).unwrap();
    let agent = Agent::start(&section(&cluster, 0, &pki.ca, &mine));
    let reason = |reason: &str, limit: Duration| {
        let labels = [("reason", reason)];
        agent.wait_until(reason, PREFIX, limit, |s| s.sum(FAILURES, &labels) >= 4.0)
    };
    let scrape = reason("tls_config", 10 * SECOND);
    assert_eq!(scrape.value(UP, &[]), None, "our own files say nothing about the member");
    let failed = [("sampler", "etcd"), ("reason", "not_found")];
    assert!(scrape.sum("controlplane_sampler_failures_total", &failed) >= 1.0);
    let named = "mine.key: No such file or directory (os error 2) (key_file)";
    assert!(agent.log().contains(named), "{}", agent.log());

    std::fs::write(&mine.key, "no key at all").unwrap();
    let failed = [("sampler", "etcd"), ("reason", "parse")];
    agent.wait_until("a bad key", "controlplane_sampler", 10 * SECOND, |s| {
        s.sum("controlplane_sampler_failures_total", &failed) >= 1.0
    });

    std::fs::copy(&pki.other_client.key, &mine.key).unwrap();
    reason("tls_rejected", 10 * SECOND);

    std::fs::copy(&pki.client.cert, &mine.cert).unwrap();
    std::fs::copy(&pki.client.key, &mine.key).unwrap();
    agent.wait_value(UP, &[], 1.0, 10 * SECOND);
}

#[test]
fn a_new_authority_with_new_certificates_takes_effect_at_the_next_connection() {
    let _turn = lab::together();
    for version in [Etcd::V34, Etcd::V35] {
        let mut cluster = Cluster::start(version, 1);
        let agent = agent_of(&cluster, 0);
        wait_figures(&agent, 10 * SECOND, &[("up", Some(1.0))]);
        cluster.pki.take_over(&Pki::new());
        // The open connection serves on.
        std::thread::sleep(2 * INTERVAL);
        let scrape = agent.scrape();
        assert_eq!(value(&scrape, "up"), Some(1.0));
        assert!(scrape.all(FAILURES, &[]).is_empty(), "{}", scrape.with_prefix(FAILURES));
        cluster.restart(0);
        let before = agent.scrape().sum(SUCCESSES, &[("request", "status")]);
        let scrape = agent.wait_until("new answers", PREFIX, BOUND, |scrape| {
            scrape.sum(SUCCESSES, &[("request", "status")]) > before
        });
        assert_eq!(value(&scrape, "up"), Some(1.0));
        for reason in ["tls_untrusted", "tls_rejected", "tls_expired", "tls_config", "tls"] {
            assert!(scrape.all(FAILURES, &[("reason", reason)]).is_empty(), "{reason}");
        }

        // The agent's own CA is of another authority, then the right one again.
        let right = std::fs::read(&cluster.pki.ca).unwrap();
        std::fs::copy(&cluster.pki.other_ca, &cluster.pki.ca).unwrap();
        cluster.kill(0);
        wait_figures(&agent, BOUND, &[("up", Some(0.0))]);
        std::thread::sleep(SECOND);
        std::fs::write(&cluster.pki.ca, right).unwrap();
        cluster.restart(0);
        wait_figures(&agent, BOUND, &[("up", Some(1.0)), ("has_leader", Some(1.0))]);
    }
}

#[test]
fn a_member_is_reached_over_ipv6() {
    let _turn = lab::together();
    let cluster = Cluster::start_with(Etcd::V35, 1, Options { ipv6: true, ..Options::default() });
    let section = section(&cluster, 0, &cluster.pki.ca, &cluster.pki.client);
    let agent = Agent::start(&section.replace("127.0.0.1", "[::1]"));
    wait_figures(&agent, 10 * SECOND, &[("up", Some(1.0)), ("voters_reachable", Some(1.0))]);
}

#[test]
fn a_scrape_is_quick_while_the_whole_cluster_is_stopped() {
    let _turn = lab::alone();
    let cluster = Cluster::start(Etcd::V35, 3);
    let agent = agent_of(&cluster, 0);
    wait_figures(&agent, 10 * SECOND, &[("voters_reachable", Some(3.0))]);
    (0..3).for_each(|i| cluster.stop(i));
    let (mut times, started) = (Vec::new(), Instant::now());
    while started.elapsed() < BOUND + SECOND {
        let from = Instant::now();
        agent.scrape();
        times.push(from.elapsed());
        std::thread::sleep(Duration::from_millis(20));
    }
    let scrape = agent.scrape();
    (0..3).for_each(|i| cluster.cont(i));
    lab::assert_quick(times);
    assert_eq!((scrape.value(UP, &[]), scrape.value(VOTERS, &[])), (Some(0.0), Some(0.0)));
}

/// A defragmentation holds the backend, here for seconds since its syncs are slow: status and reads
/// hang, the member list does not.
#[test]
fn a_defragmentation_is_a_late_status_of_a_member_that_is_up() {
    let _turn = lab::alone();
    for version in [Etcd::V34, Etcd::V35] {
        let disk = SlowDisk::sized(Kind::Ext4, 600 << 20);
        let data_root = Some(disk.mount().path().to_owned());
        let cluster = Cluster::start_with(version, 1, Options { data_root, ..Options::default() });
        cluster.put_many("/registry/pods/p", 25_000, 100);
        let section = section(&cluster, 0, &cluster.pki.ca, &cluster.pki.client);
        let agent = Agent::start(&section.replace("timeout: 2s", "timeout: 1s"));
        wait_figures(&agent, 10 * SECOND, &[("up", Some(1.0))]);

        let last =
            |scrape: &Scrape, request| scrape.value(LAST_SUCCESS, &[("request", request)]).unwrap();
        let late = |scrape: &Scrape| last(scrape, "member_list") - last(scrape, "status");
        let timeouts = [("request", "status"), ("reason", "timeout")];
        disk.set_delay(2 * SECOND);
        // What had not been committed yet is: slow syncs alone hold no status up.
        std::thread::sleep(6 * SECOND);
        let before = agent.scrape().sum(FAILURES, &timeouts);
        std::thread::sleep(2 * SECOND);
        let scrape = agent.scrape();
        assert!(scrape.sum(FAILURES, &timeouts) <= before && late(&scrape) < 1.0);
        std::thread::scope(|scope| {
            let defrag = scope.spawn(|| cluster.etcdctl(&["defrag"]));
            let first = agent.wait_until("a late status", PREFIX, 6 * SECOND, |scrape| {
                late(scrape) > 1.0 && scrape.sum(FAILURES, &timeouts) > before
            });
            assert!(!defrag.is_finished(), "the defragmentation was too short to be seen");
            assert_eq!(value(&first, "up"), Some(1.0));
            assert_eq!((value(&first, "has_leader"), value(&first, "db_size_bytes")), (None, None));
            let second = agent.wait_until("a later one", PREFIX, 6 * SECOND, |s| late(s) > 3.0);
            assert!(last(&second, "status") <= last(&first, "status"), "it has answered");
            assert!(second.sum(FAILURES, &timeouts) > first.sum(FAILURES, &timeouts));
            let listed = [("request", "member_list")];
            assert!(second.all(FAILURES, &listed).is_empty(), "{}", second.with_prefix(FAILURES));
            disk.release();
            defrag.join().unwrap();
        });
        let scrape = wait_figures(&agent, BOUND, &[("up", Some(1.0)), ("has_leader", Some(1.0))]);
        assert!(late(&scrape) < 1.0, "{}", late(&scrape));
    }
}

fn put(cluster: &Cluster, key: String, bytes: usize) -> Result<(), String> {
    cluster.on_member(0, |mut client: Client| async move {
        client.put(key, vec![7_u8; bytes], None).await.map(drop)
    })
}

#[test]
fn a_full_backend_raises_its_alarm_and_shows_the_quota_that_was_configured() {
    let _turn = lab::together();
    for version in [Etcd::V34, Etcd::V35] {
        const QUOTA: u64 = 8 << 20;
        let options = Options { quota: Some(QUOTA), ..Options::default() };
        let cluster = Cluster::start_with(version, 1, options);
        let section = section(&cluster, 0, &cluster.pki.ca, &cluster.pki.client)
            .replace("interval", "quota_bytes: 8388608, expected_members: 3, interval");
        let agent = Agent::start(&section);
        let labels = [("member_id", id(&cluster, 0)), ("alarm", "NOSPACE".to_owned())];
        let labels = labels.each_ref().map(|(k, v)| (*k, v.as_str()));
        agent.wait_value("controlplane_etcd_alarm", &labels, 0.0, 10 * SECOND);
        let error = (0..50).find_map(|i| {
            // One that this machine was too slow for is no answer.
            put(&cluster, format!("k{i}"), 1 << 20).err().filter(|e| !e.contains("no answer"))
        });
        assert!(error.as_ref().is_some_and(|e| e.contains("space exceeded")), "{error:?}");
        let scrape = agent.wait_value("controlplane_etcd_alarm", &labels, 1.0, 10 * SECOND);
        let raised = scrape.all("controlplane_etcd_alarm", &[]);
        assert_eq!(raised.iter().filter(|alarm| alarm.value != 0.0).count(), 1, "{raised:?}");
        assert_eq!(value(&scrape, "up"), Some(1.0));
        assert_eq!(value(&scrape, "quota_bytes"), Some(8_388_608.0));
        assert_eq!(value(&scrape, "members_expected"), Some(3.0));
        assert!(value(&scrape, "db_size_bytes").is_some_and(|size| size > 7e6));
        let source = [("source", "config")];
        assert_eq!(scrape.value("controlplane_etcd_quota_source_info", &source), Some(1.0));
    }
}

#[test]
fn deleting_and_compacting_shows_as_fragmentation_and_as_the_compaction_revision() {
    let _turn = lab::together();
    for version in [Etcd::V34, Etcd::V35] {
        let cluster = Cluster::start(version, 1);
        let agent = agent_of(&cluster, 0);
        wait_figures(&agent, 10 * SECOND, &[("compact_revision", Some(1.0))]);
        cluster.put_many("/registry/pods/p", 8_000, 1_000);
        cluster.etcdctl(&["del", "--prefix", "/registry/pods/p"]);
        let scrape = agent.wait_until("the new revision", PREFIX, 10 * SECOND, |scrape| {
            // One, 63 transactions of 128 keys, and the deletion.
            value(scrape, "revision") == Some(65.0)
        });
        let revision = value(&scrape, "revision").unwrap();
        let before = value(&scrape, "db_size_bytes").unwrap();
        assert!(before > 8e6, "{before}");
        cluster.etcdctl(&["compact", &revision.to_string()]);
        let scrape = agent.wait_until("fragmentation", PREFIX, 20 * SECOND, |scrape| {
            value(scrape, "db_size_in_use_bytes").is_some_and(|used| used < before / 4.0)
                && value(scrape, "compact_revision") == Some(revision)
        });
        assert!(value(&scrape, "db_size_bytes").unwrap() >= before);
    }
}

#[test]
fn members_that_were_never_started_are_listed_and_a_learner_does_not_vote() {
    let _turn = lab::together();
    for (version, folder) in [(Etcd::V34, "etcd-3.4"), (Etcd::V35, "etcd-3.5")] {
        let listen = Options { listen: Listen::Plain, ..Options::default() };
        let cluster = Cluster::start_with(version, 1, listen);
        let section =
            |url: &str| format!("etcd: {{endpoints: ['{url}'], interval: 300ms, timeout: 2s}}");
        let agent = Agent::start(&section(&cluster.client_url(0)));
        let (client, peer) = (free_port(), free_port());
        let [client, peer] = [client, peer].map(|port| format!("http://127.0.0.1:{port}"));
        let added =
            cluster.etcdctl(&["member", "add", "l", "--learner", &format!("--peer-urls={peer}")]);
        let scrape = wait_figures(
            &agent,
            10 * SECOND,
            &[
                ("members_listed", Some(2.0)),
                ("members_started", Some(1.0)),
                ("members_learner", Some(1.0)),
                ("voters_listed", Some(1.0)),
                ("voters_reachable", Some(1.0)),
            ],
        );
        assert_eq!(scrape.all(PEER_UP, &[]).len(), 0);

        let variable = |name: &str| {
            let start = format!("{name}=\"");
            let line = added.lines().find_map(|line| line.strip_prefix(&start));
            line.unwrap().trim_end_matches('"').to_owned()
        };
        let data = lab::temp_dir("learner");
        let mut command = bound_command(cached(&format!("{folder}/usr/bin/etcd")));
        command
            .current_dir(data.path())
            .args(["--name=l", "--initial-cluster-state=existing"])
            .args([
                format!("--initial-cluster={}", variable("ETCD_INITIAL_CLUSTER")),
                format!("--listen-client-urls={client}"),
                format!("--advertise-client-urls={client}"),
                format!("--listen-peer-urls={peer}"),
                format!("--initial-advertise-peer-urls={peer}"),
            ]);
        let _learner = Daemon::start("learner", command, &data.path().join("log"));
        wait_figures(
            &agent,
            20 * SECOND,
            &[("members_started", Some(2.0)), ("voters_reachable", Some(1.0))],
        );
        agent.wait_value(PEER_UP, &[], 1.0, 10 * SECOND);

        let agent = Agent::start(&section(&client));
        let scrape = wait_figures(
            &agent,
            10 * SECOND,
            &[("up", Some(1.0)), ("is_learner", Some(1.0)), ("has_leader", Some(1.0))],
        );
        let reasons = scrape.all(FAILURES, &[]);
        assert!(reasons.iter().all(|s| s.labels["reason"] == "learner"), "{reasons:?}");
        assert_eq!(reasons.len(), 2, "{reasons:?}");
    }
}

#[test]
fn peers_that_all_advertise_loopback_as_k0s_does_are_unknown_and_not_down() {
    let _turn = lab::together();
    let extra = vec!["--advertise-client-urls=https://127.0.0.1:2379".to_owned()];
    let cluster = Cluster::start_with(Etcd::V35, 3, Options { extra, ..Options::default() });
    let agent = agent_of(&cluster, 0);
    let scrape = wait_figures(
        &agent,
        10 * SECOND,
        &[("up", Some(1.0)), ("members_listed", Some(3.0)), ("voters_reachable", None)],
    );
    assert_eq!(scrape.all(PEER_UP, &[]).len(), 0);
    assert_eq!(scrape.all("controlplane_etcd_peer_info", &[]).len(), 2);
}

#[test]
fn another_member_does_not_stand_in_for_the_local_one() {
    let _turn = lab::together();
    let mut cluster = Cluster::start(Etcd::V35, 3);
    let one = section(&cluster, 0, &cluster.pki.ca, &cluster.pki.client);
    let both = one.replace("'],", &format!("', '{}'],", cluster.client_url(1)));
    let agent = Agent::start(&both);
    wait_figures(&agent, 10 * SECOND, &[("up", Some(1.0)), ("members_listed", Some(3.0))]);
    cluster.kill(0);
    agent.wait_value(UP, &[], 0.0, BOUND);
    std::thread::sleep(SECOND);
    assert_eq!(agent.scrape().value(UP, &[]), Some(0.0));
    cluster.restart(0);
    agent.wait_value(UP, &[], 1.0, 8 * SECOND);
}
