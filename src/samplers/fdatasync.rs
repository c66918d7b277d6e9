//! How long a sync takes on the datastore's disk, how long the one in flight has taken, and the
//! datastore's own threads that are stuck.
//!
//! One standing child process per path appends 2300 bytes to an unnamed file every `interval` and
//! calls `fdatasync`, as etcd does (see `probe`). Its file is never inside etcd's `member/`, and
//! nothing is left behind however the child ends. The run itself reads memory, `/proc/diskstats`, and
//! the status of the datastore's threads: it waits for no disk, and never goes stale. Only the first
//! run waits for the first sync, one second at most, so that the first scrape shows it.
//!
//! Without configuration the datastore's WAL directory is what is measured; the file goes to the
//! directory above where that is the same device, or to the state directory of the agent's unit, if it
//! may write nowhere else. On a node without a local datastore it is `/var/lib`. Configured paths are
//! measured as they are, wherever they lie. Nothing is measured where it would mislead: in memory, on a
//! `volatile` overlay, with little space left, and without unnamed files. The reason is then in the
//! sampler's state, and counts as a failure of kind `call`.
//!
//! The durations are time-weighted: a stall of 10 s is met by the probe with certainty, while etcd
//! would have seen one slow sync among thousands.

mod flushes;
mod passive;
mod place;
mod probe;
mod threads;
mod watch;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::host::{Facts, Host, Mounts};
use crate::metric::Metric;
use crate::sample::{Batch, SampleError};
use crate::sampler::{BlockingSampler, Build, OptionsError, SamplerDef, defaults, facts};

use passive::Passive;
use place::{Device, Target};
use probe::Question;
use watch::{Cells, STALLS, Watch};

pub use probe::run as run_probe;

/// See the module's page.
pub static SAMPLER: SamplerDef = SamplerDef {
    about: "Sync latency of the datastore's disk, from a probe that writes as etcd does.",
    interval: Duration::from_secs(5),
    timeout: Duration::from_secs(1),
    metrics: &[
        DURATION.desc(),
        MAX.desc(),
        STALLS_TOTAL.desc(),
        INFLIGHT.desc(),
        FAILURES.desc(),
        LAST_FAILURE.desc(),
        DEVICE_FLUSHES.desc(),
        DEVICE_FLUSH_SECONDS.desc(),
        THREAD_BLOCKED.desc(),
        DATASTORE_DURATION.desc(),
        DATASTORE_STALLS.desc(),
        DATASTORE_FAILURES.desc(),
        DATASTORE_LAST_FAILURE.desc(),
        DATASTORE_INFLIGHT.desc(),
        DATASTORE_SOURCE.desc(),
        DEVICE_REQUESTS.desc(),
        DEVICE_ERRORS.desc(),
        DEVICE_LAST_ERROR.desc(),
    ],
    defaults: defaults::<Options>,
    uses: |all| {
        let nodes: Vec<_> = all
            .alive()
            .map(|n| (n.datastore, &n.datastore_dir, &n.wal_dir, &n.processes))
            .collect();
        facts((&all.datastore, nodes))
    },
    build: |options, host| {
        let own: Options = options.parse()?;
        check(&own.paths)?;
        let probes = place::targets(&own.paths, host.facts(), &state_directories())
            .into_iter()
            .map(|target| Probe::new(target, host, options.interval))
            .collect();
        let origin = host.facts().datastore.as_ref().and_then(|place| place.origin.clone());
        let threads = threads::Threads::new(host.path("/proc"), processes(host.facts()), origin);
        let passive = passive::Source::new(own.passive, host);
        Ok(Build::blocking(Fdatasync { host: host.clone(), probes, threads, passive }))
    },
    cost: "1 ms of CPU a run with 60 threads of the datastore, and 0.3 ms in the child for each sync; \
           5 MiB resident for each child; a sync writes 13 KiB on ext4, 7 KiB on xfs, 74 KiB on btrfs",
};

