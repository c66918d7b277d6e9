//! The list of checks that an API server answers with.
#![no_main]

use controlplane_exporter::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: fuzzing::write_seeds("apiserver_checks"), |bytes: &[u8]| fuzzing::apiserver_checks(bytes));
