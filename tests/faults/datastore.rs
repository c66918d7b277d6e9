//! Members of etcd and dqlite that hang, die, lose each other or are not what they seem.

use super::noise::Front;
use super::{NO_ETCD, OWN_DISK, SECOND, Watch, path};
use crate::lab::agent::{Agent, Options as AgentOptions, Scrape};
use crate::lab::dqlite::{Cluster as Dqlites, Dqlite};
use crate::lab::etcd::{Cluster, Etcd, Listen, Options};
use crate::lab::pki::Pki;
use crate::lab::process::{Daemon, bound_command, output, run};
use crate::lab::{self, cached, wait_for};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

const UP: &str = "controlplane_etcd_up";
const LEADER: &str = "controlplane_etcd_has_leader";
const CHANGES: &str = "controlplane_etcd_leader_changes_total";
const VOTERS: &str = "controlplane_etcd_voters_reachable";
const LISTED: &str = "controlplane_etcd_members_listed";
const PEER_UP: &str = "controlplane_etcd_peer_up";
const FAILURES: &str = "controlplane_etcd_request_failures_total";
const ALL: &str = "controlplane_etcd_";
/// One interval of 300 ms, a timeout of 2 s, and what a busy machine may add.
const BOUND: Duration = Duration::from_millis(4_500);
const LIMIT: Duration = Duration::from_secs(30);

fn config_for(cluster: &Cluster, url: &str) -> String {
    let pki = &cluster.pki;
    let [ca, cert, key] = [&pki.ca, &pki.client.cert, &pki.client.key].map(|file| path(file));
    format!(
        "etcd: {{endpoints: ['{url}'], ca_file: '{ca}', cert_file: '{cert}', key_file: '{key}', interval: 300ms, timeout: 2s}}\n\
         registry_keys: {{interval: 1s, timeout: 2s}}\nvolume: {{enabled: false}}\n{OWN_DISK}"
    )
}

/// An agent on the node of member `i`, which sees so many voters.
fn agent_of(cluster: &Cluster, i: usize, voters: f64) -> Agent {
    let agent = Agent::start(&config_for(cluster, &cluster.client_url(i)));
    agent.wait_until("all voters", ALL, LIMIT, well(voters));
    agent
}

fn port_of(cluster: &Cluster) -> u16 {
    let url = cluster.client_url(0);
    url.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port")
}

/// The local member answers, has a leader and so many voters.
fn well(voters: f64) -> impl Fn(&Scrape) -> bool {
    move |s| {
        let value = |name| s.value(name, &[]);
        value(UP) == Some(1.0) && value(LEADER) == Some(1.0) && value(VOTERS) == Some(voters)
    }
}

fn is_down(s: &Scrape) -> bool {
    s.value(UP, &[]) == Some(0.0) && s.value(LEADER, &[]).is_none()
}

fn failed(reason: &'static str) -> impl Fn(&Scrape) -> bool {
    move |s| s.sum(FAILURES, &[("reason", reason)]) >= 1.0
}

#[test]
fn a_local_member_that_is_stopped_is_down_within_a_timeout() {
    let _turn = lab::alone();
    let cluster = Cluster::start(Etcd::V35, 3);
    let agent = agent_of(&cluster, 0, 3.0);
    let mut watch = Watch::of("etcd: the local member hangs", &agent);
    watch.fault("SIGSTOP", || cluster.stop(0));
    let scrape = agent.wait_until("down", ALL, BOUND, |s| is_down(s) && s.sum(VOTERS, &[]) == 2.0);
    assert_eq!(scrape.value(LISTED, &[]), Some(3.0), "remembered");
    watch.repair(|| cluster.cont(0));
    watch.recovers(&agent, ALL, LIMIT, well(3.0));
    watch.holds("down within 4.5 s, no figure of before, its peers still counted");
}

