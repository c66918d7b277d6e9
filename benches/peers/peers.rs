//! Ours against its peers: the same load on each in the same run, in an order that changes from round to round.

use super::load::{self, Figures};
use super::node::Node;
use super::report::{self, mib, short, table, time, verdict};
use super::server::{self, Server};
use super::{Size, stats};
use crate::lab::program;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Duration;

const CONNECTIONS: [usize; 3] = [1, 10, 100];
/// Longer than a rendered body is kept.
const PAUSE: Duration = Duration::from_millis(60);
const UNITS: &str = r"(k3s|part-\d+)\.service";
/// Where they are in the list of programs.
const OURS: usize = 0;
const NODE: usize = 1;
const EMPTY: usize = 3;

/// What is measured of one program.
#[derive(Default)]
struct Results {
    /// For each number of connections, for each round.
    load: [Vec<Figures>; 3],
    cpu_per_scrape: Vec<f64>,
    cold: Vec<f64>,
    start: Vec<f64>,
    memory: stats::Memory,
    bytes: usize,
}

struct Program<'a> {
    name: &'static str,
    start: Box<dyn Fn() -> Server + 'a>,
    binary: PathBuf,
}

pub(crate) fn run(size: Size) {
    let (rounds, length) = match size {
        Size::Trial => (2, Duration::from_millis(500)),
        Size::Whole => (5, Duration::from_millis(1500)),
    };
    let load_before = stats::load();
    let node = Node::start();
    let (config, root) = (node.config(""), node.root());
    let body = warm(&node, &config);
    let bus = node.container.bus_address();
    let this = std::env::current_exe().expect("this program");
    let programs = [
        Program {
            name: "controlplane-exporter",
            start: Box::new(|| Server::agent(&config, Some(&root))),
            binary: server::binary(),
        },
        Program {
            name: "node_exporter",
            start: Box::new(|| Server::node_exporter(&bus, UNITS)),
            binary: program("prometheus-node-exporter"),
        },
        Program {
            name: "process-exporter",
            start: Box::new(Server::process_exporter),
            binary: program("prometheus-process-exporter"),
        },
        Program {
            name: "empty axum handler",
            start: Box::new(move || Server::empty(body)),
            binary: this,
        },
    ];
    let mut results: Vec<Results> = programs.iter().map(|_| Results::default()).collect();
    let mut ready = Vec::new();
    let mut loads = Vec::new();

    // Starts of their own, one after the other.
    for round in 0..rounds {
        for at in order(programs.len(), round) {
            let mut server = (programs[at].start)();
            results[at].start.push(server.wait().as_secs_f64());
            if at == OURS {
                ready.push(server.wait_for("/-/ready", Duration::from_secs(20)).as_secs_f64());
            }
        }
    }

    let mut servers: Vec<Server> = programs.iter().map(|program| (program.start)()).collect();
    for server in &mut servers {
        server.wait();
    }
    servers[OURS].wait_for("/-/ready", Duration::from_secs(20));
    node.say_everything();
    std::thread::sleep(Duration::from_secs(3));
    let series = servers[OURS].scrape().samples.len();
    for round in 0..rounds {
        eprintln!("peers: round {} of {rounds}, load {}", round + 1, stats::load());
        loads.push(stats::load());
        for at in order(programs.len(), round) {
            let (server, results) = (&servers[at], &mut results[at]);
            let (mut cpu, mut scrapes) = (0.0, 0);
            for (n, connections) in CONNECTIONS.into_iter().enumerate() {
                let before = stats::cpu_seconds(server.pid());
                let figures = load::scrape(server.address(), "/metrics", connections, length)
                    .unwrap_or_else(|error| panic!("{}: {error}", programs[at].name));
                cpu += stats::cpu_seconds(server.pid()) - before;
                scrapes += figures.latencies.len() + connections;
                results.bytes = figures.bytes;
                results.load[n].push(figures);
            }
            results.cpu_per_scrape.push(cpu / scrapes as f64);
        }
        let addresses: Vec<_> = servers.iter().map(Server::address).collect();
        let cold = load::paced(&addresses, "/metrics", 8, PAUSE).expect("an answer");
        for (results, cold) in results.iter_mut().zip(cold) {
            let cold: Vec<f64> = cold.iter().map(Duration::as_secs_f64).collect();
            results.cold.push(stats::median(&cold));
        }
    }
    for (results, server) in results.iter_mut().zip(&servers) {
        results.memory = stats::memory(server.pid());
    }
    let sizes = programs.iter().map(|program| size_of(&program.binary)).collect();
    let names = programs.iter().map(|program| program.name).collect();
    Outcome { names, results, sizes, ready, series, loads }.report(&load_before, rounds, length);
}

/// The first agent of the node: once it has told everything, the size of its body is that of all others.
fn warm(node: &Node, config: &str) -> usize {
    let mut first = Server::agent(config, Some(&node.root()));
    first.wait_for("/-/ready", Duration::from_secs(30));
    std::thread::sleep(Duration::from_secs(2));
    node.say_everything();
    first.wait_until("what the log says", Duration::from_secs(30), |scrape| {
        let events = scrape.all("controlplane_journal_events_total", &[]);
        events.iter().filter(|one| one.value > 0.0).count() > 25
    });
    load::scrape(first.address(), "/metrics", 1, Duration::from_millis(10)).expect("a body").bytes
}

/// The order of a round: each begins once.
fn order(n: usize, round: usize) -> impl Iterator<Item = usize> {
    (0..n).map(move |at| (at + round) % n)
}

fn size_of(path: &std::path::Path) -> f64 {
    std::fs::metadata(path).map_or(f64::NAN, |data| data.len() as f64)
}

