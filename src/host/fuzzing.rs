//! See `crate::fuzzing`.

use std::path::Path;

use super::components::{K3S, owned, shared, without_secrets};
use super::etcd_settings::EtcdSettings;
use super::flags::{Flags, split_words};
use super::manifest::StaticPod;
use super::mounts::{Mounts, mountinfo_line, mounts_line};
use super::rancher_config::{DETECTION, RancherConfig};
use super::yaml::{MAX_DEPTH, Node};
use super::{Distribution, Installation, QuotaSource, k0s, units};
use crate::fuzzing::{SECRET, file};

/// Each line is a mount or is counted, and each mount has a place.
pub fn mountinfo(bytes: &[u8]) {
    let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).count();
    for line in [mountinfo_line, mounts_line] {
        let mounts = Mounts::parse(bytes, line);
        assert_eq!(mounts.iter().count() + mounts.skipped(), lines);
        assert!(mounts.iter().all(|mount| mount.mount_point.is_absolute()));
        if let Some(mount) = mounts.holder("/var/lib/etcd/member") {
            assert!(Path::new("/var/lib/etcd/member").starts_with(&mount.mount_point));
        }
    }
}

/// What is read is bounded and comes back when it is written; an error names a line and nothing of the file.
pub fn yaml(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    match Node::parse(&text) {
        Ok(node) => {
            assert!(depth(&node) <= MAX_DEPTH + 1);
            let mut written = String::new();
            // A key that is longer is none in YAML.
            if write(&node, &mut written) <= 250 {
                assert_eq!(Node::parse(&written).as_ref(), Ok(&node), "{written}");
            }
        }
        Err(error) => {
            let digits = |c: char| c.is_ascii_digit();
            assert!(
                error.len() < 80 && error.contains("line") && error.contains(digits),
                "{error}"
            );
        }
    }
}

fn depth(node: &Node) -> usize {
    let inside = node.items().iter().chain(node.entries().iter().map(|(_, value)| value));
    1 + inside.map(depth).max().unwrap_or_default()
}

/// Writes a node on one line, and returns the length of the longest key.
fn write(node: &Node, out: &mut String) -> usize {
    match node {
        Node::Text(text) => {
            quote(text, out);
            0
        }
        Node::List(items) => {
            out.push('[');
            let longest = items.iter().map(|item| {
                let longest = write(item, out);
                out.push(',');
                longest
            });
            let longest = longest.max().unwrap_or_default();
            out.push(']');
            longest
        }
        Node::Map(entries) => {
            out.push('{');
            let longest = entries.iter().map(|(key, value)| {
                quote(key, out);
                out.push_str(": ");
                let longest = write(value, out).max(key.chars().count());
                out.push(',');
                longest
            });
            let longest = longest.max().unwrap_or_default();
            out.push('}');
            longest
        }
    }
}

fn quote(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        if c.is_ascii_graphic() && !matches!(c, '"' | '\\') || c == ' ' {
            out.push(c);
        } else {
            out.push_str(&format!("\\U{:08x}", u32::from(c)));
        }
    }
    out.push('"');
}

/// Whatever shape a file has, each reader of settings takes what it knows of it, and no secret comes out.
pub fn component_config(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if text.contains(SECRET) {
        return;
    }
    let text = format!(
        "{text}\ntoken: {SECRET}\nagent-token: {SECRET}\ndatastore-endpoint: mysql://u:{SECRET}@tcp(db)/k3s\n\
         etcd-servers: https://u:{SECRET}@e1:2379\n"
    );
    let node = match Node::parse(&text) {
        Ok(node) => node,
        Err(error) => {
            assert!(!error.contains(SECRET), "{error}");
            return;
        }
    };
    let mut told = Vec::new();

    let keys = K3S.iter().map(|(key, _)| *key).chain(DETECTION.iter().copied());
    let mut config = RancherConfig::default();
    config.wanted = keys.collect();
    config.merge(&node);
    told.push(format!("{:?} {:?}", config.etcd_endpoints(), config.datastore_scheme()));
    told.push(config.loopback().to_owned());
    let mut flags = shared(&config, K3S);
    flags.extend(owned(&config.etcd_args()));

    if let Some(pod) = StaticPod::from_node(&node) {
        told.push(format!("{:?}", (pod.image_tag(), pod.path_flag("data-dir"))));
        assert!(pod.host_path("/etc/kubernetes").is_absolute() || !pod.volumes.is_empty());
        flags.extend(owned(&pod.flags));
        told.push(format!(
            "{:?}",
            EtcdSettings::from_flags(&pod.flags).access(QuotaSource::Config)
        ));
    }
    told.push(format!("{:?}", EtcdSettings::from_yaml(&node).access(QuotaSource::Config)));

    let k0s = k0s::Config(node);
    let mut found = Installation::new(Distribution::K0s);
    k0s::describe_datastore(&k0s, &Flags::default(), Path::new("/var/lib/k0s"), &mut found);
    told.push(format!("{found:?}"));

    told.extend(flags.into_iter().map(|(name, value)| without_secrets(&name, value)));
    let leak = told.iter().find(|text| text.contains(SECRET));
    assert_eq!(leak, None);
}

/// Settings and words are no longer than what they were read from, and hold no line end.
pub fn unit_file(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let settings = units::service_settings(&text);
    let lines = text.lines().count();
    assert!(settings.len() <= lines, "{} settings in {lines} lines", settings.len());
    for (key, value) in settings {
        assert!(
            key.len() + value.len() <= text.len() && !key.contains('\n') && !value.contains('\n')
        );
        let words = split_words(&value);
        assert!(words.iter().map(String::len).sum::<usize>() <= value.len());
        let flags = Flags::parse(&words);
        assert!(flags.iter().count() <= words.len());
        assert!(flags.iter().all(|(name, _)| !name.starts_with('-') && !name.contains('=')));
    }
    let variables = units::assignments(&text);
    assert!(variables.len() <= lines, "{} variables in {lines} lines", variables.len());
}

/// A value stands in the file, on one line.
pub fn os_release(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    for key in ["ID", "ID_LIKE", "VERSION_ID", "PRETTY_NAME"] {
        if let Some(value) = super::os_release::value(&text, key) {
            assert!(!value.is_empty() && !value.contains('\n') && text.contains(value), "{value}");
        }
    }
}

/// No more is read than there is, and what is told stands in the program.
pub fn go_build(bytes: &[u8]) {
    const NAME: &str = "github.com/k3s-io/k3s/pkg/version.Version";
    use super::go_build::{build_flags, section, value};
    let found = section(file(bytes)).expect("memory can be read");
    assert!(found.as_ref().is_none_or(|found| found.len() <= bytes.len()));
    for section in found.iter().map(Vec::as_slice).chain([bytes]) {
        let Some(flags) = build_flags(section) else { continue };
        assert!(flags.len() <= 3 * section.len() && !flags.contains('\n'));
        if let Some(value) = value(&flags, NAME) {
            assert!(!value.is_empty() && flags.contains(&value), "{value}");
        }
    }
}
