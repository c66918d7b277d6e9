//! I2: MicroK8s, a crash loop that nobody saw for seven days, and the disk that filled up under the snap's data.
//!
//! `NRestarts=3794` is 159 s a restart over the seven days that the report names, or 16.7 s by its timeline: one node has
//! the slow loop here, another one the fast loop.

use super::{Incident, SECOND, agent, full, interval, minutes, node};
use crate::lab;
use crate::lab::agent::{Agent, Scrape};
use crate::lab::disk::{Disk, Kind};
use crate::lab::node_exporter::NodeExporter;
use crate::lab::process::run;
use crate::lab::prometheus::Version;
use crate::lab::systemd::Container;
use std::path::Path;

const UNIT: &str = "snap.microk8s.daemon-k8s-dqlite.service";
const RESTARTS: &str = "controlplane_systemd_unit_restarts_total";
const LOOP_RULES: &[&str] = &["NodeSystemdServiceCrashlooping", "NodeSystemdServiceFailed"];
const SPACE_RULES: &[&str] = &["NodeFilesystemAlmostOutOfSpace", "NodeFilesystemSpaceFillingUp"];
const SPACE: &str = "controlplane_filesystem_avail_bytes";

/// A service that runs for most of `period` and is then started again.
fn loops(period: f64) -> String {
    // systemd itself takes some hundredths of a second for a restart.
    let (runs, rests) = (period * 0.7, (period * 0.3 - 0.04).max(0.01));
    format!(
        "[Unit]\nStartLimitIntervalSec=0\n[Service]\nRestart=always\nRestartSec={:.0}ms\n\
         ExecStart=/bin/sh -c 'sleep {runs:.2}; exit 1'\n",
        rests * 1e3
    )
}

fn start_agent(container: &Container, path: &Path, device: &str, factor: f64) -> Agent {
    let every = |seconds| interval(SECOND * seconds, factor);
    Agent::start(&format!(
        "host: {{distribution: microk8s, role: server, datastore: dqlite, datastore_dir: '{path}',\n  \
           processes: [k8s-dqlite], container_dirs: [], devices: [{device}]}}\n\
         exporter: {{interval: {five}}}\n\
         etcd: {{enabled: false}}\nregistry_keys: {{enabled: false}}\nsnap: {{enabled: false}}\n\
         kernel: {{enabled: false}}\nfdatasync: {{enabled: false}}\n\
         systemd: {{units: [{UNIT}], bus: '{bus}', interval: {five}}}\n\
         filesystem: {{paths: ['{path}'], interval: {thirty}}}\n",
        path = path.display(),
        bus = container.bus_address(),
        five = every(5),
        thirty = every(30),
    ))
}

/// Fills the disk until only this share of it is left for others than root.
#[track_caller]
fn fill(disk: &Disk, left: f64) {
    let path = disk.mount().path();
    let figure = |format: &str| -> f64 {
        let text =
            run("stat", ["-f".as_ref(), format!("--format={format}").as_ref(), path.as_os_str()]);
        text.trim().parse().unwrap()
    };
    let (block, size, free) = (figure("%S"), figure("%b"), figure("%a"));
    let bytes = (free - left * size) * block;
    assert!(bytes > 0.0, "{free} of {size} blocks are free already");
    let name = path.join(format!("log-{}", fastrand::u32(..)));
    run("fallocate", ["-l".as_ref(), format!("{bytes:.0}").as_ref(), name.as_os_str()]);
}

