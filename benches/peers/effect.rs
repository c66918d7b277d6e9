//! What the agent costs those it watches: etcd's puts and the disk's syncs with it and without it, its own CPU, and
//! whether its figure of the disk is the one that others find.

use super::node::Node;
use super::report::{self, short, table, time, verdict};
use super::server::{self, Server};
use super::{Size, stats};
use crate::lab::disk::{Disk, Kind};
use crate::lab::process::{self, bound_command};
use crate::lab::{program, temp_dir};
use rustix::fs::{FallocateFlags, fallocate};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// A record of etcd's write-ahead log in bytes, and how much of the file is reserved, as etcd does it.
const RECORD: usize = 2300;
const SEGMENT: u64 = 64 << 20;
const QUANTILES: [(&str, f64); 3] = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99)];

pub(crate) fn run(size: Size) {
    let load_before = stats::load();
    let (rounds, length) = match size {
        Size::Trial => (2, Duration::from_secs(3)),
        Size::Whole => (5, Duration::from_secs(14)),
    };
    let node = Node::start();
    let puts = puts(&node, rounds, length);
    let syncs = syncs(&node, rounds, length / 2);
    drop(node);
    let seconds = if size == Size::Trial { 3 } else { 100 };
    let own_disk = temp_dir("disk");
    let mut figures = vec![probe("ext4, the machine's disk", own_disk.path(), rounds, seconds)];
    let xfs = Disk::sized(Kind::Xfs, 512 << 20);
    figures.push(probe("xfs, a loop device on it", xfs.mount().path(), rounds, seconds));
    report(&puts, &syncs, &figures, &load_before, (rounds, length));
}

/// Latencies with the agent and without it, round by round.
#[derive(Default)]
struct Pairs {
    with: Vec<Vec<f64>>,
    without: Vec<Vec<f64>>,
    /// Of one core, while it ran.
    cpu: Vec<f64>,
}

impl Pairs {
    /// For each round the quantile with the agent, divided by that without it.
    fn ratios(&self, q: f64) -> Vec<f64> {
        let of = |all: &[f64]| stats::quantile(all, q);
        self.with.iter().zip(&self.without).map(|(with, without)| of(with) / of(without)).collect()
    }

    /// How far two rounds without it are apart: for each two that follow each other, the larger by the smaller.
    fn noise(&self, q: f64) -> f64 {
        let of: Vec<f64> = self.without.iter().map(|one| stats::quantile(one, q)).collect();
        let apart = of.windows(2).map(|two| stats::apart(two[0], two[1]));
        stats::median(&apart.collect::<Vec<_>>())
    }

    fn to_json(&self) -> Value {
        let all = |rounds: &[Vec<f64>]| -> Vec<Value> {
            let of = |one: &Vec<f64>| {
                let mut object = json!({"samples": one.len()});
                for (name, q) in QUANTILES {
                    object[format!("{name}_us")] = json!(stats::quantile(one, q) * 1e6);
                }
                object
            };
            rounds.iter().map(of).collect()
        };
        json!({"with": all(&self.with), "without": all(&self.without), "cpu_of_one_core": self.cpu})
    }
}

/// Rounds with the agent and without it, in the order AB BA AB.
fn paired(node: &Node, rounds: usize, what: &str, measure: impl Fn() -> Vec<f64>) -> Pairs {
    let mut pairs = Pairs::default();
    for round in 0..rounds {
        eprintln!("{what}: round {} of {rounds}, load {}", round + 1, stats::load());
        for half in 0..2 {
            if (round + half) % 2 == 0 {
                pairs.without.push(measure());
                continue;
            }
            let mut agent = Server::agent(&node.config(""), Some(&node.root()));
            agent.wait_for("/-/ready", Duration::from_secs(20));
            let (before, started) = (stats::cpu_seconds(agent.pid()), Instant::now());
            pairs.with.push(measure());
            let used = stats::cpu_seconds(agent.pid()) - before;
            pairs.cpu.push(used / started.elapsed().as_secs_f64());
        }
    }
    pairs
}

