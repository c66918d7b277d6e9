//! The web configuration file: TLS, passwords, headers, rate.
//!
//! Its format is that of the exporter toolkit, so that one file serves all exporters of a node. It is read strictly:
//! what the agent does not know or cannot do is refused by name, because a lock that is silently left out is worse
//! than no start. No error repeats a value that could be a secret.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue};
use bcrypt::HashParts;
use serde::{Deserialize, Serialize};
use yaml_rust2::Event;
use yaml_rust2::parser::Parser;
use yaml_rust2::scanner::TScalarStyle;

use super::tls::{self, Auth, Tls, Version};
use crate::config::{ConfigError, read};

/// The costs of a bcrypt hash: below is not defined, above one check takes longer than a request may.
const COSTS: std::ops::RangeInclusive<u32> = 4..=18;
/// No section lies deeper in the file.
const DEPTH: usize = 4;
/// Headers that may be set, and the values that they may have; none for any.
const HEADERS: [(&str, &[&str]); 5] = [
    ("Strict-Transport-Security", &[]),
    ("X-Content-Type-Options", &["nosniff"]),
    ("X-Frame-Options", &["deny", "sameorigin"]),
    ("X-XSS-Protection", &[]),
    ("Content-Security-Policy", &[]),
];

/// A web configuration file and the files that it names, as they were read together.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Files {
    text: String,
    /// By path.
    named: BTreeMap<PathBuf, String>,
}

impl Files {
    /// Reads the file and those that it names. May wait for as long as their disk does.
    ///
    /// # Errors
    ///
    /// When one of them cannot be read, or the file does not make sense.
    pub(super) fn read(file: &Path) -> Result<Self, ConfigError> {
        let text = read(file).map_err(|error| ConfigError {
            what: format!("{} (web.config_file)", error.what),
            ..error
        })?;
        let settings = Settings::parse(&text, file)?;
        let mut named = BTreeMap::new();
        for (key, path) in settings.tls.iter().flat_map(Tls::files) {
            let content = read(path).map_err(|error| ConfigError {
                origin: file.display().to_string(),
                key: key.to_owned(),
                what: format!("{}: {}", path.display(), error.what),
            })?;
            named.insert(path.to_owned(), content);
        }
        Ok(Self { text, named })
    }

    /// What the file says.
    ///
    /// # Errors
    ///
    /// When it does not make sense.
    pub(super) fn settings(&self, file: &Path) -> Result<Settings, ConfigError> {
        Settings::parse(&self.text, file)
    }

    /// The content of a file that it names.
    pub(super) fn named(&self, path: &Path) -> &str {
        self.named.get(path).map(String::as_str).unwrap_or_default()
    }
}

/// What a web configuration file says.
pub(super) struct Settings {
    pub(super) tls: Option<Tls>,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    /// The bcrypt hash of each user's password.
    pub(super) users: BTreeMap<String, String>,
    pub(super) rate: Option<Rate>,
}

/// One request every `interval`, and `burst` at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rate {
    pub(super) interval: Duration,
    pub(super) burst: u32,
}

impl Settings {
    /// The settings in the text of `file`; paths that are not absolute start from its directory.
    pub(super) fn parse(text: &str, file: &Path) -> Result<Self, ConfigError> {
        let wrong = |(key, what)| ConfigError { origin: file.display().to_string(), key, what };
        let folder = file.parent().unwrap_or(Path::new(""));
        let root = Node::parse(text).map_err(|what| wrong((String::new(), what)))?;
        let mut root = Section::new(String::new(), root).map_err(wrong)?;
        Self::from_root(&mut root, folder).map_err(wrong)
    }

    fn from_root(root: &mut Section, folder: &Path) -> Result<Self, Wrong> {
        let mut http = root.section("http_server_config")?;
        let http2 = http.boolean("http2")?.unwrap_or(true);
        let headers = headers(http.section("headers")?)?;
        http.end()?;
        let tls = tls_settings(root.section("tls_server_config")?, folder, http2)?;
        let users = users(root.section("basic_auth_users")?)?;
        let rate = rate(root.section("rate_limit")?)?;
        root.end()?;
        Ok(Self { tls, headers, users, rate })
    }
}

