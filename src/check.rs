//! `controlplane-exporter check`: how this node is, for a monitoring system or a person.
//!
//! It asks the running agent over its Unix socket; where there is none, it takes one round of
//! samples by itself, with the same samplers and the same limits. It ends within its deadline
//! whatever hangs: files are read in child processes, and a thread of its own ends the process in
//! time. Exit codes, the first line, performance data and ranges are those of the monitoring
//! plugins (Nagios, Icinga, NRPE).

mod ask;
mod range;
mod show;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use tokio::time::Instant;

pub use ask::{Agent, NoAnswer};
pub use range::{NoRange, Range};
pub use show::{json, nagios, text};

use crate::child;
use crate::config::{Config, listen_addresses};
use crate::host::{Facts, Host};
use crate::scheduler::Scheduler;
use crate::self_metrics::{State, Statuses};
use crate::status::Status;
use crate::store::Store;
use crate::verdict::{self, Health, MEASURES, Topic, Verdict};

/// How long the running agent may take to answer.
const ASK: Duration = Duration::from_secs(2);
/// How long its port may take, once it has answered on the socket.
const KNOCK: Duration = Duration::from_millis(500);
/// What is left for judging and printing when another node's agent does not answer.
const SAYING: Duration = Duration::from_millis(200);
/// How long looking at the node may take.
const DETECT: Duration = Duration::from_secs(3);
/// What a round takes beside its calls: the samplers' first wait, judging, and a margin.
const AROUND: Duration = Duration::from_millis(1_200);
/// No call to a datastore has less time, however little there is.
const LEAST: Duration = Duration::from_millis(300);
/// How often the sync probe writes in a round of the check's own, and how long it goes on at least.
const SYNC_INTERVAL: Duration = Duration::from_millis(500);
const SYNCS: Duration = Duration::from_secs(3);

/// Which part of the node is looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Profile {
    /// Everything.
    #[default]
    All,
    /// The datastore.
    Etcd,
    /// The API server, and the ways to it.
    Api,
    /// Syncs of the datastore's disk.
    Disk,
    /// The kernel's log.
    Kernel,
    /// The control plane's logs.
    Log,
    /// The systemd units.
    Units,
    /// The clock, pools of disks, and settings that wait for a restart.
    Settings,
    /// Room on the filesystems.
    Space,
    /// Volumes of Longhorn and other CSI drivers.
    Volumes,
}

impl Profile {
    /// The topics it judges, causes first.
    pub fn topics(self) -> &'static [Topic] {
        match self {
            Self::All => &Topic::ALL,
            Self::Etcd => &[Topic::Datastore],
            Self::Api => &[Topic::Api],
            Self::Disk => &[Topic::Disk],
            Self::Kernel => &[Topic::Kernel],
            Self::Log => &[Topic::Log],
            Self::Units => &[Topic::Units],
            Self::Settings => &[Topic::Settings],
            Self::Space => &[Topic::Space],
            Self::Volumes => &[Topic::Volumes],
        }
    }

    /// What the first line begins with.
    pub fn service(self) -> &'static str {
        match self {
            Self::All => "CONTROLPLANE",
            Self::Etcd => "CONTROLPLANE ETCD",
            Self::Api => "CONTROLPLANE API",
            Self::Disk => "CONTROLPLANE DISK",
            Self::Kernel => "CONTROLPLANE KERNEL",
            Self::Log => "CONTROLPLANE LOG",
            Self::Units => "CONTROLPLANE UNITS",
            Self::Settings => "CONTROLPLANE SETTINGS",
            Self::Space => "CONTROLPLANE SPACE",
            Self::Volumes => "CONTROLPLANE VOLUMES",
        }
    }

    fn wants(self, sampler: &str) -> bool {
        self == Self::All || self.topics().iter().any(|topic| topic.samplers().contains(&sampler))
    }
}

/// A limit of the user's own: `NAME=RANGE`.
#[derive(Debug, Clone, PartialEq)]
pub struct Limit {
    name: String,
    range: Range,
}

