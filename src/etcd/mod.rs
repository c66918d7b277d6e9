//! How the agent talks to an etcd member, or to kine and k8s-dqlite, which speak the same protocol.
//!
//! etcd-client without its own TLS: [`connector`] dials, so that one deadline covers TCP, TLS and
//! the first byte, a refused client certificate is always told as such, and rotated files take
//! effect at the next connection. [`files`] reads them in a child process, because their disk may
//! be sick. [`reason`] turns every error into one of a closed set of words.

pub mod address;
pub mod client;
pub mod connector;
#[cfg(test)]
pub(crate) mod fake;
pub mod files;
pub mod reason;
pub mod tls;

use std::path::PathBuf;
use std::sync::Arc;

pub use address::Address;
pub use client::{Answer, Client, Failure};
pub use files::TlsFiles;
pub use reason::Reason;

use crate::etcd::client::Consistency;
use crate::host::{EtcdAccess, Host};
use crate::sampler::{OptionsError, absolute};

/// No sampler asks more addresses of one member.
const MAX_ENDPOINTS: usize = 8;

/// How to reach one member: what is configured, else what detection found.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Addresses of one and the same member.
    pub endpoints: Vec<String>,
    /// The CA that signed the server's certificate.
    pub ca_file: Option<PathBuf>,
    /// The client certificate.
    pub cert_file: Option<PathBuf>,
    /// Its key.
    pub key_file: Option<PathBuf>,
    /// The name that the server's certificate must bear, if not the host of the endpoint.
    pub server_name: Option<String>,
}

/// Where a member is, and what it is trusted by.
#[derive(Debug, Clone)]
pub struct Access {
    /// Addresses of one and the same member.
    pub addresses: Vec<Address>,
    /// The TLS files; for its peers too.
    pub tls: Arc<TlsFiles>,
    /// The name that the server's certificate must bear.
    pub server_name: Option<Arc<str>>,
}

impl Access {
    /// How its keys are to be read first: kine, which is on a socket, writes a line into the journal for each serializable
    /// read that it refuses.
    pub fn consistency(&self) -> Consistency {
        let kine = self.addresses.iter().all(|address| matches!(address, Address::Unix { .. }));
        if kine { Consistency::Linearizable } else { Consistency::Serializable }
    }
}

impl Settings {
    /// These settings, with `found` for what they leave open. `None` when there is no endpoint.
    ///
    /// # Errors
    ///
    /// When an endpoint makes no sense, or a key file comes without a certificate.
    pub fn access(
        self,
        found: Option<&EtcdAccess>,
        host: &Host,
    ) -> Result<Option<Access>, OptionsError> {
        absolute("ca_file", &self.ca_file)?;
        let pair = pair(self.cert_file, self.key_file)?;
        if self.endpoints.len() > MAX_ENDPOINTS {
            let what = format!("at most {MAX_ENDPOINTS} addresses of the local member");
            return Err(OptionsError::new("endpoints", what));
        }
        if let Some(name) = &self.server_name
            && rustls::pki_types::ServerName::try_from(name.as_str()).is_err()
        {
            return Err(OptionsError::new("server_name", format!("{name:?} is no host name")));
        }
        let mut addresses: Vec<Address> = Vec::new();
        let own = !self.endpoints.is_empty();
        let endpoints =
            if own { &self.endpoints } else { found.map_or(&self.endpoints, |f| &f.endpoints) };
        for endpoint in endpoints.iter().take(MAX_ENDPOINTS) {
            match Address::parse(endpoint) {
                Ok(address) if addresses.contains(&address) => {}
                Ok(address) => addresses.push(address.on(host)),
                Err(what) if own => return Err(OptionsError::new("endpoints", what)),
                // Detection passes on what etcd's arguments say; one that cannot be dialled is skipped.
                Err(_) => {}
            }
        }
        if addresses.is_empty() {
            return Ok(None);
        }
        // Files of another etcd are not shown to this one.
        let found = found.filter(|found| !own || covers(found, &addresses));
        let found = found.cloned().unwrap_or_default();
        let (cert, key) = match pair {
            Some((cert, key)) => (Some(cert), Some(key)),
            None => (found.cert_file, found.key_file),
        };
        let ca = self.ca_file.or(found.ca_file);
        let tls = Arc::new(TlsFiles::new(host, ca, cert, key));
        Ok(Some(Access { addresses, tls, server_name: self.server_name.map(Into::into) }))
    }
}

/// The client certificate of the keys `cert_file` and `key_file`; `None` where neither is set.
///
/// # Errors
///
/// When a path is not absolute, or one of the two comes without the other.
pub fn pair(
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
) -> Result<Option<(PathBuf, PathBuf)>, OptionsError> {
    absolute("cert_file", &cert)?;
    absolute("key_file", &key)?;
    match (cert, key) {
        (Some(_), None) => Err(OptionsError::new("key_file", "is needed beside cert_file")),
        (None, Some(_)) => Err(OptionsError::new("cert_file", "is needed beside key_file")),
        (cert, key) => Ok(cert.zip(key)),
    }
}

/// Whether what was found is about the etcd at one of these addresses.
pub fn covers(found: &EtcdAccess, addresses: &[Address]) -> bool {
    let known = |address: &Address| {
        found.endpoints.iter().any(|url| Address::parse(url).is_ok_and(|found| found == *address))
    };
    addresses.iter().any(known)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(endpoints: &[&str]) -> Settings {
        let endpoints = endpoints.iter().map(ToString::to_string).collect();
        Settings { endpoints, ..Settings::default() }
    }

    fn addresses(access: Option<Access>) -> Vec<String> {
        access.unwrap().addresses.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_is_configured_wins_over_what_was_found_and_the_rest_is_filled_in() {
        let host = Host::at("/host");
        let found = EtcdAccess {
            endpoints: vec!["https://127.0.0.1:2379".into(), "nonsense".into()],
            ca_file: Some("/pki/ca.crt".into()),
            ..EtcdAccess::default()
        };
        let access = settings(&[]).access(Some(&found), &host).unwrap();
        assert_eq!(addresses(access), ["https://127.0.0.1:2379"]);
        let ca = |url| {
            let access = settings(&[url]).access(Some(&found), &host).unwrap().unwrap();
            access.tls.ca().map(|ca| ca.display().to_string())
        };
        assert_eq!(ca("https://127.0.0.1:2379/"), Some("/host/pki/ca.crt".into()));
        assert_eq!(ca("https://10.0.0.9:2379"), None, "another etcd");
        let access = settings(&["http://[::1]:1", "/run/kine.sock:2379"]);
        let access = access.access(Some(&found), &host).unwrap();
        assert_eq!(addresses(access), ["http://[::1]:1", "unix:///host/run/kine.sock:2379"]);
        assert!(settings(&[]).access(None, &host).unwrap().is_none());
    }

    #[test]
    fn a_bad_setting_names_its_key() {
        let host = Host::at("/");
        let key = |s: Settings| s.access(None, &host).unwrap_err().key;
        assert_eq!(key(settings(&["ftp://x"])), "endpoints");
        assert_eq!(key(settings(&["http://h:1"; 9])), "endpoints");
        let cert = Settings { cert_file: Some("/a".into()), ..settings(&["https://h:1"]) };
        assert_eq!(key(cert), "key_file");
        let relative = Settings { ca_file: Some("ca.crt".into()), ..settings(&["https://h:1"]) };
        assert_eq!(key(relative), "ca_file");
        let name = Settings { server_name: Some("a b".into()), ..settings(&["https://h:1"]) };
        assert_eq!(key(name), "server_name");
    }
}
