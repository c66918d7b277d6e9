//! What a dqlite node keeps in its directory, and what it says on its port.
//!
//! Pure functions on bytes, each with a limit on every length: [`names`], [`store`] (`cluster.yaml`,
//! `info.yaml`), [`metadata`], [`segment`], [`snapshot`] and [`wire`]. [`directory`] puts the files together,
//! in a child process; [`client`] talks to a member. Nothing here writes to the node, takes a lock, or reads a row of the database:
//! payloads of the log hold Secrets in clear, and only those with a membership are looked into.
//!
//! All integers are little-endian, but for the fields of SQLite's header.

mod bytes;
pub mod client;
pub mod directory;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod lz4;
pub mod membership;
pub mod metadata;
pub mod names;
pub mod segment;
pub mod snapshot;
pub mod store;
pub mod tls;
pub mod wire;

pub use membership::{Member, Role};

/// What is wrong with a piece of data, without the data.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(String);

impl Malformed {
    fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }
}

/// A sample of a real node, from `tests/data/dqlite`.
#[cfg(test)]
fn sample(name: &str) -> Vec<u8> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/dqlite");
    std::fs::read(folder.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}
