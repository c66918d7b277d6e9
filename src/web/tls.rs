//! The server's side of TLS: who shows which certificate, and what the other side must show.
//!
//! Sessions are never resumed, so each connection shows its client certificate anew and one that has expired, or
//! whose CA was taken out of the file, is refused at once.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::ring::{cipher_suite as suites, kx_group as groups};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig,
    SignatureScheme, SupportedCipherSuite, SupportedProtocolVersion,
};

use crate::certificate;
use crate::etcd::tls::{no_pem, useless};

/// Go's names of the suites of TLS 1.2; those of TLS 1.3 are always on, here as there.
const SUITES: [(&str, SupportedCipherSuite); 9] = [
    ("TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", suites::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256),
    ("TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", suites::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384),
    (
        "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
        suites::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    ),
    ("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", suites::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256),
    ("TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384", suites::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384),
    (
        "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
        suites::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
    ),
    ("TLS_AES_128_GCM_SHA256", suites::TLS13_AES_128_GCM_SHA256),
    ("TLS_AES_256_GCM_SHA384", suites::TLS13_AES_256_GCM_SHA384),
    ("TLS_CHACHA20_POLY1305_SHA256", suites::TLS13_CHACHA20_POLY1305_SHA256),
];
/// Go's names of the groups.
const CURVES: [(&str, &dyn SupportedKxGroup); 3] = [
    ("CurveP256", groups::SECP256R1),
    ("CurveP384", groups::SECP384R1),
    ("X25519", groups::X25519),
];

/// The suite of this name.
///
/// # Errors
///
/// When there is none.
pub(super) fn suite(name: &str) -> Result<SupportedCipherSuite, String> {
    find(&SUITES, name)
}

/// The curve of this name.
///
/// # Errors
///
/// When there is none.
pub(super) fn curve(name: &str) -> Result<&'static dyn SupportedKxGroup, String> {
    find(&CURVES, name)
}

fn find<T: Copy>(all: &[(&str, T)], name: &str) -> Result<T, String> {
    let found = all.iter().find(|(known, _)| *known == name);
    found.map(|(_, value)| *value).ok_or_else(|| {
        let names: Vec<_> = all.iter().map(|(name, _)| *name).collect();
        format!("{name} is not supported, only {}", names.join(", "))
    })
}

/// Where a certificate or a key stands.
pub(super) enum Source {
    /// In the web configuration itself.
    Inline(String),
    /// In this file.
    File(PathBuf),
}

impl Source {
    /// Which of the two keys says so.
    fn key(&self, inline: &'static str, file: &'static str) -> &'static str {
        match self {
            Self::Inline(_) => inline,
            Self::File(_) => file,
        }
    }
}

/// A version of TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Version {
    Tls12,
    Tls13,
}

impl Version {
    pub(super) fn from_word(word: &str) -> Result<Self, String> {
        match word {
            "TLS12" => Ok(Self::Tls12),
            "TLS13" => Ok(Self::Tls13),
            "TLS10" | "TLS11" => {
                Err(format!("{word} is not supported: it is broken; TLS12 is the oldest"))
            }
            _ => Err(format!("{word} is no version of TLS; use TLS12 or TLS13")),
        }
    }
}

/// Who must show a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Auth {
    /// Nobody.
    None,
    /// Nobody, but one that is shown must be good.
    IfGiven,
    /// Everybody.
    Required,
}

impl Auth {
    pub(super) fn from_word(word: &str) -> Result<Self, String> {
        match word {
            "NoClientCert" => Ok(Self::None),
            "VerifyClientCertIfGiven" => Ok(Self::IfGiven),
            "RequireAndVerifyClientCert" => Ok(Self::Required),
            "RequestClientCert" | "RequireAnyClientCert" | "RequireClientCert" => Err(format!(
                "{word} is not supported: it takes any certificate without verifying it, which keeps nobody out; \
                 use RequireAndVerifyClientCert"
            )),
            _ => Err(format!(
                "{word} is unknown; use NoClientCert, VerifyClientCertIfGiven or RequireAndVerifyClientCert"
            )),
        }
    }
}

/// Section `tls_server_config`.
pub(super) struct Tls {
    pub(super) cert: Source,
    pub(super) key: Source,
    pub(super) ca: Option<Source>,
    pub(super) auth: Auth,
    pub(super) sans: Option<Vec<String>>,
    pub(super) versions: (Version, Version),
    /// Empty for all.
    pub(super) suites: Vec<SupportedCipherSuite>,
    /// Empty for all.
    pub(super) curves: Vec<&'static dyn SupportedKxGroup>,
    pub(super) prefer_own: bool,
    pub(super) http2: bool,
}

