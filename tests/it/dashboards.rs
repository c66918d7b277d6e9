//! The Grafana boards: what the generator writes, Grafana's rules, and every query against a real incident.

pub(crate) mod incident;
mod others;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use controlplane_exporter::metric::Kind;
use controlplane_exporter::runbook::URL as RUNBOOKS;
use controlplane_exporter::{store, thresholds};
use regex::Regex;
use serde_json::Value;
use yaml_rust2::{Yaml, YamlLoader};

use crate::alerts::metric;
use crate::lab;
use crate::lab::process::{Output, bound_command, output, run};

const BOARDS: [&str; 3] = ["overview", "node", "datastore"];
/// The panels that we use, and Grafana's names of the units that we use.
const KINDS: [&str; 5] = ["stat", "table", "timeseries", "state-timeline", "heatmap"];
const UNITS: [&str; 6] = ["none", "short", "s", "bytes", "percentunit", "wps"];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("dashboards")
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn yaml(path: &Path) -> Yaml {
    let mut found = YamlLoader::load_from_str(&read(path))
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert_eq!(found.len(), 1, "{}", path.display());
    found.remove(0)
}

/// A committed board.
fn board(name: &str) -> Value {
    serde_json::from_str(&read(&folder().join(format!("{name}.json")))).unwrap()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}"))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// Every panel but the rows, those of collapsed rows included.
fn panels(board: &Value) -> Vec<&Value> {
    let mut found = Vec::new();
    for panel in list(&board["panels"]) {
        found.push(panel);
        found.extend(list(&panel["panels"]));
    }
    found.retain(|panel| panel["type"] != "row");
    found
}

/// A panel's or an annotation's queries with the name of where they stand.
fn queries(board: &Value) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for panel in panels(board) {
        for target in list(&panel["targets"]) {
            found.push((text(&panel["title"]).to_owned(), text(&target["expr"]).to_owned()));
        }
    }
    for note in list(&board["annotations"]["list"]) {
        let expr = text(&note["expr"]).to_owned();
        assert_eq!(text(&note["target"]["expr"]), expr);
        found.push((text(&note["name"]).to_owned(), expr));
    }
    found
}

/// A query as Grafana would send it, with these values of the variables.
fn filled(expr: &str, cluster: &str, job: &str, rate_interval: &str) -> String {
    let expr = expr.replace("$__rate_interval", rate_interval).replace("$cluster", cluster);
    let expr = expr.replace("$job", job).replace("$instance", ".+");
    // `$1` is label_replace's.
    assert!(!expr.replace("'$1'", "").contains('$'), "a variable that nobody fills: {expr}");
    expr
}

/// Runs one of our Python scripts with Grafana's SDK.
fn python(args: &[&Path]) -> Output {
    let mut command = bound_command(lab::program("python3"));
    command.arg("-B").args(args).env("PYTHONPATH", lab::cached("grafana-sdk"));
    output(command, Duration::from_mins(1))
}

/// All files below a folder by their path, hidden ones and the generator's own left out.
fn files(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().to_owned();
            let own = ["generator", "README.md", ".lint"].map(Path::new);
            if own.contains(&name.as_path()) {
                continue;
            }
            if path.is_dir() {
                open.push(path);
            } else {
                found.insert(name, read(&path));
            }
        }
    }
    found
}

#[test]
fn the_boards_are_what_their_generator_writes() {
    let _turn = lab::together();
    let fresh = lab::temp_dir("boards");
    let made = python(&[&folder().join("generator"), fresh.path()]);
    assert!(made.status.success(), "{}{}", made.stdout, made.stderr);
    let (fresh, committed) = (files(fresh.path()), files(&folder()));
    let names = |files: &BTreeMap<PathBuf, String>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&committed), names(&fresh), "run `make dashboards`");
    for (name, text) in &fresh {
        assert!(committed[name] == *text, "{} is stale: run `make dashboards`", name.display());
    }
}

#[test]
fn grafanas_own_types_read_each_board_without_a_loss() {
    let _turn = lab::together();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts/read_boards.py");
    let boards = BOARDS.map(|name| folder().join(format!("{name}.json")));
    let args = [&script, &boards[0], &boards[1], &boards[2]].map(PathBuf::as_path);
    let said = python(&args);
    assert!(said.status.success(), "{}{}", said.stdout, said.stderr);
    // The check must see what it is there for.
    let spoilt = lab::temp_dir("boards");
    let file = spoilt.path().join("overview.json");
    let mut wrong = board("overview");
    wrong["panels"][0]["options"]["grahpMode"] = "none".into();
    std::fs::write(&file, wrong.to_string()).unwrap();
    let said = python(&[&script, &file]);
    assert_eq!(said.status.code(), Some(1), "{}", said.stderr);
    assert!(said.stdout.contains("panels[0].options.grahpMode is lost"), "{}", said.stdout);
}

