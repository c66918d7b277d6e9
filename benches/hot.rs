//! Time of what runs often: rendering a scrape, and reading the kernel's log. `make bench`.

#[path = "instructions/src/full.rs"]
mod full;

use std::hint::black_box;
use std::io::Write;
use std::sync::Arc;

use controlplane_exporter::config::Config;
use controlplane_exporter::host::Host;
use controlplane_exporter::sample::Batch;
use controlplane_exporter::sampler::{BlockingSampler, Build, Driver};
use controlplane_exporter::samplers;
use controlplane_exporter::web::exposition::{Format, render};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use prometheus_client::registry::Registry;

fn scrape(c: &mut Criterion) {
    let store = full::store().expect("batches");
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Arc::clone(&store)));
    let series = render(&registry, Format::OpenMetrics, false).expect("figures");
    let series = String::from_utf8_lossy(&series).lines().filter(|l| !l.starts_with('#')).count();
    let mut group = c.benchmark_group("scrape");
    group.throughput(Throughput::Elements(series as u64));
    for (name, format, gzip) in [
        ("text", Format::Text, false),
        ("text gzip", Format::Text, true),
        ("openmetrics", Format::OpenMetrics, false),
        ("openmetrics gzip", Format::OpenMetrics, true),
    ] {
        group
            .bench_function(name, |b| b.iter(|| render(&registry, format, gzip).expect("figures")));
    }
    group.bench_function("reused body", |b| {
        b.iter(|| store.body("text", || render(&registry, Format::Text, false)).expect("figures"));
    });
    group.finish();
}

fn kernel_log(c: &mut Criterion) {
    const RECORDS: u64 = 10_000;
    let root = tempfile::tempdir().expect("a folder");
    std::fs::create_dir_all(root.path().join("dev")).expect("dev");
    let mut log = std::fs::File::create(root.path().join("dev/kmsg")).expect("a log");
    for i in 0..RECORDS {
        // One line in ten is an error, the others are what a busy node prints.
        let text = match i % 10 {
            0 => {
                "I/O error, dev sda, sector 2048 op 0x1:(WRITE) flags 0x800 phys_seg 1 prio class 2"
            }
            5 => "EXT4-fs (sda1): mounted filesystem with ordered data mode. Quota mode: none.",
            _ => "IPv6: ADDRCONF(NETDEV_CHANGE): vethd8dcbcc6: link becomes ready",
        };
        writeln!(log, "6,{i},{},-;{text}", i * 1000).expect("a record");
    }
    let def = samplers::find("kernel").expect("the sampler");
    let options = Config::defaults().samplers["kernel"].clone().expect("its options");
    let host = Host::at(root.path());
    let mut group = c.benchmark_group("kernel log");
    group.throughput(Throughput::Elements(RECORDS)).sample_size(20);
    group.bench_function("first read", |b| {
        b.iter_with_setup(
            || match (def.build)(&options, &host) {
                Ok(Build::Run(Driver::Blocking(sampler))) => sampler,
                _ => unreachable!("the sampler runs on a thread"),
            },
            |mut sampler| {
                let mut out = Batch::default();
                BlockingSampler::sample(&mut *sampler, &mut out).expect("a run");
                black_box(out)
            },
        );
    });
    group.finish();
}

criterion_group!(benches, scrape, kernel_log);
criterion_main!(benches);
