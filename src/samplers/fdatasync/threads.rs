//! Threads of the datastore that are stuck in the kernel.
//!
//! Reads `/proc/PID/comm` of every process twice a minute, with the `mountinfo` of those that have the name of a datastore, and
//! `/proc/PID/task/TID/status` of the datastore's threads each time: none of them waits for a disk or for the process itself (`cmdline`
//! would). A thread in state D whose context switches have not moved since the last look has been
//! blocked all the while, in `write` as well as in `fdatasync`. dqlite's writes are asynchronous and
//! never show here.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::host::{Mounts, Origin};

/// How often `/proc` is searched for the datastore's processes.
const SCAN: Duration = Duration::from_secs(30);
/// Processes looked at.
const MAX_PROCESSES: usize = 16;
/// Threads looked at, of all processes.
const MAX_THREADS: usize = 1_024;

/// A thread that was in state D when last seen.
#[derive(Debug, Clone, Copy)]
struct Blocked {
    switches: u64,
    since: Instant,
}

/// Watches the threads of processes with these names.
#[derive(Debug)]
pub(super) struct Threads {
    proc: PathBuf,
    names: Vec<String>,
    datastore: Option<Origin>,
    processes: Vec<(u32, String)>,
    scanned: Option<Instant>,
    blocked: HashMap<(u32, u32), Blocked>,
}

impl Threads {
    /// Names are those of `comm`, at most 15 bytes; the datastore's directory is known where `datastore` says.
    pub(super) fn new(proc: PathBuf, names: Vec<String>, datastore: Option<Origin>) -> Self {
        let names = names.into_iter().map(|name| short(&name)).collect();
        Self {
            proc,
            names,
            datastore,
            processes: Vec::new(),
            scanned: None,
            blocked: HashMap::new(),
        }
    }

    /// For each process name that runs: how long its longest blocked thread has been blocked.
    pub(super) fn look(&mut self, now: Instant) -> Vec<(String, Duration)> {
        if self.scanned.is_none_or(|then| now.duration_since(then) >= SCAN) {
            self.processes = self.scan();
            self.scanned = Some(now);
        }
        let mut longest: Vec<(String, Duration)> = Vec::new();
        let mut still = HashMap::new();
        let mut left = MAX_THREADS;
        let mut gone = false;
        for (pid, name) in &self.processes {
            let Some(threads) = numbers(&self.proc.join(format!("{pid}/task"))) else {
                gone = true;
                continue;
            };
            let mut worst = Duration::ZERO;
            for tid in threads.take(left) {
                left -= 1;
                let status = self.proc.join(format!("{pid}/task/{tid}/status"));
                let Some(switches) = read(&status).as_deref().and_then(blocked_switches) else {
                    continue;
                };
                let before = self.blocked.get(&(*pid, tid)).filter(|b| b.switches == switches);
                let since = before.map_or(now, |before| before.since);
                worst = worst.max(now.duration_since(since));
                still.insert((*pid, tid), Blocked { switches, since });
            }
            match longest.iter_mut().find(|(known, _)| known == name) {
                Some((_, known)) => *known = worst.max(*known),
                None => longest.push((name.clone(), worst)),
            }
        }
        self.blocked = still;
        if gone {
            // It was restarted: look for the new one next time.
            self.scanned = None;
        }
        longest
    }

    /// The processes as last seen.
    pub(super) fn processes(&self) -> &[(u32, String)] {
        &self.processes
    }

    fn scan(&self) -> Vec<(u32, String)> {
        let comm = |pid| read(&self.proc.join(format!("{pid}/comm")));
        numbers(&self.proc)
            .into_iter()
            .flatten()
            .filter_map(|pid| Some((pid, comm(pid)?.trim_end().to_owned())))
            .filter(|(_, name)| self.names.contains(name))
            .filter(|(pid, _)| !self.is_foreign(*pid))
            .take(MAX_PROCESSES)
            .collect()
    }

    /// Whether a process cannot see the datastore's directory: a pod may run an etcd of its own.
    fn is_foreign(&self, pid: u32) -> bool {
        let Some(datastore) = &self.datastore else { return false };
        Mounts::of_process(&self.proc, pid).is_ok_and(|mounts| !mounts.show(datastore))
    }
}

/// What the kernel keeps of a name.
fn short(name: &str) -> String {
    let mut end = name.len().min(15);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    name[..end].to_owned()
}

fn read(path: &Path) -> Option<String> {
    fs::read(path).ok().map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// The entries of a directory that are numbers; nothing when it is gone.
pub(super) fn numbers(directory: &Path) -> Option<impl Iterator<Item = u32> + use<>> {
    let entries = fs::read_dir(directory).ok()?;
    Some(entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()))
}

