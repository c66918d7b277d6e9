//! What the lines have shown so far. It outlives the sampler, which is built anew when the units of the node change:
//! counts go on, and the readers resume where they were.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::Notify;

use super::export::Entry;
use super::line::Classifier;
use super::secret;
use super::table::From;
use crate::quiet::Quiet;
use crate::sample::{Batch, Histogram, SampleError};
use crate::severity::Severity;

use super::{
    DURATION, ENTRIES_SKIPPED, EVENT_LAST, EVENTS, LAG, LINES, RESTART_COUNTER, STARTS, UNPARSED,
    UP,
};

/// Upper bounds in seconds of what lines report.
const BUCKETS: &[f64] = &[0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
/// Signatures by unit; beyond, the unit is `other`.
const MAX_COUNTS: usize = 200;
/// Events kept until the sampler takes them; of more, the oldest go.
const MAX_EVENTS: usize = 256;
/// Events handed on by one run.
const EVENTS_PER_RUN: usize = 32;
/// Bytes of a line that the timeline quotes.
const QUOTED: usize = 160;
/// A child that has run for so long works.
const WORKS: Duration = Duration::from_secs(2);
/// A reader that the kernel holds for longer than this is reported.
const HELD: Duration = Duration::from_secs(15);
pub(super) const JOURNALD: &str = "systemd-journald.service";

/// Where lines come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Source {
    /// The journal, by journalctl.
    Journal,
    /// Files of static pods.
    Pods,
}

impl Source {
    /// The label `source`.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Journal => "journal",
            Self::Pods => "pods",
        }
    }
}

/// A reader, and what it has read.
#[derive(Debug, Default)]
pub(super) struct Reader {
    /// The child that runs now.
    pub(super) pid: Option<u32>,
    begun: Option<Instant>,
    /// Why there is none.
    pub(super) trouble: Option<Trouble>,
    /// Whether what was there before has been read.
    pub(super) settled: bool,
    entries: u64,
    starts: u64,
    /// How old the newest entry was when it was read.
    lag: Duration,
    read: Option<Instant>,
    held: Option<Instant>,
    /// Position of each of the reader's streams: the journal's cursor under an empty name, or a file of a pod's.
    pub(super) cursors: BTreeMap<String, String>,
    /// The same in what was there before, as far as it has been looked at. It is nobody's place until the look is done: what
    /// comes after it would count.
    pub(super) looked: BTreeMap<String, String>,
    /// Where the reader was before it passed something over.
    passed: Option<(String, u64)>,
}

/// Why a reader does not read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Trouble {
    /// What happened, with the way out.
    pub(super) text: String,
    /// Whether a right is missing.
    pub(super) refused: bool,
}

#[derive(Debug, Default)]
struct Count {
    number: u64,
    last: Option<SystemTime>,
}

/// The figures.
#[derive(Debug, Default)]
pub(super) struct Figures {
    readers: BTreeMap<Source, Reader>,
    counts: BTreeMap<(String, String), Count>,
    took: BTreeMap<String, Histogram>,
    restarts: BTreeMap<String, u64>,
    skipped: u64,
    unparsed: u64,
    events: VecDeque<(SystemTime, String, String)>,
    quiet: Quiet<(String, String)>,
}

/// See the module's page.
#[derive(Debug, Default)]
pub(super) struct Cells {
    figures: Mutex<Figures>,
    /// Told when a reader has read what was there before, or cannot.
    pub(super) settled: Notify,
    /// Each held by the task whose child has not been reaped.
    slots: [tokio::sync::Mutex<()>; 2],
}

impl Cells {
    /// Those of this process.
    pub(super) fn own() -> Arc<Self> {
        static OWN: LazyLock<Arc<Cells>> = LazyLock::new(Arc::default);
        Arc::clone(&OWN)
    }

