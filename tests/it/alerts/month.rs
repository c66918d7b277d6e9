//! Eight days of a healthy cluster of three, or a month of it (`tests/long.sh month`), written as a promtool test: rules that page
//! for nothing are switched off by those they wake.
//!
//! The time has a daily load with noise, a freeze of five seconds each night (a snapshot of the virtual
//! machine), images that grow and are collected at 15 to 20 % free on the other disk, one planned reboot of
//! each node, and one upgrade of etcd, member by member.

use std::fmt::Write;
use std::path::PathBuf;
use std::time::Duration;

use super::WATCHDOG;
use crate::lab;
use crate::lab::process::{bound_command, output};

/// Seconds between two scrapes: promtool evaluates a day of them in about ten seconds.
const STEP: u64 = 120;
const DAY: u64 = 86_400;
const NODES: usize = 3;
/// Bytes of the quota that etcd has by default.
const QUOTA: f64 = 2_147_483_648.0;

/// Upper bounds and, for a quiet and for a busy hour, how many of 24 syncs (or of 8 reads) are below each.
type Buckets = &'static [(&'static str, u64, u64)];
const SYNCS: Buckets = &[
    ("0.0005", 0, 0),
    ("0.001", 4, 0),
    ("0.002", 14, 4),
    ("0.004", 20, 12),
    ("0.006", 22, 16),
    ("0.008", 23, 19),
    ("0.01", 24, 20),
    ("0.015", 24, 22),
    ("0.02", 24, 23),
    ("0.03", 24, 24),
    ("0.05", 24, 24),
    ("0.1", 24, 24),
    ("0.25", 24, 24),
    ("0.5", 24, 24),
    ("1", 24, 24),
    ("2.5", 24, 24),
    ("5", 24, 24),
    ("10", 24, 24),
    ("+Inf", 24, 24),
];
const READS: Buckets = &[
    ("0.001", 0, 0),
    ("0.0025", 4, 1),
    ("0.005", 6, 3),
    ("0.01", 8, 5),
    ("0.025", 8, 7),
    ("0.05", 8, 8),
    ("0.1", 8, 8),
    ("0.25", 8, 8),
    ("0.5", 8, 8),
    ("1", 8, 8),
    ("2.5", 8, 8),
    ("5", 8, 8),
    ("10", 8, 8),
    ("+Inf", 8, 8),
];

/// A series and its value at each step; none where it is absent.
struct Series {
    name: String,
    values: Vec<Option<f64>>,
}

/// What happens to the cluster, step by step.
struct Month {
    /// Whether the agent of a node answers.
    agent: [Vec<bool>; NODES],
    /// Whether its etcd answers.
    etcd: [Vec<bool>; NODES],
    /// When the node booted last.
    boot: [Vec<f64>; NODES],
    /// Which member leads.
    leader: Vec<usize>,
    term: Vec<u64>,
}

fn days() -> u64 {
    if std::env::var_os("MONTH").is_some() { 30 } else { 8 }
}

fn steps() -> usize {
    (days() * DAY / STEP) as usize
}

/// Seconds since the month began.
fn seconds(step: usize) -> u64 {
    step as u64 * STEP
}

/// The planned reboot of a node.
fn reboot(node: usize) -> u64 {
    (1 + 2 * node as u64) * DAY + 10 * 3600
}

/// The upgrade of a member: on one morning, ten minutes apart.
fn upgrade(node: usize) -> u64 {
    6 * DAY + 9 * 3600 + 600 * node as u64
}

fn is_within(time: u64, from: u64, seconds: u64) -> bool {
    (from..from + seconds).contains(&time)
}

/// The nightly freeze of a node.
fn freezes(node: usize, step: usize) -> bool {
    seconds(step) % DAY == 2 * 3600 + 1800 * node as u64
}

fn is_busy(step: usize) -> bool {
    (8..18).contains(&(seconds(step) % DAY / 3600))
}

