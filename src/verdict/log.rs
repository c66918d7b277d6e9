//! What the control plane's logs say.

use std::time::Duration;

use super::court::{Court, by_table, limit, rows};
use super::{Health, Topic, Verdict};
use crate::sample::Series;
use crate::thresholds;

/// The row of the table for what a single line is enough for.
const AGE: &str = "time since the last such line";
const SPAN: Duration = Duration::from_mins(15);
/// What has grown since then still goes on.
const NOW: Duration = Duration::from_mins(5);

impl Court<'_> {
    /// One verdict for each alert of which there are lines; of those that go by time, about the last one.
    pub(super) fn log(&mut self) {
        if !self.runs("journal") {
            return;
        }
        let before = self.verdicts.len();
        let times = self.all("controlplane_journal_event_last_timestamp_seconds");
        let counts = self.all("controlplane_journal_events_total");
        for (alert, what, signatures) in thresholds::LOGGED {
            let ours = |series: &&Series| signatures.contains(&series.labels[0].as_str());
            if rows(alert, AGE).is_empty() {
                counts.iter().filter(ours).for_each(|series| self.repeated(alert, what, series));
                continue;
            }
            let newest = times
                .iter()
                .filter(ours)
                .max_by(|a, b| a.value.as_number().total_cmp(&b.value.as_number()));
            if let Some(series) = newest {
                let what = format!("{what} ({})", series.labels[1]);
                self.since(Topic::Log, alert, AGE, &what, Some(series.value.as_number()));
            }
        }
        if self.verdicts.len() == before {
            self.say(Topic::Log, Health::Ok, "", "lines that mean trouble", "none".into());
        }
    }

    /// What only a number of lines makes bad.
    fn repeated(&mut self, alert: &'static str, what: &str, series: &Series) {
        let (number, figure) = self.growth(series, SPAN);
        if self.growth(series, NOW).0 <= 0.0 {
            return;
        }
        let rows: Vec<_> = thresholds::TABLE.iter().filter(|row| row.alert == alert).collect();
        self.verdicts.push(Verdict {
            topic: Topic::Log,
            health: by_table(&rows, number),
            what: format!("{what} ({})", series.labels[1]),
            figure,
            limit: limit(&rows),
            alert: alert.into(),
            measure: None,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metric::Metric;
    use crate::sample::Batch;
    use crate::store::Store;
    use crate::verdict::judge;
    use crate::verdict::topics::tests::{MINUTE, about, store};
    use std::time::{SystemTime, UNIX_EPOCH};

    static COUNT: Metric<2> =
        Metric::counter("controlplane_journal_events_total", "Lines.", ["signature", "unit"]);
    static LAST: Metric<2> = Metric::gauge(
        "controlplane_journal_event_last_timestamp_seconds",
        "When.",
        ["signature", "unit"],
    );
    const K3S: &str = "k3s.service";

    fn put(store: &Store, fill: impl FnOnce(&mut Batch)) {
        let mut batch = Batch::default();
        fill(&mut batch);
        store.statuses().runs("journal", MINUTE);
        store.statuses().end("journal", Some(&batch), None, false);
        store.put("journal", batch, MINUTE);
    }

    fn ago(seconds: f64) -> f64 {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64() - seconds
    }

    #[test]
    fn every_row_of_the_list_is_in_the_table() {
        for (alert, ..) in thresholds::LOGGED {
            let rows = thresholds::TABLE.iter().filter(|row| row.alert == alert);
            assert_eq!(rows.count(), 1, "{alert}");
        }
    }

    #[test]
    fn nothing_logged_is_one_line_and_well() {
        let store = store();
        put(&store, |batch| {
            batch.push(&COUNT, ["volume_formatting", K3S], 0.0);
            batch.push(&LAST, ["unit_started", K3S], ago(60.0));
        });
        let verdicts = judge(&store);
        assert_eq!(verdicts.len(), 1, "{verdicts:#?}");
        assert_eq!((verdicts[0].topic, verdicts[0].health), (Topic::Log, Health::Ok));
    }

    #[test]
    fn the_newest_line_of_an_alert_is_judged_and_the_worst_alert_comes_first() {
        let store = store();
        put(&store, |batch| {
            batch.push(&LAST, ["k3s_fatal", K3S], ago(600.0));
            batch.push(&LAST, ["volume_formatting", K3S], ago(7_200.0));
            batch.push(&LAST, ["volume_formatted", "kubelet.service"], ago(300.0));
            batch.push(&LAST, ["go_sigbus", K3S], ago(7_200.0));
        });
        let verdicts = judge(&store);
        let said: Vec<_> = verdicts.iter().map(|v| (v.what.as_str(), v.health)).collect();
        let expected = [
            ("volume formatted (kubelet.service)", Health::Critical),
            ("program ended and said why (k3s.service)", Health::Warning),
            ("page of a file not readable (k3s.service)", Health::Ok),
        ];
        assert_eq!(said, expected);
        assert_eq!(verdicts[0].figure, "5 min ago");
    }

    #[tokio::test(start_paused = true)]
    async fn what_goes_by_number_is_judged_while_it_goes_on() {
        let store = store();
        let look = |count: f64| {
            put(&store, |batch| batch.push(&COUNT, ["volume_mount_failed", K3S], count));
            judge(&store).into_iter().map(|v| (v.what, v.health)).next().unwrap()
        };
        assert_eq!(look(0.0).0, "lines that mean trouble");
        let mut count = 0.0;
        for _ in 0..10 {
            tokio::time::advance(MINUTE).await;
            count += 1.0;
            look(count);
        }
        assert_eq!(
            look(count),
            ("failed mounts of 15 minutes (k3s.service)".into(), Health::Warning)
        );
        assert_eq!(about(&store, "failed mounts").2, "ControlPlaneVolumeMountFailing");
        for _ in 0..7 {
            tokio::time::advance(MINUTE).await;
            look(count);
        }
        assert_eq!(look(count), ("lines that mean trouble".into(), Health::Ok));
    }
}