#[test]
#[ignore = "tests/faults.sh"]
fn a_local_member_that_is_killed_and_started_again_is_down_and_up() {
    let _turn = lab::alone();
    let mut cluster = Cluster::start(Etcd::V35, 3);
    let agent = agent_of(&cluster, 0, 3.0);
    let mut watch = Watch::of("etcd: the local member is killed", &agent);
    watch.fault("SIGKILL, three times", || {
        for _ in 0..3 {
            cluster.kill(0);
            agent.wait_until("down", ALL, BOUND, is_down);
            cluster.restart(0);
            agent.wait_until("up", ALL, LIMIT, well(3.0));
        }
        cluster.kill(0);
        agent.wait_until("down", ALL, BOUND, is_down);
    });
    watch.repair(|| cluster.restart(0));
    watch.recovers(&agent, ALL, LIMIT, well(3.0));
    watch.holds("down each time within 4.5 s, up again each time");
}

#[test]
#[ignore = "tests/faults.sh"]
fn a_leader_that_is_lost_is_one_change() {
    let _turn = lab::alone();
    let mut cluster = Cluster::start(Etcd::V35, 3);
    let leader = cluster.leader();
    let agent = agent_of(&cluster, (leader + 1) % 3, 3.0);
    let mut watch = Watch::of("etcd: the leader is lost", &agent);
    let before = agent.scrape().sum(CHANGES, &[]);
    watch.fault("SIGKILL of the member that leads", || cluster.kill(leader));
    agent.wait_until("another leader", ALL, LIMIT, |s| {
        well(2.0)(s) && s.sum(CHANGES, &[]) == before + 1.0
    });
    watch.repair(|| cluster.restart(leader));
    let scrape = watch.recovers(&agent, ALL, LIMIT, well(3.0));
    assert_eq!(scrape.sum(CHANGES, &[]), before + 1.0, "the old leader comes back as a follower");
    watch.holds("one change of the leader is counted as one; two voters, then three");
}

#[test]
#[ignore = "tests/faults.sh"]
fn a_quorum_that_is_lost_is_told_by_the_member_that_is_left() {
    let _turn = lab::alone();
    let mut cluster = Cluster::start(Etcd::V35, 3);
    let agent = agent_of(&cluster, 0, 3.0);
    let mut watch = Watch::of("etcd: the quorum is lost", &agent);
    watch.fault("SIGKILL of both others", || (1..3).for_each(|i| cluster.kill(i)));
    agent.wait_until("no leader", ALL, LIMIT, |s| {
        let value = |name| s.value(name, &[]);
        value(UP) == Some(1.0) && value(LEADER) == Some(0.0) && value(VOTERS) == Some(1.0)
    });
    watch.repair(|| (1..3).for_each(|i| cluster.launch(i)));
    watch.recovers(&agent, ALL, LIMIT, well(3.0));
    watch.holds("up, without a leader, one voter of three");
}

#[test]
#[ignore = "tests/faults.sh"]
fn certificates_of_a_new_authority_are_taken_without_a_restart() {
    let _turn = lab::alone();
    let mut cluster = Cluster::start(Etcd::V35, 1);
    let agent = agent_of(&cluster, 0, 1.0);
    let mut watch = Watch::of("etcd: its TLS is rotated", &agent);
    watch.fault("all files are those of a new authority; etcd starts again", || {
        cluster.pki.take_over(&Pki::new());
        cluster.kill(0);
    });
    agent.wait_until("down", ALL, BOUND, is_down);
    watch.repair(|| cluster.restart(0));
    let scrape = watch.recovers(&agent, ALL, LIMIT, well(1.0));
    for reason in ["tls_untrusted", "tls_rejected", "tls_expired", "tls_config", "tls"] {
        assert!(scrape.all(FAILURES, &[("reason", reason)]).is_empty(), "{reason}");
    }
    watch.holds("the new files serve at the next connection, without an error of TLS");
}

#[test]
#[ignore = "tests/faults.sh"]
fn a_certificate_that_has_expired_is_named() {
    let _turn = lab::alone();
    let mut cluster = Cluster::start(Etcd::V35, 1);
    let agent = agent_of(&cluster, 0, 1.0);
    let mut watch = Watch::of("etcd: its certificate has expired", &agent);
    let (server, expired) = (cluster.pki.server.clone(), cluster.pki.server_expired.clone());
    let good = [&server.cert, &server.key].map(|file| std::fs::read(file).unwrap());
    watch.fault("the member starts with a certificate of last year", || {
        std::fs::copy(&expired.cert, &server.cert).unwrap();
        std::fs::copy(&expired.key, &server.key).unwrap();
        cluster.kill(0);
        cluster.launch(0);
    });
    agent.wait_until("tls_expired", ALL, LIMIT, |s| is_down(s) && failed("tls_expired")(s));
    watch.repair(|| {
        std::fs::write(&server.cert, &good[0]).unwrap();
        std::fs::write(&server.key, &good[1]).unwrap();
    });
    watch.recovers(&agent, ALL, LIMIT, well(1.0));
    watch.holds("down for the reason tls_expired; up when the file is right, without a restart");
}