impl Month {
    fn new() -> Self {
        let down = |node: usize, step: usize| is_within(seconds(step), reboot(node), 180);
        let starts = |node: usize, step: usize| {
            is_within(seconds(step), reboot(node) + 180, 60)
                || is_within(seconds(step), upgrade(node), 90)
        };
        let agent = std::array::from_fn(|n| (0..steps()).map(|s| !down(n, s)).collect());
        let etcd: [Vec<bool>; NODES] =
            std::array::from_fn(|n| (0..steps()).map(|s| !down(n, s) && !starts(n, s)).collect());
        let boot = std::array::from_fn(|n| {
            (0..steps())
                .map(|s| if seconds(s) < reboot(n) { -1e6 } else { (reboot(n) + 60) as f64 })
                .collect()
        });
        let (mut leader, mut term) = (Vec::new(), Vec::new());
        let (mut now, mut count) = (0, 4);
        let lives = |node: &usize, step: usize| etcd[*node][step];
        for step in 0..steps() {
            if !lives(&now, step) {
                now = (0..NODES).find(|node| lives(node, step)).unwrap();
                count += 1;
            }
            leader.push(now);
            term.push(count);
        }
        Self { agent, etcd, boot, leader, term }
    }

    /// A gauge of one node: absent while its agent is, and where `value` says so.
    fn gauge(&self, node: usize, name: &str, value: impl FnMut(usize) -> Option<f64>) -> Series {
        let mut value = value;
        let labels =
            format!("cluster=\"prod\",job=\"controlplane\",instance=\"cp-{}:10379\"", node + 1);
        let name = match name.strip_suffix('}') {
            Some(open) => format!("{open},{labels}}}"),
            None => format!("{name}{{{labels}}}"),
        };
        let at = |step: usize| self.agent[node][step].then(|| value(step)).flatten();
        Series { name, values: (0..steps()).map(at).collect() }
    }

    /// A counter of one node's agent: begins at zero when the node has booted.
    fn counter(&self, node: usize, name: &str, add: impl Fn(usize) -> f64) -> Series {
        let mut total = 0.0;
        self.gauge(node, name, |step| {
            let fresh = step > 0 && !self.agent[node][step - 1];
            total = if fresh { 0.0 } else { total + add(step) };
            Some(total)
        })
    }

    /// A histogram; a freeze is one observation of almost five seconds instead of a quick one.
    fn histogram(&self, node: usize, name: &str, label: &str, buckets: Buckets) -> Vec<Series> {
        let series = |(le, quiet, busy): &(&str, u64, u64)| {
            let slow = le.parse::<f64>().is_ok_and(|bound| bound < 5.0);
            self.counter(node, &format!("{name}_bucket{{{label},le=\"{le}\"}}"), move |step| {
                let count = if is_busy(step) { *busy } else { *quiet };
                let frozen = u64::from(slow && freezes(node, step));
                count.saturating_sub(frozen) as f64
            })
        };
        buckets.iter().map(series).collect()
    }

    fn node(&self, node: usize, out: &mut Vec<Series>) {
        self.agent(node, out);
        self.etcd(node, out);
        self.disk(node, out);
        self.host(node, out);
    }

    fn agent(&self, node: usize, out: &mut Vec<Series>) {
        let up = self.gauge(node, "up", always(1.0));
        // Prometheus says 0 where the agent says nothing.
        out.push(Series {
            values: up.values.iter().map(|v| Some(v.unwrap_or(0.0))).collect(),
            ..up
        });
        let mut add = |series: Series| out.push(series);

        add(self.gauge(
            node,
            "controlplane_exporter_build_info{version=\"0.1.0\",revision=\"x\"}",
            always(1.0),
        ));
        add(self.gauge(node, "controlplane_exporter_config_last_reload_successful", always(1.0)));
        add(self.gauge(node, "controlplane_exporter_node_boot_timestamp_seconds", |s| {
            Some(self.boot[node][s])
        }));
        for (sampler, interval) in
            [("etcd", 15), ("fdatasync", 5), ("kernel", 1), ("systemd", 5), ("registry_keys", 60)]
        {
            let label = format!("{{sampler=\"{sampler}\"}}");
            add(self.gauge(node, &format!("controlplane_sampler_up{label}"), always(1.0)));
            add(self.gauge(
                node,
                &format!("controlplane_sampler_inflight_seconds{label}"),
                always(0.0),
            ));
            add(self.gauge(
                node,
                &format!("controlplane_sampler_interval_seconds{label}"),
                always(f64::from(interval)),
            ));
            add(self.gauge(
                node,
                &format!("controlplane_sampler_last_success_timestamp_seconds{label}"),
                |s| Some(time(s) - f64::from(interval)),
            ));
            let state = format!(
                "controlplane_sampler_state_info{{sampler=\"{sampler}\",state=\"running\"}}"
            );
            add(self.gauge(node, &state, always(1.0)));
        }
    }