#[test]
fn config_maps_and_provisioning_carry_the_same_boards() {
    for name in BOARDS {
        let json = read(&folder().join(format!("{name}.json")));
        assert!(json.len() < 300_000, "{name} has {} bytes", json.len());
        let map = yaml(&folder().join(format!("configmaps/{name}.yaml")));
        assert_eq!(map["kind"].as_str(), Some("ConfigMap"));
        assert_eq!(map["metadata"]["labels"]["grafana_dashboard"].as_str(), Some("1"));
        let data = map["data"].as_hash().unwrap();
        assert_eq!(data.len(), 1);
        let (key, carried) = data.iter().next().unwrap();
        assert_eq!(key.as_str(), Some(format!("controlplane-{name}.json").as_str()));
        assert!(carried.as_str() == Some(json.as_str()), "{name}: the ConfigMap has another board");
    }
    let provider = &yaml(&folder().join("provisioning/controlplane.yaml"))["providers"][0];
    assert_eq!(provider["type"].as_str(), Some("file"));
    assert_eq!(provider["allowUiUpdates"].as_bool(), Some(false));
    assert!(provider["options"]["path"].as_str().unwrap().starts_with('/'));
}

/// The exceptions of `dashboards/.lint`; one that nobody needs is a mistake.
struct Exceptions {
    open: BTreeSet<(String, String, String)>,
    used: BTreeSet<(String, String, String)>,
}

impl Exceptions {
    fn read() -> Self {
        let mut open = BTreeSet::new();
        for (rule, body) in yaml(&folder().join(".lint"))["exclusions"].as_hash().unwrap() {
            assert!(body["reason"].as_str().is_some_and(|r| r.ends_with('.')), "{rule:?}: reason");
            for entry in body["entries"].as_vec().unwrap() {
                let part = |key: &str| entry[key].as_str().unwrap().to_owned();
                let rule = rule.as_str().unwrap().to_owned();
                assert!(open.insert((rule, part("dashboard"), part("panel"))), "twice: {entry:?}");
            }
        }
        Self { open, used: BTreeSet::new() }
    }

    /// Fails unless `fine`, or unless the panel is excepted from the rule.
    #[track_caller]
    fn check(&mut self, fine: bool, rule: &str, board: &Value, panel: &str, what: &str) {
        let key = (rule.to_owned(), text(&board["title"]).to_owned(), panel.to_owned());
        if !fine {
            assert!(self.open.contains(&key), "{rule}: {} / {panel}: {what}", key.1);
            self.used.insert(key);
        }
    }
}

/// Names of the alerts that are shipped.
fn alerts() -> BTreeSet<String> {
    let name = Regex::new(r"(?m)^ *- alert: (\w+)$").unwrap();
    let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("alerts");
    let all = std::fs::read_dir(rules).unwrap().map(|entry| entry.unwrap().path());
    let all = all.filter(|path| path.to_str().unwrap().ends_with(".rules.yaml"));
    let names = |path: PathBuf| {
        let text = read(&path);
        name.captures_iter(&text).map(|found| found[1].to_owned()).collect::<Vec<_>>()
    };
    all.flat_map(names).collect()
}

#[test]
fn every_board_keeps_grafanas_conventions_and_ours() {
    let mut uids = BTreeSet::new();
    for name in BOARDS {
        let board = board(name);
        let uid = text(&board["uid"]);
        assert!(
            uid == format!("controlplane-{name}") && uid.len() <= 40 && uids.insert(uid.to_owned())
        );
        assert_eq!(board["editable"], false, "{name}");
        assert_eq!(board["graphTooltip"], 1, "{name}");
        assert_eq!(board["refresh"], "30s", "{name}");
        assert_eq!(board["timezone"], "browser", "{name}");
        assert!((39..=41).contains(&board["schemaVersion"].as_i64().unwrap()), "{name}");
        assert!(list(&board["tags"]).contains(&"controlplane-exporter".into()), "{name}");
        assert!(board.get("__inputs").is_none() && board.get("__requires").is_none(), "{name}");
        assert!(!text(&board["description"]).is_empty());
        variables(&board);
        for note in list(&board["annotations"]["list"]) {
            assert_eq!(note["datasource"]["uid"], "${datasource}", "{name}");
            assert!(!text(&note["titleFormat"]).is_empty() && !text(&note["name"]).is_empty());
        }
        assert_eq!(list(&board["annotations"]["list"]).len(), 4, "{name}");
    }
}

