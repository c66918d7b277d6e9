//! Restarts that systemd does not see: those of kubeadm's, RKE2's and Talos' static pods, and of the processes that k0s
//! starts itself.
//!
//! kubelet numbers the logs of a container by its restarts (`/var/log/pods/kube-system_etcd-NODE_HASH/etcd/17.log`), so
//! the number is known while the API server is down. A static pod is told from others by the hash of its manifest, which
//! has no dashes; of several hashes the one whose log is the newest counts. k0s keeps no such number: there only the start
//! of each process tells.
//!
//! Reads names and times below `/var/log/pods`, no log, and of `/proc` name, command line and start of the processes, in a
//! child process. Nothing below the folder is followed that is a link.
//!
//! The kernel tells a start as the time since boot, so by the clock it moves whenever that is set, and looks like a restart.
//! Below k0s, where the starts are what counts, only `/proc` is read, so it is read on a thread, which keeps in mind what it
//! has told. A command line may keep that thread waiting for the process' memory, but not a dying agent: a kill ends it.
//! With `static_pod.dir` it is a child there too, which remembers nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::host::processes::{self, comm};
use crate::host::{Distribution, Host, Installation, read};
use crate::kept::{Kept, Shared};
use crate::metric::Metric;
use crate::sample::{Batch, SampleError};
use crate::sampler::{BlockingSampler, Build, SamplerDef, absolute, defaults, facts};

/// See the module's page.
pub static SAMPLER: SamplerDef = SamplerDef {
    about: "Restarts of static pods, and of the processes that k0s starts itself.",
    interval: Duration::from_secs(30),
    timeout: Duration::from_secs(5),
    metrics: &[RESTARTS.desc(), STARTED.desc()],
    defaults: defaults::<Options>,
    uses: |all| facts(all.primary().map(|node| (node.distribution, &node.data_dir))),
    build: |options, host| {
        let own: Options = options.parse()?;
        absolute("dir", &own.dir)?;
        let components = host.facts().primary().and_then(Components::of);
        let found = components.as_ref().filter(|found| found.in_pods).map(|_| PODS.into());
        let dir = own.dir.or(found);
        if dir.is_none() && components.is_none() {
            return Ok(Build::not_applicable(
                "the control plane of this node runs neither in static pods nor below k0s; set static_pod.dir to kubelet's folder of logs",
            ));
        }
        let told = TOLD.of(host.rootfs().to_owned());
        let sampler = StaticPods { host: host.clone(), dir, components, told };
        // A child would not know what it has told before, and no disk is touched without a folder.
        if sampler.dir.is_none() {
            return Ok(Build::blocking(sampler));
        }
        Ok(Build::isolated(sampler))
    },
    cost: "1.4 ms of CPU a run, most of it a child process",
};

static RESTARTS: Metric<2> = Metric::gauge(
    "controlplane_static_pod_restarts",
    "How often kubelet has restarted the container of this name (label process) in its static pod; from 0 again when the manifest is changed. At most 32 containers.",
    ["static_pod", "process"],
);
static STARTED: Metric<1> = Metric::gauge(
    "controlplane_static_pod_start_timestamp_seconds",
    "When this process of the control plane began, in Unix time; of several, the oldest. At most 8 processes.",
    ["process"],
);

/// Where kubelet keeps the logs of containers.
const PODS: &str = "/var/log/pods";
/// The namespace of all static pods of a control plane.
const NAMESPACE: &str = "kube-system";
/// Folders of static pods looked at; old ones stay until kubelet has cleared up.
const MAX_PODS: usize = 64;
/// Containers exported.
const MAX_CONTAINERS: usize = 32;
/// Names read of one pod or container.
const MAX_ENTRIES: usize = 256;

/// What was told of the processes below each root; a sampler that is built anew goes on with it.
static TOLD: Kept<PathBuf, Shared<Told>> = Kept::new();

/// The last start told of each name. It stays when the process ends, since there are at most eight names.
type Told = BTreeMap<&'static str, Start>;

/// What tells one process from the next of its name, and the time that is told for it.
#[derive(Debug, Clone, Copy)]
struct Start {
    /// Since boot, which no clock moves.
    since_boot: Duration,
    /// By the clock as it was when the process was first seen.
    time: SystemTime,
}

