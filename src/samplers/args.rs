//! Files of arguments of MicroK8s and Canonical Kubernetes: flags that the installed program does not know, and
//! changes that bite at the next restart.
//!
//! Their services start with whatever flags stand in `args/`. A flag that the program does not know ends it at once, so
//! what a playbook wrote today becomes a crash loop at the next restart, weeks later. The files are split as the
//! services' own wrappers do it, and nothing in them is run. Flags are held against a table of releases
//! (`releases.yaml`); a program or release that is not in it is not checked.
//!
//! Reads the files, bounded, and of `/proc` name, command line and start of the snap's processes, in a child process. No
//! value of a flag leaves the reader. A file that bash would refuse is a failed part of the run that names it.

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::host::processes::{self, comm};
use crate::host::{Distribution, Host, Installation, read, snaps, words_of_file};
use crate::metric::Metric;
use crate::sample::{Batch, SampleError};
use crate::sampler::{BlockingSampler, Build, OptionsError, SamplerDef, absolute, defaults, facts};

use table::{Known, known};

/// See the module's page.
pub static SAMPLER: SamplerDef = SamplerDef {
    about: "Flags in the files of arguments of MicroK8s and Canonical Kubernetes.",
    interval: Duration::from_mins(1),
    timeout: Duration::from_secs(5),
    metrics: &[
        CHECKED.desc(),
        UNKNOWN.desc(),
        UNKNOWN_FLAG.desc(),
        MANAGED.desc(),
        CHANGED.desc(),
        MODIFIED.desc(),
    ],
    defaults: defaults::<Options>,
    uses: |all| facts(all.primary().filter(|node| snap_of(node.distribution).is_some())),
    build: |options, host| {
        let own: Options = options.parse()?;
        own.check()?;
        let node = host.facts().primary();
        let found = node.and_then(|node| snap_of(node.distribution)).map(|(_, args)| args.into());
        let Some(dir) = own.dir.clone().or(found) else {
            return Ok(Build::not_applicable(
                "neither MicroK8s nor Canonical Kubernetes was found; set args.dir to a folder of such files",
            ));
        };
        Ok(Build::isolated(Args { host: host.clone(), dir, flags: own.flags }))
    },
    cost: "4 ms of CPU a run, most of it a child process",
};

static CHECKED: Metric<1> = Metric::gauge(
    "controlplane_args_checked",
    "Whether the flags in the file are held against those that its program knows; 0 where these are not known for the installed release. At most 14 files.",
    ["file"],
);
static UNKNOWN: Metric<1> = Metric::gauge(
    "controlplane_args_unknown_flags",
    "Flags in the file that its program does not know; with one of them it does not start again.",
    ["file"],
);
static UNKNOWN_FLAG: Metric<2> = Metric::info(
    "controlplane_args_unknown_flag_info",
    "Such a flag, without its value; at most 10 of a file.",
    ["file", "flag"],
);
static MANAGED: Metric<1> = Metric::gauge(
    "controlplane_args_managed_blocks",
    "Comments in the file that say that a tool manages a part of it.",
    ["file"],
);
static CHANGED: Metric<1> = Metric::gauge(
    "controlplane_args_changed_since_start",
    "Whether the file was changed after its service has started, so that the next restart brings the change; absent while the service does not run.",
    ["file"],
);
static MODIFIED: Metric<1> = Metric::gauge(
    "controlplane_args_file_timestamp_seconds",
    "When the file was last changed, in Unix time.",
    ["file"],
);

/// Services that read a file of arguments of the same name, and the process that a service may run in besides.
const FILES: [(&str, &str); 14] = [
    ("k8s-dqlite", ""),
    ("kubelite", ""),
    ("kube-apiserver", "kubelite"),
    ("kube-controller-manager", "kubelite"),
    ("kube-scheduler", "kubelite"),
    ("kube-proxy", "kubelite"),
    ("kubelet", "kubelite"),
    ("containerd", ""),
    ("cluster-agent", ""),
    ("etcd", ""),
    ("flanneld", ""),
    ("k8sd", ""),
    ("apiserver-proxy", ""),
    ("k8s-apiserver-proxy", ""),
];
/// Bytes of a file; kube-apiserver's has some three thousand.
const MAX_BYTES: u64 = 256 << 10;
/// Flags named for each file.
const MAX_FLAGS: usize = 10;

