//! Fixed work for counting instructions: `WORK UNITS` does it once, of that size. See benches/instructions.sh.
//!
//! What it costs to set a work up is the same for every size, so the difference of two sizes is the work alone.

mod full;

use std::error::Error;
use std::fmt::Write as _;
use std::hint::black_box;

use controlplane_exporter::samplers;
use controlplane_exporter::web::exposition::{Format, render};
use prometheus_client::registry::Registry;

/// Lines of a log in a unit of work.
const LINES: usize = 1000;

/// A registry with all series of a full store.
fn registry() -> Result<Registry, Box<dyn Error>> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(full::store()?));
    Ok(registry)
}

/// Renders it so many times.
fn encode(format: Format, gzip: bool, units: usize) -> Result<usize, Box<dyn Error>> {
    let registry = registry()?;
    let mut bytes = 0;
    for _ in 0..units {
        bytes += black_box(render(&registry, format, gzip)?).len();
    }
    Ok(bytes)
}

/// Reads records of the kernel's log, of which all mean something or look as if they did.
fn kernel_log(units: usize) -> Result<usize, Box<dyn Error>> {
    let samples = include_str!("../../../tests/data/kmsg-samples.jsonl");
    let mut texts = Vec::new();
    for line in samples.lines() {
        let sample: serde_json::Value = serde_json::from_str(line)?;
        texts.extend(sample["line"].as_str().map(|line| line.replace('\n', "\\x0a")));
    }
    let mut records = String::new();
    for (n, text) in texts.iter().cycle().take(units * LINES).enumerate() {
        writeln!(records, "6,{n},{n}000000,-;{text}")?;
    }
    Ok(samplers::kernel::count(records.as_bytes())?)
}

/// Looks through lines of which one in ten means something, or looks as if it did.
fn signatures(units: usize) -> Result<usize, Box<dyn Error>> {
    let samples = include_str!("../../../tests/data/journal-samples.jsonl");
    let mut telling = Vec::new();
    for line in samples.lines() {
        let sample: serde_json::Value = serde_json::from_str(line)?;
        telling.extend(sample["line"].as_str().map(|line| line.replace('\n', " ")));
    }
    const HEALTHY: [&str; 3] = [
        r#"{"level":"info","ts":"2024-01-10T08:00:01.220114Z","caller":"mvcc/index.go:214","msg":"compact tree index","revision":1754941}"#,
        r#"I0420 11:22:33.123456    1400 kubelet.go:2345] "SyncLoop (PLEG): event for pod" pod="default/web-0""#,
        r#"time="2023-11-28T20:38:22.027016182Z" level=info msg="Connect containerd service""#,
    ];
    let mut text = String::new();
    for n in 0..units * LINES {
        let line = match n % 10 {
            0 => telling[n / 10 % telling.len()].as_str(),
            other => HEALTHY[other % HEALTHY.len()],
        };
        writeln!(text, "{line}")?;
    }
    Ok(usize::try_from(samplers::journal::count(text.as_bytes())?)?)
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let work = args.next().unwrap_or_default();
    let units: usize = args.next().ok_or("usage: WORK UNITS")?.parse()?;
    let done = match work.as_str() {
        "encode-text" => encode(Format::Text, false, units),
        "encode-openmetrics" => encode(Format::OpenMetrics, false, units),
        "encode-protobuf" => encode(Format::Protobuf, false, units),
        "encode-text-gzip" => encode(Format::Text, true, units),
        "kernel-log" => kernel_log(units),
        "signatures" => signatures(units),
        _ => Err(format!("no work {work:?}").into()),
    }?;
    // So that no work can be left out.
    println!("{done}");
    Ok(())
}