#[test]
#[ignore = "tests/faults.sh"]
fn a_clock_that_jumps_ten_years_makes_certificates_expire_and_good_again() {
    let _turn = lab::alone();
    let cluster = Cluster::start(Etcd::V35, 1);
    let config = config_for(&cluster, &cluster.client_url(0));
    let agent = super::process::with_own_clock(&format!("kernel: {{interval: 200ms}}\n{config}"));
    agent.agent.wait_until("well", ALL, LIMIT, well(1.0));
    let mut watch = Watch::of("the clock jumps by ten years, and back", &agent.agent);
    let stamp = "controlplane_etcd_request_last_success_timestamp_seconds";
    let runs = |s: &Scrape| s.sum("controlplane_sampler_runs_total", &[("sampler", "kernel")]);
    let before = agent.agent.scrape();
    watch.fault("`+10y` for the agent, not for etcd and its certificates", || agent.jump("+10y"));
    let later = super::unix_now() + 9.0 * 365.0 * 86_400.0;
    // The open connection serves on; samples go on at the pace of the monotonic clock.
    let during = agent.agent.wait_until("samples at the new time", ALL, LIMIT, |s| {
        s.sum(stamp, &[("request", "status")]) > later && runs(s) > runs(&before) + 5.0
    });
    assert_eq!(during.value(UP, &[]), Some(1.0));
    cluster.stop(0);
    agent.agent.wait_until("down", ALL, BOUND, is_down);
    std::thread::sleep(5 * SECOND);
    cluster.cont(0);
    agent.agent.wait_until("tls_expired", ALL, LIMIT, failed("tls_expired"));
    watch.repair(|| agent.jump("-1s"));
    watch.recovers(&agent.agent, ALL, LIMIT, |s| {
        well(1.0)(s) && s.sum(stamp, &[("request", "status")]) < super::unix_now() + 60.0
    });
    let now = agent.agent.scrape();
    agent.agent.wait_until("samples", ALL, LIMIT, |s| runs(s) > runs(&now) + 5.0);
    watch.holds("intervals keep their pace; the certificate expires and is good again");
}

#[test]
#[ignore = "tests/faults.sh"]
fn a_database_at_its_quota_raises_the_alarm_and_lowers_it() {
    let _turn = lab::alone();
    let options = Options { quota: Some(8 << 20), ..Options::default() };
    let cluster = Cluster::start_with(Etcd::V35, 1, options);
    let agent = agent_of(&cluster, 0, 1.0);
    let mut watch = Watch::of("etcd: NOSPACE", &agent);
    let alarm = "controlplane_etcd_alarm";
    watch.fault("values until the quota is reached", || {
        let full = (0..50).find_map(|i| {
            let key = format!("k{i}");
            let put = cluster.on_member(0, |mut client: etcd_client::Client| async move {
                client.put(key, vec![7_u8; 1 << 20], None).await.map(drop)
            });
            put.err()
        });
        assert!(full.is_some_and(|error| error.contains("space exceeded")));
    });
    agent.wait_until("the alarm", ALL, LIMIT, |s| s.sum(alarm, &[("alarm", "NOSPACE")]) == 1.0);
    watch.repair(|| {
        cluster.etcdctl(&["del", "--prefix", "k"]);
        let revision = agent.scrape().sum("controlplane_etcd_revision", &[]);
        cluster.etcdctl(&["compact", &revision.to_string()]);
        cluster.etcdctl(&["defrag"]);
        cluster.etcdctl(&["alarm", "disarm"]);
    });
    watch.recovers(&agent, ALL, LIMIT, |s| well(1.0)(s) && s.sum(alarm, &[]) == 0.0);
    watch.holds("one alarm of the right kind, and its end");
}

