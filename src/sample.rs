//! What one run of a sampler yields: a [`Batch`] of series and events, or a [`SampleError`].
//!
//! A batch is replaced whole by the next run's, so a vanished mount or member disappears by itself
//! and a scrape never sees half an update. Label values are capped here, once, for every sampler.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::metric::{Desc, Metric};
use crate::timeline::{self, Event};

/// No label value is longer than this many bytes.
pub const LABEL_BYTES: usize = 200;
/// No batch holds more series than this.
pub const BATCH_SERIES: usize = 5_000;
/// No batch holds more events than this.
pub const BATCH_EVENTS: usize = 64;

/// One figure with its labels.
#[derive(Debug, Clone)]
pub struct Series {
    /// The name of the metric on the wire.
    pub metric: &'static str,
    /// The values of its labels, in the metric's order.
    pub labels: Vec<String>,
    /// The figure.
    pub value: Value,
}

/// What a series holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Value {
    /// A plain number.
    Number(f64),
    /// A distribution.
    Histogram(Histogram),
    /// The age, in seconds, of something still in flight; computed when it is rendered.
    #[serde(skip)]
    Age(Age),
}

impl Value {
    /// The number now: a distribution's count, an age's seconds.
    pub fn as_number(&self) -> f64 {
        match self {
            Self::Number(number) => *number,
            Self::Histogram(histogram) => histogram.count() as f64,
            Self::Age(age) => age.elapsed().as_secs_f64(),
        }
    }
}

/// When something still in flight started; shared between who starts it and who renders it.
#[derive(Debug, Clone, Default)]
pub struct Age(Arc<AtomicU64>);

impl Age {
    /// Marks the start.
    pub fn start(&self) {
        self.0.store(Self::now(), Ordering::Relaxed);
    }

    /// Marks the end: the age is 0 until the next start.
    pub fn stop(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// The time since the start; zero when nothing is in flight.
    pub fn elapsed(&self) -> Duration {
        match self.0.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            started => Duration::from_micros(Self::now().saturating_sub(started)),
        }
    }

    /// Microseconds since the first call in this process, at least 1.
    fn now() -> u64 {
        static FIRST: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
        let first = FIRST.get_or_init(Instant::now);
        u64::try_from(first.elapsed().as_micros()).unwrap_or(u64::MAX).saturating_add(1)
    }
}

/// Numbers that a series can hold. Integers beyond 2^53 lose their last digits, as they do in
/// Prometheus itself.
pub trait Number {
    /// The number as Prometheus stores it.
    fn number(self) -> f64;
}

macro_rules! numbers {
    ($($from:ty),*) => {$(
        impl Number for $from {
            fn number(self) -> f64 {
                self as f64
            }
        }
    )*};
}
numbers!(f64, u64, i64, usize);

impl Number for u32 {
    fn number(self) -> f64 {
        f64::from(self)
    }
}

impl Number for i32 {
    fn number(self) -> f64 {
        f64::from(self)
    }
}

impl Number for bool {
    fn number(self) -> f64 {
        f64::from(u8::from(self))
    }
}

/// Seconds.
impl Number for Duration {
    fn number(self) -> f64 {
        self.as_secs_f64()
    }
}

/// Unix seconds.
impl Number for SystemTime {
    fn number(self) -> f64 {
        self.duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
    }
}

/// A cumulative distribution, as a classic histogram with fixed bounds and as a native one. It lives
/// in its sampler, and a copy goes into each batch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Histogram {
    bounds: Vec<f64>,
    /// One count per bound, and one for what lies above the last.
    counts: Vec<u64>,
    sum: f64,
    native: Native,
}

impl Histogram {
    /// An empty distribution with these upper bounds, ascending.
    pub fn new(bounds: &[f64]) -> Self {
        let counts = vec![0; bounds.len() + 1];
        Self { bounds: bounds.to_vec(), counts, sum: 0.0, native: Native::default() }
    }

    /// Counts one value.
    pub fn observe(&mut self, value: f64) {
        self.observe_cell(value, 1);
        self.add_sum(value);
    }

