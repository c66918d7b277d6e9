//! Which paths to probe, where the probe's file goes, and what the device is called.
//!
//! Pure decisions from the configuration and the facts: the agent itself never touches the disk.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::host::{Datastore, Facts};

/// Where syncs are measured on a node without a local datastore.
const FALLBACK: &str = "/var/lib";

/// A block device as labels show it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Device {
    /// The value of the label `device`.
    pub(super) label: String,
    /// The whole disks below, as `/proc/diskstats` names them.
    pub(super) disks: Vec<String>,
}

impl Device {
    /// The disk if it is one, else what is mounted (an array has several disks and one name).
    pub(super) fn of(chain: &[String], disks: &[String], source: &str) -> Self {
        let mounted = || Path::new(source).file_name().map(|name| name.to_string_lossy());
        let label = match disks {
            [disk] => disk.clone(),
            _ => match chain.first() {
                Some(device) => device.clone(),
                None => mounted().map_or_else(|| "unknown".to_owned(), |name| clean(&name)),
            },
        };
        Self { label, disks: disks.to_vec() }
    }

    /// A device of which nothing is known.
    pub(super) fn unknown() -> Self {
        Self::of(&[], &[], "")
    }
}

/// A name without the blanks that would end a field of the child's answer.
fn clean(name: &str) -> String {
    name.replace(|c: char| c.is_whitespace() || c.is_control(), "_")
}

/// A path to probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    /// The host path whose syncs matter; the label `path`.
    pub(super) path: PathBuf,
    /// Host directories for the file, the best first.
    pub(super) directories: Vec<PathBuf>,
    /// The device, where detection found it.
    pub(super) device: Option<Device>,
}

/// The configured paths, else the datastore's, else `/var/lib`.
///
/// `own` are directories of the agent's own: an agent that may not write beside the datastore may do
/// so there, and where that is the same device, it is as good.
pub(super) fn targets(configured: &[PathBuf], facts: &Facts, own: &[PathBuf]) -> Vec<Target> {
    if configured.is_empty() {
        let mut target = detected(facts);
        target.directories.extend_from_slice(own);
        return vec![target];
    }
    let mut targets: Vec<Target> = Vec::new();
    for path in configured {
        if targets.iter().all(|known| known.path != *path) {
            // Told to look there, it looks there and nowhere else.
            targets.push(Target {
                path: path.clone(),
                directories: vec![path.clone()],
                device: known_device(path, facts),
            });
        }
    }
    targets
}

fn detected(facts: &Facts) -> Target {
    let local = [Datastore::Etcd, Datastore::Sqlite, Datastore::Dqlite];
    let node = facts.alive().find(|node| local.contains(&node.datastore));
    let Some(directory) = node.and_then(|node| node.datastore_dir.clone()) else {
        let path = PathBuf::from(FALLBACK);
        return Target { directories: vec![path.clone()], path, device: None };
    };
    // Detection has looked whether the write-ahead log lies on a filesystem of its own.
    let synced = facts.datastore.as_ref().map(|place| &place.path);
    let synced = synced.filter(|path| path.starts_with(&directory)).cloned();
    let wal = node.and_then(|node| node.wal_dir.clone());
    let path = wal.or(synced).unwrap_or_else(|| directory.clone());
    // Beside the datastore's directory rather than in it, but never in `/`: there the root of a
    // container's or an image's filesystem is not where the datastore lies.
    let beside = directory.parent().filter(|parent| parent.parent().is_some());
    let mut directories: Vec<PathBuf> = Vec::new();
    for candidate in beside.into_iter().chain([directory.as_path(), path.as_path()]) {
        if !directories.iter().any(|known| known == candidate) {
            directories.push(candidate.to_owned());
        }
    }
    Target { device: known_device(&path, facts), path, directories }
}

/// The device that detection found under the datastore, if this is its path.
fn known_device(path: &Path, facts: &Facts) -> Option<Device> {
    of_datastore(facts).filter(|_| facts.datastore.as_ref().is_some_and(|place| place.path == path))
}

/// The device that detection found under the datastore.
pub(super) fn of_datastore(facts: &Facts) -> Option<Device> {
    let place = facts.datastore.as_ref()?;
    Some(Device::of(&place.chain, &place.disks, &place.source))
}

