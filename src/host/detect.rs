//! Putting what was found together: which installations, in which order, and where the datastore
//! of the first lies.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::facts::alive;
use super::found::{Found, Hint};
use super::processes;
use super::read::Probe;
use super::{
    Datastore, DatastorePlace, Distribution, EtcdAccess, Facts, Host, Installation, Mounts,
    Overrides, devices, etcd_process, k0s, kubeadm, rancher, snaps, talos,
};

/// Paths of evidence kept for each installation.
const MAX_EVIDENCE: usize = 8;

/// Where distributions keep the reader of the journal.
const JOURNALCTL: [&str; 3] =
    ["/usr/bin/journalctl", "/bin/journalctl", "/run/current-system/sw/bin/journalctl"];

type Detector = fn(&Probe, &Hint) -> Option<Found>;

/// Most specific first: Canonical Kubernetes and Talos use kubeadm's directories too.
const DETECTORS: &[(Distribution, Detector)] = &[
    (Distribution::Talos, talos::talos),
    (Distribution::Microk8s, snaps::microk8s),
    (Distribution::CanonicalK8s, snaps::canonical),
    (Distribution::Rke2, rancher::rke2),
    (Distribution::K3s, rancher::k3s),
    (Distribution::K0s, k0s::k0s),
    (Distribution::Kubeadm, kubeadm::kubeadm),
];

/// Finds out what the host is. Reads files, executes and writes nothing, and always answers: what
/// could not be read is a note. May block as long as the host's disk does.
pub fn detect(host: &Host, overrides: &Overrides) -> Facts {
    let probe = Probe::new(host);
    if let Err(error) = std::fs::read_dir(host.rootfs()) {
        let reason = match error.kind() {
            ErrorKind::NotFound => "no such directory; check --path.rootfs".to_owned(),
            _ => error.to_string(),
        };
        probe.note(format!("the root {} could not be read: {reason}", host.rootfs().display()));
    } else {
        for folder in ["/proc", "/sys"] {
            if probe.names(folder).is_empty() {
                probe.note(format!(
                    "{folder} is missing or empty below --path.rootfs; a container needs the \
                     host's {folder} mounted there"
                ));
            }
        }
    }
    let mut found = installations(&probe, overrides);
    settle_expectations(&mut found);
    let mut installations: Vec<Installation> =
        found.into_iter().map(|found| found.installation).collect();
    for found in &mut installations {
        etcd_process::refine(&probe, found);
    }
    override_primary(&probe, overrides, &mut installations);
    for found in &mut installations {
        found.evidence.truncate(MAX_EVIDENCE);
        // Files of arguments end directories with a slash; labels must not.
        for dir in [&mut found.data_dir, &mut found.datastore_dir, &mut found.wal_dir] {
            *dir = dir.take().map(|dir| dir.components().collect());
        }
        found.container_dirs.retain(|dir| probe.presence(dir) != Some(false));
    }
    Facts {
        hostname: hostname(&probe),
        boot_time: processes::boot_time(probe.host),
        journalctl: journalctl(&probe),
        datastore: place(&probe, overrides, &installations),
        installations,
        partial: probe.is_sick(),
        notes: probe.into_notes(),
        unseen: None,
    }
}

/// Every installation, in order.
fn installations(probe: &Probe, overrides: &Overrides) -> Vec<Found> {
    let forced = |distribution| overrides.distribution == Some(distribution);
    let mut found: Vec<Found> = DETECTORS
        .iter()
        .filter_map(|(distribution, detector)| {
            let forced = forced(*distribution);
            let data_dir = overrides.data_dir.clone().filter(|_| forced);
            detector(probe, &Hint { data_dir, forced })
        })
        .collect();
    if let Some(plain) = etcd_process::plain(probe, &found, forced(Distribution::Etcd)) {
        match found.iter_mut().find(|other| is_member_of(other, &plain)) {
            Some(other) => adopt(&mut other.installation, plain.installation),
            None => found.push(plain),
        }
    }
    // A crash loop must not let the leftovers of something else come first for a few seconds, so
    // what starts at boot comes before what merely lies there. The sort keeps the table's order.
    found.sort_by_key(|found| {
        let rank = match (found.installation.running, found.wanted) {
            (true, _) => 0,
            (false, true) => 1,
            (false, false) => 2,
        };
        (!forced(found.installation.distribution), rank)
    });
    if overrides.distribution.is_none()
        && let (Some(data_dir), Some(first)) = (&overrides.data_dir, found.first_mut())
    {
        let detector = DETECTORS.iter().find(|(d, _)| *d == first.installation.distribution);
        let hint = Hint { data_dir: Some(data_dir.clone()), forced: true };
        if let Some(again) = detector.and_then(|(_, detector)| detector(probe, &hint)) {
            *first = again;
        }
    }
    found
}

/// Whether a plain etcd is a member of the cluster that an installation takes for external:
/// kubespray runs its members as units beside the API server.
fn is_member_of(other: &Found, plain: &Found) -> bool {
    let servers = other.installation.external_etcd.as_ref().map(|etcd| &etcd.endpoints);
    let trimmed = |url: &String| url.trim_end_matches('/').to_owned();
    servers.is_some_and(|servers| {
        let servers: Vec<String> = servers.iter().map(trimmed).collect();
        plain.advertised.iter().any(|url| servers.contains(&trimmed(url)))
    })
}

