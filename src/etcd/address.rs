//! Where an etcd listens: `https://host:port`, `http://host:port`, or a Unix socket.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;

use tonic::transport::Uri;

use crate::host::Host;

/// etcd's client port where a URL names none.
const DEFAULT_PORT: u16 = 2379;

/// One address of a member.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Address {
    /// TCP, with or without TLS.
    Tcp {
        /// Whether it speaks TLS.
        tls: bool,
        /// Name or address, without brackets.
        host: String,
        /// The port.
        port: u16,
    },
    /// A Unix socket. kine appends a port to the file's name (`/run/k0s/kine/kine.sock:2379`), so a
    /// colon is part of it.
    Unix {
        /// Whether it speaks TLS (`unixs:`), as kine does under RKE2.
        tls: bool,
        /// The file.
        path: PathBuf,
    },
}

/// An address for an error: what stands before an @ is often a password.
pub(crate) fn without_user(text: &str) -> Cow<'_, str> {
    match text.rsplit_once('@') {
        Some((_, rest)) => Cow::Owned(format!("***@{rest}")),
        None => Cow::Borrowed(text),
    }
}

impl Address {
    /// Reads a URL or the absolute path of a socket.
    ///
    /// # Errors
    ///
    /// A sentence that says what was expected.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || {
            let shown = without_user(text);
            format!(
                "{shown:?} is no address; use https://127.0.0.1:2379, http://127.0.0.1:2379 or the \
                 absolute path of a socket"
            )
        };
        let (tls, socket) = match (text.strip_prefix("unixs:"), text.strip_prefix("unix:")) {
            (Some(socket), _) => (true, socket),
            (None, socket) => (false, socket.unwrap_or(text)),
        };
        let socket = socket.strip_prefix("//").filter(|s| s.starts_with('/')).unwrap_or(socket);
        if socket.starts_with('/') && !socket.starts_with("//") {
            return Ok(Self::Unix { tls, path: socket.into() });
        }
        let uri: Uri = text.parse().map_err(|_| wrong())?;
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(wrong()),
        };
        let authority = uri.authority().ok_or_else(wrong)?;
        let host = authority.host();
        let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(ip) if ip.parse::<Ipv6Addr>().is_ok() => ip,
            None if !host.contains(['[', ']']) => host,
            _ => return Err(wrong()),
        };
        let rest = authority.as_str().rsplit_once(']').map_or(authority.as_str(), |(_, port)| port);
        let port = match rest.rsplit_once(':') {
            Some((_, port)) => port.parse().map_err(|_| wrong())?,
            None => DEFAULT_PORT,
        };
        if host.is_empty() || authority.as_str().contains('@') || !matches!(uri.path(), "/" | "") {
            return Err(wrong());
        }
        Ok(Self::Tcp { tls, host: host.to_owned(), port })
    }

    /// The same address for this process: a socket's path is below the host's root.
    #[must_use]
    pub fn on(self, host: &Host) -> Self {
        match self {
            Self::Unix { tls, path } => Self::Unix { tls, path: host.path(path) },
            tcp @ Self::Tcp { .. } => tcp,
        }
    }

    /// Whether it means this machine, whoever says it.
    pub fn is_loopback(&self) -> bool {
        match self {
            Self::Unix { .. } => true,
            Self::Tcp { host, .. } => {
                host == "localhost"
                    || host.parse().is_ok_and(|ip: IpAddr| ip.to_canonical().is_loopback())
            }
        }
    }

    /// Whether it is the wildcard, which is an address to listen on and not one to dial.
    pub fn is_unspecified(&self) -> bool {
        matches!(self, Self::Tcp { host, .. } if host.parse().is_ok_and(|ip: IpAddr| ip.is_unspecified()))
    }

    /// The TCP port.
    pub fn port(&self) -> Option<u16> {
        match self {
            Self::Tcp { port, .. } => Some(*port),
            Self::Unix { .. } => None,
        }
    }

    /// Whether it speaks TLS.
    pub fn is_tls(&self) -> bool {
        matches!(self, Self::Tcp { tls: true, .. } | Self::Unix { tls: true, .. })
    }

    /// What HTTP/2 is told as the host; TLS is the connector's affair, hence always `http`.
    pub(super) fn origin(&self) -> String {
        match self {
            Self::Tcp { host, port, .. } if host.contains(':') => format!("http://[{host}]:{port}"),
            Self::Tcp { host, port, .. } => format!("http://{host}:{port}"),
            Self::Unix { .. } => "http://localhost".to_owned(),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { tls: true, .. } => {
                f.write_str(&self.origin().replacen("http://", "https://", 1))
            }
            Self::Tcp { .. } => f.write_str(&self.origin()),
            Self::Unix { tls, path } => {
                write!(f, "unix{}://{}", if *tls { "s" } else { "" }, path.display())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn urls_and_sockets_are_understood() {
        for (text, shown, loopback) in [
            ("https://127.0.0.1:2379", "https://127.0.0.1:2379", true),
            ("https://10.0.0.1", "https://10.0.0.1:2379", false),
            ("http://[::1]:1234/", "http://[::1]:1234", true),
            ("https://[fd00::7]", "https://[fd00::7]:2379", false),
            ("https://[::ffff:127.0.0.1]:1", "https://[::ffff:127.0.0.1]:1", true),
            ("https://localhost:1", "https://localhost:1", true),
            ("https://etcd-0.example:2379", "https://etcd-0.example:2379", false),
            ("unix:///run/k0s/kine/kine.sock:2379", "unix:///run/k0s/kine/kine.sock:2379", true),
            ("unixs:///run/kine.sock", "unixs:///run/kine.sock", true),
            ("unix:/run/kine.sock", "unix:///run/kine.sock", true),
            (
                "/var/lib/rancher/k3s/server/kine.sock",
                "unix:///var/lib/rancher/k3s/server/kine.sock",
                true,
            ),
            ("/snap/kine.sock:12379", "unix:///snap/kine.sock:12379", true),
        ] {
            let address = Address::parse(text).unwrap();
            assert_eq!(address.to_string(), shown);
            assert_eq!(address.is_loopback(), loopback, "{text}");
        }
        assert!(Address::parse("https://0.0.0.0:2379").unwrap().is_unspecified());
    }

    #[test]
    fn anything_else_is_refused_with_what_was_expected() {
        for text in [
            "",
            "127.0.0.1:2379",
            "etcd",
            "ftp://h:1",
            "https://",
            "https://h:port",
            "https://h:70000",
            "https://user@h:1",
            "https://h:1/metrics",
            "unix://socket:1",
            "unix:socket",
            "//h:1",
            "https://h[0]:1",
            "https://[h]:1",
        ] {
            let error = Address::parse(text).unwrap_err();
            assert!(error.contains("use https://"), "{text}: {error}");
        }
    }

    #[test]
    fn an_error_shows_no_password() {
        for text in ["https://root:hunter2@h:1", "mysql://k3s:hunter2@tcp(db:3306)/kine"] {
            let error = Address::parse(text).unwrap_err();
            assert!(error.contains("***@") && !error.contains("hunter2"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_an_address_that_reads_back_as_itself_or_is_refused(
            text in "(https?://|unixs?:)?[\\[\\]a-f0-9:./@?#% é-]{0,30}",
        ) {
            if let Ok(address) = Address::parse(&text) {
                prop_assert_eq!(Address::parse(&address.to_string()), Ok(address));
            }
        }

        #[test]
        fn every_ip_address_is_understood(ip: IpAddr, port: u16, tls: bool) {
            let scheme = if tls { "https" } else { "http" };
            let url = format!("{scheme}://{}", std::net::SocketAddr::new(ip, port));
            let address = Address::parse(&url).unwrap();
            prop_assert_eq!(&address, &Address::Tcp { tls, host: ip.to_string(), port });
            prop_assert_eq!(address.to_string(), url);
        }
    }
}
