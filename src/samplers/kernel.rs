//! What the kernel reports: I/O errors, dying filesystems, kills for lack of memory, blocked tasks.
//!
//! Reads `/dev/kmsg` from its oldest record, then what is new on each run; and every ten seconds
//! the error counters of `/sys`. Only records of the kernel itself count, since any root process
//! can write to the log; the one exception are journald's own disk errors, which show nowhere else.
//! Totals are since boot as far as the ring reaches, and the same after a restart, unless the ring
//! has moved on. Hence alerts go by the timestamps, which are the records' own.
//!
//! Without `CAP_SYSLOG` the log is usually closed and a run fails with the fix in its text. A
//! record that makes no sense is a counted failure, and the next one is read. Device names, kinds
//! and processes come from closed or capped sets: at most 64 devices, 256 combinations of device,
//! kind and operation, and 100 events. Below `--path.rootfs` a plain file may stand in for the log.

mod device;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod log;
mod process;
mod record;
mod signatures;
mod sysfs;
mod table;
mod tally;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use self::device::{DEFAULT_IGNORED, Devices};
use self::log::{Log, Next, Opened};
use self::record::{FACILITY_DAEMON, FACILITY_KERNEL, Record};
use self::signatures::{Classifier, Hit, Payload};
use self::table::JOURNALD_IO_ERROR;
use self::tally::{MAX_DEVICES, Tally};
use crate::clock::has_learnt_the_time;
use crate::config::list;
use crate::host::{Host, processes};
use crate::kept::{Kept, Shared};
use crate::metric::Metric;
use crate::quiet::Quiet;
use crate::sample::{Batch, SampleError};
use crate::sampler::{BlockingSampler, Build, OptionsError, SamplerDef, defaults, facts};
use crate::severity::Severity;

/// Records read in one run. The largest rings hold more; the next run goes on from there.
const RECORDS_PER_RUN: usize = 20_000;

/// Bad records told one by one in one run; the rest is only counted.
const FAILURES_PER_RUN: u64 = 16;

/// How often `/sys` is read. Its figures change rarely, and a node may have hundreds of devices.
const SYSFS_INTERVAL: Duration = Duration::from_secs(10);

/// See the module's page.
pub static SAMPLER: SamplerDef = SamplerDef {
    about: "I/O errors, dying filesystems, memory kills and blocked tasks, from the kernel's log.",
    interval: Duration::from_millis(500),
    timeout: Duration::from_secs(1),
    metrics: &[
        IO_ERRORS.desc(),
        DEVICE_LAST.desc(),
        DEVICE_SECTOR.desc(),
        DEVICE_SECTORS.desc(),
        HOLDS_DATASTORE.desc(),
        EVENTS.desc(),
        EVENT_LAST.desc(),
        OOM_KILLS.desc(),
        OOM_LAST.desc(),
        HUNG_LAST.desc(),
        SCSI_ERRORS.desc(),
        FILESYSTEM_ERRORS.desc(),
        LOST.desc(),
        SUPPRESSED.desc(),
    ],
    defaults: defaults::<Options>,
    uses: |all| facts(all.datastore.as_ref().map(|place| (&place.chain, &place.disks))),
    build: |options, host| {
        let options: Options = options.parse()?;
        let sampler = Kernel::new(&options, host, clock, COUNTED.of(()))?;
        Ok(Build::blocking(sampler))
    },
    cost: "5 µs a run that finds nothing new, 0.5 µs a record, 3 MB; one read of /dev/kmsg, and of \
           /sys/block and /sys/fs/ext4 every 10 s",
};

