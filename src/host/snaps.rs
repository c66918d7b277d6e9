//! The two snaps: MicroK8s, and Canonical Kubernetes (`k8s`).
//!
//! Reads the files of arguments that their services start with, lock files, and the version in
//! the snap. `current` links stay as they are: a refresh moves them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::etcd_settings::{EtcdSettings, is_loopback, split_urls};
use super::flags::{Flags, words_of_file};
use super::found::{Found, Hint};
use super::read::Probe;
use super::yaml::Node;
use super::{Datastore, Distribution, EtcdAccess, Installation, QuotaSource, Role, Unit};

/// Where snaps are mounted; the second on distributions without `/snap`.
const MOUNTS: &[&str] = &["/snap", "/var/lib/snapd/snap"];

/// The snaps with a control plane, and where each has its files of arguments.
pub(crate) const MICROK8S: (&str, &str) = ("microk8s", "/var/snap/microk8s/current/args");
pub(crate) const CANONICAL: (&str, &str) = ("k8s", "/var/snap/k8s/common/args");

/// Parts of a snap whose version is kept; fifteen are known.
const MAX_COMPONENTS: usize = 32;

/// A variable that snapd gives to the services of the snap `name`, mounted at `mount`.
pub(crate) fn variable(snap: &str, mount: &Path, name: &str) -> Option<String> {
    match name {
        "SNAP" => Some(mount.display().to_string()),
        "SNAP_DATA" => Some(format!("/var/snap/{snap}/current")),
        "SNAP_COMMON" => Some(format!("/var/snap/{snap}/common")),
        _ => None,
    }
}

/// A snap that may be installed.
struct Snap {
    name: &'static str,
    /// `/snap/NAME/current`.
    mount: PathBuf,
    /// The folder of the files of arguments.
    args: PathBuf,
}

