//! Every board during an incident: three members over TLS, the leader's disk stalls, hangs and fails, a unit
//! crashes, an agent goes silent; beside them a dqlite cluster loses its leader, and kine ends. Prometheus has
//! scraped it all and evaluated the shipped rules.
//!
//! Each query must bring data, or stand on a list with the reason. Then each board is drawn from the same
//! answers; the images stay in `target/tmp/dashboards` for whoever wants to look at them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::others::Others;
use super::{BOARDS, board, filled, list, panels, text};
use crate::lab;
use crate::lab::agent::{self, Agent};
use crate::lab::disk::{Kind, SlowDisk};
use crate::lab::etcd::{Cluster, Etcd, Options};
use crate::lab::process::{bound_command, output};
use crate::lab::prometheus::Prometheus;
use crate::lab::systemd::Container;
use crate::lab::volume::{self, Volume};

const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_hours(24);
const UNIT: &str = "k3s.service";
/// The scrape jobs, of which each is a control plane; the second set is the same without the label `cluster`.
const JOBS: [&str; 4] = ["controlplane", "microk8s", "single", "kine"];
const PLAIN: &str = "plain-";
/// A row for each sampler that a node does not run: Grafana scrolls.
const LONG: &str = "Samplers that do not run";
/// Queries that this incident leaves without an answer, and why. By board, panel and reference.
const QUIET: [(&str, &str, &str, &str); 9] = [
    (
        "overview",
        "Nodes",
        "H",
        "the laboratory's members do not lie where detection looks for a datastore",
    ),
    ("node", "Checks that fail", "A", "no API server runs here; etcd's own health is the URL"),
    ("node", "Age of processes", "A", "the laboratory's members run neither in pods nor below k0s"),
    ("node", "Certificates", "B", "nobody here renews the laboratory's certificates"),
    (
        "node",
        "Settings that are not the same on all of these nodes",
        "A",
        "the laboratory's machine is all of its nodes",
    ),
    ("node", "Files of the settings", "A", "no distribution has files of settings here"),
    ("node", "ZFS", "A", "this kernel has no ZFS"),
    ("node", "ZFS", "B", "this kernel has no ZFS"),
    ("datastore", "Share of the quota in a day", "A", "no database here is a quarter of its quota"),
];

/// Three nodes of etcd, of which only the first one lies on a disk that fails, and others.
struct Lab {
    disk: SlowDisk,
    container: Container,
    cluster: Cluster,
    /// With a port beside the agent's own, which stays the same when it starts anew.
    agents: Vec<(Agent, agent::Options, u16)>,
    others: Others,
    volume: Volume,
    _folders: [tempfile::TempDir; 3],
}

