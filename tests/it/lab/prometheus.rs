//! A real Prometheus, promtool, and the OpenMetrics parser of the Python client.

use super::process::{Daemon, bound_command, output};
use super::{cached, free_port, http, program, temp_dir, wait_for};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// A running Prometheus. Ended when dropped.
pub(crate) struct Prometheus {
    daemon: Daemon,
    address: SocketAddr,
    rules: Option<tempfile::TempDir>,
    _folder: tempfile::TempDir,
}

/// The two versions that `tests/setup.sh` installs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    /// Debian's.
    V2,
    /// That of a later suite. Its range selectors leave out their left end.
    V3,
}

impl Version {
    /// `prometheus` or `promtool`.
    #[track_caller]
    pub(crate) fn program(self, name: &str) -> PathBuf {
        match self {
            Self::V2 => program(name),
            Self::V3 => cached(&format!("prometheus-3/usr/bin/{name}")),
        }
    }
}

/// One series of an instant query's answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Series {
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) value: f64,
}

impl Prometheus {
    /// Scrapes one target every second as job `job`.
    #[track_caller]
    pub(crate) fn scraping(job: &str, target: SocketAddr) -> Self {
        Self::start(&format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\n\
             scrape_configs: [{{job_name: {job}, static_configs: [{{targets: ['{target}']}}]}}]\n"
        ))
    }

    /// Starts with this configuration and waits until it is ready.
    #[track_caller]
    pub(crate) fn start(config: &str) -> Self {
        Self::start_as(Version::V2, config, &[])
    }

    /// Starts this version with further flags and waits until it is ready.
    ///
    /// `{folder}` in the configuration is a folder of its own, into which `files` are written: rules.
    #[track_caller]
    pub(crate) fn start_with(
        version: Version,
        config: &str,
        files: &[(String, String)],
        flags: &[String],
    ) -> Self {
        let folder = temp_dir("rules");
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).expect("a rule file");
        }
        let config = config.replace("{folder}", &folder.path().display().to_string());
        let mut prometheus = Self::start_as(version, &config, flags);
        prometheus.rules = Some(folder);
        prometheus
    }

    #[track_caller]
    fn start_as(version: Version, config: &str, flags: &[String]) -> Self {
        let folder = temp_dir("prometheus");
        let file = folder.path().join("prometheus.yml");
        std::fs::write(&file, config).expect("a configuration file");
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let mut command = bound_command(version.program("prometheus"));
        command
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .args(flags);
        let log = folder.path().join("prometheus.log");
        let mut daemon = Daemon::start("prometheus", command, &log);
        wait_for("Prometheus", Duration::from_secs(30), || {
            daemon.check_alive().unwrap_or_else(|end| panic!("Prometheus does not start: {end}"));
            match http::get(address, "/-/ready") {
                Ok(response) if response.status == 200 => Ok(()),
                other => Err(format!("{other:?}\n{}", daemon.describe())),
            }
        });
        Self { daemon, address, rules: None, _folder: folder }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// `data` of the answer of the HTTP API; fails with Prometheus' words when it is refused.
    #[track_caller]
    pub(crate) fn api(&self, call: &str, arguments: &[(&str, &str)]) -> serde_json::Value {
        let arguments =
            arguments.iter().map(|(key, value)| format!("{key}={}", percent_encode(value)));
        let path = format!("/api/v1/{call}?{}", arguments.collect::<Vec<_>>().join("&"));
        let response = http::get(self.address, &path).unwrap_or_else(|error| panic!("{error}"));
        let text = response.text();
        assert_eq!(response.status, 200, "{path}: {text}");
        let mut answer: serde_json::Value =
            serde_json::from_str(&text).expect("JSON of Prometheus");
        answer["data"].take()
    }

    /// The answer to an instant query; fails with Prometheus' words when it is refused.
    #[track_caller]
    pub(crate) fn query(&self, expression: &str) -> Vec<Series> {
        let data = self.api("query", &[("query", expression)]);
        assert_eq!(data["resultType"], "vector", "query {expression:?}: {data}");
        data["result"].as_array().expect("a list of series").iter().map(series).collect()
    }

    /// Queries until `condition` holds.
    #[track_caller]
    pub(crate) fn wait_for(
        &self,
        expression: &str,
        limit: Duration,
        condition: impl Fn(&[Series]) -> bool,
    ) -> Vec<Series> {
        wait_for(&format!("query {expression:?}"), limit, || {
            let answer = self.query(expression);
            if condition(&answer) {
                Ok(answer)
            } else {
                Err(format!("{answer:?}\n{}", self.daemon.describe()))
            }
        })
    }
}

fn series(entry: &serde_json::Value) -> Series {
    let labels = entry["metric"].as_object().expect("labels");
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    Series {
        labels: labels.iter().map(|(key, value)| (key.clone(), text(value))).collect(),
        value: entry["value"][1].as_str().and_then(|v| v.parse().ok()).expect("a number"),
    }
}

fn percent_encode(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    };
    text.bytes().map(encode).collect()
}

/// What `promtool check metrics` says against an exposition; empty when it has nothing to say.
#[track_caller]
pub(crate) fn promtool_complaints(exposition: &str) -> String {
    let folder = temp_dir("promtool");
    let file = folder.path().join("metrics");
    std::fs::write(&file, exposition).expect("a file");
    let mut command = bound_command("sh");
    command.args(["-c", r#"exec "$0" check metrics < "$1""#]).arg(program("promtool")).arg(&file);
    let output = output(command, Duration::from_secs(30));
    if output.status.success() && output.stderr.trim().is_empty() {
        return String::new();
    }
    format!("{}: {}{}", output.status, output.stdout, output.stderr)
}

/// `promtool` with any arguments, such as `check rules FILE`; fails unless it exits 0.
#[track_caller]
pub(crate) fn promtool(args: &[&str]) -> String {
    super::process::run("promtool", args)
}

/// Why the OpenMetrics parser of the Python client refuses an exposition; none when it takes it.
///
/// It is stricter than Prometheus: order of families, suffixes, units and the closing `# EOF` count.
#[track_caller]
pub(crate) fn openmetrics_complaint(exposition: &str) -> Option<String> {
    let folder = temp_dir("openmetrics");
    let file = folder.path().join("metrics");
    std::fs::write(&file, exposition).expect("a file");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/scripts/parse_openmetrics.py");
    let mut command = bound_command(program("python3"));
    command.env("PYTHONPATH", cached("python")).arg(script).arg(&file);
    let output = output(command, Duration::from_mins(1));
    match output.status.code() {
        Some(0) => None,
        Some(1) => Some(output.stdout),
        _ => panic!("{script}: {}\n{}{}", output.status, output.stdout, output.stderr),
    }
}
