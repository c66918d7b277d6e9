//! The processes that tell what runs here.
//!
//! Reads `/proc/PID/comm` of every process, and `cmdline` and `cgroup` of those whose name says
//! that they belong to a control plane. A k3s in a pod or a container (vcluster, k3d, kind) is not
//! an installation of this node, so the cgroup is looked at too.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use procfs::FromRead;
use procfs::process::Stat;

use super::Host;
use super::read::{self, read_virtual};

/// Bytes of a command line; kube-apiserver's has about 4 KiB.
const MAX_CMDLINE: u64 = 64 << 10;
/// Bytes of `cgroup` and `comm`.
const MAX_SMALL: u64 = 4 << 10;
/// Bytes of an environment.
const MAX_ENVIRON: u64 = 256 << 10;
/// Entries of `/proc` looked at: twice the usual limit of processes.
const MAX_PIDS: usize = 65_536;
/// Processes of interest kept.
const MAX_KEPT: usize = 512;

/// `comm` as the kernel cuts it, after 15 characters.
const NAMES: &[&str] = &[
    "etcd",
    "k0s",
    "k3s",
    "k8s-dqlite",
    "k8sd",
    "kine",
    "kube-apiserver",
    "kube-controller",
    "kube-scheduler",
    "kubelet",
    "kubelite",
];
const PREFIXES: &[&str] = &["k3s-server", "k3s-agent", "rke2"];

/// A process whose name is of interest.
#[derive(Debug, Clone, Default)]
pub(crate) struct Process {
    pub(super) pid: u32,
    pub(super) comm: String,
    /// The command line; blanks separate too, since k3s overwrites its own with one string.
    pub(crate) words: Vec<String>,
    cgroup: String,
}

impl Process {
    /// The process, where its name is `wanted`.
    fn read(proc: &Path, pid: u32, wanted: impl Fn(&str) -> bool) -> Option<Self> {
        let folder = proc.join(pid.to_string());
        let comm = text(&folder.join("comm"), MAX_SMALL)?.trim_end().to_owned();
        wanted(&comm).then(|| Self {
            pid,
            comm,
            words: words(&text(&folder.join("cmdline"), MAX_CMDLINE).unwrap_or_default()),
            cgroup: text(&folder.join("cgroup"), MAX_SMALL).unwrap_or_default(),
        })
    }

    /// Whether its program lies below `folder`.
    pub(crate) fn runs_below(&self, folder: &str) -> bool {
        self.words.first().is_some_and(|program| program.contains(folder))
    }

    /// Whether it runs in a pod: static pods too.
    pub(crate) fn in_pod(&self) -> bool {
        // Seen from another pod's namespace a path may begin with `/../../pod<uid>`.
        self.cgroup.contains("kubepods")
            || self
                .cgroup
                .split("/pod")
                .skip(1)
                .any(|uid| uid.len() > 8 && uid.chars().take(8).all(|c| c.is_ascii_hexdigit()))
    }

    /// Whether it runs in a container of any kind, so that it is not an installation here.
    pub(crate) fn contained(&self) -> bool {
        const MARKS: &[&str] = &["docker", "libpod", "cri-containerd", "crio", "lxc", "machine-"];
        self.in_pod() || MARKS.iter().any(|mark| self.cgroup.contains(mark))
    }

    /// The unit of the system that runs it, `etcd.service`.
    pub(super) fn unit(&self) -> Option<&str> {
        if self.cgroup.contains("user@") {
            return None;
        }
        self.cgroup.lines().find_map(|line| {
            line.rsplit('/').find(|part| {
                Path::new(part).extension().is_some_and(|extension| extension == "service")
            })
        })
    }

    /// Whether a word of its command line contains `text`.
    pub(crate) fn mentions(&self, text: &str) -> bool {
        self.words.iter().any(|word| word.contains(text))
    }
}

/// The processes of interest, lowest pid first.
#[derive(Debug, Default)]
pub(super) struct Processes {
    list: Vec<Process>,
    proc: PathBuf,
}