#[test]
#[ignore = "tests/faults.sh"]
fn a_member_list_of_thousands_is_counted_and_costs_no_more_than_it_must() {
    const NOISE: usize = 5_000;
    let _turn = lab::alone();
    let cluster =
        Cluster::start_with(Etcd::V35, 1, Options { listen: Listen::Plain, ..Options::default() });
    let front = Front::before(port_of(&cluster));
    let url = format!("http://127.0.0.1:{}", front.port());
    let agent = Agent::start(&format!(
        "etcd: {{endpoints: ['{url}'], interval: 300ms, timeout: 2s}}\n{OWN_DISK}"
    ));
    agent.wait_until("well", ALL, LIMIT, |s| s.value(LISTED, &[]) == Some(1.0));
    let mut watch = Watch::of("etcd: a member list of 5,001", &agent);
    let what =
        "to the list of a real etcd 5,000 members are added on its way, of which nobody answers";
    watch.fault(what, || front.set_noise(NOISE));
    let full = agent.wait_until("all of them", ALL, LIMIT, |s| {
        s.value(LISTED, &[]) == Some(1.0 + NOISE as f64)
            && s.sum(&format!("{ALL}members_learner"), &[]) == NOISE as f64
    });
    let value = |name: &str| full.value(&format!("{ALL}{name}"), &[]);
    assert_eq!((value("up"), value("has_leader")), (Some(1.0), Some(1.0)));
    assert_eq!(value("voters_listed"), Some(1.0));
    assert!(full.samples.len() < 1_000, "{} series", full.samples.len());
    std::thread::sleep(3 * SECOND);
    watch.repair(|| front.set_noise(0));
    watch.recovers(&agent, ALL, LIMIT, |s| {
        s.value(LISTED, &[]) == Some(1.0) && s.all(PEER_UP, &[]).is_empty()
    });
    watch.holds("listed and counted, fewer than 1,000 series, the one voter told from the rest");
}

/// What stands between the agent and its member.
#[derive(Clone, Copy)]
enum Mood {
    Forward,
    Garbage,
    Reset,
    Silent,
}

/// A port that forwards to a member, or does something else to whoever connects.
struct Gate {
    port: u16,
    mood: Arc<AtomicU8>,
}

impl Gate {
    fn before(port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let own = listener.local_addr().unwrap().port();
        let mood = Arc::new(AtomicU8::new(Mood::Forward as u8));
        let shared = Arc::clone(&mood);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let mood = Arc::clone(&shared);
                std::thread::spawn(move || handle(client, port, &mood));
            }
        });
        Self { port: own, mood }
    }

    /// Connections that are open end, and new ones go by the new mood.
    fn set(&self, mood: Mood) {
        self.mood.store(mood as u8, Ordering::SeqCst);
    }
}

fn handle(client: TcpStream, port: u16, mood: &AtomicU8) {
    let began = mood.load(Ordering::SeqCst);
    let go_on = || mood.load(Ordering::SeqCst) == began;
    client.set_read_timeout(Some(SECOND / 10)).unwrap();
    let mut to = match began {
        began if began == Mood::Forward as u8 => {
            let Ok(server) = TcpStream::connect(("127.0.0.1", port)) else { return };
            server.set_read_timeout(Some(SECOND / 10)).unwrap();
            let (from, to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
            std::thread::scope(|scope| {
                scope.spawn(|| copy(from, to, &go_on));
                copy(client, server, &go_on);
            });
            return;
        }
        began if began == Mood::Reset as u8 => {
            // What has not been read turns the end into a reset.
            std::thread::sleep(SECOND / 20);
            return;
        }
        _ => client,
    };
    let mut noise = [0; 4096];
    while go_on() {
        if began == Mood::Garbage as u8 {
            noise.fill_with(|| fastrand::u8(..));
            if to.write_all(&noise).is_err() {
                return;
            }
        }
        std::thread::sleep(SECOND / 100);
    }
}

fn copy(mut from: TcpStream, mut to: TcpStream, go_on: &dyn Fn() -> bool) {
    let mut buffer = [0; 16_384];
    while go_on() {
        match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) if to.write_all(&buffer[..n]).is_ok() => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            _ => break,
        }
    }
    from.shutdown(Shutdown::Both).ok();
    to.shutdown(Shutdown::Both).ok();
}