    /// The figures; held for moments only.
    pub(super) fn figures(&self) -> MutexGuard<'_, Figures> {
        self.figures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Room for one child of this source.
    pub(super) fn slot(&self, source: Source) -> &tokio::sync::Mutex<()> {
        &self.slots[usize::from(source == Source::Pods)]
    }
}

impl Figures {
    /// The reader of this source.
    pub(super) fn reader(&mut self, source: Source) -> &mut Reader {
        self.readers.entry(source).or_default()
    }

    /// A child has started.
    pub(super) fn started(&mut self, source: Source, pid: Option<u32>) {
        let reader = self.reader(source);
        reader.pid = pid;
        reader.begun = Some(Instant::now());
        reader.starts += 1;
    }

    /// What was there before has been looked at: where no place was known, it ends there.
    pub(super) fn settle(&mut self, source: Source) {
        let reader = self.reader(source);
        reader.settled = true;
        for (stream, place) in std::mem::take(&mut reader.looked) {
            reader.cursors.entry(stream).or_insert(place);
        }
    }

    /// Takes an entry. One of `history` happened before the agent looked: it counts nothing, but tells when.
    pub(super) fn take(
        &mut self,
        source: Source,
        entry: &Entry,
        classifier: &Classifier,
        history: bool,
    ) {
        let history = history || entry.history;
        if *entry == (Entry { history, ..Entry::default() }) {
            self.settle(source);
            return;
        }
        let written = UNIX_EPOCH + Duration::from_micros(entry.micros);
        let now = SystemTime::now();
        let reader = self.readers.entry(source).or_default();
        let stream = if source == Source::Pods { entry.by.clone() } else { String::new() };
        if !history {
            let before = reader.passed.take();
            let passed = before.zip(sequence(&entry.cursor)).filter(|(b, now)| b.0 == now.0);
            self.skipped += passed.map_or(0, |(b, now)| now.1.saturating_sub(b.1 + 1));
            reader.entries += 1;
            reader.lag = now.duration_since(written).unwrap_or_default();
            reader.read = Some(Instant::now());
        }
        let places = if history { &mut reader.looked } else { &mut reader.cursors };
        places.insert(stream, entry.cursor.clone());
        // Any process may name a unit; only these two know.
        let knows = entry.pid == "1" || entry.by.starts_with("systemd-coredump");
        let is_systemd = knows && !entry.about.is_empty();
        let (from, unit) = match entry.by.as_str() {
            _ if is_systemd => (From::Systemd, entry.about.as_str()),
            JOURNALD => (From::Journald, JOURNALD),
            unit => (From::Program, unit),
        };
        if let (From::Systemd, Some(restarts)) = (from, entry.restarts) {
            self.restarts.insert(unit.to_owned(), restarts);
        }
        let found = classifier.message(from, &entry.message_id, &entry.message);
        if !history {
            self.unparsed += found.unparsed;
        }
        // A clock that is ahead must not keep an alert from ending.
        let time = written.min(now);
        for (hit, line) in found.hits {
            let row = hit.row;
            let count = self.count(&row.id, unit);
            count.number += u64::from(!history);
            count.last = count.last.max(Some(time));
            if let Some(took) = hit.took.filter(|_| !history) {
                let all =
                    self.took.entry(row.id.clone()).or_insert_with(|| Histogram::new(BUCKETS));
                all.observe(took.as_secs_f64());
            }
            // What systemd does now, the sampler of that name tells by itself.
            let is_told = row.is_told()
                && (history || from != From::Systemd || row.severity == Severity::Critical);
            if is_told && self.quiet.tells((row.id.clone(), unit.to_owned()), time) {
                let text = format!("{unit}: {}", cut(&secret::hide(&line)));
                self.events.push_back((time, row.id.clone(), text));
                if self.events.len() > MAX_EVENTS {
                    self.events.pop_front();
                }
            }
        }
    }

