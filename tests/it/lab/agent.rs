//! The agent as users run it: the real binary with a configuration file, and what a scrape of it says.

use super::http::{self, Response};
use super::process::{self, Daemon, bound_command};
use super::{free_port, temp_dir, wait_for};
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

/// How an agent is started beside its configuration file.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    /// The configuration file's text; empty for none at all.
    pub(crate) config: String,
    /// `--path.rootfs`.
    pub(crate) rootfs: Option<PathBuf>,
    /// Further arguments.
    pub(crate) args: Vec<String>,
    /// Environment variables to set.
    pub(crate) env: Vec<(String, String)>,
    /// A program that changes its own limits or rights and then becomes the agent, with arguments.
    pub(crate) through: Vec<String>,
    /// Run in the process namespace of this process, for example a container's PID 1.
    pub(crate) inside: Option<u32>,
}

/// For [`Options::through`]: a host of this name of its own.
pub(crate) fn on_host(name: &str) -> Vec<String> {
    let script = format!("hostname {name} && exec \"$0\" \"$@\"");
    ["unshare", "--uts", "sh", "-c", &script].map(str::to_owned).into()
}

/// A running agent. Killed when dropped; its log is shown when the test fails.
pub(crate) struct Agent {
    daemon: Daemon,
    inside: bool,
    address: SocketAddr,
    folder: tempfile::TempDir,
}

impl Agent {
    /// Starts the agent with this configuration and waits until it serves.
    #[track_caller]
    pub(crate) fn start(config: &str) -> Self {
        Self::start_with(Options { config: config.to_owned(), ..Options::default() })
    }

    /// Starts the agent and waits until it serves.
    #[track_caller]
    pub(crate) fn start_with(options: Options) -> Self {
        let mut agent = Self::launch(options);
        wait_for("an answer of the agent", Duration::from_secs(10), || {
            agent
                .daemon
                .check_alive()
                .unwrap_or_else(|end| panic!("the agent does not start: {end}"));
            agent.get("/metrics").map_err(|error| format!("{error}\n{}", agent.daemon.describe()))
        });
        agent
    }

    /// Starts the agent and returns at once.
    #[track_caller]
    pub(crate) fn launch(options: Options) -> Self {
        let folder = temp_dir("agent");
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let binary = env!("CARGO_BIN_EXE_controlplane-exporter");
        let mut command = match options.inside {
            Some(leader) => process::command_inside(leader, binary),
            None => match options.through.split_first() {
                None => bound_command(binary),
                Some((program, args)) => {
                    let mut command = bound_command(super::program(program));
                    command.args(args).arg(binary);
                    command
                }
            },
        };
        command.arg(format!("--web.listen-address={address}"));
        if !options.config.is_empty() {
            let file = folder.path().join("config.yaml");
            std::fs::write(&file, &options.config).expect("a configuration file");
            command.arg("--config.file").arg(file);
        }
        if let Some(rootfs) = &options.rootfs {
            command.arg("--path.rootfs").arg(rootfs);
        }
        command.env("CONTROLPLANE_EXPORTER__WEB__SOCKET", folder.path().join("agent.sock"));
        command.args(&options.args).envs(options.env);
        let log = folder.path().join("agent.log");
        let daemon = Daemon::start("agent", command, &log);
        Self { daemon, inside: options.inside.is_some(), address, folder }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The agent's own process id.
    #[track_caller]
    pub(crate) fn pid(&self) -> u32 {
        if !self.inside {
            return self.daemon.pid();
        }
        let child = process::children(self.daemon.pid()).first().copied();
        child.unwrap_or_else(|| panic!("no agent below nsenter: {}", self.daemon.describe()))
    }

    /// What the agent has written to its log.
    pub(crate) fn log(&self) -> String {
        self.daemon.log()
    }

    /// The socket on which it answers checks.
    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("agent.sock")
    }

    /// Where the configuration file is.
    pub(crate) fn config_file(&self) -> PathBuf {
        self.folder.path().join("config.yaml")
    }

    /// Replaces the configuration file; the agent reads it on SIGHUP.
    #[track_caller]
    pub(crate) fn write_config(&self, config: &str) {
        std::fs::write(self.config_file(), config).expect("the file");
    }

    pub(crate) fn signal(&self, signal: Signal) {
        process::signal(self.pid(), signal);
    }

    /// Sends SIGTERM and waits for the end, at most `limit`.
    #[track_caller]
    pub(crate) fn stop(&mut self, limit: Duration) -> ExitStatus {
        self.signal(Signal::TERM);
        self.daemon.wait(limit)
    }

