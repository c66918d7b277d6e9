//! The certificates of the control plane: when each ends, and whether a restart is due before that.
//!
//! k3s, RKE2 and k0s issue theirs anew only when they start, and kubeadm's programs take over what was issued only when
//! they are restarted: a cluster that runs well for a year ends in one second. Where the certificates of a distribution
//! lie, and who uses them, is in `places.rs`.
//!
//! Reads the files, bounded, and of `/proc` name, command line and start of the processes that use them, in a child
//! process. Of a chain every certificate is read and the earliest end counts; of a kubeconfig only the client
//! certificates inside it are decoded. What cannot be read is a failed part of the run that names the file.

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod places;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::certificate::{Summary, Usage, summaries};
use crate::host::yaml::Node;
use crate::host::{Datastore, Facts, Host, processes, read};
use crate::metric::Metric;
use crate::sample::{Batch, SampleError};
use crate::sampler::{self, BlockingSampler, Build, SamplerDef, absolute, defaults, facts};

use places::Renewal;

/// See the module's page.
pub static SAMPLER: SamplerDef = SamplerDef {
    about: "The certificates of the control plane: when they end, and whether a restart is due.",
    interval: Duration::from_mins(5),
    timeout: Duration::from_secs(5),
    metrics: &[NOT_AFTER.desc(), RESTART_DUE.desc()],
    defaults: defaults::<Options>,
    uses: |all| facts(all.primary()),
    build: |options, host| {
        let own: Options = options.parse()?;
        absolute("paths", &own.paths)?;
        let found = host.facts().primary().map(places::of).unwrap_or_default();
        if found.is_empty() && own.paths.is_empty() {
            return Ok(Build::not_applicable(
                "no Kubernetes and no etcd with certificates was found; set certificate.paths to files or folders",
            ));
        }
        Ok(Build::isolated(Certificates { host: host.clone(), found, told: own.paths }))
    },
    cost: "3.5 ms of CPU a run with 40 certificates, most of it a child process",
};

static NOT_AFTER: Metric<2> = Metric::gauge(
    "controlplane_certificate_not_after_timestamp_seconds",
    "When the certificate in the file ends, in Unix time; of several in one file, the first that ends. The role is ca, server, client, kubeconfig, dqlite (the one that all its members share) or other. At most 64 files.",
    ["path", "role"],
);
static RESTART_DUE: Metric<1> = Metric::gauge(
    "controlplane_certificate_restart_due",
    "Whether a restart is due: it would renew the certificate (k3s, RKE2 and k0s, within 90 days of its end), or the process that uses it began before the file was changed (kubeadm). Absent where neither is so, or no such process runs.",
    ["path"],
);

/// Files looked at.
const MAX_FILES: usize = 64;
/// Bytes of a file; a chain has some three thousand, a kubeconfig some ten.
const MAX_BYTES: u64 = 256 << 10;
/// How long before the end of a certificate a start renews it. Newer releases of k3s and RKE2 do so from 120 days on; in
/// the last 90 all of them do.
const WINDOW: Duration = Duration::from_hours(90 * 24);

/// The section `certificate`.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Options {
    /// More certificates and kubeconfigs, or folders of them.
    paths: BTreeSet<PathBuf>,
}

/// The files and folders that are read with these options; for `inspect`.
pub(crate) fn places(options: &sampler::Options, facts: &Facts) -> Vec<PathBuf> {
    let found = facts.primary().map(places::of).unwrap_or_default();
    let told = options.parse::<Options>().map(|own| own.paths).unwrap_or_default();
    found.into_iter().chain(told).collect()
}

struct Certificates {
    host: Host,
    /// Files and folders of the distribution, of which not every release has each.
    found: Vec<PathBuf>,
    /// Those of the configuration, which must be there.
    told: BTreeSet<PathBuf>,
}

