//! The configuration that k3s and RKE2 share.
//!
//! Of equal settings a flag of the unit's command wins over the configuration file, that over the
//! environment. The files hold tokens and database passwords: only the keys below are kept, and of
//! a datastore endpoint only its scheme, unless it is an etcd's and has no password in it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::etcd_settings::split_urls;
use super::flags::Flags;
use super::read::Probe;
use super::units::{UnitFile, environment_file, variable};
use super::yaml::Node;

/// The settings that detection wants.
pub(super) const DETECTION: &[&str] = &[
    "data-dir",
    "datastore-endpoint",
    "datastore-cafile",
    "datastore-certfile",
    "datastore-keyfile",
    "server",
    "cluster-init",
    "disable-apiserver",
    "disable-etcd",
    "etcd-arg",
    "etcd-disable-snapshots",
    "etcd-snapshot-dir",
    "node-ip",
    "service-cidr",
    "https-listen-port",
    "kine-tls",
];

/// The effective settings, reduced to those that are asked for.
#[derive(Debug, Default)]
pub(super) struct RancherConfig {
    pub(super) wanted: Vec<&'static str>,
    values: BTreeMap<String, Vec<String>>,
    /// The files that they were read from, of those that exist.
    pub(super) files: Vec<PathBuf>,
}

impl RancherConfig {
    /// Reads the `wanted` settings from the environment, the files and the command of `unit`. `name` is `k3s` or `rke2`.
    pub(super) fn read(
        probe: &Probe,
        name: &str,
        unit: &UnitFile,
        wanted: Vec<&'static str>,
    ) -> Self {
        let flags = Flags::parse(&spell_out(&unit.exec));
        let mut variables = Vec::new();
        for folder in ["/etc/default", "/etc/sysconfig"] {
            let file = Path::new(folder).join(name);
            variables.extend(keep_known(environment_file(probe, &file)));
        }
        variables.extend(unit.environment.iter().cloned());
        let variable = |suffix: &str| {
            variable(&variables, &format!("{}_{suffix}", name.to_uppercase())).map(str::to_owned)
        };

        let mut config = Self { wanted, ..Self::default() };
        for (key, suffix) in [
            ("data-dir", "DATA_DIR"),
            ("datastore-endpoint", "DATASTORE_ENDPOINT"),
            ("datastore-cafile", "DATASTORE_CAFILE"),
            ("datastore-certfile", "DATASTORE_CERTFILE"),
            ("datastore-keyfile", "DATASTORE_KEYFILE"),
            ("server", "URL"),
            ("cluster-init", "CLUSTER_INIT"),
            ("agent-token", "AGENT_TOKEN"),
        ] {
            if !config.wanted.contains(&key) {
                continue;
            }
            if let Some(value) = variable(suffix) {
                config.set(key, vec![value]);
            }
        }
        let file = flags.get("config").map(str::to_owned).or_else(|| variable("CONFIG_FILE"));
        let file = file.unwrap_or_else(|| format!("/etc/rancher/{name}/config.yaml"));
        config.merge_files(probe, Path::new(&file));
        for key in config.wanted.clone() {
            let values: Vec<String> = flags.all(key).map(str::to_owned).collect();
            if !values.is_empty() {
                config.set(key, values);
            }
        }
        config
    }

    fn merge_files(&mut self, probe: &Probe, file: &Path) {
        let mut folder = file.as_os_str().to_owned();
        folder.push(".d");
        let folder = PathBuf::from(folder);
        let names = probe.names(&folder);
        let parts = names.iter().filter(|name| {
            Path::new(name).extension().is_some_and(|ext| ext == "yaml" || ext == "yml")
        });
        let files = std::iter::once(file.to_owned()).chain(parts.map(|name| folder.join(name)));
        for file in files {
            let Some(text) = probe.text(&file) else { continue };
            self.files.push(file.clone());
            match Node::parse(&text) {
                Ok(node) => self.merge(&node),
                Err(error) => {
                    probe.note(format!("{} could not be read: {error}", file.display()));
                }
            }
        }
    }

