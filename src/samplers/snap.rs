//! What the snaps of the control plane take of the disk, which revisions are kept, and which one runs.
//!
//! Sums the allocated blocks of the packages (`/var/lib/snapd/snaps`), of the data of each revision and
//! of the common data (below `/var/snap/<snap>`), every five minutes, in a child process of low
//! priority that works at most half of the time. It follows no links, stays on one filesystem and
//! counts nothing twice, so containers that run inside the snap's data add what they store and not what
//! they mount. An area that is too large for the limits has no figure rather than a part of it, and the
//! run says so. Sparse files count by what they take.

mod walk;

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::host::{Facts, Host};
use crate::metric::Metric;
use crate::sample::{Batch, SampleError};
use crate::sampler::{BlockingSampler, Build, OptionsError, SamplerDef, defaults, facts};

use walk::{Incomplete, Limits, Walk};

/// See the module's page.
pub static SAMPLER: SamplerDef = SamplerDef {
    about: "Disk usage and revisions of the control plane's snaps.",
    interval: Duration::from_mins(5),
    timeout: Duration::from_mins(1),
    metrics: &[USAGE.desc(), REVISIONS.desc(), INFO.desc()],
    defaults: defaults::<Options>,
    uses: |all| facts(all.installations.iter().map(|node| &node.snaps).collect::<Vec<_>>()),
    build: |options, host| {
        let own: Options = options.parse()?;
        own.check()?;
        let nodes = &host.facts().installations;
        let detected: BTreeSet<&String> = nodes.iter().flat_map(|node| &node.snaps).collect();
        let snaps = match (own.snaps.is_empty(), detected.is_empty()) {
            (false, _) => Some(own.snaps),
            (true, false) => Some(detected.into_iter().cloned().collect()),
            (true, true) if own.root.is_some() => None,
            (true, true) => {
                let why = "no snap of a Kubernetes distribution is installed; name others in \
                           `snap.snaps`";
                return Ok(Build::not_applicable(why));
            }
        };
        let root = own.root.unwrap_or_else(|| DATA.into());
        Ok(Build::isolated(Snap { host: host.clone(), root, snaps, timeout: options.timeout }))
    },
    cost: "0.2 s of CPU for 100,000 files that the kernel remembers, at most half of the time; at most \
           1,000,000 files for each area",
};

static USAGE: Metric<2> = Metric::gauge(
    "controlplane_snap_disk_usage_bytes",
    "Allocated blocks of the snap's packages, of the data of all its revisions, and of its common \
     data.",
    ["snap", "area"],
);
static REVISIONS: Metric<1> = Metric::gauge(
    "controlplane_snap_revisions",
    "Revisions of the snap that are kept, as packages or as data.",
    ["snap"],
);
static INFO: Metric<3> = Metric::info(
    "controlplane_snap_info",
    "The revision of the snap that `current` leads to, and its version.",
    ["snap", "version", "revision"],
);

/// Where snaps keep their data.
const DATA: &str = "/var/snap";
/// Where snapd keeps the packages.
const PACKAGES: &str = "/var/lib/snapd/snaps";
/// Where snaps are mounted; the second on distributions without `/snap`.
const MOUNTS: [&str; 2] = ["/snap", "/var/lib/snapd/snap"];
/// Snaps watched, at most.
const MAX_SNAPS: usize = 32;
/// Names read from a directory that is not walked.
const MAX_NAMES: usize = 4_096;
/// Files per area; a busy node's images have some hundred thousand.
const MAX_ENTRIES: usize = 1_000_000;
/// Directories inside each other.
const MAX_DEPTH: usize = 128;
/// Bytes read of a snap's description.
const MAX_DESCRIPTION: u64 = 256 << 10;

/// The section `snap`.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Options {
    /// Where snaps keep their data; `/var/snap` unless set. Without detected snaps and names of
    /// others, every snap there is watched if this is set.
    root: Option<PathBuf>,
    /// Snaps to watch, instead of those that detection found.
    #[serde(deserialize_with = "crate::config::list")]
    snaps: Vec<String>,
}

