//! Why a call failed, as one of a closed set of words that become labels.
//!
//! Texts are looked at before codes: the same failure is `Unknown` on etcd 3.4 and `Unavailable` or
//! `DeadlineExceeded` on 3.5.

use std::error::Error;
use std::io;

use rustix::io::Errno;
use rustls::{AlertDescription, CertificateError};
use tonic::{Code, Status};

use super::connector::DialError;

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $word:literal,)*) => {
        /// Why a call failed.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason { $($(#[$doc])* $variant,)* }

        impl Reason {
            /// Every reason.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The word for it in labels.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }
        }
    };
}

reasons! {
    /// Nobody listens there, or the socket does not exist.
    Refused = "refused",
    /// The host's name does not resolve.
    Dns = "dns",
    /// No answer in time, or the server itself gave up waiting.
    Timeout = "timeout",
    /// The connection broke.
    Reset = "reset",
    /// The server's certificate is of another CA, for another host, or otherwise not valid.
    TlsUntrusted = "tls_untrusted",
    /// The server's certificate has expired, or is not valid yet.
    TlsExpired = "tls_expired",
    /// The server refuses our client certificate: none, expired, or of another CA.
    TlsRejected = "tls_rejected",
    /// TCP connects and the TLS handshake is not answered: a hung process, or a member that starts
    /// without a quorum.
    TlsTimeout = "tls_timeout",
    /// Any other failure of TLS, such as a port that does not speak it.
    Tls = "tls",
    /// The CA, certificate or key file is missing, unreadable or not PEM.
    TlsConfig = "tls_config",
    /// The socket is closed to the agent's user.
    Permission = "permission",
    /// The agent itself has no descriptor or no memory left for a connection.
    Exhausted = "exhausted",
    /// The member knows no leader, or lost it during the call.
    NoLeader = "no_leader",
    /// A learner does not answer this call. No fault.
    Learner = "learner",
    /// The NOSPACE alarm refuses writes.
    NoSpace = "no_space",
    /// etcd's authentication refuses us.
    Unauthenticated = "unauthenticated",
    /// The member says that its data are damaged.
    Corrupt = "corrupt",
    /// No way there, or the member says so without a reason.
    Unavailable = "unavailable",
    /// Anything else.
    Other = "other",
}

impl Reason {
    /// Whether it was the agent's own trouble that kept the call from being made: that says nothing about the server.
    pub fn is_ours(self) -> bool {
        matches!(self, Self::TlsConfig | Self::Exhausted)
    }

    /// The reason of a failed call.
    pub fn of(status: &Status) -> Self {
        Self::of_chain(status.source()).unwrap_or_else(|| of_answer(status))
    }

    /// The reason of an error or of one of its causes, if one tells it.
    pub fn of_chain(error: Option<&(dyn Error + 'static)>) -> Option<Self> {
        let mut current = error;
        while let Some(error) = current {
            if let Some(reason) = of_source(error) {
                return Some(reason);
            }
            current = error.source();
        }
        None
    }

    /// The reason of an I/O error, if it tells one.
    pub fn of_io(error: &io::Error) -> Option<Self> {
        use io::ErrorKind as K;
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        if let Some(tls) = inner {
            return Some(Self::of_tls(tls));
        }
        if let Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS) =
            Errno::from_io_error(error)
        {
            return Some(Self::Exhausted);
        }
        Some(match error.kind() {
            K::ConnectionRefused | K::NotFound => Self::Refused,
            K::TimedOut => Self::Timeout,
            K::ConnectionReset | K::BrokenPipe | K::UnexpectedEof | K::ConnectionAborted => {
                Self::Reset
            }
            K::HostUnreachable | K::NetworkUnreachable | K::NetworkDown => Self::Unavailable,
            _ => return None,
        })
    }

    /// The reason why a name did not resolve; without a descriptor of its own the agent has asked nobody.
    pub fn of_resolving(error: &io::Error) -> Self {
        Self::of_io(error).filter(|reason| reason.is_ours()).unwrap_or(Self::Dns)
    }

    /// The reason of a TLS error.
    pub fn of_tls(error: &rustls::Error) -> Self {
        use AlertDescription as A;
        use CertificateError as C;
        match error {
            rustls::Error::InvalidCertificate(
                C::Expired
                | C::ExpiredContext { .. }
                | C::NotValidYet
                | C::NotValidYetContext { .. },
            ) => Self::TlsExpired,
            rustls::Error::InvalidCertificate(_) => Self::TlsUntrusted,
            rustls::Error::AlertReceived(
                A::BadCertificate
                | A::UnsupportedCertificate
                | A::CertificateRevoked
                | A::CertificateExpired
                | A::CertificateUnknown
                | A::CertificateRequired
                | A::UnknownCA
                | A::AccessDenied,
            ) => Self::TlsRejected,
            _ => Self::Tls,
        }
    }
}

