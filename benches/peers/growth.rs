//! How the agent's costs grow with what there is to watch: devices, units, members, prefixes, keys.

use super::load;
use super::node::units;
use super::report::{self, mib, short, table, time, verdict};
use super::server::Server;
use super::{Size, stats};
use crate::lab::etcd::{Cluster, Etcd, Listen, Options};
use crate::lab::process::{self, bound_command, run as run_program};
use crate::lab::systemd::Container;
use crate::lab::{cached, http, temp_dir, wait_for};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

const SECOND: Duration = Duration::from_secs(1);
const ORPHANS: &str = "/registry/longhorn.io/orphans/";
const DURATION: &str = "controlplane_sampler_run_duration_seconds";

/// What one agent showed for one size.
struct Row {
    what: &'static str,
    size: usize,
    series: usize,
    scrape: f64,
    rss: f64,
    /// The sampler that has to do with it, and the median of its runs.
    sampler: &'static str,
    run: f64,
    dropped: f64,
}

pub(crate) fn run(size: Size) {
    let load_before = stats::load();
    let trial = size == Size::Trial;
    let mut rows = Vec::new();
    rows.extend([2, 10, 50, 100, 500].map(devices));
    let container = Container::boot();
    for n in if trial { vec![10, 100] } else { vec![10, 64, 100, 300, 1000] } {
        rows.push(watched_units(&container, n));
    }
    drop(container);
    for n in if trial { vec![1, 3] } else { vec![1, 3, 5, 7, 9] } {
        rows.push(members(n));
    }
    let sizes: &[usize] = if trial { &[1000, 10_000] } else { &[1000, 10_000, 100_000, 1_000_000] };
    let (prefixes, orphans) = keys(sizes);
    rows.extend(prefixes);
    report(&rows, &orphans, &load_before);
}

/// Waits until the sampler has run some times, and takes the figures.
fn figures(agent: &Server, what: &'static str, size: usize, sampler: &'static str) -> Row {
    let label = [("sampler", sampler)];
    let runs = |scrape: &crate::lab::agent::Scrape| {
        scrape.value("controlplane_sampler_runs_total", &label).unwrap_or_default()
    };
    let (mut durations, mut seen) = (Vec::new(), 0.0_f64);
    let limit = Instant::now() + 30 * SECOND;
    while durations.len() < 7 {
        assert!(
            Instant::now() < limit,
            "{what} {size}: {sampler} has run {} times",
            durations.len()
        );
        let scrape = agent.scrape();
        let now = runs(&scrape);
        // The first run does what later ones need not.
        if now > seen.max(1.0) {
            seen = now;
            durations.push(scrape.value(DURATION, &label).expect("a duration"));
        }
        std::thread::sleep(SECOND / 10);
    }
    let load = load::scrape(agent.address(), "/metrics", 1, SECOND).expect("answers");
    let cold = load::paced(&[agent.address()], "/metrics", 5, SECOND * 3 / 10).expect("answers");
    let cold: Vec<f64> = cold[0].iter().map(Duration::as_secs_f64).collect();
    let scrape = agent.scrape();
    eprintln!("growth: {size} {what}, p50 of a scrape {}", time(load.quantile(0.5)));
    Row {
        what,
        size,
        series: scrape.samples.len(),
        scrape: stats::median(&cold),
        rss: stats::memory(agent.pid()).rss,
        sampler,
        run: stats::median(&durations),
        dropped: scrape.sum("controlplane_sampler_dropped_total", &label),
    }
}

/// Nothing but this sampler, and what the agent says of itself.
pub(super) fn only(sampler: &str) -> String {
    let others = [
        "etcd",
        "dqlite",
        "kine",
        "apiserver",
        "args",
        "settings",
        "static_pod",
        "etcd_snapshot",
        "certificate",
        "registry_keys",
        "fdatasync",
        "kernel",
        "journal",
        "systemd",
        "filesystem",
        "volume",
        "snap",
    ];
    let others = others.into_iter().filter(|other| *other != sampler);
    others.map(|other| format!("{other}: {{enabled: false}}\n")).collect()
}

