//! k3s and RKE2: the same supervisor, with its components inside (k3s) or as static pods (RKE2).
//!
//! Reads unit files, `/etc/rancher/NAME/config.yaml` and its folder, etcd's own configuration
//! file, and whether directories of the data directory exist.

use std::path::{Path, PathBuf};

use super::etcd_settings::{EtcdSettings, local_endpoints, quota_bytes, split_urls};
use super::found::{Found, Hint};
use super::manifest::StaticPod;
use super::processes::Process;
use super::rancher_config::{DETECTION, RancherConfig, known_variable};
use super::read::Probe;
use super::units::{self, UnitFile};
use super::{
    Datastore, Distribution, EtcdAccess, Installation, Quota, QuotaSource, Role, Unit, go_build,
};

pub(super) fn k3s(probe: &Probe, hint: &Hint) -> Option<Found> {
    let mut candidates: Vec<(String, UnitFile, Role)> = units::matching(probe, "k3s", ".service")
        .into_iter()
        .filter_map(|name| {
            let unit = units::load(probe, &name, &known_variable).unwrap_or_default();
            let role = match role_of_command(&unit.exec, "k3s") {
                // The command may be unreadable or a script; these two names have one meaning.
                Role::Unknown if name == "k3s.service" => Role::Server,
                Role::Unknown if name == "k3s-agent.service" => Role::Agent,
                role => role,
            };
            (role != Role::Unknown).then_some((name, unit, role))
        })
        .collect();
    let running = running_role(probe, "k3s");
    let role_where = |wanted: &dyn Fn(&str, Role) -> bool| {
        candidates.iter().find(|(name, _, role)| wanted(name, *role)).map(|(.., role)| *role)
    };
    let role = running
        .or_else(|| role_where(&|name, _| units::enabled(probe, name)))
        .or_else(|| role_where(&|_, role| role == Role::Server))
        .or_else(|| role_where(&|_, _| true));
    if let Some(role) = role {
        candidates.retain(|(.., other)| *other == role);
    }
    Supervisor { name: "k3s", distribution: Distribution::K3s, candidates, running, role }
        .describe(probe, hint)
}

pub(super) fn rke2(probe: &Probe, hint: &Hint) -> Option<Found> {
    // The tarball brings both units, so that a file alone does not tell the role.
    let candidates: Vec<(String, UnitFile, Role)> =
        [("rke2-server.service", Role::Server), ("rke2-agent.service", Role::Agent)]
            .into_iter()
            .filter(|(name, _)| units::find(probe, name).is_some())
            .map(|(name, role)| {
                let unit = units::load(probe, name, &known_variable).unwrap_or_default();
                (name.to_owned(), unit, role)
            })
            .collect();
    let running = running_role(probe, "rke2");
    let enabled = candidates.iter().find(|(name, ..)| units::enabled(probe, name));
    let role = running
        .or(enabled.map(|(.., role)| *role))
        .or_else(|| probe.exists("/var/lib/rancher/rke2/server").then_some(Role::Server))
        .or_else(|| probe.exists("/var/lib/rancher/rke2/agent").then_some(Role::Agent))
        .or_else(|| Some(candidates.first()?.2).filter(|_| candidates.len() == 1));
    let candidates =
        candidates.into_iter().filter(|(.., other)| role.is_none_or(|role| role == *other));
    Supervisor {
        name: "rke2",
        distribution: Distribution::Rke2,
        candidates: candidates.collect(),
        running,
        role,
    }
    .describe(probe, hint)
}

/// What was seen of a k3s or an RKE2.
struct Supervisor {
    name: &'static str,
    distribution: Distribution,
    /// Units of the role: name, file, role.
    candidates: Vec<(String, UnitFile, Role)>,
    running: Option<Role>,
    role: Option<Role>,
}

