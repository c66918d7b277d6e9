//! I1: three k3s servers, a failing virtual disk, a flood of orphans, a third server outside the member list, and the
//! loss of one of the two members that are left. 22:43 first sign, 23:06 down, 07:25 recovered.

use super::{Incident, SECOND, agent, etcd, full, human, interval, minutes, node};
use crate::lab;
use crate::lab::agent::{Agent, Options, Scrape, on_host};
use crate::lab::disk::{Disk, Kind, SlowDisk};
use crate::lab::etcd::{self, Cluster, Etcd};
use crate::lab::fuse::{Fault, Operation};
use crate::lab::kmsg::KernelLog;
use crate::lab::node_exporter::NodeExporter;
use crate::lab::process::{bound_command, output};
use crate::lab::prometheus::Version;
use crate::lab::systemd::Container;
use rustix::process::Signal;
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::path::Path;

/// One of those that failed at every boot.
const SECTOR: u64 = 1_198_032;
const UNIT: &str = "k3s.service";

/// What k3s does here: it runs until told to die by SIGBUS or to end with 0, and a start that must wait does not end.
const K3S: &str = "[Unit]\nStartLimitIntervalSec=0\n\
    [Service]\nType=notify\nNotifyAccess=all\nTimeoutStartSec=infinity\nRestart=on-failure\nRestartSec=200ms\n\
    ExecStart=/bin/sh -c 'if [ -e /run/k3s-waits ]; then exec sleep 9999; fi; systemd-notify --ready; \
    while sleep 0.1; do \
    if [ -e /run/k3s-bus ]; then rm /run/k3s-bus; touch /run/k3s-waits; kill -BUS $$$$; fi; \
    if [ -e /run/k3s-ends ]; then exit 0; fi; done'\n";

/// One server: its units, its own `node_exporter`, its agent.
struct Server {
    container: Container,
    node_exporter: NodeExporter,
    agent: Agent,
}

impl Server {
    #[track_caller]
    fn start(cluster: &Cluster, member: usize, factor: f64, path: &Path, further: &str) -> Self {
        let container = Container::boot();
        container.install_unit(UNIT, K3S);
        container.systemctl(&["start", UNIT]);
        let (pki, leaf) = (&cluster.pki, &cluster.pki.client);
        let every = |seconds| interval(SECOND * seconds, factor);
        // No process is watched: all members of this machine are called etcd. Time-outs are not divided.
        let config = format!(
            "host: {{distribution: k3s, role: server, version: v1.34.6+k3s1, datastore: etcd,\n  \
               datastore_dir: '{data}', processes: [k3s-server], container_dirs: []{devices}}}\n\
             exporter: {{interval: {five}}}\n\
             etcd: {{endpoints: ['{url}'], ca_file: {ca}, cert_file: {cert}, key_file: {key}, interval: {fifteen},\n  \
               timeout: 2s}}\n\
             registry_keys: {{interval: {minute}}}\n\
             fdatasync: {{paths: ['{path}'], interval: {five}}}\n\
             kernel: {{enabled: {kernel}, interval: 100ms}}\n\
             systemd: {{units: [{UNIT}], bus: '{bus}', interval: {five}}}\n\
             filesystem: {{paths: ['{path}'], interval: {thirty}}}\n\
             snap: {{enabled: false}}\n",
            data = path.join("data").display(),
            devices = further,
            kernel = !further.is_empty(),
            url = cluster.client_url(member),
            ca = pki.ca.display(),
            cert = leaf.cert.display(),
            key = leaf.key.display(),
            path = path.display(),
            bus = container.bus_address(),
            five = every(5),
            fifteen = every(15),
            thirty = every(30),
            minute = every(60),
        );
        let through = on_host(&format!("cp-{}", member + 1));
        let agent = Agent::start_with(Options { config, through, ..Options::default() });
        let node_exporter = NodeExporter::start(&container);
        Self { container, node_exporter, agent }
    }

    #[track_caller]
    fn touch(&self, file: &str) {
        assert!(self.container.exec(&["touch", file]).status.success(), "touch {file}");
    }
}

/// A disk whose device the kernel's log does not know yet: the agent reads that log from its beginning.
fn disk_without_a_past() -> SlowDisk {
    let log = lab::process::run("dmesg", ["--color=never"]);
    let mut taken = Vec::new();
    for _ in 0..100 {
        let next = Disk::raw(1 << 20);
        let name = next.device().name();
        if log.contains(&format!("{name},")) || log.contains(&format!("{name})")) {
            taken.push(next);
        } else {
            drop(next);
            return SlowDisk::sized(Kind::Ext4, 2 << 30);
        }
    }
    panic!("the kernel's log has errors of 100 loop devices: reboot, or `dmesg -C` is not enough");
}

