//! systemd's units and files of variables.
#![no_main]

use controlplane_exporter::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: fuzzing::write_seeds("unit_file"), |bytes: &[u8]| fuzzing::unit_file(bytes));
