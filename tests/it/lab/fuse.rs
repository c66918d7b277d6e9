//! A filesystem with one file whose reads, writes and syncs can be slowed, failed or held back.
//!
//! It is served by threads of the test process, so a test must never touch the file, or what lies on it,
//! from the test process itself: a hang that the test itself waits for is never released. Everything goes
//! through children. The kernel ends all waiting requests when the test process dies.
//!
//! No request is answered by the thread that received it while a fault is set: reading goes on while a
//! sync hangs, as with a real disk.

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, Generation,
    INodeNo, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry,
    ReplyWrite, Request, WriteFlags,
};
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant, UNIX_EPOCH};

const FILE_NAME: &str = "disk";
const FILE: INodeNo = INodeNo(2);
const TTL: Duration = Duration::from_hours(1);

/// What a fault applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Read,
    Write,
    Sync,
}

/// What happens to an operation. The delay passes first, then the errno or the real answer follows.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Fault {
    pub(crate) delay: Duration,
    /// The raw number of an errno, such as 5 for EIO.
    pub(crate) errno: Option<i32>,
    /// Nothing is answered until the fault is replaced.
    pub(crate) hang: bool,
}

impl Fault {
    fn is_none(&self) -> bool {
        self.delay.is_zero() && self.errno.is_none() && !self.hang
    }
}

#[derive(Default)]
struct State {
    faults: [Fault; 3],
    syncs: u64,
    /// Requests that are being delayed or held back.
    waiting: usize,
}

/// The faults of one filesystem, shared between the test and the threads that serve it.
#[derive(Default)]
pub(crate) struct Faults {
    state: Mutex<State>,
    changed: Condvar,
}

impl Faults {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the fault of an operation; a request that waits goes by the new one.
    pub(crate) fn set(&self, operation: Operation, fault: Fault) {
        self.lock().faults[operation as usize] = fault;
        self.changed.notify_all();
    }

    /// No faults from now on; requests held back are answered.
    pub(crate) fn clear(&self) {
        self.lock().faults = <[Fault; 3]>::default();
        self.changed.notify_all();
    }

    /// How many syncs have been asked for.
    pub(crate) fn syncs(&self) -> u64 {
        self.lock().syncs
    }

    /// How many requests are being delayed or held back now.
    pub(crate) fn waiting(&self) -> usize {
        self.lock().waiting
    }

    fn faulty(&self, operation: Operation) -> bool {
        !self.lock().faults[operation as usize].is_none()
    }

    /// Waits as the fault of `operation` says, and gives the error to answer with.
    fn pass(&self, operation: Operation) -> Option<Errno> {
        let started = Instant::now();
        let mut state = self.lock();
        state.waiting += 1;
        let errno = loop {
            let fault = state.faults[operation as usize];
            let left = fault.delay.saturating_sub(started.elapsed());
            if left.is_zero() && !fault.hang {
                break fault.errno;
            }
            let pause = if fault.hang { Duration::from_hours(1) } else { left };
            let woken = self.changed.wait_timeout(state, pause);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        };
        state.waiting -= 1;
        errno.map(Errno::from_i32)
    }
}

/// A mounted filesystem with one file. Unmounted when dropped.
pub(crate) struct FaultyFile {
    faults: Arc<Faults>,
    session: Option<BackgroundSession>,
    folder: tempfile::TempDir,
}

impl FaultyFile {
    /// A sparse file of `size` bytes, kept in a temporary file of the host.
    #[track_caller]
    pub(crate) fn new(size: u64) -> Self {
        super::need_root("a FUSE mount");
        let folder = super::temp_dir("fuse");
        let mountpoint = folder.path().join("mnt");
        std::fs::create_dir(&mountpoint).expect("a mount point");
        let path = folder.path().join("backing");
        let mut options = File::options();
        let backing = options.read(true).write(true).create_new(true).open(path).expect("a file");
        backing.set_len(size).expect("a sparse file");
        let faults = Arc::new(Faults::default());
        let server = Server { backing: Arc::new(backing), size, faults: faults.clone() };
        let mut config = Config::default();
        config.mount_options.push(MountOption::FSName("controlplane-exporter-lab".to_owned()));
        let session = fuser::spawn_mount(server, &mountpoint, &config)
            .unwrap_or_else(|error| panic!("mounting FUSE: {error}: run tests/setup.sh"));
        Self { faults, session: Some(session), folder }
    }

    /// The file. Only children of the test process may touch it.
    pub(crate) fn path(&self) -> PathBuf {
        self.mountpoint().join(FILE_NAME)
    }

    pub(crate) fn mountpoint(&self) -> PathBuf {
        self.folder.path().join("mnt")
    }

    pub(crate) fn faults(&self) -> &Arc<Faults> {
        &self.faults
    }
}

impl Drop for FaultyFile {
    fn drop(&mut self) {
        self.faults.clear();
        super::disk::unmount(&self.mountpoint());
        // The session has ended with the mount; joining it could only wait for a thread that is gone.
        drop(self.session.take());
    }
}

struct Server {
    backing: Arc<File>,
    size: u64,
    faults: Arc<Faults>,
}

impl Server {
    fn attributes(&self, inode: INodeNo) -> FileAttr {
        let folder = inode == INodeNo::ROOT;
        FileAttr {
            ino: inode,
            size: if folder { 0 } else { self.size },
            blocks: self.size / 512,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if folder { FileType::Directory } else { FileType::RegularFile },
            perm: if folder { 0o700 } else { 0o600 },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }

    /// Answers at once, or from a thread of its own when the operation has a fault.
    fn answer(&self, operation: Operation, answer: impl FnOnce(Option<Errno>) + Send + 'static) {
        if !self.faults.faulty(operation) {
            return answer(None);
        }
        let faults = self.faults.clone();
        std::thread::spawn(move || answer(faults.pass(operation)));
    }
}

fn read_fully(file: &File, offset: u64, size: u32) -> std::io::Result<Vec<u8>> {
    let mut data = vec![0; size as usize];
    let mut filled = 0;
    while filled < data.len() {
        match file.read_at(&mut data[filled..], offset + filled as u64)? {
            0 => break,
            length => filled += length,
        }
    }
    data.truncate(filled);
    Ok(data)
}

impl Filesystem for Server {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if parent == INodeNo::ROOT && name == FILE_NAME {
            reply.entry(&TTL, &self.attributes(FILE), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &self.attributes(inode));
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let file = self.backing.clone();
        self.answer(Operation::Read, move |errno| match errno {
            Some(errno) => reply.error(errno),
            None => match read_fully(&file, offset, size) {
                Ok(data) => reply.data(&data),
                Err(_) => reply.error(Errno::EIO),
            },
        });
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let (file, data) = (self.backing.clone(), data.to_vec());
        self.answer(Operation::Write, move |errno| match errno {
            Some(errno) => reply.error(errno),
            None => match file.write_all_at(&data, offset) {
                Ok(()) => reply.written(u32::try_from(data.len()).unwrap_or(u32::MAX)),
                Err(_) => reply.error(Errno::EIO),
            },
        });
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.faults.lock().syncs += 1;
        self.answer(Operation::Sync, move |errno| match errno {
            Some(errno) => reply.error(errno),
            None => reply.ok(),
        });
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }
}