#[test]
fn i2_a_crash_loop_and_a_disk_that_fills_page_within_hours_not_after_a_week() {
    let _turn = lab::alone();
    let factor = 60.0;
    let disk = Disk::sized(Kind::Ext4, 512 << 20);
    let device = disk.device().name();
    let other = lab::temp_dir("healthy");
    let (slow, fast) = (Container::boot(), Container::boot());
    let agents = [
        start_agent(&slow, disk.mount().path(), &device, factor),
        start_agent(&fast, other.path(), "vdz", factor),
    ];
    let exporters = [NodeExporter::start(&slow), NodeExporter::start(&fast)];
    let targets: Vec<_> = (0..2)
        .flat_map(|i| [agent(i + 1, &agents[i]), node(i + 1, exporters[i].address())])
        .collect();
    let mut i2 = Incident::start("i2", Version::V3, factor, &targets);
    let restarts = |scrape: &Scrape| scrape.sum(RESTARTS, &[("unit", UNIT)]);
    for (container, period) in [(&slow, 159.0), (&fast, 16.7)] {
        container.install_unit(UNIT, &loops(period / factor));
    }
    agents[0].wait_until("the disk's figures", SPACE, 20 * SECOND, |s| {
        !s.all(SPACE, &[("role", "datastore")]).is_empty()
    });

    // The slow loop, which rules over minutes cannot see, goes on beside everything else.
    let seven_days = "after seven days and 3,794 restarts, when the cluster was down";
    let looping = i2.fault("k8s-dqlite is started again every 159 s", seven_days, || {
        slow.systemctl(&["start", UNIT]);
    });
    i2.signal(looping, RESTARTS, &[&agents[0]], "controlplane_systemd", |s| restarts(s) >= 1.0);
    i2.stock(looping, LOOP_RULES, r#"instance="cp-1:9100""#);

    // The disk fills up: the first cause.
    let on_disk = format!("device=\"/dev/{device}\"");
    let fault = i2.fault(
        "18 % are left of the disk under the snap's data",
        "04-12 09:27, eight days later, when the cluster had been down for 17 h",
        || fill(&disk, 0.18),
    );
    let share = |s: &Scrape| {
        s.sum(SPACE, &[("role", "datastore")])
            / s.sum("controlplane_filesystem_size_bytes", &[("role", "datastore")])
    };
    i2.signal(fault, SPACE, &[&agents[0]], "controlplane_filesystem", |s| share(s) < 0.2);
    i2.pages(fault, &[("ControlPlaneDatastoreSpaceLow", "warning", "cp-1")], minutes(60));
    i2.stock(fault, SPACE_RULES, &on_disk);
    let fault = i2.fault(
        "8 % are left of it",
        "04-12 09:27, eight days later, when the cluster had been down for 17 h",
        || fill(&disk, 0.08),
    );
    i2.signal(fault, SPACE, &[&agents[0]], "controlplane_filesystem", |s| share(s) < 0.1);
    i2.pages(fault, &[("ControlPlaneDatastoreSpaceLow", "critical", "cp-1")], minutes(60));
    i2.stock(fault, SPACE_RULES, &on_disk);

    // The fast loop.
    let fault = i2.fault("k8s-dqlite is started again every 16.7 s", seven_days, || {
        fast.systemctl(&["start", UNIT]);
    });
    i2.signal(fault, RESTARTS, &[&agents[1]], "controlplane_systemd", |s| restarts(s) >= 1.0);
    i2.pages(fault, &[("ControlPlaneUnitCrashLooping", "critical", "cp-2")], minutes(30));
    i2.stock(fault, LOOP_RULES, r#"instance="cp-2:9100""#);
    i2.inhibited(
        "ControlPlaneUnitRestarting",
        "cp-2:10379",
        "ControlPlaneUnitCrashLooping",
        minutes(30),
    );

    // A warning after eleven restarts, and the page after fifty.
    let mut expected = vec![("ControlPlaneUnitRestarting", "warning", "cp-1")];
    if full() {
        expected.push(("ControlPlaneUnitRestarting", "critical", "cp-1"));
    }
    i2.pages(looping, &expected, minutes(4 * 60));
    let since = looping.at;
    // A second more than the period of the rule: the stock rule had its chance to see the slow loop.
    i2.wait("the time that the stock rule asks for", minutes(60), || {
        (i2.real(since) > 21.0 * 60.0).then_some(())
    });
    let silent = format!(
        "count(max_over_time(ALERTS{{alertname=\"NodeSystemdServiceCrashlooping\",instance=\"cp-1:9100\",alertstate=\"firing\"}}[{}s]))",
        since.elapsed().as_secs() + 1
    );
    assert!(i2.prometheus.query(&silent).is_empty(), "the stock rule saw the slow loop");

    crate::page::look(&agents[0], "i2");
    let repaired = i2.repair("space is there again, both services run");
    run("sh", ["-c".to_owned(), format!("rm {}/log-*", disk.mount().path().display())]);
    let healthy = "[Service]\nExecStart=/bin/sleep 9999\n";
    for container in [&slow, &fast] {
        container.install_unit(UNIT, healthy);
        container.systemctl(&["restart", UNIT]);
    }
    i2.resolved("ControlPlaneDatastoreSpaceLow", repaired, minutes(40));
    i2.resolved("ControlPlaneUnitCrashLooping", repaired, minutes(60));
    i2.finish("I2: MicroK8s, a crash loop and a disk that fills up");
}
