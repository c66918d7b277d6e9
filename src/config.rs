//! The configuration: file, below environment, below flags.
//!
//! Every key is optional. An unknown key, a bad value or an unreadable file is one error that names
//! the file or variable, the key and the reason.

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod values;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use config::{Value, ValueKind};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, json};

pub use values::{duration, list, listen_addresses, number, optional_list};

use crate::host;
use crate::sampler::{Options, OptionsError, SamplerDef};
use crate::samplers;

/// The prefix of environment variables: `CONTROLPLANE_EXPORTER__ETCD__TIMEOUT=3s`.
const ENV_PREFIX: &str = "CONTROLPLANE_EXPORTER";
/// No file of a person is longer.
const FILE_BYTES: u64 = 1 << 20;
/// No sampler runs more often.
const MIN_INTERVAL: Duration = Duration::from_millis(100);
/// No sampler runs less often, and no call waits longer.
const MAX_INTERVAL: Duration = Duration::from_hours(24);

/// A section that sets none of these keys takes them from another: (section, other, keys). Whoever
/// says where etcd is says it once.
const INHERITED: &[(&str, &str, &[&str])] =
    &[("registry_keys", "etcd", ACCESS), ("volume", "etcd", ACCESS)];
const ACCESS: &[&str] = &["endpoints", "ca_file", "cert_file", "key_file", "server_name"];

/// Everything that can be configured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Config {
    /// How figures are served.
    pub web: Web,
    /// What is logged.
    pub log: Log,
    /// Where the host's files are.
    pub path: Paths,
    /// What detection is told instead of finding out.
    pub host: host::Overrides,
    /// One section per sampler, by name; `None` where it is switched off.
    pub samplers: BTreeMap<&'static str, Option<Options>>,
}

/// Section `web`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Web {
    /// Where to listen: `:PORT` (every address, IPv6 and IPv4) or `ADDRESS:PORT`.
    #[serde(deserialize_with = "list")]
    pub listen_address: Vec<String>,
    /// The path of the figures.
    pub telemetry_path: String,
    /// The Unix socket on which `check` asks this agent; empty for none.
    pub socket: PathBuf,
    /// The web configuration file: TLS, passwords, headers; none for an open port.
    pub config_file: Option<PathBuf>,
    /// So many requests for figures or status at a time, 503 above; 0 for any number.
    #[serde(deserialize_with = "number")]
    pub max_requests: usize,
}

impl Default for Web {
    fn default() -> Self {
        Self {
            listen_address: vec![":10379".into()],
            telemetry_path: "/metrics".into(),
            socket: "/run/controlplane-exporter/agent.sock".into(),
            config_file: None,
            max_requests: 40,
        }
    }
}

/// Section `log`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// The least severe lines to print.
    pub level: LogLevel,
    /// How a line looks.
    pub format: LogFormat,
}

/// The least severe lines to print.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Everything.
    Debug,
    /// Changes of state.
    #[default]
    Info,
    /// What went wrong.
    Warn,
    /// What stops the agent.
    Error,
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// `key=value` pairs.
    #[default]
    Logfmt,
    /// One JSON object a line.
    Json,
}

/// Section `path`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Paths {
    /// All paths of the host are below this one.
    pub rootfs: PathBuf,
}

impl Default for Paths {
    fn default() -> Self {
        Self { rootfs: "/".into() }
    }
}

/// What is wrong with the configuration, and where.
#[derive(Debug, thiserror::Error)]
#[error("{origin}: {}{what}", if key.is_empty() { String::new() } else { format!("{key}: ") })]
pub struct ConfigError {
    /// The file, `environment` or `command line`.
    pub origin: String,
    /// The key, with dots.
    pub key: String,
    /// The reason.
    pub what: String,
}

