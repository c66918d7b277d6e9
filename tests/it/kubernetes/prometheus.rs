//! `deploy/prometheus/`: both versions of Prometheus load it, and it makes of a real agent what rules and
//! boards expect.

use std::net::SocketAddr;
use std::time::Duration;

use super::{files, read, root};
use crate::lab;
use crate::lab::agent::Agent;
use crate::lab::alertmanager::Alertmanager;
use crate::lab::process::{bound_command, output};
use crate::lab::prometheus::{Prometheus, Version};

const RULES: &str = "/etc/prometheus/controlplane/*.rules.yaml";

fn shipped() -> String {
    read(&root().join("deploy/prometheus/prometheus.yml"))
}

/// The file with every commented setting switched on, and sentences left as they are.
fn uncommented() -> String {
    let setting = regex::Regex::new(r"(?m)^( *)# ((?:- )?[a-z_]+:.*|- \S+:\d+)$").unwrap();
    let nested = regex::Regex::new(r"(?m)^( *)# ( +(?:- \S+|[a-z_]+: ?\S*))$").unwrap();
    let text = shipped();
    let text = setting.replace_all(&text, "$1$2");
    nested.replace_all(&text, "$1$2").into_owned()
}

fn check_config(version: Version, text: &str) -> Result<String, String> {
    let folder = lab::temp_dir("promtool");
    let rules = root().join("alerts/*.rules.yaml");
    let certificate = rcgen::generate_simple_self_signed(vec!["prometheus".to_owned()]).unwrap();
    let files = folder.path();
    for (name, body) in [
        ("ca.crt", certificate.cert.pem()),
        ("client.crt", certificate.cert.pem()),
        ("client.key", certificate.signing_key.serialize_pem()),
        ("password", "secret".to_owned()),
    ] {
        std::fs::write(files.join(name), body).unwrap();
    }
    let text = text.replace(RULES, rules.to_str().unwrap());
    let text = text.replace("/etc/prometheus/controlplane", files.to_str().unwrap());
    let file = files.join("prometheus.yml");
    std::fs::write(&file, text).unwrap();
    let mut command = bound_command(version.program("promtool"));
    command.args(["check", "config"]).arg(&file);
    let out = output(command, Duration::from_secs(30));
    let said = format!("{}{}", out.stdout, out.stderr);
    if out.status.success() { Ok(said) } else { Err(said) }
}

#[test]
fn promtool_takes_the_scrape_configuration_and_its_variants() {
    let _turn = lab::together();
    let variants = uncommented();
    for setting in ["scheme: https", "password_file:", "cluster: edge", "- edge-1:10379"] {
        let on = |text: &str| text.lines().any(|line| line.trim().starts_with(setting));
        assert!(!on(&shipped()) && on(&variants), "{setting}\n{variants}");
    }
    for version in [Version::V2, Version::V3] {
        for text in [shipped(), variants.clone()] {
            let said = check_config(version, &text).unwrap_or_else(|e| panic!("{version:?}: {e}"));
            let topics = files(&root().join("alerts"), ".rules.yaml").len();
            assert_eq!(said.matches("rules found").count(), topics, "{version:?}: {said}");
        }
        let wrong = shipped().replace("sample_limit", "sample_limits");
        assert!(check_config(version, &wrong).is_err(), "{version:?} takes anything");
    }
}

/// The shipped file on this machine: its rules, an agent in place of server-1, and this Alertmanager.
fn here(agent: SocketAddr, alertmanager: SocketAddr) -> String {
    let rules = root().join("alerts/*.rules.yaml");
    let port = agent.port().to_string();
    let text = shipped()
        .replace(RULES, rules.to_str().unwrap())
        .replace("localhost:9093", &alertmanager.to_string())
        .replace("server-1:10379", &agent.to_string())
        .replace("          - server-2:10379\n", "")
        .replace("          - server-3:10379\n", "")
        .replace(":10379", &format!(":{port}"))
        .replace("15s", "1s");
    assert!(!text.contains("- server-"), "{text}");
    text
}

#[test]
fn prometheus_2_and_3_scrape_an_agent_with_it_and_tell_alertmanager() {
    let _turn = lab::together();
    let agent = Agent::start("");
    let routes = "route: {receiver: nobody}\nreceivers: [{name: nobody}]\n";
    for version in [Version::V2, Version::V3] {
        let alertmanager = Alertmanager::start(routes);
        let config = here(agent.address(), alertmanager.address());
        // An alert that fires before Alertmanager is discovered is sent again after a minute, unless told.
        let flags = ["--rules.alert.resend-delay=1s".to_owned()];
        let prometheus = Prometheus::start_with(version, &config, &[], &flags);
        // The labels that rules and boards are written for.
        let up = r#"up{job="controlplane-exporter", cluster="production", instance="127.0.0.1"}"#;
        prometheus.wait_for(up, Duration::from_secs(20), |series| {
            series.len() == 1 && (series[0].value - 1.0).abs() < f64::EPSILON
        });
        let build = "controlplane_exporter_build_info";
        prometheus.wait_for(build, Duration::from_secs(10), |series| series.len() == 1);
        let groups = prometheus.api("rules", &[]);
        let topics = files(&root().join("alerts"), ".rules.yaml").len();
        assert!(groups["groups"].as_array().unwrap().len() >= topics, "{version:?}");
        lab::wait_for("the watchdog's alert", Duration::from_secs(20), || {
            let alerts = alertmanager.alerts();
            let found = alerts.iter().any(|alert| alert.name() == "ControlPlaneWatchdog");
            if found { Ok(()) } else { Err(format!("{version:?}: {alerts:?}")) }
        });
    }
}
