//! The shipped alerts: conventions of the rules, their promtool tests, runbooks, thresholds, routes.

mod month;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use controlplane_exporter::metric::Desc;
use controlplane_exporter::runbook::URL as RUNBOOKS;
use controlplane_exporter::{store, thresholds};
use regex::Regex;
use yaml_rust2::{Yaml, YamlLoader};

use crate::lab;
use crate::lab::process::{bound_command, output, run};

/// Always fires, and has neither a condition nor a place.
const WATCHDOG: &str = "ControlPlaneWatchdog";
/// Nothing may ever silence these.
const NEVER_INHIBITED: [&str; 4] = [
    "ControlPlaneEtcdNoLeader",
    "ControlPlaneEtcdQuorumLost",
    "ControlPlaneDqliteNoLeader",
    "ControlPlaneDqliteQuorumLost",
];

/// One alerting rule.
#[derive(Debug, Clone)]
struct Rule {
    file: String,
    group: String,
    alert: String,
    expr: String,
    hold: Duration,
    keep: Duration,
    severity: String,
    annotations: BTreeMap<String, String>,
}

impl Rule {
    /// Name and severity, for messages.
    fn id(&self) -> String {
        format!("{} ({}) in {}", self.alert, self.severity, self.file)
    }

    fn annotation(&self, name: &str) -> &str {
        let text = self.annotations.get(name);
        text.unwrap_or_else(|| panic!("{} has no annotation {name}", self.id()))
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("alerts")
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn yaml(path: &Path) -> Yaml {
    let text = read(path);
    let mut documents =
        YamlLoader::load_from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert_eq!(documents.len(), 1, "{}", path.display());
    documents.remove(0)
}

/// The files of `alerts/` whose name ends so, sorted.
fn files(ending: &str) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_str().is_some_and(|path| path.ends_with(ending)))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "no alerts/*{ending}");
    files
}

fn text(yaml: &Yaml) -> String {
    yaml.as_str().unwrap_or_else(|| panic!("no text: {yaml:?}")).to_owned()
}

fn duration(yaml: &Yaml) -> Duration {
    yaml.as_str().map_or(Duration::ZERO, |text| humantime::parse_duration(text).unwrap())
}

fn rules() -> Vec<Rule> {
    let mut rules = Vec::new();
    for file in files(".rules.yaml") {
        for group in yaml(&file)["groups"].as_vec().unwrap() {
            for rule in group["rules"].as_vec().unwrap() {
                let annotations = rule["annotations"].as_hash().unwrap().iter();
                rules.push(Rule {
                    file: file.file_name().unwrap().to_str().unwrap().to_owned(),
                    group: text(&group["name"]),
                    alert: text(&rule["alert"]),
                    expr: text(&rule["expr"]),
                    hold: duration(&rule["for"]),
                    keep: duration(&rule["keep_firing_for"]),
                    severity: text(&rule["labels"]["severity"]),
                    annotations: annotations.map(|(k, v)| (text(k), text(v))).collect(),
                });
            }
        }
    }
    rules
}

fn names() -> BTreeSet<String> {
    rules().into_iter().map(|rule| rule.alert).collect()
}

/// The metric that a word of an expression or a page means, whatever suffix its kind adds.
pub(crate) fn metric(word: &str) -> Option<&'static Desc> {
    let parts = ["_bucket", "_sum", "_count"].iter().filter_map(|end| word.strip_suffix(end));
    std::iter::once(word).chain(parts).find_map(|name| store::descs().find(|d| d.name == name))
}

fn words(text: &str) -> Vec<String> {
    let word = Regex::new(r"\bcontrolplane_[a-z0-9_]*").unwrap();
    word.find_iter(text).map(|found| found.as_str().to_owned()).collect()
}

