//! What is remembered about a unit between runs: its restarts, its last exit, its last state.
//!
//! Plain values, no bus: systemd forgets how a process ended as soon as the next one starts, and
//! sets its own restart counter back whenever somebody starts the unit by hand.

use std::borrow::Cow;
use std::fmt;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The states that have a series of their own; every other one is `other`.
pub(super) const STATES: [&str; 7] =
    ["active", "inactive", "activating", "deactivating", "failed", "reloading", OTHER];
/// `maintenance`, `refreshing`, and whatever systemd will invent.
const OTHER: &str = "other";

/// Signal names by number, from 1, without `SIG`; the same on x86, Arm, RISC-V, POWER and s390x.
const SIGNALS: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

/// How often an event of the same kind is told.
const QUIET: Duration = Duration::from_mins(1);

/// The series that a unit's `ActiveState` belongs to.
pub(super) fn state(active_state: &str) -> &'static str {
    STATES.into_iter().find(|known| *known == active_state).unwrap_or(OTHER)
}

/// How a main process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Exit {
    code: Code,
    /// The exit status, or the number of the signal.
    status: i32,
    /// When, in microseconds of Unix time; 0 when systemd does not say.
    at: u64,
}

/// `CLD_EXITED`, `CLD_KILLED`, `CLD_DUMPED` of waitid(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Code {
    Exited,
    Killed,
    Dumped,
}

impl Exit {
    /// From `ExecMainCode`, `ExecMainStatus` and `ExecMainExitTimestamp`; nothing when the
    /// process has not ended, or the code is none that a process can end with.
    pub(super) fn from_raw(code: i32, status: i32, at: u64) -> Option<Self> {
        let code = match code {
            1 => Code::Exited,
            2 => Code::Killed,
            3 => Code::Dumped,
            _ => return None,
        };
        Some(Self { code, status, at })
    }

    /// The label `code`, in the words of `systemctl status`.
    pub(super) fn code(&self) -> &'static str {
        match self.code {
            Code::Exited => "exited",
            Code::Killed => "killed",
            Code::Dumped => "dumped",
        }
    }

    /// The label `status`: the exit status, or the name of the signal without `SIG`.
    pub(super) fn status(&self) -> Cow<'static, str> {
        let name = usize::try_from(self.status).ok().and_then(|n| SIGNALS.get(n.wrapping_sub(1)));
        match (self.code, name) {
            (Code::Killed | Code::Dumped, Some(name)) => Cow::Borrowed(name),
            _ => Cow::Owned(self.status.to_string()),
        }
    }

    /// When it was.
    pub(super) fn time(&self) -> Option<SystemTime> {
        time(self.at)
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let status = self.status();
        match self.code {
            Code::Exited => write!(f, "exited with status {status}"),
            Code::Killed => write!(f, "was killed by signal {status}"),
            Code::Dumped => write!(f, "dumped core on signal {status}"),
        }
    }
}

/// A timestamp of systemd, in microseconds of Unix time, where 0 and the largest value mean none.
pub(super) fn time(micros: u64) -> Option<SystemTime> {
    let set = micros != 0 && micros != u64::MAX;
    set.then(|| UNIX_EPOCH.checked_add(Duration::from_micros(micros))).flatten()
}

/// One kind of event of a unit, which is told once a minute: a unit that crashes every few seconds
/// would fill the timeline within the hour.
#[derive(Debug, Default)]
pub(super) struct Quiet {
    /// What has happened since it was last told.
    pending: usize,
    told: Option<Instant>,
}

impl Quiet {
    /// Adds what is new; how much there is to tell now, if anything.
    pub(super) fn add(&mut self, new: usize, now: Instant) -> Option<usize> {
        self.pending = self.pending.saturating_add(new);
        let recent = self.told.is_some_and(|told| now.duration_since(told) < QUIET);
        if self.pending == 0 || recent {
            return None;
        }
        self.told = Some(now);
        Some(std::mem::take(&mut self.pending))
    }
}

