//! The child's side of the sync probe: append to an unnamed file, `fdatasync`, say how long it took.
//!
//! The file has no name (`O_TMPFILE`), so directory listings never show it, and neither SIGKILL nor
//! a power cut leaves anything behind. It is preallocated and appended to in records of 2300 bytes,
//! as etcd's write-ahead log is: overwriting one block would show two fifths of the latency on
//! journalled ext4 and xfs. When its 1 MiB is used up, the next one is opened outside the timed part.
//!
//! It answers on standard output, a line each:
//!
//! ```text
//! S                  a round starts; written before anything touches the disk
//! D LABEL DISK,DISK  the device under the path, within the first round
//! E NANOSECONDS      the sync took that long
//! F STEP ERRNO       the step failed
//! R REASON           a sync would mislead here, so none is done
//! ```
//!
//! `S` is followed by `E`, by `F`, by `R`, or by `F` and `R`.

use std::io::{self, BufRead, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{self, FallocateFlags, Mode, OFlags, StatVfsMountFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::child;
use crate::host::{Host, Mounts, devices};

use super::place::{Device, is_inside_member};

/// Bytes of a record of etcd's write-ahead log.
const RECORD: usize = 2300;
/// Bytes that are preallocated; ext4 would zero a smaller extent at once.
const LAP: u64 = 1 << 20;
/// No new lap is begun with less space left than this; on a small filesystem, than a twentieth of it.
const MIN_FREE: u64 = 64 << 20;
/// A lap whose preparation took this long met a stall that the datastore would have met as well.
const STALL: Duration = Duration::from_millis(100);
/// Longest reason written, in bytes.
const REASON_BYTES: usize = 400;
/// The longest question read, in bytes.
const QUESTION_BYTES: u64 = 64 << 10;

const TMPFS: u64 = 0x0102_1994;
const RAMFS: u64 = 0x8584_58f6;
const OVERLAY: u64 = 0x794c_7630;

/// What the child is to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Question {
    /// Where the host's files lie.
    pub(super) rootfs: PathBuf,
    /// The host path whose syncs matter.
    pub(super) path: PathBuf,
    /// Host directories for the file; the first that lies on the device of `path` is taken.
    pub(super) directories: Vec<PathBuf>,
    /// The device, where the parent knows it.
    pub(super) device: Option<Device>,
    /// How often to sync.
    pub(super) every: Duration,
}

/// Syncs for the agent that started this process, until it goes away.
///
/// # Errors
///
/// When the question cannot be read. A closed pipe is the end, not an error.
pub fn run() -> io::Result<()> {
    child::die_with_parent()?;
    let mut line = String::new();
    io::Read::take(io::stdin().lock(), QUESTION_BYTES).read_line(&mut line)?;
    let question: Question = serde_json::from_str(&line)?;
    let every = question.every;
    // Probes of several paths on one disk must not fire together.
    thread::sleep(every.min(Duration::from_millis(200)).mul_f64(fastrand::f64()));
    let error = forever(Prober::new(question), &mut io::stdout().lock(), every);
    if error.kind() == io::ErrorKind::BrokenPipe { Ok(()) } else { Err(error) }
}

/// Probes until the pipe is closed.
fn forever(mut prober: Prober, out: &mut impl Write, every: Duration) -> io::Error {
    loop {
        let started = Instant::now();
        if let Err(error) = prober.tell(out) {
            return error;
        }
        let wait = every.mul_f64(0.9 + fastrand::f64() / 5.0);
        // A disk that is slower than the interval gets a rest all the same.
        thread::sleep(wait.saturating_sub(started.elapsed()).max(every / 10));
    }
}

/// How a round ended, if not with a sync.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Miss {
    /// A step failed.
    Failed(&'static str, Errno),
    /// A step failed in a way that will not change by itself.
    Unsupported(&'static str, Errno, String),
    /// A sync would mislead.
    Refused(String),
}

/// The file in use.
struct Lap {
    file: OwnedFd,
    offset: u64,
    /// Where it was opened, in this process's view, and the device that was there.
    directory: PathBuf,
    device: u64,
}

impl Lap {
    /// Whether a new one is due: it is used up, or something else is mounted there by now.
    fn is_over(&self) -> bool {
        self.offset + RECORD as u64 > LAP
            || fs::stat(&self.directory).map_or(true, |now| now.st_dev != self.device)
    }
}

struct Prober {
    question: Question,
    host: Host,
    lap: Option<Lap>,
    told_device: bool,
    /// The last miss, so that one that lasts is not counted again and again.
    last: Option<Miss>,
}

impl Prober {
    fn new(question: Question) -> Self {
        let host = Host::at(&question.rootfs);
        let told_device = question.device.is_some();
        Self { question, host, lap: None, told_device, last: None }
    }

    /// One round and its lines.
    fn tell(&mut self, out: &mut impl Write) -> io::Result<()> {
        line(out, "S")?;
        if !std::mem::replace(&mut self.told_device, true) {
            let device = self.device();
            line(out, &format!("D {} {}", device.label, device.disks.join(",")))?;
        }
        let ended = self.round();
        match &ended {
            Ok(took) => line(out, &format!("E {}", took.as_nanos()))?,
            Err(Miss::Failed(step, errno)) => failed(out, step, *errno)?,
            Err(Miss::Refused(reason)) => refused(out, reason)?,
            Err(miss @ Miss::Unsupported(step, errno, reason)) => {
                if self.last.as_ref() != Some(miss) {
                    failed(out, step, *errno)?;
                }
                refused(out, reason)?;
            }
        }
        if ended.is_err() {
            // The kernel reports a write error once per open file.
            self.lap = None;
        }
        self.last = ended.err();
        Ok(())
    }

    /// Appends one record and syncs it; how long that took.
    fn round(&mut self) -> Result<Duration, Miss> {
        let begun = Instant::now();
        let mut lap = match self.lap.take().filter(|lap| !lap.is_over()) {
            Some(lap) => lap,
            None => self.open()?,
        };
        let prepared = begun.elapsed();
        let started = Instant::now();
        let written = rustix::io::pwrite(&lap.file, &[0xa5; RECORD], lap.offset)
            .map_err(|errno| Miss::Failed("write", errno))?;
        if written != RECORD {
            return Err(Miss::Failed("write", Errno::NOSPC));
        }
        fs::fdatasync(&lap.file).map_err(|errno| Miss::Failed("sync", errno))?;
        let took = started.elapsed();
        lap.offset += RECORD as u64;
        self.lap = Some(lap);
        Ok(if prepared >= STALL { took + prepared } else { took })
    }

    /// Opens the next lap in the first directory that will do.
    fn open(&self) -> Result<Lap, Miss> {
        let mut miss = Miss::Failed("open", Errno::NOENT);
        for directory in &self.question.directories {
            match self.open_in(directory) {
                Ok(lap) => return Ok(lap),
                Err(error) => miss = error,
            }
        }
        Err(miss)
    }

    fn open_in(&self, directory: &Path) -> Result<Lap, Miss> {
        let failed = |step| move |errno| Miss::Failed(step, errno);
        let here = self.place(directory)?;
        let below_root = here.strip_prefix(self.host.rootfs()).unwrap_or(&here);
        if is_inside_member(below_root) {
            return Err(Miss::Refused(format!(
                "{} is etcd's own, where nothing is written: set fdatasync.paths to another \
                 directory of its disk",
                directory.display()
            )));
        }
        let wanted = fs::stat(self.place(&self.question.path)?).map_err(failed("open"))?;
        let device = fs::stat(&here).map_err(failed("open"))?.st_dev;
        if wanted.st_dev != device {
            let (there, path) = (directory.display(), self.question.path.display());
            return Err(Miss::Refused(format!("{there} is on another device than {path}")));
        }
        self.check_filesystem(&here)?;
        let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = fs::open(&here, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|errno| self.cannot_open(errno, &here))?;
        match fs::fallocate(&file, FallocateFlags::empty(), 0, LAP) {
            // Where space cannot be reserved, the file grows.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
            Err(errno) => return Err(Miss::Failed("fallocate", errno)),
        }
        fs::fsync(&file).map_err(failed("sync"))?;
        Ok(Lap { file, offset: 0, directory: here, device })
    }

    /// Where a host path is for this process, with the host's links followed.
    fn place(&self, path: &Path) -> Result<PathBuf, Miss> {
        match self.host.resolve(path) {
            Ok(resolved) => Ok(self.host.path(resolved)),
            Err(_) => Err(Miss::Failed("open", Errno::LOOP)),
        }
    }

    /// Refuses filesystems whose syncs are no syncs, and those that are nearly full.
    fn check_filesystem(&self, here: &Path) -> Result<(), Miss> {
        let fs = fs::statfs(here).map_err(|errno| Miss::Failed("open", errno))?;
        let path = self.question.path.display();
        // The kernel's magic numbers have 32 bits; the type of the field differs by platform.
        let kind = u64::try_from(fs.f_type).unwrap_or_default();
        match kind {
            TMPFS | RAMFS => {
                return Err(Miss::Refused(format!(
                    "{path} is in memory: a sync does nothing there"
                )));
            }
            OVERLAY if self.is_volatile() => {
                let why = "is on an overlay mounted `volatile`: a sync does nothing there";
                return Err(Miss::Refused(format!("{path} {why}")));
            }
            _ => {}
        }
        let block = u64::try_from(fs.f_bsize).unwrap_or_default();
        let (free, size) = (fs.f_bavail.saturating_mul(block), fs.f_blocks.saturating_mul(block));
        // The probe must not take the last space from the datastore.
        if free < MIN_FREE.min(size / 20) {
            let reason = format!(
                "the filesystem of {path} has {} KiB left: the probe takes nothing of that",
                free >> 10
            );
            return Err(if free < LAP {
                Miss::Unsupported("fallocate", Errno::NOSPC, reason)
            } else {
                Miss::Refused(reason)
            });
        }
        Ok(())
    }

    fn cannot_open(&self, errno: Errno, here: &Path) -> Miss {
        let path = self.question.path.display();
        match errno {
            // Kernels and filesystems without O_TMPFILE take it for opening a directory to write.
            Errno::OPNOTSUPP | Errno::ISDIR => {
                let reason =
                    format!("the filesystem of {path} has no unnamed files (O_TMPFILE: {errno})");
                Miss::Unsupported("open", Errno::OPNOTSUPP, reason)
            }
            Errno::ROFS if self.is_read_only_for_the_agent(here) => Miss::Refused(format!(
                "{path} is writable, but not for the agent: add it to ReadWritePaths= of the \
                 unit, or mount it read-write into the container"
            )),
            errno => Miss::Failed("open", errno),
        }
    }

    /// Whether a mount flag, and not the filesystem, forbids writing.
    fn is_read_only_for_the_agent(&self, here: &Path) -> bool {
        fs::statvfs(here).is_ok_and(|fs| fs.f_flag.contains(StatVfsMountFlags::RDONLY))
            && self.with_mount(|mount| !mount.is_readonly()).unwrap_or(false)
    }

    fn is_volatile(&self) -> bool {
        // The second is how Linux 6.18 says it.
        let volatile = |option: &str| matches!(option, "volatile" | "fsync=volatile");
        self.with_mount(|mount| mount.super_options.split(',').any(volatile)).unwrap_or(false)
    }

    /// Asks something about the host's mount under the path.
    fn with_mount<T>(&self, ask: impl FnOnce(&crate::host::Mount) -> T) -> Option<T> {
        let path = self.host.resolve(&self.question.path).ok()?;
        Mounts::read(&self.host).ok()?.holder(path).map(ask)
    }

    /// The device under the path; following links and files may touch the disk.
    fn device(&self) -> Device {
        let Ok(mounts) = Mounts::read(&self.host) else { return Device::unknown() };
        let chain = devices::chain_of_path(&self.host, &mounts, &self.question.path);
        let source = self.with_mount(|mount| mount.source.clone()).unwrap_or_default();
        Device::of(&chain.devices, &chain.disks, &source)
    }
}

fn failed(out: &mut impl Write, step: &str, errno: Errno) -> io::Result<()> {
    line(out, &format!("F {step} {}", errno.raw_os_error()))
}

fn refused(out: &mut impl Write, reason: &str) -> io::Result<()> {
    let mut end = reason.len().min(REASON_BYTES);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    line(out, &format!("R {}", reason[..end].replace(char::is_control, " ")))
}

/// One line, one write: the parent never sees half of it for long.
fn line(out: &mut impl Write, text: &str) -> io::Result<()> {
    out.write_all(format!("{text}\n").as_bytes())?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(directories: &[&Path], path: &Path) -> Question {
        Question {
            rootfs: "/".into(),
            path: path.to_owned(),
            directories: directories.iter().map(|d| d.to_path_buf()).collect(),
            device: Some(Device::unknown()),
            every: Duration::from_secs(1),
        }
    }

    fn rounds(question: Question, n: usize) -> Vec<String> {
        let mut prober = Prober::new(question);
        let mut out = Vec::new();
        for _ in 0..n {
            prober.tell(&mut out).unwrap();
        }
        String::from_utf8(out).unwrap().lines().map(ToOwned::to_owned).collect()
    }

    /// A directory that is not in memory; `/tmp` may be.
    fn on_disk() -> tempfile::TempDir {
        tempfile::Builder::new().tempdir_in("/var/tmp").unwrap()
    }

    #[test]
    fn each_round_says_start_and_end_and_the_directory_stays_empty() {
        let dir = on_disk();
        let mut prober = Prober::new(question(&[dir.path()], dir.path()));
        let mut out = Vec::new();
        prober.tell(&mut out).unwrap();
        prober.tell(&mut out).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!((lines.len(), lines[0], lines[2]), (4, "S", "S"));
        for end in [lines[1], lines[3]] {
            assert!(end.strip_prefix("E ").unwrap().parse::<u64>().unwrap() > 0, "{end}");
        }
        assert_eq!(prober.lap.unwrap().offset, 2 * RECORD as u64);
    }

    #[test]
    fn a_lap_that_is_used_up_is_followed_by_a_new_one() {
        let dir = on_disk();
        let mut prober = Prober::new(question(&[dir.path()], dir.path()));
        prober.round().unwrap();
        prober.lap.as_mut().unwrap().offset = LAP - RECORD as u64;
        prober.round().unwrap();
        assert_eq!(prober.lap.as_ref().unwrap().offset, LAP);
        prober.round().unwrap();
        assert_eq!(prober.lap.unwrap().offset, RECORD as u64);
    }

    #[test]
    fn a_directory_on_another_device_is_passed_over_for_the_next() {
        let dir = on_disk();
        let lines = rounds(question(&[Path::new("/proc"), dir.path()], dir.path()), 1);
        assert!(lines[1].starts_with("E "), "{lines:?}");
        let lines = rounds(question(&[Path::new("/proc")], dir.path()), 1);
        assert!(lines[1].starts_with("R /proc is on another device than "), "{lines:?}");
    }

    #[test]
    fn memory_is_refused_with_the_reason() {
        let shm = Path::new("/dev/shm");
        let lines = rounds(question(&[shm], shm), 2);
        assert_eq!(lines, ["S", "R /dev/shm is in memory: a sync does nothing there"].repeat(2));
    }

    #[test]
    fn a_filesystem_without_unnamed_files_is_counted_once_and_refused_each_time() {
        let sys = Path::new("/sys");
        let lines = rounds(question(&[sys], sys), 2);
        let reasons: Vec<_> = lines.iter().filter(|line| line.starts_with("R ")).collect();
        assert_eq!(reasons.len(), 2, "{lines:?}");
        assert!(reasons[0].contains("no unnamed files"), "{lines:?}");
        assert_eq!(lines.iter().filter(|line| *line == "F open 95").count(), 1, "{lines:?}");
    }

    #[test]
    fn a_directory_that_is_missing_and_one_that_is_a_file_are_failures_of_open() {
        let dir = on_disk();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let missing = dir.path().join("missing");
        assert_eq!(rounds(question(&[&missing], &missing), 1), ["S", "F open 2"]);
        assert_eq!(rounds(question(&[&file], &file), 1), ["S", "F open 20"]);
    }

    #[test]
    fn a_link_into_etcd_s_own_directory_is_refused() {
        let dir = on_disk();
        std::fs::create_dir_all(dir.path().join("etcd/member/wal")).unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("etcd/member/wal", &link).unwrap();
        let lines = rounds(question(&[&link], &link), 1);
        assert!(lines[1].contains("link is etcd's own, where nothing is written"), "{lines:?}");
        // Below the host's root as well.
        let asked = Question { rootfs: dir.path().into(), ..question(&[], Path::new("/link")) };
        let lines = rounds(Question { directories: vec!["/link".into()], ..asked }, 1);
        assert!(lines[1].contains("/link is etcd's own"), "{lines:?}");
    }

    #[test]
    fn the_device_is_told_once_when_the_parent_does_not_know_it() {
        let dir = on_disk();
        let asked = Question { device: None, ..question(&[dir.path()], dir.path()) };
        let lines = rounds(asked, 2);
        assert!(lines[1].starts_with("D "), "{lines:?}");
        assert_eq!(lines.iter().filter(|line| line.starts_with("D ")).count(), 1);
    }
}
