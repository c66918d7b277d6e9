//! etcd's own settings, wherever they stand: arguments, `ETCD_*` variables, a configuration file.

use std::path::{Path, PathBuf};

use super::flags::Flags;
use super::read::Probe;
use super::units::variable;
use super::yaml::Node;
use super::{EtcdAccess, NO_QUOTA, Quota, QuotaSource};

/// The settings that matter here, each where it is set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct EtcdSettings {
    pub(super) listen_client_urls: Vec<String>,
    pub(super) advertise_client_urls: Vec<String>,
    pub(super) data_dir: Option<PathBuf>,
    pub(super) wal_dir: Option<PathBuf>,
    pub(super) name: Option<String>,
    /// In bytes, [`NO_QUOTA`] for a negative one; 0, which means the default, is left out.
    pub(super) quota: Option<u64>,
    pub(super) trusted_ca_file: Option<PathBuf>,
    pub(super) cert_file: Option<PathBuf>,
    pub(super) key_file: Option<PathBuf>,
}

/// Variables that may be kept: none of them is a secret.
pub(super) fn known_variable(name: &str) -> bool {
    const NAMES: &[&str] = &[
        "ETCD_LISTEN_CLIENT_URLS",
        "ETCD_ADVERTISE_CLIENT_URLS",
        "ETCD_DATA_DIR",
        "ETCD_WAL_DIR",
        "ETCD_NAME",
        "ETCD_QUOTA_BACKEND_BYTES",
        "ETCD_TRUSTED_CA_FILE",
        "ETCD_CERT_FILE",
        "ETCD_KEY_FILE",
        "ETCD_CONFIG_FILE",
    ];
    NAMES.contains(&name)
}

impl EtcdSettings {
    pub(super) fn from_flags(flags: &Flags) -> Self {
        Self::from_lookup(|key| flags.get(key).map(str::to_owned))
    }

    pub(super) fn from_variables(variables: &[(String, String)]) -> Self {
        Self::from_lookup(|key| {
            let name = format!("ETCD_{}", key.to_uppercase().replace('-', "_"));
            variable(variables, &name).map(str::to_owned)
        })
    }

    /// From etcd's configuration file, where the TLS files stand in a section of their own.
    pub(super) fn from_yaml(node: &Node) -> Self {
        const TLS: &[&str] = &["trusted-ca-file", "cert-file", "key-file"];
        Self::from_lookup(|key| {
            let section = TLS.contains(&key).then_some("client-transport-security");
            let inside = section.and_then(|section| node.text_at(&[section, key]));
            inside.or_else(|| node.text_at(&[key])).map(str::to_owned)
        })
    }

    /// From a configuration file, `None` when it is absent or unreadable, which is noted.
    pub(super) fn from_file(probe: &Probe, path: &Path) -> Option<Self> {
        match Node::parse(&probe.text(path)?) {
            Ok(node) => Some(Self::from_yaml(&node)),
            Err(error) => {
                probe.note(format!("{} could not be read: {error}", path.display()));
                None
            }
        }
    }

    /// Of a command and its variables. As etcd does it: a configuration file replaces everything
    /// else, flags come before variables.
    pub(super) fn of_command(
        probe: &Probe,
        words: &[String],
        variables: &[(String, String)],
    ) -> Self {
        let flags = Flags::parse(words);
        let file = flags.get("config-file").or_else(|| variable(variables, "ETCD_CONFIG_FILE"));
        if let Some(settings) = file.and_then(|file| Self::from_file(probe, Path::new(file))) {
            return settings;
        }
        Self::from_flags(&flags).or(Self::from_variables(variables))
    }

    fn from_lookup(get: impl Fn(&str) -> Option<String>) -> Self {
        let urls = |key| split_urls(&get(key).unwrap_or_default());
        let path = |key| get(key).map(PathBuf::from);
        Self {
            listen_client_urls: urls("listen-client-urls"),
            advertise_client_urls: urls("advertise-client-urls"),
            data_dir: path("data-dir"),
            wal_dir: path("wal-dir"),
            name: get("name"),
            quota: get("quota-backend-bytes").and_then(|text| quota_bytes(&text)),
            trusted_ca_file: path("trusted-ca-file"),
            cert_file: path("cert-file"),
            key_file: path("key-file"),
        }
    }

