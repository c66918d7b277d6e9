//! A million lines of real logs through the table of signatures, against grep and ripgrep with the same alternatives, in
//! the same run. `make bench`; `-- LINES ROUNDS` for other numbers.
//!
//! All of them read one file from the page cache, on one thread; the rounds are interleaved, and the medians are printed
//! with the ratio to ours. grep and ripgrep only count lines that match: they do not tell which signature it was, do not
//! parse JSON, and so count what a line only quotes.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use controlplane_exporter::samplers::journal;

/// Lines that a healthy node logs all day, between those that mean something.
const HEALTHY: [&str; 6] = [
    r#"{"level":"info","ts":"2024-01-10T08:00:01.220114Z","caller":"mvcc/index.go:214","msg":"compact tree index","revision":1754941}"#,
    r#"I0420 11:22:33.123456    1400 kubelet.go:2345] "SyncLoop (PLEG): event for pod" pod="default/web-0""#,
    r#"time="2023-11-28T20:38:22.027016182Z" level=info msg="Connect containerd service""#,
    r#"{"level":"info","ts":"2024-01-10T08:00:01.220114Z","caller":"etcdserver/server.go:2562","msg":"published local member to cluster through raft"}"#,
    r#"E0420 11:22:33.123456    1400 remote_runtime.go:734] "ExecSync cmd from runtime service failed" err="command exited: 1""#,
    r#"I0127 09:18:24.353457 2041650 trace.go:205] Trace[1298498081]: "Get" url:/api/v1/namespaces/kube-system/endpoints/kube-scheduler (total time: 512ms):"#,
];
/// One line in so many means something, or looks as if it did.
const ONE_IN: usize = 10;

/// A pattern as POSIX and GNU grep know it.
fn extended(pattern: &str) -> String {
    let mut text = pattern.replace("(?<seconds>", "(").replace("(?:", "(").replace("(?i)", "");
    for (ours, theirs) in
        [("[\\w /]", "[[:alnum:]_ /]"), ("\\d", "[0-9]"), ("+?", "+"), ("*?", "*"), ("\\x60", "`")]
    {
        text = text.replace(ours, theirs);
    }
    text
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64()
}

/// How many lines a program counts, and how long that takes it; nothing when it is not installed.
fn counted(program: &str, args: &[&str], patterns: &Path, file: &Path) -> Option<(u64, Duration)> {
    let mut command = Command::new(program);
    command.args(args).arg("-f").arg(patterns).arg(file).env("LC_ALL", "C");
    let started = Instant::now();
    let output = command.stderr(Stdio::inherit()).output().ok()?;
    let took = started.elapsed();
    Some((String::from_utf8_lossy(&output.stdout).trim().parse().ok()?, took))
}

fn main() {
    let mut numbers = std::env::args().skip(1).filter_map(|arg| arg.parse::<usize>().ok());
    let (lines, rounds) = (numbers.next().unwrap_or(1_000_000), numbers.next().unwrap_or(5));
    let samples = include_str!("../tests/data/journal-samples.jsonl");
    let telling: Vec<String> = samples
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter_map(|sample| Some(sample["line"].as_str()?.replace('\n', " ")))
        .collect();
    let folder = tempfile::tempdir().expect("a folder");
    let (file, rust, posix) =
        (folder.path().join("log"), folder.path().join("rust"), folder.path().join("posix"));
    let mut log = std::io::BufWriter::new(std::fs::File::create(&file).expect("a log"));
    for n in 0..lines {
        let line = match n % ONE_IN {
            0 => telling[n / ONE_IN % telling.len()].as_str(),
            other => HEALTHY[other % HEALTHY.len()],
        };
        writeln!(log, "{line}").expect("a line");
    }
    log.into_inner().expect("the log");
    let (patterns, msgs) = journal::alternatives();
    let quoted: Vec<String> = msgs.iter().map(|msg| msg.replace(['(', ')'], ".")).collect();
    let all = |patterns: Vec<String>| [patterns, quoted.clone()].concat().join("\n") + "\n";
    std::fs::write(&rust, all(patterns.iter().map(|p| p.replace("(?<seconds>", "(?:")).collect()))
        .expect("a file");
    std::fs::write(&posix, all(patterns.iter().map(|p| extended(p)).collect())).expect("a file");

    let mut times: [Vec<Duration>; 3] = Default::default();
    let mut found = [None; 3];
    for round in 1..=rounds {
        eprintln!("round {round} of {rounds}");
        let started = Instant::now();
        let text = std::fs::read(&file).expect("the log");
        let hits = journal::count(&text).expect("the table");
        times[0].push(started.elapsed());
        found[0] = Some(hits);
        let others = [
            counted("grep", &["-cE"], &posix, &file),
            counted("rg", &["-c", "-j1", "--no-unicode"], &rust, &file),
        ];
        for (n, other) in others.into_iter().enumerate() {
            if let Some((hits, took)) = other {
                times[n + 1].push(took);
                found[n + 1] = Some(hits);
            }
        }
    }
    let bytes = std::fs::metadata(&file).expect("the log").len();
    let ours = median(std::mem::take(&mut times[0]));
    let mut out = std::io::stdout().lock();
    let mut say = |line: String| writeln!(out, "{line}").expect("standard output");
    say(format!(
        "{lines} lines, {:.0} MB, {} patterns and {} exact texts, {rounds} rounds",
        bytes as f64 / 1e6,
        patterns.len(),
        msgs.len()
    ));
    say(format!(
        "controlplane-exporter  {ours:.3} s  {:.2} µs a line  {:.2} % of a core at 1,000 lines a second  {} lines mean something",
        ours / lines as f64 * 1e6,
        ours / lines as f64 * 1e5,
        found[0].unwrap_or_default()
    ));
    for (name, n) in [("grep -cE", 1), ("rg -c -j1", 2)] {
        match found[n] {
            Some(hits) => {
                let theirs = median(std::mem::take(&mut times[n]));
                say(format!(
                    "{name:22} {theirs:.3} s  {:.2} times ours  {hits} lines match",
                    theirs / ours
                ));
            }
            None => say(format!("{name:22} is not installed")),
        }
    }
}
