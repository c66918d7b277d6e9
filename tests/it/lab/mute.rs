//! A filesystem that is mounted and never answers: whoever opens its directory, or asks how full it is, waits in the
//! kernel until it is unmounted.

use super::process::{bound_command, output};
use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, INodeNo,
    MountOption, OpenFlags, ReplyAttr, ReplyEntry, ReplyOpen, ReplyStatfs, Request,
};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

/// Holds what is never answered: a reply that is dropped is an error for who waits for it.
#[derive(Default)]
struct Mute {
    sizes: Mutex<Vec<ReplyStatfs>>,
    opened: Mutex<Vec<ReplyOpen>>,
}

/// Mounted until it is dropped.
pub(crate) struct Mounted {
    folder: PathBuf,
    session: Option<BackgroundSession>,
}

/// Mounts it over a folder. Nothing in the test process may touch the folder meanwhile.
#[track_caller]
pub(crate) fn over(folder: &Path) -> Mounted {
    mount(folder, &Config::default())
}

/// The same, with this as what is mounted.
#[track_caller]
pub(crate) fn from(source: &str, folder: &Path) -> Mounted {
    let mut config = Config::default();
    config.mount_options = vec![MountOption::FSName(source.to_owned())];
    mount(folder, &config)
}

#[track_caller]
fn mount(folder: &Path, config: &Config) -> Mounted {
    let session = fuser::spawn_mount(Mute::default(), folder, config);
    Mounted { folder: folder.to_owned(), session: Some(session.expect("a FUSE mount")) }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // By force, which ends whoever still waits: they keep the mount busy, and it would outlive the session.
        let mut command = bound_command("umount");
        command.args(["-f", "-l"]).arg(&self.folder);
        output(command, Duration::from_secs(20));
        drop(self.session.take());
    }
}

impl Filesystem for Mute {
    fn lookup(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        reply.error(Errno::ENOENT);
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let time = std::time::UNIX_EPOCH;
        let attributes = FileAttr {
            ino: inode,
            size: 0,
            blocks: 0,
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind: FileType::Directory,
            perm: 0o700,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        };
        reply.attr(&Duration::from_hours(1), &attributes);
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        self.sizes.lock().unwrap().push(reply);
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.opened.lock().unwrap().push(reply);
    }
}