impl Supervisor {
    fn describe(self, probe: &Probe, hint: &Hint) -> Option<Found> {
        let unit = self.candidates.first().map(|(_, unit, _)| unit);
        let no_unit = UnitFile::default();
        let config =
            RancherConfig::read(probe, self.name, unit.unwrap_or(&no_unit), DETECTION.to_vec());
        let data = hint
            .data_dir
            .clone()
            .or_else(|| config.path("data-dir"))
            .unwrap_or_else(|| format!("/var/lib/rancher/{}", self.name).into());

        let mut found = Installation::new(self.distribution);
        let unit_files = self.candidates.iter().filter_map(|(name, ..)| units::find(probe, name));
        found.evidence.extend(unit_files);
        let folders = [data.join("server"), data.join("agent")];
        found.evidence.extend(folders.iter().filter(|path| probe.exists(path)).cloned());
        if found.evidence.is_empty() && self.running.is_none() && !hint.forced {
            return None;
        }
        found.running = self.running.is_some();
        found.role =
            self.role.unwrap_or_else(|| match folders.each_ref().map(|f| probe.exists(f)) {
                [true, _] => Role::Server,
                [false, true] => Role::Agent,
                [false, false] => Role::Unknown,
            });
        found.units = self
            .candidates
            .iter()
            .map(|(name, ..)| Unit { name: name.clone(), expected: true })
            .collect();
        found.container_dirs = vec![data.join("agent/containerd"), "/var/lib/kubelet".into()];
        found.version = match self.distribution {
            Distribution::Rke2 => rke2_version(probe, &data),
            _ => k3s_version(probe, unit),
        };
        if found.role != Role::Agent {
            // k3s serves its supervisor and the API on one port; RKE2 has another one for its supervisor.
            let port = config.get("https-listen-port").filter(|_| self.name == "k3s");
            let host = config.loopback();
            // A member without an API server refuses requests on that port.
            found.api_url = (!config.is_true("disable-apiserver"))
                .then(|| format!("https://{host}:{}", port.unwrap_or("6443")));
            self.describe_datastore(probe, &config, &data, &mut found);
        }
        found.data_dir = Some(data);
        Some(Found::new(probe, found))
    }

    fn describe_datastore(
        &self,
        probe: &Probe,
        config: &RancherConfig,
        data: &Path,
        found: &mut Installation,
    ) {
        let db = data.join("server/db");
        found.datastore = self.datastore_kind(probe, config, data);
        let supervisor = if self.distribution == Distribution::K3s { "k3s-server" } else { "rke2" };
        match found.datastore {
            Datastore::Etcd => {
                let member =
                    if self.distribution == Distribution::K3s { supervisor } else { "etcd" };
                found.processes = vec![member.to_owned()];
                let settings = EtcdSettings::from_file(probe, &db.join("etcd/config"));
                let settings = settings.unwrap_or_default();
                let args = EtcdSettings::from_flags(&config.etcd_args());
                found.wal_dir = settings.wal_dir.clone().or(args.wal_dir);
                found.etcd = Some(member_access(probe, config, data, &settings));
                found.datastore_dir = Some(db.join("etcd"));
                if !config.is_true("etcd-disable-snapshots") {
                    let told = config.path("etcd-snapshot-dir").filter(|dir| dir.is_absolute());
                    found.etcd_snapshots = Some(told.unwrap_or_else(|| db.join("snapshots")));
                }
            }
            Datastore::Sqlite => {
                found.processes = vec![supervisor.to_owned()];
                found.datastore_dir = Some(db);
            }
            Datastore::ExternalEtcd => {
                found.external_etcd = Some(EtcdAccess {
                    endpoints: config.etcd_endpoints(),
                    ca_file: config.path("datastore-cafile"),
                    cert_file: config.path("datastore-certfile"),
                    key_file: config.path("datastore-keyfile"),
                    quota: None,
                });
            }
            Datastore::ExternalSql | Datastore::Dqlite | Datastore::Unknown => {}
        }
        if matches!(found.datastore, Datastore::Sqlite | Datastore::ExternalSql) {
            found.kine_socket = Some(data.join("server/kine.sock"));
            found.kine_tls = self.distribution == Distribution::Rke2 || config.is_true("kine-tls");
        }
    }

    fn datastore_kind(&self, probe: &Probe, config: &RancherConfig, data: &Path) -> Datastore {
        match config.datastore_scheme() {
            Some("http" | "https") => return Datastore::ExternalEtcd,
            Some("sqlite") => return Datastore::Sqlite,
            Some(_) => return Datastore::ExternalSql,
            None => {}
        }
        if config.is_true("disable-etcd") {
            // A control plane without a member joins the etcd of others; alone it means kine.
            let joins = config.get("server").is_some();
            return if joins { Datastore::ExternalEtcd } else { Datastore::Sqlite };
        }
        if self.distribution == Distribution::Rke2 {
            return rke2_kind(probe, data);
        }
        // k3s takes the WAL for the sign of an etcd that it has already started.
        match probe.presence(data.join("server/db/etcd/member/wal")) {
            Some(true) => Datastore::Etcd,
            _ if config.get("server").is_some() || config.is_true("cluster-init") => {
                Datastore::Etcd
            }
            Some(false) => Datastore::Sqlite,
            None => Datastore::Unknown,
        }
    }
}

/// Etcd, unless the API server's manifest says that it talks to kine.
fn rke2_kind(probe: &Probe, data: &Path) -> Datastore {
    let manifests = data.join("agent/pod-manifests");
    if probe.exists(manifests.join("etcd.yaml")) {
        return Datastore::Etcd;
    }
    let apiserver = StaticPod::read(probe, &manifests.join("kube-apiserver.yaml"));
    match apiserver.as_ref().and_then(|pod| pod.flags.get("etcd-servers")) {
        Some(servers) if servers.contains("kine.sock") => Datastore::Sqlite,
        _ => Datastore::Etcd,
    }
}

