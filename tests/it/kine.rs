//! Sampler `kine` against an etcd on a Unix socket whose name has a colon, as kine's and k8s-dqlite's have: the same
//! calls on the same transport. kine and k8s-dqlite themselves are in no Debian package.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use crate::lab;
use crate::lab::agent::Agent;
use crate::lab::etcd::{Cluster, Etcd, Listen, Options};
use crate::lab::process::{bound_command, output};

const SECOND: Duration = Duration::from_secs(1);
const UP: &str = "controlplane_kine_up";
const REVISION: &str = "controlplane_kine_revision";
const SUCCESS: &str = "controlplane_kine_request_last_success_timestamp_seconds";

#[test]
fn a_socket_is_timed_and_its_silence_is_a_verdict_and_a_page() {
    let _turn = lab::together();
    let options = Options { listen: Listen::Unix, ..Options::default() };
    let mut cluster = Cluster::start_with(Etcd::V35, 1, options);
    let socket = cluster.socket(0);
    assert!(socket.to_str().unwrap().contains(':'), "{}", socket.display());
    let agent = Agent::start(&format!(
        "kine: {{endpoint: '{}', interval: 300ms, timeout: 1s}}\n\
         etcd: {{enabled: false}}\nregistry_keys: {{enabled: false}}\n",
        socket.display()
    ));
    let scrape = agent.wait_value(UP, &[], 1.0, 10 * SECOND);
    assert!(scrape.value("controlplane_kine_database_bytes", &[]) > Some(10_000.0));
    let before = scrape.value(REVISION, &[]).unwrap();
    cluster.put_many("/registry/pods/p", 50, 10);
    let scrape = agent.wait_until("writes", REVISION, 10 * SECOND, |scrape| {
        scrape.value(REVISION, &[]).is_some_and(|now| now > before)
    });
    for request in ["status", "read"] {
        let request = [("request", request)];
        assert!(scrape.value(SUCCESS, &request) > Some(1.7e9));
        let count = "controlplane_kine_request_duration_seconds_count";
        assert!(scrape.value(count, &request) >= Some(2.0));
    }
    // Hung: the calls end by their own deadline.
    cluster.stop(0);
    let late = [("request", "read"), ("reason", "timeout")];
    let failures = "controlplane_kine_request_failures_total";
    let scrape = agent.wait_until("a time-out", "controlplane_kine", 10 * SECOND, |scrape| {
        scrape.value(failures, &late) >= Some(1.0) && scrape.value(UP, &[]) == Some(0.0)
    });
    assert_eq!(scrape.value(REVISION, &[]), None, "what it said before is not told on");
    let status = agent.get("/api/v1/status").unwrap().text();
    assert!(status.contains("ControlPlaneKineNotAnswering"), "{status}");
    cluster.cont(0);
    agent.wait_value(UP, &[], 1.0, 10 * SECOND);
    cluster.kill(0);
    let refused = [("request", "read"), ("reason", "refused")];
    agent.wait_until("a refusal", "controlplane_kine", 10 * SECOND, |scrape| {
        scrape.value(failures, &refused) >= Some(1.0)
    });
    assert!(agent.log().contains("kine answers again"), "{}", agent.log());
}

#[test]
fn a_socket_that_is_closed_to_the_agents_user_is_unknown_and_not_down() {
    let _turn = lab::together();
    let options = Options { listen: Listen::Unix, ..Options::default() };
    let cluster = Cluster::start_with(Etcd::V35, 1, options);
    let folder = lab::temp_dir("check");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let file = folder.path().join("check.yaml");
    let config = format!(
        "web: {{socket: ''}}\nkine: {{endpoint: '{socket}'}}\netcd: {{enabled: false}}\n\
         registry_keys: {{endpoints: ['{socket}'], timeout: 1s}}\n",
        socket = cluster.socket(0).display()
    );
    fs::write(&file, config).unwrap();
    let mut command = bound_command(lab::program("setpriv"));
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
    command.arg(env!("CARGO_BIN_EXE_controlplane-exporter"));
    command.args(["check", "--profile=etcd", "--format=nagios", "-vv", "--config.file"]).arg(&file);
    let said = output(command, 20 * SECOND);
    assert_eq!(said.status.code(), Some(3), "{}{}", said.stdout, said.stderr);
    assert!(said.stdout.contains("the socket is closed to this user"), "{}", said.stdout);
    assert!(!said.stdout.contains("does not answer"), "{}", said.stdout);
}
