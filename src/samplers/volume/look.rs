//! The child's side: which volumes are mounted, what one of them is, and the state file.
//!
//! Nothing is opened but a volume's folder (by `O_PATH`), its device if that is a block device with the mount's own
//! numbers, and regular files.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxAttributes, StatxFlags, major, minor};
use serde::{Deserialize, Serialize};

use super::superblock::{self, Superblock};
use super::unix;
use crate::child;
use crate::host::{Host, Mount, Mounts, devices, read};
use crate::sample::{SampleError, WireError};

/// No more devices are looked at: each is a process in every run.
pub(super) const MAX_DEVICES: usize = 64;
/// Bytes of kubelet's file beside a mount; a real one has some hundreds.
const VOL_DATA_BYTES: u64 = 16 << 10;
/// Bytes of udev's file about a device; a real one has some thousands.
const UDEV_BYTES: u64 = 64 << 10;
/// Bytes of the state file; 256 volumes take some sixty thousand.
const STATE_BYTES: u64 = 256 << 10;
/// `f_type` of btrfs (statfs(2)).
const BTRFS: i64 = 0x9123_683e;
/// A filesystem that says it is older was made with a clock that was not set: 2001.
const EARLIEST: u64 = 978_307_200;

/// What a child is asked.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Question {
    /// Which volumes are mounted.
    Find { rootfs: PathBuf },
    /// What one of them is.
    Look { rootfs: PathBuf, device: Device },
    /// What the state file says.
    Load { rootfs: PathBuf, path: PathBuf },
    /// Puts this text in the place of the state file.
    Keep { rootfs: PathBuf, path: PathBuf, text: String },
}

/// What a child answers.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    /// The mounted devices, and how many more there are than are looked at.
    Found(Result<(Vec<Device>, u64), WireError>),
    /// What the device is.
    Seen(Box<Seen>),
    /// The text of the state file; nothing where there is none, or no folder for one.
    Loaded(Result<State, WireError>),
    /// The state file is written.
    Kept(Result<(), WireError>),
}

/// What became of the state file.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum State {
    /// There is one.
    Text(String),
    /// There is none yet.
    Absent,
    /// There is no folder for it, so none is wanted.
    NoFolder,
}

/// A mounted device that holds a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Device {
    /// What is mounted, as mountinfo says it: `/dev/longhorn/pvc-…`.
    pub(super) source: PathBuf,
    pub(super) mount_point: PathBuf,
    /// The filesystem's root is what is mounted.
    whole: bool,
    majmin: (u32, u32),
    pub(super) fstype: String,
    /// The kernel's name.
    pub(super) name: String,
    /// The volume's name in Longhorn.
    pub(super) longhorn: Option<String>,
    /// The name of the persistent volume, from a pod's mount.
    pub(super) persistent_volume: Option<String>,
    /// Kubelet made the folder in which it is mounted, and a file with it.
    staged: bool,
}

/// What a volume is. Each part may be missing.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Seen {
    /// The driver's name of the volume, the part after the last slash.
    pub(super) handle: Option<String>,
    /// When kubelet made the folder of the mount.
    pub(super) staged: Option<u64>,
    pub(super) uuid: Option<String>,
    pub(super) created: Option<u64>,
    pub(super) mounted: Option<u64>,
    /// Bytes: all, and used.
    pub(super) space: Option<(u64, u64)>,
    pub(super) failures: Vec<WireError>,
}

/// The child's side: answers one question.
///
/// # Errors
///
/// When the question cannot be read or answered.
pub fn run_child() -> io::Result<()> {
    child::answer(|question: Question| match question {
        Question::Find { rootfs } => Answer::Found(find(&Host::at(rootfs)).map_err(|error| {
            let error: SampleError = error;
            error.to_wire()
        })),
        Question::Look { rootfs, device } => {
            Answer::Seen(Box::new(look(&Host::at(rootfs), &device)))
        }
        Question::Load { rootfs, path } => Answer::Loaded(
            load(&Host::at(rootfs), &path)
                .map_err(|error| SampleError::read(&path, error).to_wire()),
        ),
        Question::Keep { rootfs, path, text } => {
            let kept = keep(&Host::at(rootfs), &path, &text);
            Answer::Kept(kept.map_err(|error| SampleError::read(&path, error).to_wire()))
        }
    })
}

