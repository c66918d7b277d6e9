//! One task per sampler: jitter, interval, deadline, single flight.
//!
//! A run owns its sampler and hands it back with the result, so while a run hangs nobody can start
//! it again, and no flag is needed. A run that passes its deadline (interval + 2 × timeout) counts as
//! failed; its late result is accepted all the same. A panic is a failed run, and the sampler is
//! built anew. When the options or the facts of a sampler change, its task ends with its run, and
//! the next begins.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::child::{self, ChildError};
use crate::config::Config;
use crate::host::{Facts, Host};
use crate::sample::{Batch, SampleError, WireBatch, WireError};
use crate::sampler::{AsyncSampler, BlockingSampler, Build, Driver, Options, SamplerDef};
use crate::samplers;
use crate::self_metrics::State;
use crate::store::Store;

/// The tasks of all samplers.
pub struct Scheduler {
    store: Arc<Store>,
    tasks: HashMap<&'static str, Task>,
    /// Tasks that were told to end and not replaced: a run that hangs may still be under way in one, and the next waits
    /// for it.
    ending: HashMap<&'static str, JoinHandle<()>>,
}

struct Task {
    /// What the sampler was built from.
    inputs: String,
    stop: watch::Sender<bool>,
    handle: JoinHandle<()>,
}

/// Everything a child needs to build and run one sampler.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Question {
    options: Options,
    rootfs: std::path::PathBuf,
    facts: Facts,
}

/// What the child answers.
type Answer = Result<WireBatch, WireError>;

impl Scheduler {
    /// A scheduler that runs nothing yet.
    pub fn new(store: Arc<Store>) -> Self {
        Self { store, tasks: HashMap::new(), ending: HashMap::new() }
    }

    /// Starts, stops and rebuilds samplers so that they fit this configuration and this node.
    /// Those whose options and facts are the same go on untouched.
    pub fn apply(&mut self, config: &Config, host: &Host) {
        for (name, def) in samplers::ALL {
            self.fit(name, def, config.samplers.get(name).and_then(Option::as_ref), host);
        }
        self.store.statuses().planned();
        self.store.touch();
    }

    /// Starts, stops or rebuilds one sampler; `options` are none when it is switched off.
    fn fit(
        &mut self,
        name: &'static str,
        def: &'static SamplerDef,
        options: Option<&Options>,
        host: &Host,
    ) {
        let inputs =
            format!("{options:?} {} {}", (def.uses)(host.facts()), host.rootfs().display());
        if self.tasks.get(name).is_some_and(|task| task.inputs == inputs) {
            return;
        }
        // It is built while the one before is still there: what that one has counted ends with it.
        let built = options.map(|options| (options, (def.build)(options, host)));
        let before = self.tasks.remove(name).map(|task| {
            // A receiver that is gone has ended already.
            task.stop.send_replace(true);
            task.handle
        });
        let before = before.or_else(|| self.ending.remove(name));
        let (state, why) = match built {
            Some((options, Ok(Build::Run(driver)))) => {
                self.store.statuses().runs(name, options.interval);
                let (stop, stopped) = watch::channel(false);
                let run = Run {
                    name,
                    def,
                    options: options.clone(),
                    host: host.clone(),
                    store: Arc::clone(&self.store),
                };
                let handle = tokio::spawn(run.forever(driver, before, stopped));
                self.tasks.insert(name, Task { inputs, stop, handle });
                return;
            }
            Some((_, Ok(Build::NotApplicable(why)))) => (State::NotApplicable, why),
            Some((_, Err(error))) => {
                // The configuration was checked when it was loaded, so this is rare.
                tracing::error!(sampler = name, key = error.key, %error, "cannot be built");
                (State::NotApplicable, error.to_string())
            }
            None => (State::Off, format!("switched off by `{name}.enabled: false`")),
        };
        if let Some(before) = before.filter(|task| !task.is_finished()) {
            self.ending.insert(name, before);
        }
        self.store.statuses().rests(name, state, &why);
        self.store.remove(name);
    }
}

/// One sampler's task.
struct Run {
    name: &'static str,
    def: &'static SamplerDef,
    options: Options,
    host: Host,
    store: Arc<Store>,
}