/// The way to the member does this for some seconds.
fn gated(name: &'static str, what: &str, mood: Mood, held: &str) {
    let cluster = Cluster::start(Etcd::V35, 1);
    let gate = Gate::before(port_of(&cluster));
    let agent = Agent::start(&config_for(&cluster, &format!("https://127.0.0.1:{}", gate.port)));
    agent.wait_until("well", ALL, LIMIT, |s| s.value(UP, &[]) == Some(1.0));
    let before = agent.scrape().sum(FAILURES, &[]);
    let mut watch = Watch::of(name, &agent);
    watch.fault(what, || gate.set(mood));
    let scrape = agent
        .wait_until("down", ALL, LIMIT, |s| is_down(s) && s.sum(FAILURES, &[]) > before + 10.0);
    eprintln!("{}", scrape.with_prefix(FAILURES));
    watch.repair(|| gate.set(Mood::Forward));
    watch.recovers(&agent, ALL, LIMIT, |s| s.value(UP, &[]) == Some(1.0));
    watch.holds(held);
}

#[test]
#[ignore = "tests/faults.sh"]
fn garbage_on_etcds_port_is_a_member_that_is_down() {
    let _turn = lab::alone();
    let what = "random bytes to whoever connects, without end";
    gated("etcd: garbage on its port", what, Mood::Garbage, "down, with the reason of each call");
}

#[test]
#[ignore = "tests/faults.sh"]
fn connections_that_are_reset_are_a_member_that_is_down() {
    let _turn = lab::alone();
    let what = "each connection is reset after 50 ms";
    gated("etcd: connections are reset", what, Mood::Reset, "down, with the reason of each call");
}

#[test]
#[ignore = "tests/faults.sh"]
fn a_port_that_takes_connections_and_says_nothing_is_a_member_that_is_down() {
    let _turn = lab::alone();
    let what = "connections are taken and nothing is ever said";
    gated("etcd: its port is silent", what, Mood::Silent, "down, with the reason of each call");
}

/// Three members and an agent, each in a network namespace of its own, on one bridge.
struct Network {
    names: Vec<String>,
    switch: String,
}

/// The address of member `i`; the agent has that of 3.
fn address(i: usize) -> String {
    format!("10.123.45.{}", i + 1)
}

impl Network {
    fn new() -> Self {
        lab::need_root("network namespaces");
        let name = |what: &str| format!("cpe{}{what}", std::process::id());
        let network =
            Self { names: (0..4).map(|i| name(&i.to_string())).collect(), switch: name("s") };
        let ip = |line: &str| run("ip", line.split(' '));
        ip(&format!("netns add {}", network.switch));
        ip(&format!("-n {} link add br0 type bridge", network.switch));
        ip(&format!("-n {} link set br0 up", network.switch));
        for (i, name) in network.names.iter().enumerate() {
            ip(&format!("netns add {name}"));
            ip(&format!("-n {name} link set lo up"));
            let switch = &network.switch;
            ip(&format!("-n {switch} link add p{i} type veth peer name eth0 netns {name}"));
            ip(&format!("-n {switch} link set p{i} master br0 up"));
            ip(&format!("-n {name} addr add {}/24 dev eth0", address(i)));
            ip(&format!("-n {name} link set eth0 up"));
        }
        network
    }

    /// What runs a program in the namespace of member `i`.
    fn enter(&self, i: usize) -> Vec<String> {
        vec!["nsenter".into(), format!("--net=/run/netns/{}", self.names[i]), "--".into()]
    }

    /// Drops, or lets through again, what `from` sends to `to`.
    fn cut(&self, from: usize, to: usize, cut: bool) {
        let verb = if cut { "add" } else { "del" };
        let (from, to) = (&self.names[from], address(to));
        run("ip", ["-n", from, "route", verb, "blackhole", &format!("{to}/32")]);
    }

