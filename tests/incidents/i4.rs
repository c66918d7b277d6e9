//! I4: k3s and Longhorn, volumes that came up empty after an upgrade of all nodes, and a nightly backup that replaced the only
//! good one.
//!
//! Real filesystems on loop devices with the names of Longhorn's, mounted where kubelet mounts them, and Longhorn's objects
//! in a real etcd. The upgrade is that of k3s on two servers; nothing here can be rebooted.

use super::i3::Server;
use super::{Incident, SECOND, Target, agent, etcd, full, interval, minutes};
use crate::lab;
use crate::lab::agent::{Agent, Options, Scrape};
use crate::lab::disk::Kind;
use crate::lab::etcd::{Cluster, Etcd};
use crate::lab::process::{bound_command, output};
use crate::lab::prometheus::Version;
use crate::lab::volume::{self, Volume};
use rustix::process::Signal;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);
const BACKUPS: &str = "controlplane_volume_backups";
const LAST: &str = "controlplane_volume_backup_last_timestamp_seconds";
const REFORMATTED: &str = "controlplane_volume_reformatted_timestamp_seconds";
const ALL: &str = "controlplane_volume_";
const VERSION: &str = "controlplane_settings_version_info";
const OFF: &str = "systemd: {enabled: false}\nsnap: {enabled: false}\nkernel: {enabled: false}\nfilesystem: {enabled: false}\n\
                   fdatasync: {enabled: false}\njournal: {enabled: false}\napiserver: {enabled: false}\n";
const NOTICED: &str = "2022-12-15 09:00, 23 hours later, by looking at empty applications";

/// An agent with this in its section, on the server if there is one. It is reached at this port as well, which stays the same
/// when it is started again.
fn start_agent(
    cluster: &Cluster,
    factor: f64,
    section: &str,
    port: u16,
    server: Option<&Server>,
) -> Agent {
    let (pki, leaf) = (&cluster.pki, &cluster.pki.client);
    let every = |seconds| interval(SECOND * seconds, factor);
    let config = format!(
        "host: {{distribution: k3s, role: server, datastore: etcd, datastore_dir: '{data}',\n  \
           processes: [k3s-server], container_dirs: []}}\n\
         exporter: {{interval: {five}}}\n\
         etcd: {{endpoints: ['{url}'], ca_file: {ca}, cert_file: {cert}, key_file: {key},\n  \
           interval: {fifteen}, timeout: 2s}}\n\
         volume: {{interval: {minute}, timeout: 2s, {section}}}\n\
         registry_keys: {{interval: {minute}}}\nsettings: {{interval: {fifteen}}}\n{OFF}",
        data = cluster.data_dir(0).display(),
        url = cluster.client_url(0),
        ca = pki.ca.display(),
        cert = leaf.cert.display(),
        key = leaf.key.display(),
        five = every(5),
        fifteen = every(15),
        minute = every(60),
    );
    let args = vec![format!("--web.listen-address=127.0.0.1:{port}")];
    let through = server.map(Server::through).unwrap_or_default();
    Agent::start_with(Options { config, args, through, ..Options::default() })
}

/// The agent of a server that has no volumes.
fn start_other(factor: f64, server: &Server) -> Agent {
    let config = format!(
        "host: {{distribution: k3s, role: server, datastore: etcd, processes: [k3s-server], container_dirs: []}}\n\
         settings: {{interval: {}}}\nvolume: {{enabled: false}}\netcd: {{enabled: false}}\n\
         registry_keys: {{enabled: false}}\n{OFF}",
        interval(SECOND * 15, factor)
    );
    Agent::start_with(Options { config, through: server.through(), ..Options::default() })
}

fn told(scrape: &Scrape, volume: &Volume) -> bool {
    scrape.value(REFORMATTED, &[("volume", volume.name())]).is_some()
}