fn tls_settings(mut tls: Section, folder: &Path, http2: bool) -> Result<Option<Tls>, Wrong> {
    let any = tls
        .entries
        .iter()
        .any(|(_, node)| !matches!(node, Node::Scalar(text, _) if text.is_empty()));
    let mut source =
        |inline: &'static str, file: &'static str| -> Result<Option<tls::Source>, Wrong> {
            let (text, path) = (tls.text(inline)?, tls.text(file)?);
            // Where both are there, the toolkit takes the file.
            Ok(match (path, text) {
                (Some(path), _) => Some(tls::Source::File(folder.join(path))),
                (None, Some(text)) => Some(tls::Source::Inline(text)),
                (None, None) => None,
            })
        };
    let (cert, key) = (source("cert", "cert_file")?, source("key", "key_file")?);
    let ca = source("client_ca", "client_ca_file")?;
    let auth = match tls.text("client_auth_type")? {
        None => Auth::None,
        Some(word) => Auth::from_word(&word).map_err(|what| tls.wrong("client_auth_type", what))?,
    };
    let sans = tls.list("client_allowed_sans")?;
    let mut version = |key: &'static str, default| match tls.text(key)? {
        None => Ok(default),
        Some(word) => Version::from_word(&word).map_err(|what| tls.wrong(key, what)),
    };
    let (min, max) =
        (version("min_version", Version::Tls12)?, version("max_version", Version::Tls13)?);
    let mut suites = Vec::new();
    let names = tls.list("cipher_suites")?;
    for name in names.iter().flatten() {
        suites.push(tls::suite(name).map_err(|what| tls.wrong("cipher_suites", what))?);
    }
    let mut curves = Vec::new();
    for name in tls.list("curve_preferences")?.iter().flatten() {
        curves.push(tls::curve(name).map_err(|what| tls.wrong("curve_preferences", what))?);
    }
    let prefer_own = tls.boolean("prefer_server_cipher_suites")?.unwrap_or(true);
    tls.end()?;
    if !any {
        return Ok(None);
    }
    let cert = cert.ok_or_else(|| {
        tls.wrong("cert_file", "missing; one of cert and cert_file must be there")
    })?;
    let key =
        key.ok_or_else(|| tls.wrong("key_file", "missing; one of key and key_file must be there"))?;
    match (auth, &ca) {
        (Auth::None, Some(_)) => {
            return Err(tls.wrong(
                "client_auth_type",
                "missing; with a client CA it must say who needs a certificate",
            ));
        }
        (Auth::Required, None) => {
            return Err(tls.wrong(
                "client_ca_file",
                "missing; without a CA nobody's certificate can be verified",
            ));
        }
        _ => {}
    }
    if sans.is_some() && auth != Auth::Required {
        let what = "needs client_auth_type RequireAndVerifyClientCert; otherwise who shows no certificate gets in";
        return Err(tls.wrong("client_allowed_sans", what));
    }
    if min > max {
        return Err(tls.wrong("min_version", "is above max_version"));
    }
    let for_http2 = |name: &String| name.ends_with("_WITH_AES_128_GCM_SHA256");
    if http2 && min == Version::Tls12 && names.is_some_and(|all| !all.iter().any(for_http2)) {
        let what = "HTTP/2 needs TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 or TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256; \
                    add one, or set http_server_config.http2 to false";
        return Err(tls.wrong("cipher_suites", what));
    }
    Ok(Some(Tls {
        cert,
        key,
        ca,
        auth,
        sans,
        versions: (min, max),
        suites,
        curves,
        prefer_own,
        http2,
    }))
}

