//! What detection finds out about this node: plain, serialisable values.
//!
//! Detection runs in a child process, so everything here crosses a pipe as JSON. Paths are those
//! of the host; a reader prefixes `--path.rootfs` itself, through [`Host::path`](super::Host::path).

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Everything detection found. The default is a node on which nothing was found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Facts {
    /// The node's name, from `/proc/sys/kernel/hostname`, else `/etc/hostname`; else empty.
    pub hostname: String,
    /// When the kernel started, in Unix seconds, from `btime` of `/proc/stat`.
    pub boot_time: Option<u64>,
    /// Every installation that left traces: running ones first, then the most specific first.
    pub installations: Vec<Installation>,
    /// The program that reads the journal, where the host keeps one and this process could start it.
    #[serde(default)]
    pub journalctl: Option<PathBuf>,
    /// Where the datastore's files lie, for the first installation that has a local datastore.
    pub datastore: Option<DatastorePlace>,
    /// What could not be read or decided, each a sentence that names the path, the reason and,
    /// where there is one, the command that would fix it.
    pub notes: Vec<String>,
    /// Whether a disk or a mount did not give what lies on it when the node was last looked at; a note says which.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
    /// Why nothing is known of the node yet: its files could not be looked at. Then all else here is empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unseen: Option<String>,
}

/// What this node was found to be, in one line.
impl fmt::Display for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(why) = &self.unseen {
            return write!(f, "Nothing is known of this node: {why}");
        }
        let Some(node) = self.primary() else {
            return f.write_str("No Kubernetes control plane was found on this node.");
        };
        let version = node.version.as_deref().unwrap_or("(version unknown)");
        let (role, datastore) = (node.role.as_str(), node.datastore.as_str());
        write!(f, "{} {version}, {role}, datastore {datastore}", node.distribution)
    }
}

impl Facts {
    /// Nothing, and why.
    pub fn unseen(why: impl fmt::Display) -> Self {
        Self { unseen: Some(why.to_string()), ..Self::default() }
    }

    /// These facts, or what an earlier look has seen as a `whole` where a disk or a mount has not told all: just then its figures
    /// are asked for.
    #[must_use]
    pub fn or_known(self, whole: Option<&Self>) -> Self {
        match whole {
            Some(whole) if self.partial => {
                Self { partial: true, notes: self.notes, ..whole.clone() }
            }
            _ => self,
        }
    }

    /// The installation that the node's figures are about.
    pub fn primary(&self) -> Option<&Installation> {
        self.installations.first()
    }

    /// The installation that the node's figures are about, and others that run.
    pub fn in_use(&self) -> impl Iterator<Item = &Installation> {
        let nodes = self.installations.iter().enumerate();
        nodes.filter(|(n, node)| *n == 0 || node.running).map(|(_, node)| node)
    }

    /// How the API server of this node reaches its datastore: the local etcd, one elsewhere, or a socket. Without the quota, which
    /// is known from another source as soon as etcd stops, while the way to it stays the same.
    pub fn registry(&self) -> Option<EtcdAccess> {
        let access = self.in_use().find_map(|node| {
            let etcd = node.etcd.as_ref().or(node.external_etcd.as_ref());
            etcd.filter(|etcd| !etcd.endpoints.is_empty()).cloned().or_else(|| node.kine())
        });
        access.map(|access| EtcdAccess { quota: None, ..access })
    }

    /// The installation that the node's figures are about, and others that run or should; what one of before has left
    /// behind is none of them.
    pub fn alive(&self) -> impl Iterator<Item = &Installation> {
        alive(&self.installations)
    }

    /// How to reach the local etcd member, of the first installation that has one: a plain etcd
    /// beside a Kubernetes that names other members counts too, also one that is stopped and should run.
    pub fn etcd(&self) -> Option<&EtcdAccess> {
        self.alive().find_map(|found| found.etcd.as_ref())
    }
}

/// See [`Facts::alive`].
pub(super) fn alive(installations: &[Installation]) -> impl Iterator<Item = &Installation> {
    let nodes = installations.iter().enumerate();
    let alive = nodes
        .filter(|(n, node)| *n == 0 || node.running || node.units.iter().any(|unit| unit.expected));
    alive.map(|(_, node)| node)
}