/// What the check says on the node, with its exit code.
fn check(agent: &Agent) -> (Option<i32>, String) {
    let mut command = bound_command(env!("CARGO_BIN_EXE_controlplane-exporter"));
    command.args(["check", "--profile=volumes", "--format=text"]);
    command.env("CONTROLPLANE_EXPORTER__WEB__SOCKET", agent.socket());
    let said = output(command, 10 * SECOND);
    (said.status.code(), said.stdout)
}

/// Page and check answer on the node itself: monitoring had lost its own data.
fn answers_without_prometheus(agent: &Agent, volume: &Volume) {
    let (code, said) = check(agent);
    assert_eq!(code, Some(2), "{said}");
    for word in ["formatted anew", volume.name(), "ControlPlaneVolumeReformatted"] {
        assert!(said.contains(word), "{word}: {said}");
    }
    let page = agent.get("/").unwrap().text();
    assert!(page.contains("formatted anew") && page.contains(volume.name()), "{page}");
}

#[expect(clippy::too_many_lines, reason = "the incident is one story")]
#[test]
fn i4_a_wiped_volume_pages_hours_before_the_backup_replaces_the_only_good_one() {
    let _turn = lab::alone();
    let factor = if full() { 30.0 } else { 60.0 };
    let cluster = Cluster::start(Etcd::V35, 1);
    // The ext4 one had been in use for weeks; mkfs.xfs cannot be told another time than now.
    let mut volumes =
        [Volume::longhorn(Kind::Ext4, 28 * DAY), Volume::longhorn(Kind::Xfs, Duration::ZERO)];
    volume::put_target(&cluster, "s3://KEY:SECRET@backups/");
    for (volume, age) in volumes.iter().zip([12 * HOUR, Duration::ZERO]) {
        volume.fill(200 << 20);
        volume::put_volume(&cluster, volume.name(), 29 * DAY);
        volume::put_backup(&cluster, &format!("good-{}", volume.name()), volume.name(), age);
    }
    let saved = volumes.each_mut().map(Volume::save);
    let state = lab::temp_dir("state");
    let file = state.path().join("volumes.json");
    let with_file = |file: &Path| format!("state_file: '{}'", file.display());
    let port = lab::free_port();
    let servers = [0, 1].map(|_| Server::new("v1.24.8+k3s1", "cluster-init: true\n"));
    let mut one = start_agent(&cluster, factor, &with_file(&file), port, Some(&servers[0]));
    let two = start_other(factor, &servers[1]);
    let version = if full() { Version::V2 } else { Version::V3 };
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let node = Target { job: "controlplane", address, instance: "cp-1:10379".to_owned() };
    let targets = [node, etcd(1, cluster.metrics_port(0)), agent(2, &two)];
    let mut i4 = Incident::start("i4", version, factor, &targets);

    let fault = i4.fault(
        "the backup job of the volumes retains one backup",
        "never: it became clear the day after, with the only copy gone",
        || (),
    );
    let scrape = i4.signal(fault, BACKUPS, &[&one], ALL, |s| s.all(BACKUPS, &[]).len() == 2);
    assert!(volumes.iter().all(|volume| !told(&scrape, volume)), "{}", scrape.with_prefix(ALL));
    i4.pages(fault, &[("ControlPlaneVolumeBackupsFew", "warning", "")], minutes(90));
    assert_eq!(check(&one).0, Some(1), "few backups are a warning");

    let fault =
        i4.fault("k3s is upgraded on both servers at once", "at once: it was planned", || {
            for (server, agent) in servers.iter().zip([&one, &two]) {
                server.install("v1.25.4+k3s1");
                // It looks at programs once a minute only, and at once when it is told to.
                agent.signal(Signal::HUP);
            }
        });
    i4.signal(fault, VERSION, &[&one, &two], "controlplane_settings", |s| {
        let new = [("component", "k3s"), ("version", "v1.25.4+k3s1")];
        s.value(VERSION, &new) == Some(1.0)
    });
    i4.pages(fault, &[("ControlPlaneNodesChanged", "warning", "")], minutes(15));

    let fault = i4.fault(
        "after the upgrade the driver takes both volumes for empty: mkfs.ext4, mkfs.xfs, and a mount",
        NOTICED,
        || volumes.iter_mut().for_each(Volume::reformat),
    );
    i4.signal(fault, REFORMATTED, &[&one], ALL, |s| volumes.iter().all(|v| told(s, v)));
    i4.pages(fault, &[("ControlPlaneVolumeReformatted", "critical", "cp-1")], minutes(15));
    i4.inhibited(
        "ControlPlaneVolumeUsageCollapsed",
        "",
        "ControlPlaneVolumeReformatted",
        minutes(15),
    );
    answers_without_prometheus(&one, &volumes[0]);
    crate::page::look(&one, "i4");
    // An agent that never saw the volume before knows it from the backup, one with the file of before from that.
    let fresh = start_agent(&cluster, factor, "state_file: ~", lab::free_port(), None);
    fresh.wait_until("a wiped volume without a state file", ALL, 20 * SECOND, |s| {
        told(s, &volumes[0])
    });
    answers_without_prometheus(&fresh, &volumes[0]);
    drop(fresh);
    one.stop(5 * SECOND);
    // Nobody else has written this one.
    let copy = state.path().join("copy.json");
    std::fs::copy(&file, &copy).unwrap();
    let restarted = start_agent(&cluster, factor, &with_file(&copy), port, Some(&servers[0]));
    restarted.wait_until("wiped volumes from the state file", ALL, 20 * SECOND, |s| {
        volumes.iter().all(|volume| told(s, volume))
    });

    let before = i4.real(fault.at);
    let fault = i4.fault(
        "the backup of midnight replaces the only good one",
        "2022-12-15 09:00, nine hours later",
        || {
            for volume in &volumes {
                volume::put_backup(
                    &cluster,
                    &format!("empty-{}", volume.name()),
                    volume.name(),
                    Duration::ZERO,
                );
                volume::delete_backup(&cluster, &format!("good-{}", volume.name()));
            }
        },
    );
    let newest = |s: &Scrape| s.all(LAST, &[]).iter().map(|s| s.value).fold(0.0, f64::max);
    let now = super::unix_now() - 5.0;
    let scrape = i4.signal(fault, LAST, &[&restarted], ALL, |s| {
        newest(s) >= now && s.all(BACKUPS, &[]).iter().all(|series| series.value <= 1.0)
    });
    assert!(volumes.iter().all(|volume| told(&scrape, volume)), "{}", scrape.with_prefix(ALL));
    "none: the wiped volumes had paged".clone_into(&mut i4.rows[fault.row].page);
    answers_without_prometheus(&restarted, &volumes[1]);
    i4.notes.push(format!(
        "The page about the wiped volumes came {} before the backup replaced the only good one; in 2022 these were 14 hours.",
        super::human(before)
    ));
    i4.notes.push(
        "Page and check on the node said so without Prometheus, also after a restart of the agent with its state \
         file, and for the ext4 volume without one."
            .to_owned(),
    );

    let repaired = i4.repair("the saved blocks are put back, as a restore does");
    drop(restarted);
    for (volume, saved) in volumes.iter_mut().zip(&saved) {
        volume.restore(saved);
    }
    let well = start_agent(&cluster, factor, &with_file(&copy), port, Some(&servers[0]));
    well.wait_until("the filesystems of before", ALL, 20 * SECOND, |s| {
        s.all("controlplane_volume_used_bytes", &[]).len() >= 2
            && volumes.iter().all(|volume| !told(s, volume))
    });
    i4.resolved("ControlPlaneVolumeReformatted", repaired, minutes(60));
    i4.finish("I4: k3s and Longhorn, volumes wiped after an upgrade");
}