    fn etcd(&self, node: usize, out: &mut Vec<Series>) {
        let mut noise = fastrand::Rng::with_seed(node as u64);
        let etcd = |step: usize| self.etcd[node][step];
        let mut add = |series: Series| out.push(series);
        add(self.gauge(node, "controlplane_etcd_up", |s| Some(f64::from(etcd(s)))));
        let own = |value: fn(&Self, usize, usize) -> f64| {
            move |s: usize| etcd(s).then(|| value(self, node, s))
        };
        add(self.gauge(node, "controlplane_etcd_has_leader", own(|_, _, _| 1.0)));
        add(self.gauge(
            node,
            "controlplane_etcd_is_leader",
            own(|m, n, s| f64::from(m.leader[s] == n)),
        ));
        add(self.gauge(node, "controlplane_etcd_raft_term", own(|m, _, s| m.term[s] as f64)));
        for (version, is_new) in [("3.5.16", false), ("3.5.21", true)] {
            let info = format!(
                "controlplane_etcd_member_info{{member=\"cp-{0}\",member_id=\"{0}\",cluster_id=\"c\",version=\"{version}\"}}",
                node + 1
            );
            add(self.gauge(node, &info, |s| {
                (etcd(s) && (seconds(s) >= upgrade(node)) == is_new).then_some(1.0)
            }));
        }
        // Grows over the day, and a nightly job's data is reused the next day; pages are never given back.
        add(self.gauge(
            node,
            "controlplane_etcd_db_size_bytes",
            own(|_, _, s| 60e6 + 0.5e6 * (seconds(s) / DAY) as f64),
        ));
        add(self.gauge(node, "controlplane_etcd_db_size_in_use_bytes", |s| {
            etcd(s).then(|| 38e6 + 14e6 * (time(s) % DAY as f64) / DAY as f64)
        }));
        add(self.gauge(node, "controlplane_etcd_quota_bytes", always(QUOTA)));
        add(self.gauge(node, "controlplane_etcd_revision", own(|_, _, s| 5e6 + 1200.0 * s as f64)));
        add(self.gauge(node, "controlplane_etcd_compact_revision", |s| {
            // Every five minutes, to where the key space was five minutes before.
            etcd(s).then(|| 5e6 + 10.0 * ((seconds(s) / 300 * 300) as f64) - 3000.0)
        }));
        for id in 1..=NODES {
            for alarm in ["NOSPACE", "CORRUPT"] {
                let name =
                    format!("controlplane_etcd_alarm{{member_id=\"{id}\",alarm=\"{alarm}\"}}");
                add(self.gauge(node, &name, own(|_, _, _| 0.0)));
            }
        }
        for (name, value) in [
            ("members_listed", 3.0),
            ("members_started", 3.0),
            ("members_learner", 0.0),
            ("voters_listed", 3.0),
        ] {
            add(self.gauge(node, &format!("controlplane_etcd_{name}"), always(value)));
        }
        add(self.gauge(node, "controlplane_etcd_voters_reachable", |s| {
            Some((0..NODES).filter(|n| self.etcd[*n][s]).count() as f64)
        }));
        for peer in (0..NODES).filter(|n| *n != node) {
            let label = format!("{{member_id=\"{}\"}}", peer + 1);
            let alive = |s: usize| self.etcd[peer][s];
            add(self.gauge(node, &format!("controlplane_etcd_peer_up{label}"), |s| {
                Some(f64::from(alive(s)))
            }));
            let info = format!(
                "controlplane_etcd_peer_info{{member_id=\"{0}\",member=\"cp-{0}\"}}",
                peer + 1
            );
            add(self.gauge(node, &info, always(1.0)));
            add(self.gauge(
                node,
                &format!("controlplane_etcd_peer_request_duration_seconds{label}"),
                |s| {
                    let usual = if is_busy(s) { 0.006 } else { 0.003 };
                    let slow = f64::from(noise.u8(..)) / 255.0;
                    // Now and then one read is slow.
                    alive(s).then(|| if noise.u8(..) == 0 { 0.15 } else { usual * (0.5 + slow) })
                },
            ));
        }
        let read = "request=\"linearizable_read\"";
        out.extend(self.histogram(node, "controlplane_etcd_request_duration_seconds", read, READS));
    }