impl Options {
    fn check(&self) -> Result<(), OptionsError> {
        if let Some(root) = self.root.as_ref().filter(|root| !root.is_absolute()) {
            let what = format!("{} must be absolute", root.display());
            return Err(OptionsError::new("root", what));
        }
        if self.snaps.len() > MAX_SNAPS {
            return Err(OptionsError::new("snaps", format!("at most {MAX_SNAPS} snaps")));
        }
        // An instance of a snap is `name_key`.
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        match self.snaps.iter().find(|name| name.is_empty() || !name.chars().all(plain)) {
            Some(name) => Err(OptionsError::new("snaps", format!("{name:?} is no name of a snap"))),
            None => Ok(()),
        }
    }
}

/// The common data of each snap that is watched by its name.
pub fn common(options: &crate::sampler::Options, facts: &Facts) -> Vec<PathBuf> {
    let Ok(own) = options.parse::<Options>() else { return Vec::new() };
    let root = own.root.unwrap_or_else(|| DATA.into());
    let found = facts.installations.iter().flat_map(|node| &node.snaps);
    let names: BTreeSet<&String> =
        if own.snaps.is_empty() { found.collect() } else { own.snaps.iter().collect() };
    names.into_iter().take(MAX_SNAPS).map(|name| root.join(name).join("common")).collect()
}

struct Snap {
    host: Host,
    root: PathBuf,
    /// `None`: all that have data.
    snaps: Option<Vec<String>>,
    timeout: Duration,
}

impl BlockingSampler for Snap {
    /// # Errors
    ///
    /// When the directory of all snaps cannot be read and none is named.
    fn sample(&mut self, out: &mut Batch) -> Result<(), SampleError> {
        // This is a process of its own; the disk's scheduler goes by it as well.
        match rustix::process::nice(19) {
            // The shipped unit's filter refuses it. The walk still rests half of the time.
            Ok(_) | Err(rustix::io::Errno::PERM) => {}
            Err(error) => out.fail(SampleError::call("nice", error)),
        }
        let snaps = match &self.snaps {
            Some(snaps) => snaps.clone(),
            None => self.all().map_err(|error| SampleError::read(&self.root, error))?,
        };
        let beyond = snaps.len().saturating_sub(MAX_SNAPS);
        out.dropped(u64::try_from(beyond).unwrap_or_default());
        let deadline = Instant::now() + self.timeout;
        let limits = Limits { entries: MAX_ENTRIES, depth: MAX_DEPTH, deadline };
        for snap in snaps.iter().take(MAX_SNAPS) {
            self.report(snap, limits, out);
        }
        Ok(())
    }
}

impl Snap {
    fn report(&self, snap: &str, limits: Limits, out: &mut Batch) {
        self.report_running(snap, out);
        let (data, store) = (self.place(&self.root.join(snap)), self.place(Path::new(PACKAGES)));
        let (Some(below), Some(packages)) = (self.part(&data, out), self.part(&store, out)) else {
            return;
        };
        let packages: Vec<_> =
            packages.iter().filter_map(|name| Some((name, revision(name, snap)?))).collect();
        let kept: BTreeSet<&str> = packages
            .iter()
            .map(|(_, revision)| *revision)
            .chain(below.iter().map(String::as_str).filter(|name| is_revision(name)))
            .collect();
        if below.is_empty() && packages.is_empty() {
            out.fail(SampleError::read(&data, io::ErrorKind::NotFound));
            return;
        }
        out.push(&REVISIONS, [snap], kept.len());
        let files = packages.iter().map(|(name, _)| store.join(name)).collect();
        let others = below.iter().filter(|name| *name != "common").map(|name| data.join(name));
        self.sum(snap, "packages", files, limits, out);
        self.sum(snap, "data", others.collect(), limits, out);
        self.sum(snap, "common", vec![data.join("common")], limits, out);
    }

    fn sum(&self, snap: &str, area: &str, paths: Vec<PathBuf>, limits: Limits, out: &mut Batch) {
        let mut walk = Walk::new(limits);
        for path in paths {
            let Err(incomplete) = walk.add(&self.host.path(&path)) else { continue };
            out.fail(match incomplete {
                Incomplete::Failed(errno) => SampleError::read(path, errno),
                Incomplete::Late => SampleError::Timeout {
                    what: format!("{}: {incomplete}", path.display()),
                    after: self.timeout,
                },
                limit => SampleError::read(path, io::Error::other(limit.to_string())),
            });
            return;
        }
        if walk.found() {
            out.push(&USAGE, [snap, area], walk.bytes());
        }
    }

