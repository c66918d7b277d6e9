//! Sampler `static_pod` on a folder of logs as kubelet makes it: what metrics, page and check say of a pod that restarts.

use std::fs;
use std::time::Duration;

use crate::lab;
use crate::lab::agent::Agent;
use crate::lab::process::{bound_command, output};

const SECOND: Duration = Duration::from_secs(1);
const RESTARTS: &str = "controlplane_static_pod_restarts";
const ETCD: [(&str, &str); 2] = [("static_pod", "etcd-cp-1"), ("process", "etcd")];

#[test]
fn each_restart_of_a_static_pod_counts_and_a_folder_of_another_pod_does_not() {
    let _turn = lab::together();
    let folder = lab::temp_dir("pods");
    let pod = folder.path().join("kube-system_etcd-cp-1_e77889d75ec8be65235fe5a966d3f808/etcd");
    let other = "kube-system_coredns-76f75df574-abcde_0a1b2c3d-1111-2222-3333-444455556666/coredns";
    for path in [&pod, &folder.path().join(other)] {
        fs::create_dir_all(path).unwrap();
        fs::write(path.join("3.log"), "a line with a SECRET").unwrap();
    }
    let agent = Agent::start(&format!(
        "static_pod: {{dir: '{}', interval: 200ms}}\nsnap: {{enabled: false}}\nsystemd: {{enabled: false}}\n",
        folder.path().display()
    ));
    agent.wait_value(RESTARTS, &ETCD, 3.0, 10 * SECOND);
    // What was before the agent is no restart of today.
    let check = || {
        let mut command = bound_command(env!("CARGO_BIN_EXE_controlplane-exporter"));
        command.args(["check", "--profile=units", "--format=nagios"]);
        command.env("CONTROLPLANE_EXPORTER__WEB__SOCKET", agent.socket());
        output(command, 10 * SECOND).stdout
    };
    let said = check();
    assert!(said.contains("component_restarts=0;"), "{said}");
    // As kubelet does it, which keeps the log before.
    for restarts in 4..=15 {
        fs::write(pod.join(format!("{restarts}.log")), "").unwrap();
    }
    let scrape = agent.wait_value(RESTARTS, &ETCD, 15.0, 10 * SECOND);
    assert_eq!(scrape.all(RESTARTS, &[]).len(), 1, "{}", scrape.text);
    let said = check();
    assert!(said.contains("component_restarts=12;"), "{said}");
    for page in ["/", "/api/v1/status", "/metrics"] {
        let text = agent.get(page).unwrap().text();
        assert!(!text.contains("SECRET"), "{page}: {text}");
        let alert = "ControlPlaneComponentRestarting";
        assert_eq!(text.contains(alert), page != "/metrics", "{page}: {text}");
    }
}
