//! The thresholds of the shipped alert rules: one table, in the order of the rules' files.
//!
//! Whatever judges a figure without Prometheus goes by this table, and it is printed into METRICS.md. A test
//! holds it against `alerts/*.rules.yaml`, number by number.

use std::time::Duration;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Context for whoever looks.
    Info,
    /// Somebody should look at it in the next days.
    Warning,
    /// Somebody must look at it now.
    Critical,
}

impl Severity {
    /// The value of the rule's label `severity`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

/// On which side of the limit it is bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bad {
    /// Greater than the limit.
    Above,
    /// The limit, or greater.
    AtLeast,
    /// Less than the limit.
    Below,
    /// The limit itself.
    Exactly,
}

impl Bad {
    /// As a rule's expression writes it.
    pub fn operator(self) -> &'static str {
        match self {
            Self::Above => ">",
            Self::AtLeast => ">=",
            Self::Below => "<",
            Self::Exactly => "==",
        }
    }
}

/// What a limit counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Seconds.
    Seconds,
    /// Bytes.
    Bytes,
    /// A share from 0 to 1.
    Share,
    /// A multiple of another figure.
    Times,
    /// Things that can be counted.
    Count,
}

impl Unit {
    /// As performance data writes it.
    pub fn symbol(self) -> &'static str {
        match self {
            Self::Seconds => "s",
            Self::Bytes => "B",
            Self::Share => "%",
            Self::Times | Self::Count => "",
        }
    }

    /// What a number of the table is multiplied with to be in [`Unit::symbol`].
    pub fn scale(self) -> f64 {
        if self == Self::Share { 100.0 } else { 1.0 }
    }
}

/// One number of one rule. A rule with several conditions has several rows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Threshold {
    /// Name of the alert.
    pub alert: &'static str,
    /// Severity of the rule that the number stands in.
    pub severity: Severity,
    /// What is compared.
    pub figure: &'static str,
    /// On which side of `limit` it is bad.
    pub bad: Bad,
    /// The number, in `unit`.
    pub limit: f64,
    /// What the number counts.
    pub unit: Unit,
    /// How long it must hold before the alert fires; zero for at once.
    pub hold: Duration,
}

/// Processes whose death by the kernel is the control plane's.
pub const CONTROL_PLANE: [&str; 15] = [
    "etcd",
    "k3s",
    "k3s-server",
    "rke2",
    "k0s",
    "kine",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kubelite",
    "k8s-dqlite",
    "containerd",
    "crio",
    "dockerd",
];
/// Threads of the kernel that write to disks; blocked ones are the control plane's trouble as well.
pub const WRITERS: [&str; 4] = ["jbd2", "xfsaild", "txg_sync", "btrfs-transaction"];
/// Events of the kernel's log after which a filesystem takes no more writes.
pub const FILESYSTEM_ABORTED: [&str; 5] = [
    "jbd2_abort",
    "ext4_remount_ro",
    "xfs_shutdown",
    "btrfs_forced_readonly",
    "zfs_pool_suspended",
];
/// What lines of the control plane's logs alert on: the alert, what happened, and the signatures that say so.
pub static LOGGED: [(&str, &str, &[&str]); 13] = [
    ("ControlPlaneVolumeFormatted", "volume formatted", &["volume_formatting", "volume_formatted"]),
    (
        "ControlPlaneVolumeDamaged",
        "volume damaged",
        &["volume_format_failed", "volume_fsck_failed"],
    ),
    ("ControlPlaneVolumeMountFailing", "failed mounts of 15 minutes", &["volume_mount_failed"]),
    (
        "ControlPlaneDatastoreCorrupt",
        "datastore damaged",
        &[
            "etcd_raft_panic",
            "etcd_corrupt",
            "etcd_wal_corrupt",
            "etcd_db_corrupt",
            "kine_db_malformed",
            "dqlite_raft_corrupt",
        ],
    ),
    (
        "ControlPlaneDatastoreWriteFailed",
        "datastore could not write",
        &[
            "etcd_wal_write_failed",
            "kine_tx_fatal",
            "kine_io_error",
            "dqlite_nospace",
            "dqlite_io_error",
        ],
    ),
    ("ControlPlaneReadFault", "page of a file not readable", &["go_sigbus", "sdjournal_sigbus"]),
    ("ControlPlaneLeaderElectionLost", "leader election lost", &["leaderelection_lost"]),
    (
        "ControlPlaneProgramFatal",
        "program ended and said why",
        &[
            "k3s_fatal",
            "k3s_shutdown_requested",
            "etcd_fatal",
            "dqlite_fatal",
            "dqlite_unknown_flag",
        ],
    ),
    ("ControlPlaneEtcdPeerUnknown", "etcd peer that is no member", &["etcd_peer_unknown"]),
    ("ControlPlaneUnitKilledByOomd", "killed by systemd-oomd", &["unit_oomd_kill"]),
    ("ControlPlaneUnitWatchdog", "watchdog missed", &["unit_watchdog"]),
    ("ControlPlaneEtcdHeartbeatLate", "late heartbeats of 15 minutes", &["etcd_heartbeat_late"]),
    (
        "ControlPlaneLonghornVolumeFault",
        "Longhorn volume at fault",
        &[
            "longhorn_replica_error",
            "longhorn_io_timeout",
            "longhorn_io_error",
            "longhorn_engine_dead",
        ],
    ),
];
/// Ways in which the sync probe fails that say nothing about the disk.
pub const NO_FAULT_OF_THE_DISK: [&str; 5] = ["ENOENT", "ENOTDIR", "EACCES", "EPERM", "EOPNOTSUPP"];

