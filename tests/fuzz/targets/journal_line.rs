//! Lines of logs.
#![no_main]

use controlplane_exporter::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: fuzzing::write_seeds("journal_line"), |bytes: &[u8]| fuzzing::journal_line(bytes));
