//! The volumes of Longhorn and of other CSI drivers: whether one was formatted anew, what is used of it, and its backups.
//!
//! A driver that takes a disk for empty makes a filesystem on it, and nobody is told: the volume is healthy, and empty. So
//! of each volume that this node has mounted the filesystem's UUID and the time at which it was made are compared with what is
//! remembered, with the volume's backups, and with the age of the folder that kubelet made for the mount (`volume/memory.rs`).
//!
//! A child process reads `/proc/1/mountinfo`; then one for each device, so that one that hangs hides no other, calls
//! `statvfs(2)` and `statx(2)` on the mount and reads kubelet's `vol_data.json` beside it and the first 4 KiB of the device. The
//! shipped unit may not open disks: then the mount tells when the filesystem was made, and udev's file its UUID. No second
//! child is started for a device before the first is reaped; each costs at most one `timeout`, eight at the same time.
//!
//! Backups are Longhorn's objects in the API server's datastore, read every fifth run (`volume/longhorn.rs`); every control-plane
//! node tells all of them. While they cannot be read their counts are absent, and their times stay.
//!
//! What is remembered is written into `state_file` when it changes, from the second run on, by a child. A file that is
//! damaged, gone, closed or hangs is a part of the run that failed, and nothing else.

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod longhorn;
mod look;
mod memory;
mod superblock;

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use futures_util::FutureExt;
use futures_util::stream::{self, StreamExt};
use globset::{Glob, GlobSet, GlobSetBuilder};
use serde::{Deserialize, Serialize, Serializer};

use crate::child::{ChildError, Slot};
use crate::config;
use crate::etcd::Settings;
use crate::kept::{Kept, Shared};
use crate::metric::Metric;
use crate::sample::{Batch, SampleError};
use crate::sampler::{AsyncSampler, Build, OptionsError, SamplerDef, absolute, defaults, facts};

use longhorn::{Longhorn, Registry, Volume};
use look::{Answer, Device, Question, Seen, State, moment};
use memory::{Memory, Sighting, Why};

pub use look::run_child;

/// See the module's page.
pub static SAMPLER: SamplerDef = SamplerDef {
    about: "The volumes of Longhorn and other CSI drivers: formatted anew, used bytes, backups.",
    interval: Duration::from_mins(1),
    timeout: Duration::from_secs(5),
    metrics: &[
        INFO.desc(),
        FORMATTED.desc(),
        MOUNTED.desc(),
        FIRST_SEEN.desc(),
        REFORMATTED.desc(),
        SIZE.desc(),
        USED.desc(),
        PROVISIONED.desc(),
        BACKUPS.desc(),
        BACKUP_LAST.desc(),
        BACKUP_DUE.desc(),
    ],
    defaults: defaults::<Options>,
    uses: |all| facts((all.registry(), all.primary().is_some())),
    build: |options, host| {
        let own: Options = options.parse()?;
        absolute("state_file", &own.state_file)?;
        let ignored = globs(&own.ignore_volumes)?;
        let settings = Settings {
            endpoints: own.endpoints,
            ca_file: own.ca_file,
            cert_file: own.cert_file,
            key_file: own.key_file,
            server_name: own.server_name,
        };
        let access = settings.access(host.facts().registry().as_ref(), host)?;
        if access.is_none() && host.facts().primary().is_none() {
            return Ok(Build::not_applicable(
                "no Kubernetes was found, and no datastore of one; set volume.endpoints or etcd.endpoints",
            ));
        }
        let registry = access.map(|access| Registry::new(&access, options.timeout));
        let rootfs = host.rootfs().to_owned();
        Ok(Build::tasked(Volumes {
            memory: MEMORIES.of(rootfs.clone()),
            rootfs,
            registry,
            interval: options.interval,
            timeout: options.timeout,
            ignored,
            max_age: own.backup_max_age,
            state_file: own.state_file,
            kept: None,
            runs: 0,
            names: HashMap::new(),
            longhorn: None,
        }))
    },
    cost: "2 ms of CPU a run and 3 ms for each mounted volume, in child processes; in the datastore 1.5 ms every five \
           minutes without Longhorn, and 1 ms for each hundred of its volumes and backups",
};

