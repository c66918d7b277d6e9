//! How kernel and disks are set up, and whether the clock is kept right.
//!
//! | file | what |
//! |---|---|
//! | `/proc/sys/vm/*`, `/proc/sys/kernel/*` | how much may be dirty before writers wait, and what the kernel does in trouble |
//! | `/sys/class/block/DISK/queue/*` | of the datastore's disks: scheduler, write cache, rotation |
//! | `/sys/module/zfs/parameters`, `/proc/spl/kstat/zfs/POOL/state` | ZFS |
//! | `/proc/pressure/{io,memory}` | time lost waiting for disk and memory |
//! | `adjtimex(2)`, else `/run/systemd/timesync/synchronized` | the clock |
//!
//! A file that is not there is a kernel without that part.

use std::path::Path;
use std::time::Duration;

use crate::clock::Clock;
use crate::host::{Host, read};
use crate::metric::Metric;
use crate::sample::Batch;

use super::small;

pub(super) static SYSCTL: Metric<1> = Metric::gauge(
    "controlplane_settings_sysctl",
    "A setting of the kernel that decides how writes to disk are held back, or what happens in trouble; the names are those of sysctl. At most 11.",
    ["name"],
);
pub(super) static DISK: Metric<4> = Metric::info(
    "controlplane_settings_disk_info",
    "A disk of the datastore: its I/O scheduler, whether the kernel takes its cache for volatile (write back) and sends flushes, and whether it is rotational. At most 16.",
    ["device", "scheduler", "write_cache", "rotational"],
);
pub(super) static TXG_TIMEOUT: Metric<0> = Metric::gauge(
    "controlplane_settings_zfs_txg_timeout_seconds",
    "The longest that ZFS gathers writes before it writes them out.",
    [],
);
pub(super) static POOL: Metric<2> = Metric::info(
    "controlplane_settings_zfs_pool_info",
    "A pool of ZFS and its state; ONLINE is healthy. At most 16.",
    ["pool", "state"],
);
pub(super) static PRESSURE: Metric<2> = Metric::counter(
    "controlplane_settings_pressure_seconds_total",
    "Time in which processes waited for a resource (io, memory): some of them, or all that had work to do (full). The kernel's own count since boot.",
    ["resource", "share"],
);
pub(super) static CLOCK: Metric<0> = Metric::gauge(
    "controlplane_settings_clock_synchronised",
    "Whether something keeps the clock right: the kernel's largest error is below 16 s; where the kernel may not be asked, whether systemd-timesyncd has synchronised it. Absent where neither tells.",
    [],
);
pub(super) static CLOCK_ERROR: Metric<0> = Metric::gauge(
    "controlplane_settings_clock_max_error_seconds",
    "How far the clock may be off by the kernel's own account. Absent where the kernel may not be asked.",
    [],
);

const SYSCTLS: [&str; 11] = [
    "kernel.panic",
    "kernel.panic_on_oops",
    "vm.dirty_background_bytes",
    "vm.dirty_background_ratio",
    "vm.dirty_bytes",
    "vm.dirty_expire_centisecs",
    "vm.dirty_ratio",
    "vm.dirty_writeback_centisecs",
    "vm.overcommit_memory",
    "vm.panic_on_oom",
    "vm.swappiness",
];
/// Disks and pools told.
const MAX_DISKS: usize = 16;
/// States of a pool; another one is told as `other`.
const POOL_STATES: [&str; 7] =
    ["ONLINE", "DEGRADED", "FAULTED", "OFFLINE", "REMOVED", "UNAVAIL", "SUSPENDED"];
/// Schedulers of Linux; another one is told as `other`.
const SCHEDULERS: [&str; 7] = ["none", "mq-deadline", "bfq", "kyber", "noop", "deadline", "cfq"];

/// Tells all of it.
pub(super) fn tell(host: &Host, out: &mut Batch) {
    for name in SYSCTLS {
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        if let Some(value) = small(host, path).and_then(|text| text.parse::<f64>().ok()) {
            out.push(&SYSCTL, [name], value);
        }
    }
    disks(host, out);
    zfs(host, out);
    for resource in ["io", "memory"] {
        let text = small(host, format!("/proc/pressure/{resource}")).unwrap_or_default();
        for (share, waited) in pressure(&text) {
            out.push(&PRESSURE, [resource, share], waited.as_secs_f64());
        }
    }
    clock(host, out);
}

