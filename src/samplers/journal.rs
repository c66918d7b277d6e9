//! What only logs tell: lines of the control plane's units and static pods that mean trouble, by a table of signatures.
//!
//! Follows the journal of the node's units, with PID 1's messages about them, through a child that runs `journalctl`;
//! and on kubeadm and RKE2 the log files of etcd's static pod, through a child of our own, because their lines are in
//! no journal. Exports for each signature and unit how often it was seen since the agent started and when it was seen
//! last, the times that lines report, and what the readers do. Lines that were there before the first start tell when
//! something happened, and count nothing; after that, the place in the journal is kept in memory and, where
//! `/run/controlplane-exporter` is, in a file there, so that a restart of the agent neither loses a line nor counts
//! one twice. What signatures mean stands in `journal/signatures.yaml`; a configuration may add rows.
//!
//! A line costs 2.5 µs, and 9 µs in journalctl. At most 10,000 lines a second are taken, then the children wait; a reader that stays two
//! minutes behind goes on at the last 5,000, and counts what it passed over. A run only copies figures. A reader that is
//! refused, ends, or is held by the disk is a failure; with both readers gone the sampler is down. Secrets in lines are
//! hidden before a line is quoted in the timeline; no part of a line becomes a label.

mod cells;
mod export;
mod follow;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod line;
mod pods;
mod secret;
mod table;

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use self::cells::{Cells, Source};
use self::follow::{Follow, Wanted};
use self::line::Classifier;
use self::pods::Pod;
use self::table::Row;
use crate::host::read::open_regular;
use crate::host::{Datastore, Distribution, Facts, Host};
use crate::metric::Metric;
use crate::sample::{Batch, SampleError};
use crate::sampler::{AsyncSampler, Build, OptionsError, SamplerDef, defaults, facts};

/// See the module's page.
pub static SAMPLER: SamplerDef = SamplerDef {
    about: "Lines of the control plane's logs that mean trouble, by a table of signatures.",
    interval: Duration::from_secs(1),
    timeout: Duration::from_secs(3),
    metrics: &[
        EVENTS.desc(),
        EVENT_LAST.desc(),
        DURATION.desc(),
        RESTART_COUNTER.desc(),
        UP.desc(),
        LAG.desc(),
        LINES.desc(),
        STARTS.desc(),
        ENTRIES_SKIPPED.desc(),
        UNPARSED.desc(),
    ],
    defaults: defaults::<Options>,
    uses: |all| facts((&all.journalctl, units(all), pods(all))),
    build: |options, host| {
        let own: Options = options.parse()?;
        let rows =
            table::with(&own.signatures).map_err(|(key, what)| OptionsError { key, what })?;
        let units = if own.units.is_empty() { units(host.facts()) } else { own.units };
        if let Some(wrong) = units.iter().find(|unit| !unit.contains('.')) {
            return Err(OptionsError::new(
                "units",
                format!("{wrong:?} has no ending such as .service"),
            ));
        }
        let wanted = wanted(host, &units);
        if wanted.is_empty() {
            return Ok(Build::not_applicable(nothing(host, &units)));
        }
        Ok(Build::tasked(Journal::new(rows, wanted, own.cursor_file, options.timeout)))
    },
    cost: "0.1 ms of CPU a run, and 2.5 µs a line; 1 MiB. journalctl beside it takes 9 µs a line, and 7 MiB with the files that it maps",
};

