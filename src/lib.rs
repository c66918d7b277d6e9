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
use tokio::sync::{mpsc, watch};

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

/// So many may wait for the next reload, which answers them all; whoever else comes by then is told to ask again.
const RELOADS: usize = 16;
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
        let (reload_sender, reload) = mpsc::channel(RELOADS);
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
    let mut looks = Looks::default();
    let mut answer: Option<(Vec<web::Reload>, web::Pending)> = None;
    loop {
        let detected = tokio::select! {
            detected = detect(&slot, &config) => detected,
            _ = signals.stop.wait_for(|stop| *stop) => break,
        };
        if let Some(facts) = looks.take(detected) {
            facts_sender.send_replace(facts);
        }
        let facts = looks.facts.as_ref().clone();
        scheduler.apply(&config, &Host::at(&config.path.rootfs).with_facts(facts));
        if let Some((requests, pending)) = answer.take() {
            reply(requests, &Ok(pending));
        }
        // Those that have come meanwhile are one reload. Whoever comes while the files are read waits for the next.
        let mut requests = Vec::new();
        tokio::select! {
            () = tokio::time::sleep(DETECT_INTERVAL) => {}
            _ = signals.reload.recv_many(&mut requests, RELOADS) => {}
            _ = signals.stop.wait_for(|stop| *stop) => break,
        }
        if requests.is_empty() {
            continue;
        }
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
                    Err(error) => Err((error, new.0 == config)),
                },
                None => Ok(new),
            }
        };
        let read = tokio::select! {
            read = both => read,
            _ = signals.stop.wait_for(|stop| *stop) => break,
        };
        match read {
            Ok((new, pending)) => {
                tracing::info!("configuration read again");
                store.statuses().reloaded(true);
                if config.host != new.host {
                    looks.whole = None;
                }
                config = new;
                answer = Some((requests, pending));
            }
            Err((error, unchanged)) => {
                store.statuses().reloaded(unchanged);
                store.touch();
                reply(requests, &Err(error));
            }
        }
    }
    for server in servers {
        // A panic in a server has been printed.
        drop(server.await);
    }
}

fn reply(all: Vec<web::Reload>, what: &Result<web::Pending, String>) {
    for to in all {
        // Whoever asked may have gone away.
        drop(to.send(what.clone()));
    }
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

/// Reads the configuration again. Where the agent listens and how it logs is fixed at the start: the sections with a change that
/// waits for the next one are returned beside it.
async fn reread(
    slot: &child::Slot,
    old: &Config,
    flags: &Flags,
) -> Result<(Config, web::Pending), String> {
    let new = load_config(slot, flags).await?;
    let fixed =
        [("web", new.web != old.web), ("log", new.log != old.log), ("path", new.path != old.path)];
    let pending: web::Pending =
        fixed.into_iter().filter_map(|(section, changed)| changed.then_some(section)).collect();
    if !pending.is_empty() {
        let sections = pending.join(", ");
        tracing::warn!(sections, "changes of these sections need a restart");
    }
    let (web, log, path) = (old.web.clone(), old.log.clone(), old.path.clone());
    Ok((Config { web, log, path, ..new }, pending))
}

/// What is known of the node, from one look at it to the next.
#[derive(Default)]
struct Looks {
    facts: Arc<Facts>,
    /// The last look that nothing kept from seeing all, with what the configuration says of the node now.
    whole: Option<Arc<Facts>>,
    /// Whether the node has ever been looked at.
    seen: bool,
    /// Whether the last look failed.
    blind: bool,
}

impl Looks {
    /// Takes what a look has brought; what is known now, where that has changed.
    fn take(&mut self, look: Result<Facts, child::ChildError>) -> Option<Arc<Facts>> {
        match look {
            Ok(found) => {
                if std::mem::take(&mut self.blind) {
                    tracing::info!("this node can be looked at again");
                }
                let found = found.or_known(self.whole.as_deref());
                let before = self.seen.then_some(&*self.facts);
                let changed = before != Some(&found);
                if changed {
                    log_facts(before, &found);
                    self.seen = true;
                    self.facts = Arc::new(found);
                }
                if !self.facts.partial {
                    self.whole = Some(Arc::clone(&self.facts));
                }
                if !changed {
                    return None;
                }
            }
            Err(error) => {
                // Said once: a disk that hangs would say it every minute.
                if !std::mem::replace(&mut self.blind, true) {
                    tracing::warn!(%error, "this node cannot be looked at");
                }
                if self.seen {
                    return None;
                }
                self.facts = Arc::new(Facts::unseen(error));
            }
        }
        Some(Arc::clone(&self.facts))
    }
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