fn headers(mut section: Section) -> Result<Vec<(HeaderName, HeaderValue)>, Wrong> {
    let mut headers = Vec::new();
    for (name, allowed) in HEADERS {
        let Some(text) = section.text(name)? else { continue };
        if !allowed.is_empty() && !allowed.contains(&text.as_str()) {
            return Err(section.wrong(name, format!("must be {}", allowed.join(" or "))));
        }
        let value = HeaderValue::from_str(&text)
            .map_err(|_| section.wrong(name, "holds characters that no header can hold"))?;
        headers.push((
            HeaderName::from_bytes(name.as_bytes()).map_err(|e| section.wrong(name, e))?,
            value,
        ));
    }
    section.end()?;
    Ok(headers)
}

fn users(section: Section) -> Result<BTreeMap<String, String>, Wrong> {
    let mut users = BTreeMap::new();
    for (user, node) in &section.entries {
        let made = "make one with `htpasswd -nBC 10 \"\"`";
        let Node::Scalar(hash, _) = node else {
            return Err(section.wrong(user, format!("is no bcrypt hash; {made}")));
        };
        let known = ["$2a$", "$2b$", "$2y$"].iter().any(|prefix| hash.starts_with(prefix));
        let parts = HashParts::from_str(hash).ok().filter(|_| known);
        let Some(parts) = parts else {
            return Err(
                section.wrong(user, format!("is no bcrypt hash ($2a$, $2b$, $2y$); {made}"))
            );
        };
        if !COSTS.contains(&parts.get_cost()) {
            let what =
                format!("the cost must be between {} and {}; {made}", COSTS.start(), COSTS.end());
            return Err(section.wrong(user, what));
        }
        users.insert(user.clone(), hash.clone());
    }
    Ok(users)
}

fn rate(mut section: Section) -> Result<Option<Rate>, Wrong> {
    let interval = match section.text("interval")? {
        None => Duration::ZERO,
        Some(text) => go_duration(&text).ok_or_else(|| {
            section.wrong("interval", "is no length of time such as 500ms, 1s or 1m30s")
        })?,
    };
    let burst = match section.text("burst")? {
        None => 0,
        Some(text) => text.parse().map_err(|_| section.wrong("burst", "must be a whole number"))?,
    };
    section.end()?;
    Ok((!interval.is_zero()).then_some(Rate { interval, burst }))
}

/// A length of time as Go writes it: numbers with units, one after the other. A number without a unit would be
/// nanoseconds there, which nobody means.
fn go_duration(text: &str) -> Option<Duration> {
    const UNITS: [(&str, f64); 8] = [
        ("ns", 1e-9),
        ("us", 1e-6),
        ("µs", 1e-6),
        ("μs", 1e-6),
        ("ms", 1e-3),
        ("s", 1.0),
        ("m", 60.0),
        ("h", 3600.0),
    ];
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let (mut rest, mut seconds) = (text, 0.0);
    while !rest.is_empty() {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let value: f64 = rest[..number].parse().ok()?;
        rest = &rest[number..];
        let unit = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let (_, factor) = UNITS.iter().find(|(name, _)| *name == &rest[..unit])?;
        rest = &rest[unit..];
        seconds += value * factor;
    }
    if text.is_empty() { None } else { Duration::try_from_secs_f64(seconds).ok() }
}

/// A key with dots, and what is wrong with it.
type Wrong = (String, String);

/// A piece of the file. Scalars stay as they are written: whether `1` is a number is for the key to say.
enum Node {
    /// The text, and whether it stands without quotes.
    Scalar(String, bool),
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
}

/// A list or a map that has not ended.
enum Open {
    List(Vec<Node>),
    /// The entries, and the key whose value comes next.
    Map(Vec<(String, Node)>, Option<String>),
}