impl Snap {
    fn new(probe: &Probe, (name, args): (&'static str, &str)) -> Self {
        let mounts = MOUNTS.iter().map(|folder| Path::new(folder).join(name).join("current"));
        let mount = mounts.into_iter().find(|path| probe.is_link(path) || probe.exists(path));
        let mount = mount.unwrap_or_else(|| format!("/snap/{name}/current").into());
        Self { name, mount, args: args.into() }
    }

    fn evidence(&self, probe: &Probe) -> Vec<PathBuf> {
        let mut evidence = Vec::new();
        evidence.extend(probe.is_link(&self.mount).then(|| self.mount.clone()));
        evidence.extend(probe.exists(&self.args).then(|| self.args.clone()));
        evidence
    }

    fn running(&self, probe: &Probe) -> bool {
        let inside = format!("/snap/{}/", self.name);
        probe
            .processes
            .iter()
            .any(|process| process.words.first().is_some_and(|word| word.contains(&inside)))
    }

    /// The flags of a service, its variables in place; `None` without the file.
    fn flags(&self, probe: &Probe, service: &str) -> Option<Flags> {
        let text = probe.text(self.args.join(service))?;
        let value = |name: &str| variable(self.name, &self.mount, name);
        // What bash refuses is told by the sampler `args`.
        Some(Flags::parse(&words_of_file(&text, value).unwrap_or_default()))
    }

    /// The versions of its parts, from its bill of materials, which is JSON and so YAML too.
    fn components(&self, probe: &Probe) -> BTreeMap<String, String> {
        let parsed = probe.text(self.mount.join("bom.json")).map(|text| Node::parse(&text));
        let Some(Ok(bom)) = parsed else { return BTreeMap::new() };
        let all = bom.get("components").map(Node::entries).unwrap_or_default();
        let version = |(name, part): &(String, Node)| {
            Some((name.clone(), part.text_at(&["version"])?.to_owned()))
        };
        all.iter().filter_map(version).take(MAX_COMPONENTS).collect()
    }

    /// `version:` of the snap's own description.
    fn version(&self, probe: &Probe) -> Option<String> {
        let text = probe.text(self.mount.join("meta/snap.yaml"))?;
        Some(Node::parse(&text).ok()?.text_at(&["version"])?.to_owned())
    }

    fn unit(&self, service: &str, expected: bool) -> Unit {
        Unit { name: format!("snap.{}.{service}.service", self.name), expected }
    }
}

pub(super) fn microk8s(probe: &Probe, hint: &Hint) -> Option<Found> {
    let snap = Snap::new(probe, MICROK8S);
    let mut found = Installation::new(Distribution::Microk8s);
    found.evidence = snap.evidence(probe);
    if found.evidence.is_empty() && !hint.forced {
        return None;
    }
    let data = hint.data_dir.clone().unwrap_or_else(|| "/var/snap/microk8s/current".into());
    let locks = probe.names(data.join("var/lock"));
    let locked = |name: &str| locks.iter().any(|lock| lock == name);
    found.running = snap.running(probe);
    found.version = snap.version(probe);
    found.components = snap.components(probe);
    found.role = if locked("clustered.lock") { Role::Agent } else { Role::Server };
    found.snaps = vec![snap.name.to_owned()];
    let common = Path::new("/var/snap/microk8s/common/var/lib");
    found.container_dirs = vec![common.join("containerd"), common.join("kubelet")];
    if found.role == Role::Server {
        microk8s_datastore(probe, &snap, &data, locked("ha-cluster"), &mut found);
    }
    found.units = microk8s_units(&snap, &found, &locked);
    found.data_dir = Some(data);
    Some(Found::new(probe, found))
}

/// The services of the snap. A wrapper whose lock file exists exits at once with status 0, so
/// that its unit is inactive without having failed.
fn microk8s_units(snap: &Snap, found: &Installation, locked: &dyn Fn(&str) -> bool) -> Vec<Unit> {
    let server = found.role == Role::Server;
    let dqlite = found.datastore == Datastore::Dqlite;
    let etcd = found.datastore == Datastore::Etcd;
    let spare_memory = !locked("low-memory-guard.lock");
    [
        ("kubelite", spare_memory),
        ("k8s-dqlite", dqlite && spare_memory),
        ("containerd", true),
        ("cluster-agent", true),
        ("apiserver-kicker", server && spare_memory),
        ("apiserver-proxy", !server),
        ("etcd", etcd),
        ("flanneld", etcd),
    ]
    .into_iter()
    .map(|(service, by_role)| {
        let kept_off = locked("stopped.lock") || locked(&format!("no-{service}"));
        snap.unit(&format!("daemon-{service}"), by_role && !kept_off)
    })
    .collect()
}

fn microk8s_datastore(
    probe: &Probe,
    snap: &Snap,
    data: &Path,
    ha_cluster: bool,
    found: &mut Installation,
) {
    let apiserver = snap.flags(probe, "kube-apiserver").unwrap_or_default();
    found.api_url = Some(apiserver.api_url(16443));
    let servers = apiserver.get("etcd-servers").unwrap_or_default();
    let backend = data.join("var/kubernetes/backend");
    if servers.contains("kine.sock") || (servers.is_empty() && ha_cluster) {
        let args = snap.flags(probe, "k8s-dqlite").unwrap_or_default();
        let folder = args.get("storage-dir").map_or(backend.clone(), PathBuf::from);
        // The colon and the digits are part of the file's name.
        let socket = servers.strip_prefix("unix://").map(PathBuf::from);
        dqlite(found, folder, socket.unwrap_or_else(|| backend.join("kine.sock:12379")));
    } else if is_local(servers, "12379") {
        let settings = snap.flags(probe, "etcd").map(|flags| EtcdSettings::from_flags(&flags));
        let settings = settings.unwrap_or_default();
        let folder = settings.data_dir.clone();
        let folder = folder.unwrap_or_else(|| "/var/snap/microk8s/common/var/run/etcd".into());
        // The bundled etcd takes the API server's own certificate for a client's.
        let certs = data.join("certs");
        let defaults = ["ca.crt", "server.crt", "server.key"].map(|file| certs.join(file));
        local_etcd(found, &apiserver, servers, &settings, folder, defaults);
    } else if !servers.is_empty() {
        external_etcd(found, &apiserver, servers);
    }
}

pub(super) fn canonical(probe: &Probe, hint: &Hint) -> Option<Found> {
    let common = hint.data_dir.clone().unwrap_or_else(|| "/var/snap/k8s/common".into());
    let snap = Snap::new(probe, CANONICAL);
    let mut found = Installation::new(Distribution::CanonicalK8s);
    found.evidence = snap.evidence(probe);
    if found.evidence.is_empty() && !hint.forced {
        return None;
    }
    found.running = snap.running(probe);
    found.components = snap.components(probe);
    let kubernetes = found.components.get("kubernetes").cloned();
    found.version = kubernetes.or_else(|| snap.version(probe));
    found.snaps = vec![snap.name.to_owned()];
    found.container_dirs = canonical_images(probe, &snap, &common);
    found.container_dirs.push("/var/lib/kubelet".into());
    let apiserver = snap.flags(probe, "kube-apiserver");
    found.role = match (&apiserver, probe.exists(common.join("lock/worker"))) {
        (_, true) => Role::Agent,
        (Some(_), false) => Role::Server,
        (None, false) if probe.exists(snap.args.join("kubelet")) => Role::Agent,
        // Installed, not bootstrapped yet.
        (None, false) => Role::Unknown,
    };
    if let Some(apiserver) = apiserver.filter(|_| found.role == Role::Server) {
        found.api_url = Some(apiserver.api_url(6443));
        canonical_datastore(probe, &snap, &common, &apiserver, &mut found);
    }
    found.units = canonical_units(&snap, &found);
    found.data_dir = Some(common);
    Some(Found::new(probe, found))
}

/// Where images may lie: the classic snap keeps them outside of itself, the strict one inside.
fn canonical_images(probe: &Probe, snap: &Snap, common: &Path) -> Vec<PathBuf> {
    let told = snap.flags(probe, "containerd");
    match told.as_ref().and_then(|flags| flags.get("root")) {
        Some(folder) => vec![folder.into()],
        None => vec!["/var/lib/containerd".into(), common.join("var/lib/containerd")],
    }
}

fn canonical_units(snap: &Snap, found: &Installation) -> Vec<Unit> {
    let server = found.role == Role::Server;
    let node = found.role != Role::Unknown;
    let mut services = vec![
        ("k8sd", true),
        ("containerd", node),
        ("kubelet", node),
        ("kube-proxy", false),
        ("kube-apiserver", server),
        ("kube-controller-manager", server),
        ("kube-scheduler", server),
        ("k8s-apiserver-proxy", found.role == Role::Agent),
    ];
    // Whether kube-proxy runs depends on the network feature, so it is watched, not expected.
    match found.datastore {
        Datastore::Etcd => services.push(("etcd", true)),
        Datastore::Dqlite => services.push(("k8s-dqlite", true)),
        _ => {}
    }
    services.into_iter().map(|(service, expected)| snap.unit(service, expected)).collect()
}

fn canonical_datastore(
    probe: &Probe,
    snap: &Snap,
    common: &Path,
    apiserver: &Flags,
    found: &mut Installation,
) {
    let servers = apiserver.get("etcd-servers").unwrap_or_default();
    if let Some(socket) = servers.strip_prefix("unix://").filter(|s| s.contains("k8s-dqlite")) {
        let args = snap.flags(probe, "k8s-dqlite").unwrap_or_default();
        let folder = args.get("storage-dir").map(PathBuf::from);
        dqlite(found, folder.unwrap_or_else(|| common.join("var/lib/k8s-dqlite")), socket.into());
    } else if is_local(servers, "2379") && probe.exists(snap.args.join("etcd")) {
        let settings = snap.flags(probe, "etcd").map(|flags| EtcdSettings::from_flags(&flags));
        let settings = settings.unwrap_or_default();
        let folder = settings.data_dir.clone().unwrap_or_else(|| common.join("var/lib/etcd/data"));
        let pki = Path::new("/etc/kubernetes/pki");
        let defaults = [
            pki.join("etcd/ca.crt"),
            pki.join("apiserver-etcd-client.crt"),
            pki.join("apiserver-etcd-client.key"),
        ];
        local_etcd(found, apiserver, servers, &settings, folder, defaults);
    } else if !servers.is_empty() {
        external_etcd(found, apiserver, servers);
    }
}

fn dqlite(found: &mut Installation, folder: PathBuf, socket: PathBuf) {
    found.datastore = Datastore::Dqlite;
    found.datastore_dir = Some(folder);
    found.kine_socket = Some(socket);
    found.processes = vec!["k8s-dqlite".to_owned()];
}

/// The snap's own etcd: reached as the API server reaches it, with the same certificate.
fn local_etcd(
    found: &mut Installation,
    apiserver: &Flags,
    servers: &str,
    settings: &EtcdSettings,
    folder: PathBuf,
    [ca, cert, key]: [PathBuf; 3],
) {
    let file = |flag, default| Some(apiserver.get(flag).map_or(default, PathBuf::from));
    let mut endpoints = split_urls(servers);
    endpoints.retain(|url| is_loopback(url));
    found.datastore = Datastore::Etcd;
    found.datastore_dir = Some(folder);
    found.wal_dir.clone_from(&settings.wal_dir);
    found.processes = vec!["etcd".to_owned()];
    found.etcd = Some(EtcdAccess {
        endpoints,
        ca_file: file("etcd-cafile", ca),
        cert_file: file("etcd-certfile", cert),
        key_file: file("etcd-keyfile", key),
        quota: settings.quota(QuotaSource::Manifest),
    });
}

fn external_etcd(found: &mut Installation, apiserver: &Flags, servers: &str) {
    let file = |flag| apiserver.get(flag).map(PathBuf::from);
    found.datastore = Datastore::ExternalEtcd;
    found.external_etcd = Some(EtcdAccess {
        endpoints: split_urls(servers),
        ca_file: file("etcd-cafile"),
        cert_file: file("etcd-certfile"),
        key_file: file("etcd-keyfile"),
        quota: None,
    });
}

fn is_local(servers: &str, port: &str) -> bool {
    split_urls(servers)
        .iter()
        .any(|url| is_loopback(url) && url.trim_end_matches('/').ends_with(&format!(":{port}")))
}
