//! Clients that are many, slow, impatient or talk nonsense.

use super::{NO_ETCD, OWN_DISK, SECOND, Watch};
use crate::lab::agent::{Agent, Scrape};
use crate::lab::prometheus::{Prometheus, Version};
use crate::lab::{self, http, wait_for};
use rustix::process::{Resource, getrlimit, setrlimit};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const SAMPLERS: &str = "controlplane_sampler_";
const RUNS: &str = "controlplane_sampler_runs_total";
const LIMIT: Duration = Duration::from_secs(30);

fn agent() -> Agent {
    // The kernel's ring may have turned over, and is read anew when something else is found on the node.
    let config = "exporter: {interval: 200ms}\nkernel: {enabled: false}\n";
    Agent::start(&format!("{config}{NO_ETCD}{OWN_DISK}"))
}

/// How many files the agent itself has open.
fn open(agent: &Agent) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", agent.pid())).unwrap().count()
}

fn runs(s: &Scrape) -> f64 {
    s.sum(RUNS, &[("sampler", "exporter")])
}

/// Waits until samples and scrapes are as before.
fn goes_on(watch: &mut Watch, agent: &Agent) {
    let now = agent.scrape();
    watch.recovers(agent, SAMPLERS, LIMIT, |s| runs(s) > runs(&now) + 2.0);
}

/// Does this from eight threads for so long, and gives how often.
fn from_all_sides(time: Duration, one: impl Fn(&mut fastrand::Rng) + Sync) -> usize {
    let started = Instant::now();
    std::thread::scope(|scope| {
        let threads = (0..8).map(|seed| {
            let one = &one;
            scope.spawn(move || {
                let (mut random, mut count) = (fastrand::Rng::with_seed(seed), 0);
                while started.elapsed() < time {
                    one(&mut random);
                    count += 1;
                }
                count
            })
        });
        let threads: Vec<_> = threads.collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    })
}

/// One client: one of six beginnings, and random bytes behind it.
pub(super) fn talk_nonsense(address: SocketAddr, random: &mut fastrand::Rng) {
    let starts: [&[u8]; 6] = [
        b"",
        b"GET /metrics HTTP/1.1\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST /-/reload HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /metrics HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
    ];
    let Ok(mut stream) = TcpStream::connect(address) else { return };
    stream.set_read_timeout(Some(SECOND / 10)).unwrap();
    let length = random.usize(0..4_000);
    let noise: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(length).collect();
    let start = starts[random.usize(0..starts.len())];
    // The agent may have hung up already.
    if stream.write_all(start).and_then(|()| stream.write_all(&noise)).is_ok() {
        let answer = stream.read(&mut [0; 1024]);
        drop(answer);
    }
}

#[test]
fn requests_that_are_garbage_are_refused_and_hold_up_nobody() {
    let _turn = lab::alone();
    let agent = agent();
    let address = agent.address();
    let mut watch = Watch::of("garbage on its own port", &agent);
    let count = watch
        .fault("random bytes behind six beginnings, from eight clients for 4 s", || {
            from_all_sides(4 * SECOND, |random| talk_nonsense(address, random))
        });
    watch.repair(|| ());
    goes_on(&mut watch, &agent);
    watch.holds(&format!("{count} such clients; scrapes beside them are answered"));
}

#[test]
#[ignore = "tests/faults.sh"]
fn clients_that_connect_and_are_gone_leave_nothing_behind() {
    let _turn = lab::alone();
    let agent = agent();
    let address = agent.address();
    let mut watch = Watch::of("connections that are reset", &agent);
    let count =
        watch.fault("a request and a reset before the answer, from eight clients for 5 s", || {
            from_all_sides(5 * SECOND, |_| {
                let Ok(mut stream) = TcpStream::connect(address) else { return };
                rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
                stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").ok();
                // So short a time that the ports of this machine are enough.
                std::thread::sleep(SECOND / 500);
            })
        });
    watch.repair(|| ());
    goes_on(&mut watch, &agent);
    watch.holds(&format!("{count} such clients; scrapes beside them are answered"));
}

