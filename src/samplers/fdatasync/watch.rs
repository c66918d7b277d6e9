//! The agent's side of the sync probe: one standing child per path, and the figures it yields.
//!
//! A task reads the child's lines into [`Cells`], and the sampler reads those. The task waits for
//! nothing but the pipe, so a child that the disk holds in the kernel costs the agent nothing. Cells
//! outlive the sampler that asked for them as long as a child of theirs is held: a reload in the
//! middle of a hang keeps the age of the sync and its counts, and starts no second child before the
//! first is reaped.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::convert::Infallible;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::oneshot;

use crate::child;
use crate::sample::{Age, Histogram};

use super::place::Device;
use super::probe::Question;

/// Upper bounds of the histogram in seconds; alerts need 0.01, 0.05 and 0.25.
pub(super) const BUCKETS: [f64; 18] = [
    0.0005, 0.001, 0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1.0,
    2.5, 5.0, 10.0,
];
/// A sync counts as a stall at each of these when it passes it.
pub(super) const STALLS: [(Duration, &str); 4] = [
    (Duration::from_millis(100), "0.1"),
    (Duration::from_millis(500), "0.5"),
    (Duration::from_secs(1), "1"),
    (Duration::from_secs(5), "5"),
];
/// The stall that is worth an event: etcd warns from here on.
const EVENT: usize = 2;
/// The worst sync of this time is exported.
const WINDOW: Duration = Duration::from_mins(1);
/// Events kept until the sampler takes them.
const MAX_EVENTS: usize = 16;

/// Errnos that are told apart, by their number on Linux.
const ERRNOS: [(i32, &str); 9] = [
    (1, "EPERM"),
    (2, "ENOENT"),
    (5, "EIO"),
    (13, "EACCES"),
    (20, "ENOTDIR"),
    (28, "ENOSPC"),
    (30, "EROFS"),
    (95, "EOPNOTSUPP"),
    (122, "EDQUOT"),
];

/// What a path's syncs have shown so far.
#[derive(Debug)]
pub(super) struct Cells {
    figures: Mutex<Figures>,
    /// Told when the first round has ended.
    settled: Condvar,
    /// The sync in flight.
    pub(super) age: Age,
    /// Held by the task whose child has not been reaped.
    slot: tokio::sync::Mutex<()>,
}

/// The figures of one path.
#[derive(Debug)]
pub(super) struct Figures {
    /// Where the path lies, once that is known.
    pub(super) device: Option<Device>,
    /// Syncs that ended well, in seconds.
    pub(super) histogram: Histogram,
    /// Syncs that passed each of [`STALLS`].
    pub(super) stalls: [u64; STALLS.len()],
    /// Failed rounds by step and errno.
    pub(super) failures: BTreeMap<(&'static str, &'static str), u64>,
    /// When a round failed last.
    pub(super) last_failure: Option<SystemTime>,
    /// Why nothing is measured now: a refusal, or a child that does not run.
    pub(super) trouble: Option<String>,
    /// Whether a sync was ever tried; a path that was refused all along has no figures.
    pub(super) tried: bool,
    recent: VecDeque<(Instant, Duration)>,
    flight: Option<Flight>,
    failing: Option<(&'static str, &'static str)>,
    /// The longest sync since one was worth an event, until one is not.
    stalled: Option<Duration>,
    settled: bool,
    events: Vec<(SystemTime, &'static str, String)>,
}

/// A round that has not ended.
#[derive(Debug, Clone, Copy)]
struct Flight {
    started: Instant,
    /// How many of [`STALLS`] it has passed.
    passed: usize,
}

impl Default for Cells {
    fn default() -> Self {
        let figures = Figures {
            device: None,
            histogram: Histogram::new(&BUCKETS),
            stalls: [0; STALLS.len()],
            failures: BTreeMap::new(),
            last_failure: None,
            trouble: None,
            tried: false,
            recent: VecDeque::new(),
            flight: None,
            failing: None,
            stalled: None,
            settled: false,
            events: Vec::new(),
        };
        Self {
            figures: Mutex::new(figures),
            settled: Condvar::new(),
            age: Age::default(),
            slot: tokio::sync::Mutex::default(),
        }
    }
}

impl Cells {
    /// The cells of a path below a root: those in use, if there are any.
    pub(super) fn of(path: PathBuf) -> Arc<Self> {
        static KNOWN: LazyLock<Mutex<HashMap<PathBuf, Weak<Cells>>>> =
            LazyLock::new(Mutex::default);
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, cells| cells.strong_count() > 0);
        if let Some(cells) = known.get(&path).and_then(Weak::upgrade) {
            return cells;
        }
        let cells = Arc::new(Self::default());
        known.insert(path, Arc::downgrade(&cells));
        cells
    }

