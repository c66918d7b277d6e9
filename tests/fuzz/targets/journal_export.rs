//! What journalctl writes.
#![no_main]

use controlplane_exporter::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: fuzzing::write_seeds("journal_export"), |bytes: &[u8]| fuzzing::journal_export(bytes));
