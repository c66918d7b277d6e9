//! How one figure is judged: by its rows of the table of thresholds, now or over a window.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{Health, Measure, Topic, Verdict, length};
use crate::sample::{Histogram, Series, Value};
use crate::self_metrics::State;
use crate::store::Store;
use crate::thresholds::{self, Severity, Threshold, Unit};

/// A figure: its name for programs, its number in the table's unit, and how a person says it.
pub(super) struct Figure {
    name: &'static str,
    value: f64,
    text: String,
}

impl Figure {
    pub(super) fn new(name: &'static str, value: f64, text: String) -> Self {
        Self { name, value, text }
    }

    /// With the limits of these rows of the table.
    fn measure(&self, rows: &[&Threshold]) -> Measure {
        let unit = rows.first().map_or(Unit::Count, |row| row.unit);
        let of = |severity| {
            let row = rows.iter().find(|row| row.severity == severity);
            row.map(|row| row.range()).unwrap_or_default()
        };
        Measure {
            name: self.name.into(),
            value: self.value * unit.scale(),
            unit: unit.symbol().into(),
            warning: of(Severity::Warning),
            critical: of(Severity::Critical),
        }
    }
}

/// The figures by metric, and the verdicts so far.
pub(super) struct Court<'a> {
    pub(super) store: &'a Store,
    series: BTreeMap<&'static str, Vec<Series>>,
    pub(super) now: f64,
    pub(super) verdicts: Vec<Verdict>,
}

