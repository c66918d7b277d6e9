//! One node from healthy to dead: a cluster of three over TLS whose first member lies on a disk that
//! fails, a unit that crashes, and one agent that shows each step where a person would look for it.

use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use crate::lab;
use crate::lab::agent::{Agent, Scrape};
use crate::lab::disk::{Kind, SlowDisk};
use crate::lab::etcd::{Cluster, Etcd, Options};
use crate::lab::systemd::Container;

const SECOND: Duration = Duration::from_secs(1);
const UNIT: &str = "datastore.service";

fn config(cluster: &Cluster, member: usize, further: &str) -> String {
    let (pki, leaf) = (&cluster.pki, &cluster.pki.client);
    format!(
        "etcd: {{endpoints: ['{}'], ca_file: {}, cert_file: {}, key_file: {}, interval: 300ms, timeout: 2s, expected_members: 3}}\n\
         {further}",
        cluster.client_url(member),
        pki.ca.display(),
        leaf.cert.display(),
        leaf.key.display()
    )
}

/// A scrape, which must be quick whatever is broken.
fn quick(agent: &Agent) -> Scrape {
    let mut times = Vec::new();
    let mut scrape = || {
        let started = Instant::now();
        let scrape = agent.scrape();
        times.push(started.elapsed());
        scrape
    };
    (0..9).for_each(|_| drop(scrape()));
    let scrape = scrape();
    lab::assert_quick(times);
    scrape
}

/// The status page says what is wrong without Prometheus, with the alert whose runbook helps.
fn the_page_tells_the_causes_first(agent: &Agent) {
    let status = agent.get("/api/v1/status").unwrap().text();
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["health"], "critical");
    let verdicts = status["verdicts"].as_array().unwrap();
    for (alert, health) in [
        ("ControlPlaneKernelIOErrors", "critical"),
        ("ControlPlaneDiskSyncFailing", "critical"),
        ("ControlPlaneEtcdMemberDown", "critical"),
        ("ControlPlaneEtcdQuorumAtRisk", "warning"),
        ("ControlPlaneUnitDied", "warning"),
    ] {
        let is_said = |v: &serde_json::Value| v["alert"] == alert && v["health"] == health;
        assert!(verdicts.iter().any(is_said), "no {health} {alert}: {verdicts:#?}");
    }
    let page = agent.get("/").unwrap().text();
    let wrong = page.find("What is wrong").expect("the page begins with what is wrong");
    let cause = page.find("last failed sync").unwrap();
    let effect = page.find("does not answer").unwrap();
    assert!(wrong < cause && cause < effect, "causes come first");
}

