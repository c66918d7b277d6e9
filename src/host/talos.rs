//! Talos Linux: no systemd, no shell, no snaps; the agent sees it from a pod with host mounts.
//!
//! Reads `/etc/os-release` and whether the control plane's manifests exist.

use std::path::Path;

use super::found::{Found, Hint};
use super::manifest::StaticPod;
use super::read::Probe;
use super::{Datastore, Distribution, EtcdAccess, Installation, Role, os_release};

const APISERVER: &str = "/etc/kubernetes/manifests/talos-kube-apiserver.yaml";

pub(super) fn talos(probe: &Probe, hint: &Hint) -> Option<Found> {
    let release = probe.text(os_release::PATH).unwrap_or_default();
    if os_release::value(&release, "ID") != Some("talos") && !hint.forced {
        return None;
    }
    let mut found = Installation::new(Distribution::Talos);
    found.evidence.push(os_release::PATH.into());
    found.version = os_release::value(&release, "VERSION_ID").map(str::to_owned);
    // The system that was booted is the one that runs.
    found.running = true;
    found.container_dirs = vec!["/var/lib/containerd".into(), "/var/lib/kubelet".into()];
    if probe.exists(APISERVER) || probe.exists("/var/lib/etcd") {
        found.evidence.extend(probe.exists(APISERVER).then(|| APISERVER.into()));
        found.role = Role::Server;
        let api = StaticPod::read(probe, Path::new(APISERVER)).unwrap_or_default();
        found.api_url = Some(api.flags.api_url(6443));
        found.datastore = Datastore::Etcd;
        found.datastore_dir = Some("/var/lib/etcd".into());
        found.processes = vec!["etcd".to_owned()];
        let secret = |name: &str| Some(format!("/system/secrets/etcd/{name}").into());
        found.etcd = Some(EtcdAccess {
            endpoints: vec!["https://127.0.0.1:2379".to_owned()],
            ca_file: secret("ca.crt"),
            cert_file: secret("admin.crt"),
            key_file: secret("admin.key"),
            quota: None,
        });
    } else {
        found.role = Role::Agent;
    }
    probe.note(
        "Talos has neither systemd nor snaps: there are no units to watch, and the agent runs \
         only as a privileged pod on the host network with / mounted and --path.rootfs set"
            .to_owned(),
    );
    Some(Found::new(probe, found))
}
