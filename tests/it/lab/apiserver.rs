//! Something that answers as an API server does: TLS by rustls, client certificates asked for and not demanded, a refusal
//! without one, the texts of kube-apiserver, and faults on demand. It is no API server.

use super::pki::{Leaf, Pki};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What it does with a connection or a request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Mood {
    Well,
    /// etcd does not answer it.
    NoEtcd,
    /// It accepts and says nothing.
    Mute,
    /// It finishes the handshake and says nothing more.
    MuteAfterTls,
    /// It thinks for so long.
    Slow(Duration),
    /// A body without end.
    Endless,
    /// It sends elsewhere.
    Redirect,
    /// It closes the connection within its answer.
    Broken,
}

const WELL: &str = "[+]ping ok\n[+]log ok\n[+]etcd ok\n[+]etcd-readiness ok\n[+]informer-sync ok\n\
                    [+]poststarthook/rbac/bootstrap-roles ok\n[+]shutdown ok\nreadyz check passed\n";
const NO_ETCD: &str = "[+]ping ok\n[+]log ok\n[-]etcd failed: reason withheld\n[-]etcd-readiness failed: reason withheld\n\
                       [+]informer-sync ok\n[-]poststarthook/rbac/bootstrap-roles failed: reason withheld\n[+]shutdown ok\n\
                       readyz check failed\n";

pub(crate) struct ApiServer {
    address: SocketAddr,
    mood: Arc<Mutex<Mood>>,
    stop: Arc<AtomicBool>,
    /// Whether a request came with a certificate, for each request.
    asked: Arc<Mutex<Vec<(String, bool)>>>,
}

impl ApiServer {
    /// With this certificate; clients are known by the CA of `pki`.
    pub(crate) fn start(pki: &Pki, own: &Leaf) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let server = Self {
            address: listener.local_addr().expect("an address"),
            mood: Arc::new(Mutex::new(Mood::Well)),
            stop: Arc::default(),
            asked: Arc::default(),
        };
        let config = Arc::new(config(&pki.ca, own));
        let (mood, stop) = (Arc::clone(&server.mood), Arc::clone(&server.stop));
        let asked = Arc::clone(&server.asked);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let (mood, config) = (*mood.lock().unwrap(), Arc::clone(&config));
                let (asked, stop) = (Arc::clone(&asked), Arc::clone(&stop));
                // What the other side thinks of it is what is tested.
                std::thread::spawn(move || drop(serve(stream, config, mood, &asked, &stop)));
            }
        });
        server
    }

    pub(crate) fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    pub(crate) fn set(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    /// The requests so far: the path, and whether a client certificate came with it.
    pub(crate) fn asked(&self) -> Vec<(String, bool)> {
        self.asked.lock().unwrap().clone()
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        drop(TcpStream::connect(self.address));
    }
}

fn config(ca: &Path, own: &Leaf) -> ServerConfig {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca).expect("a CA") {
        roots.add(certificate.expect("PEM")).expect("a CA");
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()
            .expect("a verifier");
    let chain = CertificateDer::pem_file_iter(&own.cert).expect("a certificate");
    let chain = chain.collect::<Result<_, _>>().expect("PEM");
    let key = PrivateKeyDer::from_pem_file(&own.key).expect("a key");
    ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .expect("a pair")
}

fn serve(
    stream: TcpStream,
    config: Arc<ServerConfig>,
    mood: Mood,
    asked: &Mutex<Vec<(String, bool)>>,
    stop: &AtomicBool,
) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.set_write_timeout(Some(Duration::from_secs(10)))?;
    let wait = || {
        while !stop.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    if mood == Mood::Mute {
        wait();
        return Ok(());
    }
    let connection = ServerConnection::new(config).map_err(std::io::Error::other)?;
    let mut stream = StreamOwned::new(connection, stream);
    let mut path = String::new();
    {
        let mut reader = BufReader::new(&mut stream);
        let mut line = String::new();
        while reader.read_line(&mut line)? > 0 && line != "\r\n" {
            if path.is_empty() {
                line.split(' ').nth(1).unwrap_or_default().clone_into(&mut path);
            }
            line.clear();
        }
    }
    let known = stream.conn.peer_certificates().is_some_and(|chain| !chain.is_empty());
    asked.lock().unwrap().push((path.clone(), known));
    let answer = |status: &str, body: &str| {
        let length = body.len();
        format!(
            "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n\r\n{body}"
        )
    };
    let whole = match mood {
        Mood::MuteAfterTls => {
            wait();
            return Ok(());
        }
        _ if !known => answer("401 Unauthorized", "{\"kind\":\"Status\",\"code\":401}"),
        Mood::Well | Mood::Mute => {
            answer("200 OK", if path.contains("verbose") { WELL } else { "ok" })
        }
        Mood::NoEtcd => answer("500 Internal Server Error", NO_ETCD),
        Mood::Slow(delay) => {
            std::thread::sleep(delay);
            answer("200 OK", WELL)
        }
        Mood::Redirect => {
            "HTTP/1.1 302 Found\r\nLocation: https://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"
                .to_owned()
        }
        Mood::Broken => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbro")?;
            return stream.flush();
        }
        Mood::Endless => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
            while !stop.load(Ordering::Relaxed) {
                stream.write_all(b"10\r\n0123456789abcdef\r\n")?;
            }
            return Ok(());
        }
    };
    stream.write_all(whole.as_bytes())?;
    stream.conn.send_close_notify();
    stream.flush()
}
