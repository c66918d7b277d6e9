//! I3: k3s on three virtual machines whose disks stall: syncs of 850 ms, 1.2 s and 2.1 s, and a leader that moves. One server
//! is a minor version ahead and disables Traefik, a certificate is about to end, and the API takes seconds.

use super::{Incident, SECOND, agent, etcd, full, interval, minutes};
use crate::lab;
use crate::lab::agent::{self as agents, Agent};
use crate::lab::apiserver::{ApiServer, Mood};
use crate::lab::disk::{Kind, SlowDisk};
use crate::lab::etcd::{Cluster, Etcd, Options};
use crate::lab::pki::Pki;
use crate::lab::prometheus::Version;
use rustix::process::Signal;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, SystemTime};

const TERM: &str = "controlplane_etcd_raft_term";
const STALLS: &str = "controlplane_fdatasync_stalls_total";
const SYNC_RULES: &[&str] =
    &["etcdHighFsyncDurations", "etcdHighCommitDurations", "etcdGRPCRequestsSlow"];
const FLAG: &str = "controlplane_settings_flag_info";
const END: &str = "controlplane_certificate_not_after_timestamp_seconds";
const TIMES: &str = "controlplane_apiserver_request_duration_seconds";
const WORST: &str = "controlplane_fdatasync_max_seconds";

/// What makes a server of this machine: a configuration of k3s, its program and the kernel's settings, which only the agent
/// in a mount namespace of its own sees.
pub(super) struct Server {
    folder: tempfile::TempDir,
}

impl Server {
    pub(super) fn new(version: &str, config: &str) -> Self {
        let server = Self { folder: lab::temp_dir("server") };
        for folder in ["lower/rancher", "rancher/k3s", "bin"] {
            fs::create_dir_all(server.path().join(folder)).unwrap();
        }
        server.set(version, config);
        // It was configured long ago.
        let file = fs::File::open(server.path().join("rancher/k3s/config.yaml")).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_hours(720)).unwrap();
        fs::write(server.path().join("swappiness"), "10\n").unwrap();
        server
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Installs this version and writes this configuration.
    fn set(&self, version: &str, config: &str) {
        self.install(version);
        fs::write(self.path().join("rancher/k3s/config.yaml"), config).unwrap();
    }

    /// Installs this version.
    pub(super) fn install(&self, version: &str) {
        // A program that Go built; only the number in it is another one.
        let built = include_bytes!("../data/go-build-info.elf");
        let (old, new) = (b"v1.33.1+k3s1", version.as_bytes());
        assert_eq!(old.len(), new.len());
        let at = built.windows(old.len()).position(|bytes| bytes == old).unwrap();
        let mut program = built.to_vec();
        program[at..at + new.len()].copy_from_slice(new);
        fs::write(self.path().join("bin/k3s"), program).unwrap();
    }

