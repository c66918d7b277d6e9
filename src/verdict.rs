//! What the figures mean for a person without Prometheus: a list of verdicts, each with its figure and its limit.
//!
//! The limits are those of the shipped alerts ([`thresholds`]), without the time for which an alert
//! waits: this says what is the case now. Rules that compare nodes are judged as far as this node sees them.
//! What is not there to be judged (no etcd, no systemd) has no verdict; what should be there and cannot be read is
//! [`Health::Unknown`].

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::sample::{Histogram, Series, Value};
use crate::self_metrics::State;
use crate::store::Store;
use crate::thresholds::{self, Severity, Threshold};

/// How something is, from good to bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Topic {
    /// I/O errors, dying filesystems, memory, from the kernel's log.
    Kernel,
    /// Syncs of the datastore's disk.
    Disk,
    /// Room on the filesystems.
    Space,
    /// The systemd units.
    Units,
    /// etcd and what is in it.
    Datastore,
    /// The agent's own samplers.
    Samplers,
}

impl Topic {
    /// All of them, causes first.
    pub const ALL: [Self; 6] =
        [Self::Kernel, Self::Disk, Self::Space, Self::Units, Self::Datastore, Self::Samplers];

    /// The samplers whose figures it is judged by.
    pub fn samplers(self) -> &'static [&'static str] {
        match self {
            Self::Kernel => &["kernel"],
            Self::Disk => &["fdatasync"],
            Self::Space => &["filesystem"],
            Self::Units => &["systemd"],
            Self::Datastore => &["etcd", "registry_keys"],
            Self::Samplers => &[],
        }
    }

    /// Its title.
    pub fn title(self) -> &'static str {
        match self {
            Self::Kernel => "Kernel",
            Self::Disk => "Disk",
            Self::Space => "Space",
            Self::Units => "Units",
            Self::Datastore => "Datastore",
            Self::Samplers => "Samplers",
        }
    }
}

/// One judgement.
#[derive(Debug, Clone, PartialEq, Serialize)]
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
    /// The alert that says the same, whose runbook helps.
    pub alert: &'static str,
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
    court.units();
    court.datastore();
    court.samplers();
    let mut verdicts = court.verdicts;
    verdicts.sort_by_key(|v| (v.topic, std::cmp::Reverse(v.health)));
    verdicts
}

/// The figures by metric, and the verdicts so far.
struct Court<'a> {
    store: &'a Store,
    series: BTreeMap<&'static str, Vec<Series>>,
    now: f64,
    verdicts: Vec<Verdict>,
}

