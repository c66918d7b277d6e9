//! Where each distribution keeps its certificates, and what renews them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::host::processes::Process;
use crate::host::{Datastore, Distribution, Installation};

/// Files and folders with certificates and kubeconfigs; not every node has each.
///
/// Left out is what keeps itself: `dynamic-cert.json` of k3s, which it renews while it runs, and kubelet's own
/// `kubelet.crt`, which nobody verifies.
pub(super) fn of(node: &Installation) -> Vec<PathBuf> {
    let mut places: Vec<PathBuf> = match node.distribution {
        Distribution::K3s => rancher(node, "k3s"),
        Distribution::Rke2 => rancher(node, "rke2"),
        Distribution::K0s => {
            let configs = ["admin", "scheduler", "ccm", "konnectivity"];
            let configs = configs.map(|name| format!("pki/{name}.conf"));
            let names = ["pki", "pki/etcd", KUBELET_OF_K0S];
            let names: Vec<_> =
                names.into_iter().chain(configs.iter().map(String::as_str)).collect();
            below(node, "/var/lib/k0s", &names)
        }
        Distribution::Kubeadm => kubernetes(),
        Distribution::Talos => [
            "/system/secrets/etcd",
            "/system/secrets/kubernetes/kube-apiserver",
            "/var/lib/kubelet/pki/kubelet-client-current.pem",
        ]
        .map(PathBuf::from)
        .into(),
        Distribution::Microk8s => {
            below(node, "/var/snap/microk8s/current", &["certs", "credentials"])
        }
        Distribution::CanonicalK8s => {
            let state = "var/lib/k8sd/state";
            let k8sd = [format!("{state}/cluster.crt"), format!("{state}/server.crt")];
            let k8sd = k8sd.each_ref().map(String::as_str);
            let configs = ["/etc/kubernetes/controller.conf", "/etc/kubernetes/proxy.conf"];
            let configs = configs.map(PathBuf::from).into();
            [kubernetes(), configs, below(node, "/var/snap/k8s/common", &k8sd)].concat()
        }
        Distribution::Etcd => Vec::new(),
    };
    if node.datastore == Datastore::Dqlite {
        places.extend(node.datastore_dir.as_ref().map(|dir| dir.join("cluster.crt")));
    }
    // The API server's and the member's own may lie elsewhere.
    for access in node.etcd.iter().chain(&node.external_etcd) {
        places.extend([&access.ca_file, &access.cert_file].into_iter().flatten().cloned());
    }
    places
}

const KUBELET_OF_K0S: &str = "kubelet/pki/kubelet-client-current.pem";
/// Folders of k3s and RKE2 whose certificates kube-controller-manager and kube-scheduler sign themselves in releases before
/// May 2025, where there are none. They keep one that has ended, and no start of the service renews it.
const SELF_SIGNED: [&str; 2] = ["server/tls/kube-controller-manager", "server/tls/kube-scheduler"];

fn below(node: &Installation, usual: &str, names: &[&str]) -> Vec<PathBuf> {
    let data = node.data_dir.clone().unwrap_or_else(|| usual.into());
    names.iter().map(|name| data.join(name)).collect()
}

fn rancher(node: &Installation, name: &str) -> Vec<PathBuf> {
    const FOLDERS: [&str; 6] = [
        "server/tls",
        "server/tls/etcd",
        "server/tls/kube-controller-manager",
        "server/tls/kube-scheduler",
        "server/cred",
        "agent",
    ];
    let mut places = below(node, &format!("/var/lib/rancher/{name}"), &FOLDERS);
    places.push(format!("/etc/rancher/{name}/{name}.yaml").into());
    places
}

/// Whether a file of a folder is one of k3s' and RKE2's that releases of before have left behind: nothing uses them and nothing
/// renews them. `beside` are the names in the same folder.
pub(super) fn is_left_behind(node: &Installation, path: &Path, beside: &[String]) -> bool {
    let name = match node.distribution {
        Distribution::K3s => "k3s",
        Distribution::Rke2 => "rke2",
        _ => return false,
    };
    if !path.parent().is_some_and(|folder| folder.ends_with("server/tls")) {
        return false;
    }
    match path.file_name().and_then(|file| file.to_str()).unwrap_or_default() {
        // Each agent has its own of these two by now.
        "client-kube-proxy.crt" => true,
        file if file == format!("client-{name}-controller.crt") => true,
        // Another spelling took its place.
        "client-cloud-controller.crt" => {
            beside.contains(&format!("client-{name}-cloud-controller.crt"))
        }
        _ => false,
    }
}

