//! What this node is: distribution, data directories, certificates, units, devices.

mod facts;

pub use facts::*;