/// Puts of 1 KiB to the member that the agent watches, one after the other with a pause between them.
fn puts(node: &Node, rounds: usize, length: Duration) -> Pairs {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let connected =
        async { tokio::time::timeout(Duration::from_secs(10), node.cluster.connect(0)).await };
    let client = runtime.block_on(connected).expect("etcd answers").expect("a client");
    paired(node, rounds, "puts", || {
        runtime.block_on(async {
            let (mut client, mut took) = (client.clone(), Vec::new());
            let started = Instant::now();
            while started.elapsed() < length {
                let key = format!("/registry/leases/kube-node-lease/{}", took.len() % 100);
                let asked = Instant::now();
                let put = client.put(key, vec![b'x'; 1024], None);
                let answer = tokio::time::timeout(Duration::from_secs(10), put).await;
                answer.expect("etcd answers").expect("a put");
                took.push(asked.elapsed().as_secs_f64());
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            took
        })
    })
}

/// fio as etcd's documentation recommends it, on the disk that the agent probes.
fn syncs(node: &Node, rounds: usize, length: Duration) -> Pairs {
    let folder = temp_dir("fio");
    paired(node, rounds, "fio", || {
        let took = fio(folder.path(), length, None);
        // fio tells quantiles only.
        took.into_iter().flat_map(|(at, value)| std::iter::repeat_n(value, at)).collect()
    })
}

/// Runs fio and gives its latencies of `fdatasync` in seconds, each with the number of times it stands for: a hundred
/// in all for those percentiles that fio tells.
pub(super) fn fio(folder: &Path, length: Duration, pace: Option<Duration>) -> Vec<(usize, f64)> {
    let mut command = bound_command(program("fio"));
    command
        .args(["--name=wal", "--rw=write", "--ioengine=sync", "--fdatasync=1", "--size=22m"])
        .args(["--bs=2300", "--time_based", "--output-format=json", "--fallocate=posix"])
        .arg(format!("--runtime={}", length.as_secs().max(1)))
        .arg("--percentile_list=1:5:10:20:30:40:50:60:70:80:90:95:98:99")
        .arg(format!("--directory={}", folder.display()));
    if let Some(pace) = pace {
        command.arg(format!("--thinktime={}", pace.as_micros()));
    }
    let output = process::output(command, length + Duration::from_mins(1));
    assert!(output.status.success(), "fio: {}{}", output.stdout, output.stderr);
    let from = output.stdout.find('{').expect("fio writes JSON");
    let told: Value = serde_json::from_str(&output.stdout[from..]).expect("fio writes JSON");
    let percentiles = told["jobs"][0]["sync"]["lat_ns"]["percentile"].as_object();
    let mut all: Vec<(f64, f64)> = percentiles
        .expect("fio's percentiles of fdatasync")
        .iter()
        .map(|(percent, nanos)| {
            (percent.parse().expect("a percentage"), nanos.as_f64().expect("a number") / 1e9)
        })
        .collect();
    all.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
    // Up to a percentile its own value stands for what lies between it and the one before; beyond the last, the last.
    let mut whole = Vec::new();
    let mut done = 0.0;
    for (percent, value) in &all {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between 1 and 100"
        )]
        let count = (percent - done) as usize;
        whole.push((count, *value));
        done = *percent;
    }
    whole.extend(all.last().map(|(_, value)| (1, *value)));
    whole
}

/// The probe's figures beside those of others, at the same time, at the same pace, on the same filesystem.
struct Compared {
    name: &'static str,
    rounds: Vec<Round>,
}

/// What each found in the same seconds.
struct Round {
    probe: Vec<f64>,
    segment: Vec<f64>,
    /// The same once more: how far two that do the same are apart.
    twin: Vec<f64>,
    fio: Vec<f64>,
}

impl Compared {
    /// The median of a figure of each round.
    fn median(&self, of: impl Fn(&Round) -> f64) -> f64 {
        stats::median(&self.rounds.iter().map(of).collect::<Vec<_>>())
    }
}

