//! The host's mounts.
//!
//! Reads `/proc/1/mountinfo`, which shows the host's namespace and not ours, else
//! `/proc/self/mountinfo`, else `/proc/mounts`. Parsed line by line: one bad line costs that line,
//! and names that are not UTF-8 keep their bytes. About 30 µs for 20 mounts.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use super::read::read_virtual;
use super::{Host, Origin};

/// Bytes read; a node with 1,000 containers has about 2 MiB. Lines beyond it are not seen.
const MAX_BYTES: u64 = 8 << 20;

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Where it is mounted, as the host sees it.
    pub mount_point: PathBuf,
    /// The directory of the filesystem that is mounted; not `/` for a bind mount.
    pub root: PathBuf,
    /// Major and minor number of the filesystem's device; major 0 for one without a block device
    /// (and for btrfs). `None` where only `/proc/mounts` could be read.
    pub majmin: Option<(u32, u32)>,
    /// The filesystem's type.
    pub fstype: String,
    /// What is mounted: `/dev/vda1`, `rpool/ROOT`, `overlay`.
    pub source: String,
    /// Options of this mount, which may differ between namespaces.
    pub options: String,
    /// Options of the filesystem itself. Where only `/proc/mounts` could be read, those of the
    /// mount.
    pub super_options: String,
}

impl Mount {
    /// Whether the filesystem itself is read-only, by order or after an error.
    pub fn is_readonly(&self) -> bool {
        self.super_options.split(',').any(|option| matches!(option, "ro" | "emergency_ro"))
    }

    /// Where an absolute path that this mount holds lies in its filesystem.
    pub(super) fn origin(&self, path: &Path) -> Option<Origin> {
        let below = path.strip_prefix(&self.mount_point).ok()?;
        let path = self.root.join(below).to_string_lossy().into_owned().into();
        Some(Origin { majmin: self.majmin?, path })
    }
}

/// Every mount of the host, in the kernel's order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mounts {
    list: Vec<Mount>,
    skipped: usize,
}

impl Mounts {
    /// Reads the host's mounts.
    ///
    /// # Errors
    ///
    /// When none of the three files could be read; the error is that of the first.
    pub fn read(host: &Host) -> io::Result<Self> {
        let read = |path| read_virtual(&host.path(path), MAX_BYTES);
        read("/proc/1/mountinfo")
            .or_else(|first| read("/proc/self/mountinfo").map_err(|_| first))
            .map(|bytes| Self::parse(&bytes, mountinfo_line))
            .or_else(|first| {
                let bytes = read("/proc/mounts").map_err(|_| first)?;
                Ok(Self::parse(&bytes, mounts_line))
            })
    }

    /// Reads the mounts that a process sees.
    ///
    /// # Errors
    ///
    /// When the file cannot be read: the process is gone, or not ours to see.
    pub fn of_process(proc: &Path, pid: u32) -> io::Result<Self> {
        let bytes = read_virtual(&proc.join(format!("{pid}/mountinfo")), MAX_BYTES)?;
        Ok(Self::parse(&bytes, mountinfo_line))
    }