    /// Every snap that has data.
    fn all(&self) -> io::Result<Vec<String>> {
        let mut names = self.names(&self.place(&self.root))?;
        // A link, be it to a directory above, is no snap.
        let is_directory = |name: &String| {
            let path = self.host.path(self.place(&self.root).join(name));
            path.symlink_metadata().is_ok_and(|found| found.is_dir())
        };
        names.retain(is_directory);
        Ok(names)
    }

    /// The names in a directory; one that is not there has none. Other errors are recorded.
    fn part(&self, directory: &Path, out: &mut Batch) -> Option<Vec<String>> {
        match self.names(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Some(Vec::new()),
            names => names.map_err(|error| out.fail(SampleError::read(directory, error))).ok(),
        }
    }

    /// The names in a directory, sorted. Some of them would mislead, so too many are an error.
    fn names(&self, directory: &Path) -> io::Result<Vec<String>> {
        let entries = fs::read_dir(self.host.path(directory))?.take(MAX_NAMES + 1);
        let mut names = entries
            .map(|entry| entry.map(|e| e.file_name().to_string_lossy().into_owned()))
            .collect::<io::Result<Vec<_>>>()?;
        if names.len() > MAX_NAMES {
            return Err(io::Error::other(format!("more than {MAX_NAMES} names")));
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Where a directory is, its links followed below the host's root; `/var/snap` may be one.
    fn place(&self, directory: &Path) -> PathBuf {
        self.host.resolve(directory).unwrap_or_else(|_| directory.to_owned())
    }

    fn report_running(&self, snap: &str, out: &mut Batch) {
        let link = MOUNTS.iter().find_map(|mount| {
            let current = Path::new(mount).join(snap).join("current");
            let target = fs::read_link(self.host.path(&current)).ok()?;
            Some((current, target.file_name()?.to_string_lossy().into_owned()))
        });
        // Without it no revision is active.
        let Some((current, revision)) = link else { return };
        let description = current.with_file_name(&revision).join("meta/snap.yaml");
        match self.version(&description) {
            Ok(version) => out.info(&INFO, [snap, &version, &revision]),
            Err(error) => {
                out.fail(error);
                out.info(&INFO, [snap, "unknown", &revision]);
            }
        }
    }

    fn version(&self, description: &Path) -> Result<String, SampleError> {
        let failed = |error| SampleError::read(description, error);
        let mut text = String::new();
        let file = fs::File::open(self.host.path(description)).map_err(failed)?;
        file.take(MAX_DESCRIPTION).read_to_string(&mut text).map_err(failed)?;
        version(&text)
            .ok_or_else(|| SampleError::parse(description, "there is no `version:` in it"))
    }
}

/// `version:` of a snap's description; a plain or quoted scalar on one line, at the top level.
fn version(description: &str) -> Option<String> {
    let value = description.lines().find_map(|line| line.strip_prefix("version:"))?.trim();
    let value = value.split(" #").next().unwrap_or(value).trim_end();
    let value = value.trim_matches(|c| c == '\'' || c == '"');
    (!value.is_empty()).then(|| value.to_owned())
}

/// The revision of a package `<snap>_<revision>.snap`.
fn revision<'a>(package: &'a str, snap: &str) -> Option<&'a str> {
    let revision = package.strip_prefix(snap)?.strip_prefix('_')?.strip_suffix(".snap")?;
    is_revision(revision).then_some(revision)
}

