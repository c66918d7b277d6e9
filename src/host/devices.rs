//! The block devices under a mount: partitions, device mapper and RAID down to whole disks.
//!
//! Reads links and small files below `/sys/dev/block`, `/sys/class/block` and `/sys/fs/btrfs`;
//! opens no device. A loop device is followed through its file to the disk below. Without a block
//! device (network, ZFS, overlay, tmpfs) the chain is unknown and empty. About 30 µs for one disk.

use std::path::{Path, PathBuf};

use super::Host;
use super::mounts::{Mount, Mounts};
use super::read::{names, read_virtual};

/// Devices in a chain, at most; a RAID of that many disks is cut off.
const MAX_DEVICES: usize = 64;
/// Loop devices on loop devices followed.
const MAX_LOOPS: usize = 4;

/// Kernel names of the devices under a mount.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chain {
    /// Every device, from the mounted one down (`dm-0`, `md0`, `sda2`, `sda`); empty when unknown.
    pub devices: Vec<String>,
    /// Those with nothing below them.
    pub disks: Vec<String>,
}

/// The devices under a mount of the host.
pub fn chain(host: &Host, mounts: &Mounts, mount: &Mount) -> Chain {
    let mut chain = Chain::default();
    descend_mount(host, mounts, mount, 0, &mut chain);
    chain
}

/// The devices under a host path, links in it followed.
pub fn chain_of_path(host: &Host, mounts: &Mounts, path: &Path) -> Chain {
    let holder = host.resolve(path).ok().and_then(|path| mounts.holder(path));
    holder.map(|mount| chain(host, mounts, mount)).unwrap_or_default()
}

/// The chain that the configuration names. Its disks are those that `/sys` shows with nothing below
/// them; where it shows none of them so, all.
pub fn told(host: &Host, devices: &[String]) -> Chain {
    let is_whole = |name: &&String| {
        let name = name.replace('/', "!");
        device_folder(host, &format!("/sys/class/block/{name}")).is_some_and(|folder| {
            !host.path(folder.join("partition")).exists()
                && names(host, &folder.join("slaves")).unwrap_or_default().is_empty()
        })
    };
    let mut disks: Vec<String> = devices.iter().filter(is_whole).cloned().collect();
    if disks.is_empty() {
        disks = devices.to_vec();
    }
    Chain { devices: devices.to_vec(), disks }
}

/// Adds the devices of a mount; whether any was found.
fn descend_mount(
    host: &Host,
    mounts: &Mounts,
    mount: &Mount,
    loops: usize,
    chain: &mut Chain,
) -> bool {
    let before = chain.devices.len();
    for folder in mounted_devices(host, mount) {
        descend(host, mounts, &folder, loops, chain);
    }
    chain.devices.len() > before
}

/// The folders below `/sys/devices` of the devices that a filesystem lies on.
fn mounted_devices(host: &Host, mount: &Mount) -> Vec<PathBuf> {
    if let Some((major, minor)) = mount.majmin.filter(|(major, _)| *major != 0) {
        return device_folder(host, &format!("/sys/dev/block/{major}:{minor}"))
            .into_iter()
            .collect();
    }
    let has_device = mount.fstype == "btrfs" || mount.majmin.is_none();
    let Some(name) = has_device.then(|| device_name(host, &mount.source)).flatten() else {
        return Vec::new();
    };
    let members = if mount.fstype == "btrfs" { btrfs_members(host, &name) } else { vec![name] };
    members
        .iter()
        .filter_map(|name| device_folder(host, &format!("/sys/class/block/{name}")))
        .collect()
}

/// The end of a link to a device's folder.
fn device_folder(host: &Host, link: &str) -> Option<PathBuf> {
    let folder = host.resolve(link).ok()?;
    host.path(&folder).is_dir().then_some(folder)
}

/// The kernel's name of a file below `/dev`.
fn device_name(host: &Host, source: &str) -> Option<String> {
    if !source.starts_with("/dev/") {
        return None;
    }
    let resolved = host.resolve(source).ok()?;
    let name = resolved.strip_prefix("/dev").ok()?.to_str()?;
    if let Some(mapped) = name.strip_prefix("mapper/") {
        return mapped_device(host, mapped);
    }
    // In sysfs `cciss/c0d0` is `cciss!c0d0`.
    Some(name.replace('/', "!"))
}

/// The `dm-N` of a name below `/dev/mapper`, for a root whose `/dev` is not there.
fn mapped_device(host: &Host, mapped: &str) -> Option<String> {
    let devices = names(host, Path::new("/sys/class/block")).ok()?;
    devices.into_iter().filter(|name| name.starts_with("dm-")).find(|name| {
        attribute(host, Path::new(&format!("/sys/class/block/{name}")), "dm/name")
            .is_some_and(|found| found == mapped)
    })
}

/// Every device of the btrfs that `name` belongs to; `name` alone where sysfs does not tell.
fn btrfs_members(host: &Host, name: &str) -> Vec<String> {
    let all = Path::new("/sys/fs/btrfs");
    names(host, all)
        .unwrap_or_default()
        .into_iter()
        .filter_map(|uuid| names(host, &all.join(uuid).join("devices")).ok())
        .find(|members| members.iter().any(|member| member == name))
        .unwrap_or_else(|| vec![name.to_owned()])
}

/// Adds a device and everything below it, each once.
fn descend(host: &Host, mounts: &Mounts, folder: &Path, loops: usize, chain: &mut Chain) {
    let Some(name) = folder.file_name().and_then(|name| name.to_str()) else { return };
    let name = name.replace('!', "/");
    if chain.devices.len() >= MAX_DEVICES || chain.devices.contains(&name) {
        return;
    }
    chain.devices.push(name.clone());
    // A partition's folder lies in that of its disk.
    if host.path(folder.join("partition")).exists() {
        if let Some(parent) = folder.parent() {
            descend(host, mounts, parent, loops, chain);
        }
        return;
    }
    let slaves = folder.join("slaves");
    let mut whole = true;
    for slave in names(host, &slaves).unwrap_or_default() {
        if let Ok(below) = host.resolve(slaves.join(slave)) {
            whole = false;
            descend(host, mounts, &below, loops, chain);
        }
    }
    if let Some(file) = backing_file(host, folder).filter(|_| loops < MAX_LOOPS) {
        let holder = host.resolve(file).ok().and_then(|file| mounts.holder(file));
        let below =
            holder.is_some_and(|mount| descend_mount(host, mounts, mount, loops + 1, chain));
        whole &= !below;
    }
    if whole {
        chain.disks.push(name);
    }
}

/// The file under a loop device.
fn backing_file(host: &Host, folder: &Path) -> Option<PathBuf> {
    let file = attribute(host, folder, "loop/backing_file")?;
    let file = file.strip_suffix(" (deleted)").unwrap_or(&file);
    Some(file.into()).filter(|file: &PathBuf| file.is_absolute())
}

/// A one-line file of a device.
fn attribute(host: &Host, folder: &Path, name: &str) -> Option<String> {
    let path = host.path(host.resolve(folder.join(name)).ok()?);
    let bytes = read_virtual(&path, 4096).ok()?;
    Some(String::from_utf8_lossy(&bytes).trim_end().to_owned())
}