fn kubernetes() -> Vec<PathBuf> {
    [
        "/etc/kubernetes/admin.conf",
        "/etc/kubernetes/super-admin.conf",
        "/etc/kubernetes/controller-manager.conf",
        "/etc/kubernetes/scheduler.conf",
        "/etc/kubernetes/kubelet.conf",
        "/etc/kubernetes/pki",
        "/etc/kubernetes/pki/etcd",
        "/var/lib/kubelet/pki/kubelet-client-current.pem",
        "/var/lib/kubelet/pki/kubelet-server-current.pem",
    ]
    .map(PathBuf::from)
    .into()
}

/// What brings a new certificate into use.
pub(super) enum Renewal {
    /// The distribution's own process issues all of them when it starts: its names, and where they lie.
    AtStart { names: &'static [&'static str], places: Vec<PathBuf> },
    /// Somebody issues them, and then restarts what uses them.
    ByHand,
    /// Nothing that could be seen from here.
    None,
}

impl Renewal {
    pub(super) fn of(node: &Installation) -> Self {
        // Beside the data directory there is one kubeconfig; what else lies there is the user's own.
        let (names, kubeconfig): (&[&str], _) = match node.distribution {
            Distribution::K3s => {
                (&["k3s-server", "k3s-agent", "k3s"], Some("/etc/rancher/k3s/k3s.yaml"))
            }
            Distribution::Rke2 => {
                (&["rke2-server", "rke2-agent", "rke2"], Some("/etc/rancher/rke2/rke2.yaml"))
            }
            Distribution::K0s => (&["k0s"], None),
            Distribution::Kubeadm => return Self::ByHand,
            _ => return Self::None,
        };
        let places = node.data_dir.iter().cloned().chain(kubeconfig.map(PathBuf::from));
        Self::AtStart { names, places: places.collect() }
    }

    /// The names of all processes that use certificates, as the kernel cuts them.
    pub(super) fn processes(&self) -> BTreeSet<&'static str> {
        match self {
            Self::AtStart { names, .. } => names.iter().copied().collect(),
            Self::ByHand => USERS.iter().map(|(_, process)| *process).collect(),
            Self::None => BTreeSet::new(),
        }
    }

    /// Whether a process of such a name is this node's own.
    pub(super) fn is_user(&self, process: &Process) -> bool {
        match self {
            Self::AtStart { .. } => !process.contained(),
            Self::ByHand => process.mentions("/etc/kubernetes/"),
            Self::None => false,
        }
    }

    /// The processes of which one uses the certificate at `path`.
    pub(super) fn users(&self, path: &Path, role: &str) -> Vec<&'static str> {
        match self {
            // kubelet, which k0s only starts, rotates its own; no start makes a new CA; and what a program has signed
            // itself only newer releases renew.
            Self::AtStart { names, places } => {
                let own = places.iter().any(|place| path.starts_with(place));
                let folder = path.parent().unwrap_or(path);
                let self_signed = SELF_SIGNED.iter().any(|name| folder.ends_with(name));
                let kept = role == "ca" || path.ends_with(KUBELET_OF_K0S) || self_signed;
                if own && !kept { names.to_vec() } else { Vec::new() }
            }
            Self::ByHand => {
                let user = USERS.iter().find(|(file, _)| Path::new(file) == path);
                user.map(|(_, process)| *process).into_iter().collect()
            }
            Self::None => Vec::new(),
        }
    }
}

/// kubeadm's certificates that a process reads, not all of them again while it runs: kubeadm's own advice is to restart
/// all four. Names as the kernel cuts them.
const USERS: [(&str, &str); 8] = [
    ("/etc/kubernetes/controller-manager.conf", "kube-controller"),
    ("/etc/kubernetes/scheduler.conf", "kube-scheduler"),
    ("/etc/kubernetes/pki/apiserver.crt", "kube-apiserver"),
    ("/etc/kubernetes/pki/apiserver-etcd-client.crt", "kube-apiserver"),
    ("/etc/kubernetes/pki/apiserver-kubelet-client.crt", "kube-apiserver"),
    ("/etc/kubernetes/pki/front-proxy-client.crt", "kube-apiserver"),
    ("/etc/kubernetes/pki/etcd/server.crt", "etcd"),
    ("/etc/kubernetes/pki/etcd/peer.crt", "etcd"),
];
