//! What a distribution's detector is asked, and what it answers.

use std::path::PathBuf;

use super::read::Probe;
use super::{Installation, units};

/// An installation, with what only the choice among several needs.
pub(super) struct Found {
    pub(super) installation: Installation,
    /// Whether a unit of it starts at boot.
    pub(super) wanted: bool,
    /// Client URLs that a plain etcd advertises.
    pub(super) advertised: Vec<String>,
}

impl Found {
    pub(super) fn new(probe: &Probe, installation: Installation) -> Self {
        let mut expected = installation.units.iter().filter(|unit| unit.expected);
        let wanted = expected.any(|unit| units::enabled(probe, &unit.name));
        Self { installation, wanted, advertised: Vec::new() }
    }

    pub(super) fn advertising(self, advertised: Vec<String>) -> Self {
        Self { advertised, ..self }
    }
}

/// What the configuration asks of one distribution.
#[derive(Default)]
pub(super) struct Hint {
    /// The data directory to believe.
    pub(super) data_dir: Option<PathBuf>,
    /// Describe the distribution even without evidence.
    pub(super) forced: bool,
}
