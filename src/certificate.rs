//! What an X.509 certificate says of itself.

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
    let seconds = certificate.validity().not_after.timestamp();
    Ok(UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
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
    use rcgen::{CertificateParams, KeyPair, SanType};

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

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>, at: usize, byte: u8) {
            drop(names(&bytes));
            drop(not_after(&bytes));
            let params = CertificateParams::new(vec!["one.example".into()]).unwrap();
            let mut der = params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec();
            let at = at % der.len();
            drop(names(&der[..at]));
            der[at] = byte;
            drop(names(&der));
        }
    }
}
