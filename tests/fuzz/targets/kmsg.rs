//! The kernel's log.
#![no_main]

use controlplane_exporter::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: fuzzing::write_seeds("kmsg"), |bytes: &[u8]| fuzzing::kmsg(bytes));
