//! Files of arguments of the snaps.
#![no_main]

use controlplane_exporter::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: fuzzing::write_seeds("arguments"), |bytes: &[u8]| fuzzing::arguments(bytes));
