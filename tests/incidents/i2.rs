//! I2: MicroK8s, a crash loop that nobody saw for seven days, the disk that filled up under the snap's data, a voter that
//! was gone, and flags that k8s-dqlite never had.
//!
//! Three real members of dqlite. The third is run by systemd in a container, through MicroK8s' wrapper and a file of
//! arguments, with its directory on a disk that fills up. `NRestarts=3794` is 159 s a restart over the seven days that the
//! report names, or 16.7 s by its timeline: the first node has the slow loop here, of a service without a database, and
//! the third the fast one.

use super::{Incident, SECOND, agent, full, interval, minutes, node};
use crate::lab;
use crate::lab::agent::{Agent, Scrape};
use crate::lab::disk::{Disk, Kind};
use crate::lab::dqlite::{Cluster, Dqlite};
use crate::lab::node_exporter::NodeExporter;
use crate::lab::process::run;
use crate::lab::prometheus::Version;
use crate::lab::systemd::Container;
use std::path::{Path, PathBuf};

const UNIT: &str = "snap.microk8s.daemon-k8s-dqlite.service";
const RESTARTS: &str = "controlplane_systemd_unit_restarts_total";
const LOOP_RULES: &[&str] = &["NodeSystemdServiceCrashlooping", "NodeSystemdServiceFailed"];
const SPACE_RULES: &[&str] = &["NodeFilesystemAlmostOutOfSpace", "NodeFilesystemSpaceFillingUp"];
const SEVEN_DAYS: &str = "after seven days and 3,794 restarts, when the cluster was down";
const DQLITE: &str = "controlplane_dqlite";
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

/// The wrapper of MicroK8s around k8s-dqlite, with the file of arguments that it reads. The program is dqlite's demo,
/// which ends at an unknown flag as k8s-dqlite does.
const WRAPPER: &str = r#"#!/bin/bash
declare -a args="($(cat $SNAP_DATA/args/k8s-dqlite))"
exec "$SNAP/run" dqlite-demo "${args[@]}"
"#;

/// The member of dqlite that a node's systemd runs, with its directory on a disk that fills up.
struct Snap {
    data: tempfile::TempDir,
    flags: Vec<String>,
}

impl Snap {
    fn new(flags: Vec<String>) -> Self {
        let snap = Self { data: lab::temp_dir("snap"), flags };
        std::fs::create_dir(snap.args()).unwrap();
        std::fs::write(snap.data.path().join("wrapper"), WRAPPER).unwrap();
        snap.write("");
        snap
    }

    fn args(&self) -> PathBuf {
        self.data.path().join("args")
    }

    /// Writes the file of arguments, with this behind the flags that are needed.
    fn write(&self, more: &str) {
        let text = format!("{}\n{more}", self.flags.join("\n"));
        std::fs::write(self.args().join("k8s-dqlite"), text).unwrap();
    }

    /// It takes what it needs for a restart of the incident's fast loop, 16.7 s.
    fn unit(&self, factor: f64) -> String {
        format!(
            "[Unit]\nStartLimitIntervalSec=0\n[Service]\nRestart=on-failure\nRestartSec={:.0}ms\n\
             NetworkNamespacePath=/host-net\nEnvironment=SNAP={} SNAP_DATA={data}\n\
             ExecStart=/bin/bash {data}/wrapper\n",
            16_700.0 / factor,
            Dqlite::V118.folder().display(),
            data = self.data.path().display(),
        )
    }

    /// What the container must see of the host.
    fn binds(&self, disk: &Path) -> String {
        let program = Dqlite::V118.folder();
        let (program, data) = (program.display(), self.data.path().display());
        format!("--bind-ro={program} --bind-ro={data} --bind={}", disk.display())
    }
}

/// The agent of a node: what is said in `more`, and nothing else but dqlite.
fn start_agent(cluster: &Cluster, member: usize, factor: f64, more: &str) -> Agent {
    let every = |seconds| interval(SECOND * seconds, factor);
    Agent::start(&format!(
        "exporter: {{interval: {five}}}\n\
         etcd: {{enabled: false}}\nregistry_keys: {{enabled: false}}\nsnap: {{enabled: false}}\n\
         kernel: {{enabled: false}}\nfdatasync: {{enabled: false}}\n\
         dqlite: {{dir: '{dir}', interval: {thirty}, timeout: 2s}}\n{more}",
        dir = cluster.dir(member).display(),
        five = every(5),
        thirty = every(30),
    ))
}

