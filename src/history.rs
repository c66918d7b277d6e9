//! A short memory of what only grows, so that rates can be told without Prometheus, and of what must not collapse.
//!
//! It keeps a copy of few metrics, some minutes apart, in memory: 0.2 MB with eight units, 1.6 MB with 64 (80 bytes a copy).
//! A first value counts from the agent's start, so a rate of 24 hours is one of the agent's life until then.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use crate::sample::{Batch, Value};

/// What is kept: the metric, how far back, and how often.
const KEPT: [(&str, Duration, Duration); 12] = [
    ("controlplane_fdatasync_duration_seconds", Duration::from_mins(15), Duration::from_mins(1)),
    (
        "controlplane_fdatasync_datastore_duration_seconds",
        Duration::from_mins(15),
        Duration::from_mins(1),
    ),
    (
        "controlplane_fdatasync_datastore_stalls_total",
        Duration::from_mins(10),
        Duration::from_mins(1),
    ),
    ("controlplane_fdatasync_stalls_total", Duration::from_mins(10), Duration::from_mins(1)),
    ("controlplane_etcd_request_duration_seconds", Duration::from_mins(10), Duration::from_mins(1)),
    ("controlplane_kine_request_duration_seconds", Duration::from_mins(5), Duration::from_mins(1)),
    (
        "controlplane_apiserver_request_duration_seconds",
        Duration::from_mins(10),
        Duration::from_mins(1),
    ),
    ("controlplane_systemd_unit_restarts_total", Duration::from_hours(24), Duration::from_mins(5)),
    ("controlplane_static_pod_restarts", Duration::from_hours(24), Duration::from_mins(5)),
    (
        "controlplane_static_pod_start_timestamp_seconds",
        Duration::from_hours(24),
        Duration::from_mins(5),
    ),
    ("controlplane_journal_events_total", Duration::from_mins(15), Duration::from_mins(1)),
    ("controlplane_volume_used_bytes", Duration::from_hours(1), Duration::from_mins(2)),
];

