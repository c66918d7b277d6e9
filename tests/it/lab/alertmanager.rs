//! A real Alertmanager, and what it says about its alerts.

use super::process::{Daemon, bound_command, output};
use super::{free_port, http, program, temp_dir, wait_for};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// A running Alertmanager, alone and without a cluster. Ended when dropped.
pub(crate) struct Alertmanager {
    daemon: Daemon,
    address: SocketAddr,
    folder: tempfile::TempDir,
}

/// An alert as Alertmanager's API tells it.
#[derive(Clone, Debug)]
pub(crate) struct Alert {
    pub(crate) labels: BTreeMap<String, String>,
    /// active, suppressed or unprocessed.
    pub(crate) state: String,
    /// The alerts that inhibit this one, by name and severity; empty when none does.
    pub(crate) inhibited_by: Vec<String>,
    pub(crate) receivers: Vec<String>,
}

impl Alert {
    pub(crate) fn name(&self) -> &str {
        self.label("alertname")
    }

    /// A label's value; empty when the alert does not carry it, as Alertmanager compares it.
    pub(crate) fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", String::as_str)
    }
}

impl Alertmanager {
    /// Starts with this configuration and waits until it is ready.
    #[track_caller]
    pub(crate) fn start(config: &str) -> Self {
        let folder = temp_dir("alertmanager");
        let file = folder.path().join("alertmanager.yaml");
        std::fs::write(&file, config).expect("a configuration file");
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let mut command = bound_command(program("prometheus-alertmanager"));
        command
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.path={}", folder.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .arg("--cluster.listen-address=");
        let mut daemon =
            Daemon::start("alertmanager", command, &folder.path().join("alertmanager.log"));
        wait_for("Alertmanager", Duration::from_secs(30), || {
            daemon.check_alive().unwrap_or_else(|end| panic!("Alertmanager does not start: {end}"));
            match http::get(address, "/-/ready") {
                Ok(response) if response.status == 200 => Ok(()),
                other => Err(format!("{other:?}\n{}", daemon.describe())),
            }
        });
        Self { daemon, address, folder }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// All alerts that have not ended, inhibited ones too.
    #[track_caller]
    pub(crate) fn alerts(&self) -> Vec<Alert> {
        let response = http::get(self.address, "/api/v2/alerts")
            .unwrap_or_else(|error| panic!("{error}\n{}", self.daemon.describe()));
        let text = response.text();
        assert_eq!(response.status, 200, "{text}");
        let list: Vec<serde_json::Value> = serde_json::from_str(&text).expect("a list of alerts");
        let names: BTreeMap<&str, String> = list
            .iter()
            .map(|alert| {
                let label = |name| alert["labels"][name].as_str().unwrap_or_default();
                let fingerprint = alert["fingerprint"].as_str().unwrap_or_default();
                (fingerprint, format!("{} {}", label("alertname"), label("severity")))
            })
            .collect();
        list.iter().map(|alert| parse(alert, &names)).collect()
    }

    /// `amtool` against this Alertmanager; fails unless it exits 0.
    #[track_caller]
    pub(crate) fn amtool(&self, args: &[&str]) -> String {
        let mut command = bound_command(program("amtool"));
        command.arg(format!("--alertmanager.url=http://{}", self.address)).args(args);
        let output = output(command, Duration::from_secs(30));
        assert!(output.status.success(), "amtool {args:?}: {}{}", output.stdout, output.stderr);
        output.stdout
    }

    /// Where its configuration lies, for `amtool check-config`.
    pub(crate) fn config_file(&self) -> PathBuf {
        self.folder.path().join("alertmanager.yaml")
    }
}

fn parse(alert: &serde_json::Value, names: &BTreeMap<&str, String>) -> Alert {
    let strings = |value: &serde_json::Value, field: Option<&str>| -> Vec<String> {
        let all = value.as_array().into_iter().flatten();
        let text = |v: &serde_json::Value| {
            field.map_or(v, |field| &v[field]).as_str().unwrap_or_default().to_owned()
        };
        all.map(text).collect()
    };
    let inhibited_by = strings(&alert["status"]["inhibitedBy"], None);
    Alert {
        labels: labels(&alert["labels"]),
        state: alert["status"]["state"].as_str().unwrap_or_default().to_owned(),
        inhibited_by: inhibited_by
            .into_iter()
            .map(|id| names.get(id.as_str()).cloned().unwrap_or(id))
            .collect(),
        receivers: strings(&alert["receivers"], Some("name")),
    }
}

/// An object of strings.
pub(super) fn labels(value: &serde_json::Value) -> BTreeMap<String, String> {
    let all = value.as_object().into_iter().flatten();
    all.map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned())).collect()
}