    /// These settings, and those of `other` where these say nothing.
    pub(super) fn or(self, other: Self) -> Self {
        let urls = |a: Vec<String>, b| if a.is_empty() { b } else { a };
        Self {
            listen_client_urls: urls(self.listen_client_urls, other.listen_client_urls),
            advertise_client_urls: urls(self.advertise_client_urls, other.advertise_client_urls),
            data_dir: self.data_dir.or(other.data_dir),
            wal_dir: self.wal_dir.or(other.wal_dir),
            name: self.name.or(other.name),
            quota: self.quota.or(other.quota),
            trusted_ca_file: self.trusted_ca_file.or(other.trusted_ca_file),
            cert_file: self.cert_file.or(other.cert_file),
            key_file: self.key_file.or(other.key_file),
        }
    }

    /// How to reach this member with its own certificate; without settings etcd's defaults.
    pub(super) fn access(&self, source: QuotaSource) -> EtcdAccess {
        let mut endpoints = local_endpoints(&self.listen_client_urls);
        if endpoints.is_empty() {
            endpoints.push("http://127.0.0.1:2379".to_owned());
        }
        // The other members are reached as they advertise themselves, which may be by TLS when this one is not.
        let advertised = self.advertise_client_urls.iter();
        let tls = endpoints.iter().chain(advertised).any(|url| url.starts_with("https:"));
        let file = |path: &Option<PathBuf>| path.clone().filter(|_| tls);
        EtcdAccess {
            endpoints,
            ca_file: file(&self.trusted_ca_file),
            cert_file: file(&self.cert_file),
            key_file: file(&self.key_file),
            quota: self.quota(source),
        }
    }

    pub(super) fn quota(&self, source: QuotaSource) -> Option<Quota> {
        self.quota.map(|bytes| Quota { bytes, source })
    }
}

/// Bytes of a quota flag, [`NO_QUOTA`] when it is negative; `None` for the default (0) and garbage.
pub(super) fn quota_bytes(text: &str) -> Option<u64> {
    let bytes: i64 = text.trim().parse().ok()?;
    u64::try_from(bytes).map_or(Some(NO_QUOTA), |bytes| Some(bytes).filter(|bytes| *bytes > 0))
}

/// The URLs in a comma-separated list. One with a user or password in it is left out.
pub(super) fn split_urls(text: &str) -> Vec<String> {
    text.split(',')
        .map(str::trim)
        .filter(|url| !url.is_empty() && !url.contains('@'))
        .map(str::to_owned)
        .collect()
}

/// Whether a URL with a port leads to this node itself.
pub(super) fn is_loopback(url: &str) -> bool {
    ["://127.0.0.1:", "://localhost:", "://[::1]:"].iter().any(|mark| url.contains(mark))
}

