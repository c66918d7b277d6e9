//! Bounded reads for detection, and the notes they leave.
//!
//! A file that is absent is an ordinary answer; one that cannot be read is a note that names the
//! path, the reason and the way out. Nothing but regular files is opened, so neither a FIFO nor a
//! device can hang or be disturbed.

use std::cell::{Cell, RefCell};
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{AtFlags, OFlags, StatxFlags, statx};
use rustix::io::Errno;

use super::Host;
use super::processes::Processes;

/// Bytes of a configuration file; a larger one is refused, since no real one comes near.
pub(crate) const MAX_FILE: u64 = 1 << 20;
/// Bytes of a small file.
const MAX_SMALL: u64 = 16 << 10;
/// Names read from one directory.
const MAX_ENTRIES: usize = 4096;
/// Notes kept; the rest would repeat them.
const MAX_NOTES: usize = 32;

/// Detection's view of the host.
pub(super) struct Probe<'a> {
    pub(super) host: &'a Host,
    pub(super) processes: Processes,
    notes: RefCell<Vec<String>>,
    sick: Cell<bool>,
}

impl<'a> Probe<'a> {
    pub(super) fn new(host: &'a Host) -> Self {
        Self {
            host,
            processes: Processes::scan(host),
            notes: RefCell::default(),
            sick: Cell::default(),
        }
    }

    /// Leaves a note, once.
    pub(super) fn note(&self, note: String) {
        let mut notes = self.notes.borrow_mut();
        if notes.len() < MAX_NOTES && !notes.contains(&note) {
            notes.push(note);
        }
    }

    /// How many notes there are.
    pub(super) fn notes(&self) -> usize {
        self.notes.borrow().len()
    }

    /// Whether a disk or a mount did not give what lies on it.
    pub(super) fn is_sick(&self) -> bool {
        self.sick.get()
    }

    pub(super) fn into_notes(self) -> Vec<String> {
        self.notes.into_inner()
    }

    /// The text of a file; `None` when it is absent, or unreadable, which is noted. Bytes that
    /// are not UTF-8 are replaced.
    pub(super) fn text(&self, path: impl AsRef<Path>) -> Option<String> {
        let path = path.as_ref();
        match read_host(self.host, path, MAX_FILE) {
            Ok(bytes) => Some(String::from_utf8_lossy(&bytes).into_owned()),
            Err(error) => {
                self.failed(path, "read", &error);
                None
            }
        }
    }

    /// Whether something is there, links followed; `None` when that cannot be told, which is
    /// noted.
    pub(super) fn presence(&self, path: impl AsRef<Path>) -> Option<bool> {
        let path = path.as_ref();
        let found =
            self.host.resolve(path).and_then(|resolved| fs::metadata(self.host.path(resolved)));
        match found {
            Ok(_) => Some(true),
            Err(error) if absent(&error) => Some(false),
            Err(error) => {
                self.failed(path, "examined", &error);
                None
            }
        }
    }

    /// Whether something is certainly there.
    pub(super) fn exists(&self, path: impl AsRef<Path>) -> bool {
        self.presence(path) == Some(true)
    }

    /// Whether there is a symbolic link of this name, wherever it leads.
    pub(super) fn is_link(&self, path: &Path) -> bool {
        self.link(path).is_some()
    }

    /// What a symbolic link says.
    pub(super) fn link(&self, path: &Path) -> Option<PathBuf> {
        let folder = self.host.resolve(path.parent()?).ok()?;
        fs::read_link(self.host.path(folder.join(path.file_name()?))).ok()
    }

    /// The names in a directory, sorted; empty when it is absent, or unreadable, which is noted.
    pub(super) fn names(&self, path: impl AsRef<Path>) -> Vec<String> {
        let path = path.as_ref();
        names(self.host, path).unwrap_or_else(|error| {
            self.failed(path, "listed", &error);
            Vec::new()
        })
    }

    fn failed(&self, path: &Path, what: &str, error: &io::Error) {
        if absent(error) {
            return;
        }
        self.sick.set(self.sick.get() || sick(error));
        let path = path.display();
        if error.kind() == ErrorKind::PermissionDenied {
            self.note(format!(
                "{path} could not be {what}: permission denied; run the agent as root, or give it \
                 CAP_DAC_READ_SEARCH, as its shipped unit has it, with `systemctl edit controlplane-exporter` \
                 ([Service] CapabilityBoundingSet=CAP_DAC_READ_SEARCH and AmbientCapabilities=CAP_DAC_READ_SEARCH)"
            ));
        } else {
            self.note(format!("{path} could not be {what}: {error}"));
        }
    }
}