/// What one unit is remembered by.
#[derive(Debug, Default)]
pub(super) struct Tracker {
    /// Its exits and its restarts on the timeline.
    pub(super) told: [Quiet; 2],
    /// systemd's figure at the last look, and the own count.
    restarts: Option<(u32, u64)>,
    /// How its main process ended last.
    pub(super) exit: Option<Exit>,
    /// Its state at the last look.
    state: Option<&'static str>,
    /// Whether it was running when it was last in a state that says so.
    runs: Option<bool>,
}

impl Tracker {
    /// Takes systemd's `NRestarts` and returns how many restarts are new. systemd starts again
    /// from 0 when somebody starts the unit by hand or resets it, so after a drop all of the new
    /// value counts.
    pub(super) fn restarted(&mut self, figure: u32) -> u32 {
        let (last, total) = self.restarts.unwrap_or((figure, 0));
        let new = figure.checked_sub(last).unwrap_or(figure);
        self.restarts = Some((figure, total + u64::from(new)));
        new
    }

    /// The own count, from the first look on; nothing before it.
    pub(super) fn restarts(&self) -> Option<u64> {
        self.restarts.map(|(_, total)| total)
    }

    /// Takes exits in the order in which they were signalled and returns how many are new. The
    /// same exit is signalled with every change of the unit until the next process starts.
    pub(super) fn exited(&mut self, exits: Vec<Exit>) -> usize {
        let mut new = 0;
        for exit in exits {
            if self.exit.as_ref() != Some(&exit) {
                self.exit = Some(exit);
                new += 1;
            }
        }
        new
    }

    /// Takes what the unit's properties say about the last exit; true when that is news. They
    /// were read at some moment between the signals, so an older exit is none.
    pub(super) fn found(&mut self, exit: Exit) -> bool {
        let new = self.exit.as_ref().is_none_or(|known| known.at < exit.at);
        if new {
            self.exit = Some(exit);
        }
        new
    }