/// Client URLs through which this node reaches its own member: those on loopback, else all.
/// A wildcard is reached through loopback.
pub(super) fn local_endpoints(listen: &[String]) -> Vec<String> {
    let mut loopback = Vec::new();
    let mut others = Vec::new();
    for url in listen {
        let Some((scheme, rest)) = url.split_once("://") else { continue };
        if !["http", "https", "unix", "unixs"].contains(&scheme) {
            continue;
        }
        let (host, port) = rest.rsplit_once(':').unwrap_or((rest, "2379"));
        match host {
            _ if scheme.starts_with("unix") => others.push(url.clone()),
            "127.0.0.1" | "localhost" | "[::1]" => loopback.push(url.clone()),
            "" | "0.0.0.0" => loopback.push(format!("{scheme}://127.0.0.1:{port}")),
            "[::]" => {
                loopback.push(format!("{scheme}://127.0.0.1:{port}"));
                loopback.push(format!("{scheme}://[::1]:{port}"));
            }
            _ => others.push(url.clone()),
        }
    }
    let mut chosen = if loopback.is_empty() { others } else { loopback };
    chosen.dedup();
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints(urls: &str) -> Vec<String> {
        local_endpoints(&split_urls(urls))
    }

    #[test]
    fn loopback_is_preferred_and_wildcards_lead_there() {
        let v4 = ["https://127.0.0.1:2379"];
        assert_eq!(endpoints("https://10.0.0.1:2379,https://127.0.0.1:2379"), v4);
        assert_eq!(endpoints("https://0.0.0.0:12379"), ["https://127.0.0.1:12379"]);
        assert_eq!(endpoints("http://[::]:1"), ["http://127.0.0.1:1", "http://[::1]:1"]);
        assert_eq!(endpoints("https://[::1]:2379,https://[fd00::1]:2379"), ["https://[::1]:2379"]);
        assert_eq!(endpoints("https://10.0.0.1:2379"), ["https://10.0.0.1:2379"]);
        assert_eq!(endpoints("nonsense,,://"), Vec::<String>::new());
    }

    #[test]
    fn a_url_with_a_password_is_left_out() {
        assert_eq!(split_urls("https://u:p@h:2379, https://h:2379"), ["https://h:2379"]);
    }

    #[test]
    fn a_negative_quota_is_none_and_zero_is_the_default() {
        assert_eq!(quota_bytes("8589934592"), Some(8_589_934_592));
        assert_eq!(quota_bytes("0"), None);
        assert_eq!(quota_bytes("-1"), Some(NO_QUOTA));
        assert_eq!(quota_bytes("8GiB"), None);
    }

    #[test]
    fn the_configuration_file_of_k3s_and_rke2_is_understood() {
        let text = concat!(
            "client-transport-security:\n  cert-file: /tls/server-client.crt\n",
            "  client-cert-auth: true\n  key-file: /tls/server-client.key\n",
            "  trusted-ca-file: /tls/server-ca.crt\ndata-dir: /d\n",
            "listen-client-urls: https://127.0.0.1:2379,https://192.0.2.10:2379\n",
            "peer-transport-security:\n  cert-file: /tls/peer.crt\n",
            "quota-backend-bytes: 8589934592\n",
        );
        let settings = EtcdSettings::from_yaml(&Node::parse(text).unwrap());
        assert_eq!(settings.cert_file, Some("/tls/server-client.crt".into()));
        assert_eq!(settings.quota, Some(8_589_934_592));
        assert_eq!(settings.data_dir, Some("/d".into()));
        assert_eq!(settings.listen_client_urls.len(), 2);
    }

    #[test]
    fn flags_come_before_variables() {
        let variables = [
            ("ETCD_DATA_DIR".to_owned(), "/variable".to_owned()),
            ("ETCD_WAL_DIR".to_owned(), "/wal".to_owned()),
        ];
        let flags = EtcdSettings::from_flags(&Flags::parse(&["--data-dir=/flag"]));
        let settings = flags.or(EtcdSettings::from_variables(&variables));
        assert_eq!(settings.data_dir, Some("/flag".into()));
        assert_eq!(settings.wal_dir, Some("/wal".into()));
    }

    #[test]
    fn without_tls_no_files_are_named() {
        let flags = ["--listen-client-urls=http://127.0.0.1:2379", "--cert-file=/c"];
        let access = EtcdSettings::from_flags(&Flags::parse(&flags)).access(QuotaSource::Process);
        assert_eq!(access.cert_file, None);
        assert_eq!(access.endpoints, ["http://127.0.0.1:2379"]);
    }

    #[test]
    fn a_member_that_is_asked_without_tls_names_its_files_for_those_that_advertise_it() {
        let flags = [
            "--listen-client-urls=http://127.0.0.1:2379,https://10.0.0.1:2379",
            "--advertise-client-urls=https://10.0.0.1:2379",
            "--trusted-ca-file=/ca",
        ];
        let access = EtcdSettings::from_flags(&Flags::parse(&flags)).access(QuotaSource::Process);
        assert_eq!(access.endpoints, ["http://127.0.0.1:2379"]);
        assert_eq!(access.ca_file, Some("/ca".into()));
    }
}
