//! What the agent says about its samplers: runs, failures by reason, durations, ages in flight.
//!
//! All of it lives in memory and is written by the scheduler. Ages are computed when it is rendered.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};

use crate::metric::{Desc, Metric};
use crate::sample::{Batch, SampleError};

/// The metrics of this page.
pub static METRICS: &[Desc] = &[
    UP.desc(),
    STATE.desc(),
    INTERVAL.desc(),
    RUNS.desc(),
    FAILURES.desc(),
    DURATION.desc(),
    LAST_SUCCESS.desc(),
    INFLIGHT.desc(),
    DROPPED.desc(),
    RELOAD_OK.desc(),
    WEB_RELOAD_OK.desc(),
    WEB_RELOAD_TIME.desc(),
];

static UP: Metric<1> = Metric::gauge(
    "controlplane_sampler_up",
    "Whether the sampler's last run ended well. No series for a sampler that does not run here.",
    ["sampler"],
);
static STATE: Metric<2> = Metric::info(
    "controlplane_sampler_state_info",
    "What the sampler does here: running, off, not_applicable, no_permission.",
    ["sampler", "state"],
);
static INTERVAL: Metric<1> = Metric::gauge(
    "controlplane_sampler_interval_seconds",
    "How often the sampler runs.",
    ["sampler"],
);
static RUNS: Metric<1> =
    Metric::counter("controlplane_sampler_runs_total", "Runs that ended.", ["sampler"]);
static FAILURES: Metric<2> = Metric::counter(
    "controlplane_sampler_failures_total",
    "Runs, and parts of runs, that failed, by reason.",
    ["sampler", "reason"],
);
static DURATION: Metric<1> = Metric::gauge(
    "controlplane_sampler_run_duration_seconds",
    "How long the last run took.",
    ["sampler"],
);
static LAST_SUCCESS: Metric<1> = Metric::gauge(
    "controlplane_sampler_last_success_timestamp_seconds",
    "When the last run ended well, in Unix time.",
    ["sampler"],
);
static INFLIGHT: Metric<1> = Metric::gauge(
    "controlplane_sampler_inflight_seconds",
    "How long the run that has not ended yet has taken so far; 0 between runs.",
    ["sampler"],
);
static DROPPED: Metric<1> = Metric::counter(
    "controlplane_sampler_dropped_total",
    "Series, events and other things that a cap kept out of the sampler's batches.",
    ["sampler"],
);
static RELOAD_OK: Metric<0> = Metric::gauge(
    "controlplane_exporter_config_last_reload_successful",
    "Whether the configuration was valid when it was last read.",
    [],
);

static WEB_RELOAD_OK: Metric<0> = Metric::gauge(
    "controlplane_exporter_web_config_last_reload_successful",
    "Whether the web configuration file and the certificates that it names were valid when they were last read. No series without such a file.",
    [],
);
static WEB_RELOAD_TIME: Metric<0> = Metric::gauge(
    "controlplane_exporter_web_config_last_reload_success_timestamp_seconds",
    "When the web configuration file and what it names were last read and found valid, in Unix time.",
    [],
);

/// A first run that takes longer keeps the agent from being ready no more; its deadline may be far.
const FIRST_RUN: Duration = Duration::from_secs(30);

/// What a sampler does here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It runs on its interval.
    Running,
    /// The configuration switched it off.
    Off,
    /// It has nothing to read on this node.
    NotApplicable,
    /// It may not read its source.
    NoPermission,
}

impl State {
    /// The word for it in labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Off => "off",
            Self::NotApplicable => "not_applicable",
            Self::NoPermission => "no_permission",
        }
    }
}

/// The state of one sampler.
#[derive(Debug, Clone)]
pub struct Status {
    /// What it does here.
    pub state: State,
    /// Why, in a sentence; empty when it runs and nothing is wrong.
    pub why: String,
    /// How often it runs.
    pub interval: Duration,
    /// Whether the last run ended well; `None` before the first has ended.
    pub up: Option<bool>,
    /// Runs that ended.
    pub runs: u64,
    /// When the last run ended well.
    pub last_success: Option<SystemTime>,
    /// How long the last run took.
    pub duration: Duration,
    /// When the run in flight started.
    pub inflight: Option<Instant>,
    /// The run in flight has passed its deadline.
    pub late: bool,
    failures: BTreeMap<&'static str, u64>,
    dropped: u64,
}

