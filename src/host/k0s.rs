//! k0s: one unit, its components as child processes.
//!
//! Reads the unit's command and `/run/k0s/k0s.yaml`, which k0s writes with everything in effect,
//! else `/etc/k0s/k0s.yaml`.

use std::path::{Path, PathBuf};

use super::etcd_settings::{quota_bytes, split_urls};
use super::flags::Flags;
use super::found::{Found, Hint};
use super::read::Probe;
use super::units;
use super::yaml::Node;
use super::{Datastore, Distribution, EtcdAccess, Installation, Quota, QuotaSource, Role, Unit};

const CONTROLLER: &str = "k0scontroller.service";
const WORKER: &str = "k0sworker.service";
/// What k0s writes while it runs.
const RUNTIME_CONFIG: &str = "/run/k0s/k0s.yaml";

pub(super) fn k0s(probe: &Probe, hint: &Hint) -> Option<Found> {
    let process =
        probe.processes.named("k0s").find(|p| !p.contained() && role_of(&p.words).is_some());
    let mut candidates: Vec<&str> = [CONTROLLER, WORKER]
        .into_iter()
        .filter(|name| units::find(probe, name).is_some())
        .collect();
    let running = process.and_then(|process| role_of(&process.words));
    let role = running.or_else(|| {
        let chosen = candidates
            .iter()
            .find(|name| units::enabled(probe, name))
            .or_else(|| candidates.first())?;
        Some(if *chosen == CONTROLLER { Role::Server } else { Role::Agent })
    });
    candidates
        .retain(|name| role.is_none_or(|role| (role == Role::Server) == (*name == CONTROLLER)));

    // What runs is believed before what is written in the unit.
    let words = process
        .map(|process| process.words.clone())
        .or_else(|| Some(units::load(probe, candidates.first()?, &|_| false)?.exec));
    let flags = Flags::parse(&words.unwrap_or_default());
    let config = Config::read(probe, &flags);
    let data = hint
        .data_dir
        .clone()
        .or_else(|| flags.get("data-dir").map(PathBuf::from))
        .or_else(|| config.variable("dataDir").map(PathBuf::from))
        .unwrap_or_else(|| "/var/lib/k0s".into());

    let mut found = Installation::new(Distribution::K0s);
    found.evidence.extend(candidates.iter().filter_map(|name| units::find(probe, name)));
    let paths = [data.join("pki"), "/run/k0s/status.sock".into()];
    found.evidence.extend(paths.into_iter().filter(|path| probe.exists(path)));
    if found.evidence.is_empty() && running.is_none() && !hint.forced {
        return None;
    }
    found.running = running.is_some();
    found.role = role.unwrap_or_default();
    found.version = config.spec("images.kubeproxy.version").map(str::to_owned);
    found.units =
        candidates.iter().map(|name| Unit { name: (*name).to_owned(), expected: true }).collect();
    found.container_dirs = vec![data.join("containerd"), data.join("kubelet")];
    if found.role != Role::Agent {
        // It may listen on this address alone, where somebody else has the port on the others.
        let alone = config.spec("api.onlyBindToAddress") == Some("true");
        let address = config.spec("api.address").filter(|_| alone).unwrap_or("127.0.0.1");
        let address = if address.contains(':') { format!("[{address}]") } else { address.into() };
        let port = config.spec("api.port").unwrap_or("6443");
        found.api_url = Some(format!("https://{address}:{port}"));
        describe_datastore(&config, &flags, &data, &mut found);
    }
    found.data_dir = Some(data);
    Some(Found::new(probe, found))
}

fn role_of(words: &[String]) -> Option<Role> {
    match words.get(1).map(String::as_str) {
        Some("controller" | "server") => Some(Role::Server),
        Some("worker") => Some(Role::Agent),
        _ => None,
    }
}