static DURATION: Metric<2> = Metric::histogram(
    "controlplane_fdatasync_duration_seconds",
    "Syncs of the probe that ended well. A sync that was in flight enters with its full duration.",
    ["path", "device"],
);
static MAX: Metric<2> = Metric::gauge(
    "controlplane_fdatasync_max_seconds",
    "The longest sync of the last 60 s, the one in flight included.",
    ["path", "device"],
);
static STALLS_TOTAL: Metric<3> = Metric::counter(
    "controlplane_fdatasync_stalls_total",
    "Syncs that took at least the threshold, in seconds; counted when they pass it, finished or not.",
    ["path", "device", "threshold"],
);
static INFLIGHT: Metric<2> = Metric::gauge(
    "controlplane_fdatasync_inflight_seconds",
    "How long the sync that has not ended yet has taken so far; 0 between syncs.",
    ["path", "device"],
);
static FAILURES: Metric<4> = Metric::counter(
    "controlplane_fdatasync_failures_total",
    "Rounds of the probe that failed, by step (open, fallocate, write, sync) and errno.",
    ["path", "device", "step", "errno"],
);
static LAST_FAILURE: Metric<2> = Metric::gauge(
    "controlplane_fdatasync_failure_last_timestamp_seconds",
    "When the probe failed last, in Unix time.",
    ["path", "device"],
);
static DEVICE_FLUSHES: Metric<1> = Metric::counter(
    "controlplane_fdatasync_device_flushes_total",
    "Flush requests that the disk completed since boot. From /proc/diskstats, field 19.",
    ["device"],
);
static DEVICE_FLUSH_SECONDS: Metric<1> = Metric::counter(
    "controlplane_fdatasync_device_flush_seconds_total",
    "Time that flush requests took since boot. From /proc/diskstats, field 20.",
    ["device"],
);
static THREAD_BLOCKED: Metric<1> = Metric::gauge(
    "controlplane_fdatasync_thread_blocked_seconds",
    "How long a thread of the datastore has been blocked in the kernel (state D) without a context \
     switch; 0 when none is.",
    ["process"],
);

static DATASTORE_DURATION: Metric<3> = Metric::histogram(
    "controlplane_fdatasync_datastore_duration_seconds",
    "What the datastore's own syncs took, as the kernel saw them: fdatasync and fsync from entry to return, and dqlite's asynchronous writes. By file: wal, db, or unknown without the right to look. Weighted by operation, where the probe's are weighted by time.",
    ["process", "file", "op"],
);
static DATASTORE_STALLS: Metric<2> = Metric::counter(
    "controlplane_fdatasync_datastore_stalls_total",
    "Syncs of the datastore's log that took longer than the threshold, in seconds; counted when they have ended.",
    ["process", "threshold"],
);
static DATASTORE_FAILURES: Metric<3> = Metric::counter(
    "controlplane_fdatasync_datastore_failures_total",
    "Syncs of the datastore that the kernel answered with an error.",
    ["process", "file", "op"],
);
static DATASTORE_LAST_FAILURE: Metric<1> = Metric::gauge(
    "controlplane_fdatasync_datastore_failure_last_timestamp_seconds",
    "When a sync of the datastore was last seen to fail, in Unix time.",
    ["process"],
);
static DATASTORE_INFLIGHT: Metric<1> = Metric::gauge(
    "controlplane_fdatasync_datastore_inflight_seconds",
    "How long the datastore's oldest sync that has not ended yet has taken so far; 0 when none is under way.",
    ["process"],
);
static DATASTORE_SOURCE: Metric<2> = Metric::info(
    "controlplane_fdatasync_datastore_source_info",
    "That syncs of the datastore's own have been counted within five minutes, and how they are seen: fentry, or tracepoint, which slows every system call of the node a little. The device is that of the datastore, under the probe's name for it, or empty where that is not known.",
    ["source", "device"],
);

