//! The agent's own configuration.
#![no_main]

use controlplane_exporter::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: fuzzing::write_seeds("agent_config"), |bytes: &[u8]| fuzzing::agent_config(bytes));