/// The devices that hold volumes, each once.
fn find(host: &Host) -> Result<(Vec<Device>, u64), SampleError> {
    let mounts =
        Mounts::read(host).map_err(|error| SampleError::read("/proc/1/mountinfo", error))?;
    let mut found: Vec<Device> = Vec::new();
    let mut left_out = 0;
    for mount in mounts.iter() {
        let Some(device) = volume(host, &mounts, mount) else { continue };
        if let Some(known) = found.iter_mut().find(|known| known.majmin == device.majmin) {
            known.merge(device);
        } else if found.len() < MAX_DEVICES {
            found.push(device);
        } else {
            left_out += 1;
        }
    }
    Ok((found, left_out))
}

impl Device {
    /// Takes over what another mount of the same device knows better: where the driver staged it is looked at rather than
    /// a pod's mount, which comes and goes.
    fn merge(&mut self, other: Self) {
        let pv = self.persistent_volume.clone().or_else(|| other.persistent_volume.clone());
        let longhorn = self.longhorn.clone().or_else(|| other.longhorn.clone());
        let rank =
            |device: &Self| (device.whole, device.staged, device.persistent_volume.is_none());
        if rank(&other) > rank(self) {
            *self = other;
        }
        (self.persistent_volume, self.longhorn) = (pv, longhorn);
    }
}

/// What a mount says, if it is of a volume on a device. That its number is the device's is not asked: btrfs has one of its own.
fn volume(host: &Host, mounts: &Mounts, mount: &Mount) -> Option<Device> {
    let source = Path::new(&mount.source);
    if !source.starts_with("/dev") {
        return None;
    }
    let majmin = mount.majmin?;
    let longhorn = source.strip_prefix("/dev/longhorn").ok().and_then(Path::to_str);
    let longhorn = longhorn.filter(|name| !name.is_empty()).map(str::to_owned);
    let place = place(&mount.mount_point);
    if longhorn.is_none() && place.is_none() {
        return None;
    }
    let staged = place.is_some();
    let persistent_volume = place.and_then(|place| place.persistent_volume);
    let chain = devices::chain(host, mounts, mount).devices.into_iter().next();
    let name = chain.or_else(|| Some(source.file_name()?.to_string_lossy().into_owned()))?;
    Some(Device {
        source: source.to_owned(),
        mount_point: mount.mount_point.clone(),
        whole: mount.root == Path::new("/"),
        majmin,
        fstype: mount.fstype.clone(),
        name,
        longhorn,
        persistent_volume,
        staged,
    })
}

/// A place where kubelet mounts for CSI drivers.
struct Place {
    /// Where the path has its name.
    persistent_volume: Option<String>,
}

/// Whether kubelet mounted it there for a CSI driver.
fn place(path: &Path) -> Option<Place> {
    let names: Vec<&str> = path.iter().map(|name| name.to_str().unwrap_or_default()).collect();
    let persistent_volume = match names[..] {
        [.., "pods", _, "volumes", "kubernetes.io~csi", pv, "mount"]
        | [.., "plugins", "kubernetes.io", "csi", "pv", pv, "globalmount"] => Some(pv.to_owned()),
        [.., "plugins", "kubernetes.io", "csi", _, _, "globalmount"] => None,
        _ => return None,
    };
    Some(Place { persistent_volume })
}

fn look(host: &Host, device: &Device) -> Seen {
    let mut seen = Seen::default();
    if device.staged
        && let Some(folder) = device.mount_point.parent()
    {
        seen.handle = handle(host, &folder.join("vol_data.json"));
        seen.staged =
            host.resolve(folder).ok().and_then(|folder| read::born(CWD, &host.path(folder)));
    }
    if let Err(error) = look_at_mount(host, device, &mut seen) {
        seen.failures.push(SampleError::read(&device.mount_point, error).to_wire());
    }
    match superblock(host, device) {
        Ok(Some(block)) => {
            seen.uuid = Some(block.uuid);
            // ext4 keeps when it was made; the time of its root folder is another way to know the same.
            seen.created = block.created.and_then(unix).or(seen.created);
            seen.mounted = block.mounted.and_then(unix);
        }
        Ok(None) => {}
        // The shipped unit may open no disk, and a pod has none: then the mount tells enough.
        Err(error)
            if matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::NotFound)
                || error.raw_os_error() == Some(rustix::io::Errno::NXIO.raw_os_error()) => {}
        Err(error) => seen.failures.push(SampleError::read(&device.source, error).to_wire()),
    }
    if seen.uuid.is_none() {
        seen.uuid = udev_uuid(host, device.majmin);
    }
    seen.created = seen.created.filter(|created| *created >= EARLIEST);
    seen
}

