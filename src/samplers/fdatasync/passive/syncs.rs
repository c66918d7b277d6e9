//! The datastore's calls that sync: `fdatasync`, `fsync`, and the asynchronous writes of dqlite.
//!
//! Reads the maps of `programs.rs`, and asks `/proc/PID/fd` which file a descriptor is: WAL, database or another, which does not count:
//! k3s syncs much that is not the datastore's.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use rustix::time::{ClockId, clock_gettime};

use crate::bpf::btf::{self, Wanted};
use crate::bpf::{self, Attached, Hook, Map};
use crate::sample::Batch;

use super::super::threads::numbers;
use super::super::{
    DATASTORE_DURATION, DATASTORE_FAILURES, DATASTORE_INFLIGHT, DATASTORE_LAST_FAILURE,
    DATASTORE_STALLS,
};
use super::figures::{Figures, Reader};
use super::programs::{self, Call, MAX_FLIGHTS, MAX_SYNCS, MAX_TARGETS, Maps, Timed, Way, number};

/// The programs while they are attached, and what was read of them.
#[derive(Debug)]
pub(super) struct Syncs {
    pub(super) way: Way,
    /// Why asynchronous writes are not seen.
    pub(super) refused: Option<String>,
    _programs: Vec<Attached>,
    targets: HashMap<u32, String>,
    reader: Reader,
    /// Which file a descriptor was last.
    files: HashMap<[u8; 8], &'static str>,
}

/// A file that is neither log nor database.
const OTHER: &str = "other";
/// A datastore that serves a cluster syncs every few seconds. One of which nothing has come for so long is not seen.
const FED: Duration = Duration::from_mins(5);
/// A call that has taken so long is looked at, whether its thread still waits for a disk.
const OLD: Duration = Duration::from_secs(1);

/// What was counted so far.
#[derive(Debug, Default)]
pub(super) struct Counted {
    figures: BTreeMap<(String, &'static str, Call), Figures>,
    /// Of each process that is watched now.
    ages: BTreeMap<String, Duration>,
    last_failures: BTreeMap<String, SystemTime>,
    /// When something was counted last.
    last: Option<Instant>,
}

impl Counted {
    /// Whether the datastore's syncs arrive here.
    pub(super) fn is_fed(&self) -> bool {
        self.last.is_some_and(|last| last.elapsed() < FED)
    }

