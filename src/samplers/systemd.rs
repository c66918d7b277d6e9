//! Crash loops, exits and states of the units that a control plane consists of.
//!
//! Asks systemd over D-Bus: one list call per run, one to three small ones per unit, and the
//! signals in between. systemd forgets how a process ended when the next one starts, after 100 ms
//! by default, so the exits are kept from the signals as they arrive, in a bounded queue.
//!
//! At most 14 series per unit and 64 units. A unit that does not exist is a verdict
//! (`loaded 0`). A bus that is missing, forbidden, silent or broken fails the run; the next run
//! connects anew, and the own counts go on, as they do over a reload.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use serde::{Deserialize, Serialize};

use crate::config;
use crate::host::{Facts, Host};
use crate::kept::{Kept, Shared};
use crate::metric::Metric;
use crate::sample::{Batch, SampleError};
use crate::sampler::{AsyncSampler, Build, OptionsError, SamplerDef, defaults, facts};

mod bus;
mod private;
#[cfg(test)]
mod tests;
mod track;

use bus::{Bus, Details, Listed, Target};
use track::Tracker;

/// See the module's page.
pub static SAMPLER: SamplerDef = SamplerDef {
    about: "Crash loops, exits and states of the control plane's systemd units.",
    interval: Duration::from_secs(5),
    timeout: Duration::from_secs(2),
    metrics: &[
        NRESTARTS.desc(),
        RESTARTS.desc(),
        STATE.desc(),
        LOADED.desc(),
        EXPECTED.desc(),
        SINCE.desc(),
        LAST_EXIT.desc(),
        LAST_EXIT_TIME.desc(),
    ],
    defaults: defaults::<Options>,
    uses: |all| facts(units(all)),
    build: |options, host| {
        let own: Options = options.parse()?;
        let target = own.target(host)?;
        let wanted = Wanted::new(&own.units, host.facts())?;
        if wanted.names.is_empty() && wanted.patterns.is_empty() {
            return Ok(Build::not_applicable("no units to watch: set systemd.units"));
        }
        Ok(Build::tasked(Systemd {
            wanted,
            trackers: TRACKERS.of(target.to_string()),
            target,
            timeout: options.timeout,
            bus: None,
        }))
    },
    cost: "with 8 units 17 calls and 2 ms a run: 0.8 ms of CPU time in the agent, 0.7 ms in the bus \
           daemon, 0.4 ms in systemd",
};

static NRESTARTS: Metric<1> = Metric::gauge(
    "controlplane_systemd_unit_nrestarts",
    "Automatic restarts of the service since somebody last started it by hand or reset it. \
     systemd's NRestarts (235 and later).",
    ["unit"],
);
static RESTARTS: Metric<1> = Metric::counter(
    "controlplane_systemd_unit_restarts_total",
    "Automatic restarts of the service that the agent has seen. From NRestarts, whose drops do \
     not take anything away.",
    ["unit"],
);
static STATE: Metric<2> = Metric::gauge(
    "controlplane_systemd_unit_state",
    "Whether the unit is in this state: active, inactive, activating, deactivating, failed, \
     reloading, other. systemd's ActiveState.",
    ["unit", "state"],
);
static LOADED: Metric<1> = Metric::gauge(
    "controlplane_systemd_unit_loaded",
    "Whether systemd has loaded the unit; 0 when it does not exist, is masked or has a mistake in \
     its file. systemd's LoadState.",
    ["unit"],
);
static EXPECTED: Metric<1> = Metric::gauge(
    "controlplane_systemd_unit_expected",
    "Whether the unit should be running: by the node's role and lock files, or because it is \
     configured by its full name.",
    ["unit"],
);
static SINCE: Metric<1> = Metric::gauge(
    "controlplane_systemd_unit_state_since_timestamp_seconds",
    "When the unit's state last changed, in Unix time. systemd's StateChangeTimestamp.",
    ["unit"],
);
static LAST_EXIT: Metric<3> = Metric::info(
    "controlplane_systemd_unit_last_exit_info",
    "How the service's main process last ended: exited with a status, killed or dumped by a \
     signal. systemd's ExecMainCode and ExecMainStatus, kept across restarts.",
    ["unit", "code", "status"],
);
static LAST_EXIT_TIME: Metric<1> = Metric::gauge(
    "controlplane_systemd_unit_last_exit_timestamp_seconds",
    "When the service's main process last ended, in Unix time. systemd's ExecMainExitTimestamp, \
     kept across restarts.",
    ["unit"],
);