fn of_source(error: &(dyn Error + 'static)) -> Option<Reason> {
    if let Some(dial) = error.downcast_ref::<DialError>() {
        return Some(dial.reason);
    }
    if error.is::<tonic::TimeoutExpired>() {
        return Some(Reason::Timeout);
    }
    if let Some(tls) = error.downcast_ref::<rustls::Error>() {
        return Some(Reason::of_tls(tls));
    }
    if let Some(io) = error.downcast_ref::<io::Error>() {
        return Reason::of_io(io);
    }
    let hyper = error.downcast_ref::<hyper::Error>()?;
    if hyper.is_timeout() {
        return Some(Reason::Timeout);
    }
    (hyper.is_canceled() || hyper.is_closed()).then_some(Reason::Reset)
}

/// What the server itself said.
fn of_answer(status: &Status) -> Reason {
    let text = status.message();
    let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
    if says(&["no leader", "leader changed", "previous leader failure"]) {
        return Reason::NoLeader;
    }
    if says(&["request timed out", "deadline exceeded"]) {
        return Reason::Timeout;
    }
    if says(&["not supported for learner"]) {
        return Reason::Learner;
    }
    if says(&["database space exceeded"]) {
        return Reason::NoSpace;
    }
    if says(&["authentication failed", "user name is empty", "auth:"]) {
        return Reason::Unauthenticated;
    }
    match status.code() {
        Code::Unauthenticated | Code::PermissionDenied => Reason::Unauthenticated,
        Code::Cancelled | Code::DeadlineExceeded => Reason::Timeout,
        Code::DataLoss => Reason::Corrupt,
        Code::Unavailable => Reason::Unavailable,
        _ => Reason::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_own_words_decide_before_its_code() {
        for (code, text, reason) in [
            (Code::Unavailable, "etcdserver: no leader", "no_leader"),
            (Code::Unavailable, "etcdserver: leader changed", "no_leader"),
            (
                Code::Unavailable,
                "etcdserver: request timed out, possibly due to previous leader failure",
                "no_leader",
            ),
            (Code::Unknown, "etcdserver: request timed out", "timeout"),
            (Code::DeadlineExceeded, "context deadline exceeded", "timeout"),
            (Code::Unavailable, "etcdserver: rpc not supported for learner", "learner"),
            (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded", "no_space"),
            (Code::InvalidArgument, "etcdserver: user name is empty", "unauthenticated"),
            (Code::PermissionDenied, "etcdserver: permission denied", "unauthenticated"),
            (Code::Cancelled, "Timeout expired", "timeout"),
            (Code::DataLoss, "etcdserver: corrupt cluster", "corrupt"),
            (Code::Unavailable, "etcdserver: server stopped", "unavailable"),
            (Code::OutOfRange, "decoded message length too large", "other"),
        ] {
            assert_eq!(Reason::of(&Status::new(code, text)).as_str(), reason, "{text}");
        }
    }

    #[test]
    fn an_error_of_the_transport_decides_before_the_servers_words() {
        let of = |error: io::Error| Reason::of(&Status::from_error(Box::new(error))).as_str();
        assert_eq!(of(io::ErrorKind::ConnectionRefused.into()), "refused");
        assert_eq!(of(io::ErrorKind::NotFound.into()), "refused");
        assert_eq!(of(io::ErrorKind::UnexpectedEof.into()), "reset");
        assert_eq!(of(io::ErrorKind::TimedOut.into()), "timeout");
        assert_eq!(of(io::ErrorKind::HostUnreachable.into()), "unavailable");
        for errno in [Errno::MFILE, Errno::NFILE, Errno::NOMEM] {
            assert_eq!(of(errno.into()), "exhausted", "{errno}");
        }
        let tls = |error| of(io::Error::new(io::ErrorKind::InvalidData, error));
        let alert = rustls::Error::AlertReceived;
        assert_eq!(tls(alert(AlertDescription::CertificateRequired)), "tls_rejected");
        assert_eq!(tls(alert(AlertDescription::BadCertificate)), "tls_rejected");
        assert_eq!(tls(alert(AlertDescription::ProtocolVersion)), "tls");
        let certificate = rustls::Error::InvalidCertificate;
        assert_eq!(tls(certificate(CertificateError::UnknownIssuer)), "tls_untrusted");
        assert_eq!(tls(certificate(CertificateError::NotValidForName)), "tls_untrusted");
        assert_eq!(tls(certificate(CertificateError::Expired)), "tls_expired");
        let dial = DialError { reason: Reason::TlsTimeout, text: String::new() };
        assert_eq!(Reason::of(&Status::from_error(Box::new(dial))).as_str(), "tls_timeout");
    }

    #[test]
    fn no_two_reasons_share_a_word() {
        let words: std::collections::HashSet<_> = Reason::ALL.iter().map(|r| r.as_str()).collect();
        assert_eq!(words.len(), Reason::ALL.len());
    }
}
