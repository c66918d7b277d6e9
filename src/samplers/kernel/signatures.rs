//! What the kernel says when a disk, a filesystem or memory fails: one table of patterns.
//!
//! A row gives an id, how bad it is, the pattern of the text and what the pattern yields. All
//! patterns are tested in one pass over a line; the first row that matches wins, so the order of
//! the table matters. Patterns follow the shape of a line and not the kernel's version, since
//! vendors backport messages. The named groups `device`, `sector`, `operation`, `flags`, `scope`,
//! `pid`, `process` and `count` are what a line yields.

use regex::bytes::{Captures, Regex, RegexBuilder, RegexSet, RegexSetBuilder};
use std::cell::OnceCell;

use super::device::whole_disk;

/// How bad a line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Severity {
    /// Context that is counted and never alerted on.
    Info,
    /// Something that heals by itself, or that an operator should know.
    Warning,
    /// Something failed.
    Error,
    /// Data was lost, or an outage is under way.
    Critical,
}

/// What a pattern yields besides its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Yields {
    /// A device, if the pattern has that group; else nothing.
    Device,
    /// The device is the first word of the line that follows in the same record.
    DeviceOnNextLine,
    /// An error of the block layer, with its device, sector, operation and flags.
    Block,
    /// A process that was killed, and whether the node or a cgroup was out of memory.
    Oom,
    /// A process that has been blocked for minutes.
    HungTask,
    /// How many messages the kernel swallowed.
    Suppressed,
}

/// One row of the table.
#[derive(Debug)]
pub(super) struct Signature {
    /// The value of the label `event`.
    pub(super) id: &'static str,
    /// How bad it is.
    pub(super) severity: Severity,
    pattern: &'static str,
    yields: Yields,
}

/// What one line of a record says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hit {
    /// The id of the row that matched.
    pub(super) id: &'static str,
    /// How bad it is.
    pub(super) severity: Severity,
    /// The whole disk or mapped device the line is about, if it names one.
    pub(super) device: Option<String>,
    /// What else it says.
    pub(super) payload: Payload,
}

/// What a line says besides its id and device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Payload {
    /// Nothing more.
    Nothing,
    /// A request that failed at the block layer.
    Block(BlockError),
    /// A process the kernel killed.
    Oom {
        /// Who was out of memory; the two-line form of old kernels does not say it here.
        scope: Option<OomScope>,
        /// The process that was killed.
        pid: u64,
        /// Its name, at most 15 bytes of it.
        comm: String,
    },
    /// A process that is blocked; its name, at most 15 bytes of it.
    HungTask(String),
    /// The number of messages that were swallowed.
    Suppressed(u64),
}

/// A request that failed at the block layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BlockError {
    /// The id without its prefix `block_` and its suffix `_error`.
    pub(super) kind: &'static str,
    /// What was asked of the device.
    pub(super) operation: Operation,
    /// The first sector, in units of 512 bytes from the start of the disk.
    pub(super) sector: u64,
    /// The kernel was reading ahead: no process has seen the error yet.
    pub(super) readahead: bool,
}

/// What was asked of the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Operation {
    /// Data was read.
    Read,
    /// Data was written.
    Write,
    /// The device was told to empty its cache: data it has acknowledged may be gone.
    Flush,
    /// Blocks were given back or zeroed.
    Discard,
    /// Anything else, such as a zone command.
    Other,
    /// The kernel is too old to say it.
    Unknown,
}

impl Operation {
    /// The value of the label `operation`.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Discard => "discard",
            Self::Other => "other",
            Self::Unknown => "unknown",
        }
    }
}

/// Who was out of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum OomScope {
    /// The whole node.
    Node,
    /// One cgroup that reached its own limit, which is usually a pod's own matter.
    Cgroup,
}

impl OomScope {
    /// The value of the label `scope`.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Cgroup => "cgroup",
        }
    }
}

/// The id of journald's own complaint: the one line that counts although a daemon wrote it.
pub(super) const JOURNALD_IO_ERROR: &str = "journald_io_error";

use Severity::{Critical, Error, Info, Warning};
use Yields::{Block, Device, DeviceOnNextLine, HungTask, Oom, Suppressed};

/// A line of the block layer whose class of error is `$class`, in every format since 3.x.
macro_rules! block {
    ($class:expr) => {
        block!(
            $class,
            r"(?: op 0x[0-9a-f]+:\((?<operation>[A-Z_]+)\))?(?: flags (?:0x)?(?<flags>[0-9a-f]+))?"
        )
    };
    ($class:expr, $rest:expr) => {
        concat!(
            r"^(?:(?:blk_update_request|print_req_error|end_request): )?(?:",
            $class,
            r") error, dev (?<device>[^,\s]+), sector (?<sector>\d+)",
            $rest
        )
    };
}