impl BlockingSampler for Certificates {
    /// # Errors
    ///
    /// When not one certificate could be read. Otherwise a file that cannot be is a part that failed.
    fn sample(&mut self, out: &mut Batch) -> Result<(), SampleError> {
        let mut failed = Vec::new();
        let files = self.files(&mut failed);
        out.dropped(files.len().saturating_sub(MAX_FILES) as u64);
        let renewal = self.host.facts().primary().map_or(Renewal::None, Renewal::of);
        let processes = self.processes(&renewal);
        let now = SystemTime::now();
        for path in files.iter().take(MAX_FILES) {
            let (chain, modified) = match read_chain(&self.host, path) {
                Ok(Some(read)) => read,
                Ok(None) => continue,
                Err(error) => {
                    failed.push(error);
                    continue;
                }
            };
            let Some(first) = chain.first() else { continue };
            let shown = path.to_string_lossy();
            let role = self.role(path, first.usage);
            let end = chain.iter().map(|one| one.not_after).min().unwrap_or(first.not_after);
            out.push(&NOT_AFTER, [&shown, role], end);
            let users = renewal.users(path, role);
            let started = users.iter().find_map(|name| processes.get(*name));
            if let Some(started) = started.copied() {
                let due = match renewal {
                    Renewal::AtStart { .. } => {
                        let window = first.not_after.checked_sub(WINDOW);
                        window.is_some_and(|window| now >= window && started < window)
                    }
                    Renewal::ByHand | Renewal::None => processes::changed_since(started, modified),
                };
                out.push(&RESTART_DUE, [&shown], due);
            }
        }
        if out.series(&NOT_AFTER) == 0
            && let Some(error) = failed.pop()
        {
            return Err(error);
        }
        for error in failed {
            out.fail(error);
        }
        Ok(())
    }
}

impl Certificates {
    /// Every file to look at, sorted.
    fn files(&self, failed: &mut Vec<SampleError>) -> BTreeSet<PathBuf> {
        let mut files = BTreeSet::new();
        let node = self.host.facts().primary();
        let found = self.found.iter().map(|path| (path, false));
        for (path, must_be) in found.chain(self.told.iter().map(|path| (path, true))) {
            match read::names(&self.host, path) {
                Ok(names) => {
                    let wanted = names.iter().filter(|name| is_wanted(name)).map(|n| path.join(n));
                    let old = |file: &PathBuf| {
                        node.is_some_and(|node| places::is_left_behind(node, file, &names))
                    };
                    files.extend(wanted.filter(|file| must_be || !old(file)));
                }
                Err(error) if error.kind() == ErrorKind::NotADirectory => {
                    files.insert(path.clone());
                }
                Err(error) if error.kind() == ErrorKind::NotFound && !must_be => {}
                Err(error) => failed.push(SampleError::read(path, error)),
            }
        }
        files
    }

    /// When the processes that use the certificates began, by name.
    fn processes(&self, renewal: &Renewal) -> BTreeMap<String, SystemTime> {
        let names = renewal.processes();
        processes::started(&self.host, &names, |process| renewal.is_user(process))
    }

    fn role(&self, path: &Path, usage: Usage) -> &'static str {
        let node = self.host.facts().primary();
        let shared = node.filter(|node| node.datastore == Datastore::Dqlite);
        let shared = shared.and_then(|node| Some(node.datastore_dir.as_ref()?.join("cluster.crt")));
        match usage {
            _ if is_kubeconfig(path) => "kubeconfig",
            _ if shared.as_deref() == Some(path) => "dqlite",
            Usage::Ca => "ca",
            Usage::Server => "server",
            Usage::Client => "client",
            Usage::Other => "other",
        }
    }
}

fn ending(path: &Path) -> &str {
    path.extension().and_then(OsStr::to_str).unwrap_or_default()
}

fn is_kubeconfig(path: &Path) -> bool {
    ["conf", "config", "kubeconfig", "yaml"].contains(&ending(path))
}

/// Whether a file of a folder may hold a certificate, by its name; neither keys nor settings are even opened.
fn is_wanted(name: &str) -> bool {
    let known = ["crt", "pem", "config", "kubeconfig"];
    known.contains(&ending(Path::new(name))) && !name.ends_with("key.pem")
}

/// The certificates of a file, and when it was last changed. Nothing where a kubeconfig has none inside it, or where the
/// file has gone, as one that was just replaced.
fn read_chain(host: &Host, path: &Path) -> Result<Option<(Vec<Summary>, SystemTime)>, SampleError> {
    let (bytes, modified) = match read::read_dated(host, path, MAX_BYTES) {
        Ok(read) => read,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(SampleError::read(path, error)),
    };
    let text = String::from_utf8_lossy(&bytes);
    let chain = if is_kubeconfig(path) { embedded(&text) } else { summaries(&text) };
    let chain = chain.map_err(|what| SampleError::parse(path, what))?;
    Ok((!chain.is_empty()).then_some((chain, modified)))
}

/// The client certificates inside a kubeconfig.
fn embedded(text: &str) -> Result<Vec<Summary>, String> {
    let config = Node::parse(text)?;
    let users = config.get("users").map(Node::items).unwrap_or_default();
    let data = users.iter().filter_map(|user| user.text_at(&["user", "client-certificate-data"]));
    let mut found = Vec::new();
    for data in data {
        let pem = STANDARD.decode(data).map_err(|_| "its client certificate is no base64")?;
        found.extend(summaries(&String::from_utf8_lossy(&pem))?);
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