    /// The figures; held for moments only.
    pub(super) fn figures(&self) -> MutexGuard<'_, Figures> {
        self.figures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the first round has ended, at most until `deadline`.
    pub(super) fn wait_for_first(&self, deadline: Instant) {
        let left = deadline.saturating_duration_since(Instant::now());
        let waited = self.settled.wait_timeout_while(self.figures(), left, |f| !f.settled);
        drop(waited);
    }

    /// The worst sync of the last minute, the one in flight included.
    pub(super) fn worst(&self, now: Instant) -> Option<Duration> {
        let mut figures = self.figures();
        while figures.recent.front().is_some_and(|(at, _)| now.duration_since(*at) > WINDOW) {
            figures.recent.pop_front();
        }
        let flight = figures.flight.map(|flight| now.duration_since(flight.started));
        // A round that began just now is no measurement yet.
        let flight = flight.filter(|age| *age >= STALLS[0].0);
        figures.recent.iter().map(|(_, took)| *took).chain(flight).max()
    }

    /// What happened since the last call.
    pub(super) fn take_events(&self) -> Vec<(SystemTime, &'static str, String)> {
        std::mem::take(&mut self.figures().events)
    }

    /// When the round in flight passes its next threshold.
    fn next_stall(&self) -> Option<Instant> {
        let flight = self.figures().flight?;
        STALLS.get(flight.passed).map(|(after, _)| flight.started + *after)
    }

    /// Counts the thresholds that the round in flight has passed.
    fn count_stalls(&self, path: &str) {
        let mut figures = self.figures();
        if let Some(flight) = figures.flight {
            figures.pass(flight.started.elapsed(), path, "and has not ended");
        }
    }

    /// Takes a line of the child.
    fn take(&self, line: &str, path: &str) {
        let (kind, rest) = line.split_once(' ').unwrap_or((line, ""));
        let mut figures = self.figures();
        match (kind, rest) {
            ("S", "") => {
                figures.flight = Some(Flight { started: Instant::now(), passed: 0 });
                self.age.start();
                return;
            }
            ("D", rest) => {
                let (label, disks) = rest.split_once(' ').unwrap_or((rest, ""));
                let disks = disks.split(',').filter(|disk| !disk.is_empty());
                let disks = disks.map(ToOwned::to_owned).collect();
                figures.device = Some(Device { label: label.to_owned(), disks });
                return;
            }
            ("E", nanos) if nanos.parse::<u64>().is_ok() => {
                figures.ended(Duration::from_nanos(nanos.parse().unwrap_or_default()), path);
            }
            ("F", rest) => figures.failed(rest, path),
            ("R", reason) => figures.refused(reason, path),
            _ => {
                tracing::debug!(line, "the sync probe said something odd");
                return;
            }
        }
        self.age.stop();
        figures.settled = true;
        drop(figures);
        self.settled.notify_all();
    }

    /// The child has gone, with whatever it was doing.
    fn gone(&self, why: Option<String>) {
        let mut figures = self.figures();
        figures.flight = None;
        self.age.stop();
        if let Some(why) = why {
            if figures.trouble.as_ref() != Some(&why) {
                tracing::warn!("{why}");
            }
            figures.trouble = Some(why);
            figures.settled = true;
            self.settled.notify_all();
        }
    }
}