    /// Tells all of it; ages only while they are `seen`.
    pub(super) fn export(&self, seen: bool, out: &mut Batch) {
        for ((process, file, call), figures) in &self.figures {
            let labels = [process.as_str(), *file, call.as_str()];
            out.histogram(&DATASTORE_DURATION, labels, &figures.well);
            out.push(&DATASTORE_FAILURES, labels, figures.failures);
        }
        let mut stalls: BTreeMap<&str, u64> = BTreeMap::new();
        for ((process, file, _), figures) in &self.figures {
            if *file != "db" {
                *stalls.entry(process).or_default() += figures.stalls;
            }
        }
        for (process, count) in stalls {
            out.push(&DATASTORE_STALLS, [process, "1"], count);
        }
        for (process, when) in &self.last_failures {
            out.push(&DATASTORE_LAST_FAILURE, [process], *when);
        }
        for (process, age) in self.ages.iter().filter(|_| seen) {
            out.push(&DATASTORE_INFLIGHT, [process], *age);
        }
    }
}

/// Attaches programs this way; the one at the return of a call first, which ends what the other begins.
fn attach_all(
    all: &[Timed],
    way: Way,
    types: Result<&[u8], &io::Error>,
) -> io::Result<Vec<Attached>> {
    let functions = match (way, types) {
        (Way::Tracepoint, _) => vec![None; all.len()],
        (Way::Function, Err(error)) => {
            return Err(io::Error::new(error.kind(), error.to_string()));
        }
        (Way::Function, Ok(types)) => {
            let names: Vec<String> =
                all.iter().map(|timed| programs::function(timed.call)).collect();
            let wanted: Vec<_> = names.iter().map(|name| Wanted::Function(name)).collect();
            let found = btf::find(types, &wanted)?;
            if let Some((name, _)) = names.iter().zip(&found).find(|(_, number)| number.is_none()) {
                return Err(io::Error::other(format!("this kernel has no {name}")));
            }
            found
        }
    };
    let mut attached = Vec::new();
    for (timed, function) in all.iter().zip(functions) {
        let pair = [("exit", timed.leave.as_ref()), ("enter", Some(&timed.enter))];
        for (kind, code) in pair {
            let Some(code) = code else { continue };
            let name = format!("sys_{kind}_{}", timed.call);
            let hook = match function {
                Some(number) if kind == "exit" => Hook::Exit(number),
                Some(number) => Hook::Entry(number),
                None => Hook::Tracepoint(bpf::tracepoint("syscalls", &name)?),
            };
            attached.push(bpf::attach(&name, hook, code)?);
        }
    }
    Ok(attached)
}

impl Syncs {
    /// Attaches the programs, by tracepoints only where they are `allowed`; `types` are the kernel's own.
    pub(super) fn attach(
        maps: &Maps,
        types: &io::Result<Vec<u8>>,
        allowed: bool,
    ) -> io::Result<Self> {
        let types = types.as_deref();
        let (way, mut attached) =
            match attach_all(&programs::syncs(maps, Way::Function), Way::Function, types) {
                Ok(attached) => (Way::Function, attached),
                Err(error) if allowed => {
                    let way = Way::Tracepoint;
                    match attach_all(&programs::syncs(maps, way), way, types) {
                        Ok(attached) => (way, attached),
                        Err(other) => return Err(io::Error::other(format!("{error}; {other}"))),
                    }
                }
                Err(error) => return Err(error),
            };
        // A kernel without asynchronous writes, or too old to tell their answers, has the rest.
        let refused = match attach_all(&programs::writes(maps, way), way, types) {
            Ok(more) => {
                attached.extend(more);
                None
            }
            Err(error) => Some(format!("asynchronous writes, as dqlite's, are not seen: {error}")),
        };
        tracing::info!(?way, "the datastore's own syncs are seen");
        Ok(Self {
            way,
            refused,
            _programs: attached,
            targets: HashMap::new(),
            reader: Reader::default(),
            files: HashMap::new(),
        })
    }

    /// Adds what these processes have synced since the last look.
    pub(super) fn look(
        &mut self,
        maps: &Maps,
        processes: &[(u32, String)],
        proc: &Path,
        bounds: &[f64],
        counted: &mut Counted,
    ) -> io::Result<()> {
        // What a process did last is told under its name, and then it is forgotten.
        self.read(maps, proc, bounds, counted)?;
        self.follow(maps, processes, proc);
        counted.ages = self.ages(maps, proc)?;
        Ok(())
    }

    /// Watches these processes and no others.
    fn follow(&mut self, maps: &Maps, processes: &[(u32, String)], proc: &Path) {
        let now: HashMap<u32, String> = processes.iter().take(MAX_TARGETS).cloned().collect();
        for gone in self.targets.keys().filter(|pid| !now.contains_key(pid)) {
            forget(&maps.targets, &gone.to_ne_bytes());
        }
        for pid in now.keys().filter(|pid| !self.targets.contains_key(pid)) {
            if let Err(error) = maps.targets.set(&pid.to_ne_bytes(), &[0; 4]) {
                tracing::debug!(%error, pid, "a process is not watched");
            }
            begun_before(maps, *pid, proc);
        }
        self.targets = now;
    }