    /// For `Options::through`.
    pub(super) fn through(&self) -> Vec<String> {
        let at = self.path().display();
        let script = format!(
            "mount -t overlay overlay -o lowerdir={at}/lower:/etc /etc && mount --bind {at}/rancher /etc/rancher \
             && mount --bind {at}/bin /usr/local/bin && mount --bind {at}/swappiness /proc/sys/vm/swappiness \
             && exec \"$0\" \"$@\""
        );
        ["unshare", "--mount", "--propagation=slave", "sh", "-c", &script].map(str::to_owned).into()
    }
}

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
    let servers: Vec<_> =
        (0..3).map(|_| Server::new("v1.32.4+k3s1", "cluster-init: true\n")).collect();
    let kubernetes = Pki::new();
    let api = ApiServer::start(&kubernetes, &kubernetes.server);
    let watched = data.path().join("client.crt");
    fs::copy(&kubernetes.client.cert, &watched).unwrap();
    let agents: Vec<_> = disks
        .iter()
        .enumerate()
        .map(|(i, disk)| {
            let (pki, leaf) = (&cluster.pki, &cluster.pki.client);
            let config = format!(
                "host: {{distribution: k3s, role: server, datastore: etcd, datastore_dir: '{path}/data',\n  \
                   processes: [k3s-server], container_dirs: [], devices: [{device}]}}\n\
                 exporter: {{interval: {five}}}\n\
                 etcd: {{endpoints: ['{url}'], ca_file: {ca}, cert_file: {cert}, key_file: {key},\n  \
                   interval: {fifteen}, timeout: 2s}}\n\
                 registry_keys: {{enabled: false}}\nsystemd: {{enabled: false}}\nsnap: {{enabled: false}}\n\
                 kernel: {{enabled: false}}\nfilesystem: {{enabled: false}}\njournal: {{enabled: false}}\n\
                 settings: {{interval: {fifteen}}}\ncertificate: {{paths: ['{cert_watched}'], interval: {fifteen}}}\n\
                 apiserver: {{url: '{api}', ca_file: {api_ca}, cert_file: {api_cert}, key_file: {api_key},\n  \
                   interval: {fifteen}, timeout: 5s}}\n\
                 fdatasync: {{paths: ['{path}'], interval: {five}}}\n",
                path = disk.mount().path().display(),
                device = disk.device().name(),
                url = cluster.client_url(i),
                ca = pki.ca.display(),
                cert = leaf.cert.display(),
                key = leaf.key.display(),
                cert_watched = watched.display(),
                api = api.url(),
                api_ca = kubernetes.ca.display(),
                api_cert = kubernetes.client.cert.display(),
                api_key = kubernetes.client.key.display(),
                five = every(5),
                fifteen = every(15),
            );
            let through = servers[i].through();
            Agent::start_with(agents::Options { config, through, ..agents::Options::default() })
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

    let differs = i3.fault(
        "one server is upgraded to v1.33.5, with `disable: [traefik]` and the kernel's default swappiness",
        "whenever that server led, Traefik was deleted everywhere",
        || {
            servers[2].set("v1.33.5+k3s1", "cluster-init: true\ndisable: [traefik]\n");
            fs::write(servers[2].path().join("swappiness"), "60\n").unwrap();
            // It looks at programs once a minute only, and at once when it is told to.
            agents[2].signal(Signal::HUP);
        },
    );
    let disabled = [("flag", "disable"), ("value", "traefik")];
    i3.signal(differs, FLAG, &[&agents[2]], "controlplane_settings", |s| {
        s.value(FLAG, &disabled) == Some(1.0)
    });
    let ends = i3.fault(
        "a client's certificate ends in six days",
        "not said; its rotation restarted k3s",
        || {
            fs::copy(&kubernetes.client_ending.cert, &watched).unwrap();
        },
    );
    i3.signal(ends, END, &[&agents[0]], "controlplane_certificate", |s| {
        let path = watched.display().to_string();
        s.value(END, &[("path", &path)]).is_some_and(|end| end < super::unix_now() + 7.0 * 86_400.0)
    });

    // A sync is one flush of the disk or two, and waits for those of others.
    let fault = i3.fault(
        "a flush of the disks takes 0.3 s, so syncs take 0.3 to 0.9 s",
        "not said; the API had been slow for long",
        || slow(Duration::from_millis(300)),
    );
    i3.signal(fault, WORST, &[&agents[0]], "controlplane_fdatasync", |s| s.sum(WORST, &[]) >= 0.3);
    i3.pages(fault, &[("ControlPlaneDiskSyncSlow", "critical", "cp-")], minutes(40));
    i3.stock(fault, SYNC_RULES, "");

    let slow_api = i3.fault("the API takes 1.5 s to answer", "the API took seconds", || {
        api.set(Mood::Slow(Duration::from_millis(1500)));
    });
    i3.signal(slow_api, TIMES, &[&agents[0]], "controlplane_apiserver", |s| {
        s.sum(&format!("{TIMES}_sum"), &[("type", "livez")]) > 1.5
    });
    "none: its cause had paged, and silences it".clone_into(&mut i3.rows[slow_api.row].page);

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

    i3.pages(
        differs,
        &[
            ("ControlPlaneSettingsDiffer", "warning", ""),
            ("ControlPlaneVersionSkew", "warning", ""),
        ],
        minutes(180),
    );
    i3.pages(ends, &[("ControlPlaneCertificateExpires", "critical", "cp-")], minutes(60));
    i3.inhibited("ControlPlaneApiserverSlow", "", "ControlPlaneDiskSync", minutes(40));
    drop(writers);
    let repaired = i3.repair("the disks are quick again");
    disks.iter().for_each(SlowDisk::release);
    if full() {
        i3.resolved("ControlPlaneDiskSyncSlow", repaired, minutes(60));
    }
    i3.finish("I3: k3s, three virtual machines with slow syncs");
}