static INFO: Metric<5> = Metric::info(
    "controlplane_volume_info",
    "A volume that this node has mounted: Longhorn's or the driver's name of it, the kernel's name of its device, its filesystem, and the persistent volume as far as a pod has it. At most 64 volumes.",
    ["volume", "device", "fstype", "uuid", "persistentvolume"],
);
static FORMATTED: Metric<1> = Metric::gauge(
    "controlplane_volume_formatted_timestamp_seconds",
    "When the filesystem of the volume was made, in Unix time; ext4 and xfs only.",
    ["volume"],
);
static MOUNTED: Metric<1> = Metric::gauge(
    "controlplane_volume_last_mount_timestamp_seconds",
    "When the filesystem of the volume was last mounted, in Unix time; ext4 only, and only where the agent may read the device.",
    ["volume"],
);
static FIRST_SEEN: Metric<1> = Metric::gauge(
    "controlplane_volume_first_seen_timestamp_seconds",
    "When this agent first saw the volume mounted, in Unix time, as far as it remembers.",
    ["volume"],
);
static REFORMATTED: Metric<1> = Metric::gauge(
    "controlplane_volume_reformatted_timestamp_seconds",
    "When the filesystem was made that took the place of another one, in Unix time: another one is remembered, or a backup or kubelet's folder of the mount is older than the filesystem. Absent where nothing tells so; stays while the volume is not mounted.",
    ["volume"],
);
static SIZE: Metric<1> = Metric::gauge(
    "controlplane_volume_size_bytes",
    "Size of the filesystem of the volume.",
    ["volume"],
);
static USED: Metric<1> = Metric::gauge(
    "controlplane_volume_used_bytes",
    "Bytes of the filesystem of the volume that are in use.",
    ["volume"],
);
static PROVISIONED: Metric<1> = Metric::gauge(
    "controlplane_volume_provisioned_timestamp_seconds",
    "When Longhorn made the volume, in Unix time. This and the figures of backups are there where Longhorn has a backup target, of at most 100 volumes, those with the fewest backups first.",
    ["volume"],
);
static BACKUPS: Metric<1> = Metric::gauge(
    "controlplane_volume_backups",
    "Complete backups of the volume, by Longhorn's objects in the datastore.",
    ["volume"],
);
static BACKUP_LAST: Metric<1> = Metric::gauge(
    "controlplane_volume_backup_last_timestamp_seconds",
    "When the data of the newest complete backup of the volume was taken, in Unix time; absent where there is none.",
    ["volume"],
);
static BACKUP_DUE: Metric<1> = Metric::gauge(
    "controlplane_volume_backup_due_timestamp_seconds",
    "When the newest backup of the volume becomes older than volume.backup_max_age, in Unix time; absent where there is none.",
    ["volume"],
);

/// Volumes whose backups are told.
const MAX_BACKED_UP: usize = 100;
/// Longhorn's objects are read again after so many intervals: in every fifth run.
const READ_AGAIN: f64 = 4.5;
/// Children that look at the same time: each takes memory of the unit's.
const AT_ONCE: usize = 8;
/// Children that may be held at the same time, those of volumes that are mounted no more included.
const MAX_SLOTS: usize = 2 * look::MAX_DEVICES;

/// The section `volume`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Options {
    /// Where is remembered what was seen; null: nowhere.
    state_file: Option<PathBuf>,
    /// How old the newest backup of a volume may become.
    #[serde(deserialize_with = "config::duration", serialize_with = "written")]
    backup_max_age: Duration,
    /// Globs of volumes whose backups nobody misses.
    #[serde(deserialize_with = "config::list")]
    ignore_volumes: Vec<String>,
    /// Addresses of the local member, or the path of a socket. This key and the four below are those of
    /// section `etcd` when none of them is set here.
    #[serde(deserialize_with = "config::list")]
    endpoints: Vec<String>,
    ca_file: Option<PathBuf>,
    cert_file: Option<PathBuf>,
    key_file: Option<PathBuf>,
    server_name: Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            state_file: Some("/var/lib/controlplane-exporter/volumes.json".into()),
            // A weekly backup, and a day for it to be made.
            backup_max_age: Duration::from_hours(8 * 24),
            ignore_volumes: Vec::new(),
            endpoints: Vec::new(),
            ca_file: None,
            cert_file: None,
            key_file: None,
            server_name: None,
        }
    }
}

fn written<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_duration(*duration))
}

