//! How this node is set up: what must be the same on every server, and what changed since the start.
//!
//! A flag on one server only does nothing until that server leads; a version that lags, a file that was edited and not
//! taken over, a kernel left at its defaults are as quiet. Each node tells its own, and the rules compare.
//!
//! | file | what |
//! |---|---|
//! | `settings/component.rs` | what of a program's flags must be shared, its digest, and which flags are named |
//! | `settings/machine.rs` | kernel, disks, pools, pressure and clock |
//! | `settings/versions.rs` | which versions are installed, without executing anything |
//!
//! Reads configuration (see `src/host/components.rs`), the headers of programs, small files of `/proc` and `/sys`, and asks
//! the kernel for its clock, in a child process. Secrets are taken out by the reader of the configuration. What cannot be
//! read is a failed part of the run, and its program is left out: half of its settings would look like a difference.

mod component;
mod machine;
mod versions;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::host::components::{Component, components};
use crate::host::{Host, processes, read};
use crate::metric::Metric;
use crate::sample::{Batch, SampleError};
use crate::sampler::{BlockingSampler, Build, SamplerDef, defaults, facts};

/// See the module's page.
pub static SAMPLER: SamplerDef = SamplerDef {
    about: "Settings and versions that the nodes of a control plane should share, and how the machine is tuned.",
    interval: Duration::from_mins(1),
    timeout: Duration::from_secs(5),
    metrics: &[
        COMPONENT.desc(),
        FLAG.desc(),
        VERSION.desc(),
        FILE.desc(),
        CHANGED.desc(),
        machine::SYSCTL.desc(),
        machine::DISK.desc(),
        machine::TXG_TIMEOUT.desc(),
        machine::POOL.desc(),
        machine::PRESSURE.desc(),
        machine::CLOCK.desc(),
        machine::CLOCK_ERROR.desc(),
    ],
    defaults: defaults::<Options>,
    uses: |all| facts((all.primary(), all.datastore.as_ref().map(|place| &place.disks))),
    build: |options, host| {
        let Options {} = options.parse()?;
        Ok(Build::isolated(Settings { host: host.clone() }))
    },
    cost: "3.5 ms of CPU a run, most of it a child process",
};

static COMPONENT: Metric<2> = Metric::info(
    "controlplane_settings_component_info",
    "A program of the control plane, and the digest of those of its flags that all nodes should share. Secrets count only as set or not set. At most 8.",
    ["component", "digest"],
);
static FLAG: Metric<3> = Metric::info(
    "controlplane_settings_flag_info",
    "A setting that matters and is no secret, one series for each item of a list; for k3s, RKE2 and k0s everything that all servers must share and what each disables, with the default where it is not set. At most 64 of a program.",
    ["component", "flag", "value"],
);
static VERSION: Metric<2> = Metric::info(
    "controlplane_settings_version_info",
    "What is installed: kubernetes, the distribution, programs of the control plane, containerd, kernel and os.",
    ["component", "version"],
);
static FILE: Metric<1> = Metric::gauge(
    "controlplane_settings_file_timestamp_seconds",
    "When a file of the configuration was last changed, in Unix time. At most 32 files.",
    ["path"],
);
static CHANGED: Metric<1> = Metric::gauge(
    "controlplane_settings_changed_since_start",
    "Whether the file was changed after the program that reads it has started, so that the next restart brings the change; absent while the program does not run.",
    ["path"],
);

/// Files whose time is told.
const MAX_FILES: usize = 32;

/// The section `settings`, which has no keys of its own.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Options {}

struct Settings {
    host: Host,
}

impl BlockingSampler for Settings {
    /// # Errors
    ///
    /// None: what cannot be read is a part that failed.
    fn sample(&mut self, out: &mut Batch) -> Result<(), SampleError> {
        let (found, notes) = components(&self.host);
        for component in &found {
            component::tell(component, out);
        }
        for note in notes {
            out.fail(SampleError::Detection(note));
        }
        self.files(&found, out);
        versions::tell(&self.host, &found, out);
        machine::tell(&self.host, out);
        Ok(())
    }
}

impl Settings {
    /// When the files were changed, and whether the program that reads them has been started since.
    fn files(&self, found: &[Component], out: &mut Batch) {
        let started = self.started();
        let files: BTreeMap<&PathBuf, &str> = found
            .iter()
            .flat_map(|component| component.files.iter().map(|file| (file, component.name)))
            .collect();
        out.dropped(files.len().saturating_sub(MAX_FILES) as u64);
        for (path, name) in files.into_iter().take(MAX_FILES) {
            let modified = match read::modified(&self.host, path) {
                Ok(modified) => modified,
                Err(error) => {
                    out.fail(SampleError::read(path, error));
                    continue;
                }
            };
            let shown = path.to_string_lossy();
            out.push(&FILE, [&shown], modified);
            if let Some(started) = started.get(name) {
                let changed = processes::changed_since(*started, modified);
                out.push(&CHANGED, [&shown], changed);
                if changed {
                    let text = format!(
                        "{shown} was changed; {name} has not been restarted since and takes it over at the next start"
                    );
                    out.event(modified, "settings_changed", text);
                }
            }
        }
    }

    /// When k3s, RKE2 or k0s began.
    fn started(&self) -> BTreeMap<&'static str, SystemTime> {
        const NAMES: [(&str, &[&str]); 3] = [
            ("k3s", &["k3s", "k3s-server"]),
            ("rke2", &["rke2", "rke2-server"]),
            ("k0s", &["k0s"]),
        ];
        let names: BTreeSet<&str> = NAMES.iter().flat_map(|(_, names)| *names).copied().collect();
        let all = processes::started(&self.host, &names, |process| !process.contained());
        let first = |names: &[&str]| names.iter().filter_map(|name| all.get(*name)).min().copied();
        NAMES.iter().filter_map(|(program, names)| Some((*program, first(names)?))).collect()
    }
}

/// The text of a small file of `/proc` or `/sys`, without the line's end.
fn small(host: &Host, path: impl AsRef<Path>) -> Option<String> {
    let text = read::small_text(host, path.as_ref()).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests;
