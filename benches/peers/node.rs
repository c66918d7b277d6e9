//! A node with everything on: k3s with an etcd of three members, units under systemd, a log that says all that a log
//! can say, certificates, an API server, orphans.

use crate::lab::apiserver::ApiServer;
use crate::lab::etcd::{Cluster, Etcd};
use crate::lab::pki::Pki;
use crate::lab::process::run;
use crate::lab::systemd::Container;
use crate::lab::{TEMP_PREFIX, temp_dir};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

/// The units that both ours and its peers are told to look at.
pub(crate) const UNITS: usize = 8;
const DATASTORE: &str = "/var/lib/rancher/k3s/server/db";

pub(crate) struct Node {
    pub(crate) container: Container,
    pub(crate) cluster: Cluster,
    server: ApiServer,
    pki: Pki,
    /// On a filesystem in memory, as `/run` is.
    memory: tempfile::TempDir,
    _disk: tempfile::TempDir,
}

impl Node {
    pub(crate) fn start() -> Self {
        // On the machine's own disk, so that there is something to sync.
        let disk = temp_dir("datastore");
        let bind = format!("--bind={}:{DATASTORE}", disk.path().display());
        let container = Container::boot_with("root", &bind);
        let memory = tempfile::Builder::new().prefix(TEMP_PREFIX).tempdir_in("/dev/shm");
        let cluster = Cluster::start(Etcd::V35, 3);
        cluster.put_many("/registry/longhorn.io/orphans/longhorn-system/orphan-", 1000, 100);
        let pki = Pki::new();
        let server = ApiServer::start(&pki, &pki.server);
        let memory = memory.expect("a folder in memory");
        let node = Self { container, cluster, server, pki, memory, _disk: disk };
        node.furnish();
        node
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.container.root()
    }

    fn furnish(&self) {
        let root = self.root();
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/host/k3s-etcd");
        let copy = |from: &Path, to: &str| {
            let to = root.join(to);
            fs::create_dir_all(to.parent().expect("a parent")).expect("a folder");
            run("cp", ["-r", &from.display().to_string(), &to.display().to_string()]);
        };
        copy(&fixture.join("etc/rancher"), "etc/rancher");
        for (name, pki) in [("etcd", &self.cluster.pki), ("api", &self.pki)] {
            copy(&pki.ca, &format!("pki/{name}-ca.crt"));
            copy(&pki.client.cert, &format!("pki/{name}.crt"));
            copy(&pki.client.key, &format!("pki/{name}.key"));
        }
        for n in 0..20 {
            copy(&self.pki.client.cert, &format!("var/lib/rancher/k3s/server/tls/{n}.crt"));
        }
        for snap in ["core", "lxd", "microk8s", "snapd"] {
            fs::create_dir_all(root.join(format!("var/snap/{snap}/common"))).expect("a snap");
        }
        fs::write(root.join("run/said"), "").expect("a file");
        for (name, text) in units(UNITS) {
            fs::write(root.join("etc/systemd/system").join(&name), text).expect("a unit");
        }
        self.container.systemctl(&["daemon-reload"]);
        let names: Vec<String> = units(UNITS).map(|(name, _)| name).collect();
        let all: Vec<&str> =
            ["start"].into_iter().chain(names.iter().map(String::as_str)).collect();
        self.container.systemctl(&all);
    }

    /// The log says everything that it can say.
    pub(crate) fn say_everything(&self) {
        let mut file =
            fs::File::options().append(true).open(self.root().join("run/said")).expect("the log");
        for line in include_str!("../../tests/data/journal-samples.jsonl").lines() {
            let sample: serde_json::Value = serde_json::from_str(line).expect("a sample");
            let line = sample["line"].as_str().unwrap_or_default().replace('\n', " ");
            writeln!(file, "{line}").expect("a line");
        }
    }

    /// The agent's configuration: every sampler at its default interval.
    pub(crate) fn config(&self, more: &str) -> String {
        let names: Vec<String> = units(UNITS).map(|(name, _)| name).collect();
        let url = self.server.url();
        format!(
            "web: {{max_requests: 0}}\n\
             host: {{distribution: k3s, role: server, datastore: etcd, datastore_dir: {DATASTORE}}}\n\
             etcd: {{endpoints: ['{}'], ca_file: /pki/etcd-ca.crt, cert_file: /pki/etcd.crt, \
               key_file: /pki/etcd.key, expected_members: 3}}\n\
             apiserver: {{url: '{url}', ca_file: /pki/api-ca.crt, cert_file: /pki/api.crt, key_file: /pki/api.key}}\n\
             journal: {{units: [k3s.service], cursor_file: '{}'}}\n\
             systemd: {{units: [{}], bus: '{}'}}\n\
             filesystem: {{paths: [/, {DATASTORE}, /run]}}\n\
             fdatasync: {{paths: [{DATASTORE}]}}\n{more}",
            self.cluster.client_url(0),
            self.memory.path().join("cursor").display(),
            names.join(", "),
            self.container.bus_address(),
        )
    }
}

/// Names and texts of units: the first says what is written to a file, some of the others fail again and again.
pub(crate) fn units(n: usize) -> impl Iterator<Item = (String, &'static str)> {
    (0..n).map(|n| match n {
        0 => (
            "k3s.service".to_owned(),
            "[Service]\nRestart=always\nExecStart=/usr/bin/tail -q -n 0 -F /run/said\n",
        ),
        1 | 2 => (
            format!("part-{n}.service"),
            "[Service]\nRestart=always\nRestartSec=60\nExecStart=/bin/sh -c 'exit 2'\n",
        ),
        _ => (
            format!("part-{n}.service"),
            "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true\n",
        ),
    })
}