/// Disks with errors below a root of files: the kernel's log names each, `/sys` counts for each.
fn devices(n: usize) -> Row {
    let root = temp_dir("root");
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/host/k3s-etcd/.");
    run_program("cp", ["-r".as_ref(), fixture.as_os_str(), root.path().as_os_str()]);
    let (mut log, mut stats) = (String::new(), String::new());
    for i in 0..n {
        let name = disk(i);
        let folder = root.path().join("sys/block").join(&name).join("device");
        fs::create_dir_all(&folder).expect("a device");
        fs::write(folder.join("ioerr_cnt"), "0x2\n").expect("a count");
        writeln!(log, "3,{i},{i}000,-;I/O error, dev {name}, sector 2048 op 0x1:(WRITE) flags 0x800 phys_seg 1 prio class 2")
            .expect("a text");
        writeln!(stats, "   8 {i} {name} 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17")
            .expect("a text");
    }
    fs::write(root.path().join("dev/kmsg"), log).expect("a log");
    fs::write(root.path().join("proc/diskstats"), stats).expect("a table");
    let mut agent = Server::agent(&only("kernel"), Some(root.path()));
    agent.wait_for("/-/ready", 20 * SECOND);
    figures(&agent, "devices with errors", n, "kernel")
}

/// sda to sdz, sdaa and so on, as the kernel names them.
fn disk(mut n: usize) -> String {
    let mut name = Vec::new();
    loop {
        name.push(b'a' + u8::try_from(n % 26).expect("a letter"));
        if n < 26 {
            break;
        }
        n = n / 26 - 1;
    }
    name.reverse();
    format!("sd{}", String::from_utf8_lossy(&name))
}

fn watched_units(container: &Container, n: usize) -> Row {
    let folder = container.root().join("etc/systemd/system");
    // The first is not one of many.
    let all: Vec<_> = units(n + 3).skip(3).collect();
    for (name, text) in &all {
        fs::write(folder.join(name), text).expect("a unit");
    }
    container.systemctl(&["daemon-reload"]);
    for some in all.chunks(50) {
        let names = some.iter().map(|(name, _)| name.as_str());
        container.systemctl(&["start"].into_iter().chain(names).collect::<Vec<_>>());
    }
    let bus = container.bus_address();
    let config = format!(
        "{}systemd: {{units: ['part-*.service'], bus: '{bus}', interval: 500ms}}\n",
        only("systemd")
    );
    let mut agent = Server::agent(&config, None);
    agent.wait_for("/-/ready", 20 * SECOND);
    figures(&agent, "units", n, "systemd")
}

fn members(n: usize) -> Row {
    let cluster = Cluster::start(Etcd::V35, n);
    let pki = &cluster.pki;
    let config = format!(
        "{}etcd: {{endpoints: ['{}'], ca_file: '{}', cert_file: '{}', key_file: '{}', interval: 500ms}}\n",
        only("etcd"),
        cluster.client_url(0),
        pki.ca.display(),
        pki.client.cert.display(),
        pki.client.key.display(),
    );
    let mut agent = Server::agent(&config, None);
    agent.wait_for("/-/ready", 20 * SECOND);
    let up = move |scrape: &crate::lab::agent::Scrape| {
        scrape.value("controlplane_etcd_voters_reachable", &[]) == Some(n as f64)
    };
    agent.wait_until("all members", 20 * SECOND, up);
    figures(&agent, "etcd members", n, "etcd")
}

/// Counting against listing, for one number of keys.
struct Orphans {
    keys: usize,
    ours: Vec<f64>,
    list: Vec<f64>,
    ours_bytes: f64,
    list_bytes: f64,
    agent_rss: f64,
    etcdctl_rss: f64,
    /// The most that etcd had resident beyond what it had before.
    etcd_ours: f64,
    etcd_list: f64,
}

fn keys(sizes: &[usize]) -> (Vec<Row>, Vec<Orphans>) {
    const BATCH: usize = 100_000;
    let cluster =
        Cluster::start_with(Etcd::V35, 1, Options { listen: Listen::Plain, ..Options::default() });
    let url = cluster.client_url(0);
    let mut rows = Vec::new();
    for n in [1, 11, 50, 100] {
        let own = (0..n).map(|i| format!("r{i}: /registry/r{i}/"));
        let none = shipped_prefixes().into_iter().map(|name| format!("{name}: ''"));
        let prefixes: Vec<String> = own.chain(none).collect();
        let config = format!(
            "{}registry_keys: {{endpoints: '{url}', interval: 500ms, prefixes: {{{}}}}}\n",
            only("registry_keys"),
            prefixes.join(", ")
        );
        let mut agent = Server::agent(&config, None);
        agent.wait_for("/-/ready", 20 * SECOND);
        rows.push(figures(&agent, "prefixes", n, "registry_keys"));
    }
    let mut there = 0;
    let mut all = Vec::new();
    for &n in sizes {
        while there < n {
            let some = (n - there).min(BATCH);
            cluster.put_many(&format!("{ORPHANS}longhorn-system/orphan-{there:08}-"), some, 200);
            there += some;
        }
        all.push(orphans(&cluster, &url, n));
    }
    (rows, all)
}

