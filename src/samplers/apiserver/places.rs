//! With which files the API server of each distribution is reached from its own node.

use std::path::{Path, PathBuf};

use crate::host::{Distribution, Installation};

/// The CA that signed its certificate, and a client pair that it knows.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Files {
    pub(super) ca: Option<PathBuf>,
    pub(super) pair: Option<(PathBuf, PathBuf)>,
}

impl Files {
    /// The files of this installation.
    pub(super) fn of(node: &Installation) -> Self {
        let data = |usual: &str| node.data_dir.clone().unwrap_or_else(|| usual.into());
        match node.distribution {
            // What RKE2 itself probes with.
            Distribution::K3s | Distribution::Rke2 => {
                let usual = format!("/var/lib/rancher/{}", node.distribution);
                Self::below(
                    &data(&usual).join("server/tls"),
                    "server-ca.crt",
                    "client-kube-apiserver",
                )
            }
            Distribution::Kubeadm | Distribution::CanonicalK8s => {
                Self::below(Path::new("/etc/kubernetes/pki"), "ca.crt", "apiserver-kubelet-client")
            }
            Distribution::K0s => Self::below(&data("/var/lib/k0s").join("pki"), "ca.crt", "admin"),
            Distribution::Microk8s => {
                Self::below(&data("/var/snap/microk8s/current").join("certs"), "ca.crt", "client")
            }
            Distribution::Talos => Self::below(
                Path::new("/system/secrets/kubernetes/kube-apiserver"),
                "ca.crt",
                "apiserver-kubelet-client",
            ),
            Distribution::Etcd => Self::default(),
        }
    }

    fn below(folder: &Path, ca: &str, pair: &str) -> Self {
        let file = |ending: &str| folder.join(format!("{pair}.{ending}"));
        Self { ca: Some(folder.join(ca)), pair: Some((file("crt"), file("key"))) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_distribution_has_its_own_place() {
        let files = |distribution, data: Option<&str>| {
            let mut node = Installation::new(distribution);
            node.data_dir = data.map(PathBuf::from);
            let files = Files::of(&node);
            let (cert, key) = files.pair.unwrap();
            assert_eq!(cert.with_extension("key"), key);
            (files.ca.unwrap().display().to_string(), cert.display().to_string())
        };
        assert_eq!(
            files(Distribution::Rke2, None),
            (
                "/var/lib/rancher/rke2/server/tls/server-ca.crt".into(),
                "/var/lib/rancher/rke2/server/tls/client-kube-apiserver.crt".into()
            )
        );
        let (ca, _) = files(Distribution::K3s, Some("/srv/k3s"));
        assert_eq!(ca, "/srv/k3s/server/tls/server-ca.crt");
        let (_, cert) = files(Distribution::Kubeadm, Some("/etc/kubernetes"));
        assert_eq!(cert, "/etc/kubernetes/pki/apiserver-kubelet-client.crt");
        let (ca, cert) = files(Distribution::Microk8s, None);
        assert_eq!(ca, "/var/snap/microk8s/current/certs/ca.crt");
        assert_eq!(cert, "/var/snap/microk8s/current/certs/client.crt");
        assert_eq!(Files::of(&Installation::new(Distribution::Etcd)), Files::default());
    }
}
