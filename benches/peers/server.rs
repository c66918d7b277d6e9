//! Programs that serve figures: ours, its peers, and an empty handler.

use crate::lab::agent::Scrape;
use crate::lab::http;
use crate::lab::process::{Daemon, bound_command};
use crate::lab::{free_port, program, temp_dir, wait_for};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const METRICS: &str = "/metrics";

/// What every package holds, static and with musl; another build for a trial.
pub(crate) fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("BENCH_BINARY") {
        return path.into();
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/static");
    let triple = format!("{}-unknown-linux-musl", std::env::consts::ARCH);
    let path = folder.join(triple).join("release/controlplane-exporter");
    assert!(path.exists(), "{} is missing: run make static", path.display());
    path
}

/// A running server. Killed when dropped.
pub(crate) struct Server {
    daemon: Daemon,
    address: SocketAddr,
    started: Instant,
    _folder: tempfile::TempDir,
}

impl Server {
    /// Starts `command` with the arguments that make it listen at the address it is given.
    fn start(name: &str, build: impl FnOnce(SocketAddr, &Path) -> Command) -> Self {
        let folder = temp_dir("server");
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let command = build(address, folder.path());
        let log = folder.path().join("server.log");
        let started = Instant::now();
        let daemon = Daemon::start(name, command, &log);
        Self { daemon, address, started, _folder: folder }
    }

    /// The agent with this configuration, whose host is below `rootfs`.
    pub(crate) fn agent(config: &str, rootfs: Option<&Path>) -> Self {
        Self::start("agent", |address, folder| {
            let file = folder.join("config.yaml");
            std::fs::write(&file, config).expect("a configuration file");
            let mut command = bound_command(binary());
            command.arg(format!("--web.listen-address={address}"));
            command.arg("--config.file").arg(file);
            command.env("CONTROLPLANE_EXPORTER__WEB__SOCKET", folder.join("agent.sock"));
            if let Some(rootfs) = rootfs {
                command.arg("--path.rootfs").arg(rootfs);
            }
            command
        })
    }

    /// `node_exporter` with the collectors that look at what ours looks at.
    pub(crate) fn node_exporter(bus: &str, units: &str) -> Self {
        Self::start("node_exporter", |address, _| {
            let mut command = bound_command(program("prometheus-node-exporter"));
            command
                .env("DBUS_SYSTEM_BUS_ADDRESS", bus)
                .arg(format!("--web.listen-address={address}"))
                .args(["--web.max-requests=0", "--collector.disable-defaults"])
                .args(["--collector.filesystem", "--collector.diskstats", "--collector.systemd"])
                .arg("--collector.systemd.enable-restarts-metrics")
                .arg(format!("--collector.systemd.unit-include={units}"));
            command
        })
    }

    /// `process-exporter` that looks at the processes of the control plane.
    pub(crate) fn process_exporter() -> Self {
        Self::start("process-exporter", |address, _| {
            let mut command = bound_command(program("prometheus-process-exporter"));
            command
                .arg(format!("-web.listen-address={address}"))
                .args(["-procnames", "etcd,k3s,kubelet,containerd,systemd"]);
            command
        })
    }

    /// A handler of the same framework that does nothing but answer with so many bytes.
    pub(crate) fn empty(bytes: usize) -> Self {
        Self::start("empty handler", |address, _| {
            let mut command = bound_command(std::env::current_exe().expect("this program"));
            command.args(["--serve-empty", &address.to_string(), &bytes.to_string()]);
            command
        })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn pid(&self) -> u32 {
        self.daemon.pid()
    }

    pub(crate) fn get(&self, path: &str) -> Result<http::Response, String> {
        http::get(self.address, path)
    }

    /// Waits until the path answers 200 and says how long that took from the start.
    #[track_caller]
    pub(crate) fn wait_for(&mut self, path: &str, limit: Duration) -> Duration {
        loop {
            let reason = match self.get(path) {
                Ok(response) if response.status == 200 => return self.started.elapsed(),
                Ok(response) => format!("status {}", response.status),
                Err(reason) => reason,
            };
            self.daemon.check_alive().unwrap_or_else(|end| panic!("{end}"));
            assert!(
                self.started.elapsed() < limit,
                "{path} not within {limit:?}: {reason}\n{}",
                self.daemon.describe()
            );
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits until it serves figures.
    #[track_caller]
    pub(crate) fn wait(&mut self) -> Duration {
        self.wait_for(METRICS, Duration::from_secs(20))
    }

    #[track_caller]
    pub(crate) fn scrape(&self) -> Scrape {
        let response = self.get(METRICS).expect("an answer");
        Scrape::parse(&response.text()).expect("figures")
    }

    /// Scrapes until the condition holds.
    #[track_caller]
    pub(crate) fn wait_until(
        &self,
        what: &str,
        limit: Duration,
        condition: impl Fn(&Scrape) -> bool,
    ) -> Scrape {
        wait_for(what, limit, || {
            let scrape = self.scrape();
            if condition(&scrape) {
                Ok(scrape)
            } else {
                Err(scrape.with_prefix("controlplane_sampler"))
            }
        })
    }
}

/// The other side of [`Server::empty`]: serves until it is killed.
pub(crate) fn serve_empty(address: SocketAddr, bytes: usize) {
    let body = axum::body::Bytes::from(vec![b'x'; bytes]);
    // As the agent has them.
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let answer = move || std::future::ready(body.clone());
        let router = axum::Router::new().route(METRICS, axum::routing::get(answer));
        let listener = tokio::net::TcpListener::bind(address).await.expect("an address");
        axum::serve(listener, router).await.expect("a server");
    });
}
