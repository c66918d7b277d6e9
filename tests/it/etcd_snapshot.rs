//! Sampler `etcd_snapshot` beside a real etcd: what page and check say when its snapshots stop, and when one is made.

use std::fs;
use std::time::{Duration, SystemTime};

use crate::lab;
use crate::lab::agent::Agent;
use crate::lab::etcd::{Cluster, Etcd};
use crate::lab::process::{bound_command, output};

const SECOND: Duration = Duration::from_secs(1);
const FILES: &str = "controlplane_etcd_snapshot_files";
const NEWEST: &str = "controlplane_etcd_snapshot_timestamp_seconds";

#[test]
fn snapshots_that_stop_are_on_the_page_and_in_the_check_until_one_is_made() {
    let _turn = lab::together();
    let etcd = Cluster::start(Etcd::V35, 1);
    let folder = lab::temp_dir("etcd-snapshots");
    let save = |name: &str| {
        let file = folder.path().join(name);
        etcd.etcdctl(&["snapshot", "save", file.to_str().unwrap()]);
        file
    };
    let old = save("etcd-snapshot-cp-1-1776000000");
    let time = SystemTime::now() - Duration::from_hours(27);
    fs::File::options().append(true).open(&old).unwrap().set_modified(time).unwrap();
    let agent = Agent::start(&format!(
        "host: {{distribution: k3s, role: server, datastore: unknown}}\n\
         etcd: {{enabled: false}}\nkine: {{enabled: false}}\nregistry_keys: {{enabled: false}}\n\
         etcd_snapshot: {{dir: '{}', interval: 200ms}}\nsnap: {{enabled: false}}\nsystemd: {{enabled: false}}\n",
        folder.path().display()
    ));
    let scrape = agent.wait_value(FILES, &[], 1.0, 10 * SECOND);
    let bytes = scrape.value("controlplane_etcd_snapshot_bytes", &[]).unwrap();
    assert!(bytes >= 16_384.0, "{bytes}");
    let first = scrape.value(NEWEST, &[]).unwrap();
    for page in ["/", "/api/v1/status"] {
        let text = agent.get(page).unwrap().text();
        assert!(text.contains("ControlPlaneEtcdSnapshotOld"), "{page}: {text}");
    }
    let mut command = bound_command(env!("CARGO_BIN_EXE_controlplane-exporter"));
    command.args(["check", "--profile=etcd", "--format=nagios"]);
    command.env("CONTROLPLANE_EXPORTER__WEB__SOCKET", agent.socket());
    let said = output(command, 10 * SECOND);
    assert_eq!(said.status.code(), Some(1), "{}", said.stdout);
    assert!(said.stdout.contains("snapshot_age="), "{}", said.stdout);
    save("etcd-snapshot-cp-1-1776043200");
    let scrape = agent.wait_value(FILES, &[], 2.0, 10 * SECOND);
    assert!(scrape.value(NEWEST, &[]) >= Some(first + 26.0 * 3600.0), "{}", scrape.text);
}
