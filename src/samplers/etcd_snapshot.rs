//! The snapshots that k3s and RKE2 make of their etcd: how old the newest is, how large, and how many there are.
//!
//! They are the way back from a lost quorum, and their making stops without a word: a full disk, a schedule that somebody
//! switched off, a member that no longer answers. They are expected where an etcd is embedded and the configuration does
//! not switch them off; their folder may lie elsewhere (`etcd-snapshot-dir`).
//!
//! Reads names and sizes of at most 4,096 files, in a child process, and never their contents. A folder that does not
//! exist holds none, since k3s makes it with the first.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::CWD;
use serde::{Deserialize, Serialize};

use crate::host::{Facts, Host, read};
use crate::metric::Metric;
use crate::sample::{Batch, SampleError};
use crate::sampler::{self, BlockingSampler, Build, SamplerDef, absolute, defaults, facts};

/// See the module's page.
pub static SAMPLER: SamplerDef = SamplerDef {
    about: "The snapshots that k3s and RKE2 make of their etcd.",
    interval: Duration::from_mins(5),
    timeout: Duration::from_secs(5),
    metrics: &[FILES.desc(), NEWEST.desc(), NEWEST_BYTES.desc(), BYTES.desc(), DATASTORE.desc()],
    defaults: defaults::<Options>,
    uses: |all| {
        let node = all.primary();
        facts(node.map(|node| (&node.etcd_snapshots, &node.datastore_dir)))
    },
    build: |options, host| {
        let own: Options = options.parse()?;
        absolute("dir", &own.dir)?;
        let Some(dir) = directory(options, host.facts()) else {
            return Ok(Build::not_applicable(
                "no k3s or RKE2 that makes snapshots of an embedded etcd was found; set etcd_snapshot.dir to a folder of snapshots",
            ));
        };
        let node = host.facts().primary();
        let member = node.and_then(|node| Some(node.datastore_dir.as_ref()?.join("member")));
        Ok(Build::isolated(Snapshots { host: host.clone(), dir, member }))
    },
    cost: "1.2 ms of CPU a run, most of it a child process",
};

static FILES: Metric<0> = Metric::gauge(
    "controlplane_etcd_snapshot_files",
    "Snapshots in the folder; empty and unfinished files do not count.",
    [],
);
static NEWEST: Metric<0> = Metric::gauge(
    "controlplane_etcd_snapshot_timestamp_seconds",
    "When the newest snapshot was written, in Unix time.",
    [],
);
static NEWEST_BYTES: Metric<0> =
    Metric::gauge("controlplane_etcd_snapshot_bytes", "Size of the newest snapshot.", []);
static BYTES: Metric<0> = Metric::gauge(
    "controlplane_etcd_snapshot_directory_bytes",
    "Size of all snapshots in the folder.",
    [],
);
static DATASTORE: Metric<0> = Metric::gauge(
    "controlplane_etcd_snapshot_datastore_timestamp_seconds",
    "When this node's etcd was made or last restored, in Unix time: before that there was nothing to be saved.",
    [],
);

/// A snapshot whose time is further ahead was written by a clock that was wrong.
const AHEAD: Duration = Duration::from_hours(1);

/// The section `etcd_snapshot`.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Options {
    /// The folder of the snapshots, instead of the one that detection found.
    dir: Option<PathBuf>,
}

/// The folder that is read with these options; for `inspect` as well.
pub(crate) fn directory(options: &sampler::Options, facts: &Facts) -> Option<PathBuf> {
    let told = options.parse::<Options>().ok().and_then(|own| own.dir);
    told.or_else(|| facts.primary()?.etcd_snapshots.clone())
}

struct Snapshots {
    host: Host,
    dir: PathBuf,
    /// The folder `member` of etcd's data, which each restore makes anew. Each start of etcd changes it.
    member: Option<PathBuf>,
}

impl BlockingSampler for Snapshots {
    /// # Errors
    ///
    /// When the folder cannot be read. A file that cannot be examined is a part that failed.
    fn sample(&mut self, out: &mut Batch) -> Result<(), SampleError> {
        let failed = |error| SampleError::read(&self.dir, error);
        let names = match read::names(&self.host, &self.dir) {
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            other => other.map_err(failed)?,
        };
        let inside = self.host.path(self.host.resolve(&self.dir).map_err(failed)?);
        let soon = SystemTime::now() + AHEAD;
        let mut found = Vec::new();
        for name in names.iter().filter(|name| is_finished(name)) {
            match examine(&inside.join(name)) {
                Ok(snapshot) => {
                    if snapshot.is_some_and(|(written, _)| written > soon) {
                        let what = "was written in the future, so its age is unknown";
                        out.fail(SampleError::parse(self.dir.join(name), what));
                    }
                    found.extend(snapshot);
                }
                Err(error) => out.fail(SampleError::read(self.dir.join(name), error)),
            }
        }
        out.push(&FILES, [], found.len());
        out.push(&BYTES, [], found.iter().map(|(_, bytes)| bytes).sum::<u64>());
        if let Some((written, bytes)) = found.iter().filter(|(written, _)| *written <= soon).max() {
            out.push(&NEWEST, [], *written);
            out.push(&NEWEST_BYTES, [], *bytes);
        }
        if let Some(made) = self.member.as_ref().and_then(|member| self.made(member)) {
            out.push(&DATASTORE, [], made);
        }
        Ok(())
    }
}

impl Snapshots {
    fn made(&self, member: &Path) -> Option<SystemTime> {
        let member = self.host.path(self.host.resolve(member).ok()?);
        let born =
            read::born(CWD, &member).map(|seconds| UNIX_EPOCH + Duration::from_secs(seconds));
        born.or_else(|| fs::symlink_metadata(member).ok()?.modified().ok())
    }
}