impl Figures {
    /// Counts each threshold that `age` has reached and that was not counted for this round.
    fn pass(&mut self, age: Duration, path: &str, how: &str) {
        let mut passed = self.flight.map_or(0, |flight| flight.passed);
        while let Some((threshold, _)) = STALLS.get(passed).filter(|(after, _)| age >= *after) {
            self.stalls[passed] += 1;
            self.tried = true;
            // A disk that stays slow is one event, not one for each sync.
            if passed == EVENT && self.stalled.is_none() {
                let text = format!("a sync of {path} has taken {threshold:?} {how}");
                self.event("sync_stalled", text);
            }
            passed += 1;
        }
        if passed > EVENT {
            self.stalled = self.stalled.max(Some(age));
        }
        if let Some(flight) = &mut self.flight {
            flight.passed = passed;
        }
    }

    fn ended(&mut self, took: Duration, path: &str) {
        self.pass(took, path, "or longer");
        self.flight = None;
        self.tried = true;
        self.trouble = None;
        self.histogram.observe(took.as_secs_f64());
        self.recent.push_back((Instant::now(), took));
        let failed = self.failing.take().is_some();
        let longest = self.stalled.take_if(|_| took < STALLS[EVENT].0);
        if failed || longest.is_some() {
            let mut text = format!("a sync of {path} ended well after {:.3} s", took.as_secs_f64());
            if let Some(longest) = longest {
                text.push_str(&format!("; the longest took {:.3} s", longest.as_secs_f64()));
            }
            self.event("sync_recovered", text);
        }
    }

    /// `STEP ERRNO`, both taken from closed sets.
    fn failed(&mut self, what: &str, path: &str) {
        let (step, errno) = what.split_once(' ').unwrap_or((what, ""));
        let step = ["open", "fallocate", "write", "sync"].into_iter().find(|s| *s == step);
        let step = step.unwrap_or("open");
        let number: i32 = errno.parse().unwrap_or_default();
        let errno = ERRNOS.iter().find(|(known, _)| *known == number).map_or("other", |(_, n)| *n);
        if let Some(flight) = self.flight {
            self.pass(flight.started.elapsed(), path, "or longer, and failed");
        }
        self.flight = None;
        self.tried = true;
        // A place that is not there or not ours says nothing about the disk.
        let misplaced = matches!(errno, "ENOENT" | "ENOTDIR" | "EACCES" | "EPERM");
        self.trouble = (step == "open" && misplaced)
            .then(|| format!("the agent cannot open a file in {path}: {errno}"));
        *self.failures.entry((step, errno)).or_default() += 1;
        self.last_failure = Some(SystemTime::now());
        if self.failing.replace((step, errno)) != Some((step, errno)) {
            tracing::warn!(path, step, errno, "the sync probe failed");
            self.event("sync_failed", format!("{step} on {path} failed with {errno}"));
        }
    }

    fn refused(&mut self, reason: &str, path: &str) {
        self.flight = None;
        if self.trouble.as_deref() != Some(reason) {
            tracing::warn!(path, reason, "syncs are not measured");
        }
        self.trouble = Some(reason.to_owned());
    }

    fn event(&mut self, kind: &'static str, text: String) {
        if self.events.len() < MAX_EVENTS {
            self.events.push((SystemTime::now(), kind, text));
        }
    }
}

