//! How much of a disk a directory takes: allocated blocks, on one filesystem, without weight.
//!
//! Symbolic links are counted and never followed; hard links are counted once, and so is a directory
//! that a bind mount shows again, so every loop ends. Other filesystems below are left out. After each
//! burst the walk rests as long as the burst took, so it takes at most half of what the disk can give.

use std::collections::HashSet;
use std::fmt;
use std::path::Path;
use std::thread;
use std::time::Instant;

use rustix::fd::OwnedFd;
use rustix::fs::{self, AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

/// Entries between two rests.
const BURST: usize = 500;

/// What a walk may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Files and directories.
    pub(super) entries: usize,
    /// Directories inside each other; each holds a file descriptor.
    pub(super) depth: usize,
    /// When it has to be over.
    pub(super) deadline: Instant,
}

/// Why there is no sum. A part of it would mislead.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Incomplete {
    /// More entries than the limit.
    Entries(usize),
    /// Deeper than the limit.
    Depth(usize),
    /// Not over at the deadline.
    Late,
    /// The kernel refused.
    Failed(Errno),
}

impl fmt::Display for Incomplete {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Entries(limit) => write!(f, "more than {limit} files"),
            Self::Depth(limit) => write!(f, "directories more than {limit} deep"),
            Self::Late => f.write_str("too many files for the time-out"),
            Self::Failed(errno) => errno.fmt(f),
        }
    }
}

/// The sum of several directories of one area, in which nothing counts twice.
#[derive(Debug)]
pub(super) struct Walk {
    limits: Limits,
    bytes: u64,
    entries: usize,
    /// Inodes of directories and of files with several names.
    seen: HashSet<(u64, u64)>,
    burst: Instant,
}

impl Walk {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, bytes: 0, entries: 0, seen: HashSet::new(), burst: Instant::now() }
    }

    /// Allocated bytes so far.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether anything was there to count.
    pub(super) fn found(&self) -> bool {
        self.entries > 0
    }

    /// Adds a file, or a directory with everything below it. What is not there adds nothing.
    pub(super) fn add(&mut self, path: &Path) -> Result<(), Incomplete> {
        match self.add_tree(path) {
            Err(Incomplete::Failed(Errno::NOENT)) => Ok(()),
            other => other,
        }
    }

    fn add_tree(&mut self, path: &Path) -> Result<(), Incomplete> {
        let start = fs::lstat(path).map_err(Incomplete::Failed)?;
        if !self.count(&start)? {
            return Ok(());
        }
        let device = start.st_dev;
        let mut open = vec![directory(fs::CWD, path).map_err(Incomplete::Failed)?];
        while let Some(innermost) = open.last_mut() {
            let Some(entry) = innermost.read() else {
                open.pop();
                continue;
            };
            let entry = entry.map_err(Incomplete::Failed)?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let fd = innermost.fd().map_err(Incomplete::Failed)?;
            // Files come and go while they are counted.
            let below = match fs::statat(fd, name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => continue,
                found => found.map_err(Incomplete::Failed)?,
            };
            if below.st_dev != device {
                continue;
            }
            let inner = match self.count(&below)?.then(|| directory(fd, name)) {
                None | Some(Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP)) => continue,
                Some(opened) => opened.map_err(Incomplete::Failed)?,
            };
            if open.len() >= self.limits.depth {
                return Err(Incomplete::Depth(self.limits.depth));
            }
            open.push(inner);
        }
        Ok(())
    }

    /// Adds the blocks of one entry; whether it is a directory to go into.
    fn count(&mut self, stat: &Stat) -> Result<bool, Incomplete> {
        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(Incomplete::Entries(self.limits.entries));
        }
        if self.entries.is_multiple_of(BURST) {
            self.rest()?;
        }
        let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        let several = is_directory || stat.st_nlink > 1;
        if several && !self.seen.insert((stat.st_dev, stat.st_ino)) {
            return Ok(false);
        }
        self.bytes += u64::try_from(stat.st_blocks).unwrap_or_default() * 512;
        Ok(is_directory)
    }

    fn rest(&mut self) -> Result<(), Incomplete> {
        let left = self.limits.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Incomplete::Late);
        }
        thread::sleep(self.burst.elapsed().min(left));
        self.burst = Instant::now();
        Ok(())
    }
}

/// Opens a directory, not following a link that has taken its place.
fn directory(at: impl rustix::fd::AsFd, name: impl rustix::path::Arg) -> Result<Dir, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd: OwnedFd = fs::openat(at, name, flags, Mode::empty())?;
    Dir::new(fd)
}