impl Threshold {
    /// Whether this value is on the bad side of the limit.
    pub fn is_bad(&self, value: f64) -> bool {
        match self.bad {
            Bad::Above => value > self.limit,
            Bad::AtLeast => value >= self.limit,
            Bad::Below => value < self.limit,
            Bad::Exactly => (value - self.limit).abs() < f64::EPSILON,
        }
    }

    /// The values on the bad side, as a range of the monitoring plugins, in [`Unit::symbol`].
    pub fn range(&self) -> String {
        let limit = round(self.limit * self.unit.scale());
        match self.bad {
            // No figure is below zero, and many programs read plain numbers only.
            Bad::Above => limit,
            Bad::AtLeast => format!("@{limit}:"),
            Bad::Below => format!("{limit}:"),
            Bad::Exactly => format!("@{limit}:{limit}"),
        }
    }

    /// The condition for people, such as `above 65 %`.
    pub fn condition(&self) -> String {
        let limit = match self.unit {
            Unit::Seconds => seconds(self.limit),
            Unit::Bytes => bytes(self.limit),
            Unit::Share => format!("{} %", round(self.limit * 100.0)),
            Unit::Times => format!("{} ×", round(self.limit)),
            Unit::Count => round(self.limit),
        };
        let bad = match self.bad {
            Bad::Above => "above",
            Bad::AtLeast => "at least",
            Bad::Below => "below",
            Bad::Exactly => "exactly",
        };
        format!("{bad} {limit}")
    }
}