/// A line of the SCSI layer: driver, address, device if it has a name, tag if there is one.
macro_rules! scsi {
    ($rest:expr) => {
        concat!(r"^\S+ \d+:\d+:\d+:\d+: (?:\[(?<device>\w+)\] )?(?:tag#-?\d+ )?", $rest)
    };
}

const fn row(
    id: &'static str,
    severity: Severity,
    yields: Yields,
    pattern: &'static str,
) -> Signature {
    Signature { id, severity, pattern, yields }
}

/// Every signature; the first that matches a line wins.
#[rustfmt::skip]
pub(super) static SIGNATURES: &[Signature] = &[
    // The kernel's own rate limit.
    row("kmsg_suppressed", Info, Suppressed, r"^\w+: (?<count>\d+) callbacks suppressed$"),

    // Block layer. A refused discard is no error, whatever its class: the kernel does without.
    row("block_discard_unsupported", Info, Block, block!("[A-Za-z/][A-Za-z/ ]*?", r" op 0x[0-9a-f]+:\((?<operation>DISCARD|SECURE_ERASE|WRITE_ZEROES|WRITE_SAME)\)(?: flags (?:0x)?(?<flags>[0-9a-f]+))?")),
    row("block_discard_unsupported", Info, Block, block!("[A-Za-z/][A-Za-z/ ]*?", r" flags (?<flags>(?:[0-9a-f]*0)?[3579])$")),
    row("block_discard_unsupported", Info, Block, block!("operation not supported")),
    row("block_io_error", Critical, Block, block!("I/O")),
    row("block_medium_error", Critical, Block, block!("critical medium")),
    row("block_target_error", Error, Block, block!("critical target")),
    row("block_timeout_error", Critical, Block, block!("timeout")),
    row("block_transport_error", Error, Block, block!("recoverable transport")),
    row("block_offline_error", Critical, Block, block!("device offline")),
    row("block_nospace_error", Critical, Block, block!("critical space allocation")),
    row("block_protection_error", Critical, Block, block!("protection")),
    row("block_reservation_conflict", Error, Block, block!("critical nexus|reservation conflict")),
    row("block_resource_error", Info, Block, block!("kernel resource|device resource|nonblocking retry")),
    // Zones, duration limits, and classes that kernels to come may add.
    row("block_other_error", Error, Block, block!("[A-Za-z/][A-Za-z/ ]*?")),

    // Buffer cache and friends.
    row("buffer_write_lost", Critical, Device, r"^Buffer I/O error on dev(?:ice)? (?<device>[^,\s]+), logical block \d+, lost (?:a?sync) page write$"),
    row("buffer_read_error", Error, Device, r"^Buffer I/O error on dev(?:ice)? (?<device>[^,\s]+), logical block \d+(?:, async page read)?$"),
    row("block_beyond_eod", Error, DeviceOnNextLine, r"^(?:.+: )?attempt to access beyond end of device$"),
    row("block_write_readonly", Error, Device, r"^Trying to write to read-only block-device (?<device>\S+)"),
    row("iomap_writeback_error", Critical, Device, r"^(?<device>\S+): writeback error on inode \d+, offset -?\d+, sector \d+"),
    row("mmc_recovery_failed", Critical, Device, r"^(?<device>mmcblk\d+\w*): recovery failed!$"),

    // SCSI.
    row("scsi_command_failed", Error, Device, scsi!(r"(?:FAILED|UNKNOWN\(0x[0-9a-f]+\)|TIMEOUT_ERROR|SOFT_ERROR) Result: hostbyte=\S+ driverbyte=\S+")),
    row("scsi_sense_medium", Critical, Device, scsi!(r"Sense Key : (?:Medium Error|0x3) \[")),
    row("scsi_sense_hardware", Critical, Device, scsi!(r"Sense Key : (?:Hardware Error|0x4) \[")),
    row("scsi_sense_aborted", Warning, Device, scsi!(r"Sense Key : (?:Aborted Command|0xb) \[")),
    row("scsi_device_offline", Critical, Device, scsi!(r"(?:rejecting I/O to offline device|Device offlined - not ready after error recovery)$")),
    row("scsi_device_dead", Warning, Device, scsi!(r"rejecting I/O to dead device$")),
    row("scsi_command_timeout", Error, Device, scsi!(r"timing out command, waited \d+s$")),
    row("scsi_sync_cache_failed", Warning, Device, r"^\S+ \d+:\d+:\d+:\d+: (?:\[\w+\] )?Synchronize Cache\(1[06]\) failed: Result: hostbyte="),
    row("iscsi_conn_error", Error, Device, r"^\s*connection\d+:\d+: detected conn error \(\d+\)$"),
    row("iscsi_session_timeout", Critical, Device, r"^\s*session\d+: session recovery timed out after \d+ secs$"),

    // ATA names a port, which only sysfs could map to a disk.
    row("ata_exception", Error, Device, r"^ata\d+(?:\.\d\d)?: exception Emask 0x[0-9a-f]+ SAct 0x[0-9a-f]+ SErr 0x[0-9a-f]+ action 0x[0-9a-f]+"),
    row("ata_command_failed", Error, Device, r"^ata\d+\.\d\d: failed command: .+$"),
    row("ata_media_error", Critical, Device, r"^ata\d+\.\d\d: error: \{ (?:[A-Z]+ )*UNC "),
    row("ata_crc_error", Warning, Device, r"^ata\d+\.\d\d: error: \{ ICRC "),
    row("ata_link_reset", Warning, Device, r"^ata\d+(?:\.\d\d)?: (?:hard|soft) resetting (?:link|port)$"),
    row("ata_link_slow", Warning, Device, r"^ata\d+(?:\.\d\d)?: link is slow to respond, please be patient \(ready=-?\d+\)$"),
    row("ata_link_speed_limited", Warning, Device, r"^ata\d+(?:\.\d\d)?: limiting (?:SATA link )?speed to .+$"),
    row("ata_qc_timeout", Error, Device, r"^ata\d+\.\d\d: qc timeout (?:after \d+ (?:m?secs) )?\(cmd 0x[0-9a-f]+\)$"),
    row("ata_reset_failed", Critical, Device, r"^ata\d+(?:\.\d\d)?: (?:reset failed, giving up|reset failed \(errno=-?\d+\)|COMRESET failed \(errno=-?\d+\)|revalidation failed \(errno=-?\d+\))"),
    row("ata_device_disabled", Critical, Device, r"^ata\d+\.\d\d: (?:disabled|disable device)$"),

    // NVMe names the controller, except where a command failed on a namespace.
    row("nvme_timeout", Error, Device, r"^nvme nvme\d+: I/O (?:tag )?\d+ (?:\([^)]*\) )?(?:opcode 0x[0-9a-f]+ \([^)]*\) )?QID \d+ timeout, (?:aborting|reset controller|disable controller|completion polled)"),
    row("nvme_controller_down", Critical, Device, r"^nvme nvme\d+: controller is down; will reset: CSTS=0x[0-9a-f]+"),
    row("nvme_not_ready", Critical, Device, r"^nvme nvme\d+: Device not ready; aborting (?:reset|initialisation)(?:, CSTS=0x[0-9a-f]+)?$"),
    row("nvme_removed", Critical, Device, r"^nvme nvme\d+: (?:Removing after probe failure status: -?\d+|Disabling device after reset failure: -?\d+)$"),
    row("nvme_abort_status", Info, Device, r"^nvme nvme\d+: Abort status: 0x[0-9a-f]+$"),
    row("nvme_io_error", Critical, Device, r"^(?<device>nvme\w+): .+?\(0x[0-9a-f]+\) @ LBA \d+, \d+ blocks, .+? \(sct 0x[0-9a-f]+ / sc 0x[0-9a-f]+\)"),
    row("nvme_admin_error", Info, Device, r"^nvme\d+: .+?\(0x[0-9a-f]+\), .+? \(sct 0x[0-9a-f]+ / sc 0x[0-9a-f]+\)"),

    // ext4 and its journal.
    row("ext4_journal_aborted", Critical, Device, r"^EXT4-fs error \(device (?<device>[^)]+)\): ext4_journal_check_start:\d+: (?:comm .+?: )?Detected aborted journal$"),
    row("ext4_error", Critical, Device, r"^EXT4-fs error \(device (?<device>[^)]+)\)(?: in)?:? \w+:\d+: .*$"),
    row("ext4_remount_ro", Critical, Device, r"^EXT4-fs \((?<device>[^)]+)\): Remounting filesystem read-only$"),
    row("ext4_superblock_write_error", Critical, Device, r"^EXT4-fs \((?<device>[^)]+)\): (?:I/O error while writing superblock|previous I/O error to superblock detected)$"),
    row("ext4_writeback_error", Critical, Device, r"^EXT4-fs warning \(device (?<device>[^)]+)\): ext4_end_bio:\d+: I/O error -?\d+ writing to inode \d+"),
    row("ext4_data_loss", Critical, Device, r"^EXT4-fs(?: error)? \((?:device )?(?<device>[^)]+)\).*(?:Data will be lost|Delayed block allocation failed|potential data loss)"),
    row("ext4_panic", Critical, Device, r"^(?:Kernel panic - not syncing: )?EXT4-fs \(device (?<device>[^)]+)\): panic forced after error"),
    row("ext4_errors_recorded", Warning, Device, r"^EXT4-fs \((?<device>[^)]+)\): error count since last fsck: \d+$"),
    row("ext4_recovery", Info, Device, r"^EXT4-fs \((?<device>[^)]+)\): recovery complete$"),
    row("ext4_mounted", Info, Device, r"^EXT4-fs \((?<device>[^)]+)\): mounted filesystem(?: [0-9a-f-]{36})?(?: (?:ro|r/w))? with"),
    row("jbd2_abort", Critical, Device, r"^Aborting journal on device (?<device>[^ ]+?)\.$"),
    row("jbd2_superblock_error", Critical, Device, r"^JBD2: (?:I/O error when updating journal superblock|Error -?\d+ detected when updating journal superblock|previous I/O error detected for journal superblock update) for (?<device>[^ ]+?)\.$"),
    row("jbd2_io_error", Critical, Device, r"^JBD2: (?:Detected IO errors while flushing file data on (?<device>\S+)|IO error (?:-?\d+ )?(?:recovering|reading)|Failed to read block|journal transaction \d+ on \S+ is corrupt|(?:journal )?recovery failed)"),

    // XFS.
    row("xfs_shutdown", Critical, Device, r"^XFS \((?<device>[^)]+)\): (?:.*Shutting down filesystem\.?|Filesystem has been shut down due to log error \(0x[0-9a-f]+\)\.)$"),
    row("xfs_metadata_io_error", Critical, Device, r"^XFS \((?<device>[^)]+)\): metadata I/O error(?: in|:) "),
    row("xfs_log_io_error", Critical, Device, r"^XFS \((?<device>[^)]+)\): log I/O error -?\d+$"),
    row("xfs_corruption", Critical, Device, r"^XFS \((?<device>[^)]+)\): (?:Corruption detected|Metadata (?:corruption|CRC error) detected|Internal error )"),
    row("xfs_write_retry", Error, Device, r"^XFS \((?<device>[^)]+)\): Failing async write on buffer block 0x[0-9a-f]+"),

    // btrfs. The counters it shows as "info" at every mount are old; as "error" they are new.
    row("btrfs_device_error", Critical, Device, r"^BTRFS error \(device (?<device>[^)\s:]+)[^)]*\): bdev \S+ errs: wr \d+, rd \d+, flush \d+, corrupt \d+, gen \d+$"),
    row("btrfs_forced_readonly", Critical, Device, r"^BTRFS \w+ \(device (?<device>[^)\s:]+)[^)]*\): forced readonly$"),
    row("btrfs_transaction_error", Critical, Device, r"^BTRFS: (?:error \(device (?<device>[^)\s:]+)[^)]*\) in \w+:\d+: errno=-?\d+ |Transaction aborted \(error -?\d+\))"),
    row("btrfs_checksum_error", Critical, Device, r"^BTRFS \w+ \(device (?<device>[^)\s:]+)[^)]*\): (?:csum failed root|checksum verify failed on|parent transid verify failed on)"),

    // md, device mapper, ZFS. raid0 writes its name and the array's together.
    row("md_disk_failure", Critical, Device, r"^md/raid\d*:?[^:]+: Disk failure on (?<device>[^,\s]+)(?:, disabling device\.| detected, failing array\.)$"),
    row("md_unrecoverable_read", Critical, Device, r"^md/raid\d+:[^:]+: (?<device>[^:\s]+): unrecoverable I/O read error for block \d+$"),
    row("md_read_not_correctable", Error, Device, r"^md/raid:[^:]+: read error not correctable \(sector \d+ on (?<device>[^)]+)\)\.$"),
    row("md_read_corrected", Warning, Device, r"^md/raid\d*:[^:]+: read error corrected \(\d+ sectors at \d+ on (?<device>[^)]+)\)$"),
    row("dm_path_failed", Error, Device, r"^device-mapper: multipath: \d+:\d+: Failing path \d+:\d+\.$"),
    row("dm_thin_low_water", Warning, Device, r"^device-mapper: thin: \d+:\d+: reached low water mark for (?:data|metadata) device: sending event\.$"),
    row("dm_thin_mode", Critical, Device, r"^device-mapper: thin: \d+:\d+: switching pool to (?:out-of-data-space|read-only|fail)\b"),
    row("dm_thin_metadata_failed", Critical, Device, r"^device-mapper: thin: \d+:\d+: (?:metadata operation '[^']+' failed: error = -?\d+|aborting current metadata transaction|failed to abort metadata transaction)$"),
    row("dm_integrity_error", Critical, Device, r"^device-mapper: (?:integrity|crypt|verity): (?:\S+: )?(?:Checksum failed|INTEGRITY AEAD ERROR|.* is corrupted)"),
    row("zfs_pool_suspended", Critical, Device, r"^(?:SPL.*)?WARNING: Pool '[^']+' has encountered an uncorrectable I/O failure and has been suspended\."),
    row("zfs_vdev_io_error", Error, Device, r"^zio pool=\S+ vdev=\S+ error=\d+ type=\d+ offset=\d+ size=\d+ flags="),

    // Stalls and memory. A process name may hold colons, slashes, brackets and parentheses.
    row("hung_task", Error, HungTask, r"^INFO: task (?<process>.+):\d+ blocked (?:in I/O wait )?for more than \d+ seconds\.$"),
    row("oom_kill", Critical, Oom, r"^(?:(?<scope>Out of memory(?: \(oom_kill_allocating_task\))?|Memory cgroup out of memory): )?Killed process (?<pid>\d+) \((?<process>.*)\)(?:,| total-vm:)"),
    row("oom_context", Info, Device, r"^(?:oom-kill:constraint=\w+,|.+ invoked oom-killer: |oom_reaper: reaped process )"),
    row("soft_lockup", Error, Device, r"^(?:NMI )?(?:watchdog: )?BUG: soft lockup - CPU#\d+ stuck for \d+s! \[.+:\d+\]$"),
    row("hard_lockup", Critical, Device, r"^(?:watchdog: |NMI watchdog: )?Watchdog detected hard LOCKUP on cpu \d+"),
    row("rcu_stall", Error, Device, r"^(?:rcu: )?INFO: \w+ (?:self-)?detected (?:expedited )?stalls? on CPU"),

    // Hardware.
    row("mce_logged", Warning, Device, r"^mce: \[Hardware Error\]: Machine check events logged$"),
    row("mce_event", Error, Device, r"^mce: \[Hardware Error\]: CPU \d+: Machine Check(?: Exception)?: [0-9a-fx]+ Bank \d+: [0-9a-f]+$"),
    row("edac_ue", Critical, Device, r"^EDAC MC\d+: \d+ UE "),
    row("edac_ce", Warning, Device, r"^EDAC MC\d+: \d+ CE "),
    row("memory_failure", Critical, Device, r"^Memory failure: 0x[0-9a-f]+: (?:recovery action for .+: \w+|Sending SIGBUS to |[Kk]illing )"),
    row("apei_hw_error", Error, Device, r"^\{\d+\}\[Hardware Error\]: event severity: \w+$"),

    // journald has nowhere else to complain when the disk of the journal fails.
    row(JOURNALD_IO_ERROR, Critical, Device, r"^(?:systemd-journald\[\d+\]: )?(?:\S+: (?:IO error|Read-only file system), rotating\.|Failed to (?:write entry|rotate|vacuum|open) .*(?:Input/output error|Read-only file system)|An error was encountered while opening journal file or directory \S+, ignoring file: Input/output error)"),
];