impl Default for Status {
    fn default() -> Self {
        Self {
            state: State::NotApplicable,
            why: "not detected yet".into(),
            interval: Duration::ZERO,
            up: None,
            runs: 0,
            last_success: None,
            duration: Duration::ZERO,
            inflight: None,
            late: false,
            failures: BTreeMap::new(),
            dropped: 0,
        }
    }
}

/// The state of every sampler.
#[derive(Debug, Default)]
pub struct Statuses {
    samplers: Mutex<BTreeMap<&'static str, Status>>,
    reload_failed: std::sync::atomic::AtomicBool,
    /// Whether the web configuration was valid when it was last read, and when it last was.
    web: Mutex<Option<(bool, SystemTime)>>,
    /// Every sampler has been told to run or to rest.
    planned: std::sync::atomic::AtomicBool,
}

impl Statuses {
    fn with<R>(&self, sampler: &'static str, change: impl FnOnce(&mut Status) -> R) -> R {
        let mut samplers = self.samplers.lock().unwrap_or_else(PoisonError::into_inner);
        change(samplers.entry(sampler).or_default())
    }

    /// It runs from now on, every `interval`.
    pub fn runs(&self, sampler: &'static str, interval: Duration) {
        self.with(sampler, |s| {
            s.state = State::Running;
            s.why.clear();
            s.interval = interval;
        });
    }

    /// It does not run.
    pub fn rests(&self, sampler: &'static str, state: State, why: &str) {
        self.with(sampler, |s| {
            s.state = state;
            why.clone_into(&mut s.why);
            s.up = None;
            s.inflight = None;
            s.late = false;
        });
    }

    /// Whether it was told to rest.
    pub fn resting(&self, sampler: &'static str) -> bool {
        self.with(sampler, |s| s.rests())
    }

    /// Every sampler has been told to run or to rest: from now on a silent one is a late one.
    pub fn planned(&self) {
        self.planned.store(true, std::sync::atomic::Ordering::Relaxed);
    }

    /// A run starts.
    pub fn begin(&self, sampler: &'static str) {
        self.with(sampler, |s| s.inflight = Some(Instant::now()));
    }

    /// It waits for a run of before; where that one's age is not known any more, it counts from now.
    pub fn waits(&self, sampler: &'static str) {
        self.with(sampler, |s| {
            s.inflight.get_or_insert_with(Instant::now);
        });
    }

    /// No run is under way.
    pub fn idle(&self, sampler: &'static str) {
        self.with(sampler, |s| s.inflight = None);
    }

    /// The run in flight has passed its deadline; returns the sampler's `up` before. Nothing of a run counts
    /// whose sampler was told to rest meanwhile.
    pub fn overdue(&self, sampler: &'static str, what: &str) -> Option<bool> {
        self.with(sampler, |s| {
            if s.rests() {
                return s.up;
            }
            s.late = true;
            what.clone_into(&mut s.why);
            *s.failures.entry("deadline").or_default() += 1;
            s.up.replace(false)
        })
    }