pub(super) fn describe_datastore(
    config: &Config,
    flags: &Flags,
    data: &Path,
    found: &mut Installation,
) {
    let single = flags.get("single").is_some_and(|value| value != "false");
    let kind = config.spec("storage.type").unwrap_or(if single { "kine" } else { "etcd" });
    if kind == "kine" {
        // The source may hold a password; nothing but its scheme is looked at.
        let source = config.spec("storage.kine.dataSource").unwrap_or("sqlite");
        found.processes = vec!["kine".to_owned()];
        found.kine_socket = Some("/run/k0s/kine/kine.sock:2379".into());
        match source.split(':').next() {
            Some("sqlite" | "sqlite3") => {
                found.datastore = Datastore::Sqlite;
                found.datastore_dir = Some(data.join("db"));
            }
            Some("http" | "https") => found.datastore = Datastore::ExternalEtcd,
            _ => found.datastore = Datastore::ExternalSql,
        }
        return;
    }
    if let Some(external) = config.node("storage.etcd.externalCluster") {
        let file = |key| external.text_at(&[key]).map(PathBuf::from);
        let endpoints = external.get("endpoints").map(Node::texts).unwrap_or_default();
        found.datastore = Datastore::ExternalEtcd;
        found.external_etcd = Some(EtcdAccess {
            endpoints: split_urls(&endpoints.join(",")),
            ca_file: file("caFile"),
            cert_file: file("clientCertFile"),
            key_file: file("clientKeyFile"),
            quota: None,
        });
        return;
    }
    let pki = data.join("pki");
    let bytes = config.spec("storage.etcd.extraArgs.quota-backend-bytes").and_then(quota_bytes);
    found.datastore = Datastore::Etcd;
    found.datastore_dir = Some(data.join("etcd"));
    found.wal_dir = config.spec("storage.etcd.extraArgs.wal-dir").map(PathBuf::from);
    found.processes = vec!["etcd".to_owned()];
    found.etcd = Some(EtcdAccess {
        // k0s lets its member listen here and nowhere else.
        endpoints: vec!["https://127.0.0.1:2379".to_owned()],
        ca_file: Some(pki.join("etcd/ca.crt")),
        cert_file: Some(pki.join("apiserver-etcd-client.crt")),
        key_file: Some(pki.join("apiserver-etcd-client.key")),
        quota: bytes.map(|bytes| Quota { bytes, source: QuotaSource::Config }),
    });
}

/// Settings that all controllers must share, by their keys below `spec`.
const SHARED: [&str; 8] = [
    "network.clusterDomain",
    "network.dualStack.enabled",
    "network.kubeProxy.disabled",
    "network.kubeProxy.mode",
    "network.podCIDR",
    "network.provider",
    "network.serviceCIDR",
    "storage.type",
];

/// What all controllers must share, and the file that says it, which takes effect at the next start.
pub(super) fn shared_settings(
    probe: &Probe,
    flags: &Flags,
) -> (Vec<(String, String)>, Option<PathBuf>) {
    let config = Config::read(probe, flags);
    let mut settings: Vec<(String, String)> = SHARED
        .iter()
        .filter_map(|key| Some(((*key).to_owned(), config.spec(key)?.to_owned())))
        .collect();
    let disabled = flags.all("disable-components").flat_map(|list| list.split(','));
    settings.extend(disabled.map(|item| ("disable-components".to_owned(), item.trim().to_owned())));
    let file = PathBuf::from(written_config(flags));
    (settings, probe.exists(&file).then_some(file))
}

/// The file of the configuration that people write.
fn written_config(flags: &Flags) -> &str {
    flags.get("config").filter(|path| path.starts_with('/')).unwrap_or("/etc/k0s/k0s.yaml")
}

/// The configuration in effect.
pub(super) struct Config(pub(super) Node);

impl Config {
    fn read(probe: &Probe, flags: &Flags) -> Self {
        for path in [RUNTIME_CONFIG, written_config(flags)] {
            match probe.text(path).map(|text| Node::parse(&text)) {
                Some(Ok(node)) => return Self(node),
                Some(Err(error)) => probe.note(format!("{path} could not be read: {error}")),
                None => {}
            }
        }
        Self(Node::Map(Vec::new()))
    }

    /// A node of the cluster's `spec`, by keys joined with dots. The file that k0s writes while
    /// it runs holds the cluster's configuration one level down.
    fn node(&self, keys: &str) -> Option<&Node> {
        let keys: Vec<&str> = keys.split('.').collect();
        let spec = self.0.at(&["spec", "nodeConfig", "spec"]).or_else(|| self.0.get("spec"))?;
        spec.at(&keys).filter(|node| **node != Node::Text(String::new()))
    }

    fn spec(&self, keys: &str) -> Option<&str> {
        self.node(keys)?.text()
    }

    /// One of the variables that k0s writes beside its configuration; their spelling differs
    /// between releases.
    fn variable(&self, name: &str) -> Option<&str> {
        let variables = self.0.at(&["spec", "k0sVars"])?.entries();
        variables.iter().find(|(key, _)| key.eq_ignore_ascii_case(name))?.1.text()
    }
}
