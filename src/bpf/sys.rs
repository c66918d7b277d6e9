//! The system calls below it: `bpf(2)`, and `perf_event_open(2)` with two `ioctl(2)`s for tracepoints.
//!
//! `unsafe` is here alone: no library of ours wraps these calls, and the kernel is handed addresses of memory that it reads or fills.
//! Every address is of a slice that outlives the call, and its length is what the kernel was told when the map was made.
//! Fields are written at the offsets of `union bpf_attr` and `struct perf_event_attr` in Linux' UAPI headers, which never move.

#![expect(unsafe_code, reason = "bpf(2) and perf_event_open(2) have no safe wrapper")]

use std::ffi::{c_long, c_uint};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// As much of `union bpf_attr` as we use; what an older kernel does not know of it must be zero, and is.
const ATTR_WORDS: usize = 18;

const MAP_CREATE: c_long = 0;
const MAP_LOOKUP_ELEM: c_long = 1;
const MAP_UPDATE_ELEM: c_long = 2;
const MAP_DELETE_ELEM: c_long = 3;
const MAP_GET_NEXT_KEY: c_long = 4;
const PROG_LOAD: c_long = 5;
const RAW_TRACEPOINT_OPEN: c_long = 17;

/// What kind of map: `enum bpf_map_type`.
#[derive(Debug, Clone, Copy)]
#[repr(u32)]
pub(crate) enum MapKind {
    Hash = 1,
    Array = 2,
    /// Makes room by forgetting what was used least.
    LruHash = 9,
}

/// What a program is attached to: its `enum bpf_prog_type`, and `enum bpf_attach_type` where there is one.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Hook {
    /// The classic tracepoint with this number, through a perf event.
    Tracepoint(u64),
    /// The entry of the kernel's function with this number in its BTF.
    Entry(u32),
    /// The return of that function.
    Exit(u32),
    /// A raw tracepoint whose arguments have types, by the number of its `btf_trace_` type.
    Typed(u32),
}

/// The attributes of one call.
struct Attr([u64; ATTR_WORDS]);

impl Attr {
    fn new() -> Self {
        Self([0; ATTR_WORDS])
    }

    fn u32(mut self, offset: usize, value: u32) -> Self {
        let shift = (offset % 8) * 8;
        self.0[offset / 8] |= u64::from(value) << shift;
        self
    }

    fn fd(self, offset: usize, fd: &OwnedFd) -> Self {
        self.u32(offset, fd.as_raw_fd().cast_unsigned())
    }

    fn u64(mut self, offset: usize, value: u64) -> Self {
        self.0[offset / 8] = value;
        self
    }

    fn address<T>(self, offset: usize, of: &[T]) -> Self {
        self.u64(offset, of.as_ptr().expose_provenance() as u64)
    }

    fn filled<T>(self, offset: usize, of: &mut [T]) -> Self {
        self.u64(offset, of.as_mut_ptr().expose_provenance() as u64)
    }

    /// At most 16 bytes with a zero at their end.
    fn name(mut self, offset: usize, name: &str) -> Self {
        for (at, byte) in name.bytes().take(15).enumerate() {
            self.0[(offset + at) / 8] |= u64::from(byte) << (((offset + at) % 8) * 8);
        }
        self
    }

    fn call(mut self, command: c_long) -> io::Result<c_long> {
        // SAFETY: the kernel reads the attributes, and may write into them, while they live here; it reads what their addresses
        // point at, which the callers below hold, and writes where `filled` told it to, as much as the sizes there say.
        let answer = unsafe {
            libc::syscall(libc::SYS_bpf, command, self.0.as_mut_ptr(), size_of_val(&self.0))
        };
        if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
    }

    fn open(self, command: c_long) -> io::Result<OwnedFd> {
        owned(self.call(command)?)
    }
}

fn owned(fd: c_long) -> io::Result<OwnedFd> {
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A map in the kernel. It lives until the last descriptor of it and of the programs that use it is closed.
#[derive(Debug)]
pub(crate) struct Map {
    fd: OwnedFd,
    key: usize,
    value: usize,
}

impl Map {
    /// Makes a map of `room` entries with keys and values of so many bytes.
    ///
    /// # Errors
    ///
    /// `EPERM` without the rights, or in a kernel before 5.11 without room in `RLIMIT_MEMLOCK`.
    pub(crate) fn new(
        name: &str,
        kind: MapKind,
        key: usize,
        value: usize,
        room: u32,
    ) -> io::Result<Self> {
        let size = |bytes: usize| u32::try_from(bytes).map_err(io::Error::other);
        let attr = Attr::new()
            .u32(0, kind as u32)
            .u32(4, size(key)?)
            .u32(8, size(value)?)
            .u32(12, room)
            .name(28, name);
        Ok(Self { fd: attr.open(MAP_CREATE)?, key, value })
    }

    pub(super) fn number(&self) -> i32 {
        self.fd.as_raw_fd()
    }

    /// Reads the value of a key into `value`; whether there is one.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub(crate) fn get(&self, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
        self.fits(key.len(), value.len())?;
        let attr = Attr::new().fd(0, &self.fd).address(8, key).filled(16, value);
        found(attr.call(MAP_LOOKUP_ELEM))
    }

    /// Sets the value of a key.
    ///
    /// # Errors
    ///
    /// `E2BIG` when the map is full.
    pub(crate) fn set(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        self.fits(key.len(), value.len())?;
        let attr = Attr::new().fd(0, &self.fd).address(8, key).address(16, value);
        attr.call(MAP_UPDATE_ELEM).map(drop)
    }

    /// Removes a key; whether it was there.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub(crate) fn remove(&self, key: &[u8]) -> io::Result<bool> {
        self.fits(key.len(), self.value)?;
        found(Attr::new().fd(0, &self.fd).address(8, key).call(MAP_DELETE_ELEM))
    }

    /// All keys, at most `most`: another that comes meanwhile may be missing, and one that goes may let some come twice.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub(crate) fn keys(&self, most: usize) -> io::Result<Vec<Vec<u8>>> {
        let mut all: Vec<Vec<u8>> = Vec::new();
        while all.len() < most {
            let mut next = vec![0; self.key];
            let attr = Attr::new().fd(0, &self.fd).filled(16, &mut next);
            let attr = match all.last() {
                Some(key) => attr.address(8, key),
                None => attr,
            };
            if !found(attr.call(MAP_GET_NEXT_KEY))? {
                break;
            }
            all.push(next);
        }
        Ok(all)
    }

    fn fits(&self, key: usize, value: usize) -> io::Result<()> {
        if (key, value) == (self.key, self.value) {
            Ok(())
        } else {
            Err(io::ErrorKind::InvalidInput.into())
        }
    }
}

