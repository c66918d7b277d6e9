//! Real block devices that fail on demand: loop devices on a file that is cut off under them, or on a file
//! whose syncs are slow, fail or hang (see [`super::fuse`]).
//!
//! The kernel's own records follow: `I/O error, dev loopN, sector …` of facility 0. Everything is
//! unmounted, detached and removed when the value is dropped; what a killed test run left behind is removed
//! when the next one makes its first disk.

use super::fuse::{Fault, FaultyFile, Operation};
use super::process::{self, bound_command, run};
use super::{TEMP_PREFIX, need_root, program, temp_dir};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::Duration;

const MIB: u64 = 1 << 20;

/// A filesystem to make on a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Ext4,
    Xfs,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        }
    }

    pub(super) fn make(self, device: &Path) {
        let device = device.as_os_str();
        match self {
            // Everything is written at once: nothing in the background disturbs a test later.
            Self::Ext4 => run(
                "mkfs.ext4",
                ["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"]
                    .map(AsRef::as_ref)
                    .iter()
                    .chain([&device]),
            ),
            Self::Xfs => run("mkfs.xfs", ["-q".as_ref(), "-f".as_ref(), device]),
        };
    }
}

/// A loop device. Detached when dropped.
pub(crate) struct Loop {
    device: PathBuf,
}

impl Loop {
    /// Attaches a file. A child does it, so that the file may be one that the test process serves.
    #[track_caller]
    pub(crate) fn attach(file: &Path) -> Self {
        need_root("a loop device");
        remove_leftovers();
        let args = ["-f".as_ref(), "--show".as_ref(), "--direct-io=off".as_ref(), file.as_os_str()];
        let device = run("losetup", args);
        Self { device: device.trim().into() }
    }

    /// `/dev/loopN`.
    pub(crate) fn device(&self) -> &Path {
        &self.device
    }

    /// `loopN`, as the kernel's records and `/proc/diskstats` name it.
    pub(crate) fn name(&self) -> String {
        self.device.file_name().expect("a device path").to_string_lossy().into_owned()
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        try_run("losetup", ["-d".as_ref(), self.device.as_os_str()]);
    }
}

/// A mounted filesystem. Unmounted when dropped.
pub(crate) struct Mount {
    folder: tempfile::TempDir,
}

