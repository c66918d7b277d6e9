//! The incidents that this project answers, replayed: real faults, the shipped rules in a real Prometheus, the
//! shipped routes in a real Alertmanager, and a webhook that keeps what arrives and when.
//!
//! Every length of time in the rules and routes, and every interval of the agent and of scrapes, is divided by one
//! factor (see [`scale`]), so that five minutes pass in seconds. What cannot be divided stays as it is: how long
//! a sync takes, etcd's elections, the start of a process. In the tables a second counts as `factor` seconds, these
//! too, which makes our pages look later than they would be.
//!
//! `INCIDENTS=full` replays the long form. Each incident prints its progress and its table, and
//! leaves the table in the folder `INCIDENTS_REPORT` when that is set.

mod i1;
mod i2;
mod i3;
mod i4;
mod i5;
mod scale;

use crate::lab::agent::{Agent, Scrape};
use crate::lab::alertmanager::Alertmanager;
use crate::lab::http;
use crate::lab::prometheus::{Prometheus, Version};
use crate::lab::webhook::{Notice, Webhook};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant, UNIX_EPOCH};

const SECOND: Duration = Duration::from_secs(1);

/// Whether the long form is asked for.
fn full() -> bool {
    std::env::var_os("INCIDENTS").is_some_and(|form| form == "full")
}

/// One thing that Prometheus scrapes.
struct Target {
    job: &'static str,
    address: SocketAddr,
    instance: String,
}

/// Those targets that every member of a cluster has: its agent and its own metrics.
fn agent(number: usize, agent: &Agent) -> Target {
    Target { job: "controlplane", address: agent.address(), instance: format!("cp-{number}:10379") }
}

fn etcd(number: usize, port: u16) -> Target {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    Target { job: "etcd", address, instance: format!("cp-{number}:2381") }
}

fn node(number: usize, address: SocketAddr) -> Target {
    Target { job: "node", address, instance: format!("cp-{number}:9100") }
}

/// A line of the table.
#[derive(Default)]
struct Row {
    fault: String,
    signal: String,
    page: String,
    stock: String,
    people: String,
}

/// A fault that was made, and its row.
#[derive(Clone, Copy)]
struct Fault {
    row: usize,
    at: Instant,
}

/// An incident while it is replayed.
struct Incident {
    name: &'static str,
    factor: f64,
    prometheus: Prometheus,
    version: Version,
    alertmanager: Alertmanager,
    webhook: Webhook,
    started: Instant,
    rows: Vec<Row>,
    /// For each row: when its fault came, and the stock rules and series that could have spoken about it.
    stock: Vec<(f64, &'static [&'static str], String)>,
    notes: Vec<String>,
    /// When the repair began, in Unix time.
    repaired: Option<f64>,
    /// Pages of agents and the series of them that a failing step shows.
    shown: Vec<(SocketAddr, String)>,
}

/// How long `real` takes in a replay with this factor, as a configuration has it.
fn scaled(real: Duration, factor: f64) -> String {
    format!("{}ms", (real.as_secs_f64() * 1e3 / factor).round().max(1.0))
}

/// An interval of the agent, which takes none below a tenth of a second.
fn interval(real: Duration, factor: f64) -> String {
    format!("{}ms", (real.as_secs_f64() * 1e3 / factor).round().max(100.0))
}

fn minutes(count: u64) -> Duration {
    Duration::from_secs(60 * count)
}

fn unix_now() -> f64 {
    UNIX_EPOCH.elapsed().unwrap_or_default().as_secs_f64()
}

/// A length of time of a real node, for people.
fn human(seconds: f64) -> String {
    if seconds < 100.0 {
        format!("{seconds:.0} s")
    } else if seconds < 5400.0 {
        format!("{:.0} min", seconds / 60.0)
    } else {
        format!("{:.1} h", seconds / 3600.0)
    }
}

