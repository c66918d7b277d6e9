//! An agent that watches what kills Kubernetes control planes and serves it to Prometheus.
//!
//! The way of the data, from source to scrape:
//!
//! ```text
//! /proc /sys /dev/kmsg  D-Bus  etcd
//!   -> samplers    read one source each, fill a Batch; know no clock, no HTTP, no other sampler
//!   -> scheduler   interval, jitter, deadline, single flight, outcome
//!   -> store       newest Batch per sampler, staleness; the only Collector
//!   -> web         /metrics in the format asked for; status page; health
//! ```
//!
//! `host` finds out what the node is and hands each sampler what it needs. ARCHITECTURE.md is the
//! map with the reasons.

pub mod access;
mod bpf;
pub mod catalog;
pub mod certificate;
pub mod check;
pub mod child;
mod clock;
pub mod config;
pub mod dqlite;
pub mod etcd;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod history;
pub mod host;
pub mod inspect;
pub mod kept;
pub mod log;
pub mod member;
pub mod metric;
mod patterns;
pub mod quiet;
pub mod requests;
pub mod runbook;
pub mod sample;
pub mod sampler;
pub mod samplers;
pub mod scheduler;
pub mod self_metrics;
pub mod severity;
pub mod status;
pub mod store;
pub mod thresholds;
pub mod timeline;
pub mod unix_socket;
pub mod verdict;
pub mod web;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};

use config::{Config, Flags};
use host::{Facts, Host, Overrides};
use scheduler::Scheduler;
use self_metrics::Statuses;
use store::Store;

/// The static binary's: the one that comes with its C library maps and unmaps every large buffer.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

/// How often the node is looked at anew: an agent may boot before k3s, and a snap refreshes.
const DETECT_INTERVAL: Duration = Duration::from_mins(1);
/// How long a look may take before the agent goes on without it.
const DETECT_DEADLINE: Duration = Duration::from_secs(5);

/// How long reading the configuration file again may take.
const READ_DEADLINE: Duration = Duration::from_secs(3);

/// What detection in a child process is asked.
#[derive(Debug, Serialize, Deserialize)]
struct DetectQuestion {
    rootfs: PathBuf,
    overrides: Overrides,
}

/// Finds out what this node is, in a child process, because its disk may be sick.
///
/// # Errors
///
/// See [`child::ChildError`].
pub async fn detect(slot: &child::Slot, config: &Config) -> Result<Facts, child::ChildError> {
    let rootfs = config.path.rootfs.clone();
    let question = DetectQuestion { rootfs, overrides: config.host.clone() };
    slot.ask(&["detect"], &question, DETECT_DEADLINE).await
}

/// The child's side of [`detect`].
///
/// # Errors
///
/// When the question cannot be read or answered.
pub fn run_detect() -> std::io::Result<()> {
    child::answer(|question: DetectQuestion| {
        host::detect(&Host::at(question.rootfs), &question.overrides)
    })
}

/// The child's side of a reload: reads the configuration file it is asked for.
///
/// # Errors
///
/// When the question cannot be read or answered.
pub fn run_read_config() -> std::io::Result<()> {
    child::answer(|file: PathBuf| config::read(&file).map_err(|error| error.to_string()))
}

/// What makes the agent read its configuration again, or stop.
pub struct Signals {
    /// Reload requests; also fed by `POST /-/reload`.
    pub reload: mpsc::Receiver<web::Reload>,
    /// The other end, for the web server.
    pub reload_sender: mpsc::Sender<web::Reload>,
    /// Turns true when the agent is to stop.
    pub stop: watch::Receiver<bool>,
}

impl Signals {
    /// Signals that only `stop` raises.
    pub fn new(stop: watch::Receiver<bool>) -> Self {
        let (reload_sender, reload) = mpsc::channel(4);
        Self { reload, reload_sender, stop }
    }
}

