//! TLS settings from PEM texts, with errors that say which file is wrong and how.

use std::sync::Arc;

use rustls::client::{Resumption, WantsClientCert};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ConfigBuilder, RootCertStore};

/// Which of the files is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// The CA.
    Ca,
    /// The client certificate.
    Cert,
    /// Its key.
    Key,
}

/// What is wrong with a file's content.
#[derive(Debug)]
pub struct Bad {
    /// Which file.
    pub which: Which,
    /// What is wrong with it; never a part of it.
    pub what: String,
}

pub(crate) fn bad(which: Which, what: impl Into<String>) -> Bad {
    Bad { which, what: what.into() }
}

/// What a client trusts and shows, for HTTP/2.
///
/// # Errors
///
/// When a text is no PEM of the right kind, or key and certificate do not belong together.
pub fn client_config(ca: &str, own: Option<(&str, &str)>) -> Result<ClientConfig, Bad> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(ca, Which::Ca)? {
        roots.add(certificate).map_err(|error| bad(Which::Ca, useless(&error)))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| bad(Which::Ca, error.to_string()))?
        .with_root_certificates(roots);
    let mut config = shows(builder, own)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// The same for HTTP/1.1.
///
/// # Errors
///
/// As for [`client_config`].
pub fn http1_config(ca: &str, own: Option<(&str, &str)>) -> Result<ClientConfig, Bad> {
    let mut config = client_config(ca, own)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// Settings for a client that shows this certificate, or none, at each connection anew, so that one that has
/// expired is refused at once.
pub(crate) fn shows(
    builder: ConfigBuilder<ClientConfig, WantsClientCert>,
    own: Option<(&str, &str)>,
) -> Result<ClientConfig, Bad> {
    let mut config = match own {
        None => builder.with_no_client_auth(),
        Some((cert, key)) => {
            let chain = certificates(cert, Which::Cert)?;
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|error| {
                bad(Which::Key, no_pem("private key without a passphrase", &error))
            })?;
            builder.with_client_auth_cert(chain, key).map_err(|error| match error {
                rustls::Error::InconsistentKeys(_) => {
                    bad(Which::Key, "the key is not that of the client certificate")
                }
                error => bad(Which::Cert, useless(&error)),
            })?
        }
    };
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// The certificates in a PEM text, at least one.
pub(crate) fn certificates(text: &str, which: Which) -> Result<Vec<CertificateDer<'static>>, Bad> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    match all {
        Ok(all) if all.is_empty() => Err(bad(which, "holds no certificate in PEM form")),
        Ok(all) => Ok(all),
        Err(error) => Err(bad(which, no_pem("certificate", &error))),
    }
}

/// Why a certificate cannot be used, without its data.
pub(crate) fn useless(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(why) => {
            format!("holds no certificate that can be used: {why:?}")
        }
        error => format!("holds no certificate that can be used: {error}"),
    }
}

/// The error without its data, which may be a piece of a key.
pub(crate) fn no_pem(wanted: &str, error: &pem::Error) -> String {
    let why = match error {
        pem::Error::NoItemsFound => "nothing of the kind in it",
        pem::Error::MissingSectionEnd { .. } => "it is cut off",
        pem::Error::IllegalSectionStart { .. } => "a BEGIN line is broken",
        pem::Error::Base64Decode(_) => "its base64 is broken",
        _ => "it cannot be parsed",
    };
    format!("holds no {wanted} in PEM form: {why}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pair() -> (String, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["localhost".into()]).unwrap();
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    }

    #[test]
    fn good_files_make_settings_for_http2_that_never_resume() {
        let (cert, key) = pair();
        let config = client_config(&cert, Some((&cert, &key))).unwrap();
        assert_eq!(config.alpn_protocols, [b"h2".to_vec()]);
        assert!(client_config(&cert, None).is_ok());
    }

    #[test]
    fn a_bad_file_is_named_with_what_is_wrong_and_without_its_content() {
        let (cert, key) = pair();
        let (other, _) = pair();
        let cut = &cert[..cert.len() / 2];
        let broken = key.replace("\nM", "\n!!secret!!M");
        for (ca, own, which, what) in [
            ("", None, Which::Ca, "holds no certificate"),
            ("garbage", None, Which::Ca, "holds no certificate"),
            (cut, None, Which::Ca, "cut off"),
            (&key, None, Which::Ca, "holds no certificate"),
            (&cert, Some(("garbage", &*key)), Which::Cert, "holds no certificate"),
            (&cert, Some((&*cert, "garbage")), Which::Key, "nothing of the kind"),
            (&cert, Some((&*cert, &*cert)), Which::Key, "nothing of the kind"),
            (&cert, Some((&*cert, &*broken)), Which::Key, "private key"),
            (&cert, Some((&*other, &*key)), Which::Key, "not that of the client certificate"),
        ] {
            let error = client_config(ca, own).unwrap_err();
            assert_eq!(error.which, which, "{}", error.what);
            assert!(error.what.contains(what) && !error.what.contains("secret"), "{}", error.what);
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(
            begin in "(-----BEGIN (CERTIFICATE|PRIVATE KEY|RSA PRIVATE KEY|X)-----\n)?",
            body in any::<String>(),
            base64 in "[A-Za-z0-9+/=\n]{0,200}",
            end in "(\n-----END (CERTIFICATE|PRIVATE KEY|X)-----\n)?",
        ) {
            let (cert, key) = pair();
            for text in [format!("{begin}{base64}{end}"), format!("{begin}{body}{end}")] {
                drop(client_config(&text, None));
                drop(client_config(&cert, Some((&text, &key))));
                drop(client_config(&cert, Some((&cert, &text))));
            }
        }

        #[test]
        fn a_file_that_is_cut_or_damaged_anywhere_is_refused_or_works(at: usize, byte in 0_u8..128) {
            let (cert, key) = pair();
            let damage = |text: &str| {
                let at = at % text.len();
                let mut bytes = text.as_bytes().to_vec();
                bytes[at] = byte;
                (text[..at].to_owned(), String::from_utf8(bytes).unwrap())
            };
            let (cut, damaged) = damage(&cert);
            drop(client_config(&cut, None));
            drop(client_config(&damaged, Some((&damaged, &key))));
            let (cut, damaged) = damage(&key);
            drop(client_config(&cert, Some((&cert, &cut))));
            drop(client_config(&cert, Some((&cert, &damaged))));
        }
    }
}