fn probe(name: &'static str, folder: &Path, rounds: usize, seconds: u64) -> Compared {
    let pace = Duration::from_millis(25);
    let length = Duration::from_secs(seconds);
    let round = |number: usize| {
        eprintln!("probe: {name}, round {} of {rounds}, load {}", number + 1, stats::load());
        let own = folder.join(number.to_string());
        let [probes, segments, fios] = ["probe", "segment", "fio"].map(|name| own.join(name));
        for folder in [&probes, &segments, &fios] {
            std::fs::create_dir_all(folder).expect("a folder");
        }
        let found = std::thread::scope(|scope| {
            let probe = scope.spawn(|| probed(&probes, pace, length));
            let [segment, twin] = ["0.wal", "1.wal"].map(|name| {
                let file = segments.join(name);
                scope.spawn(move || log(&file, pace, length))
            });
            let fio = flat(&fio(&fios, length, Some(pace)));
            let joined = "no panic while measuring";
            let [segment, twin] = [segment, twin].map(|one| one.join().expect(joined));
            Round { probe: probe.join().expect(joined), segment, twin, fio }
        });
        std::fs::remove_dir_all(own).expect("room for the next round");
        found
    };
    Compared { name, rounds: (0..rounds).map(round).collect() }
}

/// What the agent's own child finds.
fn probed(folder: &Path, pace: Duration, length: Duration) -> Vec<f64> {
    let mut command = bound_command(server::binary());
    command.arg("probe").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = process::spawn(command);
    let question = json!({
        "rootfs": "/", "path": folder, "directories": [folder], "device": null,
        "every": {"secs": pace.as_secs(), "nanos": pace.subsec_nanos()},
    });
    let mut input = child.stdin.take().expect("a pipe");
    writeln!(input, "{question}").expect("the probe reads");
    let output = child.stdout.take().expect("a pipe");
    // Ends the reading below, too.
    let (done, wait) = std::sync::mpsc::channel::<()>();
    let ender = std::thread::spawn(move || {
        wait.recv_timeout(length).ok();
        child.kill().ok();
        child.wait().ok();
    });
    let lines = BufReader::new(output).lines().map_while(Result::ok);
    let took = lines
        .filter(|line| !line.starts_with(['S', 'D']))
        .map(|line| {
            let nanos = line.strip_prefix("E ").and_then(|nanos| nanos.parse::<f64>().ok());
            nanos.unwrap_or_else(|| panic!("the probe says {line}")) / 1e9
        })
        .collect();
    drop((done, input));
    ender.join().expect("the probe's end");
    took
}

/// What etcd does: records at the end of a reserved file, each synced.
fn log(path: &Path, pace: Duration, length: Duration) -> Vec<f64> {
    let file = File::options().write(true).create_new(true).open(path).expect("a segment");
    fallocate(&file, FallocateFlags::empty(), 0, SEGMENT).expect("room");
    let (started, mut at, mut took) = (Instant::now(), 0, Vec::new());
    while started.elapsed() < length {
        std::thread::sleep(pace.mul_f64(0.9 + fastrand::f64() / 5.0));
        let asked = Instant::now();
        file.write_all_at(&[0xa5; RECORD], at).expect("a record");
        file.sync_data().expect("a sync");
        took.push(asked.elapsed().as_secs_f64());
        at += RECORD as u64;
    }
    took
}

fn flat(fio: &[(usize, f64)]) -> Vec<f64> {
    fio.iter().flat_map(|(count, value)| std::iter::repeat_n(*value, *count)).collect()
}

/// Both effects in one table.
fn effects(puts: &Pairs, syncs: &Pairs) -> String {
    let mut rows = Vec::new();
    for (what, pairs) in [("put of 1 KiB into etcd", puts), ("fio's `fdatasync`", syncs)] {
        for (name, q) in QUANTILES {
            let all = |rounds: &[Vec<f64>]| {
                stats::median(&rounds.iter().map(|one| stats::quantile(one, q)).collect::<Vec<_>>())
            };
            let ratios = pairs.ratios(q);
            let (low, high) = stats::range(&ratios);
            rows.push(vec![
                format!("{what}, {name}"),
                time(all(&pairs.without)),
                time(all(&pairs.with)),
                format!("{} ({} to {})", short(stats::median(&ratios)), short(low), short(high)),
                short(pairs.noise(q)),
            ]);
        }
    }
    table(&["", "without", "with", "with / without (rounds)", "two rounds without, apart"], &rows)
}