impl Processes {
    pub(super) fn scan(host: &Host) -> Self {
        let proc = host.path(host.resolve("/proc").unwrap_or_else(|_| "/proc".into()));
        let wanted = |comm: &str| {
            NAMES.contains(&comm) || PREFIXES.iter().any(|prefix| comm.starts_with(prefix))
        };
        let all = pids(&proc).into_iter().filter_map(|pid| Process::read(&proc, pid, wanted));
        let list = all.take(MAX_KEPT).collect();
        Self { list, proc }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Process> {
        self.list.iter()
    }

    /// The processes of this name.
    pub(super) fn named<'a>(&'a self, comm: &'a str) -> impl Iterator<Item = &'a Process> {
        self.list.iter().filter(move |process| process.comm == comm)
    }

    /// The variables of a process whose names begin with `prefix`; `None` where they may not be
    /// read, which needs the same user or `CAP_SYS_PTRACE`.
    pub(super) fn environ(&self, process: &Process, prefix: &str) -> Option<Vec<(String, String)>> {
        let path = self.proc.join(process.pid.to_string()).join("environ");
        let variables = text(&path, MAX_ENVIRON)?
            .split('\0')
            .filter(|entry| entry.starts_with(prefix))
            .filter_map(|entry| entry.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        Some(variables)
    }

    /// The working directory of a process; `None` where its variables may not be read either.
    pub(super) fn working_directory(&self, process: &Process) -> Option<PathBuf> {
        std::fs::read_link(self.proc.join(process.pid.to_string()).join("cwd")).ok()
    }
}

/// What the kernel keeps of a process' name.
pub(crate) fn comm(name: &str) -> &str {
    &name[..name.len().min(15)]
}

/// Whether a file was changed after a process had begun. A start is known to the second only, and the wrappers of some
/// services change their own file just before they start.
pub(crate) fn changed_since(started: SystemTime, modified: SystemTime) -> bool {
    const GRACE: Duration = Duration::from_secs(15);
    modified > started + GRACE
}

/// When the kernel started, in Unix seconds: `btime` of `/proc/stat`, which moves when the clock is set.
pub(crate) fn boot_time(host: &Host) -> Option<u64> {
    let (bytes, _) = read::read_dated(host, Path::new("/proc/stat"), read::MAX_FILE).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    text.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

/// When the oldest process of each of these names began that is `ours`.
pub(crate) fn started(
    host: &Host,
    names: &BTreeSet<&str>,
    ours: impl Fn(&Process) -> bool,
) -> BTreeMap<String, SystemTime> {
    // Detection's may be from before the clock was set.
    let Some(boot) = boot_time(host).or(host.facts().boot_time) else { return BTreeMap::new() };
    let proc = host.path(host.resolve("/proc").unwrap_or_else(|_| "/proc".into()));
    let ticks = rustix::param::clock_ticks_per_second().max(1);
    let mut oldest = BTreeMap::new();
    for pid in pids(&proc) {
        let wanted = |comm: &str| names.contains(comm);
        let Some(process) = Process::read(&proc, pid, wanted).filter(|found| ours(found)) else {
            continue;
        };
        let folder = proc.join(pid.to_string());
        let Ok(stat) = Stat::from_file(folder.join("stat")) else { continue };
        let begun = boot.saturating_add(stat.starttime / ticks);
        let begun = UNIX_EPOCH + Duration::from_secs(begun);
        let known = oldest.entry(process.comm).or_insert(begun);
        *known = begun.min(*known);
    }
    oldest
}

/// Every pid, sorted, so that the answer does not depend on the kernel's order.
fn pids(proc: &Path) -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir(proc) else { return Vec::new() };
    let mut pids: Vec<u32> = entries
        .take(MAX_PIDS)
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    pids.sort_unstable();
    pids
}

fn text(path: &Path, limit: u64) -> Option<String> {
    let bytes = read_virtual(path, limit).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

fn words(cmdline: &str) -> Vec<String> {
    cmdline
        .split(|c: char| c == '\0' || c.is_whitespace())
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn scan(processes: &[(u32, &str, &[u8], &str)]) -> Vec<Process> {
        let dir = tempfile::tempdir().unwrap();
        for (pid, comm, cmdline, cgroup) in processes {
            let folder = dir.path().join(format!("proc/{pid}"));
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("comm"), format!("{comm}\n")).unwrap();
            fs::write(folder.join("cmdline"), cmdline).unwrap();
            fs::write(folder.join("cgroup"), cgroup).unwrap();
        }
        Processes::scan(&Host::at(dir.path())).list
    }

    #[test]
    fn only_processes_of_interest_are_kept() {
        let found = scan(&[
            (20, "etcd", b"/usr/bin/etcd\0--data-dir=/d\0", "0::/system.slice/etcd.service\n"),
            (3, "bash", b"bash\0", "0::/\n"),
            (7, "k3s-server", b"/usr/local/bin/k3s server\0\0\0", "0::/system.slice/k3s.service\n"),
        ]);
        assert_eq!(found.iter().map(|p| p.pid).collect::<Vec<_>>(), [7, 20]);
        assert_eq!(found[0].words, ["/usr/local/bin/k3s", "server"]);
        assert_eq!(found[1].unit(), Some("etcd.service"));
        assert!(!found[0].contained() && !found[1].contained());
    }

    #[test]
    fn a_start_is_told_by_the_clock_as_it_is_set_now() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("proc/77");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("comm"), "etcd\n").unwrap();
        fs::write(folder.join("cmdline"), "etcd\0").unwrap();
        let ticks = rustix::param::clock_ticks_per_second();
        let rest = "0 ".repeat(18);
        let stat = format!("77 (etcd) S {rest}{} {}", 100 * ticks, "0 ".repeat(30));
        fs::write(folder.join("stat"), stat).unwrap();
        let facts = crate::host::Facts { boot_time: Some(1_000), ..Default::default() };
        let host = Host::at(dir.path()).with_facts(facts);
        let began = || started(&host, &BTreeSet::from(["etcd"]), |_| true)["etcd"];
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(began(), at(1_100), "as detection saw it");
        fs::write(dir.path().join("proc/stat"), "cpu 1 2\nbtime 1700000000\n").unwrap();
        assert_eq!(began(), at(1_700_000_100));
    }