static IO_ERRORS: Metric<3> = Metric::counter(
    "controlplane_kernel_io_errors_total",
    "Requests that failed at the block layer, by whole disk or mapped device, since boot as far as \
     the kernel's log reaches. The kernel logs at most 10 in 5 seconds.",
    ["device", "kind", "operation"],
);
static DEVICE_LAST: Metric<1> = Metric::gauge(
    "controlplane_kernel_io_error_last_timestamp_seconds",
    "When the kernel last logged a failed request of this device, in Unix time.",
    ["device"],
);
static DEVICE_SECTOR: Metric<1> = Metric::gauge(
    "controlplane_kernel_io_error_last_sector",
    "First sector of the last failed request, in units of 512 bytes from the start of the device.",
    ["device"],
);
static DEVICE_SECTORS: Metric<1> = Metric::gauge(
    "controlplane_kernel_io_error_sectors",
    "Distinct first sectors of failed requests of this device, at most 1024.",
    ["device"],
);
static HOLDS_DATASTORE: Metric<1> = Metric::gauge(
    "controlplane_kernel_device_holds_datastore",
    "Whether the datastore lies on this device, for each device with errors; absent while nobody \
     knows where it lies.",
    ["device"],
);
static EVENTS: Metric<1> = Metric::counter(
    "controlplane_kernel_events_total",
    "Lines of the kernel's log by what they mean, since boot as far as the log reaches. One fault \
     makes many lines: do not add events up.",
    ["event"],
);
static EVENT_LAST: Metric<1> = Metric::gauge(
    "controlplane_kernel_event_last_timestamp_seconds",
    "When the kernel last logged this event, in Unix time.",
    ["event"],
);
static OOM_KILLS: Metric<2> = Metric::counter(
    "controlplane_kernel_oom_kills_total",
    "Processes killed because memory ran out, on the node or in one cgroup at its own limit.",
    ["scope", "process"],
);
static OOM_LAST: Metric<2> = Metric::gauge(
    "controlplane_kernel_oom_kill_last_timestamp_seconds",
    "When a process of this name was last killed because memory ran out, in Unix time.",
    ["scope", "process"],
);
static HUNG_LAST: Metric<1> = Metric::gauge(
    "controlplane_kernel_hung_task_last_timestamp_seconds",
    "When the kernel last reported a process of this name blocked for minutes, in Unix time. It \
     reports 10 per boot.",
    ["process"],
);
static SCSI_ERRORS: Metric<1> = Metric::counter(
    "controlplane_kernel_scsi_errors_total",
    "Commands that this SCSI or SATA device failed, retried ones included. From \
     /sys/block/*/device/ioerr_cnt.",
    ["device"],
);
static FILESYSTEM_ERRORS: Metric<1> = Metric::counter(
    "controlplane_kernel_filesystem_errors_total",
    "Errors recorded in the superblock of the ext4 filesystem on this partition or device since it \
     was last checked. From /sys/fs/ext4/*/errors_count.",
    ["device"],
);
static LOST: Metric<0> = Metric::counter(
    "controlplane_kernel_records_lost_total",
    "Records that the kernel overwrote before they were read, from gaps in their numbers.",
    [],
);
static SUPPRESSED: Metric<0> = Metric::counter(
    "controlplane_kernel_messages_suppressed_total",
    "Messages that the kernel's rate limit swallowed, as it says itself.",
    [],
);

/// The table of signatures, compiled by the first run.
static CLASSIFIER: LazyLock<Result<Classifier, regex::Error>> = LazyLock::new(Classifier::new);

/// A sampler that is built anew reads the ring again, in which the oldest records may have been written over since.
static COUNTED: Kept<(), Shared<Counted>> = Kept::new();

#[derive(Debug, Default)]
struct Counted {
    tally: Tally,
    /// What decides which devices count, see [`Kernel::decides`]: where it changes, the ring is counted anew.
    devices: (Vec<String>, Vec<String>),
    /// The number after the last record whose events were handed on.
    told: u64,
    /// See [`Clock::boot`]: the one that the last times were told by.
    boot: Option<SystemTime>,
}