fn found(answer: io::Result<c_long>) -> io::Result<bool> {
    match answer {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        other => other.map(|_| true),
    }
}

/// Has the verifier look at a program and loads it; `log` takes what it says of one that it refuses, when it has room.
///
/// # Errors
///
/// `EACCES` or `EINVAL` when the verifier refuses it, `EPERM` without the rights.
pub(super) fn load(name: &str, hook: Hook, code: &[u64], log: &mut [u8]) -> io::Result<OwnedFd> {
    /// GPL is what the helper that reads a process' memory asks for.
    const LICENSE: &[u8] = b"Dual MIT/GPL\0";
    /// `BPF_PROG_TYPE_TRACEPOINT` and `BPF_PROG_TYPE_TRACING`; `BPF_TRACE_FENTRY`, `_FEXIT` and `_RAW_TP`.
    const TRACEPOINT: u32 = 5;
    const TRACING: u32 = 26;
    let (kind, attach, of) = match hook {
        Hook::Tracepoint(_) => (TRACEPOINT, 0, 0),
        Hook::Typed(of) => (TRACING, 23, of),
        Hook::Entry(of) => (TRACING, 24, of),
        Hook::Exit(of) => (TRACING, 25, of),
    };
    let length = u32::try_from(code.len()).map_err(io::Error::other)?;
    let mut attr = Attr::new()
        .u32(0, kind)
        .u32(4, length)
        .address(8, code)
        .address(16, LICENSE)
        .name(48, name)
        .u32(68, attach)
        .u32(108, of);
    if !log.is_empty() {
        let room = u32::try_from(log.len()).map_err(io::Error::other)?;
        attr = attr.u32(24, 1).u32(28, room).filled(32, log);
    }
    attr.open(PROG_LOAD)
}

/// Attaches a program that was loaded for a function or a typed tracepoint; it is attached while the descriptor is open.
///
/// # Errors
///
/// `EPERM` where the kernel allows no trampolines, `EBUSY` where the function has too many.
pub(super) fn attach_typed(program: &OwnedFd) -> io::Result<OwnedFd> {
    Attr::new().fd(8, program).open(RAW_TRACEPOINT_OPEN)
}

/// Attaches a program to the tracepoint with this number; it is attached while the descriptor is open.
///
/// # Errors
///
/// `EACCES` where `kernel.perf_event_paranoid` is 3 or more, and without the rights.
pub(super) fn attach_tracepoint(program: &OwnedFd, id: u64) -> io::Result<OwnedFd> {
    const TYPE_TRACEPOINT: u64 = 2;
    /// `PERF_ATTR_SIZE_VER5`.
    const SIZE: u64 = 112;
    const CLOSE_ON_EXEC: c_long = 8;
    const SET_BPF: libc::Ioctl = 0x4004_2408_u32 as libc::Ioctl;
    const ENABLE: libc::Ioctl = 0x2400_u32 as libc::Ioctl;
    let mut attr = [0_u64; 14];
    attr[0] = TYPE_TRACEPOINT | (SIZE << 32);
    attr[1] = id;
    // Of all processes on the first CPU: it runs on all of them all the same.
    let (everyone, cpu, group): (c_long, c_long, c_long) = (-1, 0, -1);
    // SAFETY: the kernel reads the attributes, which live until the call is over.
    let event = unsafe {
        libc::syscall(libc::SYS_perf_event_open, attr.as_ptr(), everyone, cpu, group, CLOSE_ON_EXEC)
    };
    if event < 0 {
        return Err(io::Error::last_os_error());
    }
    let event = owned(event)?;
    let control = |request, argument: c_uint| {
        // SAFETY: both requests take a number and touch no memory of ours.
        let answer = unsafe { libc::ioctl(event.as_raw_fd(), request, argument) };
        if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    };
    control(SET_BPF, program.as_raw_fd().cast_unsigned())?;
    control(ENABLE, 0)?;
    Ok(event)
}
