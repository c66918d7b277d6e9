//! The TLS files, read anew for each connection, in a child process.
//!
//! They lie on the disk that the agent watches, and a read of a sick disk can hang for ever. A child
//! that hangs costs nothing; the content of the last good read goes on being used, as it does when
//! a file vanishes or is half-written. One read serves all connections that start together. dqlite's are read the same
//! way, and made into other settings.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustls::ClientConfig;
use serde::{Deserialize, Serialize};

use super::tls::{self, Bad, Which};
use crate::child;
use crate::host::Host;
use crate::sample::{Batch, SampleError};

/// No file is longer than this many bytes.
const FILE_BYTES: u64 = 1 << 20;
/// How long the child may take; less than a connection may.
const READ_DEADLINE: Duration = Duration::from_secs(1);
/// How long one read serves: for connections that start in the same run, and no longer, so that new
/// files are in use at the next one.
const FRESH: Duration = Duration::from_millis(200);

/// A file as it crosses the pipe: its text, or errno and text of the error.
type Content = Result<String, Fault>;

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Fault {
    errno: Option<i32>,
    text: String,
}

/// The child's side: reads the files it is asked for.
///
/// # Errors
///
/// When the question cannot be read or answered.
pub fn run_read() -> io::Result<()> {
    child::answer(|paths: Vec<PathBuf>| -> Vec<Content> { read_all(&paths) })
}

fn read_all(paths: &[PathBuf]) -> Vec<Content> {
    paths.iter().map(|path| read_one(path)).collect()
}

fn read_one(path: &Path) -> Content {
    let fault = |error: &io::Error| Fault { errno: error.raw_os_error(), text: error.to_string() };
    let useless = |text: String| Err(Fault { errno: None, text });
    let file = std::fs::File::open(path).map_err(|error| fault(&error))?;
    let mut bytes = Vec::new();
    file.take(FILE_BYTES + 1).read_to_end(&mut bytes).map_err(|error| fault(&error))?;
    if bytes.len() as u64 > FILE_BYTES {
        return useless(format!("is longer than {FILE_BYTES} bytes"));
    }
    if bytes.is_empty() {
        return useless("is empty".into());
    }
    // The error holds the bytes, which may be a key: it must not be printed.
    String::from_utf8(bytes).or_else(|_| useless("is no PEM text".into()))
}

/// Who reads.
#[derive(Debug)]
enum Reader {
    Child(child::Slot),
    #[cfg(test)]
    Here,
}

impl Reader {
    async fn read(&self, paths: &[PathBuf]) -> Result<Vec<Content>, String> {
        match self {
            Self::Child(slot) => {
                slot.ask(&["read"], &paths, READ_DEADLINE).await.map_err(|error| error.to_string())
            }
            #[cfg(test)]
            Self::Here => Ok(read_all(paths)),
        }
    }
}

/// Why there are no TLS settings, or why they are old ones.
#[derive(Debug, Clone)]
pub struct Problem {
    path: PathBuf,
    /// The key of the configuration that sets another file.
    key: &'static str,
    /// The kind of error, unless it is the content that is wrong.
    kind: Option<io::ErrorKind>,
    what: String,
}

impl Problem {
    /// As a failed part of a run.
    pub fn to_error(&self) -> SampleError {
        let what = format!("{} ({})", self.what, self.key);
        match self.kind {
            Some(io::ErrorKind::PermissionDenied) => SampleError::Permission(format!(
                "{}: {what}; it takes root or CAP_DAC_READ_SEARCH, and `controlplane-exporter inspect` says how",
                self.path.display()
            )),
            Some(kind) => SampleError::read(&self.path, io::Error::new(kind, what)),
            None => SampleError::parse(&self.path, what),
        }
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {} ({})", self.path.display(), self.what, self.key)
    }
}

/// What makes settings of the texts of a CA, and of a certificate and its key.
type Make = fn(&str, Option<(&str, &str)>) -> Result<ClientConfig, Bad>;

/// The TLS files of one etcd or dqlite.
#[derive(Debug)]
pub struct TlsFiles {
    reader: Reader,
    ca: Option<PathBuf>,
    own: Option<(PathBuf, PathBuf)>,
    /// The key of the configuration that sets the CA.
    ca_key: &'static str,
    make: Make,
    state: tokio::sync::Mutex<State>,
    /// Apart from the state, so that it can be asked for while a read hangs.
    problem: Mutex<Option<Problem>>,
}

#[derive(Debug, Default)]
struct State {
    /// When the files were last read.
    read: Option<Instant>,
    /// What they held, and what that made.
    texts: Vec<String>,
    good: Option<Arc<ClientConfig>>,
}