impl<'a> Court<'a> {
    pub(super) fn new(store: &'a Store) -> Self {
        let mut series: BTreeMap<&'static str, Vec<Series>> = BTreeMap::new();
        for one in store.series() {
            series.entry(one.metric).or_default().push(one);
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        Self { store, series, now, verdicts: Vec::new() }
    }

    pub(super) fn all(&self, metric: &str) -> Vec<Series> {
        self.series.get(metric).cloned().unwrap_or_default()
    }

    /// The number of the first series whose labels begin like this.
    pub(super) fn number(&self, metric: &str, labels: &[&str]) -> Option<f64> {
        let all = self.series.get(metric)?;
        let found = all.iter().find(|s| labels.iter().zip(&s.labels).all(|(a, b)| a == b))?;
        Some(found.value.as_number())
    }

    pub(super) fn say(
        &mut self,
        topic: Topic,
        health: Health,
        alert: &'static str,
        what: &str,
        figure: String,
    ) {
        self.verdicts.push(Verdict::new(topic, health, alert, what, figure));
    }

    /// Judges a figure by the alert's rows of the table about `row`.
    pub(super) fn measure(
        &mut self,
        topic: Topic,
        alert: &'static str,
        row: &str,
        what: &str,
        figure: Figure,
    ) {
        self.measure_by(&rows(alert, row), topic, alert, what, figure);
    }

    /// Judges a figure by these rows of the table.
    pub(super) fn measure_by(
        &mut self,
        rows: &[&Threshold],
        topic: Topic,
        alert: &'static str,
        what: &str,
        figure: Figure,
    ) {
        debug_assert!(!rows.is_empty(), "the table has no row of {alert} for {what}");
        self.verdicts.push(Verdict {
            topic,
            health: by_table(rows, figure.value),
            what: what.to_owned(),
            limit: limit(rows),
            alert: alert.into(),
            measure: Some(figure.measure(rows)),
            figure: figure.text,
        });
    }

    /// The last verdict is no worse than this, whatever its figure is, and says why.
    pub(super) fn at_most(&mut self, worst: Health, why: &str) {
        if let Some(last) = self.verdicts.last_mut().filter(|last| last.health > worst) {
            last.health = worst;
            last.figure.push_str("; ");
            last.figure.push_str(why);
        }
    }

    /// Judges how long ago something happened; a healthy verdict when it never did.
    pub(super) fn since(
        &mut self,
        topic: Topic,
        alert: &'static str,
        row: &str,
        what: &str,
        time: Option<f64>,
    ) {
        match time {
            Some(time) => {
                let age = (self.now - time).max(0.0);
                let rows = rows(alert, row);
                debug_assert!(!rows.is_empty(), "the table has no row of {alert} for {what}");
                self.verdicts.push(Verdict {
                    topic,
                    health: by_table(&rows, age),
                    what: what.to_owned(),
                    figure: format!("{} ago", length(age)),
                    limit: limit(&rows),
                    alert: alert.into(),
                    measure: None,
                });
            }
            None => self.say(topic, Health::Ok, alert, what, "none".into()),
        }
    }

    /// What a distribution counted within the last `span`.
    pub(super) fn recent(&self, series: &Series, span: Duration) -> Option<Histogram> {
        let Value::Histogram(now) = &series.value else { return None };
        match self.store.before(series.metric, &series.labels, span) {
            Some((Value::Histogram(then), age)) if age >= span || then.count() < now.count() => {
                Some(now.since(&then))
            }
            _ => Some(now.clone()),
        }
    }

    /// By how much a counter has grown within the last `span`, and that for a person, who is told
    /// when it has not been watched for so long.
    pub(super) fn growth(&self, series: &Series, span: Duration) -> (f64, String) {
        self.growth_from(0.0, series, span)
    }

    /// As [`Self::growth`], for what did not begin with the agent: until it is watched, it has grown from `first`.
    pub(super) fn growth_from(&self, first: f64, series: &Series, span: Duration) -> (f64, String) {
        let (growth, watched) = self.grown(first, series, span);
        if watched < span {
            (growth, format!("{growth}, watched for {}", length(watched.as_secs_f64().ceil())))
        } else {
            (growth, format!("{growth}"))
        }
    }

    /// The same as a number, with how long it has been watched: about `span` where it could be, else less.
    pub(super) fn grown(&self, first: f64, series: &Series, span: Duration) -> (f64, Duration) {
        let now = series.value.as_number();
        let then = self.store.before(series.metric, &series.labels, span);
        let (then, watched) =
            then.map_or((first, Duration::ZERO), |(value, age)| (value.as_number(), age));
        (if then > now { now } else { now - then }, watched)
    }

    /// That the target of this sampler does not answer, and why.
    pub(super) fn silence(&self, sampler: &str) -> String {
        let statuses = self.store.statuses().all();
        match statuses.get(sampler).map(|status| status.why.as_str()) {
            Some(why) if !why.is_empty() => format!("does not answer: {why}"),
            _ => "does not answer".to_owned(),
        }
    }

    pub(super) fn runs(&self, sampler: &str) -> bool {
        let statuses = self.store.statuses().all();
        statuses.get(sampler).is_some_and(|s| s.state == State::Running && s.last_success.is_some())
    }
}

/// The alert's rows about this figure, the worst first.
pub(super) fn rows(alert: &str, figure: &str) -> Vec<&'static Threshold> {
    let mut rows: Vec<_> =
        thresholds::TABLE.iter().filter(|row| row.alert == alert && row.figure == figure).collect();
    rows.sort_by_key(|row| std::cmp::Reverse(row.severity));
    rows
}

pub(super) fn by_table(rows: &[&Threshold], value: f64) -> Health {
    let passed = rows.iter().filter(|row| row.is_bad(value)).map(|row| row.severity).max();
    match passed {
        Some(Severity::Critical) => Health::Critical,
        Some(Severity::Warning) => Health::Warning,
        Some(Severity::Info) | None => Health::Ok,
    }
}

/// The limits for people: `warning above 65 %, critical above 80 %`.
pub(super) fn limit(rows: &[&Threshold]) -> String {
    let mut rows: Vec<_> = rows.iter().filter(|row| row.severity > Severity::Info).collect();
    rows.sort_by_key(|row| row.severity);
    let said: Vec<_> =
        rows.iter().map(|row| format!("{} {}", row.severity.as_str(), row.condition())).collect();
    said.join(", ")
}
