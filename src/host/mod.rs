//! What this node is: distribution, data directories, certificates, units, devices.

mod facts;

use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

pub use facts::*;

/// The node as samplers see it: where its files are, and what detection found.
#[derive(Debug, Clone)]
pub struct Host {
    rootfs: PathBuf,
    facts: Arc<Facts>,
}

impl Host {
    /// A node whose files lie below `rootfs`, of which nothing is known yet.
    pub fn at(rootfs: impl Into<PathBuf>) -> Self {
        Self { rootfs: rootfs.into(), facts: Arc::default() }
    }

    /// The same node with these facts.
    #[must_use]
    pub fn with_facts(&self, facts: Facts) -> Self {
        Self { rootfs: self.rootfs.clone(), facts: Arc::new(facts) }
    }

    /// What detection found.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Where the host's files lie.
    pub fn rootfs(&self) -> &Path {
        &self.rootfs
    }

    /// Where the host's `path` is for this process. `..` never leads out of the root.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let mut out = self.rootfs.clone();
        for component in path.as_ref().components() {
            match component {
                Component::Normal(name) => out.push(name),
                Component::ParentDir if out != self.rootfs => {
                    out.pop();
                }
                _ => {}
            }
        }
        out
    }
}

/// Section `host` of the configuration: what detection is told instead of finding out.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Overrides {
    /// The distribution.
    pub distribution: Option<Distribution>,
}

/// Finds out what this node is.
pub fn detect(_host: &Host, _overrides: &Overrides) -> Facts {
    Facts::default()
}