    fn read(
        &mut self,
        maps: &Maps,
        proc: &Path,
        bounds: &[f64],
        counted: &mut Counted,
    ) -> io::Result<()> {
        for (key, growth) in self.reader.look(&maps.syncs, MAX_SYNCS)? {
            let Some((call, _)) = Call::of(number(&key, 4)) else { continue };
            let (file, is_closed) = self.file(key, proc);
            let name = self.targets.get(&number(&key, 0));
            if let (true, Some(name)) = (growth.is_new() && file != OTHER, name) {
                let figures = counted.figures.entry((name.clone(), file, call)).or_default();
                let failures = figures.failures;
                growth.add_to(figures, bounds);
                counted.last = Some(Instant::now());
                if figures.failures > failures {
                    counted.last_failures.insert(name.clone(), SystemTime::now());
                }
            }
            // A process that is gone, or a file that has been closed since the last look, needs no room.
            let is_over = !growth.is_new() && is_closed && call != Call::AioWrite;
            if name.is_none() || is_over {
                forget(&maps.syncs, &key);
                self.reader.forget(key);
                self.files.remove(&key);
            }
        }
        Ok(())
    }

    /// Which file the descriptor of a key is, or was when it was last there, and whether it is closed.
    fn file(&mut self, key: [u8; 8], proc: &Path) -> (&'static str, bool) {
        let (pid, Some((call, fd))) = (number(&key, 0), Call::of(number(&key, 4))) else {
            return (OTHER, true);
        };
        if call == Call::AioWrite {
            return ("wal", false);
        }
        match std::fs::read_link(proc.join(format!("{pid}/fd/{fd}"))) {
            Ok(link) => {
                let file = kind_of(&link);
                self.files.insert(key, file);
                (file, false)
            }
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => ("unknown", false),
            Err(_) => (self.files.get(&key).copied().unwrap_or(OTHER), true),
        }
    }

    /// For each process, how long the oldest call that is under way has taken.
    fn ages(&mut self, maps: &Maps, proc: &Path) -> io::Result<BTreeMap<String, Duration>> {
        let now = now();
        let mut ages: BTreeMap<String, Duration> =
            self.targets.values().map(|name| (name.clone(), Duration::ZERO)).collect();
        let mut see = |name: Option<&String>, age: Duration| {
            if let Some(oldest) = name.and_then(|name| ages.get_mut(name)) {
                *oldest = age.max(*oldest);
            }
        };
        let age = |begun: u64| Duration::from_nanos(now.saturating_sub(begun));
        let mut value = [0; 16];
        for key in maps.inflight.keys(2 * MAX_FLIGHTS)? {
            if !maps.inflight.get(&key, &mut value)? {
                continue;
            }
            // The thread's number, and above it that of its process.
            let (tid, pid) = (number(&key, 0), number(&key, 4));
            let age = age(value[..8].try_into().map_or(0, u64::from_ne_bytes));
            // One that was killed in the middle never returns, and a return may go unseen: such a thread waits for no disk.
            if age >= OLD && !waits(proc, pid, tid) {
                forget(&maps.inflight, &key);
                continue;
            }
            let of = [pid.to_ne_bytes(), number(&value, 8).to_ne_bytes()].concat();
            let file = of[..].try_into().map_or(OTHER, |key| self.file(key, proc).0);
            if file != OTHER {
                see(self.targets.get(&pid), age);
            }
        }
        let mut begun = [0; 8];
        for key in maps.writes.keys(2 * MAX_FLIGHTS)? {
            let pid = number(&key, 8);
            if !self.targets.contains_key(&pid) || !proc.join(pid.to_string()).exists() {
                forget(&maps.writes, &key);
            } else if maps.writes.get(&key, &mut begun)? {
                see(self.targets.get(&pid), age(u64::from_ne_bytes(begun)));
            }
        }
        Ok(ages)
    }
}

/// What is not in the map any more is gone as well.
fn forget(map: &Map, key: &[u8]) {
    if let Err(error) = map.remove(key) {
        tracing::debug!(%error, "a key stays in a map");
    }
}

/// Whether a thread is in state D, in which the kernel waits for a disk, or runs.
fn waits(proc: &Path, pid: u32, tid: u32) -> bool {
    let stat =
        std::fs::read_to_string(proc.join(format!("{pid}/task/{tid}/stat"))).unwrap_or_default();
    // The name in brackets may hold anything.
    stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with(['D', 'R']))
}

