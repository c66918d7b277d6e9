//! YAML of others.
#![no_main]

use controlplane_exporter::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: fuzzing::write_seeds("yaml"), |bytes: &[u8]| fuzzing::yaml(bytes));
