//! TLS as dqlite's members speak it: one self-signed certificate that all of them show, servers and clients.
//!
//! It names only the first member's host, and a replacement made by hand is often marked as a CA. So the certificate
//! is compared as a whole instead of by its name and issuer: who shows the same one and signs with its key is a
//! member. That it has expired is still told.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};

use crate::etcd::tls::{Bad, Which, bad, certificates, shows, useless};

/// What a client trusts and shows. Like [`crate::etcd::tls::client_config`], with the cluster's one certificate.
///
/// # Errors
///
/// When a text is no PEM of the right kind, or key and certificate do not belong together.
pub fn client_config(ca: &str, own: Option<(&str, &str)>) -> Result<ClientConfig, Bad> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let trusted = certificates(ca, Which::Ca)?;
    let mut roots = RootCertStore::empty();
    for certificate in &trusted {
        roots.add(certificate.clone()).map_err(|error| bad(Which::Ca, useless(&error)))?;
    }
    let dated = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .build()
        .map_err(|error| bad(Which::Ca, error.to_string()))?;
    let verifier = Same { trusted, dated, provider: Arc::clone(&provider) };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| bad(Which::Ca, error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = shows(builder, own)?;
    // The name in the certificate is another host's, so sending ours would help nobody.
    config.enable_sni = false;
    Ok(config)
}

/// Takes the trusted certificates themselves, and no other.
#[derive(Debug)]
struct Same {
    trusted: Vec<CertificateDer<'static>>,
    /// For the dates in a certificate.
    dated: Arc<WebPkiServerVerifier>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Same {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        use CertificateError as C;
        if !self.trusted.iter().any(|trusted| trusted == end_entity) {
            return Err(C::UnknownIssuer.into());
        }
        let checked = self.dated.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        );
        match checked {
            Err(
                error @ Error::InvalidCertificate(
                    C::Expired
                    | C::ExpiredContext { .. }
                    | C::NotValidYet
                    | C::NotValidYetContext { .. },
                ),
            ) => Err(error),
            // Another name, a CA's certificate: it is the right one all the same.
            _ => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let known = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, signed, known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let known = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, signed, known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::super::sample;
    use super::*;
    use crate::etcd::Reason;
    use rustls::pki_types::PrivateKeyDer;
    use rustls::pki_types::pem::PemObject;

    struct Pair {
        cert: String,
        key: String,
    }

    fn pair(change: impl FnOnce(&mut rcgen::CertificateParams)) -> Pair {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["node-one".into()]).unwrap();
        change(&mut params);
        Pair { cert: params.self_signed(&key).unwrap().pem(), key: key.serialize_pem() }
    }

    /// A handshake in memory between a client that has `ours` and a server that shows `theirs` and wants a client
    /// certificate of its own kind; the client's error.
    fn shake(ours: &Pair, theirs: &Pair) -> Result<(), Error> {
        let config = client_config(&ours.cert, Some((&ours.cert, &ours.key))).unwrap();
        let name = ServerName::try_from("10.0.0.7").unwrap();
        let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let chain = certificates(&theirs.cert, Which::Cert).unwrap();
        let key = PrivateKeyDer::from_pem_slice(theirs.key.as_bytes()).unwrap();
        let server = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let mut server = rustls::ServerConnection::new(Arc::new(server)).unwrap();
        for _ in 0..10 {
            let mut bytes = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut bytes).unwrap();
            }
            server.read_tls(&mut &bytes[..]).unwrap();
            drop(server.process_new_packets());
            bytes.clear();
            while server.wants_write() {
                server.write_tls(&mut bytes).unwrap();
            }
            client.read_tls(&mut &bytes[..]).unwrap();
            client.process_new_packets()?;
        }
        assert!(!client.is_handshaking());
        client.writer().write_all(b"x").unwrap();
        drop(client.reader().read(&mut [0; 1]));
        Ok(())
    }

    #[test]
    fn the_one_certificate_is_taken_for_every_host_and_as_a_ca_too() {
        let plain = pair(|_| {});
        assert_eq!(shake(&plain, &plain), Ok(()));
        let ca = pair(|params| {
            params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        });
        assert_eq!(shake(&ca, &ca), Ok(()));
    }

    #[test]
    fn another_certificate_of_the_same_names_is_not_trusted() {
        let (ours, theirs) = (pair(|_| {}), pair(|_| {}));
        assert_eq!(Reason::of_tls(&shake(&ours, &theirs).unwrap_err()), Reason::TlsUntrusted);
    }

    #[test]
    fn that_it_has_expired_is_told_of_a_ca_too() {
        for is_ca in [false, true] {
            let old = pair(|params| {
                params.not_after = rcgen::date_time_ymd(2020, 1, 1);
                if is_ca {
                    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
                }
            });
            assert_eq!(Reason::of_tls(&shake(&old, &old).unwrap_err()), Reason::TlsExpired);
        }
    }

    #[test]
    fn the_certificate_that_microk8s_makes_can_be_used() {
        let cert = String::from_utf8(sample("cluster.crt")).unwrap();
        client_config(&cert, None).unwrap();
        assert_eq!(client_config("garbage", None).unwrap_err().which, Which::Ca);
        let other = pair(|_| {});
        let mixed = client_config(&cert, Some((&cert, &other.key))).unwrap_err();
        assert_eq!((mixed.which, mixed.what.contains("not that of")), (Which::Key, true));
    }
}
