//! What is judged, topic by topic.

use std::collections::BTreeMap;
use std::time::Duration;

use super::court::{Court, Figure, by_table, limit, rows};
use super::{Health, Measure, Topic, Verdict, bytes, length, percent};
use crate::sample::Series;
use crate::self_metrics::State;
use crate::thresholds::{self, Threshold, Unit};

/// How long a start may take, as the alert on units that are stuck in it has it.
const STARTS: Duration = Duration::from_mins(3);
/// The time in which a crash loop is judged, as the alerts on it have it.
const LOOP: Duration = Duration::from_mins(10);

impl Court<'_> {
    pub(super) fn kernel(&mut self) {
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

    pub(super) fn space(&mut self) {
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
                let figure = Figure::new("space_left", left / size, figure);
                self.measure(Topic::Space, alert, "space left", &what, figure);
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
                    Figure::new("inodes_left", free / files, percent(free / files)),
                );
            }
        }
    }

    pub(super) fn units(&mut self) {
        let unit_states = self.all("controlplane_systemd_unit_state");
        for series in self.all("controlplane_systemd_unit_expected") {
            let unit = series.labels[0].as_str();
            let state =
                unit_states.iter().find(|s| s.labels[0] == unit && s.value.as_number() > 0.5);
            let state = state.map_or("unknown", |s| s.labels[1].as_str());
            let expected = series.value.as_number() > 0.5;
            let since =
                self.number("controlplane_systemd_unit_state_since_timestamp_seconds", &[unit]);
            let stuck = since.is_some_and(|since| self.now - since > STARTS.as_secs_f64());
            let (health, alert) = match state {
                "active" | "reloading" => (Health::Ok, "ControlPlaneUnitDown"),
                "activating" if expected && stuck => {
                    (Health::Critical, "ControlPlaneUnitStuckActivating")
                }
                "activating" if expected => (Health::Warning, "ControlPlaneUnitStuckActivating"),
                "unknown" if expected => (Health::Unknown, "ControlPlaneUnitDown"),
                _ if expected => (Health::Critical, "ControlPlaneUnitDown"),
                _ => continue,
            };
            let figure = match since {
                Some(since) => format!("{state} for {}", length((self.now - since).max(0.0))),
                None => state.to_owned(),
            };
            self.say(Topic::Units, health, alert, unit, figure);
        }
        for series in self.all("controlplane_systemd_unit_restarts_total") {
            let unit = series.labels[0].clone();
            let (restarts, mut figure) = self.growth(&series, Duration::from_hours(24));
            let nrestarts = self.number("controlplane_systemd_unit_nrestarts", &[&unit]);
            if let Some(all) = nrestarts.filter(|all| *all > restarts) {
                figure.push_str(&format!("; {all} since it was last started by hand"));
            }
            let lately = lately(|span| self.growth(&series, span).0);
            let what = format!("restarts of {unit} in 24 hours");
            self.measure(
                Topic::Units,
                "ControlPlaneUnitRestarting",
                "restarts in 24 hours",
                &what,
                Figure::new("restarts", restarts, figure),
            );
            self.at_most(lately.0, lately.1);
            self.crash_loop("ControlPlaneUnitCrashLooping", &unit, &series, 0.0);
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
        self.components();
        self.args();
        self.certificates();
    }

    /// Containers of static pods, by kubelet's own number; the processes of k0s, which has none, by their starts.
    fn components(&mut self) {
        const DAY: Duration = Duration::from_hours(24);
        let numbered = self.all("controlplane_static_pod_restarts");
        let starts = if numbered.is_empty() {
            self.all("controlplane_static_pod_start_timestamp_seconds")
        } else {
            Vec::new()
        };
        for series in numbered {
            let [pod, process] = &series.labels[..] else { continue };
            let all = series.value.as_number();
            let (restarts, mut figure) = self.growth_from(all, &series, DAY);
            if all > restarts {
                figure.push_str(&format!("; {all} in all"));
            }
            let lately = lately(|span| self.growth_from(all, &series, span).0);
            let component = format!("{process} in {pod}");
            self.restarted(&component, restarts, figure, lately);
            self.crash_loop("ControlPlaneComponentCrashLooping", &component, &series, all);
        }
        for series in starts {
            let [process] = &series.labels[..] else { continue };
            let changes = self.store.changes(series.metric, &series.labels, DAY);
            let (starts, watched) = changes.unwrap_or_default();
            let mut figure = format!("{starts}");
            if watched < DAY {
                figure.push_str(&format!(", watched for {}", length(watched.as_secs_f64().ceil())));
            }
            let lately = lately(|span| {
                let changes = self.store.changes(series.metric, &series.labels, span);
                changes.map_or(0.0, |(starts, _)| starts)
            });
            self.restarted(process, starts, figure, lately);
            let changes = self.store.changes(series.metric, &series.labels, LOOP);
            let (starts, _) = changes.unwrap_or_default();
            let alert = "ControlPlaneComponentCrashLooping";
            let table = rows(alert, "starts of a process of k0s in 10 minutes");
            self.looping(&table, alert, process, starts);
        }
    }

    /// A verdict of its own while something restarts again and again, as far as ten minutes can be told from the copies; `first`
    /// is as in [`Self::growth_from`].
    fn crash_loop(&mut self, alert: &'static str, what: &str, series: &Series, first: f64) {
        let (restarts, age) = self.grown(first, series, LOOP);
        let restarts = (restarts * LOOP.div_duration_f64(age.max(LOOP))).floor();
        self.looping(&rows(alert, "restarts in 10 minutes"), alert, what, restarts);
    }

    /// The same by these rows of the table, of what has restarted so often in ten minutes.
    fn looping(&mut self, table: &[&Threshold], alert: &'static str, what: &str, restarts: f64) {
        debug_assert!(!table.is_empty(), "the table has no row of {alert} for {what}");
        let health = by_table(table, restarts);
        if health > Health::Ok {
            self.verdicts.push(Verdict {
                topic: Topic::Units,
                health,
                what: format!("restarts of {what} in 10 minutes"),
                figure: format!("{restarts}"),
                limit: limit(table),
                alert: alert.into(),
                measure: None,
            });
        }
    }

    fn restarted(
        &mut self,
        component: &str,
        restarts: f64,
        figure: String,
        lately: (Health, &str),
    ) {
        self.measure(
            Topic::Units,
            "ControlPlaneComponentRestarting",
            "restarts in 24 hours",
            &format!("restarts of {component} in 24 hours"),
            Figure::new("component_restarts", restarts, figure),
        );
        self.at_most(lately.0, lately.1);
    }

    pub(super) fn datastore(&mut self) {
        self.etcd();
        self.dqlite();
        self.kine();
        self.snapshots();
        if let Some(orphans) = self.number("controlplane_registry_keys", &["orphans.longhorn.io"]) {
            self.measure(
                Topic::Datastore,
                "ControlPlaneLonghornOrphans",
                "orphans",
                "Longhorn orphans",
                Figure::new("orphans", orphans, format!("{orphans}")),
            );
        }
    }

    fn etcd(&mut self) {
        let Some(up) = self.number("controlplane_etcd_up", &[]) else { return };
        let voters = self.number("controlplane_etcd_voters_listed", &[]);
        let quorum = Quorum::new(voters, self.number("controlplane_etcd_voters_reachable", &[]));
        if up < 0.5 {
            self.say(
                Topic::Datastore,
                down(voters, quorum.as_ref()),
                "ControlPlaneEtcdMemberDown",
                "etcd member",
                self.silence("etcd"),
            );
        } else {
            self.member();
        }
        if let Some(quorum) = quorum {
            let (health, alert) = match quorum.state() {
                QuorumState::Lost => (Health::Critical, "ControlPlaneEtcdQuorumLost"),
                QuorumState::TwoVoters => (Health::Warning, "ControlPlaneEtcdTwoVoters"),
                QuorumState::AtRisk => (Health::Warning, "ControlPlaneEtcdQuorumAtRisk"),
                QuorumState::Safe => (Health::Ok, "ControlPlaneEtcdQuorumAtRisk"),
            };
            self.say(Topic::Datastore, health, alert, "voting members", quorum.to_string());
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
                Figure::new("db_of_quota", size / quota, figure),
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
                alert: alert.into(),
                // Judged by two figures at once, so the one has no limits of its own.
                measure: Some(Measure {
                    name: "db_reclaimable".into(),
                    value: free,
                    unit: Unit::Bytes.symbol().into(),
                    warning: String::new(),
                    critical: String::new(),
                }),
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
            self.measure_by(&rows, topic, alert, what, Figure::new("read_p90", p90, length(p90)));
        }
    }

    pub(super) fn samplers(&mut self) {
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

/// Voting members, of which there is more than one.
pub(super) struct Quorum {
    voters: f64,
    reachable: f64,
    majority: f64,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum QuorumState {
    Lost,
    /// Two, of which none may fail.
    TwoVoters,
    /// One more failure and it is lost.
    AtRisk,
    Safe,
}

impl Quorum {
    /// `None` for a single voter, of which there is no quorum to speak, and when it is not known.
    pub(super) fn new(voters: Option<f64>, reachable: Option<f64>) -> Option<Self> {
        let (voters, reachable) = voters.filter(|voters| *voters > 1.0).zip(reachable)?;
        Some(Self { voters, reachable, majority: (voters / 2.0).floor() + 1.0 })
    }

    pub(super) fn state(&self) -> QuorumState {
        match () {
            () if self.reachable < self.majority => QuorumState::Lost,
            () if self.voters < 2.5 => QuorumState::TwoVoters,
            () if self.reachable < self.majority + 0.5 => QuorumState::AtRisk,
            () => QuorumState::Safe,
        }
    }
}

impl std::fmt::Display for Quorum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {} answer, {} are needed", self.reachable, self.voters, self.majority)
    }
}

/// How bad it is that the local member does not answer.
pub(super) fn down(voters: Option<f64>, quorum: Option<&Quorum>) -> Health {
    let alone = voters.is_none_or(|voters| voters < 2.0);
    let at_risk = quorum.is_some_and(|quorum| quorum.reachable <= quorum.majority);
    if alone || at_risk { Health::Critical } else { Health::Warning }
}

fn is_ours(process: &str) -> bool {
    thresholds::CONTROL_PLANE.contains(&process)
}

/// How bad a day's restarts can be by whether they go on, and why: what has not happened for six hours is over, and what
/// has not for two is no longer critical.
fn lately(within: impl Fn(Duration) -> f64) -> (Health, &'static str) {
    if within(Duration::from_hours(2)) > 0.0 {
        (Health::Critical, "")
    } else if within(Duration::from_hours(6)) > 0.0 {
        (Health::Warning, "none within two hours")
    } else {
        (Health::Ok, "none within six hours")
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::metric::Metric;
    use crate::sample::{Batch, Histogram};
    use crate::self_metrics::Statuses;
    use crate::store;
    use crate::store::Store;
    use crate::verdict::{MEASURES, judge, worst};
    use std::sync::Arc;
    use std::time::{SystemTime, UNIX_EPOCH};

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
    static STARTED: Metric<1> =
        Metric::gauge("controlplane_static_pod_start_timestamp_seconds", "Starts.", ["process"]);
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

    pub(in crate::verdict) const MINUTE: Duration = Duration::from_mins(1);

    pub(in crate::verdict) fn store() -> Store {
        Store::new(Arc::new(Statuses::default()))
    }

    /// Puts a sampler's batch and gives the verdict about `what`.
    pub(in crate::verdict) fn about(store: &Store, what: &str) -> (Health, String, String) {
        let all = judge(store);
        let found = all.iter().find(|verdict| verdict.what.contains(what));
        let found = found.unwrap_or_else(|| panic!("no verdict about {what}: {all:#?}"));
        (found.health, found.figure.clone(), found.alert.to_string())
    }

    fn etcd(fill: impl FnOnce(&mut Batch)) -> Store {
        let (store, mut batch) = (store(), Batch::default());
        batch.push(&UP, [], 1.0);
        batch.push(&LEADER, [], 1.0);
        fill(&mut batch);
        store.put("etcd", batch, MINUTE);
        store
    }

    /// Where figures are judged.
    const SOURCES: &[&str] = &[
        include_str!("topics.rs"),
        include_str!("disk.rs"),
        include_str!("microk8s.rs"),
        include_str!("expiry.rs"),
        include_str!("log.rs"),
        include_str!("settings.rs"),
        include_str!("api.rs"),
        include_str!("volumes.rs"),
    ];

    #[test]
    fn every_metric_and_alert_that_is_named_here_exists() {
        let word = regex::Regex::new(r#""(controlplane_[a-z_]+)""#).unwrap();
        let alert = regex::Regex::new(r#""(ControlPlane[A-Za-z]+)""#).unwrap();
        for source in [SOURCES, &[include_str!("../history.rs")]].concat() {
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
        let source = SOURCES.concat();
        let found: Vec<_> = asked.captures_iter(&source).collect();
        assert!(found.len() > 10, "{}", found.len());
        for row in found {
            assert!(!rows(&row[1], &row[2]).is_empty(), "no row {} {:?}", &row[1], &row[2]);
        }
    }

    #[test]
    fn every_measure_is_listed() {
        let name = regex::Regex::new(r#"(?:Figure::new\(\s*|name: )"(\w+)""#).unwrap();
        let source = SOURCES.concat();
        let used: std::collections::BTreeSet<_> =
            name.captures_iter(&source).map(|found| found.extract::<1>().1[0]).collect();
        assert_eq!(used, std::collections::BTreeSet::from(MEASURES));
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
            (
                Health::Warning,
                "2 of 3 answer, 2 are needed".into(),
                "ControlPlaneEtcdQuorumAtRisk".into()
            )
        );
        assert_eq!(quorum(3.0, 1.0).2, "ControlPlaneEtcdQuorumLost");
        assert_eq!(quorum(2.0, 2.0).2, "ControlPlaneEtcdTwoVoters");
        assert_eq!(quorum(4.0, 4.0).0, Health::Ok);
    }

    #[test]
    fn orphans_are_judged_without_etcd_too() {
        static KEYS: Metric<1> = Metric::gauge("controlplane_registry_keys", "Keys.", ["resource"]);
        let (store, mut batch) = (store(), Batch::default());
        batch.push(&KEYS, ["orphans.longhorn.io"], 120_000.0);
        store.put("registry_keys", batch, MINUTE);
        assert!(about(&store, "orphans").0 > Health::Ok);
    }

    #[test]
    fn a_member_that_is_down_is_told_with_the_reason() {
        let (store, mut batch) = (store(), Batch::default());
        batch.push(&UP, [], 0.0);
        batch.remark("connecting: Connection refused (refused)");
        store.statuses().runs("etcd", MINUTE);
        store.statuses().end("etcd", Some(&batch), None, false);
        store.put("etcd", batch, MINUTE);
        let (health, figure, _) = about(&store, "etcd member");
        assert_eq!(health, Health::Critical);
        assert_eq!(figure, "does not answer: connecting: Connection refused (refused)");
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

    #[test]
    fn a_path_that_cannot_be_synced_at_all_is_unknown() {
        static FAILURES: Metric<4> = Metric::counter(
            "controlplane_fdatasync_failures_total",
            "Failed.",
            ["path", "device", "step", "errno"],
        );
        let of = |ended: bool| {
            let (store, mut batch) = (store(), Batch::default());
            let mut syncs = Histogram::new(&[0.01, 0.25]);
            if ended {
                syncs.observe(0.001);
            }
            batch.histogram(&SYNCS, ["/db", "sda"], &syncs);
            batch.push(&FAILURES, ["/db", "sda", "open", "ENOENT"], 3.0);
            store.put("fdatasync", batch, Duration::from_secs(5));
            judge(&store).into_iter().find(|verdict| verdict.health == Health::Unknown)
        };
        assert_eq!(of(true), None);
        let unknown = of(false).unwrap();
        assert_eq!(unknown.figure, "none has ever ended: open fails with ENOENT");
    }

    #[test]
    fn a_first_sync_that_does_not_end_is_judged_by_its_age() {
        static INFLIGHT: Metric<2> =
            Metric::gauge("controlplane_fdatasync_inflight_seconds", "Age.", ["path", "device"]);
        let of = |age: f64| {
            let (store, mut batch) = (store(), Batch::default());
            batch.histogram(&SYNCS, ["/db", "sda"], &Histogram::new(&[0.01, 0.25]));
            batch.push(&INFLIGHT, ["/db", "sda"], age);
            store.put("fdatasync", batch, Duration::from_secs(5));
            judge(&store).into_iter().find(|verdict| verdict.what.contains("p90"))
        };
        assert_eq!(of(0.0), None);
        let stuck = of(2.5).unwrap();
        assert_eq!(stuck.health, Health::Critical);
        assert_eq!(stuck.figure, "at least 2.5 s, none has ended");
    }

    #[test]
    fn a_blocked_thread_of_k3s_is_critical_only_while_no_sync_gets_through() {
        static BLOCKED: Metric<1> =
            Metric::gauge("controlplane_fdatasync_thread_blocked_seconds", "Age.", ["process"]);
        static INFLIGHT: Metric<2> =
            Metric::gauge("controlplane_fdatasync_inflight_seconds", "Age.", ["path", "device"]);
        let of = |process: &str, inflight: Option<f64>| {
            let (store, mut batch) = (store(), Batch::default());
            batch.push(&BLOCKED, [process], 40.0);
            if let Some(age) = inflight {
                batch.push(&INFLIGHT, ["/db", "sda"], age);
            }
            store.put("fdatasync", batch, Duration::from_secs(5));
            about(&store, "blocked in the kernel").0
        };
        let k3s = |inflight| of("k3s-server", inflight);
        assert_eq!(k3s(Some(0.2)), Health::Warning, "a dead NFS server, perhaps");
        assert_eq!((k3s(Some(9.0)), k3s(None)), (Health::Critical, Health::Critical));
        assert_eq!(of("etcd", Some(0.2)), Health::Critical);
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
        let mut later = Vec::new();
        for _ in 0..25 * 12 {
            tokio::time::advance(MINUTE * 5).await;
            later.push(look(restarts));
        }
        let hours = |n: usize| later[n * 12 - 1];
        let ends = (hours(1), hours(3), hours(7));
        assert_eq!(ends, (Health::Critical, Health::Warning, Health::Ok), "as the alerts end");
        assert_eq!(hours(25), Health::Ok, "yesterday's restarts are over");
    }

    #[tokio::test(start_paused = true)]
    async fn a_crash_loop_is_critical_long_before_a_day_is_full_of_restarts() {
        let store = store();
        let look = |restarts: f64| {
            let mut batch = Batch::default();
            batch.push(&RESTARTS, ["k3s.service"], restarts);
            store.put("systemd", batch, MINUTE);
            let all = judge(&store);
            all.into_iter().find(|verdict| verdict.alert == "ControlPlaneUnitCrashLooping")
        };
        let mut restarts = 0.0;
        for _ in 0..12 {
            tokio::time::advance(MINUTE * 5).await;
            restarts += 1.0;
            assert_eq!(look(restarts), None, "one in five minutes");
        }
        for _ in 0..15 {
            tokio::time::advance(MINUTE).await;
            restarts += 1.0;
            look(restarts);
        }
        let loops = look(restarts).unwrap();
        assert_eq!(loops.health, Health::Critical);
        assert_eq!(loops.what, "restarts of k3s.service in 10 minutes");
        for _ in 0..4 {
            tokio::time::advance(MINUTE * 5).await;
            look(restarts);
        }
        assert_eq!(look(restarts), None, "it is over");
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_of_k0s_that_begins_again_and_again_is_told_by_its_starts() {
        let store = store();
        let look = |started: f64| {
            let mut batch = Batch::default();
            batch.push(&STARTED, ["kube-apiserver"], started);
            store.put("static_pod", batch, MINUTE);
            about(&store, "restarts of kube-apiserver")
        };
        assert_eq!(look(1e9).0, Health::Ok);
        for start in 1..=11 {
            tokio::time::advance(MINUTE * 10).await;
            look(1e9 + 600.0 * f64::from(start));
        }
        let (health, figure, alert) = look(1e9 + 6600.0);
        assert_eq!((health, &figure[..]), (Health::Warning, "11, watched for 110 min"));
        assert_eq!(alert, "ControlPlaneComponentRestarting");
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_of_k0s_that_ends_every_20_seconds_is_critical_within_minutes() {
        let store = store();
        let look = |started: f64| {
            let mut batch = Batch::default();
            batch.push(&STARTED, ["etcd"], started);
            store.put("static_pod", batch, MINUTE);
            let all = judge(&store);
            all.into_iter().find(|verdict| verdict.alert == "ControlPlaneComponentCrashLooping")
        };
        assert_eq!(look(1e9), None);
        // The sampler looks every 30 s, a little earlier or later.
        let mut started = 1e9;
        for _ in 0..5 {
            tokio::time::advance(Duration::from_millis(28_500)).await;
            started += 20.0;
            assert_eq!(look(started), None, "five starts are not too many");
        }
        tokio::time::advance(Duration::from_millis(31_500)).await;
        started += 20.0;
        let loops = look(started).unwrap();
        assert_eq!((loops.health, &loops.figure[..]), (Health::Critical, "6"));
        assert_eq!(loops.what, "restarts of etcd in 10 minutes");
        assert_eq!(loops.limit, "critical above 5");
        for _ in 0..20 {
            tokio::time::advance(MINUTE / 2).await;
            look(started);
        }
        assert_eq!(look(started), None, "it stays");
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
        assert_eq!((of(0.0, "inactive"), of(0.0, "activating")), (None, None));
        let starts_since = |seconds: f64| {
            static SINCE: Metric<1> = Metric::gauge(
                "controlplane_systemd_unit_state_since_timestamp_seconds",
                "Since.",
                ["unit"],
            );
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
            let (store, mut batch) = (store(), Batch::default());
            batch.push(&EXPECTED, ["k3s.service"], 1.0);
            batch.push(&STATE, ["k3s.service", "activating"], 1.0);
            batch.push(&SINCE, ["k3s.service"], now - seconds);
            store.put("systemd", batch, MINUTE);
            judge(&store).first().map(|verdict| verdict.health)
        };
        assert_eq!(starts_since(60.0), Some(Health::Warning));
        assert_eq!(starts_since(600.0), Some(Health::Critical), "it does not get on");
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
}
