//! What a sampler is: one source, read on its own clock into a [`Batch`].
//!
//! A sampler knows no clock, no HTTP and no other sampler. The scheduler calls it, bounds it and
//! keeps the result; see `scheduler.rs`.

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::host::{Facts, Host};
use crate::metric::Desc;
use crate::sample::{Batch, SampleError};

/// A sampler that reads files of `/proc`, `/sys` or `/dev/kmsg`, or that runs in a child process.
pub trait BlockingSampler: Send + 'static {
    /// Reads the source once.
    ///
    /// # Errors
    ///
    /// Only when the source as a whole could not be read. A target that does not answer is a
    /// verdict (`*_up 0`) and a success; a part that failed goes to [`Batch::fail`].
    fn sample(&mut self, out: &mut Batch) -> Result<(), SampleError>;
}

/// A sampler that talks over the network or a bus.
#[async_trait]
pub trait AsyncSampler: Send + 'static {
    /// Reads the source once; every call inside has its own deadline.
    ///
    /// # Errors
    ///
    /// As for [`BlockingSampler::sample`].
    async fn sample(&mut self, out: &mut Batch) -> Result<(), SampleError>;
}

/// How a sampler is run.
pub enum Driver {
    /// As a task.
    Async(Box<dyn AsyncSampler>),
    /// On a thread of its own pool: for `/proc`, `/sys` and the kernel log, which never wait for
    /// a disk.
    Blocking(Box<dyn BlockingSampler>),
    /// Once, in a child process: for everything that touches a disk that may be sick. A thread
    /// that the disk holds would keep a dying agent and its port alive; a child does not.
    Isolated(Box<dyn BlockingSampler>),
}

/// What building a sampler came to.
pub enum Build {
    /// It runs.
    Run(Driver),
    /// It has nothing to read here; the text says why and what would change that.
    NotApplicable(String),
}

impl Build {
    /// Runs as a task.
    pub fn tasked(sampler: impl AsyncSampler) -> Self {
        Self::Run(Driver::Async(Box::new(sampler)))
    }

    /// Runs on a thread.
    pub fn blocking(sampler: impl BlockingSampler) -> Self {
        Self::Run(Driver::Blocking(Box::new(sampler)))
    }

    /// Runs in a child process.
    pub fn isolated(sampler: impl BlockingSampler) -> Self {
        Self::Run(Driver::Isolated(Box::new(sampler)))
    }

    /// Has nothing to read here.
    pub fn not_applicable(why: impl Into<String>) -> Self {
        Self::NotApplicable(why.into())
    }
}

/// A sampler's section of the configuration.
#[derive(Debug, Clone, PartialEq, Serialize, serde::Deserialize)]
pub struct Options {
    /// How often it runs.
    pub interval: Duration,
    /// How long each call inside a run may take.
    pub timeout: Duration,
    /// The keys of its own.
    pub own: serde_json::Map<String, serde_json::Value>,
}

impl Options {
    /// The sampler's own keys.
    ///
    /// # Errors
    ///
    /// When a key is unknown or its value is of the wrong kind; the error names the key.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, OptionsError> {
        let own = serde_json::Value::Object(self.own.clone());
        serde_path_to_error::deserialize(own).map_err(|error| OptionsError {
            key: error.path().to_string(),
            what: error.inner().to_string(),
        })
    }
}

/// A key of a section that does not make sense.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct OptionsError {
    /// The key below the section, with dots; `.` for the section itself.
    pub key: String,
    /// What is wrong with it.
    pub what: String,
}

impl OptionsError {
    /// A key whose value does not make sense.
    pub fn new(key: impl Into<String>, what: impl Into<String>) -> Self {
        Self { key: key.into(), what: what.into() }
    }
}

/// Checks that the paths under a key are absolute.
///
/// # Errors
///
/// The first that is not, under the key.
pub fn absolute<'a>(
    key: &str,
    paths: impl IntoIterator<Item = &'a PathBuf>,
) -> Result<(), OptionsError> {
    match paths.into_iter().find(|path| !path.is_absolute()) {
        Some(path) => {
            Err(OptionsError::new(key, format!("{} is no absolute path", path.display())))
        }
        None => Ok(()),
    }
}

/// Everything the rest of the agent knows about a sampler.
pub struct SamplerDef {
    /// One sentence: what it watches.
    pub about: &'static str,
    /// How often it runs unless configured.
    pub interval: Duration,
    /// How long each call inside a run may take unless configured.
    pub timeout: Duration,
    /// Every metric it may export, in the order of `/metrics`.
    pub metrics: &'static [Desc],
    /// Its own keys with their defaults.
    pub defaults: fn() -> serde_json::Value,
    /// The facts it was built from: when they change, it is built anew.
    pub uses: fn(&Facts) -> serde_json::Value,
    /// Checks the options and builds it; cheap, and without any I/O.
    pub build: fn(&Options, &Host) -> Result<Build, OptionsError>,
    /// What a run costs, as measured; printed in METRICS.md.
    pub cost: &'static str,
}

/// The sampler that these keys make on this host, where it runs in a child; else why it does not run, or what is wrong
/// and under which key.
#[cfg(test)]
pub(crate) fn isolated(
    def: &SamplerDef,
    host: &Host,
    own: &serde_json::Value,
) -> Result<Box<dyn BlockingSampler>, String> {
    let own = own.as_object().cloned().unwrap_or_default();
    let options = Options { interval: def.interval, timeout: def.timeout, own };
    match (def.build)(&options, host) {
        Ok(Build::Run(Driver::Isolated(sampler))) => Ok(sampler),
        Ok(Build::NotApplicable(why)) => Err(why),
        Ok(_) => panic!("another driver"),
        Err(error) => Err(format!("{}: {}", error.key, error.what)),
    }
}

/// For [`SamplerDef::defaults`]: the default options as JSON.
pub fn defaults<T: Default + Serialize>() -> serde_json::Value {
    serde_json::to_value(T::default()).unwrap_or_default()
}

/// For [`SamplerDef::uses`]: facts as JSON.
pub fn facts(value: impl Serialize) -> serde_json::Value {
    serde_json::to_value(value).unwrap_or_default()
}