impl Node {
    fn parse(text: &str) -> Result<Self, String> {
        if let Some(at) = text.lines().position(|line| line.contains('\0')) {
            return Err(format!("no text: a NUL byte in line {}", at + 1));
        }
        let mut parser = Parser::new_from_str(text);
        let (mut open, mut root) = (Vec::<Open>::new(), None);
        loop {
            let (event, mark) = parser.next_token().map_err(|error| error.to_string())?;
            let line = mark.line();
            let node = match event {
                Event::Scalar(text, style, ..) => Self::Scalar(text, style == TScalarStyle::Plain),
                Event::SequenceStart(..) | Event::MappingStart(..) if open.len() >= DEPTH => {
                    return Err(format!("line {line}: nested too deep"));
                }
                Event::SequenceStart(..) => {
                    open.push(Open::List(Vec::new()));
                    continue;
                }
                Event::MappingStart(..) => {
                    open.push(Open::Map(Vec::new(), None));
                    continue;
                }
                Event::SequenceEnd | Event::MappingEnd => match open.pop() {
                    Some(Open::List(items)) => Self::List(items),
                    Some(Open::Map(entries, _)) => Self::Map(entries),
                    None => continue,
                },
                Event::Alias(_) => return Err(format!("line {line}: aliases are not supported")),
                Event::DocumentStart if root.is_some() => {
                    return Err(format!("line {line}: a second YAML document"));
                }
                Event::StreamEnd => return Ok(root.unwrap_or(Self::Scalar(String::new(), true))),
                _ => continue,
            };
            match open.last_mut() {
                None => root = Some(node),
                Some(Open::List(items)) => items.push(node),
                Some(Open::Map(entries, key)) => match (key.take(), node) {
                    (Some(key), node) => entries.push((key, node)),
                    (None, Self::Scalar(name, _)) => {
                        if entries.iter().any(|(known, _)| *known == name) {
                            return Err(format!("line {line}: {name} is there twice"));
                        }
                        *key = Some(name);
                    }
                    (None, _) => return Err(format!("line {line}: a key must be a plain text")),
                },
            }
        }
    }

    fn is_null(&self) -> bool {
        matches!(self, Self::Scalar(text, true) if ["", "~", "null", "Null", "NULL"].contains(&text.as_str()))
    }
}

/// The keys of a section, taken out one by one.
struct Section {
    path: String,
    entries: Vec<(String, Node)>,
    /// The keys that were asked for.
    known: Vec<&'static str>,
}

impl Section {
    fn new(path: String, node: Node) -> Result<Self, Wrong> {
        let entries = match node {
            node if node.is_null() => Vec::new(),
            Node::Map(entries) => entries,
            _ => return Err((path, "must hold keys, `name: value`".into())),
        };
        Ok(Self { path, entries, known: Vec::new() })
    }

    fn wrong(&self, key: &str, what: impl ToString) -> Wrong {
        let dot = if self.path.is_empty() { "" } else { "." };
        (format!("{}{dot}{key}", self.path), what.to_string())
    }

    /// The value of a key; none when it is absent or null.
    fn take(&mut self, key: &'static str) -> Option<Node> {
        self.known.push(key);
        let at = self.entries.iter().position(|(name, _)| name == key)?;
        Some(self.entries.remove(at).1).filter(|node| !node.is_null())
    }

    /// A section below; empty when it is absent.
    fn section(&mut self, key: &'static str) -> Result<Self, Wrong> {
        let node = self.take(key).unwrap_or(Node::Scalar(String::new(), true));
        Self::new(self.wrong(key, "").0, node)
    }

    /// A text; none when it is empty.
    fn text(&mut self, key: &'static str) -> Result<Option<String>, Wrong> {
        match self.take(key) {
            None => Ok(None),
            Some(Node::Scalar(text, _)) => Ok(Some(text).filter(|text| !text.is_empty())),
            Some(_) => Err(self.wrong(key, "must be a text")),
        }
    }

    fn boolean(&mut self, key: &'static str) -> Result<Option<bool>, Wrong> {
        match self.take(key) {
            None => Ok(None),
            Some(Node::Scalar(text, true)) => match text.to_ascii_lowercase().as_str() {
                "true" | "yes" | "on" => Ok(Some(true)),
                "false" | "no" | "off" => Ok(Some(false)),
                _ => Err(self.wrong(key, "must be true or false")),
            },
            Some(_) => Err(self.wrong(key, "must be true or false")),
        }
    }

