//! Names of block devices: from what a log line says to the whole disk, and which do not count.

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

/// Devices that print errors in normal life: drives without a medium, images that are unmounted.
pub(super) const DEFAULT_IGNORED: [&str; 6] = ["fd*", "sr*", "loop*", "ram*", "zram*", "mtdblock*"];

/// The kernel's own limit (`DISK_NAME_LEN`), in bytes.
const MAX_NAME_BYTES: usize = 32;

/// The whole disk or mapped device behind a name in a log line: `sda1` gives `sda`, `nvme0n1p2`
/// `nvme0n1`, and the journal `dm-1-8` gives `dm-1`. None for what cannot be a device's name, so
/// that no other text can become a label.
pub(super) fn whole_disk(name: &str) -> Option<String> {
    let name = name.strip_prefix("/dev/").unwrap_or(name);
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'!');
    let begins_well = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    if name.len() > MAX_NAME_BYTES || !begins_well || !name.bytes().all(plain) {
        return None;
    }
    let name = without_journal(name);
    Some(without_path(without_partition(name)))
}

/// jbd2 names a journal by device and inode: `sda1-8`, `dm-1-8`. The number of a mapped device is
/// part of its name.
fn without_journal(name: &str) -> &str {
    match name.rsplit_once('-') {
        Some((device, inode)) if device != "dm" && is_number(inode) => device,
        _ => name,
    }
}

fn without_partition(name: &str) -> &str {
    let disk = name.trim_end_matches(|c: char| c.is_ascii_digit());
    if disk.len() == name.len() {
        return name;
    }
    // Disks whose name ends with letters take the bare number.
    let lettered = ["sd", "hd", "vd", "xvd", "ubd", "dasd"].iter().any(|prefix| {
        disk.strip_prefix(prefix)
            .is_some_and(|unit| !unit.is_empty() && unit.bytes().all(|b| b.is_ascii_lowercase()))
    });
    if lettered {
        return disk;
    }
    // Disks whose name ends with a digit put a `p` between.
    match disk.strip_suffix('p') {
        Some(disk) if disk.ends_with(|c: char| c.is_ascii_digit()) => disk,
        _ => name,
    }
}