/// Metric and labels.
type Key = (&'static str, Vec<String>);

/// See the module's page.
#[derive(Debug, Default)]
pub struct History {
    series: HashMap<Key, VecDeque<(Instant, Value)>>,
}

impl History {
    /// Keeps what is to be kept of a batch, unless the last copy is young enough.
    pub fn record(&mut self, batch: &Batch, now: Instant) {
        let mut grown = false;
        for series in batch.all() {
            let Some((metric, span, step)) = KEPT.iter().find(|(name, ..)| *name == series.metric)
            else {
                continue;
            };
            let kept = self.series.entry((metric, series.labels.clone())).or_default();
            if kept.back().is_some_and(|(taken, _)| now.duration_since(*taken) < *step) {
                continue;
            }
            let copy = match &series.value {
                Value::Histogram(histogram) => Value::Histogram(histogram.classic()),
                value => value.clone(),
            };
            kept.push_back((now, copy));
            grown = true;
            // The one before the span's beginning stays: it is what the first of the span is compared with.
            while kept.get(1).is_some_and(|(taken, _)| now.duration_since(*taken) >= *span) {
                kept.pop_front();
            }
        }
        // Most batches bring nothing to keep: the kernel's comes twice a second.
        if !grown {
            return;
        }
        // What has not been seen for a day is not coming back.
        self.series.retain(|_, kept| {
            kept.back()
                .is_some_and(|(taken, _)| now.duration_since(*taken) < Duration::from_hours(25))
        });
    }

    /// The value that this series had `span` ago, or its oldest kept one when it is younger; and how
    /// long ago that was.
    pub fn before(
        &self,
        metric: &'static str,
        labels: &[String],
        span: Duration,
        now: Instant,
    ) -> Option<(&Value, Duration)> {
        let kept = self.series(metric, labels)?;
        let old = kept.iter().rev().find(|(taken, _)| now.duration_since(*taken) >= span);
        old.or_else(|| kept.front()).map(|(taken, value)| (value, now.duration_since(*taken)))
    }

    fn series(
        &self,
        metric: &'static str,
        labels: &[String],
    ) -> Option<&VecDeque<(Instant, Value)>> {
        debug_assert!(KEPT.iter().any(|(name, ..)| *name == metric), "{metric} is not kept");
        self.series.get(&(metric, labels.to_vec()))
    }

    /// How often one copy of this series differs from the one before, within the last `span`, and how long it has been watched
    /// then. What changes more often than it is copied changes once.
    pub fn changes(
        &self,
        metric: &'static str,
        labels: &[String],
        span: Duration,
        now: Instant,
    ) -> Option<(f64, Duration)> {
        let kept = self.series(metric, labels)?;
        let age = |taken: &Instant| now.duration_since(*taken);
        let watched = kept.front().map(|(taken, _)| age(taken).min(span))?;
        let copies = kept.iter().zip(kept.iter().skip(1));
        let changed = copies.filter(|((_, before), (taken, after))| {
            age(taken) <= span && before.as_number().to_bits() != after.as_number().to_bits()
        });
        Some((changed.count() as f64, watched))
    }

    /// The largest number that this series had within the last `span`.
    pub fn largest(
        &self,
        metric: &'static str,
        labels: &[String],
        span: Duration,
        now: Instant,
    ) -> Option<f64> {
        let kept = self.series(metric, labels)?;
        let within = kept.iter().filter(|(taken, _)| now.duration_since(*taken) <= span);
        within.map(|(_, value)| value.as_number()).reduce(f64::max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metric::Metric;

    static RESTARTS: Metric<1> =
        Metric::counter("controlplane_systemd_unit_restarts_total", "Restarts.", ["unit"]);

    fn batch(restarts: f64) -> Batch {
        let mut batch = Batch::default();
        batch.push(&RESTARTS, ["k3s.service"], restarts);
        batch
    }

    fn number(history: &History, minutes: u64, now: Instant) -> Option<f64> {
        let labels = ["k3s.service".to_owned()];
        let span = Duration::from_mins(minutes);
        history.before(RESTARTS.desc().name, &labels, span, now).map(|(value, _)| value.as_number())
    }

    #[test]
    fn a_value_of_yesterday_is_found_and_an_older_one_forgotten() {
        let mut history = History::default();
        let start = Instant::now();
        let at = |minutes: u64| start + Duration::from_mins(minutes);
        for minutes in 0..3 * 24 * 60 {
            history.record(&batch(minutes as f64), at(minutes));
        }
        let now = at(3 * 24 * 60);
        let day = number(&history, 24 * 60, now).unwrap();
        assert!((2_870.0..=2_880.0).contains(&day), "{day}");
        let ten = number(&history, 10, now).unwrap();
        assert!((4_300.0..=4_310.0).contains(&ten), "{ten}");
        let kept = history.series.values().map(VecDeque::len).sum::<usize>();
        assert!(kept <= 290, "{kept} copies");
    }

    #[test]
    fn changes_are_those_of_the_span_and_a_value_that_stays_has_none() {
        let mut history = History::default();
        let start = Instant::now();
        let at = |minutes: u64| start + Duration::from_mins(minutes);
        // Another value every ten minutes for five hours, and then the same one.
        for minutes in 0..24 * 60 {
            history.record(&batch((minutes.min(300) / 10) as f64), at(minutes));
        }
        let labels = ["k3s.service".to_owned()];
        let changes = |hours: u64, now| {
            let span = Duration::from_hours(hours);
            history.changes(RESTARTS.desc().name, &labels, span, now).unwrap()
        };
        let now = at(24 * 60 - 1);
        assert_eq!(changes(24, now), (30.0, Duration::from_mins(24 * 60 - 1)));
        assert_eq!(changes(20, now), (7.0, Duration::from_hours(20)));
        assert_eq!(changes(6, now), (0.0, Duration::from_hours(6)));
    }

    #[test]
    fn a_young_series_is_compared_with_its_first_value() {
        let mut history = History::default();
        let start = Instant::now();
        assert_eq!(number(&history, 10, start), None);
        history.record(&batch(3.0), start);
        assert_eq!(number(&history, 24 * 60, start + Duration::from_secs(5)), Some(3.0));
    }

    #[test]
    fn other_metrics_are_not_kept() {
        static OTHER: Metric<0> = Metric::gauge("controlplane_other", "Other.", []);
        let mut other = Batch::default();
        other.push(&OTHER, [], 1.0);
        let mut history = History::default();
        history.record(&other, Instant::now());
        assert!(history.series.is_empty());
    }
}
