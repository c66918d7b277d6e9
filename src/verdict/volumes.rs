//! What is judged of volumes: whether one was formatted anew or emptied, and its backups.

use std::time::Duration;

use super::court::{Court, Figure, by_table, rows};
use super::{Health, Measure, Topic, Verdict, bytes, length, percent};
use crate::sample::Series;

const TOPIC: Topic = Topic::Volumes;
/// As long as the rule looks back.
const SPAN: Duration = Duration::from_hours(1);

impl Court<'_> {
    pub(super) fn volumes(&mut self) {
        if !self.runs("volume") {
            return;
        }
        self.reformatted();
        self.collapsed();
        self.few_backups();
        self.old_backups();
    }

    /// One verdict for each volume that was formatted anew, however long ago; the age tells whether it is news.
    fn reformatted(&mut self) {
        let alert = "ControlPlaneVolumeReformatted";
        let row = "time since the filesystem was made";
        let all = self.all("controlplane_volume_reformatted_timestamp_seconds");
        if all.is_empty() {
            self.since(TOPIC, alert, row, "volumes formatted anew", None);
        }
        for series in all {
            let what = format!("volume {} formatted anew", series.labels[0]);
            self.since(TOPIC, alert, row, &what, Some(series.value.as_number()));
        }
    }

    /// The volume of which least is left of what was used within the last hour, of those that held enough.
    fn collapsed(&mut self) {
        let alert = "ControlPlaneVolumeUsageCollapsed";
        let table = rows(alert, "used bytes against the most within an hour");
        let enough = rows(alert, "most bytes used within an hour");
        let all = self.all("controlplane_volume_used_bytes");
        let worst = all
            .iter()
            .filter_map(|series| {
                let now = series.value.as_number();
                let most = self.store.largest(series.metric, &series.labels, SPAN)?.max(now);
                let counts = enough.iter().all(|row| row.is_bad(most));
                counts.then(|| (series, now, most, now / most))
            })
            .min_by(|a, b| a.3.total_cmp(&b.3));
        let Some((series, now, most, share)) = worst else { return };
        let what = format!("used bytes of volume {} against the last hour", series.labels[0]);
        let figure = format!("{} of {}, {}", bytes(now), bytes(most), percent(share));
        let figure = Figure::new("volume_used", share, figure);
        self.measure_by(&table, TOPIC, alert, &what, figure);
    }

    /// The volume with the fewest backups, of those that are old enough to have two.
    fn few_backups(&mut self) {
        let alert = "ControlPlaneVolumeBackupsFew";
        let old = rows(alert, "age of the volume");
        let table = rows(alert, "backups");
        let provisioned = "controlplane_volume_provisioned_timestamp_seconds";
        let mut all = self.all("controlplane_volume_backups");
        all.retain(|series| {
            let made = self.number(provisioned, &[&series.labels[0]]);
            made.is_some_and(|made| old.iter().all(|row| row.is_bad(self.now - made)))
        });
        let few = |series: &&Series| by_table(&table, series.value.as_number()) > Health::Ok;
        let count = all.iter().filter(few).count();
        let number = |series: &&Series| series.value.as_number();
        let Some(worst) = all.iter().min_by(|a, b| number(a).total_cmp(&number(b))) else { return };
        let backups = worst.value.as_number();
        let more = if count > 1 {
            format!("; {count} volumes have fewer than two")
        } else {
            String::new()
        };
        let what = format!("fewest backups, volume {}", worst.labels[0]);
        let figure = Figure::new("volume_backups", backups, format!("{backups}{more}"));
        self.measure_by(&table, TOPIC, alert, &what, figure);
    }

    /// The volume whose newest backup is the first to be too old.
    fn old_backups(&mut self) {
        let alert = "ControlPlaneVolumeBackupOld";
        let all = self.all("controlplane_volume_backup_due_timestamp_seconds");
        let late = |series: &Series| self.now - series.value.as_number();
        let count = all.iter().filter(|series| late(series) > 0.0).count();
        let Some(worst) = all.iter().max_by(|a, b| late(a).total_cmp(&late(b))) else { return };
        let name = worst.labels[0].clone();
        let last = self.number("controlplane_volume_backup_last_timestamp_seconds", &[&name]);
        let mut figure = last.map_or_else(
            || "time unknown".to_owned(),
            |last| format!("{} ago", length((self.now - last).max(0.0))),
        );
        if count > 1 {
            figure.push_str(&format!("; those of {count} volumes are too old"));
        }
        self.verdicts.push(Verdict {
            topic: TOPIC,
            health: if count > 0 { Health::Warning } else { Health::Ok },
            what: format!("oldest newest backup, volume {name}"),
            figure,
            limit: "warning when volume.backup_max_age has passed".to_owned(),
            alert: alert.into(),
            measure: None::<Measure>,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::topics::tests::{MINUTE, about, store};
    use super::*;
    use crate::metric::Metric;
    use crate::sample::Batch;
    use crate::store::Store;
    use crate::verdict::judge;
    use std::time::{SystemTime, UNIX_EPOCH};

    static REFORMATTED: Metric<1> =
        Metric::gauge("controlplane_volume_reformatted_timestamp_seconds", "When.", ["volume"]);
    static USED: Metric<1> = Metric::gauge("controlplane_volume_used_bytes", "Used.", ["volume"]);
    static MADE: Metric<1> =
        Metric::gauge("controlplane_volume_provisioned_timestamp_seconds", "Made.", ["volume"]);
    static BACKUPS: Metric<1> = Metric::gauge("controlplane_volume_backups", "N.", ["volume"]);
    static LAST: Metric<1> =
        Metric::gauge("controlplane_volume_backup_last_timestamp_seconds", "Last.", ["volume"]);
    static DUE: Metric<1> =
        Metric::gauge("controlplane_volume_backup_due_timestamp_seconds", "Due.", ["volume"]);

    const DAY: f64 = 86_400.0;

    fn put(store: &Store, fill: impl FnOnce(&mut Batch)) {
        let mut batch = Batch::default();
        fill(&mut batch);
        store.statuses().runs("volume", MINUTE);
        store.statuses().end("volume", Some(&batch), None, false);
        store.put("volume", batch, MINUTE);
    }

    fn ago(seconds: f64) -> f64 {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64() - seconds
    }

    #[test]
    fn a_volume_that_was_formatted_anew_is_critical_for_a_day_and_without_one_all_is_well() {
        let store = store();
        put(&store, |_| {});
        assert_eq!(about(&store, "volumes formatted anew").0, Health::Ok);
        put(&store, |batch| batch.push(&REFORMATTED, ["pvc-1"], ago(23.0 * 3600.0)));
        let (health, figure, alert) = about(&store, "volume pvc-1 formatted anew");
        assert_eq!((health, figure.as_str()), (Health::Critical, "23 h ago"));
        assert_eq!(alert, "ControlPlaneVolumeReformatted");
        put(&store, |batch| batch.push(&REFORMATTED, ["pvc-1"], ago(25.0 * 3600.0)));
        assert_eq!(about(&store, "volume pvc-1 formatted anew").0, Health::Ok);
    }

    #[tokio::test(start_paused = true)]
    async fn a_volume_that_lost_nine_tenths_within_an_hour_is_judged_by_the_most_of_that_hour() {
        let store = store();
        let look = |large: f64, small: f64| {
            put(&store, |batch| {
                batch.push(&USED, ["large"], large);
                batch.push(&USED, ["small"], small);
            });
            about(&store, "used bytes of volume")
        };
        assert_eq!(look(10e9, 1e6).1, "10.0 GB of 10.0 GB, 100 %");
        for _ in 0..10 {
            tokio::time::advance(MINUTE * 2).await;
            look(10e9, 0.0);
        }
        assert_eq!(look(2e9, 0.0).0, Health::Ok, "and what never held much does not count");
        let (health, figure, _) = look(40e6, 0.0);
        assert_eq!((health, figure.as_str()), (Health::Warning, "40.0 MB of 10.0 GB, 0.4 %"));
        for _ in 0..35 {
            tokio::time::advance(MINUTE * 2).await;
            put(&store, |batch| batch.push(&USED, ["large"], 80e6));
        }
        assert_eq!(
            about(&store, "used bytes of volume").0,
            Health::Ok,
            "an hour later it is old news"
        );
    }

    #[test]
    fn a_volume_that_is_old_enough_should_have_two_backups() {
        let store = store();
        let of = |all: &[(&str, f64, f64)]| {
            put(&store, |batch| {
                for (name, days, backups) in all {
                    batch.push(&MADE, [name], ago(days * DAY));
                    batch.push(&BACKUPS, [name], *backups);
                }
            });
            about(&store, "fewest backups")
        };
        assert_eq!(of(&[("a", 15.0, 2.0), ("new", 13.0, 0.0)]).0, Health::Ok);
        let (health, figure, alert) = of(&[("a", 15.0, 1.0), ("b", 15.0, 0.0)]);
        assert_eq!(
            (health, figure.as_str()),
            (Health::Warning, "0; 2 volumes have fewer than two")
        );
        assert_eq!(alert, "ControlPlaneVolumeBackupsFew");
    }

    #[test]
    fn the_volume_whose_backup_is_most_overdue_is_told() {
        let store = store();
        put(&store, |batch| {
            for (name, days) in [("a", 9.0), ("b", 3.0)] {
                batch.push(&LAST, [name], ago(days * DAY));
                batch.push(&DUE, [name], ago((days - 8.0) * DAY));
            }
        });
        let (health, figure, alert) = about(&store, "oldest newest backup, volume a");
        assert_eq!((health, figure.as_str()), (Health::Warning, "9 days ago"));
        assert_eq!(alert, "ControlPlaneVolumeBackupOld");
    }

    #[test]
    fn without_the_sampler_nothing_is_said() {
        assert!(judge(&store()).is_empty());
    }
}
