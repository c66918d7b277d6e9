//! Whether this process may read and write what the samplers need; for `inspect`.
//!
//! Opens `/dev/kmsg` and the TLS files without reading them, and asks the kernel whether the sync
//! probe may create its file. Runs in a child process, because these may lie on a disk that hangs.

use std::io::{self, ErrorKind};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Access, AtFlags, CWD, OFlags, accessat};
use serde::{Deserialize, Serialize};

use crate::child::{self, ChildError, Slot};
use crate::config::Config;
use crate::host::{Facts, Host};
use crate::samplers::{certificate, dqlite, etcd_snapshot, fdatasync, snap};

/// How long looking may take.
const DEADLINE: Duration = Duration::from_secs(3);

/// What is to be done with a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Use {
    KernelLog,
    Read,
    CreateIn,
}

/// Whether a directory would do for a file that must lie on the same device as this path.
fn is_beside(host: &Host, path: &Path, directory: &Path) -> bool {
    let device = |path: &Path| {
        let here = host.path(host.resolve(path).unwrap_or_else(|_| path.to_owned()));
        Some(rustix::fs::stat(here).ok()?.st_dev)
    };
    // What cannot be looked at is for the attempt to tell.
    device(path).zip(device(directory)).is_none_or(|(path, directory)| path == directory)
}

/// What a sampler needs: one of these host paths.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Need {
    sampler: String,
    paths: Vec<PathBuf>,
    /// Only those on the device of this one count.
    beside: Option<PathBuf>,
    purpose: Use,
}

/// What a sampler may not do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lack {
    /// The sampler that needs it.
    pub sampler: String,
    /// The host path.
    pub path: PathBuf,
    /// What the kernel said.
    pub error: String,
    /// The capabilities that would allow it; none where it takes a directory of the agent's own, since no capability
    /// writes to what the unit sees read-only.
    pub capabilities: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Question {
    rootfs: PathBuf,
    needs: Vec<Need>,
}

/// What the samplers that are on may not do here.
///
/// # Errors
///
/// See [`ChildError`].
pub async fn lacking(config: &Config, facts: &Facts) -> Result<Vec<Lack>, ChildError> {
    let question = Question { rootfs: config.path.rootfs.clone(), needs: needs(config, facts) };
    Slot::default().ask(&["access"], &question, DEADLINE).await
}

/// The child's side of [`lacking`].
///
/// # Errors
///
/// When the question cannot be read or answered.
pub fn run_access() -> io::Result<()> {
    child::answer(|question: Question| {
        let host = Host::at(question.rootfs);
        question.needs.iter().filter_map(|need| lack(&host, need)).collect::<Vec<_>>()
    })
}

fn needs(config: &Config, facts: &Facts) -> Vec<Need> {
    let mut needs = Vec::new();
    let on = |name: &str| config.samplers.get(name).and_then(Option::as_ref);
    let mut add = |sampler: &str, paths: Vec<PathBuf>, beside, purpose| {
        needs.push(Need { sampler: sampler.to_owned(), paths, beside, purpose });
    };
    for name in ["etcd", "registry_keys"] {
        let Some(options) = on(name) else { continue };
        let found = facts.etcd();
        for (key, found) in [
            ("ca_file", found.and_then(|etcd| etcd.ca_file.clone())),
            ("cert_file", found.and_then(|etcd| etcd.cert_file.clone())),
            ("key_file", found.and_then(|etcd| etcd.key_file.clone())),
        ] {
            let told = options.own.get(key).and_then(|value| value.as_str()).map(PathBuf::from);
            if let Some(path) = told.or(found) {
                add(name, vec![path], None, Use::Read);
            }
        }
    }
    if let Some(options) = on("fdatasync") {
        for (path, directories) in fdatasync::directories(options, facts) {
            add("fdatasync", directories, Some(path), Use::CreateIn);
        }
    }
    if on("kernel").is_some() {
        add("kernel", vec!["/dev/kmsg".into()], None, Use::KernelLog);
    }
    if let Some(options) = on("snap") {
        // What lies below is for the walk to find; a snap whose data is closed as a whole is said here.
        for common in snap::common(options, facts) {
            add("snap", vec![common], None, Use::Read);
        }
    }
    if let Some(options) = on("dqlite") {
        let told = options.own.get("dir").and_then(|value| value.as_str()).map(PathBuf::from);
        if let Some(dir) = told.or_else(|| dqlite::directory(facts)) {
            let key = dir.join("cluster.key");
            add("dqlite", vec![dir], None, Use::Read);
            add("dqlite", vec![key], None, Use::Read);
        }
    }
    if let Some(options) = on("certificate") {
        for path in certificate::places(options, facts) {
            add("certificate", vec![path], None, Use::Read);
        }
    }
    if let Some(dir) = on("etcd_snapshot").and_then(|own| etcd_snapshot::directory(own, facts)) {
        add("etcd_snapshot", vec![dir], None, Use::Read);
    }
    needs
}

/// The first path, if none of them may be used.
fn lack(host: &Host, need: &Need) -> Option<Lack> {
    let mut first = None;
    for path in &need.paths {
        if need.beside.as_ref().is_some_and(|beside| !is_beside(host, beside, path)) {
            continue;
        }
        let here = host.path(host.resolve(path).unwrap_or_else(|_| path.clone()));
        match attempt(&here, need.purpose) {
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                first.get_or_insert((path, error));
            }
            // What is not there, or not a file, is for the sampler to tell.
            _ => return None,
        }
    }
    let (path, error) = first?;
    let closed = error.raw_os_error() == Some(rustix::io::Errno::PERM.raw_os_error());
    let capabilities: &[&str] = match need.purpose {
        Use::KernelLog if closed => &["CAP_SYSLOG"],
        Use::KernelLog => &["CAP_SYSLOG", "CAP_DAC_READ_SEARCH"],
        Use::Read => &["CAP_DAC_READ_SEARCH"],
        Use::CreateIn => &[],
    };
    Some(Lack {
        sampler: need.sampler.clone(),
        path: path.clone(),
        error: error.to_string(),
        capabilities: capabilities.iter().map(|&name| name.to_owned()).collect(),
    })
}

fn attempt(path: &Path, purpose: Use) -> io::Result<()> {
    if purpose == Use::CreateIn {
        let wanted = Access::WRITE_OK | Access::EXEC_OK;
        return Ok(accessat(CWD, path, wanted, AtFlags::EACCESS)?);
    }
    // A FIFO in place of the file must not hold anybody.
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
    std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path).map(drop)
}
