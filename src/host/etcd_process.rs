//! etcd members that run as plain processes: those of an installation, whose command line says
//! more than files, and those without Kubernetes beside them.
//!
//! Reads the command lines in `/proc`, `ETCD_*` variables where they may be read, else those of
//! the process's unit, and the units whose command is etcd.

use std::path::{Path, PathBuf};

use super::etcd_settings::{EtcdSettings, known_variable};
use super::flags::Flags;
use super::found::Found;
use super::mounts::Mounts;
use super::processes::Process;
use super::read::Probe;
use super::units::{self, UnitFile};
use super::{Datastore, Distribution, EtcdAccess, Installation, QuotaSource, Role, Unit};

/// Takes quota and WAL directory from the running member of an installation. What runs is
/// believed before what is written.
pub(super) fn refine(probe: &Probe, found: &mut Installation) {
    let Some(folder) = found.datastore_dir.clone() else { return };
    if found.datastore != Datastore::Etcd || found.distribution == Distribution::Etcd {
        return;
    }
    let mut members = probe.processes.named("etcd").map(|process| Running::read(probe, process));
    let running = members.find(|running| {
        let dir = running.settings.data_dir.as_ref();
        dir.is_some_and(|dir| same_place(probe, dir, &folder))
    });
    let Some(Running { process, settings, source, .. }) = running else { return };
    if settings.wal_dir.is_some() {
        found.wal_dir.clone_from(&settings.wal_dir);
    }
    // Read from a configuration file, it is the file that says so, as found already.
    let from_file = process.words.iter().any(|word| word.contains("config-file"));
    if let Some(access) = found.etcd.as_mut().filter(|_| !from_file) {
        access.quota = settings.quota(source).or(access.quota.take());
    }
}

/// A plain etcd: a process outside of pods that belongs to none of `others`, else a unit whose
/// command is etcd.
pub(super) fn plain(probe: &Probe, others: &[Found], forced: bool) -> Option<Found> {
    let theirs: Vec<&Path> =
        others.iter().filter_map(|other| other.installation.datastore_dir.as_deref()).collect();
    let taken = |dir: &Path| theirs.iter().any(|their| same_place(probe, dir, their));
    let running =
        probe.processes.named("etcd").filter(|process| !process.in_pod()).find_map(|process| {
            let running = Running::read(probe, process).with_directories(probe);
            let own = running.settings.data_dir.as_deref().is_none_or(|dir| !taken(dir));
            (own && !is_child_of_others(process)).then_some(running)
        });
    let unit = match &running {
        // In a container it is run by a unit that calls the container's runtime.
        Some(running) if running.process.contained() => unit_of_etcd(probe),
        Some(running) => {
            running.process.unit().filter(|unit| runs_etcd(probe, unit)).map(str::to_owned)
        }
        None => unit_of_etcd(probe),
    };
    let settings = if let Some(running) = &running {
        running.settings.clone()
    } else {
        let settings = unit.as_deref().and_then(|unit| settings_of_unit(probe, unit));
        let settings = settings.unwrap_or_default();
        if settings.data_dir.as_deref().is_some_and(taken) {
            return None;
        }
        settings
    };
    let has_member = others.iter().any(|other| other.installation.datastore == Datastore::Etcd);
    if !forced && running.is_none() && (has_member || !was_used(probe, unit.as_deref(), &settings))
    {
        return None;
    }
    let found = describe(probe, &settings, unit, running.as_ref());
    Some(Found::new(probe, found).advertising(settings.advertise_client_urls))
}

/// Whether a stopped etcd is meant to run: its unit starts at boot and it has run before. A
/// package that was merely installed, for its tools or as a dependency, is nothing to watch.
fn was_used(probe: &Probe, unit: Option<&str>, settings: &EtcdSettings) -> bool {
    let member = settings.data_dir.as_ref().map(|dir| dir.join("member"));
    unit.is_some_and(|unit| units::enabled(probe, unit))
        && member.is_some_and(|member| probe.presence(member) != Some(false))
}