    /// The last file wins, unless its key ends with `+`, which appends.
    pub(super) fn merge(&mut self, node: &Node) {
        for (key, value) in node.entries() {
            match key.strip_suffix('+') {
                Some(key) if self.wanted.contains(&key) => {
                    self.values.entry(key.to_owned()).or_default().extend(value.texts());
                }
                None if self.wanted.contains(&key.as_str()) => self.set(key, value.texts()),
                _ => {}
            }
        }
    }

    fn set(&mut self, key: &str, values: Vec<String>) {
        self.values.insert(key.to_owned(), values);
    }

    /// Every value of a setting, as its lists are written; `None` where it is not set.
    pub(super) fn all(&self, key: &str) -> Option<&[String]> {
        self.values.get(key).map(Vec::as_slice)
    }

    pub(super) fn get(&self, key: &str) -> Option<&str> {
        let value = self.values.get(key)?.last()?;
        Some(value.as_str()).filter(|value| !value.is_empty())
    }

    pub(super) fn path(&self, key: &str) -> Option<PathBuf> {
        self.get(key).map(PathBuf::from)
    }

    pub(super) fn is_true(&self, key: &str) -> bool {
        self.get(key).is_some_and(|value| value.eq_ignore_ascii_case("true"))
    }

    /// The scheme of the datastore's endpoint; a lone file name counts as `sqlite`.
    pub(super) fn datastore_scheme(&self) -> Option<&str> {
        let endpoint = self.get("datastore-endpoint")?;
        Some(endpoint.split_once("://").map_or("sqlite", |(scheme, _)| scheme))
    }

    /// The endpoints of an external etcd.
    pub(super) fn etcd_endpoints(&self) -> Vec<String> {
        let mut urls = split_urls(self.get("datastore-endpoint").unwrap_or_default());
        urls.retain(|url| url.starts_with("http"));
        urls
    }

    /// A setting of etcd given through `etcd-arg`.
    pub(super) fn etcd_args(&self) -> Flags {
        let args = self.values.get("etcd-arg").map(Vec::as_slice).unwrap_or_default();
        let dashed = args.iter().map(|arg| format!("--{}", arg.trim_start_matches('-')));
        Flags::parse(&dashed.collect::<Vec<_>>())
    }

    /// The loopback address for a URL. As k3s does it: IPv6 only when every service range is,
    /// and those follow the node's addresses where they are not set.
    pub(super) fn loopback(&self) -> &'static str {
        let ranges = |key: &str| {
            let all = self.values.get(key).map(|values| values.join(",")).unwrap_or_default();
            all.split(',').filter(|part| !part.is_empty()).map(|part| part.contains(':')).collect()
        };
        let mut six: Vec<bool> = ranges("service-cidr");
        if six.is_empty() {
            six = ranges("node-ip");
        }
        if !six.is_empty() && six.iter().all(|six| *six) { "[::1]" } else { "127.0.0.1" }
    }
}

/// Variables of k3s and RKE2 that are read. The endpoint is reduced by [`RancherConfig`].
pub(super) fn known_variable(name: &str) -> bool {
    const SUFFIXES: &[&str] = &[
        "CONFIG_FILE",
        "DATA_DIR",
        "DATASTORE_ENDPOINT",
        "DATASTORE_CAFILE",
        "DATASTORE_CERTFILE",
        "DATASTORE_KEYFILE",
        "URL",
        "CLUSTER_INIT",
        "AGENT_TOKEN",
    ];
    name.strip_prefix("K3S_")
        .or_else(|| name.strip_prefix("RKE2_"))
        .is_some_and(|suffix| SUFFIXES.contains(&suffix))
}

fn keep_known(mut variables: Vec<(String, String)>) -> Vec<(String, String)> {
    variables.retain(|(name, _)| known_variable(name));
    variables
}