    fn member(&self, i: usize, folder: &Path) -> Daemon {
        let enter = self.enter(i);
        let mut command = bound_command(lab::program(&enter[0]));
        command.args(&enter[1..]).arg(cached("etcd-3.5/usr/bin/etcd"));
        let peer = |i: usize| format!("http://{}:2380", address(i));
        let (own, client) = (peer(i), format!("http://{}:2379", address(i)));
        let all: Vec<String> = (0..3).map(|i| format!("m{i}={}", peer(i))).collect();
        command.args([
            format!("--name=m{i}"),
            format!("--data-dir={}", folder.join(format!("m{i}")).display()),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={own}"),
            format!("--initial-advertise-peer-urls={own}"),
            format!("--initial-cluster={}", all.join(",")),
        ]);
        Daemon::start(&format!("etcd m{i}"), command, &folder.join(format!("m{i}.log")))
    }

    /// Runs this in the agent's namespace: the watch and each request are made there.
    fn as_agent(&self, test: impl FnOnce() + Send) {
        let file = std::fs::File::open(format!("/run/netns/{}", self.names[3])).unwrap();
        std::thread::scope(|scope| {
            let ran = scope.spawn(move || {
                move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                test();
            });
            if let Err(panic) = ran.join() {
                std::panic::resume_unwind(panic);
            }
        });
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in self.names.iter().chain([&self.switch]) {
            let mut command = bound_command(lab::program("ip"));
            command.args(["netns", "del", name]);
            output(command, LIMIT);
        }
    }
}

/// A partition of three members and an agent; `cuts` are pairs of who no longer reaches whom.
fn partitioned(
    name: &'static str,
    what: &str,
    cuts: &[(usize, usize)],
    held: &str,
    during: impl Fn(&Scrape) -> bool + Send,
) {
    let network = Network::new();
    let folder = lab::temp_dir("partition");
    let _members: Vec<Daemon> = (0..3).map(|i| network.member(i, folder.path())).collect();
    network.as_agent(|| {
        let agent = Agent::start_with(AgentOptions {
            config: format!(
                "etcd: {{endpoints: ['http://{}:2379'], interval: 300ms, timeout: 2s}}\n{OWN_DISK}",
                address(0)
            ),
            through: network.enter(3),
            ..AgentOptions::default()
        });
        agent.wait_until("all voters", ALL, LIMIT, well(3.0));
        let mut watch = Watch::of(name, &agent);
        watch.fault(what, || {
            for (from, to) in cuts {
                network.cut(*from, *to, true);
            }
        });
        agent.wait_until("the partition", ALL, LIMIT, during);
        watch.repair(|| {
            for (from, to) in cuts {
                network.cut(*from, *to, false);
            }
        });
        watch.recovers(&agent, ALL, 2 * LIMIT, well(3.0));
        watch.holds(held);
    });
}

#[test]
#[ignore = "tests/faults.sh"]
fn a_member_that_is_cut_off_from_its_peers_has_no_leader_and_they_are_well() {
    let _turn = lab::alone();
    partitioned(
        "etcd: the local member is cut off from its peers",
        "nothing passes between it and both others; the agent reaches all",
        &[(0, 1), (0, 2), (1, 0), (2, 0)],
        "up without a leader; all three voters answer the agent",
        |s| {
            let value = |name| s.value(name, &[]);
            value(UP) == Some(1.0) && value(LEADER) == Some(0.0) && value(VOTERS) == Some(3.0)
        },
    );
}

#[test]
#[ignore = "tests/faults.sh"]
fn an_agent_that_is_cut_off_from_its_member_says_down_and_still_asks_the_others() {
    let _turn = lab::alone();
    partitioned(
        "etcd: the agent is cut off from the local member",
        "nothing passes between agent and member; the cluster is whole",
        &[(3, 0), (0, 3)],
        "down within its time-outs; the other two answer",
        |s| is_down(s) && s.value(VOTERS, &[]) == Some(2.0),
    );
}

#[test]
#[ignore = "tests/faults.sh"]
fn an_agent_that_is_cut_off_from_the_peers_says_so_of_each() {
    let _turn = lab::alone();
    partitioned(
        "etcd: the agent is cut off from the peers",
        "nothing passes between agent and both peers; the cluster is whole",
        &[(3, 1), (3, 2), (1, 3), (2, 3)],
        "up with a leader, one voter reachable",
        |s| well(1.0)(s) && s.all(PEER_UP, &[]).iter().all(|peer| peer.value == 0.0),
    );
}

const DQLITE: &str = "controlplane_dqlite_";