/// One Kubernetes distribution on this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Installation {
    /// Which distribution.
    pub distribution: Distribution,
    /// Its version as the distribution prints it (`v1.36.4+rke2r1`), where files tell it.
    pub version: Option<String>,
    /// Versions of its parts by name (`k8s-dqlite`), where a bill of materials tells them.
    #[serde(default)]
    pub components: BTreeMap<String, String>,
    /// Control-plane node or worker.
    pub role: Role,
    /// Whether a process of it was seen, not only its files.
    pub running: bool,
    /// The paths that gave it away, at most eight.
    pub evidence: Vec<PathBuf>,
    /// The distribution's data directory (`/var/lib/rancher/k3s`).
    pub data_dir: Option<PathBuf>,
    /// What the API server stores its objects in.
    pub datastore: Datastore,
    /// The directory that holds the datastore's files: etcd's data directory (the one with
    /// `member/`), the directory of the SQLite file, or dqlite's.
    pub datastore_dir: Option<PathBuf>,
    /// etcd's `--wal-dir`, where it is set.
    pub wal_dir: Option<PathBuf>,
    /// The folder into which the distribution should write snapshots of its etcd by itself.
    #[serde(default)]
    pub etcd_snapshots: Option<PathBuf>,
    /// How to reach the local etcd member, for [`Datastore::Etcd`].
    pub etcd: Option<EtcdAccess>,
    /// How the API server reaches an etcd elsewhere, for [`Datastore::ExternalEtcd`]. These are
    /// not members of this node; they serve for counting keys only.
    pub external_etcd: Option<EtcdAccess>,
    /// The kine or k8s-dqlite Unix socket that speaks the etcd protocol.
    pub kine_socket: Option<PathBuf>,
    /// Whether that socket wants TLS, as kine's does under RKE2.
    #[serde(default)]
    pub kine_tls: bool,
    /// Where this node's API server answers, `https://127.0.0.1:6443`; none on a worker.
    #[serde(default)]
    pub api_url: Option<String>,
    /// The units to watch.
    pub units: Vec<Unit>,
    /// `comm` of the processes that write the datastore (`etcd`, `k3s-server`, `k8s-dqlite`).
    pub processes: Vec<String>,
    /// Directories of images and containers, whose filesystems fill up first.
    pub container_dirs: Vec<PathBuf>,
    /// The snaps that belong to it (`microk8s`, `k8s`).
    pub snaps: Vec<String>,
}

impl Installation {
    /// An installation of which nothing is known but its name.
    pub fn new(distribution: Distribution) -> Self {
        Self {
            distribution,
            version: None,
            components: BTreeMap::new(),
            role: Role::Unknown,
            running: false,
            evidence: Vec::new(),
            data_dir: None,
            datastore: Datastore::Unknown,
            datastore_dir: None,
            wal_dir: None,
            etcd_snapshots: None,
            etcd: None,
            external_etcd: None,
            kine_socket: None,
            kine_tls: false,
            api_url: None,
            units: Vec::new(),
            processes: Vec::new(),
            container_dirs: Vec::new(),
            snaps: Vec::new(),
        }
    }

    /// How to reach kine or k8s-dqlite on its socket; an API server that talks to an etcd has none. Where the socket
    /// speaks TLS, it does so with the files that etcd would have.
    pub fn kine(&self) -> Option<EtcdAccess> {
        if matches!(self.datastore, Datastore::Etcd | Datastore::ExternalEtcd) {
            return None;
        }
        let path = self.kine_socket.as_ref()?.display();
        if !self.kine_tls {
            return Some(EtcdAccess { endpoints: vec![path.to_string()], ..EtcdAccess::default() });
        }
        let file =
            |name: &str| self.data_dir.as_ref().map(|dir| dir.join("server/tls/etcd").join(name));
        Some(EtcdAccess {
            endpoints: vec![format!("unixs://{path}")],
            ca_file: file("server-ca.crt"),
            cert_file: file("client.crt"),
            key_file: file("client.key"),
            quota: None,
        })
    }
}

/// Kubernetes distributions that can be told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Distribution {
    /// Talos Linux. It has no host services: the agent can only run as a pod there.
    Talos,
    /// MicroK8s, the snap.
    Microk8s,
    /// Canonical Kubernetes, the snap `k8s`.
    CanonicalK8s,
    /// RKE2.
    Rke2,
    /// k3s.
    K3s,
    /// k0s.
    K0s,
    /// kubeadm, or anything that runs its control plane from `/etc/kubernetes/manifests`.
    Kubeadm,
    /// A plain etcd, run by a unit or by hand, without Kubernetes on the same node.
    Etcd,
}

