//! How bad a line of a log is.

use serde::{Deserialize, Serialize};

/// From harmless to worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Context that is counted and never alerted on.
    Info,
    /// Something that heals by itself, or that an operator should know.
    Warning,
    /// Something failed.
    Error,
    /// Data was lost, or an outage is under way.
    Critical,
}