impl Tls {
    /// The files that it names, each with its key.
    pub(super) fn files(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        let sources = [
            ("tls_server_config.cert_file", Some(&self.cert)),
            ("tls_server_config.key_file", Some(&self.key)),
            ("tls_server_config.client_ca_file", self.ca.as_ref()),
        ];
        sources.into_iter().filter_map(|(key, source)| match source? {
            Source::File(path) => Some((key, path.as_path())),
            Source::Inline(_) => None,
        })
    }

    /// Settings for the server.
    ///
    /// # Errors
    ///
    /// The key of the section that is wrong, and how; never a part of a certificate or key.
    pub(super) fn server<'a>(
        &'a self,
        content: impl Fn(&'a Path) -> &'a str,
    ) -> Result<ServerConfig, (&'static str, String)> {
        let text = |source: &'a Source| match source {
            Source::Inline(text) => text.as_str(),
            Source::File(path) => content(path),
        };
        let provider = Arc::new(self.provider());
        let mut versions: Vec<&'static SupportedProtocolVersion> = Vec::new();
        if self.versions.0 == Version::Tls12 {
            versions.push(&rustls::version::TLS12);
        }
        if self.versions.1 == Version::Tls13 {
            versions.push(&rustls::version::TLS13);
        }
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&versions)
            .map_err(|error| ("cipher_suites", error.to_string()))?;
        let (cert, key) = (self.cert.key("cert", "cert_file"), self.key.key("key", "key_file"));
        let builder = match &self.ca {
            // Without a CA nothing that is given could be verified, so nothing is asked for.
            None => builder.with_no_client_auth(),
            Some(ca) => {
                let verifier = self.verifier(text(ca), &provider);
                let verifier =
                    verifier.map_err(|what| (ca.key("client_ca", "client_ca_file"), what))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let chain = certificates(text(&self.cert)).map_err(|what| (cert, what))?;
        let own = PrivateKeyDer::from_pem_slice(text(&self.key).as_bytes())
            .map_err(|error| (key, no_pem("private key without a passphrase", &error)))?;
        let mut config = builder.with_single_cert(chain, own).map_err(|error| match error {
            Error::InconsistentKeys(_) => {
                (key, "the key is not that of the certificate".to_owned())
            }
            Error::General(_) => (key, "a key of this kind is not supported".to_owned()),
            error => (cert, useless(&error)),
        })?;
        config.ignore_client_order = self.prefer_own;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        if self.http2 {
            config.alpn_protocols.push(b"h2".to_vec());
        }
        config.alpn_protocols.push(b"http/1.1".to_vec());
        Ok(config)
    }

    fn provider(&self) -> CryptoProvider {
        let mut provider = rustls::crypto::ring::default_provider();
        if !self.suites.is_empty() {
            let newer = |suite: &SupportedCipherSuite| suite.tls13().is_some();
            provider.cipher_suites.retain(newer);
            provider.cipher_suites.extend(self.suites.iter().filter(|suite| !newer(suite)));
        }
        if !self.curves.is_empty() {
            provider.kx_groups.clone_from(&self.curves);
        }
        provider
    }

    fn verifier(
        &self,
        ca: &str,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Arc<dyn ClientCertVerifier>, String> {
        let trusted = certificates(ca)?;
        let mut roots = RootCertStore::empty();
        for certificate in &trusted {
            roots.add(certificate.clone()).map_err(|error| useless(&error))?;
        }
        let builder =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
        let builder =
            if self.auth == Auth::Required { builder } else { builder.allow_unauthenticated() };
        let chain = builder.build().map_err(|error| error.to_string())?;
        Ok(Arc::new(Verifier { chain, trusted, sans: self.sans.clone() }))
    }
}

fn certificates(text: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    match all {
        Ok(all) if all.is_empty() => Err("holds no certificate in PEM form".into()),
        Ok(all) => Ok(all),
        Err(error) => Err(no_pem("certificate", &error)),
    }
}

/// Verifies a client's chain, and that one of its names is on the list if there is one.
#[derive(Debug)]
struct Verifier {
    chain: Arc<dyn ClientCertVerifier>,
    trusted: Vec<CertificateDer<'static>>,
    sans: Option<Vec<String>>,
}

impl ClientCertVerifier for Verifier {
    fn offer_client_auth(&self) -> bool {
        self.chain.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.chain.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        match self.chain.verify_client_cert(end_entity, intermediates, now) {
            Ok(_) => {}
            // One that signed itself is often its own CA. Its dates have been checked before this error.
            Err(Error::InvalidCertificate(CertificateError::Other(why)))
                if format!("{why:?}").contains("CaUsedAsEndEntity")
                    && self.trusted.contains(end_entity) => {}
            Err(error) => return Err(error),
        }
        if let Some(allowed) = &self.sans
            && !certificate::names(end_entity)
                .unwrap_or_default()
                .iter()
                .any(|name| allowed.contains(name))
        {
            return Err(Error::InvalidCertificate(
                CertificateError::ApplicationVerificationFailure,
            ));
        }
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}