/// No more units than this are watched: 14 series each.
const MAX_UNITS: usize = 64;
/// So many units are asked for at once.
const CONCURRENT: usize = 16;
/// Kinds of units, as the last part of their names.
const KINDS: [&str; 11] = [
    "service",
    "socket",
    "target",
    "device",
    "mount",
    "automount",
    "swap",
    "timer",
    "path",
    "slice",
    "scope",
];

/// Section `systemd` of the configuration.
#[derive(Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Options {
    /// Units to watch instead of those that detection finds: names, and globs such as
    /// `k3s*.service`, which match the units that systemd has loaded. A name without a kind is a
    /// service, and is expected to run unless the node's role says otherwise.
    #[serde(deserialize_with = "config::list")]
    units: Vec<String>,
    /// `system`, `user`, or any D-Bus address; with `unix:path=/run/systemd/private` systemd is
    /// asked without a bus, which takes root. The system bus is looked for below `--path.rootfs`;
    /// an address is used as it stands.
    bus: String,
}

impl Default for Options {
    fn default() -> Self {
        Self { units: Vec::new(), bus: "system".to_owned() }
    }
}

impl Options {
    fn target(&self, host: &Host) -> Result<Target, OptionsError> {
        match self.bus.as_str() {
            "system" => Ok(Target::socket(host.path("/run/dbus/system_bus_socket"))),
            "user" => Target::user().map_err(|e| OptionsError::new("bus", e.to_string())),
            address => Target::parse(address).map_err(|error| {
                let what = format!("neither `system` nor `user` nor a D-Bus address: {error}");
                OptionsError::new("bus", what)
            }),
        }
    }
}

/// The units of every installation, and whether one of them expects it to run.
fn units(all: &Facts) -> Vec<(&str, bool)> {
    let mut units: Vec<(&str, bool)> = Vec::new();
    for unit in all.installations.iter().flat_map(|installation| &installation.units) {
        match units.iter_mut().find(|(name, _)| *name == unit.name) {
            Some((_, expected)) => *expected |= unit.expected,
            None => units.push((&unit.name, unit.expected)),
        }
    }
    units
}

/// Which units to watch.
#[derive(Debug, Default, PartialEq)]
struct Wanted {
    names: Vec<String>,
    patterns: Vec<String>,
    /// What is known about units by their names.
    expected: HashMap<String, bool>,
}

impl Wanted {
    fn new(configured: &[String], all: &Facts) -> Result<Self, OptionsError> {
        let detected = units(all);
        let mut wanted = Self::default();
        for text in configured {
            let name = full_name(text).map_err(|what| OptionsError::new("units", what))?;
            let list = if is_glob(&name) { &mut wanted.patterns } else { &mut wanted.names };
            if !list.contains(&name) {
                list.push(name);
            }
        }
        if configured.is_empty() {
            // One impossible name would make systemd refuse the whole list.
            let possible =
                |name: &&str| !is_glob(name) && full_name(name).is_ok_and(|n| n == **name);
            let names = detected.iter().map(|(name, _)| *name).filter(possible);
            wanted.names = names.map(str::to_owned).collect();
        }
        wanted.expected = wanted.names.iter().map(|name| (name.clone(), true)).collect();
        wanted.expected.extend(detected.iter().map(|(name, e)| ((*name).to_owned(), *e)));
        Ok(wanted)
    }

    /// A unit that only a glob brought in is expected if the node's role says so.
    fn expects(&self, name: &str) -> bool {
        self.expected.get(name).copied().unwrap_or(false)
    }
}