/// The snap of a distribution, and where it keeps the files.
fn snap_of(distribution: Distribution) -> Option<(&'static str, &'static str)> {
    match distribution {
        Distribution::Microk8s => Some(snaps::MICROK8S),
        Distribution::CanonicalK8s => Some(snaps::CANONICAL),
        _ => None,
    }
}

/// The section `args`.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Options {
    /// The folder of the files, instead of the one that detection found.
    dir: Option<PathBuf>,
    /// Flags by file that its program knows: added to those of the installed release, or all of them where these are not
    /// known.
    flags: BTreeMap<String, Vec<String>>,
}

impl Options {
    fn check(&self) -> Result<(), OptionsError> {
        absolute("dir", &self.dir)?;
        match self.flags.keys().find(|file| FILES.iter().all(|(known, _)| known != file)) {
            Some(file) => {
                let known: Vec<_> = FILES.iter().map(|(name, _)| *name).collect();
                let what = format!("{file} is none of {}", known.join(", "));
                Err(OptionsError::new("flags", what))
            }
            None => Ok(()),
        }
    }
}

struct Args {
    host: Host,
    dir: PathBuf,
    flags: BTreeMap<String, Vec<String>>,
}

impl BlockingSampler for Args {
    /// # Errors
    ///
    /// When the folder cannot be read. A file that cannot be is a part that failed.
    fn sample(&mut self, out: &mut Batch) -> Result<(), SampleError> {
        let resolve =
            |path: &Path| self.host.resolve(path).map_err(|error| SampleError::read(path, error));
        let inside = self.host.path(resolve(&self.dir)?);
        fs::read_dir(&inside).map_err(|error| SampleError::read(&self.dir, error))?;
        let processes = self.processes();
        for (file, other) in FILES {
            let shown = self.dir.join(file);
            let (text, modified) = match read_file(&inside.join(file)) {
                Ok(Some(read)) => read,
                Ok(None) => continue,
                Err(error) => {
                    out.fail(SampleError::read(shown, error));
                    continue;
                }
            };
            out.push(&MODIFIED, [file], modified);
            out.push(&MANAGED, [file], managed_blocks(&text));
            let started = [file, other].into_iter().find_map(|name| processes.get(comm(name)));
            if let Some(started) = started {
                let changed = processes::changed_since(*started, modified);
                out.push(&CHANGED, [file], changed);
                if changed {
                    let text = format!(
                        "args/{file} was changed; {file} has not been restarted since and takes it over at the next start"
                    );
                    out.event(modified, "args_changed", text);
                }
            }
            match words_of_file(&text, |name| self.variable(name)) {
                Ok(words) => self.judge(file, &flags(&words), modified, out),
                Err(why) => {
                    let what = format!("{why}: bash refuses it, and {file} does not start again");
                    out.fail(SampleError::parse(shown, what));
                }
            }
        }
        Ok(())
    }
}

impl Args {
    fn node(&self) -> Option<&Installation> {
        self.host.facts().primary()
    }