    /// Counts values that were sorted elsewhere, by [`Self::cells`]: so many that lie in the cell that ends at this bound.
    pub fn observe_cell(&mut self, bound: f64, count: u64) {
        if count > 0 {
            let bucket = self.bounds.partition_point(|known| *known < bound);
            self.counts[bucket] += count;
            self.native.add(bound, count);
        }
    }

    /// Adds the sum of values that [`Self::observe_cell`] counted.
    pub fn add_sum(&mut self, sum: f64) {
        self.sum += sum;
    }

    /// All bounds of both kinds of bucket between two powers of two, ascending; the last is infinite. What is sorted by these
    /// lies in one bucket of each kind.
    pub fn cells(&self, powers: std::ops::Range<i32>) -> Vec<f64> {
        let native = (powers.start * 8..=powers.end * 8).map(Native::bound);
        let mut all: Vec<f64> = self.bounds.iter().copied().chain(native).collect();
        all.sort_by(f64::total_cmp);
        all.dedup();
        all.push(f64::INFINITY);
        all
    }

    /// How many values were counted.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The sum of the values.
    pub fn sum(&self) -> f64 {
        self.sum
    }

    /// The same values in the buckets of a native histogram.
    pub fn native(&self) -> &Native {
        &self.native
    }

    /// Adds what another distribution with the same bounds counted; classic buckets only.
    pub fn add(&mut self, other: &Self) {
        debug_assert_eq!(self.bounds, other.bounds);
        self.counts.iter_mut().zip(&other.counts).for_each(|(count, more)| *count += more);
        self.sum += other.sum;
    }

    /// A copy without the native buckets, for whoever keeps many.
    #[must_use]
    pub fn classic(&self) -> Self {
        let (bounds, counts) = (self.bounds.clone(), self.counts.clone());
        Self { bounds, counts, sum: self.sum, native: Native::default() }
    }

    /// What was counted since `earlier`, a copy of this distribution; all of it when that is none. Classic buckets only.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let is_copy = self.bounds == earlier.bounds
            && self.counts.iter().zip(&earlier.counts).all(|(now, then)| now >= then);
        if !is_copy {
            return self.classic();
        }
        let counts =
            self.counts.iter().zip(&earlier.counts).map(|(now, then)| now - then).collect();
        let (bounds, sum) = (self.bounds.clone(), self.sum - earlier.sum);
        Self { bounds, counts, sum, native: Native::default() }
    }

    /// The value below which this share of the counted ones lies, as `histogram_quantile` estimates it: evenly
    /// spread within a bucket, and the last finite bound for what lies above. None when nothing was counted.
    pub fn quantile(&self, share: f64) -> Option<f64> {
        let total = self.count();
        if total == 0 {
            return None;
        }
        let rank = share * total as f64;
        let (mut below, mut lower) = (0.0, 0.0);
        for (upper, count) in self.buckets() {
            let count = count as f64;
            if below + count >= rank && count > 0.0 {
                let part = ((rank - below) / count).clamp(0.0, 1.0);
                return Some(if upper.is_finite() {
                    lower + (upper - lower) * part
                } else {
                    lower
                });
            }
            (below, lower) = (below + count, if upper.is_finite() { upper } else { lower });
        }
        Some(lower)
    }

    /// Upper bound and own count of each bucket; the last bound is infinite.
    pub fn buckets(&self) -> impl Iterator<Item = (f64, u64)> {
        let bounds = self.bounds.iter().copied().chain([f64::INFINITY]);
        bounds.zip(self.counts.iter().copied())
    }
}

/// The buckets of a native histogram, for durations in seconds.
///
/// The resolution is fixed: each bucket ends 9 % above the one before. From a microsecond to 68 minutes these are
/// 256 buckets, so it can never hold more than that, whatever is observed; a disk's syncs fill about forty. A value
/// below counts as zero, one above as 68 minutes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Native {
    zeros: u64,
    /// Index and own count of each bucket that is not empty, by index.
    buckets: Vec<(i32, u64)>,
}