fn is_glob(name: &str) -> bool {
    name.contains(['*', '?', '['])
}

/// A unit's name or glob with its kind; refuses what systemd would refuse.
fn full_name(text: &str) -> Result<String, String> {
    let glob = is_glob(text);
    let known = |c: char| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c);
    let allowed = |c: char| known(c) || (glob && "*?[]!^".contains(c));
    if text.is_empty() || text.len() > 255 || !text.chars().all(allowed) {
        return Err(format!("{text:?} is not the name of a unit"));
    }
    if glob {
        return Ok(text.to_owned());
    }
    let kind = text.rsplit_once('.').map(|(_, kind)| kind);
    let name = if kind.is_some_and(|kind| KINDS.contains(&kind)) {
        text.to_owned()
    } else {
        format!("{text}.service")
    };
    if name.starts_with(['.', '@']) {
        return Err(format!("{text:?} is not the name of a unit"));
    }
    if name.contains("@.") {
        return Err(format!(
            "{text:?} is a template; name an instance or `{}`",
            name.replace("@.", "@*.")
        ));
    }
    Ok(name)
}

struct Systemd {
    wanted: Wanted,
    target: Target,
    timeout: Duration,
    /// The connection; none before the first run and after a failed one.
    bus: Option<Bus>,
    trackers: Trackers,
}

/// What is remembered, by name of the unit.
type Trackers = Shared<HashMap<String, Tracker>>;

/// By where systemd is reached: how a unit ended is not forgotten at the very moment when the node's units change.
static TRACKERS: Kept<String, Trackers> = Kept::new();

/// What one run reads.
#[derive(Default)]
struct Reading {
    units: Vec<(Listed, Details)>,
    exits: HashMap<String, Vec<track::Exit>>,
    failures: Vec<SampleError>,
    dropped: u64,
}

#[async_trait]
impl AsyncSampler for Systemd {
    /// # Errors
    ///
    /// When the bus is not there, refuses, breaks, or does not answer within the timeout, which
    /// bounds the run as a whole.
    async fn sample(&mut self, out: &mut Batch) -> Result<(), SampleError> {
        match tokio::time::timeout(self.timeout, self.read()).await {
            Ok(Ok(reading)) => {
                self.report(reading, out);
                Ok(())
            }
            Ok(Err(error)) => {
                self.bus = None;
                Err(error)
            }
            Err(_) => {
                self.bus = None;
                Err(SampleError::Timeout { what: self.target.to_string(), after: self.timeout })
            }
        }
    }
}

impl Systemd {
    async fn read(&mut self) -> Result<Reading, SampleError> {
        let bus = match self.bus.take() {
            Some(bus) if !bus.is_closed() => self.bus.insert(bus),
            _ => self.bus.insert(Bus::connect(&self.target).await?),
        };
        let all = bus.list(&self.wanted.names, &self.wanted.patterns).await?;
        let (units, dropped) = cap(all);
        let services = |unit: &&Listed| exists(unit) && bus::is_service(&unit.id);
        let paths = units.iter().filter(services).map(|unit| unit.path.clone()).collect();
        let lost = bus.watch(&paths).await;
        let mut reading = Reading { dropped: dropped + lost, ..Reading::default() };
        let asked: &Bus = bus;
        let answers = stream::iter(units).map(|unit| async move {
            let details =
                if exists(&unit) { asked.details(&unit).await } else { Ok(Details::default()) };
            (unit, details)
        });
        let answers: Vec<_> = answers.buffered(CONCURRENT).collect().await;
        for (unit, details) in answers {
            let details = match details {
                Ok(details) => {
                    bus.has_read(&unit.path);
                    details
                }
                Err(error) if bus.is_closed() => return Err(error),
                Err(error) => {
                    reading.failures.push(error);
                    Details::default()
                }
            };
            reading.units.push((unit, details));
        }
        // After the properties, so that every exit they tell of was signalled before.
        reading.exits = bus.take_exits();
        Ok(reading)
    }