    fn count(&mut self, id: &str, unit: &str) -> &mut Count {
        let key = (id.to_owned(), unit.to_owned());
        let room = self.counts.len() < MAX_COUNTS || self.counts.contains_key(&key);
        let key = if room { key } else { (key.0, "other".to_owned()) };
        self.counts.entry(key).or_default()
    }

    /// Series that exist before anything has happened: those that alerts look at.
    pub(super) fn prepare(&mut self, classifier: &Classifier, units: &[String]) {
        for row in classifier.rows() {
            for unit in units.iter().filter(|unit| row.is_at_home_in(unit)) {
                self.count(&row.id, unit);
            }
        }
    }

    /// Lets the reader of the journal go on at the end; what is passed over is counted when the next entry comes.
    pub(super) fn pass_over(&mut self, source: Source) {
        let reader = self.reader(source);
        reader.passed = reader.cursors.remove("").as_deref().and_then(sequence);
    }

    /// Exports everything. Returns why a source is not read.
    pub(super) fn export(
        &mut self,
        sources: &[Source],
        idle: Duration,
        state: impl Fn(u32) -> Option<char>,
        out: &mut Batch,
    ) -> Vec<SampleError> {
        let mut failed = Vec::new();
        for source in sources {
            let reader = self.readers.entry(*source).or_default();
            let name = source.as_str();
            // A child that cannot work ends at once.
            if reader.pid.is_some() && reader.begun.is_some_and(|begun| begun.elapsed() > WORKS) {
                reader.trouble = None;
            }
            let held = reader.pid.and_then(&state) == Some('D');
            reader.held = held.then(|| reader.held.unwrap_or_else(Instant::now));
            let held = reader.held.map(|since| since.elapsed()).filter(|held| *held >= HELD);
            // Between the look at what was there and the following there is no child for a moment.
            let runs = reader.pid.is_some() || reader.settled;
            let up = runs && reader.trouble.is_none() && held.is_none();
            out.push(&UP, [name], up);
            out.push(&LINES, [name], reader.entries);
            out.push(&STARTS, [name], reader.starts);
            if up {
                let quiet = reader.read.is_none_or(|read| read.elapsed() > idle);
                out.push(&LAG, [name], if quiet { Duration::ZERO } else { reader.lag });
            }
            if let Some(trouble) = &reader.trouble {
                failed.push(if trouble.refused {
                    SampleError::Permission(trouble.text.clone())
                } else {
                    SampleError::call(format!("the reader of the {name}"), &trouble.text)
                });
            } else if let Some(held) = held {
                let what = format!("held by the disk for {} s", held.as_secs());
                failed.push(SampleError::call(format!("the reader of the {name}"), what));
            }
        }
        for ((id, unit), count) in &self.counts {
            out.push(&EVENTS, [id, unit], count.number);
            if let Some(last) = count.last {
                out.push(&EVENT_LAST, [id, unit], last);
            }
        }
        for (id, took) in &self.took {
            out.histogram(&DURATION, [id], took);
        }
        for (unit, restarts) in &self.restarts {
            out.push(&RESTART_COUNTER, [unit], *restarts);
        }
        out.push(&ENTRIES_SKIPPED, [], self.skipped);
        out.push(&UNPARSED, [], self.unparsed);
        let told = self.events.len().min(EVENTS_PER_RUN);
        for (time, id, text) in self.events.drain(..told) {
            out.event(time, &id, text);
        }
        failed
    }
}

/// The journal's number of an entry, which grows by one with each of any unit, and the id of the series of numbers.
fn sequence(cursor: &str) -> Option<(String, u64)> {
    let field = |name: &str| cursor.split(';').find_map(|part| part.strip_prefix(name));
    Some((field("s=")?.to_owned(), u64::from_str_radix(field("i=")?, 16).ok()?))
}

