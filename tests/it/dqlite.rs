//! Sampler `dqlite` against real clusters of versions 1.11 and 1.18: what it says while they are well, and while
//! they are not, and that they take no harm from being asked.

use std::time::{Duration, Instant};

use controlplane_exporter::dqlite::client::converse;
use controlplane_exporter::dqlite::wire::Request;

use crate::lab;
use crate::lab::agent::{Agent, Scrape};
use crate::lab::disk::{Disk, Kind};
use crate::lab::dqlite::{Cluster, Dqlite};

const SECOND: Duration = Duration::from_secs(1);
/// A leader that dies is missed after three to six seconds, and a busy machine takes longer.
const ELECTION: Duration = Duration::from_secs(12);
/// With TLS the members are asked again after 29 s.
const NEXT_HANDSHAKE: Duration = Duration::from_secs(45);
const PREFIX: &str = "controlplane_dqlite_";
const MEMBER_UP: &str = "controlplane_dqlite_member_up";

fn agent_of(cluster: &Cluster, i: usize) -> Agent {
    let dir = cluster.dir(i).display().to_string();
    Agent::start(&format!("dqlite: {{dir: '{dir}', interval: 400ms, timeout: 2s}}\n"))
}

fn value(scrape: &Scrape, name: &str) -> Option<f64> {
    scrape.value(&format!("{PREFIX}{name}"), &[])
}

/// Waits until the figures without labels have these values; `None` is absent.
#[track_caller]
fn wait_figures(agent: &Agent, limit: Duration, figures: &[(&str, Option<f64>)]) -> Scrape {
    agent.wait_until(&format!("{figures:?}"), PREFIX, limit, |scrape| {
        figures.iter().all(|(name, expected)| value(scrape, name) == *expected)
    })
}

fn labelled(scrape: &Scrape, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    scrape.value(&format!("{PREFIX}{name}"), labels)
}

/// Nothing that a server says when it is hurt.
#[track_caller]
fn assert_clean(log: &str) {
    for word in ["ERROR", "Assertion", "panic", "SIGABRT", "fatal"] {
        assert!(!log.contains(word), "{word} in the server's log:\n{log}");
    }
}

#[test]
fn a_leader_and_then_the_quorum_are_lost_and_come_back() {
    let _turn = lab::together();
    let mut cluster = Cluster::start(Dqlite::V111, 3);
    let leader = cluster.leader();
    let own = (leader + 1) % 3;
    let third = (leader + 2) % 3;
    let agent = agent_of(&cluster, own);
    let scrape = wait_figures(
        &agent,
        20 * SECOND,
        &[
            ("up", Some(1.0)),
            ("has_leader", Some(1.0)),
            ("is_leader", Some(0.0)),
            ("voters_listed", Some(3.0)),
            ("voters_reachable", Some(3.0)),
            ("leader_changes_total", Some(0.0)),
        ],
    );
    assert_eq!(labelled(&scrape, "role", &[("role", "voter")]), Some(1.0));
    let voters = [("source", "live"), ("role", "voter")];
    assert_eq!(labelled(&scrape, "members", &voters), Some(3.0));
    assert_eq!(labelled(&scrape, "own_member_listed", &[("source", "log")]), Some(1.0));
    let term = value(&scrape, "term").unwrap();
    // Whoever voted, voted for the one who leads.
    let vote = [("member", &*cluster.address(leader))];
    let cast = scrape.all(&format!("{PREFIX}vote_info"), &[]);
    assert!(cast.is_empty() || labelled(&scrape, "vote_info", &vote) == Some(1.0), "{cast:?}");

    cluster.kill(leader);
    let lost = cluster.address(leader);
    agent.wait_value(MEMBER_UP, &[("member", &lost)], 0.0, 5 * SECOND);
    agent.wait_until("an election", PREFIX, ELECTION, |scrape| {
        value(scrape, "leader_changes_total") == Some(1.0)
            && value(scrape, "has_leader") == Some(1.0)
            && value(scrape, "term").is_some_and(|now| now > term)
    });
    wait_figures(&agent, 5 * SECOND, &[("voters_reachable", Some(2.0))]);

    cluster.kill(third);
    let figures = [("has_leader", Some(0.0)), ("voters_reachable", Some(1.0)), ("up", Some(1.0))];
    wait_figures(&agent, ELECTION, &figures);
    let status = agent.get("/api/v1/status").unwrap().text();
    for words in ["answers, knows no leader", "1 of 3 answer, 2 are needed"] {
        assert!(status.contains(words), "{words}: {status}");
    }

    cluster.launch(third);
    cluster.launch(leader);
    let figures = [("has_leader", Some(1.0)), ("voters_reachable", Some(3.0))];
    wait_figures(&agent, 30 * SECOND, &figures);
    assert!(agent.log().contains("dqlite has no leader"), "{}", agent.log());

    cluster.kill(own);
    // Somebody who still votes says whether there is a leader.
    let scrape = wait_figures(&agent, ELECTION, &[("up", Some(0.0)), ("is_leader", None)]);
    assert!(value(&scrape, "voters_listed").is_some(), "it is remembered");
    let failed = [("request", "connect"), ("reason", "refused")];
    assert!(labelled(&scrape, "request_failures_total", &failed) >= Some(1.0));
    cluster.launch(own);
    wait_figures(&agent, 20 * SECOND, &[("up", Some(1.0)), ("has_leader", Some(1.0))]);
    assert_clean(&agent.log());
}