/// What a run hands back.
struct Outcome {
    driver: Driver,
    batch: Batch,
    result: Result<(), SampleError>,
}

impl Run {
    async fn forever(
        self,
        driver: Driver,
        before: Option<JoinHandle<()>>,
        mut stopped: watch::Receiver<bool>,
    ) {
        if let Some(before) = before {
            // The run of the sampler that this one replaces ends first, however long it takes, and is seen to.
            // A panic in it has been counted there.
            if !before.is_finished() {
                self.store.statuses().waits(self.name);
            }
            drop(before.await);
            self.store.statuses().idle(self.name);
        }
        if *stopped.borrow() {
            return;
        }
        // Samplers that start together would touch the same disk and bus at the same moment for
        // ever; the first wait is short, so that the first scrape shows something.
        let first =
            self.options.interval.min(Duration::from_secs(1)).mul_f64(fastrand::f64() / 2.0);
        let slot = child::Slot::default();
        let mut driver = Some(driver);
        let mut wait = first;
        loop {
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                _ = stopped.wait_for(|stop| *stop) => return,
            }
            let started = Instant::now();
            if driver.is_none() {
                driver = match (self.def.build)(&self.options, &self.host) {
                    Ok(Build::Run(driver)) => Some(driver),
                    _ => return,
                };
            }
            if let Some(ready) = driver.take() {
                driver = self.once(ready, &slot).await;
            }
            let next = self.options.interval.mul_f64(0.95 + fastrand::f64() / 10.0);
            wait = next.saturating_sub(started.elapsed());
        }
    }

    /// One run; returns the sampler, or nothing if it panicked.
    async fn once(&self, driver: Driver, slot: &child::Slot) -> Option<Driver> {
        let statuses = self.store.statuses();
        statuses.begin(self.name);
        let deadline = self.options.interval + 2 * self.options.timeout;
        let mut run = self.start(driver, slot.clone(), deadline);
        let ended = if let Ok(ended) = tokio::time::timeout(deadline, &mut run).await {
            ended
        } else {
            let what = format!("the run has not ended within {deadline:?}");
            if statuses.overdue(self.name, &what) != Some(false) {
                tracing::warn!(sampler = self.name, reason = "deadline", error = what, "failing");
            }
            self.store.touch();
            run.await
        };
        match ended {
            Ok(Outcome { driver, batch, result }) => {
                let before = statuses.end(self.name, Some(&batch), result.as_ref().err(), false);
                if statuses.resting(self.name) {
                    return Some(driver);
                }
                self.log_change(before, result.as_ref().err());
                if matches!(result, Ok(()) | Err(SampleError::Blind(_))) {
                    let new = self.store.put(self.name, batch, self.options.interval);
                    if statuses.resting(self.name) {
                        // It was told so at this very moment.
                        self.store.remove(self.name);
                    }
                    // A child has no log of its own.
                    if matches!(driver, Driver::Isolated(_)) {
                        for event in new {
                            tracing::warn!(
                                sampler = self.name,
                                kind = event.kind,
                                "{}",
                                event.text
                            );
                        }
                    }
                } else {
                    self.store.touch();
                }
                Some(driver)
            }
            Err(error) => {
                if statuses.end(self.name, None, None, true) != Some(false) {
                    tracing::warn!(sampler = self.name, reason = "panic", %error, "failing");
                }
                self.store.touch();
                None
            }
        }
    }

    fn start(&self, driver: Driver, slot: child::Slot, deadline: Duration) -> JoinHandle<Outcome> {
        match driver {
            Driver::Async(mut sampler) => tokio::spawn(async move {
                let mut batch = Batch::default();
                let result = AsyncSampler::sample(&mut *sampler, &mut batch).await;
                Outcome { driver: Driver::Async(sampler), batch, result }
            }),
            Driver::Blocking(mut sampler) =>
            {
                #[expect(
                    clippy::disallowed_methods,
                    reason = "the one place that starts threads: single flight by ownership"
                )]
                tokio::task::spawn_blocking(move || {
                    let mut batch = Batch::default();
                    let result = BlockingSampler::sample(&mut *sampler, &mut batch);
                    Outcome { driver: Driver::Blocking(sampler), batch, result }
                })
            }
            Driver::Isolated(sampler) => {
                let question = Question {
                    options: self.options.clone(),
                    rootfs: self.host.rootfs().to_owned(),
                    facts: self.host.facts().clone(),
                };
                let (name, catalog) = (self.name, self.def.metrics);
                tokio::spawn(async move {
                    let asked = slot.ask::<Answer>(&["sampler", name], &question, deadline).await;
                    // Held by a sick disk: this run lasts as long as its child does.
                    slot.reaped().await;
                    let (batch, result) = match asked {
                        Ok(Ok(wire)) => (Batch::from_wire(wire, catalog), Ok(())),
                        Ok(Err(error)) => (Batch::default(), Err(SampleError::Wire(error))),
                        Err(ChildError::Timeout(after)) => {
                            let what = "child process".into();
                            (Batch::default(), Err(SampleError::Timeout { what, after }))
                        }
                        Err(error) => {
                            (Batch::default(), Err(SampleError::Child(error.to_string())))
                        }
                    };
                    Outcome { driver: Driver::Isolated(sampler), batch, result }
                })
            }
        }
    }

    /// One line when a sampler starts to fail, and one when it works again.
    fn log_change(&self, before: Option<bool>, error: Option<&SampleError>) {
        match (before, error) {
            (None | Some(true), Some(error)) => {
                tracing::warn!(sampler = self.name, reason = error.reason(), %error, "failing");
            }
            (Some(false), None) => tracing::info!(sampler = self.name, "works again"),
            _ => {}
        }
    }
}