impl Distribution {
    /// The word for it in labels and in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Talos => "talos",
            Self::Microk8s => "microk8s",
            Self::CanonicalK8s => "canonical-k8s",
            Self::Rke2 => "rke2",
            Self::K3s => "k3s",
            Self::K0s => "k0s",
            Self::Kubeadm => "kubeadm",
            Self::Etcd => "etcd",
        }
    }
}

impl fmt::Display for Distribution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What the node is for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// It runs a control plane.
    Server,
    /// It runs workloads only.
    Agent,
    /// The files do not tell.
    #[default]
    Unknown,
}

impl Role {
    /// The word for it in labels and in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Agent => "agent",
            Self::Unknown => "unknown",
        }
    }
}

/// What the API server keeps its objects in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Datastore {
    /// An etcd member on this node.
    Etcd,
    /// An etcd elsewhere.
    ExternalEtcd,
    /// SQLite through kine.
    Sqlite,
    /// A SQL server or NATS elsewhere, through kine.
    ExternalSql,
    /// dqlite, through k8s-dqlite.
    Dqlite,
    /// The files do not tell, or the node has none.
    #[default]
    Unknown,
}

impl Datastore {
    /// The word for it in labels and in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::ExternalEtcd => "external-etcd",
            Self::Sqlite => "sqlite",
            Self::ExternalSql => "external-sql",
            Self::Dqlite => "dqlite",
            Self::Unknown => "unknown",
        }
    }
}

/// How to reach the local etcd member.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EtcdAccess {
    /// Client URLs of the local member; the first that works is used.
    pub endpoints: Vec<String>,
    /// The CA that signed the server's certificate.
    pub ca_file: Option<PathBuf>,
    /// The client certificate.
    pub cert_file: Option<PathBuf>,
    /// Its key.
    pub key_file: Option<PathBuf>,
    /// The backend quota, where the running configuration sets it.
    pub quota: Option<Quota>,
}

/// A quota that nothing reaches.
pub const NO_QUOTA: u64 = u64::MAX;

/// etcd's backend quota as the running configuration gives it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quota {
    /// The quota in bytes; [`NO_QUOTA`] where etcd was told to have none.
    pub bytes: u64,
    /// Where it was found.
    pub source: QuotaSource,
}

/// Where the quota comes from, in the order in which it is believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QuotaSource {
    /// etcd 3.6 and later say it in their status.
    Status,
    /// The arguments or environment of the running process.
    Process,
    /// The configuration of k3s or RKE2, or etcd's unit.
    Config,
    /// A static pod manifest, or a file of arguments.
    Manifest,
    /// Nothing sets it: etcd's default of 2 GiB.
    Default,
}

impl QuotaSource {
    /// The word for it in labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Process => "process",
            Self::Config => "config",
            Self::Manifest => "manifest",
            Self::Default => "default",
        }
    }
}

/// A unit to watch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unit {
    /// Its full name, `k3s.service`.
    pub name: String,
    /// Whether role and lock files say that it should be running.
    pub expected: bool,
}

/// Where the datastore's files lie.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatastorePlace {
    /// The directory whose syncs matter: the WAL directory's filesystem decides.
    pub path: PathBuf,
    /// The mount that holds it.
    pub mount_point: PathBuf,
    /// Its filesystem type.
    pub fstype: String,
    /// What is mounted: `/dev/vda1`, `rpool/ROOT`.
    pub source: String,
    /// Kernel names of every device in the chain, from the mounted one down to the whole disks
    /// (`dm-0`, `md0`, `sda2`, `sda`); empty when the chain is unknown (network, ZFS, overlay).
    pub chain: Vec<String>,
    /// The whole disks at the end of the chain.
    pub disks: Vec<String>,
    /// Where the directory lies under whatever name; `None` where only `/proc/mounts` could be read.
    pub origin: Option<Origin>,
}

/// A directory by its filesystem: a container may see it under another name than the host does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Major and minor number of the filesystem's device.
    pub majmin: (u32, u32),
    /// The path within the filesystem.
    pub path: PathBuf,
}