static EVENTS: Metric<2> = Metric::counter(
    "controlplane_journal_events_total",
    "Lines of the unit's log, or of systemd's about it, that mean this, since the agent first started. One fault makes many lines: do not add signatures up.",
    ["signature", "unit"],
);
static EVENT_LAST: Metric<2> = Metric::gauge(
    "controlplane_journal_event_last_timestamp_seconds",
    "When such a line was last logged, in Unix time, up to 5,000 lines before the agent's first start.",
    ["signature", "unit"],
);
static DURATION: Metric<1> = Metric::histogram(
    "controlplane_journal_reported_seconds",
    "How long what such lines tell of took, as they say themselves: only what was slow enough to be logged.",
    ["signature"],
);
static RESTART_COUNTER: Metric<1> = Metric::gauge(
    "controlplane_journal_reported_restarts",
    "The restart counter in systemd's last message about the unit; it goes back to 0 with a manual start.",
    ["unit"],
);
static UP: Metric<1> = Metric::gauge(
    "controlplane_journal_reader_up",
    "Whether the log is being read: the journal, or the files of static pods.",
    ["source"],
);
static LAG: Metric<1> = Metric::gauge(
    "controlplane_journal_lag_seconds",
    "How old the newest line was when it was read; 0 while nothing is written.",
    ["source"],
);
static LINES: Metric<1> = Metric::counter(
    "controlplane_journal_lines_read_total",
    "Messages read since the agent started.",
    ["source"],
);
static STARTS: Metric<1> = Metric::counter(
    "controlplane_journal_reader_starts_total",
    "Times that the reader was started; more than one means that it ended.",
    ["source"],
);
static ENTRIES_SKIPPED: Metric<0> = Metric::counter(
    "controlplane_journal_entries_skipped_total",
    "Entries of the journal, of any unit, that were passed over because more was written than could be read.",
    [],
);
static UNPARSED: Metric<0> = Metric::counter(
    "controlplane_journal_lines_unparsed_total",
    "Lines that begin like JSON and are none, such as those that journald cut at 48 KiB; they are not looked into.",
    [],
);

/// The most that a file of cursors may hold, in bytes.
const CURSOR_BYTES: u64 = 64 << 10;
/// `f_type` of filesystems that lie in memory (statfs(2)): tmpfs and ramfs.
const IN_MEMORY: [i64; 2] = [0x0102_1994, 0x8584_58f6];

/// The section `journal`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Options {
    /// Units whose lines are read, instead of those that detection found.
    #[serde(deserialize_with = "crate::config::list")]
    units: Vec<String>,
    /// Rows that are looked for before those of the table.
    signatures: Vec<Row>,
    /// Where the place in the logs is kept over a restart, on a filesystem in memory; empty for nowhere.
    cursor_file: PathBuf,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            units: Vec::new(),
            signatures: Vec::new(),
            cursor_file: "/run/controlplane-exporter/journal.cursor".into(),
        }
    }
}

fn units(all: &Facts) -> Vec<String> {
    let mut units: Vec<String> =
        all.in_use().flat_map(|node| &node.units).map(|unit| unit.name.clone()).collect();
    units.sort_unstable();
    units.dedup();
    units
}

/// The static pods whose lines are in no journal.
fn pods(all: &Facts) -> Vec<Pod> {
    let has_pods =
        |distribution| matches!(distribution, Distribution::Kubeadm | Distribution::Rke2);
    let etcd = all.in_use().any(|n| has_pods(n.distribution) && n.datastore == Datastore::Etcd);
    let pod = || Pod { prefix: "kube-system_etcd-".into(), container: "etcd".into() };
    etcd.then(pod).into_iter().collect()
}

fn wanted(host: &Host, units: &[String]) -> Vec<Wanted> {
    let journal = host.facts().journalctl.clone().filter(|_| !units.is_empty());
    let root = host.rootfs().to_owned();
    let journal = journal.map(|program| Wanted::Journal {
        program,
        root: (root != Path::new("/")).then(|| root.clone()),
        units: units.iter().cloned().chain([cells::JOURNALD.to_owned()]).collect(),
    });
    let pods = pods(host.facts());
    let pods = (!pods.is_empty()).then(|| Wanted::Pods { rootfs: root.clone(), pods });
    journal.into_iter().chain(pods).collect()
}

