//! The newest batch of every sampler, the timeline, and the only `Collector`.
//!
//! A scrape reads memory only: it renders the batches, or hands out the body that was rendered for
//! the last scrape in the same format, as long as no batch has changed and at most 250 ms long.
//! What a silent sampler leaves behind is decided by the kind of metric; see [`Desc::stays`].

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, MetricEncoder, NativeHistogram, NativeHistogramBuckets, NoLabelSet,
};
use prometheus_client::metrics::MetricType;
use tokio::time::Instant;

use crate::history::History;
use crate::metric::{Desc, Kind};
use crate::sample::{Batch, Native, Series, Value};
use crate::samplers;
use crate::self_metrics::{self, Statuses};
use crate::timeline::{Event, Timeline};

/// How long a rendered body may be handed out although ages in it have grown.
const REUSE: Duration = Duration::from_millis(250);
/// Present-state gauges live at least this long without a run.
const MIN_STALE: Duration = Duration::from_mins(1);

/// See the module's page.
#[derive(Debug, Default)]
pub struct Store {
    slots: RwLock<HashMap<&'static str, Slot>>,
    timeline: Mutex<Timeline>,
    generation: AtomicU64,
    bodies: Mutex<HashMap<&'static str, Body>>,
    history: Mutex<History>,
    statuses: Arc<Statuses>,
}

#[derive(Debug)]
struct Slot {
    batch: Arc<Batch>,
    taken: Instant,
    stale_after: Duration,
}

#[derive(Debug, Clone)]
struct Body {
    generation: u64,
    rendered: Instant,
    bytes: axum::body::Bytes,
}

impl Store {
    /// A store that also exports the samplers' own state.
    pub fn new(statuses: Arc<Statuses>) -> Self {
        Self { statuses, ..Self::default() }
    }

    /// The state of the samplers.
    pub fn statuses(&self) -> &Arc<Statuses> {
        &self.statuses
    }

    /// Keeps the batch of a successful run in place of the one before. Returns its events that are new on the timeline.
    pub fn put(&self, sampler: &'static str, mut batch: Batch, interval: Duration) -> Vec<Event> {
        let mut events = batch.take_events();
        if !events.is_empty() {
            let mut timeline = self.timeline.lock().unwrap_or_else(PoisonError::into_inner);
            events = timeline.add(sampler, events);
        }
        self.history.lock().unwrap_or_else(PoisonError::into_inner).record(&batch, Instant::now());
        let stale_after = (interval * 3).max(MIN_STALE);
        let slot = Slot { batch: Arc::new(batch), taken: Instant::now(), stale_after };
        self.slots.write().unwrap_or_else(PoisonError::into_inner).insert(sampler, slot);
        self.touch();
        events
    }

    /// Forgets a sampler that was switched off.
    pub fn remove(&self, sampler: &str) {
        self.slots.write().unwrap_or_else(PoisonError::into_inner).remove(sampler);
        self.touch();
    }

    /// Says that something has changed, so that no older body is handed out.
    pub fn touch(&self) {
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// The events of the timeline, the newest last.
    pub fn events(&self) -> Vec<Event> {
        self.timeline.lock().unwrap_or_else(PoisonError::into_inner).all().to_vec()
    }

    /// The series that count now: all of fresh batches, and of stale ones those that stay.
    fn current(&self) -> Vec<(Arc<Batch>, bool)> {
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        let mut current: Vec<_> = samplers::ALL
            .iter()
            .filter_map(|(name, _)| slots.get(name))
            .map(|slot| (Arc::clone(&slot.batch), slot.taken.elapsed() <= slot.stale_after))
            .collect();
        current.push((Arc::new(self.statuses.batch()), true));
        current
    }

    /// Every series as a scrape would show it now.
    pub fn series(&self) -> Vec<Series> {
        let stays: HashSet<&str> =
            descs().filter(|desc| desc.stays).map(|desc| desc.name).collect();
        let mut all = Vec::new();
        for (batch, fresh) in self.current() {
            let shown = batch.all().iter().filter(|s| fresh || stays.contains(s.metric));
            all.extend(shown.cloned());
        }
        all
    }

    /// What a growing series was `span` ago; see [`History::before`].
    pub fn before(
        &self,
        metric: &'static str,
        labels: &[String],
        span: Duration,
    ) -> Option<(Value, Duration)> {
        let history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        let (value, age) = history.before(metric, labels, span, Instant::now())?;
        Some((value.clone(), age))
    }

    /// How often a series changed within `span`, and how long it has been watched; see [`History::changes`].
    pub fn changes(
        &self,
        metric: &'static str,
        labels: &[String],
        span: Duration,
    ) -> Option<(f64, Duration)> {
        let history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        history.changes(metric, labels, span, Instant::now())
    }

    /// The most that a series was within `span`; see [`History::largest`].
    pub fn largest(&self, metric: &'static str, labels: &[String], span: Duration) -> Option<f64> {
        let history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        history.largest(metric, labels, span, Instant::now())
    }

    /// The number under these labels as a scrape would show it now.
    #[cfg(test)]
    pub(crate) fn value(&self, metric: &str, labels: &[&str]) -> Option<f64> {
        let all = self.series();
        let series = all.iter().find(|s| s.metric == metric && s.labels == labels)?;
        Some(series.value.as_number())
    }

    /// The body in the format that `render` makes, rendered anew if anything has changed.
    ///
    /// # Errors
    ///
    /// Those of `render`.
    pub fn body<E>(
        &self,
        format: &'static str,
        render: impl FnOnce() -> Result<Vec<u8>, E>,
    ) -> Result<axum::body::Bytes, E> {
        let generation = self.generation.load(Ordering::Acquire);
        let kept = {
            let bodies = self.bodies.lock().unwrap_or_else(PoisonError::into_inner);
            bodies.get(format).cloned()
        };
        if let Some(body) = kept
            && body.generation == generation
            && body.rendered.elapsed() < REUSE
        {
            return Ok(body.bytes);
        }
        let rendered = Instant::now();
        let bytes = axum::body::Bytes::from(render()?);
        let body = Body { generation, rendered, bytes: bytes.clone() };
        self.bodies.lock().unwrap_or_else(PoisonError::into_inner).insert(format, body);
        Ok(bytes)
    }
}

/// Every metric of the agent, in the order of `/metrics`.
pub fn descs() -> impl Iterator<Item = &'static Desc> {
    let own = self_metrics::METRICS.iter();
    own.chain(samplers::ALL.iter().flat_map(|(_, def)| def.metrics))
}

