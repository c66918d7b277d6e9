//! Who may see the pages: the rules of the web configuration file, in front of every page of the port.
//!
//! The rules lie in memory, and no request waits for a file. A task reads the file and its certificates again every
//! [`EVERY`], in a child process, since their disk may be sick; so does a reload. What cannot be read or makes no
//! sense leaves the last good rules in force. A re-read never opens what was locked: half of a file, caught while an editor
//! writes it, is still a valid file, only without its passwords.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use axum::extract::Request;
use axum::http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::ServerConfig;
use tokio::sync::watch;
use tokio::time::Instant;

use super::config::{Files, Rate};
use super::password::{Answer, Hash, Passwords};
use super::tls::Auth;
use crate::child;
use crate::config::ConfigError;
use crate::store::Store;

/// How often the file is read again.
const EVERY: Duration = Duration::from_secs(15);
/// How long that may take.
const READ_DEADLINE: Duration = Duration::from_secs(3);
/// An unknown user's password is compared with this, at the cost of the known ones. Nothing is known that gives it.
const NOBODY: &str = "nNQTCcJLa4EMpryM0hxwj.zh3kCRAfXhOP/9CEox6lzABKJMeEtVC";

/// The child's side of a re-read.
///
/// # Errors
///
/// When the question cannot be read or answered.
pub fn run_read() -> std::io::Result<()> {
    child::answer(|file: PathBuf| Files::read(&file).map_err(|error| error.to_string()))
}

/// Checks a web configuration file and what it names.
///
/// # Errors
///
/// At the first thing that is wrong, with file and key.
pub fn check(file: &Path) -> Result<(), ConfigError> {
    Rules::new(Files::read(file)?, file).map(drop)
}

/// See the module's page.
pub struct Lock {
    file: PathBuf,
    rules: RwLock<Arc<Rules>>,
    passwords: Passwords,
    bucket: Mutex<Bucket>,
    /// One re-read at a time, and why the last one failed.
    reading: tokio::sync::Mutex<Option<String>>,
    slot: child::Slot,
}

/// What is in force.
struct Rules {
    files: Files,
    tls: Option<Arc<ServerConfig>>,
    needs_certificate: bool,
    /// Only certificates with a name of a list are let in.
    needs_name: bool,
    headers: Vec<(HeaderName, HeaderValue)>,
    users: BTreeMap<String, String>,
    /// The hash that stands for those of unknown users.
    nobody: String,
    rate: Option<Rate>,
}

impl Rules {
    fn new(files: Files, file: &Path) -> Result<Self, ConfigError> {
        let settings = files.settings(file)?;
        let tls = settings.tls.as_ref().map(|tls| tls.server(|path| files.named(path))).transpose();
        let tls = tls.map_err(|(key, what)| ConfigError {
            origin: file.display().to_string(),
            key: format!("tls_server_config.{key}"),
            what,
        })?;
        // The cost stands in the same place in every hash, with two digits.
        let cost = settings.users.values().filter_map(|hash| hash.get(4..6)).max().unwrap_or("10");
        let nobody = format!("$2y${cost}${NOBODY}");
        let locks = settings.tls.as_ref();
        let needs_certificate = locks.is_some_and(|tls| tls.auth == Auth::Required);
        let needs_name = locks.is_some_and(|tls| tls.sans.is_some());
        let (headers, users, rate) = (settings.headers, settings.users, settings.rate);
        let tls = tls.map(Arc::new);
        Ok(Self { files, tls, needs_certificate, needs_name, headers, users, nobody, rate })
    }

    /// What these rules would leave open although `self` locks it.
    fn opened_by(&self, new: &Self) -> Option<&'static str> {
        if self.tls.is_some() && new.tls.is_none() {
            Some("TLS")
        } else if self.needs_certificate && !new.needs_certificate {
            Some("client certificates")
        } else if self.needs_name && !new.needs_name {
            Some("the list of names (client_allowed_sans)")
        } else if !self.users.is_empty() && new.users.is_empty() {
            Some("passwords")
        } else {
            None
        }
    }
}

