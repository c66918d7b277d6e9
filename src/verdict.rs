//! What the figures mean for a person without Prometheus: a list of verdicts, each with its figure and its limit.
//!
//! The limits are those of the shipped alerts ([`thresholds`]), without the time for which an alert
//! waits: this says what is the case now. Rules that compare nodes are judged as far as this node sees them.
//! What is not there to be judged (no etcd, no systemd) has no verdict; what should be there and cannot be read is
//! [`Health::Unknown`].

mod api;
mod court;
mod disk;
mod expiry;
mod log;
mod microk8s;
mod settings;
mod topics;
mod volumes;

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::store::Store;
use court::Court;

/// How something is, from good to bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// As it should be.
    Ok,
    /// It should be known, and is not.
    Unknown,
    /// Somebody should look at it in the next days.
    Warning,
    /// Somebody must look at it now.
    Critical,
}

impl Health {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Unknown => "unknown",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

/// What a verdict is about, in the order in which causes come before their effects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Topic {
    /// I/O errors, dying filesystems, memory, from the kernel's log.
    Kernel,
    /// Syncs of the datastore's disk.
    Disk,
    /// Room on the filesystems.
    Space,
    /// Volumes: formatted anew, emptied, without backups.
    Volumes,
    /// What the control plane's logs tell.
    Log,
    /// The systemd units and static pods, and the arguments and certificates that they start with.
    Units,
    /// The clock, pools of disks, versions, and settings that wait for a restart.
    Settings,
    /// etcd, dqlite or kine, what is in it, and the snapshots of it.
    Datastore,
    /// The API server, and the ways to it.
    Api,
    /// The agent's own samplers.
    Samplers,
}

impl Topic {
    /// All of them, causes first.
    pub const ALL: [Self; 10] = [
        Self::Kernel,
        Self::Disk,
        Self::Space,
        Self::Volumes,
        Self::Log,
        Self::Units,
        Self::Settings,
        Self::Datastore,
        Self::Api,
        Self::Samplers,
    ];

    /// The samplers whose figures it is judged by.
    pub fn samplers(self) -> &'static [&'static str] {
        match self {
            Self::Kernel => &["kernel"],
            Self::Disk => &["fdatasync"],
            Self::Space => &["filesystem"],
            Self::Volumes => &["volume"],
            Self::Log => &["journal"],
            Self::Units => &["systemd", "static_pod", "args", "certificate"],
            Self::Settings => &["settings"],
            Self::Datastore => &["etcd", "etcd_snapshot", "dqlite", "kine", "registry_keys"],
            Self::Api => &["apiserver"],
            Self::Samplers => &[],
        }
    }

    /// Its title.
    pub fn title(self) -> &'static str {
        match self {
            Self::Kernel => "Kernel",
            Self::Disk => "Disk",
            Self::Space => "Space",
            Self::Volumes => "Volumes",
            Self::Log => "Log",
            Self::Units => "Units",
            Self::Settings => "Settings",
            Self::Datastore => "Datastore",
            Self::Api => "API server",
            Self::Samplers => "Samplers",
        }
    }
}

/// One judgement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// What it is about.
    pub topic: Topic,
    /// How it is.
    pub health: Health,
    /// What was judged, such as `database of its quota`.
    pub what: String,
    /// The figure, with its unit.
    pub figure: String,
    /// When it would be worse, or empty for a yes or no.
    pub limit: String,
    /// The alert that says the same, whose runbook helps; empty where there is none yet.
    pub alert: Cow<'static, str>,
    /// The figure for programs, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measure: Option<Measure>,
}

impl Verdict {
    /// A yes or no, without a limit.
    pub fn new(
        topic: Topic,
        health: Health,
        alert: &'static str,
        what: impl Into<String>,
        figure: impl Into<String>,
    ) -> Self {
        let (what, figure, limit) = (what.into(), figure.into(), String::new());
        Self { topic, health, what, figure, limit, alert: alert.into(), measure: None }
    }
}

/// The names of all measures.
pub const MEASURES: [&str; 21] = [
    "sync_p90",
    "sync_stalls",
    "sync_inflight",
    "thread_blocked",
    "space_left",
    "inodes_left",
    "restarts",
    "component_restarts",
    "unknown_flags",
    "certificate_expiry",
    "db_of_quota",
    "db_reclaimable",
    "read_p90",
    "snapshot_bytes",
    "free_pages",
    "certificate_left",
    "orphans",
    "snapshot_age",
    "api_p90",
    "volume_used",
    "volume_backups",
];

/// A figure and its limits, for programs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measure {
    /// What is measured: the same name for every path, device or unit.
    pub name: Cow<'static, str>,
    /// The number, in `unit`.
    pub value: f64,
    /// `s`, `B`, `%`, or empty for a count.
    pub unit: Cow<'static, str>,
    /// The values that are bad enough for a warning, as a range of the monitoring plugins; empty for none.
    pub warning: String,
    /// The same for critical.
    pub critical: String,
}

/// The worst of these; [`Health::Unknown`] of none.
pub fn worst<'a>(verdicts: impl IntoIterator<Item = &'a Verdict>) -> Health {
    verdicts.into_iter().map(|verdict| verdict.health).max().unwrap_or(Health::Unknown)
}

/// Judges everything that the store knows now: causes first, and the worst first within a topic.
pub fn judge(store: &Store) -> Vec<Verdict> {
    let mut court = Court::new(store);
    court.kernel();
    court.disk();
    court.space();
    court.volumes();
    court.log();
    court.units();
    court.settings();
    court.datastore();
    court.api();
    court.samplers();
    let mut verdicts = court.verdicts;
    verdicts.sort_by_key(|v| (v.topic, std::cmp::Reverse(v.health)));
    verdicts
}

/// A length of time as a person says it.
pub fn length(seconds: f64) -> String {
    match seconds {
        s if s < 0.001 => format!("{:.2} ms", s * 1e3),
        s if s < 0.1 => format!("{:.1} ms", s * 1e3),
        s if s < 1.0 => format!("{:.0} ms", s * 1e3),
        s if s < 10.0 => format!("{s:.1} s"),
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7_200.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.0} h", s / 3_600.0),
        s => format!("{:.0} days", s / 86_400.0),
    }
}

/// An amount of bytes as a person says it.
pub fn bytes(amount: f64) -> String {
    let (mut amount, mut unit) = (amount, 0);
    let units = ["B", "kB", "MB", "GB", "TB", "PB"];
    while amount >= 1000.0 && unit + 1 < units.len() {
        (amount, unit) = (amount / 1000.0, unit + 1);
    }
    let digits = usize::from(unit > 0 && amount < 100.0);
    format!("{amount:.digits$} {}", units[unit])
}

/// A share as a person says it.
pub fn percent(share: f64) -> String {
    let percent = share * 100.0;
    let digits = usize::from(percent < 10.0);
    format!("{percent:.digits$} %")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_read_as_a_person_says_them() {
        assert_eq!(length(0.0034), "3.4 ms");
        assert_eq!(length(1.26), "1.3 s");
        assert_eq!(length(600.0), "10 min");
        assert_eq!(bytes(634e6), "634 MB");
        assert_eq!(bytes(2_147_483_648.0), "2.1 GB");
        assert_eq!(percent(0.981), "98 %");
        assert_eq!(percent(0.034), "3.4 %");
    }
}