static DEVICE_REQUESTS: Metric<2> = Metric::histogram(
    "controlplane_fdatasync_device_request_duration_seconds",
    "Requests that a disk of the datastore answered well, from when the kernel handed them to its driver. By op: read, write, flush, discard, other.",
    ["device", "op"],
);
static DEVICE_ERRORS: Metric<3> = Metric::counter(
    "controlplane_fdatasync_device_errors_total",
    "Requests of any disk that failed, as the block layer saw them, by its status: medium, ioerr, timeout, transport, target, protection, nospc, again, notsupp, other.",
    ["device", "op", "status"],
);
static DEVICE_LAST_ERROR: Metric<1> = Metric::gauge(
    "controlplane_fdatasync_device_error_last_timestamp_seconds",
    "When a request of a disk of the datastore was last seen to fail, in Unix time; again, notsupp and refused discards are no failures.",
    ["device"],
);

/// The datastore's processes where detection names none.
const PROCESSES: [&str; 4] = ["etcd", "k3s-server", "k8s-dqlite", "kine"];
/// More paths than this are a mistake: each is a process.
const MAX_PATHS: usize = 16;
/// How long the first run waits for the first sync.
const FIRST: Duration = Duration::from_secs(1);

/// The section `fdatasync`.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Options {
    /// Directories whose filesystems are measured; empty: the datastore's.
    #[serde(deserialize_with = "crate::config::list")]
    paths: Vec<PathBuf>,
    /// Whether the datastore's own syncs are seen in the kernel: `auto`, where that costs other system calls nothing;
    /// `tracepoints`, where it slows each of them a little as well; `off`.
    passive: Passive,
}

/// Each path to probe, with the host directories in which the probe may create its file: one of them
/// that is on the path's device is enough.
pub fn directories(
    options: &crate::sampler::Options,
    facts: &Facts,
) -> Vec<(PathBuf, Vec<PathBuf>)> {
    let own: Options = options.parse().unwrap_or_default();
    place::targets(&own.paths, facts, &state_directories())
        .into_iter()
        .map(|target| (target.path, target.directories))
        .collect()
}

/// What a systemd unit's `StateDirectory=` gave the agent: nobody but the agent writes there.
fn state_directories() -> Vec<PathBuf> {
    let given = std::env::var_os("STATE_DIRECTORY").unwrap_or_default();
    std::env::split_paths(&given).filter(|path| path.is_absolute()).collect()
}

fn check(paths: &[PathBuf]) -> Result<(), OptionsError> {
    if paths.len() > MAX_PATHS {
        let what = format!("at most {MAX_PATHS} paths, each is probed by a process of its own");
        return Err(OptionsError::new("paths", what));
    }
    for path in paths {
        let wrong = if !path.is_absolute() {
            "must be absolute"
        } else if place::is_inside_member(path) {
            "is inside etcd's own directory; give the one that holds member/"
        } else {
            continue;
        };
        return Err(OptionsError::new("paths", format!("{} {wrong}", path.display())));
    }
    Ok(())
}

fn processes(all: &Facts) -> Vec<String> {
    let named: BTreeSet<&String> = all.alive().flat_map(|n| &n.processes).collect();
    if named.is_empty() {
        return PROCESSES.map(ToOwned::to_owned).to_vec();
    }
    named.into_iter().cloned().collect()
}

/// A path and its child.
struct Probe {
    cells: Arc<Cells>,
    question: Question,
    watch: Option<Watch>,
}

impl Probe {
    fn new(target: Target, host: &Host, every: Duration) -> Self {
        let cells = Cells::of(host.path(&target.path));
        let Target { path, directories, device } = target;
        if device.is_some() {
            cells.figures().device.clone_from(&device);
        }
        let rootfs = host.rootfs().to_owned();
        let question = Question { rootfs, path, directories, device, every };
        Self { cells, question, watch: None }
    }

    /// Starts the child, if it was not started before; whether it did.
    fn start(&mut self) -> bool {
        let first = self.watch.is_none();
        if first {
            self.watch = Some(Watch::start(Arc::clone(&self.cells), self.question.clone()));
        }
        first
    }

