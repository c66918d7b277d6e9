//! The agent itself and the node it speaks for: version, distribution, boot time, own resources.
//!
//! Reads `/proc/self` of the agent (three small files, about 30 µs) and the facts of detection. It
//! fails where `/proc` is not mounted, and while detection cannot look at the node's files, as when their disk hangs; all
//! other figures are there all the same.
//!
//! Tells the timeline when the node started, once, though the agent may have started long after; once more where a machine
//! has learnt what time it is soon after its start.

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use procfs::FromRead;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::clock::has_learnt_the_time;
use crate::host::Host;
use crate::metric::Metric;
use crate::sample::{Batch, Number, SampleError};
use crate::sampler::{BlockingSampler, Build, SamplerDef, defaults, facts};

/// See the module's page.
pub static SAMPLER: SamplerDef = SamplerDef {
    about: "The agent itself and the node it speaks for.",
    interval: Duration::from_secs(5),
    timeout: Duration::from_secs(1),
    metrics: &[
        BUILD.desc(),
        NODE.desc(),
        BOOT.desc(),
        CPU.desc(),
        RSS.desc(),
        VIRTUAL.desc(),
        FDS.desc(),
        MAX_FDS.desc(),
        THREADS.desc(),
        START.desc(),
    ],
    defaults: defaults::<Options>,
    uses: |all| facts((&all.hostname, all.boot_time, &all.installations, &all.unseen)),
    build: |options, host| {
        let _: Options = options.parse()?;
        Ok(Build::blocking(Exporter { host: host.clone(), boot_told: Arc::clone(&BOOT_TOLD) }))
    },
    cost: "0.1 ms a run; reads three files of /proc/self",
};

static BUILD: Metric<2> = Metric::info(
    "controlplane_exporter_build_info",
    "Version and source revision of the agent.",
    ["version", "revision"],
);
static NODE: Metric<5> = Metric::info(
    "controlplane_exporter_node_info",
    "What this node was found to be. From the host's files.",
    ["hostname", "distribution", "version", "datastore", "role"],
);
static BOOT: Metric<0> = Metric::gauge(
    "controlplane_exporter_node_boot_timestamp_seconds",
    "When the node's kernel started, in Unix time. From /proc/stat.",
    [],
);
static CPU: Metric<0> =
    Metric::counter("process_cpu_seconds_total", "CPU time of the agent, user and system.", []);
static RSS: Metric<0> =
    Metric::gauge("process_resident_memory_bytes", "Resident memory of the agent.", []);
static VIRTUAL: Metric<0> =
    Metric::gauge("process_virtual_memory_bytes", "Virtual memory of the agent.", []);
static FDS: Metric<0> = Metric::gauge("process_open_fds", "Open file descriptors.", []);
static MAX_FDS: Metric<0> =
    Metric::gauge("process_max_fds", "File descriptors that the agent may open.", []);
static THREADS: Metric<0> = Metric::gauge("process_threads", "Threads of the agent.", []);
static START: Metric<0> =
    Metric::gauge("process_start_time_seconds", "When the agent started, in Unix time.", []);

/// It has no keys of its own.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Options {}

/// The revision that the build was told, for example by `REVISION=$(git rev-parse HEAD)`.
pub fn revision() -> &'static str {
    // Empty where make finds no git.
    option_env!("REVISION").filter(|revision| !revision.is_empty()).unwrap_or("unknown")
}

/// The start of the node that was told, 0 for none. It outlives the sampler.
static BOOT_TOLD: LazyLock<Arc<AtomicU64>> = LazyLock::new(Arc::default);

struct Exporter {
    host: Host,
    /// See [`BOOT_TOLD`].
    boot_told: Arc<AtomicU64>,
}

impl Exporter {
    /// Tells of the boot if that was not told yet. No process outlives one: where the boot time is another one later, the
    /// clock was set, from which the kernel computes it. It is told again only where a machine that is up for so many seconds
    /// has just learnt what time it is.
    fn tell_boot(&self, boot: u64, up: u64, out: &mut Batch) {
        let told = self.boot_told.load(Ordering::Relaxed);
        let step = Duration::from_secs(told.abs_diff(boot));
        if told != 0 && !has_learnt_the_time(step, Duration::from_secs(up)) {
            return;
        }
        self.boot_told.store(boot.max(1), Ordering::Relaxed);
        let release = fs::read_to_string(self.host.path("/proc/sys/kernel/osrelease"));
        let kernel = release.map(|text| format!(" (kernel {})", text.trim())).unwrap_or_default();
        let at = UNIX_EPOCH.checked_add(Duration::from_secs(boot));
        out.event(at.unwrap_or(UNIX_EPOCH), "reboot", format!("the node started{kernel}"));
    }
}