fn globs(patterns: &[String]) -> Result<GlobSet, OptionsError> {
    let wrong = |error: globset::Error| OptionsError::new("ignore_volumes", error.to_string());
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        set.add(Glob::new(pattern).map_err(wrong)?);
    }
    set.build().map_err(wrong)
}

/// A moment in Unix seconds.
fn unix(time: SystemTime) -> Option<u64> {
    time.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs())
}

/// What is remembered, by the root of the host.
static MEMORIES: Kept<PathBuf, Shared<Memory>> = Kept::new();

/// The slot for one kind of work. Slots outlive the sampler: a reload must not start a second child while the first is
/// held. Those that are free and not asked for are dropped when there are many; `None` when too many are held.
fn slot(key: PathBuf) -> Option<Slot> {
    static SLOTS: LazyLock<Mutex<HashMap<PathBuf, Slot>>> = LazyLock::new(Mutex::default);
    let mut slots = SLOTS.lock().unwrap_or_else(PoisonError::into_inner);
    if slots.len() >= MAX_SLOTS && !slots.contains_key(&key) {
        slots.retain(|_, slot| !slot.is_free());
        if slots.len() >= MAX_SLOTS {
            return None;
        }
    }
    Some(slots.entry(key).or_default().clone())
}

struct Volumes {
    rootfs: PathBuf,
    registry: Option<Registry>,
    interval: Duration,
    timeout: Duration,
    ignored: GlobSet,
    max_age: Duration,
    /// Nothing where it is switched off, or where there is no folder for it.
    state_file: Option<PathBuf>,
    memory: Shared<Memory>,
    /// What the state file holds, once it is known.
    kept: Option<Memory>,
    runs: u32,
    /// The drivers' names of volumes by mount point, for when a mount does not answer.
    names: HashMap<PathBuf, String>,
    /// What Longhorn's objects last said, when, and whether that is from the last try.
    longhorn: Option<(Longhorn, Instant, bool)>,
}

/// A volume, its device, and what was seen of it.
struct Mounted {
    name: String,
    device: Device,
    seen: Seen,
}

#[async_trait]
impl AsyncSampler for Volumes {
    /// # Errors
    ///
    /// When the mounts cannot be listed. A volume that does not answer, the datastore and the state file are parts.
    async fn sample(&mut self, out: &mut Batch) -> Result<(), SampleError> {
        self.load(out).await;
        let devices = self.find(out).await?;
        let looks: Vec<_> = devices.iter().map(|device| self.look(device).boxed()).collect();
        let looked = stream::iter(looks).buffered(AT_ONCE).collect().await;
        let mounted = self.named(devices, looked, out);
        self.read(out).await;
        self.judge(&mounted, out);
        self.export(&mounted, out);
        self.backups(out);
        // A check that runs once leaves no file.
        if self.runs > 0 {
            self.keep(out).await;
        }
        self.runs = self.runs.saturating_add(1);
        Ok(())
    }
}

impl Volumes {
    /// Asks a child. One that is still held is one that still does not answer.
    async fn ask(&self, key: &Path, question: &Question) -> Result<Answer, SampleError> {
        let what = key.display().to_string();
        let late = || SampleError::Timeout { what: what.clone(), after: self.timeout };
        let name = self.rootfs.join(key.strip_prefix("/").unwrap_or(key));
        let Some(slot) = slot(name) else { return Err(late()) };
        let asked = slot.ask(&["volume"], question, self.timeout).await;
        asked.map_err(|error| match error {
            ChildError::Timeout(_) | ChildError::Busy => late(),
            error => SampleError::Child(format!("{what}: {error}")),
        })
    }

    async fn find(&self, out: &mut Batch) -> Result<Vec<Device>, SampleError> {
        let question = Question::Find { rootfs: self.rootfs.clone() };
        match self.ask(Path::new("/proc/1/mountinfo"), &question).await? {
            Answer::Found(Ok((devices, left_out))) => {
                out.dropped(left_out);
                Ok(devices)
            }
            Answer::Found(Err(error)) => Err(SampleError::Wire(error)),
            _ => Err(SampleError::Child("the mounts: another answer".into())),
        }
    }

