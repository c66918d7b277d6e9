//! kubeadm, and whatever else runs its control plane from `/etc/kubernetes/manifests`.
//!
//! Reads the manifests of etcd and the API server. Where they may not be read (0600 root), the
//! command lines of the running processes say the same. Where they were moved away, which is how
//! static pods are stopped, what else kubeadm has made tells that the node has a control plane.

use std::path::{Path, PathBuf};

use super::etcd_process::is_on_host;
use super::etcd_settings::{EtcdSettings, is_loopback, split_urls};
use super::flags::Flags;
use super::found::{Found, Hint};
use super::manifest::StaticPod;
use super::processes::Process;
use super::read::Probe;
use super::units;
use super::{Datastore, Distribution, EtcdAccess, Installation, QuotaSource, Role, Unit};

/// Where kubelet looks for static pods.
pub(super) const MANIFESTS: &str = "/etc/kubernetes/manifests";
const FLAGS_ENV: &str = "/var/lib/kubelet/kubeadm-flags.env";
/// Workers do not have these two.
const CONTROLLER_MANAGER: &str = "/etc/kubernetes/controller-manager.conf";
const API_CERTIFICATE: &str = "/etc/kubernetes/pki/apiserver.crt";
/// Made for a member on the node itself, and not for an etcd elsewhere.
const MEMBER_CERTIFICATE: &str = "/etc/kubernetes/pki/etcd/server.crt";
const MEMBER_DIR: &str = "/var/lib/etcd";

pub(super) fn kubeadm(probe: &Probe, hint: &Hint) -> Option<Found> {
    let manifests = Path::new(MANIFESTS);
    let paths = [manifests.join("kube-apiserver.yaml"), manifests.join("etcd.yaml")];
    let mut found = Installation::new(Distribution::Kubeadm);
    found.evidence.extend(paths.iter().filter(|path| probe.exists(path)).cloned());
    // Where another distribution runs, an earlier kubeadm has left them behind.
    let is_alone = !probe.processes.iter().any(|process| {
        ["k3s", "rke2", "k0s", "kubelite"].iter().any(|other| process.comm.starts_with(other))
    });
    let made_server = is_alone && probe.exists(CONTROLLER_MANAGER) && probe.exists(API_CERTIFICATE);
    if made_server && !found.evidence.contains(&paths[0]) {
        found.evidence.push(CONTROLLER_MANAGER.into());
    }
    let control_plane = !found.evidence.is_empty();
    found.evidence.extend(Some(PathBuf::from(FLAGS_ENV)).filter(|path| probe.exists(path)));
    if found.evidence.is_empty() && !hint.forced {
        return None;
    }

    let apiserver = Component::find(probe, &paths[0], "kube-apiserver");
    let etcd = Component::find(probe, &paths[1], "etcd");
    let kubelet = probe.processes.named("kubelet").find(|p| !p.contained() && !is_foreign(p));
    found.running = kubelet.is_some()
        || probe.processes.named("kube-apiserver").any(|process| !is_foreign(process));
    found.role = if control_plane || apiserver.is_some() || etcd.is_some() {
        Role::Server
    } else if found.evidence.is_empty() {
        Role::Unknown
    } else {
        Role::Agent
    };
    found.version = apiserver.as_ref().and_then(Component::image_tag);
    found.api_url = match &apiserver {
        Some(api) => Some(api.flags().api_url(6443)),
        // The port is kubeadm's default: the address in a kubeconfig may be a load balancer's.
        None => made_server.then(|| Flags::default().api_url(6443)),
    };
    found.data_dir = Some("/etc/kubernetes".into());
    let etcd = etcd.map(|etcd| (etcd.settings(), etcd.source));
    let is_moved = etcd.is_none() && has_moved_member(probe, apiserver.as_ref(), made_server);
    let etcd = etcd.or_else(|| is_moved.then(|| (usual_member(probe), QuotaSource::Manifest)));
    describe_datastore(probe, &mut found, apiserver.as_ref(), etcd);
    describe_runtime(probe, &mut found);
    let found = Found::new(probe, found);
    // What an installation of before has left behind misses nothing.
    if found.installation.running || found.wanted {
        if made_server {
            note_missing(probe, &paths[0], CONTROLLER_MANAGER);
        }
        if is_moved {
            note_missing(probe, &paths[1], MEMBER_CERTIFICATE);
        }
    }
    Some(found)
}

fn note_missing(probe: &Probe, manifest: &Path, made: &str) {
    if probe.presence(manifest) == Some(false) {
        probe.note(format!(
            "{} is missing, so that kubelet does not run its pod, although this node has {made}; move the manifest back \
             to start it",
            manifest.display()
        ));
    }
}

/// Whether kubeadm has made a member on this node though its manifest is not there: it was moved away.
fn has_moved_member(probe: &Probe, apiserver: Option<&Component>, made_server: bool) -> bool {
    // The API server may use what runs beside it.
    if !probe.exists(MEMBER_CERTIFICATE) || is_on_host(probe) {
        return false;
    }
    let Some(apiserver) = apiserver else { return made_server };
    let servers = split_urls(apiserver.flags().get("etcd-servers").unwrap_or_default());
    let member = Path::new(MEMBER_DIR).join("member");
    servers.iter().any(|url| is_loopback(url)) && probe.presence(member) != Some(false)
}