    #[test]
    fn a_process_in_a_pod_or_container_is_recognised() {
        let found = scan(&[
            (1, "etcd", b"etcd", "0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-0.scope\n"),
            (2, "k3s-server", b"k3s", "0::/system.slice/docker-0.scope\n"),
        ]);
        assert!(found[0].in_pod() && found[0].contained());
        assert!(!found[1].in_pod() && found[1].contained());
        assert_eq!(found[1].unit(), None);
    }

    #[test]
    fn variables_that_may_not_be_read_are_told_from_none() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("proc/77");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("comm"), "etcd\n").unwrap();
        let processes = Processes::scan(&Host::at(dir.path()));
        let environ = || processes.environ(&processes.list[0], "ETCD_");
        assert_eq!(environ(), None);
        fs::write(folder.join("environ"), "").unwrap();
        assert_eq!(environ(), Some(Vec::new()));
        fs::write(folder.join("environ"), "PATH=/bin\0ETCD_NAME=a\0").unwrap();
        assert_eq!(environ(), Some(vec![("ETCD_NAME".to_owned(), "a".to_owned())]));
    }

    #[test]
    fn garbage_in_proc_is_survived() {
        let found = scan(&[(1, "etcd", b"\xff\xfe\0\0=\0--", "\0\0"), (2, "", b"", "")]);
        assert_eq!(found.len(), 1);
        assert!(Processes::scan(&Host::at("/does/not/exist")).list.is_empty());
    }
}