impl Incident {
    /// Starts Prometheus with the scaled rules, ours and the stock ones, and Alertmanager with the scaled routes.
    #[track_caller]
    fn start(name: &'static str, version: Version, factor: f64, targets: &[Target]) -> Self {
        let webhook = Webhook::start();
        let [(_, routes)] = &scale::files("alerts", "alertmanager.yaml")[..] else {
            panic!("alerts/alertmanager.yaml is not one file")
        };
        let routes = scale::alertmanager(routes, factor, |receiver| webhook.url(receiver));
        let alertmanager = Alertmanager::start(&routes.unwrap());
        let mut files = scale::files("alerts", ".rules.yaml");
        files.extend(scale::files("tests/data", ".rules.yaml"));
        for (file, text) in &mut files {
            *text = scale::rules(text, factor).unwrap_or_else(|error| panic!("{file}: {error}"));
        }
        let config = configuration(name, factor, alertmanager.address(), targets);
        let flags = [
            format!("--query.lookback-delta={}", scaled(minutes(5), factor)),
            format!("--rules.alert.resend-delay={}", scaled(minutes(1), factor)),
        ];
        let prometheus = Prometheus::start_with(version, &config, &files, &flags);
        let incident = Self {
            name,
            factor,
            prometheus,
            version,
            alertmanager,
            webhook,
            started: Instant::now(),
            rows: Vec::new(),
            stock: Vec::new(),
            notes: Vec::new(),
            repaired: None,
            shown: Vec::new(),
        };
        incident.say(&format!("every length of time is divided by {factor}"));
        incident.wait("a dead man's switch that arrives", minutes(5), || {
            incident
                .webhook
                .first(incident.started, |n| n.label("alertname") == "ControlPlaneWatchdog")
        });
        let up = format!("count(up == 1) == {}", targets.len());
        incident.wait("scrapes of all targets", minutes(10), || {
            incident.prometheus.query(&up).first().cloned()
        });
        incident
    }

    /// Draws a board as it looks now.
    fn picture(&self, board: &str) {
        let seconds = self.started.elapsed().as_secs();
        let note = format!(
            "The replay of {}: real faults, times divided by {}",
            self.name.to_uppercase(),
            self.factor
        );
        crate::dashboards::incident::picture(&self.prometheus, board, self.name, seconds, &note);
    }

    fn say(&self, text: &str) {
        eprintln!("{} {:6.1} s  {text}", self.name, self.started.elapsed().as_secs_f64());
    }

    /// Seconds on a real node that passed since `since`.
    fn real(&self, since: Instant) -> f64 {
        since.elapsed().as_secs_f64() * self.factor
    }

