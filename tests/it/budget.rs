//! How many series a full node has: a k3s server with an etcd of five members, each of its units, everything that its log can
//! say, forty certificates, an API server that is not well, a load balancer, snaps and orphans.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::journal::Node;
use crate::lab;
use crate::lab::agent::{Agent, Options};
use crate::lab::apiserver::{ApiServer, Mood};
use crate::lab::etcd::{Cluster, Etcd};
use crate::lab::pki::Pki;
use crate::lab::process::run;

const SECOND: Duration = Duration::from_secs(1);
/// What one agent may export, buckets and all.
const BUDGET: usize = 1000;

#[test]
fn a_full_node_has_fewer_than_a_thousand_series() {
    let _turn = lab::alone();
    let node = Node::start();
    let root = node.container.root();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/host/k3s-etcd");
    let inside = |path: &str| root.join(path);
    let cluster = Cluster::start(Etcd::V35, 5);
    cluster.put_many("/registry/longhorn.io/orphans/longhorn-system/orphan-", 50, 100);
    let pki = Pki::new();
    let server = ApiServer::start(&pki, &pki.server);
    server.set(Mood::NoEtcd);
    let copy = |from: &Path, to: &str| {
        fs::create_dir_all(inside(to).parent().unwrap()).unwrap();
        run("cp", ["-r", &from.display().to_string(), &inside(to).display().to_string()]);
    };
    copy(&fixture.join("etc/rancher"), "etc/rancher");
    for (name, file) in [
        ("ca.crt", &cluster.pki.ca),
        ("c.crt", &cluster.pki.client.cert),
        ("c.key", &cluster.pki.client.key),
        ("api-ca.crt", &pki.ca),
        ("api.crt", &pki.client.cert),
        ("api.key", &pki.client.key),
    ] {
        copy(file, &format!("pki/{name}"));
    }
    for n in 0..40 {
        copy(&pki.client.cert, &format!("var/lib/rancher/k3s/server/tls/{n}.crt"));
    }
    for snap in ["core", "lxd", "microk8s", "snapd"] {
        fs::create_dir_all(inside(&format!("var/snap/{snap}/common"))).unwrap();
    }
    let units: Vec<String> = (0..7).map(|n| format!("part-{n}.service")).collect();
    for unit in &units {
        let text = "[Service]\nRestart=always\nRestartSec=60\nExecStart=/bin/sh -c 'exit 2'\n";
        node.container.install_unit(unit, text);
        node.container.systemctl(&["start", unit]);
    }
    let url = server.url();
    let config = format!(
        "host: {{distribution: k3s, role: server, datastore: etcd, datastore_dir: /var/lib, devices: [sda, sdb]}}\n\
         etcd: {{endpoints: ['{}'], ca_file: /pki/ca.crt, cert_file: /pki/c.crt, key_file: /pki/c.key, \
           expected_members: 5, interval: 1s}}\n\
         registry_keys: {{interval: 1s}}\n\
         apiserver: {{url: '{url}', ca_file: /pki/api-ca.crt, cert_file: /pki/api.crt, key_file: /pki/api.key, interval: 1s, \
           urls: {{balancer: '{url}/healthz', other: '{url}/livez'}}}}\n\
         journal: {{units: [k3s.service], interval: 300ms, cursor_file: /run/c}}\n\
         systemd: {{units: [k3s.service, {}], bus: '{}', interval: 1s}}\n\
         fdatasync: {{paths: [/var/lib, /var/tmp], interval: 1s}}\n\
         filesystem: {{paths: [/, /var/lib, /var/tmp, /run], interval: 1s}}\n\
         settings: {{interval: 1s}}\ncertificate: {{interval: 1s}}\nsnap: {{interval: 1s}}\n",
        cluster.client_url(0),
        units.join(", "),
        node.container.bus_address(),
    );
    let agent = Agent::start_with(Options { config, rootfs: Some(root), ..Options::default() });
    let events = "controlplane_journal_events_total";
    agent.wait_until("the reader", "controlplane_journal", 20 * SECOND, |scrape| {
        scrape.value("controlplane_journal_reader_up", &[("source", "journal")]) == Some(1.0)
            || !scrape.all("controlplane_journal_reader_up", &[]).is_empty()
    });
    // Everything that a log can say.
    let samples = include_str!("../data/journal-samples.jsonl");
    for line in samples.lines() {
        let sample: serde_json::Value = serde_json::from_str(line).unwrap();
        node.say(sample["line"].as_str().unwrap().replace('\n', " ").as_bytes());
    }
    let scrape = agent.wait_until("a full node", events, 60 * SECOND, |scrape| {
        scrape.all(events, &[]).iter().filter(|one| one.value > 0.0).count() > 25
            && scrape.value("controlplane_etcd_voters_reachable", &[]) == Some(5.0)
            && scrape.value("controlplane_apiserver_up", &[("target", "other")]) == Some(1.0)
            && scrape.all("controlplane_certificate_not_after_timestamp_seconds", &[]).len() > 35
            && scrape.all("controlplane_systemd_unit_restarts_total", &[]).len() == 8
            && !scrape.all("controlplane_settings_flag_info", &[]).is_empty()
            && !scrape.all("controlplane_fdatasync_max_seconds", &[]).is_empty()
            && !scrape.all("controlplane_registry_keys", &[]).is_empty()
    });
    let mut by_sampler: BTreeMap<String, usize> = BTreeMap::new();
    for sample in &scrape.samples {
        let name = sample.name.strip_prefix("controlplane_").unwrap_or("process");
        *by_sampler.entry(name.split('_').next().unwrap().to_owned()).or_default() += 1;
    }
    eprintln!("{} series: {by_sampler:?}", scrape.samples.len());
    assert!(scrape.samples.len() < BUDGET, "{} series: {by_sampler:?}", scrape.samples.len());
    assert!(scrape.samples.len() > BUDGET / 2, "not a full node: {by_sampler:?}");
}