    fn disk(&self, node: usize, out: &mut Vec<Series>) {
        let mut noise = fastrand::Rng::with_seed(node as u64);
        let place = "path=\"/var/lib/etcd\",device=\"vdb\"";
        out.extend(self.histogram(node, "controlplane_fdatasync_duration_seconds", place, SYNCS));
        let mut add = |series: Series| out.push(series);
        for threshold in ["0.1", "0.5", "1", "5"] {
            let name =
                format!("controlplane_fdatasync_stalls_total{{{place},threshold=\"{threshold}\"}}");
            let counts = threshold != "5";
            add(self.counter(node, &name, |s| f64::from(counts && freezes(node, s))));
        }
        // A scrape that falls into the freeze sees the sync that is not back yet.
        add(self.gauge(
            node,
            &format!("controlplane_fdatasync_inflight_seconds{{{place}}}"),
            |s| Some(if freezes(node, s) && noise.bool() { 4.0 * noise.f64() } else { 0.0 }),
        ));
        add(self.gauge(
            node,
            "controlplane_fdatasync_thread_blocked_seconds{process=\"etcd\"}",
            |s| Some(if freezes(node, s) { 3.0 } else { 0.0 }),
        ));
    }

    fn host(&self, node: usize, out: &mut Vec<Series>) {
        let etcd = |step: usize| self.etcd[node][step];
        let mut add = |series: Series| out.push(series);
        // The kernel's log
        for event in ["block_io_error", "jbd2_abort", "oom_kill"] {
            add(self.counter(
                node,
                &format!("controlplane_kernel_events_total{{event=\"{event}\"}}"),
                |_| 0.0,
            ));
        }
        add(self.gauge(
            node,
            "controlplane_kernel_event_last_timestamp_seconds{event=\"ext4_mounted\"}",
            |s| Some(self.boot[node][s] + 5.0),
        ));

        // The logs: a freeze makes the leader late for both of the others, and a boot starts the unit.
        for signature in ["volume_formatting", "etcd_db_corrupt", "go_sigbus"] {
            add(self.counter(node, &journal("events_total", signature), |_| 0.0));
        }
        let late = |s: usize| freezes(node, s) && self.leader[s] == node;
        let heartbeats = journal("events_total", "etcd_heartbeat_late");
        add(self.counter(node, &heartbeats, |s| 2.0 * f64::from(late(s))));
        add(self.gauge(node, &journal("event_last_timestamp_seconds", "unit_started"), |s| {
            Some(self.boot[node][s] + 60.0)
        }));
        // When it starts anew its pods mount their volumes before kubelet knows all objects.
        let mounts = journal("events_total", "volume_mount_failed");
        let starts = |s: usize| is_within(seconds(s), upgrade(node) + STEP, STEP);
        add(self.counter(node, &mounts, |s| 40.0 * f64::from(starts(s))));

        // The unit
        let unit = "unit=\"k3s.service\"";
        for state in
            ["active", "inactive", "activating", "deactivating", "failed", "reloading", "other"]
        {
            add(self.gauge(
                node,
                &format!("controlplane_systemd_unit_state{{{unit},state=\"{state}\"}}"),
                |s| {
                    let now = if etcd(s) { "active" } else { "activating" };
                    Some(f64::from(now == state))
                },
            ));
        }
        add(self.gauge(
            node,
            &format!("controlplane_systemd_unit_expected{{{unit}}}"),
            always(1.0),
        ));
        add(self.gauge(node, &format!("controlplane_systemd_unit_loaded{{{unit}}}"), always(1.0)));
        // One restart by itself in the time, and the stop of the upgrade.
        add(self.counter(
            node,
            &format!("controlplane_systemd_unit_restarts_total{{{unit}}}"),
            |s| f64::from(seconds(s) == 4 * DAY + 3600 * node as u64),
        ));
        let after = |s: usize| seconds(s) >= upgrade(node);
        let exit = format!(
            "controlplane_systemd_unit_last_exit_info{{{unit},code=\"killed\",status=\"TERM\"}}"
        );
        add(self.gauge(node, &exit, |s| after(s).then_some(1.0)));
        let when = format!("controlplane_systemd_unit_last_exit_timestamp_seconds{{{unit}}}");
        add(self.gauge(node, &when, |s| after(s).then(|| upgrade(node) as f64)));

        // Space: the datastore's disk, and the other one where images grow and are collected.
        let datastore = "path=\"/var/lib/etcd\",device=\"vdb1\",fstype=\"ext4\",role=\"datastore\"";
        let images =
            "path=\"/var/lib/containerd\",device=\"vda1\",fstype=\"ext4\",role=\"containers\"";
        let left = |s: usize| 0.15 + 0.05 * (1.0 - (time(s) % (9.0 * 3600.0)) / (9.0 * 3600.0));
        for (labels, size) in [(datastore, 20e9), (images, 100e9)] {
            let of_images = labels == images;
            let name = |metric: &str| format!("controlplane_filesystem_{metric}{{{labels}}}");
            add(self.gauge(node, &name("size_bytes"), always(size)));
            add(self.gauge(node, &name("avail_bytes"), |s| {
                // Whole megabytes, as df shows them.
                Some(if of_images { (left(s) * 1e5).round() * 1e6 } else { 0.7 * size })
            }));
            add(self.gauge(node, &name("files"), always(6.5e6)));
            add(self.gauge(node, &name("files_free"), always(6.1e6)));
            add(self.gauge(node, &name("readonly"), always(0.0)));
        }

        // Longhorn leaves a few orphans behind, which somebody deletes at the end of each week.
        add(self.gauge(
            node,
            "controlplane_registry_keys{resource=\"orphans.longhorn.io\"}",
            |s| etcd(s).then(|| (seconds(s) % (7 * DAY) / DAY) as f64 * 4.0),
        ));
    }
}

