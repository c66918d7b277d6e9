//! Volumes as kubelet and a CSI driver mount them: a loop device, a real `mkfs`, and a mount below a folder of kubelet's with
//! its file `vol_data.json`. Those of Longhorn have a device of their own name in `/dev/longhorn`, with the loop's numbers.
//! Also Longhorn's objects in a datastore.

use super::disk::{Disk, Kind, unmount};
use super::etcd::Cluster;
use super::process::{bound_command, output, run};
use super::{program, temp_dir};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const LONGHORN: &str = "/dev/longhorn";

/// A mounted volume. Everything is undone when it is dropped.
pub(crate) struct Volume {
    name: String,
    kind: Kind,
    /// What is mounted.
    device: PathBuf,
    point: PathBuf,
    mounted: bool,
    is_longhorn: bool,
    _disk: Disk,
    kubelet: tempfile::TempDir,
}

impl Volume {
    /// A volume of Longhorn, with a filesystem that was made this long ago; only ext4 can be older than now.
    #[track_caller]
    pub(crate) fn longhorn(kind: Kind, age: Duration) -> Self {
        Self::new(kind, age, true)
    }

    /// A volume of another driver, which is told by kubelet's file only.
    #[track_caller]
    pub(crate) fn of_driver(kind: Kind) -> Self {
        Self::new(kind, Duration::ZERO, false)
    }

    #[track_caller]
    fn new(kind: Kind, age: Duration, is_longhorn: bool) -> Self {
        // 300 MiB of data must fit.
        let disk = Disk::raw(400 << 20);
        let name = format!("pvc-{:08x}-{}", fastrand::u32(..), std::process::id());
        let kubelet = temp_dir("kubelet");
        // As on a node: what is unmounted here is unmounted in the namespaces of others too.
        run("mount", ["--bind".as_ref(), kubelet.path(), kubelet.path()]);
        run("mount", ["--make-shared".as_ref(), kubelet.path()]);
        let driver = if is_longhorn { "driver.longhorn.io" } else { "disk.example.com" };
        let folder = kubelet.path().join("plugins/kubernetes.io/csi").join(driver).join("0f1e2d3c");
        let point = folder.join("globalmount");
        std::fs::create_dir_all(&point).unwrap();
        let data = format!(r#"{{"driverName":"{driver}","volumeHandle":"{name}"}}"#);
        std::fs::write(folder.join("vol_data.json"), data).unwrap();
        let mut device = disk.device().device().to_owned();
        if is_longhorn {
            std::fs::create_dir_all(LONGHORN).unwrap();
            let number =
                std::os::linux::fs::MetadataExt::st_rdev(&std::fs::metadata(&device).unwrap());
            device = Path::new(LONGHORN).join(&name);
            let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
            let kind = rustix::fs::FileType::BlockDevice;
            rustix::fs::mknodat(rustix::fs::CWD, &device, kind, mode, number).unwrap();
        }
        let mut volume =
            Self { name, kind, device, point, mounted: false, is_longhorn, _disk: disk, kubelet };
        volume.make(age);
        volume.mount();
        volume
    }

    /// Its name in Longhorn, and in the file of kubelet's.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> &Path {
        &self.point
    }

    /// Writes so many bytes into a file, to the disk.
    #[track_caller]
    pub(crate) fn fill(&self, bytes: u64) {
        let file = std::fs::File::create(self.point.join("data")).unwrap();
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes).unwrap();
        file.sync_all().unwrap();
    }

    /// Takes it out of its place, as a drain or the end of a node does.
    #[track_caller]
    pub(crate) fn unmount(&mut self) {
        run("umount", [&self.point]);
        self.mounted = false;
    }

    /// Mounts it in its place.
    #[track_caller]
    pub(crate) fn mount(&mut self) {
        let args = ["-t".as_ref(), self.kind.name().as_ref(), self.device.as_os_str()];
        run("mount", args.into_iter().chain([self.point.as_os_str()]));
        self.mounted = true;
    }

    /// What a driver does that takes it for empty: a new filesystem, and a mount.
    #[track_caller]
    pub(crate) fn reformat(&mut self) {
        if self.mounted {
            self.unmount();
        }
        self.make(Duration::ZERO);
        self.mount();
    }

    /// The same with btrfs, whose files do not have the number of their mount.
    #[track_caller]
    pub(crate) fn make_btrfs(&mut self) {
        self.unmount();
        run("mkfs.btrfs", ["-q".as_ref(), "-f".as_ref(), self.device.as_os_str()]);
        let args = ["-t".as_ref(), "btrfs".as_ref(), self.device.as_os_str()];
        run("mount", args.into_iter().chain([self.point.as_os_str()]));
        self.mounted = true;
    }

    /// Copies the device as it is, as a backup of its blocks does; mounts it again.
    #[track_caller]
    pub(crate) fn save(&mut self) -> PathBuf {
        let image = self.kubelet.path().join("saved");
        self.unmount();
        copy(&self.device, &image);
        self.mount();
        image
    }

    /// Puts what was saved back, and mounts it.
    #[track_caller]
    pub(crate) fn restore(&mut self, image: &Path) {
        self.unmount();
        copy(image, &self.device);
        self.mount();
    }

    #[track_caller]
    fn make(&self, age: Duration) {
        if age.is_zero() {
            return self.kind.make(&self.device);
        }
        assert_eq!(self.kind, Kind::Ext4, "mkfs.xfs takes no time from its environment");
        let made = SystemTime::now() - age;
        let made = made.duration_since(UNIX_EPOCH).unwrap().as_secs();
        let mut command = bound_command(program("mkfs.ext4"));
        command.env("E2FSPROGS_FAKE_TIME", made.to_string()).args(["-q", "-F"]).arg(&self.device);
        let said = output(command, Duration::from_mins(1));
        assert!(said.status.success(), "{}", said.stderr);
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        if self.mounted {
            unmount(&self.point);
        }
        unmount(self.kubelet.path());
        if self.is_longhorn {
            std::fs::remove_file(&self.device).ok();
            std::fs::remove_dir(LONGHORN).ok();
        }
    }
}