/// A number, or `x` and a number for one that was not signed by the store.
fn is_revision(name: &str) -> bool {
    let digits = name.strip_prefix('x').unwrap_or(name);
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use proptest::prelude::*;

    use super::*;
    use crate::host::{Distribution, Facts, Installation};

    struct Root(tempfile::TempDir);

    impl Root {
        fn new() -> Self {
            let root = tempfile::Builder::new().tempdir_in("/var/tmp").unwrap();
            let root = Self(root);
            root.file("var/snap/microk8s/8695/args/kubelite", 4_000);
            root.file("var/snap/microk8s/8511/args/kubelite", 4_000);
            root.file("var/snap/microk8s/common/var/lib/containerd/blob", 1 << 20);
            symlink("8695", root.0.path().join("var/snap/microk8s/current")).unwrap();
            root.file("var/lib/snapd/snaps/microk8s_8695.snap", 300_000);
            root.file("var/lib/snapd/snaps/microk8s_8402.snap", 300_000);
            root.file("var/lib/snapd/snaps/microk8s-addons_1.snap", 900_000);
            root.file("snap/microk8s/8695/meta/snap.yaml", 0);
            let meta = root.0.path().join("snap/microk8s/8695/meta/snap.yaml");
            fs::write(meta, "name: microk8s\nversion: v1.34.5\napps:\n  a:\n    version: no\n")
                .unwrap();
            symlink("8695", root.0.path().join("snap/microk8s/current")).unwrap();
            root
        }

        fn file(&self, path: &str, bytes: usize) {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, vec![7; bytes]).unwrap();
            fs::File::open(path).unwrap().sync_all().unwrap();
        }

        fn report(&self, snap: &str, entries: usize) -> Batch {
            let deadline = Instant::now() + Duration::from_mins(1);
            let mut out = Batch::default();
            self.sampler().report(snap, Limits { entries, depth: 20, deadline }, &mut out);
            out
        }

        fn sampler(&self) -> Snap {
            let host = Host::at(self.0.path());
            Snap { host, root: DATA.into(), snaps: None, timeout: Duration::from_secs(1) }
        }
    }

    fn built(yaml: serde_json::Value, facts: Facts) -> Result<Build, OptionsError> {
        let serde_json::Value::Object(own) = yaml else { unreachable!() };
        let (interval, timeout) = (SAMPLER.interval, SAMPLER.timeout);
        let options = crate::sampler::Options { interval, timeout, own };
        (SAMPLER.build)(&options, &Host::at("/").with_facts(facts))
    }

    #[test]
    fn each_area_is_summed_and_the_running_revision_is_named() {
        let out = Root::new().report("microk8s", 1_000);
        let area = |area| out.value(&USAGE, ["microk8s", area]).unwrap();
        assert!((600_000.0..800_000.0).contains(&area("packages")), "{}", area("packages"));
        assert!((1_048_576.0..1_200_000.0).contains(&area("common")), "{}", area("common"));
        assert!((8_000.0..60_000.0).contains(&area("data")), "{}", area("data"));
        assert_eq!(out.value(&REVISIONS, ["microk8s"]), Some(3.0));
        assert_eq!(out.value(&INFO, ["microk8s", "v1.34.5", "8695"]), Some(1.0));
        assert_eq!(out.reasons(), [""; 0]);
    }

    #[test]
    fn an_area_that_is_too_large_has_no_figure_and_says_so() {
        let root = Root::new();
        for i in 0..20 {
            root.file(&format!("var/snap/microk8s/common/{i}"), 1);
        }
        let out = root.report("microk8s", 10);
        assert_eq!(out.value(&USAGE, ["microk8s", "common"]), None);
        assert!(out.value(&USAGE, ["microk8s", "packages"]).is_some());
        assert!(out.failures()[0].to_string().contains("more than 10 files"));
    }

    #[test]
    fn an_area_that_is_not_there_has_no_figure() {
        let root = Root::new();
        fs::remove_dir_all(root.0.path().join("var/lib/snapd")).unwrap();
        let out = root.report("microk8s", 1_000);
        assert_eq!((out.series(&USAGE), out.reasons()), (2, vec![]));
        assert_eq!(out.value(&REVISIONS, ["microk8s"]), Some(2.0));
    }

    #[test]
    fn a_snap_that_is_not_installed_has_no_figures() {
        let out = Root::new().report("k8s", 1_000);
        assert_eq!((out.all().len(), out.reasons()), (0, vec!["not_found"]));
    }

    #[test]
    fn a_description_without_a_version_leaves_the_revision() {
        let root = Root::new();
        root.file("snap/microk8s/8695/meta/snap.yaml", 3);
        let out = root.report("microk8s", 1_000);
        assert_eq!(out.value(&INFO, ["microk8s", "unknown", "8695"]), Some(1.0));
        assert_eq!(out.reasons(), ["parse"]);
    }

    #[test]
    fn all_snaps_with_data_are_found_below_the_root() {
        let root = Root::new();
        root.file("var/snap/README", 3);
        assert_eq!(root.sampler().all().unwrap(), ["microk8s"]);
    }

    #[test]
    fn a_loop_of_links_is_no_snap_and_adds_nothing_to_one() {
        let root = Root::new();
        let before = root.report("microk8s", 1_000);
        let snaps = root.0.path().join("var/snap");
        for (target, link) in [("..", "up"), (".", "self"), ("loop", "loop"), ("/", "root")] {
            symlink(target, snaps.join(link)).unwrap();
        }
        symlink("../..", snaps.join("microk8s/common/up")).unwrap();
        assert_eq!(root.sampler().all().unwrap(), ["microk8s"]);
        let after = root.report("microk8s", 1_000);
        for area in ["packages", "data", "common"] {
            let bytes = |out: &Batch| out.value(&USAGE, ["microk8s", area]);
            assert_eq!(bytes(&after), bytes(&before), "{area}");
        }
        assert_eq!(root.report("loop", 1_000).reasons(), ["read"]);
    }

    #[test]
    fn data_that_was_moved_behind_a_link_is_found_below_the_root() {
        let root = Root::new();
        let path = |path: &str| root.0.path().join(path);
        fs::rename(path("var/snap"), path("data")).unwrap();
        symlink("/data", path("var/snap")).unwrap();
        assert_eq!(root.sampler().all().unwrap(), ["microk8s"]);
        let out = root.report("microk8s", 1_000);
        assert_eq!((out.series(&USAGE), out.reasons()), (3, vec![]));
    }

    #[test]
    fn of_too_many_names_there_is_no_figure_but_a_reason() {
        let root = Root::new();
        for i in 0..=MAX_NAMES {
            fs::write(root.0.path().join(format!("var/snap/microk8s/{i}")), "").unwrap();
        }
        let out = root.report("microk8s", 10_000);
        assert_eq!((out.series(&USAGE), out.series(&REVISIONS)), (0, 0));
        assert!(out.failures()[0].to_string().contains("more than 4096 names"));
        assert_eq!(out.failures().len(), 1);
    }

    proptest! {
        #[test]
        fn any_description_is_survived(
            before in "(\\PC{0,20}\n){0,3}", value in "\\PC{0,20}", after in "\\PC{0,40}",
        ) {
            let found = version(&format!("{before}version: {value}\n{after}"));
            prop_assert!(found.is_none_or(|version| !version.is_empty() && !version.contains('\n')));
        }

        #[test]
        fn the_revision_of_a_package_is_what_its_name_says(
            snap in "[a-z]{1,4}(-[a-z]{1,4})?(_[a-z0-9]{1,4})?", number: u32, other in "\\PC{0,12}",
        ) {
            let package = format!("{snap}_{number}.snap");
            let number = number.to_string();
            prop_assert_eq!(revision(&package, &snap), Some(number.as_str()));
            prop_assert!(revision(&other, &snap).is_none_or(is_revision));
        }
    }

    #[test]
    fn it_applies_where_snaps_were_found_or_named_or_a_root_is_given() {
        let json = |text| serde_json::from_str(text).unwrap();
        let node = Installation {
            snaps: vec!["microk8s".into()],
            ..Installation::new(Distribution::Microk8s)
        };
        let found = Facts { installations: vec![node], ..Facts::default() };
        let runs = |yaml, facts| matches!(built(json(yaml), facts), Ok(Build::Run(_)));
        assert!(!runs("{}", Facts::default()));
        assert!(runs("{}", found));
        assert!(runs(r#"{"root": "/var/snap"}"#, Facts::default()));
        assert!(runs(r#"{"snaps": "lxd, microk8s"}"#, Facts::default()));
        for wrong in [r#"{"snaps": ["../x"]}"#, r#"{"root": "var"}"#, r#"{"snaps": [""]}"#] {
            assert!(built(json(wrong), Facts::default()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn versions_are_read_with_and_without_quotes() {
        for (line, expected) in [
            ("version: v1.34.5", Some("v1.34.5")),
            ("version: '1.28'", Some("1.28")),
            ("version: \"git\" # built here", Some("git")),
            ("version:", None),
            ("  version: nested", None),
            ("", None),
        ] {
            assert_eq!(version(line).as_deref(), expected, "{line}");
        }
    }

    #[test]
    fn packages_of_other_snaps_are_not_taken_for_this_one() {
        assert_eq!(revision("microk8s_8695.snap", "microk8s"), Some("8695"));
        assert_eq!(revision("microk8s_x1.snap", "microk8s"), Some("x1"));
        for other in ["microk8s-addons_1.snap", "microk8s_key_1.snap", "microk8s_1.snap.partial"] {
            assert_eq!(revision(other, "microk8s"), None, "{other}");
        }
    }
}
