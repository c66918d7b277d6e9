//! How this node is: what the status page, its JSON and the check command show.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::host::Facts;
use crate::self_metrics::State;
use crate::store::Store;
use crate::timeline::Event;
use crate::verdict::{self, Health, Topic, Verdict};

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
    /// What happened, the newest last, as in `/api/v1/timeline?order=oldest`: one answer is enough for a check.
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
        let verdicts = verdicts(store, &node, ready);
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

/// What is judged here: what the store knows, and that there is nothing of what this agent is for, or that nobody can look.
pub fn verdicts(store: &Store, node: &Facts, ready: bool) -> Vec<Verdict> {
    let mut verdicts = verdict::judge(store);
    let more = match &node.unseen {
        Some(why) => Some(nobody_can_look(why)),
        None if ready => nothing_found(store, node, &verdicts),
        None => None,
    };
    if let Some(more) = more {
        let order = |verdict: &Verdict| (verdict.topic, Reverse(verdict.health));
        let at = verdicts.partition_point(|verdict| order(verdict) <= order(&more));
        verdicts.insert(at, more);
    }
    verdicts
}

/// Looking for files of a few kilobytes takes milliseconds, unless their disk does not answer.
fn nobody_can_look(why: &str) -> Verdict {
    let what = "looking for the node's files";
    Verdict::new(Topic::Disk, Health::Critical, "ControlPlaneDiskSyncStuck", what, why)
}

/// A node without any control plane and datastore is not well but unknown: the paths may be others than expected, or
/// closed to this user. Who switched the sampler off has said that there is none.
fn nothing_found(store: &Store, node: &Facts, verdicts: &[Verdict]) -> Option<Verdict> {
    let looks = store.statuses().all().get("etcd").is_some_and(|s| s.state == State::NotApplicable);
    if !looks
        || !node.installations.is_empty()
        || verdicts.iter().any(|verdict| verdict.topic == Topic::Datastore)
    {
        return None;
    }
    let hidden = node.notes.iter().any(|note| note.contains("permission denied"));
    let seen = if hidden { ", and not every path may be read by this user" } else { "" };
    let figure = format!(
        "none was found{seen}; set host.distribution (k3s, kubeadm, ...), or etcd.endpoints for an etcd alone"
    );
    let what = "control plane or datastore of this node";
    Some(Verdict::new(Topic::Datastore, Health::Unknown, "", what, figure))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{Distribution, Installation};

    fn judged(state: State, node: &Facts, ready: bool) -> Vec<(Health, String)> {
        let store = Store::default();
        store.statuses().rests("etcd", state, "because");
        let all = verdicts(&store, node, ready);
        all.into_iter().map(|verdict| (verdict.health, verdict.figure)).collect()
    }

    #[test]
    fn a_node_on_which_nothing_was_found_is_unknown_and_told_what_to_configure() {
        let mut nothing = Facts::default();
        let said = judged(State::NotApplicable, &nothing, true);
        assert_eq!((said.len(), said[0].0), (1, Health::Unknown));
        for key in ["host.distribution", "etcd.endpoints"] {
            assert!(said[0].1.contains(key), "{said:?}");
        }
        assert!(!said[0].1.contains("may be read"), "{said:?}");
        nothing.notes.push("/a could not be read: permission denied; ...".into());
        assert!(judged(State::NotApplicable, &nothing, true)[0].1.contains("not every path may"));
        assert_eq!(judged(State::NotApplicable, &nothing, false), [], "before the first look");
        assert_eq!(judged(State::Off, &nothing, true), [], "somebody said so");
        let installations = vec![Installation::new(Distribution::K3s)];
        let node = Facts { installations, ..Facts::default() };
        assert_eq!(judged(State::NotApplicable, &node, true), []);
    }

    #[test]
    fn a_node_that_nobody_can_look_at_is_critical_and_not_one_without_a_control_plane() {
        let node = Facts::unseen("no answer within 3s");
        for ready in [false, true] {
            let said = judged(State::NotApplicable, &node, ready);
            assert_eq!(said, [(Health::Critical, "no answer within 3s".to_owned())]);
        }
        assert_eq!(node.to_string(), "Nothing is known of this node: no answer within 3s");
    }
}