fn shipped_prefixes() -> Vec<String> {
    let defaults = include_str!("../../deploy/config.yaml");
    let lines = defaults.lines().skip_while(|line| *line != "  prefixes:").skip(1);
    let lines = lines.take_while(|line| line.starts_with("    "));
    lines.filter_map(|line| Some(line.trim().split_once(": ")?.0.to_owned())).collect()
}

fn orphans(cluster: &Cluster, url: &str, keys: usize) -> Orphans {
    const ROUNDS: usize = 3;
    let etcd = cluster.pid(0);
    let metrics = SocketAddr::from(([127, 0, 0, 1], cluster.metrics_port(0)));
    let none = shipped_prefixes().into_iter().filter(|name| name != "orphans.longhorn.io");
    let none: Vec<String> = none.map(|name| format!("{name}: ''")).collect();
    let config = format!(
        "{}registry_keys: {{endpoints: '{url}', interval: 1m, timeout: 30s, prefixes: {{{}}}}}\n",
        only("registry_keys"),
        none.join(", ")
    );
    let mut found = Orphans {
        keys,
        ours: Vec::new(),
        list: Vec::new(),
        ours_bytes: 0.0,
        list_bytes: 0.0,
        agent_rss: 0.0,
        etcdctl_rss: 0.0,
        etcd_ours: 0.0,
        etcd_list: 0.0,
    };
    let folder = temp_dir("list");
    for round in 0..ROUNDS {
        for half in 0..2 {
            // Its peak begins anew.
            fs::write(format!("/proc/{etcd}/clear_refs"), "5").expect("a new peak");
            let (before, sent) = (stats::memory(etcd).rss, sent(metrics));
            if (round + half) % 2 == 0 {
                let mut agent = Server::agent(&config, None);
                agent.wait();
                let scrape = agent.wait_until("a count", 60 * SECOND, |scrape| {
                    scrape.value("controlplane_registry_keys", &[]) == Some(keys as f64)
                        && scrape.value(DURATION, &[("sampler", "registry_keys")]).is_some()
                });
                let took = scrape.value(DURATION, &[("sampler", "registry_keys")]);
                found.ours.push(took.expect("a duration"));
                found.agent_rss = found.agent_rss.max(stats::peak(agent.pid()));
                found.ours_bytes = self::sent(metrics) - sent;
                found.etcd_ours = found.etcd_ours.max(stats::peak(etcd) - before);
            } else {
                let (took, peak) = list(url, keys, folder.path());
                found.list.push(took);
                found.etcdctl_rss = found.etcdctl_rss.max(peak);
                found.list_bytes = self::sent(metrics) - sent;
                found.etcd_list = found.etcd_list.max(stats::peak(etcd) - before);
            }
        }
    }
    eprintln!(
        "growth: {keys} keys, {} against {}",
        time(stats::median(&found.ours)),
        time(stats::median(&found.list))
    );
    found
}