#[test]
fn over_tls_a_stand_by_knows_of_the_leader_and_takes_a_leaving_voters_place() {
    let _turn = lab::together();
    let mut cluster = Cluster::start(Dqlite::V118Tls, 4);
    let roles = lab::wait_for("a stand-by", 40 * SECOND, || {
        let roles = cluster.roles()?;
        let found = roles.iter().any(|(_, role)| role == "stand-by");
        if found { Ok(roles) } else { Err(format!("{roles:?}")) }
    });
    let of = |role: &str| {
        let address = |i: &usize| roles.iter().any(|(a, r)| *a == cluster.address(*i) && r == role);
        (0..4).find(address).unwrap()
    };
    let stand_by = of("stand-by");
    let started = Instant::now();
    let agent = agent_of(&cluster, stand_by);
    let figures = [
        ("up", Some(1.0)),
        ("has_leader", Some(1.0)),
        ("is_leader", Some(0.0)),
        ("voters_listed", Some(3.0)),
        ("voters_reachable", Some(3.0)),
    ];
    let scrape = wait_figures(&agent, NEXT_HANDSHAKE, &figures);
    assert!(value(&scrape, "certificate_not_after_timestamp_seconds") > Some(1.8e9));
    let role = "controlplane_dqlite_role";
    let scrape = agent.wait_value(role, &[("role", "stand-by")], 1.0, NEXT_HANDSHAKE);
    // Several runs later there has been no second handshake.
    let runs = [("sampler", "dqlite")];
    let count = |scrape: &Scrape| scrape.value("controlplane_sampler_runs_total", &runs);
    let before = count(&scrape).unwrap();
    let scrape = agent.wait_until("five more runs", PREFIX, 20 * SECOND, |scrape| {
        count(scrape).is_some_and(|runs| runs >= before + 5.0)
    });
    let connects = [("request", "connect")];
    let connects = labelled(&scrape, "request_duration_seconds_count", &connects).unwrap();
    let age = started.elapsed();
    assert!(connects <= 1.0 + age.as_secs_f64() / 29.0, "{connects} within {age:?}");
    drop(agent);

    let leader = cluster.leader();
    let leaving = (0..4).find(|i| *i != leader && *i != stand_by).unwrap();
    cluster.terminate(leaving);
    let agent = agent_of(&cluster, stand_by);
    agent.wait_value(role, &[("role", "voter")], 1.0, NEXT_HANDSHAKE);
    let figures =
        [("up", Some(1.0)), ("voters_listed", Some(3.0)), ("voters_reachable", Some(3.0))];
    let scrape = wait_figures(&agent, NEXT_HANDSHAKE, &figures);
    let gone = cluster.address(leaving);
    assert_eq!(scrape.value(MEMBER_UP, &[("member", &gone)]), Some(0.0));
    assert_clean(&cluster.log(stand_by));
}

#[test]
fn the_files_of_a_node_that_writes_are_followed() {
    let _turn = lab::together();
    let cluster = Cluster::start(Dqlite::V118, 1);
    let agent = agent_of(&cluster, 0);
    let scrape = wait_figures(&agent, 20 * SECOND, &[("up", Some(1.0)), ("snapshots", Some(0.0))]);
    assert_eq!(labelled(&scrape, "segments", &[("state", "open")]), Some(3.0));
    assert!(value(&scrape, "directory_bytes") > Some(24e6));
    let before = value(&scrape, "log_last_index").unwrap();
    cluster.put_many(0, 1_200);
    let scrape = agent.wait_until("a snapshot", PREFIX, 20 * SECOND, |scrape| {
        value(scrape, "snapshots") == Some(1.0)
            && value(scrape, "log_last_index").is_some_and(|last| last >= before + 1_200.0)
    });
    let index = value(&scrape, "snapshot_index").unwrap();
    assert!(index > 1_000.0 && Some(index) <= value(&scrape, "log_last_index"), "{index}");
    assert_eq!(value(&scrape, "database_page_bytes"), Some(4096.0));
    assert!(value(&scrape, "database_pages") >= Some(3.0));
    assert_eq!(value(&scrape, "database_free_pages"), Some(0.0));
    let same = [("between", "log_live")];
    assert_eq!(labelled(&scrape, "membership_differences", &same), Some(0.0));
    for missing in ["meta", "data"] {
        assert_eq!(labelled(&scrape, "snapshot_unpaired", &[("missing", missing)]), Some(0.0));
    }
    assert_eq!(value(&scrape, "certificate_not_after_timestamp_seconds"), None, "it has none");
    let failures = scrape.all("controlplane_sampler_failures_total", &[("sampler", "dqlite")]);
    assert!(failures.iter().all(|sample| sample.value == 0.0), "{failures:?}");
}

