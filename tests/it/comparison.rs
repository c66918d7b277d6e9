//! What others show of the faults that this agent is for; docs/comparison.md says what came of it.
//!
//! The public rules of etcd and `node_exporter` run beside ours in the replays of the incidents (docs/incidents.md). Here is
//! what is not a rule: which of the figures of `node_exporter` move while a disk fails, and which lines of failing disks
//! the patterns of node-problem-detector fit.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use regex::Regex;
use serde_json::Value;

use crate::lab;
use crate::lab::agent::{Agent, Scrape};
use crate::lab::disk::{Disk, SlowDisk};
use crate::lab::http;
use crate::lab::node_exporter::NodeExporter;
use crate::lab::process::{bound_command, output};

const SECOND: Duration = Duration::from_secs(1);
const WITH_LOOPS: &str = "kernel: {ignore_devices: []}\n";

/// The figures of the node's disks and filesystems that speak of a device.
fn figures(node: &NodeExporter, device: &str) -> BTreeMap<String, f64> {
    let text = http::get(node.address(), "/metrics").unwrap().text();
    let scrape = Scrape::parse(&text).unwrap();
    let of = |value: &str| value.trim_start_matches("/dev/") == device;
    let mut found = BTreeMap::new();
    for line in text.lines().filter(|line| line.contains(device) && !line.starts_with('#')) {
        let name = line.split('{').next().unwrap_or_default();
        for sample in scrape.all(name, &[]) {
            if sample.labels.iter().any(|(_, value)| of(value)) {
                *found.entry(name.to_owned()).or_insert(0.0) = sample.value;
            }
        }
    }
    found
}

/// Names of the figures that have moved.
fn moved(before: &BTreeMap<String, f64>, after: &BTreeMap<String, f64>) -> Vec<String> {
    let other = |(name, value): &(&String, &f64)| before.get(*name) != Some(value);
    after.iter().filter(other).map(|(name, value)| format!("{name} {value}")).collect()
}

#[test]
#[ignore = "of docs/comparison.md: node_exporter beside the agent while disks fail"]
fn a_sector_that_cannot_be_read_is_a_read_for_node_exporter_and_an_error_for_the_agent() {
    let _turn = lab::alone();
    let disk = Disk::raw(1 << 30);
    let name = disk.device().name();
    let node = NodeExporter::with_defaults();
    let agent = Agent::start(WITH_LOOPS);
    let errors =
        |scrape: &Scrape| scrape.sum("controlplane_kernel_io_errors_total", &[("device", &name)]);
    agent.wait_value("controlplane_sampler_up", &[("sampler", "kernel")], 1.0, 10 * SECOND);
    let (before, ours) = (figures(&node, &name), errors(&agent.scrape()));

    disk.truncate(1 << 20);
    let started = Instant::now();
    // The kernel prints ten such lines in five seconds at most.
    lab::wait_for("the error on our page", 15 * SECOND, || {
        disk.read_block(fastrand::u64(300..200_000)).unwrap_err();
        let now = errors(&agent.scrape());
        if now > ours { Ok(()) } else { Err(format!("{now}")) }
    });
    eprintln!("comparison: agent: error of {name} after {:.1} s", started.elapsed().as_secs_f64());
    let after = moved(&before, &figures(&node, &name));
    eprintln!("comparison: node_exporter moved: {after:?}");
    assert!(after.iter().all(|figure| !figure.contains("error")), "{after:?}");
    disk.restore();
}

#[test]
#[ignore = "of docs/comparison.md: node_exporter beside the agent while disks fail"]
fn writes_that_are_slow_or_fail_are_writes_for_node_exporter_and_errors_for_the_agent() {
    let _turn = lab::alone();
    let disk = SlowDisk::new();
    let name = disk.device().name();
    let node = NodeExporter::with_defaults();
    let agent = Agent::start(WITH_LOOPS);
    agent.wait_value("controlplane_sampler_up", &[("sampler", "kernel")], 1.0, 10 * SECOND);
    let write = || {
        let mut command = bound_command(lab::program("dd"));
        let target = format!("of={}", disk.mount().path().join("file").display());
        command.args(["if=/dev/zero", &target, "bs=4k", "count=64", "conv=fsync"]);
        output(command, 20 * SECOND)
    };
    assert!(write().status.success());

    let before = figures(&node, &name);
    disk.set_delay(SECOND / 2);
    let started = Instant::now();
    assert!(write().status.success());
    eprintln!(
        "comparison: a sync of {:.1} s: node_exporter moved: {:?}",
        started.elapsed().as_secs_f64(),
        moved(&before, &figures(&node, &name))
    );

    let before = figures(&node, &name);
    disk.set_error(5);
    let started = Instant::now();
    assert!(!write().status.success(), "the disk takes no write");
    let labels = [("device", name.as_str()), ("operation", "write")];
    agent.wait_until("the error", "controlplane_kernel_io_errors_total", 15 * SECOND, |scrape| {
        scrape.sum("controlplane_kernel_io_errors_total", &labels) >= 1.0
    });
    eprintln!(
        "comparison: agent: failed writes of {name} after {:.1} s",
        started.elapsed().as_secs_f64()
    );
    std::thread::sleep(2 * SECOND);
    let after = moved(&before, &figures(&node, &name));
    eprintln!("comparison: failing writes: node_exporter moved: {after:?}");
    assert!(after.iter().all(|figure| !figure.contains("error")), "{after:?}");
    let readonly = figures(&node, &name).get("node_filesystem_readonly").copied();
    eprintln!("comparison: node_filesystem_readonly is {readonly:?}");
    disk.release();
}

#[test]
#[ignore = "of docs/comparison.md: give node-problem-detector's config/kernel-monitor.json as NODE_PROBLEM_DETECTOR_CONFIG"]
fn the_patterns_of_node_problem_detector_on_the_lines_that_kernels_have_written() {
    let file = std::env::var("NODE_PROBLEM_DETECTOR_CONFIG").expect("the file's path");
    let config: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let rules: Vec<_> = config["rules"]
        .as_array()
        .unwrap()
        .iter()
        .map(|rule| {
            let pattern = Regex::new(rule["pattern"].as_str().unwrap()).unwrap();
            (rule["reason"].as_str().unwrap().to_owned(), pattern)
        })
        .collect();
    let mut all: BTreeMap<String, (u32, u32)> = BTreeMap::new();
    let samples = include_str!("../data/kmsg-samples.jsonl");
    for sample in samples.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()) {
        let Some(id) = sample["expect"].as_str() else { continue };
        let line = sample["line"].as_str().unwrap();
        let (fits, seen) = all.entry(id.to_owned()).or_default();
        *seen += 1;
        *fits += u32::from(rules.iter().any(|(_, pattern)| pattern.is_match(line)));
    }
    let (fits, seen) = all.values().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    eprintln!(
        "comparison: node-problem-detector: {} rules fit {fits} of {seen} lines",
        rules.len()
    );
    for (id, (fits, seen)) in all.iter().filter(|(_, (fits, _))| *fits > 0) {
        eprintln!("comparison: {id}: {fits} of {seen}");
    }
    let i1 = "I/O error, dev sda, sector 1198032 op 0x0:(READ) flags 0x0 phys_seg 1 prio class 2";
    let by: Vec<_> = rules
        .iter()
        .filter(|(_, pattern)| pattern.is_match(i1))
        .map(|(reason, _)| reason)
        .collect();
    eprintln!("comparison: the line of I1: {by:?}");
    assert!(seen > 100);
}