impl<'a> Court<'a> {
    fn new(store: &'a Store) -> Self {
        let mut series: BTreeMap<&'static str, Vec<Series>> = BTreeMap::new();
        for one in store.series() {
            series.entry(one.metric).or_default().push(one);
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        Self { store, series, now, verdicts: Vec::new() }
    }

    fn all(&self, metric: &str) -> Vec<Series> {
        self.series.get(metric).cloned().unwrap_or_default()
    }

    /// The number of the first series whose labels begin like this.
    fn number(&self, metric: &str, labels: &[&str]) -> Option<f64> {
        let all = self.series.get(metric)?;
        let found = all.iter().find(|s| labels.iter().zip(&s.labels).all(|(a, b)| a == b))?;
        Some(found.value.as_number())
    }

    fn say(
        &mut self,
        topic: Topic,
        health: Health,
        alert: &'static str,
        what: &str,
        figure: String,
    ) {
        let (what, limit) = (what.to_owned(), String::new());
        self.verdicts.push(Verdict { topic, health, what, figure, limit, alert });
    }

    /// Judges a figure by the alert's rows of the table about `row`.
    fn measure(
        &mut self,
        topic: Topic,
        alert: &'static str,
        row: &str,
        what: &str,
        value: f64,
        figure: String,
    ) {
        self.measure_by(&rows(alert, row), topic, alert, what, value, figure);
    }

    /// Judges a figure by these rows of the table.
    fn measure_by(
        &mut self,
        rows: &[&Threshold],
        topic: Topic,
        alert: &'static str,
        what: &str,
        value: f64,
        figure: String,
    ) {
        debug_assert!(!rows.is_empty(), "the table has no row of {alert} for {what}");
        let (health, limit) = (by_table(rows, value), limit(rows));
        self.verdicts.push(Verdict { topic, health, what: what.to_owned(), figure, limit, alert });
    }

    /// Judges how long ago something happened; a healthy verdict when it never did.
    fn since(
        &mut self,
        topic: Topic,
        alert: &'static str,
        row: &str,
        what: &str,
        time: Option<f64>,
    ) {
        match time {
            Some(time) => {
                let age = (self.now - time).max(0.0);
                let figure = format!("{} ago", length(age));
                self.measure(topic, alert, row, what, age, figure);
            }
            None => self.say(topic, Health::Ok, alert, what, "none".into()),
        }
    }

    /// What a distribution counted within the last `span`.
    fn recent(&self, series: &Series, span: Duration) -> Option<Histogram> {
        let Value::Histogram(now) = &series.value else { return None };
        match self.store.before(series.metric, &series.labels, span) {
            Some(Value::Histogram(then)) if then.count() < now.count() => Some(now.since(&then)),
            _ => Some(now.clone()),
        }
    }

    /// By how much a counter has grown within the last `span`.
    fn growth(&self, series: &Series, span: Duration) -> f64 {
        let now = series.value.as_number();
        let then = self.store.before(series.metric, &series.labels, span);
        let then = then.map_or(0.0, |value| value.as_number());
        if then > now { now } else { now - then }
    }

    fn runs(&self, sampler: &str) -> bool {
        let statuses = self.store.statuses().all();
        statuses.get(sampler).is_some_and(|s| s.state == State::Running && s.last_success.is_some())
    }

    fn kernel(&mut self) {
        if !self.runs("kernel") {
            return;
        }
        let errors = self.all("controlplane_kernel_io_error_last_timestamp_seconds");
        if errors.is_empty() {
            self.say(
                Topic::Kernel,
                Health::Ok,
                "ControlPlaneKernelIOErrors",
                "I/O errors since boot",
                "none".into(),
            );
        }
        for series in errors {
            let [device] = &series.labels[..] else { continue };
            let holds = self.number("controlplane_kernel_device_holds_datastore", &[device]);
            let row = if holds == Some(0.0) {
                "time since another device's last error"
            } else {
                "time since the datastore device's last error"
            };
            let what = format!("last I/O error of {device}");
            let time = series.value.as_number();
            self.since(Topic::Kernel, "ControlPlaneKernelIOErrors", row, &what, Some(time));
            let sectors = self.number("controlplane_kernel_io_error_sectors", &[device]);
            if let Some(sectors) = sectors.filter(|sectors| *sectors > 0.0 && holds != Some(0.0)) {
                let what = format!("places of {device} that failed since boot");
                self.say(
                    Topic::Kernel,
                    Health::Warning,
                    "ControlPlaneDiskBadSectors",
                    &what,
                    format!("{sectors}"),
                );
            }
        }
        let events = self.all("controlplane_kernel_event_last_timestamp_seconds");
        let given_up = events
            .iter()
            .filter(|s| thresholds::FILESYSTEM_ABORTED.contains(&s.labels[0].as_str()));
        let last = given_up.map(|s| s.value.as_number()).reduce(f64::max);
        self.since(
            Topic::Kernel,
            "ControlPlaneFilesystemAborted",
            "time since the kernel's last such line",
            "filesystem given up by the kernel",
            last,
        );
        let hung = self.all("controlplane_kernel_hung_task_last_timestamp_seconds");
        let hung = hung.iter().filter(|s| {
            thresholds::WRITERS.contains(&s.labels[0].as_str()) || is_ours(&s.labels[0])
        });
        let hung = hung.max_by(|a, b| a.value.as_number().total_cmp(&b.value.as_number())).cloned();
        let what = hung
            .as_ref()
            .map_or("blocked task".to_owned(), |s| format!("{} blocked for minutes", s.labels[0]));
        self.since(
            Topic::Kernel,
            "ControlPlaneHungTask",
            "time since the kernel's last report",
            &what,
            hung.map(|s| s.value.as_number()),
        );
        let mut kills = self.all("controlplane_kernel_oom_kill_last_timestamp_seconds");
        kills.retain(|s| is_ours(&s.labels[1]) || s.labels[0] == "node");
        if kills.is_empty() {
            self.since(Topic::Kernel, "ControlPlaneOOMKill", "", "killed for memory", None);
        }
        for kill in kills {
            let row = if is_ours(&kill.labels[1]) {
                "time since a control-plane process was killed"
            } else {
                "time since another process was killed"
            };
            let what = format!("{} killed for memory of the {}", kill.labels[1], kill.labels[0]);
            self.since(
                Topic::Kernel,
                "ControlPlaneOOMKill",
                row,
                &what,
                Some(kill.value.as_number()),
            );
        }
    }

    fn disk(&mut self) {
        for series in self.all("controlplane_fdatasync_duration_seconds") {
            let place = series.labels[0].clone();
            let recent = self.recent(&series, Duration::from_mins(15));
            if let Some(p90) = recent.and_then(|recent| recent.quantile(0.9)) {
                let what = format!("syncs in {place}, p90 of 15 minutes");
                self.measure(
                    Topic::Disk,
                    "ControlPlaneDiskSyncSlow",
                    "syncs, p90 of 15 minutes",
                    &what,
                    p90,
                    length(p90),
                );
            }
        }
        for series in self.all("controlplane_fdatasync_stalls_total") {
            if series.labels[2] == "1" {
                let stalls = self.growth(&series, Duration::from_mins(10));
                let what = format!("syncs above 1 s in {} in 10 minutes", series.labels[0]);
                self.measure(
                    Topic::Disk,
                    "ControlPlaneDiskSyncStalls",
                    "syncs above 1 s in 10 minutes",
                    &what,
                    stalls,
                    format!("{stalls}"),
                );
            }
        }
        for series in self.all("controlplane_fdatasync_inflight_seconds") {
            let age = series.value.as_number();
            let what = format!("sync in flight in {}", series.labels[0]);
            let figure = if age > 0.0 { length(age) } else { "none".into() };
            self.measure(
                Topic::Disk,
                "ControlPlaneDiskSyncStuck",
                "sync in flight",
                &what,
                age,
                figure,
            );
        }
        for series in self.all("controlplane_fdatasync_thread_blocked_seconds") {
            let age = series.value.as_number();
            let what = format!("thread of {} blocked in the kernel", series.labels[0]);
            let figure = if age > 0.0 { length(age) } else { "none".into() };
            self.measure(
                Topic::Disk,
                "ControlPlaneDatastoreThreadBlocked",
                "thread blocked in the kernel",
                &what,
                age,
                figure,
            );
        }
        let failed = self.all("controlplane_fdatasync_failures_total");
        for series in self.all("controlplane_fdatasync_failure_last_timestamp_seconds") {
            let of_disk = failed.iter().any(|f| {
                f.labels[..2] == series.labels[..]
                    && !thresholds::NO_FAULT_OF_THE_DISK.contains(&f.labels[3].as_str())
            });
            if of_disk {
                let what = format!("last failed sync in {}", series.labels[0]);
                self.since(
                    Topic::Disk,
                    "ControlPlaneDiskSyncFailing",
                    "time since the last failed sync",
                    &what,
                    Some(series.value.as_number()),
                );
            }
        }
    }

    fn space(&mut self) {
        // One verdict per filesystem: the stricter limits where the datastore lies on it.
        let mut devices: BTreeMap<String, (bool, Vec<String>)> = BTreeMap::new();
        for series in self.all("controlplane_filesystem_size_bytes") {
            let [_, device, _, role] = &series.labels[..] else { continue };
            let entry = devices.entry(device.clone()).or_default();
            let strict = ["datastore", "snap"].contains(&role.as_str());
            if entry.1.is_empty() || (strict && !entry.0) {
                entry.1.clone_from(&series.labels);
            }
            entry.0 |= strict;
        }
        for (device, (strict, labels)) in devices {
            let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
            let path = labels[0];
            let readonly = self.number("controlplane_filesystem_readonly", &labels) == Some(1.0);
            if readonly && (strict || labels[3] == "containers") {
                let what = format!("{path} ({device}) can be written");
                self.say(
                    Topic::Space,
                    Health::Critical,
                    "ControlPlaneFilesystemReadOnly",
                    &what,
                    "read-only".into(),
                );
            }
            if readonly && !strict {
                continue;
            }
            let alert = if strict {
                "ControlPlaneDatastoreSpaceLow"
            } else {
                "ControlPlaneFilesystemSpaceLow"
            };
            let size =
                self.number("controlplane_filesystem_size_bytes", &labels).unwrap_or_default();
            if let Some(left) =
                self.number("controlplane_filesystem_avail_bytes", &labels).filter(|_| size > 0.0)
            {
                let what = format!("space left on {path} ({device})");
                let figure =
                    format!("{} of {}, {}", bytes(left), bytes(size), percent(left / size));
                self.measure(Topic::Space, alert, "space left", &what, left / size, figure);
            }
            let files = self.number("controlplane_filesystem_files", &labels).unwrap_or_default();
            if let Some(free) =
                self.number("controlplane_filesystem_files_free", &labels).filter(|_| files > 0.0)
            {
                let what = format!("inodes left on {path} ({device})");
                self.measure(
                    Topic::Space,
                    "ControlPlaneInodesLow",
                    "inodes left",
                    &what,
                    free / files,
                    percent(free / files),
                );
            }
        }
    }

    fn units(&mut self) {
        let unit_states = self.all("controlplane_systemd_unit_state");
        for series in self.all("controlplane_systemd_unit_expected") {
            let unit = series.labels[0].as_str();
            let state =
                unit_states.iter().find(|s| s.labels[0] == unit && s.value.as_number() > 0.5);
            let state = state.map_or("unknown", |s| s.labels[1].as_str());
            let expected = series.value.as_number() > 0.5;
            let (health, alert) = match state {
                "active" | "reloading" => (Health::Ok, "ControlPlaneUnitDown"),
                "activating" => (Health::Warning, "ControlPlaneUnitStuckActivating"),
                "unknown" if expected => (Health::Unknown, "ControlPlaneUnitDown"),
                _ if expected => (Health::Critical, "ControlPlaneUnitDown"),
                _ => continue,
            };
            let since =
                self.number("controlplane_systemd_unit_state_since_timestamp_seconds", &[unit]);
            let figure = match since {
                Some(since) => format!("{state} for {}", length((self.now - since).max(0.0))),
                None => state.to_owned(),
            };
            self.say(Topic::Units, health, alert, unit, figure);
        }
        for series in self.all("controlplane_systemd_unit_restarts_total") {
            let unit = series.labels[0].clone();
            let restarts = self.growth(&series, Duration::from_hours(24));
            let what = format!("restarts of {unit} in 24 hours");
            self.measure(
                Topic::Units,
                "ControlPlaneUnitRestarting",
                "restarts in 24 hours",
                &what,
                restarts,
                format!("{restarts}"),
            );
        }
        for series in self.all("controlplane_systemd_unit_last_exit_info") {
            let [unit, code, status] = &series.labels[..] else { continue };
            let told = ["TERM", "INT", "HUP", "PIPE"].contains(&status.as_str());
            let died = match code.as_str() {
                "dumped" => true,
                "killed" => !told,
                _ => status == "2",
            };
            let time =
                self.number("controlplane_systemd_unit_last_exit_timestamp_seconds", &[unit]);
            if let Some(time) = time.filter(|_| died) {
                let what = format!("{unit} {code} with {status}");
                self.since(
                    Topic::Units,
                    "ControlPlaneUnitDied",
                    "time since the process died",
                    &what,
                    Some(time),
                );
            }
        }
    }

    fn datastore(&mut self) {
        let Some(up) = self.number("controlplane_etcd_up", &[]) else { return };
        let voters = self.number("controlplane_etcd_voters_listed", &[]);
        let reachable = self.number("controlplane_etcd_voters_reachable", &[]);
        // Of a single voter there is no quorum to speak of.
        let quorum = voters.filter(|voters| *voters > 1.0).zip(reachable);
        let quorum =
            quorum.map(|(voters, reachable)| (voters, reachable, (voters / 2.0).floor() + 1.0));
        let at_risk = quorum.is_some_and(|(_, reachable, majority)| reachable <= majority);
        if up < 0.5 {
            let alone = voters.is_none_or(|voters| voters < 2.0);
            let health = if at_risk || alone { Health::Critical } else { Health::Warning };
            self.say(
                Topic::Datastore,
                health,
                "ControlPlaneEtcdMemberDown",
                "etcd member",
                "does not answer".into(),
            );
        } else {
            self.member();
        }
        if let Some((voters, reachable, majority)) = quorum {
            let (health, alert) = match () {
                () if reachable < majority => (Health::Critical, "ControlPlaneEtcdQuorumLost"),
                () if voters < 2.5 => (Health::Warning, "ControlPlaneEtcdTwoVoters"),
                () if reachable < majority + 0.5 => {
                    (Health::Warning, "ControlPlaneEtcdQuorumAtRisk")
                }
                () => (Health::Ok, "ControlPlaneEtcdQuorumAtRisk"),
            };
            let figure = format!("{reachable} of {voters} answer, {majority} are needed");
            self.say(Topic::Datastore, health, alert, "voting members", figure);
        }
        let listed = self.number("controlplane_etcd_members_listed", &[]);
        if let (Some(listed), Some(expected)) =
            (listed, self.number("controlplane_etcd_members_expected", &[]))
        {
            let health = if listed < expected { Health::Critical } else { Health::Ok };
            self.say(
                Topic::Datastore,
                health,
                "ControlPlaneEtcdMemberMissing",
                "members listed",
                format!("{listed} of {expected} expected"),
            );
        }
        if let Some(orphans) = self.number("controlplane_registry_keys", &["orphans.longhorn.io"]) {
            self.measure(
                Topic::Datastore,
                "ControlPlaneLonghornOrphans",
                "orphans",
                "Longhorn orphans",
                orphans,
                format!("{orphans}"),
            );
        }
    }

    /// What a member that answers says of itself.
    fn member(&mut self) {
        let topic = Topic::Datastore;
        let Some(size) = self.number("controlplane_etcd_db_size_bytes", &[]) else {
            self.say(
                topic,
                Health::Warning,
                "ControlPlaneEtcdBackendBlocked",
                "etcd member",
                "lists members, but its database does not answer".into(),
            );
            return;
        };
        let leader = self.number("controlplane_etcd_has_leader", &[]);
        let (health, figure) = match (leader, self.number("controlplane_etcd_is_leader", &[])) {
            (Some(known), _) if known < 0.5 => (Health::Critical, "answers, knows no leader"),
            (_, Some(own)) if own > 0.5 => (Health::Ok, "answers, is the leader"),
            _ => (Health::Ok, "answers, follows a leader"),
        };
        self.say(topic, health, "ControlPlaneEtcdNoLeader", "etcd member", figure.into());
        for series in self.all("controlplane_etcd_alarm") {
            if series.value.as_number() > 0.5 {
                let what = format!("alarm of member {}", series.labels[0]);
                self.say(
                    topic,
                    Health::Critical,
                    "ControlPlaneEtcdAlarm",
                    &what,
                    series.labels[1].clone(),
                );
            }
        }
        if let Some(quota) =
            self.number("controlplane_etcd_quota_bytes", &[]).filter(|quota| *quota > 0.0)
        {
            let figure = format!("{} of {}, {}", bytes(size), bytes(quota), percent(size / quota));
            self.measure(
                topic,
                "ControlPlaneEtcdQuotaLow",
                "database size of its quota",
                "database of its quota",
                size / quota,
                figure,
            );
        }
        if let Some(used) =
            self.number("controlplane_etcd_db_size_in_use_bytes", &[]).filter(|_| size > 0.0)
        {
            let alert = "ControlPlaneEtcdDatabaseFragmented";
            let free = (size - used).max(0.0);
            let figure = format!("{}, {}", bytes(free), percent(free / size));
            let (share, amount) = (
                rows(alert, "reclaimable share of the database"),
                rows(alert, "reclaimable bytes"),
            );
            // Both must be passed, so the better one counts.
            let health = by_table(&share, free / size).min(by_table(&amount, free));
            let limit = format!(
                "{}, and {}",
                limit(&share),
                amount.first().map(|r| r.condition()).unwrap_or_default()
            );
            self.verdicts.push(Verdict {
                topic,
                health,
                what: "free space inside the database".into(),
                figure,
                limit,
                alert,
            });
        }
        let reads = self
            .all("controlplane_etcd_request_duration_seconds")
            .into_iter()
            .find(|s| s.labels[0] == "linearizable_read");
        let recent = reads.and_then(|reads| self.recent(&reads, Duration::from_mins(10)));
        if let Some(p90) = recent.and_then(|recent| recent.quantile(0.9)) {
            let alert = "ControlPlaneEtcdRequestsSlow";
            let rows: Vec<&Threshold> =
                thresholds::TABLE.iter().filter(|row| row.alert == alert).collect();
            let what = "reads through etcd, p90 of 10 minutes";
            self.measure_by(&rows, topic, alert, what, p90, length(p90));
        }
    }

    fn samplers(&mut self) {
        for (name, status) in self.store.statuses().all() {
            let (health, alert, figure) = match (status.state, status.up) {
                (State::Off | State::NotApplicable, _) | (State::Running, Some(true)) => continue,
                (State::NoPermission, _) => {
                    (Health::Unknown, "ControlPlaneSamplerNoPermission", "no permission")
                }
                (State::Running, Some(false)) => {
                    (Health::Unknown, "ControlPlaneSamplerFailing", "fails")
                }
                (State::Running, None) => {
                    (Health::Unknown, "ControlPlaneSamplerStale", "has not answered yet")
                }
            };
            let figure = if status.why.is_empty() {
                figure.to_owned()
            } else {
                format!("{figure}: {}", status.why)
            };
            self.say(Topic::Samplers, health, alert, name, figure);
        }
    }
}

fn is_ours(process: &str) -> bool {
    thresholds::CONTROL_PLANE.contains(&process)
}

/// The alert's rows about this figure, the worst first.
fn rows(alert: &str, figure: &str) -> Vec<&'static Threshold> {
    let mut rows: Vec<_> =
        thresholds::TABLE.iter().filter(|row| row.alert == alert && row.figure == figure).collect();
    rows.sort_by_key(|row| std::cmp::Reverse(row.severity));
    rows
}

