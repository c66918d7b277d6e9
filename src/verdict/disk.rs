//! Verdicts on syncs: the datastore's own, where the kernel tells, and the probe's.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::court::{Court, Figure, by_table, rows};
use super::{Health, Topic, length};
use crate::sample::{Histogram, Series, Value};
use crate::thresholds;

/// Names the device on which the datastore's own syncs are seen.
const SOURCE: &str = "controlplane_fdatasync_datastore_source_info";

impl Court<'_> {
    pub(super) fn disk(&mut self) {
        self.syncs_of_the_datastore();
        // Where the datastore's own are seen, the probe's say no more than they do.
        let own: BTreeSet<String> = self
            .all(SOURCE)
            .into_iter()
            .filter_map(|series| series.labels.into_iter().nth(1))
            .collect();
        for series in self.all("controlplane_fdatasync_duration_seconds") {
            if own.contains(&series.labels[1]) {
                continue;
            }
            let place = series.labels[0].clone();
            let recent = self.recent(&series, Duration::from_mins(15));
            let p90 = recent.and_then(|recent| recent.quantile(0.9));
            // As long as no sync has ended, the one in flight is all that is known.
            let labels: Vec<&str> = series.labels.iter().map(String::as_str).collect();
            let age = self.number("controlplane_fdatasync_inflight_seconds", &labels);
            let known = match (p90, age.filter(|age| *age > 0.0)) {
                (Some(p90), _) => Some((p90, length(p90))),
                (None, Some(age)) => {
                    Some((age, format!("at least {}, none has ended", length(age))))
                }
                (None, None) => None,
            };
            if let Some((p90, figure)) = known {
                let what = format!("syncs in {place}, p90 of 15 minutes");
                self.slow(&what, p90, figure);
            }
        }
        self.syncs_that_never_were();
        for series in self.all("controlplane_fdatasync_stalls_total") {
            if series.labels[2] == "1" && !own.contains(&series.labels[1]) {
                let what = format!("syncs above 1 s in {} in 10 minutes", series.labels[0]);
                self.stalls(&what, &series);
            }
        }
        for series in self.all("controlplane_fdatasync_inflight_seconds") {
            let what = format!("sync in flight in {}", series.labels[0]);
            self.stuck(&what, &series);
        }
        let syncs = self.all("controlplane_fdatasync_inflight_seconds");
        let stuck =
            rows("ControlPlaneDatastoreThreadBlocked", "for k3s, the sync in flight as well");
        let moves = |sync: &Series| by_table(&stuck, sync.value.as_number()) == Health::Ok;
        let gets_through = !syncs.is_empty() && syncs.iter().all(moves);
        for series in self.all("controlplane_fdatasync_thread_blocked_seconds") {
            let what = format!("thread of {} blocked in the kernel", series.labels[0]);
            let (alert, row) =
                ("ControlPlaneDatastoreThreadBlocked", "thread blocked in the kernel");
            let age = series.value.as_number();
            let figure = Figure::new("thread_blocked", age, lasting(age));
            self.measure(Topic::Disk, alert, row, &what, figure);
            // The process of k3s is kubelet as well, which a dead NFS server blocks.
            if series.labels[0] == "k3s-server" && gets_through {
                self.at_most(Health::Warning, "syncs get through");
            }
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

    /// What the kernel saw of the datastore's own: those of its log, for which every write to the cluster waits.
    fn syncs_of_the_datastore(&mut self) {
        let span = Duration::from_mins(15);
        let mut processes: BTreeMap<String, Histogram> = BTreeMap::new();
        for series in self.all("controlplane_fdatasync_datastore_duration_seconds") {
            if let (true, Some(recent)) = (series.labels[1] != "db", self.recent(&series, span)) {
                match processes.get_mut(&series.labels[0]) {
                    Some(all) => all.add(&recent),
                    None => _ = processes.insert(series.labels[0].clone(), recent),
                }
            }
        }
        for (process, syncs) in processes {
            if let Some(p90) = syncs.quantile(0.9) {
                let what = format!("{process}'s own syncs, p90 of 15 minutes");
                self.slow(&what, p90, length(p90));
            }
        }
        for series in self.all("controlplane_fdatasync_datastore_stalls_total") {
            let what = format!("{}'s own syncs above 1 s in 10 minutes", series.labels[0]);
            self.stalls(&what, &series);
        }
        for series in self.all("controlplane_fdatasync_datastore_inflight_seconds") {
            let what = format!("sync of {} in flight", series.labels[0]);
            self.stuck(&what, &series);
        }
        for series in self.all("controlplane_fdatasync_device_error_last_timestamp_seconds") {
            let what = format!("last failed request of {}, the datastore's disk", series.labels[0]);
            self.since(
                Topic::Disk,
                "ControlPlaneKernelIOErrors",
                "time since the datastore device's last error",
                &what,
                Some(series.value.as_number()),
            );
        }
        for series in self.all("controlplane_fdatasync_datastore_failure_last_timestamp_seconds") {
            let what = format!("last failed sync of {}", series.labels[0]);
            self.since(
                Topic::Disk,
                "ControlPlaneDiskSyncFailing",
                "time since the last failed sync",
                &what,
                Some(series.value.as_number()),
            );
        }
    }

    fn slow(&mut self, what: &str, p90: f64, figure: String) {
        let row = "syncs, p90 of 15 minutes";
        let figure = Figure::new("sync_p90", p90, figure);
        self.measure(Topic::Disk, "ControlPlaneDiskSyncSlow", row, what, figure);
    }

    fn stalls(&mut self, what: &str, series: &Series) {
        let row = "syncs above 1 s in 10 minutes";
        let (stalls, figure) = self.growth(series, Duration::from_mins(10));
        let figure = Figure::new("sync_stalls", stalls, figure);
        self.measure(Topic::Disk, "ControlPlaneDiskSyncStalls", row, what, figure);
    }

    fn stuck(&mut self, what: &str, series: &Series) {
        let age = series.value.as_number();
        let figure = Figure::new("sync_inflight", age, lasting(age));
        self.measure(Topic::Disk, "ControlPlaneDiskSyncStuck", "sync in flight", what, figure);
    }

    /// A path on which no sync has ever ended, and none is under way, is not well but unknown.
    fn syncs_that_never_were(&mut self) {
        let durations = self.all("controlplane_fdatasync_duration_seconds");
        let mut said = BTreeSet::new();
        for failed in self.all("controlplane_fdatasync_failures_total") {
            let [path, device, step, errno] = &failed.labels[..] else { continue };
            let ended = durations.iter().any(|series| {
                let count = if let Value::Histogram(all) = &series.value { all.count() } else { 0 };
                series.labels[0] == *path && count > 0
            });
            let age = self.number("controlplane_fdatasync_inflight_seconds", &[path, device]);
            if failed.value.as_number() > 0.0
                && !ended
                && age.is_none_or(|age| age <= 0.0)
                && said.insert(path.clone())
            {
                let what = format!("syncs in {path}");
                let figure = format!("none has ever ended: {step} fails with {errno}");
                let alert = "ControlPlaneDiskSyncFailing";
                self.say(Topic::Disk, Health::Unknown, alert, &what, figure);
            }
        }
    }
}

/// How long something lasts by now.
fn lasting(age: f64) -> String {
    if age > 0.0 { length(age) } else { "none".into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metric::Metric;
    use crate::sample::Batch;
    use crate::verdict::topics::tests::store;
    use crate::verdict::{self, Verdict};

    static PROBE: Metric<2> =
        Metric::histogram("controlplane_fdatasync_duration_seconds", "h", ["path", "device"]);
    static OWN: Metric<3> = Metric::histogram(
        "controlplane_fdatasync_datastore_duration_seconds",
        "h",
        ["process", "file", "op"],
    );
    static STALLS: Metric<2> = Metric::counter(
        "controlplane_fdatasync_datastore_stalls_total",
        "h",
        ["process", "threshold"],
    );
    static SEEN: Metric<2> = Metric::info(SOURCE, "h", ["source", "device"]);

    fn syncs(value: f64) -> Histogram {
        let mut syncs = Histogram::new(&[0.01, 0.05, 0.25, 1.0, 5.0]);
        (0..100).for_each(|_| syncs.observe(value));
        syncs
    }

    /// What is said of syncs when those of the datastore's log take 20 ms, and three took longer than a second.
    fn judged(device: &str) -> Vec<Verdict> {
        let store = store();
        for stalls in [0.0, 3.0] {
            let mut batch = Batch::default();
            batch.histogram(&PROBE, ["/var/lib/etcd", "sda"], &syncs(0.9));
            batch.histogram(&OWN, ["etcd", "wal", "fdatasync"], &syncs(0.02));
            batch.histogram(&OWN, ["etcd", "db", "fdatasync"], &syncs(4.0));
            batch.push(&STALLS, ["etcd", "1"], stalls);
            batch.info(&SEEN, ["fentry", device]);
            store.put("fdatasync", batch, Duration::from_secs(5));
        }
        let all = verdict::judge(&store).into_iter();
        all.filter(|verdict| verdict.what.contains("syncs")).collect()
    }

    #[test]
    fn the_datastores_own_syncs_are_judged_and_not_the_probes_of_their_device() {
        let said = judged("sda");
        let about = |what: &str| said.iter().find(|verdict| verdict.what == what).map(|v| v.health);
        assert_eq!(about("etcd's own syncs, p90 of 15 minutes"), Some(Health::Ok), "{said:#?}");
        assert_eq!(about("etcd's own syncs above 1 s in 10 minutes"), Some(Health::Warning));
        assert_eq!(about("syncs in /var/lib/etcd, p90 of 15 minutes"), None);
    }

    #[test]
    fn the_probe_of_another_device_is_judged_as_ever() {
        let said = judged("sdb");
        let probe = said.iter().find(|verdict| verdict.what.starts_with("syncs in /var/lib/etcd"));
        assert_eq!(probe.map(|verdict| verdict.health), Some(Health::Critical), "{said:#?}");
    }
}