fn variables(board: &Value) {
    let all = list(&board["templating"]["list"]);
    let names: Vec<&str> = all.iter().map(|variable| text(&variable["name"])).collect();
    assert_eq!(names, ["datasource", "cluster", "job", "instance"]);
    assert_eq!(all[0]["type"], "datasource");
    assert_eq!(all[0]["query"], "prometheus");
    assert_eq!(all[0]["label"], "Data source");
    for (variable, label, everything) in
        [(&all[1], "Cluster", ".*"), (&all[2], "Job", ".+"), (&all[3], "Instance", ".+")]
    {
        assert_eq!(variable["type"], "query", "{label}");
        assert_eq!(variable["label"], label);
        assert_eq!(variable["datasource"]["uid"], "${datasource}", "{label}");
        assert_eq!(variable["multi"], true, "{label}");
        assert_eq!(variable["includeAll"], true, "{label}");
        assert_eq!(variable["allValue"], everything, "{label}");
        assert_eq!(variable["refresh"], 2, "{label}: on a change of the time range");
        let query = format!(", {})", text(&variable["name"]));
        assert!(text(&variable["query"]).starts_with("label_values(controlplane_"), "{label}");
        assert!(text(&variable["query"]).ends_with(&query), "{label}");
    }
}

#[test]
fn every_panel_says_what_it_shows_what_is_bad_and_where_it_goes_on() {
    let alerts = alerts();
    let link = Regex::new(r"\]\(([^)]+)\)").unwrap();
    let limits: Vec<f64> = thresholds::TABLE.iter().map(|row| row.limit).collect();
    for name in BOARDS {
        let board = board(name);
        let mut ids = BTreeSet::new();
        let mut titles = BTreeSet::new();
        let mut places: Vec<[i64; 4]> = Vec::new();
        for panel in panels(&board) {
            let title = text(&panel["title"]);
            let id = format!("{name}: {title}");
            assert!(titles.insert(title), "{id}: the second panel of that title");
            assert!(ids.insert(panel["id"].as_i64().unwrap()), "{id}: id");
            assert!(KINDS.contains(&text(&panel["type"])), "{id}: {}", panel["type"]);
            assert_eq!(panel["datasource"]["uid"], "${datasource}", "{id}");
            let about = text(&panel["description"]);
            let (meaning, bad) =
                about.split_once("\n\n**Bad:** ").unwrap_or_else(|| panic!("{id}"));
            assert!(
                meaning.ends_with('.') && !bad.starts_with('.') && !bad.contains(".."),
                "{id}: {bad}"
            );
            let links: Vec<_> = link.captures_iter(bad).map(|found| found[1].to_owned()).collect();
            assert!(!links.is_empty(), "{id}: no runbook");
            for link in links {
                let alert = link.strip_prefix(RUNBOOKS).and_then(|file| file.strip_suffix(".md"));
                let alert = alert.unwrap_or_else(|| panic!("{id}: {link}"));
                assert!(alert == "README" || alerts.contains(alert), "{id}: no alert {alert}");
            }
            let defaults = &panel["fieldConfig"]["defaults"];
            assert!(UNITS.contains(&text(&defaults["unit"])), "{id}: unit {}", defaults["unit"]);
            assert!(text(&defaults["noValue"]).len() > 5, "{id}: what an empty panel says");
            assert!(!list(&panel["targets"]).is_empty(), "{id}: no query");
            let mut settings = vec![&defaults["thresholds"]];
            for over in list(&panel["fieldConfig"]["overrides"]) {
                for property in list(&over["properties"]) {
                    match text(&property["id"]) {
                        "thresholds" => settings.push(&property["value"]),
                        "unit" => assert!(UNITS.contains(&text(&property["value"])), "{id}"),
                        _ => {}
                    }
                }
            }
            for step in settings.iter().flat_map(|setting| list(&setting["steps"])) {
                if let Some(value) = step["value"].as_f64() {
                    let known = limits.iter().any(|limit| (limit - value).abs() < 1e-9 * limit);
                    assert!(known, "{id}: {value} is no threshold of an alert");
                }
            }
            if panel["type"] == "state-timeline" {
                assert_eq!(panel["options"]["mergeValues"], true, "{id}");
                assert!(!list(&defaults["mappings"]).is_empty(), "{id}: states without a name");
            }
            let [x, y, w, h] =
                ["x", "y", "w", "h"].map(|key| panel["gridPos"][key].as_i64().unwrap());
            assert!(x + w <= 24 && h >= 4, "{id}: {x} {y} {w} {h}");
            for [x2, y2, w2, h2] in &places {
                let apart = x + w <= *x2 || x2 + w2 <= x || y + h <= *y2 || y2 + h2 <= y;
                assert!(apart, "{id} lies on another panel");
            }
            places.push([x, y, w, h]);
        }
    }
}

