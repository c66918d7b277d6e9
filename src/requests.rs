//! What a sampler's own calls to a server took and came to.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use crate::etcd::Reason;
use crate::metric::Metric;
use crate::sample::{Batch, Histogram};

/// One kind of call.
#[derive(Debug)]
pub struct Record {
    /// What those took that were answered or waited for.
    pub durations: Histogram,
    /// How many failed, by the reason.
    pub failures: BTreeMap<Reason, u64>,
    last_success: Option<SystemTime>,
}

impl Record {
    /// No calls yet; with these upper bounds, in seconds, for their times.
    pub fn new(bounds: &[f64]) -> Self {
        let (durations, failures) = (Histogram::new(bounds), BTreeMap::new());
        Self { durations, failures, last_success: None }
    }

    /// Counts one call that `took` so long and, if it failed, failed for this reason.
    pub fn add(&mut self, took: Duration, failure: Option<Reason>) {
        // How fast a port is refused says nothing.
        if matches!(failure, None | Some(Reason::Timeout | Reason::TlsTimeout)) {
            self.durations.observe(took.as_secs_f64());
        }
        match failure {
            None => self.last_success = Some(SystemTime::now()),
            Some(reason) => *self.failures.entry(reason).or_default() += 1,
        }
    }
}

/// The calls since the agent started, by the word in the label `request`.
#[derive(Debug)]
pub struct Requests(Vec<(&'static str, Record)>);

impl Requests {
    /// No calls yet, of these kinds; with these upper bounds, in seconds, for their times.
    pub fn new(words: &[&'static str], bounds: &[f64]) -> Self {
        Self(words.iter().map(|word| (*word, Record::new(bounds))).collect())
    }

    /// Counts one call that `took` so long and, if it failed, failed for this reason.
    pub fn record(&mut self, word: &str, took: Duration, failure: Option<Reason>) {
        let Some((_, record)) = self.0.iter_mut().find(|(known, _)| *known == word) else {
            debug_assert!(false, "{word} is no kind of call");
            return;
        };
        record.add(took, failure);
    }

    /// The figures, under the sampler's own names.
    pub fn export(
        &self,
        durations: &Metric<1>,
        failures: &Metric<2>,
        successes: &Metric<1>,
        out: &mut Batch,
    ) {
        for (word, record) in &self.0 {
            out.histogram(durations, [word], &record.durations);
            for (reason, count) in &record.failures {
                out.push(failures, [word, reason.as_str()], *count);
            }
            if let Some(when) = record.last_success {
                out.push(successes, [word], when);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static DURATIONS: Metric<1> = Metric::histogram("x_request_duration_seconds", "h", ["request"]);
    static FAILURES: Metric<2> =
        Metric::counter("x_request_failures_total", "h", ["request", "reason"]);
    static SUCCESSES: Metric<1> =
        Metric::gauge("x_request_last_success_timestamp_seconds", "h", ["request"]);

    #[test]
    fn answers_and_time_outs_are_timed_and_refusals_are_only_counted() {
        let mut requests = Requests::new(&["status", "member_list"], &[0.1, 1.0]);
        let (ms, five) = (Duration::from_millis(1), Duration::from_secs(5));
        requests.record("status", ms, None);
        requests.record("status", five, Some(Reason::Timeout));
        requests.record("status", five, Some(Reason::TlsTimeout));
        requests.record("status", ms, Some(Reason::Refused));
        requests.record("member_list", ms, Some(Reason::Learner));
        let mut out = Batch::default();
        requests.export(&DURATIONS, &FAILURES, &SUCCESSES, &mut out);
        assert_eq!(out.value(&DURATIONS, ["status"]), Some(3.0));
        assert_eq!(out.value(&DURATIONS, ["member_list"]), Some(0.0));
        assert_eq!(out.value(&FAILURES, ["status", "timeout"]), Some(1.0));
        assert_eq!(out.value(&FAILURES, ["status", "refused"]), Some(1.0));
        assert_eq!(out.value(&FAILURES, ["member_list", "learner"]), Some(1.0));
        assert_eq!(out.series(&SUCCESSES), 1);
    }
}