/// The table, compiled.
pub(super) struct Classifier {
    /// All patterns at once, in the order of the table.
    set: RegexSet,
    /// The pattern of each row alone, compiled when it first matches: most never do.
    single: Vec<OnceCell<Option<Regex>>>,
}

impl Classifier {
    /// Compiles the table.
    ///
    /// # Errors
    ///
    /// When a pattern is wrong, which the tests rule out.
    pub(super) fn new() -> Result<Self, regex::Error> {
        let set = RegexSetBuilder::new(SIGNATURES.iter().map(|s| s.pattern))
            // The kernel writes ASCII; Unicode classes would cost memory and match too much.
            .unicode(false)
            .build()?;
        Ok(Self { set, single: SIGNATURES.iter().map(|_| OnceCell::new()).collect() })
    }

    /// What the lines of a record's text say, each tested by itself.
    pub(super) fn classify(&self, text: &str) -> Vec<(Hit, String)> {
        let mut hits = Vec::new();
        let mut lines = text.lines().peekable();
        while let Some(line) = lines.next() {
            if let Some(hit) = self.classify_line(line, lines.peek().copied()) {
                hits.push((hit, line.trim().to_owned()));
            }
        }
        hits
    }

    /// What one line says; some messages name their device on the `next` line only.
    fn classify_line(&self, line: &str, next: Option<&str>) -> Option<Hit> {
        // Many drivers end their lines with a blank.
        let line = line.trim_end().as_bytes();
        let index = self.set.matches(line).iter().next()?;
        let signature = SIGNATURES.get(index)?;
        let mut hit = Hit {
            id: signature.id,
            severity: signature.severity,
            device: None,
            payload: Payload::Nothing,
        };
        if signature.yields == DeviceOnNextLine {
            hit.device =
                next.and_then(|next| next.split_once(": rw=")).and_then(|d| whole_disk(d.0));
            return Some(hit);
        }
        let single = self
            .single
            .get(index)?
            .get_or_init(|| RegexBuilder::new(signature.pattern).unicode(false).build().ok());
        if let Some(captures) = single.as_ref().and_then(|regex| regex.captures(line)) {
            hit.device = group(&captures, "device").and_then(|name| whole_disk(&name));
            hit.payload = payload(signature, &captures);
        }
        Some(hit)
    }
}