    /// A list of texts; none when it is absent.
    fn list(&mut self, key: &'static str) -> Result<Option<Vec<String>>, Wrong> {
        let text = |node| match node {
            Node::Scalar(text, _) => Some(text),
            _ => None,
        };
        match self.take(key) {
            None => Ok(None),
            Some(Node::List(items)) => {
                let texts: Option<Vec<_>> = items.into_iter().map(text).collect();
                texts.map(Some).ok_or_else(|| self.wrong(key, "must be a list of texts"))
            }
            Some(_) => Err(self.wrong(key, "must be a list of texts")),
        }
    }

    /// What was not asked for is unknown.
    fn end(&self) -> Result<(), Wrong> {
        match self.entries.first() {
            None => Ok(()),
            Some((key, _)) => {
                let what = format!("unknown key, expected one of {}", self.known.join(", "));
                Err(self.wrong(key, what))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FOUR: &str = "$2y$04$UuTkLRZZ6QofpDOlMz32MuuxEHA43WOemOYHPz6.SjsVsyO1tDU96";

    fn parse(text: &str) -> Result<Settings, ConfigError> {
        Settings::parse(text, Path::new("/etc/web/web.yml"))
    }

    fn tls(text: &str) -> String {
        format!("tls_server_config:\n  cert_file: server.crt\n  key_file: server.key\n{text}")
    }

    /// Each text with a piece of its error's key and reason.
    fn refused(all: &[(&str, &str, &str)]) {
        for (text, key, what) in all {
            let error =
                parse(text).err().unwrap_or_else(|| panic!("{text}: was taken")).to_string();
            assert!(error.starts_with("/etc/web/web.yml: "), "{text}: {error}");
            assert!(error.contains(key) && error.contains(what), "{text}: {error}");
        }
    }

    /// The facts of the toolkit's own test files, and beside them what this agent refuses on purpose.
    #[test]
    fn what_the_toolkit_refuses_is_refused_with_file_and_key() {
        let invented = tls("  cipher_suites: [TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA2048]");
        let cbc = tls("  cipher_suites: [TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA]");
        let p521 = tls("  curve_preferences: [CurveP521]");
        let big =
            tls("  cipher_suites: [TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384]\n  max_version: TLS12");
        refused(&[
            ("hWkNKCp3fvIx3jKnsaBI\nTuEjdwNS8A2vYdFbiKqr", ": ", "must hold keys"),
            (
                "tls_server_config:\n  cert_filse: a",
                ": tls_server_config.cert_filse: ",
                "unknown key, expected one of cert, cert_file, key,",
            ),
            ("tls_sever_config: {}", ": tls_sever_config: ", "unknown key"),
            ("tls_server_config: {cert_file: '', key_file: k}", ".cert_file: ", "missing"),
            ("tls_server_config: {cert: '', key_file: k}", ".cert_file: ", "missing"),
            ("tls_server_config: {cert_file: c, key_file: ''}", ".key_file: ", "missing"),
            ("tls_server_config: {cert_file: c, key: ''}", ".key_file: ", "missing"),
            (
                "tls_server_config: {cert_file: '', key_file: '', client_auth_type: x}",
                ".client_auth_type: ",
                "unknown",
            ),
            ("tls_server_config: {min_version: TLS13}", ".cert_file: ", "missing"),
            (&tls("  client_ca_file: ca.crt"), ".client_auth_type: ", "who needs a certificate"),
            (
                &tls("  client_auth_type: RequireAndVerifyClientCert"),
                ".client_ca_file: ",
                "without a CA",
            ),
            (
                &tls("  client_auth_type: RequireAnyClientCert"),
                ".client_auth_type: ",
                "RequireAnyClientCert is not supported",
            ),
            (
                &tls("  client_auth_type: RequestClientCert"),
                ".client_auth_type: ",
                "keeps nobody out",
            ),
            (
                &tls("  client_allowed_sans: [a]"),
                ".client_allowed_sans: ",
                "RequireAndVerifyClientCert",
            ),
            (&tls("  min_version: TLS111"), ".min_version: ", "no version of TLS"),
            (&tls("  min_version: TLS10"), ".min_version: ", "TLS10 is not supported"),
            (&tls("  min_version: TLS13\n  max_version: TLS12"), ".min_version: ", "above"),
            (
                &invented,
                ".cipher_suites: ",
                "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA2048 is not supported",
            ),
            (&cbc, ".cipher_suites: ", "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA is not supported"),
            (&big, ".cipher_suites: ", "HTTP/2 needs TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"),
            (
                &tls("  curve_preferences: [CurveP257]"),
                ".curve_preferences: ",
                "CurveP257 is not supported",
            ),
            (&p521, ".curve_preferences: ", "CurveP521 is not supported"),
            (
                &tls("  prefer_server_cipher_suites: maybe"),
                ".prefer_server_cipher_suites: ",
                "true or false",
            ),
            (&tls("  cipher_suites: x"), ".cipher_suites: ", "a list"),
            (
                "http_server_config: {http2: 'true'}",
                ": http_server_config.http2: ",
                "true or false",
            ),
            (
                "http_server_config: {headers: {X-Content-Type-Options: sniff}}",
                ".headers.X-Content-Type-Options: ",
                "must be nosniff",
            ),
            (
                "http_server_config: {headers: {X-Frame-Options: foo}}",
                ".headers.X-Frame-Options: ",
                "must be deny or sameorigin",
            ),
            (
                "http_server_config: {headers: {Content-Type: foo}}",
                ".headers.Content-Type: ",
                "unknown key",
            ),
            (
                "http_server_config: {headers: {x-frame-options: deny}}",
                ".headers.x-frame-options: ",
                "unknown key",
            ),
            (
                "http_server_config: {headers: {X-XSS-Protection: \"1\\r\\nA: b\"}}",
                ".X-XSS-Protection: ",
                "no header",
            ),
        ]);
    }

    #[test]
    fn users_rates_and_texts_that_make_no_sense_are_refused_with_file_and_key() {
        refused(&[
            ("basic_auth_users: {john: doe}", ": basic_auth_users.john: ", "no bcrypt hash"),
            ("basic_auth_users: {john: [a]}", ": basic_auth_users.john: ", "no bcrypt hash"),
            ("basic_auth_users: [john]", ": basic_auth_users: ", "must hold keys"),
            (
                &format!("basic_auth_users: {{j: {}}}", FOUR.replace("2y", "2x")),
                "users.j: ",
                "no bcrypt hash",
            ),
            (
                &format!("basic_auth_users: {{j: {}}}", FOUR.replace("$04", "$03")),
                "users.j: ",
                "between 4 and 18",
            ),
            (
                &format!("basic_auth_users: {{j: {}}}", FOUR.replace("$04", "$31")),
                "users.j: ",
                "between 4 and 18",
            ),
            ("rate_limit: {interval: 5}", ": rate_limit.interval: ", "no length of time"),
            ("rate_limit: {interval: -1s}", ": rate_limit.interval: ", "no length of time"),
            ("rate_limit: {interval: 1s, burst: -1}", ": rate_limit.burst: ", "whole number"),
            ("basic_auth_users: {a: b, a: c}", ": ", "a is there twice"),
            ("a: &x {}\nb: *x", ": ", "aliases are not supported"),
            ("{}\n---\n{}", ": ", "second YAML document"),
            ("a: [[[[[[", ": ", "too deep"),
            ("{}\n\0", ": ", "NUL byte in line 2"),
            ("\ta: b", ": ", ""),
        ]);
    }

    #[test]
    fn what_the_toolkit_takes_is_taken() {
        for text in [
            "",
            "# nothing",
            "{}",
            "tls_server_config:\nhttp_server_config: ~\nbasic_auth_users: {}\nrate_limit: null",
            "tls_server_config: {cert_file: '', key_file: ''}",
            "rate_limit: {interval: 0, burst: 0}",
        ] {
            let settings = parse(text).unwrap();
            assert!(settings.tls.is_none() && settings.rate.is_none(), "{text}");
            assert!(settings.users.is_empty() && settings.headers.is_empty(), "{text}");
        }
        for text in [
            "  client_auth_type: VerifyClientCertIfGiven",
            "  client_auth_type: NoClientCert",
            "  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: ca.crt\n  client_allowed_sans: [one, two]",
            "  cipher_suites: [TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, TLS_AES_128_GCM_SHA256]\n  max_version: TLS12",
            "  cipher_suites: [TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384]\n  max_version: TLS12\nhttp_server_config: {http2: false}",
            "  curve_preferences: [CurveP256, CurveP384, X25519]\n  min_version: TLS13",
            "  prefer_server_cipher_suites: false",
        ] {
            assert!(parse(&tls(text)).unwrap().tls.is_some(), "{text}");
        }
    }

    #[test]
    fn relative_paths_start_from_the_directory_of_the_file() {
        let settings = parse(&tls(
            "  client_ca_file: /other/ca.crt\n  client_auth_type: VerifyClientCertIfGiven",
        ));
        let tls = settings.unwrap().tls.unwrap();
        let files: Vec<_> = tls.files().map(|(key, path)| (key, path.to_str().unwrap())).collect();
        let wanted = [
            ("tls_server_config.cert_file", "/etc/web/server.crt"),
            ("tls_server_config.key_file", "/etc/web/server.key"),
            ("tls_server_config.client_ca_file", "/other/ca.crt"),
        ];
        assert_eq!(files, wanted);
    }

    #[test]
    fn headers_users_and_rate_are_kept_as_they_are_written() {
        let text = format!(
            "http_server_config:\n  headers:\n    X-XSS-Protection: 1\n    X-Frame-Options: deny\n\
             basic_auth_users:\n  alice: {FOUR}\n  0123: \"{FOUR}\"\nrate_limit: {{interval: 1m0.5s, burst: 20}}"
        );
        let settings = parse(&text).unwrap();
        let headers: Vec<_> = settings
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.to_str().unwrap()))
            .collect();
        assert_eq!(headers, [("x-frame-options", "deny"), ("x-xss-protection", "1")]);
        assert_eq!(
            settings.users.keys().map(String::as_str).collect::<Vec<_>>(),
            ["0123", "alice"]
        );
        let rate = Rate { interval: Duration::from_millis(60_500), burst: 20 };
        assert_eq!(settings.rate, Some(rate));
    }

    #[test]
    fn no_error_shows_what_may_be_a_secret() {
        let secret = "hunter2secret";
        for text in [
            format!("basic_auth_users: {secret}"),
            format!("basic_auth_users: {{a: {secret}}}"),
            format!("basic_auth_users: {{a: {{b: {secret}}}}}"),
            format!("basic_auth_users: [{secret}]"),
            format!("tls_server_config: {{key: [{secret}]}}"),
            format!("tls_server_config: {secret}"),
            secret.to_owned(),
            format!("basic_auth_users:\n  a: \"{secret}"),
            format!("basic_auth_users:\n  a: {secret}: b\n - {secret}"),
        ] {
            let error =
                parse(&text).err().unwrap_or_else(|| panic!("{text}: was taken")).to_string();
            assert!(!error.contains("hunter"), "{text}: {error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in r"(tls_server_config|http_server_config|headers|basic_auth_users|rate_limit|interval|cert_file|[:{}\[\],&*!|>'%@~-]|1s|\n| |\t|\PC){0,40}") {
            if let Err(error) = parse(&text) {
                proptest::prop_assert!(error.to_string().starts_with("/etc/web/web.yml: "), "{}", error);
            }
        }

        #[test]
        fn a_length_of_time_is_what_go_means(hours in 0_u32..100, minutes in 0_u32..100, millis in 0_u32..100_000) {
            let expected = Duration::from_millis(u64::from(hours) * 3_600_000 + u64::from(minutes) * 60_000 + u64::from(millis));
            let found = go_duration(&format!("{hours}h{minutes}m{millis}ms")).unwrap();
            proptest::prop_assert!(found.abs_diff(expected) < Duration::from_micros(1), "{:?} {:?}", found, expected);
        }
    }
}