/// Values given on the command line; they win over everything.
#[derive(Debug, Clone, Default)]
pub struct Flags {
    /// `--config.file`.
    pub file: Option<PathBuf>,
    /// `key.with.dots` and its value.
    pub set: Vec<(&'static str, String)>,
    /// `--web.listen-address`, as often as it was given.
    pub listen: Vec<String>,
}

impl Config {
    /// Reads file, environment and flags.
    ///
    /// # Errors
    ///
    /// At the first thing that is wrong with all of them together; it names the layer that is to blame.
    pub fn load(flags: &Flags) -> Result<Self, ConfigError> {
        let text = flags.file.as_deref().map(read).transpose()?;
        Self::load_text(flags, text.as_deref())
    }

    /// As [`Config::load`], with the text of the file already read.
    ///
    /// # Errors
    ///
    /// As for [`Config::load`].
    pub fn load_text(flags: &Flags, text: Option<&str>) -> Result<Self, ConfigError> {
        let environment = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        Self::layered(flags, text, environment)
    }

    fn layered(
        flags: &Flags,
        text: Option<&str>,
        environment: std::collections::HashMap<String, String>,
    ) -> Result<Self, ConfigError> {
        let mut builder = config::Config::builder();
        let mut file = None;
        if let (Some(path), Some(text)) = (&flags.file, text) {
            let origin = path.display().to_string();
            let tree = parse_file(&origin, text)?;
            builder = builder.add_source(config::File::from_str(text, config::FileFormat::Yaml));
            file = Some((origin, tree));
        }
        let environment: std::collections::HashMap<_, _> = environment
            .into_iter()
            .filter(|(name, _)| name.starts_with(&format!("{ENV_PREFIX}__")))
            .collect();
        let names: Vec<_> = environment.keys().cloned().collect();
        let source = config::Environment::with_prefix(ENV_PREFIX)
            .prefix_separator("__")
            .separator("__")
            .try_parsing(true)
            .source(Some(environment));
        builder = builder.add_source(source);
        let flag_error = |error: config::ConfigError| plain("command line", "", error);
        for (key, value) in &flags.set {
            builder = builder.set_override(*key, value.as_str()).map_err(flag_error)?;
        }
        if !flags.listen.is_empty() {
            builder = builder
                .set_override("web.listen_address", flags.listen.clone())
                .map_err(flag_error)?;
        }
        let merged = builder.build().map_err(|error| plain("environment", "", error))?;
        Self::from_tree(&to_json(merged.cache), "environment or command line").map_err(|error| {
            let variable = format!("{ENV_PREFIX}__{}", error.key.to_uppercase().replace('.', "__"));
            let below = format!("{variable}__");
            let is_it = |name: &str| name == variable || name.starts_with(&below);
            let variable = names.iter().find(|name| is_it(&name.to_uppercase()));
            let by_flag = flags.set.iter().any(|(key, _)| *key == error.key)
                || (!flags.listen.is_empty() && error.key == "web.listen_address");
            // What the file does not say may be wrong with it too: a key that it needs beside another.
            let of_file = file.filter(|(origin, tree)| {
                let pointer = format!("/{}", error.key.replace('.', "/"));
                tree.pointer(&pointer).is_some()
                    || Self::from_tree(tree, origin).is_err_and(|alone| alone.key == error.key)
            });
            let origin = match (variable, of_file) {
                (Some(name), _) => format!("environment variable {name}"),
                (None, Some((origin, _))) if !by_flag => origin,
                _ => return error,
            };
            ConfigError { origin, ..error }
        })
    }