impl BlockingSampler for Exporter {
    fn sample(&mut self, out: &mut Batch) -> Result<(), SampleError> {
        let all = self.host.facts();
        out.info(&BUILD, [env!("CARGO_PKG_VERSION"), revision()]);
        let nothing = if all.unseen.is_some() { "unknown" } else { "none" };
        let node = all.primary();
        out.info(
            &NODE,
            [
                &all.hostname,
                node.map_or(nothing, |n| n.distribution.as_str()),
                node.and_then(|n| n.version.as_deref()).unwrap_or("unknown"),
                node.map_or("unknown", |n| n.datastore.as_str()),
                node.map_or("unknown", |n| n.role.as_str()),
            ],
        );
        if let Some(boot) = all.boot_time {
            out.push(&BOOT, [], boot);
            let up = clock_gettime(ClockId::Boottime).tv_sec.unsigned_abs();
            self.tell_boot(boot, up, out);
        }
        if let Err(error) = process(out) {
            out.fail(SampleError::call("/proc/self", error));
        }
        match &all.unseen {
            Some(why) => {
                let why = format!("looking for the node's files: {why}");
                Err(SampleError::Blind(Box::new(SampleError::Detection(why))))
            }
            None => Ok(()),
        }
    }
}

/// The agent's own resources. These are the files of this process, not of the host's root.
fn process(out: &mut Batch) -> Result<(), procfs::ProcError> {
    // Computed once: the clock may be set while the agent runs.
    static STARTED: OnceLock<f64> = OnceLock::new();
    let stat = procfs::process::Stat::from_file("/proc/self/stat")?;
    let ticks = rustix::param::clock_ticks_per_second() as f64;
    out.push(&CPU, [], (stat.utime + stat.stime) as f64 / ticks);
    out.push(&RSS, [], stat.rss * rustix::param::page_size() as u64);
    out.push(&VIRTUAL, [], stat.vsize);
    out.push(&THREADS, [], stat.num_threads);
    out.push(&FDS, [], fs::read_dir("/proc/self/fd")?.count().saturating_sub(1));
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    if let Some(max) = limit.current {
        out.push(&MAX_FDS, [], max);
    }
    let started = STARTED.get_or_init(|| {
        let uptime = clock_gettime(ClockId::Boottime);
        let uptime = uptime.tv_sec as f64 + uptime.tv_nsec as f64 / 1e9;
        SystemTime::now().number() - uptime + stat.starttime as f64 / ticks
    });
    out.push(&START, [], *started);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Facts;

    #[test]
    fn the_agent_reports_itself_even_where_nothing_was_detected() {
        let host = Host::at("/nonexistent").with_facts(Facts::default());
        let mut out = Batch::default();
        Exporter { host, boot_told: Arc::default() }.sample(&mut out).unwrap();
        assert_eq!(out.series(&NODE), 1);
        assert_eq!(out.series(&BOOT), 0);
        assert!(out.value(&RSS, []).is_some_and(|rss| rss > 1e5));
        assert!(out.value(&FDS, []).is_some_and(|fds| fds >= 3.0));
        assert_eq!(out.reasons(), [""; 0]);
    }

    #[test]
    fn while_nobody_can_look_at_the_node_it_fails_and_says_why() {
        let host = Host::at("/nonexistent").with_facts(Facts::unseen("no answer within 3s"));
        let mut out = Batch::default();
        let error = Exporter { host, boot_told: Arc::default() }.sample(&mut out).unwrap_err();
        assert!(matches!(error, SampleError::Blind(_)), "{error}");
        assert_eq!(error.to_string(), "looking for the node's files: no answer within 3s");
        assert!(out.value(&RSS, []).is_some());
        assert_eq!(out.value(&NODE, ["", "unknown", "unknown", "unknown", "unknown"]), Some(1.0));
    }

    #[test]
    fn the_start_of_the_node_is_told_once_however_often_the_sampler_is_built() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("proc/sys/kernel");
        fs::create_dir_all(&folder).unwrap();
        let told = |boot, up, boot_told: &Arc<AtomicU64>| {
            let mut out = Batch::default();
            let exporter =
                Exporter { host: Host::at(root.path()), boot_told: Arc::clone(boot_told) };
            exporter.tell_boot(boot, up, &mut out);
            out.take_events()
        };
        let agent = Arc::default();
        fs::write(folder.join("osrelease"), "6.1.0-40-amd64\n").unwrap();
        let first = told(1_700_000_000, 30, &agent);
        assert_eq!((first[0].kind.as_str(), first[0].time), ("reboot", 1_700_000_000.0));
        assert_eq!(first[0].text, "the node started (kernel 6.1.0-40-amd64)");
        for boot in [1_700_000_000, 1_700_000_002] {
            assert_eq!(told(boot, 60, &agent), [], "{boot}");
        }
        let right = told(1_700_009_000, 90, &agent);
        assert_eq!(right.len(), 1, "by the right clock");
        for boot in [1_700_009_000, 1_700_000_000, 0] {
            assert_eq!(told(boot, 3_600, &agent), [], "{boot}: the clock was set");
        }
        fs::remove_file(folder.join("osrelease")).unwrap();
        assert_eq!(told(1_700_009_000, 30, &Arc::default())[0].text, "the node started");
    }
}