/// `etcdctl get --prefix --keys-only | wc -l`: how long it takes, and the most memory that etcdctl has.
fn list(url: &str, keys: usize, folder: &Path) -> (f64, f64) {
    // It writes an empty line after each key.
    let script = r#""$1" --endpoints "$2" --command-timeout=60s get --prefix --keys-only "$3" | wc -l > "$4""#;
    let file = folder.join("lines");
    let mut command = bound_command("bash");
    command.env("ETCDCTL_API", "3").args(["-c", script, "bash"]);
    command.arg(cached("etcd-3.5/usr/bin/etcdctl")).args([url, ORPHANS]).arg(&file);
    let started = Instant::now();
    let mut child = process::spawn(command);
    let mut peak = 0.0_f64;
    let status = loop {
        if let Some(status) = child.try_wait().expect("our child") {
            break status;
        }
        assert!(started.elapsed() < 90 * SECOND, "etcdctl lists {keys} keys for too long");
        for pid in stats::tree(child.id()) {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            if name.trim() == "etcdctl" {
                peak = peak.max(stats::peak(pid));
            }
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    let took = started.elapsed().as_secs_f64();
    assert!(status.success(), "etcdctl: {status}");
    let lines = fs::read_to_string(&file).expect("a number");
    assert_eq!(lines.trim().parse(), Ok(2 * keys), "etcdctl lists other keys");
    (took, peak)
}

/// Bytes that etcd has sent to clients.
fn sent(metrics: SocketAddr) -> f64 {
    let name = "etcd_network_client_grpc_sent_bytes_total";
    let text =
        wait_for("etcd's own figures", 20 * SECOND, || http::get(metrics, "/metrics")).text();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|value| value.trim().parse().ok()).unwrap_or(f64::NAN)
}

fn report(rows: &[Row], orphans: &[Orphans], load_before: &str) {
    let mut text = format!("{}\n\n", report::conditions(load_before));
    let lines: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            vec![
                format!("{} {}", row.size, row.what),
                row.series.to_string(),
                time(row.scrape),
                mib(row.rss),
                format!("{}: {}", row.sampler, time(row.run)),
                if row.dropped > 0.0 { "yes".to_owned() } else { String::new() },
            ]
        })
        .collect();
    let head = ["", "series", "scrape, rendered anew", "RSS", "a run of the sampler", "capped"];
    text.push_str(&table(&head, &lines));
    text.push('\n');
    let lines: Vec<Vec<String>> = orphans
        .iter()
        .map(|one| {
            vec![
                short(one.keys as f64),
                time(stats::median(&one.ours)),
                time(stats::median(&one.list)),
                short(stats::ratio(&one.list, &one.ours)),
                format!("{} / {}", short(one.ours_bytes), short(one.list_bytes)),
                format!("{} / {}", mib(one.agent_rss), mib(one.etcdctl_rss)),
                format!("{} / {}", mib(one.etcd_ours), mib(one.etcd_list)),
            ]
        })
        .collect();
    let head = [
        "orphans",
        "counted",
        "listed by `etcdctl`",
        "times",
        "bytes sent: counting / listing",
        "client's peak memory",
        "etcd's peak, beyond before",
    ];
    text.push_str(&table(&head, &lines));
    if let Some(one) = orphans.iter().find(|one| one.keys == 100_000) {
        let times = stats::ratio(&one.list, &one.ours);
        let first = orphans.first().map_or(f64::NAN, |first| first.ours_bytes);
        let rows = vec![
            vec![
                "counting 100,000 orphans at least 50 times as fast as listing them".to_owned(),
                format!("{} times", short(times)),
                verdict(times >= 50.0),
            ],
            vec![
                "constant bytes on the wire".to_owned(),
                format!("{} for 1,000, {} for 100,000", short(first), short(one.ours_bytes)),
                verdict(one.ours_bytes <= first * 1.1),
            ],
        ];
        text.push('\n');
        text.push_str(&table(&["target", "figure", ""], &rows));
    }
    report::write("growth", &text);
    keep(rows, orphans, load_before);
}

fn keep(rows: &[Row], orphans: &[Orphans], load_before: &str) {
    let rows: Vec<Value> = rows
        .iter()
        .map(|row| {
            json!({
                "what": row.what, "size": row.size, "series": row.series, "scrape_seconds": row.scrape,
                "rss_bytes": row.rss, "sampler": row.sampler, "run_seconds": row.run, "dropped": row.dropped,
            })
        })
        .collect();
    let orphans: Vec<Value> = orphans
        .iter()
        .map(|one| {
            json!({
                "keys": one.keys, "counted_seconds": one.ours, "listed_seconds": one.list,
                "counted_bytes": one.ours_bytes, "listed_bytes": one.list_bytes,
                "agent_peak_bytes": one.agent_rss, "etcdctl_peak_bytes": one.etcdctl_rss,
                "etcd_peak_counting_bytes": one.etcd_ours, "etcd_peak_listing_bytes": one.etcd_list,
            })
        })
        .collect();
    report::keep("growth", load_before, json!({"growth": rows, "orphans": orphans}));
}