    /// Waits until `probe` gives something; `limit` is a time on a real node, to which the slowness of this machine is
    /// added. Fails with the alerts that there are.
    #[track_caller]
    fn wait<T>(&self, what: &str, limit: Duration, probe: impl Fn() -> Option<T>) -> T {
        let limit = limit.div_f64(self.factor) + 20 * SECOND;
        let started = Instant::now();
        loop {
            if let Some(found) = probe() {
                return found;
            }
            assert!(
                started.elapsed() < limit,
                "{}: waited {limit:?} for {what}\n{}",
                self.name,
                self.situation()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// What Prometheus, Alertmanager and the webhook know, for the message of a step that failed.
    fn situation(&self) -> String {
        let mut text = String::new();
        for (address, prefix) in &self.shown {
            let page = http::get(*address, "/metrics").map(|answer| answer.text());
            let scrape = page.and_then(|text| Scrape::parse(&text));
            let lines = scrape.map_or_else(|error| error, |scrape| scrape.with_prefix(prefix));
            text += &format!("on {address}, {prefix}*:\n{lines}\n");
        }
        text += "in Prometheus:\n";
        for series in self.prometheus.query("ALERTS") {
            let label = |name: &str| series.labels.get(name).map_or("", String::as_str);
            let words = ["alertname", "severity", "instance", "alertstate"].map(label);
            text += &format!("  {}\n", words.join(" "));
        }
        for (what, expression) in [
            ("scrapes that failed", "count_over_time(up[10m]) - sum_over_time(up[10m]) > 0"),
            ("seconds of the slowest scrape", "max_over_time(scrape_duration_seconds[10m]) > 0.1"),
        ] {
            for series in self.prometheus.query(expression) {
                let instance = series.labels.get("instance").map_or("", String::as_str);
                text += &format!("  {what} of {instance}: {}\n", series.value);
            }
        }
        text += "in Alertmanager:\n";
        for alert in self.alertmanager.alerts() {
            let (name, severity) = (alert.name(), alert.label("severity"));
            let (state, by) = (&alert.state, &alert.inhibited_by);
            text += &format!("  {name} {severity} {} {state} {by:?}\n", alert.label("instance"));
        }
        text += "at the webhook:\n";
        for notice in self.webhook.notices() {
            let name = notice.label("alertname");
            if name != "ControlPlaneWatchdog" {
                let at = notice.arrived.duration_since(self.started).as_secs_f64();
                let state = if notice.firing { "fires" } else { "resolved" };
                let (severity, instance) = (notice.label("severity"), notice.label("instance"));
                text += &format!(
                    "  {at:6.1} s {name} {severity} {instance} {state} ({})\n",
                    notice.path
                );
            }
        }
        text
    }

    /// Does what breaks, and begins a row of the table.
    #[track_caller]
    fn fault(&mut self, what: &str, people: &str, breaks: impl FnOnce()) -> Fault {
        self.say(&format!("FAULT: {what}"));
        let (at, clock) = (Instant::now(), unix_now());
        breaks();
        let row = Row { fault: what.to_owned(), people: people.to_owned(), ..Row::default() };
        self.rows.push(row);
        self.stock.push((clock, &[], String::new()));
        Fault { row: self.rows.len() - 1, at }
    }

    /// Waits for the first sign on the agent's page; `series` is what the table says.
    #[track_caller]
    fn signal(
        &mut self,
        fault: Fault,
        series: &str,
        agents: &[&Agent],
        shown: &str,
        condition: impl Fn(&Scrape) -> bool,
    ) -> Scrape {
        self.shown = agents.iter().map(|agent| (agent.address(), shown.to_owned())).collect();
        let scrape = self.wait(series, minutes(10), || {
            agents.iter().map(|agent| agent.scrape()).find(|scrape| condition(scrape))
        });
        let taken = fault.at.elapsed().as_secs_f64();
        self.say(&format!("signal after {taken:.1} s: {series}"));
        let real = human(taken * self.factor);
        self.rows[fault.row].signal = format!("`{series}` {taken:.1} s = {real}");
        scrape
    }

    /// Waits until all of these alerts (name, severity, part of the instance) have arrived at the receiver that
    /// their severity has, each within `limit` of a real node's time from the fault.
    #[track_caller]
    fn pages(
        &mut self,
        fault: Fault,
        expected: &[(&str, &str, &str)],
        limit: Duration,
    ) -> Vec<Notice> {
        let mut all = Vec::new();
        for (name, severity, instance) in expected {
            let receiver = if *severity == "critical" { "page" } else { "ticket" };
            let what = format!("{name} {severity} {instance} at the {receiver}");
            let notice = self.wait(&what, limit, || {
                self.webhook.first(fault.at, |n| {
                    n.firing
                        && n.path == receiver
                        && n.label("alertname") == *name
                        && n.label("severity") == *severity
                        && n.label("instance").starts_with(instance)
                })
            });
            for text in ["summary", "description", "runbook_url"] {
                assert!(notice.annotations.contains_key(text), "{name} has no {text}: {notice:?}");
            }
            let taken = notice.arrived.duration_since(fault.at).as_secs_f64();
            let real = taken * self.factor;
            self.say(&format!("{receiver} after {taken:.1} s: {name} {severity} {instance}"));
            // The short form has the slowness of this machine beside it, as `wait` has.
            assert!(
                !full() || real < limit.as_secs_f64(),
                "{name} {severity} came {} after the fault, wanted within {}",
                human(real),
                human(limit.as_secs_f64())
            );
            all.push(notice);
        }
        all.sort_by_key(|notice| notice.arrived);
        let said: Vec<String> = all
            .iter()
            .map(|notice| {
                let taken = notice.arrived.duration_since(fault.at).as_secs_f64();
                let (name, severity) = (notice.label("alertname"), notice.label("severity"));
                format!("{name} ({severity}) {taken:.1} s = {}", human(taken * self.factor))
            })
            .collect();
        self.rows[fault.row].page = said.join("; ");
        all
    }

    /// The stock rules that could speak about a fault, and which of their series mean it.
    fn stock(&mut self, fault: Fault, names: &'static [&'static str], matcher: &str) {
        let stock = &mut self.stock[fault.row];
        (stock.1, stock.2) = (names, matcher.to_owned());
    }

    /// Says what is repaired; from here on nothing counts as a page or as a word of the stock rules.
    fn repair(&mut self, what: &str) -> Instant {
        self.say(&format!("REPAIR: {what}"));
        self.repaired = Some(unix_now());
        Instant::now()
    }

    /// Waits until the symptom is there and a cause of this name inhibits it.
    #[track_caller]
    fn inhibited(&mut self, symptom: &str, instance: &str, cause: &str, limit: Duration) {
        let what = format!("{symptom} {instance} inhibited by {cause}");
        let found = self.wait(&what, limit, || {
            self.alertmanager.alerts().into_iter().find_map(|alert| {
                let it = alert.name() == symptom
                    && (instance.is_empty() || alert.label("instance") == instance);
                let by = alert.inhibited_by.iter().find(|by| by.starts_with(cause)).cloned();
                by.filter(|_| it).map(|by| (alert, by))
            })
        });
        let (found, cause) = found;
        let (severity, state) = (found.label("severity"), &found.state);
        self.say(&format!(
            "silenced: {symptom} {severity} {instance} is {state} because of {cause}"
        ));
        self.notes.push(format!("{symptom} ({severity}) was silenced by {cause}."));
    }

    /// Fails if something inhibits an alert of this name, or if there is none.
    #[track_caller]
    fn never_inhibited(&self, name: &str) {
        let all = self.alertmanager.alerts();
        let mine: Vec<_> = all.iter().filter(|alert| alert.name() == name).collect();
        assert!(!mine.is_empty(), "{name} is not in Alertmanager\n{}", self.situation());
        assert!(mine.iter().all(|a| a.inhibited_by.is_empty() && a.state == "active"), "{mine:?}");
    }

    /// Waits for the notice that the alert has ended.
    #[track_caller]
    fn resolved(&mut self, name: &str, since: Instant, limit: Duration) {
        let notice = self.wait(&format!("the end of {name}"), limit, || {
            self.webhook.first(since, |n| !n.firing && n.label("alertname") == name)
        });
        let taken = notice.arrived.duration_since(since).as_secs_f64();
        self.say(&format!("{name} ended {taken:.1} s after the repair"));
        let real = human(taken * self.factor);
        self.notes.push(format!("{name} ended {real} after the repair."));
    }

    /// The first moment from `from` on at which a stock alert of this name fired.
    fn stock_fired(&self, name: &str, matcher: &str, from: f64, to: f64) -> Option<f64> {
        let step = (15e3 / self.factor).max(100.0);
        let firing = format!("ALERTS{{alertname=\"{name}\",alertstate=\"firing\",{matcher}}}")
            .replace(",}", "}");
        let (start, end, step) = (format!("{from:.3}"), format!("{to:.3}"), format!("{step:.0}ms"));
        let range = [("query", &*firing), ("start", &*start), ("end", &*end), ("step", &*step)];
        let answer = self.prometheus.api("query_range", &range);
        let series = answer["result"].as_array().into_iter().flatten();
        let first = |s: &serde_json::Value| s["values"][0][0].as_f64();
        series.filter_map(first).min_by(f64::total_cmp).map(|at| ((at - from) * self.factor).abs())
    }

    /// Ends the replay: fills in what the stock rules did, prints the table, and leaves it for the report.
    fn finish(mut self, title: &str) {
        let end = self.repaired.unwrap_or_else(unix_now);
        let asked = std::mem::take(&mut self.stock);
        for (row, (from, names, matcher)) in asked.into_iter().enumerate() {
            let mut said: Vec<(f64, &str)> = names
                .iter()
                .filter_map(|name| Some((self.stock_fired(name, &matcher, from, end)?, *name)))
                .collect();
            said.sort_by(|a, b| a.0.total_cmp(&b.0));
            let said: Vec<String> = said
                .iter()
                .map(|(after, name)| format!("{name} after {}", human(*after)))
                .collect();
            self.rows[row].stock = if said.is_empty() {
                format!("silent (for {}, then the replay ends)", human((end - from) * self.factor))
            } else {
                said.join("; ")
            };
        }
        let version = match self.version {
            Version::V2 => "2.42",
            Version::V3 => "3.5",
        };
        let mut text = format!(
            "## {title}\n\nFactor {}, Prometheus {version}, {:.0} s of replay.\n\n\
             | fault | first signal on /metrics | pages (critical) and tickets (warning) | the stock rules | people then |\n|---|---|---|---|---|\n",
            self.factor,
            self.started.elapsed().as_secs_f64()
        );
        for row in &self.rows {
            let Row { fault, signal, page, stock, people } = row;
            text += &format!("| {fault} | {signal} | {page} | {stock} | {people} |\n");
        }
        text += "\n";
        for note in &self.notes {
            text += &format!("- {note}\n");
        }
        eprintln!("\n{text}");
        if let Some(folder) = std::env::var_os("INCIDENTS_REPORT").filter(|f| !f.is_empty()) {
            let file = std::path::Path::new(&folder).join(format!("{}.md", self.name));
            std::fs::write(&file, text).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        }
    }
}

/// Prometheus' configuration, in JSON. The stock alerts stay in Prometheus: no route is made for them.
fn configuration(
    cluster: &str,
    factor: f64,
    alertmanager: SocketAddr,
    targets: &[Target],
) -> String {
    let mut jobs: BTreeMap<&str, Vec<serde_json::Value>> = BTreeMap::new();
    for target in targets {
        jobs.entry(target.job).or_default().push(serde_json::json!({
            "targets": [target.address.to_string()],
            "labels": {"cluster": cluster, "instance": target.instance},
        }));
    }
    let scrapes: Vec<_> = jobs
        .iter()
        .map(|(job, targets)| {
            serde_json::json!({
                "job_name": job,
                "scrape_interval": scaled(Duration::from_secs(30), factor),
                "scrape_timeout": scaled(Duration::from_secs(30), factor),
                "static_configs": targets,
            })
        })
        .collect();
    serde_json::json!({
        "global": {"evaluation_interval": scaled(Duration::from_secs(30), factor)},
        "rule_files": ["{folder}/*.rules.yaml"],
        "alerting": {
            "alert_relabel_configs": [
                {"source_labels": ["alertname"], "regex": "ControlPlane.*", "action": "keep"}
            ],
            "alertmanagers": [{"static_configs": [{"targets": [alertmanager.to_string()]}]}],
        },
        "scrape_configs": scrapes,
    })
    .to_string()
}