    fn snap(&self) -> Option<&'static str> {
        self.node().and_then(|node| snap_of(node.distribution)).map(|(snap, _)| snap)
    }

    fn variable(&self, name: &str) -> Option<String> {
        let snap = self.snap()?;
        snaps::variable(snap, Path::new(&format!("/snap/{snap}/current")), name)
    }

    /// When the snap's services started, by the name of their process.
    fn processes(&self) -> BTreeMap<String, SystemTime> {
        let folder = self.snap().map_or("/snap/".to_owned(), |snap| format!("/snap/{snap}/"));
        let names: BTreeSet<&str> = FILES.iter().map(|(name, _)| comm(name)).collect();
        processes::started(&self.host, &names, |process| process.runs_below(&folder))
    }

    /// What the program of `file` knows; nothing where that is not known.
    fn known(&self, file: &str) -> Option<Known> {
        let told = self.flags.get(file);
        let found = self
            .node()
            .and_then(|node| known(file, &node.components, self.snap()?, node.version.as_deref()));
        let mut known = match (found, told) {
            (Some(known), _) => known,
            (None, Some(_)) => Known { release: file.to_owned(), flags: BTreeSet::new() },
            (None, None) => return None,
        };
        let bare = |flag: &String| flag.trim_start_matches('-').to_owned();
        known.flags.extend(told.into_iter().flatten().map(bare));
        Some(known)
    }

    fn judge(&self, file: &str, flags: &BTreeSet<&str>, modified: SystemTime, out: &mut Batch) {
        let known = self.known(file);
        out.push(&CHECKED, [file], known.is_some());
        let Some(known) = known else { return };
        let unknown: Vec<_> = flags.iter().filter(|flag| !known.flags.contains(**flag)).collect();
        out.push(&UNKNOWN, [file], unknown.len());
        for flag in unknown.iter().take(MAX_FLAGS) {
            let flag = dashed(flag);
            out.info(&UNKNOWN_FLAG, [file, &flag]);
            let text = format!(
                "args/{file} has {flag}, which {} does not know: it will not start again",
                known.release
            );
            out.event(modified, "unknown_flag", text);
        }
        out.dropped(unknown.len().saturating_sub(MAX_FLAGS) as u64);
    }
}