impl Lab {
    fn start() -> Self {
        let disk = SlowDisk::sized(Kind::Ext4, 512 << 20);
        let mount = disk.mount().path().to_owned();
        let container = Container::boot();
        let data = lab::temp_dir("members");
        symlink(&mount, data.path().join("m0")).unwrap();
        let options = Options { data_root: Some(data.path().to_owned()), ..Options::default() };
        let cluster = Cluster::start_with(Etcd::V35, 3, options);
        let calm = "[Service]\nRestart=always\nRestartSec=300ms\nExecStart=/bin/sleep 1000\n\
                    [Unit]\nStartLimitIntervalSec=0\n";
        container.install_unit(UNIT, calm);
        container.systemctl(&["start", UNIT]);
        let snaps = lab::temp_dir("snaps");
        std::fs::create_dir_all(snaps.path().join("microk8s/common")).unwrap();
        std::fs::write(snaps.path().join("microk8s/common/images"), vec![1; 4 << 20]).unwrap();

        let saved = lab::temp_dir("snapshots");
        std::fs::write(saved.path().join("etcd-snapshot-cp-1-1776000000"), vec![1; 4 << 20])
            .unwrap();

        // Nothing but the name of a log is read, so any folder will do.
        let pod = "kube-system_etcd-cp-1_e77889d75ec8be65235fe5a966d3f808/etcd";
        std::fs::create_dir_all(saved.path().join("pods").join(pod)).unwrap();
        std::fs::write(saved.path().join("pods").join(pod).join("3.log"), "").unwrap();

        // A volume with data and two backups, of which the newest is too old.
        let volume = Volume::longhorn(Kind::Ext4, 60 * DAY);
        volume.fill(200 << 20);
        volume::put_target(&cluster, "s3://backups/");
        volume::put_volume(&cluster, volume.name(), 61 * DAY);
        for (id, age) in [("backup-1", 12 * DAY), ("backup-2", 11 * DAY)] {
            volume::put_backup(&cluster, id, volume.name(), age);
        }

        // The probe of the others must not lie on the disk that fails.
        let paths = [mount, cluster.data_dir(1), cluster.data_dir(2)];
        let agents = (0..3).map(|member| {
            let path = paths[member].display();
            // The kernel's log is one for all three, and this machine's units are nobody's.
            let first = format!(
                "kernel: {{ignore_devices: []}}\n\
                 systemd: {{units: [{UNIT}], bus: '{}', interval: 500ms, timeout: 1s}}\n\
                 snap: {{root: '{}', interval: 1s}}\n\
                 volume: {{state_file: ~, interval: 500ms}}\n",
                container.bus_address(),
                snaps.path().display()
            );
            let others = "kernel: {enabled: false}\nsystemd: {enabled: false}\nsnap: {enabled: false}\n\
                          volume: {enabled: false}\n";
            // It sees the processes of all three.
            let seen = if member == 0 { "tracepoints" } else { "off" };
            let (pki, leaf) = (&cluster.pki, &cluster.pki.client);
            let health = cluster.metrics_port(member);
            let (ca, cert, saved) =
                (pki.ca.display(), leaf.cert.display(), saved.path().display());
            let config = format!(
                "etcd: {{endpoints: ['{}'], ca_file: {}, cert_file: {}, key_file: {}, interval: 500ms, \
                 timeout: 2s, expected_members: 3}}\n\
                 registry_keys: {{interval: 1s, prefixes: {{}}}}\n\
                 journal: {{enabled: false}}\n\
                 fdatasync: {{paths: ['{path}'], interval: 200ms, passive: {seen}}}\n\
                 filesystem: {{paths: ['{path}'], interval: 1s}}\n\
                 settings: {{interval: 1s}}\n\
                 apiserver: {{urls: {{etcd: 'http://127.0.0.1:{health}/health'}}, interval: 1s}}\n\
                 certificate: {{paths: ['{ca}', '{cert}'], interval: 1s}}\n\
                 etcd_snapshot: {{dir: '{saved}', interval: 1s}}\n\
                 static_pod: {{dir: '{saved}/pods', interval: 1s}}\n{}",
                cluster.client_url(member),
                ca,
                cert,
                leaf.key.display(),
                if member == 0 { &first } else { others },
            );
            let port = lab::free_port();
            let args = vec![format!("--web.listen-address=127.0.0.1:{port}")];
            let options = agent::Options { config, args, ..agent::Options::default() };
            (Agent::start_with(options.clone()), options, port)
        });
        let agents = agents.collect();
        let others = Others::start(&container);
        Self { disk, container, cluster, agents, others, volume, _folders: [data, snaps, saved] }
    }

