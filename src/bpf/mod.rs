//! A small loader for BPF: maps, programs and what they are attached to.
//!
//! | file | what |
//! |---|---|
//! | `asm.rs` | an assembler; no compiler is needed to build the agent |
//! | `btf.rs` | numbers of the kernel's functions in its description of itself |
//! | `sys.rs` | the system calls; the only `unsafe` beside the clock's |
//!
//! Programs are assembled when they are loaded, and the kernel's verifier checks each. Whatever is loaded and attached goes when its
//! descriptors are closed, so also when the agent is killed. Nothing is pinned. Why it is our own: ARCHITECTURE.md has the
//! measurement.

pub(crate) mod asm;
pub(crate) mod btf;
mod sys;

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

pub(crate) use sys::{Hook, Map, MapKind};

/// How much of what the verifier says is kept, in bytes.
const LOG_BYTES: usize = 64 << 10;

/// A program that runs until this is dropped.
#[derive(Debug)]
pub(crate) struct Attached {
    _link: OwnedFd,
    _program: OwnedFd,
}

/// Loads a program and attaches it where `hook` says.
///
/// # Errors
///
/// A sentence with the program's name, the step, and what the kernel says.
pub(crate) fn attach(name: &str, hook: Hook, code: &[u64]) -> io::Result<Attached> {
    let program = match sys::load(name, hook, code, &mut []) {
        Ok(program) => program,
        Err(error) => {
            return Err(told(&format!("loading {name}{}", refusal(name, hook, code)), &error));
        }
    };
    let link = match hook {
        Hook::Tracepoint(id) => sys::attach_tracepoint(&program, id),
        Hook::Entry(_) | Hook::Exit(_) | Hook::Typed(_) => sys::attach_typed(&program),
    };
    let link = link.map_err(|error| told(&format!("attaching {name}"), &error))?;
    Ok(Attached { _link: link, _program: program })
}

/// Whether the kernel's verifier accepts a program.
///
/// # Errors
///
/// What it says last.
#[cfg(test)]
pub(crate) fn verify(name: &str, hook: Hook, code: &[u64]) -> io::Result<()> {
    let loaded = sys::load(name, hook, code, &mut []).map(drop);
    loaded.map_err(|error| told(&refusal(name, hook, code), &error))
}

/// The error with what was being done.
pub(crate) fn told(what: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

/// What the verifier says last of a program that it refuses, or nothing.
fn refusal(name: &str, hook: Hook, code: &[u64]) -> String {
    let mut log = vec![0; LOG_BYTES];
    if sys::load(name, hook, code, &mut log).is_ok() {
        return String::new();
    }
    let text = String::from_utf8_lossy(&log);
    let said = text.trim_end_matches('\0').trim_end().lines().rev();
    // The last line counts instructions.
    let line = said.map(str::trim).find(|line| !line.is_empty() && !line.starts_with("processed "));
    line.map_or_else(String::new, |line| format!(" ({line})"))
}

/// Lifts the limit on memory that a process may lock, which kernels before 5.11 take maps from. Where it is refused, the map is.
pub(crate) fn lift_memory_limit() {
    let none = rustix::process::Rlimit { current: None, maximum: None };
    if let Err(error) = rustix::process::setrlimit(rustix::process::Resource::Memlock, none) {
        tracing::debug!(%error, "the limit on locked memory stays");
    }
}

/// The kernel's description of its own types.
///
/// # Errors
///
/// When there is none.
pub(crate) fn kernel_types() -> io::Result<Vec<u8>> {
    let path = "/sys/kernel/btf/vmlinux";
    std::fs::read(path).map_err(|error| told(path, &error))
}

/// The number of a tracepoint.
///
/// # Errors
///
/// When tracefs is mounted nowhere, or closed to this user.
pub(crate) fn tracepoint(group: &str, name: &str) -> io::Result<u64> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    let mut at = PathBuf::new();
    for root in ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"] {
        at = Path::new(root).join("events").join(group).join(name).join("id");
        match std::fs::read_to_string(&at) {
            Ok(text) => return text.trim().parse().map_err(io::Error::other),
            Err(error) => {
                // That it is closed says more than that it is not there as well.
                if last.kind() == io::ErrorKind::NotFound {
                    last = error;
                }
            }
        }
    }
    Err(told(&at.display().to_string(), &last))
}