fn cut(text: &str) -> String {
    let end = text.floor_char_boundary(QUOTED);
    let more = if end < text.len() { "…" } else { "" };
    format!("{}{more}", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samplers::journal::table;

    fn classifier() -> Classifier {
        Classifier::new(table::with(&[]).unwrap()).unwrap()
    }

    fn entry(unit: &str, message: &str) -> Entry {
        let micros = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros();
        Entry {
            cursor: "s=a;i=10;b=c".into(),
            micros: u64::try_from(micros).unwrap(),
            by: unit.into(),
            message: message.into(),
            ..Entry::default()
        }
    }

    fn exported(figures: &mut Figures) -> Batch {
        let mut out = Batch::default();
        let failed = figures.export(&[Source::Journal], Duration::from_secs(5), |_| None, &mut out);
        assert!(failed.is_empty(), "{failed:?}");
        out
    }

    const LEADER: &str = "etcdserver: no leader";

    #[test]
    fn what_was_there_before_tells_when_and_counts_nothing() {
        let (classifier, mut figures) = (classifier(), Figures::default());
        figures.take(Source::Journal, &entry("k3s.service", LEADER), &classifier, true);
        let out = exported(&mut figures);
        let labels = ["etcd_no_leader", "k3s.service"];
        assert_eq!(out.value(&EVENTS, labels), Some(0.0));
        assert!(out.value(&EVENT_LAST, labels).is_some());
        assert_eq!(out.value(&LINES, ["journal"]), Some(0.0));
        figures.take(Source::Journal, &entry("k3s.service", LEADER), &classifier, false);
        assert_eq!(exported(&mut figures).value(&EVENTS, labels), Some(1.0));
    }

    #[test]
    fn a_look_at_what_was_there_before_moves_no_place_and_gives_the_first_one_when_it_is_done() {
        for (source, unit, stream) in
            [(Source::Journal, "k3s.service", ""), (Source::Pods, "etcd", "etcd")]
        {
            let (classifier, mut figures) = (classifier(), Figures::default());
            let at = |cursor: &str| Entry { cursor: cursor.into(), ..entry(unit, "x") };
            let place = |figures: &mut Figures| figures.reader(source).cursors.get(stream).cloned();
            figures.take(source, &at("1"), &classifier, true);
            figures.take(source, &at("2"), &classifier, true);
            assert_eq!(place(&mut figures), None, "{stream:?}: a look that is not done");
            figures.settle(source);
            assert_eq!(place(&mut figures).as_deref(), Some("2"), "{stream:?}");
            figures.take(source, &at("3"), &classifier, false);
            figures.take(source, &at("1"), &classifier, true);
            assert_eq!(place(&mut figures).as_deref(), Some("3"), "{stream:?}: a second look");
            figures.settle(source);
            assert_eq!(place(&mut figures).as_deref(), Some("3"), "{stream:?}");
        }
    }

    #[test]
    fn a_line_that_repeats_is_counted_each_time_and_told_once_a_minute() {
        let (classifier, mut figures) = (classifier(), Figures::default());
        for _ in 0..50 {
            figures.take(Source::Journal, &entry("k3s.service", LEADER), &classifier, false);
        }
        let mut out = exported(&mut figures);
        assert_eq!(out.value(&EVENTS, ["etcd_no_leader", "k3s.service"]), Some(50.0));
        let events = out.take_events();
        assert_eq!(events.len(), 1);
        assert_eq!(events[0].text, "k3s.service: etcdserver: no leader");
    }

    #[test]
    fn a_message_about_a_unit_counts_for_that_unit_if_systemd_says_it() {
        let (classifier, mut figures) = (classifier(), Figures::default());
        let exit = "k3s.service: Main process exited, code=exited, status=1/FAILURE";
        let by_systemd = Entry {
            about: "k3s.service".into(),
            pid: "1".into(),
            restarts: Some(7),
            ..entry("init.scope", exit)
        };
        let forged = Entry {
            about: "k3s.service".into(),
            pid: "99".into(),
            message_id: "5eb03494b6584870a536b337290809b3".into(),
            ..entry("cron.service", exit)
        };
        figures.take(Source::Journal, &by_systemd, &classifier, false);
        figures.take(Source::Journal, &forged, &classifier, false);
        let out = exported(&mut figures);
        assert_eq!(out.value(&EVENTS, ["unit_process_exit", "k3s.service"]), Some(1.0));
        assert_eq!(out.value(&RESTART_COUNTER, ["k3s.service"]), Some(7.0));
        assert_eq!(out.series(&EVENTS), 1);
    }

    #[test]
    fn what_was_passed_over_is_known_from_the_journals_own_numbers() {
        let (classifier, mut figures) = (classifier(), Figures::default());
        let at = |cursor: &str| Entry { cursor: cursor.into(), ..entry("k3s.service", "x") };
        figures.take(Source::Journal, &at("s=a;i=ff;b=c"), &classifier, false);
        figures.pass_over(Source::Journal);
        assert_eq!(figures.reader(Source::Journal).cursors.get(""), None);
        figures.take(Source::Journal, &at("s=a;i=103;b=c"), &classifier, false);
        figures.take(Source::Journal, &at("s=a;i=200;b=c"), &classifier, false);
        assert_eq!(exported(&mut figures).value(&ENTRIES_SKIPPED, []), Some(3.0));
    }

    #[test]
    fn series_are_few_whatever_is_logged() {
        let own: Vec<table::Row> = Vec::new();
        let (classifier, mut figures) =
            (Classifier::new(table::with(&own).unwrap()).unwrap(), Figures::default());
        for n in 0..2 * MAX_COUNTS {
            let unit = format!("u{n}.service");
            figures.take(Source::Journal, &entry(&unit, LEADER), &classifier, false);
        }
        let out = exported(&mut figures);
        assert_eq!(out.series(&EVENTS), MAX_COUNTS + 1);
        assert_eq!(out.value(&EVENTS, ["etcd_no_leader", "other"]), Some(MAX_COUNTS as f64));
    }

    #[test]
    fn what_alerts_look_at_is_there_from_the_start_where_it_can_happen() {
        let (classifier, mut figures) = (classifier(), Figures::default());
        let units = ["k3s.service".to_owned(), "containerd.service".to_owned()];
        figures.prepare(&classifier, &units);
        let out = exported(&mut figures);
        assert_eq!(out.value(&EVENTS, ["volume_formatting", "k3s.service"]), Some(0.0));
        assert_eq!(out.value(&EVENTS, ["dqlite_fatal", "k3s.service"]), None);
        assert_eq!(out.value(&EVENTS, ["volume_formatting", "containerd.service"]), None);
        assert!(out.series(&EVENTS) < 30, "{}", out.series(&EVENTS));
        assert_eq!(out.series(&EVENT_LAST), 0);
    }

    #[test]
    fn what_rke2s_kubelet_says_is_in_no_journal_and_does_not_look_as_if_it_had_never_happened() {
        let (classifier, mut figures) = (classifier(), Figures::default());
        let unit = "rke2-server.service";
        figures.prepare(&classifier, &[unit.to_owned()]);
        let out = exported(&mut figures);
        for row in classifier.rows().iter().filter(|row| row.id.starts_with("volume_")) {
            assert_eq!(out.value(&EVENTS, [row.id.as_str(), unit]), None, "{}", row.id);
        }
        assert_eq!(out.value(&EVENTS, ["leaderelection_lost", unit]), Some(0.0));
    }

    #[test]
    fn secrets_do_not_reach_the_timeline() {
        let (classifier, mut figures) = (classifier(), Figures::default());
        let line =
            r#"time="x" level=fatal msg="dial postgres://k3s:hunter2@10.0.0.5/kine: refused""#;
        figures.take(Source::Journal, &entry("k3s.service", line), &classifier, false);
        let text = exported(&mut figures).take_events().remove(0).text;
        assert!(!text.contains("hunter2") && text.contains("10.0.0.5"), "{text}");
    }
}
