//! The kernel's log as records, from the moment of opening on.

use rustix::fs::{Mode, OFlags, SeekFrom, open, seek};
use rustix::io::Errno;
use std::os::fd::OwnedFd;

/// One record of `/dev/kmsg`.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    /// 0 is the kernel; what a process writes to `/dev/kmsg` has another.
    pub(crate) facility: u32,
    pub(crate) text: String,
}

/// A reader that sees only what comes after it was opened.
pub(crate) struct KernelLog(OwnedFd);

impl KernelLog {
    #[track_caller]
    pub(crate) fn from_now() -> Self {
        super::need_root("reading /dev/kmsg");
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = open("/dev/kmsg", flags, Mode::empty()).expect("/dev/kmsg");
        seek(&file, SeekFrom::End(0)).expect("the end of /dev/kmsg");
        Self(file)
    }

    /// The records since the last call.
    pub(crate) fn drain(&self) -> Vec<Record> {
        let mut records = Vec::new();
        let mut buffer = vec![0; 8192];
        loop {
            match rustix::io::read(&self.0, &mut buffer[..]) {
                Ok(length) => records.extend(parse(&String::from_utf8_lossy(&buffer[..length]))),
                // Records were overwritten before they were read: go on with the oldest that is left.
                Err(Errno::PIPE | Errno::INTR) => {}
                Err(Errno::AGAIN) => return records,
                Err(error) => panic!("reading /dev/kmsg: {error}"),
            }
        }
    }
}

fn parse(record: &str) -> Option<Record> {
    let (prefix, text) = record.split_once(';')?;
    let priority: u32 = prefix.split(',').next()?.parse().ok()?;
    let text = text.lines().next().unwrap_or_default().to_owned();
    Some(Record { facility: priority >> 3, text })
}