/// Space, and when the root folder was made, which is when the filesystem was.
fn look_at_mount(host: &Host, device: &Device, seen: &mut Seen) -> io::Result<()> {
    let path = host.path(host.resolve(&device.mount_point)?);
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = rustix::fs::open(path, flags, Mode::empty())?;
    if !is_the_mount(&folder, device)? {
        return Err(io::Error::other("the mount is not seen from here"));
    }
    let fs = rustix::fs::fstatvfs(&folder)?;
    let bytes = |blocks: u64| blocks.saturating_mul(fs.f_frsize);
    seen.space = Some((bytes(fs.f_blocks), bytes(fs.f_blocks.saturating_sub(fs.f_bfree))));
    if device.whole && ["ext4", "ext3", "xfs"].contains(&device.fstype.as_str()) {
        seen.created = read::born(&folder, Path::new(""));
    }
    Ok(())
}

/// Whether this folder is that of the device's mount, and not the one below it, where the mount is not seen. The files of a
/// btrfs have the number of their subvolume, which no mountinfo tells: there the kind of the filesystem has to do, and that
/// something is mounted, which kernels before 5.8 do not say. A node's own disk is often a btrfs as well.
fn is_the_mount(folder: &OwnedFd, device: &Device) -> io::Result<bool> {
    if device.fstype != "btrfs" {
        let dev = rustix::fs::fstat(folder)?.st_dev;
        return Ok((major(dev), minor(dev)) == device.majmin);
    }
    #[expect(clippy::useless_conversion, reason = "the type differs between processors")]
    let kind = i64::from(rustix::fs::fstatfs(folder)?.f_type);
    let said = rustix::fs::statx(folder, "", AtFlags::EMPTY_PATH, StatxFlags::empty()).ok();
    let said = said.filter(|said| said.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT));
    let is_below =
        said.is_some_and(|said| !said.stx_attributes.contains(StatxAttributes::MOUNT_ROOT));
    Ok(kind == BTRFS && !is_below)
}

/// What the beginning of the device says.
fn superblock(host: &Host, device: &Device) -> io::Result<Option<Superblock>> {
    let path = host.path(host.resolve(&device.source)?);
    let is_it = |metadata: &fs::Metadata| {
        let number = metadata.rdev();
        metadata.file_type().is_block_device() && (major(number), minor(number)) == device.majmin
    };
    // Before it is opened: opening some devices does something, and a FIFO waits.
    if !is_it(&fs::symlink_metadata(&path)?) {
        return Ok(None);
    }
    let flags = OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::NOCTTY;
    let flags = i32::try_from(flags.bits()).unwrap_or_default();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(&path)?;
    if !is_it(&file.metadata()?) {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    file.take(superblock::BYTES as u64).read_to_end(&mut bytes)?;
    Ok(superblock::parse(&bytes))
}

/// The UUID that udev found; it needs no right to the device.
fn udev_uuid(host: &Host, (major, minor): (u32, u32)) -> Option<String> {
    let path = PathBuf::from(format!("/run/udev/data/b{major}:{minor}"));
    let (bytes, _) = read::read_dated(host, &path, UDEV_BYTES).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let uuid = text.lines().find_map(|line| line.strip_prefix("E:ID_FS_UUID="))?;
    (!uuid.is_empty() && uuid.len() <= 64).then(|| uuid.to_owned())
}

/// The driver's name of the volume, from the file that kubelet keeps beside the mount. Some drivers put a whole path into
/// it, of which the end is the name.
fn handle(host: &Host, path: &Path) -> Option<String> {
    let (bytes, _) = read::read_dated(host, path, VOL_DATA_BYTES).ok()?;
    let data: serde_json::Value = serde_json::from_slice(&bytes).ok()?;
    let handle = data.get("volumeHandle")?.as_str()?.rsplit('/').next()?;
    (!handle.is_empty()).then(|| handle.to_owned())
}

fn load(host: &Host, path: &Path) -> io::Result<State> {
    match read::read_dated(host, path, STATE_BYTES) {
        Ok((bytes, _)) => Ok(State::Text(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let folder = path.parent().map(|folder| host.resolve(folder)).transpose()?;
            let there = folder.is_some_and(|folder| host.path(folder).is_dir());
            Ok(if there { State::Absent } else { State::NoFolder })
        }
        Err(error) => Err(error),
    }
}

/// Writes a new file beside the old one and puts it in its place, so that there is always a whole one.
fn keep(host: &Host, path: &Path, text: &str) -> io::Result<()> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(ErrorKind::InvalidInput.into());
    };
    let folder = host.path(host.resolve(folder)?);
    let mut new = name.to_owned();
    new.push(".new");
    let (new, path) = (folder.join(new), folder.join(name));
    if fs::symlink_metadata(&path).is_ok_and(|there| !there.is_file()) {
        return Err(io::Error::new(ErrorKind::InvalidData, "not a regular file"));
    }
    // One that was left behind half-written, or put there: it is not followed but taken away.
    match fs::remove_file(&new) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file: File = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_data());
    let kept = written.and_then(|()| fs::rename(&new, &path));
    if kept.is_err() {
        drop(fs::remove_file(&new));
    }
    kept
}

