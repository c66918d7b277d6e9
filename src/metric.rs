//! Metrics as data: the name on the wire, the help text, the kind and the labels.
//!
//! A sampler declares `static` [`Metric`]s with the full exposed name, suffix included, so that one
//! search finds the code, the alert, the dashboard and the runbook. The number of labels is part of
//! the type. prometheus-client appends `_total`, `_info` and the unit by itself; [`Desc`] takes them
//! off again before it hands a name over.

use prometheus_client::registry::Unit;

/// What kind of figure a metric is, in the words of OpenMetrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A value that goes up and down.
    Gauge,
    /// A value that only grows while the process lives. The name ends in `_total`.
    Counter,
    /// A distribution.
    Histogram,
    /// Constants as labels, always 1. The name ends in `_info`.
    Info,
}

impl Kind {
    /// The word in METRICS.md.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Gauge => "gauge",
            Self::Counter => "counter",
            Self::Histogram => "histogram",
            Self::Info => "info",
        }
    }
}

/// A metric without its number of labels: what catalogs and encoders work with.
#[derive(Debug, Clone, Copy)]
pub struct Desc {
    /// The full name on the wire.
    pub name: &'static str,
    /// One plain sentence: what it is, in which unit, from which source.
    pub help: &'static str,
    /// What kind of figure it is.
    pub kind: Kind,
    /// The names of its labels, in the order of the values.
    pub labels: &'static [&'static str],
    /// Whether the series stay when the sampler stops answering.
    pub stays: bool,
}

impl Desc {
    /// The name without the suffixes that prometheus-client appends, and the unit it appends.
    pub fn split_name(&self) -> (&'static str, Option<Unit>) {
        let bare = match self.kind {
            Kind::Counter => self.name.strip_suffix("_total"),
            Kind::Info => self.name.strip_suffix("_info"),
            Kind::Gauge | Kind::Histogram => None,
        }
        .unwrap_or(self.name);
        for (suffix, unit) in [("_seconds", Unit::Seconds), ("_bytes", Unit::Bytes)] {
            if let Some(stem) = bare.strip_suffix(suffix) {
                return (stem, Some(unit));
            }
        }
        (bare, None)
    }
}

/// A metric with `N` labels.
#[derive(Debug)]
pub struct Metric<const N: usize> {
    name: &'static str,
    help: &'static str,
    kind: Kind,
    labels: [&'static str; N],
    stays: bool,
}

impl<const N: usize> Metric<N> {
    /// A value that goes up and down. It vanishes when its sampler stops answering, unless the
    /// name ends in `_up` or `_timestamp_seconds`.
    pub const fn gauge(name: &'static str, help: &'static str, labels: [&'static str; N]) -> Self {
        let stays = ends_with(name, "_up") || ends_with(name, "_timestamp_seconds");
        Self { name, help, kind: Kind::Gauge, labels, stays }
    }

    /// A count that only grows; the name ends in `_total`.
    pub const fn counter(
        name: &'static str,
        help: &'static str,
        labels: [&'static str; N],
    ) -> Self {
        assert!(ends_with(name, "_total"), "the name of a counter ends in _total");
        Self { name, help, kind: Kind::Counter, labels, stays: true }
    }

    /// A distribution.
    pub const fn histogram(
        name: &'static str,
        help: &'static str,
        labels: [&'static str; N],
    ) -> Self {
        Self { name, help, kind: Kind::Histogram, labels, stays: true }
    }

    /// Constants as labels; the name ends in `_info`.
    pub const fn info(name: &'static str, help: &'static str, labels: [&'static str; N]) -> Self {
        assert!(ends_with(name, "_info"), "the name of an info metric ends in _info");
        Self { name, help, kind: Kind::Info, labels, stays: false }
    }

    /// The same metric, whose series stay when the sampler stops answering: for what is
    /// remembered on purpose, such as a member list.
    #[must_use]
    pub const fn remembered(mut self) -> Self {
        self.stays = true;
        self
    }

    /// The metric without its number of labels.
    pub const fn desc(&'static self) -> Desc {
        let mut i = 0;
        while i < N {
            assert!(!is_taken(self.labels[i]), "Prometheus or its Operator sets this label");
            i += 1;
        }
        Desc {
            name: self.name,
            help: self.help,
            kind: self.kind,
            labels: &self.labels,
            stays: self.stays,
        }
    }

    /// The full name on the wire.
    pub const fn name(&self) -> &'static str {
        self.name
    }
}

/// Labels that Prometheus and its Operator give to each series of a target. One of ours with the same name is stored as
/// `exported_…`, where no rule looks.
const TAKEN: [&str; 7] =
    ["job", "instance", "namespace", "service", "pod", "container", "endpoint"];

const fn is_taken(label: &str) -> bool {
    let mut i = 0;
    while i < TAKEN.len() {
        if label.len() == TAKEN[i].len() && ends_with(label, TAKEN[i]) {
            return true;
        }
        i += 1;
    }
    false
}

/// `str::ends_with`, which is not `const`.
const fn ends_with(text: &str, suffix: &str) -> bool {
    let (text, suffix) = (text.as_bytes(), suffix.as_bytes());
    if suffix.len() > text.len() {
        return false;
    }
    let mut i = 0;
    while i < suffix.len() {
        if text[text.len() - suffix.len() + i] != suffix[i] {
            return false;
        }
        i += 1;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    static RESTARTS: Metric<1> = Metric::counter("controlplane_x_restarts_total", "h", ["unit"]);
    static FLUSH: Metric<0> = Metric::counter("controlplane_x_flush_seconds_total", "h", []);
    static UP: Metric<0> = Metric::gauge("controlplane_x_up", "h", []);
    static SINCE: Metric<0> = Metric::gauge("controlplane_x_since_timestamp_seconds", "h", []);
    static SIZE: Metric<0> = Metric::gauge("controlplane_x_size_bytes", "h", []);
    static MEMBER: Metric<1> = Metric::info("controlplane_x_member_info", "h", ["id"]);

    #[test]
    fn the_suffixes_that_the_encoder_appends_are_taken_off() {
        assert_eq!(RESTARTS.desc().split_name().0, "controlplane_x_restarts");
        assert_eq!(FLUSH.desc().split_name().0, "controlplane_x_flush");
        assert!(matches!(FLUSH.desc().split_name().1, Some(Unit::Seconds)));
        assert_eq!(MEMBER.desc().split_name().0, "controlplane_x_member");
        assert!(matches!(SIZE.desc().split_name(), ("controlplane_x_size", Some(Unit::Bytes))));
    }

    #[test]
    fn verdicts_timestamps_and_counters_outlive_a_silent_sampler_and_other_gauges_do_not() {
        assert!(UP.desc().stays && SINCE.desc().stays && RESTARTS.desc().stays);
        assert!(!SIZE.desc().stays);
    }
}
