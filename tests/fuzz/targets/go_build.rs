//! Programs written in Go.
#![no_main]

use controlplane_exporter::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: fuzzing::write_seeds("go_build"), |bytes: &[u8]| fuzzing::go_build(bytes));