/// All context switches of a thread in state D, else nothing.
fn blocked_switches(status: &str) -> Option<u64> {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
    field("State:")?.trim_start().starts_with('D').then_some(())?;
    let count = |name| field(name).and_then(|n| n.trim().parse::<u64>().ok());
    let voluntary = count("voluntary_ctxt_switches:")?;
    Some(voluntary.saturating_add(count("nonvoluntary_ctxt_switches:")?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Captured on Linux 6.18, cut down.
    const STATUS: &str = "Name:\tetcd\nUmask:\t0022\nState:\tD (disk sleep)\nTgid:\t12176\n\
        Threads:\t1\nSigQ:\t1/96365\nMems_allowed_list:\t0\nvoluntary_ctxt_switches:\t209\n\
        nonvoluntary_ctxt_switches:\t24\n";

    struct Proc(tempfile::TempDir);

    impl Proc {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn process(&self, pid: u32, name: &str) {
            fs::create_dir_all(self.0.path().join(format!("{pid}/task"))).unwrap();
            fs::write(self.0.path().join(format!("{pid}/comm")), format!("{name}\n")).unwrap();
        }

        fn thread(&self, pid: u32, tid: u32, status: &str) {
            let dir = self.0.path().join(format!("{pid}/task/{tid}"));
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("status"), status).unwrap();
        }

        fn threads(&self) -> Threads {
            Threads::new(self.0.path().into(), vec!["etcd".into(), "k8s-dqlite".into()], None)
        }
    }

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn a_thread_that_stays_in_state_d_without_a_switch_ages_from_when_it_was_first_seen() {
        let proc = Proc::new();
        proc.process(10, "etcd");
        proc.thread(10, 10, "State:\tS (sleeping)\nvoluntary_ctxt_switches:\t1\n");
        proc.thread(10, 11, STATUS);
        let (mut threads, start) = (proc.threads(), Instant::now());
        assert_eq!(threads.look(start), [("etcd".to_owned(), Duration::ZERO)]);
        assert_eq!(threads.look(start + seconds(2)), [("etcd".to_owned(), seconds(2))]);
        assert_eq!(threads.look(start + seconds(7)), [("etcd".to_owned(), seconds(7))]);
        proc.thread(10, 11, &STATUS.replace("209", "210"));
        assert_eq!(threads.look(start + seconds(8)), [("etcd".to_owned(), Duration::ZERO)]);
        proc.thread(10, 11, &STATUS.replace('D', "R").replace("209", "210"));
        assert_eq!(threads.look(start + seconds(9)), [("etcd".to_owned(), Duration::ZERO)]);
    }

    #[test]
    fn only_the_datastore_s_processes_count_and_one_that_is_not_there_has_no_figure() {
        let proc = Proc::new();
        proc.process(10, "bash");
        proc.thread(10, 10, STATUS);
        assert_eq!(proc.threads().look(Instant::now()), []);
        assert_eq!(Threads::new("/nonexistent".into(), Vec::new(), None).look(Instant::now()), []);
    }

    #[test]
    fn a_restarted_process_is_found_at_the_look_after_the_next() {
        let proc = Proc::new();
        proc.process(10, "etcd");
        let (mut threads, start) = (proc.threads(), Instant::now());
        assert_eq!(threads.look(start).len(), 1);
        fs::remove_dir_all(proc.0.path().join("10")).unwrap();
        proc.process(20, "etcd");
        assert_eq!(threads.look(start + seconds(1)), []);
        assert_eq!(threads.look(start + seconds(2)).len(), 1);
    }

    #[test]
    fn two_processes_of_one_name_show_the_worse() {
        let proc = Proc::new();
        for pid in [10, 20] {
            proc.process(pid, "etcd");
        }
        proc.thread(10, 10, STATUS);
        let (mut threads, start) = (proc.threads(), Instant::now());
        threads.look(start);
        assert_eq!(threads.look(start + seconds(3)), [("etcd".to_owned(), seconds(3))]);
    }

    #[test]
    fn a_status_without_its_fields_is_not_blocked() {
        assert_eq!(blocked_switches(STATUS), Some(233));
        for text in ["", "State:\tD", "State:\tD\nvoluntary_ctxt_switches:\tx\n", "State:\n"] {
            assert_eq!(blocked_switches(text), None, "{text:?}");
        }
    }

    #[test]
    fn long_names_are_cut_as_the_kernel_cuts_them() {
        assert_eq!(short("kube-apiserver-with-etcd"), "kube-apiserver-");
        assert_eq!(short("etcd"), "etcd");
    }

    proptest! {
        #[test]
        fn any_status_is_survived(status in "((State|voluntary_ctxt_switches|x):\\PC{0,24}\n){0,6}") {
            blocked_switches(&status);
        }
    }
}