/// A series of the sampler `journal` about k3s.
fn journal(metric: &str, signature: &str) -> String {
    format!("controlplane_journal_{metric}{{signature=\"{signature}\",unit=\"k3s.service\"}}")
}

/// A figure that never changes.
fn always(value: f64) -> impl Fn(usize) -> Option<f64> {
    move |_| Some(value)
}

fn time(step: usize) -> f64 {
    seconds(step) as f64
}

/// In promtool's short form: runs of equal steps as `first+step x count`.
fn encode(values: &[Option<f64>]) -> String {
    let mut out = String::new();
    let mut at = 0;
    while at < values.len() {
        let rest = &values[at..];
        let Some(first) = rest[0] else {
            // The first scrape without a series ends it.
            let run = rest.iter().take_while(|v| v.is_none()).count();
            out.push_str("stale ");
            out.push_str(&"_ ".repeat(run - 1));
            at += run;
            continue;
        };
        let step = rest.get(1).copied().flatten().map_or(0.0, |second| second - first);
        // Only where adding the step again and again gives the very numbers.
        let is_next = |(k, v): (usize, &Option<f64>)| {
            step.fract() == 0.0 && *v == Some(first + step * k as f64)
        };
        let run = rest.iter().enumerate().take_while(|(k, v)| is_next((*k, v))).count().max(1);
        let sign = if step < 0.0 { '-' } else { '+' };
        if run > 2 {
            write!(out, "{first}{sign}{}x{} ", step.abs(), run - 1).unwrap();
        } else {
            write!(out, "{first} ").unwrap();
        }
        at += run.min(if run > 2 { run } else { 1 });
    }
    out
}

