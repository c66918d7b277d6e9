//! What the records add up to, since boot or as far back as the log reaches.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use super::device::Devices;
use super::process::known;
use super::signatures::{Hit, OomScope, Operation, Payload, oom_choice};
use super::{
    Clock, DEVICE_LAST, DEVICE_SECTOR, DEVICE_SECTORS, EVENT_LAST, EVENTS, HUNG_LAST, IO_ERRORS,
    LOST, OOM_KILLS, OOM_LAST, SUPPRESSED,
};
use crate::sample::Batch;
use crate::severity::Severity;

/// Devices that are told apart; a node has a handful, and names are used again after a hot plug.
pub(super) const MAX_DEVICES: usize = 64;

/// Combinations of device, kind and operation.
const MAX_IO_SERIES: usize = 256;

/// Bad sectors kept for each device, to count them once each. They cost 8 bytes or so.
const MAX_SECTORS: usize = 1_024;

/// Events that show as 0 before they happen, so that a panel or a check for a failing disk shows
/// "none" and not "no data". They are the ways in which a disk or its filesystem dies, one for
/// each layer; everything else appears when it happens. Alerts go by the timestamps, which are
/// absent until there is something to tell.
const START_AT_ZERO: [&str; 12] = [
    "block_io_error",
    "block_medium_error",
    "block_timeout_error",
    "block_offline_error",
    "buffer_write_lost",
    "nvme_controller_down",
    "ext4_error",
    "ext4_remount_ro",
    "jbd2_abort",
    "xfs_shutdown",
    "btrfs_forced_readonly",
    "journald_io_error",
];

/// A count and when it last grew.
#[derive(Debug, Default, Clone, Copy)]
struct Count {
    total: u64,
    last: Option<SystemTime>,
}

impl Count {
    fn add(&mut self, time: SystemTime) {
        self.total += 1;
        // Records of several processors may be a little out of order.
        self.last = self.last.max(Some(time));
    }
}

#[derive(Debug)]
struct DeviceErrors {
    last: SystemTime,
    last_sector: u64,
    sectors: BTreeSet<u64>,
}

/// Everything that was counted.
#[derive(Debug)]
pub(super) struct Tally {
    io: BTreeMap<(String, &'static str, Operation), u64>,
    devices: BTreeMap<String, DeviceErrors>,
    events: BTreeMap<&'static str, Count>,
    oom: BTreeMap<(OomScope, &'static str), Count>,
    hung: BTreeMap<&'static str, SystemTime>,
    suppressed: u64,
    lost: u64,
    /// The number that the next record should have.
    expected: Option<u64>,
    /// What an old kernel said one line before it killed a process.
    chosen: Option<(u64, OomScope)>,
    /// What the caps kept out since the last batch.
    dropped: u64,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            io: BTreeMap::new(),
            devices: BTreeMap::new(),
            events: START_AT_ZERO.map(|id| (id, Count::default())).into(),
            oom: BTreeMap::new(),
            hung: BTreeMap::new(),
            suppressed: 0,
            lost: 0,
            expected: None,
            chosen: None,
            dropped: 0,
        }
    }
}

impl Tally {
    /// Whether a record of this number has been noted.
    pub(super) fn knows(&self, sequence: u64) -> bool {
        self.expected.is_some_and(|expected| sequence < expected)
    }

    /// Notes the number of a record: numbers that were left out are records that were lost. What
    /// was overwritten before the agent first looked is not counted.
    pub(super) fn sequence(&mut self, sequence: u64) {
        let gap = self.expected.map_or(0, |expected| sequence.saturating_sub(expected));
        self.lost = self.lost.saturating_add(gap);
        self.expected = Some(sequence.saturating_add(1));
    }

    /// Notes a line whatever it says, before it is counted: old kernels tell the scope of an
    /// out-of-memory kill in a line of its own.
    pub(super) fn line(&mut self, line: &str) {
        if let Some(chosen) = oom_choice(line) {
            self.chosen = Some(chosen);
        }
    }

