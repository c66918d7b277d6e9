//! `controlplane-exporter inspect`: what was detected, which samplers are on, which are off and why,
//! and the command that would give the agent a permission it lacks.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::access::Lack;
use crate::config::Config;
use crate::host::{Facts, Host};
use crate::sampler::Build;
use crate::samplers;

/// Where the package puts the drop-ins for its unit.
const DROP_INS: &str =
    "/usr/share/doc/controlplane-exporter/examples/controlplane-exporter.service.d/";

/// The whole answer, for a terminal.
pub fn report(config: &Config, facts: &Facts, lacks: Result<&[Lack], &str>) -> String {
    let mut out = String::new();
    let line = |out: &mut String, key: &str, value: &str| {
        out.push_str(&format!("  {key:<14} {value}\n"));
    };
    let path = |p: Option<&Path>| p.map_or("-".to_owned(), |p| p.display().to_string());
    out.push_str(&format!(
        "Node {}\n",
        if facts.hostname.is_empty() { "(no name)" } else { &facts.hostname }
    ));
    if facts.installations.is_empty() {
        out.push_str(&format!(
            "\nNo Kubernetes control plane was found below {}.\n\
             If there is one, tell the agent in its configuration, for example\n  \
             host: {{distribution: k3s, role: server, data_dir: /data/k3s}}\n",
            config.path.rootfs.display()
        ));
    }
    for node in &facts.installations {
        let version = node.version.as_deref().unwrap_or("(version unknown; set host.version)");
        out.push_str(&format!("\n{} {version}\n", node.distribution));
        line(&mut out, "role", node.role.as_str());
        let unit = node.units.iter().find(|unit| unit.expected).or(node.units.first());
        let running = match unit {
            _ if node.running => "yes".to_owned(),
            Some(unit) => format!("no process seen; `systemctl status {}` says why", unit.name),
            None => "no process seen".to_owned(),
        };
        line(&mut out, "running", &running);
        line(&mut out, "datastore", node.datastore.as_str());
        line(&mut out, "data", &path(node.datastore_dir.as_deref().or(node.data_dir.as_deref())));
        if let Some(etcd) = &node.etcd {
            line(&mut out, "etcd", &etcd.endpoints.join(", "));
            line(&mut out, "etcd CA", &path(etcd.ca_file.as_deref()));
            line(&mut out, "etcd client", &path(etcd.cert_file.as_deref()));
        }
        if let Some(socket) = &node.kine_socket {
            line(&mut out, "kine socket", &path(Some(socket)));
        }
        let units: Vec<_> = node
            .units
            .iter()
            .map(|u| if u.expected { u.name.clone() } else { format!("{} (not expected)", u.name) })
            .collect();
        line(&mut out, "units", &some(units).unwrap_or_else(|| "-".into()));
        let evidence: Vec<_> = node.evidence.iter().map(|p| p.display().to_string()).collect();
        let by_process = || "its process".to_owned();
        line(&mut out, "found by", &some(evidence).unwrap_or_else(by_process));
    }
    if let Some(place) = &facts.datastore {
        out.push_str("\nDatastore\n");
        line(&mut out, "path", &path(Some(&place.path)));
        let mount =
            format!("{} ({} on {})", place.mount_point.display(), place.fstype, place.source);
        line(&mut out, "mount", &mount);
        let disks = if place.disks.is_empty() {
            "unknown; set host.devices".into()
        } else {
            place.disks.join(", ")
        };
        line(&mut out, "disks", &disks);
    }
    out.push_str("\nSamplers\n");
    let host = Host::at(&config.path.rootfs).with_facts(facts.clone());
    for (name, def) in samplers::ALL {
        let verdict = match config.samplers.get(name).and_then(Option::as_ref) {
            None => format!("off             set {name}.enabled to true to switch it on"),
            Some(options) => match (def.build)(options, &host) {
                Ok(Build::Run(_))
                    if lacks.unwrap_or_default().iter().any(|l| l.sampler == *name) =>
                {
                    "no permission   see below".to_owned()
                }
                Ok(Build::Run(_)) => {
                    format!(
                        "on              every {}",
                        humantime::format_duration(options.interval)
                    )
                }
                Ok(Build::NotApplicable(why)) => format!("not applicable  {why}"),
                Err(error) => format!("wrong           {}: {error}", error.key),
            },
        };
        line(&mut out, name, &verdict);
    }
    out.push_str(&permissions(facts, lacks));
    if !facts.notes.is_empty() {
        out.push_str("\nNotes\n");
        for note in &facts.notes {
            out.push_str(&format!("  - {note}\n"));
        }
    }
    out
}

fn some(items: Vec<String>) -> Option<String> {
    (!items.is_empty()).then(|| items.join(", "))
}

/// What the agent may not do, and what would change that.
fn permissions(facts: &Facts, lacks: Result<&[Lack], &str>) -> String {
    let lacks = match lacks {
        Ok(lacks) => lacks,
        Err(error) => return format!("\nPermissions could not be looked at: {error}\n"),
    };
    let mut wanted: BTreeSet<&str> =
        lacks.iter().flat_map(|lack| lack.capabilities.iter().map(String::as_str)).collect();
    if facts.notes.iter().any(|note| note.contains("permission denied")) {
        wanted.insert("CAP_DAC_READ_SEARCH");
    }
    if wanted.is_empty() && lacks.is_empty() {
        return String::new();
    }
    let mut out = "\nMissing permissions\n".to_owned();
    // One line for a path, whoever needs it.
    let mut paths: BTreeMap<(&Path, &str), Vec<&str>> = BTreeMap::new();
    for lack in lacks {
        paths.entry((&lack.path, &lack.error)).or_default().push(&lack.sampler);
    }
    for ((path, error), samplers) in paths {
        let error = error.split(" (os error").next().unwrap_or(error).to_lowercase();
        out.push_str(&format!("  {}: {error}, for {}\n", path.display(), samplers.join(" and ")));
    }
    if lacks.is_empty() {
        out.push_str("  of detection: see the notes\n");
    }
    if lacks.iter().any(|lack| lack.capabilities.is_empty()) {
        out.push_str(&format!(
            "The sync probe needs a directory of its own on that disk, which the drop-in with-datastore-disk.conf\n\
             makes for the unit; it is in {DROP_INS}.\n"
        ));
    }
    let wanted = wanted.into_iter().collect::<Vec<_>>().join(" ");
    if wanted.is_empty() && rustix::process::geteuid().is_root() {
        return out;
    }
    if rustix::process::geteuid().is_root() {
        out.push_str(&format!(
            "It is root here, but without all its rights. Give its unit, or its container, {wanted}; a pod that\n\
             reads the kernel's log needs privileged: true.\n"
        ));
    } else {
        let program = std::env::current_exe()
            .map_or_else(|_| "controlplane-exporter".to_owned(), |exe| exe.display().to_string());
        out.push_str(&format!("Run it as root:\n  sudo {program}\n"));
        if !wanted.is_empty() {
            // The one alone does not start: the unit's bounding set forbids what it does not name.
            out.push_str(&format!(
                "or give its unit the rights with `systemctl edit controlplane-exporter`:\n  [Service]\n  \
                 CapabilityBoundingSet={wanted}\n  AmbientCapabilities={wanted}\n"
            ));
        }
    }
    out
}