/// Reads a sector whose reading fails until the kernel has logged it.
fn bad_sector(disk: &SlowDisk, sector: u64) {
    let fault = Fault { errno: Some(5), ..Fault::default() };
    let log = KernelLog::from_now();
    let wanted = format!("dev {}, sector {sector}", disk.device().name());
    lab::wait_for("the kernel's record of the bad sector", 15 * SECOND, || {
        disk.file().faults().set(Operation::Read, fault);
        let mut command = bound_command(lab::program("dd"));
        command.arg(format!("if={}", disk.device().device().display()));
        command.args(["of=/dev/null", "bs=4k", "count=1", "iflag=direct"]);
        command.arg(format!("skip={}", sector / 8));
        let read = output(command, 20 * SECOND);
        disk.file().faults().set(Operation::Read, Fault::default());
        assert!(!read.status.success(), "a bad sector was read");
        std::thread::sleep(SECOND / 10);
        let logged = log.drain().iter().any(|record| record.text.contains(&wanted));
        logged.then_some(()).ok_or_else(|| format!("no line with {wanted:?}"))
    });
}

#[expect(clippy::too_many_lines, reason = "the incident is one story")]
#[test]
fn i1_a_failing_disk_an_orphan_flood_and_a_lost_quorum_page_before_the_outage() {
    let _turn = lab::alone();
    let factor = if full() { 30.0 } else { 60.0 };
    let before_down = minutes(23);
    let disk = disk_without_a_past();
    let data = lab::temp_dir("members");
    symlink(disk.mount().path(), data.path().join("m0")).unwrap();
    let options =
        etcd::Options { data_root: Some(data.path().to_owned()), ..etcd::Options::default() };
    let mut cluster = Cluster::start_with(Etcd::V35, 3, options);
    // The member on the bad disk follows: what it does must not be an election's doing.
    if cluster.leader() == 0 {
        let (id, _) = cluster.status(1).unwrap();
        let endpoint = cluster.client_url(0);
        cluster.etcdctl(&["move-leader", &format!("{id:x}"), &format!("--endpoints={endpoint}")]);
    }
    let device = disk.device().name();
    let places = [disk.mount().path().to_owned(), data.path().join("m1"), data.path().join("m2")];
    let devices = format!(", devices: [{device}]");
    let servers: Vec<Server> = places
        .iter()
        .enumerate()
        .map(|(i, path)| {
            Server::start(&cluster, i, factor, path, if i == 0 { &devices } else { "" })
        })
        .collect();
    let targets: Vec<_> = servers
        .iter()
        .enumerate()
        .flat_map(|(i, server)| {
            [
                agent(i + 1, &server.agent),
                etcd(i + 1, cluster.metrics_port(i)),
                node(i + 1, server.node_exporter.address()),
            ]
        })
        .collect();
    let [one, two, three] = &servers[..] else { panic!("not three servers") };
    let mut i1 = Incident::start("i1", Version::V2, factor, &targets);
    let healthy = two.agent.wait_until("a healthy cluster", "controlplane_", 30 * SECOND, |s| {
        s.value("controlplane_etcd_voters_reachable", &[]) == Some(3.0)
            && s.value("controlplane_registry_keys", &[("resource", "orphans.longhorn.io")])
                == Some(0.0)
    });

    // Longhorn writes its orphans; the database grows with them.
    let fault =
        i1.fault("Longhorn writes 1,200 orphans", "after the outage, while cleaning up", || {
            cluster.put_many("/registry/longhorn.io/orphans/longhorn-system/orphan-", 1_200, 800);
        });
    let orphans = [("resource", "orphans.longhorn.io")];
    i1.signal(
        fault,
        "controlplane_registry_keys{resource=\"orphans.longhorn.io\"}",
        &[&one.agent, &two.agent, &three.agent],
        "controlplane_registry_keys",
        |s| s.sum("controlplane_registry_keys", &orphans) > 1_000.0,
    );
    i1.pages(fault, &[("ControlPlaneLonghornOrphans", "critical", "")], minutes(60));
    i1.stock(fault, &["etcdExcessiveDatabaseGrowth", "etcdDatabaseQuotaLowSpace"], "");
    i1.inhibited(
        "ControlPlaneLonghornOrphansGrowing",
        "",
        "ControlPlaneLonghornOrphans",
        minutes(10),
    );
    if full() {
        cluster.put_large(1, "/registry/longhorn.io/engines/", 150);
        let size = |s: &Scrape| s.value("controlplane_etcd_db_size_bytes", &[]).unwrap();
        let grown =
            two.agent.wait_until("the database", "controlplane_etcd_db", 20 * SECOND, |s| {
                size(s) > 200e6 && size(s) > 3.0 * size(&healthy)
            });
        i1.say(&format!("the database has {:.0} MB", size(&grown) / 1e6));
        i1.inhibited(
            "ControlPlaneEtcdDatabaseUnusual",
            "cp-2:10379",
            "ControlPlaneLonghornOrphans",
            minutes(20),
        );
    }

    // The disk of the first server becomes slow: one member far behind its peers.
    let through = cluster.leader();
    let quick =
        one.agent.scrape().sum("controlplane_fdatasync_stalls_total", &[("threshold", "0.1")]);
    let writer = cluster.keep_writing(through, "/registry/leases/l", 300, SECOND / 50);
    let fault = i1.fault(
        "a flush of one server's disk takes 0.15 s, so its syncs take 0.3 s and more; its peers' take milliseconds",
        "22:43, by a server that did not start",
        || disk.set_delay(SECOND * 15 / 100),
    );
    let counts = |s: &Scrape| s.sum("controlplane_fdatasync_stalls_total", &[("threshold", "0.1")]);
    i1.signal(
        fault,
        "controlplane_fdatasync_stalls_total{threshold=\"0.1\"}",
        &[&one.agent],
        "controlplane_fdatasync",
        |s| counts(s) >= quick + 1.0,
    );
    i1.pages(fault, &[("ControlPlaneDiskSyncSlow", "critical", "cp-1")], before_down);
    i1.stock(
        fault,
        &[
            "etcdHighFsyncDurations",
            "etcdHighCommitDurations",
            "etcdGRPCRequestsSlow",
            "etcdMemberCommunicationSlow",
            "etcdHighNumberOfFailedGRPCRequests",
        ],
        r#"instance="cp-1:2381""#,
    );
    i1.inhibited("ControlPlaneEtcdMemberSlow", "", "ControlPlaneDiskSyncSlow", minutes(30));

    // Its sectors fail, and k3s on it dies of one.
    let fault = i1.fault(
        "a sector of that disk cannot be read; k3s there dies by SIGBUS and does not come up again",
        "22:43, by a server that did not start",
        || {
            bad_sector(&disk, SECTOR);
            one.touch("/run/k3s-bus");
        },
    );
    i1.signal(
        fault,
        "controlplane_kernel_io_errors_total",
        &[&one.agent],
        "controlplane_kernel_io",
        |s| {
            let (device, read) = (("device", device.as_str()), ("operation", "read"));
            s.sum("controlplane_kernel_io_errors_total", &[device, read]) > 0.5
                && s.value("controlplane_kernel_io_error_last_sector", &[device])
                    == Some(SECTOR as f64)
        },
    );
    i1.pages(fault, &[("ControlPlaneKernelIOErrors", "critical", "cp-1")], before_down);
    i1.stock(
        fault,
        &["NodeSystemdServiceFailed", "NodeSystemdServiceCrashlooping"],
        r#"instance="cp-1:9100""#,
    );
    let exit = [("unit", UNIT), ("code", "killed"), ("status", "BUS")];
    one.agent.wait_until("the exit", "controlplane_systemd", 20 * SECOND, |s| {
        s.all("controlplane_systemd_unit_last_exit_info", &exit).len() == 1
    });
    i1.inhibited("ControlPlaneUnitDied", "cp-1:10379", "ControlPlaneKernelIOErrors", minutes(10));
    i1.inhibited(
        "ControlPlaneUnitStuckActivating",
        "cp-1:10379",
        "ControlPlaneKernelIOErrors",
        minutes(15),
    );
    i1.inhibited(
        "ControlPlaneDiskBadSectors",
        "cp-1:10379",
        "ControlPlaneKernelIOErrors",
        minutes(15),
    );
    disk.release();

    // The third server is not in the member list and waits for what does not come.
    let (third, _) = cluster.status(2).unwrap();
    if cluster.leader() == 2 {
        let (id, _) = cluster.status(1).unwrap();
        let endpoint = cluster.client_url(2);
        cluster.etcdctl(&["move-leader", &format!("{id:x}"), &format!("--endpoints={endpoint}")]);
    }
    drop(writer);
    let removed = format!("{third:x}");
    let nobody = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let fault = i1.fault(
        "a third server is not in the member list and stays in activating (start)",
        "22:43, by looking at that server",
        || {
            // Asked through another one: the removed member stops before it has answered.
            let endpoint = format!("--endpoints={}", cluster.client_url(1));
            cluster.etcdctl(&["member", "remove", &removed, &endpoint]);
            // It is set up anew: nothing remembers the old list, and no handshake with its etcd ends.
            let config = std::fs::read_to_string(three.agent.config_file()).unwrap();
            let silent = format!("https://{}", nobody.local_addr().unwrap());
            three.agent.write_config(&config.replace(&cluster.client_url(2), &silent));
            three.agent.signal(Signal::HUP);
            three.touch("/run/k3s-waits");
            three.container.systemctl(&["--no-block", "restart", UNIT]);
        },
    );
    i1.signal(
        fault,
        "controlplane_etcd_members_listed",
        &[&two.agent],
        "controlplane_etcd_members",
        |s| s.value("controlplane_etcd_members_listed", &[]) == Some(2.0),
    );
    i1.pages(
        fault,
        &[
            ("ControlPlaneEtcdMemberMissing", "critical", ""),
            ("ControlPlaneUnitStuckActivating", "critical", "cp-3"),
        ],
        before_down,
    );
    i1.stock(fault, &["etcdMembersDown", "etcdInsufficientMembers"], "");
    i1.inhibited(
        "ControlPlaneEtcdMemberDown",
        "cp-3:10379",
        "ControlPlaneUnitStuckActivating",
        minutes(10),
    );

    // One of the two that are left dies with its disk: no quorum.
    let all_paged = i1.started.elapsed().as_secs_f64() * factor;
    i1.notes.push(format!(
        "All causes had paged {} after the start of the replay; the cluster was whole until then.",
        human(all_paged)
    ));
    let fault = i1.fault(
        "one of the two members that are left dies with its disk: no quorum",
        "23:06, by an API that did not answer; working again at 07:25",
        || disk.set_error(5),
    );
    drop(cluster.try_etcdctl(&["put", "key", "value", "--command-timeout=3s"]));
    i1.signal(fault, "controlplane_etcd_has_leader 0", &[&two.agent], "controlplane_etcd", |s| {
        s.value("controlplane_etcd_has_leader", &[]) == Some(0.0)
            && s.value("controlplane_etcd_voters_reachable", &[]) == Some(1.0)
    });
    i1.pages(
        fault,
        &[
            ("ControlPlaneEtcdNoLeader", "critical", ""),
            ("ControlPlaneEtcdQuorumLost", "critical", ""),
        ],
        minutes(15),
    );
    i1.stock(fault, &["etcdNoLeader", "etcdInsufficientMembers"], "");
    i1.inhibited(
        "ControlPlaneEtcdMemberDown",
        "cp-1:10379",
        "ControlPlaneKernelIOErrors",
        minutes(10),
    );
    i1.never_inhibited("ControlPlaneEtcdNoLeader");
    i1.never_inhibited("ControlPlaneEtcdQuorumLost");

    crate::page::look(&one.agent, "i1");
    i1.picture("node");
    crate::check::show(&one.agent, "i1");

    // The last k3s gives up with exit code 0.
    let fault = i1.fault(
        "k3s on the last server ends with exit code 0",
        "during the night: `inactive (dead)`, `status=0`",
        || two.touch("/run/k3s-ends"),
    );
    let inactive = [("unit", UNIT), ("state", "inactive")];
    i1.signal(
        fault,
        "controlplane_systemd_unit_state{state=\"inactive\"}",
        &[&two.agent],
        "controlplane_systemd",
        |s| s.value("controlplane_systemd_unit_state", &inactive) == Some(1.0),
    );
    i1.pages(fault, &[("ControlPlaneUnitDown", "critical", "cp-2")], minutes(15));
    i1.stock(
        fault,
        &["NodeSystemdServiceFailed", "NodeSystemdServiceCrashlooping"],
        r#"instance="cp-2:9100""#,
    );

    // Repair, as k3s' --cluster-reset does it: the last member goes on alone with its data.
    let repaired =
        i1.repair("the last member starts as a cluster of its own, k3s on it is started");
    disk.release();
    cluster.kill(0);
    two.container.exec(&["rm", "/run/k3s-ends"]);
    two.container.systemctl(&["start", UNIT]);
    cluster.force_new(1);
    for name in ["ControlPlaneEtcdNoLeader", "ControlPlaneEtcdQuorumLost", "ControlPlaneUnitDown"] {
        i1.resolved(name, repaired, minutes(25));
    }
    i1.finish("I1: k3s, three servers, a failing virtual disk and an orphan flood");
}