fn nothing(host: &Host, units: &[String]) -> String {
    if units.is_empty() {
        return "no unit of a control plane was found; set journal.units to names such as k3s.service".into();
    }
    let place = if host.rootfs() == Path::new("/") { "here" } else { "in this container" };
    format!(
        "there is no journal, or no journalctl {place} to read it with: run the agent on the host itself, \
         where systemd is"
    )
}

struct Journal {
    cells: Arc<Cells>,
    classifier: Option<Arc<Classifier>>,
    rows: Vec<Row>,
    wanted: Vec<Wanted>,
    follows: Vec<Follow>,
    cursor_file: PathBuf,
    /// What the file holds.
    kept: Cursors,
    timeout: Duration,
}

/// The place in each stream of each source.
type Cursors = BTreeMap<String, BTreeMap<String, String>>;

impl Journal {
    fn new(rows: Vec<Row>, wanted: Vec<Wanted>, cursor_file: PathBuf, timeout: Duration) -> Self {
        Self {
            cells: Cells::own(),
            classifier: None,
            rows,
            wanted,
            follows: Vec::new(),
            cursor_file,
            kept: Cursors::new(),
            timeout,
        }
    }

    fn sources(&self) -> Vec<Source> {
        self.wanted.iter().map(Wanted::source).collect()
    }

    /// Starts the readers, and waits a moment for them to read what was there before.
    async fn start(&mut self) -> Result<(), SampleError> {
        let classifier = Classifier::new(self.rows.clone())
            .map_err(|error| SampleError::parse("journal.signatures", error))?;
        let classifier = Arc::new(classifier);
        self.classifier = Some(Arc::clone(&classifier));
        self.kept = load(&self.cursor_file);
        {
            let mut figures = self.cells.figures();
            // What is not read must not look as if it had never happened.
            let at_home: Vec<String> = self.wanted.iter().flat_map(Wanted::units).collect();
            figures.prepare(&classifier, &at_home);
            for source in self.sources() {
                let reader = figures.reader(source);
                if let Some(kept) = self.kept.get(source.as_str()).filter(|_| !reader.settled) {
                    reader.cursors.clone_from(kept);
                }
            }
        }
        for wanted in &self.wanted {
            let (cells, classifier) = (Arc::clone(&self.cells), Arc::clone(&classifier));
            self.follows.push(Follow::start(cells, classifier, wanted.clone()));
        }
        let settled = async {
            loop {
                let told = self.cells.settled.notified();
                let sources = self.sources();
                let all = {
                    let mut figures = self.cells.figures();
                    sources.into_iter().all(|source| figures.reader(source).settled)
                };
                if all {
                    return;
                }
                told.await;
            }
        };
        // Who is late is late; the figures come with the next runs.
        drop(tokio::time::timeout(self.timeout, settled).await);
        Ok(())
    }

    /// Keeps the places, if they have changed.
    fn keep(&mut self) {
        let now: Cursors = {
            let mut figures = self.cells.figures();
            let mut places = |source| (source, figures.reader(source).cursors.clone());
            let sources = self.wanted.iter().map(Wanted::source).map(&mut places);
            sources
                .filter(|(_, cursors)| !cursors.is_empty())
                .map(|(source, cursors)| (source.as_str().to_owned(), cursors))
                .collect()
        };
        if now == self.kept || self.cursor_file.as_os_str().is_empty() {
            return;
        }
        if let Err(error) = save(&self.cursor_file, &now) {
            tracing::debug!(%error, file = %self.cursor_file.display(), "the place in the logs is not kept");
        }
        self.kept = now;
    }
}

/// What the process before has kept; nothing is as good.
fn load(file: &Path) -> Cursors {
    let mut text = String::new();
    let read = must_be_in_memory(file)
        .and_then(|()| open_regular(file))
        .and_then(|file| file.take(CURSOR_BYTES).read_to_string(&mut text));
    if read.is_err() {
        return Cursors::new();
    }
    serde_json::from_str(&text).unwrap_or_default()
}