    /// The configuration that these values make.
    fn from_tree(tree: &serde_json::Value, origin: &str) -> Result<Self, ConfigError> {
        let error = |key: &str, what: String| ConfigError {
            origin: origin.to_owned(),
            key: key.to_owned(),
            what,
        };
        let empty = Map::new();
        let sections = match tree {
            serde_json::Value::Null => &empty,
            serde_json::Value::Object(sections) => sections,
            _ => return Err(error("", "the file must hold sections, `name: {key: value}`".into())),
        };
        let known = ["web", "log", "path", "host"];
        if let Some(unknown) = sections
            .keys()
            .find(|name| !known.contains(&name.as_str()) && samplers::find(name).is_none())
        {
            let names: Vec<_> =
                known.into_iter().chain(samplers::ALL.iter().map(|(name, _)| *name)).collect();
            let what = format!("unknown section, expected one of {}", names.join(", "));
            return Err(error(unknown, what));
        }
        let section = |name: &str| sections.get(name).filter(|v| !v.is_null()).cloned();
        let mut samplers = BTreeMap::new();
        for (name, def) in samplers::ALL {
            let mut own = section(name).unwrap_or_else(|| json!({}));
            for (_, other, keys) in INHERITED.iter().filter(|(heir, ..)| heir == name) {
                inherit(&mut own, section(other).as_ref(), keys);
            }
            let options =
                sampler_section(def, own).map_err(|e| error(&dotted(name, &e.key), e.what))?;
            samplers.insert(*name, options);
        }
        let web: Web = parse(section("web"), "web", origin)?;
        if let Err(what) = telemetry_path(&web.telemetry_path) {
            return Err(error("web.telemetry_path", what));
        }
        if web.max_requests > tokio::sync::Semaphore::MAX_PERMITS {
            return Err(error("web.max_requests", "is too large; 0 stands for any number".into()));
        }
        if web.listen_address.is_empty() {
            return Err(error("web.listen_address", "needs at least one address".into()));
        }
        for address in &web.listen_address {
            listen_addresses(address).map_err(|what| error("web.listen_address", what))?;
        }
        Ok(Self {
            web,
            log: parse(section("log"), "log", origin)?,
            path: parse(section("path"), "path", origin)?,
            host: parse(section("host"), "host", origin)?,
            samplers,
        })
    }

    /// The configuration in the shape of a file, defaults included.
    pub fn to_yaml(&self) -> String {
        let mut tree = json!({
            "web": self.web,
            "log": self.log,
            "path": self.path,
            "host": self.host,
        });
        for (name, def) in samplers::ALL {
            let options = self.samplers.get(name).and_then(Option::as_ref);
            let mut section = (def.defaults)();
            section["enabled"] = options.is_some().into();
            let (interval, timeout) =
                options.map_or((def.interval, def.timeout), |o| (o.interval, o.timeout));
            section["interval"] = humantime::format_duration(interval).to_string().into();
            section["timeout"] = humantime::format_duration(timeout).to_string().into();
            for (key, value) in options.into_iter().flat_map(|o| &o.own) {
                section[key] = value.clone();
            }
            tree[*name] = section;
        }
        let mut out = String::new();
        // Writing to memory does not fail.
        yaml_rust2::YamlEmitter::new(&mut out).dump(&to_yaml(&tree)).ok();
        out.push('\n');
        out
    }