/// A moment in Unix seconds. A date can be printed up to the year 9999 only; a garbled superblock may say more.
pub(super) fn moment(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds.min(253_402_300_799))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    const HASH: &str = "0f1e2d3c";

    /// As k3s with Longhorn shows it, cut down: staged, in a pod, the pod's `subPath`, an NFS share, and others.
    fn mountinfo() -> String {
        let kubelet = "/var/lib/kubelet";
        let staged =
            format!("{kubelet}/plugins/kubernetes.io/csi/driver.longhorn.io/{HASH}/globalmount");
        let pod = format!("{kubelet}/pods/9d1c/volumes/kubernetes.io~csi");
        format!(
            "22 1 253:1 / / rw - ext4 /dev/vda1 rw\n\
             30 22 8:16 / {pod}/pvc-1/mount rw - ext4 /dev/longhorn/pvc-1 rw\n\
             31 22 8:16 / {staged} rw - ext4 /dev/longhorn/pvc-1 rw\n\
             32 22 8:16 /sub {kubelet}/pods/9d1c/volume-subpaths/pvc-1/app/0 rw - ext4 /dev/longhorn/pvc-1 rw\n\
             33 22 0:60 / {pod}/pvc-2/mount rw - nfs4 10.0.0.1:/pvc-2 rw\n\
             34 22 254:3 / /var/snap/microk8s/common{pod}/pvc-3/mount rw - xfs /dev/mapper/pvc-3 rw\n\
             35 22 8:32 / /mnt/own rw - ext4 /dev/longhorn/own rw\n\
             36 22 8:48 / /mnt/disk rw - ext4 /dev/sdd rw\n\
             37 22 0:61 / {pod}/pvc-4/mount rw - tmpfs tmpfs rw\n\
             38 22 8:64 / {kubelet}/plugins/kubernetes.io/csi/pv/pvc-5/globalmount rw - ext4 /dev/sde rw\n"
        )
    }

    fn root() -> (tempfile::TempDir, Host) {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::at(dir.path());
        (dir, host)
    }

    fn put(host: &Host, path: &str, text: &str) {
        let path = host.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn each_device_of_a_csi_driver_or_of_longhorn_is_found_once() {
        let (_dir, host) = root();
        put(&host, "/proc/1/mountinfo", &mountinfo());
        let (found, left_out) = find(&host).unwrap();
        let said: Vec<_> = found
            .iter()
            .map(|d| {
                let own = d.longhorn.as_deref().unwrap_or("-");
                let pv = d.persistent_volume.as_deref().unwrap_or("-");
                format!("{} {own} {pv} {}", d.name, d.staged)
            })
            .collect();
        let expected =
            ["pvc-1 pvc-1 pvc-1 true", "pvc-3 - pvc-3 true", "own own - false", "sde - pvc-5 true"];
        assert_eq!((said, left_out), (expected.map(str::to_owned).to_vec(), 0));
        assert!(found[0].mount_point.ends_with("globalmount"), "the staged mount is looked at");
    }

    #[test]
    fn devices_beyond_the_cap_are_counted_and_not_looked_at() {
        let (_dir, host) = root();
        let lines: String = (0..70)
            .map(|n| format!("9 1 8:{n} / /mnt/{n} rw - ext4 /dev/longhorn/v{n} rw\n"))
            .collect();
        put(&host, "/proc/1/mountinfo", &lines);
        let (found, left_out) = find(&host).unwrap();
        assert_eq!((found.len(), left_out), (MAX_DEVICES, 6));
    }

    fn device(mount_point: &str, source: &str, majmin: (u32, u32)) -> Device {
        Device {
            source: source.into(),
            mount_point: mount_point.into(),
            whole: true,
            majmin,
            fstype: "ext4".into(),
            name: "sdb".into(),
            longhorn: None,
            persistent_volume: None,
            staged: true,
        }
    }

    #[test]
    fn a_mount_that_is_not_seen_from_here_is_a_failure_and_its_neighbour_s_space_is_not_taken() {
        let (_dir, host) = root();
        put(&host, "/staged/globalmount/file", "x");
        put(&host, "/staged/vol_data.json", r#"{"driverName":"d","volumeHandle":"a/b/pvc-9"}"#);
        let seen = look(&host, &device("/staged/globalmount", "/dev/none", (4095, 1)));
        assert_eq!((seen.space, seen.created, seen.uuid), (None, None, None));
        assert_eq!(seen.failures.len(), 1, "{:?}", seen.failures);
        assert_eq!(seen.handle.as_deref(), Some("pvc-9"), "the end of a path");
        let mut btrfs = device("/staged/globalmount", "/dev/none", (0, 45));
        btrfs.fstype = "btrfs".into();
        let seen = look(&host, &btrfs);
        assert_eq!((seen.space, seen.failures.len()), (None, 1), "{:?}", seen.failures);
    }

    #[test]
    fn a_device_that_is_a_fifo_a_file_or_a_link_out_of_the_root_is_not_opened() {
        let (dir, host) = root();
        fs::create_dir(dir.path().join("dev")).unwrap();
        let fifo = dir.path().join("dev/fifo");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        fs::write(dir.path().join("dev/file"), vec![0; 4096]).unwrap();
        symlink("/etc/passwd", dir.path().join("dev/link")).unwrap();
        for (name, is_there) in [("fifo", true), ("file", true), ("link", false)] {
            let found = superblock(&host, &device("/m", &format!("/dev/{name}"), (7, 0)));
            match found {
                Ok(found) => assert!(is_there && found.is_none(), "{name}"),
                Err(error) => {
                    assert!(!is_there && error.kind() == ErrorKind::NotFound, "{name}: {error}");
                }
            }
        }
    }

    #[test]
    fn udev_knows_the_uuid_where_the_device_is_closed() {
        let (_dir, host) = root();
        let text = "S:disk/by-id/x\nE:ID_FS_TYPE=ext4\nE:ID_FS_UUID=1a77-41b3\nG:systemd\n";
        put(&host, "/run/udev/data/b8:16", text);
        assert_eq!(udev_uuid(&host, (8, 16)).as_deref(), Some("1a77-41b3"));
        assert_eq!(udev_uuid(&host, (8, 17)), None);
    }

    #[test]
    fn a_file_of_kubelet_that_is_damaged_too_long_or_a_directory_gives_no_name() {
        let (_dir, host) = root();
        put(&host, "/a", "{\"volumeHandle\":");
        put(&host, "/b", &format!("{{\"volumeHandle\":\"x\",\"y\":\"{}\"}}", "z".repeat(20_000)));
        put(&host, "/c", r#"{"volumeHandle":"ends/"}"#);
        put(&host, "/d/e", "");
        for path in ["/a", "/b", "/c", "/d", "/none"] {
            assert_eq!(handle(&host, Path::new(path)), None, "{path}");
        }
    }

    #[test]
    fn the_state_file_is_replaced_as_a_whole_and_readable_by_its_owner_only() {
        let (dir, host) = root();
        fs::create_dir(dir.path().join("private")).unwrap();
        symlink("/private", dir.path().join("state")).unwrap();
        let path = Path::new("/state/volumes.json");
        assert_eq!(load(&host, path).unwrap(), State::Absent);
        fs::write(dir.path().join("private/volumes.json.new"), "half").unwrap();
        for text in ["first", "second"] {
            keep(&host, path, text).unwrap();
            assert_eq!(load(&host, path).unwrap(), State::Text(text.into()));
        }
        let names = read::names(&host, Path::new("/private")).unwrap();
        assert_eq!(names, ["volumes.json"]);
        let mode = fs::metadata(dir.path().join("private/volumes.json")).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_state_file_without_a_folder_is_not_wanted_and_one_that_is_no_file_is_an_error() {
        let (dir, host) = root();
        assert_eq!(load(&host, Path::new("/none/volumes.json")).unwrap(), State::NoFolder);
        assert!(keep(&host, Path::new("/none/volumes.json"), "x").is_err());
        fs::create_dir_all(dir.path().join("s/volumes.json")).unwrap();
        assert!(load(&host, Path::new("/s/volumes.json")).is_err());
        assert!(keep(&host, Path::new("/s/volumes.json"), "x").is_err());
        symlink("/s/elsewhere", dir.path().join("s/linked.json")).unwrap();
        assert!(keep(&host, Path::new("/s/linked.json"), "x").is_err());
        assert!(!dir.path().join("s/elsewhere").exists());
    }
}
