//! A short memory of what only grows, so that rates can be told without Prometheus, and of what must not collapse.
//!
//! It keeps a copy of few metrics, some minutes apart, in memory: 0.4 MB with eight units, 3.4 MB with 64 (104 bytes a copy, in
//! queues with room for a power of two). A process of k0s, of which there are at most eight, has a copy for each start that
//! was seen, and one more: next to nothing while it stays, 0.4 MB when it has begun anew every 30 s for a day, and 0.9 MB at
//! every 20 s, which is the most.
//! A first value counts from the agent's start, so a rate of 24 hours is one of the agent's life until then.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use crate::sample::{Batch, Value};

/// Of which only [`History::changes`] is asked, so a value that stays needs no more than its first and its last copy.
const STARTS: &str = "controlplane_static_pod_start_timestamp_seconds";

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
    // Shorter than the sampler's interval, so that each of its looks counts.
    (STARTS, Duration::from_hours(24), Duration::from_secs(20)),
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
            let same = kept.iter().rev().take_while(|(_, before)| is_same(before, &copy)).take(2);
            if *metric == STARTS && same.count() == 2 {
                // The new copy takes its place.
                kept.pop_back();
            }
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
        let changed = copies
            .filter(|((_, before), (taken, after))| age(taken) <= span && !is_same(before, after));
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

fn is_same(one: &Value, other: &Value) -> bool {
    one.as_number().to_bits() == other.as_number().to_bits()
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
    fn a_start_is_copied_at_each_look_that_finds_another_and_takes_two_copies_while_it_stays() {
        static STARTED: Metric<1> = Metric::gauge(STARTS, "Starts.", ["process"]);
        let mut history = History::default();
        let began = Instant::now();
        let labels = ["etcd".to_owned()];
        let at = |n: u32| began + Duration::from_secs(30) * n;
        let look = |history: &mut History, n: u32, started: u32| {
            let mut batch = Batch::default();
            batch.push(&STARTED, ["etcd"], f64::from(started));
            history.record(&batch, at(n));
        };
        let copies = |history: &History| history.series.values().map(VecDeque::len).sum::<usize>();
        let check = |history: &History, minutes: u64, n: u32, changes: f64| {
            let span = Duration::from_mins(minutes);
            assert_eq!(history.changes(STARTS, &labels, span, at(n)), Some((changes, span)));
        };
        // Thirty hours without a restart, and then another process at each look for ten minutes.
        let hours = |hours: u32| hours * 120;
        for n in 0..=hours(30) {
            look(&mut history, n, 1);
        }
        assert_eq!(copies(&history), 2);
        check(&history, 24 * 60, hours(30), 0.0);
        for n in 1..=20 {
            look(&mut history, hours(30) + n, 1 + n);
        }
        let now = hours(30) + 20;
        check(&history, 10, now, 20.0);
        // The one of just five minutes ago as well.
        check(&history, 5, now, 11.0);
        // It stays from then on.
        for n in 1..=hours(23) {
            look(&mut history, now + n, 21);
        }
        check(&history, 24 * 60, now + hours(23), 20.0);
        check(&history, 10, now + hours(23), 0.0);
        // A day of restarts, and no more is kept.
        for n in 1..=hours(48) {
            look(&mut history, now + hours(23) + n, 21 + n);
        }
        assert!((2_880..=2_882).contains(&copies(&history)), "{}", copies(&history));
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