    pub(super) fn parse(bytes: &[u8], parse_line: fn(&[u8]) -> Option<Mount>) -> Self {
        let mut mounts = Self::default();
        for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            match parse_line(line) {
                Some(mount) => mounts.list.push(mount),
                None => mounts.skipped += 1,
            }
        }
        mounts
    }

    /// Every mount, in the kernel's order: a later one lies over an earlier one of the same place.
    pub fn iter(&self) -> impl Iterator<Item = &Mount> {
        self.list.iter()
    }

    /// Lines that could not be parsed.
    pub fn skipped(&self) -> usize {
        self.skipped
    }

    /// Whether a directory can be seen here, under whatever name.
    pub fn show(&self, origin: &Origin) -> bool {
        self.place(origin).is_some()
    }

    /// Under which path a directory can be seen here; of several by the mount that shows most of its filesystem.
    pub(super) fn place(&self, origin: &Origin) -> Option<PathBuf> {
        let same = self.list.iter().filter(|mount| mount.majmin == Some(origin.majmin));
        let shown =
            same.filter_map(|mount| Some((mount, origin.path.strip_prefix(&mount.root).ok()?)));
        let (mount, below) = shown.min_by_key(|(mount, _)| mount.root.components().count())?;
        Some(mount.mount_point.join(below))
    }

    /// The mount that holds an absolute host path: the longest that is a prefix by whole names,
    /// and of equals the last, which lies on top. Links in the path are not followed; use
    /// [`Host::resolve`] first.
    pub fn holder(&self, path: impl AsRef<Path>) -> Option<&Mount> {
        let path = path.as_ref();
        // `max_by_key` takes the last of equals.
        self.list
            .iter()
            .filter(|mount| path.starts_with(&mount.mount_point))
            .max_by_key(|mount| mount.mount_point.components().count())
    }
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`
pub(super) fn mountinfo_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let (_id, _parent) = (fields.next()?, fields.next()?);
    let majmin = text(fields.next()?);
    let (major, minor) = majmin.split_once(':')?;
    let root = path(fields.next()?);
    let mount_point = path(fields.next()?);
    let options = text(fields.next()?);
    // Any number of optional fields ends with a lone dash.
    fields.find(|field| *field == b"-")?;
    Some(Mount {
        mount_point: mount_point.is_absolute().then_some(mount_point)?,
        root,
        majmin: Some((major.parse().ok()?, minor.parse().ok()?)),
        options,
        fstype: text(fields.next()?),
        source: text(fields.next()?),
        super_options: text(fields.next()?),
    })
}

/// `/dev/sda2 / ext4 rw,relatime 0 0`
pub(super) fn mounts_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let source = text(fields.next()?);
    let mount_point = path(fields.next()?);
    let fstype = text(fields.next()?);
    let options = text(fields.next()?);
    Some(Mount {
        mount_point: mount_point.is_absolute().then_some(mount_point)?,
        root: PathBuf::from("/"),
        majmin: None,
        fstype,
        source,
        super_options: options.clone(),
        options,
    })
}

fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(&unescape(field)).into_owned()
}

fn path(field: &[u8]) -> PathBuf {
    OsString::from_vec(unescape(field)).into()
}

/// Puts back the blanks, tabs, newlines and backslashes that the kernel writes as `\040`.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        let escaped = match tail {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..] if *first == b'\\' => {
                Some((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'))
            }
            _ => None,
        };
        bytes.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() { &tail[3..] } else { tail };
    }
    bytes
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use proptest::prelude::*;

    use super::*;

    /// Captured on Debian 13, cut down.
    const CAPTURED: &[u8] = b"\
22 1 253:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,discard,errors=remount-ro
24 22 0:22 / /proc rw,nosuid,nodev,noexec,relatime shared:5 - proc proc rw
61 22 253:2 / /var/lib/rancher rw,relatime shared:30 - xfs /dev/mapper/vg0-k3s rw,attr2
70 22 253:3 / /mnt/with\\040blank\\134 rw,relatime - ext4 /dev/vdb1 rw
71 22 253:4 / /mnt/caf\xe9 ro,relatime shared:9 master:2 - ext4 /dev/vdc1 rw,emergency_ro
72 22 0:50 / /mnt/empty rw - tmpfs  rw
73 22 253:5 / /var/lib/rancher rw,relatime shared:31 - ext4 /dev/vdd1 ro
";

    fn parse(bytes: &[u8]) -> Mounts {
        Mounts::parse(bytes, mountinfo_line)
    }

    #[test]
    fn captured_lines_are_parsed() {
        let mounts = parse(CAPTURED);
        assert_eq!(mounts.skipped(), 0);
        let root = mounts.holder("/etc").unwrap();
        assert_eq!(root.majmin, Some((253, 1)));
        assert_eq!((root.fstype.as_str(), root.source.as_str()), ("ext4", "/dev/vda1"));
        assert_eq!(root.options, "rw,relatime");
        assert_eq!(mounts.holder("/mnt/empty/x").unwrap().source, "");
    }

    #[test]
    fn a_directory_is_seen_by_whoever_has_its_part_of_the_filesystem() {
        let host = parse(CAPTURED);
        let path = Path::new("/var/lib/etcd");
        let origin = host.holder(path).unwrap().origin(path).unwrap();
        assert_eq!((origin.majmin, origin.path.as_path()), ((253, 1), path));
        assert!(host.show(&origin));
        // A pod has it by `hostPath`, another one only a part of the same disk beside it.
        let own = parse(b"90 80 253:1 /var/lib/etcd /data rw - ext4 /dev/vda1 rw\n");
        assert!(own.show(&origin));
        let pods = "/var/lib/kubelet/pods/1/volumes/kubernetes.io~empty-dir/data";
        for root in [pods, "/var/lib/etcd2", "/var/lib/etcd/member"] {
            let line = format!("90 80 253:1 {root} /data rw - ext4 /dev/vda1 rw\n");
            assert!(!parse(line.as_bytes()).show(&origin), "{root}");
        }
        let other_disk = parse(b"90 80 253:2 / / rw - ext4 /dev/vdb1 rw\n");
        assert!(!other_disk.show(&origin));
        let within = own.holder("/data/member").unwrap().origin(Path::new("/data/member")).unwrap();
        assert_eq!(within.path, Path::new("/var/lib/etcd/member"));
    }

    #[test]
    fn escapes_and_invalid_utf_8_are_understood() {
        let mounts = parse(CAPTURED);
        let points: Vec<&[u8]> =
            mounts.iter().map(|m| m.mount_point.as_os_str().as_bytes()).collect();
        assert_eq!(points[3], b"/mnt/with blank\\");
        assert_eq!(points[4], b"/mnt/caf\xe9");
    }

    #[test]
    fn a_bad_line_is_skipped_and_counted() {
        let mut bytes = CAPTURED.to_vec();
        bytes.extend(b"garbage\n1 2 x:y / /a rw - ext4 a rw\n1 2 8:1 / rel rw - ext4 a rw\n1 2 8:1 / /a rw ext4\n");
        let mounts = parse(&bytes);
        assert_eq!(mounts.skipped(), 4);
        assert_eq!(mounts.iter().count(), 7);
    }

    #[test]
    fn the_holder_is_the_longest_by_whole_names_and_of_equals_the_last() {
        let mounts = parse(CAPTURED);
        let point = |path: &str| mounts.holder(path).unwrap().source.clone();
        assert_eq!(point("/var/lib/rancher/k3s"), "/dev/vdd1");
        assert_eq!(point("/var/lib/rancherous"), "/dev/vda1");
        assert_eq!(point("/"), "/dev/vda1");
        assert_eq!(mounts.holder("relative"), None);
    }

    #[test]
    fn read_only_is_taken_from_the_filesystem_and_not_from_the_mount() {
        let mounts = parse(CAPTURED);
        assert!(mounts.holder("/var/lib/rancher").unwrap().is_readonly());
        let accented = mounts.iter().nth(4).unwrap();
        assert!(accented.is_readonly(), "emergency_ro");
        let line = b"1 0 8:1 / / ro,relatime - ext4 /dev/sda1 rw,errors=remount-ro\n";
        assert!(!parse(line).holder("/").unwrap().is_readonly());
    }

    #[test]
    fn the_three_files_are_tried_in_turn() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::at(dir.path());
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let source = || Mounts::read(&host).unwrap().holder("/").unwrap().source.clone();
        assert_eq!(Mounts::read(&host).unwrap_err().kind(), io::ErrorKind::NotFound);
        write("proc/mounts", "/dev/c / ext4 ro,relatime 0 0\n");
        assert_eq!(source(), "/dev/c");
        assert!(Mounts::read(&host).unwrap().holder("/").unwrap().is_readonly());
        write("proc/self/mountinfo", "1 0 8:1 / / rw - ext4 /dev/b rw\n");
        assert_eq!(source(), "/dev/b");
        write("proc/1/mountinfo", "1 0 8:1 / / rw - ext4 /dev/a rw\n");
        assert_eq!(source(), "/dev/a");
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let lines = bytes.split(|b| *b == b'\n').filter(|l| !l.is_empty()).count();
            let mounts = parse(&bytes);
            prop_assert_eq!(mounts.iter().count() + mounts.skipped(), lines);
        }

        #[test]
        fn a_line_of_the_kernel_comes_back_whole(
            place in proptest::collection::vec(1u8.., 0..40),
            source in proptest::collection::vec(1u8.., 1..40),
            tags in proptest::collection::vec("(shared|master):[0-9]{1,3}", 0..3),
            major: u32,
            minor: u32,
        ) {
            let escaped = |bytes: &[u8]| -> Vec<u8> {
                bytes.iter().flat_map(|byte| match byte {
                    b' ' | b'\t' | b'\n' | b'\\' | b'#' => format!("\\{byte:03o}").into_bytes(),
                    other => vec![*other],
                }).collect()
            };
            let mut line = format!("1 2 {major}:{minor} / /").into_bytes();
            line.extend(escaped(&place));
            line.extend(format!(" rw {} - ext4 ", tags.join(" ")).replace("  ", " ").into_bytes());
            line.extend(escaped(&source));
            line.extend(b" rw\n");
            let mounts = parse(&line);
            prop_assert_eq!(mounts.skipped(), 0);
            let mount = mounts.iter().next().unwrap();
            prop_assert_eq!(&mount.mount_point.as_os_str().as_bytes()[1..], &place[..]);
            prop_assert_eq!(&mount.source, &String::from_utf8_lossy(&source));
            prop_assert_eq!(mount.majmin, Some((major, minor)));
        }
    }
}