/// Whether the error says that the path does not exist.
fn absent(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

/// Whether the error is one of what lies below: a disk, a filesystem that has given up, a mount whose server is gone.
fn sick(error: &io::Error) -> bool {
    const BELOW: [Errno; 10] = [
        Errno::IO,
        // A sector that cannot be read, where the driver tells; what XFS and ext4 say of their own structures.
        Errno::NODATA,
        Errno::UCLEAN,
        Errno::NODEV,
        Errno::NXIO,
        Errno::REMOTEIO,
        Errno::NOLINK,
        Errno::TIMEDOUT,
        Errno::STALE,
        Errno::NOTCONN,
    ];
    Errno::from_io_error(error).is_some_and(|errno| BELOW.contains(&errno))
}

/// The bytes of a host file of at most `limit` bytes, links followed inside the host's root.
///
/// # Errors
///
/// What the kernel answers, and [`ErrorKind::InvalidData`] for something that is not a regular
/// file or is larger than `limit`.
pub(super) fn read_host(host: &Host, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    read_dated(host, path, limit).map(|(bytes, _)| bytes)
}

/// As [`read_host`], and when the file was last changed.
///
/// # Errors
///
/// As for [`read_host`].
pub(crate) fn read_dated(
    host: &Host,
    path: &Path,
    limit: u64,
) -> io::Result<(Vec<u8>, SystemTime)> {
    let file = open_host(host, path)?;
    let modified = file.metadata()?.modified()?;
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(invalid(&format!("larger than {limit} bytes")));
    }
    Ok((bytes, modified))
}

/// When a host file was last changed; nothing but a regular file has such a time here.
///
/// # Errors
///
/// As for [`read_host`].
pub(crate) fn modified(host: &Host, path: &Path) -> io::Result<SystemTime> {
    let metadata = fs::symlink_metadata(host.path(host.resolve(path)?))?;
    check_kind(&metadata)?;
    metadata.modified()
}

/// The text of a host file of a few kilobytes, as those of `/proc` and `/sys` are.
///
/// # Errors
///
/// As for [`read_host`].
pub(crate) fn small_text(host: &Host, path: &Path) -> io::Result<String> {
    let bytes = read_host(host, path, MAX_SMALL)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Opens a host file, links followed inside the host's root.
///
/// # Errors
///
/// As for [`read_host`].
pub(super) fn open_host(host: &Host, path: &Path) -> io::Result<File> {
    // Every link has been followed, so one that is there now was put there since.
    open(&host.path(host.resolve(path)?), OFlags::NOFOLLOW)
}

/// At most `limit` bytes of a file of `/proc` or `/sys`, whose folders are no links. Reading on
/// until the limit, so a file that ends exactly there is whole.
pub(super) fn read_virtual(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_regular(path)?.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// When a file or folder was made, in Unix seconds, where its filesystem keeps that.
pub(crate) fn born(at: impl std::os::fd::AsFd, path: &Path) -> Option<u64> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH | AtFlags::NO_AUTOMOUNT;
    let found = statx(at, path, flags, StatxFlags::BTIME).ok()?;
    let has = found.stx_mask & StatxFlags::BTIME.bits() != 0;
    u64::try_from(found.stx_btime.tv_sec).ok().filter(|seconds| has && *seconds > 0)
}

/// Opens a file that is one, and neither waits for a writer nor becomes a controlling terminal.
pub(crate) fn open_regular(path: &Path) -> io::Result<File> {
    open(path, OFlags::empty())
}

fn open(path: &Path, flags: OFlags) -> io::Result<File> {
    check_kind(&fs::metadata(path)?)?;
    // NONBLOCK in case it became a FIFO between the two calls.
    let flags = i32::try_from((flags | OFlags::NONBLOCK).bits()).unwrap_or_default();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    check_kind(&file.metadata()?)?;
    Ok(file)
}

fn check_kind(metadata: &fs::Metadata) -> io::Result<()> {
    match metadata.file_type() {
        kind if kind.is_dir() => Err(invalid("a directory, not a file")),
        kind if kind.is_file() => Ok(()),
        _ => Err(invalid("not a regular file")),
    }
}

fn invalid(reason: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, reason.to_owned())
}

