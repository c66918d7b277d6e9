//! Space and inodes left where the datastore, snaps and containers lie, and whether a filesystem has
//! gone read-only.
//!
//! A child process per path follows the links in it, finds its mount in `/proc/1/mountinfo` and calls
//! `statvfs(2)`, each within `timeout`. A dead mount can hold that call for ever, in the kernel: it
//! then costs its own path and hides no other, and no second child is started for it before the first
//! is reaped. The failure says `timeout`; a path that is not there says `not_found`.
//!
//! Read-only is what the filesystem says of itself (`ro`, or `emergency_ro` after an error, in the
//! superblock's options); the mount's options and `statvfs` lie in a container's or a unit's namespace.
//! A filesystem that counts no inodes (btrfs) has no inode figures. At most five series per path.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};

use crate::child::{self, ChildError, Slot};
use crate::host::{Facts, Host, Mount, Mounts, devices};
use crate::kept::Kept;
use crate::metric::Metric;
use crate::sample::{Batch, SampleError, WireError};
use crate::sampler::{AsyncSampler, Build, OptionsError, SamplerDef, defaults, facts};

/// See the module's page.
pub static SAMPLER: SamplerDef = SamplerDef {
    about: "Space and inodes left, and filesystems that have gone read-only.",
    interval: Duration::from_secs(30),
    timeout: Duration::from_secs(5),
    metrics: &[SIZE.desc(), AVAIL.desc(), FILES.desc(), FILES_FREE.desc(), READONLY.desc()],
    defaults: defaults::<Options>,
    uses: |all| facts(detected(all)),
    build: |options, host| {
        let own: Options = options.parse()?;
        check(&own.paths)?;
        let paths = watched(&own.paths, host.facts())
            .into_iter()
            .map(|(path, role)| Watched::new(path, role, host))
            .collect();
        let rootfs = host.rootfs().to_owned();
        Ok(Build::tasked(Filesystem { rootfs, paths, timeout: options.timeout }))
    },
    cost: "2 ms of CPU for each path in its child, and 1 ms a run; 10 ms until five paths have answered",
};

static SIZE: Metric<4> = Metric::gauge(
    "controlplane_filesystem_size_bytes",
    "Size of the filesystem that holds the path.",
    ["path", "device", "fstype", "role"],
);
static AVAIL: Metric<4> = Metric::gauge(
    "controlplane_filesystem_avail_bytes",
    "Space left for processes other than root's.",
    ["path", "device", "fstype", "role"],
);
static FILES: Metric<4> = Metric::gauge(
    "controlplane_filesystem_files",
    "Inodes of the filesystem, used and free; absent where it does not count them.",
    ["path", "device", "fstype", "role"],
);
static FILES_FREE: Metric<4> = Metric::gauge(
    "controlplane_filesystem_files_free",
    "Free inodes; absent where the filesystem does not count them.",
    ["path", "device", "fstype", "role"],
);
static READONLY: Metric<4> = Metric::gauge(
    "controlplane_filesystem_readonly",
    "Whether the filesystem is read-only, by order or after an error. From the superblock's options \
     in mountinfo.",
    ["path", "device", "fstype", "role"],
);

/// More paths than this are a mistake: each is a process every interval.
const MAX_PATHS: usize = 64;

/// The section `filesystem`.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Options {
    /// Paths to watch, instead of those that detection found.
    #[serde(deserialize_with = "crate::config::list")]
    paths: Vec<PathBuf>,
}

fn check(paths: &[PathBuf]) -> Result<(), OptionsError> {
    if paths.len() > MAX_PATHS {
        return Err(OptionsError::new("paths", format!("at most {MAX_PATHS} paths")));
    }
    match paths.iter().find(|path| !path.is_absolute()) {
        Some(path) => {
            Err(OptionsError::new("paths", format!("{} must be absolute", path.display())))
        }
        None => Ok(()),
    }
}

/// What a path is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Role {
    Datastore,
    Snap,
    Containers,
    Root,
    Other,
}

impl Role {
    fn as_str(self) -> &'static str {
        match self {
            Self::Datastore => "datastore",
            Self::Snap => "snap",
            Self::Containers => "containers",
            Self::Root => "root",
            Self::Other => "other",
        }
    }
}

