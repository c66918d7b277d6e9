//! What the kernel counts in `/sys`: errors of SCSI devices and of ext4 filesystems.
//!
//! These figures live in memory, so reading them waits for no disk. Neither needs a permission.

use std::io;
use std::path::Path;

use super::device::{Devices, whole_disk};
use crate::host::Host;
use crate::sample::{Batch, SampleError};

/// Errors by device.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Counts {
    /// `/sys/block/*/device/ioerr_cnt`: whole disks.
    pub(super) scsi: Vec<(String, u64)>,
    /// `/sys/fs/ext4/*/errors_count`: partitions and mapped devices, as they are mounted.
    pub(super) filesystems: Vec<(String, u64)>,
}

/// Reads both, at most `most` devices each: those with errors first. What fails is recorded in
/// `out`, and what is not there is not there.
pub(super) fn read(host: &Host, devices: &Devices, most: usize, out: &mut Batch) -> Counts {
    let scsi = each(host, "/sys/block", "device/ioerr_cnt", devices, out);
    let filesystems = each(host, "/sys/fs/ext4", "errors_count", devices, out);
    Counts { scsi: first(scsi, most, out), filesystems: first(filesystems, most, out) }
}

fn first(mut counts: Vec<(String, u64)>, most: usize, out: &mut Batch) -> Vec<(String, u64)> {
    counts.sort_unstable_by(|a, b| (a.1 == 0, &a.0).cmp(&(b.1 == 0, &b.0)));
    out.dropped(counts.len().saturating_sub(most) as u64);
    counts.truncate(most);
    counts
}

/// The number in `file` below each directory of `directory`, by the directory's name.
fn each(
    host: &Host,
    directory: &str,
    file: &str,
    devices: &Devices,
    out: &mut Batch,
) -> Vec<(String, u64)> {
    let path = host.path(directory);
    let entries = match std::fs::read_dir(&path) {
        Ok(entries) => entries,
        Err(error) => {
            // No ext4 mounted, or no disk at all.
            if error.kind() != io::ErrorKind::NotFound {
                out.fail(SampleError::read(&path, error));
            }
            return Vec::new();
        }
    };
    let mut counts = Vec::new();
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(disk) = whole_disk(&name) else { continue };
        if devices.is_ignored(&disk) && devices.holds_datastore(&name) != Some(true) {
            continue;
        }
        match count(&entry.path().join(file)) {
            Ok(Some(count)) => counts.push((name, count)),
            Ok(None) => {}
            Err(error) => out.fail(error),
        }
    }
    counts
}

/// A number, decimal or like `0x12`; None where the driver does not count.
fn count(path: &Path) -> Result<Option<u64>, SampleError> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        // The device may vanish between two reads.
        Err(error) if is_absent(&error) => return Ok(None),
        Err(error) => return Err(SampleError::read(path, error)),
    };
    let number = text.trim();
    let parsed = match number.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => number.parse(),
    };
    parsed.map(Some).map_err(|error| SampleError::parse(path, format!("{error}: {number:.40?}")))
}

fn is_absent(error: &io::Error) -> bool {
    use io::ErrorKind::{NotADirectory, NotFound};
    matches!(error.kind(), NotFound | NotADirectory)
        || error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error())
}

#[cfg(test)]
mod tests {
    use super::super::device::DEFAULT_IGNORED;
    use super::*;

    fn root(files: &[(&str, &str)]) -> (tempfile::TempDir, Host) {
        let directory = tempfile::tempdir().unwrap();
        for (file, content) in files {
            let path = directory.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        let host = Host::at(directory.path());
        (directory, host)
    }

    fn devices(datastore: &[&str]) -> Devices {
        let datastore: Vec<_> = datastore.iter().map(|&d| d.to_owned()).collect();
        Devices::new(&DEFAULT_IGNORED.map(str::to_owned), &datastore).unwrap()
    }

    fn pair(device: &str, count: u64) -> (String, u64) {
        (device.to_owned(), count)
    }

    #[test]
    fn both_counters_are_read_and_ignored_devices_are_not() {
        let (_directory, host) = root(&[
            ("sys/block/sda/device/ioerr_cnt", "0x12\n"),
            ("sys/block/sdb/device/ioerr_cnt", "0x0\n"),
            ("sys/block/sr0/device/ioerr_cnt", "0x9\n"),
            ("sys/block/loop0/size", "8\n"),
            ("sys/fs/ext4/sda2/errors_count", "3\n"),
            ("sys/fs/ext4/dm-0/errors_count", "0\n"),
            ("sys/fs/ext4/loop5/errors_count", "7\n"),
            ("sys/fs/ext4/loop6/errors_count", "8\n"),
            ("sys/fs/ext4/features/lazy_itable_init", "supported\n"),
        ]);
        let mut out = Batch::default();
        let counts = read(&host, &devices(&["loop6"]), 64, &mut out);
        assert_eq!(counts.scsi, [pair("sda", 18), pair("sdb", 0)]);
        assert_eq!(counts.filesystems, [pair("loop6", 8), pair("sda2", 3), pair("dm-0", 0)]);
        assert_eq!(out.reasons(), [""; 0]);
    }

    #[test]
    fn where_nothing_is_there_nothing_is_read() {
        let (_directory, host) = root(&[]);
        let mut out = Batch::default();
        assert_eq!(read(&host, &devices(&[]), 64, &mut out), Counts::default());
        assert_eq!(out.reasons(), [""; 0]);
    }

    #[test]
    fn a_figure_that_is_none_hides_no_other() {
        let (_directory, host) = root(&[
            ("sys/block/sda/device/ioerr_cnt", "many\n"),
            ("sys/block/sdb/device/ioerr_cnt", "0x1\n"),
            ("sys/block/sdc/device/ioerr_cnt", ""),
            ("sys/fs/ext4", "a file"),
        ]);
        let mut out = Batch::default();
        assert_eq!(read(&host, &devices(&[]), 64, &mut out).scsi, [pair("sdb", 1)]);
        assert_eq!(out.reasons(), ["parse", "parse", "read"]);
    }

    #[test]
    fn devices_with_errors_come_first_and_the_rest_is_counted() {
        let files: Vec<_> = (0..70).map(|i| format!("sys/fs/ext4/dm-{i}/errors_count")).collect();
        let files: Vec<_> = files
            .iter()
            .map(|f| (f.as_str(), if f.contains("dm-69/") { "1\n" } else { "0\n" }))
            .collect();
        let (_directory, host) = root(&files);
        let mut out = Batch::default();
        let counts = read(&host, &devices(&[]), 64, &mut out);
        assert_eq!((counts.filesystems.len(), &counts.filesystems[0]), (64, &pair("dm-69", 1)));
        assert_eq!(out.dropped_count(), 6);
    }
}