/// The child's side of [`Driver::Isolated`]: runs the sampler `name` once.
///
/// # Errors
///
/// When there is no such sampler, or the question cannot be read or answered.
pub fn run_isolated(name: &str) -> anyhow::Result<()> {
    let def = samplers::find(name).ok_or_else(|| anyhow::anyhow!("no sampler {name:?}"))?;
    child::answer(|question: Question| -> Answer {
        let host = Host::at(question.rootfs).with_facts(question.facts);
        let child = |text: String| SampleError::Child(text).to_wire();
        match (def.build)(&question.options, &host) {
            Ok(Build::Run(Driver::Isolated(mut sampler))) => {
                let mut batch = Batch::default();
                sampler.sample(&mut batch).map_err(|error| error.to_wire())?;
                Ok(batch.into_wire())
            }
            Ok(_) => Err(child("this sampler does not run in a child".into())),
            Err(error) => Err(child(error.to_string())),
        }
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU64, Ordering};

    use async_trait::async_trait;
    use tokio::sync::Semaphore;

    use super::*;
    use crate::metric::Metric;
    use crate::self_metrics::Statuses;

    static VALUE: Metric<0> = Metric::gauge("process_threads", "h", []);

    /// What the test's sampler does in its next run.
    #[derive(Clone, Copy, PartialEq)]
    enum Next {
        Succeed(u64),
        Fail,
        Panic,
        /// Wait until the gate opens, then succeed.
        Hang,
    }

    /// The tests that follow a script take turns.
    static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    static NEXT: Mutex<Next> = Mutex::new(Next::Fail);
    static GATE: Semaphore = Semaphore::const_new(0);
    static STARTED: AtomicU64 = AtomicU64::new(0);

    struct Scripted;

    #[async_trait]
    impl AsyncSampler for Scripted {
        async fn sample(&mut self, out: &mut Batch) -> Result<(), SampleError> {
            STARTED.fetch_add(1, Ordering::Relaxed);
            let next = *NEXT.lock().unwrap();
            match next {
                Next::Succeed(value) => out.push(&VALUE, [], value),
                Next::Fail => return Err(SampleError::call("peer", "no")),
                Next::Panic => panic!("as the test wants"),
                Next::Hang => {
                    GATE.acquire().await.unwrap().forget();
                    out.push(&VALUE, [], 99u64);
                }
            }
            Ok(())
        }
    }

    static DEF: SamplerDef = SamplerDef {
        about: "",
        interval: Duration::from_secs(10),
        timeout: Duration::from_secs(1),
        metrics: &[VALUE.desc()],
        defaults: || serde_json::json!({}),
        uses: |_| serde_json::Value::Null,
        build: |_, _| Ok(Build::tasked(Scripted)),
        cost: "",
    };

    #[tokio::test(start_paused = true)]
    async fn a_run_is_started_once_counted_once_and_its_late_result_is_accepted() {
        let _turn = TURN.lock().await;
        let store = Arc::new(Store::new(Arc::new(Statuses::default())));
        let options =
            Options { interval: DEF.interval, timeout: DEF.timeout, own: serde_json::Map::new() };
        let run = Run {
            name: "exporter",
            def: &DEF,
            options,
            host: Host::at("/"),
            store: Arc::clone(&store),
        };
        let (stop, stopped) = watch::channel(false);
        store.statuses().runs("exporter", DEF.interval);
        *NEXT.lock().unwrap() = Next::Succeed(1);
        let task = tokio::spawn(run.forever(Driver::Async(Box::new(Scripted)), None, stopped));
        let status = || store.statuses().all().remove("exporter").unwrap();
        let failures = |reason: &str| {
            let name = "controlplane_sampler_failures_total";
            store.value(name, &["exporter", reason])
        };
        let value = || store.value("process_threads", &[]);

        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!((status().up, value()), (Some(true), Some(1.0)), "the first run is at once");

        *NEXT.lock().unwrap() = Next::Fail;
        tokio::time::sleep(Duration::from_secs(11)).await;
        assert_eq!((status().up, failures("call")), (Some(false), Some(1.0)));
        assert_eq!(value(), Some(1.0), "the batch of a failed run is dropped, the old one stays");

        *NEXT.lock().unwrap() = Next::Panic;
        tokio::time::sleep(Duration::from_secs(11)).await;
        assert_eq!((status().up, failures("panic")), (Some(false), Some(1.0)));

        *NEXT.lock().unwrap() = Next::Succeed(2);
        tokio::time::sleep(Duration::from_secs(11)).await;
        assert_eq!((status().up, value()), (Some(true), Some(2.0)), "built anew after a panic");

        *NEXT.lock().unwrap() = Next::Hang;
        let before = STARTED.load(Ordering::Relaxed);
        tokio::time::sleep(Duration::from_secs(50)).await;
        assert_eq!(STARTED.load(Ordering::Relaxed), before + 1, "a hung run is not started again");
        assert_eq!((status().up, failures("deadline")), (Some(false), Some(1.0)));
        assert!(status().inflight.is_some(), "its age grows");

        GATE.add_permits(1);
        *NEXT.lock().unwrap() = Next::Succeed(3);
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert_eq!((status().up, value()), (Some(true), Some(99.0)), "a late result is accepted");
        assert_eq!(failures("deadline"), Some(1.0));

        stop.send_replace(true);
        tokio::time::timeout(Duration::from_secs(20), task).await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_run_that_hangs_says_nothing_after_its_sampler_is_off_and_is_alone_when_that_is_on_again()
     {
        let _turn = TURN.lock().await;
        let store = Arc::new(Store::new(Arc::new(Statuses::default())));
        let mut scheduler = Scheduler::new(Arc::clone(&store));
        let options =
            Options { interval: DEF.interval, timeout: DEF.timeout, own: serde_json::Map::new() };
        let host = Host::at("/");
        let mut fit = |on: bool| {
            scheduler.fit("exporter", &DEF, Some(&options).filter(|_| on), &host);
        };
        let status = || store.statuses().all().remove("exporter").unwrap();
        let value = || store.value("process_threads", &[]);
        let a_while = || tokio::time::sleep(Duration::from_secs(30));

        *NEXT.lock().unwrap() = Next::Hang;
        let before = STARTED.load(Ordering::Relaxed);
        fit(true);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(status().inflight.is_some());
        for _ in 0..3 {
            fit(false);
            a_while().await;
            assert_eq!((status().state, status().up, status().inflight), (State::Off, None, None));
            fit(true);
            a_while().await;
            assert!(status().inflight.is_some(), "somebody waits, and that shows");
            assert_eq!(STARTED.load(Ordering::Relaxed), before + 1, "the first one still hangs");
        }
        fit(false);
        GATE.add_permits(1);
        a_while().await;
        assert_eq!(
            (status().state, status().up, status().runs, value()),
            (State::Off, None, 0, None)
        );

        *NEXT.lock().unwrap() = Next::Succeed(5);
        fit(true);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!((status().up, value()), (Some(true), Some(5.0)));
    }
}