impl Mount {
    #[track_caller]
    fn new(kind: Kind, device: &Path, options: &str) -> Self {
        let folder = temp_dir("mount");
        let path = folder.path().as_os_str();
        let args = ["-t", kind.name(), "-o", options].map(AsRef::as_ref);
        run("mount", args.into_iter().chain([device.as_os_str(), path]));
        Self { folder }
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Mounts it again read-only, as an administrator does.
    #[track_caller]
    pub(crate) fn make_read_only(&self) {
        run("mount", ["-o".as_ref(), "remount,ro".as_ref(), self.path().as_os_str()]);
    }

    /// Writes a file until nothing is left of the space, the reserve of root included.
    #[track_caller]
    pub(crate) fn fill(&self) {
        let full = self.path().join("filler");
        let of = format!("of={}", full.display());
        for block in ["1M", "4k"] {
            let mut command = bound_command(program("dd"));
            command.args([
                "if=/dev/zero",
                &of,
                &format!("bs={block}"),
                "oflag=append",
                "conv=notrunc",
            ]);
            let output = process::output(command, Duration::from_mins(1));
            assert!(output.stderr.contains("No space left"), "dd did not fill: {}", output.stderr);
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        unmount(self.folder.path());
    }
}

/// A healthy disk on a temporary file, with or without a filesystem, until it is cut off.
pub(crate) struct Disk {
    // Dropped in this order: the mount, the device under it, its file.
    mount: Option<Mount>,
    device: Loop,
    file: File,
    size: u64,
    _folder: tempfile::TempDir,
}

impl Disk {
    /// A disk of `size` bytes without a filesystem.
    #[track_caller]
    pub(crate) fn raw(size: u64) -> Self {
        let folder = temp_dir("disk");
        let path = folder.path().join("image");
        let mut options = File::options();
        let file = options.read(true).write(true).create_new(true).open(&path).expect("an image");
        file.set_len(size).expect("a sparse image");
        Self { mount: None, device: Loop::attach(&path), file, size, _folder: folder }
    }

    /// A disk with a mounted filesystem: 64 MiB of ext4, or 320 MiB of xfs, which takes no less.
    #[track_caller]
    pub(crate) fn with(kind: Kind) -> Self {
        Self::sized(kind, if kind == Kind::Xfs { 320 * MIB } else { 64 * MIB })
    }

    /// A disk of `size` bytes with a mounted filesystem.
    #[track_caller]
    pub(crate) fn sized(kind: Kind, size: u64) -> Self {
        let mut disk = Self::raw(size);
        kind.make(disk.device.device());
        disk.mount = Some(Mount::new(kind, disk.device.device(), "defaults"));
        disk
    }

    pub(crate) fn device(&self) -> &Loop {
        &self.device
    }

    /// The mounted filesystem.
    #[track_caller]
    pub(crate) fn mount(&self) -> &Mount {
        self.mount.as_ref().expect("a disk with a filesystem")
    }

    /// Cuts the image off: reading any sector from `length` on is a kernel I/O error from now on.
    ///
    /// Writing is none: it makes the file longer again. For write errors see [`SlowDisk`].
    pub(crate) fn truncate(&self, length: u64) {
        self.file.set_len(length).expect("a shorter image");
    }

    /// Gives the image its length back; what was cut off is zeros.
    pub(crate) fn restore(&self) {
        self.file.set_len(self.size).expect("a longer image");
    }

    /// Writes behind the filesystem's back, for example to spoil a checksum.
    pub(crate) fn overwrite(&self, offset: u64, bytes: &[u8]) {
        self.file.write_all_at(bytes, offset).expect("the image takes a write");
    }

    /// Reads one 4 KiB block of the device past the page cache; the error text of `dd` if that fails.
    pub(crate) fn read_block(&self, number: u64) -> Result<(), String> {
        let input = format!("if={}", self.device.device().display());
        let skip = format!("skip={number}");
        let mut command = bound_command(program("dd"));
        command.args([&input, "of=/dev/null", "bs=4k", "count=1", &skip, "iflag=direct"]);
        let output = process::output(command, Duration::from_secs(20));
        if output.status.success() { Ok(()) } else { Err(output.stderr) }
    }
}

/// A disk whose writes and syncs can be slowed, failed and hung, with a mounted filesystem on it.
///
/// Never touch the filesystem from the test process: let a child do it.
pub(crate) struct SlowDisk {
    mount: Mount,
    device: Loop,
    file: FaultyFile,
}

impl SlowDisk {
    /// 64 MiB of ext4.
    #[track_caller]
    pub(crate) fn new() -> Self {
        Self::sized(Kind::Ext4, 64 * MIB)
    }

    #[track_caller]
    pub(crate) fn sized(kind: Kind, size: u64) -> Self {
        let file = FaultyFile::new(size);
        let device = Loop::attach(&file.path());
        kind.make(device.device());
        let mount = Mount::new(kind, device.device(), "defaults");
        Self { mount, device, file }
    }

    pub(crate) fn mount(&self) -> &Mount {
        &self.mount
    }

    pub(crate) fn device(&self) -> &Loop {
        &self.device
    }

    /// The file under the device, with all its faults.
    pub(crate) fn file(&self) -> &FaultyFile {
        &self.file
    }

    /// Every flush of the device takes this much longer. On ext4 one `fdatasync` is one or two flushes.
    pub(crate) fn set_delay(&self, delay: Duration) {
        self.file.faults().set(Operation::Sync, Fault { delay, ..Fault::default() });
    }

    /// Writes and syncs fail with this errno. Loop devices report every failed flush as EIO.
    pub(crate) fn set_error(&self, errno: i32) {
        let fault = Fault { errno: Some(errno), ..Fault::default() };
        self.file.faults().set(Operation::Write, fault);
        self.file.faults().set(Operation::Sync, fault);
    }

    /// Writes and syncs are not answered until [`Self::release`].
    pub(crate) fn hang(&self) {
        let fault = Fault { hang: true, ..Fault::default() };
        self.file.faults().set(Operation::Write, fault);
        self.file.faults().set(Operation::Sync, fault);
    }

    /// Healthy again; what hung is answered.
    pub(crate) fn release(&self) {
        self.file.faults().clear();
    }
}

impl Drop for SlowDisk {
    fn drop(&mut self) {
        // Runs before the fields are dropped, and unmounting would wait for what hangs.
        self.release();
    }
}

/// Unmounts; takes the mount out of the tree if it is still in use.
pub(super) fn unmount(path: &Path) {
    if !try_run("umount", [path]) {
        try_run("umount", ["-l".as_ref(), path.as_os_str()]);
    }
}

/// For clean-up: a failure is reported, and the rest of the clean-up goes on.
fn try_run<S: AsRef<std::ffi::OsStr>>(name: &str, args: impl IntoIterator<Item = S>) -> bool {
    let mut command = bound_command(program(name));
    command.args(args);
    let what = format!("{command:?}");
    let limit = Duration::from_secs(20);
    let ended = std::panic::catch_unwind(AssertUnwindSafe(|| process::output(command, limit)));
    match ended {
        Ok(output) if output.status.success() => true,
        Ok(output) => {
            eprintln!("clean-up: {what}: {}", output.stderr.trim());
            false
        }
        Err(_) => false,
    }
}

/// Removes mounts, loop devices and folders of test processes that were killed.
fn remove_leftovers() {
    static DONE: Once = Once::new();
    DONE.call_once(|| {
        // Devices are looked up first: their files are known by path only while all is mounted.
        let is_left = |device: &PathBuf| {
            let file = std::fs::read_to_string(device.join("loop/backing_file"));
            file.is_ok_and(|file| is_leftover(&file))
        };
        let devices: Vec<_> = entries("/sys/block").into_iter().filter(is_left).collect();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let paths = mounts.lines().filter_map(|line| line.split(' ').nth(4));
        for path in paths.filter(|path| is_leftover(path)).collect::<Vec<_>>().iter().rev() {
            try_run("umount", ["-l", path]);
        }
        for device in devices {
            let name = device.file_name().unwrap_or_default().to_string_lossy().into_owned();
            try_run("losetup", ["-d".to_owned(), format!("/dev/{name}")]);
        }
        for folder in entries(std::env::temp_dir()) {
            if is_leftover(&folder.to_string_lossy()) {
                std::fs::remove_dir_all(folder).ok();
            }
        }
    });
}

fn entries(folder: impl AsRef<Path>) -> Vec<PathBuf> {
    std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// True for a path of a laboratory whose process is gone.
pub(super) fn is_leftover(path: &str) -> bool {
    let Some((_, rest)) = path.split_once(TEMP_PREFIX) else { return false };
    let pid = rest.split('.').next().unwrap_or_default();
    pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists()
}