/// The section `static_pod`.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Options {
    /// Kubelet's folder of logs, instead of `/var/log/pods`.
    dir: Option<PathBuf>,
}

/// The processes that a distribution's control plane consists of.
struct Components {
    names: &'static [&'static str],
    /// What each one's command line mentions, and no other's of that name.
    mark: PathBuf,
    /// Whether they run in static pods.
    in_pods: bool,
}

impl Components {
    fn of(node: &Installation) -> Option<Self> {
        const IN_PODS: &[&str] = &[
            "etcd",
            "kube-apiserver",
            "kube-controller-manager",
            "kube-scheduler",
            "cloud-controller-manager",
        ];
        const OF_K0S: &[&str] = &[
            "etcd",
            "kine",
            "kube-apiserver",
            "kube-controller-manager",
            "kube-scheduler",
            "konnectivity-server",
            "kubelet",
            "containerd",
        ];
        let data = |usual: &str| node.data_dir.clone().unwrap_or_else(|| usual.into());
        let (names, mark, in_pods) = match node.distribution {
            Distribution::Kubeadm => (IN_PODS, "/etc/kubernetes/".into(), true),
            Distribution::Rke2 => (IN_PODS, data("/var/lib/rancher/rke2"), true),
            Distribution::Talos => (IN_PODS, "/system/secrets/".into(), true),
            Distribution::K0s => (OF_K0S, data("/var/lib/k0s"), false),
            _ => return None,
        };
        Some(Self { names, mark, in_pods })
    }
}

struct StaticPods {
    host: Host,
    dir: Option<PathBuf>,
    components: Option<Components>,
    told: Shared<Told>,
}

impl BlockingSampler for StaticPods {
    /// # Errors
    ///
    /// When nothing at all could be read. A pod that cannot be is a part that failed.
    fn sample(&mut self, out: &mut Batch) -> Result<(), SampleError> {
        if let Some(components) = &self.components {
            self.starts(components, out);
        }
        let Some(dir) = &self.dir else { return Ok(()) };
        match self.restarts(dir, out) {
            Err(error) if out.series(&STARTED) == 0 => return Err(error),
            Err(error) => out.fail(error),
            Ok(()) => {}
        }
        Ok(())
    }
}

impl StaticPods {
    fn starts(&self, components: &Components, out: &mut Batch) {
        let names: BTreeSet<&str> = components.names.iter().map(|name| comm(name)).collect();
        let mark = components.mark.to_string_lossy();
        let ours = |process: &processes::Process| {
            process.mentions(&mark) && (components.in_pods || !process.contained())
        };
        let boot = || processes::boot_time(&self.host).or(self.host.facts().boot_time);
        let before = boot();
        let started = processes::started(&self.host, &names, ours);
        // It was set while they were read: nobody knows by which clock they were told, and the next run does.
        let Some(boot) = boot().filter(|after| before == Some(*after)) else { return };
        let boot = UNIX_EPOCH + Duration::from_secs(boot);
        let mut told = self.told.lock();
        for &name in components.names {
            let Some(time) = started.get(comm(name)).copied() else { continue };
            let seen = Start { since_boot: time.duration_since(boot).unwrap_or_default(), time };
            let known = told.get(name).filter(|known| known.since_boot == seen.since_boot).copied();
            if known.is_none() {
                // A child has no log; there the scheduler says it.
                tracing::warn!(sampler = "static_pod", kind = "process_started", "{name} started");
            }
            let start = known.unwrap_or(seen);
            told.insert(name, start);
            out.push(&STARTED, [name], start.time);
            out.event(start.time, "process_started", format!("{name} started"));
        }
    }

    fn restarts(&self, dir: &Path, out: &mut Batch) -> Result<(), SampleError> {
        let failed = |error| SampleError::read(dir, error);
        let names = match read::names(&self.host, dir) {
            // Kubelet makes it with the first pod.
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            other => other.map_err(failed)?,
        };
        let inside = self.host.path(self.host.resolve(dir).map_err(failed)?);
        let pods: Vec<_> =
            names.iter().filter_map(|name| Some((name, static_pod(name)?))).collect();
        out.dropped(pods.len().saturating_sub(MAX_PODS) as u64);
        let mut newest: BTreeMap<(&str, String), (SystemTime, u64)> = BTreeMap::new();
        for (folder, pod) in pods.into_iter().take(MAX_PODS) {
            match containers(&inside.join(folder)) {
                Ok(containers) => {
                    for (container, log) in containers {
                        let known = newest.entry((pod, container)).or_insert(log);
                        *known = log.max(*known);
                    }
                }
                Err(error) => out.fail(SampleError::read(dir.join(folder), error)),
            }
        }
        out.dropped(newest.len().saturating_sub(MAX_CONTAINERS) as u64);
        for ((pod, container), (_, restarts)) in newest.into_iter().take(MAX_CONTAINERS) {
            out.push(&RESTARTS, [pod, &container], restarts);
        }
        Ok(())
    }
}