fn payload(signature: &Signature, captures: &Captures<'_>) -> Payload {
    match signature.yields {
        Device | DeviceOnNextLine => Payload::Nothing,
        // A number beyond u64 is no sector or process: the line still counts by its id.
        Block => number(captures, "sector").map_or(Payload::Nothing, |sector| {
            let flags = group(captures, "flags").and_then(|f| u64::from_str_radix(&f, 16).ok());
            let name = group(captures, "operation");
            Payload::Block(BlockError {
                kind: block_kind(signature.id),
                operation: operation(name.as_deref(), flags),
                sector,
                readahead: flags.is_some_and(|flags| flags & 0x8_0000 != 0),
            })
        }),
        Oom => Payload::Oom {
            scope: group(captures, "scope").map(|scope| {
                if scope.starts_with("Memory cgroup") { OomScope::Cgroup } else { OomScope::Node }
            }),
            pid: number(captures, "pid").unwrap_or(0),
            comm: group(captures, "process").unwrap_or_default(),
        },
        HungTask => Payload::HungTask(group(captures, "process").unwrap_or_default()),
        Suppressed => Payload::Suppressed(number(captures, "count").unwrap_or(0)),
    }
}

fn group(captures: &Captures<'_>, name: &str) -> Option<String> {
    Some(String::from_utf8_lossy(captures.name(name)?.as_bytes()).into_owned())
}