/// A member as kubeadm sets it up.
fn usual_member(probe: &Probe) -> EtcdSettings {
    let pki = Path::new("/etc/kubernetes/pki/etcd");
    let data_dir = Path::new(MEMBER_DIR);
    EtcdSettings {
        listen_client_urls: vec!["https://127.0.0.1:2379".to_owned()],
        // The manifest may have named another one.
        data_dir: (probe.presence(data_dir) != Some(false)).then(|| data_dir.to_owned()),
        trusted_ca_file: Some(pki.join("ca.crt")),
        cert_file: Some(pki.join("server.crt")),
        key_file: Some(pki.join("server.key")),
        ..EtcdSettings::default()
    }
}

fn describe_datastore(
    probe: &Probe,
    found: &mut Installation,
    apiserver: Option<&Component>,
    etcd: Option<(EtcdSettings, QuotaSource)>,
) {
    if let Some((settings, source)) = etcd {
        let mut access = settings.access(source);
        client_pair(probe, &settings, apiserver, &mut access);
        found.datastore = Datastore::Etcd;
        found.datastore_dir = settings.data_dir;
        found.wal_dir = settings.wal_dir;
        found.etcd = Some(access);
        found.processes = vec!["etcd".to_owned()];
    } else if let Some(apiserver) = apiserver {
        let servers = apiserver.flags().get("etcd-servers").unwrap_or_default();
        if let Some(socket) = servers.strip_prefix("unix://") {
            found.kine_socket = Some(socket.into());
        } else if !servers.is_empty() {
            found.datastore = Datastore::ExternalEtcd;
            found.external_etcd = Some(EtcdAccess {
                endpoints: split_urls(servers),
                ca_file: apiserver.path("etcd-cafile"),
                cert_file: apiserver.path("etcd-certfile"),
                key_file: apiserver.path("etcd-keyfile"),
                quota: None,
            });
        }
    }
}

/// The client certificate for etcd: the one made for health checks, else the API server's, else
/// the member's own.
fn client_pair(
    probe: &Probe,
    settings: &EtcdSettings,
    apiserver: Option<&Component>,
    access: &mut EtcdAccess,
) {
    let Some(ca) = &access.ca_file else { return };
    let folder = settings.cert_file.as_deref().unwrap_or(ca).parent().unwrap_or(Path::new("/"));
    let cert = folder.join("healthcheck-client.crt");
    if probe.exists(&cert) {
        access.key_file = Some(folder.join("healthcheck-client.key"));
        access.cert_file = Some(cert);
        return;
    }
    let pair = apiserver.map(|api| (api.path("etcd-certfile"), api.path("etcd-keyfile")));
    if let Some((Some(cert), Some(key))) = pair {
        (access.cert_file, access.key_file) = (Some(cert), Some(key));
    }
}

/// The kubelet's unit, and that of the container runtime it was told to use.
fn describe_runtime(probe: &Probe, found: &mut Installation) {
    let mut told = probe.text(FLAGS_ENV).unwrap_or_default();
    if !told.contains("container-runtime-endpoint") {
        let config = probe.text("/var/lib/kubelet/config.yaml").unwrap_or_default();
        told.push_str(
            config.lines().find(|l| l.contains("containerRuntimeEndpoint")).unwrap_or(""),
        );
    }
    let (runtime, images) = if told.contains("crio.sock") {
        (&["crio.service"][..], "/var/lib/containers")
    } else if told.contains("cri-dockerd") {
        (&["cri-docker.service", "docker.service"][..], "/var/lib/docker")
    } else {
        (&["containerd.service"][..], "/var/lib/containerd")
    };
    let named = std::iter::once("kubelet.service").chain(runtime.iter().copied());
    found.units = named
        .filter(|name| units::find(probe, name).is_some())
        .map(|name| Unit { name: name.to_owned(), expected: true })
        .collect();
    found.container_dirs = vec![images.into(), "/var/lib/kubelet".into()];
}

/// Whether a process belongs to a distribution that brings its own binaries.
fn is_foreign(process: &Process) -> bool {
    ["/snap/", "/rancher/", "/k0s/"].iter().any(|mark| process.mentions(mark))
}

/// The arguments of a static pod, from its manifest or its process.
struct Component {
    pod: Option<StaticPod>,
    process: Flags,
    source: QuotaSource,
}

impl Component {
    fn find(probe: &Probe, manifest: &Path, comm: &str) -> Option<Self> {
        if let Some(pod) = StaticPod::read(probe, manifest) {
            let process = Flags::default();
            return Some(Self { pod: Some(pod), process, source: QuotaSource::Manifest });
        }
        // Only where the manifest may be there: a user's etcd in a pod is no control plane.
        if probe.presence(manifest) == Some(false) {
            return None;
        }
        let process = probe
            .processes
            .named(comm)
            .find(|process| process.mentions("/etc/kubernetes/") && !is_foreign(process))?;
        let process = Flags::parse(&process.words);
        Some(Self { pod: None, process, source: QuotaSource::Process })
    }

    fn flags(&self) -> &Flags {
        self.pod.as_ref().map_or(&self.process, |pod| &pod.flags)
    }

    fn path(&self, flag: &str) -> Option<PathBuf> {
        match &self.pod {
            Some(pod) => pod.path_flag(flag),
            None => self.process.get(flag).map(PathBuf::from),
        }
    }

    fn image_tag(&self) -> Option<String> {
        self.pod.as_ref()?.image_tag().map(str::to_owned)
    }

    /// etcd's settings, its paths as the host has them.
    fn settings(&self) -> EtcdSettings {
        EtcdSettings {
            data_dir: self.path("data-dir").or_else(|| Some(MEMBER_DIR.into())),
            wal_dir: self.path("wal-dir"),
            trusted_ca_file: self.path("trusted-ca-file"),
            cert_file: self.path("cert-file"),
            key_file: self.path("key-file"),
            ..EtcdSettings::from_flags(self.flags())
        }
    }
}