impl Native {
    /// Prometheus' number for eight buckets in each power of two.
    pub const SCHEMA: i32 = 3;
    /// 2^-20: what is not above counts as zero.
    pub const ZERO_THRESHOLD: f64 = 1.0 / 1_048_576.0;
    /// The bucket that ends at 2^12.
    const LAST: i32 = 12 * 8;
    /// Upper bounds of the eight buckets between 1/2 and 1, without the 1.
    const FRACTIONS: [f64; 8] = [
        0.5,
        0.545_253_866_332_628_8,
        0.594_603_557_501_360_5,
        0.648_419_777_325_504_8,
        std::f64::consts::FRAC_1_SQRT_2,
        0.771_105_412_703_970_4,
        0.840_896_415_253_714_5,
        0.917_004_043_204_671_2,
    ];

    fn add(&mut self, value: f64, count: u64) {
        if value.is_nan() || value <= Self::ZERO_THRESHOLD {
            self.zeros += count;
            return;
        }
        let index = Self::index(value);
        match self.buckets.binary_search_by_key(&index, |(index, _)| *index) {
            Ok(at) => self.buckets[at].1 += count,
            Err(at) => self.buckets.insert(at, (index, count)),
        }
    }

    /// Where the bucket with this number ends.
    fn bound(index: i32) -> f64 {
        // 2^(8 n) is the first of the fractions, a half, times 2^(n + 1).
        let fraction = Self::FRACTIONS[usize::try_from(index.rem_euclid(8)).unwrap_or_default()];
        fraction * f64::from(index.div_euclid(8) + 1).exp2()
    }

    /// The bucket with the number `i` holds what is above 2^((i-1)/8) and not above 2^(i/8).
    fn index(value: f64) -> i32 {
        if value >= 4096.0 {
            return Self::LAST;
        }
        // The value as a fraction of at least 1/2 times a power of two; it is normal and finite here.
        let bits = value.to_bits();
        let exponent = i32::try_from((bits >> 52) & 0x7ff).unwrap_or_default() - 1022;
        let fraction = f64::from_bits((bits & !(0x7ff << 52)) | (1022 << 52));
        let part = Self::FRACTIONS.partition_point(|bound| *bound < fraction);
        (exponent - 1) * 8 + i32::try_from(part).unwrap_or_default()
    }

    /// What counted as zero.
    pub fn zeros(&self) -> u64 {
        self.zeros
    }

    /// The buckets as Prometheus wants them: runs of neighbours, each as its distance from the end of the run before
    /// and its length, and for each bucket how much more it holds than the one before.
    pub fn spans_and_deltas(&self) -> (Vec<(i32, u32)>, Vec<i64>) {
        let (mut spans, mut deltas) = (Vec::<(i32, u32)>::new(), Vec::new());
        let (mut next, mut before) = (0, 0);
        for (index, count) in &self.buckets {
            match spans.last_mut() {
                Some((_, length)) if *index == next => *length += 1,
                _ => spans.push((index - next, 1)),
            }
            next = index + 1;
            let count = i64::try_from(*count).unwrap_or(i64::MAX);
            deltas.push(count - before);
            before = count;
        }
        (spans, deltas)
    }
}

/// What one run yields.
#[derive(Debug, Default)]
pub struct Batch {
    series: Vec<Series>,
    seen: HashSet<(&'static str, Vec<String>)>,
    failures: Vec<SampleError>,
    remarks: Vec<String>,
    events: Vec<Event>,
    dropped: u64,
}

impl Batch {
    /// Adds one figure. A label set that is already there is refused and counted.
    pub fn push<const N: usize>(
        &mut self,
        metric: &Metric<N>,
        labels: [&str; N],
        value: impl Number,
    ) {
        self.add(metric.name(), labels.map(clean).to_vec(), Value::Number(value.number()));
    }

    /// Adds one info series.
    pub fn info<const N: usize>(&mut self, metric: &Metric<N>, labels: [&str; N]) {
        self.push(metric, labels, 1.0);
    }

    /// Adds a distribution.
    pub fn histogram<const N: usize>(
        &mut self,
        metric: &Metric<N>,
        labels: [&str; N],
        value: &Histogram,
    ) {
        self.add(metric.name(), labels.map(clean).to_vec(), Value::Histogram(value.clone()));
    }

    /// Adds the age of something in flight.
    pub fn age<const N: usize>(&mut self, metric: &Metric<N>, labels: [&str; N], value: &Age) {
        self.add(metric.name(), labels.map(clean).to_vec(), Value::Age(value.clone()));
    }