    /// The same agents twice: as a user with the label `cluster` has them, and as one without.
    fn prometheus(&self) -> Prometheus {
        let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("alerts/*.rules.yaml");
        let mut config = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: ['{}']\nscrape_configs:\n",
            rules.display()
        );
        let etcd = self.agents.iter().enumerate().map(|(index, (_, _, port))| {
            (JOBS[0], format!("cp-{}", index + 1), format!("127.0.0.1:{port}"))
        });
        let targets: Vec<_> = etcd.chain(self.others.targets()).collect();
        for (prefix, cluster) in [("", "cluster: prod, "), (PLAIN, "")] {
            for job in JOBS {
                writeln!(config, "  - job_name: {prefix}{job}\n    static_configs:").unwrap();
                for (_, name, address) in targets.iter().filter(|(of, _, _)| *of == job) {
                    writeln!(
                        config,
                        "      - {{targets: ['{address}'], labels: {{{cluster}instance: '{name}:10379'}}}}"
                    )
                    .unwrap();
                }
            }
        }
        Prometheus::start(&config)
    }

    fn lead(&self, member: usize) {
        let (id, _) = self.cluster.status(member).unwrap();
        if self.cluster.leader() != member {
            self.cluster.etcdctl(&["move-leader", &format!("{id:x}")]);
        }
    }

    fn incident(&mut self) {
        let first = &self.agents[0].0;
        self.lead(0);
        self.others.incident();
        self.others.logs(&self.container);
        self.cluster.put_many("/registry/longhorn.io/orphans/longhorn-system/orphan-", 300, 1_000);
        self.cluster.put_many("/registry/pods/default/pod-", 100, 1_000);
        std::thread::sleep(6 * SECOND);
        self.others.kine_dies();
        self.others.logs(&self.container);
        self.cluster.put_many("/registry/longhorn.io/orphans/longhorn-system/late-", 2_000, 1_000);
        std::thread::sleep(3 * SECOND);
        self.volume.reformat();
        self.disk.set_delay(SECOND * 12 / 10);
        std::thread::sleep(9 * SECOND);
        // The leader's disk hangs, so another one is elected.
        self.disk.hang();
        first.wait_until("a stuck sync", "controlplane_fdatasync", 20 * SECOND, |scrape| {
            scrape.sum("controlplane_fdatasync_inflight_seconds", &[]) > 7.0
        });
        self.disk.release();
        std::thread::sleep(2 * SECOND);
        self.disk.set_error(5);
        drop(self.cluster.try_etcdctl(&["put", "key", "value"]));
        first.wait_until("a dead member", "controlplane_etcd_up", 40 * SECOND, |scrape| {
            scrape.value("controlplane_etcd_up", &[]) == Some(0.0)
                && scrape.sum("controlplane_fdatasync_failures_total", &[]) >= 1.0
        });
        for _ in 0..8 {
            self.container.systemctl(&["kill", "--signal=BUS", UNIT]);
            std::thread::sleep(SECOND);
        }
        // The second agent starts anew, the third one goes silent.
        let (agent, options, _) = &mut self.agents[1];
        agent.stop(5 * SECOND);
        *agent = Agent::start_with(options.clone());
        std::thread::sleep(3 * SECOND);
        self.agents.pop();
        std::thread::sleep(4 * SECOND);
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// The range that the boards show.
#[derive(Clone, Copy)]
struct Range {
    start: u64,
    end: u64,
    /// Seconds between two values.
    step: u64,
}

impl Range {
    fn new(start: u64, end: u64) -> Self {
        Self { start, end, step: 1 }
    }

    /// `$__rate_interval` of Grafana: a step and a scrape, and four scrapes at least.
    fn window(self) -> String {
        format!("{}s", (self.step + 1).max(4))
    }
}

fn ask(prometheus: &Prometheus, target: &Value, expr: &str, range: Range) -> Value {
    if target["instant"] == true {
        let time = range.end.to_string();
        return prometheus.api("query", &[("query", expr), ("time", &time)])["result"].take();
    }
    let (start, end, step) =
        (range.start.to_string(), range.end.to_string(), range.step.to_string());
    let asked = [("query", expr), ("start", &start), ("end", &end), ("step", &step)];
    prometheus.api("query_range", &asked)["result"].take()
}

/// The board with the answers to all of its queries, as the drawing wants it.
fn answers(
    prometheus: &Prometheus,
    board: &Value,
    cluster: &str,
    job: &str,
    range: Range,
    note: &str,
) -> Value {
    let mut results = json!({});
    for panel in panels(board) {
        for target in list(&panel["targets"]) {
            let expr = filled(text(&target["expr"]), cluster, job, &range.window());
            let id = panel["id"].to_string();
            results[id][text(&target["refId"])] = ask(prometheus, target, &expr, range);
        }
    }
    let notes = list(&board["annotations"]["list"]).iter().map(|note| {
        let expr = filled(text(&note["expr"]), cluster, job, &range.window());
        let result = ask(prometheus, &json!({}), &expr, range);
        json!({"name": note["name"], "color": note["iconColor"], "enable": note["enable"], "result": result})
    });
    let annotations: Vec<Value> = notes.collect();
    json!({
        "board": board, "results": results, "annotations": annotations, "step": range.step,
        "start": range.start, "end": range.end,
        "note": format!("{note}; the same queries, titles, units and thresholds. UTC."),
    })
}

/// The answer to one query of a panel, by instance.
fn by_node<'a>(answers: &'a Value, panel: &str, reference: &str) -> BTreeMap<&'a str, &'a Value> {
    let found = panels(&answers["board"]).into_iter().find(|other| other["title"] == *panel);
    let id = found.unwrap_or_else(|| panic!("no panel {panel}"))["id"].to_string();
    let series = list(&answers["results"][id][reference]).iter();
    series.map(|series| (text(&series["metric"]["instance"]), series)).collect()
}