    /// The configuration without a file, an environment or flags.
    pub fn defaults() -> Self {
        Self::from_tree(&serde_json::Value::Null, "defaults")
            .unwrap_or_else(|error| unreachable!("the defaults are valid: {error}"))
    }
}

/// A section that is a plain struct.
fn parse<T: Default + DeserializeOwned>(
    section: Option<serde_json::Value>,
    name: &str,
    origin: &str,
) -> Result<T, ConfigError> {
    let Some(section) = section else { return Ok(T::default()) };
    serde_path_to_error::deserialize(section).map_err(|error| ConfigError {
        origin: origin.to_owned(),
        key: dotted(name, &error.path().to_string()),
        what: error.inner().to_string(),
    })
}

/// Copies `keys` from another section, unless `own` gives a value to any of them.
fn inherit(own: &mut serde_json::Value, other: Option<&serde_json::Value>, keys: &[&str]) {
    let (Some(own), Some(other)) = (own.as_object_mut(), other.and_then(|o| o.as_object())) else {
        return;
    };
    let set = |value: &serde_json::Value| {
        !matches!(value, serde_json::Value::Null) && *value != json!([])
    };
    if keys.iter().any(|key| own.get(*key).is_some_and(set)) {
        return;
    }
    for key in keys {
        if let Some(value) = other.get(*key).filter(|value| set(value)) {
            own.insert((*key).to_owned(), value.clone());
        }
    }
}

/// Takes `enabled`, `interval` and `timeout` out of a section and leaves the sampler its own keys.
fn sampler_section(
    def: &SamplerDef,
    section: serde_json::Value,
) -> Result<Option<Options>, OptionsError> {
    let serde_json::Value::Object(mut own) = section else {
        return Err(OptionsError::new(".", "expected keys, such as `enabled: true`"));
    };
    let enabled = match own.remove("enabled") {
        None | Some(serde_json::Value::Bool(true)) => true,
        Some(serde_json::Value::Bool(false)) => false,
        Some(other) => {
            return Err(OptionsError::new(
                "enabled",
                format!("expected true or false, not {other}"),
            ));
        }
    };
    let mut take = |key: &str, default: Duration, min: Duration| match own.remove(key) {
        None => Ok(default),
        Some(value) => {
            let length = duration(value).map_err(|e| OptionsError::new(key, e.to_string()))?;
            if length < min || length > MAX_INTERVAL {
                let what = format!("must be between {min:?} and 24h, is {length:?}");
                return Err(OptionsError::new(key, what));
            }
            Ok(length)
        }
    };
    let interval = take("interval", def.interval, MIN_INTERVAL)?;
    let timeout = take("timeout", def.timeout, Duration::from_millis(10))?;
    let options = Options { interval, timeout, own };
    // Building is cheap and does no I/O, so a bad value shows here, whatever this node is.
    (def.build)(&options, &host::Host::at("/"))?;
    Ok(enabled.then_some(options))
}

/// `section.key`; `.` stands for the section itself.
fn dotted(section: &str, key: &str) -> String {
    if key == "." { section.to_owned() } else { format!("{section}.{key}") }
}

fn plain(origin: impl ToString, key: &str, what: impl ToString) -> ConfigError {
    ConfigError { origin: origin.to_string(), key: key.to_owned(), what: what.to_string() }
}

/// The text of a configuration file. May wait for as long as its disk does.
///
/// # Errors
///
/// When it cannot be read, is no text, or is too long to be one.
pub fn read(file: &Path) -> Result<String, ConfigError> {
    let wrong = |what: &dyn std::fmt::Display| plain(file.display(), "", what);
    let mut bytes = Vec::new();
    let file = File::open(file).map_err(|error| wrong(&error))?;
    file.take(FILE_BYTES + 1).read_to_end(&mut bytes).map_err(|error| wrong(&error))?;
    if bytes.len() as u64 > FILE_BYTES {
        return Err(wrong(&format!("longer than {FILE_BYTES} bytes")));
    }
    String::from_utf8(bytes).map_err(|error| wrong(&format!("no text: {}", error.utf8_error())))
}

/// What the YAML library would take without a word, or at any cost: it stops at a NUL byte, and
/// copies whatever an alias names.
fn check_text(text: &str) -> Result<(), String> {
    for (number, line) in text.lines().enumerate() {
        if line.contains('\0') {
            return Err(format!("no text: a NUL byte in line {}", number + 1));
        }
    }
    let mut parser = yaml_rust2::parser::Parser::new_from_str(text);
    loop {
        match parser.next_token() {
            Ok((yaml_rust2::Event::Alias(_), mark)) => {
                return Err(format!("line {}: aliases are not supported", mark.line()));
            }
            // The loader says what is wrong.
            Ok((yaml_rust2::Event::StreamEnd, _)) | Err(_) => return Ok(()),
            Ok(_) => {}
        }
    }
}

/// The file alone as JSON; an error names it.
fn parse_file(origin: &str, text: &str) -> Result<serde_json::Value, ConfigError> {
    check_text(text).map_err(|what| plain(origin, "", what))?;
    let alone = config::Config::builder()
        .add_source(config::File::from_str(text, config::FileFormat::Yaml))
        .build()
        .map_err(|error| plain(origin, "", error))?;
    Ok(to_json(alone.cache))
}

/// The merged layers as JSON, which keeps every integer exact.
fn to_json(value: Value) -> serde_json::Value {
    match value.kind {
        ValueKind::Nil => serde_json::Value::Null,
        ValueKind::Boolean(b) => b.into(),
        ValueKind::I64(n) => n.into(),
        ValueKind::U64(n) => n.into(),
        ValueKind::I128(n) => n.to_string().into(),
        ValueKind::U128(n) => n.to_string().into(),
        ValueKind::Float(n) => n.into(),
        ValueKind::String(s) => s.into(),
        ValueKind::Array(values) => values.into_iter().map(to_json).collect(),
        ValueKind::Table(table) => {
            table.into_iter().map(|(key, value)| (key, to_json(value))).collect()
        }
    }
}

fn to_yaml(value: &serde_json::Value) -> yaml_rust2::Yaml {
    use yaml_rust2::Yaml;
    match value {
        serde_json::Value::Null => Yaml::Null,
        serde_json::Value::Bool(b) => Yaml::Boolean(*b),
        serde_json::Value::Number(n) => match n.as_i64() {
            Some(n) => Yaml::Integer(n),
            None => Yaml::Real(n.to_string()),
        },
        serde_json::Value::String(s) => Yaml::String(s.clone()),
        serde_json::Value::Array(values) => Yaml::Array(values.iter().map(to_yaml).collect()),
        serde_json::Value::Object(map) => Yaml::Hash(
            map.iter().map(|(key, value)| (Yaml::String(key.clone()), to_yaml(value))).collect(),
        ),
    }
}

/// Whether figures can be served at `path`, beside the other pages.
fn telemetry_path(path: &str) -> Result<(), String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._~-".contains(c);
    if path.len() < 2 || !path.starts_with('/') || !path.chars().all(plain) {
        return Err("must be `/` and letters, digits or any of /._~-, for example /metrics".into());
    }
    if crate::web::PAGES.contains(&path) {
        return Err(format!("{path} is another page; take for example /metrics"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(yaml: &str, environment: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let environment =
            environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let flags = Flags { file: Some("/etc/config.yaml".into()), ..Flags::default() };
        Config::layered(&flags, Some(yaml), environment)
    }

    fn error(yaml: &str) -> String {
        load(yaml, &[]).unwrap_err().to_string()
    }

    #[test]
    fn an_empty_file_is_the_defaults() {
        assert_eq!(load("", &[]).unwrap(), Config::defaults());
    }

    #[test]
    fn an_error_names_the_file_the_key_and_the_reason() {
        for (yaml, key, reason) in [
            ("etdc: {}", "etdc: ", "unknown section"),
            ("filesystem: {path: [/]}", "filesystem.path: ", "unknown field `path`"),
            ("filesystem: {interval: 5}", "filesystem.interval: ", "with its unit"),
            ("filesystem: {interval: 5 parsecs}", "filesystem.interval: ", "with its unit"),
            ("filesystem: {interval: 10ms}", "filesystem.interval: ", "between 100ms"),
            ("filesystem: {enabled: maybe}", "filesystem.enabled: ", "true or false"),
            ("filesystem: 5", "filesystem: ", "expected keys"),
            ("web: {listen_address: nowhere}", "web.listen_address: ", "is no address"),
            ("web: {listen_address: []}", "web.listen_address: ", "at least one"),
            ("web: {telemetry_path: metrics}", "web.telemetry_path: ", "must be `/` and"),
            ("web: {telemetry_path: /}", "web.telemetry_path: ", "must be `/` and"),
            ("web: {telemetry_path: '/{a'}", "web.telemetry_path: ", "must be `/` and"),
            ("web: {telemetry_path: /-/ready}", "web.telemetry_path: ", "is another page"),
            ("web: {max_requests: many}", "web.max_requests: ", "a whole number"),
            ("web: {max_requests: -1}", "web.max_requests: ", "a whole number"),
            ("web: {max_requests: 9223372036854775807}", "web.max_requests: ", "too large"),
            ("log: {level: loud}", "log.level: ", "unknown variant"),
            ("- a\n- b", "", ""),
            ("a: [", "", "line 2"),
            ("exporter:\n\tinterval: 5s", "", "line 2"),
            ("exporter:\n  interval: 5s\n  interval: 6s", "interval", "duplicated key"),
            ("exporter: &x {interval: 5s}\nkernel: *x", "", "line 2: aliases"),
            ("exporter: {interval: 9s}\n\0garbage: [", "", "a NUL byte in line 2"),
            ("exporter: {interval: 5s}\n---\nkernel: {}", "", "2 YAML documents"),
            (&format!("a: {}", "[".repeat(100_000)), "", "recursion"),
            ("exporter: {interval: ~}", "exporter.interval: ", "with its unit"),
            ("host: {devices: 5}", "host.devices: ", "a list"),
        ] {
            let text = error(yaml);
            assert!(text.contains("/config.yaml: "), "{yaml}: {text}");
            assert!(text.contains(key) && text.contains(reason), "{yaml}: {text}");
        }
    }

    #[test]
    fn a_file_that_cannot_be_one_is_named_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let huge = dir.path().join("huge");
        std::fs::write(&huge, "a".repeat(10 << 20)).unwrap();
        let binary = dir.path().join("binary");
        std::fs::write(&binary, b"web:\xff\xfe").unwrap();
        for (file, reason) in [
            ("/nonexistent/a.yaml".into(), "No such file or directory (os error 2)"),
            (dir.path().to_owned(), "Is a directory (os error 21)"),
            (huge, "longer than 1048576 bytes"),
            (binary, "no text: invalid utf-8 sequence of 1 bytes from index 4"),
            ("/dev/zero".into(), "longer than 1048576 bytes"),
        ] {
            let flags = Flags { file: Some(file.clone()), ..Flags::default() };
            let text = Config::load(&flags).unwrap_err().to_string();
            assert_eq!(text, format!("{}: {reason}", file.display()));
        }
    }

    #[test]
    fn the_environment_wins_over_the_file_and_flags_win_over_both() {
        let environment = [
            ("CONTROLPLANE_EXPORTER__FILESYSTEM__INTERVAL", "7s"),
            ("CONTROLPLANE_EXPORTER__FILESYSTEM__PATHS", "/a, /b"),
            ("CONTROLPLANE_EXPORTER__FILESYSTEM__ENABLED", "true"),
            ("CONTROLPLANE_EXPORTER__HOST__DEVICES", "dm-0, sda"),
            ("UNRELATED", "x"),
        ];
        let yaml = "filesystem: {interval: 5s, enabled: false}";
        let config = load(yaml, &environment).unwrap();
        let options = config.samplers["filesystem"].as_ref().unwrap();
        assert_eq!(options.interval, Duration::from_secs(7));
        assert_eq!(config.host.devices, Some(vec!["dm-0".to_owned(), "sda".to_owned()]));
        let error = load(yaml, &[("CONTROLPLANE_EXPORTER__FILESYSTEM__PATH", "/")]).unwrap_err();
        let text = error.to_string();
        let expected =
            "environment variable CONTROLPLANE_EXPORTER__FILESYSTEM__PATH: filesystem.path:";
        assert!(text.starts_with(expected), "{text}");
    }

    #[test]
    fn a_file_that_a_variable_makes_right_is_right_and_the_one_that_is_wrong_is_blamed() {
        let pair = "etcd: {cert_file: /a}";
        let key = ("CONTROLPLANE_EXPORTER__ETCD__KEY_FILE", "/b");
        assert!(load(pair, &[]).unwrap_err().to_string().starts_with("/etc/config.yaml: etcd."));
        load(pair, &[key]).unwrap();
        let two = format!("{pair}\nfilesystem: {{path: [/]}}");
        let text = load(&two, &[key]).unwrap_err().to_string();
        assert!(text.starts_with("/etc/config.yaml: filesystem.path: "), "{text}");
        let text = load("", &[key]).unwrap_err().to_string();
        assert!(text.starts_with("environment or command line: etcd."), "{text}");
        // A variable whose name begins like the key is another.
        let alike = ("CONTROLPLANE_EXPORTER__FILESYSTEM__PATHS", "/");
        let text = load("filesystem: {path: [/]}", &[alike]).unwrap_err().to_string();
        assert!(text.starts_with("/etc/config.yaml: filesystem.path: "), "{text}");
        // A flag is wrong, and the file needs the variable.
        let flags = Flags {
            file: Some("/etc/config.yaml".into()),
            listen: vec!["nowhere".to_owned()],
            ..Flags::default()
        };
        let variables = [(key.0.to_owned(), key.1.to_owned())].into();
        let text = Config::layered(&flags, Some(pair), variables).unwrap_err().to_string();
        assert!(text.starts_with("environment or command line: web.listen_address"), "{text}");
    }

    #[test]
    fn a_section_can_be_switched_off_and_may_be_empty() {
        let config = load("filesystem: {enabled: false}\nexporter:\n", &[]).unwrap();
        assert!(config.samplers["filesystem"].is_none());
        assert!(config.samplers["exporter"].is_some());
    }

    #[test]
    fn registry_keys_goes_where_etcd_goes_unless_it_is_told_otherwise() {
        let own = |yaml: &str, key: &str| {
            let config = load(yaml, &[]).unwrap();
            config.samplers["registry_keys"].as_ref().unwrap().own.get(key).cloned()
        };
        let etcd = "etcd: {endpoints: ['http://h:1'], timeout: 3s, expected_members: 3}\n";
        assert_eq!(own(etcd, "endpoints"), Some(json!(["http://h:1"])));
        assert_eq!(own(etcd, "expected_members"), None);
        let both = format!("{etcd}registry_keys: {{endpoints: /run/kine.sock}}");
        assert_eq!(own(&both, "endpoints"), Some(json!("/run/kine.sock")));
        let unset = format!("{etcd}registry_keys: {{endpoints: [], ca_file: null}}");
        assert_eq!(own(&unset, "endpoints"), Some(json!(["http://h:1"])));
        let off = "etcd: {enabled: false, endpoints: 'http://h:1'}\nregistry_keys:";
        assert_eq!(own(off, "endpoints"), Some(json!("http://h:1")));
        let prefixes = "registry_keys: {prefixes: {a.example.com: /registry/example.com/as/}}";
        let wanted = json!({"a.example.com": "/registry/example.com/as/"});
        assert_eq!(own(prefixes, "prefixes"), Some(wanted));
    }

    #[test]
    fn what_is_printed_can_be_read_back() {
        let config =
            load("filesystem: {interval: 7s, paths: [/a]}\nexporter: {enabled: false}", &[]);
        let config = config.unwrap();
        let printed = config.to_yaml();
        assert!(printed.contains("interval: 7s"), "{printed}");
        assert_eq!(load(&printed, &[]).unwrap().to_yaml(), printed);
    }

    #[test]
    fn an_empty_host_listens_everywhere_on_both_families() {
        assert_eq!(listen_addresses(":10379").unwrap().to_string(), "[::]:10379");
        assert_eq!(listen_addresses("127.0.0.1:1").unwrap().to_string(), "127.0.0.1:1");
        assert!(listen_addresses("10379").is_err());
    }

    #[test]
    fn every_listen_address_that_is_taken_is_a_socket_address() {
        use proptest::prelude::*;
        proptest!(|(text in r"[\[\]:.a-z0-9%\pC]{0,30}|.{0,20}", port: u16, ip: std::net::IpAddr)| {
            if let Ok(address) = listen_addresses(&text) {
                prop_assert!(text.ends_with(&address.port().to_string()), "{}", text);
            }
            let wanted = std::net::SocketAddr::new(ip, port);
            prop_assert_eq!(listen_addresses(&wanted.to_string()), Ok(wanted));
            prop_assert_eq!(listen_addresses(&format!(":{port}")).unwrap().port(), port);
            prop_assert_eq!(listen_addresses(&format!("[{ip}]:{port}")), Ok(wanted));
        });
    }

    #[test]
    fn no_text_makes_the_loader_panic_and_every_error_names_the_file() {
        use proptest::prelude::*;
        let words = r"(web|log|host|etcd|kernel|interval|devices|5s|[:{}\[\],&*!|>'%@~-]|\n| |\t|\PC){0,40}";
        proptest!(|(text in words)| {
            if let Err(error) = load(&text, &[]) {
                prop_assert!(error.to_string().starts_with("/etc/config.yaml: "), "{}", error);
            }
        });
    }
}