    /// The run has ended; returns the sampler's `up` before. Nothing of a run counts whose sampler was told to
    /// rest meanwhile.
    pub fn end(
        &self,
        sampler: &'static str,
        batch: Option<&Batch>,
        error: Option<&SampleError>,
        panicked: bool,
    ) -> Option<bool> {
        self.with(sampler, |s| {
            let before = s.up;
            if s.rests() {
                return before;
            }
            s.duration = s.inflight.take().map_or(Duration::ZERO, |started| started.elapsed());
            s.runs += 1;
            let late = std::mem::take(&mut s.late);
            let reason = if panicked { Some("panic") } else { error.map(SampleError::reason) };
            // A run that ended badly after its deadline was counted when it passed it.
            if let Some(reason) = reason.filter(|_| !late || panicked) {
                *s.failures.entry(reason).or_default() += 1;
            }
            for part in batch.into_iter().flat_map(Batch::failures) {
                *s.failures.entry(part.reason()).or_default() += 1;
            }
            s.dropped += batch.map_or(0, Batch::dropped_count);
            s.up = Some(reason.is_none());
            if reason.is_none() {
                s.last_success = Some(SystemTime::now());
                let failed =
                    batch.into_iter().flat_map(Batch::failures).map(ToString::to_string).take(3);
                let remarks = batch.into_iter().flat_map(Batch::remarks).cloned();
                s.why = remarks.chain(failed).collect::<Vec<_>>().join("; ");
                s.state = State::Running;
            } else if let Some(error) = error {
                s.why = error.to_string();
                s.state = match error.reason() {
                    "permission" => State::NoPermission,
                    _ => State::Running,
                };
            } else {
                s.why = "panicked; see the log".into();
            }
            before
        })
    }

    /// Whether the configuration was valid when it was last read.
    pub fn reloaded(&self, ok: bool) {
        self.reload_failed.store(!ok, std::sync::atomic::Ordering::Relaxed);
    }

    /// The web configuration was read again, or could not be.
    pub fn web_reloaded(&self, ok: bool) {
        let mut web = self.web.lock().unwrap_or_else(PoisonError::into_inner);
        let last = web.map_or_else(SystemTime::now, |(_, last)| last);
        *web = Some((ok, if ok { SystemTime::now() } else { last }));
    }

    /// A copy, by sampler.
    pub fn all(&self) -> BTreeMap<&'static str, Status> {
        self.samplers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether every sampler that runs has ended a first run, or takes too long for it.
    pub fn first_round_done(&self) -> bool {
        let samplers = self.samplers.lock().unwrap_or_else(PoisonError::into_inner);
        self.planned.load(std::sync::atomic::Ordering::Relaxed)
            && samplers.values().all(Status::settled)
    }

    /// The figures of this page.
    pub fn batch(&self) -> Batch {
        let mut out = Batch::default();
        let ok = !self.reload_failed.load(std::sync::atomic::Ordering::Relaxed);
        out.push(&RELOAD_OK, [], ok);
        let web = *self.web.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((ok, last)) = web {
            out.push(&WEB_RELOAD_OK, [], ok);
            out.push(&WEB_RELOAD_TIME, [], last);
        }
        for (sampler, s) in self.all() {
            out.info(&STATE, [sampler, s.state.as_str()]);
            if s.rests() {
                continue;
            }
            if let Some(up) = s.up {
                out.push(&UP, [sampler], up);
            }
            out.push(&INTERVAL, [sampler], s.interval);
            out.push(&RUNS, [sampler], s.runs);
            out.push(&DURATION, [sampler], s.duration);
            out.push(&DROPPED, [sampler], s.dropped);
            out.push(&INFLIGHT, [sampler], s.inflight.map_or(Duration::ZERO, |i| i.elapsed()));
            if let Some(time) = s.last_success {
                out.push(&LAST_SUCCESS, [sampler], time);
            }
            for (reason, n) in &s.failures {
                out.push(&FAILURES, [sampler, reason], *n);
            }
        }
        out
    }
}

impl Status {
    fn settled(&self) -> bool {
        let stuck = self.inflight.is_some_and(|since| since.elapsed() > FIRST_RUN);
        self.runs > 0 || self.late || stuck || self.rests()
    }

    /// Whether nothing of it is to run.
    pub fn rests(&self) -> bool {
        matches!(self.state, State::Off | State::NotApplicable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_first_run_that_hangs_does_not_keep_the_agent_from_being_ready() {
        let running = |ago: u64| Status {
            state: State::Running,
            inflight: Instant::now().checked_sub(Duration::from_secs(ago)),
            ..Status::default()
        };
        assert!(!running(1).settled());
        assert!(running(31).settled());
        assert!(Status { runs: 1, ..running(1) }.settled());
    }
}