    fn add(&mut self, metric: &'static str, labels: Vec<String>, value: Value) {
        if self.series.len() >= BATCH_SERIES || !self.seen.insert((metric, labels.clone())) {
            self.dropped += 1;
            return;
        }
        self.series.push(Series { metric, labels, value });
    }

    /// Records that a part of the run failed; the rest goes on.
    pub fn fail(&mut self, error: SampleError) {
        self.failures.push(error);
    }

    /// Says for a person what a verdict rests on, such as why a target does not answer. Not kept across a child's pipe.
    pub fn remark(&mut self, text: impl Into<String>) {
        self.remarks.push(text.into());
    }

    /// The remarks.
    pub fn remarks(&self) -> &[String] {
        &self.remarks
    }

    /// Records that something happened: when, which kind of thing, and a line for a person. It may be long ago, and told
    /// in each run. Of too many the noisiest kind loses its oldest; see [`timeline`].
    pub fn event(&mut self, time: SystemTime, kind: &str, text: impl Into<String>) {
        // The store knows which sampler this is.
        let (source, kind) = (String::new(), kind.to_owned());
        let text = timeline::line(&text.into());
        self.events.push(Event { time: time.number(), source, kind, text });
        self.dropped += timeline::thin(&mut self.events, BATCH_EVENTS) as u64;
    }

    /// Counts `n` things that a sampler's own cap kept out of the batch.
    pub fn dropped(&mut self, n: u64) {
        self.dropped += n;
    }

    /// The series.
    pub fn all(&self) -> &[Series] {
        &self.series
    }

    /// Takes the events out.
    pub fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// How many series, events and other things a cap kept out.
    pub fn dropped_count(&self) -> u64 {
        self.dropped
    }

    /// The failed parts.
    pub fn failures(&self) -> &[SampleError] {
        &self.failures
    }

    /// The number under these labels; for tests and for the status page.
    pub fn value<const N: usize>(&self, metric: &Metric<N>, labels: [&str; N]) -> Option<f64> {
        self.find(metric, labels).map(|series| series.value.as_number())
    }

    fn find<const N: usize>(&self, metric: &Metric<N>, labels: [&str; N]) -> Option<&Series> {
        self.series.iter().find(|s| s.metric == metric.name() && s.labels == labels)
    }

    /// How many series a metric has.
    pub fn series<const N: usize>(&self, metric: &Metric<N>) -> usize {
        self.series.iter().filter(|s| s.metric == metric.name()).count()
    }

    /// The reasons of the failed parts, in order.
    pub fn reasons(&self) -> Vec<&'static str> {
        self.failures.iter().map(SampleError::reason).collect()
    }

    /// What crosses the pipe from a child.
    pub fn into_wire(self) -> WireBatch {
        WireBatch {
            series: self
                .series
                .into_iter()
                .map(|s| (s.metric.to_owned(), s.labels, s.value))
                .collect(),
            failures: self.failures.iter().map(SampleError::to_wire).collect(),
            events: self.events,
            dropped: self.dropped,
        }
    }

    /// A child's batch. Series of metrics that `catalog` does not list, or with the wrong number
    /// of labels, are dropped and counted.
    pub fn from_wire(wire: WireBatch, catalog: &[Desc]) -> Self {
        let mut batch = Self { dropped: wire.dropped, ..Self::default() };
        for (name, labels, value) in wire.series {
            match catalog.iter().find(|d| d.name == name && d.labels.len() == labels.len()) {
                Some(desc) => {
                    batch.add(desc.name, labels.iter().map(|l| clean(l)).collect(), value);
                }
                None => batch.dropped += 1,
            }
        }
        batch.failures = wire.failures.into_iter().map(SampleError::Wire).collect();
        batch.events = wire.events;
        batch.events.truncate(BATCH_EVENTS);
        batch
    }
}

/// A batch as JSON.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct WireBatch {
    series: Vec<(String, Vec<String>, Value)>,
    failures: Vec<WireError>,
    events: Vec<Event>,
    dropped: u64,
}

