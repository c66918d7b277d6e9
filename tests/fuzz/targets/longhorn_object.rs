//! Longhorn's objects.
#![no_main]

use controlplane_exporter::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: fuzzing::write_seeds("longhorn_object"), |bytes: &[u8]| fuzzing::longhorn_object(bytes));