impl Collector for Store {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let current = self.current();
        let mut families: HashMap<&str, Vec<(&Series, bool)>> = HashMap::new();
        for (batch, fresh) in &current {
            for series in batch.all() {
                families.entry(series.metric).or_default().push((series, *fresh));
            }
        }
        for desc in descs() {
            let mut family = families.remove(desc.name).unwrap_or_default();
            family.retain(|(_, fresh)| *fresh || desc.stays);
            if family.is_empty() {
                continue;
            }
            let (name, unit) = desc.split_name();
            let kind = match desc.kind {
                Kind::Gauge => MetricType::Gauge,
                Kind::Counter => MetricType::Counter,
                Kind::Histogram => MetricType::Histogram,
                Kind::Info => MetricType::Info,
            };
            let mut metric = encoder.encode_descriptor(name, desc.help, unit.as_ref(), kind)?;
            for (series, _) in family {
                encode(desc, series, &mut metric)?;
            }
        }
        Ok(())
    }
}

fn encode(desc: &Desc, series: &Series, metric: &mut MetricEncoder) -> std::fmt::Result {
    let labels: Vec<(&str, &str)> =
        desc.labels.iter().copied().zip(series.labels.iter().map(String::as_str)).collect();
    if desc.kind == Kind::Info {
        return metric.encode_info(&labels);
    }
    if labels.is_empty() {
        return encode_value(desc.kind, &series.value, metric);
    }
    encode_value(desc.kind, &series.value, &mut metric.encode_family(&labels)?)
}

fn encode_value(kind: Kind, value: &Value, metric: &mut MetricEncoder) -> std::fmt::Result {
    match value {
        Value::Histogram(histogram) => {
            let buckets: Vec<_> = histogram.buckets().collect();
            let (spans, deltas) = histogram.native().spans_and_deltas();
            // In the text formats only the classic buckets appear.
            let native = NativeHistogram {
                schema: Native::SCHEMA,
                zero_threshold: Native::ZERO_THRESHOLD,
                zero_count: histogram.native().zeros(),
                negative: NativeHistogramBuckets { spans: &[], deltas: &[] },
                positive: NativeHistogramBuckets { spans: &spans, deltas: &deltas },
                created: None,
            };
            let (sum, count) = (histogram.sum(), histogram.count());
            metric.encode_histogram_with_native::<NoLabelSet>(sum, count, &buckets, None, native)
        }
        other if kind == Kind::Counter => {
            metric.encode_counter::<NoLabelSet, f64, u64>(&other.as_number(), None)
        }
        other => metric.encode_gauge(&other.as_number()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use prometheus_client::registry::Registry;

    use super::*;
    use crate::metric::Metric;

    // Borrowed names: only what the catalog lists is rendered.
    static GAUGE: Metric<0> = Metric::gauge("process_threads", "h", []);
    static COUNTER: Metric<0> = Metric::counter("process_cpu_seconds_total", "h", []);

    fn store() -> Arc<Store> {
        let store = Arc::new(Store::default());
        let mut batch = Batch::default();
        batch.push(&GAUGE, [], 4u64);
        batch.push(&COUNTER, [], 7u64);
        store.put("exporter", batch, Duration::from_secs(5));
        store
    }

    fn text(store: &Arc<Store>) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Arc::clone(store)));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_sampler_loses_its_gauges_after_a_minute_and_keeps_its_counters() {
        let store = store();
        tokio::time::advance(Duration::from_secs(59)).await;
        assert!(text(&store).contains("process_threads 4.0"));
        assert_eq!(store.value("process_threads", &[]), Some(4.0));
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(!text(&store).contains("process_threads"));
        assert!(text(&store).contains("process_cpu_seconds_total 7.0"));
        assert_eq!(store.value("process_threads", &[]), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_is_reused_until_a_batch_changes_and_at_most_a_quarter_of_a_second() {
        let store = store();
        let body = |text: &'static str| {
            store.body("text", || Ok::<_, std::fmt::Error>(text.as_bytes().to_vec())).unwrap()
        };
        assert_eq!(body("one"), "one");
        assert_eq!(body("two"), "one");
        store.touch();
        assert_eq!(body("three"), "three");
        tokio::time::advance(Duration::from_millis(251)).await;
        assert_eq!(body("four"), "four");
    }

    #[test]
    fn an_event_is_on_the_timeline_with_its_sampler_and_is_new_once() {
        let store = Store::default();
        let put = || {
            let mut batch = Batch::default();
            batch.event(SystemTime::UNIX_EPOCH, "test", "happened");
            store.put("args", batch, Duration::from_secs(1))
        };
        let (first, second) = (put(), put());
        assert_eq!((first.len(), second.len()), (1, 0));
        assert_eq!((first[0].source.as_str(), store.events()), ("args", first.clone()));
    }
}