#[track_caller]
fn copy(from: &Path, to: &Path) {
    let paths = [format!("if={}", from.display()), format!("of={}", to.display())];
    let how = ["bs=1M", "conv=notrunc,fsync", "status=none"].map(str::to_owned);
    run("dd", paths.into_iter().chain(how));
}

/// A moment this long ago, as Kubernetes writes it.
pub(crate) fn ago(age: Duration) -> String {
    humantime::format_rfc3339_seconds(SystemTime::now() - age).to_string()
}

fn put(cluster: &Cluster, key: &str, object: &serde_json::Value) {
    let (key, value) = (key.to_owned(), object.to_string());
    let put = cluster.on_member(0, |mut client| async move { client.put(key, value, None).await });
    put.unwrap_or_else(|error| panic!("an object of Longhorn: {error}"));
}

/// Longhorn's object of a backup target.
pub(crate) fn put_target(cluster: &Cluster, url: &str) {
    let object = serde_json::json!({
        "apiVersion": "longhorn.io/v1beta2", "kind": "BackupTarget",
        "metadata": {"name": "default", "namespace": "longhorn-system"},
        "spec": {"backupTargetURL": url, "credentialSecret": "s3", "pollInterval": "5m0s"},
        "status": {"available": true},
    });
    put(cluster, "/registry/longhorn.io/backuptargets/longhorn-system/default", &object);
}

/// Longhorn's object of a volume that was made this long ago.
pub(crate) fn put_volume(cluster: &Cluster, name: &str, age: Duration) {
    let object = serde_json::json!({
        "apiVersion": "longhorn.io/v1beta2", "kind": "Volume",
        "metadata": {"name": name, "namespace": "longhorn-system", "creationTimestamp": ago(age)},
        "spec": {"size": "419430400", "frontend": "blockdev", "numberOfReplicas": 3, "Standby": false},
        "status": {"state": "attached", "robustness": "healthy", "isStandby": false},
    });
    put(cluster, &format!("/registry/longhorn.io/volumes/longhorn-system/{name}"), &object);
}

/// Longhorn's object of a complete backup of a volume; its data is this old.
pub(crate) fn put_backup(cluster: &Cluster, id: &str, volume: &str, age: Duration) {
    let object = serde_json::json!({
        "apiVersion": "longhorn.io/v1beta2", "kind": "Backup",
        "metadata": {"name": id, "namespace": "longhorn-system", "labels": {"backup-volume": volume}},
        "spec": {"snapshotName": "nightly"},
        "status": {"state": "Completed", "progress": 100, "size": "209715200", "volumeName": volume,
            "snapshotCreatedAt": ago(age), "backupCreatedAt": ago(age),
            "url": format!("s3://backups@eu/?backup={id}&volume={volume}")},
    });
    put(cluster, &format!("/registry/longhorn.io/backups/longhorn-system/{id}"), &object);
}

/// Takes the object of a backup away, as a job with a retention does.
pub(crate) fn delete_backup(cluster: &Cluster, id: &str) {
    let key = format!("/registry/longhorn.io/backups/longhorn-system/{id}");
    let gone = cluster.on_member(0, |mut client| async move { client.delete(key, None).await });
    gone.unwrap_or_else(|error| panic!("a backup's end: {error}"));
}
