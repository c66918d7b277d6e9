//! Rows that a configuration adds to the table of signatures.
#![no_main]

use controlplane_exporter::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: fuzzing::write_seeds("journal_signatures"), |bytes: &[u8]| fuzzing::journal_signatures(bytes));