fn describe(
    probe: &Probe,
    settings: &EtcdSettings,
    unit: Option<String>,
    running: Option<&Running>,
) -> Installation {
    let mut found = Installation::new(Distribution::Etcd);
    found.running = running.is_some();
    found.role = Role::Server;
    found.datastore = Datastore::Etcd;
    found.datastore_dir.clone_from(&settings.data_dir);
    found.wal_dir.clone_from(&settings.wal_dir);
    found.processes = vec!["etcd".to_owned()];
    if running.is_some_and(|running| running.partial) && settings.listen_client_urls.is_empty() {
        probe.note(
            "the variables of the etcd that runs here could not be read, and no unit tells all of them, so its \
             address is unknown; set etcd.endpoints and its certificates, or give the agent CAP_SYS_PTRACE"
                .to_owned(),
        );
    } else {
        let source = running.map_or(QuotaSource::Config, |running| running.source);
        found.etcd = Some(with_client_pair(probe, settings.access(source)));
    }
    found.evidence.extend(unit.as_deref().and_then(|unit| units::find(probe, unit)));
    found.evidence.extend(settings.data_dir.clone().filter(|dir| probe.exists(dir)));
    found.units = unit.into_iter().map(|name| Unit { name, expected: true }).collect();
    found
}

/// The pair that kubeadm makes for health checks, where it lies beside the server's: a server
/// certificate need not be good for a client.
fn with_client_pair(probe: &Probe, mut access: EtcdAccess) -> EtcdAccess {
    let Some(folder) = access.cert_file.as_deref().and_then(Path::parent) else { return access };
    let pair = [folder.join("healthcheck-client.crt"), folder.join("healthcheck-client.key")];
    if pair.iter().all(|file| probe.exists(file)) {
        let [cert, key] = pair;
        (access.cert_file, access.key_file) = (Some(cert), Some(key));
    }
    access
}

/// A process that is an etcd, and what is known of its settings.
struct Running<'a> {
    process: &'a Process,
    settings: EtcdSettings,
    /// Where its quota was read.
    source: QuotaSource,
    /// Where it was started, for paths that are relative.
    start: Option<PathBuf>,
    /// Whether it may have variables that nothing tells.
    partial: bool,
}

impl<'a> Running<'a> {
    /// Variables and working directory of another user's process can be read with
    /// `CAP_SYS_PTRACE` only, which the agent's unit does not give; the process's own unit tells
    /// the same.
    fn read(probe: &Probe, process: &'a Process) -> Self {
        let own = probe.processes.environ(process, "ETCD_");
        let unit = if own.is_none() { unit_to_ask(probe, process) } else { None };
        let flags = Flags::parse(&process.words);
        let told = own.is_some() || flags.get("quota-backend-bytes").is_some();
        let source = if told { QuotaSource::Process } else { QuotaSource::Config };
        let known = own.is_some() || unit.as_ref().is_some_and(|unit| !unit.partial);
        // A configuration file replaces all variables.
        let partial = !known && flags.get("config-file").is_none();
        let by_unit = unit.as_ref().filter(|_| !process.contained());
        // systemd's default is the root.
        let by_unit =
            by_unit.map(|unit| unit.working_directory.clone().unwrap_or_else(|| "/".into()));
        let start = probe.processes.working_directory(process).or(by_unit);
        let variables = own.or_else(|| Some(unit?.environment)).unwrap_or_default();
        let mut settings = EtcdSettings::of_command(probe, &process.words, &variables);
        // A member can be asked where it says that it can.
        if partial && settings.listen_client_urls.is_empty() {
            settings.listen_client_urls.clone_from(&settings.advertise_client_urls);
        }
        Self { process, settings, source, start, partial }
    }

    /// With etcd's own default of the data directory, which is relative to where it was started,
    /// and all paths as the host has them.
    fn with_directories(self, probe: &Probe) -> Self {
        let Self { process, mut settings, source, start, partial } = self;
        // Of variables that nobody could read, the directory may be one.
        if settings.data_dir.is_none() && !partial {
            let name = settings.name.as_deref().unwrap_or("default");
            settings.data_dir = Some(format!("{name}.etcd").into());
        }
        let mounts = process.contained().then(|| ContainerMounts::read(probe, process));
        let on_host = |path: PathBuf| {
            let path = match &start {
                Some(start) => start.join(path),
                None => path,
            };
            if !path.is_absolute() {
                return None;
            }
            match &mounts {
                Some(mounts) => mounts.on_host(probe, &path),
                None => Some(path),
            }
        };
        let EtcdSettings { data_dir, wal_dir, trusted_ca_file, cert_file, key_file, .. } =
            &mut settings;
        for path in [data_dir, wal_dir, trusted_ca_file, cert_file, key_file] {
            *path = path.take().and_then(on_host);
        }
        Self { process, settings, source, start, partial }
    }
}