/// A call that was under way before the programs were is told by `/proc`, where that is open to us; it counts from now.
fn begun_before(maps: &Maps, pid: u32, proc: &Path) {
    let threads = proc.join(format!("{pid}/task"));
    for tid in numbers(&threads).into_iter().flatten() {
        let file = threads.join(format!("{tid}/syscall"));
        let look = || std::fs::read_to_string(&file).unwrap_or_default();
        let text = look();
        if let Some(call) = under_way(&text) {
            let key = (u64::from(pid) << 32 | u64::from(tid)).to_ne_bytes();
            let value = [now().to_ne_bytes(), u64::from(call).to_ne_bytes()].concat();
            // It may have returned meanwhile.
            if maps.inflight.set(&key, &value).is_ok() && look() != text {
                forget(&maps.inflight, &key);
            }
        }
    }
}

/// The clock of the programs: monotonic, in nanoseconds.
fn now() -> u64 {
    let now = Duration::try_from(clock_gettime(ClockId::Monotonic)).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

/// The value in `inflight` of what `/proc/PID/task/TID/syscall` tells, if it is one of ours.
fn under_way(text: &str) -> Option<u32> {
    let (fdatasync, fsync) = if cfg!(target_arch = "x86_64") { (75, 74) } else { (83, 82) };
    let mut words = text.split_ascii_whitespace();
    let call: u32 = words.next()?.parse().ok()?;
    let fd = u32::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok()?;
    let call = match call {
        n if n == fdatasync => Call::Fdatasync,
        n if n == fsync => Call::Fsync,
        _ => return None,
    };
    Some(call.key(fd))
}

/// The value of the label `file`: etcd's log has segments `*.wal` and the next one as `wal/*.tmp`, SQLite's ends with `-wal`.
fn kind_of(path: &Path) -> &'static str {
    let path = path.to_string_lossy();
    let path = path.trim_end_matches(" (deleted)");
    let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
    let is = |end: &str| std::path::Path::new(name).extension().is_some_and(|found| found == end);
    if is("wal") || name.ends_with("-wal") || name == "wal" || folder.ends_with("/wal") {
        "wal"
    } else if is("db") || name == "db" && folder.ends_with("/snap") {
        "db"
    } else {
        OTHER
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_told_apart_as_the_datastores_name_them() {
        for (path, expected) in [
            ("/var/lib/etcd/member/wal/0000000000000000-0000000000000000.wal", "wal"),
            ("/var/lib/etcd/member/wal/0.tmp", "wal"),
            ("/var/lib/etcd/member/wal", "wal"),
            ("/var/lib/etcd/member/wal/0.tmp (deleted)", "wal"),
            ("/var/lib/etcd/member/snap/db", "db"),
            ("/var/lib/etcd/member/snap", "other"),
            ("/var/lib/etcd/member/snap/0000000000000002-0000000000002711.snap", "other"),
            ("/var/lib/rancher/k3s/server/db/state.db-wal", "wal"),
            ("/var/lib/rancher/k3s/server/db/state.db", "db"),
            ("/var/snap/microk8s/current/var/kubernetes/backend/metadata1", "other"),
            ("socket:[1234]", "other"),
        ] {
            assert_eq!(kind_of(Path::new(path)), expected, "{path}");
        }
    }

    #[test]
    fn a_call_that_is_under_way_is_read_from_its_line() {
        let number = if cfg!(target_arch = "x86_64") { 75 } else { 83 };
        let text = format!("{number} 0x3 0x0 0x0 0x0 0x0 0x0 0x7ffe 0x7f1c");
        assert_eq!(under_way(&text).and_then(Call::of), Some((Call::Fdatasync, 3)));
        for text in ["running", "", "202 0x3", "75", "75 3"] {
            assert_eq!(under_way(text), None, "{text}");
        }
    }
}
