//! A real `node_exporter`, whose systemd collector looks at a container.

use super::process::{Daemon, bound_command};
use super::systemd::Container;
use super::{free_port, http, program, temp_dir, wait_for};
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

/// A running `node_exporter`. Ended when dropped.
pub(crate) struct NodeExporter {
    _daemon: Daemon,
    address: SocketAddr,
    _folder: tempfile::TempDir,
}

impl NodeExporter {
    /// Filesystems and disks of the host, units of the container with their restarts (which it counts
    /// only when told to).
    #[track_caller]
    pub(crate) fn start(container: &Container) -> Self {
        let mut command = bound_command(program("prometheus-node-exporter"));
        command
            .env("DBUS_SYSTEM_BUS_ADDRESS", container.bus_address())
            .arg("--collector.disable-defaults")
            .args(["--collector.filesystem", "--collector.diskstats", "--collector.systemd"])
            .arg("--collector.systemd.enable-restarts-metrics")
            .arg("--collector.diskstats.ignored-devices=^$")
            .arg(r"--collector.systemd.unit-include=(k3s|snap\..+)\.service");
        Self::run(command, "systemd")
    }

    /// What it does when it is told nothing, of all disks: by default it leaves loop devices out.
    #[track_caller]
    pub(crate) fn with_defaults() -> Self {
        let mut command = bound_command(program("prometheus-node-exporter"));
        command.arg("--collector.diskstats.ignored-devices=^$");
        Self::run(command, "diskstats")
    }

    #[track_caller]
    fn run(mut command: Command, collector: &str) -> Self {
        let folder = temp_dir("node_exporter");
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        command.arg(format!("--web.listen-address={address}"));
        let log = folder.path().join("log");
        let mut daemon = Daemon::start("node_exporter", command, &log);
        let works = format!("node_scrape_collector_success{{collector=\"{collector}\"}} 1");
        wait_for("node_exporter with its figures", Duration::from_secs(20), || {
            daemon.check_alive().unwrap_or_else(|end| panic!("node_exporter: {end}"));
            let text = http::get(address, "/metrics")?.text();
            if text.contains(&works) { Ok(()) } else { Err(daemon.describe()) }
        });
        Self { _daemon: daemon, address, _folder: folder }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}