    /// Whether the agent has ended, for example after a signal.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.daemon.ended().is_some()
    }

    pub(crate) fn get(&self, path: &str) -> Result<Response, String> {
        http::get(self.address, path)
    }

    /// One scrape in the plain text format. Fails on any answer but 200.
    #[track_caller]
    pub(crate) fn scrape(&self) -> Scrape {
        self.try_scrape().unwrap_or_else(|error| panic!("{error}\n{}", self.daemon.describe()))
    }

    fn try_scrape(&self) -> Result<Scrape, String> {
        let response = self.get("/metrics")?;
        if response.status != 200 {
            return Err(format!("/metrics answers {}: {}", response.status, response.text()));
        }
        Scrape::parse(&response.text())
    }

    /// Scrapes until `condition` holds and gives that scrape; fails with the series named in `shown`.
    #[track_caller]
    pub(crate) fn wait_until(
        &self,
        what: &str,
        shown: &str,
        limit: Duration,
        condition: impl Fn(&Scrape) -> bool,
    ) -> Scrape {
        let started = Instant::now();
        loop {
            let scrape = self.scrape();
            if condition(&scrape) {
                return scrape;
            }
            assert!(
                started.elapsed() < limit,
                "{what}: not within {limit:?}; series {shown}*:\n{}\n{}",
                scrape.with_prefix(shown),
                self.daemon.describe()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Scrapes until the series has this value.
    #[track_caller]
    pub(crate) fn wait_value(
        &self,
        name: &str,
        labels: &[(&str, &str)],
        expected: f64,
        limit: Duration,
    ) -> Scrape {
        let what = format!("{name}{labels:?} = {expected}");
        self.wait_until(&what, name, limit, |scrape| scrape.value(name, labels) == Some(expected))
    }
}

/// One line of an exposition.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sample {
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) value: f64,
}

/// All samples of one scrape.
#[derive(Clone, Debug)]
pub(crate) struct Scrape {
    pub(crate) text: String,
    pub(crate) samples: Vec<Sample>,
}

impl Scrape {
    /// Parses the text format; comments and exemplars are skipped.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let lines = text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
        let samples = lines
            .map(|line| sample(line).ok_or_else(|| format!("not a sample: {line:?}")))
            .collect::<Result<_, _>>()?;
        Ok(Self { text: text.to_owned(), samples })
    }

    /// All samples of this name that carry at least these labels.
    pub(crate) fn all(&self, name: &str, labels: &[(&str, &str)]) -> Vec<&Sample> {
        let fits = |sample: &&Sample| {
            let has = |(key, value): &(&str, &str)| {
                sample.labels.get(*key).map(String::as_str) == Some(*value)
            };
            sample.name == name && labels.iter().all(has)
        };
        self.samples.iter().filter(fits).collect()
    }

    /// The value of the one sample of this name with at least these labels; none when it is absent.
    #[track_caller]
    pub(crate) fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        match self.all(name, labels)[..] {
            [] => None,
            [sample] => Some(sample.value),
            ref several => panic!("{name}{labels:?} is not one series: {several:?}"),
        }
    }

    /// The sum over all samples of this name with at least these labels; 0 when there are none.
    pub(crate) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.all(name, labels).iter().fold(0.0, |sum, sample| sum + sample.value)
    }

    /// The lines whose names begin with `prefix`, for messages.
    pub(crate) fn with_prefix(&self, prefix: &str) -> String {
        let lines: Vec<&str> = self.text.lines().filter(|line| line.starts_with(prefix)).collect();
        if lines.is_empty() { "(none)".to_owned() } else { lines.join("\n") }
    }
}

fn sample(line: &str) -> Option<Sample> {
    let name_end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(name_end);
    let mut labels = BTreeMap::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        while !rest.starts_with('}') {
            let (key, after) = rest.split_once("=\"")?;
            let (value, after) = quoted(after)?;
            labels.insert(key.trim_start_matches(',').to_owned(), value);
            rest = after;
        }
        rest = &rest[1..];
    }
    let value = match rest.split_ascii_whitespace().next()? {
        "+Inf" => f64::INFINITY,
        "-Inf" => f64::NEG_INFINITY,
        number => number.parse().ok()?,
    };
    Some(Sample { name: name.to_owned(), labels, value })
}

/// A label value up to its closing quote, unescaped, and what follows the quote.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => match characters.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}