/// Makes the plain etcd the installation's own. The API server's certificate is known to be good
/// for a client, so it stays.
fn adopt(installation: &mut Installation, plain: Installation) {
    let api = installation.external_etcd.take().unwrap_or_default();
    let own = plain.etcd.unwrap_or_default();
    installation.etcd = Some(EtcdAccess {
        endpoints: own.endpoints,
        ca_file: api.ca_file.or(own.ca_file),
        cert_file: api.cert_file.or(own.cert_file),
        key_file: api.key_file.or(own.key_file),
        quota: own.quota,
    });
    installation.datastore = Datastore::Etcd;
    installation.datastore_dir = plain.datastore_dir;
    installation.wal_dir = plain.wal_dir;
    installation.processes = plain.processes;
    installation.units.extend(plain.units);
    installation.evidence.extend(plain.evidence);
}

/// Beside something that runs or starts at boot, the units of mere leftovers are not expected.
fn settle_expectations(found: &mut [Found]) {
    let live = |found: &Found| found.installation.running || found.wanted;
    if !found.iter().any(live) {
        return;
    }
    for leftover in found.iter_mut().filter(|found| !live(found)) {
        for unit in &mut leftover.installation.units {
            unit.expected = false;
        }
    }
}

fn override_primary(probe: &Probe, overrides: &Overrides, installations: &mut Vec<Installation>) {
    if overrides.is_empty() {
        return;
    }
    let told = |d| installations.iter().any(|found| found.distribution == d);
    if installations.is_empty() || overrides.distribution.is_some_and(|d| !told(d)) {
        let distribution = overrides.distribution.unwrap_or_else(|| {
            let guess = match overrides.datastore {
                Some(Datastore::Etcd) => Distribution::Etcd,
                _ => Distribution::Kubeadm,
            };
            probe.note(format!(
                "no installation was found and host.distribution is not set: {guess} is assumed"
            ));
            guess
        });
        installations.insert(0, Installation::new(distribution));
    }
    overrides.apply(&mut installations[0]);
}

fn hostname(probe: &Probe) -> String {
    ["/proc/sys/kernel/hostname", "/etc/hostname"]
        .into_iter()
        .filter_map(|path| probe.text(path))
        .map(|text| text.trim().to_owned())
        .find(|name| !name.is_empty())
        .unwrap_or_default()
}

/// The program is this process's own, wherever the host's root is: below another root it could not be started.
fn journalctl(probe: &Probe) -> Option<PathBuf> {
    let has_journal = ["/run/log/journal", "/var/log/journal"].iter().any(|dir| probe.exists(dir));
    let found = JOURNALCTL.iter().map(PathBuf::from).find(|path| path.is_file());
    found.filter(|_| has_journal)
}

/// Where the files of the first local datastore lie.
fn place(
    probe: &Probe,
    overrides: &Overrides,
    installations: &[Installation],
) -> Option<DatastorePlace> {
    let Some((found, folder)) =
        alive(installations).find_map(|found| Some((found, found.datastore_dir.as_ref()?)))
    else {
        if overrides.devices.is_some() {
            probe.note(
                "host.devices is not used: no datastore was found; set host.datastore_dir".into(),
            );
        }
        return None;
    };
    let mounts = match Mounts::read(probe.host) {
        Ok(mounts) => mounts,
        Err(error) => {
            probe.note(format!(
                "the mounts of the host could not be read, so the datastore's disk is unknown: \
                 {error}; `host.devices` in the configuration can name it"
            ));
            return None;
        }
    };
    if mounts.skipped() > 0 {
        probe.note(format!("{} lines of the host's mounts could not be read", mounts.skipped()));
    }
    let path = synced_path(probe, &mounts, found, folder);
    let resolved = probe.host.resolve(&path);
    let mount = mounts.holder(resolved.as_ref().unwrap_or(&path))?;
    let chain = match &overrides.devices {
        Some(told) => devices::told(probe.host, told),
        None => devices::chain(probe.host, &mounts, mount),
    };
    if chain.devices.is_empty() {
        probe.note(format!(
            "the block devices under {} are unknown: it lies on {} ({}); `host.devices` in the \
             configuration can name them",
            path.display(),
            mount.fstype,
            mount.source
        ));
    }
    Some(DatastorePlace {
        path,
        // Facts cross a pipe as JSON, which holds no other bytes than UTF-8.
        mount_point: mount.mount_point.to_string_lossy().into_owned().into(),
        fstype: mount.fstype.clone(),
        source: mount.source.clone(),
        chain: chain.devices,
        disks: chain.disks,
        // By the name alone, links on the way are not known.
        origin: resolved.ok().and_then(|path| mount.origin(&path)),
    })
}

/// The directory whose syncs matter: etcd's WAL where it lies on a filesystem of its own, be it
/// by a flag, a link or a mount.
fn synced_path(probe: &Probe, mounts: &Mounts, found: &Installation, folder: &Path) -> PathBuf {
    if let Some(wal) = &found.wal_dir {
        return wal.clone();
    }
    let wal = folder.join("member/wal");
    let mount_of = |path: &Path| {
        let resolved = probe.host.resolve(path).ok()?;
        mounts.holder(&resolved).map(|mount| mount.mount_point.clone())
    };
    if found.datastore == Datastore::Etcd && mount_of(&wal) != mount_of(folder) {
        return wal;
    }
    folder.to_owned()
}