    async fn look(&self, device: &Device) -> Result<Seen, SampleError> {
        let question = Question::Look { rootfs: self.rootfs.clone(), device: device.clone() };
        match self.ask(&device.mount_point, &question).await? {
            Answer::Seen(seen) => Ok(*seen),
            _ => Err(SampleError::Child("a volume: another answer".into())),
        }
    }

    /// The volumes that answered, with their names, each once. Two of the same name would be taken for one that is formatted
    /// anew in each run.
    fn named(
        &mut self,
        devices: Vec<Device>,
        looked: Vec<Result<Seen, SampleError>>,
        out: &mut Batch,
    ) -> Vec<Mounted> {
        let points: BTreeSet<&PathBuf> = devices.iter().map(|device| &device.mount_point).collect();
        self.names.retain(|point, _| points.contains(point));
        let (mut mounted, mut names) = (Vec::new(), BTreeSet::new());
        for (device, seen) in devices.into_iter().zip(looked) {
            let mut seen = match seen {
                Ok(seen) => seen,
                Err(error) => {
                    out.fail(error);
                    continue;
                }
            };
            for error in std::mem::take(&mut seen.failures) {
                out.fail(SampleError::Wire(error));
            }
            if let Some(handle) = &seen.handle {
                self.names.insert(device.mount_point.clone(), handle.clone());
            }
            let known = [
                device.longhorn.as_ref(),
                self.names.get(&device.mount_point),
                device.persistent_volume.as_ref(),
            ];
            let Some(name) = known.into_iter().flatten().next().cloned() else {
                let what = "kubelet's file beside it does not name the volume";
                out.fail(SampleError::parse(&device.mount_point, what));
                continue;
            };
            if names.insert(name.clone()) {
                mounted.push(Mounted { name, device, seen });
            } else {
                out.dropped(1);
            }
        }
        mounted
    }

    /// Reads Longhorn's objects when it is time.
    async fn read(&mut self, out: &mut Batch) {
        let Some(registry) = &mut self.registry else { return };
        let pause = self.interval.mul_f64(READ_AGAIN);
        let fresh = |(_, read, good): &(Longhorn, Instant, bool)| *good && read.elapsed() < pause;
        if self.longhorn.as_ref().is_some_and(fresh) {
            return;
        }
        let limit = self.timeout * 3;
        let read = tokio::time::timeout(limit, registry.read(out)).await.unwrap_or_else(|_| {
            out.fail(SampleError::Timeout { what: "Longhorn's objects".into(), after: limit });
            None
        });
        match read {
            Some(longhorn) => self.longhorn = Some((longhorn, Instant::now(), true)),
            None => {
                if let Some((_, _, good)) = &mut self.longhorn {
                    *good = false;
                }
            }
        }
    }

    /// Compares what was seen with what is remembered, and tells what took the place of another filesystem.
    fn judge(&self, mounted: &[Mounted], out: &mut Batch) {
        let Some(now) = unix(SystemTime::now()) else { return };
        let mut memory = self.memory.lock();
        let longhorn = self.longhorn.as_ref();
        for Mounted { name, device, seen } in mounted {
            let volume = longhorn.and_then(|(longhorn, ..)| longhorn.volumes.get(name));
            let sighting = Sighting {
                uuid: seen.uuid.clone(),
                created: seen.created,
                staged: seen.staged,
                volume_made: volume.and_then(|volume| volume.made),
                backed_up: volume.and_then(|volume| volume.oldest),
            };
            if let Some(why) = memory.see(name, &sighting, now) {
                let at = moment(seen.created.unwrap_or(now));
                let text = format!(
                    "volume {name} ({}, {}) was formatted anew: {}",
                    device.name,
                    device.fstype,
                    reason(why)
                );
                out.event(at, "volume_reformatted", text);
            }
        }
        let listed = longhorn.filter(|(longhorn, _, good)| *good && !longhorn.volumes.is_empty());
        let is_listed = listed.map(|(longhorn, ..)| {
            move |name: &str| {
                longhorn.volumes.contains_key(name) || mounted.iter().any(|m| m.name == name)
            }
        });
        memory.forget(is_listed.as_ref().map(|is| is as &dyn Fn(&str) -> bool), now);
        for (name, entry) in memory.entries() {
            if let Some(at) = entry.reformatted {
                out.push(&REFORMATTED, [name], at);
            }
        }
    }

