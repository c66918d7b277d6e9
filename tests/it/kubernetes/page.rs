//! `docs/kube-prometheus-stack.md`: every block of YAML on it works as it is written.

use serde_json::Value;
use yaml_rust2::YamlLoader;

use super::{NAME, helm_template, only, read, root, string, valid};
use crate::lab;
use crate::lab::process::run;

/// The blocks of YAML.
fn blocks() -> Vec<String> {
    let page = read(&root().join("docs/kube-prometheus-stack.md"));
    let block = regex::Regex::new(r"(?ms)^```yaml\n(.*?)^```$").unwrap();
    block.captures_iter(&page).map(|found| found[1].to_owned()).collect()
}

/// Those that begin with this comment.
fn about(what: &str) -> Vec<String> {
    let opening = format!("# {what}\n");
    let found: Vec<String> =
        blocks().into_iter().filter(|block| block.starts_with(&opening)).collect();
    assert!(!found.is_empty(), "no block is {what}");
    found
}

/// Those that are whole objects.
fn objects() -> Vec<String> {
    blocks().into_iter().filter(|block| block.starts_with("apiVersion:")).collect()
}

#[test]
fn every_block_of_the_page_is_checked() {
    let checked = about("values of controlplane-exporter").len()
        + about("values of kube-prometheus-stack").len()
        + about("part of the spec of a ScrapeConfig").len()
        + objects().len();
    assert_eq!(checked, blocks().len(), "a block that no test looks at");
}

#[test]
fn the_namespace_comes_before_what_is_installed_into_it() {
    let page = read(&root().join("docs/kube-prometheus-stack.md"));
    let place = |text: &str| page.find(text).unwrap_or_else(|| panic!("{text} is missing"));
    assert!(place("kind: Namespace") < place("kernelLog: {enabled: true}"));
    assert!(place("kind: Namespace") < place("helm upgrade --install controlplane-exporter"));
}

#[test]
fn the_values_for_the_chart_render_what_the_page_says() {
    let _turn = lab::together();
    let mut kinds = Vec::new();
    for block in about("values of controlplane-exporter") {
        let folder = lab::temp_dir("values");
        let file = folder.path().join("values.yaml");
        std::fs::write(&file, &block).unwrap();
        for object in valid(&helm_template(NAME, &["--values", file.to_str().unwrap()])) {
            if string(&object["apiVersion"]).starts_with("monitoring.coreos.com") {
                let label = &object["metadata"]["labels"]["release"];
                assert_eq!(label, "kube-prometheus-stack", "the stack would not see {object}");
                kinds.push(string(&object["kind"]).to_owned());
            }
        }
    }
    assert_eq!(kinds, ["ServiceMonitor", "PodMonitor", "PrometheusRule"]);
}

#[test]
fn the_objects_of_the_page_fit_with_and_without_tls() {
    let _turn = lab::together();
    let text = objects().join("---\n");
    let objects = valid(&text);
    let scrape = only(&objects, "ScrapeConfig");
    assert_eq!(scrape["metadata"]["labels"]["release"], "kube-prometheus-stack");
    for block in about("part of the spec of a ScrapeConfig") {
        let indented: String = block.lines().map(|line| format!("  {line}\n")).collect();
        let object = text.split("---\n").find(|object| object.contains("kind: ScrapeConfig"));
        let both = valid(&format!("{}{indented}", object.unwrap()));
        let spec = &both[0]["spec"];
        assert!(spec["basicAuth"].is_object() && spec["jobName"].is_string(), "{spec}");
    }
    // The manifest beside the chart says the same.
    let manifest = valid(&read(&root().join("deploy/kubernetes/monitoring/scrapeconfig.yaml")));
    for key in ["jobName", "scrapeInterval", "sampleLimit", "staticConfigs", "relabelings"] {
        assert_eq!(manifest[0]["spec"][key], scrape["spec"][key], "{key}");
    }
}

#[test]
fn the_values_for_the_stack_name_what_the_stack_has() {
    // Looked up in its values.yaml; the stack itself is not installed here.
    let known = [
        "kubeControllerManager",
        "kubeScheduler",
        "kubeProxy",
        "kubeEtcd",
        "defaultRules",
        "alertmanager",
    ];
    let rules = [
        "etcd",
        "kubeControllerManager",
        "kubeProxy",
        "kubeSchedulerAlerting",
        "kubeSchedulerRecording",
    ];
    let mut switched_off = 0;
    for block in about("values of kube-prometheus-stack") {
        let values = YamlLoader::load_from_str(&block).unwrap().remove(0);
        for key in values.as_hash().unwrap().keys() {
            assert!(known.contains(&key.as_str().unwrap()), "{key:?}");
        }
        let Some(own) = values["defaultRules"]["rules"].as_hash() else { continue };
        for (key, value) in own {
            assert!(rules.contains(&key.as_str().unwrap()), "{key:?}");
            assert_eq!(value.as_bool(), Some(false));
            switched_off += 1;
        }
    }
    assert_eq!(switched_off, rules.len());
}

#[test]
fn the_route_of_the_page_takes_both_watchdogs_and_nothing_else() {
    let _turn = lab::together();
    let block = about("values of kube-prometheus-stack").pop().unwrap();
    let (_, routes) = block.split_once("      routes:\n").unwrap_or_else(|| panic!("{block}"));
    // What the stack has around it.
    let config = format!(
        "route:\n  receiver: others\n  routes:\n{routes}receivers: [{{name: \"null\"}}, {{name: others}}]\n"
    );
    let folder = lab::temp_dir("alertmanager");
    let file = folder.path().join("alertmanager.yaml");
    std::fs::write(&file, config).unwrap();
    let file = format!("--config.file={}", file.display());
    for (alert, receiver) in [
        ("Watchdog", "null"),
        ("ControlPlaneWatchdog", "null"),
        ("ControlPlaneUnitWatchdog", "others"),
        ("ControlPlaneEtcdNoLeader", "others"),
    ] {
        let alert = format!("alertname={alert}");
        assert_eq!(run("amtool", ["config", "routes", "test", &file, &alert]).trim(), receiver);
    }
}

#[test]
fn the_rules_of_the_page_keep_the_alert_by_which_the_boards_know_them() {
    let _turn = lab::together();
    let block = about("values of controlplane-exporter").pop().unwrap();
    let folder = lab::temp_dir("values");
    let file = folder.path().join("values.yaml");
    std::fs::write(&file, &block).unwrap();
    let objects = valid(&helm_template(NAME, &["--values", file.to_str().unwrap()]));
    let rules = super::rules(&only(&objects, "PrometheusRule")["spec"]["groups"]);
    let has = |name: &str| rules.iter().any(|(_, rule): &(String, Value)| rule["alert"] == name);
    assert!(has("ControlPlaneEtcdNoLeader") && has("ControlPlaneWatchdog"));
}
