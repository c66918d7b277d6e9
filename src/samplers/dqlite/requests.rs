//! What the agent's own calls to the local member took and came to.

use std::collections::BTreeMap;

use crate::dqlite::client::{Conversation, Step};
use crate::etcd::Reason;
use crate::sample::{Batch, Histogram};

use super::metrics::{REQUEST_DURATION, REQUEST_FAILURES};

const BUCKETS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];

/// Since the agent started.
#[derive(Debug)]
pub(super) struct Requests {
    durations: BTreeMap<&'static str, Histogram>,
    failures: BTreeMap<(&'static str, Reason), u64>,
}

impl Default for Requests {
    fn default() -> Self {
        let words = ["cluster", "connect", "describe", "leader"];
        let durations = words.map(|word| (word, Histogram::new(BUCKETS))).into();
        Self { durations, failures: BTreeMap::new() }
    }
}

impl Requests {
    /// Counts one conversation.
    pub(super) fn record(&mut self, talked: &Conversation) {
        self.count("connect", &talked.connected);
        for (request, step) in &talked.asked {
            self.count(request.as_str(), step);
        }
    }

    fn count<T>(&mut self, request: &'static str, step: &Step<T>) {
        let reason = step.result.as_ref().err().map(|failure| failure.reason);
        // How fast a port is refused says nothing.
        if matches!(reason, None | Some(Reason::Timeout | Reason::TlsTimeout))
            && let Some(durations) = self.durations.get_mut(request)
        {
            durations.observe(step.took.as_secs_f64());
        }
        if let Some(reason) = reason {
            *self.failures.entry((request, reason)).or_default() += 1;
        }
    }

    pub(super) fn export(&self, out: &mut Batch) {
        for (request, durations) in &self.durations {
            out.histogram(&REQUEST_DURATION, [request], durations);
        }
        for ((request, reason), count) in &self.failures {
            out.push(&REQUEST_FAILURES, [request, reason.as_str()], *count);
        }
    }
}