#[cfg(test)]
mod tests {
    use std::fs::{create_dir, create_dir_all, hard_link, write};
    use std::os::unix::fs::{MetadataExt, symlink};
    use std::time::Duration;

    use super::*;

    fn limits() -> Limits {
        Limits { entries: 1_000, depth: 20, deadline: Instant::now() + Duration::from_mins(1) }
    }

    fn bytes(path: &Path) -> u64 {
        let mut walk = Walk::new(limits());
        walk.add(path).unwrap();
        walk.bytes()
    }

    fn blocks(path: &Path) -> u64 {
        path.symlink_metadata().unwrap().blocks() * 512
    }

    /// A directory that is not in memory, where blocks are counted differently.
    fn on_disk() -> tempfile::TempDir {
        tempfile::Builder::new().tempdir_in("/var/tmp").unwrap()
    }

    #[test]
    fn allocated_blocks_are_counted_and_not_the_holes_of_a_sparse_file() {
        let dir = on_disk();
        let file = dir.path().join("a/b/file");
        create_dir_all(file.parent().unwrap()).unwrap();
        write(&file, vec![7; 1 << 20]).unwrap();
        let sparse = std::fs::File::create(dir.path().join("sparse")).unwrap();
        sparse.set_len(1 << 40).unwrap();
        std::fs::File::open(&file).unwrap().sync_all().unwrap();
        let expected = ["", "a", "a/b", "a/b/file", "sparse"].map(|n| blocks(&dir.path().join(n)));
        let sum = bytes(dir.path());
        assert_eq!(sum, expected.iter().sum::<u64>());
        assert!(((1 << 20)..(2 << 20)).contains(&sum), "{sum}");
    }

    #[test]
    fn links_are_not_followed_and_a_loop_ends() {
        let dir = on_disk();
        create_dir(dir.path().join("a")).unwrap();
        symlink("..", dir.path().join("a/up")).unwrap();
        symlink("/", dir.path().join("a/root")).unwrap();
        symlink("self", dir.path().join("self")).unwrap();
        assert!(bytes(dir.path()) < 1 << 20);
        assert_eq!(bytes(&dir.path().join("a/root")), 0, "the link itself");
    }

    #[test]
    fn a_file_with_several_names_counts_once_in_the_whole_area() {
        let dir = on_disk();
        for name in ["a", "b"] {
            create_dir(dir.path().join(name)).unwrap();
        }
        write(dir.path().join("a/file"), vec![7; 1 << 20]).unwrap();
        hard_link(dir.path().join("a/file"), dir.path().join("b/file")).unwrap();
        let mut walk = Walk::new(limits());
        walk.add(&dir.path().join("a")).unwrap();
        walk.add(&dir.path().join("b")).unwrap();
        walk.add(&dir.path().join("a")).unwrap();
        assert!(walk.bytes() < (1 << 20) + (1 << 18), "{}", walk.bytes());
    }

    #[test]
    fn another_filesystem_below_is_left_out() {
        // `/dev` holds `/dev/pts` and `/dev/shm`, which are filesystems of their own.
        let mut walk = Walk::new(limits());
        walk.add(Path::new("/dev")).unwrap();
        let shm = fs::stat("/dev/shm").unwrap();
        assert_ne!(shm.st_dev, fs::stat("/dev").unwrap().st_dev, "/dev/shm is a mount");
        assert!(!walk.seen.contains(&(shm.st_dev, shm.st_ino)));
    }

    #[test]
    fn beyond_a_limit_there_is_no_sum_but_a_reason() {
        let dir = on_disk();
        create_dir_all(dir.path().join("1/2/3/4/5")).unwrap();
        let ended = |limits: Limits| Walk::new(limits).add(dir.path()).unwrap_err();
        assert_eq!(ended(Limits { entries: 3, ..limits() }), Incomplete::Entries(3));
        assert_eq!(ended(Limits { depth: 3, ..limits() }), Incomplete::Depth(3));
        for i in 0..BURST {
            write(dir.path().join(format!("file{i}")), "").unwrap();
        }
        assert_eq!(ended(Limits { deadline: Instant::now(), ..limits() }), Incomplete::Late);
    }

    #[test]
    fn what_is_not_there_adds_nothing() {
        assert_eq!(bytes(Path::new("/nonexistent")), 0);
    }
}
