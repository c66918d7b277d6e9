//! What an X.509 certificate says of itself.

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;

use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

/// When the first certificate of a PEM text ends.
///
/// # Errors
///
/// A sentence when the text holds no certificate, or one that cannot be read.
pub fn not_after(pem: &[u8]) -> Result<SystemTime, String> {
    let der = CertificateDer::from_pem_slice(pem)
        .map_err(|_| "holds no certificate in PEM form".to_owned())?;
    let certificate = parse(&der).ok_or("its certificate cannot be read")?;
    Ok(end_of(&certificate))
}

fn end_of(certificate: &X509Certificate) -> SystemTime {
    let seconds = certificate.validity().not_after.timestamp();
    UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

/// What a certificate is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    /// It signs others.
    Ca,
    /// A server shows it, and perhaps a client as well.
    Server,
    /// A client shows it.
    Client,
    /// It does not say.
    Other,
}

/// Of a certificate, what matters for its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// When it ends.
    pub not_after: SystemTime,
    /// What it is for.
    pub usage: Usage,
}

/// All certificates of a PEM text, in its order. Nothing between them is decoded, so no key is.
///
/// # Errors
///
/// A sentence when the text holds no certificate, or one that cannot be read.
pub fn summaries(pem: &str) -> Result<Vec<Summary>, String> {
    let mut found = Vec::new();
    let mut rest = pem;
    while let Some(start) = rest.find(BEGIN) {
        let section = &rest[start..];
        let end = section.find(END).map(|end| end + END.len());
        let (section, after) = section.split_at(end.ok_or("its certificate has no end")?);
        let der = CertificateDer::from_pem_slice(section.as_bytes())
            .map_err(|_| "its certificate is no base64")?;
        found.push(summary(&parse(&der).ok_or("its certificate cannot be read")?));
        rest = after;
    }
    if found.is_empty() { Err("holds no certificate in PEM form".into()) } else { Ok(found) }
}

const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

fn summary(certificate: &X509Certificate) -> Summary {
    let usage = certificate.extended_key_usage().ok().flatten().map(|usage| usage.value);
    let usage = match usage {
        _ if certificate.is_ca() => Usage::Ca,
        Some(usage) if usage.server_auth => Usage::Server,
        Some(usage) if usage.client_auth => Usage::Client,
        _ => Usage::Other,
    };
    Summary { not_after: end_of(certificate), usage }
}

/// The alternative names of a certificate: DNS, e-mail, URI and IP addresses. None where it is no DER, or names it twice.
pub fn names(der: &[u8]) -> Option<Vec<String>> {
    let certificate = parse(der)?;
    let Some(names) = certificate.subject_alternative_name().ok()? else {
        return Some(Vec::new());
    };
    let text = |name: &GeneralName| match name {
        GeneralName::DNSName(name) | GeneralName::RFC822Name(name) | GeneralName::URI(name) => {
            Some((*name).to_owned())
        }
        GeneralName::IPAddress(bytes) => address(bytes).map(|ip| ip.to_string()),
        _ => None,
    };
    Some(names.value.general_names.iter().filter_map(text).collect())
}

fn parse(der: &[u8]) -> Option<X509Certificate<'_>> {
    X509Certificate::from_der(der).ok().map(|(_, certificate)| certificate)
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let four = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    four.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rcgen::ExtendedKeyUsagePurpose::{self, ClientAuth, ServerAuth};
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, SanType};

    #[test]
    fn all_kinds_of_alternative_names_are_found() {
        let mut params =
            CertificateParams::new(vec!["one.example".into(), "10.1.2.3".into()]).unwrap();
        params.subject_alt_names.extend([
            SanType::IpAddress("fd00::1".parse().unwrap()),
            SanType::Rfc822Name("a@example.com".try_into().unwrap()),
            SanType::URI("spiffe://example/agent".try_into().unwrap()),
        ]);
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let found = names(certificate.der()).unwrap();
        assert_eq!(
            found,
            ["one.example", "10.1.2.3", "fd00::1", "a@example.com", "spiffe://example/agent"]
        );
        let bare = CertificateParams::new(Vec::new()).unwrap();
        let bare = bare.self_signed(&KeyPair::generate().unwrap()).unwrap();
        assert_eq!(names(bare.der()), Some(Vec::new()));
    }

    #[test]
    fn the_end_of_the_first_certificate_is_told() {
        let mut params = CertificateParams::new(vec!["one.example".into()]).unwrap();
        params.not_after = rcgen::date_time_ymd(2036, 4, 2);
        let pem = params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem();
        let end = not_after(pem.as_bytes()).unwrap();
        let since = end.duration_since(UNIX_EPOCH).unwrap();
        assert_eq!(since.as_secs(), 2_090_707_200);
        assert!(not_after(b"").unwrap_err().contains("no certificate"));
        let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(not_after(garbage.as_bytes()).unwrap_err().contains("cannot be read"));
    }

    #[test]
    fn every_certificate_of_a_chain_is_read_and_nothing_between_them() {
        let pem = |year: i32, ca: bool, usages: &[ExtendedKeyUsagePurpose]| {
            let mut params = CertificateParams::new(vec!["one.example".into()]).unwrap();
            params.not_after = rcgen::date_time_ymd(year, 1, 1);
            params.extended_key_usages = usages.to_vec();
            if ca {
                params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            }
            params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem()
        };
        let key = "-----BEGIN PRIVATE KEY-----\n!no base64!\n-----END PRIVATE KEY-----\n";
        let server = pem(2031, false, &[ServerAuth, ClientAuth]);
        let text = format!("{server}{key}{}", pem(2041, true, &[]));
        let found = summaries(&text).unwrap();
        let usages: Vec<_> = found.iter().map(|one| one.usage).collect();
        assert_eq!(usages, [Usage::Server, Usage::Ca]);
        assert!(found[0].not_after < found[1].not_after);
        assert_eq!(summaries(&pem(2031, false, &[ClientAuth])).unwrap()[0].usage, Usage::Client);
        assert_eq!(summaries(&pem(2031, false, &[])).unwrap()[0].usage, Usage::Other);
        assert!(summaries(key).unwrap_err().contains("no certificate"));
        assert!(summaries(&text[..text.len() - 40]).unwrap_err().contains("no end"));
        let garbage = format!("{server}{BEGIN}\nAAAA\n{END}\n");
        assert!(summaries(&garbage).unwrap_err().contains("cannot be read"));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>, at: usize, byte: u8) {
            drop(names(&bytes));
            drop(not_after(&bytes));
            drop(summaries(&format!("{BEGIN}\n{}\n{END}", String::from_utf8_lossy(&bytes))));
            let params = CertificateParams::new(vec!["one.example".into()]).unwrap();
            let mut der = params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec();
            let at = at % der.len();
            drop(names(&der[..at]));
            der[at] = byte;
            drop(names(&der));
        }
    }
}