/// The unit that tells what may not be read of a process; `None` where its command is not etcd: a script may set more.
fn unit_to_ask(probe: &Probe, process: &Process) -> Option<UnitFile> {
    if process.in_pod() {
        return None;
    }
    // In a container it is run by a unit that calls the container's runtime.
    let name = if process.contained() { unit_of_etcd(probe)? } else { process.unit()?.to_owned() };
    let unit = units::load(probe, &name, &known_variable)?;
    // The command may stand behind a shell.
    let command = match unit.exec.iter().position(|word| word == "-c") {
        Some(at) => &unit.exec[at + 1..],
        None => unit.exec.get(..1).unwrap_or_default(),
    };
    let mut words = command.iter().flat_map(|word| word.split_whitespace());
    let named = words.any(|word| Path::new(word).ends_with("etcd"));
    named.then_some(unit)
}

/// What a process in a container sees mounted, and what the host does; nothing where it cannot be read.
struct ContainerMounts {
    inside: Mounts,
    host: Mounts,
}

impl ContainerMounts {
    fn read(probe: &Probe, process: &Process) -> Self {
        let inside = Mounts::of_process(&probe.host.path("/proc"), process.pid);
        let host = Mounts::read(probe.host);
        Self { inside: inside.unwrap_or_default(), host: host.unwrap_or_default() }
    }

    /// Where the host has what the container sees at `path`; a note where nowhere.
    fn on_host(&self, probe: &Probe, path: &Path) -> Option<PathBuf> {
        let origin = self.inside.holder(path).and_then(|mount| mount.origin(path));
        let found = origin.and_then(|origin| self.host.place(&origin));
        if found.is_none() {
            probe.note(format!(
                "etcd's {} lies in a container, and no mount of the host is known to have it; set host.datastore_dir, \
                 or the files in section etcd",
                path.display()
            ));
        }
        found
    }
}

/// Whether the process was started by k0s or a snap, which detection describes by itself.
fn is_child_of_others(process: &Process) -> bool {
    let program = process.words.first().map(String::as_str).unwrap_or_default();
    program.starts_with("/snap/")
        || process
            .unit()
            .is_some_and(|unit| unit.starts_with("k0scontroller") || unit.starts_with("snap."))
}

/// The first unit whose name begins with etcd and whose command is etcd.
fn unit_of_etcd(probe: &Probe) -> Option<String> {
    let mut units = units::matching(probe, "etcd", ".service").into_iter();
    units.find(|unit| runs_etcd(probe, unit))
}

/// Whether an etcd runs outside of pods, or a unit of one starts at boot.
pub(super) fn is_on_host(probe: &Probe) -> bool {
    probe.processes.named("etcd").any(|process| !process.in_pod())
        || unit_of_etcd(probe).is_some_and(|unit| units::enabled(probe, &unit))
}

/// Whether the command of a unit is etcd. An etcd started by hand, or by a test, may be found in
/// the cgroup of a unit that is about something else.
fn runs_etcd(probe: &Probe, unit: &str) -> bool {
    let unit = units::load(probe, unit, &known_variable).unwrap_or_default();
    unit.exec.first().is_some_and(|word| Path::new(word).ends_with("etcd"))
}

fn settings_of_unit(probe: &Probe, unit: &str) -> Option<EtcdSettings> {
    let unit = units::load(probe, unit, &known_variable)?;
    Some(EtcdSettings::of_command(probe, &unit.exec, &unit.environment))
}

/// Whether two host paths lead to one place: command lines of snaps carry the revision where
/// facts say `current`.
pub(super) fn same_place(probe: &Probe, a: &Path, b: &Path) -> bool {
    a == b || matches!((probe.host.resolve(a), probe.host.resolve(b)), (Ok(a), Ok(b)) if a == b)
}