/// The short flags that k3s and RKE2 know, in full.
fn spell_out(words: &[String]) -> Vec<String> {
    words
        .iter()
        .map(|word| match word.as_str() {
            "-d" => "--data-dir".to_owned(),
            "-c" => "--config".to_owned(),
            "-s" => "--server".to_owned(),
            "-i" => "--node-ip".to_owned(),
            _ => word.clone(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::host::Host;

    fn config(
        files: &[(&str, &str)],
        exec: &[&str],
        environment: &[(&str, &str)],
    ) -> RancherConfig {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let unit = UnitFile {
            exec: exec.iter().map(ToString::to_string).collect(),
            environment: environment
                .iter()
                .map(|(name, value)| (name.to_string(), value.to_string()))
                .collect(),
            ..UnitFile::default()
        };
        let host = Host::at(dir.path());
        RancherConfig::read(&Probe::new(&host), "k3s", &unit, DETECTION.to_vec())
    }

    #[test]
    fn the_last_file_wins_and_a_plus_appends() {
        let config = config(
            &[
                ("etc/rancher/k3s/config.yaml", "data-dir: /a\netcd-arg: [a=1]\ntoken: secret\n"),
                ("etc/rancher/k3s/config.yaml.d/10.yaml", "data-dir: /b\netcd-arg+: [b=2]\n"),
                ("etc/rancher/k3s/config.yaml.d/20.yaml", "etcd-arg+: [quota-backend-bytes=3]\n"),
                ("etc/rancher/k3s/config.yaml.d/30.txt", "data-dir: /no\n"),
            ],
            &["k3s", "server"],
            &[],
        );
        assert_eq!(config.get("data-dir"), Some("/b"));
        assert_eq!(config.etcd_args().get("a"), Some("1"));
        assert_eq!(config.etcd_args().get("b"), Some("2"));
        assert_eq!(config.etcd_args().get("quota-backend-bytes"), Some("3"));
        assert_eq!(config.get("token"), None);
    }

    #[test]
    fn a_flag_wins_over_the_file_and_the_file_over_the_environment() {
        let file = ("etc/rancher/k3s/config.yaml", "data-dir: /file\n");
        let environment = [("K3S_DATA_DIR", "/variable")];
        assert_eq!(config(&[], &[], &environment).get("data-dir"), Some("/variable"));
        assert_eq!(config(&[file], &[], &environment).get("data-dir"), Some("/file"));
        let flagged = config(&[file], &["k3s", "server", "-d", "/flag"], &environment);
        assert_eq!(flagged.get("data-dir"), Some("/flag"));
    }

    #[test]
    fn the_configuration_file_may_lie_elsewhere() {
        let files = [("srv/k3s.yaml", "cluster-init: true\n"), ("srv/k3s.yaml.d/a.yaml", "x: 1\n")];
        assert!(config(&files, &["k3s", "--config=/srv/k3s.yaml"], &[]).is_true("cluster-init"));
        assert!(
            config(&files, &[], &[("K3S_CONFIG_FILE", "/srv/k3s.yaml")]).is_true("cluster-init")
        );
    }

    #[test]
    fn the_datastore_is_known_by_its_scheme() {
        let scheme = |endpoint: &str| {
            let config = config(&[], &[], &[("K3S_DATASTORE_ENDPOINT", endpoint)]);
            config.datastore_scheme().map(str::to_owned)
        };
        assert_eq!(scheme("mysql://u:hunter2@tcp(db:3306)/k3s").as_deref(), Some("mysql"));
        assert_eq!(scheme("https://e1:2379,https://e2:2379").as_deref(), Some("https"));
        assert_eq!(scheme("").as_deref(), None);
    }

    #[test]
    fn the_loopback_address_follows_the_service_range() {
        let loopback =
            |text: &str| config(&[("etc/rancher/k3s/config.yaml", text)], &[], &[]).loopback();
        assert_eq!(loopback(""), "127.0.0.1");
        assert_eq!(loopback("service-cidr: fd00::/112\n"), "[::1]");
        assert_eq!(loopback("service-cidr: 10.43.0.0/16,fd00::/112\n"), "127.0.0.1");
        assert_eq!(loopback("node-ip: [fd00::1]\n"), "[::1]");
    }

    #[test]
    fn garbage_in_the_files_leaves_the_defaults() {
        let files = [
            ("etc/rancher/k3s/config.yaml", "data-dir: [\n"),
            ("etc/rancher/k3s/config.yaml.d/a.yaml/oops", ""),
        ];
        assert_eq!(config(&files, &[], &[]).values, BTreeMap::new());
    }
}
