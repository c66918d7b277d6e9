//! Whatever a dqlite server sends.
#![no_main]

use controlplane_exporter::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: fuzzing::write_seeds("dqlite_wire"), |bytes: &[u8]| fuzzing::dqlite_wire(bytes));