    /// The device as far as it is known; of a disk that does not answer only what is mounted.
    fn device(&self, mounts: Option<&Mounts>) -> Device {
        if let Some(device) = &self.cells.figures().device {
            return device.clone();
        }
        let mount = mounts.and_then(|mounts| mounts.holder(&self.question.path));
        mount.map_or_else(Device::unknown, |mount| Device::of(&[], &[], &mount.source))
    }

    fn report(&self, device: &str, out: &mut Batch) {
        let path = &*self.question.path.to_string_lossy();
        for (time, kind, text) in self.cells.take_events() {
            out.event(time, kind, text);
        }
        let worst = self.cells.worst(Instant::now());
        let figures = self.cells.figures();
        if let Some(trouble) = &figures.trouble {
            out.fail(SampleError::call(format!("the sync probe of {path}"), trouble));
        }
        if figures.trouble.is_none() || figures.tried {
            out.age(&INFLIGHT, [path, device], &self.cells.age);
            out.histogram(&DURATION, [path, device], &figures.histogram);
            for ((_, threshold), count) in STALLS.iter().zip(figures.stalls) {
                out.push(&STALLS_TOTAL, [path, device, threshold], count);
            }
        }
        if let Some(worst) = worst {
            out.push(&MAX, [path, device], worst);
        }
        for ((step, errno), count) in &figures.failures {
            out.push(&FAILURES, [path, device, step, errno], *count);
        }
        if let Some(time) = figures.last_failure {
            out.push(&LAST_FAILURE, [path, device], time);
        }
    }
}

struct Fdatasync {
    host: Host,
    probes: Vec<Probe>,
    threads: threads::Threads,
    passive: passive::Source,
}

impl BlockingSampler for Fdatasync {
    /// # Errors
    ///
    /// None: what fails is a part, and the figures of the rest are there.
    fn sample(&mut self, out: &mut Batch) -> Result<(), SampleError> {
        let deadline = Instant::now() + FIRST;
        let started: Vec<bool> = self.probes.iter_mut().map(Probe::start).collect();
        for (probe, _) in self.probes.iter().zip(started).filter(|(_, first)| *first) {
            probe.cells.wait_for_first(deadline);
        }
        let unknown = self.probes.iter().any(|probe| probe.cells.figures().device.is_none());
        let mounts = unknown.then(|| Mounts::read(&self.host).ok()).flatten();
        let mut disks = BTreeSet::new();
        let mut devices = BTreeSet::new();
        for probe in &self.probes {
            let device = probe.device(mounts.as_ref());
            probe.report(&device.label, out);
            disks.extend(device.disks);
            devices.insert(device.label);
        }
        if let Some(place) = &self.host.facts().datastore {
            disks.extend(place.disks.iter().cloned());
        }
        self.flushes(&disks.iter().cloned().collect::<Vec<_>>(), out);
        for (process, blocked) in self.threads.look(Instant::now()) {
            out.push(&THREAD_BLOCKED, [&process], blocked);
        }
        devices.extend(disks);
        let own = place::of_datastore(self.host.facts());
        self.passive.look(self.threads.processes(), own.as_ref(), &devices, out);
        Ok(())
    }
}

impl Fdatasync {
    fn flushes(&self, disks: &[String], out: &mut Batch) {
        if disks.is_empty() {
            return;
        }
        let path = Path::new("/proc/diskstats");
        match std::fs::read_to_string(self.host.path(path)) {
            Ok(text) => {
                for disk in flushes::parse(&text, disks) {
                    out.push(&DEVICE_FLUSHES, [disk.disk], disk.count);
                    let time = Duration::from_millis(disk.millis);
                    out.push(&DEVICE_FLUSH_SECONDS, [disk.disk], time);
                }
            }
            Err(error) => out.fail(SampleError::read(path, error)),
        }
    }
}
