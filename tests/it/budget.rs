//! How many series a full node has: a k3s server with an etcd of five members, each of its units, everything that its log can
//! say, everything that the kernel's can, forty certificates, an API server that is not well, a load balancer, snaps, orphans,
//! six volumes of which four are mounted here, and their backups.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::journal::Node;
use crate::lab;
use crate::lab::agent::{Agent, Options};
use crate::lab::apiserver::{ApiServer, Mood};
use crate::lab::disk::Kind;
use crate::lab::etcd::{Cluster, Etcd};
use crate::lab::pki::Pki;
use crate::lab::process::run;
use crate::lab::volume::{self, Volume};

const SECOND: Duration = Duration::from_secs(1);
/// What one agent may export, buckets and all.
const BUDGET: usize = 1000;
const VOLUMES: &str = "controlplane_volume_";

/// Series of four volumes that are mounted. An agent with a root of its own cannot be given mounts there.
fn of_mounted_volumes() -> usize {
    let mounted: Vec<_> =
        (0..4).map(|_| Volume::longhorn(Kind::Ext4, Duration::from_hours(24))).collect();
    let config = "host: {distribution: k3s, role: server, datastore: unknown}\netcd: {enabled: false}\n\
                  volume: {interval: 500ms, state_file: ~}\n";
    let agent = Agent::start(config);
    let used = "controlplane_volume_used_bytes";
    let scrape = agent.wait_until("the volumes", VOLUMES, 20 * SECOND, |scrape| {
        scrape.all(used, &[]).len() == mounted.len()
    });
    scrape.samples.iter().filter(|sample| sample.name.starts_with(VOLUMES)).count()
}

/// What the kernel may log of two disks, as `/dev/kmsg` gives it.
fn kernel_log() -> String {
    let lines = include_str!("../data/kmsg-samples.jsonl").lines();
    let samples = lines.map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let here = samples.filter(|one| ["sda", "sdb"].map(Some).contains(&one["device"].as_str()));
    let record = |(number, sample): (usize, serde_json::Value)| {
        let text = sample["line"].as_str().unwrap().replace('\n', " ");
        format!("3,{},{},-;{text}\n", number + 1, (number + 1) * 1000)
    };
    here.enumerate().map(record).collect()
}

#[test]
fn a_full_node_has_fewer_than_a_thousand_series() {
    let _turn = lab::alone();
    let node = Node::start();
    let root = node.container.root();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/host/k3s-etcd");
    let inside = |path: &str| root.join(path);
    let cluster = Cluster::start(Etcd::V35, 5);
    cluster.put_many("/registry/longhorn.io/orphans/longhorn-system/orphan-", 50, 100);
    volume::put_target(&cluster, "s3://backups/");
    for number in 0..6 {
        let name = format!("pvc-{number}");
        volume::put_volume(&cluster, &name, Duration::from_hours(48));
        for age in 1..=2 {
            let id = format!("{name}-{age}");
            volume::put_backup(&cluster, &id, &name, Duration::from_hours(age));
        }
    }
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
    fs::create_dir_all(inside("dev")).unwrap();
    fs::write(inside("dev/kmsg"), kernel_log()).unwrap();
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
         kernel: {{interval: 1s}}\nvolume: {{interval: 1s}}\nsettings: {{interval: 1s}}\ncertificate: {{interval: 1s}}\nsnap: {{interval: 1s}}\n",
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
            && scrape.all("controlplane_volume_backups", &[]).len() == 6
            && scrape.sum("controlplane_kernel_io_errors_total", &[]) > 0.0
    });
    let mut by_sampler: BTreeMap<String, usize> = BTreeMap::new();
    for sample in &scrape.samples {
        let name = sample.name.strip_prefix("controlplane_").unwrap_or("process");
        *by_sampler.entry(name.split('_').next().unwrap().to_owned()).or_default() += 1;
    }
    let mounted = of_mounted_volumes();
    by_sampler.insert("mounted volumes".to_owned(), mounted);
    let all = scrape.samples.len() + mounted;
    eprintln!("{all} series: {by_sampler:?}");
    assert!(all < BUDGET, "{all} series: {by_sampler:?}");
    assert!(all > BUDGET / 2, "not a full node: {by_sampler:?}");
}