impl TlsFiles {
    /// The files with these paths of the host.
    pub fn new(
        host: &Host,
        ca: Option<PathBuf>,
        cert: Option<PathBuf>,
        key: Option<PathBuf>,
    ) -> Self {
        let own = cert.zip(key).map(|(cert, key)| (host.path(cert), host.path(key)));
        Self {
            reader: Reader::Child(child::Slot::default()),
            ca: ca.map(|ca| host.path(ca)),
            own,
            ca_key: "ca_file",
            make: tls::client_config,
            state: tokio::sync::Mutex::default(),
            problem: Mutex::default(),
        }
    }

    /// The same files, of which `make` makes the settings.
    #[must_use]
    pub fn made_by(mut self, make: Make) -> Self {
        self.make = make;
        self
    }

    /// The same files, whose CA is set by another key of the configuration.
    #[must_use]
    pub fn ca_set_by(mut self, key: &'static str) -> Self {
        self.ca_key = key;
        self
    }

    /// The TLS settings of now.
    ///
    /// # Errors
    ///
    /// When the files cannot be used and never could.
    pub async fn config(&self) -> Result<Arc<ClientConfig>, Problem> {
        let mut state = self.state.lock().await;
        if state.read.is_none_or(|read| read.elapsed() > FRESH) {
            let problem = self.refresh(&mut state).await.err();
            state.read = Some(Instant::now());
            *self.problem.lock().unwrap_or_else(PoisonError::into_inner) = problem;
        }
        match &state.good {
            Some(config) => Ok(Arc::clone(config)),
            None => Err(self.problem().unwrap_or_else(|| self.at(Which::Ca, "was not read"))),
        }
    }

    /// What is wrong with the files although older content may still serve; looked at anew, since
    /// an open connection would not notice that it has been mended.
    pub(crate) async fn check(&self) -> Option<Problem> {
        self.problem()?;
        // What is wrong now is in the problem.
        drop(self.config().await);
        self.problem()
    }

    /// Tells what is wrong with the files: as a failed part of the run or, when it kept the sampler from asking at all
    /// (`blind`), as the failure of the run.
    ///
    /// # Errors
    ///
    /// [`SampleError::Blind`], when blind.
    pub async fn tell(&self, blind: bool, out: &mut Batch) -> Result<(), SampleError> {
        match self.check().await.map(|problem| problem.to_error()) {
            Some(error) if blind => return Err(SampleError::Blind(Box::new(error))),
            Some(error) => out.fail(error),
            None => {}
        }
        Ok(())
    }

    fn problem(&self) -> Option<Problem> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn refresh(&self, state: &mut State) -> Result<(), Problem> {
        let Some(ca) = &self.ca else {
            let kind = Some(io::ErrorKind::NotFound);
            let what = "none is set or found, and an https endpoint needs one";
            return Err(Problem { kind, path: "the CA".into(), ..self.at(Which::Ca, what) });
        };
        let mut paths = vec![ca.clone()];
        if let Some((cert, key)) = &self.own {
            paths.extend([cert.clone(), key.clone()]);
        }
        // Which of them holds the child up cannot be told.
        let contents = self.reader.read(&paths).await.map_err(|error| {
            self.at(Which::Ca, &format!("it and the files beside it were not read: {error}"))
        })?;
        if contents.len() != paths.len() {
            return Err(self.at(Which::Ca, "the child process answered nonsense"));
        }
        let mut texts = Vec::new();
        for (which, content) in [Which::Ca, Which::Cert, Which::Key].into_iter().zip(contents) {
            match content {
                Ok(text) => texts.push(text),
                Err(Fault { errno, text }) => {
                    let kind = errno.map(|errno| io::Error::from_raw_os_error(errno).kind());
                    return Err(Problem { kind, ..self.at(which, &text) });
                }
            }
        }
        if state.good.is_some() && state.texts == texts {
            return Ok(());
        }
        let own = texts.get(1).zip(texts.get(2)).map(|(cert, key)| (&**cert, &**key));
        let config = (self.make)(&texts[0], own).map_err(|bad| self.at(bad.which, &bad.what))?;
        state.good = Some(Arc::new(config));
        state.texts = texts;
        Ok(())
    }

    fn at(&self, which: Which, what: &str) -> Problem {
        let (key, path) = match (which, &self.own) {
            (Which::Cert, Some((cert, _))) => ("cert_file", Some(cert)),
            (Which::Key, Some((_, key))) => ("key_file", Some(key)),
            _ => (self.ca_key, self.ca.as_ref()),
        };
        let path = path.cloned().unwrap_or_default();
        Problem { path, key, kind: None, what: what.to_owned() }
    }

    /// Reads in this process: the test program has no command `read`.
    #[cfg(test)]
    pub(crate) fn read_here(mut self) -> Self {
        self.reader = Reader::Here;
        self
    }