fn number(captures: &Captures<'_>, name: &str) -> Option<u64> {
    group(captures, name)?.parse().ok()
}

fn block_kind(id: &'static str) -> &'static str {
    let kind = id.strip_prefix("block_").unwrap_or(id);
    kind.strip_suffix("_error").unwrap_or(kind)
}

/// Kernels from 5.3 name the operation; 5.0 to 5.2 have it in the low byte of the flags, which
/// later kernels clear, and older ones do not tell.
fn operation(name: Option<&str>, flags: Option<u64>) -> Operation {
    match (name, flags.map(|flags| flags & 0xff)) {
        (Some("READ"), _) | (None, Some(0)) => Operation::Read,
        (Some("WRITE" | "ZONE_APPEND"), _) | (None, Some(1)) => Operation::Write,
        (Some("FLUSH"), _) | (None, Some(2)) => Operation::Flush,
        (Some("DISCARD" | "SECURE_ERASE" | "WRITE_ZEROES" | "WRITE_SAME"), _)
        | (None, Some(3 | 5 | 7 | 9)) => Operation::Discard,
        (Some(_), _) | (None, Some(_)) => Operation::Other,
        (None, None) => Operation::Unknown,
    }
}

/// Kernels before 5.3 say in a line of their own who is out of memory, before the line that counts:
/// `Memory cgroup out of memory: Kill process 4378 (heapster) score 1023 or sacrifice child`.
/// Returns the process that is about to be killed and the scope.
pub(super) fn oom_choice(line: &str) -> Option<(u64, OomScope)> {
    let (scope, rest) = if let Some(rest) = line.strip_prefix("Memory cgroup out of memory") {
        (OomScope::Cgroup, rest)
    } else {
        (OomScope::Node, line.strip_prefix("Out of memory")?)
    };
    let (_, rest) = rest.split_once(": Kill process ")?;
    let (pid, _) = rest.split_once(' ')?;
    Some((pid.parse().ok()?, scope))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use serde::Deserialize;

    use super::super::device::{DEFAULT_IGNORED, Devices};
    use super::*;

    #[derive(Deserialize)]
    struct Sample {
        line: String,
        expect: Option<String>,
        device: Option<String>,
        sector: Option<u64>,
        origin: String,
    }

    fn only(text: &str) -> Hit {
        let mut hits = Classifier::new().unwrap().classify(text);
        assert_eq!(hits.len(), 1, "{text}: {hits:?}");
        hits.remove(0).0
    }

    fn block(text: &str) -> BlockError {
        match only(text).payload {
            Payload::Block(error) => error,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn every_captured_line_counts_as_what_it_is() {
        let file =
            include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/kmsg-samples.jsonl"));
        let classifier = Classifier::new().unwrap();
        let devices = Devices::new(&DEFAULT_IGNORED.map(str::to_owned), &[]).unwrap();
        let mut wrong = Vec::new();
        let mut seen = 0;
        for line in file.lines() {
            let sample: Sample = serde_json::from_str(line).unwrap();
            let mut hits = classifier.classify(&sample.line);
            hits.retain(|(hit, _)| !hit.device.as_deref().is_some_and(|d| devices.is_ignored(d)));
            let hit = hits.first().map(|(hit, _)| hit);
            let sector = hit.and_then(|hit| match hit.payload {
                Payload::Block(error) => Some(error.sector),
                _ => None,
            });
            let got = (hit.map(|h| h.id), hit.and_then(|h| h.device.as_deref()), sector);
            let expected = (sample.expect.as_deref(), sample.device.as_deref(), sample.sector);
            if got != expected || hits.len() > 1 {
                wrong
                    .push(format!("{}: {got:?}, not {expected:?}: {}", sample.origin, sample.line));
            }
            seen += 1;
        }
        assert!(seen > 150, "only {seen} samples");
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    #[test]
    fn every_pattern_compiles_alone_and_every_id_is_a_label() {
        for signature in SIGNATURES {
            let pattern = signature.pattern;
            let regex = RegexBuilder::new(pattern).unicode(false).build().unwrap();
            let groups: BTreeSet<_> = regex.capture_names().flatten().collect();
            let needed: &[&str] = match signature.yields {
                Device | DeviceOnNextLine => &[],
                Block => &["device", "sector", "flags"],
                Oom => &["scope", "pid", "process"],
                HungTask => &["process"],
                Suppressed => &["count"],
            };
            assert!(needed.iter().all(|g| groups.contains(g)), "{}: {groups:?}", signature.id);
            let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
            assert!(signature.id.bytes().all(word), "{}", signature.id);
        }
    }

    #[test]
    fn every_format_of_the_block_layer_gives_the_same_error() {
        let tail = "dev sda, sector 1198032";
        let op = "op 0x1:(WRITE) flags 0x80800 phys_seg 1 prio class 2";
        for (text, operation, readahead) in [
            (format!("end_request: I/O error, {tail}"), Operation::Unknown, false),
            (format!("blk_update_request: I/O error, {tail}"), Operation::Unknown, false),
            (format!("print_req_error: I/O error, {tail}"), Operation::Unknown, false),
            (format!("print_req_error: I/O error, {tail} flags 80701"), Operation::Write, true),
            (format!("blk_update_request: I/O error, {tail} {op}"), Operation::Write, true),
            (format!("I/O error, {tail} {op}"), Operation::Write, true),
        ] {
            let expected = BlockError { kind: "io", operation, sector: 1_198_032, readahead };
            assert_eq!(block(&text), expected, "{text}");
            assert_eq!(only(&text).device.as_deref(), Some("sda"));
        }
    }

    #[test]
    fn each_class_of_block_error_is_a_kind_of_its_own() {
        for (class, kind) in [
            ("I/O", "io"),
            ("critical medium", "medium"),
            ("critical target", "target"),
            ("timeout", "timeout"),
            ("recoverable transport", "transport"),
            ("device offline", "offline"),
            ("critical space allocation", "nospace"),
            ("protection", "protection"),
            ("critical nexus", "reservation_conflict"),
            ("reservation conflict", "reservation_conflict"),
            ("kernel resource", "resource"),
            ("device resource", "resource"),
            ("nonblocking retry", "resource"),
            ("operation not supported", "discard_unsupported"),
            ("active zones exceeded", "other"),
            ("duration limit exceeded", "other"),
            ("dm internal retry", "other"),
            ("never heard of", "other"),
        ] {
            let text = format!("{class} error, dev vda, sector 8 op 0x0:(READ) flags 0x0");
            assert_eq!(block(&text).kind, kind, "{class}");
        }
    }

    #[test]
    fn the_operation_is_named_or_numbered() {
        for (tail, operation) in [
            ("op 0x0:(READ) flags 0x0", Operation::Read),
            ("op 0x1:(WRITE) flags 0x800", Operation::Write),
            ("op 0x2:(FLUSH) flags 0x800", Operation::Flush),
            ("op 0xd:(ZONE_APPEND) flags 0x0", Operation::Write),
            ("op 0x22:(DRV_IN) flags 0x0", Operation::Other),
            ("flags 80700", Operation::Read),
            ("flags 701", Operation::Write),
            ("flags 2", Operation::Flush),
            ("flags 20", Operation::Other),
            ("", Operation::Unknown),
        ] {
            let error = block(&format!("print_req_error: I/O error, dev sda, sector 8 {tail}"));
            assert_eq!((error.kind, error.operation), ("io", operation), "{tail}");
        }
    }

    #[test]
    fn a_refused_discard_is_no_error_whatever_its_class() {
        for text in [
            "critical target error, dev sdb, sector 2048 op 0x3:(DISCARD) flags 0x800 phys_seg 1",
            "I/O error, dev sdb, sector 2048 op 0x5:(SECURE_ERASE) flags 0x800",
            "timeout error, dev sdb, sector 2048 op 0x9:(WRITE_ZEROES) flags 0x1000800",
            "blk_update_request: I/O error, dev sdb, sector 1 op 0x7:(WRITE_SAME) flags 0x0",
            "print_req_error: critical target error, dev sdb, sector 2048 flags 803",
            "print_req_error: critical target error, dev sdb, sector 2048 flags 9",
        ] {
            let hit = only(text);
            assert_eq!((hit.id, hit.severity), ("block_discard_unsupported", Info), "{text}");
            assert_eq!(block(text).operation, Operation::Discard, "{text}");
        }
        let flags = only("print_req_error: I/O error, dev sdb, sector 1 flags 13");
        assert_eq!(flags.id, "block_io_error", "0x13 is no discard");
    }

    #[test]
    fn a_line_that_only_quotes_an_error_is_none() {
        let classifier = Classifier::new().unwrap();
        for text in [
            "",
            "Input/output error",
            "audit: op=I/O error, dev sda, sector 1",
            "SQL I/O error on device",
            "[  246.74] I/O error, dev sda, sector 1 op 0x0:(READ) flags 0x0",
            "BTRFS warning (device sda1): i/o error at logical 1 on dev /dev/sda1, physical 1",
        ] {
            assert_eq!(classifier.classify(text), [], "{text}");
        }
    }

    #[test]
    fn the_device_beyond_its_end_is_on_the_next_line() {
        let hit = only(
            "kworker/u8:1: attempt to access beyond end of device\nnvme0n1p2: rw=1, sector=9, \
             nr_sectors = 8 limit=0",
        );
        assert_eq!((hit.id, hit.device.as_deref()), ("block_beyond_eod", Some("nvme0n1")));
        assert_eq!(only("attempt to access beyond end of device").device, None);
    }

    #[test]
    fn a_device_without_a_name_is_none() {
        let hit = only("I/O error, dev ?, sector 5 op 0x0:(READ) flags 0x0 phys_seg 1");
        assert_eq!((hit.id, hit.device), ("block_io_error", None));
    }

    #[test]
    fn a_sector_beyond_all_numbers_still_counts_by_its_id() {
        let hit = only("I/O error, dev sda, sector 99999999999999999999999999");
        assert_eq!((hit.id, hit.payload), ("block_io_error", Payload::Nothing));
    }

    #[test]
    fn an_oom_kill_tells_process_and_scope() {
        for (text, scope, comm) in [
            (
                "Out of memory: Killed process 1 (etcd) total-vm:1kB, anon-rss:1kB",
                Some(OomScope::Node),
                "etcd",
            ),
            (
                "Out of memory (oom_kill_allocating_task): Killed process 1 (a b) total-vm:1kB",
                Some(OomScope::Node),
                "a b",
            ),
            (
                "Memory cgroup out of memory: Killed process 1 ((resolved)) total-vm:1kB",
                Some(OomScope::Cgroup),
                "(resolved)",
            ),
            ("Killed process 1 (x) y), total-vm:1kB", None, "x) y"),
        ] {
            let expected = Payload::Oom { scope, pid: 1, comm: comm.to_owned() };
            assert_eq!(only(text).payload, expected, "{text}");
        }
    }

    #[test]
    fn old_kernels_tell_the_scope_one_line_early() {
        let line = "Memory cgroup out of memory: Kill process 4378 (heapster) score 1023 or \
                    sacrifice child";
        assert_eq!(oom_choice(line), Some((4378, OomScope::Cgroup)));
        let line = "Out of memory: Kill process 7 (etcd) score 9 or sacrifice child";
        assert_eq!(oom_choice(line), Some((7, OomScope::Node)));
        assert_eq!(oom_choice("Out of memory: Killed process 7 (etcd) total-vm:1kB"), None);
        assert_eq!(oom_choice("Out of memory: Kill process x (etcd)"), None);
        assert_eq!(oom_choice("Kill process 7 (etcd)"), None);
    }

    #[test]
    fn a_hung_task_is_named_with_all_its_colons() {
        for (text, comm) in [
            ("INFO: task kworker/4:2:1520 blocked for more than 360 seconds.", "kworker/4:2"),
            ("INFO: task jbd2/dm-13-8:1844 blocked for more than 120 seconds.", "jbd2/dm-13-8"),
            ("INFO: task etcd:812 blocked in I/O wait for more than 122 seconds.", "etcd"),
        ] {
            assert_eq!(only(text).payload, Payload::HungTask(comm.to_owned()));
        }
    }

    #[test]
    fn swallowed_messages_are_counted() {
        let hit = only("print_req_error: 546 callbacks suppressed");
        assert_eq!(hit.payload, Payload::Suppressed(546));
    }

    #[test]
    fn raid0_names_its_disk_too() {
        let hit = only("md/raid0md0: Disk failure on sdb1 detected, failing array.");
        assert_eq!((hit.id, hit.device.as_deref()), ("md_disk_failure", Some("sdb")));
    }

    #[test]
    fn each_line_of_a_record_counts_by_itself() {
        let classifier = Classifier::new().unwrap();
        let hits = classifier.classify(
            "XFS (sdb1): log I/O error -5\nnothing\nXFS (sdb1): Log I/O Error Detected.  \
             Shutting down filesystem \n",
        );
        let ids: Vec<_> = hits.iter().map(|(hit, _)| hit.id).collect();
        assert_eq!(ids, ["xfs_log_io_error", "xfs_shutdown"]);
    }

    thread_local! {
        /// Compiled once for all the cases of a property.
        static CLASSIFIER: Classifier = Classifier::new().unwrap();
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in ".{0,300}") {
            CLASSIFIER.with(|classifier| classifier.classify(&text));
        }

        #[test]
        fn no_device_name_is_longer_or_stranger_than_a_device_name(name in "[^,\\s]{1,80}") {
            let text = format!("I/O error, dev {name}, sector 1");
            for (hit, _) in CLASSIFIER.with(|classifier| classifier.classify(&text)) {
                let device = hit.device.unwrap_or_default();
                prop_assert!(device.len() <= 32 && device.is_ascii());
            }
        }
    }
}