#[test]
fn runs_are_written_short_and_gaps_as_such() {
    assert_eq!(
        encode(&[Some(1.0), Some(1.0), Some(1.0), None, None, Some(5.0)]),
        "1+0x2 stale _ 5 "
    );
    assert_eq!(encode(&[Some(0.0), Some(2.0), Some(4.0), Some(1.5)]), "0+2x2 1.5 ");
    assert_eq!(encode(&[Some(9.0), Some(8.0), Some(7.0)]), "9-1x2 ");
}

/// Lets promtool live through the month with these rules; says what fired that should not have.
fn live_through(month: &str, rules: &[PathBuf], info: &[(&str, usize)]) {
    let folder = lab::temp_dir("month");
    let mut text = format!("evaluation_interval: {STEP}s\nrule_files:\n");
    for file in rules {
        writeln!(text, "  - {}", file.display()).unwrap();
    }
    text.push_str(month);
    let fired = |severity: &str| {
        format!(
            "count by (alertname, instance) (count_over_time(ALERTS{{alertname!=\"{WATCHDOG}\",alertstate=\"firing\",severity=\"{severity}\"}}[30d]))"
        )
    };
    let end = seconds(steps() - 1);
    text.push_str("    promql_expr_test:\n");
    for severity in ["critical", "warning"] {
        writeln!(
            text,
            "      - expr: '{}'\n        eval_time: {end}s\n        exp_samples: []",
            fired(severity)
        )
        .unwrap();
    }
    writeln!(text, "      - expr: 'count by (alertname) ({})'\n        eval_time: {end}s\n        exp_samples:", fired("info")).unwrap();
    for (alert, count) in info {
        writeln!(
            text,
            "          - labels: '{{alertname=\"{alert}\"}}'\n            value: {count}"
        )
        .unwrap();
    }
    let file = folder.path().join("month.test.yaml");
    std::fs::write(&file, &text).unwrap();
    let mut command = bound_command(lab::program("promtool"));
    command.args(["test", "rules"]).arg(&file);
    let output = output(command, Duration::from_mins(15));
    assert!(output.status.success(), "{}\n{}", output.stdout, output.stderr);
}

#[test]
fn days_of_a_healthy_cluster_page_nobody() {
    let _turn = lab::together();
    let month = Month::new();
    let mut series = Vec::new();
    for node in 0..NODES {
        month.node(node, &mut series);
    }
    let mut text = format!("tests:\n  - interval: {STEP}s\n    input_series:\n");
    for one in &series {
        writeln!(text, "      - series: '{}'\n        values: '{}'", one.name, encode(&one.values))
            .unwrap();
    }
    // The cluster has no series for these, so they would look at nothing all the time.
    let absent = [
        "apiserver.rules.yaml",
        "args.rules.yaml",
        "certificate.rules.yaml",
        "dqlite.rules.yaml",
        "etcd_snapshot.rules.yaml",
        "kine.rules.yaml",
        "static_pod.rules.yaml",
        "volume.rules.yaml",
    ];
    let (etcd, others): (Vec<_>, Vec<_>) = super::files(".rules.yaml")
        .into_iter()
        .filter(|file| !absent.iter().any(|name| file.ends_with(name)))
        .partition(|file| file.ends_with("etcd.rules.yaml"));
    // Half of the work is etcd's, so that two processes take half the time. Each night's freeze is in the
    // context that nobody is woken for: the month is not an empty one.
    let info = [("ControlPlaneDiskSyncStalls", NODES)];
    std::thread::scope(|scope| {
        scope.spawn(|| live_through(&text, &etcd, &[]));
        scope.spawn(|| live_through(&text, &others, &info));
    });
}
