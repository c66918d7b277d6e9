//! The fault matrix: each fault is real, and for each the same is asked of the agent.
//!
//! - Every scrape answers within [`BOUND`], all through the fault and after it.
//! - No counter goes back while the agent lives.
//! - The figures are right during the fault and after it; the test of the fault says which.
//! - After the fault the agent and its children have as many threads, files and children as before it.
//!
//! Each test prints one line for the table of docs/reliability.md, which `tests/faults.sh` writes. The short ones run
//! with all other tests; the others take longer, and only that script runs them.

#![expect(clippy::float_cmp, reason = "counts and states are whole numbers")]

mod datastore;
mod disk;
mod node;
mod noise;
mod process;
mod soak;
mod web;

use crate::lab::agent::{Agent, Scrape};
use crate::lab::{self, http};
use std::collections::{BTreeMap, HashMap};
use std::fmt::Display;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const SECOND: Duration = Duration::from_secs(1);
/// How often the watch scrapes.
const EVERY: Duration = Duration::from_millis(200);
/// Every scrape ends within this, on a machine that runs the fault and its causes as well.
const BOUND: Duration = SECOND;
/// What the agent may use for longer than a fault: a blocking thread of the runtime ends after ten idle seconds.
const TIDY: Duration = Duration::from_secs(20);
/// So many threads more may stay: the runtime keeps them while blocking work finds them of use, and ends them when not.
const POOL: usize = 3;
/// For agents that are not about them: other tests' etcds would come and go in the figures.
const NO_ETCD: &str =
    "etcd: {enabled: false}\nregistry_keys: {enabled: false}\nvolume: {enabled: false}\n";
/// The same, for the disks that they lie on.
const OWN_DISK: &str =
    "fdatasync: {paths: [/var/tmp], interval: 1s}\nfilesystem: {paths: [/], interval: 1s}\n";
/// More memory than this is not taken by any fault.
const MEMORY: u64 = 32 << 20;

/// What the agent and its children use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Uses {
    threads: usize,
    files: usize,
    children: usize,
    /// Resident memory of the agent alone, in bytes.
    memory: u64,
}

impl Uses {
    /// Of a process and all below it. What ends meanwhile counts as nothing. The files of other programs are theirs:
    /// journalctl has each file of the journal open.
    fn of(pid: u32) -> Self {
        Self::below(pid, &std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default())
    }

    fn below(pid: u32, program: &Path) -> Self {
        let is_ours =
            std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == program);
        let entries = |name: &str| {
            std::fs::read_dir(format!("/proc/{pid}/{name}")).into_iter().flatten().flatten().count()
        };
        let pages = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
        let pages = pages.split(' ').nth(1).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
        let own = Self {
            threads: entries("task"),
            files: if is_ours { entries("fd") } else { 0 },
            children: 0,
            memory: pages * rustix::param::page_size() as u64,
        };
        let children = lab::process::children(pid).into_iter();
        children.map(|child| Self::below(child, program)).fold(own, |sum, child| Self {
            threads: sum.threads + child.threads,
            files: sum.files + child.files,
            children: sum.children + child.children + 1,
            memory: sum.memory,
        })
    }
}

/// What the watch has seen so far.
#[derive(Default)]
struct Seen {
    pid: u32,
    /// Scrapes that answered, and the slowest of them.
    scrapes: usize,
    slowest: Duration,
    /// What must not be.
    wrong: Vec<String>,
    /// No answer is expected now; counted up at each change.
    silence: u64,
    /// Counters by series, of the process that started at `born`.
    counters: HashMap<String, f64>,
    born: u64,
    memory: u64,
    end: bool,
}

impl Seen {
    fn is_silent(&self) -> bool {
        !self.silence.is_multiple_of(2)
    }