/// How to reach the member, with the client certificate that the supervisor uses itself.
fn member_access(
    probe: &Probe,
    config: &RancherConfig,
    data: &Path,
    settings: &EtcdSettings,
) -> EtcdAccess {
    let tls = data.join("server/tls/etcd");
    let mut endpoints = local_endpoints(&settings.listen_client_urls);
    if endpoints.is_empty() {
        endpoints = split_urls(&format!("https://{}:2379", config.loopback()));
    }
    let configured = config.etcd_args().get("quota-backend-bytes").and_then(quota_bytes);
    let mut quota =
        settings.quota.or(configured).map(|bytes| Quota { bytes, source: QuotaSource::Config });
    if quota.is_none() {
        // RKE2 gives what is set by other means as arguments of the pod.
        let pod = StaticPod::read(probe, &data.join("agent/pod-manifests/etcd.yaml"));
        let bytes = pod.and_then(|pod| pod.flags.get("quota-backend-bytes").and_then(quota_bytes));
        quota = bytes.map(|bytes| Quota { bytes, source: QuotaSource::Manifest });
    }
    EtcdAccess {
        endpoints,
        ca_file: Some(tls.join("server-ca.crt")),
        cert_file: Some(tls.join("client.crt")),
        key_file: Some(tls.join("client.key")),
        quota,
    }
}

/// What was linked into the program: the one of the unit's command, else where the installer puts it.
fn k3s_version(probe: &Probe, unit: Option<&UnitFile>) -> Option<String> {
    let named = unit.and_then(|unit| unit.exec.first()).map(Path::new);
    let named = named.filter(|path| path.is_absolute() && path.ends_with("k3s"));
    let usual = ["/usr/local/bin/k3s", "/opt/bin/k3s"].map(Path::new);
    named.into_iter().chain(usual).find_map(|path| {
        go_build::linked(probe.host, path, &["github.com/k3s-io/k3s/pkg/version.Version"]).ok()?
    })
}

/// `<data>/bin` leads to `data/v1.36.4-rke2r1-0123456789ab/bin`.
fn rke2_version(probe: &Probe, data: &Path) -> Option<String> {
    let from_link = || {
        let target: PathBuf = probe.link(&data.join("bin"))?;
        let folder = target.parent()?.file_name()?.to_str()?.to_owned();
        let (tag, _) = folder.rsplit_once('-')?;
        tag.contains("rke2").then(|| tag.replacen("-rke2", "+rke2", 1))
    };
    let from_image = || {
        let pod = StaticPod::read(probe, &data.join("agent/pod-manifests/kube-apiserver.yaml"))?;
        let tag = pod.image_tag()?.to_owned();
        let tag = tag.split_once("-build").map_or(tag.as_str(), |(tag, _)| tag);
        Some(tag.replacen("-rke2", "+rke2", 1))
    };
    from_link().or_else(from_image)
}

/// The subcommand of a command line of k3s or RKE2, which may stand behind a shell or `env`.
fn role_of_command(words: &[String], name: &str) -> Role {
    let mut words = words.iter().flat_map(|word| word.split_whitespace());
    let program = |word: &str| word.rsplit('/').next().is_some_and(|last| last.starts_with(name));
    match words.find(|word| program(word)).and_then(|_| words.next()) {
        Some("server") => Role::Server,
        Some("agent") => Role::Agent,
        _ => Role::Unknown,
    }
}

/// The role of the process that runs, if one does.
fn running_role(probe: &Probe, name: &str) -> Option<Role> {
    let role = |process: &Process| {
        if process.comm == format!("{name}-server") {
            Role::Server
        } else if process.comm == format!("{name}-agent") {
            Role::Agent
        } else if process.comm == name {
            role_of_command(&process.words, name)
        } else {
            Role::Unknown
        }
    };
    let processes = probe.processes.iter().filter(|process| !process.contained());
    processes.map(role).find(|role| *role != Role::Unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_subcommand_tells_the_role() {
        let role =
            |command: &str| role_of_command(&crate::host::flags::split_words(command), "k3s");
        assert_eq!(role("/usr/local/bin/k3s server --cluster-init"), Role::Server);
        assert_eq!(role("/opt/bin/k3s agent"), Role::Agent);
        assert_eq!(role("/bin/sh -c 'exec /usr/local/bin/k3s server'"), Role::Server);
        assert_eq!(role("/usr/local/bin/k3s etcd-snapshot save"), Role::Unknown);
        assert_eq!(role("/usr/local/bin/backup server"), Role::Unknown);
    }
}