fn dqlite(s: &Scrape, name: &str) -> Option<f64> {
    s.value(&format!("{DQLITE}{name}"), &[])
}

/// An agent beside a member of three that does not lead.
fn dqlite_agent(cluster: &Dqlites, i: usize) -> Agent {
    let dir = path(&cluster.dir(i));
    let agent = Agent::start(&format!(
        "dqlite: {{dir: '{dir}', interval: 400ms, timeout: 2s}}\n{NO_ETCD}{OWN_DISK}"
    ));
    agent.wait_until("three voters", DQLITE, LIMIT, dqlite_well);
    agent
}

fn dqlite_well(s: &Scrape) -> bool {
    let value = |name| dqlite(s, name);
    value("up") == Some(1.0)
        && value("has_leader") == Some(1.0)
        && value("voters_reachable") == Some(3.0)
}

#[test]
#[ignore = "tests/faults.sh"]
fn a_dqlite_leader_that_is_lost_is_one_change() {
    let _turn = lab::alone();
    let mut cluster = Dqlites::start(Dqlite::V118, 3);
    let leader = cluster.leader();
    let agent = dqlite_agent(&cluster, (leader + 1) % 3);
    let mut watch = Watch::of("dqlite: the leader is lost", &agent);
    let before = dqlite(&agent.scrape(), "leader_changes_total").unwrap();
    watch.fault("SIGKILL of the member that leads", || cluster.kill(leader));
    agent.wait_until("an election", DQLITE, LIMIT, |s| {
        dqlite(s, "leader_changes_total") == Some(before + 1.0)
            && dqlite(s, "has_leader") == Some(1.0)
            && dqlite(s, "voters_reachable") == Some(2.0)
    });
    watch.repair(|| cluster.launch(leader));
    watch.recovers(&agent, DQLITE, LIMIT, dqlite_well);
    watch.holds("one change of the leader; two voters, then three");
}

#[test]
#[ignore = "tests/faults.sh"]
fn a_dqlite_quorum_that_is_lost_is_told() {
    let _turn = lab::alone();
    let mut cluster = Dqlites::start(Dqlite::V118, 3);
    let agent = dqlite_agent(&cluster, 0);
    let mut watch = Watch::of("dqlite: the quorum is lost", &agent);
    watch.fault("SIGKILL of both others", || (1..3).for_each(|i| cluster.kill(i)));
    agent.wait_until("no leader", DQLITE, LIMIT, |s| {
        dqlite(s, "has_leader") == Some(0.0) && dqlite(s, "voters_reachable") == Some(1.0)
    });
    watch.repair(|| (1..3).for_each(|i| cluster.launch(i)));
    watch.recovers(&agent, DQLITE, 2 * LIMIT, dqlite_well);
    watch.holds("no leader, one voter of three, and all of them again");
}

#[test]
#[ignore = "tests/faults.sh"]
fn a_port_of_which_nobody_is_left_and_another_program_has_it_is_a_member_that_is_down() {
    let _turn = lab::alone();
    let mut cluster = Cluster::start(Etcd::V35, 1);
    let agent = agent_of(&cluster, 0, 1.0);
    let mut watch = Watch::of("etcd: another program has its port", &agent);
    let port = port_of(&cluster);
    let folder = lab::temp_dir("other");
    let mut server = watch.fault("a web server without TLS has taken it", || {
        cluster.kill(0);
        let mut command = bound_command(lab::program("python3"));
        command.args(["-m", "http.server", "--bind", "127.0.0.1", &port.to_string()]);
        command.current_dir(folder.path());
        Daemon::start("a web server", command, &folder.path().join("log"))
    });
    wait_for("the web server", LIMIT, || {
        TcpStream::connect(("127.0.0.1", port)).map(drop).map_err(|error| error.to_string())
    });
    agent.wait_until("tls", ALL, LIMIT, |s| {
        let tls = s.all(FAILURES, &[]).into_iter().any(|f| f.labels["reason"].starts_with("tls"));
        is_down(s) && tls
    });
    watch.repair(|| {
        server.kill();
        cluster.restart(0);
    });
    watch.recovers(&agent, ALL, LIMIT, well(1.0));
    watch.holds("down for a reason of TLS; up when etcd has its port again");
}