/// The name of a static pod, of its folder: `NAMESPACE_NAME_HASH`. Other pods have a UUID there.
fn static_pod(folder: &str) -> Option<&str> {
    let (namespace, rest) = folder.split_once('_')?;
    let (name, uid) = rest.rsplit_once('_')?;
    let is_hash = uid.len() >= 16 && uid.bytes().all(|byte| byte.is_ascii_hexdigit());
    (namespace == NAMESPACE && is_hash && !name.is_empty()).then_some(name)
}

/// The containers of a pod, each with the time of its newest log and that log's number.
fn containers(pod: &Path) -> io::Result<Vec<(String, (SystemTime, u64))>> {
    let mut found = Vec::new();
    for container in entries(pod)? {
        let folder = pod.join(&container);
        let logs = entries(&folder)?;
        let Some(restarts) = logs.iter().filter_map(|name| number(name)).max() else { continue };
        // Of docker's logs there are only links, whose own time is as good.
        match fs::symlink_metadata(folder.join(format!("{restarts}.log"))) {
            Ok(log) => found.push((container, (log.modified()?, restarts))),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// The number of a log, and not that of one that was rotated (`3.log.20261128-101500.gz`).
fn number(log: &str) -> Option<u64> {
    log.strip_suffix(".log")?.parse().ok()
}

/// The names in a folder; none where it is no folder, or has gone meanwhile.
fn entries(folder: &Path) -> io::Result<Vec<String>> {
    let read = fs::symlink_metadata(folder).and_then(|metadata| {
        if metadata.is_dir() { fs::read_dir(folder).map(Some) } else { Ok(None) }
    });
    let read = match read {
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        other => other?,
    };
    let names = read.into_iter().flatten().take(MAX_ENTRIES);
    Ok(names.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::host::Facts;
    use crate::sampler::{self, Driver};

    const HASH: &str = "e77889d75ec8be65235fe5a966d3f808";
    const OLD: &str = "5ee6f69d8b8410788f9b10a99510e832";
    const UUID: &str = "0a1b2c3d-1111-2222-3333-444455556666";

    struct Root(tempfile::TempDir);

    impl Root {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn write(&self, path: &str, text: &str) -> PathBuf {
            let path = self.0.path().join(path.trim_start_matches('/'));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            path
        }

        fn log(&self, folder: &str, container: &str, log: &str, seconds: u64) {
            let path = self.write(&format!("{PODS}/{folder}/{container}/{log}"), "SECRET");
            let time = UNIX_EPOCH + Duration::from_secs(seconds);
            fs::File::options().append(true).open(path).unwrap().set_modified(time).unwrap();
        }

        fn process(&self, pid: u32, name: &str, command: &str, cgroup: &str, after_boot: u64) {
            let start = after_boot * rustix::param::clock_ticks_per_second();
            let mut fields = vec!["0".to_owned(); 52];
            fields[0] = pid.to_string();
            fields[1] = format!("({name})");
            fields[2] = "S".to_owned();
            fields[21] = start.to_string();
            self.write(&format!("proc/{pid}/stat"), &format!("{}\n", fields.join(" ")));
            self.write(&format!("proc/{pid}/comm"), &format!("{name}\n"));
            self.write(&format!("proc/{pid}/cmdline"), command);
            self.write(&format!("proc/{pid}/cgroup"), cgroup);
        }

        fn driver(
            &self,
            distribution: Distribution,
            own: serde_json::Value,
        ) -> Result<Driver, String> {
            let installations = vec![Installation::new(distribution)];
            let facts = Facts { installations, boot_time: Some(1_000_000), ..Facts::default() };
            let own = own.as_object().cloned().unwrap_or_default();
            let (interval, timeout) = (SAMPLER.interval, SAMPLER.timeout);
            let options = sampler::Options { interval, timeout, own };
            match (SAMPLER.build)(&options, &Host::at(self.0.path()).with_facts(facts)) {
                Ok(Build::Run(driver)) => Ok(driver),
                Ok(Build::NotApplicable(why)) => Err(why),
                Err(error) => Err(format!("{}: {}", error.key, error.what)),
            }
        }

        fn build(
            &self,
            distribution: Distribution,
            own: serde_json::Value,
        ) -> Result<Box<dyn BlockingSampler>, String> {
            match self.driver(distribution, own)? {
                Driver::Blocking(sampler) | Driver::Isolated(sampler) => Ok(sampler),
                Driver::Async(_) => panic!("another driver"),
            }
        }

        fn run(&self, distribution: Distribution) -> Batch {
            let mut out = Batch::default();
            self.build(distribution, serde_json::json!({})).unwrap().sample(&mut out).unwrap();
            out
        }
    }

    #[test]
    fn the_highest_log_of_the_newest_manifest_tells_the_restarts() {
        let root = Root::new();
        let etcd = format!("kube-system_etcd-cp-1_{HASH}");
        for (n, log) in
            ["9.log", "10.log", "9.log.20261128-101500.gz", "99.log.gz", "x.log"].iter().enumerate()
        {
            root.log(&etcd, "etcd", log, 2_000 + n as u64);
        }
        root.log(&format!("kube-system_etcd-cp-1_{OLD}"), "etcd", "41.log", 1_000);
        root.log(&format!("kube-system_kube-vip-cp-1_{HASH}"), "kube-vip", "0.log", 2_000);
        // Neither another pod, nor another namespace, nor what is no folder.
        root.log(&format!("kube-system_coredns-7d9_{UUID}"), "coredns", "7.log", 2_000);
        root.log(&format!("default_shop-cp-1_{HASH}"), "shop", "7.log", 2_000);
        root.write(&format!("{PODS}/kube-system_file-cp-1_{HASH}"), "");
        let out = root.run(Distribution::Kubeadm);
        assert_eq!(out.value(&RESTARTS, ["etcd-cp-1", "etcd"]), Some(10.0));
        assert_eq!(out.value(&RESTARTS, ["kube-vip-cp-1", "kube-vip"]), Some(0.0));
        assert_eq!((out.series(&RESTARTS), out.failures().len()), (2, 0));
    }

    #[test]
    fn no_link_is_followed_and_a_missing_folder_is_no_failure() {
        let root = Root::new();
        assert_eq!(root.run(Distribution::Rke2).all().len(), 0);
        let outside = tempfile::tempdir().unwrap();
        fs::create_dir_all(outside.path().join("etcd")).unwrap();
        fs::write(outside.path().join("etcd/5.log"), "").unwrap();
        let pods = root.0.path().join("var/log/pods");
        fs::create_dir_all(pods.join(format!("kube-system_etcd-cp-1_{HASH}"))).unwrap();
        symlink(outside.path(), pods.join(format!("kube-system_a-cp-1_{HASH}"))).unwrap();
        let inside = pods.join(format!("kube-system_etcd-cp-1_{HASH}/etcd"));
        symlink(outside.path().join("etcd"), &inside).unwrap();
        assert_eq!(root.run(Distribution::Rke2).all().len(), 0);
        // A log of docker's is a link itself.
        fs::remove_file(&inside).unwrap();
        fs::create_dir(&inside).unwrap();
        symlink("/var/lib/docker/containers/x/x-json.log", inside.join("3.log")).unwrap();
        let out = root.run(Distribution::Rke2);
        assert_eq!(out.value(&RESTARTS, ["etcd-cp-1", "etcd"]), Some(3.0));
    }

    #[test]
    fn the_start_of_each_process_is_told_and_that_of_a_users_own_is_not() {
        let root = Root::new();
        let pod = "0::/kubepods.slice/pod1/x.scope\n";
        root.process(10, "etcd", "etcd\0--data-dir=/data\0", pod, 5);
        root.process(
            11,
            "etcd",
            "etcd\0--cert-file=/etc/kubernetes/pki/etcd/server.crt\0",
            pod,
            70,
        );
        let command =
            "kube-controller-manager\0--kubeconfig=/etc/kubernetes/controller-manager.conf\0";
        root.process(12, "kube-controller", command, pod, 80);
        let mut out = root.run(Distribution::Kubeadm);
        assert_eq!(out.value(&STARTED, ["etcd"]), Some(1_000_070.0));
        assert_eq!(out.value(&STARTED, ["kube-controller-manager"]), Some(1_000_080.0));
        assert_eq!(out.series(&STARTED), 2);
        let events: Vec<_> = out.take_events().into_iter().map(|event| event.text).collect();
        assert_eq!(events, ["etcd started", "kube-controller-manager started"]);
    }

    #[test]
    fn the_children_of_k0s_are_found_without_pods() {
        let root = Root::new();
        let unit = "0::/system.slice/k0scontroller.service\n";
        root.process(10, "etcd", "/var/lib/k0s/bin/etcd\0--data-dir=/var/lib/k0s/etcd\0", unit, 30);
        root.process(11, "kubelet", "/usr/bin/kubelet\0", unit, 40);
        root.log(&format!("kube-system_etcd-cp-1_{HASH}"), "etcd", "1.log", 2_000);
        let out = root.run(Distribution::K0s);
        assert_eq!(out.value(&STARTED, ["etcd"]), Some(1_000_030.0));
        assert_eq!(out.all().len(), 1);
    }

    #[test]
    fn a_clock_that_is_set_is_no_restart_and_a_new_process_has_the_time_of_now() {
        let root = Root::new();
        let unit = "0::/system.slice/k0scontroller.service\n";
        let etcd = |pid, after_boot| {
            root.process(pid, "etcd", "/var/lib/k0s/bin/etcd\0", unit, after_boot);
        };
        let set = |boot: u64| {
            root.write("proc/stat", &format!("cpu 1 2\nbtime {boot}\n"));
        };
        // Each time by a sampler that was built anew, as a reload does it.
        let told = || root.run(Distribution::K0s).value(&STARTED, ["etcd"]);
        set(1_000_000);
        etcd(10, 30);
        assert_eq!(told(), Some(1_000_030.0));
        for boot in [1_000_002, 999_000] {
            set(boot);
            assert_eq!(told(), Some(1_000_030.0), "the kernel began at {boot}");
        }
        fs::remove_dir_all(root.0.path().join("proc/10")).unwrap();
        assert_eq!(told(), None);
        etcd(11, 50);
        assert_eq!(told(), Some(999_050.0));
        set(1_000_000);
        assert_eq!(told(), Some(999_050.0));
    }

    #[test]
    fn what_reads_a_folder_does_so_in_a_child_and_the_children_of_k0s_are_watched_on_a_thread() {
        let root = Root::new();
        let driver = |distribution, own| root.driver(distribution, own).unwrap();
        let found = driver(Distribution::Kubeadm, serde_json::json!({}));
        assert!(matches!(found, Driver::Isolated(_)));
        let found = driver(Distribution::K0s, serde_json::json!({"dir": "/pods"}));
        assert!(matches!(found, Driver::Isolated(_)));
        let found = driver(Distribution::K0s, serde_json::json!({}));
        assert!(matches!(found, Driver::Blocking(_)));
    }

    #[test]
    fn elsewhere_a_folder_must_be_told() {
        let root = Root::new();
        let none = root.build(Distribution::K3s, serde_json::json!({}));
        assert!(none.is_err_and(|why| why.contains("static_pod.dir")));
        let relative = root.build(Distribution::K3s, serde_json::json!({"dir": "pods"}));
        assert!(relative.is_err_and(|why| why.contains("no absolute path")));
        assert!(root.build(Distribution::K3s, serde_json::json!({"dir": "/pods"})).is_ok());
        root.write("/pods", "");
        let mut sampler =
            root.build(Distribution::K3s, serde_json::json!({"dir": "/pods"})).unwrap();
        assert!(sampler.sample(&mut Batch::default()).is_err());
    }

    #[test]
    fn more_containers_than_the_cap_are_counted() {
        let root = Root::new();
        for n in 0..40 {
            root.log(&format!("kube-system_p{n}-cp-1_{HASH}"), "c", "0.log", 2_000);
        }
        let out = root.run(Distribution::Kubeadm);
        assert_eq!((out.series(&RESTARTS), out.dropped_count()), (MAX_CONTAINERS, 8));
    }
}