/// A standing child. Dropping this ends it, without waiting.
#[derive(Debug)]
pub(super) struct Watch(#[expect(dead_code, reason = "its drop is the message")] Stop);

type Stop = oneshot::Sender<Infallible>;

impl Watch {
    /// Starts the task that keeps a child running. Needs a runtime, whose worker does the forking:
    /// the child dies with the thread that started it.
    pub(super) fn start(cells: Arc<Cells>, question: Question) -> Self {
        let (stop, mut stopped) = oneshot::channel();
        tokio::spawn(async move {
            // The child of a sampler that this one replaces may be held by the disk.
            let _slot = tokio::select! {
                slot = cells.slot.lock() => slot,
                _ = &mut stopped => return,
            };
            keep(&cells, &question, &mut stopped, || child::command(&["probe"])).await;
        });
        Self(stop)
    }
}

/// Runs one child after the other until told to stop.
async fn keep(
    cells: &Cells,
    question: &Question,
    stopped: &mut oneshot::Receiver<Infallible>,
    command: impl Fn() -> io::Result<Command>,
) {
    let mut backoff = child::Backoff::default();
    loop {
        let started = Instant::now();
        let ended = run(cells, question, stopped, command()).await;
        let Some(why) = ended else {
            cells.gone(None);
            return;
        };
        cells.gone(Some(format!("the sync probe of {} ended: {why}", question.path.display())));
        tokio::select! {
            () = tokio::time::sleep(backoff.next(started.elapsed())) => {}
            _ = &mut *stopped => return,
        }
    }
}

/// Runs one child to its end and reaps it; why it ended, or nothing if it was told to.
async fn run(
    cells: &Cells,
    question: &Question,
    stopped: &mut oneshot::Receiver<Infallible>,
    command: io::Result<Command>,
) -> Option<String> {
    let (mut child, stdout) = match start(question, command).await {
        Ok(started) => started,
        Err(error) => return Some(error.to_string()),
    };
    let path = question.path.to_string_lossy();
    let mut lines = BufReader::new(stdout).lines();
    let told = loop {
        let stall = cells.next_stall();
        tokio::select! {
            biased;
            _ = &mut *stopped => break true,
            line = lines.next_line() => match line {
                Ok(Some(line)) => cells.take(&line, &path),
                _ => break false,
            },
            () = at(stall) => cells.count_stalls(&path),
        }
    };
    if told && let Err(error) = child.start_kill() {
        tracing::debug!(%error, "a sync probe could not be killed");
    }
    // Nobody reads what it says now: it ends at its next line, if it was not killed.
    drop(lines);
    // As long as the disk holds it, this waits, and the slot stays taken.
    let status = loop {
        let stall = cells.next_stall();
        tokio::select! {
            status = child.wait() => break status,
            () = at(stall) => cells.count_stalls(&path),
        }
    };
    (!told).then(|| status.map_or_else(|error| error.to_string(), |status| status.to_string()))
}

async fn start(
    question: &Question,
    command: io::Result<Command>,
) -> io::Result<(Child, ChildStdout)> {
    let mut child = child::stay(command?, question).await?;
    let stdout = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
    Ok((child, stdout))
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    static QUESTION: LazyLock<Question> = LazyLock::new(|| Question {
        rootfs: "/".into(),
        path: "/p".into(),
        directories: Vec::new(),
        device: None,
        every: Duration::from_secs(1),
    });

    fn shell(script: &'static str) -> impl Fn() -> io::Result<Command> {
        move || {
            let mut command = Command::new("/bin/sh");
            command.args(["-c", script]);
            Ok(command)
        }
    }

    fn taken(lines: &[&str]) -> Cells {
        let cells = Cells::default();
        for line in lines {
            cells.take(line, "/p");
        }
        cells
    }

    #[test]
    fn a_sync_enters_the_histogram_and_counts_at_each_threshold_that_it_passed() {
        let cells = taken(&["S", "E 1000000", "S", "E 600000000"]);
        let figures = cells.figures();
        assert_eq!(figures.histogram.count(), 2);
        assert!((figures.histogram.sum() - 0.601).abs() < 1e-9);
        assert_eq!(figures.stalls, [1, 1, 0, 0]);
        drop(figures);
        assert_eq!(cells.worst(Instant::now()), Some(Duration::from_millis(600)));
        assert_eq!(cells.age.elapsed(), Duration::ZERO);
    }

    #[test]
    fn a_sync_in_flight_counts_when_it_passes_a_threshold_and_only_once() {
        let cells = taken(&["S"]);
        let two_ago = Instant::now().checked_sub(Duration::from_secs(2)).unwrap();
        cells.figures().flight.as_mut().unwrap().started = two_ago;
        cells.count_stalls("/p");
        cells.count_stalls("/p");
        assert_eq!(cells.figures().stalls, [1, 1, 1, 0]);
        assert!(cells.worst(Instant::now()).unwrap() >= Duration::from_secs(2));
        cells.take("E 7000000000", "/p");
        assert_eq!(cells.figures().stalls, [1, 1, 1, 1]);
        let events = cells.take_events();
        assert_eq!(events.len(), 1, "{events:?}");
        assert!(events[0].1 == "sync_stalled" && events[0].2.contains("has not ended"));
    }

    #[test]
    fn a_disk_that_stays_slow_is_two_events_and_not_two_for_each_sync() {
        let slow = ["S", "E 2000000000"].repeat(50);
        let cells = taken(&[slow, vec!["S", "E 7000000000", "S", "E 900000000"]].concat());
        let events = cells.take_events();
        let kinds: Vec<_> = events.iter().map(|(_, kind, _)| *kind).collect();
        assert_eq!(kinds, ["sync_stalled", "sync_recovered"]);
        assert!(events[1].2.ends_with("after 0.900 s; the longest took 7.000 s"), "{events:?}");
        assert_eq!(cells.figures().stalls, [52, 52, 51, 1]);
    }

    #[test]
    fn the_next_threshold_is_the_first_that_was_not_passed() {
        let cells = taken(&["S"]);
        let started = cells.figures().flight.unwrap().started;
        assert_eq!(cells.next_stall(), Some(started + Duration::from_millis(100)));
        cells.figures().flight.as_mut().unwrap().passed = STALLS.len();
        assert_eq!(cells.next_stall(), None);
        assert_eq!(taken(&["S", "E 1"]).next_stall(), None);
    }

    #[test]
    fn failures_are_counted_by_step_and_errno_from_closed_sets() {
        let cells = taken(&["S", "F sync 5", "S", "F sync 5", "S", "F fallocate 28", "S", "F x 7"]);
        let figures = cells.figures();
        let expected = [(("fallocate", "ENOSPC"), 1), (("open", "other"), 1), (("sync", "EIO"), 2)];
        assert_eq!(figures.failures, expected.into());
        assert!(figures.last_failure.is_some() && figures.histogram.count() == 0);
        drop(figures);
        assert_eq!(cells.take_events().len(), 3, "one event per change");
    }

    #[test]
    fn a_refusal_is_a_reason_and_goes_away_with_the_next_sync() {
        let cells = taken(&["S", "R it is in memory"]);
        assert_eq!(cells.figures().trouble.as_deref(), Some("it is in memory"));
        assert!(!cells.figures().tried);
        cells.take("S", "/p");
        cells.take("E 5", "/p");
        assert_eq!(cells.figures().trouble, None);
    }

    #[test]
    fn a_directory_that_is_missing_or_forbidden_is_trouble_and_a_sick_disk_is_a_verdict() {
        for (line, trouble) in [("F open 2", true), ("F open 13", true), ("F open 30", false)] {
            assert_eq!(taken(&["S", line]).figures().trouble.is_some(), trouble, "{line}");
        }
    }

    #[test]
    fn odd_lines_change_nothing() {
        let cells = taken(&["", "E", "E x", "E -1", "S 1", "Z 9", "\u{fffd}"]);
        let figures = cells.figures();
        assert!(!figures.settled && figures.histogram.count() == 0 && figures.flight.is_none());
    }

    proptest! {
        #[test]
        fn no_lines_make_it_panic_or_grow(
            lines in proptest::collection::vec("([SDEFRZ]|[SDEFR] [a-z0-9 ,-]{0,24}|\\PC{0,12})", 0..200),
        ) {
            let cells = Cells::default();
            for line in &lines {
                cells.take(line, "/p");
            }
            let figures = cells.figures();
            prop_assert!(figures.events.len() <= MAX_EVENTS);
            prop_assert!(figures.failures.len() <= 4 * (ERRNOS.len() + 1));
        }
    }

    #[test]
    fn the_window_forgets_what_is_older_than_a_minute() {
        let cells = taken(&["S", "E 3000000000"]);
        let later = Instant::now() + Duration::from_secs(61);
        assert_eq!(cells.worst(later), None);
    }

    #[test]
    fn the_device_is_what_the_child_says() {
        let cells = taken(&["S", "D md0 sda,sdb"]);
        let device = cells.figures().device.clone().unwrap();
        assert_eq!((device.label.as_str(), device.disks.len()), ("md0", 2));
        assert!(taken(&["D x "]).figures().device.as_ref().unwrap().disks.is_empty());
    }

    #[test]
    fn a_path_has_the_same_cells_as_long_as_somebody_holds_them() {
        let first = Cells::of("/test/same".into());
        assert!(Arc::ptr_eq(&first, &Cells::of("/test/same".into())));
        first.figures().stalls[0] = 7;
        drop(first);
        assert_eq!(Cells::of("/test/same".into()).figures().stalls[0], 0);
    }

    #[tokio::test]
    async fn the_end_of_a_child_is_told_and_another_one_is_started() {
        let cells = Cells::default();
        let (_stop, mut stopped) = oneshot::channel();
        let script = shell("read question; echo S; echo E 5; exit 3");
        let ran = run(&cells, &QUESTION, &mut stopped, script()).await;
        assert_eq!(ran.as_deref(), Some("exit status: 3"));
        assert_eq!(cells.figures().histogram.count(), 1);
        let until = Duration::from_millis(1_500);
        let kept = keep(&cells, &QUESTION, &mut stopped, script);
        assert!(tokio::time::timeout(until, kept).await.is_err());
        assert_eq!(cells.figures().histogram.count(), 3, "at once, and after a second");
    }

    #[tokio::test]
    async fn a_child_that_cannot_be_started_is_trouble() {
        let cells = Cells::default();
        let (_stop, mut stopped) = oneshot::channel();
        let none = || Ok(Command::new("/nonexistent/program"));
        let kept = keep(&cells, &QUESTION, &mut stopped, none);
        assert!(tokio::time::timeout(Duration::from_millis(100), kept).await.is_err());
        let trouble = cells.figures().trouble.clone().unwrap();
        assert!(trouble.contains("No such file"), "{trouble}");
    }

    #[tokio::test]
    async fn a_stall_is_counted_while_the_child_is_silent() {
        let cells = Cells::default();
        let (_stop, mut stopped) = oneshot::channel();
        let ran = run(&cells, &QUESTION, &mut stopped, shell("echo S; exec sleep 60")());
        assert!(tokio::time::timeout(Duration::from_millis(700), ran).await.is_err());
        assert_eq!(cells.figures().stalls, [1, 1, 0, 0]);
        assert!(cells.age.elapsed() > Duration::from_millis(500));
    }

    #[tokio::test]
    async fn dropping_the_watch_ends_the_child() {
        let cells = Arc::new(Cells::default());
        let (stop, mut stopped) = oneshot::channel::<Infallible>();
        let task = tokio::spawn({
            let cells = Arc::clone(&cells);
            async move { run(&cells, &QUESTION, &mut stopped, shell("echo S; exec sleep 60")()).await }
        });
        while cells.figures().flight.is_none() {
            tokio::task::yield_now().await;
        }
        drop(stop);
        let ended = tokio::time::timeout(Duration::from_secs(5), task).await;
        assert_eq!(ended.unwrap().unwrap(), None);
    }
}