    fn export(&self, mounted: &[Mounted], out: &mut Batch) {
        let memory = self.memory.lock();
        for Mounted { name, device, seen } in mounted {
            let uuid = seen.uuid.as_deref().unwrap_or_default();
            let pv = device.persistent_volume.as_deref().unwrap_or_default();
            out.info(&INFO, [name, &device.name, &device.fstype, uuid, pv]);
            if let Some(created) = seen.created {
                out.push(&FORMATTED, [name], created);
            }
            if let Some(at) = seen.mounted {
                out.push(&MOUNTED, [name], at);
            }
            if let Some(entry) = memory.entry(name) {
                out.push(&FIRST_SEEN, [name], entry.first_seen);
            }
            if let Some((size, used)) = seen.space {
                out.push(&SIZE, [name], size);
                out.push(&USED, [name], used);
            }
        }
    }

    /// The figures of backups. Those with the fewest, and of these with the oldest, come first, and the cap cuts the rest.
    fn backups(&self, out: &mut Batch) {
        let Some((longhorn, _, good)) = &self.longhorn else { return };
        if !longhorn.has_target {
            return;
        }
        let mut volumes: Vec<(&String, &Volume)> = longhorn
            .volumes
            .iter()
            .filter(|(name, volume)| !volume.standby && !self.ignored.is_match(name.as_str()))
            .collect();
        volumes.sort_by_key(|(_, volume)| (volume.backups, volume.newest));
        out.dropped(volumes.len().saturating_sub(MAX_BACKED_UP) as u64);
        for (name, volume) in volumes.into_iter().take(MAX_BACKED_UP) {
            if let Some(made) = volume.made {
                out.push(&PROVISIONED, [name], made);
            }
            if *good {
                out.push(&BACKUPS, [name], volume.backups);
            }
            if let Some(newest) = volume.newest {
                out.push(&BACKUP_LAST, [name], newest);
                out.push(&BACKUP_DUE, [name], newest.saturating_add(self.max_age.as_secs()));
            }
        }
    }

    /// Takes over what the state file knows, once.
    async fn load(&mut self, out: &mut Batch) {
        let Some(path) = self.state_file.clone().filter(|_| self.kept.is_none()) else { return };
        let question = Question::Load { rootfs: self.rootfs.clone(), path: path.clone() };
        match self.ask(&path, &question).await {
            Ok(Answer::Loaded(Ok(State::Text(text)))) => {
                let read = Memory::parse(text.as_bytes());
                let read = read.map_err(|what| out.fail(SampleError::parse(&path, what)));
                let read = read.unwrap_or_default();
                self.memory.lock().recall(read.clone());
                self.kept = Some(read);
            }
            Ok(Answer::Loaded(Ok(State::Absent))) => self.kept = Some(Memory::default()),
            // Nobody gave the agent a folder of its own.
            Ok(Answer::Loaded(Ok(State::NoFolder))) => self.state_file = None,
            Ok(Answer::Loaded(Err(error))) => out.fail(SampleError::Wire(error)),
            Ok(_) => out.fail(SampleError::Child("the state file: another answer".into())),
            Err(error) => out.fail(error),
        }
    }

    /// Writes what is remembered, if that has changed since. A file that could not be read is left alone.
    async fn keep(&mut self, out: &mut Batch) {
        let now = self.memory.lock().clone();
        let (Some(path), Some(kept)) = (self.state_file.clone(), &self.kept) else { return };
        if *kept == now {
            return;
        }
        let rootfs = self.rootfs.clone();
        let question = Question::Keep { rootfs, path: path.clone(), text: now.text() };
        match self.ask(&path, &question).await {
            Ok(Answer::Kept(Ok(()))) => self.kept = Some(now),
            Ok(Answer::Kept(Err(error))) => out.fail(SampleError::Wire(error)),
            Ok(_) => out.fail(SampleError::Child("the state file: another answer".into())),
            Err(error) => out.fail(error),
        }
    }
}

/// How it is known, for a person.
fn reason(why: Why) -> String {
    let at = |seconds| humantime::format_rfc3339_seconds(moment(seconds));
    match why {
        Why::Remembered => "another filesystem was on it before".to_owned(),
        Why::BackedUp(time) => format!("a backup of {} is older", at(time)),
        Why::Staged(time) => format!("kubelet's folder of {} is older", at(time)),
    }
}

#[cfg(test)]
mod tests;