/// What one run has found.
struct Outcome {
    names: Vec<&'static str>,
    results: Vec<Results>,
    sizes: Vec<f64>,
    /// Seconds from the start of ours until every sampler has run.
    ready: Vec<f64>,
    series: usize,
    loads: Vec<String>,
}

impl Outcome {
    /// A figure of each round.
    fn all(&self, at: usize, n: usize, of: impl Fn(&Figures) -> f64) -> Vec<f64> {
        self.results[at].load[n].iter().map(of).collect()
    }

    fn report(&self, load_before: &str, rounds: usize, length: Duration) {
        let mut text = format!(
            "{} Ours serves {} series. {rounds} rounds, {} for each load.\n\n",
            report::conditions(load_before),
            self.series,
            time(length.as_secs_f64())
        );
        for n in 0..CONNECTIONS.len() {
            text.push_str(&self.load_table(n));
            text.push('\n');
        }
        text.push_str(&self.cost_table());
        text.push('\n');
        text.push_str(&table(&["target", "figure", ""], &self.targets()));
        report::write("peers", &text);
        report::keep("peers", load_before, self.to_json());
    }

    fn load_table(&self, n: usize) -> String {
        let row = |at: usize| {
            let p50 = self.all(at, n, |one| one.quantile(0.5));
            let p99 = self.all(at, n, |one| one.quantile(0.99));
            let rate = self.all(at, n, Figures::per_second);
            let (low, high) = stats::range(&p99);
            vec![
                self.names[at].to_owned(),
                time(stats::median(&p50)),
                format!("{} ({} to {})", time(stats::median(&p99)), time(low), time(high)),
                short(stats::median(&rate)),
                short(stats::ratio(&rate, &self.all(OURS, n, Figures::per_second))),
            ]
        };
        let rows: Vec<Vec<String>> = (0..self.names.len()).map(row).collect();
        let plural = if CONNECTIONS[n] == 1 { "" } else { "s" };
        let first = format!("{} connection{plural}", CONNECTIONS[n]);
        table(&[&first, "p50", "p99 (rounds)", "scrapes/s", "of ours"], &rows)
    }

    fn cost_table(&self) -> String {
        let row = |at: usize| {
            let results = &self.results[at];
            vec![
                self.names[at].to_owned(),
                time(stats::median(&results.cpu_per_scrape) * 1e3),
                time(stats::median(&results.cold)),
                mib(results.memory.rss),
                mib(results.memory.pss),
                mib(results.memory.children_pss),
                time(stats::median(&results.start)),
                if at == EMPTY { "-".to_owned() } else { mib(self.sizes[at]) },
                short(results.bytes as f64),
            ]
        };
        let head = [
            "",
            "CPU of 1,000 scrapes",
            "a scrape alone",
            "RSS",
            "PSS",
            "PSS of children",
            "first answer after",
            "binary",
            "bytes of a body",
        ];
        table(&head, &(0..self.names.len()).map(row).collect::<Vec<_>>())
    }

    fn targets(&self) -> Vec<Vec<String>> {
        const MIB: f64 = 1024.0 * 1024.0;
        let rate = |n| {
            let [ours, theirs] = [OURS, NODE].map(|at| self.all(at, n, Figures::per_second));
            stats::ratio(&ours, &theirs)
        };
        let to_empty = {
            let [ours, empty] = [OURS, EMPTY].map(|at| self.all(at, 0, |one| one.quantile(0.5)));
            stats::ratio(&ours, &empty)
        };
        let p99 = stats::median(&self.all(OURS, 0, |one| one.quantile(0.99)));
        let rates = [rate(0), rate(1), rate(2)];
        let least = rates.into_iter().fold(f64::INFINITY, f64::min);
        let memory = self.results[OURS].memory.rss;
        let ready = stats::median(&self.ready);
        let row =
            |what: &str, figure: String, met: bool| vec![what.to_owned(), figure, verdict(met)];
        vec![
            row("scrape with everything on, one connection: p99 below 1 ms", time(p99), p99 < 1e-3),
            row(
                "scrapes a second at least 10 times those of node_exporter, on 1, 10 and 100 connections",
                format!("{} times", rates.map(short).join(", ")),
                least >= 10.0,
            ),
            row(
                "a body used again within 1.3 times of an empty handler: p50 on one connection",
                format!("{} times", short(to_empty)),
                to_empty <= 1.3,
            ),
            row("below 24 MiB resident, after this load", mib(memory), memory < 24.0 * MIB),
            row("static binary below 12 MiB", mib(self.sizes[OURS]), self.sizes[OURS] < 12.0 * MIB),
            row("every sampler has run within 2 s of the start", time(ready), ready < 2.0),
        ]
    }

    fn to_json(&self) -> Value {
        let program = |at: usize| {
            let one = &self.results[at];
            let loads: Vec<Value> = CONNECTIONS
                .iter()
                .zip(&one.load)
                .map(|(connections, rounds)| {
                    let rounds: Vec<Value> = rounds.iter().map(Figures::to_json).collect();
                    json!({"connections": connections, "rounds": rounds})
                })
                .collect();
            json!({
                "program": self.names[at],
                "load": loads,
                "cpu_seconds_per_scrape": one.cpu_per_scrape,
                "alone_seconds": one.cold,
                "start_seconds": one.start,
                "rss_bytes": one.memory.rss,
                "pss_bytes": one.memory.pss,
                "children_pss_bytes": one.memory.children_pss,
                "binary_bytes": self.sizes[at],
                "body_bytes": one.bytes,
            })
        };
        json!({
            "series": self.series,
            "ready_seconds": self.ready,
            "loadavg": self.loads,
            "programs": (0..self.names.len()).map(program).collect::<Vec<_>>(),
        })
    }
}
