//! The name of the system.
#![no_main]

use controlplane_exporter::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: fuzzing::write_seeds("os_release"), |bytes: &[u8]| fuzzing::os_release(bytes));