/// The names in a host directory, sorted, at most 4096 of them.
pub(crate) fn names(host: &Host, path: &Path) -> io::Result<Vec<String>> {
    let mut names: Vec<String> = fs::read_dir(host.path(host.resolve(path)?))?
        .take(MAX_ENTRIES)
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    names.sort_unstable();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notes_of(prepare: impl Fn(&Path), look: impl Fn(&Probe)) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        prepare(dir.path());
        let host = Host::at(dir.path());
        let probe = Probe::new(&host);
        look(&probe);
        probe.into_notes()
    }

    #[test]
    fn an_absent_file_leaves_no_note() {
        let notes = notes_of(
            |root| fs::write(root.join("file"), "x").unwrap(),
            |probe| {
                assert_eq!(probe.text("/missing"), None);
                assert_eq!(probe.text("/file/below"), None);
                assert_eq!(probe.presence("/missing"), Some(false));
                assert_eq!(probe.names("/missing"), Vec::<String>::new());
            },
        );
        assert_eq!(notes, Vec::<String>::new());
    }

    #[test]
    fn a_directory_in_place_of_a_file_is_noted_once() {
        let notes = notes_of(
            |root| fs::create_dir(root.join("config.yaml")).unwrap(),
            |probe| {
                assert_eq!(probe.text("/config.yaml"), None);
                assert_eq!(probe.text("/config.yaml"), None);
            },
        );
        assert_eq!(notes, ["/config.yaml could not be read: a directory, not a file"]);
    }

    #[test]
    fn a_missing_permission_is_noted_with_the_way_out() {
        let notes = notes_of(
            |_| {},
            |probe| {
                probe.failed(Path::new("/a"), "read", &ErrorKind::PermissionDenied.into());
            },
        );
        assert!(notes[0].starts_with("/a could not be read: permission denied; "), "{notes:?}");
        assert!(notes[0].contains("systemctl edit controlplane-exporter"), "{notes:?}");
        // A unit whose bounding set lacks an ambient capability does not start.
        for key in ["CapabilityBoundingSet", "AmbientCapabilities"] {
            assert!(notes[0].contains(&format!("{key}=CAP_DAC_READ_SEARCH")), "{notes:?}");
        }
    }

    #[test]
    fn only_what_a_disk_or_a_mount_refuses_makes_the_look_a_partial_one() {
        let sick = |errno: Errno| {
            let host = Host::at("/nonexistent");
            let probe = Probe::new(&host);
            probe.failed(Path::new("/a"), "read", &errno.into());
            probe.is_sick()
        };
        assert!(sick(Errno::IO) && sick(Errno::UCLEAN) && sick(Errno::STALE));
        assert!(!sick(Errno::NOENT) && !sick(Errno::ACCESS) && !sick(Errno::LOOP));
    }

    #[test]
    fn a_huge_file_is_refused_after_a_megabyte() {
        let notes = notes_of(
            |root| File::create(root.join("huge")).unwrap().set_len(1 << 40).unwrap(),
            |probe| assert_eq!(probe.text("/huge"), None),
        );
        assert_eq!(notes, ["/huge could not be read: larger than 1048576 bytes"]);
    }

    #[test]
    fn a_fifo_does_not_hang_the_reader() {
        let notes = notes_of(
            |root| {
                rustix::fs::mknodat(
                    rustix::fs::CWD,
                    root.join("fifo"),
                    rustix::fs::FileType::Fifo,
                    rustix::fs::Mode::RUSR,
                    0,
                )
                .unwrap();
            },
            |probe| assert_eq!(probe.text("/fifo"), None),
        );
        assert_eq!(notes, ["/fifo could not be read: not a regular file"]);
    }

    #[test]
    fn a_loop_of_links_is_noted() {
        let notes = notes_of(
            |root| std::os::unix::fs::symlink("loop", root.join("loop")).unwrap(),
            |probe| assert_eq!(probe.presence("/loop"), None),
        );
        assert!(notes[0].starts_with("/loop could not be examined: "), "{notes:?}");
    }

    #[test]
    fn bytes_that_are_not_utf_8_are_replaced() {
        notes_of(
            |root| fs::write(root.join("latin"), b"name: M\xfcller").unwrap(),
            |probe| assert_eq!(probe.text("/latin").unwrap(), "name: M\u{fffd}ller"),
        );
    }
}
