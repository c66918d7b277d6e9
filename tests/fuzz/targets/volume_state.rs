//! The file in which volumes are remembered.
#![no_main]

use controlplane_exporter::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: fuzzing::write_seeds("volume_state"), |bytes: &[u8]| fuzzing::volume_state(bytes));