#[test]
fn every_rule_keeps_the_conventions() {
    let name = Regex::new("^ControlPlane([A-Z][a-z]*)+").unwrap();
    let mut seen = BTreeSet::new();
    let mut sizes: BTreeMap<String, usize> = BTreeMap::new();
    for rule in rules() {
        let id = rule.id();
        let fresh = seen.insert((rule.alert.clone(), rule.severity.clone()));
        assert!(fresh, "{id}: the second rule of that severity");
        *sizes.entry(rule.group.clone()).or_default() += 1;
        assert!(name.is_match(&rule.alert) && rule.alert.len() <= 40, "{id}: name");
        assert!(rule.group.starts_with("controlplane-") && rule.group.len() <= 40, "{id}: group");
        assert!(["critical", "warning", "info"].contains(&rule.severity.as_str()), "{id}");
        let summary = rule.annotation("summary");
        let sentence = summary.starts_with(char::is_uppercase) && summary.ends_with('.');
        assert!(sentence && !summary.contains("{{"), "{id}: a summary is one fixed sentence");
        let description = rule.annotation("description");
        assert!(description.ends_with('.') && !description.contains('\n'), "{id}: description");
        assert_eq!(rule.annotation("runbook_url"), format!("{RUNBOOKS}{}.md", rule.alert), "{id}");
        assert_eq!(rule.annotations.len(), 3, "{id}: {:?}", rule.annotations.keys());
        if rule.alert == WATCHDOG {
            continue;
        }
        let placed = rule.expr.starts_with("absent(") || description.contains("{{");
        assert!(placed, "{id}: the description names no place and no number");
        assert!(!rule.keep.is_zero(), "{id}: a lost scrape would resolve it");
        assert!(rule.keep <= Duration::from_mins(15), "{id}: it goes on for too long");
    }
    for (group, size) in sizes {
        assert!(size <= 20, "{group} has {size} rules");
    }
}