impl std::str::FromStr for Limit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = || format!("the names are {}", MEASURES.join(", "));
        let (name, range) = text
            .split_once('=')
            .ok_or_else(|| format!("write NAME=RANGE, such as sync_p90=0.05; {}", known()))?;
        if !MEASURES.contains(&name) {
            return Err(format!("there is no figure `{name}`; {}", known()));
        }
        let range = range.parse().map_err(|error: NoRange| error.to_string())?;
        Ok(Self { name: name.to_owned(), range })
    }
}

/// Who says how the node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SaidBy {
    /// The running agent.
    Agent,
    /// One round of samples of our own.
    OwnRound,
    /// The agent of another node has not answered.
    Nobody,
}

/// What was found, and how.
#[derive(Debug)]
pub struct Seen {
    /// How the node is, as far as the profile goes.
    pub status: Status,
    /// Who said so.
    pub by: SaidBy,
    /// Where that agent shows its figures to anybody, such as `localhost:10379`.
    pub figures: Option<String>,
    /// What else there is to know about how it was found, each a sentence.
    pub notes: Vec<String>,
}

/// Asks the agent on `config`'s socket, or looks by itself; ends at `until`.
pub async fn look(config: &Config, profile: Profile, until: Instant) -> Seen {
    let mut notes = Vec::new();
    let mut silent = None;
    let socket = &config.web.socket;
    if !socket.as_os_str().is_empty() {
        match ask(Agent::Socket(socket), until).await {
            Ok(status) => {
                let figures = open_port(config, until).await;
                return Seen { status, by: SaidBy::Agent, figures, notes };
            }
            Err(error @ NoAnswer::NoAgent(_)) => {
                notes.push(format!("no agent on {}: {error}", socket.display()));
            }
            Err(error) => {
                let what = format!("the agent on {}", socket.display());
                notes.push(format!("{what} {error}"));
                silent = Some(verdict_on_agent(Health::Unknown, &what, error.to_string()));
            }
        }
    }
    let mut status = own_round(config, profile, until).await;
    status.verdicts.extend(silent);
    Seen { status, by: SaidBy::OwnRound, figures: None, notes }
}

/// What an agent on another node, or on a port, says; its silence is a finding.
pub async fn look_from_afar(host: &str, port: u16, until: Instant) -> Seen {
    let place = place(host, port);
    // Its silence is said before the deadline, at which this node would be to blame.
    let until = until.checked_sub(SAYING).unwrap_or(until);
    match ask(Agent::Port(host, port), until).await {
        Ok(status) => Seen { status, by: SaidBy::Agent, figures: Some(place), notes: Vec::new() },
        Err(error) => {
            let what = format!("the agent on {place}");
            let health = match error {
                NoAnswer::NoAgent(_) | NoAnswer::Silent(_) => Health::Critical,
                // It lives, but does not talk to us: a password, a certificate, another program.
                NoAnswer::Other(_) => Health::Unknown,
            };
            let verdict = verdict_on_agent(health, &what, error.to_string());
            let node =
                Facts { hostname: host.to_owned(), ..Facts::unseen("its agent says nothing") };
            let mut status = Status::of(&Store::new(Arc::default()), node, true);
            status.verdicts = vec![verdict];
            Seen { status, by: SaidBy::Nobody, figures: None, notes: Vec::new() }
        }
    }
}

