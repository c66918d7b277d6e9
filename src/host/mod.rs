//! What this node is: distribution, data directories, units, devices.
//!
//! [`detect`] reads files below `--path.rootfs` and `/proc/PID/{comm,cmdline,cgroup}`, executes
//! nothing and writes nothing. Every read is bounded, so garbage costs a note, never a panic. It
//! runs in a child process at start, on reload and every minute, because what it reads may lie on
//! the disk that hangs. Measured with 111 processes: 2 ms, and 10 ms the first time.
//!
//! [`Mounts`] and [`devices`] are also used by samplers, which read `/proc` and `/sys` only.

pub(crate) mod components;
mod detect;
pub mod devices;
mod etcd_process;
mod etcd_settings;
mod facts;
mod flags;
mod found;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
pub(crate) mod go_build;
mod k0s;
mod kubeadm;
mod manifest;
pub mod mounts;
pub(crate) mod os_release;
mod overrides;
pub(crate) mod processes;
mod rancher;
mod rancher_config;
pub(crate) mod read;
pub(crate) mod snaps;
mod talos;
mod units;
pub(crate) mod yaml;

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

pub use detect::detect;
pub use facts::*;
pub(crate) use flags::words_of_file;
pub use mounts::{Mount, Mounts};
pub use overrides::Overrides;

/// Links followed in one path before it is taken for a loop, as the kernel does.
const MAX_LINKS: usize = 40;

/// The machine that is watched: where its root lies, and what was found out about it.
#[derive(Debug, Clone)]
pub struct Host {
    rootfs: PathBuf,
    facts: Arc<Facts>,
}

impl Host {
    /// The host whose `/` is `rootfs`, with nothing known about it yet.
    pub fn at(rootfs: impl Into<PathBuf>) -> Self {
        Self { rootfs: rootfs.into(), facts: Arc::default() }
    }

    /// The same host with `facts`.
    #[must_use]
    pub fn with_facts(&self, facts: Facts) -> Self {
        Self { rootfs: self.rootfs.clone(), facts: Arc::new(facts) }
    }

    /// Where the host's `/` lies in this process's view.
    pub fn rootfs(&self) -> &Path {
        &self.rootfs
    }

    /// What detection found.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// The place of a host path in this process's view. Always below the root: `..` is taken
    /// off as text and stops at `/`. Links are left alone; see [`Host::resolve`].
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let mut inside = PathBuf::new();
        for component in path.as_ref().components() {
            match component {
                Component::Normal(name) => inside.push(name),
                Component::ParentDir => {
                    inside.pop();
                }
                Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
            }
        }
        // Joining an empty path would leave a trailing slash.
        if inside.as_os_str().is_empty() { self.rootfs.clone() } else { self.rootfs.join(inside) }
    }

    /// The host path at the end of every link in `path`, absolute links being taken from the
    /// host's root and not from ours. What does not exist, or cannot be examined, is kept as it
    /// is written.
    ///
    /// # Errors
    ///
    /// More than 40 links: a loop.
    pub fn resolve(&self, path: impl AsRef<Path>) -> io::Result<PathBuf> {
        let mut ahead = parts(path.as_ref());
        let mut done = PathBuf::from("/");
        let mut links = 0;
        while let Some(part) = ahead.pop_front() {
            if part == ".." {
                done.pop();
                continue;
            }
            let here = done.join(&part);
            let Ok(target) = std::fs::read_link(self.path(&here)) else {
                done = here;
                continue;
            };
            links += 1;
            if links > MAX_LINKS {
                return Err(rustix::io::Errno::LOOP.into());
            }
            if target.is_absolute() {
                done = PathBuf::from("/");
            }
            for part in parts(&target).into_iter().rev() {
                ahead.push_front(part);
            }
        }
        Ok(done)
    }
}

/// The names in `path`, with `..` kept.
fn parts(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some(OsString::from("..")),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        })
        .collect()
}

#[cfg(test)]
mod fixture_tests;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn every_path_stays_below_the_root() {
        let host = Host::at("/host");
        assert_eq!(host.path("/etc/hostname"), Path::new("/host/etc/hostname"));
        assert_eq!(host.path("etc/./hostname"), Path::new("/host/etc/hostname"));
        assert_eq!(host.path("/../../etc/../../passwd"), Path::new("/host/passwd"));
        assert_eq!(host.path("/"), Path::new("/host"));
        assert_eq!(Host::at("/").path("/proc/1"), Path::new("/proc/1"));
    }

    #[test]
    fn links_are_followed_inside_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::at(dir.path());
        std::fs::create_dir_all(dir.path().join("snap/microk8s/8695")).unwrap();
        symlink("8695", dir.path().join("snap/microk8s/current")).unwrap();
        symlink("/snap/microk8s/current", dir.path().join("absolute")).unwrap();
        symlink("../../../../snap", dir.path().join("climbing")).unwrap();
        let target = Path::new("/snap/microk8s/8695/meta");
        assert_eq!(host.resolve("/snap/microk8s/current/meta").unwrap(), target);
        assert_eq!(host.resolve("/absolute/meta").unwrap(), target);
        assert_eq!(host.resolve("/climbing/microk8s/current/meta").unwrap(), target);
        assert_eq!(host.resolve("/not/there").unwrap(), Path::new("/not/there"));
    }

    #[test]
    fn a_loop_of_links_is_an_error_and_not_a_hang() {
        let dir = tempfile::tempdir().unwrap();
        symlink("/b", dir.path().join("a")).unwrap();
        symlink("/a", dir.path().join("b")).unwrap();
        assert!(Host::at(dir.path()).resolve("/a/etc").is_err());
    }
}