/// The probe beside the others, and what its targets are.
fn comparison(figures: &[Compared]) -> (String, Vec<Vec<String>>) {
    let (mut rows, mut targets) = (Vec::new(), Vec::new());
    for one in figures {
        for (name, q) in QUANTILES {
            let of = |all: &[f64]| stats::quantile(all, q);
            let segment = one.median(|round| of(&round.probe) / of(&round.segment));
            let fio = one.median(|round| of(&round.probe) / of(&round.fio));
            let apart = one.median(|round| stats::apart(of(&round.segment), of(&round.twin)));
            rows.push(vec![
                format!("{}, {name}", one.name),
                time(one.median(|round| of(&round.probe))),
                format!("{} ({})", time(one.median(|round| of(&round.segment))), short(segment)),
                format!("{} ({})", time(one.median(|round| of(&round.fio))), short(fio)),
                short(apart),
            ]);
            let (bound, others): (f64, &[(&str, f64)]) = match name {
                "p50" => (0.05, &[("a segment's", segment)]),
                "p99" => (0.10, &[("a segment's", segment), ("fio's", fio)]),
                _ => continue,
            };
            for (whose, ratio) in others {
                let off = ratio - 1.0;
                targets.push(vec![
                    format!("{}: {name} within {:.0} % of {whose}", one.name, bound * 100.0),
                    format!("{:+.1} %", off * 100.0),
                    verdict(off.abs() <= bound),
                ]);
            }
        }
    }
    let segment = "a segment as etcd writes it (ratio)";
    let head = ["", "the probe", segment, "fio (ratio)", "two segments, apart"];
    (table(&head, &rows), targets)
}

fn report(
    puts: &Pairs,
    syncs: &Pairs,
    figures: &[Compared],
    load_before: &str,
    (rounds, length): (usize, Duration),
) {
    let (compared, mut targets) = comparison(figures);
    let cpu: Vec<f64> = [&puts.cpu[..], &syncs.cpu].concat();
    let mean = cpu.iter().sum::<f64>() / cpu.len() as f64;
    let (low, high) = stats::range(&cpu);
    targets.push(vec![
        "CPU at default intervals below 0.2 % of one core".to_owned(),
        format!("{:.2} % ({:.2} to {:.2})", mean * 100.0, low * 100.0, high * 100.0),
        verdict(mean < 0.002),
    ]);
    let text = format!(
        "{} {rounds} rounds with the agent and without it; {} of puts each, half as long of fio.\n\n{}\n{compared}\n{}",
        report::conditions(load_before),
        time(length.as_secs_f64()),
        effects(puts, syncs),
        table(&["target", "figure", ""], &targets),
    );
    report::write("effect", &text);
    let compared: Vec<Value> = figures
        .iter()
        .map(|one| {
            let round = |round: &Round| {
                json!({
                    "probe_thousandths_us": micros(&thousandths(&round.probe)),
                    "segment_thousandths_us": micros(&thousandths(&round.segment)),
                    "twin_thousandths_us": micros(&thousandths(&round.twin)),
                    "fio_percentiles_us": micros(&round.fio),
                })
            };
            let rounds: Vec<Value> = one.rounds.iter().map(round).collect();
            json!({"filesystem": one.name, "rounds": rounds})
        })
        .collect();
    let data = json!({"puts": puts.to_json(), "fio": syncs.to_json(), "probe": compared});
    report::keep("effect", load_before, data);
}

/// Figures that stand for all: the smallest, and the one at each thousandth up to the largest.
fn thousandths(all: &[f64]) -> Vec<f64> {
    (0..=1_000).map(|n| stats::quantile(all, f64::from(n) / 1_000.0)).collect()
}

/// Values in one line, in microseconds.
fn micros(seconds: &[f64]) -> String {
    seconds.iter().map(|one| format!("{:.0}", one * 1e6)).collect::<Vec<_>>().join(" ")
}
