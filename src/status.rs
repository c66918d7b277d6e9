//! How this node is: what the status page, its JSON and the check command show.

use std::borrow::Cow;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::host::Facts;
use crate::sample::Event;
use crate::self_metrics::State;
use crate::store::Store;
use crate::verdict::{self, Health, Verdict};

/// The answer of `/api/v1/status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The agent's version.
    pub version: String,
    /// Whether the first round of samples is done.
    pub ready: bool,
    /// What detection found.
    pub node: Facts,
    /// The worst of the verdicts.
    pub health: Health,
    /// What was judged: causes first, and the worst first within a topic.
    pub verdicts: Vec<Verdict>,
    /// What each sampler does.
    pub samplers: Vec<Sampler>,
    /// What happened, the newest last.
    pub events: Vec<Event>,
}

/// What a sampler does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sampler {
    /// Its name.
    pub name: Cow<'static, str>,
    /// Whether it runs here.
    pub state: State,
    /// Whether its last run ended well; nothing before the first has ended.
    pub up: Option<bool>,
    /// Why it does not run, or why it failed; else empty.
    pub why: String,
    /// How often it runs.
    pub interval_seconds: f64,
    /// Runs that ended.
    pub runs: u64,
    /// How long the last run took.
    pub duration_seconds: f64,
    /// How long the run in flight has taken.
    pub inflight_seconds: Option<f64>,
    /// When the last run ended well, in Unix time.
    pub last_success: Option<f64>,
}

impl Status {
    /// What the store knows now.
    pub fn of(store: &Store, node: Facts, ready: bool) -> Self {
        let verdicts = verdict::judge(store);
        let statuses = store.statuses().all();
        let samplers = statuses.into_iter().map(|(name, s)| Sampler {
            name: name.into(),
            state: s.state,
            up: s.up,
            why: s.why,
            interval_seconds: s.interval.as_secs_f64(),
            runs: s.runs,
            duration_seconds: s.duration.as_secs_f64(),
            inflight_seconds: s.inflight.map(|i| i.elapsed().as_secs_f64()),
            last_success: s
                .last_success
                .and_then(|t: SystemTime| t.duration_since(UNIX_EPOCH).ok())
                .map(|t| t.as_secs_f64()),
        });
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ready,
            node,
            health: verdict::worst(&verdicts),
            verdicts,
            samplers: samplers.collect(),
            events: store.events(),
        }
    }
}