fn round(number: f64) -> String {
    let text = format!("{number:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn seconds(limit: f64) -> String {
    match limit {
        s if s < 1.0 => format!("{} ms", round(s * 1e3)),
        s if s < 120.0 => format!("{} s", round(s)),
        s if s < 7200.0 => format!("{} min", round(s / 60.0)),
        s if s < 172_800.0 => format!("{} h", round(s / 3600.0)),
        s => format!("{} days", round(s / 86_400.0)),
    }
}

fn bytes(limit: f64) -> String {
    let mib = limit / f64::from(1 << 20);
    // Limits are round numbers, in one way of counting or in the other.
    if mib.fract() == 0.0 { format!("{mib} MiB") } else { format!("{} MB", round(limit / 1e6)) }
}

const fn at(
    alert: &'static str,
    severity: Severity,
    figure: &'static str,
    bad: Bad,
    limit: f64,
    unit: Unit,
    minutes: u64,
) -> Threshold {
    Threshold { alert, severity, figure, bad, limit, unit, hold: Duration::from_mins(minutes) }
}

use Bad::{Above, AtLeast, Below, Exactly};
use Severity::{Critical, Info, Warning};
use Unit::{Bytes, Count, Seconds, Share, Times};

/// Every number that a shipped rule compares a figure with. Verdicts (0 or 1) and "more than one" are not in it.
#[rustfmt::skip]
pub static TABLE: &[Threshold] = &[
    // etcd
    at("ControlPlaneEtcdQuorumAtRisk", Warning, "voters listed", Above, 2.0, Count, 5),
    at("ControlPlaneEtcdQuorumAtRisk", Critical, "voters listed", Above, 2.0, Count, 15),
    at("ControlPlaneEtcdTwoVoters", Warning, "voters listed", Exactly, 2.0, Count, 15),
    at("ControlPlaneEtcdLeaderFlapping", Warning, "elections in 15 minutes", AtLeast, 3.0, Count, 0),
    at("ControlPlaneEtcdRequestsSlow", Warning, "linearizable reads, p90 of 10 minutes", Above, 0.1, Seconds, 10),
    at("ControlPlaneEtcdRequestsSlow", Critical, "linearizable reads, p90 of 5 minutes", Above, 0.4, Seconds, 2),
    at("ControlPlaneEtcdMemberSlow", Warning, "reads through the member, median of 5 minutes", Above, 0.1, Seconds, 5),
    at("ControlPlaneEtcdMemberSlow", Warning, "the same against the median member", Above, 5.0, Times, 5),
    at("ControlPlaneEtcdQuotaLow", Warning, "database size of its quota", Above, 0.65, Share, 10),
    at("ControlPlaneEtcdQuotaLow", Critical, "database size of its quota", Above, 0.8, Share, 5),
    at("ControlPlaneEtcdQuotaForecast", Warning, "database size of its quota", Above, 0.25, Share, 60),
    at("ControlPlaneEtcdDatabaseFragmented", Warning, "reclaimable bytes", Above, 104_857_600.0, Bytes, 10),
    at("ControlPlaneEtcdDatabaseFragmented", Warning, "reclaimable share of the database", Above, 0.5, Share, 10),
    at("ControlPlaneEtcdDatabaseUnusual", Info, "database size", Above, 200e6, Bytes, 10),
    at("ControlPlaneEtcdDatabaseUnusual", Info, "database size against its smallest of 7 days", Above, 2.0, Times, 10),
    // dqlite
    at("ControlPlaneDqliteQuorumAtRisk", Warning, "voters listed", Above, 2.0, Count, 5),
    at("ControlPlaneDqliteQuorumAtRisk", Critical, "voters listed", Above, 2.0, Count, 15),
    at("ControlPlaneDqliteTwoMembers", Warning, "members listed", Exactly, 2.0, Count, 15),
    at("ControlPlaneDqliteLeaderFlapping", Warning, "elections in 15 minutes", AtLeast, 3.0, Count, 0),
    at("ControlPlaneDqliteClusterFileFrozen", Warning, "age of cluster.yaml", Above, 90.0, Seconds, 2),
    at("ControlPlaneDqliteSnapshotLarge", Warning, "newest snapshot", Above, 50e6, Bytes, 10),
    at("ControlPlaneDqliteSnapshotLarge", Warning, "free share of the database's pages", Above, 0.5, Share, 10),
    at("ControlPlaneDqliteSnapshotLarge", Warning, "free pages of the database", Above, 104_857_600.0, Bytes, 10),
    at("ControlPlaneDqliteBackendGrowing", Warning, "directory", Above, 1e9, Bytes, 30),
    at("ControlPlaneDqliteBackendGrowing", Warning, "directory against the newest snapshot", Above, 5.0, Times, 30),
    at("ControlPlaneDqliteBackendGrowing", Warning, "log entries after the newest snapshot", Above, 20_000.0, Count, 30),
    at("ControlPlaneDqliteCertificateExpires", Warning, "time until the certificate ends", Below, 7_776_000.0, Seconds, 15),
    at("ControlPlaneDqliteCertificateExpires", Critical, "time until the certificate ends", Below, 1_209_600.0, Seconds, 15),
    // kine
    at("ControlPlaneKineNotAnswering", Critical, "time since a read succeeded", Above, 90.0, Seconds, 1),
    at("ControlPlaneKineReadsSlow", Warning, "reads, p90 of 5 minutes", Above, 0.1, Seconds, 10),
    at("ControlPlaneKineReadsSlow", Critical, "reads, p90 of 5 minutes", Above, 0.4, Seconds, 2),
    // etcd_snapshot
    at("ControlPlaneEtcdSnapshotOld", Warning, "age of the newest snapshot", Above, 93_600.0, Seconds, 15),
    at("ControlPlaneEtcdSnapshotMissing", Warning, "age of the datastore", Above, 93_600.0, Seconds, 15),
    // certificate
    at("ControlPlaneCertificateExpires", Warning, "time until the certificate ends", Below, 2_592_000.0, Seconds, 15),
    at("ControlPlaneCertificateExpires", Critical, "time until the certificate ends", Below, 604_800.0, Seconds, 15),
    // disk
    at("ControlPlaneDiskSyncSlow", Info, "syncs, median of 15 minutes", Above, 0.01, Seconds, 60),
    at("ControlPlaneDiskSyncSlow", Warning, "syncs, p90 of 15 minutes", Above, 0.05, Seconds, 10),
    at("ControlPlaneDiskSyncSlow", Critical, "syncs, p90 of 15 minutes", Above, 0.25, Seconds, 5),
    at("ControlPlaneDiskSyncStalls", Warning, "syncs above 1 s in 10 minutes", AtLeast, 3.0, Count, 0),
    at("ControlPlaneDiskSyncStuck", Warning, "sync in flight", Above, 5.0, Seconds, 0),
    at("ControlPlaneDiskSyncStuck", Critical, "sync in flight", Above, 30.0, Seconds, 0),
    at("ControlPlaneDatastoreThreadBlocked", Warning, "thread blocked in the kernel", Above, 5.0, Seconds, 0),
    at("ControlPlaneDatastoreThreadBlocked", Critical, "thread blocked in the kernel", Above, 30.0, Seconds, 0),
    at("ControlPlaneDatastoreThreadBlocked", Critical, "for k3s, the sync in flight as well", Above, 5.0, Seconds, 0),
    at("ControlPlaneDiskSyncFailing", Critical, "time since the last failed sync", Below, 600.0, Seconds, 0),
    // kernel
    at("ControlPlaneKernelIOErrors", Critical, "time since the datastore device's last error", Below, 3600.0, Seconds, 0),
    at("ControlPlaneKernelIOErrors", Warning, "time since another device's last error", Below, 3600.0, Seconds, 0),
    at("ControlPlaneFilesystemAborted", Critical, "time since the kernel's last such line", Below, 3600.0, Seconds, 0),
    at("ControlPlaneHungTask", Warning, "time since the kernel's last report", Below, 3600.0, Seconds, 0),
    at("ControlPlaneOOMKill", Critical, "time since a control-plane process was killed", Below, 3600.0, Seconds, 0),
    at("ControlPlaneOOMKill", Warning, "time since another process was killed", Below, 3600.0, Seconds, 0),
    // journal
    at("ControlPlaneVolumeFormatted", Critical, "time since the last such line", Below, 3600.0, Seconds, 0),
    at("ControlPlaneVolumeDamaged", Warning, "time since the last such line", Below, 3600.0, Seconds, 0),
    at("ControlPlaneVolumeMountFailing", Warning, "failed mounts logged in 15 minutes", AtLeast, 5.0, Count, 10),
    at("ControlPlaneDatastoreCorrupt", Critical, "time since the last such line", Below, 3600.0, Seconds, 0),
    at("ControlPlaneDatastoreWriteFailed", Critical, "time since the last such line", Below, 3600.0, Seconds, 0),
    at("ControlPlaneReadFault", Critical, "time since the last such line", Below, 3600.0, Seconds, 0),
    at("ControlPlaneLeaderElectionLost", Warning, "time since the last such line", Below, 3600.0, Seconds, 0),
    at("ControlPlaneProgramFatal", Warning, "time since the last such line", Below, 3600.0, Seconds, 0),
    at("ControlPlaneEtcdPeerUnknown", Warning, "time since the last such line", Below, 300.0, Seconds, 10),
    at("ControlPlaneUnitKilledByOomd", Critical, "time since the last such line", Below, 3600.0, Seconds, 0),
    at("ControlPlaneUnitWatchdog", Warning, "time since the last such line", Below, 3600.0, Seconds, 0),
    at("ControlPlaneEtcdHeartbeatLate", Warning, "late heartbeats logged in 15 minutes", AtLeast, 10.0, Count, 0),
    at("ControlPlaneLonghornVolumeFault", Critical, "time since the last such line", Below, 3600.0, Seconds, 0),
    // apiserver
    at("ControlPlaneApiserverSlow", Warning, "answers of the API server, p90 of 10 minutes", Above, 0.5, Seconds, 10),
    // systemd
    at("ControlPlaneUnitRestarting", Warning, "restarts in 24 hours", Above, 10.0, Count, 0),
    at("ControlPlaneUnitRestarting", Critical, "restarts in 24 hours", Above, 50.0, Count, 0),
    at("ControlPlaneUnitCrashLooping", Critical, "restarts in 10 minutes", Above, 5.0, Count, 0),
    at("ControlPlaneUnitDied", Warning, "time since the process died", Below, 3600.0, Seconds, 0),
    // static_pod
    at("ControlPlaneComponentRestarting", Warning, "restarts in 24 hours", Above, 10.0, Count, 0),
    at("ControlPlaneComponentRestarting", Warning, "starts of a process of k0s in 24 hours", Above, 10.0, Count, 0),
    at("ControlPlaneComponentRestarting", Critical, "restarts in 24 hours", Above, 50.0, Count, 0),
    at("ControlPlaneComponentRestarting", Critical, "starts of a process of k0s in 24 hours", Above, 50.0, Count, 0),
    at("ControlPlaneComponentCrashLooping", Critical, "restarts in 10 minutes", Above, 5.0, Count, 0),
    at("ControlPlaneComponentCrashLooping", Critical, "starts of a process of k0s in 10 minutes", Above, 5.0, Count, 0),
    // filesystem
    at("ControlPlaneDatastoreSpaceLow", Warning, "space left", Below, 0.2, Share, 10),
    at("ControlPlaneDatastoreSpaceLow", Critical, "space left", Below, 0.1, Share, 5),
    at("ControlPlaneDatastoreSpaceForecast", Warning, "space left", Below, 0.4, Share, 180),
    at("ControlPlaneFilesystemSpaceLow", Warning, "space left", Below, 0.12, Share, 10),
    at("ControlPlaneFilesystemSpaceLow", Critical, "space left", Below, 0.08, Share, 5),
    at("ControlPlaneInodesLow", Warning, "inodes left", Below, 0.1, Share, 10),
    at("ControlPlaneInodesLow", Critical, "inodes left", Below, 0.05, Share, 5),
    // registry_keys
    at("ControlPlaneLonghornOrphans", Warning, "orphans", Above, 100.0, Count, 30),
    at("ControlPlaneLonghornOrphans", Critical, "orphans", Above, 1000.0, Count, 5),
    at("ControlPlaneLonghornOrphansGrowing", Warning, "orphans more than within the last hour", Above, 50.0, Count, 5),
    // settings
    at("ControlPlaneNodesChanged", Warning, "time since boot", Below, 1800.0, Seconds, 0),
    at("ControlPlaneNodesChanged", Warning, "time since a file of the settings changed", Below, 1800.0, Seconds, 0),
    // volume
    at("ControlPlaneVolumeReformatted", Critical, "time since the filesystem was made", Below, 86_400.0, Seconds, 0),
    at("ControlPlaneVolumeUsageCollapsed", Warning, "used bytes against the most within an hour", Below, 0.1, Times, 0),
    at("ControlPlaneVolumeUsageCollapsed", Warning, "most bytes used within an hour", Above, 67_108_864.0, Bytes, 0),
    at("ControlPlaneVolumeBackupsFew", Warning, "backups", Below, 2.0, Count, 60),
    at("ControlPlaneVolumeBackupsFew", Warning, "age of the volume", Above, 1_209_600.0, Seconds, 60),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_reads_as_a_person_says_it() {
        let of = |bad, limit, unit| at("A", Info, "f", bad, limit, unit, 0).condition();
        assert_eq!(of(Above, 0.65, Share), "above 65 %");
        assert_eq!(of(Below, 7_776_000.0, Seconds), "below 90 days");
        assert_eq!(of(Above, 0.05, Seconds), "above 50 ms");
        assert_eq!(of(Above, 30.0, Seconds), "above 30 s");
        assert_eq!(of(Below, 3600.0, Seconds), "below 60 min");
        assert_eq!(of(Above, 104_857_600.0, Bytes), "above 100 MiB");
        assert_eq!(of(Above, 200e6, Bytes), "above 200 MB");
        assert_eq!(of(AtLeast, 3.0, Count), "at least 3");
        assert_eq!(of(Exactly, 2.0, Count), "exactly 2");
        assert_eq!(of(Above, 5.0, Times), "above 5 ×");
    }

    #[test]
    fn the_worse_severity_has_the_stricter_limit() {
        for low in TABLE {
            for high in TABLE.iter().filter(|t| (t.alert, t.figure) == (low.alert, low.figure)) {
                if low.severity < high.severity && low.unit != Count {
                    let stricter = match low.bad {
                        Below => high.limit <= low.limit,
                        _ => high.limit >= low.limit,
                    };
                    assert!(stricter, "{low:?} {high:?}");
                }
            }
        }
    }
}