#[test]
fn every_query_asks_our_metrics_with_the_boards_variables() {
    let selector =
        Regex::new(r"(\w*\(?)\b([a-zA-Z_:][a-zA-Z0-9_:]*)\{([^}]*)\}(\[[^\]]*\])?").unwrap();
    let matcher = Regex::new(r#"([a-z_]+)(=~|!~|!=|=)"([^"]*)""#).unwrap();
    let bare = Regex::new(r"\b(controlplane|process)_[a-z0-9_]+([^a-z0-9_{]|$)").unwrap();
    let grouping = Regex::new(r"\b(?:by|on|group_left|group_right) \(([^)]*)\)").unwrap();
    let range = Regex::new(r"(\w+)\([^()]*?\{[^}]*\}\[([^\]]*)\]").unwrap();
    let mut exceptions = Exceptions::read();
    for name in BOARDS {
        let board = board(name);
        for (panel, expr) in queries(&board) {
            let id = format!("{name}: {panel}: {expr}");
            assert!(!bare.is_match(&expr), "{id}: a metric without the board's variables");
            let known = |label: &str| store::descs().any(|desc| desc.labels.contains(&label));
            for found in selector.captures_iter(&expr) {
                let pairs: Vec<_> = matcher.captures_iter(&found[3]).collect();
                let has = |text: &str| pairs.iter().any(|pair| &pair[0] == text);
                let whole = &found[2] == "ALERTS" && has(r#"cluster=~"$cluster|""#);
                assert!(has(r#"cluster=~"$cluster""#) || whole, "{id}");
                for (rule, ours, or_none) in [
                    ("target-job-rule", r#"job=~"$job""#, r#"job=~"$job|""#),
                    (
                        "target-instance-rule",
                        r#"instance=~"$instance""#,
                        r#"instance=~"$instance|""#,
                    ),
                ] {
                    let alerts = &found[2] == "ALERTS" && has(or_none);
                    assert!(has(ours) || alerts, "{id}: {ours}");
                    // The linter looks at panels only.
                    if panels(&board).iter().any(|other| other["title"] == *panel) {
                        exceptions.check(has(ours), rule, &board, &panel, &expr);
                    }
                }
                if ["ALERTS", "up"].contains(&&found[2]) {
                    continue;
                }
                let desc = metric(&found[2]).unwrap_or_else(|| panic!("{id}: no {}", &found[2]));
                for pair in &pairs {
                    let own = desc.labels.contains(&&pair[1]);
                    assert!(
                        own || ["cluster", "job", "instance"].contains(&&pair[1]),
                        "{id}: {}",
                        &pair[0]
                    );
                    // Prometheus 3 writes whole numbers of `le` differently.
                    assert!(&pair[1] != "le", "{id}");
                }
                let counter = matches!(desc.kind, Kind::Counter | Kind::Histogram);
                let inside =
                    ["rate(", "increase(", "changes("].iter().any(|call| found[1].ends_with(call));
                exceptions.check(
                    !counter || inside,
                    "target-counter-agg-rule",
                    &board,
                    &panel,
                    &expr,
                );
            }
            for found in range.captures_iter(&expr) {
                let call = ["rate", "increase", "irate", "deriv", "changes"].contains(&&found[1]);
                let fine = !call || &found[2] == "$__rate_interval";
                exceptions.check(fine, "target-rate-interval-rule", &board, &panel, &found[0]);
            }
            for found in grouping.captures_iter(&expr) {
                for label in found[1].split(',').map(str::trim).filter(|label| !label.is_empty()) {
                    let ours =
                        ["cluster", "job", "instance", "le", "alert", "alertname", "severity"];
                    assert!(ours.contains(&label) || known(label), "{id}: {label}");
                }
            }
            assert!(!expr.contains("without") && !expr.contains("ignoring"), "{id}");
        }
    }
    assert_eq!(exceptions.used, exceptions.open, "right: what dashboards/.lint excepts");
}

#[test]
fn prometheus_2_and_3_take_every_query() {
    let _turn = lab::together();
    let folder = lab::temp_dir("queries");
    let file = folder.path().join("queries.yaml");
    let mut rules = String::from("groups:\n  - name: queries\n    rules:\n");
    for name in BOARDS {
        for (_, expr) in queries(&board(name)) {
            let expr = filled(&expr, ".*", "controlplane", "1m0s");
            rules
                .push_str(&format!("      - record: query\n        expr: {}\n", Value::from(expr)));
        }
    }
    // The same name and expression twice is what promtool calls a duplicate; it is none here.
    std::fs::write(&file, rules).unwrap();
    let three = lab::cached("prometheus-3/usr/bin/promtool");
    for promtool in [Path::new("promtool"), &three] {
        run(promtool.to_str().unwrap(), ["check", "rules", "--lint=none", file.to_str().unwrap()]);
    }
}
