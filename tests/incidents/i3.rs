//! I3: k3s on three virtual machines whose disks stall: syncs of 850 ms, 1.2 s and 2.1 s, and a leader that moves.

use super::{Incident, SECOND, agent, etcd, full, interval, minutes};
use crate::lab;
use crate::lab::agent::Agent;
use crate::lab::disk::{Kind, SlowDisk};
use crate::lab::etcd::{Cluster, Etcd, Options};
use crate::lab::prometheus::Version;
use std::os::unix::fs::symlink;
use std::time::Duration;

const TERM: &str = "controlplane_etcd_raft_term";
const STALLS: &str = "controlplane_fdatasync_stalls_total";
const SYNC_RULES: &[&str] =
    &["etcdHighFsyncDurations", "etcdHighCommitDurations", "etcdGRPCRequestsSlow"];
const WORST: &str = "controlplane_fdatasync_max_seconds";

#[expect(clippy::too_many_lines, reason = "the incident is one story")]
#[test]
fn i3_disks_that_stall_page_before_the_leader_moves_on_and_on() {
    let _turn = lab::alone();
    let factor = if full() { 30.0 } else { 60.0 };
    // Three machines, three disks, one storage below them.
    let disks: Vec<_> = (0..3).map(|_| SlowDisk::sized(Kind::Ext4, 768 << 20)).collect();
    let data = lab::temp_dir("members");
    for (i, disk) in disks.iter().enumerate() {
        symlink(disk.mount().path(), data.path().join(format!("m{i}"))).unwrap();
    }
    let options = Options { data_root: Some(data.path().to_owned()), ..Options::default() };
    let cluster = Cluster::start_with(Etcd::V35, 3, options);
    let every = |seconds| interval(SECOND * seconds, factor);
    let agents: Vec<_> = disks
        .iter()
        .enumerate()
        .map(|(i, disk)| {
            let (pki, leaf) = (&cluster.pki, &cluster.pki.client);
            Agent::start(&format!(
                "host: {{distribution: k3s, role: server, datastore: etcd, datastore_dir: '{path}/data',\n  \
                   processes: [k3s-server], container_dirs: [], devices: [{device}]}}\n\
                 exporter: {{interval: {five}}}\n\
                 etcd: {{endpoints: ['{url}'], ca_file: {ca}, cert_file: {cert}, key_file: {key},\n  \
                   interval: {fifteen}, timeout: 2s}}\n\
                 registry_keys: {{enabled: false}}\nsystemd: {{enabled: false}}\nsnap: {{enabled: false}}\n\
                 kernel: {{enabled: false}}\nfilesystem: {{enabled: false}}\n\
                 fdatasync: {{paths: ['{path}'], interval: {five}}}\n",
                path = disk.mount().path().display(),
                device = disk.device().name(),
                url = cluster.client_url(i),
                ca = pki.ca.display(),
                cert = leaf.cert.display(),
                key = leaf.key.display(),
                five = every(5),
                fifteen = every(15),
            ))
        })
        .collect();
    let targets: Vec<_> = agents
        .iter()
        .enumerate()
        .flat_map(|(i, one)| [agent(i + 1, one), etcd(i + 1, cluster.metrics_port(i))])
        .collect();
    let mut i3 = Incident::start("i3", Version::V3, factor, &targets);
    let healthy = agents[0].wait_until("a healthy cluster", "controlplane_", 30 * SECOND, |s| {
        s.value("controlplane_etcd_voters_reachable", &[]) == Some(3.0)
            && s.sum("controlplane_fdatasync_duration_seconds_count", &[]) > 5.0
    });
    let term = healthy.value(TERM, &[]).unwrap();
    let writers: Vec<_> = (0..3)
        .map(|i| cluster.keep_writing(i, &format!("/registry/leases/{i}-"), 300, SECOND / 20))
        .collect();
    let slow = |delay: Duration| disks.iter().for_each(|disk| disk.set_delay(delay));

    // A sync is one flush of the disk or two, and waits for those of others.
    let fault = i3.fault(
        "a flush of the disks takes 0.3 s, so syncs take 0.3 to 0.9 s",
        "not said; the API had been slow for long",
        || slow(Duration::from_millis(300)),
    );
    i3.signal(fault, WORST, &[&agents[0]], "controlplane_fdatasync", |s| s.sum(WORST, &[]) >= 0.3);
    i3.pages(fault, &[("ControlPlaneDiskSyncSlow", "critical", "cp-")], minutes(40));
    i3.stock(fault, SYNC_RULES, "");

    let long = |agent: &Agent| agent.scrape().sum(STALLS, &[("threshold", "1")]);
    let stalled = agents.iter().map(long).fold(0.0, f64::max);
    let fault = i3.fault(
        "a flush takes 0.8 s, so syncs take 0.8 to 2.4 s",
        "by `slow fdatasync, took 1.2s` in the log, while the API took seconds",
        || slow(Duration::from_millis(800)),
    );
    i3.signal(
        fault,
        STALLS,
        &[&agents[0], &agents[1], &agents[2]],
        "controlplane_fdatasync",
        |s| s.sum(STALLS, &[("threshold", "1")]) >= stalled + 1.0,
    );
    i3.pages(fault, &[("ControlPlaneDiskSyncStalls", "warning", "cp-")], minutes(40));
    i3.stock(fault, SYNC_RULES, "");
    i3.inhibited("ControlPlaneEtcdRequestsSlow", "", "ControlPlaneDiskSync", minutes(40));

    crate::page::look(&agents[0], "i3");

    // The leader's disk is the slow one, whichever leads: each leader in turn is too late with its heartbeats.
    let fault = i3.fault(
        "the disk of each leader in turn takes 1.2 s a flush, and the leader moves again and again",
        "by `leader changed` in the log",
        || slow(Duration::from_millis(30)),
    );
    let highest = || agents.iter().filter_map(|a| a.scrape().value(TERM, &[])).fold(0.0, f64::max);
    for round in 1..=3 {
        let before = highest();
        lab::wait_for("an election", 60 * SECOND, || {
            // Asked anew each time: one that has just lost its place still says that it leads.
            let leader = cluster.leader();
            for (member, disk) in disks.iter().enumerate() {
                disk.set_delay(Duration::from_millis(if member == leader { 1200 } else { 30 }));
            }
            let now = highest();
            if now > before { Ok(()) } else { Err(format!("member {leader} leads in term {now}")) }
        });
        i3.say(&format!("the leader has lost its place: {round}"));
    }
    slow(Duration::from_millis(30));
    i3.signal(fault, TERM, &[&agents[0], &agents[1], &agents[2]], TERM, |s| {
        s.value(TERM, &[]).is_some_and(|now| now >= term + 3.0)
    });
    i3.inhibited("ControlPlaneEtcdLeaderFlapping", "", "ControlPlaneDiskSync", minutes(40));
    "none: its cause had paged, and silences it".clone_into(&mut i3.rows[fault.row].page);
    i3.stock(fault, &["etcdHighNumberOfLeaderChanges", "etcdNoLeader"], "");

    drop(writers);
    let repaired = i3.repair("the disks are quick again");
    disks.iter().for_each(SlowDisk::release);
    if full() {
        i3.resolved("ControlPlaneDiskSyncSlow", repaired, minutes(60));
    }
    i3.finish("I3: k3s, three virtual machines with slow syncs");
}