/// Whether a path lies in the directory that etcd keeps for itself.
pub(super) fn is_inside_member(path: &Path) -> bool {
    let names: Vec<_> = path.components().map(|c| c.as_os_str().to_string_lossy()).collect();
    names.iter().enumerate().any(|(i, name)| {
        name == "member" && names.get(i + 1).is_none_or(|next| next == "wal" || next == "snap")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{DatastorePlace, Distribution, Installation};

    fn node(datastore: Datastore, dir: &str, wal: Option<&str>) -> Facts {
        let node = Installation {
            datastore,
            datastore_dir: Some(dir.into()),
            wal_dir: wal.map(Into::into),
            ..Installation::new(Distribution::K3s)
        };
        Facts { installations: vec![node], ..Facts::default() }
    }

    fn paths(list: &[&str]) -> Vec<PathBuf> {
        list.iter().map(PathBuf::from).collect()
    }

    #[test]
    fn the_file_goes_beside_the_datastore_if_that_is_the_same_device_and_the_label_stays() {
        let facts = node(Datastore::Etcd, "/var/lib/rancher/k3s/server/db/etcd", None);
        let target = &targets(&[], &facts, &[])[0];
        assert_eq!(target.path, Path::new("/var/lib/rancher/k3s/server/db/etcd"));
        let expected = ["/var/lib/rancher/k3s/server/db", "/var/lib/rancher/k3s/server/db/etcd"];
        assert_eq!(target.directories, paths(&expected));
    }

    #[test]
    fn the_agent_s_own_directory_is_the_last_choice_and_none_for_configured_paths() {
        let own = paths(&["/var/lib/controlplane-exporter"]);
        let target = &targets(&[], &node(Datastore::Etcd, "/var/lib/etcd", None), &own)[0];
        let expected = ["/var/lib", "/var/lib/etcd", "/var/lib/controlplane-exporter"];
        assert_eq!(target.directories, paths(&expected));
        let target = &targets(&paths(&["/data"]), &Facts::default(), &own)[0];
        assert_eq!(target.directories, paths(&["/data"]));
    }

    #[test]
    fn a_wal_directory_of_its_own_is_what_matters() {
        let facts = node(Datastore::Etcd, "/var/lib/etcd", Some("/wal"));
        let target = &targets(&[], &facts, &[])[0];
        assert_eq!(target.path, Path::new("/wal"));
        assert_eq!(target.directories, paths(&["/var/lib", "/var/lib/etcd", "/wal"]));
    }

    #[test]
    fn a_write_ahead_log_that_is_mounted_is_what_matters_and_no_file_goes_into_it() {
        let mut facts = node(Datastore::Etcd, "/var/lib/etcd", None);
        let path = PathBuf::from("/var/lib/etcd/member/wal");
        facts.datastore = Some(DatastorePlace { path: path.clone(), ..DatastorePlace::default() });
        let target = &targets(&[], &facts, &[])[0];
        assert_eq!(target.path, path);
        assert!(target.device.is_some());
        facts.datastore.as_mut().unwrap().path = "/elsewhere".into();
        assert_eq!(targets(&[], &facts, &[])[0].path, Path::new("/var/lib/etcd"));
    }

    #[test]
    fn a_datastore_at_the_top_puts_no_file_in_the_root() {
        let facts = node(Datastore::Etcd, "/etcd", None);
        assert_eq!(targets(&[], &facts, &[])[0].directories, paths(&["/etcd"]));
    }

    #[test]
    fn without_a_local_datastore_var_lib_is_probed() {
        for facts in [Facts::default(), node(Datastore::ExternalEtcd, "/x", None)] {
            assert_eq!(targets(&[], &facts, &[])[0].directories, paths(&["/var/lib"]));
        }
    }

    #[test]
    fn configured_paths_are_obeyed_and_each_is_probed_once() {
        let facts = node(Datastore::Etcd, "/var/lib/etcd", None);
        let targets = targets(&paths(&["/a", "/b", "/a"]), &facts, &[]);
        assert_eq!(targets.len(), 2);
        assert_eq!(targets[0].directories, paths(&["/a"]));
    }

    #[test]
    fn the_device_is_the_disk_or_what_is_mounted() {
        let names = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let one = Device::of(&names(&["dm-0", "sda2", "sda"]), &names(&["sda"]), "/dev/mapper/a");
        assert_eq!(one.label, "sda");
        let raid = Device::of(&names(&["md0", "sda", "sdb"]), &names(&["sda", "sdb"]), "/dev/md0");
        assert_eq!((raid.label.as_str(), raid.disks.len()), ("md0", 2));
        assert_eq!(Device::of(&[], &[], "rpool/ROOT/my pool").label, "my_pool");
        assert_eq!(Device::unknown().label, "unknown");
    }

    #[test]
    fn the_device_of_the_datastore_is_taken_from_detection() {
        let mut facts = node(Datastore::Etcd, "/var/lib/etcd", None);
        facts.datastore = Some(DatastorePlace {
            path: "/var/lib/etcd".into(),
            disks: vec!["vda".into()],
            ..DatastorePlace::default()
        });
        assert_eq!(targets(&[], &facts, &[])[0].device.as_ref().unwrap().label, "vda");
        assert_eq!(targets(&paths(&["/b"]), &facts, &[])[0].device, None);
    }

    #[test]
    fn etcd_s_own_directory_is_recognised() {
        for inside in ["/var/lib/etcd/member", "/e/member/wal", "/e/member/snap/x"] {
            assert!(is_inside_member(Path::new(inside)), "{inside}");
        }
        for outside in ["/var/lib/etcd", "/srv/member/data", "/members"] {
            assert!(!is_inside_member(Path::new(outside)), "{outside}");
        }
    }
}
