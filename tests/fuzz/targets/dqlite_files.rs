//! Whatever lies in a dqlite directory.
#![no_main]

use controlplane_exporter::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: fuzzing::write_seeds("dqlite_files"), |bytes: &[u8]| fuzzing::dqlite_files(bytes));