#[test]
fn every_expression_uses_this_agents_series_and_up_and_nothing_else() {
    let names = Regex::new(r"\b[a-zA-Z_:][a-zA-Z0-9_:]*\b").unwrap();
    let selector = Regex::new(r"(controlplane_[a-z0-9_]+)\{([^}]*)\}").unwrap();
    let range = Regex::new(r"\[[^\]]*\]|offset \w+").unwrap();
    let strings = Regex::new(r#""[^"]*""#).unwrap();
    let matcher = Regex::new(r#"([a-z_]+)\s*(?:=~|!~|!=|=)\s*"([^"]*)""#).unwrap();
    let grouping =
        Regex::new(r"\b(by|on|group_left|group_right|ignoring|without)\s*(\(([^)]*)\))?").unwrap();
    let known: BTreeSet<&str> = [
        "and",
        "or",
        "unless",
        "max",
        "min",
        "sum",
        "count",
        "group",
        "quantile",
        "floor",
        "clamp_min",
        "absent",
        "rate",
        "increase",
        "changes",
        "time",
        "vector",
        "histogram_quantile",
        "predict_linear",
        "offset",
        "max_over_time",
        "min_over_time",
        "last_over_time",
        "quantile_over_time",
        "label_replace",
        "up",
    ]
    .into();
    for rule in rules() {
        let id = rule.id();
        for found in selector.captures_iter(&rule.expr) {
            let desc = metric(&found[1]).unwrap_or_else(|| panic!("{id}: no {}", &found[1]));
            for pair in matcher.captures_iter(&found[2]) {
                assert!(
                    desc.labels.contains(&&pair[1]),
                    "{id}: {} has no label {}",
                    desc.name,
                    &pair[1]
                );
                // Prometheus 3 writes whole numbers of `le` differently.
                assert!(&pair[1] != "le" && !pair[2].is_empty(), "{id}: {}", &pair[0]);
            }
        }
        for found in grouping.captures_iter(&rule.expr) {
            assert!(&found[1] != "without" && &found[1] != "ignoring", "{id}: {}", &found[0]);
            let labels = found.get(3).map_or("", |labels| labels.as_str());
            let own = |label: &str| store::descs().any(|d| d.labels.contains(&label));
            for label in labels.split(',').map(str::trim).filter(|label| !label.is_empty()) {
                assert!(
                    ["cluster", "job", "instance", "le"].contains(&label) || own(label),
                    "{id}: {label}"
                );
            }
            // External labels do not exist inside rules, so both are always named.
            let both = labels.contains("cluster") && labels.contains("job");
            assert!(both || found[1].starts_with("group_"), "{id}: {}", &found[0]);
        }
        let bare = selector.replace_all(&rule.expr, "$1");
        let bare = grouping.replace_all(&bare, " ");
        let bare = range.replace_all(&bare, " ");
        // What label_replace is told.
        let bare = strings.replace_all(&bare, " ");
        for word in names.find_iter(&bare).map(|found| found.as_str()) {
            let fine = known.contains(word) || metric(word).is_some();
            assert!(fine, "{id}: {word} is no series of this agent");
        }
        for banned in ["topk", "bottomk"] {
            assert!(!rule.expr.contains(banned), "{id}: {banned}");
        }
        for call in ["increase(", "rate("] {
            assert!(!rule.expr.contains(&format!("{call}controlplane_kernel_")), "{id}: {call}");
        }
    }
}

/// One lost scrape among the 240 of an hour empties a bare selector, and the waiting begins anew: on a node that is not
/// well such an alert would never come.
#[test]
fn a_rule_that_waits_for_half_an_hour_does_not_wait_anew_after_a_lost_scrape() {
    let selector = Regex::new(r"\bcontrolplane_[a-z0-9_]+(\{[^}]*\})?(\[)?").unwrap();
    let labels = Regex::new(r"\b(by|on|group_left)\s*\([^)]*\)").unwrap();
    let patient: Vec<_> =
        rules().into_iter().filter(|rule| rule.hold >= Duration::from_mins(30)).collect();
    assert!(patient.len() > 10, "{}", patient.len());
    for rule in patient {
        let expr = labels.replace_all(&rule.expr, " ");
        for found in selector.captures_iter(&expr) {
            assert!(found.get(2).is_some(), "{}: {} is of one scrape", rule.id(), &found[0]);
        }
    }
}

/// Numbers that an expression compares with: operator, value, and whether it is a multiple.
fn comparisons(expr: &str) -> Vec<(String, f64, bool)> {
    let strings = Regex::new(r#""[^"]*"|\{[^}]*\}|#[^\n]*"#).unwrap();
    let bare = strings.replace_all(expr, "");
    let joins = Regex::new(r"\b(on|group_left|group_right)\b(\s*\([^)]*\))?").unwrap();
    let bare = joins.replace_all(&bare, "");
    let comparison =
        Regex::new(r"(==|>=|<=|>|<)\s*([0-9][0-9.e]*(?:\s*\*\s*[0-9][0-9.e]*)*)\s*(.?)").unwrap();
    let value =
        |product: &str| product.split('*').map(|n| n.trim().parse::<f64>().unwrap()).product();
    comparison
        .captures_iter(&bare)
        // `3 * interval + 60` is no number, and what is multiplied is a series.
        .filter(|found| &found[3] != "+")
        .map(|found| (found[1].to_owned(), value(&found[2]), &found[3] == "*"))
        .collect()
}

#[test]
fn a_comparison_is_found_wherever_it_stands() {
    let of = |expr| comparisons(expr);
    assert_eq!(of("a{b=\"> 7\"} > 0.5"), [(">".to_owned(), 0.5, false)]);
    assert_eq!(
        of("a < 3 and b >= 2 * 1024"),
        [("<".into(), 3.0, false), (">=".into(), 2048.0, false)]
    );
    assert_eq!(of("a > on (x) group_left 5 * quantile(0.5, b)"), [(">".to_owned(), 5.0, true)]);
    assert_eq!(of("a > 3 * b + 60"), [(">".to_owned(), 3.0, true)]);
    assert_eq!(of("a > b and c unless d"), []);
}

#[test]
fn the_rules_have_the_thresholds_of_the_table_and_no_others() {
    // A yes or no, "any", "several", and "will be gone".
    let verdict = |found: &&(String, f64, bool)| {
        let (op, value, times) = found;
        !times && (["==0", "==1", ">0", ">1", "<0"].contains(&format!("{op}{value}").as_str()))
    };
    let mut in_rules = Vec::new();
    for rule in rules() {
        // Their limits are multiples of the sampler's own interval and runs.
        if rule.alert.starts_with("ControlPlaneSampler") {
            continue;
        }
        for found in comparisons(&rule.expr).iter().filter(|found| !verdict(found)) {
            let (op, value, times) = found;
            in_rules.push(format!(
                "{} {} {op} {value} times={times} for {:?}",
                rule.alert, rule.severity, rule.hold
            ));
        }
    }
    let mut in_table: Vec<String> = thresholds::TABLE
        .iter()
        .map(|row| {
            let times = row.unit == thresholds::Unit::Times;
            let op = row.bad.operator();
            format!(
                "{} {} {op} {} times={times} for {:?}",
                row.alert,
                row.severity.as_str(),
                row.limit,
                row.hold
            )
        })
        .collect();
    in_rules.sort();
    in_table.sort();
    // A limit is one, though two sources may be held against it.
    in_rules.dedup();
    in_table.dedup();
    assert_eq!(in_rules, in_table, "alerts/*.rules.yaml and src/thresholds.rs");
}

#[test]
fn the_lists_of_processes_and_events_are_those_of_the_table() {
    let list = |names: &[&str]| names.join("|");
    let ours = list(&thresholds::CONTROL_PLANE);
    let aborted = list(&thresholds::FILESYSTEM_ABORTED);
    let harmless = list(&thresholds::NO_FAULT_OF_THE_DISK);
    for (alert, severity, matcher) in [
        ("ControlPlaneOOMKill", "critical", format!("process=~\"{ours}\"")),
        ("ControlPlaneOOMKill", "warning", format!("process!~\"{ours}\"")),
        (
            "ControlPlaneHungTask",
            "warning",
            format!("process=~\"{ours}|{}\"", list(&thresholds::WRITERS)),
        ),
        ("ControlPlaneFilesystemAborted", "critical", format!("event=~\"{aborted}\"")),
        ("ControlPlaneDiskSyncFailing", "critical", format!("errno!~\"{harmless}\"")),
    ] {
        let rules = rules();
        let rule = rules.iter().find(|r| r.alert == alert && r.severity == severity).unwrap();
        assert!(rule.expr.contains(&matcher), "{}: {matcher} in {}", rule.id(), rule.expr);
    }
}

#[test]
fn the_rules_on_logs_have_the_signatures_of_the_table_and_no_others() {
    let table =
        yaml(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/samplers/journal/signatures.yaml"));
    let mut in_table: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for row in table["signatures"].as_vec().unwrap() {
        if let Some(alert) = row["alert"].as_str() {
            in_table.entry(alert.to_owned()).or_default().insert(text(&row["id"]));
        }
    }
    let matcher = Regex::new(r#"signature=~?"([^"]*)""#).unwrap();
    let mut in_rules: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for rule in rules().iter().filter(|rule| rule.file == "journal.rules.yaml") {
        let named = matcher.captures_iter(&rule.expr);
        let ids = named.flat_map(|found| found.extract::<1>().1[0].split('|'));
        in_rules.entry(rule.alert.clone()).or_default().extend(ids.map(str::to_owned));
    }
    assert_eq!(in_rules, in_table, "alerts/journal.rules.yaml and signatures.yaml");
    let judged: Vec<(&str, BTreeSet<String>)> = thresholds::LOGGED
        .iter()
        .map(|(alert, _, ids)| (*alert, ids.iter().map(|id| (*id).to_owned()).collect()))
        .collect();
    assert_eq!(judged.len(), in_table.len());
    for (alert, ids) in judged {
        assert_eq!(in_table.get(alert), Some(&ids), "{alert} in src/thresholds.rs");
    }
}

#[test]
fn every_alert_has_a_runbook_and_every_runbook_an_alert() {
    let alerts = names();
    let alert = Regex::new(r"\bControlPlane[A-Z][A-Za-z]+\b").unwrap();
    let link = Regex::new(r"\]\(([^)#]+\.md)[^)]*\)").unwrap();
    let mut pages = BTreeSet::new();
    for entry in std::fs::read_dir(folder().join("runbooks")).unwrap() {
        let path = entry.unwrap().path();
        let page = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let content = read(&path);
        for word in words(&content) {
            let prefix = word.trim_end_matches('_');
            let known = metric(&word).is_some()
                || store::descs().any(|d| d.name.starts_with(&format!("{prefix}_")));
            assert!(known, "{page}: there is no metric {word}");
        }
        for found in alert.find_iter(&content) {
            assert!(
                alerts.contains(found.as_str()),
                "{page}: there is no alert {}",
                found.as_str()
            );
        }
        if page == "README" {
            let missing: Vec<_> = alerts.iter().filter(|a| !content.contains(a.as_str())).collect();
            assert!(missing.is_empty(), "alerts/runbooks/README.md does not list {missing:?}");
            continue;
        }
        let headings: Vec<&str> = content
            .lines()
            .filter(|line| line.starts_with("# ") || line.starts_with("## "))
            .collect();
        let title = format!("# {page}");
        let expected = [&title, "## Meaning", "## Impact", "## Diagnosis", "## Mitigation"];
        // A comment of a shell command begins with `# ` as well.
        let headings: Vec<_> = headings.iter().filter(|line| expected.contains(line)).collect();
        assert_eq!(headings.len(), expected.len(), "{page}: {headings:?}");
        assert!(headings.iter().zip(expected).all(|(a, b)| **a == b), "{page}: {headings:?}");
        for found in link.captures_iter(&content) {
            let target = path.parent().unwrap().join(&found[1]);
            assert!(found[1].starts_with("http") || target.exists(), "{page}: no {}", &found[1]);
        }
        pages.insert(page);
    }
    assert_eq!(pages, alerts, "alerts/runbooks and alerts/*.rules.yaml");
}

#[test]
fn the_pages_of_the_project_name_no_metric_that_does_not_exist() {
    for page in ["README.md", "ARCHITECTURE.md", "CHANGELOG.md"] {
        let content = read(&Path::new(env!("CARGO_MANIFEST_DIR")).join(page));
        for word in words(&content) {
            let known = metric(&word).is_some()
                || store::descs().any(|d| d.name.starts_with(&word) && word.ends_with('_'));
            assert!(known, "{page}: there is no metric {word}");
        }
    }
}

/// Debian's own promtool, and one of Prometheus 3, whose range selectors leave out their left edge.
fn promtools() -> [PathBuf; 2] {
    [lab::program("promtool"), lab::cached("prometheus-3/usr/bin/promtool")]
}

fn promtool(program: &Path, args: &[&str], files: &[PathBuf]) -> String {
    let mut command = bound_command(program);
    command.args(args).args(files);
    let output = output(command, Duration::from_mins(10));
    let said = format!("{}{}", output.stdout, output.stderr);
    assert!(output.status.success(), "{} {args:?}: {}\n{said}", program.display(), output.status);
    said
}

#[test]
fn no_expression_is_an_alias() {
    // Prometheus 2 reads `expr: *name` as a metric called name, and the rule never fires.
    for file in files(".rules.yaml") {
        assert!(!read(&file).contains("expr: *"), "{}", file.display());
    }
}

#[test]
fn promtool_takes_the_rules_and_its_linter_has_nothing_to_say() {
    let _turn = lab::together();
    for program in promtools() {
        let said = promtool(
            &program,
            &["check", "rules", "--lint=all", "--lint-fatal"],
            &files(".rules.yaml"),
        );
        assert!(!said.contains("error") && !said.contains("duplicate"), "{said}");
    }
}

#[test]
fn the_rule_tests_pass_with_both_generations_of_prometheus() {
    let _turn = lab::together();
    for program in promtools() {
        promtool(&program, &["test", "rules"], &files(".test.yaml"));
    }
}

#[test]
fn what_the_stock_rules_do_not_see_ours_do() {
    let _turn = lab::together();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/stock.test.yaml");
    for program in promtools() {
        promtool(&program, &["test", "rules"], std::slice::from_ref(&file));
    }
}

#[test]
fn the_rules_on_latency_work_where_native_histograms_alone_are_kept() {
    let _turn = lab::together();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/native.test.yaml");
    // The older one cannot write such samples down.
    let [_, newer] = promtools();
    promtool(&newer, &["test", "rules"], &[file]);
}

/// A group of promtool tests: its name, and what it expects of each alert.
struct Case {
    name: String,
    /// Alert, and the severities that fire, with the annotations that are expected.
    expected: Vec<(String, BTreeMap<String, BTreeSet<String>>)>,
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for file in files(".test.yaml") {
        for test in yaml(&file)["tests"].as_vec().unwrap() {
            let checks = test["alert_rule_test"].as_vec().into_iter().flatten();
            let expected = checks.map(|check| {
                let firing = check["exp_alerts"].as_vec().into_iter().flatten();
                let mut severities: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
                for alert in firing {
                    let given = alert["exp_annotations"].as_hash().into_iter().flatten();
                    let severity = text(&alert["exp_labels"]["severity"]);
                    severities.entry(severity).or_default().extend(given.map(|(k, _)| text(k)));
                }
                (text(&check["alertname"]), severities)
            });
            let expected = expected.collect();
            cases.push(Case {
                name: test["name"].as_str().unwrap_or_default().to_owned(),
                expected,
            });
        }
    }
    cases
}

#[test]
fn every_alert_is_tested_in_every_way_it_can_go_wrong() {
    let cases = cases();
    let mut missing = Vec::new();
    for alert in names() {
        let word = Regex::new(&format!(r"\b{alert}\b")).unwrap();
        let about = |case: &&Case| {
            word.is_match(&case.name) && case.expected.iter().any(|(name, _)| *name == alert)
        };
        let ways = match alert.as_str() {
            WATCHDOG => vec!["fire"],
            _ => vec!["fire", "just below", "gap", "resolve", "away"],
        };
        for way in ways {
            if !cases.iter().filter(about).any(|case| case.name.contains(way)) {
                missing.push(format!("{alert}: no case whose name says `{way}`"));
            }
        }
    }
    for rule in rules().iter().filter(|rule| rule.alert != WATCHDOG) {
        let expected =
            || cases.iter().flat_map(|case| &case.expected).filter(|(name, _)| *name == rule.alert);
        let full: BTreeSet<String> = rule.annotations.keys().cloned().collect();
        if !expected().any(|(_, firing)| firing.get(&rule.severity) == Some(&full)) {
            missing.push(format!("{}: never seen to fire with all its annotations", rule.id()));
        }
        if !expected().any(|(_, firing)| !firing.contains_key(&rule.severity)) {
            missing.push(format!("{}: never seen to be quiet", rule.id()));
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

/// All rules as the object that the Prometheus Operator reads: the same text, two columns to the right.
fn prometheus_rule() -> String {
    let mut out = String::from(
        "# Written from alerts/*.rules.yaml by `make golden`. For the Prometheus Operator: `kubectl apply -f` it, with the\n\
         # labels that your Prometheus selects rules by.\n\
         apiVersion: monitoring.coreos.com/v1\n\
         kind: PrometheusRule\n\
         metadata:\n  name: controlplane-exporter\n  labels:\n    app.kubernetes.io/name: controlplane-exporter\n    release: kube-prometheus-stack\n\
         spec:\n  groups:\n",
    );
    for file in files(".rules.yaml") {
        let text = read(&file);
        let (head, groups) = text.split_once("\ngroups:\n").unwrap();
        for line in head.lines().chain(groups.lines()) {
            let indent = if line.is_empty() { "" } else { "  " };
            let comment = if line.starts_with('#') { "  " } else { "" };
            out.push_str(&format!("{indent}{comment}{line}\n"));
        }
    }
    out
}

#[test]
fn the_prometheus_rule_object_holds_the_same_rules() {
    let path = folder().join("prometheusrule.yaml");
    let wanted = prometheus_rule();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &wanted).unwrap();
    }
    assert!(read(&path) == wanted, "alerts/prometheusrule.yaml is stale: run `make golden`");
    let object = yaml(&path);
    assert_eq!(object["kind"].as_str(), Some("PrometheusRule"));
    let groups: Vec<Yaml> = files(".rules.yaml")
        .iter()
        .flat_map(|f| yaml(f)["groups"].as_vec().unwrap().clone())
        .collect();
    assert_eq!(object["spec"]["groups"], Yaml::Array(groups));
}

fn alertmanager() -> PathBuf {
    folder().join("alertmanager.yaml")
}

#[test]
fn amtool_takes_the_alertmanager_configuration() {
    let said = run("amtool", ["check-config".as_ref(), alertmanager().as_os_str()]);
    assert!(said.contains("SUCCESS") && said.contains("4 receivers"), "{said}");
}

#[test]
fn every_severity_goes_where_it_belongs() {
    for (labels, receiver) in [
        (["alertname=ControlPlaneEtcdNoLeader", "severity=critical"], "page"),
        (["alertname=ControlPlaneEtcdQuotaLow", "severity=warning"], "ticket"),
        (["alertname=ControlPlaneDiskSyncSlow", "severity=info"], "nobody"),
        (["alertname=ControlPlaneWatchdog", "severity=info"], "dead-mans-switch"),
        // What is not ours falls through to whoever reads tickets.
        (["alertname=Other", "severity=critical"], "ticket"),
    ] {
        let file = format!("--config.file={}", alertmanager().display());
        let verify = format!("--verify.receivers={receiver}");
        let args = ["config", "routes", "test", &file, &verify, labels[0], labels[1]];
        assert_eq!(run("amtool", args).trim(), receiver, "{labels:?}");
    }
}

#[test]
fn inhibition_never_touches_the_end_of_a_cluster_or_the_disk_of_another_node() {
    let alerts = names();
    let alert = Regex::new(r"ControlPlane[A-Z][A-Za-z]+").unwrap();
    let config = yaml(&alertmanager());
    let mut targets = BTreeSet::new();
    for rule in config["inhibit_rules"].as_vec().unwrap() {
        let matchers =
            |key: &str| -> Vec<String> { rule[key].as_vec().unwrap().iter().map(text).collect() };
        let equal: Vec<String> = rule["equal"].as_vec().unwrap().iter().map(text).collect();
        let sources = matchers("source_matchers");
        for name in
            sources.iter().chain(&matchers("target_matchers")).flat_map(|m| alert.find_iter(m))
        {
            assert!(alerts.contains(name.as_str()), "there is no alert {}", name.as_str());
        }
        assert!(
            equal.contains(&"cluster".to_owned()) && equal.contains(&"job".to_owned()),
            "{rule:?}"
        );
        let target = matchers("target_matchers").join(" ");
        if equal.contains(&"alertname".to_owned()) {
            // The same condition at two severities; these two have one only.
            for name in NEVER_INHIBITED {
                assert_eq!(rules().iter().filter(|r| r.alert == name).count(), 1);
            }
            continue;
        }
        for name in alert.find_iter(&target).map(|found| found.as_str()) {
            targets.insert(name.to_owned());
            let of_a_node = rules().iter().any(|r| {
                r.alert == name && r.annotation("description").contains("$labels.instance")
            });
            let of_a_disk =
                ["Disk", "Filesystem", "KernelIO", "Datastore"].iter().any(|w| name.contains(w));
            if of_a_node && of_a_disk {
                assert!(
                    equal.contains(&"instance".to_owned()),
                    "{name} could be silenced by another node"
                );
            }
        }
    }
    for name in NEVER_INHIBITED {
        assert!(!targets.contains(name), "{name} can be silenced");
    }
    assert!(targets.len() > 10, "{targets:?}");
}