    fn report(&mut self, reading: Reading, out: &mut Batch) {
        let Reading { units, mut exits, failures, dropped } = reading;
        out.dropped(dropped);
        for failure in failures {
            out.fail(failure);
        }
        let names: HashSet<&str> = units.iter().map(|(unit, _)| unit.name.as_str()).collect();
        let mut trackers = self.trackers.lock();
        trackers.retain(|name, _| names.contains(name.as_str()));
        for (unit, details) in &units {
            let tracker = trackers.entry(unit.name.clone()).or_default();
            let exits = exits.remove(&unit.path).unwrap_or_default();
            happened(unit, details, exits, tracker, out);
            let name = unit.name.as_str();
            push(name, unit, details, tracker, out);
            out.push(&EXPECTED, [name], self.wanted.expects(name));
        }
    }
}

/// Whether there is more to ask about a unit than that it does not exist.
fn exists(unit: &Listed) -> bool {
    unit.load_state != "not-found"
}

/// Each unit once, those asked for by name first, and how many are too many.
fn cap(all: Vec<Listed>) -> (Vec<Listed>, u64) {
    let mut seen = HashSet::new();
    let mut units: Vec<Listed> =
        all.into_iter().filter(|unit| seen.insert(unit.name.clone())).collect();
    let dropped = units.len().saturating_sub(MAX_UNITS);
    units.truncate(MAX_UNITS);
    (units, dropped as u64)
}

/// Takes what is new into the tracker, and tells of it.
fn happened(
    unit: &Listed,
    details: &Details,
    exits: Vec<track::Exit>,
    tracker: &mut Tracker,
    out: &mut Batch,
) {
    let name = &unit.name;
    let mut new = tracker.exited(exits);
    if let Some(exit) = details.exit.clone() {
        new += usize::from(tracker.found(exit));
    }
    let now = Instant::now();
    let told = tracker.told[0].add(new, now);
    if let (Some(exit), Some(new)) = (&tracker.exit, told) {
        let times =
            if new > 1 { format!(", {new} exits since this was last told") } else { String::new() };
        let time = exit.time().unwrap_or_else(SystemTime::now);
        out.event(time, "unit_exit", format!("{name} {exit}{times}"));
    }
    let changed = track::time(details.since).unwrap_or_else(SystemTime::now);
    if let Some(figure) = details.restarts {
        let new = tracker.restarted(figure) as usize;
        if let Some(new) = tracker.told[1].add(new, now) {
            let times = if new == 1 { String::new() } else { format!(" {new} times") };
            let text = format!("{name} was restarted{times} (NRestarts {figure})");
            out.event(changed, "unit_restart", text);
        }
    }
    let state = track::state(&unit.active_state);
    if let Some(kind) = tracker.turned(state) {
        let text = match kind {
            "unit_failed" => {
                format!("{name} has failed: {}", details.result.as_deref().unwrap_or("unknown"))
            }
            "unit_started" => format!("{name} has started"),
            _ => format!("{name} has stopped"),
        };
        out.event(changed, kind, text);
    }
}

fn push(name: &str, unit: &Listed, details: &Details, tracker: &Tracker, out: &mut Batch) {
    if let Some(figure) = details.restarts {
        out.push(&NRESTARTS, [name], figure);
    }
    if let Some(total) = tracker.restarts() {
        out.push(&RESTARTS, [name], total);
    }
    let current = track::state(&unit.active_state);
    for state in track::STATES {
        out.push(&STATE, [name, state], state == current);
    }
    out.push(&LOADED, [name], unit.load_state == "loaded");
    if let Some(since) = track::time(details.since) {
        out.push(&SINCE, [name], since);
    }
    if let Some(exit) = &tracker.exit {
        out.info(&LAST_EXIT, [name, exit.code(), &exit.status()]);
        if let Some(time) = exit.time() {
            out.push(&LAST_EXIT_TIME, [name], time);
        }
    }
}