/// Serves on `listeners` behind `lock` and on the node's own `socket`, and samples until told to stop.
///
/// The port answers before the first sample is taken and before the node is looked at: a disk that
/// hangs must not keep anybody from asking. `started` is called as soon as it does.
pub async fn run(
    mut config: Config,
    flags: Flags,
    listeners: Vec<TcpListener>,
    lock: Option<Arc<web::lock::Lock>>,
    socket: Option<web::socket::Socket>,
    mut signals: Signals,
    started: impl FnOnce(),
) {
    let store = Arc::new(Store::new(Arc::new(Statuses::default())));
    let (facts_sender, facts) = watch::channel(Arc::new(Facts::default()));
    let app = web::App::new(Arc::clone(&store), facts, signals.reload_sender.clone(), &config.web);
    let mut router = web::router(app.clone());
    let mut servers = Vec::new();
    if let Some(lock) = &lock {
        router = web::locked(router, lock);
        let fresh = Arc::clone(lock).keep_fresh(Arc::clone(&store), signals.stop.clone());
        servers.push(tokio::spawn(fresh));
    }
    for listener in listeners {
        let port = web::Port::new(listener, lock.clone());
        servers.push(tokio::spawn(web::serve(port, router.clone(), signals.stop.clone())));
    }
    if let Some(socket) = socket {
        let pages = web::local_router(app);
        servers.push(tokio::spawn(web::serve(socket, pages, signals.stop.clone())));
    }
    started();

    let mut scheduler = Scheduler::new(Arc::clone(&store));
    let (slot, files) = (child::Slot::default(), child::Slot::default());
    let mut known: Option<Arc<Facts>> = None;
    let mut unknown = Facts::default();
    let mut answer: Option<web::Reload> = None;
    let mut blind = false;
    loop {
        let detected = tokio::select! {
            detected = detect(&slot, &config) => detected,
            _ = signals.stop.wait_for(|stop| *stop) => break,
        };
        match detected {
            Ok(found) => {
                if std::mem::take(&mut blind) {
                    tracing::info!("this node can be looked at again");
                }
                let changed = known.as_deref() != Some(&found);
                if changed {
                    log_facts(known.as_deref(), &found);
                    let found = Arc::new(found);
                    facts_sender.send_replace(Arc::clone(&found));
                    known = Some(found);
                }
            }
            Err(error) => {
                // Said once: a disk that hangs would say it every minute.
                if !std::mem::replace(&mut blind, true) {
                    tracing::warn!(%error, "this node cannot be looked at");
                }
                if known.is_none() {
                    unknown = Facts::unseen(error);
                    facts_sender.send_replace(Arc::new(unknown.clone()));
                }
            }
        }
        let facts = known.as_deref().unwrap_or(&unknown).clone();
        scheduler.apply(&config, &Host::at(&config.path.rootfs).with_facts(facts));
        if let Some(answer) = answer.take() {
            reply(answer, Ok(()));
        }
        let reload = tokio::select! {
            () = tokio::time::sleep(DETECT_INTERVAL) => None,
            request = signals.reload.recv() => request,
            _ = signals.stop.wait_for(|stop| *stop) => break,
        };
        let Some(request) = reload else { continue };
        // Both files or neither; the web configuration is put in force by its re-read, so it comes last.
        let both = async {
            let new = reread(&files, &config, &flags).await.map_err(|error| {
                tracing::error!(error, "the configuration is wrong; the old one stays");
                (error, false)
            })?;
            match &lock {
                Some(lock) => match lock.reread(&store).await {
                    Ok(()) => Ok(new),
                    // Its own gauge and its own line say that; our gauge, when it kept a change out.
                    Err(error) => Err((error, new == config)),
                },
                None => Ok(new),
            }
        };
        let read = tokio::select! {
            read = both => read,
            _ = signals.stop.wait_for(|stop| *stop) => break,
        };
        match read {
            Ok(new) => {
                tracing::info!("configuration read again");
                store.statuses().reloaded(true);
                config = new;
                answer = Some(request);
            }
            Err((error, unchanged)) => {
                store.statuses().reloaded(unchanged);
                store.touch();
                reply(request, Err(error));
            }
        }
    }
    for server in servers {
        // A panic in a server has been printed.
        drop(server.await);
    }
}

fn reply(to: oneshot::Sender<Result<(), String>>, what: Result<(), String>) {
    // Whoever asked may have gone away.
    drop(to.send(what));
}

/// The configuration, its file read in a child process: the disk may be sick.
///
/// # Errors
///
/// The text of the first thing that is wrong.
pub async fn load_config(slot: &child::Slot, flags: &Flags) -> Result<Config, String> {
    let text = match &flags.file {
        None => None,
        Some(file) => {
            let read = slot.ask::<Result<String, String>>(&["config-file"], file, READ_DEADLINE);
            let read = read.await.map_err(|error| format!("{}: {error}", file.display()))?;
            Some(read?)
        }
    };
    Config::load_text(flags, text.as_deref()).map_err(|error| error.to_string())
}

/// Reads the configuration again. Where the agent listens and how it logs is fixed at the start.
async fn reread(slot: &child::Slot, old: &Config, flags: &Flags) -> Result<Config, String> {
    let new = load_config(slot, flags).await?;
    if new.web != old.web || new.log != old.log || new.path != old.path {
        tracing::warn!("changes of web, log and path need a restart");
    }
    let (web, log, path) = (old.web.clone(), old.log.clone(), old.path.clone());
    Ok(Config { web, log, path, ..new })
}

fn log_facts(before: Option<&Facts>, found: &Facts) {
    for note in &found.notes {
        if before.is_none_or(|b| !b.notes.contains(note)) {
            tracing::warn!(note, "detection");
        }
    }
    match found.primary() {
        Some(node) => tracing::info!(
            distribution = node.distribution.as_str(),
            version = node.version.as_deref().unwrap_or("unknown"),
            role = node.role.as_str(),
            datastore = node.datastore.as_str(),
            "node detected"
        ),
        None => tracing::info!("no Kubernetes control plane was found on this node"),
    }
}