fn by_table(rows: &[&Threshold], value: f64) -> Health {
    let passed = rows.iter().filter(|row| row.is_bad(value)).map(|row| row.severity).max();
    match passed {
        Some(Severity::Critical) => Health::Critical,
        Some(Severity::Warning) => Health::Warning,
        Some(Severity::Info) | None => Health::Ok,
    }
}

/// The limits for people: `warning above 65 %, critical above 80 %`.
fn limit(rows: &[&Threshold]) -> String {
    let mut rows: Vec<_> = rows.iter().filter(|row| row.severity > Severity::Info).collect();
    rows.sort_by_key(|row| row.severity);
    let said: Vec<_> =
        rows.iter().map(|row| format!("{} {}", row.severity.as_str(), row.condition())).collect();
    said.join(", ")
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
    use crate::metric::Metric;
    use crate::sample::Batch;
    use crate::self_metrics::Statuses;
    use crate::store;
    use std::sync::Arc;

    static UP: Metric<0> = Metric::gauge("controlplane_etcd_up", "Up.", []);
    static LEADER: Metric<0> = Metric::gauge("controlplane_etcd_has_leader", "Leader.", []);
    static SIZE: Metric<0> = Metric::gauge("controlplane_etcd_db_size_bytes", "Size.", []);
    static USED: Metric<0> = Metric::gauge("controlplane_etcd_db_size_in_use_bytes", "Used.", []);
    static QUOTA: Metric<0> = Metric::gauge("controlplane_etcd_quota_bytes", "Quota.", []);
    static VOTERS: Metric<0> = Metric::gauge("controlplane_etcd_voters_listed", "Voters.", []);
    static REACHED: Metric<0> = Metric::gauge("controlplane_etcd_voters_reachable", "Seen.", []);
    static SYNCS: Metric<2> =
        Metric::histogram("controlplane_fdatasync_duration_seconds", "Syncs.", ["path", "device"]);
    static RESTARTS: Metric<1> =
        Metric::counter("controlplane_systemd_unit_restarts_total", "Restarts.", ["unit"]);
    static EXPECTED: Metric<1> =
        Metric::gauge("controlplane_systemd_unit_expected", "Expected.", ["unit"]);
    static STATE: Metric<2> =
        Metric::gauge("controlplane_systemd_unit_state", "State.", ["unit", "state"]);
    static FS_SIZE: Metric<4> = Metric::gauge(
        "controlplane_filesystem_size_bytes",
        "Size.",
        ["path", "device", "fstype", "role"],
    );
    static FS_LEFT: Metric<4> = Metric::gauge(
        "controlplane_filesystem_avail_bytes",
        "Left.",
        ["path", "device", "fstype", "role"],
    );

    const MINUTE: Duration = Duration::from_mins(1);

    fn store() -> Store {
        Store::new(Arc::new(Statuses::default()))
    }

    /// Puts a sampler's batch and gives the verdict about `what`.
    fn about(store: &Store, what: &str) -> (Health, String, &'static str) {
        let all = judge(store);
        let found = all.iter().find(|verdict| verdict.what.contains(what));
        let found = found.unwrap_or_else(|| panic!("no verdict about {what}: {all:#?}"));
        (found.health, found.figure.clone(), found.alert)
    }

    fn etcd(fill: impl FnOnce(&mut Batch)) -> Store {
        let (store, mut batch) = (store(), Batch::default());
        batch.push(&UP, [], 1.0);
        batch.push(&LEADER, [], 1.0);
        fill(&mut batch);
        store.put("etcd", batch, MINUTE);
        store
    }

    #[test]
    fn every_metric_and_alert_that_is_named_here_exists() {
        let word = regex::Regex::new(r#""(controlplane_[a-z_]+)""#).unwrap();
        let alert = regex::Regex::new(r#""(ControlPlane[A-Za-z]+)""#).unwrap();
        for source in [include_str!("verdict.rs"), include_str!("history.rs")] {
            for found in word.captures_iter(source).filter(|f| &f[1] != "controlplane_other") {
                assert!(store::descs().any(|d| d.name == &found[1]), "{}", &found[1]);
            }
            for found in alert.captures_iter(source) {
                let runbook = format!("alerts/runbooks/{}.md", &found[1]);
                assert!(std::path::Path::new(&runbook).exists(), "{runbook}");
            }
        }
    }

    #[test]
    fn every_figure_that_is_judged_is_in_the_table() {
        // A misspelt row would judge everything as well.
        let asked = regex::Regex::new(
            r#"(?:measure|since)\(\s*(?:Topic::\w+|topic),\s*"(\w+)",\s*"([^"]+)""#,
        )
        .unwrap();
        let source = include_str!("verdict.rs");
        let found: Vec<_> = asked.captures_iter(source).collect();
        assert!(found.len() > 10, "{}", found.len());
        for row in found {
            assert!(!rows(&row[1], &row[2]).is_empty(), "no row {} {:?}", &row[1], &row[2]);
        }
    }

    #[test]
    fn an_empty_store_is_unknown_and_not_well() {
        assert_eq!(worst(&judge(&store())), Health::Unknown);
    }

    #[test]
    fn a_database_is_judged_by_its_total_size_and_by_its_free_pages() {
        let of = |size: f64, used: f64| {
            etcd(|batch| {
                batch.push(&SIZE, [], size);
                batch.push(&USED, [], used);
                batch.push(&QUOTA, [], 2e9);
            })
        };
        let quota = |size| about(&of(size, size), "of its quota").0;
        assert_eq!(
            (quota(1.2e9), quota(1.4e9), quota(1.7e9)),
            (Health::Ok, Health::Warning, Health::Critical)
        );
        let free = |size, used| about(&of(size, used), "free space inside").0;
        assert_eq!(free(634e6, 57e6), Health::Warning, "the guard is on what can be given back");
        assert_eq!(free(100e6, 10e6), Health::Ok, "too little to bother");
        assert_eq!(free(634e6, 400e6), Health::Ok);
        assert_eq!(about(&of(1.2e9, 1e9), "of its quota").1, "1.2 GB of 2.0 GB, 60 %");
    }

    #[test]
    fn a_member_that_is_down_is_worse_when_no_other_may_fail() {
        let of = |up: f64, voters: f64, reached: f64| {
            let (store, mut batch) = (store(), Batch::default());
            batch.push(&UP, [], up);
            batch.push(&VOTERS, [], voters);
            batch.push(&REACHED, [], reached);
            store.put("etcd", batch, MINUTE);
            store
        };
        assert_eq!(about(&of(0.0, 5.0, 4.0), "etcd member").0, Health::Warning);
        assert_eq!(about(&of(0.0, 3.0, 2.0), "etcd member").0, Health::Critical);
        assert_eq!(about(&of(0.0, 1.0, 0.0), "etcd member").0, Health::Critical);
        let quorum = |voters, reached| about(&of(1.0, voters, reached), "voting members");
        assert_eq!(quorum(3.0, 3.0).0, Health::Ok);
        assert_eq!(
            quorum(3.0, 2.0),
            (Health::Warning, "2 of 3 answer, 2 are needed".into(), "ControlPlaneEtcdQuorumAtRisk")
        );
        assert_eq!(quorum(3.0, 1.0).2, "ControlPlaneEtcdQuorumLost");
        assert_eq!(quorum(2.0, 2.0).2, "ControlPlaneEtcdTwoVoters");
        assert_eq!(quorum(4.0, 4.0).0, Health::Ok);
    }

    #[test]
    fn a_member_whose_database_does_not_answer_is_blocked() {
        let blocked = etcd(|_| {});
        assert_eq!(about(&blocked, "etcd member").2, "ControlPlaneEtcdBackendBlocked");
    }

    #[tokio::test(start_paused = true)]
    async fn syncs_are_judged_by_their_last_quarter_of_an_hour() {
        let store = store();
        let mut syncs = Histogram::new(&[0.01, 0.05, 0.25, 1.0]);
        let mut look = |value: f64| {
            (0..12).for_each(|_| syncs.observe(value));
            let mut batch = Batch::default();
            batch.histogram(&SYNCS, ["/db", "sda"], &syncs);
            store.put("fdatasync", batch, Duration::from_secs(5));
            about(&store, "p90").0
        };
        for _ in 0..120 {
            look(0.005);
            tokio::time::advance(MINUTE).await;
        }
        assert_eq!(look(0.005), Health::Ok);
        // Two hours of good syncs do not hide a quarter of an hour of bad ones.
        for _ in 0..15 {
            tokio::time::advance(MINUTE).await;
            look(0.9);
        }
        assert_eq!(look(0.9), Health::Critical);
        for _ in 0..17 {
            tokio::time::advance(MINUTE).await;
            look(0.005);
        }
        assert_eq!(look(0.005), Health::Ok, "and an old trouble ends");
    }

    #[tokio::test(start_paused = true)]
    async fn restarts_are_those_of_a_day() {
        let store = store();
        let look = |restarts: f64| {
            let mut batch = Batch::default();
            batch.push(&RESTARTS, ["k3s.service"], restarts);
            store.put("systemd", batch, MINUTE);
            about(&store, "restarts of").0
        };
        let mut restarts = 0.0;
        let mut seen = Vec::new();
        for _ in 0..24 * 60 / 20 {
            restarts += 1.0;
            tokio::time::advance(MINUTE * 20).await;
            seen.push(look(restarts));
        }
        assert_eq!((seen[9], seen[11], seen[70]), (Health::Ok, Health::Warning, Health::Critical));
        for _ in 0..25 * 12 {
            tokio::time::advance(MINUTE * 5).await;
            look(restarts);
        }
        assert_eq!(look(restarts), Health::Ok, "yesterday's restarts are over");
    }

    #[test]
    fn a_unit_is_judged_only_when_it_should_run() {
        let of = |expected: f64, state: &str| {
            let (store, mut batch) = (store(), Batch::default());
            batch.push(&EXPECTED, ["k3s.service"], expected);
            batch.push(&STATE, ["k3s.service", state], 1.0);
            store.put("systemd", batch, MINUTE);
            judge(&store).first().map(|verdict| verdict.health)
        };
        assert_eq!(of(1.0, "active"), Some(Health::Ok));
        assert_eq!(of(1.0, "inactive"), Some(Health::Critical), "also when it exited with 0");
        assert_eq!(of(1.0, "activating"), Some(Health::Warning));
        assert_eq!(of(0.0, "inactive"), None);
    }

    #[test]
    fn a_filesystem_has_one_verdict_with_the_limits_of_what_lies_on_it() {
        let of = |left: f64, roles: &[&str]| {
            let (store, mut batch) = (store(), Batch::default());
            for role in roles {
                let path = format!("/{role}");
                batch.push(&FS_SIZE, [&path, "sda1", "ext4", role], 100e9);
                batch.push(&FS_LEFT, [&path, "sda1", "ext4", role], left);
            }
            store.put("filesystem", batch, MINUTE);
            let verdicts = judge(&store);
            assert_eq!(verdicts.len(), 1, "{verdicts:#?}");
            verdicts[0].health
        };
        assert_eq!(of(15e9, &["root", "datastore"]), Health::Warning);
        assert_eq!(of(9e9, &["datastore", "root"]), Health::Critical);
        assert_eq!(of(15e9, &["root", "containers"]), Health::Ok, "images are collected there");
        assert_eq!(of(7e9, &["root"]), Health::Critical);
    }

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