    fn compare(&mut self, scrape: &Scrape) {
        // A process that has just begun does not say yet since when it lives.
        let Some(born) = scrape.value("process_start_time_seconds", &[]).map(f64::to_bits) else {
            return;
        };
        if born != self.born {
            self.counters.clear();
            self.born = born;
        }
        for sample in &scrape.samples {
            let name = sample.name.as_str();
            if !["_total", "_count", "_bucket", "_sum"].iter().any(|end| name.ends_with(end)) {
                continue;
            }
            let series = format!("{name}{:?}", sample.labels);
            let before = self.counters.entry(series).or_insert(sample.value);
            if sample.value < *before {
                let (labels, now) = (&sample.labels, sample.value);
                self.wrong.push(format!("{name}{labels:?} went back from {before} to {now}"));
            }
            *before = sample.value;
        }
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Scrapes an agent all through a fault, and judges it at the end.
pub(crate) struct Watch {
    name: &'static str,
    did: String,
    bound: Duration,
    memory: u64,
    seen: Arc<Mutex<Seen>>,
    thread: Option<JoinHandle<()>>,
    before: Uses,
    repaired: Instant,
    recovered: Option<Duration>,
}

impl Watch {
    /// Waits until the agent has looked at everything once, and sees what it uses.
    #[track_caller]
    fn of(name: &'static str, agent: &Agent) -> Self {
        lab::wait_for("a first round of all samplers", 40 * SECOND, || {
            let ready = agent.get("/-/ready")?;
            if ready.status == 200 { Ok(()) } else { Err(ready.text()) }
        });
        Self::at(name, agent.address(), agent.pid())
    }

    /// The same for an agent that is ready, with this address and process id.
    #[track_caller]
    fn at(name: &'static str, address: SocketAddr, pid: u32) -> Self {
        // The first round's children are gone then.
        std::thread::sleep(SECOND / 2);
        let some: Vec<Uses> = (0..20)
            .map(|_| {
                std::thread::sleep(EVERY / 2);
                Uses::of(pid)
            })
            .collect();
        let least = |get: fn(&Uses) -> usize| some.iter().map(get).min().unwrap_or(0);
        let before = Uses {
            // As many as it needs now and then: the runtime keeps them while they are of use.
            threads: some.iter().map(|uses| uses.threads).max().unwrap_or(0),
            files: least(|uses| uses.files),
            children: least(|uses| uses.children),
            memory: some.iter().map(|uses| uses.memory).max().unwrap_or(0),
        };
        let seen = Arc::new(Mutex::new(Seen { pid, ..Seen::default() }));
        let shared = Arc::clone(&seen);
        let thread = std::thread::spawn(move || scrape_all_the_time(address, &shared));
        Self {
            name,
            did: String::new(),
            bound: BOUND,
            memory: MEMORY,
            seen,
            thread: Some(thread),
            before,
            repaired: Instant::now(),
            recovered: None,
        }
    }

    /// A fault for which another bound holds.
    fn within(mut self, bound: Duration) -> Self {
        self.bound = bound;
        self
    }

    /// Does what breaks; `what` is for the table.
    fn fault<T>(&mut self, what: impl Display, breaks: impl FnOnce() -> T) -> T {
        let and = if self.did.is_empty() { "" } else { "; " };
        self.did.push_str(&format!("{and}{what}"));
        eprintln!("{}: {what}", self.name);
        breaks()
    }

    /// From now on no answer is expected, until [`Self::hear`].
    fn mute(&self) {
        let mut seen = lock(&self.seen);
        assert!(!seen.is_silent());
        seen.silence += 1;
    }

    /// Answers are expected again, of this process.
    fn hear(&self, pid: u32) {
        let mut seen = lock(&self.seen);
        assert!(seen.is_silent());
        seen.silence += 1;
        seen.pid = pid;
    }

    /// Ends the fault: the recovery is measured from here.
    fn repair<T>(&mut self, repairs: impl FnOnce() -> T) -> T {
        let done = repairs();
        self.repaired = Instant::now();
        done
    }

    /// Waits until the figures are as they should be after the fault.
    #[track_caller]
    fn recovers(
        &mut self,
        agent: &Agent,
        shown: &str,
        limit: Duration,
        condition: impl Fn(&Scrape) -> bool,
    ) -> Scrape {
        let scrape = agent.wait_until("the figures after the fault", shown, limit, condition);
        self.recovered = Some(self.repaired.elapsed());
        scrape
    }

    /// Ends the scrapes and judges them: how many there were, and how long the slowest took.
    #[track_caller]
    fn ends(&mut self) -> (usize, Duration) {
        // Some more are judged after the fault; the one that is under way is the last.
        std::thread::sleep(SECOND);
        lock(&self.seen).end = true;
        self.thread.take().expect("it runs").join().expect("the watch does not panic");
        self.so_far()
    }

    /// Judges the scrapes until now.
    #[track_caller]
    fn so_far(&self) -> (usize, Duration) {
        let seen = lock(&self.seen);
        assert!(seen.wrong.is_empty(), "{}: {:#?}", self.name, seen.wrong);
        assert!(seen.scrapes > 3, "{}: only {} scrapes", self.name, seen.scrapes);
        assert!(
            seen.slowest <= self.bound,
            "{}: a scrape took {:?}, the bound is {:?}",
            self.name,
            seen.slowest,
            self.bound
        );
        (seen.scrapes, seen.slowest)
    }

    /// Judges, and prints the line of the table; `held` is what the test itself has checked.
    #[track_caller]
    fn holds(mut self, held: &str) {
        let recovered = self.recovered.unwrap_or_else(|| self.repaired.elapsed());
        let started = Instant::now();
        let pid = lock(&self.seen).pid;
        let mut after = Uses::of(pid);
        let before = self.before;
        let is_tidy = |after: &Uses| {
            after.threads <= before.threads + POOL
                && after.files <= before.files
                && after.children <= before.children
        };
        while !is_tidy(&after) && started.elapsed() < TIDY {
            std::thread::sleep(EVERY / 4);
            let now = Uses::of(pid);
            after = Uses {
                threads: after.threads.min(now.threads),
                files: after.files.min(now.files),
                children: after.children.min(now.children),
                memory: now.memory,
            };
        }
        self.ends();
        let seen = lock(&self.seen);
        assert!(is_tidy(&after), "{}: it used {before:?} and now {after:?}", self.name);
        assert!(
            seen.memory < before.memory + self.memory,
            "{}: memory went from {} to {} bytes",
            self.name,
            before.memory,
            seen.memory
        );
        let megabytes = |bytes: u64| bytes as f64 / 1e6;
        let mut row = format!("fault: | {} | {} ", self.name, self.did);
        row += &format!(
            "| {:.0} ms of {} ",
            (seen.slowest.as_secs_f64() * 1e3).max(1.0),
            seen.scrapes
        );
        row += &format!("| {:.1} s ", recovered.as_secs_f64());
        row += &format!(
            "| {} → {} | {} → {} | {:.0} → {:.0} ",
            before.threads,
            after.threads,
            before.files,
            after.files,
            megabytes(before.memory),
            megabytes(seen.memory.max(before.memory))
        );
        eprintln!("{row}| {held} |");
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        lock(&self.seen).end = true;
    }
}

fn scrape_all_the_time(address: SocketAddr, seen: &Mutex<Seen>) {
    loop {
        let (silence, pid) = {
            let seen = lock(seen);
            if seen.end {
                return;
            }
            (seen.silence, seen.pid)
        };
        let started = Instant::now();
        let answer = http::request(address, "GET", "/metrics", &[], 5 * SECOND);
        let took = started.elapsed();
        let memory = Uses::of(pid).memory;
        {
            let mut seen = lock(seen);
            seen.memory = seen.memory.max(memory);
            let parsed = answer.and_then(|answer| {
                let scrape = Scrape::parse(&answer.text())?;
                if answer.status == 200 { Ok(scrape) } else { Err(answer.status.to_string()) }
            });
            // What began or ended in a silence is not judged.
            let silent = seen.is_silent() || seen.silence != silence;
            match parsed {
                Ok(scrape) => {
                    if !silent {
                        seen.scrapes += 1;
                        seen.slowest = seen.slowest.max(took);
                    }
                    seen.compare(&scrape);
                }
                Err(_) if silent => {}
                Err(error) => seen.wrong.push(format!("a scrape failed after {took:?}: {error}")),
            }
        }
        std::thread::sleep(EVERY.saturating_sub(started.elapsed()));
    }
}

/// What the agent says of its samplers: `up` of each that runs.
fn ups(scrape: &Scrape) -> BTreeMap<String, bool> {
    let all = scrape.all("controlplane_sampler_up", &[]);
    all.iter().map(|sample| (sample.labels["sampler"].clone(), sample.value > 0.0)).collect()
}

/// Whether each sampler that was well in `before` has had a good run again since `since`, in Unix time.
fn all_ran(before: &Scrape, now: &Scrape, since: f64) -> bool {
    let name = "controlplane_sampler_last_success_timestamp_seconds";
    ups(before).into_iter().filter(|(_, up)| *up).all(|(sampler, _)| {
        let interval = "controlplane_sampler_interval_seconds";
        let labels = [("sampler", sampler.as_str())];
        // Those that run every few minutes say nothing here.
        now.value(interval, &labels).is_some_and(|interval| interval > 10.0)
            || now.value(name, &labels).is_some_and(|last| last > since)
    })
}

fn unix_now() -> f64 {
    std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs_f64()
}

fn path(path: &Path) -> String {
    path.display().to_string()
}