/// One path to a namespace, `nvme0c1n1`, stands for the namespace `nvme0n1`.
fn without_path(name: &str) -> String {
    let parts = || {
        let rest = name.strip_prefix("nvme")?;
        let (subsystem, rest) = rest.split_once('c')?;
        let (path, namespace) = rest.split_once('n')?;
        [subsystem, path, namespace].iter().all(|n| is_number(n)).then_some((subsystem, namespace))
    };
    match parts() {
        Some((subsystem, namespace)) => format!("nvme{subsystem}n{namespace}"),
        None => name.to_owned(),
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

/// Which devices count.
#[derive(Debug, Clone)]
pub(super) struct Devices {
    ignored: GlobSet,
    /// Every device below the datastore, partitions and mapped ones included; may be empty.
    datastore: Vec<String>,
}

impl Devices {
    /// Devices named by one of the globs do not count, unless they hold the datastore.
    ///
    /// # Errors
    ///
    /// When a pattern is not a valid glob.
    pub(super) fn new(ignored: &[String], datastore: &[String]) -> Result<Self, globset::Error> {
        let mut set = GlobSetBuilder::new();
        for pattern in ignored {
            set.add(GlobBuilder::new(pattern).literal_separator(true).build()?);
        }
        Ok(Self { ignored: set.build()?, datastore: datastore.to_vec() })
    }

    /// Whether errors of this device do not count.
    pub(super) fn is_ignored(&self, device: &str) -> bool {
        self.ignored.is_match(device) && self.holds_datastore(device) != Some(true)
    }

    /// Devices that count for the datastore alone, since one of the globs names them; sorted.
    pub(super) fn excepted(&self) -> Vec<String> {
        let named = self.datastore.iter().filter(|name| self.ignored.is_match(name.as_str()));
        let mut excepted: Vec<String> = named.cloned().collect();
        excepted.sort_unstable();
        excepted.dedup();
        excepted
    }

    /// Whether the datastore lies on this device; None when nobody knows where it lies.
    pub(super) fn holds_datastore(&self, device: &str) -> Option<bool> {
        if self.datastore.is_empty() {
            return None;
        }
        Some(self.datastore.iter().any(|name| name == device))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_gives_its_disk() {
        for (name, disk) in [
            ("sda", "sda"),
            ("sda1", "sda"),
            ("sdaa15", "sdaa"),
            ("/dev/sda1", "sda"),
            ("vda3", "vda"),
            ("xvde", "xvde"),
            ("xvda1", "xvda"),
            ("hdc2", "hdc"),
            ("dasda1", "dasda"),
            ("nvme0n1", "nvme0n1"),
            ("nvme0n1p2", "nvme0n1"),
            ("nvme10n12p128", "nvme10n12"),
            ("nvme0c1n1", "nvme0n1"),
            ("nvme0c1n1p2", "nvme0n1"),
            ("nvme0", "nvme0"),
            ("mmcblk0", "mmcblk0"),
            ("mmcblk0p1", "mmcblk0"),
            ("mmcblk0boot0", "mmcblk0boot0"),
            ("loop7", "loop7"),
            ("loop7p1", "loop7"),
            ("nbd0p1", "nbd0"),
            ("rbd0p1", "rbd0"),
            ("pmem0s", "pmem0s"),
            ("md0", "md0"),
            ("md127p1", "md127"),
            ("md_d0p1", "md_d0"),
            ("dm-0", "dm-0"),
            ("dm-12", "dm-12"),
            ("sr0", "sr0"),
            ("fd0", "fd0"),
            ("zram0", "zram0"),
            ("cciss!c0d0p1", "cciss!c0d0"),
        ] {
            assert_eq!(whole_disk(name).as_deref(), Some(disk), "{name}");
        }
    }

    #[test]
    fn a_journal_gives_the_disk_below_its_filesystem() {
        for (name, disk) in
            [("dm-1-8", "dm-1"), ("sda1-8", "sda"), ("nvme0n1p2-8", "nvme0n1"), ("md0-8", "md0")]
        {
            assert_eq!(whole_disk(name).as_deref(), Some(disk), "{name}");
        }
    }

    #[test]
    fn what_is_no_device_name_gives_none() {
        for name in [
            "",
            "?",
            "-8",
            "(null)",
            "a b",
            "sda\n",
            "sda\"} 1",
            "../../etc",
            "mapper/root",
            "s\u{e9}a",
            "0123456789012345678901234567890123456789",
        ] {
            assert_eq!(whole_disk(name), None, "{name:?}");
        }
    }

    #[test]
    fn the_device_of_the_datastore_always_counts() {
        let globs = DEFAULT_IGNORED.map(str::to_owned);
        let devices = Devices::new(&globs, &["loop3".to_owned()]).unwrap();
        assert!(devices.is_ignored("loop4") && !devices.is_ignored("loop3"));
        assert!(devices.is_ignored("fd0") && !devices.is_ignored("sda"));
        assert_eq!(devices.holds_datastore("loop3"), Some(true));
        assert_eq!(devices.holds_datastore("sda"), Some(false));
        assert_eq!(devices.excepted(), ["loop3"]);
        let plain = Devices::new(&globs, &["dm-0".to_owned(), "sda".to_owned()]).unwrap();
        assert_eq!(plain.excepted(), [""; 0]);
    }

    #[test]
    fn where_the_datastore_lies_may_be_unknown() {
        let devices = Devices::new(&DEFAULT_IGNORED.map(str::to_owned), &[]).unwrap();
        assert_eq!(devices.holds_datastore("sda"), None);
        assert!(devices.is_ignored("loop3"));
    }

    #[test]
    fn a_wrong_glob_is_refused() {
        assert!(Devices::new(&["sd[".to_owned()], &[]).is_err());
    }
}