/// When a node's lane first had one of these states.
fn first_time(answers: &Value, node: &str, lane: &str, states: &[&str]) -> u64 {
    let lanes = by_node(answers, "What happened first", lane);
    let values = list(&lanes[node]["values"]);
    let hit = values.iter().find(|value| states.contains(&text(&value[1])));
    hit.unwrap_or_else(|| panic!("lane {lane} never had {states:?}: {values:?}"))[0]
        .as_u64()
        .unwrap()
}

/// What a person must be able to read off the boards, with the states of `dashboards/generator/parts.py`.
fn tells_the_truth(name: &str, answers: &Value) {
    match name {
        "overview" => {
            let verdicts = by_node(answers, "Nodes", "A");
            let verdict = |node: &str| text(&verdicts[node]["value"][1]);
            assert_eq!(verdict("cp-1:10379"), "3", "critical");
            assert!(["0", "2"].contains(&verdict("cp-2:10379")), "ok: {verdicts:?}");
            assert_eq!(verdict("cp-3:10379"), "4", "silent");
            let states = by_node(answers, "Nodes", "C");
            for (node, expected) in [
                ("cp-1:10379", &["46"][..]),
                ("cp-2:10379", &["41", "42"]),
                ("mk-1:10379", &["46"]),
                ("mk-2:10379", &["41", "42"]),
                ("ck-1:10379", &["42"]),
                ("ks-1:10379", &["46"]),
            ] {
                let state = text(&states[node]["value"][1]);
                assert!(expected.contains(&state), "{node}: {state}");
            }
        }
        "node" => {
            let first =
                |lane: &str, states: &[&str]| first_time(answers, "cp-1:10379", lane, states);
            let (stalls, stuck) = (first("B", &["21"]), first("B", &["22"]));
            let (errors, down) = (first("A", &["11", "12"]), first("D", &["46"]));
            let failed = first("B", &["23"]);
            let restarted = first("J", &["63"]);
            let order = [stalls, stuck, failed, down, restarted];
            assert!(order.is_sorted() && stuck < errors, "{order:?}, kernel {errors}");
            let flag = first_time(answers, "mk-1:10379", "I", &["56"]);
            let down = first_time(answers, "mk-1:10379", "F", &["46"]);
            let silent = first_time(answers, "mk-2:10379", "G", &["51"]);
            assert!(flag <= down && down.abs_diff(silent) <= 5, "{flag} {down} {silent}");
            first_time(answers, "ks-1:10379", "H", &["46"]);
        }
        _ => {
            for (panel, node) in [("Members", "cp-1:10379"), ("dqlite's members", "mk-1:10379")] {
                let states = by_node(answers, panel, "A");
                assert_eq!(text(&states[node]["value"][1]), "46", "{node}: down");
            }
        }
    }
}

