//! Which versions are installed, read from files: nothing is executed and nobody is asked.

use std::path::{Path, PathBuf};

use crate::host::components::Component;
use crate::host::{Distribution, Host, Installation, go_build, os_release, read};
use crate::sample::{Batch, SampleError};

use super::{VERSION, small};

/// Parts of the snaps' bills of materials that are told.
const PARTS: [&str; 5] = ["containerd", "dqlite", "etcd", "k8s-dqlite", "runc"];
/// Where containerd has its version, in releases from 2.0 on and before.
const CONTAINERD: [&str; 2] = [
    "github.com/containerd/containerd/v2/version.Version",
    "github.com/containerd/containerd/version.Version",
];

pub(super) fn tell(host: &Host, components: &[Component], out: &mut Batch) {
    let mut told = Vec::new();
    if let Some(node) = host.facts().primary() {
        of_node(host, node, components, &mut told, out);
    }
    told.extend(small(host, "/proc/sys/kernel/osrelease").map(|version| ("kernel", version)));
    match read::small_text(host, Path::new(os_release::PATH)) {
        Ok(text) => told.extend(os(&text).map(|version| ("os", version))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => out.fail(SampleError::read(os_release::PATH, error)),
    }
    for (component, version) in &told {
        out.info(&VERSION, [component, version]);
    }
}

fn of_node<'a>(
    host: &Host,
    node: &'a Installation,
    components: &'a [Component],
    told: &mut Vec<(&'a str, String)>,
    out: &mut Batch,
) {
    if let Some(version) = &node.version {
        // v1.33.1+k3s1 is Kubernetes v1.33.1.
        let kubernetes = version.split('+').next().unwrap_or(version);
        if node.distribution != Distribution::Etcd {
            told.push(("kubernetes", kubernetes.to_owned()));
        }
        if kubernetes != version {
            told.push((node.distribution.as_str(), version.clone()));
        }
    }
    let images = components.iter().filter_map(|one| Some((one.name, one.version.clone()?)));
    told.extend(images);
    let parts = PARTS.iter().filter(|part| told.iter().all(|(name, _)| name != *part));
    let parts = parts.filter_map(|part| Some((*part, node.components.get(*part)?.clone())));
    told.extend(parts.collect::<Vec<_>>());
    if told.iter().all(|(name, _)| *name != "containerd") {
        told.extend(containerd(host, node, out).map(|version| ("containerd", version)));
    }
}

/// The first containerd that tells its version.
fn containerd(host: &Host, node: &Installation, out: &mut Batch) -> Option<String> {
    let data = node.data_dir.as_deref();
    let places: Vec<PathBuf> = match (node.distribution, data) {
        (Distribution::K3s, Some(data)) => vec![data.join("data/current/bin/containerd")],
        (Distribution::Rke2 | Distribution::K0s, Some(data)) => vec![data.join("bin/containerd")],
        (Distribution::Kubeadm, _) => {
            ["/usr/local/bin/containerd", "/usr/bin/containerd"].map(PathBuf::from).to_vec()
        }
        _ => Vec::new(),
    };
    places.iter().find_map(|path| match go_build::linked(host, path, &CONTAINERD) {
        Ok(version) => version,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => {
            out.fail(SampleError::read(path, error));
            None
        }
    })
}

/// `ID` and `VERSION_ID` of os-release: `debian 12`.
fn os(text: &str) -> Option<String> {
    let id = os_release::value(text, "ID")?;
    let version = os_release::value(text, "VERSION_ID");
    Some(version.map_or_else(|| id.to_owned(), |version| format!("{id} {version}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_is_told_by_id_and_version() {
        let debian =
            "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nVERSION_ID=\"12\"\nID=debian\n";
        assert_eq!(os(debian).as_deref(), Some("debian 12"));
        assert_eq!(os("ID=arch\nBUILD_ID=rolling\n").as_deref(), Some("arch"));
        assert_eq!(os("VERSION_ID=1\n"), None);
        assert_eq!(os(""), None);
    }
}