/// Refuses a file that does not lie in memory, before it is opened: a disk must not be waited for.
fn must_be_in_memory(file: &Path) -> io::Result<()> {
    let folder = file.parent().ok_or(io::ErrorKind::InvalidInput)?;
    #[expect(clippy::useless_conversion, reason = "the type differs between processors")]
    let kind = i64::from(rustix::fs::statfs(folder)?.f_type);
    if !IN_MEMORY.contains(&kind) {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "not on a filesystem in memory"));
    }
    Ok(())
}

/// Replaces the file.
fn save(file: &Path, cursors: &Cursors) -> io::Result<()> {
    must_be_in_memory(file)?;
    let new = file.with_extension("new");
    let mut written = std::fs::File::create(&new)?;
    written.write_all(&serde_json::to_vec(cursors)?)?;
    std::fs::rename(new, file)
}

/// The state of a process, as `/proc` gives it.
fn state(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

#[async_trait]
impl AsyncSampler for Journal {
    /// # Errors
    ///
    /// When no log can be read. If one of two can, the other is a part that failed.
    async fn sample(&mut self, out: &mut Batch) -> Result<(), SampleError> {
        if self.classifier.is_none() {
            self.start().await?;
        }
        let sources = self.sources();
        let mut failed = self.cells.figures().export(&sources, 2 * SAMPLER.interval, state, out);
        self.keep();
        if failed.len() == sources.len()
            && let Some(error) = failed.pop()
        {
            return Err(SampleError::Blind(Box::new(error)));
        }
        for error in failed {
            out.fail(error);
        }
        Ok(())
    }
}

/// Looks through the lines of a text, each as one that a program of the control plane has written; returns how many mean
/// something. For measuring.
///
/// # Errors
///
/// When the table cannot be compiled.
pub fn count(text: &[u8]) -> Result<u64, SampleError> {
    let wrong = |what: String| SampleError::parse("journal/signatures.yaml", what);
    let rows = table::with(&[]).map_err(|(key, what)| wrong(format!("{key}: {what}")))?;
    let classifier = Classifier::new(rows).map_err(|error| wrong(error.to_string()))?;
    let lines = text.split(|byte| *byte == b'\n');
    Ok(lines.map(|line| classifier.message(table::From::Program, "", line).hits.len() as u64).sum())
}

/// What the table looks for in lines of programs: its patterns, and the values of `msg` as they stand in a line.
pub fn alternatives() -> (Vec<&'static str>, Vec<String>) {
    let rows = || table::shipped().iter().filter(|row| row.from == table::From::Program);
    let patterns = rows().map(|row| row.pattern.as_str()).filter(|pattern| !pattern.is_empty());
    let msgs = rows().flat_map(|row| &row.msg).map(|msg| format!("\"msg\":\"{msg}\""));
    (patterns.collect(), msgs.collect())
}

/// The child that reads: `controlplane-exporter follow`.
///
/// # Errors
///
/// When it cannot read what it is asked, or cannot start.
pub fn run_follow() -> io::Result<()> {
    follow::run_child()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_is_kept_in_memory_and_not_even_looked_for_on_a_disk() {
        let place = BTreeMap::from([(String::new(), "s=1;i=2".to_owned())]);
        let cursors = Cursors::from([("journal".to_owned(), place)]);
        let kept_in = |folder: &str| {
            let folder = tempfile::Builder::new().tempdir_in(folder).unwrap();
            let file = folder.path().join("cursor");
            std::fs::write(&file, serde_json::to_vec(&cursors).unwrap()).unwrap();
            (load(&file), save(&file, &cursors).is_ok())
        };
        assert_eq!(kept_in("/dev/shm"), (cursors.clone(), true));
        assert_eq!(kept_in("/var/tmp"), (Cursors::new(), false));
        assert_eq!(load(Path::new("")), Cursors::new(), "nowhere");
    }
}