    /// Takes the state; the kind of event that it is, if it is one. At the first look a failure is one: systemd says
    /// since when. The way from a crash to the next start, `activating`, is none: its exit and its restart are told.
    pub(super) fn turned(&mut self, state: &'static str) -> Option<&'static str> {
        let before = self.state.replace(state);
        let runs = match state {
            "active" | "reloading" => true,
            "inactive" | "failed" => false,
            // A unit that is on its way at the first look has not started yet.
            _ => self.runs.unwrap_or(state != "activating"),
        };
        let ran = self.runs.replace(runs);
        match (ran, runs) {
            (_, false) if state == "failed" && before != Some("failed") => Some("unit_failed"),
            (Some(true), false) => Some("unit_stopped"),
            (Some(false), true) => Some("unit_started"),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(code: i32, status: i32, at: u64) -> Exit {
        Exit::from_raw(code, status, at).unwrap()
    }

    #[test]
    fn the_count_starts_at_zero_and_only_grows() {
        let mut tracker = Tracker::default();
        assert_eq!(tracker.restarts(), None);
        let new: Vec<u32> =
            [3794, 3794, 3796, 0, 0, 1, 5, 2].into_iter().map(|n| tracker.restarted(n)).collect();
        assert_eq!(new, [0, 0, 2, 0, 0, 1, 4, 2]);
        assert_eq!(tracker.restarts(), Some(9));
    }

    #[test]
    fn a_process_that_runs_has_not_exited() {
        assert_eq!(Exit::from_raw(0, 0, 0), None);
        // CLD_STOPPED is no end.
        assert_eq!(Exit::from_raw(5, 19, 1), None);
    }

    #[test]
    fn exits_read_as_systemctl_prints_them() {
        let labels = |e: Exit| (e.code(), e.status().into_owned(), e.to_string());
        let of = |code, status: &str, text: &str| (code, status.to_owned(), text.to_owned());
        assert_eq!(labels(exit(1, 0, 1)), of("exited", "0", "exited with status 0"));
        assert_eq!(labels(exit(1, 2, 1)), of("exited", "2", "exited with status 2"));
        assert_eq!(labels(exit(2, 7, 1)), of("killed", "BUS", "was killed by signal BUS"));
        assert_eq!(labels(exit(2, 9, 1)), of("killed", "KILL", "was killed by signal KILL"));
        assert_eq!(labels(exit(3, 11, 1)), of("dumped", "SEGV", "dumped core on signal SEGV"));
        assert_eq!(labels(exit(2, 31, 1)).1, "SYS");
        for odd in [-1, 0, 32, 64, i32::MIN, i32::MAX] {
            assert_eq!(exit(2, odd, 1).status(), odd.to_string());
        }
    }

    #[test]
    fn an_exit_that_is_signalled_again_counts_once() {
        let mut tracker = Tracker::default();
        let (a, b) = (exit(1, 1, 100), exit(1, 1, 200));
        assert_eq!(tracker.exited(vec![a.clone(), a.clone(), b.clone(), b.clone()]), 2);
        assert_eq!(tracker.exited(vec![b.clone()]), 0);
        assert_eq!(tracker.exit, Some(b));
    }

    #[test]
    fn properties_never_bring_back_an_older_exit() {
        let mut tracker = Tracker::default();
        assert!(tracker.found(exit(1, 2, 100)));
        assert_eq!(tracker.exited(vec![exit(2, 7, 200)]), 1);
        assert!(!tracker.found(exit(1, 2, 100)));
        assert!(!tracker.found(exit(2, 7, 200)));
        assert_eq!(tracker.exit, Some(exit(2, 7, 200)));
    }

    #[test]
    fn a_clock_that_was_set_back_does_not_hide_an_exit_that_was_signalled() {
        let mut tracker = Tracker::default();
        tracker.exited(vec![exit(1, 2, 200)]);
        assert_eq!(tracker.exited(vec![exit(2, 7, 100)]), 1);
        assert_eq!(tracker.exit, Some(exit(2, 7, 100)));
    }

    #[test]
    fn states_without_a_series_are_other() {
        assert_eq!(state("activating"), "activating");
        for odd in ["maintenance", "refreshing", "", "ACTIVE"] {
            assert_eq!(state(odd), "other");
        }
    }

    fn told(states: &[&'static str]) -> Vec<&'static str> {
        let mut tracker = Tracker::default();
        states.iter().map(|state| tracker.turned(state).unwrap_or_default()).collect()
    }

    #[test]
    fn a_start_a_stop_and_a_failure_are_told_once() {
        let told =
            told(&["active", "active", "deactivating", "inactive", "inactive", "activating"]);
        assert_eq!(told, ["", "", "", "unit_stopped", "", ""]);
        let mut tracker = Tracker::default();
        let mut turned = |state| tracker.turned(state);
        assert_eq!(turned("inactive"), None, "the first look is no change");
        assert_eq!(turned("active"), Some("unit_started"));
        assert_eq!(turned("failed"), Some("unit_failed"));
        assert_eq!(turned("failed"), None);
        assert_eq!(turned("inactive"), None, "somebody has reset it");
    }

    #[test]
    fn a_failure_from_before_the_first_look_is_told() {
        assert_eq!(told(&["failed", "failed", "active"]), ["unit_failed", "", "unit_started"]);
    }

    #[test]
    fn a_unit_that_starts_with_the_node_is_told_and_a_crash_loop_is_neither_start_nor_stop() {
        assert_eq!(told(&["activating", "active"]), ["", "unit_started"]);
        assert_eq!(told(&["active", "activating", "active", "reloading", "active"]), [""; 5]);
    }

    #[test]
    fn what_happens_again_and_again_is_told_once_a_minute_and_none_of_it_is_forgotten() {
        let (mut quiet, start) = (Quiet::default(), Instant::now());
        let told: Vec<_> =
            [(0, 0), (1, 5), (10, 10), (2, 64), (0, 65), (0, 90), (0, 130), (3, 131)]
                .map(|(new, second)| quiet.add(new, start + Duration::from_secs(second)))
                .into();
        assert_eq!(told, [None, Some(1), None, None, Some(12), None, None, Some(3)]);
    }

    #[test]
    fn an_unset_timestamp_is_no_time() {
        assert_eq!((time(0), time(u64::MAX)), (None, None));
        assert_eq!(time(1_500_000), Some(UNIX_EPOCH + Duration::from_millis(1500)));
    }
}