    /// Counts what a line says. `time` is when the kernel wrote it.
    pub(super) fn count(&mut self, hit: &Hit, time: SystemTime) {
        self.events.entry(hit.id).or_default().add(time);
        match &hit.payload {
            Payload::Nothing => {}
            // Refused discards and the like are context, not errors.
            Payload::Block(_) if hit.severity == Severity::Info => {}
            Payload::Block(error) => {
                if let Some(device) = &hit.device {
                    self.io_error(device, (error.kind, error.operation), error.sector, time);
                }
            }
            Payload::Oom { scope, pid, comm } => {
                let chosen = self.chosen.take_if(|(chosen, _)| chosen == pid);
                // When nobody says whose memory it was, it may have been the node's.
                let scope = scope.or(chosen.map(|(_, scope)| scope)).unwrap_or(OomScope::Node);
                self.oom.entry((scope, known(comm))).or_default().add(time);
            }
            Payload::HungTask(comm) => {
                let last = self.hung.entry(known(comm)).or_insert(time);
                *last = time.max(*last);
            }
            Payload::Suppressed(count) => self.suppressed = self.suppressed.saturating_add(*count),
        }
    }

    fn io_error(
        &mut self,
        device: &str,
        (kind, operation): (&'static str, Operation),
        sector: u64,
        time: SystemTime,
    ) {
        let key = (device.to_owned(), kind, operation);
        let new_device = !self.devices.contains_key(device);
        let new_series = !self.io.contains_key(&key);
        if (new_device && self.devices.len() >= MAX_DEVICES)
            || (new_series && self.io.len() >= MAX_IO_SERIES)
        {
            self.dropped += 1;
            return;
        }
        *self.io.entry(key).or_default() += 1;
        let errors = self.devices.entry(device.to_owned()).or_insert_with(|| DeviceErrors {
            last: time,
            last_sector: sector,
            sectors: BTreeSet::new(),
        });
        errors.last = errors.last.max(time);
        errors.last_sector = sector;
        if errors.sectors.len() < MAX_SECTORS {
            errors.sectors.insert(sector);
        } else if !errors.sectors.contains(&sector) {
            self.dropped += 1;
        }
    }

    /// Moves every time as far as the boot has moved from `before`, and none into the future.
    pub(super) fn shift(&mut self, before: SystemTime, clock: Clock) {
        let moved = |time: SystemTime| {
            let moved = match clock.boot.duration_since(before) {
                Ok(later) => time.checked_add(later),
                Err(earlier) => time.checked_sub(earlier.duration()),
            };
            moved.unwrap_or(time).min(clock.now)
        };
        let counts = self.events.values_mut().chain(self.oom.values_mut());
        let counts = counts.filter_map(|count| count.last.as_mut());
        let devices = self.devices.values_mut().map(|errors| &mut errors.last);
        for time in counts.chain(devices).chain(self.hung.values_mut()) {
            *time = moved(*time);
        }
    }

    /// The devices with errors of the block layer.
    pub(super) fn devices(&self) -> impl Iterator<Item = &str> {
        self.devices.keys().map(String::as_str)
    }

    /// Puts every figure into the batch.
    pub(super) fn push(&mut self, out: &mut Batch) {
        for ((device, kind, operation), count) in &self.io {
            out.push(&IO_ERRORS, [device, kind, operation.as_str()], *count);
        }
        for (device, errors) in &self.devices {
            out.push(&DEVICE_LAST, [device], errors.last);
            out.push(&DEVICE_SECTOR, [device], errors.last_sector);
            out.push(&DEVICE_SECTORS, [device], errors.sectors.len());
        }
        for (event, count) in &self.events {
            out.push(&EVENTS, [event], count.total);
            if let Some(last) = count.last {
                out.push(&EVENT_LAST, [event], last);
            }
        }
        for ((scope, process), count) in &self.oom {
            let labels = [scope.as_str(), *process];
            out.push(&OOM_KILLS, labels, count.total);
            if let Some(last) = count.last {
                out.push(&OOM_LAST, labels, last);
            }
        }
        for (process, last) in &self.hung {
            out.push(&HUNG_LAST, [process], *last);
        }
        out.push(&LOST, [], self.lost);
        out.push(&SUPPRESSED, [], self.suppressed);
        out.dropped(std::mem::take(&mut self.dropped));
    }
}

/// Whether a hit is about a device that does not count.
pub(super) fn is_ignored(hit: &Hit, devices: &Devices) -> bool {
    hit.device.as_deref().is_some_and(|device| devices.is_ignored(device))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::super::signatures::Classifier;
    use super::*;

    fn at(second: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(second)
    }

    /// Counts each line a second after the one before, from second 100 on.
    fn tally(lines: &[&str]) -> (Tally, Batch) {
        let classifier = Classifier::new().unwrap();
        let mut tally = Tally::default();
        for (line, second) in lines.iter().zip(100..) {
            tally.line(line);
            for (hit, _) in classifier.classify(line) {
                tally.count(&hit, at(second));
            }
        }
        let mut out = Batch::default();
        tally.push(&mut out);
        (tally, out)
    }

    #[test]
    fn the_signs_of_a_dying_disk_are_zero_before_they_show() {
        let (_, out) = tally(&[]);
        assert_eq!(out.value(&EVENTS, ["block_io_error"]), Some(0.0));
        assert_eq!(out.value(&EVENTS, ["hung_task"]), None);
        assert_eq!((out.series(&EVENT_LAST), out.series(&IO_ERRORS)), (0, 0));
        assert_eq!((out.value(&LOST, []), out.value(&SUPPRESSED, [])), (Some(0.0), Some(0.0)));
        let ids: Vec<_> = super::super::table::SIGNATURES.iter().map(|s| s.id).collect();
        assert!(START_AT_ZERO.iter().all(|id| ids.contains(id)));
    }

    #[test]
    fn errors_of_a_disk_add_up_by_kind_and_operation() {
        let read = "I/O error, dev sda, sector 1198032 op 0x0:(READ) flags 0x80700";
        let other = "I/O error, dev sda, sector 8999208 op 0x0:(READ) flags 0x0";
        let write = "critical medium error, dev sda, sector 8 op 0x1:(WRITE) flags 0x0";
        let (_, out) = tally(&[read, other, write, read]);
        assert_eq!(out.value(&IO_ERRORS, ["sda", "io", "read"]), Some(3.0));
        assert_eq!(out.value(&IO_ERRORS, ["sda", "medium", "write"]), Some(1.0));
        assert_eq!(out.value(&DEVICE_LAST, ["sda"]), Some(103.0));
        assert_eq!(out.value(&DEVICE_SECTOR, ["sda"]), Some(1_198_032.0));
        assert_eq!(out.value(&DEVICE_SECTORS, ["sda"]), Some(3.0));
        assert_eq!(out.value(&EVENTS, ["block_io_error"]), Some(3.0));
        assert_eq!(out.value(&EVENT_LAST, ["block_medium_error"]), Some(102.0));
    }

    #[test]
    fn what_is_context_only_is_an_event_and_no_error() {
        let (_, out) = tally(&[
            "critical target error, dev sdb, sector 2048 op 0x3:(DISCARD) flags 0x800",
            "kernel resource error, dev sdb, sector 64 op 0x0:(READ) flags 0x0",
        ]);
        assert_eq!(out.series(&IO_ERRORS), 0);
        assert_eq!(out.value(&EVENTS, ["block_discard_unsupported"]), Some(1.0));
        assert_eq!(out.value(&EVENTS, ["block_resource_error"]), Some(1.0));
    }

    #[test]
    fn only_the_block_layer_counts_as_io_error() {
        let (_, out) = tally(&[
            "Buffer I/O error on dev sda1, logical block 0, async page read",
            "EXT4-fs (sda1): Remounting filesystem read-only",
            "I/O error, dev ?, sector 5",
        ]);
        assert_eq!((out.series(&IO_ERRORS), out.series(&DEVICE_LAST)), (0, 0));
        assert_eq!(out.value(&EVENTS, ["buffer_read_error"]), Some(1.0));
        assert_eq!(out.value(&EVENTS, ["block_io_error"]), Some(1.0));
    }

    #[test]
    fn an_old_kernel_tells_the_scope_of_a_kill_one_line_early() {
        let (_, out) = tally(&[
            "Memory cgroup out of memory: Kill process 7 (heapster) score 9 or sacrifice child",
            "Killed process 7 (heapster) total-vm:1kB, anon-rss:1kB",
            "Memory cgroup out of memory: Kill process 8 (a) score 9 or sacrifice child",
            "Killed process 9 (etcd) total-vm:1kB, anon-rss:1kB",
            "Out of memory: Killed process 10 (etcd) total-vm:1kB, anon-rss:1kB",
        ]);
        assert_eq!(out.value(&OOM_KILLS, ["cgroup", "other"]), Some(1.0));
        assert_eq!(out.value(&OOM_KILLS, ["node", "etcd"]), Some(2.0));
        assert_eq!(out.value(&OOM_LAST, ["node", "etcd"]), Some(104.0));
    }

    #[test]
    fn blocked_processes_and_swallowed_messages_are_remembered() {
        let (_, out) = tally(&[
            "INFO: task etcd:812 blocked for more than 120 seconds.",
            "INFO: task kworker/4:2:1520 blocked for more than 360 seconds.",
            "print_req_error: 546 callbacks suppressed",
            "buffer_io_error: 4 callbacks suppressed",
        ]);
        assert_eq!(out.value(&HUNG_LAST, ["etcd"]), Some(100.0));
        assert_eq!(out.value(&HUNG_LAST, ["kworker"]), Some(101.0));
        assert_eq!(out.value(&SUPPRESSED, []), Some(550.0));
    }

    #[test]
    fn numbers_that_were_left_out_are_lost_records() {
        let mut tally = Tally::default();
        for sequence in [500, 501, 510, 511] {
            tally.sequence(sequence);
        }
        assert_eq!(tally.lost, 8, "those before the first are not counted");
        tally.sequence(3);
        assert_eq!(tally.lost, 8, "another boot begins");
        tally.sequence(u64::MAX);
        tally.sequence(u64::MAX);
        tally.sequence(0);
        tally.sequence(u64::MAX);
        assert_eq!(tally.lost, u64::MAX);
    }

    #[test]
    fn no_flood_of_devices_kinds_or_sectors_grows_without_bound() {
        let mut lines = Vec::new();
        for i in 0..500 {
            lines.push(format!("I/O error, dev dm-{i}, sector {i} op 0x0:(READ)"));
        }
        for i in 0..3_000 {
            lines.push(format!("I/O error, dev dm-1, sector {i} op 0x1:(WRITE)"));
        }
        for class in ["timeout", "critical medium", "critical target", "protection", "other"] {
            for op in ["READ", "WRITE", "FLUSH", "DRV_IN"] {
                for i in 0..MAX_DEVICES {
                    lines.push(format!("{class} error, dev dm-{i}, sector 1 op 0x0:({op})"));
                }
            }
        }
        let lines: Vec<_> = lines.iter().map(String::as_str).collect();
        let (tally, out) = tally(&lines);
        assert_eq!(out.series(&DEVICE_LAST), MAX_DEVICES);
        assert_eq!(out.series(&IO_ERRORS), MAX_IO_SERIES);
        assert_eq!(out.value(&DEVICE_SECTORS, ["dm-1"]), Some(1_024.0));
        assert_eq!(out.value(&IO_ERRORS, ["dm-1", "io", "write"]), Some(3_000.0));
        assert!(out.dropped_count() > 436 + 1_900, "{}", out.dropped_count());
        assert_eq!(tally.dropped, 0, "told once");
    }
}