impl Lock {
    /// Reads the file for the first time.
    ///
    /// # Errors
    ///
    /// When the file or what it names cannot be read or makes no sense; or the kernel gives no thread.
    pub fn open(file: &Path) -> Result<Arc<Self>, ConfigError> {
        let rules = Rules::new(Files::read(file)?, file)?;
        let passwords = Passwords::new().map_err(|error| ConfigError {
            origin: file.display().to_string(),
            key: "basic_auth_users".into(),
            what: format!("passwords cannot be checked: {error}"),
        })?;
        let bucket = Mutex::new(Bucket::full(rules.rate));
        let (file, rules) = (file.to_owned(), RwLock::new(Arc::new(rules)));
        let (reading, slot) = (tokio::sync::Mutex::default(), child::Slot::default());
        Ok(Arc::new(Self { file, rules, passwords, bucket, reading, slot }))
    }

    fn rules(&self) -> Arc<Rules> {
        Arc::clone(&self.rules.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// What a TLS client is met with; none when the port speaks plain HTTP.
    pub(super) fn tls(&self) -> Option<Arc<ServerConfig>> {
        self.rules().tls.clone()
    }

    /// Reads the file again, in a child process.
    ///
    /// # Errors
    ///
    /// Why the old rules stay.
    pub async fn reread(&self, store: &Store) -> Result<(), String> {
        let mut failed = self.reading.lock().await;
        let read =
            self.slot.ask::<Result<Files, String>>(&["web-config"], &self.file, READ_DEADLINE);
        let read = read.await.map_err(|error| format!("{}: {error}", self.file.display()));
        let ended = read.and_then(|read| read).and_then(|files| self.put(files));
        store.statuses().web_reloaded(ended.is_ok());
        // Said when it changes: a disk that hangs would say it all the time.
        match &ended {
            Err(error) if failed.as_ref() != Some(error) => {
                tracing::error!(error, "the web configuration is wrong; the old one stays");
            }
            Ok(()) if failed.is_some() => tracing::info!("the web configuration is right again"),
            _ => {}
        }
        if ended.as_ref().err() != failed.as_ref() {
            store.touch();
        }
        *failed = ended.clone().err();
        ended
    }

    fn put(&self, files: Files) -> Result<(), String> {
        let old = self.rules();
        if old.files == files {
            return Ok(());
        }
        let new = Rules::new(files, &self.file).map_err(|error| error.to_string())?;
        if let Some(what) = old.opened_by(&new) {
            return Err(format!(
                "{}: {what} can be taken away by a restart only",
                self.file.display()
            ));
        }
        if new.rate != old.rate {
            *self.bucket.lock().unwrap_or_else(PoisonError::into_inner) = Bucket::full(new.rate);
        }
        *self.rules.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(new);
        tracing::info!("web configuration read again");
        Ok(())
    }

    /// Reads the file again and again, until `stop` turns true.
    pub async fn keep_fresh(self: Arc<Self>, store: Arc<Store>, mut stop: watch::Receiver<bool>) {
        store.statuses().web_reloaded(true);
        loop {
            tokio::select! {
                () = tokio::time::sleep(EVERY) => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
            tokio::select! {
                // It has been logged and exported.
                ended = self.reread(&store) => drop(ended),
                _ = stop.wait_for(|stop| *stop) => return,
            }
        }
    }

    /// Lets a request in, or answers for the pages.
    pub(super) async fn guard(self: Arc<Self>, request: Request, next: Next) -> Response {
        let rules = self.rules();
        if let Some(rate) = rules.rate
            && !self
                .bucket
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take(rate, Instant::now())
        {
            return (StatusCode::TOO_MANY_REQUESTS, "Too Many Requests\n").into_response();
        }
        let refused = self.refusal(&rules, request.headers()).await;
        let mut response = match refused {
            None => next.run(request).await,
            Some(response) => response,
        };
        for (name, value) in &rules.headers {
            response.headers_mut().insert(name, value.clone());
        }
        response
    }

    /// The answer to a request without a good password.
    async fn refusal(&self, rules: &Rules, headers: &HeaderMap) -> Option<Response> {
        if rules.users.is_empty() {
            return None;
        }
        let answer = match credentials(headers) {
            None => Answer::Wrong,
            Some((user, password)) => {
                let hash = match rules.users.get(&user) {
                    Some(hash) => Hash::Of(hash),
                    None => Hash::Unknown(&rules.nobody),
                };
                self.passwords.check(&user, &password, hash).await
            }
        };
        match answer {
            Answer::Right => None,
            Answer::Wrong => {
                let mut response = (StatusCode::UNAUTHORIZED, "Unauthorized\n").into_response();
                response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Basic"));
                Some(response)
            }
            Answer::Busy => {
                let text = "too many passwords are being checked; try again later\n";
                Some((StatusCode::SERVICE_UNAVAILABLE, text).into_response())
            }
        }
    }
}

/// User and password of `Authorization: Basic …`.
fn credentials(headers: &HeaderMap) -> Option<(String, Vec<u8>)> {
    let (scheme, encoded) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let both = STANDARD.decode(encoded.trim()).ok()?;
    let colon = both.iter().position(|byte| *byte == b':')?;
    let user = String::from_utf8(both[..colon].to_vec()).ok()?;
    Some((user, both[colon + 1..].to_vec()))
}

/// Tokens that come back one by one.
#[derive(Debug)]
struct Bucket {
    tokens: f64,
    counted: Instant,
}

impl Bucket {
    fn full(rate: Option<Rate>) -> Self {
        Self { tokens: f64::from(rate.map_or(0, |rate| rate.burst)), counted: Instant::now() }
    }

    /// Takes a token, if there is one.
    fn take(&mut self, rate: Rate, now: Instant) -> bool {
        let new = now.duration_since(self.counted).as_secs_f64() / rate.interval.as_secs_f64();
        self.tokens = (self.tokens + new).min(f64::from(rate.burst));
        self.counted = now;
        let taken = self.tokens >= 1.0;
        if taken {
            self.tokens -= 1.0;
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::Router;
    use axum::body::Body;
    use tower::ServiceExt;

    /// Of `fine`.
    fn hash() -> String {
        bcrypt::hash_with_salt("fine", 4, *b"sixteen byte it!")
            .unwrap()
            .format_for_version(bcrypt::Version::TwoY)
    }

    fn lock(text: &str) -> (tempfile::TempDir, Arc<Lock>) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("web.yml");
        std::fs::write(&file, text).unwrap();
        let lock = Lock::open(&file).unwrap();
        (folder, lock)
    }

    async fn ask(lock: &Arc<Lock>, authorization: Option<&str>) -> Response {
        let pages = Router::new().route("/", axum::routing::get(async || "figures"));
        let mut request = Request::new(Body::empty());
        if let Some(value) = authorization {
            request.headers_mut().insert(AUTHORIZATION, value.parse().unwrap());
        }
        crate::web::locked(pages, lock).oneshot(request).await.unwrap()
    }

    fn basic(user: &str, password: &str) -> String {
        format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
    }

    #[tokio::test]
    async fn only_the_right_password_opens_and_every_answer_carries_the_headers() {
        let (_folder, lock) = lock(&format!(
            "basic_auth_users: {{alice: {}}}\nhttp_server_config: {{headers: {{X-Frame-Options: deny}}}}",
            hash()
        ));
        let good = basic("alice", "fine");
        for (authorization, status) in [
            (None, 401),
            (Some(good.as_str()), 200),
            (Some(&*good.replace("Basic", "bAsIc")), 200),
            (Some(&*good.replace("Basic", "Bearer")), 401),
            (Some(&*basic("alice", "fone")), 401),
            (Some(&*basic("alice", "")), 401),
            (Some(&*basic("alice", "fine:")), 401),
            (Some(&*basic("mallory", "fine")), 401),
            (Some(&*basic("", "fine")), 401),
            (Some("Basic"), 401),
            (Some("Basic "), 401),
            (Some("Basic !!!!"), 401),
            (Some(&*format!("Basic {}", STANDARD.encode("alice"))), 401),
            (Some(&*format!("Basic {}", STANDARD.encode([255, 58, 255]))), 401),
        ] {
            let response = ask(&lock, authorization).await;
            assert_eq!(response.status(), status, "{authorization:?}");
            assert_eq!(response.headers()["x-frame-options"], "deny");
            let asks = response.headers().get(WWW_AUTHENTICATE).map(HeaderValue::as_bytes);
            assert_eq!(asks, (status == 401).then_some(b"Basic".as_slice()), "{authorization:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_bucket_gives_its_burst_and_then_one_token_each_interval() {
        let (_folder, lock) = lock("rate_limit: {interval: 10s, burst: 2}");
        let mut statuses = Vec::new();
        for seconds in [0, 0, 0, 9, 2, 0, 100, 0, 0] {
            tokio::time::advance(Duration::from_secs(seconds)).await;
            statuses.push(ask(&lock, None).await.status().as_u16());
        }
        assert_eq!(statuses, [200, 200, 429, 429, 200, 429, 200, 200, 429]);
    }

    #[tokio::test]
    async fn without_a_burst_nobody_gets_in_and_without_an_interval_everybody() {
        let (_folder, never) = lock("rate_limit: {interval: 1s, burst: 0}");
        assert_eq!(ask(&never, None).await.status(), 429);
        let (_folder, always) = lock("rate_limit: {interval: 0, burst: 0}");
        assert_eq!(ask(&always, None).await.status(), 200);
    }

    #[tokio::test]
    async fn new_rules_are_taken_but_not_those_that_take_a_lock_away() {
        let (folder, lock) = lock(&format!("basic_auth_users: {{alice: {}}}", hash()));
        let file = folder.path().join("web.yml");
        let put = |text: &str| {
            std::fs::write(&file, text).unwrap();
            Files::read(&file).map_err(|error| error.to_string()).and_then(|files| lock.put(files))
        };
        assert_eq!(
            put(""),
            Err(format!("{}: passwords can be taken away by a restart only", file.display()))
        );
        assert_eq!(ask(&lock, None).await.status(), 401);
        assert!(
            put("basic_auth_users: {alice: broken}")
                .unwrap_err()
                .contains("basic_auth_users.alice")
        );
        assert_eq!(ask(&lock, Some(&basic("alice", "fine"))).await.status(), 200);
        put(&format!("basic_auth_users: {{bob: {}}}", hash())).unwrap();
        assert_eq!(ask(&lock, Some(&basic("alice", "fine"))).await.status(), 401);
        assert_eq!(ask(&lock, Some(&basic("bob", "fine"))).await.status(), 200);
    }

    #[test]
    fn nobody_has_a_hash_of_the_same_cost_as_the_others() {
        let file = Path::new("/web.yml");
        let rules = |text: &str| {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("web.yml");
            std::fs::write(&path, text).unwrap();
            Rules::new(Files::read(&path).unwrap(), file).unwrap()
        };
        for cost in [4, 12, 18] {
            let users = format!(
                "basic_auth_users: {{a: {}}}",
                hash().replace("$04", &format!("${cost:02}"))
            );
            let parts: bcrypt::HashParts = rules(&users).nobody.parse().unwrap();
            assert_eq!(parts.get_cost(), cost);
        }
        assert_eq!(rules("").nobody.len(), 60);
    }
}