#[test]
fn a_directory_that_hangs_does_not_hide_what_the_members_say() {
    let _turn = lab::alone();
    lab::need_root("a FUSE mount");
    let cluster = Cluster::start(Dqlite::V118, 1);
    let mut agent = agent_of(&cluster, 0);
    let well = [("up", Some(1.0)), ("has_leader", Some(1.0)), ("is_leader", Some(1.0))];
    wait_figures(&agent, 20 * SECOND, &well);
    // The node keeps the files that it has open.
    let session = lab::mute::over(&cluster.dir(0));
    let late = [("sampler", "dqlite"), ("reason", "timeout")];
    let scrape = agent.wait_until("two time-outs", PREFIX, 20 * SECOND, |scrape| {
        scrape.value("controlplane_sampler_failures_total", &late) >= Some(2.0)
    });
    for (name, expected) in well {
        assert_eq!(value(&scrape, name), expected, "{name}");
    }
    assert_eq!(value(&scrape, "directory_bytes"), None);
    assert!(agent.stop(5 * SECOND).success());
    drop(session);
}

/// A member whose disk is full goes on answering, is still listed as a voter, and writes its log no more: that it has no
/// segment open is the only sign.
fn a_full_disk(version: Dqlite) {
    lab::need_root("a disk");
    let disk = Disk::sized(Kind::Ext4, 80 << 20);
    let folder = disk.mount().path();
    let cluster = Cluster::start_on(version, 3, Some(folder));
    let agent = agent_of(&cluster, 2);
    let open = |scrape: &Scrape| labelled(scrape, "segments", &[("state", "open")]);
    let lists = agent.wait_until("three open segments", PREFIX, 20 * SECOND, |scrape| {
        open(scrape) == Some(3.0) && value(scrape, "voters_reachable") == Some(3.0)
    });
    let before = value(&lists, "log_last_index").unwrap();
    disk.mount().fill();
    let leader = cluster.leader();
    cluster.put_large(leader, 1_500, 20_000);
    let scrape = agent
        .wait_until("a log that ends", PREFIX, 20 * SECOND, |scrape| open(scrape) == Some(0.0));
    for (name, expected) in [("up", 1.0), ("voters_listed", 3.0), ("voters_reachable", 3.0)] {
        assert_eq!(value(&scrape, name), Some(expected), "{name}: nothing else tells");
    }
    assert!(value(&scrape, "log_last_index") > Some(before));
    let status = agent.get("/api/v1/status").unwrap().text();
    assert!(status.contains("ControlPlaneDqliteLogStopped"), "{status}");
    assert_clean(&agent.log());
}

#[test]
fn a_member_of_1_11_whose_disk_is_full_writes_no_log_and_says_nothing() {
    let _turn = lab::together();
    a_full_disk(Dqlite::V111);
}

#[test]
fn a_member_of_1_18_whose_disk_is_full_writes_no_log_and_says_nothing() {
    let _turn = lab::together();
    a_full_disk(Dqlite::V118);
}

/// Asks a single member again and again, and then whether that did it any harm.
fn polls(version: Dqlite, count: usize) {
    let mut cluster = Cluster::start(version, 1);
    let address = cluster.address(0);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let started = Instant::now();
    runtime.block_on(async {
        for poll in 0..count {
            let all = [Request::Cluster, Request::Leader, Request::Describe];
            let talked = converse(&address, None, &all, 5 * SECOND).await;
            assert_eq!(talked.failure(), None, "poll {poll}");
            assert_eq!(talked.answers().count(), 3);
        }
    });
    eprintln!("long: {count} polls of {version:?} in {:.1} s", started.elapsed().as_secs_f64());
    cluster.check_alive(0);
    cluster.put_many(0, 3);
    assert_clean(&cluster.log(0));
}

#[test]
fn five_hundred_polls_do_not_hurt_dqlite_1_11() {
    let _turn = lab::together();
    polls(Dqlite::V111, 500);
}

#[test]
fn five_hundred_polls_do_not_hurt_dqlite_1_18() {
    let _turn = lab::together();
    polls(Dqlite::V118, 500);
}

#[test]
#[ignore = "long: make test-long"]
fn ten_thousand_polls_do_not_hurt_dqlite_1_11() {
    let _turn = lab::together();
    polls(Dqlite::V111, 10_000);
}

#[test]
#[ignore = "long: make test-long"]
fn ten_thousand_polls_do_not_hurt_dqlite_1_18() {
    let _turn = lab::together();
    polls(Dqlite::V118, 10_000);
}
