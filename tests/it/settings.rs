//! Sampler `settings` in the real agent: what it says of a server, that secrets stay in it, and that it reads only files.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::lab;
use crate::lab::agent::{Agent, Options};
use crate::lab::http;
use crate::lab::process::{bound_command, output};

const SECOND: Duration = Duration::from_secs(1);
const FLAG: &str = "controlplane_settings_flag_info";
const CONFIG: &str =
    "settings: {interval: 200ms}\nfdatasync: {interval: 1h}\nregistry_keys: {timeout: 1s}\n";
/// No word of any output contains it by chance.
const SECRET: &str = "hunter2";

/// A k3s server below a root of its own, with more files.
fn server(files: &[(&str, &str)]) -> tempfile::TempDir {
    let root = lab::temp_dir("server");
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/host/k3s-etcd");
    lab::process::run(
        "cp",
        ["-a", &format!("{}/.", fixture.display()), &root.path().display().to_string()],
    );
    for (path, text) in files {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    root
}

fn start(root: &Path) -> Agent {
    let options =
        Options { config: CONFIG.into(), rootfs: Some(root.to_owned()), ..Options::default() };
    Agent::start_with(options)
}

#[test]
fn secrets_planted_in_every_file_come_out_of_no_output() {
    let _turn = lab::together();
    let root = server(&[
        (
            "etc/rancher/k3s/config.yaml",
            "token: hunter2\nagent-token: hunter2\ndatastore-endpoint: \"postgres://k3s:hunter2@db:5432/k3s\"\n\
             vpn-auth: \"name=tailscale,joinKey=hunter2\"\netcd-s3-secret-key: hunter2\ndisable: [traefik]\n\
             kube-apiserver-arg: [oidc-client-secret=hunter2, \"etcd-servers=https://u:hunter2@e1:2379\", \
             \"audit-webhook=https://hunter2@a\", token-auth-file=/etc/tokens]\n",
        ),
        ("etc/rancher/k3s/config.yaml.d/90.yaml", "token+: hunter2\nprivate-registry: hunter2\n"),
        (
            "etc/default/k3s",
            "K3S_TOKEN=hunter2\nK3S_AGENT_TOKEN=hunter2\nHTTPS_PROXY=http://u:hunter2@p\n",
        ),
        (
            "etc/systemd/system/k3s.service.env",
            "K3S_TOKEN='hunter2'\nK3S_DATASTORE_ENDPOINT=mysql://u:hunter2@tcp(d)/k\n",
        ),
        (
            "etc/systemd/system/k3s.service.d/token.conf",
            "[Service]\nEnvironment=K3S_AGENT_TOKEN=hunter2\nExecStart=\n\
             ExecStart=/usr/local/bin/k3s server --token=hunter2 --agent-token hunter2 --vpn-auth=joinKey=hunter2\n",
        ),
    ]);
    let agent = start(root.path());
    let is_set = [("component", "k3s"), ("flag", "agent-token"), ("value", "set")];
    agent.wait_value(FLAG, &is_set, 1.0, 10 * SECOND);
    let mut outputs = vec![("log".to_owned(), agent.log())];
    for page in ["/", "/api/v1/status", "/api/v1/timeline", "/metrics"] {
        outputs.push((page.to_owned(), agent.get(page).unwrap().text()));
    }
    for format in ["application/openmetrics-text;version=1.0.0", PROTOBUF] {
        let answer =
            http::request(agent.address(), "GET", "/metrics", &[("Accept", format)], 5 * SECOND)
                .unwrap();
        outputs.push((format.to_owned(), String::from_utf8_lossy(&answer.body).into_owned()));
    }
    for command in ["check", "inspect", "config"] {
        let mut program = bound_command(env!("CARGO_BIN_EXE_controlplane-exporter"));
        program.arg(command);
        program.env("CONTROLPLANE_EXPORTER__WEB__SOCKET", agent.socket());
        program.env("CONTROLPLANE_EXPORTER__PATH__ROOTFS", root.path());
        let said = output(program, 15 * SECOND);
        outputs.push((command.to_owned(), format!("{}{}", said.stdout, said.stderr)));
    }
    for (name, text) in &outputs {
        assert!(text.len() > 20, "{name} says nothing: {text}");
        assert!(!text.contains(SECRET), "{name}: {text}");
    }
    let metrics = &outputs[4].1;
    assert!(metrics.contains("flag=\"datastore-endpoint\",value=\"postgres\""), "{metrics}");
}

const PROTOBUF: &str =
    "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited";

#[test]
fn a_changed_file_is_read_at_the_next_run_and_a_broken_one_takes_only_its_program_away() {
    let _turn = lab::together();
    let root = server(&[]);
    let agent = start(root.path());
    let disabled = |what| [("component", "k3s"), ("flag", "disable"), ("value", what)];
    agent.wait_value(FLAG, &disabled("traefik"), 1.0, 10 * SECOND);
    let file = root.path().join("etc/rancher/k3s/config.yaml");
    fs::write(&file, "disable: [servicelb]\n").unwrap();
    let scrape = agent.wait_value(FLAG, &disabled("servicelb"), 1.0, 10 * SECOND);
    assert_eq!(scrape.value(FLAG, &disabled("traefik")), None);
    fs::write(&file, "disable: [servicelb\n").unwrap();
    let failed = [("sampler", "settings"), ("reason", "read")];
    let total = "controlplane_sampler_failures_total";
    agent.wait_until("a failed part", total, 10 * SECOND, |scrape| {
        scrape.value(total, &failed) >= Some(1.0) && scrape.all(FLAG, &[]).is_empty()
    });
    let scrape = agent.scrape();
    assert_eq!(scrape.value("controlplane_sampler_up", &[("sampler", "settings")]), Some(1.0));
    assert!(!scrape.all("controlplane_settings_version_info", &[]).is_empty(), "{}", scrape.text);
    let status = agent.get("/api/v1/status").unwrap().text();
    assert!(status.contains("/etc/rancher/k3s/config.yaml could not be read"), "{status}");
}

#[test]
fn fifos_devices_and_links_out_of_the_root_stop_nothing() {
    let _turn = lab::together();
    let root = server(&[]);
    let outside = lab::temp_dir("outside");
    fs::write(outside.path().join("90.yaml"), "disable: [outside]\n").unwrap();
    let folder = root.path().join("etc/rancher/k3s/config.yaml.d");
    std::os::unix::fs::symlink(outside.path().join("90.yaml"), folder.join("91.yaml")).unwrap();
    lab::process::run("mkfifo", [folder.join("92.yaml")]);
    lab::process::run("mkfifo", [root.path().join("etc/default-fifo")]);
    fs::create_dir_all(root.path().join("usr/local/bin")).unwrap();
    lab::process::run(
        "mknod",
        [root.path().join("usr/local/bin/k3s").display().to_string().as_str(), "c", "1", "5"],
    );
    let agent = start(root.path());
    let failed = [("sampler", "settings"), ("reason", "read")];
    let scrape = agent.wait_until(
        "the FIFO",
        "controlplane_sampler_failures_total",
        10 * SECOND,
        |scrape| scrape.value("controlplane_sampler_failures_total", &failed) >= Some(2.0),
    );
    assert!(!scrape.text.contains("outside"), "{}", scrape.text);
    // It went on run after run, so nothing waited.
    let runs = "controlplane_sampler_runs_total";
    assert!(scrape.value(runs, &[("sampler", "settings")]) >= Some(2.0), "{}", scrape.text);
}