/// Text and time of a file; nothing when it is not there, as that of a service which this node does not run.
fn read_file(path: &Path) -> std::io::Result<Option<(String, SystemTime)>> {
    let file = match read::open_regular(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let modified = file.metadata()?.modified()?;
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BYTES {
        let what = format!("longer than {MAX_BYTES} bytes");
        return Err(std::io::Error::new(ErrorKind::InvalidData, what));
    }
    Ok(Some((String::from_utf8_lossy(&bytes).into_owned(), modified)))
}

fn managed_blocks(text: &str) -> usize {
    let comment = |line: &&str| line.trim_start().starts_with('#');
    let begins = |line: &&str| line.contains("BEGIN") && line.contains("MANAGED");
    text.lines().filter(comment).filter(begins).count()
}

/// The names of the flags among these words, without values and dashes. A word with one dash behind a flag without a
/// value may be its value, and is left alone.
fn flags(words: &[String]) -> BTreeSet<&str> {
    let mut found = BTreeSet::new();
    let mut waits = false;
    for word in words {
        if word == "--" {
            break;
        }
        let (name, is_long) = match word.strip_prefix("--") {
            Some(name) => (name, true),
            None => (word.strip_prefix('-').unwrap_or_default(), false),
        };
        let after_flag = std::mem::replace(&mut waits, false);
        if name.is_empty() || (!is_long && after_flag) {
            continue;
        }
        let bare = name.split('=').next().unwrap_or_default();
        waits = bare == name;
        found.insert(bare);
    }
    found
}

/// For people; what is no name of a flag may be a secret that went astray, and is not repeated.
fn dashed(flag: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    match flag {
        flag if flag.len() > 80 || !flag.chars().all(plain) => "(no name of a flag)".to_owned(),
        flag if flag.len() == 1 => format!("-{flag}"),
        flag => format!("--{flag}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Facts;
    use crate::sampler;

    /// A MicroK8s node of this version, with these files of arguments.
    fn node(version: &str, files: &[(&str, &str)]) -> (tempfile::TempDir, Facts) {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("var/snap/microk8s/current/args");
        fs::create_dir_all(&dir).unwrap();
        for (name, text) in files {
            fs::write(dir.join(name), text).unwrap();
        }
        let mut node = Installation::new(Distribution::Microk8s);
        node.version = Some(version.to_owned());
        (root, Facts { installations: vec![node], ..Facts::default() })
    }

    fn build(
        root: &Path,
        facts: Facts,
        own: serde_json::Value,
    ) -> Result<Box<dyn BlockingSampler>, String> {
        sampler::isolated(&SAMPLER, &Host::at(root).with_facts(facts), &own)
    }

    fn run(version: &str, files: &[(&str, &str)], own: serde_json::Value) -> Batch {
        let (root, facts) = node(version, files);
        let mut out = Batch::default();
        build(root.path(), facts, own).unwrap().sample(&mut out).unwrap();
        out
    }

    const STOCK: &str = "--storage-dir=${SNAP_DATA}/var/kubernetes/backend/\n\
                         --listen=unix://${SNAP_DATA}/var/kubernetes/backend/kine.sock:12379\n";
    const PLAYBOOK: &str = "# BEGIN ANSIBLE MANAGED BLOCK\n--snapshot-threshold=512\n\
                            --snapshot-trailing-logs 1024\n# END ANSIBLE MANAGED BLOCK\n";

    #[test]
    fn flags_of_a_playbook_that_no_release_knows_are_named() {
        let none = serde_json::json!({});
        let text = format!("{STOCK}{PLAYBOOK}");
        let mut out = run("v1.34.5", &[("k8s-dqlite", &text)], none.clone());
        assert_eq!(out.value(&CHECKED, ["k8s-dqlite"]), Some(1.0));
        assert_eq!(out.value(&UNKNOWN, ["k8s-dqlite"]), Some(2.0));
        assert_eq!(out.value(&MANAGED, ["k8s-dqlite"]), Some(1.0));
        for flag in ["--snapshot-threshold", "--snapshot-trailing-logs"] {
            assert_eq!(out.value(&UNKNOWN_FLAG, ["k8s-dqlite", flag]), Some(1.0), "{flag}");
        }
        let told = out.take_events();
        assert_eq!(told.len(), 2);
        assert_eq!(told[0].kind, "unknown_flag");
        assert_eq!(
            told[0].text,
            "args/k8s-dqlite has --snapshot-threshold, which k8s-dqlite 1.3.5 to 1.8.1 does not know: it will not start again"
        );
        let out = run("v1.34.5", &[("k8s-dqlite", STOCK)], none);
        assert_eq!(out.value(&UNKNOWN, ["k8s-dqlite"]), Some(0.0));
        assert_eq!(out.value(&MANAGED, ["k8s-dqlite"]), Some(0.0));
    }

    #[test]
    fn what_is_not_in_the_table_is_not_checked_unless_it_is_told() {
        let files = [("k8s-dqlite", "--strange"), ("kubelet", "--root-dir=/x --odd --odd")];
        let out = run("v1.99.0", &files, serde_json::json!({}));
        for file in ["k8s-dqlite", "kubelet"] {
            assert_eq!(out.value(&CHECKED, [file]), Some(0.0));
        }
        assert_eq!(out.series(&UNKNOWN) + out.series(&UNKNOWN_FLAG), 0);
        let own =
            serde_json::json!({"flags": {"kubelet": ["--root-dir"], "k8s-dqlite": ["strange"]}});
        let out = run("v1.34.0", &files, own);
        assert_eq!(out.value(&UNKNOWN, ["kubelet"]), Some(1.0));
        assert_eq!(out.value(&UNKNOWN, ["k8s-dqlite"]), Some(0.0), "added to the release's own");
        assert_eq!(out.value(&UNKNOWN_FLAG, ["kubelet", "--odd"]), Some(1.0));
    }

    #[test]
    fn flags_are_told_apart_from_values_and_words() {
        let of = |words: &[&str]| {
            let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
            flags(&words).into_iter().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(
            of(&["migrator", "--a=1", "--b", "-1", "c", "-d", "--", "--e"]),
            ["a", "b", "d"]
        );
        assert_eq!(of(&["-", "", "--a==", "-b=c"]), ["a", "b"]);
    }

    #[test]
    fn no_value_and_nothing_that_may_be_one_is_repeated() {
        let secret = "hunter2";
        let text = format!("--token={secret} --a,{secret} '--{secret} x' --b {secret}");
        let mut out = run("v1.34.5", &[("k8s-dqlite", &text)], serde_json::json!({}));
        assert_eq!(out.value(&UNKNOWN, ["k8s-dqlite"]), Some(4.0));
        let events = out.take_events();
        let shown = format!("{:?} {events:?}", out.all());
        assert!(!shown.contains(secret), "{shown}");
        assert!(shown.contains("--token"), "{shown}");
    }

    #[test]
    fn more_unknown_flags_than_ten_are_counted_and_not_named() {
        let text: String = (0..30).map(|n| format!("--flag-{n} ")).collect();
        let out = run("v1.34.5", &[("k8s-dqlite", &text)], serde_json::json!({}));
        assert_eq!(out.value(&UNKNOWN, ["k8s-dqlite"]), Some(30.0));
        assert_eq!((out.series(&UNKNOWN_FLAG), out.dropped_count()), (10, 20));
    }

    #[test]
    fn a_file_that_bash_refuses_or_nobody_can_read_is_a_failed_part() {
        let (root, facts) = node("v1.34.5", &[("k8s-dqlite", "--a='b"), ("kubelet", "--c")]);
        let dir = root.path().join("var/snap/microk8s/current/args");
        fs::create_dir(dir.join("etcd")).unwrap();
        fs::write(dir.join("kubelite"), vec![b' '; 300 << 10]).unwrap();
        let mut out = Batch::default();
        build(root.path(), facts, serde_json::json!({})).unwrap().sample(&mut out).unwrap();
        let told: Vec<_> = out.failures().iter().map(ToString::to_string).collect();
        assert_eq!(told.len(), 3, "{told:?}");
        assert!(told[0].contains("args/k8s-dqlite: a quote is never closed"), "{told:?}");
        assert_eq!(out.value(&CHECKED, ["kubelet"]), Some(0.0), "the others are there");
        assert_eq!(out.series(&CHECKED), 1);
    }

    #[test]
    fn a_change_after_the_service_started_bites_at_the_next_restart() {
        let (root, mut facts) = node("v1.34.5", &[("kubelet", "--a"), ("k8s-dqlite", "--debug")]);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        facts.boot_time = Some(now - 10_000);
        let ticks = rustix::param::clock_ticks_per_second();
        let put = |pid: u32, comm: &str, program: &str, age: u64| {
            let proc = root.path().join(format!("proc/{pid}"));
            fs::create_dir_all(&proc).unwrap();
            fs::write(proc.join("comm"), format!("{comm}\n")).unwrap();
            fs::write(proc.join("cmdline"), format!("{program}\0--x\0")).unwrap();
            let start = (10_000 - age) * ticks;
            let rest = "S 1 1 1 0 -1 4194560 0 0 0 0 0 0 0 0 20 0 1 0";
            let tail =
                "0 0 18446744073709551615 0 0 0 0 0 0 0 0 0 0 0 0 17 0 0 0 0 0 0 0 0 0 0 0 0 0 0";
            fs::write(proc.join("stat"), format!("{pid} ({comm}) {rest} {start} {tail}\n"))
                .unwrap();
        };
        put(10, "kubelite", "/snap/microk8s/8695/kubelite", 600);
        put(11, "k8s-dqlite", "/snap/microk8s/8695/bin/k8s-dqlite", 2);
        put(12, "containerd", "/usr/bin/containerd", 600);
        let mut sampler = build(root.path(), facts, serde_json::json!({})).unwrap();
        let mut out = Batch::default();
        sampler.sample(&mut out).unwrap();
        assert_eq!(out.value(&CHANGED, ["kubelet"]), Some(1.0), "it runs within kubelite");
        assert_eq!(out.value(&CHANGED, ["k8s-dqlite"]), Some(0.0));
        assert_eq!(out.take_events()[0].kind, "args_changed");
    }

    #[test]
    fn it_runs_on_the_two_snaps_or_where_a_folder_is_given() {
        let facts = |distribution| Facts {
            installations: vec![Installation::new(distribution)],
            ..Facts::default()
        };
        let why = |facts, own| build(Path::new("/"), facts, own).err().unwrap_or_default();
        let none = || serde_json::json!({});
        assert!(why(facts(Distribution::K3s), none()).contains("set args.dir"));
        assert_eq!(why(facts(Distribution::CanonicalK8s), none()), "");
        assert_eq!(why(facts(Distribution::K3s), serde_json::json!({"dir": "/args"})), "");
        let relative = serde_json::json!({"dir": "args"});
        assert!(why(Facts::default(), relative).starts_with("dir: "));
        let file = serde_json::json!({"flags": {"passwd": []}});
        assert!(why(facts(Distribution::Microk8s), file).starts_with("flags: passwd is none of"));
    }
}