#[test]
fn every_signal_moves_as_a_node_goes_from_healthy_to_dead() {
    let _turn = lab::alone();
    let disk = SlowDisk::sized(Kind::Ext4, 512 << 20);
    let mount = disk.mount().path().to_owned();
    let device = disk.device().name();
    let container = Container::boot();
    // Only the first member lies on the disk.
    let data = lab::temp_dir("members");
    symlink(&mount, data.path().join("m0")).unwrap();
    let options = Options { data_root: Some(data.path().to_owned()), ..Options::default() };
    let mut cluster = Cluster::start_with(Etcd::V35, 3, options);
    let crash = "[Unit]\nStartLimitIntervalSec=0\n[Service]\nRestart=always\nRestartSec=500ms\n\
                 ExecStart=/bin/sh -c 'sleep 0.2; kill -BUS $$$$'\n";
    container.install_unit(UNIT, crash);

    let snaps = lab::temp_dir("snaps");
    std::fs::create_dir_all(snaps.path().join("microk8s/common")).unwrap();
    let agent = Agent::start(&config(
        &cluster,
        0,
        &format!(
            "registry_keys: {{interval: 1s, prefixes: {{}}}}\n\
             fdatasync: {{paths: ['{mount}'], interval: 200ms}}\n\
             kernel: {{ignore_devices: []}}\n\
             systemd: {{units: [{UNIT}], bus: '{bus}', interval: 500ms, timeout: 1s}}\n\
             filesystem: {{paths: ['{mount}'], interval: 1s}}\n\
             snap: {{root: '{snaps}', interval: 1s}}\n",
            mount = mount.display(),
            bus = container.bus_address(),
            snaps = snaps.path().display(),
        ),
    ));
    let path = [("path", mount.to_str().unwrap())];
    let unit = [("unit", UNIT)];
    let errors =
        |scrape: &Scrape| scrape.sum("controlplane_kernel_io_errors_total", &[("device", &device)]);

    // Healthy.
    let healthy = agent.wait_until("a healthy node", "controlplane_etcd", 20 * SECOND, |scrape| {
        scrape.value("controlplane_etcd_voters_reachable", &[]) == Some(3.0)
            && scrape.sum("controlplane_etcd_peer_up", &[]) > 1.5
            && scrape.sum("controlplane_fdatasync_duration_seconds_count", &path) > 4.0
            && scrape.value("controlplane_etcd_members_expected", &[]) == Some(3.0)
            && scrape.value("controlplane_filesystem_readonly", &path) == Some(0.0)
    });
    let errors_before = errors(&healthy);

    // Orphans arrive, the database grows.
    cluster.put_many("/registry/longhorn.io/orphans/longhorn-system/orphan-", 3_000, 1_000);
    let orphans = [("resource", "orphans.longhorn.io")];
    // A count rests for 500 times as long as it took, which on a busy machine is long.
    agent.wait_value("controlplane_registry_keys", &orphans, 3_000.0, 300 * SECOND);
    let size = |scrape: &Scrape| scrape.value("controlplane_etcd_db_size_bytes", &[]).unwrap();
    agent.wait_until("a larger database", "controlplane_etcd_db_size", 5 * SECOND, |scrape| {
        size(scrape) > size(&healthy) + 2e6
    });

    // A unit begins to crash.
    container.systemctl(&["start", "--no-block", UNIT]);
    let exit = [("unit", UNIT), ("code", "killed"), ("status", "BUS")];
    agent.wait_until("restarts", "controlplane_systemd", 15 * SECOND, |scrape| {
        scrape.sum("controlplane_systemd_unit_restarts_total", &unit) >= 2.0
            && scrape.all("controlplane_systemd_unit_last_exit_info", &exit).len() == 1
    });

    // A snap's data grows.
    std::fs::write(snaps.path().join("microk8s/common/images"), vec![1; 4 << 20]).unwrap();
    let common = [("snap", "microk8s"), ("area", "common")];
    agent.wait_until("the snap's data", "controlplane_snap", 10 * SECOND, |scrape| {
        scrape.sum("controlplane_snap_disk_usage_bytes", &common) >= f64::from(4 << 20)
    });

    // The disk becomes slow.
    disk.set_delay(SECOND * 7 / 10);
    let half = [path[0], ("threshold", "0.5")];
    agent.wait_until("stalls", "controlplane_fdatasync", 20 * SECOND, |scrape| {
        scrape.sum("controlplane_fdatasync_stalls_total", &half) >= 2.0
            && scrape.sum("controlplane_fdatasync_max_seconds", &path) > 0.5
    });

    // It hangs: an age grows, nothing waits for it.
    disk.hang();
    let inflight = "controlplane_fdatasync_inflight_seconds";
    agent.wait_until("a sync in flight", inflight, 15 * SECOND, |scrape| {
        scrape.sum(inflight, &path) > 3.0
    });
    quick(&agent);
    disk.release();

    // It fails: the kernel says so, the probe says so, the member dies, its peers notice.
    disk.set_error(5);
    // The member may die of this write or of one before; both are what is wanted.
    drop(cluster.try_etcdctl(&["put", "key", "value"]));
    let scrape = agent.wait_until("the end", "controlplane_", 40 * SECOND, |scrape| {
        errors(scrape) > errors_before
            && scrape.sum("controlplane_fdatasync_failures_total", &path) >= 1.0
            && scrape.value("controlplane_etcd_up", &[]) == Some(0.0)
    });
    assert_eq!(scrape.value("controlplane_etcd_has_leader", &[]), None, "gone at once");
    assert_eq!(scrape.value("controlplane_etcd_members_listed", &[]), Some(3.0), "remembered");
    assert_eq!(scrape.value("controlplane_etcd_voters_reachable", &[]), Some(2.0));
    let refused = [("reason", "refused")];
    agent.wait_until("the reason", "controlplane_etcd_request", 10 * SECOND, |scrape| {
        scrape.sum("controlplane_etcd_request_failures_total", &refused) >= 1.0
    });
    quick(&agent);
    let neighbour = Agent::start(&config(&cluster, 1, ""));
    neighbour.wait_until("what a neighbour sees", "controlplane_etcd", 10 * SECOND, |scrape| {
        scrape.value("controlplane_etcd_has_leader", &[]) == Some(1.0)
            && scrape.value("controlplane_etcd_voters_reachable", &[]) == Some(2.0)
            && scrape.all("controlplane_etcd_peer_up", &[]).iter().any(|s| s.value < 0.5)
    });

    the_page_tells_the_causes_first(&agent);
    let events = agent.get("/api/v1/status").unwrap().text();
    for what in ["sync_stalled", "sync_failed", "unit_exit", "etcd_down"] {
        assert!(events.contains(&format!("\"kind\":\"{what}")), "no event {what}*: {events}");
    }
    // Whatever still lies on the disk can end now.
    disk.release();
    cluster.kill(0);
}
