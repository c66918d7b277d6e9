//! Logs of static pods, as a container runtime writes them.
#![no_main]

use controlplane_exporter::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: fuzzing::write_seeds("cri_log"), |bytes: &[u8]| fuzzing::cri_log(bytes));