/// Whether it is not the name of a file that is still being written, or hidden.
fn is_finished(name: &str) -> bool {
    let unfinished = Path::new(name).extension().is_some_and(|end| end == "part" || end == "tmp");
    !name.starts_with('.') && !unfinished
}

/// When a snapshot was written, and its size; nothing for what is no file, is empty, or has gone meanwhile.
fn examine(path: &Path) -> std::io::Result<Option<(SystemTime, u64)>> {
    let metadata = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    if !metadata.is_file() || metadata.len() == 0 {
        return Ok(None);
    }
    Ok(Some((metadata.modified()?, metadata.len())))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::host::{Distribution, Installation};

    const DIR: &str = "/var/lib/rancher/k3s/server/db/snapshots";
    const ETCD: &str = "/var/lib/rancher/k3s/server/db/etcd";

    fn build(
        root: &Path,
        expected: bool,
        own: serde_json::Value,
    ) -> Result<Box<dyn BlockingSampler>, String> {
        let mut node = Installation::new(Distribution::K3s);
        node.datastore_dir = Some(ETCD.into());
        node.etcd_snapshots = expected.then(|| DIR.into());
        let facts = Facts { installations: vec![node], ..Facts::default() };
        sampler::isolated(&SAMPLER, &Host::at(root).with_facts(facts), &own)
    }

    fn run(root: &Path) -> Result<Batch, SampleError> {
        let mut out = Batch::default();
        build(root, true, serde_json::json!({})).unwrap().sample(&mut out).map(|()| out)
    }

    fn write(path: &Path, bytes: usize, seconds: u64) {
        fs::write(path, vec![b'x'; bytes]).unwrap();
        let time = UNIX_EPOCH + Duration::from_secs(seconds);
        fs::File::options().append(true).open(path).unwrap().set_modified(time).unwrap();
    }

    #[test]
    fn the_newest_finished_snapshot_counts() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join(DIR.trim_start_matches('/'));
        fs::create_dir_all(&dir).unwrap();
        let member = root.path().join(ETCD.trim_start_matches('/')).join("member");
        fs::create_dir_all(&member).unwrap();
        // As after a start of etcd long ago, or just now: it is the age of the folder that counts.
        fs::File::open(&member).unwrap().set_modified(UNIX_EPOCH + Duration::from_secs(5)).unwrap();
        write(&dir.join("etcd-snapshot-cp-1-1776000000"), 700, 1_776_000_000);
        write(&dir.join("etcd-snapshot-cp-1-1776043200.zip"), 300, 1_776_043_200);
        write(&dir.join("etcd-snapshot-cp-1-1776050000.part"), 100, 1_776_050_000);
        write(&dir.join("etcd-snapshot-cp-1-1776060000"), 0, 1_776_060_000);
        fs::create_dir(dir.join("etcd-snapshot-cp-1-1776070000")).unwrap();
        // Neither followed nor opened.
        symlink("/dev/zero", dir.join("etcd-snapshot-cp-1-1776080000")).unwrap();
        let (fifo, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR);
        rustix::fs::mknodat(rustix::fs::CWD, dir.join("fifo"), fifo, mode, 0).unwrap();
        let out = run(root.path()).unwrap();
        assert_eq!(out.value(&FILES, []), Some(2.0));
        assert_eq!(out.value(&NEWEST, []), Some(1_776_043_200.0));
        assert_eq!(out.value(&NEWEST_BYTES, []), Some(300.0));
        assert_eq!(out.value(&BYTES, []), Some(1000.0));
        assert!(out.value(&DATASTORE, []) > Some(1.7e9));
        assert_eq!(out.failures().len(), 0);
    }

    #[test]
    fn a_snapshot_of_a_clock_that_was_ahead_does_not_make_the_others_young() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join(DIR.trim_start_matches('/'));
        fs::create_dir_all(&dir).unwrap();
        write(&dir.join("etcd-snapshot-cp-1-1776000000"), 700, 1_776_000_000);
        write(&dir.join("etcd-snapshot-cp-1-4000000000"), 900, 4_000_000_000);
        let out = run(root.path()).unwrap();
        assert_eq!((out.value(&FILES, []), out.value(&NEWEST, [])), (Some(2.0), Some(1.776e9)));
        assert!(
            out.failures()[0].to_string().contains("cp-1-4000000000: was written in the future")
        );
    }

    #[test]
    fn a_folder_that_is_not_there_yet_holds_none() {
        let root = tempfile::tempdir().unwrap();
        let out = run(root.path()).unwrap();
        assert_eq!(out.value(&FILES, []), Some(0.0));
        assert_eq!((out.series(&NEWEST), out.series(&DATASTORE)), (0, 0));
    }

    #[test]
    fn a_folder_that_is_a_file_is_an_error() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join(DIR.trim_start_matches('/'));
        fs::create_dir_all(dir.parent().unwrap()).unwrap();
        fs::write(&dir, "").unwrap();
        assert_eq!(run(root.path()).unwrap_err().reason(), "read");
    }

    #[test]
    fn where_none_are_expected_a_folder_must_be_told() {
        let root = tempfile::tempdir().unwrap();
        let none = build(root.path(), false, serde_json::json!({}));
        assert!(none.is_err_and(|why| why.contains("etcd_snapshot.dir")));
        let relative = build(root.path(), false, serde_json::json!({"dir": "snapshots"}));
        assert!(relative.is_err_and(|why| why.contains("no absolute path")));
        assert!(build(root.path(), false, serde_json::json!({"dir": "/backup"})).is_ok());
    }
}