/// States of `dashboards/generator/parts.py` that are no trouble; and slow syncs, which are a share of those in a window and
/// not something that happened.
const WELL: [&str; 6] = ["0", "20", "40", "41", "42", "43"];

/// The lanes of a board, by panel, query and what a series is about: its values.
fn lanes(answers: &Value) -> BTreeMap<String, &[Value]> {
    let mut found = BTreeMap::new();
    let timelines = panels(&answers["board"]).into_iter();
    for panel in timelines.filter(|panel| panel["type"] == "state-timeline") {
        let results = answers["results"][panel["id"].to_string()].as_object().unwrap();
        for (reference, series) in results {
            for one in list(series) {
                let lane = format!("{}, {reference} {}", panel["title"], one["metric"]);
                found.insert(lane, list(&one["values"]));
            }
        }
    }
    found
}

/// On a screen with a value each twenty seconds, whatever was not well for one of them still shows.
fn short_outages_are_kept(fine: &Value, coarse: &Value, range: Range) {
    let (fine, coarse) = (lanes(fine), lanes(coarse));
    let mut checked = 0;
    for (lane, values) in fine {
        let later = coarse.get(&lane).unwrap_or_else(|| panic!("{lane} is gone"));
        for value in values.iter().filter(|value| !WELL.contains(&text(&value[1]))) {
            let at = value[0].as_u64().unwrap();
            let next = range.start + (at - range.start).div_ceil(range.step) * range.step;
            let shown = later.iter().find(|value| value[0].as_u64() == Some(next));
            // What came after the last step is not on the screen yet.
            let Some(shown) = shown else { continue };
            assert!(!WELL.contains(&text(&shown[1])), "{lane}: {value} is {shown} at {next}");
            checked += 1;
        }
    }
    assert!(checked > 50, "{checked} values of trouble");
}

/// Which queries brought nothing, as board, panel and reference.
fn empty(name: &str, answers: &Value) -> Vec<(String, String, String)> {
    let mut found = Vec::new();
    for panel in panels(&answers["board"]) {
        for (reference, result) in answers["results"][panel["id"].to_string()].as_object().unwrap()
        {
            if list(result).is_empty() {
                found.push((name.to_owned(), text(&panel["title"]).to_owned(), reference.clone()));
            }
        }
    }
    for note in list(&answers["annotations"]) {
        if list(&note["result"]).is_empty() {
            found.push((name.to_owned(), text(&note["name"]).to_owned(), "annotation".to_owned()));
        }
    }
    found
}