/// A host and a port as they are written, for a person and for a command line.
fn place(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

fn verdict_on_agent(health: Health, what: &str, figure: String) -> Verdict {
    Verdict::new(Topic::Samplers, health, "ControlPlaneExporterDown", what, figure)
}

/// The agent's answer, once its first round of samples is done.
async fn ask(agent: Agent<'_>, until: Instant) -> Result<Status, NoAnswer> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let status: Status = agent.json("/api/v1/status", ASK.min(left)).await?;
        if status.ready || left < ASK {
            return Ok(status);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Where the agent of this configuration is to be asked.
fn port(config: &Config) -> Option<SocketAddr> {
    let mut port = listen_addresses(config.web.listen_address.first()?).ok()?;
    if port.ip().is_unspecified() {
        port.set_ip(Ipv4Addr::LOCALHOST.into());
    }
    Some(port)
}

/// The agent's port, for a command line, when it answers there without a password or a certificate and its figures are
/// where the runbooks look for them.
async fn open_port(config: &Config, until: Instant) -> Option<String> {
    let port = port(config).filter(|_| config.web.telemetry_path == "/metrics")?;
    let within = KNOCK.min(until.saturating_duration_since(Instant::now()));
    let (host, number) = (port.ip().to_string(), port.port());
    Agent::Port(&host, number).get("/-/healthy", within).await.ok()?;
    Some(if port.ip() == Ipv4Addr::LOCALHOST {
        format!("localhost:{number}")
    } else {
        port.to_string()
    })
}

/// Whether the agent answers at all.
///
/// # Errors
///
/// When it does not, with the reason for a person.
pub async fn healthy(config: &Config, until: Instant) -> Result<(), String> {
    let left = ASK.min(until.saturating_duration_since(Instant::now()));
    let socket = &config.web.socket;
    let by_socket = Agent::Socket(socket).get("/-/healthy", left).await;
    let Err(error) = by_socket else { return Ok(()) };
    // In a container without a writable /run there is no socket; the port says whether it lives.
    let Some(port) = port(config) else {
        return Err(format!("{}: {error}", socket.display()));
    };
    match Agent::Port(&port.ip().to_string(), port.port()).get("/-/healthy", left).await {
        // Whoever asks for a password or for TLS is alive.
        Ok(_) | Err(NoAnswer::Other(_)) => Ok(()),
        Err(afar) => Err(format!("{}: {error}; {port}: {afar}", socket.display())),
    }
}

/// One round of the samplers that the profile needs.
async fn own_round(config: &Config, profile: Profile, until: Instant) -> Status {
    let mut config = config.clone();
    for (name, options) in &mut config.samplers {
        if !profile.wants(name) {
            *options = None;
        }
    }
    if let Some(Some(options)) = config.samplers.get_mut("fdatasync") {
        options.interval = SYNC_INTERVAL;
    }
    if let Some(Some(options)) = config.samplers.get_mut("journal") {
        // The place in the logs is the agent's, which would miss what a check has read.
        options.own.insert("cursor_file".to_owned(), "".into());
    }
    let store = Arc::new(Store::new(Arc::new(Statuses::default())));
    let started = Instant::now();
    let slot = child::Slot::default();
    let within = DETECT.min(until.saturating_duration_since(started) / 2);
    let detected = tokio::time::timeout(within, crate::detect(&slot, &config)).await;
    let facts = match detected {
        Ok(Ok(facts)) => facts,
        Ok(Err(error)) => Facts::unseen(error),
        Err(_) => Facts::unseen(format!("not done within {within:?}")),
    };
    let left = until.saturating_duration_since(Instant::now()).saturating_sub(AROUND) / 2;
    for name in Topic::Datastore.samplers() {
        if let Some(Some(options)) = config.samplers.get_mut(*name) {
            // Local member and peers, one after the other: who does not answer is known in time.
            options.timeout = options.timeout.min(left.max(LEAST));
        }
    }
    let mut scheduler = Scheduler::new(Arc::clone(&store));
    scheduler.apply(&config, &Host::at(&config.path.rootfs).with_facts(facts.clone()));
    // A moment for judging and printing.
    let until = until.checked_sub(Duration::from_millis(500)).unwrap_or(until);
    let syncs = started + SYNCS;
    let probing = |store: &Store| {
        store.statuses().all().get("fdatasync").is_some_and(|s| s.state == State::Running)
    };
    while Instant::now() < until {
        let now = Instant::now();
        if store.statuses().first_round_done() && (!probing(&store) || now >= syncs) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Status::of(&store, facts, true)
}

impl Seen {
    /// Leaves what the profile is about, judges by the user's own limits where there are any, and
    /// says so when there is nothing to judge.
    #[must_use]
    pub fn narrowed(mut self, profile: Profile, warning: &[Limit], critical: &[Limit]) -> Self {
        let status = &mut self.status;
        status.samplers.retain(|sampler| profile.wants(&sampler.name));
        status.verdicts.retain(|verdict| match verdict.topic {
            Topic::Samplers => {
                profile.wants(&verdict.what) || verdict.alert == "ControlPlaneExporterDown"
            }
            topic => profile.topics().contains(&topic),
        });
        for verdict in &mut status.verdicts {
            judge_anew(verdict, warning, critical);
        }
        status.verdicts.sort_by_key(|v| (v.topic, std::cmp::Reverse(v.health)));
        if status.verdicts.is_empty() {
            let why: BTreeSet<&str> = status
                .samplers
                .iter()
                .map(|sampler| sampler.why.as_str())
                .filter(|why| !why.is_empty())
                .collect();
            let why = match &status.node.unseen {
                Some(_) => status.node.to_string(),
                None if why.is_empty() => "no figure yet".to_owned(),
                None => why.into_iter().collect::<Vec<_>>().join("; "),
            };
            status.verdicts.push(Verdict::new(
                profile.topics()[0],
                Health::Unknown,
                "ControlPlaneSamplerStale",
                "nothing to judge",
                why,
            ));
        }
        status.health = verdict::worst(&status.verdicts);
        self
    }
}

/// Puts the user's limits in place of the table's. For the severity without a limit of the user's own the verdict stands as it
/// is: it may go by more than this figure.
fn judge_anew(verdict: &mut Verdict, warning: &[Limit], critical: &[Limit]) {
    let Some(measure) = &mut verdict.measure else { return };
    let of =
        |limits: &[Limit]| limits.iter().rev().find(|l| l.name == measure.name).map(|l| l.range);
    let (warn, crit) = (of(warning), of(critical));
    if warn.is_none() && crit.is_none() {
        return;
    }
    for (own, range) in [(&mut measure.warning, warn), (&mut measure.critical, crit)] {
        if let Some(range) = range {
            *own = range.to_string();
        }
    }
    let is_critical = match crit {
        Some(range) => range.is_bad(measure.value),
        None => verdict.health == Health::Critical,
    };
    verdict.health = match warn {
        _ if is_critical => Health::Critical,
        Some(range) if range.is_bad(measure.value) => Health::Warning,
        Some(_) => Health::Ok,
        // It knows no warning, so what is not critical is well.
        None if measure.warning.is_empty() && verdict.health == Health::Critical => Health::Ok,
        None => verdict.health.min(Health::Warning),
    };
    let said = [("warning", &measure.warning), ("critical", &measure.critical)];
    let said = said.iter().filter(|(_, range)| !range.is_empty());
    let said: Vec<_> =
        said.map(|(word, range)| format!("{word} {range} {}", measure.unit)).collect();
    verdict.limit = said.join(", ");
}

/// The exit code that says this.
pub fn exit_code(health: Health) -> u8 {
    match health {
        Health::Ok => 0,
        Health::Warning => 1,
        Health::Critical => 2,
        Health::Unknown => 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::Measure;

    fn seen(verdicts: Vec<Verdict>) -> Seen {
        let mut status = Status::of(&Store::default(), Facts::default(), true);
        status.verdicts = verdicts;
        Seen { status, by: SaidBy::OwnRound, figures: None, notes: Vec::new() }
    }

    fn sync(value: f64) -> Verdict {
        let measure = Measure {
            name: "sync_p90".into(),
            value,
            unit: "s".into(),
            warning: "0.05".into(),
            critical: "0.25".into(),
        };
        let health = match value {
            v if v > 0.25 => Health::Critical,
            v if v > 0.05 => Health::Warning,
            _ => Health::Ok,
        };
        let (what, alert) = ("syncs".into(), "ControlPlaneDiskSyncSlow".into());
        let (figure, limit) = (format!("{value} s"), "warning above 50 ms".into());
        Verdict { topic: Topic::Disk, health, what, figure, limit, alert, measure: Some(measure) }
    }

    fn limits(texts: &[&str]) -> Vec<Limit> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn judged(value: f64, warning: &[&str], critical: &[&str]) -> (Health, String) {
        let seen =
            seen(vec![sync(value)]).narrowed(Profile::Disk, &limits(warning), &limits(critical));
        (seen.status.health, seen.status.verdicts[0].limit.clone())
    }

    #[test]
    fn a_limit_of_the_users_own_takes_the_place_of_the_alerts() {
        assert_eq!(judged(0.1, &[], &[]).0, Health::Warning);
        assert_eq!(judged(0.1, &["sync_p90=0.2"], &[]).0, Health::Ok);
        assert_eq!(judged(0.1, &[], &["sync_p90=0.08"]).0, Health::Critical);
        assert_eq!(judged(0.01, &["sync_p90=@0:1"], &[]).0, Health::Warning);
        assert_eq!(judged(0.3, &["sync_p90=1"], &[]).0, Health::Critical, "the other one stays");
        assert_eq!(
            judged(0.1, &["orphans=5"], &[]),
            (Health::Warning, "warning above 50 ms".into())
        );
        assert_eq!(judged(0.1, &["sync_p90=0.2"], &[]).1, "warning 0.2 s, critical 0.25 s");
    }

    #[test]
    fn a_limit_of_one_severity_leaves_the_other_as_it_was_judged() {
        let judged = |health, warning: &[&str], critical: &[&str]| {
            let verdict = Verdict { health, ..sync(0.1) };
            let seen = seen(vec![verdict]);
            seen.narrowed(Profile::Disk, &limits(warning), &limits(critical)).status.health
        };
        let (strict, lax): (&[&str], &[&str]) = (&["sync_p90=0.01"], &["sync_p90=100"]);
        // The table's own range would warn: another figure, or its age, has decided otherwise.
        assert_eq!(judged(Health::Ok, &[], lax), Health::Ok);
        assert_eq!(judged(Health::Warning, &[], lax), Health::Warning);
        assert_eq!(judged(Health::Critical, &[], lax), Health::Warning);
        assert_eq!(judged(Health::Ok, &[], strict), Health::Critical);
        // And it would not be critical.
        assert_eq!(judged(Health::Critical, lax, &[]), Health::Critical);
        assert_eq!(judged(Health::Warning, lax, &[]), Health::Ok);
        assert_eq!(judged(Health::Ok, strict, &[]), Health::Warning);
        assert_eq!(judged(Health::Critical, lax, lax), Health::Ok);
        // One that knows no warning has none.
        let mut bare = Verdict { health: Health::Critical, ..sync(0.1) };
        bare.measure.as_mut().unwrap().warning.clear();
        let bare = seen(vec![bare]).narrowed(Profile::Disk, &[], &limits(lax));
        assert_eq!(bare.status.health, Health::Ok);
    }

    #[test]
    fn a_host_that_is_an_address_of_ipv6_stands_in_brackets() {
        assert_eq!(place("fd00::1", 10379), "[fd00::1]:10379");
        assert_eq!(place("fe80::1%eth0", 10379), "[fe80::1%eth0]:10379");
        assert_eq!(place("cp-1", 10379), "cp-1:10379");
        assert_eq!(place("10.0.0.1", 10379), "10.0.0.1:10379");
    }

    #[test]
    fn a_wrong_limit_is_answered_with_the_names_and_the_form() {
        let error = |text: &str| text.parse::<Limit>().unwrap_err();
        assert!(error("0.05").contains("write NAME=RANGE, such as sync_p90=0.05"));
        assert!(error("latency=1").contains("no figure `latency`; the names are sync_p90,"));
        assert!(error("sync_p90=fast").contains("`fast` is no range"));
    }

    #[test]
    fn a_profile_leaves_out_what_it_is_not_about() {
        let mut other = sync(0.01);
        other.topic = Topic::Kernel;
        other.health = Health::Critical;
        let both = || vec![other.clone(), sync(0.01)];
        assert_eq!(seen(both()).narrowed(Profile::All, &[], &[]).status.health, Health::Critical);
        assert_eq!(seen(both()).narrowed(Profile::Disk, &[], &[]).status.health, Health::Ok);
    }

    #[test]
    fn nothing_to_judge_is_unknown_and_an_exit_code_of_3() {
        let seen = seen(Vec::new()).narrowed(Profile::Etcd, &[], &[]);
        assert_eq!(seen.status.verdicts[0].what, "nothing to judge");
        assert_eq!(exit_code(seen.status.health), 3);
        assert_eq!([Health::Ok, Health::Warning, Health::Critical].map(exit_code), [0, 1, 2]);
    }
}
