//! Certificates for TLS tests, made anew for each test: good, expired, for another host, of another CA.

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use std::path::{Path, PathBuf};
use time::{Duration, OffsetDateTime};

/// Files of one key pair, in PEM.
#[derive(Clone, Debug)]
pub(crate) struct Leaf {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
}

/// A CA with the leaves that a TLS test asks for. The files live as long as the value.
pub(crate) struct Pki {
    folder: tempfile::TempDir,
    authority: Authority,
    /// The CA that signed all leaves but those of `other`.
    pub(crate) ca: PathBuf,
    /// A CA that signed nothing here but `other_client`.
    pub(crate) other_ca: PathBuf,
    /// For 127.0.0.1, `::1`, localhost and kubernetes; server and client usage, as etcd's peers need.
    pub(crate) server: Leaf,
    pub(crate) server_expired: Leaf,
    pub(crate) server_wrong_host: Leaf,
    pub(crate) client: Leaf,
    pub(crate) client_expired: Leaf,
    /// It ends in six days.
    pub(crate) client_ending: Leaf,
    pub(crate) other_client: Leaf,
}

type Authority = Issuer<'static, KeyPair>;

impl Pki {
    pub(crate) fn new() -> Self {
        let folder = super::temp_dir("pki");
        let at = folder.path();
        let now = OffsetDateTime::now_utc();
        let valid = (now - Duration::days(1), now + Duration::days(365));
        let expired = (now - Duration::days(400), now - Duration::days(35));
        let hosts: &[&str] = &["127.0.0.1", "::1", "localhost", "kubernetes"];
        let (ca, authority) = authority(at, "ca");
        let (other_ca, other_authority) = self::authority(at, "other-ca");
        let ending = (now - Duration::days(359), now + Duration::days(6));
        let leaf = |name, hosts: &[&str], validity| leaf(at, &authority, name, hosts, validity);
        Self {
            server: leaf("server", hosts, valid),
            server_expired: leaf("server-expired", hosts, expired),
            server_wrong_host: leaf("server-wrong-host", &["etcd.example.test"], valid),
            client: leaf("client", &[], valid),
            client_expired: leaf("client-expired", &[], expired),
            client_ending: leaf("client-ending", &[], ending),
            other_client: self::leaf(at, &other_authority, "other-client", &[], valid),
            ca,
            other_ca,
            authority,
            folder,
        }
    }

    /// Puts the files of another authority where its own are.
    #[track_caller]
    pub(crate) fn take_over(&self, other: &Self) {
        std::fs::copy(&other.ca, &self.ca).unwrap();
        for (from, to) in [(&other.server, &self.server), (&other.client, &self.client)] {
            std::fs::copy(&from.cert, &to.cert).unwrap();
            std::fs::copy(&from.key, &to.key).unwrap();
        }
    }

    /// New pairs of the same CA for server and client; each file is there at any moment, and new or old.
    pub(crate) fn renew(&self) {
        let now = OffsetDateTime::now_utc();
        let valid = (now - Duration::days(1), now + Duration::days(365));
        let hosts: &[&str] = &["127.0.0.1", "::1", "localhost", "kubernetes"];
        let aside = super::temp_dir("renewed");
        for (old, name, hosts) in [(&self.server, "server", hosts), (&self.client, "client", &[])] {
            let new = leaf(aside.path(), &self.authority, name, hosts, valid);
            std::fs::rename(new.key, &old.key).unwrap();
            std::fs::rename(new.cert, &old.cert).unwrap();
        }
    }

    /// The folder of all files.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }
}

fn authority(folder: &Path, name: &str) -> (PathBuf, Authority) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, name);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate().unwrap();
    let file = folder.join(format!("{name}.crt"));
    std::fs::write(&file, params.self_signed(&key).unwrap().pem()).unwrap();
    (file, Issuer::new(params, key))
}

fn leaf(
    folder: &Path,
    authority: &Authority,
    name: &str,
    hosts: &[&str],
    (from, until): (OffsetDateTime, OffsetDateTime),
) -> Leaf {
    let hosts: Vec<String> = hosts.iter().map(ToString::to_string).collect();
    let mut params = CertificateParams::new(hosts.clone()).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    if !hosts.is_empty() {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
    }
    (params.not_before, params.not_after) = (from, until);
    let key = KeyPair::generate().unwrap();
    let leaf =
        Leaf { cert: folder.join(format!("{name}.crt")), key: folder.join(format!("{name}.key")) };
    std::fs::write(&leaf.cert, params.signed_by(&key, authority).unwrap().pem()).unwrap();
    std::fs::write(&leaf.key, key.serialize_pem()).unwrap();
    leaf
}