/// The paths that detection found to matter, each once.
fn detected(all: &Facts) -> Vec<(PathBuf, Role)> {
    let nodes = &all.installations;
    let datastores = all
        .datastore
        .iter()
        .map(|place| &place.path)
        .chain(all.alive().flat_map(|node| node.datastore_dir.iter().chain(&node.wal_dir)));
    let snaps = nodes.iter().flat_map(|node| &node.snaps);
    let containers = nodes.iter().flat_map(|node| &node.container_dirs);
    let all = datastores
        .map(|path| (path.clone(), Role::Datastore))
        .chain(snaps.map(|snap| (Path::new("/var/snap").join(snap), Role::Snap)))
        .chain(containers.map(|path| (path.clone(), Role::Containers)))
        .chain([(PathBuf::from("/"), Role::Root)]);
    let mut paths: Vec<(PathBuf, Role)> = Vec::new();
    for (path, role) in all {
        if paths.len() < MAX_PATHS && paths.iter().all(|(known, _)| *known != path) {
            paths.push((path, role));
        }
    }
    paths
}

/// The configured paths with the roles that they have here, else the detected ones.
fn watched(configured: &[PathBuf], all: &Facts) -> Vec<(PathBuf, Role)> {
    let found = detected(all);
    if configured.is_empty() {
        return found;
    }
    let mut paths: Vec<(PathBuf, Role)> = Vec::new();
    for path in configured {
        if paths.iter().all(|(known, _)| known != path) {
            paths.push((path.clone(), role(path, &found)));
        }
    }
    paths
}

fn role(path: &Path, found: &[(PathBuf, Role)]) -> Role {
    if path == Path::new("/") {
        return Role::Root;
    }
    // The closest of the detected paths that hold it, but everything lies below `/`.
    let holder = found
        .iter()
        .filter(|(known, role)| *role != Role::Root && path.starts_with(known))
        .max_by_key(|(known, _)| known.components().count());
    match holder {
        Some((_, role)) => *role,
        None if path.starts_with("/var/snap") => Role::Snap,
        None => Role::Other,
    }
}

/// What a child is asked.
#[derive(Debug, Serialize, Deserialize)]
struct Question {
    rootfs: PathBuf,
    path: PathBuf,
}