/// Draws the board with a headless browser and gives what the page says it drew.
fn draw(name: &str, answers: &Value, folder: &Path) -> Vec<Value> {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/draw");
    let page = lab::temp_dir("page");
    for file in ["board.html", "draw.js"] {
        std::fs::copy(sources.join(file), page.path().join(file)).unwrap();
    }
    let library = lab::cached("echarts/echarts.min.js");
    std::fs::copy(library, page.path().join("echarts.js")).unwrap();
    std::fs::write(page.path().join("data.js"), format!("const DATA = {answers};\n")).unwrap();
    let mut cells = 0;
    for panel in panels(&answers["board"]) {
        let edge = |key: &str| panel["gridPos"][key].as_i64().unwrap();
        cells = cells.max(edge("y") + edge("h"));
    }
    let height = 52 + 38 * cells;
    let image = folder.join(format!("{name}.png"));
    let mut command = bound_command(lab::program("chromium"));
    command
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--no-first-run",
        ])
        .args([
            "--disable-background-networking",
            "--disable-component-update",
            "--enable-logging=stderr",
        ])
        .arg(format!("--user-data-dir={}", page.path().join("profile").display()))
        .arg(format!("--window-size=1600,{height}"))
        .arg(format!("--screenshot={}", image.display()))
        .arg(format!("file://{}", page.path().join("board.html").display()));
    let said = output(command, Duration::from_mins(1));
    let console: Vec<&str> = said.stderr.lines().filter(|line| line.contains("CONSOLE")).collect();
    let drawn = console.iter().find_map(|line| line.split_once("\"DRAWN ")).map(|(_, rest)| rest);
    let drawn = drawn.unwrap_or_else(|| panic!("{name}: the page failed: {}", said.stderr));
    assert_eq!(console.len(), 1, "{name}: the page complains: {console:?}");
    let (drawn, _) = drawn.rsplit_once("\", source: ").unwrap();
    assert!(image.metadata().unwrap().len() > 20_000, "{} is too small", image.display());
    serde_json::from_str(drawn).unwrap_or_else(|e| panic!("{e}: {drawn}"))
}

/// What stands above the boards of this group's incident.
const LAB: &str = "A real incident of the laboratory";

/// Draws a board of the last seconds of another test's incident, for whoever wants to look at it.
#[track_caller]
pub(crate) fn picture(prometheus: &Prometheus, name: &str, of: &str, seconds: u64, note: &str) {
    let end = now();
    let range = Range::new(end - seconds, end);
    let answers = answers(prometheus, &board(name), ".*", ".*", range, note);
    let drawn = draw(&format!("{of}-{name}"), &answers, &images());
    assert_eq!(drawn.len(), panels(&answers["board"]).len(), "{of}: {drawn:?}");
}

/// Where the images stay.
fn images() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("dashboards");
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

#[test]
fn every_query_brings_data_in_an_incident_and_every_board_can_be_drawn() {
    let _turn = lab::alone();
    let mut lab = Lab::start();
    let prometheus = lab.prometheus();
    let started = now();
    lab.incident();
    let range = Range::new(started, now());

    let mut silent = Vec::new();
    let mut blank = Vec::new();
    for name in BOARDS {
        let board = board(name);
        let labelled = answers(&prometheus, &board, "prod", &JOBS.join("|"), range, LAB);
        let plain = answers(&prometheus, &board, ".*", &format!("{PLAIN}.*"), range, LAB);
        assert_eq!(empty(name, &plain), empty(name, &labelled), "without the label cluster");
        silent.extend(empty(name, &labelled));
        tells_the_truth(name, &labelled);
        if name == "node" {
            let range = Range { step: 20, ..range };
            let coarse = answers(&prometheus, &board, "prod", &JOBS.join("|"), range, LAB);
            short_outages_are_kept(&labelled, &coarse, range);
        }
        let drawn = draw(name, &labelled, &images());
        assert_eq!(drawn.len(), panels(&board).len(), "{name}: {drawn:?}");
        for panel in drawn {
            // A chart of one thin line has some hundred coloured pixels.
            let enough = if panel["series"] == 0 { 6 } else { 1 };
            let cut = panel["cut"] == true && panel["title"] != LONG;
            if panel["painted"].as_u64().unwrap() < enough || cut {
                blank.push(format!("{name}: {panel}"));
            }
        }
    }
    let expected = QUIET.iter().map(|(board, panel, reference, _)| {
        ((*board).to_owned(), (*panel).to_owned(), (*reference).to_owned())
    });
    assert_eq!(silent, expected.collect::<Vec<_>>(), "right: what may bring nothing");
    assert!(blank.is_empty(), "blank or cut: {blank:#?}");
}
