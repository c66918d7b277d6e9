//! Sampler `args` on real files and a real process: what page, log and check say of a flag that nobody knows, and of a
//! change that waits for a restart.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::lab;
use crate::lab::agent::Agent;
use crate::lab::process::{Daemon, bound_command, output};

const SECOND: Duration = Duration::from_secs(1);
const UNKNOWN: &str = "controlplane_args_unknown_flags";
const CHANGED: &str = "controlplane_args_changed_since_start";
const FILE: [(&str, &str); 1] = [("file", "k8s-dqlite")];
const STOCK: &str = "--storage-dir=${SNAP_DATA}/var/kubernetes/backend/\n\
                     --listen=unix://${SNAP_DATA}/var/kubernetes/backend/kine.sock:12379\n";

fn agent_of(args: &Path, version: &str) -> Agent {
    Agent::start(&format!(
        "host: {{distribution: microk8s, version: {version}, role: server, datastore: unknown}}\n\
         args: {{dir: '{}', interval: 200ms}}\nsnap: {{enabled: false}}\nsystemd: {{enabled: false}}\n",
        args.display()
    ))
}

#[test]
fn a_flag_that_nobody_knows_is_on_the_page_in_the_log_and_in_the_check() {
    let _turn = lab::together();
    let folder = lab::temp_dir("args");
    let file = folder.path().join("k8s-dqlite");
    fs::write(&file, STOCK).unwrap();
    let agent = agent_of(folder.path(), "v1.34.5");
    agent.wait_value(UNKNOWN, &FILE, 0.0, 10 * SECOND);
    fs::write(&file, format!("{STOCK}--snapshot-threshold=512\n")).unwrap();
    let scrape = agent.wait_value(UNKNOWN, &FILE, 1.0, 10 * SECOND);
    let flag = [("file", "k8s-dqlite"), ("flag", "--snapshot-threshold")];
    assert_eq!(scrape.value("controlplane_args_unknown_flag_info", &flag), Some(1.0));
    for path in ["/", "/api/v1/status"] {
        let page = agent.get(path).unwrap().text();
        assert!(page.contains("--snapshot-threshold"), "{path}: {page}");
        assert!(page.contains("ControlPlaneArgsUnknownFlags"), "{path}: {page}");
    }
    // Many runs later it has been told once.
    std::thread::sleep(SECOND);
    let told = agent.log().matches("args/k8s-dqlite has --snapshot-threshold").count();
    assert_eq!(told, 1, "{}", agent.log());
    let mut command = bound_command(env!("CARGO_BIN_EXE_controlplane-exporter"));
    command.args(["check", "--profile=units", "--format=nagios"]);
    command.env("CONTROLPLANE_EXPORTER__WEB__SOCKET", agent.socket());
    let said = output(command, 10 * SECOND);
    assert_eq!(said.status.code(), Some(2), "{}", said.stdout);
    assert!(said.stdout.contains("--snapshot-threshold"), "{}", said.stdout);
    fs::write(&file, STOCK).unwrap();
    agent.wait_value(UNKNOWN, &FILE, 0.0, 10 * SECOND);
}

#[test]
fn a_release_that_is_not_in_the_table_is_not_checked() {
    let _turn = lab::together();
    let folder = lab::temp_dir("args");
    fs::write(folder.path().join("k8s-dqlite"), "--strange=1\n").unwrap();
    let agent = agent_of(folder.path(), "v1.99.0");
    let scrape = agent.wait_value("controlplane_args_checked", &FILE, 0.0, 10 * SECOND);
    assert_eq!(scrape.value(UNKNOWN, &FILE), None);
}

#[test]
fn a_file_that_is_changed_under_a_running_service_waits_for_its_restart() {
    let _turn = lab::together();
    let folder = lab::temp_dir("args");
    let file = folder.path().join("k8s-dqlite");
    fs::write(&file, STOCK).unwrap();
    // As the snap has it; its name is that of the file.
    let snap = folder.path().join("snap/microk8s/8695/bin");
    fs::create_dir_all(&snap).unwrap();
    let program = snap.join("k8s-dqlite");
    fs::copy(lab::program("sleep"), &program).unwrap();
    let mut command = bound_command(&program);
    command.arg("60");
    let log = folder.path().join("log");
    let service = Daemon::start("k8s-dqlite", command, &log);
    let agent = agent_of(folder.path(), "v1.34.5");
    agent.wait_value(CHANGED, &FILE, 0.0, 10 * SECOND);
    // As if it had run for a while.
    let later = SystemTime::now() + 60 * SECOND;
    fs::File::options().append(true).open(&file).unwrap().set_modified(later).unwrap();
    agent.wait_value(CHANGED, &FILE, 1.0, 10 * SECOND);
    drop(service);
    agent.wait_until("no such service", CHANGED, 10 * SECOND, |scrape| {
        scrape.value(CHANGED, &FILE).is_none()
    });
}