fn systemd(container: &Container, factor: f64) -> String {
    let (bus, every) = (container.bus_address(), interval(5 * SECOND, factor));
    format!("systemd: {{units: [{UNIT}], bus: '{bus}', interval: {every}}}\n")
}

fn restarts(scrape: &Scrape) -> f64 {
    scrape.sum(RESTARTS, &[("unit", UNIT)])
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

/// The first cause.
#[track_caller]
fn disk_fills_up(i2: &mut Incident, disk: &Disk, cluster: &Cluster, last: &Agent) {
    let device = disk.device().name();
    let on_disk = format!("device=\"/dev/{device}\"");
    let eight_days = "04-12 09:27, eight days later, when the cluster had been down for 17 h";
    let share = |s: &Scrape| {
        s.sum(SPACE, &[("role", "datastore")])
            / s.sum("controlplane_filesystem_size_bytes", &[("role", "datastore")])
    };
    for (left, severity) in [(0.18, "warning"), (0.08, "critical")] {
        let what = format!("{:.0} % are left of the disk under the snap's data", left * 100.0);
        let fault = i2.fault(&what, eight_days, || fill(disk, left));
        i2.signal(fault, SPACE, &[last], "controlplane_filesystem", |s| share(s) < left + 0.02);
        i2.pages(fault, &[("ControlPlaneDatastoreSpaceLow", severity, "cp-3")], minutes(60));
        i2.stock(fault, SPACE_RULES, &on_disk);
    }
    let fault = i2.fault(
        "nothing is left; dqlite there writes its log no more, and still calls itself a voter",
        eight_days,
        || {
            disk.mount().fill();
            cluster.put_large(0, 1_500, 20_000);
        },
    );
    let open = [("state", "open")];
    i2.signal(fault, "controlplane_dqlite_segments{state=\"open\"} 0", &[last], DQLITE, |s| {
        s.value("controlplane_dqlite_segments", &open) == Some(0.0)
    });
    i2.pages(fault, &[("ControlPlaneDqliteLogStopped", "critical", "cp-3")], minutes(30));
}

/// A playbook writes flags that the program never had. Nothing happens, until the next restart.
#[track_caller]
fn unknown_flags(i2: &mut Incident, snap: &Snap, fast: &Container, last: &Agent) {
    let fault = i2.fault(
        "a playbook writes --snapshot-threshold into args/k8s-dqlite",
        "by 39 restarts within minutes, days later",
        || snap.write("# BEGIN ANSIBLE MANAGED BLOCK\n--snapshot-threshold=512\n# END ANSIBLE MANAGED BLOCK\n"),
    );
    i2.signal(fault, "controlplane_args_unknown_flags", &[last], "controlplane_args", |s| {
        s.value("controlplane_args_unknown_flags", &[("file", "k8s-dqlite")]) == Some(1.0)
    });
    i2.pages(fault, &[("ControlPlaneArgsUnknownFlags", "critical", "cp-3")], minutes(15));
    assert_eq!(fast.show(UNIT, "NRestarts"), "0", "it has paged before the restart");
}

/// The restart comes, and two of three voters are left.
#[track_caller]
fn crash_loop(i2: &mut Incident, fast: &Container, agents: &[Agent; 3]) {
    let fault =
        i2.fault("k8s-dqlite is restarted, and ends at once, every 16.7 s", SEVEN_DAYS, || {
            fast.systemctl(&["restart", UNIT]);
        });
    i2.signal(fault, RESTARTS, &[&agents[2]], "controlplane_systemd", |s| restarts(s) >= 1.0);
    i2.pages(fault, &[("ControlPlaneUnitCrashLooping", "critical", "cp-3")], minutes(30));
    i2.stock(fault, LOOP_RULES, r#"instance="cp-3:9100""#);
    i2.inhibited(
        "ControlPlaneUnitRestarting",
        "cp-3:10379",
        "ControlPlaneUnitCrashLooping",
        minutes(30),
    );
    let journal = fast.exec(&["journalctl", "--no-pager", "-u", UNIT]).stdout;
    assert!(journal.contains("unknown flag: --snapshot-threshold"), "{journal}");
    // Two of three voters are left, for a week.
    let reachable = "controlplane_dqlite_voters_reachable";
    i2.signal(fault, reachable, &[&agents[0]], DQLITE, |s| s.value(reachable, &[]) == Some(2.0));
    let risk = ("ControlPlaneDqliteQuorumAtRisk", "critical", "");
    i2.pages(fault, &[("ControlPlaneUnitCrashLooping", "critical", "cp-3"), risk], minutes(60));
}

#[test]
fn i2_a_crash_loop_a_full_disk_and_unknown_flags_page_within_minutes_not_after_a_week() {
    let _turn = lab::alone();
    let factor = 60.0;
    let disk = Disk::sized(Kind::Ext4, 512 << 20);
    let (device, path) = (disk.device().name(), disk.mount().path());
    let mut cluster = Cluster::start(Dqlite::V118, 2);
    let third = cluster.expect(path);
    let snap = Snap::new(cluster.flags(third));
    let slow = Container::boot();
    let fast = Container::boot_with("root", &snap.binds(path));
    fast.install_unit(UNIT, &snap.unit(factor));
    fast.systemctl(&["start", UNIT]);
    cluster.wait_for_roles(3, 3);

    let node_3 = format!(
        "host: {{distribution: microk8s, version: v1.34.5, role: server, datastore: dqlite,\n  \
           datastore_dir: '{path}', processes: [k8s-dqlite], container_dirs: [], devices: [{device}]}}\n\
         kine: {{enabled: false}}\n\
         args: {{dir: '{args}', interval: {minute}, flags: {{k8s-dqlite: [api, db, dir, join]}}}}\n\
         filesystem: {{paths: ['{path}'], interval: {thirty}}}\n{systemd}",
        path = path.display(),
        args = snap.args().display(),
        minute = interval(60 * SECOND, factor),
        thirty = interval(30 * SECOND, factor),
        systemd = systemd(&fast, factor),
    );
    let agents = [
        start_agent(&cluster, 0, factor, &systemd(&slow, factor)),
        start_agent(&cluster, 1, factor, "systemd: {enabled: false}\n"),
        start_agent(&cluster, third, factor, &node_3),
    ];
    let exporters = [NodeExporter::start(&slow), NodeExporter::start(&fast)];
    let mut targets: Vec<_> = (0..3).map(|i| agent(i + 1, &agents[i])).collect();
    targets.extend([node(1, exporters[0].address()), node(3, exporters[1].address())]);
    let mut i2 = Incident::start("i2", Version::V3, factor, &targets);
    let last = &agents[2];
    last.wait_until("the disk's figures", SPACE, 20 * SECOND, |s| {
        !s.all(SPACE, &[("role", "datastore")]).is_empty()
    });

    // The slow loop, which rules over minutes cannot see, goes on beside everything else.
    slow.install_unit(UNIT, &loops(159.0 / factor));
    let looping = i2.fault("a service is started again every 159 s", SEVEN_DAYS, || {
        slow.systemctl(&["start", UNIT]);
    });
    i2.signal(looping, RESTARTS, &[&agents[0]], "controlplane_systemd", |s| restarts(s) >= 1.0);
    i2.stock(looping, LOOP_RULES, r#"instance="cp-1:9100""#);

    disk_fills_up(&mut i2, &disk, &cluster, last);
    unknown_flags(&mut i2, &snap, &fast, last);
    crash_loop(&mut i2, &fast, &agents);

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

    crate::page::look(last, "i2");
    let repaired = i2.repair("space is there again, the flags are gone, both services run");
    let folder = path.display();
    run("sh", ["-c".to_owned(), format!("rm -f {folder}/log-* {folder}/filler")]);
    snap.write("");
    slow.install_unit(UNIT, "[Service]\nExecStart=/bin/sleep 9999\n");
    for container in [&slow, &fast] {
        container.systemctl(&["restart", UNIT]);
    }
    i2.resolved("ControlPlaneDatastoreSpaceLow", repaired, minutes(40));
    i2.resolved("ControlPlaneDqliteQuorumAtRisk", repaired, minutes(60));
    i2.resolved("ControlPlaneArgsUnknownFlags", repaired, minutes(60));
    i2.resolved("ControlPlaneUnitCrashLooping", repaired, minutes(60));
    i2.finish("I2: MicroK8s, a crash loop, a disk that fills up, flags that nobody knows");
}