/// A label value that is safe to print: no control characters, at most
/// [`LABEL_BYTES`] bytes, cut at a character boundary.
fn clean(text: &str) -> String {
    let mut end = text.len().min(LABEL_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// Why a run, or a part of it, failed.
#[derive(Debug, thiserror::Error)]
pub enum SampleError {
    /// A file, a directory or a system call on a path.
    #[error("reading {}: {source}", path.display())]
    Read {
        /// What was read.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The content of a file is not what it should be.
    #[error("parsing {}: {what}", path.display())]
    Parse {
        /// What was read.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A call to another process.
    #[error("calling {peer}: {what}")]
    Call {
        /// Who was called.
        peer: String,
        /// What went wrong.
        what: String,
    },
    /// Something that the agent may not do; the text names the fix.
    #[error("{0}")]
    Permission(String),
    /// What detection noted; the text names the path and the reason.
    #[error("{0}")]
    Detection(String),
    /// No answer in time.
    #[error("{what}: no answer within {after:?}")]
    Timeout {
        /// What was asked.
        what: String,
        /// How long it was waited for.
        after: Duration,
    },
    /// A child process of the agent failed.
    #[error("child process: {0}")]
    Child(String),
    /// A failure that a child reported.
    #[error("{}", .0.text)]
    Wire(WireError),
    /// The target could not be looked at, through a fault on this side. The batch takes the place of the one before
    /// all the same, so that no verdict outlives what it was about.
    #[error("{0}")]
    Blind(Box<SampleError>),
}

/// A failure as JSON.
#[derive(Debug, Serialize, Deserialize)]
pub struct WireError {
    reason: String,
    text: String,
}

impl SampleError {
    /// A failure to read `path`.
    pub fn read(path: impl AsRef<Path>, source: impl Into<io::Error>) -> Self {
        Self::Read { path: path.as_ref().to_owned(), source: source.into() }
    }

    /// Content of `path` that is not what it should be.
    pub fn parse(path: impl AsRef<Path>, what: impl ToString) -> Self {
        Self::Parse { path: path.as_ref().to_owned(), what: what.to_string() }
    }

    /// A failed call to `peer`.
    pub fn call(peer: impl Into<String>, what: impl ToString) -> Self {
        Self::Call { peer: peer.into(), what: what.to_string() }
    }

    /// The only part of an error that becomes a label; one of [`REASONS`].
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Read { source, .. } => match source.kind() {
                io::ErrorKind::NotFound => "not_found",
                io::ErrorKind::PermissionDenied => "permission",
                io::ErrorKind::TimedOut => "timeout",
                _ => "read",
            },
            Self::Parse { .. } => "parse",
            Self::Call { .. } => "call",
            Self::Permission(_) => "permission",
            Self::Detection(_) => "read",
            Self::Timeout { .. } => "timeout",
            Self::Child(_) => "child",
            Self::Wire(wire) => {
                REASONS.iter().find(|r| **r == wire.reason).copied().unwrap_or("child")
            }
            Self::Blind(why) => why.reason(),
        }
    }

    /// What crosses the pipe from a child.
    pub fn to_wire(&self) -> WireError {
        WireError { reason: self.reason().to_owned(), text: self.to_string() }
    }
}

/// Every value of the label `reason` of `sampler_failures_total`. The last two are the
/// scheduler's own.
pub const REASONS: &[&str] =
    &["read", "not_found", "permission", "parse", "call", "timeout", "child", "deadline", "panic"];

#[cfg(test)]
mod tests {
    use super::*;

    static SIZE: Metric<1> = Metric::gauge("controlplane_x_size_bytes", "h", ["path"]);

    #[test]
    fn a_label_set_that_is_already_there_is_refused_and_counted() {
        let mut batch = Batch::default();
        batch.push(&SIZE, ["/"], 1u64);
        batch.push(&SIZE, ["/"], 2u64);
        assert_eq!(batch.value(&SIZE, ["/"]), Some(1.0));
        assert_eq!((batch.series(&SIZE), batch.dropped_count()), (1, 1));
    }

    #[test]
    fn a_label_is_cut_at_a_character_boundary_and_holds_no_control_characters() {
        let mut batch = Batch::default();
        let long = "é".repeat(LABEL_BYTES);
        batch.push(&SIZE, [&long], 1u64);
        batch.push(&SIZE, ["a\nb\0c"], 1u64);
        assert!(batch.all()[0].labels[0].len() <= LABEL_BYTES);
        assert_eq!(batch.all()[1].labels[0], "a\u{fffd}b\u{fffd}c");
    }

    #[test]
    fn a_batch_stops_growing_at_its_cap() {
        let mut batch = Batch::default();
        for i in 0..BATCH_SERIES + 7 {
            batch.push(&SIZE, [&i.to_string()], i);
        }
        assert_eq!((batch.series(&SIZE), batch.dropped_count()), (BATCH_SERIES, 7));
    }

    #[test]
    fn a_value_on_a_bound_counts_in_that_bucket() {
        let mut histogram = Histogram::new(&[0.1, 1.0]);
        for value in [0.1, 0.2, 1.0, 5.0] {
            histogram.observe(value);
        }
        let counts: Vec<u64> = histogram.buckets().map(|(_, n)| n).collect();
        assert_eq!((counts, histogram.count()), (vec![1, 2, 1], 4));
    }

    #[test]
    fn native_buckets_end_at_the_powers_of_two_and_include_their_end() {
        for power in -19..=12 {
            let end = f64::from(power).exp2();
            let above = f64::from_bits(end.to_bits() + 1);
            assert_eq!(Native::index(end), power * 8, "2^{power}");
            assert_eq!(Native::index(above), (power * 8 + 1).min(Native::LAST), "above 2^{power}");
        }
        proptest::proptest!(|(value in 1e-6..4096.0_f64)| {
            let end = |index: i32| (f64::from(index) / 8.0).exp2();
            let index = Native::index(value);
            // The library's power may be off in its last digit.
            proptest::prop_assert!(value <= end(index) * (1.0 + 1e-15), "{value} in {index}");
            proptest::prop_assert!(value > end(index - 1) * (1.0 - 1e-15), "{value} in {index}");
        });
    }

    #[test]
    fn whatever_is_observed_a_native_histogram_holds_every_value_in_256_buckets() {
        let strange = [0.0, -1.0, f64::NAN, f64::INFINITY, f64::MAX, f64::MIN_POSITIVE, 1e-300];
        let mut histogram = Histogram::new(&[1.0]);
        for value in strange {
            histogram.observe(value);
        }
        for step in 0..10_000 {
            histogram.observe((f64::from(step) / 100.0 - 30.0).exp2());
        }
        let native = histogram.native();
        assert!(native.buckets.len() <= 256, "{}", native.buckets.len());
        let held = native.zeros + native.buckets.iter().map(|(_, n)| n).sum::<u64>();
        assert_eq!(held, histogram.count());
        assert_eq!(histogram.classic().native(), &Native::default());
    }

    #[test]
    fn neighbouring_buckets_share_a_span_and_counts_are_differences() {
        let mut histogram = Histogram::new(&[1.0]);
        // Buckets -16, -15 (twice) and 8; one zero.
        for value in [0.25, 0.26, 0.27, 2.0, 0.0] {
            histogram.observe(value);
        }
        let (spans, deltas) = histogram.native().spans_and_deltas();
        assert_eq!(spans, [(-16, 2), (22, 1)]);
        assert_eq!((deltas, histogram.native().zeros()), (vec![1, 1, -1], 1));
    }

    #[test]
    fn a_batch_survives_the_pipe_and_unknown_metrics_do_not() {
        static OTHER: Metric<0> = Metric::gauge("controlplane_x_other", "h", []);
        let mut batch = Batch::default();
        batch.push(&SIZE, ["/"], 7u64);
        batch.push(&OTHER, [], 7u64);
        batch.fail(SampleError::read("/x", io::ErrorKind::NotFound));
        batch.event(UNIX_EPOCH, "test", "happened");
        let json = serde_json::to_string(&batch.into_wire()).unwrap();
        let mut back = Batch::from_wire(serde_json::from_str(&json).unwrap(), &[SIZE.desc()]);
        assert_eq!(back.value(&SIZE, ["/"]), Some(7.0));
        assert_eq!((back.all().len(), back.dropped_count()), (1, 1));
        assert_eq!(back.reasons(), ["not_found"]);
        assert_eq!(back.take_events().len(), 1);
    }
}