fn disks(host: &Host, out: &mut Batch) {
    let disks = host.facts().datastore.as_ref().map(|place| place.disks.as_slice());
    let disks = disks.unwrap_or_default();
    out.dropped(disks.len().saturating_sub(MAX_DISKS) as u64);
    for disk in disks.iter().take(MAX_DISKS) {
        let queue = Path::new("/sys/class/block").join(disk.replace('/', "!")).join("queue");
        let read = |name: &str| small(host, queue.join(name));
        let schedulers = read("scheduler").unwrap_or_default();
        let cache = match read("write_cache").as_deref() {
            Some("write back") => "write back",
            Some("write through") => "write through",
            _ => "unknown",
        };
        let rotational = match read("rotational").as_deref() {
            Some("0") => "no",
            Some("1") => "yes",
            _ => "unknown",
        };
        out.info(&DISK, [disk, scheduler(&schedulers), cache, rotational]);
    }
}

/// The one in brackets: `[mq-deadline] kyber none`.
fn scheduler(text: &str) -> &'static str {
    let chosen = text.split_once('[').and_then(|(_, rest)| Some(rest.split_once(']')?.0));
    match chosen.unwrap_or(text) {
        "" => "unknown",
        name => SCHEDULERS.into_iter().find(|known| *known == name).unwrap_or("other"),
    }
}

fn zfs(host: &Host, out: &mut Batch) {
    let timeout = small(host, "/sys/module/zfs/parameters/zfs_txg_timeout");
    if let Some(timeout) = timeout.and_then(|text| text.parse::<f64>().ok()) {
        out.push(&TXG_TIMEOUT, [], timeout);
    }
    let folder = Path::new("/proc/spl/kstat/zfs");
    let pools: Vec<(String, String)> = read::names(host, folder)
        .unwrap_or_default()
        .into_iter()
        .filter_map(|pool| Some((small(host, folder.join(&pool).join("state"))?, pool)))
        .collect();
    out.dropped(pools.len().saturating_sub(MAX_DISKS) as u64);
    for (state, pool) in pools.iter().take(MAX_DISKS) {
        let state = POOL_STATES.into_iter().find(|known| known == state).unwrap_or("other");
        out.info(&POOL, [pool, state]);
    }
}

/// The lines `some` and `full`, whose last field counts microseconds.
fn pressure(text: &str) -> Vec<(&'static str, Duration)> {
    let line = |share: &'static str| {
        let rest = text.lines().find_map(|line| line.strip_prefix(share))?;
        let micros = rest.split_whitespace().find_map(|field| field.strip_prefix("total="))?;
        Some((share, Duration::from_micros(micros.parse().ok()?)))
    };
    ["some", "full"].into_iter().filter_map(line).collect()
}

fn clock(host: &Host, out: &mut Batch) {
    if let Ok(clock) = Clock::read() {
        out.push(&CLOCK, [], clock.synchronised());
        out.push(&CLOCK_ERROR, [], clock.max_error.as_secs_f64());
        return;
    }
    if let Some(synchronised) = by_timesyncd(host) {
        out.push(&CLOCK, [], synchronised);
    }
}

/// systemd-timesyncd makes its folder when it starts, and the file when it has set the clock.
fn by_timesyncd(host: &Host) -> Option<bool> {
    let names = read::names(host, Path::new("/run/systemd/timesync")).ok()?;
    Some(names.iter().any(|name| name == "synchronized"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scheduler_is_the_one_in_brackets() {
        assert_eq!(scheduler("[mq-deadline] kyber none"), "mq-deadline");
        assert_eq!(scheduler("none"), "none");
        assert_eq!(scheduler("[tomorrow] none"), "other");
        assert_eq!(scheduler(""), "unknown");
    }

    #[test]
    fn pressure_is_the_kernels_count_in_microseconds() {
        let text = "some avg10=0.00 avg60=0.12 avg300=0.05 total=71268422\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=250000";
        let expected =
            [("some", Duration::from_micros(71_268_422)), ("full", Duration::from_millis(250))];
        assert_eq!(pressure(text), expected);
        assert_eq!(pressure("some avg10=x\nfull total=-1"), []);
    }

    #[test]
    fn timesyncd_tells_with_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::at(dir.path());
        assert_eq!(by_timesyncd(&host), None);
        let folder = dir.path().join("run/systemd/timesync");
        std::fs::create_dir_all(&folder).unwrap();
        assert_eq!(by_timesyncd(&host), Some(false));
        std::fs::write(folder.join("synchronized"), "").unwrap();
        assert_eq!(by_timesyncd(&host), Some(true));
    }
}