impl Counted {
    /// Puts the times right that were told by a clock which has been set since. A machine without a clock of its own
    /// learns the time after its start, and until then every error is years old.
    fn follow(&mut self, clock: Clock) {
        let Some(before) = self.boot.replace(clock.boot) else { return };
        let step = clock.boot.duration_since(before).unwrap_or_else(|back| back.duration());
        let up = clock.now.duration_since(clock.boot).unwrap_or_default();
        if has_learnt_the_time(step, up) {
            self.tally.shift(before, clock);
        }
    }
}

/// Reads records of the kernel's log, one a line; returns how many lines of their texts mean something. For measuring.
///
/// # Errors
///
/// When the table cannot be compiled, or a line is no record.
pub fn count(records: &[u8]) -> Result<usize, SampleError> {
    let wrong = |what: String| SampleError::parse("/dev/kmsg", what);
    let classifier = CLASSIFIER.as_ref().map_err(|error| wrong(error.to_string()))?;
    let mut hits = 0;
    for bytes in records.split(|byte| *byte == b'\n').filter(|bytes| !bytes.is_empty()) {
        let record = record::parse(bytes).map_err(|error| wrong(error.to_string()))?;
        hits += classifier.classify(&record.text).len();
    }
    Ok(hits)
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Options {
    /// Devices whose errors do not count, as globs of whole disks. Never applies to a device that
    /// holds the datastore.
    #[serde(deserialize_with = "list")]
    ignore_devices: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self { ignore_devices: DEFAULT_IGNORED.map(str::to_owned).into() }
    }
}

/// What time it is.
#[derive(Debug, Clone, Copy)]
struct Clock {
    /// The moment at which the clock of the kernel's log was zero.
    boot: SystemTime,
    now: SystemTime,
}

/// The clock of the log is the monotonic one, which like it stops in suspend.
fn clock() -> Clock {
    let since = |id| Duration::try_from(clock_gettime(id)).unwrap_or_default();
    let (now, up) = (since(ClockId::Realtime), since(ClockId::Monotonic));
    Clock { boot: UNIX_EPOCH + now.saturating_sub(up), now: UNIX_EPOCH + now }
}

/// The records' times as they are in the world.
#[derive(Debug, Clone, Copy)]
struct Times {
    clock: Clock,
    /// When the ring was last read to its end: what is new in it was written later.
    not_before: Option<SystemTime>,
}

impl Times {
    /// When a record was written that carries `micros`. The log's clock is not disciplined, and is
    /// minutes off after months, so a record that has just appeared is as young as that, and a time
    /// to come counts as now: no alert may wait for it to pass.
    fn of(&self, micros: u64) -> SystemTime {
        let now = self.clock.now;
        let at = self.clock.boot.checked_add(Duration::from_micros(micros)).unwrap_or(now);
        at.max(self.not_before.unwrap_or(at)).min(now)
    }
}

struct Kernel {
    host: Host,
    path: PathBuf,
    log: Log,
    /// Whether the log is a plain file, written on a host that may have booted at another time.
    plain: bool,
    devices: Devices,
    /// What decides which devices count: the globs, and those devices of the datastore that they name. Its others may come
    /// and go, as with a snapshot of its volume or a path of a disk that has several, and change nothing.
    decides: (Vec<String>, Vec<String>),
    /// See [`COUNTED`].
    counted: Shared<Counted>,
    counts: sysfs::Counts,
    /// When `/sys` was last read.
    looked: Option<Instant>,
    /// [`clock`], or a fixed one under test.
    clock: fn() -> Clock,
    /// When the ring was last read to its end.
    drained: Option<SystemTime>,
    /// An event of the same kind and device is told once a minute.
    quiet: Quiet<(&'static str, Option<String>)>,
}

impl Kernel {
    fn new(
        options: &Options,
        host: &Host,
        clock: fn() -> Clock,
        counted: Shared<Counted>,
    ) -> Result<Self, OptionsError> {
        let place = host.facts().datastore.as_ref();
        let datastore: Vec<String> = place
            .iter()
            .flat_map(|place| place.chain.iter().chain(&place.disks))
            .cloned()
            .collect();
        let devices = Devices::new(&options.ignore_devices, &datastore)
            .map_err(|error| OptionsError::new("ignore_devices", error.to_string()))?;
        let decides = (options.ignore_devices.clone(), devices.excepted());
        let path = host.path("/dev/kmsg");
        Ok(Self {
            host: host.clone(),
            log: Log::new(path.clone()),
            path,
            plain: false,
            devices,
            decides,
            counted,
            counts: sysfs::Counts::default(),
            looked: None,
            clock,
            drained: None,
            quiet: Quiet::default(),
        })
    }