    /// Where the CA is.
    #[cfg(test)]
    pub(crate) fn ca(&self) -> Option<&Path> {
        self.ca.as_deref()
    }

    /// Forgets when the files were read.
    #[cfg(test)]
    pub(crate) async fn stale(&self) {
        self.state.lock().await.read = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(dir: &Path) -> TlsFiles {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["localhost".into()]).unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        std::fs::write(dir.join("ca.crt"), &pem).unwrap();
        std::fs::write(dir.join("c.crt"), &pem).unwrap();
        std::fs::write(dir.join("c.key"), key.serialize_pem()).unwrap();
        let file = |name: &str| Some(PathBuf::from("/").join(name));
        TlsFiles::new(&Host::at(dir), file("ca.crt"), file("c.crt"), file("c.key")).read_here()
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_used_is_named_with_its_key_and_what_is_wrong_with_it() {
        type Spoil = fn(&Path);
        let cases: [(&str, Spoil, &str, &str); 8] = [
            (
                "c.key",
                |path| std::fs::remove_file(path).unwrap(),
                "not_found",
                "reading /c.key: No such file or directory (os error 2) (key_file)",
            ),
            (
                "c.crt",
                |path| {
                    std::fs::remove_file(path).unwrap();
                    std::fs::create_dir(path).unwrap();
                },
                "read",
                "reading /c.crt: Is a directory (os error 21) (cert_file)",
            ),
            (
                "ca.crt",
                |path| std::fs::write(path, "").unwrap(),
                "parse",
                "parsing /ca.crt: is empty (ca_file)",
            ),
            (
                "ca.crt",
                |path| std::fs::write(path, b"\xff\xfe").unwrap(),
                "parse",
                "parsing /ca.crt: is no PEM text (ca_file)",
            ),
            (
                "c.crt",
                |path| std::fs::write(path, "a certificate").unwrap(),
                "parse",
                "parsing /c.crt: holds no certificate in PEM form (cert_file)",
            ),
            (
                "c.crt",
                |path| {
                    let text = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
                    std::fs::write(path, text).unwrap();
                },
                "parse",
                "parsing /c.crt: holds no certificate that can be used: BadEncoding (cert_file)",
            ),
            (
                "c.key",
                |path| std::fs::write(path, "a key").unwrap(),
                "parse",
                "parsing /c.key: holds no private key without a passphrase in PEM form: nothing of \
                 the kind in it (key_file)",
            ),
            (
                "c.key",
                |path| {
                    let other = rcgen::KeyPair::generate().unwrap();
                    std::fs::write(path, other.serialize_pem()).unwrap();
                },
                "parse",
                "parsing /c.key: the key is not that of the client certificate (key_file)",
            ),
        ];
        for (file, spoil, reason, text) in cases {
            let dir = tempfile::tempdir().unwrap();
            let files = files(dir.path());
            spoil(&dir.path().join(file));
            let problem = files.config().await.unwrap_err();
            let root = dir.path().display().to_string();
            assert_eq!(problem.to_error().to_string().replace(&root, ""), text);
            assert_eq!(problem.to_error().reason(), reason, "{text}");
            assert!(text.ends_with(&problem.to_string().replace(&root, "")), "{problem}");
        }
        let none = TlsFiles::new(&Host::at("/"), None, None, None).read_here();
        let problem = none.config().await.unwrap_err();
        assert_eq!(problem.to_error().reason(), "not_found");
        assert_eq!(
            problem.to_string(),
            "the CA: none is set or found, and an https endpoint needs one (ca_file)"
        );
    }

    #[tokio::test]
    async fn the_last_good_content_serves_on_and_the_problem_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let files = files(dir.path());
        let first = files.config().await.unwrap();
        assert!(files.check().await.is_none());
        std::fs::write(dir.path().join("c.key"), "half a ke").unwrap();
        files.stale().await;
        assert!(Arc::ptr_eq(&first, &files.config().await.unwrap()));
        assert!(files.check().await.unwrap().to_string().contains("/c.key: "));
        self::files(dir.path());
        files.stale().await;
        assert!(files.check().await.is_none(), "mended");
    }

    #[tokio::test]
    async fn a_rotated_pair_takes_effect_and_an_unchanged_one_is_not_parsed_again() {
        let dir = tempfile::tempdir().unwrap();
        let mine = files(dir.path());
        let first = mine.config().await.unwrap();
        mine.stale().await;
        assert!(Arc::ptr_eq(&first, &mine.config().await.unwrap()));
        files(dir.path());
        mine.stale().await;
        assert!(!Arc::ptr_eq(&first, &mine.config().await.unwrap()));
    }

    #[test]
    fn a_file_that_never_ends_is_not_read_to_its_end() {
        let error = read_one(Path::new("/dev/zero")).unwrap_err();
        assert!(error.text.contains("longer than"), "{}", error.text);
    }
}
