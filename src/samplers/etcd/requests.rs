//! What the agent's own calls to the local member took and came to.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use crate::etcd::client::Timed;
use crate::etcd::{Failure, Reason};
use crate::sample::{Batch, Histogram};

use super::metrics::{REQUEST_DURATION, REQUEST_FAILURES, REQUEST_SUCCESS};

/// With the limits of the alert on slow requests: between two bounds a quantile is a guess.
const BUCKETS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.4, 0.5, 1.0, 2.5, 5.0, 10.0];

/// The calls, by the word in the label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Request {
    Status,
    SerializableRead,
    LinearizableRead,
    MemberList,
}

const WORDS: [&str; 4] = ["status", "serializable_read", "linearizable_read", "member_list"];

/// Since the agent started.
#[derive(Debug)]
pub(super) struct Requests([Record; 4]);

#[derive(Debug, Clone)]
struct Record {
    durations: Histogram,
    failures: BTreeMap<Reason, u64>,
    last_success: Option<SystemTime>,
}

impl Default for Requests {
    fn default() -> Self {
        let record = Record {
            durations: Histogram::new(BUCKETS),
            failures: BTreeMap::new(),
            last_success: None,
        };
        Self(std::array::from_fn(|_| record.clone()))
    }
}

impl Requests {
    /// Counts one call.
    pub(super) fn record<T>(&mut self, request: Request, call: &Timed<T>) {
        let error = call.answer.as_ref().err();
        self.count(request, call.took, error);
    }

    fn count(&mut self, request: Request, took: Duration, error: Option<&Failure>) {
        let record = &mut self.0[request as usize];
        if error.is_none_or(|failure| failure.reason == Reason::Timeout) {
            record.durations.observe(took.as_secs_f64());
        }
        match error {
            None => record.last_success = Some(SystemTime::now()),
            Some(failure) => *record.failures.entry(failure.reason).or_default() += 1,
        }
    }

    pub(super) fn export(&self, out: &mut Batch) {
        for (word, record) in WORDS.into_iter().zip(&self.0) {
            out.histogram(&REQUEST_DURATION, [word], &record.durations);
            for (reason, count) in &record.failures {
                out.push(&REQUEST_FAILURES, [word, reason.as_str()], *count);
            }
            if let Some(when) = record.last_success {
                out.push(&REQUEST_SUCCESS, [word], when);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_and_time_outs_are_timed_and_refusals_are_only_counted() {
        let mut requests = Requests::default();
        let failed = |reason| Failure { reason, text: String::new(), answered: false };
        let (ms, five) = (Duration::from_millis(1), Duration::from_secs(5));
        requests.count(Request::Status, ms, None);
        requests.count(Request::Status, five, Some(&failed(Reason::Timeout)));
        requests.count(Request::Status, ms, Some(&failed(Reason::Refused)));
        requests.count(Request::MemberList, ms, Some(&failed(Reason::Learner)));
        let mut out = Batch::default();
        requests.export(&mut out);
        assert_eq!(out.value(&REQUEST_DURATION, ["status"]), Some(2.0));
        assert_eq!(out.value(&REQUEST_FAILURES, ["status", "timeout"]), Some(1.0));
        assert_eq!(out.value(&REQUEST_FAILURES, ["status", "refused"]), Some(1.0));
        assert_eq!(out.value(&REQUEST_FAILURES, ["member_list", "learner"]), Some(1.0));
        assert_eq!(out.series(&REQUEST_SUCCESS), 1);
        assert_eq!(out.series(&REQUEST_DURATION), 4);
    }

    #[test]
    fn the_limits_of_the_alert_on_slow_requests_are_bounds() {
        assert!(BUCKETS.is_sorted());
        for limit in [0.1, 0.4] {
            assert!(BUCKETS.contains(&limit), "{limit}");
        }
    }
}