/// What a child answers. One part may be there without the other.
#[derive(Debug, Serialize, Deserialize)]
struct Answer {
    mount: Result<Mounted, WireError>,
    usage: Result<Usage, WireError>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Mounted {
    /// The kernel's name of the device, else the last part of what is mounted.
    device: String,
    fstype: String,
    readonly: bool,
}

/// Bytes and inodes.
#[derive(Debug, Serialize, Deserialize)]
struct Usage {
    size: u64,
    avail: u64,
    files: u64,
    files_free: u64,
}

/// The child's side: looks at one path.
///
/// # Errors
///
/// When the question cannot be read or answered.
pub fn run_child() -> io::Result<()> {
    child::answer(|question: Question| look(&Host::at(question.rootfs), &question.path))
}

fn look(host: &Host, path: &Path) -> Answer {
    let wire = |error: io::Error| SampleError::read(path, error).to_wire();
    Answer { mount: mounted(host, path).map_err(wire), usage: usage(host, path).map_err(wire) }
}

fn mounted(host: &Host, path: &Path) -> io::Result<Mounted> {
    let mounts = Mounts::read(host)?;
    let resolved = host.resolve(path)?;
    let mount = mounts.holder(&resolved).ok_or(io::ErrorKind::NotFound)?;
    Ok(Mounted {
        device: device(host, &mounts, mount),
        fstype: mount.fstype.clone(),
        readonly: mount.is_readonly(),
    })
}

fn device(host: &Host, mounts: &Mounts, mount: &Mount) -> String {
    if let Some(device) = devices::chain(host, mounts, mount).devices.into_iter().next() {
        return device;
    }
    let source = Path::new(&mount.source).file_name().map(|name| name.to_string_lossy());
    source.map_or_else(|| "unknown".to_owned(), std::borrow::Cow::into_owned)
}

fn usage(host: &Host, path: &Path) -> io::Result<Usage> {
    let fs = rustix::fs::statvfs(host.path(host.resolve(path)?))?;
    Ok(Usage {
        size: fs.f_blocks.saturating_mul(fs.f_frsize),
        avail: fs.f_bavail.saturating_mul(fs.f_frsize),
        files: fs.f_files,
        files_free: fs.f_ffree,
    })
}

/// Room for one child a path.
static SLOTS: Kept<PathBuf, Slot> = Kept::new();

struct Watched {
    path: PathBuf,
    role: Role,
    slot: Slot,
    /// What the last answer said.
    readonly: Option<bool>,
}

impl Watched {
    fn new(path: PathBuf, role: Role, host: &Host) -> Self {
        Self { slot: SLOTS.of(host.path(&path)), path, role, readonly: None }
    }
}

struct Filesystem {
    rootfs: PathBuf,
    paths: Vec<Watched>,
    timeout: Duration,
}

#[async_trait]
impl AsyncSampler for Filesystem {
    /// # Errors
    ///
    /// None: each path is a part, and the others still report.
    async fn sample(&mut self, out: &mut Batch) -> Result<(), SampleError> {
        let asked = join_all(self.paths.iter().map(|watched| self.ask(watched))).await;
        for (watched, answer) in self.paths.iter_mut().zip(asked) {
            match answer {
                Ok(answer) => report(watched, answer, out),
                Err(error) => out.fail(error),
            }
        }
        Ok(())
    }
}

impl Filesystem {
    async fn ask(&self, watched: &Watched) -> Result<Answer, SampleError> {
        let question = Question { rootfs: self.rootfs.clone(), path: watched.path.clone() };
        let asked = watched.slot.ask(&["statfs"], &question, self.timeout).await;
        asked.map_err(|error| match error {
            // An earlier child that is still held is a path that still does not answer.
            ChildError::Timeout(_) | ChildError::Busy => SampleError::Timeout {
                what: watched.path.display().to_string(),
                after: self.timeout,
            },
            error => SampleError::Child(format!("{}: {error}", watched.path.display())),
        })
    }
}

fn report(watched: &mut Watched, answer: Answer, out: &mut Batch) {
    let path = &*watched.path.to_string_lossy();
    let mount = answer.mount.map_err(|error| out.fail(SampleError::Wire(error))).ok();
    let (device, fstype) =
        mount.as_ref().map_or(("unknown", "unknown"), |m| (m.device.as_str(), m.fstype.as_str()));
    let labels = [path, device, fstype, watched.role.as_str()];
    match answer.usage {
        Ok(usage) => {
            out.push(&SIZE, labels, usage.size);
            out.push(&AVAIL, labels, usage.avail);
            if usage.files > 0 {
                out.push(&FILES, labels, usage.files);
                out.push(&FILES_FREE, labels, usage.files_free);
            }
        }
        Err(error) => {
            let error = SampleError::Wire(error);
            let is_there = error.reason() != "not_found";
            out.fail(error);
            if !is_there {
                return;
            }
        }
    }
    if let Some(mount) = &mount {
        out.push(&READONLY, labels, mount.readonly);
        let before = watched.readonly.replace(mount.readonly);
        if before.is_some_and(|before| before != mount.readonly) {
            let now = if mount.readonly { "read-only" } else { "writable again" };
            let text = format!("the filesystem of {path} ({device}, {fstype}) is {now}");
            out.event(SystemTime::now(), "filesystem_readonly", text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{DatastorePlace, Distribution, Installation};

    fn microk8s() -> Facts {
        let node = Installation {
            datastore_dir: Some("/var/snap/microk8s/current/var/kubernetes/backend".into()),
            container_dirs: vec!["/var/snap/microk8s/common/containerd".into()],
            snaps: vec!["microk8s".into()],
            ..Installation::new(Distribution::Microk8s)
        };
        let place = DatastorePlace {
            path: "/var/snap/microk8s/current/var/kubernetes/backend".into(),
            ..DatastorePlace::default()
        };
        Facts { installations: vec![node], datastore: Some(place), ..Facts::default() }
    }

    fn watched_path(path: &str, role: Role) -> Watched {
        Watched { path: path.into(), role, slot: Slot::default(), readonly: None }
    }

    /// A root with a mount table and nothing else.
    fn root(mountinfo: &str) -> (tempfile::TempDir, Host) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("proc/1")).unwrap();
        std::fs::write(dir.path().join("proc/1/mountinfo"), mountinfo).unwrap();
        let host = Host::at(dir.path());
        (dir, host)
    }

    fn figures(host: &Host, path: &str) -> Batch {
        let mut out = Batch::default();
        report(&mut watched_path(path, Role::Other), look(host, Path::new(path)), &mut out);
        out
    }

    #[test]
    fn what_detection_found_is_watched_with_its_role_and_each_path_once() {
        let found = watched(&[], &microk8s());
        let roles: Vec<_> = found.iter().map(|(_, role)| role.as_str()).collect();
        assert_eq!(roles, ["datastore", "snap", "containers", "root"]);
        assert_eq!(found[1].0, Path::new("/var/snap/microk8s"));
        assert_eq!(watched(&[], &Facts::default()), [(PathBuf::from("/"), Role::Root)]);
    }

    #[test]
    fn a_configured_path_has_the_role_of_the_closest_detected_one() {
        let paths: Vec<PathBuf> = [
            "/var/snap/microk8s/common/containerd/x",
            "/var/snap/microk8s",
            "/var/snap/other",
            "/",
            "/mnt",
            "/mnt",
        ]
        .map(PathBuf::from)
        .into();
        let roles: Vec<_> =
            watched(&paths, &microk8s()).iter().map(|(_, role)| role.as_str()).collect();
        assert_eq!(roles, ["containers", "snap", "snap", "root", "other"]);
        assert_eq!(watched(&paths[2..3], &Facts::default())[0].1, Role::Snap);
    }

    #[test]
    fn relative_paths_and_too_many_of_them_are_refused() {
        assert!(check(&["/a".into(), "b".into()]).unwrap_err().what.contains("must be absolute"));
        assert!(check(&vec!["/a".into(); MAX_PATHS + 1]).is_err());
    }

    #[test]
    fn read_only_is_the_filesystem_s_own_word() {
        let line = |mount: &str, own: &str| {
            let (_dir, host) = root(&format!("1 0 0:9 / / {mount} - ext4 /dev/sdz1 {own}\n"));
            figures(&host, "/proc").value(&READONLY, ["/proc", "sdz1", "ext4", "other"])
        };
        assert_eq!(line("ro,relatime", "rw"), Some(0.0));
        assert_eq!(line("rw", "ro,errors=remount-ro"), Some(1.0));
        assert_eq!(line("rw", "rw,emergency_ro"), Some(1.0));
    }

    #[test]
    fn a_filesystem_that_goes_read_only_is_an_event() {
        let mut watched = watched_path("/proc", Role::Root);
        let mut events = Vec::new();
        for own in ["rw", "rw,emergency_ro", "rw,emergency_ro", "rw"] {
            let (_dir, host) = root(&format!("1 0 0:9 / / rw - ext4 /dev/sdz1 {own}\n"));
            let mut out = Batch::default();
            report(&mut watched, look(&host, Path::new("/proc")), &mut out);
            events.extend(out.take_events().into_iter().map(|event| event.text));
        }
        let text = |now| format!("the filesystem of /proc (sdz1, ext4) is {now}");
        assert_eq!(events, [text("read-only"), text("writable again")]);
    }

    #[test]
    fn links_are_followed_below_the_root_to_the_mount_that_holds_the_path() {
        let mounts = "1 0 0:8 / / rw - ext4 /dev/sda1 rw\n2 1 0:9 / /data rw - xfs /dev/sdb rw\n";
        let (dir, host) = root(mounts);
        std::fs::create_dir(dir.path().join("data")).unwrap();
        std::os::unix::fs::symlink("/data", dir.path().join("lib")).unwrap();
        let out = figures(&host, "/lib");
        assert!(out.value(&SIZE, ["/lib", "sdb", "xfs", "other"]).unwrap() > 0.0);
        assert_eq!(out.reasons(), [""; 0]);
    }

    #[test]
    fn a_path_that_is_not_there_has_no_figures_and_says_so() {
        let (_dir, host) = root("1 0 0:8 / / rw - ext4 /dev/sda1 rw\n");
        let out = figures(&host, "/missing");
        assert_eq!((out.all().len(), out.reasons()), (0, vec!["not_found"]));
    }

    #[test]
    fn without_a_mount_table_the_space_is_there_and_read_only_is_unknown() {
        let host = Host::at(env!("CARGO_MANIFEST_DIR"));
        let out = figures(&host, "/src");
        assert_eq!(out.series(&READONLY), 0);
        assert_eq!(out.series(&AVAIL), 1);
        assert_eq!(out.reasons(), ["not_found"]);
    }

    #[test]
    fn inodes_that_are_not_counted_are_absent() {
        let usage = Usage { size: 100, avail: 40, files: 0, files_free: 0 };
        let mount = Mounted { device: "sda".into(), fstype: "btrfs".into(), readonly: false };
        let mut out = Batch::default();
        let answer = Answer { mount: Ok(mount), usage: Ok(usage) };
        report(&mut watched_path("/", Role::Root), answer, &mut out);
        assert_eq!((out.series(&FILES), out.series(&FILES_FREE)), (0, 0));
        assert_eq!(out.value(&AVAIL, ["/", "sda", "btrfs", "root"]), Some(40.0));
    }

    #[test]
    fn the_real_root_has_all_figures() {
        let out = figures(&Host::at("/"), "/");
        assert_eq!(out.series(&SIZE) + out.series(&READONLY), 2, "{:?}", out.failures());
    }
}
