//! What the configuration's `host` section says about this node.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Datastore, Distribution, Installation, Role};

/// The `host` section: each key replaces what detection found about the node's main installation.
/// Without an installation, one is made of these keys. All are optional; by default everything is
/// detected.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Overrides {
    /// The distribution that the node's figures are about: `talos`, `microk8s`, `canonical-k8s`,
    /// `rke2`, `k3s`, `k0s`, `kubeadm` or `etcd`. If several left traces, it is put first.
    pub distribution: Option<Distribution>,
    /// `server` or `agent`.
    pub role: Option<Role>,
    /// The version in `exporter_node_info`.
    pub version: Option<String>,
    /// The distribution's data directory, `/var/lib/rancher/k3s`. Datastore, certificates and
    /// sockets are then looked for below it.
    pub data_dir: Option<PathBuf>,
    /// `etcd`, `external-etcd`, `sqlite`, `external-sql` or `dqlite`.
    pub datastore: Option<Datastore>,
    /// The directory with the datastore's files: for etcd the one that holds `member/`.
    pub datastore_dir: Option<PathBuf>,
    /// etcd's `--wal-dir`.
    pub wal_dir: Option<PathBuf>,
    /// The Unix socket of kine or k8s-dqlite.
    pub kine_socket: Option<PathBuf>,
    /// Names (`comm`) of the processes that write the datastore.
    #[serde(deserialize_with = "crate::config::optional_list")]
    pub processes: Option<Vec<String>>,
    /// Directories of images and containers.
    #[serde(deserialize_with = "crate::config::optional_list")]
    pub container_dirs: Option<Vec<PathBuf>>,
    /// Kernel names of the block devices under the datastore, from the mounted one down to the
    /// whole disks: `[dm-0, sda]`.
    #[serde(deserialize_with = "crate::config::optional_list")]
    pub devices: Option<Vec<String>>,
}

impl Overrides {
    /// Whether every key is left to detection.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Replaces what is set.
    pub(super) fn apply(&self, found: &mut Installation) {
        fn replace<T: Clone>(target: &mut T, value: Option<&T>) {
            if let Some(value) = value {
                target.clone_from(value);
            }
        }
        replace(&mut found.role, self.role.as_ref());
        replace(&mut found.datastore, self.datastore.as_ref());
        replace(&mut found.processes, self.processes.as_ref());
        replace(&mut found.container_dirs, self.container_dirs.as_ref());
        for (target, value) in [
            (&mut found.data_dir, &self.data_dir),
            (&mut found.datastore_dir, &self.datastore_dir),
            (&mut found.wal_dir, &self.wal_dir),
            (&mut found.kine_socket, &self.kine_socket),
        ] {
            if value.is_some() {
                target.clone_from(value);
            }
        }
        if self.version.is_some() {
            found.version.clone_from(&self.version);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_key_is_an_error() {
        let error = serde_json::from_str::<Overrides>(r#"{"data-dir": "/x"}"#).unwrap_err();
        assert!(error.to_string().contains("data-dir"), "{error}");
    }

    #[test]
    fn what_is_not_set_is_left_alone() {
        let mut found = Installation::new(Distribution::K3s);
        found.version = Some("v1".to_owned());
        let before = found.clone();
        Overrides::default().apply(&mut found);
        assert_eq!(found, before);
        let overrides: Overrides = serde_json::from_str(r#"{"datastore": "sqlite"}"#).unwrap();
        overrides.apply(&mut found);
        assert_eq!(found.datastore, Datastore::Sqlite);
        assert_eq!(found.version.as_deref(), Some("v1"));
    }
}
