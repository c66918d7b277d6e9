//! The table of signatures: what the kernel says when a disk, a filesystem or memory fails.
//!
//! A row gives an id, how bad it is, what the pattern yields, and the pattern. The first row that
//! matches a line wins, so the order matters. Patterns follow the shape of a line and not the
//! kernel's version, since vendors backport messages. The named groups `device`, `sector`,
//! `operation`, `flags`, `scope`, `pid`, `process` and `count` are what a line yields. Every pattern
//! is anchored at the beginning: a line that only quotes an error is none, and most lines are
//! dismissed after a few bytes.

use crate::severity::Severity;

/// What a pattern yields besides its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Yields {
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
    /// The pattern, in the syntax of the crate `regex`, of a line without its blanks at the end.
    pub(super) pattern: &'static str,
    /// What it yields besides its id.
    pub(super) yields: Yields,
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
    row("iomap_writeback_error", Critical, Device, r"^(?:XFS \()?(?<device>[^\s():]+)\)?: writeback error on (?:inode \d+, offset -?\d+, )?sector \d+"),
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
    row("jbd2_io_error", Critical, Device, r"^JBD2: (?:Detected IO errors (?:-?\d+ )?while flushing file data on (?<device>\S+)|IO error (?:-?\d+ )?(?:recovering|reading)|Failed to read block|journal transaction \d+ on \S+ is corrupt|(?:journal )?recovery failed)"),

    // XFS.
    row("xfs_shutdown", Critical, Device, r"^XFS \((?<device>[^)]+)\): (?:(?:(?:Log |Metadata )?I/O Error|Corruption of|Block device removal).*Shutting down filesystem\.?|Filesystem has been shut down due to log error \(0x[0-9a-f]+\)\.)$"),
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
    row("hard_lockup", Critical, Device, r"^(?:watchdog: |NMI watchdog: )?(?:CPU\d+: )?Watchdog detected hard LOCKUP on cpu \d+"),
    row("rcu_stall", Error, Device, r"^(?:rcu: )?INFO: \w+ (?:self-)?detected (?:expedited )?stalls? on CPU"),

    // Hardware.
    row("mce_logged", Warning, Device, r"^mce: \[Hardware Error\]: Machine check events logged$"),
    row("mce_event", Error, Device, r"^mce: \[Hardware Error\]: CPU \d+: Machine Check(?: Exception)?: [0-9a-fx]+ Bank \d+: [0-9a-f]+$"),
    row("edac_ue", Critical, Device, r"^EDAC MC\d+: \d+ UE "),
    row("edac_ce", Warning, Device, r"^EDAC MC\d+: \d+ CE "),
    row("memory_failure", Critical, Device, r"^Memory failure: 0x[0-9a-f]+: (?:recovery action for .+: \w+|Sending SIGBUS to |[Kk]illing )"),
    row("apei_hw_error", Error, Device, r"^\{\d+\}\[Hardware Error\]: event severity: \w+$"),

    // journald has nowhere else to complain when the disk of the journal fails.
    row(JOURNALD_IO_ERROR, Critical, Device, r"^(?:systemd-journald\[\d+\]: )?(?:\S+: (?:IO error|Read-only file system), rotating\.|Failed to (?:write entry|rotate|vacuum|open|create) .*(?:Input/output error|Read-only file system)|Unknown SIGBUS page, aborting\.|An error was encountered while opening journal file or directory \S+, ignoring file: Input/output error)"),
];