    fn open(&mut self, counted: &mut Counted) -> Result<(), SampleError> {
        match self.log.open() {
            Ok(Opened::Same) => {}
            Ok(opened) => {
                self.plain = opened == Opened::Plain;
                self.begin(counted);
                self.drained = None;
            }
            Err(error) => {
                self.log.close();
                return Err(refused(&self.path, error));
            }
        }
        Ok(())
    }

    /// Everything is read from the beginning. What the ring has shown before is known by its number, and not counted again.
    fn begin(&self, counted: &mut Counted) {
        if self.plain || counted.devices != self.decides {
            counted.tally = Tally::default();
            counted.devices.clone_from(&self.decides);
        }
    }

    fn times(&self) -> Times {
        let mut clock = (self.clock)();
        if self.plain
            && let Some(boot) = processes::boot_time(&self.host)
            && let Some(boot) = UNIX_EPOCH.checked_add(Duration::from_secs(boot))
        {
            clock.boot = boot;
        }
        Times { clock, not_before: self.drained }
    }

    /// Reads what is new in the log.
    fn drain(
        &mut self,
        classifier: &Classifier,
        counted: &mut Counted,
        out: &mut Batch,
    ) -> Result<(), SampleError> {
        let times = self.times();
        if !self.plain {
            counted.follow(times.clock);
        }
        let mut bad = Bad { path: &self.path, count: 0 };
        for _ in 0..RECORDS_PER_RUN {
            let record = match self.log.next() {
                Ok(Next::End) => {
                    // Taken before the first read: what comes in the meantime is read next time.
                    self.drained = (!self.plain).then_some(times.clock.now);
                    break;
                }
                Ok(Next::Record(bytes)) => record::parse(bytes),
                // The number of the next record tells how many are gone.
                Ok(Next::Overrun) => continue,
                Ok(Next::TooLong) => Err(record::Malformed::TooLong),
                Err(error) => {
                    self.log.close();
                    return Err(refused(&self.path, error));
                }
            };
            let record = match record {
                Ok(record) => record,
                Err(error) => {
                    bad.record(error, out);
                    continue;
                }
            };
            if !self.plain && counted.tally.knows(record.sequence) {
                continue;
            }
            counted.tally.sequence(record.sequence);
            if record.facility != FACILITY_KERNEL && record.facility != FACILITY_DAEMON {
                continue;
            }
            let time = times.of(record.micros);
            if record.facility == FACILITY_KERNEL {
                record.text.lines().for_each(|line| counted.tally.line(line));
            }
            for (hit, line) in classifier.classify(&record.text) {
                if !is_from(&record, &hit) || tally::is_ignored(&hit, &self.devices) {
                    continue;
                }
                counted.tally.count(&hit, time);
                if hit.severity >= Severity::Error
                    && (self.plain || record.sequence >= counted.told)
                    && self.quiet.tells((hit.id, hit.device.clone()), time)
                {
                    out.event(time, hit.id, describe(&record, &hit, line));
                }
            }
            if !self.plain {
                counted.told = counted.told.max(record.sequence.saturating_add(1));
            }
        }
        Ok(())
    }

