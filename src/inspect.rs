//! `controlplane-exporter inspect`: what was detected, which samplers are on, which are off and why.

use std::path::Path;

use crate::config::Config;
use crate::host::{Facts, Host};
use crate::sampler::Build;
use crate::samplers;

/// The whole answer, for a terminal.
pub fn report(config: &Config, facts: &Facts) -> String {
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
        out.push_str(&format!("\nNo Kubernetes control plane was found below {}.\nIf there is one, say where it is in the section `host` of the configuration.\n",
            config.path.rootfs.display()));
    }
    for node in &facts.installations {
        let version = node.version.as_deref().unwrap_or("(version unknown)");
        out.push_str(&format!("\n{} {version}\n", node.distribution));
        line(&mut out, "role", node.role.as_str());
        line(&mut out, "running", if node.running { "yes" } else { "no process seen" });
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
        line(&mut out, "units", &units.join(", "));
        let evidence: Vec<_> = node.evidence.iter().map(|p| p.display().to_string()).collect();
        line(&mut out, "found by", &evidence.join(", "));
    }
    if let Some(place) = &facts.datastore {
        out.push_str("\nDatastore\n");
        line(&mut out, "path", &path(Some(&place.path)));
        let mount =
            format!("{} ({} on {})", place.mount_point.display(), place.fstype, place.source);
        line(&mut out, "mount", &mount);
        let disks = if place.disks.is_empty() { "unknown".into() } else { place.disks.join(", ") };
        line(&mut out, "disks", &disks);
    }
    out.push_str("\nSamplers\n");
    let host = Host::at(&config.path.rootfs).with_facts(facts.clone());
    for (name, def) in samplers::ALL {
        let verdict = match config.samplers.get(name).and_then(Option::as_ref) {
            None => "off             switched off in the configuration".to_owned(),
            Some(options) => match (def.build)(options, &host) {
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
    if !facts.notes.is_empty() {
        out.push_str("\nNotes\n");
        for note in &facts.notes {
            out.push_str(&format!("  - {note}\n"));
        }
    }
    out
}