#[test]
#[ignore = "tests/faults.sh"]
fn ten_thousand_connections_are_bounded_and_lock_nobody_out() {
    const CLIENTS: usize = 10_000;
    let _turn = lab::alone();
    // Of this test program, for its side of the connections.
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, rustix::process::Rlimit { current: limit.maximum, ..limit })
        .unwrap();
    let agent = agent();
    let mut watch = Watch::of("10,000 connections", &agent);
    let before = open(&agent);
    let idle = watch.fault("opened one after the other, each asks once and stays", || {
        let mut idle = Vec::with_capacity(CLIENTS);
        for _ in 0..CLIENTS {
            let Ok(mut stream) = TcpStream::connect(agent.address()) else { continue };
            stream.write_all(b"GET /-/healthy HTTP/1.1\r\nHost: x\r\n\r\n").ok();
            idle.push(stream);
        }
        idle
    });
    let opened = idle.len();
    assert!(opened > CLIENTS * 9 / 10, "only {opened} connections");
    let most = wait_for("few descriptors", LIMIT, || {
        let now = open(&agent);
        if now < before + 600 { Ok(now) } else { Err(format!("{now} descriptors")) }
    });
    for _ in 0..10 {
        assert_eq!(agent.get("/metrics").unwrap().status, 200);
    }
    watch.repair(|| drop(idle));
    goes_on(&mut watch, &agent);
    watch
        .holds(&format!("{opened} were opened, {most} descriptors are open; nobody is locked out"));
}

/// A client that asks for the figures so many times and never reads an answer.
pub(super) fn deaf(address: SocketAddr, requests: usize) -> TcpStream {
    use rustix::net::{AddressFamily, SocketType, connect, socket, sockopt};
    let stream = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    sockopt::set_socket_recv_buffer_size(&stream, 4096).unwrap();
    connect(&stream, &address).unwrap();
    let mut stream = TcpStream::from(stream);
    let all = "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n".repeat(requests);
    stream.write_all(all.as_bytes()).unwrap();
    stream
}

#[test]
#[ignore = "tests/faults.sh"]
fn readers_that_are_slow_or_never_read_hold_up_nobody() {
    let _turn = lab::alone();
    let agent = agent();
    let mut watch = Watch::of("readers that are slow", &agent);
    let readers = watch.fault(
        "30 clients ask a hundred times each; half never read, half a byte a second",
        || (0..30).map(|_| deaf(agent.address(), 100)).collect::<Vec<_>>(),
    );
    let started = Instant::now();
    while started.elapsed() < 12 * SECOND {
        for mut slow in readers.iter().step_by(2) {
            slow.set_nonblocking(true).unwrap();
            let byte = slow.read(&mut [0; 1]);
            drop(byte);
        }
        std::thread::sleep(SECOND);
    }
    watch.repair(|| drop(readers));
    goes_on(&mut watch, &agent);
    watch.holds("all others are answered meanwhile");
}

#[test]
#[ignore = "tests/faults.sh"]
fn a_prometheus_that_waits_a_millisecond_does_no_harm() {
    let _turn = lab::alone();
    let agent = agent();
    let mut watch = Watch::of("Prometheus with tiny time-outs", &agent);
    let target = agent.address();
    let jobs: Vec<String> = (0..5)
        .map(|i| format!("{{job_name: j{i}, static_configs: [{{targets: ['{target}']}}]}}"))
        .collect();
    let config = format!(
        "global: {{scrape_interval: 50ms, scrape_timeout: 1ms}}\nscrape_configs: [{}]\n",
        jobs.join(", ")
    );
    let prometheus = watch
        .fault("five jobs scrape every 50 ms and give up after 1 ms, for 10 s", || {
            Prometheus::start_with(Version::V2, &config, &[], &[])
        });
    std::thread::sleep(10 * SECOND);
    let missed = prometheus.query("sum(count_over_time((up == 0)[10s:50ms]))");
    let missed = missed.first().map_or(0.0, |series| series.value);
    assert!(missed > 0.0, "no scrape was given up");
    watch.repair(|| drop(prometheus));
    goes_on(&mut watch, &agent);
    watch.holds(&format!("{missed:.0} scrapes were given up; all others are answered"));
}

#[test]
#[ignore = "tests/faults.sh"]
fn more_requests_than_it_takes_at_a_time_are_told_so_and_it_goes_on() {
    let _turn = lab::alone();
    let agent = agent();
    let address = agent.address();
    let mut watch = Watch::of("a storm of scrapes", &agent);
    let wrong = AtomicBool::new(false);
    let count =
        watch.fault("eight clients scrape without pause for 8 s, each in another format", || {
            from_all_sides(8 * SECOND, |random| {
                let accept = ["text/plain", "application/openmetrics-text;version=1.0.0", "*/*"];
                let headers = [
                    ("Accept", accept[random.usize(0..3)]),
                    ("Accept-Encoding", if random.bool() { "gzip" } else { "identity" }),
                ];
                let answer = http::request(address, "GET", "/metrics", &headers, 5 * SECOND);
                if !answer.is_ok_and(|answer| answer.status == 200 || answer.status == 503) {
                    wrong.store(true, Ordering::SeqCst);
                }
            })
        });
    assert!(!wrong.load(Ordering::SeqCst), "neither an answer nor a refusal");
    watch.repair(|| ());
    goes_on(&mut watch, &agent);
    watch.holds(&format!("{count} scrapes, each answered or refused with 503"));
}