    fn push(&mut self, tally: &mut Tally, out: &mut Batch) {
        tally.push(out);
        if self.looked.is_none_or(|looked| looked.elapsed() >= SYSFS_INTERVAL) {
            self.counts = sysfs::read(&self.host, &self.devices, MAX_DEVICES, out);
            self.looked = Some(Instant::now());
        }
        for (device, count) in &self.counts.scsi {
            out.push(&SCSI_ERRORS, [device], *count);
        }
        for (device, count) in &self.counts.filesystems {
            out.push(&FILESYSTEM_ERRORS, [device], *count);
        }
        let damaged = self.counts.filesystems.iter().filter(|(_, count)| *count > 0);
        let damaged = damaged.map(|(device, _)| device.as_str());
        let with_errors: BTreeSet<_> = tally.devices().chain(damaged).collect();
        for device in with_errors {
            if let Some(holds) = self.devices.holds_datastore(device) {
                out.push(&HOLDS_DATASTORE, [device], holds);
            }
        }
    }
}

impl BlockingSampler for Kernel {
    /// # Errors
    ///
    /// When the log cannot be opened or read: without it there is nothing to watch, and a run
    /// that reported only the figures of `/sys` would look like a healthy disk. A record that
    /// makes no sense is recorded in the batch, and the others count.
    fn sample(&mut self, out: &mut Batch) -> Result<(), SampleError> {
        let classifier =
            CLASSIFIER.as_ref().map_err(|error| SampleError::parse("table.rs", error))?;
        let counted = self.counted.clone();
        let mut counted = counted.lock();
        self.open(&mut counted)?;
        self.drain(classifier, &mut counted, out)?;
        self.push(&mut counted.tally, out);
        Ok(())
    }
}

/// Bad records of one run.
struct Bad<'a> {
    path: &'a Path,
    count: u64,
}

impl Bad<'_> {
    fn record(&mut self, error: record::Malformed, out: &mut Batch) {
        self.count += 1;
        if self.count <= FAILURES_PER_RUN {
            out.fail(SampleError::parse(self.path, error));
        } else {
            out.dropped(1);
        }
    }
}

/// Whether a line comes from whom it seems to come from. Nothing but the kernel writes records of
/// its facility; a daemon's count only where journald complains about its own disk.
fn is_from(record: &Record, hit: &Hit) -> bool {
    if hit.id == JOURNALD_IO_ERROR {
        record.facility == FACILITY_DAEMON && record.text.starts_with("systemd-journald[")
    } else {
        record.facility == FACILITY_KERNEL
    }
}

/// The line for the timeline, with what it does not say itself.
fn describe(record: &Record, hit: &Hit, line: String) -> String {
    let mut text = line;
    if matches!(hit.payload, Payload::Block(error) if error.readahead) {
        text.push_str(" (read-ahead)");
    }
    if hit.device.is_none()
        && let (Some(subsystem), Some(device)) = (&record.subsystem, &record.device)
    {
        text = format!("{text} ({subsystem} {device})");
    }
    text
}

/// Why the log cannot be read, and what would change that.
fn refused(path: &Path, error: std::io::Error) -> SampleError {
    use std::io::ErrorKind::{NotFound, PermissionDenied};
    let name = path.display();
    match error.kind() {
        PermissionDenied => SampleError::Permission(format!(
            "reading {name}: {error}: the kernel's log is closed to this process; a unit needs \
             CAP_SYSLOG in CapabilityBoundingSet= and AmbientCapabilities=, ProtectKernelLogs=no and \
             DeviceAllow=/dev/kmsg r; a pod needs securityContext.privileged: true, since CAP_SYSLOG alone does not open the \
             device there"
        )),
        NotFound => SampleError::read(
            path,
            std::io::Error::new(
                NotFound,
                format!("{error}: mount the host's /dev/kmsg there, or set kernel.enabled: false"),
            ),
        ),
        _ => SampleError::read(path, error),
    }
}

#[cfg(test)]
mod tests;
